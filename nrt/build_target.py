"""What a build is for: the CPU, the GPU in this machine, or one that is elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrt.cuda_kernels.dependent_launch import MINIMUM_CC
from nrt.errors import BuildError, DeviceError
from nrt.settings import settings

if TYPE_CHECKING:
    from nrt.cuda_kernels.device import DeviceSpec
    from nrt.cuda_runner import CudaRunner

__all__ = ["missing_fp8", "reads_few_channels", "resolve"]

_FP8 = ("sm_90a",)
"""Architectures whose tensor cores multiply fp8 here."""


def missing_fp8(device: DeviceSpec | None) -> str:
    """Why products of fp8 are not worth making for ``device``, or nothing; None is the CPU."""
    if device is None or device.arch in _FP8:
        return ""
    return f"{device.arch} has no fast fp8 kernels, {' and '.join(_FP8)} has"


def reads_few_channels(device: DeviceSpec | None) -> bool:
    """Whether kernels for ``device`` multiply bytes of three channels or so as they are.

    On GPUs these need the m16n8k32 of sm_80; None is the CPU.
    """
    return device is None or device.cc >= (8, 0)


def resolve(
    target: str, programmatic: bool | None = None
) -> tuple[str, DeviceSpec | None, CudaRunner | None]:
    """Kind, device and, where the device is in this machine, the runner.

    Args:
        target, programmatic: as of `nrt.builder.build`.

    Raises:
        BuildError: there is no such target, or it has no programmatic launches and they are wanted.
        DeviceError: ``target="cuda"`` without a GPU.
    """
    kind, device, runner = _target(target, programmatic)
    if programmatic and (device is None or device.cc < MINIMUM_CC):
        where = kind if device is None else device.arch
        raise BuildError(
            f"programmatic=True: {where} has no programmatic dependent launch, expected compute "
            "capability 9.0 or more; leave it out"
        )
    return kind, device, runner


def _target(
    target: str, programmatic: bool | None
) -> tuple[str, DeviceSpec | None, CudaRunner | None]:
    wanted = settings().target if target == "auto" else target
    if wanted == "auto":
        from nrt.runtime.cuda import device_count

        wanted = "cuda" if device_count() else "cpu"
    if wanted == "cpu":
        return "cpu", None, None
    kind, _, arch = wanted.partition(":")
    if kind != "cuda":
        source = f"target {wanted!r}" if target == wanted else f"NRT_TARGET={wanted!r}"
        raise BuildError(f"{source}: expected auto, cpu, cuda or cuda:ARCH")
    from nrt.cuda_kernels.device import device_for_arch

    if not arch:
        from nrt.cuda_runner import CudaRunner

        runner = CudaRunner(programmatic=programmatic)
        return "cuda", runner.device, runner
    device = device_for_arch(arch)
    try:
        from nrt.cuda_runner import CudaRunner

        runner = CudaRunner(programmatic=programmatic)
    except (DeviceError, BuildError):
        # No GPU here, or one that nrt has no kernels for: the plan is for another machine.
        return "cuda", device, None
    if runner.device.arch == device.arch:
        return "cuda", runner.device, runner
    return "cuda", device, None
