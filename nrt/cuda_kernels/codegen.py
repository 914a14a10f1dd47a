"""Pointwise programs as device code: element types and program text.

Kernels compute in float32 (integers in int64).
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import math
from collections.abc import Callable, Mapping
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import intrinsic

from nrt.cuda_kernels import mathlib, ptx, ptx_asm
from nrt.cuda_kernels.fp8 import e4m3_from_f32, f32_from_e4m3
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, DType
from nrt.ir.pointwise import Program

__all__ = [
    "NAN_EXTREMA",
    "device_function",
    "loader",
    "pointer",
    "program_function",
    "program_namespace",
    "storer",
]

f32 = types.float32
f64 = types.float64
i64 = types.int64
u32 = types.uint32

_STORAGE = {
    "fp32": types.float32, "fp16": types.uint16, "bf16": types.uint16, "fp64": types.float64,
    "int8": types.int8, "uint8": types.uint8, "int16": types.int16, "uint16": types.uint16,
    "int32": types.int32, "uint32": types.uint32, "int64": types.int64, "uint64": types.uint64,
    "bool": types.uint8, "fp8e4m3": types.uint8,
}  # fmt: skip


def pointer(dtype: DType) -> Any:
    """Numba type of a kernel parameter that points to ``dtype``; 16-bit floats are raw bits."""
    return types.CPointer(_STORAGE[dtype.name])


def _inline(function: Callable[..., Any]) -> Any:
    return cuda.jit(device=True, inline="always")(function)


@functools.cache
def loader(dtype: DType) -> Any:
    """Device function ``(pointer, index) -> register value`` (float32, float64, int64 or bool)."""
    if dtype == FP16:
        return _inline(lambda p, i: ptx.f32_from_f16(p[i]))
    if dtype == BF16:
        return _inline(lambda p, i: ptx.f32_from_bf16(p[i]))
    if dtype in (FP32, FP64):
        return _inline(lambda p, i: p[i])
    if dtype == FP8E4M3:
        return _inline(lambda p, i: f32_from_e4m3(p[i], 0))
    if dtype == BOOL:
        return _inline(lambda p, i: p[i] != 0)
    return _inline(lambda p, i: i64(p[i]))


@functools.cache
def storer(dtype: DType) -> Any:
    """Device function ``(pointer, index, register value)`` that converts and stores."""
    if dtype == FP16:

        def store(p, i, v):
            p[i] = ptx.f16_from_f32(f32(v))
    elif dtype == BF16:

        def store(p, i, v):
            p[i] = ptx.bf16_from_f32(f32(v))
    elif dtype == FP8E4M3:
        byte = types.uint8

        def store(p, i, v):
            p[i] = byte(e4m3_from_f32(v))
    elif dtype == BOOL:
        u8 = types.uint8

        def store(p, i, v):
            p[i] = u8(1) if v else u8(0)
    else:
        storage = _STORAGE[dtype.name]

        def store(p, i, v):
            p[i] = storage(v)

    return _inline(store)


def device_function(text: str, name: str, namespace: Mapping[str, Any]) -> Any:
    """Compile Python text to an inlined device function; the text is kept for tracebacks."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    filename = f"<nrt {name} {digest}>"
    scope = dict(namespace)
    exec(compile(text, filename, "exec"), scope)
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    return _inline(scope[name])


# The functions that program text calls.


def _extremum(name: str, integer: str, ordered: str, instruction: str = "") -> Any:
    """min or max as NumPy has it, NaN passing through, in selects: branches compile slowly.

    ``b`` is taken if it is beyond ``a`` or NaN; a constant ``b`` drops the second test. A PTX
    ``instruction`` does that to two float32.
    """

    def impl(typingctx: Any, a: Any, b: Any) -> Any:
        kind = typingctx.unify_types(a, b)
        if kind is None:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, y = args
            if instruction and kind == f32:
                text = f"{instruction} $0, $1, $2;"
                return ptx_asm.statement(builder, text, [f32], [f32, f32], args, pure=True)[0]
            if isinstance(kind, types.Float):
                beyond = builder.fcmp_ordered(ordered, y, x)
                take = builder.or_(beyond, builder.fcmp_unordered("uno", y, y))
            elif isinstance(kind, types.Integer) and kind.signed:
                take = builder.icmp_signed(integer, y, x)
            else:
                take = builder.icmp_unsigned(integer, y, x)
            return builder.select(take, y, x)

        return kind(kind, kind), codegen

    impl.__name__ = impl.__qualname__ = name
    return intrinsic(impl)


_min = _extremum("_min", "<", "<")
_max = _extremum("_max", ">", ">")

NAN_EXTREMA = {
    "min_": _extremum("_min_nan", "<", "<", "min.NaN.f32"),
    "max_": _extremum("_max_nan", ">", ">", "max.NaN.f32"),
}
"""What `program_namespace` calls min and max, in one instruction (sm_80)."""


@_inline
def _sign(x):
    return math.copysign(f32(1), x) if (x > 0 or x < 0) else x


@_inline
def _sigmoid(x):
    return f32(1) / (f32(1) + math.exp(-x))


@_inline
def _sigmoid64(x):
    return 1.0 / (1.0 + math.exp(-x))


@_inline
def _idiv(a, b):
    # Truncation toward zero, as ONNX and C have it.
    q = a // b
    return q + 1 if (q * b != a and (a < 0) != (b < 0)) else q


@_inline
def _to_i(x):
    return i64(x)


@_inline
def _round_fp16(x):
    return ptx.f32_from_f16(ptx.f16_from_f32(f32(x)))


@_inline
def _rint(x):
    return cuda.libdevice.rintf(x)


@_inline
def _rint64(x):
    return cuda.libdevice.rint(x)


@_inline
def _floor(x):
    return cuda.libdevice.floorf(x)


@_inline
def _ceil(x):
    return cuda.libdevice.ceilf(x)


@_inline
def _floor64(x):
    return cuda.libdevice.floor(x)


@_inline
def _ceil64(x):
    return cuda.libdevice.ceil(x)


@_inline
def _pow(a, b):
    return a**b


def program_namespace(double: bool = False) -> dict[str, Any]:
    """Names that program text uses; ``double`` computes floats in float64."""
    return {
        "F": f64 if double else f32,
        "I": i64,
        "nan": math.nan,
        "inf": math.inf,
        "min_": _min,
        "max_": _max,
        "abs_": abs,
        "sign_": _sign,
        "sqrt_": math.sqrt,
        "exp_": math.exp,
        "log_": math.log,
        "tanh_": math.tanh,
        "erf_": math.erf if double else mathlib.erf,
        "sin_": math.sin,
        "cos_": math.cos,
        "sigmoid_": _sigmoid64 if double else _sigmoid,
        "floor_": _floor64 if double else _floor,
        "ceil_": _ceil64 if double else _ceil,
        "rint_": _rint64 if double else _rint,
        "pow_": _pow,
        "idiv": _idiv,
        "to_f": f64 if double else f32,
        "to_i": _to_i,
        "round_fp16": _round_fp16,
        "u32": u32,
    }


def program_function(program: Program, double: bool = False) -> Any:
    """Device function of the program's input registers."""
    return device_function(program.source("program"), "program", program_namespace(double))
