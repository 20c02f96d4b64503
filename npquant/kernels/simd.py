"""Vector code beyond what LLVM finds by itself: builders over its IR, and the level that this machine has.

Everything is plain vector IR (load, fma, compare, select, shuffle), which LLVM turns into AVX-512, AVX2 or NEON
as it is (the byte look-ups of ``_scan_ir`` apart, which name a target); a level is a number of lanes and a shape of
tile that fits the registers. Levels are chosen once, from the processor's features, or by ``NPQUANT_SIMD``;
``generic`` is ordinary code, vectorised by LLVM.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from npquant.errors import InvalidInputError

# Which features of the host a level asks for; the first that the host has is chosen.
LEVELS: dict[str, tuple[str, ...]] = {
    "avx512vbmi": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi"),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx2": ("avx2", "fma"),
    "neon": ("neon",),
    "generic": (),
}
# The level whose code a kernel runs where it has none of its own for one.
SERVED_BY = {"avx512vbmi": "avx512"}
_OTHER_NAMES = {"avx512bw": "avx512"}


@cache
def host_features() -> frozenset[str]:
    """Return LLVM's names of the processor's features."""
    from llvmlite import binding
    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def runnable() -> list[str]:
    """Return the levels that this machine can run, the best first."""
    return [level for level, wanted in LEVELS.items() if host_features().issuperset(wanted)]


def chosen() -> str:
    """Return the level in use: ``NPQUANT_SIMD``, else the best.

    Raises
    ------
    InvalidInputError
        ``NPQUANT_SIMD`` names no level, or one that this machine cannot run.
    """
    asked = os.environ.get("NPQUANT_SIMD", "")
    if not asked:
        return runnable()[0]
    asked = _OTHER_NAMES.get(asked, asked)
    if asked not in runnable():
        raise InvalidInputError(f"NPQUANT_SIMD is {asked!r}; this machine runs {', '.join(runnable())}. Unset it, or "
                                "choose one of these.")
    return asked


class Vectors:
    """Float32 vectors of ``lanes`` lanes in one function: a thin, readable layer over llvmlite's builder."""

    def __init__(self, builder: Any, lanes: int) -> None:
        from llvmlite import ir
        self.ir, self.builder, self.lanes = ir, builder, lanes
        self.f32, self.i32, self.i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
        self.type, self.itype = ir.VectorType(self.f32, lanes), ir.VectorType(self.i32, lanes)

    def constant(self, value: float) -> Any:
        """Return a vector of one number."""
        return self.ir.Constant(self.type, [value] * self.lanes)

    def index(self, value: int) -> Any:
        """Return a 64-bit constant."""
        return self.i64(value)

    def variable(self, start: Any = None) -> Any:
        """Return the place of a vector that changes; LLVM keeps it in a register."""
        from numba.core import cgutils
        return cgutils.alloca_once(self.builder, self.type) if start is None else cgutils.alloca_once_value(
            self.builder, start)

    def get(self, place: Any) -> Any:
        """Return the value of a variable."""
        return self.builder.load(place)

    def set(self, place: Any, value: Any) -> None:
        """Change a variable."""
        self.builder.store(value, place)

    def loop(self, count: Any) -> Any:
        """Return a context: ``with v.loop(n) as i:`` repeats its body for i = 0 … n − 1 (64-bit)."""
        from contextlib import contextmanager

        from numba.core import cgutils

        @contextmanager
        def indices() -> Any:
            with cgutils.for_range(self.builder, count, intp=self.i64) as each:
                yield each.index
        return indices()

    def at(self, pointer: Any, offset: Any) -> Any:
        """Return the address of element ``offset``."""
        return self.builder.gep(pointer, [offset])

    def load(self, pointer: Any, offset: Any) -> Any:
        """Return the vector of consecutive elements from ``offset``."""
        value = self.builder.load(self.builder.bitcast(self.at(pointer, offset), self.type.as_pointer()))
        value.align = 4
        return value

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        """Write a vector to consecutive elements from ``offset``."""
        self.builder.store(value, self.builder.bitcast(self.at(pointer, offset), value.type.as_pointer())).align = 4

    def prefetch(self, pointer: Any, locality: int = 2) -> None:
        """Ask for the line of a pointer to bytes; one beyond all arrays does no harm.

        ``locality`` 2 is the second cache: the first waits for few lines at a time, and from memory, asking it for
        many is half as fast. 3 is the first.
        """
        from numba.core import cgutils
        kind = self.ir.FunctionType(self.ir.VoidType(), [pointer.type, self.i32, self.i32, self.i32])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch"),
                          [pointer, self.i32(0), self.i32(locality), self.i32(1)])

    def to_i32(self, value: Any) -> Any:
        """Return an unsigned integer of any width as 32 bits."""
        return value if value.type.width == 32 else (self.builder.zext if value.type.width < 32 else
                                                     self.builder.trunc)(value, self.i32)

    def splat(self, scalar: Any) -> Any:
        """Return a scalar in all lanes."""
        kind = self.ir.VectorType(scalar.type, self.lanes)
        undefined = self.ir.Constant(kind, self.ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, scalar, self.i32(0)), undefined, [0] * self.lanes)

    def shuffle(self, first: Any, second: Any, lanes: Sequence[int]) -> Any:
        """Return the chosen lanes of two vectors, numbered through both."""
        return self.builder.shuffle_vector(first, second, self.ir.Constant(
            self.ir.VectorType(self.i32, len(lanes)), list(lanes)))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a · b + c, rounded once."""
        from numba.core import cgutils
        kind = self.ir.FunctionType(self.type, [self.type] * 3)
        return self.builder.call(cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.fma.v{self.lanes}f32"), [a, b, c])

    def least(self, new: Any, old: Any) -> Any:
        """Return the smaller by lanes; ``old`` where ``new`` is NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", new, old), new, old)

    def most(self, new: Any, old: Any) -> Any:
        """Return the larger by lanes; ``old`` where ``new`` is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", new, old), new, old)

    def least_of_each(self, vectors: Sequence[Any]) -> tuple[Any, list[int]]:
        """Return a vector that holds the least lane of each of some vectors (a power of two), and in which lanes.

        Halves of two vectors are put side by side and compared, so that all of them shrink together.
        """
        count, width, parts = len(vectors), self.lanes, list(vectors)
        while width > 1:
            low = [lane for lane in range(self.lanes) if lane % width < width // 2]
            high = [lane + width // 2 for lane in low]
            if len(parts) > 1:
                other = [[self.lanes + lane for lane in half] for half in (low, high)]
                parts = [self.least(self.shuffle(a, b, low + other[0]), self.shuffle(a, b, high + other[1]))
                         for a, b in zip(parts[::2], parts[1::2])]
            else:
                swapped = [lane // width * width + (lane + width // 2) % width for lane in range(self.lanes)]
                parts = [self.least(self.shuffle(parts[0], parts[0], swapped), parts[0])]
            width //= 2
        return parts[0], [self.lanes // count * i for i in range(count)]


def intrinsic(build: Callable[[Any, dict[str, Any]], Any], arrays: Sequence[str], scalars: Sequence[str], *,
              result: bool = False) -> Any:
    """Return a numba intrinsic whose body is ``build(llvmlite builder, {name: value})``.

    In a call ``arrays`` come first, passed as pointers to their first element, then ``scalars``, as 64-bit integers.
    With ``result`` the call gives what ``build`` returns, a 64-bit integer; else nothing.
    """
    from numba import types
    from numba.extending import intrinsic as numba_intrinsic

    def body(typingctx: Any, *kinds: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            known = {name: context.make_array(kind)(context, builder, value).data
                     for name, kind, value in zip(arrays, signature.args, values)}
            known |= {name: context.cast(builder, value, kind, types.int64)
                      for name, kind, value in zip(scalars, signature.args[len(arrays):], values[len(arrays):])}
            value = build(builder, known)
            return value if result else context.get_dummy_value()
        return (types.int64 if result else types.void)(*kinds), codegen
    # numba reads the number of arguments from the signature.
    body.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("typingctx", *arrays, *scalars)])
    return numba_intrinsic(body)
