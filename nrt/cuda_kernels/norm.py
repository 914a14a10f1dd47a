"""Layer, instance and batch normalization at inference.

The first two are the row kernels of `rows`; a batch normalization that no pass folded away is a
pointwise problem and runs on the kernels of `pointwise`.
"""

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
from nrt.cuda_kernels.rows import (
    Rows,
    RowTask,
    refuse_resident,
    refuse_rows,
    resident_configs,
    resident_emission,
    rows,
)
from nrt.cuda_kernels.rows import strided_emission as strided_rows
from nrt.cuda_kernels.strided import (
    Geometry,
    broadcast_strides,
    collapse,
    refuse_fp8,
    refuse_large,
    refuse_rank,
)
from nrt.cuda_kernels.variant import Emission, Variant
from nrt.ir.ops import BatchNormalization, InstanceNormalization, LayerNormalization
from nrt.ir.ops.common import normalize_axis
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "VARIANTS",
    "BatchNormStrided",
    "BatchNormVector",
    "RowNormResident",
    "RowNormStrided",
]


def _channel_strides(spec: TensorSpec, rank: int) -> tuple[int, ...]:
    """Strides of a per-channel vector along ``[N, C, *S]``."""
    return (0, spec.strides[0] if spec.shape[0] > 1 else 0, *[0] * (rank - 2))


def _rows(problem: Problem) -> Rows:
    op, x = problem.op, problem.inputs[0]
    rank = len(x.shape)
    if isinstance(op, LayerNormalization):
        inner = range(normalize_axis(op.name, op.axis, rank), rank)
        extras = [broadcast_strides(t, x.shape) for t in problem.inputs[1:]]
    else:
        inner = range(2, rank)
        extras = [_channel_strides(t, rank) for t in problem.inputs[1:]]
    return rows(problem, inner, extras)


def _task(problem: Problem) -> RowTask:
    op = problem.op
    assert isinstance(op, LayerNormalization | InstanceNormalization)
    return RowTask("standardize", op.epsilon)


class RowNormStrided(Variant):
    """Any strides and length: a block (or a thread) a row, three passes."""

    name = "row_norm_strided"
    ops = (LayerNormalization, InstanceNormalization)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return refuse_rows(problem, _rows(problem))

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del problem, device
        return [(256,), (1,)]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        return strided_rows(_task(problem), _rows(problem), config[0])

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 3 * problem.nbytes / device.bandwidth + 5e-6


class RowNormResident(Variant):
    """Contiguous rows kept in registers: one read and one write."""

    name = "row_norm_resident"
    ops = (LayerNormalization, InstanceNormalization)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = _rows(problem)
        return refuse_rows(problem, found) or refuse_resident(found)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int, int]]:
        del device
        return resident_configs(_rows(problem))

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        threads, vectors, width = config
        return resident_emission(_task(problem), _rows(problem), (threads, vectors, width))


def _batch_norm_program(epsilon: float) -> Program:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` of x, scale, bias, mean, var."""
    b = Builder("fffff")
    root = b("sqrt", b("add", 4, b.const(epsilon)))
    return b.build(b("add", b("mul", b("sub", 0, 3), b("div", 1, root)), 2))


def _batch_norm_geometry(problem: Problem) -> Geometry:
    x, *channels = problem.inputs
    rank = len(x.shape)
    return collapse(
        x.shape, problem.y.strides, x.strides, *(_channel_strides(t, rank) for t in channels)
    )


def _refuse_batch_norm(problem: Problem) -> Refusal | None:
    return (
        refuse_fp8(problem) or refuse_large(problem) or refuse_rank(_batch_norm_geometry(problem))
    )


class BatchNormStrided(Variant):
    """Any strides, one element at a time."""

    name = "batch_norm_strided"
    ops = (BatchNormalization,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return _refuse_batch_norm(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        assert isinstance(problem.op, BatchNormalization)
        return strided_emission(
            _batch_norm_program(problem.op.epsilon),
            tuple(t.dtype for t in problem.inputs),
            (problem.y.dtype,),
            _batch_norm_geometry(problem),
            device,
        )

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 3 * problem.nbytes / device.bandwidth + 3e-6


class BatchNormVector(Variant):
    """16 bytes a thread, along channels (NHWC) or within a channel (NCHW)."""

    name = "batch_norm_vector"
    ops = (BatchNormalization,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        dtypes = [t.dtype for t in problem.inputs]
        return _refuse_batch_norm(problem) or vector_refusal(
            _batch_norm_geometry(problem), dtypes, (problem.y.dtype,)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[VectorConfig]:
        dtypes = [t.dtype for t in problem.inputs]
        assert isinstance(problem.op, BatchNormalization)
        program = _batch_norm_program(problem.op.epsilon)
        geometry = _batch_norm_geometry(problem)
        return vector_configs(program, geometry, dtypes, (problem.y.dtype,), device)

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        assert isinstance(problem.op, BatchNormalization)
        return vector_emission(
            _batch_norm_program(problem.op.epsilon),
            tuple(t.dtype for t in problem.inputs),
            (problem.y.dtype,),
            _batch_norm_geometry(problem),
            VectorConfig(*config),
            device,
        )


VARIANTS: tuple[Variant, ...] = (
    RowNormStrided(),
    RowNormResident(),
    BatchNormStrided(),
    BatchNormVector(),
)
