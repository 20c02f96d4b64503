"""k-means: what Lloyd's algorithm promises, and what the docstring does."""

import logging
import math
import tracemalloc
import warnings
from itertools import pairwise

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import THREADS, jit_mode, layouts, same

from npquant import _rows, kmeans, persist
from npquant.errors import InvalidInputError, NotFittedError, NpquantWarning
from npquant.kmeans import KMeans

core = pytest.mark.core
some = settings(max_examples=60)
inits = st.sampled_from(["k-means++", "random"])
vectors = strategies.vectors(rows=(1, 40), d=(1, 5))


def fit(x, K, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        return KMeans(K, **{"random_state": 0, **params}).fit(x)


def everything(model):
    return (model.cluster_centers_, model.labels_, model.counts_, np.array(model.inertia_history_))


@core
@some
@given(vectors, st.integers(1, 12), inits, strategies.seeds)
def test_inertia_never_increases(x, K, init, seed):
    params = {"init": init, "random_state": seed, "tol": 0.0}
    model = fit(x, K, max_iter=12, **params)
    history = model.inertia_history_
    assert all(later <= before for before, later in pairwise(history))
    assert model.n_iter_ == len(history) - 1 <= 12
    assert model.inertia_ == history[-1]
    last = np.inf
    for n_iter in range(model.n_iter_ + 1):  # the same centres, weighed in float64
        centers = fit(x, K, max_iter=n_iter, **params).cluster_centers_
        inertia = reference.inertia(x, centers)
        assert inertia <= last * (1 + 1e-5)
        np.testing.assert_allclose(history[n_iter], inertia, rtol=1e-5, atol=1e-44)
        last = inertia


@core
def test_inertia_never_increases_by_rounding_either():
    for seed in range(20):  # the start is so good that what an iteration gains is below what rounding loses
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((50, 8)).astype(np.float32)
        model = KMeans(1, init=(x.mean(axis=0) + 1e-6 * rng.standard_normal(8))[None], tol=0.0).fit(x)
        assert all(later <= before for before, later in pairwise(model.inertia_history_))
        assert model.inertia_ == -model.score(x)


@core
@some
@given(vectors, st.integers(1, 12), inits, strategies.seeds, st.integers(0, 5))
def test_no_cluster_is_empty(x, K, init, seed, max_iter):
    distinct = len(np.unique(x + 0.0, axis=0))
    model = fit(x, K, init=init, random_state=seed, max_iter=max_iter)
    assert (model.counts_ > 0).sum() >= min(K, distinct)
    if distinct <= K:
        assert model.inertia_ == 0
        assert (model.cluster_centers_[model.labels_] == x).all()


@core
@pytest.mark.parametrize("K", [1, 2, 3, 7, 8])
def test_no_cluster_is_empty_from_a_bad_start(K):
    x = np.repeat(np.arange(8, dtype=np.float32), [50, 1, 30, 1, 1, 9, 1, 1])[:, None] ** 3
    for start in (np.zeros((K, 1)), np.full((K, 1), 1e6), np.arange(K)[:, None] - 1e5):
        assert (fit(x, K, init=start).counts_ > 0).all()
        assert (fit(x, K, init=start, max_iter=0).counts_ > 0).all()


@core
@some
@given(vectors, st.integers(1, 12), inits, strategies.seeds)
def test_what_it_learned_fits_together(x, K, init, seed):
    model = fit(x, K, init=init, random_state=seed)
    labels, distance = reference.nearest(x, model.cluster_centers_)
    same(model.labels_, labels, "labels and the nearest centres")
    same(model.predict(x), labels, "predict and labels")
    assert model.counts_.tolist() == np.bincount(labels, minlength=K).tolist()
    assert model.inertia_ == distance.sum(dtype=np.float64) == -model.score(x)
    assert (model.cluster_centers_.dtype, model.counts_.dtype) == (np.float32, np.int64)
    assert model.cluster_centers_.shape == (K, x.shape[1])
    all_distances = np.sqrt(np.stack([reference.squared_distances(row, model.cluster_centers_) for row in x]))
    same(model.transform(x), all_distances, "transform and distances")
    again = fit(x, K, init=init, random_state=seed)
    same(everything(again), everything(model), "the same seed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        same(again.fit_predict(x), labels, "fit_predict")


@core
def test_threads_are_invisible():
    rng = np.random.default_rng(0)
    for n, d, K in ((9001, 4, 5), (70_000, 2, 3)):
        x = rng.standard_normal((n, d)).astype(np.float32)
        alone = fit(x, K, max_iter=4, threads=1)
        for threads in (*THREADS, None):
            other = fit(x, K, max_iter=4, threads=threads)
            same(everything(other), everything(alone), f"{threads} threads")
            same((other.predict(x), other.transform(x)), (alone.predict(x), alone.transform(x)), "its answers")


@core
def test_layouts_are_invisible_and_nothing_is_shared():
    x = strategies.make_vectors("normal", 60, 3)
    start = x[:4].copy()
    wanted = fit(x, 4, init=start)
    with layouts(x) as forms, layouts(start) as starts:
        for what, form in forms.items():
            same(everything(fit(form, 4, init=starts[what])), everything(wanted), what)
    for max_iter in (0, 5):
        given_x, given_start = x.copy(), start.copy()
        model = fit(given_x, 4, init=given_start, max_iter=max_iter)
        same((given_x, given_start), (x, start), "what was given")
        before = tuple(a.copy() for a in everything(model))
        given_x[:], given_start[:] = 9, 9
        for answer in (model.predict(x), model.transform(x)):
            answer[:] = 0
        same(everything(model), before, "the model after others changed their arrays")


@core
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_fewer_vectors_than_clusters(init):
    x = np.array([[0, 0], [1, 1], [5, 5]], np.float32)
    with pytest.warns(NpquantWarning, match=r"3 training vectors for 5 codewords"):
        model = KMeans(5, init=init, random_state=0).fit(x)
    assert model.cluster_centers_.shape == (5, 2)
    assert model.inertia_ == 0
    assert sorted(model.counts_.tolist()) == [0, 0, 1, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KMeans(3, init=init, random_state=0).fit(x)


@core
def test_an_array_to_start_from():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    model = KMeans(2, init=[[0.0], [1.0]], tol=0).fit(x)
    assert model.cluster_centers_.tolist() == [[0.5], [10.5]]
    np.testing.assert_allclose(model.inertia_history_[:3], [181, 1 + (8 / 3)**2 + (11 / 3)**2, 1], rtol=1e-6)
    assert model.labels_.tolist() == [0, 0, 1, 1]
    untrained = KMeans(2, init=[[0.0], [1.0]], max_iter=0).fit(x)
    assert untrained.cluster_centers_.tolist() == [[0.0], [1.0]]
    assert untrained.labels_.tolist() == [0, 1, 1, 1]
    assert untrained.inertia_history_ == [81.0 + 100.0]
    assert KMeans(2, init=[[5.0], [5.0]]).fit(x).inertia_ == 1.0  # ties, then a repair


@core
def test_tolerance_stops_early():
    x = strategies.make_vectors("normal", 400, 2)
    patient, hasty = fit(x, 20, tol=0.0, max_iter=200), fit(x, 20, tol=0.05, max_iter=200)
    assert hasty.n_iter_ < patient.n_iter_ < 200
    assert hasty.inertia_history_ == patient.inertia_history_[:hasty.n_iter_ + 1]
    drops = -np.diff(hasty.inertia_history_) / hasty.inertia_history_[:-1]
    assert (drops[:-1] > 0.05).all()
    assert drops[-1] <= 0.05


@core
def test_constant_data_and_one_row():
    for x in (np.full((9, 3), 1 / 3), np.zeros((9, 3)), np.full((9, 3), 1e6 + 0.3)):
        model = fit(x, 4)
        assert model.inertia_ == 0
        assert model.counts_.sum() == 9
        assert np.isfinite(model.cluster_centers_).all()
    assert fit(np.ones((1, 2)), 1).cluster_centers_.tolist() == [[1.0, 1.0]]


@core
def test_far_from_the_origin():
    rng = np.random.default_rng(0)
    places = np.array([[0, 0], [40, 0], [0, 40]])
    x = (places[rng.integers(0, 3, 300)] + rng.standard_normal((300, 2)) + 1e6).astype(np.float32)
    model = fit(x, 3)
    np.testing.assert_allclose(np.sort(model.cluster_centers_.astype(float) - 1e6, axis=0),
                               np.sort(places, axis=0), atol=0.5)
    np.testing.assert_allclose(model.inertia_, reference.inertia(x, model.cluster_centers_), rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "grid", "duplicates", "constant columns", "large", "clusters"])
def test_as_good_as_scikit_learn(kind):
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    if kind == "clusters":
        x = strategies.make_vectors("normal", 500, 6) + 4 * strategies.make_vectors("grid", 10, 6)[
            np.random.default_rng(0).integers(0, 10, 500)]
    else:
        x = strategies.make_vectors(kind, 500, 6)
    start = np.unique(x, axis=0)[::20][:10].copy()
    ours = fit(x, len(start), init=start, tol=0.0, max_iter=300)
    theirs = cluster.KMeans(len(start), init=start, n_init=1, tol=0.0, max_iter=300, algorithm="lloyd").fit(
        x.astype(np.float64))
    if kind != "grid":  # full of ties, which they leave to rounding
        np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-3)
    assert ours.inertia_ <= 1.1 * theirs.inertia_
    mean = [np.mean([fit(x, 10, random_state=seed).inertia_ for seed in range(8)]),
            np.mean([cluster.KMeans(10, n_init=1, random_state=seed).fit(x).inertia_ for seed in range(8)])]
    assert mean[0] <= 1.1 * mean[1]


@core
@pytest.mark.parametrize("params", [
    {"n_clusters": 0}, {"n_clusters": -1}, {"n_clusters": 2.0}, {"n_clusters": "8"}, {"n_clusters": True},
    {"n_clusters": None}, {"init": "kmeans++"}, {"init": np.zeros((3, 2))}, {"init": np.zeros((2, 3))},
    {"init": [[0, 0], [np.nan, 0]]}, {"init": np.zeros(2)}, {"init": None}, {"max_iter": -1}, {"max_iter": 2.5},
    {"tol": -1e-9}, {"tol": np.nan}, {"tol": np.inf}, {"tol": "0"}, {"random_state": -1}, {"random_state": "0"},
    {"spherical": "yes"}, {"spherical": 1}, {"max_points": 0}, {"max_points": 1}, {"max_points": 9.0},
    {"random_state": 1.5}, {"threads": 0}, {"threads": -1}, {"threads": 1.0},
], ids=str)
def test_a_bad_parameter_is_named(params):
    [name] = params
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        KMeans(**{"n_clusters": 2, **params}).fit(np.zeros((5, 2)))


@core
def test_bad_input():
    model = KMeans(2, random_state=0)
    for call in (model.predict, model.transform, model.score):
        with pytest.raises(NotFittedError, match="KMeans"):
            call(np.zeros((2, 2)))
    for bad in (np.zeros((0, 2)), np.zeros(4), np.zeros((2, 0)), [[np.nan]], [[1j]], [["a"]], None):
        with pytest.raises(InvalidInputError):
            model.fit(bad)
    assert not hasattr(model, "cluster_centers_")
    model.fit(np.eye(3))
    for call in (model.predict, model.transform, model.score):
        with pytest.raises(InvalidInputError, match=r"2 features.*expecting 3"):
            call(np.zeros((2, 2)))


# ------------------------------------------------------------------------------------------ many rows


def blobs(n, d, K, seed=0, spread=6.0):
    rng = np.random.default_rng(seed)
    places = spread * rng.standard_normal((K, d))
    return (places[rng.integers(0, K, n)] + rng.standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_many_rows(init, spherical, monkeypatch):
    x = strategies.make_vectors("normal", 9000, 4)
    params = {"init": init, "spherical": spherical, "tol": 0.0, "max_iter": 12}
    model = fit(x, 40, **params)
    assert all(later <= before for before, later in pairwise(model.inertia_history_))
    assert (model.counts_ > 0).all()
    assert model.inertia_ == -model.score(x)
    if spherical:
        np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, atol=1e-6)
    else:
        np.testing.assert_allclose(model.inertia_, reference.inertia(x, model.cluster_centers_), rtol=1e-5)
    for threads in THREADS:
        same(everything(fit(x, 40, threads=threads, **params)), everything(model), f"{threads} threads")
    with jit_mode("0"):
        same(everything(fit(x, 40, **params)), everything(model), "the NumPy twins")
    monkeypatch.setattr(kmeans, "_MANY_LEAST", 10**9)
    plain = fit(x, 40, **params)
    assert model.inertia_history_[0] < plain.inertia_history_[0]  # the sample's iterations
    assert model.inertia_ <= 1.002 * plain.inertia_


@core
def test_long_steps_pay_and_end_at_the_means(monkeypatch):
    x = strategies.make_vectors("normal", 9000, 4)
    begin = x[:30].copy()
    long = fit(x, 30, init=begin, max_iter=12, tol=0.0)
    two = blobs(9000, 1, 2, spread=0.0)
    two[::2] += 100
    done = fit(two, 2, init=[[-1.0], [3.0]], max_iter=5, tol=0.0)  # labels change once
    means = reference.cluster_sums(two, done.labels_, 2)[0] / done.counts_[:, None]
    same(done.cluster_centers_, means.astype(np.float32), "centres and means")
    monkeypatch.setattr(kmeans, "_MANY_LEAST", 10**9)
    assert long.inertia_ < fit(x, 30, init=begin, max_iter=12, tol=0.0).inertia_


@core
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("max_iter", "tol"), [(1, 0.0), (2, 0.0), (3, 0.0), (6, 0.0), (50, 1e-2), (50, 1e-3)])
def test_the_last_step_goes_to_the_means(max_iter, tol, spherical, monkeypatch):
    x = strategies.make_vectors("normal", 9000, 4)
    steps, means = [], kmeans._means

    def recorded(centers, sums, totals, spherical, stride=1.0):
        steps.append((stride, sums / totals[:, None]))
        return means(centers, sums, totals, spherical, stride)

    monkeypatch.setattr(kmeans, "_means", recorded)
    params = {"init": x[:30], "max_iter": max_iter, "tol": tol, "spherical": spherical}
    model = fit(x, 30, **params)
    wanted = steps[-1][1]
    if spherical:
        wanted /= np.linalg.norm(wanted, axis=1)[:, None]
    np.testing.assert_allclose(model.cluster_centers_, wanted, rtol=1e-5, atol=1e-6)
    strides = [stride for stride, _ in steps]
    assert model.n_iter_ == len(steps) == len(model.inertia_history_) - 1 <= max_iter
    assert strides[-1] == 1
    assert (kmeans._STRIDE in strides) == (max_iter > 2)
    history = model.inertia_history_
    assert all(later <= before for before, later in pairwise(history))
    if tol:
        assert model.n_iter_ < max_iter
        drops = -np.diff(history) / history[:-1]
        assert (drops[:-2] > tol).all()
        assert drops[-2] <= tol or strides[-2] == 1
    same(model.labels_, model.predict(x), "labels")
    for threads in THREADS:
        same(everything(fit(x, 30, threads=threads, **params)), everything(model), f"{threads} threads")


@core
def test_a_long_step_refused_is_followed_by_one_to_the_means(monkeypatch):
    x = strategies.make_vectors("normal", 9000, 4)
    strides, means = [], kmeans._means

    def astray(centers, sums, totals, spherical, stride=1.0):
        strides.append(stride)
        moved = means(centers, sums, totals, spherical, stride)
        return moved + np.float32(100) if len(strides) == 4 else moved

    monkeypatch.setattr(kmeans, "_means", astray)
    model = fit(x, 30, init=x[:30], max_iter=20, tol=0.0)
    assert strides == [1, 1.8, 1.8, 1.8, 1]
    assert model.n_iter_ == 4
    assert all(later <= before for before, later in pairwise(model.inertia_history_))


@core
def test_the_start_finds_clusters_far_apart():
    for n in (600, 12_000):
        x = blobs(n, 8, 12, spread=30.0)
        for seed in range(5):
            assert fit(x, 12, random_state=seed).inertia_ < 1.05 * n * 8  # a missed one costs 1,000 a row


@core
def test_the_order_of_rows_does_not_change_the_start():
    x = np.unique(strategies.make_vectors("normal", 300, 3), axis=0)
    order = np.random.default_rng(1).permutation(len(x))
    same(kmeans.start(x[order], 9, np.random.default_rng(0), "k-means++", 1),
         kmeans.start(x, 9, np.random.default_rng(0), "k-means++", 1), "another order")
    weight = np.random.default_rng(2).integers(1, 4, len(x))
    same(kmeans.start(x, 9, np.random.default_rng(0), "k-means++", 1, weight=weight.astype(float)),
         kmeans.start(np.repeat(x, weight, axis=0), 9, np.random.default_rng(0), "k-means++", 1), "repeated rows")


# -------------------------------------------------------------------------------------------- weights

weight_kinds = st.sampled_from(["ones", "integers", "floats", "wide"])


def make_weights(kind, n, seed, zeros=True):
    rng = np.random.default_rng(seed)
    w = {"ones": np.ones(n), "integers": rng.integers(1, 5, n).astype(float), "floats": rng.random(n) + 0.1,
         "wide": 10.0 ** rng.integers(-8, 9, n)}[kind]
    if zeros:
        w[1:][rng.random(n - 1) < 0.3] = 0
    return w


@core
@some
@given(vectors, st.integers(1, 8), inits, strategies.seeds, weight_kinds, st.booleans())
def test_weights(x, K, init, seed, kind, spherical):
    w = make_weights(kind, len(x), seed)
    if spherical:
        x[0] = 1.0
    params = {"init": init, "random_state": seed, "tol": 0.0, "spherical": spherical}

    def weighted(x, w, **more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)
            return KMeans(K, **params, **more).fit(x, sample_weight=w)
    model = weighted(x, w)
    history = model.inertia_history_
    assert all(later <= before for before, later in pairwise(history))
    assert model.inertia_ == history[-1] == -model.score(x, sample_weight=w)
    if not spherical:
        np.testing.assert_allclose(model.inertia_, reference.weighted_inertia(x, model.cluster_centers_, w), rtol=1e-5,
                                   atol=1e-38)
        same(model.labels_, reference.nearest(x, model.cluster_centers_)[0], "labels")
    np.testing.assert_allclose(model.weights_, [math.fsum(w[(model.labels_ == k) & counted(x, spherical)])
                                                for k in range(K)])
    assert model.counts_.tolist() == np.bincount(model.labels_, minlength=K).tolist()
    rest = weighted(x[w > 0], w[w > 0])
    same((rest.cluster_centers_, rest.labels_, np.array(rest.inertia_history_)),
         (model.cluster_centers_, model.labels_[w > 0], np.array(history)), "without the rows of weight 0")
    scaled = weighted(x, w * 2.0**40)
    same((scaled.cluster_centers_, scaled.labels_), (model.cluster_centers_, model.labels_), "weights times 2^40")
    for threads in THREADS:
        same(everything(weighted(x, w, threads=threads)), everything(model), f"{threads} threads")


def counted(x, spherical):
    return (x != 0).any(axis=1) if spherical else np.ones(len(x), bool)


@core
def test_a_repair_goes_where_the_weight_is():
    x = [[0.0], [10.0], [20.0]]
    for weight, place in (([1, 9, 1], 10.0), ([1, 1, 1], 20.0)):
        model = KMeans(2, init=[[0.0], [0.0]], max_iter=0).fit(x, sample_weight=weight)
        assert model.cluster_centers_.ravel().tolist() == [0.0, place]


@core
def test_a_weight_is_a_number_of_rows():
    x = strategies.make_vectors("normal", 200, 3)
    w = make_weights("integers", 200, 0)
    for init in (x[:6].copy(), "k-means++"):
        weighted = KMeans(6, init=init, tol=0.0, random_state=0).fit(x, sample_weight=w)
        repeated = KMeans(6, init=init, tol=0.0, random_state=0).fit(np.repeat(x, w.astype(int), axis=0))
        np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weighted.inertia_, repeated.inertia_, rtol=1e-6)
    big, rng = blobs(70_000, 2, 3), np.random.default_rng(0)  # more than one block of sums
    w = rng.random(len(big))
    alone = KMeans(3, random_state=0, max_iter=3, threads=1).fit(big, sample_weight=w)
    same(everything(KMeans(3, random_state=0, max_iter=3, threads=7).fit(big, sample_weight=w)), everything(alone),
         "threads")
    with jit_mode("0"):
        same(everything(KMeans(3, random_state=0, max_iter=3).fit(big, sample_weight=w)), everything(alone), "twins")


@core
@pytest.mark.parametrize(("weight", "words"), [
    ([1, 2], r"2 rows and X has 5"), (np.ones((5, 1)), r"shape \(5, 1\)"), ([1, 1, -1, 1, 1], r"\[2\] is -1"),
    ([1, np.nan, 1, 1, 1], r"\[1\] is nan"), ([1, 1, 1, 1, np.inf], r"\[4\] is inf"),
    ([0.0] * 5, "every weight is zero"), ([1e101] * 5, "1e-100 to 1e100"),
    ([1e-101] * 5, "1e-100 to 1e100"), (list("abcde"), "not an array of numbers"),
], ids=str)
def test_bad_weights(weight, words):
    x = np.arange(10.0).reshape(5, 2)
    model = KMeans(2, random_state=0)
    for call in (model.fit, model.partial_fit, model.fit_predict):
        with pytest.raises(InvalidInputError, match=rf"sample_weight.*{words}"):
            call(x, sample_weight=weight)
    with pytest.raises(InvalidInputError, match=r"sample_weight.*array X.*partial_fit"):
        model.fit(iter([x]), sample_weight=np.ones(5))
    with pytest.raises(InvalidInputError, match="sample_weight"):
        KMeans(2, random_state=0).fit(x).score(x, sample_weight=weight)


# ------------------------------------------------------------------------------------------ spherical


@core
@some
@given(vectors, st.integers(1, 8), strategies.seeds)
def test_spherical(x, K, seed):
    x[0] = 1.0
    model = fit(x, K, spherical=True, random_state=seed, tol=0.0)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_.astype(float), axis=1), 1, atol=1e-6)
    assert all(later <= before for before, later in pairwise(model.inertia_history_))
    unit = reference.normalized(x)
    cosine = unit.astype(float) @ model.cluster_centers_.astype(float).T
    directed = counted(x, True)
    best = cosine.max(axis=1)
    np.testing.assert_allclose(cosine[np.arange(len(x)), model.labels_][directed], best[directed], atol=1e-6)
    np.testing.assert_allclose(model.inertia_, (2 - 2 * best[directed]).sum(), atol=2e-6 * len(x))
    assert (model.labels_[~directed] == 0).all()
    assert model.n_points_ == directed.sum()
    rest = fit(x[directed], K, spherical=True, random_state=seed, tol=0.0)
    same((rest.cluster_centers_, rest.labels_), (model.cluster_centers_, model.labels_[directed]), "without zero rows")
    same(rest.inertia_, model.inertia_, "its inertia")
    longer = fit(x * np.float32(4), K, spherical=True, random_state=seed, tol=0.0)
    same(everything(longer), everything(model), "lengths")
    same(model.predict(x), model.labels_, "predict")
    assert model.score(x) == -model.inertia_


@core
def test_spherical_by_hand():
    x = strategies.make_vectors("normal", 100, 3)
    centers = reference.normalized(x[:4])
    model = fit(x, 4, init=x[:4], spherical=True, max_iter=1, tol=0.0)
    wanted, _ = reference.spherical_step(x, centers)
    np.testing.assert_allclose(model.cluster_centers_, wanted, atol=1e-6)
    same(fit(x, 4, init=x[:4], spherical=True, max_iter=0).cluster_centers_, centers, "the start")
    opposite = fit([[1.0, 0.0], [-1.0, 0.0]], 1, init=[[0.0, 1.0]], spherical=True)  # their mean has no direction
    assert opposite.cluster_centers_.tolist() == [[0.0, 1.0]]


@core
def test_spherical_without_a_direction():
    for call in (KMeans(1, spherical=True).fit, KMeans(1, spherical=True).partial_fit):
        with pytest.raises(InvalidInputError, match="no row with a direction"):
            call(np.zeros((3, 2)))
    with pytest.raises(InvalidInputError, match="init row 1 is zero"):
        KMeans(2, init=[[1, 0], [0, 0]], spherical=True).fit(np.eye(2))


# -------------------------------------------------------------- max_points, memmaps and blocks


@core
def test_max_points(caplog):
    x = blobs(3000, 3, 5)
    model = fit(x, 5, max_points=400)
    assert model.n_points_ == 400
    assert len(model.labels_) == 3000 == model.counts_.sum()
    assert model.inertia_ == -model.score(x) > model.inertia_history_[-1]
    same(model.labels_, model.predict(x), "labels of all")
    with caplog.at_level(logging.INFO, "npquant"):
        fit(x, 5, max_points=400)
    assert "400 of 3000 rows" in caplog.text
    caplog.clear()
    whole = fit(x, 5)
    assert whole.n_points_ == 3000
    for enough in (3000, 10_000):
        same(everything(fit(x, 5, max_points=enough)), everything(whole), "a limit that is none")
    assert not caplog.text
    other = fit(x, 5, max_points=400, random_state=1)
    assert (other.cluster_centers_ != model.cluster_centers_).any()
    one, two = (fit(x, 1, max_points=400, max_iter=1, random_state=seed).cluster_centers_ for seed in (0, 1))
    assert (one != two).any()  # means of other samples
    w = make_weights("floats", 3000, 0)
    part = KMeans(5, max_points=400, random_state=0).fit(x, sample_weight=w)
    rest = KMeans(5, max_points=400, random_state=0).fit(x[w > 0], sample_weight=w[w > 0])
    same(part.cluster_centers_, rest.cluster_centers_, "without rows of weight 0")
    assert part.inertia_ == -part.score(x, sample_weight=w) == rest.inertia_


@core
def test_a_sample_is_uniform():
    hits = np.zeros(50)
    for seed in range(400):
        rows = _rows.sample_numbers(50, 10, np.random.default_rng(seed))
        assert (np.diff(rows) > 0).all()
        hits[rows] += 1
    assert hits.sum() == 4000
    assert ((hits - 80) ** 2 / 80).sum() < 100  # chi-squared, 49 degrees of freedom (times 0.8)


@core
@pytest.mark.parametrize("limit", [None, 100, 250, 999])
def test_blocks_are_one_array(limit, tmp_path):
    x = strategies.make_vectors("normal", 700, 3)
    wanted = fit(x, 4, max_points=limit)
    for cuts in ([], [1, 2, 3], [350], [0, 0, 699], list(range(0, 700, 7))):
        stream = fit((block.astype(np.float64) for block in np.split(x, cuts)), 4, max_points=limit)
        same((stream.cluster_centers_, np.array(stream.inertia_history_)),
             (wanted.cluster_centers_, np.array(wanted.inertia_history_)), f"cut at {cuts}")
        assert stream.n_points_ == len(stream.labels_) == min(700, limit or 700)
        assert stream.inertia_ == stream.inertia_history_[-1]
    for dtype in ("<f4", ">f8", "<f2"):
        mapped = np.memmap(tmp_path / f"x{dtype[1:]}", dtype, "w+", shape=x.shape)
        mapped[:] = x
        plain = fit(np.array(mapped), 4, max_points=limit)
        same(everything(fit(mapped, 4, max_points=limit)), everything(plain), dtype)


@core
def test_bad_blocks():
    for bad, words in (([], "no rows"), ([np.zeros((0, 2))], "no rows"),
                       ([np.eye(2), np.eye(3)], "block 1 of X.*3 features"),
                       ([np.eye(2), [[np.nan, 0]]], "X contains NaN"), ([np.zeros(3)], "block 0 of X")):
        with pytest.raises(InvalidInputError, match=words):
            KMeans(2).fit(iter(bad))
    x = np.zeros((300, 2))
    x[250] = np.nan
    with pytest.raises(InvalidInputError, match="NaN"):  # also where it was not drawn
        KMeans(2, max_points=10, random_state=0).fit(x)
    model = KMeans(2, random_state=0).fit(np.eye(2))
    for call in (model.predict, model.score):
        with pytest.raises(InvalidInputError, match="no rows"):
            call(iter([]))


@core
@pytest.mark.parametrize("how", ["max_points", "weight", "memmap"])
def test_a_fit_that_fails_changes_nothing(how, tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans, "_READ", 64)
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2000, 3))
    x[:] = strategies.make_vectors("normal", 2000, 3)
    model = KMeans(2, random_state=0, max_points=None if how != "max_points" else 10)
    data = x if how == "memmap" else np.array(x)
    drawn = []
    training_rows = kmeans._training_rows
    monkeypatch.setattr(kmeans, "_training_rows", lambda *a: drawn.append(training_rows(*a)) or drawn[-1])
    model.fit(data, sample_weight=np.arange(2000) != 77 if how == "weight" else None)
    [(_, rows)] = drawn
    row = np.setdiff1d(np.arange(2000), rows)[0]  # not trained on
    data[row] = np.nan
    weight = np.arange(2000) != row if how == "weight" else None
    fresh = KMeans(**model.get_params())
    old = KMeans(**model.get_params()).fit(np.eye(4))
    before = {name: np.copy(value) for name, value in vars(old).items()}
    for this in (fresh, old):
        with pytest.raises(InvalidInputError, match="NaN"):
            this.fit(data, sample_weight=weight)
    assert not hasattr(fresh, "cluster_centers_")
    assert vars(fresh).keys() == KMeans().__dict__.keys()
    assert vars(old).keys() == before.keys()
    for name, value in vars(old).items():
        assert np.array_equal(value, before[name]), name


def test_a_memmap_is_not_copied_whole(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=(400_000, 32))
    for begin in range(0, len(mapped), 50_000):
        mapped[begin:begin + 50_000] = strategies.make_vectors("normal", 50_000, 32, begin)
    fit(mapped[:5000], 8)  # compile
    tracemalloc.start()
    model = fit(mapped, 8, max_iter=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.n_points_ == 65_536
    assert len(model.labels_) == 400_000
    assert model.inertia_ == -model.score(mapped)
    assert peak < 0.4 * mapped.nbytes, f"{peak / mapped.nbytes:.2f} of the file"


# ---------------------------------------------------------------------------------------- mini-batches


@core
@some
@given(strategies.vectors(rows=(13, 40), d=(1, 4), kinds=("normal", "grid", "duplicates", "offset", "large")),
       st.integers(1, 5), st.booleans(), strategies.seeds)
def test_mini_batches(x, K, weighted, seed):
    begin = np.unique(x, axis=0)[:K]
    w = make_weights("integers", len(x), seed, zeros=False) if weighted else np.ones(len(x))
    x[:len(begin)] = begin  # so that none of the first batch is empty
    cuts = [10, 11, len(x) - 1]
    batches = list(zip(np.split(x, cuts), np.split(w, cuts)))
    model, other = (KMeans(len(begin), init=begin, threads=threads) for threads in (1, 7))
    for part, weight in batches:
        before = getattr(model, "cluster_centers_", begin)
        model.partial_fit(part, sample_weight=weight if weighted else None)
        other.partial_fit(part, sample_weight=weight)
        same(model.labels_, reference.nearest(part, before)[0], "labels by the centres before")
    same((other.cluster_centers_, other.counts_), (model.cluster_centers_, model.counts_), "threads, or weights of 1")
    centers, total = reference.mini_batches(begin, batches)
    np.testing.assert_allclose(model.cluster_centers_, centers, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(model.weights_, total)
    assert model.counts_.sum() == len(x)


@core
def test_mini_batches_come_as_far_as_fit(tmp_path):
    x = blobs(6000, 4, 6, spread=20.0)
    model = KMeans(6, random_state=0)
    for part in np.array_split(x, 12):
        model.partial_fit(part)
    assert -model.score(x) < 1.02 * fit(x, 6).inertia_
    persist.save(model, tmp_path / "model")
    again = persist.load(tmp_path / "model")
    same(again.partial_fit(x[:100]).cluster_centers_, model.partial_fit(x[:100]).cluster_centers_, "saved and loaded")
    small = x[:500]
    for seed in range(4):
        same(KMeans(6, random_state=seed).partial_fit(small).labels_,
             fit(small, 6, max_iter=0, random_state=seed).labels_, "the start")
    fitted = fit(x, 6)
    before = fitted.cluster_centers_.copy()
    fitted.partial_fit(x[:10])
    assert np.abs(fitted.cluster_centers_ - before).max() < 0.1  # a thousand rows weigh more than ten
    assert fitted.counts_.sum() == 6010
    again = fitted.fit(x)
    same(again.sums_, fit(x, 6).sums_, "a fit forgets the batches")


@core
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spherical", [False, True])
def test_mini_batches_go_on_from_the_sums_of_fit(spherical, weighted):
    x = strategies.make_vectors("normal", 300, 3) + np.float32(1)
    x[7] = 0
    w = make_weights("floats", 300, 0) if weighted else np.ones(300)
    a, b = (x[:100], w[:100]), (x[100:], w[100:])
    fitted, batched = (KMeans(1, random_state=0, spherical=spherical) for _ in range(2))
    fitted.fit(a[0], sample_weight=a[1])
    batched.partial_fit(a[0], sample_weight=a[1])
    np.testing.assert_allclose(fitted.sums_, batched.sums_, rtol=1e-12)
    np.testing.assert_allclose(fitted.weights_, batched.weights_, rtol=1e-12)
    for model in (fitted, batched):
        model.partial_fit(b[0], sample_weight=b[1])
    np.testing.assert_allclose(fitted.cluster_centers_, batched.cluster_centers_, rtol=1e-6)


@core
def test_the_sums_of_fit_are_those_of_its_labels():
    x = strategies.make_vectors("normal", 9000, 4)  # many rows: long steps
    for max_iter in (0, 3):
        model = fit(x, 30, max_iter=max_iter, tol=0.0)
        sums, counts = reference.cluster_sums(x, model.labels_, 30)
        np.testing.assert_allclose(model.sums_, sums, rtol=1e-9, atol=1e-9)
        same(model.weights_, np.asarray(counts, np.float64), "weights")
    part = fit(x, 5, max_points=400)
    assert part.weights_.sum() == part.n_points_ == 400
    assert part.counts_.sum() == 9000


@core
def test_a_batch_removes_what_tells_of_a_fit():
    model = fit(np.eye(4), 2)
    model.partial_fit(np.eye(4))
    for name in ("inertia_history_", "n_iter_", "n_points_"):
        assert not hasattr(model, name)


@core
def test_mini_batches_repair_what_never_had_a_row():
    model = KMeans(3, init=[[0.0], [1e5], [2e5]]).partial_fit([[0.0], [1.0], [50.0]])
    assert sorted(model.cluster_centers_.ravel().tolist()) == [0.0, 1.0, 50.0]
    model.partial_fit([[0.0], [0.25]])  # those that had one stay
    assert {1.0, 50.0} < set(model.cluster_centers_.ravel().tolist())
    spherical = KMeans(2, init=np.eye(2), spherical=True).partial_fit([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    assert spherical.labels_.tolist() == [0, 0, 1]
    assert (spherical.counts_.tolist(), spherical.weights_.tolist()) == ([2, 1], [1.0, 1.0])
    spherical.partial_fit(np.zeros((2, 2)))
    same(spherical.cluster_centers_, np.eye(2, dtype=np.float32), "a batch without directions")


@core
def test_bad_mini_batches():
    model = KMeans(2, random_state=0).partial_fit(np.eye(3))
    with pytest.raises(InvalidInputError, match=r"2 features.*expecting 3"):
        model.partial_fit(np.eye(2))
    with pytest.raises(InvalidInputError, match=r"n_clusters is 3, but 2"):
        model.set_params(n_clusters=3).partial_fit(np.eye(3))
    with pytest.warns(NpquantWarning, match="1 training vectors for 2"):
        KMeans(2, random_state=0).partial_fit([[1.0]])
