"""Scanning lists of codes whose scores know no lists: the k best of the few codes that a query looks at.

``kernels.scan`` learns the k-th best as it goes, and scores whatever is better than the k-th best so far: of some
thousand codes, several times k. Here all sums of bytes are kept first, a byte a code. Counting says which sum bounds k
codes; these are scored, their k-th best score bounds all others, and what is left is scored: little more than k
codes in all. The results are those of ``scan.topk_lists``, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.kernels import _scan_ir, scan
from npquant.kernels._jit import kernel
from npquant.kernels._order import _parted, _push, _select, _sift_down, _sort
from npquant.kernels._pool import run_blocks
from npquant.kernels.scan import _score_block, _search_twin, _settle

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

# What a SIMD level puts in their place where it compiles the tiled code below.
GROUP = LONG_BYTES = LONG_NIBBLES = 0
bytes_short_kept: Any = None
bytes_long_kept: Any = None
nibbles_short_kept: Any = None
nibbles_long_kept: Any = None
flags: Any = None
count: Any = None
ones: Any = None
measure: Any = None
quantize: Any = None
lowest: Any = None

_FIRST, _CHUNK = 64, 1024  # blocks whose sums are held at a time: few, then four times as many each time
_QUERIES = 32  # of one task
_FEW = 16  # codes that are scored for a first guess, or up to twice as many
BEYOND = 255  # the byte of a sum too large for one, and of no code


def _twin(tables: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids, live: NDArray[np.uint64],
          distances: Float, found: Ids) -> None:
    _search_twin(tables, np.empty((0, *tables.shape[1:]), np.float32), np.full(probes.shape, -0.0, np.float32), probes,
                 start, order, blocks, ids, live, np.full(len(tables), np.inf, np.float32), 0, distances, found,
                 np.empty(len(tables), np.int64))


def _work(tables: Float, probes: Ids, start: Ids, order: Ids, *_: object) -> int:
    return tables.shape[1] * 64 * probes.size * (len(order) // max(1, len(start) - 1) + 1)


def _note(sums, chosen, n, above, limit, places):
    """Write the places of n blocks whose sums are more than ``above`` (unless negative) and at most ``limit``."""
    noted = 0
    for i in range(n):
        left = np.uint64(flags(sums, 64 * i, limit))
        if above >= 0:
            left &= ~np.uint64(flags(sums, 64 * i, above))
        first_place = 64 * chosen[i]
        while left != 0:
            places[noted] = first_place + lowest(left)
            left &= left - np.uint64(1)
            noted += 1
    return noted


def _all(live, chosen, n, most, places):
    """Write the live places of n blocks, no more than ``most``."""
    noted = 0
    for i in range(n):
        left = live[chosen[i]]
        first_place = 64 * chosen[i]
        while left != 0 and noted < most:
            places[noted] = first_place + lowest(left)
            left &= left - np.uint64(1)
            noted += 1
    return noted


def _tiled(tables, probes, start, order, blocks, ids, live, distances, found):
    """Keep all sums of bytes; score first what k of them bound, then what is within the k-th best of these.

    Bytes, sums and limits are those of ``scan.adc_search``: a code that scores at most U has a sum of at most
    (U − Σ low + γ) · scale + 5e-5 M. The scale comes of the k-th best of the first codes or, where these are fewer,
    of their worst: then U is not known yet, and the scale is made anew where sums beyond a byte could matter.
    """
    nq, M, K = tables.shape
    s = blocks.shape[1]
    k = distances.shape[1]
    nibbles = K <= 16
    packed = M > s
    long = M > (LONG_NIBBLES if nibbles else LONG_BYTES)
    shift = 0
    while long and (16 << shift) < M and shift < 7:
        shift += 1
    target = 253.5 * (1 << shift)
    entries = 32 if nibbles else 256
    width = (K + 15) // 16 * 16

    most = np.int64(0)
    for q in range(nq):
        all_blocks = np.int64(0)
        for p in range(probes.shape[1]):
            if probes[q, p] >= 0:
                all_blocks += start[probes[q, p] + 1] - start[probes[q, p]]
        most = max(most, all_blocks)
    most = min(most, np.int64(_CHUNK))
    chosen = np.empty(most + 3 * GROUP, np.int64)
    sums = np.empty(64 * (most + GROUP), np.uint8)
    places = np.empty(64 * most, np.int64)
    scores = np.empty(64 * most + 4, np.float32)
    kept = np.empty(64 * most + k, np.float32)
    names = np.empty(64 * most + k, np.int64)
    table = np.zeros(s * entries, np.uint8)
    numbers = np.empty(M * width, np.float32)
    span = np.empty(2 * M, np.float32)
    scale = np.zeros(1, np.float32)
    nothing = np.empty((0, M, K), np.float32)
    lead = np.float32(-0.0)
    for q in range(nq):
        p = np.int64(0)
        i = end = np.int64(0)
        size = 0
        bound = np.float32(np.inf)  # the k-th best of those scored, or a larger one
        low = 0.0
        spread = 0.0
        for m in range(M):
            if width == K:
                measure(tables, numbers, numbers, span, (q * M + m) * K, 0, m * K, K, 2 * m)
            else:
                for c in range(width):
                    numbers[m * width + c] = tables[q, m, c if c < K else 0]
                measure(numbers, numbers, numbers, span, m * width, 0, m * width, width, 2 * m)
            low += np.float64(span[2 * m])
            spread += np.float64(span[2 * m + 1])
        slack = spread * (1.01 * (M + 4) * 2.0**-24)
        scale[0] = 0
        room = min(most, np.int64(_FIRST))
        while True:
            n = 0
            alive = 0
            while n < room:
                if i >= end:
                    if p >= probes.shape[1]:
                        break
                    if probes[q, p] >= 0:
                        i = start[probes[q, p]]
                        end = start[probes[q, p] + 1]
                    p += 1
                    continue
                b = order[i]
                i += 1
                if live[b] != 0:
                    chosen[n] = b
                    alive += ones(live[b])
                    n += 1
            if n == 0:
                break
            room = min(most, 4 * room)
            for g in range(3 * GROUP):
                chosen[n + g] = chosen[n - 1]
            told = spread < 1e37 and (bound < np.inf or (size == 0 and alive > k))  # NaN is not
            budget = np.float64(bound) - low + slack
            if told and not bound < np.inf:
                noted = _all(live, chosen, n, min(max(k, _FEW), 2 * _FEW), places)
                size = _settle(tables, nothing, q, 0, lead, blocks, ids, places, noted, scores, bound, kept, names, 0)
                worst = _select(kept, names, size, min(k, size))
                budget = np.float64(worst) - low + slack
                if size >= k:
                    bound = worst
                size = 0  # they are found again
            above = np.int64(-1)
            tries = 0
            while told:
                if budget < 0:
                    n = 0
                    break
                reach = budget * scale[0]
                if not 0.7 * target < reach <= target:
                    scale[0] = min(target / max(budget, 1e-300), 3e38)
                    reach = budget * scale[0]
                    for m in range(M):
                        quantize(numbers, span, scale, table, m * width, width, 2 * m,
                                 m // 2 * 32 + m % 2 * 16 if packed else m * entries)
                limit = np.int64(reach * (1 + 1e-9) + 5e-5 * M) >> shift
                for g in range(0, n, GROUP):
                    if nibbles:
                        if long:
                            nibbles_long_kept(blocks, table, live, chosen, sums, s, g, shift)
                        else:
                            nibbles_short_kept(blocks, table, live, chosen, sums, s, g, shift)
                    elif long:
                        bytes_long_kept(blocks, table, live, chosen, sums, s, g, shift)
                    else:
                        bytes_short_kept(blocks, table, live, chosen, sums, s, g, shift)
                have = count(sums, n, limit)
                if have < k and not bound < np.inf:
                    tries += 1
                    budget *= 4
                    told = tries < 8 and budget < 1e37
                    continue
                above = np.int64(-1)
                if have > k + k // 4 or not bound < np.inf:
                    least = np.int64(0)
                    above = limit
                    while least < above:
                        middle = (least + above) // 2
                        if count(sums, n, middle) < k:
                            least = middle + 1
                        else:
                            above = middle
                    noted = _note(sums, chosen, n, -1, above, places)
                    size = _settle(tables, nothing, q, 0, lead, blocks, ids, places, noted, scores, bound, kept, names,
                                   size)
                    if size >= k:
                        bound = min(bound, _select(kept, names, size, k))
                        size = k
                    budget = np.float64(bound) - low + slack
                    limit = np.int64(max(budget, 0.0) * scale[0] * (1 + 1e-9) + 5e-5 * M) >> shift
                    if limit >= BEYOND:
                        size = 0
                        continue
                break
            if told:
                noted = _note(sums, chosen, n, above, limit, places) if n > 0 else 0
            else:
                noted = _all(live, chosen, n, 64 * n, places)
            size = _settle(tables, nothing, q, 0, lead, blocks, ids, places, noted, scores, bound, kept, names, size)
            if size >= k:
                bound = min(bound, _select(kept, names, size, k))
                size = k
        for j in range(size):
            distances[q, j] = kept[j]
            found[q, j] = names[j]
        _sort(distances[q], found[q], size)


def _level(level: str) -> dict[str, Any] | None:
    found = _scan_ir.intrinsics(level)
    return found and {**found, "LONG_BYTES": 16, "LONG_NIBBLES": 16}


@kernel("f4:3 i8:2 i8:1 i8:1 u1:3 i8:2 u8:1 f4:2w i8:2w", twin=_twin, work=_work,
        helpers=(_score_block, _settle, _note, _all, _sift_down, _push, _parted, _select, _sort),
        tiled=(_tiled, _level))
def gathered_search(tables, probes, start, order, blocks, ids, live, distances, found):
    """Write the k best (scores, ids), both (nq, k), of the live codes of the probed lists, padded by +inf and −1."""
    nothing = np.empty((0, tables.shape[1], tables.shape[2]), np.float32)
    scores = np.empty(64, np.float32)
    row = np.empty(tables.shape[2], np.float32)
    for q in range(tables.shape[0]):
        size = 0
        for p in range(probes.shape[1]):
            which = probes[q, p]
            if which < 0:
                continue
            for i in range(start[which], start[which + 1]):
                b = order[i]
                if live[b] == 0:
                    continue
                _score_block(tables, nothing, q, 0, np.float32(-0.0), blocks, b, scores, row)
                for slot in range(64):
                    if (live[b] >> np.uint64(slot)) & np.uint64(1):
                        size = _push(distances[q], found[q], size, scores[slot], ids[b, slot])
        _sort(distances[q], found[q], size)


def topk(tables: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids, live: NDArray[np.uint64], k: int,
         threads: int | None) -> tuple[Float, Ids]:
    """Return what ``scan.topk_lists`` does without terms, for a bias of −0.0."""
    scan._fit_blocks(tables, blocks, ids, live)
    scan._fit_lists(tables, tables[:0], np.empty(probes.shape, np.float32), probes, start, order, blocks)

    def part(a: int, b: int) -> tuple[Float, Ids]:
        distances, found = np.empty((b - a, k), np.float32), np.empty((b - a, k), np.int64)
        gathered_search(tables[a:b], probes[a:b], start, order, blocks, ids, live, distances, found)
        return distances, found
    return scan._joined(run_blocks(part, len(tables), _QUERIES, threads), k)
