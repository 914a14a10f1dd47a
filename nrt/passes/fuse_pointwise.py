"""fuse-pointwise: a run of elementwise nodes is one loop over the elements.

    f(g(x, y), z) = (f ∘ g)(x, y, z)

::

    before   %a = Sigmoid(%x)   %y = Mul(%x, %a)
    after    %y = Pointwise(%x; sigmoid(x0); mul(x0, r1))

A node joins the one that reads it if nothing else does, so nothing is computed twice; nodes that
meet again (a diamond) join one after another. A result that is smaller than what it is broadcast to
stays a node of its own, or it would be computed once per copy. A quantized result stays one where
a node of several tensors reads it, or where a product computes what is quantized: the product
stores one byte an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, ConvTranspose, Elementwise, MatMul, Pointwise
from nrt.ir.ops.common import kind_of
from nrt.ir.ops.quantize import saturates
from nrt.ir.pointwise import Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.fusion import FusionLimits, joined, own_program, too_large, unsafe_intermediate
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule

__all__ = ["FusePointwise"]

_PRODUCTS = (Conv, ConvTranspose, MatMul)


class _Join(Rule):
    """``f(g(x, y), z)`` as one program."""

    pattern = Pat(
        Elementwise,
        Anywhere(Pat(Elementwise, Rest("operands"), name="inner", only_use=True)),
    )

    def __init__(self, limits: FusionLimits) -> None:
        self.limits = limits

    def check(self, graph: Graph, match: Match) -> str | None:
        outer, inner = match.root, match.nodes["inner"]
        if inner.output.shape != outer.output.shape:
            return (
                f"{inner} computes {list(inner.output.shape)}, broadcast to "
                f"{list(outer.output.shape)}: its elements would be computed several times"
            )
        if saturates(own_program(inner), inner.output.dtype):
            if len(_tensors(outer)) > 1:
                return f"{outer} reads other tensors too: {inner} stores less for it"
            if any(v.producer and isinstance(v.producer.op, _PRODUCTS) for v in _tensors(inner)):
                return f"{inner} is the end of the epilogue before it"
        involved = [v.dtype for v in (*outer.inputs, *inner.inputs, outer.output)]
        program, inputs = self._joined(match)
        return unsafe_intermediate(inner.output.dtype, involved, own_program(inner)) or too_large(
            self.limits, program, len(inputs)
        )

    @staticmethod
    def _joined(match: Match) -> tuple[Program, tuple[Value, ...]]:
        outer, inner = match.root, match.nodes["inner"]
        return joined(
            own_program(inner),
            inner.inputs,
            own_program(outer),
            outer.inputs,
            hole=inner.output,
            shape=outer.output.shape,
        )

    def rewrite(self, graph: Graph, match: Match) -> str:
        outer, inner = match.root, match.nodes["inner"]
        program, inputs = self._joined(match)
        op = Pointwise(program, outer.output.dtype)
        graph.replace_node(outer, op, inputs, also=[inner])
        return f"took in {inner}"


def _tensors(node: Node) -> set[Value]:
    """What a node reads, without constants."""
    return {v for v in node.inputs if not v.is_constant}


def _has_scalar(node: Node) -> bool:
    """Whether a one-element constant can become an instruction."""
    inputs = [v for v in node.inputs if not (v.is_constant and np.prod(v.shape) == 1)]
    if len(inputs) in (0, len(node.inputs)):
        return False
    return np.broadcast_shapes(*(v.shape for v in inputs)) == node.output.shape


class _Scalars(Rule):
    """``x · c``, for a constant c of one element, reads one tensor, not two."""

    pattern = Pat(Elementwise, Rest("operands"), where=_has_scalar)

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        # The first input that stays plays the inner program: the identity on it.
        seed = next(v for v in node.inputs if not (v.is_constant and np.prod(v.shape) == 1))
        program, inputs = joined(
            identity(kind_of(seed.dtype)),
            [seed],
            own_program(node),
            node.inputs,
            hole=None,
            shape=node.output.shape,
        )
        graph.replace_node(node, Pointwise(program, node.output.dtype), inputs)
        return "constants of one element became instructions"


@dataclass(frozen=True)
class FusePointwise(FusionLimits):
    """See the module."""

    name: ClassVar[str] = "fuse-pointwise"

    def rules(self) -> tuple[Rule, ...]:
        return (_Join(self), _Scalars())
