"""Softmax, normalizations and reductions: one row at a time, over any strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nrt.cpu_kernels.layout import broadcast_strides, collapse
from nrt.cpu_kernels.pointwise import bind_rows, bind_strided
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import FP32
from nrt.ir.op import Array
from nrt.ir.ops import (
    LRN,
    BatchNormalization,
    InstanceNormalization,
    LayerNormalization,
    LogSoftmax,
    Reduce,
    Softmax,
)
from nrt.ir.pointwise import Builder
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["BatchNorm", "RowOps"]


def _float_only(problem: Problem) -> Refusal | None:
    for spec in (*problem.inputs, *problem.outputs):
        if spec.dtype is not FP32:
            return Refusal(f"a tensor is {spec.dtype}; only fp32 is fast here")
    if problem.y.size == 0 or problem.inputs[0].size == 0:
        return Refusal("an empty tensor")
    return None


def _axes(problem: Problem) -> tuple[int, ...]:
    """The dimensions that make up a row."""
    op: Any = problem.op
    rank = len(problem.inputs[0].shape)
    if isinstance(op, Reduce):
        return tuple(sorted(a % rank for a in op.axes))
    if isinstance(op, LayerNormalization):
        return tuple(range(op.axis % rank, rank))
    if isinstance(op, InstanceNormalization):
        return tuple(range(2, rank))
    return (1,) if isinstance(op, LRN) else (op.axis % rank,)


def _numbers(op: Any) -> list[float]:
    if isinstance(op, LRN):
        return [op.size, op.alpha / op.size, op.beta, op.bias]
    if isinstance(op, LayerNormalization | InstanceNormalization):
        return [op.epsilon]
    return []


def _strides(problem: Problem) -> list[tuple[int, ...]]:
    """Of output, input, numbers and parameters, over the input's shape."""
    op: Any = problem.op
    x, y = problem.inputs[0], problem.y
    rank = len(x.shape)
    out = broadcast_strides(y, x.shape) if not isinstance(op, Reduce) else ()
    if isinstance(op, Reduce):
        kept = iter(y.strides)
        axes = _axes(problem)
        if op.keepdims:
            out = tuple(0 if d in axes else s for d, s in enumerate(y.strides))
        else:
            out = tuple(0 if d in axes else next(kept) for d in range(rank))
    result = [out, broadcast_strides(x, x.shape)]
    if _numbers(op):
        result.append((0,) * rank)
    for spec in () if isinstance(op, Reduce) else problem.inputs[1:]:
        if isinstance(op, InstanceNormalization):
            result.append((0, spec.strides[0], *(0,) * (rank - 2)))
        else:
            result.append(broadcast_strides(spec, x.shape))
    if isinstance(op, LayerNormalization) and len(problem.inputs) == 2:
        result.append((0,) * rank)
    return result


def _rows(problem: Problem) -> tuple[Any, ...] | Refusal:
    """Row sizes, columns, and strides per operand."""
    x = problem.inputs[0]
    axes = _axes(problem)
    strides = _strides(problem)
    if any(strides[0][a] == 0 and x.shape[a] > 1 for a in axes) and not isinstance(
        problem.op, Reduce
    ):
        return Refusal("the output repeats elements")
    row_axes = [d for d in range(len(x.shape)) if d not in axes]
    # Ordered by the input: a reduction's output does not move along its row.
    order = [1, 0, *range(2, len(strides))]
    cols, inner = collapse(
        [x.shape[a] for a in axes], [[strides[k][a] for a in axes] for k in order]
    )
    if len(cols) > 1:
        return Refusal(f"the dimensions {axes} of {x} do not lie evenly in memory")
    outer, rows = collapse(
        [x.shape[d] for d in row_axes], [[s[d] for d in row_axes] for s in strides]
    )
    back = [inner[order.index(k)] for k in range(len(strides))]
    return outer, cols[0], [(*r, *c) for r, c in zip(rows, back, strict=True)]


def _plain(problem: Problem) -> Problem:
    """The problem without prologue and epilogue: of a reduction what is left in the middle."""
    op: Any = problem.op
    if not isinstance(op, Reduce):
        return problem
    x = problem.inputs[0]
    if op.prologue is not None and x.span != x.size:
        x = TensorSpec.dense(x.shape, x.dtype)
    plain = replace(op, prologue=None, epilogue=None)
    return Problem(plain, (x,), problem.outputs, problem.constants[:1])


def _bind_in_steps(problem: Problem, middle: HostCall) -> HostCall:
    """Prologue into the workspace, reduction of that, epilogue in place."""
    from nrt.cpu_kernels.simd import address_of

    op: Any = problem.op
    x, before, after = op.parts(problem.inputs)
    held = _plain(problem).inputs[0]
    first = bind_strided(op.prologue, (held, x, *before)) if op.prologue else None
    last = bind_strided(op.epilogue, (problem.y, problem.y, *after)) if op.epilogue else None

    def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        source, operands, ends = op.parts([address_of(a) for a in inputs])
        data = inputs[0]
        if first is not None:
            first([address_of(workspace), source, *operands])
            data = np.ndarray(
                held.shape, np.float32, workspace, strides=[4 * s for s in held.strides]
            )
        middle([data], outputs, workspace)
        if last is not None:
            target = address_of(outputs[0])
            last([target, target, *ends])

    return call


class RowOps(HostVariant):
    """Softmax, LayerNormalization, InstanceNormalization, LRN and Reduce."""

    name = "cpu_rows"
    ops = (Softmax, LogSoftmax, LayerNormalization, InstanceNormalization, LRN, Reduce)
    rank = 10

    def supports(self, problem: Problem) -> Refusal | None:
        refusal = _float_only(problem)
        if refusal is not None:
            return refusal
        if not _axes(problem):
            return Refusal("no axis to reduce")
        rows = _rows(_plain(problem))
        return rows if isinstance(rows, Refusal) else None

    def workspace(self, problem: Problem, config: Config) -> int:
        del config
        op: Any = problem.op
        first = isinstance(op, Reduce) and op.prologue is not None
        return _plain(problem).inputs[0].nbytes if first else 0

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        op: Any = problem.op
        if isinstance(op, Reduce) and (op.prologue is not None or op.epilogue is not None):
            return _bind_in_steps(problem, self._bind(_plain(problem)))
        return self._bind(problem)

    def _bind(self, problem: Problem) -> HostCall:
        from nrt.cpu_kernels.rowops_kernel import row_function
        from nrt.cpu_kernels.simd import address_of

        op: Any = problem.op
        rows = _rows(problem)
        assert not isinstance(rows, Refusal)
        outer, cols, strides = rows
        names = {Softmax: "softmax", LogSoftmax: "log_softmax", LRN: "lrn", Reduce: ""}
        name = names.get(type(op), "standardize") or op.kind
        run = bind_rows(row_function(name), outer, cols, strides, [4] * len(strides))
        # The last number is the bias of a LayerNormalization without one.
        numbers = np.array([*_numbers(op), 0.0], np.float32)
        fixed = [address_of(numbers)] if len(numbers) > 1 else []
        absent = isinstance(op, LayerNormalization) and len(problem.inputs) == 2
        last = [address_of(numbers) + 4 * (len(numbers) - 1)] if absent else []

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            x, *parameters = inputs
            given = [address_of(outputs[0]), address_of(x), *fixed]
            run([*given, *(address_of(p) for p in parameters), *last])

        call.__dict__["keep"] = numbers
        return call


class BatchNorm(HostVariant):
    """BatchNormalization as a pointwise program; passes fold most of them away."""

    name = "cpu_batch_norm"
    ops = (BatchNormalization,)
    rank = 10

    def supports(self, problem: Problem) -> Refusal | None:
        return _float_only(problem)

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        from nrt.cpu_kernels.simd import address_of

        op: Any = problem.op
        b = Builder("fffff")
        deviation = b("sqrt", b("add", 4, b.const(float(op.epsilon))))
        program = b.build(b("add", b("mul", b("div", b("sub", 0, 3), deviation), 1), 2))
        x = problem.inputs[0]
        rest = len(x.shape) - 2
        channels = [
            TensorSpec((t.shape[0], *(1,) * rest), t.dtype, (t.strides[0], *(0,) * rest))
            for t in problem.inputs[1:]
        ]
        run = bind_strided(program, (problem.y, x, *channels))

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            run([address_of(a) for a in (outputs[0], *inputs)])

        return call
