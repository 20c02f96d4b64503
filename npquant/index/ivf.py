"""Search in the nearest lists: a coarse quantizer parts the vectors, a codec codes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from npquant import _checks
from npquant._base import clone
from npquant._rows import blocks, is_stream, row_count, training_rows
from npquant.errors import InvalidInputError
from npquant.index._partition import Lists, Partition
from npquant.index._store import Bits, Ids, Store
from npquant.index.base import Coded, Index, RangeResult, SearchResult, alike, embeds
from npquant.index.multi import InvertedMultiIndex, cells_of
from npquant.kernels._pool import run_blocks
from npquant.kmeans import KMeans
from npquant.quantizers._sums import SumQuantizer
from npquant.quantizers.base import Codes, Float, Quantizer, normalized
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.transformed import OptimizedProductQuantizer, PreTransformed

_PROBES = 8
_ROWS = 4096  # coded by a thread at a time
_PROBED = 1 << 22  # lists of some queries, held at a time


class IVFIndex(Index):
    """Only the codes of the nearest lists are scored: an inverted file (IVFADC, Jégou et al. 2011).

    A vector is in the list of its nearest centroid; a query is compared with the vectors of the ``nprobe`` lists whose
    centroids are best for it by the metric. The codec codes the vector, or (``residual``) its difference to the
    centroid, which is smaller, so that as many bytes say more of it.

    A transform in front of the codec (``PreTransformed``, ``OptimizedProductQuantizer``) stands in front of all:
    centroids and residuals are those of transformed vectors.

    Parameters
    ----------
    coarse : KMeans or InvertedMultiIndex
        Its centres part the space.
    codec : Quantizer
    metric : {"l2", "ip", "cosine"}
        As for ``FlatIndex``. For ``ip`` and ``cosine`` the lists with the largest products are probed.
    residual : bool, optional
        Default: whether the codec is a product quantizer, or a sum of codewords. Codecs that score by Hamming distances
        or estimates cannot code residuals.

    Notes
    -----
    Plain codes score as in a ``FlatIndex``, bit for bit: with ``nprobe=nlist`` so do the results. With residual codes,
    of a centroid c and a decoded residual p, μ being the mean of all centroids,

    * ``l2``: ``‖q − c‖² + Σ_m (2⟨c − μ, p_m⟩ + ‖p_m‖² − 2⟨q − μ, p_m⟩)``, where what does not depend on the query is
      kept for each list (of more than 256 MB for all lists, made as needed). It differs from the squared distance of
      q to c + p by (d + M + 8) 2⁻²³ (‖q − μ‖ + ‖c − μ‖ + ‖p‖)² at the most, by rounding (and, where a codec keeps the
      norm of its vectors in a byte, by what that loses of ‖p‖²: its ``score_bound``).
    * ``ip`` and ``cosine``: ``⟨q, c⟩ + Σ_m ⟨q, p_m⟩``, which differs from the inner product of q and c + p by
      (d + M + 8) 2⁻²³ ‖q‖ (‖c‖ + ‖p‖) at the most.

    A codec without look-up tables has the codes of each list decoded, once a batch for all queries that probe it.

    Memory: as ``FlatIndex``, and half a block of 64 codes a list. A search costs a query O(nlist · d) for the lists
    (O(K d) of an ``InvertedMultiIndex``), one look-up table, and for each list M · K additions and a scan.
    Whatever the batch, the threads and the processor, a query's results are the same.

    Examples
    --------
    >>> import npquant as nq
    >>> X, _, Q, _ = nq.datasets.load_digits()
    >>> index = nq.IVFIndex(nq.KMeans(16, random_state=0), nq.ProductQuantizer(8, 4, random_state=0)).fit(X)
    >>> _ = index.add(X)
    >>> distances, ids = index.search(Q[:2], k=3, nprobe=4)
    >>> ids.shape, index.nlist, int(index.list_sizes().sum()) == index.ntotal
    ((2, 3), 16, True)
    """

    def __init__(self, coarse: Any, codec: Quantizer, metric: str = "l2", *, residual: bool | None = None) -> None:
        if not isinstance(coarse, (KMeans, InvertedMultiIndex)):
            raise InvalidInputError(f"coarse is {coarse!r}, wanted KMeans(n_clusters) or "
                                    "InvertedMultiIndex(n_codewords).")
        super().__init__(codec, metric)
        self.coarse = coarse
        inner = _innermost(codec)
        if residual is None:
            residual = isinstance(inner, (ProductQuantizer, OptimizedProductQuantizer, SumQuantizer))
        if not isinstance(residual, (bool, np.bool_)):
            raise InvalidInputError(f"residual must be True, False or None, got {residual!r}.")
        if residual and inner.score_model not in ("decoded", "stored_norm"):
            raise InvalidInputError(f"{type(inner).__name__} scores by {inner.score_model}, not by distances to "
                                    "decoded vectors, and so not of residuals. Take residual=False.")
        self.residual = bool(residual)
        self._partition: Partition | None = None  # of the trained parts as the vectors held were coded by them

    # ------------------------------------------------------------------------------------- training

    def fit(self, X: Any, y: Any = None) -> IVFIndex:
        """Train what is not fitted yet, coarse quantizer and codec, on ``X`` (n, d); ``y`` is ignored.

        They are trained as copies: what was given stays as it is. Behind a transform that is to be trained as well,
        that comes first, with the codec as it asks for it; then the coarse quantizer; the codec at last, on residuals.

        Parameters
        ----------
        X : array_like (n, d)
            Or a memmap, or an iterable of blocks. Of more than 256 vectors a codeword of the coarse quantizer (and more
            than 65,536) so many are drawn, by its ``random_state``.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong, or the index holds vectors already, whose codes must not change their
            meaning.
        """
        if self.ntotal:
            raise InvalidInputError(f"the index holds {self.ntotal} vectors, coded by what was trained before: make a "
                                    "new index, or remove them.")
        words = self.coarse.n_clusters if isinstance(self.coarse, KMeans) else self.coarse.n_codewords
        limit = max(256 * _checks.integer(words, "the size of coarse"), 65_536)
        x = training_rows(X, limit, self.coarse.random_state)
        if self.metric == "cosine" and not embeds(self.codec):
            x = normalized(x)
        codec, coarse, fresh = self.codec, self.coarse, not self.codec.__sklearn_is_fitted__()
        if fresh and (not self.residual or isinstance(codec, PreTransformed)):
            codec = clone(codec).fit(x)
        z = x
        if codec.__sklearn_is_fitted__():
            z = codec._embed(x)
            z = codec._scored(normalized(z) if self.metric == "cosine" and embeds(codec) else z)[1]
        if not coarse.__sklearn_is_fitted__():
            coarse = clone(coarse).fit(z)
        if fresh and self.residual:
            cells = cells_of(coarse)
            inner = clone(_innermost(codec))
            if "random_state" in inner.get_params(deep=False) and inner.random_state is None:
                inner.set_params(random_state=codec.random_state)
            inner.fit(z - cells.centroids(cells.assign(z, _checks.threads(inner.threads))))
            codec = _replaced(codec, inner)
        self.codec, self.coarse = codec, coarse
        self._made()  # tells whether the parts fit together
        return self

    # ------------------------------------------------------------------------------------- asking

    def search(self, queries: Any, k: int = 10, *, nprobe: int | None = None, allow: Any = None,
               threads: int | None = None) -> SearchResult:
        """Return the ``k`` nearest of each query among the vectors of its ``nprobe`` nearest lists.

        Parameters
        ----------
        queries : array_like (nq, d)
            One 1-D vector is a batch of one.
        k : int
            Results wanted; where the lists hold fewer, the rest is padding (id −1).
        nprobe : int, optional
            Lists to look into, at most ``nlist``. Default: 8, or all where there are fewer.
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
        return self._search(queries, k, allow, threads, nprobe=self._probes(nprobe))

    def range_search(self, queries: Any, radius: Any, *, nprobe: int | None = None, allow: Any = None,
                     threads: int | None = None) -> RangeResult:
        """Return all vectors within ``radius`` of each query in its ``nprobe`` nearest lists.

        Parameters
        ----------
        queries : array_like (nq, d)
        radius : float, or array_like (nq,)
            In the unit of ``distances``: squared for ``l2``.
        nprobe, allow, threads
            As for ``search``.

        Returns
        -------
        RangeResult
            ``lims`` (nq + 1,), ``distances`` and ``ids``, each query's in the order of ``search``.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        return self._range_search(queries, radius, allow, threads, nprobe=self._probes(nprobe))

    @property
    def nlist(self) -> int:
        """Number of lists."""
        self.coarse._check_fitted()
        return self.coarse.n_cells if isinstance(self.coarse, InvertedMultiIndex) else len(self.coarse.cluster_centers_)

    def list_sizes(self) -> Ids:
        """Return how many vectors each list holds, int64 (nlist,)."""
        store = self._store
        if store is None:
            return np.zeros(self.nlist, np.int64)
        return np.bincount(store.lists_of(store.slots()), minlength=store.nlist).astype(np.int64)

    def __repr__(self) -> str:
        fitted = self.codec.__sklearn_is_fitted__() and self.coarse.__sklearn_is_fitted__()
        size = f"d={self.d}, {self.codec.code_size} bytes a vector" if fitted else "not fitted"
        return (f"IVFIndex({self.coarse!r}, {self.codec!r}, metric={self.metric!r}, residual={self.residual}): "
                f"{self.ntotal} vectors, {size}")

    def _probes(self, nprobe: Any) -> int:
        self.codec._check_fitted()
        nlist = self.nlist
        if nprobe is None:
            return min(_PROBES, nlist)
        return _checks.integer(nprobe, "nprobe", high=nlist)

    # ------------------------------------------------------------------------------------- hooks

    def _made(self) -> Partition:
        """Return the partition of the vectors held, or of those to come."""
        partition = self._partition  # another thread may empty the index, and put a new one there
        if partition is not None and self.ntotal:
            return partition
        self.codec._check_fitted()
        self.coarse._check_fitted()
        codec = self.codec._scored(np.empty((0, self.codec.n_features_in_), np.float32))[0]
        cells = cells_of(self.coarse)
        if cells.d != codec.n_features_in_:
            raise InvalidInputError(f"coarse was fitted to vectors of dimension {cells.d}, and the codec codes vectors "
                                    f"of dimension {codec.n_features_in_}: fit them to the same vectors, or let the "
                                    "index fit them.")
        return Partition(cells, codec, self.metric != "l2", self.residual)

    def _behind(self, x: Float) -> Float:
        """Return ``x`` in the space of the centroids."""
        x = self.codec._embed(x)
        return self.codec._scored(normalized(x) if self.metric == "cosine" else x)[1]

    def _coded(self, X: Any) -> Iterator[Coded]:
        partition = self._made()
        if not is_stream(X):
            self.codec._vectors(X if row_count(X) is None else X[:0], "X")  # what is wrong with all is said of all
        for block, name in blocks(X, "X", 16 * _ROWS):
            z = self._behind(self.codec._vectors(block, name))
            if len(z):
                parts = run_blocks(partial(_coded_rows, partition, z), len(z), _ROWS,
                                   _checks.threads(self.codec.threads))
                yield np.concatenate([codes for codes, _ in parts]), np.concatenate([lists for _, lists in parts])

    def _at_once(self, q: Float, **options: Any) -> int:
        return max(1, min(super()._at_once(q), _PROBED // options["nprobe"]))

    def _decoded(self, store: Store, slots: Ids) -> Float:
        if not self.residual:
            return self.codec.decode(store.codes(slots))
        return _before(self.codec, self._made().decode(store.lists_of(slots), store.codes(slots)))

    def _freeze(self) -> None:
        super()._freeze()
        self.coarse = copy.copy(self.coarse)  # coarse quantizers replace their arrays as well
        self.coarse.__dict__.pop("labels_", None)  # of the vectors it was trained on
        self._partition = None
        self._partition = self._made()
        self._nlist = self._partition.cells.count

    def _columns(self) -> bool:
        return self._made().columns

    def _alike(self, other: Any) -> bool:
        return super()._alike(other) and self.residual == other.residual and alike(
            self._made().cells.codebooks, other._made().cells.codebooks)

    def _topk(self, x: Float, store: Store, live: Bits, k: int, threads: int | None,
              **options: Any) -> tuple[Float, Ids]:
        held = Lists(*store.lists(), store.blocks, store.ids, live)
        return self._made().topk(self._behind(x), options["nprobe"], held, k, threads)

    def _within(self, x: Float, store: Store, live: Bits, radius: Float, threads: int | None,
                **options: Any) -> tuple[Ids, Float, Ids]:
        held = Lists(*store.lists(), store.blocks, store.ids, live)
        return self._made().within(self._behind(x), options["nprobe"], held, radius, threads)

    def _get_state(self) -> dict[str, Any]:
        return {"coarse": self.coarse, "residual": self.residual, **super()._get_state()}

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> IVFIndex:
        index = cls(state["coarse"], state["codec"], state["metric"], residual=state["residual"])
        if state["store"] is not None:
            index._partition = index._made()
            index._nlist = index._partition.cells.count
        index._restore(state)
        return index


def _coded_rows(partition: Partition, z: Float, start: int, stop: int) -> tuple[Codes, Ids]:
    return partition.encode(z[start:stop])


def _innermost(codec: Quantizer) -> Quantizer:
    """Return the codec behind all transforms; an ``OptimizedProductQuantizer`` not yet fitted stands for its own."""
    while isinstance(codec, PreTransformed):
        inner = codec.__dict__.get("quantizer_", codec.__dict__.get("quantizer"))
        if inner is None:
            return codec
        codec = inner
    return codec


def _replaced(codec: Quantizer, inner: Quantizer) -> Quantizer:
    """Return a copy of a fitted ``codec`` with another codec behind all transforms."""
    if not isinstance(codec, PreTransformed):
        return inner
    other = copy.copy(codec)
    other.quantizer_ = _replaced(codec.quantizer_, inner)
    return other


def _before(codec: Quantizer, z: Float) -> Float:
    """Return vectors as they were before the transforms in front of ``codec``."""
    return codec._before(_before(codec.quantizer_, z)) if isinstance(codec, PreTransformed) else z
