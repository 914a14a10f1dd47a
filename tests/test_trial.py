"""Random data for a problem, and the measure of how far a result is off."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest

from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT64, UINT8, DType
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    BatchNormalization,
    Cast,
    Conv,
    Gather,
    GatherElements,
    MatMul,
    Not,
)
from nrt.ir.pointwise import Builder
from nrt.problem import Problem, TensorSpec
from nrt.trial import random_inputs, relative_error


def problem(op: Op, *inputs: tuple[DType, tuple[int, ...]]) -> Problem:
    specs = tuple(TensorSpec.dense(shape, dtype) for dtype, shape in inputs)
    outputs = op.infer(*(s.type for s in specs))
    return Problem(
        op,
        specs,
        tuple(TensorSpec.dense(t.shape, t.dtype) for t in outputs),
        (False,) * len(specs),
    )


def fresh() -> np.random.Generator:
    return np.random.default_rng(secrets.randbits(32))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16, FP64, INT8, UINT8, INT64, BOOL], ids=str)
def test_inputs_have_the_problems_shapes_and_dtypes(dtype: DType) -> None:
    p = problem(Cast(FP32), (dtype, (3, 1, 17)))
    (x,) = random_inputs(p, fresh())
    assert x.shape == (3, 1, 17)
    assert x.dtype == dtype.numpy
    assert len(np.unique(x.astype(np.float64))) > 1
    (other,) = random_inputs(p, fresh())
    assert not np.array_equal(x, other)


def test_one_seed_gives_one_set_of_inputs() -> None:
    p = problem(Add(), (FP32, (5, 3)), (FP32, (3,)))
    seed = secrets.randbits(32)
    first = random_inputs(p, np.random.default_rng(seed))
    second = random_inputs(p, np.random.default_rng(seed))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("op", "data", "indices", "size"),
    [
        (Gather(0), (3, 5), (40,), 3),
        (Gather(-1), (3, 5), (4, 10), 5),
        (GatherElements(1), (30, 2, 4), (30, 9, 4), 2),
        (Gather(0), (1, 5), (7,), 1),
    ],
)
def test_indices_are_in_range(
    op: Op, data: tuple[int, ...], indices: tuple[int, ...], size: int
) -> None:
    p = problem(op, (FP32, data), (INT64, indices))
    _, found = random_inputs(p, fresh())
    assert found.min() >= 0
    assert found.max() < size
    op.reference(*random_inputs(p, fresh()))


def test_long_sums_of_half_floats_stay_in_range() -> None:
    shapes = ((FP16, (1, 2048, 3, 3)), (FP16, (64, 2048, 3, 3)))
    conv = problem(Conv(), *shapes)
    (y,) = conv.op.reference(*random_inputs(conv, fresh()))
    assert 0.1 < float(np.std(y.astype(np.float32))) < 10
    product = problem(MatMul(), (FP16, (7, 4096)), (FP16, (4096, 33)))
    (y,) = product.op.reference(*random_inputs(product, fresh()))
    assert np.isfinite(y).all()


def test_int8_factors_take_their_whole_range() -> None:
    for op, shapes in (
        (MatMul(), ((77, 130), (130, 90))),
        (Conv(), ((1, 77, 9, 30), (40, 77, 3, 3))),
    ):
        x, w = random_inputs(problem(op, *((INT8, shape) for shape in shapes)), fresh())
        for factor in (x, w):
            assert factor.dtype == np.int8
            assert (factor.min(), factor.max()) == (-127, 127)
            assert abs(float(factor.mean())) < 10
    (plain,) = random_inputs(problem(Cast(FP32), (INT8, (500,))), fresh())
    assert (plain.min(), plain.max()) == (0, 7)


@pytest.mark.parametrize("dtype", [INT8, UINT8], ids=str)
def test_results_of_requantized_sums_spread_over_bytes(dtype: DType) -> None:
    b = Builder("fff")
    end = b.build(b("add", b("mul", 1, 0), 2))
    for op, shapes in (
        (Conv(epilogue=end, out_dtype=INT8), ((2, 48, 9, 9), (32, 48, 3, 3), (32, 1, 1))),
        (MatMul(epilogue=end, out_dtype=INT8), ((40, 300), (300, 64), (64,))),
    ):
        task = problem(op, *zip((dtype, INT8, FP32, FP32), (*shapes, shapes[2]), strict=True))
        inputs = random_inputs(task, fresh())
        exact = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in inputs]
        (out,) = op.reference(*exact)
        assert 20 < out.astype(np.float64).std() < 80
        assert (np.abs(out.astype(np.int32)) >= 127).mean() < 0.25
        # What is added is not scaled: without it results are others.
        assert 0.5 < inputs[3].std() < 2


def test_both_results_of_requantized_sums_spread_over_bytes() -> None:
    """Each in its own scale, which the epilogue multiplies by."""
    shapes = ((2, 48, 9, 9), (32, 48, 3, 3), (32, 1, 1), (32, 1, 1), (2, 32, 7, 7))
    for types in ((INT8, UINT8), (FP16, UINT8), (INT8, FP16)):
        for first, second in ((1.0, 2.0), (37.5, 80.0), (0.02, 0.03)):
            b = Builder("fffi")
            y = b("add", b("add", b("mul", 0, 1), 2), b("mul", b("to_f", 3), b.const(0.1)))
            relu = b("max", y, b.const(0.0))
            end = b.build(
                b("mul", y, b.const(first)) if types[0] is INT8 else y,
                b("mul", relu, b.const(second)) if types[1] is UINT8 else relu,
            )
            op = Conv(epilogue=end, out_dtype=types[0], second_dtype=types[1])
            task = problem(op, *zip((UINT8, INT8, FP32, FP32, INT8), shapes, strict=True))
            for dtype, out in zip(types, op.reference(*random_inputs(task, fresh())), strict=True):
                assert np.isfinite(out.astype(np.float32)).all()
                if dtype is FP16:
                    continue
                info = np.iinfo(out.dtype)
                assert out.astype(np.float64).std() > 15
                assert ((out == info.max) | (out == info.min) & (info.min < 0)).mean() < 0.25


def test_fp8_factors_are_normal_and_their_sums_fit_fp16() -> None:
    p = problem(MatMul(), (FP8E4M3, (7, 4096)), (FP8E4M3, (4096, 33)))
    x, w = (v.astype(np.float32) for v in random_inputs(p, fresh()))
    assert np.isfinite(x).all()
    assert 0.9 < float(x.std()) < 1.1
    assert np.isfinite(w).all()
    assert 0.9 < float(w.std()) < 1.1
    (y,) = p.op.reference(x.astype(np.float16), w.astype(np.float16))
    assert np.isfinite(y).all()


def test_variances_are_positive() -> None:
    p = problem(BatchNormalization(), (FP32, (2, 64, 3)), *[(FP32, (64,))] * 4)
    (y,) = p.op.reference(*random_inputs(p, fresh()))
    assert np.isfinite(y).all()


def test_empty_inputs_and_booleans() -> None:
    p = problem(Not(), (BOOL, (0, 4)))
    (x,) = random_inputs(p, fresh())
    assert x.shape == (0, 4)
    assert x.dtype == np.bool_


# -- errors ----------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("out", "ref", "wanted"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-30], [0.0, 0.0], INF),  # nothing is close to zero, relatively
        ([NAN, 4.0], [3.0, 4.0], INF),
        ([3.0, 4.0], [NAN, 4.0], INF),
        ([NAN, 4.0], [NAN, 4.0], 0.0),
        ([INF, 4.0], [INF, 4.0], 0.0),
        ([-INF, 4.0], [INF, 4.0], INF),
        ([NAN, 4.0], [INF, 4.0], INF),
        ([INF, NAN], [INF, NAN], 0.0),
        ([INF, 5.0], [INF, 4.0], 0.25),
        ([], [], 0.0),
        (2.0, 4.0, 0.5),
    ],
)
def test_relative_error(out: object, ref: object, wanted: float) -> None:
    assert relative_error(np.asarray(out), np.asarray(ref)) == pytest.approx(wanted)


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32, INT8, BOOL], ids=str)
def test_errors_of_every_type_are_computed_in_float64(dtype: DType) -> None:
    a = np.asarray([1, 1, 1, 0]).astype(dtype.numpy)
    b = np.asarray([1, 1, 1, 1]).astype(dtype.numpy)
    assert relative_error(a, b) == 0.5
    assert relative_error(b, b) == 0.0


def test_large_half_floats_do_not_overflow() -> None:
    ref = np.full(1000, 6e4, np.float16)
    assert relative_error(ref, ref) == 0.0


def test_other_shapes_are_infinitely_far() -> None:
    assert relative_error(np.ones((2, 1)), np.ones((2, 2))) == INF
    assert relative_error(np.ones(0), np.ones(3)) == INF
    assert relative_error(np.ones((0, 2)), np.ones((2, 0))) == INF
