"""fold-layout-into-weights: a flattened image need not be brought back to row-major.

    flatten_chw(x) @ w = flatten_hwc(x) @ w[p]        p: the rows of w in the order height, width,
    channel

::

    before   %a = Reformat(%x{nhwc})                 %b = Reshape(%a)   %y = MatMul(%b, %w)
    after    %a = Transpose(%x{nhwc}; (0, 2, 3, 1))  %b = Reshape(%a)   %y = MatMul(%b, %w')

The Transpose of a channels-last image into logical N, H, W, C moves nothing, nor does the Reshape:
the Reformat's launch is gone, and the weights are permuted once, at build time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.layout import is_row_major
from nrt.ir.ops import MatMul, Reformat, Reshape, Transpose
from nrt.ir.value import NHWC, Node
from nrt.passes.pattern import Const, Match, Pat, Rest, Rule, RulePass, Var

__all__ = ["FoldLayoutIntoWeights"]


def _to_row_major(node: Node) -> bool:
    x, y = node.inputs[0], node.output
    return x.dtype is y.dtype and x.layout == NHWC and is_row_major(y) and not is_row_major(x)


class _PermuteRows(Rule):
    pattern = Pat(
        MatMul,
        Pat(
            Reshape,
            Pat(Reformat, Var("x"), name="reformat", only_use=True, where=_to_row_major),
            name="flatten",
            only_use=True,
        ),
        Const("w"),
        Rest("extras"),
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        x, w = match.values["x"], match.values["w"]
        flat = match.nodes["flatten"].output.shape
        if flat != (x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]):
            return f"{list(x.shape)} is reshaped to {list(flat)}, not flattened to a matrix"
        if match.root.op.attributes()["trans_a"] or len(w.shape) != 2:
            return "the flattened image is not the left operand of a plain matrix product"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        x, w, flatten = match.values["x"], match.values["w"], match.nodes["flatten"]
        rows = np.arange(np.prod(x.shape[1:])).reshape(x.shape[1:]).transpose(1, 2, 0).reshape(-1)
        axis = 1 if match.root.op.attributes()["trans_b"] else 0
        weights = graph.add_constant(w.name, np.take(match.array("w"), rows, axis=axis))
        turned = graph.add_node(
            Transpose((0, 2, 3, 1)), [x], name=f"{flatten.name}.nhwc", origin=flatten.origin
        )
        flat = graph.add_node(flatten.op, [turned.output], name=flatten.name, origin=flatten.origin)
        inputs = [flat.output, weights, *match.rest["extras"]]
        graph.replace_node(match.root, match.root.op, inputs)
        return f"its weights are permuted instead of '{x.name}'"


@dataclass(frozen=True)
class FoldLayoutIntoWeights(RulePass):
    """See the module."""

    name: ClassVar[str] = "fold-layout-into-weights"

    def rules(self) -> tuple[Rule, ...]:
        return (_PermuteRows(),)
