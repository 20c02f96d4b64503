"""Indexes from a line of text, and their search options from measurements."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npquant import _checks, metrics
from npquant.errors import InvalidInputError
from npquant.index.base import Index
from npquant.index.flat import FlatIndex
from npquant.index.idmap import IdMap
from npquant.index.ivf import IVFIndex
from npquant.index.multi import InvertedMultiIndex
from npquant.index.refine import RefineIndex
from npquant.kmeans import KMeans
from npquant.quantizers.base import Quantizer
from npquant.quantizers.binary import ITQ, SignQuantizer
from npquant.quantizers.flat import FlatQuantizer
from npquant.quantizers.lattice import SphericalLattice
from npquant.quantizers.product import ProductQuantizer
from npquant.quantizers.rabitq import RaBitQuantizer
from npquant.quantizers.scalar import ScalarQuantizer
from npquant.quantizers.transformed import OptimizedProductQuantizer, PreTransformed
from npquant.transforms import PCA, Rotation

Ids = NDArray[np.int64]

_TRANSFORMS: dict[str, Callable[..., Any]] = {
    r"PCA(\d+)": lambda size, **_: PCA(int(size)),
    r"RR": lambda **seed: Rotation(**seed),
}
_COARSE: dict[str, Callable[..., Any]] = {
    r"IVF(\d+)": lambda words, **seed: KMeans(int(words), **seed),
    r"IMI2x(\d+)": lambda bits, **seed: InvertedMultiIndex(1 << int(bits), **seed),
}
_CODECS: dict[str, Callable[..., Quantizer]] = {
    r"PQ(\d+)(?:x(\d+))?": lambda m, nbits, **seed: ProductQuantizer(int(m), int(nbits or 8), **seed),
    r"Flat": lambda **_: FlatQuantizer(),
    r"SQ8": lambda **_: ScalarQuantizer("int8"),
    r"SQ4": lambda **_: ScalarQuantizer("int4"),
    r"SQfp16": lambda **_: ScalarQuantizer("float16"),
    r"Sign": lambda **_: SignQuantizer(),
    r"ITQ(\d+)": lambda bits, **seed: ITQ(int(bits), **seed),
    r"RaBitQ": lambda **seed: RaBitQuantizer(**seed),
    r"Lattice(\d+)": lambda r2, **_: SphericalLattice(r2=int(r2)),
}
_KEPT: dict[str, Callable[[], Quantizer]] = {
    "float32": FlatQuantizer, "float16": lambda: ScalarQuantizer("float16"), "int8": lambda: ScalarQuantizer("int8"),
    "int4": lambda: ScalarQuantizer("int4"),
}
_LONG = 0.5  # seconds of searching that are measured once
_GRAMMAR = ("[PCA<d> | RR | OPQ<m>[_<d>],] [IVF<lists> | IMI2x<bits>,] PQ<m>[x<bits>] | Flat | SQ8 | SQ4 | SQfp16 | "
            "Sign | ITQ<bits> | RaBitQ | Lattice<r²> [,Refine(float32 | float16 | int8 | int4)]")


def index_factory(spec: str, d: int, metric: str = "l2", *, random_state: Any = None) -> Index:
    """Return an index, not yet fitted, from a line such as ``"OPQ16,IVF1024,PQ16,Refine(int8)"``.

    Parameters
    ----------
    spec : str
        Parts from left to right, each of them but the codec optional:

        ================================ ==========================================================
        ``PCA64``, ``RR``                a projection, a random rotation in front of everything
        ``OPQ16``, ``OPQ16_64``          the rotation learned for a ``PQ16`` (after a PCA to 64 dimensions)
        ``IVF1024``, ``IMI2x8``          lists by k-means, or by pairs of 2⁸ words of the halves
        ``PQ16``, ``PQ16x4``             16 blocks of 8 bits, or of 4
        ``Flat``, ``SQ8``, ``SQ4``,      the vectors as they are; 8, 4 or 16 bits a number
        ``SQfp16``
        ``Sign``, ``ITQ64``, ``RaBitQ``  one bit a dimension, in three ways
        ``Lattice79``                    the spherical lattice of squared radius 79
        ``Refine(int8)``                 re-ranking by vectors kept as float32, float16, int8 or int4
        ================================ ==========================================================
    d : int
        Dimension of the vectors.
    metric : {"l2", "ip", "cosine"}
    random_state : None, int or numpy.random.Generator
        Of all that is trained.

    Raises
    ------
    InvalidInputError
        A part that is not known, stands in the wrong place, or does not fit ``d``.

    Examples
    --------
    >>> import npquant as nq
    >>> X, _, Q, _ = nq.datasets.load_digits()
    >>> index = nq.index_factory("IVF16,PQ8x4,Refine(int8)", d=64, random_state=0).fit(X)
    >>> _ = index.add(X)
    >>> index.search(Q[:2], k=3, nprobe=4).ids.shape
    (2, 3)
    """
    d, metric = _checks.integer(d, "d"), _checks.metric(metric)
    if not isinstance(spec, str):
        raise InvalidInputError(f"spec is {spec!r}, wanted a line of text such as 'IVF1024,PQ16'.")
    parts = [part.strip() for part in spec.split(",")]
    kept = _refine(parts)
    seed = {"random_state": random_state}
    transform, rotated, width = _front(parts, d, seed)
    coarse = _taken(parts, _COARSE, seed)
    if coarse is not None and isinstance(coarse, InvertedMultiIndex) and width % 2:
        raise InvalidInputError(f"{spec!r}: the halves of an inverted multi-index want an even dimension, not {width}.")
    codec = _taken(parts, _CODECS, seed)
    if codec is None or parts:
        raise InvalidInputError(f"{spec!r} has {parts[0] if parts else 'nothing'!r} where a codec is wanted. The form "
                                f"is {_GRAMMAR}.")
    if isinstance(codec, ProductQuantizer):
        if codec.m < 1 or width % codec.m:
            raise InvalidInputError(f"{spec!r}: {codec.m} blocks do not divide the dimension {width}.")
        if rotated is not None:
            if rotated != codec.m:
                raise InvalidInputError(f"{spec!r}: OPQ{rotated} learns a rotation for PQ{rotated}, not for "
                                        f"PQ{codec.m}.")
            codec = OptimizedProductQuantizer(codec.m, codec.nbits, **seed)
    elif rotated is not None:
        raise InvalidInputError(f"{spec!r}: OPQ{rotated} learns a rotation for PQ{rotated}: put that behind it.")
    if transform is not None:
        codec = PreTransformed(transform, codec, **seed)
    index: Index = FlatIndex(codec, metric) if coarse is None else IVFIndex(coarse, codec, metric)
    return index if kept is None else RefineIndex(index, kept)


def _refine(parts: list[str]) -> Quantizer | None:
    found = re.fullmatch(r"Refine\((\w*)\)|RFlat", parts[-1])
    if found is None:
        return None
    kind = found[1] or "float32"
    if kind not in _KEPT:
        raise InvalidInputError(f"{parts[-1]!r} keeps vectors as {kind!r}, wanted one of {', '.join(_KEPT)}.")
    parts.pop()
    return _KEPT[kind]()


def _front(parts: list[str], d: int, seed: dict[str, Any]) -> tuple[Any, int | None, int]:
    """Return the transform that stands first, the blocks that a rotation is learned for, and the dimension behind."""
    found = re.fullmatch(r"OPQ(\d+)(?:_(\d+))?", parts[0]) if parts else None
    if found is not None:
        parts.pop(0)
        width = int(found[2] or d)
        transform = PCA(width) if found[2] else None
        rotated = int(found[1])
    else:
        transform, rotated = _taken(parts, _TRANSFORMS, seed), None
        width = d if not isinstance(transform, PCA) or transform.n_components is None else transform.n_components
    if not 0 < width <= d:
        raise InvalidInputError(f"a projection to {width} dimensions of vectors of dimension {d}: wanted 1 to {d}.")
    return transform, rotated, width


def _taken(parts: list[str], known: dict[str, Callable[..., Any]], seed: dict[str, Any]) -> Any:
    """Return what the first part makes, if it is one of the known, and take it away."""
    for pattern, make in known.items():
        found = re.fullmatch(pattern, parts[0]) if parts else None
        if found is not None:
            parts.pop(0)
            return make(*found.groups(), **seed)
    return None


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` measured.

    Attributes
    ----------
    options : dict
        Arguments for ``search``: of the fastest setting that reaches the recall wanted, or, where none does, of the
        one with the highest recall.
    recall : float
        That setting's.
    seconds : float
        Its time for one query.
    front : list of (float, float, dict)
        (recall, seconds a query, options) of all settings that no other one beats in both, by rising recall.
    """

    options: dict[str, int]
    recall: float
    seconds: float
    front: list[tuple[float, float, dict[str, int]]]


def tune(index: Index | IdMap, Q: Any, recall: float = 0.95, *, k: int = 10, truth: Any = None,
         threads: int | None = None) -> Tuned:
    """Return the search options by which ``index`` finds a share of the true neighbours fastest, as measured.

    Settings of ``nprobe`` (powers of two, up to all lists) and, of a ``RefineIndex``, ``oversample`` are timed on the
    queries. What cannot matter is not tried: more lists, once they find nothing more; anything that takes ten times as
    long as what suffices.

    Parameters
    ----------
    index : IVFIndex or RefineIndex, or an IdMap of one
        With its vectors. (A ``FlatIndex`` has no options.)
    Q : array_like (nq, d)
        Held-out queries, like those to come; some hundreds are enough.
    recall : float
        Wanted share of the true ``k`` nearest among the ``k`` found, in the mean.
    k : int
    truth : array_like of int (nq, k), optional
        Ids (of an ``IdMap`` names) of the true nearest. By default what the index itself finds with its most thorough
        setting: then recall is relative to what its codes allow.
    threads : int, optional
        Of each search.

    Raises
    ------
    InvalidInputError

    Notes
    -----
    Times are those of this machine now; run it where the index is to be used. All queries go in one call.
    """
    recall, k = _checks.number(recall, "recall", high=1.0), _checks.integer(k, "k")
    if isinstance(index, IdMap):
        truth = None if truth is None else index.numbers(truth, "truth")
        index = index.index
    ladder = _settings(index, k)
    queries = index.codec._vectors(Q, "Q", min_rows=1)
    if not index.ntotal:
        raise InvalidInputError("the index holds no vectors: there is nothing to find. Add them first.")
    if truth is None:
        wanted = index.search(queries, k, threads=threads, **ladder[-1][-1]).ids
    else:
        wanted = np.asarray(truth)
    measured: list[tuple[float, float, dict[str, int]]] = []
    for group in ladder:
        shares: list[float] = []
        for options in group:
            index.search(queries[:8], k, threads=threads, **options)  # compiled, and in memory
            seconds: list[float] = []
            while not seconds or (len(seconds) < 3 and sum(seconds) < _LONG):
                began = time.perf_counter()
                found = index.search(queries, k, threads=threads, **options).ids
                seconds.append(time.perf_counter() - began)
            share = metrics.knn_recall(found, wanted, k)
            measured.append((share, float(np.median(seconds)) / max(1, len(queries)), options))
            shares.append(share)
            enough = min((entry[1] for entry in measured if entry[0] >= recall), default=np.inf)
            if share == 1.0 or measured[-1][1] > 10 * enough or (
                    group is not ladder[-1] and len(shares) > 2 and share - shares[-3] < 0.001):
                break
        if share == 1.0 and options is group[0]:
            break
    reached = [entry for entry in measured if entry[0] >= recall]
    best = min(reached, key=lambda entry: entry[1]) if reached else max(measured, key=lambda entry: entry[0])
    front = sorted((entry for entry in measured if not any(
        other[0] >= entry[0] and other[1] < entry[1] for other in measured)), key=lambda entry: entry[:2])
    return Tuned(best[2], best[0], best[1], front)


def _settings(index: Any, k: int) -> list[list[dict[str, int]]]:
    """Return settings in groups, each by rising effort; the last of the last is the most thorough."""
    base = index.base if isinstance(index, RefineIndex) else index
    if not isinstance(index, Index):
        raise InvalidInputError(f"index is {index!r}, wanted an IVFIndex or a RefineIndex.")
    probes: list[dict[str, int]] = [{}]
    if isinstance(base, IVFIndex):
        probes = [{"nprobe": count} for count in _doubled(1, base.nlist)]
    if not isinstance(index, RefineIndex):
        if len(probes) == 1 and not probes[0]:
            raise InvalidInputError("a FlatIndex has no search options to tune: wanted an IVFIndex or a RefineIndex.")
        return [probes]
    most = max(1, min(256, index.ntotal // k))
    return [[{"oversample": factor, **options} for options in probes] for factor in _doubled(1, most)]


def _doubled(low: int, high: int) -> list[int]:
    values = [low]
    while 2 * values[-1] < high:
        values.append(2 * values[-1])
    return values if values[-1] == high else [*values, high]
