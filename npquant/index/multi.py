"""Cells of space: what a coarse quantizer is to an index; and the inverted multi-index, whose cells are pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Estimator
from npquant._rows import training_rows
from npquant.errors import InvalidInputError
from npquant.kernels import multisequence, nearest
from npquant.kernels._pool import run_blocks
from npquant.kmeans import KMeans

Float = NDArray[np.float32]
Numbers = NDArray[np.int64]

_MOST_CELLS = 1 << 24
_QUERIES = 64  # whose distances to all codewords are held by one task


class Cells:
    """The cells of one codebook (1, K, d), or of two codebooks of half the dimensions (2, K, d / 2): K or K² cells.

    A centroid is one codeword of each, and cell i · K + j that of codewords i and j. A coarse score is the squared
    distance to the centroid, or the negated inner product with it, in the order of ``kernels.nearest``; of two
    codebooks the score of the first half plus that of the second.
    """

    def __init__(self, codebooks: Float) -> None:
        self.codebooks = codebooks
        self._transposed = nearest.transpose(codebooks)
        self.parts, self.words, self.width = codebooks.shape
        self.count = self.words ** self.parts
        self.d = self.parts * self.width

    def assign(self, x: Float, threads: int | None) -> Numbers:
        """Return the cell of the nearest centroid of each row of ``x`` (n, d), int64 (n,)."""
        numbers = nearest.assign(x, self._transposed, threads, distances=False)[0].astype(np.int64)
        return numbers[:, 0] if self.parts == 1 else numbers[:, 0] * self.words + numbers[:, 1]

    def probe(self, queries: Float, count: int, product: bool, threads: int | None) -> tuple[Numbers, Float]:
        """Return the ``count`` cells of least coarse score, best first, and the scores: both (nq, count).

        Of equal scores the smaller cell comes first; of two codebooks the one whose codeword stands further in front
        in the order of the first half.
        """
        cells = np.empty((len(queries), count), np.int64)
        scores = np.empty((len(queries), count), np.float32)

        def block(start: int, stop: int) -> None:
            every = nearest.tables(queries[start:stop], self._transposed, product)
            kept = min(count, self.words)
            near = np.empty((self.parts, stop - start, kept), np.float32)
            order = np.empty(near.shape, np.int64)
            for part in range(self.parts):
                multisequence.least(np.ascontiguousarray(every[:, part]), near[part], order[part])
            if self.parts == 1:
                cells[start:stop], scores[start:stop] = order[0], near[0]
                return
            ranks = np.empty((2, stop - start, count), np.int64)
            multisequence.pairs(near[0], near[1], scores[start:stop], ranks[0], ranks[1])
            first, second = (np.take_along_axis(order[part], ranks[part], axis=1) for part in range(2))
            cells[start:stop] = first * self.words + second
        run_blocks(block, len(queries), _QUERIES, threads)
        return cells, scores

    def words_of(self, cells: Numbers) -> list[Numbers]:
        """Return the codeword numbers (n,) of ``cells`` (n,), one array a codebook."""
        return [cells] if self.parts == 1 else [cells // self.words, cells % self.words]

    def centroids(self, cells: Numbers) -> Float:
        """Return the centroids (n, d) of ``cells`` (n,)."""
        return np.concatenate([codebook[words] for codebook, words in zip(self.codebooks, self.words_of(cells))],
                              axis=1)


class InvertedMultiIndex(Estimator):
    """A coarse quantizer of K² cells: pairs of a codeword of the first half of the dimensions and one of the second.

    So fine a partition costs the training, the memory and the assignment of two codebooks of K codewords; the nearest
    cells of a query are found in exact order by the multi-sequence algorithm, without looking at the others.

    Parameters
    ----------
    n_codewords : int
        K, of each half: K² cells, at the most 2²⁴. The dimension of the vectors must be even.
    max_iter : int
        k-means iterations a half, at the most.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. Default ``max(256 K, 65536)``.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    codebooks_ : ndarray (2, K, d / 2) float32
    n_features_in_ : int

    Notes
    -----
    Training and assignment cost O(K d) a vector (and iteration), probing O(K d + T log T) a query for T cells.
    Many cells want many vectors: a list takes memory by 64 codes, so take K² well below n / 64.

    References
    ----------
    A. Babenko, V. Lempitsky: The Inverted Multi-Index, CVPR 2012: section 3 and algorithm 1.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> multi = nq.InvertedMultiIndex(8, random_state=0).fit(X)
    >>> cells, distances = multi.probe(X[:2], 3)
    >>> cells.shape, multi.n_cells, bool((cells[:, 0] == multi.predict(X[:2])).all())
    ((2, 3), 64, True)
    """

    _fitted_attribute = "codebooks_"
    codebooks_: Float

    def __init__(self, n_codewords: int = 256, *, max_iter: int = 25, max_points: int | None = None,
                 random_state: Any = None, threads: int | None = None) -> None:
        self.n_codewords = n_codewords
        self.max_iter = max_iter
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None) -> InvertedMultiIndex:
        """Train both codebooks on ``X`` (n, d): an array, a memmap, or an iterable of blocks; ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong, or d is odd.
        """
        K = _checks.integer(self.n_codewords, "n_codewords", high=int(_MOST_CELLS ** 0.5))
        limit = max(256 * K, 65_536) if self.max_points is None else _checks.integer(self.max_points, "max_points")
        rng = _checks.random_state(self.random_state)
        x = training_rows(X, limit, rng)
        d = x.shape[1]
        if d % 2:
            raise InvalidInputError(f"The dimension {d} of X is odd: an inverted multi-index cuts vectors in two "
                                    "halves. Pad the vectors with a zero, or take KMeans.")
        self.codebooks_ = np.stack([
            KMeans(K, max_iter=self.max_iter, random_state=stream, threads=self.threads).fit(
                np.ascontiguousarray(half)).cluster_centers_
            for half, stream in zip(np.split(x, 2, axis=1), rng.spawn(2))])
        self._remember_features(X, d)
        return self

    def predict(self, X: Any) -> Numbers:
        """Return the cell of each row of ``X`` (n, d), int64 (n,): i · K + j, the nearest codewords of its halves.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        x = self._vectors(X, "X")
        return Cells(self.codebooks_).assign(x, _checks.threads(self.threads))

    def probe(self, queries: Any, count: int) -> tuple[Numbers, Float]:
        """Return the ``count`` nearest cells of ``queries`` (nq, d), nearest first, and squared distances to them.

        Returns
        -------
        cells : ndarray (nq, count) int64
        distances : ndarray (nq, count) float32
            Squared distance to the first half of the centroid plus that to the second. Of equal sums the one comes
            first whose codewords come first in the orders (distance, number) of the first, then of the second half.

        Raises
        ------
        NotFittedError
        InvalidInputError
            ``count`` is more than ``n_cells``, or ``queries`` are wrong.
        """
        q = self._vectors(queries, "queries")
        return Cells(self.codebooks_).probe(q, _checks.integer(count, "count", high=self.n_cells), False,
                                            _checks.threads(self.threads))

    def centroids(self, cells: Any) -> Float:
        """Return the centroids (n, d) float32 of ``cells`` (n,).

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        numbers = _checks.row_numbers(np.reshape(cells, (-1, 1)), self.n_cells, 1, "cells")
        return Cells(self.codebooks_).centroids(numbers[:, 0])

    @property
    def n_cells(self) -> int:
        """Number of cells, K²."""
        self._check_fitted()
        return len(self.codebooks_[0]) ** 2

    def _vectors(self, X: Any, name: str) -> Float:
        self._check_fitted()
        return _checks.vectors(X, name, d=self.n_features_in_, owner=type(self).__name__, min_rows=0, one_row=True)

    def _check_state(self) -> None:
        _checks.fitted(self.codebooks_, (2, None, None), "codebooks_")
        if 2 * self.codebooks_.shape[2] != self.n_features_in_ or self.n_cells > _MOST_CELLS:
            raise InvalidInputError(f"codebooks_ of shape {self.codebooks_.shape} are not those of two halves of "
                                    f"{self.n_features_in_} dimensions.")


def cells_of(coarse: Any) -> Cells:
    """Return the :class:`Cells` of a fitted coarse quantizer: ``KMeans`` or ``InvertedMultiIndex``."""
    if isinstance(coarse, InvertedMultiIndex):
        return Cells(coarse.codebooks_)
    return Cells(np.ascontiguousarray(coarse.cluster_centers_[np.newaxis]))
