"""The Hamming scan against brute force over bits: any widths, numbers, masks and ties, on every SIMD level."""

import re

import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import jit_mode, same

from npquant.errors import InvalidInputError
from npquant.kernels import _jit, hamming, simd
from npquant.kernels._jit import have_numba

core = pytest.mark.core
LEVELS = simd.runnable() if have_numba() else []
INSTRUCTIONS = {"avx512": r"v\w+q\s.*%zmm", "avx2": r"v\w+\s.*%ymm", "neon": r"\bcnt\s+v\d+\.16b"}


def make(n, s, nq, seed, few=False):
    """(queries, codes, ids, live): with ``few`` codes of two bits, so that nearly all distances are tied."""
    rng = np.random.default_rng(seed)
    codes, queries = (rng.integers(0, 4 if few else 256, (rows, s)).astype(np.uint8) for rows in (n, nq))
    if few:
        codes[:, 1:] = queries[:, 1:] = 0
    ids = rng.permutation(3 * n + 1)[:n].astype(np.int64)
    live = rng.integers(0, 2**64, -(-n // 64), dtype=np.uint64)
    live[rng.random(len(live)) < 0.3] = [0, 2**64 - 1][seed % 2]
    return queries, codes, ids, live


def bits_that_differ(queries, codes):
    return np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(axis=2).astype(np.float32)


def is_live(live, n):
    return np.array([int(live[i // 64]) >> (i % 64) & 1 for i in range(n)], bool).reshape(n)


def brute_force(queries, codes, ids, live, k):
    there = is_live(live, len(codes))
    return reference.topk(bits_that_differ(queries, codes[there]), ids[there].tolist(), k)


@core
@settings(max_examples=60)
@given(n=st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 300, 1000]),
       s=st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 32, 33, 64, 100]), nq=st.integers(0, 3),
       k=st.sampled_from([1, 2, 10, 63, 64, 65, 400]), few=st.booleans(), seed=st.integers(0, 2**32 - 1),
       mode=st.sampled_from("01" if have_numba() else "0"))
@example(n=33_000, s=3, nq=1, k=5, few=True, seed=0, mode="0")  # several padded pieces
def test_topk_is_brute_force(n, s, nq, k, few, seed, mode):
    queries, codes, ids, live = make(n, s, nq, seed, few)
    every = np.full(len(live), 2**64 - 1, np.uint64)
    with jit_mode(mode):
        same(hamming.scores(queries, codes, 1), bits_that_differ(queries, codes), "scores")
        for threads in (1, 3):
            same(hamming.topk(queries, codes, ids, k, threads, live), brute_force(queries, codes, ids, live, k),
                 f"top {k} of the live")
        same(hamming.topk(queries, codes, ids, k), brute_force(queries, codes, ids, every, k), f"top {k} of all")


@pytest.mark.skipif(not have_numba(), reason="numba is not installed")
@pytest.mark.parametrize("near", [0, 40, 300])
@pytest.mark.parametrize("k", [50, 100, 3000])
def test_a_guessed_limit_changes_nothing(near, k):
    """Of many codes a sample is looked at first; where its groups hold all that is near, all is done again."""
    queries, codes, ids, _ = make(64 * 4 * hamming._SAMPLE + 5, 8, 2, 0)
    codes[:near] = queries[0]
    live = np.full(-(-len(codes) // 64), 2**64 - 1, np.uint64)
    live[1:] &= np.uint64(2**64 - 1 if near < 300 else 1 << 7)
    with jit_mode("1"):
        same(hamming.topk(queries, codes, ids, k, 1, live), brute_force(queries, codes, ids, live, k), f"{near} near")


@core
@settings(max_examples=40)
@given(n=st.sampled_from([0, 1, 63, 64, 65, 300]), s=st.sampled_from([1, 8, 9, 16, 24, 32]), few=st.booleans(),
       radius=st.sampled_from([-1, 0, 1, 2, 0.3, 0.5, 1.0]), seed=st.integers(0, 2**32 - 1),
       mode=st.sampled_from("01" if have_numba() else "0"))
def test_within_is_brute_force(n, s, few, radius, seed, mode):
    queries, codes, ids, live = make(n, s, 4, seed, few)
    radius = int(radius * 8 * s) if isinstance(radius, float) else radius
    with jit_mode(mode):
        limits, distances, found = hamming.within(queries, codes, ids, np.array([radius, radius, -1, 8 * s]), 2, live)
    assert limits.shape == (5,)
    assert limits[0] == 0
    assert limits[-1] == len(distances) == len(found)
    wanted, names = brute_force(queries, codes, ids, live, n)
    for q, (begin, end) in enumerate(zip(limits[:-1], limits[1:])):
        kept = (wanted[q] <= (radius, radius, -1, 8 * s)[q]) & (names[q] >= 0)
        same((distances[begin:end], found[begin:end]), (wanted[q][kept], names[q][kept]), f"query {q}")


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=25)
@given(groups=st.sampled_from([0, 1, 2, 5, 40]), rest=st.sampled_from([0, 1, 63]), W=st.sampled_from([1, 2, 3, 4, 8]),
       k=st.sampled_from([1, 7, 64, 200]), few=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_levels_have_the_bits_of_the_twin(level, groups, rest, W, k, few, seed):
    queries, codes, ids, live = make(64 * groups + rest, 8 * W, 3, seed, few)
    results = []
    for function in (hamming.hamming_topk.compiled(level), hamming.hamming_topk.twin):
        sizes = np.zeros(3, np.int64)
        distances, found = np.full((3, k), np.inf, np.float32), np.full((3, k), -1, np.int64)
        for rows in (slice(0, 64 * (groups // 2)), slice(64 * (groups // 2), None)):  # in two pieces
            function(queries.view(np.uint64), codes[rows].view(np.uint64), live[rows.start // 64:], ids[rows], sizes,
                     distances, found)
        results.append((sizes, distances, found))
    same(*results, "compiled and twin")
    same(results[0][1:], brute_force(queries, codes, ids, live, k), "compiled and brute force")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("W", [1, 2, 4, 5])
def test_levels_look_within_by_the_bits_of_the_twin(level, W):
    queries, codes, ids, live = make(1000, 8 * W, 3, 0)
    for radius in (np.array(row) for row in ([28 * W, 0, 30 * W], [-1, 64 * W, 1])):
        results = []
        for function in (hamming.hamming_within.compiled(level), hamming.hamming_within.twin):
            ends = np.zeros(3, np.int64)
            function(queries.view(np.uint64), codes.view(np.uint64), live, ids, radius, ends, np.empty(0, np.float32),
                     np.empty(0, np.int64))
            counted, ends[:] = ends.copy(), np.cumsum(ends) - ends
            distances, found = np.zeros(counted.sum(), np.float32), np.zeros(counted.sum(), np.int64)
            function(queries.view(np.uint64), codes.view(np.uint64), live, ids, radius, ends, distances, found)
            results.append((counted, ends, distances, found))
        same(*results, f"within {radius}")


@pytest.mark.parametrize("level", LEVELS)
def test_scores_of_levels(level):
    for W in (1, 2, 7):
        queries, codes, _, _ = make(100, 8 * W, 2, 0)
        out = np.empty((2, 100), np.float32)
        hamming.hamming_scores.compiled(level)(queries.view(np.uint64), codes.view(np.uint64), out)
        same(out, bits_that_differ(queries, codes), f"{W} words")


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "generic"])
def test_compiled_code_has_the_instructions_meant(level, monkeypatch):
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)  # cached code cannot be looked at
    assembly = "".join(_jit._compile(hamming.hamming_topk, level).inspect_asm().values())
    assert re.search(next(wanted for name, wanted in INSTRUCTIONS.items() if level.startswith(name)), assembly)
    if level.startswith("avx512") and "avx512vpopcntdq" in simd.host_features():
        assert re.search(r"vpopcntq\s.*%zmm", assembly)


@pytest.mark.parametrize(("level", "triple", "features", "wanted"), [
    ("avx512", "x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl,+avx512vpopcntdq", r"vpopcntq.*zmm"),
    ("avx512", "x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl", r"vpshufb.*zmm"),
    ("avx2", "x86_64-unknown-linux-gnu", "+avx2", r"vpshufb.*ymm"),
    ("neon", "aarch64-unknown-linux-gnu", "+neon", r"cnt\s+v\d+\.16b")])
@pytest.mark.skipif(not have_numba(), reason="numba is not installed")
def test_vector_code_compiles_for_every_target(level, triple, features, wanted):
    """Of functions that are nothing but that code, for processors that this machine need not be."""
    from llvmlite import binding, ir
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    number = ir.IntType(64)
    for W in (1, 2, 4):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [number.as_pointer()] * 3 + [number] * 3),
                               f"near_{W}")
        builder = ir.IRBuilder(function.append_basic_block())
        hamming.near_vectors(hamming._LANES[level], W, builder, dict(zip(
            ("words", "query", "near", "group", "stop", "limit"), function.args)))
        builder.ret_void()
    machine = binding.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert re.search(wanted, assembly)


@core
def test_counting_bits_without_numpy_2(monkeypatch):
    queries, codes, _, _ = make(50, 16, 2, 0)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    wanted = bits_that_differ(queries, codes)
    for q in range(2):
        found = hamming.distances_to(queries.view(np.uint64)[q], codes.view(np.uint64))
        assert found.dtype == np.int64
        assert found.tolist() == wanted[q].tolist()


@core
@pytest.mark.parametrize("shift", [1, 4])
def test_unaligned_codes(shift):
    queries, codes, ids, live = make(200, 8, 2, 0)
    bytes_ = np.zeros(codes.nbytes + 16, np.uint8)
    moved = bytes_[shift:shift + codes.nbytes].reshape(codes.shape)
    moved[:] = codes
    moved.flags.writeable = False
    for mode in "01" if have_numba() else "0":
        with jit_mode(mode):
            same(hamming.topk(queries, moved, ids, 9, 1, live), brute_force(queries, codes, ids, live, 9), "unaligned")


@core
def test_what_does_not_fit_together_is_refused():
    queries, codes, ids, live = make(100, 8, 2, 0)
    for wrong in ((queries[:, :4], codes, ids, live), (queries, codes, ids[1:], live), (queries, codes, ids, live[1:]),
                  (queries, codes.astype(np.int8), ids, live), (queries[0], codes, ids, live)):
        q, c, i, alive = wrong
        with pytest.raises(InvalidInputError):
            hamming.topk(q, c, i, 3, 1, alive)
        with pytest.raises(InvalidInputError):
            hamming.within(q, c, i, np.array([3, 3]), 1, alive)
    with pytest.raises(InvalidInputError):
        hamming.scores(queries[:, 1:], codes, 1)
