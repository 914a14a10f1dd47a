"""An output that stays on the GPU, for other libraries to take over."""

from __future__ import annotations

from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import DeviceError
from nrt.plan import IoSpec
from nrt.runtime.arrays import logical_view
from nrt.runtime.buffers import DeviceBuffer
from nrt.runtime.cuda import CudaDevice
from nrt.runtime.dlpack import CUDA, export_dlpack

__all__ = ["DeviceTensor"]


class DeviceTensor:
    """Dense data in device memory that belongs to the caller.

    ``torch.from_dlpack(t)``, ``cupy.from_dlpack(t)`` and ``cupy.asarray(t)`` take it without a copy
    and keep the memory alive. The data may still be on its way: both protocols order the consumer's
    stream behind it, and `numpy` waits.

    Attributes:
        name: the output.
        shape: logical shape.
        strides: in elements; those of the output's layout.
        dtype: nrt's name of the element type.
        ptr: device address.
        nbytes: length.
    """

    def __init__(
        self, spec: IoSpec, buffer: DeviceBuffer, device: CudaDevice, ready: Any, stream: Any
    ) -> None:
        self._spec = spec
        self.name = spec.name
        self.shape = spec.shape
        self.strides = spec.strides
        self.dtype = spec.dtype
        self.ptr = buffer.ptr
        self.nbytes = spec.nbytes
        self._buffer = buffer
        self._device = device
        self._ready = ready
        self._stream = stream

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy on the host; waits."""
        self._device.synchronize(self._ready)
        data = self._device.download(self._buffer, (self.nbytes,), np.dtype(np.uint8))
        return logical_view(self._spec, data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, self._device.info.index)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule over this memory; ``stream`` (None: the legacy default) waits for the data.

        Raises:
            DeviceError: a copy or another device is asked for.
        """
        del max_version  # unversioned capsules are understood by every consumer
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise DeviceError(
                f"output {self.name!r}: exported as it lies on device {self.__dlpack_device__()}; "
                "ask for no copy and no other device, or use .numpy()"
            )
        if stream != -1:  # -1: the consumer orders things itself
            # 1 is the legacy default stream for DLPack and for the driver alike.
            consumer = self._device.foreign_stream(1 if stream in (None, 0) else stream)
            self._device.wait(consumer, self._ready)
        return export_dlpack(
            self._buffer, self.ptr, self.shape, self.dtype, self.__dlpack_device__(), self.strides
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol, with the stream that writes the data.

        Raises:
            AttributeError: the protocol has no name for the element type (bf16, fp8e4m3).
        """
        dtype = dtype_from_name(self.dtype).numpy
        if dtype.kind == "V":
            # hasattr must answer False, so that consumers go on to DLPack.
            raise AttributeError(f"{self.dtype} has no __cuda_array_interface__; use DLPack")
        return {
            "shape": self.shape,
            "typestr": dtype.str,
            "data": (self.ptr if self.nbytes else 0, False),
            "strides": (
                None
                if self._spec.layout == "row-major"
                else tuple(s * dtype.itemsize for s in self.strides)
            ),
            "version": 3,
            "stream": int(self._stream.handle),
        }

    def __repr__(self) -> str:
        return f"DeviceTensor({self.name!r}, {self.dtype}{list(self.shape)}, ptr=0x{self.ptr:x})"
