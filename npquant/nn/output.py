"""What stands between the loss and the network: rules that pull outputs to codewords.

A rule is a value. It may change what the loss sees (``before_loss``: straight-through) and the gradient that is
propagated back (``update``: gradient snapping, output momentum, the quantization penalty); the forward pass of
the network is always left alone. The formulas of gradient snapping and of the space shuttle are *derived for
npquant within the published constraints* of Liu & Lu (arXiv 1610.09645, and "Space Shuttle Model"); the authors'
own formulas are not claimed.

Notation: y (n, d) the network's outputs, g = ∂E/∂y a sample (not divided by the batch size), Q(y) the decoded
nearest codeword. Every strength is dimensionless, by two units: ρ, the RMS quantization error
√mean‖y − Q(y)‖², and G, the RMS of ‖g‖ (a running mean over batches). ``NC(p, g)`` is p without the part that
opposes g: p − min(0, ⟨p, g⟩)/‖g‖² · g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npquant import _checks

Array = NDArray[np.floating[Any]]
State = dict[str, Any]


class Codewords(NamedTuple):
    """What a rule is told of the current codebooks.

    Attributes
    ----------
    nearest : callable
        ``nearest(y (n, d)) -> (n, d)``, the decoded nearest codewords.
    nearby : callable
        ``nearby(y, k) -> (n, B, k, d / B)``, for each of B independent blocks the k nearest, the nearest first.
    rho : float
        RMS quantization error of the training outputs, ρ, measured when the codebooks were last fitted.
    ramp : float
        What the strengths are multiplied by, 0 … 1: the schedule of training.
    """

    nearest: Callable[[Any], Any]
    nearby: Callable[[Any, int], Any] | None
    rho: float
    ramp: float = 1.0


@dataclass(frozen=True)
class OutputTransform:
    """Base of the rules; by itself it changes nothing."""

    def init(self, n_rows: int, d: int) -> State:
        """Return the state before training on ``n_rows`` samples with outputs of ``d`` dimensions."""
        return {}

    def before_loss(self, y: Array, role: str, codewords: Codewords | None) -> Array:
        """Return what the loss sees of the outputs ``y`` in ``role``: ``"anchor"`` or ``"other"``."""
        return y

    def update(self, dy: Array, state: State, *, y: Array, rows: NDArray[np.int64],
               codewords: Codewords | None) -> tuple[Array, State]:
        """Return the gradient to propagate back, (n, d), and the new state.

        Parameters
        ----------
        dy : ndarray (n, d)
            ∂E/∂y of each sample of the batch, summed over all the terms it stands in.
        state : dict
            What ``init`` or the last ``update`` returned; large arrays in it are updated in place.
        y : ndarray (n, d)
            The outputs of the batch.
        rows : ndarray (n,) int64
            The samples' numbers in the training set; distinct.
        codewords : Codewords or None
            ``None`` as long as there are no codebooks: no rule pulls then.
        """
        return dy, state


@dataclass(frozen=True)
class SpaceShuttle(OutputTransform):
    """Output momentum with gravity towards the codeword that a sample is heading to; see :func:`space_shuttle`."""

    strength: float = 0.3
    tau: float = 1.0
    beta: float = 0.5
    emit: str = "velocity"
    restart: bool = False
    unit: str = "running"

    def __post_init__(self) -> None:
        _checks.number(self.strength, "strength")
        _checks.number(self.tau, "tau")
        _checks.number(self.beta, "beta", high=1.0 - 1e-9)
        _checks.choice(self.emit, "emit", ("velocity", "gradient"))
        _checks.choice(self.unit, "unit", ("running", "batch"))

    def init(self, n_rows: int, d: int) -> State:
        """Return the gradient unit and, with inertia, a velocity (float32, zero) for each sample."""
        state: State = {"G": 0.0}
        if self.beta > 0:
            state["velocity"] = np.zeros((n_rows, d), np.float32)
        return state

    def update(self, dy: Array, state: State, *, y: Array, rows: NDArray[np.int64],
               codewords: Codewords | None) -> tuple[Array, State]:
        """Return ĝ = −G v (``emit="velocity"``) or g + λ NC(p, g) (``emit="gradient"``)."""
        G = _gradient_unit(dy, state["G"], self.unit)
        state = {**state, "G": G}
        if G == 0:
            return dy, state
        # float64 throughout: ‖g‖² of a tiny float32 gradient underflows, and the sign of NC would turn.
        g = dy.astype(np.float64)
        old = state["velocity"][rows].astype(np.float64) if self.beta > 0 else 0.0
        force = g  # −G F: the force, in gradient units
        if codewords is not None and codewords.rho > 0 and codewords.ramp * self.strength > 0:
            rho = codewords.rho
            heading = self.beta * old - (1 - self.beta) * (g / G)  # g / G first: 1 / G overflows when G has faded
            c = codewords.nearest((y + self.tau * rho * heading).astype(y.dtype))
            p = (G / rho) * (y.astype(np.float64) - c)
            force = g + codewords.ramp * self.strength * without_conflict(p, g)
        if self.beta == 0:
            return force.astype(dy.dtype), state
        velocity = self.beta * old - (1 - self.beta) * (force / G)
        if self.restart:
            against = np.einsum("ij,ij->i", velocity, g) > 0  # ⟨v, u⟩ < 0, u = −g/G
            velocity[against] = -force[against] / G
        state["velocity"][rows] = velocity
        return (force if self.emit == "gradient" else -G * velocity).astype(dy.dtype), state


@dataclass(frozen=True)
class RaySnapping(OutputTransform):
    """The strict form of gradient snapping: nothing moves where the loss is silent; see :func:`gradient_snapping`."""

    strength: float = 0.5
    k: int = 4

    def __post_init__(self) -> None:
        _checks.number(self.strength, "strength", high=1.0)
        _checks.integer(self.k, "k")

    def update(self, dy: Array, state: State, *, y: Array, rows: NDArray[np.int64],
               codewords: Codewords | None) -> tuple[Array, State]:
        """Return (1 − s) g − s a u, by blocks; g where no codeword near lies downhill."""
        if codewords is None or codewords.nearby is None or codewords.ramp * self.strength == 0:
            return dy, state
        candidates = np.asarray(codewords.nearby(y, self.k), np.float64)  # (n, B, k, d / B)
        n, B, _, width = candidates.shape
        g = dy.astype(np.float64).reshape(n, B, width)
        ray = candidates - y.astype(np.float64).reshape(n, B, 1, width)
        distance = np.sqrt(np.einsum("nbkj,nbkj->nbk", ray, ray))
        ray /= np.where(distance > 0, distance, 1.0)[..., None]
        gain = -np.einsum("nbkj,nbj->nbk", ray, g)  # 0 for a codeword that y lies on
        best = np.argmax(gain, axis=2)[..., None]
        a = np.take_along_axis(gain, best, axis=2)
        u = np.take_along_axis(ray, best[..., None], axis=2)[:, :, 0]
        s = codewords.ramp * self.strength
        snapped = np.where(a > 0, (1 - s) * g - s * a * u, g)
        return snapped.reshape(n, B * width).astype(dy.dtype), state


@dataclass(frozen=True)
class QuantizationPenalty(OutputTransform):
    """The older way: a term of the loss that pulls to the nearest codeword; see :func:`quantization_penalty`."""

    strength: float = 0.3
    unit: str = "running"

    def __post_init__(self) -> None:
        _checks.number(self.strength, "strength")
        _checks.choice(self.unit, "unit", ("running", "batch", "raw"))

    def init(self, n_rows: int, d: int) -> State:
        """Return the gradient unit."""
        return {"G": 0.0}

    def update(self, dy: Array, state: State, *, y: Array, rows: NDArray[np.int64],
               codewords: Codewords | None) -> tuple[Array, State]:
        """Return g + λ (G/ρ)(y − Q(y)), or g + 2 λ (y − Q(y)) in raw units."""
        G = _gradient_unit(dy, state["G"], self.unit)
        state = {**state, "G": G}
        if codewords is None or codewords.ramp * self.strength == 0 or (codewords.rho == 0 and self.unit != "raw"):
            return dy, state
        scale = 2.0 if self.unit == "raw" else G / codewords.rho
        pull = y.astype(np.float64) - codewords.nearest(y)
        return (dy + codewords.ramp * self.strength * scale * pull).astype(dy.dtype), state


@dataclass(frozen=True)
class StraightThrough(OutputTransform):
    """The loss sees codewords in the other role, the gradient passes as if it had not; see :func:`straight_through`."""

    def before_loss(self, y: Array, role: str, codewords: Codewords | None) -> Array:
        """Return Q(y) in the role ``"other"`` once there are codebooks and the pull is on; else y."""
        if role == "anchor" or codewords is None or codewords.ramp == 0:
            return y
        return np.asarray(codewords.nearest(y), dtype=y.dtype)


@dataclass(frozen=True)
class Chain(OutputTransform):
    """Rules one after the other; see :func:`chain`."""

    rules: tuple[OutputTransform, ...] = ()

    def init(self, n_rows: int, d: int) -> State:
        """Return the states of the rules."""
        return {str(i): rule.init(n_rows, d) for i, rule in enumerate(self.rules)}

    def before_loss(self, y: Array, role: str, codewords: Codewords | None) -> Array:
        """Return y through each rule in turn."""
        for rule in self.rules:
            y = rule.before_loss(y, role, codewords)
        return y

    def update(self, dy: Array, state: State, *, y: Array, rows: NDArray[np.int64],
               codewords: Codewords | None) -> tuple[Array, State]:
        """Return the gradient through each rule in turn."""
        new = {}
        for i, rule in enumerate(self.rules):
            dy, new[str(i)] = rule.update(dy, state[str(i)], y=y, rows=rows, codewords=codewords)
        return dy, new


def gradient_snapping(strength: float | None = None, tau: float = 1.0, *, mode: str = "lookahead", k: int = 4,
                      unit: str = "running") -> OutputTransform:
    """Return gradient snapping: the propagated gradient is bent towards the codeword that a step is heading to.

    ``mode="lookahead"``, with c = Q(y − τ (ρ/G) g) and p = (G/ρ)(y − c)::

        ĝ = g + λ NC(p, g)

    Properties (tested): ⟨ĝ, g⟩ ≥ ‖g‖², so moving the *outputs* along −ĝ lowers the similarity loss, to first
    order, at least as fast as without the layer; through the parameters that the samples share this is not
    guaranteed. λ = 0 returns g. ‖ĝ‖ ≤ ‖g‖ + λ (G/ρ) ‖y − c‖. A satisfied sample (g = 0) of an active batch is
    still pulled, by λ (G/ρ)(y − c): bounded, and fading as the batch is satisfied; with ``unit="batch"`` the
    layer vanishes exactly where a whole batch is satisfied. "Unbiased" is meant in this sense; it cannot mean
    E[ĝ] = E[g] over noise in g: a layer that is odd in g has no drift and cannot propel outputs to codewords.

    Parameters
    ----------
    strength : float
        λ; 0.3 by default (0.1–0.2 on small data), 0.5 for ``mode="ray"``, where it is s ≤ 1.
    tau : float
        How far the look-ahead goes, in units of the step G → ρ.
    mode : {"lookahead", "ray", "nearest"}
        ``ray``: strict, ĝ = 0 exactly where g = 0: among the ``k`` nearest codewords (by blocks for PQ) the one
        most downhill, direction u, a = ⟨−g, u⟩: ĝ = (1 − s) g − s a u where a > 0, else g; ‖ĝ‖ ≤ ‖g‖ and
        ⟨ĝ, g⟩ ≥ (1 − s) ‖g‖². ``nearest``: τ = 0, for ablation.
    k : int
        Candidates of ``mode="ray"``.
    unit : {"running", "batch"}
        G: a running mean (0.9/0.1) over batches of the RMS of ‖g‖, or the current batch's alone.

    Notes
    -----
    It is the space shuttle without inertia (β = 0), and the same code. A formulation derived for npquant within
    the published constraints of Liu & Lu, arXiv 1610.09645.
    """
    _checks.choice(mode, "mode", ("lookahead", "ray", "nearest"))
    if mode == "ray":
        return RaySnapping(0.5 if strength is None else strength, k)
    return SpaceShuttle(0.3 if strength is None else strength, tau if mode == "lookahead" else 0.0, beta=0.0,
                        unit=unit)


def space_shuttle(strength: float = 0.3, tau: float | None = None, beta: float | None = None, *,
                  emit: str = "velocity", restart: bool = False, unit: str = "running") -> OutputTransform:
    """Return output momentum, the space shuttle: a velocity for each training sample, which is what is propagated.

    With u = −g/G (propulsion), vh = β v + (1 − β) u (heading), c = Q(y + τ ρ vh) the body it is flying to::

        F = u − λ NC((y − c)/ρ, −u)       v ← β v + (1 − β) F       ĝ = −G v

    Gravity never works against the propulsion: ⟨F, u⟩ ≥ ‖u‖². β = 0 is gradient snapping. The velocity
    remembers, so ĝ may oppose g for a while; ``restart=True`` resets v to F where ⟨v, u⟩ < 0, and then
    ⟨ĝ, g⟩ ≥ 0. Velocities of samples that are not in the batch do not change.

    Parameters
    ----------
    strength : float
        λ.
    tau : float
        How far ahead the body is looked for, in ρ; 1 by default, 2 for ``emit="gradient"``.
    beta : float
        Inertia in [0, 1); 0.5 by default, 0.3 for ``emit="gradient"``. Use a small one where samples are
        visited less than about once an epoch.
    emit : {"velocity", "gradient"}
        ``gradient`` is the hybrid: the velocity only chooses the body, and ĝ = g + λ NC(p, g), p = (G/ρ)(y − c).
    restart : bool
    unit : {"running", "batch"}

    Notes
    -----
    Memory: n · d float32. A formulation derived for npquant within the published constraints of Liu & Lu,
    "Space Shuttle Model: A Physics Inspired Method for Learning Quantizable Deep Representations".
    """
    hybrid = emit == "gradient"
    return SpaceShuttle(strength, (2.0 if hybrid else 1.0) if tau is None else tau,
                        (0.3 if hybrid else 0.5) if beta is None else beta, emit, restart, unit)


def quantization_penalty(strength: float = 0.3, *, unit: str = "running") -> OutputTransform:
    """Return the older method: λ‖y − Q(y)‖² added to the loss, the baseline to beat.

    ĝ = g + λ (G/ρ)(y − Q(y)); with ``unit="raw"`` ĝ = g + 2 λ (y − Q(y)). Its fault (Liu & Lu 2016): a constant
    bias for each sample, which pulls where the loss is silent and may oppose it.
    """
    return QuantizationPenalty(strength, unit)


def straight_through() -> OutputTransform:
    """Return the straight-through estimator, the strong baseline.

    Q(y) stands in the place of y⁺ and y⁻ (the anchor stays continuous, as a query does), and the gradient passes
    as if Q were the identity (Bengio et al. 2013). It combines with the others by :func:`chain`.
    """
    return StraightThrough()


def chain(*rules: OutputTransform) -> OutputTransform:
    """Return the rules applied one after the other, each to the gradient the one before it returned."""
    return Chain(tuple(rules))


def without_conflict(p: Array, g: Array) -> Array:
    """Return NC(p, g): the rows of ``p`` (n, d) without the part that opposes ``g``; p itself where g = 0."""
    norm = np.sqrt(np.einsum("ij,ij->i", g, g))
    direction = g / np.where(norm > 0, norm, 1.0)[:, None]
    along = np.einsum("ij,ij->i", p, direction)
    return np.asarray(p - np.minimum(along, 0.0)[:, None] * direction)


def tangent(dy: Array, y: Array) -> Array:
    """Return ``dy`` without its part along ``y``: the gradient on the sphere, where the rows of y are unit vectors."""
    return np.asarray(dy - np.einsum("ij,ij->i", dy, y)[:, None] * y, dtype=dy.dtype)


def _gradient_unit(dy: Array, before: float, unit: str) -> float:
    rms = float(np.sqrt(np.einsum("ij,ij->", dy, dy, dtype=np.float64) / max(len(dy), 1)))
    return rms if unit == "batch" or before == 0 else 0.9 * before + 0.1 * rms
