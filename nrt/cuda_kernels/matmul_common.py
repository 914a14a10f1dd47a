"""What the matrix product kernels share: sizes and strides of a problem, its epilogue, refusals.

Leading dimensions that lie regularly in memory are merged, and where ``b`` has none they become
rows of ``a``: a linear layer over ``[batch, sequence, features]`` is one tall product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nrt.cuda_kernels.conv_common import (
    FLOATS,
    Epilogue,
    check_floats,
    operand_strides,
    refuse_epilogue,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import epilogue_extras
from nrt.dtypes import DType
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "MAX_BATCH",
    "BatchDim",
    "MatMulShape",
    "matmul_epilogue",
    "matrix_output",
    "refuse_matmul",
]

MAX_BATCH = 4
"""Leading dimensions that kernels step through after merging."""


@dataclass(frozen=True)
class BatchDim:
    """One leading dimension: its size and the elements per step in a, b and y (0 broadcasts)."""

    size: int
    a: int
    b: int
    y: int


@dataclass(frozen=True)
class MatMulShape:
    """The sizes of a batched product ``y[z, m, n] = a[z, m, k] b[z, k, n]``.

    Strides are those of the logical matrices: transposition flags are already applied. A vector
    operand is a matrix of one row or one column.

    Attributes:
        batch: leading dimensions after merging, outermost first, none of size 1.
        m, n, k: sizes.
        a_strides: elements per step in m and in k.
        b_strides: elements per step in k and in n.
        y_strides: elements per step in m and in n.
        dtype: of a; b is of `conv_common.weights_type`.
        out_dtype: of y.
    """

    batch: tuple[BatchDim, ...]
    m: int
    n: int
    k: int
    a_strides: tuple[int, int]
    b_strides: tuple[int, int]
    y_strides: tuple[int, int]
    dtype: DType
    out_dtype: DType

    @classmethod
    def of(cls, problem: Problem) -> MatMulShape:
        """Read the sizes off a `MatMul` problem."""
        op = problem.op
        assert isinstance(op, MatMul)
        a_shape, a_strides = _matrix(problem, 0, op.trans_a)
        b_shape, b_strides = _matrix(problem, 1, op.trans_b)
        y = matrix_output(problem)
        y_strides = list(y.strides)
        m, k = a_shape[-2:]
        n = b_shape[-1]
        dims = _batch_dims(y, a_shape, a_strides, b_shape, b_strides)
        am, ak = a_strides[-2:]
        bk, bn = b_strides[-2:]
        ym, yn = y_strides[-2:]
        batch = _merge(dims)
        # Rows of the next image follow those of the last one: one tall matrix.
        while batch and batch[-1].b == 0 and _follows(batch[-1], m, am, ym):
            if m == 1:
                am, ym = batch[-1].a, batch[-1].y
            m *= batch.pop().size
        return cls(
            tuple(batch), m, n, k, (am, ak), (bk, bn), (ym, yn),
            problem.inputs[0].dtype, y.dtype,
        )  # fmt: skip

    @cached_property
    def batches(self) -> int:
        """Number of matrices."""
        count = 1
        for dim in self.batch:
            count *= dim.size
        return count

    @property
    def flops(self) -> float:
        """Floating-point operations, two per multiply-add."""
        return 2.0 * self.batches * self.m * self.n * self.k

    @property
    def b_is_shared(self) -> bool:
        """All matrices of the batch are multiplied with the same ``b``."""
        return all(d.b == 0 for d in self.batch)

    def batch_numbers(self) -> tuple[int, ...]:
        """For kernels: sizes of the inner three leading dimensions, then four strides of a, b, y.

        Missing dimensions have size 1. The outermost size is what the inner ones leave.
        """
        dims = [BatchDim(1, 0, 0, 0)] * (MAX_BATCH - len(self.batch)) + list(self.batch)
        return (
            *(d.size for d in dims[1:]),
            *(d.a for d in dims),
            *(d.b for d in dims),
            *(d.y for d in dims),
        )


def matrix_output(problem: Problem) -> TensorSpec:
    """The output with rows and columns: dimensions of size 1 stand in for those of vectors."""
    y = problem.y
    shape, strides = list(y.shape), list(y.strides)
    if len(problem.inputs[1].shape) == 1:
        shape.append(1)
        strides.append(0)
    if len(problem.inputs[0].shape) == 1:
        shape.insert(len(shape) - 1, 1)
        strides.insert(len(strides) - 1, 0)
    return TensorSpec(tuple(shape), y.dtype, tuple(strides))


def matmul_epilogue(problem: Problem) -> Epilogue:
    """The epilogue of a `MatMul`: channels are columns, rows count the other dimensions."""
    op = problem.op
    assert isinstance(op, MatMul)
    if op.epilogue is None:
        return Epilogue(None, ())
    y = matrix_output(problem)
    a_rank, b_rank = (len(t.shape) for t in problem.inputs[:2])
    specs = []
    for spec in (*problem.inputs[2:], *problem.outputs[1:]):
        shape, strides = list(spec.shape), list(spec.strides)
        if b_rank == 1:
            shape.append(1)
            strides.append(0)
        if a_rank == 1 and shape:
            shape.insert(len(shape) - 1, 1)
            strides.insert(len(strides) - 1, 0)
        specs.append(TensorSpec(tuple(shape), spec.dtype, tuple(strides)))
    count = len(problem.inputs) - 2
    extras = epilogue_extras(specs[:count], y, len(y.shape) - 1, specs[count:])
    return Epilogue(op.epilogue, extras)


def refuse_matmul(
    problem: Problem, device: DeviceSpec, dtypes: Sequence[DType] = FLOATS
) -> Refusal | None:
    """None, or why no matrix product kernel solves ``problem``; every variant asks this first."""
    if type(problem.op) is not MatMul:
        return Refusal(f"op is {problem.family}, expected MatMul")
    refusal = check_floats(problem, device, dtypes) or refuse_epilogue(problem)
    if refusal is not None:
        return refusal
    count = len(MatMulShape.of(problem).batch)
    if count > MAX_BATCH:
        return Refusal(f"{count} leading dimensions do not merge, kernels step through {MAX_BATCH}")
    return None


def _matrix(problem: Problem, slot: int, trans: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of an operand as a matrix, transposed if asked."""
    shape, strides = problem.inputs[slot].shape, operand_strides(problem, slot)
    if len(shape) == 1:
        # A vector on the left is a row, on the right a column.
        return ((1, *shape), (0, *strides)) if slot == 0 else ((*shape, 1), (*strides, 0))
    if not trans:
        return shape, strides
    return (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2])


def _batch_dims(
    y: TensorSpec,
    a_shape: tuple[int, ...],
    a_strides: tuple[int, ...],
    b_shape: tuple[int, ...],
    b_strides: tuple[int, ...],
) -> list[BatchDim]:
    """The leading dimensions of size above 1, outermost first."""

    def stride(shape: tuple[int, ...], strides: tuple[int, ...], dim: int) -> int:
        own = dim - (len(y.shape) - len(shape))
        return 0 if own < 0 or shape[own] == 1 else strides[own]

    return [
        BatchDim(size, stride(a_shape, a_strides, d), stride(b_shape, b_strides, d), y.strides[d])
        for d, size in enumerate(y.shape[:-2])
        if size > 1
    ]


def _merge(dims: list[BatchDim]) -> list[BatchDim]:
    """Join neighbours whose outer step is the inner one's whole length, in a, b and y alike."""
    merged: list[BatchDim] = []
    for dim in dims:
        last = merged[-1] if merged else None
        if last is not None and (last.a, last.b, last.y) == (
            dim.a * dim.size,
            dim.b * dim.size,
            dim.y * dim.size,
        ):
            merged[-1] = BatchDim(last.size * dim.size, dim.a, dim.b, dim.y)
        else:
            merged.append(dim)
    return merged


def _follows(dim: BatchDim, m: int, am: int, ym: int) -> bool:
    """Whether stepping in ``dim`` is the same as stepping over ``m`` rows, in a and in y."""
    return m == 1 or (dim.a == m * am and dim.y == m * ym)
