"""Scanning codes: a score is ``(T[0, c_0] + T[1, c_1]) + …`` in float32, m = 0 first; the k best are exact.

The order of results is total (score, then the smaller id), so neither blocks nor threads can be seen in them.

Codes are M numbers below K, a byte each; where K = 16 two share a byte, number 2j in the low half of byte j and
2j + 1 in the high one (which is 0 after the last of an odd M). ``code_size``, ``pack`` and ``column`` are where this
is said; whatever is given tables (nq, M, K) sees from the width of the codes which of the two they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels import _scan_ir
from npquant.kernels._jit import kernel
from npquant.kernels._order import _parted, _push, _select, _sift_down, _sort
from npquant.kernels._pool import available_threads, run_blocks

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

# What a SIMD level puts in their place where it compiles the tiled code below.
GROUP = LONG_BYTES = LONG_NIBBLES = CHUNK = 0
bytes_short: Any = None
bytes_long: Any = None
nibbles_short: Any = None
nibbles_long: Any = None
measure: Any = None
measure_sum: Any = None
quantize: Any = None
lowest: Any = None

_TOGETHER = 48  # codes that pass are scored when there are so many
_SPARE = 32  # more than k and a half of it are kept before the k best are selected
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


# ------------------------------------------------------------------------------------- blocks of 64 transposed codes


def empty_blocks(nb: int, s: int) -> Codes:
    """Return room for ``nb`` blocks of codes of s bytes, (nb, s, 64), aligned so that scanning them is fastest."""
    room = np.empty(64 * (nb * s + 1), np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin:begin + 64 * nb * s].reshape(nb, s, 64)


def to_blocks(codes: Codes) -> Codes:
    """Return ``codes`` (n, s) as blocks (ceil(n / 64), s, 64): byte j of 64 codes lies together; padded by zeros."""
    n, s = codes.shape
    blocks = empty_blocks(-(-n // 64), s)
    blocks[n // 64:] = 0
    whole = n // 64
    blocks[:whole] = codes[:64 * whole].reshape(whole, 64, s).transpose(0, 2, 1)
    if n % 64:
        blocks[whole, :, :n % 64] = codes[64 * whole:].T
    return blocks


def from_blocks(blocks: Codes, slots: Ids) -> Codes:
    """Return the codes (r, s) at ``slots`` (r,), numbered 64 · block + place."""
    return np.ascontiguousarray(blocks[slots >> 6, :, slots & 63])


def _search_work(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes,
                 *_: object) -> int:
    lists = max(1, len(start) - 1)
    return tables.shape[0] * tables.shape[1] * 64 * (probes.shape[1] * (len(order) or len(blocks)) // lists + 1)


def _list_scores(table: Float, bias: np.float32, blocks: Codes) -> Float:
    """Return the scores (nb, 64) of ``blocks`` by one ``table`` (M, K); NaN, of infinities, counts as +inf."""
    M, s = table.shape[0], blocks.shape[1]
    score = np.full((len(blocks), 64), bias, np.float32)
    for m in range(M):
        if s == M:
            numbers = blocks[:, m]
        else:
            numbers = blocks[:, m // 2] >> np.uint8(4) if m % 2 else blocks[:, m // 2] & np.uint8(15)
        score += table[m].take(numbers)
    score[np.isnan(score)] = np.inf
    return score


def _search_twin(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes,
                 ids: Ids, live: NDArray[np.uint64], bound: Float, within: int, distances: Float, found: Ids,
                 counts: Ids) -> None:
    k = distances.shape[1]
    bits = np.arange(64, dtype=np.uint64)
    for q in range(len(tables)):
        kept, names = np.empty(0, np.float32), np.empty(0, np.int64)
        for p, which in enumerate(probes[q]):
            if which < 0:
                continue
            run = np.arange(start[which], start[which + 1])
            if len(order):
                run = order[run]
            run = run[live[run] != 0]
            with np.errstate(over="ignore", invalid="ignore"):
                table = tables[q] + terms[which] if len(terms) else tables[q]
                for begin in range(0, len(run), _TWIN_ROWS // 64):
                    part = run[begin:begin + _TWIN_ROWS // 64]
                    scores = _list_scores(table, bias[q, p], blocks[part])
                    passed = (scores <= bound[q]) & ((live[part][:, None] >> bits & np.uint64(1)) != 0)
                    kept = np.concatenate([kept, scores[passed]])
                    names = np.concatenate([names, ids[part][passed]])
                    if not within:
                        kept, names = smallest(kept, names, k)
        counts[q] = len(kept)
        size = min(k, len(kept))
        distances[q, :size], found[q, :size] = kept[:size], names[:size]
        distances[q, size:], found[q, size:] = np.inf, -1


def _score_block(tables, terms, q, which, bias, blocks, b, out, row):
    """Write the 64 scores of block b by query q, in list ``which``, into ``out``; ``row`` (K,) is room to work in."""
    M, K = tables.shape[1:]
    packed = blocks.shape[1] < M
    for i in range(64):
        out[i] = bias
    for m in range(M):
        if terms.shape[0]:
            for c in range(K):
                row[c] = tables[q, m, c] + terms[which, m, c]
        else:
            for c in range(K):
                row[c] = tables[q, m, c]
        if packed:
            shift = np.uint8(4 * (m % 2))
            for i in range(64):
                out[i] += row[(blocks[b, m // 2, i] >> shift) & np.uint8(15)]
        else:
            for i in range(64):
                out[i] += row[blocks[b, m, i]]
    for i in range(64):
        if out[i] != out[i]:
            out[i] = np.inf


def _settle(tables, terms, q, which, bias, blocks, ids, places, count, sums, most, scores, names, size):
    """Append those of the codes at ``count`` places (64 · block + slot) that score at most ``most``; return the size.

    What there is no more room for is counted. Four sums are made side by side, as one waits for each of its additions.
    """
    M = tables.shape[1]
    packed = blocks.shape[1] < M
    added = terms.shape[0] > 0
    low = np.uint8(15)
    for i in range(0, count, 4):
        p0 = places[i]
        p1 = places[min(i + 1, count - 1)]
        p2 = places[min(i + 2, count - 1)]
        p3 = places[min(i + 3, count - 1)]
        s0 = s1 = s2 = s3 = bias
        for m in range(M):
            j = m // 2 if packed else m
            n0 = blocks[p0 >> 6, j, p0 & 63]
            n1 = blocks[p1 >> 6, j, p1 & 63]
            n2 = blocks[p2 >> 6, j, p2 & 63]
            n3 = blocks[p3 >> 6, j, p3 & 63]
            if packed:
                shift = np.uint8(m % 2 * 4)
                n0, n1, n2, n3 = (n0 >> shift) & low, (n1 >> shift) & low, (n2 >> shift) & low, (n3 >> shift) & low
            if added:
                s0 += tables[q, m, n0] + terms[which, m, n0]
                s1 += tables[q, m, n1] + terms[which, m, n1]
                s2 += tables[q, m, n2] + terms[which, m, n2]
                s3 += tables[q, m, n3] + terms[which, m, n3]
            else:
                s0 += tables[q, m, n0]
                s1 += tables[q, m, n1]
                s2 += tables[q, m, n2]
                s3 += tables[q, m, n3]
        sums[i], sums[i + 1], sums[i + 2], sums[i + 3] = s0, s1, s2, s3
    for i in range(count):
        score = sums[i] if sums[i] == sums[i] else np.float32(np.inf)
        if size < scores.shape[0]:
            scores[size] = score
            names[size] = ids[places[i] >> 6, places[i] & 63]
        size += np.int64(score <= most)
    return size


def _fill(tables, terms, q, which, width, numbers):
    """Write the table of query q in list ``which`` into ``numbers``, M rows of ``width`` ≥ K, the rest repeated."""
    M, K = tables.shape[1:]
    for m in range(M):
        at = m * width
        if terms.shape[0]:
            for c in range(K):
                numbers[at + c] = tables[q, m, c] + terms[which, m, c]
        else:
            for c in range(K):
                numbers[at + c] = tables[q, m, c]
        for c in range(K, width):
            numbers[at + c] = numbers[at]


def _search_tiled(tables, terms, bias, probes, start, order, blocks, ids, live, bound, within, distances, found,
                  counts):
    """Leave out by sums of bytes what is beyond the k-th best; score the rest as the definition says.

    With low_m = min T[m], a scale and q[m, c] = min(255, floor((T[m, c] − low_m) · scale)), rounded in float32, the
    sum of q of a code is at most scale · Σ (T − low) + 4e-5 M. Its score S differs from bias + Σ T by at most
    γ = (M + 1) 2⁻²⁴ (|bias| + Σ max|T|), with a reserve. So S ≤ k-th needs sum q ≤ (k-th − bias − Σ low + γ) · scale
    + 4e-5 M, which is the limit; saturated sums are smaller still. The scale is chosen so that the limit is near
    254 where sums are of 8 bits, and near 16 a look-up where they are longer, and anew when the k-th best has come
    down so far that the limit is a coarse one. Nothing is left out while there is no k-th best, or where a table is
    not finite or so large that sums may overflow.

    The places of codes that pass are noted, and scored some dozens together. What is no worse than the k-th best known
    is kept, and when k / 2 more than k are, the k best of them are selected, in time that does not grow with log k.
    """
    nq, M, K = tables.shape
    s = blocks.shape[1]
    k = distances.shape[1]
    nibbles = K <= 16
    packed = M > s
    long = M > (LONG_NIBBLES if nibbles else LONG_BYTES)
    target = min(16.0 * M, 60000.0) if long else 253.5
    most = 65535 if long else 255
    entries = 32 if nibbles else 256
    width = (K + 15) // 16 * 16

    flat = order.shape[0] == 0
    total = max(1, blocks.shape[0]) if flat else 1
    chunk = max(64, CHUNK // (64 * s)) if flat else 1
    states = nq if flat else 1
    quantized = np.zeros((states, s * entries), np.uint8)
    spans = np.empty((states, 2 * M), np.float32)
    scale = np.zeros((states, 1), np.float32)
    offset = np.empty(states, np.float64)
    slack = np.empty(states, np.float64)
    sizes = np.zeros(nq, np.int64)
    numbers = np.empty(M * width, np.float32)
    room = k + k // 2 + _SPARE if flat else k + k // 4 + 4  # lists come in a good order: know the k-th best early
    held = np.empty((states if within == 0 else 0, room + _TOGETHER + 64 * GROUP), np.float32)
    held_names = np.empty(held.shape, np.int64)
    most_of = bound.copy()
    places = np.empty(_TOGETHER + 64 * GROUP, np.int64)
    sums = np.empty(places.shape[0] + 4, np.float32)
    chosen = np.zeros(GROUP, np.int64)
    masks = np.zeros(GROUP, np.uint64)
    for first in range(0, total, chunk):
        for q in range(nq):
            z = q if flat else 0
            kept = held[z] if within == 0 else distances[q]
            names = held_names[z] if within == 0 else found[q]
            size = sizes[q]
            limit_score = most_of[q]
            table = quantized[z]
            span = spans[z]
            for p in range(probes.shape[1]):
                which = probes[q, p]
                if which < 0:
                    continue
                i = start[which] + first
                end = min(start[which + 1], i + chunk) if flat else start[which + 1]
                if first == 0:
                    scale[z, 0] = -1
                limit = np.int64(-1)  # none yet
                noted = np.int64(0)  # a literal would be a type of its own, and compile all that takes it twice
                while i < end or noted > 0:
                    if i >= end or noted >= _TOGETHER or (within == 0 and size < k <= size + noted):
                        few = size < k
                        size = _settle(tables, terms, q, which, bias[q, p], blocks, ids, places, noted, sums,
                                       limit_score, kept, names, size)
                        noted = np.int64(0)
                        if within == 0 and size >= (k if few else room):
                            limit_score = min(limit_score, _select(kept, names, size, k))
                            limit = np.int64(-1)
                            size = k
                        continue
                    if limit < 0 and limit_score < np.inf:
                        fresh = scale[z, 0] < 0
                        budget = np.inf if fresh else np.float64(limit_score) - offset[z] + slack[z]
                        coarse = budget * scale[z, 0] < 0.5 * target and (end - i >= s or scale[z, 0] == 0)
                        if fresh or (coarse and 0 <= budget < np.inf):
                            if width > K:
                                _fill(tables, terms, q, which, width, numbers)
                            low = np.float64(bias[q, p])
                            spread = abs(low)
                            for m in range(M):
                                if width > K:
                                    measure(numbers, numbers, numbers, span, m * width, 0, m * width, width, 2 * m)
                                elif terms.shape[0]:
                                    measure_sum(tables, terms, numbers, span, (q * M + m) * K, (which * M + m) * K,
                                                m * K, K, 2 * m)
                                else:
                                    measure(tables, numbers, numbers, span, (q * M + m) * K, 0, m * K, K, 2 * m)
                                low += np.float64(span[2 * m])
                                spread += np.float64(span[2 * m + 1])
                            offset[z] = low
                            slack[z] = spread * (1.01 * (M + 4) * 2.0**-24) if spread < 1e37 else np.inf
                            budget = np.float64(limit_score) - low + slack[z]
                            scale[z, 0] = 0
                            if 0 <= budget < np.inf:
                                scale[z, 0] = min(target / max(budget, 1e-300), 3e38)
                                for m in range(M):
                                    quantize(numbers, span, scale[z], table, m * width, width, 2 * m,
                                             m // 2 * 32 + m % 2 * 16 if packed else m * entries)
                        if budget < 0:
                            i = end
                            continue
                        if budget < np.inf:
                            limit = np.int64(min(budget * scale[z, 0] * (1 + 1e-9) + 5e-5 * M, np.float64(most)))
                    if limit < 0:
                        b = i if flat else order[i]
                        i += 1
                        if live[b] == 0:
                            continue
                        chosen[0] = b
                        masks[0] = live[b]
                        count = 1
                    else:
                        count = 0
                        if flat and i + GROUP <= end:
                            whole = True
                            for g in range(GROUP):
                                chosen[g] = i + g
                                whole &= live[i + g] != 0
                            if whole:
                                count = GROUP
                                i += GROUP
                        if count == 0:
                            while i < end and count < GROUP:
                                b = i if flat else order[i]
                                i += 1
                                chosen[count] = b
                                if live[b] != 0:
                                    count += 1
                            for g in range(count, GROUP):
                                chosen[g] = chosen[0]
                        if nibbles:
                            if long:
                                hit = nibbles_long(blocks, table, live, chosen, masks, s, limit)
                            else:
                                hit = nibbles_short(blocks, table, live, chosen, masks, s, limit)
                        elif long:
                            hit = bytes_long(blocks, table, live, chosen, masks, s, limit)
                        else:
                            hit = bytes_short(blocks, table, live, chosen, masks, s, limit)
                        if hit == 0:
                            continue
                    for g in range(count):
                        left = masks[g]
                        first_place = 64 * chosen[g]
                        while left != 0:
                            places[noted] = first_place + lowest(left)
                            left &= left - np.uint64(1)
                            noted += 1
            sizes[q] = size
            most_of[q] = limit_score
            if first + chunk < total:
                continue
            if within == 0:
                if size > k:
                    _select(kept, names, size, k)
                    size = k
                for j in range(size):
                    distances[q, j] = kept[j]
                    found[q, j] = names[j]
                _sort(distances[q], found[q], size)
            counts[q] = size


def _search_level(level: str) -> dict[str, Any] | None:
    found = _scan_ir.intrinsics(level)
    return found and {**found, "LONG_BYTES": 32, "LONG_NIBBLES": 64, "CHUNK": 1 << 19}


def _search_plain(tables, terms, bias, probes, start, order, blocks, ids, live, bound, within, distances, found,
                  counts):
    """Do what ``adc_search`` says, a block at a time."""
    k = distances.shape[1]
    scores = np.empty(64, np.float32)
    row = np.empty(tables.shape[2], np.float32)
    for q in range(tables.shape[0]):
        size = 0
        for p in range(probes.shape[1]):
            which = probes[q, p]
            if which < 0:
                continue
            for i in range(start[which], start[which + 1]):
                b = order[i] if order.shape[0] else i
                if live[b] == 0:
                    continue
                _score_block(tables, terms, q, which, bias[q, p], blocks, b, scores, row)
                for slot in range(64):
                    if (live[b] >> np.uint64(slot)) & np.uint64(1) and scores[slot] <= bound[q]:
                        if within == 0:
                            size = _push(distances[q], found[q], size, scores[slot], ids[b, slot])
                        else:
                            if size < k:
                                distances[q, size] = scores[slot]
                                found[q, size] = ids[b, slot]
                            size += 1
        counts[q] = size
        if within == 0:
            _sort(distances[q], found[q], size)


@kernel("f4:3 f4:3 f4:2 i8:2 i8:1 i8:1 u1:3 i8:2 u8:1 f4:1 i8 f4:2w i8:2w i8:1w", twin=_search_twin,
        work=_search_work,
        helpers=(_score_block, _settle, _fill, _sift_down, _push, _parted, _select, _sort, _search_plain),
        tiled=(_search_tiled, _search_level))
def adc_search(tables, terms, bias, probes, start, order, blocks, ids, live, bound, within, distances, found, counts):
    """Write, of the live codes of the probed lists that score at most ``bound`` (nq,), the k best of each query.

    ``distances`` and ``found`` (nq, k) are ordered by (score, id) and padded by +inf and −1. Where ``within`` is not 0
    they hold, in no order, the first so many of all, and ``counts`` (nq,) says how many there are.
    """
    _search_plain(tables, terms, bias, probes, start, order, blocks, ids, live, bound, within, distances, found, counts)


# Of so many blocks, one is scanned first for an upper bound on the k-th score: its k-th, or a better one that is nearly
# always right, which the number of codes found within it tells. Codes in the worst order (each nearer than all before)
# then cost little more than in any other.
_SAMPLE = 64
_CAPACITY = 1024  # results of a range search that a query has room for at first


def _fit_blocks(tables: Float, blocks: Codes, ids: Ids, live: NDArray[np.uint64]) -> None:
    # Compiled code reads where it is told to: see _fit_together.
    M, K = tables.shape[1:]
    if blocks.ndim != 3 or blocks.shape[1:] != (code_size(M, K), 64):
        raise InvalidInputError(f"blocks of shape {blocks.shape} do not fit tables of {M} look-ups among {K}: they "
                                f"must be (nb, {code_size(M, K)}, 64).")
    if ids.shape != (len(blocks), 64) or live.shape != (len(blocks),):
        raise InvalidInputError(f"ids of shape {ids.shape} and live of shape {live.shape} do not fit {len(blocks)} "
                                "blocks.")


def _fit_lists(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes) -> None:
    lists, nq = len(start) - 1, len(tables)
    if len(terms) not in (0, lists) or terms.shape[1:] != tables.shape[1:]:
        raise InvalidInputError(f"terms of shape {terms.shape} do not fit {lists} lists and tables {tables.shape}.")
    if bias.shape != probes.shape or len(bias) != nq:
        raise InvalidInputError(f"bias {bias.shape} and probes {probes.shape} do not fit {nq} queries.")
    inside = start[0] >= 0 and start[-1] <= len(order) and (start[1:] >= start[:-1]).all()
    if not inside or (order.size and not 0 <= order.min() <= order.max() < len(blocks)):
        raise InvalidInputError(f"lists of {len(order)} blocks do not fit {len(blocks)} blocks.")
    if probes.size and not -1 <= probes.min() <= probes.max() < lists:
        raise InvalidInputError(f"probes name lists from {probes.min()} to {probes.max()}; there are {lists}.")


class _Whole:
    """All blocks as the one list of an inverted file: its bias −0.0 changes no bit of a sum."""

    def __init__(self, tables: Float) -> None:
        nq, M, K = tables.shape
        self.terms = np.empty((0, M, K), np.float32)
        self.bias = np.full((nq, 1), -0.0, np.float32)
        self.probes = np.zeros((nq, 1), np.int64)
        self.order = np.empty(0, np.int64)


def topk(tables: Float, blocks: Codes, ids: Ids, live: NDArray[np.uint64], k: int,
         threads: int | None) -> tuple[Float, Ids]:
    """Return the k best (scores, ids) of the live codes, both (nq, k), ordered by (score, id).

    Parameters
    ----------
    tables : (nq, M, K) float32
    blocks : (nb, code_size, 64) uint8
        Made by ``to_blocks``.
    ids : (nb, 64) int64
    live : (nb,) uint64
        Bit i: place i of the block is to be considered.
    k : int
        Places without a result hold +inf and −1.
    threads : int, optional
        It never changes the result.
    """
    _fit_blocks(tables, blocks, ids, live)
    nq, nb = len(tables), len(blocks)
    workers = threads or available_threads()
    pieces = 1 if nq >= 8 * workers else max(1, min(workers, nb // _PIECE))
    if pieces > 1:  # few queries over many codes: each thread has a part of the codes
        parts = run_blocks(lambda a, b: _topk_part(tables, blocks[a:b], ids[a:b], live[a:b], k), nb,
                           -(-nb // pieces), threads)
        return merge([scores for scores, _ in parts], [names for _, names in parts], k)
    group = min(_GROUP, max(1, -(-nq // workers)))
    parts = run_blocks(lambda a, b: _topk_part(tables[a:b], blocks, ids, live, k), nq, group, threads)
    return _joined(parts, k)


_GROUP = 32  # queries whose tables lie in the second cache beside a chunk of codes
_PIECE = 1 << 15  # blocks that are worth the start of a thread


def _topk_part(tables: Float, blocks: Codes, ids: Ids, live: NDArray[np.uint64], k: int,
               sure: bool = False) -> tuple[Float, Ids]:
    whole, nq, nb = _Whole(tables), len(tables), len(blocks)

    def search(start: Ids, order: Ids, bound: Float, k: int) -> tuple[Float, Ids, Ids]:
        distances, found, counts = np.empty((nq, k), np.float32), np.empty((nq, k), np.int64), np.empty(nq, np.int64)
        adc_search(tables, whole.terms, whole.bias, whole.probes, start, order, blocks, ids, live, bound, 0, distances,
                   found, counts)
        return distances, found, counts
    bound = np.full(nq, np.inf, np.float32)
    rank = k
    if nb >= 4 * _SAMPLE:
        order = np.arange(0, nb, _SAMPLE)
        if not sure:  # k codes are nearer than the sample's rank-th but for once in some thousand times
            share = k * len(order) / nb
            rank = min(k, math.ceil(share + 3.5 * math.sqrt(share) + 2))
        bound = search(np.array([0, len(order)]), order, bound, rank)[0][:, -1].copy()  # +inf, of padding, is none
    distances, found, counts = search(np.array([0, nb]), whole.order, bound, k)
    if rank < k and counts.min(initial=k) < k:
        again = np.flatnonzero((counts < k) & (bound < np.inf))
        if len(again):
            distances[again], found[again] = _topk_part(tables[again], blocks, ids, live, k, sure=True)
    return distances, found


def _joined(parts: list[tuple[Float, Ids]], k: int) -> tuple[Float, Ids]:
    if len(parts) == 1:
        return parts[0]
    return (np.concatenate([scores for scores, _ in parts] or [np.empty((0, k), np.float32)]),
            np.concatenate([names for _, names in parts] or [np.empty((0, k), np.int64)]))


def merge(scores: list[Float], ids: list[Ids], k: int) -> tuple[Float, Ids]:
    """Return the k best of several results (nq, k_i), padded by +inf and −1, ordered by (score, id)."""
    all_scores, all_ids = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
    order = np.lexsort((all_ids, all_ids < 0, all_scores), axis=1)[:, :k]  # padding after what scores +inf
    return np.take_along_axis(all_scores, order, axis=1), np.take_along_axis(all_ids, order, axis=1)


def topk_lists(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids,
               live: NDArray[np.uint64], k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return the k best (scores, ids), both (nq, k), of the live codes of the lists that each query probes.

    Parameters
    ----------
    tables : (nq, M, K) float32
    terms : (nlist, M, K) float32
        Added to a query's table for a list, in one float32 addition; (0, M, K) where there is nothing to add.
    bias : (nq, P) float32
        A score is ``((bias[q, p] + T[0, c_0]) + T[1, c_1]) + …``.
    probes : (nq, P) int64
        Lists; −1 stands for none. No list twice.
    start : (nlist + 1,) int64
        List l holds the blocks ``order[start[l]:start[l + 1]]``.
    order : (nb_used,) int64
    blocks, ids, live, k, threads
        As for ``topk``.
    """
    _fit_blocks(tables, blocks, ids, live)
    _fit_lists(tables, terms, bias, probes, start, order, blocks)

    def part(a: int, b: int) -> tuple[Float, Ids]:
        distances, found = np.empty((b - a, k), np.float32), np.empty((b - a, k), np.int64)
        if len(order):
            adc_search(tables[a:b], terms, bias[a:b], probes[a:b], start, order, blocks, ids, live,
                       np.full(b - a, np.inf, np.float32), 0, distances, found, np.empty(b - a, np.int64))
        else:
            distances[:], found[:] = np.inf, -1
        return distances, found
    return _joined(run_blocks(part, len(tables), _GROUP, threads), k)


def within(tables: Float, blocks: Codes, ids: Ids, live: NDArray[np.uint64], radius: Float,
           threads: int | None) -> tuple[Ids, Float, Ids]:
    """Return (limits, scores, ids) of all live codes that score at most ``radius`` (nq,).

    Query q's are those from limits[q] to limits[q + 1], ordered by (score, id).
    """
    _fit_blocks(tables, blocks, ids, live)
    whole = _Whole(tables)
    return _within(tables, whole.terms, whole.bias, whole.probes, np.array([0, len(blocks)]), whole.order, blocks, ids,
                   live, radius, threads)


def within_lists(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes,
                 ids: Ids, live: NDArray[np.uint64], radius: Float, threads: int | None) -> tuple[Ids, Float, Ids]:
    """Return (limits, scores, ids) as ``within`` does, of the lists that each query probes (see ``topk_lists``)."""
    _fit_blocks(tables, blocks, ids, live)
    _fit_lists(tables, terms, bias, probes, start, order, blocks)
    if not len(order):
        return np.zeros(len(tables) + 1, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    return _within(tables, terms, bias, probes, start, order, blocks, ids, live, radius, threads)


def _within(tables: Float, terms: Float, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids,
            live: NDArray[np.uint64], radius: Float, threads: int | None) -> tuple[Ids, Float, Ids]:
    if radius.shape != (len(tables),):
        raise InvalidInputError(f"radius of shape {radius.shape} for {len(tables)} queries.")

    def run(a: int, b: int, room: int) -> tuple[Float, Ids, Ids]:
        scores, names = np.empty((b - a, room), np.float32), np.empty((b - a, room), np.int64)
        counts = np.empty(b - a, np.int64)
        adc_search(tables[a:b], terms, bias[a:b], probes[a:b], start, order, blocks, ids, live, radius[a:b], 1, scores,
                   names, counts)
        return scores, names, counts

    def part(a: int, b: int) -> list[tuple[Float, Ids]]:
        scores, names, counts = run(a, b, _CAPACITY)
        results = []
        for i, count in enumerate(counts.tolist()):
            mine = scores[i, :count], names[i, :count]
            if count > _CAPACITY:  # once more, with room for all of them
                more = run(a + i, a + i + 1, count)
                mine = more[0][0], more[1][0]
            results.append(smallest(*mine, count))
        return results
    each = [one for part_ in run_blocks(part, len(tables), _GROUP, threads) for one in part_]
    limits = np.zeros(len(each) + 1, np.int64)
    np.cumsum([len(found) for found, _ in each], out=limits[1:])
    return (limits, np.concatenate([np.empty(0, np.float32), *(found for found, _ in each)]),
            np.concatenate([np.empty(0, np.int64), *(names for _, names in each)]))
