"""fuse-conv-prologue: what comes before a convolution happens as it loads its input.

    conv(relu(a · x + b), w) = conv(x, w; a; b; relu(a · x + b))        a, b: a number per channel

::

    before   %p = Pointwise(%x, %a, %b; mul(x0, x1); add(r3, x2); max(r4, 0.0))   %y = Conv(%p, %w)
    after    %y = Conv(%x, %w, %a, %b; prologue = mul(x0, x1); add(r3, x2); max(r4, 0.0))

A network with activations before its convolutions (DenseNet, ResNet v2) normalizes what a Concat or
a sum has joined: no producer can take that in, since each of its readers has other numbers. A 1x1
convolution reads every element once per tile of its output channels, and so computes the program
about as often as a launch of its own would. So does one whose windows do not overlap, as a pooling
in it leaves them (`fuse_average_pool`); a 3x3 would compute it nine times.

Where several such convolutions read one such result, each computes it. Nothing is gained while
anything else needs the result in memory. Whether it pays on a device is a choice: see `choice`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nrt.dtypes import FP8E4M3
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, Elementwise
from nrt.ir.pointwise import Program, identity
from nrt.ir.text import op_text
from nrt.ir.value import Node, Value
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.fusion import FusionLimits, joined, own_program, too_large, trimmed
from nrt.passes.pattern import Match, Pat, Rest, Rule, matches, refuse_second_result

__all__ = ["FuseConvPrologue"]


def _open(node: Node) -> bool:
    """Whether a convolution has no prologue yet and reads every element of its input once."""
    op: Any = node.op
    extents = op.window(node.inputs[1].shape[2:]).extents
    return (
        op.prologue is None
        and op.groups == 1
        and not any(op.pads)
        and all(extent <= step for extent, step in zip(extents, op.strides, strict=True))
    )


class _Fuse(Rule):
    """``conv(f(x), w) = conv(x, w; f)``."""

    pattern = Pat(Conv, Pat(Elementwise, Rest("operands"), name="inner"), Rest("others"))

    def __init__(self, owner: FuseConvPrologue) -> None:
        self.owner = owner

    def check(self, graph: Graph, match: Match) -> str | None:
        reason = self.mismatch(graph, match)
        if reason is None and _site(match).key in self.owner.skip:
            return f"measured: {match.nodes['inner']} is faster by itself"
        return reason

    def mismatch(self, graph: Graph, match: Match) -> str | None:
        """Why the rewrite is not valid or gains nothing here."""
        conv, inner = match.root, match.nodes["inner"]
        several = refuse_second_result(conv)
        if several is not None:
            return several
        if not _open(conv):
            return (
                f"{conv} has windows that overlap, padding, groups or a prologue: only where none "
                "does is a prologue computed once per element"
            )
        if graph.is_output(inner.output):
            return f"the result of {inner} is an output of the graph"
        for reader, slot in graph.consumers(inner.output):
            several = refuse_second_result(reader)
            if several is not None:
                return several
            if not (isinstance(reader.op, Conv) and slot == 0 and _open(reader)):
                return f"the result of {inner} is used elsewhere too, by {reader}"
        image = _image(inner)
        if image is None or image.shape != inner.output.shape:
            return f"{inner} reads other images than one of {list(inner.output.shape)}"
        if image.dtype is not inner.output.dtype or not image.dtype.is_float:
            return (
                f"{inner} makes {inner.output.dtype} of {image.dtype}, a prologue keeps its float "
                "type"
            )
        if image.dtype is FP8E4M3:
            return f"{inner} computes on fp8, a prologue does not"
        channels = (1, image.shape[1], *[1] * (len(image.shape) - 2))
        for value in inner.inputs:
            if value is image:
                continue
            if not value.dtype.is_float or not _broadcasts(value, channels):
                return f"{inner} reads '{value.name}' {value.type}, which is no number per channel"
        program, operands = _program(inner, image)
        count = len(operands) + len(conv.inputs) - 2
        if count > self.owner.max_operands:
            return (
                f"the prologue and the epilogue would read {count} tensors, the limit is "
                f"{self.owner.max_operands}"
            )
        return too_large(self.owner, program, len(operands))

    def rewrite(self, graph: Graph, match: Match) -> str:
        conv, inner = match.root, match.nodes["inner"]
        image = _image(inner)
        assert image is not None
        program, operands = _program(inner, image)
        op: Any = conv.op
        rest = conv.inputs[2:]
        inputs = [image, conv.inputs[1], *(trimmed(graph, v) for v in operands), *rest]
        graph.replace_node(conv, replace(op, prologue=program), inputs, also=[inner])
        return f"took in {inner} before it: {program.text()}"


def _image(inner: Node) -> Value | None:
    """The one input of an elementwise node that is no constant; None if there are others."""
    found = dict.fromkeys(v for v in inner.inputs if not v.is_constant)
    return next(iter(found)) if len(found) == 1 else None


def _broadcasts(value: Value, channels: tuple[int, ...]) -> bool:
    shape = (*[1] * (len(channels) - len(value.shape)), *value.shape)
    return len(shape) == len(channels) and all(
        d in (1, c) for d, c in zip(shape, channels, strict=True)
    )


def _program(inner: Node, image: Value) -> tuple[Program, tuple[Value, ...]]:
    """The prologue, and the values of its registers 1 and up."""
    return joined(
        own_program(inner),
        [None if v is image else v for v in inner.inputs],
        identity(),
        [inner.output],
        hole=inner.output,
    )


def _site(match: Match) -> Site:
    conv, inner = match.root, match.nodes["inner"]
    types = ", ".join(str(v.type) for v in (*inner.inputs, *conv.inputs[1:]))
    key = f"{own_program(inner).text()} | {op_text(conv.op)} | {types}"
    return Site(key, frozenset((*inner.origin, *conv.origin)))


@dataclass(frozen=True)
class FuseConvPrologue(FusionLimits, ChoicePass):
    """See the module.

    Attributes:
        max_operands: most tensors that prologue and epilogue read together; kernels have as many
            pointers.
    """

    name: ClassVar[str] = "fuse-conv-prologue"
    max_operands: int = 4

    def rules(self) -> tuple[Rule, ...]:
        return (_Fuse(self),)

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        rule = _Fuse(self)
        return tuple(
            _site(match)
            for node in graph.nodes
            for match in matches(graph, rule.pattern, node)
            if rule.mismatch(graph, match) is None
        )
