"""Searching binary codes by Hamming distance: the number of bits in which two codes differ, exact, ties by id.

Codes lie in rows, as they were encoded, and are read as 64-bit words; a row whose bytes are no whole words is padded
with zeros, a piece of the codes at a time, as it is read. A scan looks at 64 codes together: popcounts of whole vectors
say whether any of them is as near as the k-th so far, and only those that are get touched one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.kernels import simd
from npquant.kernels._jit import Kernel, kernel
from npquant.kernels._order import _parted, _select, _sort
from npquant.kernels._pool import run_blocks
from npquant.kernels.exact import _ones

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]
Words = NDArray[np.uint64]

_GROUP = 64  # codes looked at together: the bits of one word of the mask
_QUERIES = 16  # queries that pass over a piece of the codes while it is in the cache
_PIECE = 1 << 15  # words of codes in that piece: 256 KB
_SAMPLE = 256  # of so many groups one is looked at first, for a limit
_PADDED = 1 << 14  # codes padded to whole words at a time
_ONES_IN_BYTE = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def distances_to(query: Words, words: Words) -> NDArray[np.int64]:
    """Return the Hamming distances (n,) of ``words`` (n, W) to ``query`` (W,)."""
    different = words ^ query
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(different).sum(axis=1, dtype=np.int64)
    return _ONES_IN_BYTE[different.view(np.uint8)].sum(axis=1, dtype=np.int64)


def live_mask(live: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """Return which of ``n`` codes are live: (n,) bool; bit i % 64 of ``live[i // 64]`` says it of code i."""
    bits = np.unpackbits(live.astype("<u8").view(np.uint8), bitorder="little")
    return bits[:n].astype(np.bool_)


# ------------------------------------------------------------------------------------- kernels


def _distance(query, words, i):
    """Return the Hamming distance of code i."""
    total = np.int64(0)
    for w in range(query.shape[0]):
        total += _ones(words[i, w] ^ query[w])
    return total


def _near(words, query, near, group, stop, limit):
    """Write the first group from ``group`` on with a code within ``limit`` (else ``stop``), and which of its codes."""
    near[0] = np.uint64(stop)
    for g in range(group, stop):
        mask = np.uint64(0)
        for i in range(64):
            if _distance(query, words, 64 * g + i) <= limit:
                mask |= np.uint64(1) << np.uint64(i)
        if mask != np.uint64(0):
            near[0] = np.uint64(g)
            near[1] = mask
            break


# What a SIMD level puts its vector code in the place of: codes of 1, 2 and 4 words.
_near_1 = _near_2 = _near_4 = _near


def _next_near(words, query, near, group, stop, limit):
    W = query.shape[0]
    if W == 1:
        _near_1(words, query, near, group, stop, limit)
    elif W == 2:
        _near_2(words, query, near, group, stop, limit)
    elif W == 4:
        _near_4(words, query, near, group, stop, limit)
    else:
        _near(words, query, near, group, stop, limit)


def _first_limit(query, words, live, k):
    """Return a distance within which k codes are, but for once in some thousand times, of groups of one in 256."""
    groups = words.shape[0] // (64 * _SAMPLE)
    most = 64 * query.shape[0]
    if groups < 4 or k < 32:  # it would cost more than it saves
        return most
    share = k / _SAMPLE
    left = share + 3.5 * np.sqrt(share) + 2
    of_distance = np.zeros(most + 1, np.int64)
    for g in range(groups):
        group = g * _SAMPLE
        for i in range(64):
            alive = (live[group] >> np.uint64(i)) & np.uint64(1)
            of_distance[_distance(query, words, 64 * group + i)] += np.int64(alive)
    for distance in range(most):
        left -= of_distance[distance]
        if left <= 0:
            return distance
    return most


def _collect(q, queries, words, live, ids, near, begin, stop, k, room, kept, names, sizes, limits):
    """Keep, of the groups from ``begin`` to before ``stop``, the codes that may be among the k nearest of query q."""
    size = sizes[q]
    group = np.int64(begin)
    while group < stop:
        _next_near(words, queries[q], near, group, stop, limits[q])
        group = np.int64(near[0])
        if group == stop:
            break
        mask = near[1] & live[group]
        few = size < k
        while mask != np.uint64(0):
            lowest = mask & (~mask + np.uint64(1))
            mask ^= lowest
            i = 64 * group + _ones(lowest - np.uint64(1))
            kept[q, size] = np.float32(_distance(queries[q], words, i))
            names[q, size] = ids[i]
            size += 1
        if size >= (k if few else room):
            limits[q] = np.int64(_select(kept[q], names[q], size, k))
            size = k
        group += 1
    sizes[q] = size


def _level(level: str) -> dict[str, Any]:
    """Return what kernels call, compiled for a SIMD level."""
    from numba import njit

    def compiled(function: Callable[..., Any], **scope: Any) -> Any:
        return njit(nogil=True)(FunctionType(function.__code__, {**function.__globals__, **scope}, function.__name__))
    distance = compiled(_distance, _ones=compiled(_ones))
    near = compiled(_near, _distance=distance)
    lanes = next((lanes for name, lanes in _LANES.items() if level.startswith(name)), 0)
    fast = {W: simd.intrinsic(partial(near_vectors, lanes, W), ("words", "query", "near"), ("group", "stop", "limit"))
            if lanes else near for W in (1, 2, 4)}
    parted = compiled(_parted)
    select, ones = compiled(_select, _parted=parted), compiled(_ones)
    find = compiled(_next_near, _near=near, **{f"_near_{W}": code for W, code in fast.items()})
    return {"_ones": ones, "_distance": distance, "_next_near": find, "_select": select,
            "_sort": compiled(_sort, _parted=parted), "_first_limit": compiled(_first_limit, _distance=distance),
            "_collect": compiled(_collect, _next_near=find, _ones=ones, _distance=distance, _select=select)}


_LANES = {"avx512": 8, "avx2": 4, "neon": 2}  # words of a vector


def near_vectors(lanes: int, W: int, builder: Any, v: dict[str, Any]) -> None:
    """Emit ``_near`` for codes of W words: of 64 codes the least distance by lanes, and a mask where it is within."""
    from llvmlite import ir
    from numba.core import cgutils
    b, number = builder, ir.IntType(64)
    kind = ir.VectorType(number, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    ones = cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [kind]), f"llvm.ctpop.v{lanes}i64")

    def shuffled(first: Any, second: Any, order: list[int]) -> Any:
        return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), lanes), order))

    def repeated(scalars: list[Any]) -> Any:
        vector = undefined
        for lane in range(lanes):
            vector = b.insert_element(vector, scalars[lane % len(scalars)], ir.IntType(32)(lane))
        return vector
    query = [b.load(b.gep(v["query"], [number(w)])) for w in range(W)]
    asked = [repeated([query[(part * lanes + lane) % W] for lane in range(lanes)]) for part in range(W)]
    limit = repeated([v["limit"]])
    b.store(v["stop"], v["near"])
    before = b.block
    head, body, found, end = (b.append_basic_block(name) for name in ("head", "body", "found", "end"))
    b.branch(head)
    b.position_at_end(head)
    group = b.phi(number)
    group.add_incoming(v["group"], before)
    b.cbranch(b.icmp_signed("<", group, v["stop"]), body, end)

    b.position_at_end(body)
    base = b.bitcast(b.gep(v["words"], [b.mul(group, number(_GROUP * W))]), kind.as_pointer())
    unordered = W == 2  # pairs of lanes are put side by side, which is cheaper than to bring all in order
    distances = []
    for first in range(0, _GROUP * W // lanes, W):  # W vectors hold as many codes as one has lanes
        parts = []
        for part in range(W):
            code = b.load(b.gep(base, [number(first + part)]))
            code.align = 8
            parts.append(b.call(ones, [b.xor(code, asked[part])]))
        while len(parts) > 1:  # neighbours, which are words of one code, are added until one number a code is left
            even, odd = ([(lane // 2 * 2 + lane % 2 * lanes if unordered else 2 * lane) + side for lane in range(lanes)]
                         for side in (0, 1))
            parts = [b.add(shuffled(p, q, even), shuffled(p, q, odd)) for p, q in zip(parts[::2], parts[1::2])]
        distances += parts
    least = list(distances)
    while len(least) > 1:
        least = [b.select(b.icmp_signed("<", p, q), p, q) for p, q in zip(least[::2], least[1::2])]
    some = b.bitcast(b.icmp_signed("<=", least[0], limit), ir.IntType(lanes))
    following = b.add(group, number(1))
    group.add_incoming(following, body)
    b.cbranch(b.icmp_unsigned("==", some, ir.IntType(lanes)(0)), head, found)

    b.position_at_end(found)
    mask = number(0)
    for i, distance in enumerate(distances):
        if unordered:
            distance = shuffled(distance, distance, [*range(0, lanes, 2), *range(1, lanes, 2)])
        bits = b.zext(b.bitcast(b.icmp_signed("<=", distance, limit), ir.IntType(lanes)), number)
        mask = b.or_(mask, b.shl(bits, number(i * lanes)))
    b.store(group, v["near"])
    b.store(mask, b.gep(v["near"], [number(1)]))
    b.branch(end)
    b.position_at_end(end)


def _levelled(signature: str, twin: Callable[..., None], work: Callable[..., int]) -> Callable[..., Kernel]:
    def wrap(source: Callable[..., None]) -> Kernel:
        return kernel(signature, twin=twin, work=work, tiled=(source, _level))(source)
    return wrap


def _work(queries: Words, words: Words, *_: object) -> int:
    return queries.size * words.shape[0]


def _scores_twin(queries: Words, words: Words, out: Float) -> None:
    for q, query in enumerate(queries):
        out[q] = distances_to(query, words)


@_levelled("u8:2 u8:2 f4:2w", _scores_twin, _work)
def hamming_scores(queries, words, out):
    """Write the distances of ``words`` (n, W) to ``queries`` (nq, W) into ``out`` (nq, n)."""
    for q in range(queries.shape[0]):
        query = queries[q]
        if query.shape[0] == 1:
            for i in range(words.shape[0]):
                out[q, i] = _ones(words[i, 0] ^ query[0])
        else:
            for i in range(words.shape[0]):
                out[q, i] = _distance(query, words, i)


def _topk_twin(queries: Words, words: Words, live: NDArray[np.uint64], ids: Ids, sizes: Ids, distances: Float,
               found: Ids) -> None:
    rows = np.flatnonzero(live_mask(live, len(words)))
    there, names = words[rows], ids[rows]
    for q, query in enumerate(queries):
        scores = np.concatenate([distances[q, :sizes[q]], distances_to(query, there).astype(np.float32)])
        every = np.concatenate([found[q, :sizes[q]], names])
        order = np.lexsort((every, scores))[:distances.shape[1]]
        sizes[q] = len(order)
        distances[q, :len(order)], found[q, :len(order)] = scores[order], every[order]


@_levelled("u8:2 u8:2 u8:1 i8:1 i8:1w f4:2w i8:2w", _topk_twin, _work)
def hamming_topk(queries, words, live, ids, sizes, distances, found):
    """Merge the live of ``words`` (n, W), named ``ids`` (n,), into the k nearest so far of ``queries`` (nq, W).

    ``sizes`` (nq,) says how many of ``distances`` and ``found`` (nq, k) are taken: ordered by (distance, id), before
    and after. In between a few more than k are kept, of which the k best are selected when there are so many.
    """
    n, W = words.shape
    nq, k = distances.shape
    near = np.empty(2, np.uint64)
    room = k + k // 4 + 4
    kept = np.empty((nq, room + 64), np.float32)
    names = np.empty(kept.shape, np.int64)
    limits = np.empty(nq, np.int64)
    guessed = np.empty(nq, np.bool_)
    for q in range(nq):
        for i in range(sizes[q]):
            kept[q, i] = distances[q, i]
            names[q, i] = found[q, i]
        limits[q] = np.int64(distances[q, k - 1]) if sizes[q] == k else 64 * W
        guessed[q] = sizes[q] == 0
        if guessed[q]:
            limits[q] = _first_limit(queries[q], words, live, k)
    whole = n // 64  # groups
    step = max(1, _PIECE // (64 * W))
    for begin in range(0, whole, step):
        stop = min(whole, begin + step)
        for q in range(nq):
            _collect(q, queries, words, live, ids, near, begin, stop, k, room, kept, names, sizes, limits)
    for q in range(nq):
        if guessed[q] and sizes[q] < k:  # once more, whatever the distance
            sizes[q] = 0
            limits[q] = 64 * W
            _collect(q, queries, words, live, ids, near, np.int64(0), whole, k, room, kept, names, sizes, limits)
    for q in range(nq):
        size = sizes[q]
        for i in range(64 * whole, n):
            if (live[whole] >> np.uint64(i - 64 * whole)) & np.uint64(1):
                kept[q, size] = np.float32(_distance(queries[q], words, i))
                names[q, size] = ids[i]
                size += 1
        if size > k:
            _select(kept[q], names[q], size, k)
            size = k
        _sort(kept[q], names[q], size)
        for i in range(size):
            distances[q, i] = kept[q, i]
            found[q, i] = names[q, i]
        sizes[q] = size


def _within_twin(queries: Words, words: Words, live: NDArray[np.uint64], ids: Ids, radius: Ids, ends: Ids,
                 distances: Float, found: Ids) -> None:
    rows = np.flatnonzero(live_mask(live, len(words)))
    there, names = words[rows], ids[rows]
    for q, query in enumerate(queries):
        scores = distances_to(query, there)
        kept = np.flatnonzero(scores <= radius[q])
        if len(found):
            place = slice(ends[q], ends[q] + len(kept))
            distances[place], found[place] = scores[kept], names[kept]
        ends[q] += len(kept)


@_levelled("u8:2 u8:2 u8:1 i8:1 i8:1 i8:1w f4:1w i8:1w", _within_twin, _work)
def hamming_within(queries, words, live, ids, radius, ends, distances, found):
    """Write which live ``words`` (n, W) are within ``radius`` (nq,) of ``queries`` (nq, W), in the order of the rows.

    Those of query q go to ``distances`` and ``found`` from ``ends[q]`` on, which is moved behind them; where these two
    are empty it is moved only, so that a first call counts. Beyond their end nothing is written: an index may have
    grown since it was counted.
    """
    n, W = words.shape
    near = np.empty(2, np.uint64)
    whole = n // 64
    step = max(1, _PIECE // (64 * W))
    for begin in range(0, whole, step):
        stop = min(whole, begin + step)
        for q in range(queries.shape[0]):
            group = np.int64(begin)
            while group < stop:
                _next_near(words, queries[q], near, group, stop, radius[q])
                group = np.int64(near[0])
                if group == stop:
                    break
                mask = near[1] & live[group]
                if found.shape[0] == 0:
                    ends[q] += _ones(mask)
                    mask = np.uint64(0)
                while mask != np.uint64(0) and ends[q] < found.shape[0]:
                    lowest = mask & (~mask + np.uint64(1))
                    mask ^= lowest
                    i = 64 * group + _ones(lowest - np.uint64(1))
                    distances[ends[q]] = _distance(queries[q], words, i)
                    found[ends[q]] = ids[i]
                    ends[q] += 1
                group += 1
    for q in range(queries.shape[0]):
        for i in range(64 * whole, n):
            score = _distance(queries[q], words, i)
            if score <= radius[q] and (live[whole] >> np.uint64(i - 64 * whole)) & np.uint64(1):
                if ends[q] < found.shape[0]:
                    distances[ends[q]] = score
                    found[ends[q]] = ids[i]
                ends[q] += 1


# ------------------------------------------------------------------------------------- what others call


def _are_words(codes: Codes) -> bool:
    return codes.shape[1] % 8 == 0 and codes.flags.c_contiguous and codes.ctypes.data % 8 == 0


def as_words(codes: Codes) -> Words:
    """Return ``codes`` (n, s) as 64-bit words (n, W): a view where that is possible, else padded with zeros."""
    if _are_words(codes):
        return codes.view(np.uint64)
    n, s = codes.shape
    padded = np.zeros((n, -(-s // 8) * 8), np.uint8)
    padded[:, :s] = codes
    return padded.view(np.uint64)


def _pieces(codes: Codes) -> list[slice]:
    """Return how codes are handed to kernels: whole, or some at a time where they have to be padded."""
    n = len(codes)
    return [slice(0, n)] if _are_words(codes) else [slice(at, min(at + _PADDED, n)) for at in range(0, n, _PADDED)]


def _checked(queries: Codes, codes: Codes, ids: Ids | None, live: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
    # Compiled code reads where it is told to: whatever went wrong before, it must not read beyond an array.
    groups = -(-len(codes) // _GROUP)
    if live is None:
        live = np.full(groups, ~np.uint64(0))
    if (queries.dtype != np.uint8 or codes.dtype != np.uint8 or queries.ndim != 2 or codes.ndim != 2
            or queries.shape[1] != codes.shape[1] or len(live) != groups
            or (ids is not None and len(ids) != len(codes))):
        raise InvalidInputError(f"queries {queries.shape}, codes {codes.shape}, {len(live)} words of live codes and "
                                f"{len(codes) if ids is None else len(ids)} ids do not fit together.")
    return live


def scores(queries: Codes, codes: Codes, threads: int | None) -> Float:
    """Return the Hamming distances (nq, n) float32 of ``codes`` (n, s) to ``queries`` (nq, s), both uint8."""
    _checked(queries, codes, None, None)
    out = np.empty((len(queries), len(codes)), np.float32)
    asked, words = as_words(queries), as_words(codes)

    def block(start: int, stop: int) -> None:
        hamming_scores(asked[start:stop], words, out[start:stop])
    run_blocks(block, len(queries), _QUERIES, threads)
    return out


def topk(queries: Codes, codes: Codes, ids: Ids, k: int, threads: int | None = None,
         live: NDArray[np.uint64] | None = None) -> tuple[Float, Ids]:
    """Return the k nearest (distances, ids), (nq, k) each, ordered by (distance, id), of the live codes.

    Parameters
    ----------
    queries, codes : ndarray (nq, s), (n, s) uint8
        Any s; where it is a multiple of 8 the codes are read where they are.
    ids : ndarray (n,) int64
    k : int
        Where fewer are live, the rest is padded: +inf, and id −1.
    live : ndarray (⌈n / 64⌉,) uint64, optional
        Bit i % 64 of word i // 64 says whether code i counts; all by default.

    Notes
    -----
    16 queries pass together over 256 KB of codes after 256 KB. The result does not depend on threads or SIMD level.
    """
    live = _checked(queries, codes, ids, live)
    distances = np.full((len(queries), k), np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    sizes = np.zeros(len(queries), np.int64)
    asked = as_words(queries)

    def block(start: int, stop: int) -> None:
        for rows in _pieces(codes):
            hamming_topk(asked[start:stop], as_words(codes[rows]), live[rows.start // _GROUP:-(-rows.stop // _GROUP)],
                         ids[rows], sizes[start:stop], distances[start:stop], found[start:stop])
    if k and len(codes):
        run_blocks(block, len(queries), _QUERIES, threads)
    return distances, found


def within(queries: Codes, codes: Codes, ids: Ids, radius: Ids, threads: int | None = None,
           live: NDArray[np.uint64] | None = None) -> tuple[Ids, Float, Ids]:
    """Return the live codes no farther than ``radius``, int64 (nq,): (limits int64 (nq + 1,), distances, ids).

    Those of query q are from limits[q] to limits[q + 1], ordered by (distance, id); other arguments as of ``topk``.
    The codes are read twice: once to count.
    """
    live = _checked(queries, codes, ids, live)
    asked = as_words(queries)
    counts = np.zeros(len(queries), np.int64)
    nothing = np.empty(0, np.float32), np.empty(0, np.int64)

    def walk(start: int, stop: int, ends: Ids, distances: Float, found: Ids) -> None:
        for rows in _pieces(codes) if len(codes) else []:
            hamming_within(asked[start:stop], as_words(codes[rows]), live[rows.start // _GROUP:-(-rows.stop // _GROUP)],
                           ids[rows], radius[start:stop], ends[start:stop], distances, found)
    run_blocks(lambda start, stop: walk(start, stop, counts, *nothing), len(queries), _QUERIES, threads)
    limits = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    distances, found = np.empty(limits[-1], np.float32), np.empty(limits[-1], np.int64)
    ends = limits[:-1].copy()
    if len(found):
        run_blocks(lambda start, stop: walk(start, stop, ends, distances, found), len(queries), _QUERIES, threads)
    for begin, end in zip(limits[:-1], limits[1:]):
        order = np.lexsort((found[begin:end], distances[begin:end]))
        distances[begin:end], found[begin:end] = distances[begin:end][order], found[begin:end][order]
    return limits, distances, found
