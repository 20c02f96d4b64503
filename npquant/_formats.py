"""The bytes of the file formats that :mod:`npquant.datasets` reads and writes; its promises are kept here."""

from __future__ import annotations

import ast
import errno
import io
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npquant.errors import FormatError, InvalidInputError

Array = NDArray[Any]
_Path = str | os.PathLike[str]

_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_CODES = {np.dtype(code).newbyteorder("="): number for number, code in _IDX.items()}
_IDX_NAME = re.compile(r"[-.]idx\d*(-[a-z0-9]+)?(\.gz)?$")
_VECS: dict[str, np.dtype[Any]] = {
    ".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}
_BIN: dict[str, np.dtype[Any]] = {
    ".fbin": np.dtype("<f4"), ".u8bin": np.dtype("u1"), ".i8bin": np.dtype("i1"), ".ibin": np.dtype("<i4")}
KNOWN = ("idx, idx.gz (also names such as train-images-idx3-ubyte.gz), npy, npz, "
         + ", ".join(suffix[1:] for suffix in (*_VECS, *_BIN)))

# Deflate cannot make more than 1,032 bytes out of one: a claim beyond that is a lie, told before memory is
# taken.
_DEFLATE_LIMIT = 1032
_NPY_MAGIC = b"\x93NUMPY"
_LONGEST_NPY_HEADER = 10_000
_CHUNK = 1 << 24
_MAPPED_ROWS_CHECKED = 4096


def kind_of(file: Path) -> str | None:
    """Return ``idx``, ``gz`` (idx, compressed) or the suffix of a known format, by the name alone."""
    name = file.name.lower()
    if _IDX_NAME.search(name) or name in ("idx", "idx.gz"):
        return "gz" if name.endswith(".gz") else "idx"
    suffix = file.suffix.lower()
    return suffix if suffix in (".npy", ".npz", *_VECS, *_BIN) else None


def read(stream: IO[bytes], path: _Path, kind: str, mmap: bool) -> Array | dict[str, Array]:
    """Return what is in an open file, whose name is of that kind; see :func:`npquant.datasets.read`."""
    file = Path(path)
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


def chunks(array: ArrayLike | Mapping[str, ArrayLike], kind: str, path: _Path) -> Iterator[bytes | memoryview]:
    """Return the bytes of a file of that kind, in pieces; see :func:`npquant.datasets.write`."""
    if kind == ".npz":
        named = array if isinstance(array, Mapping) else {"arr_0": array}
        return _npz_chunks({str(name): _plain(value, f"array {name!r}") for name, value in named.items()})
    if isinstance(array, Mapping):
        raise InvalidInputError(f"array is a mapping, which only npz holds, and path is {str(path)!r}.")
    values = _plain(array, "array")
    if kind in ("idx", "gz"):
        return _idx_chunks(values, compress=kind == "gz")
    if kind == ".npy":
        return _npy_chunks(values)
    if kind in _BIN:
        return _bin_chunks(_exactly(values, _BIN[kind], kind))
    return _vecs_chunks(_exactly(values, _VECS[kind], kind))


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
