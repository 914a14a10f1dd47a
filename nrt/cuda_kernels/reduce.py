"""Reductions: any axes, columns of channels-last tensors, contiguous rows.

All accumulate in float32 (float64 for fp64) or int64, in an order that depends on the shape only:
the same input gives the same bits in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
    uses_double,
)
from nrt.cuda_kernels.strided import (
    Geometry,
    aligned,
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
from nrt.ir.ops import Reduce
from nrt.ir.ops.common import kind_of, normalize_axes
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "Reduction", "ReduceColumns", "ReduceRows", "ReduceStrided", "reduction"]

_THREADS = 256
# Length of a serial partial sum: error grows with its root, and with the root of their number.
_CHUNK = 64


@dataclass(frozen=True)
class Reduction:
    """A reduction as kernels see it.

    Attributes:
        kept: collapsed dimensions of the output; strides of y, then of x.
        reduced: collapsed reduced dimensions; strides of x.
    """

    kept: Geometry
    reduced: Geometry


def reduction(problem: Problem) -> Reduction:
    """Kept and reduced dimensions of a problem."""
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, Reduce)
    rank = len(x.shape)
    axes = normalize_axes(op.name, op.axes, rank)
    kept = [d for d in range(rank) if d not in axes]
    strides = [y.strides[d] for d in kept] if op.keepdims else list(y.strides)
    shape = [x.shape[d] for d in kept]
    return Reduction(
        collapse(shape, strides, [x.strides[d] for d in kept]),
        collapse([x.shape[d] for d in axes], [x.strides[d] for d in axes]),
    )


@dataclass(frozen=True)
class _Steps:
    """Text of one kind of reduction.

    Attributes:
        start: neutral element.
        visit: expression of an element ``v`` before it is combined.
        combine: expression of accumulator ``a`` and value ``v``.
        finish: expression of the result ``a`` of ``count`` elements.
    """

    start: str
    visit: str
    combine: str
    finish: str


def _steps(kind: str, register: str) -> _Steps:
    zero, one = ("F(0)", "F(1)") if register == "f" else ("I(0)", "I(1)")
    lowest = {"f": "F(-inf)", "i": "I(-9223372036854775807 - 1)", "b": "False"}[register]
    highest = {"f": "F(inf)", "i": "I(9223372036854775807)", "b": "True"}[register]
    mean = "{a} / F({count})" if register == "f" else "idiv({a}, I({count}))"
    root = "sqrt_({a})" if register == "f" else "I(math_sqrt(float({a})))"
    add = "{a} + {v}"
    if register == "b":
        either = {"max": _Steps(lowest, "{v}", "({a} or {v})", "{a}")}
        return (either | {"min": _Steps(highest, "{v}", "({a} and {v})", "{a}")})[kind]
    return {
        "mean": _Steps(zero, "{v}", add, mean),
        "sum": _Steps(zero, "{v}", add, "{a}"),
        "max": _Steps(lowest, "{v}", "max_({a}, {v})", "{a}"),
        "min": _Steps(highest, "{v}", "min_({a}, {v})", "{a}"),
        "prod": _Steps(one, "{v}", "{a} * {v}", "{a}"),
        "l1": _Steps(zero, "abs_({v})", add, "{a}"),
        "l2": _Steps(zero, "{v} * {v}", add, root),
        "sum_square": _Steps(zero, "{v} * {v}", add, "{a}"),
    }[kind]


def _namespace(dtype: DType) -> dict[str, Any]:
    kind = kind_of(dtype)
    cell = {"i": types.int64, "b": types.boolean}.get(
        kind, types.float64 if uses_double(dtype) else types.float32
    )
    return kernel_namespace(dtype) | {"cell": cell, "math_sqrt": math.sqrt}


def _wide(name: str, dtype: DType) -> str:
    return f"F({name})" if uses_double(dtype) and dtype.is_float else name


# -- one thread an output --------------------------------------------------------------------------


def _strided_kernel(kind: str, dtype: DType, rank: int, depth: int) -> tuple[Any, Any]:
    """One output element per thread and step, any strides.

    The reduced elements are visited in order; partial results of 64 are combined serially.

    Kernel parameters: x, y, outputs, elements per output, sizes[rank], strides of y[rank], of
    x[rank] along kept dimensions, sizes[depth], strides of x[depth] along reduced ones.
    """
    register = kind_of(dtype)
    steps = _steps(kind, register)
    kept = {n: [f"{n}{r}" for r in range(rank)] for n in ("d", "sy", "sx")}
    deep = {n: [f"{n}{r}" for r in range(depth)] for n in ("e", "se")}
    params = ["x", "y", "n", "count", *kept["d"], *kept["sy"], *kept["sx"], *deep["e"], *deep["se"]]
    coords = [f"c{r}" for r in range(rank)]
    inner = [f"k{r}" for r in range(depth)]
    place = offset_text([*zip(inner, deep["se"], strict=True), ("xo", "1")])
    value = steps.visit.format(v="w")
    result = convert_text("z", register, dtype)
    yo = offset_text(list(zip(coords, kept["sy"], strict=True)))
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))",
        f"    step = u32(cuda.gridDim.x * u32({_THREADS}))",
        "    while i < n:",
        *(f"        {line}" for line in index_lines(rank, "i", "c", kept["d"])),
        f"        xo = {offset_text(list(zip(coords, kept['sx'], strict=True)))}",
        f"        a = {steps.start}",
        "        j = u32(0)",
        "        while j < count:",
        f"            stop = min(count, u32(j + u32({_CHUNK})))",
        f"            p = {steps.start}",
        "            while j < stop:",
        *(f"                {line}" for line in index_lines(depth, "j", "k", deep["e"])),
        f"                v = load_{dtype}(x, {place})",
        f"                w = {_wide('v', dtype)}",
        f"                p = {steps.combine.format(a='p', v=value)}",
        "                j = u32(j + u32(1))",
        f"            a = {steps.combine.format(a='a', v='p')}",
        f"        z = {steps.finish.format(a='a', count='count')}",
        f"        store_{dtype}(y, {yo}, {result})",
        "        i = u32(i + step)",
    ]
    kernel = kernel_function("\n".join(lines) + "\n", _namespace(dtype))
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))


# -- columns: channels-last ------------------------------------------------------------------------


def _columns_kernel(kind: str, dtype: DType, rank: int, lanes: int, width: int) -> tuple[Any, Any]:
    """Reduce a dimension whose neighbours in memory are kept: the spatial mean of NHWC.

    A block takes ``lanes`` vectors of ``width`` channels; its ``256 / lanes`` rows of threads
    visit the reduced elements in turn, so that every access of a row is ``lanes * width``
    neighbours. Partial results are combined by a tree in shared memory. Each element is read once.

    Kernel parameters: x, y, elements per output, stride of x along them, channel groups, stride of
    y and x along kept dimensions but the last: sizes[rank], strides of y[rank], of x[rank].
    """
    register = kind_of(dtype)
    steps = _steps(kind, register)
    rows = _THREADS // lanes
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params = ["x", "y", "count", "pitch", "groups", *sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    accs = [f"a{j}" for j in range(width)]
    loads, names = load_lines("v", "x", "o", dtype, width)
    visit = []
    for a, name in zip(accs, names, strict=True):
        visit.append(f"w{name} = {_wide(name, dtype)}")
        visit.append(f"{a} = {steps.combine.format(a=a, v=steps.visit.format(v=f'w{name}'))}")
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    part = cuda.shared.array({_THREADS * width}, cell)",
        "    tx = u32(cuda.threadIdx.x)",
        "    ty = u32(cuda.threadIdx.y)",
        f"    tiles = u32(u32(groups + u32({lanes - 1})) // u32({lanes}))",
        "    block = u32(cuda.blockIdx.x)",
        "    outer = u32(block // tiles)",
        f"    group = u32(u32(u32(block - u32(outer * tiles)) * u32({lanes})) + tx)",
        f"    channel = u32(min(group, u32(groups - u32(1))) * u32({width}))",
    ]
    if rank:
        lines += [f"    {line}" for line in index_lines(rank, "outer", "c", sizes)]
    lines += [
        f"    xo = {offset_text([*zip(coords, xs, strict=True), ('channel', '1')])}",
        f"    yo = {offset_text([*zip(coords, ys, strict=True), ('channel', '1')])}",
        *(f"    {a} = {steps.start}" for a in accs),
        "    j = ty",
        "    while j < count:",
        "        o = u32(xo + u32(j * pitch))",
        *(f"        {line}" for line in loads + visit),
        f"        j = u32(j + u32({rows}))",
        f"    slot = u32(u32(ty * u32({lanes})) + tx)",
        # Element-major: neighbouring threads touch neighbouring words.
        *(f"    part[u32(slot + u32({_THREADS * k}))] = {a}" for k, a in enumerate(accs)),
        "    cuda.syncthreads()",
    ]
    half = rows // 2
    while half:
        lines.append(f"    if ty < u32({half}):")
        for k in range(width):
            mine = f"part[u32(slot + u32({_THREADS * k}))]"
            other = f"part[u32(slot + u32({_THREADS * k + half * lanes}))]"
            lines.append(f"        {mine} = {steps.combine.format(a=mine, v=other)}")
        lines.append("    cuda.syncthreads()")
        half //= 2
    lines.append("    if ty == u32(0) and group < groups:")
    results = []
    for k in range(width):
        lines.append(f"        b{k} = part[u32(slot + u32({_THREADS * k}))]")
        lines.append(f"        z{k} = {steps.finish.format(a=f'b{k}', count='count')}")
        results.append(convert_text(f"z{k}", register, dtype))
    lines += [f"        {line}" for line in store_lines("y", "yo", dtype, results)]
    kernel = kernel_function("\n".join(lines) + "\n", _namespace(dtype))
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))


# -- rows ------------------------------------------------------------------------------------------


def _rows_kernel(kind: str, dtype: DType, rank: int, threads: int, width: int) -> tuple[Any, Any]:
    """Reduce the contiguous dimension, ``threads`` threads an output (32: a warp; 256: a block).

    Threads read neighbouring vectors of ``width``; shuffles combine a warp, shared memory the
    warps.

    Kernel parameters: x, y, outputs, elements per output, sizes[rank], strides of y[rank], of
    x[rank] along kept dimensions.
    """
    register = kind_of(dtype)
    steps = _steps(kind, register)
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params = ["x", "y", "n", "count", *sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    accs = [f"a{j}" for j in range(width)]
    loads, names = load_lines("v", "x", "o", dtype, width)
    visit = []
    for a, name in zip(accs, names, strict=True):
        visit.append(f"w{name} = {_wide(name, dtype)}")
        visit.append(f"{a} = {steps.combine.format(a=a, v=steps.visit.format(v=f'w{name}'))}")
    per_block = _THREADS // threads
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    part = cuda.shared.array({_THREADS // 32}, cell)",
        "    t = u32(cuda.threadIdx.x)",
        f"    lane = u32(t % u32({threads}))",
        f"    row = u32(u32(cuda.blockIdx.x * u32({per_block})) + u32(t // u32({threads})))",
        # Whole warps stay for the shuffles: rows beyond the end repeat the last one.
        "    i = min(row, u32(n - u32(1)))",
        *(f"    {line}" for line in index_lines(rank, "i", "c", sizes)),
        f"    xo = {offset_text(list(zip(coords, xs, strict=True)))}",
        f"    yo = {offset_text(list(zip(coords, ys, strict=True)))}",
        *(f"    {a} = {steps.start}" for a in accs),
        f"    j = u32(lane * u32({width}))",
        "    while j < count:",
        "        o = u32(xo + j)",
        *(f"        {line}" for line in loads + visit),
        f"        j = u32(j + u32({threads * width}))",
    ]
    stride = 1
    while stride < width:
        for k in range(0, width, 2 * stride):
            text = steps.combine.format(a=f"a{k}", v=f"a{k + stride}")
            lines.append(f"    a{k} = {text}")
        stride *= 2
    shift = 16
    while shift:
        lines.append(f"    s = cuda.shfl_xor_sync(0xffffffff, a0, {shift})")
        lines.append(f"    a0 = {steps.combine.format(a='a0', v='s')}")
        shift //= 2
    if threads > 32:
        lines += [
            "    if t % u32(32) == u32(0):",
            "        part[u32(t // u32(32))] = a0",
            "    cuda.syncthreads()",
            "    a0 = part[0]",
        ]
        for warp in range(1, threads // 32):
            lines.append(f"    a0 = {steps.combine.format(a='a0', v=f'part[{warp}]')}")
    lines += [
        "    if lane == u32(0) and row < n:",
        f"        z = {steps.finish.format(a='a0', count='count')}",
        f"        store_{dtype}(y, yo, {convert_text('z', register, dtype)})",
    ]
    if threads == 32:
        lines.remove(f"    part = cuda.shared.array({_THREADS // 32}, cell)")
    kernel = kernel_function("\n".join(lines) + "\n", _namespace(dtype))
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))


# -- variants --------------------------------------------------------------------------------------


def _kind(problem: Problem) -> str:
    assert isinstance(problem.op, Reduce)
    return problem.op.kind


class ReduceStrided(Variant):
    """Any axes and strides, one thread an output."""

    name = "reduce_strided"
    ops = (Reduce,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        return (
            refuse_fp8(problem)
            or refuse_large(problem)
            or refuse_rank(found.kept)
            or refuse_rank(found.reduced)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        if problem.y.size == 0:
            return Emission(())
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        spec = KernelSpec(
            f"{__name__}:_strided_kernel",
            (_kind(problem), problem.y.dtype, kept.rank, reduced.rank),
            _THREADS,
        )
        numbers = [kept.size, reduced.size, *kept.shape, *kept.strides[0], *kept.strides[1]]
        numbers += [*reduced.shape, *reduced.strides[0]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = waves(device, kept.size, _THREADS)
        return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        # Serial: a dependent load each 0.3 us, or the bandwidth of scattered sectors.
        count = reduction(problem).reduced.size
        return 4 * problem.nbytes / device.bandwidth + count * 3e-8 + 3e-6


class ReduceColumns(Variant):
    """The reduced dimension steps over contiguous kept ones: NHWC spatial reductions."""

    name = "reduce_columns"
    ops = (Reduce,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        if kept.strides[0][-1] != 1 or kept.strides[1][-1] != 1:
            return Refusal("the innermost kept dimension is not contiguous in input and output")
        if reduced.rank != 1:
            return Refusal(f"{reduced.rank} reduced dimensions after collapsing, expected 1")
        return refuse_fp8(problem) or refuse_large(problem) or refuse_rank(kept)

    @staticmethod
    def _fits(found: Reduction, width: int) -> bool:
        kept = found.kept
        return (
            kept.shape[-1] % width == 0
            and all(aligned(s, width) for s in kept.strides)
            and (found.reduced.strides[0][0] % width == 0 or found.reduced.size == 1)
        )

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        found = reduction(problem)
        channels = found.kept.shape[-1]
        outer = found.kept.size // max(channels, 1)
        widest = min(8, 16 // problem.y.dtype.itemsize)
        result = []
        width = widest
        while width >= 1:
            if self._fits(found, width):
                # A warp's row should read whole 32-byte sectors; more lanes only if channels fill
                # it.
                for lanes in (8, 32):
                    if lanes == 8 or channels > 8 * width:
                        result.append((lanes, width))
            width //= 2
        wanted = device.multiprocessors

        def cost(config: tuple[int, int]) -> tuple[float, int]:
            lanes, w = config
            blocks = outer * -(-channels // (lanes * w))
            return (max(1.0, wanted / max(blocks, 1)), -lanes * w)

        return sorted(result, key=cost)[:4]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        if problem.y.size == 0:
            return Emission(())
        lanes, width = config
        found = reduction(problem)
        kept, reduced = found.kept, found.reduced
        rank = kept.rank - 1
        spec = KernelSpec(
            f"{__name__}:_columns_kernel",
            (_kind(problem), problem.y.dtype, rank, lanes, width),
            _THREADS,
        )
        groups = kept.shape[-1] // width
        numbers = [reduced.size, reduced.strides[0][0], groups, *kept.shape[:-1]]
        numbers += [*kept.strides[0][:-1], *kept.strides[1][:-1]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = math.prod(kept.shape[:-1]) * -(-groups // lanes)
        return Emission((Launch(spec, (grid, 1, 1), (lanes, _THREADS // lanes, 1), args),))


class ReduceRows(Variant):
    """The reduced dimension is contiguous: a warp or a block an output."""

    name = "reduce_rows"
    ops = (Reduce,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = reduction(problem)
        if found.reduced.rank != 1 or found.reduced.strides[0] != (1,):
            return Refusal("the reduced elements are not one contiguous run")
        if problem.y.dtype.kind == "bool":
            return Refusal("bool: shuffles move numbers")
        return refuse_fp8(problem) or refuse_large(problem) or refuse_rank(found.kept)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int]]:
        del device
        found = reduction(problem)
        width = min(8, 16 // problem.y.dtype.itemsize)
        steps = [s for d, s in zip(found.kept.shape, found.kept.strides[1], strict=True) if d > 1]
        while found.reduced.size % width or any(s % width for s in steps):
            width //= 2
        # A warp reads 1024 elements in few steps; longer rows want a block's loads in flight.
        threads = (32, 256) if found.reduced.size <= 1024 else (256, 32)
        return [(t, width) for t in threads]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        if problem.y.size == 0:
            return Emission(())
        threads, width = config
        found = reduction(problem)
        kept = found.kept
        spec = KernelSpec(
            f"{__name__}:_rows_kernel",
            (_kind(problem), problem.y.dtype, kept.rank, threads, width),
            _THREADS,
        )
        numbers = [kept.size, found.reduced.size, *kept.shape, *kept.strides[0], *kept.strides[1]]
        args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
        grid = -(-kept.size // (_THREADS // threads))
        return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


VARIANTS: tuple[Variant, ...] = (ReduceStrided(), ReduceColumns(), ReduceRows())
