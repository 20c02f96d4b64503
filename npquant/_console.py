"""What all commands of ``npquant`` share: outcomes, words about the work, files in and out."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import Any, NamedTuple

from numpy.typing import NDArray

from npquant import datasets, persist
from npquant.errors import FormatError, InvalidInputError


class Outcome(NamedTuple):
    """What a command has to say: for machines, for people, and as an exit code."""

    report: Any
    text: str
    code: int = 0


def note(message: str) -> None:
    """Say a line about the work, on stderr."""
    print("npquant:", " ".join(message.split()), file=sys.stderr)


class Meter:
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


def writable(path: str) -> str:
    """Return ``path`` if a file can be written there: told before the work, not after it."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise IsADirectoryError(21, "This is a folder, wanted the name of a file to write", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "There is no folder to write to", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "This folder cannot be written to", folder)
    return path


def write_text(path: str, text: str) -> None:
    """Write a line of text to a file, which appears as a whole."""
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


def read_array(path: str) -> NDArray[Any]:
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


def read_data(path: str, part: str = "train") -> tuple[NDArray[Any], Any]:
    """Return vectors (n, d) and their labels, or None; of labelled data the ``part`` "train" or "test"."""
    labelled = None
    if os.path.isdir(path):
        labelled = datasets.load_labelled(path)
    elif path.lower().endswith(".npz") and isinstance(datasets.read(path), dict):
        with contextlib.suppress(FormatError):  # read_array says what there is to choose among
            labelled = datasets.load_labelled(path)
    if labelled is not None:
        return (labelled.X_test, labelled.y_test) if part == "test" else (labelled.X_train, labelled.y_train)
    array = read_array(path)
    return array.reshape(len(array), -1) if array.ndim > 2 else array, None


def read_object(path: str, *kinds: str) -> Any:
    """Return what an .npq file holds, if its class is, or derives from, one of ``kinds``."""
    found = persist.load(path)
    if not any(cls.__name__ in kinds for cls in type(found).__mro__):
        wanted = {"Index": "an index (npquant build makes one)", "KMeans": "a KMeans",
                  "Quantizer": "a model that encodes (npquant train makes one)"}
        raise InvalidInputError(f"{path} holds {with_article(found)}, wanted "
                                f"{' or '.join(wanted[kind] for kind in kinds if kind in wanted)}.")
    return found


# --- words ---


def with_article(thing: Any) -> str:
    """Return the name of the class of ``thing``, as ``an ITQ``."""
    name = type(thing).__name__
    return f"{'an' if name[0] in 'AEIOai' else 'a'} {name}"


def plural(count: int, thing: str) -> str:
    """Return so many of a thing, as ``2 bytes``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def in_bytes(count: float) -> str:
    """Return a size to read, as ``1.5 MB``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
