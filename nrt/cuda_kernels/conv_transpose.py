"""Transposed convolution as a gather: each output element collects what would be scattered to it.

Output row p receives filter row r from input row ``(p + pad - r * dilation) / stride`` where that
is whole. The reference tests every filter position; the tiled kernel sorts outputs by ``(p + pad) %
stride``: all outputs of such a phase use the same filter rows, so that a phase is an ordinary
convolution at stride 1 with a reversed, smaller filter, and runs as an implicit matrix product. For
2x2 filters at stride 2 (U-Net) each of the four phases is one plain product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import loader, pointer
from nrt.cuda_kernels.conv_common import (
    INDEX_LIMIT,
    ConvShape,
    acc_type,
    ceil_div,
    conv_epilogue,
    extra_args,
    extra_types,
    operand_strides,
    refuse_conv,
    rounded,
    store_width,
)
from nrt.cuda_kernels.conv_simt import MIN_GROUP, PARAMS, pixels, weights
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra, make_store
from nrt.cuda_kernels.simt_choice import ranked_tiles, tile_seconds
from nrt.cuda_kernels.simt_tile import (
    Tile,
    compile_text,
    gemm_namespace,
    gemm_text,
)
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import (
    divide,
    masked_loader,
    output_rows,
    row_params,
    vector_loader,
)
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import ConvTranspose
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvTransposeDirect", "ConvTransposeSimt"]

u32 = types.uint32

THREADS = 256
MAX_MATRICES = 65535


def _direct_kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    channels_last: bool,
) -> tuple[Any, Any]:
    """Thread t computes element t of y, counted with channels innermost, or else columns."""
    acc = acc_type(dtype)
    load = loader(dtype)
    split = divide()
    store = make_store(program, extras, out_dtype, 1)

    def kernel(
        x, w, y, e0, e1, e2, e3, e4, e5,
        total, K, P, Q, kg, cg, H, W, R, S, sh, sw, pt, pl, dh, dw,
        xn, xc, xh, xw, wc, wk, wr, ws, yn, yk, yh, yw,
    ):  # fmt: skip
        t = u32(cuda.blockIdx.x * u32(THREADS) + cuda.threadIdx.x)
        if t >= total:
            return
        if channels_last:
            m, k = split(t, K)
            row, q = split(m, Q)
            n, p = split(row, P)
        else:
            row, q = split(t, Q)
            plane, p = split(row, P)
            n, k = split(plane, K)
            m = u32(u32(n * P + p) * Q + q)
        group, column = split(k, kg)
        image = u32(n * xn + u32(group * cg) * xc)
        filt = u32(u32(group * cg) * wc + column * wk)
        result = acc(0)
        for r in range(R):
            # A position before the first row wraps to a huge number, whose quotient is outside too.
            h, rest_h = split(u32(p + pt - u32(r) * dh), sh)
            if (rest_h == u32(0)) & (h < H) & (u32(p + pt) >= u32(u32(r) * dh)):
                for s in range(S):
                    v, rest_v = split(u32(q + pl - u32(s) * dw), sw)
                    if (rest_v == u32(0)) & (v < W) & (u32(q + pl) >= u32(u32(s) * dw)):
                        xi = u32(image + h * xh + v * xw)
                        wi = u32(filt + u32(r) * wr + u32(s) * ws)
                        part = acc(0)
                        for c in range(cg):
                            part += load(x, u32(xi + u32(c) * xc)) * load(w, u32(wi + u32(c) * wc))
                        result += part
        o = u32(n * yn + k * yk + p * yh + q * yw)
        store(result, m, k, o, y, e0, e1, e2, e3, e4, e5)

    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras), *[u32] * 28
    )
    return kernel, signature


class ConvTransposeDirect(Variant):
    """One thread per output element; the family's reference."""

    name = "conv_transpose_direct"
    ops = (ConvTranspose,)
    rank = 0
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, ConvTranspose)
        if refusal is None and problem.y.size >= INDEX_LIMIT - THREADS:
            return Refusal(f"the output has {problem.y.size} elements, threads count to 2^32")
        return refusal

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return [()]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        channels_last = shape.y_strides[1] <= shape.y_strides[3]
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_transpose:_direct_kernel",
            (shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, channels_last),
            THREADS,
        )
        numbers = (
            problem.y.size, shape.k, shape.p, shape.q, shape.kg, shape.cg, shape.h, shape.w,
            shape.r, shape.s, *shape.stride, *shape.pad, *shape.dilation,
            *shape.x_strides, *operand_strides(problem, 1), *shape.y_strides,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(problem.y.size, THREADS), 1, 1),
            (THREADS, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = ConvShape.of(problem)
        flops = 2.0 * shape.n * shape.h * shape.w * shape.crs * shape.k
        return max(problem.nbytes / device.bandwidth, 40 * flops / device.fp32_flops) + 2e-6


# -- by phases -------------------------------------------------------------------------------------

_PHASE_PARAMS = ("fsh", "fsw", "fpt", "fpl", "up", "left", "FR", "FS", "P", "OQ")

# Block z is group, vertical phase, horizontal phase. Filter rows r = phase + i * stride read input
# row top - i, so the dilation that `pixels` sees is minus one.
_PROLOGUE = (
    "matrix = u32(cuda.blockIdx.z)",
    "rest, phase_w = divide(matrix, fsw)",
    "group, phase_h = divide(rest, fsh)",
    "first = u32(0)",
    "last = steps",
    "p0 = u32(u32(phase_h + up) % fsh)",
    "q0 = u32(u32(phase_w + left) % fsw)",
    "pt = u32(u32(0) - u32(u32(p0 + fpt - phase_h) // fsh))",
    "pl = u32(u32(0) - u32(u32(q0 + fpl - phase_w) // fsw))",
    "R = u32(u32(FR + fsh - u32(1) - phase_h) // fsh)",
    "S = u32(u32(FS + fsw - u32(1) - phase_w) // fsw)",
    # A stride wider than the filter leaves phases without a tap; their sums are 0.
    "R = u32(R if S > u32(0) else u32(0))",
    "S = u32(S if S > u32(0) else u32(1))",
    "origin = u32(0)",
    "col_base = u32(group * kg)",
)

_PLACING = (
    "image, pixel = divide(m, PQ)",
    "p, q = divide(pixel, Q)",
    "p = u32(p0 + p * fsh)",
    "q = u32(q0 + q * fsw)",
    "m = u32(u32(image * P + p) * OQ + q)",
    "keep = (p < P) & (q < OQ)",
)


def _phase_kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    tile: tuple[int, ...],
    by_four: bool,
    rows: tuple[tuple[int, int], ...],
    width: int,
) -> tuple[Any, Any]:
    """One block: a tile of one phase's outputs and one group's channels (block z).

    The phases' sizes differ by one; all are launched as the largest, and rows beyond are dropped.
    """
    shape = Tile(*tile)
    text = gemm_text(
        shape, (*PARAMS, *_PHASE_PARAMS), _PROLOGUE,
        pixels(shape, None if by_four else ("cg", "S")), weights(shape, "matrix"), width, _PLACING,
    )  # fmt: skip
    namespace = gemm_namespace(out_dtype, program, extras, rows, width)
    namespace["load_a"] = masked_loader(dtype, 4 if by_four else 1)
    namespace["load_b"] = vector_loader(dtype, 4)
    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras),
        *[u32] * (6 + len(PARAMS) + len(_PHASE_PARAMS)),
    )  # fmt: skip
    return compile_text(text, namespace), signature


class ConvTransposeSimt(Variant):
    """A tiled implicit matrix product per phase of the stride, float32 arithmetic."""

    name = "conv_transpose_simt"
    ops = (ConvTranspose,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, ConvTranspose, (FP32, FP16, BF16))
        if refusal is not None:
            return refusal
        shape = ConvShape.of(problem)
        if shape.dilation != (1, 1):
            return Refusal(f"dilation is {shape.dilation}, expected (1, 1)")
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if shape.groups > 1 and shape.kg < MIN_GROUP:
            return Refusal(f"groups have {shape.kg} output channels, expected {MIN_GROUP} or more")
        if self._matrices(shape) > MAX_MATRICES:
            return Refusal(f"{self._matrices(shape)} phases and groups do not fit the launch grid")
        return None

    @staticmethod
    def _matrices(shape: ConvShape) -> int:
        return shape.groups * shape.stride[0] * shape.stride[1]

    @staticmethod
    def _sizes(shape: ConvShape) -> tuple[int, int, int]:
        """Rows and columns of the largest phase's output, and depth of its products."""
        sh, sw = shape.stride
        taps = ceil_div(shape.r, sh) * ceil_div(shape.s, sw)
        return ceil_div(shape.p, sh), ceil_div(shape.q, sw), taps * shape.cg

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Tile]:
        shape = ConvShape.of(problem)
        height, width, depth = self._sizes(shape)
        rows = shape.n * height * width
        tiles = ranked_tiles(rows, shape.kg, depth, self._matrices(shape), device, 99)
        return [t for t in tiles if t.splits == 1][:4]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        step = shape.kg if shape.groups > 1 else 0
        width = 4 if store_width(epilogue, problem.y, 1, 4, step) == 4 else 1
        rows, pitch = row_params(output_rows(problem.y, 1))
        by_four = shape.load_width(4) == 4
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_transpose:_phase_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, tuple(tile),
                by_four, rows, width,
            ),
            tile.threads,
            # Phases need a few registers more than the 128 that as many blocks as elsewhere leave.
            max(1, tile.blocks_per_sm - 1),
        )  # fmt: skip
        phase_p, phase_q, depth = self._sizes(shape)
        m = shape.n * phase_p * phase_q
        total = ceil_div(depth, tile.bk)
        across = ceil_div(shape.kg, tile.bn)
        (sh, sw), (top, left) = shape.stride, shape.pad
        minus = 2**32 - 1
        xn, xc, xh, xw = shape.x_strides
        numbers = (
            m, shape.kg, across, total, pitch, shape.y_strides[1],
            total, 1, 0, shape.kg, total * tile.bk, across * tile.bn, shape.cg, 0, 0,
            phase_p * phase_q, phase_q, shape.h, shape.w, 1, 1, 0, 0, minus, minus, xn, xc, xh, xw,
            sh, sw, top, left, -top % sh, -left % sw, shape.r, shape.s, shape.p, shape.q,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(m, tile.bm) * across, 1, self._matrices(shape)),
            (tile.threads, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = ConvShape.of(problem)
        height, width, depth = self._sizes(shape)
        rows = shape.n * height * width
        seconds = tile_seconds(Tile(*config), rows, shape.kg, depth, self._matrices(shape), device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as [group and phases, depth (r, s, c), column], zero-padded to whole tiles."""
        if slot != 1:
            return array
        tile = Tile(*config)
        shape = ConvShape.of(problem)
        depth = rounded(self._sizes(shape)[2], tile.bk)
        sh, sw = shape.stride
        packed = np.zeros((shape.groups, sh, sw, depth, rounded(shape.kg, tile.bn)), array.dtype)
        grouped = array.reshape(shape.groups, shape.cg, shape.kg, shape.r, shape.s)
        for a in range(sh):
            for b in range(sw):
                taps = grouped[:, :, :, a::sh, b::sw].transpose(0, 3, 4, 1, 2)
                taps = taps.reshape(shape.groups, -1, shape.kg)
                packed[:, a, b, : taps.shape[1], : shape.kg] = taps
        return packed


VARIANTS: tuple[Variant, ...] = (ConvTransposeSimt(), ConvTransposeDirect())
