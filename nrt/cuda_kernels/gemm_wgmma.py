"""Matrix products with constant weights on Hopper: copy engine and warpgroup products (sm_90a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cuda_kernels import wgmma_tile
from nrt.cuda_kernels.conv_common import extra_args, rounded, store_width
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.gemm_mma import refuse_weights
from nrt.cuda_kernels.matmul_common import MatMulShape, matmul_epilogue, matrix_output
from nrt.cuda_kernels.variant import Config, Emission, In, Out, TensorMap, Variant
from nrt.cuda_kernels.wgmma_kernel import BK, HopperTile
from nrt.cuda_kernels.wgmma_tile import HopperGemm
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "GemmWgmma"]


class GemmWgmma(Variant):
    """`wgmma_kernel` over rows of ``a`` and a constant ``b``, packed ``[N, K']`` in 64s."""

    name = "gemm_wgmma"
    ops = (MatMul,)
    rank = 6

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        if device.arch != "sm_90a":
            return Refusal(f"{device.arch} has no warpgroup products, expected sm_90a")
        return refuse_weights(problem, device)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return wgmma_tile.ranked(_gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return wgmma_tile.estimate(_gemm(problem), HopperTile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        width = store_width(epilogue, y, len(y.shape) - 1, 8)
        return wgmma_tile.emission(
            _gemm(problem), HopperTile(*config), epilogue, width, In(1), Out(),
            extra_args(problem), device,
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        k, n = array.shape
        packed = np.zeros((n, rounded(k, BK)), array.dtype)
        packed[:, :k] = array.T
        return packed


def _gemm(problem: Problem) -> HopperGemm:
    s = MatMulShape.of(problem)
    row = s.a_strides[0] if s.m > 1 else s.k
    return HopperGemm(
        m=s.m, k=s.n, blocks_c=rounded(s.k, BK) // BK, taps=1, dtype=s.dtype,
        out_dtype=s.out_dtype, y_row=s.y_strides[0] if s.m > 1 else s.n,
        x_map=TensorMap(In(0), s.dtype.name, (s.k, s.m), (row * 2,), (BK, 1), (1, 1)),
        im2col=False,
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (GemmWgmma(),)
