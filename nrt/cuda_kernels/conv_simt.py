"""Convolution as an implicit matrix product on the ordinary cores: the fp32 path.

Rows are output pixels, columns output channels, depth is (r, s, c) with channels innermost; the
unrolled input never exists in memory. `simt_tile` has the recipe. Here is where operands come from:
a thread's unit of A is four input channels of one pixel at one filter tap by one load, or, where
channels are not adjacent or do not come in fours (the first layer), four separate loads. Weights
are packed as [group, depth, column], padded with zeros to whole tiles, so that B needs no checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import (
    INDEX_LIMIT,
    ConvShape,
    Epilogue,
    ceil_div,
    conv_epilogue,
    extra_args,
    extra_types,
    prologue_args,
    refuse_conv,
    rounded,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra
from nrt.cuda_kernels.prologue import (
    Prologue,
    conv_prologue,
    make_prologue,
    refuse_prologue,
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
    Out,
    Scalar,
    Variant,
    Work,
)
from nrt.cuda_kernels.vector import masked_loader, output_rows, row_params, vector_loader
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["PARAMS", "VARIANTS", "ConvSimt", "pixels", "weights"]

u32 = types.uint32

# A tile is 32 columns at least: below this a group would use an eighth of it.
MIN_GROUP = 4
# A row index that stays outside every image when a filter row is added.
OUTSIDE = 1 << 30

PARAMS = (
    "total", "splits", "part", "kg", "depths", "NP", "cg", "R", "S", "PQ", "Q", "H", "W",
    "sh", "sw", "pt", "pl", "dh", "dw", "xn", "xc", "xh", "xw",
)  # fmt: skip

_PROLOGUE = (
    "group, split = divide(u32(cuda.blockIdx.z), splits)",
    "first = u32(split * steps)",
    "last = u32(first + steps)",
    "last = u32(last if last < total else total)",
    "origin = u32(split * part)",
    "row_base = u32(0)",
    "col_base = u32(group * kg)",
)


def pixels(
    tile: Tile,
    one_by_one: tuple[str, str] | None,
    *,
    prologue: bool = False,
    halves: bool = False,
) -> Operand:
    """A: input pixels, four channels a load, or ``one_by_one``.

    Args:
        tile: the block's shape.
        prologue: what was loaded, four at a time, goes through the device function ``before``; the
            zeros outside of the image and behind the last channel do not.
        halves: of each run of ``cg`` channels the last two of four are not there, which ``load_a``
            is told.
        one_by_one: texts of the channels of a group and of the filter's width, which single loads
            divide by: constants where they can be.
    """
    step = unit_step(True, tile.bm, tile)
    setup = []
    for u in range(tile.units_a):
        setup += [
            f"m = u32(row0 + a_row + u32({u * step}))",
            "image, pixel = divide(m, PQ)",
            "p, q = divide(pixel, Q)",
            f"top{u} = u32(u32(p * sh - pt) if m < M else u32({OUTSIDE}))",
            f"left{u} = u32(q * sw - pl)",
            f"base{u} = u32(image * xn + u32(group * cg) * xc)",
        ]
    if one_by_one is None:
        load = []
        told = ", u32(ac + u32(4)) < cg" if halves else ""
        for u in range(tile.units_a):
            values = ", ".join(f"a{u}_{j}" for j in range(4))
            load += [
                f"h = u32(top{u} + ar * dh)",
                f"v = u32(left{u} + as_ * dw)",
                "inside = (h < H) & (v < W) & (ar < R)",
                f"{values} = load_a(a, u32(base{u} + h * xh + v * xw + ac), inside{told})",
            ]
        settle: list[str] = []
        if prologue:
            load += ["loaded_c = ac", "loaded_in = ar < R"]
            setup += ["loaded_c = u32(0)", "loaded_in = False"]
            for u in range(tile.units_a):
                for j in range(4):
                    name = f"a{u}_{j}"
                    settle += [
                        f"new = before({name}, u32(loaded_c + u32({j})), e0, e1, e2, e3, e4, e5)",
                        f"{name} = new if loaded_in else {name}",
                    ]
        return Operand(
            True,
            (
                *setup,
                f"tap, ac = divide(u32(it * u32({tile.bk}) + a_k), cg)",
                "ar, as_ = divide(tap, S)",
            ),
            tuple(load),
            (
                f"ac = u32(ac + u32({tile.bk}))",
                "while ac >= cg:",
                "    ac = u32(ac - cg)",
                "    as_ = u32(as_ + u32(1))",
                "    if as_ == S:",
                "        as_ = u32(0)",
                "        ar = u32(ar + u32(1))",
            ),
            tuple(settle),
        )
    channels, columns = one_by_one
    load = []
    for j in range(4):
        load += [
            f"deep = u32(it * u32({tile.bk}) + a_k + u32({j}))",
            f"tap = u32(deep // {channels})",
            f"ac = u32(deep - tap * {channels})",
            f"ar = u32(tap // {columns})",
            f"as_ = u32(tap - ar * {columns})",
        ]
        for u in range(tile.units_a):
            load += [
                f"h = u32(top{u} + ar * dh)",
                f"v = u32(left{u} + as_ * dw)",
                "inside = (h < H) & (v < W) & (ar < R)",
                f"a{u}_{j}, = load_a(a, u32(base{u} + h * xh + v * xw + ac * xc), inside)",
            ]
    return Operand(True, tuple(setup), tuple(load))


def weights(tile: Tile, matrix: str) -> Operand:
    """B: packed weights, four columns a load; ``matrix`` is the text of the matrix's index."""
    step = unit_step(False, tile.bn, tile)
    start = f"u32(u32({matrix} * depths + it * u32({tile.bk}) + b_k) * NP + col0 + b_row)"
    load = [
        f"b{u}_0, b{u}_1, b{u}_2, b{u}_3 = load_b(b, u32(b_at + u32({u * step}) * NP))"
        for u in range(tile.units_b)
    ]
    return Operand(
        False, (f"b_at = {start}",), tuple(load), (f"b_at = u32(b_at + u32({tile.bk}) * NP)",)
    )


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    tile: tuple[int, ...],
    filter_size: tuple[int, int] | None,
    rows: tuple[tuple[int, int], ...],
    width: int,
    prologue: Prologue | None = None,
) -> tuple[Any, Any]:
    """One block: a tile of pixels and channels of one group and one part of the depth (block z).

    ``steps`` counts steps of depth per part, ``total`` all of them, ``part`` is the distance of two
    parts' partial sums in y (0 without split).
    """
    shape = Tile(*tile)
    # Divisions by constants are multiplications.
    sizes = None if filter_size is None else (f"u32({filter_size[0]})", f"u32({filter_size[1]})")
    a = pixels(shape, sizes, prologue=prologue is not None)
    text = gemm_text(shape, PARAMS, _PROLOGUE, a, weights(shape, "group"), width)
    namespace: dict[str, Any] = gemm_namespace(out_dtype, program, extras, rows, width)
    namespace["load_a"] = masked_loader(dtype, 4 if filter_size is None else 1)
    namespace["load_b"] = vector_loader(dtype, 4)
    operands = extras
    if prologue is not None:
        namespace["before"] = make_prologue(prologue, dtype, len(extras))
        operands = (*extras, *prologue.operands)
    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(operands),
        *[u32] * (6 + len(PARAMS)),
    )  # fmt: skip
    return compile_text(text, namespace), signature


class ConvSimt(Variant):
    """Implicit matrix product in shared memory, float32 arithmetic."""

    name = "conv_simt"
    ops = (Conv,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, Conv, (FP32, FP16, BF16), prologue=True)
        refusal = refusal or refuse_prologue(problem)
        if refusal is not None:
            return refusal
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        shape = ConvShape.of(problem)
        if conv_prologue(problem) is not None and shape.load_width(4) != 4:
            return Refusal(
                f"a prologue on {shape.c} input channels with strides {shape.x_strides}, expected "
                "multiples of 4 with channels innermost"
            )
        if shape.groups > 1 and shape.kg < MIN_GROUP:
            return Refusal(f"groups have {shape.kg} output channels, expected {MIN_GROUP} or more")
        if shape.groups > 4095:
            return Refusal(f"{shape.groups} groups do not fit the launch grid")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Tile]:
        shape = ConvShape.of(problem)
        tiles = ranked_tiles(shape.m, shape.kg, shape.crs, shape.groups, device)
        return [t for t in tiles if t.splits * problem.y.size < INDEX_LIMIT]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        rows = output_rows(problem.y, 1)
        ycol = shape.y_strides[1]
        step = shape.kg if shape.groups > 1 else 0
        width = 4 if store_width(epilogue, problem.y, 1, 4, step) == 4 else 1
        extras = extra_args(problem)
        if tile.splits == 1:
            main = self._launch(
                problem, tile, epilogue, shape.out_dtype, (*row_params(rows), ycol), width,
                (Out(), *extras),
            )  # fmt: skip
            return Emission((main,))
        # Partial sums are dense, so that they may be stored in fours whatever y is like.
        aligned = 4 if shape.kg % 4 == 0 else 1
        main = self._launch(
            problem, tile, Epilogue(None, ()), FP32, ((), shape.k, 1), aligned,
            (Work(), *prologue_args(problem)),
        )  # fmt: skip
        end = reduce_launch(
            epilogue, shape.out_dtype, rows, (shape.m, shape.k), tile.splits, ycol, width,
            (Out(), *extras),
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
        shape = ConvShape.of(problem)
        rows, pitch, ycol = layout
        by_four = shape.load_width(4) == 4
        prologue = conv_prologue(problem)
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_simt:_kernel",
            (
                shape.dtype, out_dtype, epilogue.program, epilogue.extras,
                tuple(tile.with_splits(1)),
                None if by_four else (shape.cg, shape.s), rows, width,
                *([] if prologue is None else [prologue]),
            ),
            tile.threads,
            tile.blocks_per_sm,
        )  # fmt: skip
        total = ceil_div(shape.crs, tile.bk)
        across = ceil_div(shape.kg, tile.bn)
        xn, xc, xh, xw = shape.x_strides
        numbers = (
            shape.m, shape.kg, across, ceil_div(total, tile.splits), pitch, ycol,
            total, tile.splits, problem.y.size if tile.splits > 1 else 0, shape.kg,
            total * tile.bk, across * tile.bn, shape.cg, shape.r, shape.s, shape.p * shape.q,
            shape.q, shape.h, shape.w, *shape.stride, *shape.pad, *shape.dilation, xn, xc, xh, xw,
        )  # fmt: skip
        return Launch(
            spec,
            (ceil_div(shape.m, tile.bm) * across, 1, shape.groups * tile.splits),
            (tile.threads, 1, 1),
            (In(0), In(1), *args, *(Scalar(v) for v in numbers)),
        )

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = ConvShape.of(problem)
        seconds = tile_seconds(Tile(*config), shape.m, shape.kg, shape.crs, shape.groups, device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as [groups, depth (r, s, c), column], zero-padded to whole tiles."""
        if slot != 1:
            return array
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        grouped = array.reshape(shape.groups, shape.kg, shape.cg, shape.r, shape.s)
        packed = np.zeros(
            (shape.groups, rounded(shape.crs, tile.bk), rounded(shape.kg, tile.bn)), array.dtype
        )
        packed[:, : shape.crs, : shape.kg] = grouped.transpose(0, 3, 4, 2, 1).reshape(
            shape.groups, shape.crs, shape.kg
        )
        return packed


VARIANTS: tuple[Variant, ...] = (ConvSimt(),)
