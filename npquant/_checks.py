"""The only validation of arrays, ids, seeds and fitted state; called once, by public functions.

A message names the argument, what came, what is wanted and the way out.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError, InvalidTypeError

Float = NDArray[np.float32]

# Squared distances must not overflow float32: (2e17)^2 · 8,000 dimensions is still below its largest number.
_LARGEST = 1e17


def vectors(X: Any, name: str = "X", *, d: int | None = None, owner: str = "this model", min_rows: int = 1,
            one_row: bool = False, copy: bool = False) -> Float:
    """Return ``X`` as a C-contiguous float32 array (n, d) of finite numbers.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Any real dtype, list, strided, Fortran, memmap or read-only; never changed.
    name : str
        What the caller calls it.
    d : int, optional
        The dimension wanted.
    owner : str
        Who wants it, for the message.
    min_rows : int
        The fewest rows allowed.
    one_row : bool
        Whether a 1-D array is taken as a single row.
    copy : bool
        Whether the result must not share memory with ``X``.

    Raises
    ------
    InvalidInputError
    """
    array = _numeric(X, name)
    if array.ndim == 1 and one_row:
        array = array[np.newaxis]
    if array.ndim != 2:
        if array.ndim == 0:
            raise InvalidInputError(f"Expected 2D array, got scalar array instead: {name} is {array!r}. "
                                    f"Give {name} with shape (n, d), one vector a row.")
        raise InvalidInputError(
            f"Expected 2D array, got {array.ndim}D array instead: {name} has shape {array.shape}, wanted (n, d), "
            f"one vector a row. Reshape your data, for a single vector with {name}.reshape(1, -1).")
    if array.shape[0] < min_rows:
        raise InvalidInputError(f"Found array with {array.shape[0]} sample(s): {name} has shape {array.shape}, "
                                f"while a minimum of {min_rows} is required.")
    if d is not None and array.shape[1] != d:
        raise InvalidInputError(
            f"{name} has {array.shape[1]} features, but {owner} is expecting {d} features as input. "
            f"Give vectors of dimension {d}.")
    if array.shape[1] == 0:
        raise InvalidInputError(f"Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is "
                                f"required: {name} has no columns.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is told just below
        result = np.array(array, np.float32, order="C") if copy else np.ascontiguousarray(array, np.float32)
    if array.dtype.kind == "f" or array.dtype.itemsize == 8:
        finite(result, name)
    return result


def _numeric(X: Any, name: str) -> NDArray[Any]:
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise InvalidInputError(f"Sparse data was passed for {name}, but dense data is required. "
                                f"Use {name}.toarray() to convert it.")
    try:
        array = np.asarray(X)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{name} is not an array of numbers with rows of one length: {error}.") from None
    if array.dtype.kind == "c":
        raise InvalidInputError(f"Complex data not supported: {name} has dtype {array.dtype}. "
                                "Give real numbers, for example the real and imaginary parts side by side.")
    if array.dtype.kind not in "fiub":
        try:
            array = array.astype(np.float64)
        except TypeError as error:
            raise InvalidTypeError(f"{name} holds {array.dtype} values that are not numbers ({error}): each "
                                   "argument must be a string or a number. Give an array of real numbers.") from None
        except ValueError as error:
            raise InvalidInputError(f"{name} has dtype {array.dtype}, which is not numeric: {error}. "
                                    "Give an array of real numbers.") from None
    return array


def finite(array: Float, name: str) -> None:
    """Raise unless all numbers are finite, and small enough that squared distances are."""
    # One pass without a temporary of n · d booleans: NaN fails both comparisons.
    if array.size == 0 or (array.max() <= _LARGEST and array.min() >= -_LARGEST):
        return
    row, column = np.argwhere(~(np.abs(array) <= _LARGEST))[0]
    value = array[row, column]
    what = "NaN" if np.isnan(value) else "infinity" if np.isinf(value) else f"{value:.3g}"
    cure = (f"Numbers up to {_LARGEST:.0e} are taken, so that squared distances stay finite in float32: rescale."
            if what not in ("NaN",) else "Drop such rows, or fill them in.")
    raise InvalidInputError(f"Input {name} contains {what} (row {row}, column {column}). {cure}")


def codes(array: Any, code_size: int, name: str = "codes") -> NDArray[np.uint8]:
    """Return ``array`` as C-contiguous uint8 codes (n, code_size); they are never cast."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        got = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise InvalidInputError(f"{name} must be a uint8 array, got {got}: codes are never cast. "
                                "Give what encode returned.")
    if array.ndim != 2 or array.shape[1] != code_size:
        raise InvalidInputError(f"{name} has shape {array.shape}, wanted (n, {code_size}): "
                                f"{code_size} bytes a vector.")
    return np.ascontiguousarray(array)


def labels(y: Any, n: int, name: str = "y") -> NDArray[np.int64]:
    """Return class labels of any sortable kind as integers 0 … c − 1, shape (n,)."""
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InvalidInputError(f"{name} has shape {array.shape}, wanted ({n},): one label a row of X.")
    length(array, n, name)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(f"Input {name} contains NaN or infinity: a label cannot be missing. "
                                "Drop such rows from X and y.")
    try:
        return np.unique(array, return_inverse=True)[1].astype(np.int64)
    except TypeError as error:
        raise InvalidInputError(f"{name} mixes labels that cannot be compared: {error}. "
                                "Give labels of one kind, all numbers or all strings.") from None


def fitted(array: Any, shape: tuple[int | None, ...], name: str, dtype: Any = np.float32) -> None:
    """Raise unless ``array`` is finite and of that dtype and shape (``None``: any length but 0)."""
    if (not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != len(shape)
            or any(have != want if want is not None else have == 0 for have, want in zip(array.shape, shape))
            or not np.isfinite(array).all()):
        raise InvalidInputError(f"{name} has shape {getattr(array, 'shape', None)} and dtype "
                                f"{getattr(array, 'dtype', type(array).__name__)}, wanted finite "
                                f"{np.dtype(dtype).name} of shape {shape}.")


def length(array: Any, n: int, name: str, of: str = "X") -> None:
    """Raise unless ``array`` has ``n`` rows."""
    if len(array) != n:
        raise InvalidInputError(f"{name} has {len(array)} rows and {of} has {n}: give one for each, "
                                "in the same order.")


def row_numbers(array: Any, n: int, columns: int, name: str) -> NDArray[np.int64]:
    """Return an integer array (rows, columns) whose entries are row numbers of an array of ``n`` rows."""
    result = np.asarray(array)
    if result.ndim != 2 or result.shape[1] != columns or result.dtype.kind not in "iub":
        raise InvalidInputError(f"{name} must be an integer array of shape (rows, {columns}), got shape "
                                f"{result.shape} and dtype {result.dtype}.")
    if result.shape[0] == 0:
        raise InvalidInputError(f"{name} is empty: give at least one row.")
    if result.min() < 0 or result.max() >= n:
        bad = int(np.flatnonzero((result < 0).any(1) | (result >= n).any(1))[0])
        raise InvalidInputError(f"{name} row {bad} is {result[bad].tolist()}, out of range: rows of X are "
                                f"numbered 0 … {n - 1}.")
    return np.ascontiguousarray(result, dtype=np.int64)


def integer(value: Any, name: str, low: int = 1, high: int | None = None) -> int:
    """Return ``value`` as an int within [low, high]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise InvalidInputError(f"{name} must be an integer, got {value!r}.")
    result = int(value)
    if result < low or (high is not None and result > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidInputError(f"{name} is {value}, wanted {wanted}.")
    return result


def number(value: Any, name: str, low: float = 0.0, high: float = np.inf, *, above: bool = False) -> float:
    """Return ``value`` as a finite float within [low, high]; above ``low`` where ``above``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InvalidInputError(f"{name} must be a finite number, got {value!r}.")
    result = float(value)
    if result < low or result > high or (above and result == low):
        wanted = f"{'above' if above else 'at least'} {low:g}" + ("" if high == np.inf else f" and at most {high:g}")
        raise InvalidInputError(f"{name} is {value}, wanted {wanted}.")
    return result


def choice(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the words allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInputError(f"{name} is {value!r}, wanted one of {', '.join(map(repr, allowed))}.")
    return value


def metric(value: Any) -> str:
    """Return the metric's name: ``l2``, ``ip`` or ``cosine``."""
    return choice(value, "metric", ("l2", "ip", "cosine"))


def threads(value: Any) -> int | None:
    """Return the number of threads asked for; ``None`` leaves it to the machine."""
    return None if value is None else integer(value, "threads")


def random_state(value: Any) -> np.random.Generator:
    """Return a Generator from ``None``, an int or a Generator; NumPy's global stream is never touched."""
    if isinstance(value, np.random.Generator):
        return value
    if isinstance(value, np.random.RandomState):
        return np.random.default_rng(value.randint(2**31, size=4))
    if value is None:
        return np.random.default_rng()
    return np.random.default_rng(integer(value, "random_state", low=0))
