"""Search in two steps: short codes choose, larger ones rank."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from npquant import _checks
from npquant._rows import blocks, is_stream, training_rows
from npquant.errors import FormatError, InvalidInputError
from npquant.index._store import Ids, Store, writing
from npquant.index.base import Coded, Index, RangeResult, SearchResult, bound_of
from npquant.index.flat import FlatIndex
from npquant.kernels import rerank
from npquant.kernels.scan import smallest
from npquant.quantizers.base import DecodingScorer, Float, Quantizer, normalized
from npquant.quantizers.scalar import ScalarQuantizer

_DECODED = 1 << 22  # numbers of candidates decoded at a time
_CANDIDATES = 1 << 22  # held at a time


class RefineIndex(Index):
    """The best ``oversample · k`` of an index are ranked anew by more exact codes of the same vectors.

    Parameters
    ----------
    base : Index
        Without vectors: what is added here is added there. (It is taken as it is; its own object stays empty.)
    codec : Quantizer, optional
        Of the second codes; by default ``ScalarQuantizer("int8")``, a byte a dimension. ``ScalarQuantizer("float16")``
        and ``FlatQuantizer()`` come nearer to the vectors. They need not be in memory: ``load(path, mmap=True)``
        reads only those that are ranked.

    Notes
    -----
    A distance found is the second codec's score, exactly: of the candidates none is misplaced, and what the base does
    not find among its best ``oversample · k`` is missed. ``range_search`` asks the second codes alone, all of them.

    Memory: both codes, and the ids twice; where ids neither ascend nor are numbered by themselves, once more. The
    second step costs O(oversample · k · d) a query.

    Examples
    --------
    >>> import npquant as nq
    >>> X, _, Q, _ = nq.datasets.load_digits()
    >>> index = nq.RefineIndex(nq.FlatIndex(nq.ProductQuantizer(4, 4, random_state=0))).fit(X)
    >>> _ = index.add(X)
    >>> distances, ids = index.search(Q[:2], k=3, oversample=10)
    >>> ids.shape, index.ntotal
    ((2, 3), 1442)
    """

    # In one piece, so that an interruption or another thread sees all of a change or nothing.
    _both: tuple[Index, FlatIndex]
    _sorted: tuple[Store, Ids, Ids] | None

    def __init__(self, base: Index, codec: Quantizer | None = None) -> None:
        if not isinstance(base, Index) or isinstance(base, RefineIndex):
            raise InvalidInputError(f"base is {base!r}, wanted a FlatIndex or an IVFIndex.")
        if base.ntotal:
            raise InvalidInputError(f"base holds {base.ntotal} vectors, whose second codes nobody has: wrap it while "
                                    "it is empty, and add them here.")
        codec = ScalarQuantizer("int8") if codec is None else codec
        if not isinstance(codec, Quantizer):
            raise InvalidInputError(f"codec is {codec!r}, wanted a codec such as ScalarQuantizer('int8').")
        self._both = copy.copy(base), FlatIndex(codec, base.metric)
        self._sorted = None

    # ------------------------------------------------------------------------------------- parts

    @property
    def base(self) -> Index:
        """The index that chooses candidates."""
        return self._both[0]

    @property
    def codec(self) -> Quantizer:  # type: ignore[override]
        """The codec that ranks them."""
        return self._both[1].codec

    @property
    def metric(self) -> str:  # type: ignore[override]
        """``l2``, ``ip`` or ``cosine``: the base's."""
        return self._both[0].metric

    @property
    def _store(self) -> Store | None:  # type: ignore[override]
        return self._both[1]._store

    @property
    def _next_id(self) -> int:  # type: ignore[override]
        return self._both[1]._next_id

    @property
    def ids(self) -> Ids:
        """The ids held (a copy), in the order that masks are in: the base's."""
        return self._both[0].ids

    def fit(self, X: Any, y: Any = None) -> RefineIndex:
        """Train what is not fitted yet, of the base and the second codec, on ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` is wrong, or the index holds vectors already.
        """
        base, kept = self._copies()
        if is_stream(X) and iter(X) is X:  # it can be read once, and there are two to train
            X = training_rows(X, None, None)
        self._both = base.fit(X), kept.fit(X)
        return self

    # ------------------------------------------------------------------------------------- changing

    def add(self, X: Any, ids: Any = None) -> Ids:
        """Encode and add vectors, by both codecs; return their ids. As for every index."""
        parts = self._coded_twice(X)
        with writing():
            base, kept = self._copies()
            names = base._take(parts[0], ids)
            kept._take(parts[1], names)
            self._both = base, kept
        return names

    def remove(self, ids: Any) -> int:
        """Remove vectors by id; return how many. As for every index."""
        with writing():
            base, kept = self._copies()
            count = base.remove(ids)
            kept.remove(ids)
            self._both = base, kept
        return count

    def update(self, ids: Any, X: Any) -> None:
        """Put the vectors ``X`` (n, d) in the places of those with ``ids`` (n,). As for every index."""
        names = self._distinct(ids)
        self._slots(self._store, names)  # before the work of coding
        parts = self._coded_twice(X)
        with writing():
            base, kept = self._copies()
            base._put(parts[0], names)
            kept._put(parts[1], names)
            self._both = base, kept

    def compact(self) -> None:
        """Free the memory of removed vectors and of the room to grow."""
        with writing():
            base, kept = self._copies()
            base.compact()
            kept.compact()
            self._both = base, kept

    def _merge(self, other: Any, names: Ids | None) -> int:
        if not isinstance(other, RefineIndex):
            raise InvalidInputError(f"other is a {type(other).__name__}, wanted a RefineIndex.")
        theirs = other._both
        with writing():
            base, kept = self._copies()
            if names is not None:  # new names, told in the order of the base's vectors
                ours = dict(zip(theirs[0].ids.tolist(), names.tolist()))
                again = np.array([ours[name] for name in theirs[1].ids.tolist()], np.int64)
            count = base._merge(theirs[0], names)
            kept._merge(theirs[1], None if names is None else again)
            self._both = base, kept
        return count

    def _copies(self) -> tuple[Index, FlatIndex]:
        return copy.copy(self._both[0]), copy.copy(self._both[1])

    def _coded_twice(self, X: Any) -> tuple[list[Coded], list[Coded]]:
        parts: tuple[list[Coded], list[Coded]] = ([], [])
        if is_stream(X):  # read once
            for block, _ in blocks(X, "X", 1 << 16):
                for part, index in zip(parts, self._both):
                    part += index._coded(block)
        else:
            for part, index in zip(parts, self._both):
                part += index._coded(X)
        return parts

    # ------------------------------------------------------------------------------------- asking

    def search(self, queries: Any, k: int = 10, *, oversample: int = 10, nprobe: int | None = None, allow: Any = None,
               threads: int | None = None) -> SearchResult:
        """Return the ``k`` nearest by the second codes of each query's ``oversample · k`` nearest in the base.

        Parameters
        ----------
        queries : array_like (nq, d)
            One 1-D vector is a batch of one.
        k : int
        oversample : int
            Candidates for each result.
        nprobe : int, optional
            Of an ``IVFIndex``: lists to look into.
        allow : array_like of bool (ntotal,), or of int, optional
            The only vectors to be found: a mask in the order of ``ids``, or ids.
        threads : int, optional
            It never changes the result.

        Returns
        -------
        SearchResult
            ``distances`` (nq, k) float32 and ``ids`` (nq, k) int64, ties to the smaller id.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        k, oversample = _checks.integer(k, "k"), _checks.integer(oversample, "oversample")
        base, kept = self._both
        options = _probed(base, nprobe)
        q = kept.codec._vectors(queries, "queries")
        wanted = max(1, min(k * oversample, base.ntotal))
        distances, ids = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
        step = max(1, _CANDIDATES // wanted)
        for start in range(0, max(1, len(q)), step):
            rows = slice(start, start + step)
            names = base.search(q[rows], wanted, allow=allow, threads=threads, **options).ids
            distances[rows], ids[rows] = self._ranked(q[rows], names, k, kept, threads)
        if self.metric != "l2":
            np.subtract(np.float32(0), distances, out=distances)  # no zero becomes −0
        return SearchResult(distances, ids)

    def range_search(self, queries: Any, radius: Any, *, nprobe: int | None = None, allow: Any = None,
                     threads: int | None = None) -> RangeResult:
        """Return all vectors within ``radius`` of each query by the second codes.

        Parameters
        ----------
        queries : array_like (nq, d)
        radius : float, or array_like (nq,)
            In the unit of ``distances``: squared for ``l2``.
        nprobe : int, optional
            Of an ``IVFIndex``: lists to look into. By default all second codes are read, whatever their list.
        allow, threads
            As for ``search``.

        Returns
        -------
        RangeResult
            ``lims`` (nq + 1,), ``distances`` and ``ids``, each query's in the order of ``search``.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        base, kept = self._both
        if nprobe is not None:
            return _within_lists(base, kept, queries, radius, allow, threads, _probed(base, nprobe))
        given = None if allow is None else np.asarray(allow)
        if given is not None and given.dtype == np.bool_ and given.shape == (base.ntotal,):
            given = base.ids[given]
        return kept.range_search(queries, radius, allow=given, threads=threads)

    def _ranked(self, q: Float, names: Ids, k: int, kept: FlatIndex, threads: int | None) -> tuple[Float, Ids]:
        store = kept._store
        if store is None or not store.count or not names.size:
            return np.full((len(q), k), np.inf, np.float32), np.full((len(q), k), -1, np.int64)
        slots = self._found(store, names.ravel()).reshape(names.shape)
        if ((slots < 0) & (names >= 0)).any():  # of a mapped file nobody compared the ids
            raise FormatError("the file that this index is mapped from is damaged: its two codes are not of the same "
                              "vectors. Copy or download it again.")
        x = kept.codec._embed(q)
        codec, x = kept.codec._scored(normalized(x) if self.metric == "cosine" else x)
        product = self.metric != "l2"
        there = codec._in_place(store.blocks.reshape(-1, store.code_size)) if not store.columns else None
        if there is not None:
            store.look(slots)
            return rerank.topk(x, there[0], slots, names, k, product, threads, there[1])
        distances, ids = np.full((len(q), k), np.inf, np.float32), np.full((len(q), k), -1, np.int64)
        if not isinstance(codec._scorer(x[:1], product), DecodingScorer):
            for i in range(len(q)):
                held = slots[i] >= 0
                scores = codec._scorer(x[i:i + 1], product)._scores(store.codes(slots[i, held]), threads)[0]
                best, which = smallest(scores, names[i, held], k)
                distances[i, :len(best)], ids[i, :len(best)] = best, which
            return distances, ids
        step = max(1, _DECODED // (names.shape[1] * x.shape[1]))
        for start in range(0, len(q), step):
            rows = slice(start, start + step)
            decoded = codec._decode(store.codes(np.maximum(slots[rows], 0).ravel()))
            here = np.where(slots[rows] >= 0, np.arange(slots[rows].size).reshape(slots[rows].shape), -1)
            distances[rows], ids[rows] = rerank.topk(x[rows], decoded, here, names[rows], k, product, threads)
        return distances, ids

    def _found(self, store: Store, names: Ids) -> Ids:
        """Return the slots of ``names``, by an order of the ids that is kept where they do not ascend."""
        if store.ascends():
            return store.find(names)
        held = self._sorted
        if held is None or held[0] is not store:
            slots = store.slots()
            every = store.ids.reshape(-1)[slots]
            order = np.argsort(every)
            held = self._sorted = (store, every[order], slots[order])
        at = np.minimum(np.searchsorted(held[1], names), len(held[1]) - 1)
        return np.where(held[1][at] == names, held[2][at], -1)

    # ------------------------------------------------------------------------------------- files

    def __repr__(self) -> str:
        return f"RefineIndex({self.base!r}, {self.codec!r}): {self.ntotal} vectors"

    def _get_state(self) -> dict[str, Any]:
        base, kept = self._both
        return {"base": base, "kept": kept}

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> RefineIndex:
        base, kept = state["base"], state["kept"]
        if (not isinstance(base, Index) or isinstance(base, RefineIndex) or not isinstance(kept, FlatIndex)
                or base.metric != kept.metric or base.ntotal != kept.ntotal or base._next_id > kept._next_id
                or not _of_the_same(base._store, kept._store)):
            raise InvalidInputError("the two indexes of a RefineIndex do not hold the same vectors.")
        index = cls.__new__(cls)
        index._both, index._sorted = (base, kept), None
        return index


def _of_the_same(base: Store | None, kept: Store | None) -> bool:
    """Whether two stores of as many vectors hold the same ids; mapped files are believed, until they are searched."""
    if base is None or kept is None or base.mapped or kept.mapped:
        return True
    return bool((np.sort(base.names()) == np.sort(kept.names())).all())


def _within_lists(base: Index, kept: FlatIndex, queries: Any, radius: Any, allow: Any, threads: int | None,
                  options: dict[str, int]) -> RangeResult:
    """Return what is within ``radius`` by the second codes, of the vectors in the lists that the base probes."""
    q = kept.codec._vectors(queries, "queries")
    bound_of(radius, len(q), base.metric)  # what is wrong with it is said of all of it
    radii = np.broadcast_to(np.asarray(radius), (len(q),))
    every = np.inf if base.metric == "l2" else -np.inf
    limits, scores, names = [0], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for i in range(len(q)):
        there = base.range_search(q[i], every, allow=allow, threads=threads, **options).ids
        _, distances, ids = kept.range_search(q[i], radii[i], allow=there, threads=threads)
        limits.append(limits[-1] + len(ids))
        scores.append(distances)
        names.append(ids)
    return RangeResult(np.array(limits), np.concatenate(scores), np.concatenate(names))


def _probed(base: Index, nprobe: int | None) -> dict[str, int]:
    if nprobe is not None and not hasattr(base, "nlist"):
        raise InvalidInputError(f"nprobe is {nprobe}, and the base, a {type(base).__name__}, has no lists: leave "
                                "it out.")
    return {} if nprobe is None else {"nprobe": nprobe}
