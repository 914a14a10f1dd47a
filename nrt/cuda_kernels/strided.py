"""Geometry of memory-bound kernels: collapsed dimensions, index text, vector widths, grids.

Every such kernel walks the output in memory order. `collapse` sorts the dimensions by the output's
strides and merges those that all tensors traverse as one, so that a dense tensor of any rank
becomes a line. Kernels take what is left as run-time scalars: one binary serves all sizes of the
same rank. Vector kernels assume that base addresses are aligned to 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Scalar
from nrt.dtypes import FP8E4M3, INT8, INT16, INT64, UINT32, DType
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "MAX_RANK",
    "RAW",
    "Geometry",
    "aligned",
    "broadcast_strides",
    "collapse",
    "index_lines",
    "offset_text",
    "refuse_fp8",
    "refuse_large",
    "refuse_rank",
    "scalars",
    "waves",
    "widest",
]

MAX_RANK = 8
"""Dimensions that a strided kernel may have after collapsing."""

# Pointers are indexed with signed 32 bits, and grid-stride loops must not wrap.
_MAX_ELEMENTS = 2**31 - 2**20

RAW: dict[int, DType] = {1: INT8, 2: INT16, 4: UINT32, 8: INT64}
"""Item size -> the type that moves such elements without looking at them."""


@dataclass(frozen=True)
class Geometry:
    """Collapsed dimensions of tensors that are walked together.

    Attributes:
        shape: sizes, outermost in the output's memory first; at least one.
        strides: per tensor, in elements, along these dimensions; the output is the first.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def broadcast_strides(spec: TensorSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of ``spec`` along the dimensions of ``shape``, to which it broadcasts."""
    own = [0 if d == 1 else s for d, s in zip(spec.shape, spec.strides, strict=True)]
    return (0,) * (len(shape) - len(own)) + tuple(own)


def collapse(
    shape: Sequence[int], *strides: Sequence[int], apart: Collection[int] = ()
) -> Geometry:
    """Merge dimensions that all tensors traverse as one.

    Args:
        shape: the walked dimensions.
        strides: per tensor; the first gives the order.
        apart: dimensions that are neither merged nor dropped (their index is needed).

    Returns:
        The merged dimensions, in descending order of the first tensor's strides.
    """
    dims = [d for d in range(len(shape)) if shape[d] != 1 or d in apart]
    dims.sort(key=lambda d: tuple(-abs(s[d]) for s in strides))
    merged: list[tuple[int, list[int], bool]] = []
    for dim in dims:
        steps = [s[dim] for s in strides]
        alone = dim in apart
        if merged and not alone and not merged[-1][2]:
            size, outer, _ = merged[-1]
            if all(o == i * shape[dim] for o, i in zip(outer, steps, strict=True)):
                merged[-1] = (size * shape[dim], steps, False)
                continue
        merged.append((shape[dim], steps, alone))
    if not merged:
        merged = [(1, [1] * len(strides), False)]
    return Geometry(
        tuple(size for size, _, _ in merged),
        tuple(tuple(steps[k] for _, steps, _ in merged) for k in range(len(strides))),
    )


def index_lines(count: int, index: str, target: str, sizes: Sequence[str]) -> list[str]:
    """Lines that split ``index`` into ``target0 … target{count-1}``, the last one fastest.

    Args:
        count: number of dimensions.
        index: variable with the linear index.
        target: prefix of the results.
        sizes: expression of each dimension's size; the first is not used.
    """
    lines = []
    rest = index
    for dim in range(count - 1, 0, -1):
        quotient = f"{target}q{dim}"
        lines.append(f"{quotient} = u32({rest} // {sizes[dim]})")
        lines.append(f"{target}{dim} = u32({rest} - u32({quotient} * {sizes[dim]}))")
        rest = quotient
    lines.append(f"{target}0 = {rest}")
    return lines


def offset_text(terms: Sequence[tuple[str, str]]) -> str:
    """``u32`` expression of a sum of products (index, stride)."""
    text = ""
    for index, stride in terms:
        product = index if stride == "1" else f"u32({index} * {stride})"
        text = f"u32({text} + {product})" if text else product
    return text or "u32(0)"


def scalars(values: Sequence[int]) -> list[Scalar]:
    """``u32`` launch arguments; negative strides travel in two's complement."""
    return [Scalar(v % 2**32) for v in values]


def aligned(strides: Sequence[int], width: int) -> bool:
    """Whether vectors of ``width`` elements along the last dimension (stride 1) stay aligned."""
    return strides[-1] == 1 and all(s % width == 0 for s in strides[:-1])


def widest(itemsize: int, shape: Sequence[int], *strides: Sequence[int]) -> int:
    """Most elements, up to 16 bytes, that a move may take as one along the last dimension."""
    width = 16 // itemsize
    while width > 1:
        if shape[-1] % width == 0 and all(aligned(s, width) for s in strides):
            return width
        width //= 2
    return 1


def waves(device: DeviceSpec, work: int, threads: int, per_thread: int = 1) -> int:
    """Blocks of a grid-stride kernel: what the work needs, at most 8 full waves of the device."""
    needed = -(-work // (threads * per_thread))
    return max(1, min(needed, device.multiprocessors * (2048 // threads) * 8))


def refuse_large(problem: Problem) -> Refusal | None:
    """Refusal of tensors that 32-bit indices cannot address."""
    for role, specs in (("input", problem.inputs), ("output", problem.outputs)):
        for slot, spec in enumerate(specs):
            if max(spec.span, spec.size) > _MAX_ELEMENTS:
                return Refusal(
                    f"{role} {slot} spans {spec.span} elements, "
                    f"32-bit indices reach {_MAX_ELEMENTS}"
                )
    return None


def refuse_fp8(problem: Problem) -> Refusal | None:
    """Refusal of fp8 elements, which these kernels can move but not compute with."""
    for role, specs in (("input", problem.inputs), ("output", problem.outputs)):
        for slot, spec in enumerate(specs):
            if spec.dtype is FP8E4M3:
                return Refusal(f"{role} {slot} is fp8e4m3: no arithmetic on it here")
    return None


def refuse_rank(geometry: Geometry) -> Refusal | None:
    """Refusal of more dimensions than a strided kernel has."""
    if geometry.rank > MAX_RANK:
        return Refusal(f"{geometry.rank} dimensions after collapsing, at most {MAX_RANK}")
    return None
