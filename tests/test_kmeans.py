"""k-means: what Lloyd's algorithm promises, and what the docstring does."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import THREADS, layouts, same

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
    # Clusters far apart show that theirs is the greedy k-means++, of several candidates a centre.
    init = "random" if kind == "clusters" else "k-means++"
    mean = [np.mean([fit(x, 10, random_state=seed).inertia_ for seed in range(8)]),
            np.mean([cluster.KMeans(10, init=init, n_init=1, random_state=seed).fit(x).inertia_ for seed in range(8)])]
    assert mean[0] <= 1.1 * mean[1]


@core
@pytest.mark.parametrize("params", [
    {"n_clusters": 0}, {"n_clusters": -1}, {"n_clusters": 2.0}, {"n_clusters": "8"}, {"n_clusters": True},
    {"n_clusters": None}, {"init": "kmeans++"}, {"init": np.zeros((3, 2))}, {"init": np.zeros((2, 3))},
    {"init": [[0, 0], [np.nan, 0]]}, {"init": np.zeros(2)}, {"init": None}, {"max_iter": -1}, {"max_iter": 2.5},
    {"tol": -1e-9}, {"tol": np.nan}, {"tol": np.inf}, {"tol": "0"}, {"random_state": -1}, {"random_state": "0"},
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
