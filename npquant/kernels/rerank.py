"""The best among a few stored vectors for each query: candidates of a first search, told by their rows.

A score is a sum over the dimensions in their order, each multiply and each add rounded by itself, as everywhere:
squared differences, or negated inner products. What is stored is float32, or bytes that stand for
``low + byte · step``. Such a sum waits for itself at each step, so compiled code first takes all of them sixteen
dimensions at a time, in another order; only what could then be among the k best is summed in the fixed one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels import simd
from npquant.kernels._jit import kernel
from npquant.kernels._pool import run_blocks
from npquant.kernels.scan import smallest

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Ids = NDArray[np.int64]

_QUERIES = 16  # queries handed to one task
_AHEAD = 8  # candidates whose rows are asked for before they are read
_LANES = 16  # LLVM splits such vectors where registers are narrower

# What a SIMD level puts in their place where it compiles the wide code below.
float_squares: Any = None
float_products: Any = None
grid_squares: Any = None
grid_products: Any = None
ask: Any = None


def _work(queries: Float, floats: Float, grid: Bytes, low: Float, step: Float, slots: Ids, *_: object) -> int:
    return int(slots.size * queries.shape[1])


def _rerank_twin(queries: Float, floats: Float, grid: Bytes, low: Float, step: Float, slots: Ids, ids: Ids,
                 product: int, distances: Float, found: Ids) -> None:
    scores = np.zeros(slots.shape, np.float32)
    for j in range(queries.shape[1]):
        a = queries[:, j, np.newaxis]
        v = floats[slots, j] if len(floats) else grid[slots, j].astype(np.float32) * step[j] + low[j]
        if product:
            scores -= a * v
        else:
            t = a - v
            scores += t * t
    k = distances.shape[1]
    for q, row in enumerate(scores):
        there = np.flatnonzero(slots[q] >= 0)
        best, names = smallest(row[there], ids[q, there], k)
        distances[q, :len(best)], found[q, :len(best)] = best, names


def _value(floats, grid, low, step, row, j):
    if floats.shape[0]:
        return floats[row, j]
    return np.float32(grid[row, j]) * step[j] + low[j]


def _limit(near, count, least):
    """Return the largest of the smallest of ``near``, as many as ``least`` holds: a heap with the largest on top."""
    k = least.shape[0]
    for i in range(k):
        least[i] = np.float32(np.inf)
    for i in range(count):
        value = near[i]
        if value >= least[0]:
            continue
        at = 0
        while 2 * at + 1 < k:
            below = 2 * at + 1
            if below + 1 < k and least[below + 1] > least[below]:
                below += 1
            if value >= least[below]:
                break
            least[at] = least[below]
            at = below
        least[at] = value
    return least[0]


def _exact(queries, q, floats, grid, low, step, row, product):
    """Return the score of one row, in the fixed order."""
    score = np.float32(0)
    for j in range(queries.shape[1]):
        a, v = queries[q, j], _value(floats, grid, low, step, row, j)
        if product:
            score -= a * v
        else:
            t = a - v
            score += t * t
    return score


def _exact_four(queries, q, floats, grid, low, step, rows, at, product, scores):
    """Write the scores of four rows, in the fixed order, side by side: each waits for itself at every step."""
    r0, r1, r2, r3 = rows[at], rows[at + 1], rows[at + 2], rows[at + 3]
    s0 = s1 = s2 = s3 = np.float32(0)
    for j in range(queries.shape[1]):
        a = queries[q, j]
        v0, v1 = _value(floats, grid, low, step, r0, j), _value(floats, grid, low, step, r1, j)
        v2, v3 = _value(floats, grid, low, step, r2, j), _value(floats, grid, low, step, r3, j)
        if product:
            s0 -= a * v0
            s1 -= a * v1
            s2 -= a * v2
            s3 -= a * v3
        else:
            v0, v1, v2, v3 = a - v0, a - v1, a - v2, a - v3
            s0 += v0 * v0
            s1 += v1 * v1
            s2 += v2 * v2
            s3 += v3 * v3
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = s0, s1, s2, s3


def _insert(distances, found, q, size, score, name):
    """Put (score, name) where it belongs among the ``size`` best so far; return how many there are then."""
    k = distances.shape[1]
    if size == k and (score > distances[q, k - 1] or (score == distances[q, k - 1] and name > found[q, k - 1])):
        return size
    at = min(size, k - 1)
    while at > 0 and (score < distances[q, at - 1] or (score == distances[q, at - 1] and name < found[q, at - 1])):
        distances[q, at] = distances[q, at - 1]
        found[q, at] = found[q, at - 1]
        at -= 1
    distances[q, at] = score
    found[q, at] = name
    return min(size + 1, k)


def _rerank_wide(queries, floats, grid, low, step, slots, ids, product, distances, found):
    """Bound all scores from below by sums in another order, and take those that pass in the fixed one.

    Two orders of a sum of n products differ by at most 2 (n + 3) u Σ|products|, u = 2⁻²⁴ (and, where products
    underflow, by n smallest numbers); a score minus that is ``near``, and a score plus that is ``far``. What is
    ``near`` beyond the k-th smallest ``far`` is not among the k best.
    """
    d = queries.shape[1]
    whole = d - d % 16
    slack = np.float32(2.1 * (d + 4) * 2.0**-24)
    tiny = np.float32(4 * (d + 4) * 2.0**-149)
    near = np.empty(slots.shape[1], np.float32)
    far = np.empty(slots.shape[1], np.float32)
    least = np.empty(distances.shape[1], np.float32)
    sums = np.empty(2, np.float32)
    rows = np.empty(slots.shape[1] + 3, np.int64)
    called = np.empty(slots.shape[1], np.int64)
    scores = np.empty(slots.shape[1] + 3, np.float32)
    following = slots.reshape(-1)
    for q in range(slots.shape[0]):
        for i in range(slots.shape[1]):
            row = slots[q, i]
            after = min(q * slots.shape[1] + i + _AHEAD, following.shape[0] - 1)
            after = max(following[after], np.int64(0))
            if floats.shape[0]:
                ask(floats, after * d, 4 * d)
            else:
                ask(grid, after * d, d)
            if row < 0:
                near[i] = far[i] = np.inf
                continue
            if floats.shape[0]:
                if product:
                    float_products(queries, floats, low, step, sums, q * d, row * d, whole)
                else:
                    float_squares(queries, floats, low, step, sums, q * d, row * d, whole)
            else:
                if product:
                    grid_products(queries, grid, low, step, sums, q * d, row * d, whole)
                else:
                    grid_squares(queries, grid, low, step, sums, q * d, row * d, whole)
            score, size = sums[0], sums[1]
            for j in range(whole, d):
                a, v = queries[q, j], _value(floats, grid, low, step, row, j)
                term = -(a * v) if product else (a - v) * (a - v)
                score += term
                size += abs(term)
            reach = slack * size + tiny
            near[i] = score - reach
            far[i] = score + reach
        limit = _limit(far, slots.shape[1], least)
        passed = 0
        for i in range(slots.shape[1]):
            if slots[q, i] >= 0 and near[i] <= limit:
                rows[passed] = slots[q, i]
                called[passed] = ids[q, i]
                passed += 1
        for i in range(passed, min(passed + 3, rows.shape[0])):
            rows[i] = rows[0]
        size = 0
        for i in range(0, passed, 4):
            _exact_four(queries, q, floats, grid, low, step, rows, i, product, scores)
        for i in range(passed):
            size = _insert(distances, found, q, size, scores[i], called[i])


def _sums(bytes_: bool, product: bool, builder: Any, v: dict[str, Any]) -> None:
    """Emit: the sum of the terms of one row over ``count`` dimensions, and of their magnitudes."""
    b, w = builder, simd.Vectors(builder, _LANES)
    score = w.variable(w.constant(0.0))
    size = w.variable(w.constant(0.0)) if product else score  # squares are their own magnitudes
    few = w.ir.VectorType(w.ir.IntType(8), _LANES)
    with w.loop(b.sdiv(v["count"], w.index(_LANES))) as chunk:
        j = b.mul(chunk, w.index(_LANES))
        a = w.load(v["queries"], b.add(v["query"], j))
        at = b.add(v["row"], j)
        if bytes_:
            raw = b.load(b.bitcast(w.at(v["rows"], at), few.as_pointer()))
            raw.align = 1
            x = b.fadd(b.fmul(b.uitofp(raw, w.type), w.load(v["step"], j)), w.load(v["low"], j))
        else:
            x = w.load(v["rows"], at)
        if product:
            term = b.fsub(w.constant(-0.0), b.fmul(a, x))
            magnitude = b.bitcast(b.and_(b.bitcast(term, w.itype), w.ir.Constant(w.itype, [0x7FFFFFFF] * _LANES)),
                                  w.type)
            w.set(size, b.fadd(w.get(size), magnitude))
        else:
            t = b.fsub(a, x)
            term = b.fmul(t, t)
        w.set(score, b.fadd(w.get(score), term))
    totals = {}
    for place in (score, size):
        if place not in totals:
            total, half = w.get(place), _LANES // 2
            while half:
                total = b.fadd(total, w.shuffle(total, total, [(lane + half) % _LANES for lane in range(_LANES)]))
                half //= 2
            totals[place] = b.extract_element(total, w.i32(0))
    for i, place in enumerate((score, size)):
        b.store(totals[place], w.at(v["sums"], w.index(i)))


def _ask(builder: Any, v: dict[str, Any]) -> None:
    """Emit: ask for the lines of ``count`` bytes of a row."""
    b, w = builder, simd.Vectors(builder, _LANES)
    first = b.bitcast(w.at(v["rows"], v["row"]), w.ir.IntType(8).as_pointer())
    with w.loop(b.udiv(b.add(v["count"], w.index(63)), w.index(64))) as line:
        w.prefetch(w.at(first, b.mul(line, w.index(64))), 3)


def _wide(level: str) -> dict[str, Any] | None:
    if level == "generic":
        return None
    sums = {f"{kind}_{what}": simd.intrinsic(partial(_sums, kind == "grid", what == "products"), (
        "queries", "rows", "low", "step", "sums"), ("query", "row", "count"))
        for kind in ("float", "grid") for what in ("squares", "products")}
    return {**sums, "ask": simd.intrinsic(_ask, ("rows",), ("row", "count"))}


@kernel("f4:2 f4:2 u1:2 f4:1 f4:1 i8:2 i8:2 i8 f4:2w i8:2w", twin=_rerank_twin, work=_work,
        helpers=(_value, _limit, _exact, _exact_four, _insert), tiled=(_rerank_wide, _wide))
def rerank(queries, floats, grid, low, step, slots, ids, product, distances, found):
    """Write the k best of rows ``slots`` (nq, c), called ``ids`` (nq, c), into ``distances`` and ``found`` (nq, k).

    The rows are those of ``floats`` (n, d), or, where it has none, of ``grid`` (n, d). Slots of −1 are left out;
    ``distances`` and ``found`` keep what they had where there are fewer than k.
    """
    for q in range(slots.shape[0]):
        size = 0
        for i in range(slots.shape[1]):
            if slots[q, i] >= 0:
                score = _exact(queries, q, floats, grid, low, step, slots[q, i], product)
                size = _insert(distances, found, q, size, score, ids[q, i])


def topk(queries: Float, rows: Float | Bytes, slots: Ids, ids: Ids, k: int, product: bool, threads: int | None,
         grid: tuple[Float, Float] | None = None) -> tuple[Float, Ids]:
    """Return the k best (scores, ids), both (nq, k), of rows ``slots`` (nq, c) of ``rows``, called ``ids``.

    ``rows`` are float32 (n, d), or bytes (n, d) of a ``grid``, (low, step), both (d,) float32. A slot of −1 is
    nothing; missing results are +inf and −1. Ordered by (score, id).
    """
    # Compiled code reads where it is told to: whatever went wrong before, it must not read beyond an array.
    if rows.shape[1] != queries.shape[1] or len(slots) != len(queries) or slots.shape != ids.shape or (
            slots.size and not -1 <= slots.min() <= slots.max() < len(rows)):
        raise InvalidInputError(f"rows of shape {rows.shape} do not fit queries {queries.shape} and slots "
                                f"{slots.shape}.")
    distances = np.full((len(queries), k), np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    none = np.empty(0, np.float32)
    floats = rows if grid is None else np.empty((0, 0), np.float32)
    bytes_ = np.empty((0, 0), np.uint8) if grid is None else rows
    low, step = grid or (none, none)

    def block(start: int, stop: int) -> None:
        part = slice(start, stop)
        rerank(queries[part], floats, bytes_, low, step, slots[part], ids[part], int(product), distances[part],
               found[part])
    if len(rows):
        run_blocks(block, len(queries), _QUERIES, threads)
    return distances, found
