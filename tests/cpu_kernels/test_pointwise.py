"""Pointwise programs, casts and layout changes of the CPU target."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name
from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, INT8, INT32, INT64, UINT8
from nrt.ir import ops
from nrt.ir.pointwise import OPCODES, Builder, identity
from nrt.problem import TensorSpec
from tests.cpu_kernels.harness import (
    NHWC,
    channel_slice,
    check,
    nhwc,
    problem,
    random_array,
    refusal,
    run,
    spec,
)  # fmt: skip

NAME = "cpu_pointwise"
# Against float64, per element: float32 rounding of the result times a few operations.
ELEMENT = 2e-6
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 104.0, -104.0, 200.0]
UNARY = sorted(
    n for n, o in OPCODES.items() if o.arity == 1 and o.result in ("same", "f") and n != "to_f"
)


@pytest.mark.parametrize("opcode", UNARY)
def test_unary_functions(opcode, rng) -> None:
    if opcode == "not":
        pytest.skip("no float function")
    b = Builder("f")
    op = ops.Pointwise(b.build(b(opcode, 0)), FP32)
    p = problem(op, [spec((5000,))])
    x = (rng.standard_normal(5000) * 4).astype(np.float32)
    x[: len(SPECIAL)] = SPECIAL
    ((out, _),) = run(variant_by_name(NAME), p, (), [x])
    wide = x if opcode == "fp16" else x.astype(np.float64)
    (want,) = op.body.evaluate(wide)
    with np.errstate(all="ignore"):
        want32 = want.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(want32))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(want32))
    finite = np.isfinite(want32)
    scale = np.maximum(np.abs(want[finite]), 1e-30)
    if opcode in ("sin", "cos", "log", "erf"):
        scale = np.maximum(scale, 0.1)
    assert np.max(np.abs(out[finite] - want[finite]) / scale) < ELEMENT


@pytest.mark.parametrize("opcode", ["min", "max"])
def test_nan_wins(opcode) -> None:
    b = Builder("ff")
    op = ops.Pointwise(b.build(b(opcode, 0, 1)), FP32)
    x = np.array([np.nan, 1.0, 2.0, np.nan], np.float32)
    y = np.array([1.0, np.nan, 3.0, np.nan], np.float32)
    ((out, _),) = run(variant_by_name(NAME), problem(op, [spec((4,))] * 2), (), [x, y])
    np.testing.assert_array_equal(out, op.reference(x, y)[0])


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 0.5, -1.5])
def test_constant_powers(exponent, rng) -> None:
    b = Builder("f")
    op = ops.Pointwise(b.build(b("pow", b("abs", 0), b.const(exponent))), FP32)
    check(NAME, problem(op, [spec((3, 50))]), rng)


BROADCASTS = [
    [(3, 4, 5), (3, 4, 5)],
    [(2, 3, 4, 5), (3, 1, 1)],
    [(7,), (3, 1)],
    [(), (2, 2, 2)],
    [(2, 1, 4, 1, 3), (3, 1, 5, 1)],
    [(1, 1), (1, 1)],
]


@pytest.mark.parametrize("shapes", BROADCASTS)
def test_broadcasts(shapes, rng) -> None:
    check(NAME, problem(ops.Mul(), [spec(s) for s in shapes], constants=()), rng)


def test_layouts_mix(rng) -> None:
    shape = (2, 19, 5, 7)
    inputs = [nhwc(*shape), spec(shape), channel_slice(shape, 40), spec((19, 1, 1))]
    b = Builder("ffff")
    op = ops.Pointwise(b.build(b("add", b("mul", 0, 1), b("sub", 2, 3))), FP32)
    for out in (channel_slice(shape, 23), spec(shape), nhwc(*shape)):
        check(NAME, problem(op, inputs, [out], constants=()), rng)


@pytest.mark.parametrize("size", [1, 2, 63, 1025, 70001])
def test_long_vectors(size, rng) -> None:
    check(NAME, problem(ops.Add(), [spec((size,))] * 2, constants=()), rng)


@pytest.mark.parametrize("dtype", [INT8, UINT8, INT32, INT64])
def test_integers(dtype, rng) -> None:
    p = problem(ops.Div(), [spec((3, 17), dtype=dtype)] * 2, constants=())
    check(NAME, p, rng)
    less = problem(ops.Less(), [spec((3, 17), dtype=dtype)] * 2, constants=())
    check(NAME, less, rng)


def test_where_and_logic(rng) -> None:
    flags = spec((5, 9), dtype=BOOL)
    check(NAME, problem(ops.Where(), [flags, spec((5, 9)), spec((9,))], constants=()), rng)
    check(NAME, problem(ops.Xor(), [flags, flags], constants=()), rng)
    check(NAME, problem(ops.Not(), [flags], constants=()), rng)


CASTS = [
    (FP32, FP16), (FP16, FP32), (FP32, FP64), (FP64, FP32), (INT32, FP32), (INT64, INT32),
    (BOOL, FP32), (FP32, BOOL), (UINT8, FP16), (INT8, INT64),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_casts(source, target, rng) -> None:
    p = problem(ops.Cast(target), [spec((4, 33), dtype=source)], constants=())
    x = random_array(p.inputs[0], rng)
    ((out, _),) = run(variant_by_name(NAME), p, (), [x])
    np.testing.assert_array_equal(out, p.op.reference(x)[0])


def test_all_halves(rng) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    variant = variant_by_name(NAME)
    up = problem(ops.Cast(FP32), [spec((65536,), dtype=FP16)], constants=())
    ((wide, _),) = run(variant, up, (), [halves])
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    finite = wide[np.isfinite(wide)]
    ties = np.concatenate([wide, finite * np.float32(1.00024414), finite * np.float32(0.99992)])
    down = problem(ops.Cast(FP16), [spec((ties.size,))], constants=())
    ((out, _),) = run(variant, down, (), [ties])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, ties.astype(np.float16))


@pytest.mark.parametrize("shape", [(1, 3, 17, 9), (2, 70, 3, 4), (1, 1, 1, 1)])
def test_reformat(shape, rng) -> None:
    op = ops.Reformat(FP32)
    check(NAME, problem(op, [spec(shape)], ["nhwc"], ()), rng)
    check(NAME, problem(op, [nhwc(*shape)], None, ()), rng)
    half = ops.Reformat(FP16)
    check(NAME, problem(half, [spec(shape)], [nhwc(*shape, dtype=FP16)], ()), rng)


def test_empty(rng) -> None:
    check_empty = problem(ops.Add(), [spec((0, 3))] * 2, constants=())
    ((out, _),) = run(variant_by_name(NAME), check_empty, (), [np.zeros((0, 3), np.float32)] * 2)
    assert out.shape == (0, 3)


def test_refusals() -> None:
    bfloat = problem(ops.Relu(), [spec((3,), dtype=BF16)])
    assert "bf16" in refusal(NAME, bfloat)
    to_int = problem(ops.Reformat(INT8), [spec((3,))])
    assert "saturate" in refusal(NAME, to_int)
    store = problem(ops.Pointwise(identity("f"), INT8), [spec((3,))])
    assert "saturate" in refusal(NAME, store)
    b = Builder("f")
    double = ops.Pointwise(b.build(b("fp16", 0)), FP64)
    assert "twice" in refusal(NAME, problem(double, [spec((3,), dtype=FP64)]))
    assert TensorSpec.dense((1, 2, 3, 4), FP32, NHWC).is_nhwc
