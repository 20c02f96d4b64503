"""Vector IR of the scan: byte look-ups in quantized tables, summed with saturation and compared with a limit.

Only the look-up itself names a target: a permute of AVX-512 VBMI, a byte shuffle of AVX-512BW or AVX2, a table look-up
of NEON. All else is plain vector IR. Nothing is jitted here; ``kernels.scan`` is where these builders are called from.

A quantized table holds, for each byte of a code, 256 entries, or 16 for its low and 16 for its high half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from npquant.kernels import simd

# Of a level: bytes in a vector, and how many blocks go through the tables together.
LEVELS = {"avx512vbmi": (64, 4), "avx512": (64, 4), "avx2": (32, 2), "neon": (16, 1)}
# Look-ups summed in 8 bits before they are added to 16: see ``target`` in kernels.scan.
RUN = 8

# Bytes. Blocks side by side are several short streams, which a processor does not foresee by itself.
AHEAD = 8192

_ARRAYS = ("blocks", "table", "live", "which", "masks")
_SCALARS = ("size", "limit")
_KEPT_ARRAYS = ("blocks", "table", "live", "which", "sums")
_KEPT_SCALARS = ("size", "at", "begin", "shift")
_loops = count()  # numbers that tell one loop's metadata from another's, until they name themselves


def intrinsics(level: str) -> dict[str, Any] | None:
    """Return the globals of the tiled scan at a level, or ``None`` where it has none."""
    if level not in LEVELS:
        return None
    found = {f"{width}_{sums}": simd.intrinsic(partial(passing, level, width == "nibbles", sums == "long"), _ARRAYS,
                                               _SCALARS, result=True)
             for width in ("bytes", "nibbles") for sums in ("short", "long")}
    measures = {name: simd.intrinsic(partial(measure, added), ("table", "terms", "row", "span"),
                                     ("first", "more", "begin", "count", "at"))
                for name, added in (("measure", False), ("measure_sum", True))}
    found |= {f"{width}_{sums}_kept": simd.intrinsic(partial(kept, level, width == "nibbles", sums == "long"),
                                                     _KEPT_ARRAYS, _KEPT_SCALARS)
              for width in ("bytes", "nibbles") for sums in ("short", "long")}
    return {**found, **measures, "flags": simd.intrinsic(flags, ("sums",), ("at", "limit"), result=True),
            "count": simd.intrinsic(count_of, ("sums",), ("blocks", "limit"), result=True),
            "quantize": simd.intrinsic(quantize, ("row", "span", "scale", "table"), ("begin", "count", "at", "place")),
            "ones": simd.intrinsic(ones, (), ("bits",), result=True),
            "lowest": simd.intrinsic(lowest, (), ("bits",), result=True), "GROUP": LEVELS[level][1]}


class _Bytes(simd.Vectors):
    """Vectors of bytes, and what is done with them."""

    def __init__(self, builder: Any, lanes: int) -> None:
        super().__init__(builder, lanes)
        self.i8 = self.ir.IntType(8)
        self.type = self.bytes = self.ir.VectorType(self.i8, lanes)
        self.words = self.ir.VectorType(self.ir.IntType(16), lanes // 2)

    @contextmanager
    def rolled(self, count: Any) -> Iterator[Any]:
        """Repeat the body for j = 0 … count − 1, and tell LLVM to leave the loop as it is: it is long enough."""
        b, module = self.builder, self.builder.module
        ahead, body, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", self.index(0), count), body, after)
        b.position_at_end(body)
        j = b.phi(self.i64)
        j.add_incoming(self.index(0), ahead)
        yield j
        following = b.add(j, self.index(1))
        j.add_incoming(following, b.block)
        latch = b.cbranch(b.icmp_signed("<", following, count), body, after)
        name = module.add_metadata([self.ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = module.add_metadata([name, self.i64(next(_loops))])
        loop.operands = (loop, name)  # a loop is named by metadata that begin with themselves
        latch.set_metadata("llvm.loop", loop)
        b.position_at_end(after)

    def number(self, value: int, kind: Any = None) -> Any:
        kind = kind or self.bytes
        return self.ir.Constant(kind, [value] * kind.count)

    def call(self, name: str, result: Any, *values: Any) -> Any:
        from numba.core import cgutils
        kind = self.ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), values)

    def load(self, pointer: Any, offset: Any) -> Any:
        value = self.builder.load(self.builder.bitcast(self.at(pointer, offset), self.bytes.as_pointer()))
        value.align = 1
        return value

    def keep(self, value: Any, pointer: Any, offset: Any) -> None:
        """Write a vector of bytes."""
        self.builder.store(value, self.builder.bitcast(self.at(pointer, offset), self.bytes.as_pointer())).align = 1

    def load_16(self, pointer: Any, offset: Any) -> Any:
        """Return 16 bytes, repeated through the vector."""
        kind = self.ir.VectorType(self.i8, 16)
        value = self.builder.load(self.builder.bitcast(self.at(pointer, offset), kind.as_pointer()))
        value.align = 1
        if self.lanes == 16:
            return value
        return self.shuffle(value, self.ir.Constant(kind, self.ir.Undefined), list(range(16)) * (self.lanes // 16))

    def add(self, a: Any, b: Any) -> Any:
        """Return a + b by lanes, no more than the largest number of the lane."""
        return self.call(f"llvm.uadd.sat.v{a.type.count}i{a.type.element.width}", a.type, a, b)

    def negative(self, a: Any) -> Any:
        """Return where the highest bit is set."""
        return self.builder.icmp_signed("<", a, self.number(0))

    def look_up_16(self, table: Any, index: Any) -> Any:
        """Return the entries of 16-entry tables (one repeated) that bytes below 16 name."""
        if self.lanes == 16:
            return self.call("llvm.aarch64.neon.tbl1.v16i8", self.bytes, table, index)
        name = "llvm.x86.avx512.pshuf.b.512" if self.lanes == 64 else "llvm.x86.avx2.pshuf.b"
        return self.call(name, self.bytes, table, index)


Look = Callable[[Any], list[Any]]


def _nibbles(w: _Bytes, table: Any, at: Any) -> Look:
    low, high = w.load_16(table, at), w.load_16(table, w.builder.add(at, w.index(16)))

    def look(code: Any) -> list[Any]:
        return [w.look_up_16(low, w.builder.and_(code, w.number(15))),
                w.look_up_16(high, w.builder.lshr(code, w.number(4)))]
    return look


def _permute(w: _Bytes, table: Any, at: Any) -> Look:
    """256 entries in four vectors: two permutes of 128 entries each, and the code's highest bit chooses."""
    part = [w.load(table, w.builder.add(at, w.index(64 * i))) for i in range(4)]

    def look(code: Any) -> list[Any]:
        first, second = (w.call("llvm.x86.avx512.vpermi2var.qi.512", w.bytes, part[i], code, part[i + 1])
                         for i in (0, 2))
        return [w.builder.select(w.negative(code), second, first)]
    return look


def _tree(w: _Bytes, table: Any, at: Any) -> Look:
    """16 sub-tables on the low half of the code, and a tree of choices by the bits of the high half."""
    def look(code: Any) -> list[Any]:
        low, bits = w.builder.and_(code, w.number(15)), [code]
        for _ in range(3):  # the bit in question moves to the top
            bits.append(w.builder.add(bits[-1], bits[-1]))

        def among(first: int, count: int) -> Any:
            if count == 1:
                return w.look_up_16(w.load_16(table, w.builder.add(at, w.index(16 * first))), low)
            half = count // 2
            low_half, high_half = among(first, half), among(first + half, half)
            return w.builder.select(w.negative(bits[4 - count.bit_length() + 1]), high_half, low_half)
        return [among(0, 16)]
    return look


def _four(w: _Bytes, table: Any, at: Any) -> Look:
    """NEON: 64 entries at a time; an index out of reach gives 0, or leaves what was there."""
    part = [w.load(table, w.builder.add(at, w.index(16 * i))) for i in range(16)]

    def look(code: Any) -> list[Any]:
        found = w.call("llvm.aarch64.neon.tbl4.v16i8", w.bytes, *part[:4], code)
        for first in (4, 8, 12):
            found = w.call("llvm.aarch64.neon.tbx4.v16i8", w.bytes, found, *part[first:first + 4],
                           w.builder.sub(code, w.number(16 * first)))
        return [found]
    return look


_LOOK = {"avx512vbmi": _permute, "avx512": _tree, "avx2": _tree, "neon": _four}


def passing(level: str, nibbles: bool, long: bool, builder: Any, v: dict[str, Any]) -> Any:
    """Emit: of a group of blocks the masks of live places whose sum is at most ``limit``; return all masks together.

    Sums are of 8 bits, saturated; ``long`` ones are added up in 16 bits every RUN look-ups.
    """
    lanes, group = LEVELS[level]
    parts, b, w = 64 // lanes, builder, _Bytes(builder, lanes)
    blocks = [b.load(w.at(v["which"], w.index(g))) for g in range(group)]
    codes = [w.at(v["blocks"], b.mul(b.mul(block, v["size"]), w.index(64))) for block in blocks]
    sums = _summed(level, nibbles, long, w, v, codes, [w.at(each, w.index(AHEAD)) for each in codes],
                   w.number(0, w.words if long else w.bytes))
    if long:
        most = _splat(w, b.trunc(v["limit"], w.ir.IntType(16)), w.words)
        passed = [_both(w, *(b.icmp_unsigned("<=", half, most) for half in halves)) for halves in sums]
    else:
        most = _splat(w, b.trunc(v["limit"], w.i8), w.bytes)
        passed = [b.icmp_unsigned("<=", total, most) for total, in sums]
    any_mask = w.index(0)
    for g in range(group):
        mask = b.and_(_mask(w, passed[g * parts:(g + 1) * parts]), b.load(w.at(v["live"], blocks[g])))
        b.store(mask, w.at(v["masks"], w.index(g)))
        any_mask = b.or_(any_mask, mask)
    return any_mask


def kept(level: str, nibbles: bool, long: bool, builder: Any, v: dict[str, Any]) -> None:
    """Emit: of the group of blocks from ``which[at]`` on the sums, a byte each; 255 at places that are not live.

    Sums are as for ``passing``, from ``begin`` on; ``long`` ones lose ``shift`` bits, and what a byte does not hold is
    255.
    The blocks two groups on are asked for, so that ``which`` must have numbers there.
    """
    lanes, group = LEVELS[level]
    parts, b, w = 64 // lanes, builder, _Bytes(builder, lanes)

    def block(g: int) -> Any:
        return b.load(w.at(v["which"], b.add(v["at"], w.index(g))))

    def codes(g: int) -> Any:
        return w.at(v["blocks"], b.mul(b.mul(block(g), v["size"]), w.index(64)))
    begin = _splat(w, b.trunc(v["begin"], w.ir.IntType(16) if long else w.i8), w.words if long else w.bytes)
    sums = _summed(level, nibbles, long, w, v, [codes(g) for g in range(group)],
                   [codes(g + 2 * group) for g in range(group)], begin)
    for i, found in enumerate(sums):
        if long:
            shift = _splat(w, b.trunc(v["shift"], w.ir.IntType(16)), w.words)
            even, odd = (_least(w, b.lshr(half, shift), w.number(255, w.words)) for half in found)
            total = b.bitcast(b.or_(even, b.shl(odd, w.number(8, w.words))), w.bytes)
        else:
            total, = found
        live = b.load(w.at(v["live"], block(i // parts)))
        if parts > 1:
            live = b.trunc(b.lshr(live, w.index(i % parts * lanes)), w.ir.IntType(lanes))
        there = b.bitcast(live, w.ir.VectorType(w.ir.IntType(1), lanes))
        at = b.add(b.mul(v["at"], w.index(64)), w.index(i * lanes))
        w.keep(b.select(there, total, w.number(255)), v["sums"], at)


def _summed(level: str, nibbles: bool, long: bool, w: _Bytes, v: dict[str, Any], codes: list[Any],
            ahead: list[Any], begin: Any) -> list[list[Any]]:
    """Emit the sums, from ``begin`` on, of the blocks that begin at ``codes``, and ask for those at ``ahead``.

    Return, for each vector of places, the sums in bytes; or, ``long``, those of even and of odd places in 16 bits.
    """
    b, parts, entries = w.builder, 64 // w.lanes, w.index(32 if nibbles else 256)
    sums = [w.variable(w.number(0) if long else begin) for _ in range(len(codes) * parts)]
    look_ups = _nibbles if nibbles else _LOOK[level]

    def pass_over(j: Any) -> None:
        look = look_ups(w, v["table"], b.mul(j, entries))
        for i, total in enumerate(sums):
            at = b.add(b.mul(j, w.index(64)), w.index(i % parts * w.lanes))
            if i % parts == 0:
                w.prefetch(w.at(ahead[i // parts], at))
            for found in look(w.load(codes[i // parts], at)):
                w.set(total, w.add(w.get(total), found))

    if not long:
        with w.rolled(v["size"]) as j:
            pass_over(j)
        return [[w.get(total)] for total in sums]
    run = RUN // 2 if nibbles else RUN
    wide = [[w.variable(begin) for _ in range(2)] for _ in sums]
    with w.loop(b.udiv(b.add(v["size"], w.index(run - 1)), w.index(run))) as block:
        first = b.mul(block, w.index(run))
        left = b.sub(v["size"], first)
        with w.rolled(b.select(b.icmp_signed("<", left, w.index(run)), left, w.index(run))) as j:
            pass_over(b.add(first, j))
        for total, (even, odd) in zip(sums, wide):
            words = b.bitcast(w.get(total), w.words)
            w.set(even, w.add(w.get(even), b.and_(words, w.number(255, w.words))))
            w.set(odd, w.add(w.get(odd), b.lshr(words, w.number(8, w.words))))
            w.set(total, w.number(0))
    return [[w.get(half) for half in halves] for halves in wide]


def _mask(w: _Bytes, flags: list[Any]) -> Any:
    """Return 64 flags as the bits of a number."""
    b, mask = w.builder, w.index(0)
    for part, some in enumerate(flags):
        bits = b.bitcast(some, w.ir.IntType(w.lanes))
        bits = bits if w.lanes == 64 else b.zext(bits, w.i64)
        mask = b.or_(mask, b.shl(bits, w.index(part * w.lanes)))
    return mask


def _least(w: _Bytes, a: Any, b: Any) -> Any:
    return w.builder.select(w.builder.icmp_unsigned("<", a, b), a, b)


def flags(builder: Any, v: dict[str, Any]) -> Any:
    """Emit: the mask of those of the 64 bytes from ``sums[at]`` on that are at most ``limit``."""
    w = _Bytes(builder, 64)
    return _mask(w, [builder.icmp_unsigned("<=", w.load(v["sums"], v["at"]), _limits(w, v))])


def count_of(builder: Any, v: dict[str, Any]) -> Any:
    """Emit: how many of the first 64 · ``blocks`` bytes are at most ``limit``."""
    b, w = builder, _Bytes(builder, 64)
    total, limit = w.variable(w.index(0)), _limits(w, v)
    with w.loop(v["blocks"]) as i:
        mask = _mask(w, [b.icmp_unsigned("<=", w.load(v["sums"], b.mul(i, w.index(64))), limit)])
        w.set(total, b.add(w.get(total), w.call("llvm.ctpop.i64", w.i64, mask)))
    return w.get(total)


def _limits(w: _Bytes, v: dict[str, Any]) -> Any:
    return _splat(w, w.builder.trunc(v["limit"], w.i8), w.bytes)


def _splat(w: _Bytes, scalar: Any, kind: Any) -> Any:
    undefined = w.ir.Constant(kind, w.ir.Undefined)
    return w.shuffle(w.builder.insert_element(undefined, scalar, w.i32(0)), undefined, [0] * kind.count)


def _both(w: _Bytes, even: Any, odd: Any) -> Any:
    """Return the flags of even and odd lanes in the order of the lanes."""
    b = w.builder
    words = (b.and_(b.sext(even, w.words), w.number(0x00FF, w.words)),
             b.and_(b.sext(odd, w.words), w.number(0xFF00, w.words)))
    return w.negative(b.bitcast(b.or_(*words), w.bytes))


def measure(added: bool, builder: Any, v: dict[str, Any]) -> None:
    """Emit: copy ``count`` numbers (a multiple of 16), others ``added`` to them; say the least and the largest size.

    The bits of the latter are those of infinity or beyond where not all are finite. They are compared as integers: the
    bits of a float order like the number where the lower 31 of a negative one are turned.
    """
    b, w = builder, simd.Vectors(builder, 16)
    least = w.variable(w.ir.Constant(w.itype, [0x7FFFFFFF] * 16))
    most = w.variable(w.ir.Constant(w.itype, [0] * 16))
    one, sign = (w.ir.Constant(w.itype, [n] * 16) for n in (1, 31))

    def turned(bits: Any) -> Any:
        return b.xor(bits, b.lshr(b.ashr(bits, sign), one))

    def compared(sense: str, signed: bool, new: Any, place: Any) -> None:
        old = w.get(place)
        w.set(place, b.select((b.icmp_signed if signed else b.icmp_unsigned)(sense, new, old), new, old))
    with w.loop(b.lshr(v["count"], w.index(4))) as i:
        i = b.mul(i, w.index(16))
        x = w.load(v["table"], b.add(v["first"], i))
        if added:
            x = b.fadd(x, w.load(v["terms"], b.add(v["more"], i)))
        w.store(x, v["row"], b.add(v["begin"], i))
        bits = b.bitcast(x, w.itype)
        compared("<", True, turned(bits), least)
        compared(">", False, b.and_(bits, w.ir.Constant(w.itype, [0x7FFFFFFF] * 16)), most)
    keys, sizes = (_reduced(w, name, w.get(place)) for name, place in (("smin", least), ("umax", most)))
    low = b.xor(keys, b.lshr(b.ashr(keys, w.i32(31)), w.i32(1)))
    for i, bits in enumerate((low, sizes)):
        b.store(b.bitcast(bits, w.f32), w.at(v["span"], b.add(v["at"], w.index(i))))


def _reduced(w: simd.Vectors, name: str, vector: Any) -> Any:
    from numba.core import cgutils
    kind = w.ir.FunctionType(w.i32, [vector.type])
    return w.builder.call(cgutils.get_or_insert_function(
        w.builder.module, kind, f"llvm.vector.reduce.{name}.v16i32"), [vector])


def quantize(builder: Any, v: dict[str, Any]) -> None:
    """Emit: of ``count`` numbers (a multiple of 16) the bytes min(255, floor((x − low) · scale))."""
    b, w = builder, simd.Vectors(builder, 16)
    low = w.splat(b.load(w.at(v["span"], v["at"])))
    scale = w.splat(b.load(v["scale"]))
    with w.loop(b.lshr(v["count"], w.index(4))) as i:
        x = w.load(v["row"], b.add(v["begin"], b.mul(i, w.index(16))))
        x = w.least(b.fmul(b.fsub(x, low), scale), w.constant(255.0))
        steps = b.trunc(b.fptosi(x, w.itype), w.ir.VectorType(w.ir.IntType(8), 16))
        b.store(steps, b.bitcast(w.at(v["table"], b.add(v["place"], b.mul(i, w.index(16)))),
                                 steps.type.as_pointer())).align = 1


def lowest(builder: Any, v: dict[str, Any]) -> Any:
    """Emit: the place of the lowest bit that is set."""
    from llvmlite import ir
    return builder.cttz(v["bits"], ir.IntType(1)(1))


def ones(builder: Any, v: dict[str, Any]) -> Any:
    """Emit: how many bits are set."""
    return _Bytes(builder, 64).call("llvm.ctpop.i64", v["bits"].type, v["bits"])
