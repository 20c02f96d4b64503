"""Vectors kept as they are: the codec that loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.quantizers.base import Codes, Float, Quantizer


class FlatQuantizer(Quantizer):
    """Keep vectors as the bytes of their float32 numbers, so that an index of them is exact search.

    A code is ``4 d`` bytes, little-endian, and decodes to the vector it was made of, bit for bit. Nothing is learned
    but the dimension.

    Parameters
    ----------
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    Codes have no look-up tables; an index reads them as the vectors they are. Scores are squared distances or inner
    products in a fixed order of summation.

    Examples
    --------
    >>> import npquant as nq
    >>> data = nq.datasets.load_digits()
    >>> index = nq.FlatIndex(nq.FlatQuantizer().fit(data.X_train))
    >>> _ = index.add(data.X_train)
    >>> distances, ids = index.search(data.X_test[:1], k=2)
    >>> (distances == nq.metrics.exact_neighbors(data.X_train, data.X_test[:1], 2)[0]).all()
    np.True_
    """

    _fitted_attribute = "n_features_in_"

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = threads

    def _fit(self, x: Float) -> None:
        self.n_features_in_ = x.shape[1]

    def _encode(self, x: Float) -> Codes:
        return x.astype("<f4", copy=True).view(np.uint8)

    def _decode(self, codes: Codes) -> Float:
        return np.array(np.ascontiguousarray(codes).view("<f4"), np.float32)

    def _in_place(self, codes: Codes) -> tuple[NDArray[Any], tuple[Float, Float] | None] | None:
        floats = codes.view("<f4")
        return (floats, None) if floats.dtype.isnative else None

    def _refine(self, x: Float, n_iter: int) -> None:
        """Keep everything: there is nothing to train."""

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, 4 d), or hold numbers that are not finite.
        """
        checked = super().check_codes(codes)
        if not np.isfinite(np.ascontiguousarray(checked).view("<f4")).all():
            raise InvalidInputError("codes contain float32 numbers that are not finite. Give what encode returned.")
        return checked

    @property
    def code_size(self) -> int:
        """Bytes of one vector: ``4 d``."""
        self._check_fitted()
        return 4 * self.n_features_in_

    def _get_state(self) -> dict[str, Any]:
        return {"d": self.n_features_in_} if self.__sklearn_is_fitted__() else {}

    def _set_state(self, state: dict[str, Any]) -> None:
        if state:
            self.n_features_in_ = _checks.integer(state["d"], "d")
