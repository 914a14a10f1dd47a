"""Products with a second result: passes leave them alone, and networks compute what they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_graphs import run_tasks, worst_error

import nrt
from nrt.dtypes import FP16, FP32, INT8, UINT8
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Op
from nrt.ir.ops import (
    AveragePool,
    Conv,
    MatMul,
    Pad,
    Pointwise,
    Reduce,
    Reformat,
    Relu,
    Reshape,
    Transpose,
)
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.lowering import lower
from nrt.passes.base import Pass, Phase, run_pipeline
from nrt.passes.choice import ChoicePass
from nrt.passes.fold_pad import FoldPad
from nrt.passes.fold_requantize import FoldRequantize
from nrt.passes.fuse_average_pool import FuseAveragePool
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_conv_prologue import FuseConvPrologue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_pool_classifier import FusePoolClassifier
from nrt.passes.fuse_pool_conv import FusePoolConv
from nrt.passes.fuse_siblings import FuseSiblings
from nrt.passes.merge_reformats import MergeReformats
from nrt.passes.pipeline import PipelineOptions, pass_names, pipeline
from nrt.passes.quantize import QuantizeLayers
from nrt.passes.sink_scale import SinkScale

from .second_results import SecondResults, with_second_result
from .support import FP16_TOLERANCE, Net, apply, assert_same, feeds, ops, refusals, sole
from .test_random_graphs import HALF_TOLERANCE, TOLERANCE, build, graphs, passes

SECOND = Phase("second", (SecondResults(),), "")


def check(net: Net, before: Sequence[Phase], behind: Sequence[Phase], half: bool) -> None:
    """The phases ``behind`` keep what the network computes where products have two results."""
    data = feeds(net)
    wanted = evaluate(net.graph, data)
    # Roundings to fp16 that a network happens to amplify are no fault of second results.
    single = run_pipeline(net.graph, (*before, *behind)).graph
    rounding = worst_error(evaluate(single, data), wanted) if half else 0.0
    tolerance = max(HALF_TOLERANCE if half else TOLERANCE, 10 * rounding)
    report = run_pipeline(net.graph, (*before, SECOND, *behind), verify=True)
    assert worst_error(evaluate(report.graph, data), wanted) <= tolerance
    assert worst_error(run_tasks(lower(report.graph), data), wanted) <= tolerance


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=graphs, before=st.integers(0, 13), half=st.booleans(), channels_last=st.booleans())
def test_the_phases_behind_keep_the_outputs(
    steps: list[tuple[str, int, bool]], before: int, half: bool, channels_last: bool
) -> None:
    precision = frozenset({"fp16", "fp32"} if half else {"fp32"})
    phases = pipeline(PipelineOptions(precision, channels_last=channels_last))
    check(build(steps), phases[:before], phases[before:], half)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=graphs, order=st.permutations(pass_names()), half=st.booleans())
def test_any_order_of_the_passes_behind_keeps_the_outputs(
    steps: list[tuple[str, int, bool]], order: list[str], half: bool
) -> None:
    known = passes(frozenset({"fp16", "fp32"} if half else {"fp32"}))
    check(build(steps), (), [Phase(name, (known[name],), "") for name in order], half)


def conv_and(net: Net, *more: Op) -> None:
    """A convolution of floats, and what reads it."""
    y = net.conv(net.input(2, 6, 8, 6), 8, 1, name="product")
    for op in more:
        y = net.op(op, y)
    net.out(y)


def of_bytes(net: Net) -> None:
    """A convolution that stores as uint8 what is at least 0."""
    x = net.input(2, 5, 7, 6, dtype=INT8)
    w = net.const(net.rng.integers(-9, 9, (8, 5, 3, 3)).astype(np.int8))
    b = Builder("ff")
    clamped = b.build(b("max", b("mul", 0, 1), b.const(0.0)))
    scales = net.const(net.rng.random((8, 1, 1)).astype(np.float32))
    op = Conv(pads=(1, 1, 1, 1), epilogue=clamped, out_dtype=UINT8)
    net.out(net.op(op, x, w, scales, name="product"))


def halves(net: Net, *more: Op) -> None:
    x = net.input(2, 6, 7, 6, dtype=FP16)
    y = net.op(Conv(), x, net.const(np.asarray(net.random(8, 6, 3, 3), np.float16)), name="product")
    for op in more:
        y = net.op(op, y)
    net.out(y)


def scaled(net: Net) -> None:
    half = Builder("f")
    program = half.build(half("mul", 0, half.const(0.5)))
    x = net.op(Pointwise(program, FP32), net.input(3, 5))
    net.out(net.op(MatMul(), x, net.weight(5, 7), name="product"))


def padded(net: Net) -> None:
    x = net.op(Pad((0, 0, 1, 1, 0, 0, 1, 1)), net.input(2, 6, 5, 4))
    net.out(net.op(Conv(), x, net.weight(8, 6, 3, 3), name="product"))


def after_relu(net: Net) -> None:
    x = net.op(Relu(), net.input(2, 6, 8, 6))
    net.out(net.conv(x, 8, 1, name="product"))


def pooled(net: Net) -> None:
    x = net.op(Reduce("mean", (2, 3), False), net.input(2, 5, 4, 3))
    net.out(net.op(MatMul(), x, net.weight(5, 7), name="product"))


def activated(net: Net) -> None:
    y = net.op(MatMul(), net.input(3, 5), net.weight(5, 7), name="product")
    net.out(net.op(Relu(), y))


CASES: dict[str, tuple[Pass, Callable[[Net], None]]] = {
    "fold-pad": (FoldPad(), padded),
    "sink-scale": (SinkScale(), scaled),
    "fuse-conv-epilogue": (FuseConvEpilogue(), lambda net: conv_and(net, Relu())),
    "fuse-matmul-epilogue": (FuseMatMulEpilogue(), activated),
    "fuse-average-pool": (
        FuseAveragePool(),
        lambda net: conv_and(net, AveragePool((2, 2), (2, 2), (0, 0, 0, 0))),
    ),
    "fuse-conv-prologue": (FuseConvPrologue(), after_relu),
    "fuse-pool-classifier": (FusePoolClassifier(), pooled),
    "merge-reformats": (MergeReformats(), lambda net: halves(net, Reformat(FP32))),
    "fold-requantize": (FoldRequantize(), of_bytes),
    "fuse-pool-conv": (FusePoolConv(), lambda net: halves(net, Reduce("mean", (2, 3)))),
}


@pytest.mark.parametrize("name", CASES)
def test_no_pass_rewrites_a_product_with_a_second_result(name: str) -> None:
    step, make = CASES[name]
    assert step.name == name
    net = Net()
    make(net)
    assert step.run(net.graph.copy()).changed
    twofold = with_second_result(net.graph, net.graph.node("product"))
    net.out(twofold.outputs[1], "second")
    result = apply(net, step)
    assert not result.changed
    assert refusals(result.notes) == [
        f"{twofold} has a second result, which a node in its place would not have"
    ]
    if isinstance(step, ChoicePass):
        assert step.sites(net.graph) == ()


@pytest.mark.parametrize("count", [2, 3])
def test_siblings_with_a_second_result_stay_apart(count: int) -> None:
    net = Net()
    x = net.input(2, 4, 6, 5)
    for index in range(count):
        net.out(net.op(Relu(), net.conv(x, 16, 1, name=f"conv{index}")), f"y{index}")
    twofold = with_second_result(net.graph, net.graph.node("conv0"))
    net.out(twofold.outputs[1], "second")
    assert refusals(FuseSiblings().run(net.graph.copy()).notes) == [
        f"{twofold} has a second result, which a node in its place would not have"
    ]
    result = apply(net, FuseSiblings())
    assert ops(result.graph).count("Split") == count - 2
    assert result.graph.node(twofold.name).op == twofold.op


def test_no_layer_with_a_second_result_is_quantized() -> None:
    net = nrt.Network("pair")
    x = net.input("x", (2, 16, 6, 5))
    y = net.conv2d(x, np.ones((16, 16, 1, 1), np.float32), name="first")
    z = net.conv2d(net.relu(y), np.ones((16, 16, 1, 1), np.float32), name="second")
    net.output(net.conv2d(z, np.ones((16, 16, 1, 1), np.float32), name="third"))
    shape = (2, 16, 6, 5)
    ranges = nrt.calibrate(net, [np.random.default_rng().random(shape, np.float32)], target="cpu")
    twofold = with_second_result(net.graph, net.graph.node("second"))
    step = QuantizeLayers(ranges, frozenset({"int8"}))
    result = step.run(net.graph)
    notes = {n.node: n.text for n in result.notes if n.kind == "refused"}
    assert notes["second"] == (
        f"no int8: {twofold} has a second result, which a node in its place would not have"
    )
    assert net.graph.node("second") is twofold


def test_both_results_have_the_precision_and_layout_of_their_layer() -> None:
    net = Net()
    net.conv(net.input(2, 4, 6, 5), 8, bias=True)
    conv = with_second_result(net.graph, sole(net.graph, Conv))
    first, second = conv.outputs
    net.out(net.conv(first, 5), "a")
    net.out(net.op(Relu(), second), "b")
    rows = net.op(Reshape((2, 8, 30)), second)
    net.op(MatMul(), rows, net.weight(30, 7))
    product = with_second_result(net.graph, sole(net.graph, MatMul))
    net.out(net.op(Transpose((0, 2, 1)), product.outputs[0]), "c")
    net.out(product.outputs[1], "d")
    options = PipelineOptions(frozenset({"fp16", "fp32"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    found = report.graph.node(conv.name)
    assert [(v.dtype, v.layout) for v in found.outputs] == [(FP16, NHWC)] * 2
    found = report.graph.node(product.name)
    # What is an output of the network keeps its type, and no cast is needed.
    assert [v.dtype for v in found.outputs] == [FP16, FP32]
    assert report.graph.outputs["d"] is found.outputs[1]
