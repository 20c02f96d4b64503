"""What the commands of ``npquant`` do; :mod:`npquant.cli` imports this file when one of them runs."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import threading
import time
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from npquant import _about, _checks, datasets, metrics, persist
from npquant._console import (
    Meter,
    Outcome,
    as_json,
    in_bytes,
    note,
    plural,
    read_array,
    read_data,
    read_object,
    with_article,
    writable,
    write_text,
)
from npquant.errors import InvalidInputError
from npquant.index.flat import FlatIndex
from npquant.kernels import _jit

_ROWS = 65_536  # vectors encoded at once, so that a file larger than memory goes through
_RANKED = 1 << 24  # distances of whole rankings held at once


def _encoded(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    encode = model.encode if hasattr(model, "encode") else model.predict
    return np.concatenate([encode(x[start:start + _ROWS]) for start in range(0, max(1, len(x)), _ROWS)])


def _filled(index: Any, x: NDArray[Any], ids: Any = None) -> Any:
    for start in range(0, max(1, len(x)), _ROWS):
        index.add(x[start:start + _ROWS], None if ids is None else ids[start:start + _ROWS])
    return index


def _demo(args: Namespace) -> Outcome:
    from npquant import _demo as demo
    from npquant import plot
    if args.plot:
        plot.require()
        writable(args.plot)
    if args.json not in (None, "-"):
        writable(args.json)
    data = datasets.load_digits() if args.data is None else datasets.load_labelled(args.data)
    settings = demo.Settings(args.rules, args.bits, args.epochs, args.batch_size, args.lr, args.hidden,
                             args.d_out, args.queries, args.seed, args.threads, args.quick)
    try:
        settings = settings.checked(data)
    except InvalidInputError as error:
        raise ArgumentError(None, str(error)) from None
    meter = Meter(len(settings.bits) * len(settings.rules) * (settings.epochs or 1), "epoch")
    try:
        result = demo.compare(
            data, settings, on_epoch=meter.step,
            on_row=lambda row: meter.line(f"{row['rule']}, {row['bits']} bits: MAP {row['map_codes']:.3f}, "
                                          f"{row['train_seconds']:.1f} s"))
    finally:
        meter.close()
    if args.json not in (None, "-"):
        write_text(args.json, as_json(result))
    if args.plot:
        plot.save(plot.comparison(result), args.plot)
    title = "npquant demo: learned short codes, and the classic ones, on " + (
        "handwritten digits of 8 x 8 pixels" if args.data is None else args.data)
    return Outcome(result, f"{title}\n{demo.table(result)}")


_DEEP = ("loss", "output", "hidden", "d_out", "epochs", "lr", "batch_size", "whiten", "validation",
         "patience")
_SPREAD = ("output", "hidden", "d_out", "epochs", "lr", "batch_size", "validation", "lam", "negative_rank")
_OPTIONS = {"deep": (*_DEEP, "m", "nbits", "labels"), "catalyzer": (*_SPREAD, "bits"),
            "pq": ("m", "nbits", "iterations", "metric"), "opq": ("m", "nbits", "iterations", "metric"),
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
    target = writable(args.out or args.resume)
    x, y = read_data(args.data)
    if args.labels:
        y = read_array(args.labels)
    began = time.perf_counter()
    model = _resumed(args.resume) if args.resume else _new(args, method)
    code = 0
    learned = hasattr(model, "epochs")
    if learned:
        code = _fitted(model, x, y, args.resume is not None)
    else:
        model = model.fit(x) if args.metric is None else FlatIndex(model, args.metric).fit(x).codec
    spreads = type(model).__name__ == "Catalyzer"
    coded = model.codec(model.quantizer, x) if spreads else model
    persist.save(coded, target)
    kind, seconds = type(model).__name__, time.perf_counter() - began
    report = {"file": target, "kind": kind, "vectors": len(x), "dimensions": int(x.shape[1]),
              "seconds": round(seconds, 3), "finished": code == 0}
    text = f"{target}: {kind} of {len(x):,} vectors of dimension {x.shape[1]}, {seconds:.1f} s"
    if method != "kmeans":
        report["code_size"] = coded.code_size
        text += f"\n  a vector becomes {plural(coded.code_size, 'byte')} (as float32: {4 * x.shape[1]:,})"
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
    model = read_object(path, "Quantizer")
    model = getattr(model, "transform_", model)  # a catalyzer is trained, and not the codec behind it
    if getattr(model, "training_", None) is None:
        raise InvalidInputError(f"{path} holds no interrupted training: it was finished, or is not of --method "
                                "deep or catalyzer. Train anew without --resume.")
    return model


def _fitted(model: Any, x: NDArray[Any], y: Any, resume: bool) -> int:
    """Train with a progress bar; return the exit code: 130 where Ctrl-C came and left a usable model."""
    meter = Meter(model.epochs, "epoch")
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
    writable(args.out)
    model = read_object(args.model, "Quantizer", "KMeans")
    codes = _encoded(model, read_data(args.data)[0])
    datasets.write(args.out, codes)
    size = codes.nbytes // max(1, len(codes))
    return Outcome({"file": args.out, "vectors": len(codes), "code_size": size, "dtype": str(codes.dtype)},
                   f"{args.out}: {len(codes):,} codes of {plural(size, 'byte')}, {codes.dtype} {codes.shape}")


def _decode(args: Namespace) -> Outcome:

    writable(args.out)
    model, codes = read_object(args.model, "Quantizer", "KMeans"), np.asarray(read_array(args.codes))
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
    writable(args.out)
    x = read_data(args.data)[0]
    if os.path.exists(args.model) or not re.fullmatch(r"[\w,() ]+", args.model):
        if args.learn:
            raise ArgumentError(None, f"--learn goes with a line such as IVF1024,PQ16; {args.model} is trained")
        index: Any = FlatIndex(read_object(args.model, "Quantizer"), args.metric)
    else:
        from npquant.index.factory import index_factory
        index = index_factory(args.model, int(x.shape[1]), args.metric, random_state=args.seed)
        index.fit(read_data(args.learn)[0] if args.learn else x)
    ids = read_array(args.ids) if args.ids else None
    if ids is not None:
        _checks.length(ids, len(x), "ids", args.data)
    _filled(index, x, ids)
    persist.save(index, args.out)
    size, code_size = os.path.getsize(args.out), _code_size(index)
    return Outcome({"file": args.out, "vectors": index.ntotal, "code_size": code_size,
                    "metric": args.metric, "bytes": size},
                   f"{args.out}: {index.ntotal:,} vectors of {plural(code_size, 'byte')}, metric "
                   f"{args.metric}; {in_bytes(size)} with the model and the ids")


def _code_size(index: Any) -> int:
    """Return the bytes of a vector's codes, of which a RefineIndex has two."""
    return int(index.codec.code_size + (index.base.codec.code_size if hasattr(index, "base") else 0))


def _search_options(args: Namespace, index: Any, path: str) -> dict[str, int]:
    options = {name: getattr(args, name) for name in ("nprobe", "oversample") if getattr(args, name) is not None}
    searched = getattr(index, "index", index)  # an IdMap hands on
    for name in options:
        if name not in inspect.signature(searched.search).parameters:
            raise ArgumentError(None, f"--{name} does not go with {path}, which holds {with_article(searched)}")
    return options


def _search(args: Namespace) -> Outcome:
    if args.out:
        writable(args.out)
    index = read_object(args.index, "Index", "IdMap")
    queries = read_data(args.queries, "test")[0]
    allow = np.asarray(read_array(args.allow)) if args.allow else None
    options = _search_options(args, index, args.index)
    began, compiling = time.perf_counter(), _jit.seconds_compiling()
    distances, ids = index.search(queries, args.k, allow=allow, **options)
    compiling = _jit.seconds_compiling() - compiling
    seconds = time.perf_counter() - began - compiling
    if ids.dtype == object:
        ids = np.array([[name or "" for name in row] for row in ids.tolist()])
    report = {"queries": len(ids), "k": args.k, "metric": index.metric, "seconds": round(seconds, 4)}
    text = (f"{len(ids):,} queries in {index.ntotal:,} vectors: "
            f"{1e3 * seconds / max(1, len(ids)):.3f} ms a query")
    if compiling > 1:
        text += f", and {compiling:.0f} s for the compiler, the first time on this machine"
    if args.out:
        both = args.out.lower().endswith(".npz")
        datasets.write(args.out, {"ids": ids, "distances": distances} if both else ids)
        return Outcome({"file": args.out, **report}, f"{args.out}: {text}")
    what = {"l2": "squared distance", "ip": "inner product"}.get(index.metric, "cosine")
    wide = max((len(str(value)) for value in ids[:args.rows].ravel()), default=1)
    lines = [text, f"each result is: id ({what}), the nearest first"]
    for query in range(min(args.rows, len(ids))):
        found = [f"{name:>{wide}} ({distance:.4g})" for distance, name in zip(distances[query], ids[query])
                 if name not in (-1, "")]
        lines.append(f"query {query}:  " + "  ".join(found))
    if len(ids) > args.rows:
        lines.append(f"... {len(ids) - args.rows:,} more queries; -o FILE.npz keeps all")
    return Outcome({**report, "ids": ids.tolist(), "distances": distances.tolist()}, "\n".join(lines))


def _tune(args: Namespace) -> Outcome:
    from npquant.index.factory import tune
    index = read_object(args.index, "Index", "IdMap")
    queries = read_data(args.queries, "test")[0]
    truth = np.asarray(read_array(args.truth)) if args.truth else None
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
    found = read_object(args.model, "Index", "Quantizer")
    queries, asked_labels = read_data(args.queries, "test")
    base: Any = None
    base_labels: Any = None
    if args.database or asked_labels is not None:
        base, base_labels = read_data(args.database or args.queries)
    if hasattr(found, "search"):
        index = found
    elif base is None:
        raise ArgumentError(None, "a model is evaluated by searching in vectors: give --database FILE (or an index)")
    else:
        index = _filled(FlatIndex(found, args.metric or "l2"), base)
    if args.metric not in (None, index.metric):
        raise ArgumentError(None, f"the index was built with --metric {index.metric}")
    options = _search_options(args, index, args.model)
    report: dict[str, Any] = {"vectors": index.ntotal, "queries": len(queries), "metric": index.metric}
    lines = [f"{len(queries):,} queries in {index.ntotal:,} vectors of {plural(_code_size(index), 'byte')}, "
             f"metric {index.metric}"]
    asked_labels = read_array(args.labels) if args.labels else asked_labels
    base_labels = read_array(args.database_labels) if args.database_labels else base_labels
    if args.truth is None and (args.labels or (asked_labels is not None and args.database is None)):
        if asked_labels is None or base_labels is None:
            raise ArgumentError(None, "MAP needs the labels of the queries (--labels) and of the vectors searched "
                                "in (--database-labels)")
        report["map"] = _map(index, queries, asked_labels, base_labels, options)
        lines.append(f"  MAP          {report['map']:.4f}   mean average precision by labels: 1 = all vectors of "
                     "the query's class come first")
        return Outcome(report, "\n".join(lines))
    if args.truth is not None:
        truth = read_array(args.truth)
    elif base is not None and index.metric == "l2":
        truth = metrics.exact_neighbors(base, queries, min(100, len(base)))[1]
        lines[0] += "; the true neighbours were computed"
    else:
        raise ArgumentError(None, "say what is right: --truth FILE (ids of true neighbours), or --labels and "
                            "--database-labels; for metric l2 --database FILE will do")
    if truth.ndim != 2:
        raise InvalidInputError(f"{args.truth} has shape {truth.shape}, wanted (queries, k): ids of the true "
                                "neighbours, nearest first.")
    ids = index.search(queries, min(100, index.ntotal), **options).ids
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


def _map(index: Any, queries: NDArray[Any], asked: Any, labels: Any, options: dict[str, int]) -> float:
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
            found = index.search(queries[low:min(low + step, stop)], len(ids), **options)
            rows, there = np.arange(low - start, low - start + len(found.ids)), found.ids >= 0
            block[np.repeat(rows, there.sum(axis=1)), np.searchsorted(ids, found.ids[there])] = (
                sign * found.distances[there])
        return block
    return metrics.mean_average_precision(distances, np.asarray(asked), np.asarray(labels)[ids])


COMMANDS: dict[str, Callable[[Namespace], Outcome]] = {
    "demo": _demo, "train": _train, "encode": _encode, "decode": _decode, "build": _build, "search": _search,
    "tune": _tune, "eval": _eval, "info": _about.info, "warmup": _about.warmup}
