"""Which tensors may have a grid per channel, and what their readers do then.

The producer is a product whose epilogue can take in a scale or an addend per channel: steps that
only add, or that clamp at 0 or at a cap, which saturation stands for. Readers are products with
constant weights, perhaps behind a MaxPool, which keeps the order of numbers; where only zero points
are given, also residuals that are added to the sums of a product. See
`nrt.quantization.channel_grid` for the arithmetic, fold-requantize for the producer's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul, MaxPool
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Program
from nrt.ir.value import Node, Value
from nrt.passes.correct_bias import room, takes_addend
from nrt.passes.pattern import refuse_second_result
from nrt.passes.requantize_program import number_at
from nrt.quantization.bias_correction import mean_shift
from nrt.quantization.calibration import TensorRange
from nrt.quantization.channel_grid import ChannelGrid, ChannelUse, channel_grid

__all__ = ["adapt_readers", "grid_of_channels", "parameters"]


def grid_of_channels(
    graph: Graph, value: Value, calibration: Mapping[str, TensorRange]
) -> ChannelGrid | None:
    """The grid of the channels of ``value``, or None where it is to have one scale.

    Args:
        graph: fused and in fp32.
        value: that is stored as int8 or uint8, and read as such by all.
        calibration: ranges by name of the value.
    """
    producer, entry = value.producer, calibration.get(value.name)
    readers = _readers(graph, value)
    if producer is None or entry is None or readers is None or not _is_product(producer):
        return None
    products = [r for r in readers if not r.residual]
    channels = value.shape[_axis(producer)]
    if not products or entry.lows is None or len(entry.lows) != channels:
        return None
    if any(_axis(r.node) != _axis(producer) for r in products):
        return None
    residuals = len(products) < len(readers)
    scalable = not residuals and room(producer) > 0 and _takes_factors(producer)
    movable = _takes_addends(producer) and not any(r.pads for r in readers)
    use = _use(
        [r.node for r in products],
        channels,
        scalable=scalable,
        movable=movable and room(producer) > int(scalable),
    )
    return channel_grid(entry, use) if use.scalable or use.movable else None


def parameters(graph: Graph, value: Value, grid: ChannelGrid) -> list[Value]:
    """The operands of a Quantize of ``value``: scales and, where one is not 0, zero points.

    Scales that are all alike are one number, which an epilogue has without reading an operand.
    """
    column = _column(value)
    alike = (grid.scales == grid.scales[0]).all()
    scales = grid.scales[0].reshape(()) if alike else grid.scales.reshape(column)
    found = [graph.add_constant(f"{value.name}.scales", scales)]
    if grid.zeros.any():
        zeros = grid.zeros.astype(grid.dtype.numpy).reshape(column)
        found.append(graph.add_constant(f"{value.name}.zeros", zeros))
    return found


def adapt_readers(graph: Graph, value: Value, grid: ChannelGrid) -> dict[Node, Array]:
    """Give the readers of ``value`` weights for what they read instead.

    Returns:
        fp64[K] by reader: what is to be added to its sums.
    """
    readers = _readers(graph, value)
    assert readers is not None
    shifts: dict[Node, Array] = {}
    for reader in readers:
        node = reader.node
        shift = grid.offsets
        if not reader.residual:
            op: Any = node.op
            weights = node.inputs[1]
            assert weights.constant is not None
            scaled = _times_columns(op, weights.constant, grid.ratios)
            name = f"{weights.name}.scaled"
            graph.replace_input(node, 1, graph.add_constant(name, scaled.astype(np.float32)))
            shift = mean_shift(op, scaled, grid.offsets.tolist(), node.inputs[0].shape)
        if grid.zeros.any():
            shifts[node] = shifts.get(node, 0) - shift
    return shifts


@dataclass(frozen=True)
class _Reader:
    node: Node
    residual: bool
    pads: bool


def _readers(graph: Graph, value: Value) -> list[_Reader] | None:
    """All that read ``value``; None where one does what cannot be adapted."""
    if graph.is_output(value):
        return None
    found: list[_Reader] = []
    for node, slot in graph.consumers(value):
        op: Any = node.op
        if isinstance(op, MaxPool):
            behind = _readers(graph, node.output) if op.epilogue is None else None
            if behind is None or any(r.residual for r in behind):
                return None
            found += [_Reader(r.node, residual=False, pads=True) for r in behind]
        elif not _is_product(node):
            return None
        elif slot == 0:
            found.append(_Reader(node, residual=False, pads=isinstance(op, Conv) and any(op.pads)))
        elif slot >= epilogue_slot(op) and _adds(node, slot):
            found.append(_Reader(node, residual=True, pads=False))
        else:
            return None
    # What is added to their sums needs a place there.
    return found if all(takes_addend(r.node) for r in found) else None


def _is_product(node: Node) -> bool:
    """Whether ``node`` multiplies something by a constant matrix or filter."""
    op: Any = node.op
    if not isinstance(op, Conv | MatMul) or refuse_second_result(node) is not None:
        return False
    x, w = node.inputs[:2]
    if not w.is_constant or w.dtype is not FP32 or x.dtype is not FP32:
        return False
    if isinstance(op, Conv):
        return op.prologue is None
    return len(w.shape) == 2 and len(x.shape) > 1 and not op.trans_a


def _axis(node: Node) -> int:
    """The axis of channels of what ``node`` reads and gives."""
    return 1 if isinstance(node.op, Conv) else -1


def _column(value: Value) -> tuple[int, ...]:
    """The shape in which a vector of the channels of ``value`` broadcasts to it."""
    assert value.producer is not None
    spatial = len(value.shape) - 2 if _axis(value.producer) == 1 else 0
    return (-1, *[1] * spatial)


def _columns(op: Any, weights: Array) -> Array:
    """``weights`` as [groups, outputs of a group, inputs of a group, taps], a view."""
    if isinstance(op, Conv):
        return weights.reshape(op.groups, -1, *weights.shape[1:2], int(np.prod(weights.shape[2:])))
    return (weights if op.trans_b else weights.T)[None, :, :, None]


def _times_columns(op: Any, weights: Array, factors: Array) -> Array:
    """fp64: ``weights`` with those of each input channel multiplied by its factor."""
    columns = _columns(op, weights.astype(np.float64))
    scaled = columns * factors.reshape(columns.shape[0], 1, columns.shape[2], 1)
    if isinstance(op, Conv):
        return np.asarray(scaled.reshape(weights.shape))
    return np.asarray(scaled[0, :, :, 0] if op.trans_b else scaled[0, :, :, 0].T)


def _use(products: list[Node], channels: int, *, scalable: bool, movable: bool) -> ChannelUse:
    energy, loudest = np.zeros(channels), np.zeros(channels)
    mixed = False
    for node in products:
        weights = node.inputs[1].constant
        assert weights is not None
        columns = np.abs(_columns(node.op, weights.astype(np.float64)))
        rows = columns.max(axis=(2, 3), keepdims=True)
        shares = np.divide(columns, rows, out=np.zeros_like(columns), where=rows > 0)
        energy += np.square(columns).sum(axis=(1, 3)).reshape(-1)
        loudest = np.maximum(loudest, shares.max(axis=(1, 3)).reshape(-1))
        mixed = mixed or columns.shape[2] > 1
    return ChannelUse(energy, loudest, mixed, scalable, movable)


def _program(node: Node) -> tuple[Program | None, int, set[int]]:
    """The epilogue of ``node``, the slot of its first operand, and which operands are constants."""
    op: Any = node.op
    first = epilogue_slot(op)
    constants = {k for k, v in enumerate(node.inputs[first:], 1) if v.is_constant}
    return op.epilogue, first, constants


def _takes_factors(node: Node) -> bool:
    """Whether a positive factor per channel of the result can go into the epilogue's constants."""
    program, _, constants = _program(node)
    if program is None:
        return True
    at = 0
    for register, instr in enumerate(program.instrs, len(program.inputs)):
        if instr.opcode == "const":
            continue
        others = [a for a in instr.args if a != at]
        if at not in instr.args or len(others) != 1:
            return False
        number = number_at(program, others[0])
        if instr.opcode == "add":
            fits = others[0] in constants
        elif instr.opcode == "max":
            fits = number == 0
        else:  # a cap is no less than what was seen, to which the store saturates
            fits = instr.opcode == "min" and number is not None
        if not fits:
            return False
        at = register
    return program.outputs == (at,)


def _takes_addends(node: Node) -> bool:
    """Whether the result is a sum that has a constant among its addends."""
    program, first, constants = _program(node)
    if program is None:
        return len(node.inputs) > first and node.inputs[first].is_constant
    if len(program.outputs) != 1 or any(i.opcode != "add" for i in program.instrs):
        return False
    return bool(constants & _addends(program, program.outputs[0]))


def _adds(node: Node, slot: int) -> bool:
    """Whether the epilogue adds the operand in ``slot`` to the sums before all else."""
    program, first, _ = _program(node)
    if program is None:
        return False
    register = 0
    while (users := [k for k, i in enumerate(program.instrs) if register in i.args]) and (
        len(users) == 1 and program.instrs[users[0]].opcode == "add"
    ):
        register = len(program.inputs) + users[0]
    return slot - first + 1 in _addends(program, register)


def _addends(program: Program, register: int) -> set[int]:
    """Inputs whose sum ``register`` is; those that something else reads too are left out."""
    uses = [a for instr in program.instrs for a in instr.args] + list(program.outputs)
    if register < len(program.inputs):
        return {register} if uses.count(register) == 1 else set()
    instr = program.instrs[register - len(program.inputs)]
    if instr.opcode != "add":
        return set()
    return set().union(*(_addends(program, a) for a in instr.args))
