"""Conv and ConvTranspose against the definition, written as loops over every index."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nrt.dtypes import BF16, FP16, FP32, INT8, INT32
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.ops import Conv, ConvTranspose
from nrt.ir.pointwise import Builder

RTOL64 = 1e-12
RTOL32 = 2e-5
RTOL16 = 2e-3
RTOLB16 = 1.6e-2


def naive_conv(x: Array, w: Array, op: Conv) -> Array:
    rank = x.ndim - 2
    padded = np.pad(x, [(0, 0), (0, 0), *zip(op.pads[:rank], op.pads[rank:], strict=True)])
    out = [
        (padded.shape[2 + i] - (w.shape[2 + i] - 1) * op.dilations[i] - 1) // op.strides[i] + 1
        for i in range(rank)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per_in, per_out = x.shape[1] // op.groups, w.shape[0] // op.groups
    for n, k, c in itertools.product(range(x.shape[0]), range(w.shape[0]), range(per_in)):
        for place, tap in itertools.product(np.ndindex(*out), np.ndindex(*w.shape[2:])):
            at = [place[i] * op.strides[i] + tap[i] * op.dilations[i] for i in range(rank)]
            channel = k // per_out * per_in + c
            y[(n, k, *place)] += padded[(n, channel, *at)] * w[(k, c, *tap)]
    return y


def naive_transposed(x: Array, w: Array, op: ConvTranspose) -> Array:
    rank = x.ndim - 2
    full = [
        op.strides[i] * (x.shape[2 + i] - 1)
        + (w.shape[2 + i] - 1) * op.dilations[i]
        + 1
        + op.output_padding[i]
        for i in range(rank)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * op.groups, *full))
    per_in = x.shape[1] // op.groups
    for n, c, k in itertools.product(range(x.shape[0]), range(x.shape[1]), range(w.shape[1])):
        for place, tap in itertools.product(np.ndindex(*x.shape[2:]), np.ndindex(*w.shape[2:])):
            at = [place[i] * op.strides[i] + tap[i] * op.dilations[i] for i in range(rank)]
            y[(n, c // per_in * w.shape[1] + k, *at)] += x[(n, c, *place)] * w[(c, k, *tap)]
    cut = tuple(slice(op.pads[i], full[i] - op.pads[rank + i]) for i in range(rank))
    return y[(slice(None), slice(None), *cut)]


@pytest.mark.parametrize(
    ("xs", "ws", "op"),
    [
        ((2, 3, 7, 9), (5, 3, 3, 3), Conv(pads=(1, 1, 1, 1))),
        ((1, 6, 8, 5), (4, 3, 3, 2), Conv((2, 1), (1, 0, 2, 1), (1, 2), 2)),
        ((3, 5, 6, 7), (5, 1, 3, 3), Conv((2, 2), (1, 1, 0, 0), (1, 1), 5)),
        ((1, 3, 5, 5), (6, 1, 2, 3), Conv((1, 2), (0, 1, 0, 1), (2, 1), 3)),
        ((2, 7, 4, 3), (9, 7, 1, 1), Conv()),
        ((1, 4, 5, 6), (3, 4, 1, 1), Conv((2, 3))),
        ((2, 2, 11), (3, 2, 4), Conv((3,), (2, 1), (2,))),
        ((1, 2, 4, 5, 3), (2, 1, 2, 3, 2), Conv((1, 2, 1), (1, 0, 0, 0, 1, 1), (1, 1, 2), 2)),
        ((0, 2, 4, 4), (3, 2, 3, 3), Conv()),
    ],
)
def test_conv_matches_the_definition(
    rng: np.random.Generator, xs: tuple[int, ...], ws: tuple[int, ...], op: Conv
) -> None:
    x, w = rng.standard_normal(xs), rng.standard_normal(ws)
    want = naive_conv(x, w, op)
    (y,) = op.reference(x, w)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, want, rtol=RTOL64, atol=RTOL64)
    (y32,) = op.reference(x.astype(np.float32), w.astype(np.float32))
    assert y32.dtype == np.float32
    np.testing.assert_allclose(y32, want, rtol=RTOL32, atol=RTOL32)


@pytest.mark.parametrize(
    ("xs", "ws", "op"),
    [
        ((2, 3, 4, 5), (3, 5, 3, 3), ConvTranspose((2, 2), (1, 1, 1, 1), (1, 1), 1, (1, 1))),
        ((1, 4, 3, 6), (4, 3, 2, 3), ConvTranspose((2, 1), (0, 1, 1, 0), (1, 2), 2)),
        ((2, 3, 5), (3, 2, 4), ConvTranspose((3,), (2, 1), (1,), 1, (2,))),
        (
            (1, 2, 2, 3, 2),
            (2, 1, 2, 2, 2),
            ConvTranspose((1, 2, 1), (0,) * 6, (1, 1, 2), 2, (0, 1, 0)),
        ),
    ],
)
def test_conv_transpose_matches_the_definition(
    rng: np.random.Generator, xs: tuple[int, ...], ws: tuple[int, ...], op: ConvTranspose
) -> None:
    x, w = rng.standard_normal(xs), rng.standard_normal(ws)
    bias = rng.standard_normal(ws[1] * op.groups)
    want = naive_transposed(x, w, op) + bias.reshape(-1, *[1] * (x.ndim - 2))
    (y,) = op.reference(x, w, bias)
    np.testing.assert_allclose(y, want, rtol=RTOL64, atol=RTOL64)


def test_bias_is_added_per_channel(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((7, 3, 2, 2))
    bias = rng.standard_normal(7)
    op = Conv(pads=(0, 1, 1, 0))
    (without,) = op.reference(x, w)
    (y,) = op.reference(x, w, bias)
    np.testing.assert_allclose(y, without + bias[:, None, None], rtol=RTOL64)


def test_epilogue_reads_bias_and_residual(rng: np.random.Generator) -> None:
    """relu(acc + bias) + residual, with an fp16 residual beside fp32 operands."""
    b = Builder("fff")
    relu = b("max", b("add", 0, 1), b.const(0.0))
    program = b.build(b("add", relu, 2))
    x = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    bias = rng.standard_normal((4, 1, 1)).astype(np.float32)
    residual = rng.standard_normal((2, 4, 4, 3)).astype(np.float16)
    (y,) = Conv(epilogue=program, out_dtype=FP16).reference(x, w, bias, residual)
    want = np.maximum(naive_conv(x, w, Conv()) + bias, 0) + residual
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, want, rtol=RTOL16, atol=RTOL16)


def test_small_floats_accumulate_in_float32(rng: np.random.Generator) -> None:
    """A sum of 2049 ones does not fit fp16's 11 bits before the final rounding."""
    x = np.ones((1, 2049, 1, 1), np.float16)
    w = np.ones((1, 2049, 1, 1), np.float16)
    (y,) = Conv(out_dtype=FP32).reference(x, w)
    assert y.item() == 2049.0
    x16 = rng.standard_normal((1, 65, 4, 4)).astype(BF16.numpy)
    w16 = rng.standard_normal((3, 65, 3, 3)).astype(BF16.numpy)
    (half,) = Conv().reference(x16, w16)
    want = naive_conv(x16.astype(float), w16.astype(float), Conv())
    assert half.dtype == BF16.numpy
    np.testing.assert_allclose(half.astype(float), want, rtol=RTOLB16, atol=RTOLB16)


def test_int8_sums_are_exact(rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (1, 37, 5, 6)).astype(np.int8)
    w = rng.integers(-128, 128, (4, 37, 3, 3)).astype(np.int8)
    (y,) = Conv(out_dtype=INT32).reference(x, w)
    want = naive_conv(x.astype(float), w.astype(float), Conv())
    np.testing.assert_array_equal(y, want.astype(np.int32))
    b = Builder("ff")
    program = b.build(b("round", b("mul", 0, 1)))
    scale = np.float32([2**-9, 2**-10, 2**-8, 2**-12]).reshape(4, 1, 1)
    (q,) = Conv(epilogue=program, out_dtype=INT8).reference(x, w, scale)
    np.testing.assert_array_equal(q, np.clip(np.rint(want * scale), -128, 127).astype(np.int8))


def test_results_do_not_alias_inputs(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 2, 2))
    w = np.ones((1, 1, 1, 1))
    (y,) = Conv().reference(x, w)
    y[:] = 0
    assert np.all(x != 0)


def _type(*shape: int) -> TensorType:
    return TensorType(shape, FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            Conv(),
            [_type(3, 4), _type(3, 4)],
            r"Conv: input \[3,4\] has rank 2, expected at least 3",
        ),
        (
            Conv(),
            [_type(1, 3, 5, 5), _type(4, 3, 3)],
            r"Conv: weights \[4,3,3\] have rank 3, expected 4",
        ),
        (
            Conv(),
            [_type(1, 3, 5, 5), _type(8, 64, 3, 3)],
            "Conv: input has 3 channels, weights expect 64",
        ),
        (
            Conv(groups=2),
            [_type(1, 6, 5, 5), _type(5, 3, 3, 3)],
            "Conv: 5 output channels do not divide into 2 groups",
        ),
        (
            Conv(groups=0),
            [_type(1, 6, 5, 5), _type(5, 3, 3, 3)],
            "Conv: groups is 0, expected at least 1",
        ),
        (
            Conv(),
            [_type(1, 3, 5), _type(4, 3, 3)],
            r"Conv: strides \(1, 1\) has 2 entries, expected 1",
        ),
        (
            Conv(strides=(0, 1)),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3)],
            r"Conv: strides \(0, 1\) must be at least 1",
        ),
        (
            Conv(pads=(0, -1, 0, 0)),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3)],
            r"Conv: pads \(0, -1, 0, 0\) must be at least 0",
        ),
        (
            Conv(dilations=(1, 3)),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3)],
            "Conv: kernel spans 7 in spatial dimension 1, the padded input has 5",
        ),
        (
            Conv(),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3), _type(3)],
            r"Conv: bias has shape \[3\], expected \[4\]",
        ),
        (
            Conv(),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3), _type(4), _type(4)],
            "Conv: got 4 inputs, expected 2 or 3 without an epilogue",
        ),
        (
            Conv(),
            [_type(1, 3, 5, 5), TensorType((4, 3, 3, 3), FP16)],
            "Conv: input is fp32, weights is fp16; expected one dtype, insert a Cast",
        ),
        (
            ConvTranspose(),
            [_type(1, 3, 5, 5), _type(4, 3, 3, 3)],
            "ConvTranspose: input has 3 channels, weights expect 4",
        ),
        (
            ConvTranspose(groups=2),
            [_type(1, 3, 5, 5), _type(3, 3, 3, 3)],
            "ConvTranspose: 3 channels do not divide into 2 groups",
        ),
        (
            ConvTranspose(pads=(1, 0, 1, 0)),
            [_type(1, 3, 1, 5), _type(3, 3, 2, 2)],
            "ConvTranspose: pads cut 2 of 2 elements in spatial dimension 0, expected fewer",
        ),
    ],
)
def test_misfits_are_named(op: Conv, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(*inputs)


def test_epilogue_misfits_are_named() -> None:
    x, w = _type(1, 3, 5, 5), _type(4, 3, 3, 3)
    b = Builder("ff")
    program = b.build(b("add", 0, 1))
    op = Conv(epilogue=program)
    with pytest.raises(ShapeError, match="got 0 epilogue inputs, the epilogue reads 1"):
        op.infer(x, w)
    with pytest.raises(
        ShapeError, match="epilogue input 0 is int32, the epilogue expects kind 'f'"
    ):
        op.infer(x, w, TensorType((4, 1, 1), INT32))
    with pytest.raises(
        ShapeError, match=r"shape \[2,4,3,3\], which does not broadcast to the output"
    ):
        op.infer(x, w, _type(2, 4, 3, 3))
    with pytest.raises(ShapeError, match=r"shapes \[5,1,1\], \[1,4,3,3\] do not broadcast"):
        op.infer(x, w, _type(5, 1, 1))
    integer = Builder("i")
    with pytest.raises(ShapeError, match="register 0 must be the float accumulator"):
        Conv(epilogue=integer.build(0)).infer(x, w)
    two = Builder("f")
    with pytest.raises(ShapeError, match="epilogue has 2 outputs, expected 1"):
        Conv(epilogue=two.build(0, 0)).infer(x, w)
