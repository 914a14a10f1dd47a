"""Copies between arbitrary strides, with or without a change of element type.

Every movement that strides cannot express reaches this family as a `Reformat`. Three access
patterns are told apart: the same innermost dimension on both sides (vectors), different ones (a
tile through shared memory), and few interleaved channels (planes to pixels). A copy's ends may lie
anywhere inside a larger tensor, so the kernels that use vectors look at the addresses and have a
way without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.cuda_kernels.copy_kernels import THREADS, TILE, block_side
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.pointwise_kernels import (
    VectorConfig,
    strided_emission,
    vector_configs,
    vector_emission,
    vector_refusal,
)
from nrt.cuda_kernels.strided import (
    RAW,
    Geometry,
    collapse,
    refuse_fp8,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.dtypes import DType
from nrt.ir.op import Op
from nrt.ir.ops import Reformat, Slice
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import identity
from nrt.problem import Problem, Refusal

__all__ = [
    "VARIANTS",
    "CopyBlock",
    "CopyPlanes",
    "CopyStrided",
    "CopyTile",
    "CopyVector",
    "Walk",
    "walk",
]


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


class _Copy(Variant):
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


class CopyStrided(_Copy):
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
            program, (found.source,), found.target, found.geometry, device, base=found.base
        )

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        # Threads follow the output; a reader across the grain fetches a 32-byte sector an element.
        inner = walk(problem).geometry.strides[1][-1]
        return (3 if inner in (0, 1) else 6) * problem.nbytes / device.bandwidth + 3e-6


class CopyVector(_Copy):
    """The same innermost dimension on both sides, 16 bytes a thread."""

    name = "copy_vector"
    rank = 2

    def _check(self, found: Walk) -> Refusal | None:
        return vector_refusal(found.geometry, (found.source,), found.target)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[VectorConfig]:
        found = walk(problem)
        program = identity(kind_of(found.source))
        return vector_configs(program, found.geometry, (found.source,), found.target, device)

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        found = walk(problem)
        program = identity(kind_of(found.source))
        return vector_emission(
            program,
            (found.source,),
            found.target,
            found.geometry,
            VectorConfig(*config),
            device,
            check=True,
        )


# -- transposed tiles ------------------------------------------------------------------------------


def _tile_dims(geometry: Geometry) -> tuple[int, int] | None:
    """(A, B): the dimensions contiguous in y and in x, if they differ."""
    y, x = geometry.strides
    if y[-1] != 1 or x[-1] == 1:
        return None
    for dim in range(geometry.rank - 1):
        if x[dim] == 1:
            return geometry.rank - 1, dim
    return None


class CopyTile(_Copy):
    """Different innermost dimensions: a tile through shared memory."""

    name = "copy_tile"
    rank = 3

    def _check(self, found: Walk) -> Refusal | None:
        geometry = found.geometry
        dims = _tile_dims(geometry)
        if dims is None:
            return Refusal("input and output have no different contiguous dimensions")
        if min(min(s) for s in geometry.strides) < 0:
            return Refusal("a stride is negative")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        found = walk(problem)
        geometry = found.geometry
        width = max(1, 4 // found.target.itemsize)
        ys = [s for d, s in enumerate(geometry.strides[0]) if d != geometry.rank - 1]
        if geometry.shape[-1] % width or any(s % width for s in ys):
            width = 1
        return [(w,) for w in dict.fromkeys((width, 1))]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        (width,) = config
        found = walk(problem)
        geometry = found.geometry
        if geometry.size == 0:
            return Emission(())
        dims = _tile_dims(geometry)
        assert dims is not None
        a, b = dims
        ys, xs = geometry.strides
        rest = [d for d in range(geometry.rank) if d not in dims]
        tiles_a = -(-geometry.shape[a] // (TILE * width))
        tiles_b = -(-geometry.shape[b] // TILE)
        blocks = tiles_a * tiles_b
        for d in rest:
            blocks *= geometry.shape[d]
        spec = KernelSpec(
            "nrt.cuda_kernels.copy_kernels:_tile_kernel",
            (found.source, found.target, len(rest), width),
            THREADS,
        )
        numbers = [tiles_a, tiles_b, geometry.shape[a], geometry.shape[b], xs[a], ys[b]]
        for row in (geometry.shape, ys, xs):
            numbers += [row[d] for d in rest]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        return Emission((Launch(spec, (blocks, 1, 1), (TILE, 8, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 1.4 * problem.nbytes / device.bandwidth + 2.5e-6


class CopyBlock(_Copy):
    """Different innermost dimensions, both in whole vectors: transposed in registers."""

    name = "copy_block"
    rank = 4

    def _check(self, found: Walk) -> Refusal | None:
        geometry = found.geometry
        dims = _tile_dims(geometry)
        if dims is None:
            return Refusal("input and output have no different contiguous dimensions")
        side = block_side(found.source, found.target)
        if not side:
            return Refusal(f"no square of {found.source} becomes one of {found.target}")
        if min(min(s) for s in geometry.strides) < 0:
            return Refusal("a stride is negative")
        for size in (geometry.shape[d] for d in dims):
            if size % side:
                return Refusal(f"{size} contiguous elements are not a multiple of {side}")
        for contiguous, strides in zip(dims, geometry.strides, strict=True):
            if any(s % side for d, s in enumerate(strides) if d != contiguous):
                return Refusal(f"strides {strides} are not multiples of {side}")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int, int]]:
        found = walk(problem)
        geometry = found.geometry
        dims = _tile_dims(geometry)
        assert dims is not None
        side = block_side(found.source, found.target)
        squares = [geometry.shape[d] // side for d in dims]

        def threads(config: tuple[int, int, int]) -> int:
            """Threads that run, with those beyond the ends."""
            lanes, warps_a, warps_b = config
            along = (lanes * warps_a, 32 // lanes * warps_b)
            total = geometry.size // max(1, squares[0] * squares[1] * side * side)
            for count, tile in zip(squares, along, strict=True):
                total *= -(-count // tile) * tile
            return total

        # Lanes along A, warps along A and B: long lines of the input, of the output, or squares.
        large = sorted([(8, 1, 8), (8, 4, 2), (8, 2, 4), (4, 8, 1)], key=threads)
        small = sorted([(8, 1, 1), (4, 1, 1)], key=threads)
        if geometry.size // side**2 < 2 * 256 * device.multiprocessors:
            # Large blocks would leave SMs without one.
            return [small[0], large[0]]
        return [*large[:3], small[0]]

    def emit(self, problem: Problem, config: tuple[int, int, int], device: DeviceSpec) -> Emission:
        del device
        lanes, warps_a, warps_b = config
        found = walk(problem)
        geometry = found.geometry
        if geometry.size == 0:
            return Emission(())
        dims = _tile_dims(geometry)
        assert dims is not None
        a, b = dims
        ys, xs = geometry.strides
        side = block_side(found.source, found.target)
        rest = [d for d in range(geometry.rank) if d not in dims]
        tiles_a = -(-geometry.shape[a] // (side * lanes * warps_a))
        tiles_b = -(-geometry.shape[b] // (side * (32 // lanes) * warps_b))
        blocks = tiles_a * tiles_b
        for d in rest:
            blocks *= geometry.shape[d]
        threads = 32 * warps_a * warps_b
        spec = KernelSpec(
            "nrt.cuda_kernels.copy_kernels:_block_kernel",
            (found.source, found.target, len(rest), lanes, warps_a, warps_b),
            threads,
        )
        numbers = [tiles_a, tiles_b, geometry.shape[a], geometry.shape[b], xs[a], ys[b]]
        for row in (geometry.shape, ys, xs):
            numbers += [row[d] for d in rest]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        return Emission((Launch(spec, (blocks, 1, 1), (threads, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 1.1 * problem.nbytes / device.bandwidth + 2e-6


# -- planes to pixels ------------------------------------------------------------------------------


_MAX_CHANNELS = 8


class CopyPlanes(_Copy):
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
)
