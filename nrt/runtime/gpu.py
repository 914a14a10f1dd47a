"""The CUDA executor: a plan's launches in one CUDA graph, transfers on streams of their own."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nrt.errors import InputError
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    IoSpec,
    JoinStep,
    LaunchStep,
    Plan,
    ScalarArg,
    SetStep,
    Step,
    StepArg,
    TensorMapArg,
)
from nrt.runtime.arrays import Array, check_type, host_array, logical_view, memory_view
from nrt.runtime.buffers import DeviceBuffer
from nrt.runtime.cuda import CudaDevice, Graph, LaunchArg
from nrt.runtime.device_tensor import DeviceTensor
from nrt.runtime.dlpack import ArrayView, view_cuda_array, view_dlpack
from nrt.runtime.targets import check_arch
from nrt.runtime.tensor_map import MAP_BYTES, encode_tensor_map

__all__ = ["CudaProgram", "CudaRunner", "Ticket"]

_REPLAY = 2e-4
"""Seconds of runs of one step that share the start of a graph when steps are timed."""
_MOST_RUNS = 20


class CudaProgram:
    """A CUDA plan with its weights and kernels on the device; shared between threads.

    Raises:
        PlanTargetError: the plan is for another architecture.
        DeviceError: out of memory, or a binary does not load.
    """

    def __init__(self, plan: Plan, device: CudaDevice) -> None:
        check_arch(plan, device.info.arch, device.info.name)
        self.plan = plan
        self.device = device
        self.weights = device.alloc(len(plan.weights))
        device.upload(self.weights, np.frombuffer(plan.weights, np.uint8))
        self.kernels = tuple(device.load(plan.cubins[k.cubin], k.entry) for k in plan.kernels)

    def runner(self) -> CudaRunner:
        """Memory, streams and a graph to run with."""
        return CudaRunner(self)


class Ticket:
    """One enqueued run; its outputs are safe from later runs as long as it is alive."""

    def __init__(self, slot: _Slot) -> None:
        self.slot: _Slot | None = slot
        self.saved: list[Array] | None = None


class _Slot:
    """Buffers of one run in flight, and the graph that was captured on their addresses."""

    def __init__(self, program: CudaProgram) -> None:
        device, plan = program.device, program.plan
        self.inputs = [device.alloc(spec.nbytes) for spec in plan.inputs]
        self.outputs = [device.alloc(spec.nbytes) for spec in plan.outputs]
        self.staging = [device.pinned(spec.nbytes) for spec in plan.inputs]
        self.landing = [device.pinned(spec.nbytes) for spec in plan.outputs]
        self.sources: list[Any] = [None] * len(plan.inputs)
        self.staged = [device.event() for _ in plan.inputs]
        self.uploaded = device.event()
        self.done = device.event()
        self.downloaded = device.event()
        self.fresh: set[int] = set()
        self.maps: dict[TensorMapArg, DeviceBuffer] = {}
        self.graph: Graph | None = None
        self.ticket: weakref.ref[Ticket] | None = None


class CudaRunner:
    """One execution of a `CudaProgram` at a time, with up to two runs in flight.

    Two slots of input and output buffers take turns once runs are enqueued without waiting, so that
    one run's transfers go on while the other computes; the arena is one: computation is in order.
    """

    def __init__(self, program: CudaProgram) -> None:
        self._program = program
        self._plan, self._device = program.plan, program.device
        device = self._device
        self._arena = device.alloc(self._plan.arena_bytes)
        self._compute, self._up, self._down = device.stream(), device.stream(), device.stream()
        self._side = [device.stream() for _ in range(self._plan.streams - 1)]
        self._bound: set[int] = set()
        self._slots = [_Slot(program)]
        self._current = self._previous = self._slots[0]
        self._current.graph = self._capture(self._current)
        self._last_stream: Any = self._compute
        self._last_ticket: Ticket | None = None

    # Steps

    def _address(self, ref: BufferRef, slot: _Slot) -> int:
        if ref.space == "null":
            return 0
        if ref.space == "arena":
            return self._arena.ptr + ref.offset
        if ref.space == "weights":
            return self._program.weights.ptr + ref.offset
        buffers = slot.inputs if ref.space == "input" else slot.outputs
        return buffers[ref.index].ptr + ref.offset

    def _argument(self, arg: StepArg, slot: _Slot) -> LaunchArg:
        if isinstance(arg, ScalarArg):
            return (arg.value, arg.ctype)
        if isinstance(arg, TensorMapArg):
            return slot.maps[arg].ptr
        return self._address(arg, slot)

    def _issue(self, step: Step, slot: _Slot, streams: Sequence[Any]) -> None:
        device = self._device
        if isinstance(step, LaunchStep):
            device.launch(
                streams[step.stream],
                self._program.kernels[step.kernel],
                step.grid,
                step.block,
                [self._argument(arg, slot) for arg in step.args],
                step.shared,
                step.cluster,
                step.programmatic,
            )
        elif isinstance(step, CopyStep):
            source, target = self._address(step.src, slot), self._address(step.dst, slot)
            device.copy(target, source, step.src.nbytes, streams[step.stream])
        elif isinstance(step, SetStep):
            target = self._address(step.dst, slot)
            device.set_bytes(target, step.value, step.dst.nbytes, streams[step.stream])
        elif isinstance(step, ForkStep):
            event = device.event()
            device.record(streams[step.stream], event)
            for target in step.targets:
                device.wait(streams[target], event)
        elif isinstance(step, JoinStep):
            for source in step.sources:
                event = device.event()
                device.record(streams[source], event)
                device.wait(streams[step.stream], event)
        else:
            assert isinstance(step, HostStep)
            raise InputError("a CUDA plan holds no host steps")

    def _capture(self, slot: _Slot) -> Graph:
        def issue_all(stream: Any) -> None:
            streams = [stream, *self._side]
            for step in self._plan.steps:
                self._issue(step, slot, streams)

        self._encode_maps(slot)
        graph = self._device.capture(self._compute, issue_all)
        graph.upload(self._compute)
        return graph

    def _encode_maps(self, slot: _Slot) -> None:
        """Put the plan's tensor maps, for the slot's addresses, where kernels read them."""
        for step in self._plan.steps:
            for arg in step.args if isinstance(step, LaunchStep) else ():
                if isinstance(arg, TensorMapArg) and arg not in slot.maps:
                    data = encode_tensor_map(arg, self._address(arg.ref, slot))
                    slot.maps[arg] = self._device.alloc(MAP_BYTES)
                    self._device.upload(slot.maps[arg], np.frombuffer(data, np.uint8))

    # Inputs

    def set_input(self, index: int, value: Any) -> None:
        """Start moving ``value`` to the device; host memory may be changed once this returns."""
        with self._device.activated():
            self._put(index, self._judge(index, value))

    def _judge(self, index: int, value: Any) -> Array | ArrayView:
        spec = self._plan.inputs[index]
        if isinstance(value, np.ndarray):
            return host_array(spec, value)
        view = self._device_view(spec, value)
        if view is None:
            return host_array(spec, value)
        check_type(spec, view.shape, view.dtype, view.dtype)
        if view.device != self._device.info.index:
            raise InputError(
                f"input {spec.name!r}: lies on CUDA device {view.device}, the engine is on "
                f"{self._device.info.index}; move it there"
            )
        if not view.lies_as(spec.strides):
            last = spec.layout == "nhwc"
            raise InputError(
                f"input {spec.name!r}: {type(value).__name__} has strides {view.strides}, expected "
                f"dense {'channels-last' if last else 'row-major'} memory; pass "
                f"x.contiguous({'memory_format=torch.channels_last' if last else ''}) or its like"
            )
        return view

    def _device_view(self, spec: IoSpec, value: Any) -> ArrayView | None:
        """A view of device memory, ordered before the upload stream; None for host memory."""
        if hasattr(value, "__dlpack_device__") and hasattr(value, "__dlpack__"):
            view = view_dlpack(spec.name, value, int(self._up.handle))
            return view if view.on_device else None
        if hasattr(value, "__cuda_array_interface__"):
            view, producer = view_cuda_array(spec.name, value, self._device.info.index)
            if producer is not None:
                event = self._device.event()
                self._device.record(self._device.foreign_stream(producer), event)
                self._device.wait(self._up, event)
            return view
        return None

    def _put(self, index: int, source: Array | ArrayView) -> None:
        slot = self._writable_slot()
        device, spec = self._device, self._plan.inputs[index]
        device.wait(self._up, slot.done)  # the slot's last run has read its inputs
        target = slot.inputs[index].ptr
        if isinstance(source, ArrayView):
            device.copy(target, source.ptr, spec.nbytes, self._up)
            slot.sources[index] = source
        else:
            staging = slot.staging[index]
            device.synchronize(slot.staged[index])  # the copy engine has read it
            staging.array[:] = source.reshape(-1).view(np.uint8)
            device.copy_from_host(target, staging.ptr, spec.nbytes, self._up)
            device.record(self._up, slot.staged[index])
            slot.sources[index] = None
        device.record(self._up, slot.uploaded)
        slot.fresh.add(index)
        self._bound.add(index)

    def _writable_slot(self) -> _Slot:
        """The slot for the next run's inputs: another one while an enqueued run holds this one."""
        slot = self._current
        if slot.ticket is None:
            return slot
        if len(self._slots) == 1:
            other = _Slot(self._program)
            other.graph = self._capture(other)
            self._slots.append(other)
        other = self._slots[1] if slot is self._slots[0] else self._slots[0]
        self._release(other)
        self._previous, self._current = slot, other
        other.fresh = set()
        return other

    def _release(self, slot: _Slot) -> None:
        """Bring the outputs that someone may still ask for to safety."""
        ticket = slot.ticket() if slot.ticket is not None else None
        if ticket is not None and ticket.slot is slot:
            ticket.saved = self._fetch(slot)
            ticket.slot = None
        slot.ticket = None

    # Runs

    def run(self, values: Sequence[Any], device: bool = False) -> list[Any]:
        """Outputs for these inputs, in the plan's order; on the host it waits for them."""
        with self._device.activated():
            sources = [self._judge(i, v) for i, v in enumerate(values)]
            for index, source in enumerate(sources):
                self._put(index, source)
            self._launch(self._compute)
            return self._tensors(self._current) if device else self._fetch(self._current)

    def enqueue(self, stream: Any = None) -> Ticket:
        """Start a run on what is bound; returns at once.

        Raises:
            InputError: an input was never bound.
        """
        missing = [s.name for i, s in enumerate(self._plan.inputs) if i not in self._bound]
        if missing:
            raise InputError(f"inputs {missing} are not bound; call set_input for each first")
        with self._device.activated():
            target = self._compute if stream is None else self._device.foreign_stream(stream)
            self._last_ticket = None
            self._release(self._current)  # a second run on the same inputs
            self._launch(target)
            ticket = Ticket(self._current)
            self._current.ticket = weakref.ref(ticket)
            self._last_ticket = ticket
            return ticket

    def _launch(self, stream: Any) -> None:
        slot, device = self._current, self._device
        stale = self._bound - slot.fresh
        if stale and self._previous is not slot:
            # The first input that was put here has made this stream wait for the slot's last run.
            for index in sorted(stale):
                nbytes = self._plan.inputs[index].nbytes
                target, source = slot.inputs[index].ptr, self._previous.inputs[index].ptr
                device.copy(target, source, nbytes, self._up)
            device.record(self._up, slot.uploaded)
        slot.fresh |= stale
        device.wait(stream, slot.uploaded)
        device.wait(stream, slot.downloaded)
        if stream is not self._last_stream:
            for other in self._slots:  # one arena: runs on different streams take turns
                device.wait(stream, other.done)
        assert slot.graph is not None
        slot.graph.launch(stream)
        device.record(stream, slot.done)
        self._last_stream = stream

    def outputs(self, ticket: Ticket, device: bool = False) -> list[Any]:
        """Outputs of an enqueued run; on the host it waits for them."""
        with self._device.activated():
            if ticket.slot is not None and device:
                return self._tensors(ticket.slot)
            if ticket.slot is not None:
                return self._fetch(ticket.slot)
            assert ticket.saved is not None
            if not device:
                return [array.copy(order="K") for array in ticket.saved]
            return [self._lift(s, a) for s, a in zip(self._plan.outputs, ticket.saved, strict=True)]

    @property
    def results(self) -> Ticket | None:
        """The last run that was enqueued."""
        return self._last_ticket

    def _fetch(self, slot: _Slot) -> list[Array]:
        device = self._device
        device.wait(self._down, slot.done)
        for spec, source, landing in zip(
            self._plan.outputs, slot.outputs, slot.landing, strict=True
        ):
            device.copy_to_host(landing.ptr, source.ptr, spec.nbytes, self._down)
        device.record(self._down, slot.downloaded)
        device.synchronize(slot.downloaded)
        return [
            logical_view(spec, np.array(landing.array, copy=True))
            for spec, landing in zip(self._plan.outputs, slot.landing, strict=True)
        ]

    def _tensors(self, slot: _Slot) -> list[DeviceTensor]:
        device = self._device
        device.wait(self._down, slot.done)
        buffers = [device.alloc(spec.nbytes) for spec in self._plan.outputs]
        ready = device.event()
        for spec, source, target in zip(self._plan.outputs, slot.outputs, buffers, strict=True):
            device.copy(target.ptr, source.ptr, spec.nbytes, self._down)
        device.record(self._down, ready)
        device.record(self._down, slot.downloaded)
        return [
            DeviceTensor(spec, buffer, device, ready, self._down)
            for spec, buffer in zip(self._plan.outputs, buffers, strict=True)
        ]

    def _lift(self, spec: IoSpec, array: Array) -> DeviceTensor:
        buffer = self._device.alloc(spec.nbytes)
        self._device.upload(buffer, memory_view(spec, array))
        ready = self._device.event()  # never recorded: nobody waits, the upload did
        return DeviceTensor(spec, buffer, self._device, ready, self._down)

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""
        with self._device.activated():
            for slot in self._slots:
                self._device.synchronize(slot.done)
            self._device.synchronize(self._up)
            self._device.synchronize(self._down)

    # Timing

    def device_seconds(self, repeats: int, warm_up: int = 3) -> list[float]:
        """Device seconds of graph replays on what the buffers hold."""
        with self._device.activated():
            self.synchronize()
            graph = self._current.graph
            assert graph is not None
            return self._device.time(graph, self._compute, repeats, warm_up)

    def step_seconds(self, inputs: Sequence[Any], repeats: int) -> list[list[float]]:
        """Device seconds of each step, ``repeats`` times, alone in plan order.

        Forks and joins take 0.
        """
        with self._device.activated():
            self.run(inputs)
            streams = [self._compute] * self._plan.streams
            return [self._step_seconds(step, streams, repeats) for step in self._plan.steps]

    def _step_seconds(self, step: Step, streams: Sequence[Any], repeats: int) -> list[float]:
        if isinstance(step, ForkStep | JoinStep):
            return [0.0] * repeats

        # Nothing stands before it.
        alone = replace(step, programmatic=False) if isinstance(step, LaunchStep) else step

        # A graph of its own: issued from Python, the host would be what is timed.
        def issue(stream: Any, runs: int = 1) -> None:
            for _ in range(runs):
                self._issue(alone, self._current, [stream] * len(streams))

        graph = self._device.capture(self._compute, issue)
        once = min(self._device.time(graph, self._compute, 3, warm_up=1))
        # A step reads nothing that it writes. To start a graph takes longer than most kernels do:
        # several runs share one start.
        runs = max(1, min(_MOST_RUNS, int(_REPLAY / max(once, 1e-6))))
        if runs > 1:
            graph = self._device.capture(self._compute, partial(issue, runs=runs))
        return [t / runs for t in self._device.time(graph, self._compute, repeats)]
