"""Means of dequantized numbers as means of integers, and what quantizes them in their epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP32, INT8, INT16, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import AveragePool
from nrt.ir.pointwise import Builder
from nrt.ir.verify import verify
from nrt.passes.base import run_pipeline
from nrt.passes.fold_quantization import FoldQuantization
from nrt.passes.fuse_pool_epilogue import FusePoolEpilogue
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet
from .support import ops, refusals, sole

PADDED = (1, 1, 1, 1)


def pool(pads: tuple[int, ...] = (0,) * 4, **more: Any) -> AveragePool:
    return AveragePool((2, 2), (2, 2), pads, **more)


def equal(net: QuantizedNet, graph: Any) -> None:
    feed = net.feed(net.graph.inputs[0].dtype, *net.graph.inputs[0].shape)
    wanted, found = evaluate(net.graph, feed), evaluate(graph, feed)
    for name, array in wanted.items():
        assert array.dtype == found[name].dtype
        assert np.array_equal(array, found[name])


@pytest.mark.parametrize("zero", [None, 5])
@pytest.mark.parametrize("pads", [(0,) * 4, PADDED])
def test_means_are_those_of_the_integers(zero: Any, pads: tuple[int, ...]) -> None:
    net = QuantizedNet()
    net.out(net.op(pool(pads), net.dq(net.input(2, 3, 6, 4, dtype=INT8), 0.25, zero)))
    graph = FoldQuantization().run(net.graph.copy()).graph
    verify(graph)
    assert ops(graph) == ["AveragePool"]
    node = sole(graph, AveragePool)
    assert (node.inputs[0].dtype, node.output.dtype) == (INT8, FP32)
    equal(net, graph)


def test_an_epilogue_of_its_own_follows_the_scale() -> None:
    b = Builder("f")
    own = b.build(b("max", 0, b.const(1.0)))
    net = QuantizedNet()
    x = net.dq(net.input(1, 3, 6, 4, dtype=INT8), 0.5)
    net.out(net.op(pool(epilogue=own), x))
    graph = FoldQuantization().run(net.graph.copy()).graph
    assert ops(graph) == ["AveragePool"]
    equal(net, graph)


@pytest.mark.parametrize("read", [INT8, UINT8], ids=str)
def test_bytes_in_and_out_are_one_kernel(read: DType) -> None:
    net = QuantizedNet()
    x = net.dq(net.input(2, 16, 6, 4, dtype=read), 0.5)
    net.out(net.q(net.op(pool(), x), 0.25))
    report = run_pipeline(net.graph, pipeline(PipelineOptions(frozenset({"fp32"}))), verify=True)
    found = FusePoolEpilogue().run(report.graph.copy()).graph
    node = sole(found, AveragePool)
    assert (node.inputs[0].dtype, node.output.dtype) == (read, INT8)
    assert "Pointwise" not in ops(found)
    equal(net, found)


@pytest.mark.parametrize(
    ("net_of", "reason"),
    [
        (
            lambda net: net.op(
                pool(PADDED, count_include_pad=True),
                net.dq(net.input(1, 2, 4, 4, dtype=INT8), 0.5, 3),
            ),
            "padding counts as 0, where the integers have a zero point",
        ),
        (
            lambda net: net.op(
                pool(),
                net.dq(net.input(1, 2, 4, 4, dtype=INT8), net.scales(2).reshape(2, 1, 1)),
            ),
            "has a scale that differs along a dimension, or is computed",
        ),
        (
            lambda net: net.op(pool(), net.dq(net.input(1, 2, 4, 4, dtype=INT16), 0.5)),
            "reads int16, kernels average int8 and uint8",
        ),
    ],
    ids=["padding", "scales", "int16"],
)
def test_refuses(net_of: Any, reason: str) -> None:
    net = QuantizedNet()
    net.out(net_of(net))
    result = FoldQuantization().run(net.graph.copy())
    assert any(reason in text for text in refusals(result.notes)), refusals(result.notes)
    assert sole(result.graph, AveragePool).inputs[0].dtype is FP32
