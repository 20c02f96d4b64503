"""scikit-learn's own checks of our estimators, and that npquant does not need it."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import strategies

import npquant
from npquant._base import clone
from npquant.catalyzer import Catalyzer
from npquant.errors import InvalidInputError, NotFittedError, NpquantError, not_fitted
from npquant.kmeans import KMeans
from npquant.quantizers.additive import AdditiveQuantizer, LocalSearchQuantizer
from npquant.quantizers.lattice import SphericalLattice
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.residual import GeneralizedResidualQuantizer, ResidualQuantizer
from npquant.quantizers.supervised import SupervisedQuantizer
from npquant.quantizers.transformed import OptimizedProductQuantizer, PreTransformed
from npquant.transforms import PCA, Rotation, Standardize

core = pytest.mark.core
ESTIMATORS = [KMeans(2, max_iter=5, random_state=0), PCA(1), PCA(whiten=0.5), Standardize(),
              ProductQuantizer(m=1, nbits=1, n_iter=5, random_state=0), Rotation(random_state=0),
              OptimizedProductQuantizer(m=1, nbits=1, n_iter=5, random_state=0),
              Catalyzer(2, (4,), epochs=1, n_positives=1, negative_rank=1, random_state=0),
              PreTransformed(Rotation(), ProductQuantizer(m=1, nbits=1, n_iter=5), random_state=0),
              SphericalLattice(r2=4),
              ResidualQuantizer(m=2, nbits=1, n_iter=2, random_state=0),
              GeneralizedResidualQuantizer(m=2, nbits=1, n_iter=1, random_state=0),
              AdditiveQuantizer(m=2, nbits=1, n_iter=1, random_state=0),
              LocalSearchQuantizer(m=2, nbits=1, n_iter=1, random_state=0),
              SupervisedQuantizer(m=2, nbits=1, n_iter=1, random_state=0)]

try:
    import sklearn
    from sklearn.utils.estimator_checks import parametrize_with_checks
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*does not inherit from `sklearn.base.BaseEstimator`")
        scikit_learns = parametrize_with_checks(ESTIMATORS)
except ImportError:
    sklearn = None
    scikit_learns = pytest.mark.parametrize(("estimator", "check"), [(e, None) for e in ESTIMATORS])

needs_sklearn = pytest.mark.skipif(sklearn is None, reason="scikit-learn is not installed")


@needs_sklearn
@scikit_learns
def test_scikit_learn(estimator, check):
    check(estimator)


@needs_sklearn
def test_scikit_learn_would_see_a_violation():
    from sklearn.utils.estimator_checks import check_estimator

    class Careless(Standardize):
        def fit(self, X, y=None):
            return super().fit(np.nan_to_num(np.asarray(X, float)), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(Careless(), on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert "check_estimators_nan_inf" in failed


@needs_sklearn
def test_cloning():
    from sklearn.base import clone as copy_of
    for estimator in ESTIMATORS:
        fitted = copy_of(estimator).fit(np.eye(4), [0, 1, 0, 1])
        copy = copy_of(fitted)
        assert copy is not fitted
        assert repr(copy) == repr(estimator)
        assert repr(copy.get_params()) == repr(estimator.get_params())
        with pytest.raises(NotFittedError):
            copy.transform(np.eye(4))


@needs_sklearn
def test_pipelines_and_grids():
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    x = strategies.make_vectors("normal", 120, 8)
    pipe = make_pipeline(Standardize(), PCA(4, whiten=0.5), ProductQuantizer(2, 3, n_iter=4, random_state=0))
    codes = pipe.fit(x).transform(x)
    assert codes.shape == (120, 2)
    assert codes.dtype == np.uint8
    assert pipe.inverse_transform(codes).shape == x.shape
    assert pipe.get_feature_names_out().tolist() == ["productquantizer0", "productquantizer1"]
    assert pipe.set_params(productquantizer__nbits=2).fit_transform(x).max() == 3
    grid = GridSearchCV(ProductQuantizer(2, random_state=0, n_iter=4), {"nbits": [1, 2, 4], "m": [2, 4]}, cv=3).fit(x)
    assert grid.best_params_ == {"nbits": 4, "m": 4}
    assert GridSearchCV(KMeans(random_state=0), {"n_clusters": [1, 6]}, cv=3).fit(x).best_params_["n_clusters"] == 6


def test_data_frames():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(np.eye(4), columns=list("abcd"))
    model = PCA(2).fit(frame)
    assert model.feature_names_in_.tolist() == list("abcd")
    assert not hasattr(model.fit(frame.to_numpy()), "feature_names_in_")


class Frame:
    """As much of a data frame as we look at."""

    def __init__(self, array, columns):
        self.array, self.columns = array, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


@core
def test_column_names():
    for estimator in (PCA(2), Standardize(), KMeans(2, random_state=0)):
        model = estimator.fit(Frame(np.eye(4), list("abcd")))
        assert model.feature_names_in_.tolist() == list("abcd")
        assert not hasattr(model.fit(Frame(np.eye(4), [0, 1, 2, 3])), "feature_names_in_")
        assert not hasattr(model.fit(np.eye(4)), "feature_names_in_")
        assert model.n_features_in_ == 4
        assert len(model.get_feature_names_out()) == model.transform(np.eye(4)).shape[1]


@core
def test_parameters():
    pq = ProductQuantizer(4, random_state=1)
    assert pq.get_params() == {"m": 4, "nbits": 8, "n_iter": 25, "init": "k-means++", "max_points": 65_536,
                               "random_state": 1, "threads": None}
    assert pq.set_params(m=2, nbits=3) is pq
    assert (pq.m, pq.nbits) == (2, 3)
    with pytest.raises(InvalidInputError, match=r"'bits'.*Valid parameters"):
        pq.set_params(bits=3)
    with pytest.raises(TypeError):
        ProductQuantizer(bits=3)
    start = np.zeros((2, 3))
    assert KMeans(2, init=start).get_params()["init"] is start  # kept as given
    assert repr(KMeans(2, init="random")) == "KMeans(init='random', n_clusters=2)"
    assert "init=array" in repr(KMeans(2, init=start))


@core
def test_not_fitted_is_an_error_of_ours():
    for estimator in ESTIMATORS:
        with pytest.raises(NotFittedError, match="fit") as caught:
            clone(estimator).transform(np.eye(2))
        assert isinstance(caught.value, (NpquantError, ValueError, AttributeError))
        assert type(estimator).__name__ in str(caught.value)
    assert isinstance(not_fitted("X"), NpquantError)


def python(code):
    root = Path(npquant.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root,
                          check=False)
    assert done.returncode == 0, done.stderr


CATCH = """
import sys, npquant as nq
try:
    nq.PCA().transform([[1.0]])
except nq.NotFittedError as error:
    caught = error
"""


@core
def test_scikit_learn_is_not_imported_for_it():
    python(CATCH + "assert type(caught) is nq.NotFittedError\nassert 'sklearn' not in sys.modules")


@needs_sklearn
def test_not_fitted_is_scikit_learns_too():
    python("import sklearn.exceptions" + CATCH + "assert isinstance(caught, sklearn.exceptions.NotFittedError)\n"
           "assert isinstance(caught, nq.NotFittedError) and isinstance(caught, nq.NpquantError)\n"
           "import pickle; assert isinstance(caught, (ValueError, AttributeError))")
