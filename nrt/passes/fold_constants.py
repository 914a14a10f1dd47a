"""fold-constants: what can be computed at build time is a constant.

    f(c1, c2, ...) = constant          for constants c1, c2, ...

::

    before   %a = const   %b = Transpose(%a)   %y = MatMul(%x, %b)
    after    %b = const                        %y = MatMul(%x, %b)

Each op's own NumPy reference computes the value, so folding is as exact as the oracle. A result
that is larger than all its inputs together (an Expand, say) is kept as a node beyond ``limit``
bytes. Quantized weights stay integers: fold-quantization folds those that no product of integers
reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import Dequantize
from nrt.ir.value import Node
from nrt.passes.base import Note, Pass, PassResult

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants(Pass):
    """See the module.

    Attributes:
        limit: most bytes of a result that is larger than its inputs.
    """

    name: ClassVar[str] = "fold-constants"
    limit: int = 1 << 24

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        changed = False
        for node in graph.nodes:
            if not node.inputs or not all(v.is_constant for v in node.inputs):
                continue
            if isinstance(node.op, Dequantize):
                continue
            size = sum(v.nbytes for v in node.outputs)
            read = sum(v.nbytes for v in dict.fromkeys(node.inputs))
            if size > max(self.limit, read):
                reason = (
                    f"the result has {size} bytes, the inputs {read}, the limit is {self.limit}"
                )
                notes.append(self.refused(node, reason))
                continue
            notes.append(self.fired(node, "all inputs are constants"))
            self._fold(graph, node)
            changed = True
        if changed:
            graph.prune()
        return PassResult(graph, changed, tuple(notes))

    @staticmethod
    def _fold(graph: Graph, node: Node) -> None:
        arrays = [v.constant for v in node.inputs if v.constant is not None]
        results = node.op.reference(*arrays)
        for value, array in zip(node.outputs, results, strict=True):
            constant = graph.add_constant(value.name, array, value.layout)
            graph.replace_value(value, constant)
        graph.remove_node(node)
