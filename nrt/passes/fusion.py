"""What the fusing passes share: joining two pointwise programs, and the epilogue rule.

``joined`` writes ``second(..., first(...), ...)`` as one program over the union of the inputs: a
value that both read gets one register, a constant with one element becomes an instruction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import BYTES, FP8E4M3, FP64, INT16, UINT16, UINT32, UINT64, DType
from nrt.ir.graph import Graph
from nrt.ir.ops import Reshape
from nrt.ir.ops.common import kind_of, product_type
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.ops.quantize import (
    byte_rounding,
    saturates,
    without_byte_rounding,
    without_round_trips,
)
from nrt.ir.pointwise import Builder, Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.pattern import Match, Rule, RulePass

__all__ = [
    "BiasIntoEpilogue",
    "FuseAfter",
    "FuseEpilogue",
    "FusionLimits",
    "depth",
    "joined",
    "own_program",
    "too_large",
    "trimmed",
    "unsafe_intermediate",
]

_NOT_STORED = "the {} result of {} is not rounded and saturated, as stores do"
_WRAPS = (*BYTES, INT16, UINT16, UINT32, UINT64, FP8E4M3)


@dataclass(frozen=True)
class FusionLimits(RulePass):
    """Options of the fusing passes.

    Attributes:
        max_inputs: most tensors that one program reads; each costs a pointer and address
        arithmetic. max_instructions: longest program; each live register is one that a tile loses.
    """

    max_inputs: int = 8
    max_instructions: int = 64


def own_program(node: Node) -> Program:
    """The program of an elementwise node, one register per input slot."""
    op: Any = node.op
    program: Program = op.program(tuple(kind_of(v.dtype) for v in node.inputs))
    return program


def joined(
    first: Program,
    first_values: Sequence[Value | None],
    second: Program,
    second_values: Sequence[Value],
    *,
    hole: Value | None,
    shape: tuple[int, ...] | None = None,
) -> tuple[Program, tuple[Value, ...]]:
    """``second`` after ``first``, whose result is ``hole``.

    Args:
        first: the inner program. first_values: what its registers hold; None is an accumulator,
        which stays register 0. second: the outer program. second_values: what its registers hold.
        hole: the value among them that ``first`` computes. shape: what the inputs of the result
        must broadcast to, where no accumulator gives the shape;
            one-element constants stay inputs if only they carry a leading dimension of it.

    Returns:
        The program, and the values of its registers without the accumulator.
    """
    everything = dict.fromkeys((*first_values, *(v for v in second_values if v is not hole)))
    values = [v for v in everything if v is not None]
    inputs = [v for v in values if not _is_scalar(v)]
    if shape is not None and np.broadcast_shapes(*(v.shape for v in inputs)) != shape:
        inputs = values
    has_accumulator = None in everything
    b = Builder([*("f" if has_accumulator else ""), *(kind_of(v.dtype) for v in inputs)])
    register: dict[Value | None, int] = {None: 0}
    for slot, value in enumerate(inputs):
        register[value] = slot + has_accumulator
    for value in values:
        if value not in register:
            register[value] = b.const(_scalar(value))
    middle = b.inline(first, [register[v] for v in first_values])[0]
    args = [middle if v is hole else register[v] for v in second_values]
    program = without_round_trips(b.build(*b.inline(second, args)))
    return program, tuple(inputs)


def _is_scalar(value: Value) -> bool:
    return value.is_constant and math.prod(value.shape) == 1


def _scalar(value: Value) -> float | int | bool:
    assert value.constant is not None
    item = value.constant.reshape(-1)[0]
    kind = kind_of(value.dtype)
    return float(item) if kind == "f" else int(item) if kind == "i" else bool(item)


def unsafe_intermediate(
    inner: DType, involved: Iterable[DType], program: Program | None = None
) -> str | None:
    """Why a result of type ``inner`` may not stay in a register between ``involved`` types.

    ``program`` computes it: one that saturates by itself leaves in a register what would be stored.
    """
    if inner in _WRAPS and not (program is not None and saturates(program, inner)):
        return (
            f"the intermediate is {inner}, whose wrap-around or saturation a register does not have"
        )
    floats = {d for d in involved if d.is_float}
    if FP64 in floats and len(floats) > 1:
        return f"mixes fp64 with {', '.join(sorted(d.name for d in floats - {FP64}))}"
    return None


def too_large(limits: FusionLimits, program: Program, inputs: int) -> str | None:
    """Why a joined program breaks the limits, or None."""
    if inputs > limits.max_inputs:
        return f"the fused program would read {inputs} tensors, the limit is {limits.max_inputs}"
    if len(program.instrs) > limits.max_instructions:
        return (
            f"the fused program would have {len(program.instrs)} instructions, "
            f"the limit is {limits.max_instructions}"
        )
    return None


def depth(graph: Graph, node: Node) -> int:
    """Nodes on the longest path that ends at ``node``."""
    depths: dict[Node, int] = {}
    for current in graph.nodes:
        before = [depths[v.producer] for v in current.inputs if v.producer is not None]
        depths[current] = 1 + max(before, default=0)
        if current is node:
            break
    return depths[node]


class BiasIntoEpilogue(Rule):
    """``conv(x, w, c) = (conv(x, w); add c)``: kernels know one way to add a bias."""

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, (x, w, bias) = match.root, match.root.inputs
        shape = (bias.shape[0], *[1] * (len(node.output.shape) - 2))
        if bias.constant is not None:
            extra = graph.add_constant(bias.name, bias.constant.reshape(shape))
        else:
            extra = graph.add_node(Reshape(shape), [bias], name=f"{node.name}.bias").output
        op: Any = node.op
        b = Builder("ff")
        graph.replace_node(node, replace(op, epilogue=b.build(b("add", 0, 1))), [x, w, extra])
        return "the bias became the first step of its epilogue"


class FuseEpilogue(Rule):
    """``g(anchor(x, w; e), extras) = anchor(x, w; g ∘ e)``, for an elementwise g.

    The pattern calls the anchor ``anchor`` and states that only the root reads it; so nothing else
    that the root reads can depend on the anchor, and no cycle can arise.
    """

    def __init__(self, limits: FusionLimits) -> None:
        self.limits = limits

    def check(self, graph: Graph, match: Match) -> str | None:
        outer, anchor = match.root, match.nodes["anchor"]
        for node in (anchor, outer):
            if not (node.output.dtype.is_float or node.output.dtype in BYTES):
                return f"the result of {node} is {node.output.dtype}, an epilogue computes floats"
        if outer.output.shape != anchor.output.shape:
            return (
                f"broadcasting enlarges the output of {anchor} from {list(anchor.output.shape)} "
                f"to {list(outer.output.shape)}"
            )
        involved = [v.dtype for v in (*outer.inputs, *anchor.inputs, outer.output)]
        unsafe = unsafe_intermediate(anchor.output.dtype, involved, _stored(match))
        if unsafe is not None:
            return unsafe
        program, extras = self._joined(match)
        if program is None:
            return _NOT_STORED.format(outer.output.dtype, outer)
        return too_large(self.limits, program, len(extras))

    def preference(self, graph: Graph, match: Match) -> int:
        """The later of two producers takes the join: the other is ready by then."""
        return depth(graph, match.nodes["anchor"])

    @staticmethod
    def _joined(match: Match) -> tuple[Program | None, tuple[Value, ...]]:
        """The new epilogue and its operands; no program where it does not end in a float."""
        outer, anchor = match.root, match.nodes["anchor"]
        program, extras = joined(
            _stored(match),
            (None, *anchor.inputs[epilogue_slot(anchor.op) :]),
            own_program(outer),
            outer.inputs,
            hole=anchor.output,
        )
        # The store rounds to bytes; what comes before it is a float.
        dtype = outer.output.dtype
        return (without_byte_rounding(program, dtype) if dtype in BYTES else program), extras

    def rewrite(self, graph: Graph, match: Match) -> str:
        outer, anchor = match.root, match.nodes["anchor"]
        program, extras = self._joined(match)
        assert program is not None
        dtype = outer.output.dtype
        op = match.op("anchor")
        own = product_type(op.name, anchor.inputs[0].dtype, None, None)
        op = replace(op, epilogue=program, out_dtype=None if dtype is own else dtype)
        operands = anchor.inputs[: epilogue_slot(anchor.op)]
        inputs = [*operands, *(trimmed(graph, v) for v in extras)]
        graph.replace_node(outer, op, inputs, also=[anchor], name=anchor.name)
        return f"took in {outer}: {own_program(outer).text()}"


class FuseAfter(Rule):
    """``g(anchor(x; e), extras) = anchor(x, extras; g ∘ e)``, of the anchor's own size.

    The same for ops of one operand, whose ``parts`` tell it from those of their programs. The
    pattern calls the anchor ``anchor`` and states that only the root reads it.

    Attributes:
        integers: the anchor may store bytes, rounded and saturated.
    """

    integers: ClassVar[bool] = False

    def __init__(self, limits: FusionLimits) -> None:
        self.limits = limits

    def check(self, graph: Graph, match: Match) -> str | None:
        outer, anchor = match.root, match.nodes["anchor"]
        for node in (anchor, outer):
            dtype = node.output.dtype
            if not dtype.is_float and not (self.integers and node is outer and dtype in BYTES):
                return f"the result of {node} is {dtype}, an epilogue computes floats"
        if outer.output.shape != anchor.output.shape:
            return (
                f"broadcasting enlarges the output of {anchor} from {list(anchor.output.shape)} "
                f"to {list(outer.output.shape)}"
            )
        program, after = self._joined(match)
        if program is None:
            return _NOT_STORED.format(outer.output.dtype, outer)
        _, before, _ = match.op("anchor").parts(anchor.inputs)
        involved = [v.dtype for v in (*outer.inputs, *anchor.inputs, outer.output)]
        return unsafe_intermediate(anchor.output.dtype, involved) or too_large(
            self.limits, program, len(before) + len(after)
        )

    @staticmethod
    def _joined(match: Match) -> tuple[Program | None, tuple[Value, ...]]:
        """The new epilogue and its operands; no program where it does not end in a float."""
        outer, anchor = match.root, match.nodes["anchor"]
        op: Any = anchor.op
        _, _, after = op.parts(anchor.inputs)
        program, inputs = joined(
            op.epilogue or identity(),
            (None, *after),
            own_program(outer),
            outer.inputs,
            hole=anchor.output,
        )
        dtype = outer.output.dtype
        return without_byte_rounding(program, dtype) if dtype in BYTES else program, inputs

    def rewrite(self, graph: Graph, match: Match) -> str:
        outer, anchor = match.root, match.nodes["anchor"]
        program, after = self._joined(match)
        assert program is not None
        op: Any = anchor.op
        x, before, _ = op.parts(anchor.inputs)
        dtype = outer.output.dtype
        # Bytes that a pool averages say nothing of what it stores.
        kept = dtype is x.dtype and dtype not in BYTES
        op = replace(op, epilogue=program, out_dtype=None if kept else dtype)
        inputs = [x, *before, *(trimmed(graph, v) for v in after)]
        graph.replace_node(outer, op, inputs, also=[anchor], name=anchor.name)
        return f"took in {outer}: {own_program(outer).text()}"


def _stored(match: Match) -> Program:
    """The anchor's epilogue, and the rounding of what it stores where that is bytes."""
    epilogue: Program = match.op("anchor").epilogue or identity()
    dtype = match.nodes["anchor"].output.dtype
    return byte_rounding(epilogue, dtype) if dtype in BYTES else epilogue


def trimmed(graph: Graph, value: Value) -> Value:
    """A constant without leading dimensions of size 1: a channel vector is [K, 1, 1] everywhere."""
    if value.constant is None or not value.shape or value.shape[0] != 1:
        return value
    shape = list(value.shape)
    while shape and shape[0] == 1:
        shape.pop(0)
    return graph.add_constant(value.name, value.constant.reshape(shape))
