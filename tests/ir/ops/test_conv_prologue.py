"""The prologue of a convolution against the convolution of what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, INT64, DType
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import Conv
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program

RTOL = 1e-12


def norm() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


def relu_bias() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("add", 0, 1), b.const(0.0)))


def random(*shape: int) -> Any:
    return np.random.default_rng().standard_normal(shape)


@pytest.mark.parametrize(
    ("shape", "filters", "op"),
    [
        ((2, 6, 5, 7), (4, 6, 1, 1), Conv(strides=(2, 1))),
        ((1, 6, 4, 5), (4, 3, 3, 3), Conv(pads=(1, 0, 2, 1), groups=2)),
        ((1, 5, 6), (3, 5, 2), Conv(strides=(1,), pads=(1, 1), dilations=(2,))),
        ((1, 3, 4, 4), (6, 1, 3, 3), Conv(pads=(1, 1, 1, 1), groups=3)),
    ],
)
def test_padding_comes_after_it(shape: tuple[int, ...], filters: tuple[int, ...], op: Conv) -> None:
    x, w = random(*shape), random(*filters)
    channel = (shape[1], *[1] * (len(shape) - 2))
    scale, shift = random(*channel), random(*channel)
    (wanted,) = op.reference(np.maximum(x * scale + shift, 0), w)
    with_prologue = Conv(**{**op.attributes(), "prologue": norm()})
    (found,) = with_prologue.reference(x, w, scale, shift)
    np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=RTOL)


def test_operands_stand_before_those_of_the_epilogue() -> None:
    op = Conv(prologue=norm(), epilogue=relu_bias())
    assert epilogue_slot(op) == 4
    x, w, scale, bias = random(2, 6, 3, 4), random(5, 6, 1, 1), random(6, 1, 1), random(5, 1, 1)
    shift = np.array(0.25)
    (found,) = op.reference(x, w, scale, shift, bias)
    (plain,) = Conv(epilogue=relu_bias()).reference(np.maximum(x * scale + 0.25, 0), w, bias)
    np.testing.assert_allclose(found, plain, rtol=RTOL, atol=RTOL)
    # Without an epilogue a bias follows.
    b = Builder("f")
    plain_op = Conv(prologue=b.build(b("exp", 0)))
    (found,) = plain_op.reference(x, w, bias.reshape(-1))
    (plain,) = Conv().reference(np.exp(x), w, bias.reshape(-1))
    np.testing.assert_allclose(found, plain, rtol=RTOL)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_its_result_is_rounded_to_the_type_of_the_input(dtype: DType) -> None:
    x = random(1, 3, 2, 2).astype(dtype.numpy)
    scale, shift = (random(3, 1, 1).astype(np.float32) for _ in range(2))
    w = np.eye(3).reshape(3, 3, 1, 1).astype(dtype.numpy)
    (found,) = Conv(prologue=norm()).reference(x, w, scale, shift)
    stored = np.maximum(x.astype(np.float32) * scale + shift, 0).astype(dtype.numpy)
    np.testing.assert_array_equal(found, stored)
    (wide,) = Conv(prologue=norm(), out_dtype=FP32).reference(x, w, scale, shift)
    np.testing.assert_array_equal(wide, stored.astype(np.float32))


def test_a_prologue_that_forgets_the_input_keeps_the_shape() -> None:
    b = Builder("ff")
    op = Conv(prologue=b.build(b("exp", 1)))
    x, w, number = random(2, 3, 2, 4), random(4, 3, 1, 1), random(3, 1, 1)
    (found,) = op.reference(x, w, number)
    (wanted,) = Conv().reference(np.broadcast_to(np.exp(number), x.shape), w)
    np.testing.assert_allclose(found, wanted, rtol=RTOL)


def _two_outputs() -> Program:
    b = Builder("f")
    return b.build(0, b("exp", 0))


def _integers() -> Program:
    b = Builder("fi")
    return b.build(b("add", 0, b("to_f", 1)))


def _comparison() -> Program:
    b = Builder("ff")
    return b.build(b("lt", 0, 1))


@pytest.mark.parametrize(
    ("prologue", "operands", "dtype", "message"),
    [
        (norm(), [(6, 1, 1)], FP16, "Conv: got 1 prologue inputs, the prologue reads 2"),
        (
            norm(), [(6, 1, 1), (2, 6, 1, 1)], FP16,
            r"prologue input 1 has shape \[2,6,1,1\], expected a number for each of 6 channels: "
            r"\[6,1,1\]",
        ),
        (norm(), [(6, 1, 1), (5, 1)], FP16, r"prologue input 1 has shape \[5,1\], expected"),
        (
            norm(), [(6, 1, 1), (7, 1, 1)], FP16,
            r"Conv: shapes \[7,1,1\], \[1,6,1,1\] do not broadcast to one shape",
        ),
        (norm(), [(6, 1, 1)] * 2, INT8, "a prologue computes floats, the input is int8"),
        (norm(), [(6, 1, 1)] * 2, FP8E4M3, "a prologue computes floats, the input is fp8e4m3"),
        (_two_outputs(), [], FP32, "the prologue makes 'ff' of 'f', expected one float of floats"),
        (_integers(), [(6, 1, 1)], FP32, "the prologue makes 'f' of 'fi', expected one float"),
        (_comparison(), [(6, 1, 1)], FP32, "the prologue makes 'b' of 'ff', expected one float"),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    prologue: Program, operands: list[tuple[int, ...]], dtype: DType, message: str
) -> None:
    types = [TensorType((2, 6, 5, 5), dtype), TensorType((4, 6, 1, 1), dtype)]
    types += [TensorType(shape, FP32) for shape in operands]
    with pytest.raises(ShapeError, match=message):
        Conv(prologue=prologue).infer(*types)


def test_operands_are_floats() -> None:
    types = [TensorType((2, 6, 5, 5), FP16), TensorType((4, 6, 1, 1), FP16)]
    types += [TensorType((6, 1, 1), d) for d in (FP32, INT64)]
    with pytest.raises(ShapeError, match="prologue input 1 is int64, expected a float"):
        Conv(prologue=norm()).infer(*types)


def test_inputs_behind_the_operands_are_counted() -> None:
    types = [TensorType((2, 6, 5, 5), FP16), TensorType((4, 6, 1, 1), FP16)]
    types += [TensorType((6, 1, 1), FP32)] * 2 + [TensorType((4,), FP16)] * 2
    with pytest.raises(ShapeError, match="got 6 inputs, expected 4 or 5 without an epilogue"):
        Conv(prologue=norm()).infer(*types)
