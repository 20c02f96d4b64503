"""Samplers: mining against loops over all candidates, batches that visit every sample once."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from npquant import nn
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels
from npquant.kernels._jit import have_numba

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def batch(seed, n, classes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 3)).astype(dtype)
    return rng, y, nn.same_label(rng.integers(classes, size=n))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, n=st.integers(1, 14), classes=st.integers(1, 5), masked=st.booleans())
def test_all_violating_negatives(dtype, seed, n, classes, masked):
    rng, y, similar = batch(seed, n, classes, dtype)
    valid = rng.random((n, n)) < 0.7 if masked else np.ones((n, n), bool)
    np.fill_diagonal(similar, masked)  # which is ignored
    got = nn.triplets(y, similar, mining="all", positives=n, gap=0.5, rng=rng, valid=valid if masked else None)
    apart, gap, wanted, weights = nn.distances(y), dtype(0.5), [], []
    for a in range(n):
        for p in range(n):
            if p != a and similar[a, p] and valid[a, p]:
                hard = [k for k in range(n) if k != a and not similar[a, k] and valid[a, k]
                        and gap + apart[a, p] - apart[a, k] > 0]
                wanted += [(a, p, k) for k in hard]
                weights += [1 / max(len(hard), 1)] * len(hard)
    assert list(zip(*(ids.tolist() for ids in got[:3]))) == wanted
    assert_allclose(got.weight, weights, rtol=1e-6)
    assert all(ids.dtype == np.int64 and ids.flags.c_contiguous for ids in got[:3])
    # What mining calls violating is what the loss calls active.
    value, _ = nn.Triplet(0.5).value_and_grad(y, got)
    assert (value > 0) == bool(wanted)


@pytest.mark.core
@pytest.mark.parametrize("grid", [False, True])
@few
@given(seed=seeds, n=st.integers(1, 14), classes=st.integers(1, 5))
@example(seed=0, n=14, classes=3)
def test_semi_hard(grid, seed, n, classes):
    rng, y, similar = batch(seed, n, classes)
    if grid:  # distances that are equal
        y = rng.integers(4, size=(n, 1)).astype(np.float32)
    got = nn.triplets(y, similar, mining="semi-hard", positives=n, rng=rng)
    apart, wanted = nn.distances(y), []
    for a in range(n):
        for p in np.flatnonzero(similar[a]):
            unlike = np.flatnonzero(~similar[a])
            if p != a and unlike.size:
                farther = [k for k in unlike if apart[a, k] > apart[a, p]]
                negative = min(farther, key=lambda k: apart[a, k]) if farther else \
                    max(unlike, key=lambda k: apart[a, k])
                wanted.append((a, p, negative))
    assert list(zip(*got[:3])) == wanted
    assert got.weight is None


@few
@given(seed=seeds, n=st.integers(1, 14), classes=st.integers(1, 5), positives=st.integers(1, 4),
       mining=st.sampled_from(["all", "semi-hard", "random"]))
def test_every_mining_keeps_the_roles(seed, n, classes, positives, mining):
    rng, y, similar = batch(seed, n, classes)
    valid = rng.random((n, 1)) < 0.8
    got = nn.triplets(y, similar, mining=mining, positives=positives, gap=10.0, rng=rng, valid=valid)
    a, p, k = got[:3]
    assert similar[a, p].all()
    assert (a != p).all()
    assert not similar[a, k].any()
    assert valid[a].all()
    couples = np.unique(np.stack([a, p], axis=1), axis=0)
    counts = np.bincount(couples[:, 0], minlength=n)
    has_negative = (~similar).any(axis=1) & valid[:, 0]
    assert_array_equal(counts, np.where(has_negative, np.minimum(similar.sum(1) - 1, positives), 0))
    again = nn.triplets(y, similar, mining=mining, positives=positives, gap=10.0, rng=np.random.default_rng(5))
    same = nn.triplets(y, similar, mining=mining, positives=positives, gap=10.0, rng=np.random.default_rng(5))
    for first, second in zip(again, same):
        assert_array_equal(first, second)


def test_positives_and_negatives_are_drawn_uniformly():
    similar = nn.same_label(np.repeat([0, 1], 6))
    y = np.zeros((12, 2), np.float32)
    rng = np.random.default_rng(0)
    positive, negative = np.zeros(12), np.zeros(12)
    for _ in range(600):
        got = nn.triplets(y, similar, mining="random", positives=2, rng=rng)
        assert got.anchor.size == 24
        positive += np.bincount(got.positive[got.anchor == 0], minlength=12)
        negative += np.bincount(got.negative[got.anchor == 0], minlength=12)
    assert_array_equal(positive[[0, 6, 7, 8, 9, 10, 11]], 0)
    assert_array_equal(negative[:6], 0)
    # 1,200 draws over 5 and over 6: five standard deviations
    assert (np.abs(positive[1:6] - 240) < 5 * np.sqrt(240)).all()
    assert (np.abs(negative[6:] - 200) < 5 * np.sqrt(200)).all()


@few
@given(seed=seeds, n=st.integers(1, 12), classes=st.integers(1, 4), positives=st.integers(0, 3),
       negatives=st.integers(0, 3))
def test_pairs(seed, n, classes, positives, negatives):
    rng, _, similar = batch(seed, n, classes)
    got = nn.pairs(similar, positives=positives, negatives=negatives, rng=rng)
    assert_array_equal(similar[got.left, got.right], got.similar)
    assert (got.left != got.right).all()
    cells = got.left * n + got.right
    assert np.unique(cells).size == cells.size
    alike = np.bincount(got.left[got.similar], minlength=n)
    assert_array_equal(alike, np.minimum(similar.sum(1) - 1, positives))
    assert_array_equal(np.bincount(got.left, minlength=n) - alike, np.minimum((~similar).sum(1), negatives))


def test_words_that_are_not_known_are_told():
    with pytest.raises(InvalidInputError, match="mining is 'hard'"):
        nn.triplets(np.zeros((2, 2)), np.eye(2, dtype=bool), mining="hard", rng=np.random.default_rng(0))


def test_similarity_by_labels_and_neighbours():
    assert_array_equal(nn.same_label(np.array(["a", "b", "a"])), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    several = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert_array_equal(nn.same_label(several), [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@few
@given(seed=seeds, n=st.integers(1, 20), k=st.integers(1, 4))
def test_among_neighbours(seed, n, k):
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(n, size=(n, k))
    rows = rng.permutation(n)[:rng.integers(1, n + 1)]
    got = nn.among_neighbours(rows, neighbours)
    assert got.tolist() == [[b in neighbours[a] for b in rows] for a in rows]


@pytest.mark.core
@few
@given(seed=seeds, n=st.integers(0, 60), size=st.integers(1, 20))
def test_shuffled_batches_visit_every_row_once(seed, n, size):
    batches = nn.shuffled_batches(n, size, np.random.default_rng(seed))
    assert sorted(np.concatenate([*batches, []])) == list(range(n))
    assert all(len(rows) == size for rows in batches[:-1])
    assert all(0 < len(rows) <= size for rows in batches)


@pytest.mark.core
@few
@given(seed=seeds, n=st.integers(0, 80), kinds=st.integers(1, 9), classes=st.integers(1, 5),
       per_class=st.integers(1, 5))
def test_class_batches_visit_every_row_once(seed, n, kinds, classes, per_class):
    rng = np.random.default_rng(seed)
    labels = rng.integers(kinds, size=n) * 7 - 3
    batches = nn.class_batches(labels, classes=classes, per_class=per_class, rng=rng)
    assert sorted(np.concatenate([*batches, []])) == list(range(n))
    chunks = 0
    for number, rows in enumerate(batches):
        # Chunks lie one after the other. Two short ones of a class may touch and be counted as one.
        mine = sum(-(-len(list(run)) // per_class) for _, run in groupby(labels[rows].tolist()))
        assert mine <= classes
        chunks += mine
        assert number == len(batches) - 1 or len(rows) >= classes  # no chunk is empty
    counts = np.unique(labels, return_counts=True)[1] if n else np.zeros(0, int)
    total = int(np.ceil(counts / per_class).sum())
    assert chunks <= total
    assert len(batches) == -(-total // classes)


def test_class_batches_mix_classes_and_members():
    labels = np.repeat(np.arange(30), 8)
    batches = nn.class_batches(labels, classes=10, per_class=4, rng=np.random.default_rng(0))
    assert [len(rows) for rows in batches] == [40] * 6
    assert all((np.bincount(labels[rows], minlength=30) % 4 == 0).all() for rows in batches)
    assert any(np.unique(labels[rows]).size > 5 for rows in batches)
    members = np.sort(batches[0].reshape(-1, 4), axis=1)
    assert (np.diff(members) != 1).any()  # not simply the first four and the last four of a class
    other = nn.class_batches(labels, classes=10, per_class=4, rng=np.random.default_rng(1))
    assert not np.array_equal(batches[0], other[0])


@few
@given(seed=seeds, n=st.integers(1, 40), k=st.integers(1, 4), size=st.integers(1, 10))
def test_neighbour_batches(seed, n, k, size):
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(n, size=(n, k))
    left = n
    anchors = []
    for rows in nn.neighbour_batches(neighbours, size, rng):
        first = rows[:min(size, left)]
        left -= len(first)
        anchors += first.tolist()
        assert np.unique(rows).size == rows.size
        assert nn.among_neighbours(rows, neighbours)[:len(first)].any(axis=1).all()
    assert sorted(anchors) == list(range(n))


@few
@given(seed=seeds, count=st.integers(0, 40), size=st.integers(1, 10), width=st.sampled_from([2, 3]))
def test_explicit_batches(seed, count, size, width):
    rng = np.random.default_rng(seed)
    tuples = rng.integers(12, size=(count, width))
    seen = []
    anchors = []
    for rows, members, chosen in nn.explicit_batches(tuples, size, rng):
        assert np.unique(rows).size == rows.size
        assert set(members.ravel()) == set(range(len(rows)))
        assert_array_equal(rows[members], tuples[chosen])
        seen += chosen.tolist()
        anchors += tuples[chosen, 0].tolist() if width == 3 else []
    assert sorted(seen) == list(range(count))
    changes = sum(a != b for a, b in zip(anchors, anchors[1:]))
    assert changes == max(len(set(anchors)) - 1, 0)  # those of one anchor stay together


@pytest.mark.skipif(not have_numba(), reason="nothing to compare: numba is missing")
@few
@given(seed=seeds, n=st.integers(1, 30), classes=st.integers(1, 6))
def test_compiled_mining_has_the_bits_of_its_twin(seed, n, classes):
    _, y, similar = batch(seed, n, classes)
    apart = nn.distances(y)
    anchor, positive = (np.ascontiguousarray(ids) for ids in np.nonzero(similar))
    results = []
    for which in ("compiled", "twin"):
        count, fill = (kernel.compiled() if which == "compiled" else kernel.twin
                       for kernel in (kernels.count_violations, kernels.list_violations))
        counts = np.full(anchor.size, -1)
        count(apart, ~similar, anchor, positive, np.float32(0.3), counts)
        found = np.zeros((3, counts.sum() + 1), np.int64)
        weight = np.zeros(counts.sum() + 1, np.float32)
        fill(apart, ~similar, anchor, positive, np.float32(0.3), found, weight)
        results.append((counts, found[:, :-1], weight[:-1]))
    for compiled, twin in zip(*results):
        assert_array_equal(compiled, twin)
