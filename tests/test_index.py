"""Indexes: what they hold (the store), what happens to it in any order, files, threads, processes, names."""

import copy
import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from functools import cache, partial

import hypothesis.strategies as st
import laws
import numpy as np
import pytest
import reference
import test_laws
from hypothesis import example, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from laws import refuses, same

import npquant as nq
from npquant import persist
from npquant._base import clone
from npquant.errors import FormatError, InvalidInputError, NotFittedError, NpquantError
from npquant.index._store import Store, writing
from npquant.index.base import alike

core = pytest.mark.core
# Codecs here are trained on vectors as they are, also where an index of them normalises.
pytestmark = pytest.mark.filterwarnings("ignore:the codes tell less:npquant.NpquantWarning")
D = 4


@cache
def data():
    x = np.random.default_rng(0).standard_normal((400, D)).astype(np.float32)
    x[50:60] = x[0]
    x[60] = 0
    x.flags.writeable = False
    return x


@cache
def codec(kind="tables"):
    if kind == "packed":
        return nq.ProductQuantizer(2, 4, random_state=0).fit(data())
    if kind == "bytes":
        return nq.ProductQuantizer(2, 8, n_iter=2, random_state=0).fit(data())
    cls = laws.ByDecoding if kind == "decoding" else nq.ProductQuantizer
    return cls(2, 3, random_state=0).fit(data())


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setattr(persist, "KINDS", {**persist.KINDS, "ByDecoding": "laws:ByDecoding"})


def filled(n=300, kind="tables", metric="l2"):
    index = nq.FlatIndex(codec(kind), metric)
    index.add(data()[:n])
    return index


# ------------------------------------------------------------------------------------- the store


def random_codes(rng, n, s=3):
    return rng.integers(0, 256, (n, s), dtype=np.uint8)


def content(store):
    """What a store holds: {list: [(id, code), …]} in order."""
    lists = {}
    start, order = store.lists()
    rows = store.blocks.transpose(0, 2, 1) if store.columns else store.blocks
    for which in range(store.nlist):
        for block in order[start[which]:start[which + 1]]:
            for place in range(64):
                if int(store.live[block]) >> place & 1:
                    lists.setdefault(which, []).append((int(store.ids[block, place]), rows[block, place].tobytes()))
    return lists


@core
@settings(max_examples=40)
@given(st.booleans(), st.sampled_from([1, 2, 5]),
       st.lists(st.tuples(st.sampled_from(["add", "remove", "compact", "save", "fork"]), st.integers(0, 200)),
                max_size=12), st.integers(0, 9))
@example(True, 1, [("add", 64), ("add", 64), ("remove", 64), ("save", 0), ("add", 1), ("add", 64)], 0)
@example(True, 3, [("add", 200), ("remove", 150), ("save", 0), ("add", 100), ("fork", 70), ("add", 3)], 1)
def test_a_store_is_lists_of_codes_and_never_changes(columns, nlist, steps, seed):
    rng, ids = np.random.default_rng(seed), iter(np.random.default_rng(seed).permutation(3000).tolist())
    store, wanted, past = Store.empty(3, columns, nlist), {}, []
    for step, n in steps:
        past.append((store, copy.deepcopy(wanted)))
        if step == "add" or step == "fork":
            codes, names, lists = random_codes(rng, n), np.array([next(ids) for _ in range(n)], np.int64), rng.integers(
                0, nlist, n)
            if step == "fork":  # another store from the same one, which must not disturb this
                store.added(codes[::-1], names[::-1].copy(), lists)
            store = store.added(codes, names, lists)
            for which, name, code in zip(lists.tolist(), names.tolist(), codes):
                wanted.setdefault(which, []).append((name, code.tobytes()))
        elif step == "remove" and store.count:
            slots = rng.permutation(store.slots())[:n]
            gone = set(store.ids.reshape(-1)[slots].tolist())
            wanted = {which: [pair for pair in pairs if pair[0] not in gone] for which, pairs in wanted.items()}
            store = store.without(slots).tidied()
        elif step == "compact":
            store = store.compacted()
            assert store.blocks.size == 3 * 64 * sum(-(-len(pairs) // 64) for pairs in wanted.values())
        elif step == "save":
            store = Store.from_state(copy.deepcopy(store.state()), 3, columns, nlist)
        wanted = {which: pairs for which, pairs in wanted.items() if pairs}
    for was, held in [*past, (store, wanted)]:
        assert content(was) == {which: pairs for which, pairs in held.items() if pairs}
    pairs = [pair for which in sorted(wanted) for pair in wanted[which]]
    assert store.names().tolist() == [name for name, _ in pairs]
    assert store.count == len(pairs)
    assert [code.tobytes() for code in store.codes(store.slots())] == [code for _, code in pairs]
    assert store.lists_of(store.slots()).tolist() == [which for which in sorted(wanted) for _ in wanted[which]]
    asked = np.array([*(name for name, _ in pairs[::2]), 10**6, *(name for name, _ in pairs[:3])], np.int64)
    by_name = dict(zip(store.names().tolist(), store.slots().tolist()))
    assert store.find(asked).tolist() == [by_name.get(name, -1) for name in asked.tolist()]
    mask = rng.random(store.count) < 0.5
    for live in (store.allowed(mask=mask), store.allowed(store.slots()[mask])):
        assert live.tolist() == store.without(store.slots()[~mask]).live.tolist()


@core
@pytest.mark.parametrize("columns", [True, False])
def test_adding_copies_little_and_leaves_little_room(columns):
    rng, store, copies, last = np.random.default_rng(0), Store.empty(8, columns), 0, None
    for n in range(0, 30_000, 100):
        store = store.added(random_codes(rng, 100, 8), np.arange(n, n + 100))
        copies += last is not store.blocks.base
        last = store.blocks.base
        if n >= 10_000:
            assert store.nbytes <= 1.1 * 16 * store.count
    assert copies < 120
    for _ in range(60):
        store = store.without(store.slots()[rng.permutation(store.count)[:100]]).tidied()
        assert store.nbytes <= 1.1 * 16 * store.count


@core
def test_ids_in_any_order_are_found():
    names = np.random.default_rng(0).permutation(10**6)[:150_000].astype(np.int64)
    store = Store.empty(1, True).added(np.zeros((150_000, 1), np.uint8), names)
    asked = np.concatenate([names[::7], [10**6 + 5], names[:5], names[:1]])
    assert store.find(asked).tolist() == [*range(0, 150_000, 7), -1, *range(5), 0]
    assert store.find(names[-1:]).tolist() == [149_999]
    again = store.without(np.array([149_999])).added(np.zeros((1, 1), np.uint8), names[-1:])
    assert again.find(names[-1:]).tolist() == [150_000]


# ------------------------------------------------------------------------------------- anything in any order


class Life(RuleBasedStateMachine):
    """An index and a dict of decoded vectors."""

    @initialize(kind=st.sampled_from(["tables", "packed", "decoding"]), metric=st.sampled_from(["l2", "ip", "cosine"]))
    def begin(self, kind, metric):
        self.index, self.held, self.next, self.loaded = nq.FlatIndex(codec(kind), metric), {}, 0, None

    def vectors(self, rows):
        return codec_decoded(self.index, data()[rows])

    @rule(rows=st.lists(st.integers(0, 399), max_size=90))
    def add(self, rows):
        ids = self.index.add(data()[rows])
        assert ids.tolist() == list(range(self.next, self.next + len(rows)))
        self.held.update(zip(ids.tolist(), self.vectors(rows)))
        self.next += len(rows)

    @rule(rows=st.lists(st.integers(0, 399), min_size=1, max_size=5), seed=st.integers(0, 99))
    def add_ids(self, rows, seed):
        ids = np.random.default_rng(seed).permutation(500)[:len(rows)].tolist()
        if set(ids) & set(self.held):
            refuses(InvalidInputError, self.index.add, data()[rows], ids)
            return
        self.index.add(data()[rows], ids)
        self.held.update(zip(ids, self.vectors(rows)))
        self.next = max(self.next, *(i + 1 for i in ids))

    @precondition(lambda self: self.held)
    @rule(part=st.floats(0, 1), seed=st.integers(0, 99))
    def remove(self, part, seed):
        ids = [i for i, p in zip(list(self.held), np.random.default_rng(seed).random(len(self.held))) if p < part]
        refuses(InvalidInputError, self.index.remove, [*ids, 10**9])
        assert self.index.remove(ids) == len(ids)
        for i in ids:
            del self.held[i]

    @precondition(lambda self: self.held)
    @rule(rows=st.lists(st.integers(0, 399), min_size=1, max_size=5))
    def update(self, rows):
        ids = list(self.held)[-len(rows):]
        rows = rows[:len(ids)]
        self.index.update(ids, data()[rows])
        for i in ids:
            del self.held[i]
        self.held.update(zip(ids, self.vectors(rows)))

    @rule(rows=st.lists(st.integers(0, 399), max_size=70), gone=st.booleans())
    def merge(self, rows, gone):
        other = nq.FlatIndex(self.index.codec, self.index.metric)
        ids = other.add(data()[rows], np.arange(self.next, self.next + len(rows))[::-1].copy())
        if gone and len(rows):
            other.remove(ids[:1])
        assert self.index.merge(other) == other.ntotal
        self.held.update([(i, x) for i, x in zip(ids.tolist(), self.vectors(rows)) if i in other])
        self.next += len(rows)

    @rule()
    def compact(self):
        self.index.compact()

    @rule(mmap=st.booleans())
    def file(self, mmap):
        path = os.path.join(FOLDER, "life.npq")
        nq.save(self.index, path)
        self.index = nq.load(path, mmap=mmap)

    @rule(row=st.integers(0, 399), k=st.sampled_from([1, 5, 40, 500]), part=st.sampled_from([None, 0, 0.3, 1]),
          by_ids=st.booleans())
    def search(self, row, k, part, by_ids):
        ids, allow = list(self.held), None
        if part is not None:
            mask = np.random.default_rng(row).random(len(ids)) < part
            ids = [i for i, there in zip(ids, mask) if there]
            allow = ids[::-1] if by_ids else mask
        q = data()[row:row + 2]
        wanted = answer(self.index, q, {i: self.held[i] for i in ids}, k)
        same(tuple(self.index.search(q, k, allow=allow)), wanted, "search and oracle")
        if wanted[1][0, -1] >= 0:
            bound = wanted[0][:, -1]
            result = self.index.range_search(q, bound, allow=allow)
            every = answer(self.index, q, {i: self.held[i] for i in ids}, len(ids))
            inside = every[0] <= bound[:, None] if self.index.metric == "l2" else every[0] >= bound[:, None]
            same((result.distances, result.ids), (every[0][inside], every[1][inside]), "range and oracle")

    @invariant()
    def holds(self):
        if hasattr(self, "index"):
            assert self.index.ids.tolist() == list(self.held)
            assert len(self.index) == len(self.held)
            if self.held:
                some = list(self.held)[::3]
                same(self.index.reconstruct(some), np.stack([self.held[i] for i in some]), "vectors")


def codec_decoded(index, x):
    return index.codec.decode(index.codec.encode(x, metric=index.metric)) if len(x) else x


def answer(index, q, held, k):
    q = reference.normalized(q) if index.metric == "cosine" else q
    vectors = np.stack(list(held.values())) if held else np.empty((0, D), np.float32)
    return reference.search(q, vectors, list(held), k, index.metric, laws.blocks_of(index.codec, q))


FOLDER = None


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    global FOLDER
    FOLDER = str(tmp_path_factory.mktemp("life"))


Life.TestCase.settings = settings(max_examples=20, stateful_step_count=20)
TestLife = Life.TestCase


# ------------------------------------------------------------------------------------- every score model


@pytest.mark.parametrize("name", test_laws.CODECS)
def test_an_index_gives_the_scores_of_its_codec(name, tmp_path, monkeypatch):
    monkeypatch.setattr(persist, "KINDS", {**persist.KINDS, "ByDecoding": "laws:ByDecoding"})
    x, codec, rng = test_laws.data(), test_laws.fitted(name), np.random.default_rng(0)
    for metric in laws.METRICS:
        index = nq.FlatIndex(codec, metric)
        names = laws.some_ids(len(x))
        index.add(x[:100], names[:100])
        index.add(x[100:], names[100:])
        index.remove(names[50:60])
        scores = codec.scorer(x[:7], metric).scores(codec.encode(x, metric=metric))
        wanted = reference.topk(np.delete(scores, np.s_[50:60], axis=1), np.delete(names, np.s_[50:60]), 30)
        sign = np.float32(1 if metric == "l2" else -1)
        same(tuple(index.search(x[:7], 30)), (sign * wanted[0], wanted[1]), metric)
        mask = rng.random(index.ntotal) < 0.3
        kept = np.isin(names, index.ids[mask])
        wanted = reference.topk(scores[:, kept], names[kept], kept.sum())
        same(tuple(index.search(x[:7], kept.sum(), allow=mask)), (sign * wanted[0], wanted[1]), f"{metric}, allowed")
        radius = wanted[0][:, 9]
        inside = wanted[0] <= radius[:, None]
        result = index.range_search(x[:7], sign * radius, allow=index.ids[mask])
        same((result.distances, result.ids), (sign * wanted[0][inside], wanted[1][inside]), f"{metric}, range")
    nq.save(index, tmp_path / "i")
    for mmap in (False, True):
        loaded = nq.load(tmp_path / "i", mmap=mmap)
        same(tuple(loaded.search(x[:7], 30)), tuple(index.search(x[:7], 30)), f"after a file, mmap={mmap}")


# ------------------------------------------------------------------------------------- files and memory


@core
@pytest.mark.parametrize("kind", ["tables", "decoding"])
def test_a_mapped_index_takes_no_memory_until_it_changes(kind, tmp_path):
    n, rng = 1_000_000, np.random.default_rng(0)
    index = nq.FlatIndex(codec("bytes" if kind == "tables" else kind))
    index._append([(rng.integers(0, 256 if kind == "tables" else 8, (n, 2), dtype=np.uint8), None)], np.arange(n))
    nq.save(index, tmp_path / "i")
    before = hashlib.sha256((tmp_path / "i").read_bytes()).hexdigest()
    nq.load(tmp_path / "i", mmap=True).search(data()[:1], 3, threads=1)
    tracemalloc.start()
    try:
        loaded = nq.load(tmp_path / "i", mmap=True)
        held, peak = tracemalloc.get_traced_memory()
        assert held < 50_000, tracemalloc.take_snapshot().statistics("traceback")[:2]
        assert peak < 2_000_000  # which bits are set; some thousands of codes, where not all bytes are codes
        tracemalloc.reset_peak()
        result = loaded.search(data()[:1], 3, threads=1)
        if kind == "tables":
            assert tracemalloc.get_traced_memory()[1] < 2_500_000  # there are 10 MB
    finally:
        tracemalloc.stop()
    same(tuple(result), tuple(index.search(data()[:1], 3)), "mapped and in memory")
    assert not loaded._store.blocks.flags.writeable
    loaded.add(data()[:1])
    loaded.remove([7])
    assert loaded.ntotal == n
    assert hashlib.sha256((tmp_path / "i").read_bytes()).hexdigest() == before


def small_file(path, kind):
    index = filled(70, kind)
    index.remove([3, 5])
    nq.save(index, path)
    return index, path.read_bytes()


def endure(*calls):
    """What is asked of a damaged index may fail, in words."""
    for call in calls:
        try:
            call()
        except NpquantError as error:
            if not str(error):
                raise AssertionError("no word") from error


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["tables", "decoding"])
def test_a_broken_file_is_told(kind, mmap, tmp_path):
    path, q = tmp_path / "i", data()[:3]
    index, good = small_file(path, kind)
    wanted = tuple(index.search(q, 80))
    same(tuple(nq.load(path, mmap=mmap).search(q, 80)), wanted, "the file as it was")
    for length in range(0, len(good), 11):  # tests of files try every length
        path.write_bytes(good[:length])
        refuses(FormatError, nq.load, path, mmap=mmap)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for at in range(int(mmap), len(good), 9):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            loaded = nq.load(path, mmap=mmap)
        except FormatError:
            continue
        finally:
            peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < 2 * len(good) + 100_000
        if mmap:
            endure(partial(loaded.search, q, 80), partial(loaded.range_search, q, 3.0), partial(loaded.add, q),
                   partial(loaded.reconstruct, loaded.ids[loaded.ids >= 0]), loaded.compact)
        else:  # checksums: only what stands between arrays may differ
            same(tuple(loaded.search(q, 80)), wanted, f"byte {at} flipped")
    tracemalloc.stop()


@core
@pytest.mark.parametrize("mmap", [False, True])
def test_codes_beyond_the_codebooks_are_refused(mmap, tmp_path):
    index = filled(70)  # 8 codewords
    index._store.blocks[0, 0, 3] = 200
    nq.save(index, tmp_path / "i")
    if not mmap:
        return refuses(FormatError, nq.load, tmp_path / "i")
    loaded = nq.load(tmp_path / "i", mmap=True)  # which reads no codes; who reads them is told, each time
    for _ in range(2):
        refuses(FormatError, loaded.search, data()[:1], 3)
        refuses(FormatError, loaded.range_search, data()[:1], 3.0)
        refuses(FormatError, loaded.reconstruct, [3])
        refuses(FormatError, loaded.add, data()[:1])
        refuses(FormatError, loaded.compact)
        refuses(FormatError, filled(0).merge, loaded)
        refuses(FormatError, pickle.loads(pickle.dumps(loaded)).search, data()[:1], 3)
    assert loaded.reconstruct([4]).shape == (1, D)
    loaded.remove([3])
    refuses(FormatError, loaded.search, data()[:1], 3)  # look-ups are made at dead places too
    return None


@core
@pytest.mark.parametrize("change", [
    lambda s: s["store"].update(ids=s["store"]["ids"] * 0), lambda s: s["store"].update(ids=s["store"]["ids"] - 9),
    lambda s: s["store"].update(live=s["store"]["live"][:-1]), lambda s: s["store"].update(blocks=None),
    lambda s: s["store"].update(blocks=s["store"]["blocks"][:-1]), lambda s: s["store"].pop("owner"),
    lambda s: s["store"].update(blocks=np.swapaxes(s["store"]["blocks"], 1, 2).copy()),
    lambda s: s["store"].update(live=s["store"]["live"].astype(np.int64)), lambda s: s.update(next_id=3),
    lambda s: s["store"].update(owner=np.zeros(5, np.int32)), lambda s: s.update(next_id=2**63 + 1),
    lambda s: s.update(metric="l3"),
    lambda s: s["store"].update(vectors=299), lambda s: s.update(store=[]), lambda s: s.update(codec=clone(codec())),
])
def test_an_impossible_state_is_refused(change, tmp_path, monkeypatch):
    index = filled(300)
    state = index._get_state()
    change(state)
    monkeypatch.setattr(nq.FlatIndex, "_get_state", lambda self: state)
    nq.save(index, tmp_path / "i")
    refuses(FormatError, nq.load, tmp_path / "i")


SEARCH = """
import hashlib, sys
import numpy as np, npquant as nq
index = nq.load(sys.argv[1], mmap=True)
q = np.load(sys.argv[2])
digest = hashlib.sha256()
for _ in range(5):
    for array in (*index.search(q, 20), *index.range_search(q, 1.5)):
        digest.update(array.tobytes())
index.remove(index.ids[:10])
print(digest.hexdigest(), index.ntotal)
"""


def test_processes_share_a_file(tmp_path):
    index = filled(400)
    nq.save(index, tmp_path / "i")
    np.save(tmp_path / "q.npy", data()[:20])
    command = [sys.executable, "-c", SEARCH, str(tmp_path / "i"), str(tmp_path / "q.npy")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    words = [process.communicate(timeout=100)[0] for process in running]
    digest = hashlib.sha256()
    for _ in range(5):
        for array in (*index.search(data()[:20], 20), *index.range_search(data()[:20], 1.5)):
            digest.update(array.tobytes())
    assert words == [f"{digest.hexdigest()} 390\n"] * 2


def test_a_spawned_process_is_handed_an_index():
    index = filled()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(index.search, (data()[:9], 5)).get(100)
        other = pool.apply_async(copy.deepcopy, (index,)).get(100)
    same(tuple(result), tuple(index.search(data()[:9], 5)), "in another process and here")
    for one in (other, copy.deepcopy(index)):
        one.add(data()[:100])
        one.remove([0])
        assert (one.ntotal, index.ntotal) == (399, 300)
    same(laws.seen(index, data()[:3]), laws.seen(filled(), data()[:3]), "the one that was copied")


# ------------------------------------------------------------------------------------- threads


@core
def test_threads_search_while_others_change_the_index():
    index, q, step = nq.FlatIndex(codec()), data()[:3], 40
    wanted = []
    for n in range(0, 401, step):
        wanted.append(tuple(filled(n).search(q, 30)) if n else None)
    answers = {tuple(array.tobytes() for array in answer) for answer in wanted if answer}
    index.add(data()[:step])
    stop, wrong, seen = threading.Event(), [], set()

    def work():
        while not stop.is_set():
            key = tuple(array.tobytes() for array in index.search(q, 30, threads=1))
            seen.add(key)
            if key not in answers:
                wrong.append(key)
    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for rounds in range(200):
        if rounds >= 5 and len(seen) > 1:
            break
        for n in range(step, 400, step):
            index.add(data()[n:n + step], np.arange(n, n + step))
        index.remove(np.arange(step, 400))
        index.add(data()[step:2 * step], np.arange(step, 2 * step))
        index.remove(np.arange(step, 2 * step))
        index.compact()
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong
    assert len(seen) > 1


@core
def test_threads_may_add_at_once():
    index = nq.FlatIndex(codec())
    index.add(data()[:1])
    x = data()

    def work(part):
        for n in range(20):
            index.add(x[part * 40 + n:part * 40 + n + 1], [1000 * part + n + 1])
            if n % 3 == 0:
                index.remove([1000 * part + n + 1])
    workers = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ids = [1000 * part + n + 1 for part in range(8) for n in range(20) if n % 3]
    assert sorted(index.ids.tolist()) == [0, *ids]
    rows = [part * 40 + n for part in range(8) for n in range(20) if n % 3]
    same(index.reconstruct(ids), codec_decoded(index, x[rows]), "what was added")


@core
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_searches_and_adds_though_a_thread_was_writing():
    index, ready, done = filled(), threading.Event(), threading.Event()

    def hold():
        with writing():
            ready.set()
            done.wait(20)
    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait(20)
    wanted = index.search(data()[:40], 5).ids.tobytes()
    child = os.fork()
    if not child:
        status = 1
        try:
            if index.search(data()[:40], 5, threads=2).ids.tobytes() == wanted:
                index.add(data()[:1])
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert status == 0


def test_an_interrupted_addition_leaves_the_index_as_it_was(monkeypatch):
    index = filled(100)
    index.add(data()[100:101])  # there is room now
    before = laws.seen(index, data()[:3])
    written = nq.index._store._write

    def interrupted(blocks, columns, slot, codes):
        written(blocks, columns, slot, codes[:len(codes) // 2])
        raise KeyboardInterrupt
    monkeypatch.setattr(nq.index._store, "_write", interrupted)
    for n in (1, 5, 200):
        with pytest.raises(KeyboardInterrupt):
            index.add(data()[:n])
        same(laws.seen(index, data()[:3]), before, "after an interruption")
    monkeypatch.undo()
    index.add(data()[101:300])
    same(laws.seen(index, data()[:3]), laws.seen(filled(300), data()[:3]), "and going on")


# ------------------------------------------------------------------------------------- what is added, and asked


@core
def test_streams_and_memmaps_are_added(tmp_path):
    x, wanted = data(), laws.seen(filled(400), data()[:3])
    np.save(tmp_path / "x.npy", x)
    for given_ in (iter([x[:7], x[7:7], x[7:]]), [x[:100], x[100:]], np.load(tmp_path / "x.npy", mmap_mode="r")):
        index = nq.FlatIndex(codec())
        assert index.add(given_).tolist() == list(range(400))
        same(laws.seen(index, x[:3]), wanted, "added in blocks")
    index = nq.FlatIndex(codec())
    index.add(iter([x[:7], x[7:]]), np.arange(400))
    for bad in (iter([x[:5], x[:5] * np.nan]), iter([x[:5], x[:5, :2]])):
        refuses(InvalidInputError, index.add, bad)
        same(laws.seen(index, x[:3]), wanted, "after a stream that broke off")


@core
def test_what_is_in_the_index():
    index = filled(5)
    assert [i in index for i in (0, 4, 5, -1, 2**70, "0", 1.0, True, np.int64(3))] == [
        True, True, False, False, False, False, False, False, True]
    assert 3 not in nq.FlatIndex(codec())


@core
def test_before_anything_was_added():
    index = nq.FlatIndex(codec())
    assert index.reconstruct([]).shape == (0, D)
    refuses(InvalidInputError, index.reconstruct, [0])
    refuses(InvalidInputError, index.remove, [0])
    refuses(InvalidInputError, index.update, [0], data()[:1])
    unfitted = nq.FlatIndex(nq.ProductQuantizer(2))
    for call in (lambda: unfitted.add(data()), lambda: unfitted.search(data()),
                 lambda: unfitted.range_search(data(), 1), lambda: unfitted.reconstruct([]),
                 lambda: unfitted.update([], data()[:0])):
        refuses(NotFittedError, call)
    unfitted.codec.fit(data())  # the codec that was given, not a copy that knows nothing of it
    unfitted.add(data()[:3])


def test_models_are_alike_by_content():
    a, b = codec(), nq.ProductQuantizer(2, 3, random_state=1).fit(data())
    same_words = nq.ProductQuantizer(2, 3, random_state=5).fit(data())
    same_words.codebooks_ = a.codebooks_.copy()
    assert alike(a, same_words)
    assert alike(copy.deepcopy(a), a)
    assert not alike(a, b)
    assert not alike(a, codec("decoding"))
    assert not alike(a, clone(a))
    pre = nq.PreTransformed(nq.PCA(2), nq.ProductQuantizer(1, 2, random_state=0)).fit(data())
    other = copy.deepcopy(pre)
    assert alike(pre, other)
    other.transform_.mean_ = other.transform_.mean_ + 1
    assert not alike(pre, other)
    index, theirs = nq.FlatIndex(a), nq.FlatIndex(b)
    theirs.add(data()[:3])
    refuses(InvalidInputError, index.merge, theirs)


# ------------------------------------------------------------------------------------- names


def named(n=100, start=0):
    index = nq.IdMap(nq.FlatIndex(codec()))
    index.add(data()[start:start + n], [f"v{i} ü" for i in range(start, start + n)])
    return index


def answers(index, k=12):
    """What an IdMap says, with numbers in the places of names."""
    number = np.vectorize(lambda name: -1 if name is None else int(name.split()[0][1:]), otypes=[np.int64])
    distances, ids = index.search(data()[:5], k)
    lims, near, names = index.range_search(data()[:5], 1.0)
    held = sorted(index.ids.tolist())
    return (distances, number(ids), lims, near, number(names), number(np.array(held, object)) if held else held,
            index.reconstruct(held))


@core
def test_names_stand_for_ids(tmp_path):
    index, plain = named(), nq.FlatIndex(codec())
    plain.add(data()[:100])
    distances, ids = index.search(data()[:5], 120)
    same(distances, plain.search(data()[:5], 120).distances, "distances")
    wanted = [[f"v{i} ü" if i >= 0 else None for i in row] for row in plain.search(data()[:5], 120).ids.tolist()]
    assert ids.tolist() == wanted
    assert ids.dtype == object
    assert ("v7 ü" in index, "v7" in index, 7 in index) == (True, False, False)
    assert index.remove(["v7 ü", "v8 ü", "v7 ü"]) == 2
    assert len(index) == index.ntotal == 98
    assert "v7 ü" not in index
    index.add(data()[7:9], np.array(["v7 ü", "v8 ü"]))
    index.update(["v3 ü"], data()[200:201])
    same(index.reconstruct(["v3 ü"]), codec_decoded(index.index, data()[200:201]), "updated")
    index.update(["v3 ü"], data()[3:4])
    mask = np.arange(100) % 2 == 0
    names = index.ids
    for allow in (names[mask].tolist(), names[mask], mask, mask.tolist()):
        assert set(index.search(data()[:5], 50, allow=allow).ids.ravel()) == set(names[mask])
    before = answers(index)
    for mmap in (False, True):
        nq.save(index, tmp_path / "i")
        loaded = nq.load(tmp_path / "i", mmap=mmap)
        assert loaded.ids.tolist() == names.tolist()
        same(answers(loaded), before, "after a file")
        loaded.add(data()[:1], ["v500"])
        loaded.remove(["v500"])
        same(answers(loaded), before, "after a file and a change")
        nq.save(loaded, tmp_path / "j")
        same(answers(nq.load(tmp_path / "j")), before, "after two files")
        del loaded
    other = named(50, 100)
    assert index.merge(other) == 50
    whole = named()
    whole.remove(["v7 ü", "v8 ü"])  # of equal scores, what was added first comes first
    whole.add(data()[7:9], ["v7 ü", "v8 ü"])
    whole.add(data()[100:150], [f"v{i} ü" for i in range(100, 150)])
    same(answers(index), answers(whole), "merged")
    same(answers(other), answers(named(50, 100)), "the one that was merged")
    index.remove([f"v{i} ü" for i in range(100, 150)])
    index.compact()
    same(answers(index), before, "compacted")
    assert not index._names._more


@core
def test_wrong_names_are_told():
    index, before = named(), answers(named())
    for x, names in ((data()[:2], ["a", "a"]), (data()[:2], ["a", "v3 ü"]), (data()[:2], ["a"]), (data()[:2], "ab"),
                     (data()[:2], [1, 2]), (data()[:2], ["a", None]), (data()[:2] * np.nan, ["a", "b"]),
                     (data()[:1], ["\ud800"]), (data()[:2], None), (data()[:2, :2], ["a", "b"])):
        refuses(InvalidInputError, index.add, x, names)
        same(answers(index), before, f"after {names!r}")
    for call in (lambda: index.remove(["v3 ü", "?"]), lambda: index.reconstruct(["?"]), lambda: index.remove("v3 ü"),
                 lambda: index.update(["v1 ü", "v1 ü"], data()[:2]), lambda: index.update(["?"], data()[:1]),
                 lambda: index.search(data()[:1], 3, allow=["?"]), lambda: index.search(data()[:1], 3, allow=[3]),
                 lambda: index.merge(named(3)), lambda: index.merge(index), lambda: index.merge(index.index),
                 lambda: nq.IdMap(filled(3)), lambda: nq.IdMap(codec()), lambda: index.search(data()[:1], 0)):
        refuses(InvalidInputError, call)
        same(answers(index), before, "after a wrong call")
    empty = nq.IdMap(nq.FlatIndex(codec()))
    assert empty.search(data()[:1], 2).ids.tolist() == [[None, None]]
    assert empty.ids.tolist() == []


def test_names_of_many_removals_are_forgotten():
    index = named(10)
    for i in range(30):
        index.add(data(), [f"x{i} {j}" for j in range(400)])
        index.remove([f"x{i} {j}" for j in range(400)])
    assert len(index._names._more) + len(index._names.ids) < 2000
    same(answers(index, 5), answers(named(10), 5), "after many came and went")


def test_broken_names_are_told(tmp_path):
    path = tmp_path / "i"
    index = named(20)
    nq.save(index, path)
    good, before = path.read_bytes(), answers(index)
    for length in range(0, len(good), 41):
        path.write_bytes(good[:length])
        refuses(FormatError, nq.load, path, mmap=True)
    for at in range(0, len(good), 11):
        bad = bytearray(good)
        bad[at] ^= 255
        path.write_bytes(bad)
        for mmap in (False, True):
            try:
                loaded = nq.load(path, mmap=mmap)
            except FormatError:
                continue
            if not mmap:
                same(answers(loaded), before, f"byte {at}")
                continue
            endure(partial(loaded.search, data()[:2], 30), partial(getattr, loaded, "ids"),
                   partial(loaded.remove, ["v3 ü"]), partial(loaded.add, data()[:1], ["new"]))


@core
def test_names_are_there_while_they_come_and_go():
    index, stop, wrong = named(50), threading.Event(), []

    def work():
        while not stop.is_set():
            result = index.search(data()[:3], 30)
            if any(name is None for name in result.ids.ravel()) or not np.isfinite(result.distances).all():
                wrong.append(result)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for i in range(15):
        index.add(data(), [f"x{i} {j}" for j in range(400)])
        index.remove([f"x{i} {j}" for j in range(400)])
        if i % 4 == 0:
            index.compact()
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong


@core
@pytest.mark.parametrize("codec", ["PQ8", 64, nq.KMeans(4), nq.ProductQuantizer, None], ids=repr)
def test_an_index_wants_a_codec(codec):
    with pytest.raises(InvalidInputError, match="wanted a codec"):
        nq.FlatIndex(codec)


@core
def test_rows_of_several_lengths_are_no_ids():
    index = nq.FlatIndex(nq.FlatQuantizer().fit(data()))
    index.add(data()[:3])
    for call in (lambda: index.add(data()[:2], [[7], [8, 9]]), lambda: index.remove([[0], [1, 2]]),
                 lambda: index.search(data()[:1], allow=[[0], [1, 2]])):
        with pytest.raises(InvalidInputError, match="several lengths"):
            call()


def test_tables_of_many_queries_are_held_in_parts(monkeypatch):
    index = nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0).fit(data()))
    index.add(data())
    wanted, within = index.search(data(), 7), index.range_search(data(), 1.0)
    monkeypatch.setattr("npquant.index.base._TABLES", 70 * 2 * 16 * 4)
    assert index._at_once(data()) == 70
    same(tuple(index.search(data(), 7)), tuple(wanted), "results")
    same(tuple(index.range_search(data(), 1.0)), tuple(within), "results")


@core
def test_names_trains_the_index_inside():
    names = nq.IdMap(nq.FlatIndex(nq.ProductQuantizer(2, 4, random_state=0)))
    assert names.fit(data()) is names
    names.add(data()[:2], ["a", "b"])
    assert set(names.search(data()[0], 2).ids[0]) == {"a", "b"}


def test_compacting_keeps_names_of_vectors_that_are_being_coded():
    names = nq.IdMap(nq.FlatIndex(nq.FlatQuantizer().fit(data())))
    names.add(data()[:5], list("abcde"))

    def blocks():
        yield data()[5:7]
        names.compact()
        names.remove(["a"])
        names.add(data()[9:10], ["later"])
        names.compact()
        yield data()[7:9]
    names.add(blocks(), list("fghi"))
    assert sorted(names.ids.tolist()) == [*"bcdefghi", "later"]
    assert sorted(names.search(data()[0], 9).ids[0]) == [*"bcdefghi", "later"]
    with pytest.raises(InvalidInputError):
        names.add([[np.nan] * D], ["failed"])
    names.compact()
    assert "failed" not in names
