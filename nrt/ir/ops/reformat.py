"""The op that passes insert where precision or memory layout changes."""

from __future__ import annotations

from dataclasses import dataclass

from nrt.dtypes import DType
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import cast

__all__ = ["Reformat"]


@dataclass(frozen=True)
class Reformat(Op):
    """Change of element type, of memory layout, or both.

    Logically a cast; the layout stands on the output value, since shapes are logical everywhere.

    Attributes:
        dtype: element type of the output.
    """

    dtype: DType

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        return (TensorType(x.shape, self.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return (cast(x, self.dtype),)
