"""fuse-conv-epilogue: what follows a convolution happens before its result is stored.

    relu(conv(x, w) + c + r) = conv(x, w; add c; add r; relu)

::

    before   %a = Conv(%x, %w, %c)   %b = Add(%a, %r)   %y = Relu(%b)
    after    %y = Conv(%x, %w, %c, %r; epilogue = add(x0, x1); add(r3, x2); max(r4, 0.0))

A chain of elementwise nodes is taken in one by one, as far as each is the only user of the one
before. Of two convolutions that meet in an Add, the later one takes it: the other's result is there
by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.ir.ops import Conv, ConvTranspose, Elementwise
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.value import Node
from nrt.passes.fusion import BiasIntoEpilogue, FuseEpilogue, FusionLimits
from nrt.passes.pattern import Anywhere, Pat, Rest, Rule, Var

__all__ = ["FuseConvEpilogue"]


def _plain(node: Node) -> bool:
    op: Any = node.op
    # Behind a prologue's operands a bias has another slot; then it is in an epilogue already.
    return op.epilogue is None and epilogue_slot(op) == 2


class _Bias(BiasIntoEpilogue):
    pattern = Pat((Conv, ConvTranspose), Var("x"), Var("w"), Var("bias"), where=_plain)


class _Fuse(FuseEpilogue):
    pattern = Pat(
        Elementwise,
        Anywhere(Pat((Conv, ConvTranspose), Rest("operands"), name="anchor", only_use=True)),
    )


@dataclass(frozen=True)
class FuseConvEpilogue(FusionLimits):
    """See the module.

    Attributes:
        max_inputs: most tensors that the epilogue reads; kernels have as many pointers.
    """

    max_inputs: int = 4
    name: ClassVar[str] = "fuse-conv-epilogue"

    def rules(self) -> tuple[Rule, ...]:
        return (_Bias(), _Fuse(self))
