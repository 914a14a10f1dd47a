"""Gather and GatherElements.

Both read one index per output element and add ``index * stride`` to an offset in the data; they
differ in the strides only. Negative indices count from the end. An index that is out of range (an
error in the reference) is clamped to the first or last position: a kernel cannot raise, and must
not read elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import kernel_function
from nrt.cuda_kernels.items import (
    item_bytes,
    item_dtype,
    item_namespace,
    load_item,
    store_item,
)
from nrt.cuda_kernels.strided import (
    Geometry,
    collapse,
    index_lines,
    offset_text,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.dtypes import DType
from nrt.ir.ops import Gather, GatherElements
from nrt.ir.ops.common import normalize_axis
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "GatherItems", "GatherStrided"]

_THREADS = 256


def _axis(problem: Problem) -> int:
    op = problem.op
    assert isinstance(op, Gather | GatherElements)
    return normalize_axis(op.name, op.axis, len(problem.inputs[0].shape))


def _geometry(problem: Problem) -> Geometry:
    """Collapsed output; strides of y, of the data (gathered dimension: 0), of the indices."""
    data, indices = problem.inputs
    axis = _axis(problem)
    if isinstance(problem.op, GatherElements):
        moving = [0 if d == axis else s for d, s in enumerate(data.strides)]
        return collapse(problem.y.shape, problem.y.strides, moving, indices.strides)
    middle = len(indices.shape)
    before, after = data.strides[:axis], data.strides[axis + 1 :]
    moving = [*before, *[0] * middle, *after]
    picking = [*[0] * len(before), *indices.strides, *[0] * len(after)]
    return collapse(problem.y.shape, problem.y.strides, moving, picking)


def _kernel(item: int, index: DType, rank: int) -> tuple[Any, Any]:
    """One item of ``item`` bytes per thread and step.

    Per item: an index (shared by all items of a slice, from cache), a read and a write.

    Kernel parameters: data, indices, y, items, size of the gathered dimension, its stride in items,
    sizes[rank], strides of y[rank], of data[rank] (in items), of indices[rank].
    """
    sizes = [f"d{r}" for r in range(rank)]
    rows = [[f"{name}{r}" for r in range(rank)] for name in ("sy", "sx", "si")]
    params = ["x", "indices", "y", "n", "size", "pitch", *sizes, *(s for row in rows for s in row)]
    coords = [f"c{r}" for r in range(rank)]
    ys, xs, picks = (list(zip(coords, row, strict=True)) for row in rows)
    text = "".join(
        f"{line}\n"
        for line in [
            f"def kernel({', '.join(params)}):",
            f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))",
            f"    step = u32(cuda.gridDim.x * u32({_THREADS}))",
            "    high = i64(size) - i64(1)",
            "    while i < n:",
            *(f"        {line}" for line in index_lines(rank, "i", "c", sizes)),
            f"        k = load_{index}(indices, {offset_text(picks)})",
            "        k = k + i64(size) if k < i64(0) else k",
            "        k = min(max(k, i64(0)), high)",
            f"        a = {offset_text([*xs, ('u32(k)', 'pitch')])}",
            f"        o = {offset_text(ys)}",
            *(f"        {line}" for line in load_item(item, "x", "a") + store_item(item, "y", "o")),
            "        i = u32(i + step)",
        ]
    )
    kernel = kernel_function(text, item_namespace(item, index))
    moved = pointer(item_dtype(item))
    return kernel, types.void(moved, pointer(index), moved, *[types.uint32] * (len(params) - 3))


def _items(problem: Problem) -> tuple[int, Geometry, int]:
    """Widest item, the geometry and the gathered dimension's stride in items."""
    itemsize = problem.y.dtype.itemsize
    geometry = _geometry(problem)
    pitch = problem.inputs[0].strides[_axis(problem)]
    if geometry.strides[2][-1] == 0:
        item, wide = item_bytes(itemsize, geometry, (0, 1))
        width = item // itemsize
        if pitch % width == 0:
            return item, wide, pitch // width
    return itemsize, geometry, pitch


def _emission(
    problem: Problem, item: int, geometry: Geometry, pitch: int, device: DeviceSpec
) -> Emission:
    if geometry.size == 0:
        return Emission(())
    data, indices = problem.inputs
    spec = KernelSpec(f"{__name__}:_kernel", (item, indices.dtype, geometry.rank), _THREADS)
    numbers = [geometry.size, data.shape[_axis(problem)], pitch, *geometry.shape]
    numbers += [s for row in geometry.strides for s in row]
    args: tuple[Arg, ...] = (In(0), In(1), Out(), *scalars(numbers))
    grid = waves(device, geometry.size, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


def _refuse(problem: Problem) -> Refusal | None:
    if problem.y.size and problem.inputs[0].shape[_axis(problem)] == 0:
        return Refusal("the gathered dimension is empty, no index is in range")
    return refuse_large(problem) or refuse_rank(_geometry(problem))


class GatherStrided(Variant):
    """Any strides, one element at a time."""

    name = "gather_strided"
    ops = (Gather, GatherElements)
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
        pitch = problem.inputs[0].strides[_axis(problem)]
        return _emission(problem, problem.y.dtype.itemsize, _geometry(problem), pitch, device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        # What is read is what is written, not all of the data.
        return 4 * problem.y.nbytes / device.bandwidth + 3e-6


class GatherItems(Variant):
    """Contiguous slices (embedding rows), up to 16 bytes a thread."""

    name = "gather_items"
    ops = (Gather, GatherElements)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        item, _, _ = _items(problem)
        if item == problem.y.dtype.itemsize:
            return Refusal("no wider item fits: the slices are short, strided or not aligned")
        return _refuse(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, *_items(problem), device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 2 * problem.y.nbytes / device.bandwidth + 2.5e-6


VARIANTS: tuple[Variant, ...] = (GatherStrided(), GatherItems())
