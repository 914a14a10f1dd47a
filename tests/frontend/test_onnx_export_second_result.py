"""Products with a second result as ONNX: both results, each in its own type."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nrt.dtypes import BF16, BYTES, FP16, FP32, INT8, UINT8, DType
from nrt.frontend.onnx_export import to_onnx
from nrt.ir import ops
from nrt.ir.op import Op
from nrt.ir.pointwise import Builder, Program
from tests.frontend.exported import check, normal, whole

FLOATS = [FP32, FP16, BF16]


def sum_and_relu(order: int = 1) -> Program:
    """``y = acc + bias + residual`` and ``relu(y)``; the other way round if ``order`` is -1."""
    b = Builder("fff")
    y = b("add", b("add", 0, 1), 2)
    return b.build(*(y, b("max", y, b.const(0.0)))[::order])


def requantized() -> Program:
    """Sums of bytes times a scale per channel, plus a bias, and the relu of that."""
    b = Builder("fff")
    y = b("add", b("mul", 0, 1), 2)
    return b.build(y, b("max", y, b.const(0.0)))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("second", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_both_results_of_floats(dtype: DType, second: DType, order: int) -> None:
    # ONNX Runtime's Python binding has no bf16 arrays.
    run = BF16 not in (dtype, second)
    program = sum_and_relu(order)
    x, w = normal(2, 3, 5, 7, dtype=dtype), normal(4, 3, 3, 3, dtype=dtype)
    residual, bias = normal(2, 4, 5, 7, dtype=dtype), normal(4, 1, 1)
    conv = ops.Conv(pads=(1, 1, 1, 1), epilogue=program, second_dtype=second)
    check(conv, x, w, bias, residual, constants=[1, 2], run=run)
    first = Builder("ff")
    prologue = first.build(first("max", first("mul", 0, 1), first.const(0.0)))
    behind = replace(conv, prologue=prologue)
    check(behind, x, w, normal(3, 1, 1), bias, residual, constants=[1, 2, 3], run=run)
    back = ops.ConvTranspose((2, 1), (1, 1, 0, 1), epilogue=program, second_dtype=second)
    w = normal(3, 4, 3, 3, dtype=dtype)
    check(back, x, w, bias, normal(2, 4, 10, 7), constants=[1], run=run)
    product = ops.MatMul(trans_b=True, epilogue=program, second_dtype=second)
    a, b = normal(2, 3, 5, dtype=dtype), normal(7, 5, dtype=dtype)
    check(product, a, b, normal(7), normal(3, 7), constants=[1], run=run)


@pytest.mark.parametrize("second", [FP16, INT8, UINT8], ids=str)
@pytest.mark.parametrize("stored", [FP32, INT8, UINT8], ids=str)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_both_results_of_bytes(dtype: DType, stored: DType, second: DType) -> None:
    program = requantized()
    x, w = whole(2, 16, 5, 4, dtype=dtype), whole(6, 16, 3, 3)
    # Powers of two: no rounding but that of the stores, which is the same for both.
    scale = np.exp2(np.arange(6, dtype=np.float32) - 17).reshape(6, 1, 1)
    bias = np.arange(-3, 3, dtype=np.float32).reshape(6, 1, 1) / 2
    types = {"out_dtype": stored, "second_dtype": second}
    conv: Op = ops.Conv(pads=(1, 1, 1, 1), epilogue=program, **types)
    check(conv, x, w, scale, bias, constants=[1, 2, 3])
    transposed: Op = ops.ConvTranspose(epilogue=program, **types)
    check(transposed, x, whole(16, 6, 3, 3), scale, bias, constants=[1])
    a, b = whole(3, 301, dtype=dtype), whole(301, 6)
    product: Op = ops.MatMul(epilogue=program, **types)
    check(product, a, b, scale[:, 0, 0], bias[:, 0, 0])


def test_results_may_be_one_number_or_that_of_an_operand() -> None:
    b = Builder("ff")
    total = b("add", 0, 1)
    a, w, extra = normal(3, 5), normal(5, 7), normal(7)
    for outputs in ((total, total), (0, 0), (total, 0), (0, 1), (1, 1), (total, b.const(2.5))):
        program = b.build(*outputs)
        for types in ((FP32, FP32), (FP32, FP16), (FP16, FP32)):
            op = ops.MatMul(epilogue=program, out_dtype=types[0], second_dtype=types[1])
            check(op, a, w, extra)
    program = b.build(total, total)
    a, w, extra = whole(3, 16), whole(16, 7), np.arange(7, dtype=np.float32)
    for types in ((FP32, INT8), (INT8, FP32), (INT8, INT8)):
        op = ops.MatMul(epilogue=program, out_dtype=types[0], second_dtype=types[1])
        check(op, a, w, extra)


def test_what_both_have_in_common_is_written_once() -> None:
    conv = ops.Conv(pads=(1, 1, 1, 1), epilogue=sum_and_relu(), second_dtype=FP32)
    graph = check(conv, normal(1, 3, 5, 7), normal(4, 3, 3, 3), normal(4, 1, 1), normal(4, 5, 7))
    written = [n.op_type for n in to_onnx(graph).graph.node]
    assert sorted(n for n in written if n != "Identity") == ["Add", "Add", "Conv", "Max"]
