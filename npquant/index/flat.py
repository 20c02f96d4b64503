"""Exhaustive search over codes."""

from __future__ import annotations

from typing import Any

from npquant.index._store import Bits, Ids, Store
from npquant.index.base import Index
from npquant.quantizers.base import Float


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
    Memory: ``code_size + 8`` bytes a vector, and a tenth more at the most; ``compact()`` frees what can be freed. Of a
    mapped file nothing is read before it is searched, and nothing is copied until something is added. A search costs a
    query one look-up table and, of a product quantizer, at most n · m additions; a removed vector, or one not allowed,
    costs a bit.

    Examples
    --------
    >>> import npquant as nq
    >>> data = nq.datasets.load_digits()
    >>> index = nq.FlatIndex(nq.ProductQuantizer(m=8, nbits=4, random_state=0).fit(data.X_train))
    >>> _ = index.add(data.X_train)
    >>> distances, ids = index.search(data.X_test[:2], k=3)
    >>> ids.shape, index.ntotal
    ((2, 3), 1442)
    >>> zeros = data.y_train == 0
    >>> bool(zeros[index.search(data.X_test[:2], k=3, allow=zeros).ids].all())
    True
    >>> lims, distances, ids = index.range_search(data.X_test[:2], radius=distances[:, 2])
    >>> lims.tolist()
    [0, 3, 6]
    """

    def _topk(self, x: Float, store: Store, live: Bits, k: int, threads: int | None,
              **options: Any) -> tuple[Float, Ids]:
        return self._scorer(x)._topk(store.blocks, store.ids, live, k, threads)

    def _within(self, x: Float, store: Store, live: Bits, radius: Float, threads: int | None,
                **options: Any) -> tuple[Ids, Float, Ids]:
        return self._scorer(x)._within(store.blocks, store.ids, live, radius, threads)
