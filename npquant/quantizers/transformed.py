"""A transform in front of a codec; and product quantization behind a learned rotation, which is one of these."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._base import clone
from npquant.errors import InvalidInputError, NotInvertibleError, NpquantWarning
from npquant.kernels import cluster
from npquant.kmeans import lloyd
from npquant.quantizers.base import Codes, Float, Quantizer
from npquant.quantizers.product import ProductQuantizer
from npquant.transforms import Rotation

Wide = NDArray[np.float64]


class PreTransformed(Quantizer):
    """Code what a transform makes of the vectors: any transform in front of any codec.

    A score is one *behind the transform*: of the transformed query and the codec's own decoded vector, in the
    codec's fixed order. Behind a rotation that is the distance to ``decode(codes)`` up to the rounding of the
    rotation; behind another transform it is what that transform makes of distances, and behind one that
    centres (``PCA``) inner products are those of centred vectors: for ``ip`` and ``cosine`` take one that does
    not. Everything else, ``decode``, ``nearest``, ``nearby`` and ``score``, is in the space of the vectors
    given; ``metric="cosine"`` normalises them before the transform.

    Parameters
    ----------
    transformer : estimator
        With ``fit`` and ``transform``, as ``PCA``, ``Standardize`` or ``Rotation``, and ``inverse_transform`` where
        codes are to be decoded. (``transform`` itself is a method that every codec has.) It is cloned, never changed.
    quantizer : Quantizer
        The codec of the transformed vectors; it is cloned, never changed.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
        For the transform and the codec where their own is None.
    threads : int, optional
        For the codec where its own is None.

    Attributes
    ----------
    transform_, quantizer_ : the fitted copies
    n_features_in_ : int
        d, the dimension of the vectors.

    Notes
    -----
    ``score_model`` is the codec's, said of the space behind the transform. npquant's transforms work in a
    fixed order, so a code does not depend on the batch its vector came in; a transform from elsewhere may break
    that. 2 d · d_out operations a vector are added to the codec's cost by a linear transform.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> codec = nq.PreTransformed(nq.PCA(16), nq.ProductQuantizer(m=4, nbits=5), random_state=0).fit(X)
    >>> codec.encode(X[:3]).shape, codec.decode(codec.encode(X[:3])).shape
    ((3, 4), (3, 64))
    """

    _fitted_attribute = "quantizer_"
    transform_: Any
    quantizer_: Any

    def __init__(self, transformer: Any, quantizer: Any, *, max_points: int | None = 262_144,
                 random_state: Any = None, threads: int | None = None) -> None:
        self.transformer = transformer
        self.quantizer = quantizer
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def score_model(self) -> str:  # type: ignore[override]
        """What a score is, behind the transform: the score model of the codec."""
        codec = self.__dict__.get("quantizer_", self.__dict__.get("quantizer"))
        return codec.score_model if isinstance(codec, Quantizer) else "decoded"

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of the codec."""
        self._check_fitted()
        codec: Quantizer = self.quantizer_
        return codec.check_codes(codes)

    @property
    def code_size(self) -> int:
        """Bytes of one vector: the codec's."""
        self._check_fitted()
        return int(self.quantizer_.code_size)

    def _scored(self, x: Float) -> tuple[Quantizer, Float]:
        scored: tuple[Quantizer, Float] = self.quantizer_._scored(self._behind(x))
        return scored

    def _behind(self, x: Float) -> Float:
        if not len(x):
            return np.empty((0, self.quantizer_.n_features_in_), np.float32)
        return _image(self.transform_, x, _checks.threads(self.threads), self.quantizer_.n_features_in_)

    def _before(self, z: Float) -> Float:
        if not hasattr(self.transform_, "inverse_transform"):
            raise NotInvertibleError(f"{type(self.transform_).__name__} has no inverse_transform, so codes cannot be "
                                     "decoded to the vectors given. quantizer_.decode(codes) gives what they are "
                                     "behind the transform.")
        if not len(z):
            return np.empty((0, self.n_features_in_), np.float32)
        if hasattr(self.transform_, "_inverse_transform"):
            x: Float = self.transform_._inverse_transform(z, _checks.threads(self.threads))
            return x
        return _checks.vectors(self.transform_.inverse_transform(z), "the inverse transform", d=self.n_features_in_,
                               owner=type(self).__name__)

    def _fit(self, x: Float) -> None:
        for name in ("fit", "transform"):
            if not hasattr(self.transformer, name) or isinstance(self.transformer, (type, Quantizer)):
                raise InvalidInputError(f"transformer is {self.transformer!r}, wanted one with fit and transform, such "
                                        "as PCA(32) or Rotation().")
        if not isinstance(self.quantizer, Quantizer):
            raise InvalidInputError(f"quantizer is {self.quantizer!r}, wanted a codec such as ProductQuantizer(m=4).")
        transform, quantizer = clone(self.transformer), clone(self.quantizer)
        rng = _checks.random_state(self.random_state)
        _checks.threads(self.threads)
        for part in (transform, quantizer):
            seed = int(rng.integers(2**31))
            for name, value in (("random_state", seed), ("threads", self.threads)):
                if value is not None and name in part.get_params(deep=False) and getattr(part, name) is None:
                    part.set_params(**{name: value})
        transform.fit(x)
        quantizer.fit(_image(transform, x, self.threads))
        self.transform_, self.quantizer_ = transform, quantizer

    def _refine(self, x: Float, n_iter: int) -> None:
        # A copy, as an index may hold what is here.
        self.quantizer_ = copy.copy(self.quantizer_).refine(self._behind(x), n_iter)

    def _encode(self, x: Float) -> Codes:
        codes: Codes = self.quantizer_._encode(self._behind(x))
        return codes

    def _decode(self, codes: Codes) -> Float:
        return self._before(self.quantizer_._decode(codes))

    def _nearby(self, x: Float, k: int) -> Float:
        """Return the k nearest whole codewords, (n, 1, k, d): blocks behind the transform are none before it."""
        z = self._behind(x)
        near = self.quantizer_._nearby(z, k)
        n, B, held, width = near.shape
        if not n:
            return np.empty((0, 1, held, self.n_features_in_), np.float32)
        difference = near - z.reshape(n, B, 1, width)
        distance = np.zeros((n, B, held), np.float32)
        for j in range(width):  # in a fixed order
            distance += np.square(difference[..., j])
        # Of sums of one entry a block the k least: those of the first blocks, then with each of the next.
        cost, pick = distance[:, 0], np.broadcast_to(np.arange(held)[:, None], (n, held, 1))
        for block in range(1, B):
            sums = (cost[:, :, None] + distance[:, block, None, :]).reshape(n, -1)
            order = np.argsort(sums, axis=1, kind="stable")[:, :k]
            cost = np.take_along_axis(sums, order, axis=1)
            pick = np.concatenate([np.take_along_axis(pick, (order // held)[..., None], axis=1),
                                   (order % held)[..., None]], axis=2)
        whole = near[np.arange(n)[:, None, None], np.arange(B), pick]  # (n, k, B, width)
        return self._before(np.ascontiguousarray(whole).reshape(-1, B * width)).reshape(n, 1, pick.shape[1], -1)

    def _check_state(self) -> None:
        if not vars(self).keys() - self.get_params(deep=False).keys():
            return  # saved before fit
        d, inner = getattr(self.transform_, "n_features_in_", None), getattr(self.transform_, "_n_features_out", None)
        if (not isinstance(self.quantizer_, Quantizer) or not hasattr(self.transform_, "transform")
                or d != self.n_features_in_ or inner != self.quantizer_.n_features_in_):
            raise InvalidInputError(f"transform and codec do not fit together: {self.transform_!r} of dimension {d}, "
                                    f"to {inner}, and {self.quantizer_!r}.")


class OptimizedProductQuantizer(PreTransformed):
    """Product quantization of rotated vectors, the rotation learned with the codebooks (Ge et al. 2013).

    It minimises ``Σ ‖R x − q(R x)‖²`` over orthogonal R and codebooks: with the same bytes it codes vectors whose
    dimensions are correlated, or of unequal variance, better than :class:`ProductQuantizer` does.

    Parameters
    ----------
    m, nbits : int
        Blocks and bits a block (1 to 8; a byte each, of 4 bits two to a byte), as of :class:`ProductQuantizer`;
        the dimension of the vectors must be a multiple of ``m``.
    n_iter : int
        Alternations of codebooks and rotation. 0 leaves the rotation that it begins with.
    init : {"best", "parametric", "identity", "random"}
        The rotation to begin with. ``parametric``: the principal directions, shared out among the blocks such
        that the products of their variances are alike, which is the best for Gaussian data; ``identity``: the
        blocks as they are, which is better where neighbouring dimensions belong together, as in SIFT;
        ``best`` tries these two for a few alternations and goes on with the better.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use. (NumPy's BLAS has threads
        of its own while it fits; with another number of them, the last bits of what is learned may be others.)

    Attributes
    ----------
    rotation_ : ndarray (d, d) float32
        Orthogonal to 1e-5; ``rotation_ @ x`` is coded.
    codebooks_ : ndarray (m, K, d / m) float32
        Of rotated vectors.
    objective_history_ : list of float
        Mean squared error, on the vectors that the alternation works on, at its start and after each half of
        each iteration (rotation, codebooks): it never increases. It is over before the last k-means.
    transform_ : Rotation
    quantizer_ : ProductQuantizer
    n_features_in_ : int

    Notes
    -----
    An alternation works on at most 256 · K vectors, or 65,536 (a quarter of which try the starts), and costs
    O(n K d + n d² + d³); at the end, k-means goes on from these codebooks over all vectors. The vectors are
    centred meanwhile, so that the rotation need not keep the codebooks' mean in place; the matrix of
    Procrustes' problem is summed from products in float32, its singular value decomposition is in float64. An
    iteration that rounding would make worse ends it.
    A code does not depend on the batch that its vector came in. Scores are distances in the rotated space.

    References
    ----------
    T. Ge, K. He, Q. Ke, J. Sun: Optimized Product Quantization for Approximate Nearest Neighbor Search, CVPR 2013:
    section 3.1 (non-parametric: alternation), 3.2 (parametric: eigenvalue allocation). H. Jégou, M. Douze,
    C. Schmid: Product Quantization for Nearest Neighbor Search, PAMI 2011.

    Examples
    --------
    >>> import npquant as nq
    >>> X = nq.datasets.load_digits().X_train
    >>> opq = nq.OptimizedProductQuantizer(m=8, nbits=5, random_state=0).fit(X)
    >>> opq.encode(X[:3]).shape, opq.rotation_.shape, opq.codebooks_.shape
    ((3, 8), (64, 64), (8, 32, 8))
    >>> opq.score(X) > nq.ProductQuantizer(m=8, nbits=5, random_state=0).fit(X).score(X)
    True
    """

    score_model = "decoded"

    def __init__(self, m: int = 8, nbits: int = 8, *, n_iter: int = 30, init: str = "best",
                 max_points: int | None = 262_144, random_state: Any = None, threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.n_iter = n_iter
        self.init = init
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def rotation_(self) -> Float:
        """The rotation (d, d) float32: ``rotation_ @ x`` is coded."""
        return self.__dict__["transform_"].rotation_ if "transform_" in self.__dict__ else self._missing("rotation_")

    @property
    def codebooks_(self) -> Float:
        """The codebooks (m, K, d / m) float32 of rotated vectors."""
        return self.__dict__["quantizer_"].codebooks_ if "quantizer_" in self.__dict__ else self._missing("codebooks_")

    @staticmethod
    def _missing(name: str) -> Any:
        raise AttributeError(f"{name} exists once fit was called")

    def _fit(self, x: Float) -> None:
        n_iter = _checks.integer(self.n_iter, "n_iter", low=0)
        init = _checks.choice(self.init, "init", ("best", "parametric", "identity", "random"))
        _checks.threads(self.threads)
        draw, turn, begin = _checks.random_state(self.random_state).spawn(3)
        seed = int(begin.integers(2**31))
        plain = self._plain(n_iter=0, random_state=seed)
        K = 1 << _checks.integer(self.nbits, "nbits", 1, 8)
        plain.fit(x[:K])  # refuses or warns, before any work
        most = max(_SAMPLE * K, _LEAST)
        chosen = draw.permutation(len(x))[:most] if len(x) > most else np.arange(len(x))
        sample = x[np.sort(chosen)]
        few = x[np.sort(chosen[:most // 4])]
        # Centred about one mean, so that codebooks can go from one to the other.
        mean = sample.mean(axis=0, dtype=np.float64)
        sample, few = ((part - mean).astype(np.float32) for part in (sample, few))
        d, m = x.shape[1], plain.codebooks_.shape[0]
        names = ("parametric", "identity") if init == "best" else (init,)
        trials = []
        for name in names:
            rotation = np.eye(d)
            if name == "random":
                rotation = Rotation(random_state=turn).fit(x[:1]).rotation_.astype(np.float64)
            elif name == "parametric":
                rotation = _parametric(sample, m)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NpquantWarning)  # said above, once
                first = self._plain(n_iter=0, random_state=seed)
                first._fit(few @ rotation.T.astype(np.float32))  # not fit: entries may be larger than it takes
            trial = _Alternation(few, rotation, first.codebooks_, self.threads)
            trial.run(_TRIALS if len(names) > 1 and n_iter else 0)
            trials.append(trial)
        best = min(trials, key=lambda trial: trial.history[-1])
        self._finish(x, mean, _Alternation(sample, best.rotation, best.codebooks, self.threads).run(n_iter), _LAST)

    def _refine(self, x: Float, n_iter: int) -> None:
        mean = x.mean(axis=0, dtype=np.float64)
        rotation = self.rotation_.astype(np.float64)
        m, _, width = self.codebooks_.shape
        codebooks = (self.codebooks_ - (rotation @ mean).reshape(m, 1, width)).astype(np.float32)
        centred = (x - mean).astype(np.float32)
        self._finish(x, mean, _Alternation(centred, rotation, codebooks, self.threads).run(n_iter), n_iter)

    def _finish(self, x: Float, mean: Wide, found: _Alternation, n_iter: int) -> None:
        """Set what was found, with the codebooks brought back to the mean and to all of ``x``."""
        m, K, width = found.codebooks.shape
        turn, codec = Rotation(), ProductQuantizer(m, K.bit_length() - 1, threads=self.threads)
        turn.rotation_ = found.rotation.astype(np.float32)
        shift = (found.rotation @ mean).reshape(m, 1, width)
        codec.codebooks_ = (found.codebooks + shift).astype(np.float32)
        z = turn._transform(x, self.threads)
        codebooks = codec.codebooks_.copy()
        for j in range(m):
            block = np.ascontiguousarray(z[:, j * width:(j + 1) * width])
            codebooks[j] = lloyd(block, codebooks[j], max_iter=n_iter, tol=5e-4, threads=self.threads)[0]
        codec.codebooks_ = codebooks
        self.transform_, self.quantizer_, self.objective_history_ = turn, codec, found.history

    def _plain(self, **params: Any) -> ProductQuantizer:
        return ProductQuantizer(self.m, self.nbits, threads=self.threads, **params)

    def _check_state(self) -> None:
        super()._check_state()
        if self.__sklearn_is_fitted__() and not (isinstance(self.transform_, Rotation)
                                                 and isinstance(self.quantizer_, ProductQuantizer)):
            raise InvalidInputError("an OptimizedProductQuantizer has a Rotation and a ProductQuantizer.")


_SAMPLE = 256  # vectors a codeword for the alternation
_LEAST = 1 << 16  # vectors for it: a rotation fitted to few of them says nothing about others
_TRIALS = 8  # alternations of each start before the better is chosen
_LAST = 10  # iterations of k-means at the end
_ROWS = 16384  # multiplied at a time


class _Alternation:
    """Codebooks and rotation fitted to each other in turns, on centred vectors; the error never increases."""

    def __init__(self, x: Float, rotation: Wide, codebooks: Float, threads: int | None) -> None:
        self.x, self.rotation, self.codebooks, self.threads = x, rotation, codebooks, threads
        # A power of two that brings the largest entry near 1: products of float32 neither overflow nor vanish.
        self.scale = np.float32(2.0 ** -np.clip(np.frexp(np.abs(x).max(initial=0.0))[1], -100, 100))
        self.z = self._turned(rotation)
        self.labels, self.codebooks, error = self._cluster(moved=False)
        self.history = [error]

    def run(self, n_iter: int) -> _Alternation:
        """Do up to ``n_iter`` alternations of a rotation and a step of k-means."""
        for _ in range(n_iter):
            if not (self._rotate() and self._step()):
                break
        return self

    def _turned(self, rotation: Wide) -> Float:
        return np.ascontiguousarray(self.x @ rotation.T.astype(np.float32))

    def _blocks(self, array: Float) -> Float:
        """Return (n, m, d / m)."""
        return array.reshape(len(array), len(self.codebooks), -1)

    def _cluster(self, moved: bool) -> tuple[list[NDArray[np.int32]], Float, float]:
        """Return labels and codebooks, these first moved to the means of their points, and the mean squared error."""
        labels, codebooks, total = [], self.codebooks.copy(), 0.0
        for j, codebook in enumerate(codebooks):
            block = np.ascontiguousarray(self._blocks(self.z)[:, j])
            if moved:
                sums, counts = cluster.sums_by_cluster(block, self.labels[j], len(codebook), self.threads)
                held = counts > 0
                codebook[held] = sums[held] / counts[held, None]
            codebooks[j], label, _, history = lloyd(block, codebook, max_iter=0, tol=0.0, threads=self.threads)
            labels.append(label)
            total += history[-1]
        return labels, codebooks, total / len(self.z)

    def _step(self) -> bool:
        labels, codebooks, error = self._cluster(moved=True)
        return self._keep(error, labels=labels, codebooks=codebooks)

    def _rotate(self) -> bool:
        """Solve Procrustes' problem: min ‖X Rᵀ − Y‖ over orthogonal R, for the decoded Y, is U Vᵀ of Yᵀ X."""
        decoded = np.empty_like(self.z)
        for j, label in enumerate(self.labels):
            self._blocks(decoded)[:, j] = self.codebooks[j].take(label, axis=0)
        product = np.zeros_like(self.rotation)
        for start in range(0, len(self.x), _ROWS):
            rows = slice(start, start + _ROWS)
            product += (decoded[rows] * self.scale).T @ self.x[rows]
        u, _, v = np.linalg.svd(product)
        rotation = u @ v
        z = self._turned(rotation)
        np.subtract(z, decoded, out=decoded)
        decoded *= self.scale
        error = sum(float(np.vdot(part, part)) for part in np.array_split(decoded, max(1, len(z) // 256)))
        return self._keep(error / float(self.scale) ** 2 / len(z), rotation=rotation, z=z)

    def _keep(self, error: float, **state: Any) -> bool:
        """Take what is no worse than before; refuse the rest, which is rounding."""
        if error > self.history[-1]:
            return False
        self.history.append(error)
        self.__dict__.update(state)
        return True


def _parametric(x: Float, m: int) -> Wide:
    """Return the principal directions (d, d) of centred ``x``, shared out among ``m`` blocks (Ge et al., 3.2)."""
    d = x.shape[1]
    covariance = np.zeros((d, d))
    for start in range(0, len(x), _ROWS):
        wide = x[start:start + _ROWS].astype(np.float64)
        covariance += wide.T @ wide
    values, columns = np.linalg.eigh(covariance)
    order = _allocation(values[::-1], m)
    return np.ascontiguousarray(columns[:, ::-1][:, order].T)


def _allocation(values: Wide, m: int) -> NDArray[np.int64]:
    """Return which of the decreasing ``values`` (d,) go to which block: (d,), block by block.

    Each value goes to the block with the smallest product among those not yet full. Products are sums of
    logarithms, of the values divided by the least: a value below 1 would make an earlier block look the emptier.
    """
    floor = max(float(values[0]) * 1e-12, np.finfo(np.float64).tiny)
    logs = np.log(np.maximum(values, floor))
    logs -= logs[-1]
    blocks: list[list[int]] = [[] for _ in range(m)]
    sums = np.zeros(m)
    for i, value in enumerate(logs):
        free = [j for j in range(m) if len(blocks[j]) < len(values) // m]
        j = min(free, key=lambda j: (sums[j], j))
        blocks[j].append(i)
        sums[j] += value
    return np.concatenate([np.asarray(block, dtype=np.int64) for block in blocks])


def _image(transform: Any, x: Float, threads: int | None, d: int | None = None) -> Float:
    """Return the transformed ``x`` (n, d_out), checked: a transform may leave rows out, or make numbers too large."""
    if hasattr(transform, "_transform"):
        z: Float = transform._transform(x, threads)
        if not isinstance(transform, Rotation):  # which keeps lengths, and so what can overflow
            _checks.finite(z, "the transformed X")
        return z
    z = _checks.vectors(transform.transform(x), "the transformed X", d=d, owner="the codec")
    _checks.length(z, len(x), "the transformed X")
    return z
