"""Inverted files: cells in exact order, lists that hold every vector once, scores bit for bit as they are defined."""

import pickle
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import HAVE_NUMBA, THREADS, ByDecoding, refuses, same
from test_kernels import agree

import npquant as nq
from npquant import persist
from npquant.errors import FormatError, InvalidInputError, NotFittedError, NpquantWarning
from npquant.index import _partition
from npquant.index._partition import Lists, Partition
from npquant.index._store import Store
from npquant.index.multi import Cells
from npquant.kernels import lists, multisequence, scan, simd
from npquant.quantizers.binary import SignQuantizer
from npquant.quantizers.residual import ResidualQuantizer
from npquant.quantizers.scalar import ScalarQuantizer

core = pytest.mark.core
many, few = settings(max_examples=100), settings(max_examples=25)


# ------------------------------------------------------------------------------------- cells


@st.composite
def rows(draw, columns=(1, 40)):
    """(n, K) float32 in which values tie."""
    return draw(strategies.vectors(rows=(0, 5), d=columns, kinds=strategies.EXTREME_KINDS))


@core
def test_not_a_number_is_as_far_as_infinity():
    """Inner products of infinite sums: what is a number stands before them, and no row is lost."""
    scores = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    scores[0, ::2], scores[1, 5:], scores[2] = np.nan, np.nan, np.nan
    for count in (1, 5, 20, 150):
        values, places = agree(multisequence.least, scores, np.empty((3, count), np.float32),
                               np.empty((3, count), np.int64))
        wanted = np.where(np.isnan(scores), np.inf, scores)
        np.testing.assert_array_equal(places, np.argsort(wanted, axis=1, kind="stable")[:, :count])
        np.testing.assert_array_equal(values, np.take_along_axis(wanted, places, axis=1))


@core
@many
@given(rows(), st.integers(0, 60))
def test_the_least_of_rows(scores, count):
    n, K = scores.shape
    count = min(count, K)
    values, places = agree(multisequence.least, scores, np.empty((n, count), np.float32),
                           np.empty((n, count), np.int64))
    for row, value, place in zip(scores.tolist(), values.tolist(), places.tolist()):
        wanted = sorted((score, i) for i, score in enumerate(row))[:count]
        assert list(zip(value, place)) == wanted


@core
@many
@given(rows((1, 12)), strategies.seeds, st.integers(0, 150))
def test_pairs_are_in_the_order_of_brute_force(first, seed, count):
    n, L = first.shape
    first = np.sort(first, axis=1)
    second = np.sort(strategies.make_vectors("grid" if seed % 2 else "normal", n, L, seed), axis=1)
    count = min(count, L * L)
    sums, r, s = agree(multisequence.pairs, first, second, np.empty((n, count), np.float32),
                       *(np.empty((n, count), np.int64) for _ in range(2)))
    for i in range(n):
        every = sorted((float(a + b), x, y) for x, a in enumerate(first[i]) for y, b in enumerate(second[i]))
        assert list(zip(sums[i].tolist(), r[i].tolist(), s[i].tolist())) == every[:count]


@core
@few
@given(strategies.vectors(rows=(2, 30), d=(1, 3), multiple_of=2), strategies.seeds, st.integers(1, 3),
       st.booleans(), st.data())
def test_probed_cells_are_those_of_brute_force(q, seed, K, product, data):
    """Their scores are sums of the halves', and each count is the beginning of every larger one."""
    halves = np.stack([strategies.make_vectors("grid", K, q.shape[1] // 2, seed + i) for i in range(2)])
    cells, scores = Cells(halves).probe(q, K * K, product, 2)
    for i, row in enumerate(q):
        table = reference.tables(row[None], halves, product)[0] * np.float32(-1 if product else 1)
        orders = [sorted(range(K), key=lambda k, part=part: (table[part][k], k)) for part in range(2)]
        every = sorted((np.float32(table[0][a] + table[1][b]), x, y, a * K + b)
                       for x, a in enumerate(orders[0]) for y, b in enumerate(orders[1]))
        assert [entry[3] for entry in every] == cells[i].tolist()
        assert [entry[0] for entry in every] == scores[i].tolist()
    count = data.draw(st.integers(1, K * K))
    part = Cells(halves).probe(q[:1], count, product, 1)
    same(part, (cells[:1, :count].copy(), scores[:1, :count].copy()), "fewer cells of one query")


@core
def test_a_multi_index_cuts_space_in_pairs(vectors):
    multi = nq.InvertedMultiIndex(6, random_state=0).fit(vectors)
    assert multi.n_cells == 36
    assert multi.codebooks_.shape == (2, 6, 4)
    cells, distances = multi.probe(vectors, 36)
    assert (np.sort(cells, axis=1) == np.arange(36)).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    same(cells[:, 0].copy(), multi.predict(vectors), "the nearest cell and the one predicted")
    centroids = multi.centroids(np.arange(36))
    wide = np.square(vectors[:, None].astype(np.float64) - centroids).sum(axis=2)
    assert np.allclose(np.take_along_axis(wide, cells, axis=1), distances, rtol=1e-5)
    again = nq.InvertedMultiIndex(6, random_state=0, threads=1).fit(iter([vectors[:99], vectors[99:]]))
    same(again.codebooks_, multi.codebooks_, "codebooks of blocks, by one thread")


@core
def test_a_multi_index_tells_what_is_wrong(vectors):
    refuses(InvalidInputError, nq.InvertedMultiIndex(4).fit, vectors[:, :7])
    for bad in (0, -1, 4097, 2.5, "4", None):
        refuses(InvalidInputError, nq.InvertedMultiIndex(bad).fit, vectors)
    multi = nq.InvertedMultiIndex(4, random_state=0)
    for call in (lambda: multi.predict(vectors), lambda: multi.probe(vectors, 2), lambda: multi.centroids([0]),
                 lambda: multi.n_cells):
        refuses(NotFittedError, call)
    multi.fit(vectors)
    for bad in (0, 17, 1.5, None):
        refuses(InvalidInputError, multi.probe, vectors, bad)
    for bad in (vectors[:, :6], vectors * np.nan, "x"):
        refuses(InvalidInputError, multi.probe, bad, 2)
        refuses(InvalidInputError, multi.predict, bad)
    for bad in ([-1], [16], [0.5]):
        refuses(InvalidInputError, multi.centroids, bad)


# ------------------------------------------------------------------------------------- lists whose terms are in steps


@st.composite
def lists_and_tables(draw):
    """What ``scan.topk_lists`` takes: some lists, empty ones too, of codes of a byte a number."""
    seed, nlist = draw(strategies.seeds), draw(st.integers(1, 5))
    M, K = draw(st.sampled_from([(1, 256), (2, 256), (3, 256), (16, 256), (32, 256), (33, 256), (40, 256), (2, 16),
                                 (16, 16), (34, 16), (66, 16)]))
    rng, nq = np.random.default_rng(seed), draw(st.integers(0, 3))
    kinds = draw(st.sampled_from([("integers", "integers"), ("normal", "normal"), None]))  # ties at the limit, often
    kinds = kinds or [draw(st.sampled_from(strategies.TABLE_KINDS)) for _ in range(2)]
    tables, terms = (strategies.make_tables(kind, n, M, K, seed + i) for i, (kind, n) in enumerate(
        zip(kinds, (nq, nlist))))
    cells = rng.integers(0, nlist, draw(st.integers(0, 900)))
    codes = scan.pack(strategies.codes(len(cells), M, K, seed, draw(st.booleans())), K)
    store = Store.empty(codes.shape[1], True, nlist).added(codes, rng.permutation(2 * len(cells) + 1)[:len(cells)],
                                                           cells)
    live = store.live & rng.integers(0, 2**64, len(store.live), np.uint64) if draw(st.booleans()) else store.live
    nprobe = draw(st.integers(1, nlist))
    probes = np.stack([rng.permutation(nlist)[:nprobe] for _ in range(nq)]) if nq else np.empty((0, nprobe), np.int64)
    probes[rng.random(probes.shape) < 0.1] = -1
    bias = (rng.integers(-1, 2, probes.shape) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    return tables, terms, bias, probes, *store.lists(), store.blocks, store.ids, live


@core
@settings(max_examples=120)
@given(lists_and_tables(), st.sampled_from([1, 2, 10, 100, 1000]))
def test_terms_in_steps_give_the_results_of_terms(given_, k):
    """At every SIMD level that this machine runs, and whatever the tables hold."""
    tables, terms, bias, probes, start, order, blocks, ids, live = given_
    distances, found = np.empty((len(tables), k), np.float32), np.empty((len(tables), k), np.int64)
    scan.adc_search.twin(tables, terms, bias, probes, start, order, blocks, ids, live,
                         np.full(len(tables), np.inf, np.float32), 0, distances, found, np.empty(len(tables), np.int64))
    steps = lists.Terms.of(terms)
    levels = [lists.list_search.compiled(level) for level in simd.runnable()] if HAVE_NUMBA else []
    for run in (lists.list_search.twin, *levels):
        mine = np.empty_like(distances), np.empty_like(found)
        run(tables, *steps, bias, probes, start, order, blocks, ids, live, *mine)
        same(mine, (distances, found), "in steps, and by the definition")
    same(lists.topk(tables, steps, bias, probes, start, order, blocks, ids, live, k, 2), (distances, found), "shared")


# ------------------------------------------------------------------------------------- inverted files


METRICS = ("l2", "ip", "cosine")
COARSE = {"7 lists": lambda: nq.KMeans(7, random_state=0), "1 list": lambda: nq.KMeans(1, random_state=0),
          "9 cells": lambda: nq.InvertedMultiIndex(3, random_state=0)}
CODECS = {
    "PQ8": lambda: nq.ProductQuantizer(4, 8, n_iter=3, random_state=1),
    "PQ4": lambda: nq.ProductQuantizer(4, 4, random_state=1),
    "by decoding": lambda: ByDecoding(2, 4, random_state=1),
    "OPQ": lambda: nq.OptimizedProductQuantizer(4, 4, n_iter=2, random_state=1),
    "PCA, rotation, PQ": lambda: nq.PreTransformed(nq.PCA(6), nq.PreTransformed(
        nq.Rotation(random_state=1), nq.ProductQuantizer(3, 4)), random_state=1),
    "int8": lambda: ScalarQuantizer("int8"),
    "residual": lambda: ResidualQuantizer(2, 4, random_state=1),
}


@cache
def points():
    x = strategies.make_vectors("normal", 400, 8, seed=5) + np.float32(0.5)
    x[300:340] = x[:40]
    x.flags.writeable = False
    return x


@pytest.fixture(scope="module")
def vectors():
    return points()


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    """The class of the tests can be saved as well."""
    monkeypatch.setattr(persist, "KINDS", {**persist.KINDS, "ByDecoding": "laws:ByDecoding"})


@cache
def trained(coarse="7 lists", codec="PQ4", metric="l2", residual=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NpquantWarning)  # few vectors for so many codewords
        return nq.IVFIndex(COARSE[coarse](), CODECS[codec](), metric, residual=residual).fit(points())


def made(*args, **options):
    """An empty index of trained parts."""
    index = trained(*args, **options)
    return nq.IVFIndex(index.coarse, index.codec, index.metric, residual=index.residual)


def filled(*args, ids=None, **options):
    index = made(*args, **options)
    index.add(points(), np.random.default_rng(0).permutation(900)[:len(points())] if ids is None else ids)
    return index


def questions():
    x = points()
    return np.concatenate([x[:5], (x[5:20] + x[20:35]) / 2, np.zeros((1, x.shape[1]), np.float32)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codec", [pytest.param("PQ4", marks=core), "PQ8", "by decoding", "OPQ", "PCA, rotation, PQ",
                                   "int8"])
def test_all_lists_of_plain_codes_are_a_flat_index(codec, metric):
    for coarse in COARSE:
        index = filled(coarse, codec, metric, residual=False)
        flat = nq.FlatIndex(index.codec, metric)
        flat.add(points(), index_ids(index))
        Q, ids = questions(), index_ids(index)
        for k in (1, 10, 500):
            same(tuple(index.search(Q, k, nprobe=index.nlist)), tuple(flat.search(Q, k)), f"{k} of all lists, and flat")
        few = ids[::3]
        same(tuple(index.search(Q, 20, nprobe=index.nlist, allow=few)), tuple(flat.search(Q, 20, allow=few)), "allowed")
        radius = flat.search(Q, 30).distances[:, -1]
        same(tuple(index.range_search(Q, radius, nprobe=index.nlist)), tuple(flat.range_search(Q, radius)), "a range")
        same(index.reconstruct(ids[:9]), flat.reconstruct(ids[:9]), "decoded vectors")


def index_ids(index):
    """The ids in the order in which ``filled`` gave them."""
    return np.random.default_rng(0).permutation(900)[:index.ntotal]


def parts_of(index, X):
    """Vectors, centroids and codebooks where the index scores; with the list and the code of each vector, slowly."""
    x = reference.normalized(X) if index.metric == "cosine" else X
    inner, z = index.codec._scored(np.ascontiguousarray(x))
    if isinstance(index.coarse, nq.KMeans):
        halves = index.coarse.cluster_centers_[None]
    else:
        halves = index.coarse.codebooks_
    width = halves.shape[2]
    words = np.stack([reference.nearest(z[:, i * width:(i + 1) * width], half)[0] for i, half in enumerate(halves)], 1)
    codebooks = inner.codebooks_
    left = z - np.concatenate([half[words[:, i]] for i, half in enumerate(halves)], axis=1)
    dsub = codebooks.shape[2]
    codes = np.stack([reference.nearest(left[:, m * dsub:(m + 1) * dsub], book)[0]
                      for m, book in enumerate(codebooks)], axis=1)
    return z, halves, words, codebooks, codes


def stated_scores(index, Q, X):
    """(nq, n) float32: the score of residual codes as IVFIndex states it, step by step."""
    _, halves, words, codebooks, codes = parts_of(index, X)
    z = parts_of(index, Q)[0]
    P, _, width = halves.shape
    M = len(codebooks)
    mean = halves.mean(axis=1, dtype=np.float64).astype(np.float32).ravel()
    product = index.metric != "l2"
    out = np.empty((len(Q), len(X)), np.float32)
    zero = np.zeros(P * width, np.float32)
    sign = np.float32(-1 if product else 1)
    coarse = reference.tables(z, halves, product) * sign
    table = -reference.tables(z if product else z - mean, codebooks, product=True)
    norms = reference.tables(zero[None], codebooks)[0]
    for i, word in enumerate(words):
        terms = norms
        for part in range(P):
            shifted = zero.copy()
            columns = slice(part * width, (part + 1) * width)
            shifted[columns] = halves[part][word[part]] - mean[columns]
            terms = terms + np.float32(2) * reference.tables(shifted[None], codebooks, product=True)[0]
        for q in range(len(Q)):
            score = coarse[q, 0, word[0]]
            if P == 2:
                score = score + coarse[q, 1, word[1]]
            for m in range(M):
                entry = table[q, m, codes[i, m]]
                if not product:
                    entry = np.float32(2) * entry + terms[m, codes[i, m]]
                score = score + entry
            out[q, i] = score
    return out, words, coarse


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("coarse", "codec"), [pytest.param("7 lists", "PQ4", marks=core), ("9 cells", "PQ8"),
                                               pytest.param("7 lists", "PQ8", marks=core), ("7 lists", "OPQ"),
                                               ("1 list", "PCA, rotation, PQ")])
def test_residual_scores_are_what_is_stated_bit_for_bit(coarse, codec, metric):
    index, X, Q = made(coarse, codec, metric), points()[:90], questions()[[0, 7, 12, 20]]
    assert index.residual
    ids = np.arange(90)[::-1].copy()
    index.add(X, ids)
    scores, words, table = stated_scores(index, Q, X)
    for nprobe in (1, index.nlist // 2 + 1, index.nlist):
        for q in range(len(Q)):
            cells = np.arange(index.nlist)
            if words.shape[1] == 1:
                near = sorted(cells, key=lambda c: (table[q, 0, c], c))[:nprobe]
                probed = np.isin(words[:, 0], near)
            else:
                near = Cells(index.coarse.codebooks_).probe(parts_of(index, Q[q:q + 1])[0], nprobe, metric != "l2", 1)
                probed = np.isin(words[:, 0] * 3 + words[:, 1], near[0][0])
            wanted = reference.topk(scores[q:q + 1, probed], ids[probed].tolist(), 95)
            found = index.search(Q[q], 95, nprobe=nprobe)
            same(found.ids, wanted[1], f"ids in {nprobe} lists")
            same(found.distances, wanted[0] if metric == "l2" else -wanted[0], f"distances in {nprobe} lists")


@core
@few
@given(strategies.vectors(rows=(20, 60), d=(1, 4), multiple_of=4), strategies.seeds, st.sampled_from(["l2", "ip"]),
       st.booleans())
def test_residual_scores_are_distances_to_the_decoded_within_their_bound(x, seed, metric, pairs):
    rng = np.random.default_rng(seed)
    d, M = x.shape[1], 2
    scale = np.abs(x - x[0]).max() or 1
    halves = np.stack([x[:4, :d // 2], x[:4, d // 2:]]) if pairs else x[None, :5].copy()
    pq = nq.ProductQuantizer(M, 3)
    pq.codebooks_ = (rng.standard_normal((M, 8, d // M)) * scale / 4).astype(np.float32)
    cells = Cells(np.ascontiguousarray(halves))
    part = Partition(cells, pq, metric == "ip", True)
    codes, lists = part.encode(x)
    c, p = cells.centroids(lists).astype(np.float64), pq.decode(codes).astype(np.float64)
    store = Store.empty(pq.code_size, True, cells.count).added(codes, np.arange(len(x)), lists)
    held = Lists(*store.lists(), store.blocks, store.ids, store.live)
    q = x[:6] + (rng.standard_normal((len(x[:6]), d)) * scale).astype(np.float32)
    scores, ids = part.topk(q, cells.count, held, len(x), 1)
    assert (np.sort(ids, axis=1) == np.arange(len(x))).all()
    norm, mean = (lambda v: np.sqrt(np.square(v).sum(axis=-1))), part.mean.astype(np.float64)
    wide = q.astype(np.float64)[:, None]
    if metric == "l2":
        true = np.square(wide - (c + p)).sum(axis=2)
        size = (norm(wide - mean) + norm(c - mean) + norm(p)) ** 2
    else:
        true, size = -(wide * (c + p)).sum(axis=2), norm(wide) * (norm(c) + norm(p))
    bound = (d + M + 8) * 2.0**-23 * size + 1e-37
    error = np.abs(scores - np.take_along_axis(true, ids, axis=1))
    assert (error <= np.take_along_axis(bound, ids, axis=1)).all()


@pytest.mark.parametrize("coarse", ["7 lists", "9 cells"])
@pytest.mark.parametrize("metric", METRICS)
def test_sums_of_codewords_score_within_their_bound(coarse, metric):
    """Their tables are of the whole dimension, with the norm in a column of its own: the same formula holds."""
    index, Q = filled(coarse, "residual", metric, ids=np.arange(400)), questions()
    assert index.residual
    store = index._store
    loss = np.empty(400)
    loss[store.names()] = index.codec.score_bound(store.codes(store.slots())) if metric == "l2" else 0
    distances, ids = index.search(Q, 400, nprobe=index.nlist)
    q = reference.normalized(Q) if metric == "cosine" else Q
    decoded = index.reconstruct(np.arange(400)).astype(np.float64)
    true = np.square(q[:, None] - decoded).sum(axis=2) if metric == "l2" else q @ decoded.T
    assert (np.abs(distances - np.take_along_axis(true, ids, axis=1)) <= loss[ids] + 1e-4).all()


@core
@pytest.mark.parametrize("coarse", ["7 lists", "9 cells"])
def test_terms_that_are_not_kept_change_nothing(coarse, monkeypatch):
    Q, index = questions(), filled(coarse, "PQ4")
    wanted = [tuple(index.search(Q, 30, nprobe=n)) for n in (2, 7)], tuple(index.range_search(Q, 3.0, nprobe=5))
    for kept, part in ((0, 1 << 26), (0, 16 * 4 * 4 * 11), (1 << 28, 16 * 4 * 4 * 3), (0, 1)):
        monkeypatch.setattr(_partition, "TERMS_BYTES", kept)
        monkeypatch.setattr(_partition, "_PART_BYTES", part)
        other = filled(coarse, "PQ4")
        for n, result in zip((2, 7), wanted[0]):
            same(tuple(other.search(Q, 30, nprobe=n)), result, f"{n} lists with {kept} and {part} bytes")
        same(tuple(other.range_search(Q, 3.0, nprobe=5)), wanted[1], f"a range with {kept} and {part} bytes")


@core
@pytest.mark.parametrize("codec", ["PQ4", "by decoding"])
def test_a_vector_is_in_the_list_of_its_centroid(codec):
    for coarse in COARSE:
        index = filled(coarse, codec)
        lists = index.coarse.predict(points())
        same(index.list_sizes(), np.bincount(lists, minlength=index.nlist), "sizes of lists")
        ids = index_ids(index)
        for which in np.unique(lists):
            at = np.flatnonzero(lists == which)
            found = index.search(points()[at[0]], 500, nprobe=1).ids[0]
            assert sorted(found[found >= 0].tolist()) == sorted(ids[at].tolist())
        within = index.range_search(points()[:3], np.inf, nprobe=1)
        same(np.diff(within.lims), index.list_sizes()[lists[:3]], "everything in one list")


@pytest.mark.parametrize(("coarse", "codec", "metric", "residual"), [
    pytest.param("7 lists", "PQ4", "l2", True, marks=core), ("9 cells", "PQ8", "ip", True),
    ("7 lists", "PQ4", "cosine", False), ("7 lists", "int8", "l2", True), ("7 lists", "OPQ", "l2", True)])
def test_results_depend_on_nothing_else(coarse, codec, metric, residual, jit):
    """Not on the batch, the threads, the compiler, nor on the order and the parts in which vectors came."""
    index, Q = filled(coarse, codec, metric, residual=residual), questions()
    wanted = tuple(index.search(Q, 12, nprobe=3))
    for threads in THREADS:
        same(tuple(index.search(Q, 12, nprobe=3, threads=threads)), wanted, f"{threads} threads")
    for i in range(0, len(Q), 6):
        same(tuple(index.search(Q[i], 12, nprobe=3)), tuple(a[i:i + 1] for a in wanted), f"query {i} alone")
    assert (wanted[1] >= 0).all()
    order = np.random.default_rng(1).permutation(len(points()))
    other, ids = made(coarse, codec, metric, residual=residual), index_ids(index)
    for part in np.array_split(order, 7):
        other.add(iter([points()[part]]), ids[part])
    same(tuple(other.search(Q, 12, nprobe=3)), wanted, "added in parts and another order")
    for mode in "01" if HAVE_NUMBA else "0":
        jit(mode)
        same(tuple(filled(coarse, codec, metric, residual=residual).search(Q, 12, nprobe=3)), wanted, f"JIT {mode}")


@pytest.mark.parametrize(("coarse", "codec"), [pytest.param("7 lists", "PQ4", marks=core), ("9 cells", "by decoding"),
                                               ("7 lists", "PCA, rotation, PQ")])
@settings(max_examples=8)
@given(seed=strategies.seeds)
def test_whatever_is_done_it_is_a_dictionary(coarse, codec, seed):
    """Additions, removals, updates, merges, files: results are those of a new index of what should be in it."""
    rng, index, held, X = np.random.default_rng(seed), made(coarse, codec), {}, points()
    for _ in range(14):
        what = rng.integers(8)
        rows = rng.integers(0, len(X), rng.integers(0, 150))
        some = rng.permutation(sorted(held))[:rng.integers(0, len(held) // 2 + 2)].astype(np.int64)
        if what < 3:
            ids = rng.permutation(np.setdiff1d(np.arange(600), list(held)))[:len(rows)]
            index.add(X[rows[:len(ids)]], ids)
            held.update(zip(ids.tolist(), rows.tolist()))
        elif what == 3:
            assert index.remove(some) == len(some)
            for name in some.tolist():
                del held[name]
        elif what == 4:
            index.update(some, X[rows[:1].repeat(len(some))] if len(rows) else X[:len(some)])
            held.update(zip(some.tolist(), rows[:1].repeat(len(some)).tolist() if len(rows) else range(len(some))))
        elif what == 5:
            other, ids = made(coarse, codec), np.setdiff1d(np.arange(600, 700), list(held))[:len(rows)]
            other.add(X[rows[:len(ids)]], ids)
            assert index.merge(other) == len(ids)
            held.update(zip(ids.tolist(), rows.tolist()))
        elif what == 6:
            index.compact()
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "index.npq")
                nq.save(index, path)
                index = nq.load(path)
        assert index.ntotal == len(held)
        assert sorted(index.ids.tolist()) == sorted(held)
    names = np.array(sorted(held), np.int64)
    wanted = made(coarse, codec)
    wanted.add(X[[held[name] for name in names.tolist()]] if held else X[:0], names)
    same(index.reconstruct(names), wanted.reconstruct(names), "decoded vectors")
    for nprobe in (1, 4):
        same(tuple(index.search(questions(), 20, nprobe=nprobe)),
             tuple(wanted.search(questions(), 20, nprobe=nprobe)), f"{nprobe} lists")
    allow = names[::2]
    same(tuple(index.search(questions(), 9, allow=allow)), tuple(wanted.search(questions(), 9, allow=allow)), "allowed")
    mask = np.isin(index.ids, allow)
    same(tuple(index.search(questions(), 9, allow=mask)), tuple(wanted.search(questions(), 9, allow=allow)), "a mask")


@pytest.mark.parametrize(("coarse", "codec", "metric"), [pytest.param("7 lists", "PQ4", "l2", marks=core),
                                                         ("9 cells", "OPQ", "cosine"), ("1 list", "int8", "ip")])
def test_a_file_keeps_an_inverted_file(coarse, codec, metric, tmp_path):
    index, Q = filled(coarse, codec, metric), questions()
    nq.save(index, tmp_path / "i.npq")
    for mmap in (False, True):
        loaded = nq.load(tmp_path / "i.npq", mmap=mmap)
        assert repr(loaded) == repr(index)
        assert loaded.residual == index.residual
        for nprobe in (1, index.nlist):
            same(tuple(loaded.search(Q, 15, nprobe=nprobe)), tuple(index.search(Q, 15, nprobe=nprobe)), "a file")
        same(loaded.reconstruct(index.ids), index.reconstruct(index.ids), "decoded vectors")
        loaded.add(points()[:3], [1000, 1001, 1002])
        loaded.remove([1000, 1001, 1002])
        same(tuple(loaded.search(Q, 15)), tuple(index.search(Q, 15)), "a file, changed and changed back")
        del loaded
    empty = made(coarse, codec, metric)
    nq.save(empty, tmp_path / "e.npq")
    assert repr(nq.load(tmp_path / "e.npq")) == repr(empty)
    new = nq.IVFIndex(COARSE[coarse](), CODECS[codec](), metric)
    nq.save(new, tmp_path / "n.npq")
    assert repr(nq.load(tmp_path / "n.npq")) == repr(new)


@core
def test_what_does_not_fit_together_is_no_file(tmp_path, monkeypatch):
    index = filled()
    state = index._get_state()
    for name, value in (("residual", 3), ("coarse", index.codec),
                        ("coarse", nq.KMeans(3, random_state=0).fit(points())), ("coarse", nq.KMeans(7)),
                        ("coarse", nq.KMeans(7, random_state=0).fit(points()[:, :6])),
                        ("codec", index.coarse), ("store", {**state["store"], "owner": None}),
                        ("store", {**state["store"], "owner": state["store"]["owner"] + np.int32(3)})):
        monkeypatch.setattr(nq.IVFIndex, "_get_state", lambda self, name=name, value=value: {**state, name: value})
        nq.save(index, tmp_path / "i.npq")
        for mmap in (False, True):
            refuses(FormatError, nq.load, tmp_path / "i.npq", mmap=mmap)


@core
def test_fit_trains_what_is_not_fitted_and_leaves_what_was_given():
    coarse, codec = nq.KMeans(5, random_state=0), nq.ProductQuantizer(4, 4, random_state=0)
    index = nq.IVFIndex(coarse, codec)
    assert index.fit(points()) is index
    assert not hasattr(coarse, "cluster_centers_")
    assert not hasattr(codec, "codebooks_")
    cells = index.coarse.cluster_centers_
    same(cells, nq.KMeans(5, random_state=0).fit(points()).cluster_centers_, "the centres")
    left = points() - cells[index.coarse.predict(points())]
    same(index.codec.codebooks_, nq.ProductQuantizer(4, 4, random_state=0).fit(left).codebooks_, "residual codebooks")
    plain = nq.IVFIndex(index.coarse, codec, residual=False).fit(points())
    assert plain.coarse is index.coarse
    same(plain.codec.codebooks_, nq.ProductQuantizer(4, 4, random_state=0).fit(points()).codebooks_, "plain codebooks")
    given = nq.IVFIndex(coarse, plain.codec).fit(points())
    assert given.codec is plain.codec
    index.add(points()[:9])
    refuses(InvalidInputError, index.fit, points())
    before = tuple(index.search(points()[:9], 5))
    index.coarse.fit(points()[:50])  # a copy: not the one that the lists were made by
    plain.coarse.partial_fit(points()[:50])
    same(tuple(index.search(points()[:9], 5)), before, "after others were trained anew")


@core
def test_behind_a_transform_residuals_are_trained_and_the_seed_fixes_all():
    one, two = (nq.IVFIndex(nq.KMeans(5, random_state=0), nq.OptimizedProductQuantizer(4, 4, n_iter=2, random_state=3))
                .fit(points()) for _ in range(2))
    same(one.codec.codebooks_, two.codec.codebooks_, "codebooks by one seed")
    alone = nq.OptimizedProductQuantizer(4, 4, n_iter=2, random_state=3).fit(points())
    same(one.codec.rotation_, alone.rotation_, "the rotation of the codec alone")
    z = points() @ alone.rotation_.T
    assert np.abs(one.coarse.cluster_centers_ - nq.KMeans(5, random_state=0).fit(z).cluster_centers_).max() < 1
    one.add(points())
    error = np.square(one.reconstruct(np.arange(400)) - points()).sum(axis=1).mean()
    assert error < -0.9 * alone.score(points())  # residuals are smaller than vectors


@core
def test_residuals_find_more_than_plain_codes():
    truth = np.argsort(np.square(questions()[:, None] - points()).sum(axis=2), axis=1, kind="stable")[:, :10]
    recall = [nq.metrics.knn_recall(filled(codec="PQ4", residual=residual, ids=np.arange(400)).search(
        questions(), 10, nprobe=7).ids, truth, 10) for residual in (True, False)]
    assert recall[0] > recall[1]


@core
def test_bad_input_is_told():
    for coarse in (None, 5, nq.KMeans, nq.ProductQuantizer(4), "IVF4"):
        refuses(InvalidInputError, nq.IVFIndex, coarse, nq.ProductQuantizer(4))
    for codec in (None, 5, nq.ProductQuantizer, nq.KMeans(4)):
        refuses(InvalidInputError, nq.IVFIndex, nq.KMeans(4), codec)
    refuses(InvalidInputError, nq.IVFIndex, nq.KMeans(4), nq.ProductQuantizer(4), "manhattan")
    for residual in (1, "yes", 0.0):
        refuses(InvalidInputError, nq.IVFIndex, nq.KMeans(4), nq.ProductQuantizer(4), residual=residual)
    new = nq.IVFIndex(nq.KMeans(4, random_state=0), nq.ProductQuantizer(4, 4, random_state=0))
    half = nq.IVFIndex(nq.KMeans(4, random_state=0), nq.ProductQuantizer(4, 4, random_state=0).fit(points()))
    for index in (new, half):
        for call in (lambda i: i.add(points()), lambda i: i.search(points()), lambda i: i.nlist,
                     lambda i: i.range_search(points(), 1.0), lambda i: i.list_sizes()):
            refuses(NotFittedError, call, index)
        assert "not fitted" in repr(index)
    for bad in (points()[:, :7], points() * np.nan, points()[:0], None, "x", points()[0]):
        refuses(InvalidInputError, new.fit, bad)
    wrong = nq.IVFIndex(nq.KMeans(4, random_state=0).fit(points()[:, :4]), half.codec)
    for call in (wrong.add, wrong.fit):
        refuses(InvalidInputError, call, points())
    refuses(InvalidInputError, nq.IVFIndex(nq.InvertedMultiIndex(2), nq.ProductQuantizer(1, 1)).fit, points()[:, :5])
    index = filled()
    for nprobe in (0, -1, 8, 2.5, "3", True):
        refuses(InvalidInputError, index.search, points()[:2], 3, nprobe=nprobe)
        refuses(InvalidInputError, index.range_search, points()[:2], 3.0, nprobe=nprobe)
    refuses(InvalidInputError, index.merge, filled(residual=False))
    refuses(InvalidInputError, index.merge, filled(codec="PQ8"))
    refuses(InvalidInputError, index.merge, nq.FlatIndex(index.codec))
    refuses(InvalidInputError, index.merge, filled("1 list"))
    same(tuple(index.search(questions(), 9)), tuple(filled().search(questions(), 9)), "the index after all that")


@core
def test_codecs_that_cannot_code_residuals():
    sign = nq.IVFIndex(nq.KMeans(4), SignQuantizer(asymmetric=False))
    assert not sign.residual
    refuses(InvalidInputError, nq.IVFIndex, nq.KMeans(4), SignQuantizer(asymmetric=False), residual=True)
    index = nq.IVFIndex(nq.KMeans(4, random_state=0), SignQuantizer(asymmetric=False)).fit(points())
    flat = nq.FlatIndex(index.codec)
    for each in (index, flat):
        each.add(points())
    same(tuple(index.search(questions(), 30, nprobe=4)), tuple(flat.search(questions(), 30)), "Hamming distances")


@core
def test_some_lists_may_be_empty_and_one_may_hold_everything():
    index = made("9 cells", "PQ4")
    index.add(np.repeat(points()[:1], 200, axis=0))
    assert sorted(index.list_sizes().tolist()) == [0] * 8 + [200]
    distances, ids = index.search(points()[:1], 250, nprobe=9)
    assert ids[0].tolist() == [*range(200), *[-1] * 50]
    assert (distances[0, 200:] == np.inf).all()
    index.remove(np.arange(200))
    assert (index.search(points()[:2], 3, nprobe=9).ids == -1).all()
    assert index.range_search(points()[:2], 1e9, nprobe=9).lims.tolist() == [0, 0, 0]


def test_faiss_with_our_codebooks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SWIG
        faiss = pytest.importorskip("faiss")
    index = filled("7 lists", "PQ4", ids=np.arange(400))
    coarse = faiss.IndexFlatL2(8)
    coarse.add(index.coarse.cluster_centers_)
    other = faiss.IndexIVFPQ(coarse, 8, 7, 4, 4)
    faiss.copy_array_to_vector(index.codec.codebooks_.ravel(), other.pq.centroids)
    other.is_trained = True
    other.precompute_table()
    other.add(points())
    other.nprobe = 3
    distances, ids = other.search(questions(), 10)
    ours, mine = index.search(questions(), 10, nprobe=3)
    np.testing.assert_allclose(ours, distances, rtol=1e-4, atol=1e-4)
    assert (mine == ids).mean() > 0.9  # in the order of near-ties each is free


def test_queries_are_searched_by_memory_and_found_the_same(monkeypatch):
    index = filled("7 lists", "PQ4")
    asked = np.repeat(questions(), 10, axis=0)
    wanted, within = index.search(asked, 5, nprobe=3), index.range_search(asked, 1.0, nprobe=3)
    monkeypatch.setattr("npquant.index.ivf._PROBED", 21)
    assert index._at_once(asked, nprobe=3) == 7
    same(tuple(index.search(asked, 5, nprobe=3)), tuple(wanted), "results")
    same(tuple(index.range_search(asked, 1.0, nprobe=3)), tuple(within), "results")


def test_a_codec_that_embeds_is_normalised_behind_its_network():
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32) * 30
    model = nq.DeepQuantizer(hidden=(8,), d_out=4, epochs=1, quantizer=nq.ProductQuantizer(m=2, nbits=4),
                             random_state=0).fit(x, np.arange(200) % 5)
    index = nq.IVFIndex(nq.KMeans(4, random_state=0), model, "cosine").fit(x)
    z = model.transform(x)
    z /= np.linalg.norm(z, axis=1)[:, None]
    wanted = nq.KMeans(4, random_state=0).fit(z).cluster_centers_
    np.testing.assert_allclose(index.coarse.cluster_centers_, wanted, atol=1e-4)
    index.add(x)
    plain = nq.FlatIndex(model, "cosine")
    plain.add(x)
    same(tuple(index.search(x[:9], 5, nprobe=4)), tuple(plain.search(x[:9], 5)), "results")


def test_what_can_be_made_again_is_not_pickled():
    index = filled("7 lists", "PQ4")
    fresh = len(pickle.dumps(index))
    wanted = index.search(questions(), 5)
    assert len(pickle.dumps(index)) < fresh + 20_000
    same(tuple(pickle.loads(pickle.dumps(index)).search(questions(), 5)), tuple(wanted), "results")
