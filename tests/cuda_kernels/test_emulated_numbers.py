"""Conversions of the emulator against NumPy's."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from .emulated_numbers import bf16, bits_float, dp4a, float_bits, half, half_bits

EDGES = [
    0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.99, 65520.0, -65520.0, 2.0**-24, 2.0**-25,
    3.4028235e38, 3.4028235677973366e38, 1e39, -1e40, 1e-50, 1, True, 10**20,
]  # fmt: skip


def test_every_pattern_of_16_bits() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for decode, dtype in ((half, np.float16), (bf16, ml_dtypes.bfloat16)):
        found = [decode(bits) for bits in range(1 << 16)]
        with np.errstate(invalid="ignore"):
            wanted = patterns.view(dtype).astype(np.float64)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


def test_floats_round_to_the_nearest_even_and_overflow(rng: np.random.Generator) -> None:
    spread = rng.standard_normal(4000) * 10.0 ** rng.uniform(-10, 6, 4000)
    wide = rng.standard_normal(4000) * 10.0 ** rng.uniform(-46, 40, 4000)
    for value in [*EDGES, *spread.tolist(), *wide.tolist()]:
        with np.errstate(over="ignore"):
            assert half_bits(value) == np.float16(value).view(np.uint16), value
            assert float_bits(value) == np.float32(value).view(np.uint32), value
    assert math.isnan(half(half_bits(math.nan)))
    assert math.isnan(bits_float(float_bits(math.nan)))


@pytest.mark.parametrize("left", [np.int8, np.uint8])
def test_products_of_four_bytes(left: type, rng: np.random.Generator) -> None:
    words = rng.integers(0, 1 << 32, (500, 2), dtype=np.uint32)
    sums = rng.integers(-(1 << 31), 1 << 31, 500)
    x = words[:, :1].copy().view(left).astype(np.int64)
    y = words[:, 1:].copy().view(np.int8).astype(np.int64)
    wanted = ((x * y).sum(1) + sums).astype(np.int32)  # wraps
    found = [dp4a(left)(int(a), int(b), int(c)) for (a, b), c in zip(words, sums, strict=True)]
    np.testing.assert_array_equal(found, wanted)
