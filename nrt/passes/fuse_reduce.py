"""fuse-reduce: what happens to a reduction's elements and to its results happens on the way.

    f(reduce(g(x, p)), e) = reduce(x, p, e; prologue = g, epilogue = f)

::

    before   %a = Pointwise(%x, %s; relu(x · s))   %b = Reduce(%a; mean)   %y = Mul(%b, %c)
    after    %y = Reduce(%x, %s, %c; mean, prologue = relu(x0 · x1), epilogue = mul(x0, x1))

Each element is visited once, so nothing is computed twice, and what was written and read again in
between is not. The normalization and Relu at the end of a DenseNet become part of its pooling. An
operand of the prologue has to vary along all reduced dimensions or along none of them, or the
reduction would not be one loop any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import Elementwise, Reduce
from nrt.ir.ops.common import normalize_axes
from nrt.ir.pointwise import Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.fusion import (
    FuseAfter,
    FusionLimits,
    joined,
    own_program,
    too_large,
    trimmed,
    unsafe_intermediate,
)
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule

__all__ = ["FuseReduce"]


def _main_operand(node: Node) -> Value | None:
    """The operand of an elementwise node that gives it its shape."""
    y = node.output
    return next(
        (v for v in node.inputs if v.shape == y.shape and v.dtype.is_float and not v.is_constant),
        None,
    )


def _varies_partly(value: Value, shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether ``value``, broadcast to ``shape``, varies along some of ``axes`` and not the rest."""
    own = (1,) * (len(shape) - len(value.shape)) + value.shape
    return len({own[a] != 1 for a in axes if shape[a] != 1}) > 1


def _is_ragged(value: Value, shape: Sequence[int]) -> bool:
    """Whether a constant varies along several dimensions: it lies row-major whatever x does."""
    return value.is_constant and sum(d != 1 for d in value.shape) > 1 and len(shape) == 4


class _Prologue(Rule):
    """``reduce(g(x, p))``."""

    pattern = Pat(
        Reduce,
        Pat(Elementwise, Rest("operands"), name="inner", only_use=True),
        Rest("extras"),
    )

    def __init__(self, limits: FusionLimits) -> None:
        self.limits = limits

    def check(self, graph: Graph, match: Match) -> str | None:
        inner, op = match.nodes["inner"], match.root.op
        assert isinstance(op, Reduce)
        result = inner.output
        if not result.dtype.is_float:
            return f"the result of {inner} is {result.dtype}, a prologue computes floats"
        main = _main_operand(inner)
        if main is None:
            return f"no float operand of {inner} has its shape {list(result.shape)}"
        if result in match.rest["extras"]:
            return f"the result of {inner} is read beside the reduction too"
        axes = normalize_axes(op.name, op.axes, len(result.shape))
        for value in inner.inputs:
            if _varies_partly(value, result.shape, axes):
                return f"'{value.name}' varies along some of the reduced dimensions only"
            if _is_ragged(value, result.shape):
                return f"constant '{value.name}' varies along several dimensions of an image"
        program, extras = self._joined(match, main)
        _, _, after = op.parts(match.root.inputs)
        return unsafe_intermediate(
            result.dtype, [v.dtype for v in (*inner.inputs, match.root.output)]
        ) or too_large(self.limits, program, len(extras) + len(after))

    @staticmethod
    def _joined(match: Match, main: Value) -> tuple[Program, tuple[Value, ...]]:
        inner, op = match.nodes["inner"], match.root.op
        assert isinstance(op, Reduce)
        x, before, _ = op.parts(match.root.inputs)
        return joined(
            own_program(inner),
            [None if v is main else v for v in inner.inputs],
            op.prologue or identity(),
            (x, *before),
            hole=x,
        )

    def rewrite(self, graph: Graph, match: Match) -> str:
        inner, op = match.nodes["inner"], match.root.op
        assert isinstance(op, Reduce)
        main = _main_operand(inner)
        assert main is not None
        program, before = self._joined(match, main)
        _, _, after = op.parts(match.root.inputs)
        dtype = match.root.output.dtype
        new = replace(op, prologue=program, out_dtype=None if dtype is main.dtype else dtype)
        inputs = [main, *(trimmed(graph, v) for v in before), *after]
        graph.replace_node(match.root, new, inputs, also=[inner])
        return f"took in {inner} before it: {own_program(inner).text()}"


class _Epilogue(FuseAfter):
    pattern = Pat(
        Elementwise, Anywhere(Pat(Reduce, Rest("operands"), name="anchor", only_use=True))
    )


@dataclass(frozen=True)
class FuseReduce(FusionLimits):
    """See the module."""

    name: ClassVar[str] = "fuse-reduce"

    def rules(self) -> tuple[Rule, ...]:
        return (_Prologue(self), _Epilogue(self))
