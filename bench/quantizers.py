"""Training and encoding of quantizers beside faiss, nanopq, scikit-learn and plain NumPy.

    python bench/quantizers.py [--quick] [--only encode,train,kmeans,opq,residual,lsq,threads,memory] [--slow]
    python bench/quantizers.py --all [--quick] [--rows REGEX] [--slow]       the table of all codecs at 32, 64, 128 bits
    python bench/quantizers.py --print                                       that table from the rows kept, at once

Real data: sift300k, learn → train, base → encode; d = 128. One thread unless a row says otherwise. Answers are
compared first: with the same codebooks the same codes (ties aside), training by the distortion it ends with. faiss is
timed as installed and, in a process of its own, with FAISS_SIMD_LEVEL=NONE, which is faster on some processors; its
better time counts. Encoding takes faiss's best batch. Slow rivals (faiss's OPQ takes half a minute a fit) are timed
with ``--slow`` and kept with their date and machine in peers.json.

The table: R@k, the true nearest neighbour among the first k by ADC, of 150,000 vectors and 2,000 queries; ours in
codecs.json, rivals in peers.json. ``--rows`` measures the rows whose name matches, and takes the others from there.
Its seconds, and those of ``residual`` and ``lsq``, are of processor time, for machines with other work.

Limits are of this core, measured in the same run: floating-point operations at the rate of a large product.
"""

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPQUANT_NUM_THREADS"):
    os.environ[name] = "1"

import _harness  # before NumPy: it chooses the BLAS kernel

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import _data
import _table
import numpy as np
from _peers import Elsewhere, array, faiss_pq, kept

import npquant as nq
from npquant import metrics

QUICK = 20_000
BATCHES = (1_000, 10_000, 50_000)


# ---------------------------------------------------------------------- faiss, here and in a process at its other level

def faiss_encode(x: str, codebooks: str, batch: int) -> float:
    data, pq = array(x), faiss_pq(array(codebooks))
    began = time.perf_counter()
    for start in range(0, len(data), batch):
        pq.compute_codes(data[start:start + batch])
    return time.perf_counter() - began


def faiss_train(x: str, m: int) -> tuple[float, float]:
    import faiss
    data = array(x)
    pq = faiss.ProductQuantizer(data.shape[1], m, 8)
    began = time.perf_counter()
    pq.train(data)
    seconds = time.perf_counter() - began
    return seconds, metrics.distortion(data, pq.decode(pq.compute_codes(data)))


def faiss_kmeans(x: str, K: int) -> tuple[float, float]:
    import faiss
    data = array(x)
    km = faiss.Kmeans(data.shape[1], K, niter=25, seed=1, max_points_per_centroid=10**9)
    began = time.perf_counter()
    km.train(data)
    seconds = time.perf_counter() - began
    index = faiss.IndexFlatL2(data.shape[1])
    index.add(km.centroids)
    return seconds, float(index.search(data, 1)[0].sum(dtype=np.float64))


# ----------------------------------------------------------------------------------------------------------- rows

class Bench:
    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder = options, folder
        self.rounds = 3 if options.quick else 7
        sift = _data.sift300k()
        rng = np.random.default_rng(0)
        self.learn = np.ascontiguousarray(sift.learn[rng.permutation(len(sift.learn))[:100_000]])
        self.base = sift.base
        self.other = Elsewhere(FAISS_SIMD_LEVEL="NONE")
        a, b = (np.ones((2048, 2048), np.float32) for _ in range(2))
        self.rate = 2 * 2048**3 / min(_harness.alternate([lambda: a @ b], 5)[:, 0]) / 1e9
        print(f"limit: {self.rate:.0f} GFLOP/s (a product of 2048³ floats, one thread)")

    def path(self, name: str, values: np.ndarray) -> str:
        return kept(self.folder, name, values)

    def encode(self) -> None:
        import nanopq
        print("\nEncoding (M vectors/s; target: 3 × faiss, 5 × nanopq, 2 × NumPy)")
        million = nq.datasets.synthetic_low_rank(1_000_000 if not self.options.quick else 200_000, queries=1).X
        for data_name, train, data in (("SIFT base", self.learn, self.base), ("synthetic", million[:100_000], million)):
            for m in (8, 16):
                pq = nq.ProductQuantizer(m=m, random_state=0, n_iter=5, threads=1).fit(train)
                x, books = self.path("x", data), self.path(f"books{m}", pq.codebooks_)
                sample = data[:20_000]
                ours, theirs = pq.encode(sample), faiss_pq(pq.codebooks_).compute_codes(sample)
                assert (ours != theirs).mean() < 1e-3, "faiss gives other codes"
                peer = nanopq.PQ(m, 256, verbose=False)
                peer.codewords, peer.Ds = pq.codebooks_, data.shape[1] // m
                assert (ours != peer.encode(sample)).mean() < 1e-3, "nanopq gives other codes"
                batch = min(BATCHES, key=lambda size, x=x, books=books: faiss_encode(x, books, size))
                half = 0.5 * np.square(pq.codebooks_).sum(axis=2)

                def gemm(data: np.ndarray = data, pq: Any = pq, half: np.ndarray = half, m: int = m) -> None:
                    dsub = data.shape[1] // m
                    for start in range(0, len(data), 4096):
                        for j in range(m):
                            block = data[start:start + 4096, j * dsub:(j + 1) * dsub]
                            (half[j] - block @ pq.codebooks_[j].T).argmin(axis=1)
                few = data[:50_000]
                seconds = _harness.alternate([
                    lambda pq=pq, data=data: pq.encode(data),
                    lambda x=x, books=books, batch=batch: faiss_encode(x, books, batch),
                    lambda few=few, peer=peer: peer.encode(few), lambda few=few, gemm=gemm: gemm(few)],
                    self.rounds, warmup=1)
                other = min(self.other(faiss_encode, x, books, batch) for _ in range(self.rounds))
                speed = np.array([len(data), len(data), len(few), len(few)]) / 1e6 / np.median(seconds, axis=0)
                fastest = max(speed[1], len(data) / 1e6 / other)
                gflops = 2 * data.shape[1] * 256 * speed[0] / 1e3
                print(f"  {data_name:10s} {m:2d} × 8: npquant {speed[0]:.2f}   faiss {speed[1]:.2f} (NONE "
                      f"{len(data) / 1e6 / other:.2f}; batch {batch})   nanopq {speed[2]:.2f}   NumPy {speed[3]:.2f}   "
                      f"ratios {speed[0] / fastest:.1f}, {speed[0] / speed[2]:.1f}, {speed[0] / speed[3]:.1f}   "
                      f"[{gflops:.0f} GFLOP/s, {gflops / self.rate:.0%} of the limit]", flush=True)

    def _ending(self, name: str, ours: Callable[[], tuple[float, float]],
                rivals: dict[str, Callable[[], tuple[float, float]]]) -> None:
        """Print seconds and what a training ended with, in turns; slow rivals' rows are kept."""
        runs: dict[str, list[tuple[float, float]]] = {"npquant": [], **{rival: [] for rival in rivals}}
        for _ in range(self.rounds):
            runs["npquant"].append(ours())
            for rival, train in rivals.items():
                runs[rival].append(train())
        median = {who: np.median(np.array(all_), axis=0) for who, all_ in runs.items()}
        best = min(end for _, end in median.values())
        print(f"  {name}", flush=True)
        for who, (seconds, end) in median.items():
            spread = np.ptp([run[0] for run in runs[who]])
            print(f"    {who:22s} {seconds:7.3f} s ± {spread / 2:.3f}   ends {end / best - 1:+6.2%} above the best"
                  + ("" if who == "npquant" else f"   ratio {seconds / median['npquant'][0]:.2f}"), flush=True)

    def kmeans(self) -> None:
        import sklearn.cluster
        print("\nk-means, 100,000 points (target: d ≤ 16 1.5 × faiss, 3 × scikit-learn; d = 128 1.2 × faiss)")
        for K, columns in ((256, 16), (1024, 128)):
            x = np.ascontiguousarray(self.learn[:, :columns])
            file = self.path(f"k{K}", x)

            def ours(x: np.ndarray = x, K: int = K) -> tuple[float, float]:
                began = time.perf_counter()
                km = nq.KMeans(K, random_state=1, threads=1).fit(x)
                return time.perf_counter() - began, km.inertia_

            def sklearn_kmeans(x: np.ndarray = x, K: int = K) -> tuple[float, float]:
                began = time.perf_counter()
                km = sklearn.cluster.KMeans(K, init="random", n_init=1, max_iter=25, random_state=1).fit(x)
                return time.perf_counter() - began, km.inertia_
            self._ending(f"K = {K}, d = {columns}", ours, {
                "faiss": lambda file=file, K=K: faiss_kmeans(file, K),
                "faiss, NONE": lambda file=file, K=K: self.other(faiss_kmeans, file, K),
                "scikit-learn": sklearn_kmeans})

    def train(self) -> None:
        import nanopq
        print("\nPQ training, 100,000 points (target: 1.5 × faiss, 3 × nanopq)")
        file = self.path("learn", self.learn)
        for m in (8, 16):
            def ours(m: int = m) -> tuple[float, float]:
                began = time.perf_counter()
                pq = nq.ProductQuantizer(m=m, random_state=1, threads=1).fit(self.learn)
                return time.perf_counter() - began, -pq.score(self.learn)

            def nanopq_train(m: int = m) -> tuple[float, float]:
                pq = nanopq.PQ(m, 256, verbose=False)
                began = time.perf_counter()
                pq.fit(self.learn, iter=20, seed=1)
                seconds = time.perf_counter() - began
                return seconds, metrics.distortion(self.learn, pq.decode(pq.encode(self.learn)))
            self._ending(f"{m} × 8", ours, {"faiss": lambda m=m: faiss_train(file, m),
                                            "faiss, NONE": lambda m=m: self.other(faiss_train, file, m),
                                            "nanopq": nanopq_train})

    def opq(self) -> None:
        print("\nOPQ, 100,000 points: distortion, seconds (target: no worse than the best start of any, 1/5 of faiss's "
              "time)")
        for m in (8, 16):
            rows = {}
            began = time.perf_counter()
            plain = nq.ProductQuantizer(m=m, random_state=1, threads=1).fit(self.learn)
            rows["npquant, plain PQ"] = (-plain.score(self.learn), time.perf_counter() - began, "")
            began = time.perf_counter()
            opq = nq.OptimizedProductQuantizer(m=m, random_state=1, threads=1).fit(self.learn)
            rows["npquant, OPQ"] = (metrics.distortion(self.learn, opq.decode(opq.encode(self.learn))),
                                    time.perf_counter() - began, "")
            if self.options.slow:
                _table.keep_peer(f"opq {m}", {**self._slow_opq(m), "when": _harness.machine("faiss-cpu", "nanopq")})
            peers = _table.peers().get(f"opq {m}", {})
            for who, value in peers.items():
                if who != "when":
                    rows[who] = (*value, f"   (kept from {peers['when'][:10]})")
            for who, (error, seconds, note) in rows.items():
                print(f"  {m:2d} × 8  {who:32s} {error:9.1f}  {seconds:7.2f} s{note}", flush=True)
            self._opq_encode(m, opq)

    def _opq_encode(self, m: int, opq: nq.OptimizedProductQuantizer) -> None:
        import faiss
        matrix = faiss.LinearTransform(128, 128, False)
        faiss.copy_array_to_vector(opq.rotation_.ravel(), matrix.A)
        matrix.is_trained = True
        index = faiss.IndexPreTransform(matrix, faiss.IndexPQ(128, m, 8))
        faiss.downcast_index(index.index).pq = faiss_pq(opq.codebooks_)
        index.is_trained = index.index.is_trained = True
        sample = self.base[:5000]
        assert (opq.encode(sample) != index.sa_encode(sample)).mean() < 1e-3, "faiss gives other codes"

        def theirs() -> None:
            for start in range(0, len(self.base), 1000):
                index.sa_encode(self.base[start:start + 1000])
        seconds = np.median(_harness.alternate([lambda: opq.encode(self.base), theirs], self.rounds, warmup=1), axis=0)
        speed = len(self.base) / seconds / 1e6
        print(f"  {m:2d} × 8  encoding: npquant {speed[0]:.2f} M vectors/s, faiss {speed[1]:.2f}, ratio "
              f"{speed[0] / speed[1]:.1f}", flush=True)

    def _slow_opq(self, m: int) -> dict[str, tuple[float, float]]:
        import faiss
        import nanopq
        rows = {}
        for name in ("default start", "identity start"):
            matrix = faiss.OPQMatrix(128, m)
            matrix.niter = 50
            began = time.perf_counter()
            if name == "identity start":
                faiss.copy_array_to_vector(np.eye(128, dtype=np.float32).ravel(), matrix.A)
                matrix.is_trained = True  # trains on from the matrix that is there
            matrix.train(self.learn)
            rotated = matrix.apply(self.learn)
            pq = faiss.ProductQuantizer(128, m, 8)
            pq.train(rotated)
            seconds = time.perf_counter() - began
            error = metrics.distortion(rotated, pq.decode(pq.compute_codes(rotated)))
            rows[f"faiss OPQMatrix, {name}"] = (error, seconds)
        for name, parametric in (("default start", False), ("parametric start", True)):
            opq = nanopq.OPQ(m, 256, verbose=False)
            began = time.perf_counter()
            opq.fit(self.learn, parametric_init=parametric, pq_iter=20, rotation_iter=10, seed=1)
            seconds = time.perf_counter() - began
            decoded = opq.decode(opq.encode(self.learn))
            rows[f"nanopq OPQ, {name}"] = (metrics.distortion(self.learn, decoded), seconds)
        return rows

    def residual(self) -> None:
        print("\nResidual, 8 × 8 and a byte for the norm (target: no more distortion than faiss's with use_beam_LUT=1, "
              "3 × as fast)")
        for beam in (1, 5, 16):
            ours = self._beside(f"residual, beam {beam}",
                                lambda beam=beam: nq.ResidualQuantizer(8, beam=beam, random_state=1),
                                lambda beam=beam: _table.faiss_sum("ResidualQuantizer", 8, beam))
            self._same_codes(ours, beam)
        for name, make in (("residual, beam 10", lambda: nq.ResidualQuantizer(8, beam=10, random_state=1)),
                           ("GRVQ, beam 10", lambda: nq.GeneralizedResidualQuantizer(8, beam=10, random_state=1))):
            self._beside(name, make)

    def _beside(self, name: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None = None) -> Any:
        """Print ours beside faiss's, trained on the same vectors and encoding in turns; return ours."""
        os.environ["NPQUANT_JIT"] = "1"
        learn, held = self.learn[:QUICK if self.options.quick else _table.MOST], self.base[:QUICK]
        makers = {"npquant": ours, **({"faiss": theirs} if theirs else {})}
        runs = [{who: _table.trained(make, learn) for who, make in makers.items()}
                for _ in range(1 if self.options.quick else 2)]
        speeds: dict[str, list[float]] = {who: [] for who in makers}
        errors = {}
        for _ in range(3):
            for who in makers:
                began = time.process_time()
                codes = runs[0][who].encode(held)
                speeds[who].append(len(held) / 1e3 / (time.process_time() - began))
                errors[who] = metrics.distortion(held, runs[0][who].decode(codes))
        train = {who: min(run[who].seconds for run in runs) for who in makers}
        speed = {who: float(np.median(speeds[who])) for who in makers}
        for who in makers:
            ratios = "" if who == "npquant" else (
                f"   ratios {train[who] / train['npquant']:.2f}, {speed['npquant'] / speed[who]:.2f}, distortion of "
                f"ours {errors['npquant'] / errors[who] - 1:+.1%}")
            print(f"  {name:18s} {who:8s} distortion {errors[who]:7,.0f}   training {train[who]:6.1f} s   encoding "
                  f"{speed[who]:6.1f} k/s{ratios}", flush=True)
        return runs[0]["npquant"].codec

    def lsq(self) -> None:
        print("\nLSQ, the last byte for the norm (target: no more distortion than faiss's, 3 × as fast)")
        os.environ["NPQUANT_JIT"] = "1"
        sift, machine = _data.sift300k(), _harness.machine("faiss-cpu", threads=1)
        for bits in (32,) if self.options.quick else (32, 64):
            code = f"{bits // 8 - 1} × 8 + norm"
            ours, theirs = (next(codec for codec in _table.codecs(bits) if (codec.name, codec.code) == (name, code))
                            for name in ("LSQ", "faiss LocalSearch"))
            mine = _table.row(ours._replace(vectors=_table.MOST), sift, machine)
            print(_table.shown(mine), flush=True)
            if self.options.slow:
                _table.keep(theirs, _table.row(theirs, sift, machine))
            row = _table.kept().get(theirs.key)
            if row:
                print(f"{_table.shown(row)}   kept from {row['machine'][:10]}; ratios "
                      f"{row['train'] / mine['train']:.2f}, {mine['encode'] / row['encode']:.2f}, distortion of ours "
                      f"{mine['distortion'] / row['distortion'] - 1:+.1%}", flush=True)

    def _same_codes(self, codec: nq.ResidualQuantizer, beam: int) -> None:
        """Check that faiss's coder finds the same codes by our codebooks, but for ties and another order of sums."""
        import faiss
        peer = faiss.ResidualQuantizer(128, codec.m, 8)
        faiss.copy_array_to_vector(codec.codebooks_.ravel(), peer.codebooks)
        peer.is_trained, peer.max_beam_size, peer.use_beam_LUT = True, beam, 1
        peer.compute_codebook_tables()
        same = (codec.encode(self.base[:2000])[:, :-1] == peer.compute_codes(self.base[:2000] - codec.center_)).all(1)
        print(f"  beam {beam}: the same codes as faiss's by our codebooks for {same.mean():.2%} of the vectors")
        assert same.mean() > 0.99, "faiss gives other codes"

    def threads(self) -> None:
        print("\nTwo threads over one (target 1.8)")
        pq = nq.ProductQuantizer(m=8, random_state=0, n_iter=5, threads=1).fit(self.learn)
        million = nq.datasets.synthetic_low_rank(1_000_000, queries=1).X
        for name, task in (("encode 1,000,000 vectors, 8 × 8", lambda threads: pq.set_params(threads=threads).encode(
                million)), ("k-means, K = 1024, d = 128, 5 iterations", lambda threads: nq.KMeans(
                    1024, init="random", max_iter=5, tol=0, random_state=0, threads=threads).fit(self.learn))):
            seconds = _harness.alternate([lambda task=task: task(1), lambda task=task: task(2)], self.rounds, warmup=1)
            ratio = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
            print(f"  {name:42s} {ratio[1]:.2f} [{ratio[0]:.2f} … {ratio[2]:.2f}]   (load {os.getloadavg()[0]:.1f})",
                  flush=True)

    def memory(self) -> None:
        rows = 1_000_000 if self.options.quick else 10_000_000
        print(f"\nPeak memory over the start, {rows:,} × 32 uint8 vectors in a memory-mapped file "
              f"({rows * 32 / 1e6:.0f} MB; {rows * 128 / 1e6:.0f} MB as float32)")
        file = os.path.join(self.folder, "large.npy")
        large = np.lib.format.open_memmap(file, "w+", np.uint8, (rows, 32))
        rng = np.random.default_rng(0)
        for start in range(0, rows, 1 << 18):
            large[start:start + (1 << 18)] = rng.integers(0, 256, (min(1 << 18, rows - start), 32), np.uint8)
        large.flush()
        del large
        for task in ("fit", "encode"):
            run = subprocess.run([sys.executable, __file__, "--measure", task, file], capture_output=True, text=True,
                                 check=True)
            print(f"  {task:8s} {run.stdout.strip()}", flush=True)


def all_codecs(options: argparse.Namespace) -> None:
    """Print the table of all codecs, rows as they come and then in order; keep them, unless quick."""
    os.environ["NPQUANT_JIT"] = "1"
    warnings.simplefilter("ignore", nq.NpquantWarning)  # of more vectors than are drawn
    sift = _data.sift300k()
    rows = {} if options.quick else _table.kept()
    if options.quick:
        base, queries = sift.base[:QUICK], sift.queries[:500]
        near = metrics.exact_neighbors(base, queries, 1)[1].astype(np.int32)
        sift = _data.Sift(sift.learn[:QUICK], base, queries, near)
        print(f"--quick: {QUICK:,} vectors to learn from and {QUICK:,} to search in, 500 queries, 64 bits, no slow "
              "rivals; nothing is kept")
    machine = _harness.machine("faiss-cpu", threads=1)
    print(_table.HEAD)
    for bits in _table.BITS[1:2] if options.quick else _table.BITS:
        for codec in _table.codecs(bits):
            if re.search(options.rows, codec.key) and (options.slow or not codec.slow):
                rows[codec.key] = _table.row(codec, sift, machine)
                print(_table.shown(rows[codec.key]), flush=True)
                if not options.quick:
                    _table.keep(codec, rows[codec.key])
    print(_table.table(rows))


def measure(task: str, file: str) -> None:
    """Print the growth of this process's own memory; pages of the mapped file can be dropped and do not count."""
    x = np.load(file, mmap_mode="r")
    pq = nq.ProductQuantizer(m=4, random_state=0, n_iter=3)
    pq.fit(np.asarray(x[:5000]))
    before = _own_memory()
    peak = [before]
    began = time.perf_counter()
    if task == "fit":
        pq.fit(x)
        peak.append(_own_memory())
    else:
        for codes in pq.encode_blocks(x):
            peak.append(_own_memory())
            del codes
    print(f"{max(peak) - before:6.1f} MB, {time.perf_counter() - began:.1f} s (peak resident set with the file's pages "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB)")


def _own_memory() -> float:
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(float(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, smaller synthetic data")
    parser.add_argument("--slow", action="store_true", help="time the slow rivals anew, and keep their rows")
    parser.add_argument("--only", default="encode,kmeans,train,opq,residual,lsq,threads,memory")
    parser.add_argument("--all", action="store_true", help="the table of all codecs, nothing else")
    parser.add_argument("--rows", metavar="REGEX", default="", help="of --all: measure these, take others as kept")
    parser.add_argument("--print", action="store_true", help="the table from the rows kept, nothing else")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    if options.print:
        print(_table.table(_table.kept()))
        print(f"\nREADME\n\n{_table.summary(_table.kept())}")
        return
    print(_harness.machine("faiss-cpu", "nanopq", "scikit-learn", threads=1))
    if options.all:
        all_codecs(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        for part in options.only.split(","):
            getattr(bench, part)()


if __name__ == "__main__":
    main()
