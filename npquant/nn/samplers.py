"""Which rows make a batch, and which triplets or pairs are made of one: index arrays, drawn from a Generator.

A batch is one forward over its rows; triplets and pairs are row numbers *into that batch*.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.kernels import network as kernels
from npquant.nn.losses import Pairs, Triplets, distances

Array = NDArray[Any]
Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]

MINING = ("all", "semi-hard", "random")


# ----------------------------------------------------------------------------------------------- similarity

def same_label(labels: Array) -> Bools:
    """Return (B, B): whether rows have the same label (B,), or share one of their labels (B, c) of 0, 1."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        result: Bools = labels[:, np.newaxis] == labels
        return result
    shared = (labels != 0).astype(np.float32)
    return np.asarray(shared @ shared.T > 0)


def among_neighbours(rows: Ids, neighbours: Ids) -> Bools:
    """Return (B, B): whether rows[b] is among the neighbours (n, k), as row numbers, of rows[a]."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    near = neighbours[rows]
    at = np.minimum(np.searchsorted(ranked, near), len(rows) - 1)
    anchor, place = np.nonzero(ranked[at] == near)
    result = np.zeros((len(rows), len(rows)), np.bool_)
    result[anchor, order[at[anchor, place]]] = True
    return result


# --------------------------------------------------------------------------------------- triplets and pairs

def triplets(y: Array, similar: Bools, *, mining: str = "all", positives: int = 3, gap: float = 0.2,
             rng: np.random.Generator, valid: Bools | None = None) -> Triplets:
    """Return triplets of one batch: for each anchor up to ``positives`` positives, and their negatives.

    Parameters
    ----------
    y : ndarray, shape (B, d)
        The batch's outputs; the distances D between them decide which negatives are taken.
    similar : ndarray of bool, shape (B, B)
        ``similar[a, b]``: b is like a. The diagonal is ignored: no row is its own positive or negative.
    mining : {"all", "semi-hard", "random"}
        ``"all"``: every violating negative, gap + D[a, p] − D[a, n] > 0, weighted by one over their number,
        so that a pair (a, p) counts as the mean over them. ``"semi-hard"`` (FaceNet, arXiv 1503.03832,
        section 3.2): of the negatives farther than the positive the nearest; where none is farther, the
        farthest of all (the hardest would collapse the outputs). That one triplet may be inactive, and then
        costs nothing. ``"random"``: one negative, uniformly.
    positives : int
    gap : float
        The loss's; used by ``"all"``.
    rng : numpy.random.Generator
    valid : ndarray of bool, broadcast to (B, B), optional
        ``valid[a, b]`` false: b is neither positive nor negative of a. A column (B, 1) says who is an anchor.

    Returns
    -------
    Triplets
        Ordered by anchor. ``weight`` is ``None`` (1 each) but for ``"all"``.

    Raises
    ------
    InvalidInputError

    Notes
    -----
    Cost B² d + B² · ``positives``; the same ``rng`` gives the same triplets.
    """
    mining = _checks.choice(mining, "mining", MINING)
    positives = _checks.integer(positives, "positives")
    y = np.ascontiguousarray(y)
    alike, unlike = _roles(similar, valid)
    anchor, positive = _draw(alike, positives, rng)
    if mining == "random":
        return _random_negatives(unlike, anchor, positive, rng)
    apart = distances(y)
    if mining == "semi-hard":
        return _semi_hard(apart, unlike, anchor, positive)
    margin = y.dtype.type(gap)
    counts = np.empty(anchor.size, np.int64)
    kernels.for_dtype(kernels.count_violations, y.dtype)(apart, unlike, anchor, positive, margin, counts)
    total = int(counts.sum())
    found, weight = np.empty((3, total + 1), np.int64), np.empty(total + 1, np.float32)
    kernels.for_dtype(kernels.list_violations, y.dtype)(apart, unlike, anchor, positive, margin, found,
                                                        weight)
    return Triplets(found[0, :total], found[1, :total], found[2, :total], weight[:total])


def pairs(similar: Bools, *, positives: int = 3, negatives: int = 3, rng: np.random.Generator,
          valid: Bools | None = None) -> Pairs:
    """Return pairs of one batch: for each row up to so many random similar and dissimilar others.

    ``similar`` and ``valid`` as in :func:`triplets`. Both (a, b) and (b, a) may come: the left is the anchor.
    """
    alike, unlike = _roles(similar, valid)
    left, right = _draw(alike, _checks.integer(positives, "positives", 0), rng)
    left2, right2 = _draw(unlike, _checks.integer(negatives, "negatives", 0), rng)
    return Pairs(np.concatenate([left, left2]), np.concatenate([right, right2]),
                 np.arange(left.size + left2.size) < left.size)


def _roles(similar: Bools, valid: Bools | None) -> tuple[Bools, Bools]:
    alike = np.array(similar, np.bool_)
    unlike = ~alike
    if valid is not None:
        alike &= valid
        unlike &= valid
    np.fill_diagonal(alike, False)
    np.fill_diagonal(unlike, False)
    return alike, unlike


def _draw(choices: Bools, most: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    # Up to ``most`` different true columns of each row, uniformly (Floyd's sampling, all rows at once).
    row, column = _true(choices)
    counts = np.bincount(row, minlength=len(choices))
    if not row.size or counts.max() <= most:
        return row, column
    starts = np.cumsum(counts) - counts
    taken = np.full((len(choices), most), -1)
    first = np.maximum(counts - most, 0)  # ranks from here on are offered, one a turn
    for turn in range(most):
        top = first + turn
        rank = (rng.random(len(choices)) * (top + 1)).astype(np.int64)
        repeated = (taken == rank[:, np.newaxis]).any(axis=1)
        taken[:, turn] = np.where(top < counts, np.where(repeated, top, rank), -1)
    taken.sort(axis=1)
    chosen, place = _true(taken >= 0)
    return chosen, column[starts[chosen] + taken[chosen, place]]


def _true(mask: Bools) -> tuple[Ids, Ids]:
    # NumPy gives views of a (T, 2) array; kernels want contiguous ones, and int64 everywhere.
    row, column = np.nonzero(mask)
    return np.ascontiguousarray(row, np.int64), np.ascontiguousarray(column, np.int64)


def _random_negatives(unlike: Bools, anchor: Ids, positive: Ids, rng: np.random.Generator) -> Triplets:
    row, column = _true(unlike)
    counts = np.bincount(row, minlength=len(unlike))
    starts = np.cumsum(counts) - counts
    has = counts[anchor] > 0
    anchor, positive = anchor[has], positive[has]
    rank = (rng.random(anchor.size) * counts[anchor]).astype(np.int64)
    return Triplets(anchor, positive, column[starts[anchor] + rank])


def _semi_hard(apart: Array, unlike: Bools, anchor: Ids, positive: Ids) -> Triplets:
    has = (np.count_nonzero(unlike, axis=1) > 0)[anchor]
    anchor, positive = anchor[has], positive[has]
    rows = apart[anchor]
    beyond = unlike[anchor] & (rows > apart[anchor, positive][:, np.newaxis])
    nearest = np.where(beyond, rows, np.inf).argmin(axis=1)
    farthest = np.where(unlike, apart, -np.inf).argmax(axis=1)[anchor]
    return Triplets(anchor, positive, np.where(beyond.any(axis=1), nearest, farthest))


# -------------------------------------------------------------------------------------- batches of an epoch

def shuffled_batches(n: int, size: int, rng: np.random.Generator) -> list[Ids]:
    """Return the rows 0 … n − 1 in random order, cut into batches of ``size`` (the last may be smaller)."""
    size = _checks.integer(size, "size")
    return _cut(rng.permutation(n), np.arange(size, n, size))


def class_batches(labels: Array, *, classes: int = 64, per_class: int = 4,
                  rng: np.random.Generator) -> list[Ids]:
    """Return batches of ``classes`` chunks of up to ``per_class`` rows of one class; every row comes once.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    classes, per_class : int
        Chunks in a batch and rows in a chunk. The last chunk of a class and the last batch may be smaller.
    rng : numpy.random.Generator
        Deals the rows of a class into chunks, and the chunks into batches.
    """
    classes, per_class = _checks.integer(classes, "classes"), _checks.integer(per_class, "per_class")
    labels = np.asarray(labels)
    rows = rng.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]  # class by class, shuffled inside
    if not rows.size:
        return []
    grouped = labels[rows]
    begin = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    length = np.diff(np.r_[begin, len(rows)])
    place = np.arange(len(rows)) - np.repeat(begin, length)
    chunk = np.cumsum(place % per_class == 0) - 1
    order = rng.permutation(chunk[-1] + 1)  # where each chunk comes in the epoch
    turn = order[chunk]
    by_turn = np.argsort(turn, kind="stable")
    last = np.searchsorted(turn[by_turn], np.arange(classes, chunk[-1] + 1, classes))
    return _cut(rows[by_turn], last)


def neighbour_batches(neighbours: Ids, size: int, rng: np.random.Generator) -> Iterator[Ids]:
    """Yield batches of up to ``size`` anchors, each with one of its neighbours drawn at random.

    Parameters
    ----------
    neighbours : ndarray of int, shape (n, k)
        Row numbers; every one of the n rows is an anchor once.
    size : int
        Anchors in a batch; a batch has up to twice as many rows.
    rng : numpy.random.Generator

    Yields
    ------
    rows : ndarray of int64, shape (B,)
        Unique; the anchors first.
    """
    for anchors in shuffled_batches(len(neighbours), size, rng):
        chosen = neighbours[anchors, rng.integers(neighbours.shape[1], size=len(anchors))]
        yield np.concatenate([anchors, np.setdiff1d(chosen, anchors)])


def explicit_batches(tuples: Ids, size: int, rng: np.random.Generator) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Yield batches of given triplets or pairs: their unique rows, and the tuples re-numbered into them.

    Parameters
    ----------
    tuples : ndarray of int, shape (T, 3) or (T, 2)
        Row numbers; each tuple comes once an epoch. The tuples of one anchor stay together as far as ``size``
        allows, so that triplets can be mined from pairs: the anchor of a triplet is its first row, that of a pair
        the one that stands in more pairs.
    size : int
        Tuples in a batch.
    rng : numpy.random.Generator

    Yields
    ------
    rows : ndarray of int64, shape (B,)
        Unique, ascending.
    members : ndarray of int64, shape (t, 3) or (t, 2)
        ``rows[members]`` are the tuples.
    chosen : ndarray of int64, shape (t,)
        Which of ``tuples`` they are.
    """
    anchor = tuples[:, 0]
    if tuples.shape[1] == 2 and len(tuples):
        degree = np.bincount(tuples.ravel())
        anchor = np.where(degree[tuples[:, 1]] > degree[anchor], tuples[:, 1], anchor)
    shuffled = rng.permutation(len(anchor))
    rank = rng.permutation(int(anchor.max(initial=0)) + 1)
    order = shuffled[np.argsort(rank[anchor[shuffled]], kind="stable")]
    for chosen in _cut(order, np.arange(size, len(order), size)):
        rows, members = np.unique(tuples[chosen], return_inverse=True)
        yield rows.astype(np.int64), members.reshape(len(chosen), -1).astype(np.int64), chosen


def _cut(rows: Ids, at: Ids) -> list[Ids]:
    return [part for part in np.split(np.asarray(rows, np.int64), at) if part.size]
