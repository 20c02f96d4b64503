"""The estimator contract of scikit-learn, kept without importing it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npquant.errors import InvalidInputError, not_fitted

Self = TypeVar("Self", bound="Estimator")


class Estimator:
    """Parameters are the constructor's arguments, kept as given; what ``fit`` learns ends in ``_``.

    Subclasses write ``__init__`` with nothing but ``self.name = name``, and validate in ``fit``.
    """

    # What a fitted object must have; a subclass names its own.
    _fitted_attribute = "n_features_in_"
    # Parameters of the machine or the session rather than of the model: not saved.
    _runtime_params: tuple[str, ...] = ("threads",)

    @classmethod
    def _param_names(cls) -> list[str]:
        if cls.__init__ is object.__init__:
            return []
        return sorted(name for name in inspect.signature(cls.__init__).parameters if name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments; with ``deep`` also those of nested estimators as ``name__inner``."""
        params = {}
        for name in self._param_names():
            value = params[name] = getattr(self, name)
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                params.update({f"{name}__{inner}": v for inner, v in value.get_params().items()})
        return params

    def set_params(self: Self, **params: Any) -> Self:
        """Change constructor's arguments by name; ``name__inner`` reaches into a nested estimator."""
        nested: dict[str, dict[str, Any]] = {}
        valid = self._param_names()
        for key, value in params.items():
            name, _, inner = key.partition("__")
            if name not in valid:
                raise InvalidInputError(f"Invalid parameter {name!r} for estimator {self!r}. "
                                        f"Valid parameters are: {valid!r}.")
            if inner:
                nested.setdefault(name, {})[inner] = value
            else:
                setattr(self, name, value)
        for name, inner_params in nested.items():
            getattr(self, name).set_params(**inner_params)
        return self

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # scikit-learn's pretty printer passes N_CHAR_MAX
        defaults = inspect.signature(type(self).__init__).parameters
        shown = [f"{name}={value!r}" for name, value in self.get_params(deep=False).items()
                 if not _same(value, defaults[name].default)]
        return f"{type(self).__name__}({', '.join(shown)})"[:N_CHAR_MAX]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, self._fitted_attribute)

    def _check_state(self) -> None:
        """Raise where what was learned does not fit together; called on what comes from a file."""

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(type(self).__name__)

    def _remember_features(self, X: Any, d: int) -> None:
        """Keep the dimension, and the column names where ``X`` is a data frame."""
        self.n_features_in_ = d
        columns = getattr(X, "columns", None)
        if columns is not None and all(isinstance(name, str) for name in columns):
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags
        return Tags(estimator_type=None, target_tags=TargetTags(required=False),
                    transformer_tags=TransformerTags(preserves_dtype=[]), input_tags=InputTags())


class Transformer(Estimator):
    """An estimator with ``transform``; the columns it makes are named after the class."""

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> NDArray[Any]:
        """Fit on ``X`` and return its transform; what can be read only once cannot be given."""
        if isinstance(X, Iterator):
            raise InvalidInputError("X is an iterator, which can be read only once: call fit with it and transform "
                                    "with another, or give an array.")
        result: NDArray[Any] = self.fit(X, y, **fit_params).transform(X)  # type: ignore[attr-defined]
        return result

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the output's columns: the class's name and a number."""
        self._check_fitted()
        prefix = type(self).__name__.lower()
        return np.asarray([f"{prefix}{i}" for i in range(self._n_features_out)], dtype=object)

    @property
    def _n_features_out(self) -> int:
        raise NotImplementedError


def clone(estimator: Any) -> Any:
    """Return an unfitted copy with the same parameters (nested estimators are cloned too, others copied)."""
    params = {name: clone(value) if isinstance(value, Estimator) else copy.deepcopy(value)
              for name, value in estimator.get_params(deep=False).items()}
    return type(estimator)(**params)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(default, np.ndarray):
        return value is default
    return bool(value is default or (type(value) is type(default) and value == default))
