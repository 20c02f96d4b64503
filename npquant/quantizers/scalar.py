"""Scalar quantization: each number by itself, as a float16 or one of 256 or 16 levels of its dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import scan
from npquant.quantizers.base import Codes, Float, Quantizer

KINDS = ("float16", "int8", "int4")


class ScalarQuantizer(Quantizer):
    """Keep each number of a vector in 16, 8 or 4 bits: large codes, near to the vectors, for re-ranking.

    ``int8`` and ``int4`` divide the range of each dimension among the training vectors into 255 or 15 equal steps, and
    take the nearest level; numbers outside of the range become its ends. ``float16`` needs no training, and keeps 11
    significant bits of numbers up to 65504; larger ones become that.

    Parameters
    ----------
    kind : {"int8", "int4", "float16"}
        Bytes of a vector: d, ⌈d / 2⌉ (two numbers share a byte, the first in its low half), 2 d.
    threads : int, optional

    Attributes
    ----------
    low_, step_ : ndarray (d,) float32
        A code c of dimension j stands for ``low_[j] + c * step_[j]``, in float32. (``float16``: zeros and ones.)
    n_features_in_ : int

    Notes
    -----
    The mean squared error of a dimension is step² / 12 inside of its range. O(d) a vector, to encode and to decode.
    Codes have no look-up tables: an index decodes them by blocks.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> codec = nq.ScalarQuantizer("int4").fit(X)
    >>> codec.encode(X[:3]).shape, float(abs(codec.decode(codec.encode(X)) - X).max()) <= 16 / 15 / 2
    ((3, 32), True)
    """

    _fitted_attribute = "step_"
    low_: Float
    step_: Float

    def __init__(self, kind: str = "int8", *, threads: int | None = None) -> None:
        self.kind = kind
        self.threads = threads

    def _fit(self, x: Float) -> None:
        kind = _checks.choice(self.kind, "kind", KINDS)
        d = x.shape[1]
        low, high = x.min(axis=0), x.max(axis=0)
        if kind == "float16":
            low, high = np.zeros(d, np.float32), np.ones(d, np.float32)
        steps = 1 if kind == "float16" else _levels(kind) - 1
        step = ((high.astype(np.float64) - low) / steps).astype(np.float32)
        self.low_, self.step_ = low, step
        self._kind = kind  # what the codes are, whatever the parameter becomes

    def _encode(self, x: Float) -> Codes:
        if self._kind == "float16":
            return np.ascontiguousarray(np.clip(x, -65504, 65504).astype("<f2")).view(np.uint8).reshape(
                len(x), 2 * x.shape[1])
        wide = np.divide(x.astype(np.float64) - self.low_, self.step_, out=np.zeros(x.shape), where=self.step_ > 0)
        top = _levels(self._kind)
        return scan.pack(np.clip(np.rint(wide), 0, top - 1).astype(np.uint8), top)

    def _decode(self, codes: Codes) -> Float:
        d = self.n_features_in_
        if self._kind == "float16":
            return codes.view("<f2").astype(np.float32).reshape(len(codes), d)
        numbers = codes
        if self._kind == "int4":
            numbers = np.empty((len(codes), 2 * codes.shape[1]), np.uint8)
            np.bitwise_and(codes, 15, out=numbers[:, ::2])
            np.right_shift(codes, 4, out=numbers[:, 1::2])
            numbers = numbers[:, :d]
        out = numbers.astype(np.float32)
        out *= self.step_
        out += self.low_
        return out

    def _in_place(self, codes: Codes) -> tuple[NDArray[Any], tuple[Float, Float] | None] | None:
        return (codes, (self.low_, self.step_)) if self._kind == "int8" else None

    def _refine(self, x: Float, n_iter: int) -> None:
        """Keep the ranges: that of other vectors would make codes mean something else, and be no better."""

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), or hold a number that no vector has: a float16 that is not finite, or a
            last half byte (``int4``, odd d) that is not 0.
        """
        checked = super().check_codes(codes)
        if self._kind == "float16" and not np.isfinite(checked.view("<f2")).all():
            raise InvalidInputError("codes contain a float16 that is not finite. Give what encode returned.")
        if self._kind == "int4" and self.n_features_in_ % 2 and checked.size and checked[:, -1].max() > 15:
            raise InvalidInputError(f"codes contain {checked[:, -1].max()} in the last column, and the high half of "
                                    f"the last byte is 0 where the dimension, {self.n_features_in_}, is odd. Give "
                                    "what encode returned.")
        return checked

    @property
    def code_size(self) -> int:
        """Bytes of one vector."""
        self._check_fitted()
        d = self.n_features_in_
        return {"float16": 2 * d, "int8": d, "int4": (d + 1) // 2}[self._kind]

    def _get_state(self) -> dict[str, Any]:
        return {"numbers": self._kind, "low": self.low_, "step": self.step_}

    def _set_state(self, state: dict[str, Any]) -> None:
        kind, low, step = _checks.choice(state["numbers"], "numbers", KINDS), state["low"], state["step"]
        _checks.fitted(low, (None,), "low_")
        _checks.fitted(step, (len(low),), "step_")
        if (step < 0).any():
            raise InvalidInputError("step_ has negative entries.")
        self._kind, self.low_, self.step_, self.n_features_in_ = kind, low, step, len(low)


def _levels(kind: str) -> int:
    return 256 if kind == "int8" else 16

