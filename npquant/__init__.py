"""npquant: vectors made small, searchable and learnable to be small.

Public names are resolved on first use (PEP 562): ``import npquant`` loads the standard library alone, and a
program that never trains a network never loads one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "KMeans": "kmeans",
    "PCA": "transforms",
    "Rotation": "transforms",
    "PreTransformed": "quantizers.transformed",
    "ProductQuantizer": "quantizers.product",
    "OptimizedProductQuantizer": "quantizers.transformed",
    "SphericalLattice": "quantizers.lattice",
    "ScalarQuantizer": "quantizers.scalar",
    "FlatQuantizer": "quantizers.flat",
    "SignQuantizer": "quantizers.binary",
    "ITQ": "quantizers.binary",
    "SpectralHashing": "quantizers.binary",
    "RaBitQuantizer": "quantizers.rabitq",
    "ResidualQuantizer": "quantizers.residual",
    "GeneralizedResidualQuantizer": "quantizers.residual",
    "AdditiveQuantizer": "quantizers.additive",
    "LocalSearchQuantizer": "quantizers.additive",
    "SupervisedQuantizer": "quantizers.supervised",
    "FlatIndex": "index.flat",
    "RefineIndex": "index.refine",
    "index_factory": "index.factory",
    "tune": "index.factory",
    "IVFIndex": "index.ivf",
    "InvertedMultiIndex": "index.multi",
    "IdMap": "index.idmap",
    "SearchResult": "index.base",
    "RangeResult": "index.base",
    "DeepQuantizer": "deep",
    "Catalyzer": "catalyzer",
    "save": "persist",
    "load": "persist",
    "NpquantError": "errors",
    "InvalidInputError": "errors",
    "InvalidTypeError": "errors",
    "DivergedError": "errors",
    "NotFittedError": "errors",
    "NotInvertibleError": "errors",
    "FormatError": "errors",
    "NpquantWarning": "errors",
}
_MODULES = ("datasets", "errors", "kmeans", "metrics", "nn", "persist", "plot", "transforms")

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from npquant.catalyzer import Catalyzer as Catalyzer
    from npquant.deep import DeepQuantizer as DeepQuantizer
    from npquant.errors import DivergedError as DivergedError
    from npquant.errors import FormatError as FormatError
    from npquant.errors import InvalidInputError as InvalidInputError
    from npquant.errors import InvalidTypeError as InvalidTypeError
    from npquant.errors import NotFittedError as NotFittedError
    from npquant.errors import NotInvertibleError as NotInvertibleError
    from npquant.errors import NpquantError as NpquantError
    from npquant.errors import NpquantWarning as NpquantWarning
    from npquant.index.base import RangeResult as RangeResult
    from npquant.index.base import SearchResult as SearchResult
    from npquant.index.factory import index_factory as index_factory
    from npquant.index.factory import tune as tune
    from npquant.index.flat import FlatIndex as FlatIndex
    from npquant.index.idmap import IdMap as IdMap
    from npquant.index.ivf import IVFIndex as IVFIndex
    from npquant.index.multi import InvertedMultiIndex as InvertedMultiIndex
    from npquant.index.refine import RefineIndex as RefineIndex
    from npquant.kmeans import KMeans as KMeans
    from npquant.persist import load as load
    from npquant.persist import save as save
    from npquant.quantizers.additive import AdditiveQuantizer as AdditiveQuantizer
    from npquant.quantizers.additive import LocalSearchQuantizer as LocalSearchQuantizer
    from npquant.quantizers.binary import ITQ as ITQ
    from npquant.quantizers.binary import SignQuantizer as SignQuantizer
    from npquant.quantizers.binary import SpectralHashing as SpectralHashing
    from npquant.quantizers.flat import FlatQuantizer as FlatQuantizer
    from npquant.quantizers.lattice import SphericalLattice as SphericalLattice
    from npquant.quantizers.product import ProductQuantizer as ProductQuantizer
    from npquant.quantizers.rabitq import RaBitQuantizer as RaBitQuantizer
    from npquant.quantizers.residual import GeneralizedResidualQuantizer as GeneralizedResidualQuantizer
    from npquant.quantizers.residual import ResidualQuantizer as ResidualQuantizer
    from npquant.quantizers.scalar import ScalarQuantizer as ScalarQuantizer
    from npquant.quantizers.supervised import SupervisedQuantizer as SupervisedQuantizer
    from npquant.quantizers.transformed import OptimizedProductQuantizer as OptimizedProductQuantizer
    from npquant.quantizers.transformed import PreTransformed as PreTransformed
    from npquant.transforms import PCA as PCA
    from npquant.transforms import Rotation as Rotation

    from . import datasets as datasets
    from . import errors as errors
    from . import kmeans as kmeans
    from . import metrics as metrics
    from . import nn as nn
    from . import persist as persist
    from . import plot as plot
    from . import transforms as transforms


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"npquant.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"npquant.{name}")
    else:
        raise AttributeError(f"module 'npquant' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
