"""Beam search for sums of codewords: x ≈ C_0[i_0] + C_1[i_1] + …, one codeword of each codebook.

The score of a partial sum s is ‖x − s‖² − ‖x‖² = Σ_m (‖c_m‖² − 2⟨x, c_m⟩) + Σ_{j<m} 2⟨c_j, c_m⟩: with the inner
products of x and of all pairs of codewords at hand, an extension costs one addition for each codeword that is there
already, whatever the dimension (Babenko & Lempitsky 2014, section 3.2; Liu et al. 2015).

The arithmetic is fixed: float32, ``(((‖c‖² − (p + p)) + cross_0) + cross_1 + …) + score``, each step rounded, so that
what the sums of a beam begin with in common is added up once, to the same bits; and of equal scores the one that
comes first in the order of (parent, codebook, codeword) wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import kernel

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Keys = NDArray[np.uint64]


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


def _limit(groups, width, lows):
    """Return a number that at least ``width`` of those in ``groups`` (G, 16) do not exceed.

    It is the ``width``-th smallest of the minima of the columns: close to the best that can be said, and cheap.
    """
    if width > 16:
        return np.float32(np.inf)
    for k in range(16):
        lows[k] = groups[0, k]
    for g in range(1, groups.shape[0]):
        for k in range(16):
            lows[k] = groups[g, k] if groups[g, k] < lows[k] else lows[k]
    for i in range(1, 16):
        low = lows[i]
        at = i
        while at > 0 and lows[at - 1] > low:
            lows[at] = lows[at - 1]
            at -= 1
        lows[at] = low
    return lows[width - 1]


def _best(scores: Float, width: int) -> NDArray[np.intp]:
    """Return the places of the ``width`` smallest of each row, ordered by (score, place)."""
    if width == 1:
        return scores.argmin(axis=1)[:, None]
    return np.argsort(scores, axis=1, kind="stable")[:, :width]


def _beam_step_twin(products: Float, norms: Float, cross: Float, codes: Codes, scores: Float, new_codes: Codes,
                    new_scores: Float) -> None:
    n, size, m = codes.shape
    K = norms.shape[0]
    width = new_scores.shape[1]
    step = max(1, (1 << 20) // (size * K))
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        acc = np.repeat((norms - (products[rows] + products[rows]))[:, None], size, axis=1)
        for j in range(m):
            acc += cross[j][codes[rows, :, j]]
        acc += scores[rows, :, None]
        acc = acc.reshape(len(acc), size * K)
        best = _best(acc, width)
        new_codes[rows, :, :m] = np.take_along_axis(codes[rows], (best // K)[:, :, None], axis=1)
        new_codes[rows, :, m] = best % K
        new_scores[rows] = np.take_along_axis(acc, best, axis=1)


def _beam_work(products: Float, norms: Float, cross: Float, codes: Codes, *_: object) -> int:
    return products.size * codes.shape[1] * (codes.shape[2] + 3)


@kernel("f4:2 f4:1 f4:3 u1:3 f4:2 u1:3w f4:2w", twin=_beam_step_twin, work=_beam_work,
        helpers=(_alone, _added, _shift, _within, _limit))
def beam_step(products, norms, cross, codes, scores, new_codes, new_scores):
    """Extend the sums in a beam by the next codebook, and keep the best.

    ``products`` (n, K): inner products of the vectors with the codewords; ``norms`` (K,): their squared norms;
    ``cross`` (m, K, K): with the codewords of the m codebooks before, doubled; ``codes`` (n, L, m) and ``scores``
    (n, L): the beam. Written: ``new_codes`` (n, L', m + 1) and ``new_scores`` (n, L'), the best first, L' ≤ L K.
    """
    n, size, m = codes.shape
    K = norms.shape[0]
    width = new_scores.shape[1]
    acc = np.full((K + 15) // 16 * 16, np.inf, np.float32)  # 16 at a time are looked at
    groups = acc.reshape(-1, 16)
    base = np.empty(K, np.float32)
    shared = np.empty(K, np.float32)
    lows = np.empty(16, np.float32)
    place = np.empty(width, np.int64)
    before = np.arange(m)
    for i in range(n):
        kept = new_scores[i]
        count = 0
        worst = np.float32(np.inf)
        common = 0  # codewords that all sums of the beam begin with
        same = size > 1
        while same and common < m:
            for b in range(1, size):
                same &= codes[i, b, common] == codes[i, 0, common]
            common += same
        _alone(products[i], norms, base)
        _added(base, cross, codes[i], 0, before, 0, common, shared)
        for b in range(size):
            _added(shared, cross, codes[i], b, before, common, m, acc)
            _shift(acc, scores[i, b], K)
            if b == 0:
                worst = _limit(groups, width, lows)
            for g in range(groups.shape[0]):
                if _within(groups, g, worst) == 0:
                    continue
                for k in range(16 * g, min(16 * g + 16, K)):
                    score = acc[k]
                    if count == width:
                        if not score < worst:
                            continue
                    elif score > worst:
                        continue
                    else:
                        count += 1
                    at = count - 1
                    while at > 0 and kept[at - 1] > score:
                        kept[at] = kept[at - 1]
                        place[at] = place[at - 1]
                        at -= 1
                    kept[at] = score
                    place[at] = b * K + k
                    if count == width:
                        worst = kept[width - 1]
        for b in range(width):
            for j in range(m):
                new_codes[i, b, j] = codes[i, place[b] // K, j]
            new_codes[i, b, m] = place[b] % K


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
        helpers=(_alone, _added, _shift, _within, _limit))
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
