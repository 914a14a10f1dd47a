"""fuse-pool-epilogue: what follows a pooling happens before its result is stored.

    f(pool(x), e) = pool(x, e; epilogue = f)      max_pool(f(x)) = f(max_pool(x))  for f that rises

::

    before   %a = Relu(%x)      %b = MaxPool(%a)   %y = Mul(%b, %s)
    after    %y = MaxPool(%x, %s; epilogue = max(x0, 0.0); mul(r2, x1))

A function that never falls commutes with a maximum, so it moves behind the pool, where there are
fewer elements, and then into it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import FP64
from nrt.ir.graph import Graph
from nrt.ir.ops import AveragePool, Elementwise, MaxPool
from nrt.ir.pointwise import Instr, Program
from nrt.ir.value import Node, Value
from nrt.passes.fusion import FuseAfter, FusionLimits, own_program
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule

__all__ = ["FusePoolEpilogue"]

_RISING = frozenset(("tanh", "sigmoid", "exp", "erf", "floor", "ceil", "round", "fp16", "to_f"))
"""Functions of one argument that never fall, and are defined everywhere."""

_MAX_EXTRAS = 4
"""Operands of an epilogue that pool kernels have parameters for."""


def _rises(program: Program, x: int, positive: frozenset[int]) -> bool:
    """Whether the result never falls where input ``x`` rises and the others stay.

    ``positive``: inputs that are known to be above zero.
    """
    count = len(program.inputs)
    moving = {x}
    above = set(positive)

    def step(index: int, instr: Instr) -> bool:
        """Whether this instruction rises with ``x`` too, or does not depend on it."""
        register, args = count + index, instr.args
        if not moving & set(args):
            number = instr.imm
            if instr.opcode == "const" and isinstance(number, float) and number > 0:
                above.add(register)
            return True
        moving.add(register)
        match instr.opcode:
            case "add" | "max" | "min":
                return True
            case "sub":
                return args[1] not in moving
            case "mul":
                return any(a in moving and b in above for a, b in (args, args[::-1]))
            case "div":
                return args[1] in above
            case opcode:
                return opcode in _RISING

    kinds = set(program.kinds)
    rising = all(step(index, instr) for index, instr in enumerate(program.instrs))
    return kinds == {"f"} and rising and program.outputs[0] in moving


def _is_positive(value: Value) -> bool:
    array = value.constant
    return array is not None and bool(np.all(array > 0))


class _Behind(Rule):
    """``max_pool(f(x))``; f may read constants that are the same for all pixels."""

    pattern = Pat(MaxPool, Pat(Elementwise, Rest("operands"), name="inner", only_use=True))

    def check(self, graph: Graph, match: Match) -> str | None:
        inner, pool = match.nodes["inner"], match.root
        op: Any = pool.op
        x = self._main(inner)
        if not inner.output.dtype.is_float or x is None:
            return f"{inner} has no float operand of its own shape and type"
        if math.prod(pool.output.shape) >= math.prod(x.shape):
            return "the pool does not make the image smaller"
        if any(p >= e for p, e in zip(op.pads, op.window().extents * 2, strict=True)):
            return "a window may lie in the padding alone"
        spatial = len(op.kernel)
        for value in inner.inputs:
            if value is not x and (
                not value.is_constant or any(d != 1 for d in value.shape[-spatial:])
            ):
                return f"{inner} reads '{value.name}', which may differ from pixel to pixel"
        slots = [k for k, v in enumerate(inner.inputs) if v is x]
        positive = frozenset(k for k, v in enumerate(inner.inputs) if _is_positive(v))
        if len(slots) > 1 or not _rises(own_program(inner), slots[0], positive):
            return f"{inner} may fall where its input rises"
        return None

    @staticmethod
    def _main(inner: Node) -> Value | None:
        y = inner.output
        found = [v for v in inner.inputs if v.type == y.type and not v.is_constant]
        return found[0] if found else None

    def rewrite(self, graph: Graph, match: Match) -> str:
        inner, pool = match.nodes["inner"], match.root
        x = self._main(inner)
        assert x is not None
        smaller = graph.add_node(pool.op, [x], name=pool.name, origin=pool.origin)
        inputs = [smaller.output if v is x else v for v in inner.inputs]
        graph.replace_node(pool, inner.op, inputs, also=[inner], name=inner.name)
        return f"moved before {inner}, which rises with its input"


class _Epilogue(FuseAfter):
    pattern = Pat(
        Elementwise,
        Anywhere(Pat((MaxPool, AveragePool), Rest("operands"), name="anchor", only_use=True)),
    )
    integers = True

    def check(self, graph: Graph, match: Match) -> str | None:
        anchor = match.nodes["anchor"]
        if anchor.output.dtype is FP64:
            return f"the result of {anchor} is fp64, pool kernels end in fp32"
        reason = super().check(graph, match)
        _, extras = self._joined(match)
        if reason is None and len(extras) > _MAX_EXTRAS:
            return f"the epilogue would read {len(extras)} tensors, the limit is {_MAX_EXTRAS}"
        return reason


@dataclass(frozen=True)
class FusePoolEpilogue(FusionLimits):
    """See the module."""

    name: ClassVar[str] = "fuse-pool-epilogue"

    def rules(self) -> tuple[Rule, ...]:
        return (_Behind(), _Epilogue(self))
