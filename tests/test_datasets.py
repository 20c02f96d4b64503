"""Files come back as they went, broken ones are refused, and the data sets are what they say."""

import contextlib
import errno
import gzip
import importlib.util
import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npquant import _formats, datasets
from npquant.errors import FormatError, InvalidInputError

quick = settings(max_examples=40, deadline=None)
DATA = Path(os.environ.get("NPQUANT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no data at {DATA} (NPQUANT_DATA)")

PAIRS = {"x.fvecs": "f4", "x.bvecs": "u1", "x.ivecs": "i4", "x.fbin": "f4", "x.u8bin": "u1", "x.i8bin": "i1",
         "x.ibin": "i4"}
IDX = ("u1", "i1", "i2", "i4", "f4", "f8")
EXAMPLES = {
    **{name: np.arange(6).reshape(3, 2).astype(dtype) for name, dtype in PAIRS.items()},
    "x.idx": np.arange(6, dtype="i2").reshape(3, 2),
    "train-images-idx3-ubyte": np.arange(12, dtype="u1").reshape(3, 2, 2),
    "x.idx.gz": np.arange(6, dtype="f8").reshape(3, 2),
    "t10k-labels-idx1-ubyte.gz": np.arange(7, dtype="u1"),
    "x.npy": np.arange(6.0).reshape(3, 2),
    "x.npz": np.arange(6.0).reshape(3, 2),
}
names = pytest.mark.parametrize("name", EXAMPLES)


def mappable(name):
    return not name.endswith((".gz", ".npz"))


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.core
@names
def test_what_is_written_is_read(name, tmp_path):
    path, array = tmp_path / name, EXAMPLES[name]
    datasets.write(path, array)
    assert same(datasets.read(path), array)
    assert same(datasets.read(str(path)), array)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    first = path.read_bytes()
    datasets.write(path, array if name.startswith("x.np") else np.asfortranarray(array))
    assert path.read_bytes() == first
    if mappable(name):
        view = datasets.read(path, mmap=True)
        assert not view.flags.writeable
        assert np.array_equal(view, array)
        assert isinstance(view, np.memmap)
    else:
        with pytest.raises(InvalidInputError, match="compressed"):
            datasets.read(path, mmap=True)


@quick
@given(st.data())
def test_any_array_a_format_holds_comes_back(tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(EXAMPLES)))
    if name in PAIRS:
        shape = st.tuples(st.integers(1 if name.endswith("vecs") else 0, 5), st.integers(1, 5))
        dtype = PAIRS[name]
    elif "idx" in name:
        shape, dtype = hnp.array_shapes(max_dims=4, min_side=0), data.draw(st.sampled_from(IDX))
    else:
        shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
        dtype = data.draw(st.sampled_from((*IDX, ">f4", "?", "u8", "c8", "U3", "S2", "M8[s]", "i4,f8")))
    array = data.draw(hnp.arrays(dtype, shape))
    if data.draw(st.booleans()):
        array = array.T if name not in PAIRS else array[::-1]
    path = tmp_path_factory.mktemp("any") / name
    datasets.write(path, array)
    assert same(datasets.read(path), array)
    if mappable(name):
        assert datasets.read(path, mmap=True).shape == array.shape


@quick
@given(st.dictionaries(st.text("abX_é/ ", min_size=1, max_size=4), hnp.arrays("i4", hnp.array_shapes())))
def test_named_arrays_come_back(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("named") / "x.npz"
    datasets.write(path, arrays)
    read = datasets.read(path)
    if len(arrays) == 1:
        read = {next(iter(arrays)): read}
    assert list(read) == list(arrays)
    assert all(same(read[key], arrays[key]) for key in arrays)


@pytest.mark.core
@names
def test_every_truncation_is_told(name, tmp_path):
    path, array = tmp_path / name, EXAMPLES[name]
    datasets.write(path, array)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for mmap in (False, True)[:1 + mappable(name)]:
            if name.endswith("vecs") and length and length % (len(whole) // 3) == 0:
                # The format has no header: cut between rows it is a whole file of fewer.
                assert np.array_equal(datasets.read(path, mmap=mmap), array[:length * 3 // len(whole)])
                continue
            with pytest.raises(FormatError) as error:
                datasets.read(path, mmap=mmap)
            assert name in str(error.value)
    if name != "x.npz":  # a zip may be followed by anything
        path.write_bytes(whole + b"\1")
        with pytest.raises(FormatError):
            datasets.read(path)


@names
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_corruption_escapes(name, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("corrupt") / name
    datasets.write(path, EXAMPLES[name])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for mmap in (False, True)[:1 + mappable(name)]:
        with contextlib.suppress(FormatError):  # some corruption cannot be seen
            assert isinstance(datasets.read(path, mmap=mmap), (np.ndarray, dict))


@pytest.mark.core
def test_files_agree_with_other_programs(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "f.npy", array.T)
    np.savez(tmp_path / "a.npz", x=array, y=array.T)
    np.savez_compressed(tmp_path / "c.npz", array)
    assert same(datasets.read(tmp_path / "a.npy"), array)
    assert same(datasets.read(tmp_path / "f.npy"), array.T)
    assert same(datasets.read(tmp_path / "c.npz"), array)
    both = datasets.read(tmp_path / "a.npz")
    assert same(both["x"], array)
    assert same(both["y"], array.T)
    datasets.write(tmp_path / "b.npy", array.T)
    assert same(np.load(tmp_path / "b.npy"), array.T)
    fields = np.zeros(2, dtype=[("größe", "f4"), ("名", "i8")])
    datasets.write(tmp_path / "b.npy", fields)
    assert same(np.load(tmp_path / "b.npy"), fields)
    assert same(datasets.read(tmp_path / "b.npy"), fields)
    datasets.write(tmp_path / "b.npz", {"file": array, "n": 3})
    with np.load(tmp_path / "b.npz") as read:
        assert same(read["file"], array)
        assert read["n"] == 3

    (tmp_path / "a.fvecs").write_bytes(struct.pack("<i2fi2f", 2, 1.5, 2.5, 2, 3.5, 4.5))
    assert datasets.read(tmp_path / "a.fvecs").tolist() == [[1.5, 2.5], [3.5, 4.5]]
    (tmp_path / "a.bvecs").write_bytes(struct.pack("<i3B", 3, 1, 2, 255))
    assert datasets.read(tmp_path / "a.bvecs").tolist() == [[1, 2, 255]]
    (tmp_path / "a.i8bin").write_bytes(struct.pack("<2I2b", 1, 2, -1, 5))
    assert datasets.read(tmp_path / "a.i8bin").tolist() == [[-1, 5]]
    idx = bytes((0, 0, 0x0B, 1)) + struct.pack(">I2h", 2, -300, 7)
    (tmp_path / "A.IDX").write_bytes(idx)
    assert datasets.read(tmp_path / "A.IDX").tolist() == [-300, 7]
    (tmp_path / "a.idx1-short.gz").write_bytes(gzip.compress(idx))
    assert same(datasets.read(tmp_path / "a.idx1-short.gz"), np.array([-300, 7], np.int16))


def npy(header):
    text = header if isinstance(header, bytes) else repr(header).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def zipped(content, **changes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
        for name, value in changes.items():  # told to the central directory alone
            setattr(archive.infolist()[0], name, value)
    return buffer.getvalue()


HUGE = {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
BOMB = {**HUGE, "shape": (2**27,)}
LYING = {
    "claims.idx": bytes((0, 0, 13, 2)) + b"\xff" * 8 + b"1234",
    "zero.idx": bytes((0, 0, 13, 4)) + b"\0" * 4 + b"\xff" * 12,
    "many.idx": bytes((0, 0, 8, 255)) + b"\0\0\0\1" * 255 + b"1",
    "claims.idx.gz": gzip.compress(bytes((0, 0, 13, 2)) + b"\xff" * 8 + b"1234"),
    "claims.fbin": struct.pack("<2I", 2**32 - 1, 2**32 - 1) + b"1234",
    "flat.fbin": struct.pack("<2I", 5, 0),
    "claims.fvecs": struct.pack("<i", 2**31 - 1) + b"1234",
    "negative.fvecs": struct.pack("<i", -1) + b"1234",
    "ragged.bvecs": struct.pack("<i2Bi2B", 2, 0, 0, 1, 0, 0),
    "claims.npy": npy(HUGE),
    "zero.npy": npy({**HUGE, "shape": (0, 2**62, 2**62)}),
    "negative.npy": npy({**HUGE, "shape": (-1, -8)}) + b"1" * 64,
    "nested.npy": npy(b"[" * 9000),
    "code.npy": npy(b"__import__('os').abort()"),
    "nothing.npy": npy({**HUGE, "descr": "|V0"}),
    "array.npy": npy({**HUGE, "descr": ("<f8", (2,)), "shape": (1,)}) + b"1" * 16,
    "long.npy": b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b"1",
    "new.npy": b"\x93NUMPY\7\0" + b"1" * 99,
    "claims.npz": zipped(npy(HUGE)),
    "bomb.npz": zipped(npy(BOMB), file_size=len(npy(BOMB)) + 2**30),
    "method.npz": zipped(npy(HUGE), compress_type=99),
    "secret.npz": zipped(npy(HUGE), flag_bits=1),
}


@pytest.mark.core
@pytest.mark.parametrize("name", LYING)
def test_lies_are_told_before_memory_is_taken(name, tmp_path):
    (tmp_path / name).write_bytes(LYING[name])
    tracemalloc.start()
    try:
        for mmap in (False, True)[:1 + mappable(name)]:
            with pytest.raises(FormatError, match=name):
                datasets.read(tmp_path / name, mmap=mmap)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["x.npz", "x.idx.gz"])
def test_checksums_are_checked(name, tmp_path):
    path = tmp_path / name
    array = np.frombuffer(np.random.default_rng(0).bytes(2**17), "u1")  # deflate stores noise as it is
    datasets.write(path, array)
    content = bytearray(path.read_bytes())
    content[content.index(array[100_000:100_016].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="CRC"):
        datasets.read(path)


def test_an_npz_compressed_by_another_method_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", buffer.getvalue())
    with pytest.raises(FormatError, match="NumPy does not"):
        datasets.read(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.idx.gz"])
def test_a_disk_that_fails_is_not_called_a_broken_file(name, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "disk on fire")

    datasets.write(tmp_path / name, np.arange(3, dtype="u1"))
    monkeypatch.setattr(_formats, "_fill", fails)
    with pytest.raises(OSError, match="disk on fire"):
        datasets.read(tmp_path / name)


@names
def test_pointers_pages_and_empty_files_are_recognised(name, tmp_path):
    path = tmp_path / name
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
    page = b"\n<!DOCTYPE html><title>404</title>"
    for content, words in ((pointer, "git lfs pull"), (page, "HTML"), (b"", "empty")):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=words):
            datasets.read(path)


@pytest.mark.core
def test_objects_are_never_unpickled_nor_written(tmp_path):
    class Trap:
        def __reduce__(self):
            return exit, ()

    objects = np.array([Trap()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(FormatError, match="Python objects"):
            datasets.read(tmp_path / name)
        with pytest.raises(InvalidInputError, match="Python objects"):
            datasets.write(tmp_path / name, objects)


def test_absent_and_unknown_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file to read.*nowhere\.npy"):
        datasets.read(tmp_path / "nowhere.npy")
    with pytest.raises(FileNotFoundError):
        datasets.load_labelled(tmp_path / "nowhere")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(FormatError, match=r"x\.csv: the name says no known format.*fvecs"):
        datasets.read(tmp_path / "x.csv")
    with pytest.raises(FormatError, match="folder"):
        datasets.load_labelled(tmp_path / "x.csv")
    (tmp_path / "x.idx.gz").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 1, 5)))
    with pytest.raises(FormatError, match=r"not gzipped.*without \.gz"):
        datasets.read(tmp_path / "x.idx.gz")


@pytest.mark.core
@pytest.mark.parametrize(("name", "array", "words"), [
    ("x.csv", [[1]], "no known format"),
    ("x.fvecs", np.zeros((2, 2)), r"float64.*astype\(np.float32\)"),
    ("x.fvecs", np.zeros((0, 2), "f4"), "no rows"),
    ("x.fbin", np.zeros((2, 0), "f4"), "d at least 1"),
    ("x.fbin", np.zeros(2, "f4"), r"wanted \(n, d\)"),
    ("x.u8bin", [[256]], r"256.*0 … 255"),
    ("x.bvecs", [[-1]], r"0 … 255"),
    ("x.bvecs", [[1.5]], "values could change"),
    ("x.ivecs", [[2**31]], "2147483647"),
    ("x.idx", np.zeros(2, "i8"), "int64; idx holds"),
    ("x.idx", np.float32(1), "1 to 32 dimensions"),
    ("x.idx", {"a": [1]}, "mapping"),
    ("x.npy", [[1], [1, 2]], "rows of one length"),
    ("x.npy", np.zeros(1, "V0"), "no bytes"),
])
def test_what_a_format_cannot_hold_is_not_written(name, array, words, tmp_path):
    with pytest.raises(InvalidInputError, match=words):
        datasets.write(tmp_path / name, array)
    assert not list(tmp_path.iterdir())


def test_integers_and_small_floats_are_written_where_they_fit(tmp_path):
    for name, array in (("a.ivecs", np.array([[1, -1]])), ("a.u8bin", np.array([[0, 255]])),
                        ("a.fvecs", np.float16([[1.5]])), ("a.fbin", np.uint8([[7]]))):
        datasets.write(tmp_path / name, array)
        assert datasets.read(tmp_path / name).tolist() == array.tolist()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    datasets.write(path, [1])

    def full(array):
        yield b"half"
        raise OSError("no space left")

    monkeypatch.setattr(_formats, "_npy_chunks", full)
    with pytest.raises(OSError, match="no space left"):
        datasets.write(path, [2])
    assert datasets.read(path).tolist() == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_reading_in_chunks_is_reading_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_formats, "_CHUNK", 20)
    for name, array in EXAMPLES.items():
        datasets.write(tmp_path / name, array)
        assert same(datasets.read(tmp_path / name), array)
    datasets.write(tmp_path / "x.fvecs", np.ones((9, 2), "f4"))
    content = bytearray((tmp_path / "x.fvecs").read_bytes())
    content[12 * 7] = 9
    (tmp_path / "x.fvecs").write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(FormatError, match="row 7 claims dimension 9, the first row 2"):
            datasets.read(tmp_path / "x.fvecs", mmap=mmap)


@pytest.mark.core
def test_digits_are_the_known_ones():
    digits = datasets.load_digits()
    assert [part.shape for part in digits] == [(1442, 64), (1442,), (355, 64), (355,)]
    assert digits.X_train.dtype == digits.X_test.dtype == np.float32
    assert np.ptp(np.bincount(digits.y_test)) <= 2
    assert set(digits.y_train) == set(digits.y_test) == set(range(10))
    known = pytest.importorskip("sklearn.datasets").load_digits()
    raw = datasets.read(Path(datasets.__file__).with_name("data") / "digits.npz")
    assert np.array_equal(raw["X"], known.data)
    assert np.array_equal(raw["y"], known.target)
    rows = sorted(map(tuple, np.vstack((digits.X_train, digits.X_test))))
    assert rows == sorted(map(tuple, known.data))


def four(n=6, nq=3):
    rng = np.random.default_rng(0)
    return (rng.integers(0, 255, (n, 2, 3), np.uint8), rng.integers(0, 3, n).astype(np.uint8),
            rng.integers(0, 255, (nq, 2, 3), np.uint8), rng.integers(0, 3, nq).astype(np.uint8))


FOLDER = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images.idx3-ubyte",
          "emnist-letters-test-labels-idx1-ubyte.gz")


@pytest.mark.core
def test_labelled_folders_and_files_are_read(tmp_path):
    arrays = four()
    for name, array in zip(FOLDER, arrays):
        datasets.write(tmp_path / name, array)
    datasets.write(tmp_path / "x.npz", dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays)))
    datasets.write(tmp_path / "train-images-idx3-ubyte", arrays[0])  # unpacked beside the packed: taken first
    for path in (tmp_path, tmp_path / "x.npz"):
        data = datasets.load_labelled(path)
        assert data.X_train.shape == (6, 6)
        assert data.X_train.dtype == np.uint8
        assert data.y_train.dtype == np.int64
        assert all(np.array_equal(part.ravel(), array.ravel()) for part, array in zip(data, arrays))


@pytest.mark.core
@pytest.mark.parametrize("keys", [("X", "y"), ("x", "y"), ("data", "target")])
def test_one_part_is_split_by_the_seed(keys, tmp_path):
    X, y = np.arange(22).reshape(11, 2), np.arange(11)
    datasets.write(tmp_path / "x.npz", {keys[0]: X, keys[1]: y[:, np.newaxis], "more": y})
    data = datasets.load_labelled(tmp_path / "x.npz")
    chosen = np.sort(np.random.default_rng(0).permutation(11)[:2])
    assert np.array_equal(data.y_test, chosen)
    assert np.array_equal(data.X_test, X[chosen])
    assert np.array_equal(data.X_train, np.delete(X, chosen, axis=0))
    assert np.array_equal(data.y_train, np.delete(y, chosen))
    other = datasets.load_labelled(tmp_path / "x.npz", random_state=1)
    assert not np.array_equal(other.y_test, data.y_test)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"images": [[1]], "labels": [1]}, "holds the arrays 'images', 'labels'; wanted X_train"),
    ({}, r"\(none\)"),
    ({"X": [[1]]}, "single array"),
    ({"X": [[1]] * 6, "y": [1] * 5}, r"6 labelled vectors, but labels of shape \(5,\)"),
    ({"X": [1] * 6, "y": [1] * 6}, "wanted real numbers"),
    ({"X": [["a"]] * 6, "y": [1] * 6}, "wanted real numbers"),
    ({"X": [[1]] * 4, "y": [1] * 4}, "5 are the fewest"),
    ({"X_train": [[1]], "y_train": [1], "X_test": [[1, 2]], "y_test": [1]}, "must be alike"),
    ({"X_train": [[1]], "y_train": [1], "X_test": [[1]], "y_test": [[1, 0]]}, "must be alike"),
])
def test_labels_that_do_not_fit_are_told(arrays, words, tmp_path):
    datasets.write(tmp_path / "x.npz", arrays)
    with pytest.raises(FormatError, match=words):
        datasets.load_labelled(tmp_path / "x.npz")


def test_a_folder_without_its_files_is_told(tmp_path):
    for name, array in zip(FOLDER[:3], four()):
        datasets.write(tmp_path / name, array)
    found = r"t10k-images\.idx3-ubyte, train-images"
    with pytest.raises(FormatError, match=f"0 files like t10k-labels-idx….*{found}"):
        datasets.load_labelled(tmp_path)
    for name in ("t10k-labels-idx1-ubyte.gz", "test-labels-idx1-ubyte.gz"):
        datasets.write(tmp_path / name, four()[3])
    with pytest.raises(FormatError, match="2 files like t10k-labels"):
        datasets.load_labelled(tmp_path)


@pytest.mark.core
def test_synthetic_vectors_are_near_a_subspace_and_do_not_depend_on_their_number():
    X, queries = datasets.synthetic_low_rank(9000, queries=20, d=32, rank=5, threads=2)
    assert X.shape == (9000, 32)
    assert queries.shape == (20, 32)
    assert X.dtype == queries.dtype == np.float32
    few = datasets.synthetic_low_rank(4100, queries=0, d=32, rank=5, threads=1)
    assert np.array_equal(few.X, X[:4100])
    assert few.queries.shape == (0, 32)
    values = np.linalg.eigvalsh(np.cov(X.T.astype(float)))
    assert values[:27] == pytest.approx(0.16, rel=0.15)
    assert (values[27:] > 5).all()
    # Queries lie in the same subspace: the same W.
    off = np.linalg.eigh(np.cov(X.T.astype(float)))[1][:, :27]
    assert np.square(queries @ off).mean() == pytest.approx(0.16, rel=0.25)
    # Queries share neither noise nor place with the vectors, nor one block of vectors with the next.
    for other in (queries, X[4096:4116]):
        for parts in (off, np.eye(32)):
            assert abs(np.corrcoef((X[:20] @ parts).ravel(), (other @ parts).ravel())[0, 1]) < 0.3
    assert not np.array_equal(datasets.synthetic_low_rank(3, seed=8).X, datasets.synthetic_low_rank(3).X)


@needs_data
def test_real_data_is_read_by_the_benches(monkeypatch):
    file = Path(__file__).parents[1] / "bench" / "_data.py"
    spec = importlib.util.spec_from_file_location("bench_data", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    images = bench.mnist()
    assert [part.shape for part in images] == [(60000, 784), (60000,), (10000, 784), (10000,)]
    assert images.X_train.dtype == np.float32
    assert (images.X_train.min(), images.X_train.max()) == (0, 1)
    assert np.bincount(images.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    drawn = bench.omniglot()
    counts = [np.unique(np.bincount(y)).tolist() for y in (drawn.y_train, drawn.y_base, drawn.y_validation,
                                                           drawn.y_test)]
    assert counts == [[12], [16], [2], [2]]
    assert len(np.unique(drawn.y_base)) == 968
    first = drawn.X_base[drawn.y_base == 0][0].reshape(28, 28)
    assert any(np.array_equal(np.rot90(first), x.reshape(28, 28)) for x in drawn.X_base[drawn.y_base == 1])
    truth = datasets.read(DATA / "siftsmall" / "siftsmall_groundtruth.ivecs", mmap=True)
    base = datasets.read(DATA / "siftsmall" / "siftsmall_base.fvecs", mmap=True)
    query = datasets.read(DATA / "siftsmall" / "siftsmall_query.fvecs")[0]
    assert np.square(base - query).sum(1).argmin() == truth[0, 0]
    monkeypatch.setenv("NPQUANT_DATA", "/nowhere")
    with pytest.raises(SystemExit, match="Set NPQUANT_DATA"):
        bench.sift300k()
