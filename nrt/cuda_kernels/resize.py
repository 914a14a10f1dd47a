"""Resize: nearest, linear and cubic in up to three dimensions, any strides.

The coordinate formulas are those of `nrt.ir.ops.resize`, in float64 unless float32 is exact: a
position that lies a rounding error below an integer would pick another element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
)
from nrt.cuda_kernels.strided import (
    RAW,
    Geometry,
    collapse,
    index_lines,
    offset_text,
    refuse_fp8,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.dtypes import DType
from nrt.ir.ops import Resize
from nrt.ir.ops.common import kind_of
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ResizeStrided", "ResizeVector"]

_THREADS = 256
_MAX_RESIZED = 3


@cuda.jit(device=True, inline="always")
def _floor(x):
    return cuda.libdevice.floor(x)


@cuda.jit(device=True, inline="always")
def _ceil(x):
    return cuda.libdevice.ceil(x)


@dataclass(frozen=True)
class _Axis:
    """One resized dimension: sizes of input and output, and the scale of the formula."""

    size: int
    count: int
    scale: float


@dataclass(frozen=True)
class _Resizing:
    """A resize as kernels see it.

    Attributes:
        geometry: collapsed output; strides of y, then of x.
        axes: per dimension its `_Axis`, or None where nothing is resampled.
    """

    geometry: Geometry
    axes: tuple[_Axis | None, ...]


def _resizing(problem: Problem) -> _Resizing:
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, Resize)
    rank = len(y.shape)
    apart = [d for d in range(rank) if y.shape[d] != x.shape[d] or op.scales[d] != 1]
    # The third row of strides carries the number of a resized dimension through the collapse.
    marks = [d + 1 if d in apart else 0 for d in range(rank)]
    found = collapse(y.shape, y.strides, x.strides, marks, apart=apart)
    where = found.strides[2] if apart else (0,) * found.rank
    return _Resizing(
        Geometry(found.shape, found.strides[:2]),
        tuple(
            _Axis(x.shape[m - 1], y.shape[m - 1], float(op.scales[m - 1])) if m else None
            for m in where
        ),
    )


def _exact(axis: _Axis, coordinate: str) -> bool:
    """Whether float32 gives the position exactly: halves and powers of two below 2^20."""
    power = math.frexp(axis.scale)[0] == 0.5 and 2**-8 <= axis.scale <= 2**8
    return power and coordinate != "align_corners" and max(axis.size, axis.count) < 2**12


def _position(axis: _Axis, coordinate: str, index: str) -> str:
    """Expression of the input coordinate of output ``index`` (see `Resize.positions`)."""
    real = "f32" if _exact(axis, coordinate) else "f64"
    i = f"{real}({index})"
    scale = f"{real}({axis.scale!r})"
    divide = f"* {real}({1 / axis.scale!r})" if real == "f32" else f"/ {scale}"
    if coordinate == "asymmetric":
        return f"{i} {divide}"
    if coordinate == "align_corners":
        if axis.count == 1:
            return "f64(0.0)"
        length = axis.size * axis.scale
        return f"{i} * f64({float(axis.size - 1)!r}) / f64({length - 1!r})"
    if coordinate == "pytorch_half_pixel" and axis.count == 1:
        return "f64(0.0)"
    return f"({i} + {real}(0.5)) {divide} - {real}(0.5)"


_ROUND = {
    "round_prefer_floor": "up({0} - half)",
    "round_prefer_ceil": "down({0} + half)",
    "floor": "down({0})",
    "ceil": "up({0})",
}


def _tap_lines(op: Resize, axis: _Axis, r: int, index: str) -> tuple[list[str], int]:
    """Lines that compute taps ``t{r}_k`` (clamped indices) and weights ``w{r}_k``; their number."""
    lines = [f"at{r} = f64({_position(axis, op.coordinate, index)})"]
    last = axis.size - 1
    if op.mode == "nearest":
        lines.append(f"n{r} = {_ROUND[op.nearest].format(f'at{r}')}")
        lines.append(f"t{r}_0 = u32(min(max(i32(n{r}), i32(0)), i32({last})))")
        return lines, 1
    lines += [f"base{r} = down(at{r})", f"f{r} = F(at{r} - base{r})", f"n{r} = i32(base{r})"]
    first, count = (0, 2) if op.mode == "linear" else (-1, 4)
    for k in range(count):
        lines.append(f"t{r}_{k} = u32(min(max(i32(n{r} + i32({first + k})), i32(0)), i32({last})))")
    if op.mode == "linear":
        return [*lines, f"w{r}_0 = F(1) - f{r}", f"w{r}_1 = f{r}"], 2
    a = op.cubic_a
    for k, distance in enumerate((f"(F(1) + f{r})", f"f{r}", f"(F(1) - f{r})", f"(F(2) - f{r})")):
        lines.append(f"q = {distance}")
        if k in (1, 2):
            lines.append(f"w{r}_{k} = (F({a + 2!r}) * q - F({a + 3!r})) * q * q + F(1)")
        else:
            lines.append(
                f"w{r}_{k} = ((F({a!r}) * q - F({5 * a!r})) * q + F({8 * a!r})) * q - F({4 * a!r})"
            )
    return lines, 4


def _kernel(
    op: Resize, dtype: DType, axes: tuple[_Axis | None, ...], width: int
) -> tuple[Any, Any]:
    """``width`` neighbouring output elements that share their taps, per thread and step.

    All taps of the resized dimensions are loaded before they are summed: 1, 2 or 4 per dimension
    and as many products as their number. Sizes and scales of resized dimensions are constants,
    since the formulas divide by them.

    Kernel parameters: x, y, items, sizes of y[rank] (the last in vectors), strides of y[rank], of
    x[rank].
    """
    rank = len(axes)
    kind = kind_of(dtype)
    names = ("d", "sy", "sx")
    table = {name: [f"{name}{r}" for r in range(rank)] for name in names}
    params = ["x", "y", "n", *(p for name in names for p in table[name])]
    body = index_lines(rank, "i", "c", table["d"])
    if width > 1:
        body.append(f"c{rank - 1} = u32(c{rank - 1} * u32({width}))")
    counts: list[tuple[int, int]] = []
    fixed = []
    for r, axis in enumerate(axes):
        if axis is None:
            fixed.append((f"c{r}", f"sx{r}"))
            continue
        lines, count = _tap_lines(op, axis, r, f"c{r}")
        body += lines
        counts.append((r, count))
    body.append(f"xo = {offset_text(fixed)}")
    taps: list[tuple[list[tuple[str, str]], str]] = [([], "")]
    for r, count in counts:
        taps = [
            ([*terms, (f"t{r}_{k}", f"sx{r}")], f"{weight} * w{r}_{k}" if weight else f"w{r}_{k}")
            for terms, weight in taps
            for k in range(count)
        ]
    loaded = []
    for number, (terms, _) in enumerate(taps):
        body.append(f"p{number} = {offset_text([*terms, ('xo', '1')])}")
        lines, values = load_lines(f"v{number}", "x", f"p{number}", dtype, width)
        body += lines
        loaded.append(values)
    if op.mode == "nearest" or not counts:
        results = loaded[0]
    else:
        for number, (_, weight) in enumerate(taps):
            body.append(f"m{number} = {weight}")
        results = [f"z{e}" for e in range(width)]
        for e, result in enumerate(results):
            products = (f"m{k} * F({values[e]})" for k, values in enumerate(loaded))
            body.append(f"{result} = {' + '.join(products)}")
    place = offset_text([(f"c{r}", f"sy{r}") for r in range(rank)])
    body.append(f"o = {place}")
    body += store_lines("y", "o", dtype, [convert_text(z, kind, dtype) for z in results])
    text = (
        f"def kernel({', '.join(params)}):\n"
        f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))\n"
        f"    step = u32(cuda.gridDim.x * u32({_THREADS}))\n"
        "    half = f64(0.5)\n"
        "    while i < n:\n"
        + "".join(f"        {line}\n" for line in body)
        + "        i = u32(i + step)\n"
    )
    namespace = kernel_namespace(dtype) | {"f64": types.float64, "down": _floor, "up": _ceil}
    kernel = kernel_function(text, namespace)
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))


def _widths(problem: Problem) -> list[int]:
    """Vector widths along a contiguous last dimension that is not resized."""
    found = _resizing(problem)
    if found.axes[-1] is not None or any(s[-1] != 1 for s in found.geometry.strides):
        return []
    most = min(8, 16 // problem.y.dtype.itemsize)
    steps = [s for row in found.geometry.strides for s in row[:-1]]
    return [
        w
        for w in (8, 4, 2)
        if w <= most and found.geometry.shape[-1] % w == 0 and all(s % w == 0 for s in steps)
    ]


def _emission(problem: Problem, width: int, device: DeviceSpec) -> Emission:
    op, y = problem.op, problem.y
    assert isinstance(op, Resize)
    if y.size == 0:
        return Emission(())
    found = _resizing(problem)
    geometry = found.geometry
    # Nearest moves elements of any type; sizes and scales enter the binary through the axes only.
    dtype = RAW[y.dtype.itemsize] if op.mode == "nearest" else y.dtype
    key = replace(op, sizes=(), scales=())
    spec = KernelSpec(f"{__name__}:_kernel", (key, dtype, found.axes, width), _THREADS)
    numbers = [geometry.size // width, *geometry.shape[:-1], geometry.shape[-1] // width]
    numbers += [s for row in geometry.strides for s in row]
    args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
    grid = waves(device, geometry.size // width, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


def _refuse(problem: Problem) -> Refusal | None:
    found = _resizing(problem)
    resized = sum(1 for axis in found.axes if axis is not None)
    assert isinstance(problem.op, Resize)
    if resized > _MAX_RESIZED and problem.op.mode != "nearest":
        return Refusal(f"{resized} dimensions are interpolated, at most {_MAX_RESIZED}")
    fp8 = None if problem.op.mode == "nearest" else refuse_fp8(problem)
    return fp8 or refuse_large(problem) or refuse_rank(found.geometry)


class ResizeStrided(Variant):
    """Any strides, one element at a time."""

    name = "resize_strided"
    ops = (Resize,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return _refuse(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, 1, device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 4 * problem.nbytes / device.bandwidth + 3e-6


class ResizeVector(Variant):
    """Channels-last: neighbouring channels share taps and weights, 16 bytes a thread."""

    name = "resize_vector"
    ops = (Resize,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        refusal = _refuse(problem)
        if refusal is None and not _widths(problem):
            refusal = Refusal("the innermost dimension is resized, or no vector fits it")
        return refusal

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        return [(w,) for w in _widths(problem)[:2]]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        return _emission(problem, config[0], device)


VARIANTS: tuple[Variant, ...] = (ResizeStrided(), ResizeVector())
