"""Matrix products with constant weights on tensor cores by ``mma.sync`` (sm_80 and later)."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.cuda_kernels import mma_tile
from nrt.cuda_kernels.conv_common import extra_args, store_width
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.mma_layout import Tile
from nrt.cuda_kernels.mma_pack import packed
from nrt.cuda_kernels.mma_tile import Gemm
from nrt.cuda_kernels.variant import Config, Emission, In, Out, Variant
from nrt.dtypes import BF16, FP16, DType
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "GemmMma", "refuse_weights"]


def refuse_weights(
    problem: Problem, device: DeviceSpec, dtypes: Sequence[DType] = (FP16, BF16)
) -> Refusal | None:
    """None, or why ``a`` and a constant ``b`` cannot be read along K, 16 bytes at a time."""
    refusal = refuse_matmul(problem, device, dtypes)
    refusal = refusal or mma_tile.refuse_operands(problem, device)
    if refusal is not None:
        return refusal
    if not problem.constants[1] or len(problem.inputs[1].shape) != 2:
        return Refusal("b is not a constant matrix, expected one to pack")
    shape = MatMulShape.of(problem)
    if shape.batch:
        return Refusal(f"{len(shape.batch)} leading dimensions are not rows of one matrix")
    row, step = shape.a_strides
    piece = 16 // shape.dtype.itemsize
    if (step != 1 and shape.k > 1) or row % piece or shape.k % piece:
        return Refusal(
            f"rows of a ({shape.k} long, strides {shape.a_strides}) cannot be read {piece} at a "
            "time"
        )
    if shape.y_strides[1] != 1 and shape.n > 1:
        return Refusal("columns of the output are not adjacent")
    return None


class GemmMma(Variant):
    """`mma_tile` over rows of ``a`` and a constant ``b``, packed ``[N, K]`` with K innermost."""

    name = "gemm_mma"
    ops = (MatMul,)
    rank = 4

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return refuse_weights(problem, device, mma_tile.OPERANDS)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return mma_tile.ranked(self._gemm(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return mma_tile.estimate(self._gemm(problem), Tile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        width = store_width(epilogue, y, len(y.shape) - 1, 8)
        return mma_tile.emission(
            self._gemm(problem), Tile(*config), epilogue, width, (In(0), In(1)), Out(),
            extra_args(problem), device,
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        assert isinstance(problem.op, MatMul)
        return packed(array if problem.op.trans_b else array.T, Tile(*config))

    @staticmethod
    def _gemm(problem: Problem) -> Gemm:
        s = MatMulShape.of(problem)
        return Gemm(
            m=s.m, k=s.n, j=s.k, dtype=s.dtype, out_dtype=s.out_dtype,
            pointwise=True, y_row=s.y_strides[0] if s.m > 1 else s.n,
            x_w=s.a_strides[0] if s.m > 1 else s.k,
        )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (GemmMma(),)
