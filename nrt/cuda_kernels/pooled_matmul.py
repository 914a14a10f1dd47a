"""Global pooling and the classifier behind it in one launch.

Each block pools its images for itself: at small batches a launch costs more than reading an image
of 7 x 7 pixels a hundred times from the second-level cache. With more images the two launches
win; which it is, the tuner measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nrt.cuda_kernels.conv_common import ceil_div
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, epilogue_extras
from nrt.cuda_kernels.pooled_matmul_kernels import THREADS, UNROLL, held_vectors, pool_rows
from nrt.cuda_kernels.reduce_text import Ends
from nrt.cuda_kernels.strided import (
    Geometry,
    broadcast_strides,
    collapse,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Null, Out, Variant
from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.op import Array
from nrt.ir.ops import PooledMatMul
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "PooledConfig", "PooledGemv", "PooledStrided"]

_TYPES = (FP16, BF16, FP32)
_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may declare."""
_LATENCY = 7e-7
"""Seconds from a load to its value, under load."""
MAX_BEFORE = 8
MAX_IMAGES = 65535


class PooledConfig(NamedTuple):
    """How a block divides the work.

    Attributes:
        threads: of a block.
        columns: outputs that a warp makes of each image.
        images: that a block pools.
        width: elements per load.
    """

    threads: int
    columns: int
    images: int
    width: int


def _op(problem: Problem) -> PooledMatMul:
    assert isinstance(problem.op, PooledMatMul)
    return problem.op


def _ends(problem: Problem) -> Ends:
    op = _op(problem)
    _, _, before, after = op.parts(problem.inputs)
    return Ends(
        op.prologue, op.epilogue, tuple(t.dtype for t in before), tuple(t.dtype for t in after)
    )


def _spatial(problem: Problem) -> Geometry:
    """Collapsed spatial dimensions; strides of x, then of each operand of the prologue."""
    x, _, before, _ = _op(problem).parts(problem.inputs)
    strides = [x.strides, *(broadcast_strides(t, x.shape) for t in before)]
    return collapse(x.shape[2:], *(s[2:] for s in strides))


def _args(problem: Problem) -> list[Arg]:
    _, _, before, after = _op(problem).parts(problem.inputs)
    args: list[Arg] = [In(0), In(1), Out(), *(In(2 + k) for k in range(len(before)))]
    args += [In(2 + len(before) + k) for k in range(len(after))]
    return [*args, *[Null()] * (MAX_EXTRAS - len(after))]


def _refuse(problem: Problem) -> Refusal | None:
    _, _, before, after = _op(problem).parts(problem.inputs)
    for spec in (problem.inputs[0], problem.y):
        if spec.dtype not in _TYPES:
            return Refusal(f"{spec.dtype} elements, expected fp16, bf16 or fp32")
    if len(before) > MAX_BEFORE or len(after) > MAX_EXTRAS:
        return Refusal(
            f"{len(before)} operands of the prologue and {len(after)} of the epilogue, at most "
            f"{MAX_BEFORE} and {MAX_EXTRAS}"
        )
    if problem.inputs[0].size == 0 or problem.y.size == 0:
        return Refusal("an empty tensor")
    return refuse_large(problem) or refuse_rank(_spatial(problem))


class PooledStrided(Variant):
    """Any strides, one thread an output: each pools all channels for itself."""

    name = "pooled_matmul_strided"
    ops = (PooledMatMul,)
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
        op, y, inside = _op(problem), problem.y, _spatial(problem)
        x, w, before, after = op.parts(problem.inputs)
        spec = KernelSpec(
            "nrt.cuda_kernels.pooled_matmul_kernels:_strided_kernel",
            (
                op.kind, x.dtype, y.dtype, inside.rank, _ends(problem),
                epilogue_extras(after, y, 1),
            ),
            THREADS,
        )  # fmt: skip
        numbers = [y.size, y.shape[1], x.shape[1], inside.size]
        numbers += [*(w.strides[::-1] if op.trans_b else w.strides), *y.strides]
        for tensor in (x, *before):
            numbers += broadcast_strides(tensor, x.shape)[:2]
        numbers += [*inside.shape, *(s for row in inside.strides for s in row)]
        grid = waves(device, y.size, THREADS)
        args = (*_args(problem), *scalars(numbers))
        return Emission((Launch(spec, (grid, 1, 1), (THREADS, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        # Serial over a whole image, a dependent load each 0.03 us.
        image = problem.inputs[0].size // problem.inputs[0].shape[0]
        return image * 3e-8 + problem.nbytes / device.bandwidth + 3e-6


class PooledGemv(Variant):
    """Channels last: a block pools in shared memory and multiplies from there."""

    name = "pooled_matmul"
    ops = (PooledMatMul,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        refusal = _refuse(problem)
        if refusal is not None:
            return refusal
        op, inside = _op(problem), _spatial(problem)
        x, _, before, _ = op.parts(problem.inputs)
        if not problem.constants[1]:
            return Refusal("the weights are no constant, which is packed")
        if x.strides[1] != 1 and x.shape[1] > 1:
            return Refusal(f"input has channel stride {x.strides[1]}, expected 1 (NHWC)")
        if inside.rank != 1:
            return Refusal(f"{inside.rank} spatial dimensions after collapsing, expected 1")
        for k, tensor in enumerate(before):
            image, channel, *pixels = broadcast_strides(tensor, x.shape)
            if image or any(pixels) or channel not in (0, 1):
                return Refusal(
                    f"operand {k} of the prologue varies along more than the channels, or they do "
                    "not lie side by side"
                )
        if x.shape[0] > MAX_IMAGES:
            return Refusal(f"{x.shape[0]} images do not fit the launch grid ({MAX_IMAGES})")
        if not self._fitting(problem):
            return Refusal(
                f"{x.shape[1]} channels of an image do not fit {_SHARED} bytes of shared memory"
            )
        return None

    @staticmethod
    def _width(problem: Problem) -> int:
        x = problem.inputs[0]
        inside = _spatial(problem)
        steps = [x.shape[1], inside.strides[0][0] if inside.size > 1 else 0]
        steps.append(x.strides[0] if x.shape[0] > 1 else 0)
        width = 16 // x.dtype.itemsize
        while any(s % width for s in steps):
            width //= 2
        return width

    def _fitting(self, problem: Problem) -> list[PooledConfig]:
        x, width = problem.inputs[0], self._width(problem)
        most = [g for g in (1, 2, 4) if g == 1 or g <= x.shape[0]]
        return [
            PooledConfig(threads, columns, images, width)
            for threads in (512, 256, 128)
            for columns in (1, 2, 4)
            for images in most
            if 4 * images * x.shape[1] * pool_rows(x.shape[1], width, threads) <= _SHARED
        ]

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[PooledConfig]:
        found = self._fitting(problem)
        return sorted(found, key=lambda c: self.estimate(problem, c, device))[:6]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        config = PooledConfig(*config)
        op, y, inside = _op(problem), problem.y, _spatial(problem)
        x, _, before, after = op.parts(problem.inputs)
        modes = tuple("v" if broadcast_strides(t, x.shape)[1] else "b" for t in before)
        spec = KernelSpec(
            "nrt.cuda_kernels.pooled_matmul_kernels:_pooled_kernel",
            (
                op.kind, x.dtype, y.dtype, x.shape[1], tuple(config), _ends(problem), modes,
                epilogue_extras(after, y, 1),
            ),
            config.threads,
        )  # fmt: skip
        numbers = [*y.shape, inside.size, x.strides[0], inside.strides[0][0], *y.strides]
        tile = config.threads // 32 * config.columns
        grid = (ceil_div(y.shape[1], tile), ceil_div(x.shape[0], config.images), 1)
        args = (*_args(problem), *scalars(numbers))
        return Emission((Launch(spec, grid, (config.threads, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        threads, columns, images, width = config
        x, y = problem.inputs[0], problem.y
        channels, pixels = x.shape[1], _spatial(problem).size
        tiles, groups = ceil_div(y.shape[1], threads // 32 * columns), ceil_div(x.shape[0], images)
        rounds = ceil_div(tiles * groups, device.multiprocessors * (1024 // threads))
        rows, lanes = pool_rows(channels, width, threads), channels // width
        visits = ceil_div(lanes * rows * images, threads) * ceil_div(pixels, rows * UNROLL)
        turns = ceil_div(lanes, 32)
        held = held_vectors(channels, width, columns, x.dtype)
        weights = 0 if held else turns
        latency = rounds * (visits + weights) * _LATENCY
        # The second-level cache has about twice the bandwidth of memory.
        again = (
            tiles * x.size * x.dtype.itemsize + groups * y.shape[1] * channels * x.dtype.itemsize
        )
        cached = again / (2 * device.bandwidth)
        # Every block writes and adds up its sums, and its warps take turns over the channels.
        inside = 5e-7 + rounds * images * columns * turns * 5e-8
        return max(problem.nbytes / device.bandwidth, latency, cached) + inside + 2e-6

    def pack(self, problem: Problem, config: tuple[Any, ...], slot: int, array: Array) -> Array:
        """The weights as [M, C]."""
        del config
        if slot != 1:
            return array
        return np.ascontiguousarray(array if _op(problem).trans_b else array.T)


VARIANTS: tuple[Variant, ...] = (PooledStrided(), PooledGemv())
