"""The nearest cells of a query: the least of each row, and of two ascending rows the pairs of least sum, in order.

The order is total: by the score, then by the place in the row; of pairs, by the sum, then by the place in the first
row, then in the second. So a cell is in the same place however many are asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel

Float = NDArray[np.float32]
Places = NDArray[np.int64]

_TWIN_ELEMENTS = 1 << 20


def _least_twin(scores: Float, values: Float, places: Places) -> None:
    count = values.shape[1]
    step = max(1, _TWIN_ELEMENTS // max(scores.shape[1], 1))
    for begin in range(0, scores.shape[0], step):
        rows = slice(begin, begin + step)
        places[rows] = np.argsort(scores[rows], axis=1, kind="stable")[:, :count]
        values[rows] = np.take_along_axis(scores[rows], places[rows], axis=1)


def _sink(heap, names, at, size, value, name):
    """Put (value, name) at place ``at`` of a heap of ``size`` entries, the largest on top, and let it sink."""
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        right = below + 1
        if right < size and (heap[right] > heap[below] or (heap[right] == heap[below] and names[right] > names[below])):
            below = right
        if value > heap[below] or (value == heap[below] and name > names[below]):
            break
        heap[at] = heap[below]
        names[at] = names[below]
        at = below
    heap[at] = value
    names[at] = name


@kernel("f4:2 f4:2w i8:2w", twin=_least_twin, work=lambda scores, *_: 20 * scores.size, helpers=(_sink,))
def least(scores, values, places):
    """Write the least of each row of ``scores`` (n, K), ascending, and where they stand, into (n, count ≤ K).

    Of 2 · count groups of a row each has its least; the count-th of these bounds the count-th of all. What is within
    it, little more than count, goes through a binary heap, its worst on top: O(K + count · log(count)) on average.
    """
    K = scores.shape[1]
    count = values.shape[1]
    groups = 2 * count
    lowest = np.empty(groups, np.float32)
    near = np.empty(K, np.int64)
    for i in range(scores.shape[0] if count else 0):
        row = scores[i]
        heap = values[i]
        names = places[i]
        held = 0
        if K >= 4 * groups:
            for g in range(groups):
                lowest[g] = row[g]
            for begin in range(groups, K - groups + 1, groups):
                for g in range(groups):
                    lowest[g] = min(lowest[g], row[begin + g])
            for g in range(count):
                heap[g] = lowest[g]
                names[g] = g
            for top in range(count // 2 - 1, -1, -1):
                _sink(heap, names, top, count, heap[top], names[top])
            for g in range(count, groups):
                if lowest[g] < heap[0]:
                    _sink(heap, names, 0, count, lowest[g], g)
            bound = heap[0]
            for j in range(K):
                near[held] = j
                held += row[j] <= bound
        if held < count:  # short rows, and NaN
            held = K
            for j in range(K):
                near[j] = j
        for j in range(count):
            heap[j] = row[near[j]]
            names[j] = near[j]
        for top in range(count // 2 - 1, -1, -1):  # what stands below ``top`` is a heap already
            _sink(heap, names, top, count, heap[top], names[top])
        for j in range(count, held):
            if row[near[j]] < heap[0]:  # an equal one stands further back than all before
                _sink(heap, names, 0, count, row[near[j]], near[j])
        for last in range(count - 1, 0, -1):  # the worst goes last, again and again
            value = heap[last]
            name = names[last]
            heap[last] = heap[0]
            names[last] = names[0]
            _sink(heap, names, 0, last, value, name)


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
        helpers=(_sink,))
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
                _sink(heap, names, 0, size, heap[size], names[size])
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
