"""DeepQuantizer: a network and the codebooks of its outputs, learned in turns."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, _supervision, _training, nn
from npquant._base import clone
from npquant.errors import InvalidInputError, NotInvertibleError, NpquantWarning
from npquant.index.flat import FlatIndex
from npquant.kernels._pool import one_blas_thread
from npquant.nn import output as rules
from npquant.quantizers.base import Codes, Float, Quantizer
from npquant.quantizers.product import ProductQuantizer
from npquant.transforms import PCA, Standardize

_LARGEST_OUTPUT = 1e12  # beyond, squared distances lose what they are compared for

# Floating-point operations of a forward pass below which a second thread of the BLAS costs more than it does.
_SMALL_STEP = 5e8

LOSSES: dict[str, Callable[[], Any]] = {"triplet": nn.Triplet, "contrastive": nn.Contrastive, "softmax": nn.Softmax}


class DeepQuantizer(Quantizer):
    """Learn a network whose outputs quantize well, together with the codebooks (Liu & Lu, arXiv 1610.09645).

    Training alternates: the network follows a similarity loss while an output rule pulls its outputs to
    codewords of the codebooks as they stand; at each epoch the codebooks are refitted to the outputs. The pull
    begins after a warm-up and grows along a ramp. The last codebooks are trained on the final outputs of all
    training vectors. Database vectors are encoded, queries stay continuous (ADC).

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers (ReLU).
    d_out : int
        Dimension of the outputs; what ``quantizer`` codes.
    loss : {"triplet", "contrastive", "softmax"} or a loss of ``npquant.nn``
        ``softmax`` is classification by a linear layer over the outputs, and wants class labels.
    output : str, an output rule of ``npquant.nn``, or a sequence of them
        ``"plain"``, ``"penalty"``, ``"straight_through"``, ``"gsl"`` (gradient snapping), ``"ssm"`` (output
        momentum, the space shuttle), ``"hybrid"``; a sequence is a chain, e.g. ``("straight_through", "ssm")``.
    quantizer : Quantizer, optional
        The codec of the outputs; ``ProductQuantizer(m=4)`` by default. It is cloned, never changed. One that learns
        nothing (a lattice) does not follow the outputs: a pull may gather them about few of its codewords.
    whiten : int, optional
        Inputs go through PCA with soft whitening to this many dimensions; by default they are centred and
        scaled by one number.
    normalize : bool
        Whether outputs have norm 1.
    batch_norm : bool
        Batch norm after each hidden linear layer.
    dropout : float
        Rate of dropout on the inputs.
    optimizer : {"adam", "sgd"} or an optimizer of ``npquant.nn``
    lr, weight_decay : float
        For an optimizer given by name; decay is decoupled for Adam, and leaves biases alone.
    schedule : {"cosine", "constant", "steps"} or a schedule of ``npquant.nn``, optional
        Multiplies the rate, by training progress; cosine decay by default. ``"steps"``: a tenth from half of the
        training on, a hundredth from three quarters on.
    epochs, batch_size : int
        With labels, a batch is ``batch_size // per_class`` groups of up to ``per_class`` rows of a class.
    per_class : int
    mining : {"all", "semi-hard", "random"}
        Which negatives of a batch make triplets.
    positives : int
        Positives of an anchor in a batch, at the most.
    n_neighbors : int
        Without supervision: how many nearest neighbours in input space are similar.
    warmup, ramp : float
        Fractions of training without any pull, and then with a growing one.
    codebooks : {"refit", "average"}
        Each epoch three warm-started iterations on all outputs; or besides, at each step, an exponential
        moving average of the outputs assigned to a codeword (codecs that have ``average``).
    validation : float or (X, y), optional
        Fraction of the rows (of the tuples, for pairs and triplets) held out, or labelled vectors. Each epoch
        with codebooks then has a validation figure (MAP by ADC; for triplets the fraction in order), and the
        epoch with the best one is kept.
    patience : int, optional
        Stop after so many epochs without a better validation figure, once the ramp is over.
    callback : callable, optional
        Called after each epoch with its figures (the last entry of ``history_``); a true result stops training
        as Ctrl-C does.
    progress : bool
        A tqdm bar (extra ``progress``).
    random_state : None, int or numpy.random.Generator
        The same seed gives the same bits on one machine whatever ``threads``, as long as the BLAS has the same
        number of threads of its own (its products round differently).
    threads : int, optional
        Threads of everything but the BLAS.

    Attributes
    ----------
    network_ : npquant.nn.Sequential
    input_ : PCA or Standardize
        What vectors go through before the network.
    quantizer_ : Quantizer
        The codec of the outputs.
    history_ : list of dict
        For each epoch: ``epoch, loss, lr, ramp, distortion`` (mean squared quantization error of the training
        outputs over their variance), ``validation, seconds``; figures that do not exist yet are ``None``.
    training_ : dict or None
        What ``fit(..., resume=True)`` goes on from, where training was interrupted; it is saved with the model.

    Notes
    -----
    ``transform`` gives outputs, ``encode`` codes of raw vectors, ``decode`` points among the outputs. The
    outputs of one vector may differ in the last bits between batches (GEMM). Where threadpoolctl is installed
    (extra ``threads``), steps of small networks keep the BLAS to one thread. Method, units and schedule: see
    :mod:`npquant.nn.output`; gradient snapping and output momentum are formulations derived for npquant.

    Examples
    --------
    >>> import npquant as nq
    >>> X, y, Q, _ = nq.datasets.load_digits()
    >>> model = nq.DeepQuantizer(hidden=(64,), d_out=16, epochs=3, random_state=0,
    ...                          quantizer=nq.ProductQuantizer(m=2, nbits=4)).fit(X, y)
    >>> distances, ids = model.index(X).search(Q, k=5)
    >>> ids.shape, model.encode(Q).shape
    ((355, 5), (355, 1))
    """

    _fitted_attribute = "quantizer_"
    _runtime_params = ("threads", "callback", "progress")

    @property
    def score_model(self) -> str:  # type: ignore[override]
        """What a score is, among the outputs: the score model of the codec."""
        return self.quantizer_.score_model if self.__sklearn_is_fitted__() else "decoded"

    network_: nn.Sequential
    input_: PCA | Standardize
    quantizer_: Quantizer
    history_: list[dict[str, Any]]
    training_: dict[str, Any] | None

    def __init__(self, hidden: Sequence[int] = (512,), d_out: int = 32, *, loss: Any = "triplet",
                 output: Any = "gsl", quantizer: Quantizer | None = None, whiten: int | None = None,
                 normalize: bool = True, batch_norm: bool = False, dropout: float = 0.2, optimizer: Any = "adam",
                 lr: float = 2e-3, weight_decay: float = 1e-3, schedule: Any = None, epochs: int = 30,
                 batch_size: int = 256, per_class: int = 4, mining: str = "all", positives: int = 3,
                 n_neighbors: int = 10, warmup: float = 1 / 3, ramp: float = 1 / 6, codebooks: str = "refit",
                 validation: Any = None, patience: int | None = None, callback: Any = None,
                 progress: bool = False, random_state: Any = None, threads: int | None = None) -> None:
        self.hidden = hidden
        self.d_out = d_out
        self.loss = loss
        self.output = output
        self.quantizer = quantizer
        self.whiten = whiten
        self.normalize = normalize
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.epochs = epochs
        self.batch_size = batch_size
        self.per_class = per_class
        self.mining = mining
        self.positives = positives
        self.n_neighbors = n_neighbors
        self.warmup = warmup
        self.ramp = ramp
        self.codebooks = codebooks
        self.validation = validation
        self.patience = patience
        self.callback = callback
        self.progress = progress
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None, *, pairs: Any = None, triplets: Any = None,
            resume: bool = False) -> DeepQuantizer:
        """Train on ``X`` (n, d) with one kind of supervision, or none.

        Parameters
        ----------
        X : array_like (n, d)
        y : array_like, optional
            Class labels (n,) of any kind, or an indicator matrix (n, c) of labels: similar rows share one.
        pairs : array_like of int (p, 3), optional
            i, j, similar (1) or not (0); i and j are rows of ``X``.
        triplets : array_like of int (t, 3), optional
            i, j, k: row i is more similar to row j than to row k.
        resume : bool
            Go on with an interrupted training (same ``X``, supervision and parameters): the result is the one
            that an uninterrupted training gives, bit for bit. Starts anew where there is nothing to go on from.

        Raises
        ------
        InvalidInputError
            Data or a parameter is wrong; the model is left as it was.
        DivergedError
            A loss or gradient was not finite; the model is left as it was at the end of the epoch before.
        KeyboardInterrupt
            Passed on after the model has been made usable, as it would be had training ended with the epoch before.
        """
        x = _checks.vectors(X, min_rows=2)
        saved = getattr(self, "training_", None) if resume else None
        _Trainer(self, X, x, y, pairs, triplets, saved).run()
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> NDArray[Any]:
        """Fit, and return the outputs of the training vectors, float32 (n, d_out)."""
        return self.fit(X, y, **fit_params).transform(X)

    def transform(self, X: Any) -> Float:  # type: ignore[override]
        """Return the outputs of ``X`` (n, d): float32 (n, d_out).

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        return self._embed(_checks.vectors(X, d=self.n_features_in_, owner="DeepQuantizer"))

    def index(self, X: Any, ids: Any = None, *, metric: str = "l2") -> FlatIndex:
        """Return an index of the codes of ``X`` (n, d) that embeds raw queries itself."""
        index = FlatIndex(self, metric)
        index.add(X, ids)
        return index

    def inverse_transform(self, codes: Any) -> Float:
        """Raise: a network cannot be undone; ``decode`` gives points among its outputs."""
        raise NotInvertibleError("The network of DeepQuantizer cannot be inverted. decode(codes) gives the points "
                                 "among its outputs that codes stand for.")

    @property
    def code_size(self) -> int:
        """Bytes of one vector."""
        self._check_fitted()
        return self.quantizer_.code_size

    @property
    def _n_features_out(self) -> int:
        return self.quantizer_.n_features_in_

    def check_codes(self, codes: Any) -> Codes:
        """Return ``codes`` if they are codes of the inner codec."""
        self._check_fitted()
        return self.quantizer_.check_codes(codes)

    def refine(self, X: Any, n_iter: int = 3) -> DeepQuantizer:
        """Go on training the codebooks alone on the outputs of ``X`` (n, d)."""
        self.quantizer_ = copy.copy(self.quantizer_).refine(self.transform(X), n_iter)
        return self

    def _embed(self, x: Float) -> Float:
        return np.asarray(self.network_.predict(self.input_.transform(x)) if len(x) else
                          np.empty((0, self._n_features_out), np.float32))

    def _check_state(self) -> None:
        widths = [(self.n_features_in_, self.input_.n_features_in_), (self.input_._n_features_out, self.network_.d_in),
                  (self.network_.d_out, self.quantizer_.n_features_in_)]
        if any(have != want for have, want in widths):
            raise InvalidInputError(f"input, network and codec do not fit together: dimensions {widths}.")

    def _encode(self, x: Float) -> Codes:
        return self.quantizer_._encode(x)

    def _decode(self, codes: Codes) -> Float:
        return self.quantizer_._decode(codes)

    def _scored(self, x: Float) -> tuple[Quantizer, Float]:
        return self.quantizer_._scored(x)

    def _nearby(self, x: Float, k: int) -> Float:
        return self.quantizer_._nearby(x, k)


class _Trainer(_training.Training):
    """One training: what follows from the parameters and the data, and a state that an epoch begins from."""

    def __init__(self, model: DeepQuantizer, X: Any, x: Float, y: Any, pairs: Any, triplets: Any,
                 saved: dict[str, Any] | None) -> None:
        self.model, self.X = model, X
        self.epochs = self.total = _checks.integer(model.epochs, "epochs")
        self._check_pull()
        self.loss = _training.named(model.loss, "loss", LOSSES)
        self.rule = _training.make_rule(model.output)
        self.schedule = _training.named("cosine" if model.schedule is None else model.schedule, "schedule",
                                        _training.SCHEDULES)
        self.hidden = _training.widths(model.hidden)
        self._check_callback()
        self.optimizer = _training.optimizer(model, _checks.number(model.weight_decay, "weight_decay"))
        self.sampling = _supervision.Sampling(
            _checks.integer(model.batch_size, "batch_size", 2), _checks.integer(model.per_class, "per_class", 2),
            _checks.choice(model.mining, "mining", nn.samplers.MINING), _checks.integer(model.positives, "positives"))
        _checks.choice(model.codebooks, "codebooks", ("refit", "average"))
        self.patience = None if model.patience is None else _checks.integer(model.patience, "patience")
        if self.patience is not None and model.validation is None:
            raise InvalidInputError("patience needs a validation figure: give validation, for example 0.1.")
        seed = int(_checks.random_state(model.random_state).integers(2**63)) if saved is None else saved["seed"]
        split, start, batches, codec = np.random.default_rng(seed).spawn(4)
        self._read_data(x, y, pairs, triplets, split)
        self.supervision.check(self.loss)
        if isinstance(self.loss, nn.Softmax) and not isinstance(self.supervision, _supervision.Labels):
            raise InvalidInputError("loss='softmax' needs one class label a row: give y of shape (n,), or choose "
                                    "loss='triplet' or 'contrastive'.")
        self.input = (Standardize() if model.whiten is None else PCA(model.whiten, whiten=0.5)).fit(x[self.rows])
        self.z = self.input.transform(x[self.rows])
        self.z_held = self.input.transform(self.x_held) if self.validation is not None else None
        quantizer = ProductQuantizer(m=4) if model.quantizer is None else model.quantizer
        self.codec = _training.seeded_codec(quantizer, int(codec.integers(2**31)), model.threads)
        if model.codebooks == "average" and not hasattr(self.codec, "average"):
            raise InvalidInputError(f"codebooks='average' needs a codec that has it, and {quantizer!r} has not: use "
                                    "codebooks='refit'.")
        about = self._about(self.codec, X=x, y=y, pairs=pairs, triplets=triplets)
        self.state = self._go_on(saved, about) if saved is not None else self._begin(seed, about, start, batches)
        self._try_codec()

    def _read_data(self, x: Float, y: Any, pairs: Any, triplets: Any, rng: np.random.Generator) -> None:
        """Set the supervision and the rows of training, and what is held out."""
        model, threads = self.model, _checks.threads(self.model.threads)
        self.validation: _supervision.Validation | None = None
        self.rows = np.arange(len(x))
        held = model.validation
        if isinstance(held, (tuple, list)):
            if len(held) != 2 or y is None:
                raise InvalidInputError("validation=(X, y) goes with labels y of the training vectors; give a "
                                        "fraction, for example 0.1, with other supervision.")
            x_held = _checks.vectors(held[0], "validation X", d=x.shape[1], owner="X")
            _checks.length(held[1], len(x_held), "validation y", "validation X")
            _checks.length(y, len(x), "y")
            labels, labels_held = np.asarray(y), np.asarray(held[1])
            if labels.shape[1:] != labels_held.shape[1:]:
                raise InvalidInputError(f"validation y has shape {labels_held.shape} and y {labels.shape}: give labels "
                                        "of one form.")
            both = _supervision.read(np.concatenate([x, x_held]), np.concatenate([labels, labels_held]), pairs,
                                     triplets, model.n_neighbors, threads)
            self.supervision, self.rows, self.validation = _supervision.held_rows(
                both, self.rows, len(x) + np.arange(len(x_held)), rng)
            self.x_held = x_held
            self.validation.check()
            return
        self.supervision = _supervision.read(x, y, pairs, triplets, model.n_neighbors, threads)
        if held is not None:
            fraction = _checks.number(held, "validation", high=0.9, above=True)
            self.supervision, self.rows, self.validation = _supervision.hold_out(self.supervision, len(x), fraction,
                                                                                rng)
            self.x_held = x[self.validation.rows]
            self.validation.check()

    def _begin(self, seed: int, about: dict[str, Any], start: np.random.Generator,
               batches: np.random.Generator) -> dict[str, Any]:
        model = self.model
        d_out = _checks.integer(model.d_out, "d_out")
        network = nn.mlp(self.z.shape[1], self.hidden, d_out, batch_norm=bool(model.batch_norm),
                         dropout=_checks.number(model.dropout, "dropout", high=0.95),
                         normalize=bool(model.normalize), rng=start)
        head = None
        if isinstance(self.loss, nn.Softmax):
            classes = int(self.supervision.labels.max()) + 1  # type: ignore[attr-defined]
            head = nn.Sequential.of(nn.Linear.create(d_out, classes, start))
        return {"seed": seed, "about": about, "epoch": 0, "network": network, "head": head,
                "optimizer": self.optimizer.init(network.parameters),
                "head_optimizer": None if head is None else self.optimizer.init(head.parameters),
                "rule": self.rule.init(len(self.z), d_out), "codec": None, "rho": 0.0, "batches": batches,
                "history": [], "best": None}

    def _try_codec(self) -> None:
        """Fit the codec to a few outputs now: what does not fit is told before the training, not after a third."""
        outputs = self.state["network"].predict(self.z[:4096])
        clone(self.codec).fit(outputs).nearest(outputs[:1])  # the rules want codes that decode

    def _over(self) -> bool:
        return bool(self.state["epoch"] == self.epochs) or self._no_better()

    def _epoch(self) -> dict[str, Any]:
        state, began = self.state, time.perf_counter()
        epoch = state["epoch"]
        batches = list(self.supervision.batches(self.sampling, state["batches"]))
        losses = []
        mask = state["network"].decay_mask()
        grads = np.empty_like(state["network"].parameters)
        rate, ramp = 0.0, 0.0
        small = 2 * self.sampling.batch_size * grads.size < _SMALL_STEP
        with one_blas_thread() if small else nullcontext():
            for number, batch in enumerate(batches):
                progress = (epoch + number / len(batches)) / self.epochs
                rate, ramp = self.optimizer.lr * self.schedule(progress), self._strength(progress)
                losses.append(self._step(batch, rate, ramp, mask, grads))
        state["epoch"] = epoch + 1
        figures = {"epoch": epoch, "loss": float(np.mean(losses)), "lr": rate, "ramp": ramp, "distortion": None,
                   "validation": None, "seconds": 0.0}
        fits = state["epoch"] >= self.warmup * self.epochs
        # An epoch may end in numbers that the next one would trip over; then this one did not happen.
        outputs = state["network"].predict(self.z if fits else self.z[:1024])
        if not (np.abs(outputs) <= _LARGEST_OUTPUT).all():
            raise self._diverged("output")
        if fits:
            self._refit(outputs, figures)
        figures["seconds"] = time.perf_counter() - began
        state["history"].append(figures)
        return figures

    def _step(self, batch: _supervision.Batch, rate: float, ramp: float, mask: Float, grads: Float) -> float:
        state, rng = self.state, self.state["batches"]
        network = state["network"]
        y, cache = network.forward(self.z[batch.rows], train=True, rng=rng)
        codewords = None
        if state["codec"] is not None:
            codewords = rules.Codewords(state["codec"]._nearest, state["codec"]._nearby, state["rho"], ramp)
        anchor = self.rule.before_loss(y, "anchor", codewords)
        other = self.rule.before_loss(y, "other", codewords)
        target = self.supervision.target(self.loss, y, batch, self.sampling, rng)
        if state["head"] is None:
            value, dy = self.loss.value_and_grad(anchor, target, None if other is anchor else other)
        else:
            logits, head_cache = state["head"].forward(other)
            value, dlogits = self.loss.value_and_grad(logits, target)
            dy, head_grads = state["head"].backward(dlogits, head_cache)
        if self.model.normalize:
            dy = rules.tangent(dy, y)
        dy, state["rule"] = self.rule.update(dy, state["rule"], y=y, rows=batch.rows, codewords=codewords)
        self._check_finite(y, value, dy)
        scale = np.float32(1 / len(batch.rows))
        network.backward(dy * scale, cache, need_dx=False, out=grads)
        state["optimizer"] = self.optimizer.update(network.parameters, grads, state["optimizer"], rate, mask)
        state["network"] = network.absorb(cache)
        if state["head"] is not None:
            state["head_optimizer"] = self.optimizer.update(state["head"].parameters, head_grads * scale,
                                                            state["head_optimizer"], rate, state["head"].decay_mask())
        if self.model.codebooks == "average" and state["codec"] is not None:
            state["codec"].average(y, 0.99)
        return value

    def _refit(self, outputs: Float, figures: dict[str, Any]) -> None:
        """Bring the codebooks to the present outputs of all training rows, and measure."""
        state = self.state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)  # said before the training
            state["codec"] = (clone(self.codec).fit(outputs) if state["codec"] is None else
                              state["codec"].refine(outputs))
        error = -state["codec"].score(outputs)
        state["rho"] = float(np.sqrt(error))
        figures["distortion"] = error / max(float(outputs.var(axis=0, dtype=np.float64).sum()), 1e-300)
        if self.validation is not None:
            figures["validation"] = self.validation.figure(state["network"].predict(self.z_held), outputs,
                                                           state["codec"])
            if state["best"] is None or figures["validation"] >= state["best"]["figure"]:
                state["best"] = {"figure": figures["validation"], "epoch": figures["epoch"],
                                 "network": state["network"].copy(), "codec": copy.deepcopy(state["codec"])}

    def _no_better(self) -> bool:
        """Whether ``patience`` epochs have gone by without a better figure, once the pull is full."""
        if self.patience is None or self.state["best"] is None:
            return False
        full = int(np.ceil((self.warmup + self.ramp) * self.epochs))
        last = self.state["epoch"] - 1
        return last - max(int(self.state["best"]["epoch"]), full) >= self.patience

    def _finish(self) -> None:
        """Train the last codebooks from scratch on the final outputs, keep the better, and set the attributes."""
        state, model = self.state, self.model
        model.training_ = state  # first of all: whatever happens below, no epoch is lost
        kept = state if state["best"] is None else state["best"]
        network, warm = kept["network"].copy(), copy.deepcopy(kept["codec"])
        outputs = network.predict(self.z)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)
            codec = clone(self.codec).fit(outputs)
        if warm is not None and warm.score(outputs) > codec.score(outputs):
            codec = warm
        model._remember_features(self.X, self.input.n_features_in_)
        model.network_, model.input_, model.quantizer_ = network, self.input, codec
        model.history_ = [dict(figures) for figures in state["history"]]
        if self._over():
            model.training_ = None
