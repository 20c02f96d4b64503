"""How good a ranking, a search result or a reconstruction is.

Two recalls have two names, because the same word means both in the literature: :func:`recall_at` asks whether
the one true nearest neighbour is among the first R results, :func:`knn_recall` how much of the true k-set was
found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import exact
from npquant.kernels._pool import run_blocks

Distances = ArrayLike | Callable[[int, int], ArrayLike]
_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
# From (ends, hits) of one query's groups of equal distance to that query's row of results.
_Finish = Callable[[_Ints, _Ints], Any]

# A callable is asked for about 64 MB of float32 at a time; threads then share its rows, a few at a time.
_BLOCK_VALUES = 1 << 24
_ROWS_A_TASK = 16
_ROWS_A_SUM = 1024

# Order-preserving keys of the two infinities; whatever lies outside is NaN.
_KEY_MINUS_INF, _KEY_PLUS_INF = 0x007FFFFF, 0xFF800000


class PrecisionRecall(NamedTuple):
    """Mean precision and recall at cut-offs ``at``: (c,) int64, (c,) float64 and (c,) float64."""

    at: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def mean_average_precision(distances: Distances, query_labels: ArrayLike, database_labels: ArrayLike, *,
                           at: int | None = None, normalize: str = "relevant",
                           threads: int | None = None) -> float:
    r"""Return the mean over queries of the (expected) average precision of their rankings of the database.

    Parameters
    ----------
    distances : array_like, shape (nq, n), or callable
        Lower is better, any real dtype, compared as float32 (−0 equals +0; infinities are allowed and tie).
        A callable is given ``(start, stop)`` and returns the (stop − start, n) distances of these queries, so
        that nq · n numbers never stand in memory at once; it is called from the calling thread only, block
        after block.
    query_labels, database_labels : array_like
        Both 1-D, (nq,) and (n,): similar is the same class. Or both 2-D matrices of zeros and ones, (nq, c)
        and (n, c), c ≥ 2: similar is at least one shared label.
    at : int, optional
        Only the first R = ``at`` items count (AP@R); by default the whole ranking does.
    normalize : {"relevant", "found"}
        ``"relevant"``: divide by min(R, number of relevant items in the database); a query without a relevant
        item has AP 0 and is counted. ``"found"``, the rule of the deep-hashing evaluators: divide by the
        number of relevant items among the first R; queries that can find none there are dropped from the
        mean. With ties across the cut, numerator and denominator are both expectations, and it is their
        quotient that is returned (not the expectation of the quotient). The two rules agree without ``at``,
        save for queries without a relevant item.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Returns
    -------
    float
        In [0, 1]; NaN where ``normalize="found"`` drops every query.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, NaN among distances or labels, a mix of 1-D and 2-D labels.

    Notes
    -----
    For one ranking with relevance :math:`r_p` at position p, :math:`AP@R = \frac{1}{Z} \sum_{p \le R} r_p
    \frac{1}{p} \sum_{q \le p} r_q`. Short codes tie heavily (16 bits know at most 65,536 distances), and any
    fixed order among the tied, such as a database sorted by label, biases the result. So each group of equal
    distances is taken in a random order and the *expectation* is returned, in closed form: in a group of g
    items, h of them relevant, after s items with H relevant, the i-th is relevant with probability h/g and
    then has (i − 1)(h − 1)/(g − 1) expected relevant before it inside the group. Nothing changes when the
    database is permuted. Relevant items are the whole database's: a query that stands in the database finds
    itself.

    Cost: a sort of n 64-bit words a query, about 0.3 ms for n = 60,000. Deterministic.

    References
    ----------
    F. McSherry and M. Najork, "Computing information retrieval performance measures efficiently in the
    presence of tied scores", ECIR 2008.

    Examples
    --------
    >>> from npquant.metrics import mean_average_precision
    >>> mean_average_precision([[0.1, 0.2, 0.3]], [7], [7, 5, 7])  # (1/1 + 2/3) / 2
    0.8333333333333333
    >>> mean_average_precision([[0.5, 0.5]], [7], [7, 5])  # tied: 1 or 1/2, equally likely
    0.75
    """
    nq, n, similar = _similarity(query_labels, database_labels)
    at, normalize = _at(at), _checks.choice(normalize, "normalize", ("relevant", "found"))
    values = _average_precision(_blocks(distances, nq, n), nq, n, similar, at, normalize, threads)
    if normalize == "found":
        values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def average_precision(distances: ArrayLike, relevant: ArrayLike, at: int | None = None,
                      normalize: str = "relevant", *, threads: int | None = None) -> NDArray[np.float64]:
    """Return the (expected) average precision of each query, (nq,) float64 in [0, 1].

    Parameters
    ----------
    distances : array_like, shape (nq, n)
        Lower is better; compared as float32.
    relevant : array_like of bool, shape (nq, n)
        Which database items are relevant to which query.
    at : int, optional
        Only the first ``at`` items count.
    normalize : {"relevant", "found"}
        As in :func:`mean_average_precision`, which also has the formula and the treatment of ties. A query
        without a relevant item has 0 with ``"relevant"``, NaN with ``"found"``.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, ``relevant`` that is not boolean, NaN among distances.

    Examples
    --------
    >>> from npquant.metrics import average_precision
    >>> average_precision([[1.0, 2.0, 2.0]], [[True, True, False]]).round(4).tolist()
    [0.9167]
    """
    marks = np.asarray(relevant)
    if marks.dtype != np.bool_ or marks.ndim != 2 or 0 in marks.shape:
        raise InvalidInputError(f"relevant has shape {marks.shape} and dtype {marks.dtype}, wanted a "
                                "boolean array (nq, n), neither of them 0: compare labels with ==, or use "
                                "mean_average_precision.")
    nq, n = marks.shape
    at, normalize = _at(at), _checks.choice(normalize, "normalize", ("relevant", "found"))
    return _average_precision(_blocks(distances, nq, n), nq, n, lambda start, stop: marks[start:stop],
                              at, normalize, threads)


def precision_recall_curve(distances: Distances, query_labels: ArrayLike, database_labels: ArrayLike, *,
                           at: Sequence[int] | None = None, points: int = 100,
                           threads: int | None = None) -> PrecisionRecall:
    """Return mean precision and recall over queries when the first R items are returned, for many R.

    Parameters
    ----------
    distances, query_labels, database_labels, threads
        As in :func:`mean_average_precision`.
    at : sequence of int, optional
        The cut-offs R, each within 1 … n. By default about ``points`` of them, in geometric steps from 1 to
        n.
    points : int
        How many cut-offs at most, where ``at`` is not given.

    Returns
    -------
    PrecisionRecall
        ``(at, precision, recall)``. Ties in distance are taken in random order and the expectation is
        returned. A query without a relevant item has precision 0, which counts, and no recall, which is left
        out of the mean of recalls (NaN where no query has one).

    Raises
    ------
    InvalidInputError
        As in :func:`mean_average_precision`; a cut-off outside 1 … n.

    Examples
    --------
    >>> from npquant.metrics import precision_recall_curve
    >>> curve = precision_recall_curve([[0.1, 0.2, 0.3, 0.4]], [7], [7, 5, 7, 5], at=[1, 2, 4])
    >>> curve.precision.tolist(), curve.recall.tolist()
    ([1.0, 0.5, 0.5], [0.5, 0.5, 1.0])
    """
    nq, n, similar = _similarity(query_labels, database_labels)
    if at is None:
        steps = np.geomspace(1, n, _checks.integer(points, "points"))
        cuts = np.unique(np.rint(steps).astype(np.int64))
    else:
        cuts = np.array([_checks.integer(cut, "at", 1, n) for cut in at], dtype=np.int64)
        if len(cuts) == 0:
            raise InvalidInputError("at is empty: give cut-offs, or None for a curve of all.")

    def finish(ends: _Ints, hits: _Ints) -> _Floats:
        # Expected hits among the first R grow linearly inside a group: interpolation is exact.
        found = np.interp(cuts, np.concatenate(([0], ends)), np.concatenate(([0], hits)))
        return np.append(found, hits[-1])

    rows = np.array(_for_queries(_blocks(distances, nq, n), nq, n, similar, finish, threads))
    found, total = rows[:, :-1], rows[:, -1:]
    has = total[:, 0] > 0
    recall = (found[has] / total[has]).mean(0) if has.any() else np.full(len(cuts), np.nan)
    return PrecisionRecall(cuts, (found / cuts).mean(0), recall)


def recall_at(ids: ArrayLike, neighbors: ArrayLike, R: int) -> float:
    """Return the fraction of queries whose one true nearest neighbour is among the first R results ("R@R").

    The tables of the quantization literature (Jégou et al. 2011) are in this recall: it can only grow with R,
    and R@100 near 1 says that a re-ranking of 100 would be near perfect. Unlike :func:`knn_recall` it looks
    at a single neighbour, ``neighbors[:, 0]``; all others are ignored.

    Parameters
    ----------
    ids : array_like of int, shape (nq, k), k ≥ R
        Results, best first; the padding id −1 never counts.
    neighbors : array_like of int, shape (nq, any)
        True neighbours, nearest first. A query whose nearest is −1 counts as not found.
    R : int
        How many results are looked at.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, ids that are not integers, R beyond the results given.

    Examples
    --------
    >>> from npquant.metrics import recall_at
    >>> recall_at([[4, 2], [1, 3]], [[2, 4], [3, 1]], R=1), recall_at([[4, 2], [1, 3]], [[2, 4], [3, 1]], R=2)
    (0.0, 1.0)
    """
    R = _checks.integer(R, "R")
    results, truth = _id_sets(ids, neighbors, R, 1, "R")
    return float(((results == truth) & (truth != -1)).any(1).mean())


def knn_recall(ids: ArrayLike, neighbors: ArrayLike, k: int, *, distances: ArrayLike | None = None,
               neighbor_distances: ArrayLike | None = None) -> float:
    """Return the mean share of each query's k true neighbours among its first k results ("k-recall@k").

    The recall of search benchmarks (ann-benchmarks, big-ann). Unlike :func:`recall_at` it compares two sets
    of k; for k = 1 without ties they are the same.

    Parameters
    ----------
    ids : array_like of int, shape (nq, at least k)
        Results, best first. An id twice in a row counts once, the padding id −1 never.
    neighbors : array_like of int, shape (nq, at least k)
        True neighbours, nearest first. Padding −1 says that fewer than k exist: the query's share is then of
        those there are, and a query without any is left out.
    k : int
        The size of both sets.
    distances, neighbor_distances : array_like, optional
        The true distances of ``ids`` and ``neighbors``, lower is better (negate inner products), of the same
        shapes; compared as float32. With them ties are forgiven: a result as near as the k-th true neighbour
        counts, whichever of the equally near ones the truth happens to list.

    Returns
    -------
    float
        In [0, 1]; NaN where no query has a true neighbour.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, ids that are not integers, NaN distances, k beyond what is given.

    Examples
    --------
    >>> from npquant.metrics import knn_recall
    >>> knn_recall([[4, 2, 9]], [[2, 4, 7]], k=3)
    0.6666666666666666
    >>> knn_recall([[4, 2, 9]], [[2, 4, 7]], k=3, distances=[[1, 0, 3]], neighbor_distances=[[0, 1, 3]])
    1.0
    """
    k = _checks.integer(k, "k")
    results, truth = _id_sets(ids, neighbors, k, k, "k")
    if (distances is None) != (neighbor_distances is None):
        raise InvalidInputError("distances and neighbor_distances go together: give both, or neither.")
    nq = len(results)
    # Ids become 0 … c − 1 and each row gets a range of its own, so that all sets are compared in one sort.
    compact = np.unique(np.concatenate((results, truth), axis=1), return_inverse=True)[1].reshape(nq, 2 * k)
    keys = compact + np.arange(nq)[:, np.newaxis] * (compact.max() + 1)
    key, true_key = keys[:, :k], keys[:, k:]
    good = np.isin(key, true_key)  # padding that meets padding is dropped below
    wanted = _distinct(true_key, truth != -1).sum(1)
    if distances is not None:
        near = _like(distances, np.shape(ids), "distances", "ids")[:, :k]
        true_near = _like(neighbor_distances, np.shape(neighbors), "neighbor_distances", "neighbors")[:, :k]
        farthest = np.where(truth != -1, true_near, -np.inf).max(1, keepdims=True)
        good |= near <= farthest
    found = np.minimum(_distinct(key, good & (results != -1)).sum(1), wanted)
    has = wanted > 0
    return float((found[has] / wanted[has]).mean()) if has.any() else float("nan")


def distortion(X: ArrayLike, decoded: ArrayLike, *, relative: bool = False) -> float:
    """Return the mean over vectors of the squared Euclidean error, ``mean_i ‖X[i] − decoded[i]‖²``.

    Parameters
    ----------
    X : array_like, shape (n, d)
        The vectors.
    decoded : array_like, shape (n, d)
        What became of them, row for row.
    relative : bool
        Whether to divide by the variance of ``X``, ``mean_i ‖X[i] − mean(X)‖²``: 0 is perfect, 1 is what
        replacing every vector by the mean gives. Where all vectors are equal the result is 0 if they are met,
        else infinity.

    Returns
    -------
    float
        Summed in float64, in fixed order. Unit: the squared unit of ``X``, or none.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, or numbers that are not finite.

    Examples
    --------
    >>> from npquant.metrics import distortion
    >>> distortion([[0, 0], [2, 0]], [[0, 1], [2, 1]])
    1.0
    >>> distortion([[0, 0], [2, 0]], [[1, 0], [1, 0]], relative=True)
    1.0
    """
    vectors = _checks.vectors(X, "X")
    other = _checks.vectors(decoded, "decoded", d=vectors.shape[1], owner="X", min_rows=0)
    _checks.length(other, len(vectors), "decoded")
    starts = range(0, len(vectors), _ROWS_A_SUM)
    blocks = [slice(start, start + _ROWS_A_SUM) for start in starts]
    error = sum(_squares(vectors[block], other[block]) for block in blocks) / len(vectors)
    if not relative:
        return error
    mean = vectors.mean(0, dtype=np.float64)
    variance = sum(_squares(vectors[block], mean) for block in blocks) / len(vectors)
    if variance == 0:  # the float64 mean of fewer than 2^29 equal float32 numbers is exact
        return 0.0 if error == 0 else float("inf")
    return error / variance


def _squares(a: NDArray[Any], b: NDArray[Any]) -> float:
    difference = np.subtract(a, b, dtype=np.float64).ravel()
    return float(np.square(difference).sum())


def _average_precision(blocks: Callable[[int, int], NDArray[Any]], nq: int, n: int,
                       similar: Callable[[int, int], NDArray[np.bool_]], at: int | None, normalize: str,
                       threads: int | None) -> _Floats:
    cut = n if at is None else min(at, n)
    harmonic = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, n + 1))))

    def finish(ends: _Ints, hits: _Ints) -> float:
        relevant = int(hits[-1])
        last = int(np.searchsorted(ends, cut)) + 1  # the group that the cut is in
        ends, hits = ends[:last], hits[:last]
        before_hits = np.concatenate(([0], hits[:-1]))
        hit = np.flatnonzero(hits > before_hits)  # groups without a relevant item add nothing
        if len(hit) == 0:
            return 0.0 if normalize == "relevant" else float("nan")
        start = np.where(hit > 0, ends[hit - 1], 0)
        before, size = before_hits[hit], ends[hit] - start
        inside = hits[hit] - before
        seen = np.minimum(ends[hit], cut) - start  # positions of the group within the cut
        rate = inside / size
        slope = (inside - 1) / np.maximum(size - 1, 1)
        # Σ 1/p over the positions; the table's difference loses digits that a group of one need not lose.
        inverse = np.where(seen == 1, 1.0 / (start + 1), harmonic[start + seen] - harmonic[start])
        total = float((rate * ((before + 1 - (start + 1) * slope) * inverse + slope * seen)).sum())
        return total / (min(cut, relevant) if normalize == "relevant" else float((rate * seen).sum()))

    return np.array(_for_queries(blocks, nq, n, similar, finish, threads), dtype=np.float64)


def _for_queries(blocks: Callable[[int, int], NDArray[Any]], nq: int, n: int,
                 similar: Callable[[int, int], NDArray[np.bool_]], finish: _Finish,
                 threads: int | None) -> list[Any]:
    """``finish(ends, hits)`` of every query, in order; see :func:`_groups`."""
    threads = _checks.threads(threads)
    results: list[Any] = []
    step = max(_ROWS_A_TASK, _BLOCK_VALUES // n)
    for start in range(0, nq, step):
        stop = min(start + step, nq)
        block = blocks(start, stop)

        def work(low: int, high: int, block: NDArray[Any] = block, start: int = start) -> list[Any]:
            relevant = similar(start + low, start + high)
            return [finish(*_groups(block[row], relevant[row - low], start + row))
                    for row in range(low, high)]

        for part in run_blocks(work, stop - start, _ROWS_A_TASK, threads):
            results.extend(part)
    return results


def _groups(distances: NDArray[Any], relevant: NDArray[np.bool_], query: int) -> tuple[_Ints, _Ints]:
    """Return the end of each group of equal distances in sorted order, and the relevant items up to it."""
    # The key orders as the float does; the relevance bit rides below it, so one sort of plain integers
    # (AVX-512 or AVX2 inside NumPy) does the work of an argsort and a gather. Adding 0 makes −0 into +0.
    # Numbers beyond float32 become infinite.
    with np.errstate(over="ignore"):
        bits = (distances.astype(np.float32) + np.float32(0)).view(np.int32)
    keys = (bits ^ ((bits >> 31) | np.int32(-0x80000000))).view(np.uint32)
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(1)
    packed |= relevant
    packed.sort()
    if int(packed[0]) >> 1 < _KEY_MINUS_INF or int(packed[-1]) >> 1 > _KEY_PLUS_INF:
        column = int(np.flatnonzero(np.isnan(distances))[0])
        raise InvalidInputError(f"distances contain NaN (query {query}, item {column}): it has no place in a "
                                "ranking. Use infinity for what must come last.")
    # Neighbours differ in more than the relevance bit where a group ends.
    ends = np.append(np.flatnonzero((packed[1:] ^ packed[:-1]) > 1) + 1, len(packed))
    hits = np.cumsum((packed & np.uint64(1)).view(np.int64))
    return ends, hits[ends - 1]


def _at(at: Any) -> int | None:
    return None if at is None else _checks.integer(at, "at")


def _blocks(distances: Distances, nq: int, n: int) -> Callable[[int, int], NDArray[Any]]:
    """Make distances of either kind into a checked function of (start, stop)."""
    if callable(distances):
        function = distances

        def asked(start: int, stop: int) -> NDArray[Any]:
            what = f"distances({start}, {stop})"
            return _real(function(start, stop), (stop - start, n), what)

        return asked
    array = _real(distances, (nq, n), "distances")
    return lambda start, stop: array[start:stop]


def _real(values: ArrayLike, shape: tuple[int, int], name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise InvalidInputError(f"{name} has shape {array.shape} and dtype {array.dtype}, wanted real "
                                f"numbers of shape {shape}: one row a query, one column a database item.")
    return array


def _similarity(query_labels: ArrayLike, database_labels: ArrayLike,
                ) -> tuple[int, int, Callable[[int, int], NDArray[np.bool_]]]:
    """Return nq, n and a function of (start, stop): the relevance (stop − start, n) of these queries."""
    query, database = np.asarray(query_labels), np.asarray(database_labels)
    for array, name in ((query, "query_labels"), (database, "database_labels")):
        if array.ndim not in (1, 2) or len(array) == 0 or (array.ndim == 2 and array.shape[1] < 2):
            raise InvalidInputError(f"{name} has shape {array.shape}, wanted classes (n,) or a matrix of "
                                    "zeros and ones (n, c) with at least 1 row and 2 columns.")
    if query.ndim != database.ndim or query.shape[1:] != database.shape[1:]:
        raise InvalidInputError(f"query_labels has shape {query.shape} and database_labels "
                                f"{database.shape}: give both 1-D, or both 2-D with the same columns.")
    nq, n = len(query), len(database)
    if query.ndim == 1:
        # NumPy would turn the numbers into strings; object arrays it leaves alone, and they are told apart
        # below.
        kinds = query.dtype.kind, database.dtype.kind
        if "O" not in kinds and (kinds[0] in "US") != (kinds[1] in "US"):
            raise InvalidInputError(f"query_labels are {query.dtype} and database_labels {database.dtype}: "
                                    "give labels of one kind, all numbers or all strings.")
        both = _checks.labels(np.concatenate((query, database)), nq + n, "query_labels and database_labels")
        classes = both.astype(np.int32)
        return nq, n, lambda start, stop: classes[start:stop, np.newaxis] == classes[nq:]
    for array, name in ((query, "query_labels"), (database, "database_labels")):
        if array.dtype.kind not in "fiub" or not ((array == 0) | (array == 1)).all():
            raise InvalidInputError(f"{name} is 2-D, so each row marks an item's labels by zeros and ones; "
                                    "other values were found. Give classes as a 1-D array.")
    marks = query.astype(np.float32)
    columns = np.ascontiguousarray(database.astype(np.float32).T)
    # Counts of shared labels: whole numbers, exact in float32.
    return nq, n, lambda start, stop: marks[start:stop] @ columns > 0


def _id_sets(ids: ArrayLike, neighbors: ArrayLike, k: int, k_true: int, name: str) -> tuple[_Ints, _Ints]:
    """Return the first k ids and the first k_true neighbours of every query, as int64."""
    checked = []
    for values, what, columns in ((ids, "ids", k), (neighbors, "neighbors", k_true)):
        array = np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "iu" or len(array) == 0:
            raise InvalidInputError(f"{what} has shape {array.shape} and dtype {array.dtype}, wanted "
                                    "integers (nq, k) with at least one row.")
        if array.shape[1] < columns:
            raise InvalidInputError(f"{what} has {array.shape[1]} columns, fewer than {columns}, which "
                                    f"{name} = {k} needs: search for more.")
        array = array[:, :columns]
        if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise InvalidInputError(f"{what} holds {array.max()}, beyond int64: padding is −1 in a signed "
                                    "type.")
        checked.append(array.astype(np.int64))
    _checks.length(checked[1], len(checked[0]), "neighbors", "ids")
    return checked[0], checked[1]


def _distinct(keys: _Ints, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the entries to keep, mark those that are the first of their kind; keys of different rows differ."""
    result = np.zeros(keys.shape, dtype=np.bool_)
    places = np.flatnonzero(keep)
    result.ravel()[places[np.unique(keys.ravel()[places], return_index=True)[1]]] = True
    return result


def _like(values: ArrayLike | None, shape: tuple[int, ...], name: str, of: str) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise InvalidInputError(f"{name} has shape {array.shape} and dtype {array.dtype}, wanted real "
                                f"numbers of the shape of {of}, {shape}.")
    if np.isnan(array).any():
        raise InvalidInputError(f"{name} contains NaN. Use infinity for padding.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def exact_neighbors(base: ArrayLike, queries: ArrayLike, k: int, *,
                    threads: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the ``k`` nearest rows of ``base`` to each query, exactly: the ground truth of a search.

    Parameters
    ----------
    base, queries : array_like, shapes (n, d) and (nq, d)
    k : int
        At most n.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Returns
    -------
    distances : ndarray (nq, k) float32
        Squared Euclidean, ascending.
    rows : ndarray (nq, k) int64
        Rows of ``base``; ties go to the smaller row.

    Raises
    ------
    InvalidInputError

    Notes
    -----
    O(nq n d), at the speed of a matrix product. Candidates are found by fused multiply-adds within a proven bound on
    their rounding, and decided by sums of squared differences in a fixed order. Beside the arrays given and returned
    it takes some megabytes a thread, or 1.5 k kilobytes where that is more.
    """
    b = _checks.vectors(base, "base")
    q = _checks.vectors(queries, "queries", d=b.shape[1], owner="base", min_rows=0, one_row=True)
    return exact.neighbors(b, q, _checks.integer(k, "k", high=len(b)), _checks.threads(threads))
