"""The second kernel of products whose depth is split: partial sums are added in order.

The sums of a product split among blocks lie in the workspace as ``float32[splits, M, N]``. Added in
order, they give the same bits in every run, as float atomics would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import Epilogue, ceil_div, extra_types
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.simt_tile import compile_text
from nrt.cuda_kernels.variant import Arg, KernelSpec, Launch, Scalar, Work
from nrt.cuda_kernels.vector import divide, row_offset, row_params, vector_loader
from nrt.dtypes import FP32, DType
from nrt.ir.pointwise import Program

__all__ = ["reduce_launch"]

f32 = types.float32
u32 = types.uint32

REDUCE_THREADS = 128


def _reduce_kernel(
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    rows: tuple[tuple[int, int], ...],
    width: int,
) -> tuple[Any, Any]:
    """Thread t adds ``width`` neighbouring partial sums over the splits, in order, and ends them.

    The workspace is ``float32[splits, M, N]``, dense.
    """
    names = [f"s{j}" for j in range(width)]
    parts = [f"p{j}" for j in range(width)]
    operands = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    lines = [
        f"def kernel(work, y, {operands}, total, units, size, splits, ypitch, ycol):",
        f"    t = u32(cuda.blockIdx.x * u32({REDUCE_THREADS}) + cuda.threadIdx.x)",
        "    if t >= total:",
        "        return",
        *[f"    {n} = f32(0)" for n in names],
        "    for split in range(splits):",
        f"        {', '.join(parts)}, = load(work, u32(u32(split) * size + t * u32({width})))",
        *[f"        {n} = {n} + {p}" for n, p in zip(names, parts, strict=True)],
        "    m, unit = divide(t, units)",
        f"    k = u32(unit * u32({width}))",
        "    o = u32(row_offset(m, ypitch) + k * ycol)",
        f"    store({', '.join(names)}, m, k, o, y, {operands})",
    ]
    namespace = {
        "cuda": cuda,
        "u32": u32,
        "f32": f32,
        "divide": divide(),
        "load": vector_loader(FP32, width),
        "row_offset": row_offset(rows),
        "store": make_store(program, extras, out_dtype, width),
    }
    kernel = compile_text("\n".join(lines) + "\n", namespace)
    signature = types.void(pointer(FP32), pointer(out_dtype), *extra_types(extras), *[u32] * 6)
    return kernel, signature


def reduce_launch(
    epilogue: Epilogue,
    out_dtype: DType,
    rows: Sequence[tuple[int, int]],
    size: tuple[int, int],
    splits: int,
    ycol: int,
    width: int,
    args: tuple[Arg, ...],
) -> Launch:
    """Add the partial sums ``float32[splits, *size]`` at the workspace's start and store them.

    Args:
        epilogue: runs on the sums.
        out_dtype: of y.
        rows: of y, as `output_rows` gives them.
        size: rows and columns.
        splits: parts to add.
        ycol: stride of y's columns.
        width: columns per store, 1, 2 or 4; divides the columns.
        args: y and the epilogue's operands.
    """
    m, n = size
    constant, pitch = row_params(rows)
    spec = KernelSpec(
        "nrt.cuda_kernels.simt_reduce:_reduce_kernel",
        (out_dtype, epilogue.program, epilogue.extras, constant, width),
        REDUCE_THREADS,
    )
    total = m * n // width
    numbers = (total, n // width, m * n, splits, pitch, ycol)
    return Launch(
        spec,
        (ceil_div(total, REDUCE_THREADS), 1, 1),
        (REDUCE_THREADS, 1, 1),
        (Work(), *args, *(Scalar(v) for v in numbers)),
    )
