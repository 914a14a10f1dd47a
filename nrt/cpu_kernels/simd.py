"""Memory access, vectors and calls by address, as Numba intrinsics.

Host kernels see addresses and numbers, like those of the GPU: an address is an ``int64``, an index
counts elements. Numba's arrays would add a wrap-around test to every access and a specialization
per layout.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "REGISTERS",
    "address_of",
    "call_rows",
    "depth_micro",
    "load_f16_bits",
    "load_f32",
    "load_f64",
    "load_i8",
    "load_i16",
    "load_i32",
    "load_i64",
    "load_u8",
    "load_u16",
    "load_u32",
    "micro",
    "bits_to_float",
    "float_to_bits",
    "store_f32",
    "store_f64",
    "store_i8",
    "store_i16",
    "store_i32",
    "store_i64",
]

_F32 = ir.FloatType()
_I64 = ir.IntType(64)


def _host() -> tuple[int, int]:
    """Float lanes of a vector register, and how many such registers the host has."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 32
    if features.get("avx2") and features.get("fma"):
        return 8, 16
    if llvm.get_default_triple().startswith(("aarch64", "arm64")):
        return 4, 32
    return 4, 16


LANES, REGISTERS = _host()


def _pointer(builder: ir.IRBuilder, address: Any, llvm_type: ir.Type, index: Any = None) -> Any:
    pointer = builder.inttoptr(address, llvm_type.as_pointer())
    return pointer if index is None else builder.gep(pointer, [index])


def _make_load(numba_type: Any, llvm_type: ir.Type) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any, index: Any) -> Any:
        del typingctx, address, index

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del context, signature
            value = builder.load(_pointer(builder, args[0], llvm_type, args[1]))
            value.align = llvm_type.width // 8 if isinstance(llvm_type, ir.IntType) else None
            return value

        return numba_type(types.int64, types.int64), codegen

    return load


def _make_store(numba_type: Any, llvm_type: ir.Type) -> Any:
    @intrinsic
    def store(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
        del typingctx, address, index, value

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            builder.store(args[2], _pointer(builder, args[0], llvm_type, args[1]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), codegen

    return store


load_f32 = _make_load(types.float32, ir.FloatType())
load_f64 = _make_load(types.float64, ir.DoubleType())
load_i8 = _make_load(types.int8, ir.IntType(8))
load_u8 = _make_load(types.uint8, ir.IntType(8))
load_i16 = _make_load(types.int16, ir.IntType(16))
load_u16 = _make_load(types.uint16, ir.IntType(16))
load_f16_bits = load_u16
load_i32 = _make_load(types.int32, ir.IntType(32))
load_u32 = _make_load(types.uint32, ir.IntType(32))
load_i64 = _make_load(types.int64, ir.IntType(64))
store_f32 = _make_store(types.float32, ir.FloatType())
store_f64 = _make_store(types.float64, ir.DoubleType())
store_i8 = _make_store(types.int8, ir.IntType(8))
store_i16 = _make_store(types.int16, ir.IntType(16))
store_i32 = _make_store(types.int32, ir.IntType(32))
store_i64 = _make_store(types.int64, ir.IntType(64))


@intrinsic
def float_to_bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""
    del typingctx, value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def bits_to_float(typingctx: Any, value: Any) -> Any:
    """The float32 with the bits of an int32."""
    del typingctx, value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def call_rows(
    typingctx: Any, function: Any, rows: Any, cols: Any, table: Any, ld: Any, steps: Any
) -> Any:
    """Call the compiled rows function at an address (`nrt.cpu_kernels.codegen`)."""
    del typingctx, function, rows, cols, table, ld, steps

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 5)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic(prefer_literal=True)
def micro(
    typingctx: Any, rows: Any, vectors: Any, table: Any, ld: Any, taps: Any, a_shift: Any, run: Any,
    b: Any, b_step: Any, acc: Any, ld_acc: Any, more: Any,
) -> Any:  # fmt: skip
    """A matrix product's inner kernel that keeps ``rows`` x ``vectors`` registers of sums.

    ``rows`` and ``vectors`` are compile-time constants. For row ``i`` and the ``vectors * LANES``
    columns of a packed panel::

        acc[i, :] (+)= sum over t < taps, k < run of  A[t, i][k] * B[t][k, :]

    ``A[t, i]`` is the address ``table[t * ld + i]`` plus ``a_shift`` bytes, so that any gather of
    contiguous runs, and with it any convolution, is a matrix product (the indirect convolution of
    Dukhan, arXiv:1907.02129). ``B[t]`` lies at ``b + t * b_step`` bytes. ``more`` adds to ``acc``.
    """
    del typingctx, table, ld, taps, a_shift, run, b, b_step, acc, ld_acc, more
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)):
        return None
    shape = rows.literal_value, vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        _emit_micro(builder, args[2:], *shape)
        return context.get_dummy_value()

    return types.void(rows, vectors, *[types.int64] * 10), codegen


def _emit_micro(builder: Any, args: Any, rows: int, vectors: int) -> None:
    vector = ir.VectorType(_F32, LANES)
    column_bytes = LANES * 4
    table, ld, taps, a_shift, run, b, b_step, acc, ld_acc, more = args
    const = lambda value: ir.Constant(_I64, value)  # noqa: E731
    function = builder.function
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
    )

    def acc_pointer(i: int, j: int) -> Any:
        start = builder.add(acc, builder.mul(ld_acc, const(4 * i)))
        return _pointer(builder, builder.add(start, const(j * column_bytes)), vector)

    def load(pointer: Any) -> Any:
        value = builder.load(pointer)
        value.align = 4
        return value

    cells = [(i, j) for i in range(rows) for j in range(vectors)]
    entry = builder.block
    fresh, resume, tap_head, k_head, k_body, tap_tail, done = (
        function.append_basic_block(n)
        for n in ("fresh", "resume", "tap", "k", "k_body", "tap_tail", "done")
    )
    del entry
    builder.cbranch(builder.icmp_signed("!=", more, const(0)), resume, fresh)
    builder.position_at_end(resume)
    loaded = [load(acc_pointer(i, j)) for i, j in cells]
    builder.branch(tap_head)
    builder.position_at_end(fresh)
    builder.branch(tap_head)

    builder.position_at_end(tap_head)
    tap = builder.phi(_I64)
    sums = [builder.phi(vector) for _ in cells]
    tap.add_incoming(const(0), resume)
    tap.add_incoming(const(0), fresh)
    for phi, value in zip(sums, loaded, strict=True):
        phi.add_incoming(value, resume)
        phi.add_incoming(ir.Constant(vector, [0.0] * LANES), fresh)
    base = builder.add(table, builder.mul(builder.mul(tap, ld), const(8)))
    a_rows = []
    for i in range(rows):
        address = builder.load(_pointer(builder, builder.add(base, const(8 * i)), _I64))
        a_rows.append(_pointer(builder, builder.add(address, a_shift), _F32))
    b_tap = builder.add(b, builder.mul(tap, b_step))
    builder.branch(k_head)

    builder.position_at_end(k_head)
    k = builder.phi(_I64)
    inner = [builder.phi(vector) for _ in cells]
    k.add_incoming(const(0), tap_head)
    for phi, value in zip(inner, sums, strict=True):
        phi.add_incoming(value, tap_head)
    builder.cbranch(builder.icmp_signed("<", k, run), k_body, tap_tail)

    builder.position_at_end(k_body)
    b_row = builder.add(b_tap, builder.mul(k, const(vectors * column_bytes)))
    b_vectors = [
        load(_pointer(builder, builder.add(b_row, const(j * column_bytes)), vector))
        for j in range(vectors)
    ]
    updated = []
    for i in range(rows):
        scalar = builder.load(builder.gep(a_rows[i], [k]))
        lane0 = builder.insert_element(
            ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        splat = builder.shuffle_vector(lane0, ir.Constant(vector, ir.Undefined), mask)
        for j in range(vectors):
            updated.append(builder.call(fma, [splat, b_vectors[j], inner[i * vectors + j]]))
    k.add_incoming(builder.add(k, const(1)), k_body)
    for phi, value in zip(inner, updated, strict=True):
        phi.add_incoming(value, k_body)
    builder.branch(k_head)

    builder.position_at_end(tap_tail)
    next_tap = builder.add(tap, const(1))
    tap.add_incoming(next_tap, tap_tail)
    for phi, value in zip(sums, inner, strict=True):
        phi.add_incoming(value, tap_tail)
    builder.cbranch(builder.icmp_signed("<", next_tap, taps), tap_head, done)

    builder.position_at_end(done)
    for (i, j), value in zip(cells, inner, strict=True):
        builder.store(value, acc_pointer(i, j)).align = 4


@intrinsic(prefer_literal=True)
def depth_micro(
    typingctx: Any, rows: Any, vectors: Any, x: Any, x_step: Any, taps_h: Any, taps_w: Any, x_h:
    Any, x_w: Any, w: Any, w_h: Any, w_w: Any, acc: Any, ld_acc: Any,
) -> Any:  # fmt: skip
    """Depthwise sums of ``rows`` positions (``x_step`` bytes apart) and ``vectors * LANES``
    channels.

    ``acc[i] = sum over r, s of x[i * x_step + r * x_h + s * x_w] * w[r * w_h + s * w_w]``
    on vectors of channels; all steps are bytes.
    """
    del typingctx, x, x_step, taps_h, taps_w, x_h, x_w, w, w_h, w_w, acc, ld_acc
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)):
        return None
    shape = rows.literal_value, vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        _emit_depth(builder, args[2:], *shape)
        return context.get_dummy_value()

    return types.void(rows, vectors, *[types.int64] * 11), codegen


def _emit_depth(builder: Any, args: Any, rows: int, vectors: int) -> None:
    x, x_step, taps_h, taps_w, x_h, x_w, w, w_h, w_w, acc, ld_acc = args
    vector = ir.VectorType(_F32, LANES)
    const = lambda value: ir.Constant(_I64, value)  # noqa: E731
    function = builder.function
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
    )

    def load(address: Any, j: int) -> Any:
        value = builder.load(_pointer(builder, builder.add(address, const(j * LANES * 4)), vector))
        value.align = 4
        return value

    cells = [(i, j) for i in range(rows) for j in range(vectors)]
    before = builder.block
    head, body, tail, done = (
        function.append_basic_block(n) for n in ("depth_h", "depth_w", "depth_next", "depth_done")
    )
    builder.branch(head)
    builder.position_at_end(head)
    r = builder.phi(_I64)
    sums = [builder.phi(vector) for _ in cells]
    r.add_incoming(const(0), before)
    for phi in sums:
        phi.add_incoming(ir.Constant(vector, [0.0] * LANES), before)
    x_row = builder.add(x, builder.mul(r, x_h))
    w_row = builder.add(w, builder.mul(r, w_h))
    builder.branch(body)
    builder.position_at_end(body)
    s = builder.phi(_I64)
    inner = [builder.phi(vector) for _ in cells]
    s.add_incoming(const(0), head)
    for phi, value in zip(inner, sums, strict=True):
        phi.add_incoming(value, head)
    x_at = builder.add(x_row, builder.mul(s, x_w))
    w_at = builder.add(w_row, builder.mul(s, w_w))
    weights = [load(w_at, j) for j in range(vectors)]
    updated = [
        builder.call(
            fma,
            [
                load(builder.add(x_at, builder.mul(x_step, const(i))), j),
                weights[j],
                inner[i * vectors + j],
            ],
        )
        for i, j in cells
    ]
    next_s = builder.add(s, const(1))
    s.add_incoming(next_s, body)
    for phi, value in zip(inner, updated, strict=True):
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", next_s, taps_w), body, tail)
    builder.position_at_end(tail)
    next_r = builder.add(r, const(1))
    r.add_incoming(next_r, tail)
    for phi, value in zip(sums, updated, strict=True):
        phi.add_incoming(value, tail)
    builder.cbranch(builder.icmp_signed("<", next_r, taps_h), head, done)
    builder.position_at_end(done)
    for (i, j), value in zip(cells, updated, strict=True):
        start = builder.add(acc, builder.mul(ld_acc, const(4 * i)))
        pointer = _pointer(builder, builder.add(start, const(j * LANES * 4)), vector)
        builder.store(value, pointer).align = 4


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])
