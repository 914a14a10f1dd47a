"""fuse-average-pool: the mean over windows of a linear 1x1 convolution is one convolution.

    mean(conv(x, w); k x k, stride k) = conv(x, w / k²; k x k, stride k)

::

    before   %a = Conv(%x, %w[K,C,1,1])   %y = AveragePool(%a; 2x2, stride 2)
    after    %y = Conv(%x, %w'[K,C,2,2]; stride 2)

As many products as before, but the large image between the two is neither written nor read, and a
launch less. What ends the convolution comes along where a mean does not change it: numbers per
channel that are added or multiplied. So does what the pooling ends with, behind it.

A choice all the same: sums become fewer and longer, which fills a GPU worse where images are small.
Pooling first, ``conv(mean(x), w)``, would need k² times fewer products. It would save no launch,
though, and pool the larger tensor: networks that do this have more channels before the convolution
than behind it (the transitions of DenseNet, Huang et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import BF16, FP16, FP32, FP64
from nrt.ir.graph import Graph
from nrt.ir.ops import AveragePool, Conv
from nrt.ir.ops.common import product_type
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Instr, Program, identity
from nrt.ir.text import op_text
from nrt.ir.value import Node, Value
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.fusion import FusionLimits, joined, too_large, trimmed, unsafe_intermediate
from nrt.passes.pattern import Match, Pat, Rest, Rule, matches, refuse_second_result

__all__ = ["FuseAveragePool"]

_FLOATS = (FP64, FP32, FP16, BF16)


def _is_affine(program: Program) -> bool:
    """Whether the result is ``a · x0 + b``, with ``a`` and ``b`` of the other inputs."""
    count = len(program.inputs)
    moving = {0}

    def step(register: int, instr: Instr) -> bool:
        found = [a in moving for a in instr.args]
        if not any(found):
            return True
        moving.add(register)
        match instr.opcode:
            case "add" | "sub" | "neg" | "to_f":
                return True
            case "mul":
                return not all(found)
            case "div":
                return not found[1]
            case _:
                return False

    steps = all(step(count + index, instr) for index, instr in enumerate(program.instrs))
    return steps and set(program.kinds) == {"f"}


def _refuse_pool(pool: Node) -> str | None:
    """Why the windows of a pooling do not lie side by side, all of them whole."""
    op: Any = pool.op
    size, out = pool.inputs[0].shape[2:], pool.output.shape[2:]
    plain = op.strides == op.kernel and not any(op.pads) and all(d == 1 for d in op.dilations)
    if not plain or any(s // k != n for s, k, n in zip(size, op.kernel, out, strict=True)):
        return f"the windows of {pool} overlap, have gaps or reach over the border"
    return None


def _refuse_conv(conv: Node) -> str | None:
    """Why a convolution is not one product per pixel with constant weights, and linear."""
    op: Any = conv.op
    w = conv.inputs[1]
    several = refuse_second_result(conv)
    if several is not None:
        return several
    if any(d != 1 for d in (*w.shape[2:], *op.strides)) or any(op.pads):
        return f"{conv} has a filter, strides or padding, expected a plain 1x1 convolution"
    if not w.is_constant:
        return f"the weights '{w.name}' of {conv} are computed at run time"
    if w.dtype not in _FLOATS or conv.output.dtype not in _FLOATS:
        return f"{conv} makes {conv.output.dtype} of {w.dtype}, expected floats of 16 bits or more"
    if op.epilogue is None:
        return None
    if not _is_affine(op.epilogue):
        return f"{conv} ends in {op.epilogue.text()}, whose mean is not that of its result"
    spatial = len(w.shape) - 2
    for value in conv.inputs[epilogue_slot(op) :]:
        if any(d != 1 for d in value.shape[-spatial:]):
            return f"{conv} ends with '{value.name}', which may differ from pixel to pixel"
    return None


class _Fuse(Rule):
    """``mean(conv(x, w)) = conv(x, w / k²)``."""

    pattern = Pat(
        AveragePool, Pat(Conv, Rest("operands"), name="conv", only_use=True), Rest("extras")
    )

    def __init__(self, owner: FuseAveragePool) -> None:
        self.owner = owner

    def check(self, graph: Graph, match: Match) -> str | None:
        reason = self.mismatch(match)
        if reason is None and _site(match).key in self.owner.skip:
            return f"measured: {match.root} is faster by itself"
        return reason

    def mismatch(self, match: Match) -> str | None:
        """Why the rewrite is not valid here."""
        pool, conv = match.root, match.nodes["conv"]
        reason = _refuse_pool(pool) or _refuse_conv(conv)
        if reason is not None:
            return reason
        involved = [v.dtype for v in (*conv.inputs, *pool.inputs, pool.output)]
        reason = unsafe_intermediate(conv.output.dtype, involved)
        if reason is not None:
            return reason
        op: Any = pool.op
        if math.prod(op.kernel) > self.owner.max_window:
            return (
                f"the weights of {conv} would grow by {math.prod(op.kernel)}, the limit is "
                f"{self.owner.max_window}"
            )
        if op.epilogue is None:
            return None
        if _has_bias(conv):
            return f"the bias of {conv} is no step of an epilogue yet, that of {pool} follows it"
        program, extras = _end(match)
        count = epilogue_slot(conv.op) - 2 + len(extras)
        if count > self.owner.max_operands:
            return (
                f"the prologue and the epilogue would read {count} tensors, the limit is "
                f"{self.owner.max_operands}"
            )
        return too_large(self.owner, program, len(extras))

    def rewrite(self, graph: Graph, match: Match) -> str:
        pool, conv = match.root, match.nodes["conv"]
        window: Any = pool.op
        op: Any = conv.op
        first = epilogue_slot(op)
        x, w, *before = conv.inputs[:first]
        weights = graph.add_constant(w.name, _weights(w, window.kernel))
        dtype = pool.output.dtype
        if window.epilogue is None:
            # Its own end, or a plain bias.
            program, after = op.epilogue, conv.inputs[first:]
        else:
            program, extras = _end(match)
            after = tuple(trimmed(graph, v) for v in extras)
        own = product_type(op.name, x.dtype, None, None)
        op = replace(
            op, strides=window.kernel, epilogue=program, out_dtype=None if dtype is own else dtype
        )
        graph.replace_node(pool, op, [x, weights, *before, *after], also=[conv], name=conv.name)
        size = "x".join(map(str, window.kernel))
        return f"took in {pool}: a filter of {size} at a stride of its own size"


def _has_bias(conv: Node) -> bool:
    op: Any = conv.op
    return op.epilogue is None and len(conv.inputs) > epilogue_slot(op)


def _end(match: Match) -> tuple[Program, tuple[Value, ...]]:
    """The epilogue of the pooling behind that of the convolution, and its operands."""
    pool, conv = match.root, match.nodes["conv"]
    op, own = match.op("conv"), pool.op.attributes()
    return joined(
        op.epilogue or identity(),
        (None, *conv.inputs[epilogue_slot(op) :]),
        own["epilogue"],
        (conv.output, *pool.inputs[1:]),
        hole=conv.output,
    )


def _weights(w: Value, kernel: tuple[int, ...]) -> Any:
    """``w[K, C, *1]`` as ``[K, C, *kernel]``, each a share of the mean."""
    assert w.constant is not None
    share = np.asarray(w.constant, np.float64) / math.prod(kernel)
    return np.broadcast_to(share, (*w.shape[:2], *kernel)).astype(w.dtype.numpy)


def _site(match: Match) -> Site:
    pool, conv = match.root, match.nodes["conv"]
    op = match.op("conv")
    # A prologue is no part of the key: left apart, the same convolution gets one in the next sweep.
    inputs = (*conv.inputs[:2], *conv.inputs[epilogue_slot(op) :], *pool.inputs)
    types = ", ".join(str(v.type) for v in inputs)
    key = f"{op_text(replace(op, prologue=None))} | {op_text(pool.op)} | {types}"
    return Site(key, frozenset((*pool.origin, *conv.origin)))


@dataclass(frozen=True)
class FuseAveragePool(FusionLimits, ChoicePass):
    """See the module.

    Attributes:
        max_operands: most tensors that prologue and epilogue read together; kernels have as many
            pointers.
        max_window: most pixels of a window; weights are stored as often.
    """

    name: ClassVar[str] = "fuse-average-pool"
    max_operands: int = 4
    max_window: int = 16

    def rules(self) -> tuple[Rule, ...]:
        return (_Fuse(self),)

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        rule = _Fuse(self)
        return tuple(
            _site(match)
            for node in graph.nodes
            for match in matches(graph, rule.pattern, node)
            if match.blocked is None and rule.mismatch(match) is None
        )
