"""Convolution of bytes on the ordinary cores: four products an instruction (``dp4a``, sm_61).

Recipe: the implicit matrix product of `conv_simt` on words of four channels, as `matmul_dp4a` has
it. A unit of A is 16 channels of one pixel at one filter tap by one load, or, where these come in
runs of 8, by two, of which the second may be zeros; weights are packed as
[group, column, (r, s, c)], padded with zeros to whole units and tiles, so that B runs along the
depth too and needs no checks. All strides and depths count words. The depth is not split: parts
would pass the workspace as float32, which is not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, pointer
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    ceil_div,
    conv_epilogue,
    dot4,
    extra_args,
    extra_types,
    refuse_conv,
    result_type,
    rounded,
    store_width,
    weights_type,
)
from nrt.cuda_kernels.conv_simt import MIN_GROUP, PARAMS, pixels
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra
from nrt.cuda_kernels.simt_choice import tile_seconds
from nrt.cuda_kernels.simt_tile import (
    DOT4,
    TILES,
    Operand,
    Tile,
    compile_text,
    gemm_namespace,
    gemm_text,
    unit_step,
)
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import output_rows, row_params
from nrt.dtypes import BYTES, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvDp4a"]

u32 = types.uint32

# The launch grid's third dimension counts groups.
MAX_GROUPS = 65535

WORD = 4
"""Bytes in a word."""
UNIT = 16
"""Bytes in a unit, one load: runs of input channels are multiples of it."""

_PROLOGUE = (
    "group = u32(cuda.blockIdx.z)",
    "first = u32(0)",
    "last = u32(total)",
    "origin = u32(0)",
    "row_base = u32(0)",
    "col_base = u32(group * kg)",
)

_LOADS = """
def load_a(p, i, ok):
    mask = u32(u32(0xFFFFFFFF) if ok else u32(0))
    w0, w1, w2, w3 = ld4(at(p, u32(u32(i * u32(4)) & mask)))
    return u32(w0 & mask), u32(w1 & mask), u32(w2 & mask), u32(w3 & mask)


def load_halves(p, i, ok, whole):
    mask = u32(u32(0xFFFFFFFF) if ok else u32(0))
    second = u32(mask if whole else u32(0))
    w0, w1 = ld2(at(p, u32(u32(i * u32(4)) & mask)))
    w2, w3 = ld2(at(p, u32(u32(u32(i * u32(4)) + u32(8)) & second)))
    return u32(w0 & mask), u32(w1 & mask), u32(w2 & second), u32(w3 & second)


def load_b(p, i):
    return ld4(at(p, u32(i * u32(4))))
"""


def _load(name: str) -> Any:
    """Four words: masked ones read the first where not ok and make it zero, without a branch."""
    names = {"at": ptx.at, "ld2": ptx.ld_global_nc_v2, "ld4": ptx.ld_global_nc_v4, "u32": u32}
    return device_function(_LOADS, name, names)


def _weights(tile: Tile) -> Operand:
    """B: packed weights, four words of depth of a column a load."""
    step = unit_step(True, tile.bn, tile)
    start = "u32(u32(u32(group * NP) + col0 + b_row) * depths + b_k)"
    load = [
        f"b{u}_0, b{u}_1, b{u}_2, b{u}_3 = load_b(b, u32(b_at + u32({u * step}) * depths))"
        for u in range(tile.units_b)
    ]
    return Operand(True, (f"b_at = {start}",), tuple(load), (f"b_at = u32(b_at + u32({tile.bk}))",))


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    tile: tuple[int, ...],
    rows: tuple[tuple[int, int], ...],
    width: int,
    halves: bool,
) -> tuple[Any, Any]:
    """One block: a tile of pixels and channels of one group (block z)."""
    shape = Tile(*tile)
    a, b = pixels(shape, None, halves=halves), _weights(shape)
    text = gemm_text(shape, PARAMS, _PROLOGUE, a, b, width, arithmetic=DOT4)
    namespace = gemm_namespace(out_dtype, program, extras, rows, width, DOT4)
    namespace["dot4"] = dot4(dtype)
    namespace["final"] = result_type(dtype, out_dtype, program)
    namespace["load_a"] = _load("load_halves" if halves else "load_a")
    namespace["load_b"] = _load("load_b")
    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * (6 + len(PARAMS)),
    )  # fmt: skip
    return compile_text(text, namespace), signature


class ConvDp4a(Variant):
    """Implicit matrix product in shared memory, ``dp4a``."""

    name = "conv_dp4a"
    ops = (Conv,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, Conv, BYTES)
        if refusal is not None:
            return refusal
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        shape = ConvShape.of(problem)
        if shape.load_width(UNIT) != UNIT and not _in_halves(shape):
            return Refusal(
                f"groups of {shape.cg} input channels and strides {shape.x_strides} are not "
                f"multiples of {UNIT} with channels innermost"
            )
        if shape.groups > 1 and shape.kg < MIN_GROUP:
            return Refusal(f"groups have {shape.kg} output channels, expected {MIN_GROUP} or more")
        if shape.groups > MAX_GROUPS:
            return Refusal(f"{shape.groups} groups do not fit the launch grid ({MAX_GROUPS})")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Tile]:
        shape = ConvShape.of(problem)
        tiles = [t for t in TILES if t.bm < 2 * max(shape.m, 32) and t.bn < 2 * max(shape.kg, 32)]
        return sorted(tiles, key=lambda t: self.estimate(problem, t, device))[:4]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        constant, pitch = row_params(output_rows(problem.y, 1))
        step = shape.kg if shape.groups > 1 else 0
        width = 4 if store_width(epilogue, problem.y, 1, 4, step) == 4 else 1
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_dp4a:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, tuple(tile),
                constant, width, _in_halves(shape),
            ),
            tile.threads,
            tile.blocks_per_sm,
        )  # fmt: skip
        run = _run(shape)
        total = ceil_div(run * shape.r * shape.s // WORD, tile.bk)
        across = ceil_div(shape.kg, tile.bn)
        # Steps of dimensions of one element are never taken.
        xn, _, xh, xw = (s // WORD for s in shape.x_strides)
        numbers = (
            shape.m, shape.kg, across, total, pitch, shape.y_strides[1],
            total, 1, 0, shape.kg, total * tile.bk, across * tile.bn, run // WORD,
            shape.r, shape.s, shape.p * shape.q, shape.q, shape.h, shape.w, *shape.stride,
            *shape.pad, *shape.dilation, xn, 1, xh, xw,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(shape.m, tile.bm) * across, 1, shape.groups),
            (tile.threads, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = ConvShape.of(problem)
        words = ceil_div(shape.crs, WORD)
        seconds = tile_seconds(Tile(*config), shape.m, shape.kg, words, shape.groups, device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as [groups, column, depth (r, s, c)], zero-padded to whole tiles."""
        if slot != 1:
            return array
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        rows = array.reshape(shape.groups, shape.kg, shape.cg, shape.r, shape.s)
        run = _run(shape)
        rows = np.pad(rows, ((0, 0), (0, 0), (0, run - shape.cg), (0, 0), (0, 0)))
        crs = run * shape.r * shape.s
        depth = rounded(crs // WORD, tile.bk) * WORD
        packed = np.zeros((shape.groups, rounded(shape.kg, tile.bn), depth), np.int8)
        packed[:, : shape.kg, :crs] = rows.transpose(0, 1, 3, 4, 2).reshape(
            shape.groups, shape.kg, crs
        )
        return packed


def _in_halves(shape: ConvShape) -> bool:
    """Whether the last unit of each run of channels is half there."""
    return shape.groups == 1 and shape.c % UNIT == 8 and shape.load_width(8) == 8


def _run(shape: ConvShape) -> int:
    """Channels of a group in whole units."""
    return shape.cg + 8 if _in_halves(shape) else shape.cg


VARIANTS: tuple[Variant, ...] = (ConvDp4a(),)
