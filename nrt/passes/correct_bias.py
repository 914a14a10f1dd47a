"""Adding to the sums of a product, before all else of its epilogue, what corrects their means.

    before   %y = Conv(%x, %w, %c; epilogue = add(x0, x1); max(r2, 0.0))
    after    %y = Conv(%x, %w, %d; epilogue = add(x0, x1); max(r2, 0.0))        d = c + correction

Where the epilogue begins with the addition of a constant, the correction is a part of that, and
costs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Add, Conv
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue

__all__ = ["add_to_sums", "room", "takes_addend"]

_SCALES = 1
"""Operands that an epilogue is given later: the scales of the weights."""


def add_to_sums(graph: Graph, node: Node, correction: Array) -> bool:
    """Add ``correction``, fp64[K], to the output channels of a Conv or MatMul.

    Returns:
        Whether there was room: an epilogue reads four tensors at most.
    """
    if not takes_addend(node):
        return False
    op: Any = node.op
    first = epilogue_slot(op)
    if op.epilogue is None and len(node.inputs) > first:
        # A bias [K], which no pass made a step of an epilogue.
        graph.replace_input(node, first, _sum(graph, node.inputs[first], correction))
        return True
    column = correction.reshape(_column(node))
    own: Program = op.epilogue or identity()
    slot = _bias(node)
    if slot is not None:
        graph.replace_input(node, slot, _sum(graph, node.inputs[slot], column))
        return True
    b = Builder([*own.inputs, "f"])
    inner = b("add", 0, len(own.inputs))
    program = b.build(*b.inline(own, [inner, *range(1, len(own.inputs))]))
    vector = graph.add_constant(f"{node.name}.correction", column.astype(np.float32))
    graph.replace_node(node, replace(op, epilogue=program), [*node.inputs, vector])
    return True


def takes_addend(node: Node) -> bool:
    """Whether the epilogue of a Conv or MatMul has room for a constant per output channel."""
    op: Any = node.op
    first = epilogue_slot(op)
    if (op.epilogue is None and len(node.inputs) > first) or _bias(node) is not None:
        return True
    return room(node) > 0


def room(node: Node) -> int:
    """How many operands more the epilogue of a Conv or MatMul may read, besides later scales."""
    return FuseConvEpilogue.max_inputs - _SCALES - (len(node.inputs) - epilogue_slot(node.op))


def _bias(node: Node) -> int | None:
    """The slot of a constant that the epilogue adds first, and that a column can be added to."""
    op: Any = node.op
    first = epilogue_slot(op)
    bias = _first_addend(op.epilogue or identity())
    if bias is None:
        return None
    return first + bias - 1 if _takes_in(node.inputs[first + bias - 1], _column(node)) else None


def _column(node: Node) -> tuple[int, ...]:
    """The shape in which a vector of output channels broadcasts to the result."""
    shape = node.output.shape
    return (shape[1], *[1] * (len(shape) - 2)) if isinstance(node.op, Conv) else shape[-1:]


def _first_addend(program: Program) -> int | None:
    """The input that is added to register 0, if neither is read by anything else."""
    readers = [i for i in program.instrs if 0 in i.args]
    if len(readers) != 1 or readers[0].opcode != "add":
        return None
    other = sum(readers[0].args)  # one of the two is register 0
    if not 0 < other < len(program.inputs) or {0, other} & set(program.outputs):
        return None
    return other if sum(other in i.args for i in program.instrs) == 1 else None


def _takes_in(bias: Value, shape: tuple[int, ...]) -> bool:
    """Whether ``bias`` is a constant that grows no larger by what is added to it."""
    if bias.constant is None or bias.dtype is not FP32:
        return False
    return np.broadcast_shapes(bias.shape, shape) == bias.shape


def _sum(graph: Graph, bias: Value, correction: Array) -> Value:
    """``bias`` plus ``correction``, as a constant where it is one."""
    if bias.constant is not None:
        total = bias.constant.astype(np.float64) + correction
        return graph.add_constant(f"{bias.name}.corrected", total.astype(bias.dtype.numpy))
    extra = graph.add_constant(f"{bias.name}.correction", correction.astype(bias.dtype.numpy))
    return graph.add_node(Add(), [bias, extra], name=f"{bias.name}.corrected").output
