"""What is special to product quantization; what holds for every codec is in laws.py."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import same

from npquant.errors import InvalidInputError, NotFittedError, NpquantWarning
from npquant.quantizers.product import ProductQuantizer

core = pytest.mark.core
some = settings(max_examples=40)


def fit(x, m=2, nbits=3, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        return ProductQuantizer(m, nbits, **{"random_state": 0, **params}).fit(x)


@pytest.fixture
def x():
    return strategies.make_vectors("normal", 200, 6)


@core
@some
@given(strategies.vectors(d=(1, 3), multiple_of=4), st.sampled_from([1, 2, 4]), st.integers(1, 8),
       strategies.seeds)
def test_codes_of_anything(x, m, nbits, seed):
    pq = fit(x, m, nbits, n_iter=3, random_state=seed)
    codes = pq.encode(x)
    assert codes.shape == (len(x), m)
    assert pq.codebooks_.shape == (m, 2**nbits, x.shape[1] // m)
    assert codes.max() < 2**nbits
    same(pq.decode(codes), reference.pq_decode(pq.codebooks_, codes), "decode and the oracle")
    if len(np.unique(x + 0.0, axis=0)) <= 2**nbits:
        assert (pq.decode(codes) == x).all()  # a codeword for each


@core
def test_blocks_are_coded_by_themselves(x):
    pq = fit(x, 3, 4)
    other = x.copy()
    other[:, 2:] = other[::-1, 2:] * 3
    again = fit(other, 3, 4)
    same(again.codebooks_[0], pq.codebooks_[0], "the codebook of a block that did not change")
    assert again.codebooks_[1].tobytes() != pq.codebooks_[1].tobytes()
    same(pq.encode(other)[:, 0].copy(), pq.encode(x)[:, 0].copy(), "the codes of a block that did not change")
    other = x.copy()
    other[:, :2] = 1  # other random numbers are drawn for it
    same(fit(other, 3, 4).codebooks_[1:], pq.codebooks_[1:], "the codebooks after a block that changed")


@core
def test_tables_are_brute_force(x):
    pq = fit(x, 3, 4)
    for metric in ("l2", "ip", "cosine"):
        q = reference.normalized(x[:9]) if metric == "cosine" else x[:9]
        wanted = reference.tables(q, pq.codebooks_, product=metric != "l2")
        scorer = pq.scorer(x[:9], metric)
        same(scorer.tables, wanted if metric == "l2" else -wanted, f"tables of {metric}")
        same(scorer.scores(pq.encode(x)), reference.adc(scorer.tables, pq.encode(x)), f"scores of {metric}")


@core
@pytest.mark.parametrize("k", [1, 3, 30, 64, 100])
def test_nearby_is_brute_force(x, k):
    x[:5] = x[5:10] = 0  # ties
    pq = fit(x, 2, 6)
    pq.codebooks_ = np.concatenate([pq.codebooks_[:, :32] * scale for scale in (1, -1)], axis=1).astype(np.float32)
    pq.codebooks_ = np.where(np.arange(64)[:, None] % 3, pq.codebooks_, np.abs(pq.codebooks_[:, :1]))  # equal ones
    near = pq.nearby(x, k)
    assert near.shape == (200, 2, min(k, 64), 3)
    assert near.dtype == np.float32
    for i, row in enumerate(reference.tables(x, pq.codebooks_)):
        for m, scores in enumerate(row):
            order = sorted(range(64), key=lambda j, scores=scores: (scores[j], j))[:k]
            same(near[i, m], pq.codebooks_[m][order], f"row {i}, block {m}")
    same(np.ascontiguousarray(near[:, :, 0]).reshape(200, 6), pq.nearest(x), "the first of them and nearest")


@core
@settings(max_examples=25)
@given(strategies.vectors(rows=(4, 40), d=(1, 2), multiple_of=2), strategies.seeds, st.integers(1, 3))
def test_refining_never_raises_the_error(x, seed, n_iter):
    pq = fit(x[:len(x) // 2], 2, 2, n_iter=1, random_state=seed)
    before = pq.score(x)
    assert pq.refine(x, n_iter) is pq
    assert -pq.score(x) <= -before * (1 + 1e-5)


@core
def test_refining_helps(x):
    pq = fit(x, 2, 4, n_iter=1)
    before = pq.codebooks_.copy()
    first = -pq.score(x)
    assert -pq.refine(x, 10).score(x) < 0.99 * first
    assert pq.codebooks_.shape == before.shape
    moved = pq.codebooks_.copy()
    pq.refine(x + 5, 1)
    assert np.abs(pq.codebooks_ - moved).max() > 1


@core
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_average_is_the_hand_written_loop(x, decay):
    pq = fit(x, 2, 3)
    pq.codebooks_ = pq.codebooks_ + np.float32(0.5)
    start = pq.codebooks_.copy()
    batches = [x[:50], x[50:60] + 1, x[:1], x[60:]]
    for batch in batches:
        assert pq.average(batch, decay) is pq
    for m in range(2):
        wanted = reference.moving_average(start[m], [batch[:, 3 * m:3 * m + 3] for batch in batches], decay)
        np.testing.assert_allclose(pq.codebooks_[m], wanted, rtol=1e-6, atol=1e-6)
    if decay == 1.0:
        np.testing.assert_allclose(pq.codebooks_, start, rtol=1e-6)
    fresh = fit(x, 2, 3)
    fresh.codebooks_ = start
    fresh.average(x, decay)
    for m in range(2):  # a fit or a refinement begins the averages anew
        wanted = reference.moving_average(start[m], [x[:, 3 * m:3 * m + 3]], decay)
        np.testing.assert_allclose(fresh.codebooks_[m], wanted, rtol=1e-6, atol=1e-6)


@core
def test_average_by_hand():
    pq = fit(np.array([[0.0], [10.0]]), 1, 1)
    order = np.argsort(pq.codebooks_[0, :, 0])
    pq.average([[1.0], [2.0], [3.0]], 0.5)  # (0.5 · 1 · 0 + 0.5 · 6) / (0.5 · 1 + 0.5 · 3); nobody came to 10
    assert pq.codebooks_[0, order, 0].tolist() == [1.5, 10.0]
    pq.average([[9.0]], 0.5)  # weights 0.5 and then 0.25 + 0.5
    np.testing.assert_allclose(pq.codebooks_[0, order, 0], [1.5, (0.25 * 10 + 0.5 * 9) / 0.75], rtol=1e-6)
    same(pq.encode([[1.5], [9.4]])[:, 0].copy(), order.astype(np.uint8), "codes by the codebooks that moved")


@core
def test_average_moves_towards_the_data(x):
    pq = fit(x, 2, 3)
    target = x + np.float32(3)
    errors = [-pq.score(target)]
    for _ in range(6):
        pq.average(target, 0.7)
        errors.append(-pq.score(target))
    assert all(later < before for before, later in pairwise(errors[:4]))
    assert errors[-1] < 0.2 * errors[0]


@core
def test_average_checks_its_input(x):
    pq = fit(x)
    before = pq.codebooks_.copy()
    for batch, decay in ((x[:0], 0.5), (x[0], 0.5), (x[:, :4], 0.5), (x * np.nan, 0.5), (x, -0.1), (x, 1.1),
                         (x, np.nan), (x, "0.5"), (x, None)):
        with pytest.raises(InvalidInputError):
            pq.average(batch, decay)
    same(pq.codebooks_, before, "the codebooks after errors")
    with pytest.raises(NotFittedError, match="ProductQuantizer"):
        ProductQuantizer().average(x, 0.5)


@core
@pytest.mark.parametrize(("d", "m", "divisors"), [
    (6, 4, "1, 2, 3, 6"), (7, 2, "1, 7"), (12, 24, "1, 2, 3, 4, 6, 12"), (1, 2, r"\[1\]")])
def test_a_dimension_that_cannot_be_cut(d, m, divisors):
    with pytest.raises(InvalidInputError, match=rf"dimension {d} .* not divisible by m = {m}.*{divisors}"):
        ProductQuantizer(m, 1).fit(np.zeros((5, d)))


@core
@pytest.mark.parametrize("params", [
    {"m": 0}, {"m": -2}, {"m": 2.0}, {"m": "2"}, {"m": None}, {"m": True}, {"nbits": 0}, {"nbits": 9},
    {"nbits": 8.0}, {"nbits": None}, {"n_iter": -1}, {"n_iter": 1.5}, {"init": "pca"}, {"init": None},
    {"random_state": -3}, {"random_state": "x"}, {"threads": 0}, {"threads": 2.0},
], ids=str)
def test_a_bad_parameter_is_named(params, x):
    [name] = params
    pq = ProductQuantizer(**{"m": 2, "nbits": 2, **params})
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        pq.fit(x)
    with pytest.raises(NotFittedError):
        pq.encode(x)


@core
def test_codes_out_of_range(x):
    pq = fit(x, 2, 3)
    codes = pq.encode(x)
    codes[7, 1] = 8
    for call in (pq.decode, pq.check_codes, pq.inverse_transform):
        with pytest.raises(InvalidInputError, match=r"8 \(row 7, column 1\).*0 … 7"):
            call(codes)
    assert fit(x, 1, 8).decode(np.array([[255]], np.uint8)).shape == (1, 6)


@core
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, bool, np.float32, object])
def test_codes_are_never_cast(dtype, x):
    pq = fit(x)
    with pytest.raises(InvalidInputError, match=r"uint8.*dtype"):
        pq.decode(pq.encode(x).astype(dtype))


@core
def test_fewer_vectors_than_codewords(x):
    with pytest.warns(NpquantWarning, match=r"9 training vectors for codebooks of 16 codewords") as caught:
        pq = ProductQuantizer(2, 4, random_state=0).fit(x[:9])
    assert len(caught) == 1  # not once a codebook
    assert pq.codebooks_.shape == (2, 16, 3)
    same(pq.decode(pq.encode(x[:9])), x[:9], "vectors that have a codeword each")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProductQuantizer(2, 3, random_state=0).fit(x[:9])


@core
def test_not_fitted(x):
    pq = ProductQuantizer(2, 2)
    with pytest.raises(NotFittedError, match=r"ProductQuantizer.*fit"):
        _ = pq.code_size
    for call in (pq.encode, pq.nearest, pq.scorer):
        with pytest.raises(NotFittedError):
            call(x)


@core
def test_more_bits_are_better(x):
    errors = [-fit(x, 2, nbits).score(x) for nbits in range(1, 8)]
    assert errors == sorted(errors, reverse=True)
    assert -fit(x, 6, 4).score(x) < -fit(x, 1, 4).score(x)
    np.testing.assert_allclose(errors[2], reference.distortion(x, fit(x, 2, 3).nearest(x)), rtol=1e-6)


@core
def test_repr_and_params():
    assert repr(ProductQuantizer(4, 6, random_state=1)) == "ProductQuantizer(m=4, nbits=6, random_state=1)"
    assert ProductQuantizer().set_params(m=3).get_params()["m"] == 3
    with pytest.raises(InvalidInputError, match="'M'"):
        ProductQuantizer().set_params(M=3)
