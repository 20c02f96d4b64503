"""Similarity losses over one forward: ``value_and_grad(y, target, other=None) -> (value, dy)``.

The one convention of all of them: E is the *sum* over the terms of a batch, each with its weight; ``dy`` =
∂E/∂y, a row a sample, summed over the roles a sample plays and **not** divided by the batch size; ``value`` =
E / B, the mean over the B rows of y. So dy = ∂(B · value)/∂y.

``other`` (B, d) stands in the place of y for the roles that are not the anchor's (y⁺ and y⁻; the second of
a pair): with quantized outputs it is the straight-through rule, for the gradient with respect to ``other``
is added to dy as if it were y (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels
from npquant.kernels.nearest import subspace_distances

Array = NDArray[Any]
Ids = NDArray[np.int64]


class Triplets(NamedTuple):
    """Row numbers (T,) int64 of anchors, of what is like them and of what is less; weights (T,) or 1 each."""

    anchor: Ids
    positive: Ids
    negative: Ids
    weight: Array | None = None


class Pairs(NamedTuple):
    """Row numbers (P,) int64 of pairs, the anchor on the left, and whether they are similar (P,) bool."""

    left: Ids
    right: Ids
    similar: NDArray[np.bool_]


def distances(y: Array, other: Array | None = None) -> Array:
    """Return the Euclidean distances (not squared) of rows: (n, d) and (m, d) → (n, m), in y's dtype.

    Summed over differences, in the order of the dimensions: identical rows are at 0 exactly, and near ones
    keep their digits. Cost n · m · d.
    """
    y = np.ascontiguousarray(y)
    columns = np.ascontiguousarray((y if other is None else other).T, dtype=y.dtype)[np.newaxis]
    out = np.empty((len(y), 1, columns.shape[2]), y.dtype)
    kernels.for_dtype(subspace_distances, y.dtype)(y, columns, out)
    return np.sqrt(out, out=out)[:, 0]


@dataclass(frozen=True)
class Triplet:
    """max(0, gap + ‖y − y⁺‖ − ‖y − y⁻‖), distances not squared (Liu & Lu, arXiv 1610.09645, eq. 1).

    An inactive triplet gives exactly 0; a distance of 0 has the gradient 0. Cost B² d + T for T triplets.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[0., 0.], [2., 0.], [0., 4.]])
    >>> value, dy = Triplet(gap=3.0).value_and_grad(y, Triplets(*np.array([[0], [1], [2]])))
    >>> value * 3, dy.tolist()
    (1.0, [[-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    """

    gap: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "gap", _checks.number(self.gap, "gap"))

    def value_and_grad(self, y: Array, target: Triplets, other: Array | None = None) -> tuple[float, Array]:
        """Return E / B and ∂E/∂y (B, d), see the module; ``target`` holds row numbers of y."""
        y = np.ascontiguousarray(y)
        apart = distances(y, other)
        anchor, positive, negative = (np.ascontiguousarray(ids, dtype=np.int64) for ids in target[:3])
        weight = np.ones(anchor.size, y.dtype) if target.weight is None else \
            np.ascontiguousarray(target.weight, dtype=y.dtype)
        slopes, total = np.empty(apart.shape), np.empty(1)
        kernels.for_dtype(kernels.triplet_terms, y.dtype)(apart, anchor, positive, negative, weight,
                                                          y.dtype.type(self.gap), slopes, total)
        return float(total[0]) / max(len(y), 1), _to_outputs(y, other, apart, slopes)


@dataclass(frozen=True)
class RankTriplet:
    """max(0, ‖y − y⁺‖ − ‖y − y⁻‖): order without a margin (Sablayrolles et al., arXiv 1806.03198, section 3.1).

    It is ``Triplet(gap=0)`` at the cost T d for T triplets, each by itself, where that takes all the B² d distances
    of a batch: for batches in which a row stands in few of them. What coincides has the gradient 0.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[0., 0.], [2., 0.], [0., 1.]])
    >>> value, dy = RankTriplet().value_and_grad(y, Triplets(*np.array([[0], [1], [2]])))
    >>> value * 3, dy.tolist()
    (1.0, [[-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    """

    def value_and_grad(self, y: Array, target: Triplets, other: Array | None = None) -> tuple[float, Array]:
        """Return E / B and ∂E/∂y (B, d), see the module; ``target`` holds row numbers of y."""
        others = y if other is None else other
        anchor, positive, negative, weight = target
        to_positive, near = _between(y[anchor], others[positive])
        to_negative, far = _between(y[anchor], others[negative])
        terms = near - far
        slope = (terms > 0).astype(y.dtype) if weight is None else np.where(terms > 0, weight, 0).astype(y.dtype)
        to_positive *= (slope / np.where(near > 0, near, 1))[:, np.newaxis]
        to_negative *= (slope / np.where(far > 0, far, 1))[:, np.newaxis]
        dy = np.zeros_like(y)
        np.add.at(dy, anchor, to_positive - to_negative)
        np.subtract.at(dy, positive, to_positive)
        np.add.at(dy, negative, to_negative)
        return float(np.dot(slope.astype(np.float64), terms)) / max(len(y), 1), dy


@dataclass(frozen=True)
class KoLeo:
    """−log(n ρ_i), ρ_i the distance of row i to the nearest other row of the batch: spreads outputs evenly.

    The mean of it is L = −(1/n) Σ log(n ρ_i), the Kozachenko–Leonenko estimate of the differential entropy with the
    sign turned and without its constants (Sablayrolles et al., arXiv 1806.03198, eq. 2, whose own form has no n: an
    additive constant). The nearest row is the one of largest inner product, which for rows of norm 1 it is; which one
    it is is not differentiated, its distance is, at both of its ends.

    Parameters
    ----------
    eps : float
        At least 1e-18. ρ counts as ``eps`` at the least, and has no gradient below: rows that coincide know no
        direction apart, and a gradient is 1/eps at the most.

    Notes
    -----
    Cost n² d, by one product. A batch of one row has E = 0.

    Examples
    --------
    >>> import numpy as np
    >>> value, dy = KoLeo().value_and_grad(np.array([[1., 0.], [0., 1.]]))
    >>> round(value, 4), dy.round(4).tolist()  # −log(2 √2)
    (-1.0397, [[-1.0, 1.0], [1.0, -1.0]])
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        # Below, the square of a distance may be 0 in float32, or its inverse infinite.
        object.__setattr__(self, "eps", _checks.number(self.eps, "eps", 1e-18))

    def value_and_grad(self, y: Array) -> tuple[float, Array]:
        """Return E / n and ∂E/∂y (n, d), of the rows of ``y`` (n, d) among themselves; see the module."""
        n = len(y)
        dy = np.zeros_like(y)
        if n < 2:
            return 0.0, dy
        products = y @ y.T
        np.fill_diagonal(products, -np.inf)
        nearest = products.argmax(axis=1)
        apart, rho = _between(y, y[nearest])
        rho = np.maximum(rho, y.dtype.type(self.eps))
        apart *= np.where(rho > self.eps, -1 / np.square(rho), 0)[:, np.newaxis].astype(y.dtype)
        dy += apart
        np.subtract.at(dy, nearest, apart)
        return -float(np.log(n * rho.astype(np.float64)).mean()), dy


@dataclass(frozen=True)
class Contrastive:
    """½ ‖y_i − y_j‖² for similar pairs, ½ max(0, gap − ‖y_i − y_j‖)² for the others (Hadsell et al. 2006).

    A dissimilar pair at distance 0 has the gradient 0: no direction leads apart. Cost B² d + P.
    """

    gap: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gap", _checks.number(self.gap, "gap"))

    def value_and_grad(self, y: Array, target: Pairs, other: Array | None = None) -> tuple[float, Array]:
        """Return E / B and ∂E/∂y (B, d), see the module; ``target`` holds row numbers of y."""
        y = np.ascontiguousarray(y)
        apart = distances(y, other)
        found = apart[target.left, target.right].astype(np.float64)
        # The slope ∂E/∂D of a pair; the energy is half its square in both cases.
        slope = np.where(target.similar, found, np.minimum(found - self.gap, 0.0))
        cells = np.asarray(target.left, np.int64) * apart.shape[1] + target.right
        slopes = np.bincount(cells, slope, apart.size).reshape(apart.shape)
        return 0.5 * float(slope @ slope) / max(len(y), 1), _to_outputs(y, other, apart, slopes)


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy −log softmax(y)[label]; y (B, c) are logits, the linear head before is the trainer's."""

    def value_and_grad(self, y: Array, target: Ids, other: Array | None = None) -> tuple[float, Array]:
        """Return E / B and ∂E/∂y = softmax(y) − one-hot (B, c); ``target`` holds labels 0 … c − 1, (B,).

        Raises
        ------
        InvalidInputError
            ``other`` was given: there is no second role here.
        """
        if other is not None:
            raise InvalidInputError("Softmax compares outputs with labels, not with each other: other must "
                                    "be None. Quantize the head's input instead.")
        rows = np.arange(len(y))
        shifted = y - y.max(axis=1, keepdims=True)
        dy = np.exp(shifted)
        sums = dy.sum(axis=1, keepdims=True)
        dy /= sums
        dy[rows, target] -= 1
        energy = np.log(sums[:, 0]) - shifted[rows, target]
        return float(energy.sum(dtype=np.float64)) / max(len(y), 1), dy


Loss = Triplet | Contrastive | Softmax


def _between(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the differences a − b (n, d) of rows, and their lengths (n,)."""
    difference = a - b
    return difference, np.sqrt(np.einsum("ij,ij->i", difference, difference))


def _to_outputs(y: Array, other: Array | None, apart: Array, slopes: Array) -> Array:
    others = y if other is None else np.ascontiguousarray(other, dtype=y.dtype)
    dy, dother = np.empty_like(y), np.empty_like(y)
    kernels.for_dtype(kernels.distance_gradient, y.dtype)(y, others, apart, slopes, dy, dother)
    dy += dother
    return dy
