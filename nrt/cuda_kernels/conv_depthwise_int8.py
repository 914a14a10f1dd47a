"""Depthwise convolution of int8 or uint8, channels-last: four taps of a channel are one ``dp4a``.

A thread owns ``vector`` channels and ``pixels`` neighbouring outputs of one row, as in
`conv_depthwise`. It loads by column; the bytes of four columns and four channels are turned by
eight ``prmt`` into a word per channel that holds its four columns. Half of those serve the next
word too, two columns further. A filter of three taps fits such a word in two places, so that one
word serves two outputs of stride 1: for 3x3 and four pixels, an output costs 1.1 ``prmt`` and one
``dp4a`` per filter row, where its share of unpacking bytes to floats would be 3 instructions and
the multiply-adds 3 more.

Sums are int32, and exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
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
    store_width,
    waves,
    weights_type,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import divide, widest
from nrt.dtypes import BYTES, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvDepthwiseInt8", "DepthwiseInt8Config"]

u32 = types.uint32

THREADS = 128
MAX_TAPS = 7
"""Of a filter row: two words of four."""


class DepthwiseInt8Config(NamedTuple):
    """Outputs along a row that one thread computes, and channels."""

    pixels: int
    vector: int


def _words(taps: int, offset: int) -> int:
    """Words that hold ``taps`` columns, the first of them ``offset`` bytes into its word."""
    return ceil_div(taps + offset, 4)


class _Word(NamedTuple):
    """A word of four columns that an output reads: its first pair of columns, and its weights.

    Those are word number ``part`` of the taps that begin ``offset`` bytes into the first.
    """

    pixel: int
    pair: int
    offset: int
    part: int


def _uses(pixels: int, taps: int, stride: int) -> list[_Word]:
    """Every word of every output. Columns are counted from the first output's first."""
    found = []
    for pixel in range(pixels):
        column = pixel * stride
        offset = column % 2
        for part in range(_words(taps, offset)):
            found.append(_Word(pixel, column // 2 + 2 * part, offset, part))
    return found


def _load_lines(names: Sequence[str], address: str) -> Iterator[str]:
    """Lines that load 4, 8 or 16 bytes as words, zeros unless ``ok``."""
    yield f"{', '.join(names)}, = load(at(x, u32({address} if ok else u32(0))))"
    yield "mask = u32(0xFFFFFFFF) if ok else u32(0)"
    for name in names:
        yield f"{name} = u32({name} & mask)"


def _weight_lines(taps: int, stride: int, pixels: int) -> list[tuple[int, int]]:
    """Offset and part of the words that weights are packed as, per filter row and channel.

    Those of offset 1 are shifted from those of offset 0 where that loses no tap.
    """
    offsets = sorted({u.offset for u in _uses(pixels, taps, stride)})
    if offsets == [0, 1] and _words(taps, 1) == 1:
        offsets = [0]
    return [(offset, part) for offset in offsets for part in range(_words(taps, offset))]


def _weight_text(groups: range, taps: int, stride: int, pixels: int) -> Iterator[str]:
    """Lines that load a filter row's weights: word ``w{offset}{part}`` of each channel."""
    packed = _weight_lines(taps, stride, pixels)
    for line, (offset, part) in enumerate(packed):
        for g in groups:
            names = ", ".join(f"w{offset}{part}_{4 * g + c}" for c in range(4))
            row = f"u32(u32(u32(r) * u32(LINES) + u32({line})) * K + k + u32({4 * g}))"
            yield f"{names} = load4(at(w, u32({row} * u32(4))))"
    if any((u.offset, u.part) not in packed for u in _uses(pixels, taps, stride)):
        yield from (f"w10_{c} = u32(w00_{c} << u32(8))" for c in range(4 * len(groups)))


def _turn_text(g: int, uses: Sequence[_Word], columns: int) -> Iterator[str]:
    """Lines that turn four channels of all columns into a word per channel and four columns."""
    for pair in sorted({u.pair + d for u in uses for d in (0, 1)}):
        if 2 * pair >= columns:
            yield f"low{pair} = high{pair} = u32(0)"
            continue
        one, two = (f"x{c}_{g}" if c < columns else "u32(0)" for c in (2 * pair, 2 * pair + 1))
        yield f"low{pair} = prmt({one}, {two}, 0x5140)"
        yield f"high{pair} = prmt({one}, {two}, 0x7362)"
    for pair in sorted({u.pair for u in uses}):
        for c in range(4):
            half, picks = ("low", "high")[c // 2], ("0x5410", "0x7632")[c % 2]
            yield f"c{pair}_{c} = prmt({half}{pair}, {half}{pair + 1}, {picks})"


def _text(vector: int, pixels: int, store: int, taps: int, stride: int) -> str:
    """The kernel, unrolled over channels and columns; filter rows are a loop."""
    groups = range(vector // 4)
    uses = _uses(pixels, taps, stride)
    columns = (pixels - 1) * stride + taps
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
        "    top = u32(p * u32(SH) - pt)",
        f"    left = u32(q * u32({stride}) - pl)",
        "    image = u32(n * xn + k)",
    ]
    lines += [f"    a{i}_{c} = i32(0)" for i in range(pixels) for c in range(vector)]
    lines += [
        "    for r in range(R):",
        "        h = u32(top + u32(r) * u32(DH))",
        "        if h < H:",
        "            row = u32(image + h * xh)",
    ]
    body: list[str] = []
    for j in range(columns):
        body += [f"v = u32(left + u32({j}))", "ok = v < W"]
        body += _load_lines([f"x{j}_{g}" for g in groups], "u32(row + v * xw)")
    body += _weight_text(groups, taps, stride, pixels)
    for g in groups:
        body += _turn_text(g, uses, columns)
        for u in uses:
            for c in range(4):
                total, k = f"a{u.pixel}_{4 * g + c}", 4 * g + c
                body.append(f"{total} = dot4(c{u.pair}_{c}, w{u.offset}{u.part}_{k}, {total})")
    lines += [" " * 12 + text for text in body]
    lines.append("    m = u32(u32(n * P + p) * Q + q)")
    lines.append("    o = u32(n * yn + p * yh + q * yw + k)")
    for i in range(pixels):
        lines.append(f"    if u32(q + u32({i})) < Q:")
        for c in range(0, vector, store):
            values = ", ".join(f"value(a{i}_{c + j})" for j in range(store))
            lines.append(
                f"        store({values}, u32(m + u32({i})), u32(k + u32({c})), "
                f"u32(o + u32({i}) * yw + u32({c})), y, {extras})"
            )
    return "\n".join(lines) + "\n"


@cuda.jit(device=True, inline="always")
def _load1(address):
    return (ptx.ld_global_nc_u32(address),)


_LOADS = {4: _load1, 8: ptx.ld_global_nc_v2, 16: ptx.ld_global_nc_v4}


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
    dilation: int,
) -> tuple[Any, Any]:
    """Channels are the fastest thread index, so that a warp reads whole lines.

    Filter, stride and the dilation of its rows are constants of the binary. Weights are packed as
    [R, words, K, 4]: see `_weight_lines`. Rows above and below the image are skipped, columns
    beside it are zero.
    """
    text = _text(vector, pixels, store, filter_size[1], stride[1])
    namespace: dict[str, Any] = {
        "cuda": cuda,
        "divide": divide(),
        "u32": u32,
        "i32": types.int32,
        "THREADS": THREADS,
        "R": filter_size[0],
        "LINES": len(_weight_lines(filter_size[1], stride[1], pixels)),
        "SH": stride[0],
        "DH": dilation,
        "at": ptx.at,
        "prmt": ptx.prmt,
        "dot4": dot4(dtype),
        "load": _LOADS[vector],
        "load4": ptx.ld_global_nc_v4,
        "value": result_type(dtype, out_dtype, program),
        "store": make_store(program, extras, out_dtype, store),
    }
    kernel = device_function(text, "kernel", namespace).py_func
    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * 16,
    )  # fmt: skip
    return kernel, signature


class ConvDepthwiseInt8(Variant):
    """Depthwise convolution of int8 or uint8 by ``dp4a``, vectorized over channels."""

    name = "conv_depthwise_int8"
    ops = (Conv,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, Conv, BYTES)
        if refusal is not None:
            return refusal
        shape = ConvShape.of(problem)
        if shape.groups != shape.c or shape.k != shape.c or shape.groups == 1:
            return Refusal(
                f"{shape.groups} groups of {shape.c} to {shape.k} channels, expected one each"
            )
        if not (shape.x_channels_last and shape.y_channels_last):
            return Refusal("x and y must be channels-last")
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if shape.load_width_of(shape.c, 4) < 4:
            return Refusal(
                f"{shape.c} channels with strides {shape.x_strides} cannot be read 4 at a time"
            )
        if shape.s > MAX_TAPS:
            return Refusal(f"filter rows of {shape.s} are longer than {MAX_TAPS}")
        if shape.dilation[1] != 1 and shape.s > 1:
            return Refusal(f"taps lie {shape.dilation[1]} columns apart, expected neighbours")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[DepthwiseInt8Config]:
        shape = ConvShape.of(problem)
        widest_load = shape.load_width_of(shape.c, 16)
        found = [
            DepthwiseInt8Config(pixels, vector)
            for pixels in (4, 2, 1)
            for vector in (16, 8, 4)
            if vector <= widest_load
            and (pixels == 1 or pixels < 2 * shape.q)
            # Columns, sums and weights stay in registers.
            and self._registers(shape, pixels, vector) <= 160
        ]
        return sorted(found, key=lambda c: self.estimate(problem, c, device))

    @staticmethod
    def _registers(shape: ConvShape, pixels: int, vector: int) -> int:
        """Registers of a thread, but for addresses and what the epilogue needs."""
        columns = (pixels - 1) * shape.stride[1] + shape.s
        lines = len(_weight_lines(shape.s, shape.stride[1], pixels))
        return columns * vector // 4 + pixels * vector + lines * vector

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        config = DepthwiseInt8Config(*config)
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        most = min(config.vector, widest(shape.out_dtype))
        store = store_width(epilogue, problem.y, 1, most)
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_depthwise_int8:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, config.vector,
                config.pixels, store, (shape.r, shape.s), shape.stride, shape.dilation[0],
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
        config = DepthwiseInt8Config(*config)
        shape = ConvShape.of(problem)
        tiles = ceil_div(shape.q, config.pixels)
        threads = shape.k // config.vector * tiles * shape.p * shape.n
        uses = _uses(config.pixels, shape.s, shape.stride[1])
        words, pairs = len({u.pair for u in uses}), len({u.pair + d for u in uses for d in (0, 1)})
        columns = (config.pixels - 1) * shape.stride[1] + shape.s
        # Instructions of a thread: loads with addresses and masks; per four channels the turns and
        # products; the epilogue.
        row = columns * (6 + config.vector // 4)
        row += config.vector // 4 * (2 * pairs + 4 * words + 4 * len(uses))
        work = shape.r * row + 8 * config.pixels * config.vector
        rounds = waves(ceil_div(threads, THREADS), 4, device)
        # fp32_flops counts two per lane and clock; turns and products run at half of that rate.
        rate = device.fp32_flops / 4 / device.multiprocessors
        seconds = rounds * 4 * THREADS * work / rate
        return max(problem.nbytes / device.bandwidth, seconds) + 2e-6

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as [R, words, K, 4]: the taps of a row, from each offset that outputs have."""
        if slot != 1:
            return array
        shape, config = ConvShape.of(problem), DepthwiseInt8Config(*config)
        lines = _weight_lines(shape.s, shape.stride[1], config.pixels)
        packed = np.zeros((shape.r, len(lines), shape.k, 4), np.int8)
        rows = array[:, 0].transpose(1, 0, 2)  # R, K, S
        for line, (offset, part) in enumerate(lines):
            for byte in range(4):
                tap = 4 * part + byte - offset
                if 0 <= tap < shape.s:
                    packed[:, line, :, byte] = rows[:, :, tap]
        return packed


VARIANTS: tuple[Variant, ...] = (ConvDepthwiseInt8(),)
