"""Histograms of magnitudes, for calibration."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.histogram_kernels import THREADS
from nrt.cuda_kernels.strided import (
    Geometry,
    collapse,
    refuse_large,
    refuse_rank,
    scalars,
    widest,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.ir.ops import AbsHistogram
from nrt.ir.ops.histogram import WORDS
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "HistogramShared"]

_MODULE = "nrt.cuda_kernels.histogram_kernels"

_PER_THREAD = 64
"""Elements that a thread counts at least: a block adds up to 4096 bins to the result, which is to
be little beside counting."""

_PER_SM = 4
"""Blocks per multiprocessor at most; their bins take 16 KB of shared memory each."""


def _geometry(problem: Problem) -> Geometry:
    x = problem.inputs[0]
    return collapse(x.shape, x.strides)


class HistogramShared(Variant):
    """Three launches: zeros, the largest magnitude, then counts in each block's shared memory.

    The second launch leaves the largest magnitude in the output, where the third finds the width of
    its bins. Sums and maxima of integers do not depend on the order of threads.
    """

    name = "histogram_shared"
    ops = (AbsHistogram,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        if not problem.y.is_row_major:
            return Refusal(f"output has strides {problem.y.strides}, expected a dense vector")
        return refuse_large(problem) or refuse_rank(_geometry(problem))

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        found = _geometry(problem)
        return [(4 if widest(4, found.shape, found.strides[0]) == 4 else 1,)]

    def estimate(self, problem: Problem, config: tuple[int], device: DeviceSpec) -> float:
        del config
        return 2 * problem.nbytes / device.bandwidth + 1e-5

    def emit(self, problem: Problem, config: tuple[int], device: DeviceSpec) -> Emission:
        (width,) = config
        found = _geometry(problem)
        clear = Launch(
            KernelSpec(f"{_MODULE}:_clear_kernel", (), THREADS),
            (-(-WORDS // THREADS), 1, 1),
            (THREADS, 1, 1),
            (Out(),),
        )
        if found.size == 0:
            return Emission((clear,))
        # Along the last dimension the kernels step in vectors.
        numbers = [found.size // width, *found.shape[:-1], found.shape[-1] // width]
        numbers += [*found.strides[0][:-1], found.strides[0][-1] * width]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        needed = -(-found.size // (THREADS * _PER_THREAD))
        grid = (min(needed, device.multiprocessors * _PER_SM), 1, 1)
        launches = [
            Launch(
                KernelSpec(f"{_MODULE}:{name}", (found.rank, width), THREADS),
                grid,
                (THREADS, 1, 1),
                args,
            )
            for name in ("_largest_kernel", "_count_kernel")
        ]
        return Emission((clear, *launches))


VARIANTS: tuple[Variant, ...] = (HistogramShared(),)
