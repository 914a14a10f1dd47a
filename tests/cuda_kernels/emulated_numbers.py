"""What instructions do with single numbers, in Python: for the emulator of kernels."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numba.core.types import Boolean, Float

__all__ = [
    "bf16",
    "bf16_bits",
    "bits_float",
    "conversion",
    "dp4a",
    "e4m3_bits",
    "e4m3_part",
    "float_bits",
    "from_bytes",
    "half",
    "half_bits",
    "max_pair",
    "nearest",
    "prmt",
    "s8x4",
    "u8x4",
    "signed",
    "u32",
]


def u32(value: Any) -> int:
    return int(value) & 0xFFFFFFFF


def signed(bits: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        low = int(value) & ((1 << bits) - 1)
        return low - (1 << bits) if low >> (bits - 1) else low

    return convert


def conversion(kind: Any) -> Callable[[Any], Any]:
    """What calling a Numba type does to a number."""
    if isinstance(kind, Float):
        return float
    if isinstance(kind, Boolean):
        return bool
    if kind.signed:
        return signed(kind.bitwidth)
    mask = (1 << kind.bitwidth) - 1
    return lambda value: int(value) & mask


def _every(dtype: Any) -> list[float]:
    """The number of each of the patterns of 16 bits."""
    with np.errstate(invalid="ignore"):  # of some NaNs
        values: list[float] = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(float).tolist()
    return values


half: Callable[[int], float] = _every(np.float16).__getitem__
bf16: Callable[[int], float] = _every(ml_dtypes.bfloat16).__getitem__
_U16, _F16, _U32, _F32 = (struct.Struct(form) for form in ("<H", "<e", "<I", "<f"))
_S8X4, _U8X4 = struct.Struct("<4b"), struct.Struct("<4B")


def half_bits(value: float) -> int:
    try:
        packed = _F16.pack(float(value))
    except OverflowError:
        packed = _F16.pack(math.copysign(math.inf, value))
    bits: int = _U16.unpack(packed)[0]
    return bits


def bf16_bits(value: float) -> int:
    return int(np.asarray(value, ml_dtypes.bfloat16).view(np.uint16))


def e4m3_part(word: int, part: int) -> float:
    """Byte ``part`` of a word as a number of fp8."""
    byte = np.uint8(u32(word) >> 8 * part & 0xFF)
    return float(byte.view(ml_dtypes.float8_e4m3fn))


def e4m3_bits(value: float) -> int:
    """``cvt.rn.satfinite.e4m3x2.f32`` of one number."""
    limited = np.clip(np.float32(value), -448, 448)
    return int(np.asarray(limited, ml_dtypes.float8_e4m3fn).view(np.uint8))


def float_bits(value: float) -> int:
    try:
        packed = _F32.pack(float(value))
    except OverflowError:
        packed = _F32.pack(math.copysign(math.inf, value))
    bits: int = _U32.unpack(packed)[0]
    return bits


def bits_float(bits: int) -> float:
    value: float = _F32.unpack(_U32.pack(bits))[0]
    return value


def nearest(value: float) -> int:
    """``cvt.rni.s32.f32``: the nearest integer, half to even; saturates, NaN is 0."""
    if math.isnan(value):
        return 0
    return int(np.rint(min(max(np.float32(value), -(2.0**31)), 2.0**31 - 1)))


def prmt(a: int, b: int, selector: int) -> int:
    both = a | b << 32
    return sum((both >> 8 * (selector >> 4 * k & 7) & 0xFF) << 8 * k for k in range(4))


def max_pair(decode: Callable[[int], float]) -> Callable[[int, int], int]:
    """The larger of each of two 16-bit floats, NaN if one is."""

    def pair(a: int, b: int) -> int:
        parts = []
        for shift in (0, 16):
            one, two = a >> shift & 0xFFFF, b >> shift & 0xFFFF
            x, y = decode(one), decode(two)
            parts.append(two if y > x or y != y else one)  # noqa: PLR0124
        return parts[0] | parts[1] << 16

    return pair


def dp4a(left: Any) -> Callable[[int, int, int], int]:
    """``dp4a`` of four ``left`` (an integer type of a byte) and four int8."""

    first, sum32 = {np.int8: _S8X4, np.uint8: _U8X4}[left], signed(32)

    def products(a: int, b: int, c: int) -> int:
        x, y = first.unpack(_U32.pack(a)), _S8X4.unpack(_U32.pack(b))
        return sum32(x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3] + c)

    return products


def s8x4(*values: float) -> int:
    """Four floats as int8: to nearest even, saturated."""
    return sum((min(max(nearest(v), -128), 127) & 0xFF) << 8 * k for k, v in enumerate(values))


def u8x4(*values: float) -> int:
    """Four floats as uint8: to nearest even, saturated."""
    return sum(min(max(nearest(v), 0), 255) << 8 * k for k, v in enumerate(values))


def from_bytes(kind: Any) -> Callable[[int], tuple[float, ...]]:
    """The four elements of a word as floats."""
    return lambda word: tuple(np.array([word], np.uint32).view(kind).astype(float).tolist())
