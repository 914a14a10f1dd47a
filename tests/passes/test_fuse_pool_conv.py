from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.ir.ops import Add, AveragePool, Conv, PooledConv, Reduce, Relu, Reshape
from nrt.ir.pointwise import Program
from nrt.ir.value import Value
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_pool_conv import FusePoolConv
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import (
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

PASS = FusePoolConv()
HALF = frozenset({"fp16", "fp32"})


def half(net: Net, *, groups: int = 1, size: tuple[int, int] = (5, 4)) -> Value:
    """A convolution of fp16."""
    x = net.input(2, 6, *size, dtype=FP16)
    w = net.const(np.asarray(net.random(8, 6 // groups, 3, 3) / 7, np.float16))
    return net.op(Conv((1, 1), (1, 1, 1, 1), groups=groups), x, w)


@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("keepdims", [True, False])
def test_pooling_joins_the_convolution(kind: str, keepdims: bool) -> None:
    net = Net()
    net.out(net.op(Reduce(kind, (2, 3), keepdims, out_dtype=FP32), half(net)))
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/conv", "/reduce"}
    result = apply(net, PASS, FP16_TOLERANCE)
    assert ops(result.graph) == ["PooledConv", "Reshape"][: 1 + keepdims]
    node = sole(result.graph, PooledConv)
    assert node.op == PooledConv(kind, (1, 1), (1, 1, 1, 1), out_dtype=FP32)
    assert (node.name, node.origin) == ("conv", ("/conv", "/reduce"))
    (note,) = result.notes
    assert (note.kind, note.text) == ("fired", "took in Reduce 'reduce'")


def test_a_key_that_is_skipped_is_left_apart() -> None:
    net = Net()
    net.out(net.op(Reduce("mean", (2, 3)), half(net)))
    (site,) = PASS.sites(net.graph)
    step = FusePoolConv(skip=frozenset({site.key}))
    result = apply(net, step, FP16_TOLERANCE)
    assert not result.changed
    assert refusals(result.notes) == ["Conv 'conv' is left apart"]
    assert step.sites(net.graph) == (site,)


def test_keys_know_sizes_and_no_names() -> None:
    def key(size: int, name: str) -> str:
        net = Net()
        x = net.input(1, 4, size, 5, name=name, dtype=FP16)
        w = net.const(np.ones((8, 4, 1, 1), np.float16))
        net.out(net.op(Reduce("mean", (2, 3)), net.op(Conv(), x, w, name=name)))
        (site,) = PASS.sites(net.graph)
        return site.key

    assert key(4, "a") == key(4, "b")
    assert key(4, "a") != key(5, "a")


def test_the_end_of_a_network() -> None:
    """With its residual and activation, where the classifier has not taken the pooling."""
    net = resnet_like(blocks=(8,))
    options = PipelineOptions(precision=HALF, disabled=frozenset({"fuse-pool-classifier"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    node = sole(report.graph, PooledConv)
    assert node.op.attributes()["epilogue"].text() == "add(x0, x1); add(r3, x2); max(r4, 0.0)"
    assert [v.layout is not None for v in node.inputs] == [True, False, False, True]
    assert not any(isinstance(n.op, Reduce) for n in report.graph.nodes)
    report = run_pipeline(net.graph, pipeline(PipelineOptions(precision=HALF)), verify=True)
    assert "PooledConv" not in ops(report.graph)


def test_an_optimized_network_may_be_optimized_again() -> None:
    """In another precision, whose casts and layouts have to know the op's operands."""
    net = resnet_like(blocks=(8,))
    apart = frozenset({"fuse-pool-classifier"})
    options = PipelineOptions(precision=HALF, disabled=apart)
    once = run_pipeline(net.graph, pipeline(options), verify=True).graph
    for precision in (HALF, frozenset({"fp32"}), frozenset({"fp32", "tf32"})):
        again = run_pipeline(once, pipeline(PipelineOptions(precision=precision)), verify=True)
        assert_same(net.graph, again.graph, feeds(net), FP16_TOLERANCE)
        node = sole(again.graph, PooledConv)
        assert node.inputs[1].dtype is (FP16 if precision == HALF else FP32)
        assert node.op.attributes()["tf32"] == ("tf32" in precision)


def with_program(net: Net) -> None:
    program: Program = Relu().program(("f",))
    net.out(net.op(Reduce("mean", (2, 3), epilogue=program), half(net)))


def rows(net: Net) -> None:
    net.out(net.op(Reduce("mean", (3,)), half(net)))


def largest(net: Net) -> None:
    net.out(net.op(Reduce("max", (2, 3)), half(net)))


def twice(net: Net) -> None:
    y = half(net)
    net.out(net.op(Reduce("mean", (2, 3)), y))
    net.out(y, "image")


def grouped(net: Net) -> None:
    net.out(net.op(Reduce("mean", (2, 3)), half(net, groups=2)))


def single(net: Net) -> None:
    net.out(net.op(Reduce("mean", (2, 3)), net.conv(net.input(2, 6, 5, 4), 8)))


def computed(net: Net) -> None:
    x = net.input(2, 6, 5, 4, dtype=FP16)
    w = net.input(8, 6, 1, 1, name="w", dtype=FP16)
    net.out(net.op(Reduce("mean", (2, 3)), net.op(Conv(), x, w)))


def large(net: Net) -> None:
    net.out(net.op(Reduce("mean", (2, 3)), half(net, size=(17, 16))))


def small(net: Net) -> None:
    net.out(net.op(Reduce("mean", (2, 3)), half(net, size=(2, 4))))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (with_program, "it is a mean with a program"),
        (largest, "it is a max"),
        (rows, "it reduces the dimensions (3,) of [2, 8, 5, 4], not all pixels of an image"),
        (twice, "Conv 'conv' is read elsewhere too"),
        (grouped, "Conv 'conv' has groups"),
        (single, "Conv 'conv' multiplies fp32, no tile of tensor cores"),
        (computed, "the weights 'w' are computed at run time"),
        (large, "images have 272 pixels, expected 9 to 256"),
        (small, "images have 8 pixels, expected 9 to 256"),
    ],
)
def test_refusals(build: Callable[[Net], None], reason: str) -> None:
    net = Net()
    build(net)
    assert PASS.sites(net.graph) == ()
    result = apply(net, PASS, FP16_TOLERANCE)
    assert not result.changed
    assert refusals(result.notes) == [reason]


def test_other_pools_stay() -> None:
    net = Net()
    y = net.op(AveragePool((5, 4), (1, 1), (0,) * 4), half(net))
    net.out(net.op(Add(), net.op(Reduce("mean", (2, 3)), y), net.op(Reshape((2, 8, 1, 1)), y)))
    assert not apply(net, PASS, FP16_TOLERANCE).changed
