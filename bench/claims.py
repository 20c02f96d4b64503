"""Do the output rules help where codes are the bottleneck? Learned 16-bit codes of Omniglot, rule by rule.

    python bench/claims.py --data omniglot [--codecs] [--quick] [--seeds 10,11,12] [--epochs 60] [--json FILE]

968 classes (characters in four rotations), 12 drawings each to learn from, 16 in the database, 2 others as queries;
codes of 4 blocks of 4 bits; MAP of the whole ranking by ADC with continuous queries, ties by expectation. One set-up
for all rules: PCA with soft whitening to 128, MLP 128-512-32 with normalised outputs, input dropout 0.2, Adam with
cosine decay from 5e-3 and decoupled weight decay 1e-3, 60 epochs of batches of 64 × 4, triplets with up to 3 positives
and all violating negatives, gap 0.2; the pull on from epoch 20, full at 30; the final codebooks the better of
warm-started and fresh ones, for every rule. The penalty stands at its best strength *on the test queries* (of those
tried), which flatters it; the other rules at their defaults.

With ``--codecs``: the same for each codec that has 16-bit codes, four rules each (the penalty at 0.3). Sums of two
codewords of 8 bits have a third byte for their norm: the row "+ norm" ranks by distances with it, 24 bits stored; the
row without ranks by inner products, which do not look at it (the outputs have norm 1), 16 bits used.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products this small are not worth a second thread

import _harness  # before NumPy: it chooses the BLAS kernel

import argparse
import json
import time
from typing import Any

import _data
import numpy as np

import npquant as nq
from npquant import metrics, nn

PENALTIES = (0.1, 0.2, 0.3, 0.5)
RULES: dict[str, Any] = {
    "plain": "plain",
    **{f"penalty {strength}": nn.quantization_penalty(strength) for strength in PENALTIES},
    "straight-through": "straight_through",
    **{f"straight-through + penalty {strength}": ("straight_through", nn.quantization_penalty(strength))
       for strength in PENALTIES[1:3]},
    "GSL": "gsl",
    "GSL, ray": nn.gradient_snapping(mode="ray"),
    "GSL, nearest codeword": nn.gradient_snapping(mode="nearest"),
    "SSM": "ssm",
    "SSM, hybrid": "hybrid",
    "straight-through + SSM": ("straight_through", "ssm"),
    "straight-through + hybrid": ("straight_through", "hybrid"),
}
PQ = nq.ProductQuantizer(m=4, nbits=4)
# Of each: the dimension of the outputs, and the codec; those of 3 bytes are ranked with and without the last.
CODECS: dict[str, tuple[int, Any]] = {
    "PQ 4 × 4": (32, PQ),
    "OPQ 4 × 4": (32, nq.OptimizedProductQuantizer(m=4, nbits=4)),
    "PQ 2 × 8": (32, nq.ProductQuantizer(m=2, nbits=8)),
    "residual 2 × 8": (32, nq.ResidualQuantizer(m=2, nbits=8)),
    "GRVQ 2 × 8, no norm": (32, nq.GeneralizedResidualQuantizer(m=2, nbits=8, regularization=1.0, norm="constant")),
    "GRVQ 2 × 8": (32, nq.GeneralizedResidualQuantizer(m=2, nbits=8)),
    "additive 2 × 8": (32, nq.AdditiveQuantizer(m=2, nbits=8)),
    "LSQ 2 × 8": (32, nq.LocalSearchQuantizer(m=2, nbits=8)),
    "lattice d=32, r²=3": (32, nq.SphericalLattice(r2=3)),
    "lattice d=24, r²=3": (24, nq.SphericalLattice(r2=3)),
    "sign 16": (16, nq.SignQuantizer()),
    "sign 16, Hamming": (16, nq.SignQuantizer(asymmetric=False)),
    "ITQ 16": (32, nq.ITQ(16)),
}
QUICK_CODECS = ("PQ 4 × 4", "OPQ 4 × 4", "residual 2 × 8", "GRVQ 2 × 8, no norm", "additive 2 × 8",
                "lattice d=32, r²=3", "sign 16", "ITQ 16")
CODEC_RULES = ("plain", "penalty 0.3", "GSL", "SSM")
QUICK = ("plain", "penalty 0.3", "straight-through", "straight-through + penalty 0.3", "GSL", "SSM", "SSM, hybrid",
         "straight-through + SSM", "straight-through + hybrid")


def measure(data: _data.Omniglot, rule: Any, seed: int, epochs: int, codec: Any = PQ,
            d_out: int = 32) -> dict[str, float]:
    began = time.perf_counter()
    model = nq.DeepQuantizer(
        hidden=(512,), d_out=d_out, output=rule, quantizer=codec, whiten=128, dropout=0.2,
        lr=5e-3, weight_decay=1e-3, epochs=epochs, batch_size=256, per_class=4, random_state=seed)
    model.fit(data.X_train, data.y_train)
    seconds = time.perf_counter() - began
    scorer = model.scorer(data.X_test)
    codes = model.encode(data.X_base)
    queries, base = model.transform(data.X_test), model.transform(data.X_base)
    figures = {
        "adc": metrics.mean_average_precision(scorer.scores(codes), data.y_test, data.y_base),
        "bytes": model.code_size,
        "float": metrics.mean_average_precision(-(queries @ base.T), data.y_test, data.y_base),
        "distortion": metrics.distortion(base, model.decode(codes), relative=True),
        "seconds": seconds,
    }
    if model.code_size > 2:
        product = model.scorer(data.X_test, "ip")
        figures["ip"] = metrics.mean_average_precision(product.scores(codes), data.y_test, data.y_base)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["omniglot"], default="omniglot")
    parser.add_argument("--codecs", action="store_true", help="each codec of 16 bits, with four rules")
    parser.add_argument("--quick", action="store_true", help="3 seeds and one strength of the penalty; with --codecs "
                        "1 seed, 8 codecs, and every fourth query")
    parser.add_argument("--seeds", default=None, help="comma-separated (10,11,12,13,14; with --quick the first 3, "
                        "or the first)")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    chosen = options.seeds or (("10" if options.codecs else "10,11,12") if options.quick else "10,11,12,13,14")
    seeds = [int(seed) for seed in chosen.split(",")]
    print(_harness.machine())
    data = _data.omniglot()
    if options.codecs:
        table = by_codec(data, seeds, options.epochs, options.quick)
    else:
        table = by_rule(data, seeds, options.epochs, options.quick)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": _harness.machine(), "seeds": seeds, "epochs": options.epochs, "rows": table}, file,
                      indent=1)


def by_rule(data: _data.Omniglot, seeds: list[int], epochs: int, quick: bool) -> dict[str, Any]:
    names = QUICK if quick else tuple(RULES)
    print(f"\nOmniglot, 968 classes: {len(data.X_train)} training, {len(data.X_base)} database, "
          f"{len(data.X_test)} query drawings; 16 bits as 4 × 4; seeds {', '.join(map(str, seeds))}\n")
    print(f"{'rule':32s} {'MAP by codes':>16s} {'over plain':>10s} {'MAP by floats':>14s} {'distortion':>10s} "
          f"{'train':>7s}")
    table: dict[str, Any] = {}
    for name in names:
        runs = [measure(data, RULES[name], seed, epochs) for seed in seeds]
        table[name] = {key: [run[key] for run in runs] for key in runs[0]}
        adc = np.array(table[name]["adc"])
        gain = adc.mean() / np.mean(table["plain"]["adc"]) - 1
        print(f"{name:32s} {adc.mean():.4f} ± {adc.std(ddof=1 if len(adc) > 1 else 0):.4f} {gain:+10.1%} "
              f"{np.mean(table[name]['float']):14.4f} {np.mean(table[name]['distortion']):10.3f} "
              f"{np.median(table[name]['seconds']):5.1f} s", flush=True)
    return table


def by_codec(data: _data.Omniglot, seeds: list[int], epochs: int, quick: bool) -> dict[str, Any]:
    if quick:
        data = data._replace(X_test=data.X_test[::4], y_test=data.y_test[::4])
    print(f"\nOmniglot, 968 classes, {len(data.X_test)} queries: each codec of 16 bits; MAP by codes (over plain); "
          f"{epochs} epochs; seeds {', '.join(map(str, seeds))}\n")
    print(f"{'codec':28s} {'bytes':>5s}" + "".join(f" {name:>15s}" for name in CODEC_RULES)
          + f" {'distortion':>10s} {'train':>7s}")
    table: dict[str, Any] = {}
    for name in QUICK_CODECS if quick else CODECS:
        d_out, codec = CODECS[name]
        runs = {rule: [measure(data, RULES[rule], seed, epochs, codec, d_out) for seed in seeds]
                for rule in CODEC_RULES}
        table[name] = {rule: {key: [run[key] for run in of] for key in of[0]} for rule, of in runs.items()}
        size = int(runs["plain"][0]["bytes"])
        rows = [(name, "adc", size)] if size == 2 else [(f"{name} + norm", "adc", size), (name, "ip", size - 1)]
        for label, figure, used in rows:
            line = f"{label:28s} {used:5d}"
            plain = np.mean(table[name]["plain"][figure])
            for rule in CODEC_RULES:
                value = np.mean(table[name][rule][figure])
                line += f" {value:.4f} {value / plain - 1:+8.1%}"
            print(line + f" {np.mean(table[name]['plain']['distortion']):10.3f}"
                  f" {np.median([s for rule in CODEC_RULES for s in table[name][rule]['seconds']]):5.1f} s", flush=True)
    return table


if __name__ == "__main__":
    main()
