"""Scanning codes: a score is ``(T[0, c_0] + T[1, c_1]) + …`` in float32, m = 0 first; the k best are exact.

The order of results is total (score, then the smaller id), so neither blocks nor threads can be seen in them.

Codes are M numbers below K, a byte each; where K = 16 two share a byte, number 2j in the low half of byte j and
2j + 1 in the high one (which is 0 after the last of an odd M). ``code_size``, ``pack`` and ``column`` are where this
is said; whatever is given tables (nq, M, K) sees from the width of the codes which of the two they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels._jit import kernel
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

_QUERIES = 8  # queries handed to one task
_TWIN_ROWS = 1 << 16


def code_size(M: int, K: int) -> int:
    """Return the bytes of a code of M numbers below K."""
    return (M + 1) // 2 if K == 16 else M


def pack(numbers: NDArray[np.integer[Any]], K: int) -> Codes:
    """Return ``numbers`` (n, M) below K as codes (n, code_size(M, K))."""
    codes = numbers.astype(np.uint8)
    if K == 16:
        packed = np.ascontiguousarray(codes[:, ::2])
        packed[:, :codes.shape[1] // 2] |= codes[:, 1::2] << np.uint8(4)
        return packed
    return codes


def column(codes: Codes, m: int, M: int) -> Codes:
    """Return number m (n,) of the M numbers that each of ``codes`` holds, whether packed or not."""
    if codes.shape[1] == M:  # a packed M = 1 as well: its high half is 0
        return codes[:, m]
    byte = codes[:, m // 2]
    return byte >> np.uint8(4) if m % 2 else byte & np.uint8(15)


def _work(tables: Float, codes: Codes, *_: object) -> int:
    return tables.shape[0] * tables.shape[1] * codes.shape[0]


def _scores_twin(tables: Float, codes: Codes, out: Float) -> None:
    M = tables.shape[1]
    for q in range(tables.shape[0]):
        for start in range(0, codes.shape[0], _TWIN_ROWS):
            rows = slice(start, start + _TWIN_ROWS)
            score = tables[q, 0].take(column(codes[rows], 0, M))
            for m in range(1, M):
                score += tables[q, m].take(column(codes[rows], m, M))
            out[q, rows] = score


def _score(tables, q, codes, begin, out):
    """Write the scores of the codes from row ``begin`` on by the tables of query q into ``out``."""
    M = tables.shape[1]
    if codes.shape[1] == M:
        for i in range(out.shape[0]):
            score = tables[q, 0, codes[begin + i, 0]]
            for m in range(1, M):
                score += tables[q, m, codes[begin + i, m]]
            out[i] = score
    else:  # packed, and M is at least 2
        for i in range(out.shape[0]):
            byte = codes[begin + i, 0]
            score = tables[q, 0, byte & 15]
            score += tables[q, 1, byte >> 4]
            for j in range(1, M // 2):
                byte = codes[begin + i, j]
                score += tables[q, 2 * j, byte & 15]
                score += tables[q, 2 * j + 1, byte >> 4]
            if M % 2:
                score += tables[q, M - 1, codes[begin + i, M // 2] & 15]
            out[i] = score


@kernel("f4:3 u1:2 f4:2w", twin=_scores_twin, work=_work, helpers=(_score,))
def adc_scores(tables, codes, out):
    """Write the scores of ``codes`` (n, code_size) by ``tables`` (nq, M, K) into ``out`` (nq, n)."""
    for q in range(tables.shape[0]):
        _score(tables, q, codes, 0, out[q])


def smallest(scores: Float, ids: Ids, k: int) -> tuple[Float, Ids]:
    """Return the k smallest of ``scores`` (n,) with their ``ids`` (n,), ordered by (score, id)."""
    if k < scores.shape[0]:
        kept = np.flatnonzero(scores <= np.partition(scores, k - 1)[k - 1])
        scores, ids = scores[kept], ids[kept]
    order = np.lexsort((ids, scores))[:k]
    return scores[order], ids[order]


def _topk_twin(tables: Float, codes: Codes, ids: Ids, distances: Float, found: Ids) -> None:
    k = distances.shape[1]
    scores = np.empty((1, codes.shape[0]), np.float32)
    for q in range(tables.shape[0]):
        _scores_twin(tables[q:q + 1], codes, scores)
        distances[q], found[q] = smallest(scores[0], ids, k)


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


@kernel("f4:3 u1:2 i8:1 f4:2w i8:2w", twin=_topk_twin, work=_work, helpers=(_score, _sift_down))
def adc_topk(tables, codes, ids, distances, found):
    """Write the k ≤ n best of ``codes`` (n, code_size) by ``tables`` (nq, M, K) into ``distances``, ``found`` (nq, k).

    One binary heap a query, its worst entry on top; at the end the heap is sorted in place.
    """
    n = codes.shape[0]
    k = distances.shape[1]
    scores = np.empty(1024, np.float32)  # of a few codes at a time, while they are in the nearest cache
    for q in range(tables.shape[0]):
        heap = distances[q]
        names = found[q]
        size = 0
        for begin in range(0, n, scores.shape[0]):
            count = min(scores.shape[0], n - begin)
            _score(tables, q, codes, begin, scores[:count])
            for i in range(count):
                score = scores[i]
                if size == k and score > heap[0]:
                    continue
                name = ids[begin + i]
                if size < k:  # sift the newcomer up
                    at = size
                    size += 1
                    while at > 0:
                        above = (at - 1) // 2
                        if heap[above] > score or (heap[above] == score and names[above] > name):
                            break
                        heap[at] = heap[above]
                        names[at] = names[above]
                        at = above
                    heap[at] = score
                    names[at] = name
                    continue
                if score == heap[0] and name > names[0]:
                    continue
                _sift_down(heap, names, size, score, name)
        for last in range(size - 1, 0, -1):  # the worst goes last, again and again
            score = heap[last]
            name = names[last]
            heap[last] = heap[0]
            names[last] = names[0]
            _sift_down(heap, names, last, score, name)


def _fit_together(tables: Float, codes: Codes) -> None:
    # Compiled code reads where it is told to: whatever went wrong before, it must not read beyond an array.
    M, K = tables.shape[1:]
    if codes.ndim != 2 or codes.shape[1] not in (M, code_size(M, K)):
        raise InvalidInputError(f"codes of shape {codes.shape} do not fit tables of {M} look-ups among {K}.")


def scores(tables: Float, codes: Codes, threads: int | None) -> Float:
    """Return the scores (nq, n) of ``codes`` (n, code_size) by ``tables`` (nq, M, K)."""
    _fit_together(tables, codes)
    out = np.empty((tables.shape[0], codes.shape[0]), np.float32)

    def block(start: int, stop: int) -> None:
        adc_scores(tables[start:stop], codes, out[start:stop])
    run_blocks(block, tables.shape[0], _QUERIES, threads)
    return out


def topk(tables: Float, codes: Codes, ids: Ids, k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return the k best (scores, ids), both (nq, k), ordered by (score, id); k ≤ n."""
    _fit_together(tables, codes)
    if len(ids) != len(codes) or k > len(codes):
        raise InvalidInputError(f"{len(ids)} ids for {len(codes)} codes, of which {k} are wanted.")
    distances = np.empty((tables.shape[0], k), np.float32)
    found = np.empty((tables.shape[0], k), np.int64)

    def block(start: int, stop: int) -> None:
        adc_topk(tables[start:stop], codes, ids, distances[start:stop], found[start:stop])
    run_blocks(block, tables.shape[0], _QUERIES, threads)
    return distances, found
