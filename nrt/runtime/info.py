"""What a GPU is, asked of the driver once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrt.errors import DeviceError
from nrt.runtime.driver import bindings, check

__all__ = ["DeviceInfo", "describe", "device_count"]


@dataclass(frozen=True)
class DeviceInfo:
    """What a GPU is.

    Attributes:
        index: ordinal.
        name: product name.
        arch: ``sm_90a`` for compute capability 9.0, else ``sm_80`` and the like.
        cc: compute capability.
        multiprocessors: number of SMs.
        l2_bytes: size of the second-level cache.
        shared_per_block: bytes of shared memory one block may opt in to.
        shared_per_sm: bytes of shared memory of one SM.
        memory_bytes: total device memory.
        driver: highest CUDA version the driver supports, ``13.0``.
    """

    index: int
    name: str
    arch: str
    cc: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    shared_per_block: int
    shared_per_sm: int
    memory_bytes: int
    driver: str


def describe(device: Any, index: int) -> DeviceInfo:
    """Ask cuda.core's ``device``, which must be initialized."""
    driver = bindings()
    properties = device.properties
    cc = (int(device.compute_capability.major), int(device.compute_capability.minor))
    version = int(check("cuDriverGetVersion", driver.cuDriverGetVersion()))
    # 9.0 has instructions (wgmma) that exist only under its own 'a' target.
    suffix = "a" if cc == (9, 0) else ""
    return DeviceInfo(
        index=index,
        name=str(device.name),
        arch=f"sm_{cc[0]}{cc[1]}{suffix}",
        cc=cc,
        multiprocessors=int(properties.multiprocessor_count),
        l2_bytes=int(properties.l2_cache_size),
        shared_per_block=int(properties.max_shared_memory_per_block_optin),
        shared_per_sm=int(properties.max_shared_memory_per_multiprocessor),
        memory_bytes=int(
            check("cuDeviceTotalMem", driver.cuDeviceTotalMem(driver.CUdevice(index)))
        ),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def device_count() -> int:
    """Number of CUDA devices; 0 without a driver or without cuda.core."""
    try:
        driver = bindings()
        check("cuInit", driver.cuInit(0))
        return int(check("cuDeviceGetCount", driver.cuDeviceGetCount()))
    except (DeviceError, RuntimeError):
        return 0
