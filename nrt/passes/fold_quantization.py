"""fold-quantization: layers between quantized tensors compute on int8 or fp8.

    quantize(conv(dequantize(q), dequantize(p)))  =  conv_int8(q, p; scales; round)

::

    before   %x = Dequantize(%q, s)   %w = Dequantize(%p, t)   %a = Conv(%x, %w)   %y = Relu(%a)
    after    %a = Conv(%q, %p, s · t; epilogue = mul(x0, x1))                      %y = Relu(%a)

`Quantize` and `Dequantize` are arithmetic: what is left of them joins programs and epilogues by the
passes that follow, which end a layer in a store of int8 and read a residual of int8. Here

- products of dequantized operands become products of integers (`fold_quantized_product`), and means
  of them means of integers (`fold_quantized_pool`);
- Quantize moves up through what only moves elements or takes a maximum, Dequantize down, so that
  the integers move; where the two meet on one grid, both are gone;
- uint8 with another zero point than 0 becomes int8, ``q - 128`` with ``z - 128``: the same numbers;
- weights of layers that keep to floats are dequantized now, and quantizing by a known scale is a
  multiplication by its reciprocal.

What a Dequantize feeds it is given of its own: reading a byte twice is cheaper than storing floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import INT8, UINT8
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import (
    Concat,
    Dequantize,
    Dropout,
    Identity,
    MaxPool,
    Pointwise,
    Quantize,
    Reshape,
    Slice,
    Transpose,
)
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Instr, Program
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.fold_quantized_pool import AverageOfIntegers
from nrt.passes.fold_quantized_product import (
    ConvOfIntegers,
    IntegersIntoEpilogue,
    MatMulOfIntegers,
)
from nrt.passes.grid import Grid, grid_of
from nrt.passes.pattern import Match, Pat, Rest, Rule, RulePass

__all__ = ["FoldQuantization"]

_MOVES: tuple[type[Op], ...] = (Concat, Dropout, Identity, MaxPool, Reshape, Transpose)
"""Ops that commute with a grid of one scale: rounding keeps order, and equal numbers equal."""

_OFFSET = 128


def _parameters(graph: Graph, name: str, grid: Grid) -> list[Value]:
    """Scale and zero point of ``grid`` as constants; no zero point where it is 0."""
    found = [graph.add_constant(f"{name}.scale", grid.scale)]
    if not grid.is_symmetric:
        found.append(graph.add_constant(f"{name}.zero", grid.zero.astype(grid.dtype.numpy)))
    return found


class _Signed(Rule):
    """``quantize to uint8, then dequantize`` with int8 between."""

    pattern = Pat(Quantize, Rest("operands"), where=lambda node: node.output.dtype is UINT8)

    def check(self, graph: Graph, match: Match) -> str | None:
        node = match.root
        grid = grid_of(node)
        if grid is None:
            return "its scale is computed at run time"
        if grid.is_symmetric:
            return "its zero point is 0: products read it as it is"
        if graph.is_output(node.output):
            return "its uint8 are an output of the graph"
        for reader, _ in graph.consumers(node.output):
            if grid_of(reader) is None or not isinstance(reader.op, Dequantize):
                return f"{reader} reads its uint8"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        grid = _shifted(grid_of(node))
        signed = graph.add_node(
            Quantize(INT8),
            [node.inputs[0], *_parameters(graph, node.name, grid)],
            name=node.name,
            origin=node.origin,
        )
        for reader in dict.fromkeys(n for n, _ in graph.consumers(node.output)):
            own = _parameters(graph, reader.name, _shifted(grid_of(reader)))
            graph.replace_node(reader, reader.op, [signed.output, *own])
        return "int8 instead of uint8, with a zero point that is 128 less"


def _shifted(grid: Grid | None) -> Grid:
    assert grid is not None
    return Grid(INT8, grid.scale, grid.zero - _OFFSET)


def _centred(node: Node) -> Any:
    """Constant integers of a Dequantize less their zero point, if int8 holds them and is new."""
    grid, q = grid_of(node), node.inputs[0].constant
    if grid is None or q is None or (grid.dtype is INT8 and grid.is_symmetric):
        return None
    if grid.dtype not in (INT8, UINT8):
        return None
    values = q.astype(np.int64) - grid.zero
    return values.astype(np.int8) if values.min() >= -128 and values.max() <= 127 else None


class _CentredWeights(Rule):
    """Constant integers without a zero point."""

    pattern = Pat(Dequantize, Rest("operands"), where=lambda node: _centred(node) is not None)

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        q = graph.add_constant(node.inputs[0].name, _centred(node))
        graph.replace_node(node, node.op, [q, node.inputs[1]])
        return "the zero point of its constant is subtracted"


class _Meet(Rule):
    """``quantize(dequantize(q)) = q`` on one grid."""

    pattern = Pat(Quantize, Pat(Dequantize, Rest("q"), name="inner"), Rest("operands"))

    def check(self, graph: Graph, match: Match) -> str | None:
        outer, inner = grid_of(match.root), grid_of(match.nodes["inner"])
        if outer is None or inner is None or not outer.same(inner):
            return "both have scales or zero points of their own"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        graph.replace_value(match.root.output, match.rest["q"][0])
        graph.remove_dead(match.root)
        return f"{match.nodes['inner']} before it has the same scale: its integers stay"


class _QuantizeEarlier(Rule):
    """``quantize(move(x)) = move(quantize(x))``: the integers move."""

    pattern = Pat(Quantize, Pat(_MOVES, Rest("data"), name="move", only_use=True), Rest("operands"))

    def check(self, graph: Graph, match: Match) -> str | None:
        grid, move = grid_of(match.root), match.nodes["move"]
        if grid is None or not grid.is_uniform:
            return "its scale differs along a dimension, or is computed at run time"
        for value in match.rest["data"]:
            dequantized = value.producer is not None and isinstance(value.producer.op, Dequantize)
            if not (graph.single_use(value) or dequantized or value.is_constant):
                return f"'{value.name}' before {move} is used elsewhere too"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, move = match.root, match.nodes["move"]
        made: dict[Value, Value] = {}
        for value in match.rest["data"]:
            if value not in made:
                made[value] = graph.add_node(
                    node.op,
                    [value, *match.rest["operands"]],
                    name=f"{value.name}.{node.op.name.lower()}",
                    origin=node.origin,
                ).output
        graph.replace_node(node, move.op, [made[v] for v in match.rest["data"]], also=[move])
        return f"went before {move}"


class _DequantizeLater(Rule):
    """``move(dequantize(q)) = dequantize(move(q))``."""

    pattern = Pat((*_MOVES, Slice), Pat(Dequantize, Rest("q"), name="inner"), Rest("others"))

    def check(self, graph: Graph, match: Match) -> str | None:
        grid = grid_of(match.nodes["inner"])
        if grid is None or not grid.is_uniform:
            return f"{match.nodes['inner']} before it has a scale that differs or is computed"
        for value in match.rest["others"]:
            other = grid_of(value.producer)
            if other is None or not other.same(grid):
                return f"it joins '{value.name}', which has another scale"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, inner = match.root, match.nodes["inner"]
        sources = [v.producer.inputs[0] for v in node.inputs if v.producer is not None]
        moved = graph.add_node(
            node.op, sources, name=node.name, origin=node.origin, output_names=[f"{node.name}.q"]
        )
        graph.replace_node(node, inner.op, [moved.output, *inner.inputs[1:]], also=[inner])
        return f"{inner} went after it"


@dataclass(frozen=True)
class FoldQuantization(RulePass):
    """See the module.

    Attributes:
        no_fp8: why the target multiplies no fp8, whose layers then compute in floats; empty if it
            does.
        few_channels: whether the target's kernels multiply bytes of an image of few channels as it
            is.
    """

    name: ClassVar[str] = "fold-quantization"
    no_fp8: str = ""
    few_channels: bool = True

    def rules(self) -> tuple[Rule, ...]:
        return (
            _Signed(),
            _CentredWeights(),
            _Meet(),
            _QuantizeEarlier(),
            _DequantizeLater(),
            ConvOfIntegers(self.no_fp8, self.few_channels),
            MatMulOfIntegers(self.no_fp8),
            IntegersIntoEpilogue(),
            AverageOfIntegers(),
        )

    def run(self, graph: Graph) -> PassResult:
        folded = super().run(graph)
        notes: list[Note] = []
        for node in graph.nodes:
            if isinstance(node.op, Dequantize) and all(v.is_constant for v in node.inputs):
                notes.append(self.fired(node, "its constant is floats from now on"))
                self._dequantized(graph, node)
            elif isinstance(node.op, Dequantize):
                self._one_per_reader(graph, node, notes)
            elif isinstance(node.op, Quantize) and (inverse := _reciprocal(node)) is not None:
                notes.append(self.fired(node, "multiplies by 1 / scale, which is known"))
                self._by_reciprocal(graph, node, inverse)
        return PassResult(graph, folded.changed or bool(notes), (*folded.notes, *notes))

    @staticmethod
    def _dequantized(graph: Graph, node: Node) -> None:
        arrays = [v.constant for v in node.inputs if v.constant is not None]
        (array,) = node.op.reference(*arrays)
        graph.replace_value(node.output, graph.add_constant(node.output.name, array))
        graph.remove_dead(node)

    def _one_per_reader(self, graph: Graph, node: Node, notes: list[Note]) -> None:
        uses = list(dict.fromkeys(n for n, _ in graph.consumers(node.output)))
        kept = 0 if graph.is_output(node.output) else 1
        for reader in uses[kept:]:
            copy = graph.add_node(node.op, node.inputs, name=node.name, origin=node.origin)
            for slot, value in enumerate(reader.inputs):
                if value is node.output:
                    graph.replace_input(reader, slot, copy.output)
        if uses[kept:]:
            notes.append(self.fired(node, f"each of {len(uses)} readers dequantizes by itself"))

    @staticmethod
    def _by_reciprocal(graph: Graph, node: Node, inverse: Array) -> None:
        op: Any = node.op
        program: Program = op.program(tuple(kind_of(v.dtype) for v in node.inputs))
        steps = tuple(Instr("mul", i.args) if i.opcode == "div" else i for i in program.instrs)
        inputs = [node.inputs[0], graph.add_constant(f"{node.name}.inverse", inverse)]
        body = replace(program, instrs=steps)
        graph.replace_node(node, Pointwise(body, op.dtype), [*inputs, *node.inputs[2:]])


def _reciprocal(node: Node) -> Array | None:
    """1 / scale of a Quantize, if it is known and finite."""
    scale = node.inputs[1].constant
    if scale is None:
        return None
    with np.errstate(divide="ignore", over="ignore"):
        inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
    return inverse if np.isfinite(inverse).all() else None
