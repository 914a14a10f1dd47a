"""fold-requantize: fewer steps before the store of bytes, and the same bytes but for ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, FP64, INT8, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import AveragePool, Conv, ConvTranspose, MatMul, MaxPool
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node
from nrt.ir.verify import verify
from nrt.passes.base import PassResult, run_pipeline
from nrt.passes.fold_requantize import FoldRequantize
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet, residual_block
from .requantized_nets import (
    biased,
    bytes_feed,
    conv_of_bytes,
    conv_of_floats,
    floats,
    relu6,
    residual,
)
from .support import refusals, sole

FOLD = FoldRequantize()


def fold(net: QuantizedNet, node: Node) -> PassResult:
    """The pass on a copy; bytes are within one of what they were, and floats as near as fp32 is."""
    net.out(node.output)
    before = net.graph
    verify(before)
    data = bytes_feed(net)
    result = FOLD.run(before.copy())
    verify(result.graph)
    assert result.graph.outputs["y"].type == before.outputs["y"].type
    wanted, found = (evaluate(g, data)["y"].astype(int) for g in (before, result.graph))
    assert np.abs(wanted - found).max() <= 1
    assert len(np.unique(wanted)) > 20, "the data show little"
    # Sums go beyond the range, where they are clipped: ulps of what is within, a few each.
    np.testing.assert_allclose(
        floats(result.graph, data), floats(before, data), rtol=2e-6, atol=2e-4
    )
    again = FOLD.run(result.graph)
    assert not again.changed
    return PassResult(again.graph, result.changed, result.notes)


def text(graph: Graph) -> str:
    (node,) = graph.nodes
    op: Any = node.op
    found: str = op.epilogue.text()
    return found


class TestExamples:
    def test_scales_bias_and_a_clamp_are_one_product_and_sum(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv_of_bytes(net, relu6(109.03), UINT8))
        assert text(result.graph) == "mul(x0, x1); add(r3, x2)"
        assert [n.text for n in result.notes if n.kind == "fired"] == [
            "its constants took in the factor 109.03"
        ]

    def test_an_upper_limit_within_the_range_stays(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv_of_bytes(net, relu6(32.0), UINT8))
        assert text(result.graph) == "mul(x0, x1); add(r3, x2); min(r4, 192.0)"

    def test_a_lower_limit_within_the_range_stays(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv_of_bytes(net, relu6(64.0), INT8))
        assert text(result.graph) == "mul(x0, x1); add(r3, x2); max(r4, 0.0)"

    def test_a_residual_of_bytes(self) -> None:
        net = QuantizedNet()
        factor = 15.350330352783203
        result = fold(net, conv_of_bytes(net, residual(factor), INT8))
        number = float(np.float32(0.05 * factor))
        assert text(result.graph) == (
            f"to_f(x3); mul(r4, {number}); mul(x0, x1); add(r7, x2); add(r6, r8)"
        )

    def test_the_sums_of_floats_take_the_factor_before_the_bias(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv_of_floats(net, biased(142.2), UINT8))
        assert text(result.graph) == "mul(x0, 142.2); add(r3, x1)"

    def test_the_constants_are_multiplied_in_float64_and_rounded_once(self) -> None:
        net = QuantizedNet()
        node = conv_of_bytes(net, relu6(109.03), UINT8)
        old = [v.constant for v in node.inputs[2:]]
        new = sole(fold(net, node).graph, Conv).inputs[2:]
        for before, after in zip(old, new, strict=True):
            assert before is not None
            assert after.constant is not None
            wanted = (before.astype(np.float64) * 109.03).astype(np.float32)
            np.testing.assert_array_equal(after.constant, wanted)
            assert after.constant.dtype == np.float32


@pytest.mark.parametrize("factor", [0.25, 32.0, 64.0])
@pytest.mark.parametrize("dtype", [INT8, UINT8], ids=str)
@pytest.mark.parametrize("program", [relu6, residual, biased])
def test_powers_of_two_give_the_same_bytes(program: Any, dtype: DType, factor: float) -> None:
    net = QuantizedNet()
    make = conv_of_floats if program is biased else conv_of_bytes
    net.out(make(net, program(factor), dtype).output)
    data = bytes_feed(net)
    result = FOLD.run(net.graph.copy())
    # One step moves behind the sums of floats, where int8 keeps its clamp and an FMA is gained.
    assert result.changed
    np.testing.assert_array_equal(evaluate(result.graph, data)["y"], evaluate(net.graph, data)["y"])


def matmul(net: QuantizedNet, program: Program) -> Node:
    x, w = net.input(6, 5), net.weight(5, 13)
    op = MatMul(epilogue=program, out_dtype=UINT8)
    return net.node(op, x, w, net.const(net.random(13), "bias"))


def transposed(net: QuantizedNet, program: Program) -> Node:
    x, w = net.input(2, 5, 7, 6), net.weight(5, 13, 3, 3)
    op = ConvTranspose(epilogue=program, out_dtype=UINT8)
    return net.node(op, x, w, net.const(net.random(13, 1, 1), "bias"))


def average(net: QuantizedNet, program: Program) -> Node:
    op = AveragePool((2, 2), (1, 1), (0,) * 4, epilogue=program, out_dtype=UINT8)
    return net.node(op, net.input(2, 13, 7, 6), net.const(net.random(13, 1, 1), "bias"))


def maximum(net: QuantizedNet, program: Program) -> Node:
    op = MaxPool((2, 2), (1, 1), (0,) * 4, epilogue=program, out_dtype=UINT8)
    return net.node(op, net.input(2, 13, 7, 6), net.const(net.random(13, 1, 1), "bias"))


@pytest.mark.parametrize("make", [matmul, transposed, average, maximum])
def test_other_ops_that_store_bytes(make: Any) -> None:
    net = QuantizedNet()
    assert text(fold(net, make(net, biased(99.5))).graph) == "mul(x0, 99.5); add(r3, x1)"


class TestClamps:
    SWEEP = np.concatenate(
        [
            np.arange(-300, 600, 0.25, dtype=np.float32),
            np.asarray([np.inf, -np.inf, np.nan, 3e38, -3e38, 2.2e9, -2.2e9], np.float32),
        ]
    )[:, None]

    @pytest.mark.parametrize(
        ("limits", "dtype", "left"),
        [
            ((0.0, 255.0), UINT8, "identity"),
            ((0.0, 6.0), UINT8, "min(x0, 6.0)"),
            ((-128.0, 500.0), INT8, "identity"),
            ((0.0, 127.0), INT8, "max(x0, 0.0)"),
            ((-65504.0, 65504.0), INT8, "identity"),
        ],
    )
    def test_without_a_factor(self, limits: tuple[float, float], dtype: DType, left: str) -> None:
        net = QuantizedNet()
        b = Builder("f")
        program = b.build(b("min", b("max", 0, b.const(limits[0])), b.const(limits[1])))
        x, w = net.input(*self.SWEEP.shape), net.const(np.eye(1, dtype=np.float32))
        net.out(net.op(MatMul(epilogue=program, out_dtype=dtype), x, w))
        result = FOLD.run(net.graph.copy())
        assert text(result.graph) == left
        assert [n.text for n in result.notes] == [
            f"its store as {dtype} saturates as clamps of its epilogue do"
        ]
        data = {"x": self.SWEEP}
        wanted = evaluate(net.graph, data)["y"]
        np.testing.assert_array_equal(evaluate(result.graph, data)["y"], wanted)
        assert wanted[np.isnan(self.SWEEP)] == [0]

    @pytest.mark.parametrize("dtype", [INT8, UINT8], ids=str)
    def test_with_a_factor_infinities_and_nan_stay(self, dtype: DType) -> None:
        net = QuantizedNet()
        x, w = net.input(*self.SWEEP.shape), net.const(np.eye(1, dtype=np.float32))
        op = MatMul(epilogue=relu6(64.0), out_dtype=dtype)
        constants = [net.const(np.asarray([c], np.float32)) for c in (0.5, 0.25)]
        net.out(net.op(op, x, w, *constants))
        result = FOLD.run(net.graph.copy())
        data = {"x": self.SWEEP}
        wanted = evaluate(net.graph, data)["y"]
        np.testing.assert_array_equal(evaluate(result.graph, data)["y"], wanted)
        assert wanted[np.isnan(self.SWEEP)] == [0]


class TestLeftAlone:
    @staticmethod
    def refused(program: Program, dtype: DType = UINT8, *operands: Array) -> list[str]:
        net = QuantizedNet()
        values = [net.const(a, f"c{i}") for i, a in enumerate(operands)]
        node = conv_of_floats(net, program, dtype, *values)
        net.out(node.output)
        result = FOLD.run(net.graph)
        assert not result.changed
        return refusals(result.notes)

    @pytest.mark.parametrize("factor", [0.0, -2.0, float("inf"), float("nan")])
    def test_a_factor_that_is_no_positive_number(self, factor: float) -> None:
        assert self.refused(biased(factor)) == [
            f"its last factor is {factor:g}, not a positive number"
        ]

    def test_what_saves_nothing(self) -> None:
        b = Builder("ff")
        program = b.build(b("mul", b("tanh", b("add", 0, 1)), b.const(3.0)))
        assert self.refused(program) == ["multiplying by 3 earlier saves no instruction"]

    def test_rounding_through_fp16_is_left_where_it_is(self) -> None:
        b = Builder("ff")
        program = b.build(b("mul", b("fp16", b("add", 0, 1)), b.const(3.0)))
        assert self.refused(program) == ["multiplying by 3 earlier saves no instruction"]

    def test_a_sum_of_two_unknowns(self) -> None:
        net = QuantizedNet()
        b = Builder("ff")
        program = b.build(b("mul", b("add", 0, 1), b.const(30.0)))
        net.out(conv_of_floats(net, program, INT8, net.input(2, 13, 7, 6, name="r")).output)
        result = FOLD.run(net.graph)
        assert not result.changed
        assert refusals(result.notes) == ["multiplying by 30 earlier saves no instruction"]

    def test_a_sum_of_two_unknowns_is_scaled_if_a_clamp_goes(self) -> None:
        net = QuantizedNet()
        b = Builder("ff")
        program = b.build(b("mul", b("max", b("add", 0, 1), b.const(0.0)), b.const(30.0)))
        node = conv_of_floats(net, program, UINT8, net.input(2, 13, 7, 6, name="r"))
        assert text(fold(net, node).graph) == "add(x0, x1); mul(r2, 30.0)"

    def test_a_vector_that_is_read_twice(self) -> None:
        b = Builder("ff")
        value = b("max", b("add", 0, 1), 1)
        program = b.build(b("mul", value, b.const(30.0)))
        bias = np.ones((13, 1, 1), np.float32)
        assert self.refused(program, INT8, bias) == [
            "multiplying by 30 earlier saves no instruction"
        ]

    def test_constants_that_would_overflow(self) -> None:
        bias = np.full((13, 1, 1), 1e37, np.float32)
        assert self.refused(biased(100.0), UINT8, bias) == [
            "'c0' times 100 leaves the range of fp32"
        ]

    def test_constants_that_would_vanish(self) -> None:
        bias = np.full((13, 1, 1), 1e-37, np.float32)
        assert self.refused(biased(0.01), UINT8, bias) == [
            "'c0' times 0.01 leaves the range of fp32"
        ]

    def test_constants_that_are_infinite(self) -> None:
        bias = np.full((13, 1, 1), -np.inf, np.float32)
        assert self.refused(biased(2.0), UINT8, bias) == ["'c0' times 2 leaves the range of fp32"]

    def test_numbers_that_would_overflow(self) -> None:
        b = Builder("ff")
        value = b("min", b("add", 0, 1), b.const(-3e38))
        program = b.build(b("mul", value, b.const(100.0)))
        bias = np.ones((13, 1, 1), np.float32)
        assert self.refused(program, UINT8, bias) == ["-3e+38 times 100 leaves the range of fp32"]

    def test_floats_are_not_rounded_to_bytes(self) -> None:
        assert self.refused(biased(30.0), FP16) == []

    def test_an_epilogue_that_does_not_end_in_a_factor(self) -> None:
        b = Builder("ff")
        assert self.refused(b.build(b("add", 0, 1))) == []


def test_fp8() -> None:
    """A power of two, so that nothing is rounded otherwise; sums beyond 448 saturate."""
    net = QuantizedNet()
    b = Builder("ff")
    value = b("min", b("max", b("add", 0, 1), b.const(-2.0)), b.const(4.0))
    program = b.build(b("mul", value, b.const(128.0)))
    net.out(conv_of_floats(net, program, FP8E4M3).output)
    graph = FOLD.run(net.graph.copy()).graph
    assert text(graph) == "mul(x0, 128.0); add(r3, x1); max(r4, -256.0)"
    data = bytes_feed(net)
    wanted, found = (evaluate(g, data)["y"].astype(np.float32) for g in (net.graph, graph))
    np.testing.assert_array_equal(found, wanted)
    assert wanted.min() == -256
    assert len(np.unique(wanted)) > 40


def test_a_constant_of_others_too_stays_theirs() -> None:
    net = QuantizedNet()
    bias = net.const(net.random(13, 1, 1), "bias")
    x = net.input(2, 5, 7, 6)
    pads = (1, 1, 1, 1)
    for name, factor in (("y", 20.0), ("z", 30.0)):
        op = Conv((1, 1), pads, epilogue=biased(factor), out_dtype=UINT8)
        net.out(net.op(op, x, net.weight(13, 5, 3, 3), bias, name=f"conv_{name}"), name)
    b = Builder("ff")
    plain = Conv((1, 1), pads, epilogue=b.build(b("add", 0, 1)))
    net.out(net.op(plain, x, net.weight(13, 5, 3, 3), bias, name="plain"), "p")
    old = bias.constant
    assert old is not None
    graph = FOLD.run(net.graph.copy()).graph
    data = bytes_feed(net)
    wanted, found = evaluate(net.graph, data), evaluate(graph, data)
    np.testing.assert_array_equal(found["p"], wanted["p"])
    for name, factor in (("y", 20.0), ("z", 30.0)):
        assert np.abs(found[name].astype(int) - wanted[name].astype(int)).max() <= 1
        node = graph.outputs[name].producer
        assert node is not None
        new = node.inputs[2].constant
        assert new is not None
        np.testing.assert_array_equal(new, (old.astype(np.float64) * factor).astype(np.float32))


def test_constants_of_fp16_become_fp32() -> None:
    net = QuantizedNet()
    bias = net.const(net.random(13, 1, 1).astype(np.float16), "bias")
    node = conv_of_floats(net, biased(142.2), UINT8, bias)
    graph = fold(net, node).graph
    assert sole(graph, Conv).inputs[2].dtype is FP32


def test_constants_of_fp64_stay_that() -> None:
    net = QuantizedNet()
    x = net.input(6, 5, dtype=FP64)
    w, bias = net.random(5, 13).astype(np.float64), net.random(13).astype(np.float64)
    op = MatMul(epilogue=biased(142.2), out_dtype=UINT8)
    net.out(net.op(op, x, net.const(w), net.const(bias)))
    graph = FOLD.run(net.graph).graph
    new = sole(graph, MatMul).inputs[2].constant
    assert new is not None
    np.testing.assert_array_equal(new, bias * 142.2)


class TestPipeline:
    @staticmethod
    def texts(disabled: frozenset[str] = frozenset()) -> tuple[list[str], Array]:
        net = QuantizedNet()
        net.rng = np.random.default_rng(7)
        x = net.dq(net.input(1, 16, 7, 5, dtype=INT8), 0.25)
        net.out(residual_block(net, x, 16))
        report = run_pipeline(net.graph, pipeline(PipelineOptions(disabled=disabled)), verify=True)
        convs = [n for n in report.graph.nodes if isinstance(n.op, Conv)]
        data = {"x": net.rng.integers(-127, 128, (1, 16, 7, 5)).astype(np.int8)}
        found = [n.op.epilogue.text() for n in convs if isinstance(n.op, Conv) and n.op.epilogue]
        return found, evaluate(report.graph, data)["y"]

    def test_layers_of_a_quantized_model(self) -> None:
        found, y = self.texts()
        others, wanted = self.texts(frozenset({FOLD.name}))
        # Scales are powers of two.
        np.testing.assert_array_equal(y, wanted)
        assert found[0] == "mul(x0, x1); add(r3, x2); max(r4, 0.0)"
        assert others[0] == "mul(x0, x1); add(r3, x2); max(r4, 0.0); mul(r7, 4.0)"

    def test_nothing_is_left_over(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 7, 5, dtype=INT8), 0.25)
        net.out(residual_block(net, x, 16))
        graph = run_pipeline(net.graph, pipeline(), verify=True).graph
        assert all(graph.consumers(v) for v in graph.constants)
