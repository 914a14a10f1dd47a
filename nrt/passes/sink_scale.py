"""sink-scale: a factor on an operand of a matrix product is a factor on the product.

    (s · a) @ b = s · (a @ b)

::

    before   %p = Pointwise(%q; mul 0.125)   %y = MatMul(%p, %k)
    after    %y = MatMul(%q, %k; epilogue = mul(x0, 0.125))

Attention scales its queries, its keys, or both; in the epilogue that costs no launch. The
accumulator is fp32, so that the unscaled product does not overflow where the scaled one did not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import MatMul, Pointwise
from nrt.ir.pointwise import Instr, compose, identity
from nrt.ir.value import Node
from nrt.passes.pattern import Anywhere, Match, Pat, Rule, RulePass, Var

__all__ = ["SinkScale"]


def _scales(node: Node) -> bool:
    """Whether a pointwise node multiplies by, or divides by, a number and does nothing else."""
    op: Any = node.op
    match op.body.instrs:
        case (Instr(opcode="const"), Instr(opcode="mul", args=args)):
            plain = sorted(args) == [0, 1]
        case (Instr(opcode="const"), Instr(opcode="div", args=(0, 1))):
            plain = True
        case _:
            plain = False
    return plain and op.body.outputs == (2,) and op.dtype is node.inputs[0].dtype


class _Sink(Rule):
    pattern = Pat(
        MatMul,
        Anywhere(Pat(Pointwise, Var("x"), name="scale", only_use=True, where=_scales)),
        name="matmul",
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        slots = [s for s, v in enumerate(match.root.inputs) if v is match.nodes["scale"].output]
        if slots not in ([0], [1]):
            return f"{match.nodes['scale']} is read as input {slots}, not as one operand"
        if not match.root.output.dtype.is_float:
            return "the product is not of floats"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        matmul, scale = match.root, match.nodes["scale"]
        epilogue = compose(match.op("scale").body, match.op("matmul").epilogue or identity(), 0)
        inputs = [match.values["x"] if v is scale.output else v for v in matmul.inputs]
        op = replace(match.op("matmul"), epilogue=epilogue)
        graph.replace_node(matmul, op, inputs, also=[scale])
        return f"took in {scale}: {match.op('scale').body.text()}"


@dataclass(frozen=True)
class SinkScale(RulePass):
    """See the module."""

    name: ClassVar[str] = "sink-scale"

    def rules(self) -> tuple[Rule, ...]:
        return (_Sink(),)
