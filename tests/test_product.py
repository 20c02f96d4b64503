"""What is special to product quantization; what holds for every codec is in laws.py."""

import copy
import logging
import tracemalloc
import warnings
from itertools import pairwise

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import in_blocks, packed, same

from npquant import _rows
from npquant.errors import InvalidInputError, NotFittedError, NpquantWarning
from npquant.quantizers.product import ProductQuantizer

core = pytest.mark.core
some = settings(max_examples=40)


def fit(x, m=2, nbits=3, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        return ProductQuantizer(m, nbits, **{"random_state": 0, **params}).fit(x)


def numbers_of(pq, x):
    """(n, m) numbers of the nearest codewords, by the oracle."""
    return np.stack([reference.nearest(block, words)[0] for block, words in zip(
        np.split(x, len(pq.codebooks_), axis=1), pq.codebooks_)], axis=1)


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
    assert codes.shape == (len(x), (m + 1) // 2 if nbits == 4 else m)
    assert pq.codebooks_.shape == (m, 2**nbits, x.shape[1] // m)
    numbers = numbers_of(pq, x)
    assert numbers.max() < 2**nbits
    same(codes, packed(numbers, 2**nbits), "codes and the oracle")
    same(pq.decode(codes), reference.pq_decode(pq.codebooks_, numbers), "decode and the oracle")
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
    same(pq.encode(other)[:, 0] & 15, pq.encode(x)[:, 0] & 15, "the codes of a block that did not change")
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
        same(scorer.scores(pq.encode(x)), reference.adc(scorer.tables, numbers_of(pq, x)), f"scores of {metric}")


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
    {"max_points": 0}, {"max_points": 1.5}, {"max_points": "all"},
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
@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_four_bits_share_a_byte(m, x):
    pq = fit(x, m, 4)
    codes, numbers = pq.encode(x), numbers_of(pq, x)
    assert pq.code_size == codes.shape[1] == (m + 1) // 2
    for j in range(m):
        half = codes[:, j // 2] >> 4 if j % 2 else codes[:, j // 2] & 15
        assert half.tolist() == numbers[:, j].tolist()
    same(pq.decode(codes), reference.pq_decode(pq.codebooks_, numbers), "decode and the oracle")
    same(pq.encode(pq.decode(codes)), codes, "codes of the decoded")
    everything = np.repeat(np.arange(256, dtype=np.uint8)[:, None], pq.code_size, axis=1)
    if m % 2 == 0:
        same(pq.encode(pq.decode(everything)), everything, "codes of every byte")
        return
    assert (codes[:, -1] < 16).all()
    same(pq.encode(pq.decode(everything[:16])), everything[:16], "codes of every low half")
    everything[16:, :-1] = 0
    words = "0 … 15" if m == 1 else f"high half.*m = {m} is odd"
    with pytest.raises(InvalidInputError, match=rf"16 \(row 16, column {m // 2}\).*{words}"):
        pq.decode(everything)


@core
@pytest.mark.parametrize(("m", "nbits"), [(2, 3), (2, 4), (3, 4)])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_symmetric_scores_are_a_table_of_codewords(m, nbits, metric, x):
    pq = fit(x, m, nbits)
    numbers, codes = numbers_of(pq, x), pq.encode(x)
    between = np.stack([reference.tables(words, words[None], metric == "ip")[:, 0] for words in pq.codebooks_])
    wanted = np.zeros((9, len(x)), np.float32)
    for j in range(m):
        row = between[j][numbers[:9, j]][:, numbers[:, j]]
        wanted = (row if metric == "l2" else -row) if j == 0 else wanted + (row if metric == "l2" else -row)
    scores = pq.symmetric_scorer(codes[:9], metric).scores(codes)
    same(scores, wanted, "scores of codes and the table of codewords")
    same(pq.symmetric_scorer(codes, metric).scores(codes[:9]), np.ascontiguousarray(wanted.T), "the other way round")
    assert metric == "ip" or not scores[np.arange(9), np.arange(9)].any()


# ------------------------------------------------------------------------------------- more than fits


@core
@pytest.mark.parametrize("limit", [16, 50, 199])
def test_points_are_drawn_by_the_seed_alone(limit, x):
    drawn = fit(x, 2, 4, max_points=limit)
    assert fit(x, 2, 4).codebooks_.tobytes() != drawn.codebooks_.tobytes()
    for rows in (1, 3, 64, 200):
        same(fit(in_blocks(x, rows), 2, 4, max_points=limit).codebooks_, drawn.codebooks_, f"blocks of {rows}")
    same(fit(x.tolist(), 2, 4, max_points=limit).codebooks_, drawn.codebooks_, "a list of rows")
    same(fit([x[:9], x[9:].astype(float)], 2, 4, max_points=limit).codebooks_, drawn.codebooks_, "a list of blocks")
    same(fit(x, 2, 4, max_points=limit, random_state=np.random.default_rng(0)).codebooks_, drawn.codebooks_,
         "a Generator")
    same(fit(x, 2, 4, max_points=limit, random_state=1).codebooks_, fit(in_blocks(x, 7), 2, 4, max_points=limit,
                                                                        random_state=1).codebooks_, "another seed")
    one, other = (ProductQuantizer(6, 8, max_points=limit, n_iter=0, init="random", random_state=seed)
                  for seed in (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        one, other = (np.unique(pq.fit(x).codebooks_[0, :, 0]) for pq in (one, other))
    assert len(one) == len(other) == limit  # as many rows, all of them different ones
    assert limit == 199 or one.tolist() != other.tolist()
    assert np.isin(one, x[:, 0]).all()


@core
def test_the_sample_has_a_stream_of_its_own():
    """Else what is drawn and how k-means starts would be one and the same draw."""
    others = [np.random.default_rng(4), *np.random.default_rng(4).spawn(9)]
    mine = _rows._stream(4).random(5).tolist()
    assert mine not in [rng.random(5).tolist() for rng in others]
    rng = np.random.default_rng(4)
    assert mine == _rows._stream(rng).random(5).tolist()
    assert rng.random() == np.random.default_rng(4).random()  # and it takes nothing from the one given
    assert mine != _rows._stream(rng.spawn(1)[0]).random(5).tolist()


@core
def test_every_row_may_be_drawn():
    rows = np.arange(60.0)[:, None]
    counts = np.zeros(60, int)
    for seed in range(400):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)
            pq = ProductQuantizer(1, 4, max_points=15, n_iter=0, init="random", random_state=seed).fit(rows)
        counts[np.unique(pq.codebooks_).astype(int)] += 1
    assert counts.sum() == 400 * 15
    assert ((counts - 100) ** 2 / 75).sum() < 120  # chi squared, 59 degrees of freedom, one in 1e5
    assert counts[:20].sum() < 2300


@core
def test_a_sample_is_said_aloud(x, caplog):
    with caplog.at_level(logging.INFO, "npquant"):
        fit(x, max_points=200)
        assert not [said for said in caplog.messages if "training on" in said]
        fit(x, max_points=150)
        fit(in_blocks(x, 70), max_points=150).refine(x, 1)
    assert [said for said in caplog.messages if "training on" in said] == [
        "training on 150 of 200 vectors, drawn by the seed (max_points=150)"] * 3


@core
def test_blocks_that_cannot_be_used(x):
    pq = fit(x)
    for bad, words in (([x[:5], x[:5, :4]], "block 1 of X has 4 features.*block before"), ([x[:5, 0]], "block 0 of X"),
                       ([x[:5], ["a"] * 6], "block 1 of X"), ([x[:5], [[np.nan] * 6]], "X contains NaN"),
                       ([], "gave no rows"), ([x[:0]], "gave no rows|0 sample"), ([3], "block 0 of X")):
        with pytest.raises(InvalidInputError, match=words):
            fit(iter(bad))
    for bad, words in (([x[:5], x[:5, :4]], "block 1 of X has 4 features"), ([x, x[:3] * np.inf], "block 1 of X"),
                       ([x, None], "block 1 of X")):
        with pytest.raises(InvalidInputError, match=words):
            pq.encode(iter(bad))
    many = np.resize(x, (9000, 6))
    many[5000, 1] = np.nan
    with pytest.raises(InvalidInputError, match=r"X\[4096:8192\] contains NaN \(row 904, column 1\)"):
        pq.encode(many)
    for bad, words in ((np.zeros((9000, 5)), "^X has 5 features"), (np.zeros((9000, 6), complex), "Complex")):
        with pytest.raises(InvalidInputError, match=words):
            pq.encode(bad)
    for form in (many * np.nan, in_blocks(many * np.nan, 500)):
        with pytest.raises(InvalidInputError, match="the sample of X contains NaN"):
            fit(form, max_points=50)
    same(pq.encode(iter([])), np.empty((0, 2), np.uint8), "codes of no block")
    codes = pq.encode_blocks(iter([x[:5], x[:5, :4]]))
    same(next(codes), pq.encode(x[:5]), "codes of the block before the bad one")


@core
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64, bool])
def test_other_numbers_are_converted_by_blocks(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype is bool else 100, (9001, 6)).astype(dtype)
    pq, wide = fit(x, 2, 4), x.astype(np.float32)
    same(pq.codebooks_, fit(wide, 2, 4).codebooks_, "codebooks")
    same(pq.encode(x), pq.encode(wide), "codes")
    same(np.concatenate(list(pq.encode_blocks(iter([x[:4097], x[4097:]])))), pq.encode(wide), "codes by blocks")
    same(pq.encode(x), np.concatenate([pq.encode(wide[i:i + 999]) for i in range(0, 9001, 999)]), "codes in parts")


class Reader:
    """What can only be read by slices of a bounded length, and counts how much of it was."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.most, self.__array__ = x, x.shape, x.dtype, 0, None

    def __getitem__(self, rows):
        part = self.x[rows]
        self.most = max(self.most, len(part))
        return part


def test_memory_does_not_grow_with_the_vectors(tmp_path):
    n, d = 200_000, 64
    mapped = np.memmap(tmp_path / "x", np.float16, "w+", shape=(n, d))
    rng = np.random.default_rng(0)
    for begin in range(0, n, 10_000):
        mapped[begin:begin + 10_000] = rng.standard_normal((10_000, d))
    pq = ProductQuantizer(8, 4, max_points=2000, n_iter=2, random_state=0, threads=2).fit(mapped[:2000])
    pq.encode(mapped[:20_000])  # whatever is compiled is compiled

    def peak(work):
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    whole = 4 * n * d  # 51 MB as float32
    assert peak(lambda: pq.encode(mapped)) < whole / 5
    assert peak(lambda: pq.encode(in_blocks(mapped, 5000))) < whole / 5
    assert peak(lambda: sum(map(len, pq.encode_blocks(in_blocks(mapped, 5000))))) < whole / 10
    assert peak(lambda: pq.fit(mapped)) < whole / 5
    assert peak(lambda: pq.fit(in_blocks(mapped, 5000))) < whole / 5
    assert peak(lambda: pq.set_params(max_points=None).fit(mapped[:, :8])) > 4 * n * 8  # the measure measures
    reader = Reader(np.asarray(mapped))
    same(fit(mapped, 8, 4, max_points=2000).encode(reader), fit(reader, 8, 4, max_points=2000).encode(mapped),
         "what is read by slices")
    assert reader.most <= 4096


# ------------------------------------------------------------------------------------- other libraries


def transplanted(nbits, m=8):
    x = strategies.make_vectors("normal", 3000, 32, seed=5)
    pq = fit(x[:1500], m, nbits, n_iter=3)
    return pq, x, pq.codebooks_


def equal_but_for_ties(ours, theirs, x, pq):
    """Raise unless codes are equal, or the vectors that they stand for are equally near."""
    assert (ours == theirs).all(axis=1).mean() > 0.999
    errors = [np.square(x - pq.decode(codes), dtype=np.float64).sum(axis=1) for codes in (ours, theirs)]
    np.testing.assert_allclose(*errors, rtol=1e-5)


@pytest.mark.parametrize(("m", "nbits"), [(8, 8), (8, 4), (4, 4), (1, 4), (4, 8)])
def test_faiss_with_our_codebooks(m, nbits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SWIG
        faiss = pytest.importorskip("faiss")
    pq, x, codebooks = transplanted(nbits, m)
    index = faiss.IndexPQ(32, m, nbits)
    faiss.copy_array_to_vector(codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    codes = pq.encode(x)
    assert index.pq.code_size == pq.code_size
    equal_but_for_ties(codes, index.pq.compute_codes(x), x, pq)  # byte for byte, halves of bytes too
    np.testing.assert_array_equal(index.pq.decode(codes), pq.decode(codes))
    index.add_sa_codes(codes)
    distances, ids = index.search(x[:50], 20)
    ours, mine = pq.scorer(x[:50]).topk(codes, np.arange(len(x)), 20)
    np.testing.assert_allclose(ours, distances, rtol=1e-4, atol=1e-4)
    assert m == 1 or (mine == ids).mean() > 0.9  # in the order of near-ties each is free


@pytest.mark.parametrize("nbits", [4, 8])
def test_nanopq_with_our_codebooks(nbits):
    nanopq = pytest.importorskip("nanopq")
    pq, x, codebooks = transplanted(nbits)
    other = nanopq.PQ(8, 2**nbits, verbose=False)
    other.codewords, other.Ds = codebooks, 4
    numbers = other.encode(x)
    codes = pq.encode(x)
    equal_but_for_ties(codes, packed(numbers, 2**nbits), x, pq)
    np.testing.assert_array_equal(other.decode(numbers), pq.decode(packed(numbers, 2**nbits)))
    theirs = np.stack([other.dtable(query).adist(numbers) for query in x[:20]])
    np.testing.assert_allclose(pq.scorer(x[:20]).scores(packed(numbers, 2**nbits)), theirs, rtol=1e-5)


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


def test_codebooks_that_are_put_in_place(x):
    pq = fit(x, 2, 3)
    mine = pq.codebooks_ * 2
    pq.codebooks_ = mine
    codes, decoded = pq.encode(x).tobytes(), pq.decode(pq.encode(x)).tobytes()
    mine *= 3  # the caller's array is not shared
    assert (pq.encode(x).tobytes(), pq.decode(pq.encode(x)).tobytes()) == (codes, decoded)
    with pytest.raises(ValueError, match="read-only"):
        pq.codebooks_[0] = 0
    for K in (1, 5, 300):
        with pytest.raises(InvalidInputError, match=f"{K} codewords"):
            pq.codebooks_ = np.zeros((2, K, 3), np.float32)
    copied = copy.copy(pq.average(x, 0.5))
    before = copied._weights.copy()
    pq.average(x, 0.5)
    same(copied._weights, before, "the weights of a copy")
