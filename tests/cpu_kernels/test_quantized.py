"""Products of int8, uint8 and fp8 on the CPU target: exact integers, and fp8 as it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name, variants_for
from nrt.dtypes import BYTES, FP8E4M3, FP16, FP32, INT8, INT32, UINT8, DType
from nrt.ir.op import Array
from nrt.ir.ops import Cast, Conv, MatMul, MaxPool, Pointwise
from nrt.ir.ops.common import cast
from nrt.ir.ops.quantize import byte_rounding
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem
from tests.cpu_kernels.harness import channel_slice, check, nhwc, problem, run, spec

# ‖out − ref‖ / ‖ref‖ of stored fp8: some sums of fp32 lie on the other side of a half.
FP8_TOLERANCE = 1e-2


def integers(rng: np.random.Generator, *shape: int, dtype: DType = INT8) -> Array:
    info = np.iinfo(dtype.numpy)
    return rng.integers(info.min, info.max + 1, shape, dtype.numpy)


def scaled(kinds: str = "") -> Program:
    """``max(sum * scale + bias, -3)`` and then what operands of ``kinds`` add."""
    b = Builder("fff" + kinds)
    value = b("max", b("add", b("mul", 0, 1), 2), b.const(-3.0))
    for slot, kind in enumerate(kinds, 3):
        value = b("add", value, b("to_f", slot) if kind == "i" else slot)
    return b.build(value)


def vectors(rng: np.random.Generator, count: int, depth: int) -> list[Array]:
    """Scales with which sums of int8 fill int8, and biases."""
    scale = 2.0 ** rng.integers(-2, 3, count) / (100 * np.sqrt(depth))
    return [v.astype(np.float32) for v in (scale, rng.standard_normal(count))]


SHAPES = [
    # x, w, attributes; more than 1040 products of 127 · 127 are beyond 2^24
    ((2, 5, 7, 9), (3, 5, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 35, 6, 5), (70, 35, 1, 1), {"strides": (2, 1)}),
    ((2, 12, 8, 6), (20, 3, 3, 2), {"groups": 4, "pads": (1, 0, 1, 1)}),
    ((1, 601, 4, 5), (5, 601, 2, 3), {"pads": (1, 2, 0, 1)}),
    ((1, 1100, 3, 3), (18, 1100, 1, 1), {}),
    ((1, 131, 5, 4), (7, 131, 3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), SHAPES)
def test_sums_of_int8_are_exact(
    x: tuple[int, ...], w: tuple[int, ...], attributes: Any, rng: np.random.Generator
) -> None:
    p = problem(Conv(**attributes), [nhwc(*x, dtype=INT8), spec(w, dtype=INT8)], ["nhwc"])
    assert p.y.dtype is INT32
    arrays = [integers(rng, *x), integers(rng, *w)]
    check("cpu_conv_staged", p, rng, arrays, all_configs=True)
    # The largest sums that there are, of either sign.
    arrays = [np.full(x, -128, np.int8), np.where(rng.integers(0, 2, w) > 0, -128, 127)]
    arrays[1][0] = -128
    check("cpu_conv_staged", p, rng, [arrays[0], arrays[1].astype(np.int8)])


@pytest.mark.parametrize(("x", "w", "attributes"), SHAPES[2:5])
def test_sums_of_uint8_and_int8_are_exact(
    x: tuple[int, ...], w: tuple[int, ...], attributes: Any, rng: np.random.Generator
) -> None:
    p = problem(Conv(**attributes), [nhwc(*x, dtype=UINT8), spec(w, dtype=INT8)], ["nhwc"])
    assert p.y.dtype is INT32
    factors = integers(rng, *w)
    check("cpu_conv_staged", p, rng, [integers(rng, *x, dtype=UINT8), factors], all_configs=True)
    # Odd numbers whose sums grow in one direction: beyond 2^24 none of them is exact in fp32.
    factors[0::2], factors[1::2] = 127, -127
    check("cpu_conv_staged", p, rng, [np.full(x, 255, np.uint8), factors], all_configs=True)


@pytest.mark.parametrize(("depth", "constant"), [(1040, True), (5000, False)])
def test_matrices_of_uint8_and_int8_are_exact(
    depth: int, constant: bool, rng: np.random.Generator
) -> None:
    p = problem(
        MatMul(trans_b=True), [spec((3, 5, depth), dtype=UINT8), spec((21, depth), dtype=INT8)],
        constants=(1,) if constant else (),
    )  # fmt: skip
    x, w = integers(rng, 3, 5, depth, dtype=UINT8), integers(rng, 21, depth)
    check("cpu_matmul_panels", p, rng, [x, w])
    for end in (-128, -127, 127):
        w[...] = end
        check("cpu_matmul_panels", p, rng, [np.full(x.shape, 255, np.uint8), w])


@pytest.mark.parametrize("depth", [37, 1040, 5000])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("trans_b", [True, False])
def test_matrices_of_int8_are_exact(
    depth: int, constant: bool, trans_b: bool, rng: np.random.Generator
) -> None:
    b = (21, depth) if trans_b else (depth, 21)
    p = problem(
        MatMul(trans_b=trans_b), [spec((3, 5, depth), dtype=INT8), spec(b, dtype=INT8)],
        constants=(1,) if constant else (),
    )  # fmt: skip
    check("cpu_matmul_panels", p, rng, [integers(rng, 3, 5, depth), integers(rng, *b)])
    check("cpu_matmul_panels", p, rng, [np.full(s.shape, -128, np.int8) for s in p.inputs])


def _quantized(op: Any, x: Any, w: tuple[int, ...], dtype: DType, extras: list[Any]) -> Problem:
    return problem(op, [x, spec(w, dtype=dtype), *extras], ["nhwc"], constants=(1, 2, 3))


@pytest.mark.parametrize(
    ("x_type", "added", "stored"),
    [(INT8, INT8, INT8), (UINT8, INT8, UINT8), (INT8, UINT8, UINT8), (UINT8, UINT8, INT8)],
    ids=str,
)
def test_bytes_are_stored_as_the_reference_does(
    x_type: DType, added: DType, stored: DType, rng: np.random.Generator
) -> None:
    """Scale, bias, a residual of bytes from a slice, rounding: at most a quantum at a half."""
    op = Conv(pads=(1, 1, 1, 1), epilogue=scaled("i"), out_dtype=stored)
    residual = channel_slice((2, 37, 9, 8), 41, added)
    extras = [spec((37, 1, 1)), spec((37, 1, 1)), residual]
    p = _quantized(op, nhwc(2, 33, 9, 8, dtype=x_type), (37, 33, 3, 3), INT8, extras)
    parts = [v.reshape(-1, 1, 1) for v in vectors(rng, 37, 9 * 33)]
    arrays = [integers(rng, *s.shape, dtype=s.dtype) for s in (*p.inputs[:2], residual)]
    arrays = [*arrays[:2], parts[0] * 30, parts[1], arrays[2]]
    # Some go below every residual.
    arrays[3][:9] -= 300
    variant = variant_by_name("cpu_conv_staged")
    ((out, _),) = run(variant, p, variant.configs(p)[0], arrays)
    apart = np.abs(out.astype(int) - op.reference(*arrays)[0])
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-3
    info = np.iinfo(stored.numpy)
    assert out.min() == max(info.min, np.iinfo(added.numpy).min - 3)
    assert out.max() == info.max


@pytest.mark.parametrize("stored", BYTES, ids=str)
def test_floats_become_bytes_in_the_store(stored: DType, rng: np.random.Generator) -> None:
    op = Conv(pads=(1, 1, 1, 1), epilogue=scaled(), out_dtype=stored)
    extras = [spec((20, 1, 1)), spec((20, 1, 1))]
    p = _quantized(op, nhwc(1, 3, 9, 7), (20, 3, 3, 3), FP32, extras)
    arrays = [rng.standard_normal(s.shape).astype(np.float32) for s in p.inputs]
    arrays[2] = 20 * arrays[2]
    arrays[2][:2, 0, 0] = 1e20, np.nan
    for name in ("cpu_conv_indirect", "cpu_conv_staged"):
        variant = variant_by_name(name)
        for config in variant.configs(p):
            ((out, _),) = run(variant, p, config, arrays)
            apart = np.abs(out.astype(int) - op.reference(*arrays)[0])
            assert apart.max() <= 1
            assert (apart > 0).mean() <= 2e-3
            assert out[:, 0].max() == np.iinfo(stored.numpy).max
            assert not out[:, 1].any()


@pytest.mark.parametrize(("x", "w", "attributes"), SHAPES)
@pytest.mark.parametrize("out", [FP32, FP16, FP8E4M3])
def test_fp8(
    x: tuple[int, ...], w: tuple[int, ...], attributes: Any, out: DType, rng: np.random.Generator
) -> None:
    op = Conv(**attributes, epilogue=scaled("f"), out_dtype=out)
    y = op.infer(*(s.type for s in (nhwc(*x, dtype=FP8E4M3), spec(w, dtype=FP8E4M3))),
                 *(spec((w[0], 1, 1)).type,) * 2, spec((), dtype=FP8E4M3).type)[0]  # fmt: skip
    extras = [spec((w[0], 1, 1)), spec((w[0], 1, 1)), nhwc(*y.shape, dtype=FP8E4M3)]
    p = _quantized(op, nhwc(*x, dtype=FP8E4M3), w, FP8E4M3, extras)
    arrays = [cast(20 * rng.standard_normal(s.shape), s.dtype) for s in p.inputs]
    arrays[2] = arrays[2] / np.float32(2e4)
    variant = variant_by_name("cpu_conv_staged")
    (wanted,) = op.reference(*arrays)
    for config in variant.configs(p):
        ((found, _),) = run(variant, p, config, arrays)
        assert found.dtype == out.numpy
        difference = np.linalg.norm((found.astype(np.float64) - wanted.astype(np.float64)).ravel())
        limit = {FP32: 1e-5, FP16: 1e-3, FP8E4M3: FP8_TOLERANCE}[out]
        assert difference <= limit * np.linalg.norm(wanted.astype(np.float64).ravel())


def test_fp8_reads_and_rounds_as_ml_dtypes_does(rng: np.random.Generator) -> None:
    every = np.arange(256, dtype=np.uint8).view(FP8E4M3.numpy)
    decode = problem(Cast(FP32), [spec((256,), dtype=FP8E4M3)])
    variant = variant_by_name("cpu_pointwise")
    ((found, _),) = run(variant, decode, (), [every])
    np.testing.assert_array_equal(found, every.astype(np.float32))
    numbers = every[:127].astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = [np.nextafter(middles, np.float32(end)) for end in (0, 1e9)]
    drawn = rng.integers(0, 2**32, 100_003, np.uint32).view(np.float32)
    ends = np.array([449, 464, 1e30, np.inf, 1e-40, 0], np.float32)
    values = np.concatenate([numbers, middles, *near, ends]).astype(np.float32)
    values = np.concatenate([values, -values, drawn[~np.isnan(drawn)], [np.nan]]).astype(np.float32)
    encode = problem(Cast(FP8E4M3), [spec(values.shape)])
    ((out, _),) = run(variant, encode, (), [values])
    wanted = cast(values, FP8E4M3)
    np.testing.assert_array_equal(out[:-1].view(np.uint8), wanted[:-1].view(np.uint8))
    assert np.isnan(out[-1].astype(np.float32))


@pytest.mark.parametrize("stored", BYTES, ids=str)
def test_pointwise_programs_read_and_store_bytes(stored: DType, rng: np.random.Generator) -> None:
    """Steps of a quarter are exact, so halves are too; both ends saturate."""
    b = Builder("iif")
    total = b("add", *(b("mul", b("to_f", k), b.const(0.25 + k)) for k in (0, 1)))
    p = problem(
        Pointwise(byte_rounding(b.build(b("add", total, 2)), stored), stored),
        [nhwc(2, 37, 5, 3, dtype=UINT8), channel_slice((2, 37, 5, 3), 41, INT8), spec((37, 1, 1))],
        ["nhwc"], constants=(),
    )  # fmt: skip
    shift = np.zeros((37, 1, 1), np.float32)
    shift[:4, 0, 0] = np.inf, -np.inf, np.nan, 0.25
    arrays = [integers(rng, *t.shape, dtype=t.dtype) for t in p.inputs[:2]]
    check("cpu_pointwise", p, rng, [*arrays, shift])


@pytest.mark.parametrize("dtype", [INT8, UINT8, FP8E4M3], ids=str)
@pytest.mark.parametrize("out", ["nhwc", None])
def test_maxima(dtype: DType, out: str | None, rng: np.random.Generator) -> None:
    # The first line of windows lies in the padding alone.
    op = MaxPool((3, 2), (2, 1), (3, 0, 0, 1), ceil_mode=True)
    x = channel_slice((2, 13, 7, 6), 21, dtype) if out else spec((2, 13, 7, 6), dtype=dtype)
    p = problem(op, [x], [out], constants=())  # type: ignore[list-item]
    spread = 50 * rng.standard_normal((2, 13, 7, 6))
    array = integers(rng, *spread.shape, dtype=UINT8) if dtype is UINT8 else cast(spread, dtype)
    variant = variant_by_name("cpu_pool")
    assert variant.supports(p) is None
    ((found, _),) = run(variant, p, (), [array])
    np.testing.assert_array_equal(found.view(np.uint8), op.reference(array)[0].view(np.uint8))


def test_quantized_products_do_not_fall_back() -> None:
    for dtype, weights in ((INT8, INT8), (UINT8, INT8), (FP8E4M3, FP8E4M3)):
        p = problem(
            Conv(), [nhwc(1, 16, 5, 5, dtype=dtype), spec((8, 16, 1, 1), dtype=weights)], ["nhwc"]
        )
        able = {v.name for v, refusal in variants_for(p) if refusal is None}
        assert able == {"cpu_conv_staged", "cpu_reference"}
