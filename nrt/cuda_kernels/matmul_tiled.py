"""Batched matrix products in shared memory on the ordinary cores: any sizes, strides and splits.

`simt_tile` has the recipe. Here is where operands come from: a thread's unit is four neighbours
along whichever dimension is adjacent in memory, by one load where sizes and strides are multiples
of four, else by four. Elements outside the matrices are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import (
    INDEX_LIMIT,
    Epilogue,
    ceil_div,
    extra_args,
    extra_types,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.simt_choice import ranked_tiles, tile_seconds
from nrt.cuda_kernels.simt_reduce import reduce_launch
from nrt.cuda_kernels.simt_tile import (
    Operand,
    Tile,
    compile_text,
    gemm_namespace,
    gemm_text,
    unit_step,
)
from nrt.cuda_kernels.variant import (
    Config,
    Emission,
    In,
    KernelSpec,
    Launch,
    Null,
    Out,
    Scalar,
    Variant,
    Work,
)
from nrt.cuda_kernels.vector import masked_loader, output_rows, row_params
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "MatMulSimt"]

u32 = types.uint32

# The launch grid's third dimension counts matrices and parts of the depth.
MAX_BATCHES = 4095

_PARAMS = (
    "K", "total", "splits", "part", "am", "ak", "bk", "bn", "size1", "size2", "size3",
    "as0", "as1", "as2", "as3", "bs0", "bs1", "bs2", "bs3",
)  # fmt: skip

_PROLOGUE = (
    "matrix, split = divide(u32(cuda.blockIdx.z), splits)",
    "first = u32(split * steps)",
    "last = u32(first + steps)",
    "last = u32(last if last < total else total)",
    "z, z3 = divide(matrix, size3)",
    "z, z2 = divide(z, size2)",
    "z0, z1 = divide(z, size1)",
    "a_at = u32(z0 * as0 + z1 * as1 + z2 * as2 + z3 * as3)",
    "b_at = u32(z0 * bs0 + z1 * bs1 + z2 * bs2 + z3 * bs3)",
    "origin = u32(split * part)",
    "row_base = u32(matrix * M)",
    "col_base = u32(0)",
)


def _operand(name: str, tile: Tile, along_depth: bool, by_four: bool) -> Operand:
    """Loads of ``a`` (rows across) or ``b`` (columns across)."""
    extent, start, limit, across, deep = {
        "a": (tile.bm, "row0", "M", "am", "ak"),
        "b": (tile.bn, "col0", "N", "bn", "bk"),
    }[name]
    units = tile.units_a if name == "a" else tile.units_b
    step = unit_step(along_depth, extent, tile)
    load = []
    for u in range(units):
        shift_row, shift_deep = (u * step, 0) if along_depth else (0, u * step)
        load += [
            f"line = u32({start} + {name}_row + u32({shift_row}))",
            f"deep = u32(it * u32({tile.bk}) + {name}_k + u32({shift_deep}))",
            f"at0 = u32({name}_at + line * {across} + deep * {deep})",
        ]
        if by_four:
            values = ", ".join(f"{name}{u}_{j}" for j in range(4))
            load.append(f"{values} = load_{name}({name}, at0, (line < {limit}) & (deep < K))")
            continue
        for j in range(4):
            if along_depth:
                inside = f"(line < {limit}) & (u32(deep + u32({j})) < K)"
                offset = f"u32(at0 + u32({j}) * {deep})"
            else:
                inside = f"(u32(line + u32({j})) < {limit}) & (deep < K)"
                offset = f"u32(at0 + u32({j}) * {across})"
            load.append(f"{name}{u}_{j}, = load_{name}({name}, {offset}, {inside})")
    return Operand(along_depth, (), tuple(load))


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    tile: tuple[int, ...],
    access: tuple[tuple[bool, bool], tuple[bool, bool]],
    rows: tuple[tuple[int, int], ...],
    width: int,
) -> tuple[Any, Any]:
    """One block: a tile of one matrix and one part of the depth (block z).

    ``access`` says of a and b whether units run along depth, and whether one load takes four.
    """
    shape = Tile(*tile)
    operands = [_operand(n, shape, *how) for n, how in zip("ab", access, strict=True)]
    text = gemm_text(shape, _PARAMS, _PROLOGUE, operands[0], operands[1], width)
    namespace = gemm_namespace(out_dtype, program, extras, rows, width)
    for name, (_, by_four) in zip("ab", access, strict=True):
        namespace[f"load_{name}"] = masked_loader(dtype, 4 if by_four else 1)
    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras),
        *[u32] * (6 + len(_PARAMS)),
    )  # fmt: skip
    return compile_text(text, namespace), signature


def _access(
    size: int, depth: int, across: int, deep: int, batches: Sequence[int]
) -> tuple[bool, bool]:
    """Whether units of an operand run along depth, and whether one load takes four elements.

    Args:
        size: rows of a or columns of b.
        depth: length of the dot products.
        across, deep: strides of the two.
        batches: strides of the leading dimensions.
    """
    along_depth = deep == 1 or (across != 1 and deep <= across)
    run, inner, others = (depth, deep, across) if along_depth else (size, across, deep)
    return along_depth, inner == 1 and not any(v % 4 for v in (run, others, *batches))


class MatMulSimt(Variant):
    """Tiles in shared memory, float32 arithmetic."""

    name = "matmul_simt"
    ops = (MatMul,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_matmul(problem, device, (FP32, FP16, BF16))
        if refusal is not None:
            return refusal
        batches = MatMulShape.of(problem).batches
        if batches > MAX_BATCHES:
            return Refusal(f"{batches} matrices do not fit the launch grid ({MAX_BATCHES})")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Tile]:
        shape = MatMulShape.of(problem)
        tiles = ranked_tiles(shape.m, shape.n, shape.k, shape.batches, device)
        return [t for t in tiles if t.splits * problem.y.size < INDEX_LIMIT]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = MatMulShape.of(problem)
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        channel = len(y.shape) - 1
        rows = output_rows(y, channel)
        ycol = y.strides[channel]
        width = 4 if store_width(epilogue, y, channel, 4) == 4 else 1
        extras = extra_args(problem)
        if tile.splits == 1:
            layout = (*row_params(rows), ycol)
            main = self._launch(
                problem, tile, epilogue, shape.out_dtype, layout, width, (Out(), *extras)
            )
            return Emission((main,))
        aligned = 4 if shape.n % 4 == 0 else 1
        main = self._launch(
            problem, tile, Epilogue(None, ()), FP32, ((), shape.n, 1), aligned,
            (Work(), *[Null()] * len(extras)),
        )  # fmt: skip
        end = reduce_launch(
            epilogue, shape.out_dtype, rows, (shape.batches * shape.m, shape.n), tile.splits,
            ycol, width, (Out(), *extras),
        )  # fmt: skip
        return Emission((main, end), 4 * tile.splits * problem.y.size)

    @staticmethod
    def _launch(
        problem: Problem,
        tile: Tile,
        epilogue: Epilogue,
        out_dtype: DType,
        layout: tuple[tuple[tuple[int, int], ...], int, int],
        width: int,
        args: tuple[Any, ...],
    ) -> Launch:
        """The product itself, to memory whose rows and columns ``layout`` describes."""
        shape = MatMulShape.of(problem)
        rows, pitch, ycol = layout
        (am, ak), (bk, bn) = shape.a_strides, shape.b_strides
        access = (
            _access(shape.m, shape.k, am, ak, [d.a for d in shape.batch]),
            _access(shape.n, shape.k, bn, bk, [d.b for d in shape.batch]),
        )
        spec = KernelSpec(
            "nrt.cuda_kernels.matmul_tiled:_kernel",
            (
                shape.dtype, out_dtype, epilogue.program, epilogue.extras,
                tuple(tile.with_splits(1)), access, rows, width,
            ),
            tile.threads,
            tile.blocks_per_sm,
        )  # fmt: skip
        total = ceil_div(shape.k, tile.bk)
        across = ceil_div(shape.n, tile.bn)
        part = problem.y.size if tile.splits > 1 else 0
        numbers = (
            shape.m, shape.n, across, ceil_div(total, tile.splits), pitch, ycol,
            shape.k, total, tile.splits, part, am, ak, bk, bn, *shape.batch_numbers()[:11],
        )  # fmt: skip
        return Launch(
            spec,
            (ceil_div(shape.m, tile.bm) * across, 1, shape.batches * tile.splits),
            (tile.threads, 1, 1),
            (In(0), In(1), *args, *(Scalar(v) for v in numbers)),
        )

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = MatMulShape.of(problem)
        seconds = tile_seconds(Tile(*config), shape.m, shape.n, shape.k, shape.batches, device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)


VARIANTS: tuple[Variant, ...] = (MatMulSimt(),)
