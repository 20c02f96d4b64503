"""The command line: every command on small files, its exit codes and its words."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import npquant as nq
from npquant import _commands, _console, _demo, cli

core = pytest.mark.core
DIGITS = nq.datasets.load_digits()
SMALL = ["--epochs", "2", "--hidden", "16", "--d-out", "8", "--batch-size", "64"]
MODEL = ["--m", "2", "--nbits", "4", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def hurried():
    """Times are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_demo, "_TIMED_FOR", 0.0)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Digits as files, and what the commands make of them, once."""
    folder = tmp_path_factory.mktemp("cli")
    nq.datasets.write(folder / "base.fvecs", DIGITS.X_train[:400])
    nq.datasets.write(folder / "base_y.npy", DIGITS.y_train[:400])
    nq.datasets.write(folder / "queries.npy", DIGITS.X_test[:40])
    nq.datasets.write(folder / "queries_y.npy", DIGITS.y_test[:40])
    nq.datasets.write(folder / "labelled.npz", {"X_train": DIGITS.X_train[:400], "y_train": DIGITS.y_train[:400],
                                                "X_test": DIGITS.X_test[:40], "y_test": DIGITS.y_test[:40]})
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert cli.main(["train", "base.fvecs", "--method", "pq", "--m", "8", "--nbits", "4", "-o", "pq.npq"]) == 0
        assert cli.main(["build", "pq.npq", "base.fvecs", "-o", "pq_index.npq"]) == 0
        assert cli.main(["train", "labelled.npz", *SMALL, *MODEL, "-o", "deep.npq"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def run(files, monkeypatch, capsys):
    """Call main in the folder of the files; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(files)

    def call(*argv):
        capsys.readouterr()
        code = cli.main([str(word) for word in argv])
        out = capsys.readouterr()
        return code, out.out, out.err
    return call


def failed(result, code=1):
    """Return the single line of an error."""
    assert result[0] == code
    assert result[1] == ""
    line, = result[2].splitlines()
    assert line.startswith("npquant: error: ")
    return line


def process(*argv, **more):
    """Run the command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "npquant", *map(str, argv)], capture_output=True, text=True,
                          encoding="utf-8", timeout=120, **more)


# --- the chain of commands gives what Python gives ---


@core
def test_the_chain_of_pq_gives_the_ids_of_python(run, files):
    pq = nq.ProductQuantizer(m=8, nbits=4, random_state=0).fit(DIGITS.X_train[:400])
    index = nq.FlatIndex(pq)
    index.add(DIGITS.X_train[:400])
    distances, ids = index.search(DIGITS.X_test[:40], 5)

    assert run("search", "pq_index.npq", "queries.npy", "-k", 5, "-o", "result.npz")[0] == 0
    found = nq.datasets.read(files / "result.npz")
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_array_equal(found["distances"], distances)
    assert run("search", "pq_index.npq", "queries.npy", "-k", 5, "-o", "result.ivecs")[0] == 0
    np.testing.assert_array_equal(nq.datasets.read(files / "result.ivecs"), ids)
    report = json.loads(run("search", "pq_index.npq", "queries.npy", "-k", 5, "--json")[1])
    assert report["ids"] == ids.tolist()
    np.save(files / "allow.npy", np.arange(100, 200))
    report = json.loads(run("search", "pq_index.npq", "queries.npy", "-k", 5, "--allow", "allow.npy", "--json")[1])
    assert report["ids"] == index.search(DIGITS.X_test[:40], 5, allow=np.arange(100, 200)).ids.tolist()
    named = nq.IdMap(nq.FlatIndex(pq))
    named.add(DIGITS.X_train[:3], ["one", "two", "three"])
    nq.save(named, files / "named.npq")
    report = json.loads(run("search", "named.npq", "queries.npy", "-k", 4, "--json")[1])
    wanted = named.search(DIGITS.X_test[:40], 4).ids
    assert report["ids"] == [[name or "" for name in row] for row in wanted]

    assert run("encode", "pq.npq", "base.fvecs", "-o", "codes.npy")[0] == 0
    codes = nq.datasets.read(files / "codes.npy")
    np.testing.assert_array_equal(codes, pq.encode(DIGITS.X_train[:400]))
    assert run("decode", "pq.npq", "codes.npy", "-o", "decoded.fvecs")[0] == 0
    np.testing.assert_array_equal(nq.datasets.read(files / "decoded.fvecs"), pq.decode(codes))


def test_the_chain_of_deep_gives_the_ids_of_python(run, files):
    model = nq.DeepQuantizer((16,), 8, epochs=2, batch_size=64, random_state=0,
                             quantizer=nq.ProductQuantizer(m=2, nbits=4)).fit(DIGITS.X_train[:400],
                                                                              DIGITS.y_train[:400])
    assert run("build", "deep.npq", "labelled.npz", "-o", "deep_index.npq")[0] == 0
    assert run("search", "deep_index.npq", "labelled.npz", "-k", 7, "-o", "deep.ivecs")[0] == 0
    ids = model.index(DIGITS.X_train[:400]).search(DIGITS.X_test[:40], 7).ids
    np.testing.assert_array_equal(nq.datasets.read(files / "deep.ivecs"), ids)


def test_labels_in_a_file_are_labels_in_the_data(run, files):
    assert run("train", "base.fvecs", "--labels", "base_y.npy", *SMALL, *MODEL, "-o", "again.npq")[0] == 0
    assert (files / "again.npq").read_bytes() != b""
    np.testing.assert_array_equal(nq.load(files / "again.npq").network_.parameters,
                                  nq.load(files / "deep.npq").network_.parameters)


def test_options_of_a_training_arrive(run, files):
    report = json.loads(run("train", "base.fvecs", *SMALL, *MODEL, "--output", "straight_through,ssm", "--lr", "0.01",
                            "--whiten", 20, "--validation", "0.2", "--patience", 5, "--loss", "contrastive",
                            "--seed", 3, "-o", "options.npq", "--json")[1])
    assert report["supervision"] == "nearest neighbours"
    params = nq.load(files / "options.npq").get_params(deep=False)
    wanted = {"output": ("straight_through", "ssm"), "lr": 0.01, "whiten": 20, "validation": 0.2, "patience": 5,
              "loss": "contrastive", "random_state": 3, "hidden": (16,), "d_out": 8, "callback": None}
    assert {name: params[name] for name in wanted} == wanted


def test_opq_is_that_of_python(run, files):
    assert run("train", "base.fvecs", "--method", "opq", "--m", 8, "--nbits", 4, "--iterations", 3, "-o", "opq.npq",
               "--seed", 3)[0] == 0
    assert run("encode", "opq.npq", "base.fvecs", "-o", "opq.npy")[0] == 0
    opq = nq.OptimizedProductQuantizer(m=8, nbits=4, n_iter=3, random_state=3).fit(DIGITS.X_train[:400])
    np.testing.assert_array_equal(np.load(files / "opq.npy"), opq.encode(DIGITS.X_train[:400]))


def test_kmeans_encodes_to_numbers_of_centres(run, files):
    assert run("train", "base.fvecs", "--method", "kmeans", "--clusters", 12, "--iterations", 5,
               "-o", "km.npq")[0] == 0
    km = nq.KMeans(12, max_iter=5, random_state=0).fit(DIGITS.X_train[:400])
    assert run("encode", "km.npq", "base.fvecs", "-o", "km.npy")[0] == 0
    np.testing.assert_array_equal(nq.datasets.read(files / "km.npy"), km.labels_)
    assert run("decode", "km.npq", "km.npy", "-o", "centres.npy")[0] == 0
    np.testing.assert_array_equal(nq.datasets.read(files / "centres.npy"), km.cluster_centers_[km.labels_])
    failed(run("decode", "km.npq", "queries.npy", "-o", "no.npy"))
    assert "KMeans" in failed(run("build", "km.npq", "base.fvecs", "-o", "no.npq"))


def test_blocks_of_rows_change_nothing(run, files, monkeypatch):
    monkeypatch.setattr(_commands, "_ROWS", 64)
    nq.datasets.write(files / "ids.npy", np.arange(400) * 3)
    assert run("build", "pq.npq", "base.fvecs", "-o", "blocks.npq")[0] == 0
    assert (files / "blocks.npq").read_bytes() == (files / "pq_index.npq").read_bytes()
    assert run("build", "pq.npq", "base.fvecs", "--ids", "ids.npy", "--metric", "cosine", "-o", "named.npq")[0] == 0
    index = nq.load(files / "named.npq")
    assert index.metric == "cosine"
    np.testing.assert_array_equal(index.ids, np.arange(400) * 3)
    short = np.arange(100)
    nq.datasets.write(files / "short.npy", short)
    assert "ids" in failed(run("build", "pq.npq", "base.fvecs", "--ids", "short.npy", "-o", "no.npq"))
    assert not (files / "no.npq").exists()


# --- evaluation ---


@core
def test_eval_by_true_neighbours(run, files):
    truth = nq.metrics.exact_neighbors(DIGITS.X_train[:400], DIGITS.X_test[:40], 100)[1]
    nq.datasets.write(files / "truth.ivecs", truth)
    report = json.loads(run("eval", "pq_index.npq", "--queries", "queries.npy", "--truth", "truth.ivecs",
                            "--json")[1])
    ids = nq.load(files / "pq_index.npq").search(DIGITS.X_test[:40], 100).ids
    for R in (1, 10, 100):
        assert report[f"recall_at_{R}"] == nq.metrics.recall_at(ids, truth, R)
    assert report["knn_recall_10"] == nq.metrics.knn_recall(ids, truth, 10)
    code, out, _ = run("eval", "pq.npq", "--queries", "queries.npy", "--database", "base.fvecs")
    assert code == 0
    assert f"{report['recall_at_10']:.4f}" in out
    assert "were computed" in out


def test_eval_by_labels(run, files):
    pq = nq.load(files / "pq.npq")
    scores = pq.scorer(DIGITS.X_test[:40]).scores(pq.encode(DIGITS.X_train[:400]))
    wanted = nq.metrics.mean_average_precision(scores, DIGITS.y_test[:40], DIGITS.y_train[:400])
    for argv in (["pq_index.npq", "--queries", "queries.npy", "--labels", "queries_y.npy",
                  "--database-labels", "base_y.npy"],
                 ["pq_index.npq", "--queries", "labelled.npz"], ["pq.npq", "--queries", "labelled.npz"]):
        assert json.loads(run("eval", *argv, "--json")[1])["map"] == pytest.approx(wanted, abs=1e-12)
    run("build", "pq.npq", "base.fvecs", "--metric", "ip", "-o", "ip.npq")
    by_product = json.loads(run("eval", "ip.npq", "--queries", "labelled.npz", "--json")[1])["map"]
    scores = pq.scorer(DIGITS.X_test[:40], "ip").scores(pq.encode(DIGITS.X_train[:400]))
    assert by_product == pytest.approx(
        nq.metrics.mean_average_precision(scores, DIGITS.y_test[:40], DIGITS.y_train[:400]), abs=1e-12)


def test_eval_says_what_is_missing(run):
    assert "--truth" in failed(run("eval", "pq_index.npq", "--queries", "queries.npy"), 2)
    assert "--database" in failed(run("eval", "pq.npq", "--queries", "queries.npy"), 2)
    assert "--database-labels" in failed(run("eval", "pq_index.npq", "--queries", "queries.npy", "--labels",
                                             "queries_y.npy"), 2)
    assert "400 rows" in failed(run("eval", "pq_index.npq", "--queries", "queries.npy", "--labels", "base_y.npy",
                                    "--database-labels", "base_y.npy"))
    assert "40 rows" in failed(run("eval", "pq_index.npq", "--queries", "queries.npy", "--labels", "queries_y.npy",
                                   "--database-labels", "queries_y.npy"))
    assert "--metric l2" in failed(run("eval", "pq_index.npq", "--queries", "labelled.npz", "--metric", "ip"), 2)


# --- the demo ---


@pytest.fixture(scope="module")
def table():
    """A tiny comparison with every rule, and its settings."""
    settings = _demo.Settings(bits=(8, 16), epochs=2, hidden=(16,), d_out=8, queries=30, quick=True, threads=1)
    names = []
    return _demo.compare(DIGITS, settings, on_epoch=names.append), names


@core
def test_the_demo_has_a_row_for_each_rule_and_length(table):
    result, names = table
    assert [(row["bits"], row["rule"]) for row in result["rows"]] == [
        (bits, rule) for bits in (8, 16) for rule in (*_demo.RULES, _demo.BASELINE)]
    for row in result["rows"]:
        assert 0 < row["map_floats"] <= 1
        assert 0 < row["map_codes"] <= 1
        assert 0 < row["distortion"] < 1
        assert (row["code_bytes"], row["vector_bytes"]) == (row["bits"] // 8, 256)
        assert min(row["train_seconds"], row["encode_per_second"], row["search_ms"]) > 0
        assert len(row["history"]) == (0 if row["rule"] == _demo.BASELINE else 2)
    assert len(names) == 2 * 5 * 2
    text = _demo.table(result)
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("rule ")]
    assert len(heads) == 1
    body = [line for line in lines for rule in (*_demo.RULES, _demo.BASELINE) if re.match(rf"{rule} +\d+ ", line)]
    assert len(body) == 12
    assert {len(line) for line in body} == {len(lines[heads[0]])}  # columns end at one place
    assert max(map(len, lines)) <= 115
    assert text.isascii()


def test_the_demo_ranks_as_the_metrics_do(table):
    row = table[0]["rows"][-1]
    rng = np.random.default_rng(0)
    kept, asked = np.sort(rng.permutation(len(DIGITS.X_train))[:1500]), np.sort(rng.permutation(355)[:30])
    X, y, Q, yq = DIGITS.X_train[kept], DIGITS.y_train[kept], DIGITS.X_test[asked], DIGITS.y_test[asked]
    pq = nq.ProductQuantizer(m=2, random_state=0).fit(X)
    exact = np.square(Q[:, None] - X).sum(axis=2)
    assert row["map_floats"] == pytest.approx(nq.metrics.mean_average_precision(exact, yq, y), abs=1e-6)
    assert row["map_codes"] == pytest.approx(
        nq.metrics.mean_average_precision(pq.scorer(Q).scores(pq.encode(X)), yq, y), abs=1e-12)
    assert row["distortion"] == nq.metrics.distortion(X, pq.decode(pq.encode(X)), relative=True)


def test_the_demo_pads_what_does_not_divide():
    data = nq.datasets.Labelled(DIGITS.X_train[:300, :63], DIGITS.y_train[:300], DIGITS.X_test[:20, :63],
                                DIGITS.y_test[:20])
    settings = _demo.Settings(("plain",), (16,), 1, hidden=(8,), d_out=4, threads=1)
    row = _demo.compare(data, settings)["rows"][-1]
    assert (row["rule"], row["code_bytes"], row["vector_bytes"]) == (_demo.BASELINE, 2, 252)


def row(rule, floats, codes, bits=16):
    return {"rule": rule, "bits": bits, "map_floats": floats, "map_codes": codes, "code_bytes": bits // 8,
            "vector_bytes": 256}


def test_findings_follow_from_the_rows():
    said = " ".join(_demo.findings([row("plain", 0.9, 0.91), row("gsl", 0.9, 0.90), row(_demo.BASELINE, 0.4, 0.3)], 10))
    assert "best rule is plain, MAP 0.910" in said
    assert "0.300" in said
    assert "10 classes there is nothing for a rule to win back" in said
    said = " ".join(_demo.findings([row("plain", 0.5, 0.4), row("gsl", 0.5, 0.45)], 900))
    assert "best rule is gsl, MAP 0.450 by codes, 0.050 beyond plain" in said
    assert "up to 0.100 of MAP" in said
    assert "wins 0.050" in said
    said = " ".join(_demo.findings([row("plain", 0.5, 0.5), row("gsl", 0.5, 0.55)], 10))
    assert "best rule is 0.050 above plain" in said
    assert "none is expected" not in said
    said = " ".join(_demo.findings([row("gsl", 0.5, 0.45)], 900))
    assert "plain" not in said


def test_the_demo_command_and_its_seed(run, files):
    argv = ["demo", "--quick", "--bits", "8", "--rules", "plain,straight_through+ssm", "--queries", 20, "--threads", 1,
            *SMALL]
    code, out, err = run(*argv, "--json", "demo.json")
    assert (code, err) == (0, "")
    assert "handwritten digits" in out
    assert "straight_through+ssm" in out
    first = json.loads((files / "demo.json").read_text())
    code, out, _ = run(*argv, "--json", "--data", "labelled.npz", "--seed", 5)
    assert code == 0
    assert json.loads(out)["data"] == {"database": 400, "queries": 20, "dimensions": 64, "classes": 10}
    second = json.loads(run(*argv, "--json")[1])

    def figures(result):
        return [[value for key, value in row.items() if key in ("rule", "map_floats", "map_codes", "distortion")]
                for row in result["rows"]]
    assert figures(first) == figures(second)
    assert figures(first) != figures(json.loads(out))


@pytest.mark.parametrize(("argv", "word"), [
    (["--bits", "12"], "multiples of 8"), (["--bits", "ten"], "whole number"), (["--bits", ""], "whole numbers"),
    (["--bits", "24"], "bits is 24"), (["--rules", "plain,plane"], "'plane'"), (["--epochs", "0"], "from 1 up"),
    (["--lr", "-1"], "above 0"), (["--rules", "gsl,gsl"], "different words")])
def test_wrong_settings_of_the_demo_are_told_in_a_line(run, argv, word):
    assert word in failed(run("demo", *argv), 2)


# --- interruption ---


def test_ctrl_c_leaves_a_model_that_goes_on_as_if_nothing_had_been(run, files, monkeypatch):
    argv = ["train", "labelled.npz", *SMALL[2:], *MODEL, "--epochs", 6, "-o"]
    assert run(*argv, "whole.npq")[0] == 0

    steps = []

    def interrupted(self, words):
        steps.append(words)
        if len(steps) == 4:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(_console.Meter, "step", interrupted)
        code, out, err = run(*argv, "part.npq")
    assert code == 130
    assert "of 6 epochs" in out
    assert "--resume part.npq" in err
    assert "interrupted training is inside" in run("info", "part.npq")[1]
    assert len(nq.load(files / "part.npq").encode(DIGITS.X_test[:3])) == 3

    assert "--epochs does not go with --resume" in failed(run("train", "labelled.npz", "--resume", "part.npq",
                                                              "--epochs", 9), 2)
    assert run("train", "labelled.npz", "--resume", "part.npq")[0] == 0
    whole, part = nq.load(files / "whole.npq"), nq.load(files / "part.npq")
    np.testing.assert_array_equal(part.network_.parameters, whole.network_.parameters)
    np.testing.assert_array_equal(part.quantizer_.codebooks_, whole.quantizer_.codebooks_)
    assert "no interrupted training" in failed(run("train", "labelled.npz", "--resume", "part.npq"))
    assert "no interrupted training" in failed(run("train", "labelled.npz", "--resume", "pq.npq"))


def test_ctrl_c_before_there_is_anything(run, files, monkeypatch):
    def interrupted(self, X, y=None):
        raise KeyboardInterrupt
    monkeypatch.setattr(nq.ProductQuantizer, "fit", interrupted)
    assert "interrupted" in failed(run("train", "base.fvecs", "--method", "pq", "-o", "none.npq"), 130)
    assert not (files / "none.npq").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child alone")
def test_a_signal_interrupts_a_process(files):
    work = subprocess.Popen([sys.executable, "-m", "npquant", "train", "labelled.npz", *SMALL[2:], *MODEL, "--epochs",
                             "100000", "-o", "signal.npq"], cwd=files, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)
    try:
        time.sleep(3)
        work.send_signal(signal.SIGINT)
        _, err = work.communicate(timeout=60)
    finally:
        work.kill()
        work.communicate()
    assert work.returncode == 130
    assert "Traceback" not in err
    if (files / "signal.npq").exists():  # on a slow machine it had not begun
        assert "interrupted after" in err
        assert nq.load(files / "signal.npq").encode(DIGITS.X_test[:2]).shape == (2, 1)


# --- errors ---


def test_errors_are_one_line(run, files):
    assert "nowhere.npy" in failed(run("train", "nowhere.npy", "-o", "no.npq"))
    assert "nowhere.npq" in failed(run("search", "nowhere.npq", "queries.npy"))
    assert "not an .npq file" in failed(run("search", "queries.npy", "queries.npy"))
    assert "wanted an index" in failed(run("search", "pq.npq", "queries.npy"))
    assert "wanted a model" in failed(run("encode", "pq_index.npq", "queries.npy", "-o", "no.npy"))
    assert "40 rows" in failed(run("train", "base.fvecs", "--labels", "queries_y.npy", *SMALL, "-o", "no.npq"))
    assert "no folder" in failed(run("train", "base.fvecs", "-o", "missing/no.npq"))
    assert "folder" in failed(run("encode", "pq.npq", "base.fvecs", "-o", "."))
    assert "no known format" in failed(run("encode", "pq.npq", "base.fvecs", "-o", "codes.txt"))
    assert "not divisible" in failed(run("train", "base.fvecs", "--method", "pq", "--m", 7, "-o", "no.npq"))
    assert "no array 'Z'" in failed(run("encode", "pq.npq", "labelled.npz:Z", "-o", "no.npy"))
    (files / "foreign.npq").write_bytes(b"PK\3\4 something else entirely, and long enough to be a header")
    assert "foreign.npq" in failed(run("info", "foreign.npq"))
    assert not (files / "no.npq").exists()


def test_wrong_dimension_names_both(run, files):
    nq.datasets.write(files / "five.npy", np.zeros((3, 5), np.float32))
    line = failed(run("search", "pq_index.npq", "five.npy"))
    assert "5" in line
    assert "64" in line


@core
def test_wrong_usage_is_told_apart(run):
    for argv in ([], ["nothing"], ["search"], ["search", "pq_index.npq", "queries.npy", "-k", "0"],
                 ["train", "base.fvecs"], ["train", "base.fvecs", "--method", "pq", "--lr", "1", "-o", "no.npq"],
                 ["train", "base.fvecs", "--method", "pq", "--labels", "base_y.npy", "-o", "no.npq"],
                 ["build", "pq.npq", "base.fvecs", "-o", "no.npq", "--metric", "angle"]):
        assert run(*argv)[0] == 2
    assert "--lr does not go with --method pq" in failed(run("train", "base.fvecs", "--method", "pq", "--lr", "1",
                                                             "-o", "no.npq"), 2)


def test_an_unknown_fault_is_one_line_and_debug_shows_it(run, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("two\nlines")
    monkeypatch.setattr("npquant.persist.describe", broken)
    assert "unexpected ZeroDivisionError: two lines" in failed(run("info", "pq.npq"))
    with pytest.raises(ZeroDivisionError):
        run("info", "pq.npq", "--debug")


def test_warnings_are_lines(run):
    code, _, err = run("train", "queries.npy", "--method", "pq", "-o", "few.npq")
    assert code == 0
    line, = err.splitlines()
    assert line.startswith("npquant: warning: 40 training vectors")


# --- what is in a file, and in the machine ---


def test_info_of_files(run):
    out = run("info", "pq_index.npq")[1]
    for word in ("FlatIndex", "ProductQuantizer", "nbits = 4", "vectors = 400", "metric = 'l2'"):
        assert word in out
    assert json.loads(run("info", "deep.npq", "--json")[1])["params"]["epochs"] == 2
    assert "float32 400 x 64" in run("info", "base.fvecs")[1]
    assert "X_test float32 40 x 64" in run("info", "labelled.npz")[1]


def test_info_of_the_machine(run, monkeypatch):
    code, out, _ = run("info")
    assert code == 0
    assert nq.__version__ in out
    report = json.loads(run("info", "--json", "--threads", 3)[1])
    assert report["numpy"] == np.__version__
    assert report["threads"] == 3
    monkeypatch.setattr("npquant.kernels._jit.have_numba", lambda: False)
    assert "not there: NumPy twins run" in run("info")[1]
    assert "nothing to compile" in run("warmup")[1]


@pytest.mark.parametrize("threads", [1, 3])
def test_warmup_compiles_every_kernel(run, monkeypatch, threads):
    """Shared out among processes, or alone; what another process leaves undone is done at the end."""
    from npquant import _about
    from npquant.kernels import _jit, nearest, scan
    asked, started, gone = [], [], []

    class Process:
        def __init__(self, argv, **_):
            started.append(argv)

        def wait(self):
            if started and len(asked) < 40:
                for argv in started[:1]:  # the second dies
                    _about.compile_share(*map(int, argv[3:]))
                started.clear()

        def kill(self):
            gone.append(self)
    monkeypatch.setattr(_about.subprocess, "Popen", Process)
    monkeypatch.setattr(_jit, "cache_folder", lambda: "cache")
    monkeypatch.setattr(_jit.Kernel, "is_compiled", property(lambda self: self in asked))
    monkeypatch.setattr(_jit, "have_numba", lambda: True)
    monkeypatch.setattr(_jit, "jit_mode", lambda: "auto")
    monkeypatch.setattr(_jit.Kernel, "compiled", lambda self: asked.append(self))
    names = json.loads(run("warmup", "--json", "--threads", threads)[1])["kernels"]
    assert len(gone) == threads - 1
    assert len(names) == len(asked) == len(set(names))
    assert {scan.adc_search, nearest.nearest_codewords} <= set(asked)


def test_threads_are_set_for_the_command_alone(run, monkeypatch):
    monkeypatch.delenv("NPQUANT_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run("info", "--threads", 3)
    assert "NPQUANT_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


# --- processes ---


def test_help_imports_nothing_heavy():
    program = ("import sys; from npquant.cli import main\n"
               "for words in (['-h'], ['--version'], ['train', '-h'], []): main(words)\n"
               "print([name for name in ('numpy', 'numba', 'tqdm', 'json', 'logging') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"
    assert f"npquant {nq.__version__}" in result.stdout


def test_every_command_has_an_example(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in ("demo", "train", "encode", "decode", "build", "search", "eval", "info", "warmup"):
        assert f"  {name}" in out
        code, words, _ = run(name, "-h")
        assert code == 0
        assert "example:\n  npquant " + name in words


def test_a_module_is_a_command(files):
    result = process("search", "pq_index.npq", "queries.npy", "-k", 2, cwd=files)
    assert (result.returncode, result.stderr) == (0, "")
    assert "query 4:" in result.stdout
    result = process("search", "pq_index.npq", "nowhere.npy", cwd=files)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of a shell")
def test_a_closed_pipe_is_no_fault(files):
    for words in ("search pq_index.npq queries.npy --json -k 400", "--help"):
        result = subprocess.run(f"{sys.executable} -m npquant {words} | true", cwd=files, shell=True, text=True,
                                capture_output=True, timeout=60)
        assert result.stderr == ""


# ------------------------------------------------------------------------------------- indexes from a line of text


@core
def test_an_index_from_a_line(run):
    """A line is trained on --learn or the vectors themselves; search and tune take the options of what it made."""
    line = "IVF8,PQ8x4,Refine(int8)"
    code, out, _ = run("build", line, "base.fvecs", "--learn", "base.fvecs", "-o", "ivf.npq")
    assert code == 0
    assert "400 vectors of 68 bytes" in out
    code, out, _ = run("search", "ivf.npq", "queries.npy", "-k", "3", "--nprobe", "8", "--oversample", "20", "--json")
    assert code == 0
    index = nq.load("ivf.npq")
    assert json.loads(out)["ids"] == index.search(DIGITS.X_test[:40], 3, nprobe=8, oversample=20).ids.tolist()
    code, out, _ = run("tune", "ivf.npq", "queries.npy", "--recall", "0.9", "-k", "5", "--json")
    assert code == 0
    assert json.loads(out)["recall"] >= 0.9
    code, out, _ = run("tune", "ivf.npq", "queries.npy")
    assert code == 0
    assert "recall  ms a query  options" in out


def test_lines_and_options_that_make_no_sense(run):
    """What does not go together is told in a line, and nothing is written."""
    assert "do not divide" in failed(run("build", "PQ7", "base.fvecs", "-o", "no.npq"))
    learned = run("build", "pq.npq", "base.fvecs", "--learn", "base.fvecs", "-o", "no.npq")
    assert "--learn goes with" in failed(learned, 2)
    assert "no such file" in failed(run("build", "missing.npq", "base.fvecs", "-o", "no.npq"))
    assert "--nprobe does not go" in failed(run("search", "pq_index.npq", "queries.npy", "--nprobe", "3"), 2)
    assert "no search options" in failed(run("tune", "pq_index.npq", "queries.npy"))
    assert not os.path.exists("no.npq")


def test_eval_of_lists_counts_what_is_not_found_as_last(run, files):
    assert run("build", "IVF8,PQ4x4", "base.fvecs", "-o", "lists.npq")[0] == 0
    argv = ["eval", "lists.npq", "--queries", "queries.npy", "--labels", "queries_y.npy", "--database-labels",
            "base_y.npy", "--json"]
    found = json.loads(run(*argv)[1])["map"]
    index = nq.load(files / "lists.npq")
    index_ids = np.load(files / "queries.npy")
    distances = np.full((len(index_ids), index.ntotal), np.inf, np.float32)
    got = index.search(index_ids, index.ntotal)
    for row, near, ids in zip(distances, got.distances, got.ids):
        row[ids[ids >= 0]] = near[ids >= 0]
    wanted = nq.metrics.mean_average_precision(distances, np.load(files / "queries_y.npy"),
                                               np.load(files / "base_y.npy"))
    assert found == pytest.approx(wanted, abs=1e-12)


def test_search_options_reach_the_index_behind_names(run, files):
    x = nq.datasets.read(str(files / "base.fvecs"))
    names = nq.IdMap(nq.index_factory("IVF4,PQ4x4", x.shape[1], random_state=0).fit(x))
    names.add(x, [f"n{i}" for i in range(len(x))])
    nq.save(names, files / "names.npq")
    assert run("search", "names.npq", "queries.npy", "--nprobe", "2")[0] == 0
    assert "--oversample" in failed(run("search", "names.npq", "queries.npy", "--oversample", "2"), 2)


def test_tuning_behind_names(run, files):
    """The index inside is tuned; the truth is of names."""
    index = nq.IdMap(nq.index_factory("IVF8,PQ8x4", d=64, random_state=0).fit(DIGITS.X_train))
    index.add(DIGITS.X_train, [f"image {i}" for i in range(len(DIGITS.X_train))])
    nq.save(index, files / "called.npq")
    found = index.search(DIGITS.X_test[:40], 10, nprobe=8).ids.astype(str)
    np.save(files / "truth_names.npy", found)
    for more in ((), ("--truth", "truth_names.npy")):
        code, out, _ = run("tune", "called.npq", "queries.npy", "--recall", "1", "--json", *more)
        assert (code, json.loads(out)["recall"]) == (0, 1.0)
    np.save(files / "one_name.npy", found[0, :1])
    code, out, _ = run("search", "called.npq", "queries.npy", "--allow", "one_name.npy", "--nprobe", "8", "--rows", "1")
    assert code == 0
    assert out.splitlines()[2].count("(") == 1  # what is not there is not shown


def test_eval_takes_search_options(run, files):
    """Recall is that of the search asked for, and both codes of a vector are counted."""
    assert run("build", "IVF8,PQ8x4,Refine(int8)", "base.fvecs", "-o", "two.npq")[0] == 0
    index = nq.load(files / "two.npq")
    truth = nq.metrics.exact_neighbors(DIGITS.X_train[:400], DIGITS.X_test[:40], 10)[1]
    np.save(files / "true_ten.npy", truth)
    for options in ({}, {"nprobe": 1, "oversample": 1}, {"nprobe": 8, "oversample": 40}):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        code, out, _ = run("eval", "two.npq", "--queries", "queries.npy", "--truth", "true_ten.npy", "--json", *words)
        assert code == 0
        found = index.search(DIGITS.X_test[:40], 100, **options).ids
        assert json.loads(out)["knn_recall_10"] == nq.metrics.knn_recall(found, truth, 10)
    assert "vectors of 68 bytes" in run("eval", "two.npq", "--queries", "queries.npy", "--truth", "true_ten.npy")[1]
    assert "--nprobe does not go with pq_index.npq, which holds a FlatIndex" in failed(
        run("eval", "pq_index.npq", "--queries", "queries.npy", "--truth", "true_ten.npy", "--nprobe", "2"), 2)


@core
def test_cosine_from_training_to_search(run, files):
    """A codec trained with --metric cosine is the one that an index trains; one of other lengths brings a warning."""
    for method, kind in (("pq", nq.ProductQuantizer), ("opq", nq.OptimizedProductQuantizer)):
        assert run("train", "base.fvecs", "--method", method, "--m", "4", "--nbits", "4", "--iterations", "3",
                   "--metric", "cosine", "-o", "directions.npq")[0] == 0
        wanted = nq.FlatIndex(kind(4, 4, n_iter=3, random_state=0), "cosine").fit(DIGITS.X_train[:400]).codec
        assert (nq.load(files / "directions.npq").decode(np.zeros((1, 2), np.uint8)) == wanted.decode(
            np.zeros((1, 2), np.uint8))).all()
        code, _, err = run("build", "directions.npq", "base.fvecs", "--metric", "cosine", "-o", "angles.npq")
        assert (code, err) == (0, "")
    code, _, err = run("build", "pq.npq", "base.fvecs", "--metric", "cosine", "-o", "angles.npq")
    assert code == 0
    assert err.startswith("npquant: warning: the codes tell less")
    assert "npquant train --metric cosine" in err
    assert "--metric does not go with --method kmeans" in failed(
        run("train", "base.fvecs", "--method", "kmeans", "--metric", "cosine", "-o", "k.npq"), 2)


def test_the_compilers_time_is_told_apart(run, monkeypatch):
    """What a search waits for kernels is not its own time."""
    clock = iter([0.0, 7.0])
    monkeypatch.setattr(_commands._jit, "seconds_compiling", lambda: next(clock))
    monkeypatch.setattr(_commands, "time", type("Clock", (), {"perf_counter": staticmethod(iter([0.0, 7.4]).__next__)}))
    code, out, _ = run("search", "pq_index.npq", "queries.npy")
    assert code == 0
    assert out.splitlines()[0].endswith(": 10.000 ms a query, and 7 s for the compiler, the first time on this machine")
