"""Kernels: compiled, NumPy twin and oracle give one result, and the lazy wrapper around them."""

import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import strategies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, THREADS, packed, same

import npquant
from npquant.errors import InvalidInputError
from npquant.kernels import _jit, _pool, cluster, exact, nearest, scan

core = pytest.mark.core
needs_numba = pytest.mark.skipif(not HAVE_NUMBA, reason="numba is not installed")
many, few = settings(max_examples=150), settings(max_examples=40)
ROOT = Path(npquant.__file__).parent.parent


def agree(kernel, *arrays):
    """Run the twin and, where numba is, the compiled kernel on the same inputs; return what they both wrote.

    The outputs, which the signature marks by ``w``, come filled with different rubbish.
    """
    writes = [word.endswith("w") for word in kernel.signature.split()]
    results = []
    for run, rubbish in ((kernel.twin, 77), *([(kernel.compiled(), 33)] if HAVE_NUMBA else [])):
        mine = [a.copy() for a in arrays]
        for a, write in zip(mine, writes, strict=True):
            if write:
                a[...] = rubbish
        run(*mine)
        for a, b, write in zip(arrays, mine, writes):
            if not write:
                same(b, a, f"an input of {kernel.__name__} before and after")
        results.append(tuple(a for a, write in zip(mine, writes) if write))
    for other in results[1:]:
        same(other, results[0], f"{kernel.__name__}, compiled and twin")
    return results[0]


# ------------------------------------------------------------------------------------- bits


@st.composite
def vectors_and_codebooks(draw):
    """x (n, M·dsub) and codebooks (M, K, dsub) with shared and almost shared entries."""
    n, M, dsub, K = (draw(st.integers(*bounds)) for bounds in ((0, 20), (1, 4), (1, 5), (1, 20)))
    kind, other = draw(st.sampled_from(strategies.EXTREME_KINDS)), draw(st.sampled_from(strategies.EXTREME_KINDS))
    x = strategies.make_vectors(kind, n, M * dsub, draw(strategies.seeds))
    words = strategies.make_vectors(draw(st.sampled_from((kind, other))), M * K, dsub, draw(strategies.seeds))
    words = words.reshape(M, K, dsub)
    if n and draw(st.booleans()):  # vectors that are codewords, and codewords that are equal
        words[:, -1] = x[0].reshape(M, dsub)
        words[:, K // 2] = words[:, -1]
    return x, words


def empty(*shape, dtype=np.float32):
    return np.empty(shape, dtype)


@core
@many
@given(vectors_and_codebooks())
def test_distances_and_products(case):
    x, words = case
    M, K, _ = words.shape
    turned = nearest.transpose(words)
    [out] = agree(nearest.subspace_distances, x, turned, empty(len(x), M, K))
    same(out, reference.tables(x, words), "squared distances and the oracle")
    [out] = agree(nearest.subspace_products, x, turned, empty(len(x), M, K))
    same(out, reference.tables(x, words, product=True), "inner products and the oracle")
    same(nearest.tables(x, turned, True), -out, "tables of products")


@core
@many
@given(vectors_and_codebooks())
def test_nearest_codewords(case):
    x, words = case
    M, _, dsub = words.shape
    index, distance = agree(nearest.nearest_codewords, x, nearest.transpose(words),
                            empty(len(x), M, dtype=np.int32), empty(len(x), M))
    for m in range(M):
        wanted = reference.nearest(x[:, m * dsub:(m + 1) * dsub], words[m])
        same((index[:, m].copy(), distance[:, m].copy()), wanted, f"block {m} and the oracle")


@core
@many
@given(strategies.tables_and_codes())
@example((np.full((1, 3, 2), 3e38, np.float32), np.zeros((4, 3), np.uint8), np.arange(4)))
@example((np.array([[[0.0, -0.0]]], np.float32), np.array([[0], [1], [0]], np.uint8), np.array([2, 0, 1])))
def test_scores(case):
    table, codes, _ = case
    with np.errstate(over="ignore"):
        [out] = agree(scan.adc_scores, table, codes, empty(len(table), len(codes)))
        same(out, reference.adc(table, codes), "scores and the oracle")
    assert not np.isnan(out).any()


def best(table, numbers, ids, k):
    """The k best of codes in blocks, as the twin and the compiled kernel agree on them."""
    blocks, whole = scan.to_blocks(scan.pack(numbers.astype(np.int32), table.shape[2])), scan._Whole(table)
    names, live = np.full(64 * len(blocks), -1), np.zeros(len(blocks), np.uint64)
    names[:len(ids)] = ids
    for i in range(len(ids)):
        live[i // 64] |= np.uint64(1 << i % 64)
    return agree(scan.adc_search, table, whole.terms, whole.bias, whole.probes, np.array([0, len(blocks)]),
                 whole.order, blocks, names.reshape(-1, 64), live, np.full(len(table), np.inf, np.float32), np.int64(0),
                 empty(len(table), k), empty(len(table), k, dtype=np.int64), empty(len(table), dtype=np.int64))[:2]


@core
@many
@given(strategies.tables_and_codes(n=(1, 40)), st.integers(1, 40))
@example((np.full((1, 2, 2), 3e38, np.float32), np.zeros((9, 2), np.uint8), np.arange(9)[::-1].copy()), 4)
@example((np.zeros((2, 1, 2), np.float32), np.eye(2, dtype=np.uint8)[:, :1], np.array([2**63 - 1, 0])), 2)
def test_topk(case, k):
    table, codes, ids = case
    k = min(k, len(codes))
    with np.errstate(over="ignore"):
        result = best(table, codes, ids, k)
        distances, found = reference.topk(reference.adc(table, codes), ids.tolist(), k)
    assert result[1].tolist() == found.tolist()
    assert result[0].tolist() == distances.tolist()  # by value: of two equal zeros either sign may come first


@core
@many
@given(strategies.tables_and_codes(n=(1, 40), m=(1, 9), K=(16, 16)), st.integers(1, 40))
def test_packed_codes_score_as_their_numbers(case, k):
    table, numbers, ids = case
    M, k = numbers.shape[1], min(k, len(numbers))
    codes = scan.pack(numbers.astype(np.int32), 16)
    same(codes, packed(numbers, 16), "packed and the oracle")
    assert codes.shape[1] == scan.code_size(M, 16)
    for m in range(M):
        same(scan.column(codes, m, M).copy(), numbers[:, m].copy(), f"number {m}")
    with np.errstate(over="ignore"):
        [out] = agree(scan.adc_scores, table, codes, empty(len(table), len(codes)))
        same(out, reference.adc(table, numbers), "scores of packed codes and the oracle")
        distances, found = best(table, numbers, ids, k)
        wanted = reference.topk(reference.adc(table, numbers), ids.tolist(), k)
    assert found.tolist() == wanted[1].tolist()
    assert distances.tolist() == wanted[0].tolist()


@core
@pytest.mark.parametrize(("M", "K"), [(1, 16), (2, 16), (5, 16), (4, 9), (3, 256)])
def test_codes_beyond_one_buffer(M, K):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, K, (3001, M))
    codes, table = scan.pack(numbers, K), rng.standard_normal((2, M, K)).astype(np.float32)
    ids = rng.permutation(3001)
    [scores] = agree(scan.adc_scores, table, codes, empty(2, 3001))
    same(scores, reference.adc(table, numbers), "scores and the oracle")
    for k in (1, 10, 1500, 3001):
        same(best(table, numbers, ids, k), reference.topk(scores, ids.tolist(), k), f"the first {k} and the oracle")


@core
def test_codes_that_do_not_fit_the_tables():
    table = np.zeros((1, 4, 16), np.float32)
    for bad, tables in ((np.zeros((3, 3), np.uint8), table), (np.zeros((3, 5), np.uint8), table),
                        (np.zeros((3, 2), np.uint8), table[:, :, :8])):
        with pytest.raises(InvalidInputError, match="do not fit"):
            scan.scores(tables, bad, 1)


@core
@many
@given(strategies.vectors(rows=(0, 60), kinds=strategies.EXTREME_KINDS), st.integers(1, 9), strategies.seeds)
def test_cluster_sums(x, K, seed):
    labels = np.random.default_rng(seed).integers(0, K, len(x)).astype(np.int32)
    sums, counts = agree(cluster.cluster_sums, x, labels, empty(K, x.shape[1], dtype=np.float64),
                         empty(K, dtype=np.int64))
    same((sums, counts), reference.cluster_sums(x, labels, K), "sums and the oracle")


@core
@few
@given(strategies.vectors(rows=(1, 40), kinds=strategies.EXTREME_KINDS), strategies.seeds, st.integers(1, 40))
def test_exact_neighbours(base, seed, k):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(base), 12)
    queries = np.concatenate([base[rows[:6]], base[rows[6:]] * np.float32(0.75), base[:1] * 0])
    k = min(k, len(base))
    distances, ids = exact.neighbors(base, queries, k, 2)
    same((distances, ids), reference.search(queries, base, range(len(base)), k), "neighbours and the oracle")


@core
@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23])
def test_exact_neighbours_where_products_underflow(scale):
    rng = np.random.default_rng(0)
    base, queries = ((rng.standard_normal((n, 4)) * scale).astype(np.float32) for n in (50, 30))
    same(exact.neighbors(base, queries, 3, 1), reference.search(queries, base, range(50), 3), "subnormal distances")


@core
def test_exact_kernels_are_all_tested():
    text = Path(__file__).read_text()
    for module in (nearest, scan, cluster):  # that of exact goes on from what it is given: test_exact.py
        for name, value in vars(module).items():
            if isinstance(value, _jit.Kernel):
                assert f"agree({module.__name__.rpartition('.')[2]}.{name}," in text, f"{name} has no test"
                assert list(inspect.signature(value.source).parameters) == list(
                    inspect.signature(value.twin).parameters), f"{name}: the twin has other parameters"
                assert len(value.signature.split()) == len(inspect.signature(value.source).parameters)


@core
@pytest.mark.parametrize("twin", [lambda x, out: np.add(x[::-1].cumsum()[-1:], 0, out=out),
                                  lambda x, out: np.copyto(out[:0], x[:0]),
                                  lambda x, out: (np.copyto(out, x.cumsum()[-1:]), x.fill(0))])
def test_agree_sees_a_difference(twin, monkeypatch):
    def total(x, out):
        out[0] = 0
        for value in x:
            out[0] += value
    monkeypatch.setattr("test_kernels.HAVE_NUMBA", True)
    kernel = _jit.kernel("f4:1 f4:1w", twin=twin, work=len)(total)
    kernel._compiled = total
    x = np.array([1e8, 1, -1e8, 1, 3], np.float32)
    with pytest.raises(AssertionError, match=r"compiled and twin|before and after"):
        agree(kernel, x, np.zeros(1, np.float32))
    kernel.twin = total
    agree(kernel, x, np.zeros(1, np.float32))


@core
def test_blocks_and_threads_are_invisible():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9000, 4)).astype(np.float32)
    words = rng.standard_normal((2, 16, 2)).astype(np.float32)
    turned = nearest.transpose(words)
    codes = nearest.assign(x, turned, 1)[0].astype(np.uint8)
    ids = rng.permutation(9000)
    table = nearest.tables(x[:30], turned, False)
    whole = scan.to_blocks(scan.pack(codes, 16))
    blocks = (whole, np.append(ids, np.full(64 * len(whole) - 9000, -1)).reshape(-1, 64),
              np.array([2**64 - 1] * (len(whole) - 1) + [2 ** (9000 % 64) - 1], np.uint64))
    alone = (*nearest.assign(x, turned, 1), nearest.tables(x, turned, True, 1), scan.scores(table, codes, 1),
             *scan.topk(table, *blocks, 50, 1), *exact.neighbors(x[:500], x[:100], 7, 1))
    same(alone[:2], tuple(np.concatenate([nearest.assign(x[i:i + 700], turned, 1)[j] for i in range(0, 9000, 700)])
                          for j in (0, 1)), "assignments in other blocks")
    wanted = [scan.smallest(row, ids, 50) for row in alone[3]]
    same(alone[4:6], tuple(np.stack(part) for part in zip(*wanted)), "top 50 and sorted scores")
    for threads in (*THREADS, None):
        other = (*nearest.assign(x, turned, threads), nearest.tables(x, turned, True, threads),
                 scan.scores(table, codes, threads), *scan.topk(table, *blocks, 50, threads),
                 *exact.neighbors(x[:500], x[:100], 7, threads))
        same(other, alone, f"{threads} threads")


@core
def test_cluster_sums_of_many_blocks():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((150_000, 2)) * 1e3).astype(np.float32)
    labels = rng.integers(0, 3, len(x)).astype(np.int32)
    alone = cluster.sums_by_cluster(x, labels, 4, 1)
    for threads in (2, 7, None):
        same(cluster.sums_by_cluster(x, labels, 4, threads), alone, f"{threads} threads")
    total, _ = reference.cluster_sums(x[:, :1], labels, 4)
    np.testing.assert_allclose(alone[0][:, :1], total, rtol=1e-9)
    assert alone[1].tolist() == np.bincount(labels, minlength=4).tolist()


# ------------------------------------------------------------------------------------- the lazy wrapper


def arguments(kernel, locked):
    """Arrays that ``kernel`` can be called with; inputs read-only where ``locked``."""
    made = {nearest.subspace_distances: ((2, 4), (2, 2, 3), (2, 2, 3)),
            nearest.subspace_products: ((2, 4), (2, 2, 3), (2, 2, 3)),
            nearest.nearest_codewords: ((2, 4), (2, 2, 3), (2, 2), (2, 2)),
            scan.adc_scores: ((2, 3, 4), (5, 3), (2, 5)),
            scan.adc_search: (
                (2, 3, 4), (0, 3, 4), (2, 1), (2, 1), (3,), (5,), (5, 3, 64), (5, 64), (5,), (2,), (), (2, 3), (2, 3),
                (2,)),
            cluster.cluster_sums: ((5, 2), (5,), (3, 2), (3,))}[kernel]
    types = {"f4": np.float32, "u1": np.uint8, "i4": np.int32, "i8": np.int64, "f8": np.float64, "u8": np.uint64}
    result = []
    for word, shape in zip(kernel.signature.split(), made, strict=True):
        array = np.ones(shape, types[word[:2]])
        array.flags.writeable = word.endswith("w") or not locked
        result.append(array if shape else 1)
    return result


EXACT = [nearest.subspace_distances, nearest.subspace_products, nearest.nearest_codewords, scan.adc_scores,
         scan.adc_search, cluster.cluster_sums]


@needs_numba
@pytest.mark.parametrize("kernel", EXACT, ids=lambda kernel: kernel.__name__)
def test_read_only_arrays_share_one_compilation(kernel, tmp_path):
    compiled = kernel.compiled()
    for locked in (False, True):
        compiled(*arguments(kernel, locked))
    path = tmp_path / "x"
    path.write_bytes(bytes(64))
    mapped = np.asarray(np.memmap(path, np.uint8, "r", shape=(5, 3)))
    if kernel is scan.adc_scores:
        table, _, *rest = arguments(kernel, True)
        compiled(table, mapped, *rest)
    assert len(compiled.signatures) == 1
    assert kernel.compiled() is compiled


class Told(_jit.Kernel):
    """A kernel that says which of the two ran."""

    def __init__(self, work=1):
        super().__init__(lambda log: None, lambda log: log.append("twin"), "", lambda log: work, ())

    def compiled(self):
        self._compiled = lambda log: log.append("compiled")
        return self._compiled

    def ran(self, times=1):
        log = []
        for _ in range(times):
            self(log)
        return log


@core
def test_jit_mode_decides(jit, monkeypatch):
    monkeypatch.setattr(_jit, "have_numba", lambda: True)
    jit("0")
    assert Told(work=10**12).ran(2) == ["twin"] * 2
    jit("1")
    assert Told().ran(2) == ["compiled"] * 2
    for mode in ("auto", "something else"):
        jit(mode)
        assert Told().ran(2) == ["twin"] * 2
        assert Told(work=_jit._WARM_WORK + 1).ran() == ["compiled"]
        assert Told(work=_jit._WARM_WORK // 2).ran(4) == ["twin", "twin", "compiled", "compiled"]
    monkeypatch.delenv("NPQUANT_JIT")
    assert _jit.jit_mode() == "auto"
    warm = Told(work=10**12)
    assert warm.ran() == ["compiled"]
    jit("0")
    assert warm.ran() == ["twin"]
    monkeypatch.setattr(_jit, "have_numba", lambda: False)
    for mode in ("1", "auto"):
        jit(mode)
        assert Told(work=10**12).ran() == ["twin"]


def python(code, *, folder=ROOT, first=None, **environment):
    """Run ``code`` in a fresh interpreter on the npquant of ``folder``; return (stdout, stderr)."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("NPQUANT_", "NUMBA_", "PYTHON", "COV_"))}
    path = os.pathsep.join(map(str, ([first] if first else []) + [folder]))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120,
                          cwd=folder, check=False,
                          env={**clean, "PYTHONPATH": path, **{k: str(v) for k, v in environment.items()}})
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


SMALL = """
import sys
import numpy as np
from npquant.kernels import cluster, nearest
x = np.arange(24, dtype=np.float32).reshape(12, 2)
labels = nearest.assign(x, nearest.transpose(x[None, :3]), None)[0][:, 0]
assert labels.tolist() == [0, 1] + [2] * 10
"""


@core
@pytest.mark.parametrize("mode", ["0", "auto", ""])
def test_a_small_call_does_not_import_numba(mode):
    python(SMALL + "assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules", NPQUANT_JIT=mode)


@core
def test_a_large_call_with_jit_off_does_not_import_numba():
    python("from npquant.kernels import _jit\n_jit._WARM_WORK = 1" + SMALL + "assert 'numba' not in sys.modules",
           NPQUANT_JIT="0")


@needs_numba
@core
def test_a_large_call_compiles():
    python("from npquant.kernels import _jit\n_jit._WARM_WORK = 1" + SMALL
           + "assert nearest.nearest_codewords._compiled and not nearest.subspace_products._compiled")


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import npquant
for found in pkgutil.walk_packages(npquant.__path__, "npquant."):
    if found.name.rpartition(".")[2] not in ("__main__", "distributed"):
        importlib.import_module(found.name)
from npquant.kernels import _jit
kernels = [v for m in list(sys.modules.values()) if m.__name__.startswith("npquant.kernels.")
           for v in vars(m).values() if isinstance(v, _jit.Kernel)]
assert len(kernels) >= 6
assert all(k._compiled is None for k in kernels)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numba", "llvmlite", "sklearn", "scipy", "matplotlib", "torch", "tqdm", "pandas"}, loaded
"""


@core
def test_nothing_is_compiled_at_import():
    python(IMPORT_EVERYTHING, NPQUANT_JIT="1")


@needs_numba
@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "NPQUANT_CACHE_DIR"])
def test_no_folder_to_cache_in(variable):
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc, where nobody can write")
    code = SMALL + "cluster.sums_by_cluster(x, labels, 3, 1)\nassert 'numba' in sys.modules"
    _, words = python(code, NPQUANT_JIT="1", **{variable: "/proc/x"})
    assert len(words.splitlines()) == 1, words
    assert "no writable folder" in words
    assert "NUMBA_CACHE_DIR" in words  # the way out


@needs_numba
def test_the_cache_is_used(tmp_path):
    code = SMALL + """
from npquant.kernels._jit import cache_folder
from numba import config
stats = nearest.nearest_codewords._compiled.stats
print(sum(stats.cache_hits.values()), config.CACHE_DIR == "", cache_folder().parent)
"""
    first, second = (python(code, NPQUANT_JIT="1", NPQUANT_CACHE_DIR=tmp_path)[0].split() for _ in range(2))
    assert first == ["0", "True", str(tmp_path / "npquant")]
    assert second == ["1", *first[1:]]
    assert list(tmp_path.glob("npquant/*/**/*.nbi"))


def append(path, text):
    path.write_text(path.read_text() + text)


@core
def test_an_edited_kernel_gets_a_folder_of_its_own(tmp_path):
    shutil.copytree(ROOT / "npquant", tmp_path / "npquant", ignore=shutil.ignore_patterns("__pycache__", "data"))
    code = "from npquant.kernels import _jit\nprint(_jit.__file__, _jit.cache_folder().name)"

    def name():
        file, folder = python(code, folder=tmp_path, NPQUANT_CACHE_DIR=tmp_path / "cache")[0].split()
        assert file.startswith(str(tmp_path))
        return folder
    first = name()
    assert name() == first
    append(tmp_path / "npquant" / "errors.py", "# not a kernel\n")
    assert name() == first
    append(tmp_path / "npquant" / "kernels" / "scan.py", "# edited\n")
    assert name() != first


@core
@pytest.mark.parametrize("error", ["ImportError('Numba needs NumPy 1.0 or less')", "SystemError('initialization')",
                                   "AttributeError('np has no attribute bool8')"])
def test_a_numba_that_cannot_be_imported(error, tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise {error}\n")
    code = SMALL + """
from npquant import ProductQuantizer
pq = ProductQuantizer(2, 1, random_state=0).fit(x)
print(pq.decode(pq.encode(x)).tobytes().hex())
"""
    out, words = python(code, first=tmp_path, NPQUANT_JIT="1")
    assert words == ""
    assert out == python(code, NPQUANT_JIT="0")[0]


# ------------------------------------------------------------------------------------- threads


@core
@given(st.integers(0, 60), st.integers(1, 20), st.sampled_from([None, 1, 2, 7, 100]))
@few
def test_blocks_come_in_order(n, block, threads):
    parts = _pool.run_blocks(lambda start, stop: range(start, stop), n, block, threads)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(len(part) == block for part in parts[:-1])
    assert not parts or 1 <= len(parts[-1]) <= block


@core
def test_a_slow_block_keeps_its_place():
    def work(start, stop):
        time.sleep(0.05 if start == 0 else 0)
        return start, threading.current_thread().name
    parts = _pool.run_blocks(work, 8, 1, 4)
    assert [start for start, _ in parts] == list(range(8))
    assert len({name for _, name in parts}) > 1
    assert _pool.run_blocks(lambda *_: threading.current_thread(), 3, 1, 1) == [threading.current_thread()] * 3


@core
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_exceptions_come_through(threads, error):
    begun = []

    def work(start, stop):
        begun.append(start)
        if start == 3:
            raise error("third")
        time.sleep(0.001)
        return start
    with pytest.raises(error, match="third"):
        _pool.run_blocks(work, 1000, 1, threads)
    assert len(begun) < 500  # the rest was dropped
    assert not [t for t in threading.enumerate() if t.name.startswith("npquant")]
    assert _pool.run_blocks(lambda start, stop: start, 3, 1, threads) == [0, 1, 2]


@core
def test_blocks_within_blocks_within_threads():
    def inner(start, stop):
        return sum(_pool.run_blocks(lambda a, b: a, 10, 1, 3)) + start
    results = []
    workers = [threading.Thread(target=lambda: results.append(_pool.run_blocks(inner, 6, 1, 3))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert results == [[45 + i for i in range(6)]] * 4


@core
def test_how_many_threads(monkeypatch):
    monkeypatch.setenv("NPQUANT_NUM_THREADS", "3")
    assert _pool.available_threads() == 3
    for word in ("", "0", "-2", "many", "1.5"):
        monkeypatch.setenv("NPQUANT_NUM_THREADS", word)
        assert 1 <= _pool.available_threads() <= (os.cpu_count() or 1)


FORK = """
import os, signal, sys, threading, warnings
import numpy as np
from npquant.kernels import _jit, _pool, nearest
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, that other threads are alive
x = np.random.default_rng(0).standard_normal((9000, 4)).astype(np.float32)
words = nearest.transpose(x[None, :8])
wanted = nearest.assign(x, words, 4)[0]
held, done = threading.Event(), threading.Event()
def hold():  # another thread is compiling while we fork
    with _jit._lock:
        held.set()
        done.wait(60)
holder = threading.Thread(target=hold)
holder.start()
held.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)  # rather than wait for ever
    ok = (nearest.assign(x, words, 4)[0] == wanted).all()
    ok &= _pool.run_blocks(lambda start, stop: start, 9, 2, 3) == [0, 2, 4, 6, 8]
    with _jit._lock:
        os._exit(0 if ok else 1)
status = os.waitpid(child, 0)[1]
done.set()
holder.join()
assert status == 0, status
"""


@core
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork():
    python(FORK)


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork_compiled():
    python(FORK, NPQUANT_JIT="1")
