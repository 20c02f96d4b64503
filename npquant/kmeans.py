"""k-means by Lloyd's algorithm, deterministic for a seed whatever the number of threads."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, _rows
from npquant._base import Transformer
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.kernels import cluster, nearest

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Labels = NDArray[np.int32]

log = logging.getLogger("npquant")

_MANY, _MANY_LEAST = 64, 8192  # rows a cluster, and at the least, from which a first phase on a sample pays
_WARM_POINTS, _WARM_ITER = 32, 8  # rows a cluster of that sample, and iterations on it
_STRIDE = 1.8  # times the way to the mean; any number below 2 lowers the inertia
_SEED_POINTS, _SEED_LEAST = 8, 4096  # a cluster, and at the least, of the sample that k-means++ draws from
_READ = 1 << 16  # rows read, converted and checked at once where not all are wanted in memory


class KMeans(Transformer):
    """Partition vectors around ``n_clusters`` centres that minimise the sum of squared distances.

    Nearest centres are found in float32 in a fixed order of summation with ties to the smaller index, sums
    are float64 in row order: the same ``random_state`` gives the same bits for any number of threads. The
    inertia never increases from one iteration to the next, and no cluster is empty while there are
    ``n_clusters`` distinct points (distinct to float32: differences below 1e-22 have squares of 0).

    Parameters
    ----------
    n_clusters : int
        Number of centres, K.
    init : {"k-means++", "random"} or array_like of shape (n_clusters, d)
        Start: greedy D² sampling, or distinct rows drawn uniformly, either followed by iterations on a sample
        where there are many rows (see :func:`start`); or centres given.
    max_iter : int
        Lloyd iterations over all points at the most.
    tol : float
        Stop where an iteration lowers the inertia by less than this fraction of it.
    spherical : bool
        Cluster directions: rows are divided by their norm, and so is each centre after each update, so that the
        nearest centre is the one of the largest cosine. A zero vector has no direction: it has label 0, and
        counts for nothing in the centres and in the inertia.
    max_points : int, optional
        Train on so many rows at the most, drawn uniformly; ``n_points_`` and a line in the log (level INFO) tell
        how many they were. Default: all rows of an array in memory; of a ``numpy.memmap`` or an iterable of blocks
        ``max(256 K, 65536)``, since these may not fit in memory.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    cluster_centers_ : ndarray (n_clusters, d) float32
    labels_ : ndarray (n,) int32
        Nearest centre of each row given; where blocks were given, of each row kept.
    counts_ : ndarray (n_clusters,) int64
        Rows of each cluster, by ``labels_``.
    weights_ : ndarray (n_clusters,) float64
        Sum of the weights (1 each without) of the rows of each cluster that were trained on: without weights they
        sum to ``n_points_``, and ``counts_`` to the rows of ``labels_``, which ``max_points`` does not lessen.
    sums_ : ndarray (n_clusters, d) float64
        Weighted sum of the rows of each cluster that were trained on (``spherical``: of their directions), by the
        nearest centre at the end of ``fit``: what ``partial_fit`` goes on from.
    inertia_ : float
        Sum of (weighted) squared distances to the nearest centre of the rows of ``labels_``, float64 accumulation.
    inertia_history_ : list of float
        The inertia of the training points at the start and after each iteration; it never increases.
    n_iter_ : int
        Iterations that lowered the inertia or left it as it was: ``len(inertia_history_) - 1``.
    n_points_ : int
        Rows trained on: those given but for zero weights, directions that do not exist, and ``max_points``.
        This, ``n_iter_`` and ``inertia_history_`` tell of a ``fit``: ``partial_fit`` removes them.

    Notes
    -----
    An iteration costs O(n K d). Where there are more than max(64 K, 8192) rows, the first ones run on a sample (see
    :func:`start`), and centres move further than to the means of their points (see :func:`lloyd`), which about
    halves the iterations needed; the last step goes to the means. A larger ``tol`` saves iterations and costs inertia.

    With fewer rows than ``n_clusters`` it trains all the same. Where ``init`` is a word it warns, and the centres
    beyond the number of rows repeat others and are never the nearest (ties go to the smaller index). Where ``init``
    is an array there is no warning, and a centre that no row needs stays where it is.

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> X = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
    >>> km = nq.KMeans(2, random_state=0).fit(X)
    >>> float(km.inertia_), sorted(km.counts_.tolist())
    (1.0, [2, 2])
    """

    _fitted_attribute = "cluster_centers_"

    def __init__(self, n_clusters: int = 8, *, init: Any = "k-means++", max_iter: int = 25, tol: float = 5e-4,
                 spherical: bool = False, max_points: int | None = None, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.spherical = spherical
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Find the centres of ``X``; ``y`` is ignored.

        Parameters
        ----------
        X : array_like (n, d), or iterator of such blocks
            A memmap is read by blocks, and copied no further than ``max_points``. Of blocks that an iterator (or an
            iterable without a length) gives, ``max_points`` rows are kept: those, and in the order, that an
            array of all rows with the same ``max_points`` would have trained on, however they are cut.
        y : ignored
        sample_weight : array_like (n,), optional
            Weight of each row in the sums and in the inertia, 0 or from 1e-100 to 1e100. Rows of weight 0 count
            for nothing: the centres are, bit for bit, those of a fit without them. They have labels, though, and
            must be finite like all others.

        Raises
        ------
        InvalidInputError
            ``X`` (an array: any row, also one of weight 0 or that ``max_points`` leaves out), a weight or a parameter
            is wrong; nothing can be learned, all weights or (for ``spherical``) all vectors being 0. What an
            earlier fit learned is then left as it was.
        """
        K, max_iter, tol, threads, limit = self._parameters()
        rng = _checks.random_state(self.random_state)
        sampling = np.random.default_rng(rng.integers(2**63, size=4))  # apart: the start does not depend on it
        given = None
        if _rows.is_stream(X):
            if sample_weight is not None:
                raise InvalidInputError("sample_weight needs an array X: an iterable of blocks has no rows to "
                                        "number. Give an array, or call partial_fit with each block's weights.")
            X, given = _rows.sample_stream(X, limit or max(256 * K, _READ), sampling)
        elif limit is None and isinstance(X, np.memmap):
            limit = max(256 * K, _READ)
        data = X if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiub" else _checks.vectors(X)
        n = len(data)
        weight = _weights(sample_weight, n)
        kept = None if weight is None or weight.all() else np.flatnonzero(weight)
        x, rows = _training_rows(data, kept, limit, sampling)
        if weight is not None and rows is not None:
            weight = weight[rows]
        x, weight, _ = self._directions(x, weight)
        if len(x) < (given or n):
            log.info("KMeans trains on %d of %d rows (max_points, weights of 0 and vectors without a direction leave "
                     "out the others)", len(x), given or n)
        centers = self._start(x, weight, K, rng, threads, warm=max_iter > 0)
        centers, labels, history = _lloyd(x, centers, weight, max_iter, tol, self.spherical, threads)
        sums, weights = _sums(x, labels, weight, K, threads)
        n_points, d, inertia = len(x), x.shape[1], history[-1]
        if n_points != n:
            labels, inertia = self._measure(data, sample_weight, centers)
        counts = np.bincount(labels, minlength=K).astype(np.int64)
        # All is known: from here on nothing fails.
        self.cluster_centers_, self.sums_, self.weights_, self.counts_ = centers, sums, weights, counts
        self.labels_, self.inertia_ = labels, inertia
        self.inertia_history_, self.n_iter_, self.n_points_ = history, len(history) - 1, n_points
        self._remember_features(X, d)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Move the centres towards a batch ``X`` (n, d) (mini-batch k-means, Sculley 2010).

        Each centre is the mean of all rows that ever were assigned to it, each at the time it came; so its rate
        falls as 1 / count. Rows are assigned to the centres as they were before the batch. The first batch
        also chooses the start, as ``fit`` does; after ``fit``, the centres go on from its ``sums_`` and
        ``weights_``. A centre that never had a row is moved onto one far from all others. ``max_points``,
        ``max_iter`` and ``tol`` have no effect. O(n K d), deterministic.

        Sets ``labels_`` and ``inertia_`` (of the batch, by the centres before it), ``counts_`` and
        ``weights_`` (of all batches), and ``sums_`` (n_clusters, d) float64, weighted sums of all rows. Removes
        ``inertia_history_``, ``n_iter_`` and ``n_points_`` of an earlier ``fit``.

        Raises
        ------
        InvalidInputError
            ``X``, a weight or a parameter is wrong, or, in the first batch, nothing can be learned from it.
        """
        K, _, _, threads, _ = self._parameters()
        first = not self.__sklearn_is_fitted__()
        x = _checks.vectors(X, d=None if first else self.n_features_in_, owner="KMeans")
        weight = _weights(sample_weight, len(x))
        if not first and len(self.cluster_centers_) != K:
            raise InvalidInputError(f"n_clusters is {K}, but {len(self.cluster_centers_)} centres were learned: "
                                    "call fit, or partial_fit of a new KMeans.")
        labels = np.zeros(len(x), np.int32)
        keep = np.ones(len(x), bool) if weight is None else weight > 0
        d = x.shape[1]
        part, weight, directed = self._directions(x[keep], None if weight is None else weight[keep], empty=not first)
        keep[keep] = directed
        if first:
            rng = _checks.random_state(self.random_state)
            rng.integers(2**63, size=4)  # as in fit
            centers = self._start(part, weight, K, rng, threads, warm=True)
            sums, weights, counts = np.zeros((K, d)), np.zeros(K), np.zeros(K, np.int64)
        else:
            centers, weights, counts = self.cluster_centers_, self.weights_, self.counts_
            sums = self.sums_
        inertia = 0.0
        if len(part):
            centers, index, distance = _assign_repaired(part, centers, weight, threads, weights == 0)
            inertia = _total(distance, weight)
            labels[keep] = index
            added, more = _sums(part, index, weight, K, threads)
            sums, weights = sums + added, weights + more
            counts = counts + np.bincount(labels, minlength=K)
            centers = _means(centers, sums, np.where(more > 0, weights, 0.0), self.spherical)
        self.cluster_centers_, self.sums_, self.weights_, self.counts_ = centers, sums, weights, counts
        self.labels_, self.inertia_ = labels, inertia
        for name in ("inertia_history_", "n_iter_", "n_points_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        if first:
            self._remember_features(X, d)
        return self

    def predict(self, X: Any) -> Labels:
        """Return the index of the nearest centre of each row of ``X`` (n, d), as int32 (n,)."""
        self._check_fitted()
        return self._nearest(X, self.cluster_centers_, distances=False)[0]

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Labels:
        """Fit and return ``labels_``, int32 (n,)."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def transform(self, X: Any) -> Float:
        """Return the Euclidean distances (not squared) of ``X`` (n, d) to the centres, float32 (n, K).

        With ``spherical``, of the rows divided by their norms.
        """
        self._check_fitted()
        x = self._prepared(X, self.n_features_in_)[0]
        return np.sqrt(nearest.tables(x, _as_codebook(self.cluster_centers_), False,
                                      _checks.threads(self.threads))[:, 0])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the (weighted) sum of squared distances of ``X`` to the nearest centre (higher is better)."""
        self._check_fitted()
        return -self._measure(X, sample_weight, self.cluster_centers_)[1]

    def _parameters(self) -> tuple[int, int, float, int | None, int | None]:
        K = _checks.integer(self.n_clusters, "n_clusters")
        if not isinstance(self.spherical, (bool, np.bool_)):
            raise InvalidInputError(f"spherical must be True or False, got {self.spherical!r}.")
        if isinstance(self.init, str):
            _checks.choice(self.init, "init", ("k-means++", "random"))
        limit = self.max_points
        if limit is not None and _checks.integer(limit, "max_points") < K:
            raise InvalidInputError(f"max_points is {limit}, wanted at least n_clusters = {K} (30 × {K} or more is "
                                    "better).")
        return (K, _checks.integer(self.max_iter, "max_iter", low=0), _checks.number(self.tol, "tol"),
                _checks.threads(self.threads), None if limit is None else int(limit))

    def _start(self, x: Float, weight: Double | None, K: int, rng: np.random.Generator, threads: int | None, *,
               warm: bool) -> Float:
        if isinstance(self.init, str):
            return start(x, K, rng, self.init, threads, weight=weight, spherical=self.spherical, warm=warm)
        centers = _checks.vectors(self.init, "init", d=x.shape[1], owner="the data", copy=True)
        if centers.shape[0] != K:
            raise InvalidInputError(f"init has {centers.shape[0]} rows, wanted n_clusters = {K} centres.")
        if self.spherical:
            centers, directed = _unit(centers)
            if not directed.all():
                raise InvalidInputError(f"init row {int(np.argmin(directed))} is zero, which is no direction: give "
                                        "other centres, or spherical=False.")
        return centers

    def _directions(self, x: Float, weight: Double | None, *,
                    empty: bool = False) -> tuple[Float, Double | None, NDArray[np.bool_]]:
        """Return, for ``spherical``, unit rows and their weights without zero vectors, and which rows these are."""
        directed = np.ones(len(x), bool)
        if self.spherical:
            x, directed = _unit(x)
            if not directed.all():
                x, weight = x[directed], None if weight is None else weight[directed]
        if not len(x) and not empty:
            raise InvalidInputError("X has no row with a direction: all vectors are zero, and spherical=True clusters "
                                    "directions. Drop zero vectors, or set spherical=False.")
        return x, weight, directed

    def _prepared(self, X: Any, d: int, name: str = "X") -> tuple[Float, NDArray[np.bool_]]:
        x = _checks.vectors(X, name, d=d, owner="KMeans")
        return _unit(x) if self.spherical else (x, np.ones(len(x), bool))

    def _nearest(self, X: Any, centers: Float, *, distances: bool) -> tuple[Labels, Float, NDArray[np.bool_]]:
        """Return labels, squared distances and which rows count, reading a memmap by blocks."""
        threads, codebook = _checks.threads(self.threads), _as_codebook(centers)
        parts = []
        for block, name in _rows.blocks(X, "X", _READ):
            x, directed = self._prepared(block, centers.shape[1], name)
            index, distance = nearest.assign(x, codebook, threads, distances=distances)
            index[~directed] = 0
            parts.append((index[:, 0], distance[:, 0], directed))
        if not parts:
            raise InvalidInputError("X is an iterable of blocks, and gave no rows: a minimum of 1 is required. (An "
                                    "iterator can be read once: make a new one for each call.)")
        if len(parts) == 1:
            return parts[0]
        labels, distance, directed = (np.concatenate(part) for part in zip(*parts))
        return labels, distance, directed

    def _measure(self, X: Any, sample_weight: Any, centers: Float) -> tuple[Labels, float]:
        """Return the labels of ``X`` by ``centers``, and its inertia."""
        labels, distance, counted = self._nearest(X, centers, distances=True)
        weight = _weights(sample_weight, len(labels))
        if weight is not None:
            counted &= weight > 0
            weight = weight[counted]
        return labels, _total(distance if counted.all() else distance[counted], weight)

    @property
    def _n_features_out(self) -> int:
        return int(self.cluster_centers_.shape[0])

    def _check_state(self) -> None:
        _checks.fitted(self.cluster_centers_, (None, self.n_features_in_), "cluster_centers_")


def _as_codebook(centers: Float) -> Float:
    return nearest.transpose(centers[np.newaxis])


def _unit(x: Float) -> tuple[Float, NDArray[np.bool_]]:
    """Return the rows divided by their norm (zero rows as they are), and which are not zero."""
    unit = np.empty(x.shape, np.float32)
    directed = np.empty(len(x), bool)
    for begin in range(0, len(x), _READ):
        rows = slice(begin, begin + _READ)
        wide = x[rows].astype(np.float64)
        norm = np.sqrt((wide * wide).sum(axis=1))  # by rows: it does not depend on the other rows
        directed[rows] = norm > 0
        unit[rows] = wide / np.where(norm > 0, norm, 1.0)[:, None]
    return unit, directed


def _weights(sample_weight: Any, n: int) -> Double | None:
    """Return weights as float64 (n,), ``None`` for none."""
    if sample_weight is None:
        return None
    try:
        weight = np.array(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"sample_weight is not an array of numbers: {error}.") from None
    if weight.ndim != 1:
        raise InvalidInputError(f"sample_weight has shape {weight.shape}, wanted (n,): one weight a row of X. "
                                "Sample weights must be 1D array or scalar")
    _checks.length(weight, n, "sample_weight")
    bad = ~((weight == 0) | ((weight >= 1e-100) & (weight <= 1e100)))
    if bad.any():
        row = int(np.argmax(bad))
        raise InvalidInputError(f"sample_weight[{row}] is {weight[row]:g}, wanted 0 or a number from 1e-100 to 1e100. "
                                "Drop rows without a weight, and rescale what is too large or small.")
    if not weight.any():
        raise InvalidInputError("sample_weight: every weight is zero. Give at least one row a weight above 0.")
    return weight


def _total(distance: Float, weight: Double | None) -> float:
    return float(distance.sum(dtype=np.float64) if weight is None else (distance * weight).sum())


def _training_rows(X: NDArray[Any], kept: NDArray[np.intp] | None, limit: int | None,
                   rng: np.random.Generator) -> tuple[Float, NDArray[np.intp] | None]:
    """Return the rows of ``X`` to train on as float32, and their numbers (``None``: all).

    ``kept`` are the rows to draw from. Where not all are wanted, only those drawn are read, by blocks.
    """
    total, rows = len(X) if kept is None else len(kept), kept
    if limit is not None and limit < total:
        drawn = _rows.sample_numbers(total, limit, rng)
        rows = drawn if kept is None else kept[drawn]
    if rows is None:
        return _checks.vectors(X), None
    x = np.empty((len(rows), X.shape[1]), np.float32)
    for begin in range(0, len(rows), _READ):
        part = rows[begin:begin + _READ]
        x[begin:begin + _READ] = _checks.vectors(X[part], f"X (rows {part[0]} to {part[-1]} that were drawn)")
    return x, rows


def start(x: Float, K: int, rng: np.random.Generator, how: str, threads: int | None, *, weight: Double | None = None,
          spherical: bool = False, warm: bool = True) -> Float:
    """Return K centres (K, d) float32 to start from; with fewer rows than K, rows are repeated, with a warning.

    ``random`` draws distinct rows. ``k-means++`` (Arthur & Vassilvitskii 2007) draws rows with probability
    proportional to the (weighted) squared distance to the nearest one drawn so far; it is greedy: of
    2 + ⌊ln K⌋ rows drawn, the one that lowers the inertia most is taken. It draws from a uniform sample of
    max(8 K, 4096) rows, O(K² d log K).

    Where there are more than max(64 K, 8192) rows (and ``warm``), all this, followed by at most 8 iterations, goes
    on in a uniform sample of 32 K rows: the iterations over all then begin where several would have led.
    """
    n = x.shape[0]
    if n < K:
        warnings.warn(f"{n} training vectors for {K} codewords: only {n} codewords can differ, the other {K - n} "
                      f"repeat them. Train on at least {K} vectors (30 × {K} or more is better), or ask for "
                      "fewer codewords.", NpquantWarning, stacklevel=4)
        return x[np.concatenate([rng.permutation(n), np.zeros(K - n, np.int64)])]
    if warm and _many(n, K):
        rows = np.sort(rng.choice(n, _WARM_POINTS * K, replace=False, shuffle=False))
        part, weights = x[rows], None if weight is None else weight[rows]
        begin = start(part, K, rng, how, threads, weight=weights, warm=False)
        return _lloyd(part, begin, weights, _WARM_ITER, 1e-3, spherical, threads, long_steps=True)[0]
    if how == "random":
        return x[rng.choice(n, K, replace=False)]
    return _plus_plus(x, K, rng, weight)


def _many(n: int, K: int) -> bool:
    return n > max(_MANY * K, _MANY_LEAST)


def _plus_plus(x: Float, K: int, rng: np.random.Generator, weight: Double | None) -> Float:
    size = max(_SEED_POINTS * K, _SEED_LEAST)
    if size < len(x):
        rows = np.sort(rng.choice(len(x), size, replace=False, shuffle=False))
        x, weight = x[rows], None if weight is None else weight[rows]
    n = len(x)
    # A row of weight 2 is drawn as two equal rows would be, and wherever they stand.
    order = np.lexsort(x.T[1::-1])
    x, weight = x[order], None if weight is None else weight[order]
    # The points in the place of codewords, many to one candidate, in parts that stay in the cache.
    width = max(512, (1 << 17) // x.shape[1])
    parts = [nearest.transpose(x[np.newaxis, begin:begin + width]) for begin in range(0, n, width)]

    def distances(rows: NDArray[np.intp]) -> Float:
        return np.concatenate([nearest.tables(x[rows], part, False, 1)[:, 0] for part in parts], axis=1)
    draws = 2 + int(np.log(K))
    chosen = np.empty(K, np.int64)
    chosen[:1] = _draw(np.cumsum(np.ones(n) if weight is None else weight), rng.random(1))
    best = distances(chosen[:1])[0]
    for k in range(1, K):
        total = np.cumsum(best if weight is None else best * weight, dtype=np.float64)
        if total[-1] > 0:
            candidates = _draw(total, rng.random(draws))
            distance = np.minimum(distances(candidates), best)
            left = distance.sum(axis=1, dtype=np.float64) if weight is None else (distance * weight).sum(axis=1)
            taken = int(np.argmin(left))
            chosen[k], best = candidates[taken], distance[taken]
        else:  # every point is a centre already: repeat
            chosen[k] = rng.choice(np.setdiff1d(np.arange(n), chosen[:k]))
    return x[chosen]


def _draw(total: Double, uniform: Double) -> NDArray[np.intp]:
    """Return indices drawn with the probabilities whose running total is given."""
    return np.minimum(np.searchsorted(total, uniform * total[-1], side="right"), len(total) - 1)


def lloyd(x: Float, centers: Float, *, max_iter: int, tol: float,
          threads: int | None) -> tuple[Float, Labels, NDArray[np.int64], list[float]]:
    """Run Lloyd's iterations from ``centers`` (K, d).

    With many rows (more than max(64 K, 8192)) a centre moves 1.8 times the way to the mean of its points. A
    cluster's sum of squares around c is n ‖c − mean‖² more than around the mean, and ‖c − mean‖ shrinks by the
    factor |1 − 1.8|: the inertia falls all the same, and ten such iterations come as far as twenty. The first
    step, the last one, and those after which hardly a label changed, go to the mean itself: where ``tol`` ends the
    iterations after a long step, one more to the mean follows (within ``max_iter``).

    Returns
    -------
    centers : ndarray (K, d) float32
    labels : ndarray (n,) int32
    counts : ndarray (K,) int64
    history : list of float
        Inertia at the start and after each iteration; it never increases.
    """
    centers, labels, history = _lloyd(x, centers, None, max_iter, tol, False, threads)
    return centers, labels, np.bincount(labels, minlength=centers.shape[0]).astype(np.int64), history


def _lloyd(x: Float, centers: Float, weight: Double | None, max_iter: int, tol: float, spherical: bool,
           threads: int | None, *, long_steps: bool = False) -> tuple[Float, Labels, list[float]]:
    K = centers.shape[0]
    long_steps |= _many(len(x), K)
    stride, last = 1.0, False
    centers, labels, distance = _assign_repaired(x, centers, weight, threads)
    history = [_total(distance, weight)]
    for left in reversed(range(max_iter)):
        last |= left == 0
        if last:
            stride = 1.0
        sums, totals = _sums(x, labels, weight, K, threads)
        moved = _means(centers, sums, totals, spherical, stride)
        moved, new_labels, distance = _assign_repaired(x, moved, weight, threads)
        inertia = _total(distance, weight)
        if inertia > history[-1]:  # by rounding alone: what came before is as good
            if stride == 1.0:
                break
            last = True  # but not at the means yet
            continue
        to_means = stride == 1.0
        if long_steps:
            stride = _STRIDE if np.count_nonzero(labels != new_labels) > len(x) // 1024 else 1.0
        centers, labels = moved, new_labels
        history.append(inertia)
        log.debug("k-means iteration %d: inertia %.6g", len(history) - 1, inertia)
        if last:
            break
        if history[-2] - inertia <= tol * history[-2]:
            if to_means:
                break
            last = True
    return centers, labels, history


def _sums(x: Float, labels: Labels, weight: Double | None, K: int, threads: int | None) -> tuple[Double, Double]:
    if weight is not None:
        return cluster.weighted_sums_by_cluster(x, labels, weight, K, threads)
    sums, counts = cluster.sums_by_cluster(x, labels, K, threads)
    return sums, counts.astype(np.float64)


def _means(centers: Float, sums: Double, totals: Double, spherical: bool, stride: float = 1.0) -> Float:
    """Return new centres: means, or ``stride`` times as far; one without a point, or mean direction, stays."""
    moved = centers.copy()
    held = totals > 0
    means = sums[held] / totals[held, None]
    if spherical:
        norm = np.sqrt((means * means).sum(axis=1))
        held[held] = norm > 0
        means = means[norm > 0] / norm[norm > 0, None]
    if stride != 1.0:
        means += (stride - 1.0) * (means - centers[held])
        if spherical:  # in the plane of both: still nearer to the mean than before
            means /= np.sqrt((means * means).sum(axis=1))[:, None]
    moved[held] = means
    return moved


def _assign_repaired(x: Float, centers: Float, weight: Double | None, threads: int | None,
                     movable: NDArray[np.bool_] | None = None) -> tuple[Float, Labels, Float]:
    """Assign; while a cluster (that is ``movable``) is empty, move its centre onto a point that is farthest.

    Every such move lowers the inertia: the empty cluster's centre served nobody, the point's distance
    becomes 0. It ends when no cluster is empty or every point lies on a centre.
    """
    while True:
        index, distance = nearest.assign(x, _as_codebook(centers), threads)
        labels, distance = index[:, 0], distance[:, 0]
        idle = np.bincount(labels, minlength=centers.shape[0]) == 0
        empty = np.flatnonzero(idle if movable is None else idle & movable)
        if not len(empty) or not distance.any():
            return centers, labels, distance
        centers = centers.copy()
        left = distance if weight is None else distance * weight
        for k in empty:
            far = int(np.argmax(left))
            if left[far] == 0:
                break
            centers[k] = x[far]
            there = nearest.assign(x, x[far].reshape(1, -1, 1), threads)[1][:, 0]
            left = np.minimum(left, there if weight is None else there * weight)
