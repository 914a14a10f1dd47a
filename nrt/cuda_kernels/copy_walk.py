"""A copy as its kernels see it: collapsed dimensions and strides of both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.strided import (
    RAW,
    Geometry,
    collapse,
    refuse_fp8,
    refuse_large,
    refuse_rank,
)
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import DType
from nrt.ir.op import Op
from nrt.ir.ops import Reformat, Slice
from nrt.problem import Problem, Refusal

__all__ = ["Copy", "Walk", "walk"]


@dataclass(frozen=True)
class Walk:
    """A copy as kernels see it.

    Attributes:
        source: element type that is read; a raw type when nothing is converted.
        target: element type that is written.
        geometry: dimensions in the output's memory order; strides of output, then input.
        base: offset of the first element in the input.
    """

    source: DType
    target: DType
    geometry: Geometry
    base: int = 0

    @property
    def converts(self) -> bool:
        return self.source is not self.target


def walk(problem: Problem) -> Walk:
    """The collapsed copy of a problem."""
    x, y = problem.inputs[0], problem.y
    strides, base = x.strides, 0
    if isinstance(problem.op, Slice):
        op = problem.op
        base = sum(a * s for a, s in zip(op.starts, strides, strict=True))
        strides = tuple(a * s for a, s in zip(op.steps, strides, strict=True))
    geometry = collapse(y.shape, y.strides, strides)
    if x.dtype is y.dtype:
        raw = RAW[x.dtype.itemsize]
        return Walk(raw, raw, geometry, base)
    return Walk(x.dtype, y.dtype, geometry, base)


def _refuse(problem: Problem) -> Refusal | None:
    if problem.inputs[0].dtype is not problem.y.dtype:
        fp8 = refuse_fp8(problem)
        if fp8 is not None:
            return fp8
    return refuse_large(problem) or refuse_rank(walk(problem).geometry)


class Copy(Variant):
    """What the copies share."""

    ops: ClassVar[tuple[type[Op], ...]] = (Reformat,)

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return _refuse(problem) or self._check(walk(problem))

    def _check(self, found: Walk) -> Refusal | None:
        raise NotImplementedError

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]
