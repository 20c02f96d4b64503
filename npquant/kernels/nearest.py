"""Distances to codewords, and the nearest codeword, by blocks of dimensions.

The arithmetic is fixed, here and in every faster kernel to come: float32; a squared distance is
``((x_0 − c_0)² + (x_1 − c_1)²) + …`` and an inner product ``(x_0 c_0 + x_1 c_1) + …``, dimension 0 first, each
multiply and each add rounded by itself; ties go to the smaller index. So no result depends on the batch it
was asked in, on the threads, or on whether a compiler was there.

Codebooks come transposed, ``(M, dsub, K)``: the loop over codewords is then the innermost and contiguous one, so
it is vectorised without touching the order of any sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels import simd
from npquant.kernels._jit import kernel
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]

# What a SIMD level puts in their place where it compiles the tiled code below.
LANES = POINTS = VECTORS = NARROW = ROWS = 0
tile: Any = None
narrow: Any = None
finish: Any = None

# Rows handed to one task: fixed, so that nothing depends on the number of threads.
_BLOCK = 4096
# The twins' temporaries stay within the cache.
_TWIN_ELEMENTS = 1 << 18


def _work(x: Float, codebooks_t: Float, *_: object) -> int:
    return x.shape[0] * codebooks_t.size


def _twin_blocks(x: Float, codebooks_t: Float, product: bool) -> Iterator[tuple[slice, int, Float]]:
    """Yield (rows, m, scores) with scores (rows, K) in the fixed order, for any float dtype."""
    M, dsub, K = codebooks_t.shape
    step = max(1, _TWIN_ELEMENTS // max(K, 1))
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        for m in range(M):
            part = x[rows, m * dsub:(m + 1) * dsub]
            scores = np.zeros((part.shape[0], K), x.dtype)
            term = np.empty_like(scores)
            for j in range(dsub):
                if product:
                    np.multiply(part[:, j, None], codebooks_t[m, j], out=term)
                else:
                    np.subtract(part[:, j, None], codebooks_t[m, j], out=term)
                    np.multiply(term, term, out=term)
                scores += term
            yield rows, m, scores


def _subspace_distances_twin(x: Float, codebooks_t: Float, out: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=False):
        out[rows, m] = scores


def _subspace_products_twin(x: Float, codebooks_t: Float, out: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=True):
        out[rows, m] = scores


def _nearest_codewords_twin(x: Float, codebooks_t: Float, index: NDArray[np.int32], distance: Float) -> None:
    for rows, m, scores in _twin_blocks(x, codebooks_t, product=False):
        best = np.argmin(scores, axis=1)
        index[rows, m] = best
        if len(distance):
            distance[rows, m] = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]


@kernel("f4:2 f4:3 f4:3w", twin=_subspace_distances_twin, work=_work)
def subspace_distances(x, codebooks_t, out):
    """Write the squared distances of ``x`` (n, M·dsub) to ``codebooks_t`` (M, dsub, K) into ``out`` (n, M, K).

    Four rows by four dimensions at a time, as ``subspace_products``; each sum still runs over the dimensions one by
    one.
    """
    M, dsub, K = codebooks_t.shape
    whole = dsub - dsub % 4
    for m in range(M):
        c = codebooks_t[m]
        for i in range(0, x.shape[0] - 3, 4):
            r0, r1, r2, r3 = out[i, m], out[i + 1, m], out[i + 2, m], out[i + 3, m]
            for k in range(K):
                r0[k] = r1[k] = r2[k] = r3[k] = 0.0
            for j in range(0, whole, 4):
                at = m * dsub + j
                x00, x01, x02, x03 = x[i, at], x[i, at + 1], x[i, at + 2], x[i, at + 3]
                x10, x11, x12, x13 = x[i + 1, at], x[i + 1, at + 1], x[i + 1, at + 2], x[i + 1, at + 3]
                x20, x21, x22, x23 = x[i + 2, at], x[i + 2, at + 1], x[i + 2, at + 2], x[i + 2, at + 3]
                x30, x31, x32, x33 = x[i + 3, at], x[i + 3, at + 1], x[i + 3, at + 2], x[i + 3, at + 3]
                for k in range(K):
                    c0, c1, c2, c3 = c[j, k], c[j + 1, k], c[j + 2, k], c[j + 3, k]
                    s0, s1, s2, s3 = x00 - c0, x01 - c1, x02 - c2, x03 - c3
                    r0[k] = (((r0[k] + s0 * s0) + s1 * s1) + s2 * s2) + s3 * s3
                    t0, t1, t2, t3 = x10 - c0, x11 - c1, x12 - c2, x13 - c3
                    r1[k] = (((r1[k] + t0 * t0) + t1 * t1) + t2 * t2) + t3 * t3
                    u0, u1, u2, u3 = x20 - c0, x21 - c1, x22 - c2, x23 - c3
                    r2[k] = (((r2[k] + u0 * u0) + u1 * u1) + u2 * u2) + u3 * u3
                    v0, v1, v2, v3 = x30 - c0, x31 - c1, x32 - c2, x33 - c3
                    r3[k] = (((r3[k] + v0 * v0) + v1 * v1) + v2 * v2) + v3 * v3
            for row in range(i, i + 4):
                for j in range(whole, dsub):
                    a = x[row, m * dsub + j]
                    for k in range(K):
                        t = a - c[j, k]
                        out[row, m, k] += t * t
        for i in range(x.shape[0] - x.shape[0] % 4, x.shape[0]):
            for k in range(K):
                out[i, m, k] = 0.0
            for j in range(dsub):
                a = x[i, m * dsub + j]
                for k in range(K):
                    t = a - c[j, k]
                    out[i, m, k] += t * t


@kernel("f4:2 f4:3 f4:3w", twin=_subspace_products_twin, work=_work)
def subspace_products(x, codebooks_t, out):
    """Write the inner products of ``x`` (n, M·dsub) with ``codebooks_t`` (M, dsub, K) into ``out`` (n, M, K).

    Four rows by four dimensions at a time, so that a sum is loaded and stored once for four multiply-adds and a
    codeword read once for four rows; each sum still runs over the dimensions one by one, each step rounded.
    """
    M, dsub, K = codebooks_t.shape
    whole = dsub - dsub % 4
    for m in range(M):
        c = codebooks_t[m]
        for i in range(0, x.shape[0] - 3, 4):
            r0, r1, r2, r3 = out[i, m], out[i + 1, m], out[i + 2, m], out[i + 3, m]
            for k in range(K):
                r0[k] = r1[k] = r2[k] = r3[k] = 0.0
            for j in range(0, whole, 4):
                at = m * dsub + j
                x00, x01, x02, x03 = x[i, at], x[i, at + 1], x[i, at + 2], x[i, at + 3]
                x10, x11, x12, x13 = x[i + 1, at], x[i + 1, at + 1], x[i + 1, at + 2], x[i + 1, at + 3]
                x20, x21, x22, x23 = x[i + 2, at], x[i + 2, at + 1], x[i + 2, at + 2], x[i + 2, at + 3]
                x30, x31, x32, x33 = x[i + 3, at], x[i + 3, at + 1], x[i + 3, at + 2], x[i + 3, at + 3]
                for k in range(K):
                    c0, c1, c2, c3 = c[j, k], c[j + 1, k], c[j + 2, k], c[j + 3, k]
                    r0[k] = (((r0[k] + x00 * c0) + x01 * c1) + x02 * c2) + x03 * c3
                    r1[k] = (((r1[k] + x10 * c0) + x11 * c1) + x12 * c2) + x13 * c3
                    r2[k] = (((r2[k] + x20 * c0) + x21 * c1) + x22 * c2) + x23 * c3
                    r3[k] = (((r3[k] + x30 * c0) + x31 * c1) + x32 * c2) + x33 * c3
            for row in range(i, i + 4):
                for j in range(whole, dsub):
                    a = x[row, m * dsub + j]
                    for k in range(K):
                        out[row, m, k] += a * c[j, k]
        for i in range(x.shape[0] - x.shape[0] % 4, x.shape[0]):
            for k in range(K):
                out[i, m, k] = 0.0
            for j in range(dsub):
                a = x[i, m * dsub + j]
                for k in range(K):
                    out[i, m, k] += a * c[j, k]


def _decide(x, i, m, codebooks_t, scores, bits):
    """Return the nearest codeword of block m of row i, with all scores in the fixed order."""
    dsub, K = codebooks_t.shape[1:]
    for k in range(K):
        scores[k] = 0.0
    for j in range(dsub):
        a = x[i, m * dsub + j]
        for k in range(K):
            t = a - codebooks_t[m, j, k]
            scores[k] += t * t
    # A sum of squares is never negative, and then its bits order like the number: an integer minimum needs no
    # care for NaN, so it is vectorised.
    least = bits[0]
    for k in range(K):
        least = min(least, bits[k])
    best = 0
    while bits[best] != least:
        best += 1
    return best


def _nearest_tiled(x, codebooks_t, index, distance):
    """Pre-select by fused multiply-adds, tiles of POINTS rows × VECTORS · LANES codewords; decide near-ties anew.

    Where the codewords would fill no more than half of these, tiles are of NARROW rows × LANES codewords.

    With everything centred on the codebook's mean, s = ½‖x‖² + ½‖c‖² − ⟨x, c⟩ is half the squared distance. The
    lowest bits of each s are replaced by the number of its vector of codewords, so that one minimum finds both value
    and place; the runner-up is kept beside it. With N = ‖x‖ + max‖c‖ and u = 2⁻²⁴, half the distance of the fixed
    order and s differ by at most (1.5 dsub + 4) u N², and by 2^(bits − 23) |s| for the lost bits. Where the runner-up
    is farther than twice that (and a reserve), the best is the nearest in the fixed order too; else all are scored
    in it.
    """
    n, d = x.shape
    M, dsub, K = codebooks_t.shape
    few = 2 * K <= LANES * VECTORS
    points = NARROW if few else POINTS
    vectors = 1 if few else VECTORS
    wide = LANES * vectors
    panels = (K + wide - 1) // wide
    lost = 1
    while (1 << lost) < panels * vectors:
        lost += 1
    keep = np.int32(-(1 << lost))

    # The codebooks, centred, negated and packed so that a tile reads them in one go; rows of zeros fill the last
    # panel, and a half norm of 2e38 keeps them from being chosen.
    centre = np.zeros(d, np.float32)
    packed = np.zeros(M * panels * dsub * wide, np.float32)
    half = np.zeros(M * panels * wide, np.float32)
    reach = np.zeros(M, np.float32)
    for m in range(M):
        for j in range(dsub):
            mean = 0.0
            for k in range(K):
                mean += codebooks_t[m, j, k]
            centre[m * dsub + j] = mean / K
        for k in range(panels * wide):
            at = (m * panels + k // wide) * dsub * wide + k % wide
            norm = np.float32(0)
            if k < K:
                for j in range(dsub):
                    c = codebooks_t[m, j, k] - centre[m * dsub + j]
                    packed[at + j * wide] = -c
                    norm += c * c
                reach[m] = max(reach[m], norm)
                half[m * panels * wide + k] = norm * np.float32(0.5)
            else:
                half[m * panels * wide + k] = np.float32(2e38)
        reach[m] = np.sqrt(reach[m])

    group = max(1, 8192 // (dsub * wide))  # panels that stay in the nearest cache while rows pass over them
    centred = np.zeros((ROWS + NARROW) * d, np.float32)
    square = np.zeros(ROWS + NARROW, np.float32)
    best = np.empty((ROWS + NARROW) * LANES, np.float32)
    second = np.empty((ROWS + NARROW) * LANES, np.float32)
    first = np.empty(ROWS + NARROW, np.float32)
    runner = np.empty(ROWS + NARROW, np.float32)
    lane = np.empty(ROWS + NARROW, np.int32)
    first_bits = first.view(np.int32)
    scores = np.empty(K, np.float32)
    bits = scores.view(np.int32)
    chosen = np.empty(ROWS + NARROW, np.int32)
    clear = np.empty(ROWS + NARROW, np.bool_)
    # The reserve also covers that the bound itself is float32: so the loop over it is vectorised.
    rounding = np.float32(2.002 * (2 * dsub + 16) * 2.0**-24)
    coarse = np.float32(1.001 * 2.0 ** (lost - 22))
    for begin in range(0, n, ROWS):
        rows = min(ROWS, n - begin)
        for i in range(rows):
            for j in range(d):
                centred[i * d + j] = x[begin + i, j] - centre[j]
        for m in range(M):
            for i in range(rows):
                norm = np.float32(0)
                for j in range(dsub):
                    c = centred[i * d + m * dsub + j]
                    norm += c * c
                square[i] = norm * np.float32(0.5)
            for panel in range(0, panels, group):
                count = min(group, panels - panel)
                for i in range(0, rows, points):
                    if few:
                        narrow(centred, packed, half, square, best, second, i * d + m * dsub, d,
                               (m * panels + panel) * dsub * wide, (m * panels + panel) * wide, i, i * LANES, dsub,
                               count, panel, keep)
                    else:
                        tile(centred, packed, half, square, best, second, i * d + m * dsub, d,
                             (m * panels + panel) * dsub * wide, (m * panels + panel) * wide, i, i * LANES, dsub,
                             count, panel * VECTORS, keep)
            for i in range(0, rows, POINTS):
                finish(best, second, first, runner, lane, i * LANES, i)
            for i in range(rows):
                size = np.sqrt(np.float32(2) * square[i]) + reach[m]
                slack = rounding * (size * size) + coarse * (abs(first[i]) + abs(runner[i])) + np.float32(1e-36)
                clear[i] = runner[i] - first[i] > slack
                chosen[i] = (first_bits[i] & ~keep) * LANES + lane[i]
            for i in range(rows):
                if clear[i]:
                    index[begin + i, m] = chosen[i]
                else:
                    index[begin + i, m] = _decide(x, begin + i, m, codebooks_t, scores, bits)
    if distance.shape[0]:
        for i in range(n):
            for m in range(M):
                total = np.float32(0)
                for j in range(dsub):
                    t = x[i, m * dsub + j] - codebooks_t[m, j, index[i, m]]
                    total += t * t
                distance[i, m] = total


# Lanes, rows and vectors of a tile: rows · vectors accumulators, with the codewords, fill the registers.
_SHAPES = {"avx512": (16, 4, 4), "avx2": (8, 4, 2), "neon": (4, 4, 4)}
# The same for few codewords: more rows and one vector, so that less of a panel is empty.
_NARROW = {"avx512": (16, 8, 1), "avx2": (8, 8, 1), "neon": (4, 8, 1)}


def _nearest_level(level: str) -> dict[str, Any] | None:
    if level not in _SHAPES:
        return None
    lanes, points, vectors = _SHAPES[level]
    tile, narrow = (simd.intrinsic(partial(_tile, *shape), (
        "x", "packed", "half", "square", "best", "second"), (
        "row", "stride", "panel", "norm", "point", "state", "dsub", "panels", "number", "keep"))
        for shape in (_SHAPES[level], _NARROW[level]))
    finish = simd.intrinsic(partial(_finish, lanes, points), (
        "best", "second", "first", "runner", "lane"), ("state", "point"))
    return {"LANES": lanes, "POINTS": points, "VECTORS": vectors, "NARROW": _NARROW[level][1], "ROWS": 256,
            "tile": tile, "narrow": narrow, "finish": finish}


def _tile(lanes: int, points: int, vectors: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: let ``points`` rows pass over ``panels`` panels of codewords, and keep their best two in each lane."""
    b, w = builder, simd.Vectors(builder, lanes)
    wide = w.index(lanes * vectors)
    rows = [w.at(v["x"], b.add(v["row"], b.mul(v["stride"], w.index(p)))) for p in range(points)]
    square = [w.splat(b.load(w.at(v["square"], b.add(v["point"], w.index(p))))) for p in range(points)]
    state = [b.add(v["state"], w.index(p * lanes)) for p in range(points)]
    fresh = b.icmp_signed("==", v["number"], w.index(0))  # the first panels: there is nothing before them
    best, second = ([w.variable(b.select(fresh, w.constant(3e38), w.load(v[name], at))) for at in state]
                    for name in ("best", "second"))
    sums = [[w.variable() for _ in range(vectors)] for _ in range(points)]
    keep = w.splat(b.trunc(v["keep"], w.i32))
    with w.loop(v["panels"]) as panel:
        norms = [w.load(v["half"], b.add(b.add(v["norm"], b.mul(panel, wide)), w.index(i * lanes)))
                 for i in range(vectors)]
        for p in range(points):
            for i in range(vectors):
                w.set(sums[p][i], b.fadd(norms[i], square[p]))
        codewords = w.at(v["packed"], b.add(v["panel"], b.mul(b.mul(panel, wide), v["dsub"])))
        with w.loop(v["dsub"]) as j:
            at = b.mul(j, wide)
            c = [w.load(codewords, b.add(at, w.index(i * lanes))) for i in range(vectors)]
            for p in range(points):
                x = w.splat(b.load(w.at(rows[p], j)))
                for i in range(vectors):
                    w.set(sums[p][i], w.fma(x, c[i], w.get(sums[p][i])))
        for i in range(vectors):
            number = b.add(b.add(v["number"], b.mul(panel, w.index(vectors))), w.index(i))
            tag = w.splat(b.trunc(number, w.i32))
            for p in range(points):
                score = b.bitcast(w.get(sums[p][i]), w.itype)
                key = b.bitcast(b.or_(b.and_(score, keep), tag), w.type)
                before = w.get(best[p])
                w.set(second[p], w.least(w.most(key, before), w.get(second[p])))
                w.set(best[p], w.least(key, before))
    for p in range(points):
        w.store(w.get(best[p]), v["best"], state[p])
        w.store(w.get(second[p]), v["second"], state[p])


def _finish(lanes: int, points: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit: of each row's lanes the least, its lane, and the least of all others."""
    b, w = builder, simd.Vectors(builder, lanes)
    best = [w.load(v["best"], b.add(v["state"], w.index(p * lanes))) for p in range(points)]
    second = [w.load(v["second"], b.add(v["state"], w.index(p * lanes))) for p in range(points)]
    least, where = w.least_of_each(best)
    rest = []
    mask_type = w.ir.IntType(lanes)
    flags = w.ir.VectorType(w.ir.IntType(1), lanes)
    for p in range(points):
        equal = b.fcmp_ordered("==", best[p], w.shuffle(least, least, [where[p]] * lanes))
        mask = b.bitcast(equal, mask_type)
        lane = b.cttz(mask, w.ir.IntType(1)(0))
        b.store(w.to_i32(lane), w.at(v["lane"], b.add(v["point"], w.index(p))))
        only = b.bitcast(b.and_(mask, b.sub(mask_type(0), mask)), flags)  # the lowest of the equal ones
        rest.append(w.least(b.select(only, w.constant(3e38), best[p]), second[p]))
    runner, where = w.least_of_each(rest)
    w.store(w.shuffle(least, least, where), v["first"], v["point"])
    w.store(w.shuffle(runner, runner, where), v["runner"], v["point"])


@kernel("f4:2 f4:3 i4:2w f4:2w", twin=_nearest_codewords_twin, work=_work, helpers=(_decide,),
        tiled=(_nearest_tiled, _nearest_level))
def nearest_codewords(x, codebooks_t, index, distance):
    """Write the nearest codeword of each block of ``x`` (n, M·dsub): ``index`` and squared ``distance`` (n, M).

    ``distance`` may be empty, and is then left out.
    """
    M, _, K = codebooks_t.shape
    scores = np.empty(K, np.float32)
    bits = scores.view(np.int32)
    for m in range(M):
        for i in range(x.shape[0]):
            index[i, m] = _decide(x, i, m, codebooks_t, scores, bits)
            if distance.shape[0]:
                distance[i, m] = scores[index[i, m]]


def transpose(codebooks: Float) -> Float:
    """Return codebooks (M, K, dsub) as the (M, dsub, K) that the kernels read."""
    return np.ascontiguousarray(np.swapaxes(codebooks, 1, 2))


def _fit_together(x: Float, codebooks_t: Float) -> None:
    # Compiled code reads where it is told to: whatever went wrong before, it must not read beyond an array.
    if x.shape[1] != codebooks_t.shape[0] * codebooks_t.shape[1]:
        raise InvalidInputError(f"vectors of dimension {x.shape[1]} do not fit {codebooks_t.shape[0]} codebooks of "
                                f"dimension {codebooks_t.shape[1]}.")


def assign(x: Float, codebooks_t: Float, threads: int | None, *,
           distances: bool = True) -> tuple[NDArray[np.int32], Float]:
    """Return (index, squared distance) of each block's nearest codeword, both (n, M); rows shared by threads.

    Without ``distances`` these are left out (an array of 0 rows).
    """
    n, M = x.shape[0], codebooks_t.shape[0]
    _fit_together(x, codebooks_t)
    index = np.empty((n, M), np.int32)
    distance = np.empty((n if distances else 0, M), np.float32)

    def block(start: int, stop: int) -> None:
        nearest_codewords(x[start:stop], codebooks_t, index[start:stop], distance[start:stop])
    run_blocks(block, n, _BLOCK, threads)
    return index, distance


def tables(x: Float, codebooks_t: Float, product: bool, threads: int | None = 1) -> Float:
    """Return (n, M, K) squared distances, or *negated* inner products where ``product`` (lower is better)."""
    _fit_together(x, codebooks_t)
    out = np.empty((x.shape[0], codebooks_t.shape[0], codebooks_t.shape[2]), np.float32)
    fill = subspace_products if product else subspace_distances

    def block(start: int, stop: int) -> None:
        fill(x[start:stop], codebooks_t, out[start:stop])
        if product:
            np.negative(out[start:stop], out=out[start:stop])
    run_blocks(block, x.shape[0], 256, threads)
    return out
