from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, FP64, INT8
from nrt.ir.ops import Add, AveragePool, Cast, Conv, Mul, Pointwise, Relu, Sigmoid
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Value
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_average_pool import FuseAveragePool
from nrt.passes.fuse_conv_prologue import FuseConvPrologue
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import (
    FOLDED_TOLERANCE,
    FP16_TOLERANCE,
    Net,
    apply,
    assert_same,
    feeds,
    ops,
    refusals,
    sole,
)

PASS = FuseAveragePool()


def side_by_side(*kernel: int, **more: Any) -> AveragePool:
    ones = (1,) * len(kernel)
    return AveragePool(kernel, kernel, (0,) * (2 * len(kernel)), **{"dilations": ones, **more})


def program(*steps: tuple[Any, ...], inputs: int) -> Program:
    """Steps of (opcode, arguments); a float among these is a constant."""
    b = Builder("f" * inputs)
    last = 0
    for opcode, *args in steps:
        last = b(opcode, *(b.const(a) if isinstance(a, float) else a for a in args))
    return b.build(last)


def pooled(net: Net, x: Value, channels: int = 5, op: Conv | None = None, *more: Value) -> Value:
    """The mean of 2x2 windows of a 1x1 convolution."""
    y = net.op(op or Conv(), x, net.weight(channels, x.shape[1], 1, 1), *more, name="c")
    return net.op(side_by_side(2, 2), y, name="pool")


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 6, 8, 6), (2, 2)),
        ((1, 7, 9, 8), (3, 4)),
        ((3, 5, 6, 7), (1, 7)),
        ((1, 4, 7, 5), (2, 2)),
    ],
)
def test_one_convolution_with_a_filter(shape: tuple[int, ...], kernel: tuple[int, int]) -> None:
    """Rows and columns that no window has, are in none afterwards either."""
    net = Net()
    y = net.op(Conv(), net.input(*shape), net.weight(9, shape[1], 1, 1), name="c")
    net.out(net.op(side_by_side(*kernel), y, name="pool"))
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/c", "/pool"}
    result = apply(net, PASS)
    (node,) = result.graph.nodes
    assert node.op == Conv(strides=kernel)
    assert (node.name, set(node.origin)) == ("c", {"/c", "/pool"})
    before = sole(net.graph, Conv).inputs[1].constant
    assert before is not None
    share = before.astype(np.float64) / (kernel[0] * kernel[1])
    expected = np.tile(share, (1, 1, *kernel)).astype(np.float32)
    np.testing.assert_array_equal(node.inputs[1].constant, expected)
    (note,) = result.notes
    size = f"{kernel[0]}x{kernel[1]}"
    assert (
        note.text == f"took in AveragePool 'pool': a filter of {size} at a stride of its own size"
    )


@pytest.mark.parametrize("shape", [(2, 6, 9), (1, 3, 4, 2, 6)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    net = Net()
    rank = len(shape) - 2
    op = Conv((1,) * rank, (0,) * (2 * rank), (1,) * rank)
    y = net.op(op, net.input(*shape), net.weight(5, shape[1], *[1] * rank), name="c")
    net.out(net.op(side_by_side(*([3] if rank == 1 else [2, 1, 3])), y))
    assert ops(apply(net, PASS).graph) == ["Conv"]


def test_groups_stay_apart() -> None:
    net = Net()
    y = net.op(Conv(groups=2), net.input(1, 6, 4, 6), net.weight(4, 3, 1, 1))
    net.out(net.op(side_by_side(2, 3), y))
    node = sole(apply(net, PASS).graph, Conv)
    assert node.op == Conv((2, 3), groups=2)
    assert node.inputs[1].shape == (4, 3, 2, 3)


def test_a_whole_last_window_of_ceil_mode() -> None:
    net = Net()
    y = net.op(Conv(), net.input(1, 6, 4, 6), net.weight(4, 6, 1, 1))
    net.out(net.op(side_by_side(2, 3, ceil_mode=True, count_include_pad=True), y))
    assert ops(apply(net, PASS).graph) == ["Conv"]


def test_a_bias_is_its_own_mean() -> None:
    net = Net()
    net.out(pooled(net, net.input(1, 6, 4, 6), 5, None, net.const(net.random(5))))
    node = sole(apply(net, PASS).graph, Conv)
    assert [v.shape for v in node.inputs] == [(1, 6, 4, 6), (5, 6, 2, 2), (5,)]


AFFINE = program(("mul", 0, 1), ("sub", 2, 3), ("neg", 4), ("div", 5, 3.0), ("add", 6, 0), inputs=3)


def test_numbers_per_channel_come_along() -> None:
    net = Net()
    scale, shift = net.const(net.random(5, 1, 1)), net.input(2, 1, 1, 1, name="shift")
    op = Conv(epilogue=AFFINE)
    net.out(pooled(net, net.input(2, 6, 4, 6), 5, op, scale, shift))
    node = sole(apply(net, PASS).graph, Conv)
    assert node.op == Conv((2, 2), epilogue=AFFINE)
    assert [v.shape for v in node.inputs[2:]] == [(5, 1, 1), (2, 1, 1, 1)]


def test_a_prologue_comes_along() -> None:
    net = Net()
    op = Conv(prologue=program(("mul", 0, 1), ("max", 2, 0.0), inputs=2))
    net.out(pooled(net, net.input(1, 6, 4, 6), 5, op, net.const(net.random(6, 1, 1))))
    node = sole(apply(net, PASS).graph, Conv)
    assert node.op == replace(op, strides=(2, 2))
    assert [v.shape for v in node.inputs[1:]] == [(5, 6, 2, 2), (6, 1, 1)]


@pytest.mark.parametrize("before", [False, True])
def test_what_the_pooling_ends_with_follows(before: bool) -> None:
    """Behind what the convolution ends with, an operand of the output's size too."""
    net = Net()
    op = Conv(epilogue=program(("add", 0, 1), inputs=2)) if before else Conv()
    more = [net.const(net.random(5, 1, 1))] if before else []
    y = net.op(op, net.input(1, 6, 4, 6), net.weight(5, 6, 1, 1), *more, name="c")
    end = program(("add", 0, 1), ("max", 2, 0.0), inputs=2)
    pool = side_by_side(2, 2, epilogue=end)
    net.out(net.op(pool, y, net.input(1, 5, 2, 3, name="r"), name="pool"))
    node = sole(apply(net, PASS).graph, Conv)
    text = "add(x0, x1); add(r3, x2); max(r4, 0.0)" if before else "add(x0, x1); max(r2, 0.0)"
    assert node.op.attributes()["epilogue"].text() == text
    assert [v.shape for v in node.inputs[2:]] == [*([(5, 1, 1)] * before), (1, 5, 2, 3)]


def test_halves_may_become_floats() -> None:
    net = Net()
    x = net.input(1, 6, 4, 6, dtype=FP16)
    w = net.const((net.random(5, 6, 1, 1) / 2).astype(np.float16))
    pool = side_by_side(2, 2, epilogue=program(("mul", 0, 0.5), inputs=1), out_dtype=FP32)
    net.out(net.op(pool, net.op(Conv(), x, w)))
    node = sole(apply(net, PASS, FP16_TOLERANCE).graph, Conv)
    assert (node.inputs[1].dtype, node.output.dtype) == (FP16, FP32)


def overlapping(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 5, 5), net.weight(4, 6, 1, 1))
    net.out(net.op(AveragePool((3, 3), (2, 2), (0,) * 4), y, name="pool"))


def padded(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 5, 5), net.weight(4, 6, 1, 1))
    net.out(net.op(AveragePool((2, 2), (2, 2), (1, 1, 0, 0)), y, name="pool"))


def dilated(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 6, 6), net.weight(4, 6, 1, 1))
    net.out(net.op(side_by_side(2, 2, dilations=(1, 2)), y, name="pool"))


def partial_window(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 5, 4), net.weight(4, 6, 1, 1))
    net.out(net.op(side_by_side(2, 2, ceil_mode=True), y, name="pool"))


def with_a_filter(net: Net) -> None:
    net.out(net.op(side_by_side(2, 2), net.conv(net.input(1, 6, 4, 4), 5, 3, name="c")))


def with_strides(net: Net) -> None:
    net.out(pooled(net, net.input(1, 6, 8, 8), 5, Conv((2, 2))))


def live_weights(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 4, 4), net.input(5, 6, 1, 1, name="w"), name="c")
    net.out(net.op(side_by_side(2, 2), y))


def activated(net: Net) -> None:
    op = Conv(epilogue=program(("max", 0, 0.0), inputs=1))
    net.out(pooled(net, net.input(1, 6, 4, 4), 5, op))


def squared(net: Net) -> None:
    op = Conv(epilogue=program(("mul", 0, 0), inputs=1))
    net.out(pooled(net, net.input(1, 6, 4, 4), 5, op))


def inverted(net: Net) -> None:
    op = Conv(epilogue=program(("div", 1.0, 0), inputs=1))
    net.out(pooled(net, net.input(1, 6, 4, 4), 5, op))


def residual(net: Net) -> None:
    op = Conv(epilogue=program(("add", 0, 1), inputs=2))
    net.out(pooled(net, net.input(1, 6, 4, 4), 5, op, net.input(1, 5, 4, 4, name="r")))


def integers(net: Net) -> None:
    x = net.input(1, 6, 4, 4, dtype=INT8)
    w = net.const(np.ones((5, 6, 1, 1), np.int8))
    op = Conv(epilogue=program(("mul", 0, 0.5), inputs=1), out_dtype=FP32)
    net.out(net.op(side_by_side(2, 2), net.op(op, x, w, name="c"), name="pool"))


def bias_before_an_epilogue(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 4, 4), net.weight(5, 6, 1, 1), net.weight(5), name="c")
    relu = program(("max", 0, 0.0), inputs=1)
    net.out(net.op(side_by_side(2, 2, epilogue=relu), y, name="pool"))


def large_window(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 5, 5), net.weight(4, 6, 1, 1), name="c")
    net.out(net.op(side_by_side(5, 5), y, name="pool"))


def doubles(net: Net) -> None:
    x = net.input(1, 6, 4, 4, dtype=FP16)
    y = net.op(Conv(), x, net.const(np.ones((5, 6, 1, 1), np.float16)), name="c")
    half = program(("mul", 0, 0.5), inputs=1)
    net.out(net.op(side_by_side(2, 2, epilogue=half, out_dtype=FP64), y, name="pool"))


def many_operands(net: Net) -> None:
    y = net.op(Conv(), net.input(1, 6, 4, 4), net.weight(5, 6, 1, 1), name="c")
    sums = program(*(("add", i and 5 + i, i + 1) for i in range(5)), inputs=6)
    more = [net.input(1, 5, 2, 2, name=f"r{i}") for i in range(5)]
    net.out(net.op(side_by_side(2, 2, epilogue=sums), y, *more, name="pool"))


WINDOWS = "the windows of AveragePool 'pool' overlap, have gaps or reach over the border"
PLAIN = "Conv 'c' has a filter, strides or padding, expected a plain 1x1 convolution"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (overlapping, WINDOWS),
        (padded, WINDOWS),
        (dilated, WINDOWS),
        (partial_window, WINDOWS),
        (with_a_filter, PLAIN),
        (with_strides, PLAIN),
        (live_weights, "the weights 'w' of Conv 'c' are computed at run time"),
        (activated, "Conv 'c' ends in max(x0, 0.0), whose mean is not that of its result"),
        (squared, "Conv 'c' ends in mul(x0, x0), whose mean is not that of its result"),
        (inverted, "Conv 'c' ends in div(1.0, x0), whose mean is not that of its result"),
        (residual, "Conv 'c' ends with 'r', which may differ from pixel to pixel"),
        (integers, "Conv 'c' makes fp32 of int8, expected floats of 16 bits or more"),
        (
            bias_before_an_epilogue,
            "the bias of Conv 'c' is no step of an epilogue yet, that of AveragePool 'pool' "
            "follows it",
        ),
        (large_window, "the weights of Conv 'c' would grow by 25, the limit is 16"),
        (doubles, "mixes fp64 with fp16"),
        (many_operands, "the prologue and the epilogue would read 5 tensors, the limit is 4"),
    ],
)
def test_refusals(build: Callable[[Net], None], reason: str) -> None:
    net = Net()
    build(net)
    assert PASS.sites(net.graph) == ()
    result = apply(net, PASS)
    assert not result.changed
    assert refusals(result.notes) == [reason]


def test_a_result_that_is_read_elsewhere_stays() -> None:
    net = Net()
    y = net.op(Conv(), net.input(1, 6, 4, 4), net.weight(5, 6, 1, 1), name="c")
    net.out(net.op(side_by_side(2, 2), y, name="pool"))
    net.out(net.op(Relu(), y, name="relu"), "z")
    assert PASS.sites(net.graph) == ()
    assert refusals(apply(net, PASS).notes) == [
        "output 'c' of Conv 'c' is used elsewhere too, by Relu 'relu'"
    ]


def test_a_program_that_would_be_too_long() -> None:
    net = Net()
    op = side_by_side(2, 2, epilogue=program(("mul", 0, 0.5), inputs=1))
    net.out(net.op(op, net.op(Conv(), net.input(1, 6, 4, 4), net.weight(5, 6, 1, 1))))
    assert refusals(apply(net, FuseAveragePool(max_instructions=1)).notes) == [
        "the fused program would have 2 instructions, the limit is 1"
    ]


def transition(net: Net, x: Value, channels: int, *, relu: bool = True) -> Value:
    """What joins the blocks of DenseNet: norm, relu, 1x1 convolution, mean of 2x2."""
    y = net.norm(x)
    y = net.conv(net.op(Relu(), y) if relu else y, channels, 1)
    return net.op(side_by_side(2, 2), y, name="pool")


def test_a_key_that_is_skipped_is_left_apart() -> None:
    net = Net()
    net.out(transition(net, net.input(1, 6, 8, 6), 5))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    (note,) = [n for n in report.notes if n.pass_name == PASS.name]
    assert note.kind == "fired"
    bare = Net()
    bare.out(pooled(bare, bare.input(1, 6, 8, 6)))
    (site,) = PASS.sites(bare.graph)
    step = FuseAveragePool(skip=frozenset({site.key}))
    result = apply(bare, step)
    assert not result.changed
    assert refusals(result.notes) == ["measured: AveragePool 'pool' is faster by itself"]
    assert step.sites(bare.graph) == (site,)


def test_keys_know_shapes_and_neither_names_nor_prologues() -> None:
    def key(batch: int, name: str, *, prologue: bool = False) -> str:
        net = Net()
        y = net.input(batch, 6, 4, 4, name=name)
        y = net.op(Relu(), y) if prologue else y
        y = net.op(Conv(), y, net.weight(5, 6, 1, 1), name=name)
        net.out(net.op(side_by_side(2, 2), y, name=f"{name}.pool"))
        graph = apply(net, FuseConvPrologue()).graph
        assert prologue == any(n.op.attributes().get("prologue") for n in graph.nodes)
        (site,) = PASS.sites(graph)
        return site.key

    assert key(2, "a") == key(2, "b") == key(2, "a", prologue=True)
    assert key(2, "a") != key(3, "a")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_transition_is_one_convolution(precision: str) -> None:
    net = Net()
    net.out(transition(net, net.input(2, 24, 6, 10), 16))
    options = PipelineOptions(precision=frozenset({precision}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    tolerance = FOLDED_TOLERANCE if precision == "fp32" else FP16_TOLERANCE
    assert_same(net.graph, report.graph, feeds(net), tolerance)
    node = sole(report.graph, Conv)
    assert not any(isinstance(n.op, (AveragePool, Pointwise)) for n in report.graph.nodes)
    assert node.inputs[1].shape == (16, 24, 2, 2)
    op = node.op.attributes()
    assert (op["strides"], op["prologue"].text()) == (
        (2, 2),
        "mul(x0, x1); add(r3, x2); max(r4, 0.0)",
    )


def test_norm_and_relu_behind_the_pooling() -> None:
    """The norm folds into the weights, the ReLU becomes the epilogue of the new convolution."""
    net = Net()
    y = transition(net, net.input(2, 6, 6, 10), 5)
    net.out(net.op(Relu(), net.norm(y, "after")))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FOLDED_TOLERANCE)
    node = sole(report.graph, Conv)
    assert node.op.attributes()["epilogue"].text() == "add(x0, x1); max(r2, 0.0)"


def test_a_gate_behind_the_pooling_reads_it_twice() -> None:
    net = Net()
    y = transition(net, net.input(1, 6, 4, 6), 5, relu=False)
    y = net.op(Add(), net.op(Mul(), y, net.op(Sigmoid(), y)), net.const(net.random(5, 1, 1)))
    net.out(net.op(Cast(FP32), y))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FOLDED_TOLERANCE)
    assert sole(report.graph, Conv).inputs[1].shape == (5, 6, 2, 2)
