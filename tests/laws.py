"""The contracts of codecs and indexes: functions given one of them, that raise AssertionError where it breaks one.

A codec's law takes ``(codec, X)``: a fitted codec and the vectors that it was fitted on. An index's law takes
``(make, X)``: ``make()`` is an empty index of a fitted codec. ``test_laws.py`` lists who must keep them.
"""

import contextlib
import importlib.util
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import reference

from npquant import persist
from npquant._base import clone
from npquant.errors import InvalidInputError, NotFittedError
from npquant.quantizers.product import ProductQuantizer

HAVE_NUMBA = importlib.util.find_spec("numba") is not None
THREADS = (1, 2, 7)
METRICS = ("l2", "ip", "cosine")


class ByDecoding(ProductQuantizer):
    """A codec without tables, whose scorer decodes: what every new codec is on its first day."""

    def _tables(self, queries, product):
        return None


# ------------------------------------------------------------------------------------- what laws are made of


def same(a, b, what):
    """Raise unless two arrays, or tuples of arrays, are one bit for bit."""
    if isinstance(a, tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{what}[{i}]")
        return
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype, f"{what}: {a.dtype} and {b.dtype}"
    assert a.shape == b.shape, f"{what}: {a.shape} and {b.shape}"
    assert a.tobytes() == b.tobytes(), f"{what} differ at {np.argwhere(a != b)[:3].tolist()}"


def refuses(error, call, *args, **kwargs):
    """Raise unless the call raises ``error`` with words in it."""
    try:
        call(*args, **kwargs)
    except Exception as caught:
        if not isinstance(caught, error):
            raise AssertionError(f"{call} raised {caught!r} instead of {error.__name__}") from caught
        if len(str(caught)) < 10:
            raise AssertionError(f"{call} says nothing: {caught!r}") from caught
    else:
        raise AssertionError(f"{call}{args} was taken")


@contextlib.contextmanager
def jit_mode(mode):
    before = os.environ.get("NPQUANT_JIT")
    os.environ["NPQUANT_JIT"] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ["NPQUANT_JIT"]
        else:
            os.environ["NPQUANT_JIT"] = before


@contextlib.contextmanager
def layouts(X):
    """Yield {what: array_like} of the same numbers as float32 ``X``."""
    wide = np.zeros((2 * len(X), 2 * X.shape[1]), np.float32)
    wide[::2, ::2] = X
    locked = X.copy()
    locked.flags.writeable = False
    bytes_ = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = bytes_[1:].view(np.float32).reshape(X.shape)
    unaligned[:] = X
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.raw")
        path.write_bytes(X.tobytes())
        mapped = np.memmap(path, np.float32, "r", shape=X.shape)
        yield {"float64": X.astype(np.float64), "float128": X.astype(np.longdouble),
               "Fortran": np.asfortranarray(X), "strided": wide[::2, ::2],
               "backwards": X[::-1, ::-1].copy()[::-1, ::-1], "read-only": locked, "memmap": mapped,
               "unaligned": unaligned, "other endian": X.astype(X.dtype.newbyteorder()),
               "list": X.tolist(), "objects": X.astype(object)}
        del mapped


def blocks_of(codec, queries):
    """How many partial sums a score is made of: one for each table, or one."""
    table = codec.scorer(queries).tables
    return 1 if table is None else table.shape[1]


def where_scores_are(codec, x):
    """The codec to whose decoded vectors scores are distances, and ``x`` in its space.

    A codec that scores behind a transform says so itself, by ``_scored``; all others score where they are.
    """
    return codec._scored(x)


def packed(numbers, K):
    """Codes (n, code_size) of numbers (n, M) below K: a byte each, two where K = 16, the first in the low half."""
    rows = []
    for row in np.asarray(numbers).tolist():
        row = [*row, 0] if K == 16 and len(row) % 2 else row
        rows.append([low + 16 * high for low, high in zip(row[::2], row[1::2])] if K == 16 else row)
    width = (np.shape(numbers)[1] + 1) // 2 if K == 16 else np.shape(numbers)[1]
    return np.array(rows, np.uint8).reshape(len(rows), width)


def in_blocks(X, rows):
    """A generator of blocks that lie in one array, as those of a reader do."""
    held = np.empty((rows, X.shape[1]), X.dtype)
    for begin in range(0, len(X), rows):
        part = held[:len(X[begin:begin + rows])]
        part[:] = X[begin:begin + rows]
        yield part
        held[:] = 77


def queries_of(X):
    """Some rows of X, something between them, zeros, and negative zeros."""
    zeros = np.zeros((2, X.shape[1]), np.float32)
    zeros[1] = -0.0
    return np.concatenate([X[:6], (X[6:12] + X[12:18]) / 2, zeros]).astype(np.float32)


def observed(codec, X):
    """Everything that a codec says about X."""
    codes = codec.encode(X)
    learned = (codec.codebooks_,) if hasattr(codec, "codebooks_") else ()
    return (codes, codec.encode(X, metric="cosine"), codec.decode(codes), codec.nearest(X), codec.nearby(X, 3),
            *(codec.scorer(X[:5], metric).scores(codes) for metric in METRICS), *learned)


def refitted(codec, X, **params):
    return clone(codec).set_params(**params).fit(X)


# ------------------------------------------------------------------------------------- laws of codecs


def fit_returns_the_codec(codec, X):
    fresh = clone(codec)
    assert fresh.fit(X) is fresh
    assert fresh.n_features_in_ == X.shape[1]
    assert repr(fresh.get_params()) == repr(codec.get_params())  # of nested estimators there are copies


def codes_are_bytes(codec, X):
    codes = codec.encode(X)
    assert isinstance(codes, np.ndarray)
    assert codes.dtype == np.uint8
    assert codes.shape == (len(X), codec.code_size)
    same(codec.transform(X), codes, "transform and encode")
    same(codec.check_codes(codes), codes, "check_codes")


def decoding_gives_vectors(codec, X):
    codes = codec.encode(X)
    decoded = codec.decode(codes)
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == np.float32
    assert decoded.shape == X.shape
    assert decoded.flags.c_contiguous
    same(codec.inverse_transform(codes), decoded, "inverse_transform and decode")
    same(codec.nearest(X), decoded, "nearest and decode(encode)")


def encoding_finds_the_nearest(codec, X):
    X = np.concatenate([X[:60], queries_of(X)])
    inner, z = where_scores_are(codec, X)
    codebooks = getattr(inner, "codebooks_", None)
    if codebooks is None or codebooks.ndim != 3 or len(codebooks) * codebooks.shape[2] != z.shape[1]:
        return  # not a product of codebooks: its own tests hold what is nearest
    width = z.shape[1] // len(codebooks)
    wanted = [reference.nearest(z[:, m * width:(m + 1) * width], codebook)[0]
              for m, codebook in enumerate(codebooks)]
    same(codec.encode(X), packed(np.stack(wanted, axis=1), codebooks.shape[1]), "encode and brute force")


def decoding_again_changes_nothing(codec, X):
    if codec.score_model in ("estimator", "stored_norm"):
        return  # a length is measured anew, and rounded; a search for a sum may find another one
    once = codec.decode(codec.encode(X))
    same(codec.decode(codec.encode(once)), once, "decode(encode(decode(c))) and decode(c)")


def a_score_is_a_distance_to_the_decoded(codec, X):
    if codec.score_model != "decoded":
        return
    Q, codes = queries_of(X), codec.encode(X[:50])
    blocks = blocks_of(codec, Q)
    for metric in METRICS:
        inner, q = where_scores_are(codec, reference.normalized(Q) if metric == "cosine" else Q)
        decoded = inner.decode(codes)
        scorer = codec.scorer(Q, metric)
        wanted = reference.scores(q, decoded, metric, blocks)
        same(scorer.scores(codes), wanted, f"{metric} scores")
        ids = np.random.default_rng(0).permutation(50).astype(np.int64)
        same(scorer.topk(codes, ids, 20), reference.topk(wanted, ids, 20), f"{metric} top 20")
        known = codec.encode(Q)
        same(codec.symmetric_scorer(known, metric).scores(codes),
             codec.scorer(codec.decode(known), metric).scores(codes), f"{metric} scores of codes")


def a_score_is_as_near_as_the_norm_says(codec, X):
    if codec.score_model != "stored_norm":
        return
    Q, codes = queries_of(X), codec.encode(X[:50])
    ids = np.random.default_rng(0).permutation(50).astype(np.int64)
    for metric in METRICS:
        inner, q = where_scores_are(codec, reference.normalized(Q) if metric == "cosine" else Q)
        q, v = q.astype(np.float64), inner.decode(codes).astype(np.float64)
        true = ((q[:, None] - v) ** 2).sum(axis=2) if metric == "l2" else -q @ v.T
        lost = inner.score_bound(codes) if metric == "l2" else np.zeros(len(codes))
        scorer = codec.scorer(Q, metric)
        scores = scorer.scores(codes)
        size = np.abs(scorer.tables).max(axis=2).sum(axis=1)[:, None] + (q**2).sum(1)[:, None] + (v**2).sum(1)
        rounding = 2.0**-23 * (v.shape[1] + codes.shape[1] + 8) * size
        assert (np.abs(scores - true) <= lost + rounding).all(), f"{metric} scores are out of their bound"
        same(scorer.topk(codes, ids, 20), reference.topk(scores, ids, 20), f"{metric} top 20")


def a_hamming_score_counts_bits(codec, X):
    if codec.score_model != "hamming":
        return
    Q, codes = queries_of(X), codec.encode(X[:50])
    ids = np.random.default_rng(0).permutation(50).astype(np.int64)
    for metric in METRICS:
        known = codec.encode(Q, metric=metric)
        wanted = np.unpackbits(known[:, None] ^ codes, axis=2).sum(axis=2).astype(np.float32)
        scorer = codec.scorer(Q, metric)
        same(scorer.scores(codes), wanted, f"{metric} scores")
        same(scorer.topk(codes, ids, 20), reference.topk(wanted, ids, 20), f"{metric} top 20")


def an_estimate_is_within_its_bound(codec, X):
    if codec.score_model != "estimator":
        return
    for metric in METRICS:
        Q, V = queries_of(X), X[:50]
        codes, scorer = codec.encode(V, metric=metric), codec.scorer(Q, metric)
        scores, width = scorer.scores(codes), codec.bound(Q, codes, metric, eps0=3)
        q, v = ((reference.normalized(a) if metric == "cosine" else a).astype(np.float64) for a in (Q, V))
        true = ((q[:, None] - v) ** 2).sum(axis=2) if metric == "l2" else -q @ v.T
        rounding = 1e-5 * ((q**2).sum(axis=1)[:, None] + (v**2).sum(axis=1) + np.square(X).mean() * X.shape[1])
        assert (np.abs(scores - true) <= width + rounding).mean() >= 0.99, f"{metric} estimates are out of their bound"
        ids = np.random.default_rng(0).permutation(50).astype(np.int64)
        same(scorer.topk(codes, ids, 20), reference.topk(scores, ids, 20), f"{metric} top 20")


def the_batch_is_invisible(codec, X):
    whole, order = observed(codec, X)[:4], np.random.default_rng(0).permutation(len(X))
    for rows in (order, order[:17], [3], slice(5, 70, 3)):
        codes = codec.encode(X[rows])
        part = (codes, codec.encode(X[rows], metric="cosine"), codec.decode(codes), codec.nearest(X[rows]))
        same(part, tuple(w[rows] for w in whole), f"a batch of {len(part[0])}")
    many = np.resize(X, (9001, X.shape[1]))  # more than two blocks of rows
    same(codec.encode(many), np.resize(whole[0], (9001, codec.code_size)), "9001 rows")
    Q = queries_of(X)
    Q = np.concatenate([Q, Q, Q[:3]])
    for metric in METRICS:
        scores = codec.scorer(Q, metric).scores(whole[0])
        same(codec.scorer(Q[5], metric).scores(whole[0]), scores[5:6], f"{metric} scores of one query")
        same(codec.scorer(Q[::-1], metric).scores(whole[0][order]), scores[::-1, order], f"{metric}, permuted")


def threads_are_invisible(codec, X):
    many = np.resize(X, (9001, X.shape[1]))
    alone = refitted(codec, X, threads=1)
    for threads in THREADS:
        other = refitted(codec, X, threads=threads)
        same(observed(other, X), observed(alone, X), f"{threads} threads")
        same(other.encode(many), alone.encode(many), f"9001 codes of {threads} threads")
        codes = alone.encode(X)
        same(other.scorer(X).scores(codes, threads), alone.scorer(X).scores(codes, 1), f"{threads} threads")


def the_layout_is_invisible(codec, X):
    wanted = observed(codec, X)
    codes = wanted[0]
    with layouts(X) as forms:
        for what, form in forms.items():
            same(codec.encode(form), codes, f"codes of {what}")
            same(codec.scorer(form).scores(codes[:5]), codec.scorer(X).scores(codes[:5]), f"scores of {what}")
            same(observed(clone(codec).fit(form), X), wanted, f"fit to {what}")
    for rows in (7, 300):
        same(codec.encode(in_blocks(X, rows)), codes, f"codes of blocks of {rows}")
        same(codec.transform(in_blocks(X, rows)), codes, f"transform of blocks of {rows}")
        same(observed(clone(codec).fit(in_blocks(X, rows)), X), wanted, f"fit to blocks of {rows}")
    same(codec.encode([X[:9], X[9:9], X[9:].tolist()]), codes, "codes of a list of blocks")
    for form in (X, in_blocks(X, 11)):
        same(np.concatenate([part.copy() for part in codec.encode_blocks(form)]), codes, "encode_blocks")
    same(codec.encode(in_blocks(X, 5), metric="cosine"), wanted[1], "codes of normalised blocks")
    same(codec.decode(np.asfortranarray(codes)), wanted[2], "decode of Fortran codes")
    same(codec.decode(np.repeat(codes, 2, axis=1)[:, ::2]), wanted[2], "decode of strided codes")


def arrays_are_not_shared(codec, X):
    given, original = X.copy(), X.copy()
    fresh = clone(codec).fit(given)
    before = tuple(a.copy() for a in observed(fresh, original))
    codes = before[0].copy()
    scorer = fresh.scorer(given)
    scores = scorer.scores(codes).copy()
    same(given, original, "what was given and what it was")
    same(codes, before[0], "codes given and what they were")
    given[:] = 7  # ours to change
    same(scorer.scores(codes), scores, "scores after the caller changed the queries")
    same(observed(fresh, original), before, "the codec after the caller changed its training vectors")
    mine = [fresh.encode(original), fresh.decode(codes), fresh.nearest(original), fresh.nearby(original, 3),
            scorer.scores(codes), *fresh.get_params().values()]
    for array in mine:
        if isinstance(array, np.ndarray):
            array[:] = 0
    same(observed(fresh, original), before, "the codec after what it returned was changed")
    same(scorer.scores(codes), scores, "the scorer after what it returned was changed")


def one_vector_is_a_batch_of_one(codec, X):
    codes = codec.encode(X)
    same(codec.encode(X[4]), codes[4:5], "codes")
    same(codec.encode(X[4].tolist()), codes[4:5], "codes of a list")
    same(codec.nearest(X[4]), codec.nearest(X[4:5]), "nearest")
    same(codec.scorer(X[4]).scores(codes), codec.scorer(X[4:5]).scores(codes), "scores")


def nothing_is_not_an_error(codec, X):
    none, d = X[:0], X.shape[1]
    codes = codec.encode(none)
    same(codes, np.empty((0, codec.code_size), np.uint8), "no codes")
    same(codec.decode(codes), np.empty((0, d), np.float32), "nothing decoded")
    same(codec.nearest(none), np.empty((0, d), np.float32), "nothing nearest")
    assert codec.nearby(none, 2).shape[0] == 0
    same(codec.scorer(none).scores(codec.encode(X)), np.empty((0, len(X)), np.float32), "scores of no query")
    same(codec.scorer(X).scores(codes), np.empty((len(X), 0), np.float32), "scores of no code")


def a_seed_fixes_every_bit(codec, X):
    state = repr(np.random.get_state())  # noqa: NPY002
    if "random_state" not in codec.get_params():
        same(observed(refitted(codec, X), X), observed(codec, X), "two fits")
        return
    seeded = observed(refitted(codec, X, random_state=11), X)
    assert repr(np.random.get_state()) == state, "NumPy's global stream was touched"  # noqa: NPY002
    same(observed(refitted(codec, X, random_state=11), X), seeded, "two fits")
    same(observed(refitted(codec, X, random_state=np.random.default_rng(11)), X), seeded, "int and Generator")
    again = refitted(codec, X, random_state=11)
    same(observed(again.fit(X), X), seeded, "fitted twice")


def compiled_is_the_twin(codec, X):
    with jit_mode("0"):
        plain = observed(refitted(codec, X), X)
    with jit_mode("1"):
        compiled = observed(refitted(codec, X), X)
    same(compiled, plain, "compiled and plain")


def a_file_keeps_every_bit(codec, X):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "codec.npq")
        persist.save(codec, path)
        for mmap in (False, True):
            loaded = persist.load(path, mmap=mmap)
            assert type(loaded) is type(codec)
            assert repr(loaded) == repr(codec)
            assert loaded.n_features_in_ == codec.n_features_in_
            same(observed(loaded, X), observed(codec, X), f"after a file, mmap={mmap}")
            for mode in "01" if HAVE_NUMBA else "0":
                with jit_mode(mode):
                    same(observed(loaded, X), observed(codec, X), f"NPQUANT_JIT={mode}, mmap={mmap}")
            loaded.refine(X, 1)  # read-only arrays are no reason to fail
            del loaded


def wrong_use_is_told(codec, X):
    codes, d = codec.encode(X[:3]), X.shape[1]
    fresh = clone(codec)
    for call, argument in ((fresh.encode, X), (fresh.decode, codes), (fresh.scorer, X), (fresh.nearest, X),
                           (fresh.transform, X), (fresh.refine, X), (fresh.score, X),
                           (fresh.inverse_transform, codes)):
        refuses(NotFittedError, call, argument)
    for bad in (X[:, :-1] if d > 1 else X[:, [0, 0]], np.full((2, d), np.nan), np.full((2, d), 1e30), X[None],
                np.full((2, d), 10**18), X * 1j, [["a"] * d], [[1.0], [1.0, 2.0]], None, 3.0):
        for call in (codec.encode, codec.scorer, codec.nearest):
            refuses(InvalidInputError, call, bad)
    for bad in (X[:0], X[0], np.full((9, d), np.inf)):
        refuses(InvalidInputError, fresh.fit, bad)
    for call in (codec.refine, codec.score):
        refuses(InvalidInputError, call, X[:0])
    for bad in (codes.astype(np.int64), codes.astype(np.int8), codes.tolist(), codes[0], codes[:, :-1],
                np.repeat(codes, 2, axis=1)):
        refuses(InvalidInputError, codec.decode, bad)
    refuses(InvalidInputError, codec.scorer, X, "euclid")
    refuses(InvalidInputError, codec.encode, X, metric=None)
    refuses(InvalidInputError, codec.nearby, X, 0)
    refuses(InvalidInputError, codec.refine, X, 0)
    for bad in ([X[:2], X[:2, :-1]], [X[:2, 0]], [X[:2], X[:2] * np.nan], [X[:2], X[None]], [X[:2], None]):
        for call in (fresh.fit, codec.encode, codec.refine):
            refuses(InvalidInputError, call, iter(bad) if d > 1 else X[None])
    refuses(InvalidInputError, fresh.fit, iter([]))
    refuses(NotFittedError, fresh.encode_blocks, X)
    refuses(NotFittedError, fresh.symmetric_scorer, codes)
    refuses(InvalidInputError, codec.encode_blocks, X, metric="l1")
    refuses(InvalidInputError, codec.symmetric_scorer, codes.astype(int))


CODEC_LAWS = [
    fit_returns_the_codec, codes_are_bytes, decoding_gives_vectors, encoding_finds_the_nearest,
    decoding_again_changes_nothing, a_score_is_a_distance_to_the_decoded,
    a_score_is_as_near_as_the_norm_says, a_hamming_score_counts_bits,
    an_estimate_is_within_its_bound, the_batch_is_invisible,
    threads_are_invisible, the_layout_is_invisible, arrays_are_not_shared, one_vector_is_a_batch_of_one,
    nothing_is_not_an_error, a_seed_fixes_every_bit, compiled_is_the_twin, a_file_keeps_every_bit,
    wrong_use_is_told,
]


# ------------------------------------------------------------------------------------- laws of indexes


def some_ids(n, seed=0):
    """Distinct ids in no order, with the largest one that is allowed."""
    ids = np.random.default_rng(seed).permutation(5 * n)[:n].astype(np.int64)
    if n:
        ids[n // 2] = 2**63 - 1
    return ids


def filled(make, X, ids=None):
    index = make()
    index.add(X, some_ids(len(X)) if ids is None else ids)
    return index


def brute_force(index, Q, k):
    """The answer by decoding everything that the index holds."""
    q = reference.normalized(Q) if index.metric == "cosine" else Q
    vectors = index.reconstruct(index.ids)
    return reference.search(q, vectors, index.ids.tolist(), k, index.metric, blocks_of(index.codec, Q))


def seen(index, Q):
    """Everything that an index says."""
    ids = np.sort(index.ids)
    return (*index.search(Q, 10), *index.search(Q, index.ntotal + 2), ids, index.reconstruct(ids),
            np.array([index.ntotal, len(index)]))


def search_is_brute_force(make, X):
    index, Q = filled(make, X[:80]), queries_of(X)
    for k in (1, 2, 10, 80, 85):
        distances, ids = index.search(Q, k)
        assert distances.dtype == np.float32
        assert ids.dtype == np.int64
        assert distances.shape == ids.shape == (len(Q), k)
        same((distances, ids), brute_force(index, Q, k), f"search for {k} and brute force")
    distances, ids = index.search(Q)
    assert ids.shape == (len(Q), 10)
    assert index.search(Q).ids.tolist() == ids.tolist()
    assert index.search(Q).distances.tolist() == distances.tolist()


def many_vectors_are_all_searched(make, X):
    n = 9001  # more than two blocks of whatever is done in blocks
    index, Q = filled(make, np.resize(X, (n, X.shape[1])), np.arange(n)[::-1].copy()), X[:3]
    same(tuple(index.search(Q, 200)), brute_force(index, Q, 200), "search among many and brute force")
    everything = index.search(Q, n + 1).ids
    assert (np.sort(everything, axis=1) == np.arange(-1, n)).all()


def missing_results_are_padded(make, X):
    index = make()
    pad = np.float32(np.inf if index.metric == "l2" else -np.inf)
    for held in (0, 1, 3):
        if held:
            index.add(X[:held] if held == 1 else X[1:held])
        assert index.ntotal == len(index) == held
        distances, ids = index.search(X[:4], 5)
        assert distances.shape == ids.shape == (4, 5)
        assert (ids[:, held:] == -1).all()
        assert (distances[:, held:] == pad).all()
        assert (np.sort(ids[:, :held], axis=1) == np.arange(held)).all()
        assert np.isfinite(distances[:, :held]).all()


def ties_go_to_the_smaller_id(make, X):
    equal = np.repeat(X[:3], 30, axis=0)
    index = filled(make, equal)
    distances, ids = index.search(X[:6], 50)
    for d, i in zip(distances.tolist(), ids.tolist()):
        order = [(a if index.metric == "l2" else -a, b) for a, b in zip(d, i)]
        assert order == sorted(order)
    same((distances, ids), brute_force(index, X[:6], 50), "search among equals and brute force")


def removed_ids_never_appear(make, X):
    index, Q, names = filled(make, X[:60]), queries_of(X), some_ids(60)
    gone, kept = names[::3], np.sort(np.delete(names, np.s_[::3]))
    vectors = index.reconstruct(kept)
    assert index.remove(gone) == len(gone)
    assert index.ntotal == len(kept)
    same(np.sort(index.ids), kept, "the ids left")
    same(index.reconstruct(kept), vectors, "the vectors left")
    result = index.search(Q, 60)
    assert not np.isin(result.ids, gone).any()
    same(tuple(result), brute_force(index, Q, 60), "search after removal and brute force")
    refuses(InvalidInputError, index.reconstruct, gone[:1])
    index.add(X[:1], gone[:1])  # free again
    assert index.ntotal == len(kept) + 1
    assert index.remove([]) == 0
    assert index.remove(index.ids) == len(kept) + 1
    assert (index.search(Q, 3).ids == -1).all()


def removing_the_unknown_changes_nothing(make, X):
    index, Q = filled(make, X[:20]), queries_of(X)
    before, known = seen(index, Q), some_ids(20)
    for bad in ([int(known[0]), 10**9], [-1], [[1]], known[0], ["a"], [1.5], [None], [True]):
        refuses(InvalidInputError, index.remove, bad)
        refuses(InvalidInputError, index.reconstruct, bad)
        same(seen(index, Q), before, f"the index after remove({bad})")


def a_bad_addition_changes_nothing(make, X):
    index, Q = filled(make, X[:20]), queries_of(X)
    before, known = seen(index, Q), some_ids(20)
    new = [10**6, 10**6 + 1]
    for vectors, ids in ((X[:2], [10**6] * 2), (X[:2], [10**6, int(known[3])]), (X[:2], [-1, 10**6]),
                         (X[:2], new[:1]), (X[:2], [[1], [2]]), (X[:2], [0.5, 1.5]), (X[:2], ["a", "b"]),
                         (X[:2], np.array([2**63, 1], np.uint64)), (X[:2, :-1], new), (X[:2] * np.nan, new),
                         (X[:2], 3), (X[None, :2], new), (X[:2], [])):
        refuses(InvalidInputError, index.add, vectors, ids)
        same(seen(index, Q), before, f"the index after the ids {ids}")
    refuses(InvalidInputError, index.add, X[:1])  # 2**63 − 1 is given: there is no next id
    same(seen(index, Q), before, "the index after it ran out of ids")


def ids_are_never_given_twice(make, X):
    index = make()
    same(index.add(X[:3]), np.arange(3), "the first ids")
    same(index.add(X[3:5]), np.arange(3, 5), "the next ids")
    same(index.add(X[5:6], [100]), np.array([100]), "an id given")
    same(index.add(X[6:7]), np.array([101]), "the id after it")
    index.remove([101, 100])
    same(index.add(X[7:8]), np.array([102]), "the id after one that is gone")
    same(index.add(X[:0]), np.empty(0, np.int64), "no ids")
    index.add(X[8:9], [50])
    same(index.add(X[9:10]), np.array([103]), "the id after a smaller one")
    assert sorted(index.ids.tolist()) == [0, 1, 2, 3, 4, 50, 102, 103]
    with tempfile.TemporaryDirectory() as folder:
        index.remove([103])
        persist.save(index, Path(folder, "i"))
        same(persist.load(Path(folder, "i")).add(X[:1]), np.array([104]), "the id after a file")


def additions_add_up(make, X):
    Q, ids = queries_of(X), some_ids(60)
    once, parts = filled(make, X[:60], ids), make()
    for rows in (slice(40, 60), slice(0, 1), slice(1, 1), slice(1, 40)):
        parts.add(X[rows], ids[rows])
    same(seen(parts, Q), seen(once, Q), "in parts and at once")


def queries_do_not_see_each_other(make, X):
    index, Q = filled(make, X), np.concatenate([queries_of(X), X[:20]])
    whole = tuple(index.search(Q, 12))
    order = np.random.default_rng(0).permutation(len(Q))
    same(tuple(index.search(Q[order], 12)), tuple(a[order] for a in whole), "permuted queries")
    for i in range(0, len(Q), 5):
        same(tuple(index.search(Q[i], 12)), tuple(a[i:i + 1] for a in whole), f"query {i} alone")
    for threads in (*THREADS, None):
        same(tuple(index.search(Q, 12, threads=threads)), whole, f"{threads} threads")
    for k in (1, 5):
        same(tuple(index.search(Q, k)), tuple(a[:, :k].copy() for a in whole), f"the first {k}")


def no_query_has_no_result(make, X):
    for index in (make(), filled(make, X[:9])):
        for k in (1, 20):
            nothing = (np.empty((0, k), np.float32), np.empty((0, k), np.int64))
            same(tuple(index.search(X[:0], k)), nothing, "no results")


def the_form_is_invisible(make, X):
    X, ids = X[:40], some_ids(40)
    Q = X[:8]
    wanted = seen(filled(make, X), Q)
    with layouts(X) as forms, layouts(Q) as questions:
        for what, form in forms.items():
            same(seen(filled(make, form, ids), Q), wanted, f"adding {what}")
            same(tuple(filled(make, X).search(questions[what], 10)), wanted[:2], f"searching {what}")
    for what, form in {"list": ids.tolist(), "strided": np.repeat(ids, 2)[::2], "unsigned": ids.astype(np.uint64),
                       "big endian": ids.astype(">i8")}.items():
        same(seen(filled(make, X, form), Q), wanted, f"ids as {what}")


def nothing_is_shared(make, X):
    given, ids, Q = X[:30].copy(), some_ids(30), queries_of(X)
    question = Q.copy()
    index = make()
    returned = index.add(given, ids)
    assert not np.shares_memory(returned, ids)
    before = tuple(a.copy() for a in seen(index, Q))
    index.search(question, 5)
    same((given, ids, question), (X[:30], some_ids(30), Q), "what was given and what it was")
    given[:], ids[:], returned[:] = 7, 7, 7
    for array in (*index.search(Q, 10), index.reconstruct(index.ids), index.ids):
        array[:] = 7
    same(seen(index, Q), before, "the index after others changed their arrays")


def zero_queries_score_zero(make, X):
    index = filled(make, X[:30])
    if index.metric == "l2":
        return
    distances, ids = index.search(np.zeros((2, X.shape[1])), 5)
    assert (distances == 0).all()
    assert (ids == np.sort(some_ids(30))[:5]).all()


def cosine_does_not_see_lengths(make, X):
    index, longer = filled(make, X[:40]), filled(make, X[:40] * 4)
    if index.metric == "cosine":
        Q = queries_of(X)
        same(seen(longer, Q), seen(index, Q), "vectors four times as long")
        same(tuple(index.search(Q * np.float32(0.125), 5)), tuple(index.search(Q, 5)), "queries an eighth as long")
        assert abs(index.search(Q, 1).distances).max() < 2
    else:
        away = filled(make, X[:40] * -4)  # a codec of few codes may know a direction and no length
        assert away.reconstruct(away.ids).tobytes() != index.reconstruct(index.ids).tobytes()


def only_the_allowed_are_found(make, X):
    index, Q, rng = filled(make, X[:150]), queries_of(X), np.random.default_rng(0)
    whole = index.ids
    for removed in (False, True):
        if removed:
            index.remove(whole[::50])  # and leave holes
        ids = index.ids
        distances, names = brute_force(index, Q, len(ids))
        for share in (0, 0.1, 0.5, 1):
            mask = rng.random(len(ids)) < share
            allowed, inside = ids[mask], np.isin(names, ids[mask])
            wanted = [np.stack([np.concatenate([row[there], np.full(10, pad, row.dtype)])[:10]
                                for row, there in zip(rows, inside)])
                      for rows, pad in ((distances, np.inf if index.metric == "l2" else -np.inf), (names, -1))]
            for allow in (mask, mask.tolist(), allowed, rng.permutation(allowed).tolist(), np.repeat(allowed, 2)):
                same(tuple(index.search(Q, 10, allow=allow)), tuple(wanted), f"search among {share} and brute force")
            far = np.inf if index.metric == "l2" else -np.inf
            same(index.range_search(Q, far, allow=mask).ids, names[inside], "everything that is allowed")
        before = seen(index, Q)
        for bad in (mask[:-1], np.append(mask, True), mask[None], [10**9], [-1], [0.5], ["a"], 3, [[1]],
                    whole[:1] if removed else [-5]):
            refuses(InvalidInputError, index.search, Q, 3, allow=bad)
            refuses(InvalidInputError, index.range_search, Q, 3, allow=bad)
        same(seen(index, Q), before, "the index after wrong questions")
    nobody = make()
    assert (nobody.search(Q, 2, allow=[]).ids == -1).all()
    assert (nobody.search(Q, 2, allow=np.empty(0, bool)).ids == -1).all()
    refuses(InvalidInputError, nobody.search, Q, 2, allow=[3])


def a_range_is_brute_force(make, X):
    index, Q = filled(make, X[:60]), queries_of(X)
    distances, ids = brute_force(index, Q, 60)
    closer = -np.inf if index.metric == "l2" else np.inf
    for radius in (distances[:, 4], distances[:, 4].tolist(), np.nextafter(distances[:, 4].astype(float), closer),
                   float(distances[0, 9]), np.float32(distances[1, 0]), 0, closer, -closer, 1e300, -1e300):
        lims, found, names = index.range_search(Q, radius)
        bound = np.broadcast_to(np.asarray(radius, float), (len(Q),))[:, None]
        inside = distances <= bound if index.metric == "l2" else distances >= bound
        wanted = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
        same((lims, found, names), (wanted, distances[inside], ids[inside]), f"the range {radius} and brute force")
    for threads in THREADS:
        same(tuple(index.range_search(Q, distances[:, 4], threads=threads)),
             tuple(index.range_search(Q, distances[:, 4])), f"{threads} threads")
    for bad in (np.nan, None, "3", True, [1.0] * (len(Q) + 1), [[1.0]], 1j, {}):
        refuses(InvalidInputError, index.range_search, Q, bad)
    for nothing in (make().range_search(Q, 1), index.range_search(Q[:0], 1)):
        assert not len(nothing.ids)
        assert not nothing.lims.any()


def an_update_replaces(make, X):
    index, Q, names = filled(make, X[:80]), queries_of(X), some_ids(80)
    some, new = names[::3][::-1], X[80:80 + len(names[::3])]
    replaced = X[:80].copy()
    replaced[::3] = new[::-1]
    index.update(some, new)
    wanted = seen(filled(make, replaced, names), Q)
    same(seen(index, Q), wanted, "updated and built so")
    assert set(index.ids[-len(some):].tolist()) == set(some.tolist()) or index._nlist > 1
    for ids, vectors in (([10**9], X[:1]), ([int(names[0])] * 2, X[:2]), (names[:2], X[:3]), (names[:2], X[:1]),
                         (names[:1], X[:1] * np.nan), (names[:1], X[:1, :-1]), (["a"], X[:1]), (3, X[:1])):
        refuses(InvalidInputError, index.update, ids, vectors)
        same(seen(index, Q), wanted, f"the index after update({ids})")
    index.update([], X[:0])
    same(seen(index, Q), wanted, "the index after no update")
    for _ in range(4):  # more than there is of anything else
        index.update(names, X[:80])
    same(seen(index, Q), seen(filled(make, X[:80], names), Q), "updated again and again")


def a_merge_is_an_addition(make, X):
    Q, names = queries_of(X), some_ids(100)
    whole, part, other = filled(make, X[:100], names), filled(make, X[:70], names[:70]), filled(
        make, X[70:100], names[70:])
    before, empty = seen(other, Q), make()
    other.remove(names[99:])
    other.add(X[99:100], names[99:])
    assert part.merge(make()) == 0
    assert part.merge(other) == 30
    same(seen(part, Q), seen(whole, Q), "merged and built so")
    same(seen(other, Q), before, "the one that was merged")
    assert empty.merge(whole) == 100
    same(seen(empty, Q), seen(whole, Q), "merged into nothing")
    strange = filled(make, X[:5], np.arange(1000, 1005))
    strange.metric = "ip" if strange.metric == "l2" else "l2"
    for bad in (other, part, strange, None, X):
        refuses(InvalidInputError, part.merge, bad)
        same(seen(part, Q), seen(whole, Q), "after what could not be merged")
    small, large = filled(make, X[:3], [0, 1, 2]), filled(make, X[:2], [7, 8])
    large.remove([8])
    small.merge(large)
    same(small.add(X[:1]), np.array([9]), "the id after a merge")


def compacting_is_invisible(make, X):
    index, Q, names = filled(make, X[:200]), queries_of(X), some_ids(200)
    index.remove(names[10:15])
    index.remove(names[150:])
    before, order = seen(index, Q), index.ids
    index.compact()
    same(seen(index, Q), before, "compacted and before")
    same(index.ids, order, "the order of ids, compacted and before")
    index.add(X[:1], [10**7])
    assert index.remove([10**7]) == 1
    same(seen(index, Q), before, "compacted, and an addition")
    index.remove(index.ids)
    index.compact()
    assert index.ntotal == 0
    make().compact()


def threads_may_search_at_once(make, X):
    index, Q = filled(make, X), queries_of(X)
    wanted, results = tuple(index.search(Q, 15)), {}
    start = threading.Barrier(8)

    def work(name):
        start.wait()
        results[name] = [tuple(index.search(Q, 15, threads=1 + name % 2)) for _ in range(3)]
    workers = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(results) == list(range(8))
    for name, repeated in results.items():
        for result in repeated:
            same(result, wanted, f"thread {name}")


def a_compiled_search_is_the_twin(make, X):
    Q, results = queries_of(X), []
    for mode in "01":
        with jit_mode(mode):
            results.append(seen(filled(make, X), Q))
    same(results[1], results[0], "compiled and plain")


def a_file_keeps_the_index(make, X):
    Q = queries_of(X)
    for rows in (0, 50):
        index = filled(make, X[:rows], np.arange(rows)[::-1] * 3)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "index.npq")
            persist.save(index, path)
            for mmap in (False, True):
                for mode in "01" if HAVE_NUMBA else "0":
                    with jit_mode(mode):
                        loaded = persist.load(path, mmap=mmap)
                        assert repr(loaded) == repr(index)
                        same(seen(loaded, Q), seen(index, Q), f"after a file, mmap={mmap}")
                        loaded.add(X[:2], [1000, 1001])  # copies what is mapped
                        assert loaded.remove([1000, 1001]) == 2
                        same(seen(loaded, Q), seen(index, Q), f"after a file and an addition, mmap={mmap}")
                        del loaded


def wrong_questions_are_told(make, X):
    index = filled(make, X[:9])
    for k in (0, -1, 1.5, "3", None, True):
        refuses(InvalidInputError, index.search, X[:2], k)
    for bad in (X[:, :-1], X[None], np.full((1, X.shape[1]), np.nan), None, []):
        refuses(InvalidInputError, index.search, bad, 3)
    for threads in (0, -2, 1.5):
        refuses(InvalidInputError, index.search, X[:2], 3, threads=threads)
    empty = make()
    empty.codec = clone(empty.codec)
    refuses(NotFittedError, empty.add, X)
    refuses(NotFittedError, empty.search, X, 3)
    assert "not fitted" in repr(empty)
    assert "9 vectors" in repr(index)
    refuses(InvalidInputError, type(index), index.codec, "manhattan")
    assert index.d == X.shape[1]


INDEX_LAWS = [
    search_is_brute_force, many_vectors_are_all_searched, missing_results_are_padded, ties_go_to_the_smaller_id,
    removed_ids_never_appear, removing_the_unknown_changes_nothing, a_bad_addition_changes_nothing,
    ids_are_never_given_twice, additions_add_up, only_the_allowed_are_found, a_range_is_brute_force,
    an_update_replaces, a_merge_is_an_addition, compacting_is_invisible, queries_do_not_see_each_other,
    no_query_has_no_result, the_form_is_invisible, nothing_is_shared, zero_queries_score_zero,
    cosine_does_not_see_lengths, threads_may_search_at_once, a_compiled_search_is_the_twin, a_file_keeps_the_index,
    wrong_questions_are_told,
]
