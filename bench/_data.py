"""The real data of tests and benches, found by NPQUANT_DATA (default ``../shared/data`` by the checkout).

What is where, and under which licence, is told in that folder's README.md. None of it is part of the product.
Images are float32 in [0, 1], flattened; labels int64.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant.datasets import Labelled, load_labelled, read

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class Omniglot(NamedTuple):
    """968 classes: 242 characters in four rotations. The training drawings are part of the database."""

    X_train: Float
    y_train: Int
    X_base: Float
    y_base: Int
    X_validation: Float
    y_validation: Int
    X_test: Float
    y_test: Int


class Sift(NamedTuple):
    """Real SIFT descriptors; ``neighbors`` are the exact 100 nearest in ``base``, nearest first."""

    learn: Float
    base: Float
    queries: Float
    neighbors: NDArray[np.int32]


def root() -> Path:
    """Return the data folder, whether it is there or not."""
    return Path(os.environ.get("NPQUANT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def find(name: str) -> Path:
    """Return the path of a file or folder of the data; leave the program with a word where it is absent."""
    path = root() / name
    if not path.exists():
        raise SystemExit(f"No data at {path}. Set NPQUANT_DATA to the folder that has {name.split('/')[0]}/.")
    return path


def mnist() -> Labelled:
    """60,000 training and 10,000 test images of digits, 784 pixels, 10 classes."""
    return _scaled(load_labelled(find("mnist")))


def fashion_mnist() -> Labelled:
    """60,000 training and 10,000 test images of clothes, 784 pixels, 10 classes."""
    return _scaled(load_labelled(find("fashion-mnist")))


def omniglot() -> Omniglot:
    """Characters of eight alphabets: many classes, few samples of each.

    Rotations by 90° are classes of their own (class 4 · character + quarter turns), and the rotations of one
    drawing stay on one side of each split. Drawings 0–11 train, 0–15 database, 16–17 validation, 18–19 test.
    """
    data = read(find("omniglot/omniglot28.npz"))
    x, y, drawing = data["x"], data["y"].astype(np.int64), data["drawing"]
    turned = np.stack([np.rot90(x, turns, axes=(1, 2)) for turns in range(4)], axis=1)
    X = turned.reshape(-1, 784).astype(np.float32) / np.float32(255)
    classes = (4 * y[:, np.newaxis] + np.arange(4)).ravel()
    drawing = np.repeat(drawing, 4)
    parts = []
    for low, high in ((0, 11), (0, 15), (16, 17), (18, 19)):
        chosen = (drawing >= low) & (drawing <= high)
        parts += [X[chosen], classes[chosen]]
    return Omniglot(*parts)


def sift300k() -> Sift:
    """150,000 to learn from, 150,000 to search in, 2,000 queries, d = 128; all from different photographs."""
    data = read(find("sift/sift300k.npz"))
    return Sift(*(data[name].astype(np.float32) for name in ("learn", "base", "queries")), data["neighbors"])


def _scaled(data: Labelled) -> Labelled:
    return Labelled(data.X_train.astype(np.float32) / np.float32(255), data.y_train,
                    data.X_test.astype(np.float32) / np.float32(255), data.y_test)
