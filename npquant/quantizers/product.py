"""Product quantization: each block of dimensions has a codebook of its own."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.kernels import cluster, nearest, scan
from npquant.kmeans import lloyd, start
from npquant.quantizers.base import Codes, Float, Quantizer

log = logging.getLogger("npquant")


class ProductQuantizer(Quantizer):
    """Cut vectors into ``m`` blocks and code each block by its nearest codeword (Jégou et al. 2011).

    A code is ``m`` bytes, one a block, with values below ``2**nbits``; with ``nbits=4`` two blocks share a byte:
    block 2j is in the low half of byte j, block 2j + 1 in the high one, and after the last of an odd ``m`` that is 0.
    The squared distance of a query to a coded vector is a sum of ``m`` table entries (asymmetric distance
    computation, ADC), equal to the distance to ``decode(codes)`` in a fixed order of summation.

    Parameters
    ----------
    m : int
        Number of blocks; the dimension of the vectors must be a multiple of it.
    nbits : int
        Bits a block, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    n_iter : int
        k-means iterations a codebook, at the most.
    init : {"k-means++", "random"}
        How each k-means starts.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed, the same ones for all blocks
        (a line in the log says so). The default is 256 a codeword of the largest codebook; ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    codebooks_ : ndarray (m, K, d / m) float32
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    Training costs O(n K d) an iteration with n ≤ ``max_points``, encoding O(K d) a vector, a look-up table O(K d) a
    query and scoring m additions a code. The same ``random_state`` gives the same bits for any number of threads and
    for the same vectors in an array, a memmap or blocks of any size.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> pq = nq.ProductQuantizer(m=8, nbits=4, random_state=0).fit(X)
    >>> codes = pq.encode(X[:3])
    >>> codes.shape, codes.dtype, pq.decode(codes).shape
    ((3, 4), dtype('uint8'), (3, 64))
    """

    _fitted_attribute = "codebooks_"
    _weights: NDArray[np.float64] | None  # of the moving average, since the last fit

    def __init__(self, m: int = 8, nbits: int = 8, *, n_iter: int = 25, init: str = "k-means++",
                 max_points: int | None = 65_536, random_state: Any = None, threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.n_iter = n_iter
        self.init = init
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def codebooks_(self) -> Float:
        """The codebooks (m, K, d / m) float32; another array of their shape may be put in their place."""
        if "_codebooks" not in self.__dict__:
            raise AttributeError("codebooks_ exists once fit was called")
        return self._codebooks

    @codebooks_.setter
    def codebooks_(self, codebooks: Float) -> None:
        _checks.fitted(codebooks, (None, None, None), "codebooks_")
        if codebooks.shape[1] not in [1 << nbits for nbits in range(1, 9)]:
            raise InvalidInputError(f"codebooks_ have {codebooks.shape[1]} codewords, wanted a power of 2, from 2 to "
                                    "256.")
        if codebooks.flags.writeable:  # not shared with the caller, nor to be changed without the kernels' copy
            codebooks = codebooks.copy()
            codebooks.flags.writeable = False
        self._codebooks = codebooks
        self._transposed = nearest.transpose(codebooks)  # as the kernels read them
        self._weights = None
        self.n_features_in_ = codebooks.shape[0] * codebooks.shape[2]

    def _fit(self, x: Float) -> None:
        m = _checks.integer(self.m, "m")
        K = 1 << _checks.integer(self.nbits, "nbits", 1, 8)
        n_iter = _checks.integer(self.n_iter, "n_iter", low=0)
        _checks.choice(self.init, "init", ("k-means++", "random"))
        threads = _checks.threads(self.threads)
        d = x.shape[1]
        if d % m:
            fit = [value for value in range(1, d + 1) if d % value == 0]
            raise InvalidInputError(f"The dimension {d} of X is not divisible by m = {m}. Choose m among "
                                    f"{fit if len(fit) < 12 else [*fit[:11], '…']}, or pad the vectors with zeros.")
        if len(x) < K:
            warnings.warn(f"{len(x)} training vectors for codebooks of {K} codewords: only {len(x)} can differ, the "
                          f"rest repeat them. Train on at least {K} vectors (30 × {K} or more is better), or "
                          f"lower nbits = {self.nbits}.", NpquantWarning, stacklevel=3)
        # One stream a block, so that a codebook does not depend on the others.
        streams = _checks.random_state(self.random_state).spawn(m)
        codebooks = np.empty((m, K, d // m), np.float32)
        for number, (block, codebook, rng) in enumerate(zip(self._blocks(x, m), codebooks, streams, strict=True)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NpquantWarning)  # said above, once
                begin = start(block, K, rng, self.init, threads)
            codebook[:], _, _, history = lloyd(block, begin, max_iter=n_iter, tol=5e-4, threads=threads)
            log.info("codebook of block %d (of %d): %d iterations, mean squared error %.6g", number, m,
                     len(history) - 1, history[-1] / len(block))
        self.codebooks_ = codebooks

    def _refine(self, x: Float, n_iter: int) -> None:
        codebooks = self.codebooks_.copy()
        for block, codebook in zip(self._blocks(x, len(codebooks)), codebooks, strict=True):
            codebook[:] = lloyd(block, codebook, max_iter=n_iter, tol=0.0, threads=_checks.threads(self.threads))[0]
        self.codebooks_ = codebooks

    def average(self, X: Any, decay: float) -> ProductQuantizer:
        """Move the codebooks towards ``X`` (n, d) by an exponential moving average.

        Each codeword is the ratio of two averages, of the sum and of the number of the sub-vectors assigned
        to it, both multiplied by ``decay`` and added ``1 − decay`` of the batch's; a codeword that nobody
        came to keeps its place.
        """
        x = self._vectors(X, one_row=False, min_rows=1)
        decay = _checks.number(decay, "decay", high=1.0)
        m, K, _ = self.codebooks_.shape
        weights = np.ones((m, K)) if self._weights is None else self._weights.copy()
        index = nearest.assign(x, self._transposed, _checks.threads(self.threads))[0]
        codebooks = self.codebooks_.copy()
        for j, block in enumerate(self._blocks(x, m)):
            sums, counts = cluster.sums_by_cluster(block, np.ascontiguousarray(index[:, j]), K, 1)
            old = decay * weights[j]
            weights[j] = old + (1 - decay) * counts
            held = (counts > 0) & (weights[j] > 0)
            codebooks[j, held] = ((old[:, None] * codebooks[j] + (1 - decay) * sums)[held]
                                  / weights[j, held, None])
        self.codebooks_ = codebooks
        self._weights = weights
        return self

    def _encode(self, x: Float) -> Codes:
        index = nearest.assign(x, self._transposed, _checks.threads(self.threads), distances=False)[0]
        return scan.pack(index, self.codebooks_.shape[1])

    def _decode(self, codes: Codes) -> Float:
        m, _, dsub = self.codebooks_.shape
        out = np.empty((len(codes), m, dsub), np.float32)
        for j in range(m):
            out[:, j] = self.codebooks_[j].take(scan.column(codes, j, m), axis=0)
        return out.reshape(len(codes), m * dsub)

    def _tables(self, queries: Float, product: bool) -> Float:
        return nearest.tables(queries, self._transposed, product, _checks.threads(self.threads))

    def _nearby(self, x: Float, k: int) -> Float:
        m, K, _ = self.codebooks_.shape
        scores = nearest.tables(x, self._transposed, False)
        order = np.argsort(scores, axis=2, kind="stable")[:, :, :min(k, K)]
        return self.codebooks_[np.arange(m)[None, :, None], order]

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), or hold a number that is not below ``2**nbits`` (with ``nbits=4`` and
            an odd ``m``: the half byte after the last number is not 0).
        """
        checked = super().check_codes(codes)
        m, K, _ = self.codebooks_.shape
        packed = scan.code_size(m, K) < m
        limited = checked[:, m // 2:] if packed else checked  # of two numbers in a byte each is below 16
        if K < 256 and limited.size and limited.max() >= K:
            row, column = np.argwhere(limited >= K)[0]
            number, column = limited[row, column], column + checked.shape[1] - limited.shape[1]
            raise InvalidInputError(
                f"codes contain {number} (row {row}, column {column}), and "
                + (f"the high half of the last byte is 0 where m = {m} is odd. " if packed else
                   f"a codebook has {K} codewords, 0 … {K - 1}. ") + "Give what encode returned.")
        return checked

    @property
    def code_size(self) -> int:
        """Bytes of one vector: ``m``, or half of it, rounded up, where ``nbits`` is 4."""
        self._check_fitted()
        return scan.code_size(*self.codebooks_.shape[:2])

    @staticmethod
    def _blocks(x: Float, m: int) -> list[Float]:
        return [np.ascontiguousarray(block) for block in np.split(x, m, axis=1)]

    def _get_state(self) -> dict[str, Any]:
        return {"codebooks": self.codebooks_} if self.__sklearn_is_fitted__() else {}

    def _set_state(self, state: dict[str, Any]) -> None:
        if state:
            self.codebooks_ = np.asarray(state["codebooks"])
