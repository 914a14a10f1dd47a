from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nrt.dtypes import FP32, INT32
from nrt.ir.ops import (
    Add,
    Cast,
    Concat,
    Conv,
    Elementwise,
    MaxPool,
    Mul,
    Pad,
    Relu,
    Sigmoid,
    Split,
)
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder
from nrt.ir.value import Value
from nrt.passes.base import run_pipeline
from nrt.passes.fold_batch_norm import FoldBatchNorm
from nrt.passes.fold_pad import FoldPad
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
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

PASS = FuseConvPrologue()


def normalized(net: Net, x: Value, *, relu: bool = True) -> Value:
    """relu(scale · x + shift) in three nodes."""
    channel = (x.shape[1], 1, 1)
    y = net.op(Add(), net.op(Mul(), x, net.const(net.random(*channel))),
               net.const(net.random(*channel)))  # fmt: skip
    return net.op(Relu(), y) if relu else y


def single(net: Net, x: Value) -> Value:
    """One elementwise node with an operand per channel."""
    return net.op(Mul(), x, net.const(net.random(1, x.shape[1], 1, 1)), name="scale")


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_the_node_before_a_1x1_is_its_prologue(strides: tuple[int, int]) -> None:
    net = Net()
    x = net.input(2, 6, 5, 7)
    y = net.op(Conv(strides=strides), single(net, x), net.weight(4, 6, 1, 1), name="c")
    net.out(y)
    result = apply(net, PASS)
    (node,) = result.graph.nodes
    assert node.op.prologue.text() == "mul(x0, x1)"
    assert [v.shape for v in node.inputs] == [(2, 6, 5, 7), (4, 6, 1, 1), (6, 1, 1)]
    assert (node.name, node.origin) == ("c", ("/scale", "/c"))
    assert [n.text for n in result.notes] == ["took in Mul 'scale' before it: mul(x0, x1)"]


@pytest.mark.parametrize(
    ("op", "size"),
    [(Conv((2, 3)), (2, 3)), (Conv((5, 1)), (3, 1)), (Conv((3, 3), dilations=(2, 1)), (2, 2))],
)
def test_windows_that_do_not_overlap_read_each_element_once(
    op: Conv, size: tuple[int, ...]
) -> None:
    net = Net()
    net.out(net.op(op, single(net, net.input(2, 6, 8, 7)), net.weight(4, 6, *size)))
    (node,) = apply(net, PASS).graph.nodes
    assert node.op == replace(op, prologue=node.op.prologue)
    assert node.op.prologue.text() == "mul(x0, x1)"


def test_a_scalar_is_an_instruction_and_a_bias_stays_behind() -> None:
    net = Net()
    x = net.op(Mul(), net.const(np.float32(0.5)), net.input(1, 3, 4, 4))
    net.out(net.op(Conv(), x, net.weight(5, 3, 1, 1), net.const(net.random(5))))
    (node,) = apply(net, PASS).graph.nodes
    assert node.op.prologue.text() == "mul(0.5, x0)"
    assert [v.shape for v in node.inputs] == [(1, 3, 4, 4), (5, 3, 1, 1), (5,)]


def test_x_that_is_read_twice_is_one_register() -> None:
    net = Net()
    x = net.input(1, 3, 4, 4)
    net.out(net.op(Conv(), net.op(Mul(), x, x), net.weight(5, 3, 1, 1)))
    (node,) = apply(net, PASS).graph.nodes
    assert (node.op.prologue.text(), len(node.inputs)) == ("mul(x0, x0)", 2)


def test_all_readers_take_it_or_none() -> None:
    net = Net()
    x = single(net, net.input(1, 6, 5, 5))
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)), "a")
    net.out(net.op(Conv(strides=(2, 2)), x, net.weight(3, 6, 1, 1)), "b")
    result = apply(net, PASS)
    assert ops(result.graph) == ["Conv", "Conv"]
    assert all(n.op.prologue is not None for n in result.graph.nodes)

    net = Net()
    x = single(net, net.input(1, 6, 5, 5))
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)), "a")
    net.out(net.op(MaxPool((2, 2), (2, 2), (0,) * 4), x, name="pool"), "b")
    result = apply(net, PASS)
    assert not result.changed
    assert "the result of Mul 'scale' is used elsewhere too, by MaxPool 'pool'" in refusals(
        result.notes
    )


def test_an_output_of_the_graph_stays() -> None:
    net = Net()
    x = single(net, net.input(1, 6, 5, 5))
    net.out(x, "a")
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)), "b")
    result = apply(net, PASS)
    assert refusals(result.notes) == ["the result of Mul 'scale' is an output of the graph"]


@pytest.mark.parametrize(
    ("op", "filters"),
    [
        (Conv(), (4, 6, 3, 3)),
        (Conv((3, 1)), (4, 6, 3, 2)),
        (Conv((2, 2), dilations=(2, 1)), (4, 6, 2, 2)),
        (Conv((2, 2), (0, 0, 1, 1)), (4, 6, 2, 2)),
        (Conv(pads=(0, 1, 0, 0)), (4, 6, 1, 1)),
        (Conv(groups=2), (4, 3, 1, 1)),
    ],
)
def test_other_convolutions_would_compute_it_more_often(op: Conv, filters: tuple[int, ...]) -> None:
    net = Net()
    net.out(net.op(op, single(net, net.input(1, 6, 5, 5)), net.weight(*filters), name="c"))
    result = apply(net, PASS)
    assert refusals(result.notes) == [
        "Conv 'c' has windows that overlap, padding, groups or a prologue: only where none does "
        "is a prologue computed once per element"
    ]


def test_two_images_are_no_prologue() -> None:
    net = Net()
    x = net.op(Add(), net.input(1, 6, 5, 5), net.input(1, 6, 5, 5, name="z"), name="sum")
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)))
    assert refusals(apply(net, PASS).notes) == [
        "Add 'sum' reads other images than one of [1, 6, 5, 5]"
    ]


def test_a_broadcast_image_is_no_prologue() -> None:
    net = Net()
    x = net.op(Add(), net.input(1, 6, 1, 1), net.const(net.random(1, 6, 5, 5)), name="sum")
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)))
    assert refusals(apply(net, PASS).notes) == [
        "Add 'sum' reads other images than one of [1, 6, 5, 5]"
    ]


def test_a_number_per_pixel_is_no_operand() -> None:
    net = Net()
    table = net.const(net.random(6, 5, 1), "table")
    x = net.op(Add(), net.input(1, 6, 5, 5), table, name="sum")
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)))
    assert refusals(apply(net, PASS).notes) == [
        "Add 'sum' reads 'table' fp32[6,5,1], which is no number per channel"
    ]


def test_a_cast_is_no_prologue() -> None:
    net = Net()
    x = net.op(Cast(FP32), net.input(1, 6, 5, 5, dtype=INT32), name="cast")
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1)))
    assert refusals(apply(net, PASS).notes) == [
        "Cast 'cast' makes fp32 of int32, a prologue keeps its float type"
    ]


def test_both_programs_share_the_kernels_pointers() -> None:
    net = Net()
    x = single(net, net.input(1, 6, 5, 5))
    net.out(net.op(Conv(), x, net.weight(4, 6, 1, 1), net.const(net.random(4))))
    assert refusals(apply(net, FuseConvPrologue(max_operands=1)).notes) == [
        "the prologue and the epilogue would read 2 tensors, the limit is 1"
    ]


def test_sites_are_alike_where_shapes_and_programs_are() -> None:
    net = Net()
    first, second, third = (
        net.op(Conv(), single(net, net.input(1, 6, 5, 5, name=name)), net.weight(k, 6, 1, 1))
        for name, k in (("x", 4), ("y", 4), ("z", 5))
    )
    for name, value in (("a", first), ("b", second), ("c", third)):
        net.out(value, name)
    sites = PASS.sites(net.graph)
    assert [s.key for s in sites].count(sites[0].key) == 2
    assert sites[0].origins == {"/scale", "/conv"}
    result = apply(net, FuseConvPrologue(skip=frozenset({sites[0].key})))
    assert ops(result.graph).count("Mul") == 2
    assert len(refusals(result.notes)) == 2
    assert all(r.startswith("measured: Mul") for r in refusals(result.notes))
    # A site that is left alone is still a site.
    skipping = FuseConvPrologue(skip=frozenset({sites[0].key}))
    assert {s.key for s in skipping.sites(result.graph)} == {sites[0].key}


def dense_block(net: Net, x: Value, layers: int) -> Value:
    """A block of DenseNet (Huang et al. 2017): each layer reads all before it."""
    values = [x]
    for _ in range(layers):
        joined = net.op(Concat(1), *values) if len(values) > 1 else x
        y = net.conv(net.op(Relu(), net.norm(joined)), 16, 1)
        values.append(net.conv(net.op(Relu(), net.norm(y)), 8, 3))
    return net.op(Concat(1), *values)


TOLERANCE = {"fp32": FOLDED_TOLERANCE, "fp16": FP16_TOLERANCE, "bf16": 3e-2}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_dense_block_has_no_pointwise_node_left(precision: str) -> None:
    net = Net()
    net.out(dense_block(net, net.input(1, 8, 6, 5), 3))
    options = PipelineOptions(precision=frozenset([precision]))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), TOLERANCE[precision])
    nodes = report.graph.nodes
    assert not any(isinstance(n.op, Elementwise) for n in nodes)
    first = [n for n in nodes if isinstance(n.op, Conv) and n.inputs[1].shape[2:] == (1, 1)]
    assert len(first) == 3
    for node in first:
        assert node.op.prologue is not None
        assert node.op.epilogue is not None
        # Operands keep fp32: they are numbers per channel.
        assert {v.dtype for v in node.inputs[2 : epilogue_slot(node.op)]} == {FP32}


@pytest.mark.parametrize("view", ["split", "pool"])
def test_the_image_may_be_a_view_or_a_pool(view: str) -> None:
    net = Net()
    x = net.input(1, 12, 6, 6)
    if view == "split":
        half = net.node(Split(1, (6, 6)), x).outputs[1]
    else:
        half = net.op(MaxPool((2, 2), (2, 2), (0,) * 4), x)
    net.out(net.op(Conv(), single(net, half), net.weight(4, half.shape[1], 1, 1)))
    node = sole(apply(net, PASS).graph, Conv)
    assert node.inputs[0].name == half.name


def test_an_epilogue_takes_precedence() -> None:
    net = Net()
    y = net.conv(net.input(1, 6, 5, 5), 8, bias=True)
    y = net.op(Sigmoid(), y)
    net.out(net.op(Conv(), y, net.weight(4, 8, 1, 1)))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert [n.op.prologue is None for n in report.graph.nodes if isinstance(n.op, Conv)] == [
        True, True,
    ]  # fmt: skip


def test_it_saturates_where_an_operand_is_beyond_fp16() -> None:
    net = Net()
    x = net.input(1, 6, 5, 5)
    shift = net.const(np.array([1e6, -1e6, 0, 1, 2, 3], np.float32).reshape(6, 1, 1))
    net.out(net.op(Conv(), net.op(Add(), x, shift), net.weight(4, 6, 1, 1)))
    options = PipelineOptions(precision=frozenset(["fp16"]))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    notes = [n.text for n in report.notes if n.pass_name == "select-precision"]
    assert any("its prologue saturates: it holds a number beyond the range" in t for t in notes)
    # Sums of a few times 65504 do not fit either; what goes into them does.
    op = sole(report.graph, Conv).op
    assert isinstance(op, Conv)
    assert op.prologue is not None
    assert op.prologue.evaluate(np.float32(0), np.float32(1e6))[0] == 65504


def with_prologue(net: Net, x: Value, *more: Value) -> Value:
    """A 1x1 convolution behind one operand per channel."""
    b = Builder("ff")
    op = Conv(prologue=b.build(b("mul", 0, 1)))
    c = x.shape[1]
    operands = [net.weight(5, c, 1, 1), net.const(net.random(c, 1, 1), "scale")]
    return net.op(op, x, *operands, *more, name="c")


def test_an_epilogue_joins_behind_the_operands() -> None:
    net = Net()
    y = net.op(Relu(), with_prologue(net, net.input(1, 6, 5, 5)))
    net.out(net.op(Mul(), y, net.const(net.random(5, 1, 1), "factor")))
    node = sole(apply(net, FuseConvEpilogue()).graph, Conv)
    assert [v.shape[0] for v in node.inputs[1:]] == [5, 6, 5]
    assert node.op.attributes()["epilogue"].text() == "max(x0, 0.0); mul(r3, x1)"


def test_an_operand_is_no_bias() -> None:
    net = Net()
    net.out(with_prologue(net, net.input(1, 6, 5, 5)))
    assert not apply(net, FuseConvEpilogue()).changed


def test_a_pad_before_a_prologue_stays() -> None:
    net = Net()
    padded = net.op(Pad((0, 0, 1, 1, 0, 0, 1, 1)), net.input(1, 6, 5, 5))
    net.out(with_prologue(net, padded))
    assert refusals(apply(net, FoldPad()).notes) == [
        "a convolution's own zeros come after its prologue, those of the Pad before"
    ]


def test_a_norm_behind_a_prologue_is_not_folded() -> None:
    net = Net()
    net.out(net.norm(with_prologue(net, net.input(1, 6, 5, 5), net.const(net.random(5), "bias"))))
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    assert ops(result.graph) == ["Conv", "Pointwise"]
    assert sole(result.graph, Conv).inputs[1].name == sole(net.graph, Conv).inputs[1].name
