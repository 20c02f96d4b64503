"""Layers as values: ``forward(x) -> (y, cache)`` and ``backward(dy, cache) -> (dx, grads)``.

A layer is frozen and remembers nothing of a call: what ``backward`` needs is in the cache that ``forward``
returned, and new running statistics are there too until :meth:`Sequential.absorb` takes them. All arrays are
C-contiguous and of one float dtype: float32 in use, float64 in gradient checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from npquant import _checks
from npquant.errors import InvalidInputError
from npquant.kernels import network as kernels

Array = NDArray[Any]
Cache = Any
Grads = tuple[Array, ...]

_RESOLUTION = 65536  # dropout draws 16 bits an element: a fourth of the random numbers of a float


@dataclass(frozen=True, eq=False)
class Layer:
    """What all layers have in common; a layer without parameters overrides the first two methods alone."""

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return the layer's output (n, d_out) for ``x`` (n, d_in), and what ``backward`` wants to know."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return the gradients with respect to the input and to each of ``params``.

        Parameters
        ----------
        dy : ndarray, shape (n, d_out)
            ∂E/∂y, a row a sample; not changed.
        cache
            What ``forward`` returned beside y.
        need_dx : bool
            ``False`` leaves dx out (``None`` is returned for it).
        out : tuple of ndarray, optional
            C-contiguous arrays shaped like ``params`` that the gradients are written into.
        """
        raise NotImplementedError

    @property
    def params(self) -> Grads:
        """The trainable arrays."""
        return ()

    @property
    def decays(self) -> tuple[bool, ...]:
        """Whether weight decay is meant for each of ``params``."""
        return ()

    @property
    def running(self) -> dict[str, Array]:
        """Statistics that training keeps and does not train."""
        return {}

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description from which :meth:`Sequential.from_config` builds it."""
        raise NotImplementedError

    def absorb(self, cache: Cache) -> Layer:
        """Return the layer with the running statistics that a forward in training left in ``cache``."""
        return self

    def with_arrays(self, params: Grads, running: Mapping[str, Array]) -> Layer:
        """Return the layer on other arrays; views stay views."""
        return self


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """y = x · weight + bias, with weight (d_in, d_out) and bias (d_out,)."""

    weight: Array
    bias: Array

    @classmethod
    def create(cls, d_in: int, d_out: int, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Linear:
        """Return a layer with He's start: weights from N(0, 2 / d_in), bias 0 (arXiv 1502.01852, eq. 10)."""
        d_in, d_out = _checks.integer(d_in, "d_in"), _checks.integer(d_out, "d_out")
        weight = rng.standard_normal((d_in, d_out)) * np.sqrt(2.0 / d_in)
        return cls(weight.astype(dtype), np.zeros(d_out, dtype))

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return x · weight + bias (n, d_out); the cache is ``x``."""
        y = np.matmul(x, self.weight)
        y += self.bias
        return y, x

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return dy · weightᵀ and (xᵀ · dy, Σ dy)."""
        dweight, dbias = out if out is not None else (np.empty_like(self.weight), np.empty_like(self.bias))
        np.matmul(cache.T, dy, out=dweight)  # the BLAS reads the transpose as it lies
        np.add.reduce(dy, axis=0, out=dbias)
        return (np.matmul(dy, self.weight.T) if need_dx else None), (dweight, dbias)

    @property
    def params(self) -> Grads:
        """Weight and bias."""
        return self.weight, self.bias

    @property
    def decays(self) -> tuple[bool, ...]:
        """The weight decays, the bias does not."""
        return True, False

    def config(self) -> dict[str, Any]:
        """Return the shape."""
        return {"layer": "linear", "d_in": self.weight.shape[0], "d_out": self.weight.shape[1]}

    def with_arrays(self, params: Grads, running: Mapping[str, Array]) -> Linear:
        """Return the layer on other arrays."""
        return Linear(*params)


@dataclass(frozen=True, eq=False)
class ReLU(Layer):
    """y = max(x, 0); the slope at 0 is 0."""

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return max(x, 0); the cache is the output."""
        y = np.empty_like(x)
        kernels.for_dtype(kernels.relu, x.dtype)(x, y)
        return y, y

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return dy where the output was positive, else 0."""
        dx = np.empty_like(dy)
        kernels.for_dtype(kernels.relu_backward, dy.dtype)(cache, dy, dx)
        return dx, ()

    def config(self) -> dict[str, Any]:
        """Return the name."""
        return {"layer": "relu"}


class _BatchNormCache(NamedTuple):
    x: Array
    mean: Array
    rstd: Array
    train: bool
    running_mean: Array
    running_var: Array


@dataclass(frozen=True, eq=False)
class BatchNorm(Layer):
    """y = (x − mean) / √(var + eps) · scale + shift, column by column (arXiv 1502.03167, algorithm 1).

    In training mean and var (biased) are the batch's, and running ← (1 − momentum) · running + momentum ·
    batch, with the unbiased variance, stands in the cache; in evaluation the running ones are used. A batch
    of one row gives ``shift`` and leaves the running statistics as they are.

    Parameters
    ----------
    scale, shift : ndarray, shape (d,)
        Trained; never decayed.
    running_mean, running_var : ndarray, shape (d,)
    momentum, eps : float
    """

    scale: Array
    shift: Array
    running_mean: Array
    running_var: Array
    momentum: float = 0.1
    eps: float = 1e-5

    @classmethod
    def create(cls, d: int, *, momentum: float = 0.1, eps: float = 1e-5, dtype: DTypeLike = np.float32
               ) -> BatchNorm:
        """Return a layer that begins with scale 1, shift 0, running mean 0 and variance 1."""
        d = _checks.integer(d, "d")
        momentum = _checks.number(momentum, "momentum", 0.0, 1.0)
        eps = _checks.number(eps, "eps", above=True)
        ones, zeros = np.ones(d, dtype), np.zeros(d, dtype)
        return cls(ones, zeros, zeros.copy(), ones.copy(), momentum, eps)

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return the normalised columns; the cache holds the statistics used and the new running ones."""
        kind = x.dtype.type
        mean, var = self.running_mean, self.running_var
        if not train:
            rstd = kind(1) / np.sqrt(var + kind(self.eps))
            y = x - mean
            y *= rstd * self.scale
            y += self.shift
            return y, _BatchNormCache(x, mean, rstd, False, mean, var)
        y = np.empty_like(x)
        batch_mean, batch_var, rstd = (np.empty_like(self.scale) for _ in range(3))
        kernels.for_dtype(kernels.batch_norm, x.dtype)(x, self.scale, self.shift, kind(self.eps), y,
                                                       batch_mean, batch_var, rstd)
        n = len(x)
        if n > 1:
            old, new = kind(1 - self.momentum), kind(self.momentum)
            mean = old * mean + new * batch_mean
            var = old * var + kind(self.momentum * n / (n - 1)) * batch_var
        return y, _BatchNormCache(x, batch_mean, rstd, True, mean, var)

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return the gradients of x and of (scale, shift); statistics of a batch are differentiated too."""
        dscale, dshift = out if out is not None else (np.empty_like(self.scale), np.empty_like(self.shift))
        if cache.train:
            dx = np.empty_like(dy)
            kernels.for_dtype(kernels.batch_norm_backward, dy.dtype)(cache.x, dy, self.scale, cache.mean,
                                                                     cache.rstd, dx, dscale, dshift)
        else:
            dscale[:] = (dy * (cache.x - cache.mean)).sum(axis=0) * cache.rstd
            dshift[:] = dy.sum(axis=0)
            dx = dy * (cache.rstd * self.scale)
        return dx, (dscale, dshift)

    @property
    def params(self) -> Grads:
        """Scale and shift."""
        return self.scale, self.shift

    @property
    def decays(self) -> tuple[bool, ...]:
        """Neither decays."""
        return False, False

    @property
    def running(self) -> dict[str, Array]:
        """Running mean and variance (d,)."""
        return {"mean": self.running_mean, "var": self.running_var}

    def config(self) -> dict[str, Any]:
        """Return the width and the two constants."""
        return {"layer": "batch_norm", "d": self.scale.size, "momentum": self.momentum, "eps": self.eps}

    def absorb(self, cache: Cache) -> BatchNorm:
        """Return the layer with the running statistics in ``cache``."""
        return replace(self, running_mean=cache.running_mean, running_var=cache.running_var)

    def with_arrays(self, params: Grads, running: Mapping[str, Array]) -> BatchNorm:
        """Return the layer on other arrays."""
        scale, shift = params
        return BatchNorm(scale, shift, running["mean"], running["var"], self.momentum, self.eps)


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """In training each number is 0 with probability ``rate``, else over 1 − rate; in evaluation as it is.

    ``rate`` is met to 1/65536, and the divisor is the probability really used, so the mean is exact.
    """

    rate: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", _checks.number(self.rate, "rate", 0.0, 0.999))

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return x with some numbers dropped; the cache is the factor of each, or ``None``."""
        dropped = round(self.rate * _RESOLUTION)
        if not train or dropped == 0:
            return x, None
        if rng is None:
            raise InvalidInputError("forward(train=True) of a network with Dropout needs rng, a "
                                    "numpy.random.Generator; got None.")
        # "<u2": the same numbers whatever the machine's byte order
        draws = np.frombuffer(rng.bytes(2 * x.size), "<u2").reshape(x.shape)
        kept = x.dtype.type(_RESOLUTION / (_RESOLUTION - dropped))
        factors = np.multiply(draws >= dropped, kept, dtype=x.dtype)
        return x * factors, factors

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return dy times the factors of the forward pass."""
        return (dy if cache is None else dy * cache), ()

    def config(self) -> dict[str, Any]:
        """Return the rate."""
        return {"layer": "dropout", "rate": self.rate}


@dataclass(frozen=True, eq=False)
class L2Normalize(Layer):
    """y = x / ‖x‖, row by row; a row of norm up to 1e-12 gives the output 0 and the gradient 0."""

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return rows of norm 1; the cache is (y, norms)."""
        y, norm = np.empty_like(x), np.empty(len(x), x.dtype)
        kernels.for_dtype(kernels.normalize, x.dtype)(x, y, norm)
        return y, (y, norm)

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Grads | None = None
                 ) -> tuple[Array | None, Grads]:
        """Return (dy − ⟨dy, y⟩ y) / ‖x‖."""
        y, norm = cache
        dx = np.empty_like(dy)
        kernels.for_dtype(kernels.normalize_backward, dy.dtype)(y, norm, dy, dx)
        return dx, ()

    def config(self) -> dict[str, Any]:
        """Return the name."""
        return {"layer": "l2_normalize"}


@dataclass(frozen=True, eq=False)
class Sequential:
    """Layers one after the other, all their parameters in one flat array of which the layers hold views.

    Make one with :meth:`of`, :meth:`from_config` or :func:`mlp`. An optimizer changes ``parameters`` in
    place, and with it every layer; everything else is a value.

    Attributes
    ----------
    layers : tuple of Layer
    parameters : ndarray, shape (P,)
        C-contiguous; the parameters of the layers in their order.
    """

    layers: tuple[Layer, ...]
    parameters: Array

    @classmethod
    def of(cls, *layers: Layer) -> Sequential:
        """Return a network of these layers; their arrays are copied (all of one dtype, the first one's)."""
        if not layers:
            raise InvalidInputError("A Sequential needs at least one layer, got none.")
        arrays = [array for layer in layers for array in layer.params]
        flat = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0, np.float32)
        return cls._bound(layers, flat, [{name: array.copy() for name, array in layer.running.items()}
                                         for layer in layers])

    @classmethod
    def _bound(cls, layers: Sequence[Layer], flat: Array,
               running: Sequence[Mapping[str, Array]]) -> Sequential:
        views = _views(layers, flat)
        return cls(tuple(layer.with_arrays(params, stats)
                         for layer, params, stats in zip(layers, views, running)), flat)

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]], parameters: Array,
                    running: Mapping[str, Array]) -> Sequential:
        """Rebuild a network bit for bit from ``config()``, ``parameters`` and ``running`` (all are copied).

        Raises
        ------
        InvalidInputError
            A layer is unknown, or arrays are missing or of another shape.
        """
        flat = np.array(parameters)
        layers = [_from_config(entry, flat.dtype) for entry in config]
        wanted = sum(array.size for layer in layers for array in layer.params)
        if flat.ndim != 1 or flat.size != wanted:
            raise InvalidInputError(f"parameters has shape {flat.shape}, config wants ({wanted},).")
        stats: list[dict[str, Array]] = []
        for number, layer in enumerate(layers):
            stats.append({})
            for name, array in layer.running.items():
                given = np.array(running.get(f"{number}.{name}", ()), dtype=flat.dtype)
                if given.shape != array.shape:
                    raise InvalidInputError(f"running[{number}.{name!s}] has shape {given.shape}, "
                                            f"wanted {array.shape}.")
                stats[-1][name] = given
        return cls._bound(layers, flat, stats)

    def config(self) -> list[dict[str, Any]]:
        """Return the JSON-able description of the layers."""
        return [layer.config() for layer in self.layers]

    @property
    def running(self) -> dict[str, Array]:
        """Running statistics: "number of the layer.name" → (d,)."""
        return {f"{number}.{name}": array for number, layer in enumerate(self.layers)
                for name, array in layer.running.items()}

    @property
    def d_in(self) -> int | None:
        """The width of the input; ``None`` where no layer fixes it."""
        return next((array.shape[0] for layer in self.layers for array in layer.params), None)

    @property
    def d_out(self) -> int | None:
        """The width of the output; ``None`` where no layer fixes it."""
        return next((layer.params[0].shape[-1] for layer in reversed(self.layers) if layer.params), None)

    def forward(self, x: Array, *, train: bool = False, rng: np.random.Generator | None = None
                ) -> tuple[Array, Cache]:
        """Return the outputs (n, d_out) for ``x`` (n, d_in), and the cache for ``backward`` and ``absorb``.

        Parameters
        ----------
        x : ndarray, shape (n, d_in)
            Brought to the parameters' dtype and to C order; kept in the cache, so not to be changed before
            ``backward``.
        train : bool
            Whether dropout drops and batch norm takes the batch's statistics.
        rng : numpy.random.Generator, optional
            Wanted by dropout in training.

        Raises
        ------
        InvalidInputError
            ``x`` has another width, or ``rng`` is missing.
        """
        y = np.ascontiguousarray(x, dtype=self.parameters.dtype)
        if y.ndim != 2 or (self.d_in is not None and y.shape[1] != self.d_in):
            raise InvalidInputError(f"x has shape {y.shape}, the network wants (n, {self.d_in}).")
        caches = []
        for layer in self.layers:
            y, cache = layer.forward(y, train=train, rng=rng)
            caches.append(cache)
        return y, tuple(caches)

    def backward(self, dy: Array, cache: Cache, *, need_dx: bool = True, out: Array | None = None
                 ) -> tuple[Array | None, Array]:
        """Return ∂E/∂x (n, d_in) and the gradients of all parameters, flat like ``parameters``.

        Parameters
        ----------
        dy : ndarray, shape (n, d_out)
            ∂E/∂y, a row a sample.
        cache
            What ``forward`` returned beside y.
        need_dx : bool
            ``False`` spares the first layer's product; ``None`` is returned for dx.
        out : ndarray, shape (P,), optional
            Where the gradients are written; give the same array each step to spare its allocation.
        """
        grads = np.empty_like(self.parameters) if out is None else out
        views = _views(self.layers, grads)
        first = next((i for i, layer in enumerate(self.layers) if layer.params), len(self.layers))
        dx: Array | None = np.ascontiguousarray(dy, dtype=self.parameters.dtype)
        for i in reversed(range(0 if need_dx else first, len(self.layers))):
            if dx is not None:
                dx, _ = self.layers[i].backward(dx, cache[i], need_dx=need_dx or i > first, out=views[i])
        return (dx if need_dx else None), grads

    def absorb(self, cache: Cache) -> Sequential:
        """Return the network, on the same parameters, with the running statistics that ``cache`` brought."""
        return Sequential(tuple(layer.absorb(c) for layer, c in zip(self.layers, cache)), self.parameters)

    def copy(self) -> Sequential:
        """Return the same network on parameters and statistics of its own."""
        return Sequential.from_config(self.config(), self.parameters, self.running)

    def __reduce__(self) -> tuple[Any, ...]:  # pickled or deep-copied as it is, layers would lose their views
        return Sequential.from_config, (self.config(), self.parameters, self.running)

    def _get_state(self) -> dict[str, Any]:
        return {"config": self.config(), "parameters": self.parameters, "running": self.running}

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Sequential:
        return cls.from_config(state["config"], state["parameters"], state["running"])

    def decay_mask(self) -> Array:
        """Return (P,) of the parameters' dtype: 1 where weight decay is meant (the weights), else 0."""
        mask = np.zeros_like(self.parameters)
        for layer, views in zip(self.layers, _views(self.layers, mask)):
            for view, decays in zip(views, layer.decays):
                view[...] = decays
        return mask

    def predict(self, x: Array, block: int = 4096) -> Array:
        """Return the outputs (n, d_out) in evaluation, ``block`` rows at a time.

        The last bits of a row may depend on the block it is in (GEMM does), and on nothing else.
        """
        block = _checks.integer(block, "block")
        parts = [self.forward(x[start:start + block])[0] for start in range(0, max(len(x), 1), block)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def mlp(d_in: int, hidden: Sequence[int], d_out: int, *, batch_norm: bool = False, dropout: float = 0.0,
        normalize: bool = True, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Sequential:
    """Return a perceptron: [Dropout] Linear [BatchNorm] ReLU … Linear [L2Normalize].

    Parameters
    ----------
    d_in, d_out : int
    hidden : sequence of int
        Widths of the hidden layers; empty gives a linear map.
    batch_norm : bool
        Batch norm after each hidden linear layer.
    dropout : float
        Rate of dropout on the input; 0 leaves it out.
    normalize : bool
        Whether outputs have norm 1.
    rng : numpy.random.Generator
        Draws the weights.
    dtype : dtype
        float32, or float64 for gradient checks.

    Raises
    ------
    InvalidInputError

    Examples
    --------
    >>> import numpy as np
    >>> network = mlp(4, (8,), 2, rng=np.random.default_rng(0))
    >>> y, cache = network.forward(np.ones((3, 4), np.float32), train=True)
    >>> y.shape
    (3, 2)
    """
    layers: list[Layer] = [Dropout(dropout)] if dropout else []
    widths = [_checks.integer(width, "a layer's width") for width in (d_in, *hidden)]
    for width, next_width in pairwise(widths):
        layers.append(Linear.create(width, next_width, rng, dtype))
        if batch_norm:
            layers.append(BatchNorm.create(next_width, dtype=dtype))
        layers.append(ReLU())
    layers.append(Linear.create(widths[-1], d_out, rng, dtype))
    if normalize:
        layers.append(L2Normalize())
    return Sequential.of(*layers)


def _views(layers: Sequence[Layer], flat: Array) -> list[Grads]:
    result, at = [], 0
    for layer in layers:
        views = []
        for array in layer.params:
            views.append(flat[at:at + array.size].reshape(array.shape))
            at += array.size
        result.append(tuple(views))
    return result


def _from_config(entry: Mapping[str, Any], dtype: DTypeLike) -> Layer:
    fields = dict(entry)
    kind = fields.pop("layer", None)
    try:
        if kind == "linear":
            d_in, d_out = _checks.integer(fields["d_in"], "d_in"), _checks.integer(fields["d_out"], "d_out")
            return Linear(np.empty((d_in, d_out), dtype), np.empty(d_out, dtype))
        if kind == "batch_norm":
            return BatchNorm.create(**fields, dtype=dtype)
        if kind in _PLAIN:
            return _PLAIN[kind](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"config has a layer that cannot be built: {entry} ({error}).") from None
    raise InvalidInputError(f"config has the unknown layer {kind!r}; known are 'linear', 'batch_norm', "
                            f"{', '.join(map(repr, _PLAIN))}.")


_PLAIN: dict[str, type[Layer]] = {"relu": ReLU, "dropout": Dropout, "l2_normalize": L2Normalize}
