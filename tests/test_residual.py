"""What is special to sums of codewords and to residual quantizers; what holds for every codec is in laws.py."""

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, same

from npquant.errors import InvalidInputError, NotFittedError, NpquantWarning
from npquant.index.flat import FlatIndex
from npquant.kernels import _jit, beam, simd
from npquant.quantizers import _sums, residual
from npquant.quantizers.additive import AdditiveQuantizer, LocalSearchQuantizer
from npquant.quantizers.residual import GeneralizedResidualQuantizer, ResidualQuantizer

core = pytest.mark.core
some = settings(max_examples=25)
LEVELS = simd.runnable() if HAVE_NUMBA else []
FAMILY = (ResidualQuantizer, GeneralizedResidualQuantizer, AdditiveQuantizer, LocalSearchQuantizer)


def empty(*shape, dtype=np.float32):
    return np.empty(shape, dtype)


def agree(kernel, *arrays):
    """Run the twin and, where numba is, the compiled kernel; return what both wrote, which is the same."""
    writes = [word.endswith("w") for word in kernel.signature.split()]
    results = []
    for run, rubbish in ((kernel.twin, 77), *([(kernel.compiled(), 33)] if HAVE_NUMBA else [])):
        mine = [array.copy() for array in arrays]
        for array, write in zip(mine, writes, strict=True):
            if write:
                array[...] = rubbish
        run(*mine)
        results.append(tuple(array for array, write in zip(mine, writes) if write))
    same(results[-1], results[0], f"{kernel.__name__}, compiled and twin")
    return results[0]


def fit(cls, x, m=2, nbits=3, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)
        return cls(m, nbits, **{"random_state": 0, "n_iter": 2, **params}).fit(x)


@cache
def clusters(n=1500, d=12):
    """Vectors with structure: sums of a few directions and some noise, off the origin."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, 5)) ** 3 @ rng.standard_normal((5, d)) + 0.3 * rng.standard_normal((n, d)) + 3
    x = x.astype(np.float32)
    x.flags.writeable = False
    return x


@cache
def fitted(cls, m=3, nbits=4):
    return fit(cls, clusters(), m, nbits)


def books(M, K, d, seed=0, kind="normal"):
    return _sums.Books(strategies.make_vectors(kind, M * K, d, seed).reshape(M, K, d))


def every_sum(codebooks):
    """All K^M sums, float64, and their numbers."""
    M, K, _ = codebooks.shape
    numbers = np.array(list(itertools.product(range(K), repeat=M)))
    return sum(codebooks[m].astype(np.float64)[numbers[:, m]] for m in range(M)), numbers


def errors(z, codebooks, numbers):
    total = sum(codebooks[m].astype(np.float64)[numbers[:, m]] for m in range(len(codebooks)))
    return ((z - total) ** 2).sum(axis=1)


# ------------------------------------------------------------------------------------- kernels


@st.composite
def beams(draw):
    n, m, more, size, d = (draw(st.integers(*bounds)) for bounds in ((0, 7), (0, 6), (1, 3), (1, 5), (1, 5)))
    K = draw(st.one_of(st.integers(1, 40), st.sampled_from((64, 128))))  # of 64 on the tiled code takes part
    kind, seed = draw(st.sampled_from(strategies.KINDS)), draw(strategies.seeds)
    every = books(m + more, K, d, seed, kind)
    x = strategies.make_vectors(kind, n, d, seed + 1)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, K, (n, size, m)).astype(np.uint8)
    codes[:, :, :draw(st.integers(0, m))] = rng.integers(0, K)  # with a beginning in common
    scores = np.sort(strategies.make_vectors(kind, n, size, seed + 2), axis=1)
    return every, x, codes, scores, min(draw(st.sampled_from((1, 2, 3, 5, 16, 20, 70))), size * K**more)


@core
@settings(max_examples=120)
@given(beams())
def test_a_beam_keeps_the_best_of_all_extensions(case):
    every, x, codes, scores, width = case
    n, _, first = codes.shape
    M = len(every.norms)
    products = np.ascontiguousarray(every.products(x)[first:])
    found, kept = agree(beam.search, products, every.norms, every.cross, codes, scores,
                        empty(n, width, M, dtype=np.uint8), empty(n, width))
    for i in range(n):  # the oracle: float32, one addition after the other, all candidates sorted
        held = [(score, word.tolist()) for score, word in zip(scores[i], codes[i])]
        for m in range(first, M):
            candidates = []
            for b, (before, word) in enumerate(held):
                score = every.norms[m] - (products[m - first, i] + products[m - first, i])
                for j in range(m):
                    score = score + every.cross[m, j, word[j]]
                candidates += [(s, b, k) for k, s in enumerate((score + before).tolist())]
            held = [(score, [*held[b][1], k]) for score, b, k in sorted(candidates)[:width]]
        assert kept[i].tolist() == [score for score, _ in held]
        assert found[i].tolist() == [word for _, word in held]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", [1, 5, 16, 33, 100, 300])
def test_levels_keep_the_beam_of_the_twin(level, width):
    for kind in ("normal", "grid", "duplicates", "one value"):
        every = books(3, 128, 6, 3, kind)
        x = strategies.make_vectors(kind, 9, 6, 4)
        products = every.products(x)
        start = np.empty((9, 1, 0), np.uint8), np.zeros((9, 1), np.float32)
        results = []
        for run in (beam.search.twin, beam.search.compiled(level)):
            results.append((empty(9, width, 3, dtype=np.uint8), empty(9, width)))
            run(products, every.norms, every.cross, *start, *results[-1])
        same(results[1], results[0], f"{level}, {kind}, beam {width}")


@pytest.mark.parametrize("level", LEVELS)
def test_levels_have_the_products_of_the_fixed_order(level):
    for n, M, K, d in ((0, 2, 64, 3), (1, 1, 64, 1), (9, 2, 128, 17), (5, 3, 8, 7), (6, 1, 192, 4)):
        codebooks, x = books(M, K, d).codebooks, strategies.make_vectors("normal", n, d, 1)
        out = empty(M, n, K)
        beam.products_with.compiled(level)(x, beam.panels_of(codebooks), out)
        wanted = reference.tables(x, codebooks.reshape(1, M * K, d), product=True)
        same(out, np.ascontiguousarray(np.moveaxis(wanted.reshape(n, M, K), 1, 0)), f"{level}: {n}, {M}, {K}, {d}")
        beam.products_with.twin(x, beam.panels_of(codebooks), twin := empty(M, n, K))
        same(twin, out, "the twin")


@pytest.mark.skipif(not HAVE_NUMBA or simd.host_features().isdisjoint(("avx512f", "avx2")), reason="x86 only")
def test_products_round_each_step(monkeypatch):
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)  # what comes from the disk cache shows no assembly
    assembly = "".join(_jit._compile(beam.products_with, simd.runnable()[0]).inspect_asm().values())
    assert "vmulps" in assembly
    assert "vfmadd" not in assembly


@core
@settings(max_examples=40)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 20), st.integers(1, 9), strategies.seeds,
       st.sampled_from(strategies.KINDS))
def test_a_free_step(n, M, K, width, seed, kind):
    every = books(M, K, 3, seed, kind)
    x = strategies.make_vectors(kind, n, 3, seed + 1)
    products, names = every.products(x), beam.mixed(M * K, 0).reshape(M, K)
    state = (np.zeros((n, 1, M), np.uint8), np.zeros((n, 1, M), bool), np.zeros((n, 1), np.uint64),
             np.zeros((n, 1), np.float32))
    for t in range(M):
        size = min(width, -(-state[2].shape[1] * (M - t) * K // (t + 1)))
        new = agree(beam.free_step, products, every.norms, every.cross, names, *state,
                    empty(n, size, M, dtype=np.uint8), empty(n, size, M, dtype=bool),
                    empty(n, size, dtype=np.uint64), empty(n, size))
        for i in range(n):
            sets = {}
            for b in range(state[0].shape[1]):
                for m in np.flatnonzero(~state[1][i, b]):
                    for k in range(K):
                        score = every.norms[m, k] - (products[m, i, k] + products[m, i, k])
                        for j in np.flatnonzero(state[1][i, b]):
                            score = score + every.cross[m, j, state[0][i, b, j], k]
                        score = score + state[3][i, b]
                        chosen = frozenset([(int(m), k), *((int(j), int(state[0][i, b, j]))
                                                           for j in np.flatnonzero(state[1][i, b]))])
                        sets[chosen] = min(sets.get(chosen, np.inf), score)
            got = [frozenset((int(m), int(new[0][i, b, m])) for m in np.flatnonzero(new[1][i, b]))
                   for b in range(size)]
            assert len(set(got)) == size  # no set twice
            assert new[3][i].tolist() == sorted(sets.values())[:size]
            assert [sets[chosen] for chosen in got] == new[3][i].tolist()
        state = new


@core
def test_mixed_numbers_are_those_of_splitmix64():
    # The generator's published test: its first numbers from the seed 0.
    assert beam.mixed(3, 0).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert len(set(beam.mixed(1000, 1).tolist()) | set(beam.mixed(1000, 2).tolist())) == 2000


@core
def test_inner_products_of_codewords():
    every = books(3, 5, 4)
    rows = every.codebooks.reshape(15, 4)
    wanted = reference.tables(rows, every.codebooks.reshape(1, 15, 4), product=True).reshape(3, 5, 3, 5)
    for m, j in itertools.product(range(3), repeat=2):
        same(every.cross[m, j], 2 * wanted[j, :, m], f"products of {j} and {m}")
        same(every.cross[m, j], np.ascontiguousarray(every.cross[j, m].T), f"products of {m} and {j}")
    numbers = np.array([[0, 1, 2], [4, 4, 4]], np.uint8)
    words = every.codebooks[np.arange(3), numbers].astype(np.float64)
    cross = np.square(words.sum(axis=1)).sum(axis=1) - np.square(words).sum(axis=(1, 2))
    np.testing.assert_allclose(every.cross_terms(numbers), cross, rtol=1e-5)
    first = 2 * (words[:, 1] * words[:, 2]).sum(axis=1)
    np.testing.assert_allclose(every.cross_terms(numbers, without=0), first, rtol=1e-5)


# ------------------------------------------------------------------------------------- searches


@core
@pytest.mark.parametrize(("M", "K"), [(1, 8), (2, 4), (3, 4), (4, 2)])
def test_a_beam_of_everything_is_brute_force(M, K):
    every, z = books(M, K, 4), strategies.make_vectors("normal", 30, 4, 7) * 2
    sums, _ = every_sum(every.codebooks)
    wanted = ((z[:, None] - sums) ** 2).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(errors(z, every.codebooks, residual.beam_search(z, every, K**M)), wanted, rtol=1e-4)


@core
def test_without_a_beam_it_is_the_nearest_to_what_is_left():
    x = clusters()
    rq = fit(ResidualQuantizer, x, 3, 4, beam=1)
    rest = x - rq.center_
    for m in range(3):
        number = reference.nearest(rest, rq.codebooks_[m])[0]
        assert rq.encode(x)[:, m].tolist() == number.tolist()
        rest = rest - rq.codebooks_[m][number]


@core
def test_a_wider_beam_finds_better_sums():
    z = clusters() - clusters().mean(axis=0)
    found = [errors(z, (every := _sums.Books(fitted(ResidualQuantizer).codebooks_)).codebooks,
                    residual.beam_search(z, every, width)).mean() for width in (1, 4, 16, 256)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.97 * found[0]


@core
def test_training_with_a_beam_lowers_the_error():
    x = clusters()
    scores = [-fit(ResidualQuantizer, x, 4, 4, beam=width, n_iter=8).score(x) for width in (1, 8)]
    assert scores[1] < scores[0]


def test_codebooks_beside_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    x, rq = clusters(), fitted(ResidualQuantizer)
    M, _, d = rq.codebooks_.shape
    other = faiss.ResidualQuantizer(d, M, 4)
    other.max_beam_size = rq.beam
    faiss.copy_array_to_vector(np.ascontiguousarray(rq.codebooks_).ravel(), other.codebooks)
    other.is_trained = True
    packed = other.compute_codes(np.ascontiguousarray(x - rq.center_))
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :M * 4].reshape(len(x), M, 4)
    theirs = (bits * (1 << np.arange(4))).sum(axis=2)
    assert (theirs == rq.encode(x)[:, :M]).all(axis=1).mean() > 0.99  # but for near-ties


@core
@pytest.mark.parametrize("cls", FAMILY)
def test_nearby_are_the_best_with_one_codeword_changed(cls):
    codec, x = fitted(cls), clusters()[:20]
    M, K, d = codec.codebooks_.shape
    numbers = codec.encode(x)[:, :M].astype(int)
    near = codec.nearby(x, 7)
    assert near.shape == (20, 1, 7, d)
    assert near.dtype == np.float32
    for i in range(20):
        others = {tuple(numbers[i])} | {(*numbers[i][:m], k, *numbers[i][m + 1:]) for m in range(M) for k in range(K)}
        table = np.array(sorted(others))
        decoded = codec.center_ + sum(codec.codebooks_[m].astype(np.float64)[table[:, m]] for m in range(M))
        best = np.sort(((x[i] - decoded) ** 2).sum(axis=1))[:7]
        np.testing.assert_allclose(np.sort(((x[i] - near[i, 0].astype(float)) ** 2).sum(axis=1)), best, rtol=1e-3,
                                   atol=1e-4)
    assert codec.nearby(x, 10**6).shape == (20, 1, M * (K - 1) + 1, d)
    everything = codec.nearby(x, 10**6)[:, 0]
    assert (everything == codec.nearest(x)[:, None]).all(axis=2).any(axis=1).all()


# ------------------------------------------------------------------------------------- norms and scores


@core
@pytest.mark.parametrize("cls", FAMILY)
def test_the_norm_is_the_last_byte(cls):
    codec, x = fitted(cls), clusters()
    codes = codec.encode(x)
    assert codec.code_size == codes.shape[1] == 4
    decoded = codec.decode(codes)
    sums = _sums.sums_of(codec.codebooks_, codes)
    same(decoded, sums + codec.center_, "decode and the sums")
    norms, levels = (sums.astype(np.float64) ** 2).sum(axis=1), codec.norm_levels_.astype(np.float64)
    away = np.abs(norms[:, None] - levels)
    chosen = np.take_along_axis(away, codes[:, -1:].astype(int), axis=1)[:, 0]
    np.testing.assert_allclose(chosen, away.min(axis=1), atol=1e-4 * levels.max())
    np.testing.assert_allclose(codec.score_bound(codes), chosen, atol=1e-5 * levels.max())
    gap = np.diff(levels).max() / 2
    assert (codec.score_bound(codes) <= gap * 1.001).all()  # half a gap, for whatever it was trained on
    assert (np.diff(levels) >= 0).all()


@core
def test_scores_are_tables_of_the_oracle():
    codec, x = fitted(ResidualQuantizer), clusters()
    q = x[:5]
    scorer, codes = codec.scorer(q), codec.encode(x)
    assert scorer.tables.shape == (5, 4, 256)
    centred = q - codec.center_
    products = np.stack([reference.tables(centred, words[None], product=True)[:, 0] for words in codec.codebooks_], 1)
    table = -2 * products
    table[:, 0] += np.array([reference.squared_distances(row, np.zeros((1, 12), np.float32))[0]
                             for row in centred], np.float32)[:, None]
    same(np.ascontiguousarray(scorer.tables[:, :3, :16]), table, "look-ups and the oracle")
    same(np.ascontiguousarray(scorer.tables[:, 3]), np.repeat(codec.norm_levels_[None], 5, axis=0), "norm levels")
    same(scorer.scores(codes), reference.adc(scorer.tables, codes), "scores and the oracle")


@core
@given(st.integers(1, 400), strategies.seeds, st.sampled_from(["normal", "equal", "two", "skewed"]))
@some
def test_levels_are_a_fit(n, seed, kind):
    rng = np.random.default_rng(seed)
    norms = {"normal": rng.normal(50, 5, n), "equal": np.full(n, 0.1), "two": rng.integers(0, 2, n) * 7.0,
             "skewed": rng.lognormal(0, 3, n)}[kind].astype(np.float32)
    levels = _sums.levels_of(norms)
    assert levels.shape == (256,)
    assert levels.dtype == np.float32
    assert (np.diff(levels) >= 0).all()
    assert levels[0] == norms.min()
    assert levels[-1] == norms.max()
    error = np.abs(norms[:, None].astype(np.float64) - levels).min(axis=1)
    if len(np.unique(norms)) <= 2:
        assert (error == 0).all()
    assert error.max() <= np.ptp(norms.astype(np.float64)) / 2


@core
def test_a_norm_outside_the_levels_is_clamped_and_told():
    codec = fitted(ResidualQuantizer)
    high = max(((_sums.sums_of(codec.codebooks_, c := np.array([[i, j, k]], np.uint8)) ** 2).sum(), c.tolist())
               for i, j, k in itertools.product(range(16), repeat=3))[1]
    x = codec.center_ + _sums.sums_of(codec.codebooks_, np.array(high, np.uint8))
    codes = codec.encode(x * 1000)
    [bound] = codec.score_bound(codes)
    [[score]] = codec.scorer(codec.center_).scores(codes)
    true = ((codec.decode(codes) - codec.center_).astype(float) ** 2).sum()
    assert abs(score - true) <= bound + 1e-4 * true


@core
def test_bits_below_eight_have_a_byte_each():
    for nbits in (1, 4, 7):
        codec = fit(ResidualQuantizer, clusters(), 2, nbits)
        codes = codec.encode(clusters())
        assert codes.shape[1] == 3
        assert codes[:, :2].max() < 1 << nbits
        wrong = codes[:9].copy()
        wrong[7, 1] = 1 << nbits
        for call in (codec.decode, codec.score_bound, codec.check_codes):
            with pytest.raises(InvalidInputError, match=rf"{1 << nbits} \(row 7, column 1\)"):
                call(wrong)


@core
def test_an_index_ranks_by_the_scores():
    codec, x = fitted(ResidualQuantizer), clusters()
    for metric in ("l2", "ip"):
        index = FlatIndex(codec, metric)
        index.add(x)
        scores = codec.scorer(x[:7], metric).scores(codec.encode(x))
        wanted = reference.topk(scores, np.arange(len(x)), 10)
        distances, ids = index.search(x[:7], 10)
        same((distances if metric == "l2" else -distances, ids), wanted, f"{metric} search")


# ------------------------------------------------------------------------------------- training


@core
@pytest.mark.parametrize(("M", "K", "n"), [(1, 4, 50), (3, 8, 300), (2, 16, 10)])
def test_codebooks_solve_the_normal_equations(M, K, n):
    z, old = strategies.make_vectors("normal", n, 5, 1), books(M, K, 5, 2).codebooks
    numbers = np.random.default_rng(0).integers(0, K, (n, M)).astype(np.uint8)
    new = _sums.fitted_codebooks(z, numbers, old, 1, shrink=False)
    onehot = np.zeros((n, M * K))
    for m in range(M):
        onehot[np.arange(n), m * K + numbers[:, m]] = 1
    best = np.linalg.lstsq(onehot, z.astype(np.float64), rcond=None)[0]
    least = ((z - onehot @ best) ** 2).sum()
    assert ((z - onehot @ new.reshape(M * K, 5)) ** 2).sum() <= least * (1 + 1e-5) + 1e-4
    unused = onehot.sum(axis=0).reshape(M, K) == 0
    np.testing.assert_allclose(new[unused], old[unused])
    assert errors(z, new, numbers).sum() <= errors(z, old, numbers).sum() * (1 + 1e-6)
    # Shrunk, the gradient of the error and of the ridges vanishes.
    shrunk = _sums.fitted_codebooks(z, numbers, old, 1).reshape(M * K, 5).astype(np.float64)
    ridge = errors(z, old, numbers).mean() / np.square(old.astype(np.float64)).sum(axis=2).mean(axis=1)
    gradient = onehot.T @ (onehot @ shrunk - z) + np.repeat(ridge, K)[:, None] * shrunk
    assert np.abs(gradient).max() < 1e-3 * n / K


@core
def test_shrunk_codebooks_code_new_vectors_better():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3000, 16)).astype(np.float32)
    train, new = x[:600], x[600:]
    codebooks = fit(ResidualQuantizer, train, 3, 6, n_refine=0).codebooks_
    numbers = residual.beam_search(train, _sums.Books(codebooks), 5)
    found = []
    for shrink in (False, True):
        every = _sums.Books(_sums.fitted_codebooks(train, numbers, codebooks, 1, shrink=shrink))
        found.append(errors(new, every.codebooks, residual.beam_search(new, every, 5)).mean())
    assert found[1] < found[0]


@core
@pytest.mark.parametrize("cls", FAMILY)
def test_refining_helps(cls):
    x = clusters()
    codec = fit(cls, x, 3, 3, n_iter=0, **({"n_refine": 0} if cls is ResidualQuantizer else {}))
    before = -codec.score(x)
    assert codec.refine(x, 3) is codec
    assert -codec.score(x) < before


@core
def test_generalizing_lowers_the_error():
    x = clusters()
    plain = fit(ResidualQuantizer, x, 4, 4, beam=4, n_iter=8, n_refine=0)
    assert -fit(GeneralizedResidualQuantizer, x, 4, 4, beam=4).score(x) < -plain.score(x)


@core
def test_cross_terms_concentrate():
    x = clusters()
    spread, lost = [], []
    for strength in (0.0, 0.1, 1.0, 10.0):
        codec = fit(GeneralizedResidualQuantizer, x, 3, 4, n_iter=10, regularization=strength, norm="constant")
        codes = codec.encode(x)
        assert codes.shape[1] == codec.code_size == 3
        assert codec.scorer(x[:2]).tables.shape == (2, 3, 256)
        spread.append(_sums.Books(codec.codebooks_).cross_terms(codes).std())
        lost.append(np.sqrt((codec.score_bound(codes).astype(float) ** 2).mean()))
    assert spread[0] > spread[1] > spread[2] > spread[3]
    assert spread[3] < 0.3 * spread[0]
    np.testing.assert_allclose(lost, spread, rtol=0.05)


@core
def test_a_regularized_codeword_is_a_minimum():
    rng = np.random.default_rng(0)
    z, s, own = (rng.standard_normal((40, 3)).astype(np.float32) for _ in range(3))
    cross = rng.standard_normal(40).astype(np.float32)
    old = rng.standard_normal((2, 3)).astype(np.float32)
    new = residual.regularized(z, s, own, cross, old, 0.7, 1)
    label = reference.nearest(z, old)[0]
    mean = (cross + 2 * (own * s).sum(axis=1)).mean()

    def value(words):
        c = words[label].astype(np.float64)
        return ((z - c) ** 2).sum() + 0.7 * ((cross + 2 * (c * s).sum(axis=1) - mean) ** 2).sum()
    least = value(new)
    for k, j, step in itertools.product(range(2), range(3), (-1e-2, 1e-2)):
        moved = new.astype(np.float64)
        moved[k, j] += step
        assert value(moved) > least


@core
@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("cls", FAMILY)
def test_any_vectors_are_coded(cls, kind):
    x = strategies.make_vectors(kind, 60, 4, 3)
    codec = fit(cls, x, 2, 3, n_iter=1)
    error = errors(x - codec.center_, codec.codebooks_, codec.encode(x)).mean()
    assert np.isfinite(error)
    variance = np.square(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)).sum(axis=1).mean()
    assert error <= 0.7 * variance + 1e-9 * np.square(x.astype(np.float64)).mean()


@core
@pytest.mark.parametrize("cls", FAMILY)
def test_few_vectors_warn(cls):
    x = clusters()[:5]
    with pytest.warns(NpquantWarning, match=r"5 training vectors for codebooks of 8"):
        codec = cls(2, 3, n_iter=2, random_state=0).fit(x)
    np.testing.assert_allclose(codec.decode(codec.encode(x)), x, atol=0.02 * np.abs(x).max())
    with pytest.warns(NpquantWarning):
        one = cls(2, 1, n_iter=1, random_state=0).fit(x[:1])
    same(one.decode(one.encode(x[:1])), x[:1].copy(), "the only vector")


@core
@pytest.mark.parametrize("params", [
    {"m": 0}, {"m": 2.0}, {"m": None}, {"nbits": 0}, {"nbits": 9}, {"nbits": "8"}, {"n_iter": -1}, {"n_iter": 1.5},
    {"max_points": 0}, {"random_state": -3}, {"threads": 0}], ids=str)
@pytest.mark.parametrize("cls", FAMILY)
def test_a_bad_parameter_is_named(cls, params):
    [name] = params
    codec = cls(**{"m": 2, "nbits": 2, **params})
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        codec.fit(clusters())
    with pytest.raises(NotFittedError):
        codec.encode(clusters())


@core
@pytest.mark.parametrize(("cls", "params"), [
    (ResidualQuantizer, {"beam": 0}), (ResidualQuantizer, {"beam": 1.5}), (ResidualQuantizer, {"n_refine": -1}),
    (GeneralizedResidualQuantizer, {"beam": None}), (GeneralizedResidualQuantizer, {"regularization": -1}),
    (GeneralizedResidualQuantizer, {"regularization": np.nan}), (GeneralizedResidualQuantizer, {"norm": "byte"}),
    (AdditiveQuantizer, {"beam": 0}), (LocalSearchQuantizer, {"train_steps": -1}),
    (LocalSearchQuantizer, {"encode_steps": 1.5}), (LocalSearchQuantizer, {"n_perturb": 0})], ids=str)
def test_its_own_bad_parameter_is_named(cls, params):
    [name] = params
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        cls(2, 2, **params).fit(clusters())


@core
def test_what_was_learned_is_read_only_and_checked():
    codec = fitted(ResidualQuantizer)
    for array in (codec.codebooks_, codec.center_, codec.norm_levels_):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    state = codec._get_state()
    for name, bad in (("codebooks", state["codebooks"][:, :5]), ("codebooks", state["codebooks"] * np.nan),
                      ("center", state["center"][:3]), ("norm_levels", state["norm_levels"][::-1]),
                      ("norm_levels", state["norm_levels"][:9])):
        with pytest.raises(InvalidInputError):
            ResidualQuantizer()._set_state({**state, name: bad})
