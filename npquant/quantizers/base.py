"""What every codec is: fit, encode, decode, and a scorer of codes against queries."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Transformer
from npquant.kernels import nearest, scan

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Self = TypeVar("Self", bound="Quantizer")


class Scorer:
    """Scores of codes against the queries it was made for; lower is better, whatever the metric.

    ``l2`` gives squared distances, ``ip`` and ``cosine`` give negated inner products. ``tables`` is
    (nq, M, K) float32 such that a score is ``sum_m tables[q, m, code[m]]`` in the order of m, or ``None``
    where the codec has none and blocks are decoded instead.
    """

    def __init__(self, codec: Quantizer, queries: Float, product: bool) -> None:
        self._codec = codec
        self._product = product
        self.tables = codec._tables(queries, product)
        # Without tables they are read later, and the caller may change them before.
        self._queries = queries if self.tables is not None else queries.copy()

    def scores(self, codes: Codes, threads: int | None = None) -> Float:
        """Return the scores of ``codes`` (n, code_size), float32 (nq, n)."""
        return self._scores(self._codec.check_codes(codes), threads)

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        if self.tables is not None:
            return scan.scores(self.tables, codes, threads)
        decoded = nearest.transpose(self._codec._decode(codes)[np.newaxis])
        return nearest.tables(self._queries, decoded, self._product, threads)[:, 0]

    def topk(self, codes: Codes, ids: NDArray[np.int64], k: int,
             threads: int | None = None) -> tuple[Float, NDArray[np.int64]]:
        """Return the k ≤ n best (scores, ids) of ``codes``, (nq, k) each, ordered by (score, id)."""
        names = np.ascontiguousarray(ids, dtype=np.int64)
        _checks.length(names, len(codes), "ids", "codes")
        return self._topk(self._codec.check_codes(codes), names, _checks.integer(k, "k", high=len(codes)), threads)

    def _topk(self, codes: Codes, ids: NDArray[np.int64], k: int,
              threads: int | None) -> tuple[Float, NDArray[np.int64]]:
        if self.tables is not None:
            return scan.topk(self.tables, codes, ids, k, threads)
        nq = len(self._queries)
        best: list[tuple[Float, NDArray[np.int64]]] = [(np.empty(0, np.float32), np.empty(0, np.int64))] * nq
        for start in range(0, len(codes), 4096):
            rows = slice(start, start + 4096)
            scores = self._scores(codes[rows], threads)
            for q, (kept, names) in enumerate(best):
                best[q] = scan.smallest(np.concatenate([kept, scores[q]]), np.concatenate([names, ids[rows]]), k)
        return (np.stack([kept for kept, _ in best]) if nq else np.empty((0, k), np.float32),
                np.stack([names for _, names in best]) if nq else np.empty((0, k), np.int64))


class Quantizer(Transformer):
    """Base of all codecs: public methods validate, then call the private hooks of the subclass.

    A subclass writes ``_fit(x)``, ``_encode(x)``, ``_decode(codes)``, ``code_size``, and where it can
    ``_tables(queries, product)``, ``_nearest``, ``_nearby`` and ``_refine``; it declares its score model
    (``decoded``, ``stored_norm``, ``hamming`` or ``estimator``).
    """

    score_model = "decoded"
    threads: int | None

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Train on ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong.
        """
        x = _checks.vectors(X)
        self._fit(x)
        self._remember_features(X, x.shape[1])
        return self

    def encode(self, X: Any, *, metric: str = "l2") -> Codes:
        """Return the codes of ``X`` (n, d): uint8 (n, code_size); a single 1-D vector is a batch of one.

        For ``metric="cosine"`` it is the normalised vectors that are coded.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        return self._encode(self._embedded(X, "X", metric))

    def decode(self, codes: Any) -> Float:
        """Return the vectors that ``codes`` (n, code_size) stand for: float32 (n, d).

        Raises
        ------
        NotFittedError
        InvalidInputError
            Codes of another dtype or width, or codes that no vector has.
        """
        self._check_fitted()
        return self._decode(self.check_codes(codes))

    def transform(self, X: Any) -> Codes:
        """Return ``encode(X)`` of one or more vectors; scikit-learn's name and rules (a 1-D ``X`` is refused)."""
        self._check_fitted()
        return self._encode(self._embed(_checks.vectors(X, d=self.n_features_in_, owner=type(self).__name__)))

    def inverse_transform(self, codes: Any) -> Float:
        """Return ``decode(codes)``."""
        return self.decode(codes)

    def refine(self: Self, X: Any, n_iter: int = 3) -> Self:
        """Go on training from the present codebooks on ``X`` (n, d); a codec without a way to do so refits."""
        self._check_fitted()
        self._refine(self._vectors(X, one_row=False, min_rows=1), _checks.integer(n_iter, "n_iter"))
        return self

    def scorer(self, queries: Any, metric: str = "l2") -> Scorer:
        """Return the :class:`Scorer` of ``queries`` (nq, d) by ``metric``: ``l2``, ``ip`` or ``cosine``.

        For ``cosine`` the queries are normalised here; the codes are expected to be of normalised vectors.
        """
        return Scorer(self, self._embedded(queries, "queries", metric), metric != "l2")

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the mean squared error of coding ``X`` (higher is better)."""
        x = self._embed(self._vectors(X, min_rows=1))
        return -float(np.square(x - self._nearest(x), dtype=np.float64).sum(axis=1).mean())

    def nearest(self, X: Any) -> Float:
        """Return the decoded nearest codeword of each row of ``X`` (n, d): float32 (n, d)."""
        return self._nearest(self._embed(self._vectors(X)))

    def nearby(self, X: Any, k: int) -> Float:
        """Return the ``k`` nearest codewords of each row of ``X`` (n, d): float32 (n, B, k, d / B), nearest first.

        The dimensions are cut into B blocks that are coded independently; a codec whose codewords are not
        products has B = 1. There may be fewer than ``k``.
        """
        return self._nearby(self._embed(self._vectors(X)), _checks.integer(k, "k"))

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        InvalidInputError
        """
        return _checks.codes(codes, self.code_size)

    @property
    def code_size(self) -> int:
        """Bytes of one vector."""
        raise NotImplementedError

    @property
    def _n_features_out(self) -> int:
        return self.code_size

    def _vectors(self, X: Any, name: str = "X", one_row: bool = True, min_rows: int = 0) -> Float:
        self._check_fitted()
        return _checks.vectors(X, name, d=self.n_features_in_, owner=type(self).__name__, min_rows=min_rows,
                               one_row=one_row)

    def _embedded(self, X: Any, name: str, metric: str) -> Float:
        x = self._embed(self._vectors(X, name))
        return normalized(x) if _checks.metric(metric) == "cosine" else x

    def _embed(self, x: Float) -> Float:
        """Return what the codes are codes of: ``x`` itself, or its image under a transform in front."""
        return x

    def _fit(self, x: Float) -> None:
        raise NotImplementedError

    def _encode(self, x: Float) -> Codes:
        raise NotImplementedError

    def _decode(self, codes: Codes) -> Float:
        raise NotImplementedError

    def _tables(self, queries: Float, product: bool) -> Float | None:
        return None

    def _nearest(self, x: Float) -> Float:
        return self._decode(self._encode(x))

    def _nearby(self, x: Float, k: int) -> Float:
        return self._nearest(x)[:, None, None, :]

    def _refine(self, x: Float, n_iter: int) -> None:
        self._fit(x)


def normalized(x: Float) -> Float:
    """Return the rows divided by their Euclidean norm, float32; zero rows stay zero."""
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    return np.asarray(x / np.where(norm > 0, norm, 1.0)[:, None], dtype=np.float32)
