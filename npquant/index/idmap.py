"""Strings as ids, in front of any index."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError
from npquant.index._store import Ids, writing
from npquant.index.base import Index, RangeResult, SearchResult
from npquant.quantizers.base import Float

Names = NDArray[np.object_]


class IdMap:
    """An index whose vectors are called by strings: each str stands for an id of the index inside.

    Parameters
    ----------
    index : Index
        An empty one; it belongs to the IdMap from now on.

    Attributes
    ----------
    index : Index
        The one inside, with ids of its own.

    Notes
    -----
    All other arguments of ``search`` and ``range_search`` are those of the index inside. What the strings cost is
    Python's: some 150 bytes each, and of a file that was loaded nothing but its bytes, until vectors are called by
    name.

    Examples
    --------
    >>> import npquant as nq
    >>> data = nq.datasets.load_digits()
    >>> index = nq.IdMap(nq.FlatIndex(nq.ProductQuantizer(m=8, nbits=4, random_state=0).fit(data.X_train)))
    >>> index.add(data.X_train[:3], ids=["zero", "one", "two"])
    >>> index.search(data.X_train[1], k=4, allow=["one", "two"]).ids.tolist()
    [['one', 'two', None, None]]
    """

    def __init__(self, index: Index) -> None:
        if not isinstance(index, Index):
            raise InvalidInputError(f"index is {index!r}, wanted an index such as FlatIndex(codec).")
        if index.ntotal:
            raise InvalidInputError(f"index holds {index.ntotal} vectors that have no names: give an empty one.")
        self.index = index
        self._names = _Names.empty()

    def fit(self, X: Any, y: Any = None) -> IdMap:
        """Train what is not fitted yet of the index inside on ``X``, as its ``fit`` does; ``y`` is ignored.

        Raises
        ------
        InvalidInputError
        """
        self.index.fit(X)
        return self

    def add(self, X: Any, ids: Any) -> None:
        """Encode and add vectors under names.

        Parameters
        ----------
        X : array_like (n, d)
            Or a memmap, or an iterable of blocks (n_i, d).
        ids : sequence of str (n,)
            Distinct, and not in the index yet.

        Raises
        ------
        NotFittedError
            The codec is not fitted.
        InvalidInputError
            ``X`` or ``ids`` is wrong; the index is left as it was.
        """
        names = _strings(ids, "ids")
        with self._named(names) as numbers:
            self.index.add(X, numbers)

    def remove(self, ids: Any) -> int:
        """Remove vectors by name; return how many.

        Raises
        ------
        InvalidInputError
            A name is not in the index; nothing is removed then.
        """
        names = list(dict.fromkeys(_strings(ids, "ids")))
        with writing():
            self.index.remove(self._names.numbers_of(names, "ids"))
            self._names = self._names.without(names)
        return len(names)

    def update(self, ids: Any, X: Any) -> None:
        """Put the vectors ``X`` (n, d) in the places of those called ``ids`` (n,), all together.

        Raises
        ------
        NotFittedError
        InvalidInputError
            A name is not in the index or is given twice, or ``X`` is wrong; the index is left as it was.
        """
        names = _strings(ids, "ids")
        _distinct(names)
        self.index.update(self._names.numbers_of(names, "ids"), X)

    def reconstruct(self, ids: Any) -> Float:
        """Return the decoded vectors (n, d) float32 of those called ``ids`` (n,).

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        return self.index.reconstruct(self._names.numbers_of(_strings(ids, "ids"), "ids"))

    def merge(self, other: IdMap) -> int:
        """Add all vectors of another IdMap, with their names; return how many. ``other`` is left as it is.

        Raises
        ------
        InvalidInputError
            The indexes inside do not fit together, or a name is in both; the index is left as it was.
        """
        if not isinstance(other, IdMap):
            raise InvalidInputError(f"other is a {type(other).__name__}, wanted an IdMap.")
        theirs, called = other._whole()
        with self._named(called.names_of(theirs.ids).tolist()) as numbers:
            return self.index._merge(theirs, numbers)

    def compact(self) -> None:
        """Free the memory of removed vectors and their names, and of the room to grow."""
        with writing():
            self.index.compact()
            self._names = self._names.only(self._names.known(self.index.ids))

    def search(self, queries: Any, k: int = 10, *, allow: Any = None, **options: Any) -> SearchResult:
        """Return the ``k`` nearest of each query, as the index inside; ``ids`` (nq, k) are str, ``None`` where none is.

        Parameters
        ----------
        queries, k, options
            Those of the index inside. Ties go to what was added first.
        allow : array_like of bool (ntotal,), or sequence of str, optional
            The only vectors to be found: a mask in the order of ``ids``, or names.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        names = self._names
        distances, found = self.index.search(queries, k, allow=self._allowed(allow), **options)
        return SearchResult(distances, self._found(names, found))

    def range_search(self, queries: Any, radius: Any, *, allow: Any = None, **options: Any) -> RangeResult:
        """Return all vectors within ``radius`` of each query, as the index inside; ``ids`` are str.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        names = self._names
        lims, distances, found = self.index.range_search(queries, radius, allow=self._allowed(allow), **options)
        return RangeResult(lims, distances, self._found(names, found))

    def numbers(self, names: Any, name: str = "names") -> Ids:
        """Return the ids inside of an array of ``names`` of any shape, int64; −1 for ``None``.

        Raises
        ------
        InvalidInputError
            One is not in the index.
        """
        array = np.asarray(names, object)
        there = np.array([one is not None for one in array.ravel()], np.bool_).reshape(array.shape)
        numbers = np.full(array.shape, -1, np.int64)
        numbers[there] = self._names.numbers_of(_strings(array[there], name), name)
        return numbers

    @property
    def ids(self) -> Names:
        """The names (ntotal,), in the order that masks are in."""
        index, names = self._whole()
        return names.names_of(index.ids)

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        return self.index.ntotal

    @property
    def metric(self) -> str:
        """Metric of the index inside."""
        return self.index.metric

    @property
    def codec(self) -> Any:
        """Codec of the index inside."""
        return self.index.codec

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self.index.d

    def __len__(self) -> int:
        return self.ntotal

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._names.numbers()

    def __repr__(self) -> str:
        return f"IdMap({self.index!r})"

    def _allowed(self, allow: Any) -> Any:
        if allow is None or (isinstance(allow, np.ndarray) and allow.dtype == np.bool_):
            return allow
        if isinstance(allow, (list, tuple)) and allow and all(isinstance(one, (bool, np.bool_)) for one in allow):
            return allow
        return self._names.numbers_of(_strings(allow, "allow"), "allow")

    def _found(self, names: _Names, found: Ids) -> Names:
        result = names.names_of(found)
        later = np.equal(result, None) & (found >= 0)  # type: ignore[call-overload]
        if later.any():  # they came while it was searched, and there is a newer map
            result[later] = self._names.names_of(found[later])
        return result

    def _whole(self) -> tuple[Index, _Names]:
        """Return a copy of the index as it is, which shares its arrays, and a map with all of its names."""
        with writing():
            return copy.copy(self.index), self._names

    @contextmanager
    def _named(self, names: list[str]) -> Iterator[Ids]:
        """Give new ``names`` numbers, and take them back if vectors do not come under them."""
        _distinct(names)
        with writing():
            known = self._names.numbers()
            for name in names:
                if name in known:
                    raise InvalidInputError(f"ids contain {name!r}, which is in the index already: remove it first, "
                                            "or choose another name.")
            first = max(self.index._next_id, self._names.next)
            # Before the vectors, so that whoever finds one finds its name.
            self._names.give(names, first)
        try:
            yield np.arange(first, first + len(names))
        except BaseException:
            with writing():
                if names and first not in self.index:
                    self._names = self._names.without(names)
            raise

    def _get_state(self) -> dict[str, Any]:
        index, names = self._whole()
        names = names.only(index.ids)
        return {"index": index, "numbers": names.ids, "ends": names.ends, "text": names.text}

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> IdMap:
        index = state["index"]
        if not isinstance(index, Index):
            raise InvalidInputError("an IdMap has no index.")
        names = _Names(state["numbers"], state["ends"], state["text"], {})
        names.check(index)
        new = cls.__new__(cls)
        new.index, new._names = index, names
        return new


class _Names:
    """Names of ids: those of a file as bytes, those that came later as str. Names are added in place; the rest is not.

    A name that is gone stays until ``only``: a search may be about to say it.
    """

    def __init__(self, ids: Ids, ends: Ids, text: NDArray[np.uint8], more: dict[int, str]) -> None:
        self.ids, self.ends, self.text, self._more = ids, ends, text, more
        self._known: dict[str, int] | None = None
        self.next = 0

    @classmethod
    def empty(cls) -> _Names:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), {})

    def check(self, index: Index) -> None:
        """Raise unless the arrays are names of all vectors of ``index``; of a mapped file, only by their shapes."""
        for name, array, dtype in (("numbers", self.ids, np.int64), ("ends", self.ends, np.int64),
                                   ("text", self.text, np.uint8)):
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                raise InvalidInputError(f"{name} are not 1-D, or not {np.dtype(dtype)}.")
        if not len(self.ids) == len(self.ends) == index.ntotal:
            raise InvalidInputError(f"{len(self.ids)} names of {index.ntotal} vectors.")
        if self.ids.flags.writeable:
            ends = np.concatenate([[0], self.ends])
            if not np.array_equal(self.ids, np.sort(index.ids)) or (ends[1:] < ends[:-1]).any() or (
                    ends[-1] != len(self.text)):
                raise InvalidInputError("the names are not those of the vectors.")

    def numbers(self) -> dict[str, int]:
        """Return the ids by name."""
        if self._known is None:
            with writing():
                known = {self._text(i): number for i, number in enumerate(self.ids.tolist())}
                known.update({name: number for number, name in self._more.items()})
                self._known = known
        return self._known

    def numbers_of(self, names: list[str], what: str) -> Ids:
        """Return the ids (n,) of ``names``, or raise for an unknown one."""
        known = self.numbers()
        numbers = np.array([known.get(name, -1) for name in names], np.int64)
        if len(numbers) and numbers.min() < 0:
            raise InvalidInputError(f"{what} contain {names[int(np.argmin(numbers))]!r}, which is not in the index.")
        return numbers

    def names_of(self, ids: Ids) -> Names:
        """Return the names of ``ids``, in an array of objects of that shape; ``None`` for −1 and unknown ones."""
        each, back = np.unique(ids, return_inverse=True)
        names = np.empty(len(each), object)
        at = np.searchsorted(self.ids, each).tolist()
        for i, number in enumerate(each.tolist()):
            if at[i] < len(self.ids) and self.ids[at[i]] == number:
                names[i] = self._text(at[i])
            else:
                names[i] = self._more.get(number)
        return names[back].reshape(ids.shape)

    def give(self, names: list[str], first: int) -> None:
        """Name the ids from ``first`` on, which are new; under the lock."""
        numbers = range(first, first + len(names))
        known = self.numbers()
        self._more.update(zip(numbers, names))
        known.update(zip(names, numbers))
        self.next = first + len(names)

    def known(self, held: Ids) -> Ids:
        """Return the ids that have a name: those ``held``, and those whose vectors are still being coded."""
        return np.array(list(self.numbers().values()), np.int64) if self.next else held

    def without(self, names: list[str]) -> _Names:
        """Return a map that does not know ``names`` any more; under the lock."""
        known = self.numbers()
        for name in names:
            del known[name]
        if 2 * len(known) + 1000 < len(self.ids) + len(self._more):
            return self.only(np.array(list(known.values()), np.int64))
        return self

    def only(self, ids: Ids) -> _Names:
        """Return the names of these ids, as bytes."""
        ids = np.sort(ids)
        if len(ids) == len(self.ids) and not self._more:
            return self
        parts = [name.encode() for name in self.names_of(ids)]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64) if parts else np.empty(0, np.int64)
        names = _Names(ids, ends, np.frombuffer(b"".join(parts), np.uint8), {})
        names.next = self.next
        return names

    def _text(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        # Of a mapped file nobody compared the checksum: whatever its bytes say, it is no reason to fail.
        return bytes(self.text[max(0, start):max(0, int(self.ends[i]))]).decode(errors="replace")


def _strings(ids: Any, name: str) -> list[str]:
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
        raise InvalidInputError(f"{name} must be a sequence of str, got {ids!r}." + (
            f" For a single one give [{ids!r}]." if isinstance(ids, str) else ""))
    names = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    for one in names:
        if not isinstance(one, str):
            raise InvalidInputError(f"{name} contain {one!r}, and must be str. (For integers there is no need of an "
                                    "IdMap.)")
        try:
            one.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"{name} contain {one!r}, which is not valid Unicode: it has lone "
                                    "surrogates.") from None
    return [str(one) for one in names]


def _distinct(names: list[str]) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidInputError(f"ids contain {twice!r} more than once: names must be distinct.")
