"""Additive quantization: sums of codewords whose codebooks are learned together."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.kernels import beam, icm
from npquant.quantizers._sums import (
    Books,
    Double,
    SumQuantizer,
    fitted_codebooks,
    in_blocks,
    log,
    mean_square,
    sums_of,
)
from npquant.quantizers.base import Codes, Float
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.residual import best_sums, by_variance, residual_codebooks

_START = 4  # beam and iterations of the residual codebooks that training starts from
_TRIAL = 16_384  # vectors on which two starts are compared
_SWEEPS = 4  # turns of all codebooks after a perturbation


class AdditiveQuantizer(SumQuantizer):
    """Code a vector by a sum of ``m`` codewords, chosen in any order (Babenko & Lempitsky 2014).

    Codes, scores and ``score_bound`` are those of :class:`~npquant.ResidualQuantizer`: ``m + 1`` bytes, the last one
    for the squared norm of the sum.

    Parameters
    ----------
    m : int
        Number of codebooks, of codewords of the whole dimension.
    nbits : int
        Bits a codebook, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    beam : int
        Partial sums kept while a vector is coded; each is extended by a codeword of any codebook that it does not
        use yet, and of sums of the same codewords one is kept.
    n_iter : int
        Alternations of codes and codebooks, after a start by residual quantization.
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
    Codebooks are the least-squares solution for given codes, by dense normal equations of m K unknown rows, a little
    shrunk (the ratio of error to codewords says how much), which codes new vectors better. Coding costs
    O(m K d + L m³ K / 6) a vector, with L = ``beam``.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> aq = nq.AdditiveQuantizer(m=4, nbits=4, random_state=0).fit(X)
    >>> aq.encode(X[:3]).shape
    (3, 5)
    """

    def __init__(self, m: int = 8, nbits: int = 8, *, beam: int = 16, n_iter: int = 10,
                 max_points: int | None = 65_536, random_state: Any = None, threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.beam = beam
        self.n_iter = n_iter
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def _check_parameters(self) -> None:
        _checks.integer(self.beam, "beam")
        _checks.integer(self.n_iter, "n_iter", low=0)

    def _train(self, z: Float, M: int, K: int, rng: np.random.Generator) -> Float:
        codebooks = residual_codebooks(z, M, K, _START, _START, rng, _checks.threads(self.threads))
        return self._improve(z, codebooks, self.n_iter, rng)

    def _search(self, z: Float, books: Books) -> Codes:
        return free_search(z, books, _checks.integer(self.beam, "beam"))


class LocalSearchQuantizer(SumQuantizer):
    """Code a vector by a sum of ``m`` codewords, found by local search (Martinez et al. 2016, 2018).

    Codes, scores and ``score_bound`` are those of :class:`~npquant.ResidualQuantizer`: ``m + 1`` bytes, the last one
    for the squared norm of the sum.

    Parameters
    ----------
    m : int
        Number of codebooks, of codewords of the whole dimension.
    nbits : int
        Bits a codebook, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    n_iter : int
        Alternations of codes and codebooks, after a start by product or residual quantization.
    train_steps, encode_steps : int
        Steps of local search while training and while coding: each puts random codewords in ``n_perturb`` places and
        then takes the best codeword of each codebook in turn, the others fixed, four times over (iterated
        conditional modes). More cost more time and lower the error.
    n_perturb : int
        Places that a step perturbs, ``m`` at the most.
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
    The search starts from a beam of four sums. Its perturbations are drawn from a stream of their own by the number
    of the step alone, and are the same for all vectors, so that a code depends on the vector and the codebooks only.
    Training starts from a product or a residual quantizer, whichever is better after one alternation on a sample.
    After each least-squares fit the codebooks get normal noise of 1/m of the standard deviation of the vectors in each
    dimension, times (1 − t/T)^½ (LSQ++, SR-D); but no more than moves a sum by what the codes leave over, since vectors
    far out would drown all others. The best codebooks seen are kept. Coding costs O(m K d + steps · m² K) a vector,
    less where few numbers change.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> lsq = nq.LocalSearchQuantizer(m=4, nbits=4, random_state=0).fit(X)
    >>> lsq.encode(X[:3]).shape
    (3, 5)
    """

    def __init__(self, m: int = 8, nbits: int = 8, *, n_iter: int = 12, train_steps: int = 8, encode_steps: int = 8,
                 n_perturb: int = 4, max_points: int | None = 65_536, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.n_iter = n_iter
        self.train_steps = train_steps
        self.encode_steps = encode_steps
        self.n_perturb = n_perturb
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def _check_parameters(self) -> None:
        for name in ("n_iter", "train_steps", "encode_steps"):
            _checks.integer(getattr(self, name), name, low=0)
        _checks.integer(self.n_perturb, "n_perturb")

    def _train(self, z: Float, M: int, K: int, rng: np.random.Generator) -> Float:
        threads = _checks.threads(self.threads)
        starts = (partial(product_codebooks, M=M, K=K, rng=rng, threads=threads),
                  partial(residual_codebooks, M=M, K=K, width=_START, n_iter=_START, rng=rng, threads=threads))
        # Equal blocks mostly end lower than residuals that start lower; not where vectors lie in clusters.
        sample = z if len(z) <= _TRIAL else z[np.sort(rng.choice(len(z), _TRIAL, replace=False))]
        errors = [self._alternation(sample, start(sample), None, rng)[2] for start in starts]
        return self._improve(z, starts[int(np.argmin(errors))](z), self.n_iter, rng)

    def _improve(self, z: Float, codebooks: Float, n_iter: int, rng: np.random.Generator) -> Float:
        M = len(codebooks)
        numbers: Codes | None = None
        best, least = codebooks, np.inf
        most = z.std(axis=0, dtype=np.float64) / M
        for t in range(n_iter):
            numbers, codebooks, error, rest = self._alternation(z, codebooks, numbers, rng)
            if error < least:
                best, least = codebooks, error
            log.info("alternation %d (of %d): mean squared error %.6g", t, n_iter, error)
            spread = np.minimum(most, rest / M**0.5) * (1 - (t + 1) / n_iter) ** 0.5
            codebooks = codebooks + rng.standard_normal(codebooks.shape, dtype=np.float32) * spread.astype(np.float32)
        return by_variance(best)

    def _alternation(self, z: Float, codebooks: Float, before: Codes | None,
                     rng: np.random.Generator) -> tuple[Codes, Float, float, Double]:
        """Return new numbers, the codebooks fitted to them, the mean squared error and its deviation by dimension."""
        threads = _checks.threads(self.threads)
        M, K, _ = codebooks.shape
        plan = self._plan(M, K, self.train_steps, int(rng.integers(2**31)))
        numbers = in_blocks(partial(_improved, z, Books(codebooks), plan, before), len(z), M, threads)
        codebooks = fitted_codebooks(z, numbers, codebooks, threads)
        rest = z - sums_of(codebooks, numbers)
        return numbers, codebooks, mean_square(rest), rest.std(axis=0, dtype=np.float64)

    def _plan(self, M: int, K: int, steps: int, seed: int) -> Plan:
        return perturbations(M, K, steps, min(_checks.integer(self.n_perturb, "n_perturb"), M), seed)

    def _search(self, z: Float, books: Books) -> Codes:
        M, K = books.norms.shape
        return local_search(z, books, self._plan(M, K, _checks.integer(self.encode_steps, "encode_steps", low=0), 0))


def product_codebooks(z: Float, M: int, K: int, rng: np.random.Generator, threads: int | None) -> Float:
    """Return codebooks (M, K, d), each zero but in its own block of dimensions, of a product quantizer of ``z``."""
    d = z.shape[1]
    width = -(-d // M)
    padded = np.pad(z, ((0, 0), (0, M * width - d)))
    pq = ProductQuantizer(M, K.bit_length() - 1, max_points=None, random_state=rng, threads=threads).fit(padded)
    codebooks = np.zeros((M, K, M * width), np.float32)
    for m, codebook in enumerate(pq.codebooks_):
        codebooks[m, :, m * width:(m + 1) * width] = codebook
    return np.ascontiguousarray(codebooks[:, :, :d])


class Plan(NamedTuple):
    """What each step of a local search perturbs, and the turns that follow; the first step perturbs nothing."""

    places: NDArray[np.int64]  # (steps + 1, n_perturb), negative: none
    words: Codes  # (steps + 1, n_perturb)
    orders: NDArray[np.int64]  # (steps + 1, turns)


def perturbations(M: int, K: int, steps: int, count: int, seed: int) -> Plan:
    """Return a plan of so many steps for M codebooks of K codewords: random, and known by its arguments."""
    numbers = beam.mixed((steps + 1) * (_SWEEPS + 2) * M, seed).reshape(steps + 1, _SWEEPS + 2, M)
    places = np.ascontiguousarray(np.argsort(numbers[:, 0], axis=1)[:, :count])
    places[0] = -1
    words = (numbers[:, 1, :count] >> np.uint64(32)) % np.uint64(K)
    orders = np.argsort(numbers[:, 2:], axis=2).reshape(steps + 1, _SWEEPS * M)
    return Plan(places, words.astype(np.uint8), orders)


def local_search(z: Float, books: Books, plan: Plan, start: Codes | None = None) -> Codes:
    """Return the numbers (n, M) that local search finds from ``start``, or from what a narrow beam finds."""
    out = np.empty((len(z), len(books.norms)), np.uint8)
    for rows, products in books.parts(z):
        numbers = best_sums(products, books, _START) if start is None else start[rows].copy()
        icm.local_search(products, books.norms, books.cross, *plan, numbers, np.empty(len(numbers), np.float32))
        out[rows] = numbers
    return out


def _improved(z: Float, books: Books, plan: Plan, before: Codes | None, rows: slice) -> Codes:
    return local_search(z[rows], books, plan, None if before is None else before[rows])


def free_search(z: Float, books: Books, width: int) -> Codes:
    """Return the numbers (n, M) that a beam of ``width`` sums finds, codebooks in any order."""
    M, K = books.norms.shape
    names, out = beam.mixed(M * K, 0).reshape(M, K), np.empty((len(z), M), np.uint8)
    for rows, products in books.parts(z):
        n = products.shape[1]
        codes, used = np.zeros((n, 1, M), np.uint8), np.zeros((n, 1, M), np.bool_)
        keys, scores = np.zeros((n, 1), np.uint64), np.zeros((n, 1), np.float32)
        for t in range(M):
            # A set of t + 1 codewords comes from t + 1 sums at the most: so many sets there are at the least.
            size = min(width, -(-keys.shape[1] * (M - t) * K // (t + 1)))
            new = (np.empty((n, size, M), np.uint8), np.empty((n, size, M), np.bool_), np.empty((n, size), np.uint64),
                   np.empty((n, size), np.float32))
            beam.free_step(products, books.norms, books.cross, names, codes, used, keys, scores, *new)
            codes, used, keys, scores = new
        out[rows] = codes[:, 0]
    return out
