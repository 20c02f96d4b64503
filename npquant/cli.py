"""The command ``npquant``: train, encode, build, search and evaluate on files, without writing Python.

Nothing but the standard library is imported before a command runs, so that ``--help`` answers at once. Results
go to stdout, words about the work to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from npquant import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from npquant.index.base import Index

_METRICS = ("l2", "ip", "cosine")
_ROWS = 65_536  # vectors encoded at once, so that a file larger than memory goes through
_RANKED = 1 << 24  # distances of whole rankings held at once
_FORMATS = """files:
  Vectors and labels are read from .npy, .npz, .fvecs/.bvecs/.ivecs, .fbin/.u8bin/.i8bin/.ibin and idx
  (also .gz). FILE.npz:NAME is one array of a .npz file. Labelled data is a folder of idx files like
  MNIST's, or a .npz with X_train, y_train, X_test, y_test (or X and y: a fifth is then set aside as
  queries); its training part is what is trained on, encoded and searched in, its test part the queries."""


class Outcome(NamedTuple):
    """What a command has to say: for machines, for people, and as an exit code."""

    report: Any
    text: str
    code: int = 0


class UsageError(Exception):
    """The command line asks for what does not go together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode shows escapes
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said what there is to say
        return _flushed(stop.code if isinstance(stop.code, int) else 2)
    if args.run is None:
        print(parser.format_help(), file=sys.stderr)
        return 2
    if args.debug:
        return _flushed(_run(args))
    try:
        return _flushed(_run(args))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except UsageError as error:
        return _fail(f"{error} (see: npquant {args.command} -h)", 2)
    except BrokenPipeError:
        return _flushed(0)
    except MemoryError as error:
        return _fail(f"out of memory. {error}")
    except Exception as error:
        from npquant.errors import NpquantError
        if isinstance(error, OSError) and error.strerror:
            return _fail(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
        if isinstance(error, NpquantError):
            return _fail(str(error))
        return _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)")


def _run(args: argparse.Namespace) -> int:
    # Products as small as the digits' are done sooner by one thread, above all on a busy machine.
    small = args.command == "demo" and args.data is None
    with _threads(args.threads, 1 if small else args.threads), _warnings():
        outcome: Outcome = args.run(args)
    print(_json(outcome.report) if args.json in (True, "-") else outcome.text)
    return outcome.code


def _fail(message: str, code: int = 1) -> int:
    print("npquant: error:", " ".join(message.split()), file=sys.stderr)
    return code


def _note(message: str) -> None:
    print("npquant:", " ".join(message.split()), file=sys.stderr)


def _flushed(code: int) -> int:
    """Return ``code`` after what was printed has left; who closed the pipe (``| head``) has seen enough."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # the interpreter flushes again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


@contextlib.contextmanager
def _threads(ours: int | None, blas: int | None) -> Iterator[None]:
    """Let the environment say how many threads; the BLAS reads it when NumPy is loaded."""
    wanted = {} if ours is None else {"NPQUANT_NUM_THREADS": str(ours)}
    if blas is not None:
        wanted |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(blas))
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Show npquant's warnings in a line each."""
    import warnings

    from npquant.errors import NpquantWarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", NpquantWarning)
        usual = warnings.showwarning

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if isinstance(message, NpquantWarning):
                _note(f"warning: {message}")
            else:
                usual(message, category, *where, **more)
        warnings.showwarning = show
        yield


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
            _note(words)

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


def _json(value: Any) -> str:
    import json
    import math

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        if isinstance(item, float) and not math.isfinite(item):
            return None  # JSON has no word for it
        return item if isinstance(item, (str, int, float, bool, type(None))) else str(item)
    return json.dumps(plain(value), indent=1, allow_nan=False)


def _array(path: str) -> NDArray[Any]:
    """Return the array in a file, or the one that ``FILE.npz:NAME`` names."""
    from npquant import datasets
    from npquant.errors import FormatError
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
    from npquant import datasets
    from npquant.errors import FormatError
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
    from npquant import persist
    from npquant.errors import InvalidInputError
    found = persist.load(path)
    if not any(cls.__name__ in kinds for cls in type(found).__mro__):
        wanted = {"Index": "an index (npquant build makes one)", "KMeans": "a KMeans",
                  "Quantizer": "a model that encodes (npquant train makes one)"}
        raise InvalidInputError(f"{path} holds a {type(found).__name__}, wanted "
                                f"{' or '.join(wanted[kind] for kind in kinds)}.")
    return found


def _encoded(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np
    encode = model.encode if hasattr(model, "encode") else model.predict
    return np.concatenate([encode(x[start:start + _ROWS]) for start in range(0, max(1, len(x)), _ROWS)])


def _index(model: Any, x: NDArray[Any], metric: str, ids: Any = None) -> Index:
    from npquant.index.flat import FlatIndex
    index = FlatIndex(model, metric)
    for start in range(0, max(1, len(x)), _ROWS):
        index.add(x[start:start + _ROWS], None if ids is None else ids[start:start + _ROWS])
    return index


# --- commands ---


def _demo(args: argparse.Namespace) -> Outcome:
    from npquant import _demo as demo
    from npquant import datasets, plot
    from npquant.errors import InvalidInputError
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
        raise UsageError(str(error)) from None
    meter = _Meter(len(settings.bits) * len(settings.rules) * (settings.epochs or 1), "epoch")
    try:
        result = demo.compare(
            data, settings, on_epoch=meter.step,
            on_row=lambda row: meter.line(f"{row['rule']}, {row['bits']} bits: MAP {row['map_codes']:.3f}, "
                                          f"{row['train_seconds']:.1f} s"))
    finally:
        meter.close()
    if args.json not in (None, "-"):
        _write_text(args.json, _json(result))
    if args.plot:
        plot.save(plot.comparison(result), args.plot)
    title = "npquant demo: learned short codes, and the classic ones, on " + (
        "handwritten digits of 8 x 8 pixels" if args.data is None else args.data)
    return Outcome(result, f"{title}\n{demo.table(result)}")


_DEEP = ("loss", "output", "hidden", "d_out", "epochs", "lr", "batch_size", "whiten", "validation",
         "patience")
_OPTIONS = {"deep": (*_DEEP, "m", "nbits", "labels"), "pq": ("m", "nbits", "iterations"),
            "kmeans": ("clusters", "iterations")}


def _train(args: argparse.Namespace) -> Outcome:
    from npquant import persist
    method = args.method or "deep"
    allowed: tuple[str, ...] = ("labels",) if args.resume else _OPTIONS[method]
    for name in sorted({name for names in _OPTIONS.values() for name in names} - set(allowed)):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} does not go with " + (
                "--resume: what was chosen at the start holds" if args.resume else f"--method {method}"))
    if args.resume and method != "deep":
        raise UsageError(f"--resume does not go with --method {method}")
    if args.out is None and not args.resume:
        raise UsageError("give -o FILE, the model to write")
    target = _output(args.out or args.resume)
    x, y = _data(args.data)
    if args.labels:
        y = _array(args.labels)
    began = time.perf_counter()
    model = _resumed(args.resume) if args.resume else _new(args, method)
    code = 0
    if method == "deep":
        code = _fitted(model, x, y, args.resume is not None)
    else:
        model.fit(x)
    persist.save(model, target)
    kind, seconds = type(model).__name__, time.perf_counter() - began
    report = {"file": target, "kind": kind, "vectors": len(x), "dimensions": int(x.shape[1]),
              "seconds": round(seconds, 3), "finished": code == 0}
    text = f"{target}: {kind} of {len(x):,} vectors of dimension {x.shape[1]}, {seconds:.1f} s"
    if method != "kmeans":
        report["code_size"] = model.code_size
        text += f"\n  a vector becomes {_many(model.code_size, 'byte')} (as float32: {4 * x.shape[1]:,})"
    if method == "deep":
        report["history"] = model.history_
        report["supervision"] = "nearest neighbours" if y is None else "labels"
        text += f"\n  learned from {report['supervision']}, {len(model.history_)} of {model.epochs} epochs"
        if model.history_:
            last = model.history_[-1]
            text += f"; last epoch: loss {last['loss']:.4g}"
            if last["distortion"] is not None:
                text += f", distortion {last['distortion']:.4f} of the variance"
            scores = [entry["validation"] for entry in model.history_ if entry["validation"] is not None]
            if scores:
                text += f"; best validation MAP {max(scores):.4f}"
    if code:
        _note(f"interrupted after {len(model.history_)} of {model.epochs} epochs: {target} can be used as it is, "
              f"and 'npquant train {args.data} --resume {target}' goes on"
              + (f" (with --labels {args.labels})" if args.labels else ""))
    return Outcome(report, text, code)


def _new(args: argparse.Namespace, method: str) -> Any:
    from npquant import DeepQuantizer, KMeans, ProductQuantizer
    if method == "kmeans":
        return KMeans(args.clusters or 256, max_iter=25 if args.iterations is None else args.iterations,
                      random_state=args.seed)
    blocks = {name: getattr(args, name) for name in ("m", "nbits") if getattr(args, name) is not None}
    if method == "pq":
        return ProductQuantizer(**blocks, n_iter=25 if args.iterations is None else args.iterations,
                                random_state=args.seed)
    options = {name: getattr(args, name) for name in _DEEP if getattr(args, name) is not None}
    if "output" in options and len(options["output"]) == 1:
        options["output"] = options["output"][0]
    return DeepQuantizer(**options, quantizer=ProductQuantizer(**{"m": 4, **blocks}), random_state=args.seed)


def _resumed(path: str) -> Any:
    from npquant.errors import InvalidInputError
    model = _load(path, "Quantizer")
    if type(model).__name__ != "DeepQuantizer" or model.training_ is None:
        raise InvalidInputError(f"{path} holds no interrupted training: it was finished, or is not of --method "
                                "deep. Train anew without --resume.")
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
    import signal
    import threading

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


def _encode(args: argparse.Namespace) -> Outcome:
    from npquant import datasets
    _output(args.out)
    model = _load(args.model, "Quantizer", "KMeans")
    codes = _encoded(model, _data(args.data)[0])
    datasets.write(args.out, codes)
    size = codes.nbytes // max(1, len(codes))
    return Outcome({"file": args.out, "vectors": len(codes), "code_size": size, "dtype": str(codes.dtype)},
                   f"{args.out}: {len(codes):,} codes of {_many(size, 'byte')}, {codes.dtype} {codes.shape}")


def _decode(args: argparse.Namespace) -> Outcome:
    import numpy as np

    from npquant import datasets
    from npquant.errors import InvalidInputError
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


def _build(args: argparse.Namespace) -> Outcome:
    from npquant import persist
    _output(args.out)
    model = _load(args.model, "Quantizer")
    index = _index(model, _data(args.data)[0], args.metric, _array(args.ids) if args.ids else None)
    persist.save(index, args.out)
    size = os.path.getsize(args.out)
    return Outcome({"file": args.out, "vectors": index.ntotal, "code_size": model.code_size,
                    "metric": args.metric, "bytes": size},
                   f"{args.out}: {index.ntotal:,} vectors of {_many(model.code_size, 'byte')}, metric "
                   f"{args.metric}; {_bytes(size)} with the model and the ids")


def _search(args: argparse.Namespace) -> Outcome:
    from npquant import datasets
    if args.out:
        _output(args.out)
    index = _load(args.index, "Index")
    queries = _data(args.queries, "test")[0]
    began = time.perf_counter()
    distances, ids = index.search(queries, args.k)
    seconds = time.perf_counter() - began
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


def _eval(args: argparse.Namespace) -> Outcome:
    from npquant import metrics
    from npquant.errors import InvalidInputError
    found = _load(args.model, "Index", "Quantizer")
    queries, asked_labels = _data(args.queries, "test")
    base: Any = None
    base_labels: Any = None
    if args.database or asked_labels is not None:
        base, base_labels = _data(args.database or args.queries)
    if hasattr(found, "search"):
        index = found
    elif base is None:
        raise UsageError("a model is evaluated by searching in vectors: give --database FILE (or an index)")
    else:
        index = _index(found, base, args.metric or "l2")
    if args.metric not in (None, index.metric):
        raise UsageError(f"the index was built with --metric {index.metric}")
    report: dict[str, Any] = {"vectors": index.ntotal, "queries": len(queries), "metric": index.metric}
    lines = [f"{len(queries):,} queries in {index.ntotal:,} vectors of {_many(index.codec.code_size, 'byte')}, "
             f"metric {index.metric}"]
    asked_labels = _array(args.labels) if args.labels else asked_labels
    base_labels = _array(args.database_labels) if args.database_labels else base_labels
    if args.truth is None and (args.labels or (asked_labels is not None and args.database is None)):
        if asked_labels is None or base_labels is None:
            raise UsageError("MAP needs the labels of the queries (--labels) and of the vectors searched in "
                             "(--database-labels)")
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
        raise UsageError("say what is right: --truth FILE (ids of true neighbours), or --labels and "
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
    import numpy as np

    from npquant import _checks, metrics
    from npquant.errors import InvalidInputError
    _checks.length(asked, len(queries), "the queries' labels", "queries")
    ids = np.sort(index.ids)
    if not len(ids) or ids[-1] >= len(labels):
        held = f"id {ids[-1]}: label number r belongs to id r" if len(ids) else "nothing"
        raise InvalidInputError(f"the database's labels have {len(labels)} rows, and the index holds {held}.")
    sign = np.float32(1 if index.metric == "l2" else -1)

    def distances(start: int, stop: int) -> NDArray[np.float32]:
        block = np.empty((stop - start, len(ids)), np.float32)
        step = max(1, _RANKED // len(ids))
        for low in range(start, stop, step):
            found = index.search(queries[low:min(low + step, stop)], len(ids))
            rows = np.arange(low - start, low - start + len(found.ids))[:, None]
            block[rows, np.searchsorted(ids, found.ids)] = sign * found.distances
        return block
    return metrics.mean_average_precision(distances, np.asarray(asked), np.asarray(labels)[ids])


def _info(args: argparse.Namespace) -> Outcome:
    if args.file is None:
        return _about()
    path = args.file
    if os.path.isdir(path):
        from npquant import datasets
        return _about_data(path, "labelled data", datasets.load_labelled(path)._asdict())
    from npquant import persist
    from npquant.errors import FormatError
    try:
        report = persist.describe(path)
    except FormatError:
        if path.lower().endswith(".npq"):
            raise
        from npquant import datasets
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
    import platform
    from importlib import metadata

    import numpy as np

    from npquant.kernels import _jit, _pool
    config: Any = np.show_config(mode="dicts")
    report = {"npquant": __version__, "python": platform.python_version(), "numpy": np.__version__,
              "numba": metadata.version("numba") if _jit.have_numba() else None, "jit": _jit.jit_mode(),
              "cache": str(_jit.cache_folder() or "") or None, "threads": _pool.available_threads(),
              "machine": platform.machine(), "simd": config.get("SIMD Extensions", {}).get("found", []),
              "blas": config.get("Build Dependencies", {}).get("blas", {}).get("name")}
    jit = {"0": "off (NPQUANT_JIT=0): NumPy alone", "1": "compile at the first call (NPQUANT_JIT=1)",
           "auto": "auto: compile when it pays (NPQUANT_JIT=0 or 1 to choose)"}
    lines = {"npquant": __version__, "python": report["python"],
             "numpy": f"{np.__version__}, BLAS {report['blas']}",
             "numba": report["numba"] or "not there: NumPy twins run (slower, the same results)",
             "compiler": jit[_jit.jit_mode()],
             "kernel cache": report["cache"] or "none is writable: kernels are compiled anew in each process",
             "threads": f"{report['threads']} (NPQUANT_NUM_THREADS or --threads to choose)",
             "processor": f"{report['machine']}, {' '.join(map(str, report['simd']))}"}
    return Outcome(report, "\n".join(f"{name:<13} {value}" for name, value in lines.items()))


def _warmup(args: argparse.Namespace) -> Outcome:
    import pkgutil
    from importlib import import_module

    from npquant import kernels
    from npquant.kernels import _jit
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


# --- the command line ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in a line, with the way to the help."""
        self.exit(2, f"npquant: error: {' '.join(message.split())} (see: {self.prog} -h)\n")


def _whole(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.removeprefix("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r}, wanted a whole number from {low} up")
        return int(text)
    return number


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}, wanted a number above 0")


def _words(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted different words with commas between them")
    return found


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(_whole(1)(word) for word in text.split(",") if word.strip()) or _nothing(text)


def _nothing(text: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"{text!r}, wanted whole numbers with commas between them")


def _code_lengths(text: str) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(_wholes(text)))
    if any(bits % 8 for bits in found):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted multiples of 8, such as 16,32: a block is a byte")
    return found


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    add = common.add_argument_group("common options").add_argument
    add("--seed", type=_whole(0), default=0, metavar="N",
        help="all randomness comes from it: the same seed, the same result (default 0)")
    add("--threads", type=_whole(1), metavar="N", help="default: all processors there are")
    add("--debug", action="store_true", help="show where an error comes from")
    asked = _Parser(add_help=False, parents=[common])
    asked.add_argument("--json", action="store_true", help="print the result for machines")
    parser = _Parser(
        prog="npquant", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vectors made small, searchable and learnable to be small: on a CPU, with NumPy and Numba.",
        epilog="first steps:\n"
               "  npquant demo                      what learned codes can do, in half a minute\n"
               "  npquant train base.fvecs --method pq -o pq.npq\n"
               "  npquant build pq.npq base.fvecs -o base.npq\n"
               "  npquant search base.npq queries.fvecs -k 5\n"
               "  npquant COMMAND -h                an example of each command\n\n" + _FORMATS)
    parser.add_argument("--version", action="version", version=f"npquant {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def command(name: str, run: Callable[[argparse.Namespace], Outcome], words: str, example: str,
                parent: _Parser = asked) -> Callable[..., Any]:
        made = commands.add_parser(
            name, parents=[parent], help=words[0].lower() + words[1:].partition(".")[0], description=words,
            formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"example:\n{example}\n\n{_FORMATS}")
        made.set_defaults(run=run)
        return made.add_argument

    _add_demo(command(
        "demo", _demo, "Compare ways of learning short codes, in one table. A network maps labelled vectors to\n"
        "32 numbers, which are coded in a few bytes; the rules differ in how training takes the\n"
        "coding into account.",
        "  npquant demo\n  npquant demo --data mnist --bits 16,32 --plot mnist.png", common))
    _add_train(command("train", _train, "Learn a model that makes vectors small, and write it to a file.",
                       "  npquant train base.fvecs --method pq --m 16 -o pq.npq\n"
                       "  npquant train x.npy --labels y.npy --output straight_through,ssm -o deep.npq"))
    add = command("encode", _encode, "Write the codes of vectors.",
                  "  npquant encode pq.npq base.fvecs -o codes.npy")
    add("model", metavar="MODEL", help="what npquant train wrote")
    add("data", metavar="DATA", help="vectors")
    add("-o", "--out", required=True, metavar="FILE",
        help="the codes, such as codes.npy (uint8; of a KMeans the number of the nearest centre)")
    add = command("decode", _decode, "Write the vectors that codes stand for.",
                  "  npquant decode pq.npq codes.npy -o approximate.npy")
    add("model", metavar="MODEL", help="what npquant train wrote")
    add("codes", metavar="CODES", help="what npquant encode wrote")
    add("-o", "--out", required=True, metavar="FILE", help="the vectors, such as out.npy or out.fvecs (float32)")
    add = command("build", _build, "Make an index: the codes of vectors, ready to be searched.",
                  "  npquant build pq.npq base.fvecs -o base.npq")
    add("model", metavar="MODEL", help="what npquant train wrote")
    add("data", metavar="DATA", help="the vectors to search in")
    add("-o", "--out", required=True, metavar="FILE", help="the index, such as index.npq")
    add("--metric", choices=_METRICS, default="l2",
        help="nearest by squared distance, inner product or cosine (default l2)")
    add("--ids", metavar="FILE", help="a whole number a vector; default 0, 1, 2, ...")
    add = command("search", _search, "Find the nearest vectors of each query.",
                  "  npquant search base.npq queries.fvecs -k 10 -o result.npz")
    add("index", metavar="INDEX", help="what npquant build wrote")
    add("queries", metavar="QUERIES", help="vectors")
    add("-k", type=_whole(1), default=10, metavar="K", help="how many (default 10)")
    add("-o", "--out", metavar="FILE",
        help=".npz: ids and distances; .npy, .ivecs, .ibin: ids; default: the first are printed")
    add("--rows", type=_whole(1), default=5, metavar="N", help="queries printed (default 5)")
    add = command("eval", _eval, "Measure how good the results of an index or a model are.",
                  "  npquant eval base.npq --queries queries.fvecs --truth groundtruth.ivecs\n"
                  "  npquant eval deep.npq --queries mnist")
    add("model", metavar="INDEX|MODEL", help="what npquant build or train wrote")
    add("--queries", required=True, metavar="FILE", help="vectors, or labelled data (which MAP is measured on)")
    add("--truth", metavar="FILE", help="ids of the true neighbours (queries, k), nearest first")
    add("--labels", metavar="FILE", help="a label a query: measures MAP")
    add("--database-labels", metavar="FILE", help="a label a vector searched in (row r is id r)")
    add("--database", metavar="FILE",
        help="the vectors searched in: needed for a model, and to compute the true neighbours")
    add("--metric", choices=_METRICS, help="of a model (default l2)")
    add = command("info", _info, "Say what is in a file; without one, what npquant finds on this machine.",
                  "  npquant info\n  npquant info base.npq")
    add("file", nargs="?", metavar="FILE", help="a model, an index or data")
    command("warmup", _warmup, "Compile everything now, so that no later start waits for the compiler.",
            "  npquant warmup        (in a container's build, on the same kind of processor)")
    return parser


def _add_demo(add: Callable[..., Any]) -> None:
    add("--data", metavar="DIR|FILE", help="labelled data (default: 1,797 handwritten digits, inside)")
    add("--bits", type=_code_lengths, default=(16, 32), metavar="N,N", help="code lengths (default 16,32)")
    add("--rules", type=_words, default=("plain", "penalty", "straight_through", "gsl", "ssm"), metavar="A,B",
        help="of plain, penalty, straight_through, gsl, ssm, hybrid; A+B is both (default: the first 5)")
    add("--epochs", type=_whole(1), metavar="N", help="passes over the data (default by its size)")
    add("--batch-size", type=_whole(2), metavar="N", help="default by the size of the data")
    add("--lr", type=_above_zero, metavar="RATE", help="learning rate; default by the size of the data")
    add("--hidden", type=_wholes, default=(512,), metavar="N,N", help="widths of hidden layers (default 512)")
    add("--d-out", type=_whole(1), default=32, metavar="N", help="outputs of the network (default 32)")
    add("--queries", type=_whole(1), metavar="N", help="ask only so many (default: all there are)")
    add("--quick", action="store_true", help="a part of the data and few epochs: a first look")
    add("--json", nargs="?", const="-", metavar="FILE", help="the result for machines, to a file or stdout")
    add("--plot", metavar="FILE", help="a picture (.png, .svg, .pdf) of the table and of the trainings")


def _add_train(add: Callable[..., Any]) -> None:
    add("data", metavar="DATA", help="vectors, or labelled data")
    add("-o", "--out", metavar="FILE", help="the model, such as model.npq")
    add("--method", choices=tuple(_OPTIONS), help="deep: a network and product quantization of its outputs "
        "(default); pq: product quantization; kmeans: one codebook")
    add("--m", type=_whole(1), metavar="N", help="blocks a vector is cut into, a byte each (deep 4, pq 8)")
    add("--nbits", type=_whole(1), metavar="N", help="bits a block, 1 to 8 (default 8)")
    add("--clusters", type=_whole(1), metavar="N", help="kmeans: how many centres (default 256)")
    add("--iterations", type=_whole(0), metavar="N", help="pq and kmeans: at the most (default 25)")
    add("--labels", metavar="FILE", help="deep: a label a vector; without labels it learns from neighbours")
    add("--loss", choices=("triplet", "contrastive", "softmax"), help="deep: default triplet")
    add("--output", type=_words, metavar="RULE,RULE", help="deep: how training takes the coding into account: "
        "plain, penalty, straight_through, gsl, ssm, hybrid, or a chain of them (default gsl)")
    add("--hidden", type=_wholes, metavar="N,N", help="deep: widths of hidden layers (default 512)")
    add("--d-out", type=_whole(1), metavar="N", help="deep: outputs of the network (default 32)")
    add("--epochs", type=_whole(1), metavar="N", help="deep: passes over the data (default 30)")
    add("--lr", type=_above_zero, metavar="RATE", help="deep: learning rate (default 0.002)")
    add("--batch-size", type=_whole(2), metavar="N", help="deep: default 256")
    add("--whiten", type=_whole(1), metavar="N", help="deep: inputs by PCA to N dimensions, softly whitened")
    add("--validation", type=_above_zero, metavar="SHARE",
        help="deep: share of the vectors that chooses the best epoch, such as 0.1")
    add("--patience", type=_whole(1), metavar="N", help="deep: stop after N epochs that are not better")
    add("--resume", metavar="MODEL",
        help="deep: go on with a training that Ctrl-C interrupted (-o: the same file)")
