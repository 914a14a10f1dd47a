"""fold-pad: a Pad disappears into the window that reads it.

    conv(pad(x, p, 0), w; q)   = conv(x, w; p + q)
    maxpool(pad(x, p, v); q)   = maxpool(x; p + q)         if v = -∞, or v = 0 and x ≥ 0
    avgpool(pad(x, p, 0); q)   = avgpool(x; p + q, count_include_pad)

::

    before   %a = Pad(%x; (0, 0, 1, 1, 0, 0, 1, 1))   %y = Conv(%a, %w)
    after    %y = Conv(%x, %w; pads=(1, 1, 1, 1))

An average pool that leaves its own padding out of the divisor still counts the zeros of a Pad, so
the two can only be one where the pool has no padding of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.graph import Graph
from nrt.ir.ops import (
    Abs,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Dropout,
    Exp,
    Identity,
    MaxPool,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Softmax,
    Sqrt,
    Transpose,
)
from nrt.ir.value import Value
from nrt.passes.pattern import Match, Pat, Rest, Rule, RulePass, Var

__all__ = ["FoldPad", "never_negative"]

_NOT_NEGATIVE = (Relu, Sigmoid, Softmax, Abs, Exp, Sqrt)
_KEEPS_SIGN = (MaxPool, AveragePool, Concat, Reshape, Transpose, Slice, Identity, Dropout)


def never_negative(value: Value, depth: int = 16) -> bool:
    """Whether no element of ``value`` can be below zero, as far as its producers show."""
    if value.constant is not None:
        return bool(np.all(value.constant >= 0))
    if value.producer is None or depth == 0:
        return False
    op: Any = value.producer.op
    if isinstance(op, _NOT_NEGATIVE):
        return True
    if isinstance(op, Clip):
        return op.min is not None and op.min >= 0
    if isinstance(op, _KEEPS_SIGN) and getattr(op, "epilogue", None) is None:
        return all(never_negative(v, depth - 1) for v in value.producer.inputs)
    return False


def _spatial(pads: tuple[int, ...]) -> tuple[int, ...]:
    """The pads of the spatial dimensions, begins then ends, as convolutions and pools have them."""
    rank = len(pads) // 2
    return (*pads[2:rank], *pads[rank + 2 :])


def _sum(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


class _IntoWindow(Rule):
    """What the three rules share: the checks on the Pad, and the rewrite."""

    def check(self, graph: Graph, match: Match) -> str | None:
        pad: Any = match.op("pad")
        node = match.nodes["pad"]
        if pad.mode != "constant":
            return f"{node} has mode {pad.mode}; a window pads with a constant"
        if any(p < 0 for p in pad.pads):
            return f"{node} crops: it has negative pads"
        if sum(_spatial(pad.pads)) != sum(pad.pads):
            return f"{node} pads the batch or the channels"
        return self.check_value(match, pad.value)

    def check_value(self, match: Match, value: float) -> str | None:
        """Whether the window's own padding acts as ``value`` would."""
        return None if value == 0.0 else f"the padding is {value}, a convolution pads with 0"

    def folded(self, match: Match) -> Any:
        """The window's op with the Pad's padding added to its own."""
        op: Any = match.root.op
        return replace(op, pads=_sum(op.pads, _spatial(match.op("pad").pads)))

    def rewrite(self, graph: Graph, match: Match) -> str:
        pad = match.nodes["pad"]
        graph.replace_node(
            match.root,
            self.folded(match),
            [match.values["x"], *match.rest["others"]],
            also=[pad],
        )
        return f"took over the padding of {pad}"


class _IntoConv(_IntoWindow):
    pattern = Pat(Conv, Pat(Pad, Var("x"), name="pad"), Rest("others"))

    def check(self, graph: Graph, match: Match) -> str | None:
        op: Any = match.root.op
        if op.prologue is not None:
            return "a convolution's own zeros come after its prologue, those of the Pad before"
        return super().check(graph, match)


class _IntoPool(_IntoWindow):
    """Pools: the result's shape and the meaning of every window must stay."""

    def check(self, graph: Graph, match: Match) -> str | None:
        reason = super().check(graph, match)
        if reason is not None:
            return reason
        folded = self.folded(match)
        extents = folded.window().extents
        if any(p >= e for p, e in zip(folded.pads, (*extents, *extents), strict=True)):
            return "a window would lie in the padding alone"
        try:
            (type_,) = folded.infer(match.values["x"].type, *(v.type for v in match.rest["others"]))
        except ShapeError as error:
            return str(error)
        if type_ != match.root.output.type:
            return f"ceil_mode would drop a window: {type_} instead of {match.root.output.type}"
        return None


class _IntoMaxPool(_IntoPool):
    pattern = Pat(MaxPool, Pat(Pad, Var("x"), name="pad"), Rest("others"))

    def check_value(self, match: Match, value: float) -> str | None:
        if value == -np.inf:
            return None
        if value != 0.0:
            return f"the padding is {value}, a maximum ignores its own"
        if any(match.op("pad").pads) and not never_negative(match.values["x"]):
            return "the padding is 0 and the input may be negative: 0 could win the maximum"
        return None


class _IntoAveragePool(_IntoPool):
    pattern = Pat(AveragePool, Pat(Pad, Var("x"), name="pad"), Rest("others"))

    def check_value(self, match: Match, value: float) -> str | None:
        pool: Any = match.root.op
        if value != 0.0:
            return f"the padding is {value}, an average pool pads with 0"
        if any(pool.pads) and not pool.count_include_pad:
            return "the pool leaves its own padding out of the divisor, but counts the Pad's"
        if pool.ceil_mode:
            return "with ceil_mode the divisor of the last window would change"
        return None

    def folded(self, match: Match) -> Any:
        return replace(super().folded(match), count_include_pad=True)


@dataclass(frozen=True)
class FoldPad(RulePass):
    """See the module."""

    name: ClassVar[str] = "fold-pad"

    def rules(self) -> tuple[Rule, ...]:
        return (_IntoConv(), _IntoMaxPool(), _IntoAveragePool())
