"""gather-to-slice: constant indices that follow each other are a Slice, which may be a view.

    gather(x, [a, a + 1, ..., b]) = x[a : b + 1]

::

    before   %q = Gather(%qkv[3, S, D], %index = 0)
    after    %p = Slice(%qkv; 0:1)   %q = Reshape(%p; (S, D))

Exporters write ``qkv[0]`` as a Gather with a scalar index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.ops import Gather, Reshape, Slice
from nrt.passes.pattern import Const, Match, Pat, Rule, RulePass, Var

__all__ = ["GatherToSlice"]


class _Consecutive(Rule):
    pattern = Pat(Gather, Var("data"), Const("indices"), name="gather")

    @staticmethod
    def _run(match: Match) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """(axis, indices counted from the front)."""
        data = match.values["data"]
        axis: int = match.op("gather").axis % len(data.shape)
        indices = np.asarray(match.array("indices"), np.int64).reshape(-1)
        return axis, np.where(indices < 0, indices + data.shape[axis], indices)

    def check(self, graph: Graph, match: Match) -> str | None:
        axis, indices = self._run(match)
        size = match.values["data"].shape[axis]
        if indices.size == 0 or indices.min() < 0 or indices.max() >= size:
            return f"the indices are empty or out of range for dimension {axis} of {size}"
        if np.any(np.diff(indices) != 1):
            return "the indices do not follow each other"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, data = match.root, match.values["data"]
        axis, indices = self._run(match)
        starts, ends = [0] * len(data.shape), list(data.shape)
        starts[axis], ends[axis] = int(indices[0]), int(indices[-1]) + 1
        op = Slice(tuple(starts), tuple(ends), (1,) * len(starts))
        piece = graph.add_node(op, [data], name=f"{node.name}.slice", origin=node.origin)
        graph.replace_node(node, Reshape(node.output.shape), [piece.output])
        return f"takes {starts[axis]}:{ends[axis]} of dimension {axis}"


@dataclass(frozen=True)
class GatherToSlice(RulePass):
    """See the module."""

    name: ClassVar[str] = "gather-to-slice"

    def rules(self) -> tuple[Rule, ...]:
        return (_Consecutive(),)
