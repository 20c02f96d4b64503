"""Supervised quantization: a projection, a classifier of what codes decode to, and additive codes, learned together."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant._rows import is_stream, row_count, sample_numbers
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.quantizers._sums import Books, fitted_codebooks, in_blocks, log, mean_square, sums_of
from npquant.quantizers.additive import LocalSearchQuantizer, Plan, local_search, perturbations
from npquant.quantizers.base import Codes, Float
from npquant.quantizers.residual import residual_codebooks
from npquant.quantizers.transformed import PreTransformed
from npquant.transforms import PCA

Wide = NDArray[np.float64]

_START = 4  # beam and iterations of the residual codebooks that training starts from
_STEPS, _PLACES = 4, 4  # of local search in an alternation: steps, and what each perturbs
_RIDGE = 1e-3  # ρ, of the mean variance of a dimension
_WIDEST = 64  # dimensions of the projection by default
_FILL = 0.1  # of the mean squared norm, at the start: what no label asks for
_ROWS = 1 << 14  # taken to float64 at a time


class SupervisedProjection(PCA):
    """Project on orthonormal directions, each scaled: what :class:`SupervisedQuantizer` learns.

    Its attributes are those of ``PCA``, the directions by decreasing ``scale_``, which is a parameter of the codec and
    no variance. (``fit`` is that of ``PCA``; the supervised projection is learned with the codebooks.)
    """


class SupervisedQuantizer(PreTransformed):
    """Code vectors such that labels can be read off the codes (Wang et al. 2016).

    A linear projection P, additive codebooks C and a linear classifier W are learned together, by turns, from vectors
    x, centred, and indicators of their labels y, centred: they minimise, with v = Σ_m C_m[i_m] for each vector's code,

        mean ‖y − Wᵀ v‖² + lam ‖W‖² + gamma (mean ‖Pᵀ x − v‖² + ρ ‖P‖²).

    A new vector, of which no label is known, is coded by the sum nearest to Pᵀ x; a query is projected and not coded.
    Codes, scores and bounds are those of :class:`~npquant.LocalSearchQuantizer` behind the projection: ``m + 1``
    bytes, the last one for the squared norm of the sum.

    Parameters
    ----------
    m : int
        Number of codebooks.
    nbits : int
        Bits a codebook, 1 to 8: codebooks of ``K = 2**nbits`` codewords.
    d_out : int, optional
        Dimensions of the projection, at most that of the vectors; by default that, but no more than 64.
    gamma : float
        Weight of the quantization error of the projected vectors against the error of the classifier.
    lam : float
        Weight of ‖W‖²; it also says, with ``gamma``, how long the projected vectors are.
    n_iter : int
        Alternations.
    max_points : int, optional
        Training vectors at the most: of more, so many are drawn uniformly by the seed. ``None`` takes all.
    random_state : None, int or numpy.random.Generator
    threads : int, optional
        Default: ``NPQUANT_NUM_THREADS``, else the processors this process may use. (NumPy's BLAS has threads of its
        own while it fits; with another number of them, the last bits of what is learned may be others.)

    Attributes
    ----------
    codebooks_ : ndarray (m, K, d_out) float32
        Behind the projection.
    classifier_ : ndarray (d_out, c) float32
        W: ``quantizer_.decode(codes) @ classifier_`` is large for the labels of the vectors coded.
    objective_history_ : list of float
        What is minimised, at the start and after each alternation: it never increases but for rounding.
    transform_ : SupervisedProjection
    quantizer_ : LocalSearchQuantizer
    n_features_in_ : int

    Notes
    -----
    With A = W Wᵀ + gamma, both errors of a vector are (v − t)ᵀ A (v − t) for t = A⁻¹ (W y + gamma Pᵀ x), and a
    constant: so the codes are found by local search in the space where A is the unit matrix, and the codebooks by
    least squares for the targets t. (The paper holds the cross term of the codewords constant instead of storing the
    norm.) P is unique but for a rotation, which is chosen such that its columns are orthogonal. ``decode`` gives the
    shortest vectors, about the mean, that project to the sum. O(n d² + d³) once, and a turn
    O(n (d d_out + m K d_out + m² K)). What W does not use of the projected vectors fades from turn to turn: P has, in
    the end, hardly more dimensions of any size than there are labels.

    References
    ----------
    X. Wang, T. Zhang, G.-J. Qi, J. Tang, J. Wang: Supervised Quantization for Similarity Search, CVPR 2016.

    Examples
    --------
    >>> import npquant as nq
    >>> X, y, Q, _ = nq.datasets.load_digits()
    >>> codec = nq.SupervisedQuantizer(m=2, nbits=4, random_state=0).fit(X, y)
    >>> codec.encode(Q[:3]).shape, codec.decode(codec.encode(Q[:3])).shape
    ((3, 3), (3, 64))
    """

    score_model = "stored_norm"
    classifier_: Float
    objective_history_: list[float]

    def __init__(self, m: int = 4, nbits: int = 8, *, d_out: int | None = None, gamma: float = 1.0,
                 lam: float = 0.01, n_iter: int = 10, max_points: int | None = 65_536, random_state: Any = None,
                 threads: int | None = None) -> None:
        self.m = m
        self.nbits = nbits
        self.d_out = d_out
        self.gamma = gamma
        self.lam = lam
        self.n_iter = n_iter
        self.max_points = max_points
        self.random_state = random_state
        self.threads = threads

    @property
    def codebooks_(self) -> Float:
        """The codebooks (m, K, d_out) float32, behind the projection."""
        if "quantizer_" not in self.__dict__:
            raise AttributeError("codebooks_ exists once fit was called")
        codebooks: Float = self.quantizer_.codebooks_
        return codebooks

    def fit(self, X: Any, y: Any = None) -> SupervisedQuantizer:
        """Train on ``X`` (n, d), an array or a memmap, and its labels ``y``.

        Parameters
        ----------
        X : array_like (n, d)
        y : array_like
            Class labels (n,) of any kind, or an indicator matrix (n, c) of zeros and ones. For c classes, training
            takes 4 c bytes a vector.

        Raises
        ------
        InvalidInputError
            ``y`` is missing or says nothing; ``X`` or a parameter is wrong.
        """
        if y is None:
            raise InvalidInputError("SupervisedQuantizer requires y to be passed, but the target y is None. Give one "
                                    "label a row of X, or an indicator matrix; without labels use "
                                    "LocalSearchQuantizer.")
        if is_stream(X):
            raise InvalidInputError("X is an iterable of blocks, and y goes with the rows of one array: give X as an "
                                    "array or a memmap.")
        draw, rng = _checks.random_state(self.random_state).spawn(2)
        limit = None if self.max_points is None else _checks.integer(self.max_points, "max_points")
        rows = X if row_count(X) is not None else _checks.vectors(X)
        labels, n = _labels(y, len(rows)), len(rows)
        if limit is not None and n > limit:
            drawn = sample_numbers(n, limit, draw)
            log.info("training on %d of %d vectors, drawn by the seed (max_points=%d)", limit, n, limit)
            x, labels = _checks.vectors(rows[drawn], "the sample of X"), labels[drawn]
        else:
            x = _checks.vectors(rows)
        indicators = _indicators(labels)
        if (indicators == indicators[0]).all():
            raise InvalidInputError("y says the same of every row of X (1 class, or labels that all rows have), so "
                                    "there is nothing to tell apart: give labels of at least two kinds.")
        self._learn(x, indicators, rng)
        self._remember_features(X, x.shape[1])
        return self

    def _learn(self, x: Float, y: Float, rng: np.random.Generator) -> None:
        threads, d = _checks.threads(self.threads), x.shape[1]
        M, K = _checks.integer(self.m, "m"), 1 << _checks.integer(self.nbits, "nbits", 1, 8)
        n_iter = _checks.integer(self.n_iter, "n_iter", low=0)
        r = min(d, _WIDEST) if self.d_out is None else _checks.integer(self.d_out, "d_out", high=d)
        gamma = _checks.number(self.gamma, "gamma", above=True)
        lam = _checks.number(self.lam, "lam", above=True)
        if len(x) < K:
            warnings.warn(f"{len(x)} training vectors for codebooks of {K} codewords: only {len(x)} of each can be "
                          f"told apart. Train on at least {K} vectors (30 × {K} or more is better), or lower "
                          f"nbits = {self.nbits}.", NpquantWarning, stacklevel=3)
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = x - mean
        size = np.float32(2.0 ** -np.clip(np.frexp(np.abs(centred).max(initial=0.0))[1], -100, 100))
        centred *= size  # a power of two: squares neither overflow nor vanish
        problem = _Problem(centred, y - y.mean(axis=0, dtype=np.float64).astype(np.float32), gamma, lam)
        start = problem.start(r)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)  # said above, once
            codebooks = residual_codebooks(problem.projected(start), M, K, _START, _START, rng, threads)
        inner = LocalSearchQuantizer(M, self.nbits, max_points=None, random_state=int(rng.integers(2**31)),
                                     threads=threads)
        numbers = inner._numbers(problem.projected(start), Books(codebooks))
        state = problem.solved(sums_of(codebooks, numbers))
        history = [state.objective]
        for t in range(n_iter):
            plan = perturbations(M, K, _STEPS, min(_PLACES, M), int(rng.integers(2**31)))
            codebooks, numbers = problem.coded(state, codebooks, numbers, plan, threads)
            state = problem.solved(sums_of(codebooks, numbers))
            history.append(state.objective)
            log.info("alternation %d (of %d): objective %.6g", t, n_iter, state.objective)
        # P = U s V: codes see distances only, so V turns the codebooks, and the columns of P are orthogonal.
        u, s, v = np.linalg.svd(state.projection, full_matrices=False)
        sign = np.where(u[np.abs(u).argmax(axis=0), np.arange(r)] < 0, -1.0, 1.0)
        turn = v.T * sign
        transform = SupervisedProjection(r)
        transform.mean_, transform.scale_ = mean, (s * float(size)).astype(np.float32)
        transform.components_ = np.ascontiguousarray((u * sign).T, dtype=np.float32)
        transform.explained_variance_ = ((u.T @ problem.covariance) * u.T).sum(axis=1) / float(size) ** 2
        transform.n_features_in_ = d
        inner._finish(transform._transform(x, threads), np.asarray(codebooks @ turn, dtype=np.float32),
                      np.zeros(r, np.float32))
        self.transform_, self.quantizer_, self.objective_history_ = transform, inner, history
        self.classifier_ = np.asarray(turn.T @ state.classifier, dtype=np.float32)

    def _check_state(self) -> None:
        super()._check_state()
        if not self.__sklearn_is_fitted__():
            return
        if not (type(self.transform_) is SupervisedProjection and type(self.quantizer_) is LocalSearchQuantizer):
            raise InvalidInputError(f"SupervisedQuantizer is not made of {self.transform_!r} and {self.quantizer_!r}.")
        _checks.fitted(self.classifier_, (self.quantizer_.n_features_in_, None), "classifier_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


class _State(NamedTuple):
    """What is best for given codes, and what it comes to."""

    projection: Wide  # (d, r)
    classifier: Wide  # (r, c)
    objective: float


class _Problem:
    """The objective for centred vectors ``x`` (n, d) and indicators ``y`` (n, c), and its minima in turn."""

    def __init__(self, x: Float, y: Float, gamma: float, lam: float) -> None:
        self.x, self.y, self.gamma, self.lam = x, y, gamma, lam
        n, d = x.shape
        covariance = np.zeros((d, d))
        for at in range(0, n, _ROWS):
            wide = x[at:at + _ROWS].astype(np.float64)
            covariance += wide.T @ wide
        self.covariance = covariance / n
        values, axes = np.linalg.eigh(self.covariance)
        self.values, self.axes = np.maximum(values[::-1], 0.0), axes[:, ::-1]
        self.ridge = max(_RIDGE * float(self.values.mean()), 1e-30)
        self.inverse = (self.axes / (self.values + self.ridge)) @ self.axes.T
        self.power = mean_square(y)

    def start(self, r: int) -> Wide:
        """Return a projection (d, r): the regression on labels, and where they are few, principal directions."""
        regression = self.inverse @ (self.x.T @ self.y / len(self.x))
        u, s, _ = np.linalg.svd(regression, full_matrices=False)
        held = min(r, int((s > 1e-6 * s[0]).sum()))
        directions, fill = u[:, :held] * s[:held], self.axes[:, :r - held]
        parts = []
        for part, power in ((directions, 1.0), (fill, _FILL)):
            have = float((part * (self.covariance @ part)).sum())
            parts.append(part * np.sqrt(power / have) if have > 0 else part)
        return np.concatenate(parts, axis=1)

    def projected(self, projection: Wide) -> Float:
        return np.asarray(self.x @ projection.astype(np.float32))

    def solved(self, v: Float) -> _State:
        """Return the best projection and classifier for decoded codes ``v`` (n, r)."""
        n, r = v.shape
        wide = v.astype(np.float64)
        gram, seen = wide.T @ wide / n, (v.T @ self.y / n).astype(np.float64)
        classifier = np.linalg.solve(gram + self.lam * np.eye(r), seen)
        projection = self.inverse @ (self.x.T @ v / n)
        labels = self.power - 2 * (classifier * seen).sum() + (classifier * (gram @ classifier)).sum()
        quantization = mean_square(self.projected(projection) - v) + self.ridge * np.square(projection).sum()
        return _State(projection, classifier, float(labels + self.lam * np.square(classifier).sum()
                                                    + self.gamma * quantization))

    def coded(self, state: _State, codebooks: Float, numbers: Codes, plan: Plan,
              threads: int | None) -> tuple[Float, Codes]:
        """Return better codebooks for the present numbers, and better numbers for these."""
        M, _, r = codebooks.shape
        values, axes = np.linalg.eigh(state.classifier @ state.classifier.T + self.gamma * np.eye(r))
        right = self.y @ state.classifier.T.astype(np.float32) + np.float32(self.gamma) * self.projected(
            state.projection)
        targets = np.asarray(right @ ((axes / values) @ axes.T), dtype=np.float32)
        # The weights A stand on both sides of the normal equations, and cancel.
        codebooks = fitted_codebooks(targets, numbers, codebooks, threads, shrink=False)
        root = ((axes * np.sqrt(values)) @ axes.T).astype(np.float32)
        books, targets = Books(codebooks @ root), targets @ root
        search = partial(_improved, targets, books, plan, numbers)
        return codebooks, in_blocks(search, len(targets), M, threads)


def _improved(z: Float, books: Books, plan: Plan, before: Codes, rows: slice) -> Codes:
    return local_search(z[rows], books, plan, before[rows])


def _labels(y: Any, n: int) -> NDArray[Any]:
    """Return class labels as numbers (n,), or an indicator matrix (n, c) as it is."""
    array = np.asarray(y)
    if array.ndim != 2 or array.shape[1] == 1:
        return _checks.labels(y, n)
    _checks.length(array, n, "y")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise InvalidInputError(f"y has shape {array.shape}: a matrix of labels must hold zeros and ones, one column "
                                "a label. Give one label a row, or an indicator matrix.")
    return array


def _indicators(labels: NDArray[Any]) -> Float:
    """Return an indicator matrix, float32 (n, c), of what ``_labels`` returns."""
    if labels.ndim == 1:
        return np.asarray(labels[:, None] == np.arange(labels.max(initial=0) + 1), dtype=np.float32)
    return labels.astype(np.float32)
