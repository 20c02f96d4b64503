"""The lazy jit wrapper: nothing compiles at import, and everything works where nothing can be compiled."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from npquant.kernels import simd

log = logging.getLogger("npquant")

# A kernel stays on its twin until so many elementary operations have gone through it (about 50 ms of NumPy):
# a one-off query never waits for LLVM, and a long job loses nothing that it would notice.
_WARM_WORK = 20_000_000

_seconds = 0.0


Tiled = tuple[Callable[..., None], Callable[[str], "dict[str, Any] | None"]]


class Kernel:
    """A compiled function over arrays and its NumPy twin, called alike and giving the same bits.

    Calling it runs the compiled function where numba is there, ``NPQUANT_JIT`` allows it and enough work has
    gone by; otherwise the twin. ``twin`` and ``compiled()`` give either one by name. A kernel with ``tiled``
    code has a compiled function for each SIMD level.
    """

    def __init__(self, source: Callable[..., None], twin: Callable[..., None], signature: str,
                 work: Callable[..., int], helpers: tuple[Callable[..., Any], ...] = (),
                 tiled: Tiled | None = None) -> None:
        self.__doc__ = source.__doc__
        self.__name__ = source.__name__
        self.source = source
        self.twin = twin
        self.signature = signature
        self.work = work
        self.helpers = helpers
        self.tiled = tiled
        self._compiled: Callable[..., None] | None = None
        self._levels: dict[str, Callable[..., None]] = {}
        self._done = 0

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled function is there, so that nobody waits for it."""
        return self._compiled is not None

    @property
    def length(self) -> int:
        """Instructions of the source and its helpers: how long it takes to compile follows from it, more or less."""
        return sum(len(part.__code__.co_code) for part in (
            self.tiled[0] if self.tiled else self.source, *self.helpers))

    def __call__(self, *args: Any) -> None:
        """Run on ``args``; outputs are written into the arrays given for them."""
        if self._compiled is not None and jit_mode() != "0":
            self._compiled(*args)
            return
        if self._worth_compiling(args):
            self.compiled()(*args)
        else:
            self.twin(*args)

    def _worth_compiling(self, args: tuple[Any, ...]) -> bool:
        mode = jit_mode()
        if mode == "0":
            return False
        if mode != "1":
            self._done += self.work(*args)
            if self._done <= _WARM_WORK:
                return False
        return have_numba()  # asked last: importing numba takes longer than a small call

    def compiled(self, level: str | None = None) -> Callable[..., None]:
        """Return the compiled function, compiling it (or loading it from the disk cache) at the first call.

        ``level`` asks for a SIMD level by name; by default it is the one in use.
        """
        if level is None and self._compiled is not None:
            return self._compiled
        global _seconds
        with _lock:
            began = time.perf_counter()
            name = level if level is not None else simd.chosen() if self.tiled else "generic"
            if name not in self._levels:
                self._levels[name] = _compile(self, name)
            if level is None:
                self._compiled = self._levels[name]
            _seconds += time.perf_counter() - began
            return self._levels[name]


def kernel(signature: str, *, twin: Callable[..., None], work: Callable[..., int],
           helpers: tuple[Callable[..., Any], ...] = (),
           tiled: Tiled | None = None) -> Callable[[Callable[..., None]], Kernel]:
    """Make a :class:`Kernel` of a function.

    Parameters
    ----------
    signature : str
        One word an argument: ``f4``, ``i8`` … a scalar; ``f4:2`` a C-contiguous array of 2 dimensions that is
        only read (read-only and writable arrays share it); ``f4:2w`` one that is written to.
    twin : callable
        The NumPy function that does the same.
    work : callable
        From the same arguments, the number of elementary operations; it decides when compiling pays.
    helpers : tuple of callable
        Plain functions of the same file that it calls, each after those that it calls itself; they are compiled
        with it.
    tiled : (callable, callable), optional
        The code of SIMD levels, and what gives the globals of that code (numbers and intrinsics) for the name of a
        level, or ``None`` for a level that the ordinary code serves.
    """
    def wrap(source: Callable[..., None]) -> Kernel:
        return Kernel(source, twin, signature, work, helpers, tiled)
    return wrap


def seconds_compiling() -> float:
    """Return how long this process has waited for kernels, compiled or loaded from the cache."""
    return _seconds


def jit_mode() -> str:
    """``"0"``: NumPy twins only; ``"1"``: compile at the first call; ``"auto"``: compile when it pays."""
    mode = os.environ.get("NPQUANT_JIT", "auto")
    return mode if mode in ("0", "1") else "auto"


@cache
def have_numba() -> bool:
    """Whether numba can be imported."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # a numba that does not fit this numpy raises all kinds of things
        log.info("numba cannot be used (%s): the NumPy twins run instead", error)
        return False
    return True


_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a lock held by another thread at fork would never be released in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

_SCALARS = {"f4": "float32", "f8": "float64", "i8": "int64", "i4": "int32", "u1": "uint8", "u2": "uint16",
            "u4": "uint32", "u8": "uint64", "b1": "boolean"}


def _numba_signature(text: str) -> Any:
    from numba import types
    arguments = []
    for word in text.split():
        dtype, _, shape = word.partition(":")
        scalar = getattr(types, _SCALARS[dtype])
        if shape:
            scalar = types.Array(scalar, int(shape.rstrip("w")), "C", readonly=not shape.endswith("w"))
        arguments.append(scalar)
    return types.void(*arguments)


def _compile(kernel: Kernel, level: str) -> Callable[..., None]:
    from numba import config, njit
    folder = cache_folder()
    options: dict[str, Any] = {"nogil": True, "cache": folder is not None}
    before = config.CACHE_DIR
    try:
        if folder is not None:
            config.CACHE_DIR = str(folder)
        scope = kernel.tiled[1](level) if kernel.tiled else None
        if scope is None and kernel.tiled and level in simd.SERVED_BY:
            scope = kernel.tiled[1](simd.SERVED_BY[level])
        code = kernel.tiled[0] if kernel.tiled and scope is not None else kernel.source
        scope = dict(scope or {})
        for helper in kernel.helpers:  # each sees those before it
            scope[helper.__name__] = njit(nogil=True)(FunctionType(
                helper.__code__, {**helper.__globals__, **scope}, helper.__name__))
        # The same code, seeing compiled helpers and a level's intrinsics among its globals; the name tells the
        # levels apart in numba's cache.
        source = FunctionType(code.__code__, {**code.__globals__, **scope}, f"{kernel.__name__}_{level}")
        source.__qualname__ = source.__name__
        function: Callable[..., None] = njit([_numba_signature(kernel.signature)], **options)(source)
    finally:
        config.CACHE_DIR = before
    return function


@cache
def cache_folder() -> Path | None:
    """Return the folder of compiled kernels, named by a hash of their sources; ``None`` where none is writable.

    ``NUMBA_CACHE_DIR``, else ``NPQUANT_CACHE_DIR``, else the user's cache folder, decides where it lies.
    """
    import hashlib  # not sooner: where NumPy runs nobody waits for them
    import tempfile
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    try:
        folder = _cache_root() / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        log.warning("no writable folder for compiled kernels (%s): they are compiled anew in each process; "
                    "set NUMBA_CACHE_DIR to a writable folder to keep them", error)
        return None
    return folder


def _cache_root() -> Path:
    for variable in ("NUMBA_CACHE_DIR", "NPQUANT_CACHE_DIR"):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / "npquant"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "npquant" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "npquant"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npquant"
