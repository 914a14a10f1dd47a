"""The error function against the C library's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nrt.ir.special import CHUNK, erf

exact = np.vectorize(math.erf, otypes=[np.float64])


def test_float64_is_exact(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 11)) * 3
    np.testing.assert_array_equal(erf(x), exact(x))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 2.5, 10.0])
def test_float32_is_correct_to_the_last_place(rng: np.random.Generator, scale: float) -> None:
    x = (rng.standard_normal((3, CHUNK // 2 + 1)) * scale).astype(np.float32)
    y = erf(x)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    np.testing.assert_array_max_ulp(y, exact(x.astype(np.float64)).astype(np.float32), maxulp=1)


def test_special_values() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 2.5, -2.5, 6.0, 1e30], np.float32)
    y = erf(x)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, exact(x.astype(np.float64)).astype(np.float32))
    assert math.copysign(1, y[1]) == -1
    assert erf(np.float32(0.5).reshape(())).shape == ()
    assert erf(np.zeros((0, 3), np.float32)).shape == (0, 3)
