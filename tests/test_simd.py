"""SIMD levels: the same bits as the plain definition, with the instructions meant; the others compile."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npquant.kernels import _jit, nearest, simd
from npquant.kernels._jit import have_numba

pytestmark = pytest.mark.skipif(not have_numba(), reason="numba is not installed")

LEVELS = simd.runnable() if have_numba() else []


def both(level, x, codebooks_t):
    results = []
    for function in (nearest.nearest_codewords.compiled(level), nearest.nearest_codewords.twin):
        index = np.full((len(x), len(codebooks_t)), -1, np.int32)
        distance = np.full(index.shape, -1, np.float32)
        function(x, codebooks_t, index, distance)
        results.append((index, distance))
    return results


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([0, 1, 3, 4, 5, 8, 9, 255, 256, 261]), m=st.integers(1, 4),
       dsub=st.sampled_from([1, 2, 7, 16, 33]),
       K=st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 256, 300, 1025]),
       scale=st.sampled_from([1.0, 1e-30, 1e-20, 1e-4, 1e15, 0.0]), offset=st.sampled_from([0.0, 1.0, 1e6]),
       kind=st.sampled_from(["normal", "grid", "rows are codewords", "nearly tied", "sparse"]))
def test_nearest_has_the_bits_of_its_definition(level, seed, n, m, dsub, K, scale, offset, kind):
    rng = np.random.default_rng(seed)
    x, codewords = rng.standard_normal((n, m * dsub)), rng.standard_normal((m, K, dsub))
    if kind == "grid":  # full of exact ties
        x, codewords = np.round(x), np.round(codewords)
    elif kind == "rows are codewords":
        x = np.concatenate([codewords[j, rng.integers(K, size=n)] for j in range(m)], axis=1)
    elif kind == "nearly tied":  # what the pre-selection cannot tell apart
        codewords = codewords[:, :1] + rng.standard_normal((m, K, dsub)) * 1e-6
    elif kind == "sparse":
        x, codewords = (a * (rng.random(a.shape) < 0.1) * 100.0 ** rng.standard_normal(a.shape) for a in (x, codewords))
    x, codewords = (np.clip(a * scale + offset, -1e17, 1e17).astype(np.float32) for a in (x, codewords))
    (index, distance), (index_twin, distance_twin) = both(level, x, nearest.transpose(codewords))
    np.testing.assert_array_equal(index, index_twin)
    assert distance.tobytes() == distance_twin.tobytes()


@pytest.mark.parametrize(("M", "K"), [(1, 256), (4, 16)])
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "generic"])
def test_preselection_decides_nearly_all(level, M, K):
    """Where nothing is tied, the fixed order is asked for few rows: else the level would be correct and slow."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 16)).astype(np.float32)
    codebooks_t = nearest.transpose(rng.standard_normal((M, K, 16 // M)).astype(np.float32))
    index = np.empty((len(x), M), np.int32)
    generic, tiled = (nearest.nearest_codewords.compiled(name) for name in ("generic", level))

    def seconds(function):
        import time
        best = np.inf
        for _ in range(5):
            began = time.perf_counter()
            function(x, codebooks_t, index, np.empty((0, M), np.float32))
            best = min(best, time.perf_counter() - began)
        return best
    assert seconds(tiled) < 1.2 * seconds(generic)  # it is several times as fast; a machine may be busy


@pytest.mark.parametrize(("level", "wanted", "not_wanted"), [
    ("avx512", r"vfmadd231ps\s+%zmm|vfmadd\d+ps.*%zmm", None), ("avx2", r"vfmadd\d+ps.*%ymm", r"%zmm"),
    ("neon", r"fmla\s+v\d+\.4s", None)])
def test_compiled_code_has_the_instructions_meant(level, wanted, not_wanted, monkeypatch):
    if level not in LEVELS:
        pytest.skip(f"this machine does not run {level}")
    monkeypatch.setattr(_jit, "cache_folder", lambda: None)  # cached code cannot be looked at
    assembly = "".join(_jit._compile(nearest.nearest_codewords, level).inspect_asm().values())
    assert re.search(wanted, assembly)
    tile_lines = [line for line in assembly.splitlines() if "vfmadd" in line]
    assert not_wanted is None or not any(re.search(not_wanted, line) for line in tile_lines)


TARGETS = {"avx512": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl,+fma", r"vfmadd\d+ps.*zmm"),
           "avx2": ("x86_64-unknown-linux-gnu", "+avx2,+fma", r"vfmadd\d+ps.*ymm"),
           "neon": ("aarch64-unknown-linux-gnu", "+neon", r"fmla\s+v\d+\.4s")}


@pytest.mark.parametrize("level", TARGETS)
def test_tiles_compile_for_every_target(level):
    """Of a function that is nothing but the tile, for processors that this machine need not be."""
    from functools import partial

    from llvmlite import binding, ir
    triple, features, wanted = TARGETS[level]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    lanes, points, _ = nearest._SHAPES[level]
    module = ir.Module()
    module.triple = triple
    number, real = ir.IntType(64), ir.FloatType().as_pointer()
    for name, build, arrays, scalars in (
            *((name, partial(nearest._tile, *shape), ("x", "packed", "half", "square", "best", "second"),
               ("row", "stride", "panel", "norm", "point", "state", "dsub", "panels", "number", "keep"))
              for name, shape in (("tile", nearest._SHAPES[level]), ("narrow", nearest._NARROW[level]))),
            ("finish", partial(nearest._finish, lanes, points), ("best", "second", "first", "runner", "lane"),
             ("state", "point"))):
        kinds = [ir.IntType(32).as_pointer() if array == "lane" else real for array in arrays]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*kinds, *[number] * len(scalars)]), name)
        builder = ir.IRBuilder(function.append_basic_block())
        build(builder, dict(zip((*arrays, *scalars), function.args)))
        builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(parsed, passes)
    assembly = machine.emit_assembly(parsed)
    for name in ("tile", "narrow"):
        body = assembly[assembly.index(f"\n{name}:"):]
        assert re.search(wanted, body[:body.index(f".size\t{name},")]), name


def test_the_level_can_be_forced():
    code = ("import numpy as np; from npquant.kernels import nearest, simd; "
            "nearest.assign(np.ones((3, 2), 'f4'), np.ones((1, 2, 3), 'f4'), 1); "
            "print(simd.chosen(), nearest.nearest_codewords.compiled().py_func.__name__)")
    for level in LEVELS:
        run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NPQUANT_SIMD": level}, text=True,
                             capture_output=True, check=True)
        assert run.stdout.split() == [level, f"nearest_codewords_{level}"]
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NPQUANT_SIMD": "mmx", "NPQUANT_JIT": "1"},
                         text=True, capture_output=True, check=False)
    assert "NPQUANT_SIMD is 'mmx'" in run.stderr
