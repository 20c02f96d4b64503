"""Layers and networks: gradients against central differences, compiled against twins, round trips."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from npquant import nn
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels
from npquant.kernels._jit import have_numba

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
STEP = 1e-6


def central_differences(function, array):
    """∂function/∂array by (f(a + h) − f(a − h)) / 2h; ``array`` is changed and restored."""
    result = np.zeros_like(array)
    flat, out = array.reshape(-1), result.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + STEP
        above = function()
        flat[i] = kept - STEP
        out[i] = (above - function()) / (2 * STEP)
        flat[i] = kept
    return result


def float64_layer(name, d, rng):
    if name == "linear":
        return nn.Linear.create(d, 4, rng, np.float64)
    if name == "batch_norm":
        layer = nn.BatchNorm.create(d, dtype=np.float64)
        layer.scale[:], layer.shift[:] = rng.normal(1, 0.5, d), rng.normal(size=d)
        layer.running_mean[:], layer.running_var[:] = rng.normal(size=d), rng.uniform(0.5, 2, d)
        return layer
    return {"relu": nn.ReLU(), "dropout": nn.Dropout(0.3), "l2_normalize": nn.L2Normalize()}[name]


@pytest.mark.core
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["linear", "relu", "batch_norm", "dropout", "l2_normalize"])
@few
@given(seed=seeds, n=st.integers(2, 6), d=st.integers(2, 5))
def test_gradients_of_a_layer(name, train, seed, n, d):
    rng = np.random.default_rng(seed)
    layer = float64_layer(name, d, rng)
    x = rng.normal(size=(n, d))
    x[np.abs(x) < 1e-2] = 0.5  # the kink of ReLU is not differentiable
    weights = rng.normal(size=(n, layer.params[0].shape[1] if name == "linear" else d))

    def energy():
        return float((layer.forward(x, train=train, rng=np.random.default_rng(7))[0] * weights).sum())
    _, cache = layer.forward(x, train=train, rng=np.random.default_rng(7))
    before = weights.copy()
    dx, grads = layer.backward(weights, cache)
    assert_array_equal(weights, before)
    # Two or three nearly equal numbers in a column make batch norm as steep as 1/√eps.
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    assert_allclose(dx, central_differences(energy, x), **tolerance)
    assert len(grads) == len(layer.params) == len(layer.decays)
    for grad, param in zip(grads, layer.params):
        assert_allclose(grad, central_differences(energy, param), **tolerance)


@pytest.mark.core
@pytest.mark.parametrize("batch_norm", [True, False])
@few
@given(seed=seeds)
def test_gradients_of_a_whole_network_with_triplets(batch_norm, seed):
    rng = np.random.default_rng(seed)
    network = nn.mlp(3, (6, 5), 3, batch_norm=batch_norm, dropout=0.2, rng=rng, dtype=np.float64)
    # Biases away from 0: with a unit at the kink of ReLU, or a zero row before normalisation, the
    # differences would be of two different functions.
    for layer in network.layers:
        for param in layer.params[1:]:
            param[:] = rng.normal(0.3, 0.1, param.shape)
    x = rng.normal(size=(8, 3))
    # The large gap keeps every triplet away from its kink.
    members = rng.permuted(np.tile(np.arange(8), (12, 1)), axis=1)[:, :3]
    target = nn.Triplets(*members.T, rng.uniform(0.5, 1, 12))
    loss = nn.Triplet(gap=5.0)

    def energy():
        y, _ = network.forward(x, train=True, rng=np.random.default_rng(3))
        return len(y) * loss.value_and_grad(y, target)[0]
    y, cache = network.forward(x, train=True, rng=np.random.default_rng(3))
    dx, grads = network.backward(loss.value_and_grad(y, target)[1], cache)
    numeric = np.concatenate([central_differences(energy, network.parameters),
                              central_differences(energy, x).ravel()])
    got = np.concatenate([grads, dx.ravel()])
    # A unit may still sit within STEP of a kink: all but one in fifty must agree, and nearly always all do.
    wrong = np.abs(got - numeric) > 1e-4 * (1 + np.abs(numeric))
    assert wrong.mean() < 0.02


def test_running_statistics_follow_the_formulas():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (50, 4))
    network = nn.Sequential.of(nn.BatchNorm.create(4, momentum=0.25, dtype=np.float64))
    y, cache = network.forward(x, train=True)
    assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=1e-12)
    assert_array_equal(network.running["0.mean"], 0)  # a forward changes nothing
    after = network.absorb(cache)
    assert_allclose(after.running["0.mean"], 0.25 * x.mean(0))
    assert_allclose(after.running["0.var"], 0.75 + 0.25 * x.var(0, ddof=1))
    assert after.parameters is network.parameters
    assert_allclose(after.predict(x), (x - 0.25 * x.mean(0)) / np.sqrt(0.75 + 0.25 * x.var(0, ddof=1) + 1e-5))
    one, cache = after.forward(x[:1], train=True)
    assert_array_equal(one, 0)
    assert_array_equal(after.absorb(cache).running["0.var"], after.running["0.var"])
    _, cache = after.forward(x)  # nor does evaluation
    assert_array_equal(after.absorb(cache).running["0.mean"], after.running["0.mean"])


def test_dropout_keeps_the_mean_and_is_nothing_in_evaluation():
    x = np.ones((400, 500), np.float32)
    layer = nn.Dropout(0.2)
    y, _ = layer.forward(x, train=True, rng=np.random.default_rng(0))
    assert set(np.unique(y)) == {np.float32(0), np.float32(65536 / (65536 - round(0.2 * 65536)))}
    assert abs((y == 0).mean() - 0.2) < 5 * np.sqrt(0.16 / x.size)
    assert layer.forward(x)[0] is x
    with pytest.raises(InvalidInputError, match="rng"):
        layer.forward(x, train=True)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_rows_stay_zero_and_nan_stays_nan(dtype):
    x = np.array([[3, 4], [0, 0], [1e-20, 0], [np.nan, 1]], dtype)
    y, cache = nn.L2Normalize().forward(x)
    assert_allclose(y[:3], [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    assert np.isnan(y[3]).all()
    dx, _ = nn.L2Normalize().backward(np.ones_like(y), cache)
    assert_array_equal(dx[1:3], 0)
    assert np.isfinite(dx[0]).all()


def test_parameters_are_one_array_and_layers_its_views():
    network = nn.mlp(5, (7,), 3, batch_norm=True, rng=np.random.default_rng(0))
    assert network.parameters.size == 5 * 7 + 7 + 7 + 7 + 7 * 3 + 3
    assert all(np.shares_memory(p, network.parameters) for layer in network.layers for p in layer.params)
    x = np.ones((2, 5), np.float32)
    network.parameters[:] = 0
    assert_array_equal(network.predict(x), 0)
    mask = network.decay_mask()
    assert mask.dtype == np.float32
    assert_array_equal(mask, np.r_[np.ones(35), np.zeros(21), np.ones(21), np.zeros(3)])


def test_he_start():
    layer = nn.Linear.create(400, 300, np.random.default_rng(0))
    assert layer.weight.dtype == np.float32
    assert abs(layer.weight.std() / np.sqrt(2 / 400) - 1) < 0.01
    assert_array_equal(layer.bias, 0)


@pytest.mark.core
@pytest.mark.parametrize("options", [{}, {"batch_norm": True, "dropout": 0.1}, {"normalize": False}])
def test_config_round_trip_is_bit_for_bit(options):
    rng = np.random.default_rng(1)
    network = nn.mlp(6, (8, 5), 4, rng=rng, **options)
    x = rng.normal(size=(20, 6)).astype(np.float32)
    _, cache = network.forward(x, train=True, rng=rng)
    network = network.absorb(cache)
    config = json.loads(json.dumps(network.config()))
    again = nn.Sequential.from_config(config, network.parameters, network.running)
    assert again.config() == network.config()
    assert list(again.running) == list(network.running)
    assert_array_equal(again.predict(x), network.predict(x))
    network.parameters[:] = 0  # the copy has its own
    assert again.parameters.any()
    assert not np.shares_memory(again.copy().parameters, again.parameters)


@pytest.mark.parametrize(("config", "size", "match"), [
    ([{"layer": "linear", "d_in": 2, "d_out": 1}], 2, "wants"),
    ([{"layer": "attention"}], 0, "unknown layer 'attention'"),
    ([{"layer": "linear", "d_in": 2}], 3, "d_out"),
    ([{"layer": "relu", "slope": 1}], 0, "slope"),
    ([{"layer": "batch_norm", "d": 2}], 4, "running"),
])
def test_a_wrong_config_is_told(config, size, match):
    with pytest.raises(InvalidInputError, match=match):
        nn.Sequential.from_config(config, np.zeros(size, np.float32), {})


def test_wrong_width_is_told():
    network = nn.mlp(3, (), 2, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match=r"\(4, 5\).*\(n, 3\)"):
        network.forward(np.zeros((4, 5)))
    with pytest.raises(InvalidInputError, match="at least one layer"):
        nn.Sequential.of()


@pytest.mark.core
def test_backward_into_given_array_and_without_dx():
    rng = np.random.default_rng(2)
    network = nn.mlp(6, (8,), 4, batch_norm=True, dropout=0.5, rng=rng)
    x = rng.normal(size=(9, 6))
    y, cache = network.forward(x, train=True, rng=rng)
    dx, grads = network.backward(y, cache)
    out = np.full_like(grads, np.nan)
    none, same = network.backward(y, cache, need_dx=False, out=out)
    assert none is None
    assert same is out
    assert_array_equal(out, grads)
    assert dx.shape == x.shape
    two = nn.Sequential.of(nn.Linear.create(6, 5, rng), nn.Linear.create(5, 4, rng))
    y, cache = two.forward(x)
    assert_array_equal(two.backward(y, cache, need_dx=False)[1], two.backward(y, cache)[1])


@pytest.mark.core
def test_predict_by_blocks():
    rng = np.random.default_rng(3)
    network = nn.mlp(6, (8,), 4, batch_norm=True, rng=rng)
    x = rng.normal(size=(100, 6)).astype(np.float32)
    first = network.predict(x, block=32)
    assert_array_equal(first, network.predict(x, block=32))
    assert_allclose(first, network.predict(x), rtol=1e-5, atol=1e-6)
    assert_allclose(first, network.forward(x)[0], rtol=1e-5, atol=1e-6)
    assert network.predict(x[:0]).shape == (0, 4)


def arguments(name, n, d, rng):
    """Random arguments of a kernel of layers, and which of them it writes."""
    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)
    x, dy, scale, shift = draw(n, d), draw(n, d), draw(d), draw(d)
    if name == "batch_norm":
        return [x, scale, shift, np.float32(1e-5), draw(n, d), draw(d), draw(d), draw(d)], [4, 5, 6, 7]
    if name == "batch_norm_backward":
        return [x, dy, scale, shift, np.abs(draw(d)) + 1, draw(n, d), draw(d), draw(d)], [5, 6, 7]
    if name == "relu":
        x[rng.random((n, d)) < 0.1] = np.nan
        return [x, draw(n, d)], [1]
    if name == "relu_backward":
        return [np.maximum(x, 0), dy, draw(n, d)], [2]
    if n > 1:
        x[1] = 0
    if name == "normalize":
        return [x, draw(n, d), draw(n)], [1, 2]
    return [x, np.linalg.norm(x, axis=1), dy, draw(n, d)], [3]


@pytest.mark.skipif(not have_numba(), reason="nothing to compare: numba is missing")
@pytest.mark.parametrize("name", ["batch_norm", "batch_norm_backward", "relu", "relu_backward",
                                  "normalize", "normalize_backward"])
@few
@given(seed=seeds, n=st.integers(1, 40), d=st.integers(1, 40))
def test_compiled_layers_have_the_bits_of_their_twins(name, seed, n, d):
    function = getattr(kernels, name)
    given_arguments, outputs = arguments(name, n, d, np.random.default_rng(seed))
    compiled, twin = ([a.copy() if isinstance(a, np.ndarray) else a for a in given_arguments] for _ in range(2))
    function.compiled()(*compiled)
    function.twin(*twin)
    for i in outputs:
        assert_array_equal(compiled[i], twin[i])
