"""k-means by Lloyd's algorithm, deterministic for a seed whatever the number of threads."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Transformer
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.kernels import cluster, nearest

Float = NDArray[np.float32]


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
        Start: D² sampling (Arthur & Vassilvitskii 2007), distinct rows drawn uniformly, or centres given.
    max_iter : int
        Lloyd iterations at the most.
    tol : float
        Stop where an iteration lowers the inertia by less than this fraction of it.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    cluster_centers_ : ndarray (n_clusters, d) float32
    labels_ : ndarray (n,) int32
        Nearest centre of each training row.
    counts_ : ndarray (n_clusters,) int64
        Training rows of each cluster.
    inertia_ : float
        Sum of squared distances to the nearest centre, float64 accumulation.
    inertia_history_ : list of float
        The inertia after each iteration; it never increases.
    n_iter_ : int

    Notes
    -----
    An iteration costs O(n K d). With fewer rows than ``n_clusters`` it trains all the same and warns: the
    centres beyond the number of rows repeat others and are never the nearest (ties go to the smaller index).

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> X = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
    >>> km = nq.KMeans(2, random_state=0).fit(X)
    >>> float(km.inertia_), sorted(km.counts_.tolist())
    (1.0, [2, 2])
    """

    _fitted_attribute = "cluster_centers_"

    def __init__(self, n_clusters: int = 8, *, init: Any = "k-means++", max_iter: int = 25, tol: float = 1e-4,
                 random_state: Any = None, threads: int | None = None) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None) -> KMeans:
        """Find the centres of ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong.
        """
        x = _checks.vectors(X)
        K = _checks.integer(self.n_clusters, "n_clusters")
        max_iter = _checks.integer(self.max_iter, "max_iter", low=0)
        tol = _checks.number(self.tol, "tol")
        threads = _checks.threads(self.threads)
        rng = _checks.random_state(self.random_state)
        if isinstance(self.init, str):
            _checks.choice(self.init, "init", ("k-means++", "random"))
            centers = start(x, K, rng, self.init, threads)
        else:
            centers = _checks.vectors(self.init, "init", d=x.shape[1], owner="the data", copy=True)
            if centers.shape[0] != K:
                raise InvalidInputError(f"init has {centers.shape[0]} rows, wanted n_clusters = {K} centres.")
        result = lloyd(x, centers, max_iter=max_iter, tol=tol, threads=threads)
        self.cluster_centers_, self.labels_, self.counts_, self.inertia_history_ = result
        self.inertia_ = self.inertia_history_[-1]
        self.n_iter_ = len(self.inertia_history_) - 1
        self._remember_features(X, x.shape[1])
        return self

    def predict(self, X: Any) -> NDArray[np.int32]:
        """Return the index of the nearest centre of each row of ``X`` (n, d), as int32 (n,)."""
        self._check_fitted()
        x = _checks.vectors(X, d=self.n_features_in_, owner="KMeans")
        return nearest.assign(x, _as_codebook(self.cluster_centers_), _checks.threads(self.threads))[0][:, 0]

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int32]:
        """Fit and return the labels of the training rows, int32 (n,)."""
        return self.fit(X).labels_

    def transform(self, X: Any) -> Float:
        """Return the Euclidean distances (not squared) of ``X`` (n, d) to the centres, float32 (n, K)."""
        self._check_fitted()
        x = _checks.vectors(X, d=self.n_features_in_, owner="KMeans")
        return np.sqrt(nearest.tables(x, _as_codebook(self.cluster_centers_), False,
                                      _checks.threads(self.threads))[:, 0])

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the sum of squared distances of ``X`` to the nearest centre (higher is better)."""
        self._check_fitted()
        x = _checks.vectors(X, d=self.n_features_in_, owner="KMeans")
        distance = nearest.assign(x, _as_codebook(self.cluster_centers_), _checks.threads(self.threads))[1]
        return -float(distance.sum(dtype=np.float64))

    @property
    def _n_features_out(self) -> int:
        return int(self.cluster_centers_.shape[0])

    def _check_state(self) -> None:
        _checks.fitted(self.cluster_centers_, (None, self.n_features_in_), "cluster_centers_")


def _as_codebook(centers: Float) -> Float:
    return nearest.transpose(centers[np.newaxis])


def start(x: Float, K: int, rng: np.random.Generator, how: str, threads: int | None) -> Float:
    """Return K starting centres (K, d) among the rows of ``x``; with fewer rows than K, rows are repeated.

    ``k-means++`` draws each next centre with probability proportional to the squared distance to the nearest
    one drawn so far, O(n K d); ``random`` draws distinct rows.
    """
    n = x.shape[0]
    if n < K:
        warnings.warn(f"{n} training vectors for {K} codewords: only {n} codewords can differ, the other {K - n} "
                      f"repeat them. Train on at least {K} vectors (30 × {K} or more is better), or ask for "
                      "fewer codewords.", NpquantWarning, stacklevel=3)
        return x[np.concatenate([rng.permutation(n), np.zeros(K - n, np.int64)])]
    if how == "random":
        return x[rng.choice(n, K, replace=False)]
    chosen = np.empty(K, np.int64)
    chosen[0] = rng.integers(n)
    best = np.full(n, np.inf, np.float32)
    taken = np.zeros(n, bool)
    for k in range(1, K):
        taken[chosen[k - 1]] = True
        distance = nearest.assign(x, x[chosen[k - 1]].reshape(1, -1, 1), threads)[1][:, 0]
        np.minimum(best, distance, out=best)
        total = np.cumsum(best, dtype=np.float64)
        if total[-1] > 0:
            chosen[k] = min(np.searchsorted(total, rng.random() * total[-1], side="right"), n - 1)
        else:  # every point is a centre already: repeat
            chosen[k] = rng.choice(np.flatnonzero(~taken))
    return x[chosen]


def lloyd(x: Float, centers: Float, *, max_iter: int, tol: float,
          threads: int | None) -> tuple[Float, NDArray[np.int32], NDArray[np.int64], list[float]]:
    """Run Lloyd's iterations from ``centers`` (K, d).

    Returns
    -------
    centers : ndarray (K, d) float32
    labels : ndarray (n,) int32
    counts : ndarray (K,) int64
    history : list of float
        Inertia at the start and after each iteration; it never increases.
    """
    centers, labels, distance = _assign_repaired(x, centers, threads)
    history = [float(distance.sum(dtype=np.float64))]
    for _ in range(max_iter):
        sums, counts = cluster.sums_by_cluster(x, labels, centers.shape[0], threads)
        held = counts > 0
        moved = centers.copy()
        moved[held] = sums[held] / counts[held, None]
        moved, new_labels, distance = _assign_repaired(x, moved, threads)
        inertia = float(distance.sum(dtype=np.float64))
        if inertia > history[-1]:  # by rounding alone: what came before is as good
            break
        centers, labels = moved, new_labels
        history.append(inertia)
        if history[-2] - inertia <= tol * history[-2]:
            break
    return centers, labels, np.bincount(labels, minlength=centers.shape[0]).astype(np.int64), history


def _assign_repaired(x: Float, centers: Float,
                     threads: int | None) -> tuple[Float, NDArray[np.int32], Float]:
    """Assign; while a cluster is empty, move its centre onto a point that is farthest from its own.

    Every such move lowers the inertia: the empty cluster's centre served nobody, the point's distance
    becomes 0. It ends when no cluster is empty or every point lies on a centre.
    """
    while True:
        index, distance = nearest.assign(x, _as_codebook(centers), threads)
        labels, distance = index[:, 0], distance[:, 0]
        empty = np.flatnonzero(np.bincount(labels, minlength=centers.shape[0]) == 0)
        if not len(empty) or not distance.any():
            return centers, labels, distance
        centers = centers.copy()
        left = distance
        for k in empty:
            far = int(np.argmax(left))
            if left[far] == 0:
                break
            centers[k] = x[far]
            left = np.minimum(left, nearest.assign(x, x[far].reshape(1, -1, 1), threads)[1][:, 0])
