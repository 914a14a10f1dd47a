"""fuse-pool-classifier: the global pooling before a classifier happens in the classifier's kernel.

    mean(x; h, w) @ w = pooled_matmul(x, w)

::

    before   %a = Reduce(%x; mean, (2, 3))   %b = Reshape(%a; (N, C))   %y = MatMul(%b, %w)
    after    %y = PooledMatMul(%x, %w; mean)

What the pooling does before (a normalization, a Relu) and the product after (bias, activation)
comes along. Every block of the fused kernel pools its image again: a choice, which a launch less
makes worthwhile for few images and the memory traffic forbids for many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.graph import Graph
from nrt.ir.ops import MatMul, PooledMatMul, Reduce, Reshape
from nrt.ir.ops.common import normalize_axes
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.pattern import refuse_second_result

__all__ = ["FusePoolClassifier"]

_KINDS = ("mean", "sum", "max")
_MAX_EXTRAS = 4
"""Operands of an epilogue that kernels of products have parameters for."""


def _key(node: Node, pool: Node) -> str:
    op, matmul = _op(pool), _op(node)
    programs = [p.text() if p else "" for p in (op.prologue, matmul.epilogue)]
    types = [str(v.type) for v in (*pool.inputs, *node.inputs[1:])]
    return f"{op.kind} {' '.join(types)} {programs}"


def _op(node: Node) -> Any:
    return node.op


def _producer(value: Value, graph: Graph) -> Node | None:
    """What computes ``value``, where nothing else reads it."""
    return value.producer if graph.single_use(value) else None


def _refusal(node: Node, pool: Node) -> str | None:
    """Why the product ``node`` of the pooled image ``pool`` cannot be one kernel with it."""
    several = refuse_second_result(node)
    if several is not None:
        return several
    x, w, op = pool.inputs[0], node.inputs[1], _op(pool)
    if op.kind not in _KINDS or op.epilogue is not None:
        return f"{pool} is a {op.kind}" + (" with an epilogue" if op.epilogue is not None else "")
    rank = len(x.shape)
    if rank < 3 or normalize_axes(op.name, op.axes, rank) != tuple(range(2, rank)):
        return f"{pool} reduces the dimensions {op.axes} of {list(x.shape)}, not all pixels"
    matmul = _op(node)
    if node.inputs[0].shape != x.shape[:2] or len(w.shape) != 2 or matmul.trans_a:
        return f"{node} does not multiply one row per image by a matrix"
    if not w.is_constant:
        return f"the weights '{w.name}' are computed at run time"
    dtypes = {x.dtype, w.dtype, pool.output.dtype}
    if len(dtypes) > 1 or not dtypes <= {FP32, FP16, BF16}:
        return f"operands are {', '.join(sorted(d.name for d in dtypes))}"
    if len(node.inputs) - 2 > _MAX_EXTRAS:
        return f"the epilogue reads {len(node.inputs) - 2} tensors, the limit is {_MAX_EXTRAS}"
    return None


@dataclass(frozen=True)
class FusePoolClassifier(ChoicePass):
    """See the module."""

    name: ClassVar[str] = "fuse-pool-classifier"

    def _candidates(self, graph: Graph) -> Iterator[tuple[Node, Node, Node | None]]:
        """Products of pooled images: the product, the pooling, and a Reshape in between."""
        for node in graph.nodes:
            if not isinstance(node.op, MatMul):
                continue
            before = _producer(node.inputs[0], graph)
            flatten = before if before is not None and isinstance(before.op, Reshape) else None
            pool = _producer(flatten.inputs[0], graph) if flatten is not None else before
            if pool is not None and isinstance(pool.op, Reduce):
                yield node, pool, flatten

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(
            Site(_key(node, pool), frozenset({*node.origin, *pool.origin}))
            for node, pool, _ in self._candidates(graph)
            if _refusal(node, pool) is None
        )

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        for node, pool, flatten in list(self._candidates(graph)):
            reason = _refusal(node, pool)
            if reason is None and _key(node, pool) in self.skip:
                reason = f"{pool} is left apart"
            if reason is not None:
                notes.append(self.refused(node, reason))
                continue
            op, matmul = _op(pool), _op(node)
            dtype, own = node.output.dtype, pool.inputs[0].dtype
            new = PooledMatMul(
                op.kind,
                matmul.trans_b,
                op.prologue,
                matmul.epilogue,
                None if dtype is own else dtype,
            )
            x, *before = pool.inputs
            _, w, *after = node.inputs
            also = [pool] if flatten is None else [pool, flatten]
            fused = graph.replace_node(node, new, [x, w, *before, *after], also=also)
            notes.append(self.fired(fused, f"took in {pool}"))
        return PassResult(graph, any(n.kind == "fired" for n in notes), tuple(notes))
