"""Operations counted by hand."""

from __future__ import annotations

import pytest

from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, INT8, INT64, DType
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Conv,
    ConvTranspose,
    Dequantize,
    Gather,
    MatMul,
    MaxPool,
    MultiPointwise,
    Not,
    Pointwise,
    PooledConv,
    Quantize,
    Reduce,
    Reformat,
    Relu,
    Softmax,
)
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec
from nrt.work import flops_of, precision_of


def problem(op: Op, *inputs: tuple[int, ...], dtypes: tuple[DType, ...] = ()) -> Problem:
    kinds = dtypes or (FP32,) * len(inputs)
    specs = tuple(TensorSpec.dense(s, d) for s, d in zip(inputs, kinds, strict=True))
    outputs = op.infer(*(s.type for s in specs))
    return Problem(
        op,
        specs,
        tuple(TensorSpec.dense(t.shape, t.dtype) for t in outputs),
        (False,) * len(specs),
    )


def bias_relu() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("add", 0, 1), b.const(0.0)))


def sum_and_relu() -> Program:
    b = Builder("ff")
    total = b("add", 0, 1)
    return b.build(total, b("max", total, b.const(0.0)))


def norm_relu() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


@pytest.mark.parametrize(
    ("p", "flops"),
    [
        # and a prologue of three instructions on every element of the input
        (
            problem(
                Conv(prologue=norm_relu(), epilogue=bias_relu()),
                (2, 6, 5, 7),
                (4, 6, 1, 1),
                (6, 1, 1),
                (6, 1, 1),
                (4, 1, 1),
            ),
            2 * 4 * 35 * 6 * 2 + 2 * 6 * 35 * 3 + 2 * 4 * 35 * 2,
        ),
        # outputs x (channels per group x taps) x 2
        (problem(Conv(), (2, 6, 5, 7), (4, 6, 3, 3)), 2 * 4 * 3 * 5 * 6 * 9 * 2),
        (problem(Conv(groups=3), (2, 6, 5, 7), (9, 2, 3, 3)), 2 * 9 * 3 * 5 * 2 * 9 * 2),
        (problem(Conv((2, 2), (1, 1, 1, 1)), (1, 1, 5, 7), (1, 1, 3, 3)), 3 * 4 * 9 * 2),
        (
            problem(Conv(epilogue=bias_relu()), (1, 3, 4, 4), (5, 3, 1, 1), (5, 1, 1)),
            5 * 16 * (3 * 2 + 2),
        ),
        # a transposed convolution spreads every input over the taps
        (problem(ConvTranspose((2, 2)), (1, 6, 5, 7), (6, 4, 3, 3)), 6 * 35 * 4 * 9 * 2),
        (problem(ConvTranspose(groups=2), (1, 6, 5, 7), (6, 2, 3, 3)), 6 * 35 * 2 * 9 * 2),
        (problem(MatMul(), (3, 4, 5), (5, 7)), 3 * 4 * 7 * 5 * 2),
        (problem(MatMul(True), (3, 5, 4), (5, 7)), 3 * 4 * 7 * 5 * 2),
        (problem(MatMul(True, True), (5, 4), (7, 5)), 4 * 7 * 5 * 2),
        (problem(MatMul(trans_a=True), (5,), (5, 7)), 7 * 5 * 2),
        (problem(MatMul(), (5,), (5,)), 5 * 2),
        (problem(MatMul(epilogue=bias_relu()), (4, 5), (5, 7), (7,)), 4 * 7 * (5 * 2 + 2)),
        # of two results: the steps of both
        (
            problem(MatMul(epilogue=sum_and_relu(), second_dtype=FP16), (4, 5), (5, 7), (7,)),
            4 * 7 * (5 * 2 + 2),
        ),
        (problem(MaxPool((3, 2), (1, 1), (0, 0, 0, 0)), (1, 2, 5, 7)), 2 * 3 * 6 * 6),
        (problem(AveragePool((2, 2), (2, 2), (0, 0, 0, 0)), (1, 2, 4, 4)), 2 * 4 * 4),
        (problem(Add(), (3, 5), (5,)), 15),
        (problem(Relu(), (3, 5)), 15),
        # 2 images of 3x4 pixels, 7 channels of 5: a bias, a ReLU, and the sum.
        (
            problem(PooledConv(epilogue=bias_relu()), (2, 5, 3, 4), (7, 5, 1, 1), (7, 1, 1)),
            2 * 12 * 7 * (10 + 2 + 1),
        ),
        (problem(Pointwise(bias_relu(), FP16), (3, 5), (5,)), 30),
        (problem(MultiPointwise(sum_and_relu(), (FP16, FP32)), (3, 5), (5,)), 30),
        # Two results of a product share the bias: 4x7 sums of 5, each with 2 operations behind it.
        (
            problem(MatMul(epilogue=sum_and_relu(), second_dtype=FP16), (4, 5), (5, 7), (7,)),
            28 * (10 + 2),
        ),
        (problem(Softmax(), (3, 5)), 180),
        (problem(Reduce("mean", (1,)), (3, 5)), 15),
        (problem(Reformat(FP16), (3, 5)), 15),
        (problem(Gather(), (3, 5), (4,), dtypes=(INT64, INT64)), 0),
        (problem(MatMul(), (0, 5), (5, 7)), 0),
    ],
    ids=str,
)
def test_flops(p: Problem, flops: int) -> None:
    assert flops_of(p) == flops


@pytest.mark.parametrize(
    ("p", "precision"),
    [
        (problem(MatMul(out_dtype=FP32), (4, 5), (5, 7), dtypes=(FP16, FP16)), "fp16"),
        (problem(Reformat(BF16), (4,), dtypes=(INT64,)), "bf16"),
        (problem(Gather(), (3, 5), (4,), dtypes=(FP16, INT64)), "fp16"),
        (problem(Not(), (4,), dtypes=(BOOL,)), "bool"),
        (problem(MatMul(), (4, 5), (5, 7), dtypes=(INT8, INT8)), "int8"),
        (problem(Conv(out_dtype=FP16), (1, 3, 4, 4), (5, 3, 1, 1), dtypes=(INT8,) * 2), "int8"),
        (problem(MatMul(out_dtype=FP32), (4, 5), (5, 7), dtypes=(FP8E4M3,) * 2), "fp8"),
        (problem(MatMul(tf32=True), (4, 5), (5, 7)), "tf32"),
        (problem(Conv(tf32=True), (1, 3, 4, 4), (5, 3, 1, 1)), "tf32"),
        (problem(MatMul(), (4, 5), (5, 7)), "fp32"),
        (problem(Relu(), (4,), dtypes=(FP8E4M3,)), "fp8"),
        (problem(Quantize(FP8E4M3), (4,), (), dtypes=(FP16, FP32)), "fp16"),
        (problem(Dequantize(BF16), (4,), (), dtypes=(FP8E4M3, FP32)), "fp32"),
    ],
    ids=str,
)
def test_precision_is_that_of_factors_or_the_first_float(p: Problem, precision: str) -> None:
    assert precision_of(p) == precision


def test_each_result_moves_its_own_bytes() -> None:
    both = MatMul(epilogue=sum_and_relu(), second_dtype=FP16)
    single = MatMul(epilogue=bias_relu())
    shapes = ((4, 5), (5, 7), (7,))
    read = 4 * (20 + 35 + 7)
    assert problem(single, *shapes).nbytes == read + 4 * 28
    assert problem(both, *shapes).nbytes == read + 4 * 28 + 2 * 28
