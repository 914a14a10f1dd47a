"""The kernels of `nrt.cuda_kernels.pooled_matmul`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.elements import kernel_function, load_lines, unpack_text
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.reduce_text import (
    THREADS,
    Ends,
    Steps,
    program_lines,
    reduce_namespace,
    reduce_steps,
)
from nrt.cuda_kernels.strided import index_lines, offset_text
from nrt.dtypes import DType

__all__ = ["THREADS", "UNROLL", "held_vectors", "pool_rows"]

UNROLL = 4
"""Loads of pixels that a thread has in flight."""

_HELD = 4
"""Vectors of weights that a thread may hold, 16 registers of its 128."""

# Length of a serial partial sum, as of reductions.
_CHUNK = 64


def pool_rows(channels: int, width: int, threads: int) -> int:
    """Threads that share the pixels of a vector of channels: what the block has for it."""
    return max(1, threads // (channels // width))


def held_vectors(channels: int, width: int, columns: int, dtype: DType) -> int:
    """Vectors of weights that a thread loads before it pools: all it needs, or none."""
    steps = -(-channels // (32 * width))
    return steps * columns if width * dtype.itemsize == 16 and steps * columns <= _HELD else 0


def _finish(
    text: Sequence[str],
    params: Sequence[str],
    dtype: DType,
    out: DType,
    ends: Ends,
    extras: tuple[Extra, ...],
) -> tuple[Any, Any]:
    namespace = reduce_namespace(dtype, out, *ends.before) | {
        "store_result": make_store(ends.epilogue, extras, out, 1),
        "ld4_now": ptx.ld_global_v4,
        "ld4_shared": ptx.ld_shared_v4_f32,
        "shared_address": ptx.shared_address,
    }
    body = "".join(f"    {line}\n" for line in text)
    kernel = kernel_function(f"def kernel({', '.join(params)}):\n{body}", namespace)
    pointers = [
        *(pointer(d) for d in (dtype, dtype, out, *ends.before)),
        *extra_types(extras),
    ]
    return kernel, types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))


def _pointers(ends: Ends) -> list[str]:
    return ["x", "w", "y", *ends.befores, *(f"e{k}" for k in range(MAX_EXTRAS))]


_EXTRAS = ", ".join(f"e{k}" for k in range(MAX_EXTRAS))


# -- any strides -----------------------------------------------------------------------------------


def _strided_kernel(
    kind: str, dtype: DType, out: DType, depth: int, ends: Ends, extras: tuple[Extra, ...]
) -> tuple[Any, Any]:
    """One output per thread and step, any strides; it pools every channel for itself.

    Kernel parameters: x, w, y, operands of the prologue, four of the epilogue, outputs, columns,
    channels, pixels, strides of w (channel, column), of y (image, column), of x (image, channel),
    of each operand of the prologue, sizes[depth] of the spatial dimensions, strides along them of
    x[depth], of each operand of the prologue[depth].
    """
    steps = reduce_steps(kind, "f", False)
    names = ["x", *ends.befores]
    sizes = [f"g{r}" for r in range(depth)]
    inner = {n: [f"{n}_t{r}" for r in range(depth)] for n in names}
    params = [*_pointers(ends), "n", "columns", "channels", "count", "w_c", "w_m", "y_n", "y_m"]
    params += [s for n in names for s in (f"{n}_n", f"{n}_c")]
    params += [*sizes, *(s for row in inner.values() for s in row)]
    within = [f"k{r}" for r in range(depth)]
    visit = []
    operands = []
    for name, other in zip(names, (dtype, *ends.before), strict=True):
        place = offset_text([*zip(within, inner[name], strict=True), (f"{name}at", "1")])
        visit.append(f"v{name} = load_{other}({name}, {place})")
        operands.append((f"v{name}", other))
    body, value = program_lines(ends.prologue, "vx", operands[1:], False, "p")
    text = [
        f"i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))",
        f"step = u32(cuda.gridDim.x * u32({THREADS}))",
        "while i < n:",
        "    image = u32(i // columns)",
        "    m = u32(i - u32(image * columns))",
        "    total = F(0)",
        "    c = u32(0)",
        "    while c < channels:",
        *(f"        {n}at = {offset_text([('image', f'{n}_n'), ('c', f'{n}_c')])}" for n in names),
        f"        a = {steps.start}",
        "        j = u32(0)",
        "        while j < count:",
        f"            stop = min(count, u32(j + u32({_CHUNK})))",
        f"            part = {steps.start}",
        "            while j < stop:",
        *(f"                {line}" for line in index_lines(depth, "j", "k", sizes)),
        *(f"                {line}" for line in (*visit, *body)),
        f"                part = {steps.combine.format(a='part', v=value)}",
        "                j = u32(j + u32(1))",
        f"            a = {steps.combine.format(a='a', v='part')}",
        f"        z = {steps.finish.format(a='a', count='count')}",
        f"        b = load_{dtype}(w, {offset_text([('c', 'w_c'), ('m', 'w_m')])})",
        "        total = total + z * b",
        "        c = u32(c + u32(1))",
        f"    o = {offset_text([('image', 'y_n'), ('m', 'y_m')])}",
        f"    store_result(total, image, m, o, y, {_EXTRAS})",
        "    i = u32(i + step)",
    ]
    return _finish(text, params, dtype, out, ends, extras)


# -- channels last ---------------------------------------------------------------------------------


def _pool_lines(
    steps: Steps,
    dtype: DType,
    ends: Ends,
    modes: Sequence[str],
    shape: tuple[int, int, int, int],
) -> list[str]:
    """Lines that leave the pooled channels of the block's images in ``sums``, row 0 of each.

    Units of a vector, a row of threads and an image go to the threads in turn, vectors fastest.
    """
    channels, width, threads, images = shape
    lanes, rows = channels // width, pool_rows(channels, width, threads)
    accs = [f"a{k}" for k in range(width)]
    once: list[str] = []
    others: list[tuple[list[str], DType]] = []
    for name, other, mode in zip(ends.befores, ends.before, modes, strict=True):
        if mode == "b":
            once.append(f"v{name} = load_{other}({name}, u32(0))")
            others.append(([f"v{name}"] * width, other))
            continue
        loads, values = load_lines(f"v{name}", name, "channel", other, width)
        once += loads
        others.append((values, other))
    fetch, visit = [], []
    for u in range(UNROLL):
        fetch += [
            f"j{u} = u32(j + u32({u * rows}))",
            f"ok{u} = j{u} < count",
            f"o{u} = u32(at_x + u32((j{u} if ok{u} else last) * pixel))",
        ]
        loads, names = load_lines(f"v{u}", "x", f"o{u}", dtype, width)
        fetch += loads
        for k, (a, loaded) in enumerate(zip(accs, names, strict=True)):
            body, value = program_lines(
                ends.prologue, loaded, [(v[k], d) for v, d in others], False, f"p{u}_{k}"
            )
            visit += body
            visit.append(f"u = {value} if ok{u} else {steps.start}")
            visit.append(f"{a} = {steps.combine.format(a=a, v='u')}")
    spots = [f"u32(spot + u32({k}))" for k in range(width)]
    lines = [
        "last = u32(count - u32(1))",
        "unit = t",
        f"while unit < u32({lanes * rows * images}):",
        f"    channel = u32(u32(unit % u32({lanes})) * u32({width}))",
        f"    rest = u32(unit // u32({lanes}))",
        f"    row = u32(rest % u32({rows}))",
        # Images beyond the last repeat it; what they give is not stored.
        f"    image = u32(min(u32(first_image + u32(rest // u32({rows}))), u32(N - u32(1))))",
        "    at_x = u32(u32(image * x_n) + channel)",
        *(f"    {line}" for line in once),
        *(f"    {a} = {steps.start}" for a in accs),
        "    j = row",
        "    while j < count:",
        *(f"        {line}" for line in (*fetch, *visit)),
        f"        j = u32(j + u32({rows * UNROLL}))",
        f"    spot = u32(u32(rest * u32({channels})) + channel)",
        *(f"    sums[{spot}] = {a}" for spot, a in zip(spots, accs, strict=True)),
        f"    unit = u32(unit + u32({threads}))",
        "cuda.syncthreads()",
        "unit = t",
        f"while unit < u32({channels * images}):",
        f"    rest = u32(unit // u32({channels}))",
        f"    spot = u32(u32(rest * u32({rows * channels})) + u32(unit - rest * u32({channels})))",
        "    b = sums[spot]",
    ]
    for row in range(1, rows):
        other_row = f"sums[u32(spot + u32({row * channels}))]"
        lines.append(f"    b = {steps.combine.format(a='b', v=other_row)}")
    return [
        *lines,
        f"    sums[spot] = {steps.finish.format(a='b', count='count')}",
        f"    unit = u32(unit + u32({threads}))",
        "cuda.syncthreads()",
    ]


def _shared_lines(target: str, width: int) -> list[str]:
    """Lines that load ``width`` pooled values from ``place`` into ``target``, a name each."""
    if width % 4:
        return [f"{target}_{k} = sums[u32(place + u32({k}))]" for k in range(width)]
    lines = []
    for k in range(0, width, 4):
        names = ", ".join(f"{target}_{k + j}" for j in range(4))
        lines.append(f"{names} = ld4_shared(u32(base + u32(u32(place + u32({k})) * u32(4))))")
    return lines


def _pooled_kernel(
    kind: str,
    dtype: DType,
    out: DType,
    channels: int,
    config: tuple[int, int, int, int],
    ends: Ends,
    modes: tuple[str, ...],
    extras: tuple[Extra, ...],
) -> tuple[Any, Any]:
    """A block pools its images in shared memory, then each warp makes ``columns`` outputs of each.

    ``config`` is (threads, columns, images, width); weights lie ``[M, C]``. The warp's weights are
    on their way while the block pools, where a thread has the registers for them: what a launch of
    its own would wait for. Everything else is in the second-level cache but for the first block
    that reads it. Lanes stride over the channels, shuffles add them, and a lane ends one result.

    ``modes``: an operand of the prologue follows the channels (``v``) or is one element (``b``).

    Kernel parameters: x, w, y, operands of the prologue, four of the epilogue, images, columns,
    pixels, strides of x along images and pixels, of y along images and columns.
    """
    threads, columns, images, width = config
    steps = reduce_steps(kind, "f", False)
    lanes, rows = channels // width, pool_rows(channels, width, threads)
    turns = -(-lanes // 32)
    params = [*_pointers(ends), "N", "M", "count", "x_n", "pixel", "y_n", "y_m"]
    held = held_vectors(channels, width, columns, dtype) > 0
    text = [
        f"sums = cuda.shared.array({rows * channels * images}, f32)",
        "base = shared_address(sums)",
        "t = u32(cuda.threadIdx.x)",
        "lane = u32(t % u32(32))",
        f"first_image = u32(cuda.blockIdx.y * u32({images}))",
        f"first = u32(u32(cuda.blockIdx.x * u32({threads // 32})) + u32(t // u32(32)))",
        f"first = u32(first * u32({columns}))",
    ]
    for c in range(columns):
        # Columns beyond the last repeat it.
        text.append(f"w{c} = u32(min(u32(first + u32({c})), u32(M - u32(1))) * u32({channels}))")

    def lane_lines(turn: int) -> list[str]:
        """The vector of a turn; lanes beyond the channels take the first and multiply by 0."""
        lines = [f"l = u32(lane + u32({32 * turn}))"]
        if 32 * (turn + 1) > lanes:
            lines += [f"live = l < u32({lanes})", "l = u32(l if live else u32(0))"]
        return [*lines, f"l = u32(l * u32({width}))"]

    per_word = max(1, 4 // dtype.itemsize)
    if held:
        for turn in range(turns):
            text += lane_lines(turn)
            for c in range(columns):
                words = ", ".join(f"h{turn}_{c}_{k}" for k in range(4))
                text.append(f"{words} = ld4_now(at(w, u32(w{c} + l)))")
    text += _pool_lines(steps, dtype, ends, modes, (channels, width, threads, images))
    text += [f"s{c}_{g} = F(0)" for c in range(columns) for g in range(images)]
    for turn in range(turns):
        text += lane_lines(turn)
        weights = []
        for c in range(columns):
            if held:
                values = [
                    unpack_text(dtype, f"h{turn}_{c}_{e // per_word}", e % per_word)
                    for e in range(width)
                ]
                text += [f"q{c}_{e} = {value}" for e, value in enumerate(values)]
                weights.append([f"q{c}_{e}" for e in range(width)])
                continue
            text.append(f"o = u32(w{c} + l)")
            loads, names = load_lines(f"q{c}", "w", "o", dtype, width)
            text += loads
            weights.append(names)
        for g in range(images):
            text.append(f"place = u32(l + u32({g * rows * channels}))")
            text += _shared_lines("z", width)
            if 32 * (turn + 1) > lanes:
                text += [f"z_{e} = z_{e} if live else F(0)" for e in range(width)]
            text += [
                f"s{c}_{g} = s{c}_{g} + z_{e} * {weights[c][e]}"
                for c in range(columns)
                for e in range(width)
            ]
    for distance in (16, 8, 4, 2, 1):
        for c in range(columns):
            for g in range(images):
                text.append(f"r = cuda.shfl_xor_sync(0xffffffff, s{c}_{g}, {distance})")
                text.append(f"s{c}_{g} = s{c}_{g} + r")
    text.append("total = s0_0")
    for slot in range(1, columns * images):
        text.append(f"total = s{slot // images}_{slot % images} if lane == u32({slot}) else total")
    text += [
        f"image = u32(first_image + u32(lane % u32({images})))",
        f"m = u32(first + u32(lane // u32({images})))",
        f"if lane < u32({columns * images}) and image < N and m < M:",
        f"    o = {offset_text([('image', 'y_n'), ('m', 'y_m')])}",
        f"    store_result(total, image, m, o, y, {_EXTRAS})",
    ]
    return _finish(text, params, dtype, out, ends, extras)
