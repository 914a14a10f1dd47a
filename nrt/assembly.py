"""Tasks and their chosen kernels to a plan: arena offsets, weights, arguments, steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nrt.cpu_kernels.variant import HostVariant
from nrt.cuda_kernels.compiler import Cubin
from nrt.cuda_kernels.dependent_launch import MINIMUM_CC
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import (
    Arg,
    Emission,
    In,
    KernelSpec,
    Launch,
    Null,
    Out,
    Scalar,
    TensorMap,
    Variant,
)
from nrt.dataflow import reads
from nrt.dtypes import dtype_from_numpy
from nrt.errors import BuildError
from nrt.fork_join import with_forks
from nrt.ir.op import Array
from nrt.ir.text import programs_text
from nrt.liveness import Layout, place_in, plan_layout
from nrt.lowering import Lowered, Place, Task
from nrt.plan import (
    BufferRef,
    ForkStep,
    HostStep,
    HostTensor,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Layer,
    Plan,
    ScalarArg,
    Step,
    StepArg,
    Target,
    TensorMapArg,
)
from nrt.problem import TensorSpec
from nrt.schedule import Schedule, Work, serial_schedule
from nrt.work import flops_of, precision_of

__all__ = ["Bound", "Constants", "assemble", "memory_image", "overlapped"]

_WEIGHT_ALIGN = 256


@dataclass(frozen=True)
class Bound:
    """A task with its kernel.

    Attributes:
        task: what is solved.
        variant: by which algorithm.
        config: with which configuration.
        seconds: measured time; None when the heuristic chose.
        reason: why.
    """

    task: Task
    variant: Variant | HostVariant
    config: tuple[Any, ...]
    seconds: float | None
    reason: str


def memory_image(array: Array, spec: TensorSpec) -> Array:
    """The bytes of ``array`` (logical order) as memory with ``spec``'s strides; gaps are zero."""
    if spec.is_row_major:
        return np.ascontiguousarray(array, spec.dtype.numpy).reshape(-1).view(np.uint8)
    array = np.asarray(array, spec.dtype.numpy).reshape(spec.shape)
    flat = np.zeros(spec.span, spec.dtype.numpy)
    view = np.lib.stride_tricks.as_strided(
        flat, spec.shape, tuple(s * spec.dtype.itemsize for s in spec.strides)
    )
    view[...] = array
    return flat.view(np.uint8)


class Constants:
    """The constants' blob, filled by the kernels that read them; equal bytes are stored once.

    Two plans of the same bound tasks may share one: constants are packed once.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._nbytes = 0
        self._seen: dict[bytes, int] = {}
        self._kept: dict[tuple[Any, ...], tuple[int, Array | None]] = {}

    def place(self, item: Bound, slot: int) -> tuple[int, Array | None]:
        """Weights offset of constant input ``slot``; its packed array, None if kept as is."""
        place = item.task.inputs[slot]
        source = place.buffer.array
        if source is None:
            raise BuildError(f"{item.task.name}: input {slot} is marked constant but holds no data")
        key = (id(source), item.task.problem, item.variant.name, item.config, slot)
        if key not in self._kept:
            array = np.asarray(source, place.spec.dtype.numpy, order="C")
            packed = item.variant.pack(item.task.problem, item.config, slot, array)
            if packed is array:
                self._kept[key] = (self._add(memory_image(array, place.spec)), None)
            else:
                self._kept[key] = (self._add(packed), packed)
        return self._kept[key]

    def _add(self, data: Array) -> int:
        """Offset of ``data`` in the blob."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in self._seen:
            padding = -self._nbytes % _WEIGHT_ALIGN
            self._parts += [bytes(padding), raw]
            self._seen[digest] = self._nbytes + padding
            self._nbytes += padding + len(raw)
        return self._seen[digest]

    def blob(self) -> bytes:
        """All of them."""
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]


class _Assembler:
    """Turns places into references once the arena is laid out."""

    def __init__(self, layout: Layout, workspaces: Sequence[int], constants: Constants) -> None:
        self.constants = constants
        self.layout = layout
        self.workspaces = workspaces

    def ref(self, item: Bound, place: Place, extra: int = 0) -> BufferRef:
        """The bytes of a place that is no constant, from its first to its last element."""
        buffer = place.buffer
        if buffer.space == "arena":
            return place_in(place, base=self.layout.offsets[buffer], extra=extra)
        if buffer.space == "constant":
            raise BuildError(f"{item.task.name}: a constant cannot be written")
        return place_in(place, index=buffer.index, extra=extra)

    def work(self, index: int, extra: int = 0) -> BufferRef:
        """The workspace of task ``index`` from byte ``extra`` on; null where it has none."""
        if index not in self.layout.scratch:
            return BufferRef("null")
        nbytes = max(self.workspaces[index] - extra, 0)
        return BufferRef("arena", self.layout.scratch[index] + extra, nbytes)


def _layer(item: Bound, sources: tuple[int, ...]) -> Layer:
    problem = item.task.problem
    return Layer(
        name=item.task.name,
        op=f"{problem.op.name}{programs_text(problem.op)}",
        origins=item.task.origins,
        inputs=tuple(map(str, problem.inputs)),
        outputs=tuple(map(str, problem.outputs)),
        precision=precision_of(problem),
        variant=item.variant.name,
        config=", ".join(map(str, item.config)),
        seconds=item.seconds,
        flops=flops_of(problem),
        nbytes=problem.nbytes,
        reason=item.reason,
        reads=sources,
    )


def assemble(
    lowered: Lowered,
    bound: Sequence[Bound],
    *,
    name: str,
    target: Target,
    device: DeviceSpec | None = None,
    binary: Callable[[KernelSpec], Cubin] | None = None,
    ops_before: dict[str, int],
    ops_after: dict[str, int],
    versions: dict[str, str],
    programmatic: bool = False,
    schedule: Schedule | None = None,
    constants: Constants | None = None,
) -> Plan:
    """The plan of bound tasks.

    Args:
        lowered: gives the bindings.
        bound: one per task, in order.
        name: of the model.
        target: what it was built for.
        device: CUDA plans: what launches are emitted for.
        binary: CUDA plans: the cubin of a kernel.
        ops_before: op counts of the imported graph.
        ops_after: op counts of the optimized graph.
        versions: libraries and their versions.
        programmatic: launches may start before the one before them has ended, where the device has
            programmatic dependent launch.
        schedule: CUDA plans: on which streams tasks run; default: one after another.
        constants: packed already, by another plan of these tasks; filled here.
    """
    emissions: list[Emission] = []
    if device is not None:
        for item in bound:
            assert isinstance(item.variant, Variant)
            emissions.append(item.variant.emit(item.task.problem, item.config, device))
        workspaces = [e.workspace for e in emissions]
    else:
        workspaces = [
            item.variant.workspace(item.task.problem, item.config)
            for item in bound
            if isinstance(item.variant, HostVariant)
        ]
    schedule = schedule or serial_schedule([Work(item.seconds or 0.0) for item in bound])
    layout = plan_layout(
        [item.task for item in bound],
        workspaces,
        schedule,
        [item.variant.in_place(item.task.problem, item.config) for item in bound],
    )
    constants = constants or Constants()
    assembler = _Assembler(layout, workspaces, constants)
    groups: list[list[Step]] = []
    binaries = _Binaries(binary)
    for index, item in enumerate(bound):
        if device is None:
            groups.append([_host_step(assembler, item, index)])
        else:
            stream = schedule.stream[index]
            groups.append(
                [
                    replace(_launch_step(assembler, item, index, launch, binaries), stream=stream)
                    for launch in emissions[index].launches
                ]
            )
    steps = with_forks(schedule, groups)
    overlap = programmatic and device is not None and device.cc >= MINIMUM_CC
    return Plan(
        name=name,
        target=target,
        inputs=tuple(_io_spec(n, s) for n, s in lowered.inputs),
        outputs=tuple(_io_spec(n, s) for n, s in lowered.outputs),
        arena_bytes=layout.arena.nbytes,
        weights=constants.blob(),
        cubins=tuple(binaries.cubins),
        kernels=tuple(binaries.kernels),
        steps=overlapped(steps, overlap),
        layers=tuple(map(_layer, bound, reads([item.task for item in bound]))),
        streams=schedule.streams,
        peak=layout.peak,
        ops_before=ops_before,
        ops_after=ops_after,
        versions=versions,
    )


def overlapped(steps: Sequence[Step], on: bool) -> tuple[Step, ...]:
    """``steps`` whose launches are programmatic, if ``on``, behind a launch on the same stream.

    What else may stand before a launch on its stream (a copy, a fill, a fork, a join) orders it by
    the stream; `nrt.cuda_kernels.dependent_launch` says why a kernel's own wait is enough where
    nothing does.
    """
    found: list[Step] = []
    behind: dict[int, bool] = {}  # per stream, whether a launch came last
    for step in steps:
        if isinstance(step, LaunchStep):
            found.append(replace(step, programmatic=on and behind.get(step.stream, False)))
            behind[step.stream] = True
            continue
        found.append(step)
        if isinstance(step, ForkStep):
            behind.update(dict.fromkeys((step.stream, *step.targets), False))
        elif isinstance(step, JoinStep):
            behind.update(dict.fromkeys((step.stream, *step.sources), False))
        elif not isinstance(step, HostStep):
            behind[step.stream] = False
    return tuple(found)


def _io_spec(name: str, spec: TensorSpec) -> IoSpec:
    # Of one name for two orders that are the same memory, the plain one.
    layout = "nhwc" if spec.is_nhwc and not spec.is_row_major else "row-major"
    return IoSpec(name, spec.shape, spec.dtype.name, layout)


class _Binaries:
    """Cubins and entry points, each once."""

    def __init__(self, binary: Callable[[KernelSpec], Cubin] | None) -> None:
        self.binary = binary
        self.cubins: list[bytes] = []
        self.kernels: list[KernelRef] = []
        self.index: dict[KernelSpec, int] = {}

    def kernel(self, spec: KernelSpec) -> int:
        """Index of the entry point of ``spec``."""
        if spec not in self.index:
            if self.binary is None:
                raise BuildError(f"no compiler for kernel {spec.factory}")
            cubin = self.binary(spec)
            if cubin.code not in self.cubins:
                self.cubins.append(cubin.code)
            ref = KernelRef(self.cubins.index(cubin.code), cubin.entry)
            if ref not in self.kernels:
                self.kernels.append(ref)
            self.index[spec] = self.kernels.index(ref)
        return self.index[spec]


def _launch_step(
    assembler: _Assembler, item: Bound, index: int, launch: Launch, binaries: _Binaries
) -> LaunchStep:
    # Its binary may read what it writes.
    coherent = index in assembler.layout.overwrites
    return LaunchStep(
        kernel=binaries.kernel(replace(launch.kernel, coherent=coherent)),
        grid=launch.grid,
        block=launch.block,
        args=tuple(_argument(assembler, item, index, arg) for arg in launch.args),
        shared=launch.shared,
        cluster=launch.cluster,
        layer=index,
        read_only=tuple(slot for slot, arg in enumerate(launch.args) if _reads(arg)),
    )


def _reads(arg: Arg) -> bool:
    """Whether a kernel only reads through ``arg``."""
    return isinstance(arg.of if isinstance(arg, TensorMap) else arg, In)


def _argument(assembler: _Assembler, item: Bound, index: int, arg: Arg) -> StepArg:
    if isinstance(arg, Scalar):
        return ScalarArg(arg.value, arg.ctype)
    if isinstance(arg, Null):
        return BufferRef("null")
    if isinstance(arg, TensorMap):
        ref = _argument(assembler, item, index, arg.of)
        assert isinstance(ref, BufferRef)
        return TensorMapArg(
            replace(ref, nbytes=arg.nbytes), arg.dtype, arg.dims, arg.strides, arg.box, arg.steps,
            arg.lower, arg.upper, arg.swizzle,
        )  # fmt: skip
    if isinstance(arg, In):
        place = item.task.inputs[arg.slot]
        if not item.task.problem.constants[arg.slot]:
            return assembler.ref(item, place, arg.offset)
        offset, packed = assembler.constants.place(item, arg.slot)
        nbytes = place.spec.nbytes if packed is None else packed.nbytes
        return BufferRef("weights", offset + arg.offset, nbytes - arg.offset)
    if isinstance(arg, Out):
        return assembler.ref(item, item.task.outputs[arg.slot], arg.offset)
    return assembler.work(index, arg.offset)


def _host_step(assembler: _Assembler, item: Bound, index: int) -> HostStep:
    task = item.task
    inputs: list[HostTensor] = []
    for slot, place in enumerate(task.inputs):
        if not task.problem.constants[slot]:
            inputs.append(_host_tensor(assembler.ref(item, place), place.spec))
            continue
        offset, packed = assembler.constants.place(item, slot)
        if packed is None:
            ref = BufferRef("weights", offset, place.spec.nbytes)
            inputs.append(_host_tensor(ref, place.spec))
        else:
            spec = TensorSpec.dense(packed.shape, dtype_from_numpy(packed.dtype))
            inputs.append(_host_tensor(BufferRef("weights", offset, packed.nbytes), spec))
    assert isinstance(item.variant, HostVariant)
    return HostStep(
        variant=item.variant.name,
        problem=task.problem.to_data(),
        config=item.config,
        inputs=tuple(inputs),
        outputs=tuple(_host_tensor(assembler.ref(item, p), p.spec) for p in task.outputs),
        workspace=assembler.work(index),
        layer=index,
    )


def _host_tensor(ref: BufferRef, spec: TensorSpec) -> HostTensor:
    return HostTensor(ref, spec.dtype.name, spec.shape, spec.strides)
