"""What training is told of similarity, in any of the forms users have it, as batches and targets of a loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, metrics
from npquant.errors import InvalidInputError
from npquant.nn import losses, samplers
from npquant.nn.losses import Pairs, Triplets
from npquant.quantizers.base import Quantizer

Array = NDArray[Any]
Rows = NDArray[np.int64]

_VALIDATION_DATABASE = 20_000  # rows of the training set that validation queries are ranked against


class Batch(NamedTuple):
    """Distinct rows of the training set, and the tuples of numbers into ``rows`` that brought them, if any."""

    rows: Rows
    tuples: Rows | None = None


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn and mined; the fields are DeepQuantizer's arguments of these names."""

    batch_size: int
    per_class: int
    mining: str
    positives: int


class Similarity:
    """Base: a boolean similarity of the rows of a batch, from which triplets and pairs are mined."""

    def batches(self, how: Sampling, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        raise NotImplementedError

    def similar(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows of the batch are similar, (B, B)."""
        raise NotImplementedError

    def known(self, batch: Batch) -> NDArray[np.bool_] | None:
        """Return which pairs are known at all, (B, B); ``None``: all."""
        return None

    def target(self, loss: Any, y: Array, batch: Batch, how: Sampling, rng: np.random.Generator) -> Any:
        """Return the target of ``loss`` for the outputs ``y`` (B, d) of the batch."""
        if isinstance(loss, losses.Triplet):
            return samplers.triplets(y, self.similar(batch), mining=how.mining, positives=how.positives,
                                     gap=loss.gap, rng=rng, valid=self.known(batch))
        if isinstance(loss, losses.Contrastive):
            return samplers.pairs(self.similar(batch), positives=how.positives, negatives=how.positives, rng=rng,
                                  valid=self.known(batch))
        raise InvalidInputError("loss='softmax' needs one class label a row: give y of shape (n,), or choose "
                                "loss='triplet' or 'contrastive'.")

    def subset(self, rows: Rows) -> Similarity:
        """Return the same of some rows, re-numbered."""
        raise NotImplementedError

    def check(self, loss: Any) -> None:
        """Raise where nothing could be learned from it by ``loss``."""

    def retrieval(self, queries: Rows, database: Rows, distances: Any) -> float:
        """Return the mean average precision of ``distances(start, stop)`` -> (rows, database)."""
        raise NotImplementedError

    def tells(self, queries: Rows, database: Rows) -> bool:
        """Return whether a ranking of ``database`` for ``queries`` can be better or worse."""
        return True


class Labels(Similarity):
    """One class label a row, integers 0 … c − 1."""

    def __init__(self, labels: Rows) -> None:
        self.labels = labels

    def batches(self, how: Sampling, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield batches of whole groups of ``per_class`` rows of a class."""
        for rows in samplers.class_batches(self.labels, classes=max(1, how.batch_size // how.per_class),
                                           per_class=how.per_class, rng=rng):
            yield Batch(rows)

    def similar(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows have the same label."""
        return samplers.same_label(self.labels[batch.rows])

    def target(self, loss: Any, y: Array, batch: Batch, how: Sampling, rng: np.random.Generator) -> Any:
        """Return the labels themselves for the softmax loss."""
        if isinstance(loss, losses.Softmax):
            return self.labels[batch.rows]
        return super().target(loss, y, batch, how, rng)

    def subset(self, rows: Rows) -> Labels:
        """Return the labels of some rows."""
        return Labels(self.labels[rows])

    def check(self, loss: Any) -> None:
        """Raise for a single class, and for classes of single rows where positives are wanted."""
        counts = np.bincount(self.labels)
        if (counts > 0).sum() < 2:
            raise InvalidInputError("y has a single class: nothing can be told apart. Give at least 2 classes, or "
                                    "leave y out to learn from nearest neighbours.")
        if counts.max() < 2 and not isinstance(loss, losses.Softmax):
            raise InvalidInputError(f"Each of the {len(self.labels)} training rows has a class of its own, so "
                                    "there is no similar pair. Give at least 2 rows of a class, loss='softmax', or "
                                    "leave y out to learn from nearest neighbours.")

    def tells(self, queries: Rows, database: Rows) -> bool:
        """Return whether some query has a class that the database has beside others."""
        known = np.unique(self.labels[database])
        return len(known) > 1 and bool(np.isin(self.labels[queries], known).any())

    def retrieval(self, queries: Rows, database: Rows, distances: Any) -> float:
        """Return MAP by equal labels."""
        return metrics.mean_average_precision(distances, self.labels[queries], self.labels[database])


class MultiLabels(Similarity):
    """An indicator matrix (n, c); similar is at least one shared label."""

    def __init__(self, indicator: Array) -> None:
        self.indicator = indicator

    def batches(self, how: Sampling, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield batches of shuffled rows."""
        for rows in samplers.shuffled_batches(len(self.indicator), how.batch_size, rng):
            yield Batch(rows)

    def similar(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows share a label."""
        return samplers.same_label(self.indicator[batch.rows])

    def subset(self, rows: Rows) -> MultiLabels:
        """Return the labels of some rows."""
        return MultiLabels(self.indicator[rows])

    def check(self, loss: Any) -> None:
        """Raise where all rows share a label, or none do."""
        shares = (self.indicator.sum(axis=0) == len(self.indicator)).any()
        if shares or not (self.indicator.sum(axis=0) > 1).any():
            raise InvalidInputError(f"y makes {'every' if shares else 'no'} pair of rows similar: nothing can be "
                                    "told apart. Give labels that some rows share and some do not.")

    def tells(self, queries: Rows, database: Rows) -> bool:
        """Return whether some query shares a label with some of the database and not with all."""
        shared = self.indicator[queries] @ self.indicator[database].T > 0
        return bool((shared.any(axis=1) & ~shared.all(axis=1)).any())

    def retrieval(self, queries: Rows, database: Rows, distances: Any) -> float:
        """Return MAP by shared labels."""
        return metrics.mean_average_precision(distances, self.indicator[queries].astype(bool),
                                              self.indicator[database].astype(bool))


class Neighbours(Similarity):
    """Nothing but the vectors: similar are the ``k`` nearest in input space."""

    def __init__(self, x: Array, k: int, threads: int | None) -> None:
        self.x, self.k, self.threads = x, k, threads
        self._near: Rows | None = None

    @property
    def near(self) -> Rows:
        """The k nearest other rows of each row, (n, k)."""
        if self._near is None:
            found = metrics.exact_neighbors(self.x, self.x, self.k + 1, threads=self.threads)[1]
            self._near = others(found, np.arange(len(found)))
        return self._near

    def batches(self, how: Sampling, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield batches of rows, each with one of its neighbours."""
        for rows in samplers.neighbour_batches(self.near, how.batch_size, rng):
            yield Batch(rows)

    def similar(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows are among the nearest of each other, either way."""
        near = samplers.among_neighbours(batch.rows, self.near)
        return near | near.T

    def subset(self, rows: Rows) -> Neighbours:
        """Return the neighbours among some rows."""
        return Neighbours(self.x[rows], self.k, self.threads)

    def check(self, loss: Any) -> None:
        """Raise where there are too few rows."""
        if len(self.x) < self.k + 2:
            raise InvalidInputError(f"{len(self.x)} training rows for n_neighbors = {self.k}: at least "
                                    f"{self.k + 2} are needed. Give more rows, or lower n_neighbors.")

    def retrieval(self, queries: Rows, database: Rows, distances: Any) -> float:
        """Return MAP with the k nearest in input space as the relevant."""
        near = metrics.exact_neighbors(self.x[database], self.x[queries], min(self.k, len(database)),
                                       threads=self.threads)[1]
        relevant = np.zeros((len(queries), len(database)), bool)
        np.put_along_axis(relevant, near, True, axis=1)
        return float(metrics.average_precision(distances(0, len(queries)), relevant).mean())


class Explicit(Similarity):
    """Pairs (i, j, similar) or triplets (i, j, k: i is nearer to j than to k) of row numbers."""

    def __init__(self, tuples: Rows, kind: str) -> None:
        self.tuples, self.kind = tuples, kind
        self._columns = 2 if kind == "pairs" else 3  # that are row numbers

    def batches(self, how: Sampling, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield batches of tuples; those of one anchor stay together, so that triplets can be made of pairs."""
        for rows, members, chosen in samplers.explicit_batches(self.rows, how.batch_size, rng):
            yield Batch(rows, np.concatenate([members, self.tuples[chosen, self._columns:]], axis=1))

    def target(self, loss: Any, y: Array, batch: Batch, how: Sampling, rng: np.random.Generator) -> Any:
        """Return the tuples themselves where they are of the loss's kind, else made into it."""
        if batch.tuples is None or isinstance(loss, losses.Softmax):
            return super().target(loss, y, batch, how, rng)
        i, j, last = batch.tuples.T
        if self.kind == "pairs":
            if isinstance(loss, losses.Contrastive):
                return Pairs(i, j, last.astype(bool))
            return super().target(loss, y, batch, how, rng)
        if isinstance(loss, losses.Triplet):
            return Triplets(i, j, last, None)
        return Pairs(np.concatenate([i, i]), np.concatenate([j, last]), np.arange(2 * len(i)) < len(i))

    @property
    def rows(self) -> Rows:
        """The rows that each tuple names."""
        return self.tuples[:, :self._columns]

    def similar(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which pairs are said to be similar."""
        return self._matrix(batch, only_similar=True)

    def known(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which pairs anything is said of."""
        return self._matrix(batch, only_similar=False)

    @staticmethod
    def _matrix(batch: Batch, only_similar: bool) -> NDArray[np.bool_]:
        matrix = np.zeros((len(batch.rows), len(batch.rows)), bool)
        if batch.tuples is not None:
            i, j, similar = batch.tuples.T
            kept = (similar > 0) | (not only_similar)
            matrix[i[kept], j[kept]] = matrix[j[kept], i[kept]] = True
        return matrix

    def check(self, loss: Any) -> None:
        """Raise where there is nothing to tell apart."""
        if self.kind == "pairs":
            similar = self.tuples[:, 2] > 0
            if similar.all() or not similar.any():
                raise InvalidInputError(f"pairs are all {'similar' if similar.all() else 'dissimilar'}: give both "
                                        "kinds, or outputs collapse.")
            ends = [set(self.tuples[which, :2].ravel().tolist()) for which in (similar, ~similar)]
            if isinstance(loss, losses.Triplet) and not ends[0] & ends[1]:
                raise InvalidInputError("No row stands in both a similar and a dissimilar pair, so no triplet can be "
                                        "made of these pairs: use loss='contrastive'.")

    def tells(self, queries: Rows, database: Rows) -> bool:
        """Return whether pairs are of both kinds."""
        return self.kind == "triplets" or len(np.unique(self.tuples[:, 2])) == 2

    def ordering(self, distances: Array) -> float:
        """Return how well ADC ``distances`` order the tuples.

        Of triplets, (t, 2): the fraction with the similar one nearer (ties count one half). Of pairs, (p,): the
        average precision of the similar ones.
        """
        if self.kind == "pairs":
            return float(metrics.average_precision(distances[None], self.tuples[None, :, 2] > 0)[0])
        near, far = distances.T
        return float(np.mean((near < far) + 0.5 * (near == far)))


def others(found: Rows, own: Rows) -> Rows:
    """Return k neighbours of each row out of k + 1 ``found`` (n, k + 1), without the row itself, ``own`` (n,)."""
    # A row is its own nearest, save among duplicates: then it may stand anywhere or be crowded out.
    mine = found == own[:, None]
    mine[~mine.any(axis=1), -1] = True
    return found[~mine].reshape(len(found), -1)


def read(X: Array, y: Any, pairs: Any, triplets: Any, n_neighbors: int, threads: int | None) -> Similarity:
    """Return the supervision that the arguments of ``DeepQuantizer.fit`` describe, checked.

    Raises
    ------
    InvalidInputError
    """
    n = len(X)
    given = [name for name, value in (("y", y), ("pairs", pairs), ("triplets", triplets)) if value is not None]
    if len(given) > 1:
        raise InvalidInputError(f"Both {given[0]} and {given[1]} were given: give one kind of supervision.")
    if pairs is not None:
        return Explicit(_pairs(pairs, n), "pairs")
    if triplets is not None:
        return Explicit(_triplets(triplets, n), "triplets")
    if y is None:
        return Neighbours(X, _checks.integer(n_neighbors, "n_neighbors"), threads)
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] > 1:
        _checks.length(array, n, "y")
        if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise InvalidInputError(f"y has shape {array.shape}: a matrix of labels must hold zeros and ones, one "
                                    "column a label. Give one label a row, or an indicator matrix.")
        return MultiLabels(array.astype(np.float32))
    return Labels(_checks.labels(y, n))


def _triplets(triplets: Any, n: int) -> Rows:
    array = _checks.row_numbers(triplets, n, 3, "triplets")
    same = np.flatnonzero((array[:, 0] == array[:, 2]) | (array[:, 1] == array[:, 2]))
    if len(same):
        raise InvalidInputError(f"triplets row {same[0]} is {array[same[0]].tolist()}: the third must be another row "
                                "than the first two. Drop such triplets.")
    return array


def _pairs(pairs: Any, n: int) -> Rows:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iub":
        raise InvalidInputError(f"pairs must be an integer array of shape (rows, 3): i, j, similar (1) or not (0); "
                                f"got shape {array.shape} and dtype {array.dtype}.")
    _checks.row_numbers(array[:, :2], n, 2, "pairs")
    if not np.isin(array[:, 2], (0, 1)).all():
        raise InvalidInputError("The third column of pairs must be 1 (similar) or 0 (not), got "
                                f"{np.setdiff1d(array[:, 2], (0, 1))[0]}.")
    return np.ascontiguousarray(array, dtype=np.int64)


@dataclass(frozen=True)
class Validation:
    """What is held out of training, and the figure made of it; higher is better."""

    supervision: Similarity
    rows: Rows      # held-out rows of X, or all rows that held-out tuples name
    database: Rows  # training rows that they are ranked against

    def figure(self, outputs: Array, training: Array, codec: Quantizer) -> float:
        """Return the figure by ADC.

        Parameters
        ----------
        outputs : ndarray (len(rows), d)
            The network's outputs of ``rows``.
        training : ndarray (n, d)
            Its outputs of the training rows, numbered like ``database``.
        codec : Quantizer
        """
        if isinstance(self.supervision, Explicit):
            place = np.zeros(int(self.rows.max()) + 1, np.int64)
            place[self.rows] = np.arange(len(self.rows))
            decoded = codec.nearest(outputs)
            tuples = place[self.supervision.rows]
            distances = np.stack([np.square(outputs[tuples[:, 0]] - decoded[column]).sum(axis=1)
                                  for column in tuples[:, 1:].T], axis=1)
            return self.supervision.ordering(distances[:, 0] if distances.shape[1] == 1 else distances)
        codes = codec.encode(training[self.database])
        held = np.arange(len(self.rows)) + len(self.database)
        return self.supervision.retrieval(held, np.arange(len(self.database)),
                                          lambda start, stop: codec.scorer(outputs[start:stop]).scores(codes))

    def check(self) -> None:
        """Raise where the figure would say nothing."""
        held = np.arange(len(self.rows)) + len(self.database)
        if not self.supervision.tells(held, np.arange(len(self.database))):
            raise InvalidInputError("validation says nothing: of what is held out, nothing is similar to any training "
                                    "vector, or everything. Hold out more, or other vectors.")


def hold_out(supervision: Similarity, n: int, fraction: float,
             rng: np.random.Generator) -> tuple[Similarity, Rows, Validation]:
    """Return (supervision for training, its rows of X, what is held out: ``fraction`` of the rows or tuples)."""
    if isinstance(supervision, Explicit):
        if len(supervision.tuples) < 2:
            raise InvalidInputError(f"{supervision.kind} has a single row, so none can be held out: leave validation "
                                    "out, or give more.")
        order = rng.permutation(len(supervision.tuples))
        held = min(max(1, round(fraction * len(order))), len(order) - 1)
        kept = Explicit(supervision.tuples[np.sort(order[held:])], supervision.kind)
        out = Explicit(supervision.tuples[np.sort(order[:held])], supervision.kind)
        return kept, np.arange(n), Validation(out, np.unique(out.rows), np.empty(0, np.int64))
    order = rng.permutation(n)
    held = min(max(1, round(fraction * n)), n - 1)
    return held_rows(supervision, np.sort(order[held:]), np.sort(order[:held]), rng)


def held_rows(supervision: Similarity, kept: Rows, out: Rows,
              rng: np.random.Generator) -> tuple[Similarity, Rows, Validation]:
    """Return the same for given rows."""
    database = np.sort(rng.permutation(len(kept))[:_VALIDATION_DATABASE])
    both = supervision.subset(np.concatenate([kept[database], out]))
    return supervision.subset(kept), kept, Validation(both, out, database)
