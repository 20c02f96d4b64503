"""What every index is: vectors added under ids, searched by code."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.quantizers.base import Codes, Float, Quantizer

Ids = NDArray[np.int64]

_QUERIES = 1024  # whose tables are held at a time


class SearchResult(NamedTuple):
    """Result of a search; it unpacks as ``distances, ids``.

    ``distances`` (nq, k) float32: squared Euclidean, ascending, for ``l2``; inner products, descending, for
    ``ip`` and ``cosine``. ``ids`` (nq, k) int64; places without a result hold id −1 and distance +inf (−inf).
    """

    distances: Float
    ids: Ids


class Index:
    """Base of all indexes: public methods validate, then call the private hooks of the subclass.

    Ids are int64, stored, stable and never renumbered; without ``ids`` a vector's id is one more than the
    largest given so far (0 for the first).
    """

    def __init__(self, codec: Quantizer, metric: str = "l2") -> None:
        self.codec = codec
        self.metric = _checks.metric(metric)

    def add(self, X: Any, ids: Any = None) -> Ids:
        """Encode and add vectors; return their ids.

        Parameters
        ----------
        X : array_like (n, d)
        ids : array_like of int (n,), optional
            Not negative, distinct, and not in the index yet.

        Raises
        ------
        NotFittedError
            The codec is not fitted.
        InvalidInputError
            ``X`` or ``ids`` is wrong; the index is left as it was.
        """
        codes = self.codec.encode(X, metric=self.metric)
        if self.ntotal == 0:
            # What is fitted anew later must not change what these codes mean; codecs replace their arrays.
            self.codec = copy.copy(self.codec)
        if ids is None:
            first = self._next_id()
            if first + len(codes) > 2**63:
                raise InvalidInputError(f"The largest id given so far is {first - 1}: {len(codes)} more do not fit "
                                        "below 2**63. Give ids.")
            names = np.arange(first, first + len(codes), dtype=np.int64) if len(codes) else np.empty(0, np.int64)
        else:
            names = self._check_ids(ids, "ids")
            _checks.length(names, len(codes), "ids")
            if len(np.unique(names)) < len(names):
                values, counts = np.unique(names, return_counts=True)
                raise InvalidInputError(f"ids contain {values[counts > 1][0]} more than once: ids must be distinct.")
            known = names[self._contains(names)]
            if len(known):
                raise InvalidInputError(f"ids contain {known[0]}, which is in the index already: remove it first, "
                                        "or choose another id.")
        self._add(codes, names)
        return names

    def search(self, queries: Any, k: int = 10, *, threads: int | None = None) -> SearchResult:
        """Return the ``k`` nearest of each query, exactly by the codec's score, ties to the smaller id.

        Parameters
        ----------
        queries : array_like (nq, d)
            One 1-D vector is a batch of one.
        k : int
            Results wanted; where the index holds fewer, the rest is padding (id −1).
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
        k = _checks.integer(k, "k")
        threads = _checks.threads(threads)
        q = self.codec._vectors(queries, "queries")
        distances = np.full((len(q), k), np.inf, np.float32)
        ids = np.full((len(q), k), -1, np.int64)
        held = min(k, self.ntotal)
        for start in range(0, len(q) if held else 0, _QUERIES):
            block = slice(start, start + _QUERIES)
            scorer = self.codec.scorer(q[block], self.metric)
            distances[block, :held], ids[block, :held] = self._search(scorer, held, threads)
        if self.metric != "l2":
            np.negative(distances, out=distances)
        return SearchResult(distances, ids)

    @staticmethod
    def _check_ids(ids: Any, name: str) -> Ids:
        array = np.asarray(ids)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            if array.size == 0 and array.ndim == 1:
                return np.empty(0, np.int64)
            raise InvalidInputError(f"{name} must be a 1-D array of integers, got shape {array.shape} and dtype "
                                    f"{array.dtype}.")
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
            raise InvalidInputError(f"{name} contain {array.min() if array.min() < 0 else array.max()}: ids are "
                                    "from 0 to 2**63 − 1 (−1 marks a missing result).")
        return array.astype(np.int64)

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        self.codec._check_fitted()
        return int(self.codec.n_features_in_)

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.ntotal

    def _next_id(self) -> int:
        raise NotImplementedError

    def _contains(self, ids: Ids) -> NDArray[np.bool_]:
        raise NotImplementedError

    def _add(self, codes: Codes, ids: Ids) -> None:
        raise NotImplementedError

    def _search(self, scorer: Any, k: int, threads: int | None) -> tuple[Float, Ids]:
        raise NotImplementedError
