"""Beam search for sums of codewords: x ≈ C_0[i_0] + C_1[i_1] + …, one codeword of each codebook.

The score of a partial sum s is ‖x − s‖² − ‖x‖² = Σ_m (‖c_m‖² − 2⟨x, c_m⟩) + Σ_{j<m} 2⟨c_j, c_m⟩: with the inner
products of x and of all pairs of codewords at hand, an extension costs one addition for each codeword that is there
already, whatever the dimension (Babenko & Lempitsky 2014, section 3.2; Liu et al. 2015).

The arithmetic is fixed: float32; an inner product is ``(x_0 c_0 + x_1 c_1) + …`` and a score
``(((‖c‖² − (p + p)) + cross_0) + cross_1 + …) + score``, each step rounded; and of equal scores the one that comes
first in the order of (parent, codebook, codeword) wins.

The tiled code of a SIMD level does just these steps, on many codewords at once; only how the best are found is its
own. From the least score of each of some groups it takes a number that enough scores do not exceed, and sorts what
does not exceed it: a little more than is wanted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.kernels import simd
from npquant.kernels._jit import kernel

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Keys = NDArray[np.uint64]

WIDE = 64  # codewords of a panel, and scores that are looked at together

# What a SIMD level puts in their place.
POINTS = 0
several: Any = None
single: Any = None
extended: Any = None
threshold: Any = None
below: Any = None
lowest: Any = None
ranked: Any = None


# ------------------------------------------------------------------------------------- inner products


def _products_twin(x: Float, panels: Float, out: Float) -> None:
    _, n, K = out.shape
    wide = panels.shape[2]
    step = max(1, (1 << 18) // wide)
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        part = np.ascontiguousarray(x[rows].T)
        for p, panel in enumerate(panels):
            scores = np.zeros((part.shape[1], wide), np.float32)
            for column, words in zip(part, panel, strict=True):
                scores += column[:, None] * words
            m, at = divmod(p * wide, K)
            out[m, rows, at:at + wide] = scores


def _products_work(x: Float, panels: Float, out: Float) -> int:
    return x.shape[0] * panels.size


def _products_tiled(x, panels, out):
    n, d = x.shape
    M, K = out.shape[0], out.shape[2]
    if panels.shape[2] != WIDE:
        _products_plain(x, panels, out)
        return
    each = K // WIDE
    for p in range(M * each):
        to = (p // each) * n * K + p % each * WIDE
        whole = n - n % POINTS
        for i in range(0, whole, POINTS):
            several(x, panels, out, i * d, d, p * d * WIDE, to + i * K, K)
        for i in range(whole, n):
            single(x, panels, out, i * d, d, p * d * WIDE, to + i * K, K)


def _products_plain(x, panels, out):
    n, d = x.shape
    K = out.shape[2]
    wide = panels.shape[2]
    each = K // wide
    for p in range(panels.shape[0]):
        for i in range(n):
            to = out[p // each, i, p % each * wide:(p % each + 1) * wide]
            for k in range(wide):
                to[k] = 0.0
            for j in range(0, d - 3, 4):  # a sum is loaded and stored once for four
                a0, a1, a2, a3 = x[i, j], x[i, j + 1], x[i, j + 2], x[i, j + 3]
                c0, c1, c2, c3 = panels[p, j], panels[p, j + 1], panels[p, j + 2], panels[p, j + 3]
                for k in range(wide):
                    to[k] = (((to[k] + a0 * c0[k]) + a1 * c1[k]) + a2 * c2[k]) + a3 * c3[k]
            for j in range(d - d % 4, d):
                a = x[i, j]
                c = panels[p, j]
                for k in range(wide):
                    to[k] += a * c[k]


# Lanes, rows and vectors of a tile: rows · vectors accumulators, with the codewords, fill the registers.
_SHAPES = {"avx512": (16, 4, 4), "avx2": (8, 4, 2), "neon": (4, 4, 4)}


def _products_level(level: str) -> dict[str, Any] | None:
    if level not in _SHAPES:
        return None
    lanes, points, vectors = _SHAPES[level]
    names = ("x", "panels", "out"), ("row", "d", "panel", "to", "K")
    return {"POINTS": points, "several": simd.intrinsic(partial(_products_tile, lanes, points, vectors), *names),
            "single": simd.intrinsic(partial(_products_tile, lanes, 1, vectors), *names)}


def _products_tile(lanes: int, points: int, vectors: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: inner products of ``points`` rows with a panel; multiply and add are rounded each by itself."""
    b, w = builder, simd.Vectors(builder, lanes)
    rows = [w.at(v["x"], b.add(v["row"], b.mul(v["d"], w.index(p)))) for p in range(points)]
    with w.loop(w.index(WIDE // (lanes * vectors))) as part:
        first = b.mul(part, w.index(lanes * vectors))
        sums = [[w.variable(w.constant(0.0)) for _ in range(vectors)] for _ in range(points)]
        with w.loop(v["d"]) as j:
            at = b.add(b.add(v["panel"], first), b.mul(j, w.index(WIDE)))
            c = [w.load(v["panels"], b.add(at, w.index(i * lanes))) for i in range(vectors)]
            for p in range(points):
                x = w.splat(b.load(w.at(rows[p], j)))
                for i in range(vectors):
                    w.set(sums[p][i], b.fadd(w.get(sums[p][i]), b.fmul(x, c[i])))
        for p in range(points):
            to = b.add(b.add(v["to"], first), b.mul(v["K"], w.index(p)))
            for i in range(vectors):
                w.store(w.get(sums[p][i]), v["out"], b.add(to, w.index(i * lanes)))


@kernel("f4:2 f4:3 f4:3w", twin=_products_twin, work=_products_work, helpers=(_products_plain,),
        tiled=(_products_tiled, _products_level))
def products_with(x, panels, out):
    """Write the inner products of ``x`` (n, d) with all codewords into ``out`` (M, n, K).

    ``panels`` (M K / W, d, W): the codewords, transposed, W of a codebook at a time (see :func:`panels_of`).
    """
    _products_plain(x, panels, out)


def panels_of(codebooks: Float) -> Float:
    """Return codebooks (M, K, d) as the panels that :func:`products_with` reads."""
    M, K, d = codebooks.shape
    wide = WIDE if K % WIDE == 0 else K
    return np.ascontiguousarray(np.swapaxes(codebooks.reshape(M * K // wide, wide, d), 1, 2))


# ------------------------------------------------------------------------------------- a beam, codebooks in order


def _best(scores: Float, width: int) -> NDArray[np.intp]:
    """Return the places of the ``width`` smallest of each row, ordered by (score, place)."""
    if width == 1:
        return scores.argmin(axis=1)[:, None]
    return np.argsort(scores, axis=1, kind="stable")[:, :width]


def _search_twin(products: Float, norms: Float, cross: Float, codes: Codes, scores: Float, new_codes: Codes,
                 new_scores: Float) -> None:
    n, _, first = codes.shape
    K = norms.shape[1]
    for m in range(first, new_codes.shape[2]):
        size = codes.shape[1]
        width = min(new_scores.shape[1], size * K)
        base = norms[m] - (products[m - first] + products[m - first])
        held, kept = np.empty((n, width, m + 1), np.uint8), np.empty((n, width), np.float32)
        step = max(1, (1 << 20) // (size * K))
        for begin in range(0, n, step):
            rows = slice(begin, begin + step)
            acc = np.repeat(base[rows, None], size, axis=1)
            for j in range(m):
                acc += cross[m, j][codes[rows, :, j]]
            acc += scores[rows, :, None]
            acc = acc.reshape(len(acc), size * K)
            best = _best(acc, width)
            held[rows, :, :m] = np.take_along_axis(codes[rows], (best // K)[:, :, None], axis=1)
            held[rows, :, m] = best % K
            kept[rows] = np.take_along_axis(acc, best, axis=1)
        codes, scores = held, kept
    new_codes[:], new_scores[:] = codes, scores


def _search_work(products: Float, norms: Float, cross: Float, codes: Codes, scores: Float, new_codes: Codes,
                 new_scores: Float) -> int:
    return products.size * new_scores.shape[1] * (new_codes.shape[2] + 3)


def _plain_step(base, cross, codes, scores, start, size, m, width, acc, place):
    """Write the places of the ``width`` best extensions of a vector's beam, ``codes`` and ``scores`` from start."""
    M, K = cross.shape[1:3]
    for b in range(size):
        part = acc[b * K:(b + 1) * K]
        for k in range(K):
            part[k] = base[k]
        for j in range(m):
            row = cross[m, j, codes[(start + b) * M + j]]
            for k in range(K):
                part[k] += row[k]
        for k in range(K):
            part[k] += scores[start + b]
    count = 0
    for at in range(size * K):
        score = acc[at]
        if count == width and not score < acc[place[width - 1]]:
            continue
        c = count
        count += count < width
        c = min(c, width - 1)
        while c > 0 and acc[place[c - 1]] > score:
            place[c] = place[c - 1]
            c -= 1
        place[c] = at


def _ordered(bits, place, count, width, keys, ranks, order):
    """Sort ``count`` places by (score, place), and return how many are kept: ``width`` at the most."""
    for c in range(count):
        score = bits[place[c]]
        if score == np.int32(-2147483648):
            score = np.int32(0)  # −0 equals 0
        # Signed integers that order like the numbers.
        keys[c] = (np.int64(score ^ ((score >> 31) & 2147483647)) << 32) | place[c]
    groups = (count + 7) // 8
    for c in range(count, 8 * groups):
        keys[c] = 9223372036854775807
    ranked(keys, ranks, count, groups)
    for c in range(count):
        order[ranks[c]] = place[c]
    count = min(count, width)
    for c in range(count):
        place[c] = order[c]
    return count


def _tiled_step(base, cross, codes, scores, start, size, m, width, acc, bits, lows, limit, rows, place, keys,
                ranks, order):
    """Write the places of the ``width`` best extensions of the beam of a vector: ``codes`` and ``scores`` from start.

    The groups are the parents, each in 4 parts (or 16, where these are too few): what is best beside one parent is
    so beside others too.
    """
    M, K = cross.shape[1:3]
    room = place.shape[0]
    for b in range(size):
        for j in range(m):
            rows[j] = ((m * M + j) * K + codes[(start + b) * M + j]) * K
        extended(base, cross, rows, scores, acc, lows, 0, m, start + b, b * K, K // WIDE, 16 * b, 16 * size + 4 * b)
    if width == 1:
        low = lows[16 * size]
        for g in range(1, 4 * size):
            low = min(low, lows[16 * size + g])
        limit[0] = low
        for at in range(0, size * K, WIDE):
            mask = below(acc, limit, at)
            if mask != 0:
                place[0] = at + lowest(mask)
                return
    few = 2 * size >= width
    first, groups = (16 * size, 4 * size) if few else (0, 16 * size)
    for g in range(groups, (groups + 15) // 16 * 16):
        lows[first + g] = np.inf
    if width <= groups:
        threshold(lows, limit, first, (groups + 15) // 16, width)
    else:
        limit[0] = np.inf
    count = 0
    for at in range(0, size * K, WIDE):
        mask = below(acc, limit, at)
        while mask != 0:
            place[count] = at + lowest(mask)
            mask &= mask - 1
            count += 1
        if count > room - WIDE:
            count = _ordered(bits, place, count, width, keys, ranks, order)
            if count == width:
                limit[0] = acc[place[width - 1]]
    count = _ordered(bits, place, count, width, keys, ranks, order)
    for c in range(count, width):  # of scores that are not numbers
        place[c] = c


def _search(products, norms, cross, codes, scores, new_codes, new_scores):
    n, begun, first = codes.shape
    K = norms.shape[1]
    M = norms.shape[0]
    last = new_codes.shape[2]
    wanted = new_scores.shape[1]
    most = max(begun, wanted)
    # The beams of all rows before a codebook, and after it; flat, since slices of arrays cost more than their work.
    held, next_held = np.zeros(n * most * M, np.uint8), np.zeros(n * most * M, np.uint8)
    kept, next_kept = np.zeros(n * most, np.float32), np.zeros(n * most, np.float32)
    for i in range(n):
        for b in range(begun):
            kept[i * most + b] = scores[i, b]
            for j in range(first):
                held[(i * most + b) * M + j] = codes[i, b, j]
    acc = np.full(most * max(K, 16), np.inf, np.float32)
    bits = acc.view(np.int32)
    base = np.empty(K, np.float32)
    lows = np.empty(20 * most + 16, np.float32)
    limit = np.empty(1, np.float32)
    rows = np.arange(max(M, 1))
    place = np.empty(max(2 * wanted, 128) + WIDE, np.int64)
    keys = np.empty(len(place) + 8, np.int64)
    ranks = np.empty(len(place) + 8, np.int64)
    order = np.empty(len(place) + 8, np.int64)
    size = begun
    for m in range(first, last):
        width = min(wanted, size * K)
        for i in range(n):
            for k in range(K):
                p = products[m - first, i, k]
                base[k] = norms[m, k] - (p + p)
            start = i * most
            if POINTS > 0 and K % WIDE == 0:
                _tiled_step(base, cross, held, kept, start, size, m, width, acc, bits, lows, limit, rows, place, keys,
                            ranks, order)
            else:
                _plain_step(base, cross, held, kept, start, size, m, width, acc, place)
            for b in range(width):
                parent = place[b] // K
                next_kept[start + b] = acc[place[b]]
                for j in range(m):
                    next_held[(start + b) * M + j] = held[(start + parent) * M + j]
                next_held[(start + b) * M + m] = place[b] - parent * K
        size = width
        held, next_held, kept, next_kept = next_held, held, next_kept, kept
    for i in range(n):
        for b in range(wanted):
            new_scores[i, b] = kept[i * most + b]
            for j in range(last):
                new_codes[i, b, j] = held[(i * most + b) * M + j]


def _search_level(level: str) -> dict[str, Any] | None:
    if level not in _SHAPES:
        return None
    lanes, points, _ = _SHAPES[level]
    return {"POINTS": points,
            "threshold": simd.intrinsic(partial(_threshold, lanes), ("lows", "limit"), ("first", "groups", "width")),
            "ranked": simd.intrinsic(_ranked, ("keys", "ranks"), ("count", "groups")), **sums_level(level)}


def sums_level(level: str) -> dict[str, Any]:
    """Return the intrinsics that add up scores of many codewords, and find those below a limit, of a SIMD level."""
    lanes = _SHAPES[level][0]
    return {"extended": simd.intrinsic(partial(_extended, lanes), (
                "base", "cross", "rows", "scores", "acc", "lows"), ("first", "m", "start", "to", "panels", "many",
                                                                    "few")),
            "below": simd.intrinsic(partial(_below, lanes), ("acc", "limit"), ("at",), result=True),
            "lowest": simd.intrinsic(_lowest, (), ("mask",), result=True)}


def _extended(lanes: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: the scores of a sum and each codeword of a codebook, and the least of 16 and of 4 parts of them.

    As many codewords at a time as the registers hold, so that long pieces of a row are read in one go.
    """
    b, w = builder, simd.Vectors(builder, lanes)
    pieces = WIDE // lanes
    start = w.splat(b.load(w.at(v["scores"], v["start"])))
    lows = [w.variable(w.constant(np.inf)) for _ in range(pieces)]

    def block(begin: Any, count: int) -> None:
        sums = [w.variable(w.load(v["base"], b.add(b.add(v["first"], begin), w.index(i * lanes))))
                for i in range(count)]
        with w.loop(v["m"]) as j:
            at = b.add(b.load(w.at(v["rows"], j)), begin)
            for i in range(count):
                w.set(sums[i], b.fadd(w.get(sums[i]), w.load(v["cross"], b.add(at, w.index(i * lanes)))))
        for i in range(count):
            value = b.fadd(w.get(sums[i]), start)
            w.store(value, v["acc"], b.add(b.add(v["to"], begin), w.index(i * lanes)))
            w.set(lows[i % pieces], w.least(value, w.get(lows[i % pieces])))

    several = 4 if lanes == 16 else 1
    with w.loop(b.udiv(v["panels"], w.index(several))) as many:
        block(b.mul(many, w.index(several * WIDE)), several * pieces)
    if several > 1:
        rest = b.urem(v["panels"], w.index(several))
        with w.loop(rest) as i:
            block(b.mul(b.add(b.sub(v["panels"], rest), i), w.index(WIDE)), pieces)
    parts = [w.get(low) for low in lows]
    while len(parts) * lanes > 16:
        parts = [w.least(p, q) for p, q in zip(parts[::2], parts[1::2])]
    for i, part in enumerate(parts):
        w.store(part, v["lows"], b.add(v["many"], w.index(i * lanes)))
    while len(parts) > 1:
        parts = [w.least(p, q) for p, q in zip(parts[::2], parts[1::2])]
    part, width = parts[0], lanes // 2
    while width >= 4:
        part = w.least(*(w.shuffle(part, part, list(range(at, at + width))) for at in (0, width)))
        width //= 2
    w.store(part, v["lows"], v["few"])


def _threshold(lanes: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: write the ``width``-th smallest of 16 · ``groups`` numbers into ``limit``."""
    b, w = builder, simd.Vectors(builder, lanes)
    count = b.mul(v["groups"], w.index(16))
    width = w.splat(b.trunc(v["width"], w.i32))
    best = w.variable(w.constant(-np.inf))
    with w.loop(b.mul(v["groups"], w.index(16 // lanes))) as group:
        mine = w.load(v["lows"], b.add(v["first"], b.mul(group, w.index(lanes))))
        rank = w.variable(w.ir.Constant(w.itype, [0] * lanes))
        with w.loop(count) as i:
            other = w.splat(b.load(w.at(v["lows"], b.add(v["first"], i))))
            w.set(rank, b.sub(w.get(rank), b.sext(b.fcmp_ordered("<", other, mine), w.itype)))
        among = b.icmp_signed("<", w.get(rank), width)
        w.set(best, w.most(b.select(among, mine, w.constant(-np.inf)), w.get(best)))
    value, half = w.get(best), lanes // 2
    while half:
        value = w.most(*(w.shuffle(value, value, list(range(at, at + half))) for at in (0, half)))
        half //= 2
    b.store(b.extract_element(value, w.i32(0)), v["limit"])


def _below(lanes: int, builder: Any, v: dict[str, Any]) -> Any:
    """Emit: which of WIDE scores do not exceed the limit, a bit each."""
    b, w = builder, simd.Vectors(builder, lanes)
    limit, bits, mask = w.splat(b.load(v["limit"])), w.ir.IntType(lanes), w.index(0)
    for i in range(0, WIDE, lanes):
        near = b.fcmp_ordered("<=", w.load(v["acc"], b.add(v["at"], w.index(i))), limit)
        mask = b.or_(mask, b.shl(b.zext(b.bitcast(near, bits), w.i64), w.index(i)))
    return mask


def _lowest(builder: Any, v: dict[str, Any]) -> Any:
    """Emit: the place of the lowest bit that is set."""
    return builder.cttz(v["mask"], simd.Vectors(builder, 1).ir.IntType(1)(0))


def _ranked(builder: Any, v: dict[str, Any]) -> None:
    """Emit: how many of ``count`` keys are less than each of 8 · ``groups``."""
    b, w = builder, simd.Vectors(builder, 8)
    kind = w.ir.VectorType(w.i64, 8)
    with w.loop(v["groups"]) as group:
        at = b.mul(group, w.index(8))
        place = b.bitcast(w.at(v["keys"], at), kind.as_pointer())
        mine = b.load(place)
        mine.align = 8
        rank = w.variable(w.ir.Constant(kind, [0] * 8))
        with w.loop(v["count"]) as i:
            less = b.icmp_signed("<", w.splat(b.load(w.at(v["keys"], i))), mine)
            w.set(rank, b.sub(w.get(rank), b.sext(less, kind)))
        b.store(w.get(rank), b.bitcast(w.at(v["ranks"], at), kind.as_pointer())).align = 8


@kernel("f4:3 f4:2 f4:4 u1:3 f4:2 u1:3w f4:2w", twin=_search_twin, work=_search_work,
        helpers=(_plain_step, _ordered, _tiled_step, _search),
        tiled=(_search, _search_level))
def search(products, norms, cross, codes, scores, new_codes, new_scores):
    """Extend the sums in a beam by the codewords of all further codebooks, one after the other, and keep the best.

    ``codes`` (n, L, m) and ``scores`` (n, L): the beam after m codebooks; ``new_codes`` (n, L', m') and
    ``new_scores`` (n, L'), written: after m', the best first. ``products`` (m' − m, n, K): inner products of the
    vectors with the codewords of these; ``norms`` (M, K) and ``cross`` (M, M, K, K): squared norms and doubled inner
    products of all codewords. L' sums are kept each time, or all where there are fewer: L' ≤ L K^(m' − m).
    """
    _search(products, norms, cross, codes, scores, new_codes, new_scores)


# ------------------------------------------------------------------------------------- a beam, codebooks in any order


def _alone(products, norms, base):
    """Write ‖c‖² − 2⟨x, c⟩ of all codewords of a codebook into ``base`` (K,)."""
    for k in range(norms.shape[0]):
        p = products[k]
        base[k] = norms[k] - (p + p)


def _added(base, cross, codes, b, used, first, count, acc):
    """Write ``base`` and the products with the codewords of sum b, of codebooks used[first:count], into ``acc``."""
    K = base.shape[0]
    i = first
    if count - first >= 4:
        j0, j1, j2, j3 = used[i], used[i + 1], used[i + 2], used[i + 3]
        c0, c1, c2, c3 = codes[b, j0], codes[b, j1], codes[b, j2], codes[b, j3]
        i += 4
        for k in range(K):
            acc[k] = (((base[k] + cross[j0, c0, k]) + cross[j1, c1, k]) + cross[j2, c2, k]) + cross[j3, c3, k]
    elif count > first:
        j0 = used[i]
        c0 = codes[b, j0]
        i += 1
        for k in range(K):
            acc[k] = base[k] + cross[j0, c0, k]
    else:
        for k in range(K):
            acc[k] = base[k]
    while i + 2 <= count:
        j0, j1 = used[i], used[i + 1]
        c0, c1 = codes[b, j0], codes[b, j1]
        i += 2
        for k in range(K):
            acc[k] = (acc[k] + cross[j0, c0, k]) + cross[j1, c1, k]
    if i < count:
        j0 = used[i]
        c0 = codes[b, j0]
        for k in range(K):
            acc[k] += cross[j0, c0, k]


def _shift(acc, start, K):
    """Add the score of the sum."""
    for k in range(K):
        acc[k] += start


def _within(groups, g, limit):
    """Return how many of the 16 numbers in row g do not exceed the limit; of a fixed number, it is one step."""
    hits = np.int32(0)
    for k in range(16):
        hits += np.int32(1) if groups[g, k] <= limit else np.int32(0)
    return hits


def _free_step_twin(products: Float, norms: Float, cross: Float, names: Keys, codes: Codes, used: NDArray[np.bool_],
                    keys: Keys, scores: Float, new_codes: Codes, new_used: NDArray[np.bool_], new_keys: Keys,
                    new_scores: Float) -> None:
    n, size, M = codes.shape
    K = norms.shape[1]
    width = new_scores.shape[1]
    step = max(1, (1 << 20) // (size * M * K))
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        p = np.swapaxes(products[:, rows], 0, 1)
        acc = np.repeat((norms - (p + p))[:, None], size, axis=1)
        for j in range(M):
            more = acc + np.moveaxis(cross[:, j][:, codes[rows, :, j]], 0, 2)
            acc = np.where(used[rows, :, j, None, None], more, acc)
        acc = acc + scores[rows, :, None, None]
        flat = np.where(used[rows, :, :, None], np.float32(np.inf), acc).reshape(len(acc), size * M * K)
        order = _best(flat, min(width * M, flat.shape[1]))  # of each set at most M copies
        parents = order // (M * K)
        children = np.take_along_axis(keys[rows], parents, axis=1) + names.ravel()[order % (M * K)]
        again = np.zeros(order.shape, np.bool_)
        for i in range(1, order.shape[1]):
            again[:, i] = (children[:, :i] == children[:, i:i + 1]).any(axis=1)
        first = np.argsort(again, axis=1, kind="stable")[:, :width]
        order, parents = np.take_along_axis(order, first, axis=1), np.take_along_axis(parents, first, axis=1)
        book = (order // K % M)[:, :, None]
        new_codes[rows] = np.take_along_axis(codes[rows], parents[:, :, None], axis=1)
        new_used[rows] = np.take_along_axis(used[rows], parents[:, :, None], axis=1)
        np.put_along_axis(new_codes[rows], book, (order % K)[:, :, None].astype(np.uint8), axis=2)
        np.put_along_axis(new_used[rows], book, np.True_, axis=2)
        new_keys[rows] = np.take_along_axis(children, first, axis=1)
        new_scores[rows] = np.take_along_axis(flat, order, axis=1)


def _free_work(products: Float, norms: Float, cross: Float, names: Keys, codes: Codes, *_: object) -> int:
    return products.size * codes.shape[1] * (codes.shape[2] + 3)


@kernel("f4:3 f4:2 f4:4 u8:2 u1:3 b1:3 u8:2 f4:2 u1:3w b1:3w u8:2w f4:2w", twin=_free_step_twin, work=_free_work,
        helpers=(_alone, _added, _shift, _within))
def free_step(products, norms, cross, names, codes, used, keys, scores, new_codes, new_used, new_keys, new_scores):
    """Extend the sums in a beam by a codeword of any codebook that they do not use yet, and keep the best.

    ``products`` (M, n, K), ``norms`` (M, K), ``cross`` (M, M, K, K) as for :func:`beam_step`, of all codebooks;
    ``codes`` (n, L, M) with ``used`` (n, L, M), ``keys`` (n, L) and ``scores`` (n, L): the beam. The key of a set of
    codewords is the sum of their ``names`` (M, K) modulo 2^64: of sums with one key, which are one set of codewords
    reached in different orders, only the best is kept. There must be as many sets as are asked for.
    """
    n, size, M = codes.shape
    K = norms.shape[1]
    width = new_scores.shape[1]
    acc = np.full((K + 15) // 16 * 16, np.inf, np.float32)  # 16 at a time are looked at
    groups = acc.reshape(-1, 16)
    bases = np.empty((M, K), np.float32)
    place = np.empty(width, np.int64)
    before = np.empty(M, np.int64)
    for i in range(n):
        kept = new_scores[i]
        key = new_keys[i]
        count = 0
        worst = np.float32(np.inf)
        for m in range(M):
            _alone(products[m, i], norms[m], bases[m])
        for b in range(size):
            there = 0
            for m in range(M):
                if used[i, b, m]:
                    before[there] = m
                    there += 1
            for m in range(M):
                if used[i, b, m]:
                    continue
                _added(bases[m], cross[m], codes[i], b, before, 0, there, acc)
                _shift(acc, scores[i, b], K)
                for g in range(groups.shape[0]):
                    if count == width and _within(groups, g, worst) == 0:
                        continue
                    for k in range(16 * g, min(16 * g + 16, K)):
                        score = acc[k]
                        if count == width and not score < worst:
                            continue
                        name = keys[i, b] + names[m, k]
                        at = 0
                        while at < count and key[at] != name:
                            at += 1
                        if at < count:  # the same codewords in another order
                            if not score < kept[at]:
                                continue
                        elif count < width:
                            count += 1
                        else:
                            at = width - 1
                        while at > 0 and kept[at - 1] > score:
                            kept[at] = kept[at - 1]
                            key[at] = key[at - 1]
                            place[at] = place[at - 1]
                            at -= 1
                        kept[at] = score
                        key[at] = name
                        place[at] = (b * M + m) * K + k
                        if count == width:
                            worst = kept[width - 1]
        for b in range(width):
            parent = place[b] // (M * K)
            m = place[b] // K % M
            for j in range(M):
                new_codes[i, b, j] = codes[i, parent, j]
                new_used[i, b, j] = used[i, parent, j]
            new_codes[i, b, m] = place[b] % K
            new_used[i, b, m] = True


def mixed(count: int, seed: int) -> Keys:
    """Return so many 64-bit numbers (count,), by the mixing function of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(seed) << np.uint64(32))) * np.uint64(_GAMMA)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(z ^ (z >> np.uint64(31)))


_GAMMA = 0x9E3779B97F4A7C15
