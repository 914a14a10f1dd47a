"""One CUDA device: memory, copies, kernels, streams, graphs and timing, over `cuda.core`.

The tuner checks and times kernels with this class and the engine runs plans with it; it knows
neither. Everything is asynchronous on the stream it is given unless its docstring says that it
waits. Every method may be called from any thread: it makes the device's primary context current
meanwhile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nrt.errors import DeviceError
from nrt.runtime.buffers import DeviceBuffer, PinnedBuffer
from nrt.runtime.driver import bindings, check, core, translated
from nrt.runtime.info import DeviceInfo, describe, device_count
from nrt.runtime.launch import Kernel, LaunchArg, check_args, launch_config, native, permit

__all__ = [
    "CudaDevice",
    "DeviceInfo",
    "Graph",
    "Kernel",
    "LaunchArg",
    "device_count",
    "open_device",
]


class Graph:
    """An instantiated CUDA graph; made by `CudaDevice.capture`.

    It refers to addresses: the buffers and kernels it was captured with must outlive it.
    """

    def __init__(self, handle: Any, device: CudaDevice) -> None:
        self._handle = handle
        self._device = device

    def launch(self, stream: Any) -> None:
        """Enqueue one replay on ``stream``."""
        with self._device.activated(), translated("launch of a CUDA graph"):
            self._handle.launch(stream)

    def upload(self, stream: Any) -> None:
        """Move the graph to the device ahead of its first launch."""
        with self._device.activated(), translated("upload of a CUDA graph"):
            self._handle.upload(stream)


def open_device(index: int = 0) -> CudaDevice:
    """Initialize CUDA on device ``index``.

    Raises:
        DeviceError: no driver, no such device, or it cannot be initialized.
    """
    driver = bindings()
    with translated("opening the CUDA driver"):
        check("cuInit", driver.cuInit(0))
    count = int(check("cuDeviceGetCount", driver.cuDeviceGetCount()))
    if not 0 <= index < count:
        raise DeviceError(
            f"CUDA device {index} does not exist: the driver shows {count} device(s); "
            "check CUDA_VISIBLE_DEVICES, and run `nrt doctor`"
        )
    return CudaDevice(index)


class CudaDevice:
    """A device with its primary context; use `open_device`.

    Attributes:
        info: what it is.
    """

    def __init__(self, index: int) -> None:
        module, driver = core(), bindings()
        before = check("cuCtxGetCurrent", driver.cuCtxGetCurrent())
        with translated(f"opening CUDA device {index}"):
            self._device = module.Device(index)
            self._device.set_current()
            self._context = check("cuCtxGetCurrent", driver.cuCtxGetCurrent())
            self.info = describe(self._device, index)
        if int(before) not in (0, int(self._context)):
            # Another device was current for the caller: leave that as it was.
            check("cuCtxSetCurrent", driver.cuCtxSetCurrent(before))
        self._lock = threading.Lock()
        self._modules: dict[bytes, Any] = {}
        self._kernels: dict[tuple[bytes, str], Kernel] = {}
        with self.activated():
            self._default = self.stream()

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Make the context current on this thread inside the block."""
        driver = bindings()
        if int(check("cuCtxGetCurrent", driver.cuCtxGetCurrent())) == int(self._context):
            yield
            return
        check("cuCtxPushCurrent", driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            check("cuCtxPopCurrent", driver.cuCtxPopCurrent())

    # Memory

    def alloc(self, nbytes: int) -> DeviceBuffer:
        """Device memory, 256-byte aligned, not initialized.

        Raises:
            DeviceError: out of memory.
        """
        with self.activated():
            return DeviceBuffer(nbytes, self._context)

    def pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked host memory, not initialized.

        Raises:
            DeviceError: out of memory.
        """
        with self.activated():
            return PinnedBuffer(nbytes, self._context)

    def upload(self, buffer: DeviceBuffer, array: Any, offset: int = 0, stream: Any = None) -> None:
        """Copy a contiguous NumPy array to ``buffer`` at ``offset`` bytes.

        Without ``stream`` it waits until the copy is done. With one it returns at once for pinned
        memory, which must then stay unchanged until the stream has passed.

        Raises:
            DeviceError: the array is not contiguous or does not fit.
        """
        if not array.flags.c_contiguous:
            raise DeviceError("upload of a non-contiguous array; use np.ascontiguousarray first")
        _inside(buffer, offset, array.nbytes, "upload")
        if array.nbytes:
            self.copy_from_host(buffer.ptr + offset, array.ctypes.data, array.nbytes, stream)

    def download(
        self,
        buffer: DeviceBuffer,
        shape: tuple[int, ...],
        dtype: Any,
        offset: int = 0,
        stream: Any = None,
    ) -> np.ndarray[Any, Any]:
        """A fresh NumPy array with the contents of ``buffer`` at ``offset``; waits for ``stream``.

        Raises:
            DeviceError: the range is not inside the buffer.
        """
        array = np.empty(shape, dtype)
        _inside(buffer, offset, array.nbytes, "download")
        stream = self._default if stream is None else stream
        if array.nbytes:
            self.copy_to_host(array.ctypes.data, buffer.ptr + offset, array.nbytes, stream)
        self.synchronize(stream)
        return array

    def fill(
        self,
        buffer: DeviceBuffer,
        byte: int,
        offset: int = 0,
        nbytes: int | None = None,
        stream: Any = None,
    ) -> None:
        """Set a range (default: all from ``offset``) to ``byte``; waits without ``stream``."""
        length = buffer.nbytes - offset if nbytes is None else nbytes
        _inside(buffer, offset, length, "fill")
        self.set_bytes(buffer.ptr + offset, byte, length, stream)

    # The same on addresses, for steps whose operands are already resolved.

    def copy_from_host(self, dst: int, src: int, nbytes: int, stream: Any = None) -> None:
        """Host address ``src`` to device address ``dst``; waits without ``stream``."""
        self._copy("cuMemcpyHtoDAsync", dst, src, nbytes, stream)

    def copy_to_host(self, dst: int, src: int, nbytes: int, stream: Any = None) -> None:
        """Device address ``src`` to host address ``dst``; waits without ``stream``."""
        self._copy("cuMemcpyDtoHAsync", dst, src, nbytes, stream)

    def copy(self, dst: int, src: int, nbytes: int, stream: Any = None) -> None:
        """Device address to device address; waits without ``stream``."""
        self._copy("cuMemcpyDtoDAsync", dst, src, nbytes, stream)

    def set_bytes(self, dst: int, byte: int, nbytes: int, stream: Any = None) -> None:
        """Fill ``nbytes`` at a device address with ``byte``; waits without ``stream``."""
        if nbytes == 0:
            return
        target = self._default if stream is None else stream
        with self.activated():
            status = bindings().cuMemsetD8Async(dst, byte, nbytes, int(target.handle))
            check(f"cuMemsetD8Async of {nbytes:,} bytes", status)
        if stream is None:
            self.synchronize(target)

    def _copy(self, function: str, dst: int, src: int, nbytes: int, stream: Any) -> None:
        if nbytes == 0:
            return
        target = self._default if stream is None else stream
        with self.activated():
            status = getattr(bindings(), function)(dst, src, nbytes, int(target.handle))
            check(f"{function} of {nbytes:,} bytes", status)
        if stream is None:
            self.synchronize(target)

    # Kernels

    def load(self, cubin: bytes, entry: str) -> Kernel:
        """The function ``entry`` of ``cubin``; both are loaded once and kept.

        Raises:
            DeviceError: the binary is damaged, for another GPU, or has no such function.
        """
        digest = hashlib.sha256(cubin).digest()
        with self._lock, self.activated():
            kernel = self._kernels.get((digest, entry))
            if kernel is None:
                with translated(f"loading kernel {entry!r} ({len(cubin):,} bytes of cubin)"):
                    if digest not in self._modules:
                        self._modules[digest] = core().ObjectCode.from_cubin(cubin)
                    handle = self._modules[digest].get_kernel(entry)
                    kernel = Kernel(entry, handle, self._parameters(handle))
                self._kernels[digest, entry] = kernel
            return kernel

    def _parameters(self, handle: Any) -> tuple[int, ...] | None:
        if tuple(int(part) for part in self.info.driver.split(".")) < (12, 4):
            return None
        return tuple(int(info.size) for info in handle.arguments_info)

    def unload(self, cubin: bytes) -> None:
        """Forget a binary: its memory goes back once no `Kernel` and no graph refers to it."""
        digest = hashlib.sha256(cubin).digest()
        with self._lock:
            self._modules.pop(digest, None)
            for key in [k for k in self._kernels if k[0] == digest]:
                del self._kernels[key]

    def launch(
        self,
        stream: Any,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[LaunchArg],
        shared: int = 0,
        cluster: Sequence[int] | None = None,
        programmatic: bool = False,
    ) -> None:
        """Enqueue one launch.

        Args:
            stream: where.
            kernel: from `load`.
            grid: blocks in x, y, z (blocks also when ``cluster`` is given).
            block: threads in x, y, z.
            args: one per parameter, see `LaunchArg`.
            shared: bytes of dynamic shared memory; over 48 KB is opted in to here.
            cluster: blocks per cluster; None or (1, 1, 1) launches without.
            programmatic: it may start before the launch before it on the stream has ended; the
                kernel must execute ``griddepcontrol.wait``. Captured, it is a programmatic edge.

        Raises:
            DeviceError: arguments do not fit the kernel's parameters, or the launch is refused.
        """
        what = f"launch of {kernel.entry!r} (grid {tuple(grid)}, block {tuple(block)})"
        check_args(what, kernel, args)
        with self.activated():
            size = None if cluster is None or tuple(cluster) == (1, 1, 1) else tuple(cluster)
            permit(kernel, self.info, shared, size, programmatic)
            config = launch_config(what, tuple(grid), tuple(block), shared, size, programmatic)
            with translated(what):
                core().launch(stream, config, kernel.handle, *map(native, args))

    # Streams, events, graphs

    def stream(self) -> Any:
        """A new non-blocking stream (cuda.core's)."""
        with self.activated(), translated("creation of a stream"):
            return self._device.create_stream()

    def foreign_stream(self, stream: Any) -> Any:
        """A stream of another library: an address, or an object with ``__cuda_stream__``.

        Raises:
            DeviceError: it is neither.
        """
        handle = getattr(stream, "cuda_stream", stream)  # torch's name for the address
        with self.activated(), translated(f"use of {type(stream).__name__} as a stream"):
            if isinstance(handle, int):
                return core().Stream.from_handle(handle)
            if hasattr(stream, "__cuda_stream__"):
                return self._device.create_stream(stream)
        raise DeviceError(
            f"{type(stream).__name__} is no CUDA stream: expected an address (int), "
            "an object with __cuda_stream__, or a PyTorch stream"
        )

    def event(self, timing: bool = False) -> Any:
        """A new event (cuda.core's): ``stream.record(event)``, ``stream.wait(event)``."""
        with self.activated(), translated("creation of an event"):
            return self._device.create_event(core().EventOptions(timing_enabled=timing))

    def record(self, stream: Any, event: Any) -> None:
        """Mark what ``stream`` holds so far."""
        with self.activated(), translated("recording an event"):
            stream.record(event)

    def wait(self, stream: Any, event: Any) -> None:
        """What comes next on ``stream`` waits for ``event``."""
        with self.activated(), translated("waiting for an event"):
            stream.wait(event)

    def synchronize(self, stream_or_event: Any = None) -> None:
        """Wait on the host for a stream, an event, or the whole device.

        Raises:
            DeviceError: a kernel that ran before failed.
        """
        with self.activated(), translated("execution on the device"):
            (self._device if stream_or_event is None else stream_or_event).sync()

    def capture(self, stream: Any, fn: Callable[[Any], None]) -> Graph:
        """Record what ``fn(stream)`` enqueues as a graph, without running it.

        ``fn`` must use the stream it is passed; other streams join by `record` and `wait` and must
        be joined back. It must not allocate or wait on the host.

        Raises:
            DeviceError: the work cannot be captured.
        """
        with self.activated(), translated("capture of a CUDA graph"):
            builder = stream.create_graph_builder()
            # Relaxed: another thread may allocate meanwhile without breaking this capture.
            builder.begin_building("relaxed")
            try:
                fn(builder.stream)
                graph = builder.end_building().complete()
            except BaseException:
                builder.close()  # ends the capture, so that the stream stays usable
                raise
            return Graph(graph, self)

    def time(
        self,
        work: Graph | Callable[[Any], None],
        stream: Any,
        repeats: int = 20,
        warm_up: int = 3,
        inner: int = 1,
    ) -> list[float]:
        """Device seconds of ``work``, by events around it; waits.

        Args:
            work: a graph, or a function that enqueues on the stream it is passed.
            stream: where.
            repeats: number of measurements.
            warm_up: runs before the first one.
            inner: runs between two events; the result is per run.

        Returns:
            ``repeats`` times in seconds, in order.
        """
        enqueue = work.launch if isinstance(work, Graph) else work
        for _ in range(warm_up):
            enqueue(stream)
        pairs = [(self.event(timing=True), self.event(timing=True)) for _ in range(repeats)]
        for start, end in pairs:
            self.record(stream, start)
            for _ in range(inner):
                enqueue(stream)
            self.record(stream, end)
        self.synchronize(stream)
        return [self.elapsed(start, end) / inner for start, end in pairs]

    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two completed events with timing."""
        with self.activated(), translated("reading an event's time"):
            return float(end - start) * 1e-3


def _inside(buffer: DeviceBuffer, offset: int, nbytes: int, what: str) -> None:
    if offset < 0 or nbytes < 0 or offset + nbytes > buffer.nbytes:
        raise DeviceError(
            f"{what} of {nbytes:,} bytes at offset {offset:,} "
            f"does not fit a buffer of {buffer.nbytes:,} bytes"
        )
