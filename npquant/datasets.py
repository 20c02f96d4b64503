"""Readers and writers of the field's file formats, the embedded digits, and synthetic vectors.

Nothing here trusts a file: every size it claims is held against the size it has before memory is asked for,
nothing is ever unpickled, and whatever is wrong with it is a :class:`~npquant.errors.FormatError` that names
the file.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npquant import _checks
from npquant.errors import FormatError, InvalidInputError
from npquant.kernels._pool import run_blocks

Array = NDArray[Any]
_Path = str | os.PathLike[str]

_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_CODES = {np.dtype(code).newbyteorder("="): number for number, code in _IDX.items()}
_IDX_NAME = re.compile(r"[-.]idx\d*(-[a-z0-9]+)?(\.gz)?$")
_VECS: dict[str, np.dtype[Any]] = {
    ".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}
_BIN: dict[str, np.dtype[Any]] = {
    ".fbin": np.dtype("<f4"), ".u8bin": np.dtype("u1"), ".i8bin": np.dtype("i1"), ".ibin": np.dtype("<i4")}
_KNOWN = ("idx, idx.gz (also names such as train-images-idx3-ubyte.gz), npy, npz, "
          + ", ".join(suffix[1:] for suffix in (*_VECS, *_BIN)))

# Deflate cannot make more than 1,032 bytes out of one: a claim beyond that is a lie, told before memory is
# taken.
_DEFLATE_LIMIT = 1032
_NPY_MAGIC = b"\x93NUMPY"
_LONGEST_NPY_HEADER = 10_000
_CHUNK = 1 << 24
_MAPPED_ROWS_CHECKED = 4096
_SYNTHETIC_ROWS = 4096


class Labelled(NamedTuple):
    """Labelled vectors in two parts, to train on (the database) and to test with (the queries).

    ``X_train`` (n, d) and ``X_test`` (nq, d) are real numbers; ``y_train`` and ``y_test`` are classes (n,),
    (nq,), or matrices of zeros and ones (n, c), (nq, c).
    """

    X_train: Array
    y_train: Array
    X_test: Array
    y_test: Array


class LowRank(NamedTuple):
    """Synthetic vectors ``X`` (n, d) and ``queries`` (nq, d) of the same distribution, both float32."""

    X: NDArray[np.float32]
    queries: NDArray[np.float32]


# --- read and write ---


def read(path: str | os.PathLike[str], *, mmap: bool = False) -> Array | dict[str, Array]:
    """Return the array in a file, or a dict of the arrays where an npz file holds other than one.

    The name says the format: ``.npy``; ``.npz``; ``.idx``, ``.idx.gz`` and names such as
    ``train-images-idx3-ubyte.gz`` (MNIST's); ``.fvecs``, ``.bvecs``, ``.ivecs`` (TEXMEX: each row its int32
    length, then its values); ``.fbin``, ``.u8bin``, ``.i8bin``, ``.ibin`` (big-ann: uint32 n and d, then the
    rows).

    Parameters
    ----------
    path : str or path
        The file.
    mmap : bool
        Return a read-only view of the file instead of a copy in memory; not for compressed files (gz, npz).
        Numbers keep the file's byte order then, which is big-endian in idx files. Of a ``vecs`` file 4,096
        rows spread over it have their length checked, not all, so that a large file is not read through.

    Returns
    -------
    ndarray or dict of str to ndarray
        Of the file's dtype and shape, 2-D (n, d) for the ``vecs`` and ``bin`` formats.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FormatError
        The file is truncated, longer than its header says, corrupt, of another format, holds Python objects,
        is a git-lfs pointer, or has a name that says no known format. A ``vecs`` file has no header: cut
        between two rows it is a valid shorter file.
    InvalidInputError
        ``mmap`` asked of a compressed file.

    Notes
    -----
    Cost: one pass over the file; memory is that of the result.

    Examples
    --------
    >>> import tempfile, os, numpy as np
    >>> from npquant.datasets import read, write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "two.fvecs")
    ...     write(path, np.float32([[1, 2, 3], [4, 5, 6]]))
    ...     read(path)
    array([[1., 2., 3.],
           [4., 5., 6.]], dtype=float32)
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, f"No such file to read (looked from {Path.cwd()})", str(path))
    kind = _kind(file)
    if kind is None:
        raise FormatError(f"{path}: the name says no known format. Known are {_KNOWN}.")
    if mmap and kind in ("gz", ".npz"):
        raise InvalidInputError(f"mmap is True, but {path} is compressed and cannot be mapped: read it "
                                "without mmap, or write it as npy first.")
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        _refuse_foreign(stream, path)
        if kind == ".npz":
            return _read_npz(stream, path)
        if kind == "gz":
            return _read_idx_gz(stream, size, path)
        if kind == "idx":
            dtype, shape, offset = _idx_header(stream, path)
        elif kind == ".npy":
            dtype, shape, offset, fortran = _npy_header(stream, path)
            if fortran:
                _check_size(size, offset, dtype, shape, path)
                return _load(stream, file, dtype, shape[::-1], offset, mmap).T
        elif kind in _BIN:
            dtype, shape, offset = _bin_header(stream, _BIN[kind], path)
        else:
            return _read_vecs(stream, file, size, _VECS[kind], mmap)
        _check_size(size, offset, dtype, shape, path)
        array = _load(stream, file, dtype, shape, offset, mmap)
    return array if mmap or kind == ".npy" else _native(array)


def write(path: str | os.PathLike[str], array: ArrayLike | Mapping[str, ArrayLike]) -> None:
    """Write an array to a file of the format its name says; see :func:`read` for the formats.

    Parameters
    ----------
    path : str or path
        The file; an existing one is replaced in one step, once the new one is complete.
    array : array_like, or mapping of str to array_like (npz only)
        npy and npz (compressed) take any dtype but objects. idx takes uint8, int8, int16, int32, float32 and
        float64 with 1 … 255 dimensions. The ``vecs`` and ``bin`` formats take 2-D arrays whose values their
        type holds exactly: any float up to float32 in ``f…``, integers within range in the others. A ``vecs``
        file needs at least one row.

    Raises
    ------
    InvalidInputError
        The array does not fit the format, or the name says no known one. Nothing is written then.
    OSError
        The file cannot be written.

    Notes
    -----
    The same array gives the same bytes: neither times nor names of the machine go in.
    """
    file = Path(path)
    kind = _kind(file)
    if kind is None:
        raise InvalidInputError(f"path is {str(path)!r}, which says no known format. Known are {_KNOWN}.")
    if kind == ".npz":
        named = array if isinstance(array, Mapping) else {"arr_0": array}
        chunks = _npz_chunks({str(name): _plain(value, f"array {name!r}") for name, value in named.items()})
    elif isinstance(array, Mapping):
        raise InvalidInputError(f"array is a mapping, which only npz holds, and path is {str(path)!r}.")
    else:
        values = _plain(array, "array")
        if kind in ("idx", "gz"):
            chunks = _idx_chunks(values, compress=kind == "gz")
        elif kind == ".npy":
            chunks = _npy_chunks(values)
        elif kind in _BIN:
            chunks = _bin_chunks(_exactly(values, _BIN[kind], kind))
        else:
            chunks = _vecs_chunks(_exactly(values, _VECS[kind], kind))
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(file: Path) -> str | None:
    """Return ``idx``, ``gz`` (idx, compressed) or the suffix of a known format, by the name alone."""
    name = file.name.lower()
    if _IDX_NAME.search(name) or name in ("idx", "idx.gz"):
        return "gz" if name.endswith(".gz") else "idx"
    suffix = file.suffix.lower()
    return suffix if suffix in (".npy", ".npz", *_VECS, *_BIN) else None


def _refuse_foreign(stream: IO[bytes], path: _Path) -> None:
    start = stream.read(64)
    stream.seek(0)
    if not start:
        raise FormatError(f"{path} is empty.")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise FormatError(f"{path} is a git-lfs pointer, not the data: fetch it with 'git lfs pull'.")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise FormatError(f"{path} is an HTML page, not data: the download went wrong.")


def _exact(stream: IO[bytes], count: int, path: _Path, what: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise FormatError(f"{path} is truncated: it ends within {what}.")
    return data


def _count(shape: tuple[int, ...]) -> int:
    result = 1  # Python's integers, which do not overflow as a hostile header wishes
    for extent in shape:
        result *= extent
    return result


def _check_size(size: int, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], path: _Path) -> None:
    wanted = offset + _count(shape) * dtype.itemsize
    if size != wanted:
        what = "is truncated or corrupt" if size < wanted else "is longer than its header says, or corrupt"
        raise FormatError(f"{path} {what}: a header of {offset} bytes and {shape} values of {dtype} make "
                          f"{wanted} bytes, and there are {size}.")


def _load(stream: IO[bytes], file: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int,
          mmap: bool) -> Array:
    """Return the array at ``offset`` of a file whose size has been checked."""
    if mmap and _count(shape) * dtype.itemsize:  # nothing cannot be mapped
        return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)
    stream.seek(offset)
    result = _empty(shape, dtype, file)
    _fill(stream, result, file)
    return result


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], path: _Path) -> Array:
    try:
        return np.empty(shape, dtype=dtype)
    except ValueError as error:  # extents beyond any address, beside one of 0 that made the size fit
        raise FormatError(f"{path} is corrupt: its header claims shape {shape} ({error}).") from None


def _fill(stream: IO[bytes], array: Array, path: _Path) -> None:
    """Read the bytes of a contiguous array, a chunk at a time."""
    bytes_ = array.reshape(-1).view(np.uint8)
    for start in range(0, len(bytes_), _CHUNK):
        part = bytes_[start:start + _CHUNK]
        data = stream.read(len(part))
        if len(data) != len(part):
            raise FormatError(f"{path} is truncated: {start + len(data)} bytes of values, wanted "
                              f"{len(bytes_)}.")
        part[:] = np.frombuffer(data, dtype=np.uint8)


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


def _plain(values: ArrayLike, name: str) -> Array:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{name} is not an array with rows of one length: {error}.") from None
    if array.dtype.itemsize == 0:
        raise InvalidInputError(f"{name} has dtype {array.dtype}, whose values have no bytes to write.")
    if array.dtype.hasobject:
        raise InvalidInputError(f"{name} has dtype {array.dtype}: Python objects are never written, since "
                                "reading them would run code. Give numbers or strings of a fixed length.")
    return array


def _exactly(array: Array, dtype: np.dtype[Any], kind: str) -> Array:
    """Return a 2-D array as ``dtype``, refusing whatever would change a value."""
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidInputError(f"array has shape {array.shape}, wanted (n, d) with d at least 1 for {kind}.")
    if kind in _VECS and len(array) == 0:
        raise InvalidInputError(f"array has no rows, and {kind} cannot say so: write it as npy.")
    if max(array.shape) > np.iinfo(np.int32).max:
        raise InvalidInputError(f"array has shape {array.shape}, beyond what the header of {kind} holds.")
    if not np.can_cast(array.dtype, dtype, "safe"):
        if array.dtype.kind not in "iu" or dtype.kind not in "iu":
            raise InvalidInputError(f"array has dtype {array.dtype}, and {kind} holds {dtype}: values could "
                                    "change. Convert it first, for example with "
                                    f"array.astype(np.{dtype.name}).")
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InvalidInputError(f"array has values {array.min()} … {array.max()}, and {kind} holds "
                                    f"{dtype}: {limits.min} … {limits.max}.")
    return np.ascontiguousarray(array, dtype=dtype)


# --- the formats ---


def _idx_header(stream: IO[bytes], path: _Path) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    magic = _exact(stream, 4, path, "the header")
    if magic[:2] != b"\0\0" or magic[2] not in _IDX or magic[3] == 0:
        raise FormatError(f"{path} is not an idx file: it starts with {magic.hex(' ')}, wanted 00 00, a type "
                          f"({', '.join(f'{number:02x}' for number in _IDX)}) and the number of dimensions.")
    ndim = magic[3]
    if ndim > 32:
        raise FormatError(f"{path} claims {ndim} dimensions, and 32 is the most that is read.")
    shape = struct.unpack(f">{ndim}I", _exact(stream, 4 * ndim, path, "the header"))
    return np.dtype(_IDX[magic[2]]), shape, 4 + 4 * ndim


def _read_idx_gz(stream: IO[bytes], size: int, path: _Path) -> Array:
    import gzip
    import zlib

    if stream.read(2) != b"\x1f\x8b":
        raise FormatError(f"{path} is not gzipped: rename it without .gz if it has been unpacked already.")
    stream.seek(0)
    try:
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            inner: IO[bytes] = unpacked  # type: ignore[assignment]
            dtype, shape, offset = _idx_header(inner, path)
            wanted = offset + _count(shape) * dtype.itemsize
            if wanted > size * _DEFLATE_LIMIT:
                raise FormatError(f"{path} is truncated or corrupt: its header claims {shape} values of "
                                  f"{dtype}, more than its {size} bytes can hold even compressed.")
            array = _empty(shape, dtype, path)
            _fill(inner, array, path)
            if inner.read(1):  # reading to the end also checks gzip's own checksum
                raise FormatError(f"{path} is longer than its header says, or corrupt: {shape} values of "
                                  f"{dtype} are followed by more.")
    except (EOFError, OSError, zlib.error) as error:  # gzip.BadGzipFile is an OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"{path} is truncated or corrupt: {error}.") from None
    return _native(array)


def _idx_chunks(array: Array, compress: bool) -> Iterator[bytes | memoryview]:
    native = array.dtype.newbyteorder("=")
    if native not in _IDX_CODES or not 1 <= array.ndim <= 32 or max(array.shape) >= 2**32:
        raise InvalidInputError(f"array has shape {array.shape} and dtype {array.dtype}; idx holds "
                                f"{', '.join(map(str, _IDX_CODES))} in 1 to 32 dimensions. Convert it first.")
    number = _IDX_CODES[native]
    header = bytes((0, 0, number, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = _raw(np.ascontiguousarray(array, dtype=_IDX[number]))
    if compress:
        return _gzipped((header, raw))
    return iter((header, raw))


def _gzipped(chunks: tuple[bytes | memoryview, ...]) -> Iterator[bytes]:
    import zlib

    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header, without name and time
    for chunk in chunks:
        yield deflate.compress(chunk)
    yield deflate.flush()


def _raw(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _npy_header(stream: IO[bytes], path: _Path) -> tuple[np.dtype[Any], tuple[int, ...], int, bool]:
    """Return dtype, shape, offset of the values, and whether they stand in Fortran order."""
    import ast

    start = _exact(stream, 8, path, "the header")
    if start[:6] != _NPY_MAGIC:
        raise FormatError(f"{path} is not an npy file: it starts with {start[:6]!r}, wanted {_NPY_MAGIC!r}.")
    if start[6] not in (1, 2, 3):
        raise FormatError(f"{path} is npy of version {start[6]}.{start[7]}, and up to 3.0 is known: write "
                          "it anew.")
    width, code = (2, "<H") if start[6] == 1 else (4, "<I")
    length = struct.unpack(code, _exact(stream, width, path, "the header"))[0]
    if length > _LONGEST_NPY_HEADER:
        raise FormatError(f"{path} is corrupt: its header claims {length} bytes.")
    text = _exact(stream, length, path, "the header")
    try:
        header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin-1").strip())
        if set(header) != {"descr", "fortran_order", "shape"}:
            raise ValueError("wanted descr, fortran_order and shape")
        shape, fortran = header["shape"], header["fortran_order"]
        if not (isinstance(shape, tuple) and all(type(extent) is int and extent >= 0 for extent in shape)
                and len(shape) <= 32 and isinstance(fortran, bool)):
            raise ValueError(f"shape {shape!r}, fortran_order {fortran!r}")
        dtype = np.lib.format.descr_to_dtype(header["descr"])
        if dtype.subdtype is not None:
            raise ValueError(f"dtype {dtype} is itself an array")
    except (ValueError, TypeError, SyntaxError, KeyError, IndexError, AttributeError, MemoryError,
            RecursionError) as error:
        raise FormatError(f"{path} is corrupt: its npy header cannot be understood ({error}).") from None
    if dtype.hasobject:
        raise FormatError(f"{path} holds Python objects ({dtype}), which are never unpickled, since that "
                          "could run code. Save it as numbers.")
    if dtype.itemsize == 0 and _count(shape):
        raise FormatError(f"{path} holds {shape} values without a size ({dtype}).")
    return dtype, shape, 8 + width + length, fortran


def _npy_chunks(array: Array) -> Iterator[bytes | memoryview]:
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    ordered = array.T if fortran else np.ascontiguousarray(array).reshape(array.shape)
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": fortran,
              "shape": array.shape}
    text = repr(header)
    # Version 3 is for field names beyond Latin-1; it has two more bytes of length. Values begin at a multiple
    # of 64 bytes, for whoever maps the file.
    version, encoding, code = (1, "latin-1", "<H") if text.isascii() else (3, "utf-8", "<I")
    data = text.encode(encoding)
    prefix = 8 + struct.calcsize(code)
    data += b" " * (-(prefix + len(data) + 1) % 64) + b"\n"
    if len(data) > _LONGEST_NPY_HEADER:
        raise InvalidInputError(f"array has a dtype of {len(array.dtype.names or ())} fields, too many for "
                                "an npy header: write its fields as arrays of their own.")
    return iter((_NPY_MAGIC + bytes((version, 0)) + struct.pack(code, len(data)) + data, _raw(ordered)))


def _read_npz(stream: IO[bytes], path: _Path) -> Array | dict[str, Array]:
    import zipfile
    import zlib

    arrays = {}
    ordinary = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                where = f"{path} (array {name!r})"
                if entry.compress_type not in ordinary:  # others know no limit of what comes out
                    raise FormatError(f"{where} is compressed in a way that NumPy does not write.")
                if entry.file_size > entry.compress_size * _DEFLATE_LIMIT:
                    raise FormatError(f"{where} is corrupt: {entry.compress_size} bytes claim to be "
                                      f"{entry.file_size} unpacked.")
                with archive.open(entry) as member:
                    arrays[name] = _read_npz_member(member, entry.file_size, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
            struct.error) as error:
        if isinstance(error, FormatError) or (
                isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise  # a wrong offset inside the file shows as EINVAL
        raise FormatError(f"{path} is not a whole npz (zip) file: {error}.") from None
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _read_npz_member(member: IO[bytes], size: int, where: str) -> Array:
    dtype, shape, offset, fortran = _npy_header(member, where)
    _check_size(size, offset, dtype, shape, where)
    array = _empty(shape[::-1] if fortran else shape, dtype, where)
    _fill(member, array, where)
    return array.T if fortran else array


def _npz_chunks(arrays: dict[str, Array]) -> Iterator[bytes | memoryview]:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            # A date of its own, the earliest a zip can tell, so that the same arrays give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as member:
                for chunk in _npy_chunks(array):
                    member.write(chunk)
    return iter((buffer.getbuffer(),))


def _bin_header(stream: IO[bytes], dtype: np.dtype[Any],
                path: _Path) -> tuple[np.dtype[Any], tuple[int, int], int]:
    n, d = struct.unpack("<2I", _exact(stream, 8, path, "the header"))
    if d == 0:
        raise FormatError(f"{path} is corrupt, or not a big-ann file: its header says {n} rows of dimension "
                          "0.")
    return dtype, (n, d), 8


def _bin_chunks(array: Array) -> Iterator[bytes | memoryview]:
    return iter((struct.pack("<2I", *array.shape), _raw(array)))


def _read_vecs(stream: IO[bytes], file: Path, size: int, dtype: np.dtype[Any], mmap: bool) -> Array:
    d = struct.unpack("<i", _exact(stream, 4, file, "the first row's length"))[0]
    stride = 4 + d * dtype.itemsize
    if d <= 0 or size % stride or stride >= 2**31:  # NumPy's limit of one row
        raise FormatError(f"{file} is truncated, corrupt or of another format: its first row claims "
                          f"dimension {d}, and {size} bytes are not whole rows of {stride}." if d > 0 else
                          f"{file} is corrupt or of another format: its first row claims dimension {d}.")
    n = size // stride
    row = np.dtype([("d", "<i4"), ("values", dtype, (d,))])
    if mmap:
        rows = np.memmap(file, dtype=row, mode="r", shape=(n,))
        some = np.unique(np.linspace(0, n - 1, min(n, _MAPPED_ROWS_CHECKED)).astype(np.int64))
        _check_lengths(rows["d"][some], d, some, file)
        values: Array = rows["values"]
        return values
    result = np.empty((n, d), dtype=dtype)
    stream.seek(0)
    step = max(1, _CHUNK // stride)
    for start in range(0, n, step):
        count = min(step, n - start)
        rows_read = np.frombuffer(_exact(stream, count * stride, file, "a row"), dtype=row)
        _check_lengths(rows_read["d"], d, np.arange(start, start + count), file)
        result[start:start + count] = rows_read["values"]
    return _native(result)


def _check_lengths(lengths: Array, d: int, rows: Array, file: Path) -> None:
    bad = np.flatnonzero(lengths != d)
    if len(bad):
        raise FormatError(f"{file} is corrupt or of another format: row {rows[bad[0]]} claims dimension "
                          f"{lengths[bad[0]]}, the first row {d}.")


def _vecs_chunks(array: Array) -> Iterator[bytes | memoryview]:
    n, d = array.shape
    row = np.dtype([("d", "<i4"), ("values", array.dtype, (d,))])
    step = max(1, _CHUNK // row.itemsize)
    for start in range(0, n, step):
        part = np.empty(min(step, n - start), dtype=row)
        part["d"] = d
        part["values"] = array[start:start + step]
        yield _raw(part)


# --- labelled data ---


def load_digits() -> Labelled:
    """Return the 1,797 handwritten digits of 8 × 8 pixels that are part of the package.

    Every fifth digit of each class, in the order of the data set, is a test digit, so all classes are
    balanced.

    Returns
    -------
    Labelled
        ``X_train`` (1442, 64) and ``X_test`` (355, 64) float32, whole numbers 0 … 16 (ink in each 4 × 4 block
        of a 32 × 32 bitmap); ``y_train`` and ``y_test`` int64 classes 0 … 9.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, doi:10.24432/C50P49; its test set, as scikit-learn distributes it. Licence: CC BY 4.0.

    Examples
    --------
    >>> from npquant.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.X_train.shape, digits.X_test.shape
    ((1442, 64), (355, 64))
    """
    data = read(Path(__file__).with_name("data") / "digits.npz")
    if not isinstance(data, dict):
        raise FormatError("npquant/data/digits.npz is not the one that npquant was made with: install it "
                          "anew.")
    X, y = data["X"].astype(np.float32), data["y"].astype(np.int64)
    test = np.zeros(len(y), dtype=np.bool_)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    return Labelled(X[~test], y[~test], X[test], y[test])


def load_labelled(path: str | os.PathLike[str], *, random_state: int = 0) -> Labelled:
    """Return the labelled vectors in a folder or file, in two parts.

    Parameters
    ----------
    path : str or path
        Either a folder of four idx files as MNIST and its kin come in, gzipped or not: ``train-images…``,
        ``train-labels…``, ``t10k-images…``, ``t10k-labels…`` (``test-`` will do for ``t10k-``).
        Or an npz file with ``X_train``, ``y_train``, ``X_test``, ``y_test`` (``x_…`` will do for ``X_…``).
        Or an npz file with ``X`` and ``y``, ``x`` and ``y``, or ``data`` and ``target``, which is then split:
        of the rows in the order of ``numpy.random.default_rng(random_state).permutation(n)`` the first n // 5
        are the test part; both parts keep the file's order. Other arrays in the file are left alone.
    random_state : int
        The seed of that split.

    Returns
    -------
    Labelled
        Images and such are flattened to (n, pixels) and keep the file's dtype; whole-number classes are
        int64.

    Raises
    ------
    FileNotFoundError
        There is no such folder or file.
    FormatError
        Files or arrays are missing (the message lists those found), do not fit one another, or are broken.

    See Also
    --------
    read : the formats.
    """
    place = Path(path)
    if place.is_dir():
        return _from_folder(place)
    if place.suffix.lower() != ".npz" and place.exists():
        raise FormatError(f"{path} is neither a folder of idx files nor an npz file.")
    data = read(place)
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds a single array: labelled data needs vectors and labels, as X and y.")
    for prefix in ("X", "x"):
        names = (f"{prefix}_train", "y_train", f"{prefix}_test", "y_test")
        if all(name in data for name in names):
            return _labelled(path, *(data[name] for name in names))
    for vectors, classes in (("X", "y"), ("x", "y"), ("data", "target")):
        if vectors in data and classes in data:
            return _split(path, data[vectors], data[classes], random_state)
    raise FormatError(f"{path} holds the arrays {', '.join(sorted(map(repr, data))) or '(none)'}; wanted "
                      "X_train, y_train, X_test and y_test, or X and y, or data and target.")


def _from_folder(folder: Path) -> Labelled:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    arrays = []
    for part, pattern in (("train", "train"), ("t10k", "t10k|test")):
        for what in ("images", "labels"):
            fits = [name for name in found if _kind(Path(name)) in ("idx", "gz")
                    and re.search(rf"(^|[-_.])({pattern})[-_.]{what}", name.lower())]
            plain = [name for name in fits if not name.lower().endswith(".gz")] or fits
            if len(plain) != 1:
                raise FormatError(f"{folder} has {len(plain)} files like {part}-{what}-idx…, wanted one. "
                                  f"Files found: {', '.join(found[:20]) or '(none)'}.")
            array = read(folder / plain[0])
            arrays.append(np.asarray(array))
    return _labelled(folder, *arrays)


def _labelled(path: _Path, X_train: Array, y_train: Array, X_test: Array, y_test: Array) -> Labelled:
    train, test = _pair(path, X_train, y_train, "training"), _pair(path, X_test, y_test, "test")
    if train[0].shape[1] != test[0].shape[1] or train[1].shape[1:] != test[1].shape[1:]:
        raise FormatError(f"{path}: training rows have shapes {train[0].shape[1:]} and "
                          f"{train[1].shape[1:]}, test rows {test[0].shape[1:]} and {test[1].shape[1:]}: "
                          "they must be alike.")
    return Labelled(*train, *test)


def _pair(path: _Path, X: Array, y: Array, part: str) -> tuple[Array, Array]:
    if X.ndim < 2 or X.dtype.kind not in "fiub" or 0 in X.shape:
        raise FormatError(f"{path}: the {part} vectors have shape {X.shape} and dtype {X.dtype}, wanted "
                          "real numbers (n, …), neither of them 0.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or len(y) != len(X):
        raise FormatError(f"{path}: {len(X)} {part} vectors, but labels of shape {y.shape}: one row for "
                          "each wanted.")
    return X.reshape(len(X), -1), y.astype(np.int64) if y.dtype.kind in "iu" else y


def _split(path: _Path, X: Array, y: Array, random_state: int) -> Labelled:
    X, y = _pair(path, X, y, "labelled")
    if len(X) < 5:
        raise FormatError(f"{path} holds {len(X)} labelled vectors, and 5 are the fewest that can be split.")
    seed = _checks.integer(random_state, "random_state", low=0)
    test = np.zeros(len(X), dtype=np.bool_)
    test[np.random.default_rng(seed).permutation(len(X))[:len(X) // 5]] = True
    return Labelled(X[~test], y[~test], X[test], y[test])


# --- synthetic vectors ---


def synthetic_low_rank(n: int, *, queries: int = 1000, seed: int = 7, d: int = 128, rank: int = 40,
                       threads: int | None = None) -> LowRank:
    """Return Gaussian vectors near a subspace, ``x = z W + 0.4 e``, a stand-in for a million descriptors.

    ``z`` is standard normal in ``rank`` dimensions, ``e`` in ``d``, ``W`` (rank, d) standard normal and
    common to all; each coordinate has variance near rank + 0.16.

    Parameters
    ----------
    n : int
        How many vectors.
    queries : int
        How many queries, drawn the same way with the same ``W``; may be 0.
    seed : int
        Of ``W`` and of all else.
    d, rank : int
        Dimension, and that of the subspace.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Returns
    -------
    LowRank
        ``X`` (n, d) and ``queries`` (queries, d), float32. The first rows are the same whatever ``n`` and
        ``queries`` are. (Same machine, same NumPy: its random streams and its matrix product may change.)

    Raises
    ------
    InvalidInputError
        A number below 1 (``queries`` and ``seed``: below 0).

    Notes
    -----
    Cost: rank + d normal numbers and 2 · rank · d operations a vector; about 2 s a million on two threads.
    Beside the result it needs 6 MB a thread.

    Examples
    --------
    >>> from npquant.datasets import synthetic_low_rank
    >>> X, queries = synthetic_low_rank(1000, queries=10)
    >>> X.shape, queries.shape, X.dtype
    ((1000, 128), (10, 128), dtype('float32'))
    """
    n, queries = _checks.integer(n, "n"), _checks.integer(queries, "queries", low=0)
    d, rank = _checks.integer(d, "d"), _checks.integer(rank, "rank")
    seed, threads = _checks.integer(seed, "seed", low=0), _checks.threads(threads)
    W = _normal(seed, (0,), (rank, d))

    def drawn(count: int, which: int) -> NDArray[np.float32]:
        result = np.empty((count, d), dtype=np.float32)

        def fill(start: int, stop: int) -> None:
            # Each block has a stream of its own and is always drawn whole: neither the count nor the threads
            # show.
            block = start // _SYNTHETIC_ROWS
            x = _normal(seed, (which, block, 1), (_SYNTHETIC_ROWS, d))
            x *= np.float32(0.4)
            x += _normal(seed, (which, block, 0), (_SYNTHETIC_ROWS, rank)) @ W
            result[start:stop] = x[:stop - start]

        run_blocks(fill, count, _SYNTHETIC_ROWS, threads)
        return result

    return LowRank(drawn(n, 1), drawn(queries, 2))


def _normal(seed: int, key: tuple[int, ...], shape: tuple[int, int]) -> NDArray[np.float32]:
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return stream.standard_normal(shape, dtype=np.float32)
