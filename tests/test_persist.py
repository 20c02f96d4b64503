"""The file format: what goes in comes out, and nothing else is believed."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import pathlib
import pickle
import stat
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npquant import _container, persist
from npquant._base import Estimator
from npquant.errors import FormatError, InvalidInputError

core = pytest.mark.core
few = settings(max_examples=60, deadline=None,
               suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


# ------------------------------------------------------------------------------------- things to be saved


class Model(Estimator):
    """Stored by its attributes."""

    def __init__(self, m=8, inner=None, random_state=None, threads=None, callback=None):
        self.m, self.inner, self.random_state = m, inner, random_state
        self.threads, self.callback = threads, callback

    def fit(self, rows=4):
        self.n_features_in_ = 3
        self.codebooks_ = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        self.names_ = np.array(["a", "bé"])
        self.history_ = [0.5, math.nan]
        self._scratch_ = "not stored"
        self.scratch = "not stored"
        return self

    @property
    def read_only_(self):
        return 1


class Hooked(Estimator):
    """Stored by its own words."""

    def __init__(self, k=2):
        self.k = k

    def fit(self):
        self.n_features_in_ = 1
        self.tables_ = np.arange(self.k, dtype=np.uint8)
        return self

    def _get_state(self):
        return {"tables": self.tables_}

    def _set_state(self, state):
        if state["tables"].shape != (self.k,):
            raise ValueError("as many tables as k are wanted")
        self.tables_ = state["tables"]
        self.n_features_in_ = 1


class Index:
    """Neither an estimator nor a dataclass."""

    def __init__(self, codes):
        self.codes = codes

    def _get_state(self):
        return {"codes": self.codes, "metric": "l2"}

    @classmethod
    def _from_state(cls, state):
        if state["metric"] not in ("l2", "ip"):
            raise InvalidInputError("what metric is this?")
        return cls(state["codes"])


@dataclasses.dataclass(frozen=True)
class Loss:
    margin: float = 1.0
    weights: np.ndarray | None = None
    twice: float = dataclasses.field(init=False, default=2.0)


class Odd:
    pass


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    table = {cls.__name__: f"{__name__}:{cls.__qualname__}" for cls in (Model, Hooked, Index, Loss, Odd)}
    monkeypatch.setattr(persist, "KINDS", table)
    return table


def a_model():
    return Model(m=4, inner=Hooked(3).fit(), random_state=np.random.default_rng(1)).fit()


def same(a, b):
    """Whether two trees are one bit for bit."""
    if type(a) is not type(b) and not isinstance(a, np.ndarray):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OU":
            return a.dtype.kind == b.dtype.kind and a.shape == b.shape and a.tolist() == b.tolist()
        a, b = (x if x.dtype.isnative else x.byteswap().view(x.dtype.newbyteorder("=")) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state)
    if hasattr(a, "__dict__"):
        return same(dict(sorted(vars(a).items())), dict(sorted(vars(b).items())))
    return a == b


DTYPES = [np.dtype(order + code) for order in "<>"
          for code in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")]


@st.composite
def arrays(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = draw(st.sampled_from(DTYPES))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    array = np.ndarray(shape, dtype, buffer=bytearray(raw))
    how = draw(st.sampled_from(["plain", "fortran", "strided", "backwards", "read-only"]))
    if how == "fortran":
        array = np.asfortranarray(array) if array.ndim else array
    elif how == "strided" and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif how == "backwards" and array.ndim:
        array = array[::-1]
    elif how == "read-only":
        array.flags.writeable = False
    return array


texts = hnp.arrays(st.just(np.dtype("U3")), hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
                   elements=st.text(max_size=3).filter(lambda s: "\0" not in s))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-2**200, 2**200), st.floats(),
                   st.text(), arrays(), texts, texts.map(lambda a: a.astype(object)),
                   st.integers(0, 99).map(np.random.default_rng))
trees = st.recursive(leaves, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=4), inner, max_size=4),
    inner.map(Index), inner.map(lambda v: Model(m=v)),
    inner.map(lambda v: Loss(margin=v))), max_leaves=8)


def every_array(tree):
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from every_array(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from every_array(value)
    elif hasattr(tree, "__dict__"):
        yield from every_array(vars(tree))


# ------------------------------------------------------------------------------------- round trips


@core
@few
@given(trees)
@example([-0.0, math.inf, -math.inf, struct.unpack("<d", b"\1\0\0\0\0\0\xf8\xff")[0], 5e-324, 1e16, 2.0])
@example([2**53, -2**53, 2**53 - 1, 10**5000, -(10**5000), True, 1, 1.0])
@example({"dict": {"array": 0}, "": (), "tuple": [], "object": {}, 'ü"\\\n[{': None})
@example([np.zeros(()), np.zeros((0, 3)), np.zeros((2, 0), ">i8"), np.zeros(0, "U4"), np.zeros((), "U2")])
def test_what_goes_in_comes_out(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.npq")
        before = copy.deepcopy(tree)
        persist.save(tree, path)
        assert os.listdir(folder) == ["a.npq"]
        loaded = persist.load(path)
        assert same(tree, loaded)
        assert same(before, tree)
        for array in every_array(loaded):
            assert array.dtype.isnative
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert array.flags.owndata or array.dtype.kind == "O"
        mapped = persist.load(path, mmap=True)
        assert same(tree, mapped)
        for array in every_array(mapped):
            if array.dtype.kind not in "OU":
                assert type(array) is np.ndarray
                assert not array.flags.writeable
                assert array.ctypes.data % 64 == 0 or array.size == 0
                with pytest.raises(ValueError):
                    array.flags.writeable = True
        # A mapped thing can be saved again, also over itself, and the bytes are the same.
        first = pathlib.Path(path).read_bytes()
        persist.save(mapped, path)
        assert pathlib.Path(path).read_bytes() == first
        assert same(tree, mapped)
        description = persist.describe(path)
        assert description["bytes"] == len(first)
        assert all(entry["name"] or tree is not None for entry in description["arrays"])


@core
def test_scalars_of_numpy_come_back_as_pythons(tmp_path):
    values = [np.float32(0.1), np.float64(-0.0), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True),
              np.str_("ü"), np.float16(1.5)]
    persist.save(values, tmp_path / "a")
    assert same(persist.load(tmp_path / "a"), [v.item() for v in values])


@core
def test_an_estimator_comes_back_with_parameters_and_what_it_learned(tmp_path):
    model = a_model()
    model.threads = 3
    persist.save(model, tmp_path / "a.npq")
    loaded = persist.load(tmp_path / "a.npq")
    assert type(loaded) is Model
    assert loaded.threads is None
    assert set(vars(model)) - set(vars(loaded)) == {"scratch", "_scratch_"}
    for name in vars(loaded):
        assert name == "threads" or same(getattr(model, name), getattr(loaded, name)), name
    assert type(loaded.inner) is Hooked
    assert loaded.inner.k == 3
    assert loaded.inner.tables_.tolist() == [0, 1, 2]


@core
@pytest.mark.parametrize("unfitted", [Model(m=2), Hooked(k=5)])
def test_an_unfitted_estimator_stays_unfitted(tmp_path, unfitted):
    persist.save(unfitted, tmp_path / "a")
    loaded = persist.load(tmp_path / "a")
    assert not loaded.__sklearn_is_fitted__()
    assert loaded.get_params() == unfitted.get_params()


@core
def test_dataclasses_and_objects_with_states(tmp_path):
    persist.save([Loss(0.25, np.ones(2)), Index(np.eye(2))], tmp_path / "a")
    loss, index = persist.load(tmp_path / "a")
    assert loss.margin == 0.25
    assert loss.weights.tolist() == [1, 1]
    assert loss.twice == 2
    assert type(index) is Index
    assert index.codes.tolist() == [[1, 0], [0, 1]]


@core
@pytest.mark.parametrize("name", persist._BIT_GENERATORS)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_generator_goes_on_where_it_was(tmp_path, name, mmap):
    rng = np.random.Generator(getattr(np.random, name)(np.random.SeedSequence([1, 2**70], spawn_key=(3,))))
    rng.spawn(2)
    rng.integers(9, size=3, dtype=np.uint32)
    rng.random()
    persist.save(rng, tmp_path / "a")
    loaded = persist.load(tmp_path / "a", mmap=mmap)
    for _ in range(2):
        assert loaded.random(700).tobytes() == rng.random(700).tobytes()
        assert same(*(g.integers(9, size=3, dtype=np.uint32) for g in (rng, loaded)))
        assert loaded.spawn(1)[0].random() == rng.spawn(1)[0].random()


def test_the_file_is_what_the_docstring_says(tmp_path):
    """An independent reader, written from the docstring."""
    persist.save({"x": np.arange(6, dtype=">i2").reshape(2, 3).T, "y": np.zeros((0, 2)),
                  "z": np.array(["aé", "b"])}, tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    magic, version, crc, length = struct.unpack("<8sIIQ", raw[:24])
    assert (magic, version) == (b"\x89NPQ\r\n\x1a\n", 1)
    assert zlib.crc32(raw[24:24 + length]) == crc
    header = json.loads(raw[24:24 + length].decode("utf-8"))
    assert list(header) == ["format_version", "library", "library_version", "arrays", "root"]
    data = (24 + length + 63) // 64 * 64
    assert not any(raw[24 + length:data])
    contents = []
    for entry in header["arrays"]:
        start = data + entry["offset"]
        array = np.frombuffer(raw, "<" + np.dtype(entry["dtype"]).str[1:], math.prod(entry["shape"]), start)
        assert entry["offset"] % 64 == 0
        assert zlib.crc32(array.tobytes()) == int(entry["crc32"], 16)
        contents.append(array.reshape(entry["shape"]).tolist())
    assert start + array.nbytes == len(raw)
    assert contents == [[[0, 3], [1, 4], [2, 5]], [], [[97, 233], [98, 0]]]
    assert header["root"] == {"dict": {"x": {"array": 0}, "y": {"array": 1}, "z": {"text": 2}}}


# A file of format version 1. It must be readable for ever; never change it.
GOLDEN = bytes.fromhex(
    "894e50510d0a1a0a01000000c8f9bd0c7f010000000000007b22666f726d61745f76657273696f6e223a312c226c69627261"
    "7279223a226e707175616e74222c226c6962726172795f76657273696f6e223a22302e312e30222c22617272617973223a5b"
    "7b226474797065223a2275696e7438222c227368617065223a5b312c325d2c226f6666736574223a302c226372633332223a"
    "226236636334323932227d5d2c22726f6f74223a7b2264696374223a7b22c3a9223a5b6e756c6c2c747275652c2d312c302e"
    "312c7b22666c6f6174223a2266666630303030303030303030303030227d2c7b22696e74223a223078313030303030303030"
    "3030303030303030227d5d2c2274223a7b227475706c65223a5b7b226172726179223a307d5d7d2c2273223a7b2273747269"
    "6e6773223a7b227368617065223a5b315d2c2276616c756573223a5b2278225d7d7d2c226c223a7b226f626a656374223a7b"
    "226b696e64223a224c6f7373222c226669656c6473223a7b226d617267696e223a302e352c2277656967687473223a6e756c"
    "6c7d7d7d7d7d7d00000000000000000000000000000000000000000000000000000000000000000000000000000000000102")


def golden_tree():
    return {"é": [None, True, -1, 0.1, -math.inf, 2**64], "t": (np.array([[1, 2]], np.uint8),),
            "s": np.array(["x"], dtype=object), "l": Loss(0.5)}


@core
def test_golden(tmp_path, monkeypatch):
    monkeypatch.setattr(persist, "__version__", "0.1.0")
    (tmp_path / "golden").write_bytes(GOLDEN)
    assert same(golden_tree(), persist.load(tmp_path / "golden"))
    persist.save(golden_tree(), tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == GOLDEN


def test_describe(tmp_path):
    persist.save(a_model(), tmp_path / "a")
    description = persist.describe(tmp_path / "a")
    assert description.pop("bytes") == (tmp_path / "a").stat().st_size
    assert description == {
        "kind": "Model", "format_version": 1, "library_version": persist.__version__,
        "params": {"callback": None, "inner": {"kind": "Hooked", "k": 3}, "m": 4,
                   "random_state": "generator"},
        "arrays": [{"name": "params.inner.fitted.tables", "dtype": "uint8", "shape": (3,), "bytes": 3},
                   {"name": "fitted.codebooks_", "dtype": "float32", "shape": (4, 3), "bytes": 48},
                   {"name": "fitted.names_", "dtype": "uint32", "shape": (2, 2), "bytes": 16}]}
    for tree, kind, params in [
            ([1], "list", {}), ((1,), "tuple", {}), (None, "NoneType", {}), (np.ones(2), "array", {}),
            ({"a": 2**99, "b c": [math.inf, (np.ones(1), np.array("x"), np.array(["y"], object))]}, "dict",
             {"a": 2**99, "b c": [math.inf, ("array", "text", "text")]}),
            (Loss(), "Loss", {"margin": 1.0, "weights": None}),
            (Index(np.ones(1)), "Index", {"codes": "array", "metric": "l2"})]:
        persist.save(tree, tmp_path / "a")
        description = persist.describe(tmp_path / "a")
        assert (description["kind"], description["params"]) == (kind, params)


def test_describe_imports_nothing(tmp_path, kinds):
    persist.save(a_model(), tmp_path / "a")
    kinds.clear()
    assert persist.describe(tmp_path / "a")["kind"] == "Model"


# ------------------------------------------------------------------------------------- what cannot be saved


class Strange(str):
    pass


class MyBits(np.random.PCG64):
    pass


@core
@pytest.mark.parametrize(("thing", "place"), [
    (Model(callback=print), "Model.params.callback is a builtins.builtin"),
    (Model(inner=Model(m=lambda: 0)), "Model.params.inner.params.m is a builtins.function"),
    (Model(random_state=np.random.RandomState(0)), "Model.params.random_state is"),
    (Loss(margin=object()), "Loss.margin is a builtins.object"),
    (Index({"a b": [0, {1}]}), "Index.state.codes['a b'][1] is a builtins.set"),
    ({"x": {1: 2}}, "dict.x is a dict with the key 1"),
    (Strange(), "Strange is a "),
    (b"bytes", "bytes is a "),
    (1j, "complex is a "),
    (np.longdouble(1), "longdouble is a "),
    (np.datetime64("now"), "datetime64 is a "),
    ([np.zeros(2, complex)], "list[0] is an array of dtype complex128"),
    ([np.zeros(2, "f4,i4")], "list[0] is an array of dtype ["),
    (np.array(["a", 1], dtype=object), "ndarray is an array of objects, with a int"),
    (np.ma.masked_array([1], [True]), "MaskedArray is a "),
    ("\ud800", "str is '\\ud800', which is not valid Unicode"),
    ({"\ud800": 1}, "a key of dict is '\\ud800'"),
    (np.array(["\ud800"], dtype=object), "ndarray is '\\ud800'"),
    (np.random.Generator(np.random.PCG64(np.random.SeedSequence(1, pool_size=300))), "pool_size of 300"),
    (np.random.Generator(MyBits(1)), "Generator is a Generator on a MyBits"),
    (np.zeros((1,) * 32).astype("U1"), "ndarray is an array of 33 dimensions with that of the letters"),
])
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path, thing, place):
    with pytest.raises(InvalidInputError) as caught:
        persist.save(thing, tmp_path / "a.npq")
    assert place in str(caught.value)
    assert "A .npq file holds None" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_too_deep_or_endless_is_refused(tmp_path):
    endless = []
    endless.append(endless)
    deep = None
    for _ in range(_container.MAX_DEPTH):
        deep = Model(inner=deep)
    persist.save(deep, tmp_path / "a")
    persist.describe(tmp_path / "a")
    assert persist.load(tmp_path / "a").inner.inner.m == 8
    for tree in (endless, [deep]):
        with pytest.raises(InvalidInputError, match="nested over 64 deep"):
            persist.save(tree, tmp_path / "b")


def test_a_class_that_fits_no_sort_is_told(tmp_path):
    with pytest.raises(TypeError, match="Odd stands in"):
        persist.save(Odd(), tmp_path / "a")


# ------------------------------------------------------------------------------------ paths, and being atomic


@core
def test_paths(tmp_path):
    class Path:
        def __fspath__(self):
            return str(tmp_path / "c d.x")

    for path in (str(tmp_path / "a"), tmp_path / "b.npq", Path()):
        persist.save([1], path)
        assert persist.load(path) == [1]
    for path in (b"x", 3, None, pathlib.Path, "a\0b", open):
        for function in (persist.load, persist.describe, lambda path: persist.save(1, path)):
            with pytest.raises(InvalidInputError, match="path"):
                function(path)
    for function in (persist.load, persist.describe):
        with pytest.raises(FileNotFoundError, match=r"There is no such file.*absent") as caught:
            function(tmp_path / "absent")
        assert caught.value.filename == str(tmp_path / "absent")
        with pytest.raises(IsADirectoryError, match=r"folder"):
            function(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*absent.*a\.npq"):
        persist.save(1, tmp_path / "absent" / "a.npq")
    with pytest.raises(IsADirectoryError, match=r"folder"):
        persist.save(1, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b.npq", "c d.x"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="ordinary file"):
        persist.save(1, tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="ordinary file"):
        persist.load(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@core
@pytest.mark.parametrize("where", ["fsync", "replace", "crc32"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, error):
    persist.save("old", tmp_path / "a")

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(zlib if where == "crc32" else os, where, fail)
        with pytest.raises(type(error)):
            persist.save(np.ones(5), tmp_path / "a")
        with pytest.raises(type(error)):
            persist.save(np.ones(5), tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]
    assert persist.load(tmp_path / "a") == "old"


def test_synced_before_it_takes_the_place(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append((os.path.dirname(a), b)), replace(a, b)))
    persist.save(np.ones(5), tmp_path / "a")
    assert events == [(tmp_path / "a").stat().st_size, (str(tmp_path), str(tmp_path / "a"))]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_and_links(tmp_path):
    old = os.umask(0o027)
    try:
        persist.save(1, tmp_path / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o640
    os.chmod(tmp_path / "a", 0o604)
    os.symlink("a", tmp_path / "link")
    persist.save(2, tmp_path / "link")
    assert os.path.islink(tmp_path / "link")
    assert persist.load(tmp_path / "a") == 2
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o604


# ------------------------------------------------------------------------------------- damage


def little_file(path):
    model = Model(m=2, random_state=np.random.default_rng(1)).fit(1)
    persist.save([model, np.zeros((0, 2)), np.array([True])], path)
    return pathlib.Path(path).read_bytes()


@core
def test_cut_anywhere(tmp_path):
    raw = little_file(tmp_path / "a")
    for n in range(len(raw)):
        (tmp_path / "b").write_bytes(raw[:n])
        for function in (persist.load, lambda path: persist.load(path, mmap=True), persist.describe):
            with pytest.raises(FormatError, match=r"b: .*(cut short|damaged|empty)"):
                function(tmp_path / "b")
    (tmp_path / "b").write_bytes(raw + b"\0")
    with pytest.raises(FormatError, match="damaged"):
        persist.load(tmp_path / "b")


@core
def test_every_byte_flipped(tmp_path):
    raw = little_file(tmp_path / "a")
    length = struct.unpack("<Q", raw[16:24])[0]
    head = json.loads(raw[24:24 + length])
    data = _container.up(24 + length)
    used = set(range(24 + length))
    sizes = [math.prod(e["shape"]) * np.dtype(e["dtype"]).itemsize for e in head["arrays"]]
    for entry, size in zip(head["arrays"], sizes):
        used |= set(range(data + entry["offset"], data + entry["offset"] + size))
    assert len(used) < len(raw) < 1500
    whole = persist.load(tmp_path / "a")
    for n in range(len(raw)):
        for pattern in (0x01, 0x80, 0xFF):
            broken = bytearray(raw)
            broken[n] ^= pattern
            (tmp_path / "b").write_bytes(broken)
            if n in used:
                with pytest.raises(FormatError):
                    persist.load(tmp_path / "b")
            else:
                assert same(whole, persist.load(tmp_path / "b"))
            if n < 24 + length:
                with pytest.raises(FormatError):
                    persist.load(tmp_path / "b", mmap=True)
                with pytest.raises(FormatError):
                    persist.describe(tmp_path / "b")
            else:
                with contextlib.suppress(FormatError):  # text is looked at
                    persist.load(tmp_path / "b", mmap=True)


def plant(path, header, data=b"", version=1, magic=b"\x89NPQ\r\n\x1a\n"):
    """Write a file whose checksum of the header is right, whatever the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw = struct.pack("<8sIIQ", magic, version, zlib.crc32(text), len(text)) + text
    if data is not None and not isinstance(header, bytes) and header.get("arrays"):
        raw = raw.ljust(_container.up(len(raw)), b"\0")
    pathlib.Path(path).write_bytes(raw + (data or b""))


def a_header(root=None, *arrays, **more):
    return {"format_version": 1, "library": "npquant", "library_version": "0.1.0", "arrays": list(arrays),
            "root": root, **more}


def an_array(data=b"", dtype="uint8", shape=None, offset=0, **more):
    return {"dtype": dtype, "shape": [len(data)] if shape is None else shape, "offset": offset,
            "crc32": f"{zlib.crc32(data):08x}", **more}


@core
def test_a_planted_file_is_read(tmp_path):
    """The planting itself is right, so that what follows is refused for its own reason."""
    plant(tmp_path / "a", a_header([{"array": 1}, {"array": 0}], an_array(b"ab"), an_array(b"c", offset=64)),
          b"ab" + bytes(62) + b"c")
    first, second = persist.load(tmp_path / "a")
    assert (first.tobytes(), second.tobytes()) == (b"c", b"ab")


ABSURD = {
    "huge": an_array(shape=[10**12]),
    "product": an_array(shape=[2**32, 2**32]),
    "product 0": an_array(shape=[0, 2**62, 2**62]),
    "wraps": an_array(shape=[2**63, 2], dtype="float64"),
    "negative": an_array(shape=[-1]),
    "two negatives": an_array(shape=[-2, -2]),
    "real": an_array(shape=[1.0]),
    "bool": an_array(shape=[True]),
    "no list": an_array(shape=3),
    "dimensions": an_array(shape=[0] * 33),
    "offset": an_array(offset=10**15),
    "negative offset": an_array(offset=-64),
    "unaligned": an_array(offset=1),
    "true offset": an_array(offset=False),
    "object": an_array(dtype="object"),
    "str": an_array(dtype="U4"),
    "structured": an_array(dtype=[["a", "u1"]]),
    "endian": an_array(dtype=">u1"),
    "crc": an_array() | {"crc32": 0},
    "short crc": an_array() | {"crc32": "0"},
    "more": an_array(name="x"),
    "less": {"shape": [0]},
    "null": None,
}


@core
@pytest.mark.parametrize("what", ABSURD)
@pytest.mark.parametrize("mmap", [False, True])
def test_absurd_arrays_are_refused_before_memory_is_taken(tmp_path, what, mmap):
    plant(tmp_path / "a", a_header({"array": 0}, ABSURD[what]))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"a: (impossible: array 0|cut short or damaged: array 0)"):
            persist.load(tmp_path / "a", mmap=mmap)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


@core
@pytest.mark.parametrize("offset", [0, 1, 64 - 1, 128])
def test_overlaps_and_holes_are_refused(tmp_path, offset):
    data = bytes(100)
    plant(tmp_path / "a", a_header([{"array": 0}, {"array": 1}], an_array(b"abc"),
                                   an_array(b"abc", offset=offset)), b"abc" + data + bytes(128))
    with pytest.raises(FormatError, match="overlaps the one before"):
        persist.load(tmp_path / "a")


NONSENSE = [
    {}, {"a": 1}, {"array": 0, "text": 0}, {"array": 1}, {"array": -1}, {"array": True}, {"array": "0"},
    {"tuple": {}}, {"dict": []}, {"int": 5}, {"int": "5"}, {"int": "0xg"}, {"float": "inf"}, {"float": 1},
    {"text": 0}, {"strings": ["a"]}, {"strings": {"shape": [2], "values": ["a"]}},
    {"strings": {"shape": [1], "values": [1]}}, {"strings": {"shape": [-1, -1], "values": ["a"]}},
    {"strings": {"shape": [1] * 33, "values": ["a"]}},
    {"strings": {"shape": [0, 2**62, 2**62], "values": []}}, {"strings": {"shape": 1, "values": ["a"]}},
    {"generator": 1}, {"generator": {"dict": {}}},
    {"object": {}}, {"object": {"kind": 1}}, {"object": {"kind": "Model"}},
    {"object": {"kind": "Model", "params": {}}}, {"object": {"kind": "Model", "params": {}, "fitted": []}},
    {"object": {"kind": "Model", "params": {"zzz": 1}, "fitted": {}}},
    {"object": {"kind": "Model", "params": {}, "fitted": {"fit": 1}}},
    {"object": {"kind": "Model", "params": {}, "fitted": {"__class_": 1}}},
    {"object": {"kind": "Model", "params": {}, "fitted": {"read_only_": 1}}},
    {"object": {"kind": "Model", "state": {"dict": {}}}},
    {"object": {"kind": "Hooked", "params": {}, "fitted": {}}},
    {"object": {"kind": "Hooked", "params": {}, "fitted": {"tables": 1}}},
    {"object": {"kind": "Index", "state": None}}, {"object": {"kind": "Index", "params": {}, "fitted": {}}},
    {"object": {"kind": "Index", "state": {"dict": {"codes": 0, "metric": "zzz"}}}},
    {"object": {"kind": "Loss", "fields": {"zzz": 1}}}, {"object": {"kind": "Loss", "fields": None}},
    {"object": {"kind": "Loss", "fields": {"twice": 1}}},
]


@core
@pytest.mark.parametrize("root", NONSENSE, ids=lambda root: json.dumps(root)[:50])
def test_nonsense_is_refused(tmp_path, root):
    plant(tmp_path / "a", a_header([root, {"array": 0}], an_array(b"abc")), b"abc")
    for mmap in (False, True):
        with pytest.raises(FormatError, match="a: impossible") as caught:
            persist.load(tmp_path / "a", mmap=mmap)
        assert "'0.1.0'" in str(caught.value) or "rebuilt" not in str(caught.value)
    with contextlib.suppress(FormatError):
        persist.describe(tmp_path / "a")


def test_arrays_are_used_once(tmp_path):
    for root in ([{"array": 0}, {"array": 0}], [], [{"array": -1}]):
        plant(tmp_path / "a", a_header(root, an_array(b"abc")), b"abc")
        with pytest.raises(FormatError, match=r"used|means nothing"):
            persist.load(tmp_path / "a")


def test_text_is_looked_at(tmp_path):
    points = struct.pack("<2I", 0x110000, 1)
    for shape, data in [([2], points), ([2], points[4:] * 2), ([], points[4:]), ([0, 0], b""),
                        ([0, 2**40], b"")]:  # too many, right, no axis, no width, a width that NumPy has not
        plant(tmp_path / "a", a_header({"text": 0}, an_array(data, "uint32", shape)), data)
        if data == points[4:] * 2:
            assert persist.load(tmp_path / "a") == np.array("\1\1")
            continue
        for mmap in (False, True):
            with pytest.raises(FormatError):
                persist.load(tmp_path / "a", mmap=mmap)
    plant(tmp_path / "a", a_header({"text": 0}, an_array(bytes(16), "uint64", [2])), bytes(16))
    with pytest.raises(FormatError, match="not an array of code points"):
        persist.load(tmp_path / "a")


@pytest.mark.parametrize("change", [
    lambda s: s["state"].update(pos=625), lambda s: s["state"].update(pos=-1),
    lambda s: s["state"].update(key=np.zeros(3, np.uint32)), lambda s: s.update(bit_generator="mtrand"),
    lambda s: s.update(bit_generator="PCG64"), lambda s: s["state"].pop("pos"), lambda s: s.update(more=1)])
def test_impossible_generators_are_refused(tmp_path, change):
    state = np.random.MT19937(1).state
    change(state)
    refuse(tmp_path, {"state": state, "seed": None})


def refuse(tmp_path, generator):
    arrays = []
    root = persist._Encoder(arrays).encode(generator, "", 0)
    with open(tmp_path / "a", "wb") as file:
        _container.write(file, {"generator": root}, arrays)
    with pytest.raises(FormatError, match="cannot be rebuilt"):
        persist.load(tmp_path / "a")


@pytest.mark.parametrize("change", [
    {"pool_size": 10**10}, {"pool_size": -4}, {"pool_size": None}, {"entropy": "x"}, {"spawn_key": 1},
    {"n_children_spawned": 2**80}])
def test_impossible_seeds_are_refused(tmp_path, change):
    seed = {"entropy": 1, "spawn_key": [], "pool_size": 4, "n_children_spawned": 0, **change}
    refuse(tmp_path, {"state": np.random.PCG64(1).state, "seed": seed})


def test_no_function_is_called_by_a_files_word(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(np.random, "seed", calls.append)
    refuse(tmp_path, {"state": {"bit_generator": "seed", "state": {}}, "seed": None})
    assert calls == []


@pytest.mark.parametrize("position", [-1, 5, -2**31])
def test_philox_does_not_read_beyond_its_buffer(tmp_path, position):
    refuse(tmp_path, {"state": {**np.random.Philox(1).state, "buffer_pos": position}, "seed": None})


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 70), st.just(2**63), st.floats(), st.just(""),
              st.sampled_from(["array", "object", "Model", "x_", "PCG64", "float32", "0x1"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["array", "dict", "tuple", "text", "object", "kind", "params", "generator"]),
        inner, max_size=2), max_leaves=4)


def places(node, path=()):
    yield path
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*path, key))


@settings(few, max_examples=400)
@given(st.data())
def test_any_header_gives_a_format_error_or_loads(data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        persist.save([a_model(), Loss(), Index(np.ones(2)), np.array(["a"], object),
                      np.random.Generator(np.random.MT19937(1))], path)
        raw = pathlib.Path(path).read_bytes()
        length = struct.unpack("<Q", raw[16:24])[0]
        header = json.loads(raw[24:24 + length])
        where = data.draw(st.sampled_from(list(places(header))[1:]))
        inside = header
        for key in where[:-1]:
            inside = inside[key]
        if data.draw(st.booleans()) and isinstance(inside, dict):
            inside[data.draw(st.sampled_from(["fit", "dict", "array", "x_"]))] = inside.pop(where[-1])
        else:
            inside[where[-1]] = data.draw(JSON)
        plant(path, header, raw[_container.up(24 + length):])
        for mmap in (False, True):
            with contextlib.suppress(FormatError):
                for thing in persist.load(path, mmap=mmap) or ():
                    if isinstance(thing, np.random.Generator):
                        thing.random(1000)
        with contextlib.suppress(FormatError):
            persist.describe(path)


@core
@pytest.mark.parametrize("text", [
    b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"", b"null", b"[]", b'"', b'"\\',
    b"{", b"\xff",
    b'{"format_version": NaN}', b"1" * 10_000, b'"' + b'\\"' * 200_000, b"]" * 9 + b"[" * 100_000,
    json.dumps(a_header()).encode()[:-1]])
def test_headers_that_are_no_header(tmp_path, text):
    plant(tmp_path / "a", text)
    old = sys.getrecursionlimit()
    for limit in (old, 10**7):
        sys.setrecursionlimit(limit)
        try:
            with pytest.raises(FormatError, match="a: impossible"):
                persist.load(tmp_path / "a")
        finally:
            sys.setrecursionlimit(old)


def test_brackets_in_strings_are_not_depth(tmp_path):
    tree = ['[{"' * 1000, "\\", '\\"' + "[" * 1000, {"[" * 1000: 1}]
    persist.save(tree, tmp_path / "a")
    assert persist.load(tmp_path / "a") == tree


@core
def test_a_tree_that_is_too_deep(tmp_path):
    root = None
    for _ in range(_container.MAX_DEPTH + 1):
        root = [root]
    plant(tmp_path / "a", a_header(root))
    with pytest.raises(FormatError, match="nested more than 64 deep"):
        persist.load(tmp_path / "a")
    plant(tmp_path / "a", a_header(root[0]))
    persist.load(tmp_path / "a")


@core
def test_newer_and_contradictory_files(tmp_path):
    newer = {**a_header(format_version=2, library_version="7.5"), "arrays": "something else"}
    plant(tmp_path / "a", newer, data=None, version=2)
    for function in (persist.load, persist.describe):
        with pytest.raises(FormatError, match=r"written by npquant '7\.5' in format version 2.*upgrade"):
            function(tmp_path / "a")
    for header, version in [(a_header(), 2), (a_header(format_version=2), 1), (a_header(format_version=0), 0),
                            (a_header(library_version=1), 1), (a_header(format_version=-1), 2**32 - 1)]:
        plant(tmp_path / "a", header, version=version)
        with pytest.raises(FormatError, match="contradicts"):
            persist.load(tmp_path / "a")
    for missing in ("root", "arrays"):
        header = a_header()
        del header[missing]
        plant(tmp_path / "a", header)
        with pytest.raises(FormatError, match="no root or no arrays"):
            persist.load(tmp_path / "a")


FOREIGN = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "npy": b"\x93NUMPY\x01\0v\0", "npz": b"PK\x03\x04rest", "empty zip": b"PK\x05\x06",
    "pickle": pickle.dumps([1]), "HDF5": b"\x89HDF\r\n\x1a\n\0",
    "faiss": b"IxPQ" + struct.pack("<iq", 128, 9),
    "safetensors": struct.pack("<Q", 2) + b"{}", "gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd",
    "web page": b"<!DOCTYPE html>", "empty: ": b"", "text mode": b"\x89NPQ\n\x1a\n" + bytes(50),
    "begins with b'hello, w'": b"hello, world, this is long", "begins with b'\\x00": bytes(100),
    "b'Item'": b"Item",
}


@core
@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_are_told_apart(tmp_path, what):
    (tmp_path / "a").write_bytes(FOREIGN[what])
    for function in (persist.load, persist.describe):
        with pytest.raises(FormatError) as caught:
            function(tmp_path / "a")
        assert str(caught.value).startswith(str(tmp_path / "a"))
        assert what in str(caught.value)


@core
@pytest.mark.parametrize("kind", ["Triplet", "os:system", "antigravity", "npquant.persist:save", ""])
def test_nothing_outside_of_the_table_is_imported(tmp_path, monkeypatch, kind):
    def refuse_import(name):
        raise RuntimeError(f"{name} was imported")

    before = set(sys.modules)
    monkeypatch.setattr(persist, "import_module", refuse_import)
    for parts in ({"state": None}, {"fields": {}}, {"params": {}, "fitted": None}):
        plant(tmp_path / "a", a_header({"object": {"kind": kind, **parts}}))
        with pytest.raises(FormatError, match=r"does not know.*'0\.1\.0'"):
            persist.load(tmp_path / "a")
    assert set(sys.modules) == before


def test_errors_that_are_not_the_files_fault_pass(tmp_path, monkeypatch):
    persist.save(Hooked().fit(), tmp_path / "a")
    for error in (MemoryError, OSError, ImportError):
        def fail(self, state, error=error):
            raise error("mine")

        monkeypatch.setattr(Hooked, "_set_state", fail)
        with pytest.raises(error, match="mine"):
            persist.load(tmp_path / "a")


# ------------------------------------------------------------------------------------- memory and mapping


def peak(work):
    tracemalloc.start()
    try:
        kept = work()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


def test_memory(tmp_path):
    array = np.zeros((1000, 1000), np.float32)
    assert peak(lambda: persist.save([array, array[:10]], tmp_path / "a"))[0] < 500_000
    assert peak(lambda: persist.save([array.T, array.T], tmp_path / "b"))[0] < array.nbytes + 500_000
    assert peak(lambda: persist.load(tmp_path / "b"))[0] < 2 * array.nbytes + 500_000
    assert peak(lambda: persist.load(tmp_path / "b", mmap=True))[0] < 500_000
    assert peak(lambda: persist.describe(tmp_path / "b"))[0] < 500_000
    # One long word among many: the file is as long as the array.
    words = np.array(["x" * 1000] + [""] * 999)
    persist.save(words, tmp_path / "c")
    size = (tmp_path / "c").stat().st_size
    assert size > words.nbytes
    used, loaded = peak(lambda: persist.load(tmp_path / "c"))
    assert used < 2 * size + 500_000
    assert loaded.dtype == words.dtype


def test_several_processes_map_one_file(tmp_path):
    array = np.random.default_rng(0).random((500, 100))
    persist.save({"x": array}, tmp_path / "a")
    program = ("import sys\nfrom npquant import persist\nx = persist.load(sys.argv[1], mmap=True)['x']\n"
               "print(x.sum(), flush=True)\nsys.stdin.read()\nprint(x.sum())")
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "a")]
    root = pathlib.Path(persist.__file__).parents[1]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
                 for _ in range(2)]
    firsts = [process.stdout.readline() for process in processes]  # both are holding the file now
    if os.name == "posix":
        persist.save({"x": array + 1}, tmp_path / "a")  # a new file takes its name; theirs is untouched
    rests = [process.communicate(timeout=60)[0] for process in processes]
    assert firsts == rests == [f"{array.sum()}\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]


def test_a_mapped_array_knows_its_file(tmp_path):
    """So that joblib sends the name of the file to its workers, not the content."""
    persist.save([np.ones((3, 4), np.float32)], tmp_path / "a")
    base = persist.load(tmp_path / "a", mmap=True)[0]
    while not isinstance(base, np.memmap):
        base = base.base
    assert os.path.samefile(base.filename, tmp_path / "a")


@core
def test_importing_costs_nothing():
    program = ("import sys, npquant.persist\n"
               "print([m for m in sys.modules if m.split('.')[0] in ('numba', 'scipy', 'sklearn', 'pickle5')"
               " or m.startswith('npquant')])")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                            cwd=pathlib.Path(persist.__file__).parents[1])
    assert result.stdout.strip() == str(["npquant", "npquant.errors", "npquant._container", "npquant._base",
                                                "npquant.persist"])


@core
def test_the_table_names_classes_inside_of_the_package(monkeypatch):
    monkeypatch.undo()
    for place in persist.KINDS.values():
        module, _, name = place.partition(":")
        assert module.startswith("npquant.")
        assert name.isidentifier()
    assert len(set(persist.KINDS.values())) == len(persist.KINDS)
