"""Convolution on tensor cores by ``mma.sync``: an implicit matrix product over NHWC (sm_80 on)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cuda_kernels import mma_tile
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    conv_epilogue,
    extra_args,
    prologue_args,
    refuse_conv,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.mma_layout import Tile
from nrt.cuda_kernels.mma_pack import block_diagonal, packed
from nrt.cuda_kernels.mma_tile import Gemm
from nrt.cuda_kernels.prologue import channel_table, conv_prologue, refuse_tables
from nrt.cuda_kernels.variant import Config, Emission, In, Out, Variant
from nrt.dtypes import BYTES
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.ops.conv import epilogue_slot
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvMma"]

MIN_GROUP = 4
"""Input channels of a group: with fewer, tiles of 32 columns multiply zeros nine times in ten."""


class ConvMma(Variant):
    """Implicit GEMM with ldmatrix and ``mma.sync``; see `mma_kernel` for the recipe.

    Weights are packed by `mma_pack`, groups that share a tile as a block diagonal: their zeros meet
    the other groups' channels, so that an infinity there spoils the whole tile. A second launch
    adds the parts of a split reduction, in order, so that results are the same from run to run.
    """

    name = "conv_mma"
    ops = (Conv,)
    rank = 4

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, dtypes=mma_tile.OPERANDS, prologue=True)
        refusal = refusal or mma_tile.refuse_operands(problem, device) or refuse_tables(problem)
        if refusal is not None:
            return refusal
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        shape = ConvShape.of(problem)
        piece = 16 // shape.dtype.itemsize
        channels = shape.c if shape.groups == 1 else piece
        if shape.load_width_of(channels, piece) != piece and not _in_halves(problem, device):
            return Refusal(
                f"input channels ({shape.c}) and strides {shape.x_strides} are not multiples of "
                f"{piece} with channels innermost"
            )
        if shape.groups > 1:
            refusal = self._refuse_groups(problem, device)
            if refusal is not None:
                return refusal
        if not self._gemm(problem).tiles(device):
            return Refusal(f"tables of {shape.c} channels do not fit {device.arch}'s shared memory")
        return mma_tile.refuse_rows(problem, 1)

    @staticmethod
    def _refuse_groups(problem: Problem, device: DeviceSpec) -> Refusal | None:
        """None, or why no tile's columns are whole groups of channels."""
        shape = ConvShape.of(problem)
        if shape.cg < MIN_GROUP:
            return Refusal(
                f"groups of {shape.cg} input channels leave tensor cores idle, expected "
                f"{MIN_GROUP} or more"
            )
        gemm = ConvMma._gemm(problem)
        if any(gemm.on(t) is not None for t in mma_tile.tiles_for(shape.dtype, device)):
            return None
        return Refusal(
            f"{shape.groups} groups of {shape.cg} to {shape.kg} channels: no tile's columns are "
            "whole groups whose channels are multiples of 16 bytes"
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return mma_tile.ranked(self._gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return mma_tile.estimate(self._gemm(problem), Tile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        epilogue = conv_epilogue(problem)
        width = store_width(epilogue, problem.y, 1, 8)
        gemm = self._gemm(problem)
        return mma_tile.emission(
            gemm, Tile(*config), epilogue, width, (In(0), In(1)), Out(), extra_args(problem),
            device, prologue_args(problem),
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        tile, shape = Tile(*config), ConvShape.of(problem)
        if 1 < slot < epilogue_slot(problem.op):
            length = self._gemm(problem).table_length(tile)
            taps = 1 if length == shape.c else shape.r * shape.s
            return channel_table(problem, array, length, taps)
        if slot != 1:
            return array
        shared = 1
        if shape.groups > 1:
            shared = mma_tile.groups_of_tile(shape.groups, shape.kg, tile.bn) or 1
        missing = self._gemm(problem).channels - shape.c
        if missing:
            array = np.pad(array, ((0, 0), (0, missing), (0, 0), (0, 0)))
        return packed(block_diagonal(array, shape.groups, shared), tile)

    @staticmethod
    def _gemm(problem: Problem) -> Gemm:
        s = ConvShape.of(problem)
        # Half a piece more of each tap, which is not there.
        halves = s.dtype in BYTES and s.groups == 1 and s.c % 16 == 8
        channels = s.c + 8 if halves else s.c
        plain = s.is_pointwise and mma_tile.uniform_rows(s.x_strides, (s.n, s.h, s.w))
        return Gemm(
            m=s.m, k=s.k, j=channels // s.groups * s.r * s.s, dtype=s.dtype, out_dtype=s.out_dtype,
            pointwise=plain, y_row=mma_tile.row_step(s.y_strides, (s.n, s.p, s.q)),
            height=s.h, width=s.w, channels=channels, out_h=s.p, out_w=s.q, filter_w=s.s,
            stride=s.stride, pad=s.pad, dilation=s.dilation,
            x_n=s.x_strides[0], x_h=s.x_strides[2], groups=s.groups,
            x_w=mma_tile.row_step(s.x_strides, (s.n, s.h, s.w)) if plain else s.x_strides[3],
            prologue=conv_prologue(problem), halves=halves,
        )  # fmt: skip


def _in_halves(problem: Problem, device: DeviceSpec) -> bool:
    """Whether channels come in runs of 8 bytes, of bytes, which are copied as such."""
    shape = ConvShape.of(problem)
    return (
        shape.dtype in BYTES
        and shape.groups == 1
        and shape.c % 16 == 8
        and shape.load_width_of(shape.c, 8) == 8
        and mma_tile.is_asynchronous(device)
    )


VARIANTS: tuple[Variant, ...] = (ConvMma(),)
