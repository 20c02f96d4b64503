r"""The bytes of an ``.npq`` file: a checked JSON header and aligned arrays, written as a whole or not at all.

What the header's tree means is :mod:`npquant.persist`'s affair; here it is a value of JSON.

All numbers are little-endian. ``H`` is the header's length; *up* is rounding up to a multiple of 64. ::

    byte   length
    0      8         89 4E 50 51 0D 0A 1A 0A, which is "\x89NPQ\r\n\x1a\n"
    8      4         format version, uint32: 1
    12     4         CRC-32 (zlib's) of the header's H bytes, uint32
    16     8         H, uint64
    24     H         the header: JSON in UTF-8
    24+H             zeros up to D = up(24 + H), where there are arrays
    D                the arrays, in the order of the header; each begins at the next multiple of 64, zeros
                     between them; the file ends with the last one's last byte (without arrays, at 24 + H)

These first 24 bytes, and the header's first three members, keep their meaning in every future version. A
reader reads its own version and all older ones, and refuses newer ones. The header is ::

    {"format_version": 1, "library": "npquant", "library_version": "0.1.0",
     "arrays": [{"dtype": "float32", "shape": [256, 16], "offset": 0, "crc32": "0f1e2d3c"}, …],
     "root": node}

``dtype`` is one of bool, uint8, int8, uint16, int16, uint32, int32, uint64, int64, float16, float32, float64;
elements are in C order; ``offset`` is counted from D; ``crc32`` is that of the array's bytes, 8 hexadecimal
digits. An array without elements has no bytes, and an offset like any other.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from npquant import __version__
from npquant.errors import FormatError, InvalidInputError

Array = NDArray[Any]

FORMAT_VERSION = 1
MAX_DEPTH = 64  # of a tree
MAX_NDIM = 32  # NumPy 1's limit
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64")}

_MAGIC = b"\x89NPQ\r\n\x1a\n"  # like PNG's: a transfer "as text" breaks it, and shows
_PRELUDE = struct.Struct("<8sIIQ")
_ALIGN = 64
_CHUNK = 1 << 20  # bytes taken at once, so that the checksum and the disk find them in the cache
_MAX_NESTING = 3 * MAX_DEPTH + 8  # an object is three JSON levels


class Entry(NamedTuple):
    """An array of a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # in the file
    nbytes: int
    crc: int


# -------------------------------------------------------------------------------- paths and files


def _name(path: Any) -> str:
    name = path if isinstance(path, str) else os.fspath(path) if isinstance(path, os.PathLike) else None
    if not isinstance(name, str):
        raise InvalidInputError(f"path must be a str or an os.PathLike of str, got {path!r}.")
    if "\0" in name:
        raise InvalidInputError(f"path {name!r} contains a NUL character, which no file's name can.")
    return name


@contextlib.contextmanager
def opened(path: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Open an ordinary file to be read: a context that gives it and its name."""
    name = _name(path)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"There is no such file (seen from {os.getcwd()!r})",
                                name) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "This is a folder: give the name of a .npq file in it", name)
    if not stat.S_ISREG(mode):  # to open a pipe would wait for its other end
        raise InvalidInputError(f"{name!r} is not an ordinary file: copy its content to one, and load that.")
    with open(name, "rb") as file:
        yield file, name


def target_of(path: Any) -> str:
    """Return the file that writing to ``path`` would make or replace; raise where it cannot."""
    name = _name(path)
    target = os.path.realpath(name)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "This is a folder: give the name of a file in it", name)
    if os.path.exists(target) and not os.path.isfile(target):
        raise InvalidInputError(f"{name!r} is not an ordinary file, and would be replaced: give another.")
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"There is no folder {folder!r}: make it first, to save", name)
    return target


# ---------------------------------------------------------------------------------------- writing


def replace(target: str, root: Any, arrays: list[Array]) -> None:
    """Write a file beside ``target``, and put it in its place when it is whole and on the disk."""
    temporary = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}.npq.tmp")
    try:
        with open(temporary, "xb") as file:  # not tempfile, which gives the owner alone the right to read
            write(file, root, arrays)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:  # also KeyboardInterrupt: no half file stays
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write(file: BinaryIO, root: Any, arrays: list[Array]) -> None:
    """Write the bytes of a file, whose header's tree is ``root``."""
    entries: list[dict[str, Any]] = []
    end = 0
    for array in arrays:
        start = up(end)
        entries.append({"dtype": array.dtype.name, "shape": list(array.shape), "offset": start,
                        "crc32": "0" * 8})
        end = start + array.nbytes

    def header() -> bytes:
        document = {"format_version": FORMAT_VERSION, "library": "npquant", "library_version": __version__,
                    "arrays": entries, "root": root}
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    # The checksums are known at the end; they have a fixed length, so that each array is converted and read
    # only once.
    length = len(header())
    position = _PRELUDE.size + length
    file.write(bytes(position))
    data = up(position)
    for array, entry in zip(arrays, entries):
        start = data + entry["offset"]
        file.write(bytes(start - position))
        crc = 0
        flat = np.asarray(array, dtype=DTYPES[array.dtype.name], order="C").reshape(-1).view(np.uint8)
        for i in range(0, flat.size, _CHUNK):
            crc = zlib.crc32(flat[i:i + _CHUNK].data, crc)
            file.write(flat[i:i + _CHUNK].data)
        entry["crc32"] = f"{crc:08x}"
        position = start + flat.size
        del flat  # where it is a copy, before the next one is made
    file.seek(0)
    text = header()
    file.write(_PRELUDE.pack(_MAGIC, FORMAT_VERSION, zlib.crc32(text), length) + text)


def up(position: int) -> int:
    """Return the next multiple of 64."""
    return -(-position // _ALIGN) * _ALIGN


# ---------------------------------------------------------------------------------------- reading


def _damaged(name: str, what: str) -> FormatError:
    return FormatError(f"{name}: {what}. Copy or download it again.")


def impossible(name: str, what: str) -> FormatError:
    """Return the error of a file whose content no npquant wrote."""
    return FormatError(f"{name}: impossible: {what}.")


def read_header(file: BinaryIO, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """Return the header and where each array stands, checked against the file's size."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(_PRELUDE.size)
    if start[:8] != _MAGIC:
        raise FormatError(f"{name}: {_foreign(start, file, size)}")
    if len(start) < _PRELUDE.size:
        raise _damaged(name, f"cut short, {size} bytes are left")
    _, version, crc, length = _PRELUDE.unpack(start)
    if length > size - _PRELUDE.size:
        raise _damaged(name, f"cut short or damaged: the header has {length} bytes and the file {size}")
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise _damaged(name, "damaged: the header's checksum differs")
    header = _parse(text, name)
    writer = header.get("library_version")
    if header.get("format_version") != version or version < 1 or type(writer) is not str:
        raise FormatError(f"{name}: damaged: the header contradicts itself about the version.")
    if version > FORMAT_VERSION:
        raise FormatError(f"{name}: written by npquant {writer[:40]!r} in format version {version}; this "
                          f"npquant ({__version__}) reads versions 1 to {FORMAT_VERSION}: upgrade it.")
    if "root" not in header or type(header.get("arrays")) is not list:
        raise impossible(name, "the header has no root or no arrays")
    return header, _layout(header["arrays"], _PRELUDE.size + length, size, name)


def _parse(text: bytes, name: str) -> dict[str, Any]:
    # Before parsing: the parser recurses, and only a setting of the program would stop it.
    if _nesting(text) > _MAX_NESTING:
        raise impossible(name, f"the header is nested more than {_MAX_NESTING} deep")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        header = json.loads(text.decode(), parse_constant=refuse)
    except ValueError as error:
        raise impossible(name, f"the header is not JSON in UTF-8: {error}") from None
    if type(header) is not dict:
        raise impossible(name, "the header is not an object")
    return header


# A string, closed or not; possessive, so that it is found in linear time.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_BESIDES_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _nesting(text: bytes) -> int:
    deepest = depth = 0
    for byte in _STRING.sub(b"", text).translate(None, _BESIDES_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _layout(raw: list[Any], head: int, size: int, name: str) -> list[Entry]:
    """Return the arrays' entries: known dtypes, in order, without overlap, inside the file and filling it."""
    data = up(head) if raw else head
    end = 0
    entries = []
    for i, item in enumerate(raw):
        if type(item) is not dict or set(item) != {"dtype", "shape", "offset", "crc32"}:
            raise impossible(name, f"array {i} has not the four members of an array")
        shape, crc = item["shape"], item["crc32"]
        dtype = DTYPES.get(item["dtype"]) if type(item["dtype"]) is str else None
        if dtype is None:
            raise impossible(name, f"array {i} has the dtype {str(item['dtype'])[:40]!r}")
        if (type(shape) is not list or len(shape) > MAX_NDIM
                or not all(type(n) is int and n >= 0 for n in shape)
                # NumPy refuses this also where another dimension is 0.
                or math.prod(n or 1 for n in shape) * dtype.itemsize >= 2**63):
            raise impossible(name, f"array {i} has the shape {str(shape)[:80]}")
        if type(crc) is not str or not re.fullmatch("[0-9a-f]{8}", crc):
            raise impossible(name, f"array {i} has the checksum {str(crc)[:40]!r}")
        if type(item["offset"]) is not int or item["offset"] != up(end):
            raise impossible(name, f"array {i} begins at {str(item['offset'])[:40]} instead of {up(end)}: "
                                    "it overlaps the one before, or leaves a hole")
        start = data + up(end)
        nbytes = math.prod(shape) * dtype.itemsize
        if start + nbytes > size:
            raise _damaged(name, f"cut short or damaged: array {i} takes {nbytes} bytes at {start}, and the "
                                 f"file has {size}")
        entries.append(Entry(dtype, tuple(shape), start, nbytes, int(crc, 16)))
        end = up(end) + nbytes
    if data + end != size:
        raise _damaged(name, f"damaged: it has {size} bytes, and its content {data + end}")
    return entries


def read(file: BinaryIO, name: str, entries: list[Entry]) -> list[Array]:
    """Return the arrays, read and compared with their checksums."""
    arrays = []
    for i, entry in enumerate(entries):
        array = np.empty(entry.shape, entry.dtype)
        flat = array.reshape(-1).view(np.uint8)
        file.seek(entry.start)
        crc = at = 0
        while at < flat.size:
            block = flat[at:at + _CHUNK].data
            got = file.readinto(block)  # type: ignore[attr-defined]
            if not got:
                raise FormatError(f"{name}: cut short while it was read.")
            crc = zlib.crc32(block[:got], crc)
            at += got
        if crc != entry.crc:
            raise _damaged(name, f"damaged: the checksum of array {i} differs")
        # Moves bytes on big-endian machines only.
        arrays.append(array.astype(entry.dtype.newbyteorder("="), copy=False))
    return arrays


def mapped(file: BinaryIO, entries: list[Entry]) -> list[Array]:
    """Return the arrays as read-only views of the mapped file."""
    # A numpy.memmap rather than an mmap.mmap: joblib knows it, and sends the file's name, not its bytes.
    whole = np.memmap(file, dtype=np.uint8, mode="r")
    return [whole[e.start:e.start + e.nbytes].view(np.ndarray).view(e.dtype).reshape(e.shape)
            for e in entries]


def _foreign(start: bytes, file: BinaryIO, size: int) -> str:
    """Return a sentence on what a file without the magic looks like."""
    if size == 0:
        return "empty: nothing was written to it, or its download failed."
    head = start + file.read(64)
    if len(head) < 8 and _MAGIC.startswith(head):
        return f"cut short, {size} bytes are left. Copy or download it again."
    if head.startswith(b"\x89NPQ") or head.startswith(b"NPQ\r\n"):
        return "an .npq file damaged by a transfer in text mode. Copy it again, in binary mode."
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return f"not an .npq file: it looks like {what}."
    if re.match(rb"I[A-Za-z][A-Za-z0-9]{2}", head) and 0 < int.from_bytes(head[4:8], "little") < 1 << 20:
        return "not an .npq file: it looks like an index of faiss, which faiss.read_index reads."
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "not an .npq file: it looks like safetensors."
    return f"not an .npq file: it begins with {head[:8]!r}."


_FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer, which stands for the file itself: run `git lfs pull`"),
    (b"\x93NUMPY", "an .npy file, which numpy.load reads"),
    (b"PK\x03\x04", "a zip or .npz file, which zipfile or numpy.load read"),
    (b"PK\x05\x06", "an empty zip file"),
    *((b"\x80" + bytes([protocol]), "a pickle, which npquant never reads") for protocol in range(2, 6)),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, which h5py reads"),
    (b"\x1f\x8b", "compressed by gzip: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: decompress it first"),
    (b"<", "a web page or XML: perhaps the download was answered by an error page"),
)
