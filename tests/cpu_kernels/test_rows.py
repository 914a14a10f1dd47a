"""Pools, reductions, normalizations and movement of the CPU target."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name
from nrt.dtypes import BOOL, FP16, FP32, INT32
from nrt.ir import ops
from nrt.ir.pointwise import Builder, Program
from nrt.problem import TensorSpec
from tests.cpu_kernels.harness import channel_slice, check, nhwc, problem, refusal, run, spec

POOLS = [
    {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel": (2, 3), "strides": (1, 2), "pads": (0, 1, 1, 0), "dilations": (2, 1)},
    {"kernel": (3, 3), "strides": (2, 2), "pads": (0, 0, 0, 0), "ceil_mode": True},
    {"kernel": (2, 2), "strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": True},
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("layout", ["nhwc", "rows", "slice"])
def test_pools(attributes, layout, rng) -> None:
    shape = (2, 19, 10, 12)
    x = {"nhwc": nhwc(*shape), "rows": spec(shape), "slice": channel_slice(shape, 25)}[layout]
    out = None if layout == "rows" else "nhwc"
    check("cpu_pool", problem(ops.MaxPool(**attributes), [x], [out], ()), rng)
    for include in (False, True):
        op = ops.AveragePool(**attributes, count_include_pad=include)
        check("cpu_pool", problem(op, [x], [out], ()), rng)


@pytest.mark.parametrize("op", [ops.MaxPool, ops.AveragePool])
def test_pools_with_an_epilogue(op, rng) -> None:
    b = Builder("fff")
    program = b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))
    pool = op((3, 3), (2, 2), (1, 1, 1, 1), epilogue=program)
    inputs = [nhwc(2, 19, 10, 12), spec((19, 1, 1)), nhwc(2, 19, 5, 6)]
    check("cpu_pool", problem(pool, inputs, ["nhwc"], (1,)), rng)


def test_pools_that_store_halves_are_refused() -> None:
    pool = ops.MaxPool((2, 2), (2, 2), (0, 0, 0, 0), out_dtype=FP16)
    p = problem(pool, [nhwc(1, 4, 4, 4)], ["nhwc"], ())
    assert "the output is fp16" in refusal("cpu_pool", p)


def test_max_pool_keeps_nan(rng) -> None:
    p = problem(ops.MaxPool((2, 2), (2, 2), (0, 0, 0, 0)), [nhwc(1, 20, 4, 4)], ["nhwc"], ())
    x = rng.standard_normal((1, 20, 4, 4)).astype(np.float32)
    x[0, 3, 1, 0] = np.nan
    ((out, _),) = run(variant_by_name("cpu_pool"), p, (), [x])
    np.testing.assert_array_equal(out, p.op.reference(x)[0])


KINDS = ["mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square"]


@pytest.mark.parametrize("kind", KINDS)
def test_reduce_kinds(kind, rng) -> None:
    for keepdims in (True, False):
        p = problem(ops.Reduce(kind, (2, 3), keepdims), [nhwc(2, 37, 5, 3)], None, ())
        check("cpu_rows", p, rng)


@pytest.mark.parametrize("axes", [(0,), (1,), (-1,), (0, 1), (1, 2), (0, 1, 2)])
def test_reduce_axes(axes, rng) -> None:
    check("cpu_rows", problem(ops.Reduce("mean", axes), [spec((4, 5, 33))], None, ()), rng)


def _relu_of_norm() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


def _difference() -> Program:
    b = Builder("ff")
    return b.build(b("sub", b("mul", 0, 0), 1))


@pytest.mark.parametrize("kind", ["mean", "max", "l2"])
def test_reduce_with_prologue_and_epilogue(kind, rng) -> None:
    first, last = _relu_of_norm(), _difference()
    channel, images = spec((37, 1, 1)), nhwc(2, 37, 5, 3)
    for x in (images, channel_slice(images.shape, 50)):
        op = ops.Reduce(kind, (2, 3), prologue=first)
        check("cpu_rows", problem(op, [x, channel, images], ["nhwc"], (1,)), rng)
        op = ops.Reduce(kind, (2, 3), False, first, last)
        check("cpu_rows", problem(op, [x, channel, channel, spec((2, 1))], None, ()), rng)
    op = ops.Reduce(kind, (0, 1), False, epilogue=last)
    check("cpu_rows", problem(op, [spec((7, 9)), spec(())], None, ()), rng)


def test_reduce_with_operands_of_other_types_is_refused() -> None:
    b = Builder("fb")
    op = ops.Reduce("sum", (1,), prologue=b.build(b("where", 1, 0, b.const(0.0))))
    p = problem(op, [spec((3, 4)), spec((4,), dtype=BOOL)], None, ())
    assert "a tensor is bool" in refusal("cpu_rows", p)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("op", [ops.Softmax, ops.LogSoftmax])
def test_softmax(op, axis, rng) -> None:
    check("cpu_rows", problem(op(axis), [spec((5, 7, 33))], None, ()), rng)
    check("cpu_rows", problem(op(axis), [nhwc(2, 9, 5, 7)], ["nhwc"], ()), rng)


def test_softmax_extremes() -> None:
    p = problem(ops.Softmax(), [spec((4, 3))], None, ())
    inf = np.inf
    x = np.array([[1e30, -1e30, 0], [-inf, 0, 0], [np.nan, 1, 2], [90, 89, -90]], np.float32)
    ((out, _),) = run(variant_by_name("cpu_rows"), p, (), [x])
    np.testing.assert_allclose(out, p.op.reference(x)[0], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(axis, bias, rng) -> None:
    x = spec((3, 5, 40))
    own = spec(x.shape[axis:])
    inputs = [x, own, own] if bias else [x, own]
    check("cpu_rows", problem(ops.LayerNormalization(axis), inputs, None, (1, 2)), rng)


def test_layer_norm_far_from_zero(rng) -> None:
    p = problem(ops.LayerNormalization(), [spec((6, 100)), spec((100,)), spec((100,))])
    x = rng.standard_normal((6, 100)) + 50
    parameters = [rng.standard_normal(100).astype(np.float32) for _ in range(2)]
    check("cpu_rows", p, rng, [x.astype(np.float32), *parameters])


@pytest.mark.parametrize("out", ["nhwc", None])
def test_other_norms(out, rng) -> None:
    x = nhwc(2, 11, 5, 6) if out else spec((2, 11, 5, 6))
    c = spec((11,))
    check("cpu_rows", problem(ops.InstanceNormalization(), [x, c, c], [out], (1, 2)), rng)
    for size, beta in ((5, 0.75), (4, 0.6)):
        check("cpu_rows", problem(ops.LRN(size, 0.1, beta, 2.0), [x], [out], ()), rng)
    p = problem(ops.BatchNormalization(), [x, c, c, c, c], [out], (1, 2, 3, 4))
    arrays = [rng.random(t.shape, np.float32) + np.float32(0.1) for t in p.inputs]
    check("cpu_batch_norm", p, rng, arrays)


def test_refusals() -> None:
    half = problem(ops.Softmax(), [spec((3, 4), dtype=FP16)])
    assert "only fp32" in refusal("cpu_rows", half)
    assert "no axis" in refusal("cpu_rows", problem(ops.Reduce("sum", ()), [spec((3, 4))]))
    crossing = problem(ops.Reduce("sum", (0, 2)), [spec((3, 4, 5))])
    assert "evenly" in refusal("cpu_rows", crossing)
    assert "empty" in refusal("cpu_rows", problem(ops.Softmax(), [spec((0, 4))]))
    line = problem(ops.MaxPool((2,), (1,), (0, 0), (1,)), [spec((1, 2, 9))])
    assert "two spatial" in refusal("cpu_pool", line)
    small = problem(ops.MaxPool((2, 2), (1, 1), (0,) * 4), [spec((1, 2, 3, 3), dtype=FP16)])
    assert "only fp32" in refusal("cpu_pool", small)


MOVES = [
    (ops.Transpose((2, 0, 1)), [spec((3, 40, 5))]),
    (ops.Transpose((0, 2, 3, 1)), [nhwc(2, 9, 4, 5)]),
    (ops.Slice((1, 6, 0), (3, -1, 9), (1, -2, 4)), [spec((4, 7, 10))]),
    (ops.Concat(1), [nhwc(2, 3, 4, 5), spec((2, 6, 4, 5)), spec((2, 1, 4, 5))]),
    (ops.Concat(-1), [spec((4,), dtype=INT32), spec((3,), dtype=INT32)]),
    (ops.Split(1, (2, 5, 1)), [nhwc(2, 8, 3, 4)]),
    (ops.Expand((2, 3, 5)), [spec((3, 1))]),
    (ops.Pad((0, 1, 0, 2, 1, 0, 3, 0), value=1.5), [nhwc(2, 3, 4, 5)]),
    (ops.Reshape((2, 60)), [nhwc(2, 3, 4, 5)]),
    (ops.Reshape((6, 2, 10)), [nhwc(2, 3, 4, 5)]),
    (ops.Reshape((8, 15)), [spec((2, 3, 4, 5))]),
    (ops.Reshape((1, 3, 1, 4)), [spec((12,), dtype=BOOL)]),
    (ops.Resize((2, 3, 8, 15), (1.0, 1.0, 2.0, 3.0)), [nhwc(2, 3, 4, 5)]),
    (
        ops.Resize((1, 2, 6, 6), (1.0, 1.0, 2.0, 2.0), coordinate="asymmetric", nearest="floor"),
        [spec((1, 2, 3, 3))],
    ),
]


@pytest.mark.parametrize(("op", "inputs"), MOVES, ids=lambda v: getattr(v, "name", ""))
def test_movement(op, inputs, rng) -> None:
    check("cpu_copy", problem(op, inputs, None, ()), rng)


def test_concat_into_channels_last(rng) -> None:
    inputs = [nhwc(2, 3, 4, 5), spec((2, 6, 4, 5))]
    check("cpu_copy", problem(ops.Concat(1), inputs, ["nhwc"], ()), rng)


def test_movement_refusals() -> None:
    shape = (1, 2, 4, 4)
    linear = problem(ops.Resize((1, 2, 8, 8), (1.0, 1.0, 2.0, 2.0), "linear"), [spec(shape)])
    assert "interpolates" in refusal("cpu_copy", linear)
    uneven = problem(ops.Resize((1, 2, 6, 6), (1.0, 1.0, 1.5, 1.5)), [spec(shape)])
    assert "whole factor" in refusal("cpu_copy", uneven)
    corner = ops.Resize((1, 2, 8, 8), (1.0, 1.0, 2.0, 2.0), coordinate="asymmetric", nearest="ceil")
    assert "evenly" in refusal("cpu_copy", problem(corner, [spec(shape)]))
    reflect = problem(ops.Pad((0, 0, 1, 1, 0, 0, 1, 1), "reflect"), [spec(shape)])
    assert "reflect" in refusal("cpu_copy", reflect)
    crossing = problem(ops.Reshape((8, 15)), [nhwc(2, 3, 4, 5)])
    assert "cross" in refusal("cpu_copy", crossing)
    empty = problem(ops.Transpose((1, 0)), [TensorSpec.dense((0, 3), FP32)])
    assert "empty" in refusal("cpu_copy", empty)
