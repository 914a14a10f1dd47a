"""Matrix product, with an optional pointwise epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import BYTES, DType, dtype_from_numpy
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    MANY,
    apply_epilogues,
    array_type,
    broadcast,
    check_epilogue,
    check_factors,
    check_tf32,
    dims,
    operand,
    product_types,
)
from nrt.ir.pointwise import Program

__all__ = ["MatMul"]


@dataclass(frozen=True)
class MatMul(Op):
    """``a @ b`` with NumPy's rules: leading dimensions broadcast, vectors are allowed.

    Inputs are ``a, b``; with an epilogue also the extras that its registers 1 and up read, each
    broadcasting against the output. The operands share a type, or are uint8 and int8. Sums are
    float32 or better; those of bytes are int32 and exact, and an epilogue reads them as float32.

    Attributes:
        trans_a: swap the last two dimensions of ``a`` first (a vector stays as it is).
        trans_b: the same for ``b``.
        epilogue: pointwise program on the accumulator.
        out_dtype: element type of the output; that of ``a`` when None, but int32 for bytes and fp16
            for fp8. Bytes give int32 (without an epilogue), fp16, bf16, fp32, int8 or uint8, and
            fp8 operands fp16, bf16, fp32 or fp8; behind an epilogue, whose scale is the result's,
            either also the other's. int8 and uint8 results are rounded to the nearest
            integer, half to even, and saturate to [-128, 127].
        tf32: fp32 operands may be rounded to tf32 (a mantissa of 10 bits) before products; the
            reference, and kernels that have no use for it, stay exact.
        second_dtype: element type of a second result, of the same shape: the epilogue's second
            output. None, as a rule: the epilogue has one output.
    """

    arity: ClassVar[tuple[int, int]] = (2, MANY)
    trans_a: bool = False
    trans_b: bool = False
    epilogue: Program | None = None
    out_dtype: DType | None = None
    tf32: bool = False
    second_dtype: DType | None = None

    def output_count(self) -> int:
        return 1 if self.second_dtype is None else 2

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        check_tf32(self.name, self.tf32, inputs[0].dtype)
        return self._results(*inputs)

    def _results(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        """`infer` for the reference, which computes tf32 problems in any type."""
        a, b, *extras = inputs
        check_factors(self.name, a=a, b=b)
        if a.rank == 0 or b.rank == 0:
            raise ShapeError(
                f"{self.name}: an operand is a scalar, expected rank 1 or more; use Mul"
            )
        left, right = _swap(a.shape, self.trans_a), _swap(b.shape, self.trans_b)
        rows, inner = (left[-2:-1], left[-1])
        depth, columns = (right[-2], right[-1:]) if b.rank > 1 else (right[0], ())
        if inner != depth:
            raise ShapeError(
                f"{self.name}: inner dimensions differ: {dims(left)} times {dims(right)} has "
                f"{inner} and {depth}"
            )
        shape = (*broadcast(self.name, left[:-2], right[:-2]), *rows, *columns)
        if self.epilogue is None and extras:
            raise ShapeError(
                f"{self.name}: got {len(inputs)} inputs, expected 2 without an epilogue"
            )
        if self.epilogue is not None:
            check_epilogue(self.name, self.epilogue, shape, extras, results=self.output_count())
        dtypes = product_types(self.name, a.dtype, self.out_dtype, self.second_dtype, self.epilogue)
        return tuple(TensorType(shape, dtype) for dtype in dtypes)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        types = self._results(*(array_type(i) for i in inputs))
        a, b, *extras = inputs
        left = np.swapaxes(a, -1, -2) if self.trans_a and a.ndim > 1 else a
        right = np.swapaxes(b, -1, -2) if self.trans_b and b.ndim > 1 else b
        product = np.asarray(np.matmul(operand(left), operand(right)))
        if dtype_from_numpy(a.dtype) in BYTES and self.epilogue is not None:
            product = product.astype(np.float32)
        return apply_epilogues(self.epilogue, product, extras, [t.dtype for t in types])


def _swap(shape: tuple[int, ...], swap: bool) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if swap and len(shape) > 1 else shape
