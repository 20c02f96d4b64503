"""Exact nearest neighbours among plain vectors: fused multiply-adds pre-select, the fixed order decides.

The k best of each query by (score, id) are kept, where a score is that of ``kernels.nearest``: a sum over the
dimensions one by one, each step rounded. Vectors come in any number of blocks. To the pre-selection belong a score of
another order of roundings and a proven bound on the difference:

Let q and b be a query and a vector less a centre (any centre: it cancels), N = ‖q‖ + ‖b‖ and u = 2⁻²⁴. For squared
distances D the pre-score is s = ½‖b‖² − ⟨q, b⟩, which in the reals is ½(D − ‖q‖²). D in the fixed order is off by
(d + 2) u N² (relatively, as all its terms are positive), half the norm and the product together by (d + 1) u N², the
centring by 2 u N² and ‖q‖² by u N²; so s and ½(D − ‖q‖²) are within 1.5 (d + 4) u N². For inner products there is
no centre, s = −⟨q, b⟩, and the two differ by 2 (d + 1) u ‖q‖‖b‖. Both times the slack is 2.1 (d + 10) u of that
size: what is more holds the second-order terms, the roundings of the size itself, of sums of score and slack, and of
limits (those beyond N² decide nothing). Where products underflow, each adds half of the smallest number: the rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels import simd
from npquant.kernels._jit import kernel
from npquant.kernels._order import _sift_down
from npquant.kernels._pool import available_threads, run_blocks

Float = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NOBODY = np.iinfo(np.int64).max  # the id of a place not taken; the last of all ids
_HUGE = 5e37  # from such a size on nothing is pre-selected
_NONE = np.float32(1e38)  # above all pre-scores, and below that of a row that is not there
_ABSENT = np.float32(3e38)
_ROWS = 1 << 16  # rows of a task where there are more threads than blocks of queries
_TWIN_ROWS = 4096
_TWIN_PAIRS = 1 << 18

# What a SIMD level puts in their place.
LANES = POINTS = 0
WIDE = 64  # rows of a panel
tile: Any = None
turn: Any = None
summed: Any = None


# ------------------------------------------------------------------------------------- twins, by GEMM


def _near(queries: Float, centre: Float, base: Float, product: bool, worst: NDArray[np.floating[Any]],
          k: int | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return pairs (query, row): all whose score may be at most ``worst`` (nq,) and, of k, among the k best."""
    with np.errstate(over="ignore", invalid="ignore"):
        q, b = queries - centre, base - centre
        squares = np.einsum("ij,ij->i", q, q, dtype=np.float64)
        norms = np.einsum("ij,ij->i", b, b, dtype=np.float64)
        scores = q @ b.T
        np.negative(scores, out=scores)
        if not product:
            scores += (norms / 2).astype(np.float32)
        length, reach = np.sqrt(squares), np.sqrt(norms.max(initial=0.0))
        d, size = queries.shape[1], (length + reach) ** 2
        slack = 2.1 * (d + 10) * 2.0**-24 * (length * reach if product else size) + 8 * (d + 4) * 2.0**-149
        limit = worst.astype(np.float64) if product else (worst.astype(np.float64) - squares) / 2
        if k is not None and k < len(base):
            limit = np.fmin(limit, np.partition(scores, k - 1, axis=1)[:, k - 1] + slack)
        q_near, row = np.nonzero((scores <= (limit + slack)[:, None]) | ~(size < _HUGE)[:, None])
        return q_near, row


def _exact(queries: Float, base: Float, q: NDArray[np.intp], row: NDArray[np.intp], product: bool) -> Float:
    """Return the scores of pairs of a query and a row, in the fixed order."""
    out = np.zeros(len(q), np.float32)
    for start in range(0, len(q), _TWIN_PAIRS):
        piece = slice(start, start + _TWIN_PAIRS)
        for j in range(base.shape[1]):
            if product:
                out[piece] += queries[q[piece], j] * base[row[piece], j]
            else:
                term = queries[q[piece], j] - base[row[piece], j]
                out[piece] += term * term
    return np.negative(out) if product else out


def _select_twin(queries: Float, centre: Float, base: Float, ids: Ids, live: Mask, product: bool, best: Float,
                 found: Ids) -> None:
    nq, k = best.shape
    for start in range(0, len(base), _TWIN_ROWS):
        rows = start + np.flatnonzero(live[start:start + _TWIN_ROWS])
        part = base[rows]
        q, row = _near(queries, centre, part, product, best[:, -1], k)
        score = np.concatenate([best.ravel(), _exact(queries, part, q, row, product)])
        name = np.concatenate([found.ravel(), ids[rows[row]]])
        q = np.concatenate([np.repeat(np.arange(nq), k), q])
        order = np.lexsort((name, score, q))
        first = np.searchsorted(q[order], np.arange(nq))
        kept = order[first[:, None] + np.arange(k)]
        best[:], found[:] = score[kept], name[kept]


# ------------------------------------------------------------------------------------- compiled


def _ones(word):
    """Return the number of set bits; LLVM knows this sequence, and puts one instruction in its place."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


def _reverse(scores, names):
    """Reverse the order: from the worst to the best is a heap."""
    k = scores.shape[0]
    for i in range(k // 2):
        scores[i], scores[k - 1 - i] = scores[k - 1 - i], scores[i]
        names[i], names[k - 1 - i] = names[k - 1 - i], names[i]


def _sort(scores, names):
    """Bring a heap in order, the best first."""
    for last in range(scores.shape[0] - 1, 0, -1):  # the worst goes last, again and again
        score = scores[last]
        name = names[last]
        scores[last] = scores[0]
        names[last] = names[0]
        _sift_down(scores, names, last, score, name)


def _offer(scores, names, score, name):
    """Put (score, name) in the place of the worst of a heap, if it is better."""
    if score < scores[0] or (score == scores[0] and name < names[0]):
        _sift_down(scores, names, scores.shape[0], score, name)


def _rescore(query, base, ids, rows, count, product, best, found):
    """Offer some rows, with their scores in the fixed order; four at a time, so that they need not wait for sums."""
    d = query.shape[0]
    for c in range(0, count, 4):
        r0 = rows[c]
        r1 = rows[min(c + 1, count - 1)]
        r2 = rows[min(c + 2, count - 1)]
        r3 = rows[min(c + 3, count - 1)]
        s0 = s1 = s2 = s3 = np.float32(0)
        if product:
            for j in range(d):
                s0 += query[j] * base[r0, j]
                s1 += query[j] * base[r1, j]
                s2 += query[j] * base[r2, j]
                s3 += query[j] * base[r3, j]
            s0, s1, s2, s3 = -s0, -s1, -s2, -s3
        else:
            for j in range(d):
                t0 = query[j] - base[r0, j]
                t1 = query[j] - base[r1, j]
                t2 = query[j] - base[r2, j]
                t3 = query[j] - base[r3, j]
                s0 += t0 * t0
                s1 += t1 * t1
                s2 += t2 * t2
                s3 += t3 * t3
        _offer(best, found, s0, ids[r0])
        if c + 1 < count:
            _offer(best, found, s1, ids[r1])
        if c + 2 < count:
            _offer(best, found, s2, ids[r2])
        if c + 3 < count:
            _offer(best, found, s3, ids[r3])


def _kth(values, size, k):
    """Return the k-th smallest of ``values[:size]``, k = 1 … size, which change places."""
    low = 0
    high = size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i = low
        j = high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return values[k - 1]


def _bound(worst, square, product):
    """Return what a row's pre-score is at most, but for its slack, if it is to be better than the worst of a heap."""
    limit = np.float64(worst)
    if not product:
        limit = 0.5 * (limit - square)
    return np.float32(min(limit, np.float64(_NONE)))


def _select_tiled(queries, centre, base, ids, live, product, best, found):
    """Pre-select in tiles of POINTS queries × WIDE rows.

    WIDE rows, centred, negated and transposed, stay in the nearest cache while all queries pass over them. What
    passes a query's limit is kept as an interval of pre-scores, and when there is no more room for such, the k-th
    smallest upper end is the new limit, and what lies above it is forgotten. The rest are scored at the end.
    """
    nq, d = queries.shape
    n = base.shape[0]
    k = best.shape[1]
    groups = (nq + POINTS - 1) // POINTS
    room = min(2 * k, n) + 16
    unit = np.float32(2.1 * (d + 10) * 2.0**-24)
    tiny = np.float32(8 * (d + 4) * 2.0**-149)
    none = np.float32(2 * (d + 4) * 2.0**-149)  # what a sum of squares may have lost

    q = np.zeros(groups * POINTS * d, np.float32)
    length = np.zeros(groups * POINTS, np.float32)
    square = np.zeros(nq, np.float64)
    bound = np.full(groups * POINTS, -_ABSENT, np.float32)
    limit = np.empty(groups * POINTS, np.float32)
    longest = np.float32(0)
    for i in range(nq):
        total = 0.0
        for j in range(d):
            c = queries[i, j] - centre[j]
            q[(i - i % POINTS) * d + j * POINTS + i % POINTS] = c  # as a tile reads them
            total += np.float64(c) * np.float64(c)
        square[i] = total
        length[i] = np.sqrt(total)
        longest = max(longest, length[i])
        _reverse(best[i], found[i])
        bound[i] = _bound(best[i, 0], total, product)

    held = np.zeros(nq, np.int64)
    low = np.empty((nq, room), np.float32)
    high = np.empty((nq, room), np.float32)
    rows = np.empty((nq, room), np.int64)
    spare = np.empty(room, np.float32)
    # A load across two lines of the cache costs two.
    memory = np.zeros(WIDE * (d + 2 + POINTS) + 16, np.float32)
    first = np.int64((~np.uint64(memory.ctypes.data) + np.uint64(1)) & np.uint64(63)) // 4
    packed = memory[first:first + WIDE * d]
    norm = memory[first + WIDE * d:first + WIDE * (d + 1)]
    half = memory[first + WIDE * (d + 1):first + WIDE * (d + 2)]
    scores = memory[first + WIDE * (d + 2):first + WIDE * (d + 2 + POINTS)]
    hits = np.zeros(POINTS + 1, np.uint64)
    for begin in range(0, n, WIDE):
        count = min(WIDE, n - begin)
        if count == WIDE and d >= LANES:
            turn(base, centre, packed, begin * d, d)
        else:
            packed[:] = np.float32(0)
            for i in range(count):
                for j in range(d):
                    packed[j * WIDE + i] = centre[j] - base[begin + i, j]
        summed(packed, norm, d)
        reach = np.float32(0)
        for i in range(WIDE):
            there = i < count and live[begin + i]
            if there and not norm[i] <= reach:  # NaN is the largest
                reach = norm[i]
            half[i] = _ABSENT if not there else np.float32(0) if product else norm[i] * np.float32(0.5)
        reach = np.sqrt(reach + none)
        size = np.float64(longest) + reach
        if not size * size < _HUGE:
            for i in range(count):
                if live[begin + i]:
                    rows[0, 0] = begin + i
                    for p in range(nq):
                        _rescore(queries[p], base, ids, rows[0], np.int64(1), product, best[p], found[p])
            continue
        for p in range(groups * POINTS):
            ends = length[p] * reach if product else (length[p] + reach) * (length[p] + reach)
            limit[p] = bound[p] + (unit * ends + tiny)
        for g in range(groups):
            tile(q, packed, half, limit, scores, hits, d, g * POINTS)
            if hits[POINTS] == np.uint64(0):
                continue
            for p in range(POINTS):
                mask = hits[p]
                at = g * POINTS + p
                ends = length[at] * reach if product else (length[at] + reach) * (length[at] + reach)
                slack = unit * ends + tiny
                while mask != np.uint64(0):
                    lowest = mask & (~mask + np.uint64(1))
                    mask ^= lowest
                    i = _ones(lowest - np.uint64(1))
                    size = held[at]
                    if size == room:
                        for c in range(room):  # assigned whole, numba would compile its formatting of errors: 2 s
                            spare[c] = high[at, c]
                        bound[at] = min(bound[at], _kth(spare, size, k))
                        size = 0
                        for c in range(room):
                            if low[at, c] <= bound[at]:
                                low[at, size] = low[at, c]
                                high[at, size] = high[at, c]
                                rows[at, size] = rows[at, c]
                                size += 1
                        if size == room:  # all so near to each other that only their scores decide
                            _rescore(queries[at], base, ids, rows[at], size, product, best[at], found[at])
                            bound[at] = min(bound[at], _bound(best[at, 0], square[at], product))
                            size = 0
                        limit[at] = bound[at] + slack
                    low[at, size] = scores[p * WIDE + i] - slack
                    high[at, size] = scores[p * WIDE + i] + slack
                    rows[at, size] = begin + i
                    held[at] = size + 1
    for i in range(nq):
        _rescore(queries[i], base, ids, rows[i], held[i], product, best[i], found[i])
        _sort(best[i], found[i])


# Lanes, queries and vectors of a tile: queries · vectors accumulators, with the rows, fill the registers.
_SHAPES = {"avx512": (16, 6, 4), "avx2": (8, 6, 2), "neon": (4, 6, 4)}


def _level(level: str) -> dict[str, Any] | None:
    if level not in _SHAPES:
        return None
    lanes, points, vectors = _SHAPES[level]
    tile = simd.intrinsic(partial(_scores_tile, lanes, points, vectors), (
        "queries", "packed", "half", "limit", "scores", "hits"), ("d", "point"))
    turn = simd.intrinsic(partial(_turned, lanes, vectors), ("base", "centre", "packed"), ("first", "d"))
    summed = simd.intrinsic(partial(_summed, lanes, vectors), ("packed", "norm"), ("d",))
    return {"LANES": lanes, "POINTS": points, "WIDE": lanes * vectors, "tile": tile, "turn": turn, "summed": summed}


def _scores_tile(lanes: int, points: int, vectors: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: pre-scores of ``points`` queries and a panel of rows, and masks of those within the queries' limits.

    Of ``hits`` the last says whether there is any; only then the scores and the other masks are written.
    """
    b, w = builder, simd.Vectors(builder, lanes)
    wide = w.index(lanes * vectors)
    queries = w.at(v["queries"], b.mul(v["point"], v["d"]))
    halves = [w.load(v["half"], w.index(i * lanes)) for i in range(vectors)]
    sums = [[w.variable(start) for start in halves] for _ in range(points)]
    with w.loop(v["d"]) as j:
        at = b.mul(j, wide)
        rows = [w.load(v["packed"], b.add(at, w.index(i * lanes))) for i in range(vectors)]
        for p in range(points):
            x = w.splat(b.load(w.at(queries, b.add(b.mul(j, w.index(points)), w.index(p)))))
            for i in range(vectors):
                w.set(sums[p][i], w.fma(x, rows[i], w.get(sums[p][i])))
    values = [[w.get(place) for place in line] for line in sums]
    limits = [w.splat(b.load(w.at(v["limit"], b.add(v["point"], w.index(p))))) for p in range(points)]
    some = None
    for p in range(points):
        least = values[p][0]
        for other in values[p][1:]:
            least = w.least(other, least)
        near = b.fcmp_ordered("<=", least, limits[p])
        some = near if some is None else b.or_(some, near)
    bits = w.ir.IntType(lanes)
    hit = b.icmp_unsigned("!=", b.bitcast(some, bits), bits(0))
    b.store(b.zext(hit, w.i64), w.at(v["hits"], w.index(points)))
    with b.if_then(hit, likely=False):
        for p in range(points):
            mask = w.index(0)
            for i in range(vectors):
                w.store(values[p][i], v["scores"], w.index((p * vectors + i) * lanes))
                near = b.zext(b.bitcast(b.fcmp_ordered("<=", values[p][i], limits[p]), bits), w.i64)
                mask = b.or_(mask, b.shl(near, w.index(i * lanes)))
            b.store(mask, w.at(v["hits"], w.index(p)))


def _turned(lanes: int, vectors: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: write ``centre`` less a panel of rows, transposed, into ``packed`` (d, panel); d is at least ``lanes``.

    Putting the rows of the two halves of a square side by side, lane by lane, turns the bits of (row, lane) by one
    place; after as many times as a lane has bits the two have changed places.
    """
    from numba.core import cgutils
    b, w = builder, simd.Vectors(builder, lanes)
    wide, width = w.index(lanes * vectors), w.index(lanes)
    prefetch = cgutils.get_or_insert_function(b.module, w.ir.FunctionType(w.ir.VoidType(), [
        w.ir.IntType(8).as_pointer(), *[w.i32] * 3]), "llvm.prefetch")
    last = b.sub(v["d"], width)  # the last square may repeat some dimensions
    order = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes)) for lane in pair]
    with w.loop(w.index(vectors)) as group:
        column = b.mul(group, width)
        first = b.add(v["first"], b.mul(column, v["d"]))
        with w.loop(b.udiv(b.add(v["d"], w.index(lanes - 1)), width)) as square:
            begin = b.mul(square, width)
            j = b.select(b.icmp_unsigned("<", begin, last), begin, last)
            middle = w.load(v["centre"], j)
            places = [b.add(b.add(first, j), b.mul(v["d"], w.index(row))) for row in range(lanes)]
            rows = [b.fsub(middle, w.load(v["base"], place)) for place in places]
            for place in places:  # one line of the cache of the next panel, in the time of this one
                ahead = b.bitcast(w.at(v["base"], b.add(place, b.mul(v["d"], wide))), w.ir.IntType(8).as_pointer())
                b.call(prefetch, [ahead, w.i32(0), w.i32(2), w.i32(1)])  # to read, into the second cache, of data
            for _ in range(lanes.bit_length() - 1):
                rows = [w.shuffle(upper, lower, half) for upper, lower in zip(rows[:lanes // 2], rows[lanes // 2:])
                        for half in (order[:lanes], order[lanes:])]
            for row in range(lanes):
                w.store(rows[row], v["packed"], b.add(b.mul(b.add(j, w.index(row)), wide), column))


def _summed(lanes: int, vectors: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: write the squared norms of a panel of rows into ``norm``."""
    b, w = builder, simd.Vectors(builder, lanes)
    sums = [w.variable(w.constant(0.0)) for _ in range(vectors)]
    with w.loop(v["d"]) as j:
        for i in range(vectors):
            c = w.load(v["packed"], b.add(b.mul(j, w.index(lanes * vectors)), w.index(i * lanes)))
            w.set(sums[i], w.fma(c, c, w.get(sums[i])))
    for i in range(vectors):
        w.store(w.get(sums[i]), v["norm"], w.index(i * lanes))


def _work(queries: Float, centre: Float, base: Float, *_: object) -> int:
    return queries.size * base.shape[0] // 50  # the twin is a GEMM


@kernel("f4:2 f4:1 f4:2 i8:1 b1:1 b1 f4:2w i8:2w", twin=_select_twin, work=_work,
        helpers=(_ones, _sift_down, _reverse, _sort, _offer, _rescore, _kth, _bound), tiled=(_select_tiled, _level))
def select(queries, centre, base, ids, live, product, best, found):
    """Merge the live of ``base`` (n, d), named ``ids`` (n,), into the k best so far of ``queries`` (nq, d).

    ``best`` and ``found`` (nq, k) are ordered by (score, id), before and after. ``centre`` (d,), of which the result
    does not depend, is near the middle of the vectors, or zeros where scores are negated inner products (``product``).
    Here all are scored in the fixed order, WIDE rows at a time, transposed.
    """
    nq, d = queries.shape
    n = base.shape[0]
    packed = np.zeros(WIDE * d, np.float32)
    scores = np.empty(WIDE, np.float32)
    for p in range(nq):
        _reverse(best[p], found[p])
    for begin in range(0, n, WIDE):
        count = min(WIDE, n - begin)
        for i in range(count):
            for j in range(d):
                packed[j * WIDE + i] = base[begin + i, j]
        for p in range(nq):
            scores[:] = np.float32(0)
            for j in range(d):
                x = queries[p, j]
                if product:
                    for i in range(WIDE):
                        scores[i] += x * packed[j * WIDE + i]
                else:
                    for i in range(WIDE):
                        t = x - packed[j * WIDE + i]
                        scores[i] += t * t
            for i in range(count):
                if live[begin + i]:
                    _offer(best[p], found[p], -scores[i] if product else scores[i], ids[begin + i])
    for p in range(nq):
        _sort(best[p], found[p])


# ------------------------------------------------------------------------------------- the interface


def _centre(queries: Float, product: bool) -> Float:
    if product or len(queries) == 0:
        return np.zeros(queries.shape[1], np.float32)
    return queries.mean(axis=0, dtype=np.float64).astype(np.float32)


class Selector:
    """The k best of all vectors shown so far to each of some queries, by (score, id): blocks come one by one.

    Scores are those of ``nearest.tables``, bit for bit: squared distances, or negated inner products where
    ``product``. They do not depend on blocks, their order, threads or SIMD levels; ids are distinct, in any order.

    Parameters
    ----------
    queries : ndarray (nq, d) float32
        At most 1e17 in size, as ``_checks`` has them, C-contiguous; not to be changed before the result is read.
    product : bool
    k : int
        At least 1.
    threads : int, optional

    Notes
    -----
    O(nq d) operations a vector at the speed of a GEMM. Memory is 12 nq k bytes, and 1 to 10 MB a thread (1.5 k KB,
    where that is more).
    """

    def __init__(self, queries: Float, product: bool, k: int, threads: int | None = None) -> None:
        nq, d = queries.shape
        self._queries, self._product, self._threads = queries, product, threads
        # Rounding grows with the distance from the centre. That of the queries is known from the start.
        self._centre = _centre(queries, product)
        self._best = np.full((nq, k), np.inf, np.float32)
        self._found = np.full((nq, k), _NOBODY, np.int64)
        # Queries that stay in a cache, with what is kept of each, while vectors pass over them.
        self._step = max(48, min(1020, (1 << 17) // d, (1 << 19) // (2 * k + 16)))

    def update(self, block: Float, ids: Ids, live: Mask | None = None) -> None:
        """Show ``block`` (n, d) float32 with its ``ids`` (n,) int64, but for rows where ``live`` (n,) is false.

        Raises
        ------
        InvalidInputError
            The shapes do not fit.
        """
        nq, k = self._best.shape
        n = len(block)
        live = np.ones(n, np.bool_) if live is None else live
        # Compiled code reads where it is told to: whatever went wrong before, it must not read beyond an array.
        if block.shape != (n, self._queries.shape[1]) or ids.shape != (n,) or live.shape != (n,):
            raise InvalidInputError(f"vectors of shape {block.shape} with ids of shape {ids.shape} and marks of shape "
                                    f"{live.shape} do not fit queries of shape {self._queries.shape}.")
        if n == 0:
            return

        def queries(start: int, stop: int) -> None:
            select(self._queries[start:stop], self._centre, block, ids, live, self._product, self._best[start:stop],
                   self._found[start:stop])

        def rows(start: int, stop: int) -> tuple[Float, Ids]:
            best, found = np.full((nq, k), np.inf, np.float32), np.full((nq, k), _NOBODY, np.int64)
            select(self._queries, self._centre, block[start:stop], ids[start:stop], live[start:stop], self._product,
                   best, found)
            return best, found
        if nq > self._step or n < 2 * _ROWS or (self._threads or available_threads()) == 1:
            run_blocks(queries, nq, self._step, self._threads)
            return
        parts = [(self._best, self._found), *run_blocks(rows, n, _ROWS, self._threads)]
        scores, names = (np.concatenate(part, axis=1) for part in zip(*parts))
        order = np.lexsort((names, scores), axis=-1)[:, :k]
        self._best, self._found = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)

    def result(self) -> tuple[Float, Ids]:
        """Return (scores, ids), both (nq, k), ordered by (score, id); +inf and −1 where there are no more vectors."""
        return self._best.copy(), np.where(self._found == _NOBODY, -1, self._found)


def neighbors(base: Float, queries: Float, k: int, threads: int | None) -> tuple[Float, Ids]:
    """Return (squared distances, rows of ``base``), both (nq, k), ordered by (distance, row); k ≤ len(base).

    O(nq n d). The distances are those of ``kernels.nearest``, bit for bit.
    """
    selector = Selector(queries, False, k, threads)
    selector.update(base, np.arange(len(base)))
    return selector.result()
