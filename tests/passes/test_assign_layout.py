from __future__ import annotations

import pytest

from nrt.dtypes import FP16, INT8, UINT8, DType
from nrt.ir.op import Op
from nrt.ir.ops import (
    LRN,
    AbsHistogram,
    Add,
    AveragePool,
    Concat,
    Conv,
    Exp,
    MatMul,
    MaxPool,
    Mul,
    Pad,
    Reduce,
    Reformat,
    Relu,
    Reshape,
    Resize,
    Sigmoid,
    Slice,
    Softmax,
    Split,
    Transpose,
)
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.passes.assign_layout import AssignLayout

from .support import Net, apply, launches, ops, sole

LAYOUT = AssignLayout()
WINDOWED: tuple[Op, ...] = (
    MaxPool((2, 2), (2, 2), (0, 0, 0, 0)),
    AveragePool((2, 2), (1, 1), (0, 0, 0, 0)),
    LRN(3),
    Resize((2, 3, 12, 10), (1.0, 1.0, 2.0, 2.0)),
)


@pytest.mark.parametrize("op", WINDOWED, ids=lambda op: op.name)
def test_windows_read_and_write_channels_last(op: Op) -> None:
    net = Net()
    net.out(net.op(op, net.input(2, 3, 6, 5)))
    result = apply(net, LAYOUT)
    assert ops(result.graph) == ["Reformat", op.name, "Reformat"]
    node = sole(result.graph, type(op))
    assert node.inputs[0].layout == node.output.layout == NHWC
    assert result.graph.outputs["y"].layout is None


@pytest.mark.parametrize(("channels", "dtype"), [(3, UINT8), (3, FP16), (16, INT8)])
def test_a_first_layer_of_bytes_reads_planes(channels: int, dtype: DType) -> None:
    net = Net()
    x = net.input(2, channels, 6, 5, dtype=dtype)
    own = FP16 if dtype is FP16 else INT8
    weights = net.const(net.rng.integers(-9, 9, (8, channels, 3, 3)).astype(own.numpy))
    net.out(net.op(Conv(out_dtype=FP16), x, weights))
    (node,) = [n for n in apply(net, LAYOUT).graph.nodes if isinstance(n.op, Conv)]
    assert node.inputs[0].layout == (None if dtype is UINT8 else NHWC)
    assert node.output.layout == NHWC


FOLLOWING: tuple[Op, ...] = (
    Relu(),
    Slice((0, 1, 0, 1), (2, 3, 5, 5), (1, 1, 1, 2)),
    Pad((0, 0, 1, 0, 0, 0, 0, 2)),
    Reduce("mean", (2,)),
    Reduce("max", (-1, 2)),
)


@pytest.mark.parametrize("op", FOLLOWING, ids=str)
def test_others_follow_their_input(op: Op) -> None:
    net = Net()
    y = net.conv(net.input(2, 3, 6, 5), 4)
    net.out(net.op(Exp(), net.op(op, y)))
    result = apply(net, LAYOUT)
    last = [] if isinstance(op, Reduce) and len(op.axes) == 2 else ["Reformat"]
    assert ops(result.graph) == ["Reformat", "Conv", op.name, "Exp", *last]
    alone = Net()
    alone.out(alone.op(op, alone.input(2, 3, 6, 5)))
    assert ops(apply(alone, LAYOUT).graph) == [op.name]


def test_images_that_meet_have_one_layout() -> None:
    net = Net()
    a = net.conv(net.input(2, 3, 6, 5), 4)
    b = net.input(2, 4, 6, 5, name="b")
    net.out(net.op(Add(), net.op(Concat(1), a, b), net.input(8, 6, 5, name="plain")))
    result = apply(net, LAYOUT)
    concat = sole(result.graph, Concat)
    assert [v.layout for v in concat.inputs] == [NHWC, NHWC]
    assert concat.output.layout == NHWC
    assert launches(result.graph).count("Reformat") == 3


def test_pieces_follow() -> None:
    net = Net()
    pieces = net.node(Split(1, (1, 3)), net.conv(net.input(2, 3, 6, 5), 4)).outputs
    net.out(net.conv(pieces[1], 2))
    net.out(pieces[0], "z")
    result = apply(net, LAYOUT)
    # One channel alone is the same memory in both layouts.
    assert launches(result.graph).count("Reformat") == 2
    assert result.graph.outputs["z"].layout is None


@pytest.mark.parametrize(
    "op", [Softmax(1), Reduce("mean", (1,)), Transpose((0, 2, 1, 3)), Reshape((2, 120))], ids=str
)
def test_everything_else_reads_row_major(op: Op) -> None:
    net = Net()
    net.out(net.op(op, net.conv(net.input(2, 3, 6, 5), 4)))
    result = apply(net, LAYOUT)
    assert ops(result.graph) == ["Reformat", "Conv", "Reformat", op.name]
    assert sole(result.graph, type(op)).inputs[0].layout is None


def test_one_reformat_serves_all_readers() -> None:
    net = Net()
    x = net.input(2, 3, 6, 5)
    y = net.op(Add(), net.conv(x, 4), net.conv(x, 4))
    net.out(net.op(Softmax(1), y))
    net.out(net.op(Softmax(2), y), "z")
    assert launches(apply(net, LAYOUT).graph).count("Reformat") == 2


def test_same_memory_needs_no_reformat() -> None:
    net = Net()
    x = net.conv(net.input(2, 1, 6, 5), 4)
    pooled = net.op(Reduce("mean", (2, 3)), x)
    gate = net.op(Sigmoid(), net.conv(pooled, 4, 1))
    y = net.op(Reduce("mean", (2, 3)), net.op(Mul(), x, gate))
    net.out(net.op(MatMul(), net.op(Reshape((2, 4)), y), net.weight(4, 3)))
    assert "Reformat" not in ops(apply(net, LAYOUT).graph)


def test_residuals_of_an_epilogue_lie_as_its_output() -> None:
    net = Net()
    b = Builder("fff")
    op = Conv(pads=(1, 1, 1, 1), epilogue=b.build(b("add", b("add", 0, 1), 2)))
    bias = net.const(net.random(4, 1, 1))
    skip = net.input(2, 4, 6, 5, name="skip")
    net.out(net.op(op, net.input(2, 3, 6, 5), net.weight(4, 3, 3, 3), bias, skip))
    node = sole(apply(net, LAYOUT).graph, Conv)
    assert [v.layout for v in node.inputs] == [NHWC, None, None, NHWC]


def test_a_transpose_that_layouts_explain_is_free() -> None:
    net = Net()
    x = net.op(Transpose((0, 3, 1, 2)), net.input(2, 6, 5, 3))
    net.out(net.op(Transpose((0, 2, 3, 1)), net.conv(x, 4)))
    result = apply(net, LAYOUT)
    assert launches(result.graph) == ["Conv"]
    assert "moves no element: only the layout changes" in [n.text for n in result.notes]


def test_a_transpose_for_several_readers() -> None:
    net = Net()
    x = net.op(Transpose((0, 3, 1, 2)), net.input(2, 6, 5, 3))
    net.out(net.op(Softmax(1), x))
    net.out(net.conv(x, 4), "z")
    assert sorted(launches(apply(net, LAYOUT).graph)) == ["Conv", "Reformat", "Reformat", "Softmax"]
    plain = Net()
    x = plain.op(Transpose((0, 3, 1, 2)), plain.input(2, 6, 5, 3))
    plain.out(plain.op(Softmax(1), x))
    assert launches(apply(plain, LAYOUT).graph) == ["Transpose", "Softmax"]


def test_patches_to_tokens_and_back_are_views() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 6, 5), 4)
    tokens = net.op(Transpose((0, 2, 1)), net.op(Reshape((2, 4, 30)), x))
    y = net.op(Softmax(), tokens)
    image = net.op(Reshape((2, 4, 6, 5)), net.op(Transpose((0, 2, 1)), y))
    net.out(net.op(Reduce("mean", (2, 3)), net.conv(image, 3)))
    assert launches(apply(net, LAYOUT).graph) == ["Reformat", "Conv", "Softmax", "Conv", "Reduce"]


def test_a_cast_keeps_the_layout_of_its_input() -> None:
    net = Net()
    y = net.op(Reformat(FP16), net.conv(net.input(2, 3, 6, 5), 4))
    net.out(net.op(MaxPool((2, 2), (2, 2), (0, 0, 0, 0)), y))
    assert ops(apply(net, LAYOUT).graph) == ["Reformat", "Conv", "Reformat", "MaxPool", "Reformat"]


def test_other_ranks_stay_row_major() -> None:
    net = Net()
    x = net.op(Conv((1,), (1, 1), (1,)), net.input(2, 3, 11), net.weight(5, 3, 3))
    net.out(x)
    assert not apply(net, LAYOUT).changed


def test_histograms_read_any_layout() -> None:
    """What counts elements asks for no order, and a Transpose beside it stays a view."""
    net = Net()
    x = net.input(2, 3, 6, 5)
    y = net.op(MaxPool((2, 2), (2, 2), (0, 0, 0, 0)), x)
    net.graph.set_output("counts", net.op(AbsHistogram(), y))
    flat = net.op(Transpose((0, 2, 3, 1)), y)
    net.graph.set_output("more", net.op(AbsHistogram(), flat))
    result = apply(net, LAYOUT)
    assert ops(result.graph) == ["Reformat", "MaxPool", "AbsHistogram", "Transpose", "AbsHistogram"]
    assert sole(result.graph, MaxPool).output.layout == NHWC
    assert launches(result.graph) == ["Reformat", "MaxPool", "AbsHistogram", "AbsHistogram"]
