"""Scanning lists whose terms are known long before the queries: byte tables of a list from two sums of small integers.

``kernels.scan`` makes a table of bytes for each query and list from 256 float sums a look-up, which costs more than
the scan of a short list. Here T − min T of a query and t − min t of a list are numbers of steps, 15 bits each and of
one size for all of an index: the bytes are ``(a + b) · factor >> 16``, and the list's floats are read only for codes
that pass. Sums of bytes are lower bounds as before, and what passes is scored as the definition says: the results
are those of ``scan.topk_lists``, bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant.kernels import _scan_ir, scan, simd
from npquant.kernels._jit import kernel
from npquant.kernels._order import _parted, _push, _select, _sift_down, _sort
from npquant.kernels._pool import run_blocks
from npquant.kernels.scan import _TOGETHER, _score_block, _search_twin, _settle

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]

# What a SIMD level puts in their place where it compiles the tiled code below.
GROUP = LONG = 0
bytes_short: Any = None
bytes_long: Any = None
combine: Any = None
measure: Any = None
stepped: Any = None
lowest: Any = None

_MOST = 32767  # steps
_FEW = 4  # codes of a list that are scored before all sums of its table are made
_QUERIES = 32  # of one task


class Terms(NamedTuple):
    """What lists add to the look-up tables of queries, as floats and in steps."""

    values: Float  # (nlist, M, 256)
    steps: NDArray[np.uint16]  # (nlist, M, 256): floor((values − the least of 256) · per)
    spans: NDArray[np.float64]  # (nlist, 2): the sum over M of the least of 256, and that of the largest sizes
    per: float  # steps a unit

    @classmethod
    def of(cls, values: Float) -> Terms:
        """Return the terms ``values`` (nlist, M, 256), finite float32, with their steps."""
        low, high = values.min(axis=2).astype(np.float64), values.max(axis=2).astype(np.float64)
        reach = float((high - low).max(initial=0.0))
        per = _MOST / (2 * reach) if reach > 1e-30 else 0.0
        steps = np.empty(values.shape, np.uint16)
        for i, rows in enumerate(values):
            steps[i] = (rows - low[i, :, None]) * per
        spans = np.stack([low.sum(axis=1), np.maximum(-low, high).sum(axis=1)], axis=1)
        return cls(values, steps, spans, per)


def _twin(tables: Float, terms: Float, steps: NDArray[np.uint16], spans: NDArray[np.float64], per: float, bias: Float,
          probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids, live: NDArray[np.uint64], distances: Float,
          found: Ids) -> None:
    _search_twin(tables, terms, bias, probes, start, order, blocks, ids, live, np.full(len(tables), np.inf, np.float32),
                 0, distances, found, np.empty(len(tables), np.int64))


def _work(tables: Float, terms: Float, steps: Any, spans: Any, per: float, bias: Float, probes: Ids, start: Ids,
          order: Ids, *_: object) -> int:
    return tables.shape[0] * tables.shape[1] * 64 * (probes.shape[1] * len(order) // max(1, len(start) - 1) + 1)


def _added(tables, terms, q, which, numbers):
    """Write the table of query q in list ``which`` into ``numbers`` (1, M, 256)."""
    for m in range(tables.shape[1]):
        for c in range(256):
            numbers[0, m, c] = tables[q, m, c] + terms[which, m, c]


def _tiled(tables, terms, steps, spans, per, bias, probes, start, order, blocks, ids, live, distances, found):
    """Leave out by sums of bytes what is beyond the k-th best; score the rest as the definition says.

    With a = floor((T − min T) · per) and b likewise of the terms, no more than 32767 each, a byte is at most
    (T − min T + t − min t) · per · factor / 65536. So a code that scores at most the k-th best has a sum of bytes
    of at most (k-th − bias − Σ min T − Σ min t + γ) · per · factor / 65536, which is the limit, with a reserve of a
    hundredth of a step a look-up, as a is made in float32. γ covers the float32 rounding of the score:
    (M + 3) 2⁻²⁴ (|bias| + Σ max|T| + Σ max|t|), with a reserve.
    """
    M = tables.shape[1]
    k = distances.shape[1]
    long = M > LONG
    target = min(16.0 * M, 60000.0) if long else 253.5
    most = 65535 if long else 255
    mine = np.empty(M * 256, np.uint16)
    numbers = np.empty((1, M, 256), np.float32)
    nothing = np.empty((0, M, 256), np.float32)
    span = np.empty(2, np.float32)
    unit = np.full(1, per, np.float32)
    table = np.zeros(M * 256, np.uint8)
    chosen = np.zeros(GROUP, np.int64)
    masks = np.zeros(GROUP, np.uint64)
    room = k + k // 4 + 4
    kept = np.empty(room + _TOGETHER + 64 * GROUP, np.float32)
    names = np.empty(kept.shape[0], np.int64)
    places = np.empty(_TOGETHER + 64 * GROUP, np.int64)
    sums = np.empty(places.shape[0] + 4, np.float32)
    for q in range(tables.shape[0]):
        size = 0
        most_score = np.float32(np.inf)
        floor = 0.0
        reach = 0.0
        for m in range(M):
            measure(tables, numbers, numbers, span, (q * M + m) * 256, 0, 0, 256, 0)
            stepped(numbers, span, unit, mine, m * 256, 256)
            floor += np.float64(span[0])
            reach += np.float64(span[1])
        for p in range(probes.shape[1]):
            which = probes[q, p]
            if which < 0:
                continue
            i = start[which]
            end = start[which + 1]
            following = probes[q, p + 1] if p + 1 < probes.shape[1] else -1
            begin, more = np.int64(0), np.int64(1)
            if following >= 0 and start[following] < start[following + 1]:
                begin, more = order[start[following]], start[following + 1] - start[following]
            following = max(following, 0)
            base = np.float64(bias[q, p]) + floor + spans[which, 0]
            slack = (abs(np.float64(bias[q, p])) + reach + spans[which, 1]) * (1.01 * (M + 4) * 2.0**-24) + 1e-37
            finite = per > 0 and slack < 1e30  # NaN is not, either
            limit = np.int64(-1)
            scale = 0.0
            noted, asked, summed = 0, 0, False
            while i < end or noted > 0:
                if i >= end or noted >= _TOGETHER or size < k <= size + noted:
                    few = size < k
                    asked += noted
                    if asked > _FEW and not summed:
                        _added(tables, terms, q, which, numbers)
                        summed = True
                    if summed:
                        size = _settle(numbers, nothing, 0, 0, bias[q, p], blocks, ids, places, noted, sums, most_score,
                                       kept, names, size)
                    else:
                        size = _settle(tables, terms, q, which, bias[q, p], blocks, ids, places, noted, sums,
                                       most_score, kept, names, size)
                    noted = 0
                    if size >= (k if few else room):
                        most_score = _select(kept, names, size, k)
                        limit = np.int64(-1)
                        size = k
                    continue
                if limit < 0 and most_score < np.inf and finite:
                    budget = np.float64(most_score) - base + slack
                    if budget < 0:
                        i = end
                        continue
                    if budget * scale < 0.7 * target and budget < 1e30:
                        factor = np.int64(min(target / max(budget, 1e-30) / per * 65536.0, 65535.0))
                        scale = factor * per / 65536.0
                        combine(mine, steps, table, blocks, which * M * 256, following * M * 256,
                                begin * M * 64, more * M * 64, factor, M * 8)
                    if scale > 0:
                        limit = np.int64(min(budget * scale * (1 + 1e-9) + 0.01 * M * scale / per, np.float64(most)))
                if limit < 0:
                    b = order[i]
                    i += 1
                    if live[b] == 0:
                        continue
                    chosen[0] = b
                    masks[0] = live[b]
                    count = 1
                else:
                    count = 0
                    while i < end and count < GROUP:
                        b = order[i]
                        i += 1
                        chosen[count] = b
                        if live[b] != 0:
                            count += 1
                    for g in range(count, GROUP):
                        chosen[g] = chosen[0]
                    if long:
                        hit = bytes_long(blocks, table, live, chosen, masks, M, limit)
                    else:
                        hit = bytes_short(blocks, table, live, chosen, masks, M, limit)
                    if hit == 0:
                        continue
                for g in range(count):
                    left = masks[g]
                    first_place = 64 * chosen[g]
                    while left != 0:
                        places[noted] = first_place + lowest(left)
                        left &= left - np.uint64(1)
                        noted += 1
        if size > k:
            _select(kept, names, size, k)
            size = k
        for j in range(size):
            distances[q, j] = kept[j]
            found[q, j] = names[j]
        _sort(distances[q], found[q], size)


def _level(level: str) -> dict[str, Any] | None:
    scan_ir = _scan_ir.intrinsics(level)
    if scan_ir is None:
        return None
    return {**{name: scan_ir[name] for name in ("bytes_short", "bytes_long", "lowest", "measure", "GROUP")},
            "LONG": 32,
            "stepped": simd.intrinsic(_stepped, ("row", "span", "unit", "mine"), ("place", "count")),
            "combine": simd.intrinsic(_combine, ("mine", "steps", "table", "blocks"),
                                      ("at", "next", "block", "bytes", "factor", "count"))}


def _stepped(builder: Any, v: dict[str, Any]) -> None:
    """Emit: of ``count`` numbers (a multiple of 16) the steps min(32767, floor((x − low) · unit))."""
    b, w = builder, simd.Vectors(builder, 16)
    low, unit = w.splat(b.load(v["span"])), w.splat(b.load(v["unit"]))
    with w.loop(b.lshr(v["count"], w.index(4))) as i:
        at = b.mul(i, w.index(16))
        x = w.least(b.fmul(b.fsub(w.load(v["row"], at), low), unit), w.constant(float(_MOST)))
        steps = b.trunc(b.fptosi(x, w.itype), w.ir.VectorType(w.ir.IntType(16), 16))
        b.store(steps, b.bitcast(w.at(v["mine"], b.add(v["place"], at)), steps.type.as_pointer())).align = 2


def _combine(builder: Any, v: dict[str, Any]) -> None:
    """Emit: bytes min(255, (mine + steps) · factor >> 16), 32 at a time; ask for the next list's steps and codes."""
    b, w = builder, simd.Vectors(builder, 32)
    ir = w.ir
    words, wide = (ir.VectorType(ir.IntType(size), 32) for size in (16, 32))
    factor = b.zext(w.splat(b.trunc(v["factor"], ir.IntType(16))), wide)

    def load(pointer: Any, at: Any) -> Any:
        value = b.load(b.bitcast(w.at(pointer, at), words.as_pointer()))
        value.align = 2
        return value
    with w.loop(v["count"]) as i:
        at = b.mul(i, w.index(32))
        total = b.add(load(v["mine"], at), load(v["steps"], b.add(v["at"], at)))
        high = b.trunc(b.lshr(b.mul(b.zext(total, wide), factor), ir.Constant(wide, [16] * 32)), words)
        limit = ir.Constant(words, [255] * 32)
        steps = b.trunc(b.select(b.icmp_unsigned("<", high, limit), high, limit), ir.VectorType(ir.IntType(8), 32))
        b.store(steps, b.bitcast(w.at(v["table"], at), steps.type.as_pointer())).align = 1
        w.prefetch(b.bitcast(w.at(v["steps"], b.add(v["next"], at)), ir.IntType(8).as_pointer()))
        for line in range(2):
            at = b.add(b.mul(i, w.index(128)), w.index(64 * line))
            at = b.select(b.icmp_signed("<", at, v["bytes"]), at, w.index(0))
            w.prefetch(w.at(v["blocks"], b.add(v["block"], at)))


@kernel("f4:3 f4:3 u2:3 f8:2 f8 f4:2 i8:2 i8:1 i8:1 u1:3 i8:2 u8:1 f4:2w i8:2w", twin=_twin, work=_work,
        helpers=(_score_block, _settle, _added, _sift_down, _push, _parted, _select, _sort),
        tiled=(_tiled, _level))
def terms_search(tables, terms, steps, spans, per, bias, probes, start, order, blocks, ids, live, distances, found):
    """Write the k best (scores, ids), both (nq, k), of the live codes of the probed lists, padded by +inf and −1."""
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
                _score_block(tables, terms, q, which, bias[q, p], blocks, b, scores, row)
                for slot in range(64):
                    if (live[b] >> np.uint64(slot)) & np.uint64(1):
                        size = _push(distances[q], found[q], size, scores[slot], ids[b, slot])
        _sort(distances[q], found[q], size)


def topk(tables: Float, terms: Terms, bias: Float, probes: Ids, start: Ids, order: Ids, blocks: Codes, ids: Ids,
         live: NDArray[np.uint64], k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return what ``scan.topk_lists`` does for ``terms.values``: of tables (nq, M, 256), and codes of M bytes."""
    scan._fit_blocks(tables, blocks, ids, live)
    scan._fit_lists(tables, terms.values, bias, probes, start, order, blocks)

    def part(a: int, b: int) -> tuple[Float, Ids]:
        distances, found = np.empty((b - a, k), np.float32), np.empty((b - a, k), np.int64)
        terms_search(tables[a:b], terms.values, terms.steps, terms.spans, terms.per, bias[a:b], probes[a:b], start,
                     order, blocks, ids, live, distances, found)
        return distances, found
    return scan._joined(run_blocks(part, len(tables), _QUERIES, threads), k)
