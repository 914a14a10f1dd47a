"""Transposes: copies whose ends are contiguous along different dimensions.

A tile goes through shared memory at any size; where both ends come in whole vectors, a thread
transposes a square in its registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels.copy_kernels import THREADS, TILE, block_side
from nrt.cuda_kernels.copy_walk import Copy, Walk, walk
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.strided import Geometry, scalars
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out
from nrt.problem import Problem, Refusal

__all__ = ["CopyBlock", "CopyTile"]


def _tile_dims(geometry: Geometry) -> tuple[int, int] | None:
    """(A, B): the dimensions contiguous in y and in x, if they differ."""
    y, x = geometry.strides
    if y[-1] != 1 or x[-1] == 1:
        return None
    for dim in range(geometry.rank - 1):
        if x[dim] == 1:
            return geometry.rank - 1, dim
    return None


class CopyTile(Copy):
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


class CopyBlock(Copy):
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
        large = sorted([(8, 1, 8), (8, 4, 2), (8, 2, 4)], key=threads)
        small = sorted([(8, 1, 1), (4, 1, 1)], key=threads)[0]
        if geometry.size // side**2 < 2 * 256 * device.multiprocessors:
            # Large blocks would leave SMs without one.
            return [small, large[0]]
        # The same block of other warps: they read whole lines and write halves.
        halves = (4, 2 * large[0][1], large[0][2] // 2)
        return [large[0], halves, large[1], small]

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
