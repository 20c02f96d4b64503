"""What every bench shares: a fair BLAS, a line about the machine, timing in alternation.

Import it before NumPy: the environment may force a slow OpenBLAS kernel, and an OpenBLAS that does not know the
processor falls to a slower one still, which would flatter whoever brings another. On AVX-512 machines the kernel is
therefore set to SkylakeX for all, and printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence


def cpu_features() -> list[str]:
    """Return the vector extensions of this processor that matter here."""
    known = ("avx2", "fma", "avx512f", "avx512bw", "avx512vbmi", "asimd")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return []
    return [name for name in known if name in line.split()]


if "numpy" in sys.modules:
    raise ImportError("import _harness before NumPy: it chooses the BLAS kernel")
if "avx512f" in cpu_features():
    os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"

import platform
import time
from importlib import metadata

import numpy as np


def machine(*packages: str, threads: int | None = None) -> str:
    """Return a line: processor, features, cores, load, threads, BLAS kernel, versions of ``packages``."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = [f"{package} {metadata.version(package)}" for package in ("numpy", "numba", *packages)
                if _installed(package)]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    asked = f"; {threads} thread(s)" if threads else ""
    return (f"{time.strftime('%Y-%m-%d')}; {name} ({' '.join(cpu_features())}; {os.cpu_count()} cores{load}{asked}); "
            f"Python {platform.python_version()}, {', '.join(versions)}; "
            f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')} "
            f"OPENBLAS_L2_SIZE={os.environ.get('OPENBLAS_L2_SIZE', 'unset')}")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def alternate(rivals: Sequence[Callable[[], object]], rounds: int, warmup: int = 2) -> np.ndarray:
    """Return seconds (rounds, rivals): each round runs every rival once, in turn, so that drift hits all alike."""
    for rival in rivals:
        for _ in range(warmup):
            rival()
    seconds = np.empty((rounds, len(rivals)))
    for turn in range(rounds):
        for i, rival in enumerate(rivals):
            began = time.perf_counter()
            rival()
            seconds[turn, i] = time.perf_counter() - began
    return seconds
