"""Searching codes beside faiss: exhaustive, by inverted files, by Hamming distance, and among plain vectors.

    python bench/search.py [--quick] [--scann PYTHON]
                           [--only flat,fast,levels,dram,ivf,hamming,lattice,exact,start,memory,threads]

One thread unless a row says otherwise. The million is ``synthetic_low_rank`` (d = 128). Codebooks and codes are ours,
put into faiss's indexes, and the answers are compared before anything is timed: same distances (to 1e-4), same ids but
for ties. faiss is timed as installed and, where it has another path that may be faster, in a process of its own with
FAISS_SIMD_LEVEL=NONE; both ratios are printed, the smaller one is the one to quote.

Limits are of this core, measured in the same run: bytes a second read from L3 and from DRAM (a bitwise or of words).
"""

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPQUANT_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import _harness  # before NumPy: it chooses the BLAS kernel

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import _data
import numpy as np
from _peers import Elsewhere, array, faiss_pq, kept

import npquant as nq
from npquant import metrics

_HELD: dict[tuple[Any, ...], Any] = {}


def held(*key: Any, make: Callable[[], Any]) -> Any:
    """Return what ``make`` made for this key in this process."""
    if key not in _HELD:
        _HELD[key] = make()
    return _HELD[key]


# --------------------------------------------------------------------------------- what is timed, here or elsewhere

def our_index(books: str, vectors: str, codes: str) -> nq.FlatIndex:
    def make() -> nq.FlatIndex:
        index = nq.FlatIndex(our_pq(array(books)))
        index.add(array(vectors))
        assert np.array_equal(index.codec.encode(array(vectors)[:1000]), array(codes)[:1000])
        return index
    return held("ours", books, codes, make=make)


def our_pq(books: np.ndarray) -> nq.ProductQuantizer:
    pq = nq.ProductQuantizer(m=len(books), nbits=books.shape[1].bit_length() - 1)
    pq.codebooks_ = books
    return pq


def faiss_index(books: str, codes: str, fast: bool) -> Any:
    def make() -> Any:
        import faiss
        faiss.omp_set_num_threads(1)
        pq = faiss_pq(array(books))
        index = faiss.IndexPQ(pq.d, pq.M, pq.nbits)
        index.pq = pq
        index.is_trained = True
        faiss.copy_array_to_vector(array(codes).ravel(), index.codes)
        index.ntotal = len(array(codes))
        return faiss.IndexPQFastScan(index) if fast else index
    return held("faiss", books, codes, fast, make=make)


def timed(search: Callable[[np.ndarray, int], Any], queries: np.ndarray, k: int, batch: int, calls: int) -> float:
    """Return the median seconds of a search of ``batch`` queries."""
    seconds = []
    for call in range(calls):
        part = queries[call * batch % len(queries):][:batch]
        began = time.perf_counter()
        search(part, k)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def our_search(books: str, vectors: str, codes: str, queries: str, k: int, batch: int, calls: int) -> float:
    index = our_index(books, vectors, codes)
    return timed(lambda q, k: index.search(q, k, threads=1), array(queries), k, batch, calls)


def faiss_search(books: str, codes: str, queries: str, k: int, batch: int, calls: int, fast: bool) -> float:
    return timed(faiss_index(books, codes, fast).search, array(queries), k, batch, calls)


def same(ours: Any, theirs: Any, what: str) -> None:
    """Raise unless two results of a search agree but for rounding and ties."""
    a, b = ours[0], theirs[0]
    assert np.allclose(a, b, rtol=1e-4, atol=1e-2), f"{what}: other distances"
    differ = (ours[1] != theirs[1]).mean()
    assert differ < 0.02, f"{what}: {differ:.2%} other ids"


class OurIVF:
    """An index of ours over ``base``, re-ranked by a byte a dimension."""

    def __init__(self, m: int, nbits: int, residual: bool, learn: np.ndarray, base: np.ndarray) -> None:
        codec = nq.ProductQuantizer(m, nbits, random_state=0)
        inner = nq.IVFIndex(nq.KMeans(1024, random_state=0), codec, residual=residual)
        self.index = nq.RefineIndex(inner, nq.ScalarQuantizer("int8")).fit(learn)
        self.index.add(base)

    def front(self, q: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, Any]]:
        """Return (recall, seconds a query, options) of many settings."""
        rows = []
        for nprobe in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            for oversample in (1, 2, 3, 4, 6, 8, 10, 15, 20):
                options = {"nprobe": nprobe, "oversample": oversample}
                began = time.perf_counter()
                found = self.index.search(q, 10, threads=1, **options).ids
                rows.append((metrics.knn_recall(found, truth, 10), (time.perf_counter() - began) / len(q), options))
        return rows

    def seconds(self, q: np.ndarray, options: Any) -> float:
        """Return the seconds a query of a search with these options."""
        began = time.perf_counter()
        self.index.search(q, 10, threads=1, **options)
        return (time.perf_counter() - began) / len(q)


class FaissIVF:
    """The same of an index of faiss, re-ranked by floats."""

    def __init__(self, spec: str, learn: np.ndarray, base: np.ndarray) -> None:
        import faiss
        faiss.omp_set_num_threads(1)
        self.index = faiss.index_factory(base.shape[1], spec)
        self.index.train(learn)
        self.index.add(base)
        self.inner = faiss.extract_index_ivf(faiss.downcast_index(self.index.base_index))

    def _found(self, q: np.ndarray, options: Any) -> np.ndarray:
        self.inner.nprobe, self.index.k_factor = options["nprobe"], options["k_factor"]
        return self.index.search(q, 10)[1]

    def front(self, q: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, Any]]:
        """Return (recall, seconds a query, options) of many settings."""
        rows = []
        for nprobe in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            for k_factor in (1, 2, 3, 4, 6, 8, 10, 15, 20):
                options = {"nprobe": nprobe, "k_factor": k_factor}
                began = time.perf_counter()
                found = self._found(q, options)
                rows.append((metrics.knn_recall(found, truth, 10), (time.perf_counter() - began) / len(q), options))
        return rows

    def seconds(self, q: np.ndarray, options: Any) -> float:
        """Return the seconds a query of a search with these options."""
        began = time.perf_counter()
        self._found(q, options)
        return (time.perf_counter() - began) / len(q)


# ----------------------------------------------------------------------------------------------------------- rows

class Bench:
    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder = options, folder
        self.rounds = 3 if options.quick else 7
        self.n = 1_000_000
        data = nq.datasets.synthetic_low_rank(self.n, queries=1000)
        self.vectors = kept(folder, "vectors", data.X)
        self.queries = kept(folder, "queries", data.queries)
        self.none = Elsewhere(FAISS_SIMD_LEVEL="NONE")
        self.codecs: dict[tuple[int, int], tuple[str, str]] = {}
        l3, dram = (self._bandwidth(size) for size in (1 << 20, 50 << 20))
        print(f"limits: {l3:.0f} GB/s read from L3, {dram:.0f} from DRAM (one thread)")
        self.from_l3, self.from_dram = l3, dram

    @staticmethod
    def _bandwidth(count: int) -> float:
        x = np.ones(count, np.uint64)
        repeat = max(1, (50 << 20) // count)
        seconds = _harness.alternate([lambda: [np.bitwise_or.reduce(x) for _ in range(repeat)]], 7)
        return repeat * x.nbytes / float(seconds.min()) / 1e9

    def codec(self, m: int, nbits: int) -> tuple[str, str]:
        """Return files of the codebooks and the million's codes."""
        if (m, nbits) not in self.codecs:
            pq = nq.ProductQuantizer(m, nbits, random_state=0, n_iter=8).fit(array(self.vectors)[:100_000])
            self.codecs[m, nbits] = (kept(self.folder, f"books{m}x{nbits}", pq.codebooks_),
                                     kept(self.folder, f"codes{m}x{nbits}", pq.encode(array(self.vectors))))
        return self.codecs[m, nbits]

    def _cases(self) -> list[tuple[int, int, int]]:
        """Return (queries a call, k, calls a round)."""
        cases = [(1, 10, 30), (1, 100, 30), (100, 10, 2), (1000, 10, 1)]
        return cases[:3] if self.options.quick else [*cases, (100, 100, 2), (1000, 100, 1)]

    def _medians(self, rivals: list[Callable[[], float]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the medians of what each rival says it took, in turns; and the quartiles of the first ratio."""
        for rival in rivals:
            rival()
        runs = np.array([[rival() for rival in rivals] for _ in range(self.rounds)])
        return np.median(runs, axis=0), np.percentile(runs[:, min(1, len(rivals) - 1)] / runs[:, 0], [25, 75])

    def flat(self) -> None:
        print(f"\nP1: exhaustive exact ADC, {self.n:,} codes of 8 bits (target: 8 × 8 20 × faiss as installed, 8 × its "
              "best level; 16 × 8: 15 ×, 8 ×)")
        for m in (8, 16):
            books, codes = self.codec(m, 8)
            q = array(self.queries)
            same(our_index(books, self.vectors, codes).search(q[:50], 100, threads=1),
                 faiss_index(books, codes, False).search(q[:50], 100), f"{m} × 8")
            for batch, k, calls in self._cases():
                theirs = 1 if batch > 1 else 5
                seconds, spread = self._medians([
                    lambda: our_search(books, self.vectors, codes, self.queries, k, batch, calls),
                    lambda: faiss_search(books, codes, self.queries, k, batch, theirs, False),
                    lambda: self.none(faiss_search, books, codes, self.queries, k, batch, theirs, False)])
                ours, installed, other = seconds / batch
                rate = self.n / ours / 1e9
                print(f"  {m:2d} × 8, k = {k:3d}, {batch:4d} queries: npquant {ours * 1e3:6.3f} ms a query, faiss "
                      f"{installed * 1e3:6.3f} (NONE {other * 1e3:6.3f})   ratios {installed / ours:5.1f} "
                      f"[{spread[0]:.1f} … {spread[1]:.1f}], {other / ours:4.1f}   {rate:.1f} G codes/s, "
                      f"{rate * m:.0f} GB/s = {rate * m / self.from_l3:.0%} of L3", flush=True)

    def fast(self) -> None:
        print("\nP2, P3: beside faiss IndexPQFastScan, which approximates (target: 4 bits 1.5 ×; 8 bits of the same "
              "bytes 1 ×)")
        base, q = array(self.vectors), array(self.queries)
        truth = metrics.exact_neighbors(base, q[:200], 1)[1]
        for m in (16, 32):
            books, codes = self.codec(m, 4)
            wide = self.codec(m // 2, 8)
            ours_index = our_index(books, self.vectors, codes)
            found = ours_index.search(q[:50], 10, threads=1)
            same(found, faiss_index(books, codes, False).search(q[:50], 10), f"{m} × 4")
            recall = []
            for index in (ours_index, our_index(wide[0], self.vectors, wide[1]), faiss_index(books, codes, True)):
                ids = np.asarray(index.search(q[:200], 10)[1])
                recall.append(metrics.recall_at(ids, truth, 10))
            for batch, k, calls in self._cases():
                seconds, spread = self._medians([
                    lambda: our_search(books, self.vectors, codes, self.queries, k, batch, calls),
                    lambda: faiss_search(books, codes, self.queries, k, batch, calls, True),
                    lambda: our_search(*wide[:1], self.vectors, wide[1], self.queries, k, batch, calls)])
                ours, theirs, eight = seconds / batch
                rate = self.n / ours / 1e9
                print(f"  {m:2d} × 4, k = {k:3d}, {batch:4d} queries: npquant {ours * 1e3:6.3f} ms, FastScan "
                      f"{theirs * 1e3:6.3f}   ratio {theirs / ours:4.2f} [{spread[0]:.2f} … {spread[1]:.2f}]   "
                      f"{rate:.1f} G codes/s;   npquant {m // 2} × 8 {eight * 1e3:6.3f} ms, ratio "
                      f"{theirs / eight:4.2f}", flush=True)
            print(f"          recall_at(10): npquant {m} × 4 {recall[0]:.3f}, {m // 2} × 8 {recall[1]:.3f}, FastScan "
                  f"{recall[2]:.3f}")

    def levels(self) -> None:
        print("\nForced AVX2 (target: 1.3 × faiss IndexPQ, as installed and at NONE; 1 × FastScan, forced likewise and "
              "as installed)")
        avx2, theirs = Elsewhere(NPQUANT_SIMD="avx2"), Elsewhere(FAISS_SIMD_LEVEL="AVX2")
        for m, nbits in ((8, 8), (16, 8), (16, 4), (32, 4)):
            books, codes = self.codec(m, nbits)
            rivals: list[Callable[[], float]] = [
                lambda: avx2(our_search, books, self.vectors, codes, self.queries, 10, 1, 20)]
            if nbits == 8:
                rivals += [lambda: faiss_search(books, codes, self.queries, 10, 1, 5, False),
                           lambda: self.none(faiss_search, books, codes, self.queries, 10, 1, 5, False)]
            else:
                rivals += [lambda: theirs(faiss_search, books, codes, self.queries, 10, 1, 20, True),
                           lambda: faiss_search(books, codes, self.queries, 10, 1, 20, True)]
            seconds, _ = self._medians(rivals)
            print(f"  {m:2d} × {nbits}: npquant {seconds[0] * 1e3:6.3f} ms a query, faiss "
                  f"{', '.join(f'{s * 1e3:.3f}' for s in seconds[1:])}   ratios "
                  f"{', '.join(f'{s / seconds[0]:.2f}' for s in seconds[1:])}", flush=True)

    def dram(self) -> None:
        print("\n10,000,000 codes, from DRAM (target: 60 % of the bandwidth)")
        for m in (8, 16):
            books, _ = self.codec(m, 8)
            index = nq.FlatIndex(our_pq(array(books)))
            for _ in range(10):
                index.add(array(self.vectors))
            seconds = min(timed(lambda q, k: index.search(q, k, threads=1), array(self.queries), 10, 1, 20)
                          for _ in range(self.rounds))
            speed = m * index.ntotal / seconds / 1e9
            print(f"  {m:2d} × 8: {seconds * 1e3:6.2f} ms a query, {index.ntotal / seconds / 1e9:.1f} G codes/s, "
                  f"{speed:.1f} GB/s = {speed / self.from_dram:.0%} of DRAM", flush=True)

    def ivf(self) -> None:
        print("\nP6: inverted files of 1,024 lists with refinement, recall@10 of the true neighbours, 1,000 queries a "
              "call (target at equal recall: 3 × IVFPQ, 1.2 × IVFPQFastScan, 1.2 × ScaNN)")
        sift = _data.sift300k()
        for name, learn, base, q in (("SIFT, 150,000", sift.learn[:100_000], sift.base, sift.queries[:1000]),
                                     ("synthetic, 1,000,000", array(self.vectors)[:200_000], array(self.vectors),
                                      array(self.queries))):
            truth = metrics.exact_neighbors(base, q, 10)[1]
            engines = {"npquant PQ16 of residuals": OurIVF(16, 8, True, learn, base),
                       "npquant PQ16": OurIVF(16, 8, False, learn, base),
                       "npquant PQ32x4": OurIVF(32, 4, False, learn, base),
                       "npquant PQ64x4": OurIVF(64, 4, False, learn, base),
                       "faiss IVFPQ": FaissIVF("IVF1024,PQ16,RFlat", learn, base),
                       "faiss FastScan": FaissIVF("IVF1024,PQ32x4fs,RFlat", learn, base),
                       "faiss FastScan 64": FaissIVF("IVF1024,PQ64x4fs,RFlat", learn, base)}
            fronts = {who: engine.front(q, truth) for who, engine in engines.items()}
            scann = self._scann(base, q, truth)
            print(f"  {name}")
            for recall in (0.5, 0.8, 0.9, 0.95):
                chosen = {who: min((row for row in front if row[0] >= recall), key=lambda row: row[1], default=None)
                          for who, front in fronts.items()}
                rivals = {who: lambda who=who, row=row: engines[who].seconds(q, row[2])
                          for who, row in chosen.items() if row is not None}
                if not any(who.startswith("npquant") for who in rivals):
                    print(f"    recall {recall:.2f}: not reached by npquant with these settings")
                    continue
                seconds = dict(zip(rivals, self._medians(list(rivals.values()))[0]))
                ours = min(took for who, took in seconds.items() if who.startswith("npquant"))
                words = [f"{who} {1 / took:,.0f} QPS ({chosen[who][0]:.3f}: {chosen[who][2]})"
                         + ("" if who.startswith("npquant") else f" ratio {took / ours:.2f}")
                         for who, took in seconds.items()]
                best = min((row for row in scann if row[0] >= recall), key=lambda row: row[1], default=None)
                if best is not None:
                    words.append(f"ScaNN {1 / best[1]:,.0f} QPS ({best[0]:.3f}: {best[2]}) ratio {best[1] / ours:.2f}")
                print(f"    recall {recall:.2f}: " + "; ".join(words), flush=True)

    def _scann(self, base: np.ndarray, q: np.ndarray, truth: np.ndarray) -> list[Any]:
        if not self.options.scann:
            return []
        files = [kept(self.folder, name, values) for name, values in (("b", base), ("q", q), ("t", truth))]
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_scann.py")
        run = subprocess.run([self.options.scann, script, *files], capture_output=True, text=True, check=False)
        if run.returncode:
            print("  ScaNN failed:", run.stderr.strip().splitlines()[-1:])
            return []
        return json.loads(run.stdout.strip().splitlines()[-1])

    def hamming(self) -> None:
        import faiss
        print(f"\nP7: Hamming scan, {self.n:,} codes (target: 3 × faiss IndexBinaryFlat)")
        rng = np.random.default_rng(0)
        for bits in (64, 128):
            x, q = (rng.standard_normal((rows, bits)).astype(np.float32) for rows in (self.n, 1000))
            codec = nq.SignQuantizer(asymmetric=False).fit(x[:10])
            codes, asked = codec.encode(x), codec.encode(q)
            index = nq.FlatIndex(codec)
            index.add(x)
            peer = faiss.IndexBinaryFlat(bits)
            peer.add(codes)
            faiss.omp_set_num_threads(1)
            assert np.array_equal(index.search(q[:20], 10)[0], peer.search(asked[:20], 10)[0])
            for batch, k, calls in ((1, 10, 30), (1, 100, 30), (100, 10, 2), (100, 100, 2)):
                seconds, spread = self._medians([
                    lambda: timed(lambda part, k: index.search(part, k, threads=1), q, k, batch, calls),
                    lambda: timed(peer.search, asked, k, batch, calls)])
                ours, theirs = seconds / batch
                print(f"  {bits:3d} bits, k = {k:3d}, {batch:3d} queries: npquant {ours * 1e3:.3f} ms a query, faiss "
                      f"{theirs * 1e3:.3f}   ratio {theirs / ours:.1f} [{spread[0]:.1f} … {spread[1]:.1f}]   "
                      f"{self.n / ours / 1e9:.1f} G codes/s", flush=True)

    def lattice(self) -> None:
        print(f"\nThe spherical lattice, 64 bits, d = 24, {self.n:,} codes, decoded by a search (target: 3 × the "
              "time of faiss IndexPQ 8 × 8)")
        x = np.random.default_rng(0).standard_normal((self.n + 200, 24)).astype(np.float32)
        codec = nq.SphericalLattice(24, 79)
        index = nq.FlatIndex(codec)
        index.add(x[:self.n])
        codes = codec.encode(x[:200_000])
        coding = _harness.alternate([lambda: codec.encode(x[:200_000])], self.rounds, warmup=1).min()
        decoding = _harness.alternate([lambda: codec.decode(codes)], self.rounds, warmup=1).min()
        print(f"  encoding {len(codes) / coding / 1e6:.1f} M vectors/s, decoding {len(codes) / decoding / 1e6:.0f} M "
              "codes/s")
        books, theirs = self.codec(8, 8)
        for batch, calls in ((1, 5), (20, 2), (200, 1)):
            seconds, _ = self._medians([
                lambda: timed(lambda part, k: index.search(part, k, threads=1), x[self.n:], 10, batch, calls),
                lambda: faiss_search(books, theirs, self.queries, 10, batch, calls, False),
                lambda: self.none(faiss_search, books, theirs, self.queries, 10, batch, calls, False)])
            ours, installed, other = seconds / batch
            print(f"  {batch:3d} queries: npquant {ours * 1e3:7.3f} ms a query, faiss {installed * 1e3:.3f} (NONE "
                  f"{other * 1e3:.3f})   times {ours / installed:.2f}, {ours / other:.2f}", flush=True)

    def exact(self) -> None:
        import faiss
        print(f"\nP8d: exact neighbours among {self.n:,} × 128 floats (target: 5 × faiss IndexFlatL2 at 100 queries, "
              "1 × above)")
        faiss.omp_set_num_threads(1)
        base, q = array(self.vectors), nq.datasets.synthetic_low_rank(1, queries=2000).queries
        peer = faiss.IndexFlatL2(128)
        peer.add(base)
        ours = nq.metrics.exact_neighbors
        differ = (ours(base, q[:100], 10, threads=1)[1] != peer.search(q[:100], 10)[1]).mean()
        assert differ < 0.01, f"{differ:.2%} other neighbours"
        for count in (20, 100, 999) if self.options.quick else (20, 100, 999, 2000):
            rounds, self.rounds = self.rounds, 2 if self.options.quick else 3
            seconds, _ = self._medians([lambda: timed(lambda part, k: ours(base, part, k, threads=1), q, 10, count, 1),
                                        lambda: timed(peer.search, q, 10, count, 1)])
            self.rounds = rounds
            rate = 2 * self.n * 128 * count / seconds[0] / 1e9
            print(f"  {count:4d} queries: npquant {seconds[0]:.3f} s, faiss {seconds[1]:.3f}   ratio "
                  f"{seconds[1] / seconds[0]:.2f}   {rate:.0f} GFLOP/s", flush=True)

    def start(self) -> None:
        print("\nP9: a new process, warm cache: load an index of 1,000,000 codes and answer a search (target: 0.5 s "
              "compiled, 0.2 s on the NumPy twins)")
        books, codes = self.codec(8, 8)
        file = os.path.join(self.folder, "index.npq")
        nq.save(our_index(books, self.vectors, codes), file)
        import faiss
        faiss.write_index(faiss_index(books, codes, False), file + ".faiss")
        np.save(file + ".npy", array(self.queries)[:1])
        asked = f"np.load({file + '.npy'!r})"
        ours = f"import numpy as np, npquant as nq; nq.load({file!r}, mmap=True).search({asked}, 10)"
        theirs = f"import numpy as np, faiss; faiss.read_index({file + '.faiss'!r}).search({asked}, 10)"
        for what, code, environment in (("npquant", ours, {}), ("npquant, NPQUANT_JIT=1", ours, {"NPQUANT_JIT": "1"}),
                                        ("npquant, NPQUANT_JIT=0", ours, {"NPQUANT_JIT": "0"}), ("faiss", theirs, {}),
                                        ("import npquant", "import npquant", {}), ("nothing", "", {})):
            seconds = _harness.alternate([lambda code=code, environment=environment: subprocess.run(
                [sys.executable, "-c", code], check=True, env={**os.environ, **environment})], self.rounds, warmup=2)
            print(f"  {what:24s} {np.median(seconds) * 1e3:6.0f} ms", flush=True)

    def memory(self) -> None:
        print("\nP10: memory of an index of 1,000,000 codes (target: 1.1 × (code bytes + 8 n))")
        for m in (8, 16):
            books, codes = self.codec(m, 8)
            file = os.path.join(self.folder, f"m{m}.npq")
            nq.save(our_index(books, self.vectors, codes), file)
            q = array(self.queries)[:100]
            tracemalloc.start()
            index = nq.FlatIndex(our_pq(array(books)))
            for start in range(0, self.n, 50_000):
                index.add(array(self.vectors)[start:start + 50_000])
            size = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            index.search(q, 10, threads=1)
            searched = tracemalloc.get_traced_memory()[1] - size
            del index
            tracemalloc.stop()
            tracemalloc.start()
            mapped = nq.load(file, mmap=True)
            mapped_size = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            del mapped
            wanted = self.n * (m + 8)
            print(f"  {m:2d} × 8: {size / 1e6:.1f} MB = {size / wanted:.2f} × {wanted / 1e6:.0f} MB; a search of 100 "
                  f"queries adds {searched / 1e6:.1f} MB; memory-mapped {mapped_size / 1e6:.2f} MB", flush=True)

    def threads(self) -> None:
        print("\nP11: two threads over one, 1,000 queries over 1,000,000 codes (target 1.8)")
        for m in (8, 16):
            books, codes = self.codec(m, 8)
            index, q = our_index(books, self.vectors, codes), array(self.queries)
            seconds = _harness.alternate([lambda: index.search(q, 10, threads=1),
                                          lambda: index.search(q, 10, threads=2)], self.rounds, warmup=1)
            ratio = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
            print(f"  {m:2d} × 8: {ratio[1]:.2f} [{ratio[0]:.2f} … {ratio[2]:.2f}]", flush=True)


PARTS = ("flat", "fast", "levels", "dram", "ivf", "hamming", "lattice", "exact", "start", "memory", "threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, fewer cases")
    parser.add_argument("--scann", metavar="PYTHON", help="the interpreter of an environment that has ScaNN")
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    print(_harness.machine("faiss-cpu", threads=1))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        for part in options.only.split(","):
            getattr(bench, part)()


if __name__ == "__main__":
    main()
