"""Elementwise ops against scalar formulas from the math module."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, INT8, INT32, INT64, UINT8
from nrt.errors import ShapeError
from nrt.ir import ops
from nrt.ir.op import Op, TensorType
from nrt.ir.ops import OPS, Elementwise, kind_of
from nrt.ir.pointwise import Builder

RTOL64 = 1e-10
RTOL32 = 1e-5
RTOL16 = 2e-3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


UNARY: list[tuple[Elementwise, Callable[[float], float]]] = [
    (ops.Abs(), abs),
    (ops.Ceil(), math.ceil),
    (ops.Cos(), math.cos),
    (ops.Erf(), math.erf),
    (ops.Exp(), math.exp),
    (ops.Floor(), math.floor),
    (ops.Neg(), operator.neg),
    (ops.Reciprocal(), lambda x: 1 / x),
    (ops.Round(), round),
    (ops.Sigmoid(), sigmoid),
    (ops.Sign(), lambda x: math.copysign(1, x)),
    (ops.Sin(), math.sin),
    (ops.Tanh(), math.tanh),
    (ops.Relu(), lambda x: max(x, 0)),
    (ops.LeakyRelu(0.1), lambda x: 0.1 * x if x < 0 else x),
    (ops.Elu(1.5), lambda x: 1.5 * math.expm1(x) if x < 0 else x),
    (ops.Selu(1.6, 1.1), lambda x: 1.1 * (1.6 * math.expm1(x) if x < 0 else x)),
    (ops.Celu(0.7), lambda x: 0.7 * math.expm1(x / 0.7) if x < 0 else x),
    (ops.ThresholdedRelu(0.5), lambda x: x if x > 0.5 else 0),
    (ops.Clip(-0.5, 1.25), lambda x: min(max(x, -0.5), 1.25)),
    (ops.Clip(min=0.25), lambda x: max(x, 0.25)),
    (ops.Clip(max=0.25), lambda x: min(x, 0.25)),
    (ops.Clip(), lambda x: x),
    (ops.HardSigmoid(0.3, 0.4), lambda x: max(0, min(1, 0.3 * x + 0.4))),
    (ops.HardSwish(), lambda x: x * max(0, min(1, x / 6 + 0.5))),
    (ops.Gelu(), lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
    (
        ops.Gelu(approximate=True),
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    (ops.Mish(), lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    (ops.Softplus(), lambda x: math.log1p(math.exp(x))),
    (ops.Softsign(), lambda x: x / (1 + abs(x))),
]


@pytest.mark.parametrize(("op", "formula"), UNARY, ids=lambda v: getattr(v, "name", None))
def test_unary(
    rng: np.random.Generator, op: Elementwise, formula: Callable[[float], float]
) -> None:
    # Neither near 0, where 1 / x leaves fp16's range, nor above 11, where e^x does.
    x = rng.uniform(0.05, 9, (3, 5, 7)) * rng.choice([-1, 1], (3, 5, 7))
    want = np.vectorize(formula, otypes=[np.float64])(x)
    (y,) = op.reference(x)
    np.testing.assert_allclose(y, want, rtol=RTOL64, atol=RTOL64)
    for dtype, tolerance in ((FP32, RTOL32), (FP16, RTOL16)):
        small = x.astype(dtype.numpy)
        want = np.vectorize(formula, otypes=[np.float64])(small.astype(np.float64))
        (y,) = op.reference(small)
        assert y.dtype == dtype.numpy
        np.testing.assert_allclose(y.astype(np.float64), want, rtol=tolerance, atol=tolerance)
        assert not np.shares_memory(y, small)


@pytest.mark.parametrize(("op", "formula"), [(ops.Log(), math.log), (ops.Sqrt(), math.sqrt)])
def test_functions_of_positive_numbers(
    rng: np.random.Generator, op: Elementwise, formula: Callable[[float], float]
) -> None:
    x = rng.random((11, 3)) + 1e-3
    np.testing.assert_allclose(op.reference(x)[0], np.vectorize(formula)(x), rtol=RTOL64)


def test_saturated_activations_do_not_overflow() -> None:
    x = np.array([-1000.0, 1000.0], np.float32)
    for op, want in (
        (ops.Sigmoid(), [0, 1]),
        (ops.Softplus(), [0, 1000]),
        (ops.Mish(), [0, 1000]),
        (ops.Elu(), [-1, 1000]),
        (ops.Celu(), [-1, 1000]),
        (ops.Gelu(), [0, 1000]),
        (ops.Tanh(), [-1, 1]),
    ):
        np.testing.assert_allclose(op.reference(x)[0], want, atol=1e-6, err_msg=op.name)


# NaN is not above the threshold, so ThresholdedRelu gives 0.
@pytest.mark.parametrize(
    "op",
    [op for op, _ in UNARY if not isinstance(op, ops.ThresholdedRelu)],
    ids=lambda v: v.name,
)
def test_nan_is_not_swallowed(op: Elementwise) -> None:
    (y,) = op.reference(np.array([np.nan, 1.0], np.float32))
    assert np.isnan(y[0])
    assert not np.isnan(y[1])


BINARY: list[tuple[Elementwise, Callable[[Any, Any], Any]]] = [
    (ops.Add(), operator.add),
    (ops.Sub(), operator.sub),
    (ops.Mul(), operator.mul),
    (ops.Div(), operator.truediv),
    (ops.Min(), min),
    (ops.Max(), max),
    (ops.Sum(), operator.add),
    (ops.Mean(), lambda a, b: (a + b) / 2),
    (ops.Equal(), operator.eq),
    (ops.Less(), operator.lt),
    (ops.LessOrEqual(), operator.le),
    (ops.Greater(), operator.gt),
    (ops.GreaterOrEqual(), operator.ge),
    (ops.PRelu(), lambda a, b: a * b if a < 0 else a),
]


@pytest.mark.parametrize(("op", "formula"), BINARY, ids=lambda v: getattr(v, "name", None))
def test_binary_with_broadcasting(
    rng: np.random.Generator, op: Elementwise, formula: Callable[[Any, Any], Any]
) -> None:
    x, y = rng.standard_normal((2, 3, 5)), rng.standard_normal((3, 1))
    x[0, :, 0] = y[:, 0]  # equal pairs for the comparisons
    (z,) = op.reference(x, y)
    want = np.vectorize(formula)(x, y)
    assert z.dtype == want.dtype
    np.testing.assert_allclose(z, want, rtol=RTOL64)


@pytest.mark.parametrize(
    ("op", "formula"),
    [(ops.And(), operator.and_), (ops.Or(), operator.or_), (ops.Xor(), operator.xor)],
)
def test_logic(op: Elementwise, formula: Callable[[bool, bool], bool]) -> None:
    a = np.array([[False], [True]])
    b = np.array([False, True])
    (y,) = op.reference(a, b)
    assert y.tolist() == [[formula(False, False), formula(False, True)],
                          [formula(True, False), formula(True, True)]]  # fmt: skip
    assert ops.Not().reference(b)[0].tolist() == [True, False]


def test_integer_arithmetic() -> None:
    a = np.array([7, -7, 7, -7, 0, 6], np.int32)
    b = np.array([2, 2, -2, -2, 5, -3], np.int32)
    (quotient,) = ops.Div().reference(a, b)
    assert quotient.dtype == np.int32
    assert quotient.tolist() == [3, -3, -3, 3, 0, -2]
    assert ops.Relu().reference(a)[0].tolist() == [7, 0, 7, 0, 0, 6]
    assert ops.Clip(-3.0, 5.0).reference(a.astype(np.int8))[0].tolist() == [5, -3, 5, -3, 0, 5]
    assert ops.Abs().reference(a)[0].tolist() == [7, 7, 7, 7, 0, 6]
    assert ops.Sign().reference(b)[0].tolist() == [1, 1, -1, -1, 1, -1]
    (wrapped,) = ops.Add().reference(np.int8([100]), np.int8([100]))
    assert wrapped.tolist() == [-56]


def test_pow_keeps_the_type_of_its_base() -> None:
    for base, exponent, want in (
        (np.float32([2, 3]), np.int64([3, -1]), [8, 1 / 3]),
        (np.float16([2, 3]), np.float32([0.5, 2]), [math.sqrt(2), 9]),
        (np.int32([2, 3]), np.int64([10, 0]), [1024, 1]),
        (np.int64([4, 9]), np.float32([0.5, 1.5]), [2, 27]),
    ):
        (y,) = ops.Pow().reference(base, exponent)
        assert y.dtype == base.dtype
        np.testing.assert_allclose(y, want, rtol=RTOL16 if base.dtype == np.float16 else RTOL32)
    with pytest.raises(ShapeError, match="Pow: an integer exponent is -2, expected 0 or more"):
        ops.Pow().reference(np.int32([2]), np.int32([-2]))


def test_variadic_ops(rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (4,), (3, 1), ())]
    stack = np.stack(np.broadcast_arrays(*arrays)).astype(np.float64)
    for op, want in (
        (ops.Sum(), stack.sum(0)),
        (ops.Mean(), stack.mean(0)),
        (ops.Max(), stack.max(0)),
        (ops.Min(), stack.min(0)),
    ):
        np.testing.assert_allclose(op.reference(*arrays)[0], want, rtol=RTOL32, atol=RTOL32)
        (one,) = op.reference(arrays[0])
        np.testing.assert_array_equal(one, arrays[0])
        assert not np.shares_memory(one, arrays[0])


def test_where(rng: np.random.Generator) -> None:
    condition = rng.random((3, 1)) < 0.5
    a, b = rng.integers(0, 9, (4,)), rng.integers(0, 9, (3, 4))
    (y,) = ops.Where().reference(condition, a, b)
    for i, j in np.ndindex(3, 4):
        assert y[i, j] == (a[j] if condition[i, 0] else b[i, j])
    assert y.dtype == np.int64


def test_is_nan() -> None:
    x = np.array([np.nan, np.inf, 0], np.float16)
    assert ops.IsNaN().reference(x)[0].tolist() == [True, False, False]


def test_cast_between_kinds() -> None:
    x = np.array([-1.9, 0.5, 300.7, np.nan, np.inf, -np.inf], np.float32)
    assert ops.Cast(INT32).reference(x)[0].tolist() == [-1, 0, 300, 0, 2**31 - 1, -(2**31)]
    assert ops.Cast(INT64).reference(x)[0].tolist() == [-1, 0, 300, 0, 2**63 - 1, -(2**63)]
    assert ops.Cast(UINT8).reference(x)[0].tolist() == [0, 0, 255, 0, 255, 0]
    assert ops.Cast(BOOL).reference(x)[0].tolist() == [True] * 6
    assert ops.Cast(BF16).reference(np.float32([1.00390625]))[0].astype(float).item() == 1.0
    assert ops.Cast(INT8).reference(np.int32([200, -129]))[0].tolist() == [-56, 127]
    assert ops.Cast(FP32).reference(np.array([True, False]))[0].tolist() == [1.0, 0.0]
    (wide,) = ops.Cast(FP64).reference(np.int64([2**53 - 1]))
    assert wide.item() == 2**53 - 1
    assert ops.Cast(FP16).reference(np.float32([1e6]))[0].item() == math.inf


def test_cast_to_fp16_rounds_inside_a_program() -> None:
    program = ops.Cast(FP16).program(("f",))
    assert program.evaluate(np.float32([1 / 3]))[0].item() == float(np.float16(1 / 3))


def test_reformat_is_a_cast(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    (y,) = ops.Reformat(FP16).reference(x)
    np.testing.assert_array_equal(y, x.astype(np.float16))
    (same,) = ops.Reformat(FP32).reference(x)
    assert not np.shares_memory(same, x)
    assert ops.Reformat(BF16).infer(TensorType((2, 3), FP32)) == (TensorType((2, 3), BF16),)


def test_pointwise(rng: np.random.Generator) -> None:
    b = Builder("fib")
    total = b("add", 0, b("to_f", 1))
    op = ops.Pointwise(b.build(b("where", 2, total, b.const(-1.0))), FP16)
    x = rng.standard_normal((4, 1)).astype(np.float16)
    count, mask = rng.integers(-9, 9, (3,)), rng.random((4, 3)) < 0.5
    (y,) = op.reference(x, count, mask)
    assert y.dtype == np.float16
    want = np.where(mask, x.astype(np.float32) + count, -1)
    np.testing.assert_allclose(y, want, rtol=RTOL16)
    types = TensorType((4, 1), FP16), TensorType((3,), INT64), TensorType((4, 3), BOOL)
    assert op.infer(*types) == (TensorType((4, 3), FP16),)
    with pytest.raises(ShapeError, match=r"Pointwise: inputs have kinds \('f', 'i', 'i'\)"):
        op.infer(types[0], types[1], types[1])
    with pytest.raises(ShapeError, match="Pointwise: program has 2 outputs, expected 1"):
        ops.Pointwise(Builder("f").build(0, 0), FP32).infer(types[0])


@pytest.mark.parametrize("op_type", [t for t in OPS if issubclass(t, Elementwise)])
def test_programs_agree_with_result_dtypes(op_type: type[Elementwise]) -> None:
    """What a program leaves in its output register is of the kind that infer promises."""
    made: dict[type[Elementwise], Elementwise] = {
        ops.Pointwise: ops.Pointwise(Builder("f").build(0), FP32),
        ops.Cast: ops.Cast(INT32),
        ops.Quantize: ops.Quantize(INT8),
        ops.Dequantize: ops.Dequantize(FP32),
    }
    op = made[op_type] if op_type in made else op_type()
    least = op.arity[0]
    for dtype in (FP32, INT32, BOOL):
        dtypes = (BOOL, dtype, dtype) if op_type is ops.Where else (dtype,) * least
        if op_type in (ops.Quantize, ops.Dequantize):
            dtypes = (dtype, FP32)  # the scale
        if kind_of(dtype) not in op.accepts or (op_type is ops.Pointwise and dtype is not FP32):
            continue
        program = op.program(tuple(map(kind_of, dtypes)))
        assert program.kinds[program.outputs[0]] == kind_of(op.result_dtype(*dtypes))


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (ops.Exp(), [((3,), INT32)], "Exp: input 0 is int32, expected float"),
        (
            ops.Add(),
            [((3,), BOOL), ((3,), BOOL)],
            "Add: input 0 is bool, expected float or integer",
        ),
        (ops.Not(), [((3,), FP32)], "Not: input 0 is fp32, expected bool"),
        (
            ops.Add(),
            [((3,), FP32), ((3,), FP16)],
            "Add: inputs are fp32, fp16; expected one dtype, insert a Cast",
        ),
        (ops.Mul(), [((2, 3), FP32), ((2,), FP32)], r"Mul: shapes \[2,3\], \[2\] do not broadcast"),
        (
            ops.PRelu(),
            [((2, 1), FP32), ((3,), FP32)],
            r"PRelu: slope has shape \[3\], which does not",
        ),
        (ops.Where(), [((3,), FP32)] * 3, "Where: condition is fp32, expected bool"),
        (
            ops.Where(),
            [((3,), BOOL), ((3,), FP32), ((3,), FP16)],
            "Where: branches are fp32 and fp16; expected one dtype",
        ),
    ],
)
def test_misfits_are_named(op: Op, inputs: list[Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(*(TensorType(*i) for i in inputs))


def test_registry_holds_every_op_once() -> None:
    names = [t.__name__ for t in OPS]
    assert len(set(names)) == len(names)
    assert set(names) | {"OPS", "Elementwise", "kind_of"} == set(ops.__all__)
    for op_type in OPS:
        assert op_type.infer is not Op.infer
        assert op_type.reference is not Op.reference
