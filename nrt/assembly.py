"""Tasks and their chosen kernels to a plan: arena offsets, weights, arguments, steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from nrt.dtypes import dtype_from_numpy
from nrt.errors import BuildError
from nrt.ir.op import Array
from nrt.ir.text import programs_text
from nrt.lowering import Buffer, Lowered, Place, Task
from nrt.memory import Lifetime, plan_arena
from nrt.plan import (
    BufferRef,
    HostStep,
    HostTensor,
    IoSpec,
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
from nrt.work import flops_of, precision_of

__all__ = ["Bound", "assemble", "memory_image", "overlapped"]

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
    array = np.ascontiguousarray(array, spec.dtype.numpy).reshape(spec.shape)
    if spec.is_row_major:
        return array.reshape(-1).view(np.uint8)
    flat = np.zeros(spec.span, spec.dtype.numpy)
    view = np.lib.stride_tricks.as_strided(
        flat, spec.shape, tuple(s * spec.dtype.itemsize for s in spec.strides)
    )
    view[...] = array
    return flat.view(np.uint8)


@dataclass
class _Weights:
    """The constants' blob; equal bytes are stored once."""

    parts: list[bytes] = field(default_factory=list)
    nbytes: int = 0
    seen: dict[bytes, int] = field(default_factory=dict)

    def add(self, data: Array) -> int:
        """Offset of ``data`` in the blob."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in self.seen:
            padding = -self.nbytes % _WEIGHT_ALIGN
            self.parts += [bytes(padding), raw]
            self.seen[digest] = self.nbytes + padding
            self.nbytes += padding + len(raw)
        return self.seen[digest]


class _Assembler:
    """Turns places into references once the arena is laid out."""

    def __init__(self, bound: Sequence[Bound], workspaces: Sequence[int]) -> None:
        self.weights = _Weights()
        self.kept: dict[tuple[Any, ...], tuple[int, Array | None]] = {}
        spans: dict[Buffer, list[int]] = {}
        for step, item in enumerate(bound):
            for place in (*item.task.inputs, *item.task.outputs):
                if place.buffer.space == "arena":
                    span = spans.setdefault(place.buffer, [step, step])
                    span[1] = step
        lifetimes = [Lifetime(b.nbytes, first, last) for b, (first, last) in spans.items()]
        scratch = {s: n for s, n in enumerate(workspaces) if n}
        lifetimes += [Lifetime(n, s, s) for s, n in scratch.items()]
        self.arena = plan_arena(lifetimes)
        offsets = list(self.arena.offsets)
        self.offsets = dict(zip(spans, offsets, strict=False))
        self.scratch = dict(zip(scratch, offsets[len(spans) :], strict=True))

    def constant(self, item: Bound, slot: int) -> tuple[int, Array | None]:
        """Weights offset of constant input ``slot``; its packed array, None if kept as is."""
        place = item.task.inputs[slot]
        source = place.buffer.array
        if source is None:
            raise BuildError(f"{item.task.name}: input {slot} is marked constant but holds no data")
        key = (id(source), item.task.problem, item.variant.name, item.config, slot)
        if key not in self.kept:
            array = np.asarray(source, place.spec.dtype.numpy, order="C")
            packed = item.variant.pack(item.task.problem, item.config, slot, array)
            if packed is array:
                self.kept[key] = (self.weights.add(memory_image(array, place.spec)), None)
            else:
                self.kept[key] = (self.weights.add(packed), packed)
        return self.kept[key]

    def ref(self, item: Bound, place: Place, extra: int = 0) -> BufferRef:
        """The bytes of a place that is no constant, from its first to its last element."""
        offset = place.offset + extra
        nbytes = max(place.spec.nbytes - extra, 0)
        if place.buffer.space == "arena":
            return BufferRef("arena", self.offsets[place.buffer] + offset, nbytes)
        if place.buffer.space == "constant":
            raise BuildError(f"{item.task.name}: a constant cannot be written")
        return BufferRef(place.buffer.space, offset, nbytes, place.buffer.index)

    @property
    def blob(self) -> bytes:
        return b"".join(self.weights.parts)


def _layer(item: Bound) -> Layer:
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
    assembler = _Assembler(bound, workspaces)
    steps: list[Step] = []
    binaries = _Binaries(binary)
    for index, item in enumerate(bound):
        if device is None:
            steps.append(_host_step(assembler, item, index))
        else:
            steps += [
                _launch_step(assembler, item, index, launch, binaries)
                for launch in emissions[index].launches
            ]
    overlap = programmatic and device is not None and device.cc >= MINIMUM_CC
    return Plan(
        name=name,
        target=target,
        inputs=tuple(_io_spec(n, s) for n, s in lowered.inputs),
        outputs=tuple(_io_spec(n, s) for n, s in lowered.outputs),
        arena_bytes=assembler.arena.nbytes,
        weights=assembler.blob,
        cubins=tuple(binaries.cubins),
        kernels=tuple(binaries.kernels),
        steps=overlapped(steps, overlap),
        layers=tuple(_layer(item) for item in bound),
        ops_before=ops_before,
        ops_after=ops_after,
        versions=versions,
    )


def overlapped(steps: Sequence[Step], on: bool) -> tuple[Step, ...]:
    """``steps`` whose launches are programmatic, if ``on``, behind a launch on the same stream.

    Any other step between two launches (a copy, a fill, a fork, a join) orders them by the stream;
    `nrt.cuda_kernels.dependent_launch` says why a kernel's own wait is enough where none is.
    """
    found: list[Step] = []
    for step in steps:
        before = found[-1] if found else None
        if isinstance(step, LaunchStep):
            behind = isinstance(before, LaunchStep) and before.stream == step.stream
            found.append(replace(step, programmatic=on and behind))
        else:
            found.append(step)
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
    return LaunchStep(
        kernel=binaries.kernel(launch.kernel),
        grid=launch.grid,
        block=launch.block,
        args=tuple(_argument(assembler, item, index, arg) for arg in launch.args),
        shared=launch.shared,
        cluster=launch.cluster,
        layer=index,
    )


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
        offset, packed = assembler.constant(item, arg.slot)
        nbytes = place.spec.nbytes if packed is None else packed.nbytes
        return BufferRef("weights", offset + arg.offset, nbytes - arg.offset)
    if isinstance(arg, Out):
        return assembler.ref(item, item.task.outputs[arg.slot], arg.offset)
    return BufferRef("arena", assembler.scratch[index] + arg.offset)


def _host_step(assembler: _Assembler, item: Bound, index: int) -> HostStep:
    task = item.task
    inputs: list[HostTensor] = []
    for slot, place in enumerate(task.inputs):
        if not task.problem.constants[slot]:
            inputs.append(_host_tensor(assembler.ref(item, place), place.spec))
            continue
        offset, packed = assembler.constant(item, slot)
        if packed is None:
            ref = BufferRef("weights", offset, place.spec.nbytes)
            inputs.append(_host_tensor(ref, place.spec))
        else:
            spec = TensorSpec.dense(packed.shape, dtype_from_numpy(packed.dtype))
            inputs.append(_host_tensor(BufferRef("weights", offset, packed.nbytes), spec))
    scratch = assembler.scratch.get(index)
    assert isinstance(item.variant, HostVariant)
    nbytes = item.variant.workspace(task.problem, item.config)
    return HostStep(
        variant=item.variant.name,
        problem=task.problem.to_data(),
        config=item.config,
        inputs=tuple(inputs),
        outputs=tuple(_host_tensor(assembler.ref(item, p), p.spec) for p in task.outputs),
        workspace=BufferRef("null") if scratch is None else BufferRef("arena", scratch, nbytes),
        layer=index,
    )


def _host_tensor(ref: BufferRef, spec: TensorSpec) -> HostTensor:
    return HostTensor(ref, spec.dtype.name, spec.shape, spec.strides)
