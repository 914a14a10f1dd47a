"""fuse-matmul-epilogue: what follows a matrix product happens before its result is stored.

    gelu(x @ w + c) + r = matmul(x, w; add c; gelu; add r)

::

    before   %a = MatMul(%x, %w)   %b = Add(%a, %c)   %y = Tanh(%b)
    after    %y = MatMul(%x, %w, %c; epilogue = add(x0, x1); tanh(r2))

The same rule as for convolutions; see `nrt.passes.fusion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.ops import Elementwise, MatMul
from nrt.passes.fusion import FuseEpilogue, FusionLimits
from nrt.passes.pattern import Anywhere, Pat, Rest, Rule

__all__ = ["FuseMatMulEpilogue"]


class _Fuse(FuseEpilogue):
    pattern = Pat(
        Elementwise, Anywhere(Pat(MatMul, Rest("operands"), name="anchor", only_use=True))
    )


@dataclass(frozen=True)
class FuseMatMulEpilogue(FusionLimits):
    """See the module.

    Attributes:
        max_inputs: most tensors that the epilogue reads; kernels have as many pointers.
    """

    max_inputs: int = 4
    name: ClassVar[str] = "fuse-matmul-epilogue"

    def rules(self) -> tuple[Rule, ...]:
        return (_Fuse(self),)
