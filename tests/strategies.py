"""Hypothesis strategies shared by the tests: arrays whose corners are where code breaks."""

import numpy as np
from hypothesis import strategies as st

KINDS = ("normal", "grid", "duplicates", "zeros", "one value", "constant columns", "offset", "tiny", "large",
         "mixed scales", "negative zeros")
# Their squares underflow or come near the largest number: for what promises bits, not for what promises quality.
EXTREME_KINDS = (*KINDS, "underflow", "largest")

seeds = st.integers(0, 2**32 - 1)


def make_vectors(kind, n, d, seed=0):
    """(n, d) float32 of one of KINDS."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if kind == "grid":  # ties everywhere, exact arithmetic
        x = rng.integers(-2, 3, (n, d)).astype(float)
    elif kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 4), n)] if n else x
    elif kind == "zeros":
        x *= 0
    elif kind == "one value":
        x = np.full((n, d), 1 / 3)
    elif kind == "constant columns":
        x[:, rng.random(d) < 0.7] = 0.1
    elif kind == "offset":
        x += 1e6
    elif kind == "tiny":
        x *= 1e-12
    elif kind == "large":
        x *= 1e15
    elif kind == "underflow":
        x *= 1e-22
    elif kind == "largest":
        x = rng.uniform(-1e17, 1e17, (n, d))
    elif kind == "mixed scales":
        x *= 10.0 ** rng.integers(-6, 7, d)
    elif kind == "negative zeros":
        x = np.where(rng.random((n, d)) < 0.5, -0.0, rng.integers(0, 2, (n, d)))
    return np.ascontiguousarray(x, dtype=np.float32)


@st.composite
def vectors(draw, rows=(1, 40), d=(1, 12), multiple_of=1, kinds=KINDS):
    """float32 (n, d), d a multiple of ``multiple_of`` (then ``d`` bounds the factor)."""
    n = draw(st.integers(*rows))
    width = draw(st.integers(*d)) * multiple_of
    return make_vectors(draw(st.sampled_from(kinds)), n, width, draw(seeds))


def codes(n, m, K, seed, few=False):
    """uint8 (n, m) below K; with ``few`` only two values, so that many codes are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, min(K, 2) if few else K, (n, m)).astype(np.uint8)


TABLE_KINDS = ("normal", "integers", "equal", "huge", "tiny", "signed zeros", "negative", "subnormal")


def make_tables(kind, nq, m, K, seed=0):
    """Finite float32 (nq, m, K) of one of TABLE_KINDS; sums of huge ones overflow to infinity, never to NaN."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((nq, m, K))
    if kind == "integers":
        t = rng.integers(-2, 3, t.shape).astype(float)
    elif kind == "equal":
        t = np.full(t.shape, 0.1)
    elif kind == "huge":
        t = np.where(rng.random(t.shape) < 0.3, 3e38, t)
    elif kind == "tiny":
        t *= 1e-30
    elif kind == "signed zeros":
        t = np.where(rng.random(t.shape) < 0.5, -0.0, 0.0)
    elif kind == "negative":
        t = -np.abs(t) * 1e6
    elif kind == "subnormal":
        t *= 1e-43
    return np.ascontiguousarray(t, dtype=np.float32)


@st.composite
def tables_and_codes(draw, nq=(0, 4), n=(0, 40), m=(1, 6), K=(1, 16)):
    """Tables (nq, m, K), codes (n, m) and distinct ids (n,) in no order."""
    size = {name: draw(st.integers(*bounds)) for name, bounds in (("nq", nq), ("n", n), ("m", m), ("K", K))}
    seed = draw(seeds)
    table = make_tables(draw(st.sampled_from(TABLE_KINDS)), size["nq"], size["m"], size["K"], seed)
    ids = np.random.default_rng(seed).permutation(3 * size["n"])[:size["n"]].astype(np.int64)
    return table, codes(size["n"], size["m"], size["K"], seed, draw(st.booleans())), ids
