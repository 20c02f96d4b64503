"""The best of a few candidates: exact, whatever code runs."""

import laws
import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from npquant.errors import InvalidInputError
from npquant.kernels import rerank, simd

core = pytest.mark.core


def brute(q, rows, slots, ids, k, product):
    """The k best by (score, id), one at a time; scores summed over the dimensions in their order, in float32."""
    distances = np.full((len(q), k), np.inf, np.float32)
    found = np.full((len(q), k), -1, np.int64)
    for i, query in enumerate(q):
        scored = []
        for slot, name in zip(slots[i], ids[i]):
            if slot < 0:
                continue
            total = np.float32(0)
            for a, v in zip(query, rows[slot]):
                total = total - a * v if product else total + (a - v) * (a - v)
            scored.append((total, name))
        for place, (score, name) in enumerate(sorted(scored)[:k]):
            distances[i, place], found[i, place] = score, name
    return distances, found


@st.composite
def cases(draw):
    n, d, nq, c = (draw(st.integers(low, high)) for low, high in ((1, 30), (1, 37), (0, 4), (0, 20)))
    kind = draw(st.sampled_from(["normal", "grid", "offset", "tiny", "zeros"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))

    def vectors(rows):
        x = rng.standard_normal((rows, d))
        return {"normal": x, "grid": np.rint(x), "offset": x + 1e6, "tiny": x * 1e-22, "zeros": 0 * x}[kind].astype(
            np.float32)
    slots = rng.integers(-1, n, (nq, c))
    return (vectors(nq), vectors(n), slots, rng.permutation(nq * c).reshape(nq, c), draw(st.integers(1, 25)),
            draw(st.booleans()))


@core
@given(cases())
def test_floats_are_ranked_as_by_brute_force(case):
    """Scores, ids and ties are those of sums in the order of the dimensions."""
    q, rows, slots, ids, k, product = case
    laws.same(rerank.topk(q, rows, slots, ids, k, product, 1), brute(q, rows, slots, ids, k, product), "best")


@given(cases(), st.integers(0, 2**31))
def test_bytes_are_ranked_as_what_they_stand_for(case, seed):
    """Bytes of a grid score as low + byte · step, rounded twice."""
    q, rows, slots, ids, k, product = case
    rng = np.random.default_rng(seed)
    low, step = rng.standard_normal(rows.shape[1]).astype(np.float32), rng.random(rows.shape[1]).astype(np.float32)
    grid = rng.integers(0, 256, rows.shape).astype(np.uint8)
    decoded = grid.astype(np.float32) * step + low
    laws.same(rerank.topk(q, grid, slots, ids, k, product, 2, (low, step)),
              brute(q, decoded, slots, ids, k, product), "best")


@pytest.mark.skipif(not laws.HAVE_NUMBA, reason="numba is not installed")
@given(cases())
def test_every_level_is_the_twin(case):
    """The twin, the ordinary compiled code and the wide one give one answer, bit for bit."""
    q, rows, slots, ids, k, product = case
    none, kept = np.empty(0, np.float32), []
    for code in (rerank.rerank.twin, *(rerank.rerank.compiled(level) for level in simd.runnable())):
        distances, found = np.full((len(q), k), np.inf, np.float32), np.full((len(q), k), -1, np.int64)
        code(q, rows, np.empty((0, 0), np.uint8), none, none, slots, ids, int(product), distances, found)
        kept.append((distances, found))
    for other in kept[1:]:
        laws.same(other, kept[0], "best")


def test_slots_outside_are_refused():
    """A slot that is no row is told, not read."""
    x = strategies.make_vectors("normal", 5, 4, seed=0)
    for slot in (-2, 5):
        with pytest.raises(InvalidInputError, match="do not fit"):
            rerank.topk(x[:1], x, np.array([[slot]]), np.array([[0]]), 1, False, 1)
