"""Residual quantization: each codebook codes what those before it left over; and its generalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from npquant import _checks
from npquant.kernels import beam, nearest
from npquant.kernels._pool import run_blocks
from npquant.kmeans import lloyd, start
from npquant.quantizers._sums import TASK, Books, SumQuantizer, log, mean_square, sums_of
from npquant.quantizers.base import Codes, Float


class ResidualQuantizer(SumQuantizer):
    """Code a vector by a sum of ``m`` codewords, each of what those before it left over (Chen et al. 2010).

    A code is ``m`` bytes, one a codebook, with values below ``2**nbits``, and one byte for the squared norm of the
    sum: ``m + 1`` bytes. (Numbers of fewer than 8 bits have a byte of their own all the same.) A score is a sum of
    ``m + 1`` look-ups; for ``l2`` it differs from the distance to ``decode(codes)`` by what the norm lost in its
    byte, which ``score_bound`` tells of each code; an inner product has no such error.

    Parameters
    ----------
    m : int
        Number of codebooks, of codewords of the whole dimension.
    nbits : int
        Bits a codebook, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    beam : int
        Partial sums kept while a vector is coded (1: the nearest codeword to what is left, codebook after codebook).
        More cost more time, in training too, and lower the error.
    n_iter : int
        k-means iterations of a codebook at the most, in each of three steps: see Notes.
    n_refine : int
        How often, after that, all codebooks together are fitted to the codes that the beam found.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    codebooks_ : ndarray (m, K, d) float32
    center_ : ndarray (d,) float32
        Mean of the training vectors; a decoded vector is this and the sum of its codewords.
    norm_levels_ : ndarray (256,) float32
        What the last byte of a code stands for: the squared norm of the sum.
    n_features_in_ : int

    Notes
    -----
    k-means in many dimensions, of what looks like noise, ends in poor minima. So a codebook begins in the first 1/16
    of the principal directions of what is left over, goes on in 1/4 of them, and ends in all (transition clustering,
    Liu et al. 2015). Coding costs O(m K d + L m² K) a vector with L = ``beam``: inner products with all codewords in
    a fixed order, then one addition for each pair of an extension and a codeword before it. The codes depend on
    neither the batch, the threads nor the compiler. Memory: 4 (m K)² bytes for the inner products of all codewords.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> rq = nq.ResidualQuantizer(m=4, nbits=4, random_state=0).fit(X)
    >>> codes = rq.encode(X[:3])
    >>> codes.shape, codes.dtype, rq.decode(codes).shape
    ((3, 5), dtype('uint8'), (3, 64))
    """

    def __init__(self, m: int = 8, nbits: int = 8, *, beam: int = 5, n_iter: int = 8, n_refine: int = 2,
                 max_points: int | None = 65_536, random_state: Any = None, threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.beam = beam
        self.n_iter = n_iter
        self.n_refine = n_refine
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def _check_parameters(self) -> None:
        _checks.integer(self.beam, "beam")
        _checks.integer(self.n_iter, "n_iter", low=0)
        _checks.integer(self.n_refine, "n_refine", low=0)

    def _train(self, z: Float, M: int, K: int, rng: np.random.Generator) -> Float:
        codebooks = residual_codebooks(z, M, K, self.beam, self.n_iter, rng, _checks.threads(self.threads))
        return self._improve(z, codebooks, self.n_refine, rng)

    def _search(self, z: Float, books: Books) -> Codes:
        return beam_search(z, books, _checks.integer(self.beam, "beam"))


class GeneralizedResidualQuantizer(SumQuantizer):
    """Residual quantization whose codebooks are learned again and again, each for what all others leave over.

    The codec of Liu, Cheng, Shao, Wang and Yu (GRVQ, 2016). Codes, scores and ``score_bound`` are those of
    :class:`ResidualQuantizer`; with ``norm="constant"`` there is no byte for the norm.

    Parameters
    ----------
    m : int
        Number of codebooks, of codewords of the whole dimension.
    nbits : int
        Bits a codebook, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    beam : int
        Partial sums kept while a vector is coded.
    n_iter : int
        Sweeps over all codebooks, after a start by residual quantization.
    regularization : float
        λ, in units of 1 / mean squared norm: pulls the cross term ε = ‖Σ c‖² − Σ ‖c‖² of each vector's codewords
        to its mean. 0 leaves it alone; at 1 it has about the weight of the error.
    norm : {"stored", "constant"}
        ``constant`` takes ε for its mean, so that a code is ``m`` bytes and a score ``m`` look-ups; use it with
        ``regularization``, and see ``score_bound`` for what it costs in ``l2`` scores.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    codebooks_ : ndarray (m, K, d) float32
    center_ : ndarray (d,) float32
        Mean of the training vectors; a decoded vector is this and the sum of its codewords.
    norm_levels_ : ndarray (256,) or (1,) float32
        What the last byte stands for, the squared norm of the sum; with ``norm="constant"`` the mean of ε.
    n_features_in_ : int

    Notes
    -----
    A sweep takes the codebooks by decreasing variance. Of each, all vectors are coded by the beam, and what the other
    codewords leave over is clustered anew by transition clustering from the present codewords (dictionary annealing);
    with λ > 0 the codewords then solve (n_k + 4λ Σ s sᵀ) c = Σ (z + 2λ (ε₀ − b) s), with s the sum of a vector's other
    codewords, b their cross term and z what they leave over. At the end all codebooks are fitted together (with λ = 0
    only), and sorted by decreasing variance, the order of the beam.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> grvq = nq.GeneralizedResidualQuantizer(m=4, nbits=4, random_state=0).fit(X)
    >>> grvq.score(X) > nq.ResidualQuantizer(m=4, nbits=4, n_refine=0, random_state=0).fit(X).score(X)
    True
    """

    def __init__(self, m: int = 8, nbits: int = 8, *, beam: int = 10, n_iter: int = 2, regularization: float = 0.0,
                 norm: str = "stored", max_points: int | None = 65_536, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.beam = beam
        self.n_iter = n_iter
        self.regularization = regularization
        self.norm = norm
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def _check_parameters(self) -> None:
        _checks.integer(self.beam, "beam")
        _checks.integer(self.n_iter, "n_iter", low=0)
        _checks.number(self.regularization, "regularization")
        _checks.choice(self.norm, "norm", ("stored", "constant"))

    def _train(self, z: Float, M: int, K: int, rng: np.random.Generator) -> Float:
        codebooks = residual_codebooks(z, M, K, self.beam, _STEPS, rng, _checks.threads(self.threads))
        return self._improve(z, codebooks, self.n_iter, rng)

    def _improve(self, z: Float, codebooks: Float, n_iter: int, rng: np.random.Generator) -> Float:
        threads = _checks.threads(self.threads)
        strength = _checks.number(self.regularization, "regularization") / max(mean_square(z), 1e-30)
        for sweep in range(n_iter):
            codebooks = by_variance(codebooks)
            for m in range(len(codebooks)):
                books = Books(codebooks)
                numbers = self._numbers(z, books)
                rest = z - books.sums(numbers)
                if m == 0:
                    log.info("sweep %d: mean squared error %.6g", sweep, mean_square(rest))
                own = codebooks[m].take(numbers[:, m], axis=0)
                rest += own
                codebooks = codebooks.copy()
                codebooks[m] = transition(rest, codebooks.shape[1], _STEPS, rng, threads, codebooks[m])
                if strength > 0:
                    codebooks[m] = regularized(rest, z - rest, own, books.cross_terms(numbers, without=m), codebooks[m],
                                               strength, threads)
        if strength == 0:
            codebooks = super()._improve(z, codebooks, 2, rng)
        return by_variance(codebooks)

    def _norm_levels(self, books: Books, numbers: Codes) -> Float:
        if self.norm == "stored":
            return super()._norm_levels(books, numbers)
        return np.array([books.cross_terms(numbers).mean(dtype=np.float64)], np.float32)

    def _search(self, z: Float, books: Books) -> Codes:
        return beam_search(z, books, _checks.integer(self.beam, "beam"))


_STEPS = 8  # iterations of k-means in each step of a transition
_TOLERANCE = 2.5e-3  # what an iteration must lower the inertia by: the fits to the codes found do more than the last


def beam_search(z: Float, books: Books, width: int) -> Codes:
    """Return the numbers (n, M) that a beam of ``width`` partial sums finds, codebooks in their order."""
    out = np.empty((len(z), len(books.norms)), np.uint8)
    for rows, products in books.parts(z):
        out[rows] = best_sums(products, books, width)
    return out


def best_sums(products: Float, books: Books, width: int) -> Codes:
    """Return the numbers (n, M) that a beam finds for vectors with these ``products`` (M, n, K)."""
    n = products.shape[1]
    none, zero = np.empty((n, 1, 0), np.uint8), np.zeros((n, 1), np.float32)
    return np.ascontiguousarray(_extended(products, books, none, zero, width)[0][:, 0])


def _extended(products: Float, books: Books, codes: Codes, scores: Float, width: int) -> tuple[Codes, Float]:
    """Return the beam, codes (n, ≤ width, any) and scores (n, ≤ width), after the codebooks of ``products``."""
    n, size, m = codes.shape
    last, K = m + len(products), books.norms.shape[1]
    width = min(width, size * K ** len(products))
    new_codes, new_scores = np.empty((n, width, last), np.uint8), np.empty((n, width), np.float32)
    beam.search(products, books.norms, books.cross, codes, scores, new_codes, new_scores)
    return new_codes, new_scores


def residual_codebooks(z: Float, M: int, K: int, width: int, n_iter: int, rng: np.random.Generator,
                       threads: int | None) -> Float:
    """Return codebooks (M, K, d), each clustered from what the best sum in the beam leaves over of ``z``."""
    n, d = z.shape
    codebooks = np.zeros((M, K, d), np.float32)
    codes, scores, rest = np.empty((n, 1, 0), np.uint8), np.zeros((n, 1), np.float32), z
    for m in range(M):
        codebooks[m] = transition(rest, K, n_iter, rng, threads)
        if m == M - 1:
            break
        codes, scores = _stage(z, Books(codebooks[:m + 1]), codes, scores, width, threads)
        rest = z - sums_of(codebooks, codes[:, 0])
        log.info("codebook %d (of %d): mean squared error %.6g", m, M, mean_square(rest))
    return codebooks


def _stage(z: Float, books: Books, codes: Codes, scores: Float, width: int,
           threads: int | None) -> tuple[Codes, Float]:
    """Return the beam of all rows of ``z`` after the last codebook of ``books``."""
    n, _, m = codes.shape
    width = min(width, scores.shape[1] * books.norms.shape[1])
    new_codes, new_scores = np.empty((n, width, m + 1), np.uint8), np.empty((n, width), np.float32)

    def block(begin: int, end: int) -> None:
        for rows, products in books.parts(z[begin:end], m):
            rows = slice(begin + rows.start, begin + rows.stop)
            new_codes[rows], new_scores[rows] = _extended(products, books, codes[rows], scores[rows], width)
    run_blocks(block, n, TASK, threads)
    return new_codes, new_scores


def transition(z: Float, K: int, n_iter: int, rng: np.random.Generator, threads: int | None,
               centers: Float | None = None) -> Float:
    """Return K centres (K, d) of ``z`` by transition clustering (Liu et al. 2015).

    In the principal directions of ``z``, k-means runs in the first d/16, d/4 and d of them, each from what the one
    before found; beyond, a centre has zeros. It may go on from given ``centers`` (K, d).
    """
    n, d = z.shape
    product = np.zeros((d, d))
    for at in range(0, n, 1 << 14):
        wide = z[at:at + (1 << 14)].astype(np.float64)
        product += wide.T @ wide
    axes = np.linalg.eigh(product)[1][:, ::-1].astype(np.float32)
    turned = z @ axes
    found = np.zeros((K, d), np.float32) if centers is None else centers @ axes
    for i, width in enumerate(sorted({-(-d // 16), -(-d // 4), d})):
        part = np.ascontiguousarray(turned[:, :width])
        if i == 0 and centers is None:
            found[:, :width] = start(part, K, rng, "k-means++", threads)
        found[:, :width] = lloyd(part, np.ascontiguousarray(found[:, :width]), max_iter=n_iter, tol=_TOLERANCE,
                                 threads=threads)[0]
    return np.asarray(found @ axes.T, dtype=np.float32)


def regularized(z: Float, others: Float, own: Float, cross: Float, codebook: Float, strength: float,
                threads: int | None) -> Float:
    """Return the codewords (K, d) that code ``z`` and keep the cross terms near their mean.

    ``z`` (n, d): what the ``others`` (n, d), sums of the other codewords, leave over; ``cross`` (n,): the cross term
    of these; ``own`` (n, d): the codeword that each vector has now; ``codebook``: the new ones, which say who is
    coded by which. Minimised is Σ ‖z − c‖² + λ (cross + 2⟨c, s⟩ − ε₀)², with ε₀ the mean cross term.
    """
    label = nearest.assign(z, nearest.transpose(codebook[np.newaxis]), threads, distances=False)[0][:, 0]
    wide, s = z.astype(np.float64), others.astype(np.float64)
    missing = (cross + 2 * np.einsum("ij,ij->i", own, s)).mean() - cross
    right = wide + (2 * strength * missing)[:, None] * s
    codewords = codebook.copy()
    for k in range(len(codebook)):
        rows = label == k
        if rows.any():
            matrix = 4 * strength * (s[rows].T @ s[rows])
            matrix[np.diag_indices(len(matrix))] += np.count_nonzero(rows)
            codewords[k] = np.linalg.solve(matrix, right[rows].sum(axis=0))
    return codewords


def by_variance(codebooks: Float) -> Float:
    """Return the codebooks in the order of decreasing mean squared distance of their codewords from their mean."""
    wide = codebooks.astype(np.float64)
    spread = np.square(wide - wide.mean(axis=1, keepdims=True)).sum(axis=(1, 2))
    return codebooks[np.argsort(-spread, kind="stable")]
