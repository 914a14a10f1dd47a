"""Padding: constant, reflect, edge; negative pads of mode constant cut off.

Elements are moved as items of their size, whatever their type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import kernel_function
from nrt.cuda_kernels.items import (
    fill_lines,
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
from nrt.ir.ops import Pad
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "PadItems", "PadStrided"]

_THREADS = 256


@dataclass(frozen=True)
class _Padding:
    """A padding as kernels see it.

    Attributes:
        geometry: collapsed output; strides of y, then of x.
        padded: per dimension, whether its index is shifted.
        begins: elements before, of padded dimensions (else 0).
        sizes: the input's size, of padded dimensions (else the output's).
    """

    geometry: Geometry
    padded: tuple[bool, ...]
    begins: tuple[int, ...]
    sizes: tuple[int, ...]


def _padding(problem: Problem) -> _Padding:
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, Pad)
    rank = len(y.shape)
    apart = [d for d in range(rank) if op.pads[d] or op.pads[d + rank]]
    # The third row of strides carries the number of a padded dimension through the collapse.
    marks = [d + 1 if d in apart else 0 for d in range(rank)]
    found = collapse(y.shape, y.strides, x.strides, marks, apart=apart)
    where = found.strides[2] if apart else (0,) * found.rank
    return _Padding(
        Geometry(found.shape, found.strides[:2]),
        tuple(m > 0 for m in where),
        tuple(op.pads[m - 1] if m else 0 for m in where),
        tuple(x.shape[m - 1] if m else d for m, d in zip(where, found.shape, strict=True)),
    )


def _kernel(mode: str, item: int, fill: bytes, padded: tuple[bool, ...]) -> tuple[Any, Any]:
    """One item per thread and step; only padded dimensions are tested.

    Kernel parameters: x, y, items, sizes of y[rank], of x[rank], begins[rank], strides of y[rank],
    of x[rank] (all of the last dimension in items).
    """
    rank = len(padded)
    names = ("d", "h", "b", "sy", "sx")
    table = {name: [f"{name}{r}" for r in range(rank)] for name in names}
    params = ["x", "y", "n", *(p for name in names for p in table[name])]
    body = index_lines(rank, "i", "c", table["d"])
    tests = []
    terms = []
    for r in range(rank):
        if not padded[r]:
            terms.append((f"c{r}", f"sx{r}"))
            continue
        body.append(f"q{r} = i32(i32(c{r}) - i32(b{r}))")
        if mode == "constant":
            tests.append(f"q{r} >= i32(0) and q{r} < i32(h{r})")
        else:
            body.append(f"last{r} = i32(i32(h{r}) - i32(1))")
        if mode == "edge":
            body.append(f"q{r} = min(max(q{r}, i32(0)), last{r})")
        elif mode == "reflect":
            body.append(f"q{r} = i32(-q{r}) if q{r} < i32(0) else q{r}")
            body.append(f"q{r} = i32(i32(last{r} * 2) - q{r}) if q{r} > last{r} else q{r}")
        terms.append((f"u32(q{r})", f"sx{r}"))
    load = [f"a = {offset_text(terms)}", *load_item(item, "x", "a")]
    if tests:
        body += fill_lines(item, fill)
        body += [f"if {' and '.join(tests)}:", *(f"    {line}" for line in load)]
    else:
        body += load
    place = offset_text(list(zip([f"c{r}" for r in range(rank)], table["sy"], strict=True)))
    body += [f"o = {place}", *store_item(item, "y", "o")]
    text = (
        f"def kernel({', '.join(params)}):\n"
        f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))\n"
        f"    step = u32(cuda.gridDim.x * u32({_THREADS}))\n"
        "    while i < n:\n"
        + "".join(f"        {line}\n" for line in body)
        + "        i = u32(i + step)\n"
    )
    kernel = kernel_function(text, item_namespace(item))
    moved = pointer(item_dtype(item))
    return kernel, types.void(moved, moved, *[types.uint32] * (len(params) - 2))


def _emission(problem: Problem, wide: bool, device: DeviceSpec) -> Emission:
    op = problem.op
    assert isinstance(op, Pad)
    found = _padding(problem)
    item, geometry = problem.y.dtype.itemsize, found.geometry
    if geometry.size == 0:
        return Emission(())
    if wide:
        item, geometry = item_bytes(item, geometry, (0, 1))
    sizes = [
        h if p else d for h, p, d in zip(found.sizes, found.padded, geometry.shape, strict=True)
    ]
    fill = np.asarray(op.value).astype(problem.y.dtype.numpy).tobytes()
    if op.mode != "constant":
        fill = bytes(problem.y.dtype.itemsize)
    spec = KernelSpec(f"{__name__}:_kernel", (op.mode, item, fill, found.padded), _THREADS)
    numbers = [geometry.size, *geometry.shape, *sizes, *found.begins]
    numbers += [s for row in geometry.strides for s in row]
    args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
    grid = waves(device, geometry.size, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


class PadStrided(Variant):
    """Any strides, one element at a time."""

    name = "pad_strided"
    ops = (Pad,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return refuse_large(problem) or refuse_rank(_padding(problem).geometry)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, False, device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 2 * problem.nbytes / device.bandwidth + 3e-6


class PadItems(Variant):
    """Up to 16 bytes a thread where the innermost dimension is contiguous and not padded."""

    name = "pad_items"
    ops = (Pad,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        found = _padding(problem)
        if found.padded[-1]:
            return Refusal("the innermost dimension is padded")
        item, _ = item_bytes(problem.y.dtype.itemsize, found.geometry, (0, 1))
        if item == problem.y.dtype.itemsize:
            return Refusal(
                f"no wider item fits: {found.geometry.shape[-1]} contiguous elements, strides "
                + ", ".join(map(str, found.geometry.strides))
            )
        return refuse_large(problem) or refuse_rank(found.geometry)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, True, device)


VARIANTS: tuple[Variant, ...] = (PadStrided(), PadItems())
