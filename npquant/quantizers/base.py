"""What every codec is: fit, encode, decode, and a scorer of codes against queries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Estimator, Transformer
from npquant._rows import blocks, is_stream, row_count, training_rows
from npquant.kernels import exact, nearest, scan
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Self = TypeVar("Self", bound="Quantizer")

_ROWS = 4096  # that a thread reads, converts and codes at a time
_DECODED = 1 << 22  # numbers that are decoded at a time, to be searched: 16 MB


class Scorer:
    """Scores of codes against the queries it was made for; lower is better, whatever the metric.

    ``l2`` gives squared distances, ``ip`` and ``cosine`` give negated inner products. ``tables`` is
    (nq, M, K) float32 such that a score is ``sum_m tables[q, m, code[m]]`` in the order of m, or ``None``
    where a codec scores in another way.

    Notes
    -----
    How a codec brings its own: it overrides ``Quantizer._scorer(queries, product) -> Scorer`` and returns a subclass
    with ``_scores(codes, threads) -> (nq, n) float32`` for valid row-major codes (n, code_size), n = 0 included, and
    with ``_codec``, the codec. That is enough to be correct; ``_topk`` and ``_within`` are overridden to be fast.
    These two are given the arrays of an index (and must not change them):

    * ``blocks`` uint8: 64 codes a block; (nb, code_size, 64) where ``columns``, else (nb, 64, code_size), so that
      ``blocks.reshape(-1, code_size)`` are row-major codes. In places that are not live stands any code, or zeros.
    * ``ids`` int64 (nb, 64);
    * ``live`` uint64 (nb,): bit i says whether place i of the block is to be considered.

    ``_topk(blocks, ids, live, k, threads)`` returns (scores, ids), (nq, k) each, ordered by (score, id) and padded by
    +inf and −1. ``_within(blocks, ids, live, radius, threads)`` returns (limits int64 (nq + 1,), scores, ids): query
    q's codes with a score ≤ ``radius[q]`` are those from limits[q] to limits[q + 1], ordered by (score, id).
    ``columns`` is the same for all queries and for both values of ``product``: an index lays out its codes by it.
    """

    columns = False
    tables: Float | None = None
    _codec: Quantizer

    def scores(self, codes: Codes, threads: int | None = None) -> Float:
        """Return the scores of ``codes`` (n, code_size), float32 (nq, n)."""
        return self._scores(self._codec.check_codes(codes), threads)

    def topk(self, codes: Codes, ids: NDArray[np.int64], k: int,
             threads: int | None = None) -> tuple[Float, NDArray[np.int64]]:
        """Return the k ≤ n best (scores, ids) of ``codes``, (nq, k) each, ordered by (score, id)."""
        names = np.asarray(ids, dtype=np.int64)
        _checks.length(names, len(codes), "ids", "codes")
        codes = self._codec.check_codes(codes)
        k = _checks.integer(k, "k", high=len(codes))
        padded = np.full(-(-len(codes) // 64) * 64, -1, np.int64)
        padded[:len(codes)] = names
        return self._topk(in_blocks(codes, self.columns), padded.reshape(-1, 64), first_bits(len(codes)), k, threads)

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        raise NotImplementedError

    def _topk(self, blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64], k: int,
              threads: int | None) -> tuple[Float, NDArray[np.int64]]:
        best: Float | None = None
        found = np.empty((0, k), np.int64)
        for codes, names in _live_rows(blocks, ids, live):
            scores = self._scores(codes, threads)
            if best is None:
                best, found = np.full((len(scores), k), np.inf, np.float32), np.full((len(scores), k), -1, np.int64)
            for q in np.flatnonzero((scores <= best[:, -1:]).any(axis=1)):
                near = np.flatnonzero(scores[q] <= best[q, -1])
                held = found[q] >= 0
                kept = scan.smallest(np.concatenate([best[q, held], scores[q, near]]),
                                     np.concatenate([found[q, held], names[near]]), k)
                best[q, :len(kept[0])], found[q, :len(kept[0])] = kept
        if best is None:
            nq = len(self._scores(np.empty((0, blocks.shape[2]), np.uint8), threads))
            return np.full((nq, k), np.inf, np.float32), np.full((nq, k), -1, np.int64)
        return best, found

    def _within(self, blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64], radius: Float,
                threads: int | None) -> tuple[NDArray[np.int64], Float, NDArray[np.int64]]:
        rows, scores, found = [np.empty(0, np.intp)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for codes, names in _live_rows(blocks, ids, live):
            every = self._scores(codes, threads)
            q, near = np.nonzero(every <= radius[:, None])
            rows.append(q)
            scores.append(every[q, near])
            found.append(names[near])
        row, score, name = np.concatenate(rows), np.concatenate(scores), np.concatenate(found)
        order = np.lexsort((name, score, row))
        return np.searchsorted(row[order], np.arange(len(radius) + 1)).astype(np.int64), score[order], name[order]


class TableScorer(Scorer):
    """Scores by look-up tables: the scan engine, over transposed blocks."""

    columns = True

    def __init__(self, codec: Quantizer, tables: Float) -> None:
        self._codec = codec
        self.tables: Float = tables

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        return scan.scores(self.tables, codes, threads)

    def _topk(self, blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64], k: int,
              threads: int | None) -> tuple[Float, NDArray[np.int64]]:
        return scan.topk(self.tables, blocks, ids, live, k, threads)

    def _within(self, blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64], radius: Float,
                threads: int | None) -> tuple[NDArray[np.int64], Float, NDArray[np.int64]]:
        return scan.within(self.tables, blocks, ids, live, radius, threads)


class DecodingScorer(Scorer):
    """Scores by decoding: the distances to ``decode(codes)``, or the negated inner products with it."""

    def __init__(self, codec: Quantizer, queries: Float, product: bool) -> None:
        self._codec = codec
        self._product = product
        self._queries = queries.copy()  # they are read later, and the caller may change them before

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        decoded = nearest.transpose(self._codec._decode(codes)[np.newaxis])
        return nearest.tables(self._queries, decoded, self._product, threads)[:, 0]

    def _topk(self, blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64], k: int,
              threads: int | None) -> tuple[Float, NDArray[np.int64]]:
        best = exact.Selector(self._queries, self._product, k, threads)
        for codes, names in _live_rows(blocks, ids, live, max(_ROWS, _DECODED // max(1, self._queries.shape[1]))):
            best.update(self._codec._decode(codes), names)
        scores, found = best.result()
        found[(found < 0) & (scores < np.inf)] = 2**63 - 1  # to the selector, the largest id is nobody's
        return scores, found


def in_blocks(codes: Codes, columns: bool) -> Codes:
    """Return ``codes`` (n, s) as blocks of 64, padded by zeros: (nb, s, 64) where ``columns``, else (nb, 64, s)."""
    if columns:
        return scan.to_blocks(codes)
    n, s = codes.shape
    blocks = np.zeros((-(-n // 64), 64, s), np.uint8)
    blocks.reshape(-1, s)[:n] = codes
    return blocks


def first_bits(n: int) -> NDArray[np.uint64]:
    """Return a mask (ceil(n / 64),) uint64 of which the first ``n`` bits are set."""
    bits = np.full(-(-n // 64), 2**64 - 1, np.uint64)
    if n % 64:
        bits[-1] = 2**(n % 64) - 1
    return bits


def _live_rows(blocks: Codes, ids: NDArray[np.int64], live: NDArray[np.uint64],
               rows: int = _ROWS) -> Iterator[tuple[Codes, NDArray[np.int64]]]:
    """Yield (codes, ids) of the live places of row-major blocks, so many rows at a time; none without a live one."""
    for start in range(0, len(blocks), rows // 64):
        part = slice(start, start + rows // 64)
        codes, names = blocks[part].reshape(-1, blocks.shape[2]), ids[part].reshape(-1)
        if (live[part] != np.uint64(2**64 - 1)).any():
            places = places_of(live[part])
            codes, names = codes[places], names[places]
        if len(codes):
            yield codes, names


def places_of(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the numbers of the bits that are set in ``bits`` (nb,) uint64, ascending."""
    return np.flatnonzero(np.unpackbits(bits.astype("<u8", copy=False).view(np.uint8), bitorder="little"))


class Quantizer(Transformer):
    """Base of all codecs: public methods validate, then call the private hooks of the subclass.

    A subclass writes ``_fit(x)``, ``_encode(x)``, ``_decode(codes)``, ``code_size``, and where it can
    ``_tables(queries, product)``, ``_nearest``, ``_nearby`` and ``_refine``; or ``_scorer(queries, product)``, where a
    score is neither a sum of tables nor a distance to the decoded; it declares its score model (``decoded``,
    ``stored_norm``, ``hamming`` or ``estimator``).
    """

    score_model = "decoded"
    threads: int | None
    max_points: int | None = None  # training vectors at the most; a codec that draws has it as a parameter
    random_state: Any = None

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Train on ``X`` (n, d): an array, a memmap, or an iterable of blocks (n_i, d); ``y`` is ignored.

        Of more than ``max_points`` vectors so many are drawn uniformly, without replacement, by ``random_state``: the
        same ones whether they come in an array or in blocks of any size. Only these are converted to float32, and
        checked.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong.
        """
        x = self._training_rows(X)
        self._fit(x)
        self._remember_features(X, x.shape[1])
        return self

    def encode(self, X: Any, *, metric: str = "l2") -> Codes:
        """Return the codes of ``X`` (n, d): uint8 (n, code_size); a single 1-D vector is a batch of one.

        ``X`` is an array of any real dtype, a memmap, or an iterable of blocks (n_i, d). It is read, converted and
        coded a few thousand rows at a time, so that beside the codes no more than these are held. For
        ``metric="cosine"`` it is the normalised vectors that are coded.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        if not is_stream(X):
            return self._coded(X, "X", metric)
        parts = list(self.encode_blocks(X, metric=metric))
        return np.concatenate(parts) if parts else np.empty((0, self.code_size), np.uint8)

    def encode_blocks(self, X: Any, *, metric: str = "l2") -> Iterator[Codes]:
        """Return an iterator over the codes of ``X``, uint8 (n_i, code_size), in the order of the rows.

        Of an iterable of blocks each block's codes come as they are asked for, and nothing of the blocks before is
        held; an array or a memmap is cut into blocks here. End to end they are what ``encode`` returns.

        Raises
        ------
        NotFittedError, InvalidInputError
            At once for the codec and the metric; for a block when it is its turn.

        Examples
        --------
        >>> import numpy as np, npquant as nq
        >>> X = np.random.default_rng(0).standard_normal((300, 4))
        >>> pq = nq.ProductQuantizer(m=2, nbits=3, random_state=0).fit(X)
        >>> [len(codes) for codes in pq.encode_blocks(X[i:i + 128] for i in range(0, 300, 128))]
        [128, 128, 44]
        """
        self._check_fitted()
        _checks.metric(metric)
        return (self._coded(block, name, metric) for block, name in blocks(X, "X", 16 * _ROWS))

    def _coded(self, X: Any, name: str, metric: str) -> Codes:
        n = row_count(X)
        if n is None or n <= _ROWS:
            return self._encode(self._embedded(X, name, metric))
        self._vectors(X[:0], name)  # what is wrong with all of it is said of all of it
        rows = max(256, min(_ROWS, (1 << 22) // X.shape[1]))
        return np.concatenate(run_blocks(
            lambda begin, end: self._encode(self._embedded(X[begin:end], f"{name}[{begin}:{end}]", metric)),
            n, rows, _checks.threads(self.threads)))

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
        if row_count(X) is None and not is_stream(X):
            X = _checks.vectors(X, d=self.n_features_in_, owner=type(self).__name__)
        return self.encode(X)

    def inverse_transform(self, codes: Any) -> Float:
        """Return ``decode(codes)``."""
        return self.decode(codes)

    def refine(self: Self, X: Any, n_iter: int = 3) -> Self:
        """Go on training from the present codebooks on ``X``, as ``fit`` takes it; a codec that cannot refits."""
        self._check_fitted()
        x = self._vectors(self._training_rows(X), one_row=False, min_rows=1)
        self._refine(x, _checks.integer(n_iter, "n_iter"))
        return self

    def _training_rows(self, X: Any) -> Float:
        limit = None if self.max_points is None else _checks.integer(self.max_points, "max_points")
        return training_rows(X, limit, self.random_state)

    def scorer(self, queries: Any, metric: str = "l2") -> Scorer:
        """Return the :class:`Scorer` of ``queries`` (nq, d) by ``metric``: ``l2``, ``ip`` or ``cosine``.

        For ``cosine`` the queries are normalised here; the codes are expected to be of normalised vectors.
        """
        return self._scorer_by(self._vectors(queries, "queries"), _checks.metric(metric))

    def _scorer_by(self, queries: Float, metric: str) -> Scorer:
        x = self._embed(queries)
        codec, x = self._scored(normalized(x) if metric == "cosine" else x)
        return codec._scorer(x, metric != "l2")

    def symmetric_scorer(self, codes: Any, metric: str = "l2") -> Scorer:
        """Return the :class:`Scorer` of the vectors that ``codes`` (nq, code_size) stand for.

        Symmetric distance computation (SDC, Jégou et al. 2011): codes against codes, where the queries themselves are
        not at hand. It is ``scorer(decode(codes), metric)`` and no more. Its tables hold, for each block, the row of
        the codeword-to-codeword table (M, K, K) that the code names, bit for bit: that table would save O(K d)
        operations a query, which are few beside a scan, and is not kept.

        Raises
        ------
        NotFittedError, InvalidInputError

        Examples
        --------
        >>> import numpy as np, npquant as nq
        >>> pq = nq.ProductQuantizer(m=2, nbits=1)
        >>> pq.codebooks_ = np.array([[[0], [1]], [[0], [3]]], np.float32)
        >>> codes = np.array([[0, 0], [0, 1], [1, 1]], np.uint8)
        >>> pq.symmetric_scorer(codes).scores(codes).tolist()
        [[0.0, 9.0, 10.0], [9.0, 0.0, 1.0], [10.0, 1.0, 0.0]]
        """
        return self.scorer(self.decode(codes), metric)

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

        One that does not take all bytes must refuse a code of 255 everywhere: an index asks for it, and where that is a
        code, it never asks about a mapped file.

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

    def _scored(self, x: Float) -> tuple[Quantizer, Float]:
        """Return the codec to whose decoded vectors scores are distances, and ``x`` in its space."""
        return self, x

    def __copy__(self: Self) -> Self:
        """Return a copy that shares arrays, and no fitted part that could be changed behind its back."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update({name: copy.copy(value) if name.endswith("_") and isinstance(value, Estimator) else value
                               for name, value in self.__dict__.items()})
        return other

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

    def _scorer(self, queries: Float, product: bool) -> Scorer:
        """Return the scorer of ``queries``, which are in the space of the decoded vectors; see :class:`Scorer`."""
        tables = self._tables(queries, product)
        return DecodingScorer(self, queries, product) if tables is None else TableScorer(self, tables)

    def _nearest(self, x: Float) -> Float:
        return self._decode(self._encode(x))

    def _nearby(self, x: Float, k: int) -> Float:
        return self._nearest(x)[:, None, None, :]

    def _in_place(self, codes: Codes) -> tuple[NDArray[Any], tuple[Float, Float] | None] | None:
        """Return what ``kernels.rerank`` can read of ``codes`` without their being decoded, or ``None``."""
        return None

    def _refine(self, x: Float, n_iter: int) -> None:
        self._fit(x)


def normalized(x: Float) -> Float:
    """Return the rows divided by their Euclidean norm, float32; zero rows stay zero."""
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    return np.asarray(x / np.where(norm > 0, norm, 1.0)[:, None], dtype=np.float32)
