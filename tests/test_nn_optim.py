"""Optimizers against loops written by hand from the papers, schedules, saved states."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from npquant import nn
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels
from npquant.kernels._jit import _numba_signature, have_numba

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)


def sgd_by_hand(p, grads, lrs, momentum, decay, nesterov, mask):
    """Parameter by parameter in Python floats, as torch.optim.SGD documents it."""
    result = []
    for i, value in enumerate(p.tolist()):
        v = 0.0
        for g, lr in zip(grads, lrs):
            slope = float(g[i]) + decay * mask[i] * value
            v = momentum * v + slope
            value -= lr * (slope + momentum * v if nesterov else v)
        result.append(value)
    return result


def adam_by_hand(p, grads, lrs, betas, eps, decay, mask):
    """Algorithm 1 of arXiv 1412.6980 with the decoupled decay of 1711.05101."""
    result = []
    for i, value in enumerate(p.tolist()):
        m = v = 0.0
        for t, (g, lr) in enumerate(zip(grads, lrs), 1):
            value -= lr * decay * mask[i] * value
            m = betas[0] * m + (1 - betas[0]) * float(g[i])
            v = betas[1] * v + (1 - betas[1]) * float(g[i])**2
            value -= lr * (m / (1 - betas[0]**t)) / (math.sqrt(v / (1 - betas[1]**t)) + eps)
        result.append(value)
    return result


def problem(seed, size, dtype):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=size).astype(dtype), [rng.normal(size=size).astype(dtype) for _ in range(5)],
            rng.uniform(0.01, 0.2, 5), (rng.random(size) < 0.5).astype(float))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, momentum=st.sampled_from([0.0, 0.9]), decay=st.sampled_from([0.0, 0.1]),
       nesterov=st.booleans(), masked=st.booleans())
def test_sgd(dtype, seed, momentum, decay, nesterov, masked):
    p, grads, lrs, mask = problem(seed, 9, dtype)
    wanted = sgd_by_hand(p, grads, lrs, momentum, decay, nesterov, mask if masked else np.ones(9))
    optimizer = nn.SGD(0.5, momentum, decay, nesterov)
    state, kept = optimizer.init(p), p
    for g, lr in zip(grads, lrs):
        state = optimizer.update(p, g, state, lr, mask.astype(dtype) if masked else None)
    assert state["step"] == 5
    assert kept is p
    assert_allclose(p, wanted, **({"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-10}))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@few
@given(seed=seeds, decay=st.sampled_from([0.0, 0.1]), masked=st.booleans(), beta=st.sampled_from([0.99, 0.999]))
def test_adam(dtype, seed, decay, masked, beta):
    p, grads, lrs, mask = problem(seed, 9, dtype)
    wanted = adam_by_hand(p, grads, lrs, (0.9, beta), 1e-8, decay, mask if masked else np.ones(9))
    optimizer = nn.Adam(0.5, (0.9, beta), weight_decay=decay)
    state = optimizer.init(p)
    for g, lr in zip(grads, lrs):
        state = optimizer.update(p, g, state, lr, mask.astype(dtype) if masked else None)
    assert state["step"] == 5
    assert_allclose(p, wanted, **({"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-9}))


@pytest.mark.core
@pytest.mark.parametrize("optimizer", [nn.SGD(0.1, 0.9, nesterov=True), nn.Adam(0.1)])
def test_a_resumed_run_goes_on_with_the_same_bits(optimizer):
    p, grads, _, _ = problem(0, 50, np.float32)
    straight, broken = p.copy(), p.copy()
    state = optimizer.init(straight)
    for g in grads:
        state = optimizer.update(straight, g, state)
    state = optimizer.init(broken)
    for g in grads:
        state = optimizer.update(broken, g, state)
        assert all(isinstance(value, int) or value.dtype == np.float32 for value in state.values())
        state = {name: value if isinstance(value, int) else value.copy() for name, value in state.items()}
    assert_array_equal(straight, broken)


def test_the_rate_given_wins_over_the_rate_kept():
    p = np.ones(3)
    optimizer = nn.SGD(0.5, 0.0)
    optimizer.update(p, np.ones(3), optimizer.init(p))
    assert_array_equal(p, 0.5)
    optimizer.update(p, np.ones(3), optimizer.init(p), 0.25)
    assert_array_equal(p, 0.25)
    optimizer.update(p, np.ones(3), optimizer.init(p), 0.0)
    assert_array_equal(p, 0.25)


def test_schedules():
    assert [nn.constant()(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    steps = nn.step_schedule([0.5, 0.75], [1, 0.5, 0.1])
    assert [steps(p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    cosine = nn.cosine_schedule()
    assert_allclose([cosine(p) for p in (0, 0.25, 0.5, 1)], [1, 0.5 + math.sqrt(0.125), 0.5, 0], atol=1e-15)
    warm = nn.cosine_schedule(warmup=0.2)
    assert_allclose([warm(p) for p in (0, 0.1, 0.2, 0.6, 1)], [0, 0.5, 1, 0.5, 0], atol=1e-15)


@pytest.mark.parametrize("value", [nn.SGD(), nn.Adam(betas=(0.8, 0.9)), nn.constant(), nn.cosine_schedule(0.1),
                                   nn.step_schedule((0.5,), (1, 0.1))])
def test_optimizers_and_schedules_are_json(value):
    again = type(value)(**json.loads(json.dumps(dataclasses.asdict(value))))
    assert again == value
    assert hash(again) == hash(value)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: nn.SGD(lr=-1), "lr is -1"),
    (lambda: nn.Adam(betas=(0.9,)), "betas"),
    (lambda: nn.Adam(betas=(0.9, 1.0)), "beta is 1"),
    (lambda: nn.Adam(eps=0), "eps"),
    (lambda: nn.step_schedule((0.5,), (1.0,)), "one factor more"),
    (lambda: nn.step_schedule((0.5, 0.4), (1, 1, 1)), "ascending"),
    (lambda: nn.cosine_schedule(1.0), "warmup"),
])
def test_wrong_values_are_told(make, match):
    with pytest.raises(InvalidInputError, match=match):
        make()


@pytest.mark.skipif(not have_numba(), reason="nothing to compare: numba is missing")
@few
@given(seed=seeds, size=st.sampled_from([1, 7, 2048, 5000]), decay=st.sampled_from([0.0, 0.01]),
       nesterov=st.booleans())
def test_compiled_steps_have_the_bits_of_their_twins(seed, size, decay, nesterov):
    rng = np.random.default_rng(seed)
    p, g, m, v = rng.normal(size=(4, size)).astype(np.float32)
    mask = (rng.random(size) < 0.5).astype(np.float32)
    factors = np.array([0.9, 0.1, 0.99, 0.01, 0.01, 1.5, 1e-8, decay], np.float32)
    lr, momentum, weight = np.float32(0.1), np.float32(0.9), np.float32(decay)
    results = []
    for which in ("compiled", "twin"):
        sgd, adam = (kernel.compiled() if which == "compiled" else kernel.twin
                     for kernel in (kernels.sgd_step, kernels.adam_step))
        arrays = [p.copy(), m.copy(), p.copy(), m.copy(), np.abs(v)]
        sgd(arrays[0], g, arrays[1], mask, lr, momentum, weight, nesterov)
        adam(arrays[2], g, *arrays[3:], mask, factors)
        results.append(arrays)
    for compiled, twin in zip(*results):
        assert_array_equal(compiled, twin)


@pytest.mark.skipif(not have_numba(), reason="numba is missing")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86-64 instructions")
@pytest.mark.parametrize(("name", "instruction"), [("sgd_step", "subps"), ("adam_step", "sqrtps"),
                                                   ("batch_norm", "subps")])
def test_compiled_steps_are_vectorised(name, instruction):
    # Compiled anew: from the disk cache comes no assembly. Read off the code, as a busy machine has no clock.
    from numba import njit
    function = getattr(kernels, name)
    compiled = njit([_numba_signature(function.signature)], nogil=True)(function.source)
    assert re.search(rf"\bv?{instruction}\b", "".join(compiled.inspect_asm().values()))
