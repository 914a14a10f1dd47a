"""Matrix products with constant weights on Hopper: copy engine and warpgroup products (sm_90a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cuda_kernels import wgmma_tile
from nrt.cuda_kernels.conv_common import extra_args, rounded, store_width
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.variant import Config, Emission, In, Out, TensorMap, Variant
from nrt.cuda_kernels.wgmma_layout import HopperTile, depth
from nrt.cuda_kernels.wgmma_tile import HopperGemm
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "GemmWgmma"]


class GemmWgmma(Variant):
    """`wgmma_kernel` over rows of ``a`` and a constant ``b``: ``[N, K']``, K' whole blocks."""

    name = "gemm_wgmma"
    ops = (MatMul,)
    rank = 6

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = wgmma_tile.refuse_device(device) or refuse_matmul(
            problem, device, wgmma_tile.OPERANDS
        )
        if refusal is None:
            refusal = wgmma_tile.refuse_operands(problem)
        if refusal is not None:
            return refusal
        if not problem.constants[1] or len(problem.inputs[1].shape) != 2:
            return Refusal("b is not a constant matrix, expected one to pack")
        shape = MatMulShape.of(problem)
        if shape.batch:
            return Refusal(f"{len(shape.batch)} leading dimensions are not rows of one matrix")
        row, step = shape.a_strides
        piece = 16 // shape.dtype.itemsize
        if (step != 1 and shape.k > 1) or (row % piece and shape.m > 1) or shape.k % piece:
            return Refusal(
                f"rows of a ({shape.k} long, strides {shape.a_strides}) cannot be read "
                f"{piece} at a time"
            )
        if shape.y_strides[1] != 1 and shape.n > 1:
            return Refusal("columns of the output are not adjacent")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return wgmma_tile.ranked(_gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return wgmma_tile.estimate(_gemm(problem), HopperTile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        return wgmma_tile.emission(
            _gemm(problem), HopperTile(*config), In(1), Out(), extra_args(problem), device
        )

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        op = problem.op
        assert isinstance(op, MatMul)
        columns = array if op.trans_b else array.T
        n, k = columns.shape
        array_type = problem.inputs[1].dtype
        tile = HopperTile(*config)
        packed = np.zeros((n, rounded(k, depth(tile, array_type))), array.dtype)
        packed[:, :k] = columns
        return wgmma_tile.weight_rows(_gemm(problem), tile, packed)


def _gemm(problem: Problem) -> HopperGemm:
    s = MatMulShape.of(problem)
    row = s.a_strides[0] if s.m > 1 else s.k
    size = s.dtype.itemsize
    epilogue, y = matmul_epilogue(problem), matrix_output(problem)
    limit = wgmma_tile.store_limit(s.out_dtype)
    return HopperGemm(
        m=s.m, k=s.n, channels=s.k, taps=1, dtype=s.dtype,
        out_dtype=s.out_dtype, y_row=s.y_strides[0] if s.m > 1 else s.n,
        x_map=TensorMap(
            In(0), wgmma_tile.map_type(s.dtype), (s.k, s.m), (row * size,), (1, 1), (1, 1)
        ),
        im2col=False, epilogue=epilogue, width=store_width(epilogue, y, len(y.shape) - 1, limit),
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (GemmWgmma(),)
