"""Layers that store bytes with a scale and a zero point per channel, and the check of the pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from nrt.dtypes import INT8, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node, Value
from nrt.ir.verify import verify
from nrt.passes.base import PassResult
from nrt.passes.fold_requantize import FoldRequantize

from .quantized_nets import QuantizedNet
from .requantized_nets import bytes_feed

FMA = "mul(x0, x1); add(r3, x2)"
FOLD = FoldRequantize()
K = 13
SHARE = 0.01
"""Bytes next to a tie may differ by one."""


def parameters(b: Builder, factor: int | float, zero: int | float | None) -> int:
    """``round(m · v) + z`` behind the last register; int says which operand, float the number."""
    value = len(b.inputs) + len(b.instrs) - 1
    value = b("mul", value, factor if isinstance(factor, int) else b.const(factor))
    if zero is None:
        return value
    other = b("to_f", zero) if isinstance(zero, int) else b.const(zero)
    return b("add", b("round", value), other)


def clamped(*limits: tuple[str, float], zero: bool = False, factor: float | None = None) -> Program:
    """Sums, scales x1, bias x2 and then clamps; m is x3 and z the last operand."""
    b = Builder(["f"] * (3 if factor else 4) + ["i"] * zero)
    value = b("add", b("mul", 0, 1), 2)
    for opcode, limit in limits:
        value = b(opcode, value, b.const(limit))
    end: int | float = factor if factor else 3
    return b.build(parameters(b, end, len(b.inputs) - 1 if zero else None))


RELU = ("max", 0.0)
RELU6 = (RELU, ("min", 6.0))


def vector(net: QuantizedNet, low: float = 10, high: float = 60) -> Array:
    return net.rng.uniform(low, high, (K, 1, 1)).astype(np.float32)


def zeros(net: QuantizedNet, dtype: DType = INT8, low: int = -100) -> Array:
    return net.rng.integers(max(low, 0) if dtype is UINT8 else low, 101, (K, 1, 1), dtype.numpy)


def conv(net: QuantizedNet, program: Program, dtype: DType, *operands: Array | Value) -> Node:
    """An int8 Conv of 13 channels; its sums times the scales are of some units."""
    x, w = net.input(2, 5, 7, 6, dtype=INT8), net.integers(K, 5, 3, 3)
    scales = (1 + net.rng.random((K, 1, 1))).astype(np.float32) * np.float32(1e-4)
    values = [net.const(scales, "s"), net.const(net.random(K, 1, 1), "b")]
    values += [o if isinstance(o, Value) else net.const(o, f"c{i}") for i, o in enumerate(operands)]
    op = Conv((1, 1), (1, 1, 1, 1), epilogue=program, out_dtype=dtype)
    return net.node(op, x, w, *values[: len(program.inputs) - 1], name="conv")


def same_bytes(before: Graph, after: Graph, data: dict[str, Array]) -> Array:
    wanted, found = (evaluate(g, data)["y"].astype(int) for g in (before, after))
    assert np.abs(wanted - found).max() <= 1
    assert (wanted != found).mean() <= SHARE
    return wanted


def fold(net: QuantizedNet, node: Node) -> PassResult:
    """The pass on a copy, which keeps the bytes and is done after once."""
    net.out(node.output)
    before = net.graph
    verify(before)
    result = FOLD.run(before.copy())
    verify(result.graph)
    wanted = same_bytes(before, result.graph, bytes_feed(net))
    assert len(np.unique(wanted)) > 10, "the data show little"
    assert not FOLD.run(result.graph.copy()).changed
    return result


def text(graph: Graph) -> str:
    (node,) = graph.nodes
    op: Any = node.op
    found: str = op.epilogue.text()
    # Nothing is loaded for nothing.
    steps = op.epilogue.instrs
    read = {a for instr in steps for a in instr.args}
    assert read >= set(range(1, len(op.epilogue.inputs)))
    return found


def zeroed(b: Builder) -> Program:
    return b.build(parameters(b, 2, 3))
