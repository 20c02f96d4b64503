"""The command ``npquant``: train, encode, build, search and evaluate on files, without writing Python.

Nothing but the standard library is imported before a command runs, so that ``--help`` answers at once; what the
commands do stands in ``_commands``. Results go to stdout, words about the work to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from npquant import __version__

_METRICS = ("l2", "ip", "cosine")
_FORMATS = """files:
  Vectors and labels are read from .npy, .npz, .fvecs/.bvecs/.ivecs, .fbin/.u8bin/.i8bin/.ibin and idx
  (also .gz). FILE.npz:NAME is one array of a .npz file. Labelled data is a folder of idx files like
  MNIST's, or a .npz with X_train, y_train, X_test, y_test (or X and y: a fifth is then set aside as
  queries); its training part is what is trained on, encoded and searched in, its test part the queries."""


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
    if args.command is None:
        print(parser.format_help(), file=sys.stderr)
        return 2
    if args.debug:
        return _flushed(_run(args))
    try:
        return _flushed(_run(args))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except argparse.ArgumentError as error:  # options that do not go together
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
    with _threads(args.threads, 1 if small else args.threads):
        from npquant import _commands, _console  # not sooner: they load NumPy
        with _warnings(_console.note):
            outcome = _commands.COMMANDS[args.command](args)
    print(_console.as_json(outcome.report) if args.json in (True, "-") else outcome.text)
    return outcome.code


def _fail(message: str, code: int = 1) -> int:
    print("npquant: error:", " ".join(message.split()), file=sys.stderr)
    return code


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
def _warnings(note: Callable[[str], None]) -> Iterator[None]:
    """Show npquant's warnings in a line each."""
    import warnings

    from npquant.errors import NpquantWarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", NpquantWarning)
        usual = warnings.showwarning

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if isinstance(message, NpquantWarning):
                note(f"warning: {message}")
            else:
                usual(message, category, *where, **more)
        warnings.showwarning = show
        yield


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


def _from_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}, wanted a number from 0")


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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def command(name: str, words: str, example: str, parent: _Parser = asked) -> Callable[..., Any]:
        made = commands.add_parser(
            name, parents=[parent], help=words[0].lower() + words[1:].partition(".")[0], description=words,
            formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"example:\n{example}\n\n{_FORMATS}")
        return made.add_argument

    _add_demo(command(
        "demo", "Compare ways of learning short codes, in one table. A network maps labelled vectors to\n"
        "32 numbers, which are coded in a few bytes; the rules differ in how training takes the\n"
        "coding into account.",
        "  npquant demo\n  npquant demo --data mnist --bits 16,32 --plot mnist.png", common))
    _add_train(command("train", "Learn a model that makes vectors small, and write it to a file.",
                       "  npquant train base.fvecs --method pq --m 16 -o pq.npq\n"
                       "  npquant train sift300k.npz:learn --method catalyzer --bits 64 -o spread.npq\n"
                       "  npquant train x.npy --labels y.npy --output straight_through,ssm -o deep.npq"))
    add = command("encode", "Write the codes of vectors.",
                  "  npquant encode pq.npq base.fvecs -o codes.npy")
    add("model", metavar="MODEL", help="what npquant train wrote")
    add("data", metavar="DATA", help="vectors")
    add("-o", "--out", required=True, metavar="FILE",
        help="the codes, such as codes.npy (uint8; of a KMeans the number of the nearest centre)")
    add = command("decode", "Write the vectors that codes stand for.",
                  "  npquant decode pq.npq codes.npy -o approximate.npy")
    add("model", metavar="MODEL", help="what npquant train wrote")
    add("codes", metavar="CODES", help="what npquant encode wrote")
    add("-o", "--out", required=True, metavar="FILE", help="the vectors, such as out.npy or out.fvecs (float32)")
    add = command("build", "Make an index: the codes of vectors, ready to be searched.",
                  "  npquant build pq.npq base.fvecs -o base.npq\n"
                  "  npquant build 'OPQ16,IVF1024,PQ16,Refine(int8)' base.fvecs -o base.npq")
    add("model", metavar="MODEL", help="what npquant train wrote; or a line that says what to train: a transform "
        "(PCA64, RR, OPQ16), lists (IVF1024, IMI2x8), a codec (PQ16, PQ16x4, Flat, SQ8, ITQ64, ...), Refine(int8)")
    add("--learn", metavar="FILE", help="the vectors that such a line is trained on (default: DATA)")
    add("data", metavar="DATA", help="the vectors to search in")
    add("-o", "--out", required=True, metavar="FILE", help="the index, such as index.npq")
    add("--metric", choices=_METRICS, default="l2",
        help="nearest by squared distance, inner product or cosine (default l2)")
    add("--ids", metavar="FILE", help="a whole number a vector; default 0, 1, 2, ...")
    add = command("search", "Find the nearest vectors of each query.",
                  "  npquant search base.npq queries.fvecs -k 10 -o result.npz")
    add("index", metavar="INDEX", help="what npquant build wrote")
    add("queries", metavar="QUERIES", help="vectors")
    add("--allow", metavar="FILE", help="the ids, or a mask of the vectors, that alone may be found; default all")
    add("-k", type=_whole(1), default=10, metavar="K", help="how many (default 10)")
    _add_search(add)
    add("-o", "--out", metavar="FILE",
        help=".npz: ids and distances; .npy, .ivecs, .ibin: ids; default: the first are printed")
    add("--rows", type=_whole(1), default=5, metavar="N", help="queries printed (default 5)")
    add = command("tune", "Find the search options of an index that reach a recall fastest, by measuring.",
                  "  npquant tune base.npq held-out.fvecs --recall 0.95")
    add("index", metavar="INDEX", help="what npquant build wrote, with lists or Refine")
    add("queries", metavar="QUERIES", help="vectors like those to come; some hundreds")
    add("--truth", metavar="FILE", help="ids of the true neighbours (queries, k), nearest first; default: what the "
        "most thorough search finds")
    add("--recall", type=_above_zero, default=0.95, metavar="R",
        help="share of the k nearest to be found (default 0.95)")
    add("-k", type=_whole(1), default=10, metavar="K", help="how many (default 10)")
    add = command("eval", "Measure how good the results of an index or a model are.",
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
    _add_search(add)
    add = command("info", "Say what is in a file; without one, what npquant finds on this machine.",
                  "  npquant info\n  npquant info base.npq")
    add("file", nargs="?", metavar="FILE", help="a model, an index or data")
    command("warmup", "Compile everything now, so that no later start waits for the compiler.",
            "  npquant warmup        (in a container's build, on the same kind of processor)")
    return parser


def _add_search(add: Callable[..., Any]) -> None:
    add("--nprobe", type=_whole(1), metavar="N", help="of an index with lists: how many to look into (default 8)")
    add("--oversample", type=_whole(1), metavar="N", help="of an index that refines: candidates a result (default 10)")


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
    add("--method", choices=("deep", "catalyzer", "pq", "opq", "kmeans"), help="deep: a network and product "
        "quantization of its outputs (default); catalyzer: a network that spreads vectors over a sphere, and the "
        "lattice on it; pq: product quantization; opq: with a learned rotation before it; kmeans: one codebook")
    add("--m", type=_whole(1), metavar="N", help="blocks a vector is cut into (deep 4, pq and opq 8)")
    add("--nbits", type=_whole(1), metavar="N", help="bits a block, 1 to 8 (default 8)")
    add("--metric", choices=_METRICS, help="pq and opq: what the index will be built with; for cosine directions are "
        "trained on (default l2)")
    add("--clusters", type=_whole(1), metavar="N", help="kmeans: how many centres (default 256)")
    add("--iterations", type=_whole(0), metavar="N", help="pq and kmeans: at the most (default 25); opq (default 30)")
    add("--labels", metavar="FILE", help="deep: a label a vector; without labels it learns from neighbours")
    add("--loss", choices=("triplet", "contrastive", "softmax"), help="deep: default triplet")
    add("--output", type=_words, metavar="RULE,RULE", help="how training takes the coding into account: plain, "
        "penalty, straight_through, gsl, ssm, hybrid, or a chain of them (deep gsl, catalyzer plain)")
    add("--bits", type=_whole(1), metavar="N", help="catalyzer: bits of a code at the most (default 64)")
    add("--lam", type=_from_zero, metavar="WEIGHT",
        help="catalyzer: how much evenness counts against the order of neighbours (default 0.05)")
    add("--negative-rank", type=_whole(1), metavar="N",
        help="catalyzer: a vector's N-th neighbour is to stay farther away than its near ones (default 50)")
    add("--hidden", type=_wholes, metavar="N,N", help="widths of hidden layers (deep 512, catalyzer 1024,1024)")
    add("--d-out", type=_whole(1), metavar="N", help="outputs of the network (deep 32, catalyzer 24)")
    add("--epochs", type=_whole(1), metavar="N", help="passes over the data (deep 30, catalyzer 20)")
    add("--lr", type=_above_zero, metavar="RATE", help="learning rate (deep 0.002, catalyzer 0.1)")
    add("--batch-size", type=_whole(2), metavar="N", help="deep 256, catalyzer 64 (and two others to each)")
    add("--whiten", type=_whole(1), metavar="N", help="deep: inputs by PCA to N dimensions, softly whitened")
    add("--validation", type=_above_zero, metavar="SHARE",
        help="deep, catalyzer: share of the vectors that chooses the best epoch, such as 0.1")
    add("--patience", type=_whole(1), metavar="N", help="deep: stop after N epochs that are not better")
    add("--resume", metavar="MODEL",
        help="deep, catalyzer: go on with a training that Ctrl-C interrupted (-o: the same file)")
