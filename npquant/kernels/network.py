"""Kernels of network training: batch norm, row norms, optimizer steps, triplets.

None of them is the bulk of the work, GEMM is; they are here because as chains of NumPy calls each pass over
memory would cost as much again. They are elementwise, or sum in one stated order (rows downwards, columns to
the right), without contraction: so the compiled kernel and its twin give the same bits in float32, and a
training run does not depend on the moment at which compiling began to pay.

Twins take any float dtype; gradient checks call them in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant.kernels._jit import Kernel, kernel

Array = NDArray[Any]  # float32 in production, float64 in gradient checks
Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]
Scalar = Any  # of the arrays' dtype

TINY = 1e-12  # a row whose norm is not above this counts as zero
_CHUNK = 2048  # parameters of one turn of an optimizer step: five arrays of it stay in L1 or L2


def for_dtype(function: Kernel, dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return what to call on arrays of ``dtype``: the kernel for float32, else its twin."""
    return function if dtype == np.float32 else function.twin


def _column_sums(rows: Array) -> Array:
    total = np.zeros(rows.shape[1], rows.dtype)
    for row in rows:  # not .sum(axis=0): its order is NumPy's own business
        total += row
    return total


def _row_dots(a: Array, b: Array) -> Array:
    total = np.zeros(a.shape[0], a.dtype)
    for j in range(a.shape[1]):
        total += a[:, j] * b[:, j]
    return total


# ----------------------------------------------------------------------------------------------- batch norm

def _batch_norm_twin(x: Array, scale: Array, shift: Array, eps: Scalar, y: Array, mean: Array, var: Array,
                     rstd: Array) -> None:
    inverse = x.dtype.type(1) / x.dtype.type(x.shape[0])
    mean[:] = _column_sums(x) * inverse
    centred = x - mean
    var[:] = _column_sums(centred * centred) * inverse
    rstd[:] = x.dtype.type(1) / np.sqrt(var + eps)
    y[:] = centred * (rstd * scale) + shift


@kernel("f4:2 f4:1 f4:1 f4 f4:2w f4:1w f4:1w f4:1w", twin=_batch_norm_twin,
        work=lambda x, *rest: 8 * x.size)
def batch_norm(x, scale, shift, eps, y, mean, var, rstd):
    """Normalise columns: y = (x − mean) · rstd · scale + shift, with the batch's own (biased) statistics.

    ``x``, ``y`` (n, d); the others (d,); ``y``, ``mean``, ``var``, ``rstd`` = 1 / √(var + eps) are written.
    """
    n, d = x.shape
    one = np.float32(1)
    inverse = np.divide(one, np.float32(n))
    factor = np.empty(d, np.float32)
    mean[:] = np.float32(0)
    var[:] = np.float32(0)
    for i in range(n):
        for j in range(d):
            mean[j] += x[i, j]
    for j in range(d):
        mean[j] *= inverse
    for i in range(n):
        for j in range(d):
            c = x[i, j] - mean[j]
            var[j] += c * c
    for j in range(d):
        var[j] *= inverse
        rstd[j] = np.divide(one, np.sqrt(var[j] + eps))
        factor[j] = rstd[j] * scale[j]
    for i in range(n):
        for j in range(d):
            y[i, j] = (x[i, j] - mean[j]) * factor[j] + shift[j]


def _batch_norm_backward_twin(x: Array, dy: Array, scale: Array, mean: Array, rstd: Array, dx: Array,
                              dscale: Array, dshift: Array) -> None:
    inverse = x.dtype.type(1) / x.dtype.type(x.shape[0])
    centred = x - mean
    dshift[:] = _column_sums(dy)
    dscale[:] = _column_sums(dy * centred) * rstd
    slope = dscale * inverse * rstd
    dx[:] = (dy - dshift * inverse - centred * slope) * (rstd * scale)


@kernel("f4:2 f4:2 f4:1 f4:1 f4:1 f4:2w f4:1w f4:1w", twin=_batch_norm_backward_twin,
        work=lambda x, *rest: 10 * x.size)
def batch_norm_backward(x, dy, scale, mean, rstd, dx, dscale, dshift):
    """Gradients of :func:`batch_norm` (with the batch's statistics) into ``dx``, ``dscale``, ``dshift``.

    With x̂ = (x − mean) · rstd: dx = scale · rstd · (dy − Σdy/n − x̂ · Σ(dy · x̂)/n).
    """
    n, d = x.shape
    inverse = np.divide(np.float32(1), np.float32(n))
    factor = np.empty(d, np.float32)
    slope = np.empty(d, np.float32)
    level = np.empty(d, np.float32)
    dscale[:] = np.float32(0)
    dshift[:] = np.float32(0)
    for i in range(n):
        for j in range(d):
            dshift[j] += dy[i, j]
            dscale[j] += dy[i, j] * (x[i, j] - mean[j])
    for j in range(d):
        dscale[j] *= rstd[j]
        slope[j] = dscale[j] * inverse * rstd[j]
        level[j] = dshift[j] * inverse
        factor[j] = rstd[j] * scale[j]
    for i in range(n):
        for j in range(d):
            dx[i, j] = (dy[i, j] - level[j] - (x[i, j] - mean[j]) * slope[j]) * factor[j]


# ------------------------------------------------------------------------------------------ ReLU, row norms

def _relu_twin(x: Array, y: Array) -> None:
    np.maximum(x, x.dtype.type(0), out=y)


@kernel("f4:2 f4:2w", twin=_relu_twin, work=lambda x, *rest: x.size)
def relu(x, y):
    """Write max(x, 0) into ``y``; both (n, d). NaN stays NaN: a network that has diverged must show it."""
    zero = np.float32(0)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = zero if x[i, j] <= zero else x[i, j]


def _relu_backward_twin(y: Array, dy: Array, dx: Array) -> None:
    dx[:] = np.where(y > 0, dy, y.dtype.type(0))


@kernel("f4:2 f4:2 f4:2w", twin=_relu_backward_twin, work=lambda y, *rest: y.size)
def relu_backward(y, dy, dx):
    """Write dy where the ReLU's output ``y`` is positive, else 0, into ``dx``; all (n, d)."""
    zero = np.float32(0)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            dx[i, j] = dy[i, j] if y[i, j] > zero else zero


def _normalize_twin(x: Array, y: Array, norm: Array) -> None:
    norm[:] = np.sqrt(_row_dots(x, x))
    y[:] = x * _inverse_norm(norm)[:, np.newaxis]


def _inverse_norm(norm: Array) -> Array:
    # NaN is not below TINY either, and stays NaN.
    zero = norm <= norm.dtype.type(TINY)
    inverse: Array = norm.dtype.type(1) / np.where(zero, norm.dtype.type(1), norm)
    inverse[zero] = 0
    return inverse


@kernel("f4:2 f4:2w f4:1w", twin=_normalize_twin, work=lambda x, *rest: 3 * x.size)
def normalize(x, y, norm):
    """Write rows of ``x`` (n, d) over their norm into ``y``, and the norms (n,); a zero row stays zero."""
    n, d = x.shape
    for i in range(n):
        total = np.float32(0)
        for j in range(d):
            total += x[i, j] * x[i, j]
        r = np.sqrt(total)
        norm[i] = r
        inverse = np.float32(0) if r <= np.float32(TINY) else np.divide(np.float32(1), r)
        for j in range(d):
            y[i, j] = x[i, j] * inverse


def _normalize_backward_twin(y: Array, norm: Array, dy: Array, dx: Array) -> None:
    dots = _row_dots(dy, y)
    dx[:] = (dy - dots[:, np.newaxis] * y) * _inverse_norm(norm)[:, np.newaxis]


@kernel("f4:2 f4:1 f4:2 f4:2w", twin=_normalize_backward_twin, work=lambda y, *rest: 4 * y.size)
def normalize_backward(y, norm, dy, dx):
    """Gradient of :func:`normalize`: dx = (dy − ⟨dy, y⟩ y) / norm; 0 for a zero row."""
    n, d = y.shape
    for i in range(n):
        dot = np.float32(0)
        for j in range(d):
            dot += dy[i, j] * y[i, j]
        inverse = np.float32(0) if norm[i] <= np.float32(TINY) else np.divide(np.float32(1), norm[i])
        for j in range(d):
            dx[i, j] = (dy[i, j] - dot * y[i, j]) * inverse


# ------------------------------------------------------------------------------------------ optimizer steps

def _decay_twin(parameters: Array, mask: Array, decay: Scalar) -> None:
    if decay != 0:
        parameters -= parameters * (decay * mask)


def _sgd_twin(parameters: Array, grads: Array, velocity: Array, mask: Array, lr: Scalar, momentum: Scalar,
              decay: Scalar, nesterov: bool) -> None:
    slope = grads + parameters * (decay * mask) if decay != 0 else grads
    velocity *= momentum
    velocity += slope
    parameters -= lr * (slope + momentum * velocity if nesterov else velocity)


@kernel("f4:1w f4:1 f4:1w f4:1 f4 f4 f4 b1", twin=_sgd_twin,
        work=lambda parameters, *rest: 4 * parameters.size)
def sgd_step(parameters, grads, velocity, mask, lr, momentum, decay, nesterov):
    """One step of SGD with momentum on flat arrays (P,), in place; ``mask`` may be empty where decay is 0.

    v ← momentum · v + g + decay · mask · p;  p ← p − lr · v  (Nesterov: g + momentum · v in the place of v).
    """
    if decay == np.float32(0) and not nesterov:
        for i in range(parameters.size):
            v = velocity[i] * momentum + grads[i]
            velocity[i] = v
            parameters[i] -= lr * v
    else:
        for i in range(parameters.size):
            slope = grads[i]
            if decay != np.float32(0):
                slope = slope + parameters[i] * (decay * mask[i])
            v = velocity[i] * momentum + slope
            velocity[i] = v
            if nesterov:
                v = slope + momentum * v
            parameters[i] -= lr * v


def _adam_twin(parameters: Array, grads: Array, first: Array, second: Array, mask: Array,
               factors: Array) -> None:
    keep1, new1, keep2, new2, rate, root, eps, decay = factors
    _decay_twin(parameters, mask, decay)
    for start in range(0, parameters.size, 16 * _CHUNK):  # temporaries stay in the cache
        part = slice(start, start + 16 * _CHUNK)
        g, m, v = grads[part], first[part], second[part]
        m *= keep1
        m += new1 * g
        v *= keep2
        v += new2 * (g * g)
        parameters[part] -= rate * m / (np.sqrt(v) * root + eps)


@kernel("f4:1w f4:1 f4:1w f4:1w f4:1 f4:1", twin=_adam_twin,
        work=lambda parameters, *rest: 12 * parameters.size)
def adam_step(parameters, grads, first, second, mask, factors):
    """One step of Adam with decoupled weight decay on flat arrays (P,), in place.

    ``factors``: β₁, 1 − β₁, β₂, 1 − β₂, lr / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), eps, lr · decay. ``mask`` (P,) may be
    empty where decay is 0.
    """
    keep1, new1, keep2, new2 = factors[0], factors[1], factors[2], factors[3]
    rate, root, eps, decay = factors[4], factors[5], factors[6], factors[7]
    for start in range(0, parameters.size, _CHUNK):
        # Slices: indices from 0 need no test for a negative one, and such a test would forbid vectors.
        p, g = parameters[start:start + _CHUNK], grads[start:start + _CHUNK]
        m, v = first[start:start + _CHUNK], second[start:start + _CHUNK]
        if decay != np.float32(0):  # a loop of its own: with a fifth array LLVM gives up on vectors
            few = mask[start:start + _CHUNK]
            for i in range(p.size):
                p[i] -= p[i] * (decay * few[i])
        for i in range(p.size):
            m[i] = m[i] * keep1 + new1 * g[i]
            v[i] = v[i] * keep2 + new2 * (g[i] * g[i])
            # np.divide: the operator would test for zero, and a loop that may raise is not vectorised
            p[i] -= np.divide(rate * m[i], np.sqrt(v[i]) * root + eps)


# --------------------------------------------------------------------------------------- triplets and pairs

def _triplet_terms_twin(distances: Array, anchor: Ids, positive: Ids, negative: Ids, weight: Array,
                        gap: Scalar, slopes: Array, total: Array) -> None:
    terms = gap + distances[anchor, positive] - distances[anchor, negative]
    active = np.flatnonzero(terms > 0)
    a, w = anchor[active], weight[active].astype(np.float64)
    n = distances.shape[1]
    # One sum in the order of the triplets, positive before negative: what the compiled loop does.
    cells = np.stack([a * n + positive[active], a * n + negative[active]], axis=1).ravel()
    slopes[:] = np.bincount(cells, np.stack([w, -w], axis=1).ravel(), slopes.size).reshape(slopes.shape)
    total[0] = np.add.accumulate(w * terms[active])[-1] if active.size else 0.0


@kernel("f4:2 i8:1 i8:1 i8:1 f4:1 f4 f8:2w f8:1w", twin=_triplet_terms_twin,
        work=lambda distances, anchor, *rest: 8 * anchor.size + distances.size)
def triplet_terms(distances, anchor, positive, negative,
                  weight, gap, slopes, total):
    """Write E = Σ w · max(0, gap + D[a, p] − D[a, n]) into ``total`` (1,), ∂E/∂D into ``slopes`` (B, B)."""
    slopes[:] = 0.0
    result = 0.0
    for t in range(anchor.size):
        a, p, n = anchor[t], positive[t], negative[t]
        term = gap + distances[a, p] - distances[a, n]
        if term > np.float32(0):
            w = np.float64(weight[t])
            slopes[a, p] += w
            slopes[a, n] -= w
            result += w * np.float64(term)
    total[0] = result


def _distance_gradient_twin(y: Array, other: Array, distances: Array, slopes: Array, dy: Array,
                            dother: Array) -> None:
    moving = (distances > 0) & (slopes != 0)
    factors = np.zeros(distances.shape, y.dtype)
    factors[moving] = slopes[moving] / distances[moving]
    dy[:] = 0
    dother[:] = 0
    for b in np.flatnonzero(moving.any(axis=0)):
        dy += factors[:, b, np.newaxis] * (y - other[b])
    for a in np.flatnonzero(moving.any(axis=1)):
        dother -= factors[a, :, np.newaxis] * (y[a] - other)


@kernel("f4:2 f4:2 f4:2 f8:2 f4:2w f4:2w", twin=_distance_gradient_twin,
        work=lambda y, other, *rest: 2 * y.size * other.shape[0])
def distance_gradient(y, other, distances, slopes, dy, dother):
    """Carry slopes[a, b] = ∂E/∂D[a, b], D[a, b] = ‖y_a − other_b‖, over to y and to other; all of B rows.

    dy_a = Σ_b slopes[a, b] (y_a − other_b) / D[a, b], and the opposite for other_b; D = 0 adds 0. Differences
    are taken before they are scaled: two GEMMs would be faster and lose the direction of near neighbours.
    """
    n, d = y.shape
    dy[:] = np.float32(0)
    dother[:] = np.float32(0)
    for a in range(n):
        for b in range(other.shape[0]):
            if slopes[a, b] == 0.0 or not distances[a, b] > np.float32(0):
                continue
            factor = np.float32(np.divide(slopes[a, b], np.float64(distances[a, b])))
            for j in range(d):
                step = factor * (y[a, j] - other[b, j])
                dy[a, j] += step
                dother[b, j] -= step


def _violations(distances: Array, allowed: Bools, anchor: Ids, positive: Ids, gap: Scalar) -> Bools:
    near = gap + distances[anchor, positive]
    result: Bools = allowed[anchor] & (near[:, np.newaxis] - distances[anchor] > 0)
    return result


def _count_twin(distances: Array, allowed: Bools, anchor: Ids, positive: Ids, gap: Scalar,
                counts: Ids) -> None:
    counts[:] = _violations(distances, allowed, anchor, positive, gap).sum(axis=1)


@kernel("f4:2 b1:2 i8:1 i8:1 f4 i8:1w", twin=_count_twin,
        work=lambda distances, allowed, anchor, *rest: 3 * anchor.size * distances.shape[1])
def count_violations(distances, allowed, anchor, positive, gap, counts):
    """Count, for each pair (anchor, positive), the allowed negatives with gap + D[a, p] − D[a, n] > 0."""
    for t in range(anchor.size):
        a = anchor[t]
        near = gap + distances[a, positive[t]]
        count = np.int32(0)
        for n in range(distances.shape[1]):
            violates = allowed[a, n] & (near - distances[a, n] > np.float32(0))
            count += np.int32(1) if violates else np.int32(0)
        counts[t] = count


def _list_twin(distances: Array, allowed: Bools, anchor: Ids, positive: Ids, gap: Scalar, triplets: Ids,
               weight: Array) -> None:
    found = _violations(distances, allowed, anchor, positive, gap)
    pair, negative = np.nonzero(found)
    triplets[0, :pair.size] = anchor[pair]
    triplets[1, :pair.size] = positive[pair]
    triplets[2, :pair.size] = negative
    weight[:pair.size] = (np.float32(1) / np.maximum(found.sum(axis=1), 1).astype(np.float32))[pair]


@kernel("f4:2 b1:2 i8:1 i8:1 f4 i8:2w f4:1w", twin=_list_twin,
        work=lambda distances, allowed, anchor, *rest: 3 * anchor.size * distances.shape[1])
def list_violations(distances, allowed, anchor, positive,
                    gap, triplets, weight):
    """Write what :func:`count_violations` counts, in order, to ``triplets`` (3, T + 1), ``weight`` (T + 1,).

    A weight is one over the count of its pair. The last column is scratch: writing always and stepping on
    only where a triplet was found spares a branch that cannot be predicted.
    """
    at = 0
    for t in range(anchor.size):
        a, p = anchor[t], positive[t]
        near = gap + distances[a, p]
        begin = at
        for n in range(distances.shape[1]):
            triplets[2, at] = n
            violates = allowed[a, n] & (near - distances[a, n] > np.float32(0))
            at += 1 if violates else 0
        if at > begin:
            share = np.divide(np.float32(1), np.float32(at - begin))
            for i in range(begin, at):
                triplets[0, i] = a
                triplets[1, i] = p
                weight[i] = share
