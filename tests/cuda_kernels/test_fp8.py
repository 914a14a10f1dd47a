"""fp8 in integer arithmetic, for GPUs that do not convert it: the code that LLVM is given."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic

from nrt.cuda_kernels import fp8
from nrt.dtypes import FP8E4M3
from nrt.ir.ops.common import cast


def _on_the_host(code: Callable[..., Any], result: Any, argument: Any) -> Any:
    """The same code as a function of the host, over arrays."""

    @intrinsic
    def convert(typingctx, value):
        return result(argument), lambda context, builder, sig, args: code(builder, args[0])

    @njit
    def over(values, out):
        for i in range(values.size):
            out[i] = convert(values[i])

    return over


@pytest.fixture(scope="module")
def encode() -> Callable[[np.ndarray], np.ndarray]:
    over = _on_the_host(fp8.encoded, types.uint32, types.float32)

    def run(values: np.ndarray) -> np.ndarray:
        out = np.empty(values.size, np.uint32)
        over(values, out)
        return out.astype(np.uint8)

    return run


def test_every_number_is_decoded() -> None:
    bits = np.arange(256, dtype=np.uint32)
    out = np.empty(256, np.float32)
    _on_the_host(fp8.decoded, types.float32, types.uint32)(bits, out)
    wanted = bits.astype(np.uint8).view(FP8E4M3.numpy).astype(np.float32)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(wanted))


def test_to_nearest_even_and_saturated(encode: Callable[[np.ndarray], np.ndarray]) -> None:
    numbers = np.arange(127, dtype=np.uint8).view(FP8E4M3.numpy).astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = [np.nextafter(middles, np.float32(end)) for end in (0, 1e9)]
    rng = np.random.default_rng(secrets.randbits(32))
    # Any bits: every exponent, infinities and NaN among them.
    drawn = rng.integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    usual = (rng.standard_normal(50_000) * 10.0 ** rng.integers(-4, 3, 50_000)).astype(np.float32)
    ends = np.array([448, 449, 464, 480, 1e30, np.inf, 1e-40, 0, np.nan], np.float32)
    values = np.concatenate([numbers, middles, *near, usual, ends]).astype(np.float32)
    values = np.concatenate([values, -values, drawn])
    found = encode(values)
    with np.errstate(invalid="ignore"):
        wanted = cast(values, FP8E4M3).view(np.uint8)
    np.testing.assert_array_equal(found & 0x7F, wanted & 0x7F)
    real = ~np.isnan(values)
    np.testing.assert_array_equal(found[real] >> 7, wanted[real] >> 7)
