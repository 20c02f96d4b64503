"""The comparison that ``npquant demo`` runs: output rules × code lengths, and what the rows say."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, metrics
from npquant._training import OUTPUTS
from npquant.datasets import Labelled
from npquant.deep import DeepQuantizer
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.quantizers.base import Codes, Quantizer
from npquant.quantizers.product import ProductQuantizer

Float = NDArray[np.float32]
Blocks = Callable[[int, int], Float]

BASELINE = "PQ, no network"
RULES = ("plain", "penalty", "straight_through", "gsl", "ssm")
MEANING = {
    "plain": "the network learns similarity alone; codebooks are fitted to its outputs",
    "penalty": "each output is also pulled to its nearest codeword (the older method)",
    "straight_through": "the loss sees codewords in the place of the outputs that are compared to",
    "gsl": "gradient snapping: gradients lean towards the codeword an output is heading to",
    "ssm": "space shuttle: gradient snapping with momentum on each output",
    "hybrid": "the momentum of ssm chooses the codeword, gradient snapping does the rest",
    BASELINE: "product quantization of the vectors as they come, the classic way ('floats' are these "
              "vectors; of more than 20,000 the codebooks see 20,000)",
}

_LEGEND = """MAP (mean average precision): do vectors of the query's class come first? 1 = always all of them.
'By floats' ranks by the network's outputs, 'by codes' compares the query's output with the codes alone (ADC).
Distortion: share of the variance that coding loses. Search: the 10 best of the database, by codes."""

_SMALL = 10_000  # database vectors; beyond, training is short of time rather than of data
_BASELINE_ROWS = 20_000  # 78 for each codeword: more takes long on wide vectors, and changes little
_EVEN = 0.005  # of MAP; less may be chance
_TIMED_QUERIES = 1000
_TIMED_FOR = 0.3  # seconds of repetition, so that a short task is not measured cold


@dataclass(frozen=True)
class Settings:
    """What is compared and how it is trained; ``None`` stands for a value that suits the size of the data."""

    rules: tuple[str, ...] = RULES
    bits: tuple[int, ...] = (16, 32)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    hidden: tuple[int, ...] = (512,)
    d_out: int = 32
    queries: int | None = None
    seed: int = 0
    threads: int | None = None
    quick: bool = False

    def checked(self, data: Labelled) -> Settings:
        """Return the settings with every value filled in for ``data``.

        Raises
        ------
        InvalidInputError
        """
        for rule in self.rules:
            for part in rule.split("+"):
                _checks.choice(part, "rules", tuple(OUTPUTS))
        for bits in self.bits:
            if bits < 8 or bits % 8 or self.d_out % (bits // 8):
                fit = [8 * m for m in range(1, self.d_out + 1) if self.d_out % m == 0]
                raise InvalidInputError(
                    f"bits is {bits}, and codes are blocks of 8 bits that share the d_out = {self.d_out} "
                    f"dimensions of the outputs equally. Choose among {', '.join(map(str, fit))}, or another d_out.")
        large = len(data.X_train) > _SMALL and not self.quick
        epochs = (4 if self.quick else 6 if large else 30) if self.epochs is None else self.epochs
        return Settings(
            self.rules, self.bits, _checks.integer(epochs, "epochs"),
            (512 if large else 128) if self.batch_size is None else self.batch_size,
            (4e-3 if large else 2e-3) if self.lr is None else self.lr,
            self.hidden, _checks.integer(self.d_out, "d_out"),
            None if self.queries is None else _checks.integer(self.queries, "queries"),
            _checks.integer(self.seed, "seed", 0), _checks.threads(self.threads), self.quick)


def compare(data: Labelled, settings: Settings | None = None, *,
            on_epoch: Callable[[str], Any] | None = None,
            on_row: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """Return the comparison of output rules on labelled vectors, as values that JSON holds.

    Parameters
    ----------
    data : Labelled
        The training part is also the database; the test part asks.
    settings : Settings, optional
    on_epoch, on_row : callable, optional
        Called after each epoch with the name of what is trained, and with each finished row.

    Returns
    -------
    dict
        ``data`` and ``settings`` (what was compared), ``rows`` (list of dict: ``rule, bits, map_floats,
        map_codes, distortion, code_bytes, vector_bytes, train_seconds, encode_per_second, search_ms,
        history``) and ``findings`` (list of str).

    Raises
    ------
    InvalidInputError
        Settings that do not fit the data.

    Notes
    -----
    Rankings of all queries never stand in memory at once. Times are of this machine as busy as it is; every
    other figure follows from ``seed``.
    """
    chosen = (settings or Settings()).checked(data)
    data = _part(data, chosen)
    rows: list[dict[str, Any]] = []
    _warm_up(data, chosen)
    raw = _raw_map(data, chosen)
    for bits in chosen.bits:
        for rule in (*chosen.rules, BASELINE):
            if rule == BASELINE:
                row = _baseline(data, chosen, bits, raw)
            else:
                row = _learned(data, chosen, rule, bits, on_epoch)
            rows.append(row)
            if on_row is not None:
                on_row(row)
    about = {"database": len(data.X_train), "queries": len(data.X_test), "dimensions": data.X_train.shape[1],
             "classes": _classes(data.y_train)}
    return {"data": about, "settings": asdict(chosen), "rows": rows,
            "findings": findings(rows, about["classes"])}


def findings(rows: Sequence[dict[str, Any]], classes: int) -> list[str]:
    """Return in a few sentences what the rows of a comparison show."""
    said = []
    losses, gains = [], []
    for bits in sorted({row["bits"] for row in rows}):
        here = [row for row in rows if row["bits"] == bits]
        learned = [row for row in here if row["rule"] != BASELINE]
        best = max(learned, key=lambda row: row["map_codes"])
        words = (f"At {bits} bits ({best['code_bytes']} byte{'s' if bits > 8 else ''} a vector instead of "
                 f"{best['vector_bytes']:,}) the best rule is {best['rule']}, MAP {best['map_codes']:.3f} by "
                 "codes")
        plain = next((row for row in learned if row["rule"] == "plain"), None)
        if plain is not None:
            gain = best["map_codes"] - plain["map_codes"]
            words += f", {gain:.3f} beyond plain" if best is not plain else ""
            gains.append(gain)
            losses.append(plain["map_floats"] - plain["map_codes"])
        base = next((row for row in here if row["rule"] == BASELINE), None)
        if base is not None:
            words += f"; PQ without a network has {base['map_codes']:.3f}"
        said.append(words + ".")
    if losses:
        counted = f"{classes} class{'es' if classes != 1 else ''}"
        if max(losses) <= _EVEN:
            kind = "as well as, or better than," if min(losses) <= 0 else "all but as well as"
            words = f"Already with plain, codes rank {kind} floats"
            if max(gains) <= _EVEN:
                said.append(f"{words}: with {counted} there is nothing for a rule to win back (rounding to a "
                            "codeword removes noise), and none is expected to beat plain. Rules matter where codes "
                            "are short for the number of classes.")
            else:
                said.append(f"{words}, and yet the best rule is {max(gains):.3f} above plain.")
        else:
            said.append(f"With plain and {counted}, coding costs up to {max(losses):.3f} of MAP: that is what a "
                        f"rule can win back, and the best wins {max(gains):.3f}.")
        said.append("Differences of a few thousandths are within what another --seed changes.")
    return said


def table(result: dict[str, Any]) -> str:
    """Return a comparison as text: what was compared, one row a rule and code length, findings."""
    about, chosen, rows = result["data"], result["settings"], result["rows"]
    network = "-".join(map(str, (about["dimensions"], *chosen["hidden"], chosen["d_out"])))
    lines = [f"{about['database']:,} database vectors (they are also trained on), {about['queries']:,} queries, "
             f"{about['dimensions']} dimensions, {about['classes']} classes",
             f"network {network}, triplet loss, {chosen['epochs']} epochs, batches of {chosen['batch_size']}, "
             f"rate {chosen['lr']:g}, seed {chosen['seed']}", ""]
    wide = max(16, *(len(row["rule"]) for row in rows))
    layout = f"{{:<{wide}}} {{:>4}}  {{:>6}} {{:>6}}  {{:>10}}  {{:>5}} {{:>8}}  {{:>7}}  {{:>9}}  {{:>9}}"
    lines.append(layout.format("", "", "MAP by", "MAP by", "distortion", "bytes", "bytes as", "train",
                               "encode", "search").rstrip())
    lines.append(layout.format("rule", "bits", "floats", "codes", "by coding", "coded", "float32", "seconds",
                               "vectors/s", "ms/query"))
    before = None
    for row in rows:
        if row["bits"] != before:
            lines.append("-" * len(lines[-1]) if before is None else "")
        before = row["bits"]
        lines.append(layout.format(
            row["rule"], row["bits"], f"{row['map_floats']:.3f}", f"{row['map_codes']:.3f}",
            f"{row['distortion']:.3f}", row["code_bytes"], row["vector_bytes"], f"{row['train_seconds']:.1f}",
            f"{row['encode_per_second']:,.0f}", f"{row['search_ms']:.3f}"))
    lines += ["", *(line for sentence in result["findings"] for line in _wrapped(sentence, 100)), ""]
    lines += _wrapped(_LEGEND, 100)
    shown = [rule for rule in dict.fromkeys(row["rule"] for row in rows) if rule in MEANING]
    for rule in shown:
        lines += _wrapped(f"  {rule + ':':<{wide + 1}} {MEANING[rule]}", 100, " " * (wide + 4))
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    import textwrap
    return textwrap.wrap(text, width, subsequent_indent=indent)


def _classes(labels: NDArray[Any]) -> int:
    return int(labels.shape[1]) if labels.ndim == 2 else len(np.unique(labels))


def _part(data: Labelled, settings: Settings) -> Labelled:
    """Return the rows that are looked at, drawn by the seed, in the order of the data."""
    rng = np.random.default_rng(settings.seed)
    sizes = (1500, 200) if settings.quick else (len(data.X_train), len(data.X_test))
    sizes = sizes[0], sizes[1] if settings.queries is None else settings.queries
    database, queries = (np.sort(rng.permutation(len(X))[:size])
                         for X, size in zip((data.X_train, data.X_test), sizes))
    return Labelled(_checks.vectors(data.X_train[database], "the database"), data.y_train[database],
                    _checks.vectors(data.X_test[queries], "the queries"), data.y_test[queries])


def _model(settings: Settings, rule: str, bits: int) -> DeepQuantizer:
    parts = tuple(rule.split("+"))
    return DeepQuantizer(settings.hidden, settings.d_out, output=parts if len(parts) > 1 else rule,
                         quantizer=ProductQuantizer(m=bits // 8), epochs=settings.epochs or 1,
                         lr=settings.lr or 2e-3, batch_size=settings.batch_size or 256,
                         random_state=settings.seed, threads=settings.threads)


def _warm_up(data: Labelled, settings: Settings) -> None:
    """Train for an epoch on a few rows, so that no rule's time is that of the compiler."""
    few = np.sort(np.random.default_rng(settings.seed).permutation(len(data.X_train))[:1000])
    model = _model(settings, settings.rules[-1], settings.bits[0]).set_params(epochs=1, warmup=0.0)
    with warnings.catch_warnings():  # the real trainings say what is to be said
        warnings.simplefilter("ignore", NpquantWarning)
        model.fit(data.X_train[few], data.y_train[few])
    model.scorer(data.X_test[:8]).scores(model.encode(data.X_train[few]))


def _learned(data: Labelled, settings: Settings, rule: str, bits: int,
             on_epoch: Callable[[str], Any] | None) -> dict[str, Any]:
    def epoch_done(figures: dict[str, Any]) -> None:  # returns nothing: training goes on
        if on_epoch is not None:
            on_epoch(f"{rule}, {bits} bits")
    model = _model(settings, rule, bits).set_params(callback=epoch_done)
    began = time.perf_counter()
    model.fit(data.X_train, data.y_train)
    seconds = time.perf_counter() - began
    outputs, asked = model.transform(data.X_train), model.transform(data.X_test)
    floats = metrics.mean_average_precision(_float_distances(asked, outputs), data.y_test, data.y_train,
                                            threads=settings.threads)
    return {"rule": rule, "bits": bits, "map_floats": floats,
            **_coded(model, data, outputs, settings.threads, seconds), "history": model.history_}


def _baseline(data: Labelled, settings: Settings, bits: int, floats: float) -> dict[str, Any]:
    """Return the row of product quantization without a network; zeros make the dimension divisible."""
    m = bits // 8
    pad = -data.X_train.shape[1] % m
    padded = data if pad == 0 else data._replace(X_train=np.pad(data.X_train, ((0, 0), (0, pad))),
                                                 X_test=np.pad(data.X_test, ((0, 0), (0, pad))))
    rows = np.sort(np.random.default_rng(settings.seed).permutation(len(data.X_train))[:_BASELINE_ROWS])
    began = time.perf_counter()
    codec = ProductQuantizer(m=m, random_state=settings.seed, threads=settings.threads).fit(padded.X_train[rows])
    seconds = time.perf_counter() - began
    row = _coded(codec, padded, padded.X_train, settings.threads, seconds)
    return {"rule": BASELINE, "bits": bits, "map_floats": floats, **row,
            "vector_bytes": 4 * data.X_train.shape[1], "history": []}


def _raw_map(data: Labelled, settings: Settings) -> float:
    return metrics.mean_average_precision(_float_distances(data.X_test, data.X_train), data.y_test,
                                          data.y_train, threads=settings.threads)


def _coded(codec: Quantizer, data: Labelled, points: Float, threads: int | None,
           seconds: float) -> dict[str, Any]:
    """Return the figures that come of the database's codes; ``points`` are what they are codes of."""
    codes, encode_seconds = _timed(lambda: codec.encode(data.X_train))
    asked, ids = data.X_test[:_TIMED_QUERIES], np.arange(len(codes))
    search_seconds = _timed(lambda: codec.scorer(asked).topk(codes, ids, min(10, len(codes)), threads))[1]
    distances = _code_distances(codec, data.X_test, codes, threads)
    return {
        "map_codes": metrics.mean_average_precision(distances, data.y_test, data.y_train, threads=threads),
        "distortion": metrics.distortion(points, codec.decode(codes), relative=True),
        "code_bytes": codec.code_size, "vector_bytes": 4 * data.X_train.shape[1], "train_seconds": seconds,
        "encode_per_second": len(codes) / encode_seconds, "search_ms": 1e3 * search_seconds / len(asked)}


def _timed(task: Callable[[], Any]) -> tuple[Any, float]:
    """Return a task's result and its seconds, the least of as many goes as fit a moment."""
    best, spent, result = float("inf"), 0.0, None
    while result is None or spent < _TIMED_FOR:
        began = time.perf_counter()
        result = task()
        took = max(time.perf_counter() - began, 1e-9)
        best, spent = min(best, took), spent + took
    return result, best


def _float_distances(queries: Float, database: Float) -> Blocks:
    """Return squared distances up to a number for each query, which ranks alike; a GEMM a block."""
    norms = np.einsum("ij,ij->i", database, database, dtype=np.float64).astype(np.float32)

    def block(start: int, stop: int) -> Float:
        products = queries[start:stop] @ database.T
        products *= np.float32(-2)
        products += norms
        return products
    return block


def _code_distances(codec: Quantizer, queries: Float, codes: Codes, threads: int | None) -> Blocks:
    return lambda start, stop: codec.scorer(queries[start:stop]).scores(codes, threads)
