"""Convolution on Hopper: the copy engine's im2col and warpgroup products (sm_90a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cuda_kernels import mma_tile, wgmma_tile
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    Epilogue,
    conv_epilogue,
    extra_args,
    refuse_conv,
    rounded,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Config, Emission, In, Out, TensorMap, Variant
from nrt.cuda_kernels.wgmma_kernel import BK, HopperTile
from nrt.cuda_kernels.wgmma_tile import HopperGemm
from nrt.dtypes import BF16, FP16
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvWgmma"]

_CORNERS = 128
"""Corners of a box of pixels must fit 8 bits in 4-dimensional im2col maps (CUDA driver API)."""


class ConvWgmma(Variant):
    """See `wgmma_kernel`. Weights are packed ``[K, R*S*C']``, C' a multiple of 64."""

    name = "conv_wgmma"
    ops = (Conv,)
    rank = 6

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        if device.arch != "sm_90a":
            return Refusal(f"{device.arch} has no warpgroup products, expected sm_90a")
        refusal = refuse_conv(problem, device, dtypes=(FP16, BF16))
        if refusal is not None:
            return refusal
        s = ConvShape.of(problem)
        if s.groups != 1:
            return Refusal(f"groups={s.groups}, expected 1")
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if s.load_width(8) != 8:
            return Refusal(
                f"input channels ({s.c}) and strides {s.x_strides} are not multiples of 8 "
                "with channels innermost"
            )
        if max(s.stride) > 8:
            return Refusal(f"strides {s.stride}: the copy engine steps over at most 8 elements")
        low, high = _corners(s)
        if any(not -_CORNERS <= v < _CORNERS for v in (*low, *high)):
            return Refusal(f"corners {low} and {high} of the pixels do not fit 8 bits")
        if max(s.dilation[0] * (s.r - 1), s.dilation[1] * (s.s - 1)) > 255:
            return Refusal(f"filter offsets of dilation {s.dilation} do not fit 8 bits")
        return mma_tile.refuse_rows(problem, 1)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return wgmma_tile.ranked(_gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return wgmma_tile.estimate(_gemm(problem), HopperTile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        epilogue = conv_epilogue(problem)
        width = store_width(epilogue, problem.y, 1, 8)
        return wgmma_tile.emission(
            _gemm(problem), HopperTile(*config), epilogue, width, In(1), Out(),
            extra_args(problem), device,
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        k, c, r, s = array.shape
        packed = np.zeros((k, r, s, rounded(c, BK)), array.dtype)
        packed[..., :c] = array.transpose(0, 2, 3, 1)
        return packed


def _corners(s: ConvShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners (w, h) of the pixels that a filter position of (0, 0) may start at."""
    low = (-s.pad[1], -s.pad[0])
    high = (
        s.pad_end[1] - (s.s - 1) * s.dilation[1],
        s.pad_end[0] - (s.r - 1) * s.dilation[0],
    )
    return low, high


def _gemm(problem: Problem) -> HopperGemm:
    s = ConvShape.of(problem)
    plain = s.is_pointwise and mma_tile.uniform_rows(s.x_strides, (s.n, s.h, s.w))
    if plain:
        row = mma_tile.row_step(s.x_strides, (s.n, s.h, s.w)) if s.m > 1 else rounded(s.c, 8)
        x_map = TensorMap(In(0), s.dtype.name, (s.c, s.m), (row * 2,), (BK, 1), (1, 1))
    else:
        # The strides of dimensions of size 1 are never walked, but must be legal.
        pitch_w = s.x_strides[3] if s.w > 1 else rounded(s.c, 8)
        pitch_h = s.x_strides[2] if s.h > 1 else pitch_w * s.w
        pitch_n = s.x_strides[0] if s.n > 1 else pitch_h * s.h
        low, high = _corners(s)
        x_map = TensorMap(
            In(0), s.dtype.name, (s.c, s.w, s.h, s.n), (pitch_w * 2, pitch_h * 2, pitch_n * 2),
            (BK, 1), (1, s.stride[1], s.stride[0], 1), low, high,
        )  # fmt: skip
    return HopperGemm(
        m=s.m, k=s.k, blocks_c=rounded(s.c, BK) // BK, taps=s.r * s.s,
        dtype=s.dtype, out_dtype=s.out_dtype,
        y_row=mma_tile.row_step(s.y_strides, (s.n, s.p, s.q)) if s.m > 1 else s.k,
        x_map=x_map, im2col=not plain, residual=_has_residual(conv_epilogue(problem)),
        filter_w=s.s, out_h=s.p, out_w=s.q,
        stride=s.stride, pad=s.pad, dilation=s.dilation,
    )  # fmt: skip


def _has_residual(epilogue: Epilogue) -> bool:
    return any(extra.mode == "same" for extra in epilogue.extras)


VARIANTS: tuple[Variant, ...] = (ConvWgmma(),)
