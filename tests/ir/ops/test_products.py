"""Products of int8, fp8 and tf32: the types of sums, exact sums, rounding of int8 results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, INT32, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.ops import Conv, ConvTranspose, MatMul
from nrt.ir.pointwise import Builder, identity
from nrt.problem import op_from_data, op_to_data

RTOL32 = 1e-6
RTOL16 = 1e-3

_b = Builder("ff")
SCALE = _b.build(_b("mul", 0, 1))


def types_of(op: Conv | MatMul, dtype: DType) -> tuple[TensorType, TensorType]:
    if isinstance(op, Conv):
        return TensorType((2, 6, 5, 7), dtype), TensorType((3, 6, 1, 1), dtype)
    return TensorType((5, 7), dtype), TensorType((7, 3), dtype)


def int8(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("op", [Conv(), MatMul()], ids=str)
@pytest.mark.parametrize(
    ("operands", "asked", "found"),
    [
        (INT8, None, INT32), (INT8, INT32, INT32), (INT8, FP16, FP16), (INT8, BF16, BF16),
        (INT8, FP32, FP32), (INT8, INT8, INT8), (FP8E4M3, None, FP16), (FP8E4M3, BF16, BF16),
        (FP8E4M3, FP32, FP32), (FP8E4M3, FP8E4M3, FP8E4M3), (FP16, None, FP16),
        (FP32, FP8E4M3, FP8E4M3), (INT32, None, INT32),
    ],
)  # fmt: skip
def test_types_of_sums(
    op: Conv | MatMul, operands: DType, asked: DType | None, found: DType
) -> None:
    (y,) = replace(op, out_dtype=asked).infer(*types_of(op, operands))
    assert y.dtype is found


@pytest.mark.parametrize("op", [Conv(), MatMul()], ids=str)
@pytest.mark.parametrize(
    ("operands", "attributes", "message"),
    [
        (
            INT8,
            {"epilogue": identity()},
            "products of int8 behind an epilogue are stored as int32; expected out_dtype to be one "
            "of fp16, bf16, fp32, int8, uint8, fp8e4m3",
        ),
        (
            INT8,
            {"out_dtype": FP8E4M3},
            "products of int8 are stored as fp8e4m3; expected out_dtype to be one of int32, fp16, "
            "bf16, fp32, int8, uint8",
        ),
        (
            FP8E4M3,
            {"out_dtype": INT32},
            "products of fp8e4m3 are stored as int32; expected out_dtype to be one of fp16, bf16, "
            "fp32, fp8e4m3",
        ),
        (FP16, {"tf32": True}, "tf32 rounds fp32 operands, these are fp16; expected tf32=False"),
        (INT8, {"tf32": True}, "tf32 rounds fp32 operands, these are int8; expected tf32=False"),
    ],
)
def test_misfits_are_named(
    op: Conv | MatMul, operands: DType, attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        replace(op, **attributes).infer(*types_of(op, operands))
    assert str(caught.value) == f"{op.name}: {message}"


def test_operands_share_a_type() -> None:
    x, w = types_of(MatMul(), INT8)
    with pytest.raises(ShapeError, match="a is int8, b is fp16; expected one dtype"):
        MatMul().infer(x, replace(w, dtype=FP16))


def test_int8_takes_a_bias_in_an_epilogue_only(rng: np.random.Generator) -> None:
    x, w, bias = int8(rng, 1, 5, 3, 3), int8(rng, 4, 5, 3, 3), np.ones(4, np.int32)
    with pytest.raises(ShapeError, match="a bias beside int8 operands; add it in an epilogue"):
        Conv().reference(x, w, bias)


def test_transposed_convolutions_have_the_same_types(rng: np.random.Generator) -> None:
    x, w = int8(rng, 1, 5, 3, 3), int8(rng, 5, 4, 3, 3)
    (y,) = ConvTranspose().reference(x, w)
    (want,) = ConvTranspose().reference(x.astype(np.int64), w.astype(np.int64))
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, want)
    scale = np.array(0.125, np.float32)
    (scaled,) = ConvTranspose(epilogue=SCALE, out_dtype=FP32).reference(x, w, scale)
    np.testing.assert_array_equal(scaled, want.astype(np.float32) * scale)
    with pytest.raises(ShapeError, match="a bias beside int8 operands"):
        ConvTranspose().reference(x, w, np.ones(4, np.int32))


def test_int8_matrix_products_are_exact_beyond_floats(rng: np.random.Generator) -> None:
    # 20001 products reach 2^28: float32 holds no such sums.
    x, w = np.full((3, 20001), 127, np.int8), np.full((20001, 2), 127, np.int8)
    x[:, 0] = [1, 2, 3]
    (y,) = MatMul().reference(x, w)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("groups", [1, 3])
def test_int8_convolutions_are_exact(rng: np.random.Generator, groups: int) -> None:
    x, w = int8(rng, 2, 6, 5, 7), int8(rng, 9, 6 // groups, 3, 3)
    op = Conv((2, 1), (1, 0, 1, 2), (1, 1), groups)
    (y,) = op.reference(x, w)
    (want,) = op.reference(x.astype(np.int64), w.astype(np.int64))
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, want)


def test_an_epilogue_reads_int8_sums_as_float32(rng: np.random.Generator) -> None:
    x, w = int8(rng, 5, 3001), int8(rng, 3001, 7)
    scale = rng.uniform(1e-5, 1e-4, 7).astype(np.float32)
    (y,) = MatMul(epilogue=SCALE, out_dtype=FP32).reference(x, w, scale)
    sums = (x.astype(np.int64) @ w.astype(np.int64)).astype(np.float32)
    np.testing.assert_array_equal(y, sums * scale)
    (half,) = MatMul(epilogue=SCALE, out_dtype=FP16).reference(x, w, scale)
    np.testing.assert_allclose(half, sums * scale, rtol=RTOL16)
    (plain,) = MatMul(out_dtype=FP32).reference(x, w)
    np.testing.assert_array_equal(plain, sums)


@pytest.mark.parametrize("conv", [False, True])
def test_int8_results_round_to_even_and_saturate(conv: bool) -> None:
    sums = [1, 3, 5, -1, -3, 253, 255, 257, -255, -256, -257, 999, -999]
    x = np.array([[v // 9, v % 9] for v in sums], np.int8)
    w = np.array([[9], [1]], np.int8)
    half = np.array([[0.5]], np.float32)
    if conv:
        op = Conv(epilogue=SCALE, out_dtype=INT8)
        (y,) = op.reference(x.T[None, :, :, None], w.T[:, :, None, None], half)
    else:
        (y,) = MatMul(epilogue=SCALE, out_dtype=INT8).reference(x, w, half)
    assert y.dtype == np.int8
    assert y.ravel().tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128, 127, -128]
    (plain,) = MatMul(out_dtype=INT8).reference(x, w)
    assert plain.ravel().tolist() == np.clip(sums, -128, 127).tolist()


def test_float_products_round_to_int8_too() -> None:
    x = np.array([[0.5], [1.5], [2.5], [-0.5], [-1.5], [6e4], [np.nan]], np.float16)
    (y,) = MatMul(out_dtype=INT8).reference(x, np.ones((1, 1), np.float16))
    assert y.ravel().tolist() == [0, 2, 2, 0, -2, 127, 0]
    transposed = ConvTranspose(out_dtype=INT8)
    (z,) = transposed.reference(x[None, :1, :, None], np.ones((1, 1, 1, 1), np.float16))
    assert z.ravel().tolist() == [0]


def test_fp8_products_accumulate_in_float32(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 301)).astype(FP8E4M3.numpy)
    w = rng.standard_normal((301, 7)).astype(FP8E4M3.numpy)
    want = x.astype(np.float64) @ w.astype(np.float64)
    (y,) = MatMul(out_dtype=FP32).reference(x, w)
    np.testing.assert_allclose(y, want, rtol=0, atol=RTOL32 * np.abs(want).max() * 10)
    (half,) = MatMul().reference(x, w)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, want, rtol=0, atol=RTOL16 * np.abs(want).max())
    image, taps = x.reshape(1, 5, 43, 7), w.reshape(7, 301)[:, :5].reshape(7, 5, 1, 1)
    (maps,) = Conv().reference(image, taps)
    (maps64,) = Conv().reference(image.astype(np.float64), taps.astype(np.float64))
    np.testing.assert_allclose(maps, maps64, rtol=0, atol=RTOL16 * np.abs(maps64).max())


@pytest.mark.parametrize("op", [Conv(tf32=True), MatMul(tf32=True)], ids=str)
def test_tf32_references_stay_exact(op: Conv | MatMul, rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(t.shape, np.float32) for t in types_of(op, FP32))
    np.testing.assert_array_equal(op.reference(a, b), replace(op, tf32=False).reference(a, b))
    # The tests' oracle computes in float64.
    assert op.reference(a.astype(np.float64), b.astype(np.float64))[0].dtype == np.float64
    assert op.infer(*types_of(op, FP32))[0].dtype is FP32


@pytest.mark.parametrize("op", [Conv(tf32=True), MatMul(trans_b=True, tf32=True)], ids=str)
def test_tf32_is_kept_in_plans(op: Conv | MatMul) -> None:
    data = op_to_data(op)
    assert data[1]["tf32"] is True
    assert op_from_data(data) == op
    assert "tf32" not in op_to_data(replace(op, tf32=False))[1]
    assert op != replace(op, tf32=False)
