"""Operands of an epilogue before a store of bytes, and constants in the place of others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nrt.dtypes import BYTES, FP8E4M3, FP32, FP64, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import AveragePool, Conv, ConvTranspose, MatMul, MaxPool
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node, Value

__all__ = [
    "STORE_BYTES",
    "epilogue",
    "fits",
    "in_range",
    "known",
    "operand",
    "real",
    "replace_constants",
    "requantized",
    "wide",
    "without_unread",
]

STORE_BYTES = (Conv, ConvTranspose, MatMul, AveragePool, MaxPool)
"""Ops that may end in an epilogue and a store that saturates."""

_SUFFIX = ".requantized"


def epilogue(node: Node) -> Program | None:
    """The program before a store that saturates."""
    op: Any = node.op
    program: Program | None = op.epilogue
    return program if node.outputs[0].dtype in (*BYTES, FP8E4M3) else None


def operand(node: Node, register: int) -> Value:
    """What a register of the epilogue holds."""
    return node.inputs[_first(node) + register - 1]


def _first(node: Node) -> int:
    """Slot of the epilogue's first operand: its operands are the last inputs."""
    op: Any = node.op
    return len(node.inputs) - (len(op.epilogue.inputs) - 1)


def known(node: Node) -> dict[int, Array]:
    """The data of the epilogue's operands that are constants, by register."""
    op: Any = node.op
    values = {r: operand(node, r).constant for r in range(1, len(op.epilogue.inputs))}
    return {r: data for r, data in values.items() if data is not None}


def wide(dtype: DType) -> DType:
    """The type of a new constant: bytes are rounded finer than fp16 rounds its numbers."""
    return dtype if dtype is FP64 else FP32


def real(node: Node) -> DType:
    """The type that an epilogue computes in."""
    return FP64 if any(v.dtype is FP64 for v in node.inputs) else FP32


def in_range(array: Array, factor: float | Array, dtype: DType) -> bool:
    """Whether ``array`` times ``factor`` is finite as ``dtype``, and no normal number is lost."""
    tiny = np.finfo(dtype.numpy).tiny
    exact = np.asarray(array, np.float64)
    with np.errstate(over="ignore"):
        product = (exact * factor).astype(dtype.numpy)
    lost = (np.abs(product) < tiny) & (np.abs(exact) >= tiny)
    return bool(np.isfinite(product).all() and not lost.any())


def fits(shape: tuple[int, ...], vector: Array) -> bool:
    """Whether a constant of ``shape`` may take in a vector: it keeps its shape, or is a number."""
    return math.prod(shape) == 1 or np.broadcast_shapes(shape, vector.shape) == shape


def requantized(graph: Graph, value: Value, data: Array) -> Value:
    """A constant of ``data``, in float64, in the place of ``value``."""
    layout = value.layout if data.ndim == len(value.shape) else None
    name = f"{value.name.removesuffix(_SUFFIX)}{_SUFFIX}"
    return graph.add_constant(name, data.astype(wide(value.dtype).numpy), layout)


def replace_constants(
    graph: Graph, node: Node, program: Program, data: Mapping[int, Array]
) -> None:
    """Give ``node`` another epilogue, of which the operands in ``data`` are others now.

    Operands that the program does not read are no inputs of the node any more.
    """
    op: Any = node.op
    first = _first(node)
    operands = {r: operand(node, r) for r in range(1, len(program.inputs))}
    operands |= {r: requantized(graph, operands[r], array) for r, array in data.items()}
    program, kept = without_unread(program)
    inputs = [*node.inputs[:first], *(operands[r] for r in kept[1:])]
    graph.replace_node(node, replace(op, epilogue=program), inputs)


def without_unread(program: Program) -> tuple[Program, list[int]]:
    """``program`` without inputs that it does not read, and those that are left, 0 always."""
    read = {a for instr in program.instrs for a in instr.args} | {0, *program.outputs}
    kept = [r for r in range(len(program.inputs)) if r in read]
    b = Builder([program.inputs[r] for r in kept])
    places = [kept.index(r) if r in read else 0 for r in range(len(program.inputs))]
    return b.build(*b.inline(program, places)), kept
