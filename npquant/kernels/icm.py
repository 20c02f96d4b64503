"""Local search for sums of codewords: iterated conditional modes with perturbations (Martinez et al. 2016).

With all codewords but one fixed, the best one is found exactly: it has the least
``((‖c‖² − (p + p)) + cross_0) + cross_1 + …`` in float32, in the order of codebooks, ties to the smaller number. The
perturbations come as arrays, the same for every vector, so no code depends on the vectors beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel
from npquant.kernels.beam import WIDE, sums_level

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ints = NDArray[np.int64]

# What a SIMD level puts in their place.
TILED = False
extended: Any = None
below: Any = None
lowest: Any = None


def _objective(products, norms, cross, i, codes):
    """Return ‖x − sum‖² − ‖x‖² of row i: Σ (norm − 2 product), then the pairs j < m, m = 1 first."""
    total = np.float32(0)
    for m in range(codes.shape[0]):
        p = products[m, i, codes[m]]
        total += norms[m, codes[m]] - (p + p)
    for m in range(codes.shape[0]):
        for j in range(m):
            total += cross[m, j, codes[j], codes[m]]
    return total


def _conditional(base, cross, m, codes, acc, lows, limit, zero, rows):
    """Return the best codeword of codebook m, all others fixed; ``base`` has ‖c‖² − 2⟨x, c⟩ of all (M K)."""
    M, K = cross.shape[1:3]
    count = 0
    for j in range(M):
        if j != m:
            rows[count] = ((m * M + j) * K + codes[j]) * K
            count += 1
    if TILED and K % WIDE == 0:
        extended(base, cross, rows, zero, acc, lows, m * K, count, 0, 0, K // WIDE, 0, 16)
        limit[0] = min(min(lows[16], lows[17]), min(lows[18], lows[19]))
        for at in range(0, K, WIDE):
            mask = below(acc, limit, at)
            if mask != 0:
                return at + lowest(mask)
        return 0
    for k in range(K):
        acc[k] = base[m * K + k]
    for j in range(M):
        if j != m:
            row = cross[m, j, codes[j]]
            for k in range(K):
                acc[k] += row[k]
    # Integers that order like the numbers have a vectorised minimum, since none is NaN; + 0 makes −0 equal to 0.
    for k in range(K):
        acc[k] += np.float32(0)
    bits = acc.view(np.int32)
    least = bits[0] ^ ((bits[0] >> 31) & 2147483647)
    for k in range(K):
        least = min(least, bits[k] ^ ((bits[k] >> 31) & 2147483647))
    best = 0
    while bits[best] ^ ((bits[best] >> 31) & 2147483647) != least:
        best += 1
    return best


def _objective_twin(products: Float, norms: Float, cross: Float, codes: Codes) -> Float:
    n, M = codes.shape
    rows = np.arange(n)
    total = np.zeros(n, np.float32)
    for m in range(M):
        p = products[m, rows, codes[:, m]]
        total += norms[m, codes[:, m]] - (p + p)
    for m in range(M):
        for j in range(m):
            total += cross[m, j, codes[:, j], codes[:, m]]
    return total


def _local_search_twin(products: Float, norms: Float, cross: Float, places: Ints, words: Codes, orders: Ints,
                       codes: Codes, scores: Float) -> None:
    M = norms.shape[0]
    step = 1024
    for begin in range(0, codes.shape[0], step):
        rows = slice(begin, begin + step)
        here = products[:, rows]
        best = codes[rows]  # a view: written in place
        score = _objective_twin(here, norms, cross, best)
        for step_places, step_words, order in zip(places, words, orders, strict=True):
            tried = best.copy()
            for place, word in zip(step_places, step_words, strict=True):
                if place >= 0:
                    tried[:, place] = word
            for m in order:
                acc = norms[m] - (here[m] + here[m])
                for j in range(M):
                    if j != m:
                        acc += cross[m, j][tried[:, j]]
                tried[:, m] = acc.argmin(axis=1)
            new = _objective_twin(here, norms, cross, tried)
            better = new < score
            best[better], score[better] = tried[better], new[better]
        scores[rows] = score


def _work(products: Float, norms: Float, cross: Float, places: Ints, words: Codes, orders: Ints, *_: object) -> int:
    return products.size * orders.size


def _local_search(products, norms, cross, places, words, orders, codes, scores):
    n, M = codes.shape
    K = norms.shape[1]
    base = np.empty(M * K, np.float32)
    acc = np.empty(K, np.float32)
    lows = np.empty(20, np.float32)
    limit = np.empty(1, np.float32)
    zero = np.zeros(1, np.float32)
    rows = np.empty(M, np.int64)
    own = np.empty(M, np.uint8)
    tried = np.empty(M, np.uint8)
    changed = np.empty(M, np.int64)  # when each number last changed, and when it was last chosen
    chosen = np.empty(M, np.int64)
    for i in range(n):
        for m in range(M):
            own[m] = codes[i, m]
            for k in range(K):
                p = products[m, i, k]
                base[m * K + k] = norms[m, k] - (p + p)
        score = _objective(products, norms, cross, i, own)
        for t in range(orders.shape[0]):
            for m in range(M):
                tried[m] = own[m]
                changed[m] = 0
                chosen[m] = -1
            for p in range(places.shape[1]):
                if places[t, p] >= 0:
                    tried[places[t, p]] = words[t, p]
            for at in range(orders.shape[1]):
                m = orders[t, at]
                stale = False
                for j in range(M):
                    stale |= j != m and changed[j] > chosen[m]
                if not stale and chosen[m] >= 0:
                    continue
                best = _conditional(base, cross, m, tried, acc, lows, limit, zero, rows)
                chosen[m] = at
                if best != tried[m]:
                    tried[m] = best
                    changed[m] = at + 1
            new = _objective(products, norms, cross, i, tried)
            if new < score:
                score = new
                for m in range(M):
                    own[m] = tried[m]
        scores[i] = score
        for m in range(M):
            codes[i, m] = own[m]


def _level(level: str) -> dict[str, Any] | None:
    return None if level not in ("avx512", "avx2", "neon") else {"TILED": True, **sums_level(level)}


@kernel("f4:3 f4:2 f4:4 i8:2 u1:2 i8:2 u1:2w f4:1w", twin=_local_search_twin, work=_work,
        helpers=(_objective, _conditional, _local_search), tiled=(_local_search, _level))
def local_search(products, norms, cross, places, words, orders, codes, scores):
    """Improve ``codes`` (n, M) by iterated local search, and write their ``scores`` (n,): ‖x − sum‖² − ‖x‖².

    ``products`` (M, n, K): inner products of the vectors with the codewords; ``norms`` (M, K): their squared norms;
    ``cross`` (M, M, K, K): ``cross[m, j, a, k]`` is 2 ⟨C_j[a], C_m[k]⟩. Each step t puts ``words`` (T, npert) at
    ``places`` (T, npert; a negative one is left out), takes the best codeword of codebook after codebook in
    ``orders`` (T, any), and keeps the result where the score is lower. A codebook whose neighbours have not changed
    since its last turn is passed over: it would choose the same again.
    """
    _local_search(products, norms, cross, places, words, orders, codes, scores)
