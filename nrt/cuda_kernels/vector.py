"""Wide loads as float32 values, and the place of a row in the output: used by all plain kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.problem import TensorSpec

__all__ = [
    "divide",
    "masked_loader",
    "output_rows",
    "row_offset",
    "row_params",
    "vector_loader",
    "widest",
]

_LOADS = {
    2: ptx.ld_global_nc_u16,
    4: ptx.ld_global_nc_u32,
    8: ptx.ld_global_nc_v2,
    16: ptx.ld_global_nc_v4,
}
_UNPACK = {
    FP16: (ptx.f32_from_f16, ptx.f32_from_f16_lo, ptx.f32_from_f16_hi),
    BF16: (ptx.f32_from_bf16, ptx.f32_from_bf16_lo, ptx.f32_from_bf16_hi),
}


def widest(dtype: DType) -> int:
    """Elements of ``dtype`` in 16 bytes, the widest load."""
    return 16 // dtype.itemsize


@functools.cache
def vector_loader(dtype: DType, width: int) -> Any:
    """Device function ``(pointer, index) -> tuple`` of ``width`` float32 values by one load.

    ``index`` is a multiple of ``width``. The data must not change while the kernel runs.

    Args:
        dtype: fp32, fp16 or bf16.
        width: 1, 2, 4, and 8 for types of 16 bits: 16 bytes at most.
    """
    return _loader(dtype, width, masked=False)


@functools.cache
def masked_loader(dtype: DType, width: int) -> Any:
    """Device function ``(pointer, index, ok) -> tuple``: as `vector_loader`, zeros unless ``ok``.

    Where not ok it reads element 0 and masks the bits: without a branch, neighbouring loads stay in
    one block of instructions and overlap.
    """
    return _loader(dtype, width, masked=True)


def _loader(dtype: DType, width: int, masked: bool) -> Any:
    assert dtype in (FP32, FP16, BF16), dtype
    assert width <= widest(dtype), (dtype, width)
    bytes_ = width * dtype.itemsize
    names = [f"w{i}" for i in range(max(1, bytes_ // 4))]
    target = ", ".join(names) if bytes_ > 4 else "w0"
    lines = ["i = u32(i if ok else 0)"] if masked else []
    lines.append(f"{target} = get(at(p, u32(i)))")
    if masked and bytes_ == 2:
        lines.append("w0 = u16(w0 if ok else 0)")
    elif masked:
        lines.append("mask = u32(u32(0xFFFFFFFF) if ok else u32(0))")
        lines += [f"{n} = u32({n} & mask)" for n in names]
    if dtype == FP32:
        values = [f"real({n})" for n in names]
    elif width == 1:
        values = ["one(w0)"]
    else:
        values = [f"{half}({n})" for n in names for half in ("low", "high")]
    lines.append(f"return ({', '.join(values)},)")
    text = f"def load(p, i{', ok' * masked}):\n" + "".join(f"    {line}\n" for line in lines)
    one, low, high = _UNPACK.get(dtype, (None, None, None))
    namespace = {
        "get": _LOADS[bytes_], "at": ptx.at, "real": ptx.bits_float, "one": one, "low": low,
        "high": high, "u16": types.uint16, "u32": types.uint32,
    }  # fmt: skip
    return device_function(text, "load", namespace)


@functools.cache
def divide() -> Any:
    """Device function ``(a, b) -> (a // b, a % b)`` of unsigned numbers by one division."""
    text = (
        "def divide(a, b):\n"
        "    quotient = u32(u32(a) // u32(b))\n"
        "    return quotient, u32(u32(a) - u32(quotient * u32(b)))\n"
    )
    return device_function(text, "divide", {"u32": types.uint32})


def output_rows(y: TensorSpec, channel: int) -> tuple[tuple[int, int], ...]:
    """Sizes and strides of the dimensions that rows count, outermost first, joined where possible.

    One entry means that row m starts at m times its stride, as in a dense tensor or a slice of its
    channels.
    """
    rows = [
        (size, stride)
        for d, (size, stride) in enumerate(zip(y.shape, y.strides, strict=True))
        if d != channel and size > 1
    ]
    joined: list[tuple[int, int]] = []
    for size, stride in rows:
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride)
        else:
            joined.append((size, stride))
    return tuple(joined)


@functools.cache
def row_offset(rows: tuple[tuple[int, int], ...]) -> Any:
    """Device function ``(m, pitch) -> offset`` of row ``m`` in elements.

    With at most one entry of `output_rows` the offset is ``m * pitch``; otherwise sizes and strides
    are constants of the binary and ``pitch`` is not used; see `row_params`.
    """
    if len(rows) <= 1:
        return device_function(
            "def offset(m, pitch):\n    return u32(m * pitch)\n", "offset", {"u32": types.uint32}
        )
    terms = []
    divisor = 1
    for size, stride in reversed(rows):
        terms.append(f"u32(u32(u32(m) // u32({divisor})) % u32({size})) * u32({stride})")
        divisor *= size
    text = f"def offset(m, pitch):\n    return u32({' + '.join(terms)})\n"
    return device_function(text, "offset", {"u32": types.uint32})


def row_params(rows: Sequence[tuple[int, int]]) -> tuple[tuple[tuple[int, int], ...], int]:
    """What to compile in and what to pass: the argument of `row_offset`, and the pitch."""
    if len(rows) > 1:
        return tuple(rows), 0
    return (), rows[0][1] if rows else 0
