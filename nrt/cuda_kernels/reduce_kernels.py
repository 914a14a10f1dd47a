"""The kernels of reductions.

All accumulate in float32 (float64 for fp64) or int64, in an order that depends on the shape only:
the same input gives the same bits in every run.
"""

from __future__ import annotations

from typing import Any

from nrt.cuda_kernels.elements import convert_text, kernel_function, load_lines, uses_double
from nrt.cuda_kernels.reduce_text import (
    PLAIN,
    THREADS,
    Ends,
    end_lines,
    program_lines,
    reduce_namespace,
    reduce_steps,
    signature,
    wide,
)
from nrt.cuda_kernels.strided import index_lines, offset_text
from nrt.dtypes import DType
from nrt.ir.ops.common import kind_of

__all__ = ["UNROLL"]

UNROLL = 4
"""Loads that a thread of the columns' kernel has in flight."""

# Length of a serial partial sum: error grows with its root, and with the root of their number.
_CHUNK = 64

# -- one thread an output --------------------------------------------------------------------------


def _strided_kernel(
    kind: str, dtype: DType, out: DType, rank: int, depth: int, ends: Ends = PLAIN
) -> tuple[Any, Any]:
    """One output element per thread and step, any strides.

    The reduced elements are visited in order; partial results of 64 are combined serially.

    Kernel parameters: x, y, operands of the prologue, of the epilogue, outputs, elements per
    output, sizes[rank], strides of y[rank], of x[rank], of each operand[rank] along kept
    dimensions, sizes[depth], strides of x[depth], of each operand of the prologue[depth] along
    reduced ones.
    """
    register = kind_of(dtype)
    double = uses_double(dtype, out, *ends.before, *ends.after)
    steps = reduce_steps(kind, register, double)
    befores, afters = ends.befores, ends.afters
    sizes, deep = [f"d{r}" for r in range(rank)], [f"g{r}" for r in range(depth)]
    kept = {n: [f"{n}_s{r}" for r in range(rank)] for n in ("y", "x", *befores, *afters)}
    inner = {n: [f"{n}_t{r}" for r in range(depth)] for n in ("x", *befores)}
    params = ["x", "y", *befores, *afters, "n", "count", *sizes]
    params += [s for row in kept.values() for s in row]
    params += [*deep, *(s for row in inner.values() for s in row)]
    coords = [f"c{r}" for r in range(rank)]
    within = [f"k{r}" for r in range(depth)]

    def place(name: str) -> str:
        return offset_text([*zip(within, inner[name], strict=True), (f"{name}at", "1")])

    visit = [f"v = load_{dtype}(x, {place('x')})", f"w = {wide('v', dtype, double)}"]
    operands = []
    for name, other in zip(befores, ends.before, strict=True):
        visit.append(f"v{name} = load_{other}({name}, {place(name)})")
        operands.append((f"v{name}", other))
    body, value = program_lines(ends.prologue, "w", operands, double, "p")
    visit += body
    finish, result = end_lines(
        ends, "z", [(c, [kept[a][r] for a in afters]) for r, c in enumerate(coords)], double
    )
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))",
        f"    step = u32(cuda.gridDim.x * u32({THREADS}))",
        "    while i < n:",
        *(f"        {line}" for line in index_lines(rank, "i", "c", sizes)),
        *(
            f"        {name}at = {offset_text(list(zip(coords, kept[name], strict=True)))}"
            for name in ("x", *befores)
        ),
        f"        a = {steps.start}",
        "        j = u32(0)",
        "        while j < count:",
        f"            stop = min(count, u32(j + u32({_CHUNK})))",
        f"            p = {steps.start}",
        "            while j < stop:",
        *(f"                {line}" for line in index_lines(depth, "j", "k", deep)),
        *(f"                {line}" for line in visit),
        f"                p = {steps.combine.format(a='p', v=steps.visit.format(v=value))}",
        "                j = u32(j + u32(1))",
        f"            a = {steps.combine.format(a='a', v='p')}",
        f"        z = {steps.finish.format(a='a', count='count')}",
        *(f"        {line}" for line in finish),
        f"        store_{out}(y, {offset_text(list(zip(coords, kept['y'], strict=True)))}, "
        f"{convert_text(result, register, out)})",
        "        i = u32(i + step)",
    ]
    namespace = reduce_namespace(dtype, out, *ends.before, *ends.after)
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, signature(dtype, out, ends, params)


# -- columns: channels-last ------------------------------------------------------------------------


def _columns_kernel(
    kind: str,
    dtype: DType,
    out: DType,
    rank: int,
    threads: int,
    lanes: int,
    width: int,
    ends: Ends = PLAIN,
    modes: tuple[str, ...] = (),
) -> tuple[Any, Any]:
    """Reduce a dimension whose neighbours in memory are kept: the spatial mean of NHWC.

    A block takes ``lanes`` vectors of ``width`` channels; its ``threads / lanes`` rows of threads
    visit the reduced elements in turn, so that every access of a row is ``lanes * width``
    neighbours. A thread has `UNROLL` loads in flight: 64 bytes of 16-bit elements in vectors of 8,
    32 KB a block of 512 threads, where bandwidth times latency asks for 23 KB an SM. What lies
    beyond the end is read from the last element and replaced by the neutral one. Shuffles combine
    the rows of a warp, then, after the only barrier, one thread per channel the warps. Each element
    is read once.

    ``modes`` say how each operand of the prologue lies: ``v`` follows the channels or ``b`` is one
    element for all; ``1`` moves with the reduced elements or ``0``, loaded once, does not.

    Kernel parameters: x, y, operands of the prologue, of the epilogue, elements per output, stride
    of x, of each operand of the prologue along them, channel groups, sizes[rank] of the kept
    dimensions but the last, strides along them of y[rank], of x[rank], of each operand[rank],
    stride of each operand of the epilogue along the last.
    """
    register = kind_of(dtype)
    double = uses_double(dtype, out, *ends.before, *ends.after)
    steps = reduce_steps(kind, register, double)
    # Shuffles move numbers: a bool is combined as 0 or 1 between threads.
    between = "i" if register == "b" else register
    joined = reduce_steps(kind, between, double)
    rows, warps, channels = threads // lanes, threads // 32, lanes * width
    befores, afters = ends.befores, ends.afters
    sizes = [f"d{r}" for r in range(rank)]
    kept = {n: [f"{n}_s{r}" for r in range(rank)] for n in ("y", "x", *befores, *afters)}
    params = ["x", "y", *befores, *afters, "count", "x_pitch", *(f"{b}_pitch" for b in befores)]
    params += ["groups", *sizes, *(s for row in kept.values() for s in row)]
    params += [f"{a}_last" for a in afters]
    coords = [f"c{r}" for r in range(rank)]
    accs = [f"a{k}" for k in range(width)]
    starts, once, fetch, visit = [], [], [], []
    for name, mode in zip(("x", *befores), ("v1", *modes), strict=True):
        terms = list(zip(coords, kept[name], strict=True))
        starts.append(
            f"{name}at = {offset_text([*terms, *([('channel', '1')] if mode[0] == 'v' else [])])}"
        )

    def operand(
        name: str, other: DType, mode: str, tag: str, at: str
    ) -> tuple[list[str], list[str]]:
        if mode[0] == "b":
            return [f"v{name}{tag} = load_{other}({name}, {at})"], [f"v{name}{tag}"] * width
        return load_lines(f"v{name}{tag}", name, at, other, width)

    held: dict[str, list[str]] = {}
    for name, other, mode in zip(befores, ends.before, modes, strict=True):
        if mode[1] == "0":
            lines, held[name] = operand(name, other, mode, "", f"{name}at")
            once += lines
    for u in range(UNROLL):
        fetch += [
            f"j{u} = u32(j + u32({u * rows}))",
            f"ok{u} = j{u} < count",
            f"i{u} = j{u} if ok{u} else last",
            f"o{u} = u32(xat + u32(i{u} * x_pitch))",
        ]
        loads, names = load_lines(f"v{u}", "x", f"o{u}", dtype, width)
        fetch += loads
        others: list[tuple[list[str], DType]] = []
        for name, other, mode in zip(befores, ends.before, modes, strict=True):
            values = held.get(name)
            if values is None:
                fetch.append(f"o{name}{u} = u32({name}at + u32(i{u} * {name}_pitch))")
                lines, values = operand(name, other, mode, f"_{u}", f"o{name}{u}")
                fetch += lines
            others.append((values, other))
        for k, (a, loaded) in enumerate(zip(accs, names, strict=True)):
            visit.append(f"w = {wide(loaded, dtype, double)}")
            lines, value = program_lines(
                ends.prologue, "w", [(v[k], d) for v, d in others], double, f"p{u}_{k}"
            )
            visit += lines
            visit.append(f"w = {steps.visit.format(v=value)} if ok{u} else {steps.start}")
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
        *(f"    {line}" for line in starts + once),
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
        cell = f"part[u32(t + u32({warp * channels}))]"
        lines.append(f"        b = {joined.combine.format(a='b', v=cell)}")
    places = [(c, [kept[a][r] for a in afters]) for r, c in enumerate(coords)]
    finish, result = end_lines(
        ends, "z", [*places, ("place", [f"{a}_last" for a in afters])], double
    )
    yo = offset_text([*zip(coords, kept["y"], strict=True), ("place", "1")])
    lines += [
        f"        z = {joined.finish.format(a='b', count='count')}",
        *(f"        {line}" for line in finish),
        f"        yo = {yo}",
        f"        store_{out}(y, yo, {convert_text(result, between, out)})",
    ]
    namespace = reduce_namespace(dtype, out, *ends.before, *ends.after)
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, signature(dtype, out, ends, params)


# -- rows ------------------------------------------------------------------------------------------


def _rows_kernel(
    kind: str,
    dtype: DType,
    out: DType,
    rank: int,
    threads: int,
    width: int,
    ends: Ends = PLAIN,
    modes: tuple[str, ...] = (),
) -> tuple[Any, Any]:
    """Reduce the contiguous dimension, ``threads`` threads an output (32: a warp; 256: a block).

    Threads read neighbouring vectors of ``width``; shuffles combine a warp, shared memory the
    warps. Operands of the prologue follow the row (mode ``v``) or are one element per row (``b``).

    Kernel parameters: x, y, operands of the prologue, of the epilogue, outputs, elements per
    output, sizes[rank], strides of y[rank], of x[rank], of each operand[rank] along kept
    dimensions.
    """
    register = kind_of(dtype)
    double = uses_double(dtype, out, *ends.before, *ends.after)
    steps = reduce_steps(kind, register, double)
    befores, afters = ends.befores, ends.afters
    sizes = [f"d{r}" for r in range(rank)]
    kept = {n: [f"{n}_s{r}" for r in range(rank)] for n in ("y", "x", *befores, *afters)}
    params = ["x", "y", *befores, *afters, "n", "count", *sizes]
    params += [s for row in kept.values() for s in row]
    coords = [f"c{r}" for r in range(rank)]
    accs = [f"a{j}" for j in range(width)]
    loads, names = load_lines("v", "x", "o", dtype, width)
    once: list[str] = []
    others: list[tuple[list[str], DType]] = []
    for name, other, mode in zip(befores, ends.before, modes, strict=True):
        if mode == "b":
            once.append(f"v{name} = load_{other}({name}, {name}at)")
            others.append(([f"v{name}"] * width, other))
            continue
        loads.append(f"o{name} = u32({name}at + j)")
        lines, values = load_lines(f"v{name}", name, f"o{name}", other, width)
        loads += lines
        others.append((values, other))
    visit = []
    for k, (a, loaded) in enumerate(zip(accs, names, strict=True)):
        visit.append(f"w{loaded} = {wide(loaded, dtype, double)}")
        lines, value = program_lines(
            ends.prologue, f"w{loaded}", [(v[k], d) for v, d in others], double, f"p{k}"
        )
        visit += lines
        visit.append(f"{a} = {steps.combine.format(a=a, v=steps.visit.format(v=value))}")
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
        *(
            f"    {name}at = {offset_text(list(zip(coords, kept[name], strict=True)))}"
            for name in ("x", *befores)
        ),
        f"    yo = {offset_text(list(zip(coords, kept['y'], strict=True)))}",
        *(f"    {line}" for line in once),
        *(f"    {a} = {steps.start}" for a in accs),
        f"    j = u32(lane * u32({width}))",
        "    while j < count:",
        "        o = u32(xat + j)",
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
    finish, result = end_lines(
        ends, "z", [(c, [kept[a][r] for a in afters]) for r, c in enumerate(coords)], double
    )
    lines += [
        "    if lane == u32(0) and row < n:",
        f"        z = {steps.finish.format(a='a0', count='count')}",
        *(f"        {line}" for line in finish),
        f"        store_{out}(y, yo, {convert_text(result, register, out)})",
    ]
    if threads == 32:
        lines.remove(f"    part = cuda.shared.array({THREADS // 32}, cell)")
    namespace = reduce_namespace(dtype, out, *ends.before, *ends.after)
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, signature(dtype, out, ends, params)
