"""Runs one variant on one problem on a GPU: for the tuner's check and clock, and for tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nrt.assembly import memory_image
from nrt.cuda_kernels.compiler import Cubin, compile_kernel
from nrt.cuda_kernels.dependent_launch import MINIMUM_CC
from nrt.cuda_kernels.device import DeviceSpec, device_for_arch
from nrt.cuda_kernels.variant import (
    Arg,
    In,
    KernelSpec,
    Null,
    Out,
    Scalar,
    TensorMap,
    Variant,
    Work,
)
from nrt.device_compare import device_error, on_device
from nrt.errors import BuildError, TuningError
from nrt.ir.op import Array
from nrt.plan import BufferRef, TensorMapArg
from nrt.problem import Problem, TensorSpec
from nrt.runtime.cuda import CudaDevice, open_device
from nrt.runtime.info import DeviceInfo
from nrt.runtime.tensor_map import encode_tensor_map
from nrt.trial import relative_error

__all__ = ["CudaRunner", "Operands", "Prepared", "device_spec"]

_POISON = 0xFF
"""All-ones bits are NaN in every float type: an element that was not written shows."""

_REPLAY = 6e-4
"""Seconds of one replay. While workers compile, the host takes up to 200 us between a replay's
first event and its launch; beside 600 us that does not decide between kernels."""

_MOST = 64
"""Runs of every set of operands in a replay: each costs the host 20 us to capture."""

_LONG = 2e-4
"""Seconds; beside them, a launch that the host enqueues costs nothing."""

_FAMILIES = {(7, 5): "sm_75", (8, 0): "sm_80", (8, 6): "sm_80", (8, 7): "sm_87", (8, 9): "sm_89"}


def device_spec(info: DeviceInfo) -> DeviceSpec:
    """What kernels must know of the GPU that ``info`` describes.

    Raises:
        BuildError: nrt has no kernels for its compute capability.
    """
    arch = "sm_90a" if info.cc == (9, 0) else _FAMILIES.get(info.cc)
    if arch is None:
        raise BuildError(
            f"GPU '{info.name}' has compute capability {info.cc[0]}.{info.cc[1]}: expected 7.5, "
            "8.0, 8.6, 8.7, 8.9 or 9.0; build for the CPU with target='cpu'"
        )
    return replace(
        device_for_arch(arch),
        name=info.name,
        multiprocessors=info.multiprocessors,
        shared_per_block=info.shared_per_block,
        shared_per_sm=info.shared_per_sm,
        l2_bytes=info.l2_bytes,
    )


@dataclass
class Prepared:
    """A variant ready to launch.

    Attributes:
        enqueue: puts its launches on a stream; ``enqueue(stream, chained=True)`` behind a launch,
            which the first one then overlaps as a plan's would.
        outputs: device buffer and spec of each output.
        keep: buffers that must stay alive.
    """

    enqueue: Callable[..., None]
    outputs: list[tuple[Any, TensorSpec]]
    keep: list[Any]


class Operands:
    """What the candidates of one problem share: its inputs on the device, several copies of each.

    Kernels do not write to their inputs. Constants that a variant packs are its own; the last
    candidate's are kept, since each candidate is prepared several times.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], Any] = {}
        self._packed: dict[int, Array] = {}
        self._owner: tuple[str, tuple[Any, ...]] | None = None

    def data(
        self,
        variant: Variant,
        problem: Problem,
        config: tuple[Any, ...],
        slot: int,
        array: Array,
    ) -> Array:
        """Input ``slot`` as the variant reads it: ``array`` itself, or packed."""
        if not problem.constants[slot]:
            return array
        if self._owner != (variant.name, config):
            self._owner, self._packed = (variant.name, config), {}
        if slot not in self._packed:
            self._packed[slot] = variant.pack(problem, config, slot, array)
        return self._packed[slot]

    def buffer(
        self, slot: int, copy: int, upload: Callable[[], Any], again: Callable[[Any], Any]
    ) -> Any:
        """Copy number ``copy`` of an input that is not packed: uploaded, or made of another one."""
        if (slot, copy) not in self._buffers:
            first = self._buffers.get((slot, 0))
            self._buffers[slot, copy] = upload() if first is None else again(first)
        return self._buffers[slot, copy]


class CudaRunner:
    """A GPU on which single problems are run.

    Attributes:
        cuda: the device.
        device: what kernels know of it.
        programmatic: launches that follow a launch are programmatic, as a plan's are.
    """

    def __init__(self, cuda: CudaDevice | None = None, *, programmatic: bool | None = None) -> None:
        """Open the GPU.

        Args:
            cuda: an open device; default: the first.
            programmatic: default: where the device has programmatic dependent launch.
        """
        self.cuda = cuda or open_device()
        self.device = device_spec(self.cuda.info)
        able = self.device.cc >= MINIMUM_CC
        self.programmatic = able if programmatic is None else programmatic
        self.stream = self.cuda.stream()

    def prepare(
        self,
        variant: Variant,
        problem: Problem,
        config: tuple[Any, ...],
        inputs: Sequence[Array],
        binary: Callable[[KernelSpec], Cubin] | None = None,
        operands: Operands | None = None,
        copy: int = 0,
    ) -> Prepared:
        """Upload ``inputs`` (logical order), poison the outputs, load the kernels.

        Inputs that ``operands`` holds as number ``copy`` are not uploaded again.
        """
        shared = operands or Operands()
        emission = variant.emit(problem, config, self.device)
        buffers = []
        for slot, (array, spec) in enumerate(zip(inputs, problem.inputs, strict=True)):
            data = shared.data(variant, problem, config, slot, array)
            if data is array:
                upload = partial(self._upload_as, array, spec)
                buffers.append(shared.buffer(slot, copy, upload, self._copy))
            else:
                buffers.append(self._upload(data))
        outputs = []
        for spec in problem.outputs:
            buffer = self.cuda.alloc(spec.nbytes)
            self.cuda.fill(buffer, _POISON)
            outputs.append((buffer, spec))
        work = self.cuda.alloc(emission.workspace)
        self.cuda.fill(work, _POISON)
        compile_ = binary or (lambda spec: compile_kernel(spec, self.device))
        calls = []
        maps: list[Any] = []
        for launch in emission.launches:
            cubin = compile_(launch.kernel)
            kernel = self.cuda.load(cubin.code, cubin.entry)
            targets = [b for b, _ in outputs]
            args = []
            for arg in launch.args:
                if isinstance(arg, TensorMap):
                    maps.append(self._map(arg, _argument(arg.of, buffers, targets, work)))
                    args.append(maps[-1].ptr)
                else:
                    args.append(_argument(arg, buffers, targets, work))
            calls.append((kernel, launch, args))

        def enqueue(stream: Any, chained: bool = False) -> None:
            for number, (kernel, launch, args) in enumerate(calls):
                overlap = self.programmatic and (chained or number > 0)
                self.cuda.launch(
                    stream, kernel, launch.grid, launch.block, args, launch.shared, launch.cluster,
                    overlap,
                )  # fmt: skip

        return Prepared(enqueue, outputs, [*buffers, *maps, work])

    def launched(
        self,
        variant: Variant,
        problem: Problem,
        config: tuple[Any, ...],
        inputs: Sequence[Array],
        binary: Callable[[KernelSpec], Cubin] | None = None,
        *,
        operands: Operands | None = None,
    ) -> Prepared:
        """The variant after a run; its outputs stay on the device."""
        prepared = self.prepare(variant, problem, config, inputs, binary, operands)
        prepared.enqueue(self.stream)
        self.cuda.synchronize(self.stream)
        return prepared

    def run(
        self,
        variant: Variant,
        problem: Problem,
        config: tuple[Any, ...],
        inputs: Sequence[Array],
        binary: Callable[[KernelSpec], Cubin] | None = None,
        *,
        operands: Operands | None = None,
    ) -> list[Array]:
        """The outputs, logical order.

        Raises:
            TuningError: the variant wrote between an output's elements.
        """
        prepared = self.launched(variant, problem, config, inputs, binary, operands=operands)
        return [self._fetch(variant, buffer, spec) for buffer, spec in prepared.outputs]

    def error(
        self,
        variant: Variant,
        found: Any,
        expected: Any,
        spec: TensorSpec,
        binary: Callable[[KernelSpec], Cubin],
    ) -> float:
        """`nrt.trial.relative_error` of two outputs on the device, ``found`` by ``variant``.

        Raises:
            TuningError: the variant wrote between the output's elements.
        """
        if on_device(spec):
            error = device_error(self.cuda, self.stream, found, expected, spec, binary)
            if error is not None:
                return error
        out = self._fetch(variant, found, spec)
        return relative_error(out, self._fetch(variant, expected, spec))

    def output_of(self, array: Array, spec: TensorSpec) -> Any:
        """A device buffer that holds ``array`` (logical order) as if a kernel had written it."""
        data = np.full(spec.nbytes, _POISON, np.uint8)
        strides = tuple(s * spec.dtype.itemsize for s in spec.strides)
        flat = data.view(spec.dtype.numpy)
        np.lib.stride_tricks.as_strided(flat, spec.shape, strides)[...] = array
        return self._upload(data)

    def seconds(
        self,
        variant: Variant,
        problem: Problem,
        config: tuple[Any, ...],
        inputs: Sequence[Array],
        binary: Callable[[KernelSpec], Cubin] | None = None,
        *,
        repeats: int = 9,
        sets: int = 3,
        operands: Operands | None = None,
        limit: float = math.inf,
    ) -> float:
        """Median device seconds of one run, by events around replays of a CUDA graph.

        The graph holds several runs over ``sets`` copies of the buffers in turn, each one launched
        as behind another layer. A kernel that a few runs show to be over ``limit`` is not timed any
        further.
        """
        shared = operands or Operands()
        prepared = [
            self.prepare(variant, problem, config, inputs, binary, shared, copy)
            for copy in range(sets)
        ]
        for item in prepared:
            item.enqueue(self.stream)
        self.cuda.synchronize(self.stream)
        once = self.cuda.time(prepared[0].enqueue, self.stream, repeats=3, warm_up=1)
        if min(once) > max(limit, _LONG):
            return min(once)
        runs = sets * max(1, min(_MOST, int(_REPLAY / max(min(once), 1e-6) / sets)))

        def work(stream: Any) -> None:
            for index in range(runs):
                prepared[index % sets].enqueue(stream, chained=index > 0)

        graph = self.cuda.capture(self.stream, work)
        times = self.cuda.time(graph, self.stream, repeats=3, warm_up=2)
        if min(times) / runs <= limit:
            times = self.cuda.time(graph, self.stream, repeats=repeats, warm_up=0)
        return float(np.median(times)) / runs

    def _map(self, arg: TensorMap, address: int) -> Any:
        ref = BufferRef("arena", 0, arg.nbytes)
        spec = TensorMapArg(
            ref, arg.dtype, arg.dims, arg.strides, arg.box, arg.steps,
            arg.lower, arg.upper, arg.swizzle,
        )  # fmt: skip
        return self._upload(np.frombuffer(encode_tensor_map(spec, address), np.uint8))

    def _upload_as(self, array: Array, spec: TensorSpec) -> Any:
        return self._upload(memory_image(array, spec))

    def _copy(self, buffer: Any) -> Any:
        again = self.cuda.alloc(buffer.nbytes)
        self.cuda.copy(again.ptr, buffer.ptr, buffer.nbytes, self.stream)
        return again

    def _upload(self, data: Array) -> Any:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        buffer = self.cuda.alloc(raw.nbytes)
        self.cuda.upload(buffer, raw)
        return buffer

    def _fetch(self, variant: Variant, buffer: Any, spec: TensorSpec) -> Array:
        raw = self.cuda.download(buffer, (spec.nbytes,), np.dtype(np.uint8))
        item = spec.dtype.itemsize
        strides = tuple(s * item for s in spec.strides)
        flat = raw.view(spec.dtype.numpy)
        out = np.lib.stride_tricks.as_strided(flat, spec.shape, strides).copy(order="K")
        if spec.size < spec.span:
            touched = np.zeros(spec.span, bool)
            np.lib.stride_tricks.as_strided(touched, spec.shape, spec.strides)[...] = True
            if np.any(raw.reshape(-1, item)[~touched] != _POISON):
                raise TuningError(
                    f"variant '{variant.name}' wrote outside its output {spec}: a kernel bug"
                )
        return out


def _argument(arg: Arg, inputs: list[Any], outputs: list[Any], work: Any) -> Any:
    """What `CudaDevice.launch` takes; tensor maps are handled by their owner."""
    if isinstance(arg, Scalar):
        return (arg.value, arg.ctype)
    if isinstance(arg, Null):
        return 0
    if isinstance(arg, In):
        return inputs[arg.slot].ptr + arg.offset
    if isinstance(arg, Out):
        return outputs[arg.slot].ptr + arg.offset
    assert isinstance(arg, Work)
    return work.ptr + arg.offset
