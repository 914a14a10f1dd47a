"""Memory that the device reads and writes: plain device memory and pinned host memory."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from nrt.errors import DeviceError
from nrt.runtime.driver import bindings, check

__all__ = ["DeviceBuffer", "PinnedBuffer"]

# cuMemAlloc refuses 0 bytes; an empty tensor still needs an address.
_LEAST = 256


class DeviceBuffer:
    """Device memory, aligned to 256 bytes; freed by `free` or with the object.

    Plain allocations rather than a stream-ordered pool: freeing waits for the device, so memory
    that a foreign stream still reads cannot be handed out again too early.

    Attributes:
        ptr: the address.
        nbytes: length as asked for.
    """

    def __init__(self, nbytes: int, context: Any) -> None:
        if nbytes < 0:
            raise DeviceError(f"allocation of {nbytes} bytes: expected 0 or more")
        self.nbytes = nbytes
        self.ptr = int(
            check(
                f"allocation of {nbytes:,} bytes of device memory",
                bindings().cuMemAlloc(max(nbytes, _LEAST)),
            )
        )
        self._finalizer = weakref.finalize(self, _free_device, self.ptr, context)
        # At exit the driver frees the process's memory itself, and may already be gone.
        self._finalizer.atexit = False

    def free(self) -> None:
        """Give the memory back; waits for the device. Calling it twice does nothing."""
        self._finalizer()

    def __repr__(self) -> str:
        return f"DeviceBuffer(ptr=0x{self.ptr:x}, nbytes={self.nbytes})"


class PinnedBuffer:
    """Page-locked host memory, which the copy engines reach without staging.

    Attributes:
        ptr: the address.
        nbytes: length as asked for.
        array: the memory as ``uint8[nbytes]``; valid while this object lives.
    """

    def __init__(self, nbytes: int, context: Any) -> None:
        if nbytes < 0:
            raise DeviceError(f"allocation of {nbytes} bytes: expected 0 or more")
        self.nbytes = nbytes
        self.ptr = int(
            check(
                f"allocation of {nbytes:,} bytes of pinned host memory",
                bindings().cuMemHostAlloc(max(nbytes, _LEAST), 0),
            )
        )
        block = (ctypes.c_uint8 * max(nbytes, 1)).from_address(self.ptr)
        self.array: np.ndarray[Any, Any] = np.ctypeslib.as_array(block)[:nbytes]
        self._finalizer = weakref.finalize(self, _free_host, self.ptr, context)
        self._finalizer.atexit = False

    def free(self) -> None:
        """Give the memory back; `array` must not be used any more."""
        self._finalizer()

    def __repr__(self) -> str:
        return f"PinnedBuffer(ptr=0x{self.ptr:x}, nbytes={self.nbytes})"


def _free_device(ptr: int, context: Any) -> None:
    # A finalizer runs on whatever thread drops the last reference: it brings its own context.
    driver = bindings()
    check("entering the CUDA context", driver.cuCtxPushCurrent(context))
    try:
        check("freeing device memory", driver.cuMemFree(ptr))
    finally:
        check("leaving the CUDA context", driver.cuCtxPopCurrent())


def _free_host(ptr: int, context: Any) -> None:
    driver = bindings()
    check("entering the CUDA context", driver.cuCtxPushCurrent(context))
    try:
        check("freeing pinned memory", driver.cuMemFreeHost(ptr))
    finally:
        check("leaving the CUDA context", driver.cuCtxPopCurrent())
