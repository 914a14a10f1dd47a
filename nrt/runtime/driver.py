"""The CUDA driver: imported on first use, its errors turned into `DeviceError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from nrt.errors import DeviceError

__all__ = ["bindings", "check", "core", "translated"]

_WAY_OUT = "run `nrt doctor` to see what is missing, or build for the CPU with target='cpu'"


@cache
def core() -> Any:
    """`cuda.core`, imported now.

    Raises:
        DeviceError: the package is not installed or does not load.
    """
    try:
        import cuda.core as module
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f"cuda.core does not import ({error}); {_WAY_OUT}") from error
    return module


@cache
def bindings() -> Any:
    """`cuda.bindings.driver`, imported now.

    Raises:
        DeviceError: the package is not installed or does not load.
    """
    try:
        from cuda.bindings import driver
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f"cuda.bindings does not import ({error}); {_WAY_OUT}") from error
    return driver


def check(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a driver call, which returns ``(status, *values)``.

    Raises:
        DeviceError: the status is not success; names ``what``, the status and its meaning.
    """
    status, *values = result
    if int(status) != 0:
        driver = bindings()
        error, text = driver.cuGetErrorString(status)
        meaning = text.decode() if int(error) == 0 and text else "no description"
        raise DeviceError(
            f"{what} failed: {getattr(status, 'name', status)} ({meaning}){_hint(int(status))}"
        )
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _hint(status: int) -> str:
    if status == 2:  # CUDA_ERROR_OUT_OF_MEMORY
        return "; use a smaller batch, or close other contexts and processes on this GPU"
    if status in (100, 3):  # no device, not initialized
        return f"; {_WAY_OUT}"
    if status in (700, 719, 715, 716):  # the context is lost after these
        return "; the process must be restarted, its CUDA context cannot be used any more"
    if status in (209, 218, 222):  # no binary for this GPU, invalid image or PTX version
        return "; rebuild the plan with `nrt build` on or for this GPU"
    return ""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what cuda.core raises inside the block into `DeviceError`.

    Raises:
        DeviceError: with ``what`` and the library's own message.
    """
    try:
        yield
    except _raised() as error:
        text = " ".join(str(error).split())
        hint = f"; {_WAY_OUT}" if "libcuda" in text or "driver library" in text else ""
        raise DeviceError(f"{what} failed: {type(error).__name__}: {text}{hint}") from error


@cache
def _raised() -> tuple[type[Exception], ...]:
    core()
    from cuda.core._utils.cuda_utils import CUDAError

    return (CUDAError, RuntimeError, ValueError, OverflowError)
