"""Reductions: any axes, columns of channels-last tensors, contiguous rows.

All accumulate in float32 (float64 for fp64) or int64, in an order that depends on the shape only:
the same input gives the same bits in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.reduce_kernels import THREADS
from nrt.cuda_kernels.strided import (
    Geometry,
    aligned,
    collapse,
    refuse_fp8,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.ir.ops import Reduce
from nrt.ir.ops.common import normalize_axes
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "Reduction", "ReduceColumns", "ReduceRows", "ReduceStrided", "reduction"]


@dataclass(frozen=True)
class Reduction:
    """A reduction as kernels see it.

    Attributes:
        kept: collapsed dimensions of the output; strides of y, then of x.
        reduced: collapsed reduced dimensions; strides of x.
    """

    kept: Geometry
    reduced: Geometry


def reduction(problem: Problem) -> Reduction:
    """Kept and reduced dimensions of a problem."""
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, Reduce)
    rank = len(x.shape)
    axes = normalize_axes(op.name, op.axes, rank)
    kept = [d for d in range(rank) if d not in axes]
    strides = [y.strides[d] for d in kept] if op.keepdims else list(y.strides)
    shape = [x.shape[d] for d in kept]
    return Reduction(
        collapse(shape, strides, [x.strides[d] for d in kept]),
        collapse([x.shape[d] for d in axes], [x.strides[d] for d in axes]),
    )


# -- variants --------------------------------------------------------------------------------------


def _kind(problem: Problem) -> str:
    assert isinstance(problem.op, Reduce)
    return problem.op.kind


class ReduceStrided(Variant):
    """Any axes and strides, one thread an output."""

    name = "reduce_strided"
    ops = (Reduce,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        return (
            refuse_fp8(problem)
            or refuse_large(problem)
            or refuse_rank(found.kept)
            or refuse_rank(found.reduced)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        if problem.y.size == 0:
            return Emission(())
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        spec = KernelSpec(
            "nrt.cuda_kernels.reduce_kernels:_strided_kernel",
            (_kind(problem), problem.y.dtype, kept.rank, reduced.rank),
            THREADS,
        )
        numbers = [kept.size, reduced.size, *kept.shape, *kept.strides[0], *kept.strides[1]]
        numbers += [*reduced.shape, *reduced.strides[0]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = waves(device, kept.size, THREADS)
        return Emission((Launch(spec, (grid, 1, 1), (THREADS, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        # Serial: a dependent load each 0.3 us, or the bandwidth of scattered sectors.
        count = reduction(problem).reduced.size
        return 4 * problem.nbytes / device.bandwidth + count * 3e-8 + 3e-6


class ReduceColumns(Variant):
    """The reduced dimension steps over contiguous kept ones: NHWC spatial reductions."""

    name = "reduce_columns"
    ops = (Reduce,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        if kept.strides[0][-1] != 1 or kept.strides[1][-1] != 1:
            return Refusal("the innermost kept dimension is not contiguous in input and output")
        if reduced.rank != 1:
            return Refusal(f"{reduced.rank} reduced dimensions after collapsing, expected 1")
        return refuse_fp8(problem) or refuse_large(problem) or refuse_rank(kept)

    @staticmethod
    def _fits(found: Reduction, width: int) -> bool:
        kept = found.kept
        return (
            kept.shape[-1] % width == 0
            and all(aligned(s, width) for s in kept.strides)
            and (found.reduced.strides[0][0] % width == 0 or found.reduced.size == 1)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        found = reduction(problem)
        channels = found.kept.shape[-1]
        outer = found.kept.size // max(channels, 1)
        widest = min(8, 16 // problem.y.dtype.itemsize)
        item = problem.y.dtype.itemsize
        result = []
        width = widest
        while width >= 1:
            if self._fits(found, width):
                result += [(lanes, width) for lanes in (8, 32)]
            width //= 2
        # A row of threads should read whole 32-byte sectors, and not many lanes beyond the
        # channels.
        good = [
            (lanes, w)
            for lanes, w in result
            if lanes * w * item >= 32 and (lanes == 8 or channels > 8 * w)
        ]
        result = good or result
        wanted = device.multiprocessors

        def cost(config: tuple[int, int]) -> tuple[float, int]:
            lanes, w = config
            blocks = outer * -(-channels // (lanes * w))
            return (max(1.0, wanted / max(blocks, 1)), -lanes * w)

        return sorted(result, key=cost)[:4]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        if problem.y.size == 0:
            return Emission(())
        lanes, width = config
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        rank = kept.rank - 1
        spec = KernelSpec(
            "nrt.cuda_kernels.reduce_kernels:_columns_kernel",
            (_kind(problem), problem.y.dtype, rank, lanes, width),
            THREADS,
        )
        groups = kept.shape[-1] // width
        numbers = [reduced.size, reduced.strides[0][0], groups, *kept.shape[:-1]]
        numbers += [*kept.strides[0][:-1], *kept.strides[1][:-1]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = math.prod(kept.shape[:-1]) * -(-groups // lanes)
        return Emission((Launch(spec, (grid, 1, 1), (lanes, THREADS // lanes, 1), args),))


class ReduceRows(Variant):
    """The reduced dimension is contiguous: a warp or a block an output."""

    name = "reduce_rows"
    ops = (Reduce,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        if found.reduced.rank != 1 or found.reduced.strides[0] != (1,):
            return Refusal("the reduced elements are not one contiguous run")
        if problem.y.dtype.kind == "bool":
            return Refusal("bool: shuffles move numbers")
        return refuse_fp8(problem) or refuse_large(problem) or refuse_rank(found.kept)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        del device
        found = reduction(problem)
        width = min(8, 16 // problem.y.dtype.itemsize)
        steps = [s for d, s in zip(found.kept.shape, found.kept.strides[1], strict=True) if d > 1]
        while found.reduced.size % width or any(s % width for s in steps):
            width //= 2
        # A warp reads 1024 elements in few steps; longer rows want a block's loads in flight.
        threads = (32, 256) if found.reduced.size <= 1024 else (256, 32)
        return [(t, width) for t in threads]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        if problem.y.size == 0:
            return Emission(())
        threads, width = config
        found = reduction(problem)
        kept = found.kept
        spec = KernelSpec(
            "nrt.cuda_kernels.reduce_kernels:_rows_kernel",
            (_kind(problem), problem.y.dtype, kept.rank, threads, width),
            THREADS,
        )
        numbers = [kept.size, found.reduced.size, *kept.shape, *kept.strides[0], *kept.strides[1]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = -(-kept.size // (THREADS // threads))
        return Emission((Launch(spec, (grid, 1, 1), (THREADS, 1, 1), args),))


VARIANTS: tuple[Variant, ...] = (ReduceStrided(), ReduceColumns(), ReduceRows())
