"""fold-requantize with a zero point, and any epilogue with scales and zero points per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.builder import build_graph
from nrt.compiled import CompiledEngine
from nrt.dtypes import INT8, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Add, AveragePool, Clip, Conv, ConvTranspose, MatMul, Relu
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node
from nrt.ir.verify import verify
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet
from .requantized_channels import (
    FMA,
    FOLD,
    RELU,
    RELU6,
    SHARE,
    K,
    clamped,
    conv,
    fold,
    parameters,
    same_bytes,
    text,
    vector,
    zeroed,
    zeros,
)
from .requantized_nets import bytes_feed, conv_of_floats
from .support import refusals, sole


def matmul(net: QuantizedNet) -> Node:
    b = Builder("fffi")
    b("add", 0, 1)
    extras = [net.random(K), vector(net)[:, 0, 0], zeros(net)[:, 0, 0]]
    op = MatMul(epilogue=zeroed(b), out_dtype=INT8)
    return net.node(op, net.input(9, 5), net.weight(5, K), *map(net.const, extras))


def transposed(net: QuantizedNet) -> Node:
    b = Builder("fffi")
    b("add", 0, 1)
    extras = [net.random(K, 1, 1), vector(net), zeros(net)]
    op = ConvTranspose(epilogue=zeroed(b), out_dtype=INT8)
    return net.node(op, net.input(2, 5, 7, 6), net.weight(5, K, 3, 3), *map(net.const, extras))


def average(net: QuantizedNet) -> Node:
    b = Builder("fffi")
    b("add", 0, 1)
    extras = [net.random(K, 1, 1), vector(net), zeros(net)]
    op = AveragePool((2, 2), (1, 1), (0,) * 4, epilogue=zeroed(b), out_dtype=INT8)
    return net.node(op, net.input(2, K, 7, 6), *map(net.const, extras))


@pytest.mark.parametrize("make", [matmul, transposed, average])
def test_other_ops_that_store_bytes(make: Any) -> None:
    net = QuantizedNet()
    assert text(fold(net, make(net)).graph) == "mul(x0, x2); add(r3, x1)"


class TestZeroPoints:
    @pytest.mark.parametrize("dtype", [INT8, UINT8], ids=str)
    def test_the_bias_takes_them_in(self, dtype: DType) -> None:
        net = QuantizedNet()
        m, z = vector(net), zeros(net, dtype)
        node = conv(net, clamped(zero=True), dtype, m, z)
        bias = node.inputs[3].constant
        assert bias is not None
        result = fold(net, node)
        assert text(result.graph) == FMA
        assert [n.text for n in result.notes] == [
            "its constants took in the zero point",
            "its constants took in the factors 'c0'",
        ]
        new = sole(result.graph, Conv).inputs[3].constant
        assert new is not None
        np.testing.assert_allclose(new, bias * m.astype(np.float64) + z, rtol=1e-6, atol=1e-5)

    def test_behind_a_number(self) -> None:
        net = QuantizedNet()
        result = fold(net, conv(net, clamped(zero=True, factor=31.7), INT8, zeros(net)))
        assert text(result.graph) == FMA

    def test_a_number_behind_a_vector_and_behind_a_number(self) -> None:
        for operand in (True, False):
            net = QuantizedNet()
            b = Builder("ffff" if operand else "fff")
            b("add", b("mul", 0, 1), 2)
            program = b.build(parameters(b, 3 if operand else 31.7, -7.0))
            assert text(fold(net, conv(net, program, INT8, vector(net))).graph) == FMA

    def test_without_a_factor(self) -> None:
        net = QuantizedNet()
        b = Builder("fffi")
        value = b("add", b("mul", 0, 1), 2)
        program = b.build(b("add", b("to_f", 3), b("round", value)))
        assert text(fold(net, conv(net, program, INT8, zeros(net))).graph) == FMA

    def test_floats_that_are_whole(self) -> None:
        net = QuantizedNet()
        b = Builder("fffff")
        value = b("round", b("mul", b("add", b("mul", 0, 1), 2), 3))
        program = b.build(b("add", value, 4))
        z = zeros(net).astype(np.float32)
        assert text(fold(net, conv(net, program, INT8, vector(net), z)).graph) == FMA

    def test_a_relu_goes_where_zero_is_the_least_byte(self) -> None:
        net = QuantizedNet()
        program = clamped(*RELU6, zero=True)
        z = np.full((K, 1, 1), -128, np.int8)
        assert text(fold(net, conv(net, program, INT8, vector(net, 43, 60), z)).graph) == FMA

    @pytest.mark.parametrize("low", [-127, -100])
    def test_a_clamp_that_matters_blocks(self, low: int) -> None:
        net = QuantizedNet()
        program = clamped(RELU, zero=True)
        z = np.full((K, 1, 1), -128, np.int8)
        z[3] = low
        result = fold(net, conv(net, program, INT8, vector(net), z))
        assert not result.changed
        assert text(result.graph) == program.text()
        assert refusals(result.notes) == [
            "no constant that could take in its zero point is added before"
        ]

    def test_without_a_bias_all_stays(self) -> None:
        net = QuantizedNet()
        b = Builder("fffi")
        b("mul", 0, 1)
        program = zeroed(b)
        operands = [np.full((K, 1, 1), 0.5, np.float32), vector(net), zeros(net)]
        node = conv_of_floats(net, program, INT8, *map(net.const, operands))
        result = fold(net, node)
        assert not result.changed
        assert text(result.graph) == program.text()

    def test_zeros_need_no_bias(self) -> None:
        net = QuantizedNet()
        b = Builder("fffi")
        b("mul", 0, 1)
        operands = [np.full((K, 1, 1), 0.5, np.float32), vector(net), np.zeros((K, 1, 1), np.int8)]
        node = conv_of_floats(net, zeroed(b), INT8, *map(net.const, operands))
        assert text(fold(net, node).graph) == "mul(x0, x1)"

    def test_a_residual(self) -> None:
        net = QuantizedNet()
        b = Builder("fffifi")
        own = b("add", b("mul", 0, 1), 2)
        b("add", own, b("mul", b("to_f", 3), b.const(0.05)))
        program = b.build(parameters(b, 4, 5))
        r = net.input(2, K, 7, 6, name="r", dtype=INT8)
        result = fold(net, conv(net, program, INT8, r, vector(net, 5, 20), zeros(net)))
        assert text(result.graph).count("add") == 2
        assert text(result.graph).count("mul") == 2
        assert "round" not in text(result.graph)

    def test_a_number_takes_in_a_number(self) -> None:
        net = QuantizedNet()
        b = Builder("ff")
        b("add", b("mul", 0, 1), b.const(0.25))
        program = b.build(parameters(b, 16.0, 5.0))
        scales = net.const(np.full((K, 1, 1), 0.7, np.float32))
        result = fold(net, conv_of_floats(net, program, INT8, scales))
        assert text(result.graph) == "mul(x0, x1); add(r2, 9.0)"

    def test_a_number_becomes_a_vector_in_the_place_of_the_integers(self) -> None:
        net = QuantizedNet()
        b = Builder("ffi")
        b("add", b("mul", 0, 1), b.const(0.25))
        program = b.build(parameters(b, 16.0, 2))
        scales, z = np.full((K, 1, 1), 0.7, np.float32), zeros(net)
        node = conv_of_floats(net, program, INT8, net.const(scales), net.const(z))
        result = fold(net, node)
        assert text(result.graph) == "mul(x0, x1); add(r3, x2)"
        bias = sole(result.graph, Conv).inputs[3].constant
        np.testing.assert_array_equal(bias, z.astype(np.float32) + 4)

    def test_a_vector_that_has_no_room_stays(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        b("add", b("mul", 0, 1), b.const(0.3))
        program = b.build(parameters(b, 2, 5.0))
        scales = net.const(np.full((K, 1, 1), 0.7, np.float32))
        result = fold(net, conv_of_floats(net, program, INT8, scales, net.const(vector(net))))
        assert not result.changed

    def test_what_would_overflow_stays(self) -> None:
        net = QuantizedNet()
        b = Builder("fffi")
        b("add", 0, 1)
        operands = [net.random(K, 1, 1), np.full((K, 1, 1), 1e-38, np.float32), zeros(net)]
        values = [net.const(a, f"c{i}") for i, a in enumerate(operands)]
        net.out(conv_of_floats(net, zeroed(b), INT8, *values).output)
        result = FOLD.run(net.graph)
        assert not result.changed
        assert refusals(result.notes) == ["'c0' plus the zero point leaves the range of fp32"]

    @pytest.mark.parametrize("zero", [0.5, 256.0])
    def test_what_is_no_zero_point(self, zero: float) -> None:
        net = QuantizedNet()
        b = Builder("ff")
        b("add", 0, 1)
        program = b.build(parameters(b, 20.0, zero))
        net.out(conv_of_floats(net, program, INT8).output)
        assert not FOLD.run(net.graph).changed

    def test_a_sum_that_is_read_twice(self) -> None:
        net = QuantizedNet()
        b = Builder("fff")
        value = b("add", 0, 1)
        b("mul", value, b("add", value, 2))
        program = b.build(parameters(b, 20.0, 5.0))
        operands = [net.const(net.random(K, 1, 1)) for _ in range(2)]
        result = fold(net, conv_of_floats(net, program, INT8, *operands))
        assert not result.changed


@st.composite
def epilogues(draw: st.DrawFn) -> Program:
    """Of sums, two vectors, a residual; m is x4 and z is x5, which may not be there."""
    with_zero = draw(st.booleans())
    b = Builder("fffff" + "i" * with_zero)
    registers, products = [0, 1, 2, 3], 0
    for _ in range(draw(st.integers(1, 7))):
        # Few products: what fp32 rounds of large terms that cancel is no matter of the pass.
        every = ("add", "add", "max", "min", "neg", "sub", "const", *["mul"] * (products < 3))
        opcode = draw(st.sampled_from(every))
        products += opcode == "mul"
        if opcode == "const":
            registers.append(b.const(draw(st.sampled_from((-1.5, 0.0, 0.7, 2.0, 6.0)))))
            continue
        recent = st.sampled_from([*registers, *registers[-2:] * 2])
        registers.append(b(opcode, *(draw(recent) for _ in range(1 if opcode == "neg" else 2))))
    value = b("mul", registers[-1], 4)
    if with_zero:
        value = b("add", b("round", value), b("to_f", 5))
    return b.build(value)


@given(epilogues(), st.sampled_from((INT8, UINT8)), st.integers(0, 2**32 - 1))
def test_any_program_stores_the_same_bytes(program: Program, dtype: DType, seed: int) -> None:
    net = QuantizedNet()
    net.rng = np.random.default_rng(seed)
    zero = zeros(net, dtype)
    extras = [net.random(K, 1, 1), net.random(K, 1, 1)]
    operands = [*map(net.const, extras), net.input(2, K, 7, 6, name="r"), net.const(vector(net))]
    if len(program.inputs) > 5:
        operands.append(net.const(zero))
    net.out(conv_of_floats(net, program, dtype, *operands).output)
    result = FOLD.run(net.graph.copy())
    verify(result.graph)
    data = bytes_feed(net)
    wanted, found = (evaluate(g, data)["y"].astype(int) for g in (net.graph, result.graph))
    assert np.abs(wanted - found).max() <= 1
    # Whole channels of one number may be next to a tie.
    different = (wanted != found).any(axis=(0, 2, 3)).sum()
    assert (wanted != found).mean() <= SHARE or different <= 1
    assert not FOLD.run(result.graph).changed


def quantized(kind: str) -> QuantizedNet:
    """A layer that stores channels on grids of their own, as Quantize has it."""
    net = QuantizedNet()
    net.rng = np.random.default_rng(11)
    x = net.dq(net.input(2, 16, 7, 5, dtype=INT8), 0.03)
    y = net.qconv(x, 16)
    zero: Any = net.rng.integers(-60, 61, (16, 1, 1))
    if kind == "residual":
        r = net.dq(net.input(2, 16, 7, 5, dtype=INT8, name="r"), 0.05)
        y, zero = net.op(Add(), y, r), None
    elif kind == "relu":
        y, zero = net.op(Relu(), y), np.full((16, 1, 1), -128)
    elif kind == "relu6":
        y, zero = net.op(Clip(0.0, 6.0), y), np.full((16, 1, 1), -128)
    scale = net.rng.uniform(0.01, 0.0235, (16, 1, 1)).astype(np.float32)
    net.out(net.q(y, scale, zero))
    return net


class TestPipeline:
    @pytest.mark.parametrize("kind", ["plain", "relu", "relu6", "residual"])
    def test_what_is_built_for_the_cpu(self, kind: str) -> None:
        net = quantized(kind)
        off = PipelineOptions(disabled=frozenset({FOLD.name}))
        before = run_pipeline(net.graph.copy(), pipeline(off), verify=True).graph
        after = run_pipeline(net.graph.copy(), pipeline(), verify=True).graph
        op: Any = sole(after, Conv).op
        steps = [i.opcode for i in op.epilogue.instrs]
        more = ["to_f", "mul", "add"] if kind == "residual" else []
        assert sorted(steps) == sorted(["mul", "add", *more])
        assert all(after.consumers(v) for v in after.constants)
        data = bytes_feed(net)
        wanted = same_bytes(before, after, data)
        assert len(np.unique(wanted)) > 60
        found = CompiledEngine(build_graph(after, target="cpu", opt_level=0)).run(data)["y"]
        assert found.dtype == np.int8
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert (found != wanted).mean() <= SHARE
