"""Softmax and its logarithm along one dimension; the kernels are those of `rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.rows import (
    Rows,
    RowTask,
    refuse_resident,
    refuse_rows,
    resident_configs,
    resident_emission,
    rows,
    strided_emission,
)
from nrt.cuda_kernels.variant import Emission, Variant
from nrt.ir.ops import LogSoftmax, Softmax
from nrt.ir.ops.common import normalize_axis
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "SoftmaxResident", "SoftmaxStrided"]


def _rows(problem: Problem) -> Rows:
    op = problem.op
    assert isinstance(op, Softmax | LogSoftmax)
    return rows(problem, (normalize_axis(op.name, op.axis, len(problem.y.shape)),))


def _task(problem: Problem) -> RowTask:
    return RowTask("softmax" if isinstance(problem.op, Softmax) else "log_softmax")


class SoftmaxStrided(Variant):
    """Any dimension and strides, any length: a thread or a block a row, three passes."""

    name = "softmax_strided"
    ops = (Softmax, LogSoftmax)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return refuse_rows(problem, _rows(problem))

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        # Rows side by side in memory: a thread each reads whole lines; else a block along the row.
        return [(256,), (1,)] if _rows(problem).inner.strides[1][-1] == 1 else [(1,), (256,)]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        return strided_emission(_task(problem), _rows(problem), config[0])

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 3 * problem.nbytes / device.bandwidth + 5e-6


class SoftmaxResident(Variant):
    """The innermost dimension, kept in registers: one read and one write."""

    name = "softmax_resident"
    ops = (Softmax, LogSoftmax)
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


VARIANTS: tuple[Variant, ...] = (SoftmaxStrided(), SoftmaxResident())
