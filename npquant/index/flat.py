"""Exhaustive search over codes."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    Memory: ``code_size + 8`` bytes a vector. A search costs a query one look-up table and, of a product
    quantizer, n · m additions.

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
        # In one piece, so that an interruption or another thread sees all of a change or nothing.
        self._held = _Held(None, np.empty(0, np.int64), 0)

    def remove(self, ids: Any) -> int:
        """Remove vectors by id; return how many. No other id changes.

        Raises
        ------
        InvalidInputError
            An id is not in the index; nothing is removed then.
        """
        names = np.unique(self._check_ids(ids, "ids"))
        self._rows(names)  # raises for an unknown one
        codes, held, next_id = self._held
        if codes is not None:
            kept = ~np.isin(held, names)
            self._held = _Held(codes[kept], held[kept], next_id)
        return len(names)

    def reconstruct(self, ids: Any) -> Float:
        """Return the decoded vectors (n, d) float32 of ``ids`` (n,).

        Raises
        ------
        InvalidInputError
            An id is not in the index.
        """
        rows = self._rows(self._check_ids(ids, "ids"))
        codes = self._held.codes
        return self.codec.decode(np.empty((0, self.codec.code_size), np.uint8) if codes is None else codes[rows])

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        return len(self._held.ids)

    @property
    def ids(self) -> Ids:
        """The ids held, in the order of addition (a copy)."""
        return self._held.ids.copy()

    def __repr__(self) -> str:
        fitted = self.codec.__sklearn_is_fitted__()
        size = f"d={self.d}, {self.codec.code_size} bytes a vector" if fitted else "not fitted"
        return f"FlatIndex({self.codec!r}, metric={self.metric!r}): {self.ntotal} vectors, {size}"

    def _rows(self, names: Ids) -> NDArray[np.intp]:
        ids = self._held.ids
        order = np.argsort(ids, kind="stable")
        at = np.searchsorted(ids, names, sorter=order)
        found = np.zeros(len(names), bool)
        inside = at < len(order)
        found[inside] = ids[order[at[inside]]] == names[inside]
        if not found.all():
            raise InvalidInputError(f"ids contain {names[~found][0]}, which is not in the index.")
        return order[at]

    def _next_id(self) -> int:
        return self._held.next_id

    def _contains(self, ids: Ids) -> NDArray[np.bool_]:
        return np.isin(ids, self._held.ids)

    def _add(self, codes: Codes, ids: Ids) -> None:
        before, held, next_id = self._held
        self._held = _Held(codes if before is None else np.concatenate([before, codes]), np.concatenate([held, ids]),
                           max(next_id, int(ids.max(initial=-1)) + 1))

    def _search(self, scorer: Scorer, k: int, threads: int | None) -> tuple[Float, Ids]:
        codes, ids, _ = self._held
        if codes is None or k > len(codes):
            raise InvalidInputError("the index changed while it was searched: search again.")
        return scorer._topk(codes, ids, k, threads)

    def _get_state(self) -> dict[str, Any]:
        codes, ids, next_id = self._held
        return {"codec": self.codec, "metric": self.metric, "codes": codes, "ids": ids, "next_id": next_id}

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> FlatIndex:
        index = cls(state["codec"], state["metric"])
        ids, codes = cls._check_ids(state["ids"], "ids"), state["codes"]
        if codes is not None:
            codes = index.codec.check_codes(codes)
        if len(ids) != (0 if codes is None else len(codes)) or len(np.unique(ids)) < len(ids):
            raise InvalidInputError(f"{len(ids)} ids for {0 if codes is None else len(codes)} codes, or repeated ids.")
        next_id = _checks.integer(state["next_id"], "next_id", low=int(ids.max(initial=-1)) + 1, high=2**63)
        index._held = _Held(codes, ids, next_id)
        return index


class _Held(NamedTuple):
    codes: Codes | None  # None before the first add, when the code size need not be known
    ids: Ids
    next_id: int
