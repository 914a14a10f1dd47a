"""The functions that `Opcode.text` names, for the host, in float32 and float64.

The float32 versions are written so that LLVM vectorizes them: no calls, no branches, no conversion
of a float that may not fit an integer. Their polynomials are Chebyshev fits made for this file;
errors in docstrings are against the exact function, in units in the last place (ulp) or absolute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from nrt.cpu_kernels.jit import inlined
from nrt.cpu_kernels.simd import bits_to_float, float_to_bits

__all__ = [
    "e4m3_to_float",
    "fast_exp",
    "float_to_e4m3",
    "float_to_half",
    "half_to_float",
    "namespace",
]

_F = np.float32


@inlined
def fast_exp(x):
    """e**x, within 2 ulp; below -104 it is 0, above 88.73 infinite."""
    clamped = min(max(x, _F(-104.0)), _F(89.0))
    # Adding 1.5 * 2**23 leaves the nearest integer in the low bits of the float.
    magic = clamped * _F(1.4426950408889634) + _F(12582912.0)
    n = magic - _F(12582912.0)
    r = clamped - n * _F(0.693145751953125)
    r = r - n * _F(1.428606765330187e-06)
    p = _F(0.000199004422)
    p = p * r + _F(0.00139345432)
    p = p * r + _F(0.00833329707)
    p = p * r + _F(0.0416664568)
    p = p * r + _F(0.166666667)
    p = p * r + _F(0.5)
    p = p * (r * r) + r + _F(1.0)
    power = float_to_bits(magic) - np.int32(0x4B400000)
    half = power >> np.int32(1)
    # Two factors: 2**128 and denormal results are out of reach of one.
    low = bits_to_float((half + np.int32(127)) << np.int32(23))
    high = bits_to_float((power - half + np.int32(127)) << np.int32(23))
    return p * low * high if x == x else x  # noqa: PLR0124


@inlined
def _tanh(x):
    """Hyperbolic tangent, within 4 ulp."""
    a = abs(x)
    u = x * x
    p = _F(0.00229313732)
    p = p * u + _F(-0.00834407282)
    p = p * u + _F(0.0217688234)
    p = p * u + _F(-0.053959211)
    p = p * u + _F(0.133333029)
    p = p * u + _F(-0.333333332)
    small = x + x * u * p
    tail = _F(1.0) - _F(2.0) / (fast_exp(a + a) + _F(1.0))
    large = tail if x >= _F(0.0) else -tail
    result = small if a < _F(0.625) else large
    return result if x == x else x  # noqa: PLR0124


@inlined
def _sigmoid(x):
    return _F(1.0) / (_F(1.0) + fast_exp(-x))


@inlined
def _erf(x):
    """Error function, within 2e-7 absolute and 4 ulp near 0."""
    a = min(abs(x), _F(4.0))
    u = a * a
    p = _F(-9.67358972e-06)
    p = p * u + _F(0.000112682535)
    p = p * u + _F(-0.000848439649)
    p = p * u + _F(0.00522105341)
    p = p * u + _F(-0.0268654383)
    p = p * u + _F(0.112837826)
    p = p * u + _F(-0.376126385)
    p = p * u + _F(1.12837917)
    small = a * p
    c = a - _F(2.5)
    q = _F(-6.3860857e-06)
    q = q * c + _F(2.37575476e-05)
    q = q * c + _F(-5.35858091e-05)
    q = q * c + _F(0.000194458182)
    q = q * c + _F(-0.000738997568)
    q = q * c + _F(0.0024808596)
    q = q * c + _F(-0.0079993456)
    q = q * c + _F(0.0249340195)
    q = q * c + _F(-0.0743476009)
    q = q * c + _F(0.210806546)
    large = _F(1.0) - fast_exp(-u) * q
    magnitude = small if a < _F(1.0) else large
    result = magnitude if x >= _F(0.0) else -magnitude
    return result if x == x else x  # noqa: PLR0124


@inlined
def _min(x, y):
    # NumPy's minimum: NaN wins.
    return x if x <= y or x != x else y  # noqa: PLR0124


@inlined
def _max(x, y):
    return x if x >= y or x != x else y  # noqa: PLR0124


@inlined
def _idiv(x, y):
    """Integer division toward zero; 0 for a zero divisor, as NumPy has it."""
    if y == 0:
        return x * 0
    quotient = x // y
    return quotient + 1 if quotient * y != x and (x < 0) != (y < 0) else quotient


@inlined
def _sign(x):
    one = type(x)(1)
    return one if x > 0 else (-one if x < 0 else x)


@inlined
def _to_i(x):
    """Toward zero; what does not fit becomes the smallest integer, as NumPy's cast on x86."""
    inside = x > -9.2e18 and x < 9.2e18
    return np.int64(x) if inside else np.int64(-9223372036854775808)


@inlined
def _round_fp16(x):
    """Nearest fp16 value, ties to even; infinite from 65520 up."""
    bits = float_to_bits(_F(x))
    magnitude = bits_to_float(bits & np.int32(0x7FFFFFFF))
    # Normal fp16: clear 13 bits with rounding. Below 2**-14: a fixed step of 2**-24.
    odd = (bits >> np.int32(13)) & np.int32(1)
    rounded = bits_to_float(
        ((bits & np.int32(0x7FFFFFFF)) + np.int32(0xFFF) + odd) & np.int32(-8192)
    )
    tiny = (magnitude + _F(0.75)) - _F(0.75)
    value = tiny if magnitude < _F(6.103515625e-05) else rounded
    value = _F(np.inf) if value >= _F(65520.0) else value
    value = value if magnitude == magnitude else magnitude  # noqa: PLR0124
    return value if bits >= np.int32(0) else -value


@inlined
def half_to_float(half):
    """fp16 bits (uint16) to float32, exactly."""
    wide = np.int32(half)
    magnitude = (wide & np.int32(0x7FFF)) << np.int32(13)
    # The exponent's bias is 112 smaller; a product also normalizes denormals.
    finite = float_to_bits(bits_to_float(magnitude) * _F(2.0**112))
    special = magnitude | np.int32(0x7F800000)
    bits = special if (wide & np.int32(0x7C00)) == np.int32(0x7C00) else finite
    return bits_to_float(bits | ((wide & np.int32(0x8000)) << np.int32(16)))


@inlined
def float_to_half(x):
    """float32 to fp16 bits (int16), to the nearest, ties to even."""
    bits = float_to_bits(_round_fp16(x))
    magnitude = bits_to_float(bits & np.int32(0x7FFFFFFF))
    small = float_to_bits(magnitude * _F(2.0**-112)) >> np.int32(13)
    small = np.int32(0x7C00) if magnitude > _F(65504.0) else small
    small = small if magnitude == magnitude else np.int32(0x7E00)  # noqa: PLR0124
    return np.int16(small | ((bits >> np.int32(16)) & np.int32(0x8000)))


@inlined
def e4m3_to_float(byte):
    """fp8 bits (uint8) to float32, exactly."""
    wide = np.int32(byte)
    size = wide & np.int32(0x7F)
    moved = size << np.int32(20)
    # The exponent's bias is 120 smaller; subnormals have no leading 1, which with one is 2**-6.
    normal = bits_to_float(moved + np.int32(120 << 23))
    small = bits_to_float(moved + np.int32(121 << 23)) - _F(2.0**-6)
    bits = float_to_bits(small if size < np.int32(8) else normal)
    bits = np.int32(0x7FC00000) if size == np.int32(0x7F) else bits
    return bits_to_float(bits | ((wide & np.int32(0x80)) << np.int32(24)))


@inlined
def float_to_e4m3(x):
    """float32 to fp8 bits (int8), to the nearest, ties to even; saturates, NaN stays NaN."""
    bits = float_to_bits(_F(x))
    size = bits & np.int32(0x7FFFFFFF)
    # Below 2**-6: a fixed step of 2**-9. Above: 20 bits go, with rounding.
    tiny = float_to_bits(bits_to_float(size) + _F(16384.0)) - np.int32(0x46800000)
    odd = (size >> np.int32(20)) & np.int32(1)
    plain = (size - np.int32(0x3C000000 - 0x7FFFF) + odd) >> np.int32(20)
    found = tiny if size < np.int32(0x3C800000) else plain
    found = found if size < np.int32(0x43E00000) else np.int32(0x7E)
    found = np.int32(0x7F) if size > np.int32(0x7F800000) else found
    return np.int8(found | ((bits >> np.int32(24)) & np.int32(0x80)))


def _floor(x):
    return np.floor(x)


def _ceil(x):
    return np.ceil(x)


def _rint(x):
    return np.rint(x)


@functools.cache
def namespace(double: bool) -> Mapping[str, Any]:
    """What a program's source needs, computing in float64 if ``double``, else in float32."""
    real = np.float64 if double else np.float32

    def wrap(function: Callable[..., Any]) -> Any:
        return inlined(function)

    common = {
        "nan": math.nan,
        "inf": math.inf,
        "F": real,
        "I": np.int64,
        "idiv": _idiv,
        "min_": _min,
        "max_": _max,
        "abs_": abs,
        "sign_": _sign,
        "to_i": _to_i,
        "to_f": real,
        "pow_": wrap(lambda x, y: x**y),
        "sqrt_": math.sqrt,
        "log_": math.log,
        "sin_": math.sin,
        "cos_": math.cos,
        "floor_": wrap(_floor),
        "ceil_": wrap(_ceil),
        "rint_": wrap(_rint),
        "round_fp16": wrap(lambda x: real(_round_fp16(x))),
    }
    if double:
        fast = {
            "exp_": math.exp,
            "tanh_": math.tanh,
            "erf_": math.erf,
            "sigmoid_": wrap(lambda x: 1.0 / (1.0 + math.exp(-x))),
        }
    else:
        fast = {"exp_": fast_exp, "tanh_": _tanh, "erf_": _erf, "sigmoid_": _sigmoid}
    return MappingProxyType({**common, **fast})
