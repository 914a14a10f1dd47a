"""Matrix products without tensor cores: the family's reference here, tiles in `matmul_tiled`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import matmul_dp4a, matmul_tiled
from nrt.cuda_kernels.codegen import loader, pointer
from nrt.cuda_kernels.conv_common import (
    EVERY_OPERAND,
    INDEX_LIMIT,
    acc_type,
    ceil_div,
    extra_args,
    extra_types,
    result_type,
    weights_type,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra, make_store
from nrt.cuda_kernels.matmul_common import MatMulShape, matmul_epilogue, refuse_matmul
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import divide
from nrt.dtypes import DType
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "MatMulSimtReference"]

u32 = types.uint32

THREADS = 256


def _reference_kernel(
    dtype: DType, out_dtype: DType, program: Program | None, extras: tuple[Extra, ...]
) -> tuple[Any, Any]:
    """Thread t computes element t of y, counted with columns innermost.

    Products are summed in runs of 32 before they join the total: short sums round less. Sums of
    bytes are int32 and exact.
    """
    acc = acc_type(dtype)
    final = result_type(dtype, out_dtype, program)
    load_a, load_b = loader(dtype), loader(weights_type(dtype))
    split = divide()
    store = make_store(program, extras, out_dtype, 1)

    def kernel(
        a, b, y, e0, e1, e2, e3, e4, e5,
        total, M, N, K, am, ak, bk, bn, ym, yn,
        size1, size2, size3, a0, a1, a2, a3, b0, b1, b2, b3, y0, y1, y2, y3,
    ):  # fmt: skip
        t = u32(cuda.blockIdx.x * u32(THREADS) + cuda.threadIdx.x)
        if t >= total:
            return
        row, j = split(t, N)
        z, i = split(row, M)
        z, z3 = split(z, size3)
        z, z2 = split(z, size2)
        z0, z1 = split(z, size1)
        ai = u32(z0 * a0 + z1 * a1 + z2 * a2 + z3 * a3 + i * am)
        bi = u32(z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3 + j * bn)
        result = acc(0)
        part = acc(0)
        for k in range(K):
            left, right = load_a(a, u32(ai + u32(k) * ak)), load_b(b, u32(bi + u32(k) * bk))
            part = acc(part + acc(left * right))
            if u32(k) & u32(31) == u32(31):
                result = acc(result + part)
                part = acc(0)
        o = u32(z0 * y0 + z1 * y1 + z2 * y2 + z3 * y3 + i * ym + j * yn)
        store(final(acc(result + part)), row, j, o, y, e0, e1, e2, e3, e4, e5)

    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * 25,
    )  # fmt: skip
    return kernel, signature


class MatMulSimtReference(Variant):
    """One thread per output element."""

    name = "matmul_simt_reference"
    ops = (MatMul,)
    rank = 0
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_matmul(problem, device, EVERY_OPERAND)
        if refusal is None and problem.y.size >= INDEX_LIMIT - THREADS:
            return Refusal(f"the output has {problem.y.size} elements, threads count to 2^32")
        return refusal

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return [()]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        shape = MatMulShape.of(problem)
        epilogue = matmul_epilogue(problem)
        spec = KernelSpec(
            "nrt.cuda_kernels.matmul_simt:_reference_kernel",
            (shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras),
            THREADS,
        )
        numbers = (
            problem.y.size, shape.m, shape.n, shape.k,
            *shape.a_strides, *shape.b_strides, *shape.y_strides, *shape.batch_numbers(),
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(problem.y.size, THREADS), 1, 1),
            (THREADS, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        # Two loads per multiply-add: about a thirtieth of the arithmetic peak.
        flops = MatMulShape.of(problem).flops
        return max(problem.nbytes / device.bandwidth, 30 * flops / device.fp32_flops) + 2e-6


VARIANTS: tuple[Variant, ...] = (
    *matmul_tiled.VARIANTS,
    *matmul_dp4a.VARIANTS,
    MatMulSimtReference(),
)
