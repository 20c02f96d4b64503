"""Every exception that npquant raises on purpose.

::

    NpquantError
     ├ InvalidInputError(ValueError)      an argument is wrong; the message names it, what came and what is wanted
     │  └ InvalidTypeError(TypeError)     … because of its type
     ├ NotFittedError(ValueError, AttributeError)
     │                                    used before ``fit``; also scikit-learn's own NotFittedError where
     │                                    scikit-learn is already imported
     ├ NotInvertibleError(TypeError)      asked to undo what cannot be undone
     ├ DivergedError(ArithmeticError)     training met NaN or infinity
     └ FormatError(ValueError)            corrupt, foreign or newer file

    NpquantWarning(UserWarning)           the work was done, but not quite as asked; the message says how
"""

from __future__ import annotations

import sys


class NpquantError(Exception):
    """Base of every exception that npquant raises on purpose."""


class InvalidInputError(NpquantError, ValueError):
    """An argument is wrong: the message names it, what came, what is wanted and the way out."""


class InvalidTypeError(InvalidInputError, TypeError):
    """An argument is of a kind that cannot be what is wanted."""


class NotFittedError(NpquantError, ValueError, AttributeError):
    """Something was used before ``fit``."""


class NotInvertibleError(NpquantError, TypeError):
    """Something was asked to be undone that cannot be."""


class DivergedError(NpquantError, ArithmeticError):
    """Training met a number that is not finite; the model is left as it was before."""


class FormatError(NpquantError, ValueError):
    """A file is corrupt, foreign, or made by a newer npquant."""


class NpquantWarning(UserWarning):
    """The work was done, but not quite as asked; the message says how."""


def not_fitted(name: str) -> NotFittedError:
    """Return the error to raise when ``name`` is used before ``fit``.

    It is also an instance of scikit-learn's NotFittedError where scikit-learn is already imported, so that
    code written for scikit-learn catches it; npquant never imports scikit-learn for it.
    """
    message = f"This {name} is not fitted yet: call 'fit' with training vectors first, or load a saved one."
    sklearn_exceptions = sys.modules.get("sklearn.exceptions")
    if sklearn_exceptions is None:
        return NotFittedError(message)
    both = type("NotFittedError", (NotFittedError, sklearn_exceptions.NotFittedError), {})
    error: NotFittedError = both(message)
    return error
