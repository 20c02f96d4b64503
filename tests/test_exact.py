"""Exact search among plain vectors: the answers of brute force, bit for bit, whatever did the pre-selection."""

import re
from functools import partial

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, same

import npquant as nq
from npquant.errors import InvalidInputError
from npquant.kernels import _jit, exact, nearest, simd

core = pytest.mark.core
RUNNABLE = simd.runnable() if HAVE_NUMBA else []
LEVELS = ["twin", *(level for level in RUNNABLE if level in exact._SHAPES or level == "generic")]
KINDS = (*strategies.EXTREME_KINDS, "near ties", "clusters", "beyond")
NOBODY = np.iinfo(np.int64).max


def vectors(kind, n, d, seed):
    rng = np.random.default_rng(seed)
    if kind == "near ties":  # no pre-score can tell them apart
        return (rng.standard_normal(d) * 1e3 + rng.standard_normal((n, d)) * 1e-4).astype(np.float32)
    if kind == "clusters":  # outliers among them
        return (rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 4, (n, 1))).astype(np.float32)
    if kind == "beyond":  # the largest of which distances are finite: too large for pre-scores
        return (rng.uniform(-1, 1, (n, d)) * 6e18 / np.sqrt(d)).astype(np.float32)
    return strategies.make_vectors(kind, n, d, seed)


def brute_force(queries, base, ids, k, product, kept=None):
    """(scores, ids) by the oracle, padded, the sign of zero as it is computed."""
    scores = reference.scores(queries, base, "ip" if product else "l2")
    kept = np.arange(len(base)) if kept is None else kept
    best, found = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for q, row in enumerate(scores):
        for place, i in enumerate(sorted(kept, key=lambda i: (row[i], ids[i]))[:k]):
            best[q, place], found[q, place] = row[i], ids[i]
    return best, found


def run(level, queries, centre, base, ids, live, product, best, found):
    select = exact.select.twin if level == "twin" else exact.select.compiled(level)
    select(queries, centre, base, ids, live, product, best, found)


@core
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), n=st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 200]),
       d=st.sampled_from([1, 2, 7, 8, 15, 16, 17, 24, 33, 40]), many=st.sampled_from([0, 1, 5, 6, 7, 13]),
       k=st.sampled_from([1, 2, 7, 50, 203]), product=st.booleans(), dead=st.sampled_from([0.0, 0.5, 1.0]),
       cut=st.integers(0, 200), seed=strategies.seeds)
def test_every_level_has_the_bits_of_brute_force(level, kind, n, d, many, k, product, dead, cut, seed):
    rng = np.random.default_rng(seed)
    base = vectors(kind, n + 1, d, seed)
    queries = np.concatenate([base[rng.integers(0, n + 1, many // 2)], vectors(kind, many - many // 2, d, seed + 1)])
    base, ids = base[:n], rng.permutation(n) * 3 - 5
    live = rng.random(n) >= dead
    centre = exact._centre(queries, product)
    best, found = np.full((many, k), np.inf, np.float32), np.full((many, k), NOBODY, np.int64)
    for rows in (slice(0, cut), slice(cut, n)):  # what was found before is a limit for the rest
        run(level, queries, centre, base[rows], ids[rows], live[rows], product, best, found)
    found[found == NOBODY] = -1
    same((best, found), brute_force(queries, base, ids, k, product, np.flatnonzero(live)), f"{level}, {kind}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("product", [False, True])
def test_reservoirs_overflow_and_limits_move(level, product):
    """Many more rows than are kept at a time: far ones, nearer and nearer ones, and equal ones."""
    rng = np.random.default_rng(3)
    base = (rng.standard_normal((3000, 20)) * np.linspace(3, 0.1, 3000)[:, None]).astype(np.float32)
    base[2000:2400] = base[5]
    queries = np.concatenate([base[2000:2003], base[-4:], base[:6]])
    for k in (1, 10, 60):
        best, found = np.full((13, k), np.inf, np.float32), np.full((13, k), NOBODY, np.int64)
        run(level, queries, exact._centre(queries, product), base, np.arange(3000)[::-1].copy(), np.ones(3000, bool),
            product, best, found)
        same((best, found), brute_force(queries, base, np.arange(3000)[::-1], k, product), f"k = {k}")


@core
@settings(max_examples=25)
@given(seed=strategies.seeds, cuts=st.lists(st.integers(0, 400), max_size=5), threads=st.sampled_from([1, 2, 7, None]),
       product=st.booleans(), step=st.sampled_from([1, 7, 100]), k=st.sampled_from([1, 9, 70]))
def test_blocks_and_threads_are_invisible(seed, cuts, threads, product, step, k):
    x = strategies.make_vectors("duplicates", 420, 6, seed)
    base, queries, ids = x[:400], x[400:], np.random.default_rng(seed).permutation(400)
    whole = exact.Selector(queries, product, k, 1)
    whole.update(base, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_ROWS", 48)  # then many tasks share few rows
        patch.setattr(exact, "_TWIN_ROWS", 90)
        parts = exact.Selector(queries, product, k, threads)
        parts._step = step
        edges = [0, *sorted(cuts), 400]
        blocks = [slice(*edge) for edge in zip(edges, edges[1:])]
        for block in reversed(blocks):
            parts.update(base[block], ids[block])
    same(parts.result(), whole.result(), "in blocks and at once")
    same(whole.result(), brute_force(queries, base, ids, k, product), "and by brute force")


@core
def test_scores_are_those_of_tables():
    rng = np.random.default_rng(0)
    base, queries = rng.standard_normal((300, 24)).astype(np.float32), rng.standard_normal((9, 24)).astype(np.float32)
    for product in (False, True):
        selector = exact.Selector(queries, product, 300)
        selector.update(base, np.arange(300))
        scores, ids = selector.result()
        table = nearest.tables(queries, nearest.transpose(base[None]), product)[:, 0]
        same(scores, np.take_along_axis(table, ids, 1), "scores and tables")


@core
def test_dead_rows_and_padding():
    base = np.arange(6, dtype=np.float32)[:, None]
    selector = exact.Selector(np.array([[2.2]], np.float32), False, 4)
    selector.update(base, np.arange(10, 16), np.array([True, False, False, False, False, True]))
    scores, ids = selector.result()
    assert ids.tolist() == [[10, 15, -1, -1]]
    assert scores[0, 2:].tolist() == [np.inf, np.inf]
    selector.update(base[:0], np.empty(0, np.int64))
    same(selector.result(), (scores, ids), "after nothing")


@core
def test_what_does_not_fit_is_refused():
    selector = exact.Selector(np.zeros((2, 3), np.float32), False, 1)
    for block, ids, live in ((np.zeros((4, 2), np.float32), np.arange(4), None),
                             (np.zeros((4, 3), np.float32), np.arange(3), None),
                             (np.zeros((4, 3), np.float32), np.arange(4), np.ones(5, bool))):
        with pytest.raises(InvalidInputError, match="do not fit"):
            selector.update(block, ids, live)


@core
def test_exact_neighbors_at_the_ends():
    x = strategies.make_vectors("offset", 30, 5, 0)
    distances, rows = nq.metrics.exact_neighbors(x, x, 30)
    assert np.sort(rows, axis=1).tolist() == [list(range(30))] * 30
    assert (np.diff(distances, axis=1) >= 0).all()
    same((distances, rows), reference.search(x, x, range(30), 30), "all of them")
    distances, rows = nq.metrics.exact_neighbors(x, x[:0], 2)
    assert distances.shape == rows.shape == (0, 2)
    for k in (0, 31):
        with pytest.raises(InvalidInputError, match="k"):
            nq.metrics.exact_neighbors(x, x, k)


# ------------------------------------------------------------------------------------- the codec


@core
def test_flat_codes_are_the_vectors():
    x = strategies.make_vectors("negative zeros", 40, 7, 0)
    codec = nq.FlatQuantizer().fit(x)
    codes = codec.encode(x)
    assert codes.shape == (40, 28)
    assert codec.decode(codes).tobytes() == x.tobytes()
    codes[3, :4] = np.array([np.nan], "<f4").view(np.uint8)
    with pytest.raises(InvalidInputError, match="not finite"):
        codec.decode(codes)


@core
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_an_index_of_flat_codes_is_exact_search(metric):
    x = strategies.make_vectors("grid", 200, 6, 1)
    index = nq.FlatIndex(nq.FlatQuantizer().fit(x), metric)
    index.add(x)
    queries, base = x[:9], x
    if metric == "cosine":
        from npquant.quantizers.base import normalized
        queries, base = normalized(queries), normalized(base)
    same(tuple(index.search(x[:9], 12)), reference.search(queries, base, range(200), 12, metric), metric)


# ------------------------------------------------------------------------------------- machine code

TARGETS = {"avx512": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl,+fma", r"vfmadd\d+ps.*zmm"),
           "avx2": ("x86_64-unknown-linux-gnu", "+avx2,+fma", r"vfmadd\d+ps.*ymm"),
           "neon": ("aarch64-unknown-linux-gnu", "+neon", r"fmla\s+v\d+\.4s")}
needs_numba = pytest.mark.skipif(not HAVE_NUMBA, reason="numba is not installed")


@needs_numba
def test_compiled_code_has_the_instructions_meant(monkeypatch):
    level = next((level for level in LEVELS if level in TARGETS), None)
    if level is None:
        pytest.skip("this machine runs ordinary code only")
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)  # cached code cannot be looked at
    assembly = "".join(_jit._compile(exact.select, level).inspect_asm().values())
    assert re.search(TARGETS[level][2], assembly)


@needs_numba
@pytest.mark.parametrize("level", TARGETS)
def test_tiles_compile_for_every_target(level):
    """Of functions that are nothing but vector code, for processors that this machine need not be."""
    from llvmlite import binding, ir
    triple, features, wanted = TARGETS[level]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    lanes, points, vectors = exact._SHAPES[level]
    module = ir.Module()
    module.triple = triple
    for name, build, arrays, scalars in (
            ("tile", partial(exact._scores_tile, lanes, points, vectors),
             ("queries", "packed", "half", "limit", "scores", "hits"), ("d", "point")),
            ("turn", partial(exact._turned, lanes, vectors), ("base", "centre", "packed"), ("first", "d")),
            ("summed", partial(exact._summed, lanes, vectors), ("packed", "norm"), ("d",))):
        kinds = [ir.IntType(64).as_pointer() if array == "hits" else ir.FloatType().as_pointer() for array in arrays]
        function = ir.Function(module, ir.FunctionType(
            ir.VoidType(), [*kinds, *[ir.IntType(64)] * len(scalars)]), name)
        builder = ir.IRBuilder(function.append_basic_block())
        build(builder, dict(zip((*arrays, *scalars), function.args)))
        builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(parsed, passes)
    assert re.search(wanted, machine.emit_assembly(parsed))


@needs_numba
@pytest.mark.parametrize("level", [level for level in LEVELS if level in exact._SHAPES])
def test_preselection_is_faster_than_all_scores(level):
    """Else it would be right, and useless."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((20_000, 24)).astype(np.float32)
    queries, ids, live = base[:60], np.arange(20_000), np.ones(20_000, bool)

    def seconds(name):
        import time
        best = np.inf
        for _ in range(5):
            results = np.full((60, 10), np.inf, np.float32), np.full((60, 10), NOBODY, np.int64)
            began = time.process_time()
            run(name, queries, exact._centre(queries, False), base, ids, live, False, *results)
            best = min(best, time.process_time() - began)
        return best
    assert seconds(level) < seconds("generic")  # it is several times as fast; a machine may be busy
