"""Exact nearest neighbours among plain vectors: a GEMM pre-selects, the fixed order decides.

The pre-selection uses ‖b‖² − 2⟨q, b⟩ of centred vectors in float32, with a bound on all its rounding; whatever could
be among the k nearest is scored anew as a sum of squared differences in the order of the dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npquant.kernels import nearest, scan
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]
Ids = NDArray[np.int64]

_ELEMENTS = 1 << 24  # scores held at a time: 64 MB


def neighbors(base: Float, queries: Float, k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return (squared distances, rows of ``base``), both (nq, k), ordered by (distance, row); k ≤ len(base).

    O(nq n d), most of it in GEMM. The distances are those of ``kernels.nearest``, bit for bit.
    """
    n, d = base.shape
    mean = base.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = base - mean
    squares = np.einsum("ij,ij->i", centred, centred)
    largest = float(np.sqrt(squares.max(initial=0.0)))
    # Each of the roundings (centring, norms, products in any order, the final sum) moves a score by at most
    # (d + 4) u (‖q‖ + ‖b‖)²; there are four.
    unit = 4 * (d + 4) * 2.0**-24
    tiny = 8 * (d + 4) * 2.0**-149  # … and, where products underflow, each by half of the smallest number
    distances = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)

    def block(start: int, stop: int) -> None:
        q = queries[start:stop] - mean
        scores = q @ centred.T
        scores *= -2
        scores += squares
        slack = 2 * unit * (np.sqrt(np.einsum("ij,ij->i", q, q, dtype=np.float64)) + largest) ** 2 + tiny
        for i, row in enumerate(scores):
            if k < n:
                kept = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1] + slack[i])
            else:
                kept = np.arange(n)
            exact = nearest.tables(queries[start + i:start + i + 1], nearest.transpose(base[kept][np.newaxis]), False)
            distances[start + i], found[start + i] = scan.smallest(exact[0, 0], kept, k)
    run_blocks(block, len(queries), max(1, min(64, _ELEMENTS // max(n, 1))), threads)
    return distances, found
