"""Every codec and every index keeps every law; and each law catches somebody who breaks it."""

import inspect
import os
from functools import cache, partial

import laws
import numpy as np
import pytest
import strategies

from npquant import persist
from npquant._base import clone
from npquant.index.flat import FlatIndex
from npquant.index.ivf import IVFIndex
from npquant.index.multi import InvertedMultiIndex
from npquant.kmeans import KMeans
from npquant.quantizers.additive import AdditiveQuantizer, LocalSearchQuantizer
from npquant.quantizers.binary import ITQ, SignQuantizer
from npquant.quantizers.flat import FlatQuantizer
from npquant.quantizers.lattice import SphericalLattice
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.rabitq import RaBitQuantizer
from npquant.quantizers.residual import GeneralizedResidualQuantizer, ResidualQuantizer
from npquant.quantizers.scalar import ScalarQuantizer
from npquant.quantizers.transformed import OptimizedProductQuantizer, PreTransformed
from npquant.transforms import PCA, Rotation

core = pytest.mark.core
# Codecs here are trained on vectors as they are, also where an index of them normalises.
pytestmark = pytest.mark.filterwarnings("ignore:the codes tell less:npquant.NpquantWarning")

# A new codec, or a new way to configure one, joins by being listed. The first is run in the core tests.
CODECS = {
    "PQ m=4 nbits=4": partial(ProductQuantizer, 4, 4),
    "PQ m=1 nbits=1": partial(ProductQuantizer, 1, 1),
    "PQ m=2 nbits=8": partial(ProductQuantizer, 2, 8, n_iter=4),
    "PQ m=d nbits=3": partial(ProductQuantizer, 8, 3, init="random"),
    "PQ m=1 nbits=7 untrained": partial(ProductQuantizer, 1, 7, n_iter=0),
    "PQ m=1 nbits=4": partial(ProductQuantizer, 1, 4),
    "PQ m=d nbits=4, drawn": partial(ProductQuantizer, 8, 4, max_points=120),
    "PQ by decoding": partial(laws.ByDecoding, 2, 4),
    "OPQ m=4 nbits=4": partial(OptimizedProductQuantizer, 4, 4, n_iter=6),
    "OPQ m=2 nbits=3 random": partial(OptimizedProductQuantizer, 2, 3, n_iter=2, init="random"),
    "PCA, PQ": partial(PreTransformed, PCA(6), ProductQuantizer(2, 4)),
    "whitening, rotation, PQ": partial(PreTransformed, PCA(6, whiten=0.5),
                                       PreTransformed(Rotation(random_state=1), ProductQuantizer(3, 4))),
    "flat": FlatQuantizer,
    "SQ int8": partial(ScalarQuantizer, "int8"),
    "SQ int4": partial(ScalarQuantizer, "int4"),
    "SQ float16": partial(ScalarQuantizer, "float16"),
    "lattice": partial(SphericalLattice, r2=21),
    "PCA, lattice": partial(PreTransformed, PCA(6), SphericalLattice(6, 9)),
    "rotation, PQ by decoding": partial(PreTransformed, Rotation(), laws.ByDecoding(2, 4)),
    "sign": partial(SignQuantizer),
    "sign, Hamming": partial(SignQuantizer, asymmetric=False),
    "ITQ": partial(ITQ, 6),
    "ITQ, Hamming": partial(ITQ, 8, asymmetric=False),
    "RaBitQ": partial(RaBitQuantizer),
    "residual m=3 nbits=4": partial(ResidualQuantizer, 3, 4, beam=4),
    "residual m=2 nbits=6, greedy": partial(ResidualQuantizer, 2, 6, beam=1, n_refine=0),
    "PCA, residual": partial(PreTransformed, PCA(6), ResidualQuantizer(2, 3)),
    "generalized residual m=2 nbits=3": partial(GeneralizedResidualQuantizer, 2, 3, n_iter=1),
    "generalized residual, no norm": partial(GeneralizedResidualQuantizer, 3, 4, n_iter=1, regularization=1.0,
                                             norm="constant"),
    "additive m=3 nbits=4": partial(AdditiveQuantizer, 3, 4, beam=4, n_iter=2),
    "local search m=3 nbits=4": partial(LocalSearchQuantizer, 3, 4, n_iter=3, train_steps=3, encode_steps=4),
}

# A new index joins likewise: a function of a fitted codec, and the codec's name.
INDEXES = {
    "flat l2": (partial(FlatIndex, metric="l2"), "PQ m=4 nbits=4"),
    "flat ip": (partial(FlatIndex, metric="ip"), "PQ m=4 nbits=4"),
    "flat cosine": (partial(FlatIndex, metric="cosine"), "PQ m=4 nbits=4"),
    "flat l2, few codes": (partial(FlatIndex, metric="l2"), "PQ m=1 nbits=1"),
    "flat l2, many codes": (partial(FlatIndex, metric="l2"), "PQ m=2 nbits=8"),
    "flat l2 by decoding": (partial(FlatIndex, metric="l2"), "PQ by decoding"),
    "flat cosine by decoding": (partial(FlatIndex, metric="cosine"), "PQ by decoding"),
    "ivf l2": (lambda codec: inverted(KMeans(6, random_state=0), codec, residual=False), "PQ m=4 nbits=4"),
    "ivf cosine": (lambda codec: inverted(KMeans(1, random_state=0), codec, "cosine", residual=False),
                   "PQ m=2 nbits=8"),
    "multi-index ip": (lambda codec: inverted(InvertedMultiIndex(2, random_state=0), codec, "ip", residual=False),
                       "PQ m=2 nbits=8"),
    "ivf l2, residual, by decoding": (lambda codec: inverted(KMeans(5, random_state=0), codec, residual=True),
                                      "PQ by decoding"),
    "flat l2, lattice": (partial(FlatIndex, metric="l2"), "lattice"),
    "flat cosine, lattice": (partial(FlatIndex, metric="cosine"), "lattice"),
}


def listed(names):
    return [pytest.param(name, marks=core) if i == 0 else name for i, name in enumerate(names)]


@cache
def data():
    x = strategies.make_vectors("normal", 300, 8, seed=1)
    x[100:150] = x[:50]  # duplicates
    x[150:155] = 0
    x.flags.writeable = False
    return x


@cache
def fitted(name):
    codec = CODECS[name]()
    return (codec.set_params(random_state=3) if "random_state" in codec.get_params() else codec).fit(data())


def inverted(coarse, *args, **options):
    return IVFIndex(coarse.fit(data()), *args, **options)


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    """Classes of the tests can be saved as well."""
    monkeypatch.setattr(persist, "KINDS", {**persist.KINDS, "ByDecoding": "laws:ByDecoding",
                                           **{cls.__name__: f"{__name__}:{cls.__qualname__}" for cls in SAVED}})


def run(law, thing):
    if "compiled" in law.__name__ and not laws.HAVE_NUMBA:
        pytest.skip("numba is not installed")
    law(thing, data())


@pytest.mark.parametrize("law", laws.CODEC_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", listed(CODECS))
def test_codec(name, law):
    run(law, fitted(name))


@pytest.mark.parametrize("law", laws.INDEX_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", listed(INDEXES))
def test_index(name, law):
    make, codec = INDEXES[name]
    run(law, lambda: make(fitted(codec)))


# ------------------------------------------------------------------------------------- lawbreakers


def breaks(law, **members):
    """A codec with some methods replaced, and the law that must say so."""
    name = f"{law.__name__}-{'-'.join(members)}"
    return pytest.param(law, type("Broken", (ProductQuantizer,), members), id=name)


PQ = ProductQuantizer


def fits_to_nothing(self, X, y=None):
    PQ.fit(self, X)


def keeps_what_it_was_given(self, X, y=None):
    PQ.fit(self, X)
    self.given = X
    return self


def spoils_what_it_was_given(self, X, y=None):
    PQ.fit(self, X)
    X[0, 0] += 1
    return self


def fits_the_first_column(self, X, y=None):
    return PQ.fit(self, X if np.asarray(X).flags.c_contiguous else np.asarray(X)[:-9])


def keeps_the_last(self, codes):
    if not hasattr(self, "kept"):
        self.kept = {}
    key = codes.tobytes()
    return self.kept.setdefault(key, PQ._decode(self, codes))


def swapped(self, queries, product):
    return PQ._tables(self, queries, product) * np.float32(1.0000001)


CODEC_BREAKERS = [
    breaks(laws.fit_returns_the_codec, fit=fits_to_nothing),
    breaks(laws.codes_are_bytes, _encode=lambda self, x: PQ._encode(self, x).astype(np.int64)),
    breaks(laws.codes_are_bytes, transform=lambda self, X: PQ.encode(self, X)[::-1]),
    breaks(laws.decoding_gives_vectors, _decode=lambda self, codes: PQ._decode(self, codes).astype(float)),
    breaks(laws.decoding_gives_vectors, _nearest=lambda self, x: PQ._nearest(self, x) + np.float32(1e-6)),
    breaks(laws.encoding_finds_the_nearest, _encode=lambda self, x: PQ._encode(self, x) // 2),
    breaks(laws.decoding_again_changes_nothing, _decode=lambda self, codes: -PQ._decode(self, codes)),
    breaks(laws.a_score_is_a_distance_to_the_decoded, _tables=swapped),
    breaks(laws.a_score_is_a_distance_to_the_decoded,
           _decode=lambda self, codes: np.nextafter(PQ._decode(self, codes), np.float32(9))),
    breaks(laws.a_score_is_as_near_as_the_norm_says, score_model="stored_norm", _tables=swapped,
           score_bound=lambda self, codes: np.zeros(len(codes)) - 1e-3),
    breaks(laws.a_hamming_score_counts_bits, score_model="hamming"),
    breaks(laws.an_estimate_is_within_its_bound, score_model="estimator",
           bound=lambda self, queries, codes, metric, eps0: np.zeros((len(queries), len(codes)))),
    breaks(laws.the_batch_is_invisible, _encode=lambda self, x: PQ._encode(self, x - x.mean(axis=0))),
    breaks(laws.the_batch_is_invisible, encode=lambda self, X, metric="l2": PQ.encode(
        self, np.where(np.arange(len(X))[:, None] < 4096, X, 0) if np.ndim(X) == 2 else X, metric=metric)),
    breaks(laws.threads_are_invisible, _encode=lambda self, x: PQ._encode(self, x + (self.threads == 7))),
    breaks(laws.threads_are_invisible, _fit=lambda self, x: PQ._fit(self, x[:200 + (self.threads or 1)])),
    breaks(laws.the_layout_is_invisible, fit=fits_the_first_column),
    breaks(laws.the_layout_is_invisible, encode=lambda self, X, metric="l2": PQ.encode(
        self, X if isinstance(X, np.ndarray) else X[::-1], metric=metric)),
    breaks(laws.arrays_are_not_shared, fit=keeps_what_it_was_given,
           _nearest=lambda self, x: PQ._nearest(self, x) + self.given[0, 0]),
    breaks(laws.arrays_are_not_shared, fit=spoils_what_it_was_given),
    breaks(laws.arrays_are_not_shared, _decode=keeps_the_last),
    breaks(laws.one_vector_is_a_batch_of_one,
           encode=lambda self, X, metric="l2": PQ.encode(self, X)[0 if np.ndim(X) == 1 else slice(None)]),
    breaks(laws.nothing_is_not_an_error, _decode=lambda self, codes: PQ._decode(self, codes) if len(codes) else
           np.empty((0, 1), np.float32)),
    breaks(laws.a_seed_fixes_every_bit, _fit=lambda self, x: PQ._fit(self.set_params(random_state=None), x)),
    breaks(laws.a_seed_fixes_every_bit,
           _fit=lambda self, x: PQ._fit(self, x + 0 * np.random.rand())),  # noqa: NPY002
    breaks(laws.compiled_is_the_twin,
           _encode=lambda self, x: PQ._encode(self, x + (os.environ.get("NPQUANT_JIT") == "1"))),
    breaks(laws.a_file_keeps_every_bit, _get_state=lambda self: {"codebooks": self.codebooks_ + np.float32(1e-6)}),
    breaks(laws.wrong_use_is_told, check_codes=lambda self, codes: np.asarray(codes, np.uint8)),
    breaks(laws.wrong_use_is_told, encode=lambda self, X, metric="l2": PQ._encode(
        self, np.ascontiguousarray(X, np.float32).reshape(-1, 8))),
]


@core
@pytest.mark.parametrize(("law", "broken"), CODEC_BREAKERS)
def test_broken_codec(law, broken, monkeypatch):
    if law is laws.compiled_is_the_twin and not laws.HAVE_NUMBA:
        pytest.skip("numba is not installed")
    monkeypatch.setitem(globals(), "Broken", broken)
    codec = broken(4, 4, n_iter=2, random_state=3)
    codec.fit(data().copy())
    with pytest.raises(AssertionError):
        law(codec, data())


class WrongOrder(FlatIndex):
    def search(self, queries, k=10, **options):
        distances, ids = super().search(queries, k, **options)
        ids[:, :2] = ids[:, 1::-1][:, :ids[:, :2].shape[1]]
        return type(super().search(queries, k))(distances, ids)


class LooksAtTheFirst(FlatIndex):
    def _append(self, parts, names):
        super()._append([(codes[:4096], lists) for codes, lists in parts], names[:4096])


class ForgetsToPad(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        return super().search(queries, min(k, max(self.ntotal, 1)), threads=threads)


class PadsWithZero(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        distances, ids = super().search(queries, k, threads=threads)
        distances[ids == -1] = 0
        return type(super().search(queries, k))(distances, ids)


class LargerFirst(FlatIndex):
    def _topk(self, x, store, live, k, threads):
        distances, ids = self._scorer(x)._topk(store.blocks, -store.ids, live, k, threads)
        return distances, -ids


class OnlyHides(FlatIndex):
    def remove(self, ids):
        names = np.unique(self._check_ids(ids, "ids"))
        slots = self._slots(self._store, names)
        self._store.ids.reshape(-1)[slots] = 7
        return len(names)


class RemovesWhatItKnows(FlatIndex):
    def remove(self, ids):
        return super().remove(np.intersect1d(np.asarray(ids, object).astype(np.int64), self.ids))


class HalfRemoves(FlatIndex):
    def remove(self, ids):
        for name in list(ids):
            super().remove([name])
        return len(ids)


class ChangesAllTheSame(FlatIndex):
    def add(self, X, ids=None):
        try:
            return super().add(X, ids)
        except ValueError:
            self.remove(self.ids[:1])
            raise


class Renumbers(FlatIndex):
    def add(self, X, ids=None):
        self._next_id = int(self.ids.max(initial=-1)) + 1
        return super().add(X, ids)


class AllowsAll(FlatIndex):
    def _asked(self, queries, allow):
        return super()._asked(queries, None)


class LeavesOutTheRim(FlatIndex):
    def _within(self, x, store, live, radius, threads):
        return super()._within(x, store, live, np.nextafter(radius, np.float32(-np.inf)), threads)


class UpdatesTheFirst(FlatIndex):
    def update(self, ids, X):
        super().update(ids[:1], X[:1])


class TakesAway(FlatIndex):
    def merge(self, other):
        merged = super().merge(other)
        other.remove(other.ids[:1])
        return merged


class LosesOne(FlatIndex):
    def compact(self):
        self.remove(self.ids[:1])


class CodesInBatches(FlatIndex):
    def add(self, X, ids=None):
        return super().add(X if len(X) != 39 else X[::-1], ids)


class SeesTheBatch(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        result = super().search(queries, k, threads=threads)
        result.distances[:] += np.float32(len(result.ids))
        return result


class SeesTheThreads(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        result = super().search(queries, k, threads=threads)
        result.distances[:] += np.float32(threads == 7)
        return result


class NeedsAQuery(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        result = super().search(queries, k, threads=threads)
        return result if len(result.ids) else type(result)(result.distances[:, :0], result.ids)


class SeesTheLayout(FlatIndex):
    def add(self, X, ids=None):
        return super().add(X if np.asarray(X).flags.c_contiguous else np.asarray(X)[::-1], ids)


class KeepsIds(FlatIndex):
    def add(self, X, ids=None):
        n = len(super().add(X, ids))
        return self._store.ids.reshape(-1)[:n]


class SharesIds(FlatIndex):
    ids = property(lambda self: self._store.ids.reshape(-1)[:self.ntotal])


class NotQuiteZero(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        return super().search(np.asarray(queries) + np.float32(1e-3), k, threads=threads)


class NotNormalised(FlatIndex):
    def add(self, X, ids=None):
        self.metric, kept = "ip", self.metric
        try:
            return super().add(X, ids)
        finally:
            self.metric = kept


class OneAtATime(FlatIndex):
    busy = 0

    def search(self, queries, k=10, *, threads=None):
        self.k = k
        if threads:
            self.busy += 1
        return super().search(queries, k - (self.busy > 4), threads=threads)


class SeesTheCompiler(FlatIndex):
    def _topk(self, x, store, live, k, threads):
        distances, ids = super()._topk(x, store, live, k, threads)
        return distances + np.float32(os.environ.get("NPQUANT_JIT") == "1"), ids


class LosesItsMetric(FlatIndex):
    def _get_state(self):
        return {**super()._get_state(), "metric": "ip"}


class TakesAnything(FlatIndex):
    def search(self, queries, k=10, *, threads=None):
        return super().search(queries, max(int(k or 1), 1), threads=threads)


class Broken(ProductQuantizer):
    """Stands for the codecs above while they are saved; by itself it breaks nothing."""


SAVED = (LosesItsMetric, Renumbers, Broken)

INDEX_BREAKERS = [
    (laws.search_is_brute_force, WrongOrder), (laws.many_vectors_are_all_searched, LooksAtTheFirst),
    (laws.missing_results_are_padded, ForgetsToPad),
    (laws.missing_results_are_padded, PadsWithZero), (laws.search_is_brute_force, PadsWithZero),
    (laws.ties_go_to_the_smaller_id, LargerFirst), (laws.removed_ids_never_appear, OnlyHides),
    (laws.removing_the_unknown_changes_nothing, RemovesWhatItKnows),
    (laws.removing_the_unknown_changes_nothing, HalfRemoves), (laws.a_bad_addition_changes_nothing, ChangesAllTheSame),
    (laws.only_the_allowed_are_found, AllowsAll), (laws.a_range_is_brute_force, LeavesOutTheRim),
    (laws.an_update_replaces, UpdatesTheFirst), (laws.a_merge_is_an_addition, TakesAway),
    (laws.compacting_is_invisible, LosesOne),
    (laws.ids_are_never_given_twice, Renumbers), (laws.additions_add_up, CodesInBatches),
    (laws.queries_do_not_see_each_other, SeesTheBatch), (laws.queries_do_not_see_each_other, SeesTheThreads),
    (laws.no_query_has_no_result, NeedsAQuery), (laws.the_form_is_invisible, SeesTheLayout),
    (laws.nothing_is_shared, KeepsIds), (laws.nothing_is_shared, SharesIds),
    (laws.zero_queries_score_zero, NotQuiteZero), (laws.cosine_does_not_see_lengths, NotNormalised),
    (laws.threads_may_search_at_once, OneAtATime), (laws.a_compiled_search_is_the_twin, SeesTheCompiler),
    (laws.a_file_keeps_the_index, LosesItsMetric), (laws.wrong_questions_are_told, TakesAnything),
]


@core
@pytest.mark.parametrize(("law", "broken"), INDEX_BREAKERS, ids=lambda thing: thing.__name__)
def test_broken_index(law, broken):
    if law is laws.a_compiled_search_is_the_twin and not laws.HAVE_NUMBA:
        pytest.skip("numba is not installed")
    metric = "cosine" if broken in (NotQuiteZero, NotNormalised) else "l2"
    with pytest.raises(AssertionError):
        law(lambda: broken(fitted("PQ m=4 nbits=4"), metric), data())


@pytest.mark.parametrize("law", laws.CODEC_LAWS, ids=lambda law: law.__name__)
def test_breakers_break_by_what_was_replaced_alone(law):
    run(law, Broken(4, 4, n_iter=2, random_state=3).fit(data().copy()))


@core
def test_each_law_has_its_breaker():
    caught = {param.values[0] for param in CODEC_BREAKERS} | {law for law, _ in INDEX_BREAKERS}
    assert caught == {*laws.CODEC_LAWS, *laws.INDEX_LAWS}
    written = {value for value in vars(laws).values() if inspect.isfunction(value) and value.__module__ == "laws"
               and list(inspect.signature(value).parameters) in (["codec", "X"], ["make", "X"])}
    assert written - {laws.observed} == caught, "a law is written and not listed"


@core
@pytest.mark.parametrize("bad", [(np.float32(0), np.float32(-0.0)), (np.zeros(2), np.zeros(3)),
                                 (np.zeros(2), np.zeros(2, np.float32)), (np.zeros(2), np.array([0, 1e-300])),
                                 ((np.zeros(2), np.zeros(2)), (np.zeros(2), np.ones(2)))])
def test_same_is_bit_for_bit(bad):
    laws.same(bad[0], bad[0], "itself")
    with pytest.raises(AssertionError):
        laws.same(*bad, "others")


@core
def test_a_codec_is_cloned_unfitted():
    copy = clone(fitted("PQ m=4 nbits=4"))
    assert not hasattr(copy, "codebooks_")
