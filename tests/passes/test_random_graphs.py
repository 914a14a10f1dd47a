"""Whatever the graph and whichever passes run, the outputs stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_graphs import run_tasks, worst_error

from nrt.cpu_kernels import variants_for as cpu_variants
from nrt.cuda_kernels.device import device_for_arch
from nrt.cuda_kernels.registry import variants_for as cuda_variants
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import (
    Add,
    AveragePool,
    Clip,
    Concat,
    ConvTranspose,
    Gelu,
    Identity,
    MatMul,
    Max,
    MaxPool,
    Mul,
    Pad,
    Reduce,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Softmax,
    Split,
    Sub,
    Tanh,
    Transpose,
)
from nrt.ir.value import Value
from nrt.lowering import lower
from nrt.passes.base import Pass, Phase, run_pipeline
from nrt.passes.pipeline import PipelineOptions, pass_names, pipeline

from .support import Net, assert_same, feeds

# Chains of random layers amplify roundings more than trained ones.
TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2
HOPPER = device_for_arch("sm_90a")

Step = Callable[[Net, Value, Value], Value]


def _flat_product(net: Net, x: Value, other: Value) -> Value:
    n, c, h, w = x.shape
    flat = net.op(Reshape((n, c * h * w)), x)
    y = net.dense(flat, c * h * w)
    return net.op(Reshape((n, c, h, w)), y)


def _tokens(net: Net, x: Value, other: Value) -> Value:
    n, c, h, w = x.shape
    y = net.op(Transpose((0, 2, 1)), net.op(Reshape((n, c, h * w)), x))
    y = net.op(Softmax(), y)
    return net.op(Reshape((n, c, h, w)), net.op(Transpose((0, 2, 1)), y))


def _attend(net: Net, x: Value, other: Value) -> Value:
    rows = net.op(Transpose((0, 2, 1, 3)), net.op(Mul(), x, net.const(np.float32(0.4))))
    columns = net.op(Transpose((0, 2, 3, 1)), other)
    scores = net.op(Softmax(), net.op(MatMul(), rows, columns))
    y = net.op(MatMul(), scores, net.op(Transpose((0, 2, 1, 3)), x))
    return net.op(Transpose((0, 2, 1, 3)), y)


def _siblings(net: Net, x: Value, other: Value) -> Value:
    left, right = net.op(Relu(), net.conv(x, 8, 1, bias=True)), net.conv(x, 8, 1)
    y = net.op(Concat(1), net.op(Concat(1), left, other), net.conv(right, 8, 3))
    return net.conv(y, 4, 1)


def _transition(net: Net, x: Value, other: Value) -> Value:
    """A linear 1x1 convolution whose windows are averaged, and what has that size again."""
    y = net.conv(net.op(Relu(), net.norm(x)), 8, 1, bias=True)
    y = net.op(AveragePool((2, 1), (2, 1), (0, 0, 0, 0)), y)
    return net.op(Reshape((2, 4, 6, 5)), y)


def _same(op: object) -> Step:
    return lambda net, x, other: net.op(op, x)  # type: ignore[arg-type]


STEPS: dict[str, Step] = {
    "conv": lambda net, x, _: net.conv(x, 4, bias=True),
    "depthwise": lambda net, x, _: net.conv(x, 4, groups=4),
    "transposed": lambda net, x, _: net.op(
        ConvTranspose(pads=(1, 1, 1, 1)), x, net.weight(4, 4, 3, 3)
    ),
    "norm": lambda net, x, _: net.norm(x),
    "relu": _same(Relu()),
    "gelu": _same(Gelu()),
    "clip": _same(Clip(-0.5, 2.0)),
    "silu": lambda net, x, _: net.op(Mul(), x, net.op(Sigmoid(), x)),
    "identity": _same(Identity()),
    "softmax": _same(Softmax(1)),
    "scale": lambda net, x, _: net.op(Mul(), x, net.const(np.float32(0.7))),
    "shift": lambda net, x, _: net.op(Add(), net.const(net.random(4, 1, 1)), x),
    "table": lambda net, x, _: net.op(Sub(), x, net.const(net.random(1, 4, 6, 5))),
    "gate": lambda net, x, _: net.op(
        Mul(), x, net.op(Tanh(), net.conv(net.op(Reduce("mean", (2, 3)), x), 4, 1))
    ),
    "residual": lambda net, x, other: net.op(Add(), x, other),
    "maximum": lambda net, x, other: net.op(Max(), other, x),
    "concat": lambda net, x, other: net.conv(net.op(Concat(1), x, other), 4, 1),
    "split": lambda net, x, _: net.op(Concat(1), *net.node(Split(1, (3, 1)), x).outputs[::-1]),
    "max_pool": _same(MaxPool((3, 3), (1, 1), (1, 1, 1, 1))),
    "average_pool": _same(AveragePool((3, 3), (1, 1), (1, 1, 1, 1))),
    "pad": lambda net, x, _: net.op(
        MaxPool((2, 2), (1, 1), (0, 0, 0, 0)), net.op(Pad((0, 0, 1, 1, 0, 0, 0, 0)), x)
    ),
    "pad_conv": lambda net, x, _: net.op(
        AveragePool((2, 3), (1, 1), (0, 0, 0, 0)), net.op(Pad((0, 0, 1, 1, 0, 0, 0, 1)), x)
    ),
    "crop": lambda net, x, _: net.op(
        Pad((0, 0, 0, 0, 0, 0, 0, 2)),
        net.op(Slice((0, 0, 0, 1), (2, 4, 6, 4), (1, 1, 1, 1)), x),
    ),
    "flip": lambda net, x, _: net.op(Slice((1, 0, 0, 0), (-1, 4, 6, 5), (-1, 1, 1, 1)), x),
    "turn": lambda net, x, _: net.op(
        Transpose((0, 3, 1, 2)), net.op(Relu(), net.op(Transpose((0, 2, 3, 1)), x))
    ),
    "flat_product": _flat_product,
    "attend": _attend,
    "tokens": _tokens,
    "siblings": _siblings,
    "transition": _transition,
}


def build(steps: list[tuple[str, int, bool]]) -> Net:
    net = Net()
    values = [net.input(2, 4, 6, 5)]
    for name, back, output in steps:
        x, other = values[-1], values[-1 - back % len(values)]
        values.append(STEPS[name](net, x, other))
        if output:
            net.out(values[-1], f"y{len(values)}")
    net.out(values[-1])
    return net


graphs = st.lists(
    st.tuples(
        st.sampled_from(sorted(STEPS)), st.integers(0, 4), st.integers(0, 5).map(lambda n: n == 0)
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=graphs,
    disabled=st.sets(st.sampled_from(pass_names())),
    half=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_passes_keep_the_outputs(
    steps: list[tuple[str, int, bool]], disabled: set[str], half: bool, channels_last: bool
) -> None:
    net = build(steps)
    half = half and "select-precision" not in disabled
    options = PipelineOptions(
        frozenset({"fp16", "fp32"}) if half else frozenset({"fp32"}),
        channels_last=channels_last,
        disabled=frozenset(disabled),
    )
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), HALF_TOLERANCE if half else TOLERANCE)
    # Every phase came to rest well before its bound.
    assert max(r.iteration for r in report.records) < 6 if report.records else True


def passes(precision: frozenset[str]) -> dict[str, Pass]:
    phases = pipeline(PipelineOptions(precision))
    return {step.name: step for phase in phases for step in phase.passes}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=graphs,
    order=st.permutations(pass_names()),
    count=st.integers(1, len(pass_names())),
    half=st.booleans(),
)
def test_any_order_of_any_passes_keeps_the_outputs(
    steps: list[tuple[str, int, bool]], order: list[str], count: int, half: bool
) -> None:
    """No pass relies on another for what it computes, down to strides and offsets in memory.

    The phases' order makes networks fast, not right: here each pass is a phase of its own.
    """
    net = build(steps)
    known = passes(frozenset({"fp16", "fp32"}) if half else frozenset({"fp32"}))
    phases = [Phase(name, (known[name],), "") for name in order[:count]]
    report = run_pipeline(net.graph, phases, verify=True)
    data = feeds(net)
    lowered = lower(report.graph)
    error = worst_error(run_tasks(lowered, data), evaluate(net.graph, data))
    assert error <= (HALF_TOLERANCE if half else TOLERANCE)
    for task in lowered.tasks:
        for variants in (cpu_variants(task.problem), cuda_variants(task.problem, HOPPER)):
            assert any(refusal is None for _, refusal in variants), task.problem
