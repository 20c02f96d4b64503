"""Catalyzer: a network that spreads vectors evenly over a sphere and keeps their neighbours, before any codec."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, _training, metrics, nn
from npquant._base import Transformer, clone
from npquant._supervision import others
from npquant.errors import InvalidInputError, NpquantWarning
from npquant.kernels import exact, nearest
from npquant.kernels._pool import one_blas_thread, run_blocks
from npquant.nn import output as rules
from npquant.quantizers.base import Float, Quantizer
from npquant.quantizers.lattice import SphericalLattice
from npquant.quantizers.transformed import PreTransformed
from npquant.transforms import Standardize

Rows = NDArray[np.int64]

_SCHEDULES: dict[str, Callable[[], Any]] = {
    **_training.SCHEDULES, "quarters": partial(nn.Steps, (0.5, 0.75), (1.0, 0.5, 0.1))}
_VALIDATION_BASE = 50_000  # training rows that validation queries are searched in
_QUERIES = 1 << 15  # whose neighbours are held at a time
_SMALL_STEP = 1e8  # operations of a forward pass below which a second thread of the BLAS costs more than it does


class Catalyzer(Transformer):
    """Spread vectors evenly over a sphere, neighbours kept, so that a fixed quantizer fits them.

    Sablayrolles, Douze, Schmid, Jégou: Spreading vectors for similarity search, ICLR 2019 (arXiv 1806.03198).
    Instead of a quantizer to the data, the data are fitted to the quantizer: a network with outputs of norm 1 learns
    by L = L_rank + lam · L_KoLeo, where

    * L_rank = mean max(0, ‖f(x) − f(x⁺)‖ − ‖f(x) − f(x⁻)‖), x⁺ one of the 10 nearest neighbours of x among the
      training vectors, x⁻ the one that stands 50th to it among the *outputs*, found anew each epoch;
    * L_KoLeo = −(1/n) Σ log(n ρ_i), ρ_i the distance of an output to the nearest other anchor's of its batch.

    It is a transform: ``PreTransformed(Catalyzer(24), SphericalLattice(24, 79))`` codes vectors, and queries are
    transformed and not coded (asymmetric search). A trained one goes before other codecs by :meth:`codec`.

    Parameters
    ----------
    d_out : int
        Dimension of the outputs.
    hidden : sequence of int
        Widths of the hidden layers (batch norm, ReLU).
    lam : float or sequence of float
        Weight of L_KoLeo: 0 keeps ranks best, a large one spreads best. Of several, each is trained to the end
        and the one with the best validation figure is kept.
    output : str, an output rule of ``npquant.nn``, or a sequence of them
        As of :class:`DeepQuantizer`: ``"plain"`` trains without the quantizer in the loop; ``"straight_through"``
        shows the loss the quantized x⁺ and x⁻, and looks for x⁻ among quantized outputs; ``"gsl"``, ``"ssm"`` …
    quantizer : Quantizer, optional
        The codec of the outputs that ``output`` and ``validation`` are about, cloned and never changed. By default
        the spherical lattice of 64 bits, ``SphericalLattice.for_bits(d_out, 64)``.
    n_positives, negative_rank : int
    mining_points : int, optional
        x⁻ is looked for among so many vectors, drawn anew each epoch, at the rank that is lower in proportion. All by
        default; the time of the search is in proportion too.
    optimizer : {"sgd", "adam"} or an optimizer of ``npquant.nn``
        SGD has momentum 0.9; no weight decay.
    lr : float
        For an optimizer given by name.
    schedule : {"quarters", "steps", "cosine", "constant"} or a schedule of ``npquant.nn``
        ``"quarters"``: lr for half of the training, lr / 2 for a quarter, lr / 10 for the last.
    epochs : int
    batch_size : int
        Anchors of a batch, at the most; a batch has three times as many rows.
    warmup, ramp : float
        Fractions of training before a rule acts, and then along which its strength grows.
    validation : float or array_like (n, d), optional
        Fraction of the rows held out, or other vectors: the queries of a search in (at most 50,000) training vectors.
        The figure is recall@10: how many find their true nearest neighbour in *input* space among the first 10 by
        ``quantizer``. The epoch with the best one is kept.
    validate_every : int
        Epochs between two figures; the last epoch has one.
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
    input_ : Standardize
        What vectors go through before the network.
    lam_ : float
        The weight that the network was trained with.
    history_ : list of dict
        For each epoch: ``epoch, lam, loss, rank, koleo`` (L, L_rank and L_KoLeo, means over the epoch), ``lr, ramp,
        distortion`` (mean squared quantization error over the variance, where a rule wants a codec), ``validation,
        mining`` (seconds that finding x⁻ took) and ``seconds``; figures that do not exist are ``None``.
    training_ : dict or None
        What ``fit(..., resume=True)`` goes on from, where training was interrupted; it is saved with the model.

    Notes
    -----
    One batch is one forward over its distinct rows. Training works by GEMM; ``transform`` takes its products in a
    fixed order, so that what becomes of a vector does not depend on its batch, on threads or on the compiler. An epoch
    of n vectors costs 18 n P operations for P weights and a search of n outputs among themselves, 2 n² d_out; before
    the first one, the positives take 2 n² d.

    Examples
    --------
    >>> import npquant as nq
    >>> X, _, Q, _ = nq.datasets.load_digits()
    >>> spread = nq.Catalyzer(8, hidden=(64,), epochs=2, batch_size=256, random_state=0).fit(X)
    >>> spread.transform(Q).shape
    (355, 8)
    >>> codec = spread.codec(nq.ProductQuantizer(m=4, nbits=4, random_state=0), X)
    >>> codec.encode(Q).shape
    (355, 2)
    """

    _fitted_attribute = "network_"
    _runtime_params = ("threads", "callback", "progress")

    network_: nn.Sequential
    input_: Standardize
    lam_: float
    history_: list[dict[str, Any]]
    training_: dict[str, Any] | None
    n_features_in_: int

    def __init__(self, d_out: int = 24, hidden: Sequence[int] = (1024, 1024), *, lam: Any = 0.05,
                 output: Any = "plain", quantizer: Quantizer | None = None, n_positives: int = 10,
                 negative_rank: int = 50, mining_points: int | None = None, optimizer: Any = "sgd", lr: float = 0.1,
                 schedule: Any = "quarters", epochs: int = 20, batch_size: int = 64, warmup: float = 0.0,
                 ramp: float = 0.0, validation: Any = None, validate_every: int = 1, callback: Any = None,
                 progress: bool = False, random_state: Any = None, threads: int | None = None) -> None:
        self.d_out = d_out
        self.hidden = hidden
        self.lam = lam
        self.output = output
        self.quantizer = quantizer
        self.n_positives = n_positives
        self.negative_rank = negative_rank
        self.mining_points = mining_points
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.epochs = epochs
        self.batch_size = batch_size
        self.warmup = warmup
        self.ramp = ramp
        self.validation = validation
        self.validate_every = validate_every
        self.callback = callback
        self.progress = progress
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None, *, resume: bool = False) -> Catalyzer:
        """Train on ``X`` (n, d); ``y`` is ignored.

        Parameters
        ----------
        X : array_like (n, d)
        resume : bool
            Go on with an interrupted training (same ``X`` and parameters): the result is the one that an
            uninterrupted training gives, bit for bit. Starts anew where there is nothing to go on from.

        Raises
        ------
        InvalidInputError
            Data or a parameter is wrong; the model is left as it was.
        NotInvertibleError
            ``output`` wants the nearest codewords, and ``quantizer`` cannot decode; the model is left as it was.
        DivergedError
            A loss or gradient was not finite; the model is left as it was at the end of the epoch before.
        KeyboardInterrupt
            Passed on after the model has been made usable, as it would be had training ended with the epoch before.
        """
        x = _checks.vectors(X, min_rows=3)
        saved = getattr(self, "training_", None) if resume else None
        _Trainer(self, X, x, saved).run()
        return self

    def transform(self, X: Any) -> Float:
        """Return the outputs of ``X`` (n, d): float32 (n, d_out), rows of norm 1.

        A vector of which the last layer makes 0, as of constant data, has the output 0.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        return self._transform(_checks.vectors(X, d=self.n_features_in_, owner="Catalyzer"), self.threads)

    def codec(self, quantizer: Quantizer, X: Any) -> PreTransformed:
        """Return ``quantizer`` behind this transform, trained on the outputs of ``X`` (n, d).

        It is what ``PreTransformed(catalyzer, quantizer).fit(X)`` gives, without training the network again. Of more
        than ``quantizer.max_points`` vectors so many are drawn. What is given is left as it is: both are copied.

        Raises
        ------
        NotFittedError, InvalidInputError
        """
        self._check_fitted()
        if not isinstance(quantizer, Quantizer):
            raise InvalidInputError(f"quantizer is {quantizer!r}, wanted a codec such as ProductQuantizer(m=4).")
        codec, inner = PreTransformed(clone(self), clone(quantizer), threads=self.threads), clone(quantizer)
        codec.transform_, codec.quantizer_ = copy.copy(self), inner.fit(self.transform(inner._training_rows(X)))
        codec._remember_features(X, self.n_features_in_)
        return codec

    def _transform(self, x: Float, threads: int | None = None) -> Float:
        out = np.empty((len(x), self._n_features_out), np.float32)

        def block(begin: int, end: int) -> None:
            y = self.input_.transform(x[begin:end])
            for layer in self.network_.layers:
                y = _in_order(layer, y) if isinstance(layer, nn.Linear) else layer.forward(y)[0]
            out[begin:end] = y
        run_blocks(block, len(x), 1024, _checks.threads(threads))
        return out

    @property
    def _n_features_out(self) -> int:
        return int(self.network_.d_out or 0)

    def _check_state(self) -> None:
        if not self.__sklearn_is_fitted__():
            return  # saved before fit
        widths = [(self.n_features_in_, self.input_.n_features_in_), (self.input_._n_features_out, self.network_.d_in)]
        if any(have != want for have, want in widths) or self.network_.d_out is None:
            raise InvalidInputError(f"input and network do not fit together: dimensions {widths}.")


class _Trainer(_training.Training):
    """One training: what follows from the parameters and the data, and a state that an epoch begins from."""

    def __init__(self, model: Catalyzer, X: Any, x: Float, saved: dict[str, Any] | None) -> None:
        self.model, self.X = model, X
        self.epochs = _checks.integer(model.epochs, "epochs")
        self.d_out = _checks.integer(model.d_out, "d_out")
        self.hidden = _training.widths(model.hidden)
        self.lams = _weights(model.lam)
        self.total = self.epochs * len(self.lams)
        if len(self.lams) > 1 and model.validation is None:
            raise InvalidInputError(f"lam is {model.lam!r}, of which validation chooses: give validation, for example "
                                    "0.05, or one number.")
        self._check_pull()
        self.rule = _training.make_rule(model.output)
        self.schedule = _training.named(model.schedule, "schedule", _SCHEDULES)
        self.optimizer = _training.optimizer(model, 0.0)
        self._check_callback()
        self.batch_size = _checks.integer(model.batch_size, "batch_size", 2)
        self.validate_every = _checks.integer(model.validate_every, "validate_every")
        self.threads = _checks.threads(model.threads)
        self.seed = int(_checks.random_state(model.random_state).integers(2**63)) if saved is None else saved["seed"]
        split, draw, _, _ = self._generators()
        self._read_data(x, split)
        self.pulled = type(self.rule) is not rules.OutputTransform
        self.codec: Quantizer | None = None
        if self.pulled or self.held is not None or model.quantizer is not None:
            quantizer = SphericalLattice.for_bits(self.d_out, 64) if model.quantizer is None else model.quantizer
            self.codec = _training.seeded_codec(quantizer, int(draw.integers(2**31)), model.threads)
        about = self._about(self.codec, X=x, validation=self.held)
        self.state = self._go_on(saved, about) if saved is not None else {
            "seed": self.seed, "about": about, "history": [], "best": None, **self._beginning(0)}
        if self.codec is not None:  # what does not fit is told before the training, not after an epoch
            outputs = self.state["network"].predict(self.z[:4096])
            codec = clone(self.codec).fit(outputs)
            if self.pulled:
                codec.nearest(outputs[:1])  # the rules want codes that decode
        self.near = self._neighbours(self.x, self.x, self.n_positives)

    def _generators(self) -> list[np.random.Generator]:
        return np.random.default_rng(self.seed).spawn(4)

    def _read_data(self, x: Float, rng: np.random.Generator) -> None:
        """Set the training vectors, those held out, and which of the first these are searched in."""
        model = self.model
        self.held: Float | None = None
        kept = np.arange(len(x))
        if isinstance(model.validation, (int, float, np.number)):
            fraction = _checks.number(model.validation, "validation", high=0.9, above=True)
            order = rng.permutation(len(x))
            count = min(max(1, round(fraction * len(x))), len(x) - 1)
            kept, self.held = np.sort(order[count:]), x[np.sort(order[:count])]
        elif model.validation is not None:
            self.held = _checks.vectors(model.validation, "validation", d=x.shape[1], owner="X")
        self.x = x if len(kept) == len(x) else x[kept]
        n = len(self.x)
        self.n_positives = _checks.integer(model.n_positives, "n_positives")
        self.rank = _checks.integer(model.negative_rank, "negative_rank")
        for name in ("n_positives", "negative_rank"):
            if getattr(model, name) > n - 1:
                raise InvalidInputError(f"{name} is {getattr(model, name)}, and each of the {n} training vectors has "
                                        f"{n - 1} others. Give more vectors, or lower {name}.")
        points = n if model.mining_points is None else _checks.integer(model.mining_points, "mining_points", 3)
        self.points = min(points, n)
        self.input = Standardize().fit(self.x)
        self.z = self.input.transform(self.x)
        if self.held is not None:
            self.z_held = self.input.transform(self.held)
            self.base = np.sort(rng.permutation(n)[:_VALIDATION_BASE])
            self.truth = exact.neighbors(self.x[self.base], self.held, 1, self.threads)[1]

    def _beginning(self, lam: int) -> dict[str, Any]:
        """Return what each weight begins with: the same network and batches."""
        _, _, start, batches = self._generators()
        network = nn.mlp(self.z.shape[1], self.hidden, self.d_out, batch_norm=True, rng=start)
        return {"lam": lam, "epoch": 0, "network": network, "optimizer": self.optimizer.init(network.parameters),
                "rule": self.rule.init(len(self.z), self.d_out), "codec": None, "rho": 0.0, "batches": batches}

    def _over(self) -> bool:
        return bool(self.state["lam"] == len(self.lams) - 1 and self.state["epoch"] == self.epochs)

    def _epoch(self) -> dict[str, Any]:
        if self.state["epoch"] == self.epochs:
            self.state.update(self._beginning(self.state["lam"] + 1))
        state, began = self.state, time.perf_counter()
        epoch, lam, rng = state["epoch"], self.lams[state["lam"]], state["batches"]
        outputs = state["network"].predict(self.z)
        distortion = self._refit(outputs) if self.pulled and epoch >= self.warmup * self.epochs else None
        mining = time.perf_counter()
        negatives = self._mine(outputs, self._strength(epoch / self.epochs), rng)
        mining = time.perf_counter() - mining
        order = rng.permutation(len(self.z))
        positives = self.near[order, rng.integers(self.n_positives, size=len(order))]
        # Batches of nearly one size: a last one of a few rows would have wild statistics.
        batches = np.array_split(np.stack([order, positives, negatives[order]]),
                                 -(-len(order) // self.batch_size), axis=1)
        grads = np.empty_like(state["network"].parameters)
        parts = np.empty((len(batches), 2))
        rate = strength = 0.0
        with one_blas_thread() if 6 * self.batch_size * grads.size < _SMALL_STEP else nullcontext():
            for number, batch in enumerate(batches):
                progress = (epoch + number / len(batches)) / self.epochs
                rate, strength = self.optimizer.lr * self.schedule(progress), self._strength(progress)
                parts[number] = self._step(batch, lam, rate, strength, grads)
        state["epoch"] = epoch + 1
        rank, koleo = (float(part) for part in parts.mean(axis=0))
        figures = {"epoch": epoch, "lam": lam, "loss": rank + lam * koleo, "rank": rank, "koleo": koleo, "lr": rate,
                   "ramp": strength, "distortion": distortion, "validation": None, "mining": mining, "seconds": 0.0}
        # An epoch may end in numbers that the next one would trip over; then this one did not happen.
        if not np.isfinite(state["network"].predict(self.z[:1024])).all():
            raise self._diverged("output")
        if self.held is not None and (state["epoch"] % self.validate_every == 0 or state["epoch"] == self.epochs):
            self._validate(figures)
        figures["seconds"] = time.perf_counter() - began
        state["history"].append(figures)
        return figures

    def _step(self, batch: Rows, lam: float, rate: float, strength: float, grads: Float) -> tuple[float, float]:
        """Make one step by ``batch`` (3, b), rows of anchors, positives and negatives; return L_rank and L_KoLeo."""
        state = self.state
        network = state["network"]
        rows, members = np.unique(batch, return_inverse=True)
        members = members.reshape(batch.shape)
        y, cache = network.forward(self.z[rows], train=True)
        codewords = self._codewords(strength)
        seen = self.rule.before_loss(y, "anchor", codewords)
        other = self.rule.before_loss(y, "other", codewords)
        value, dy = nn.RankTriplet().value_and_grad(seen, nn.Triplets(*members), None if other is seen else other)
        koleo, spread = nn.KoLeo().value_and_grad(y[members[0]])
        dy[members[0]] += np.float32(lam) * spread
        dy, state["rule"] = self.rule.update(rules.tangent(dy, y), state["rule"], y=y, rows=rows, codewords=codewords)
        anchors = batch.shape[1]
        rank = value * len(rows) / anchors
        self._check_finite(y, rank + lam * koleo, dy)
        network.backward(dy * np.float32(1 / anchors), cache, need_dx=False, out=grads)
        state["optimizer"] = self.optimizer.update(network.parameters, grads, state["optimizer"], rate)
        state["network"] = network.absorb(cache)
        return rank, koleo

    def _codewords(self, strength: float) -> rules.Codewords | None:
        codec = self.state["codec"]
        return None if codec is None else rules.Codewords(codec._nearest, codec._nearby, self.state["rho"], strength)

    def _refit(self, outputs: Float) -> float:
        """Bring the codec to the present outputs; return its distortion."""
        state = self.state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)  # said before the training
            state["codec"] = (clone(self.codec).fit(outputs) if state["codec"] is None else
                              state["codec"].refine(outputs))
        error = -state["codec"].score(outputs)
        state["rho"] = float(np.sqrt(error))
        return float(error / max(float(outputs.var(axis=0, dtype=np.float64).sum()), 1e-300))

    def _mine(self, outputs: Float, strength: float, rng: np.random.Generator) -> Rows:
        """Return for each row the one that stands ``negative_rank``-th to it among the outputs, (n,)."""
        n = len(outputs)
        base = self.rule.before_loss(outputs, "other", self._codewords(strength))
        if self.points == n:
            return self._neighbours(base, outputs, self.rank)[:, -1]
        drawn = np.sort(rng.permutation(n)[:self.points])
        rank = min(max(1, round(self.rank * self.points / n)), self.points - 1)
        return self._neighbours(base[drawn], outputs, rank, drawn)[:, -1]

    def _neighbours(self, base: Float, queries: Float, k: int, rows: Rows | None = None) -> Rows:
        """Return the ``k`` nearest to each of ``queries`` but itself, (n, k); ``base`` are all of them, or ``rows``."""
        parts = []
        for start in range(0, len(queries), _QUERIES):
            found = exact.neighbors(base, queries[start:start + _QUERIES], k + 1, self.threads)[1]
            parts.append(others(found if rows is None else rows[found], start + np.arange(len(found))))
        return np.concatenate(parts)

    def _validate(self, figures: dict[str, Any]) -> None:
        """Set the recall of the queries held out; keep the network if it is the best so far."""
        state = self.state
        base = state["network"].predict(self.z[self.base])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NpquantWarning)  # said before the training
            codec = clone(self.codec).fit(base)
        scorer = codec.scorer(state["network"].predict(self.z_held))
        ids = scorer.topk(codec.encode(base), np.arange(len(base)), min(10, len(base)), self.threads)[1]
        figures["validation"] = metrics.recall_at(ids, self.truth, ids.shape[1])
        if state["best"] is None or figures["validation"] >= state["best"]["figure"]:
            state["best"] = {"figure": figures["validation"], "epoch": figures["epoch"], "lam": figures["lam"],
                             "network": state["network"].copy()}

    def _finish(self) -> None:
        state, model = self.state, self.model
        best = state["best"]
        network = (state if best is None else best)["network"].copy()
        model._remember_features(self.X, self.input.n_features_in_)
        model.network_, model.input_ = network, self.input
        model.lam_ = self.lams[state["lam"]] if best is None else best["lam"]
        model.history_ = [dict(figures) for figures in state["history"]]
        model.training_ = None if self._over() else state


def _in_order(layer: nn.Linear, x: Float) -> Float:
    """Return what a linear layer makes of ``x``, each row the same bits in any batch, as GEMM's are not."""
    out = np.empty((len(x), 1, layer.weight.shape[1]), np.float32)
    nearest.subspace_products(np.ascontiguousarray(x), layer.weight[np.newaxis], out)
    return np.asarray(out[:, 0] + layer.bias)


def _weights(lam: Any) -> tuple[float, ...]:
    if isinstance(lam, (list, tuple)) or (isinstance(lam, np.ndarray) and lam.ndim):
        if not len(lam):
            raise InvalidInputError("lam is empty, wanted a number or several.")
        return tuple(_checks.number(value, "lam") for value in lam)
    return (_checks.number(lam, "lam"),)

