"""What the commands of ``npquant`` do; :mod:`npquant.cli` imports this file when one of them runs."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import pkgutil
import platform
import re
import signal
import sys
import threading
import time
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from npquant import __version__, _checks, datasets, kernels, metrics, persist
from npquant.errors import FormatError, InvalidInputError
from npquant.index.flat import FlatIndex
from npquant.kernels import _jit, _pool, simd

_ROWS = 65_536  # vectors encoded at once, so that a file larger than memory goes through
_RANKED = 1 << 24  # distances of whole rankings held at once


class Outcome(NamedTuple):
    """What a command has to say: for machines, for people, and as an exit code."""

    report: Any
    text: str
    code: int = 0


def note(message: str) -> None:
    """Say a line about the work, on stderr."""
    print("npquant:", " ".join(message.split()), file=sys.stderr)


class _Meter:
    """Progress on stderr where that is a terminal: a tqdm bar, or lines where tqdm is not installed."""

    def __init__(self, total: int, unit: str) -> None:
        self.bar: Any = None
        self.on = sys.stderr.isatty()
        if self.on:
            with contextlib.suppress(ImportError):
                from tqdm import tqdm
                self.bar = tqdm(total=total, unit=unit, leave=False, file=sys.stderr, dynamic_ncols=True,
                                desc="getting ready (the first time the compiler runs)")

    def step(self, words: str) -> None:
        """Go on by one."""
        if self.bar is not None:
            self.bar.set_description(words)
            self.bar.update()

    def line(self, words: str) -> None:
        """Say something that stays, where there is no bar to see."""
        if self.on and self.bar is None:
            note(words)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


# --- files ---


def _output(path: str) -> str:
    """Return ``path`` if a file can be written there: told before the work, not after it."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise IsADirectoryError(21, "This is a folder, wanted the name of a file to write", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "There is no folder to write to", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "This folder cannot be written to", folder)
    return path


def _write_text(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def as_json(value: Any) -> str:
    """Return ``value`` as JSON; what JSON has no word for becomes null or a string."""
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        if isinstance(item, float) and not math.isfinite(item):
            return None
        return item if isinstance(item, (str, int, float, bool, type(None))) else str(item)
    return json.dumps(plain(value), indent=1, allow_nan=False)


def _array(path: str) -> NDArray[Any]:
    """Return the array in a file, or the one that ``FILE.npz:NAME`` names."""
    file, _, name = path.rpartition(":")
    if file.lower().endswith(".npz") and not os.path.exists(path):
        found = datasets.read(file)
        if isinstance(found, dict) and name in found:
            return found[name]
        held = ", ".join(found) if isinstance(found, dict) else "a single one: leave the name out"
        raise FormatError(f"{file} holds no array {name!r}. Its arrays: {held}.")
    # What is not compressed is mapped: only what is used of it is read.
    array = datasets.read(path, mmap=not path.lower().endswith((".npz", ".gz")))
    if isinstance(array, dict):
        raise FormatError(f"{path} holds several arrays ({', '.join(array)}): name one, as "
                          f"{path}:{next(iter(array))}.")
    return array


def _data(path: str, part: str = "train") -> tuple[NDArray[Any], Any]:
    """Return vectors (n, d) and their labels, or None; of labelled data the ``part`` "train" or "test"."""
    labelled = None
    if os.path.isdir(path):
        labelled = datasets.load_labelled(path)
    elif path.lower().endswith(".npz") and isinstance(datasets.read(path), dict):
        with contextlib.suppress(FormatError):  # _array says what there is to choose among
            labelled = datasets.load_labelled(path)
    if labelled is not None:
        return (labelled.X_test, labelled.y_test) if part == "test" else (labelled.X_train, labelled.y_train)
    array = _array(path)
    return array.reshape(len(array), -1) if array.ndim > 2 else array, None


def _load(path: str, *kinds: str) -> Any:
    """Return what an .npq file holds, if its class is, or derives from, one of ``kinds``."""
    found = persist.load(path)
    if not any(cls.__name__ in kinds for cls in type(found).__mro__):
        wanted = {"Index": "an index (npquant build makes one)", "KMeans": "a KMeans",
                  "Quantizer": "a model that encodes (npquant train makes one)"}
        raise InvalidInputError(f"{path} holds a {type(found).__name__}, wanted "
                                f"{' or '.join(wanted[kind] for kind in kinds if kind in wanted)}.")
    return found


def _encoded(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    encode = model.encode if hasattr(model, "encode") else model.predict
    return np.concatenate([encode(x[start:start + _ROWS]) for start in range(0, max(1, len(x)), _ROWS)])


def _filled(index: Any, x: NDArray[Any], ids: Any = None) -> Any:
    for start in range(0, max(1, len(x)), _ROWS):
        index.add(x[start:start + _ROWS], None if ids is None else ids[start:start + _ROWS])
    return index


# --- commands ---


def _demo(args: Namespace) -> Outcome:
    from npquant import _demo as demo
    from npquant import plot
    if args.plot:
        plot.require()
        _output(args.plot)
    if args.json not in (None, "-"):
        _output(args.json)
    data = datasets.load_digits() if args.data is None else datasets.load_labelled(args.data)
    settings = demo.Settings(args.rules, args.bits, args.epochs, args.batch_size, args.lr, args.hidden,
                             args.d_out, args.queries, args.seed, args.threads, args.quick)
    try:
        settings = settings.checked(data)
    except InvalidInputError as error:
        raise ArgumentError(None, str(error)) from None
    meter = _Meter(len(settings.bits) * len(settings.rules) * (settings.epochs or 1), "epoch")
    try:
        result = demo.compare(
            data, settings, on_epoch=meter.step,
            on_row=lambda row: meter.line(f"{row['rule']}, {row['bits']} bits: MAP {row['map_codes']:.3f}, "
                                          f"{row['train_seconds']:.1f} s"))
    finally:
        meter.close()
    if args.json not in (None, "-"):
        _write_text(args.json, as_json(result))
    if args.plot:
        plot.save(plot.comparison(result), args.plot)
    title = "npquant demo: learned short codes, and the classic ones, on " + (
        "handwritten digits of 8 x 8 pixels" if args.data is None else args.data)
    return Outcome(result, f"{title}\n{demo.table(result)}")


_DEEP = ("loss", "output", "hidden", "d_out", "epochs", "lr", "batch_size", "whiten", "validation",
         "patience")
_SPREAD = ("output", "hidden", "d_out", "epochs", "lr", "batch_size", "validation", "lam")
_OPTIONS = {"deep": (*_DEEP, "m", "nbits", "labels"), "catalyzer": (*_SPREAD, "bits"),
            "pq": ("m", "nbits", "iterations"), "opq": ("m", "nbits", "iterations"),
            "kmeans": ("clusters", "iterations")}


def _train(args: Namespace) -> Outcome:
    method = args.method or "deep"
    allowed: tuple[str, ...] = ("labels",) if args.resume else _OPTIONS[method]
    for name in sorted({name for names in _OPTIONS.values() for name in names} - set(allowed)):
        if getattr(args, name) is not None:
            raise ArgumentError(None, f"--{name.replace('_', '-')} does not go with " + (
                "--resume: what was chosen at the start holds" if args.resume else f"--method {method}"))
    if args.resume and args.method in ("pq", "opq", "kmeans"):
        raise ArgumentError(None, f"--resume does not go with --method {method}")
    if args.out is None and not args.resume:
        raise ArgumentError(None, "give -o FILE, the model to write")
    target = _output(args.out or args.resume)
    x, y = _data(args.data)
    if args.labels:
        y = _array(args.labels)
    began = time.perf_counter()
    model = _resumed(args.resume) if args.resume else _new(args, method)
    code = 0
    learned = hasattr(model, "epochs")
    if learned:
        code = _fitted(model, x, y, args.resume is not None)
    else:
        model.fit(x)
    spreads = type(model).__name__ == "Catalyzer"
    coded = model.codec(model.quantizer, x) if spreads else model
    persist.save(coded, target)
    kind, seconds = type(model).__name__, time.perf_counter() - began
    report = {"file": target, "kind": kind, "vectors": len(x), "dimensions": int(x.shape[1]),
              "seconds": round(seconds, 3), "finished": code == 0}
    text = f"{target}: {kind} of {len(x):,} vectors of dimension {x.shape[1]}, {seconds:.1f} s"
    if method != "kmeans":
        report["code_size"] = coded.code_size
        text += f"\n  a vector becomes {_many(coded.code_size, 'byte')} (as float32: {4 * x.shape[1]:,})"
    if learned:
        report["history"] = model.history_
        report["supervision"] = "nearest neighbours" if y is None or spreads else "labels"
        text += f"\n  learned from {report['supervision']}, {len(model.history_)} of {model.epochs} epochs"
        if model.history_:
            last = model.history_[-1]
            text += f"; last epoch: loss {last['loss']:.4g}"
            if last["distortion"] is not None:
                text += f", distortion {last['distortion']:.4f} of the variance"
            scores = [entry["validation"] for entry in model.history_ if entry["validation"] is not None]
            if scores:
                text += f"; best validation {'recall@10' if spreads else 'MAP'} {max(scores):.4f}"
    if code:
        note(f"interrupted after {len(model.history_)} of {model.epochs} epochs: {target} can be used as it is, "
             f"and 'npquant train {args.data} --resume {target}' goes on"
             + (f" (with --labels {args.labels})" if args.labels else ""))
    return Outcome(report, text, code)


def _new(args: Namespace, method: str) -> Any:
    from npquant import (
        Catalyzer,
        DeepQuantizer,
        KMeans,
        OptimizedProductQuantizer,
        ProductQuantizer,
        SphericalLattice,
    )
    if method == "kmeans":
        return KMeans(args.clusters or 256, max_iter=25 if args.iterations is None else args.iterations,
                      random_state=args.seed)
    blocks = {name: getattr(args, name) for name in ("m", "nbits") if getattr(args, name) is not None}
    if method in ("pq", "opq"):
        kind, usual = (ProductQuantizer, 25) if method == "pq" else (OptimizedProductQuantizer, 30)
        return kind(**blocks, n_iter=usual if args.iterations is None else args.iterations, random_state=args.seed)
    names = _SPREAD if method == "catalyzer" else _DEEP
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "output" in options and len(options["output"]) == 1:
        options["output"] = options["output"][0]
    if method == "catalyzer":
        lattice = SphericalLattice.for_bits(options.get("d_out", 24), args.bits or 64)
        return Catalyzer(**options, quantizer=lattice, random_state=args.seed)
    return DeepQuantizer(**options, quantizer=ProductQuantizer(**{"m": 4, **blocks}), random_state=args.seed)


def _resumed(path: str) -> Any:
    model = _load(path, "Quantizer")
    model = getattr(model, "transform_", model)  # a catalyzer is trained, and not the codec behind it
    if getattr(model, "training_", None) is None:
        raise InvalidInputError(f"{path} holds no interrupted training: it was finished, or is not of --method "
                                "deep or catalyzer. Train anew without --resume.")
    return model


def _fitted(model: Any, x: NDArray[Any], y: Any, resume: bool) -> int:
    """Train with a progress bar; return the exit code: 130 where Ctrl-C came and left a usable model."""
    meter = _Meter(model.epochs, "epoch")
    pressed: list[bool] = []

    def epoch_done(figures: dict[str, Any]) -> bool:
        words = ", ".join(f"{key} {figures[key]:.4g}" for key in ("loss", "distortion", "validation")
                          if figures[key] is not None)
        meter.step(words)
        meter.line(f"epoch {figures['epoch'] + 1} of {model.epochs}: {words}")
        return bool(pressed)
    model.set_params(callback=epoch_done)
    try:
        with _noticed(pressed):
            model.fit(x, y, resume=resume)
    except KeyboardInterrupt:
        if not model.__sklearn_is_fitted__():
            raise
        return 130
    finally:
        meter.close()
        model.set_params(callback=None)  # a function cannot be saved
    return 0 if model.training_ is None else 130


@contextlib.contextmanager
def _noticed(pressed: list[bool]) -> Iterator[None]:
    """Note Ctrl-C in a list as well: an exception that is raised inside of the compiler may get lost there."""
    def interrupt(number: int, frame: Any) -> NoReturn:
        pressed.append(True)
        raise KeyboardInterrupt
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _encode(args: Namespace) -> Outcome:
    _output(args.out)
    model = _load(args.model, "Quantizer", "KMeans")
    codes = _encoded(model, _data(args.data)[0])
    datasets.write(args.out, codes)
    size = codes.nbytes // max(1, len(codes))
    return Outcome({"file": args.out, "vectors": len(codes), "code_size": size, "dtype": str(codes.dtype)},
                   f"{args.out}: {len(codes):,} codes of {_many(size, 'byte')}, {codes.dtype} {codes.shape}")


def _decode(args: Namespace) -> Outcome:

    _output(args.out)
    model, codes = _load(args.model, "Quantizer", "KMeans"), np.asarray(_array(args.codes))
    if hasattr(model, "decode"):
        vectors = model.decode(codes)
    else:
        K = len(model.cluster_centers_)
        if codes.ndim != 1 or codes.dtype.kind not in "iu" or not np.isin(codes, np.arange(K)).all():
            raise InvalidInputError(f"{args.codes} holds {codes.dtype} {codes.shape}, wanted numbers (n,) of the "
                                    f"{K} centres, 0 to {K - 1}, as 'npquant encode' writes them.")
        vectors = model.cluster_centers_[codes]
    datasets.write(args.out, vectors)
    return Outcome({"file": args.out, "vectors": len(vectors), "dimensions": int(vectors.shape[1])},
                   f"{args.out}: {len(vectors):,} vectors of dimension {vectors.shape[1]}, float32")


def _build(args: Namespace) -> Outcome:
    _output(args.out)
    x = _data(args.data)[0]
    if os.path.exists(args.model) or not re.fullmatch(r"[\w,() ]+", args.model):
        if args.learn:
            raise ArgumentError(None, f"--learn goes with a line such as IVF1024,PQ16; {args.model} is trained")
        index: Any = FlatIndex(_load(args.model, "Quantizer"), args.metric)
    else:
        from npquant.index.factory import index_factory
        index = index_factory(args.model, int(x.shape[1]), args.metric, random_state=args.seed)
        index.fit(_data(args.learn)[0] if args.learn else x)
    ids = _array(args.ids) if args.ids else None
    if ids is not None:
        _checks.length(ids, len(x), "ids", args.data)
    _filled(index, x, ids)
    persist.save(index, args.out)
    size, code_size = os.path.getsize(args.out), index.codec.code_size
    if hasattr(index, "base"):  # of a RefineIndex each vector has two codes
        code_size += index.base.codec.code_size
    return Outcome({"file": args.out, "vectors": index.ntotal, "code_size": code_size,
                    "metric": args.metric, "bytes": size},
                   f"{args.out}: {index.ntotal:,} vectors of {_many(code_size, 'byte')}, metric "
                   f"{args.metric}; {_bytes(size)} with the model and the ids")


def _search(args: Namespace) -> Outcome:
    if args.out:
        _output(args.out)
    index = _load(args.index, "Index", "IdMap")
    queries = _data(args.queries, "test")[0]
    allow = np.asarray(_array(args.allow)) if args.allow else None
    began = time.perf_counter()
    options = {name: getattr(args, name) for name in ("nprobe", "oversample") if getattr(args, name) is not None}
    for name in options:
        if name not in inspect.signature(getattr(index, "index", index).search).parameters:  # an IdMap hands on
            raise ArgumentError(None, f"--{name} does not go with {args.index}, which holds a "
                                f"{type(index).__name__}")
    distances, ids = index.search(queries, args.k, allow=allow, **options)
    seconds = time.perf_counter() - began
    if ids.dtype == object:
        ids = np.array([[name or "" for name in row] for row in ids.tolist()])
    report = {"queries": len(ids), "k": args.k, "metric": index.metric, "seconds": round(seconds, 4)}
    text = (f"{len(ids):,} queries in {index.ntotal:,} vectors: "
            f"{1e3 * seconds / max(1, len(ids)):.3f} ms a query")
    if args.out:
        both = args.out.lower().endswith(".npz")
        datasets.write(args.out, {"ids": ids, "distances": distances} if both else ids)
        return Outcome({"file": args.out, **report}, f"{args.out}: {text}")
    what = {"l2": "squared distance", "ip": "inner product"}.get(index.metric, "cosine")
    wide = max((len(str(value)) for value in ids[:args.rows].ravel()), default=1)
    lines = [text, f"each result is: id ({what}), the nearest first"]
    for query in range(min(args.rows, len(ids))):
        found = [f"{name:>{wide}} ({distance:.4g})" for distance, name in zip(distances[query], ids[query])]
        lines.append(f"query {query}:  " + "  ".join(found))
    if len(ids) > args.rows:
        lines.append(f"... {len(ids) - args.rows:,} more queries; -o FILE.npz keeps all")
    return Outcome({**report, "ids": ids.tolist(), "distances": distances.tolist()}, "\n".join(lines))


def _tune(args: Namespace) -> Outcome:
    from npquant.index.factory import tune
    index = _load(args.index, "Index")
    queries = _data(args.queries, "test")[0]
    truth = np.asarray(_array(args.truth)) if args.truth else None
    tuned = tune(index, queries, args.recall, k=args.k, truth=truth)
    wanted = " ".join(f"--{name} {value}" for name, value in tuned.options.items())
    lines = [f"{args.index}: {wanted} finds {tuned.recall:.3f} of the {args.k} nearest in {1e3 * tuned.seconds:.3f} ms "
             "a query" + ("" if tuned.recall >= args.recall else f"; no setting reaches {args.recall:g}"),
             "recall  ms a query  options"]
    for recall, seconds, options in tuned.front:
        words = " ".join(f"--{name} {value}" for name, value in options.items())
        lines.append(f"{recall:6.3f}  {1e3 * seconds:10.3f}  {words}")
    return Outcome({"options": tuned.options, "recall": tuned.recall, "seconds": tuned.seconds, "front": tuned.front},
                   "\n".join(lines))


def _eval(args: Namespace) -> Outcome:
    found = _load(args.model, "Index", "Quantizer")
    queries, asked_labels = _data(args.queries, "test")
    base: Any = None
    base_labels: Any = None
    if args.database or asked_labels is not None:
        base, base_labels = _data(args.database or args.queries)
    if hasattr(found, "search"):
        index = found
    elif base is None:
        raise ArgumentError(None, "a model is evaluated by searching in vectors: give --database FILE (or an index)")
    else:
        index = _filled(FlatIndex(found, args.metric or "l2"), base)
    if args.metric not in (None, index.metric):
        raise ArgumentError(None, f"the index was built with --metric {index.metric}")
    report: dict[str, Any] = {"vectors": index.ntotal, "queries": len(queries), "metric": index.metric}
    lines = [f"{len(queries):,} queries in {index.ntotal:,} vectors of {_many(index.codec.code_size, 'byte')}, "
             f"metric {index.metric}"]
    asked_labels = _array(args.labels) if args.labels else asked_labels
    base_labels = _array(args.database_labels) if args.database_labels else base_labels
    if args.truth is None and (args.labels or (asked_labels is not None and args.database is None)):
        if asked_labels is None or base_labels is None:
            raise ArgumentError(None, "MAP needs the labels of the queries (--labels) and of the vectors searched "
                                "in (--database-labels)")
        report["map"] = _map(index, queries, asked_labels, base_labels)
        lines.append(f"  MAP          {report['map']:.4f}   mean average precision by labels: 1 = all vectors of "
                     "the query's class come first")
        return Outcome(report, "\n".join(lines))
    if args.truth is not None:
        truth = _array(args.truth)
    elif base is not None and index.metric == "l2":
        truth = metrics.exact_neighbors(base, queries, min(100, len(base)))[1]
        lines[0] += "; the true neighbours were computed"
    else:
        raise ArgumentError(None, "say what is right: --truth FILE (ids of true neighbours), or --labels and "
                            "--database-labels; for metric l2 --database FILE will do")
    if truth.ndim != 2:
        raise InvalidInputError(f"{args.truth} has shape {truth.shape}, wanted (queries, k): ids of the true "
                                "neighbours, nearest first.")
    ids = index.search(queries, min(100, index.ntotal)).ids
    for R in (1, 10, 100):
        if ids.shape[1] >= R:
            report[f"recall_at_{R}"] = value = metrics.recall_at(ids, truth, R)
            lines.append(f"  recall_at {R:<4} {value:.4f}   queries whose nearest neighbour is "
                         + ("the first result" if R == 1 else f"among the first {R} results"))
    for k in (10, 100):
        if min(ids.shape[1], truth.shape[1]) >= k:
            report[f"knn_recall_{k}"] = value = metrics.knn_recall(ids, truth, k)
            lines.append(f"  knn_recall {k:<3} {value:.4f}   share of the {k} nearest neighbours that is among "
                         f"the first {k} results")
    return Outcome(report, "\n".join(lines))


def _map(index: Any, queries: NDArray[Any], asked: Any, labels: Any) -> float:
    """Return MAP by labels of whole rankings; row r of ``labels`` belongs to the id r."""
    _checks.length(asked, len(queries), "the queries' labels", "queries")
    ids = np.sort(index.ids)
    if not len(ids) or ids[-1] >= len(labels):
        held = f"id {ids[-1]}: label number r belongs to id r" if len(ids) else "nothing"
        raise InvalidInputError(f"the database's labels have {len(labels)} rows, and the index holds {held}.")
    sign = np.float32(1 if index.metric == "l2" else -1)

    def distances(start: int, stop: int) -> NDArray[np.float32]:
        block = np.full((stop - start, len(ids)), np.inf, np.float32)  # what is not found comes last
        step = max(1, _RANKED // len(ids))
        for low in range(start, stop, step):
            found = index.search(queries[low:min(low + step, stop)], len(ids))
            rows, there = np.arange(low - start, low - start + len(found.ids)), found.ids >= 0
            block[np.repeat(rows, there.sum(axis=1)), np.searchsorted(ids, found.ids[there])] = (
                sign * found.distances[there])
        return block
    return metrics.mean_average_precision(distances, np.asarray(asked), np.asarray(labels)[ids])


def _info(args: Namespace) -> Outcome:
    if args.file is None:
        return _about()
    path = args.file
    if os.path.isdir(path):
        return _about_data(path, "labelled data", datasets.load_labelled(path)._asdict())
    try:
        report = persist.describe(path)
    except FormatError:
        if path.lower().endswith(".npq"):
            raise
        found = datasets.read(path, mmap=not path.lower().endswith((".npz", ".gz")))
        return _about_data(path, _bytes(os.path.getsize(path)), found if isinstance(found, dict) else {"": found})
    lines = [f"{path}: {report['kind']}, {_bytes(report['bytes'])}, written by npquant "
             f"{report['library_version']} (format {report['format_version']})"]
    shown = list(_parameters(report["params"], "  "))
    lines += ["parameters", *shown] if shown else []
    training = [array for array in report["arrays"] if ".training_" in f".{array['name']}"]
    others = [array for array in report["arrays"] if array not in training]
    if others:
        wide = max(len(array["name"]) for array in others)
        lines += ["arrays", *(f"  {array['name']:<{wide}}  {array['dtype']:<8} {_bytes(array['bytes']):>9}  "
                              f"{' x '.join(map(str, array['shape'])) or 'a number'}" for array in others)]
    if training:
        size = _bytes(sum(array["bytes"] for array in training))
        lines.append(f"An interrupted training is inside ({size}): 'npquant train DATA --resume {path}' goes on.")
    return Outcome(report, "\n".join(lines))


def _about_data(path: str, words: str, named: dict[str, Any]) -> Outcome:
    arrays = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in named.items()]
    lines = ["  " + f"{array['name']} {array['dtype']} {' x '.join(map(str, array['shape']))}".strip()
             for array in arrays]
    return Outcome({"kind": "data", "arrays": arrays}, "\n".join([f"{path}: {words}", *lines]))


def _parameters(params: Any, indent: str) -> Iterator[str]:
    for name, value in params.items():
        if isinstance(value, dict):
            kind = value.get("kind", "")
            yield f"{indent}{name}: {kind}".rstrip()
            yield from _parameters({key: value[key] for key in value if key != "kind"}, indent + "  ")
        elif value is not None and value not in ("array", "text", "generator"):  # these are listed as arrays
            yield f"{indent}{name} = {value!r}"


def _about() -> Outcome:
    from importlib import metadata
    config: Any = np.show_config(mode="dicts")
    report = {"npquant": __version__, "python": platform.python_version(), "numpy": np.__version__,
              "numba": metadata.version("numba") if _jit.have_numba() else None, "jit": _jit.jit_mode(),
              "cache": str(_jit.cache_folder() or "") or None, "threads": _pool.available_threads(),
              "machine": platform.machine(), "simd": simd.chosen() if _jit.have_numba() else None,
              "levels": simd.runnable() if _jit.have_numba() else [],
              "blas": config.get("Build Dependencies", {}).get("blas", {}).get("name")}
    jit = {"0": "off (NPQUANT_JIT=0): NumPy alone", "1": "compile at the first call (NPQUANT_JIT=1)",
           "auto": "auto: compile when it pays (NPQUANT_JIT=0 or 1 to choose)"}
    lines = {"npquant": __version__, "python": report["python"],
             "numpy": f"{np.__version__}, BLAS {report['blas']}",
             "numba": report["numba"] or "not there: NumPy twins run (slower, the same results)",
             "compiler": jit[_jit.jit_mode()],
             "kernel cache": report["cache"] or "none is writable: kernels are compiled anew in each process",
             "threads": f"{report['threads']} (NPQUANT_NUM_THREADS or --threads to choose)",
             "processor": report["machine"],
             "SIMD level": f"{report['simd']}, of {', '.join(report['levels'])} that this machine runs "
                           "(NPQUANT_SIMD to choose)" if report["simd"] else "that of NumPy"}
    return Outcome(report, "\n".join(f"{name:<13} {value}" for name, value in lines.items()))


def _warmup(args: Namespace) -> Outcome:
    if not _jit.have_numba() or _jit.jit_mode() == "0":
        why = "NPQUANT_JIT=0 is set" if _jit.have_numba() else "numba is not there"
        return Outcome({"kernels": [], "seconds": 0.0, "cache": None},
                       f"{why}: NumPy runs, nothing to compile")
    found = {f"{module.name}.{name}": value for module in pkgutil.iter_modules(kernels.__path__)
             for name, value in vars(import_module(f"npquant.kernels.{module.name}")).items()
             if isinstance(value, _jit.Kernel) and value.source.__module__.endswith(f".{module.name}")}
    meter, began = _Meter(len(found), "kernel"), time.perf_counter()
    try:
        for name, kernel in found.items():
            kernel.compiled()
            meter.step(name)
    finally:
        meter.close()
    seconds, folder = time.perf_counter() - began, _jit.cache_folder()
    kept = f"kept in {folder}" if folder else "and kept nowhere: no writable folder (set NUMBA_CACHE_DIR)"
    cache = str(folder) if folder else None
    return Outcome({"kernels": list(found), "seconds": round(seconds, 3), "cache": cache},
                   f"{len(found)} kernels ready in {seconds:.1f} s, {kept}")


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


COMMANDS: dict[str, Callable[[Namespace], Outcome]] = {
    "demo": _demo, "train": _train, "encode": _encode, "decode": _decode, "build": _build, "search": _search,
    "tune": _tune,
    "eval": _eval, "info": _info, "warmup": _warmup}
