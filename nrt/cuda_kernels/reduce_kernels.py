"""The kernels of reductions.

All accumulate in float32 (float64 for fp64) or int64, in an order that depends on the shape only:
the same input gives the same bits in every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    uses_double,
)
from nrt.cuda_kernels.strided import (
    index_lines,
    offset_text,
)
from nrt.dtypes import DType
from nrt.ir.ops.common import kind_of

__all__ = ["THREADS", "UNROLL"]

THREADS = 256
"""Threads of a block, but of the columns' kernel."""

UNROLL = 4
"""Loads that a thread of the columns' kernel has in flight."""

# Length of a serial partial sum: error grows with its root, and with the root of their number.
_CHUNK = 64


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


def _steps(kind: str, register: str, double: bool) -> _Steps:
    zero, one = ("F(0)", "F(1)") if register == "f" else ("I(0)", "I(1)")
    lowest = {"f": "F(-inf)", "i": "I(-9223372036854775807 - 1)", "b": "False"}[register]
    highest = {"f": "F(inf)", "i": "I(9223372036854775807)", "b": "True"}[register]
    # A division is a call of 30 instructions; the reciprocal of a count is right to a unit.
    scaled = "{a} / F({count})" if double else "{a} * rcp(F({count}))"
    mean = scaled if register == "f" else "idiv({a}, I({count}))"
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
    # Bools are combined as numbers between threads.
    cell = {"i": types.int64, "b": types.int64}.get(
        kind, types.float64 if uses_double(dtype) else types.float32
    )
    return kernel_namespace(dtype) | {"cell": cell, "math_sqrt": math.sqrt, "rcp": ptx.rcp}


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
    steps = _steps(kind, register, uses_double(dtype))
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
        f"    i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))",
        f"    step = u32(cuda.gridDim.x * u32({THREADS}))",
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


def _columns_kernel(
    kind: str, dtype: DType, rank: int, threads: int, lanes: int, width: int
) -> tuple[Any, Any]:
    """Reduce a dimension whose neighbours in memory are kept: the spatial mean of NHWC.

    A block takes ``lanes`` vectors of ``width`` channels; its ``threads / lanes`` rows of threads
    visit the reduced elements in turn, so that every access of a row is ``lanes * width``
    neighbours. A thread has `UNROLL` loads in flight: 64 bytes of 16-bit elements in vectors of 8,
    32 KB a block of 512 threads, where bandwidth times latency asks for 23 KB an SM. What lies
    beyond the end is read from the last element and replaced by the neutral one. Shuffles combine
    the rows of a warp, then, after the only barrier, one thread per channel the warps. Each element
    is read once.

    Kernel parameters: x, y, elements per output, stride of x along them, channel groups, stride of
    y and x along kept dimensions but the last: sizes[rank], strides of y[rank], of x[rank].
    """
    register = kind_of(dtype)
    steps = _steps(kind, register, uses_double(dtype))
    # Shuffles move numbers: a bool is combined as 0 or 1 between threads.
    between = "i" if register == "b" else register
    joined = _steps(kind, between, uses_double(dtype))
    rows, warps, channels = threads // lanes, threads // 32, lanes * width
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params = ["x", "y", "count", "pitch", "groups", *sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    accs = [f"a{k}" for k in range(width)]
    fetch, visit = [], []
    for u in range(UNROLL):
        fetch += [
            f"j{u} = u32(j + u32({u * rows}))",
            f"ok{u} = j{u} < count",
            f"o{u} = u32(xo + u32((j{u} if ok{u} else last) * pitch))",
        ]
        loads, names = load_lines(f"v{u}", "x", f"o{u}", dtype, width)
        fetch += loads
        for a, name in zip(accs, names, strict=True):
            value = steps.visit.format(v=_wide(name, dtype))
            visit.append(f"w = {value} if ok{u} else {steps.start}")
            visit.append(f"{a} = {steps.combine.format(a=a, v='w')}")
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    part = cuda.shared.array({warps * channels}, cell)",
        "    t = u32(cuda.threadIdx.x)",
        f"    tx = u32(t % u32({lanes}))",
        f"    tiles = u32(u32(groups + u32({lanes - 1})) // u32({lanes}))",
        "    block = u32(cuda.blockIdx.x)",
        "    outer = u32(block // tiles)",
        f"    first = u32(u32(block - u32(outer * tiles)) * u32({lanes}))",
        f"    channel = u32(min(u32(first + tx), u32(groups - u32(1))) * u32({width}))",
    ]
    if rank:
        lines += [f"    {line}" for line in index_lines(rank, "outer", "c", sizes)]
    lines += [
        f"    xo = {offset_text([*zip(coords, xs, strict=True), ('channel', '1')])}",
        *(f"    {a} = {steps.start}" for a in accs),
        f"    j = u32(t // u32({lanes}))",
        "    last = u32(count - u32(1))",
        "    while j < count:",
        *(f"        {line}" for line in fetch + visit),
        f"        j = u32(j + u32({rows * UNROLL}))",
    ]
    if register == "b":
        lines += [f"    {a} = I(1) if {a} else I(0)" for a in accs]
    for k, a in enumerate(accs):
        shift = lanes
        while shift < 32:
            lines.append(f"    s{k} = cuda.shfl_xor_sync(0xffffffff, {a}, {shift})")
            lines.append(f"    {a} = {joined.combine.format(a=a, v=f's{k}')}")
            shift *= 2
    lines += [
        f"    slot = u32(u32(u32(t // u32(32)) * u32({channels})) + u32(tx * u32({width})))",
        f"    if u32(t % u32(32)) < u32({lanes}):",
        *(f"        part[u32(slot + u32({k}))] = {a}" for k, a in enumerate(accs)),
        "    cuda.syncthreads()",
        f"    place = u32(u32(first * u32({width})) + t)",
        f"    if t < u32({channels}) and place < u32(groups * u32({width})):",
        "        b = part[t]",
    ]
    for warp in range(1, warps):
        other = f"part[u32(t + u32({warp * channels}))]"
        lines.append(f"        b = {joined.combine.format(a='b', v=other)}")
    result = convert_text("z", between, dtype)
    lines += [
        f"        z = {joined.finish.format(a='b', count='count')}",
        f"        yo = {offset_text([*zip(coords, ys, strict=True), ('place', '1')])}",
        f"        store_{dtype}(y, yo, {result})",
    ]
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
    steps = _steps(kind, register, uses_double(dtype))
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
    per_block = THREADS // threads
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    part = cuda.shared.array({THREADS // 32}, cell)",
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
        lines.remove(f"    part = cuda.shared.array({THREADS // 32}, cell)")
    kernel = kernel_function("\n".join(lines) + "\n", _namespace(dtype))
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))
