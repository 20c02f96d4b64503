"""Pictures: what is in them, and that they are made without pyplot."""

import subprocess
import sys

import pytest

import npquant as nq
from npquant import cli, plot
from npquant.errors import InvalidInputError


def entry(epoch, loss, distortion=None, validation=None):
    return {"epoch": epoch, "loss": loss, "distortion": distortion, "validation": validation}


HISTORY = [entry(0, 0.5), entry(1, 0.3, 0.2), entry(2, 0.2, 0.1)]


def result(history=HISTORY):
    def row(rule, bits, history):
        return {"rule": rule, "bits": bits, "map_floats": 0.7, "map_codes": 0.6, "history": history}
    return {"data": {"database": 100, "queries": 10, "classes": 3},
            "rows": [row(rule, bits, history if rule == "plain" else []) for bits in (8, 16)
                     for rule in ("plain", "PQ, no network")]}


def test_curves_show_what_there_is():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    figure = plot.training_curves(HISTORY)
    loss, distortion = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.3], [3, 0.2]]
    assert distortion.lines[0].get_xydata().tolist() == [[2, 0.2], [3, 0.1]]
    assert loss.get_xlim() == distortion.get_xlim()
    named = plot.training_curves({"a": HISTORY, "b": [entry(0, 0.4, 0.3, 0.9)]})
    assert len(named.axes) == 3
    assert [text.get_text() for text in named.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_curves_of_a_model():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    X, y = nq.datasets.load_digits()[:2]
    model = nq.DeepQuantizer((8,), 4, epochs=3, random_state=0,
                             quantizer=nq.ProductQuantizer(m=2, nbits=3)).fit(X[:200], y[:200])
    line = plot.training_curves(model).axes[0].lines[0]
    assert line.get_ydata().tolist() == [figures["loss"] for figures in model.history_]


def test_the_comparison_has_a_bar_for_each_row():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    figure = plot.comparison(result())
    bars, loss, distortion = figure.axes
    assert [bar.get_height() for bar in bars.patches] == [0.6] * 4
    assert [text.get_text() for text in bars.get_xticklabels()] == ["8 bits (1 byte a vector)",
                                                                     "16 bits (2 bytes a vector)"]
    assert len(loss.lines) == len(distortion.lines) == 1
    assert len(plot.comparison(result(history=[])).axes) == 1


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written_whole(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(b"old")
    plot.save(plot.comparison(result()), path)
    assert path.stat().st_size > 5000
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InvalidInputError, match="no known format"):
        plot.save(plot.comparison(result()), tmp_path / "table.txt")


def test_nothing_to_draw_is_said():
    with pytest.raises(InvalidInputError, match="after fit"):
        plot.training_curves([])
    with pytest.raises(InvalidInputError, match="history is int"):
        plot.training_curves(3)
    with pytest.raises(InvalidInputError, match="no rows"):
        plot.comparison({"rows": []})


def test_without_matplotlib_the_way_out_is_told_before_the_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'npquant\[plot\]'"):
        plot.training_curves(HISTORY)
    assert cli.main(["demo", "--plot", str(tmp_path / "a.png")]) == 1
    err = capsys.readouterr().err
    assert "pip install 'npquant[plot]'" in err
    assert len(err.splitlines()) == 1


def test_no_window_and_no_import_before_it_is_needed():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    program = ("import sys, npquant.plot as plot; assert 'matplotlib' not in sys.modules\n"
               "plot.training_curves([{'epoch': 0, 'loss': 1.0}])\n"
               "assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_demo_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / "demo.png"
    assert cli.main(["demo", "--quick", "--rules", "plain", "--bits", "8", "--epochs", "1", "--hidden", "8", "--d-out",
                     "4", "--queries", "10", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
