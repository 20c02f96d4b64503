"""Training and encoding of quantizers beside faiss, nanopq, scikit-learn and plain NumPy.

    python bench/quantizers.py [--quick] [--only encode,train,kmeans,opq,threads,memory] [--slow]

Real data: sift300k, learn → train, base → encode; d = 128. One thread unless a row says otherwise. Answers are
compared first: with the same codebooks the same codes (ties aside), training by the distortion it ends with. faiss is
timed as installed and, in a process of its own, with FAISS_SIMD_LEVEL=NONE, which is faster on some processors; its
better time counts. Encoding takes faiss's best batch. Slow rivals (faiss's OPQ takes half a minute a fit) are timed
with ``--slow`` and kept with their date and machine in peers.json.

Limits are of this core, measured in the same run: floating-point operations at the rate of a large product.
"""

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPQUANT_NUM_THREADS"):
    os.environ[name] = "1"

import _harness  # before NumPy: it chooses the BLAS kernel

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _data
import numpy as np
from _peers import Elsewhere, array, faiss_pq, kept

import npquant as nq
from npquant import metrics

PEERS = Path(__file__).with_name("peers.json")
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
        self.peers = json.loads(PEERS.read_text()) if PEERS.exists() else {}
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
                self.peers[f"opq {m}"] = {**self._slow_opq(m), "when": _harness.machine("faiss-cpu", "nanopq")}
                PEERS.write_text(json.dumps(self.peers, indent=1) + "\n")
            for who, value in self.peers.get(f"opq {m}", {}).items():
                if who != "when":
                    rows[who] = (*value, f"   (kept from {self.peers[f'opq {m}']['when'][:10]})")
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
    parser.add_argument("--only", default="encode,kmeans,train,opq,threads,memory")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    print(_harness.machine("faiss-cpu", "nanopq", "scikit-learn", threads=1))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        for part in options.only.split(","):
            getattr(bench, part)()


if __name__ == "__main__":
    main()
