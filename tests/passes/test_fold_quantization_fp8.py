"""fold-quantization of fp8: products of fp8, stores and residuals of fp8, and what stays in floats.

Operands are integers of few bits and scales powers of two: fp32 holds every sum, results are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, INT8
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import (
    Add,
    Cast,
    Concat,
    Conv,
    ConvTranspose,
    Dequantize,
    MatMul,
    MaxPool,
    Reduce,
    Relu,
    Reshape,
)
from nrt.ir.verify import verify
from nrt.passes.base import PassResult, run_pipeline
from nrt.passes.fold_quantization import FoldQuantization
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet, of_type, products, residual_block
from .support import launches, ops, refusals, sole


def equal(net: QuantizedNet, graph: Graph) -> None:
    data = {}
    for value in net.graph.inputs:
        array: Array = net.rng.integers(-16, 17, value.shape).astype(np.float32)
        if value.dtype is FP32:
            array = 3 * net.random(*value.shape)
        data[value.name] = array.astype(value.dtype.numpy)
    wanted, found = evaluate(net.graph, data), evaluate(graph, data)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def folded(net: QuantizedNet, no_fp8: str = "") -> PassResult:
    step = FoldQuantization(no_fp8)
    result = step.run(net.graph.copy())
    verify(result.graph)
    equal(net, result.graph)
    assert not step.run(result.graph).changed
    return result


def through(net: QuantizedNet, *precision: str) -> Graph:
    options = PipelineOptions(frozenset(precision or ("fp32",)))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    if not precision:
        equal(net, report.graph)
    return report.graph


def fp8_input(net: QuantizedNet, *shape: int, name: str = "x", scale: float = 0.125) -> Any:
    return net.dq(net.input(*shape, dtype=FP8E4M3, name=name), scale)


def test_a_convolution() -> None:
    net = QuantizedNet()
    net.out(net.qconv(fp8_input(net, 2, 32, 7, 5), 24, groups=2, dtype=FP8E4M3))
    result = folded(net)
    node = sole(result.graph, Conv)
    assert [v.dtype for v in node.inputs] == [FP8E4M3, FP8E4M3, FP32, FP32]
    assert node.op.attributes()["out_dtype"] is FP32
    assert "multiplies fp8" in {n.text for n in result.notes}


def test_the_first_layer_reads_channels_of_zeros() -> None:
    net = QuantizedNet()
    net.out(net.qconv(fp8_input(net, 2, 3, 7, 5), 24, dtype=FP8E4M3))
    graph = folded(net).graph
    assert ops(graph) == ["Pad", "Conv"]
    assert products(graph) == [(FP8E4M3, FP32)]


@pytest.mark.parametrize("trans_b", [False, True])
def test_a_matrix_product(trans_b: bool) -> None:
    net = QuantizedNet()
    b = net.weights(9, 16, dtype=FP8E4M3) if trans_b else net.weights(16, 9, axis=1, dtype=FP8E4M3)
    y = net.op(MatMul(trans_b=trans_b), fp8_input(net, 5, 16), b)
    net.out(net.op(Add(), y, net.const(np.full(9, 0.5, np.float32))))
    graph = through(net)
    assert products(graph) == [(FP8E4M3, FP32)]
    assert launches(graph) == ["MatMul"]


def test_residual_blocks_are_their_convolutions() -> None:
    """Each stores fp8; the second one of a block reads a residual of fp8."""
    net = QuantizedNet()
    x = net.qdq(net.input(2, 16, 6, 5), 0.25, dtype=FP8E4M3)
    y = residual_block(net, residual_block(net, x, 16, FP8E4M3), 16, FP8E4M3)
    net.out(net.q(net.pool(y), 0.25, dtype=FP8E4M3))
    graph = through(net)
    # The model rounds a sum before its residual is added: fp8 rounds where it is stored.
    assert of_type(graph, MaxPool, FP8E4M3) == 1
    assert products(graph) == [(FP8E4M3, FP8E4M3)] * 4
    halves = through(net, "fp16")
    assert {v.dtype for v in halves.values if len(v.shape) == 4} <= {FP8E4M3, FP32, FP16}
    assert products(halves) == products(graph)


def test_a_sum_that_is_not_rounded_is_one_kernel() -> None:
    net = QuantizedNet()
    x = net.qdq(net.input(2, 16, 6, 5), 0.25, dtype=FP8E4M3)
    y = net.op(Relu(), net.op(Add(), net.qconv(x, 16, dtype=FP8E4M3), x))
    net.out(net.q(y, 0.5, dtype=FP8E4M3))
    graph = through(net)
    node = sole(graph, Conv)
    assert [v.dtype for v in node.inputs if len(v.shape) == 4] == [FP8E4M3] * 3
    assert node.output.dtype is FP8E4M3
    assert sum(name != "Reformat" for name in launches(graph)) == 2


def test_what_moves_moves_fp8() -> None:
    net = QuantizedNet()
    x = net.qdq(net.input(1, 16, 6, 6), 0.5, dtype=FP8E4M3)
    y = net.op(Concat(1), net.pool(x), net.pool(x))
    y = net.op(Reshape((1, 32, 9)), y)
    net.out(net.q(y, 0.5, dtype=FP8E4M3))
    graph = through(net)
    for op in (MaxPool, Concat, Reshape):
        assert sole(graph, op).output.dtype is FP8E4M3
    assert not any(isinstance(n.op, Dequantize) for n in graph.nodes)


def test_a_mean_reads_fp8_and_stores_halves() -> None:
    net = QuantizedNet()
    x = net.qdq(net.input(1, 16, 4, 8), 0.5, dtype=FP8E4M3)
    net.out(net.op(Relu(), net.op(Reduce("mean", (2, 3)), x)))
    assert sole(through(net), Reduce).inputs[0].dtype is FP8E4M3
    node = sole(through(net, "fp16"), Reduce)
    assert (node.inputs[0].dtype, node.output.dtype) == (FP8E4M3, FP32)


def test_patterns_and_casts_leave_fp8_as_it_is() -> None:
    net = QuantizedNet()
    x = net.q(net.input(1, 16, 4, 8), 0.5, dtype=FP8E4M3)
    x = net.op(Reshape((1, 16, 32)), x, name="flat")
    net.out(net.op(Cast(FP32), x, name="wide"))
    options = PipelineOptions(frozenset({"fp16", "fp32"}), {"flat": "fp16"})
    graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    data = {"x": 3 * net.random(1, 16, 4, 8)}
    wanted, found = evaluate(net.graph, data)["y"], evaluate(graph, data)["y"]
    np.testing.assert_array_equal(found, wanted)


class TestFloats:
    def check(self, net: QuantizedNet, reason: str, no_fp8: str = "") -> None:
        result = folded(net, no_fp8)
        assert any(reason in text for text in refusals(result.notes)), refusals(result.notes)
        assert {a for a, _ in products(result.graph)} <= {FP32}

    def test_transposed(self) -> None:
        net = QuantizedNet()
        x = fp8_input(net, 1, 16, 4, 4)
        net.out(net.op(ConvTranspose(), x, net.weights(16, 8, 1, 1, axis=1, dtype=FP8E4M3)))
        self.check(net, "no kernel transposes a convolution of int8 or fp8")

    def test_few_channels_in_a_group(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(fp8_input(net, 1, 16, 4, 4), 16, groups=16, dtype=FP8E4M3))
        self.check(net, "fp8 kernels read input channels in runs of 16, a group has 1")

    def test_two_types(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(fp8_input(net, 1, 16, 4, 4), 16, dtype=INT8))
        self.check(net, "its input is fp8e4m3, its weights are int8: kernels multiply equal types")

    def test_two_activations(self) -> None:
        net = QuantizedNet()
        a, b = fp8_input(net, 5, 16, name="a"), fp8_input(net, 16, 16, name="b")
        net.out(net.op(MatMul(), a, b))
        self.check(net, "its operands are fp8, which kernels multiply by a constant matrix")

    def test_short_rows(self) -> None:
        net = QuantizedNet()
        w = net.weights(24, 8, axis=1, dtype=FP8E4M3)
        net.out(net.op(MatMul(), fp8_input(net, 5, 24), w))
        self.check(net, "fp8 kernels read rows in runs of 16, these have 24")

    def test_a_target_without_fp8(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(fp8_input(net, 1, 16, 4, 4), 16, dtype=FP8E4M3))
        self.check(net, "its operands are fp8: sm_80 has none", "sm_80 has none")
