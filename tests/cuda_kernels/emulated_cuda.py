"""What stands for ``numba.cuda`` and the scalar intrinsics of `ptx` while a kernel is emulated."""

from __future__ import annotations

import functools
import math
import types as pytypes
from collections.abc import Callable
from typing import Any

import numpy as np

from .emulated_memory import Address, Pointer, at, loads, stores, updates
from .emulated_numbers import (
    bf16,
    bf16_bits,
    bits_float,
    dp4a,
    float_bits,
    from_bytes,
    half,
    half_bits,
    max_pair,
    nearest,
    prmt,
    s8x4,
    u8x4,
    u32,
)

__all__ = ["Cuda", "Dim", "Shared"]

_ZEROS = np.zeros(16, np.uint8)


class Shared:
    """The shared memory of a block: arrays in order of declaration, one window of addresses."""

    def __init__(self, dynamic: int = 0) -> None:
        # A kernel with dynamic shared memory has no other, and the launch says how much.
        self.memory = Pointer(np.full(dynamic or 1 << 17, 0xFF, np.uint8), "shared memory")
        self.arrays: list[tuple[Pointer, int]] = []
        self.used = 0
        self.copies: dict[int, list[list[Callable[[], None]]]] = {}

    def array(self, index: int, length: int, kind: Any) -> Pointer:
        if index == len(self.arrays):
            dtype = np.dtype(kind.name)
            stop = self.used + length * dtype.itemsize
            view = self.memory.data[self.used : stop].view(dtype)
            self.arrays.append((Pointer(view, f"shared array {index}"), self.used))
            self.used = -(-stop // 128) * 128
        return self.arrays[index][0]


class Dim:
    def __init__(self, x: int, y: int, z: int) -> None:
        self.x, self.y, self.z = x, y, z


class Cuda:
    """Stands for the module ``numba.cuda`` inside a kernel; the current thread is its state."""

    def __init__(self) -> None:
        self.threadIdx = self.blockIdx = self.blockDim = self.gridDim = Dim(0, 0, 0)
        self.block = Shared()
        self.thread = self.declared = 0
        self.shared = pytypes.SimpleNamespace(array=self._shared)
        self.local = pytypes.SimpleNamespace(array=lambda n, kind: [math.nan] * n)
        self.libdevice = pytypes.SimpleNamespace(
            rintf=lambda v: float(np.rint(v)), rint=lambda v: float(np.rint(v)),
            floorf=lambda v: float(np.floor(v)), floor=lambda v: float(np.floor(v)),
            ceilf=lambda v: float(np.ceil(v)), ceil=lambda v: float(np.ceil(v)),
            float2int_rn=nearest,
        )  # fmt: skip

    def _shared(self, length: int, kind: Any, alignment: int = 1) -> Pointer:
        assert 128 % alignment == 0, "arrays start at multiples of 128"
        self.declared += 1
        return self.block.array(self.declared - 1, length, kind)

    def shared_address(self, array: Pointer) -> int:
        return next(base for candidate, base in self.block.arrays if candidate is array)

    def in_shared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda address, *rest: function(Address(self.block.memory, address), *rest)

    def _groups(self) -> list[list[Callable[[], None]]]:
        """This thread's groups of copies that have not arrived; the last one is still open."""
        return self.block.copies.setdefault(self.thread, [[]])

    def cp_async(self, target: int, source: Address, size: int, count: int = 16) -> None:
        assert target % count == 0
        window = self.block.memory.window(target, count)
        data = source.window(count) if size else _ZEROS

        def arrive() -> None:
            if size == count:
                window[:] = data
            else:
                window[:size], window[size:] = data[:size], 0

        self._groups()[-1].append(arrive)

    def cp_async_wait(self, pending: int) -> None:
        groups = self._groups()
        while len(groups) - 1 > pending:
            for arrive in groups.pop(0):
                arrive()

    def intrinsics(self) -> dict[str, Callable[..., Any]]:
        """Python functions for the intrinsics of `nrt.cuda_kernels.ptx`."""
        shared = self.in_shared
        return {
            "at": at, "ahead": lambda p, i: Pointer(p.data, p.label, p.start + u32(i)),
            "further_1": lambda a, i: a + u32(i), "further_2": lambda a, i: a + 2 * u32(i),
            "further_4": lambda a, i: a + 4 * u32(i),
            "shared_address": self.shared_address,
            "ld_global_nc_v4": loads(4), "ld_global_v4": loads(4), "ld_global_nc_v2": loads(2),
            "ld_global_nc_u32": loads(1), "ld_global_nc_u16": loads(1, np.uint16),
            "ld_global_nc_no_allocate_v4": loads(4), "ld_global_cs_nc_v4": loads(4),
            "ld_global_cs_nc_v2": loads(2), "ld_global_cs_nc_u32": loads(1),
            "ld_global_nc_v4_if": lambda a, live: loads(4)(a) if live else (0, 0, 0, 0),
            "ld_global_nc_u16_if": lambda a, live: loads(1, np.uint16)(a) if live else 0,
            "ld_global_nc_u8_if": lambda a, live: loads(1, np.uint8)(a) if live else 0,
            "ld_global_nc_u32_if": lambda a, live: loads(1)(a) if live else 0,
            "funnel": lambda a, b, n: (b << 32 | a) >> n % 32 & 0xFFFFFFFF,
            "st_global_v4": stores(), "st_global_v2": stores(), "st_global_u32": stores(),
            "st_global_u16": stores(np.uint16),
            "st_global_cs_v4": stores(), "st_global_cs_v2": stores(), "st_global_cs_u32": stores(),
            "ld_shared_v4": shared(loads(4)), "ld_shared_v4_f32": shared(loads(4, np.float32)),
            "ld_shared_v2_f32": shared(loads(2, np.float32)),
            "ld_shared_u32": shared(loads(1)), "ld_shared_u16": shared(loads(1, np.uint16)),
            "ld_shared_f32": shared(loads(1, np.float32)),
            "st_shared_v4": shared(stores()), "st_shared_v2_f32": shared(stores(np.float32)),
            "st_shared_u32": shared(stores()), "st_shared_u16": shared(stores(np.uint16)),
            "st_shared_u8": shared(stores(np.uint8)),
            "st_shared_f32": shared(stores(np.float32)),
            "red_global_add_u64": updates(np.uint64, lambda old, v: old + v),
            "red_global_max_u32": updates(np.uint32, max),
            "red_shared_add_u32": shared(updates(np.uint32, lambda old, v: old + v)),
            "cp_async_8": functools.partial(self.cp_async, count=8), "cp_async_16": self.cp_async,
            "cp_async_commit": lambda: self._groups().append([]),
            "cp_async_wait": self.cp_async_wait,
            "f32_from_f16": half, "f16_from_f32": half_bits,
            "f32_from_bf16": bf16, "bf16_from_f32": bf16_bits,
            "f16x2_from_f32": lambda a, b: half_bits(a) | half_bits(b) << 16,
            "f16x2_pair": lambda a, b: half_bits(a) | half_bits(b) << 16,
            "bf16x2_from_f32": lambda a, b: bf16_bits(a) | bf16_bits(b) << 16,
            "f32_from_f16_lo": lambda v: half(v & 0xFFFF),
            "f32_from_f16_hi": lambda v: half(v >> 16),
            "f32_from_bf16_lo": lambda v: bf16(v & 0xFFFF),
            "f32_from_bf16_hi": lambda v: bf16(v >> 16),
            "float_bits": float_bits, "bits_float": bits_float, "prmt": prmt,
            "s8x4_from_f32": s8x4, "f32x4_from_s8x4": from_bytes(np.int8),
            "u8x4_from_f32": u8x4, "f32x4_from_u8x4": from_bytes(np.uint8),
            "select_below": lambda a, b, c, d: c if a < b else d,
            "max_f16x2": max_pair(half), "max_bf16x2": max_pair(bf16),
            "dp4a": dp4a(np.int8), "dp4a_u8": dp4a(np.uint8),
            "ex2": lambda v: 2.0**v, "lg2": math.log2, "rcp": lambda v: 1 / v,
            "tanh_approx": math.tanh,
        }  # fmt: skip
