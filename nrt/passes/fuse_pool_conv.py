"""fuse-pool-conv: the global pooling behind a convolution happens in the convolution's kernel.

    mean(conv(x, w; e); h, w) = pooled_conv(x, w; e)

::

    before   %a = Conv(%x, %w; e)          %b = Reduce(%a; mean, (2, 3))
    after    %p = PooledConv(%x, %w; e)    %b = Reshape(%p)

The image between them is neither written nor read. But a tile of the product then has to be one
image, of which 7x7 pixels fill 49 rows of 64, and there are fewer kernels to choose from: a choice.
It takes what `fuse-pool-classifier` left; where that one pays, there is no pooling any more. Runs
when types and layouts are settled, so that nothing else has to know the op.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, PooledConv, Reduce, Reshape
from nrt.ir.ops.common import normalize_axes
from nrt.ir.value import Node
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.pattern import refuse_second_result

__all__ = ["FusePoolConv"]

_KINDS = ("mean", "sum")
_PIXELS = range(9, 257)
"""Of an image that fills a tile of a product to a quarter at least."""


def _op(node: Node) -> Any:
    return node.op


def _key(pool: Node, conv: Node) -> str:
    op = _fused(pool, conv)
    program = op.epilogue.text() if op.epilogue is not None else ""
    sizes = f"{op.strides} {op.pads} {op.dilations} tf32={op.tf32}"
    types = [f"{v.type}{v.layout or ''}" for v in (*conv.inputs, pool.output)]
    return f"{op.kind} {sizes} {' '.join(types)} [{program}]"


def _fused(pool: Node, conv: Node) -> PooledConv:
    op, own, dtype = _op(conv), conv.inputs[0].dtype, pool.output.dtype
    return PooledConv(
        _op(pool).kind, op.strides, op.pads, op.dilations, op.epilogue,
        None if dtype is own else dtype, op.tf32,
    )  # fmt: skip


def _refusal(graph: Graph, pool: Node, conv: Node) -> str | None:
    """Why ``pool`` cannot happen in ``conv``."""
    several = refuse_second_result(conv)
    if several is not None:
        return several
    op, first, image = _op(pool), _op(conv), conv.output.shape
    if op.kind not in _KINDS or op.prologue is not None or op.epilogue is not None:
        programs = op.prologue is not None or op.epilogue is not None
        return f"it is a {op.kind}" + (" with a program" if programs else "")
    if len(image) != 4 or normalize_axes(op.name, op.axes, 4) != (2, 3):
        return f"it reduces the dimensions {op.axes} of {list(image)}, not all pixels of an image"
    if not graph.single_use(conv.output):
        return f"{conv} is read elsewhere too"
    if first.groups > 1 or first.prologue is not None:
        return f"{conv} has " + ("groups" if first.groups > 1 else "a prologue")
    own = conv.inputs[0].dtype
    if own not in (FP16, BF16) and not (own is FP32 and first.tf32):
        return f"{conv} multiplies {own}, no tile of tensor cores"
    if not conv.inputs[1].is_constant:
        return f"the weights '{conv.inputs[1].name}' are computed at run time"
    if math.prod(image[2:]) not in _PIXELS:
        return f"images have {math.prod(image[2:])} pixels, expected {_PIXELS[0]} to {_PIXELS[-1]}"
    return None


@dataclass(frozen=True)
class FusePoolConv(ChoicePass):
    """See the module."""

    name: ClassVar[str] = "fuse-pool-conv"

    def _candidates(self, graph: Graph) -> Iterator[tuple[Node, Node]]:
        """Reductions of what a convolution computes."""
        for node in graph.nodes:
            before = node.inputs[0].producer if isinstance(node.op, Reduce) else None
            if before is not None and isinstance(before.op, Conv):
                yield node, before

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(
            Site(_key(pool, conv), frozenset({*pool.origin, *conv.origin}))
            for pool, conv in self._candidates(graph)
            if _refusal(graph, pool, conv) is None
        )

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        for pool, conv in list(self._candidates(graph)):
            reason = _refusal(graph, pool, conv)
            if reason is None and _key(pool, conv) in self.skip:
                reason = f"{conv} is left apart"
            if reason is not None:
                notes.append(self.refused(pool, reason))
                continue
            fused = self._fuse(graph, pool, conv)
            notes.append(self.fired(fused, f"took in {pool}"))
        return PassResult(graph, any(n.kind == "fired" for n in notes), tuple(notes))

    @staticmethod
    def _fuse(graph: Graph, pool: Node, conv: Node) -> Node:
        op, shape = _fused(pool, conv), pool.output.shape
        if len(shape) == 2:
            return graph.replace_node(pool, op, conv.inputs, also=[conv], name=conv.name)
        origin = (*conv.origin, *pool.origin)
        fused = graph.add_node(op, conv.inputs, name=f"{conv.name}~", origin=origin)
        name = conv.name
        graph.replace_node(pool, Reshape(shape), [fused.output])
        graph.rename(fused, name)
        return fused
