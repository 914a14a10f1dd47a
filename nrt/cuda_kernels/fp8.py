"""fp8 in e4m3: by instructions where there are such, sm_89 on, else in integer arithmetic.

Layout: a sign, four bits of exponent with bias 7, three of mantissa; no infinities, NaN is 0x7F,
the largest number 448 (Micikevicius et al. 2022, "FP8 formats for deep learning").
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx

__all__ = ["e4m3_from_f32", "e4m3_word", "f32_from_e4m3"]

f32 = types.float32
u16 = types.uint16
u32 = types.uint32

_NAN = 0x7FC00000
"""Of float32."""


@cuda.jit(device=True, inline="always")
def _decoded(bits):
    """The float32 of e4m3 ``bits``, on any GPU.

    The mantissa under the exponent field of fp16 is the number over 256, subnormals included: the
    two biases are 7 and 15.
    """
    low = u32(u32(bits) & u32(0x7F))
    half = u16(u32(low << u32(7)) | u32(u32(u32(bits) & u32(0x80)) << u32(8)))
    value = ptx.float_bits(ptx.f32_from_f16(half) * f32(256))
    return ptx.bits_float(ptx.select_below(low, u32(0x7F), value, u32(_NAN)))


@cuda.jit(device=True, inline="always")
def _encoded(value):
    """`e4m3_from_f32` on any GPU.

    Numbers below 2^-6 are multiples of 2^-9: added to 2^14, whose last bit is that, they round in
    the adder. Above, the 20 bits that go are rounded in the integer, whose carry grows the exponent
    as it should.
    """
    bits = ptx.float_bits(f32(value))
    sign = u32(u32(bits >> u32(24)) & u32(0x80))
    size = u32(bits & u32(0x7FFFFFFF))
    tiny = u32(ptx.float_bits(ptx.bits_float(size) + f32(16384)) - u32(0x46800000))
    odd = u32(u32(size >> u32(20)) & u32(1))
    # 0x3C000000 is the difference of the biases, 120, in the exponent's place.
    plain = u32(u32(size - u32(0x3C000000) + u32(0x7FFFF) + odd) >> u32(20))
    small = ptx.select_below(size, u32(0x3C800000), tiny, plain)
    outside = ptx.select_below(u32(0x7F800000), size, u32(0x7F), u32(0x7E))
    return u32(sign | ptx.select_below(size, u32(0x43E00000), small, outside))


@cuda.jit(device=True, inline="always")
def f32_from_e4m3(bits):
    """The float32 of e4m3 ``bits`` in the lowest byte, the others 0."""
    return ptx.f32_from_e4m3_byte(u32(bits)) if ptx.converts_e4m3() else _decoded(bits)


@cuda.jit(device=True, inline="always")
def e4m3_from_f32(value):
    """e4m3 bits of a float32, to nearest even; beyond 448 it saturates, NaN stays NaN."""
    if ptx.converts_e4m3():
        return u32(ptx.e4m3x4_from_f32(f32(value), f32(0), f32(0), f32(0)))
    return _encoded(value)


@cuda.jit(device=True, inline="always")
def e4m3_word(a, b, c, d):
    """Four floats as e4m3, the first in the lowest byte."""
    if ptx.converts_e4m3():
        return u32(ptx.e4m3x4_from_f32(f32(a), f32(b), f32(c), f32(d)))
    low = u32(_encoded(a) | u32(_encoded(b) << u32(8)))
    high = u32(_encoded(c) | u32(_encoded(d) << u32(8)))
    return u32(low | u32(high << u32(16)))
