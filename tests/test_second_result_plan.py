"""Plans of the CPU target with products whose epilogue has two results."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
from small_graphs import Maker, feeds, worst_error

from nrt.assembly import Bound, assemble
from nrt.cpu_kernels import bind
from nrt.dtypes import FP32
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Concat, Conv, MatMul, Relu, Reshape
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Value
from nrt.lowering import lower
from nrt.plan import HostStep, Plan, Target
from nrt.plan_check import check_plan
from nrt.plan_file import plan_from_bytes, plan_to_bytes
from nrt.runtime import Engine
from nrt.timing_cache import TimingCache
from nrt.tuner import tune
from nrt.tuner_cpu import CpuBench


def sum_and_relu() -> Program:
    """``y = sum + operand`` and ``max(y, 0)``."""
    b = Builder("ff")
    y = b("add", 0, 1)
    return b.build(y, b("max", y, b.const(0.0)))


def network(m: Maker) -> Graph:
    """Blocks that need a sum and its ReLU; ReLUs side by side in a Concat, then a product's."""

    def block(x: Value, skip: Value) -> tuple[Value, Value]:
        weights = m.random(16, 16, 3, 3) / np.float32(12)
        op = Conv(pads=(1, 1, 1, 1), epilogue=sum_and_relu(), second_dtype=FP32)
        y, active = m.add(op, x, m.graph.add_constant("w", weights), skip)
        return m.nhwc(y), m.nhwc(active)

    x = m.input("x", 2, 16, 9, 7)
    y, first = block(x, x)
    y, second = block(first, y)
    both = m.nhwc(m.op(Concat(1), first, second))
    rows = m.op(Reshape((2, 32 * 63)), both)
    w = m.graph.add_constant("w", m.random(32 * 63, 24) / np.float32(40))
    op = MatMul(epilogue=sum_and_relu(), second_dtype=FP32)
    plain, active = m.add(op, rows, w, m.const(24))
    m.out("sum", y)
    m.out("scores", plain)
    m.out("active", m.op(Relu(), m.op(Concat(1), active, plain)))
    return m.graph


def test_both_results_of_tuned_products_reach_their_readers(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it only for a failing test
    graph = network(Maker(seed))
    lowered = lower(graph)
    (one, other) = (t for t in lowered.tasks if t.problem.op.name == "Conv")
    assert one.outputs[1].buffer is other.outputs[1].buffer is not one.outputs[0].buffer
    cache = TimingCache(tmp_path / "timings.json")
    choices = tune([t.problem for t in lowered.tasks], CpuBench(), opt_level=1, cache=cache)
    bound = []
    for task in lowered.tasks:
        choice = choices[task.problem]
        bound.append(Bound(task, choice.variant, choice.config, None, "chosen by the test"))
    plan: Plan = assemble(
        lowered, bound, name="two", target=Target("cpu", "any"), ops_before={}, ops_after={},
        versions={},
    )  # fmt: skip
    check_plan(plan)
    variants = [s.variant for s in plan.steps if isinstance(s, HostStep)]
    assert len([v for v in variants if v.startswith("cpu_conv_")]) == 2
    assert "cpu_matmul_panels" in variants
    data = feeds(graph, np.random.default_rng(seed))
    engine = Engine(plan_from_bytes(plan_to_bytes(plan)), bind)
    for _ in range(2):
        assert worst_error(engine.run(data), evaluate(graph, data)) <= 1e-5
