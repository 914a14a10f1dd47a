"""fold-quantization: what becomes a product of integers, exactly, and what stays in floats and why.

Scales are powers of two and sums small, so that floats hold every number: results are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, INT8, UINT8
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dequantize,
    Gather,
    MatMul,
    MaxPool,
    Quantize,
    Reduce,
    Relu,
    Reshape,
    Slice,
    Transpose,
)
from nrt.ir.value import Value
from nrt.ir.verify import verify
from nrt.passes.base import PassResult, run_pipeline
from nrt.passes.fold_quantization import FoldQuantization
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet, of_type, products, residual_block
from .support import launches, ops, refusals, sole

PASS = FoldQuantization()


def folded(net: QuantizedNet, data: dict[str, Any] | None = None) -> PassResult:
    """The pass on a copy: the same numbers, and nothing to do afterwards."""
    result = PASS.run(net.graph.copy())
    verify(result.graph)
    equal(net, result.graph, data)
    again = PASS.run(result.graph)
    assert not again.changed, again.notes
    return PassResult(again.graph, result.changed, result.notes)


def through(net: QuantizedNet, precision: str = "fp32") -> Any:
    options = PipelineOptions(frozenset({precision}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    if precision == "fp32":
        equal(net, report.graph)
    return report


def equal(net: QuantizedNet, graph: Any, data: dict[str, Any] | None = None) -> None:
    if data is None:
        data = {}
        for value in net.graph.inputs:
            if value.dtype is FP32:
                data[value.name] = 12 * net.random(*value.shape)
            else:
                info = np.iinfo(value.dtype.numpy)
                data[value.name] = net.rng.integers(
                    info.min, info.max + 1, value.shape, value.dtype.numpy
                )
    wanted, found = evaluate(net.graph, data), evaluate(graph, data)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


class TestProducts:
    def test_a_convolution(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 16, 7, 5, dtype=INT8), 0.125)
        net.out(net.qconv(x, 24))
        node = sole(folded(net).graph, Conv)
        assert [v.dtype for v in node.inputs] == [INT8, INT8, FP32, FP32]
        assert node.op.attributes()["out_dtype"] is FP32
        assert node.inputs[2].shape == (24, 1, 1)

    def test_one_scale_for_all_channels_is_an_instruction(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 16, 7, 5, dtype=INT8), 0.125)
        net.out(net.op(Conv(), x, net.dq(net.integers(24, 16, 1, 1), 0.25)))
        node = sole(folded(net).graph, Conv)
        assert len(node.inputs) == 2
        op: Any = node.op
        assert op.epilogue.text() == "mul(x0, 0.03125)"

    def test_a_bias_of_integers(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 4, 4, dtype=INT8), 0.125)
        bias = net.dq(net.const(net.rng.integers(-900, 900, 8, np.int32)), net.scales(8))
        net.out(net.op(Conv(), x, net.weights(8, 16, 1, 1), bias))
        assert products(folded(net).graph) == [(INT8, FP32)]

    @pytest.mark.parametrize("zero", [None, 9])
    def test_the_first_layer_reads_three_channels(self, zero: int | None) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 3, 7, 5, dtype=INT8), 0.125, zero)
        net.out(net.qconv(x, 24))
        graph = folded(net).graph
        # What is padded is a zero point.
        assert ops(graph) == ["Conv"] if zero is None else ["Pad", "Conv"]
        assert sole(graph, Conv).inputs[1].shape == (24, 3, 3, 3)
        assert products(graph) == [(INT8, FP32)]

    @pytest.mark.parametrize("zero", [None, 9])
    def test_where_no_kernel_reads_three_it_is_given_more(self, zero: int | None) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 3, 7, 5, dtype=INT8), 0.125, zero)
        net.out(net.qconv(x, 24))
        graph = FoldQuantization(few_channels=False).run(net.graph.copy()).graph
        assert ops(graph) == ["Pad", "Conv"]
        assert sole(graph, Conv).inputs[1].shape == (24, 16, 3, 3)
        assert products(graph) == [(INT8, FP32)]
        equal(net, graph)

    def test_a_first_layer_of_many_channels(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 6, 7, 5, dtype=INT8), 0.125)
        net.out(net.qconv(x, 24))
        assert sole(folded(net).graph, Conv).inputs[1].shape == (24, 16, 3, 3)

    def test_groups_of_enough_channels(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 32, 4, 4, dtype=INT8), 0.125)
        net.out(net.qconv(x, 32, groups=2))
        assert products(folded(net).graph) == [(INT8, FP32)]

    @pytest.mark.parametrize("trans_b", [False, True])
    def test_a_matrix_product(self, trans_b: bool) -> None:
        net = QuantizedNet()
        a = net.dq(net.input(5, 16, dtype=INT8), 0.125)
        b = net.weights(9, 16) if trans_b else net.weights(16, 9, axis=1)
        y = net.op(MatMul(trans_b=trans_b), a, b)
        net.out(net.op(Add(), y, net.const(np.full(9, 0.5, np.float32))))
        report = through(net)
        node = sole(report.graph, MatMul)
        assert node.inputs[0].dtype is node.inputs[1].dtype is INT8
        assert launches(report.graph) == ["MatMul"]

    def test_of_two_activations(self) -> None:
        net = QuantizedNet()
        a = net.dq(net.input(2, 5, 8, dtype=INT8, name="a"), 0.125)
        b = net.dq(net.input(2, 9, 8, dtype=INT8, name="b"), 0.25)
        net.out(net.op(MatMul(trans_b=True), a, b))
        assert products(folded(net).graph) == [(INT8, FP32)]

    @pytest.mark.parametrize("trans_b", [False, True])
    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_a_zero_point_of_a_matrix(self, trans_b: bool, batch: tuple[int, ...]) -> None:
        net = QuantizedNet()
        a = net.dq(net.input(*batch, 5, 16, dtype=INT8), 0.125, -11)
        b = net.integers(*batch, 9, 16) if trans_b else net.integers(*batch, 16, 9)
        net.out(net.op(MatMul(trans_b=trans_b), a, net.dq(b, 0.25)))
        assert products(folded(net).graph) == [(INT8, FP32)]

    @pytest.mark.parametrize("pad", [0, 1, 2])
    def test_a_zero_point_of_an_image(self, pad: int) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 16, 7, 5, dtype=INT8), 0.125, 23)
        net.out(net.qconv(x, 24, pad=pad))
        graph = folded(net).graph
        assert products(graph) == [(INT8, FP32)]
        # The padding is the zero point, which a kernel does not put there.
        assert ops(graph) == (["Pad", "Conv"] if pad else ["Conv"])

    def test_depthwise(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.dq(net.input(2, 12, 7, 5, dtype=INT8), 0.125), 12, groups=12, pad=1))
        graph = folded(net).graph
        assert products(graph) == [(INT8, FP32)]
        assert ops(graph) == ["Conv"]

    def test_padding_of_one_side(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 16, 7, 5, dtype=INT8), 0.125, -128)
        net.out(net.op(Conv((2, 1), (1, 0, 2, 3)), x, net.weights(8, 16, 3, 3)))
        assert products(folded(net).graph) == [(INT8, FP32)]

    def test_weights_of_uint8_lose_their_zero_point(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 16, 3, 3, dtype=INT8), 0.125)
        w = net.const(net.rng.integers(1, 256, (8, 16, 1, 1), np.uint8), "w")
        net.out(net.op(Conv(), x, net.dq(w, 0.25, 128)))
        assert products(folded(net).graph) == [(INT8, FP32)]


class TestRefusals:
    """The layer computes in floats, and its weights are floats."""

    @staticmethod
    def check(net: QuantizedNet, reason: str, op: type[Any] = Conv) -> None:
        result = folded(net)
        assert any(reason in text for text in refusals(result.notes)), refusals(result.notes)
        node = sole(result.graph, op)
        assert node.inputs[0].dtype is FP32
        assert node.inputs[1].dtype is FP32

    def test_channels_in_no_runs_of_8(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.dq(net.input(1, 20, 5, 5, dtype=INT8), 0.5), 16))
        self.check(net, "int8 kernels read input channels in runs of 8, it has 20")

    def test_groups_in_no_runs_of_16(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.dq(net.input(1, 48, 5, 5, dtype=INT8), 0.5), 16, groups=2))
        self.check(net, "int8 kernels read input channels in runs of 16, a group has 24")

    def test_depthwise_of_channels_in_no_runs_of_4(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.dq(net.input(1, 18, 5, 5, dtype=INT8), 0.5), 18, groups=18))
        self.check(net, "runs of 16, a group has 1")

    def test_transposed(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 5, 5, dtype=INT8), 0.5)
        net.out(net.op(ConvTranspose(), x, net.dq(net.integers(16, 8, 2, 2), 0.25)))
        self.check(net, "no kernel transposes a convolution of int8", ConvTranspose)

    def test_a_scale_per_channel_of_the_input(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 5, 5, dtype=INT8), net.scales(16).reshape(16, 1, 1))
        net.out(net.qconv(x, 16))
        self.check(net, "its input has a scale per channel, which the sums mix")

    def test_scales_of_input_channels_of_the_weights(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 5, 5, dtype=INT8), 0.5)
        net.out(net.op(Conv(), x, net.weights(8, 16, 1, 1, axis=1)))
        self.check(net, "scales along another dimension than that of output channels")

    def test_weights_whose_zero_point_no_int8_can_do_without(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(1, 16, 5, 5, dtype=INT8), 0.5)
        w = net.const(np.full((8, 16, 1, 1), 255, np.uint8))
        net.out(net.op(Conv(), x, net.dq(w, 0.25, 3)))
        self.check(net, "its weights are uint8, kernels multiply int8 or fp8")

    def test_a_scale_at_run_time(self) -> None:
        net = QuantizedNet()
        scale = net.input(name="s")
        x = net.op(Dequantize(FP32), net.input(1, 16, 5, 5, dtype=INT8), scale)
        net.out(net.qconv(x, 16))
        data = {**net.int8_feed(1, 16, 5, 5), "s": np.float32(0.5)}
        result = folded(net, data)
        assert "the scale of its input is computed at run time" in refusals(result.notes)

    def test_right_operands_of_a_zero_point_at_run_time(self) -> None:
        net = QuantizedNet()
        a = net.dq(net.input(5, 8, dtype=INT8, name="a"), 0.125, 1)
        net.out(net.op(MatMul(), a, net.dq(net.input(8, 4, dtype=INT8, name="b"), 0.25)))
        self.check(net, "left operand has a zero point, and the right one is computed", MatMul)


class TestMoves:
    @pytest.mark.parametrize(
        "op",
        [
            MaxPool((2, 2), (2, 2), (1, 1, 0, 0)),
            Reshape((2, 60)),
            Transpose((0, 2, 3, 1)),
        ],
        ids=str,
    )
    def test_quantizing_goes_first_and_integers_move(self, op: Any) -> None:
        net = QuantizedNet()
        net.out(net.q(net.op(op, net.op(Relu(), net.input(2, 3, 4, 5))), 0.25))
        assert ops(folded(net).graph) == ["Relu", "Pointwise", op.name]

    def test_parts_of_a_concat_are_quantized(self) -> None:
        net = QuantizedNet()
        x = net.input(2, 3, 4)
        parts = [net.op(Relu(), x), net.op(Add(), x, x)]
        net.out(net.q(net.op(Concat(1), *parts), 0.25))
        assert sorted(ops(folded(net).graph)) == ["Add", "Concat", "Pointwise", "Pointwise", "Relu"]

    def test_what_others_read_too_is_quantized_behind(self) -> None:
        net = QuantizedNet()
        x = net.op(Relu(), net.input(2, 3, 4, 4))
        net.out(net.q(net.pool(x), 0.25))
        net.out(x, "floats")
        result = folded(net)
        assert ops(result.graph) == ["Relu", "MaxPool", "Pointwise"]
        assert any("is used elsewhere too" in text for text in refusals(result.notes))

    @pytest.mark.parametrize(
        "op",
        [
            MaxPool((2, 2), (2, 2), (0, 0, 0, 0)),
            Reshape((2, 48)),
            Transpose((0, 2, 3, 1)),
            Slice((0, 1, 0, 0), (2, 3, 4, 4), (1, 1, 2, 1)),
        ],
        ids=str,
    )
    def test_dequantizing_goes_last(self, op: Any) -> None:
        net = QuantizedNet()
        net.out(net.op(op, net.dq(net.input(2, 3, 4, 4, dtype=INT8), 0.25, 5)))
        assert ops(folded(net).graph) == [op.name, "Dequantize"]

    def test_a_concat_needs_one_scale(self) -> None:
        for scales, wanted in (
            ((0.25, 0.25), ["Concat", "Dequantize"]),
            ((0.25, 0.5), ["Dequantize", "Dequantize", "Concat"]),
        ):
            net = QuantizedNet()
            parts = [
                net.dq(net.input(2, 3, dtype=INT8, name=f"x{i}"), s) for i, s in enumerate(scales)
            ]
            net.out(net.op(Concat(1), *parts))
            assert ops(folded(net).graph) == wanted

    def test_both_meet_on_one_grid(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 3, 4, 4, dtype=INT8), 0.25, 3)
        net.out(net.q(net.pool(x), 0.25, 3))
        assert ops(folded(net).graph) == ["MaxPool"]

    def test_another_grid_is_another_rounding(self) -> None:
        net = QuantizedNet()
        net.out(net.q(net.dq(net.input(2, 3, dtype=INT8), 0.25), 0.5))
        result = folded(net)
        assert "both have scales or zero points of their own" in refusals(result.notes)
        assert ops(result.graph) == ["Dequantize", "Pointwise"]

    def test_scales_per_channel_stay_where_they_are(self) -> None:
        net = QuantizedNet()
        x = net.dq(net.input(2, 3, 4, 4, dtype=INT8), net.scales(3).reshape(3, 1, 1))
        net.out(net.pool(x))
        assert ops(folded(net).graph) == ["Dequantize", "MaxPool"]


@pytest.mark.parametrize("channels", [8, 24])
def test_halves_of_a_load_are_multiplied(channels: int) -> None:
    net = QuantizedNet()
    net.out(net.qconv(net.dq(net.input(1, channels, 5, 5, dtype=INT8), 0.5), 16))
    graph = folded(net).graph
    assert products(graph) == [(INT8, FP32)]
    assert "Pad" not in ops(graph)
    equal(net, graph)


class TestUnsigned:
    def test_uint8_becomes_int8(self) -> None:
        net = QuantizedNet()
        net.out(net.qdq(net.input(3, 5), 0.25, 100, UINT8))
        graph = folded(net).graph
        assert [n.output.dtype for n in graph.nodes] == [INT8, FP32]

    @pytest.mark.parametrize("zero", [None, 0])
    def test_without_a_zero_point_it_stays(self, zero: int | None) -> None:
        net = QuantizedNet()
        net.out(net.qdq(net.input(3, 5), 0.25, zero, UINT8))
        assert [n.output.dtype for n in folded(net).graph.nodes] == [UINT8, FP32]

    def test_products_read_it(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.qdq(net.input(1, 16, 5, 5), 0.25, 0, UINT8), 16))
        graph = folded(net).graph
        assert products(graph) == [(UINT8, FP32)]
        # No border of zero points has to be put around it.
        assert "Pad" not in ops(graph)
        equal(net, graph)

    def test_128_is_the_middle(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(1, 16, 5, 5), 0.25, 128, UINT8)
        net.out(net.qconv(x, 16))
        assert products(folded(net).graph) == [(INT8, FP32)]

    def test_readers_of_uint8_keep_it(self) -> None:
        net = QuantizedNet()
        q = net.q(net.input(3, 5), 0.25, 100, UINT8)
        net.out(net.dq(q, 0.25, 100))
        net.out(q, "integers")
        result = folded(net)
        assert "its uint8 are an output of the graph" in refusals(result.notes)
        net = QuantizedNet()
        q = net.q(net.input(3, 5), 0.25, 100, UINT8)
        net.out(net.dq(q, 0.25, 100))
        net.out(net.op(Reshape((15,)), q), "flat")
        result = folded(net)
        assert any("reads its uint8" in text for text in refusals(result.notes))


class TestLayers:
    """Through the whole pipeline: what is left is stored as int8."""

    def test_a_residual_block_is_its_convolutions(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(2, 16, 9, 7), 0.25)
        y = residual_block(net, residual_block(net, x, 16), 16)
        net.out(net.q(net.op(Relu(), net.qconv(y, 8)), 0.5))
        report = through(net)
        assert products(report.graph) == [(INT8, INT8)] * 5
        # The input is quantized once, and turned to channels last as bytes.
        assert launches(report.graph) == ["Pointwise", "Reformat", *["Conv"] * 5, "Reformat"]
        for node in report.graph.nodes:
            if isinstance(node.op, Conv):
                assert all(v.dtype is INT8 for v in node.inputs if len(v.shape) == 4)

    def test_two_branches_meet_as_int8(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(2, 16, 9, 7), 0.25)
        left, right = (net.qdq(net.qconv(x, 16, kernel), 0.5) for kernel in (1, 3))
        net.out(net.q(net.op(Add(), left, right), 1.0))
        assert products(through(net).graph) == [(INT8, INT8)] * 2

    def test_floats_take_the_type_of_the_others(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(2, 16, 9, 7), 0.25)
        y = net.op(Relu(), net.qconv(x, 16))
        net.out(net.op(Reduce("mean", (2, 3)), y))
        report = through(net, "fp16")
        assert products(report.graph) == [(INT8, FP16)]
        assert any(
            n.pass_name == "select-precision" and n.text == "int8: stores fp16"
            for n in report.notes
        )

    def test_an_output_keeps_its_floats(self) -> None:
        net = QuantizedNet()
        net.out(net.qconv(net.qdq(net.input(2, 16, 9, 7), 0.25), 16))
        assert products(through(net, "fp16").graph) == [(INT8, FP32)]

    def test_a_layer_of_floats_stores_int8_for_the_next(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(1, 20, 9, 9), 0.25)
        y = net.qdq(net.pool(net.op(Relu(), net.qconv(x, 16))), 0.5)
        net.out(net.qconv(y, 16))
        report = through(net)
        assert products(report.graph) == [(FP32, INT8), (INT8, FP32)]
        assert of_type(report.graph, MaxPool, INT8) == 1

    def test_switched_off_nothing_is_lost(self) -> None:
        net = QuantizedNet()
        x = net.qdq(net.input(2, 16, 5, 5), 0.25)
        net.out(net.q(net.qconv(x, 16), 0.5))
        options = PipelineOptions(disabled=frozenset({"fold-quantization"}))
        report = run_pipeline(net.graph, pipeline(options), verify=True)
        equal(net, report.graph)
        assert of_type(report.graph, Conv, INT8) == 0


def test_tables_of_integers_are_floats_at_build_time() -> None:
    net = QuantizedNet()
    table = net.dq(net.integers(9, 4), 0.25)
    rows = net.op(Gather(0), table, net.const(np.array([3, 1])))
    net.out(net.op(Relu(), net.op(Add(), rows, net.input(2, 4))))
    graph = folded(net).graph
    assert of_type(graph, Dequantize, INT8) == 0
    assert of_type(graph, Gather, FP32) == 1


def test_every_reader_dequantizes_by_itself() -> None:
    net = QuantizedNet()
    x = net.dq(net.input(2, 3, dtype=INT8), 0.25)
    net.out(net.op(Relu(), x))
    net.out(net.op(Add(), x, x), "z")
    graph = folded(net).graph
    assert ops(graph).count("Dequantize") == 2


def test_a_reciprocal_that_overflows_is_a_division() -> None:
    net = QuantizedNet()
    net.out(net.q(net.input(2, 3), 1e-40))
    assert ops(folded(net).graph) == ["Quantize"]


def test_a_scale_per_channel_of_a_result() -> None:
    net = QuantizedNet()
    x: Value = net.op(Relu(), net.input(2, 3, 4, 4))
    net.out(net.q(x, net.scales(3).reshape(3, 1, 1), np.array([1, -2, 3]).reshape(3, 1, 1)))
    assert ops(folded(net).graph) == ["Relu", "Pointwise"]
    assert Quantize not in {type(n.op) for n in folded(net).graph.nodes}
