"""The scan of blocks: bit-identical to the plain float scan at every SIMD level, ties included."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, THREADS, packed, same

from npquant.errors import InvalidInputError
from npquant.kernels import _jit, _order, _scan_ir, lists, scan, simd

core = pytest.mark.core
needs_numba = pytest.mark.skipif(not HAVE_NUMBA, reason="numba is not installed")
LEVELS = simd.runnable() if HAVE_NUMBA else []
LENGTHS = [1, 2, 3, 8, 16, 31, 32, 33, 64, 65, 127, 128, 129, 257, 258, 300]
KINDS = ["normal", "distances", "wide", "equal", "one huge", "huge", "negative", "subnormal", "grid", "signed zeros",
         "cancelling", "nearly equal", "infinite"]


def runs():
    """Every way to run the kernel that there is here: the twin, and each level's compiled code."""
    return ways(scan.adc_search)


def ways(kernel):
    compiled = [] if _jit.jit_mode() == "0" else LEVELS
    return [("twin", kernel.twin), *((level, kernel.compiled(level)) for level in compiled)]


def same_of_lists(tables, bias, probes, start, order, blocks, ids, live, wanted):
    """Hold that ``lists``, of lists without terms, finds what was wanted at every level; outputs come with rubbish."""
    none = lists.Terms.none(*tables.shape[1:])
    for name, run in ways(lists.list_search) if len(order) else []:
        distances, found = np.full(wanted[0].shape, 7, np.float32), np.full(wanted[0].shape, 77)
        run(tables, *none, bias, probes, start, order, blocks, ids, live, distances, found)
        same((distances, found), wanted, f"lists, {name}")
    for threads in (1, 2):
        found = lists.topk(tables, none, bias, probes, start, order, blocks, ids, live, wanted[0].shape[1], threads)
        same(found, wanted, f"lists, {threads} threads")


def make_tables(kind, rng, nq, M, K):
    t = rng.standard_normal((nq, M, K))
    if kind == "distances":
        t = t * t
    elif kind == "wide":
        t *= 10.0 ** rng.uniform(-12, 12, t.shape)
    elif kind == "equal":
        t[:] = rng.choice([0.1, 0.0, -3.7])
    elif kind == "one huge" and t.size:
        t[:1, rng.integers(M), rng.integers(K)] = rng.choice([1e30, -1e30, 3e38])
    elif kind == "huge":
        t = np.where(rng.random(t.shape) < 0.3, 3e38, t)
    elif kind == "negative":
        t = -np.abs(t) * 1e6
    elif kind == "subnormal":
        t *= 1e-43
    elif kind == "grid":
        t = np.round(t)
    elif kind == "signed zeros":
        t = np.where(rng.random(t.shape) < 0.5, -0.0, 0.0)
    elif kind == "cancelling":  # inner products: large terms, small sums
        t += 1e6 * np.where(np.arange(M) % 2, 1, -1)[:, None]
    elif kind == "nearly equal":
        t = 1 + np.round(t) * 2.0**-23
    elif kind == "infinite":
        t = np.where(rng.random(t.shape) < 0.1, rng.choice([np.inf, -np.inf], t.shape), t)
    return t.astype(np.float32)


def make_blocks(rng, numbers, K, held):
    """Blocks of ``numbers`` (n, M), distinct ids in no order, and which of them are ``held`` (a share)."""
    n = len(numbers)
    blocks = scan.to_blocks(packed(numbers.astype(np.uint8), K))
    ids, live = np.full(64 * len(blocks), -1), np.zeros(64 * len(blocks), bool)
    ids[:n], live[:n] = rng.permutation(3 * n)[:n], rng.random(n) < held
    return blocks, ids.reshape(-1, 64), bits(live)


def bits(live):
    places = live.reshape(-1, 64).astype(np.uint64) << np.arange(64, dtype=np.uint64)
    return np.bitwise_or.reduce(places, axis=1)


def plain(table, numbers, bias=None):
    """Return scores (n,), a number at a time in the order of m; NaN counts as +inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        score = table[0][numbers[:, 0]] if bias is None else bias + table[0][numbers[:, 0]]
        for m in range(1, len(table)):
            score = score + table[m][numbers[:, m]]
    return np.where(np.isnan(score), np.float32(np.inf), score)


def ranked(scores, ids, k=None):
    """Return the k best by (score, id), padded; all of them, unpadded, where k is None."""
    order = np.lexsort((ids, scores))[:k]
    if k is None:
        return scores[order], ids[order]
    pad = k - len(order)
    return (np.concatenate([scores[order], np.full(pad, np.inf, np.float32)]),
            np.concatenate([ids[order], np.full(pad, -1)]))


def search(run, tables, blocks, ids, live, k, bound=None):
    """Run the kernel on all blocks; outputs come filled with rubbish."""
    nq = len(tables)
    whole = scan._Whole(tables)
    distances, found, counts = np.full((nq, k), 7, np.float32), np.full((nq, k), 77), np.full(nq, 7)
    bound = np.full(nq, np.inf, np.float32) if bound is None else bound
    run(tables, whole.terms, whole.bias, whole.probes, np.array([0, len(blocks)]), whole.order, blocks, ids, live,
        bound, 0, distances, found, counts)
    return distances, found


@core
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), M=st.sampled_from(LENGTHS), K=st.sampled_from([256, 16, 2, 8, 100, 32]),
       kind=st.sampled_from(KINDS), n=st.sampled_from([0, 1, 63, 64, 65, 128, 300, 513, 1000]),
       k=st.sampled_from([1, 2, 10, 64, 200, 1001]), held=st.sampled_from([1.0, 0.5, 0.01, 0.0]),
       copies=st.booleans())
@example(seed=0, M=129, K=256, kind="distances", n=1000, k=1, held=1.0, copies=False)
@example(seed=0, M=300, K=16, kind="equal", n=1000, k=10, held=1.0, copies=True)
def test_the_scan_has_the_bits_of_the_plain_one(seed, M, K, kind, n, k, held, copies):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, K, (n, M))
    if copies and n:  # equal codes under other ids: nothing but the id tells them apart
        numbers = numbers[rng.integers(0, max(1, n // 9), n)]
    tables = make_tables(kind, rng, 2, M, K)
    blocks, ids, live = make_blocks(rng, numbers, K, held)
    there = np.flatnonzero((live[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).ravel())
    scores = [plain(table, numbers[there]) for table in tables]
    wanted = [ranked(one, ids.ravel()[there], k) for one in scores]
    wanted = np.stack([d for d, _ in wanted]), np.stack([i for _, i in wanted])
    # What is said to bound the k-th score may leave out anything beyond it, and nothing else.
    bound = wanted[0][:, -1].copy()
    for name, run in runs():
        same(search(run, tables, blocks, ids, live, k), wanted, name)
        same(search(run, tables, blocks, ids, live, k, bound), wanted, f"{name}, bounded")
    same(scan.topk(tables, blocks, ids, live, k, 1), wanted, "topk")
    same_of_lists(tables, np.full((2, 1), -0.0, np.float32), np.zeros((2, 1), np.int64), np.array([0, len(blocks)]),
                  np.arange(len(blocks)), blocks, ids, live, wanted)
    radius = np.array([one[rng.integers(len(one))] if len(one) else 0 for one in scores], np.float32)
    for q, (limits, found_scores, found_ids) in enumerate(
            [scan.within(tables, blocks, ids, live, radius, 1)] * 2):
        mine = slice(limits[q], limits[q + 1])
        kept = scores[q] <= radius[q]
        same((found_scores[mine], found_ids[mine]), ranked(scores[q][kept], ids.ravel()[there][kept]), "within")


@st.composite
def inverted(draw):
    """An inverted file: lists of blocks in no order, and queries that probe some of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    M, K = draw(st.sampled_from([1, 3, 8, 16, 33, 129])), draw(st.sampled_from([16, 256, 20]))
    nq, P, lists = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    sizes = rng.choice([0, 1, 2, 7], lists)
    start = np.concatenate([[0], np.cumsum(sizes)])
    nb = int(start[-1]) + 2  # two that no list holds
    order = rng.permutation(nb)[:start[-1]]
    numbers = rng.integers(0, K, (64 * nb, M))
    if draw(st.booleans()):
        numbers = numbers[rng.integers(0, 50, len(numbers))]
    blocks, ids, live = make_blocks(rng, numbers, K, draw(st.sampled_from([1.0, 0.6, 0.02])))
    kind = draw(st.sampled_from(KINDS))
    terms = make_tables(kind, rng, lists, M, K) if draw(st.booleans()) else np.empty((0, M, K), np.float32)
    bias = make_tables(draw(st.sampled_from(["normal", kind, "signed zeros"])), rng, 1, nq, P)[0]
    probes = np.array([rng.permutation(np.arange(-P, lists).clip(-1))[:P] for _ in range(nq)], np.int64)
    probes = probes.reshape(nq, P)
    return (make_tables(kind, rng, nq, M, K), terms, bias, probes, start, order, blocks, ids, live), numbers


@core
@settings(max_examples=60)
@given(case=inverted(), k=st.sampled_from([1, 5, 100, 2000]))
def test_lists_have_the_bits_of_the_plain_scan(case, k):
    arrays, numbers = case
    tables, terms, bias, probes, start, order, _, ids, live = arrays
    flags = (live[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(bool)
    every, wanted = [], []
    for q, table in enumerate(tables):
        scores, names = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for p, which in enumerate(probes[q]):
            for b in order[start[which]:start[which + 1]] if which >= 0 else []:
                with np.errstate(over="ignore", invalid="ignore"):
                    full = table + terms[which] if len(terms) else table
                scores.append(plain(full, numbers[64 * b:64 * b + 64], bias[q, p])[flags[b]])
                names.append(ids[b][flags[b]])
        every.append((np.concatenate(scores), np.concatenate(names)))
        wanted.append(ranked(*every[-1], k))
    shape = (len(tables), k)
    wanted = (np.array([d for d, _ in wanted], np.float32).reshape(shape),
              np.array([i for _, i in wanted], np.int64).reshape(shape))
    for name, run in runs() if len(order) else []:
        distances, found = np.full(shape, 7, np.float32), np.full(shape, 7)
        run(*arrays, np.full(len(tables), np.inf, np.float32), 0, distances, found, np.zeros(len(tables), np.int64))
        same((distances, found), wanted, name)
    for threads in (1, 2):
        same(scan.topk_lists(*arrays, k, threads), wanted, f"{threads} threads")
    if not len(terms):
        same_of_lists(tables, *arrays[2:], wanted)
    for radius in (-np.inf, 0.5, np.inf):
        limits, scores, names = scan.within_lists(*arrays, np.full(len(tables), radius, np.float32), 1)
        for q, (one, name) in enumerate(every):
            mine = slice(limits[q], limits[q + 1])
            same((scores[mine], names[mine]), ranked(one[one <= radius], name[one <= radius]), f"within {radius}")


@pytest.mark.parametrize(("M", "K"), [(8, 256), (17, 16)])
def test_many_codes(M, K):
    """More than a chunk of the cache, in the worst order too: each code is nearer than all before."""
    rng = np.random.default_rng(0)
    n = 70_001
    numbers = rng.integers(0, K, (n, M))
    tables = make_tables("distances", rng, 3, M, K)
    numbers = numbers[np.argsort(-plain(tables[0], numbers), kind="stable")]
    blocks, ids, live = make_blocks(rng, numbers, K, 0.9)
    there = np.flatnonzero((live[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).ravel())
    for k in (10, 1000):
        wanted = [ranked(plain(table, numbers[there]), ids.ravel()[there], k) for table in tables]
        wanted = np.stack([d for d, _ in wanted]), np.stack([i for _, i in wanted])
        for name, run in runs():
            same(search(run, tables, blocks, ids, live, k), wanted, name)
        for threads in THREADS:
            same(scan.topk(tables, blocks, ids, live, k, threads), wanted, f"{threads} threads")
        same_of_lists(tables, np.full((3, 2), -0.0, np.float32), np.array([[1, 0], [0, 1], [1, 0]]),
                      np.array([0, 500, len(blocks)]), np.arange(len(blocks)), blocks, ids, live, wanted)
    scores = plain(tables[1], numbers[there])
    radius = np.full(3, np.sort(scores)[5000], np.float32)  # more than there is room for at first
    limits, found, names = scan.within(tables, blocks, ids, live, radius, 2)
    kept = scores <= radius[0]
    same((found[limits[1]:limits[2]], names[limits[1]:limits[2]]), ranked(scores[kept], ids.ravel()[there][kept]),
         "within")


@pytest.mark.parametrize("k", [10, 100, 3000])
@pytest.mark.parametrize("kind", ["descending", "all equal", "crowded sample", "few live"])
def test_a_guessed_bound_changes_nothing(kind, k, monkeypatch):
    """Whether it is right or, as where all that is near lies in blocks of the sample, wrong: then all is done again."""
    rng = np.random.default_rng(k)
    M, n = 6, 64 * 4 * scan._SAMPLE + 5
    numbers = rng.integers(0, 256, (n, M))
    tables = make_tables("distances", rng, 2, M, 256)
    if kind == "descending":  # every code survives
        numbers = numbers[np.argsort(-plain(tables[0], numbers), kind="stable")]
    elif kind == "all equal":
        numbers[:] = numbers[0]
    elif kind == "crowded sample":
        numbers = numbers[np.argsort(plain(tables[0], numbers), kind="stable")]
    blocks, ids, live = make_blocks(rng, numbers, 256, 0.002 if kind == "few live" else 1.0)
    there = np.flatnonzero((live[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).ravel())
    wanted = [ranked(plain(table, numbers[there]), ids.ravel()[there], k) for table in tables]
    calls = []
    part = scan._topk_part
    monkeypatch.setattr(scan, "_topk_part", lambda *given, **more: calls.append(more) or part(*given, **more))
    wanted = np.stack([d for d, _ in wanted]), np.stack([i for _, i in wanted])
    same(scan.topk(tables, blocks, ids, live, k, 1), wanted, kind)
    if kind == "crowded sample" and k == 100:
        assert {"sure": True} in calls  # 64 codes of block 0 are the nearest of all, and the sample holds them


@core
@pytest.mark.parametrize(("M", "K"), [(8, 256), (48, 256), (32, 16), (80, 16)])
def test_a_first_guess_that_is_too_low_changes_nothing(M, K):
    """The worst of the first codes is nearer than the k-th best: by a little, so that sums reach it, or by much."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, K, (2000, M))
    tables = make_tables("distances", rng, 1, M, K)
    numbers = numbers[np.argsort(plain(tables[0], numbers), kind="stable")]
    for k, worst in ((60, 40), (100, 32), (200, 198), (200, 190), (200, 170), (400, 398), (400, 380)):
        first = np.linspace(0, worst - 1, 32).astype(int)
        mine = np.concatenate([numbers[first], rng.permutation(np.delete(numbers, first, axis=0))])
        blocks, ids, live = make_blocks(rng, mine, K, 1.0)
        wanted = [x[np.newaxis] for x in ranked(plain(tables[0], mine), ids.ravel()[:len(mine)], k)]
        same_of_lists(tables, np.full((1, 1), -0.0, np.float32), np.zeros((1, 1), np.int64),
                      np.array([0, len(blocks)]), np.arange(len(blocks)), blocks, ids, live, tuple(wanted))


@core
@settings(max_examples=60)
@given(scores=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, np.inf]) | st.floats(width=32, allow_nan=False),
                       min_size=1, max_size=200), data=st.data())
def test_selecting_and_sorting(scores, data):
    """By (score, id), of any order and with any ties."""
    names = np.array(data.draw(st.permutations(range(len(scores)))), np.int64)
    scores, k = np.array(scores, np.float32), data.draw(st.integers(1, len(scores)))
    some, some_names = scores.copy(), names.copy()
    worst = _order._select(some, some_names, len(scores), k)
    wanted = ranked(scores, names, k)
    assert worst == wanted[0][-1]
    kept, kept_names = np.full(k + 3, 9, np.float32), np.full(k + 3, 9)
    kept[:k], kept_names[:k] = some[:k], some_names[:k]
    _order._sort(kept, kept_names, k)
    padding = np.full(3, np.inf), np.full(3, -1)
    assert np.array_equal(kept, np.append(wanted[0], padding[0]))
    assert np.array_equal(kept_names, np.append(wanted[1], padding[1]))


@core
def test_threads_are_invisible(monkeypatch):
    """Few queries: the codes are shared among threads; many: the queries are."""
    monkeypatch.setattr(scan, "_PIECE", 3)
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 16, (2000, 5))
    blocks, ids, live = make_blocks(rng, numbers, 16, 0.5)
    for nq in (1, 3, 40):
        tables = make_tables("grid", rng, nq, 5, 16)
        for k in (3, 1500):
            alone = scan.topk(tables, blocks, ids, live, k, 1)
            for threads in (*THREADS, None):
                same(scan.topk(tables, blocks, ids, live, k, threads), alone, f"{nq} queries, {threads} threads")
    both = scan.merge([np.full((1, 1), np.inf, np.float32)] * 2, [np.array([[-1]]), np.array([[5]])], 2)
    assert both[1].tolist() == [[5, -1]]  # what scores +inf comes before what is missing


@core
@settings(max_examples=60)
@given(n=st.integers(0, 200), s=st.integers(1, 9), seed=st.integers(0, 99))
def test_blocks_and_back(n, s, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, s), dtype=np.uint8)
    blocks = scan.to_blocks(codes)
    assert blocks.shape == (-(-n // 64), s, 64)
    assert n == 0 or blocks.ctypes.data % 64 == 0  # one vector never lies in two lines of the cache
    for i in range(64 * len(blocks)):
        assert blocks[i // 64, :, i % 64].tolist() == (codes[i].tolist() if i < n else [0] * s)
    slots = rng.permutation(n)
    same(scan.from_blocks(blocks, slots), codes[slots], "codes")


@core
def test_what_does_not_fit_is_refused():
    tables, blocks = np.zeros((1, 4, 16), np.float32), np.zeros((2, 2, 64), np.uint8)
    ids, live = np.zeros((2, 64), np.int64), np.zeros(2, np.uint64)
    for bad in (blocks[:, :1], np.zeros((2, 4, 64), np.uint8), blocks[:, :, :32]):
        with pytest.raises(InvalidInputError, match="do not fit"):
            scan.topk(tables, bad, ids, live, 1, 1)
    with pytest.raises(InvalidInputError, match="do not fit"):
        scan.topk(tables, blocks, ids[:1], live, 1, 1)
    with pytest.raises(InvalidInputError, match="radius"):
        scan.within(tables, blocks, ids, live, np.zeros(2, np.float32), 1)
    good = {"terms": np.zeros((0, 4, 16), np.float32), "bias": np.zeros((1, 1), np.float32),
            "probes": np.zeros((1, 1), np.int64), "start": np.array([0, 2]), "order": np.array([0, 1])}
    scan.topk_lists(tables, *good.values(), blocks, ids, live, 1, 1)
    for name, wrong in (("terms", np.zeros((2, 4, 16), np.float32)), ("bias", np.zeros((1, 2), np.float32)),
                        ("probes", np.array([[1]])), ("probes", np.array([[-2]])), ("start", np.array([0, 3])),
                        ("start", np.array([-1, 2])), ("order", np.array([0, 2])), ("order", np.array([-1, 0]))):
        with pytest.raises(InvalidInputError):
            scan.topk_lists(tables, *{**good, name: wrong}.values(), blocks, ids, live, 1, 1)


# ------------------------------------------------------------------------------------- levels

MEANT = {"avx512vbmi": (r"vperm[it]2b\s.*%zmm", r"vpshufb\s.*%zmm"), "avx512": (r"vpshufb\s.*%zmm",) * 2,
         "avx2": (r"vpshufb\s.*%ymm",) * 2, "neon": (r"tb[lx]\s+v\d+\.16b, \{ v\d+\.16b, v\d+\.16b",
                                                      r"tbl\s+v\d+\.16b, \{ v\d+\.16b \}")}


@needs_numba
@pytest.mark.parametrize("level", MEANT)
def test_compiled_code_has_the_instructions_meant(level):
    """Of functions that are nothing but the look-up: that the whole kernel has these is seen in its speed."""
    if level not in LEVELS:
        pytest.skip(f"this machine does not run {level}")
    from numba import njit, types
    found, numbers = _scan_ir.intrinsics(level), types.Array(types.uint64, 1, "C")
    byte = types.Array(types.uint8, 1, "C")
    for name, wanted in zip(("bytes_short", "nibbles_short"), MEANT[level]):
        assembly = "".join(compiled_look_up(njit, found[name], byte, numbers).inspect_asm().values())
        assert re.search(wanted, assembly)
        if level == "avx2":
            assert not re.search(r"vpshufb\s.*%zmm", assembly)


def compiled_look_up(njit, look, byte, numbers):
    def function(blocks, table, live, which, masks):
        return look(blocks, table, live, which, masks, 8, 200)
    return njit([(byte, byte, numbers, numbers, numbers)])(function)


TARGETS = {"avx512vbmi": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl,+avx512vbmi"),
           "avx512": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl"),
           "avx2": ("x86_64-unknown-linux-gnu", "+avx2"), "neon": ("aarch64-unknown-linux-gnu", "+neon")}


@needs_numba
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("nibbles", [False, True])
@pytest.mark.parametrize("level", TARGETS)
def test_look_ups_compile_for_every_target(level, nibbles, long, kept):
    from llvmlite import binding, ir
    triple, features = TARGETS[level]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(64)
    arrays, scalars = ((_scan_ir._KEPT_ARRAYS, _scan_ir._KEPT_SCALARS) if kept
                       else (_scan_ir._ARRAYS, _scan_ir._SCALARS))
    kinds = dict.fromkeys(arrays, number.as_pointer()) | dict.fromkeys(("blocks", "table"), byte)
    kinds |= {"sums": byte} if kept else {}
    function = ir.Function(module, ir.FunctionType(number, [*kinds.values(), *[number] * len(scalars)]), "look_ups")
    builder = ir.IRBuilder(function.append_basic_block())
    values = dict(zip((*arrays, *scalars), function.args))
    builder.ret((_scan_ir.kept if kept else _scan_ir.passing)(level, nibbles, long, builder, values) or number(0))
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    assert re.search(MEANT[level][nibbles], machine.emit_assembly(parsed))


@needs_numba
def test_a_level_by_its_other_name(monkeypatch):
    monkeypatch.setattr(simd, "runnable", lambda: ["avx512", "generic"])
    for name in ("avx512", "avx512bw"):
        monkeypatch.setenv("NPQUANT_SIMD", name)
        assert simd.chosen() == "avx512"


@needs_numba
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "generic"])
@pytest.mark.parametrize(("M", "K"), [(8, 256), (16, 16), (48, 256)])
def test_nearly_all_is_left_out_by_the_sums_of_bytes(level, M, K):
    """Or else the level would be right and slow."""
    rng = np.random.default_rng(0)
    tables = make_tables("distances", rng, 1, M, K)
    blocks, ids, live = make_blocks(rng, rng.integers(0, K, (60_000, M)), K, 1.0)

    def seconds(name):
        import time
        run, best = scan.adc_search.compiled(name), np.inf
        for _ in range(5):
            began = time.perf_counter()
            search(run, tables, blocks, ids, live, 10)
            best = min(best, time.perf_counter() - began)
        return best
    assert seconds(level) < 0.7 * seconds("generic")  # it is many times as fast; a machine may be busy
