"""Copies between arbitrary strides, with or without a change of element type.

Every movement that strides cannot express reaches this family as a `Reformat`. Three access
patterns are told apart: the same innermost dimension on both sides (vectors), different ones (a
tile through shared memory, or squares in registers), and few interleaved channels (planes to
pixels). A copy's ends may lie anywhere inside a larger tensor, so the kernels that use vectors look
at the addresses and have a way without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels.copy_kernels import THREADS
from nrt.cuda_kernels.copy_planes import CopyInterleave
from nrt.cuda_kernels.copy_tiles import CopyBlock, CopyTile
from nrt.cuda_kernels.copy_walk import Copy, Walk, walk
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.pointwise_kernels import (
    VectorConfig,
    strided_emission,
    vector_configs,
    vector_emission,
    vector_refusal,
)
from nrt.cuda_kernels.strided import (
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.ir.ops import Reformat, Slice
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import identity
from nrt.problem import Problem, Refusal

__all__ = [
    "VARIANTS",
    "CopyBlock",
    "CopyInterleave",
    "CopyPlanes",
    "CopyStrided",
    "CopyTile",
    "CopyVector",
]


class CopyStrided(Copy):
    """Any strides. Also a Slice that strides alone cannot say, since a step is negative."""

    name = "copy_strided"
    ops = (Reformat, Slice)
    rank = 1
    reference = True

    def _check(self, found: Walk) -> Refusal | None:
        return None

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        found = walk(problem)
        program = identity(kind_of(found.source))
        return strided_emission(
            program, (found.source,), (found.target,), found.geometry, device, base=found.base
        )

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        # Threads follow the output; a reader across the grain fetches a 32-byte sector an element.
        inner = walk(problem).geometry.strides[1][-1]
        return (3 if inner in (0, 1) else 6) * problem.nbytes / device.bandwidth + 3e-6


class CopyVector(Copy):
    """The same innermost dimension on both sides, 16 bytes a thread."""

    name = "copy_vector"
    rank = 2

    def _check(self, found: Walk) -> Refusal | None:
        return vector_refusal(found.geometry, (found.source,), (found.target,))

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[VectorConfig]:
        found = walk(problem)
        program = identity(kind_of(found.source))
        return vector_configs(program, found.geometry, (found.source,), (found.target,), device)

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        found = walk(problem)
        program = identity(kind_of(found.source))
        return vector_emission(
            program,
            (found.source,),
            (found.target,),
            found.geometry,
            VectorConfig(*config),
            device,
            check=True,
        )


# -- planes to pixels ------------------------------------------------------------------------------


_MAX_CHANNELS = 8


class CopyPlanes(Copy):
    """Planes to interleaved pixels of at most 8 channels: NCHW to NHWC of an image."""

    name = "copy_planes"
    rank = 3

    def _check(self, found: Walk) -> Refusal | None:
        geometry = found.geometry
        if geometry.rank < 2 or geometry.shape[-1] > _MAX_CHANNELS:
            return Refusal(f"more than {_MAX_CHANNELS} interleaved channels, or none")
        channels = geometry.shape[-1]
        y, x = geometry.strides
        if y[-1] != 1 or y[-2] != channels or x[-2] != 1:
            return Refusal("not planes to dense pixels")
        if not self._widths(found):
            return Refusal(f"no vector of pixels fits {geometry.shape[-2]} pixels and strides {x}")
        return None

    @staticmethod
    def _widths(found: Walk) -> list[int]:
        """Pixels per thread: loads and stores stay aligned (the store to 16 bytes in all)."""
        geometry = found.geometry
        channels = geometry.shape[-1]
        y, x = geometry.strides
        result = []
        for width in (8, 4):
            whole = geometry.shape[-2] % width == 0
            loads = all(s % width == 0 for d, s in enumerate(x) if d != geometry.rank - 2)
            # store_lines emits its widest pieces first; each must be aligned to its size.
            item = found.target.itemsize
            store = width * channels * item % 16 == 0 and all(s * item % 16 == 0 for s in y[:-2])
            if whole and loads and store and min(*x, *y) >= 0:
                result.append(width)
        return result

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        return [(w,) for w in self._widths(walk(problem))]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        (width,) = config
        found = walk(problem)
        geometry = found.geometry
        if geometry.size == 0:
            return Emission(())
        channels = geometry.shape[-1]
        groups = geometry.shape[-2] // width
        rank = geometry.rank - 2
        count = geometry.size // channels // width
        y, x = geometry.strides
        spec = KernelSpec(
            "nrt.cuda_kernels.copy_kernels:_planes_kernel",
            (found.source, found.target, channels, rank, width),
            THREADS,
        )
        args: tuple[Arg, ...] = (
            In(0),
            Out(),
            Scalar(count),
            Scalar(groups),
            *scalars([x[-1], *geometry.shape[:rank], *y[:rank], *x[:rank]]),
        )
        grid = waves(device, count, THREADS)
        return Emission((Launch(spec, (grid, 1, 1), (THREADS, 1, 1), args),))


VARIANTS: tuple[Variant, ...] = (
    CopyStrided(),
    CopyVector(),
    CopyTile(),
    CopyBlock(),
    CopyPlanes(),
    CopyInterleave(),
)
