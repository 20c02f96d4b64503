"""Sums by cluster, in row order with float64 accumulators: the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]

_BLOCK = 65536  # rows summed by one task; the partial sums are added in block order


def _cluster_sums_twin(x: Float, label: NDArray[np.int32], sums: NDArray[np.float64],
                       counts: NDArray[np.int64]) -> None:
    for j in range(x.shape[1]):
        sums[:, j] = np.bincount(label, x[:, j], sums.shape[0])  # bincount adds in row order, in float64
    counts[:] = np.bincount(label, minlength=counts.shape[0])


@kernel("f4:2 i4:1 f8:2w i8:1w", twin=_cluster_sums_twin, work=lambda x, *_: 4 * x.size)
def cluster_sums(x, label, sums, counts):
    """Write the sums (K, d) and counts (K,) of the rows of ``x`` (n, d) by their ``label`` (n,)."""
    sums[:] = 0.0
    counts[:] = 0
    for i in range(x.shape[0]):
        k = label[i]
        counts[k] += 1
        for j in range(x.shape[1]):
            sums[k, j] += np.float64(x[i, j])


def sums_by_cluster(x: Float, label: NDArray[np.int32], K: int,
                    threads: int | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return (sums (K, d) float64, counts (K,) int64) of the rows of ``x`` (n, d) by their ``label`` (n,)."""
    def block(start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        sums = np.empty((K, x.shape[1]), np.float64)
        counts = np.empty(K, np.int64)
        cluster_sums(x[start:stop], label[start:stop], sums, counts)
        return sums, counts
    parts = run_blocks(block, x.shape[0], _BLOCK, threads)
    total, count = parts[0]
    for sums, counts in parts[1:]:
        total += sums
        count += counts
    return total, count


def weighted_sums_by_cluster(x: Float, label: NDArray[np.int32], weight: NDArray[np.float64], K: int,
                             threads: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (weighted sums (K, d), weights (K,)), both float64, of the rows of ``x`` (n, d) by their ``label``.

    ``weight`` is (n,) float64. A product is rounded, then added; rows in order within a block, blocks in order.
    """
    def block(start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = slice(start, stop)
        sums = np.empty((K, x.shape[1]), np.float64)
        for j in range(x.shape[1]):
            sums[:, j] = np.bincount(label[rows], x[rows, j] * weight[rows], K)  # adds in row order
        return sums, np.bincount(label[rows], weight[rows], K).astype(np.float64)  # integers, of no rows
    parts = run_blocks(block, x.shape[0], _BLOCK, threads)
    total, weights = parts[0]
    for sums, part in parts[1:]:
        total += sums
        weights += part
    return total, weights
