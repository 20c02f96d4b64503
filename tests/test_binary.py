"""Binary codecs: signs, ITQ, spectral hashing and RaBitQ against their definitions; the laws are in laws.py."""

import math
from itertools import pairwise

import laws
import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import same

import npquant as nq
from npquant import persist
from npquant.errors import FormatError, InvalidInputError, NotFittedError, NotInvertibleError
from npquant.quantizers.base import Scorer, first_bits, in_blocks
from npquant.quantizers.binary import (
    ITQ,
    ITQRotation,
    SignQuantizer,
    SpectralHashing,
    SpectralSinusoids,
    _cosine,
)
from npquant.quantizers.rabitq import RaBitQuantizer
from npquant.quantizers.transformed import PreTransformed
from npquant.transforms import Rotation

core = pytest.mark.core
some = settings(max_examples=40)


def bytes_of(bits):
    """Rows of bits as rows of bytes, the first bit the lowest, by arithmetic."""
    return np.array([[sum(int(bit) << place for place, bit in enumerate(row[at:at + 8]))
                      for at in range(0, len(row), 8)] for row in bits], np.uint8).reshape(len(bits), -1)


@pytest.fixture
def x():
    return strategies.make_vectors("normal", 300, 20)


# ------------------------------------------------------------------------------------- signs


@core
@some
@given(strategies.vectors(d=(1, 40), kinds=strategies.EXTREME_KINDS))
def test_sign_codes_of_anything(x):
    codec = SignQuantizer().fit(x)
    codes = codec.encode(x)
    same(codes, bytes_of((x >= 0).tolist()), "codes")
    assert codec.code_size == codes.shape[1] == -(-x.shape[1] // 8)
    scale = np.sqrt(np.mean(x.astype(np.float64) ** 2))
    assert codec.scale_ == (1 if scale == 0 else pytest.approx(max(scale, 1e-18), rel=1e-6))
    same(codec.decode(codes), np.where(x >= 0, 1, -1).astype(np.float32) * np.float32(codec.scale_), "decoded")


@core
@some
@given(strategies.vectors(rows=(3, 20), d=(1, 40)), st.sampled_from(laws.METRICS))
def test_asymmetric_scores_are_sums_of_bytes(x, metric):
    """Each byte's eight dimensions by themselves, then the bytes' sum, also where the last byte is not full."""
    codec = SignQuantizer().fit(x)
    codes, q = codec.encode(x), x[:3]
    asked = reference.normalized(q) if metric == "cosine" else q
    decoded, total = codec.decode(codes), None
    for at in range(0, x.shape[1], 8):
        part = reference.scores(asked[:, at:at + 8], decoded[:, at:at + 8], metric)
        total = part if total is None else total + part
    found = codec.scorer(q, metric).scores(codes)
    assert (found == total).all()  # -0.0 and 0.0 are one score
    assert found.dtype == np.float32


@core
def test_unit_vectors_decode_to_unit_vectors():
    x = reference.normalized(strategies.make_vectors("normal", 50, 24))
    codec = SignQuantizer().fit(x)
    assert codec.scale_ == pytest.approx(1 / np.sqrt(24), rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(codec.decode(codec.encode(x)), axis=1), 1, rtol=1e-5)


@core
def test_nearby_signs(x):
    codec = SignQuantizer().fit(x)
    near = codec.nearby(x, 5)
    assert near.shape == (300, 20, 2, 1)
    same(np.ascontiguousarray(near[:, :, 0, 0]), codec.nearest(x), "the first and nearest")
    same(near[:, :, 1], -near[:, :, 0], "the second is the other")
    assert codec.nearby(x, 1).shape == (300, 20, 1, 1)


@core
@pytest.mark.parametrize("codec", [SignQuantizer(), SignQuantizer(asymmetric=False), ITQ(5),
                                   SpectralHashing(12, asymmetric=False), RaBitQuantizer()])
def test_bits_beyond_the_last_are_refused(codec, x):
    codec = codec.set_params(random_state=0).fit(x)
    codes = codec.encode(x)
    bits = codec.code_size - (8 if isinstance(codec, RaBitQuantizer) else 0)
    codes[7, bits - 1] |= 128
    with pytest.raises(InvalidInputError, match="row 7"):
        codec.check_codes(codes)
    with pytest.raises(InvalidInputError, match="what encode returned"):
        codec.scorer(x[:1]).scores(codes)


@core
@pytest.mark.parametrize("codec", [
    SignQuantizer(asymmetric="yes"), SignQuantizer(asymmetric=None), SignQuantizer(max_points=0),
    SignQuantizer(threads=0), ITQ(0), ITQ(21), ITQ(8.0), ITQ(8, n_iter=-1), ITQ(8, asymmetric=1),
    ITQ(8, random_state="a"), SpectralHashing(0), SpectralHashing("8"), SpectralHashing(8, asymmetric="no"),
    RaBitQuantizer(random_state=-1), RaBitQuantizer(threads=1.5)])
def test_bad_parameters(codec, x):
    with pytest.raises(InvalidInputError) as caught:
        codec.fit(x)
    value = next(repr(value) for name, value in codec.get_params().items() if name in str(caught.value))
    assert value in str(caught.value) or value.strip("'") in str(caught.value)
    with pytest.raises(NotFittedError):
        codec.encode(x)


@core
@pytest.mark.parametrize("codec", [SignQuantizer(asymmetric=False), ITQ(11, asymmetric=False, random_state=0),
                                   SpectralHashing(70, asymmetric=False),
                                   PreTransformed(Rotation(random_state=0), SignQuantizer(asymmetric=False))])
def test_hamming_distances(codec, x):
    assert codec.score_model == "hamming"
    codec.fit(x)
    assert codec.score_model == "hamming"
    laws.a_hamming_score_counts_bits(codec, x)
    index = nq.FlatIndex(codec)
    index.add(x, np.arange(300)[::-1])
    index.remove([0, 17])
    codes = codec.encode(x)
    wanted = np.unpackbits(codes[:5, None] ^ codes, axis=2).sum(axis=2).astype(np.float32)
    there = np.delete(np.arange(300)[::-1], [299, 282])
    same(tuple(index.search(x[:5], 40)), reference.topk(wanted[:, 299 - there], there.tolist(), 40), "an index")


@core
@pytest.mark.parametrize("d", [20, 64])
def test_hamming_scans_of_blocks_are_the_plain_scorers(d):
    """What popcounts find in the blocks of an index is what scoring every code finds, for any radius."""
    x = strategies.make_vectors("normal", 200, d)
    codec = SignQuantizer(asymmetric=False).fit(x)
    blocks, ids = in_blocks(codec.encode(x), columns=False), np.full((4, 64), -1)
    ids.reshape(-1)[:200] = np.random.default_rng(0).permutation(999)[:200]
    live = first_bits(200) & np.array([2**64 - 1, 2**60 + 3, 0, 2**64 - 1], np.uint64)
    scorer = codec.scorer(x[:6])
    for k in (1, 9, 300):
        same(scorer._topk(blocks, ids, live, k, 1), Scorer._topk(scorer, blocks, ids, live, k, 1), f"top {k}")
    radius = np.array([-np.inf, -0.5, 0, d / 2 + 0.5, d / 2, np.inf], np.float32)
    same(scorer._within(blocks, ids, live, radius, 1), Scorer._within(scorer, blocks, ids, live, radius, 1), "within")


# ------------------------------------------------------------------------------------- ITQ


@core
@some
@given(strategies.vectors(rows=(2, 60), d=(2, 12), kinds=(*strategies.KINDS, "underflow")), st.integers(1, 12),
       strategies.seeds)
def test_itq_never_gets_worse_and_stays_a_rotation(x, nbits, seed):
    nbits = min(nbits, x.shape[1])
    codec = ITQ(nbits, random_state=seed).fit(x)
    assert all(later <= before for before, later in pairwise(codec.objective_history_))
    assert len(codec.objective_history_) <= 51
    R = codec.rotation_.astype(np.float64)
    assert np.abs(R @ R.T - np.eye(nbits)).max() < 1e-5
    rows = codec.transform_.components_.astype(np.float64)
    assert np.abs(rows @ rows.T - np.eye(nbits)).max() < 1e-4
    assert codec.encode(x).shape == (len(x), -(-nbits // 8))


@core
def test_itq_minimises_what_its_codes_lose(x):
    x = x @ np.random.default_rng(1).standard_normal((20, 20)).astype(np.float32) + 3
    codec = ITQ(16, random_state=0).fit(x)
    z = codec.transform_.transform(x)
    np.testing.assert_allclose(z, (x - x.mean(axis=0)) @ codec.transform_.components_.T, rtol=1e-3, atol=1e-3)
    history = codec.objective_history_
    assert -codec.quantizer_.score(z) == pytest.approx(history[-1], rel=1e-4)
    assert history[-1] < 0.9 * history[0]
    begin = ITQ(16, n_iter=0, random_state=0).fit(x)
    assert begin.objective_history_ == history[:1]
    # At the end the rotation is Procrustes' solution for its own signs: no other one is better for these.
    product = np.where(z >= 0, 1, -1).T @ z.astype(np.float64)
    assert np.trace(product) > 0.995 * np.linalg.svd(product)[1].sum()
    same(np.array(ITQ(16, n_iter=3, random_state=0).fit(x).objective_history_), np.array(history[:4]), "first turns")


# ------------------------------------------------------------------------------------- spectral hashing


def sinusoids(x, nbits):
    """Spectral hashing as it is written down: (n, nbits) float64."""
    centred = x - x.mean(axis=0, dtype=np.float64)
    values, columns = np.linalg.eigh(centred.T @ centred)
    v = centred @ columns[:, np.argsort(-values, kind="stable")[:nbits]]
    signs = nq.PCA(min(nbits, x.shape[1])).fit(x).components_  # an eigenvector is one up to its sign
    v *= np.sign((columns[:, np.argsort(-values, kind="stable")[:nbits]].T * signs).sum(axis=1))
    begin, length = v.min(axis=0), v.max(axis=0) - v.min(axis=0)
    modes = sorted((k * np.pi / length[j], j) for j in range(v.shape[1]) for k in range(1, nbits + 1))[:nbits]
    return np.stack([np.sin(np.pi / 2 + omega * (v[:, j] - begin[j])) for omega, j in modes], axis=1)


@core
@pytest.mark.parametrize("nbits", [1, 7, 20, 50])
def test_spectral_hashing_is_its_definition(x, nbits):
    x = x * np.linspace(1, 3, 20, dtype=np.float32)
    codec = SpectralHashing(nbits).fit(x)
    wanted = sinusoids(x, nbits)
    found = codec.transform_.transform(x)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    sure = np.abs(wanted) > 1e-3
    bits = np.unpackbits(codec.encode(x), axis=1, count=nbits, bitorder="little")
    assert ((bits == 1) == (wanted >= 0))[sure].all()
    assert sure.mean() > 0.99


@core
def test_cosines():
    turns = np.concatenate([np.linspace(-5, 5, 4001), [1e9, 1e15 + 1, -1e300, 0.5, 1.5]])
    found = _cosine(turns)
    assert found.dtype == np.float32
    wanted = np.array([math.cos(math.pi * math.fmod(t, 2)) for t in turns])
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    same(_cosine(turns[5:6]), found[5:6], "one alone")


@core
@pytest.mark.parametrize("kind", ["zeros", "one value", "constant columns", "offset", "tiny", "large"])
def test_spectral_hashing_of_anything(kind):
    x = strategies.make_vectors(kind, 60, 5)
    codec = SpectralHashing(20).fit(x)
    codes = codec.encode(x)
    assert codes.shape == (60, 3)
    assert np.isfinite(codec.scorer(x).scores(codes)).all()
    if kind == "zeros":
        assert (codes == codes[0]).all()


@core
def test_spectral_codes_are_not_decoded(x):
    codec = SpectralHashing(12).fit(x)
    for call in (lambda: codec.decode(codec.encode(x)), lambda: codec.nearest(x)):
        with pytest.raises(NotInvertibleError):
            call()


@core
@pytest.mark.parametrize("asymmetric", [False, True])
def test_laws_that_spectral_hashing_can_keep(asymmetric, x, tmp_path):
    codec = SpectralHashing(16, asymmetric=asymmetric, random_state=0).fit(x)
    laws.fit_returns_the_codec(codec, x)
    laws.codes_are_bytes(codec, x)
    laws.a_hamming_score_counts_bits(codec, x)
    codes = codec.encode(x)
    for rows in (slice(0, 1), slice(3, 80), np.random.default_rng(0).permutation(300)):
        same(codec.encode(x[rows]), codes[rows], "codes of a part")
    persist.save(codec, tmp_path / "codec")
    other = persist.load(tmp_path / "codec")
    same(other.encode(x), codes, "codes after a file")
    same(other.scorer(x).scores(codes), codec.scorer(x).scores(codes), "scores after a file")


# ------------------------------------------------------------------------------------- RaBitQ


def factors(codec, codes):
    """(bits, lengths, cosines) of codes, as the documentation says where they are."""
    d = codec.n_features_in_
    numbers = codes[:, -8:].copy().view("<f4").astype(np.float64)
    return np.unpackbits(codes[:, :-8], axis=1, count=d, bitorder="little"), numbers[:, 0], numbers[:, 1]


@core
@pytest.mark.parametrize("d", [1, 2, 7, 64, 100])
def test_rabitq_is_its_definition(d):
    x = strategies.make_vectors("normal", 80, d) + 2
    codec = RaBitQuantizer(random_state=0).fit(x)
    codes = codec.encode(x)
    assert codec.code_size == codes.shape[1] == -(-d // 8) + 8
    P, c = codec.rotation_.astype(np.float64), x.mean(axis=0, dtype=np.float64)
    r = (x - c) @ P.T
    bits, length, t = factors(codec, codes)
    sure = np.abs(r) > 1e-5
    assert ((bits == 1) == (r >= 0))[sure].all()
    np.testing.assert_allclose(length, np.linalg.norm(r, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t, np.abs(r).sum(axis=1) / np.linalg.norm(r, axis=1) / np.sqrt(d), rtol=1e-5)
    vertex = np.where(bits == 1, 1, -1) / np.sqrt(d)
    np.testing.assert_allclose(codec.decode(codes), c + (length * t)[:, None] * vertex @ P, rtol=1e-4, atol=1e-4)
    q = x[:9] * 1.5 - 1
    for metric in laws.METRICS:
        asked = (reference.normalized(q) if metric == "cosine" else q).astype(np.float64)
        p = (asked - c) @ P.T if metric == "l2" else asked @ P.T
        dot = (p @ vertex.T) * length / t
        wanted = (length**2 + (p**2).sum(axis=1)[:, None] - 2 * dot if metric == "l2" else -asked @ c[:, None] - dot)
        np.testing.assert_allclose(codec.scorer(q, metric).scores(codes), wanted, rtol=1e-4, atol=1e-4 * d)
        width = (2 if metric == "l2" else 1) * 1.9 / np.sqrt(max(d - 1, 1)) * np.linalg.norm(p, axis=1)[:, None] * (
            length * np.sqrt(np.maximum(1 / t**2 - 1, 0)))
        np.testing.assert_allclose(codec.bound(q, codes, metric), width, rtol=1e-3, atol=2e-3 * d)


@core
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_rabitq_is_unbiased_over_rotations_and_within_its_bound(metric):
    """150 rotations of 12 pairs: the means are the true values, and the bounds hold at their rates."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 128)).astype(np.float32)
    x[2] = rng.integers(0, 2, 128) * 3 + rng.random(128)  # neither normal nor centred
    x[3] = 0
    x[3, :2] = 5, -3  # along an axis: all depends on the rotation
    q = np.concatenate([rng.standard_normal((2, 128)), x[2:3] * 0.9]).astype(np.float32)
    wide, asked = x.astype(np.float64), q.astype(np.float64)
    true = ((asked[:, None] - wide) ** 2).sum(axis=2) if metric == "l2" else -asked @ wide.T
    errors, within = [], {1.9: [], 3: []}
    for seed in range(150):
        codec = RaBitQuantizer(random_state=seed).fit(x)
        codes = codec.encode(x)
        errors.append(codec.scorer(q, metric).scores(codes) - true)
        for eps0, held in within.items():
            held.append(np.abs(errors[-1]) <= codec.bound(q, codes, metric, eps0=eps0))
    errors = np.array(errors)
    assert (np.abs(errors.mean(axis=0)) <= 4 * errors.std(axis=0) / np.sqrt(150)).all()
    assert np.mean(within[1.9]) >= 0.93
    assert np.mean(within[3]) >= 0.995
    far = np.array(within[1.9])[:, :2]  # of q that is not parallel to x, it is not wider than it says
    assert np.mean(far) <= 0.965


@core
def test_rabitq_of_vectors_at_the_centre():
    x = np.array([[1.0, 2.0, 3.0]] * 4)
    codec = RaBitQuantizer(random_state=0).fit(x)
    codes = codec.encode(x)
    same(codec.decode(codes), x.astype(np.float32), "decoded")
    assert codec.scorer(x + 1).scores(codes) == pytest.approx(np.full((4, 4), 3), rel=1e-5)
    assert (codec.bound(x + 1, codes) == 0).all()
    assert codec.scorer(x, "ip").scores(codes) == pytest.approx(np.full((4, 4), -14), rel=1e-5)


@core
@some
@given(strategies.vectors(d=(1, 20), kinds=strategies.EXTREME_KINDS), strategies.seeds)
def test_rabitq_codes_of_anything(x, seed):
    codec = RaBitQuantizer(random_state=seed).fit(x)
    for metric in ("l2", "cosine"):
        codes = codec.encode(x, metric=metric)
        codec.check_codes(codes)
        for found in (codec.decode(codes), codec.scorer(x, metric).scores(codes), codec.bound(x, codes, metric)):
            assert np.isfinite(found).all()


@core
def test_rabitq_wrong_use(x):
    codec = RaBitQuantizer(random_state=0).fit(x)
    codes = codec.encode(x[:5])
    for numbers in ([np.nan, 0.8], [-1, 0.8], [np.inf, 0.8], [1, 0], [1, 1.1], [1, np.nan], [1, 0.1]):
        bad = codes.copy()
        bad[3, -8:] = np.array(numbers, "<f4").view(np.uint8)
        for call in (codec.decode, codec.scorer(x).scores, lambda bad: codec.bound(x, bad)):
            with pytest.raises(InvalidInputError, match="row 3"):
                call(bad)
    for wrong in ({"eps0": -1}, {"eps0": np.nan}, {"metric": "hamming"}):
        with pytest.raises(InvalidInputError):
            codec.bound(x, codes, **wrong)
    with pytest.raises(InvalidInputError):
        codec.bound(x[:, :3], codes)
    with pytest.raises(NotFittedError):
        RaBitQuantizer().bound(x, codes)


@core
@pytest.mark.parametrize(("codec", "name", "value"), [
    (SignQuantizer(), "scale_", 0.0), (SignQuantizer(), "scale_", float("nan")),
    (ITQRotation(4, random_state=0), "rotation_", np.ones((4, 4), np.float32)),
    (SpectralSinusoids(9), "mode_", np.full((9, 2), 30)), (SpectralSinusoids(9), "range_", np.full(9, -1.0)),
    (RaBitQuantizer(), "rotation_", np.ones((20, 20), np.float32)),
    (RaBitQuantizer(), "center_", np.ones(3, np.float32))])
def test_files_that_cannot_be(codec, name, value, x, tmp_path):
    codec.fit(x)
    setattr(codec, name, value)
    persist.save(codec, tmp_path / "codec")
    with pytest.raises(FormatError):
        persist.load(tmp_path / "codec")


# ------------------------------------------------------------------------------------- in an index


@pytest.mark.parametrize("metric", laws.METRICS)
@pytest.mark.parametrize("codec", [
    SignQuantizer(), SignQuantizer(asymmetric=False), ITQ(12), SpectralHashing(30), RaBitQuantizer(),
    SpectralHashing(64, asymmetric=False)], ids=repr)
def test_an_index_answers_what_the_scorer_says(codec, metric, x, tmp_path):
    codec.set_params(random_state=0).fit(x)
    index = nq.FlatIndex(codec, metric)
    ids = np.random.default_rng(0).permutation(999)[:300]
    index.add(x, ids)
    assert index.remove(ids[:70]) == 70
    scores = codec.scorer(x[:5], metric).scores(codec.encode(x[70:], metric=metric))
    wanted = reference.topk(scores, ids[70:].tolist(), 250)
    wanted = (wanted[0] if metric == "l2" else -wanted[0], wanted[1])
    persist.save(index, tmp_path / "index")
    for held in (index, persist.load(tmp_path / "index", mmap=True)):
        for threads in (1, 2):
            same(tuple(held.search(x[:5], 250, threads=threads)), wanted, "search")
    limits, distances, found = index.range_search(x[:5], wanted[0][0, 40])
    for q in range(5):
        near = (wanted[0][q] <= wanted[0][0, 40]) if metric == "l2" else (wanted[0][q] >= wanted[0][0, 40])
        near &= wanted[1][q] >= 0
        part = slice(limits[q], limits[q + 1])
        same((distances[part], found[part]), (wanted[0][q][near], wanted[1][q][near]), f"range of query {q}")


@core
def test_rabitq_bound_covers_what_the_rounding_of_t_hides():
    """Next to a corner of the cube t is 1 but for 1e-8, and the error is the root of that."""
    codec = RaBitQuantizer(random_state=0).fit([[1.0, 0.0], [-1.0, 0.0]])
    angle = np.pi / 4 + np.logspace(-9, -2, 100)
    turned = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = (turned @ codec.rotation_).astype(np.float32)
    q = ([[-(0.5**0.5), 0.5**0.5]] @ codec.rotation_).astype(np.float32)
    codes = codec.encode(x)
    error = codec.scorer(q).scores(codes)[0] - ((q.astype(np.float64) - x) ** 2).sum(axis=1)
    assert (np.abs(error) <= codec.bound(q, codes)[0] + 1e-5).all()
