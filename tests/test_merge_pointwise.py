"""Loops of several results through the whole builder: right on either target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nrt.builder import build
from nrt.compiled import compile
from nrt.dtypes import FP32
from nrt.frontend import to_onnx
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, MatMul, Mul, Sigmoid, Slice, Tanh
from nrt.trial import relative_error

LIMIT = {"fp32": 1e-4, "fp16": 1e-2}


def lstm(steps: int, batch: int = 3, hidden: int = 40, inputs: int = 24) -> Graph:
    """``steps`` steps of an LSTM; the states after the last are outputs."""
    rng = np.random.default_rng(steps)
    graph = Graph("lstm")

    def weights(rows: int) -> np.ndarray:
        return (rng.standard_normal((rows, 4 * hidden)) / np.sqrt(rows)).astype(np.float32)

    first, again = (graph.add_constant("w", weights(n)) for n in (inputs, hidden))
    state = graph.add_input("h", (batch, hidden), FP32)
    cell = graph.add_input("c", (batch, hidden), FP32)
    for step in range(steps):

        def op(op, *values, step=step):
            node = graph.add_node(op, values, name=f"{op.name.lower()}{step}")
            node.origin = (node.name,)
            return node.output

        x = graph.add_input(f"x{step}", (batch, inputs), FP32)
        gates = op(Add(), op(MatMul(), x, first), op(MatMul(), state, again))
        i, o, f, g = (
            op(Slice((0, k * hidden), (batch, (k + 1) * hidden), (1, 1)), gates) for k in range(4)
        )
        cell = op(
            Add(), op(Mul(), op(Sigmoid(), f), cell), op(Mul(), op(Sigmoid(), i), op(Tanh(), g))
        )
        state = op(Mul(), op(Sigmoid(), o), op(Tanh(), cell))
    graph.set_output("h_last", state)
    graph.set_output("c_last", cell)
    return graph


def feeds(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}


def test_steps_of_an_lstm_on_the_cpu(tmp_path: Path) -> None:
    graph = lstm(2)
    built = build(to_onnx(graph), target="cpu", opt_level=1, timing_cache=tmp_path / "times.json")
    notes = [n for n in built.passes.notes if n.pass_name == "merge-pointwise"]
    decided = [n.kind for n in notes if " against " in n.text]
    assert decided
    loops = [layer for layer in built.plan.layers if layer.op.startswith("MultiPointwise[")]
    assert not loops or "fired" in decided
    for off in (frozenset(), frozenset({"merge-pointwise"})):
        engine = compile(to_onnx(graph), target="cpu", opt_level=0, disabled=off)
        data = feeds(graph)
        for name, wanted in evaluate(graph, data).items():
            assert relative_error(engine.run(data)[name], wanted) <= LIMIT["fp32"]
        names = [layer.op for layer in engine.plan.layers]
        assert any(n.startswith("MultiPointwise[") for n in names) == (not off)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [(3, 40), (1, 37), (64, 512)])
def test_steps_of_an_lstm_on_the_gpu(precision: str, size: tuple[int, int]) -> None:
    graph = lstm(3, *size)
    engine = compile(to_onnx(graph), target="cuda", precision=precision, opt_level=1)
    data = feeds(graph)
    for _ in range(2):
        outputs = engine.run(data)
        for name, wanted in evaluate(graph, data).items():
            assert relative_error(outputs[name], wanted) <= LIMIT[precision]


@pytest.mark.gpu
def test_loops_without_a_choice_on_the_gpu() -> None:
    """At level 0 every site is fused by estimate."""
    graph = lstm(4, 5, 64)
    apart = frozenset({"copy-pointwise"})
    model = to_onnx(graph)
    engine = compile(model, target="cuda", precision="fp16", opt_level=0, disabled=apart)
    ops = [layer.op for layer in engine.plan.layers]
    assert sum(op.startswith("MultiPointwise[") for op in ops) == 4
    data = feeds(graph)
    outputs = engine.run(data)
    for name, wanted in evaluate(graph, data).items():
        assert relative_error(outputs[name], wanted) <= LIMIT["fp16"]
