"""Rows of an array, a memory-mapped file or an iterable of blocks: read a part at a time, or drawn by a seed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError

log = logging.getLogger("npquant")

Float = NDArray[np.float32]

_READ = 1 << 16  # rows that draw their numbers at a time


def is_stream(X: Any) -> bool:
    """Whether ``X`` is an iterable of blocks: an iterator, a list of 2-D arrays, or a class that only iterates."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    return isinstance(X, Iterable) and not isinstance(X, (Sequence, Mapping, Set)) and not any(
        hasattr(X, name) for name in ("shape", "__array__", "__array_interface__", "toarray"))


def row_count(X: Any) -> int | None:
    """Return n of what has rows that can be read by slices (array, memmap, tensor, h5py), else ``None``."""
    shape = getattr(X, "shape", None)
    if (isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[0], (int, np.integer))
            and hasattr(X, "dtype") and hasattr(X, "__getitem__") and not hasattr(X, "nnz")):
        return int(shape[0])
    return None


def blocks(X: Any, name: str, rows: int) -> Iterator[tuple[Any, str]]:
    """Yield (block, its name for messages) of a stream as it comes, and of anything else by so many ``rows``.

    Nothing is converted or checked here.
    """
    n = row_count(X)
    if is_stream(X):
        for i, block in enumerate(X):
            yield block, f"block {i} of {name}"
    elif n is None or n <= rows:
        yield X, name
    else:
        for begin in range(0, n, rows):
            end = min(begin + rows, n)
            yield X[begin:end], f"{name}[{begin}:{end}]"


def training_rows(X: Any, limit: int | None, random_state: Any, name: str = "X") -> Float:
    """Return the rows of array, memmap or stream ``X`` to train on, at most ``limit``: float32 (n, d), in their order.

    More rows are drawn from uniformly, without replacement: a row is drawn or not by the seed and its number alone,
    whatever blocks it came in. Memory: 3 ``limit`` rows as they were given, beside one block. What is not drawn is
    not checked for finite numbers.

    Raises
    ------
    InvalidInputError
    """
    n = row_count(X)
    rng = _stream(random_state)
    if not is_stream(X):
        if n is None or limit is None or n <= limit:
            X = _checks.vectors(X, name)
            n = len(X)
        if limit is None or n <= limit:
            return X
        drawn = X[sample_numbers(n, limit, rng)]
    else:
        drawn, n = sample_stream(X, limit, rng, name)
    if len(drawn) < n:
        log.info("training on %d of %d vectors, drawn by the seed (max_points=%d)", len(drawn), n, limit)
        name = f"the sample of {name}"
    return _checks.vectors(drawn, name)


def sample_numbers(n: int, limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ``limit`` of the numbers 0 … n − 1, uniformly, without replacement, ascending."""
    return _drawn((np.arange(begin, min(begin + _READ, n)) for begin in range(0, n, _READ)), limit, rng)[0]


def sample_stream(X: Any, limit: int | None, rng: np.random.Generator, name: str = "X") -> tuple[NDArray[Any], int]:
    """Return at most ``limit`` rows of an iterable of blocks, as they were given, and how many rows there were.

    They are the rows that :func:`sample_numbers` gives for the same ``rng``, however the blocks are cut.

    Raises
    ------
    InvalidInputError
    """
    drawn, n = _drawn(_raw_blocks(X, name), limit, rng)
    if n == 0:
        raise InvalidInputError(f"{name} is an iterable of blocks, and gave no rows: a minimum of 1 is required. (An "
                                "iterator can be read once: make a new one for each fit.)")
    return drawn, n


def _raw_blocks(X: Any, name: str) -> Iterator[Any]:
    d = None
    for i, given in enumerate(X):
        label = f"block {i} of {name}"
        block = given if row_count(given) is not None else _checks.vectors(given, label, min_rows=0)
        d = _checks.vectors(block[:0], label, d=d, owner="the block before", min_rows=0).shape[1]
        yield block


def _stream(random_state: Any) -> np.random.Generator:
    """Return a stream of the seed that nothing else has: a child with a number that ``spawn`` does not reach."""
    seed: Any = _checks.random_state(random_state).bit_generator.seed_seq
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2**32 - 1)))


def _drawn(parts: Iterable[Any], limit: int | None, rng: np.random.Generator) -> tuple[NDArray[Any], int]:
    """Return the ``limit`` rows, in their order, whose random keys are the least; and how many rows there were."""
    kept: list[NDArray[Any]] = []
    keys: list[NDArray[np.float64]] = []
    bound, n = np.inf, 0
    for part in parts:
        key = rng.random(len(part))
        n += len(part)
        below = np.flatnonzero(key < bound)
        kept.append(np.asarray(part[below]))  # a copy: a stream may write its next block to the same array
        keys.append(key[below])
        if limit is not None and sum(map(len, keys)) > 2 * limit:
            rows, bound = _least(np.concatenate(keys), limit)
            kept, keys = [np.concatenate(kept)[rows]], [np.concatenate(keys)[rows]]
    if not kept:
        return np.empty((0, 1), np.float32), 0
    rows, _ = _least(np.concatenate(keys), n if limit is None else limit)
    return np.concatenate(kept)[rows], n


def _least(keys: NDArray[np.float64], limit: int) -> tuple[NDArray[np.intp], float]:
    order = np.argsort(keys, kind="stable")[:limit]
    return np.sort(order), float(keys[order[-1]]) if len(order) == limit else np.inf
