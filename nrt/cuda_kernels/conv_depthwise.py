"""Depthwise convolution on channels-last tensors: memory-bound, so every load is wide.

A thread owns ``vector`` channels and ``pixels`` neighbouring outputs of one row. For each filter
row it loads the input window of all its outputs once and every weight of the row once:
``(pixels - 1) * stride + (S - 1) * dilation + 1`` wide loads serve ``pixels * S`` taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import device_function, pointer
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    ceil_div,
    conv_epilogue,
    extra_args,
    extra_types,
    refuse_conv,
    store_width,
    waves,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import divide, masked_loader, vector_loader, widest
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvDepthwise", "DepthwiseConfig"]

u32 = types.uint32
f32 = types.float32

THREADS = 128
# Weights of a row and accumulators stay in registers: beyond this filter they would spill.
MAX_FILTER = 11
# Registers for a row of weights; the rest is for accumulators, the window and addresses.
WEIGHT_REGISTERS = 32


class DepthwiseConfig(NamedTuple):
    """Outputs along a row that one thread computes, and channels."""

    pixels: int
    vector: int


def _row_text(
    vector: int, pixels: int, store: int, s: int, stride: int, dilation: int, multiplier: int
) -> str:
    """The kernel, unrolled over channels, window columns and taps; filter rows are a loop."""
    lanes = range(vector)
    extras = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    lines = [
        f"def kernel(x, w, y, {extras}, total, CV, QT, P, Q, K, H, W, pt, pl, "
        "xn, xh, xw, yn, yh, yw):",
        "    t = u32(cuda.blockIdx.x * u32(THREADS) + cuda.threadIdx.x)",
        "    if t >= total:",
        "        return",
        "    t, k = divide(t, CV)",
        f"    k = u32(k * u32({vector}))",
        "    t, q = divide(t, QT)",
        f"    q = u32(q * u32({pixels}))",
        "    n, p = divide(t, P)",
        f"    c = u32(k // u32({multiplier}))",
        "    top = u32(p * u32(SH) - pt)",
        f"    left = u32(q * u32({stride}) - pl)",
        "    image = u32(n * xn + c)",
    ]
    lines += [f"    a{i}_{v} = f32(0)" for i in range(pixels) for v in lanes]
    lines += [
        "    for r in range(R):",
        "        h = u32(top + u32(r) * u32(DH))",
        "        if h < H:",
        "            row = u32(image + h * xh)",
    ]
    indent = " " * 12
    for tap in range(s):
        names = ", ".join(f"w{tap}_{v}" for v in lanes)
        offset = f"u32(u32(u32(r) * u32({s}) + u32({tap})) * K + k)"
        lines.append(f"{indent}{names}, = load_w(w, {offset})")
    columns = {
        j: [(i, tap) for i in range(pixels) for tap in range(s) if i * stride + tap * dilation == j]
        for j in range((pixels - 1) * stride + (s - 1) * dilation + 1)
    }
    columns = {j: users for j, users in columns.items() if users}
    for j in columns:
        names = ", ".join(f"x{j}_{lane}" for lane in lanes)
        lines.append(f"{indent}v = u32(left + u32({j}))")
        lines.append(f"{indent}{names}, = load_x(x, u32(row + v * xw), v < W)")
    for j, users in columns.items():
        for i, tap in users:
            lines += [
                f"{indent}a{i}_{lane} = a{i}_{lane} + x{j}_{lane} * w{tap}_{lane}" for lane in lanes
            ]
    lines.append("    m = u32(u32(n * P + p) * Q + q)")
    lines.append("    o = u32(n * yn + p * yh + q * yw + k)")
    for i in range(pixels):
        lines.append(f"    if u32(q + u32({i})) < Q:")
        for v in range(0, vector, store):
            values = ", ".join(f"a{i}_{v + j}" for j in range(store))
            lines.append(
                f"        store({values}, u32(m + u32({i})), u32(k + u32({v})), "
                f"u32(o + u32({i}) * yw + u32({v})), y, {extras})"
            )
    return "\n".join(lines) + "\n"


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    vector: int,
    pixels: int,
    store: int,
    filter_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    multiplier: int,
) -> tuple[Any, Any]:
    """Channels are the fastest thread index, so that a warp reads whole lines.

    Filter, stride and dilation are constants of the binary; sizes and strides are scalars. Weights
    are packed as [R, S, K]. Rows above and below the image are skipped, columns beside it are zero.
    """
    text = _row_text(vector, pixels, store, filter_size[1], stride[1], dilation[1], multiplier)
    namespace: dict[str, Any] = {
        "cuda": cuda,
        "divide": divide(),
        "u32": u32,
        "f32": f32,
        "THREADS": THREADS,
        "R": filter_size[0],
        "SH": stride[0],
        "DH": dilation[0],
        "load_x": masked_loader(dtype, vector),
        "load_w": vector_loader(dtype, vector),
        "store": make_store(program, extras, out_dtype, store),
    }
    kernel = device_function(text, "kernel", namespace).py_func
    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras), *[u32] * 16
    )
    return kernel, signature


class ConvDepthwise(Variant):
    """Depthwise convolution, vectorized over channels."""

    name = "conv_depthwise"
    ops = (Conv,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, Conv, (FP32, FP16, BF16))
        if refusal is not None:
            return refusal
        shape = ConvShape.of(problem)
        if shape.groups != shape.c or shape.groups == 1:
            return Refusal(f"{shape.groups} groups of {shape.c} channels, expected one each")
        if not (shape.x_channels_last and shape.y_channels_last):
            return Refusal("x and y must be channels-last")
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if max(shape.r, shape.s) > MAX_FILTER:
            return Refusal(f"filter {shape.r}x{shape.s} is larger than {MAX_FILTER}")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[DepthwiseConfig]:
        shape = ConvShape.of(problem)
        vector = self._vector(problem, shape)
        found = [DepthwiseConfig(p, vector) for p in (4, 2, 1) if p == 1 or p < 2 * shape.q]
        # With few channels per thread there is room for longer rows.
        if vector <= 4 and shape.q >= 16 and shape.s <= 5:
            found.append(DepthwiseConfig(8, vector))
        return sorted(found, key=lambda c: self.estimate(problem, c, device))

    @staticmethod
    def _vector(problem: Problem, shape: ConvShape) -> int:
        """Channels per thread: as many as loads, stores and the weights' registers allow."""
        if shape.k != shape.c:
            return 1
        vector = shape.load_width_of(shape.c, widest(shape.dtype))
        vector = min(vector, store_width(conv_epilogue(problem), problem.y, 1, vector))
        while vector > 1 and vector * shape.s > WEIGHT_REGISTERS:
            vector //= 2
        return vector

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        config = DepthwiseConfig(*config)
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        store = min(config.vector, widest(shape.out_dtype))
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_depthwise:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras,
                config.vector, config.pixels, store, (shape.r, shape.s), shape.stride,
                shape.dilation, shape.k // shape.c,
            ),
            THREADS,
        )  # fmt: skip
        vectors = shape.k // config.vector
        tiles = ceil_div(shape.q, config.pixels)
        total = vectors * tiles * shape.p * shape.n
        xn, _, xh, xw = shape.x_strides
        yn, _, yh, yw = shape.y_strides
        numbers = (
            total, vectors, tiles, shape.p, shape.q, shape.k, shape.h, shape.w, *shape.pad,
            xn, xh, xw, yn, yh, yw,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(total, THREADS), 1, 1),
            (THREADS, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        config = DepthwiseConfig(*config)
        shape = ConvShape.of(problem)
        tiles = ceil_div(shape.q, config.pixels)
        threads = shape.k // config.vector * tiles * shape.p * shape.n
        window = (config.pixels - 1) * shape.stride[1] + (shape.s - 1) * shape.dilation[1] + 1
        # Instructions of a thread: wide loads with their conversions, multiply-adds, the epilogue.
        row = (window + shape.s) * (4 + config.vector) + shape.s * config.pixels * config.vector
        work = shape.r * row + 12 * config.pixels * config.vector
        rounds = waves(ceil_div(threads, THREADS), 8, device)
        # fp32_flops counts two per lane and clock; a wave is 8 blocks on each SM.
        rate = device.fp32_flops / 2 / device.multiprocessors
        seconds = rounds * 8 * THREADS * work / rate
        return max(problem.nbytes / device.bandwidth, seconds) + 2e-6

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as [R, S, K]."""
        if slot != 1:
            return array
        return np.ascontiguousarray(array[:, 0].transpose(1, 2, 0))


VARIANTS: tuple[Variant, ...] = (ConvDepthwise(),)
