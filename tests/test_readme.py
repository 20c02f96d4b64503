"""The programs of the README run as they stand."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_programs_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for program in PROGRAMS:
        if "…" not in program:  # an outline of arguments
            exec(compile(program, "README.md", "exec"), scope)
    printed = float(capsys.readouterr().out.split()[0])
    assert printed > 0.9  # of the ten nearest, most have the query's digit
    distances, ids = scope["index"].search(scope["Q"], k=3)
    assert ids.shape == (355, 3)
    assert np.isfinite(distances).all()


def test_every_command_that_ci_runs_is_there():
    assert re.findall(r"<!-- ci: (\w+) -->\n```sh\n.+\n```", README) == ["demo", "test"]
