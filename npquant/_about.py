"""What ``npquant info`` and ``npquant warmup`` say and do: of files, of this machine, of its compiled kernels."""

from __future__ import annotations

import os
import pkgutil
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from npquant import __version__, datasets, kernels, persist
from npquant._console import Meter, Outcome, in_bytes
from npquant.errors import FormatError
from npquant.kernels import _jit, _pool, simd

_PROCESSES = 4  # that compile: each loads a compiler, and the longest kernel takes a tenth of all


def info(args: Namespace) -> Outcome:
    """Say what is in a file, or what is found on this machine."""
    if args.file is None:
        return _about()
    path = args.file
    if os.path.isdir(path):
        return _about_data(path, "labelled data", datasets.load_labelled(path)._asdict())
    try:
        report = persist.describe(path)
    except FormatError:
        if path.lower().endswith(".npq"):
            raise
        found = datasets.read(path, mmap=not path.lower().endswith((".npz", ".gz")))
        return _about_data(path, in_bytes(os.path.getsize(path)), found if isinstance(found, dict) else {"": found})
    lines = [f"{path}: {report['kind']}, {in_bytes(report['bytes'])}, written by npquant "
             f"{report['library_version']} (format {report['format_version']})"]
    shown = list(_parameters(report["params"], "  "))
    lines += ["parameters", *shown] if shown else []
    training = [array for array in report["arrays"] if ".training_" in f".{array['name']}"]
    others = [array for array in report["arrays"] if array not in training]
    if others:
        wide = max(len(array["name"]) for array in others)
        lines += ["arrays", *(f"  {array['name']:<{wide}}  {array['dtype']:<8} {in_bytes(array['bytes']):>9}  "
                              f"{' x '.join(map(str, array['shape'])) or 'a number'}" for array in others)]
    if training:
        size = in_bytes(sum(array["bytes"] for array in training))
        lines.append(f"An interrupted training is inside ({size}): 'npquant train DATA --resume {path}' goes on.")
    return Outcome(report, "\n".join(lines))


def _about_data(path: str, words: str, named: dict[str, Any]) -> Outcome:
    arrays = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in named.items()]
    lines = ["  " + f"{array['name']} {array['dtype']} {' x '.join(map(str, array['shape']))}".strip()
             for array in arrays]
    return Outcome({"kind": "data", "arrays": arrays}, "\n".join([f"{path}: {words}", *lines]))


def _parameters(params: Any, indent: str) -> Iterator[str]:
    for name, value in params.items():
        if isinstance(value, dict):
            kind = value.get("kind", "")
            yield f"{indent}{name}: {kind}".rstrip()
            yield from _parameters({key: value[key] for key in value if key != "kind"}, indent + "  ")
        elif value is not None and value not in ("array", "text", "generator"):  # these are listed as arrays
            yield f"{indent}{name} = {value!r}"


def _about() -> Outcome:
    from importlib import metadata
    config: Any = np.show_config(mode="dicts")
    report = {"npquant": __version__, "python": platform.python_version(), "numpy": np.__version__,
              "numba": metadata.version("numba") if _jit.have_numba() else None, "jit": _jit.jit_mode(),
              "cache": str(_jit.cache_folder() or "") or None, "threads": _pool.available_threads(),
              "machine": platform.machine(), "simd": simd.chosen() if _jit.have_numba() else None,
              "levels": simd.runnable() if _jit.have_numba() else [],
              "blas": config.get("Build Dependencies", {}).get("blas", {}).get("name")}
    jit = {"0": "off (NPQUANT_JIT=0): NumPy alone", "1": "compile at the first call (NPQUANT_JIT=1)",
           "auto": "auto: compile when it pays (NPQUANT_JIT=0 or 1 to choose)"}
    lines = {"npquant": __version__, "python": report["python"],
             "numpy": f"{np.__version__}, BLAS {report['blas']}",
             "numba": report["numba"] or "not there: NumPy twins run (slower, the same results)",
             "compiler": jit[_jit.jit_mode()],
             "kernel cache": report["cache"] or "none is writable: kernels are compiled anew in each process",
             "threads": f"{report['threads']} (NPQUANT_NUM_THREADS or --threads to choose)",
             "processor": report["machine"],
             "SIMD level": f"{report['simd']}, of {', '.join(report['levels'])} that this machine runs "
                           "(NPQUANT_SIMD to choose)" if report["simd"] else "that of NumPy"}
    return Outcome(report, "\n".join(f"{name:<13} {value}" for name, value in lines.items()))


def all_kernels() -> dict[str, _jit.Kernel]:
    """Return every kernel by ``module.name``."""
    return {f"{module.name}.{name}": value for module in pkgutil.iter_modules(kernels.__path__)
            for name, value in vars(import_module(f"npquant.kernels.{module.name}")).items()
            if isinstance(value, _jit.Kernel) and value.source.__module__.endswith(f".{module.name}")}


def compile_share(number: int, of: int) -> None:
    """Compile one of so many shares of all kernels, for the cache."""
    for _, kernel in _share(all_kernels(), number, of):
        kernel.compiled()


def _share(found: dict[str, _jit.Kernel], number: int, of: int) -> list[tuple[str, _jit.Kernel]]:
    """Return every ``of``-th kernel from ``number`` on, in the order of their lengths: the long ones are shared out."""
    return sorted(found.items(), key=lambda item: -item[1].length)[number::of]


def _started(count: int) -> list[subprocess.Popen[bytes]]:
    """Start processes that compile all shares but the first: the compiler holds a lock, so that threads are no use."""
    program = "import sys; from npquant import _about; _about.compile_share(*map(int, sys.argv[1:]))"
    return [subprocess.Popen([sys.executable, "-c", program, str(number), str(count + 1)], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL) for number in range(1, count + 1)]


def warmup(args: Namespace) -> Outcome:
    """Compile all kernels."""
    if not _jit.have_numba() or _jit.jit_mode() == "0":
        why = "NPQUANT_JIT=0 is set" if _jit.have_numba() else "numba is not there"
        return Outcome({"kernels": [], "seconds": 0.0, "cache": None},
                       f"{why}: NumPy runs, nothing to compile")
    found, folder = all_kernels(), _jit.cache_folder()
    meter, began = Meter(len(found), "kernel"), time.perf_counter()
    others = _started(min(_PROCESSES, _pool.available_threads()) - 1) if folder else []
    try:
        for name, kernel in _share(found, 0, len(others) + 1):
            kernel.compiled()
            meter.step(name)
        for process in others:
            process.wait()
        for name, kernel in found.items():  # from the cache, but for what a process left undone
            if not kernel.is_compiled:
                kernel.compiled()
                meter.step(name)
    finally:
        meter.close()
        for process in others:
            process.kill()
            process.wait()
    seconds = time.perf_counter() - began
    kept = f"kept in {folder}" if folder else "and kept nowhere: no writable folder (set NUMBA_CACHE_DIR)"
    cache = str(folder) if folder else None
    return Outcome({"kernels": list(found), "seconds": round(seconds, 3), "cache": cache},
                   f"{len(found)} kernels ready in {seconds:.1f} s, {kept}")
