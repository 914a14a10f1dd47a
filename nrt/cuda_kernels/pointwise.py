"""Elementwise ops and fused pointwise programs of one or several results: one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.pointwise_kernels import (
    VectorConfig,
    strided_emission,
    vector_configs,
    vector_emission,
    vector_refusal,
)
from nrt.cuda_kernels.strided import (
    Geometry,
    broadcast_strides,
    collapse,
    refuse_large,
    refuse_rank,
)
from nrt.cuda_kernels.variant import Emission, Variant
from nrt.dtypes import DType
from nrt.ir.op import Op
from nrt.ir.ops import OPS, Cast, Elementwise, MultiPointwise
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Program, identity
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "ELEMENTWISE",
    "MAX_INPUTS",
    "VARIANTS",
    "PointwiseStrided",
    "PointwiseVector",
    "problem_program",
    "program_geometry",
]

ELEMENTWISE: tuple[type[Op], ...] = tuple(op for op in OPS if issubclass(op, Elementwise))
"""Every op class of one result that these variants solve."""

_OPS: tuple[type[Op], ...] = (*ELEMENTWISE, MultiPointwise)

MAX_INPUTS = 16
"""Inputs that a kernel may have; more would need splitting the program."""


def problem_program(problem: Problem) -> Program:
    """The program of an elementwise problem.

    A lone Cast is the identity: the store converts, and saturates where a program would wrap.
    """
    op = problem.op
    kinds = tuple(kind_of(t.dtype) for t in problem.inputs)
    if isinstance(op, Cast):
        return identity(kinds[0])
    if isinstance(op, MultiPointwise):
        return op.body
    assert isinstance(op, Elementwise)
    return op.program(kinds)


def program_geometry(problem: Problem) -> Geometry:
    """Collapsed dimensions; strides are those of each output, then of each input."""
    shape = problem.y.shape
    return collapse(
        shape,
        *(y.strides for y in problem.outputs),
        *(broadcast_strides(x, shape) for x in problem.inputs),
    )


# -- variants --------------------------------------------------------------------------------------


def _refuse(problem: Problem) -> Refusal | None:
    if len(problem.inputs) > MAX_INPUTS:
        return Refusal(f"{len(problem.inputs)} inputs, at most {MAX_INPUTS}")
    return refuse_large(problem) or refuse_rank(program_geometry(problem))


def _dtypes(specs: Sequence[TensorSpec]) -> tuple[DType, ...]:
    return tuple(t.dtype for t in specs)


class _Pointwise(Variant):
    """What both have in common: a thread reads one element per input, then writes the results."""

    def in_place(self, problem: Problem, config: tuple[Any, ...]) -> tuple[int, ...]:
        # A thread of the vector kernel that is past the end reads the last vector, which another
        # one may be writing; it then stores nothing.
        del config
        return tuple(range(len(problem.inputs)))


class PointwiseStrided(_Pointwise):
    """Any strides, one element at a time."""

    name = "pointwise_strided"
    ops = _OPS
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return _refuse(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return strided_emission(
            problem_program(problem),
            _dtypes(problem.inputs),
            _dtypes(problem.outputs),
            program_geometry(problem),
            device,
        )

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        # Narrow accesses and divisions: a third of the bandwidth at best.
        return 3 * problem.nbytes / device.bandwidth + 3e-6


class PointwiseVector(_Pointwise):
    """16 bytes a thread where all tensors follow the output's innermost memory dimension."""

    name = "pointwise_vector"
    ops = _OPS
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return _refuse(problem) or vector_refusal(
            program_geometry(problem), _dtypes(problem.inputs), _dtypes(problem.outputs)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[VectorConfig]:
        return vector_configs(
            problem_program(problem),
            program_geometry(problem),
            _dtypes(problem.inputs),
            _dtypes(problem.outputs),
            device,
        )

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        return vector_emission(
            problem_program(problem),
            _dtypes(problem.inputs),
            _dtypes(problem.outputs),
            program_geometry(problem),
            VectorConfig(*config),
            device,
        )


VARIANTS: tuple[Variant, ...] = (PointwiseStrided(), PointwiseVector())
