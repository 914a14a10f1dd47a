from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, FP64
from nrt.ir.ops import Add, Cast, Div, MatMul, Mul, PooledMatMul, Reduce, Relu, Reshape
from nrt.ir.value import NHWC, Value
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_pool_classifier import FusePoolClassifier
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
    resnet_like,
    sole,
)

PASS = FusePoolClassifier()


def pooled(net: Net, kind: str = "mean", *, flatten: bool = True) -> Value:
    x = net.input(2, 5, 4, 3)
    y = net.op(Reduce(kind, (2, 3), flatten), x)
    return net.op(Reshape((2, 5)), y) if flatten else y


@pytest.mark.parametrize("kind", ["mean", "sum", "max"])
@pytest.mark.parametrize("flatten", [True, False])
def test_pooling_joins_the_product(kind: str, flatten: bool) -> None:
    net = Net()
    net.out(net.op(MatMul(), pooled(net, kind, flatten=flatten), net.weight(5, 7), name="fc"))
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/fc", "/reduce"}
    result = apply(net, PASS)
    (node,) = result.graph.nodes
    assert node.op == PooledMatMul(kind)
    assert node.name == "fc"
    assert set(node.origin) == {"/fc", "/reduce"} | ({"/reshape"} if flatten else set())
    (note,) = result.notes
    assert (note.kind, note.text) == ("fired", "took in Reduce 'reduce'")


def test_programs_come_along() -> None:
    """After the passes that make them."""
    net = Net()
    x = net.op(Relu(), net.op(Mul(), net.input(2, 5, 4, 3), net.const(net.random(5, 1, 1))))
    y = net.op(Reshape((2, 5)), net.op(Reduce("mean", (2, 3)), x))
    net.out(net.op(Relu(), net.dense(y, 7)))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FOLDED_TOLERANCE)
    node = sole(report.graph, PooledMatMul)
    op = node.op.attributes()
    assert op["trans_b"]
    assert op["prologue"].text() == "mul(x0, x1); max(r2, 0.0)"
    assert op["epilogue"].text() == "add(x0, x1); max(r2, 0.0)"
    assert [v.shape for v in node.inputs] == [(2, 5, 4, 3), (7, 5), (5, 1, 1), (7,)]


def test_a_key_that_is_skipped_is_left_apart() -> None:
    net = Net()
    net.out(net.op(MatMul(), pooled(net), net.weight(5, 7)))
    (site,) = PASS.sites(net.graph)
    step = FusePoolClassifier(skip=frozenset({site.key}))
    result = apply(net, step)
    assert not result.changed
    assert refusals(result.notes) == ["Reduce 'reduce' is left apart"]
    assert step.sites(net.graph) == (site,)


def test_keys_know_shapes_and_no_names() -> None:
    def key(batch: int, name: str) -> str:
        net = Net()
        x = net.op(Reduce("mean", (2, 3), False), net.input(batch, 5, 4, 3, name=name), name=name)
        net.out(net.op(MatMul(), x, net.weight(5, 7)))
        (site,) = PASS.sites(net.graph)
        return site.key

    assert key(2, "a") == key(2, "b")
    assert key(2, "a") != key(3, "a")


def read_twice(net: Net) -> None:
    y = pooled(net)
    net.out(net.op(MatMul(), y, net.weight(5, 7)))
    net.out(net.op(Relu(), y), "z")


def other_kind(net: Net) -> None:
    net.out(net.op(MatMul(), pooled(net, "l2"), net.weight(5, 7)))


def with_epilogue(net: Net) -> None:
    graph = net.graph
    y = pooled(net, flatten=False)
    node = graph.node("reduce")
    program = Relu().program(("f",))
    graph.replace_node(node, Reduce("mean", (2, 3), False, epilogue=program), node.inputs)
    net.out(net.op(MatMul(), graph.value(y.name), net.weight(5, 7)))


def rows_only(net: Net) -> None:
    y = net.op(Reduce("mean", (3,), False), net.input(2, 5, 4, 3))
    net.out(net.op(MatMul(), y, net.weight(4, 7)))


def live_weights(net: Net) -> None:
    net.out(net.op(MatMul(), pooled(net), net.input(5, 7, name="w")))


def turned(net: Net) -> None:
    net.out(net.op(MatMul(trans_a=True), pooled(net), net.weight(2, 7)))


def double(net: Net) -> None:
    y = net.op(Reduce("mean", (2, 3), False), net.input(2, 5, 4, 3, dtype=FP64))
    net.out(net.op(MatMul(), y, net.const(np.ones((5, 7)))))


def mixed(net: Net) -> None:
    x = net.input(2, 5, 4, 3, dtype=FP16)
    y = net.op(Reduce("mean", (2, 3), False, out_dtype=FP32), x)
    net.out(net.op(MatMul(), y, net.weight(5, 7)))


@pytest.mark.parametrize(
    ("build", "reasons"),
    [
        (read_twice, []),
        (other_kind, ["Reduce 'reduce' is a l2"]),
        (with_epilogue, ["Reduce 'reduce' is a mean with an epilogue"]),
        (
            rows_only,
            ["Reduce 'reduce' reduces the dimensions (3,) of [2, 5, 4, 3], not all pixels"],
        ),
        (live_weights, ["the weights 'w' are computed at run time"]),
        (turned, ["MatMul 'matmul' does not multiply one row per image by a matrix"]),
        (double, ["operands are fp64"]),
        (mixed, ["operands are fp16, fp32"]),
    ],
)
def test_refusals(build: Callable[[Net], None], reasons: list[str]) -> None:
    net = Net()
    build(net)
    assert PASS.sites(net.graph) == ()
    result = apply(net, PASS)
    assert not result.changed
    assert refusals(result.notes) == reasons


def test_an_epilogue_of_many_operands() -> None:
    net = Net()
    y = net.op(MatMul(), pooled(net), net.weight(5, 7))
    for k in range(5):
        y = net.op(Add(), y, net.input(2, 7, name=f"a{k}"))
    net.out(y)
    joined = FuseMatMulEpilogue(max_inputs=5).run(net.graph)
    result = PASS.run(joined.graph)
    assert "the epilogue reads 5 tensors, the limit is 4" in refusals(result.notes)


def test_images_stay_channels_last_and_half() -> None:
    net = resnet_like()
    options = PipelineOptions(precision=frozenset({"fp16", "fp32"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    node = sole(report.graph, PooledMatMul)
    assert node.inputs[0].layout == NHWC
    assert (node.inputs[0].dtype, node.inputs[1].dtype, node.output.dtype) == (FP16, FP16, FP32)
    assert ops(report.graph)[-1] == "PooledMatMul"  # it stores fp32 itself


def test_a_number_beyond_half_saturates() -> None:
    net = Net()
    y = net.op(MatMul(), pooled(net), net.weight(5, 7))
    y = net.op(Div(), net.op(Mul(), y, net.const(np.float32(1e6))), net.const(np.float32(1e6)))
    net.out(net.op(Cast(FP32), y))
    options = PipelineOptions(precision=frozenset({"fp16"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    node = sole(report.graph, PooledMatMul)
    assert "65504" in node.op.attributes()["epilogue"].text()
