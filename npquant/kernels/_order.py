"""Helpers of kernels: the least of (score, name) pairs, by a heap or by parting, in the one order of all results.

The order is total: by the score, then by the name. Nothing is jitted here; the kernels that call these name them.
"""

from __future__ import annotations

import numpy as np


def _sift_down(scores, names, size, score, name):
    """Put (score, name) at the top of a heap of ``size`` entries and let it sink to its place."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        right = below + 1
        if right < size and (scores[right] > scores[below]
                             or (scores[right] == scores[below] and names[right] > names[below])):
            below = right
        if score > scores[below] or (score == scores[below] and name > names[below]):
            break
        scores[at] = scores[below]
        names[at] = names[below]
        at = below
    scores[at] = score
    names[at] = name


def _push(heap, names, size, score, name):
    """Give (score, name) to a heap of the best, the worst on top, that holds ``size`` so far; return what it holds."""
    if size < heap.shape[0]:
        at = size
        while at > 0:
            above = (at - 1) // 2
            if heap[above] > score or (heap[above] == score and names[above] > name):
                break
            heap[at] = heap[above]
            names[at] = names[above]
            at = above
        heap[at] = score
        names[at] = name
        return size + 1
    if score < heap[0] or (score == heap[0] and name < names[0]):
        _sift_down(heap, names, size, score, name)
    return size


def _parted(scores, names, low, high):
    """Part the entries from ``low`` to before ``high`` by one of them; return its place, the less before it.

    Without a branch that depends on what is compared: none could be foreseen.
    """
    middle = (low + high) // 2
    first = scores[low]
    last = scores[high - 1]
    if (scores[middle] < first) == (first < last):  # the median of three
        middle = low
    elif (scores[middle] < last) == (last < first):
        middle = high - 1
    score = scores[middle]
    name = names[middle]
    scores[middle] = scores[high - 1]
    names[middle] = names[high - 1]
    at = low
    for i in range(low, high - 1):
        other = scores[i]
        other_name = names[i]
        scores[i] = scores[at]
        names[i] = names[at]
        scores[at] = other
        names[at] = other_name
        at += np.int64((other < score) | ((other == score) & (other_name < name)))
    scores[high - 1] = scores[at]
    names[high - 1] = names[at]
    scores[at] = score
    names[at] = name
    return at


def _select(scores, names, size, k):
    """Bring the k best of ``size`` entries to the front, in no order; return the worst of their scores."""
    low = np.int64(0)
    high = np.int64(size)
    while high - low > 1:
        at = _parted(scores, names, low, high)
        if at < k:
            low = at + 1
        if at >= k - 1:
            high = at
    return scores[k - 1]


def _sort(scores, names, size):
    """Sort the first ``size`` entries, the best first, and pad what is beyond."""
    ends = np.empty(64, np.int64)  # of parts yet to be sorted, the longer ones: each is half of the one before
    depth = 0
    low = np.int64(0)
    high = np.int64(size)
    while True:
        while high - low > 12:
            at = _parted(scores, names, low, high)
            if at - low < high - at - 1:
                ends[depth], ends[depth + 1] = at + 1, high
                high = at
            else:
                ends[depth], ends[depth + 1] = low, at
                low = at + 1
            depth += 2
        for i in range(low + 1, high):
            score = scores[i]
            name = names[i]
            at = i
            while at > low and (scores[at - 1] > score or (scores[at - 1] == score and names[at - 1] > name)):
                scores[at] = scores[at - 1]
                names[at] = names[at - 1]
                at -= 1
            scores[at] = score
            names[at] = name
        if depth == 0:
            break
        depth -= 2
        low, high = ends[depth], ends[depth + 1]
    for i in range(size, scores.shape[0]):
        scores[i] = np.inf
        names[i] = -1
