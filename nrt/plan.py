"""The plan: a program of launches over one arena, as frozen dataclasses. Knows no graph and no GPU.

Everything here is plain data: `nrt.plan_check` says what makes it sound, `nrt.plan_file` writes and
reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from nrt.drawing.picture import Drawable, Picture
from nrt.dtypes import dtype_from_name

__all__ = [
    "BufferRef",
    "CopyStep",
    "ForkStep",
    "HostStep",
    "HostTensor",
    "IO_LAYOUTS",
    "IoSpec",
    "JoinStep",
    "KernelRef",
    "LaunchStep",
    "Layer",
    "LiveBlock",
    "PLAN_VERSION",
    "Peak",
    "Plan",
    "ScalarArg",
    "SetStep",
    "Step",
    "StepArg",
    "Target",
    "TensorMapArg",
]

PLAN_VERSION = 3

IO_LAYOUTS: Mapping[str, tuple[int, ...] | None] = {"row-major": None, "nhwc": (0, 2, 3, 1)}
"""Memory orders of bindings -> dimensions, outermost first; None: as they are."""


@dataclass(frozen=True)
class BufferRef:
    """A range of bytes, or evenly spaced rows of it.

    Attributes:
        space: ``arena``, ``weights``, ``input``, ``output`` or ``null``.
        offset: bytes from the start of the arena or the weights; 0-based inside an input or output.
        nbytes: length of the range.
        index: which input or output; 0 for the other spaces.
        width, pitch: of every ``pitch`` bytes of the range only the first ``width`` are touched, as
            of a slice of channels; 0, 0: all.
    """

    space: str
    offset: int = 0
    nbytes: int = 0
    index: int = 0
    width: int = 0
    pitch: int = 0


@dataclass(frozen=True)
class ScalarArg:
    """A number passed to a kernel; ``ctype`` is u32, i32, u64, i64 or f32."""

    value: int | float
    ctype: str


@dataclass(frozen=True)
class TensorMapArg:
    """A tensor map, which the runtime encodes against real addresses when a plan is loaded.

    Attributes:
        ref: the memory that the map covers.
        dtype: nrt's name.
        dims: elements, innermost first.
        strides: bytes from one element to the next in every dimension but the innermost.
        box: elements that one copy moves: per dimension (tiled), or (channels, pixels) (im2col).
        steps: elements that a copy advances by, per dimension.
        lower, upper: corners (w, h) of the box of pixels, for im2col; empty for tiled maps.
        swizzle: bytes of the shared-memory swizzle: 0, 32, 64 or 128.
    """

    ref: BufferRef
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    swizzle: int = 128


StepArg = BufferRef | ScalarArg | TensorMapArg


@dataclass(frozen=True)
class KernelRef:
    """An entry point of a cubin.

    Attributes:
        cubin: index into `Plan.cubins`.
        entry: name of the function.
    """

    cubin: int
    entry: str


@dataclass(frozen=True)
class LaunchStep:
    """One kernel launch.

    Attributes:
        kernel: index into `Plan.kernels`.
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        args: one per parameter.
        shared: bytes of dynamic shared memory.
        cluster: blocks per cluster.
        layer: index into `Plan.layers`.
        stream: where.
        programmatic: it may start before the launch before it, on its stream, has ended
            (programmatic dependent launch): the kernel itself waits before it touches memory that
            others write or read.
        read_only: the arguments, by position, through which the kernel only reads; through any
            other buffer of the arena or an output it may write.
    """

    kernel: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[StepArg, ...]
    shared: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    layer: int = 0
    stream: int = 0
    programmatic: bool = False
    read_only: tuple[int, ...] = ()


@dataclass(frozen=True)
class CopyStep:
    """Copy ``src.nbytes`` bytes."""

    src: BufferRef
    dst: BufferRef
    layer: int = 0
    stream: int = 0


@dataclass(frozen=True)
class SetStep:
    """Fill a range with a byte."""

    dst: BufferRef
    value: int = 0
    layer: int = 0
    stream: int = 0


@dataclass(frozen=True)
class HostTensor:
    """An array handed to a host kernel: a view of a byte range.

    Attributes:
        ref: the bytes.
        dtype: nrt's name.
        shape: shape of the view.
        strides: in elements.
    """

    ref: BufferRef
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class HostStep:
    """One call of a host kernel.

    Attributes:
        variant: name in nrt.cpu_kernels' table; never an import path.
        problem: `Problem.to_data()`: lists, dicts, strings and numbers.
        config: the variant's configuration: a tuple (nested, if at all) of strings and numbers.
        inputs, outputs: the arrays.
        workspace: scratch bytes.
    """

    variant: str
    problem: Any
    config: Any
    inputs: tuple[HostTensor, ...]
    outputs: tuple[HostTensor, ...]
    workspace: BufferRef
    layer: int = 0


@dataclass(frozen=True)
class ForkStep:
    """Streams ``targets`` wait for what ``stream`` holds so far.

    Stream 0 is the only one that a plan starts with; any other must be forked before its first step
    and joined after its last.
    """

    stream: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class JoinStep:
    """``stream`` waits for what the streams ``sources`` hold so far."""

    stream: int
    sources: tuple[int, ...]


Step = LaunchStep | CopyStep | SetStep | HostStep | ForkStep | JoinStep


@dataclass(frozen=True)
class IoSpec:
    """An input or output of the plan: dense.

    Attributes:
        name: the model's.
        shape: logical shape; an image is [N, C, H, W] in either layout.
        dtype: nrt's name.
        layout: memory order of the bound bytes: ``row-major`` or ``nhwc``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "row-major"

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * dtype_from_name(self.dtype).itemsize

    @property
    def order(self) -> tuple[int, ...]:
        """The dimensions in memory order, outermost first."""
        return IO_LAYOUTS[self.layout] or tuple(range(len(self.shape)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the bound memory, in elements."""
        strides = [0] * len(self.shape)
        step = 1
        for dim in reversed(self.order):
            strides[dim] = step
            step *= self.shape[dim]
        return tuple(strides)

    def __str__(self) -> str:
        tag = "" if self.layout == "row-major" else f"{{{self.layout}}}"
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{tag}"


@dataclass(frozen=True)
class Layer:
    """One bound node: what reports show per launch.

    Attributes:
        name: the node.
        op: op name, with the text of its programs where it has some.
        origins: the model's own nodes.
        inputs, outputs: shapes and dtypes as text, ``fp16[1,64,56,56]{nhwc}``.
        precision: dtype it computes in.
        variant: the kernel variant's name.
        config: its configuration as text.
        seconds: time measured by the tuner; None when the heuristic chose.
        flops, nbytes: work, for the roofline.
        reason: why this variant and precision.
        reads: the layers, by index, that wrote what this one reads.
    """

    name: str
    op: str
    origins: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str
    variant: str
    config: str
    seconds: float | None
    flops: int
    nbytes: int
    reason: str = ""
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class LiveBlock:
    """A block of the arena: the value or the layer whose it is, and its length in bytes."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Peak:
    """The most that must lie in the arena at once.

    Attributes:
        nbytes: sum of what is alive then, rounded up to alignment: no arena can be smaller.
        layer: the layer at which it is.
        alive: the blocks, the largest first.
    """

    nbytes: int = 0
    layer: int = 0
    alive: tuple[LiveBlock, ...] = ()


@dataclass(frozen=True)
class Target:
    """What the plan was built for.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        arch: ``sm_90a``; the host's machine name for a CPU plan.
        device: the product's name; empty when built without it.
    """

    kind: str
    arch: str
    device: str = ""


@dataclass(frozen=True)
class Plan(Drawable):
    """A compiled network; a notebook shows it as a table of layers and a picture.

    Attributes:
        name: the model's.
        target: what it was built for.
        inputs, outputs: bindings, in order.
        arena_bytes: scratch memory of one execution context.
        streams: number of streams the steps name.
        peak: where the arena is fullest.
        weights: constants, one blob; offsets are 256-byte aligned.
        cubins: binaries.
        kernels: entry points.
        steps: the program.
        layers: one per bound node, in the graph's order; on several streams steps have another.
        ops_before, ops_after: op name -> count in the graph as imported and as optimized.
        tolerance: relative error against the fp32 reference that it was verified at; None if it
            was not.
        versions: library name -> version at build time.
        notes: decision about the whole plan -> what was decided, and by which measurement.
    """

    name: str
    target: Target
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    arena_bytes: int
    weights: bytes
    cubins: tuple[bytes, ...]
    kernels: tuple[KernelRef, ...]
    steps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    streams: int = 1
    peak: Peak = Peak()
    ops_before: Mapping[str, int] = field(default_factory=dict)
    ops_after: Mapping[str, int] = field(default_factory=dict)
    tolerance: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def picture(self) -> Picture:
        """One box per layer, arrows from the layers that it reads."""
        from nrt.plan_view import plan_picture

        return plan_picture(self)

    def _repr_html_(self) -> str:
        from nrt.plan_view import plan_html

        return plan_html(self)
