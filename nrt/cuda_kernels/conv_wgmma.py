"""Convolution on Hopper: the copy engine's im2col and warpgroup products (sm_90a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cuda_kernels import mma_tile, wgmma_tile
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    conv_epilogue,
    extra_args,
    refuse_conv,
    rounded,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.prologue import channel_table, conv_prologue, refuse_tables
from nrt.cuda_kernels.variant import Config, Emission, In, Out, TensorMap, Variant
from nrt.cuda_kernels.wgmma_layout import HopperTile, depth
from nrt.cuda_kernels.wgmma_tile import HopperGemm
from nrt.dtypes import BF16, FP16
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.ops.conv import epilogue_slot
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvWgmma"]

_CORNERS = 128
"""Corners of a box of pixels must fit 8 bits in 4-dimensional im2col maps (CUDA driver API)."""


class ConvWgmma(Variant):
    """See `wgmma_kernel`. Weights are packed ``[K, R*S*C']``, C' whole blocks of a buffer's row.

    Grouped convolutions: up to 64 columns read the input channels of all their groups, with zero
    weights outside of their own. That is up to 16 times the products (groups of 4), on cores that
    wait for memory all the same; but a NaN or infinity spreads to its neighbouring groups.
    """

    name = "conv_wgmma"
    ops = (Conv,)
    rank = 6

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = wgmma_tile.refuse_device(device) or refuse_conv(
            problem, device, dtypes=wgmma_tile.OPERANDS, prologue=True
        )
        if refusal is None:
            refusal = wgmma_tile.refuse_operands(problem) or _refuse_prologue(problem)
        if refusal is not None:
            return refusal
        s = ConvShape.of(problem)
        if s.groups > 1 and _group_columns(s) == 0:
            return Refusal(
                f"groups of {s.kg} output channels: neither they nor {_COLUMNS} are whole "
                "multiples of the other"
            )
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        piece = 16 // s.dtype.itemsize
        if s.load_width_of(piece, piece) != piece:
            return Refusal(
                f"input channels ({s.c}) and strides {s.x_strides} are not multiples of {piece} "
                "with channels innermost"
            )
        if max(s.stride) > 8:
            return Refusal(f"strides {s.stride}: the copy engine steps over at most 8 elements")
        low, high = _corners(s)
        if any(not -_CORNERS <= v < _CORNERS for v in (*low, *high)):
            return Refusal(f"corners {low} and {high} of the pixels do not fit 8 bits")
        if max(s.dilation[0] * (s.r - 1), s.dilation[1] * (s.s - 1)) > 255:
            return Refusal(f"filter offsets of dilation {s.dilation} do not fit 8 bits")
        refusal = mma_tile.refuse_rows(problem, 1)
        if refusal is None and not self.configs(problem, device):
            return Refusal(f"tables of {s.c} channels do not fit {device.arch}'s shared memory")
        return refusal

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return wgmma_tile.ranked(_gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return wgmma_tile.estimate(_gemm(problem), HopperTile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        return wgmma_tile.emission(
            _gemm(problem), HopperTile(*config), In(1), Out(), extra_args(problem), device
        )

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        s, tile = ConvShape.of(problem), HopperTile(*config)
        channels = rounded(_set_channels(s), depth(tile, s.dtype))
        if 1 < slot < epilogue_slot(problem.op):
            return channel_table(problem, array, channels)
        if slot != 1:
            return array
        packed = np.zeros((s.k, s.r, s.s, channels), array.dtype)
        taps = array.transpose(0, 2, 3, 1)
        # Columns that share a set of input channels: their own group's stand at its place there.
        per_set = max(1, _COLUMNS // s.kg) if s.groups > 1 else 1
        for member in range(per_set):
            rows = (np.arange(s.k) // s.kg) % per_set == member
            packed[rows, :, :, member * s.cg : (member + 1) * s.cg] = taps[rows]
        return wgmma_tile.weight_rows(_gemm(problem), tile, packed)


def _refuse_prologue(problem: Problem) -> Refusal | None:
    """`refuse_tables`, or why the program's result cannot be multiplied from registers."""
    dtype = problem.inputs[0].dtype
    if conv_prologue(problem) is None:
        return None
    if dtype not in (FP16, BF16):
        return Refusal(f"a prologue on {dtype}, expected fp16 or bf16")
    return refuse_tables(problem)


_COLUMNS = 64
"""Output channels of small groups that are computed together, with zeros outside their group."""


def _group_columns(s: ConvShape) -> int:
    """Columns that read the same input channels; 0 where no tile can hold whole groups."""
    if _COLUMNS % s.kg == 0:
        return _COLUMNS
    return s.kg if s.kg % _COLUMNS == 0 else 0


def _set_channels(s: ConvShape) -> int:
    """Input channels of such columns."""
    return s.cg if s.groups == 1 else s.cg * max(1, _COLUMNS // s.kg)


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
    size, kind = s.dtype.itemsize, wgmma_tile.map_type(s.dtype)
    piece = 16 // size
    plain = s.is_pointwise and mma_tile.uniform_rows(s.x_strides, (s.n, s.h, s.w))
    if plain:
        row = mma_tile.row_step(s.x_strides, (s.n, s.h, s.w)) if s.m > 1 else rounded(s.c, piece)
        x_map = TensorMap(In(0), kind, (s.c, s.m), (row * size,), (1, 1), (1, 1))
    else:
        # The strides of dimensions of size 1 are never walked, but must be legal.
        pitch_w = s.x_strides[3] if s.w > 1 else rounded(s.c, piece)
        pitch_h = s.x_strides[2] if s.h > 1 else pitch_w * s.w
        pitch_n = s.x_strides[0] if s.n > 1 else pitch_h * s.h
        low, high = _corners(s)
        x_map = TensorMap(
            In(0), kind, (s.c, s.w, s.h, s.n), (pitch_w * size, pitch_h * size, pitch_n * size),
            (1, 1), (1, s.stride[1], s.stride[0], 1), low, high,
        )  # fmt: skip
    epilogue, limit = conv_epilogue(problem), wgmma_tile.store_limit(s.out_dtype)
    return HopperGemm(
        m=s.m, k=s.k, channels=_set_channels(s), taps=s.r * s.s,
        dtype=s.dtype, out_dtype=s.out_dtype,
        y_row=mma_tile.row_step(s.y_strides, (s.n, s.p, s.q)) if s.m > 1 else s.k,
        x_map=x_map, im2col=not plain,
        epilogue=epilogue, width=store_width(epilogue, problem.y, 1, limit),
        filter_w=s.s, out_h=s.p, out_w=s.q, stride=s.stride, pad=s.pad, dilation=s.dilation,
        group_k=_group_columns(s) if s.groups > 1 else 0,
        group_c=_set_channels(s) if s.groups > 1 else 0,
        prologue=conv_prologue(problem),
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (ConvWgmma(),)
