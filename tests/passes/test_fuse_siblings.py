"""Siblings become one where that saves a launch, and the outputs stay."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrt.dtypes import FP16, FP32, DType
from nrt.ir.graph import Graph
from nrt.ir.ops import (
    Add,
    Clip,
    Concat,
    Conv,
    MatMul,
    MaxPool,
    Mul,
    Relu,
    Reshape,
    Sigmoid,
    Softmax,
    Split,
    Tanh,
    Transpose,
)
from nrt.ir.value import NHWC, Value
from nrt.lowering import lower
from nrt.passes.base import PassResult, run_pipeline
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_siblings import FuseSiblings
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import FP16_TOLERANCE, FP32_TOLERANCE, Net, apply, assert_same, feeds, ops, refusals

FP16_OPTIONS = PipelineOptions(precision=frozenset({"fp16"}))
BEFORE = replace(FP16_OPTIONS, disabled=frozenset({"fuse-siblings"}))


def fused(net: Net, **options: int) -> PassResult:
    """Epilogues first, then siblings."""
    for step in (FuseConvEpilogue(), FuseMatMulEpilogue()):
        net.graph = step.run(net.graph).graph
    return apply(net, FuseSiblings(**options), FP32_TOLERANCE)


def channels(graph: Graph) -> list[tuple[int, ...]]:
    """Pieces of each Split."""
    return [n.op.sizes for n in graph.nodes if isinstance(n.op, Split)]


def tasks(graph: Graph) -> list[str]:
    return [t.problem.op.name for t in lower(graph).tasks]


def use(net: Net, *values: Value) -> None:
    """Something that reads each of them as a kernel does."""
    for index, value in enumerate(values):
        net.out(net.op(Softmax(), value), f"y{index}")


# -- convolutions ----------------------------------------------------------------------------------


def test_convolutions_of_one_input_become_one() -> None:
    net = Net()
    x = net.input(2, 5, 7, 6)
    use(net, *(net.op(Relu(), net.conv(x, k, 1, bias=True, name=f"conv{k}")) for k in (8, 16, 4)))
    result = fused(net)
    assert ops(result.graph).count("Conv") == 1
    assert channels(result.graph) == [(8, 16, 4)]
    (note,) = [n for n in result.notes if n.kind == "fired"]
    assert note.text == "is 'conv8', 'conv16', 'conv4': channels 8 + 16 + 4"
    assert set(note.origin) >= {"/conv8", "/conv16", "/conv4"}
    assert note.node == "conv8+2"


def test_a_residual_block_that_widens() -> None:
    """ResNet's first: conv1 has an activation, its downsample none."""
    net = Net()
    x = net.input(1, 64, 5, 5)
    y = net.op(Relu(), net.conv(x, 64, 1, bias=True, name="conv1"))
    skip = net.conv(x, 256, 1, bias=True, name="downsample")
    y = net.conv(net.op(Relu(), net.conv(y, 64, 3, bias=True)), 256, 1, bias=True, name="conv3")
    use(net, net.op(Relu(), net.op(Add(), y, skip)))
    before = run_pipeline(net.graph, pipeline(BEFORE)).graph
    after = run_pipeline(net.graph, pipeline(FP16_OPTIONS), verify=True).graph
    assert_same(net.graph, after, feeds(net), FP16_TOLERANCE)
    assert tasks(before).count("Conv") == 4
    assert tasks(after) == [t for i, t in enumerate(tasks(before)) if i != 1]
    assert channels(after) == [(64, 256)]
    (both,) = [n for n in after.nodes if isinstance(n.op, Conv) and n.output.shape[1] == 320]
    bound = both.inputs[3].constant
    assert bound is not None
    assert np.array_equal(bound.reshape(-1), [0.0] * 64 + [-math.inf] * 256)


@pytest.mark.parametrize(
    "change", ["kernel", "stride", "pads", "dilation", "groups", "input", "weights", "type"]
)
def test_what_siblings_must_share(change: str) -> None:
    net = Net()
    x = net.input(2, 8, 9, 9)
    first = net.conv(x, 8, 3)
    op = Conv((1, 1), (1, 1, 1, 1))
    weights = net.weight(8, 8, 3, 3)
    source = x
    if change == "kernel":
        weights = net.weight(8, 8, 3, 1)
        op = replace(op, pads=(1, 0, 1, 0))
    elif change == "stride":
        op = replace(op, strides=(2, 2))
    elif change == "pads":
        op = replace(op, pads=(0, 2, 0, 2))
    elif change == "dilation":
        op = replace(op, dilations=(2, 2), pads=(2, 2, 2, 2))
    elif change == "groups":
        op = replace(op, groups=2)
        weights = net.weight(8, 4, 3, 3)
    elif change == "input":
        source = net.op(Relu(), x)
    elif change == "weights":
        weights = net.graph.add_input("weights", (8, 8, 3, 3), FP32)
    else:
        op = replace(op, out_dtype=FP16)
    use(net, first, net.op(op, source, weights))
    result = fused(net)
    assert not result.changed
    assert not result.notes


def test_grouped_convolutions_stay() -> None:
    net = Net()
    x = net.input(1, 8, 5, 5)
    use(net, net.conv(x, 8, 3, groups=8), net.conv(x, 8, 3, groups=8))
    assert not fused(net).changed


def test_a_residual_stays_apart_and_the_others_meet() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c = (net.conv(x, 8, 1, bias=True, name=n) for n in "abc")
    use(net, net.op(Relu(), a), net.op(Add(), b, x), c)
    result = fused(net)
    assert channels(result.graph) == [(8, 8)]
    assert refusals(result.notes) == ["an epilogue reads 'x', which the others do not"]
    assert [n.node for n in result.notes if n.kind == "refused"] == ["b"]


def test_lone_siblings_with_residuals_say_why() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b = (net.conv(x, 8, 1, name=n) for n in "ab")
    use(net, net.op(Add(), a, x), net.op(Add(), b, x))
    result = fused(net)
    assert not result.changed
    assert refusals(result.notes) == ["an epilogue reads 'x', which is no vector of channels"] * 2


def test_a_gate_for_all_channels_is_shared() -> None:
    net = Net()
    x, gate = net.input(2, 8, 5, 6), net.input(2, 1, 1, 1, name="gate")
    use(net, *(net.op(Mul(), net.conv(x, 8, 1, bias=True), gate) for _ in range(2)))
    assert channels(fused(net).graph) == [(8, 8)]


def test_activations_that_differ_make_two_groups() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    use(
        net,
        net.op(Relu(), net.conv(x, 4, 1)),
        net.op(Tanh(), net.conv(x, 8, 1)),
        net.op(Clip(-1.0, 2.0), net.conv(x, 12, 1)),
        net.op(Tanh(), net.conv(x, 16, 1)),
        net.op(Sigmoid(), net.conv(x, 20, 1)),
    )
    net.graph = FuseConvEpilogue().run(net.graph).graph
    result = apply(net, FuseSiblings())
    assert sorted(channels(result.graph)) == [(4, 12), (8, 16)]
    (text,) = refusals(result.notes)
    assert text.startswith("the epilogues differ: ")
    assert "sigmoid" in text


def test_an_epilogue_of_many_tensors_is_refused() -> None:
    net = Net()
    x = net.input(1, 8, 5, 6)
    a, b = (net.op(Relu(), net.conv(x, 8, 1, bias=True)), net.conv(x, 8, 1, bias=True))
    use(net, a, b)
    result = fused(net, max_extras=1)
    assert not result.changed
    assert refusals(result.notes) == ["the common epilogue would read 2 tensors, the limit is 1"]


def test_a_bias_that_no_epilogue_took_in() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    use(net, net.conv(x, 8, 1, bias=True), net.conv(x, 4, 1))
    result = apply(net, FuseSiblings())
    assert channels(result.graph) == [(8, 4)]


def test_outputs_and_odd_sizes_stay_apart() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c, d = (net.conv(x, k, 1, name=n) for k, n in ((8, "a"), (7, "b"), (4, "c"), (4, "d")))
    for value in (a, b, c, d):
        net.graph.set_layout(value, NHWC)
    net.out(c, "out")
    use(net, a, b, d)
    result = apply(net, FuseSiblings())
    assert channels(result.graph) == [(8, 4)]
    assert refusals(result.notes) == [
        "7 channels of fp32 are no multiple of 16 bytes, at which pieces start",
        "its result is an output of the graph, which is no piece of another tensor",
    ]


def test_a_result_that_is_flattened_stays_apart() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c = (net.conv(x, 8, 1) for _ in range(3))
    flat = net.op(Reshape((2, 240)), a)
    use(net, net.op(Reshape((480,)), flat), b, c)
    result = apply(net, FuseSiblings())
    assert channels(result.graph) == [(8, 8)]
    assert refusals(result.notes) == [
        "a Reshape of its result would have to copy a piece of another tensor"
    ]


# -- Concats ---------------------------------------------------------------------------------------


def inception(net: Net, x: Value, sizes: tuple[int, int, int], first: bool = True) -> Value:
    """GoogLeNet's block: a 1x1 convolution, two that reduce for larger ones, a pool."""
    act = Relu()
    b1 = net.op(act, net.conv(x, sizes[0], 1, bias=True))
    b2 = net.op(act, net.conv(net.op(act, net.conv(x, sizes[1], 1, bias=True)), 16, bias=True))
    b3 = net.op(act, net.conv(net.op(act, net.conv(x, sizes[2], 1, bias=True)), 8, 5, bias=True))
    b4 = net.op(MaxPool((3, 3), (1, 1), (1, 1, 1, 1)), x)
    b4 = net.op(act, net.conv(b4, 8, 1, bias=True))
    return net.op(Concat(1), *((b1, b2, b3, b4) if first else (b4, b3, b2, b1)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_inception_blocks_have_no_copy(first: bool, half: bool) -> None:
    net = Net()
    x = net.op(Relu(), net.conv(net.input(2, 8, 9, 7), 16))
    x = inception(net, x, (16, 24, 8), first)
    x = inception(net, x, (24, 16, 8), first)
    net.head(x)
    options = FP16_OPTIONS if half else PipelineOptions()
    graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    assert_same(net.graph, graph, feeds(net), FP16_TOLERANCE if half else FP32_TOLERANCE)
    assert channels(graph) == ([(24, 8, 16), (16, 8, 24)] if first else [(16, 24, 8), (24, 16, 8)])
    # One Reformat orders the input; 1 + 2 * 4 convolutions; 2 pools.
    found = tasks(graph)
    assert found.count("Reformat") == 1
    assert found.count("Conv") == 9
    assert found.count("MaxPool") == 2


def test_a_piece_inside_a_concat_stays_apart() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c = (net.conv(x, 8, 1, name=n) for n in "abc")
    other = net.op(Tanh(), x)
    use(net, net.op(Concat(1), other, a, other), b, c)
    result = apply(net, FuseSiblings())
    assert channels(result.graph) == [(8, 8)]
    (text,) = refusals(result.notes)
    assert text == "the Concat that reads its result copies what it joins"


def test_neighbours_in_a_concat_meet_in_its_middle() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c = (net.conv(x, k, 1, name=n) for k, n in ((8, "a"), (16, "b"), (4, "c")))
    use(net, net.op(Concat(1), net.op(Tanh(), x), b, a, net.op(Relu(), x)), c)
    result = apply(net, FuseSiblings())
    assert channels(result.graph) == [(16, 8)]
    assert tasks(result.graph).count("Reformat") == 0
    assert refusals(result.notes) == [
        "no memory holds its result beside the others': a Concat joins some of them elsewhere"
    ]


def test_more_idle_memory_than_the_concat_has_is_not_held() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b, c = (net.conv(x, k, 1) for k in (8, 64, 64))
    use(net, net.op(Concat(1), a, net.op(Relu(), x)), b, c)
    assert channels(apply(net, FuseSiblings()).graph) == [(64, 64)]


@pytest.mark.parametrize("change", ["axis", "twice", "two"])
def test_concats_that_would_copy_a_piece(change: str) -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b = net.conv(x, 8, 1), net.conv(x, 8, 1)
    if change == "axis":
        use(net, net.op(Concat(2), a, net.op(Relu(), x)), b)
    elif change == "twice":
        use(net, net.op(Concat(1), a, a), b)
    else:
        other = net.op(Relu(), x)
        use(net, net.op(Concat(1), a, other), net.op(Concat(1), other, a), b)
    result = apply(net, FuseSiblings())
    assert not result.changed
    text = refusals(result.notes)[0]
    assert text == "Concats want its result in several places, or along another dimension"


def test_a_concat_of_another_layout() -> None:
    net = Net()
    x = net.input(2, 8, 5, 6)
    a, b = net.conv(x, 8, 1), net.conv(x, 8, 1)
    joined = net.op(Concat(1), a, net.op(Relu(), x))
    net.graph.set_layout(joined, NHWC)
    use(net, joined, b)
    result = apply(net, FuseSiblings())
    assert not result.changed
    assert refusals(result.notes)[0] == (
        "the Concat that reads its result has another layout or type"
    )


# -- products --------------------------------------------------------------------------------------


def attention(net: Net, x: Value, heads: int = 2, trans: bool = False) -> Value:
    """BERT's: query, key and value of one input, each with a bias."""
    n, tokens, width = x.shape

    def head(name: str) -> Value:
        y = net.op(MatMul(trans_b=trans), x, net.weight(width, width), name=name)
        y = net.op(Add(), y, net.const(net.random(width)))
        return net.op(Reshape((n, tokens, heads, width // heads)), y)

    query, key, value = head("query"), head("key"), head("value")
    scores = net.op(
        MatMul(),
        net.op(Transpose((0, 2, 1, 3)), query),
        net.op(Transpose((0, 2, 3, 1)), key),
    )
    y = net.op(MatMul(), net.op(Softmax(), scores), net.op(Transpose((0, 2, 1, 3)), value))
    return net.op(Reshape((n, tokens, width)), net.op(Transpose((0, 2, 1, 3)), y))


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_query_key_and_value_are_one_product(trans: bool, half: bool) -> None:
    net = Net()
    x = net.op(Tanh(), net.input(2, 5, 32))
    use(net, attention(net, x, trans=trans))
    options = FP16_OPTIONS if half else PipelineOptions()
    graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    assert_same(net.graph, graph, feeds(net), FP16_TOLERANCE if half else FP32_TOLERANCE)
    assert channels(graph) == [(32, 32, 32)]
    assert tasks(graph).count("MatMul") == 3
    assert "Reformat" not in tasks(graph)[1:-1]
    wide = next(n for n in graph.nodes if isinstance(n.op, MatMul))
    assert wide.inputs[1].shape == ((96, 32) if trans else (32, 96))


def test_products_of_a_vector_and_of_matrices() -> None:
    net = Net()
    x = net.input(8)
    use(net, *(net.op(MatMul(), x, net.weight(8, k)) for k in (4, 12)))
    assert channels(fused(net).graph) == [(4, 12)]
    net = Net()
    x = net.input(3, 8)
    use(net, net.op(MatMul(), x, net.weight(8)), net.op(MatMul(), x, net.weight(8)))
    assert not fused(net).changed


# -- the choice ------------------------------------------------------------------------------------


def two_pairs() -> Net:
    net = Net()
    x = net.input(2, 8, 5, 6)
    y = net.op(MaxPool((1, 1), (1, 1), (0, 0, 0, 0)), x)
    z = net.op(Relu(), net.op(Concat(0), x, y))
    use(
        net,
        *(net.conv(x, 8, 1, name=f"x{i}") for i in range(2)),
        *(net.conv(y, 8, 1, name=f"y{i}") for i in range(2)),
        *(net.conv(z, 8, 1, name=f"z{i}") for i in range(2)),
    )
    return net


def test_sites_are_what_would_be_fused() -> None:
    net = two_pairs()
    before = [(n.name, n.op) for n in net.graph.nodes]
    sites = FuseSiblings().sites(net.graph)
    assert [(n.name, n.op) for n in net.graph.nodes] == before
    assert sorted(sorted(s.origins) for s in sites) == [
        ["/x0", "/x1"],
        ["/y0", "/y1"],
        ["/z0", "/z1"],
    ]
    # Equal shapes are decided alike, whatever the names; another batch is not.
    assert len({s.key for s in sites}) == 2
    assert not any(f"{n}{i}" in s.key for s in sites for n in "yz" for i in range(2))
    assert FuseSiblings(skip=frozenset(s.key for s in sites)).sites(net.graph) == sites
    assert FuseSiblings().sites(two_pairs().graph) == sites


def test_a_skipped_site_is_left_alone() -> None:
    net = two_pairs()
    keys = [s.key for s in FuseSiblings().sites(net.graph)]
    (twice,) = {k for k in keys if keys.count(k) == 2}
    result = apply(net, FuseSiblings(skip=frozenset({twice})))
    assert ops(result.graph).count("Conv") == 5
    assert refusals(result.notes) == ["measured slower as one"] * 4
    assert not apply(net, FuseSiblings(skip=frozenset(keys))).changed


def test_what_precision_keeps_apart_stays_apart() -> None:
    net = Net()
    x = net.op(Tanh(), net.input(2, 8, 5, 6))
    use(net, *(net.conv(x, 8, 1, name=n) for n in ("a", "b", "wide")))
    options = PipelineOptions(
        precision=frozenset({"fp16", "fp32"}), layers={"wide": "fp32", "*": "fp16"}
    )
    graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    assert channels(graph) == [(8, 8)]
    types: dict[int, DType] = {
        n.inputs[1].shape[0]: n.inputs[1].dtype for n in graph.nodes if isinstance(n.op, Conv)
    }
    assert types == {16: FP16, 8: FP32}


# -- anything --------------------------------------------------------------------------------------


@st.composite
def sibling_nets(draw: st.DrawFn) -> Net:
    """Convolutions and products of one input, read, joined or given out at random."""
    net = Net()
    image = draw(st.booleans())
    x = net.input(*((draw(st.integers(1, 2)), 8, 3, 4) if image else (2, 3, 8)))
    axis = 1 if image else 2
    values = []
    for _ in range(draw(st.integers(2, 6))):
        width = draw(st.sampled_from([8, 8, 16, 4, 6]))
        if image:
            kernel = draw(st.sampled_from([1, 1, 1, 3]))
            y = net.conv(x, width, kernel, bias=draw(st.booleans()))
        else:
            y = net.op(MatMul(), x, net.weight(8, width))
            if draw(st.booleans()):
                y = net.op(Add(), y, net.const(net.random(width)))
        kind = draw(st.integers(0, 5))
        if kind == 1:
            y = net.op(Clip(-0.5, 0.5), y)
        elif kind == 2:
            y = net.op(Relu(), y)
        elif kind == 3 and width == 8:
            y = net.op(Add(), y, x)
        elif kind == 4:
            y = net.op(Tanh(), y)
        values.append(y)
    for index in range(draw(st.integers(0, 2))):
        parts = draw(st.lists(st.sampled_from([*values, x]), min_size=1, max_size=4))
        joined = net.op(Concat(axis), *parts)
        net.out(net.op(Tanh(), joined), f"joined{index}")
    for index, value in enumerate(values):
        how = draw(st.integers(0, 5))
        if how == 0:
            net.out(value, f"out{index}")
        elif how == 1:
            flat = net.op(Reshape((math.prod(value.shape),)), value)
            net.out(net.op(Relu(), flat), f"flat{index}")
        else:
            net.out(net.op(Softmax(axis), value), f"y{index}")
    return net


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=sibling_nets(), half=st.booleans(), channels_last=st.booleans())
def test_any_siblings_keep_the_outputs_and_cost_no_copy(
    net: Net, half: bool, channels_last: bool
) -> None:
    precision = frozenset({"fp16"} if half else {"fp32"})
    # A product that is no sibling may take a node that reads its result.
    others = frozenset({"fuse-second-output"})
    options = PipelineOptions(precision, channels_last=channels_last, disabled=others)
    alone = replace(options, disabled=others | {"fuse-siblings"})
    before = run_pipeline(net.graph, pipeline(alone)).graph
    after = run_pipeline(net.graph, pipeline(options), verify=True).graph
    # Of one precision, both round alike but for the order of sums.
    assert_same(before, after, feeds(net), FP16_TOLERANCE if half else FP32_TOLERANCE)
    fewer = sum(len(sizes) - 1 for sizes in channels(after)) - sum(
        len(sizes) - 1 for sizes in channels(before)
    )
    assert len(tasks(after)) <= len(tasks(before)) - fewer
