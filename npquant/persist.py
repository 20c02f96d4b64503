r"""Save and load: one file, no pickle, checked before it is believed, mapped into memory where wanted.

>>> import os, tempfile
>>> import numpy as np
>>> from npquant import persist
>>> with tempfile.TemporaryDirectory() as folder:
...     path = os.path.join(folder, "words.npq")
...     persist.save({"codes": np.eye(2, dtype=np.uint8), "metric": "l2"}, path)
...     persist.load(path)
{'codes': array([[1, 0],
       [0, 1]], dtype=uint8), 'metric': 'l2'}

What can be saved
-----------------
A tree of: ``None``, ``bool``, ``int`` of any size, ``float`` (every bit kept, also of NaN, infinity and
−0.0), ``str``, ``list``, ``tuple``, ``dict`` with ``str`` keys; NumPy arrays of bool, (u)int8 … 64, float16 …
64 and of str (fixed width, or objects that are all str); NumPy scalars of these, *which come back as Python's
own scalars*; ``numpy.random.Generator`` (its state, and its seed sequence, so that ``spawn`` goes on as
well); and objects whose class stands in :data:`KINDS`. Nothing else, and no subclasses of these: what cannot
come back the same is refused. An object that is held twice is written twice, and comes back as two.

How a class joins
-----------------
It is put in :data:`KINDS`, under the module that defines it, and is one of:

* an ``Estimator``: stored are ``params`` (``get_params(deep=False)`` but the class's ``_runtime_params``, as
  ``threads``, which belong to the machine and not to the model) and ``fitted`` (each instance attribute whose
  name ends, and does not begin, with ``_``); rebuilt by ``cls(**params)`` and ``setattr``. A class with
  ``_get_state(self) -> dict`` and ``_set_state(self, state) -> None`` says for itself what ``fitted`` is; they
  are called for fitted objects only (``__sklearn_is_fitted__``);
* a class with ``_get_state(self) -> tree`` and a class method ``_from_state(state) -> object``;
* a frozen dataclass: stored as its fields, rebuilt by ``cls(**fields)``.

``_set_state``, ``_check_state`` (called after the attributes are set), ``_from_state`` and ``__init__`` must
raise (``ValueError`` or any such) for impossible content, which becomes a ``FormatError``; arrays handed to them
are read-only where the file is mapped.

The format
----------
Header, arrays and checksums are those of :mod:`npquant._container`, where their bytes are listed. Each array is used
by exactly one node of the header's tree. A node is one of

``null``, ``true``, a number, a string, ``[node, …]``
    itself, and a list; a number is a float if it has a point or an exponent, otherwise an int
``{"dict": {name: node, …}}``, ``{"tuple": [node, …]}``
    a dict, in its order; a tuple
``{"int": "-0x1f…"}``
    an int of 2**53 or more in absolute value
``{"float": "7ff8000000000000"}``
    a float that is not finite, by the 16 digits of its IEEE 754 bits
``{"array": i}``
    array number i
``{"text": i}``
    an array of fixed-width str: array i is uint32 and has one more axis, of code points, padded by zeros
``{"strings": {"shape": [n, …], "values": ["…", …]}}``
    an array of objects that are str, in C order
``{"generator": node}``
    a dict: "state" as NumPy's ``bit_generator.state`` gives it, and "seed", null or a dict of the arguments
    of ``numpy.random.SeedSequence``
``{"object": {"kind": k, "params": {name: node, …}, "fitted": {name: node, …}}}``
    an estimator of kind k; "fitted" may be null
``{"object": {"kind": k, "fields": {name: node, …}}}``, ``{"object": {"kind": k, "state": node}}``
    another object of kind k

A tree is at most 64 nodes deep.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import numpy as np

from npquant import __version__, _container
from npquant._base import Estimator
from npquant._container import DTYPES, MAX_DEPTH, MAX_NDIM, Array
from npquant.errors import FormatError, InvalidInputError

KINDS: dict[str, str] = {
    "KMeans": "npquant.kmeans:KMeans",
    "PCA": "npquant.transforms:PCA",
    "Standardize": "npquant.transforms:Standardize",
    "Rotation": "npquant.transforms:Rotation",
    "ProductQuantizer": "npquant.quantizers.product:ProductQuantizer",
    "PreTransformed": "npquant.quantizers.transformed:PreTransformed",
    "OptimizedProductQuantizer": "npquant.quantizers.transformed:OptimizedProductQuantizer",
    "SphericalLattice": "npquant.quantizers.lattice:SphericalLattice",
    "ScalarQuantizer": "npquant.quantizers.scalar:ScalarQuantizer",
    "FlatQuantizer": "npquant.quantizers.flat:FlatQuantizer",
    **{name: f"npquant.quantizers.binary:{name}" for name in (
        "SignQuantizer", "ITQ", "ITQRotation", "SpectralHashing", "SpectralSinusoids")},
    "RaBitQuantizer": "npquant.quantizers.rabitq:RaBitQuantizer",
    "ResidualQuantizer": "npquant.quantizers.residual:ResidualQuantizer",
    "GeneralizedResidualQuantizer": "npquant.quantizers.residual:GeneralizedResidualQuantizer",
    "AdditiveQuantizer": "npquant.quantizers.additive:AdditiveQuantizer",
    "LocalSearchQuantizer": "npquant.quantizers.additive:LocalSearchQuantizer",
    "SupervisedQuantizer": "npquant.quantizers.supervised:SupervisedQuantizer",
    "SupervisedProjection": "npquant.quantizers.supervised:SupervisedProjection",
    "FlatIndex": "npquant.index.flat:FlatIndex",
    "RefineIndex": "npquant.index.refine:RefineIndex",
    "IdMap": "npquant.index.idmap:IdMap",
    "IVFIndex": "npquant.index.ivf:IVFIndex",
    "InvertedMultiIndex": "npquant.index.multi:InvertedMultiIndex",
    "DeepQuantizer": "npquant.deep:DeepQuantizer",
    "Catalyzer": "npquant.catalyzer:Catalyzer",
    "Triplet": "npquant.nn.losses:Triplet",
    "Contrastive": "npquant.nn.losses:Contrastive",
    "Softmax": "npquant.nn.losses:Softmax",
    "SGD": "npquant.nn.optim:SGD",
    "Adam": "npquant.nn.optim:Adam",
    "Constant": "npquant.nn.optim:Constant",
    "Steps": "npquant.nn.optim:Steps",
    "Cosine": "npquant.nn.optim:Cosine",
    "Sequential": "npquant.nn.layers:Sequential",
    **{name: f"npquant.nn.output:{name}" for name in (
        "OutputTransform", "SpaceShuttle", "RaySnapping", "QuantizationPenalty", "StraightThrough", "Chain")},
}
"""Kind in a file -> "module:Class". Nothing that is not in this table is ever imported for a file."""

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_MAX_POOL = 256  # numpy.random.SeedSequence allocates, and mixes in quadratic time, what a file says here
_SAVABLE = ("A .npq file holds None, bool, int, float, str, list, tuple, dict with str keys, NumPy arrays of "
            "bool, integers, float16 to float64 and str, numpy.random.Generator, and npquant's own objects")


# ----------------------------------------------------------------------------------------- public


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write ``obj`` to the file ``path``, wholly or not at all.

    The file is written under another name beside ``path``, flushed to the disk, and then takes the place of
    what was there: a reader, also one that has the old file mapped, never sees half a file. (On Windows a
    mapped file cannot be replaced: ``PermissionError``.)

    Parameters
    ----------
    obj : object
        A model, an index, or any tree of the values that the module's docstring lists.
    path : str or os.PathLike
        Where to; the name is used as it is. A symbolic link is followed, and a file that is replaced keeps
        its permissions.

    Raises
    ------
    InvalidInputError
        Where something in ``obj`` cannot be saved: the message names its place, as
        ``DeepQuantizer.params.callback``.
    OSError
        ``FileNotFoundError`` where the folder is missing, ``IsADirectoryError`` where ``path`` is one, and
        what the disk says. Nothing is left behind, and an old file stays as it was.

    Notes
    -----
    Time: one pass over the arrays. Memory: nothing for C-contiguous little-endian arrays; for others a copy
    of one at a time. The same object gives the same bytes.
    """
    target = _container.target_of(path)
    arrays: list[Array] = []
    root = _Encoder(arrays).encode(obj, _title(obj), 0)
    _container.replace(target, root, arrays)


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """Return what :func:`save` wrote to the file ``path``.

    Parameters
    ----------
    path : str or os.PathLike
        The file. One that may come from a stranger is safe to load: no code is run but that of the classes in
        :data:`KINDS`.
    mmap : bool
        If true, arrays are read-only views of the file, which is read where it is touched and shared by all
        processes that map it. Opening then takes no longer for a large file than for a small one, and *the
        arrays' checksums are not compared* (the header is checked as ever). The file must not be changed in
        place as long as an array lives: ``save`` never does; on POSIX a shortened file would kill the
        process, and Windows refuses to change, replace or delete it. If false, arrays are ordinary: writable,
        and owning their memory. Arrays of str are ordinary either way.

    Returns
    -------
    obj : object
        Equal to what was saved, bit for bit; NumPy scalars became Python's.

    Raises
    ------
    FormatError
        Where the file is foreign (the message says what it looks like), damaged, cut short, impossible, or
        written by a newer npquant.
    OSError
        ``FileNotFoundError``, ``IsADirectoryError``, and what the disk says.
    InvalidInputError
        Where ``path`` is not a path, or is not that of an ordinary file.

    Notes
    -----
    Every size is compared with the file's before memory is taken for it: the arrays together take no more
    than the file does. The header, which is as long as the parameters are many, is parsed by the ``json``
    module into some 20 times its length. Time: one pass over the file, or over its header with ``mmap``.
    """
    with _container.opened(path) as (file, name):
        header, entries = _container.read_header(file, name)
        arrays = _container.mapped(file, entries) if mmap else _container.read(file, name, entries)
    return _Decoder(name, header, arrays).result()


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the header of the file ``path`` says; no array is read and no class imported.

    Returns
    -------
    description : dict
        ``kind`` (str; of plain values the type's name), ``format_version`` (int), ``library_version`` (str:
        the npquant that wrote it), ``bytes`` (int, of the file), ``params`` (dict: the estimator's
        parameters, or the object's fields or state, or the dict saved; nested objects are dicts with a
        ``kind``, arrays and generators the words ``array``, ``text``, ``generator``), ``arrays`` (list of
        dict: ``name``, as ``'fitted.codebooks_'``, ``dtype``, ``shape``, ``bytes``).

    Raises
    ------
    FormatError, OSError, InvalidInputError
        As :func:`load` does, but for what only the arrays' content could tell.
    """
    with _container.opened(path) as (file, name):
        header, entries = _container.read_header(file, name)
        size = os.fstat(file.fileno()).st_size
    names = [""] * len(entries)
    try:
        kind, params = _show_root(header["root"], names)
    except Exception as error:  # whatever it is, the file's nodes are the only input
        raise _container.impossible(name, f"the header's tree makes no sense: {error}") from error
    return {"kind": kind, "format_version": header["format_version"],
            "library_version": header["library_version"], "bytes": size, "params": params,
            "arrays": [{"name": name, "dtype": entry.dtype.name, "shape": entry.shape, "bytes": entry.nbytes}
                       for name, entry in zip(names, entries)]}


# ------------------------------------------------------------------------------------------ kinds


def _kind_of(cls: type) -> str | None:
    home = f"{cls.__module__}:{cls.__qualname__}"
    return next((kind for kind, place in KINDS.items() if place == home), None)


def _sort(cls: type) -> str:
    """Return how objects of a registered class are stored: as "estimator", "state" or "fields"."""
    if issubclass(cls, Estimator):
        return "estimator"
    if hasattr(cls, "_get_state") and hasattr(cls, "_from_state"):
        return "state"
    params = getattr(cls, "__dataclass_params__", None)
    if params is not None and params.frozen:
        return "fields"
    raise TypeError(f"{cls.__qualname__} stands in npquant.persist.KINDS, but is neither an Estimator nor a "
                    "frozen dataclass, nor has it _get_state and _from_state.")


def _title(value: Any) -> str:
    return _kind_of(type(value)) or type(value).__name__


def _step(path: str, key: str) -> str:
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"


# ---------------------------------------------------------------------------------------- writing


class _Encoder:
    """Turns a tree into nodes; the arrays are gathered on the way, uncopied."""

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays

    def encode(self, value: Any, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{path[:80]}… is nested over {MAX_DEPTH} deep, or contains itself.")
        kind: Any = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._str(value, path)
        if kind is int:
            return value if abs(value) < 2**53 else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind in (list, tuple):
            nodes = [self.encode(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
            return nodes if kind is list else {"tuple": nodes}
        if kind is dict:
            return {"dict": self._dict(value, path, depth)}
        if kind is np.str_:
            return self._str(str(value), path)
        if issubclass(kind, np.generic) and value.dtype.name in DTYPES:
            return self.encode(value.item(), path, depth)
        if kind in (np.ndarray, np.memmap):
            return self._array(value, path)
        if kind is np.random.Generator:
            return {"generator": self._generator(value, path, depth)}
        return {"object": self._object(value, path, depth)}

    @staticmethod
    def _refuse(path: str, what: str) -> NoReturn:
        raise InvalidInputError(f"{path} is {what}, which cannot be saved. {_SAVABLE} ({', '.join(KINDS)}). "
                                "Change it, or set it to None, and save again.")

    def _str(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self._refuse(path, f"{value!r}, which is not valid Unicode (it has lone surrogates)")
        return value

    def _dict(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        for key in value:
            if type(key) is not str:
                self._refuse(path, f"a dict with the key {key!r}")
        return {self._str(key, f"a key of {path}"): self.encode(v, _step(path, key), depth + 1)
                for key, v in value.items()}

    def _array(self, value: Array, path: str) -> dict[str, Any]:
        if value.dtype.kind == "O":
            values = value.ravel().tolist()
            for i, v in enumerate(values):
                if not isinstance(v, str):
                    self._refuse(path, f"an array of objects, with a {type(v).__name__}")
                values[i] = self._str(str(v), path)
            return {"strings": {"shape": list(value.shape), "values": values}}
        if value.dtype.kind == "U":
            # Not a list of str: padded to the longest one, it could take a million times the file's size when
            # loaded.
            width = max(1, value.dtype.itemsize // 4)
            if value.ndim == MAX_NDIM:
                self._refuse(path, f"an array of {value.ndim + 1} dimensions with that of the letters")
            points = np.asarray(value, dtype=f"<U{width}", order="C")
            return {"text": self._store(np.ndarray((*value.shape, width), "<u4", buffer=points), path)}
        if value.dtype.name not in DTYPES:
            self._refuse(path, f"an array of dtype {value.dtype}")
        return {"array": self._store(value, path)}

    def _store(self, array: Array, path: str) -> int:
        if array.ndim > MAX_NDIM:
            self._refuse(path, f"an array of {array.ndim} dimensions")
        self.arrays.append(array)
        return len(self.arrays) - 1

    def _generator(self, value: np.random.Generator, path: str, depth: int) -> Any:
        bits = value.bit_generator
        name = type(bits).__name__
        if name not in _BIT_GENERATORS or type(bits) is not getattr(np.random, name):
            self._refuse(path, f"a Generator on a {name} (known are {', '.join(_BIT_GENERATORS)})")
        seed: Any = getattr(bits, "seed_seq", None)
        if type(seed) is np.random.SeedSequence:
            if seed.pool_size > _MAX_POOL:
                self._refuse(path, f"a Generator whose SeedSequence has a pool_size of {seed.pool_size}")
            seed = {"entropy": seed.entropy, "spawn_key": list(seed.spawn_key), "pool_size": seed.pool_size,
                    "n_children_spawned": seed.n_children_spawned}
        else:
            seed = None
        return self.encode({"state": bits.state, "seed": seed}, path, depth + 1)

    def _object(self, value: Any, path: str, depth: int) -> dict[str, Any]:
        cls = type(value)
        kind = _kind_of(cls)
        if kind is None:
            self._refuse(path, f"a {cls.__module__}.{cls.__qualname__}")
        sort = _sort(cls)
        if sort == "state":
            return {"kind": kind, "state": self.encode(value._get_state(), f"{path}.state", depth + 1)}
        if sort == "fields":
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return {"kind": kind, "fields": self._dict(fields, path, depth)}
        params = {name: v for name, v in value.get_params(deep=False).items() if name not in cls._runtime_params}
        fitted: dict[str, Any] | None
        if not hasattr(cls, "_set_state"):
            fitted = {name: v for name, v in vars(value).items() if _is_fitted_name(name)}
        else:
            fitted = value._get_state() if value.__sklearn_is_fitted__() else None
        return {"kind": kind, "params": self._dict(params, f"{path}.params", depth),
                "fitted": None if fitted is None else self._dict(fitted, f"{path}.fitted", depth)}


def _is_fitted_name(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


# ------------------------------------------------------------------------------------- rebuilding


class _Decoder:
    """Turns the header's nodes back into the tree."""

    def __init__(self, name: str, header: dict[str, Any], arrays: list[Array]) -> None:
        self.name, self.arrays = name, arrays
        self.root, self.writer = header["root"], header["library_version"]
        # Each is handed out once: a thousand texts of one array would take a thousand times the file's size.
        self.used = [False] * len(arrays)

    def result(self) -> Any:
        result = self.decode(self.root, "", 0)
        if not all(self.used):
            raise self._impossible(f"array {self.used.index(False)}", "is used nowhere")
        return result

    def _impossible(self, path: str, why: str) -> FormatError:
        return _container.impossible(self.name, f"{(path.lstrip('.') or 'the root')[:200]} {why}")

    def decode(self, node: Any, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._impossible(path, f"is nested more than {MAX_DEPTH} deep")
        if type(node) is list:
            return [self.decode(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(node)]
        if type(node) is not dict:
            return node  # None, bool, int, float, str: JSON knows nothing else
        if len(node) != 1:
            raise self._impossible(path, f"has {len(node)} tags instead of one")
        [(tag, value)] = node.items()
        if tag == "dict" and type(value) is dict:
            return self._dict(value, path, depth)
        if tag == "tuple" and type(value) is list:
            return tuple([self.decode(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)])
        if tag == "int" and type(value) is str and re.fullmatch("-?0x[0-9a-f]+", value):
            return int(value, 16)
        if tag == "float" and type(value) is str and re.fullmatch("[0-9a-f]{16}", value):
            return struct.unpack(">d", bytes.fromhex(value))[0]
        if tag in ("array", "text") and type(value) is int and 0 <= value < len(self.used):
            if self.used[value]:
                raise self._impossible(path, f"is array {value}, which is used before")
            self.used[value] = True
            return self.arrays[value] if tag == "array" else self._text(self.arrays[value], path)
        if tag == "strings" and type(value) is dict and value.keys() == {"shape", "values"}:
            return self._strings(value["shape"], value["values"], path)
        if tag == "generator":
            state = self.decode(value, path, depth + 1)
            return self._attempt(path, lambda: _restore_generator(state))
        if tag == "object" and type(value) is dict and type(value.get("kind")) is str:
            return self._object(value, path, depth)
        raise self._impossible(path, f"is {tag[:40]!r} of {str(value)[:40]!r}, which means nothing")

    def _dict(self, value: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        return {key: self.decode(v, _step(path, key), depth + 1) for key, v in value.items()}

    def _attempt(self, path: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` makes of the file's content; what it cannot use is the file's fault."""
        try:
            return work()
        except (FormatError, MemoryError, OSError, ImportError):
            raise
        except Exception as error:
            raise self._impossible(path, f"cannot be rebuilt: {type(error).__name__}: {error} (npquant "
                                         f"{self.writer[:40]!r} wrote it, this is {__version__})") from error

    def _text(self, points: Array, path: str) -> Any:
        if points.dtype != np.uint32 or points.ndim == 0 or not 0 < points.shape[-1] < 2**29:  # 2 GB an element
            raise self._impossible(path, "is not an array of code points")
        if points.size and points.max() > 0x10FFFF:  # NumPy would find out when the element is read
            raise self._impossible(path, "contains a number that is no code point")
        return self._attempt(path, lambda: np.ndarray(
            points.shape[:-1], f"=U{points.shape[-1]}", buffer=np.ascontiguousarray(points)).copy())

    def _strings(self, shape: Any, values: Any, path: str) -> Any:
        if type(shape) is not list or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise self._impossible(path, f"has the shape {str(shape)[:80]}")
        if type(values) is not list or not all(type(v) is str for v in values) or len(shape) > MAX_NDIM:
            raise self._impossible(path, "is not an array of str")

        def build() -> Array:
            array = np.empty(len(values), dtype=object)
            array[:] = values
            return array.reshape(shape)

        return self._attempt(path, build)

    def _object(self, value: dict[str, Any], path: str, depth: int) -> Any:
        kind, parts = value["kind"], dict(value)
        del parts["kind"]
        if kind not in KINDS:
            raise FormatError(f"{self.name}: holds a {kind[:40]!r}, which this npquant ({__version__}) does "
                              f"not know. It was written by npquant {self.writer[:40]!r}: upgrade.")
        home, _, qualname = KINDS[kind].partition(":")
        cls = getattr(import_module(home), qualname)
        sort = _sort(cls)
        if sort == "state" and parts.keys() == {"state"}:
            state = self.decode(parts["state"], f"{path}.state", depth + 1)
            return self._attempt(path, lambda: cls._from_state(state))
        if sort == "fields" and parts.keys() == {"fields"} and type(parts["fields"]) is dict:
            fields = self._dict(parts["fields"], path, depth)
            return self._attempt(path, lambda: cls(**fields))
        if (sort == "estimator" and parts.keys() == {"params", "fitted"} and type(parts["params"]) is dict
                and (parts["fitted"] is None or type(parts["fitted"]) is dict)):
            params = self._dict(parts["params"], f"{path}.params", depth)
            fitted = None if parts["fitted"] is None else self._dict(parts["fitted"], f"{path}.fitted", depth)
            return self._attempt(path, lambda: _restore_estimator(cls, params, fitted))
        raise self._impossible(path, f"is not what a {kind} is made of, but {', '.join(parts)[:80]!r}")


def _restore_estimator(cls: Any, params: dict[str, Any], fitted: dict[str, Any] | None) -> Any:
    estimator = cls(**params)
    if hasattr(cls, "_set_state"):
        if fitted is not None:
            estimator._set_state(fitted)
        return estimator
    for name, value in (fitted or {}).items():
        if not _is_fitted_name(name):  # a file must not put an attribute over a method
            raise ValueError(f"{name!r} is not the name of a fitted attribute")
        setattr(estimator, name, value)
    if fitted:
        estimator._check_state()
    return estimator


def _restore_generator(value: Any) -> np.random.Generator:
    state, seed = value["state"], value["seed"]
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"there is no bit generator {name!r}")
    if seed is None:
        sequence = np.random.SeedSequence(0)
    else:
        if not 0 <= seed["pool_size"] <= _MAX_POOL:
            raise ValueError("the pool of its seed sequence is absurd")
        sequence = np.random.SeedSequence(seed["entropy"], spawn_key=tuple(seed["spawn_key"]),
                                          pool_size=seed["pool_size"],
                                          n_children_spawned=seed["n_children_spawned"])
    # NumPy trusts these two and would read beyond its buffers.
    if not 0 <= state["state"].get("pos", 0) <= 624 or not 0 <= state.get("buffer_pos", 0) <= 4:
        raise ValueError("its position is outside of its buffer")
    bits = getattr(np.random, name)(sequence)
    bits.state = state
    if not _alike(bits.state, state):
        raise ValueError("its state is not one of a generator")
    return np.random.Generator(bits)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


# ------------------------------------------------------------------------------------- describing


def _show_root(root: Any, names: list[str]) -> tuple[str, dict[str, Any]]:
    shown = _show(root, "", names)
    if type(root) is not dict:
        return type(root).__name__, {}
    if "object" in root:
        return shown.pop("kind"), shown
    return next(iter(root)), shown if "dict" in root else {}


def _show(node: Any, path: str, names: list[str]) -> Any:
    """Return a node as a value to read; note at which path of the tree each array stands."""
    if type(node) is list:
        return [_show(v, f"{path}[{i}]", names) for i, v in enumerate(node)]
    if type(node) is not dict:
        return node
    [(tag, value)] = node.items()
    if tag == "dict":
        return {key: _show(v, _step(path, key), names) for key, v in value.items()}
    if tag == "tuple":
        return tuple(_show(value, path, names))
    if tag in ("array", "text"):
        names[value] = path.lstrip(".")
        return tag
    if tag == "strings":
        return "text"
    if tag == "generator":
        _show(value, path, names)
        return tag
    if tag == "object":
        parts = {part: v if part == "state" or v is None else {"dict": v}
                 for part, v in value.items() if part != "kind"}
        shown = {part: _show(v, path if part == "fields" else f"{path}.{part}", names)
                 for part, v in parts.items()}
        state = shown.get("params", shown.get("fields", shown.get("state")))
        return {"kind": value["kind"], **(state if type(state) is dict else {"state": state})}
    return int(value, 16) if tag == "int" else struct.unpack(">d", bytes.fromhex(value))[0]
