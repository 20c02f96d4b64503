"""Pictures of a training and of the demo's table; needs matplotlib (extra ``plot``), and only when called.

Figures are made without pyplot: nothing global is touched, and no window opens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from npquant.errors import InvalidInputError

# Okabe & Ito's colours, which stay apart for colour-blind eyes.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_CURVES = (("loss", "loss of an epoch"), ("distortion", "distortion\n(share of the variance lost)"),
           ("validation", "validation (by codes)"))


def training_curves(history: Any) -> Any:
    """Return a figure of loss, distortion and validation by epoch.

    Parameters
    ----------
    history : DeepQuantizer, Catalyzer, list of dict, or mapping of str to either
        A trained model or its ``history_``; a mapping draws several, under its names. Figures that do not
        exist yet (``None``) are left out, and so is a panel without any.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("curves.png")`` writes it.

    Raises
    ------
    InvalidInputError
        There is nothing to draw, or matplotlib is not installed.

    Examples
    --------
    >>> import npquant as nq
    >>> X, y, _, _ = nq.datasets.load_digits()
    >>> model = nq.DeepQuantizer(hidden=(32,), d_out=8, epochs=3, random_state=0,
    ...                          quantizer=nq.ProductQuantizer(m=2, nbits=4)).fit(X, y)
    >>> figure = nq.plot.training_curves(model)  # doctest: +SKIP
    """
    named = {str(name): _entries(one) for name, one in history.items()} if isinstance(history, Mapping) else {
        "": _entries(history)}
    named = {name: entries for name, entries in named.items() if entries}
    if not named:
        raise InvalidInputError("history is empty: draw a model after fit.")
    panels = [(key, title) for key, title in _CURVES
              if any(entry.get(key) is not None for entries in named.values() for entry in entries)]
    figure = _figure(4.6 * len(panels), 3.6)
    for place, (key, title) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        _curves(axes, named, key, title)
        if place == 1 and len(named) > 1:
            axes.legend(frameon=False)
    return figure


def comparison(result: Mapping[str, Any]) -> Any:
    """Return a figure of the demo's table: MAP of each rule as bars, and the course of its training.

    Parameters
    ----------
    result : mapping
        What ``npquant demo --json`` writes: ``data`` and ``rows``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidInputError
        There are no rows, or matplotlib is not installed.
    """
    rows = list(result.get("rows", ()))
    if not rows:
        raise InvalidInputError("result has no rows: give what 'npquant demo --json' writes.")
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    colour = {rule: _COLOURS[i % len(_COLOURS)] for i, rule in enumerate(rules)}
    bits = sorted({row["bits"] for row in rows})
    curved = [b for b in bits if any(row["history"] for row in rows if row["bits"] == b)]
    figure = _figure(12, 4 + 3.4 * bool(curved))
    grid = figure.add_gridspec(1 + bool(curved), 2)
    about = result["data"]
    figure.suptitle(f"{about['database']:,} vectors, {about['queries']:,} queries, {about['classes']} classes: "
                    "how well short codes find vectors of the same class")
    _bars(figure.add_subplot(grid[0, :]), rows, rules, bits, colour)
    for column, (b, (key, title)) in enumerate((b, curve) for b in curved[-1:] for curve in _CURVES[:2]):
        axes = figure.add_subplot(grid[1, column])
        named = {row["rule"]: row["history"] for row in rows if row["bits"] == b and row["history"]}
        _curves(axes, named, key, title, colour)
        axes.set_title(f"training at {b} bits", fontsize="medium")
    return figure


def spreading(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a figure of what the weight λ of a :class:`Catalyzer` trades: evenness, ranks, and recall by codes.

    Parameters
    ----------
    rows : sequence of mapping
        One for each λ: ``lam``; ``koleo``, L_KoLeo of the outputs of held-out vectors; ``kept``, the share of their 10
        nearest neighbours that are still among the 10 nearest outputs; ``recall``, a mapping of the name of a codec to
        its recall@10.

    Returns
    -------
    matplotlib.figure.Figure
        Left: evenness (−L_KoLeo) against ``kept``, a point a λ. Right: ``recall`` by λ.

    Raises
    ------
    InvalidInputError
        There are no rows, or matplotlib is not installed.
    """
    if not rows:
        raise InvalidInputError("rows is empty: give one for each lambda.")
    ordered = sorted(rows, key=lambda row: row["lam"])
    figure = _figure(9.6, 3.8)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    evenness = [-row["koleo"] for row in ordered]
    left.plot(evenness, [row["kept"] for row in ordered], color=_COLOURS[0], marker="o", markersize=4, linewidth=1.2)
    for row, x in zip(ordered, evenness):
        left.annotate(f"{row['lam']:g}", (x, row["kept"]), xytext=(4, 4), textcoords="offset points", fontsize="small")
    left.set_xlabel("evenness of the outputs (−L_KoLeo)")
    left.set_ylabel("share of 10 neighbours kept, by floats")
    left.set_title("a point for each weight λ", fontsize="medium")
    places = range(len(ordered))
    for i, name in enumerate(dict.fromkeys(name for row in ordered for name in row["recall"])):
        points = [(place, row["recall"][name]) for place, row in zip(places, ordered) if name in row["recall"]]
        right.plot(*zip(*points), label=name, color=_COLOURS[i % len(_COLOURS)], marker="o", markersize=4)
    right.set_xticks(list(places), [f"{row['lam']:g}" for row in ordered])
    right.set_xlabel("weight λ")
    right.set_ylabel("recall@10 by codes")
    right.legend(frameon=False)
    for axes in (left, right):
        _plain(axes)
    return figure


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file; its name (png, svg, pdf) says the format. An old file is replaced in one step.

    Raises
    ------
    InvalidInputError
        The name says no known format.
    OSError
    """
    name = os.fspath(path)
    stem, suffix = os.path.splitext(name)
    kinds = figure.canvas.get_supported_filetypes()
    if suffix[1:].lower() not in kinds:
        raise InvalidInputError(f"path is {name!r}, which says no known format. Known are "
                                f"{', '.join(sorted(kinds))}.")
    temporary = f"{stem}.{os.getpid()}.tmp{suffix}"
    try:
        figure.savefig(temporary, format=suffix[1:].lower(), dpi=150)
        os.replace(temporary, name)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def require() -> None:
    """Raise InvalidInputError where matplotlib is not installed: to be told before the work, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InvalidInputError("Drawing needs matplotlib, which is not installed: "
                                "pip install 'npquant[plot]'") from None


def _figure(width: float, height: float) -> Any:
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _entries(history: Any) -> Sequence[Mapping[str, Any]]:
    entries = getattr(history, "history_", history)
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InvalidInputError(f"history is {type(history).__name__}, wanted a trained DeepQuantizer, its "
                                "history_, or a mapping of names to these.")
    return entries


def _curves(axes: Any, named: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str,
            colour: Mapping[str, str] | None = None) -> None:
    for i, (name, entries) in enumerate(named.items()):
        points = [(entry["epoch"] + 1, entry[key]) for entry in entries if entry.get(key) is not None]
        if points:
            axes.plot(*zip(*points), label=name, color=(colour or {}).get(name, _COLOURS[i % len(_COLOURS)]),
                      marker="o" if len(points) < 12 else None, markersize=3.5, linewidth=1.6)
    axes.set_xlabel("epoch")
    axes.set_ylabel(title)
    axes.set_ylim(bottom=0)
    last = max(entry["epoch"] + 1 for entries in named.values() for entry in entries)
    axes.set_xlim(1 - 0.02 * last, 1.02 * last)  # from the first epoch on, also where the figure begins later
    axes.xaxis.get_major_locator().set_params(integer=True)
    _plain(axes)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], rules: Sequence[str], bits: Sequence[int],
          colour: Mapping[str, str]) -> None:
    step = 0.8 / len(rules)
    for place, rule in enumerate(rules):
        for group, b in enumerate(bits):
            row = next((row for row in rows if row["rule"] == rule and row["bits"] == b), None)
            if row is None:
                continue
            x = group + (place - (len(rules) - 1) / 2) * step
            axes.bar(x, row["map_codes"], 0.9 * step, color=colour[rule], label=rule if group == 0 else None)
            axes.hlines(row["map_floats"], x - 0.45 * step, x + 0.45 * step, colors="black", linewidth=1.4,
                        label="the same by floats" if group == 0 and place == len(rules) - 1 else None)
            above = max(row["map_codes"], row["map_floats"])
            axes.annotate(f"{row['map_codes']:.3f}", (x, above), xytext=(0, 2), textcoords="offset points",
                          ha="center", va="bottom", fontsize="small")
    axes.set_xticks(range(len(bits)), [f"{b} bits ({b // 8} byte{'s' if b > 8 else ''} a vector)" for b in bits])
    axes.set_ylabel("MAP by codes (1 is perfect)")
    axes.set_ylim(0, 1.08)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
