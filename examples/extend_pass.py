"""A pass of one's own: division by a constant becomes multiplication by its reciprocal.

python examples/extend_pass.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import nrt
from nrt.builder import build
from nrt.ir.graph import Graph
from nrt.ir.ops import Div, Mul
from nrt.passes.pattern import Const, Match, Pat, Rule, RulePass, Var

__all__ = ["ReciprocalMul", "network"]


class _Reciprocal(Rule):
    """``x / c = x · (1/c)``, where 1/c is exact: c is a power of two."""

    pattern = Pat(Div, Var("x"), Const("c"))

    def check(self, graph: Graph, match: Match) -> str | None:
        c = match.array("c")
        if c.dtype.kind != "f":
            return f"the divisor is {c.dtype}, expected a float"
        mantissa, _ = np.frexp(c.astype(np.float64))
        return None if (np.abs(mantissa) == 0.5).all() else "the reciprocal is not exact"

    def rewrite(self, graph: Graph, match: Match) -> str:
        c = match.array("c")
        reciprocal = graph.add_constant(f"{match.root.name}.reciprocal", (1 / c).astype(c.dtype))
        graph.replace_node(match.root, Mul(), [match.values["x"], reciprocal])
        return "multiplies by the reciprocal"


@dataclass(frozen=True)
class ReciprocalMul(RulePass):
    """See the module."""

    name: ClassVar[str] = "reciprocal-mul"

    def rules(self) -> tuple[Rule, ...]:
        return (_Reciprocal(),)


def network() -> nrt.Network:
    """Two divisions, one of which has an exact reciprocal."""
    net = nrt.Network("divisions")
    x = net.input("x", (4, 7))
    net.output(net.div(net.div(x, 8.0, name="eighth"), 3.0, name="third"), "y")
    return net


if __name__ == "__main__":
    built = build(network(), target="cpu", opt_level=0, extra_passes=[ReciprocalMul()])
    for note in built.passes.notes:
        if note.pass_name == "reciprocal-mul":
            print(note)
