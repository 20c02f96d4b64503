"""PCA, Standardize and Rotation, against their definitions and against scikit-learn."""

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, layouts, same

from npquant import persist
from npquant.errors import InvalidInputError, NotFittedError
from npquant.transforms import PCA, Rotation, Standardize, products

core = pytest.mark.core
some = settings(max_examples=60)


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)) * [5, 3, 2, 1, 0.5, 0.1] @ rng.standard_normal((6, 6))
    return (x + 2).astype(np.float32)


def orthonormal(pca):
    kept = len(pca.components_)
    np.testing.assert_allclose(pca.components_.astype(float) @ pca.components_.T, np.eye(kept), atol=1e-5)


@core
@some
@given(strategies.vectors(), st.sampled_from([0.0, 0.5, 1.0]))
def test_pca_of_anything(x, whiten):
    pca = PCA(whiten=whiten).fit(x)
    orthonormal(pca)
    values = pca.explained_variance_
    assert (np.diff(values) <= 0).all()
    assert values.min() >= 0
    big = np.abs(pca.components_).max(axis=1)
    assert (pca.components_.max(axis=1) >= big * (1 - 1e-6)).all()  # the largest entry is positive
    z = pca.transform(x)
    assert z.shape == x.shape
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    back = pca.inverse_transform(z)
    spread = np.abs(x.astype(float) - x.mean(axis=0, dtype=float)).max()
    np.testing.assert_allclose(back, x, rtol=2e-6, atol=max(spread, 1e-30) * (1e-4 if whiten == 0 else 2e-2))
    np.testing.assert_allclose(values.sum(), x.astype(float).var(axis=0).sum(), rtol=1e-4, atol=1e-40)


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_pca_is_scikit_learns(x, kept):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    ours, theirs = PCA(kept).fit(x), decomposition.PCA(kept, svd_solver="full").fit(x.astype(np.float64))
    sign = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components_ * sign[:, None], theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-5)
    np.testing.assert_allclose(ours.explained_variance_ * 300 / 299, theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.transform(x) * sign, theirs.transform(x.astype(np.float64)), atol=1e-4)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(x)),
                               theirs.inverse_transform(theirs.transform(x.astype(np.float64))), atol=1e-4)
    white = PCA(kept, whiten=1.0).fit(x).transform(x) * sign
    wanted = decomposition.PCA(kept, whiten=True, svd_solver="full").fit_transform(x.astype(np.float64))
    np.testing.assert_allclose(white, wanted * np.sqrt(300 / 299), atol=2e-4)


@core
@pytest.mark.parametrize("whiten", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kept", [None, 4])
def test_whitening(x, whiten, kept):
    pca = PCA(kept, whiten=whiten).fit(x)
    z = pca.transform(x).astype(float)
    n_components = kept or 6
    assert z.shape == (300, n_components)
    covariance = z.T @ z / 300
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance - np.diag(variances), 0, atol=1e-4 * variances.max())
    power = pca.explained_variance_ ** (1 - whiten)
    if whiten > 0:
        power *= n_components / power.sum()
        np.testing.assert_allclose(np.square(z).sum(axis=1).mean(), n_components, rtol=1e-4)
    np.testing.assert_allclose(variances, power, rtol=1e-3)
    projector = pca.components_.T @ pca.components_
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(x)), (x - pca.mean_) @ projector + pca.mean_,
                               atol=1e-4)


@core
def test_pca_by_hand():
    pca = PCA(1).fit([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]])
    np.testing.assert_allclose(pca.components_, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(pca.explained_variance_, [16 / 3], rtol=1e-6)
    np.testing.assert_allclose(pca.transform([[2.0, 2.0], [3.0, 3.0]]), [[0.0], [2**0.5]], atol=1e-6)
    np.testing.assert_allclose(pca.inverse_transform([[2**0.5]]), [[3.0, 3.0]], rtol=1e-6)


@core
def test_pca_far_from_the_origin(x):
    far = PCA().fit(x.astype(np.float64) + 1e6)
    orthonormal(far)
    rounded = (x.astype(np.float64) + 1e6).astype(np.float32)
    np.testing.assert_allclose(far.explained_variance_.sum(), rounded.astype(float).var(axis=0).sum(), rtol=1e-5)
    np.testing.assert_allclose(far.inverse_transform(far.transform(rounded)), rounded, rtol=3e-7)


@core
def test_pca_with_fewer_rows_than_dimensions():
    x = strategies.make_vectors("normal", 3, 7)
    for whiten in (0.0, 1.0):
        pca = PCA(whiten=whiten).fit(x)
        orthonormal(pca)
        np.testing.assert_allclose(pca.explained_variance_[2:], 0, atol=1e-6)
        np.testing.assert_allclose(pca.inverse_transform(pca.transform(x)), x, atol=1e-4)


@core
@pytest.mark.parametrize("params", [{"n_components": 0}, {"n_components": 7}, {"n_components": 0.5},
                                    {"n_components": "mle"}, {"whiten": -0.1}, {"whiten": 1.1}, {"whiten": np.nan},
                                    {"whiten": True}, {"whiten": "half"}], ids=str)
def test_a_bad_parameter_is_named(params, x):
    [name] = params
    with pytest.raises(InvalidInputError, match=name):
        PCA(**params).fit(x)


@core
@some
@given(strategies.vectors())
def test_standardize_anything(x):
    model = Standardize().fit(x)
    z = model.transform(x)
    assert z.dtype == np.float32
    assert z.shape == x.shape
    spread = np.abs(x.astype(float) - x.mean(axis=0, dtype=float)).max()
    top = np.abs(x).max()
    if spread > top * 1e-5 and len(x) > 1:
        np.testing.assert_allclose(np.square(z, dtype=float).sum(axis=1).mean(), x.shape[1], rtol=1e-3)
        np.testing.assert_allclose(z.mean(axis=0, dtype=float), 0, atol=1e-4)
    elif spread == 0:
        assert model.scale_ == 1.0
    np.testing.assert_allclose(model.inverse_transform(z), x, rtol=1e-6, atol=spread * 1e-5)


@core
def test_standardize_keeps_ratios(x):
    model = Standardize().fit(x)
    z = model.transform(x)
    ours, theirs = (np.linalg.norm(a[:50, None].astype(float) - a[None, 50:90], axis=2) for a in (z, x))
    np.testing.assert_allclose(ours / theirs, model.scale_, rtol=1e-4)
    by_hand = Standardize().fit([[1.0, 2.0], [3.0, 2.0]])
    assert by_hand.mean_.tolist() == [2.0, 2.0]
    np.testing.assert_allclose(by_hand.scale_, 2**0.5)
    np.testing.assert_allclose(by_hand.transform([[3.0, 3.0]]), [[2**0.5, 2**0.5]], rtol=1e-6)


@core
@pytest.mark.parametrize("make", [PCA, lambda: PCA(3, whiten=0.5), Standardize, lambda: Rotation(random_state=0)])
def test_forms_and_sharing(make, x):
    wanted = make().fit(x).transform(x)
    with layouts(x) as forms:
        for what, form in forms.items():
            model = make()
            assert model.fit(form) is model
            same(model.transform(form), wanted, what)
    given_x = x.copy()
    model = make().fit(given_x)
    z = model.transform(given_x)
    back = model.inverse_transform(z)
    same(given_x, x, "what was given")
    given_x[:], z[:], back[:] = 7, 7, 7
    same(model.transform(x), wanted, "the model after others changed their arrays")
    same(make().fit_transform(x), wanted, "fit_transform")


@core
@pytest.mark.parametrize("make", [PCA, Standardize, Rotation])
def test_bad_input(make, x):
    for call in (make().transform, make().inverse_transform):
        with pytest.raises(NotFittedError, match=make.__name__):
            call(x)
    model = make().fit(x)
    for bad in (x[:, :-1], x[0], x[None], x * np.nan, [["a"] * 6], None):
        for call in (model.transform, model.inverse_transform):
            with pytest.raises(InvalidInputError):
                call(bad)
    with pytest.raises(InvalidInputError):
        make().fit(x[:0])


@core
@pytest.mark.parametrize("make", [PCA, lambda: PCA(3, whiten=0.5), Standardize, lambda: Rotation(random_state=0)])
def test_a_row_does_not_see_its_batch(make, x, jit):
    model = make().fit(x)
    many = np.resize(x, (9001, 6))
    z = model.transform(many)
    back = model.inverse_transform(z)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 302), slice(4095, 9001), np.arange(9001)[::-1]):
        same(model.transform(many[rows]), z[rows], "transform")
        same(model.inverse_transform(z[rows]), back[rows], "inverse_transform")
    for mode in "01" if HAVE_NUMBA else "0":
        jit(mode)
        same(model.transform(many), z, f"NPQUANT_JIT={mode}")


@core
def test_products_are_in_the_fixed_order(x):
    rows = x[:5]
    wanted = np.zeros((300, 5), np.float32)
    for j in range(6):
        wanted += x[:, j, None] * rows[:, j]
    same(products(x, rows, 2), wanted, "products")


@core
@some
@given(st.integers(1, 40), strategies.seeds)
def test_a_rotation_is_orthogonal(d, seed):
    x = strategies.make_vectors("normal", 20, d, seed)
    model = Rotation(random_state=seed).fit(x)
    rotation = model.rotation_.astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(d), atol=1e-5)
    z = model.transform(x)
    np.testing.assert_allclose(z, x @ rotation.T, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(z[1:] - z[:-1], axis=1), np.linalg.norm(x[1:] - x[:-1], axis=1),
                               rtol=1e-4)
    np.testing.assert_allclose(model.inverse_transform(z), x, atol=1e-5)
    same(Rotation(random_state=seed).fit(x[:1]).rotation_, model.rotation_, "it is of the dimension alone")


@core
def test_rotations_are_uniform():
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    rng = np.random.default_rng(0)
    ours = np.array([Rotation(random_state=rng).fit(np.ones((1, 3))).rotation_ for _ in range(2000)])
    theirs = stats.ortho_group.rvs(3, 2000, random_state=1)
    for of in (lambda a: a[:, 0, 0], lambda a: a[:, 2, 1], lambda a: np.trace(a, axis1=1, axis2=2)):
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3
    assert 0.45 < (np.linalg.det(ours) > 0).mean() < 0.55
    # Without the correction of signs the diagonal is not symmetric about 0.
    assert stats.ks_2samp(np.linalg.qr(rng.standard_normal((2000, 3, 3)))[0][:, 0, 0],
                          theirs[:, 0, 0]).pvalue < 1e-3


@core
def test_a_rotation_is_given(x, tmp_path):
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
    given_one = matrix.copy()
    model = Rotation()
    model.rotation_ = given_one
    given_one[:] = 0
    same(model.rotation_, matrix, "the rotation given")
    np.testing.assert_allclose(model.transform(x), x @ matrix.T, atol=1e-5)
    persist.save(model, tmp_path / "r")
    same(persist.load(tmp_path / "r").transform(x), model.transform(x), "after a file")
    persist.save(Rotation(), tmp_path / "r")
    assert not hasattr(persist.load(tmp_path / "r"), "rotation_")
    for bad in (matrix[:3], matrix * np.float32(1.001), matrix.astype(float), matrix.tolist(), np.zeros((6, 6), "f4"),
                matrix[None], np.full((6, 6), np.nan, "f4"), np.ones((2, 3), "f4")):
        with pytest.raises(InvalidInputError, match="rotation_"):
            model.rotation_ = bad
    same(model.rotation_, matrix, "the rotation after others were refused")


@core
@pytest.mark.parametrize("make", [PCA, Standardize, Rotation])
def test_an_unfitted_one_is_saved(make, tmp_path):
    persist.save(make(), tmp_path / "t")
    assert repr(persist.load(tmp_path / "t")) == repr(make())
