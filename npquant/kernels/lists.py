"""Searching inverted lists: the k best of the few codes in the lists that a query probes.

``kernels.scan`` learns the k-th best as it goes, and scores whatever is better than the k-th best so far: of some
thousand codes, several times k. Here all sums of bytes are kept first, a byte a code. Counting says which sum bounds k
codes; these are scored, their k-th best score bounds all others, and what is left is scored: little more than k
codes in all. The results are those of ``scan.topk_lists``, bit for bit.

Where lists have terms of their own, known long before the queries, the bytes of a list come of two sums of small
integers: T − min T of a query and t − min t of a list are numbers of steps, 15 bits each and of one size for all of
an index. The bytes are ``(a + b) · factor >> 16``, and the list's floats are read only for codes that pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant.kernels import _scan_ir, scan, simd
from npquant.kernels._jit import kernel
from npquant.kernels._order import _parted, _push, _select, _sift_down, _sort
from npquant.kernels._pool import run_blocks
from npquant.kernels.scan import _score_block, _search_plain, _search_twin, _settle

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

# What a SIMD level puts in their place where it compiles the tiled code below.
GROUP = LONG = 0
bytes_short_kept: Any = None
bytes_long_kept: Any = None
nibbles_short_kept: Any = None
nibbles_long_kept: Any = None
combine: Any = None
count: Any = None
flags: Any = None
lowest: Any = None
measure: Any = None
ones: Any = None
quantize: Any = None
stepped: Any = None

_MOST = 32767  # steps
_FIRST, _CHUNK = 256, 1024  # blocks whose sums are held at a time: few, then four times as many each time
_QUERIES = 32  # of one task
_FEW = 16  # codes that are scored for a first guess, or up to twice as many
BEYOND = 255  # the byte of a sum too large for one, and of no code


class Terms(NamedTuple):
    """What lists add to the look-up tables of queries, as floats and in steps."""

    values: Float  # (nlist, M, K)
    steps: NDArray[np.uint16]  # (nlist, M, K): floor((values − the least of K) · per)
    spans: NDArray[np.float64]  # (nlist, 2): the sum over M of the least of K, and that of the largest sizes
    per: float  # steps a unit

    @classmethod
    def of(cls, values: Float) -> Terms:
        """Return the terms ``values`` (nlist, M, K), finite float32, with their steps."""
        low, high = values.min(axis=2).astype(np.float64), values.max(axis=2).astype(np.float64)
        reach = float((high - low).max(initial=0.0))
        per = _MOST / (2 * reach) if reach > 1e-30 else 0.0
        steps = np.empty(values.shape, np.uint16)
        for i, rows in enumerate(values):
            steps[i] = (rows - low[i, :, None]) * per
        spans = np.stack([low.sum(axis=1), np.maximum(-low, high).sum(axis=1)], axis=1)
        return cls(values, steps, spans, per)

    @classmethod
    def none(cls, M: int, K: int) -> Terms:
        """Return the terms of lists that add nothing."""
        return cls(np.empty((0, M, K), np.float32), np.empty((0, M, K), np.uint16), np.empty((0, 2)), 0.0)

    @staticmethod
    def fits(M: int, K: int) -> bool:
        """Whether tables of M rows of K can be made of steps: vectors of 32, and no row of padding."""
        return K in (16, 256) and M * K % 32 == 0


def _twin(tables: Float, terms: Float, steps: NDArray[np.uint16], spans: NDArray[np.float64], per: float, bias: Float,
          probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids, live: NDArray[np.uint64], distances: Float,
          found: Ids) -> None:
    _search_twin(tables, terms, bias, probes, start, order, blocks, ids, live, np.full(len(tables), np.inf, np.float32),
                 0, distances, found, np.empty(len(tables), np.int64))


def _work(tables: Float, terms: Float, steps: Any, spans: Any, per: float, bias: Float, probes: Ids, start: Ids,
          order: Ids, *_: object) -> int:
    return tables.shape[0] * tables.shape[1] * 64 * (probes.shape[1] * len(order) // max(1, len(start) - 1) + 1)


def _note(sums, chosen, begin, end, above, limit, places):
    """Write the places in the blocks from ``begin`` whose sums exceed ``above`` (unless negative), not ``limit``."""
    noted = np.int64(0)
    for i in range(begin, end):
        left = np.uint64(flags(sums, 64 * i, limit))
        if above >= 0:
            left &= ~np.uint64(flags(sums, 64 * i, above))
        first_place = 64 * chosen[i]
        while left != 0:
            places[noted] = first_place + lowest(left)
            left &= left - np.uint64(1)
            noted += 1
    return noted


def _all(live, chosen, begin, end, most, places):
    """Write the live places in the blocks from ``begin``, no more than ``most``."""
    noted = np.int64(0)
    for i in range(begin, end):
        left = live[chosen[i]]
        first_place = 64 * chosen[i]
        while left != 0 and noted < most:
            places[noted] = first_place + lowest(left)
            left &= left - np.uint64(1)
            noted += 1
    return noted


def _tiled(tables, terms, steps, spans, per, bias, probes, start, order, blocks, ids, live, distances, found):
    """Keep all sums of bytes; score first what k of them bound, then what is within the k-th best of these.

    A list's base is bias + Σ min T + Σ min t; the least of a query's bases is ``low``. The sum of a code is that of its
    bytes and of floor((base − low) · scale). With γ = (M + 3) 2⁻²⁴ (|bias| + Σ max|T| + Σ max|t|), with a reserve, for
    the rounding of scores, a code that scores at most U has a sum of at most (U − low + γ) · scale + ``spare``:

    * without terms a byte is min(255, floor((T − min T) · scale)), rounded in float32: ``spare`` is 5e-5 M;
    * with terms it is at most (T − min T + t − min t) · scale, where scale = factor · per / 65536, but that T's steps
      are made in float32: ``spare`` is a hundredth of a step a look-up.

    The scale comes of the k-th best of the first codes or, where these are fewer, of their worst: then U is not known
    yet, and the scale is made anew where sums beyond a byte could matter. Long sums lose some bits to fit a byte.
    """
    nq, M, K = tables.shape
    s = blocks.shape[1]
    k = distances.shape[1]
    added = terms.shape[0] > 0
    nibbles = K <= 16
    packed = M > s
    long = M > LONG
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
    ends = np.empty(probes.shape[1], np.int64)  # of the runs of blocks in ``chosen`` that have one table and one bias
    of = np.empty(probes.shape[1], np.int64)  # the place in ``probes`` of a run
    base = np.empty(probes.shape[1], np.float64)
    table = np.zeros(s * entries, np.uint8)
    numbers = np.empty((1, M, width), np.float32)
    mine = np.empty(M * width, np.uint16)
    span = np.empty(2 * M, np.float32)
    unit = np.full(1, per, np.float32)
    scale = np.zeros(1, np.float32)
    bits = bias.view(np.int32)
    zero = np.int64(0)  # a literal would be a type of its own, and compile all that takes it once more
    for q in range(nq):
        floor = 0.0
        reach = 0.0
        for m in range(M):
            if width == K:
                measure(tables, numbers, numbers, span, (q * M + m) * K, 0, m * K, K, 2 * m)
            else:
                for c in range(width):
                    numbers[0, m, c] = tables[q, m, c if c < K else 0]
                measure(numbers, numbers, numbers, span, m * width, 0, m * width, width, 2 * m)
            floor += np.float64(span[2 * m])
            reach += np.float64(span[2 * m + 1])
        low = np.inf
        slack = 0.0
        for p in range(probes.shape[1]):
            which = probes[q, p]
            if which >= 0:
                base[p] = np.float64(bias[q, p]) + floor
                size_of = abs(np.float64(bias[q, p])) + reach
                if added:
                    base[p] += spans[which, 0]
                    size_of += spans[which, 1]
                low = min(low, base[p])
                slack = max(slack, size_of if size_of == size_of else np.inf)
        sound = slack < 1e30 and (per > 0 or not added)
        slack = slack * (1.01 * (M + 4) * 2.0**-24) + 1e-37
        if added and sound:
            for m in range(M):
                stepped(numbers, span, unit, mine, m * K, K, 2 * m)

        size = zero
        bound = np.float32(np.inf)  # the k-th best of those scored, or a larger one
        factor = np.int64(0)
        rate = 0.0
        spare = 0.0
        nth = i = end = zero
        room = min(most, np.int64(_FIRST))
        while True:
            n = 0
            alive = 0
            runs = 0
            while n < room:
                if i >= end:
                    if nth >= probes.shape[1]:
                        break
                    if probes[q, nth] >= 0:
                        i = start[probes[q, nth]]
                        end = start[probes[q, nth] + 1]
                    nth += 1
                    continue
                b = order[i]
                i += 1
                if live[b] != 0:
                    before = of[max(runs - 1, 0)]
                    if runs == 0 or (before != nth - 1 and (added or bits[q, nth - 1] != bits[q, before])):
                        of[runs] = nth - 1
                        runs += 1
                    chosen[n] = b
                    alive += ones(live[b])
                    n += 1
                    ends[runs - 1] = n
            if n == 0:
                break
            room = min(most, 4 * room)
            for g in range(3 * GROUP):
                chosen[n + g] = chosen[n - 1]
            told = sound and (bound < np.inf or (size == 0 and alive > k))
            budget = np.float64(bound) - low + slack
            if told and not bound < np.inf:
                noted = _all(live, chosen, zero, ends[0], np.int64(min(max(k, _FEW), 2 * _FEW)), places)
                size = _settle(tables, terms, q, probes[q, of[0]], bias[q, of[0]], blocks, ids, places, noted, scores,
                               bound, kept, names, zero)
                worst = _select(kept, names, size, min(k, size))
                budget = np.float64(worst) - low + slack
                if size >= k:
                    bound = worst
                size = zero  # they are found again
            above = np.int64(-1)
            limit = np.int64(-1)
            tries = 0
            while told:
                if budget < 0:
                    break
                if not 0.7 * target < budget * rate <= target:
                    if added:
                        factor = np.int64(min(target / max(budget, 1e-30) / per * 65536.0, 65535.0))
                        rate = factor * per / 65536.0
                        spare = 0.01 * M * factor / 65536.0
                    else:
                        scale[0] = min(target / max(budget, 1e-300), 3e38)
                        rate = np.float64(scale[0])
                        spare = 5e-5 * M
                        for m in range(M):
                            quantize(numbers, span, scale, table, m * width, width, 2 * m,
                                     m // 2 * 32 + m % 2 * 16 if packed else m * entries)
                wide = np.int64(budget * rate * (1 + 1e-9) + spare)
                limit = wide >> shift
                at = zero
                for r in range(runs):
                    ahead = np.int64((base[of[r]] - low) * rate * (1 - 1e-9))
                    if ahead > wide:
                        for beyond in range(64 * at, 64 * ends[r]):
                            sums[beyond] = BEYOND
                    else:
                        if added:
                            following = probes[q, of[min(r + 1, runs - 1)]] * M * K
                            combine(mine, steps, table, probes[q, of[r]] * M * K, following, factor, M * K // 32)
                        while at < ends[r]:
                            if nibbles:
                                if long:
                                    nibbles_long_kept(blocks, table, live, chosen, sums, s, at, ahead, shift)
                                else:
                                    nibbles_short_kept(blocks, table, live, chosen, sums, s, at, ahead, shift)
                            elif long:
                                bytes_long_kept(blocks, table, live, chosen, sums, s, at, ahead, shift)
                            else:
                                bytes_short_kept(blocks, table, live, chosen, sums, s, at, ahead, shift)
                            at += GROUP
                    at = ends[r]
                have = count(sums, n, limit)
                if have < k and not bound < np.inf:
                    tries += 1
                    budget *= 4
                    told = tries < 8 and budget < 1e30
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
                    at = zero
                    for r in range(runs):
                        noted = _note(sums, chosen, at, ends[r], zero - 1, above, places)
                        size = _settle(tables, terms, q, probes[q, of[r]], bias[q, of[r]], blocks, ids, places, noted,
                                       scores, bound, kept, names, size)
                        at = ends[r]
                    if size >= k:
                        bound = min(bound, _select(kept, names, size, k))
                        size = k
                    budget = np.float64(bound) - low + slack
                    limit = np.int64(max(budget, 0.0) * rate * (1 + 1e-9) + spare) >> shift
                    if limit >= BEYOND:
                        size = zero
                        continue
                break
            at = zero
            for r in range(runs):
                if not told:
                    noted = _all(live, chosen, at, ends[r], 64 * n, places)
                elif limit >= 0:
                    noted = _note(sums, chosen, at, ends[r], above, limit, places)
                else:
                    noted = zero
                size = _settle(tables, terms, q, probes[q, of[r]], bias[q, of[r]], blocks, ids, places, noted, scores,
                               bound, kept, names, size)
                at = ends[r]
            if size >= k:
                bound = min(bound, _select(kept, names, size, k))
                size = k
        for j in range(size):
            distances[q, j] = kept[j]
            found[q, j] = names[j]
        _sort(distances[q], found[q], size)


def _level(level: str) -> dict[str, Any] | None:
    found = _scan_ir.intrinsics(level)
    return found and {
        **found, "LONG": 16,
        "stepped": simd.intrinsic(_stepped, ("row", "span", "unit", "mine"), ("place", "count", "at")),
        "combine": simd.intrinsic(_combine, ("mine", "steps", "table"), ("at", "next", "factor", "count"))}


def _stepped(builder: Any, v: dict[str, Any]) -> None:
    """Emit: of ``count`` numbers (a multiple of 16) the steps min(32767, floor((x − low) · unit))."""
    b, w = builder, simd.Vectors(builder, 16)
    low, unit = w.splat(b.load(w.at(v["span"], v["at"]))), w.splat(b.load(v["unit"]))
    with w.loop(b.lshr(v["count"], w.index(4))) as i:
        at = b.mul(i, w.index(16))
        x = w.least(b.fmul(b.fsub(w.load(v["row"], b.add(v["place"], at)), low), unit), w.constant(float(_MOST)))
        steps = b.trunc(b.fptosi(x, w.itype), w.ir.VectorType(w.ir.IntType(16), 16))
        b.store(steps, b.bitcast(w.at(v["mine"], b.add(v["place"], at)), steps.type.as_pointer())).align = 2


def _combine(builder: Any, v: dict[str, Any]) -> None:
    """Emit: bytes min(255, (mine + steps) · factor >> 16), 32 at a time; ask for the next list's steps."""
    b, w = builder, simd.Vectors(builder, 32)
    ir = w.ir
    few, words, wide = (ir.VectorType(ir.IntType(size), 32) for size in (8, 16, 32))
    factor = b.zext(w.splat(b.trunc(v["factor"], ir.IntType(16))), wide)

    with w.loop(v["count"]) as i:
        at = b.mul(i, w.index(32))
        mine, steps = (b.load(b.bitcast(w.at(*place), words.as_pointer())) for place in (
            (v["mine"], at), (v["steps"], b.add(v["at"], at))))
        mine.align = steps.align = 2
        total = b.add(mine, steps)
        high = b.trunc(b.lshr(b.mul(b.zext(total, wide), factor), ir.Constant(wide, [16] * 32)), words)
        limit = ir.Constant(words, [255] * 32)
        entries = b.trunc(b.select(b.icmp_unsigned("<", high, limit), high, limit), few)
        b.store(entries, b.bitcast(w.at(v["table"], at), few.as_pointer())).align = 1
        w.prefetch(b.bitcast(w.at(v["steps"], b.add(v["next"], at)), ir.IntType(8).as_pointer()))


@kernel("f4:3 f4:3 u2:3 f8:2 f8 f4:2 i8:2 i8:1 i8:1 u1:3 i8:2 u8:1 f4:2w i8:2w", twin=_twin, work=_work,
        helpers=(_score_block, _settle, _note, _all, _sift_down, _push, _parted, _select, _sort, _search_plain),
        tiled=(_tiled, _level))
def list_search(tables, terms, steps, spans, per, bias, probes, start, order, blocks, ids, live, distances, found):
    """Write the k best (scores, ids), both (nq, k), of the live codes of the probed lists, padded by +inf and −1."""
    counts = np.empty(tables.shape[0], np.int64)
    bound = np.full(tables.shape[0], np.inf, np.float32)
    _search_plain(tables, terms, bias, probes, start, order, blocks, ids, live, bound, np.int64(0), distances, found,
                  counts)


def topk(tables: Float, terms: Terms, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids,
         live: NDArray[np.uint64], k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return what ``scan.topk_lists`` does for ``terms.values``."""
    scan._fit_blocks(tables, blocks, ids, live)
    scan._fit_lists(tables, terms.values, bias, probes, start, order, blocks)

    def part(a: int, b: int) -> tuple[Float, Ids]:
        distances, found = np.empty((b - a, k), np.float32), np.empty((b - a, k), np.int64)
        list_search(tables[a:b], *terms, bias[a:b], probes[a:b], start, order, blocks, ids, live, distances, found)
        return distances, found
    return scan._joined(run_blocks(part, len(tables), _QUERIES, threads), k)
