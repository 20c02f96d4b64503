"""Binary codes: the signs of the dimensions, behind nothing, a learned rotation (ITQ) or sinusoids (spectral hashing).

A code is one bit a dimension, bit i in byte i // 8 at place i % 8 (the lowest first); what is left of the last byte is
0. Two codes are compared by the number of bits in which they differ, which popcounts make fast
(:mod:`npquant.kernels.hamming`); or the query stays as it is, and each byte of a code is a look-up in a table of 256.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import Transformer
from npquant.errors import InvalidInputError
from npquant.kernels import hamming, nearest
from npquant.quantizers.base import Codes, Float, Quantizer, Scorer
from npquant.quantizers.transformed import PreTransformed
from npquant.transforms import PCA, Rotation, products

Ids = NDArray[np.int64]
Wide = NDArray[np.float64]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # (256, 8) of each byte


def pack_signs(x: Float) -> Codes:
    """Return one bit a number of ``x`` (n, d), 1 where it is not negative: (n, ⌈d / 8⌉) uint8."""
    return np.packbits(x >= 0, axis=1, bitorder="little")


def unpack_signs(codes: Codes, d: int) -> NDArray[np.bool_]:
    """Return the bits (n, d) of ``codes`` (n, ⌈d / 8⌉) uint8."""
    return np.unpackbits(codes, axis=1, count=d, bitorder="little").astype(np.bool_)


def sign_tables(queries: Float, scale: float, product: bool, threads: int | None) -> Float:
    """Return the look-up tables (nq, ⌈d / 8⌉, 256) float32 of vectors ± ``scale``, for each byte of their bits.

    An entry is a squared distance of eight dimensions, or their negated inner product, dimension 0 first; what the
    last byte has beyond d counts 0.
    """
    nq, d = queries.shape
    size = -(-d // 8)
    words = np.tile(np.where(_BITS == 1, scale, -scale).astype(np.float32), (size, 1, 1))
    words[-1, :, d - 8 * (size - 1):] = 0
    padded = np.zeros((nq, 8 * size), np.float32)
    padded[:, :d] = queries
    return nearest.tables(padded, nearest.transpose(words), product, threads)


def check_padding(codes: Codes, d: int) -> None:
    """Raise unless the bits after the d-th are 0."""
    beyond = codes[:, d // 8] >> np.uint8(d % 8) if d % 8 else codes[:, :0]
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        raise InvalidInputError(f"codes have a bit beyond the {d} that a code has (row {row}): the last byte's highest "
                                f"{8 - d % 8} bits are 0. Give what encode returned.")


def switch(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInputError(f"{name} is {value!r}, wanted True or False.")
    return bool(value)


class HammingScorer(Scorer):
    """Numbers of bits in which codes differ from those of the queries, as float32, whatever the metric."""

    def __init__(self, codec: Quantizer, queries: Float) -> None:
        self._codec = codec
        self._asked = codec._encode(queries)

    def _scores(self, codes: Codes, threads: int | None) -> Float:
        return hamming.scores(self._asked, codes, threads)

    def _topk(self, blocks: Codes, ids: Ids, live: NDArray[np.uint64], k: int,
              threads: int | None) -> tuple[Float, Ids]:
        return hamming.topk(self._asked, blocks.reshape(-1, blocks.shape[2]), ids.reshape(-1), k, threads, live)

    def _within(self, blocks: Codes, ids: Ids, live: NDArray[np.uint64], radius: Float,
                threads: int | None) -> tuple[Ids, Float, Ids]:
        bits = np.floor(np.clip(radius, -1.0, 8.0 * blocks.shape[2])).astype(np.int64)
        return hamming.within(self._asked, blocks.reshape(-1, blocks.shape[2]), ids.reshape(-1), bits, threads, live)


class SignQuantizer(Quantizer):
    """Code vectors by the signs of their dimensions: one bit each, 1 where x ≥ 0.

    It is meant for what comes from elsewhere in such a shape that signs say much: centred and rotated vectors
    (:class:`ITQ`), or vectors spread over the sphere (``Catalyzer``); it learns one number, the scale.

    Parameters
    ----------
    asymmetric : bool
        True: queries stay as they are, and a score is the squared distance to ``decode(codes)``, or the negated inner
        product, by look-up tables of a byte. False: queries are coded too, and a score is the number of bits in which
        two codes differ, whatever the metric; that is faster, and finds less.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
        For that draw.
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    scale_ : float
        The root of the mean squared entry of the training vectors, which for vectors of length 1 is 1/√d: a code
        decodes to plus or minus this in each dimension, so that lengths are kept in the mean. (Scores by inner product
        are proportional to it, and in no metric does the order of results depend on it.) 1 where all entries are 0.
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    ``score_model`` is ``"decoded"`` or, where not ``asymmetric``, ``"hamming"``. Encoding costs O(d) a vector; a table
    2048 d operations a query.

    Examples
    --------
    >>> import numpy as np, npquant as nq
    >>> codec = nq.SignQuantizer(asymmetric=False).fit([[3.0, -1.0, 0.0], [1.0, 1.0, -1.0]])
    >>> codec.encode([[0.5, -2.0, 0.0], [-1.0, -1.0, 1.0]]).tolist()
    [[5], [4]]
    >>> codec.scorer([[1.0, 1.0, 1.0]]).scores(np.array([[5], [4]], np.uint8)).tolist()
    [[1.0, 2.0]]
    """

    _fitted_attribute = "scale_"
    scale_: float

    def __init__(self, *, asymmetric: bool = True, max_points: int | None = 262_144, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.asymmetric = asymmetric
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def score_model(self) -> str:  # type: ignore[override]
        """``"decoded"`` where queries stay as they are, else ``"hamming"``."""
        return "decoded" if self.asymmetric else "hamming"

    @property
    def code_size(self) -> int:
        """Bytes of one vector: ⌈d / 8⌉."""
        self._check_fitted()
        return -(-self.n_features_in_ // 8)

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of this codec.

        Raises
        ------
        NotFittedError
        InvalidInputError
            They are not uint8 (n, code_size), or have a bit after the d-th.
        """
        checked = super().check_codes(codes)
        check_padding(checked, self.n_features_in_)
        return checked

    def _fit(self, x: Float) -> None:
        switch(self.asymmetric, "asymmetric")
        _checks.random_state(self.random_state)
        _checks.threads(self.threads)
        power = sum(float(np.square(part, dtype=np.float64).sum()) for part in np.array_split(x, len(x) // 4096 + 1))
        # No smaller than what float32 can square: a scale of 0 would decode to vectors that have no signs.
        self.scale_ = max(float(np.float32(np.sqrt(power / x.size))), 1e-18) if power > 0 else 1.0

    def _encode(self, x: Float) -> Codes:
        return pack_signs(x)

    def _decode(self, codes: Codes) -> Float:
        scale = np.float32(self.scale_)
        return np.where(unpack_signs(codes, self.n_features_in_), scale, -scale)

    def _tables(self, queries: Float, product: bool) -> Float | None:
        return sign_tables(queries, self.scale_, product, _checks.threads(self.threads))

    def _scorer(self, queries: Float, product: bool) -> Scorer:
        return super()._scorer(queries, product) if self.asymmetric else HammingScorer(self, queries)

    def _nearby(self, x: Float, k: int) -> Float:
        """Return the nearest and, of k ≥ 2, the other of each dimension by itself: (n, d, min(k, 2), 1)."""
        nearest_ = self._nearest(x)
        return np.stack([nearest_, -nearest_][:k], axis=2)[..., None]

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        _checks.number(self.scale_, "scale_", above=True)
        _checks.integer(self.n_features_in_, "n_features_in_")


class ITQRotation(PCA):
    """Project on the first principal directions, rotated so that signs lose the least (iterative quantization).

    The rotation minimises the mean squared error of ``± s``, the signs of the projected vectors times the root of
    their mean squared entry, over orthogonal matrices: in turns, signs for the rotation, and the rotation for the
    signs, which is Procrustes' problem.

    Parameters
    ----------
    n_components : int, optional
        Dimensions kept, at most that of the vectors, which is the default.
    n_iter : int
        Turns at the most; they end where nothing changes any more.
    random_state : None, int or numpy.random.Generator
        For the rotation to begin with.

    Attributes
    ----------
    rotation_ : ndarray (n_components, n_components) float32
        Orthogonal to 1e-5; it turns principal components into what is returned.
    components_ : ndarray (n_components, d) float32
        Orthonormal rows: the rotation times the principal directions.
    mean_ : ndarray (d,) float32
    objective_history_ : list of float
        The mean squared error at the start and after each turn: it never increases.

    Notes
    -----
    O(n b²) a turn and O(b³) for b components, on NumPy's BLAS.

    References
    ----------
    Y. Gong, S. Lazebnik: Iterative Quantization: A Procrustean Approach to Learning Binary Codes, CVPR 2011, eq. 2.
    """

    rotation_: Float
    objective_history_: list[float]

    def __init__(self, n_components: int | None = None, *, n_iter: int = 50, random_state: Any = None) -> None:
        self.n_components = n_components
        self.n_iter = n_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> ITQRotation:
        """Learn from ``X`` (n, d); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            ``X`` or a parameter is wrong.
        """
        x = _checks.vectors(X)
        n_iter = _checks.integer(self.n_iter, "n_iter", low=0)
        start = Rotation(random_state=self.random_state)
        pca = PCA(self.n_components).fit(x)
        v = pca._transform(x)
        size = np.float32(2.0 ** -np.clip(np.frexp(np.abs(v).max(initial=0.0))[1], -100, 100))
        v *= size  # a power of two: squares neither overflow nor vanish
        rotation = start.fit(v[:1]).rotation_.astype(np.float64)  # what rows are multiplied by, from the left
        product, error = _signs_with(v, rotation)
        history = [error]
        for _ in range(n_iter):
            u, _, w = np.linalg.svd(product)
            product, error = _signs_with(v, u @ w)
            if error >= history[-1]:  # there already, but for rounding
                break
            rotation = u @ w
            history.append(error)
        self.rotation_ = rotation.astype(np.float32)
        self.objective_history_ = [value / float(size) ** 2 for value in history]
        self.mean_ = pca.mean_
        self.components_ = np.ascontiguousarray(rotation @ pca.components_, dtype=np.float32)
        self.explained_variance_ = (rotation**2) @ pca.explained_variance_
        self.scale_ = np.ones(len(self.components_), np.float32)
        self._remember_features(X, x.shape[1])
        return self

    def _check_state(self) -> None:
        super()._check_state()
        if self.__sklearn_is_fitted__():
            Rotation().rotation_ = self.rotation_  # which refuses what is not orthogonal


_ROWS = 2048  # taken at a time, so that they stay in the cache


def _signs_with(v: Float, rotation: Wide) -> tuple[Wide, float]:
    """Return Bᵀ V of the signs B of V Rᵀ, and the mean squared error of ± s, ‖V‖² = n b s², for these."""
    n, b = v.shape
    product, turn, power = np.zeros((b, b)), rotation.T.astype(np.float32), 0.0
    for begin in range(0, n, _ROWS):
        part = v[begin:begin + _ROWS]
        product += np.copysign(np.float32(1), part @ turn).T @ part
        power += float(np.vdot(part, part))
    mass = float((product * rotation).sum())  # of all |V Rᵀ|
    return product, max(2 * power - 2 * float(np.sqrt(power / (n * b))) * mass, 0.0) / n


class _Signs(PreTransformed):
    """Signs behind a transform of the subclass's own."""

    _kind: type  # of the transform
    nbits: int
    asymmetric: bool

    @property
    def score_model(self) -> str:  # type: ignore[override]
        """``"decoded"`` where queries stay as they are, else ``"hamming"``."""
        asymmetric = self.quantizer_.asymmetric if "quantizer_" in self.__dict__ else self.asymmetric
        return "decoded" if asymmetric else "hamming"

    def _transformer(self, d: int, seed: int) -> Any:
        raise NotImplementedError

    def _fit(self, x: Float) -> None:
        threads = _checks.threads(self.threads)
        quantizer = SignQuantizer(asymmetric=switch(self.asymmetric, "asymmetric"), max_points=None, threads=threads)
        seed = int(_checks.random_state(self.random_state).integers(2**31))
        transform = self._transformer(x.shape[1], seed).fit(x)
        z = transform._transform(x, threads)
        _checks.finite(z, "the transformed X")
        self.transform_, self.quantizer_ = transform, quantizer.fit(z)

    def _check_state(self) -> None:
        super()._check_state()
        if self.__sklearn_is_fitted__() and not (type(self.transform_) is self._kind
                                                 and isinstance(self.quantizer_, SignQuantizer)):
            raise InvalidInputError(f"{type(self).__name__} is not made of {self.transform_!r} and "
                                    f"{self.quantizer_!r}.")


class ITQ(_Signs):
    """Binary codes by iterative quantization (Gong and Lazebnik 2011): signs of rotated principal components.

    ``PreTransformed(ITQRotation(nbits), SignQuantizer())`` with a name of its own.

    Parameters
    ----------
    nbits : int
        Bits of a code, at most the dimension of the vectors.
    n_iter : int
        Turns of signs and rotation, at the most.
    asymmetric : bool
        As of :class:`SignQuantizer`: whether queries stay as they are, or are coded too (Hamming distance).
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use. (NumPy's BLAS has threads of its
        own while it fits; with another number of them, the last bits of what is learned may be others.)

    Attributes
    ----------
    rotation_ : ndarray (nbits, nbits) float32
        Of principal components; orthogonal to 1e-5.
    objective_history_ : list of float
        Mean squared error of the signs, behind the projection, at the start and after each turn: it never increases.
    transform_ : ITQRotation
    quantizer_ : SignQuantizer
    n_features_in_ : int

    Notes
    -----
    Vectors are centred, so by ``ip`` and ``cosine`` it is the centred ones that are compared; scores are those of
    ``quantizer_`` behind the transform. 2 d · nbits operations a vector to encode.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> itq = nq.ITQ(nbits=32, random_state=0).fit(X)
    >>> itq.encode(X[:3]).shape, itq.objective_history_[-1] < itq.objective_history_[0]
    ((3, 4), True)
    """

    _kind = ITQRotation

    def __init__(self, nbits: int = 64, *, n_iter: int = 50, asymmetric: bool = True,
                 max_points: int | None = 65_536, random_state: Any = None, threads: int | None = None) -> None:
        self.nbits = nbits
        self.n_iter = n_iter
        self.asymmetric = asymmetric
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def rotation_(self) -> Float:
        """The rotation (nbits, nbits) float32 of principal components."""
        return self._learned().rotation_

    @property
    def objective_history_(self) -> list[float]:
        """The mean squared error at the start and after each turn."""
        return list(self._learned().objective_history_)

    def _learned(self) -> ITQRotation:
        if "transform_" not in self.__dict__:
            raise AttributeError("rotation_ and objective_history_ exist once fit was called")
        transform: ITQRotation = self.transform_
        return transform

    def _transformer(self, d: int, seed: int) -> ITQRotation:
        return ITQRotation(_checks.integer(self.nbits, "nbits", high=d), n_iter=self.n_iter, random_state=seed)


class SpectralSinusoids(Transformer):
    """Cosines of the principal components: the smoothest functions on a box that is uniformly filled.

    Parameters
    ----------
    n_components : int
        Cosines. They are those of the lowest frequencies: the k-th of a component that ranges over l has π k / l.

    Attributes
    ----------
    mean_ : ndarray (d,) float32
    components_ : ndarray (min(n_components, d), d) float32
        The principal directions.
    origin_, range_ : ndarray (len(components_),) float64
        Where each component begins, and how far it goes.
    mode_ : ndarray (n_components, 2) int64
        The component of each cosine, and its k; from the lowest frequency on, of equal ones the earlier component.

    Notes
    -----
    Cosines are computed in float64 by a polynomial, not by the system's library: so they have the same bits in every
    batch, and the sign of each is exact but for the rounding of the component.
    """

    _fitted_attribute = "mode_"

    def __init__(self, n_components: int = 64) -> None:
        self.n_components = n_components

    def fit(self, X: Any, y: Any = None) -> SpectralSinusoids:
        """Find components, their ranges, and the lowest frequencies of ``X`` (n, d); ``y`` is ignored."""
        x = _checks.vectors(X)
        count = _checks.integer(self.n_components, "n_components")
        pca = PCA(min(count, x.shape[1])).fit(x)
        self.mean_, self.components_ = pca.mean_, pca.components_
        v = pca._transform(x).astype(np.float64)
        self.origin_ = v.min(axis=0)
        self.range_ = v.max(axis=0) - self.origin_
        k = np.arange(1, count + 1)
        # A component that does not vary has no frequency; where none does, all cosines are 1.
        frequency = np.divide(k[None], self.range_[:, None], out=np.full((len(self.range_), count), np.inf),
                              where=self.range_[:, None] > 0).ravel()
        lowest = np.argsort(frequency, kind="stable")[:count]
        self.mode_ = np.stack([lowest // count, np.where(np.isfinite(frequency[lowest]), k[lowest % count], 0)], axis=1)
        self._remember_features(X, x.shape[1])
        return self

    def transform(self, X: Any) -> Float:
        """Return the cosines of ``X`` (n, d), float32 (n, n_components)."""
        self._check_fitted()
        return self._transform(_checks.vectors(X, d=self.n_features_in_, owner="SpectralSinusoids"))

    def _transform(self, x: Float, threads: int | None = None) -> Float:
        v = products(x - self.mean_, self.components_, threads).astype(np.float64)
        place = np.divide(v - self.origin_, self.range_, out=np.zeros_like(v), where=self.range_ > 0)
        component, k = self.mode_.T
        out = np.empty((len(x), len(k)), np.float32)
        for begin in range(0, len(x), 256):  # so that it stays in the cache
            rows = slice(begin, begin + 256)
            out[rows] = _cosine(place[rows, component] * k)
        return out

    @property
    def _n_features_out(self) -> int:
        return len(self.mode_)

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        held = len(self.components_)
        _checks.fitted(self.mean_, (self.n_features_in_,), "mean_")
        _checks.fitted(self.components_, (None, self.n_features_in_), "components_")
        _checks.fitted(self.origin_, (held,), "origin_", np.float64)
        _checks.fitted(self.range_, (held,), "range_", np.float64)
        _checks.fitted(self.mode_, (None, 2), "mode_", np.int64)
        if self.range_.min() < 0 or self.mode_.min() < 0 or self.mode_[:, 0].max() >= held:
            raise InvalidInputError("mode_ names components that are not there, or range_ is negative.")


# cos(π f) = Σ c_i f^2i for |f| ≤ 1/2, Taylor's series: the terms left out are below 1e-15.
_COSINE = [(-1) ** i * np.pi ** (2 * i) / math.factorial(2 * i) for i in range(11)]


def _cosine(turns: Wide) -> Float:
    """Return cos(π · turns), float32, by the same steps for each entry; what is in no doubt has the right sign."""
    half = np.floor(turns + 0.5)
    square = np.square(turns - half)
    value = np.full_like(square, _COSINE[-1])
    for coefficient in _COSINE[-2::-1]:
        value *= square
        value += coefficient
    value = np.maximum(value, 0.0)  # at |f| = 1/2 it may come out as -1e-17
    return np.where(np.fmod(half, 2.0) == 0, value, -value).astype(np.float32)


class SpectralHashing(_Signs):
    """Binary codes by spectral hashing (Weiss et al. 2008): signs of cosines of the principal components.

    ``PreTransformed(SpectralSinusoids(nbits), SignQuantizer())`` with a name of its own.

    Parameters
    ----------
    nbits : int
        Bits of a code; it may exceed the dimension of the vectors.
    asymmetric : bool
        As of :class:`SignQuantizer`: whether the cosines of queries stay as they are, or are coded too (Hamming
        distance, as in the paper).
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
        For that draw.
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use.

    Attributes
    ----------
    transform_ : SpectralSinusoids
    quantizer_ : SignQuantizer
    n_features_in_ : int

    Notes
    -----
    Cosines have no inverse: ``decode`` and ``nearest`` raise ``NotInvertibleError``. Scores are those of
    ``quantizer_`` behind the transform. 2 d · min(nbits, d) operations a vector to encode, and 30 a bit.

    References
    ----------
    Y. Weiss, A. Torralba, R. Fergus: Spectral Hashing, NIPS 2008.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> nq.SpectralHashing(nbits=24).fit(X).encode(X[:3]).shape
    (3, 3)
    """

    _kind = SpectralSinusoids

    def __init__(self, nbits: int = 64, *, asymmetric: bool = True, max_points: int | None = 262_144,
                 random_state: Any = None, threads: int | None = None) -> None:
        self.nbits = nbits
        self.asymmetric = asymmetric
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    def _transformer(self, d: int, seed: int) -> SpectralSinusoids:
        return SpectralSinusoids(_checks.integer(self.nbits, "nbits"))
