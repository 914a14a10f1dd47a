"""fold-requantize with a scale per channel: it costs nothing, and the bytes stay."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, FP64, INT8, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import NHWC

from .quantized_nets import QuantizedNet
from .requantized_channels import FMA, FOLD, RELU, RELU6, K, clamped, conv, fold, text, vector
from .requantized_nets import bytes_feed, conv_of_floats
from .support import refusals, sole


class TestVectors:
    def test_scales_and_bias_take_the_factors_in(self) -> None:
        net = QuantizedNet()
        m = vector(net)
        node = conv(net, clamped(), INT8, m)
        old = [v.constant for v in node.inputs[2:4]]
        result = fold(net, node)
        assert text(result.graph) == FMA
        assert [n.text for n in result.notes] == ["its constants took in the factors 'c0'"]
        new = sole(result.graph, Conv).inputs[2:]
        assert len(new) == 2
        for before, after in zip(old, new, strict=True):
            assert before is not None
            assert after.constant is not None
            wanted = (before.astype(np.float64) * m).astype(np.float32)
            np.testing.assert_array_equal(after.constant, wanted)

    def test_a_clamp_at_zero_stays_where_it_matters(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv(net, clamped(RELU), INT8, vector(net)))
        assert text(result.graph) == "mul(x0, x1); add(r4, x2); max(r5, 0.0)"

    def test_a_cap_goes_where_every_channel_saturates(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv(net, clamped(*RELU6), UINT8, vector(net, 42.5, 60)))
        assert text(result.graph) == FMA
        assert [n.text for n in result.notes] == [
            "its store as uint8 saturates as clamps of its epilogue do",
            "its constants took in the factors 'c0'",
        ]

    def test_a_cap_that_one_channel_does_not_reach_is_a_vector(self) -> None:
        net = QuantizedNet()
        m = vector(net, 43, 60)
        m[7] = 30
        result = fold(net, conv(net, clamped(*RELU6), UINT8, m))
        assert text(result.graph) == "mul(x0, x1); add(r4, x2); min(r5, x3)"
        cap = sole(result.graph, Conv).inputs[4].constant
        np.testing.assert_array_equal(cap, m * np.float32(6))

    def test_two_numbers_that_matter_stay(self) -> None:
        net = QuantizedNet()
        program = clamped(("max", -1.0), ("min", 2.0))
        result = fold(net, conv(net, program, INT8, vector(net, 10, 20)))
        assert text(result.graph) == program.text()
        assert refusals(result.notes) == ["multiplying by 'c0' earlier saves nothing"]

    @pytest.mark.parametrize("behind", [False, True])
    def test_a_residual_is_scaled_by_the_vector(self, behind: bool) -> None:
        net = QuantizedNet()
        b = Builder("fffif")
        other = b("mul", b("to_f", 3), b.const(0.05))
        own = b("add", b("mul", 0, 1), 2)
        value = b("add", own, other) if behind else b("add", other, own)
        program = b.build(b("mul", value, 4))
        m = vector(net)
        r = net.input(2, K, 7, 6, name="r", dtype=INT8)
        result = fold(net, conv(net, program, INT8, r, m))
        assert "to_f(x3); " in text(result.graph)
        assert text(result.graph).count("mul") == 2
        new = sole(result.graph, Conv).inputs[5].constant
        np.testing.assert_array_equal(new, (m.astype(np.float64) * 0.05).astype(np.float32))

    def test_the_sums_of_floats_take_the_factors_before_the_bias(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        program = b.build(b("mul", b("max", b("add", 0, 1), b.const(0.0)), 2))
        operands = [net.const(net.random(K, 1, 1)), net.const(vector(net))]
        result = fold(net, conv_of_floats(net, program, UINT8, *operands))
        assert text(result.graph) == "mul(x0, x2); add(r3, x1)"

    def test_a_scale_that_is_a_number_becomes_the_vector(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        program = b.build(b("mul", b("add", b("mul", 0, b.const(0.7)), 1), 2))
        operands = [net.const(net.random(K, 1, 1)), net.const(vector(net))]
        result = fold(net, conv_of_floats(net, program, INT8, *operands))
        assert text(result.graph) == "mul(x0, x2); add(r3, x1)"

    def test_a_bias_of_one_element_grows(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        program = b.build(b("mul", b("add", 0, 1), 2))
        bias = net.const(np.full((1, 1, 1), 0.3, np.float32))
        result = fold(net, conv_of_floats(net, program, INT8, bias, net.const(vector(net))))
        assert text(result.graph) == "mul(x0, x2); add(r3, x1)"
        assert sole(result.graph, Conv).inputs[2].shape == (K, 1, 1)

    def test_a_bias_of_several_does_not_grow(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        program = b.build(b("mul", b("max", b("add", 0, 1), b.const(-1.0)), 2))
        rows = net.const(net.random(7, 1))
        result = fold(net, conv_of_floats(net, program, INT8, rows, net.const(vector(net), "m")))
        assert not result.changed
        assert refusals(result.notes) == ["multiplying by 'm' earlier saves nothing"]

    def test_constants_keep_their_layout(self) -> None:
        net = QuantizedNet()
        bias = net.const(net.random(1, K, 7, 6), "b")
        bias.layout = NHWC
        m = net.const(vector(net)[None])
        b = Builder("fff")
        node = conv_of_floats(net, b.build(b("mul", b("add", 0, 1), 2)), INT8, bias, m)
        result = fold(net, node)
        assert text(result.graph) == "mul(x0, x2); add(r3, x1)"
        assert sole(result.graph, Conv).inputs[2].layout == NHWC

    def test_constants_of_fp16_become_fp32(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        operands = [net.const(a.astype(np.float16)) for a in (net.random(K, 1, 1), vector(net))]
        program = b.build(b("mul", b("add", 0, 1), 2))
        result = fold(net, conv_of_floats(net, program, INT8, *operands))
        assert [v.dtype for v in sole(result.graph, Conv).inputs[2:]] == [FP32, FP16]

    def test_fp64(self) -> None:
        net = QuantizedNet()
        x, w = net.input(6, 5, dtype=FP64), net.const(net.random(5, K).astype(np.float64))
        operands = [net.const(a.astype(np.float64)) for a in (net.random(K), vector(net)[:, 0, 0])]
        b = Builder("fff")
        op = MatMul(epilogue=b.build(b("mul", b("add", 0, 1), 2)), out_dtype=UINT8)
        result = fold(net, net.node(op, x, w, *operands))
        new = sole(result.graph, MatMul).inputs[2]
        assert new.dtype is FP64
        old, m = (v.constant for v in operands)
        assert old is not None
        assert m is not None
        np.testing.assert_array_equal(new.constant, old * m)

    def test_fp8(self) -> None:
        net = QuantizedNet()
        m = np.exp2(net.rng.integers(5, 8, (K, 1, 1))).astype(np.float32)
        b = Builder("fff")
        value = b("max", b("min", b("add", 0, 1), b.const(15.0)), b.const(0.0))
        operands = [net.const(net.random(K, 1, 1)), net.const(m)]
        program = b.build(b("mul", value, 2))
        net.out(conv_of_floats(net, program, FP8E4M3, *operands).output)
        graph = FOLD.run(net.graph.copy()).graph
        assert text(graph) == "mul(x0, x2); add(r4, x1); max(r5, 0.0)"
        data = bytes_feed(net)
        wanted, found = (evaluate(g, data)["y"].astype(np.float32) for g in (net.graph, graph))
        np.testing.assert_array_equal(found, wanted)


class TestLeftAlone:
    @staticmethod
    def refused(program: Program, dtype: DType = UINT8, *operands: Array) -> list[str]:
        net = QuantizedNet()
        values = [net.const(a, f"c{i}") for i, a in enumerate(operands)]
        net.out(conv_of_floats(net, program, dtype, *values).output)
        result = FOLD.run(net.graph)
        assert not result.changed
        return refusals(result.notes)

    @staticmethod
    def biased() -> Program:
        b = Builder("fff")
        return b.build(b("mul", b("add", 0, 1), 2))

    @pytest.mark.parametrize("factor", [0.0, -2.0, np.inf, np.nan])
    def test_factors_that_are_not_positive(self, factor: float) -> None:
        bias, m = np.ones((K, 1, 1), np.float32), np.full((K, 1, 1), 3, np.float32)
        m[5] = factor
        assert self.refused(self.biased(), UINT8, bias, m) == [
            "its last factors, 'c1', are not all positive numbers"
        ]

    def test_factors_that_are_read_twice(self) -> None:
        b = Builder("ff")
        m = np.full((K, 1, 1), 3, np.float32)
        assert self.refused(b.build(b("mul", b("add", 0, 1), 1)), UINT8, m) == [
            "its last factors, 'c0', are read before too"
        ]

    def test_what_saves_nothing(self) -> None:
        b = Builder("fff")
        bias, m = np.ones((K, 1, 1), np.float32), np.full((K, 1, 1), 3, np.float32)
        program = b.build(b("mul", b("tanh", b("add", 0, 1)), 2))
        assert self.refused(program, UINT8, bias, m) == [
            "multiplying by 'c1' earlier saves nothing"
        ]

    def test_constants_that_would_overflow(self) -> None:
        bias, m = np.full((K, 1, 1), 1e37, np.float32), np.full((K, 1, 1), 3, np.float32)
        m[2] = 100
        assert self.refused(self.biased(), UINT8, bias, m) == [
            "'c0' times 'c1' leaves the range of fp32"
        ]

    def test_numbers_that_would_overflow(self) -> None:
        b = Builder("fff")
        m = np.full((K, 1, 1), 300, np.float32)
        value = b("min", b("mul", 0, 1), b.const(-3e36))
        scale = np.ones((K, 1, 1), np.float32)
        assert self.refused(b.build(b("mul", value, 2)), INT8, scale, m) == [
            "-3e+36 times 'c1' leaves the range of fp32"
        ]

    def test_sums_that_are_multiplied_and_no_more(self) -> None:
        b = Builder("ff")
        m = np.full((K, 1, 1), 3, np.float32)
        assert self.refused(b.build(b("mul", 0, 1)), INT8, m) == []

    def test_floats_are_not_rounded_to_bytes(self) -> None:
        bias, m = np.ones((K, 1, 1), np.float32), np.full((K, 1, 1), 3, np.float32)
        assert self.refused(self.biased(), FP16, bias, m) == []

    def test_factors_that_are_computed(self) -> None:
        net = QuantizedNet()
        m = net.input(K, 1, 1, name="m")
        bias = net.const(np.ones((K, 1, 1), np.float32))
        net.out(conv_of_floats(net, self.biased(), INT8, bias, m).output)
        assert not FOLD.run(net.graph).changed
