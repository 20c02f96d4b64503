"""Losses: gradients against central differences, corner cases by hand, compiled against twins."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from npquant import nn
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels
from npquant.kernels._jit import have_numba

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
STEP = 1e-6


def central_differences(function, array):
    result = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + STEP
        above = function()
        array[place] = kept - STEP
        result[place] = (above - function()) / (2 * STEP)
        array[place] = kept
    return result


def triplets_by_hand(y, other, target, gap):
    """The sum over triplets and its gradients, one triplet at a time."""
    total, dy, dother = 0.0, np.zeros_like(y), np.zeros_like(other)
    weight = np.ones(len(target.anchor)) if target.weight is None else target.weight
    for a, p, n, w in zip(*target[:3], weight):
        near, far = np.linalg.norm(y[a] - other[p]), np.linalg.norm(y[a] - other[n])
        if gap + near - far > 0:
            total += w * (gap + near - far)
            to_p = (y[a] - other[p]) / near if near > 0 else np.zeros_like(y[a])
            to_n = (y[a] - other[n]) / far if far > 0 else np.zeros_like(y[a])
            dy[a] += w * (to_p - to_n)
            dother[p] -= w * to_p
            dother[n] += w * to_n
    return total, dy + dother


def random_triplets(rng, n, count, weighted):
    weight = rng.uniform(0.1, 2, count).astype(np.float32) if weighted else None
    return nn.Triplets(*rng.integers(n, size=(3, count)), weight)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, n=st.integers(1, 12), d=st.integers(1, 6), count=st.integers(0, 40),
       straight=st.booleans(), weighted=st.booleans())
def test_triplets_against_a_loop(dtype, seed, n, d, count, straight, weighted):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, d)).astype(dtype)
    other = rng.normal(size=(n, d)).astype(dtype) if straight else None
    target = random_triplets(rng, n, count, weighted)
    value, dy = nn.Triplet(0.3).value_and_grad(y, target, other)
    wide = y.astype(np.float64)
    total, wanted = triplets_by_hand(wide, wide if other is None else other.astype(np.float64), target, 0.3)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    assert isinstance(value, float)
    assert dy.dtype == dtype
    assert_allclose(value * n, total, rtol=tolerance, atol=tolerance)
    assert_allclose(dy, wanted, rtol=tolerance, atol=tolerance * 10)


@few
@given(seed=seeds)
def test_gradient_of_triplets(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(7, 3))
    # Gap 20: no triplet near its kink. No distance of 0 either, where the norm has no derivative.
    members = rng.permuted(np.tile(np.arange(7), (15, 1)), axis=1)[:, :3]
    target = nn.Triplets(*members.T, rng.uniform(0, 2, 15))
    loss = nn.Triplet(20.0)
    _, dy = loss.value_and_grad(y, target)
    assert_allclose(dy, central_differences(lambda: len(y) * loss.value_and_grad(y, target)[0], y), atol=1e-5)


@few
@given(seed=seeds)
def test_straight_through_adds_the_gradient_of_other(seed):
    rng = np.random.default_rng(seed)
    y, other = rng.normal(size=(2, 7, 3))
    triplets = nn.Triplets(*rng.integers(7, size=(3, 15)))
    pairs = nn.Pairs(*rng.integers(7, size=(2, 15)), rng.random(15) < 0.5)
    for loss, target in [(nn.Triplet(20.0), triplets), (nn.Contrastive(20.0), pairs)]:
        _, dy = loss.value_and_grad(y, target, other)

        def energy(loss=loss, target=target):
            return len(y) * loss.value_and_grad(y, target, other)[0]
        assert_allclose(dy, central_differences(energy, y) + central_differences(energy, other), atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, n=st.integers(1, 12), count=st.integers(0, 40), straight=st.booleans(), weighted=st.booleans())
def test_rank_triplets_are_triplets_without_a_gap(dtype, seed, n, count, straight, weighted):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 4)).astype(dtype)
    other = rng.normal(size=(n, 4)).astype(dtype) if straight else None
    target = random_triplets(rng, n, count, weighted)
    value, dy = nn.RankTriplet().value_and_grad(y, target, other)
    wanted, slope = nn.Triplet(gap=0).value_and_grad(y, target, other)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    assert dy.dtype == dtype
    assert_allclose(value, wanted, rtol=tolerance, atol=tolerance)
    # A positive that is the negative is no order at all: its term is 0 either way, its slopes cancel or are left out.
    assert_allclose(dy, slope, rtol=tolerance, atol=10 * tolerance)


@few
@given(seed=seeds)
def test_gradient_of_rank_triplets(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(7, 3))
    members = rng.permuted(np.tile(np.arange(7), (15, 1)), axis=1)[:, :3]
    apart = nn.distances(y)
    terms = apart[members[:, 0], members[:, 1]] - apart[members[:, 0], members[:, 2]]
    target = nn.Triplets(*members[np.abs(terms) > 1e-3].T)  # none near its kink
    loss = nn.RankTriplet()
    _, dy = loss.value_and_grad(y, target)
    assert_allclose(dy, central_differences(lambda: len(y) * loss.value_and_grad(y, target)[0], y), atol=1e-5)


def sphere(rng, n, d, dtype=np.float64):
    y = rng.normal(size=(n, d))
    return (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, n=st.integers(2, 30), d=st.integers(2, 8))
def test_koleo_by_hand(dtype, seed, n, d):
    y = sphere(np.random.default_rng(seed), n, d, dtype)
    wide = y.astype(float)
    apart = np.linalg.norm(wide[:, None] - wide, axis=2)
    np.fill_diagonal(apart, np.inf)
    value, dy = nn.KoLeo().value_and_grad(y)
    assert_allclose(value, -np.log(n * apart.min(axis=1)).mean(), rtol=1e-3, atol=1e-3 if dtype == np.float32 else 1e-9)
    assert dy.dtype == dtype
    # Each row is pushed away from its nearest, and that one away from it: nothing is pushed as a whole.
    assert_allclose(dy.sum(axis=0), 0, atol=1e-4 * max(1, np.abs(dy).sum()))


@few
@given(seed=seeds, n=st.integers(2, 9))
def test_gradient_of_koleo_at_both_ends(seed, n):
    y = sphere(np.random.default_rng(seed), n, 3)
    products = y @ y.T
    np.fill_diagonal(products, -np.inf)
    best = np.sort(products, axis=1)
    assume(n == 2 or (best[:, -1] - best[:, -2]).min() > 1e-4)  # the nearest stays the nearest
    assume(best[:, -1].max() < 1 - 1e-4)
    _, dy = nn.KoLeo().value_and_grad(y)
    numeric = central_differences(lambda: n * nn.KoLeo().value_and_grad(y)[0], y)
    assert_allclose(dy, numeric, rtol=1e-4, atol=1e-4)


@few
@given(seed=seeds)
def test_koleo_turns_with_its_rows(seed):
    rng = np.random.default_rng(seed)
    y, rotation = sphere(rng, 20, 5), np.linalg.qr(rng.normal(size=(5, 5)))[0]
    value, dy = nn.KoLeo().value_and_grad(y)
    turned, slope = nn.KoLeo().value_and_grad(y @ rotation)
    assert_allclose(turned, value, rtol=1e-9)
    assert_allclose(slope, dy @ rotation, atol=1e-8 * np.abs(dy).max())


def test_a_step_against_koleo_spreads():
    y = sphere(np.random.default_rng(0), 40, 6)
    before, dy = nn.KoLeo().value_and_grad(y)
    step = y - 1e-4 * dy
    assert nn.KoLeo().value_and_grad(step / np.linalg.norm(step, axis=1, keepdims=True))[0] < before


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_collapsed_rows_have_finite_gradients(dtype):
    one = sphere(np.random.default_rng(0), 1, 5, dtype)
    for y in (np.repeat(one, 4, axis=0), np.zeros((3, 5), dtype), one + np.arange(4)[:, None].astype(dtype) * 1e-7):
        value, dy = nn.KoLeo().value_and_grad(y.astype(dtype))
        assert np.isfinite(value)
        assert np.abs(dy).max() <= 4e6
    value, dy = nn.KoLeo().value_and_grad(np.repeat(one, 4, axis=0))
    assert value == pytest.approx(-np.log(4e-6))
    assert_array_equal(dy, 0)
    assert nn.KoLeo().value_and_grad(one) == (0.0, pytest.approx(np.zeros((1, 5))))


@few
@given(seed=seeds, gap=st.sampled_from([0.1, 1.0, 20.0]))
def test_gradient_of_contrastive(seed, gap):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(7, 3))
    target = nn.Pairs(*rng.integers(7, size=(2, 20)), rng.random(20) < 0.5)
    loss = nn.Contrastive(gap)
    value, dy = loss.value_and_grad(y, target)
    apart = np.linalg.norm(y[target.left] - y[target.right], axis=1)
    assert_allclose(value * 7, np.where(target.similar, apart**2, np.maximum(gap - apart, 0)**2).sum() / 2)
    itself = (target.left == target.right) & ~target.similar  # no derivative there: by hand 0
    if not itself.any():
        assert_allclose(dy, central_differences(lambda: 7 * loss.value_and_grad(y, target)[0], y), atol=1e-5)


@few
@given(seed=seeds, n=st.integers(1, 6), c=st.integers(1, 5))
def test_softmax(seed, n, c):
    log_softmax = pytest.importorskip("scipy.special", reason="SciPy is the oracle").log_softmax
    rng = np.random.default_rng(seed)
    y, target = rng.normal(0, 3, (n, c)), rng.integers(c, size=n)
    value, dy = nn.Softmax().value_and_grad(y, target)
    assert_allclose(value, -log_softmax(y, axis=1)[np.arange(n), target].mean(), atol=1e-12)
    numeric = central_differences(lambda: n * nn.Softmax().value_and_grad(y, target)[0], y)
    assert_allclose(dy, numeric, atol=1e-5)
    huge, slope = nn.Softmax().value_and_grad(np.array([[1e30, -1e30]], np.float32), np.array([0]))
    assert huge == 0
    assert_array_equal(slope, 0)


def test_softmax_has_no_second_role():
    with pytest.raises(InvalidInputError, match="other must be None"):
        nn.Softmax().value_and_grad(np.zeros((2, 2)), np.array([0, 1]), np.zeros((2, 2)))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inactive_triplets_give_exactly_zero(dtype):
    y = np.array([[0, 0], [1, 0], [3, 0]], dtype)
    one = np.array([0])
    value, dy = nn.Triplet(2.0).value_and_grad(y, nn.Triplets(one, one + 1, one + 2))  # the edge: 2 + 1 − 3
    assert value == 0
    assert_array_equal(dy, np.zeros_like(y))
    value, _ = nn.Triplet(2.5).value_and_grad(y, nn.Triplets(one, one + 1, one + 2))
    assert value == 0.5 / 3
    value, dy = nn.Triplet(1.0).value_and_grad(y, nn.Triplets(*np.zeros((3, 0), np.int64)))
    assert value == 0
    assert_array_equal(dy, 0)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_coinciding_outputs_are_finite(dtype):
    y = np.array([[1, 1], [1, 1], [2, 1]], dtype)
    one = np.array([0])
    _, dy = nn.Triplet(5.0).value_and_grad(y, nn.Triplets(one, one + 1, one + 2))
    assert_array_equal(dy, [[1, 0], [0, 0], [-1, 0]])  # only the negative acts: the anchor flees it
    _, dy = nn.Contrastive(5.0).value_and_grad(y, nn.Pairs(one, one + 1, np.array([False])))
    assert_array_equal(dy, 0)


@pytest.mark.core
def test_a_row_in_several_triplets_sums_its_gradients():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(5, 3))
    target = nn.Triplets(*np.array([[0, 0, 1], [1, 1, 0], [2, 3, 4]]), np.array([1.0, 0.5, 2.0]))
    loss = nn.Triplet(10.0)
    parts = [loss.value_and_grad(y, nn.Triplets(*(a[i:i + 1] for a in target))) for i in range(3)]
    value, dy = loss.value_and_grad(y, target)
    assert_allclose(value, sum(v for v, _ in parts))
    assert_allclose(dy, sum(g for _, g in parts))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_do_not_cancel(dtype):
    rng = np.random.default_rng(0)
    y, other = (rng.normal(1000, 1, (n, 5)).astype(dtype) for n in (9, 4))
    assert_allclose(nn.distances(y, other), np.linalg.norm(y[:, None].astype(float) - other, axis=2), rtol=1e-5)
    assert_array_equal(np.diag(nn.distances(y)), 0)


@pytest.mark.parametrize("loss", [nn.Triplet(0.5), nn.RankTriplet(), nn.KoLeo(1e-5), nn.Contrastive(2.0),
                                  nn.Softmax()])
def test_losses_are_json(loss):
    assert type(loss)(**json.loads(json.dumps(dataclasses.asdict(loss)))) == loss


def test_a_wrong_gap_is_told():
    with pytest.raises(InvalidInputError, match="gap is -1"):
        nn.Triplet(-1)
    with pytest.raises(InvalidInputError, match="eps is 0, wanted at least 1e-18"):
        nn.KoLeo(0)


@pytest.mark.skipif(not have_numba(), reason="nothing to compare: numba is missing")
@pytest.mark.parametrize("grid", [False, True])
@few
@given(seed=seeds, n=st.integers(1, 30), d=st.integers(1, 20), count=st.integers(0, 300))
@example(seed=0, n=10, d=3, count=200)
def test_compiled_losses_have_the_bits_of_their_twins(grid, seed, n, d, count):
    rng = np.random.default_rng(seed)
    y, other = rng.normal(size=(2, n, d)).astype(np.float32)
    if grid:  # outputs that coincide, and terms that are exactly 0
        y, other = rng.integers(3, size=(2, n, 1)).astype(np.float32)
        d = 1
    apart = nn.distances(y, other)
    target = random_triplets(rng, n, count, weighted=True)
    # Compiled and by the twin: (slopes, total), then (dy, dother).
    terms = [(np.full((n, n), np.nan), np.full(1, np.nan)) for _ in range(2)]
    pulls = [np.full((2, n, d), np.nan, np.float32) for _ in range(2)]
    for i, which in enumerate(["compiled", "twin"]):
        first, second = (kernel.compiled() if which == "compiled" else kernel.twin
                         for kernel in (kernels.triplet_terms, kernels.distance_gradient))
        first(apart, *target, np.float32(1), *terms[i])
        second(y, other, apart, terms[i][0], *pulls[i])
    assert_array_equal(terms[0][0], terms[1][0])
    assert_array_equal(terms[0][1], terms[1][1])
    assert_array_equal(*pulls)
    assert np.isfinite(pulls[0]).all()


@pytest.mark.core
def test_koleo_of_the_least_eps_is_finite_and_less_is_refused():
    for y in (np.zeros((4, 3), np.float32), np.array([[1, 0], [1, 3e-18], [0, 1]], np.float32)):
        value, dy = nn.KoLeo(1e-18).value_and_grad(y)
        assert np.isfinite(value)
        assert np.isfinite(dy).all()
    with pytest.raises(InvalidInputError, match="eps is 1e-19, wanted at least 1e-18"):
        nn.KoLeo(1e-19)
