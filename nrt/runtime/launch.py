"""Kernels and how one is launched: arguments, dynamic shared memory, clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nrt.errors import DeviceError
from nrt.runtime.driver import bindings, check, core, translated
from nrt.runtime.info import DeviceInfo

__all__ = [
    "Kernel",
    "LaunchArg",
    "PROGRAMMATIC_CC",
    "check_args",
    "launch_config",
    "native",
    "permit",
]

LaunchArg = int | tuple[int | float, str]
"""A pointer as an int, or ``(value, ctype)`` with ctype u32, i32, u64, i64 or f32."""

_SCALARS: dict[str, Callable[[Any], Any]] = {
    "u32": np.uint32,
    "i32": np.int32,
    "u64": np.uint64,
    "i64": np.int64,
    "f32": np.float32,
}
# A kernel may use this much dynamic shared memory without asking.
_DEFAULT_SHARED = 48 * 1024
# Larger clusters need the function's consent (CUDA programming guide, thread block clusters).
_PORTABLE_CLUSTER = 8
PROGRAMMATIC_CC = (9, 0)
"""The first compute capability that has programmatic dependent launch."""


class Kernel:
    """A loaded entry point; made by `CudaDevice.load`.

    Attributes:
        entry: name of the function.
        handle: cuda.core's kernel.
        parameters: bytes of each parameter; None where the driver cannot tell (before 12.4).
    """

    def __init__(self, entry: str, handle: Any, parameters: tuple[int, ...] | None) -> None:
        self.entry = entry
        self.handle = handle
        self.parameters = parameters
        self.shared_limit = _DEFAULT_SHARED
        self.wide_clusters = False

    @property
    def registers(self) -> int:
        """Registers per thread."""
        return int(self.handle.attributes.num_regs)

    @property
    def local_bytes(self) -> int:
        """Bytes of local memory per thread: more than 0 means spills or a stack."""
        return int(self.handle.attributes.local_size_bytes)

    @property
    def static_shared(self) -> int:
        """Bytes of statically allocated shared memory."""
        return int(self.handle.attributes.shared_size_bytes)

    def __repr__(self) -> str:
        return f"Kernel({self.entry!r})"


def check_args(what: str, kernel: Kernel, args: Sequence[LaunchArg]) -> None:
    """Refuse arguments whose number or sizes are not those of the kernel's parameters.

    Raises:
        DeviceError: with both lists of sizes.
    """
    for arg in args:
        if not isinstance(arg, int) and arg[1] not in _SCALARS:
            raise DeviceError(
                f"{what}: argument type {arg[1]!r}, expected one of {', '.join(_SCALARS)}"
            )
    if kernel.parameters is None:
        return
    sizes = tuple(8 if isinstance(a, int) or a[1][1:] == "64" else 4 for a in args)
    if sizes != kernel.parameters:
        raise DeviceError(
            f"{what}: {len(args)} arguments of {sizes} bytes given, "
            f"the kernel takes {len(kernel.parameters)} of {kernel.parameters} bytes"
        )


def permit(
    kernel: Kernel,
    device: DeviceInfo,
    shared: int,
    cluster: tuple[int, ...] | None,
    programmatic: bool = False,
) -> None:
    """Opt in to more than 48 KB of dynamic shared memory and to clusters of more than 8 blocks.

    Raises:
        DeviceError: the device does not have that much, or no programmatic dependent launch.
    """
    if programmatic and device.cc < PROGRAMMATIC_CC:
        raise DeviceError(
            f"{kernel.entry!r}: {device.arch} has no programmatic dependent launch, expected "
            "compute capability 9.0 or more; launch it without"
        )
    driver = bindings()
    names = driver.CUfunction_attribute
    handle = driver.CUkernel(int(kernel.handle.handle))
    if shared > kernel.shared_limit:
        attribute = names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        status = driver.cuKernelSetAttribute(
            attribute, shared, handle, driver.CUdevice(device.index)
        )
        check(f"{kernel.entry!r}: request of {shared:,} bytes of dynamic shared memory", status)
        kernel.shared_limit = shared
    if cluster and math.prod(cluster) > _PORTABLE_CLUSTER and not kernel.wide_clusters:
        attribute = names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        status = driver.cuKernelSetAttribute(attribute, 1, handle, driver.CUdevice(device.index))
        check(f"{kernel.entry!r}: request of clusters of {cluster} blocks", status)
        kernel.wide_clusters = True


def native(arg: LaunchArg) -> Any:
    """What cuda.core's launch takes: an int is a pointer, NumPy scalars have their own size."""
    return arg if isinstance(arg, int) else _SCALARS[arg[1]](arg[0])


def launch_config(
    what: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    cluster: tuple[int, ...] | None,
    programmatic: bool = False,
) -> Any:
    """cuda.core's launch configuration; ``grid`` counts blocks.

    With ``programmatic`` the launch has the attribute of programmatic dependent launch.

    Raises:
        DeviceError: the cluster does not divide the grid, or the device has no clusters.
    """
    make = core().LaunchConfig
    with translated(what):
        if cluster is None:
            return make(
                grid=grid,
                block=block,
                shmem_size=shared,
                programmatic_stream_serialization=programmatic,
            )
        if any(g % c for g, c in zip(grid, cluster, strict=True)):
            raise DeviceError(f"{what}: cluster {cluster} does not divide the grid")
        # cuda.core counts the grid in clusters.
        clusters = tuple(g // c for g, c in zip(grid, cluster, strict=True))
        return make(
            grid=clusters,
            block=block,
            shmem_size=shared,
            cluster=cluster,
            programmatic_stream_serialization=programmatic,
        )
