"""SupervisedQuantizer: what it minimises, what labels buy, and the laws of codecs, for which it needs labels."""

import os
from pathlib import Path

import laws
import numpy as np
import pytest
import strategies
from laws import same

import npquant as nq
from npquant import metrics, persist
from npquant._rows import training_rows
from npquant.errors import FormatError, InvalidInputError, NotFittedError, NpquantWarning
from npquant.quantizers.supervised import SupervisedProjection, SupervisedQuantizer, _Problem

core = pytest.mark.core
DATA = Path(os.environ.get("NPQUANT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
X, Y, Q, YQ = nq.datasets.load_digits()
SMALL, LABELS = X[:400], Y[:400]


def make(m=2, nbits=4, **params):
    return SupervisedQuantizer(m, nbits, **{"n_iter": 4, "random_state": 0, **params})


def adc_map(codec, base=X, labels=Y, queries=Q, query_labels=YQ):
    return metrics.mean_average_precision(codec.scorer(queries).scores(codec.encode(base)), query_labels, labels)


# ------------------------------------------------------------------------------------- what labels buy


@core
def test_it_beats_product_quantization_in_map_at_equal_bytes():
    """Digits, 2 bytes. (Blocks of 8 bits, the best that PQ has with them.)"""
    supervised = SupervisedQuantizer(1, 8, random_state=0).fit(X, Y)
    plain = nq.ProductQuantizer(2, 8, random_state=0).fit(X)
    assert supervised.code_size == plain.code_size == 2
    assert adc_map(supervised) > adc_map(plain) + 0.15


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no data at {DATA} (NPQUANT_DATA)")
def test_it_beats_product_quantization_in_map_on_mnist():
    """4,000 training images, the database, and 500 test images; 4 bytes. (bench figures take all of them.)"""
    data = nq.datasets.load_labelled(DATA / "mnist")
    base, labels, queries, query_labels = (np.asarray(part, np.float32) for part in (
        data.X_train[:4000], data.y_train[:4000], data.X_test[:500], data.y_test[:500]))
    base, queries = base.reshape(4000, -1), queries.reshape(500, -1)
    supervised = SupervisedQuantizer(3, 8, n_iter=3, random_state=0).fit(base, labels)
    plain = nq.ProductQuantizer(4, 8, random_state=0).fit(base)
    assert supervised.code_size == plain.code_size == 4
    assert adc_map(supervised, base, labels, queries, query_labels) > 0.15 + adc_map(
        plain, base, labels, queries, query_labels)


def test_the_classifier_reads_labels_off_the_codes_of_new_vectors():
    codec = SupervisedQuantizer(3, 6, random_state=0).fit(X, Y)
    said = (codec.quantizer_.decode(codec.encode(Q)) @ codec.classifier_).argmax(axis=1)
    assert (said == YQ).mean() > 0.85


def test_other_labels_make_other_codes():
    assert adc_map(make().fit(X, Y)) > 0.1 + adc_map(make().fit(X, np.random.default_rng(0).permutation(Y)))


# ------------------------------------------------------------------------------------- what is minimised


@core
@pytest.mark.parametrize("params", [{}, {"gamma": 0.01}, {"lam": 1e-4, "d_out": 3}, {"m": 1, "gamma": 30.0}], ids=str)
def test_the_objective_never_increases(params):
    history = np.array(make(**{"n_iter": 8, **params}).fit(SMALL, LABELS).objective_history_)
    assert len(history) == 9
    assert (np.diff(history) <= 1e-5 * history[:-1]).all()
    assert history[-1] < 0.95 * history[0]


def oracle(x, y, v, projection, classifier, gamma, lam, rho):
    """The objective, term by term in float64."""
    x, y, v = (np.asarray(part, np.float64) for part in (x, y, v))
    total = 0.0
    for i in range(len(x)):
        total += ((y[i] - classifier.T @ v[i]) ** 2).sum() / len(x)
        total += gamma * ((projection.T @ x[i] - v[i]) ** 2).sum() / len(x)
    return total + lam * (classifier**2).sum() + gamma * rho * (projection**2).sum()


@core
def test_projection_and_classifier_are_the_minimum_for_given_codes():
    rng = np.random.default_rng(3)
    x, v = rng.standard_normal((60, 7)).astype(np.float32), rng.standard_normal((60, 3)).astype(np.float32)
    y = np.eye(4, dtype=np.float32)[rng.integers(4, size=60)]
    problem = _Problem(x, y, 0.3, 0.02)
    state = problem.solved(v)
    least = oracle(x, y, v, state.projection, state.classifier, 0.3, 0.02, problem.ridge)
    assert state.objective == pytest.approx(least, rel=1e-5)
    for _ in range(30):  # of a quadratic, the difference of both sides is the slope, and the mean is above
        step = 0.1 * rng.standard_normal((7, 3)), 0.1 * rng.standard_normal((3, 4))
        up, down = (oracle(x, y, v, state.projection + side * step[0], state.classifier + side * step[1], 0.3, 0.02,
                           problem.ridge) for side in (1, -1))
        assert min(up, down) > least
        assert abs(up - down) < 2e-6


@core
def test_codebooks_and_codes_lower_the_objective_of_the_same_projection_and_classifier():
    from npquant.quantizers.additive import perturbations
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[(x[:, 0] > 0) + (x[:, 1] > 0.5).astype(int)]
    problem = _Problem(x, y, 0.5, 0.01)
    codebooks = rng.standard_normal((2, 4, 5)).astype(np.float32)
    numbers = rng.integers(4, size=(200, 2)).astype(np.uint8)
    before = codebooks[0][numbers[:, 0]] + codebooks[1][numbers[:, 1]]
    state = problem.solved(before)
    fixed = state.projection, state.classifier, 0.5, 0.01, problem.ridge
    better, codes = problem.coded(state, codebooks, numbers, perturbations(2, 4, 3, 2, 0), 1)
    refitted = better[0][numbers[:, 0]] + better[1][numbers[:, 1]]
    after = better[0][codes[:, 0]] + better[1][codes[:, 1]]
    first, second, third = (oracle(x, y, v, *fixed) for v in (before, refitted, after))
    assert third < second < first
    used = np.concatenate([numbers[:, :1] == np.arange(4), numbers[:, 1:] == np.arange(4)], axis=1).astype(float)
    weight = state.classifier @ state.classifier.T + 0.5 * np.eye(5)
    targets = np.linalg.solve(weight, (y @ state.classifier.T + 0.5 * x @ state.projection).T).T
    least = oracle(x, y, used @ np.linalg.lstsq(used, targets, rcond=None)[0], *fixed)
    assert second == pytest.approx(least, rel=1e-5)
    # All 16 sums of codewords: what search found is the best for the weighted error of nearly every vector.
    every = (better[0][:, None] + better[1][None]).reshape(16, 5).astype(np.float64)
    costs = np.array([[((label - state.classifier.T @ v) ** 2).sum() + 0.5 * ((z - v) ** 2).sum() for v in every]
                      for label, z in zip(y, x @ state.projection)])
    mine = costs[np.arange(200), 4 * codes[:, 0].astype(int) + codes[:, 1]]
    assert np.mean(mine <= costs.min(axis=1) * (1 + 1e-4) + 1e-6) > 0.95


@core
def test_new_vectors_are_coded_by_the_nearest_sum():
    codec = make(2, 3, d_out=4).fit(SMALL, LABELS)
    z, books = codec.transform_.transform(Q[:50]), codec.codebooks_
    every = (books[0][:, None] + books[1][None]).reshape(64, 4)
    nearest = ((z[:, None] - every) ** 2).sum(axis=2)
    mine = ((z - codec.quantizer_.decode(codec.encode(Q[:50]))) ** 2).sum(axis=1)
    assert np.mean(mine <= nearest.min(axis=1) * (1 + 1e-4) + 1e-9) > 0.95


@core
def test_decoded_vectors_project_to_their_codewords():
    codec = make(d_out=6).fit(SMALL, LABELS)
    codes = codec.encode(Q)
    inner = codec.quantizer_.decode(codes)
    assert codec.decode(codes).shape == Q.shape
    np.testing.assert_allclose(codec.transform_.transform(codec.decode(codes)), inner, atol=1e-3 * np.abs(inner).max())
    directions = codec.transform_.components_
    np.testing.assert_allclose(directions @ directions.T, np.eye(6), atol=1e-5)
    assert (np.diff(codec.transform_.scale_) <= 0).all()


# ------------------------------------------------------------------------------------- labels and vectors


@core
@pytest.mark.parametrize("labels", [[f"digit {y}" for y in LABELS], LABELS.astype(float), LABELS[:, None] - 5,
                                    np.eye(10, dtype=int)[LABELS], np.eye(10, dtype=bool)[LABELS]],
                         ids=["str", "float", "column", "indicator", "bool"])
def test_labels_of_any_kind_are_the_same_supervision(labels):
    same(make().fit(SMALL, labels).encode(Q), make().fit(SMALL, LABELS).encode(Q), "codes")


def test_rows_may_have_several_labels():
    several = np.stack([LABELS % 2 == 0, LABELS % 2 == 1, LABELS < 5], axis=1)
    asked = np.stack([YQ % 2 == 0, YQ % 2 == 1, YQ < 5], axis=1)
    assert adc_map(make().fit(SMALL, several), SMALL, several, Q, asked) > 0.05 + adc_map(
        make().fit(SMALL, LABELS), SMALL, several, Q, asked)


@core
def test_a_label_that_all_rows_have_says_nothing():
    indicators = np.eye(10)[LABELS]
    less, more = (make(n_iter=0).fit(SMALL, y) for y in (indicators, np.column_stack([indicators, np.ones(400)])))
    assert more.objective_history_ == pytest.approx(less.objective_history_, rel=1e-3)
    assert np.abs(more.classifier_[:, -1]).max() < 1e-4


@core
def test_a_drawn_sample_keeps_vectors_and_labels_together():
    """Vectors say their labels themselves: a shift of one against the other would leave nothing to learn."""
    drawn = make(max_points=300).fit(X, Y)
    assert adc_map(drawn) > 0.75
    assert drawn.encode(Q).tobytes() != make().fit(X, Y).encode(Q).tobytes()
    same(make(max_points=len(X)).fit(X, Y).encode(Q), make().fit(X, Y).encode(Q), "codes of all")


@core
@pytest.mark.parametrize(("y", "params", "message"), [
    (None, {}, "requires y to be passed, but the target y is None"),
    (LABELS[:-1], {}, "y has 399 rows and X has 400"),
    (np.zeros(400), {}, "same of every row"),
    (np.ones((400, 3)), {}, "same of every row"),
    (np.full((400, 2), 0.5), {}, "zeros and ones"),
    (np.eye(10)[LABELS][:-1], {}, "y has 399 rows"),
    (np.where(np.arange(400) == 3, np.nan, LABELS), {}, "y contains NaN"),
    (np.zeros((400, 2, 2)), {}, "one label a row"),
    (LABELS, {"m": 0}, "m is 0"),
    (LABELS, {"nbits": 9}, "nbits is 9"),
    (LABELS, {"d_out": 65}, "d_out is 65"),
    (LABELS, {"d_out": 0}, "d_out is 0"),
    (LABELS, {"gamma": 0}, "gamma is 0"),
    (LABELS, {"lam": 0}, "lam is 0"),
    (LABELS, {"lam": np.nan}, "lam must be a finite number"),
    (LABELS, {"n_iter": -1}, "n_iter is -1"),
    (LABELS, {"max_points": 0}, "max_points is 0"),
    (LABELS, {"threads": 0}, "threads is 0"),
], ids=lambda value: str(value)[:30])
def test_bad_input_is_told(y, params, message):
    codec = make(**params)
    with pytest.raises(InvalidInputError, match=message):
        codec.fit(SMALL, y)
    with pytest.raises(NotFittedError):
        codec.encode(SMALL)
    assert not hasattr(codec, "codebooks_")


@core
def test_bad_vectors_are_told():
    with pytest.raises(InvalidInputError, match="iterable of blocks, and y goes with the rows of one array"):
        make().fit(iter([SMALL]), LABELS)
    bad = SMALL.copy()
    bad[3, 5] = np.inf
    with pytest.raises(InvalidInputError, match=r"row 3, column 5"):
        make().fit(bad, LABELS)
    with pytest.raises(InvalidInputError, match="Expected 2D"):
        make().fit(SMALL[0], LABELS[:1])
    with pytest.warns(NpquantWarning, match="100 training vectors for codebooks of 256") as said:
        make(nbits=8).fit(SMALL[:100], LABELS[:100])
    assert len(said) == 1


@core
@pytest.mark.filterwarnings("ignore::npquant.NpquantWarning")
@pytest.mark.parametrize("x", [np.ones((40, 5)), SMALL[:40] * np.float32(1e15), SMALL[:40] * np.float32(1e-30),
                               SMALL[:40] + np.float32(1e5), SMALL[:3], np.arange(40.0)[:, None]],
                         ids=["constant", "large", "tiny", "offset", "three rows", "one dimension"])
def test_odd_vectors_have_codes(x):
    codec = make().fit(x, np.arange(len(x)) % 3)
    codes = codec.encode(x)
    assert np.isfinite(codec.decode(codes)).all()
    assert np.isfinite(codec.scorer(x).scores(codes)).all()
    assert np.isfinite(codec.objective_history_).all()


def test_scale_does_not_matter():
    """By a power of two: not a bit of the codes changes."""
    same(make().fit(SMALL * 64, LABELS).encode(Q * 64), make().fit(SMALL, LABELS).encode(Q), "codes")


@core
def test_more_labels_than_dimensions_and_more_dimensions_than_labels():
    many = make(d_out=4).fit(SMALL, LABELS)
    assert many.classifier_.shape == (4, 10)
    few = make(d_out=20).fit(SMALL, LABELS % 2)
    assert few.classifier_.shape == (20, 2)
    assert few.codebooks_.shape == (2, 16, 20)


# ------------------------------------------------------------------------------------- laws


class Labelled(SupervisedQuantizer):
    """One that makes labels from the vectors by itself, so that it can be asked to keep the laws of codecs."""

    def fit(self, X, y=None):
        rows = training_rows(X, None, 0)
        super().fit(rows, (rows[:, 0] > 0) + 2 * (rows[:, 1] > 0.5))
        self._remember_features(X, rows.shape[1])
        return self


@pytest.fixture(scope="module")
def data():
    x = strategies.make_vectors("normal", 300, 8, seed=1)
    x[100:150] = x[:50]  # duplicates
    x[150:155] = 0
    x.flags.writeable = False
    return x


@pytest.fixture
def labelled_can_be_saved(monkeypatch):
    monkeypatch.setattr(persist, "KINDS", {**persist.KINDS, "Labelled": f"{__name__}:Labelled"})


@core
@pytest.mark.usefixtures("labelled_can_be_saved")
@pytest.mark.parametrize("law", laws.CODEC_LAWS, ids=lambda law: law.__name__)
def test_laws_of_codecs(law, data):
    if "compiled" in law.__name__ and not laws.HAVE_NUMBA:
        pytest.skip("numba is not installed")
    law(Labelled(2, 3, d_out=5, n_iter=2, random_state=3).fit(data), data)


@core
def test_an_index_and_a_file_keep_every_bit(tmp_path):
    codec = make().fit(SMALL, LABELS)
    index = nq.FlatIndex(codec)
    index.add(X)
    found = index.search(Q, 10)
    nq.save(index, tmp_path / "index.npq")
    again = nq.load(tmp_path / "index.npq")
    same(tuple(again.search(Q, 10)), tuple(found), "results after a file")
    nq.save(codec, tmp_path / "codec.npq")
    loaded = nq.load(tmp_path / "codec.npq")
    same(loaded.classifier_, codec.classifier_, "classifier_")
    assert loaded.objective_history_ == codec.objective_history_
    nq.save(make(), tmp_path / "unfitted.npq")
    assert repr(nq.load(tmp_path / "unfitted.npq")) == repr(make())


def spoil_the_transform(codec):
    codec.transform_ = nq.PCA(8).fit(SMALL)


def spoil_the_codec(codec):
    codec.quantizer_ = nq.ProductQuantizer(2, 4).fit(np.zeros((20, 8)))


def spoil_the_classifier(codec):
    codec.classifier_ = codec.classifier_[:-1]


@core
@pytest.mark.parametrize("spoil", [spoil_the_transform, spoil_the_codec, spoil_the_classifier])
@pytest.mark.filterwarnings("ignore::npquant.NpquantWarning")
def test_a_file_whose_parts_do_not_fit_together_is_refused(spoil, tmp_path):
    codec = make(d_out=8).fit(SMALL, LABELS)
    assert isinstance(codec.transform_, SupervisedProjection)
    spoil(codec)
    nq.save(codec, tmp_path / "bad.npq")
    with pytest.raises(FormatError, match=r"not made of|classifier_"):
        nq.load(tmp_path / "bad.npq")
