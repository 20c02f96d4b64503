"""Linear transforms in front of a codec or a network.

Products with a matrix are taken in the fixed order of :mod:`npquant.kernels.nearest` (dimension 0 first, each
multiply and each add rounded by itself), not by GEMM: so what becomes of a row does not depend on the batch it
came in, on the threads, or on whether a compiler was there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Transformer
from npquant.errors import InvalidInputError
from npquant.kernels import nearest
from npquant.kernels._pool import run_blocks

Float = NDArray[np.float32]


def products(x: Float, rows: Float, threads: int | None = None) -> Float:
    """Return the inner products of ``x`` (n, d) with ``rows`` (d_out, d), float32 (n, d_out), in the fixed order.

    They are ``x @ rows.T`` to the rounding, and the same bits for a row in any batch.
    """
    matrix = nearest.transpose(rows[np.newaxis])
    out = np.empty((len(x), 1, len(rows)), np.float32)

    def block(begin: int, end: int) -> None:
        nearest.subspace_products(x[begin:end], matrix, out[begin:end])
    run_blocks(block, len(x), 4096, threads)
    return out[:, 0]


class Standardize(Transformer):
    """Centre, and divide all dimensions by one number, so that the mean squared norm is d.

    Distances keep their ratios, unlike with a scale for each dimension.

    Attributes
    ----------
    mean_ : ndarray (d,) float32
    scale_ : float
        What the centred vectors are multiplied by; 1 for constant data.
    """

    _fitted_attribute = "mean_"

    def fit(self, X: Any, y: Any = None) -> Standardize:
        """Measure ``X`` (n, d); ``y`` is ignored."""
        x = _checks.vectors(X)
        mean = x.mean(axis=0, dtype=np.float64)
        power = sum(float(np.square(x[start:start + 65536] - mean).sum()) for start in range(0, len(x), 65536))
        self.mean_ = mean.astype(np.float32)
        # Of data smaller than float32 can be scaled up to 1, the scale is the largest there is.
        self.scale_ = min(float(np.sqrt(x.size / power)), 1e30) if power > 0 else 1.0
        self._remember_features(X, x.shape[1])
        return self

    def transform(self, X: Any) -> Float:
        """Return (X − mean) · scale, float32 (n, d)."""
        self._check_fitted()
        x = _checks.vectors(X, d=self.n_features_in_, owner="Standardize")
        return np.asarray((x - self.mean_) * np.float32(self.scale_), dtype=np.float32)

    def inverse_transform(self, Z: Any) -> Float:
        """Return Z / scale + mean, float32 (n, d)."""
        self._check_fitted()
        z = _checks.vectors(Z, "Z", d=self.n_features_in_, owner="Standardize")
        return np.asarray(z / np.float32(self.scale_) + self.mean_, dtype=np.float32)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        _checks.fitted(self.mean_, (self.n_features_in_,), "mean_")
        _checks.number(self.scale_, "scale_", above=True)


class PCA(Transformer):
    """Project on the directions of largest variance, optionally whitened.

    Parameters
    ----------
    n_components : int, optional
        Dimensions kept; all by default. It must not exceed the dimension of the vectors.
    whiten : float
        Each component is divided by its standard deviation to this power: 0 leaves the variances as they
        are, 1 makes them equal, 0.5 is the soft whitening that keeps weak directions from being all noise.
        The result is scaled so that its mean squared norm is ``n_components`` wherever ``whiten > 0``.

    Attributes
    ----------
    mean_ : ndarray (d,) float32
    components_ : ndarray (n_components, d) float32
        Orthonormal rows, by decreasing variance; the largest entry of each is positive.
    explained_variance_ : ndarray (n_components,) float64
    scale_ : ndarray (n_components,) float32
        What each component is multiplied by.

    Notes
    -----
    O(n d² + d³), by the covariance matrix in float64 and a symmetric eigendecomposition.
    """

    _fitted_attribute = "components_"

    def __init__(self, n_components: int | None = None, *, whiten: float = 0.0) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None) -> PCA:
        """Find the components of ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong.
        """
        x = _checks.vectors(X)
        n, d = x.shape
        kept = d if self.n_components is None else _checks.integer(self.n_components, "n_components", high=d)
        whiten = _checks.number(self.whiten, "whiten", high=1.0)
        mean = x.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((d, d))
        for start in range(0, n, 65536):
            centred = x[start:start + 65536] - mean
            covariance += centred.T @ centred
        values, columns = np.linalg.eigh(covariance / n)
        values, columns = np.maximum(values[::-1][:kept], 0.0), columns[:, ::-1][:, :kept]
        sign = np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(kept)])
        scale = np.ones(kept)
        if whiten > 0:
            held = values > values[0] * 1e-10  # the rest is rounding noise, and stays small
            scale = np.where(held, values, np.inf) ** (-whiten / 2)
            power = float((values * scale**2).sum())
            scale *= np.sqrt(kept / power) if power > 0 else 1.0
        self.mean_ = mean.astype(np.float32)
        self.components_ = np.ascontiguousarray((columns * sign).T, dtype=np.float32)
        self.explained_variance_ = values
        self.scale_ = scale.astype(np.float32)
        self._remember_features(X, d)
        return self

    def transform(self, X: Any) -> Float:
        """Return the components of ``X`` (n, d), float32 (n, n_components)."""
        self._check_fitted()
        x = _checks.vectors(X, d=self.n_features_in_, owner="PCA")
        return self._transform(x)

    def _transform(self, x: Float, threads: int | None = None) -> Float:
        return np.asarray(products(x - self.mean_, self.components_, threads) * self.scale_, dtype=np.float32)

    def inverse_transform(self, Z: Any) -> Float:
        """Return the vectors (n, d) float32 whose components are ``Z`` (n, n_components)."""
        self._check_fitted()
        z = _checks.vectors(Z, "Z", d=len(self.components_), owner="the inverse of PCA")
        return self._inverse_transform(z)

    def _inverse_transform(self, z: Float, threads: int | None = None) -> Float:
        undo = np.divide(1.0, self.scale_, out=np.zeros_like(self.scale_), where=self.scale_ > 0)
        rows = np.ascontiguousarray(self.components_.T)
        return np.asarray(products(z * undo, rows, threads) + self.mean_, dtype=np.float32)

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        d = self.n_features_in_
        _checks.fitted(self.mean_, (d,), "mean_")
        _checks.fitted(self.components_, (None, d), "components_")
        _checks.fitted(self.scale_, (len(self.components_),), "scale_")


class Rotation(Transformer):
    """Rotate (or reflect) by a random orthogonal matrix, uniform over all of them, or by one that is given.

    Distances and inner products stay what they were, up to rounding. In front of a product quantizer it gives
    each block of dimensions its share of what all of them hold.

    Parameters
    ----------
    random_state : None, int or numpy.random.Generator

    Attributes
    ----------
    rotation_ : ndarray (d, d) float32
        Orthogonal to 1e-5; a vector x becomes ``rotation_ @ x``. An orthogonal matrix may be put in its place, and
        stands for ``fit``.
    n_features_in_ : int

    Notes
    -----
    A matrix of independent Gaussians is decomposed by QR; with the signs of R's diagonal made positive, Q is
    distributed by Haar's measure (Mezzadri 2007). O(d³) to fit, 2 d² operations a vector to transform.

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> turn = nq.Rotation()
    >>> turn.rotation_ = np.array([[0, -1], [1, 0]], np.float32)
    >>> turn.transform([[3.0, 4.0]]).tolist(), turn.inverse_transform([[-4.0, 3.0]]).tolist()
    ([[-4.0, 3.0]], [[3.0, 4.0]])
    """

    _fitted_attribute = "rotation_"

    def __init__(self, *, random_state: Any = None) -> None:
        self.random_state = random_state

    @property
    def rotation_(self) -> Float:
        """The orthogonal matrix (d, d) float32; another may be put in its place."""
        if "_rotation" not in self.__dict__:
            raise AttributeError("rotation_ exists once fit was called")
        return self._rotation

    @rotation_.setter
    def rotation_(self, rotation: Float) -> None:
        _checks.fitted(rotation, (None, None), "rotation_")
        d = rotation.shape[1]
        wide = rotation.astype(np.float64)
        if len(wide) != d or np.abs(wide @ wide.T - np.eye(d)).max() > 1e-5:
            raise InvalidInputError(f"rotation_ of shape {rotation.shape} is not orthogonal to 1e-5: give a square "
                                    "matrix whose rows are orthonormal, for instance the Q of numpy.linalg.qr.")
        self._rotation = np.array(rotation, order="C")  # the caller's may change
        self.n_features_in_ = d

    def fit(self, X: Any, y: Any = None) -> Rotation:
        """Draw the rotation of the dimension of ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or ``random_state`` is wrong.
        """
        d = _checks.vectors(X).shape[1]
        q, r = np.linalg.qr(_checks.random_state(self.random_state).standard_normal((d, d)))
        self.rotation_ = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).astype(np.float32)
        self._remember_features(X, d)
        return self

    def transform(self, X: Any) -> Float:
        """Return the rotated ``X`` (n, d), float32 (n, d).

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        return self._transform(_checks.vectors(X, d=self.n_features_in_, owner="Rotation"))

    def _transform(self, x: Float, threads: int | None = None) -> Float:
        return products(x, self.rotation_, threads)

    def inverse_transform(self, Z: Any) -> Float:
        """Return the vectors (n, d) float32 whose rotation is ``Z`` (n, d).

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        return self._inverse_transform(_checks.vectors(Z, "Z", d=self.n_features_in_, owner="Rotation"))

    def _inverse_transform(self, z: Float, threads: int | None = None) -> Float:
        return products(z, np.ascontiguousarray(self.rotation_.T), threads)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _get_state(self) -> dict[str, Any]:
        return {"rotation": self.rotation_}

    def _set_state(self, state: dict[str, Any]) -> None:
        self.rotation_ = np.asarray(state["rotation"])
