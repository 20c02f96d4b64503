"""The wheel, installed with NumPy alone in an environment of its own, does the main job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **options):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NPQUANT"))}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=clean, **options)


@pytest.mark.slow
def test_wheel_with_numpy_alone_runs_the_main_job(tmp_path):
    source = tmp_path / "source"  # a build leaves files behind: not in the checkout
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
    if files.returncode:
        pytest.skip("not a git checkout: no list of the files that belong in a wheel")
    for name in files.stdout.split():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source)
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("pip reaches no package index, so no wheel can be built")
    assert built.returncode == 0, built.stderr
    wheel, = tmp_path.glob("npquant-*-py3-none-any.whl")
    assert wheel.stat().st_size < 1 << 20

    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    assert run(sys.executable, "-m", "venv", tmp_path / "env").returncode == 0
    installed = run(python, "-m", "pip", "install", "--no-deps", "numpy", wheel)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("pip reaches no package index, so no environment with NumPy can be made")
    assert installed.returncode == 0, installed.stderr
    assert run(python, "-c", "import numba").returncode != 0
    demo = run(python, "-m", "npquant", "demo", "--quick", "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert result
