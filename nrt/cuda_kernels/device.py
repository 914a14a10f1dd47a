"""What a kernel variant must know of a GPU; a table for building without the device at hand."""

from __future__ import annotations

from dataclasses import dataclass

from nrt.errors import BuildError

__all__ = ["ARCHS", "DeviceSpec", "device_for_arch"]


@dataclass(frozen=True)
class DeviceSpec:
    """A GPU as far as the choice and shape of kernels depend on it.

    Attributes:
        arch: compile target, ``sm_90a``.
        cc: compute capability.
        name: the product's name; empty when built without it.
        multiprocessors: number of SMs.
        shared_per_block: bytes of shared memory one block may opt in to.
        shared_per_sm: bytes of shared memory of one SM.
        l2_bytes: size of the second-level cache.
        bandwidth: bytes per second that a device-to-device copy reaches (reads plus writes).
        fp16_flops: dense fp16 tensor-core operations per second.
        fp32_flops: fp32 operations per second of the ordinary cores.
    """

    arch: str
    cc: tuple[int, int]
    name: str
    multiprocessors: int
    shared_per_block: int
    shared_per_sm: int
    l2_bytes: int
    bandwidth: float
    fp16_flops: float
    fp32_flops: float

    @property
    def compile_cc(self) -> tuple[int, int] | tuple[int, int, str]:
        """The ``cc`` argument of numba.cuda.compile; sm_90 has its own instructions under 'a'."""
        return (*self.cc, "a") if self.arch.endswith("a") else self.cc


_KB = 1024
# Limits are the architecture's; rates are the data sheet's, of the part that is named.
ARCHS: dict[str, DeviceSpec] = {
    "sm_75": DeviceSpec(  # T4
        "sm_75", (7, 5), "", 40, 64 * _KB, 64 * _KB, 4 << 20, 0.26e12, 65e12, 8.1e12
    ),
    "sm_80": DeviceSpec(  # A100
        "sm_80", (8, 0), "", 108, 163 * _KB, 164 * _KB, 40 << 20, 1.4e12, 312e12, 19.5e12
    ),
    "sm_87": DeviceSpec(  # Jetson AGX Orin
        "sm_87", (8, 7), "", 16, 163 * _KB, 164 * _KB, 4 << 20, 0.17e12, 42e12, 5.3e12
    ),
    "sm_89": DeviceSpec(  # L4
        "sm_89", (8, 9), "", 58, 99 * _KB, 100 * _KB, 48 << 20, 0.26e12, 121e12, 30e12
    ),
    "sm_90a": DeviceSpec(  # H200; bandwidth and matrix rate as measured
        "sm_90a", (9, 0), "", 132, 227 * _KB, 228 * _KB, 60 << 20, 4.3e12, 790e12, 60e12
    ),
}


def device_for_arch(arch: str) -> DeviceSpec:
    """The table's entry for ``arch`` (``sm_90`` means ``sm_90a``).

    Raises:
        BuildError: nrt has no kernels for it.
    """
    name = "sm_90a" if arch == "sm_90" else arch
    try:
        return ARCHS[name]
    except KeyError:
        raise BuildError(
            f"target architecture {arch!r} is unknown; expected one of {', '.join(ARCHS)}"
        ) from None
