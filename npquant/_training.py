"""What trainings of networks have in common: words for their parts, the loop over epochs, and how it may end."""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from npquant import _checks, nn
from npquant._base import Estimator, clone
from npquant.errors import DivergedError, InvalidInputError
from npquant.nn import output as rules
from npquant.quantizers.base import Quantizer

log = logging.getLogger("npquant")

OUTPUTS: dict[str, Callable[[], rules.OutputTransform]] = {
    "plain": rules.OutputTransform,
    "penalty": rules.quantization_penalty,
    "straight_through": rules.straight_through,
    "gsl": rules.gradient_snapping,
    "ssm": rules.space_shuttle,
    "hybrid": lambda: rules.space_shuttle(emit="gradient"),
}
SCHEDULES: dict[str, Callable[[], Any]] = {"cosine": nn.Cosine, "constant": nn.Constant,
                                           "steps": partial(nn.Steps, (0.5, 0.75), (1.0, 0.1, 0.01))}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": partial(nn.Adam, betas=(0.9, 0.99)),
    "sgd": partial(nn.SGD, momentum=0.9),
}


class Training:
    """A training by epochs: the loop, and a state that an epoch begins from.

    A subclass sets what is declared here and writes ``_over``, ``_epoch`` and ``_finish``. ``state`` is a tree that
    can be saved; it has ``epoch``, ``about`` (see ``_go_on``) and whatever else the next epoch depends on.
    """

    model: Any
    epochs: int
    total: int  # epochs of all of it
    optimizer: Any
    warmup: float
    ramp: float
    state: dict[str, Any]
    shown = ("loss", "distortion", "validation")  # of an epoch's figures, those for a line of progress

    def run(self) -> None:
        """Train to the end and set the model's attributes; on an interruption leave it usable and resumable."""
        bar = _bar(self.total, len(self.state["history"])) if self.model.progress else None
        try:
            while not self._over():
                before = copy.deepcopy(self.state)
                try:
                    figures = self._epoch()
                except BaseException:
                    self.state = before
                    raise
                log.info("epoch %(epoch)d: loss %(loss).5g, distortion %(distortion)s, validation %(validation)s",
                         figures)
                if bar is not None:
                    bar.set_postfix({key: f"{figures[key]:.4g}" for key in self.shown if figures[key] is not None})
                    bar.update()
                if self.model.callback is not None and self.model.callback(dict(figures)):
                    break
        finally:
            if bar is not None:
                bar.close()
            self._finish()

    def _over(self) -> bool:
        raise NotImplementedError

    def _epoch(self) -> dict[str, Any]:
        """Make one epoch, changing ``state``; return its figures."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Set the model's attributes from ``state``, wherever the training ended."""
        raise NotImplementedError

    def _check_pull(self) -> None:
        self.warmup = _checks.number(self.model.warmup, "warmup", high=1.0)
        self.ramp = _checks.number(self.model.ramp, "ramp", high=1.0)

    def _check_callback(self) -> None:
        if self.model.callback is not None and not callable(self.model.callback):
            raise InvalidInputError(f"callback is {self.model.callback!r}, wanted a function of one argument.")

    def _about(self, quantizer: Any, **arrays: Any) -> dict[str, Any]:
        """Return what a resumed training must have in common with its beginning."""
        params = {name: repr(_kept(value)) for name, value in self.model.get_params(deep=False).items()
                  if name not in (*self.model._runtime_params, "random_state", "validation", "quantizer")}
        return {**params, "quantizer": repr(_kept(quantizer)),
                **{name: _checksum(array) for name, array in arrays.items()}}

    @staticmethod
    def _go_on(saved: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """Return the state to go on from; raise where ``about`` is not that of its beginning."""
        if saved["about"] != about:
            changed = ", ".join(name for name in about if saved["about"].get(name) != about[name])
            raise InvalidInputError(f"The interrupted training cannot go on with another {changed}: resume with what "
                                    "it was begun with, or fit anew.")
        return copy.deepcopy(saved)

    def _strength(self, progress: float) -> float:
        """Return what the pull of a rule is multiplied by: 0 in the warm-up, then up to 1 along the ramp."""
        if progress < self.warmup:
            return 0.0
        return min(1.0, (progress - self.warmup) / self.ramp) if self.ramp > 0 else 1.0

    def _check_finite(self, y: Any, value: float, dy: Any) -> None:
        finite = {"output": np.isfinite(y).all(), "loss": np.isfinite(value), "gradient": np.isfinite(dy).all()}
        if not all(finite.values()):
            raise self._diverged(next(name for name, good in finite.items() if not good))

    def _diverged(self, what: str) -> DivergedError:
        cure = "" if getattr(self.model, "normalize", True) else ", or set normalize=True"
        return DivergedError(
            f"In epoch {self.state['epoch']} the network's {what} is not finite, or too large to be coded. Lower "
            f"lr = {self.optimizer.lr:g}, or the strength of output={self.model.output!r}{cure}. The model is left as "
            "it was at the end of the epoch before.")


def make_rule(output: Any) -> rules.OutputTransform:
    """Return the output rule that ``output`` names, is, or chains.

    Raises
    ------
    InvalidInputError
    """
    if isinstance(output, (tuple, list)):
        return rules.chain(*map(make_rule, output))
    if isinstance(output, rules.OutputTransform):
        return output
    _checks.choice(output, "output", tuple(OUTPUTS))
    return OUTPUTS[output]()


def optimizer(model: Any, weight_decay: float) -> Any:
    """Return the optimizer of a model's ``optimizer`` and ``lr``."""
    lr = _checks.number(model.lr, "lr", above=True)
    return named(model.optimizer, "optimizer",
                 {name: partial(make, lr, weight_decay=weight_decay) for name, make in OPTIMIZERS.items()})


def seeded_codec(quantizer: Any, seed: int, threads: int | None) -> Quantizer:
    """Return a clone of a codec that begins anew at each fit, with ``seed`` and ``threads`` where it has none."""
    if not isinstance(quantizer, Quantizer):
        raise InvalidInputError(f"quantizer is {quantizer!r}, wanted a codec such as ProductQuantizer(m=4).")
    codec: Quantizer = clone(quantizer)
    for name, value in {"random_state": seed, "threads": threads}.items():
        given = getattr(codec, name, None)
        # A Generator goes on from fit to fit; trained in turns and resumed, a codec must begin anew each time.
        if name in codec._param_names() and (given is None or isinstance(given, np.random.Generator)):
            codec.set_params(**{name: value})
    return codec


def widths(hidden: Any) -> tuple[int, ...]:
    """Return the widths of hidden layers, checked."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise InvalidInputError(f"hidden is {hidden!r}, wanted a sequence of widths, such as (512,).")
    return tuple(_checks.integer(width, "hidden") for width in hidden)


def named(value: Any, name: str, known: Mapping[str, Callable[[], Any]]) -> Any:
    """Return what a word stands for, or the value itself if it is of that kind."""
    if isinstance(value, str):
        return known[_checks.choice(value, name, tuple(known))]()
    kinds = tuple({type(make()): None for make in known.values()})
    if not isinstance(value, kinds):
        raise InvalidInputError(f"{name} is {value!r}, wanted one of {', '.join(map(repr, known))} or an object of "
                                f"npquant.nn: {', '.join(kind.__name__ for kind in kinds)}.")
    return value


def _kept(value: Any) -> Any:
    """Return a parameter as it is compared: the same before it was saved and after, whatever the threads."""
    if isinstance(value, Estimator):
        return type(value)(**{name: _kept(v) for name, v in value.get_params(deep=False).items()
                              if name not in value._runtime_params})
    if type(value) in (list, tuple):
        return type(value)(map(_kept, value))
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state  # its repr is its address
    return value.item() if isinstance(value, np.generic) else value


def _checksum(array: Any) -> str | None:
    if array is None:
        return None
    plain = np.ascontiguousarray(array)
    plain = plain.astype(str) if plain.dtype == object else plain
    return f"{plain.shape} {plain.dtype.str} {zlib.crc32(plain.tobytes()):08x}"


def _bar(total: int, done: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise InvalidInputError("progress=True needs tqdm: pip install 'npquant[progress]', or leave it out and "
                                "use callback.") from None
    return tqdm(total=total, initial=done, desc="training", unit="epoch")
