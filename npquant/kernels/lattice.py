"""Integer vectors of one squared norm: the nearest one by direction, and their numbers 0 … n − 1.

**Nearest.** Of the signed permutations of an *atom* a_1 ≥ a_2 ≥ … ≥ 0 the one nearest to x puts a_i where |x| has its
i-th largest entry, with the sign of x; its inner product with x is Σ_i |x|_(i) a_i. With c_v the number of entries
of a that are at least v, that is Σ_v P[c_v], where P[c] is the sum of the c largest |x|: an atom is a sequence
c_1 ≥ c_2 ≥ … with Σ_v (2v − 1) c_v = r2. So the best is found by dynamic programming, without looking at each atom:
with F(v, c, s) the largest sum over levels v, v + 1, … that starts with at most c and has s left to fill,
``F(v, c, s) = max(F(v, c − 1, s), P[c] + F(v + 1, c, s − (2v − 1) c))``.
All sums are float64, the largest entry first, the highest level first, each step rounded; of equal sums the smaller c
is taken, and of equal entries the first is the largest. So no result depends on the batch or on whether a compiler was
there.

**Numbers.** The vectors are cut into *leaves* of 4 coordinates (the last may be narrower), listed by norm in a table.
A *node* of more coordinates is cut in two, 4 + 4 of 8 or 8 + the rest, and with N(w, s) the number of vectors of w
coordinates and squared norm s, a vector of norm s whose left part has norm a has the number
``Σ_{b<a} N(left, b) N(right, s − b) + (number of the left part) N(right, s − a) + (number of the right part)``.
All are uint64. To decode, a table of 256 buckets says where to begin the search for a, and the quotient is a product
with a reciprocal rounded downwards, one too small at the most.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels._jit import kernel

Float = NDArray[np.float32]
Integers = NDArray[np.int32]
Wide = NDArray[np.uint64]

_ROWS = 64  # whose intermediate results stay in the nearest caches
_TWIN_ROWS = 1024
_GUIDE = 256
_END, _NONE = 0, 1  # slots of nothing left, which adds 0, and of what cannot be
_ZERO, _ONE, _LOW = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFF)


class Sphere(NamedTuple):
    """The integer vectors of d coordinates and squared norm r2, as the kernels read them; made by :func:`sphere`."""

    d: int
    r2: int
    n: int  # how many there are
    reach: int  # the largest coordinate that a vector can have
    steps: Integers  # (n_steps, 3): slots of F(v, c − 1, s) and F(v + 1, c, …), and c, for each slot from 2 on
    network: Integers  # (comparators, 2): the larger of two entries goes to the first place
    nodes: Integers  # (n_nodes, 3): left, right and table; a parent stands before its children, leaves follow nodes
    cum: Wide  # (n_tables, r2 + 1, r2 + 2): [t, s, a] vectors of norm s have a left part of norm below a
    right: Wide  # (n_tables, r2 + 1): N(right, s)
    inverse: NDArray[np.float64]  # 1 / right, a little less
    shift: Wide  # (n_tables, r2 + 1): numbers shifted by it are below 256
    guide: NDArray[np.uint16]  # (n_tables, r2 + 1, 256): where the search begins
    leaves: Float  # (rows, 4): vectors / sqrt(r2), by norm, then lexicographically
    first: Integers  # (2, r2 + 1): rows of the first vector of each norm: with 4, and with the last leaf's coordinates
    starts: Integers  # (r2 + 1, pairs): row of the first vector of a norm that begins with a pair of coordinates
    ranks: Integers  # (pairs,): number of a pair among those of its norm


def counts(widths: list[int], r2: int) -> dict[int, list[int]]:
    """Return, for each of ``widths``, the numbers of integer vectors of squared norm 0 … r2."""
    found, row = {}, [1] + [0] * r2
    squares = [a * a for a in range(1, r2 + 1) if a * a <= r2]
    for width in range(max(widths) + 1):
        if width:
            row = [row[s] + 2 * sum(row[s - q] for q in squares if q <= s) for s in range(r2 + 1)]
        if width in widths:
            found[width] = row
    return found


@lru_cache(maxsize=8)
def sphere(d: int, r2: int) -> Sphere:
    """Return the tables of d coordinates and squared norm r2.

    Raises
    ------
    InvalidInputError
        There are no vectors, or more than 64 bits can number.
    """
    n = counts([d], r2)[d][r2]
    if n == 0:
        raise InvalidInputError(f"No integer vector of dimension d = {d} has squared norm r2 = {r2}. Take a sum of "
                                f"that many squares, as {d} or 4.")
    if n >= 1 << 64:
        raise InvalidInputError(f"{n} integer vectors of dimension d = {d} have squared norm r2 = {r2}, and codes have "
                                f"at most 64 bits. Lower r2: SphericalLattice.for_bits({d}, 64) has the largest.")
    nodes, parts = _nodes(d)
    number = counts([width for part in parts for width in part] or [d], r2)
    # What is more than n, all vectors together cannot be a part of one: such norms are never asked for.
    known = {width: np.array([c if c <= n else 0 for c in row], np.uint64) for width, row in number.items()}
    cum = np.zeros((len(parts), r2 + 1, r2 + 2), np.uint64)
    for table, (left, rest) in zip(cum, parts):
        for s in range(r2 + 1):
            table[s, 1:s + 2] = np.cumsum(known[left][:s + 1] * known[rest][s::-1])
            table[s, s + 2:] = table[s, s + 1]
    right = np.array([known[rest] for _, rest in parts], np.uint64).reshape(len(parts), r2 + 1)
    inverse = (1 - 2.0**-50) / np.maximum(right, np.uint64(1)).astype(np.float64)
    shift = np.zeros((len(parts), r2 + 1), np.uint64)
    guide = np.zeros((len(parts), r2 + 1, _GUIDE), np.uint16)
    buckets = np.arange(_GUIDE, dtype=np.uint64)
    for t in range(len(parts)):
        for s in range(r2 + 1):
            bits = max(0, (int(cum[t, s, s + 1]) - 1).bit_length() - 8)
            shift[t, s] = bits
            place = np.searchsorted(cum[t, s, 1:s + 2], buckets << np.uint64(bits), side="right")
            guide[t, s] = np.minimum(place, s)
    return Sphere(d, r2, n, math.isqrt(r2), _steps(d, r2), _network(d), nodes, cum, right, inverse, shift, guide,
                  *_leaves(r2, d - (d - 1) // 4 * 4))


@lru_cache(maxsize=8)
def atoms(d: int, r2: int) -> NDArray[np.uint8]:
    """Return all atoms, (n_atoms, d), in lexicographic order of (c_1, c_2, …)."""
    found: list[tuple[int, ...]] = []

    def extend(begun: tuple[int, ...], rest: int, most: int) -> None:
        weight = 2 * len(begun) + 1
        for c in range(1, min(most, rest // weight) + 1):
            if weight * c == rest:
                found.append((*begun, c))
            else:
                extend((*begun, c), rest - weight * c, c)
    extend((), r2, d)
    out = np.zeros((len(found), d), np.uint8)
    for atom, levels in zip(out, found):
        for c in levels:
            atom[:c] += 1
    return out


def _steps(d: int, r2: int) -> Integers:
    steps: list[tuple[int, int, int]] = []
    slots: dict[tuple[int, int], list[int]] = {}

    def best(v: int, most: int, rest: int) -> int:
        known = slots.setdefault((v, rest), [_NONE])  # of F(v, 0, rest), F(v, 1, rest), …
        weight = 2 * v - 1
        most = min(most, rest // weight)
        for c in range(len(known), most + 1):
            left = rest - weight * c
            lower = best(v + 1, c, left) if left else _END
            if lower != _NONE:
                steps.append((known[-1], lower, c))
            known.append(known[-1] if lower == _NONE else len(steps) + 1)
        return known[most]
    best(1, d, r2)
    return np.array(steps, np.int32).reshape(-1, 3)


def _network(d: int) -> Integers:
    """Return the comparators of Batcher's odd-even merge sort, for any d."""
    pairs, p = [], 1
    while p < d:
        k = p
        while k:
            pairs += [(i + j, i + j + k) for j in range(k % p, d - k, 2 * k) for i in range(min(k, d - j - k))
                      if (i + j) // (2 * p) == (i + j + k) // (2 * p)]
            k //= 2
        p *= 2
    return np.array(pairs, np.int32).reshape(-1, 2)


def _nodes(d: int) -> tuple[Integers, list[tuple[int, int]]]:
    """Return the nodes of d coordinates, and the widths of the two parts of each table."""
    nodes: list[tuple[int, int, int]] = []
    parts: list[tuple[int, int]] = []
    waiting, n_nodes = [(0, d)] if d > 4 else [], (d - 1) // 4

    def place(first: int, width: int) -> int:
        if width <= 4:
            return n_nodes + first // 4
        waiting.append((first, width))
        return len(nodes) + len(waiting)
    while waiting:
        first, width = waiting.pop(0)
        left = 4 if width <= 8 else 8
        if (left, width - left) not in parts:
            parts.append((left, width - left))
        child = place(first, left)
        nodes.append((child, place(first + left, width - left), parts.index((left, width - left))))
    return np.array(nodes, np.int32).reshape(-1, 3), parts


def _leaves(r2: int, last: int) -> tuple[Float, Integers, Integers, Integers]:
    reach = math.isqrt(r2)
    axis = np.arange(-reach, reach + 1)
    pairs = np.stack([np.repeat(axis, len(axis)), np.tile(axis, len(axis))], axis=1)
    norms = np.square(pairs).sum(axis=1)
    ranks = np.zeros(len(pairs), np.int32)
    for s in range(r2 + 1):
        held = norms == s
        ranks[held] = np.arange(held.sum())
    used = np.flatnonzero(norms <= r2)
    whole = norms[used][:, None] + norms[used]
    one, other = np.nonzero(whole <= r2)
    norm = whole[one, other]
    order = np.argsort(norm, kind="stable")  # pairs come in lexicographic order
    norm, one, other = norm[order], used[one[order]], used[other[order]]
    leaves = np.concatenate([pairs[one], pairs[other]], axis=1)
    key = norm * len(pairs) + one
    starts = np.searchsorted(key, np.arange(r2 + 1)[:, None] * len(pairs) + np.arange(len(pairs)))
    first = np.zeros((2, r2 + 1), np.int32)
    for row, width in zip(first, (4, last)):
        held = np.flatnonzero((leaves[:, :4 - width] == 0).all(axis=1))  # one run in each norm, if any
        row[norm[held][::-1]] = held[::-1]
    return ((leaves / np.sqrt(r2)).astype(np.float32), first, starts.astype(np.int32), ranks)


# ------------------------------------------------------------------------------------- encoding


def _encode_work(x: Float, steps: Integers, *_: object) -> int:
    return len(x) * (len(steps) + 20 * x.shape[1])


def ranked(x: Float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the order of decreasing |x|, (n, d), the first of equals first; and the sums P, (n, d + 1)."""
    magnitude = np.abs(x)
    order = np.argsort(-magnitude, axis=1, kind="stable")
    sums = np.zeros((len(x), x.shape[1] + 1))
    np.cumsum(np.take_along_axis(magnitude, order, axis=1), axis=1, dtype=np.float64, out=sums[:, 1:])
    return order, sums


def _best_atoms(sums: NDArray[np.float64], steps: Integers) -> NDArray[np.int64]:
    """Return the best atom of each row, (n, d)."""
    n, columns = len(sums), np.ascontiguousarray(sums.T)
    values = np.empty((len(steps) + 2, n))
    values[_END], values[_NONE] = 0, -1
    for number, (one, other, c) in enumerate(steps.tolist(), start=2):
        np.maximum(values[one], columns[c] + values[other], out=values[number])
    table = np.concatenate([np.zeros((2, 3), np.int32), steps])
    slot, rows = np.full(n, len(values) - 1), np.arange(n)
    atoms = np.zeros((n, len(columns) - 1), np.int64)
    while (slot != _END).any():
        before = table[slot, 0]
        down = (slot != _END) & (values[slot, rows] == values[before, rows])
        atoms += np.arange(atoms.shape[1]) < np.where(down | (slot == _END), 0, table[slot, 2])[:, None]
        slot = np.where(down, before, np.where(slot == _END, _END, table[slot, 1]))
    return atoms


def _encode_twin(x: Float, steps: Integers, network: Integers, nodes: Integers, cum: Wide, right: Wide,
                 first: Integers, starts: Integers, ranks: Integers, reach: int, codes: Wide) -> None:
    d, n_nodes = x.shape[1], len(nodes)
    for begin in range(0, len(x), _TWIN_ROWS):
        part = x[begin:begin + _TWIN_ROWS]
        order, sums = ranked(part)
        z = np.zeros((len(part), 4 * (n_nodes + 1)), np.int64)  # a narrow leaf has zeros before its coordinates
        places = order + np.where(order // 4 == n_nodes, z.shape[1] - d, 0)
        np.put_along_axis(z, places, _best_atoms(sums, steps), axis=1)
        signs = np.where(part < 0, -1, 1)
        gap = z.shape[1] - d
        z[:, :4 * n_nodes] *= signs[:, :4 * n_nodes]
        z[:, 4 * n_nodes + gap:] *= signs[:, 4 * n_nodes:]
        number = np.zeros((2 * n_nodes + 1, len(part)), np.uint64)
        norm = np.zeros((2 * n_nodes + 1, len(part)), np.int64)
        for leaf in range(n_nodes + 1):
            a, b, c, e = z[:, 4 * leaf:4 * leaf + 4].T
            s = a * a + b * b + c * c + e * e
            row = starts[s, _pair(a, b, reach)] + ranks[_pair(c, e, reach)]
            number[n_nodes + leaf] = row - first[int(leaf == n_nodes), s]
            norm[n_nodes + leaf] = s
        for node in range(n_nodes - 1, -1, -1):
            one, other, t = nodes[node]
            s = norm[one] + norm[other]
            number[node] = cum[t, s, norm[one]] + number[one] * right[t, norm[other]] + number[other]
            norm[node] = s
        codes[begin:begin + _TWIN_ROWS] = number[0]


def _pair(a: Any, b: Any, reach: int) -> Any:
    return (a + reach) * (2 * reach + 1) + b + reach


@kernel("f4:2 i4:2 i4:2 i4:2 u8:3 u8:2 i4:2 i4:2 i4:1 i8 u8:1w", twin=_encode_twin, work=_encode_work,
        helpers=(_pair,))
def encode(x, steps, network, nodes, cum, right, first, starts, ranks, reach, codes):
    """Write the numbers of the vectors nearest to ``x`` (n, d) by direction into ``codes`` (n,).

    Sorting is a network of minima and maxima of integers (bits of |x|, then the place from the end), a comparator over
    all rows of a block at a time, and so is each step of the dynamic program: both are vectorised over the rows.
    """
    n, d = x.shape
    n_nodes = nodes.shape[0]
    bits = x.view(np.uint32)
    keys = np.empty((d, _ROWS), np.uint64)
    word = np.empty(_ROWS, np.uint32)
    entry = word.view(np.float32)
    sums = np.zeros((d + 1, _ROWS))
    values = np.empty((steps.shape[0] + 2, _ROWS))
    values[_END], values[_NONE] = 0.0, -1.0
    levels = np.empty(reach, np.int64)
    z = np.zeros(4 * (n_nodes + 1), np.int64)
    number = np.empty(2 * n_nodes + 1, np.uint64)
    norm = np.empty(2 * n_nodes + 1, np.uint64)
    tail, gap = np.uint64(4 * n_nodes), np.uint64(4 * (n_nodes + 1) - d)
    for begin in range(0, n, _ROWS):
        rows = min(_ROWS, n - begin)
        for i in range(rows):
            for j in range(d):
                keys[j, i] = (np.uint64(bits[begin + i, j] & np.uint32(0x7FFFFFFF)) << np.uint64(32)
                              | np.uint64(0xFFFFFFFF - j))
        for pair in range(network.shape[0]):
            one, other = keys[network[pair, 0]], keys[network[pair, 1]]
            for i in range(_ROWS):
                a, b = one[i], other[i]
                one[i] = max(a, b)
                other[i] = min(a, b)
        for j in range(d):
            for i in range(_ROWS):
                word[i] = np.uint32(keys[j, i] >> np.uint64(32))
            for i in range(_ROWS):
                sums[j + 1, i] = sums[j, i] + np.float64(entry[i])
        for step in range(steps.shape[0]):
            before, lower, add = values[steps[step, 0]], values[steps[step, 1]], sums[steps[step, 2]]
            here = values[step + 2]
            for i in range(_ROWS):
                value = add[i] + lower[i]
                here[i] = value if value > before[i] else before[i]
        for i in range(rows):
            vector = x[begin + i]
            slot, n_levels = steps.shape[0] + 1, 0
            while slot != _END:
                before = steps[slot - 2, 0]
                if values[slot, i] == values[before, i]:
                    slot = before
                else:
                    levels[n_levels] = steps[slot - 2, 2]
                    n_levels += 1
                    slot = steps[slot - 2, 1]
            for j in range(d):
                while n_levels > 0 and levels[n_levels - 1] <= j:
                    n_levels -= 1
                place = _LOW - (keys[j, i] & _LOW)
                z[place + (gap if place >= tail else _ZERO)] = -n_levels if vector[place] < 0 else n_levels
            for leaf in range(n_nodes + 1):
                a, b, c, e = z[4 * leaf], z[4 * leaf + 1], z[4 * leaf + 2], z[4 * leaf + 3]
                s = np.uint64(a * a + b * b + c * c + e * e)
                row = starts[s, np.uint64(_pair(a, b, reach))] + ranks[np.uint64(_pair(c, e, reach))]
                number[n_nodes + leaf] = np.uint64(row - first[1 if leaf == n_nodes else 0, s])
                norm[n_nodes + leaf] = s
            for node in range(n_nodes - 1, -1, -1):
                left, rest, t = nodes[node, 0], nodes[node, 1], nodes[node, 2]
                a_norm, o_norm = norm[left], norm[rest]
                number[node] = (cum[t, a_norm + o_norm, a_norm] + number[left] * right[t, o_norm]) + number[rest]
                norm[node] = a_norm + o_norm
            codes[begin + i] = number[0]


# ------------------------------------------------------------------------------------- decoding


def _decode_work(codes: Wide, r2: int, nodes: Integers, *_: object) -> int:
    return 40 * len(codes) * (len(nodes) + 1)


def _decode_twin(codes: Wide, r2: int, nodes: Integers, cum: Wide, right: Wide, inverse: NDArray[np.float64],
                 shift: Wide, guide: NDArray[np.uint16], leaves: Float, first: Integers, out: Float) -> None:
    n_nodes, d = len(nodes), out.shape[1]
    for begin in range(0, len(codes), _TWIN_ROWS):
        part = codes[begin:begin + _TWIN_ROWS]
        number = np.zeros((2 * n_nodes + 1, len(part)), np.uint64)
        norm = np.zeros((2 * n_nodes + 1, len(part)), np.int64)
        number[0], norm[0] = part, r2
        for node, (left, rest, t) in enumerate(nodes.tolist()):
            c, s = number[node], norm[node]
            a = guide[t, s, (c >> shift[t, s]).astype(np.int64)].astype(np.int64)
            while (beyond := c >= cum[t, s, a + 1]).any():
                a[beyond] += 1
            number[left], number[rest] = np.divmod(c - cum[t, s, a], right[t, s - a])
            norm[left], norm[rest] = a, s - a
        for leaf in range(n_nodes + 1):
            begun, narrow = 4 * leaf, leaf == n_nodes
            row = number[n_nodes + leaf].astype(np.int64) + first[int(narrow), norm[n_nodes + leaf]]
            width = d - begun if narrow else 4
            out[begin:begin + _TWIN_ROWS, begun:begun + width] = leaves[row, 4 - width:]


@kernel("u8:1 i8 i4:2 u8:3 u8:2 f8:2 u8:2 u2:3 f4:2 i4:2 f4:2w", twin=_decode_twin, work=_decode_work)
def decode(codes, r2, nodes, cum, right, inverse, shift, guide, leaves, first, out):
    """Write the vectors of the numbers ``codes`` (n,), divided by their norm, into ``out`` (n, d).

    A node is done for all codes of a block before the next: the steps of one code wait for each other, those of
    many do not. Unsigned indices spare numba's test for negative ones: half of the time.
    """
    n, d = out.shape
    n_nodes = nodes.shape[0]
    number = np.empty((2 * n_nodes + 1, _ROWS), np.uint64)
    norm = np.empty((2 * n_nodes + 1, _ROWS), np.uint64)
    for begin in range(0, n, _ROWS):
        rows = min(_ROWS, n - begin)
        for i in range(rows):
            number[0, i] = codes[begin + i]
            norm[0, i] = np.uint64(r2)
        for node in range(n_nodes):
            left, rest, t = nodes[node, 0], nodes[node, 1], nodes[node, 2]
            c_here, s_here, c_left, s_left = number[node], norm[node], number[left], norm[left]
            c_rest, s_rest, below, per_left = number[rest], norm[rest], cum[t], right[t]
            reciprocal, places, begins = inverse[t], shift[t], guide[t]
            for i in range(rows):
                c, s = c_here[i], s_here[i]
                a = np.uint64(begins[s, c >> places[s]])
                while c >= below[s, a + _ONE]:
                    a += _ONE
                c -= below[s, a]
                o = s - a
                per = per_left[o]
                q = np.uint64(np.int64(np.float64(c) * reciprocal[o]))
                c -= q * per
                more = c >= per
                c_left[i] = q + _ONE if more else q
                s_left[i] = a
                c_rest[i] = c - per if more else c
                s_rest[i] = o
        for leaf in range(n_nodes + 1):
            narrow = leaf == n_nodes
            c_here, s_here = number[n_nodes + leaf], norm[n_nodes + leaf]
            begun = first[1 if narrow else 0]
            if narrow and d % 4:
                for i in range(rows):
                    row = c_here[i] + np.uint64(begun[s_here[i]])
                    for j in range(4 * leaf, d):
                        out[begin + i, j] = leaves[row, j + 4 - d]
            else:
                for i in range(rows):
                    row = c_here[i] + np.uint64(begun[s_here[i]])
                    p0, p1, p2, p3 = leaves[row, 0], leaves[row, 1], leaves[row, 2], leaves[row, 3]
                    at = out[begin + i]
                    at[4 * leaf], at[4 * leaf + 1], at[4 * leaf + 2], at[4 * leaf + 3] = p0, p1, p2, p3
