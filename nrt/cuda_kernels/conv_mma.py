"""Convolution on tensor cores by ``mma.sync``: an implicit matrix product over NHWC (sm_80 on)."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.cuda_kernels import mma_tile
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    conv_epilogue,
    extra_args,
    refuse_conv,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.mma_layout import Tile
from nrt.cuda_kernels.mma_pack import packed
from nrt.cuda_kernels.mma_tile import Gemm
from nrt.cuda_kernels.variant import Config, Emission, In, Out, Variant
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvMma"]


class ConvMma(Variant):
    """Implicit GEMM with cp.async, ldmatrix and m16n8k16; see `mma_kernel` for the recipe.

    Weights are packed ``[K, R*S*C]``, channels innermost. A second launch adds the parts of a split
    reduction, in order, so that results are the same from run to run.
    """

    name = "conv_mma"
    ops = (Conv,)
    rank = 4

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, dtypes=mma_tile.OPERANDS)
        refusal = refusal or mma_tile.refuse_operands(problem, device)
        if refusal is not None:
            return refusal
        shape = ConvShape.of(problem)
        if shape.groups != 1:
            return Refusal(f"groups={shape.groups}, expected 1")
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        piece = 16 // shape.dtype.itemsize
        if shape.load_width(piece) != piece:
            return Refusal(
                f"input channels ({shape.c}) and strides {shape.x_strides} are not multiples of "
                f"{piece} with channels innermost"
            )
        return mma_tile.refuse_rows(problem, 1)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return mma_tile.ranked(self._gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return mma_tile.estimate(self._gemm(problem), Tile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        epilogue = conv_epilogue(problem)
        width = store_width(epilogue, problem.y, 1, 8)
        return mma_tile.emission(
            self._gemm(problem), Tile(*config), epilogue, width, (In(0), In(1)), Out(),
            extra_args(problem), device,
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        rows = array.transpose(0, 2, 3, 1).reshape(array.shape[0], -1)
        return packed(rows, Tile(*config))

    @staticmethod
    def _gemm(problem: Problem) -> Gemm:
        s = ConvShape.of(problem)
        plain = s.is_pointwise and mma_tile.uniform_rows(s.x_strides, (s.n, s.h, s.w))
        return Gemm(
            m=s.m, k=s.k, j=s.crs, dtype=s.dtype, out_dtype=s.out_dtype,
            pointwise=plain, y_row=mma_tile.row_step(s.y_strides, (s.n, s.p, s.q)),
            height=s.h, width=s.w, channels=s.c, out_h=s.p, out_w=s.q, filter_w=s.s,
            stride=s.stride, pad=s.pad, dilation=s.dilation,
            x_n=s.x_strides[0], x_h=s.x_strides[2],
            x_w=mma_tile.row_step(s.x_strides, (s.n, s.h, s.w)) if plain else s.x_strides[3],
        )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (ConvMma(),)
