"""What is special to scalar quantization; what holds for every codec is in laws.py."""

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from laws import packed, same

from npquant import persist
from npquant.errors import FormatError, InvalidInputError
from npquant.quantizers.scalar import ScalarQuantizer

core = pytest.mark.core


@core
@given(strategies.vectors(rows=(2, 40)), st.sampled_from(["int8", "int4"]))
def test_numbers_become_the_nearest_level(x, kind):
    """No level of a dimension is nearer than the one chosen, but for the rounding of float32."""
    codec = ScalarQuantizer(kind).fit(x[: len(x) // 2 + 1])
    levels = 256 if kind == "int8" else 16
    grid = np.arange(levels, dtype=np.float32)[:, None] * codec.step_ + codec.low_
    wide, decoded = x.astype(np.float64), codec.decode(codec.encode(x))
    least = np.abs(wide[:, None] - grid).min(axis=1)
    room = 4 * np.spacing(np.maximum(np.abs(codec.low_), np.abs(grid[-1])))
    assert (np.abs(wide - decoded) <= least + room).all()
    assert (decoded[:, None] == grid).any(axis=1).all()


@core
def test_what_the_bytes_are():
    """Two numbers share a byte, the first in its low half; float16 is NumPy's, little-endian."""
    x = np.array([[0, 0, 0], [15, 30, 45], [1, 4, 9]], np.float32)
    codec = ScalarQuantizer("int4").fit(x)
    same(codec.encode(x), packed([[0, 0, 0], [15, 15, 15], [1, 2, 3]], 16), "codes")
    same(codec.encode([[-9.0, 99.0, 10.4]]), packed([[0, 15, 3]], 16), "codes of what is outside")
    half = ScalarQuantizer("float16").fit(x)
    same(half.encode(x), x.astype("<f2").view(np.uint8).reshape(3, 6), "float16")
    ends = np.array([[65504, -65504, np.float16(1 / 3)]], np.float32)
    same(half.decode(half.encode([[1e6, -1e6, 1 / 3]])), ends, "numbers outside")


def test_the_error_is_that_of_a_uniform_grid():
    """The mean squared error of numbers spread over the range is step² / 12."""
    x = np.random.default_rng(0).random((4000, 3)).astype(np.float32)
    for kind in ("int8", "int4"):
        codec = ScalarQuantizer(kind).fit(x)
        error = np.square(x - codec.decode(codec.encode(x))).mean(axis=0)
        np.testing.assert_allclose(error, codec.step_**2 / 12, rtol=0.1)


@core
def test_wrong_use_is_told(tmp_path):
    """A wrong kind, impossible codes, and a file that says the impossible."""
    x = strategies.make_vectors("normal", 9, 3)
    with pytest.raises(InvalidInputError, match="kind is 'int7'"):
        ScalarQuantizer("int7").fit(x)
    codec = ScalarQuantizer("int4").fit(x)
    with pytest.raises(InvalidInputError, match="high half"):
        codec.decode(np.array([[0, 255]], np.uint8))
    half = ScalarQuantizer("float16").fit(x)
    with pytest.raises(InvalidInputError, match="not finite"):
        half.decode(np.full((1, 6), 255, np.uint8))
    codec.step_ = -codec.step_
    persist.save(codec, tmp_path / "x.npq")
    with pytest.raises(FormatError):
        persist.load(tmp_path / "x.npq")


def test_a_parameter_changed_later_changes_no_code():
    """What the codes are was settled by fit."""
    x = strategies.make_vectors("normal", 9, 4)
    codec = ScalarQuantizer("int8").fit(x)
    codes = codec.encode(x)
    codec.set_params(kind="int4")
    assert codec.code_size == 4
    same(codec.encode(x), codes, "codes")
