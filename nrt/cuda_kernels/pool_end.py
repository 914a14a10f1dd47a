"""The end of a pool kernel that has an epilogue, or stores another type than it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, epilogue_extras, make_store
from nrt.cuda_kernels.variant import Arg, In, Null, Out
from nrt.dtypes import FP64, DType
from nrt.ir.ops import AveragePool, MaxPool
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["PoolEnd", "pool_args", "pool_end", "pool_signature", "refuse_end"]


@dataclass(frozen=True)
class PoolEnd:
    """What happens to a result; part of the compile key.

    Attributes:
        dtype: of the output.
        program: the epilogue; None if only the type changes.
        extras: how it reads its operands.
    """

    dtype: DType
    program: Program | None
    extras: tuple[Extra, ...]

    @property
    def pointers(self) -> list[str]:
        """The kernel's parameters for the operands."""
        return [f"e{k}" for k in range(MAX_EXTRAS)]

    def namespace(self, width: int) -> dict[str, Any]:
        """The name that `store` uses, for ``width`` channels at a time."""
        return {"store_end": make_store(self.program, self.extras, self.dtype, width)}

    def store(self, values: Sequence[str], row: str, channel: str, offset: str) -> str:
        """A line that ends ``values``, floats of neighbouring channels from ``channel`` on.

        ``row`` numbers the output's pixels, all images in turn; ``offset`` is where the first goes.
        """
        return f"store_end({', '.join(values)}, {row}, {channel}, {offset}, y, " + (
            f"{', '.join(self.pointers)})"
        )


def pool_end(problem: Problem) -> PoolEnd | None:
    """None where results are stored as they are."""
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, MaxPool | AveragePool)
    if op.epilogue is None and x.dtype is y.dtype:
        return None
    return PoolEnd(y.dtype, op.epilogue, epilogue_extras(problem.inputs[1:], y, 1))


def pool_args(problem: Problem, end: PoolEnd | None) -> tuple[Arg, ...]:
    """The launch arguments of the tensors."""
    if end is None:
        return (In(0), Out())
    used = [In(slot) for slot in range(1, len(problem.inputs))]
    return (In(0), Out(), *used, *[Null()] * (MAX_EXTRAS - len(used)))


def pool_signature(dtype: DType, end: PoolEnd | None, params: Sequence[str]) -> Any:
    """The Numba signature of a kernel with these parameters, all but the tensors numbers."""
    pointers = [pointer(dtype), pointer(end.dtype if end else dtype)]
    if end is not None:
        pointers += extra_types(end.extras)
    return types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))


def refuse_end(problem: Problem) -> Refusal | None:
    """Why a pool kernel cannot end a problem's results."""
    count = len(problem.inputs) - 1
    if count > MAX_EXTRAS:
        return Refusal(f"the epilogue reads {count} operands, kernels have {MAX_EXTRAS}")
    if pool_end(problem) is not None and FP64 in (problem.inputs[0].dtype, problem.y.dtype):
        return Refusal("an epilogue computes in fp32, the pool in fp64")
    return None
