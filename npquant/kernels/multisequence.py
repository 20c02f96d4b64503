"""The nearest cells of a query: the least of each row, and of two ascending rows the pairs of least sum, in order.

The order is total: by the score, then by the place in the row; of pairs, by the sum, then by the place in the first
row, then in the second. So a cell is in the same place however many are asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel
from npquant.kernels._order import _parted, _select, _sift_down, _sort

Float = NDArray[np.float32]
Places = NDArray[np.int64]

_TWIN_ELEMENTS = 1 << 20


def _least_twin(scores: Float, values: Float, places: Places) -> None:
    count = values.shape[1]
    step = max(1, _TWIN_ELEMENTS // max(scores.shape[1], 1))
    for begin in range(0, scores.shape[0], step):
        rows = slice(begin, begin + step)
        part = np.where(np.isnan(scores[rows]), np.float32(np.inf), scores[rows])
        places[rows] = np.argsort(part, axis=1, kind="stable")[:, :count]
        values[rows] = np.take_along_axis(part, places[rows], axis=1)


@kernel("f4:2 f4:2w i8:2w", twin=_least_twin, work=lambda scores, *_: 20 * scores.size,
        helpers=(_parted, _select, _sort))
def least(scores, values, places):
    """Write the least of each row of ``scores`` (n, K), ascending, and where they stand, into (n, count ≤ K).

    NaN, of infinities, counts as +inf. Of 2 · count groups of a row each has its least; the count-th of these bounds
    the count-th of all. What is within it, little more than count, is parted and sorted: O(K + count · log(count)).
    """
    K = scores.shape[1]
    count = values.shape[1]
    groups = 2 * count
    few = np.empty(K, np.float32)
    names = np.empty(K, np.int64)
    for i in range(scores.shape[0] if count else 0):
        row = scores[i]
        held = 0
        if K >= 4 * groups:
            for g in range(groups):
                few[g] = row[g]
            for begin in range(groups, K - groups + 1, groups):
                for g in range(groups):
                    few[g] = min(few[g], row[begin + g])
            bound = _select(few, names, groups, count)
            for j in range(K):
                names[held] = j
                held += row[j] <= bound
        if held < count:  # short rows, and NaN
            held = K
            for j in range(K):
                names[j] = j
        for j in range(held):
            score = row[names[j]]
            few[j] = score if score == score else np.float32(np.inf)
        if held > count:
            _select(few, names, held, count)
        for j in range(count):
            values[i, j] = few[j]
            places[i, j] = names[j]
        _sort(values[i], places[i], count)


def _pairs_twin(first: Float, second: Float, sums: Float, rows: Places, columns: Places) -> None:
    n, count = sums.shape
    # Before the pair (r, s) come all (r', s') with r' ≤ r and s' ≤ s, so that only few can be among the first.
    width = [min(second.shape[1], count // (r + 1)) for r in range(min(first.shape[1], count))]
    r = np.repeat(np.arange(len(width)), width)
    s = np.concatenate([np.arange(w) for w in width]) if width else np.empty(0, np.int64)
    step = max(1, _TWIN_ELEMENTS // max(len(r), 1))
    for begin in range(0, n, step):
        part = slice(begin, begin + step)
        total = first[part][:, r] + second[part][:, s]
        order = np.argsort(total, axis=1, kind="stable")[:, :count]  # r and s ascend already
        sums[part] = np.take_along_axis(total, order, axis=1)
        rows[part], columns[part] = r[order], s[order]


@kernel("f4:2 f4:2 f4:2w i8:2w i8:2w", twin=_pairs_twin, work=lambda first, second, sums, *_: 64 * sums.size,
        helpers=(_sift_down,))
def pairs(first, second, sums, rows, columns):
    """Write the pairs of least sum of the ascending rows of ``first`` and ``second`` (n, L) into (n, count ≤ L²).

    The multi-sequence algorithm (Babenko & Lempitsky, The Inverted Multi-Index, CVPR 2012, algorithm 1): a heap of
    pairs (r, s) by (sum, r) of which everything before in both rows is out; when (r, s) goes out, (r + 1, s) and
    (r, s + 1) come in if the other one before them is out too. What is out is a staircase, so that its steps
    ``reached`` say it all, and no row has two pairs in the heap.
    """
    L = first.shape[1]
    count = sums.shape[1]
    heap = np.empty(L, np.float32)  # of negated sums and rows: the least sum is the largest
    names = np.empty(L, np.int64)
    reached = np.empty(L, np.int64)
    for i in range(sums.shape[0] if count else 0):
        a = first[i]
        b = second[i]
        reached[:] = 0
        heap[0] = -(a[0] + b[0])
        names[0] = 0
        size = 1
        for out in range(count):
            r = -names[0]
            s = reached[r]
            sums[i, out] = -heap[0]
            rows[i, out] = r
            columns[i, out] = s
            reached[r] = s + 1
            size -= 1
            if size > 0:
                _sift_down(heap, names, size, heap[size], names[size])
            for step in range(2):  # (r, s + 1), then (r + 1, s)
                row = r + step
                column = s + 1 - step
                if step == 0:
                    if column >= L or (r > 0 and reached[r - 1] <= column):
                        continue
                elif row >= L or reached[row] != column:
                    continue
                value = -(a[row] + b[column])
                at = size
                size += 1
                while at > 0:  # it rises from the end
                    above = (at - 1) // 2
                    if heap[above] > value or (heap[above] == value and names[above] > -row):
                        break
                    heap[at] = heap[above]
                    names[at] = names[above]
                    at = above
                heap[at] = value
                names[at] = -row
