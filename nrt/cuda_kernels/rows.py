"""Rows that are reduced and then rewritten: what softmax and the normalizations are made of.

A row is the set of elements that share statistics. `Rows` holds the collapsed dimensions that
number the rows and those within one; scale and bias are further tensors with strides along both.
Two kernels: one that keeps a row in registers (one read, one write), and one for any strides that
reads it three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.cuda_kernels.row_kernels import THREADS, RowTask, block_threads
from nrt.cuda_kernels.strided import (
    Geometry,
    aligned,
    collapse,
    refuse_fp8,
    refuse_large,
    refuse_rank,
    scalars,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out
from nrt.dtypes import DType
from nrt.problem import Problem, Refusal

__all__ = [
    "Rows",
    "RowTask",
    "refuse_resident",
    "refuse_rows",
    "resident_configs",
    "resident_emission",
    "rows",
    "strided_emission",
]

_RESIDENT = 32
"""Elements of a row that a thread holds in registers; 64 would halve the occupancy."""


@dataclass(frozen=True)
class Rows:
    """Rows of a problem.

    Attributes:
        outer: dimensions that number the rows; strides of y, x, then of scale and bias if any.
        inner: dimensions within a row, likewise.
        dtypes: element types of y, x, scale, bias.
    """

    outer: Geometry
    inner: Geometry
    dtypes: tuple[DType, ...]


def rows(problem: Problem, inner: Sequence[int], extras: Sequence[tuple[int, ...]] = ()) -> Rows:
    """Rows of ``problem`` that span dimensions ``inner``.

    Args:
        problem: input 0 is x; inputs 1… are scale and bias.
        inner: dimensions within a row.
        extras: strides of inputs 1… along all dimensions of x.
    """
    x, y = problem.inputs[0], problem.y
    tensors = [y.strides, x.strides, *extras]
    outer = [d for d in range(len(x.shape)) if d not in inner]

    def part(dims: Sequence[int]) -> Geometry:
        return collapse([x.shape[d] for d in dims], *([t[d] for d in dims] for t in tensors))

    dtypes = (y.dtype, *(t.dtype for t in problem.inputs[: 1 + len(extras)]))
    return Rows(part(outer), part(list(inner)), dtypes)


def refuse_rows(problem: Problem, found: Rows) -> Refusal | None:
    """Refusal that both kernels share."""
    return (
        refuse_fp8(problem)
        or refuse_large(problem)
        or refuse_rank(found.outer)
        or refuse_rank(found.inner)
    )


# -- emissions -------------------------------------------------------------------------------------


def _args(found: Rows, numbers: Sequence[int]) -> tuple[Arg, ...]:
    pointers: list[Arg] = [Out(), *(In(k) for k in range(len(found.dtypes) - 1))]
    return (*pointers, *scalars(numbers))


def strided_emission(task: RowTask, found: Rows, threads: int) -> Emission:
    """Launch `_strided_kernel`; nothing for empty rows."""
    outer, inner = found.outer, found.inner
    if outer.size * inner.size == 0:
        return Emission(())
    spec = KernelSpec(
        "nrt.cuda_kernels.row_kernels:_strided_kernel",
        (task, found.dtypes, outer.rank, inner.rank, threads),
        THREADS,
    )
    numbers = [outer.size, inner.size, *outer.shape, *(s for row in outer.strides for s in row)]
    numbers += [*inner.shape, *(s for row in inner.strides for s in row)]
    grid = -(-outer.size // (THREADS // threads))
    launch = Launch(spec, (grid, 1, 1), (THREADS, 1, 1), _args(found, numbers))
    return Emission((launch,))


def _row_modes(found: Rows) -> tuple[str, ...]:
    return tuple("v" if s[-1] else "b" for s in found.inner.strides[2:])


def _row_width(found: Rows) -> int:
    """Elements per vector that fit the row and every tensor that follows it."""
    width = min(8, 16 // min(d.itemsize for d in found.dtypes[:2]))
    # A single row starts where its buffer does: the stride to the next one is nothing.
    several = [d for d, size in enumerate(found.outer.shape) if size > 1]
    following = [
        [s[d] for d in several]
        for s, i in zip(found.outer.strides, found.inner.strides, strict=True)
        if i[-1] == 1
    ]
    while width > 1 and (
        found.inner.size % width or not all(aligned((*s, 1), width) for s in following)
    ):
        width //= 2
    return width


def refuse_resident(found: Rows) -> Refusal | None:
    """Why a row cannot be kept in registers, if so."""
    inner = found.inner
    if inner.rank != 1 or inner.strides[0] != (1,) or inner.strides[1] != (1,):
        return Refusal("the rows are not contiguous in input and output")
    if any(s[0] not in (0, 1) for s in inner.strides[2:]):
        return Refusal("scale or bias has a stride along the row that is not 0 or 1")
    if not resident_configs(found):
        return Refusal(
            f"rows of {inner.size} elements in vectors of {_row_width(found)} do not fit "
            f"{_RESIDENT} registers in each of 1024 threads"
        )
    return None


def resident_configs(found: Rows) -> list[tuple[int, int, int]]:
    """(threads, vectors per thread, width), the one expected to be fastest first."""
    width = _row_width(found)
    groups = -(-found.inner.size // width)
    configs = []
    if groups <= 16:
        # Several rows share a warp, which would idle in half of its lanes or more.
        configs.append((1 << max(0, groups - 1).bit_length(), 1, width))
    for threads in (32, 64, 128, 256, 512, 1024):
        vectors = -(-groups // threads)
        if vectors * width <= _RESIDENT and (vectors - 1) * threads < groups:
            configs.append((threads, max(vectors, 1), width))
            if vectors <= 1:
                break
    # The fewest threads that hold the row first: no shared memory, most rows in flight.
    return configs[:3]


def resident_emission(task: RowTask, found: Rows, config: tuple[int, int, int]) -> Emission:
    """Launch `_resident_kernel`; nothing for empty rows."""
    threads, vectors, width = config
    outer, inner = found.outer, found.inner
    if outer.size * inner.size == 0:
        return Emission(())
    block = block_threads(threads)
    spec = KernelSpec(
        "nrt.cuda_kernels.row_kernels:_resident_kernel",
        (task, found.dtypes, _row_modes(found), outer.rank, threads, vectors, width),
        block,
    )
    numbers = [outer.size, inner.size // width, inner.size, *outer.shape]
    numbers += [s for row in outer.strides for s in row]
    grid = -(-outer.size // (block // threads))
    launch = Launch(spec, (grid, 1, 1), (block, 1, 1), _args(found, numbers))
    return Emission((launch,))
