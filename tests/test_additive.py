"""What is special to additive quantization and local search; see also test_residual.py."""

import itertools

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, same
from test_residual import books, clusters, errors, every_sum, fit, fitted

from npquant.kernels import icm, simd
from npquant.quantizers import _sums, additive, residual
from npquant.quantizers.additive import AdditiveQuantizer, LocalSearchQuantizer
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.residual import ResidualQuantizer

core = pytest.mark.core


# ------------------------------------------------------------------------------------- local search


def objective(products, every, i, code):
    """‖x − sum‖² − ‖x‖² of row i, one float32 addition after the other."""
    total = np.float32(0)
    for m, k in enumerate(code):
        total = total + (every.norms[m, k] - (products[m, i, k] + products[m, i, k]))
    for m in range(len(code)):
        for j in range(m):
            total = total + every.cross[m, j, code[j], code[m]]
    return total


def searched(products, every, plan, i, code):
    """The code that local search finds for row i, written out."""
    best, score = list(code), objective(products, every, i, code)
    for places, words, order in zip(*plan):
        tried = list(best)
        for place, word in zip(places, words):
            if place >= 0:
                tried[place] = int(word)
        for m in order:
            acc = every.norms[m] - (products[m, i] + products[m, i])
            for j in range(len(code)):
                if j != m:
                    acc = acc + every.cross[m, j, tried[j]]
            tried[m] = int(np.argmin(acc))
        new = objective(products, every, i, tried)
        if new < score:
            best, score = tried, new
    return best, score


@core
@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(1, 6), st.integers(1, 20), st.integers(0, 4), st.integers(1, 4),
       strategies.seeds, st.sampled_from(strategies.KINDS))
def test_local_search_is_the_one_written_out(n, M, K, steps, count, seed, kind):
    every, x = books(M, K, 3, seed, kind), strategies.make_vectors(kind, n, 3, seed + 1)
    products = every.products(x)
    plan = additive.perturbations(M, K, steps, min(count, M), seed % 1000)
    start = np.random.default_rng(seed).integers(0, K, (n, M)).astype(np.uint8)
    results = []
    for run in (icm.local_search.twin, *([icm.local_search.compiled()] if HAVE_NUMBA else [])):
        codes, scores = start.copy(), np.empty(n, np.float32)
        run(products, every.norms, every.cross, *plan, codes, scores)
        results.append((codes, scores))
        same((codes, scores), results[0], "compiled and twin")
    for i in range(n):
        best, score = searched(products, every, plan, i, start[i].tolist())
        assert results[0][0][i].tolist() == best
        assert results[0][1][i] == score


@pytest.mark.parametrize("level", simd.runnable() if HAVE_NUMBA else [])
@pytest.mark.parametrize(("M", "K"), [(1, 64), (3, 64), (4, 128), (2, 256), (3, 24)])
def test_levels_search_as_the_twin_does(level, M, K):
    for kind in ("normal", "grid", "negative zeros"):  # grids have ties
        every, x = books(M, K, 3, 1, kind), strategies.make_vectors(kind, 20, 3, 2)
        products, plan = every.products(x), additive.perturbations(M, K, 3, 2 if M > 1 else 1, 5)
        start = np.random.default_rng(3).integers(0, K, (20, M)).astype(np.uint8)
        results = []
        for run in (icm.local_search.twin, icm.local_search.compiled(level)):
            results.append((start.copy(), np.empty(20, np.float32)))
            run(products, every.norms, every.cross, *plan, *results[-1])
        same(results[1], results[0], f"{level}, {kind}, {M} × {K}")


@core
@settings(max_examples=40)
@given(st.integers(1, 5), st.sampled_from([2, 4, 16]), st.integers(0, 6), strategies.seeds)
def test_local_search_never_raises_the_error(M, K, steps, seed):
    every, z = books(M, K, 4, seed), strategies.make_vectors("normal", 20, 4, seed + 1)
    start = np.random.default_rng(seed).integers(0, K, (20, M)).astype(np.uint8)
    found = additive.local_search(z, every, additive.perturbations(M, K, steps, min(4, M), 0), start)
    before, after = (errors(z, every.codebooks, numbers) for numbers in (start, found))
    assert (after <= before + 1e-4 * (before + 1)).all()
    more = additive.local_search(z, every, additive.perturbations(M, K, steps + 3, min(4, M), 0), start)
    assert (errors(z, every.codebooks, more) <= after + 1e-4 * (before + 1)).all()  # the same steps, and three more


@core
def test_no_single_codeword_is_better():
    every, z = books(3, 8, 4), strategies.make_vectors("normal", 50, 4, 9)
    found = additive.local_search(z, every, additive.perturbations(3, 8, 2, 2, 0))
    least = errors(z, every.codebooks, found)
    for m, k in itertools.product(range(3), range(8)):
        other = found.copy()
        other[:, m] = k
        assert (errors(z, every.codebooks, other) >= least - 1e-4).all()


@core
def test_many_steps_are_brute_force():
    every, z = books(3, 4, 4), strategies.make_vectors("normal", 60, 4, 9)
    wanted = ((z[:, None] - every_sum(every.codebooks)[0]) ** 2).sum(axis=2).min(axis=1)
    found = additive.local_search(z, every, additive.perturbations(3, 4, 200, 3, 0))
    np.testing.assert_allclose(errors(z, every.codebooks, found), wanted, rtol=1e-4)


@core
@pytest.mark.parametrize(("M", "K", "steps", "count"), [(1, 2, 3, 1), (5, 16, 6, 4), (3, 256, 20, 3)])
def test_a_plan_is_a_plan(M, K, steps, count):
    places, words, orders = additive.perturbations(M, K, steps, count, 7)
    assert places.shape == words.shape == (steps + 1, count)
    assert (places[0] < 0).all()  # first without a perturbation
    assert all(len(set(row)) == count and 0 <= min(row) and max(row) < M for row in places[1:].tolist())
    assert words.max() < K
    for turn in orders.reshape(-1, M):
        assert sorted(turn.tolist()) == list(range(M))
    other = additive.perturbations(M, K, steps, count, 8)
    assert M == 1 or (other.orders != orders).any()
    longer = additive.perturbations(M, K, steps + 2, count, 7)
    for a, b in zip((places, words, orders), longer):
        same(np.ascontiguousarray(b[:steps + 1]), a, "the first steps of a longer plan")


# ------------------------------------------------------------------------------------- additive


@core
@pytest.mark.parametrize(("M", "K"), [(1, 8), (2, 4), (3, 4), (4, 2)])
def test_a_free_beam_of_everything_is_brute_force(M, K):
    every, z = books(M, K, 4), strategies.make_vectors("normal", 30, 4, 7) * 2
    wanted = ((z[:, None] - every_sum(every.codebooks)[0]) ** 2).sum(axis=2).min(axis=1)
    found = additive.free_search(z, every, (K + 1)**M)
    np.testing.assert_allclose(errors(z, every.codebooks, found), wanted, rtol=1e-4)


@core
def test_the_order_of_codebooks_does_not_matter_to_a_free_beam():
    z = clusters() - clusters().mean(axis=0)
    codebooks = fitted(AdditiveQuantizer).codebooks_
    turned = np.ascontiguousarray(codebooks[::-1])
    straight = additive.free_search(z[:300], _sums.Books(codebooks), 8)
    back = additive.free_search(z[:300], _sums.Books(turned), 8)
    assert (straight == back[:, ::-1]).all(axis=1).mean() > 0.99  # but for ties
    wrong = residual.beam_search(z[:300], _sums.Books(turned), 8)  # which knows one order only
    assert errors(z[:300], turned, back).mean() < errors(z[:300], turned, wrong).mean()


@core
def test_a_wider_free_beam_finds_better_sums():
    z = clusters() - clusters().mean(axis=0)
    every = _sums.Books(fitted(AdditiveQuantizer).codebooks_)
    found = [errors(z, every.codebooks, additive.free_search(z, every, width)).mean() for width in (1, 4, 16)]
    assert found == sorted(found, reverse=True)


@core
def test_the_order_of_the_literature():
    x = clusters()
    pq = -ProductQuantizer(4, 4, random_state=0).fit(x).score(x)
    rq = -ResidualQuantizer(4, 4, n_refine=0, random_state=0).fit(x).score(x)
    aq = -AdditiveQuantizer(4, 4, n_iter=5, random_state=0).fit(x).score(x)
    lsq = -LocalSearchQuantizer(4, 4, n_iter=8, random_state=0).fit(x).score(x)
    assert max(aq, lsq) < rq < pq


@core
@pytest.mark.parametrize("cls", [AdditiveQuantizer, LocalSearchQuantizer])
def test_more_alternations_lower_the_error(cls):
    x = clusters()
    found = [-fit(cls, x, 3, 4, n_iter=n_iter).score(x) for n_iter in (0, 2, 12)]
    assert found[2] < found[1] < found[0]


@core
@pytest.mark.parametrize(("M", "d"), [(4, 12), (3, 10), (5, 3), (1, 4)])
def test_a_product_quantizer_as_codebooks_of_the_whole_dimension(M, d):
    z = strategies.make_vectors("normal", 200, d, 1)
    codebooks = additive.product_codebooks(z, M, 8, np.random.default_rng(0), 1)
    assert codebooks.shape == (M, 8, d)
    used = (codebooks != 0).any(axis=1)
    assert (used.sum(axis=0) == 1).all()  # blocks do not overlap, and miss no dimension
    assert all(np.ptp(np.flatnonzero(row)) == row.sum() - 1 for row in used if row.any())
    nearest = sum(((z[:, None, row] - book[:, row]) ** 2).sum(axis=2).min(axis=1) for row, book in zip(used, codebooks))
    found = additive.local_search(z, _sums.Books(codebooks), additive.perturbations(M, 8, 0, 1, 0))
    np.testing.assert_allclose(errors(z, codebooks, found), nearest, rtol=1e-4, atol=1e-5)


@core
def test_training_starts_from_the_better_of_two(monkeypatch):
    rng = np.random.default_rng(0)  # four independent blocks, each of 16 points: a product codes them without error
    blocks = np.concatenate([rng.standard_normal((16, 3))[rng.integers(0, 16, 1500)] for _ in range(4)], axis=1)
    for x, wanted in ((clusters(), "residual_codebooks"), (blocks, "product_codebooks")):
        calls = []
        for name in ("residual_codebooks", "product_codebooks"):
            work = getattr(additive, name)

            def start(*args, to=calls, name=name, work=work, **kwargs):
                to.append(name)
                return work(*args, **kwargs)
            monkeypatch.setattr(additive, name, start)
        fit(LocalSearchQuantizer, x, 4, 4, n_iter=1)
        monkeypatch.undo()
        assert calls[-1] == wanted


@core
def test_more_steps_code_better():
    x = clusters()
    lsq = fit(LocalSearchQuantizer, x, 4, 4, n_iter=4)
    found = [-lsq.set_params(encode_steps=steps).score(x) for steps in (0, 2, 16)]
    assert found[2] < found[1] < found[0]


@core
def test_codes_depend_on_the_vector_alone():
    x = clusters()
    lsq = fit(LocalSearchQuantizer, x, 3, 4)
    codes = lsq.encode(x)
    same(lsq.encode(x[[7] * 300]), np.repeat(codes[7:8], 300, axis=0), "one vector many times")
    same(lsq.set_params(random_state=99).encode(x), codes, "codes with another seed after fit")
