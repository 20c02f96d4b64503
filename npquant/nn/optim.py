"""Optimizers over one flat array of parameters, and schedules of their rate.

An optimizer is a frozen value; what it keeps is a plain dict of arrays and ints, so that it can be saved:
``state = optimizer.init(parameters)``, then ``state = optimizer.update(parameters, grads, state, lr)`` each
step, which changes ``parameters`` and the arrays of ``state`` in place, in one fused pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels

Array = NDArray[Any]
State = dict[str, Any]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum: v ← momentum · v + g; p ← p − lr · v.

    Parameters
    ----------
    lr : float
        The rate that a schedule multiplies.
    momentum : float
    weight_decay : float
        Coupled, the classical form: g ← g + weight_decay · p.
    nesterov : bool
        Step along g + momentum · v instead of v.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _numbers(self, lr=np.inf, momentum=1.0, weight_decay=np.inf)

    def init(self, parameters: Array) -> State:
        """Return the state before the first step: ``step`` 0 and ``velocity`` 0 (P,)."""
        return {"step": 0, "velocity": np.zeros_like(parameters)}

    def update(self, parameters: Array, grads: Array, state: State, lr: float | None = None,
               decay_mask: Array | None = None) -> State:
        """Make one step in place and return the state after it.

        Parameters
        ----------
        parameters, grads : ndarray, shape (P,)
            C-contiguous, of one dtype.
        state : dict
            From :meth:`init` or the step before; its arrays are changed.
        lr : float, optional
            The rate of this step; ``None``: ``self.lr``.
        decay_mask : ndarray, shape (P,), optional
            1 where weight decay is meant, else 0 (``Sequential.decay_mask()``); ``None``: everywhere.
        """
        kind = parameters.dtype.type
        mask = _mask(parameters, self.weight_decay, decay_mask)
        kernels.for_dtype(kernels.sgd_step, parameters.dtype)(
            parameters, grads, state["velocity"], mask, kind(self.lr if lr is None else lr),
            kind(self.momentum), kind(self.weight_decay), bool(self.nesterov))
        return {**state, "step": state["step"] + 1}


@dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) with decoupled weight decay (arXiv 1711.05101, algorithm 2).

    Parameters
    ----------
    lr : float
        The rate that a schedule multiplies.
    betas : (float, float)
        Decay of the two moments.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Decoupled: p ← p · (1 − lr · weight_decay) before the step.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _numbers(self, lr=np.inf, weight_decay=np.inf)
        if not isinstance(self.betas, Sequence) or len(self.betas) != 2:
            raise InvalidInputError(f"betas is {self.betas!r}, wanted two numbers in [0, 1).")
        betas = tuple(_checks.number(beta, "a beta", 0.0, 1 - 1e-9) for beta in self.betas)
        object.__setattr__(self, "betas", betas)  # JSON gives lists back
        object.__setattr__(self, "eps", _checks.number(self.eps, "eps", above=True))

    def init(self, parameters: Array) -> State:
        """Return the state before the first step: ``step`` 0 and the moments ``first``, ``second`` 0 (P,)."""
        return {"step": 0, "first": np.zeros_like(parameters), "second": np.zeros_like(parameters)}

    def update(self, parameters: Array, grads: Array, state: State, lr: float | None = None,
               decay_mask: Array | None = None) -> State:
        """Make one step in place and return the state after it; arguments as in :meth:`SGD.update`."""
        step = state["step"] + 1
        rate = self.lr if lr is None else lr
        beta1, beta2 = self.betas
        # All in float64 first: 1 − 0.99 in float32 is off by 1e-6 of itself.
        factors = np.array([beta1, 1 - beta1, beta2, 1 - beta2, rate / (1 - beta1**step),
                            1 / math.sqrt(1 - beta2**step), self.eps, rate * self.weight_decay],
                           parameters.dtype)
        mask = _mask(parameters, self.weight_decay, decay_mask)
        kernels.for_dtype(kernels.adam_step, parameters.dtype)(parameters, grads, state["first"],
                                                               state["second"], mask, factors)
        return {**state, "step": step}


Optimizer = SGD | Adam


@dataclass(frozen=True)
class Constant:
    """The multiplier 1, always."""

    def __call__(self, progress: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Steps:
    """``factors[i]`` up to ``boundaries[i]`` (excluded), the last factor after the last boundary."""

    boundaries: tuple[float, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        boundaries = tuple(_checks.number(b, "a boundary", 0.0, 1.0) for b in self.boundaries)
        factors = tuple(_checks.number(f, "a factor") for f in self.factors)
        if len(factors) != len(boundaries) + 1 or list(boundaries) != sorted(boundaries):
            raise InvalidInputError(f"step_schedule wants ascending boundaries and one factor more, got "
                                    f"boundaries {boundaries} and factors {factors}.")
        object.__setattr__(self, "boundaries", boundaries)
        object.__setattr__(self, "factors", factors)

    def __call__(self, progress: float) -> float:
        """Return the multiplier at ``progress`` in [0, 1]."""
        return self.factors[sum(progress >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True)
class Cosine:
    """From 0 to 1 linearly over the share ``warmup`` of training, then down to 0 along half a cosine."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", _checks.number(self.warmup, "warmup", 0.0, 0.999))

    def __call__(self, progress: float) -> float:
        """Return the multiplier at ``progress`` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1.0 - self.warmup))))


Schedule = Constant | Steps | Cosine


def constant() -> Constant:
    """Return the schedule that leaves the rate alone."""
    return Constant()


def step_schedule(boundaries: Sequence[float], factors: Sequence[float]) -> Steps:
    """Return the schedule of the multiplier ``factors[i]`` before ``boundaries[i]``, the last after all.

    Examples
    --------
    >>> schedule = step_schedule((0.5, 0.75), (1.0, 0.5, 0.1))  # a rate of 0.1: 0.1, then 0.05, then 0.01
    >>> [schedule(p) for p in (0.0, 0.49, 0.5, 0.8, 1.0)]
    [1.0, 1.0, 0.5, 0.1, 0.1]
    """
    return Steps(tuple(boundaries), tuple(factors))


def cosine_schedule(warmup: float = 0.0) -> Cosine:
    """Return the schedule of a linear warm-up over the share ``warmup``, then half a cosine down to 0."""
    return Cosine(warmup)


def _numbers(owner: Any, **highest: float) -> None:
    for name, high in highest.items():
        object.__setattr__(owner, name, _checks.number(getattr(owner, name), name, 0.0, high))


def _mask(parameters: Array, weight_decay: float, decay_mask: Array | None) -> Array:
    if weight_decay == 0:
        return parameters[:0]
    if decay_mask is None:
        return np.ones_like(parameters)
    return np.ascontiguousarray(decay_mask, dtype=parameters.dtype)
