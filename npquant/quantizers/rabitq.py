"""RaBitQ: one bit a dimension of randomly rotated residuals, with an estimator whose error is known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import scan
from npquant.quantizers.base import Codes, Float, Quantizer, Scorer
from npquant.quantizers.binary import check_padding, pack_signs, sign_tables, unpack_signs
from npquant.transforms import Rotation, products

_FACTORS = 8  # bytes of the two numbers after the bits


class RaBitQuantizer(Quantizer):
    """One bit a dimension, and an unbiased estimate of distances with a bound on its error (Gao and Long 2024).

    A vector x is coded by its residual r = P (x − c) from the training vectors' mean c, turned by a random rotation
    P: the signs of r, which are the nearest vertex ō = sign(r) / √d of a cube in the sphere to o = r / ‖r‖; ‖r‖; and
    t = ⟨ō, o⟩. For a query q with p = P (q − c) the estimate of the squared distance is ::

        ‖r‖² + ‖p‖² − 2 (‖r‖ / t) ⟨ō, p⟩

    and that of the inner product ``⟨c, q⟩ + (‖r‖ / t) ⟨ō, P q⟩``. Over random rotations their means are the true
    values, and their errors exceed ``bound(…, eps0)`` about as often as a normal variable exceeds eps0 standard
    deviations on either side (1.9: 5.7 %; 3: 0.3 %): so a search can tell which results are worth looking up exactly.

    Parameters
    ----------
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
        For that draw and for the rotation.
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    center_ : ndarray (d,) float32
        c.
    rotation_ : ndarray (d, d) float32
        P, orthogonal to 1e-5.
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    A code has ⌈d / 8⌉ bytes of bits, dimension i in byte i // 8 at place i % 8 (the lowest first), then ‖r‖ and t as
    little-endian float32, t rounded down: ``code_size`` is ⌈d / 8⌉ + 8. Where r = 0, t is 1.

    Nothing is learned but the mean. Encoding and a query cost 2 d² operations, a score ⌈d / 8⌉ look-ups and four more.
    Scores are float32 in one fixed order: the sum of the bytes' table entries, byte 0 first, times the factor of the
    code, plus what is left. An estimate may be negative where the true distance cannot. ``decode`` gives the point on
    the ray of ō that is nearest to x, ``c + ‖r‖ t Pᵀ ō``; scores are not distances to it.
    The error falls like 1/√d: below about 128 dimensions use another codec, and above re-rank.

    References
    ----------
    J. Gao, C. Long: RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for Approximate Nearest
    Neighbor Search, SIGMOD 2024: section 3.2 (estimator), theorem 3.2 (bound).

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> X = np.random.default_rng(0).standard_normal((100, 256))
    >>> codec = nq.RaBitQuantizer(random_state=0).fit(X)
    >>> codes = codec.encode(X)
    >>> codes.shape
    (100, 40)
    >>> error = codec.scorer(X[:1]).scores(codes)[0] - ((X - X[0])**2).sum(axis=1)
    >>> bool((abs(error) <= codec.bound(X[:1], codes)[0]).mean() > 0.9)
    True
    """

    score_model = "estimator"
    _fitted_attribute = "rotation_"
    center_: Float
    rotation_: Float

    def __init__(self, *, max_points: int | None = 262_144, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def code_size(self) -> int:
        """Bytes of one vector: ⌈d / 8⌉ of bits and 8 of factors."""
        self._check_fitted()
        return self._bits + _FACTORS

    @property
    def _bits(self) -> int:
        return -(-len(self.center_) // 8)

    def bound(self, queries: Any, codes: Any, metric: str = "l2", *, eps0: float = 1.9) -> Float:
        """Return the half-widths (nq, n) float32 of the estimates: how far the true values may lie from the scores.

        ``eps0 · a ‖r‖ ‖p‖ √((1 − t²) / t²) / √(d − 1)``, with a = 2 and p = P (q − c) for ``l2`` (of squared
        distances), a = 1 and p = P q for ``ip`` and ``cosine``. The rounding of float32 comes to it: a few millionths
        of ‖r‖² + ‖p‖². A vector that is equal to its code but for its length has the bound 0.

        Parameters
        ----------
        queries : array_like (nq, d)
        codes : ndarray (n, code_size) uint8
        metric : {"l2", "ip", "cosine"}
        eps0 : float
            In standard deviations.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        q = self._embedded(queries, "queries", metric)
        norm, t = _factors(self.check_codes(codes), self._bits)
        spread = norm.astype(np.float64) * np.sqrt(np.maximum(1 - t.astype(np.float64) ** 2, 0)) / t
        length = _norm(self._turned(q) if metric == "l2" else q)
        width = _checks.number(eps0, "eps0") * (2 if metric == "l2" else 1) / np.sqrt(max(q.shape[1] - 1, 1))
        return np.asarray(width * length[:, None] * spread, dtype=np.float32)

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), have a bit after the d-th, or factors that no vector has.
        """
        checked = super().check_codes(codes)
        check_padding(checked[:, :self._bits], len(self.center_))
        norm, t = _factors(checked, self._bits)
        # ‖o‖₁ ≥ ‖o‖, so t is at least 1/√d; NaN fails every comparison.
        wrong = ~((norm >= 0) & (norm < 1e20) & (t > 0.9 / np.sqrt(len(self.center_))) & (t < 1.001))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InvalidInputError(f"codes hold the length {norm[row]} and the cosine {t[row]} (row {row}), which no "
                                    "vector has. Give what encode returned.")
        return checked

    def _fit(self, x: Float) -> None:
        rng = _checks.random_state(self.random_state)
        _checks.threads(self.threads)
        center = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.center_, self.rotation_ = center, Rotation(random_state=rng).fit(x[:1]).rotation_

    def _refine(self, x: Float, n_iter: int) -> None:
        """Leave everything as it is: only the mean is learned, and codes are codes of differences from it."""

    def _turned(self, x: Float) -> Float:
        return products(x - self.center_, self.rotation_, _checks.threads(self.threads))

    def _encode(self, x: Float) -> Codes:
        r = self._turned(x)
        norm = _norm(r)
        mass = np.zeros(len(r))
        for entries in np.ascontiguousarray(r.T):  # in a fixed order
            mass += np.abs(entries)
        t = np.divide(mass, np.sqrt(r.shape[1]) * norm, out=np.ones(len(r)), where=norm > 0)
        # Rounded down, so that the bound does not fall to 0 where t only nearly is 1; but float64's own rounding is.
        stored = t.astype(np.float32)
        t = np.where((stored > t) & (t < 1 - 1e-12), np.nextafter(stored, np.float32(0)), stored)
        # Lengths that float32 cannot hold are those of residuals that it cannot tell from 0.
        factors = np.stack([norm, np.where(norm.astype(np.float32) > 0, t, 1.0)], axis=1).astype("<f4")
        return np.concatenate([pack_signs(r), factors.view(np.uint8)], axis=1)

    def _decode(self, codes: Codes) -> Float:
        d = len(self.center_)
        norm, t = _factors(codes, self._bits)
        length = norm * t / np.float32(np.sqrt(d))
        signs = np.where(unpack_signs(codes[:, :self._bits], d), length[:, None], -length[:, None])
        back = np.ascontiguousarray(self.rotation_.T)
        return np.asarray(products(signs, back, _checks.threads(self.threads)) + self.center_, dtype=np.float32)

    def _scorer(self, queries: Float, product: bool) -> Scorer:
        return EstimatingScorer(self, queries, product)

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        _checks.fitted(self.center_, (self.n_features_in_,), "center_")
        _checks.fitted(self.rotation_, (self.n_features_in_,) * 2, "rotation_")
        Rotation().rotation_ = self.rotation_  # which refuses what is not orthogonal


class EstimatingScorer(Scorer):
    """Estimates of squared distances, or of negated inner products, of the codes of a :class:`RaBitQuantizer`."""

    def __init__(self, codec: RaBitQuantizer, queries: Float, product: bool) -> None:
        self._codec = codec
        self._product = product
        threads = _checks.threads(codec.threads)
        if product:
            p = products(queries, codec.rotation_, threads)
            self._rest = -products(queries, codec.center_[None], threads)
        else:
            p = codec._turned(queries)
            self._rest = np.square(_norm(p)).astype(np.float32)[:, None]
        self._lookup = sign_tables(p, 1 / float(np.sqrt(p.shape[1])), True, threads)  # sums to −⟨ō, p⟩

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        bits = codes.shape[1] - _FACTORS
        norm, t = _factors(codes, bits)
        estimate = scan.scores(self._lookup, np.ascontiguousarray(codes[:, :bits]), threads)
        if self._product:
            estimate *= norm / t
            estimate += self._rest
        else:
            estimate *= np.float32(2) * (norm / t)
            estimate += norm * norm
            estimate += self._rest
        return estimate


def _factors(codes: Codes, bits: int) -> tuple[Float, Float]:
    """Return (‖r‖, t), (n,) each, of codes (n, bits + 8)."""
    factors = np.ascontiguousarray(codes[:, bits:]).view("<f4").astype(np.float32)
    return factors[:, 0].copy(), factors[:, 1].copy()


def _norm(r: Float) -> NDArray[np.float64]:
    """Return the lengths (n,) of the rows, summed in a fixed order."""
    power = np.zeros(len(r))
    for entries in np.ascontiguousarray(r.T):
        power += np.square(entries, dtype=np.float64)
    return np.sqrt(power)
