"""Convolutions of the CPU target against float64."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name, variants_for
from nrt.dtypes import BF16, FP16, FP32, FP64, INT32
from nrt.ir.ops import Conv, ConvTranspose
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec
from tests.cpu_kernels.harness import (
    channel_slice,
    check,
    half,
    nhwc,
    problem,
    random_array,
    refusal,
    run,
    spec,
)


def relu_bias() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("add", 0, 1), b.const(0.0)))


def relu_bias_residual() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("add", 0, 1), 2), b.const(0.0)))


def conv(
    x: TensorSpec, w: tuple[int, ...], out: object = "nhwc", bias: bool = True, **attributes: object
) -> Problem:
    op = Conv(**attributes)  # type: ignore[arg-type]
    inputs = [x, spec(w, dtype=x.dtype)]
    if bias:
        inputs.append(spec((w[0],), dtype=x.dtype))
    return problem(op, inputs, [out], constants=(1, 2))  # type: ignore[list-item]


SHAPES = [
    # x, w, attributes
    ((1, 16, 9, 7), (64, 16, 1, 1), {}),
    ((2, 5, 7, 9), (3, 5, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((3, 7, 11, 5), (33, 7, 3, 3), {"pads": (0, 1, 2, 1), "strides": (2, 1)}),
    ((1, 8, 13, 13), (17, 8, 3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((2, 12, 8, 6), (20, 3, 3, 2), {"groups": 4, "pads": (1, 0, 1, 1)}),
    ((1, 3, 23, 19), (70, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
    ((2, 40, 6, 6), (130, 40, 1, 1), {"strides": (2, 3)}),
    ((1, 600, 4, 5), (5, 600, 2, 3), {"pads": (1, 2, 0, 1)}),
    ((1, 4, 1, 30), (6, 4, 1, 5), {"pads": (0, 2, 0, 2), "dilations": (1, 3)}),
    ((5, 1, 3, 3), (1, 1, 3, 3), {}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), SHAPES)
@pytest.mark.parametrize("name", ["cpu_conv_indirect", "cpu_conv_staged"])
def test_shapes(name, x, w, attributes, rng) -> None:
    p = conv(nhwc(*x), w, **attributes)
    if name == "cpu_conv_staged" and w[1] > 64:
        assert "would not pay" in refusal(name, p)
        return
    check(name, p, rng, all_configs=True)


@pytest.mark.parametrize("name", ["cpu_conv_indirect", "cpu_conv_staged"])
def test_epilogue_with_residual_into_a_slice(name, rng) -> None:
    x = channel_slice((2, 10, 9, 8), 31)
    op = Conv(pads=(1, 1, 1, 1), epilogue=relu_bias_residual())
    y = channel_slice((2, 37, 9, 8), 50)
    residual = channel_slice((2, 37, 9, 8), 41)
    p = problem(op, [x, spec((37, 10, 3, 3)), spec((37, 1, 1)), residual], [y], (1, 2))
    check(name, p, rng, all_configs=True)


def test_epilogue_extras_broadcast(rng) -> None:
    b = Builder("fffi")
    program = b.build(b("add", b("mul", 0, 1), b("add", 2, b("to_f", 3))))
    op = Conv(epilogue=program)
    inputs = [
        nhwc(2, 6, 5, 4), spec((9, 6, 2, 2)), spec(()), spec((2, 1, 4, 3)),
        spec((9, 1, 3), dtype=INT32),
    ]  # fmt: skip
    check("cpu_conv_indirect", problem(op, inputs, ["nhwc"]), rng)
    # Row-major extras and output: columns lie a plane apart.
    check("cpu_conv_indirect", problem(op, inputs), rng)


def test_row_major_input_is_staged(rng) -> None:
    p = conv(spec((2, 70, 6, 5)), (9, 70, 3, 3), out=None, pads=(1, 1, 0, 1))
    assert "not side by side" in refusal("cpu_conv_indirect", p)
    check("cpu_conv_staged", p, rng)


def test_half_input(rng) -> None:
    x = half(nhwc(1, 9, 6, 6))
    p = conv(x, (12, 9, 3, 3))
    assert "fp16" in refusal("cpu_conv_indirect", p)
    check("cpu_conv_staged", p, rng)


def test_half_output(rng) -> None:
    op = Conv(out_dtype=FP16)
    check("cpu_conv_indirect", problem(op, [nhwc(1, 9, 6, 6), spec((12, 9, 1, 1))], ["nhwc"]), rng)


@pytest.mark.parametrize(
    ("x", "kernel", "attributes"),
    [
        ((2, 35, 9, 11), (3, 3), {"pads": (1, 1, 1, 1)}),
        ((1, 64, 10, 20), (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ((1, 16, 5, 3), (5, 5), {"pads": (2, 2, 2, 2)}),
        ((2, 7, 12, 13), (3, 2), {"pads": (3, 1, 0, 4), "dilations": (2, 3)}),
        ((1, 50, 7, 33), (1, 7), {"pads": (0, 3, 0, 3)}),
        ((1, 3, 2, 2), (3, 3), {"pads": (4, 4, 4, 4)}),
    ],
)
def test_depthwise(x, kernel, attributes, rng) -> None:
    p = conv(nhwc(*x), (x[1], 1, *kernel), groups=x[1], **attributes)
    check("cpu_conv_depthwise", p, rng)


def test_depthwise_epilogue_into_a_slice(rng) -> None:
    op = Conv(pads=(1, 1, 1, 1), groups=21, epilogue=relu_bias())
    y = channel_slice((2, 21, 5, 6), 30)
    inputs = [channel_slice((2, 21, 5, 6), 22), spec((21, 1, 3, 3)), spec((21, 1, 1))]
    check("cpu_conv_depthwise", problem(op, inputs, [y], (1, 2)), rng)


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((1, 6, 5, 4), (6, 10, 2, 2), {"strides": (2, 2)}),
        ((2, 5, 4, 6), (5, 3, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ((1, 8, 3, 5), (8, 5, 4, 3), {"strides": (3, 2), "pads": (1, 0, 2, 1), "groups": 2}),
        ((1, 4, 5, 5), (4, 7, 3, 3), {"strides": (2, 3), "dilations": (3, 2)}),
        ((1, 3, 4, 4), (3, 2, 1, 1), {"strides": (3, 3), "output_padding": (1, 2)}),
        ((2, 70, 3, 3), (70, 20, 3, 3), {"pads": (1, 1, 1, 1), "dilations": (2, 2)}),
    ],
)
@pytest.mark.parametrize("layout", ["nhwc", None])
def test_transposed(x, w, attributes, layout, rng) -> None:
    groups = attributes.get("groups", 1)
    inputs = [
        nhwc(*x) if layout else spec(x),
        spec(w),
        spec((w[1] * groups,)),
    ]
    p = problem(ConvTranspose(**attributes), inputs, [layout], (1, 2))
    check("cpu_conv_transpose", p, rng)


def test_transposed_epilogue(rng) -> None:
    op = ConvTranspose(strides=(2, 2), epilogue=relu_bias_residual())
    y = channel_slice((1, 5, 8, 6), 11)
    inputs = [nhwc(1, 7, 4, 3), spec((7, 5, 2, 2)), spec((5, 1, 1)), nhwc(1, 5, 8, 6)]
    check("cpu_conv_transpose", problem(op, inputs, [y], (1, 2)), rng)


def test_refusals() -> None:
    x = nhwc(1, 8, 6, 6)
    variable = problem(Conv(), [x, spec((4, 8, 1, 1))], ["nhwc"], constants=())
    assert "not constant" in refusal("cpu_conv_indirect", variable)
    flat = Conv((1,), (0, 0), (1,))
    line = problem(flat, [spec((1, 2, 9)), spec((3, 2, 3))])
    assert "two spatial dimensions" in refusal("cpu_conv_indirect", line)
    double = conv(nhwc(1, 2, 3, 3, dtype=FP64), (2, 2, 1, 1))
    assert "products are computed on fp32" in refusal("cpu_conv_staged", double)
    dense = conv(x, (4, 8, 1, 1))
    assert "not depthwise" in refusal("cpu_conv_depthwise", dense)
    thin = conv(nhwc(1, 8, 6, 6), (8, 1, 3, 3), groups=8)
    assert "use cpu_conv_depthwise" in refusal("cpu_conv_indirect", thin)
    assert "use cpu_conv_depthwise" in refusal("cpu_conv_staged", thin)
    empty = conv(nhwc(0, 8, 6, 6), (4, 8, 1, 1))
    assert "empty" in refusal("cpu_conv_indirect", empty)
    apart = conv(spec((1, 8, 6, 6)), (8, 1, 3, 3), groups=8)
    assert "not side by side" in refusal("cpu_conv_depthwise", apart)
    b = Builder("f")
    brief = Conv(epilogue=b.build(0), out_dtype=BF16)
    stored = problem(brief, [x, spec((4, 8, 1, 1))], ["nhwc"])
    assert "no host code loads and stores bf16" in refusal("cpu_conv_indirect", stored)
    transposed = problem(ConvTranspose(), [x, spec((8, 2, 1, 1))], constants=())
    assert "not constant" in refusal("cpu_conv_transpose", transposed)


def test_every_refused_problem_keeps_the_reference(rng) -> None:
    p = problem(Conv((1,), (0, 0), (1,)), [spec((1, 2, 9)), spec((3, 2, 3))])
    assert [v.name for v, r in variants_for(p) if r is None] == ["cpu_reference"]
    check("cpu_reference", p, rng)
    assert FP32 is p.y.dtype


def test_nan_and_infinity_pass_through(rng) -> None:
    op = Conv(epilogue=relu_bias())
    p = problem(op, [nhwc(1, 4, 3, 3), spec((5, 4, 1, 1)), spec((5, 1, 1))], ["nhwc"], (1, 2))
    arrays = [random_array(t, rng) for t in p.inputs]
    arrays[0][0, 1, 1, 2] = np.nan
    arrays[2][3] = np.inf
    variant = variant_by_name("cpu_conv_indirect")
    ((out, _),) = run(variant, p, variant.configs(p)[0], arrays)
    assert np.isnan(out[0, :, 1, 2]).all()
    assert np.isposinf(out[0, 3, 0, 0])
    assert np.isfinite(out[0, :3, 0, 0]).all()


def norm_relu() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        (channel_slice((2, 40, 6, 5), 57), (33, 40, 1, 1), {"strides": (2, 1)}),
        (nhwc(1, 72, 5, 5), (16, 72, 1, 1), {}),
        (nhwc(2, 40, 7, 6), (19, 40, 2, 2), {"strides": (2, 2)}),
        (spec((2, 6, 9, 7)), (10, 3, 3, 3), {"pads": (1, 2, 1, 0), "groups": 2}),
    ],
)
def test_a_prologue_is_computed_by_the_copy(dtype, x, w, attributes, rng) -> None:
    op = Conv(prologue=norm_relu(), epilogue=relu_bias(), **attributes)
    x = TensorSpec(x.shape, dtype, x.strides)
    channel = spec((x.shape[1], 1, 1))
    inputs = [x, spec(w, dtype=dtype), channel, spec(()), spec((w[0], 1, 1))]
    p = problem(op, inputs, ["nhwc"], (1, 2, 3, 4))
    check("cpu_conv_staged", p, rng, all_configs=True)
    for name in ("cpu_conv_indirect", "cpu_conv_winograd"):
        assert "the input has a prologue, only a copy of it can be multiplied" in refusal(name, p)
