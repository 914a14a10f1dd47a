"""Reductions: any axes, columns of channels-last tensors, contiguous rows.

All accumulate in float32 (float64 for fp64) or int64, in an order that depends on the shape only:
the same input gives the same bits in every run. All run a pointwise program on every element before
it is reduced, and another on the result, if the problem has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.reduce_kernels import UNROLL
from nrt.cuda_kernels.reduce_text import THREADS, Ends
from nrt.cuda_kernels.strided import (
    Geometry,
    aligned,
    broadcast_strides,
    collapse,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.dtypes import DType
from nrt.ir.ops import Reduce
from nrt.ir.ops.common import normalize_axes
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "Reduction", "ReduceColumns", "ReduceRows", "ReduceStrided", "reduction"]

# Seconds from a load to its value, under load.
_LATENCY = 7e-7


@dataclass(frozen=True)
class Reduction:
    """A reduction as kernels see it.

    Attributes:
        kept: collapsed dimensions of the output; strides of y, x, then of each operand of prologue
            and epilogue.
        reduced: collapsed reduced dimensions; strides of x, then of each operand of the prologue.
        ends: prologue and epilogue.
    """

    kept: Geometry
    reduced: Geometry
    ends: Ends

    @property
    def before(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Strides of each operand of the prologue along kept and reduced dimensions."""
        count = len(self.ends.before)
        return tuple(zip(self.kept.strides[2 : 2 + count], self.reduced.strides[1:], strict=True))

    @property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """Strides of each operand of the epilogue along kept dimensions."""
        return self.kept.strides[2 + len(self.ends.before) :]

    @property
    def numbers(self) -> list[int]:
        """Strides of all operands along kept dimensions, one after the other."""
        return [step for strides in self.kept.strides for step in strides]

    def args(self) -> tuple[Arg, ...]:
        """The tensors in the order of the kernels' parameters."""
        count = len(self.ends.before) + len(self.ends.after)
        return (In(0), Out(), *(In(1 + k) for k in range(count)))


def reduction(problem: Problem) -> Reduction:
    """Kept and reduced dimensions of a problem, and what happens around it."""
    op, y = problem.op, problem.y
    assert isinstance(op, Reduce)
    x, before, after = op.parts(problem.inputs)
    rank = len(x.shape)
    axes = normalize_axes(op.name, op.axes, rank)
    kept = [d for d in range(rank) if d not in axes]

    def of_output(strides: Sequence[int]) -> list[int]:
        return [strides[d] for d in kept] if op.keepdims else list(strides)

    wide = [x.strides, *(broadcast_strides(t, x.shape) for t in before)]
    ends = [of_output(broadcast_strides(t, y.shape)) for t in after]
    return Reduction(
        collapse(
            [x.shape[d] for d in kept],
            of_output(y.strides),
            *([t[d] for d in kept] for t in wide),
            *ends,
        ),
        collapse([x.shape[d] for d in axes], *([t[d] for d in axes] for t in wide)),
        Ends(
            op.prologue,
            op.epilogue,
            tuple(t.dtype for t in before),
            tuple(t.dtype for t in after),
        ),
    )


# -- variants --------------------------------------------------------------------------------------


MAX_INPUTS = 16
"""Inputs that a kernel may have, as those of pointwise programs."""


def _key(problem: Problem) -> tuple[str, DType, DType]:
    """What every binary depends on: the kind, and the types of x and y."""
    assert isinstance(problem.op, Reduce)
    return problem.op.kind, problem.inputs[0].dtype, problem.y.dtype


def _refuse(problem: Problem) -> Refusal | None:
    if len(problem.inputs) > MAX_INPUTS:
        return Refusal(f"{len(problem.inputs)} inputs, at most {MAX_INPUTS}")
    return refuse_large(problem)


class ReduceStrided(Variant):
    """Any axes and strides, one thread an output."""

    name = "reduce_strided"
    ops = (Reduce,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        return _refuse(problem) or refuse_rank(found.kept) or refuse_rank(found.reduced)

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
            (*_key(problem), kept.rank, reduced.rank, found.ends),
            THREADS,
        )
        numbers = [kept.size, reduced.size, *kept.shape, *found.numbers, *reduced.shape]
        numbers += [step for strides in reduced.strides for step in strides]
        args = (*found.args(), *scalars(numbers))
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
        for k, (across, _) in enumerate(found.before):
            if across[-1] not in (0, 1):
                return Refusal(
                    f"operand {k} of the prologue has stride {across[-1]} along the innermost kept "
                    "dimension, expected 0 or 1"
                )
        return _refuse(problem) or refuse_rank(kept)

    @staticmethod
    def _fits(found: Reduction, width: int) -> bool:
        kept, count = found.kept, found.reduced.size
        moving = [(kept.strides[0], (0,)), (kept.strides[1], found.reduced.strides[0])]
        moving += [(across, along) for across, along in found.before if across[-1] == 1]
        return kept.shape[-1] % width == 0 and all(
            aligned(across, width) and (along[0] % width == 0 or count == 1)
            for across, along in moving
        )

    @staticmethod
    def _modes(found: Reduction) -> tuple[str, ...]:
        """How each operand of the prologue lies, as `_columns_kernel` wants it."""
        return tuple(
            ("v" if across[-1] == 1 else "b") + ("1" if along[0] else "0")
            for across, along in found.before
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int, int]]:
        found = reduction(problem)
        item = problem.inputs[0].dtype.itemsize
        widths = []
        width = min(8, 16 // item)
        while width >= 1:
            if self._fits(found, width):
                widths.append(width)
            width //= 2
        # The widest vectors, and narrower ones where few channels leave SMs without a block.
        options = [
            (threads, lanes, width)
            for width in widths[:3]
            for lanes in (1, 2, 4, 8, 16, 32)
            for threads in (64, 128, 256, 512, 1024)
            if lanes * width <= threads
        ]
        return sorted(options, key=lambda c: self._seconds(problem, found, c, device))[:4]

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        return self._seconds(problem, reduction(problem), config, device) + 1.5e-6

    @staticmethod
    def _seconds(
        problem: Problem, found: Reduction, config: tuple[Any, ...], device: DeviceSpec
    ) -> float:
        """Bandwidth, or what is in flight per latency, and the steps that combine threads."""
        threads, lanes, width = config
        channels = found.kept.shape[-1]
        item = problem.inputs[0].dtype.itemsize
        groups = -(-channels // width)
        blocks = found.kept.size // max(channels, 1) * -(-groups // lanes)
        passes = -(-found.reduced.size // (threads // lanes * UNROLL))
        # 1024 threads of 64 registers fill an SM.
        rounds = -(-blocks * threads // (device.multiprocessors * 1024))
        line = lanes * width * item
        # Less than 64 bytes wastes memory's bursts, half a line leaves the rest to another block;
        # lanes beyond the channels do nothing.
        waste = max(1.0, 64 / line) * (1.05 if line < 128 else 1.0)
        waste *= -(-groups // lanes) * lanes / max(groups, 1)
        flow = problem.nbytes * waste / device.bandwidth
        # A block's instructions: a multiprocessor with two has twice the work of one with one.
        busy = -(-blocks // device.multiprocessors) * device.multiprocessors / max(blocks, 1)
        flow *= 1 + 0.1 * (busy - 1)
        combine = 1e-7 * (threads // 32).bit_length() + 2e-8 * (32 // lanes).bit_length()
        return max(flow, rounds * passes * _LATENCY) + combine

    def emit(self, problem: Problem, config: tuple[int, int, int], device: DeviceSpec) -> Emission:
        del device
        if problem.y.size == 0:
            return Emission(())
        threads, lanes, width = config
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        rank = kept.rank - 1
        spec = KernelSpec(
            "nrt.cuda_kernels.reduce_kernels:_columns_kernel",
            (*_key(problem), rank, threads, lanes, width, found.ends, self._modes(found)),
            threads,
        )
        groups = kept.shape[-1] // width
        numbers = [reduced.size, *(s[0] for s in reduced.strides), groups, *kept.shape[:-1]]
        numbers += [step for strides in kept.strides for step in strides[:-1]]
        numbers += [strides[-1] for strides in found.after]
        args = (*found.args(), *scalars(numbers))
        grid = math.prod(kept.shape[:-1]) * -(-groups // lanes)
        return Emission((Launch(spec, (grid, 1, 1), (threads, 1, 1), args),))


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
        for k, (_, along) in enumerate(found.before):
            if along[0] not in (0, 1):
                return Refusal(
                    f"operand {k} of the prologue has stride {along[0]} along the reduced "
                    "dimension, expected 0 or 1"
                )
        return _refuse(problem) or refuse_rank(found.kept)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        del device
        found = reduction(problem)
        width = min(8, 16 // problem.inputs[0].dtype.itemsize)
        moving = [found.kept.strides[1], *(across for across, along in found.before if along[0])]
        steps = [s for row in moving for d, s in zip(found.kept.shape, row, strict=True) if d > 1]
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
        modes = tuple("v" if along[0] else "b" for _, along in found.before)
        spec = KernelSpec(
            "nrt.cuda_kernels.reduce_kernels:_rows_kernel",
            (*_key(problem), kept.rank, threads, width, found.ends, modes),
            THREADS,
        )
        numbers = [kept.size, found.reduced.size, *kept.shape, *found.numbers]
        args = (*found.args(), *scalars(numbers))
        grid = -(-kept.size // (THREADS // threads))
        return Emission((Launch(spec, (grid, 1, 1), (THREADS, 1, 1), args),))


VARIANTS: tuple[Variant, ...] = (ReduceStrided(), ReduceColumns(), ReduceRows())
