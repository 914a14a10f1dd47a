"""Elements as kernel text: vector loads and stores, conversions, and functions made of text.

Memory-bound kernels are written as text because the number of operands and of elements per thread
varies. A vector is ``width`` neighbouring elements; it moves in the widest instructions that its
bytes allow, and lies in registers as float32 (float64 for fp64), int64 or bool.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, loader, program_namespace, storer
from nrt.cuda_kernels.fp8 import e4m3x4_from_f32, f32_from_e4m3
from nrt.dtypes import BYTES, FP64, DType

__all__ = [
    "convert_text",
    "kernel_function",
    "kernel_namespace",
    "load_lines",
    "store_lines",
    "unpack_text",
    "uses_double",
]

_PIECES = ((4, "ld4", "st4"), (2, "ld2", "st2"), (1, "ld1", "st1"))


def uses_double(*dtypes: DType) -> bool:
    """Whether a kernel on these element types computes in float64."""
    return FP64 in dtypes


def kernel_function(text: str, namespace: Mapping[str, Any]) -> Callable[..., Any]:
    """The function ``kernel`` that ``text`` defines; the text is kept for tracebacks."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    filename = f"<nrt kernel {digest}>"
    scope = dict(namespace)
    exec(compile(text, filename, "exec"), scope)
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    function: Callable[..., Any] = scope["kernel"]
    return function


def _saturate(dtype: DType, double: bool) -> Any:
    """Device function: a float to an integer of ``dtype`` as GPUs convert; NaN gives 0."""
    info = np.iinfo(dtype.numpy)
    # The register is int64; uint64's upper half does not fit and saturates at int64's.
    high = min(int(info.max), 2**63 - 1)
    text = (
        "def saturate(v):\n"
        "    if v != v:\n"
        "        return I(0)\n"
        f"    if v >= F({float(high)!r}):\n"
        f"        return I({high})\n"
        f"    if v <= F({float(info.min)!r}):\n"
        f"        return I({int(info.min)})\n"
        "    return I(v)\n"
    )
    return device_function(text, "saturate", program_namespace(double))


@cuda.jit(device=True, inline="always")
def _ld1(address):
    return (ptx.ld_global_nc_u32(address),)


def kernel_namespace(*dtypes: DType) -> dict[str, Any]:
    """Names that kernel text may use, for kernels that touch ``dtypes``."""
    double = uses_double(*dtypes)
    names = program_namespace(double) | {
        "cuda": cuda,
        "f32": types.float32,
        "i8": types.int8,
        "u8": types.uint8,
        "i16": types.int16,
        "u16": types.uint16,
        "i32": types.int32,
        "i64": types.int64,
        "u32": types.uint32,
        "at": ptx.at,
        "bits": ptx.float_bits,
        "bits_float": ptx.bits_float,
        "pack_fp16": ptx.f16x2_from_f32,
        "pack_bf16": ptx.bf16x2_from_f32,
        "pack_fp8e4m3": e4m3x4_from_f32,
        "from_fp8e4m3": f32_from_e4m3,
        "fp16_0": ptx.f32_from_f16_lo,
        "fp16_1": ptx.f32_from_f16_hi,
        "bf16_0": ptx.f32_from_bf16_lo,
        "bf16_1": ptx.f32_from_bf16_hi,
        "ld1": _ld1,
        "ld2": ptx.ld_global_nc_v2,
        "ld4": ptx.ld_global_nc_v4,
        "st1": ptx.st_global_u32,
        "st2": ptx.st_global_v2,
        "st4": ptx.st_global_v4,
        "floats_int8": ptx.f32x4_from_s8x4,
        "floats_uint8": ptx.f32x4_from_u8x4,
        "pack_floats_int8": ptx.s8x4_from_f32,
        "pack_floats_uint8": ptx.u8x4_from_f32,
    }
    for dtype in dtypes:
        names[f"load_{dtype}"] = loader(dtype)
        names[f"store_{dtype}"] = storer(dtype)
        if dtype.kind == "int":
            names[f"saturate_{dtype}"] = _saturate(dtype, double)
    return names


def convert_text(value: str, kind: str, dtype: DType) -> str:
    """Expression of ``value`` (a register of ``kind``) as the register that ``dtype`` stores from.

    Floats become integers by truncation and saturate; NaN becomes 0; all becomes bool by ``!= 0``.
    """
    if dtype.kind == "bool":
        return value if kind == "b" else f"({value} != 0)"
    if dtype.kind == "int":
        if kind == "f":
            return f"saturate_{dtype}({value})"
        return f"(I(1) if {value} else I(0))" if kind == "b" else value
    if kind == "b":
        return f"(F(1) if {value} else F(0))"
    target = "F" if dtype is FP64 else "f32"
    return f"{target}({value})"


def unpack_text(dtype: DType, word: str, part: int) -> str:
    """Expression of element ``part`` of a 32-bit ``word``."""
    if dtype.name == "fp32":
        return f"bits_float({word})"
    if dtype.itemsize == 4:
        return f"I(i32({word}))" if dtype.name == "int32" else f"I({word})"
    if dtype.name in ("fp16", "bf16"):
        return f"{dtype}_{part}({word})"
    bits = 8 * dtype.itemsize
    if dtype.name == "fp8e4m3":
        return f"from_fp8e4m3({word}, {part})"
    shifted = word if part == 0 else f"({word} >> u32({bits * part}))"
    if dtype.kind == "bool":
        return f"(u8({shifted}) != 0)"
    sign = "i" if dtype.name.startswith("int") else "u"
    return f"I({sign}{bits}({shifted}))"


def _pack(dtype: DType, values: Sequence[str]) -> str:
    """Expression of the 32-bit word that holds ``values``."""
    if dtype.name == "fp32":
        return f"bits({values[0]})"
    if dtype.itemsize == 4:
        return f"u32({values[0]})"
    if dtype.name in ("fp16", "bf16"):
        return f"pack_{dtype}({values[0]}, {values[1]})"
    if dtype.name == "fp8e4m3":
        return f"pack_fp8e4m3({', '.join(values)})"
    bits = 8 * dtype.itemsize
    text = ""
    for part, value in enumerate(values):
        item = f"(u32(1) if {value} else u32(0))" if dtype.kind == "bool" else f"u{bits}({value})"
        term = f"u32({item})" if part == 0 else f"u32(u32({item}) << u32({bits * part}))"
        text = f"u32({text} | {term})" if text else term
    return text


def _pack_floats(dtype: DType, values: Sequence[str]) -> str:
    return f"pack_floats_{dtype}({', '.join(values)})"


def _vectorizable(dtype: DType, width: int) -> bool:
    return dtype.itemsize <= 4 and width * dtype.itemsize % 4 == 0


def load_lines(
    target: str, pointer: str, index: str, dtype: DType, width: int, floats: bool = False
) -> tuple[list[str], list[str]]:
    """Lines that load ``width`` elements from ``index`` on, and the variables that hold them.

    ``index`` is a variable (it is used several times), a multiple of ``width``. With ``floats``
    int8 and uint8 may come as float32, which is faster where nothing else is made of them.
    """
    names = [f"{target}_{j}" for j in range(width)]
    lines = []
    if not _vectorizable(dtype, width):
        for j, name in enumerate(names):
            place = index if j == 0 else f"u32({index} + u32({j}))"
            lines.append(f"{name} = load_{dtype}({pointer}, {place})")
        return lines, names
    per_word = 4 // dtype.itemsize
    words = width // per_word
    done = 0
    for size, load, _ in _PIECES:
        while words - done >= size:
            parts = [f"{target}w{done + k}" for k in range(size)]
            place = index if done == 0 else f"u32({index} + u32({done * per_word}))"
            lines.append(f"{', '.join(parts)}, = {load}(at({pointer}, {place}))")
            done += size
    if floats and dtype in BYTES:
        for j in range(words):
            lines.append(f"{', '.join(names[4 * j : 4 * j + 4])} = floats_{dtype}({target}w{j})")
        return lines, names
    for j, name in enumerate(names):
        lines.append(f"{name} = {unpack_text(dtype, f'{target}w{j // per_word}', j % per_word)}")
    return lines, names


def store_lines(
    pointer: str, index: str, dtype: DType, values: Sequence[str], floats: bool = False
) -> list[str]:
    """Lines that store ``values`` (as `convert_text` makes them) from ``index`` on.

    With ``floats`` they are float32 that become int8 or uint8: to nearest even and saturated.
    Their number is a multiple of 4.
    """
    width = len(values)
    if not _vectorizable(dtype, width):
        return [
            f"store_{dtype}({pointer}, {index if j == 0 else f'u32({index} + u32({j}))'}, {value})"
            for j, value in enumerate(values)
        ]
    per_word = 4 // dtype.itemsize
    pack = partial(_pack_floats if floats else _pack, dtype)
    packed = [pack(values[k * per_word : (k + 1) * per_word]) for k in range(width // per_word)]
    lines = []
    done = 0
    for size, _, store in _PIECES:
        while len(packed) - done >= size:
            place = index if done == 0 else f"u32({index} + u32({done * per_word}))"
            lines.append(
                f"{store}(at({pointer}, {place}), {', '.join(packed[done : done + size])})"
            )
            done += size
    return lines
