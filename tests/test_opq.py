"""A transform in front of a codec, and the rotation learned for product codes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import same

import npquant as nq
from npquant import DeepQuantizer, FlatIndex, persist
from npquant.datasets import load_digits
from npquant.errors import FormatError, InvalidInputError, NotFittedError, NotInvertibleError, NpquantWarning
from npquant.quantizers import transformed
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.transformed import OptimizedProductQuantizer, PreTransformed
from npquant.transforms import PCA, Rotation, Standardize

core = pytest.mark.core
some = settings(max_examples=25)


def correlated(n=1500, d=16, seed=0, spread=1.5):
    """Gaussian vectors about a mean that is far off, whose variances differ and whose dimensions are correlated."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * np.exp(-spread * np.arange(d) / 4) @ basis + 3).astype(np.float32)


def orthogonal(rotation):
    assert rotation.dtype == np.float32
    wide = rotation.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(len(wide)), atol=1e-5)


def error(x, decoded):
    return np.square(x.astype(float) - decoded).sum(axis=1).mean()


# ------------------------------------------------------------------------------------- the learned rotation


@core
@some
@given(strategies.vectors(rows=(1, 60), d=(1, 4), multiple_of=2, kinds=strategies.EXTREME_KINDS),
       st.sampled_from(["best", "parametric", "identity", "random"]), st.sampled_from([1, 2, 3]))
@example(strategies.make_vectors("duplicates", 40, 4), "best", 2)
@example(np.zeros((1, 2), np.float32), "best", 1)
@pytest.mark.filterwarnings("ignore::npquant.errors.NpquantWarning")
def test_the_objective_never_increases(x, init, nbits):
    opq = OptimizedProductQuantizer(2, nbits, n_iter=4, init=init, random_state=0).fit(x)
    history = opq.objective_history_
    assert (np.diff(history) <= 0).all()
    assert np.isfinite(history).all()
    orthogonal(opq.rotation_)
    assert opq.decode(opq.encode(x)).shape == x.shape
    before = opq.score(x)
    opq.refine(x, 2)
    assert (np.diff(opq.objective_history_) <= 0).all()
    size = float(np.square(x, dtype=float).sum(axis=1).max())
    assert opq.score(x) >= before - 1e-5 * abs(before) - 1e-7 * size


@core
def test_a_history_has_both_halves_of_each_iteration():
    opq = OptimizedProductQuantizer(4, 4, n_iter=5, init="identity", random_state=0).fit(correlated())
    assert len(opq.objective_history_) == 11
    assert opq.objective_history_[-1] < opq.objective_history_[0]
    still = OptimizedProductQuantizer(4, 4, n_iter=0, init="identity", random_state=0).fit(correlated())
    assert len(still.objective_history_) == 1
    same(still.rotation_, np.eye(16, dtype=np.float32), "no iteration, and the identity")


@core
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("m", "nbits"), [(2, 4), (4, 4), (8, 3), (1, 5)])
def test_no_worse_than_plain(m, nbits, seed):
    x = correlated(seed=seed)
    plain = ProductQuantizer(m, nbits, random_state=seed).fit(x)
    opq = OptimizedProductQuantizer(m, nbits, random_state=seed).fit(x)
    assert opq.score(x) > plain.score(x) * (1.03 if m == 1 else 1.0)  # scores are negative
    assert opq.score(correlated(seed=seed)[::-1]) == pytest.approx(opq.score(x), rel=1e-6)
    round_ = strategies.make_vectors("normal", 3000, 8, seed)  # nothing to gain
    plain = ProductQuantizer(2, 4, random_state=seed).fit(round_)
    opq = OptimizedProductQuantizer(2, 4, random_state=seed).fit(round_)
    assert opq.score(round_) > plain.score(round_) * 1.03


@core
def test_best_is_the_better_start():
    along = np.zeros((3000, 16), np.float32)  # blocks that hang together, and are not Gaussian
    rng = np.random.default_rng(0)
    for j in range(4):
        along[:, 4 * j:4 * j + 4] = 10 * rng.standard_normal((16, 4))[rng.integers(16, size=3000)]
    along += rng.standard_normal(along.shape).astype(np.float32) * 0.01
    turned = correlated(3000, spread=2.0)
    for x in (along, turned):
        scores = {init: OptimizedProductQuantizer(4, 4, init=init, random_state=0).fit(x).score(x)
                  for init in ("best", "parametric", "identity")}
        assert scores["best"] >= max(scores["parametric"], scores["identity"]) * 1.1


@core
@given(st.lists(st.floats(0.0, 1e6), min_size=4, max_size=8), st.booleans())
@example([1e-9, 1e-8, 1e-7, 1e-6], False)
@example([0.0] * 6, True)
def test_allocation_in_pairs_is_the_best(values, shrunk):
    values = np.sort(values[:len(values) // 2 * 2])[::-1] * (1e-9 if shrunk else 1.0)
    m = len(values) // 2
    order = transformed._allocation(values, m)
    assert sorted(order) == list(range(2 * m))
    kept = np.maximum(values, max(values[0], 1e-300) * 1e-12)

    def cost(order):  # of Gaussian data: the blocks' geometric means of variances
        return np.sqrt(kept[np.asarray(order).reshape(m, 2)].prod(axis=1)).sum()
    best = min(cost(order) for order in itertools.permutations(range(2 * m))) if m < 4 else cost(
        [i for j in range(m) for i in (j, 2 * m - 1 - j)])
    assert cost(order) <= best * (1 + 1e-9) + 1e-290


@core
def test_allocation_by_hand():
    # Halves: 18 and 8 open the blocks; 4 to the 8, which makes it 32; 2 to the 18: 36; 2 to the 32; 1 to what is left.
    values = np.array([9.0, 4, 2, 1, 1, 0.5])
    for scale in (1.0, 1e-6, 1e6):
        assert transformed._allocation(values * scale, 2).tolist() == [0, 3, 5, 1, 2, 4]
    assert transformed._allocation(np.array([5.0, 5, 0, 0]), 2).tolist() == [0, 2, 1, 3]


@core
def test_the_parametric_rotation_decorrelates():
    x = correlated(4000)
    x -= x.mean(axis=0)
    rotation = transformed._parametric(x, 4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-10)
    covariance = np.cov((x @ rotation.T).T)
    off = covariance - np.diag(np.diag(covariance))
    np.testing.assert_allclose(off, 0, atol=1e-4)
    products = np.log(np.diag(covariance)).reshape(4, 4).sum(axis=1)
    assert np.ptp(products) < np.log(np.diag(covariance)).max() - np.log(np.diag(covariance)).min()


@core
def test_procrustes_is_scipys():
    linalg = pytest.importorskip("scipy.linalg", reason="SciPy is not installed")
    x = correlated(600, 8)
    x -= x.mean(axis=0)
    codebooks = ProductQuantizer(2, 3, n_iter=2, random_state=0).fit(x).codebooks_
    work = transformed._Alternation(x, np.eye(8), codebooks, 1)
    decoded = np.concatenate([book[label] for book, label in zip(work.codebooks, work.labels)], axis=1)
    wanted, _ = linalg.orthogonal_procrustes(x.astype(float), decoded.astype(float))  # min ‖X R − Y‖
    assert work._rotate()
    np.testing.assert_allclose(work.rotation, wanted.T, atol=1e-4)
    np.testing.assert_allclose(work.history[-1], np.square(x @ wanted - decoded).sum(axis=1).mean(), rtol=1e-5)


@core
def test_far_from_the_origin():
    x = correlated().astype(np.float64)
    near = OptimizedProductQuantizer(4, 4, random_state=0).fit(x)
    far = OptimizedProductQuantizer(4, 4, random_state=0).fit(x + 1e4)
    assert far.score(x + 1e4) > near.score(x) * 1.05
    orthogonal(far.rotation_)


@core
def test_one_seed_many_threads():
    x = correlated(5000)
    fits = [OptimizedProductQuantizer(4, 4, n_iter=5, random_state=7, threads=t).fit(x) for t in (1, 2, 5)]
    for other in fits[1:]:
        same(other.rotation_, fits[0].rotation_, "rotations")
        same(other.codebooks_, fits[0].codebooks_, "codebooks")
    other = OptimizedProductQuantizer(4, 4, n_iter=5, random_state=8).fit(x)
    assert (other.codebooks_ != fits[0].codebooks_).any()


@core
def test_refine_leaves_a_copy_alone():
    x = correlated()
    opq = OptimizedProductQuantizer(4, 4, n_iter=1, random_state=0).fit(x)
    index = nq.FlatIndex(opq)
    index.add(x[:50])
    before = tuple(index.search(x[:9], 5))
    score = opq.score(x)
    assert opq.refine(x, 10) is opq
    assert opq.score(x) > score
    same(tuple(index.search(x[:9], 5)), before, "an index after its codec was refined")


@core
@pytest.mark.parametrize("params", [{"m": 0}, {"m": 3}, {"m": 17}, {"nbits": 0}, {"nbits": 9}, {"n_iter": -1},
                                    {"n_iter": 1.5}, {"init": "pca"}, {"init": None}, {"random_state": -1},
                                    {"threads": 0}], ids=str)
def test_a_bad_parameter_is_named(params):
    [name] = params
    opq = OptimizedProductQuantizer(**{"m": 4, "nbits": 3, **params})
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        opq.fit(correlated(50))
    for attribute in ("codebooks_", "rotation_", "transform_", "quantizer_"):
        assert not hasattr(opq, attribute)
    with pytest.raises(NotFittedError):
        opq.encode(correlated(3))


@core
def test_few_vectors_are_told_of_once():
    with pytest.warns(NpquantWarning, match="16 codewords") as told:
        OptimizedProductQuantizer(2, 4, n_iter=2, random_state=0).fit(correlated(9, 4))
    assert len(told) == 1


# ------------------------------------------------------------------------------------- any transform, any codec


class Squares:
    """A transform from elsewhere, which cannot be undone."""

    def get_params(self, deep=True):
        return {}

    def fit(self, X, y=None):
        self.n_features_in_ = np.shape(X)[1]
        return self

    def transform(self, X):
        return np.square(X).tolist()


@core
def test_a_transform_without_an_inverse():
    x = correlated(200, 4)
    codec = PreTransformed(Squares(), ProductQuantizer(2, 3), random_state=0).fit(x)
    inner = ProductQuantizer(2, 3, random_state=codec.quantizer_.random_state).fit(x**2)
    codes = codec.encode(x)
    same(codes, inner.encode(x**2), "codes")
    same(codec.scorer(x[:3]).scores(codes), inner.scorer(x[:3]**2).scores(codes), "scores")
    assert codec.encode(x[:0]).shape == (0, 2)
    for call, argument in ((codec.decode, codes), (codec.nearest, x), (codec.score, x)):
        with pytest.raises(NotInvertibleError, match=r"quantizer_\.decode"):
            call(argument)


def test_a_transform_of_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn is not installed")
    x = correlated(200, 4)
    codec = PreTransformed(preprocessing.StandardScaler(), ProductQuantizer(2, 3), random_state=0).fit(x)
    wanted = preprocessing.StandardScaler().fit(x)
    np.testing.assert_allclose(codec.decode(codec.encode(x)), wanted.inverse_transform(
        codec.quantizer_.decode(codec.quantizer_.encode(wanted.transform(x)))), atol=1e-5)


@core
@pytest.mark.parametrize("transformer", [PCA(), Rotation(), Standardize()])
def test_scores_are_distances_to_the_decoded(transformer):
    x = correlated(400, 8)
    codec = PreTransformed(transformer, ProductQuantizer(4, 4), random_state=0).fit(x)
    codes = codec.encode(x)
    distance = np.square(x[:20, None].astype(float) - codec.decode(codes)[None]).sum(axis=2)
    scale = getattr(codec.transform_, "scale_", 1.0)
    factor = float(scale) ** 2 if isinstance(transformer, Standardize) else 1.0
    np.testing.assert_allclose(codec.scorer(x[:20]).scores(codes), distance * factor, rtol=1e-3, atol=1e-4)
    if isinstance(transformer, Rotation):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        codes = codec.encode(x, metric="cosine")
        np.testing.assert_allclose(codec.scorer(x[:20], "cosine").scores(codes), -unit[:20] @ codec.decode(codes).T,
                                   atol=1e-5)


@core
def test_what_is_given_is_not_changed():
    x = correlated(200, 8)
    pca, pq = PCA(4), ProductQuantizer(2, 3)
    codec = PreTransformed(pca, pq, random_state=5, threads=1).fit(x)
    assert not hasattr(pca, "components_")
    assert not hasattr(pq, "codebooks_")
    assert pq.random_state is None
    assert codec.quantizer_.threads == 1
    assert codec.score_model == "decoded"
    assert codec.set_params(quantizer__nbits=2, transformer__n_components=2).fit(x).encode(x).max() == 3
    mine = PreTransformed(pca, ProductQuantizer(2, 3, random_state=1), random_state=5).fit(x)
    assert mine.quantizer_.random_state == 1


@core
@pytest.mark.parametrize("parts", [(None, ProductQuantizer(2)), (PCA, ProductQuantizer(2)), (PCA(), None),
                                   (PCA(), PCA()), (ProductQuantizer(2), ProductQuantizer(2)),
                                   (PCA(), ProductQuantizer)], ids=str)
def test_wrong_parts_are_told(parts):
    with pytest.raises(InvalidInputError, match="wanted"):
        PreTransformed(*parts).fit(correlated(50, 8))


@core
@given(st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=20)
def test_nearby_are_the_nearest_whole_codewords(k, seed):
    x = correlated(60, 4, seed)
    codec = PreTransformed(Rotation(), ProductQuantizer(2, 3), random_state=0).fit(x)
    near = codec.nearby(x[:5], k)
    assert near.shape == (5, 1, k, 4)
    every = codec.decode(np.array(list(itertools.product(range(8), repeat=2)), np.uint8))
    distance = np.sort(np.square(x[:5, None].astype(float) - every[None]).sum(axis=2), axis=1)[:, :k]
    np.testing.assert_allclose(np.square(x[:5, None].astype(float) - near[:, 0]).sum(axis=2), distance, atol=1e-4)
    np.testing.assert_allclose(near[:, 0, 0], codec.nearest(x[:5]), atol=1e-4)
    assert codec.nearby(x[:2], 1000).shape == (2, 1, 64, 4)


@core
@pytest.mark.parametrize("make", [lambda: OptimizedProductQuantizer(2, 3, n_iter=2),
                                  lambda: PreTransformed(PCA(4), ProductQuantizer(2, 3)),
                                  lambda: PreTransformed(Standardize(), OptimizedProductQuantizer(2, 3, n_iter=1))])
def test_files(make, tmp_path):
    x, path = correlated(100, 8), Path(tmp_path, "codec.npq")
    persist.save(make(), path)  # not fitted
    loaded = persist.load(path)
    assert repr(loaded) == repr(make())
    assert not loaded.__sklearn_is_fitted__()
    persist.save(make().fit(x), path)
    assert persist.load(path).score(x) < 0


@core
def test_a_file_of_what_does_not_fit_is_refused(tmp_path):
    x, path = correlated(100, 8), Path(tmp_path, "codec.npq")
    for change in (lambda c: setattr(c, "transform_", Rotation().fit(x[:, :4])), lambda c: delattr(c, "transform_"),
                   lambda c: setattr(c, "quantizer_", ProductQuantizer(2, 3).fit(x[:, :6])),
                   lambda c: setattr(c, "quantizer_", "PQ"), lambda c: setattr(c, "transform_", PCA().fit(x))):
        codec = OptimizedProductQuantizer(2, 3, n_iter=1, random_state=0).fit(x)
        change(codec)
        persist.save(codec, path)
        with pytest.raises(FormatError):
            persist.load(path)


@core
@pytest.mark.parametrize("output", ["gsl", "plain", "straight_through"])
def test_a_network_learns_with_it(output):
    x = correlated(240, 12)
    y = np.arange(240) % 3
    model = nq.DeepQuantizer(hidden=(16,), d_out=8, output=output, epochs=4, random_state=0,
                             quantizer=OptimizedProductQuantizer(2, 3, n_iter=3)).fit(x, y)
    assert isinstance(model.quantizer_, OptimizedProductQuantizer)
    distances, ids = model.index(x).search(x[:5], 3)
    assert np.isfinite(distances).all()
    z, codes = model.transform(x), model.encode(x)
    same(codes, model.quantizer_.encode(z), "codes of outputs")
    np.testing.assert_allclose(distances[:, 0], np.square(
        z[:5].astype(float) - model.decode(codes)[ids[:, 0]]).sum(axis=1), rtol=1e-3, atol=1e-5)


@core
def test_a_ray_is_cut_into_no_blocks():
    from npquant.nn.output import gradient_snapping
    x = correlated(240, 12)
    model = nq.DeepQuantizer(hidden=(16,), d_out=8, output=gradient_snapping(mode="ray"), epochs=3, random_state=0,
                             quantizer=OptimizedProductQuantizer(2, 3, n_iter=2)).fit(x, np.arange(240) % 3)
    assert np.isfinite(model.score(x))


# ------------------------------------------------------------------------------------- in another library


def test_transplanted_into_faiss():
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    x = correlated(3000, 16)
    opq = OptimizedProductQuantizer(4, 8, n_iter=5, random_state=0).fit(x)
    turn = faiss.LinearTransform(16, 16, False)
    faiss.copy_array_to_vector(opq.rotation_.ravel(), turn.A)
    turn.is_trained = True
    turn.set_is_orthonormal()
    theirs = faiss.IndexPQ(16, 4, 8)
    faiss.copy_array_to_vector(opq.codebooks_.ravel(), theirs.pq.centroids)
    theirs.is_trained = True
    index = faiss.IndexPreTransform(turn, theirs)
    index.add(x)
    codes = opq.encode(x)
    other = faiss.vector_to_array(theirs.codes).reshape(codes.shape)
    rows = (codes != other).any(axis=1)
    assert rows.mean() < 0.01  # their rotation is rounded otherwise
    own = np.square(x - opq.decode(codes)).sum(axis=1)
    np.testing.assert_allclose(np.square(x - opq.decode(other)).sum(axis=1)[rows], own[rows], rtol=1e-4)
    np.testing.assert_allclose(index.sa_decode(codes), opq.decode(codes), atol=1e-4)
    distances, ids = index.search(x[:50], 10)
    ours = opq.scorer(x[:50]).scores(other)
    np.testing.assert_allclose(np.take_along_axis(ours, ids, axis=1), distances, rtol=1e-3, atol=1e-3)
    flat = nq.FlatIndex(opq)
    flat.add(x)
    np.testing.assert_allclose(flat.search(x[:50], 10).distances, distances, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e17, 1e-18])
def test_numbers_at_the_ends_of_what_is_taken(scale):
    """Products of float32 must neither overflow (LAPACK does not come back from infinity) nor vanish."""
    rng = np.random.default_rng(0)
    x = (np.sign(rng.standard_normal((20_000, 1))) * (1 - 0.2 * rng.random((20_000, 16)))).astype(np.float32)
    params = {"m": 4, "nbits": 7, "init": "parametric", "n_iter": 3, "max_points": None, "random_state": 0}
    small = OptimizedProductQuantizer(**params).fit(x)
    ends = OptimizedProductQuantizer(**params).fit(x * np.float32(scale))
    assert np.isfinite(ends.codebooks_).all()
    assert len(ends.objective_history_) > 1
    if scale > 1:
        assert ends.score(x * np.float32(scale)) / scale**2 >= 2 * small.score(x) - 1e-6


def test_refine_keeps_the_shape_it_was_fitted_with():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    opq = OptimizedProductQuantizer(4, 4, n_iter=2, random_state=0).fit(x).set_params(m=2, nbits=8).refine(x, 1)
    assert (opq.quantizer_.m, opq.quantizer_.nbits, opq.codebooks_.shape) == (4, 4, (4, 16, 2))


def test_an_index_keeps_what_is_inside_its_codec():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    pre = PreTransformed(Rotation(random_state=1), ProductQuantizer(2, 3), random_state=0).fit(x)
    index = FlatIndex(pre)
    index.add(x)
    before = index.search(x[:5], 3).distances.tobytes(), index.reconstruct([0, 1]).tobytes()
    pre.quantizer_.average(x, 0.1)
    pre.transform_.rotation_ = np.eye(8, dtype=np.float32)
    assert (index.search(x[:5], 3).distances.tobytes(), index.reconstruct([0, 1]).tobytes()) == before


class Halves:
    """A transform from elsewhere that leaves rows out."""

    def get_params(self, deep=True):
        return {}

    def fit(self, X):
        return self

    def transform(self, X):
        return X[::2]


def test_a_transform_that_loses_rows_is_refused():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    with pytest.raises(InvalidInputError, match="the transformed X has 250 rows"):
        PreTransformed(Halves(), ProductQuantizer(2, 3)).fit(x)


def test_a_transform_whose_numbers_are_too_large_is_refused():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    pre = PreTransformed(PCA(8, whiten=1.0), ProductQuantizer(2, 3), random_state=0).fit(x * np.float32(1e-12))
    with pytest.raises(InvalidInputError, match="the transformed X"):
        pre.encode(x[:2] * np.float32(1e10))


def test_a_network_over_a_transform_scores_behind_it():
    data = load_digits()
    model = DeepQuantizer(hidden=(16,), d_out=8, epochs=2, random_state=0, quantizer=PreTransformed(
        PCA(8, whiten=1.0), ProductQuantizer(2, 3))).fit(data.X_train[:300], data.y_train[:300])
    codes, inner = model.encode(data.X_train[:50]), model.quantizer_
    behind = inner.transform_.transform(model.transform(data.X_test[:3]))
    wanted = np.square(behind[:, None] - inner.quantizer_.decode(codes)).sum(axis=2)
    np.testing.assert_allclose(model.scorer(data.X_test[:3]).scores(codes), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_read_once_is_not_fitted_and_transformed():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    for estimator in (ProductQuantizer(2, 3), OptimizedProductQuantizer(2, 3)):
        with pytest.raises(InvalidInputError, match="read only once"):
            estimator.fit_transform(iter([x]))


def test_the_start_is_chosen_on_enough_vectors(monkeypatch):
    """With 16 codewords too: a rotation fitted to 64 vectors a codeword tells nothing about others."""
    x = np.random.default_rng(0).gamma(0.5, 1, (20_000, 8)).repeat(4, axis=1).astype(np.float32)
    x *= np.random.default_rng(1).gamma(1, 1, x.shape).astype(np.float32)
    seen = []
    run = transformed._Alternation.run
    monkeypatch.setattr(transformed._Alternation, "run", lambda self, n: seen.append(len(self.x)) or run(self, n))
    nq.OptimizedProductQuantizer(4, 4, n_iter=2, random_state=0).fit(x)
    assert seen == [16_384, 16_384, 20_000]
