"""Channels-last pooling where each thread walks down a strip of output rows.

Neighbouring windows share input: a 3x3 window with stride 2 reads everything 2.25 times. A thread
that computes several rows of one column reads the rows that they share once, and reduces each of
them along the window's width once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
)
from nrt.cuda_kernels.epilogue import float_uses
from nrt.cuda_kernels.pool_end import PoolEnd, pool_args, pool_end, pool_signature, refuse_end
from nrt.cuda_kernels.strided import index_lines, offset_text, refuse_large, scalars
from nrt.cuda_kernels.variant import Arg, Emission, KernelSpec, Launch, Scalar, Variant
from nrt.dtypes import BF16, BYTES, FP16, FP32, INT8, DType
from nrt.ir.ops import AveragePool, MaxPool
from nrt.problem import Problem, Refusal

__all__ = ["PoolStrips"]

u32 = types.uint32

_THREADS = 256
# Loads that a strip of two rows may have: all are written out, and in flight together.
_LOADS = 64

_Pool = MaxPool | AveragePool


def _row_offsets(rows: int, kernel: int, stride: int) -> list[int]:
    """Input rows, from the first window's top, that ``rows`` outputs read."""
    return sorted({r * stride + k for r in range(rows) for k in range(kernel)})


def _kernel(
    op: _Pool,
    dtype: DType,
    width: int,
    rows: int,
    packed: bool,
    ragged: bool,
    end: PoolEnd | None = None,
) -> tuple[Any, Any]:
    """``rows`` output pixels below each other and ``width`` channels per thread.

    Threads run over channels fastest, then along the row: a warp's loads are whole lines, and what
    windows share along the row comes from the first-level cache. For a 3x3 window with stride 2 and
    two rows a thread issues 15 loads of 16 bytes, 240 bytes in flight, where single windows take
    18; a strip of ``rows`` reads ``2 rows + 1`` rows from memory or the second-level cache, and
    ``2 rows`` are new.

    Coordinates are clamped to the input. For a maximum that is all: a clamped element lies in the
    same window. A mean adds nothing for what lies outside, if there is such (``ragged``).

    ``packed``: maxima of 16-bit floats are taken two at a time (sm_80), else in float32. Those of
    int8 are too, as halves: a byte and 128 under the exponent of 1024 is a number that rises with
    it; a byte of uint8 needs no 128. Four bytes are three instructions, or two, and two maxima; of
    means, they are floats.

    Kernel parameters: x, y, with an ``end`` its operands, threads' items, channel groups,
    strips, output height and width, input height and width, padding before, padding after (rows,
    columns each), strides of x for N, H, W, of y.
    """
    average = isinstance(op, AveragePool)
    include = isinstance(op, AveragePool) and op.count_include_pad
    (kernel_h, kernel_w), (stride_h, stride_w) = op.kernel, op.strides
    params = ["x", "y", *(end.pointers if end else ()), "n", "groups", "strips"]
    params += ["p0", "p1", "h0", "h1", "pb0", "pb1", "pe0", "pe1"]
    params += ["xn", "xs0", "xs1", "yn", "ys0", "ys1"]
    lines = index_lines(4, "i", "c", ["batch", "strips", "p1", "groups"])
    lines += [
        f"ch = u32(c3 * u32({width}))",
        f"row = u32(c1 * u32({rows}))",
        f"xo = {offset_text([('c0', 'xn'), ('ch', '1')])}",
        f"yo = {offset_text([('c0', 'yn'), ('row', 'ys0'), ('c2', 'ys1'), ('ch', '1')])}",
        f"top = i32(i32(row * u32({stride_h})) - i32(pb0))",
        f"left = i32(i32(c2 * u32({stride_w})) - i32(pb1))",
        "bottom = i32(i32(h0) - i32(1))",
        "right = i32(i32(h1) - i32(1))",
    ]
    for k in range(kernel_w):
        lines += [
            f"q1_{k} = i32(left + i32({k}))",
            f"g1_{k} = min(max(q1_{k}, i32(0)), right)",
            f"o1_{k} = u32(u32(g1_{k}) * xs1)",
        ]
    parts = width // 2 if packed else width
    words = width * dtype.itemsize // 4
    as_halves = packed and dtype in BYTES
    best = f"max_{'fp16' if as_halves else dtype}" if packed else "max_"
    started: set[int] = set()
    for t in _row_offsets(rows, kernel_h, stride_h):
        lines += [
            f"q0_{t} = i32(top + i32({t}))",
            f"g0_{t} = min(max(q0_{t}, i32(0)), bottom)",
            f"o0_{t} = u32(xo + u32(u32(g0_{t}) * xs0))",
        ]
        for k in range(kernel_w):
            tag = f"v{t}_{k}"
            lines.append(f"at{t}_{k} = u32(o0_{t} + o1_{k})")
            if packed:
                names = [f"{tag}_{j}" for j in range(parts)]
                given = [f"{tag}w{j}" for j in range(words)] if as_halves else names
                lines.append(f"{', '.join(given)}, = ld{words}(at(x, at{t}_{k}))")
                if as_halves:
                    lines += [
                        f"{names[2 * j]}, {names[2 * j + 1]} = halves({word})"
                        for j, word in enumerate(given)
                    ]
            else:
                loads, names = load_lines(tag, "x", f"at{t}_{k}", dtype, width, floats=True)
                fetched = [f"{tag}w{j}" for j in range(words)]
                fetch = [line for line in loads if "at(x," in line]
                lines += fetch
                if average and ragged:
                    # Words before they are unpacked: half as many selects.
                    lines.append(f"ok = q0_{t} == g0_{t} and q1_{k} == g1_{k}")
                    lines += [f"{word} = {word} if ok else u32(0)" for word in fetched]
                lines += loads[len(fetch) :]
            for j, name in enumerate(names):
                if k == 0:
                    lines.append(f"s{t}_{j} = {name}")
                elif average:
                    lines.append(f"s{t}_{j} = s{t}_{j} + {name}")
                else:
                    lines.append(f"s{t}_{j} = {best}(s{t}_{j}, {name})")
        for r in range(rows):
            if not 0 <= t - r * stride_h < kernel_h:
                continue
            for j in range(parts):
                if r not in started:
                    lines.append(f"a{r}_{j} = s{t}_{j}")
                elif average:
                    lines.append(f"a{r}_{j} = a{r}_{j} + s{t}_{j}")
                else:
                    lines.append(f"a{r}_{j} = {best}(a{r}_{j}, s{t}_{j})")
            started.add(r)
    if average and ragged:
        lines += _count_lines("1", "left", kernel_w, include)
    for r in range(rows):
        store = [f"yo{r} = u32(yo + u32(ys0 * u32({r})))"]
        values = [f"a{r}_{j}" for j in range(parts)]
        if average and ragged:
            store.append(f"top{r} = i32(top + i32({r * stride_h}))")
            store += _count_lines("0", f"top{r}", kernel_h, include)
            store.append("scale = rcp(F(i32(count0 * count1)))")
            store += [f"{v} = {v} * scale" for v in values]
        elif average:
            store += [f"{v} = {v} * F({1 / (kernel_h * kernel_w)!r})" for v in values]
        if end is not None:
            if packed:
                values = [f"{dtype}_{half}({v})" for v in values for half in (0, 1)]
            pixel = f"u32(u32(u32(u32(c0 * p0) + u32(row + u32({r}))) * p1) + c2)"
            store.append(end.store(values, pixel, "ch", f"yo{r}"))
        elif packed:
            if as_halves:
                values = [f"of_halves({values[j]}, {values[j + 1]})" for j in range(0, parts, 2)]
            store.append(f"st{words}(at(y, yo{r}), {', '.join(values)})")
        else:
            results = [convert_text(v, "f", dtype) for v in values]
            store += store_lines("y", f"yo{r}", dtype, results)
        lines += [f"if u32(row + u32({r})) < p0:", *(f"    {line}" for line in store)]
    text = "".join(
        f"{line}\n"
        for line in [
            f"def kernel({', '.join(params)}):",
            f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))",
            "    if i < n:",
            *(f"        {line}" for line in lines),
        ]
    )
    namespace = kernel_namespace(dtype) | {
        "max_fp16": ptx.max_f16x2,
        "max_bf16": ptx.max_bf16x2,
        "rcp": ptx.rcp,
        "halves": _halves_s8 if dtype is INT8 else _halves_u8,
        "of_halves": _of_halves_s8 if dtype is INT8 else _of_halves_u8,
    }
    if end is not None:
        namespace |= end.namespace(width)
    return kernel_function(text, namespace), pool_signature(dtype, end, params)


@cuda.jit(device=True, inline="always")
def _halves_s8(word):
    """The int8 of a word, and 1152, as four fp16."""
    above = u32(word ^ u32(0x80808080))
    high = u32(0x64646464)
    return ptx.prmt(above, high, 0x4140), ptx.prmt(above, high, 0x4342)


@cuda.jit(device=True, inline="always")
def _of_halves_s8(low, high):
    """The word that `_halves_s8` was given."""
    return u32(ptx.prmt(low, high, 0x6420) ^ u32(0x80808080))


@cuda.jit(device=True, inline="always")
def _halves_u8(word):
    """The uint8 of a word, and 1024, as four fp16."""
    high = u32(0x64646464)
    return ptx.prmt(word, high, 0x4140), ptx.prmt(word, high, 0x4342)


@cuda.jit(device=True, inline="always")
def _of_halves_u8(low, high):
    """The word that `_halves_u8` was given."""
    return ptx.prmt(low, high, 0x6420)


def _count_lines(axis: str, first: str, kernel: int, include: bool) -> list[str]:
    """Lines that count the window's places that a mean divides by, along ``axis``."""
    low = f"i32(i32(0) - i32(pb{axis}))" if include else "i32(0)"
    high = f"i32(h{axis} + pe{axis})" if include else f"i32(h{axis})"
    stop = f"min(i32({first} + i32({kernel})), {high})"
    return [f"count{axis} = i32({stop} - max({first}, {low}))"]


class PoolStrips(Variant):
    """Channels-last windows in the plane: several rows of output per thread."""

    name = "pool_strips"
    ops = (MaxPool, AveragePool)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        op, x, y = problem.op, problem.inputs[0], problem.y
        assert isinstance(op, _Pool)
        if len(op.kernel) != 2:
            return Refusal(f"{len(op.kernel)} spatial dimensions, expected 2")
        if x.dtype not in (FP16, BF16, FP32, *BYTES):
            return Refusal(f"elements are {x.dtype}, expected fp16, bf16, fp32, int8 or uint8")
        if x.dtype in BYTES and (reason := _refuse_integers(problem, device)) is not None:
            return reason
        for name, spec in (("input", x), ("output", y)):
            if spec.strides[1] != 1:
                return Refusal(f"{name} has channel stride {spec.strides[1]}, expected 1 (NHWC)")
        if op.dilations != (1, 1):
            return Refusal(f"dilations {op.dilations}, expected none")
        if len(_row_offsets(2, op.kernel[0], op.strides[0])) * op.kernel[1] > _LOADS:
            return Refusal(f"two rows of {op.kernel} windows are more than {_LOADS} loads")
        for axis in range(2):
            last = (y.shape[2 + axis] - 1) * op.strides[axis] - op.pads[axis]
            if op.pads[axis] >= op.kernel[axis] or last >= x.shape[2 + axis]:
                return Refusal("a window has nothing of the input")
        refusal = refuse_large(problem) or refuse_end(problem)
        if refusal is None and not self._width(problem):
            refusal = Refusal(
                f"{y.shape[1]} channels with strides {x.strides} and {y.strides} do not fit "
                "vectors of at least 4 bytes"
            )
        return refusal

    @staticmethod
    def _width(problem: Problem) -> int:
        """Most channels that move as one, 0 if fewer than two or 4 bytes."""
        x, y = problem.inputs[0], problem.y
        steps = [s for t in (x, y) for d, s in enumerate(t.strides) if d != 1 and t.shape[d] > 1]
        width = 16 // x.dtype.itemsize
        while width * x.dtype.itemsize >= 4 and width > 1:
            if y.shape[1] % width == 0 and all(s % width == 0 for s in steps):
                return width
            width //= 2
        return 0

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        width = self._width(problem)
        op, y = problem.op, problem.y
        assert isinstance(op, _Pool)
        found = []
        for rows in (2, 4, 1):
            loads = len(_row_offsets(rows, op.kernel[0], op.strides[0])) * op.kernel[1]
            # Two blocks per SM at least, or the strips cost more than they save.
            enough = y.size // (width * rows) >= 2 * _THREADS * device.multiprocessors
            if rows == 1 or (rows <= y.shape[2] and loads <= _LOADS and enough):
                found.append((width, rows))
        return found

    def emit(self, problem: Problem, config: tuple[int, int], device: DeviceSpec) -> Emission:
        width, rows = config
        op, x, y = problem.op, problem.inputs[0], problem.y
        assert isinstance(op, _Pool)
        if y.size == 0:
            return Emission(())
        groups = y.shape[1] // width
        strips = -(-y.shape[2] // rows)
        count = y.shape[0] * strips * y.shape[3] * groups
        ends = [(y.shape[2 + a] - 1) * op.strides[a] - op.pads[a] + op.kernel[a] for a in range(2)]
        ragged = any(op.pads[:2]) or any(e > s for e, s in zip(ends, x.shape[2:], strict=True))
        packed = isinstance(op, MaxPool) and x.dtype.itemsize <= 2 and device.cc >= (8, 0)
        end = pool_end(problem)
        params = (_binary_op(op), x.dtype, width, rows, packed, ragged, end)
        spec = KernelSpec(f"{__name__}:_kernel", params, _THREADS)
        numbers = [groups, strips, *y.shape[2:], *x.shape[2:], *op.pads]
        for tensor in (x, y):
            numbers += [tensor.strides[0], *tensor.strides[2:]]
        args: tuple[Arg, ...] = (*pool_args(problem, end), Scalar(count), *scalars(numbers))
        grid = (-(-count // _THREADS), 1, 1)
        return Emission((Launch(spec, grid, (_THREADS, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        op = problem.op
        assert isinstance(op, _Pool)
        _, rows = config
        # Rows that strips share come from the second-level cache, at about twice the rate.
        again = len(_row_offsets(rows, op.kernel[0], op.strides[0])) / (rows * op.strides[0]) - 1
        extra = max(again, 0.0) * problem.inputs[0].size * problem.y.dtype.itemsize / 2
        # Instructions per place of a window; a packed maximum of three takes one per two channels.
        places = problem.y.size * math.prod(op.kernel)
        work = (1 if isinstance(op, MaxPool) else 2.5) * places / (device.fp32_flops / 2)
        return (problem.nbytes + extra) / device.bandwidth + work + 2e-6


def _refuse_integers(problem: Problem, device: DeviceSpec) -> Refusal | None:
    """None, or why bytes cannot be pooled: maxima as pairs of halves, ends as floats."""
    op = problem.op
    assert isinstance(op, _Pool)
    if isinstance(op, MaxPool) and device.cc < (8, 0):
        return Refusal(f"{device.arch} has no maximum of two halves, expected sm_80 or later")
    if op.epilogue is not None and op.epilogue.inputs[0] == "i" and not float_uses(op.epilogue, 0):
        return Refusal("the epilogue computes with the integer, expected with its float")
    return None


def _binary_op(op: _Pool) -> _Pool:
    """The op as far as the binary depends on it."""
    pads = (0,) * 4
    if isinstance(op, AveragePool):
        include = op.count_include_pad
        return AveragePool(op.kernel, op.strides, pads, count_include_pad=include)
    return MaxPool(op.kernel, op.strides, pads)
