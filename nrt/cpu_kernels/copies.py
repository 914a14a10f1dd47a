"""Movement ops as strided copies: what a view cannot express is one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.cpu_kernels.layout import broadcast_strides
from nrt.cpu_kernels.pointwise import bind_strided, cast_program, refuse_types
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.ir.op import Array
from nrt.ir.ops import Concat, Expand, Pad, Reshape, Resize, Slice, Split, Transpose
from nrt.ir.ops.resize import NEAREST
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["Copies"]


@dataclass(frozen=True)
class _Copy:
    """One strided copy: source and target tensors by number, element offsets, strides."""

    source: int
    target: int
    shape: tuple[int, ...]
    source_offset: int
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]


def _refined(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Per dimension of ``shape``, the factors that it shares with ``other``; None if they cross."""
    left, right = list(shape), [d for d in other if d != 1]
    result = []
    for dim in left:
        factors = []
        rest = dim
        while rest > 1:
            part = right.pop(0)
            if rest % part == 0:
                factors.append(part)
                rest //= part
            elif part % rest == 0:
                factors.append(rest)
                right.insert(0, part // rest)
                rest = 1
            else:
                return None
        result.append(tuple(factors))
    return tuple(result)


def _split_strides(
    spec: TensorSpec, factors: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of ``spec`` with each dimension cut into its factors."""
    shape: list[int] = []
    strides: list[int] = []
    for parts, stride in zip(factors, spec.strides, strict=True):
        steps = []
        step = stride
        for part in reversed(parts):
            steps.append(step)
            step *= part
        shape += parts
        strides += reversed(steps)
    return tuple(shape), tuple(strides)


def _reshape(x: TensorSpec, y: TensorSpec) -> list[_Copy] | Refusal:
    fine_x, fine_y = _refined(x.shape, y.shape), _refined(y.shape, x.shape)
    if fine_x is None or fine_y is None:
        if x.is_row_major and y.is_row_major:
            return [_Copy(0, 0, (x.size,), 0, (1,), 0, (1,))]
        return Refusal(f"dimensions of {x} and {y} cross: no strides serve both")
    shape, source = _split_strides(x, fine_x)
    _, target = _split_strides(y, fine_y)
    return [_Copy(0, 0, shape, 0, source, 0, target)]


def _resize(op: Any, x: TensorSpec, y: TensorSpec) -> list[_Copy] | Refusal:
    """Nearest by whole factors repeats elements: strides of 0."""
    if op.mode != "nearest":
        return Refusal(f"mode {op.mode} interpolates")
    shape: list[int] = []
    source: list[int] = []
    target: list[int] = []
    for axis, (size, had, xs, ys) in enumerate(
        zip(y.shape, x.shape, x.strides, y.strides, strict=True)
    ):
        factor = size // had
        if factor * had != size:
            return Refusal(f"{had} to {size} is no whole factor")
        index = NEAREST[op.nearest](op.positions(axis, had)).clip(0, had - 1)
        if not np.array_equal(index, np.arange(size) // factor):
            return Refusal(f"{op.coordinate} with {op.nearest} does not repeat {had} evenly")
        shape += [had, factor]
        source += [xs, 0]
        target += [ys * factor, ys]
    return [_Copy(0, 0, tuple(shape), 0, tuple(source), 0, tuple(target))]


def _pieces(
    sizes: Sequence[int], axis: int, whole: TensorSpec, parts: Sequence[TensorSpec], join: bool
) -> list[_Copy]:
    copies = []
    at = 0
    for index, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        offset = at * whole.strides[axis]
        at += size
        if join:
            copies.append(_Copy(index, 0, part.shape, 0, part.strides, offset, whole.strides))
        else:
            copies.append(_Copy(0, index, part.shape, offset, whole.strides, 0, part.strides))
    return copies


def _plan(problem: Problem) -> list[_Copy] | Refusal:
    op: Any = problem.op
    x, y = problem.inputs[0], problem.y
    if isinstance(op, Transpose):
        strides = tuple(x.strides[p] for p in op.perm)
        return [_Copy(0, 0, y.shape, 0, strides, 0, y.strides)]
    if isinstance(op, Expand):
        return [_Copy(0, 0, y.shape, 0, broadcast_strides(x, y.shape), 0, y.strides)]
    if isinstance(op, Reshape):
        return _reshape(x, y)
    if isinstance(op, Slice):
        offset = sum(a * s for a, s in zip(op.starts, x.strides, strict=True))
        strides = tuple(a * s for a, s in zip(op.steps, x.strides, strict=True))
        return [_Copy(0, 0, y.shape, offset, strides, 0, y.strides)]
    if isinstance(op, Concat | Split):
        join = isinstance(op, Concat)
        parts = problem.inputs if join else problem.outputs
        axis = op.axis % len(y.shape)
        return _pieces([t.shape[axis] for t in parts], axis, y if join else x, parts, join)
    if isinstance(op, Resize):
        return _resize(op, x, y)
    if op.mode != "constant" or min(op.pads) < 0:
        return Refusal(f"{op.mode} padding of {op.pads} is no plain copy into a larger tensor")
    offset = sum(a * s for a, s in zip(op.pads, y.strides, strict=False))
    return [_Copy(0, 0, x.shape, 0, x.strides, offset, y.strides)]


class Copies(HostVariant):
    """Transpose, Slice, Concat, Split, Expand, Pad, Reshape and whole-factor Resize."""

    name = "cpu_copy"
    ops = (Transpose, Slice, Concat, Split, Expand, Pad, Reshape, Resize)
    rank = 10

    def supports(self, problem: Problem) -> Refusal | None:
        if problem.y.size == 0:
            return Refusal("an empty tensor")
        dtype = problem.y.dtype
        refusal = refuse_types(cast_program(dtype, dtype), (dtype,))
        if refusal is not None:
            return refusal
        plan = _plan(problem)
        return plan if isinstance(plan, Refusal) else None

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        from nrt.cpu_kernels.simd import address_of

        plan = _plan(problem)
        assert not isinstance(plan, Refusal)
        dtype = problem.y.dtype
        program = cast_program(dtype, dtype)
        copies = [
            (
                bind_strided(
                    program,
                    (
                        TensorSpec(c.shape, dtype, c.target_strides),
                        TensorSpec(c.shape, dtype, c.source_strides),
                    ),
                ),
                c,
            )
            for c in plan
        ]
        size = dtype.itemsize
        fill = problem.op.value if isinstance(problem.op, Pad) else None

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            if fill is not None:
                outputs[0][...] = fill
            for copy, c in copies:
                copy(
                    [
                        address_of(outputs[c.target]) + c.target_offset * size,
                        address_of(inputs[c.source]) + c.source_offset * size,
                    ]
                )

        return call
