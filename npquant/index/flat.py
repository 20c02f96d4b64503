"""Exhaustive search over codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.index.base import Ids, Index
from npquant.quantizers.base import Codes, Float, Quantizer, Scorer


class FlatIndex(Index):
    """Every code is scored: exact ranking by the codec's score.

    Parameters
    ----------
    codec : Quantizer
        Fitted before the first ``add``.
    metric : {"l2", "ip", "cosine"}
        ``l2``: squared Euclidean distance, ascending. ``ip``: inner product, descending. ``cosine``: inner
        product of the normalised query with codes of the normalised vectors, descending; zero vectors score 0.

    Notes
    -----
    Memory: ``code_size + 8`` bytes a vector. A search costs one look-up table and n · code_size additions a
    query.

    Examples
    --------
    >>> import npquant as nq
    >>> data = nq.datasets.load_digits()
    >>> index = nq.FlatIndex(nq.ProductQuantizer(m=8, nbits=4, random_state=0).fit(data.X_train))
    >>> _ = index.add(data.X_train)
    >>> distances, ids = index.search(data.X_test[:2], k=3)
    >>> ids.shape, index.ntotal
    ((2, 3), 1442)
    """

    def __init__(self, codec: Quantizer, metric: str = "l2") -> None:
        super().__init__(codec, metric)
        self._codes: Codes | None = None
        self._ids: Ids = np.empty(0, np.int64)
        self._next = 0  # one more than the largest id ever given, removed ones included

    def remove(self, ids: Any) -> int:
        """Remove vectors by id; return how many. No other id changes.

        Raises
        ------
        InvalidInputError
            An id is not in the index; nothing is removed then.
        """
        names = np.unique(self._check_ids(ids, "ids"))
        self._rows(names)  # raises for an unknown one
        if self._codes is not None:
            kept = ~np.isin(self._ids, names)
            self._codes, self._ids = self._codes[kept], self._ids[kept]
        return len(names)

    def reconstruct(self, ids: Any) -> Float:
        """Return the decoded vectors (n, d) float32 of ``ids`` (n,).

        Raises
        ------
        InvalidInputError
            An id is not in the index.
        """
        rows = self._rows(self._check_ids(ids, "ids"))
        codes = self._codes if self._codes is not None else np.empty((0, self.codec.code_size), np.uint8)
        return self.codec.decode(codes[rows])

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        return len(self._ids)

    @property
    def ids(self) -> Ids:
        """The ids held, in the order of addition (a copy)."""
        return self._ids.copy()

    def __repr__(self) -> str:
        fitted = self.codec.__sklearn_is_fitted__()
        size = f"d={self.d}, {self.codec.code_size} bytes a vector" if fitted else "not fitted"
        return f"FlatIndex({self.codec!r}, metric={self.metric!r}): {self.ntotal} vectors, {size}"

    def _rows(self, names: Ids) -> NDArray[np.intp]:
        order = np.argsort(self._ids, kind="stable")
        at = np.searchsorted(self._ids, names, sorter=order)
        found = np.zeros(len(names), bool)
        inside = at < len(order)
        found[inside] = self._ids[order[at[inside]]] == names[inside]
        if not found.all():
            raise InvalidInputError(f"ids contain {names[~found][0]}, which is not in the index.")
        return order[at]

    def _next_id(self) -> int:
        return self._next

    def _contains(self, ids: Ids) -> NDArray[np.bool_]:
        return np.isin(ids, self._ids)

    def _add(self, codes: Codes, ids: Ids) -> None:
        self._codes = codes if self._codes is None else np.concatenate([self._codes, codes])
        self._ids = np.concatenate([self._ids, ids])
        self._next = max(self._next, int(ids.max(initial=-1)) + 1)

    def _search(self, scorer: Scorer, k: int, threads: int | None) -> tuple[Float, Ids]:
        if self._codes is None:
            raise InvalidInputError("the index is empty: add vectors first.")
        return scorer.topk(self._codes, self._ids, k, threads)

    def _get_state(self) -> dict[str, Any]:
        return {"codec": self.codec, "metric": self.metric, "codes": self._codes, "ids": self._ids,
                "next_id": self._next}

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> FlatIndex:
        index = cls(state["codec"], state["metric"])
        ids = cls._check_ids(state["ids"], "ids")
        if state["codes"] is not None:
            index._codes = index.codec.check_codes(state["codes"])
            index._ids = ids
            if len(index._codes) != len(ids) or len(np.unique(ids)) < len(ids):
                raise InvalidInputError(f"{len(ids)} ids for {len(index._codes)} codes, or repeated ids.")
        elif len(ids):
            raise InvalidInputError(f"{len(ids)} ids and no codes.")
        index._next = _checks.integer(state["next_id"], "next_id", low=int(ids.max(initial=-1)) + 1, high=2**63)
        return index
