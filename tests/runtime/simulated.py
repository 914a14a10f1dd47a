"""A GPU in host memory, for the order of things: what runs when is drawn at random.

Streams are queues that nothing empties until the host waits; then any stream whose head is not
waiting for an event may go next. A missing event shows as wrong values under some seed.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nrt.runtime.cuda import CudaDevice
from nrt.runtime.info import DeviceInfo
from nrt.runtime.launch import Kernel

INFO = DeviceInfo(
    0, "Simulated", "sm_90a", (9, 0), 4, 1 << 20, 227 << 10, 228 << 10, 1 << 30, "13.0"
)


class Memory:
    def __init__(self, nbytes: int) -> None:
        self.array = np.random.default_rng().integers(0, 256, nbytes + 256).astype(np.uint8)
        self.ptr = -(-self.array.ctypes.data // 256) * 256
        start = self.ptr - self.array.ctypes.data
        self.array = self.array[start : start + nbytes]
        self.nbytes = nbytes


class Event:
    def __init__(self) -> None:
        self.asked = self.reached = 0


class Stream:
    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.queue: list[tuple[Callable[[], bool], Callable[[], None]]] = []


class RecordedGraph:
    """What was captured; every replay runs it in another order that its events allow."""

    def __init__(self, device: SimulatedDevice, work: list[tuple[Stream, str, Any, Any]]) -> None:
        self.device, self.work = device, work

    def upload(self, stream: Stream) -> None:
        del stream

    def launch(self, stream: Stream) -> None:
        queues: dict[Stream, list[tuple[str, Any, Any]]] = {}
        for branch, *item in self.work:
            queues.setdefault(branch, []).append((item[0], item[1], item[2]))
        reached: set[tuple[Any, Any]] = set()
        while any(queues.values()):
            able = [q for q in queues.values() if q and (q[0][0] != "wait" or q[0][1:] in reached)]
            assert able, "deadlock in a graph"
            kind, subject, number = self.device.rng.choice(able).pop(0)
            if kind == "record":
                reached.add((subject, number))
            elif kind == "work":
                self.device.push(stream, subject)


class SimulatedDevice(CudaDevice):
    """`CudaDevice` without CUDA; kernels are Python functions by entry name."""

    def __init__(self, kernels: dict[str, Callable[..., None]], seed: int) -> None:
        self.info = INFO
        self.functions = kernels
        self.rng = random.Random(seed)
        self.streams: list[Stream] = []
        self.recording: list[tuple[Stream, str, Any, Any]] | None = None
        self.launches: list[tuple[str, bool]] = []

    @contextmanager
    def activated(self) -> Iterator[None]:
        yield

    def push(
        self, stream: Stream, work: Callable[[], None], ready: Callable[[], bool] = lambda: True
    ) -> None:
        if self.recording is not None:
            self.recording.append((stream, "work", work, None))
        else:
            stream.queue.append((ready, work))

    def _advance(self) -> None:
        able = [s for s in self.streams if s.queue and s.queue[0][0]()]
        assert able, "deadlock"
        self.rng.choice(able).queue.pop(0)[1]()

    def alloc(self, nbytes: int) -> Any:
        return Memory(nbytes)

    def pinned(self, nbytes: int) -> Any:
        return Memory(nbytes)

    def upload(self, buffer: Any, array: Any, offset: int = 0, stream: Any = None) -> None:
        assert stream is None
        ctypes.memmove(buffer.ptr + offset, array.ctypes.data, array.nbytes)

    def download(
        self, buffer: Any, shape: Any, dtype: Any, offset: int = 0, stream: Any = None
    ) -> Any:
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, buffer.ptr + offset, array.nbytes)
        return array

    def _copy(self, function: str, dst: int, src: int, nbytes: int, stream: Any) -> None:
        self.push(stream, lambda: ctypes.memmove(dst, src, nbytes) and None)

    def set_bytes(self, dst: int, byte: int, nbytes: int, stream: Any = None) -> None:
        self.push(stream, lambda: ctypes.memset(dst, byte, nbytes) and None)

    def load(self, cubin: bytes, entry: str) -> Kernel:
        return Kernel(entry, self.functions[entry], None)

    def launch(
        self,
        stream: Any,
        kernel: Kernel,
        grid: Any,
        block: Any,
        args: Any,
        shared: int = 0,
        cluster: Any = None,
        programmatic: bool = False,
    ) -> None:
        values = [a if isinstance(a, int) else a[0] for a in args]
        self.launches.append((kernel.entry, programmatic))
        self.push(stream, lambda: kernel.handle(*values))

    def stream(self) -> Any:
        self.streams.append(Stream(1000 + len(self.streams)))
        return self.streams[-1]

    def foreign_stream(self, stream: Any) -> Any:
        if isinstance(stream, Stream):
            return stream
        return next(s for s in self.streams if s.handle == stream)

    def event(self, timing: bool = False) -> Any:
        return Event()

    def record(self, stream: Any, event: Any) -> None:
        event.asked += 1
        number = event.asked
        if self.recording is not None:
            self.recording.append((stream, "record", event, number))
            return

        def reach() -> None:
            event.reached = max(event.reached, number)

        self.push(stream, reach)

    def wait(self, stream: Any, event: Any) -> None:
        number = event.asked
        if self.recording is not None:
            self.recording.append((stream, "wait", event, number))
            return
        self.push(stream, lambda: None, lambda: event.reached >= number)

    def synchronize(self, stream_or_event: Any = None) -> None:
        assert self.recording is None, "the host waits during a capture"
        if isinstance(stream_or_event, Event):
            number = stream_or_event.asked
            while stream_or_event.reached < number:
                self._advance()
        elif isinstance(stream_or_event, Stream):
            while stream_or_event.queue:
                self._advance()
        else:
            while any(s.queue for s in self.streams):
                self._advance()

    def capture(self, stream: Any, fn: Callable[[Any], None]) -> Any:
        self.recording = []
        try:
            fn(stream)
            return RecordedGraph(self, self.recording)
        finally:
            self.recording = None

    def time(
        self, work: Any, stream: Any, repeats: int = 20, warm_up: int = 3, inner: int = 1
    ) -> list[float]:
        work.launch(stream)
        self.synchronize(stream)
        return [1e-3] * repeats


def view(address: int, count: int) -> Any:
    """``fp32[count]`` at an address."""
    block = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(block, np.float32)
