"""A training step beside PyTorch: forward, triplet loss over given indices, backward, optimizer.

    python bench/train.py [--threads 1] [--quick]

The same data, the same initial weights, the same number of threads; both in one process and in alternation, in
blocks of a few steps. First the loss, the gradients and the parameters after a step are compared: without
agreement there are no figures. Compilation and warm-up are left out. PyTorch runs eagerly and is given the
fastest of two ways to write the loss and of its optimizer's plain, foreach and fused forms.

The limit of a step is its GEMMs: 2 · rows · weights for each of y = xW, dW = xᵀdy and dx = dyWᵀ (no dx for the
first layer), over the sgemm rate measured here in the same process. Network 2: 1.33 GFLOP.
"""

from __future__ import annotations

import _harness  # first: it chooses the BLAS kernel

import argparse
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from npquant import nn

os.environ["NPQUANT_JIT"] = "1"

try:
    import torch
except ImportError:
    sys.exit("bench/train.py measures beside PyTorch, which is not installed: pip install torch")


@dataclass(frozen=True)
class Problem:
    """A network, a batch and its triplets."""

    name: str
    widths: tuple[int, ...]
    rows: int
    batch_norm: bool
    optimizer: nn.Adam | nn.SGD
    triplets: nn.Triplets

    def flops(self) -> int:
        sizes = [a * b for a, b in zip(self.widths, self.widths[1:])]
        return 2 * self.rows * (3 * sum(sizes) - sizes[0])


# Outputs have norm 1, so with this gap every triplet stays active and the work does not fade as training goes on.
GAP = 5.0


def by_class(negatives: int | None) -> nn.Triplets:
    """64 classes × 4, every positive; so many random negatives a pair, or (None) all of them, averaged."""
    similar = nn.same_label(np.repeat(np.arange(64), 4))
    anchor, positive = np.nonzero(similar & ~np.eye(256, dtype=bool))
    rng = np.random.default_rng(1)
    chosen = [np.flatnonzero(~similar[a]) if negatives is None else
              rng.choice(np.flatnonzero(~similar[a]), negatives, replace=False) for a in anchor]
    count = len(chosen[0])
    ids = np.repeat(anchor, count), np.repeat(positive, count), np.concatenate(chosen)
    return nn.Triplets(*ids, np.full(len(ids[0]), 1 / count, np.float32))


def problems() -> list[Problem]:
    third = np.arange(64)
    return [
        Problem("784-512-32, 256 rows, 768 triplets, Adam", (784, 512, 32), 256, False, nn.Adam(1e-3),
                by_class(1)),
        Problem("784-512-32, 256 rows, all triplets, Adam", (784, 512, 32), 256, False, nn.Adam(1e-3),
                by_class(None)),
        Problem("128-1024-1024-24, 64 × 3 rows, batch norm, SGD", (128, 1024, 1024, 24), 192, True,
                nn.SGD(0.01, 0.9), nn.Triplets(third, third + 64, third + 128)),
    ]


class Ours:
    def __init__(self, problem: Problem) -> None:
        self.net = nn.mlp(problem.widths[0], problem.widths[1:-1], problem.widths[-1],
                          batch_norm=problem.batch_norm, rng=np.random.default_rng(0))
        self.optimizer, self.triplets = problem.optimizer, problem.triplets
        self.state = self.optimizer.init(self.net.parameters)
        self.grads = np.empty_like(self.net.parameters)
        self.loss = nn.Triplet(GAP)
        self.parts = np.zeros(4)

    def step(self, x: np.ndarray) -> float:
        clock = time.perf_counter
        t0 = clock()
        y, cache = self.net.forward(x, train=True)
        t1 = clock()
        value, dy = self.loss.value_and_grad(y, self.triplets)
        t2 = clock()
        self.net.backward(dy, cache, need_dx=False, out=self.grads)
        self.net = self.net.absorb(cache)
        t3 = clock()
        self.state = self.optimizer.update(self.net.parameters, self.grads, self.state)
        self.parts += np.diff([t0, t1, t2, t3, clock()])
        return value

    def arrays(self) -> list[np.ndarray]:
        return [a for layer in self.net.layers for a in layer.params]


class Torch:
    def __init__(self, problem: Problem, start: list[np.ndarray], loss: str, optimizer: str) -> None:
        layers: list[torch.nn.Module] = []
        last = len(problem.widths) - 2
        for i, (a, b) in enumerate(zip(problem.widths, problem.widths[1:])):
            layers.append(torch.nn.Linear(a, b))
            if i < last:
                layers += [torch.nn.BatchNorm1d(b)] if problem.batch_norm else []
                layers.append(torch.nn.ReLU())
        self.net = torch.nn.Sequential(*layers)
        with torch.no_grad():
            for p, a in zip(self.net.parameters(), start):
                p.copy_(torch.from_numpy(np.ascontiguousarray(a.T)))
        form = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[optimizer]
        ours = problem.optimizer
        parameters = self.net.parameters()
        self.optimizer = torch.optim.Adam(parameters, ours.lr, ours.betas, ours.eps, **form) \
            if isinstance(ours, nn.Adam) else torch.optim.SGD(parameters, ours.lr, ours.momentum, **form)
        self.a, self.p, self.n = (torch.from_numpy(np.ascontiguousarray(ids)) for ids in problem.triplets[:3])
        weight = problem.triplets.weight
        self.weight = None if weight is None else torch.from_numpy(weight)
        self.energy = {"rows": self.by_rows, "matrix": self.by_matrix}[loss]

    def by_rows(self, y: torch.Tensor) -> torch.Tensor:
        anchor = y[self.a]
        return GAP + (anchor - y[self.p]).norm(dim=1) - (anchor - y[self.n]).norm(dim=1)

    def by_matrix(self, y: torch.Tensor) -> torch.Tensor:
        apart = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
        return GAP + apart[self.a, self.p] - apart[self.a, self.n]

    def step(self, x: torch.Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        y = torch.nn.functional.normalize(self.net(x))
        terms = torch.relu(self.energy(y))
        total = (terms if self.weight is None else terms * self.weight).sum()
        total.backward()
        self.optimizer.step()
        return total.item() / len(x)

    def arrays(self) -> list[np.ndarray]:
        return [p.detach().numpy().T for p in self.net.parameters()]

    def gradients(self) -> list[np.ndarray]:
        return [p.grad.numpy().T for p in self.net.parameters()]


def validate(problem: Problem, x: np.ndarray, loss: str, form: str) -> None:
    """Raise unless loss, gradients and parameters agree after a step, and the loss after four more.

    Gradients of both are compared with those of the same network in float64.
    """
    ours = Ours(problem)
    net = ours.net
    theirs = Torch(problem, ours.arrays(), loss, form)
    tensor = torch.from_numpy(x)
    exact = nn.Sequential.from_config(net.config(), net.parameters.astype(np.float64), net.running)
    y, cache = exact.forward(x, train=True)
    value, dy = ours.loss.value_and_grad(y, problem.triplets)
    truth = exact.backward(dy, cache, need_dx=False)[1]
    np.testing.assert_allclose([ours.step(x), theirs.step(tensor)], value, rtol=1e-5)
    places = np.cumsum([a.size for a in ours.arrays()])[:-1]
    for mine, other, wanted, p, q in zip(np.split(ours.grads, places), theirs.gradients(),
                                         np.split(truth, places), ours.arrays(), theirs.arrays()):
        # A bias before batch norm has the gradient 0: its noise is measured by the rest of the network.
        size = max(np.abs(wanted).max(), np.abs(truth).max() / 10)
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4 * size)
        np.testing.assert_allclose(other.ravel(), wanted, rtol=0, atol=1e-4 * size)
        # Adam's first step is lr · sign(g): where g is rounding noise, so is the sign.
        clear = np.abs(wanted.reshape(p.shape)) > 1e-3 * size if isinstance(problem.optimizer, nn.Adam) else \
            np.ones(p.shape, bool)
        np.testing.assert_allclose(p[clear], q[clear], rtol=0, atol=1e-5)
    for _ in range(4):
        ours.step(x)
        theirs.step(tensor)
    np.testing.assert_allclose(ours.step(x), theirs.step(tensor), rtol=2e-3)


def timed(step, batches, steps: int) -> float:
    start = time.perf_counter()
    for i in range(steps):
        step(batches[i % len(batches)])
    return (time.perf_counter() - start) / steps


def sgemm_rate() -> float:
    """GFLOP/s of NumPy's sgemm on 1024³: the best of a few."""
    a, b, out = (np.ones((1024, 1024), np.float32) for _ in range(3))
    best = min(timed(lambda _: np.matmul(a, b, out=out), [None], 3) for _ in range(6))
    return 2 * 1024**3 / best / 1e9


def measure(problem: Problem, rounds: int, steps: int) -> None:
    rng = np.random.default_rng(2)
    batches = [rng.standard_normal((problem.rows, problem.widths[0])).astype(np.float32) for _ in range(4)]
    tensors = [torch.from_numpy(x) for x in batches]
    ways = [(loss, form) for loss in ("rows", "matrix") for form in ("plain", "foreach", "fused")]
    for loss, form in ways:
        validate(problem, batches[0], loss, form)
    start = Ours(problem).arrays()

    def trial(way: tuple[str, str]) -> float:
        rival = Torch(problem, start, *way)
        timed(rival.step, tensors, 4)
        return min(timed(rival.step, tensors, steps) for _ in range(3))
    best = min(ways, key=trial)
    ours, theirs = Ours(problem), Torch(problem, start, *best)
    timed(ours.step, batches, 10)
    timed(theirs.step, tensors, 10)
    ours.parts[:] = 0
    rate = sgemm_rate()
    times = np.array([(timed(ours.step, batches, steps), timed(theirs.step, tensors, steps))
                      for _ in range(rounds)]) * 1e3
    low, mid, high = np.percentile(times, [25, 50, 75], axis=0)
    ratio = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    gflop = problem.flops() / 1e9
    reached = gflop / mid * 1e3
    print(f"\n{problem.name}")
    print(f"  limit     {gflop:.3f} GFLOP / {rate:.0f} GFLOP/s sgemm = {gflop / rate * 1e3:.2f} ms")
    print(f"  npquant   {mid[0]:6.2f} ms  [{low[0]:.2f} … {high[0]:.2f}]   {reached[0]:5.0f} GFLOP/s, "
          f"{reached[0] / rate:.0%} of sgemm")
    print(f"  torch     {mid[1]:6.2f} ms  [{low[1]:.2f} … {high[1]:.2f}]   {reached[1]:5.0f} GFLOP/s, "
          f"{reached[1] / rate:.0%} of sgemm   (loss over {best[0]}, {best[1]} optimizer: its fastest)")
    print(f"  ratio     {ratio[1]:6.2f}     [{ratio[0]:.2f} … {ratio[2]:.2f}]   torch / npquant, round by round")
    shares = ours.parts / (rounds * steps) * 1e3
    print("  of which  " + ", ".join(f"{name} {ms:.2f}" for name, ms in
                                     zip(("forward", "loss", "backward", "optimizer"), shares)) + " ms (means)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        torch.set_num_threads(options.threads)  # the limits reach PyTorch's OpenMP too
        blas = "; ".join(f"{i['internal_api']} {i.get('version')} {i.get('architecture', '')} "
                         f"{i['num_threads']} thread(s)" for i in threadpool_info())
        print(_harness.machine("torch", threads=options.threads))
        print(f"{blas}; torch: {torch.backends.cpu.get_cpu_capability()}, mkl {torch.backends.mkl.is_available()}")
        for problem in problems():
            measure(problem, *((7, 8) if options.quick else (40, 10)))


if __name__ == "__main__":
    main()
