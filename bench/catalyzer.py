"""Spread vectors behind the lattice, OPQ and signs, beside what is fitted to the data: R@1, R@10, R@100 of SIFT.

    python bench/catalyzer.py --quick                      all of it small, in under 10 minutes on 2 cores
    python bench/catalyzer.py --models DIR --train lam=0.02,epochs=20 [--train ...]    a long training, once
    python bench/catalyzer.py --models DIR                 measure the models in DIR and the baselines; keep the rows
    python bench/catalyzer.py --print [--plot FILE]        the table and the plot from kept rows

Real data: sift300k, learn (150,000) → train, base (150,000) → search, 2,000 queries; d = 128. R@k is the fraction of
the queries whose true nearest neighbour, in the space of the descriptors, is among the first k. The database is coded,
queries are not (symmetric signs are marked "hamming"). Bits are those of whole bytes stored; a lattice uses a little
less (24 dimensions: 14.0, 31.1 and 63.9).

A training's settings are its file's name: d_out, lam, epochs, batch_size, lr, schedule, optimizer, hidden (1024x1024),
output (rules with +; other than plain is end to end), codec (of the validation and of output: lattice64, lattice32,
lattice16, sign), warmup, ramp, mining_points, negative_rank, n_positives, validation, seed, learn (rows). Ctrl-C keeps
what is trained so far, and the same command goes on with it. Signs need d_out = bits: models of 16, 32 or 64.

The plot: evenness (KoLeo of the outputs of the queries) against the share of the 10 nearest neighbours that outputs as
floats keep, over lambda; and recall@10 by codes. It takes the models that differ in lambda alone, the most there are.
"""

from __future__ import annotations

import _harness  # before NumPy: it chooses the BLAS kernel

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import _data
import numpy as np

import npquant as nq
from npquant import metrics, nn, plot

KEPT = Path(__file__).with_name("catalyzer.json")
BITS = (16, 32, 64)
USUAL: dict[str, Any] = {"d_out": 24, "lam": 0.05, "epochs": 20, "output": "plain", "codec": "lattice64",
                         "validation": 0.01, "learn": 150_000, "seed": 0}
QUICK_BASE = {"learn": 20_000, "epochs": 4, "batch_size": 64}
QUICK = [{**QUICK_BASE, **change} for change in (
    {"lam": 0.05}, {"lam": 0.0}, {"lam": 0.2}, {"lam": 0.05, "output": "straight_through"},
    {"d_out": 64, "codec": "sign"})]


# ------------------------------------------------------------------------------------------------------- trainings

def parsed(text: str) -> dict[str, Any]:
    """Return settings of the form ``name=value,…``."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise SystemExit(f"--train {text}: wanted name=value,name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def title(settings: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted({**USUAL, **settings}.items()))


def codec_of(name: str, d: int) -> Any:
    return nq.SignQuantizer() if name == "sign" else nq.SphericalLattice.for_bits(d, int(name.removeprefix("lattice")))


def trained(settings: dict[str, Any], folder: Path, sift: _data.Sift, threads: int | None) -> nq.Catalyzer:
    """Return the model of these settings: from its file, gone on with, or trained now."""
    chosen = {**USUAL, **settings}
    file = folder / f"{title(settings)}.npq"
    if file.exists():
        model = nq.load(file)
        if model.training_ is None:
            return model
    else:
        options = {name: value for name, value in chosen.items() if name not in ("learn", "seed", "codec", "output")}
        if "hidden" in options:
            options["hidden"] = tuple(int(width) for width in str(options["hidden"]).split("x"))
        output = tuple(str(chosen["output"]).split("+"))
        model = nq.Catalyzer(**options, output=output[0] if len(output) == 1 else output,
                             quantizer=codec_of(chosen["codec"], chosen["d_out"]), random_state=chosen["seed"])
    print(f"training {title(settings)}", flush=True)

    def told(entry: dict[str, Any]) -> None:
        figures = "  ".join(f"{name} {entry[name]:.4f}" for name in ("rank", "koleo", "distortion", "validation")
                            if entry[name] is not None)
        print(f"  epoch {entry['epoch'] + 1}: {figures}  {entry['seconds']:.0f} s, of which mining "
              f"{entry['mining']:.0f}", flush=True)
    model.set_params(callback=told, threads=threads)
    try:
        model.fit(sift.learn[:chosen["learn"]], resume=True)
    finally:
        model.set_params(callback=None)
        if hasattr(model, "network_"):
            nq.save(model, file)
    return model


# -------------------------------------------------------------------------------------------------------- measures

def recalls(codec: Any, sift: _data.Sift) -> list[float]:
    index = nq.FlatIndex(codec)
    index.add(sift.base)
    ids = index.search(sift.queries, 100).ids
    return [metrics.recall_at(ids, sift.neighbors, k) for k in (1, 10, 100)]


def baselines(learn: np.ndarray) -> Any:
    """Yield (name, bits, fitted codec) of what is fitted to the data."""
    for bits in BITS:
        yield "PQ", bits, nq.ProductQuantizer(bits // 8, random_state=0).fit(learn)
        yield "OPQ", bits, nq.OptimizedProductQuantizer(bits // 8, random_state=0).fit(learn)
        lattice = nq.SphericalLattice.for_bits(24, bits)
        yield "PCA + lattice", bits, nq.PreTransformed(nq.PCA(24), lattice).fit(learn)
        yield "PCA + sign", bits, nq.PreTransformed(nq.PCA(bits), nq.SignQuantizer()).fit(learn)


def behind(model: nq.Catalyzer, learn: np.ndarray) -> Any:
    """Yield (name, bits, codec) of what goes behind a catalyzer."""
    d = model.d_out
    for bits in BITS:
        if d == bits:
            yield "sign", bits, model.codec(nq.SignQuantizer(), learn)
            yield "sign, hamming", bits, model.codec(nq.SignQuantizer(asymmetric=False), learn)
        if d in (24, 32, 40):
            yield "lattice", bits, model.codec(nq.SphericalLattice.for_bits(d, bits), learn)
            if d % (bits // 8) == 0:
                yield "OPQ", bits, model.codec(nq.OptimizedProductQuantizer(bits // 8, random_state=0), learn)


def measured_baselines(sift: _data.Sift) -> list[dict[str, Any]]:
    rows = []
    for name, bits, codec in baselines(sift.learn):
        rows.append({"name": name, "bits": bits, "recall": recalls(codec, sift), "settings": None})
        print(f"  {name} {bits}: {rows[-1]['recall']}", flush=True)
    return rows


def measured_model(settings: dict[str, Any], model: nq.Catalyzer, sift: _data.Sift) -> list[dict[str, Any]]:
    base, queries = model.transform(sift.base), model.transform(sift.queries)
    near = metrics.exact_neighbors(base, queries, 100)[1]
    about = {"settings": settings, "epochs_done": len(model.history_), "lam": model.lam_,
             "seconds": sum(entry["seconds"] for entry in model.history_)}
    rows = [{"name": "floats", "bits": 32 * model.d_out, **about,
             "recall": [metrics.recall_at(near, sift.neighbors, k) for k in (1, 10, 100)],
             "koleo": nn.KoLeo().value_and_grad(queries)[0],
             "kept": metrics.knn_recall(near, sift.neighbors, 10)}]
    for name, bits, codec in behind(model, sift.learn):
        rows.append({"name": name, "bits": bits, **about, "recall": recalls(codec, sift)})
        print(f"  catalyzer + {name} {bits}: {rows[-1]['recall']}", flush=True)
    return rows


# -------------------------------------------------------------------------------------------------------- the output

def shown(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return ""
    full = {**USUAL, **settings}
    usual = {name: value for name, value in USUAL.items() if name not in ("lam", "epochs", "d_out")}
    return ", ".join(f"{name} {value}" for name, value in full.items() if usual.get(name) != value)


def table(rows: list[dict[str, Any]]) -> None:
    for bits in BITS:
        print(f"\n{bits} bits{'':26s}  R@1    R@10   R@100")
        for row in sorted((row for row in rows if row["bits"] == bits and row["name"] != "floats"),
                          key=lambda row: (row["settings"] is not None, row["recall"][1])):
            full = {**USUAL, **(row["settings"] or {})}
            name = row["name"] if row["settings"] is None else f"catalyzer + {row['name']}" + (
                "" if full["output"] == "plain" else ", end to end")
            print(f"  {name:32s} {row['recall'][0]:.3f}  {row['recall'][1]:.3f}  {row['recall'][2]:.3f}   "
                  f"{shown(row['settings'])}")


def over_lambda(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the plot: of the models that differ in lambda alone, the largest group."""
    groups: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        if row["settings"] is None:
            continue
        rest = title({**row["settings"], "lam": 0})
        point = groups.setdefault(rest, {}).setdefault(row["lam"], {"lam": row["lam"], "recall": {}})
        if row["name"] == "floats":
            point.update(koleo=row["koleo"], kept=row["kept"])
        else:
            point["recall"][f"{row['name']}, {row['bits']} bits"] = row["recall"][1]
    best = max(groups.values(), key=len, default={})
    return [best[lam] for lam in sorted(best)]


def report(kept: dict[str, Any], picture: str | None) -> None:
    print(f"\n{kept['machine']}")
    table(kept["rows"])
    points = over_lambda(kept["rows"])
    if len(points) > 1:
        print("\n  lambda   KoLeo   10 neighbours kept   recall@10 by codes")
        for point in points:
            codes = ", ".join(f"{name} {value:.3f}" for name, value in point["recall"].items())
            print(f"  {point['lam']:<7g} {point['koleo']:6.3f}   {point['kept']:.3f}                {codes}")
        if picture:
            plot.save(plot.spreading(points), picture)
            print(f"\n{picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="DIR", type=Path, help="where trained catalyzers are kept")
    parser.add_argument("--train", metavar="NAME=VALUE,...", action="append", default=[],
                        help="train this one, keep it in DIR, and end")
    parser.add_argument("--quick", action="store_true", help="20,000 vectors, 4 epochs; nothing is kept")
    parser.add_argument("--print", action="store_true", help="the table and the plot from kept rows, nothing else")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the trade over lambda (.png, .svg)")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.print:
        report(json.loads(KEPT.read_text()), options.plot)
        return
    print(_harness.machine(threads=options.threads))
    sift = _data.sift300k()
    if options.quick:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            # All baselines and codecs learn from the same part; the whole base is searched.
            few = sift._replace(learn=sift.learn[:QUICK_BASE["learn"]])
            rows = measured_baselines(few)
            for settings in QUICK:
                rows += measured_model(settings, trained(settings, Path(folder), few, options.threads), few)
        print(f"\n--quick: {QUICK_BASE['learn']:,} vectors to learn from and {QUICK_BASE['epochs']} epochs, far from "
              f"what a full training reaches; {time.perf_counter() - began:.0f} s")
        report({"machine": _harness.machine(), "rows": rows}, options.plot)
        return
    if options.models is None:
        parser.error("give --models DIR, or --quick, or --print")
    options.models.mkdir(parents=True, exist_ok=True)
    for text in options.train:
        trained(parsed(text), options.models, sift, options.threads)
    if options.train:
        return
    rows = measured_baselines(sift)
    for file in sorted(options.models.glob("*.npq")):
        print(file.stem, flush=True)
        rows += measured_model(parsed(file.stem), nq.load(file), sift)
    kept = {"machine": _harness.machine(), "rows": rows}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    report(kept, options.plot)


if __name__ == "__main__":
    main()
