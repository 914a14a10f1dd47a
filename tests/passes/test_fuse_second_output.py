from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrt.cuda_kernels.epilogue import MAX_EXTRAS
from nrt.dtypes import FP16, FP32, FP64, INT8, UINT8
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import (
    Add,
    Cast,
    Conv,
    ConvTranspose,
    Dequantize,
    MatMul,
    Mul,
    Quantize,
    Reformat,
    Relu,
    Sigmoid,
    Softmax,
    Tanh,
)
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import NHWC, Value
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.fuse_second_output import FuseSecondOutput
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import FP16_TOLERANCE, FP32_TOLERANCE, Net, apply, assert_same, feeds, ops, refusals

PASS = FuseSecondOutput()


def added() -> Program:
    b = Builder("ff")
    return b.build(b("add", 0, 1))


def test_a_sum_that_is_needed_with_and_without_its_activation() -> None:
    net = Net()
    x = net.input(2, 6, 5, 4)
    skip = net.graph.add_input("skip", (2, 9, 5, 4), FP32)
    y = net.op(Conv((1, 1), (1, 1, 1, 1), epilogue=added()), x, net.weight(9, 6, 3, 3), skip)
    z = net.op(Relu(), y)
    net.out(net.conv(z, 9, name="next"), "a")
    net.out(y, "sum")
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/conv", "/relu"}
    result = apply(net, PASS)
    node = result.graph.node("conv")
    assert node.op.epilogue.text() == "add(x0, x1); max(r2, 0.0) -> r2, r4"
    assert node.op.epilogue.outputs == (2, 4)
    assert (node.op.out_dtype, node.op.second_dtype) == (FP32, FP32)
    assert [v.name for v in node.outputs] == ["conv", "relu"]
    assert [v.name for v in node.inputs] == ["x", "w", "skip"]
    assert node.origin == ("/conv", "/relu")
    assert [note.text for note in result.notes] == ["also stores Relu 'relu': max(x0, 0.0)"]
    assert len(result.graph) == 2


def norm_and_relu(net: Net, y: Value) -> Value:
    """What a network of pre-activations reads of a sum, its own operands included."""
    scale = net.const(net.random(y.shape[1], 1, 1), "scale")
    return net.op(Relu(), net.op(Add(), net.op(Mul(), y, scale), net.const(0.25 * net.random(1))))


def transposed(net: Net) -> None:
    x = net.input(2, 4, 5, 3)
    y = net.op(ConvTranspose((2, 2), (0, 0, 0, 0)), x, net.weight(4, 6, 2, 2))
    net.out(net.op(Tanh(), y), "a")
    net.out(y)


def product(net: Net) -> None:
    x = net.input(5, 7)
    y = net.op(MatMul(), x, net.weight(7, 9))
    net.out(net.op(Mul(), y, net.graph.add_input("gate", (5, 9), FP32)), "a")
    net.out(net.op(Softmax(1), y), "b")


def twice(net: Net) -> None:
    """Two elementwise readers of one product, and a second product."""
    x = net.input(2, 8, 5, 4)
    y = net.conv(x, 8, 3)
    first, second = net.op(Sigmoid(), y), net.op(Tanh(), y)
    net.out(net.op(Softmax(1), net.op(Add(), first, second)), "a")
    z = net.conv(net.op(Add(), second, y), 8, 1, name="last")
    net.out(net.op(Mul(), z, z), "b")
    net.out(z, "c")


def residuals(net: Net) -> None:
    """Blocks of norm, ReLU, convolution, in which the sums go on."""
    x = net.conv(net.input(2, 3, 6, 5), 8, 3)
    for _ in range(3):
        inner = net.op(Relu(), net.conv(norm_and_relu(net, x), 8, 3))
        x = net.op(Add(), net.conv(inner, 8, 3), x)
    net.head(norm_and_relu(net, x))


@pytest.mark.parametrize("make", [transposed, product, twice, residuals])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_pipeline_keeps_the_outputs(make: Callable[[Net], None], precision: str) -> None:
    net = Net()
    make(net)
    options = PipelineOptions(frozenset({precision, "fp32"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert any(note.pass_name == PASS.name and note.kind == "fired" for note in report.notes)
    limit = {"fp32": FP32_TOLERANCE, "fp16": FP16_TOLERANCE}[precision]
    assert_same(net.graph, report.graph, feeds(net), limit)


def test_residual_blocks_need_no_loop_of_their_own() -> None:
    net = Net()
    residuals(net)
    graph = run_pipeline(net.graph, pipeline(PipelineOptions(frozenset({"fp16"})))).graph
    assert ops(graph).count("Pointwise") == 0
    assert sum(len(n.outputs) == 2 for n in graph.nodes) == 3


def test_a_value_in_two_types() -> None:
    """A cast is a second result too: the sums are rounded once for each."""
    net = Net()
    x = net.input(1, 8, 5, 4, dtype=FP16)
    y = net.op(Conv(), x, net.const(net.random(8, 8, 1, 1).astype(np.float16)))
    wide = net.op(Reformat(FP32), y)
    for value in (y, wide):
        net.graph.set_layout(value, NHWC)
    net.out(net.op(Softmax(1), y), "a")
    net.out(net.op(Softmax(1), wide), "b")
    node = apply(net, PASS, FP16_TOLERANCE).graph.node("conv")
    assert [v.dtype for v in node.outputs] == [FP16, FP32]
    assert [v.layout for v in node.outputs] == [NHWC, NHWC]


def test_bytes_of_a_value_that_is_read_as_float() -> None:
    """What is made of stored bytes is made of their rounding, exactly."""
    net = Net()
    x = net.input(2, 8, 6, 5, dtype=INT8)
    w = net.const(net.rng.integers(-128, 128, (8, 8, 1, 1)).astype(np.int8))
    b = Builder("f")
    op = Conv(epilogue=b.build(b("mul", 0, b.const(2.0**-9))), out_dtype=INT8)
    y = net.op(op, x, w)
    net.out(net.op(Dequantize(FP32), y, net.const(np.float32(0.125))), "a")
    net.out(y, "bytes")
    before = net.graph.copy()
    result = PASS.run(net.graph)
    node = result.graph.node("conv")
    assert [v.dtype for v in node.outputs] == [INT8, FP32]
    data = {"x": net.rng.integers(-128, 128, (2, 8, 6, 5)).astype(np.int8)}
    wanted, found = evaluate(before, data), evaluate(result.graph, data)
    assert len(np.unique(found["bytes"])) > 20
    for name, array in wanted.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_a_float_that_is_quantized_too(dtype: type) -> None:
    net = Net()
    y = net.conv(net.input(2, 6, 5, 4), 8, 1)
    q = net.op(Quantize(dtype), y, net.const(np.float32(0.03125)))
    net.out(q, "bytes")
    net.out(net.op(Softmax(1), y), "a")
    before = net.graph.copy()
    result = PASS.run(net.graph)
    assert [v.dtype for v in result.graph.node("conv").outputs] == [FP32, dtype]
    data = feeds(net)
    wanted, found = evaluate(before, data), evaluate(result.graph, data)
    assert np.abs(wanted["bytes"].astype(int) - found["bytes"]).max() <= 1
    assert np.array_equal(wanted["a"], found["a"])


def only_reader(net: Net) -> None:
    net.out(net.op(Relu(), net.conv(net.input(1, 3, 5, 4), 4)))


def enlarged(net: Net) -> None:
    y = net.op(MatMul(), net.input(5, 7), net.weight(7, 9))
    net.out(net.op(Add(), y, net.graph.add_input("p", (3, 5, 9), FP32)), "a")
    net.out(y)


def dependent(net: Net) -> None:
    y = net.op(MatMul(), net.input(5, 7), net.weight(7, 9))
    net.out(net.op(Mul(), y, net.op(Softmax(1), y)))


def biased(net: Net) -> None:
    y = net.conv(net.input(1, 3, 5, 4), 4, bias=True)
    net.out(net.op(Relu(), y), "a")
    net.out(y)


def many(net: Net) -> None:
    y = net.op(MatMul(), net.input(5, 7), net.weight(7, 9))
    z = y
    for index in range(6):
        z = net.op(Add(), z, net.graph.add_input(f"p{index}", (5, 9), FP32))
    net.out(z, "a")
    net.out(y)


def compared(net: Net) -> None:
    y = net.conv(net.input(1, 3, 5, 4), 4)
    net.out(net.op(Cast(FP64), y), "a")
    net.out(y)


def moved(net: Net) -> None:
    y = net.conv(net.input(1, 3, 5, 4), 4)
    net.graph.set_layout(y, NHWC)
    net.out(net.op(Reformat(FP32), y), "a")
    net.out(net.op(Softmax(1), y), "b")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (only_reader, None),
        (enlarged, "broadcasting enlarges the result of MatMul 'matmul' to [3, 5, 9]"),
        (dependent, "it reads what depends on MatMul 'matmul'"),
        (biased, "the bias of Conv 'conv' is no part of an epilogue"),
        (
            many,
            "MatMul 'matmul' would have 7 tensors beside its factors and its result, the limit is "
            "6",
        ),
        (compared, "mixes fp64 with fp32"),
        (moved, "its result lies in another order than that of Conv 'conv'"),
    ],
)
def test_refuses(make: Callable[[Net], None], reason: str | None) -> None:
    net = Net()
    make(net)
    if make is many:
        FusePointwise().run(net.graph)
    result = apply(net, PASS)
    assert refusals(result.notes) == ([] if reason is None else [reason])
    assert not result.changed
    assert PASS.sites(net.graph) == ()


def test_kernels_have_as_many_places() -> None:
    assert PASS.max_extras == MAX_EXTRAS


def test_a_site_that_lost_is_left_apart() -> None:
    net = Net()
    product(net)
    (site,) = PASS.sites(net.graph)
    lost = FuseSecondOutput(skip=frozenset({site.key}))
    assert lost.sites(net.graph) == (site,)
    result = apply(net, lost)
    assert (result.changed, refusals(result.notes)) == (False, ["it is left apart"])


def test_keys_hold_no_names_but_types_and_programs() -> None:
    def key(make: Callable[[Net], None], rename: bool = False) -> str:
        net = Net()
        make(net)
        if rename:
            net.graph.rename(net.graph.node("matmul"), "other")
        (site,) = PASS.sites(net.graph)
        return site.key

    def wider(net: Net) -> None:
        y = net.op(MatMul(), net.input(5, 7), net.weight(7, 10))
        net.out(net.op(Mul(), y, net.graph.add_input("gate", (5, 10), FP32)), "a")
        net.out(net.op(Softmax(1), y), "b")

    assert key(product) == key(product, rename=True)
    assert key(product) != key(wider)


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Random networks of products, activations and sums, in which values have several readers."""
    net = Net()
    values = [net.input(2, 4, 4, 3)]
    for _ in range(draw(st.integers(2, 9))):
        pick = st.integers(max(0, len(values) - 4), len(values) - 1)
        x = values[draw(pick)]
        kind = draw(st.integers(0, 5))
        if kind < 2:
            values.append(net.conv(x, 4, draw(st.sampled_from([1, 3]))))
        elif kind < 4:
            values.append(net.op(draw(st.sampled_from([Relu(), Tanh(), Sigmoid()])), x))
        else:
            values.append(net.op(draw(st.sampled_from([Add(), Mul()])), x, values[draw(pick)]))
    for index, value in enumerate(values[1:]):
        if not net.graph.consumers(value) or draw(st.booleans()):
            net.out(value, f"out{index}")
    return net


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=nets(), first=st.booleans())
def test_any_network_keeps_its_outputs(net: Net, first: bool) -> None:
    """``first``: before every other pass; else behind the passes that fuse epilogues."""
    before = net.graph.copy()
    if not first:
        FuseConvEpilogue().run(net.graph)
        FuseMatMulEpilogue().run(net.graph)
    apply(net, PASS)
    assert_same(before, net.graph, feeds(net), FP32_TOLERANCE)
