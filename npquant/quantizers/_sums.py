"""What residual and additive codecs share: a vector is a mean and a sum of codewords, one of each codebook."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.kernels import beam, cluster
from npquant.kernels._pool import run_blocks
from npquant.quantizers.base import Codes, Float, Quantizer

log = logging.getLogger("npquant")

Double = NDArray[np.float64]

ROWS = 64  # whose inner products with all codewords are held at a time, in the cache
TASK = 4096  # rows handed to one thread
_LEVELS = 256
_HOLD = 1e-6  # of the mean count of a codeword: how firmly what is not determined stays


class Books:
    """Codebooks (M, K, d) with what searches read: their norms, and the inner products of all pairs."""

    def __init__(self, codebooks: Float) -> None:
        codebooks = np.ascontiguousarray(codebooks)
        M, K, d = codebooks.shape
        self.codebooks = codebooks
        self._panels = beam.panels_of(codebooks)
        words = codebooks.reshape(M * K, d)
        self.norms = squares(words).reshape(M, K)
        # cross[m, j, a, k] = 2 ⟨C_j[a], C_m[k]⟩, in the fixed order; the same bits for [j, m, k, a].
        self.cross = self.products(words).reshape(M, M, K, K)
        self.cross *= np.float32(2)

    def products(self, x: Float) -> Float:
        """Return the inner products of ``x`` (n, d) with all codewords, float32 (M, n, K), in the fixed order."""
        M, K, _ = self.codebooks.shape
        out = np.empty((M, len(x), K), np.float32)
        beam.products_with(x, self._panels, out)
        return out

    def parts(self, x: Float, first: int = 0) -> Iterator[tuple[slice, Float]]:
        """Yield (rows, products) of a few rows of ``x`` at a time, with the codebooks from ``first`` on.

        The products are those of ``products``; each takes the place of the one before, which is still in the cache.
        """
        M, K, _ = self.codebooks.shape
        panels = self._panels[len(self._panels) // M * first:]
        room = np.empty((M - first) * min(ROWS, len(x)) * K, np.float32)
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, min(begin + ROWS, len(x)))
            n = rows.stop - begin
            out = room[:(M - first) * n * K].reshape(M - first, n, K)
            beam.products_with(x[rows], panels, out)
            yield rows, out

    def sums(self, numbers: Codes) -> Float:
        """Return (C_0[i_0] + C_1[i_1]) + … of ``numbers`` (n, M), float32 (n, d)."""
        return sums_of(self.codebooks, numbers)

    def cross_terms(self, numbers: Codes, without: int = -1) -> Float:
        """Return Σ 2⟨c_i, c_j⟩ over the pairs of codewords of ``numbers`` (n, M), float32 (n,).

        Codewords of the codebook ``without`` are left out.
        """
        total = np.zeros(len(numbers), np.float32)
        for m in range(len(self.norms)):
            for j in range(m):
                if without not in (m, j):
                    total += self.cross[m, j, numbers[:, j], numbers[:, m]]
        return total


class SumQuantizer(Quantizer):
    """Base of codecs whose vectors are sums of codewords; a subclass writes ``_train`` and ``_search``.

    With c the decoded vector less ``center_``, and q the query less ``center_``, the squared distance is
    ‖q‖² − Σ_m 2⟨q, C_m[i_m]⟩ + ‖c‖². The first two parts are sums of look-ups; for the last, a code has one more
    byte, the number of the nearest of 256 levels of ‖c‖², which were fitted to the training vectors.
    """

    score_model = "stored_norm"
    _fitted_attribute = "codebooks_"
    _books: Books

    m: int
    nbits: int

    # ---------------------------------------------------------------------------------- what was learned

    @property
    def codebooks_(self) -> Float:
        """The codebooks (M, K, d) float32, read-only."""
        if "_books" not in self.__dict__:
            raise AttributeError("codebooks_ exists once fit was called")
        return self._books.codebooks

    def _learned(self, codebooks: Float, center: Float, levels: Float) -> None:
        """Take codebooks (M, K, d), centre (d,) and norm levels (256,), or (1,) where no norm is stored."""
        _checks.fitted(codebooks, (None, None, None), "codebooks_")
        if codebooks.shape[1] not in [1 << nbits for nbits in range(1, 9)]:
            raise InvalidInputError(f"codebooks_ have {codebooks.shape[1]} codewords, wanted a power of 2, from 2 to "
                                    "256.")
        _checks.fitted(center, (codebooks.shape[2],), "center_")
        _checks.fitted(levels, (None,), "norm_levels_")
        if len(levels) not in (1, _LEVELS) or (np.diff(levels) < 0).any():
            raise InvalidInputError(f"norm_levels_ are {len(levels)} numbers, wanted {_LEVELS} (or 1) that ascend.")
        books = Books(_locked(codebooks))
        self.center_, self.norm_levels_, self._books = _locked(center), _locked(levels), books
        self.n_features_in_ = codebooks.shape[2]

    def _get_state(self) -> dict[str, Any]:
        if not self.__sklearn_is_fitted__():
            return {}
        return {"codebooks": self.codebooks_, "center": self.center_, "norm_levels": self.norm_levels_}

    def _set_state(self, state: dict[str, Any]) -> None:
        if state:
            self._learned(np.asarray(state["codebooks"]), np.asarray(state["center"]),
                          np.asarray(state["norm_levels"]))

    @property
    def code_size(self) -> int:
        """Bytes of one vector: one a codebook, whatever ``nbits``, and one for the norm where it is stored."""
        self._check_fitted()
        return len(self.codebooks_) + self._stored

    @property
    def _stored(self) -> int:
        return int(len(self.norm_levels_) > 1)

    # ---------------------------------------------------------------------------------- training

    def _fit(self, x: Float) -> None:
        M = _checks.integer(self.m, "m")
        K = 1 << _checks.integer(self.nbits, "nbits", 1, 8)
        _checks.threads(self.threads)
        self._check_parameters()
        if len(x) < K:
            warnings.warn(f"{len(x)} training vectors for codebooks of {K} codewords: only {len(x)} of each can be "
                          f"told apart. Train on at least {K} vectors (30 × {K} or more is better), or lower "
                          f"nbits = {self.nbits}.", NpquantWarning, stacklevel=3)
        center = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        z = x - center
        rng = _checks.random_state(self.random_state).spawn(1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)  # said above, once
            codebooks = self._train(z, M, K, rng)
        self._finish(z, codebooks, center)

    def _refine(self, x: Float, n_iter: int) -> None:
        z = x - self.center_
        rng = _checks.random_state(self.random_state).spawn(1)[0]
        self._finish(z, self._improve(z, self.codebooks_, n_iter, rng), self.center_)

    def _finish(self, z: Float, codebooks: Float, center: Float) -> None:
        books = Books(codebooks)
        numbers = self._numbers(z, books)
        self._learned(codebooks, center, self._norm_levels(books, numbers))

    def _norm_levels(self, books: Books, numbers: Codes) -> Float:
        return levels_of(squares(books.sums(numbers)))

    def _check_parameters(self) -> None:
        """Raise for what only the subclass knows."""

    def _train(self, z: Float, M: int, K: int, rng: np.random.Generator) -> Float:
        """Return codebooks (M, K, d) for the centred vectors ``z``."""
        raise NotImplementedError

    def _improve(self, z: Float, codebooks: Float, n_iter: int, rng: np.random.Generator) -> Float:
        """Return better codebooks: codes and codebooks in turns, ``n_iter`` times."""
        for _ in range(n_iter):
            books = Books(codebooks)
            codebooks = fitted_codebooks(z, self._numbers(z, books), codebooks, self.threads)
        return codebooks

    # ---------------------------------------------------------------------------------- codes

    def _search(self, z: Float, books: Books) -> Codes:
        """Return the numbers (n, M) of the codewords of some centred vectors ``z``; serial."""
        raise NotImplementedError

    def _numbers(self, z: Float, books: Books) -> Codes:
        """Return the numbers (n, M) of the codewords of the centred vectors ``z``."""
        return in_blocks(lambda rows: self._search(z[rows], books), len(z), len(books.codebooks),
                         _checks.threads(self.threads))

    def _encode(self, x: Float) -> Codes:
        numbers = self._numbers(x - self.center_, self._books)
        return self._with_norms(numbers)

    def _with_norms(self, numbers: Codes) -> Codes:
        if not self._stored:
            return numbers
        norms = np.concatenate([squares(self._books.sums(part)) for part in
                                np.array_split(numbers, max(1, len(numbers) // 1024))])
        middle = (self.norm_levels_[1:].astype(np.float64) + self.norm_levels_[:-1]) / 2
        level = np.searchsorted(middle, norms).astype(np.uint8)
        return np.concatenate([numbers, level[:, None]], axis=1)

    def _decode(self, codes: Codes) -> Float:
        return self._books.sums(codes) + self.center_

    def score_bound(self, codes: Any) -> Float:
        """Return how far the ``l2`` scores of ``codes`` (n, code_size) lie from the distances, float32 (n,).

        A score and the squared distance to ``decode`` of the code differ by |level − ‖c‖²| with c the decoded vector
        less ``center_``, whatever the query, and by float32 rounding. It is at most half the gap between two levels
        where ‖c‖² lies between the first and the last, as it does for every training vector; a norm outside is
        clamped, and the bound grows with it. Inner products have no such error.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        checked = self.check_codes(codes)
        if self._stored:
            return np.abs(self.norm_levels_[checked[:, -1]] - squares(self._books.sums(checked)))
        return np.abs(self._books.cross_terms(checked) - self.norm_levels_[0])

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), or hold a number of a codeword that is not below ``2**nbits``.
        """
        checked = super().check_codes(codes)
        M, K, _ = self.codebooks_.shape
        limited = checked[:, :M]
        if K < _LEVELS and limited.size and limited.max() >= K:
            row, column = np.argwhere(limited >= K)[0]
            raise InvalidInputError(f"codes contain {limited[row, column]} (row {row}, column {column}), and a "
                                    f"codebook has {K} codewords, 0 … {K - 1}. Give what encode returned.")
        return checked

    # ---------------------------------------------------------------------------------- scores and neighbours

    def _tables(self, queries: Float, product: bool) -> Float:
        """Return (nq, M, 256) look-ups, and (nq, M + 1, 256) where the norm is stored.

        Columns beyond K, which no code names, repeat the last: a width of 256 tells the scan that nothing is packed.
        """
        M, K, _ = self.codebooks_.shape
        q = queries if product else queries - self.center_
        out = np.empty((len(q), M + self._stored, _LEVELS), np.float32)

        def block(start: int, stop: int) -> None:
            part = q[start:stop]
            table = np.negative(np.swapaxes(self._books.products(part), 0, 1))
            if product:
                table[:, 0] -= inner(part, np.broadcast_to(self.center_, part.shape))[:, None]
            else:
                table += table
                if not self._stored:
                    table += self._books.norms
                    table[:, 0] += self.norm_levels_[0]
                table[:, 0] += squares(part)[:, None]
            out[start:stop, :M, :K] = table
        run_blocks(block, len(q), ROWS, _checks.threads(self.threads))
        out[:, :M, K:] = out[:, :M, K - 1:K]
        if self._stored:
            out[:, M] = 0 if product else self.norm_levels_
        return out

    def _nearby(self, x: Float, k: int) -> Float:
        """Return the nearest of what one codeword put in the place of another makes of each row's own code."""
        M, K, d = self.codebooks_.shape
        out = np.empty((len(x), 1, min(k, M * (K - 1) + 1), d), np.float32)

        def block(start: int, stop: int) -> None:
            z = x[start:stop] - self.center_
            numbers = self._search(z, self._books)
            rest = z - self._books.sums(numbers)
            products = self._books.products(rest)
            change = np.empty((len(z), M, K), np.float32)
            for m in range(M):  # of ‖rest‖², where codeword j takes the place of i: ‖i − j‖² + 2 ⟨rest, i − j⟩
                i = numbers[:, m]
                norms, own = self._books.norms[m], products[m, np.arange(len(z)), i]
                apart = (norms[i, None] + norms) - self._books.cross[m, m, i]
                change[:, m] = apart + 2 * (own[:, None] - products[m])
                change[np.arange(len(z)), m, i] = 0 if m == 0 else np.inf  # the code itself, once
            order = np.argsort(change.reshape(len(z), M * K), axis=1, kind="stable")[:, :out.shape[2]]
            codes = np.repeat(numbers[:, None], order.shape[1], axis=1)
            np.put_along_axis(codes, (order // K)[:, :, None], (order % K)[:, :, None].astype(np.uint8), axis=2)
            out[start:stop, 0] = (self._books.sums(codes.reshape(-1, M)) + self.center_).reshape(*order.shape, d)
        run_blocks(block, len(x), ROWS, _checks.threads(self.threads))
        return out


# -------------------------------------------------------------------------------------------- parts


def in_blocks(work: Callable[[slice], Codes], n: int, M: int, threads: int | None) -> Codes:
    """Return the numbers (n, M) that ``work`` gives for some rows at a time."""
    out = np.empty((n, M), np.uint8)

    def block(start: int, stop: int) -> None:
        out[start:stop] = work(slice(start, stop))
    run_blocks(block, n, TASK, threads)
    return out


def inner(a: Float, b: Float) -> Float:
    """Return the inner products of the rows of ``a`` and ``b``, dimension 0 first, each step rounded: (n,)."""
    total = np.zeros(len(a), np.float32)
    for column, other in zip(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)):
        total += column * other
    return total


def sums_of(codebooks: Float, numbers: Codes) -> Float:
    """Return (C_0[i_0] + C_1[i_1]) + … of ``numbers`` (n, any) among ``codebooks`` (M, K, d), float32 (n, d)."""
    total = codebooks[0].take(numbers[:, 0], axis=0)
    for m in range(1, min(len(codebooks), numbers.shape[1])):
        total += codebooks[m].take(numbers[:, m], axis=0)
    return total


def mean_square(x: Float) -> float:
    """Return the mean squared norm of the rows."""
    return float(np.einsum("ij,ij->", x, x, dtype=np.float64)) / max(len(x), 1)


def squares(a: Float) -> Float:
    """Return the squared norms of the rows, in the fixed order: (n,)."""
    return inner(a, a)


def levels_of(norms: Float) -> Float:
    """Return 256 ascending levels for ``norms`` (n,), of least mean squared error (k-means in one dimension)."""
    ordered = np.sort(norms.astype(np.float64))
    totals = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = np.quantile(ordered, (np.arange(_LEVELS) + 0.5) / _LEVELS)
    for _ in range(50):
        ends = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        first, last = np.concatenate([[0], ends]), np.concatenate([ends, [len(ordered)]])
        held = last > first
        moved = levels.copy()
        moved[held] = ((totals[last] - totals[first])[held]) / (last - first)[held]
        moved = np.maximum.accumulate(moved)
        if (moved == levels).all():
            break
        levels = moved
    # The outermost reach the outermost norms, so that no training vector is clamped.
    levels[0], levels[-1] = ordered[0], ordered[-1]
    return np.asarray(np.maximum.accumulate(levels), dtype=np.float32)


def fitted_codebooks(z: Float, numbers: Codes, codebooks: Float, threads: int | None, *,
                     shrink: bool = True) -> Float:
    """Return codebooks (M, K, d) fitted together to the vectors ``z`` (n, d) with fixed ``numbers`` (n, M).

    They solve (BᵀB + Λ + ρ) C = Bᵀ z + ρ C₀, with B the (n, M K) matrix of ones where a codeword is used; BᵀB counts
    how often two codewords come together. The small ρ holds what is not determined (codewords that nobody uses, a
    shift between two codebooks) at the codebooks C₀ given. Λ ``shrink``s a codebook by its ratio of the mean squared
    error to the mean squared norm of its codewords, which is the best guess where both are normal: a codeword of few
    vectors follows their noise otherwise, and codes what comes later worse. Without it, the squared error never
    increases but for rounding. O(n M² + (M K)³ + n M d), in float64.
    """
    M, K, d = codebooks.shape
    n = len(z)
    wide = codebooks.astype(np.float64)
    label = [np.ascontiguousarray(numbers[:, m], dtype=np.int32) for m in range(M)]
    counts = np.empty((M, K, M, K))
    for m in range(M):
        for j in range(m + 1):
            pairs = np.bincount(label[m].astype(np.int64) * K + label[j], minlength=K * K).reshape(K, K)
            counts[m, :, j], counts[j, :, m] = pairs, pairs.T
    matrix = counts.reshape(M * K, M * K)
    sums = np.concatenate([cluster.sums_by_cluster(z, label[m], K, threads)[0] for m in range(M)])
    right = sums - matrix @ wide.reshape(M * K, d)  # of the change
    diagonal = np.full((M, K), _HOLD * n / K)
    if shrink:
        error, size = mean_square(z - sums_of(codebooks, numbers)), np.square(wide).sum(axis=2).mean(axis=1)
        ridge = np.minimum(error / np.maximum(size, 1e-300), n)[:, None]
        right -= (ridge[:, :, None] * wide).reshape(M * K, d)
        diagonal += ridge
    matrix[np.diag_indices(M * K)] += diagonal.ravel()
    return np.asarray(wide + np.linalg.solve(matrix, right).reshape(M, K, d), dtype=np.float32)


def _locked(array: Any) -> Any:
    """Return the array read-only, not shared with whoever could write to it."""
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array
