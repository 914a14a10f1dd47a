"""Memory of emulated kernels: typed pointers, byte addresses, tensors; all accesses are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nrt.problem import TensorSpec

from .emulated_numbers import u32

__all__ = [
    "GUARD",
    "Address",
    "Pointer",
    "at",
    "flat",
    "gather",
    "loads",
    "scatter",
    "stores",
    "updates",
]

GUARD = 64
"""Elements of poison after each tensor."""


class Pointer:
    """A pointer parameter: memory as elements of the pointee's storage type, from ``start``."""

    def __init__(self, data: np.ndarray, label: str, start: int = 0) -> None:
        self.data, self.label, self.start = data, label, start
        self.raw = data.view(np.uint8)

    def _check(self, index: int) -> int:
        index += self.start
        if not 0 <= index < len(self.data):
            raise IndexError(f"{self.label}[{index}] is outside {len(self.data)} elements")
        return int(index)

    def __getitem__(self, index: int) -> Any:
        return self.data.item(self._check(index))

    def __setitem__(self, index: int, value: Any) -> None:
        self.data[self._check(index)] = value

    def window(self, offset: int, size: int) -> np.ndarray:
        """The ``size`` bytes at an offset that must be a multiple of it."""
        raw = self.raw
        if offset % size or not 0 <= offset <= len(raw) - size:
            raise IndexError(f"{self.label}: {size} bytes at byte {offset}")
        return raw[offset : offset + size]


class Address:
    """What `ptx.at` gives: a byte position inside a pointer's memory."""

    __slots__ = ("offset", "pointer")

    def __init__(self, pointer: Pointer, offset: int) -> None:
        self.pointer, self.offset = pointer, offset

    def __add__(self, step: int) -> Address:
        return Address(self.pointer, self.offset + step)

    def __and__(self, mask: int) -> int:
        return self.offset & mask

    def window(self, size: int) -> np.ndarray:
        return self.pointer.window(self.offset, size)


def at(pointer: Pointer, index: int) -> Address:
    return Address(pointer, (pointer.start + u32(index)) * pointer.data.itemsize)


def loads(count: int, kind: Any = np.uint32) -> Callable[[Address], Any]:
    size = count * np.dtype(kind).itemsize

    def load(address: Address) -> Any:
        values = address.window(size).view(kind).tolist()
        return values[0] if count == 1 else tuple(values)

    return load


def stores(kind: Any = np.uint32) -> Callable[..., None]:
    item = np.dtype(kind).itemsize

    def store(address: Address, *values: Any) -> None:
        address.window(len(values) * item)[:] = np.array(values, kind).view(np.uint8)

    return store


def updates(kind: Any, function: Callable[[int, int], int]) -> Callable[..., None]:
    def update(address: Address, value: int) -> None:
        cell = address.window(np.dtype(kind).itemsize).view(kind)
        cell[0] = function(int(cell[0]), int(value))

    return update


def flat(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, row-major."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8).copy()


def scatter(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Memory of ``array`` with the strides of ``spec``, poison between and after the elements."""
    raw = np.full((spec.span + GUARD) * spec.dtype.itemsize, 0xFF, np.uint8)
    _view(spec, raw)[...] = array.astype(spec.dtype.numpy)
    return raw


def _view(spec: TensorSpec, raw: np.ndarray) -> np.ndarray:
    flat = raw.view(spec.dtype.numpy)
    steps = [s * spec.dtype.itemsize for s in spec.strides]
    return np.lib.stride_tricks.as_strided(flat, spec.shape, steps)


def gather(spec: TensorSpec, raw: np.ndarray) -> np.ndarray:
    """The logical output; everything between its elements must still be poison."""
    result = np.array(_view(spec, raw))
    rest = raw.copy()
    # As unsigned integers: a bool would be stored as 1, whatever its bits.
    item = spec.dtype.itemsize
    steps = [s * item for s in spec.strides]
    np.lib.stride_tricks.as_strided(rest.view(f"u{item}"), spec.shape, steps)[...] = 256**item - 1
    if not (rest == 0xFF).all():
        raise AssertionError("the kernel wrote outside the output's elements")
    return result
