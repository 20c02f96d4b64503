"""Distances to codewords, and the nearest codeword, by blocks of dimensions.

The arithmetic is fixed, here and in every faster kernel to come: float32; a squared distance is
``((x_0 − c_0)² + (x_1 − c_1)²) + …`` and an inner product ``(x_0 c_0 + x_1 c_1) + …``, dimension 0 first, each
multiply and each add rounded by itself; ties go to the smaller index. So no result depends on the batch it
was asked in, on the threads, or on whether a compiler was there.

Codebooks come transposed, ``(M, dsub, K)``: the loop over codewords is then the innermost and contiguous one, so
it is vectorised without touching the order of any sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]

# Rows handed to one task: fixed, so that nothing depends on the number of threads.
_BLOCK = 4096
# The twins' temporaries stay within the cache.
_TWIN_ELEMENTS = 1 << 18


def _work(x: Float, codebooks_t: Float, *_: object) -> int:
    return x.shape[0] * codebooks_t.size


def _twin_blocks(x: Float, codebooks_t: Float, product: bool) -> Iterator[tuple[slice, int, Float]]:
    """Yield (rows, m, scores) with scores (rows, K) in the fixed order, for any float dtype."""
    M, dsub, K = codebooks_t.shape
    step = max(1, _TWIN_ELEMENTS // max(K, 1))
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        for m in range(M):
            part = x[rows, m * dsub:(m + 1) * dsub]
            scores = np.zeros((part.shape[0], K), x.dtype)
            term = np.empty_like(scores)
            for j in range(dsub):
                if product:
                    np.multiply(part[:, j, None], codebooks_t[m, j], out=term)
                else:
                    np.subtract(part[:, j, None], codebooks_t[m, j], out=term)
                    np.multiply(term, term, out=term)
                scores += term
            yield rows, m, scores


def _subspace_distances_twin(x: Float, codebooks_t: Float, out: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=False):
        out[rows, m] = scores


def _subspace_products_twin(x: Float, codebooks_t: Float, out: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=True):
        out[rows, m] = scores


def _nearest_codewords_twin(x: Float, codebooks_t: Float, index: NDArray[np.int32], distance: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=False):
        best = np.argmin(scores, axis=1)
        index[rows, m] = best
        distance[rows, m] = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]


@kernel("f4:2 f4:3 f4:3w", twin=_subspace_distances_twin, work=_work)
def subspace_distances(x, codebooks_t, out):
    """Write the squared distances of ``x`` (n, M·dsub) to ``codebooks_t`` (M, dsub, K) into ``out`` (n, M, K)."""
    M, dsub, K = codebooks_t.shape
    for i in range(x.shape[0]):
        for m in range(M):
            for k in range(K):
                out[i, m, k] = 0.0
            for j in range(dsub):
                a = x[i, m * dsub + j]
                for k in range(K):
                    t = a - codebooks_t[m, j, k]
                    out[i, m, k] += t * t


@kernel("f4:2 f4:3 f4:3w", twin=_subspace_products_twin, work=_work)
def subspace_products(x, codebooks_t, out):
    """Write the inner products of ``x`` (n, M·dsub) with ``codebooks_t`` (M, dsub, K) into ``out`` (n, M, K)."""
    M, dsub, K = codebooks_t.shape
    for i in range(x.shape[0]):
        for m in range(M):
            for k in range(K):
                out[i, m, k] = 0.0
            for j in range(dsub):
                a = x[i, m * dsub + j]
                for k in range(K):
                    out[i, m, k] += a * codebooks_t[m, j, k]


@kernel("f4:2 f4:3 i4:2w f4:2w", twin=_nearest_codewords_twin, work=_work)
def nearest_codewords(x, codebooks_t, index, distance):
    """Write the nearest codeword of each block of ``x`` (n, M·dsub): ``index`` and squared ``distance`` (n, M)."""
    M, dsub, K = codebooks_t.shape
    scores = np.empty(K, np.float32)
    # A sum of squares is never negative, and then its bits order like the number: an integer minimum needs no
    # care for NaN, so it is vectorised.
    bits = scores.view(np.int32)
    for m in range(M):
        for i in range(x.shape[0]):
            for k in range(K):
                scores[k] = 0.0
            for j in range(dsub):
                a = x[i, m * dsub + j]
                for k in range(K):
                    t = a - codebooks_t[m, j, k]
                    scores[k] += t * t
            least = bits[0]
            for k in range(K):
                least = min(least, bits[k])
            best = 0
            while bits[best] != least:
                best += 1
            index[i, m] = best
            distance[i, m] = scores[best]


def transpose(codebooks: Float) -> Float:
    """Return codebooks (M, K, dsub) as the (M, dsub, K) that the kernels read."""
    return np.ascontiguousarray(np.swapaxes(codebooks, 1, 2))


def assign(x: Float, codebooks_t: Float, threads: int | None) -> tuple[NDArray[np.int32], Float]:
    """Return (index, squared distance) of each block's nearest codeword, both (n, M); rows shared by threads."""
    n, M = x.shape[0], codebooks_t.shape[0]
    index = np.empty((n, M), np.int32)
    distance = np.empty((n, M), np.float32)

    def block(start: int, stop: int) -> None:
        nearest_codewords(x[start:stop], codebooks_t, index[start:stop], distance[start:stop])
    run_blocks(block, n, _BLOCK, threads)
    return index, distance


def tables(x: Float, codebooks_t: Float, product: bool, threads: int | None = 1) -> Float:
    """Return (n, M, K) squared distances, or *negated* inner products where ``product`` (lower is better)."""
    out = np.empty((x.shape[0], codebooks_t.shape[0], codebooks_t.shape[2]), np.float32)
    fill = subspace_products if product else subspace_distances

    def block(start: int, stop: int) -> None:
        fill(x[start:stop], codebooks_t, out[start:stop])
        if product:
            np.negative(out[start:stop], out=out[start:stop])
    run_blocks(block, x.shape[0], 256, threads)
    return out
