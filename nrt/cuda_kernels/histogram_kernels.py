"""The kernels of histograms. Floats are read as their bits; see `nrt.ir.ops.histogram`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import kernel_function, kernel_namespace
from nrt.cuda_kernels.strided import index_lines, offset_text
from nrt.dtypes import INT64, UINT32
from nrt.ir.ops.histogram import BINS, NEGATIVE, POSITIVE, WORDS, ZEROS

__all__ = ["THREADS"]

THREADS = 256

_SHIFT = 24 - (BINS.bit_length() - 1)


def _function(lines: Sequence[str]) -> Any:
    names = {
        "shared_address": ptx.shared_address,
        "add_shared": ptx.red_shared_add_u32,
        "add_global": ptx.red_global_add_u64,
        "max_global": ptx.red_global_max_u32,
        "word": types.uint32,
    }
    return kernel_function("\n".join(lines) + "\n", kernel_namespace(UINT32) | names)


def _clear_kernel() -> tuple[Any, Any]:
    """Zeros. Kernel parameters: y."""
    kernel = _function(
        [
            "def kernel(y):",
            f"    i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))",
            f"    if i < u32({WORDS}):",
            "        y[i] = i64(0)",
        ]
    )
    return kernel, types.void(pointer(INT64))


def _walk(rank: int, width: int, visit: Sequence[str]) -> list[str]:
    """Lines of a grid-stride loop; ``visit`` sees the bits of an element as ``w``."""
    sizes, strides = [f"d{r}" for r in range(rank)], [f"s{r}" for r in range(rank)]
    coords = [f"c{r}" for r in range(rank)]
    words = [f"w{k}" for k in range(width)]
    body = [
        *index_lines(rank, "i", "c", sizes),
        f"o = {offset_text(list(zip(coords, strides, strict=True)))}",
        f"{', '.join(words)}, = ld{width}(at(x, o))",
    ]
    for name in words:
        body += [f"w = {name}", "m = u32(w & u32(0x7fffffff))", *visit]
    return [
        f"    i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))",
        f"    step = u32(cuda.gridDim.x * u32({THREADS}))",
        "    while i < n:",
        *(f"        {line}" for line in body),
        "        i = u32(i + step)",
    ]


def _head(rank: int) -> str:
    numbers = [*(f"d{r}" for r in range(rank)), *(f"s{r}" for r in range(rank))]
    return f"def kernel(x, y, n, {', '.join(numbers)}):"


def _signature(rank: int) -> Any:
    return types.void(pointer(UINT32), pointer(INT64), *[types.uint32] * (1 + 2 * rank))


def _largest_kernel(rank: int, width: int) -> tuple[Any, Any]:
    """The largest magnitudes of either sign, as bits, into the output's last words.

    Bits of magnitudes are ordered as the magnitudes are, NaN above infinity. Kernel parameters: x,
    y, vectors, sizes[rank], strides of x[rank]; the last dimension counts vectors of ``width``.
    """
    visit = [
        "if m == w:",
        "    high = max(high, m)",
        "else:",
        "    low = max(low, m)",
    ]
    lines = [
        _head(rank),
        f"    part = cuda.shared.array({2 * THREADS // 32}, word)",
        "    t = u32(cuda.threadIdx.x)",
        "    high = u32(0)",
        "    low = u32(0)",
        *_walk(rank, width, visit),
    ]
    shift = 16
    while shift:
        for name in ("high", "low"):
            lines += [
                f"    other = u32(cuda.shfl_xor_sync(0xffffffff, i32({name}), {shift}))",
                f"    {name} = max({name}, other)",
            ]
        shift //= 2
    lines += [
        "    if u32(t % u32(32)) == u32(0):",
        "        part[u32(t // u32(32))] = high",
        f"        part[u32(u32(t // u32(32)) + u32({THREADS // 32}))] = low",
        "    cuda.syncthreads()",
        "    if t < u32(2):",
        f"        first = u32(t * u32({THREADS // 32}))",
        "        most = part[first]",
    ]
    for warp in range(1, THREADS // 32):
        lines.append(f"        most = max(most, part[u32(first + u32({warp}))])")
    # The words are 64 bits wide and little-endian: their upper halves stay zero.
    lines.append(f"        max_global(at(y, u32(u32({POSITIVE}) + t)), most)")
    assert NEGATIVE == POSITIVE + 1
    return _function(lines), _signature(rank)


def _count_kernel(rank: int, width: int) -> tuple[Any, Any]:
    """Counts of the bins, in shared memory first, and of zeros.

    A block counts fewer than 2^31 elements: 32 bits hold its counts, 64 the sums. Kernel
    parameters: as for `_largest_kernel`, which ran before.
    """
    visit = [
        "if m == u32(0):",
        "    zeros = u32(zeros + u32(1))",
        "else:",
        "    e = u32(m >> u32(23))",
        "    f = u32(m & u32(0x7fffff))",
        "    f = u32(f | u32(0x800000)) if e > u32(0) else f",
        "    e = min(u32(top - max(e, u32(1))), u32(31))",
        "    add_shared(u32(base + u32(u32(f >> e) * u32(4))), u32(1))",
    ]
    cells = BINS + 1
    lines = [
        _head(rank),
        f"    part = cuda.shared.array({cells}, word)",
        "    base = shared_address(part)",
        "    t = u32(cuda.threadIdx.x)",
        "    k = t",
        f"    while k < u32({cells}):",
        "        part[k] = u32(0)",
        f"        k = u32(k + u32({THREADS}))",
        "    cuda.syncthreads()",
        "    zeros = u32(0)",
        f"    largest = u32(max(y[u32({POSITIVE})], y[u32({NEGATIVE})]))",
        f"    top = u32(max(u32(largest >> u32(23)), u32(1)) + u32({_SHIFT}))",
        *_walk(rank, width, visit),
        f"    add_shared(u32(base + u32({4 * ZEROS})), zeros)",
        "    cuda.syncthreads()",
        "    k = t",
        f"    while k < u32({cells}):",
        "        count = part[k]",
        "        if count > u32(0):",
        "            add_global(at(y, k), i64(count))",
        f"        k = u32(k + u32({THREADS}))",
    ]
    return _function(lines), _signature(rank)
