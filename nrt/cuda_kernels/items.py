"""Movement of items of 1 to 16 bytes that no arithmetic touches: what pad and gather are made
of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import kernel_namespace
from nrt.cuda_kernels.strided import RAW, Geometry, widest
from nrt.dtypes import UINT32, DType

__all__ = ["fill_lines", "item_bytes", "item_dtype", "item_namespace", "load_item", "store_item"]


def item_dtype(item: int) -> DType:
    """Pointer element type of items of ``item`` bytes; 16 bytes are four words."""
    return RAW.get(item, UINT32)


def item_namespace(item: int, *others: DType) -> dict[str, Any]:
    """Names that the lines of this module use."""
    dtype = item_dtype(item)
    cell = {1: types.int8, 2: types.int16, 8: types.int64}.get(item, types.uint32)
    assert pointer(dtype).dtype == cell
    return kernel_namespace(dtype, *others) | {"cell": cell}


def load_item(item: int, source: str, place: str) -> list[str]:
    """Lines that load item ``place`` of ``source`` into ``w`` (``w0 … w3`` for 16 bytes)."""
    if item == 16:
        return [f"w0, w1, w2, w3 = ld4(at({source}, u32({place} * u32(4))))"]
    return [f"w = {source}[{place}]"]


def fill_lines(item: int, pattern: bytes) -> list[str]:
    """Lines that put the repeated byte ``pattern`` of an element into the item's variables."""
    data = pattern * (item // len(pattern))
    if item == 16:
        words = [int.from_bytes(data[k : k + 4], "little") for k in range(0, 16, 4)]
        return [f"w{k} = u32({word})" for k, word in enumerate(words)]
    signed = item != 4
    return [f"w = cell({int.from_bytes(data, 'little', signed=signed)})"]


def store_item(item: int, target: str, place: str) -> list[str]:
    """Lines that store the item's variables to item ``place`` of ``target``."""
    if item == 16:
        return [f"st4(at({target}, u32({place} * u32(4))), w0, w1, w2, w3)"]
    return [f"{target}[{place}] = w"]


def item_bytes(itemsize: int, geometry: Geometry, moved: Sequence[int]) -> tuple[int, Geometry]:
    """Widest item along the last dimension, and the geometry in such items.

    Args:
        itemsize: bytes of an element.
        geometry: dimensions in elements.
        moved: indices of the tensors that are moved; strides of the others stay in elements.
    """
    width = widest(itemsize, geometry.shape, *(geometry.strides[k] for k in moved))
    if width == 1:
        return itemsize, geometry
    shape = (*geometry.shape[:-1], geometry.shape[-1] // width)
    strides = tuple(
        (*(s // width for s in row[:-1]), 1) if k in moved else row
        for k, row in enumerate(geometry.strides)
    )
    return itemsize * width, Geometry(shape, strides)
