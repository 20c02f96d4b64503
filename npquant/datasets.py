"""Readers and writers of the field's file formats, the embedded digits, and synthetic vectors.

Nothing here trusts a file: every size it claims is held against the size it has before memory is asked for,
nothing is ever unpickled, and whatever is wrong with it is a :class:`~npquant.errors.FormatError` that names
the file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npquant import _checks, _formats
from npquant.errors import FormatError, InvalidInputError
from npquant.kernels._pool import run_blocks

Array = NDArray[Any]
_Path = str | os.PathLike[str]

_SYNTHETIC_ROWS = 4096


class Labelled(NamedTuple):
    """Labelled vectors in two parts, to train on (the database) and to test with (the queries).

    ``X_train`` (n, d) and ``X_test`` (nq, d) are real numbers; ``y_train`` and ``y_test`` are classes (n,),
    (nq,), or matrices of zeros and ones (n, c), (nq, c).
    """

    X_train: Array
    y_train: Array
    X_test: Array
    y_test: Array


class LowRank(NamedTuple):
    """Synthetic vectors ``X`` (n, d) and ``queries`` (nq, d) of the same distribution, both float32."""

    X: NDArray[np.float32]
    queries: NDArray[np.float32]


# --- read and write ---


def read(path: str | os.PathLike[str], *, mmap: bool = False) -> Array | dict[str, Array]:
    """Return the array in a file, or a dict of the arrays where an npz file holds other than one.

    The name says the format: ``.npy``; ``.npz``; ``.idx``, ``.idx.gz`` and names such as
    ``train-images-idx3-ubyte.gz`` (MNIST's); ``.fvecs``, ``.bvecs``, ``.ivecs`` (TEXMEX: each row its int32
    length, then its values); ``.fbin``, ``.u8bin``, ``.i8bin``, ``.ibin`` (big-ann: uint32 n and d, then the
    rows).

    Parameters
    ----------
    path : str or path
        The file.
    mmap : bool
        Return a read-only view of the file instead of a copy in memory; not for compressed files (gz, npz).
        Numbers keep the file's byte order then, which is big-endian in idx files. Of a ``vecs`` file 4,096
        rows spread over it have their length checked, not all, so that a large file is not read through.

    Returns
    -------
    ndarray or dict of str to ndarray
        Of the file's dtype and shape, 2-D (n, d) for the ``vecs`` and ``bin`` formats.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FormatError
        The file is truncated, longer than its header says, corrupt, of another format, holds Python objects,
        is a git-lfs pointer, or has a name that says no known format. A ``vecs`` file has no header: cut
        between two rows it is a valid shorter file.
    InvalidInputError
        ``mmap`` asked of a compressed file.

    Notes
    -----
    Cost: one pass over the file; memory is that of the result.

    Examples
    --------
    >>> import tempfile, os, numpy as np
    >>> from npquant.datasets import read, write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "two.fvecs")
    ...     write(path, np.float32([[1, 2, 3], [4, 5, 6]]))
    ...     read(path)
    array([[1., 2., 3.],
           [4., 5., 6.]], dtype=float32)
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, f"No such file to read (looked from {Path.cwd()})", str(path))
    kind = _formats.kind_of(file)
    if kind is None:
        raise FormatError(f"{path}: the name says no known format. Known are {_formats.KNOWN}.")
    if mmap and kind in ("gz", ".npz"):
        raise InvalidInputError(f"mmap is True, but {path} is compressed and cannot be mapped: read it "
                                "without mmap, or write it as npy first.")
    with open(file, "rb") as stream:
        return _formats.read(stream, path, kind, mmap)


def write(path: str | os.PathLike[str], array: ArrayLike | Mapping[str, ArrayLike]) -> None:
    """Write an array to a file of the format its name says; see :func:`read` for the formats.

    Parameters
    ----------
    path : str or path
        The file; an existing one is replaced in one step, once the new one is complete.
    array : array_like, or mapping of str to array_like (npz only)
        npy and npz (compressed) take any dtype but objects. idx takes uint8, int8, int16, int32, float32 and
        float64 with 1 … 255 dimensions. The ``vecs`` and ``bin`` formats take 2-D arrays whose values their
        type holds exactly: any float up to float32 in ``f…``, integers within range in the others. A ``vecs``
        file needs at least one row.

    Raises
    ------
    InvalidInputError
        The array does not fit the format, or the name says no known one. Nothing is written then.
    OSError
        The file cannot be written.

    Notes
    -----
    The same array gives the same bytes: neither times nor names of the machine go in.
    """
    file = Path(path)
    kind = _formats.kind_of(file)
    if kind is None:
        raise InvalidInputError(f"path is {str(path)!r}, which says no known format. Known are {_formats.KNOWN}.")
    chunks = _formats.chunks(array, kind, path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


# --- labelled data ---


def load_digits() -> Labelled:
    """Return the 1,797 handwritten digits of 8 × 8 pixels that are part of the package.

    Every fifth digit of each class, in the order of the data set, is a test digit, so all classes are
    balanced.

    Returns
    -------
    Labelled
        ``X_train`` (1442, 64) and ``X_test`` (355, 64) float32, whole numbers 0 … 16 (ink in each 4 × 4 block
        of a 32 × 32 bitmap); ``y_train`` and ``y_test`` int64 classes 0 … 9.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, doi:10.24432/C50P49; its test set, as scikit-learn distributes it. Licence: CC BY 4.0.

    Examples
    --------
    >>> from npquant.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.X_train.shape, digits.X_test.shape
    ((1442, 64), (355, 64))
    """
    data = read(Path(__file__).with_name("data") / "digits.npz")
    if not isinstance(data, dict):
        raise FormatError("npquant/data/digits.npz is not the one that npquant was made with: install it "
                          "anew.")
    X, y = data["X"].astype(np.float32), data["y"].astype(np.int64)
    test = np.zeros(len(y), dtype=np.bool_)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    return Labelled(X[~test], y[~test], X[test], y[test])


def load_labelled(path: str | os.PathLike[str], *, random_state: int = 0) -> Labelled:
    """Return the labelled vectors in a folder or file, in two parts.

    Parameters
    ----------
    path : str or path
        Either a folder of four idx files as MNIST and its kin come in, gzipped or not: ``train-images…``,
        ``train-labels…``, ``t10k-images…``, ``t10k-labels…`` (``test-`` will do for ``t10k-``).
        Or an npz file with ``X_train``, ``y_train``, ``X_test``, ``y_test`` (``x_…`` will do for ``X_…``).
        Or an npz file with ``X`` and ``y``, ``x`` and ``y``, or ``data`` and ``target``, which is then split:
        of the rows in the order of ``numpy.random.default_rng(random_state).permutation(n)`` the first n // 5
        are the test part; both parts keep the file's order. Other arrays in the file are left alone.
    random_state : int
        The seed of that split.

    Returns
    -------
    Labelled
        Images and such are flattened to (n, pixels) and keep the file's dtype; whole-number classes are
        int64.

    Raises
    ------
    FileNotFoundError
        There is no such folder or file.
    FormatError
        Files or arrays are missing (the message lists those found), do not fit one another, or are broken.

    See Also
    --------
    read : the formats.
    """
    place = Path(path)
    if place.is_dir():
        return _from_folder(place)
    if place.suffix.lower() != ".npz" and place.exists():
        raise FormatError(f"{path} is neither a folder of idx files nor an npz file.")
    data = read(place)
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds a single array: labelled data needs vectors and labels, as X and y.")
    for prefix in ("X", "x"):
        names = (f"{prefix}_train", "y_train", f"{prefix}_test", "y_test")
        if all(name in data for name in names):
            return _labelled(path, *(data[name] for name in names))
    for vectors, classes in (("X", "y"), ("x", "y"), ("data", "target")):
        if vectors in data and classes in data:
            return _split(path, data[vectors], data[classes], random_state)
    raise FormatError(f"{path} holds the arrays {', '.join(sorted(map(repr, data))) or '(none)'}; wanted "
                      "X_train, y_train, X_test and y_test, or X and y, or data and target.")


def _from_folder(folder: Path) -> Labelled:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    arrays = []
    for part, pattern in (("train", "train"), ("t10k", "t10k|test")):
        for what in ("images", "labels"):
            fits = [name for name in found if _formats.kind_of(Path(name)) in ("idx", "gz")
                    and re.search(rf"(^|[-_.])({pattern})[-_.]{what}", name.lower())]
            plain = [name for name in fits if not name.lower().endswith(".gz")] or fits
            if len(plain) != 1:
                raise FormatError(f"{folder} has {len(plain)} files like {part}-{what}-idx…, wanted one. "
                                  f"Files found: {', '.join(found[:20]) or '(none)'}.")
            array = read(folder / plain[0])
            arrays.append(np.asarray(array))
    return _labelled(folder, *arrays)


def _labelled(path: _Path, X_train: Array, y_train: Array, X_test: Array, y_test: Array) -> Labelled:
    train, test = _pair(path, X_train, y_train, "training"), _pair(path, X_test, y_test, "test")
    if train[0].shape[1] != test[0].shape[1] or train[1].shape[1:] != test[1].shape[1:]:
        raise FormatError(f"{path}: training rows have shapes {train[0].shape[1:]} and "
                          f"{train[1].shape[1:]}, test rows {test[0].shape[1:]} and {test[1].shape[1:]}: "
                          "they must be alike.")
    return Labelled(*train, *test)


def _pair(path: _Path, X: Array, y: Array, part: str) -> tuple[Array, Array]:
    if X.ndim < 2 or X.dtype.kind not in "fiub" or 0 in X.shape:
        raise FormatError(f"{path}: the {part} vectors have shape {X.shape} and dtype {X.dtype}, wanted "
                          "real numbers (n, …), neither of them 0.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or len(y) != len(X):
        raise FormatError(f"{path}: {len(X)} {part} vectors, but labels of shape {y.shape}: one row for "
                          "each wanted.")
    return X.reshape(len(X), -1), y.astype(np.int64) if y.dtype.kind in "iu" else y


def _split(path: _Path, X: Array, y: Array, random_state: int) -> Labelled:
    X, y = _pair(path, X, y, "labelled")
    if len(X) < 5:
        raise FormatError(f"{path} holds {len(X)} labelled vectors, and 5 are the fewest that can be split.")
    seed = _checks.integer(random_state, "random_state", low=0)
    test = np.zeros(len(X), dtype=np.bool_)
    test[np.random.default_rng(seed).permutation(len(X))[:len(X) // 5]] = True
    return Labelled(X[~test], y[~test], X[test], y[test])


# --- synthetic vectors ---


def synthetic_low_rank(n: int, *, queries: int = 1000, seed: int = 7, d: int = 128, rank: int = 40,
                       threads: int | None = None) -> LowRank:
    """Return Gaussian vectors near a subspace, ``x = z W + 0.4 e``, a stand-in for a million descriptors.

    ``z`` is standard normal in ``rank`` dimensions, ``e`` in ``d``, ``W`` (rank, d) standard normal and
    common to all; each coordinate has variance near rank + 0.16.

    Parameters
    ----------
    n : int
        How many vectors.
    queries : int
        How many queries, drawn the same way with the same ``W``; may be 0.
    seed : int
        Of ``W`` and of all else.
    d, rank : int
        Dimension, and that of the subspace.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Returns
    -------
    LowRank
        ``X`` (n, d) and ``queries`` (queries, d), float32. The first rows are the same whatever ``n`` and
        ``queries`` are. (Same machine, same NumPy: its random streams and its matrix product may change.)

    Raises
    ------
    InvalidInputError
        A number below 1 (``queries`` and ``seed``: below 0).

    Notes
    -----
    Cost: rank + d normal numbers and 2 · rank · d operations a vector; about 2 s a million on two threads.
    Beside the result it needs 6 MB a thread.

    Examples
    --------
    >>> from npquant.datasets import synthetic_low_rank
    >>> X, queries = synthetic_low_rank(1000, queries=10)
    >>> X.shape, queries.shape, X.dtype
    ((1000, 128), (10, 128), dtype('float32'))
    """
    n, queries = _checks.integer(n, "n"), _checks.integer(queries, "queries", low=0)
    d, rank = _checks.integer(d, "d"), _checks.integer(rank, "rank")
    seed, threads = _checks.integer(seed, "seed", low=0), _checks.threads(threads)
    W = _normal(seed, (0,), (rank, d))

    def drawn(count: int, which: int) -> NDArray[np.float32]:
        result = np.empty((count, d), dtype=np.float32)

        def fill(start: int, stop: int) -> None:
            # Each block has a stream of its own and is always drawn whole: neither the count nor the threads
            # show.
            block = start // _SYNTHETIC_ROWS
            x = _normal(seed, (which, block, 1), (_SYNTHETIC_ROWS, d))
            x *= np.float32(0.4)
            x += _normal(seed, (which, block, 0), (_SYNTHETIC_ROWS, rank)) @ W
            result[start:stop] = x[:stop - start]

        run_blocks(fill, count, _SYNTHETIC_ROWS, threads)
        return result

    return LowRank(drawn(n, 1), drawn(queries, 2))


def _normal(seed: int, key: tuple[int, ...], shape: tuple[int, int]) -> NDArray[np.float32]:
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return stream.standard_normal(shape, dtype=np.float32)
