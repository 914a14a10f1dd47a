"""The kernels that reduce a row and rewrite it; `rows` says for which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
    uses_double,
)
from nrt.cuda_kernels.strided import (
    index_lines,
    offset_text,
)
from nrt.dtypes import DType

__all__ = ["THREADS", "RowTask", "block_threads"]

THREADS = 256
"""Threads of a block that holds several rows."""


@dataclass(frozen=True)
class RowTask:
    """What is done to a row; part of the compile key.

    Attributes:
        kind: ``softmax``, ``log_softmax`` or ``standardize`` (mean 0, variance 1).
        epsilon: added to the variance.
    """

    kind: str
    epsilon: float = 0.0

    @property
    def first(self) -> tuple[str, str]:
        """Neutral element and combination of the first statistic: maximum or sum."""
        if self.kind == "standardize":
            return "F(0)", "{a} + {v}"
        return "F(-inf)", "max_({a}, {v})"

    def second(self, value: str) -> str:
        """What the second statistic, ``mid`` given, sums over the elements."""
        if self.kind == "standardize":
            return f"({value} - mid) * ({value} - mid)"
        return f"exp_({value} - mid)"

    def between(self, count: str) -> list[str]:
        """Lines that turn the first statistic ``one`` into ``mid``."""
        return [f"mid = one / F({count})" if self.kind == "standardize" else "mid = one"]

    def after(self, count: str) -> list[str]:
        """Lines that turn the second statistic ``two`` into ``factor``."""
        if self.kind == "standardize":
            return [f"factor = F(1) / sqrt_(two / F({count}) + F({self.epsilon!r}))"]
        return ["factor = F(1) / two" if self.kind == "softmax" else "factor = log_(two)"]

    def result(self, value: str) -> str:
        """Expression of the result, before scale and bias."""
        if self.kind == "standardize":
            return f"({value} - mid) * factor"
        if self.kind == "softmax":
            return f"exp_({value} - mid) * factor"
        return f"({value} - mid) - factor"


def block_threads(threads: int) -> int:
    """Threads of a block: several rows, each of a warp or a part of one; or one row's threads."""
    return THREADS if threads <= 32 else threads


def _names(found_extras: int) -> list[str]:
    return ["y", "x", "scale", "bias"][: 2 + found_extras]


def _share_lines(value: str, combine: str, threads: int, part: str) -> list[str]:
    """Lines that give every one of a row's ``threads`` threads the combined ``value``."""
    if threads == 1:
        return []
    lines = []
    shift = min(threads, 32) // 2
    while shift:
        lines.append(f"other = cuda.shfl_xor_sync(0xffffffff, {value}, {shift})")
        lines.append(f"{value} = {combine.format(a=value, v='other')}")
        shift //= 2
    if threads > 32:
        lines += [
            "if t % u32(32) == u32(0):",
            f"    {part}[u32(t // u32(32))] = {value}",
            "cuda.syncthreads()",
            f"{value} = {part}[0]",
        ]
        for warp in range(1, threads // 32):
            lines.append(f"{value} = {combine.format(a=value, v=f'{part}[{warp}]')}")
    return lines


def _head_lines(threads: int, block: int, rank: int, names: Sequence[str]) -> list[str]:
    """Lines that find the row of a thread and each tensor's offset ``…o`` of it."""
    per_block = block // threads
    sizes = [f"d{r}" for r in range(rank)]
    lines = [
        "t = u32(cuda.threadIdx.x)",
        f"lane = u32(t % u32({threads}))",
        f"row = u32(u32(cuda.blockIdx.x * u32({per_block})) + u32(t // u32({threads})))",
        # Whole warps stay for the shuffles: rows beyond the end repeat the last one.
        "i = min(row, u32(n - u32(1)))",
        *index_lines(rank, "i", "c", sizes),
    ]
    for name in names:
        terms = [(f"c{r}", f"{name}_s{r}") for r in range(rank)]
        lines.append(f"{name}o = {offset_text(terms)}")
    if threads > 32:
        lines += [f"part{k} = cuda.shared.array({threads // 32}, cell)" for k in (0, 1)]
    return lines


def _finish(text: list[str], dtypes: tuple[DType, ...], params: Sequence[str]) -> tuple[Any, Any]:
    namespace = kernel_namespace(*dtypes)
    namespace["cell"] = types.float64 if uses_double(*dtypes) else types.float32
    body = "".join(f"    {line}\n" for line in text)
    kernel = kernel_function(f"def kernel({', '.join(params)}):\n{body}", namespace)
    pointers = [pointer(d) for d in dtypes]
    return kernel, types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))


def _strided_kernel(
    task: RowTask, dtypes: tuple[DType, ...], rank: int, depth: int, threads: int
) -> tuple[Any, Any]:
    """Any strides; ``threads`` threads a row (1, or 256: a block).

    Three passes over a row: first statistic, second statistic, result; the last two read from cache
    what the first brought in.

    Kernel parameters: y, x, scale, bias (as many as ``dtypes``), rows, elements of a row, sizes of
    the outer dimensions[rank], strides along them per tensor, the same of the inner ones[depth].
    """
    names = _names(len(dtypes) - 2)
    params = [*names, "n", "count", *(f"d{r}" for r in range(rank))]
    params += [f"{name}_s{r}" for name in names for r in range(rank)]
    params += [f"e{r}" for r in range(depth)]
    params += [f"{name}_t{r}" for name in names for r in range(depth)]
    start, combine = task.first

    def place(name: str) -> str:
        terms = [(f"k{r}", f"{name}_t{r}") for r in range(depth)]
        return offset_text([*terms, (f"{name}o", "1")])

    def over(lines: Sequence[str]) -> list[str]:
        return [
            "j = lane",
            "while j < count:",
            *(f"    {s}" for s in index_lines(depth, "j", "k", [f"e{r}" for r in range(depth)])),
            f"    v = F(load_{dtypes[1]}(x, {place('x')}))",
            *(f"    {line}" for line in lines),
            f"    j = u32(j + u32({threads}))",
        ]

    last = [f"z = {task.result('v')}"]
    for name, dtype, sign in zip(names[2:], dtypes[2:], "*+", strict=False):
        last.append(f"z = z {sign} F(load_{dtype}({name}, {place(name)}))")
    last.append(f"store_{dtypes[0]}(y, {place('y')}, {convert_text('z', 'f', dtypes[0])})")
    text = [
        *_head_lines(threads, THREADS, rank, names),
        f"one = {start}",
        *over([f"one = {combine.format(a='one', v='v')}"]),
        *_share_lines("one", combine, threads, "part0"),
        *task.between("count"),
        "two = F(0)",
        *over([f"two = two + {task.second('v')}"]),
        *_share_lines("two", "{a} + {v}", threads, "part1"),
        *task.after("count"),
        "if row < n:",
        *(f"    {line}" for line in over(last)),
    ]
    return _finish(text, dtypes, params)


def _resident_kernel(
    task: RowTask,
    dtypes: tuple[DType, ...],
    modes: tuple[str, ...],
    rank: int,
    threads: int,
    vectors: int,
    width: int,
) -> tuple[Any, Any]:
    """A contiguous row in the registers of ``threads`` threads: one read, one write.

    Thread l holds vectors l, l + threads, … of ``width`` elements, at most ``vectors`` of them;
    all are loaded before the first is used. Scale and bias follow the row (mode ``v``) or are one
    element per row (``b``).

    Kernel parameters: y, x, scale, bias (as many as ``dtypes``), rows, vectors of a row, elements
    of a row, sizes of the outer dimensions[rank], strides along them per tensor.
    """
    names = _names(len(dtypes) - 2)
    params = [*names, "n", "groups", "count", *(f"d{r}" for r in range(rank))]
    params += [f"{name}_s{r}" for name in names for r in range(rank)]
    _, combine = task.first
    text = _head_lines(threads, block_threads(threads), rank, names)
    held: list[list[str]] = []
    for k in range(vectors):
        text += [
            f"g{k} = u32(lane + u32({k * threads}))",
            f"ok{k} = g{k} < groups",
            f"p{k} = u32(u32(g{k} if ok{k} else u32(0)) * u32({width}))",
            f"x{k} = u32(xo + p{k})",
        ]
        lines, values = load_lines(f"v{k}", "x", f"x{k}", dtypes[1], width)
        text += lines
        held.append([f"u{k}_{e}" for e in range(width)])
        text += [f"u{k}_{e} = F({v})" for e, v in enumerate(values)]

    def total(name: str, value: Callable[[str], str]) -> list[str]:
        """Lines that sum ``value(v)`` of all held elements: a tree within each vector."""
        lines = [f"{name} = F(0)"]
        for k, values in enumerate(held):
            parts = [f"b{e}" for e in range(width)]
            lines += [f"{part} = {value(v)}" for part, v in zip(parts, values, strict=True)]
            while len(parts) > 1:
                half = len(parts) // 2
                lines += [
                    f"{a} = {a} + {b}" for a, b in zip(parts[:half], parts[half:], strict=True)
                ]
                parts = parts[:half]
            # A vector beyond the row repeats the first one and must not count.
            lines.append(f"{name} = {name} + mask{k} * {parts[0]}")
        return lines

    text += [f"mask{k} = F(1) if ok{k} else F(0)" for k in range(vectors)]
    if task.kind == "standardize":
        text += total("one", lambda v: v)
    else:
        # Repeated vectors do not change a maximum. A NaN that it drops comes back with the sum.
        text.append("one = F(-inf)")
        text += [f"one = max(one, {v})" for values in held for v in values]
        combine = "max({a}, {v})"
    text += _share_lines("one", combine, threads, "part0")
    text += task.between("count")
    if task.kind == "softmax":
        # The exponential is kept, not computed twice.
        text += [f"{v} = exp_({v} - mid)" for values in held for v in values]
        text += total("two", lambda v: v)
    else:
        text += total("two", task.second)
    text += _share_lines("two", "{a} + {v}", threads, "part1")
    text += task.after("count")
    singles = [k for k, mode in enumerate(modes) if mode == "b"]
    for k in singles:
        text.append(f"single{k} = F(load_{dtypes[2 + k]}({names[2 + k]}, {names[2 + k]}o))")
    for k, values in enumerate(held):
        body = []
        results = []
        for e, v in enumerate(values):
            value = f"{v} * factor" if task.kind == "softmax" else task.result(v)
            body.append(f"z{e} = {value}")
            results.append(f"z{e}")
        for index, (name, dtype) in enumerate(zip(names[2:], dtypes[2:], strict=True)):
            if modes[index] == "v":
                body.append(f"q = u32({name}o + p{k})")
                lines, operands = load_lines(f"w{name}", name, "q", dtype, width)
                body += lines
            else:
                operands = [f"single{index}"] * width
            sign = "*+"[index]
            body += [f"{z} = {z} {sign} F({w})" for z, w in zip(results, operands, strict=True)]
        body.append(f"q = u32(yo + p{k})")
        body += store_lines("y", "q", dtypes[0], [convert_text(z, "f", dtypes[0]) for z in results])
        text += [f"if ok{k} and row < n:", *(f"    {line}" for line in body)]
    return _finish(text, dtypes, params)
