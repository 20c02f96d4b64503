"""What every index is: vectors added under ids, searched by code."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Estimator, clone
from npquant._rows import is_stream
from npquant.errors import InvalidInputError, NotInvertibleError, NpquantWarning
from npquant.index._store import Bits, Ids, Store, writing
from npquant.quantizers.base import Codes, Float, Quantizer, Scorer, normalized

Coded = tuple[Codes, "Ids | None"]  # codes, and the lists that they belong to where there are several
Self = TypeVar("Self", bound="Index")

_QUERIES = 1024  # whose tables are held at a time,
_TABLES = 1 << 27  # if these take no more than so many bytes,
_FEW = 64  # or of so many
_SAMPLE = 64  # vectors whose codes are compared with them


class SearchResult(NamedTuple):
    """Result of a search; it unpacks as ``distances, ids``.

    ``distances`` (nq, k) float32: squared Euclidean, ascending, for ``l2``; inner products, descending, for
    ``ip`` and ``cosine``. ``ids`` (nq, k) int64; places without a result hold id −1 and distance +inf (−inf).
    Of an :class:`IdMap`, ``ids`` are objects: str, and ``None`` where there is no result.
    """

    distances: Float
    ids: NDArray[Any]


class RangeResult(NamedTuple):
    """Result of a range search; it unpacks as ``lims, distances, ids``.

    Query q's results are those from ``lims[q]`` to ``lims[q + 1]`` of ``distances`` float32 and ``ids`` int64, the
    nearest first; ``lims`` is (nq + 1,) int64.
    """

    lims: NDArray[np.int64]
    distances: Float
    ids: NDArray[Any]


class Index:
    """Base of all indexes: public methods validate, then call the private hooks of the subclass.

    Ids are int64, stored, stable and never renumbered; without ``ids`` a vector's id is one more than the
    largest given so far (0 for the first).

    A change is there wholly or not at all, whatever interrupts it; any number of threads may search while others
    change, and each search sees the index as it was at one moment.

    A subclass writes ``_topk`` and ``_within``; with more than one list ``_nlist``, ``_coded``, ``_decoded`` and
    ``_freeze``; with more parts than the codec ``_alike``, ``_get_state`` and ``_from_state``.
    """

    def __init__(self, codec: Quantizer, metric: str = "l2") -> None:
        if not isinstance(codec, Quantizer):
            raise InvalidInputError(f"codec is {codec!r}, wanted a codec such as ProductQuantizer(m=8).")
        self.codec = codec
        self.metric = _checks.metric(metric)
        # Stores never change: an interruption or another thread sees all of a change or nothing.
        self._store: Store | None = None  # before the first add the code size need not be known
        self._next_id = 0

    # ------------------------------------------------------------------------------------- training

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Train what is not fitted yet on ``X`` (n, d), as copies: what was given stays as it is; ``y`` is ignored.

        Parameters
        ----------
        X : array_like (n, d)
            Or a memmap, or an iterable of blocks. For ``cosine`` it is the normalised vectors that are trained on, as
            it is these that are coded.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong, or the index holds vectors already, whose codes must not change their
            meaning.
        """
        if self.ntotal:
            raise InvalidInputError(f"the index holds {self.ntotal} vectors, coded by what was trained before: make a "
                                    "new index, or remove them.")
        if not self.codec.__sklearn_is_fitted__():
            codec = clone(self.codec)
            if self.metric == "cosine" and not embeds(codec):
                X = normalized(codec._training_rows(X))
            self.codec = codec.fit(X)
        return self

    # ------------------------------------------------------------------------------------- changing

    def add(self, X: Any, ids: Any = None) -> Ids:
        """Encode and add vectors; return their ids.

        Parameters
        ----------
        X : array_like (n, d)
            Or a memmap, or an iterable of blocks (n_i, d).
        ids : array_like of int (n,), optional
            Not negative, distinct, and not in the index yet.

        Raises
        ------
        NotFittedError
            The codec is not fitted.
        InvalidInputError
            ``X`` or ``ids`` is wrong; the index is left as it was.

        Notes
        -----
        Beside the coding O(n), amortized. Ids that neither ascend nor are larger than all before cost a pass over all
        ids: give many at a time.

        Warns
        -----
        NpquantWarning
            The first vectors added for ``cosine``, which is of directions, are far from what their codes stand for: the
            codec was trained on vectors of another length.
        """
        first = not self.ntotal
        names = self._take(list(self._coded(X)), ids)
        if first and self.metric == "cosine" and not is_stream(X):
            self._compare(X, names)
        return names

    def _compare(self, X: Any, names: Ids) -> None:
        """Warn where codes tell less of the directions of ``X``, just added as ``names``, than of ``X`` itself."""
        store, some = self._store, X[:_SAMPLE]
        if store is None or len(names) < _SAMPLE:
            return
        x = self.codec._embed(self.codec._vectors(some, "X"))
        plain = copy.copy(self)
        plain.metric, plain._store, plain._next_id = "l2", None, 0
        try:
            told = _told(normalized(x), self._decoded(store, store.find(names[:_SAMPLE])))
            of_lengths = _told(x, plain.reconstruct(plain._take(list(plain._coded(some)), None)))
        except NotInvertibleError:
            return
        if 1 - told > 1.5 * (1 - of_lengths) + 0.01 or told < of_lengths / 2 > 0.01:
            warnings.warn(
                "the codes tell less of these vectors than they could: metric cosine codes directions, and the codec "
                "was trained on vectors of other lengths. Let an index train it (FlatIndex(codec, 'cosine').fit(X), "
                "with a codec not fitted yet), or train it on normalised vectors (npquant train --metric cosine).",
                NpquantWarning, stacklevel=3)

    def _take(self, parts: list[Coded], ids: Any) -> Ids:
        """Add what was coded, as ``add`` does."""
        n = sum(len(codes) for codes, _ in parts)
        names = None
        if ids is not None:
            names = self._distinct(ids)
            _checks.length(names, n, "ids")
        with writing():
            if names is None:
                first = self._next_id
                if first + n > 2**63:
                    raise InvalidInputError(f"The largest id given so far is {first - 1}: {n} more do not fit "
                                            "below 2**63. Give ids.")
                names = np.arange(first, first + n, dtype=np.int64) if n else np.empty(0, np.int64)
            self._append(parts, names)
        return names

    def remove(self, ids: Any) -> int:
        """Remove vectors by id; return how many. No other id changes.

        Raises
        ------
        InvalidInputError
            An id is not in the index; nothing is removed then.
        """
        names = np.unique(self._check_ids(ids, "ids"))
        with writing():
            slots = self._slots(self._store, names)
            if self._store is not None and len(names):
                self._store = self._store.without(slots).tidied()
        return len(names)

    def update(self, ids: Any, X: Any) -> None:
        """Put the vectors ``X`` (n, d) in the places of those with ``ids`` (n,), all together.

        In the order of ``ids`` they go to the end, as if they had been removed and added again.

        Raises
        ------
        NotFittedError
        InvalidInputError
            An id is not in the index or is given twice, or ``X`` is wrong; the index is left as it was.
        """
        names = self._distinct(ids)
        self._slots(self._store, names)  # before the work of coding
        self._put(list(self._coded(X)), names)

    def _put(self, parts: list[Coded], names: Ids) -> None:
        """Put what was coded in the places of distinct ``names``, as ``update`` does."""
        _checks.length(names, sum(len(codes) for codes, _ in parts), "ids")
        with writing():
            slots, store = self._slots(self._store, names), self._store
            if store is not None and len(names):
                self._store = _extended(store.without(slots), parts, names).tidied()

    def merge(self, other: Index) -> int:
        """Add all vectors of another index, with their ids; return how many. ``other`` is left as it is.

        Parameters
        ----------
        other : Index
            Of the same class, with the same metric and the same trained parts (the same content; not necessarily the
            same objects).

        Raises
        ------
        InvalidInputError
            ``other`` is of another kind, or an id is in both; the index is left as it was.
        """
        return self._merge(other, None)

    def _merge(self, other: Any, names: Ids | None) -> int:
        if type(other) is not type(self):
            raise InvalidInputError(f"other is of {type(other).__name__}, wanted one of {type(self).__name__}.")
        if not self._alike(other):
            raise InvalidInputError("other has another metric or another codec: its codes would mean other vectors "
                                    "here. Merge indexes that were filled by one trained model, or add the vectors.")
        theirs = other._store
        after = other._next_id if names is None else 0
        given = np.empty(0, np.int64) if theirs is None else theirs.names() if names is None else names
        with writing():
            if theirs is not None and len(given):
                self._append([(codes, lists) for codes, _, lists in theirs.parts()], given)
            self._next_id = max(self._next_id, after)
        return len(given)

    def compact(self) -> None:
        """Free the memory of removed vectors and of the room to grow, about a tenth at the most."""
        with writing():
            if self._store is not None:
                self._store = self._store.compacted()

    # ------------------------------------------------------------------------------------- asking

    def search(self, queries: Any, k: int = 10, *, allow: Any = None, threads: int | None = None) -> SearchResult:
        """Return the ``k`` nearest of each query, exactly by the codec's score, ties to the smaller id.

        Parameters
        ----------
        queries : array_like (nq, d)
            One 1-D vector is a batch of one.
        k : int
            Results wanted; where the index holds fewer, the rest is padding (id −1).
        allow : array_like of bool (ntotal,), or of int, optional
            The only vectors to be found: a mask in the order of ``ids``, or ids.
        threads : int, optional
            It never changes the result.

        Returns
        -------
        SearchResult
            ``distances`` (nq, k) float32 and ``ids`` (nq, k) int64.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        return self._search(queries, k, allow, threads)

    def range_search(self, queries: Any, radius: Any, *, allow: Any = None,
                     threads: int | None = None) -> RangeResult:
        """Return all vectors within ``radius`` of each query: at a distance ≤ it for ``l2``, else a product ≥ it.

        Parameters
        ----------
        queries : array_like (nq, d)
        radius : float, or array_like (nq,)
            In the unit of ``distances``: squared for ``l2``.
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
        return self._range_search(queries, radius, allow, threads)

    def reconstruct(self, ids: Any) -> Float:
        """Return the decoded vectors (n, d) float32 of ``ids`` (n,).

        Raises
        ------
        NotFittedError
        InvalidInputError
            An id is not in the index.
        """
        names, store = self._check_ids(ids, "ids"), self._store
        slots = self._slots(store, names)
        if store is None or not len(slots):
            return np.empty((0, self.d), np.float32)
        return self._decoded(store, slots)

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        return 0 if self._store is None else self._store.count

    @property
    def ids(self) -> Ids:
        """The ids held (a copy), in the order that masks are in."""
        return np.empty(0, np.int64) if self._store is None else self._store.names()

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        self.codec._check_fitted()
        return int(self.codec.n_features_in_)

    def __len__(self) -> int:
        return self.ntotal

    def __contains__(self, name: object) -> bool:
        store = self._store
        if store is None or isinstance(name, (bool, np.bool_)) or not isinstance(name, (int, np.integer)):
            return False
        return 0 <= int(name) < 2**63 and bool(store.find(np.array([name], np.int64))[0] >= 0)

    def __repr__(self) -> str:
        fitted = self.codec.__sklearn_is_fitted__()
        size = f"d={self.d}, {self.codec.code_size} bytes a vector" if fitted else "not fitted"
        return f"{type(self).__name__}({self.codec!r}, metric={self.metric!r}): {self.ntotal} vectors, {size}"

    # ------------------------------------------------------------------------------------- templates

    def _search(self, queries: Any, k: Any, allow: Any, threads: Any, **options: Any) -> SearchResult:
        k, threads = _checks.integer(k, "k"), _checks.threads(threads)
        q, store, live = self._asked(queries, allow)
        if store is None or live is None or not len(q):
            nothing = np.full((len(q), k), np.inf if self.metric == "l2" else -np.inf, np.float32)
            return SearchResult(nothing, np.full((len(q), k), -1, np.int64))
        held, step = min(k, store.count), self._at_once(q, **options)
        parts = [self._topk(q[start:start + step], store, live, held, threads, **options)
                 for start in range(0, len(q), step)]
        distances, ids = parts[0]
        if len(parts) > 1 or held < k:
            distances, ids = np.full((len(q), k), np.inf, np.float32), np.full((len(q), k), -1, np.int64)
            for i, (scores, names) in enumerate(parts):
                rows = slice(i * step, i * step + len(scores))
                distances[rows, :held], ids[rows, :held] = scores, names
        if self.metric != "l2":
            np.negative(distances, out=distances)
        return SearchResult(distances, ids)

    def _range_search(self, queries: Any, radius: Any, allow: Any, threads: Any, **options: Any) -> RangeResult:
        threads = _checks.threads(threads)
        q, store, live = self._asked(queries, allow)
        bound = bound_of(radius, len(q), self.metric)
        lims = np.zeros(len(q) + 1, np.int64)
        scores, found = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        if store is not None and live is not None:
            step = self._at_once(q, **options)
            for start in range(0, len(q), step):
                rows = slice(start, start + step)
                limits, some, names = self._within(q[rows], store, live, bound[rows], threads, **options)
                lims[start + 1:start + len(limits)] = limits[1:] + lims[start]
                scores.append(some)
                found.append(names)
        distances = np.concatenate(scores)
        if self.metric != "l2":
            np.negative(distances, out=distances)
        return RangeResult(lims, distances, np.concatenate(found))

    def _asked(self, queries: Any, allow: Any) -> tuple[Float, Store | None, Bits | None]:
        """Return valid queries, the store to search, and what is to be considered in it (``None``: nothing)."""
        q, store = self.codec._vectors(queries, "queries"), self._store
        live = None if store is None or not store.count else store.live
        if store is not None and live is not None:
            store.look()
        if allow is None:
            return q, store, live
        given = _plain(allow, "allow")
        if given.dtype == np.bool_:
            held = 0 if store is None else store.count
            if given.shape != (held,):
                raise InvalidInputError(f"allow is a mask of shape {given.shape}, wanted ({held},): one for each "
                                        "vector of the index, in the order of its ids. Or give ids.")
            if store is not None and live is not None:
                live = store.allowed(mask=given)
        else:
            slots = self._slots(store, self._check_ids(given, "allow"), "allow")
            if store is not None and live is not None:
                live = store.allowed(slots)
        return q, store, live if live is not None and bool(live.any()) else None

    def _append(self, parts: list[Coded], names: Ids) -> None:
        """Put codes under new distinct ``names`` into the store, wholly or not at all; under the lock."""
        store = self._store
        if len(names) and store is not None and store.count and int(names.min()) < self._next_id:
            known = names[store.find(names) >= 0]
            if len(known):
                raise InvalidInputError(f"ids contain {known[0]}, which is in the index already: remove it first, "
                                        "or choose another id.")
        if store is None or not store.count:
            self._freeze()
            store = self._new_store()
        store = _extended(store, parts, names)
        self._next_id = max(self._next_id, int(names.max(initial=-1)) + 1)  # first: to skip a number does no harm
        self._store = store

    def _new_store(self) -> Store:
        """Return an empty store as the codec's scorer wants it."""
        return Store.empty(self.codec.code_size, self._columns(), self._nlist)

    def _columns(self) -> bool:
        return self._scorer(np.empty((0, self.d), np.float32)).columns

    def _scorer(self, x: Float) -> Scorer:
        return self.codec._scorer_by(x, self.metric)

    def _slots(self, store: Store | None, names: Ids, name: str = "ids") -> Ids:
        """Return the slots of ``names``, or raise for an unknown one."""
        slots = np.full(len(names), -1, np.int64) if store is None else store.find(names)
        if len(slots) and slots.min() < 0:
            raise InvalidInputError(f"{name} contain {names[slots < 0][0]}, which is not in the index.")
        return slots

    def _distinct(self, ids: Any) -> Ids:
        names = self._check_ids(ids, "ids")
        if len(names) > 1 and not (names[1:] > names[:-1]).all():
            ordered = np.sort(names)
            twice = ordered[1:][ordered[1:] == ordered[:-1]]
            if len(twice):
                raise InvalidInputError(f"ids contain {twice[0]} more than once: ids must be distinct.")
        return names

    @staticmethod
    def _check_ids(ids: Any, name: str) -> Ids:
        array = _plain(ids, name)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            if array.size == 0 and array.ndim == 1:
                return np.empty(0, np.int64)
            single = "" if array.ndim else f" For a single one give [{array}]."
            raise InvalidInputError(f"{name} must be a 1-D array of integers, got shape {array.shape} and dtype "
                                    f"{array.dtype}.{single}")
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
            raise InvalidInputError(f"{name} contain {array.min() if array.min() < 0 else array.max()}: ids are "
                                    "from 0 to 2**63 − 1 (−1 marks a missing result).")
        return array.astype(np.int64)

    # ------------------------------------------------------------------------------------- hooks

    _nlist = 1

    def _coded(self, X: Any) -> Iterator[Coded]:
        """Yield the codes of ``X`` in parts, with their lists."""
        if is_stream(X):
            for codes in self.codec.encode_blocks(X, metric=self.metric):
                yield codes, None
        else:
            yield self.codec.encode(X, metric=self.metric), None

    def _decoded(self, store: Store, slots: Ids) -> Float:
        """Return the vectors that stand at ``slots``, which hold some."""
        return self.codec.decode(store.codes(slots))

    def _at_once(self, q: Float, **options: Any) -> int:
        """Return how many of the queries ``q`` are searched for at a time, by the memory that they take."""
        tables = self._scorer(q[:1]).tables if len(q) > _FEW else None
        return _QUERIES if tables is None else max(_FEW, min(_QUERIES, _TABLES // tables.nbytes))

    def _freeze(self) -> None:
        """Keep the trained parts as they are: what is fitted anew later must not change what codes mean."""
        self.codec = copy.copy(self.codec)  # codecs replace their arrays

    def _alike(self, other: Any) -> bool:
        """Whether codes of ``other``, of the same class, mean the same here."""
        return bool(self.metric == other.metric) and alike(self.codec, other.codec)

    def _topk(self, x: Float, store: Store, live: Bits, k: int, threads: int | None,
              **options: Any) -> tuple[Float, Ids]:
        """Return the k best (scores, ids) of what is ``live``, for valid raw queries ``x``, as a Scorer does."""
        raise NotImplementedError

    def _within(self, x: Float, store: Store, live: Bits, radius: Float, threads: int | None,
                **options: Any) -> tuple[Ids, Float, Ids]:
        """Return (limits, scores, ids) within ``radius`` (nq,), as a Scorer does."""
        raise NotImplementedError

    def _get_state(self) -> dict[str, Any]:
        store = self._store
        return {"codec": self.codec, "metric": self.metric, "next_id": self._next_id,
                "store": None if store is None else store.state()}

    @classmethod
    def _from_state(cls: type[Self], state: dict[str, Any]) -> Self:
        index = cls(state["codec"], state["metric"])
        index._restore(state)
        return index

    def _restore(self, state: dict[str, Any]) -> None:
        """Take store and next id out of ``state``, or raise for impossible ones; all other parts are there."""
        self._next_id = _checks.integer(state["next_id"], "next_id", low=0, high=2**63)
        if state["store"] is None:
            return
        store = Store.from_state(state["store"], self.codec.code_size, self._columns(), self._nlist)
        if not self._takes_all_codes(store.code_size):
            store.check_codes(self.codec.check_codes)
        if not store.mapped and store.names().max(initial=-1) >= self._next_id:
            raise InvalidInputError(f"an id is {store.names().max()}, and the next one {self._next_id}.")
        self._store = store

    def _takes_all_codes(self, code_size: int) -> bool:
        """Whether all bytes are codes of the codec: no codec refuses others, and takes 255 everywhere."""
        try:
            self.codec.check_codes(np.full((1, code_size), 255, np.uint8))
        except InvalidInputError:
            return False
        return True


def alike(a: Any, b: Any) -> bool:
    """Whether two trained models, or parts of them, are equal in content; seeds and numbers of threads do not count."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(value, b[name]) for name, value in a.items())
    if isinstance(a, Estimator):
        return alike(_content(a), _content(b))
    if isinstance(a, np.random.Generator):
        return True
    return alike(vars(a), vars(b)) if hasattr(a, "__dict__") and not callable(a) else bool(a == b)


def _content(model: Estimator) -> dict[str, Any]:
    params = {name: value for name, value in model.get_params(deep=False).items()
              if name not in (*model._runtime_params, "random_state") and not callable(value)}
    if hasattr(model, "_get_state") and model.__sklearn_is_fitted__():
        return {"params": params, "fitted": model._get_state()}
    return {"params": params, "fitted": {name: value for name, value in vars(model).items() if name.endswith("_")}}


def embeds(codec: Quantizer) -> bool:
    """Whether what is normalised for ``cosine`` is not the vectors given, but what the codec makes of them first."""
    return type(codec)._embed is not Quantizer._embed


def _told(x: Float, decoded: Float) -> float:
    """Return the share of the variance of ``x`` that ``decoded`` tells, at the best scale: a scale changes no rank."""
    if x.shape != decoded.shape:
        return 0.0
    a, b = (y - y.mean(axis=0, dtype=np.float64) for y in (x, decoded))
    return max(0.0, float((a * b).sum()))**2 / max(1e-30, float((a * a).sum() * (b * b).sum()))


def _plain(values: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:
        raise InvalidInputError(f"{name} must be 1-D, got rows of several lengths.") from None


def _extended(store: Store, parts: list[Coded], names: Ids) -> Store:
    start = 0
    for codes, lists in parts:
        store = store.added(codes, names[start:start + len(codes)], lists)
        start += len(codes)
    return store


def bound_of(radius: Any, nq: int, metric: str) -> Float:
    """Return the largest float32 scores (nq,) that are within ``radius``."""
    try:
        given = np.asarray(radius, np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(f"radius must be a number, or one a query, got {radius!r}.") from None
    if given.shape not in ((), (nq,)) or np.asarray(radius).dtype.kind not in "iuf" or np.isnan(given).any():
        raise InvalidInputError(f"radius must be a number, or one for each of the {nq} queries, and not NaN; got "
                                f"shape {given.shape}, dtype {np.asarray(radius).dtype}.")
    wide = np.broadcast_to(given if metric == "l2" else -given, (nq,))
    with np.errstate(over="ignore"):
        bound = wide.astype(np.float32)
    return np.where(bound > wide, np.nextafter(bound, np.float32(-np.inf)), bound).astype(np.float32)
