"""What an inverted file computes: the cell of a vector, its code there, and scores of codes by lists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant.index.multi import Cells
from npquant.kernels import lists, multisequence, nearest, scan
from npquant.quantizers.base import Codes, Float, Quantizer, Scorer, TableScorer, places_of

Numbers = NDArray[np.int64]

TERMS_BYTES = 1 << 28  # of what lists add to look-up tables, up to which all of it is kept
_ROWS = 1 << 13  # of a list, up to which its codes are decoded all at once
_PART_BYTES = 1 << 26  # of the same for some lists, made for a part of a search


class Lists(NamedTuple):
    """Codes by lists: list l holds the blocks ``order[start[l]:start[l + 1]]``; see ``kernels.scan.topk_lists``."""

    start: Numbers
    order: Numbers
    blocks: Codes
    ids: Numbers
    live: NDArray[np.uint64]


class Partition:
    """Cells, and a codec of the vectors in them or (``residual``) of their differences to the centroid.

    All of it is said of the space that the codec scores in, behind whatever transform stands in front of it.

    A residual score by ``l2`` is ``((‖q − c‖² + E_0) + E_1) + …`` with ``E_m = T_m + t_m``: T is twice the codec's
    table of negated inner products with q − μ, and t(c) = N + 2⟨c − μ, p⟩ is the same for all queries, N being the
    codec's ``l2`` table of the zero vector, the squared norms. Together ‖q − c‖² − 2⟨q − c, p⟩ + ‖p‖². μ, the mean
    of the centroids, cancels out; without it vectors far from 0 would lose digits.
    """

    def __init__(self, cells: Cells, codec: Quantizer, product: bool, residual: bool) -> None:
        self.cells, self.codec, self.product, self.residual = cells, codec, product, residual
        self.mean = cells.codebooks.mean(axis=1, dtype=np.float64).astype(np.float32).reshape(-1)
        scorer = codec._scorer(np.empty((0, cells.d), np.float32), product)
        self._by_tables = type(scorer) is TableScorer  # others have tables as well, and more to say
        self.columns = scorer.columns if not residual or self._by_tables else False
        self._kept_terms: list[Float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_steps"}
        return {**kept, "_kept_terms": None}  # both are made again where they are needed, and larger than many an index

    # ------------------------------------------------------------------------------------- vectors

    def encode(self, z: Float) -> tuple[Codes, Numbers]:
        """Return the codes (n, code_size) of the rows of ``z`` (n, d) in their cells, and these (n,)."""
        lists = self.cells.assign(z, 1)
        return self.codec._encode(z - self.cells.centroids(lists) if self.residual else z), lists

    def decode(self, lists: Numbers, codes: Codes) -> Float:
        """Return the vectors (n, d) that ``codes`` stand for in ``lists`` (n,)."""
        decoded = self.codec._decode(codes)
        return self.cells.centroids(lists) + decoded if self.residual else decoded

    # ------------------------------------------------------------------------------------- searching

    def topk(self, z: Float, nprobe: int, held: Lists, k: int, threads: int | None) -> tuple[Float, Numbers]:
        """Return the k best (scores, ids), (nq, k) each, of the live codes in the ``nprobe`` best lists of each query.

        ``z`` (nq, d) are the queries. Ordered by (score, id), padded by +inf and −1.
        """
        distances, found = np.full((len(z), k), np.inf, np.float32), np.full((len(z), k), -1, np.int64)
        probes, bias = self._probe(z, nprobe, threads)
        tables = self._tables(z)
        if tables is None:
            for queries, scorer, blocks in self._by_list(z, probes, held):
                best, names = _topk_of_list(scorer, *blocks, k, threads)
                distances[queries], found[queries] = scan.merge([distances[queries], best], [found[queries], names], k)
            return distances, found
        if self._steps is not None:
            return lists.topk(tables, self._steps, bias, probes, *held, k, threads)
        for rows, columns, part, terms, start, order in self._parts(probes, held):
            result = scan.topk_lists(tables[rows], terms, np.ascontiguousarray(bias[rows, columns]), part, start,
                                     order, held.blocks, held.ids, held.live, k, threads)
            if columns.start:
                result = scan.merge([distances[rows], result[0]], [found[rows], result[1]], k)
            distances[rows], found[rows] = result
        return distances, found

    def within(self, z: Float, nprobe: int, held: Lists, radius: Float,
               threads: int | None) -> tuple[Numbers, Float, Numbers]:
        """Return (limits (nq + 1,), scores, ids) of all codes there that score at most ``radius`` (nq,).

        Query i's are those from ``limits[i]`` to ``limits[i + 1]``, ordered by (score, id).
        """
        empty = np.empty(0, np.int64)
        results: list[tuple[Numbers, Float, Numbers]] = [(empty, np.empty(0, np.float32), empty)]
        probes, bias = self._probe(z, nprobe, threads)
        tables = self._tables(z)
        if tables is None:
            for queries, scorer, blocks in self._by_list(z, probes, held):
                limits, found, names = scorer._within(*blocks, radius[queries], threads)
                results.append((np.repeat(queries, np.diff(limits)), found, names))
        else:
            for rows, columns, part, terms, start, order in self._parts(probes, held):
                limits, found, names = scan.within_lists(
                    tables[rows], terms, np.ascontiguousarray(bias[rows, columns]), part, start, order, held.blocks,
                    held.ids, held.live, radius[rows], threads)
                queries = np.repeat(np.arange(rows.start, rows.start + len(part)), np.diff(limits))
                results.append((queries, found, names))
        queries, found, names = (np.concatenate(each) for each in zip(*results))
        by_rank = np.lexsort((names, found, queries))
        limits = np.searchsorted(queries[by_rank], np.arange(len(z) + 1)).astype(np.int64)
        return limits, found[by_rank], names[by_rank]

    def _probe(self, z: Float, nprobe: int, threads: int | None) -> tuple[Numbers, Float]:
        """Return the lists (nq, nprobe), and what their scores begin with: −0.0 changes no bit of a sum."""
        probes, scores = self.cells.probe(z, nprobe, self.product, threads)
        return probes, scores if self.residual else np.full(scores.shape, -0.0, np.float32)

    def _tables(self, z: Float) -> Float | None:
        """Return what each query looks up in (nq, M, K), or ``None`` where lists are scored one by one."""
        if not self._by_tables:
            return None
        if not self.residual or self.product:
            return self.codec._tables(z, self.product)
        tables: Any = self.codec._tables(z - self.mean, True)
        return np.multiply(tables, np.float32(2), out=tables)

    def _parts(self, probes: Numbers,
               held: Lists) -> Iterator[tuple[slice, slice, Numbers, Float, Numbers, Numbers]]:
        """Yield (rows, columns, these of ``probes``, terms, start, order): a search in parts, of lists numbered anew.

        It is one part, with the lists as they are, unless they are too many for all their terms to be kept.
        """
        nq, count = probes.shape
        every = slice(0, nq), slice(0, count), probes
        if not self.residual or self.product:
            yield *every, np.empty((0, *self._norms.shape), np.float32), held.start, held.order
            return
        terms = self._terms()
        if terms is not None and len(terms) == 1:
            yield *every, terms[0], held.start, held.order
            return
        filled = held.start[1:] > held.start[:-1]
        most = max(1, _PART_BYTES // self._norms.nbytes)
        group, width = max(1, most // count), min(count, most)
        for row in range(0, nq, group):
            for column in range(0, count, width):
                rows, columns = slice(row, row + group), slice(column, column + width)
                part = probes[rows, columns]
                used = np.unique(part[filled[part]])
                mine = np.where(filled[part], np.searchsorted(used, part), -1)
                begin, size = held.start[used], held.start[used + 1] - held.start[used]
                start = np.concatenate([[0], np.cumsum(size)])
                order = held.order[np.repeat(begin - start[:-1], size) + np.arange(start[-1])]
                yield rows, columns, mine, self._terms_of(used), start, order

    # ------------------------------------------------------------------------------------- terms

    @cached_property
    def _norms(self) -> Float:
        """The squared norms of the codewords as a table (M, K)."""
        tables: Any = self.codec._tables(np.zeros((1, self.cells.d), np.float32), False)
        return tables[0]

    def _terms(self) -> list[Float] | None:
        """Return the terms of each codebook's words, (words, M, K) each, if they are to be kept.

        A list's terms are those of its first word, plus those of its second one.
        """
        if self._kept_terms is None and self.cells.parts * self.cells.words * self._norms.nbytes <= TERMS_BYTES:
            self._kept_terms = [self._terms_of_words(part, np.arange(self.cells.words))
                                for part in range(self.cells.parts)]
        return self._kept_terms

    @cached_property
    def _steps(self) -> lists.Terms | None:
        """The terms of all lists as ``kernels.lists`` scans them; ``None`` where it cannot, or not all are kept."""
        if not self.residual or self.product:
            return lists.Terms.none(*self._norms.shape)
        terms = self._terms() if self.cells.parts == 1 and lists.Terms.fits(*self._norms.shape) else None
        return None if terms is None else lists.Terms.of(terms[0])

    def _terms_of(self, cells: Numbers) -> Float:
        kept, parts = self._terms(), []
        for part, words in enumerate(self.cells.words_of(cells)):
            if kept is not None:
                parts.append(kept[part][words])
            else:
                used, place = np.unique(words, return_inverse=True)
                parts.append(self._terms_of_words(part, used)[place])
        return parts[0] if len(parts) == 1 else np.add(parts[0], parts[1], out=parts[0])

    def _terms_of_words(self, part: int, words: Numbers) -> Float:
        columns = slice(part * self.cells.width, (part + 1) * self.cells.width)
        x = np.zeros((len(words), self.cells.d), np.float32)  # the other half's inner products are 0, and add nothing
        x[:, columns] = self.cells.codebooks[part][words] - self.mean[columns]
        products: Any = self.codec._tables(x, True)
        products *= np.float32(-2)
        if part == 0:
            products += self._norms
        return products

    # ------------------------------------------------------------------------------------- codecs without tables

    def _by_list(self, z: Float, probes: Numbers,
                 held: Lists) -> Iterator[tuple[Numbers, Scorer, tuple[Codes, Numbers, NDArray[np.uint64]]]]:
        """Yield, for each list that is probed and not empty, the queries (n,), their scorer, and the list's blocks."""
        by_list = np.argsort(probes, axis=None, kind="stable")
        lists, first = np.unique(probes.ravel()[by_list], return_index=True)
        for which, places in zip(lists.tolist(), np.split(by_list, first[1:])):
            run = held.order[held.start[which]:held.start[which + 1]]
            run = run[held.live[run] != 0]
            if len(run):
                queries = places // probes.shape[1]
                scorer = (_ResidualScorer(self, z[queries], which) if self.residual
                          else self.codec._scorer(z[queries], self.product))
                yield queries, scorer, (held.blocks[run], held.ids[run], held.live[run])


def _topk_of_list(scorer: Scorer, blocks: Codes, ids: Numbers, live: NDArray[np.uint64], k: int,
                  threads: int | None) -> tuple[Float, Numbers]:
    """Return the k best (scores, ids), or all where there are fewer, of one list."""
    places = places_of(live)
    if len(places) > _ROWS or scorer.columns:
        return scorer._topk(blocks, ids, live, k, threads)
    names = ids.reshape(-1)[places]
    order = np.argsort(names)  # so that of equal scores the smaller id stands in front
    scores = scorer._scores(blocks.reshape(-1, blocks.shape[2])[places[order]], threads)
    best = np.empty((len(scores), min(k, len(names))), np.float32)
    at = np.empty(best.shape, np.int64)
    multisequence.least(np.ascontiguousarray(scores), best, at)
    return best, names[order][at]


class _ResidualScorer(Scorer):
    """Scores by decoding: the distances to ``Partition.decode(codes)`` in one list, or negated inner products."""

    def __init__(self, partition: Partition, queries: Float, which: int) -> None:
        self._codec = partition.codec
        self._partition = partition
        self._queries = queries
        self._which = which

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        decoded = self._partition.decode(np.full(len(codes), self._which), codes)
        return nearest.tables(self._queries, nearest.transpose(decoded[np.newaxis]), self._partition.product,
                              threads)[:, 0]
