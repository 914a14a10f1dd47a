"""What makes a plan sound: every reference inside its memory, every index in range.

`nrt.plan_file` checks what it reads and what it writes, and the runtime what it is handed: a plan
that passes cannot reach memory outside its own buffers through a step's operands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isnan, prod

from nrt.dtypes import dtype_from_name
from nrt.errors import PlanError, ShapeError
from nrt.plan import (
    IO_LAYOUTS,
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    HostTensor,
    IoSpec,
    JoinStep,
    LaunchStep,
    Plan,
    ScalarArg,
    Step,
    TensorMapArg,
)
from nrt.plan_streams import WAY_OUT, check_programmatic, check_streams, require

__all__ = ["check_plan"]

_ELF = b"\x7fELF"
_ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
# CUDA programming guide, table of technical specifications; the same for sm_75 to sm_120.
_GRID = (2**31 - 1, 65535, 65535)
_BLOCK = (1024, 1024, 64)
_THREADS = 1024
_CLUSTER = 16
_SHARED = 228 * 1024
_ARGUMENT_BYTES = 4096
_SCALARS = {
    "u32": (0, 2**32 - 1),
    "i32": (-(2**31), 2**31 - 1),
    "u64": (0, 2**64 - 1),
    "i64": (-(2**63), 2**63 - 1),
}
_F32_MAX = 3.4028234663852886e38
_MOST = 2**48  # bytes; beyond any memory, and far from overflow in 64 bits
_STREAMS = 64


def check_plan(plan: Plan) -> None:
    """Refuse a plan that the runtime could not execute safely.

    Raises:
        PlanError: names the part, what was found and what was expected.
    """
    _Checker(plan).run()


class _Checker:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cuda = plan.target.kind == "cuda"
        self.major = 0
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.written: set[int] = set()

    def run(self) -> None:
        plan = self.plan
        require(
            plan.target.kind in ("cpu", "cuda"),
            f"target {plan.target.kind!r}, expected 'cpu' or 'cuda'",
        )
        if self.cuda:
            match = _ARCH.fullmatch(plan.target.arch)
            require(
                match is not None,
                f"target architecture {plan.target.arch!r}, expected one like 'sm_80' or 'sm_90a'",
            )
            self.major = int(match.group(1)) // 10 if match else 0
        require(0 <= plan.arena_bytes <= _MOST, f"arena of {plan.arena_bytes} bytes")
        self.sizes = {
            "arena": (plan.arena_bytes,),
            "weights": (len(plan.weights),),
            "input": self._io("input", plan.inputs),
            "output": self._io("output", plan.outputs),
            "null": (0,),
        }
        self._binaries()
        for index, step in enumerate(plan.steps):
            self._step(f"step {index}", step)
        for index, layer in enumerate(plan.layers):
            require(
                all(0 <= source < index for source in layer.reads),
                f"layer {index} reads layers {list(layer.reads)}, expected earlier ones",
            )
        check_programmatic(plan.steps, plan.target.arch, self.major)
        check_streams(plan.steps, plan.streams)
        self._peak()
        for index, spec in enumerate(plan.outputs):
            require(
                index in self.written or spec.nbytes == 0, f"no step writes output {spec.name!r}"
            )

    def _io(self, what: str, specs: Iterable[IoSpec]) -> tuple[int, ...]:
        names: set[str] = set()
        sizes = []
        for spec in specs:
            require(bool(spec.name), f"an {what} without a name")
            require(spec.name not in names, f"two {what}s are called {spec.name!r}")
            names.add(spec.name)
            where = f"{what} {spec.name!r}"
            self._shape(where, spec.shape, spec.dtype)
            require(
                spec.layout in IO_LAYOUTS,
                f"{where} has layout {spec.layout!r}, expected one of {', '.join(IO_LAYOUTS)}",
            )
            require(
                IO_LAYOUTS[spec.layout] is None or len(spec.shape) == 4,
                f"{where} has layout {spec.layout!r} and shape {list(spec.shape)}, expected 4 "
                "dimensions",
            )
            sizes.append(spec.nbytes)
        return tuple(sizes)

    def _shape(self, where: str, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of one element."""
        try:
            itemsize = dtype_from_name(dtype).itemsize
        except ShapeError as error:
            raise PlanError(f"unsound plan: {where}: {error}; {WAY_OUT}") from error
        require(len(shape) <= 32, f"{where} has {len(shape)} dimensions, expected at most 32")
        require(
            all(0 <= d <= _MOST for d in shape) and prod(shape) * itemsize <= _MOST,
            f"{where} has shape {list(shape)}",
        )
        return itemsize

    def _binaries(self) -> None:
        plan = self.plan
        if not self.cuda:
            require(
                not plan.cubins and not plan.kernels and plan.streams == 1,
                "a CPU plan with GPU kernels or more than one stream",
            )
        require(1 <= plan.streams <= _STREAMS, f"{plan.streams} streams, expected 1 to {_STREAMS}")
        for index, cubin in enumerate(plan.cubins):
            require(
                cubin[:4] == _ELF, f"cubin {index} starts with {cubin[:4]!r}, expected {_ELF!r}"
            )
        for index, kernel in enumerate(plan.kernels):
            self._index(f"kernel {index}: cubin", kernel.cubin, len(plan.cubins))
            require(bool(kernel.entry), f"kernel {index} has no entry name")

    @staticmethod
    def _index(where: str, index: int, count: int) -> None:
        require(0 <= index < count, f"{where} {index}, expected less than {count}")

    # Operands

    def _ref(self, where: str, ref: BufferRef, write: bool = False) -> None:
        sizes = self.sizes.get(ref.space)
        require(
            sizes is not None,
            f"{where} lies in space {ref.space!r}, expected one of {', '.join(self.sizes)}",
        )
        assert sizes is not None
        if ref.space == "null":
            require(ref == BufferRef("null"), f"{where} is null but has an offset or a length")
            return
        self._index(f"{where}: {ref.space}", ref.index, len(sizes))
        size = sizes[ref.index]
        require(
            ref.offset >= 0 and ref.nbytes >= 0 and ref.offset + ref.nbytes <= size,
            f"{where} covers bytes {ref.offset} to {ref.offset + ref.nbytes} of {ref.space} "
            f"{ref.index}, which has {size}",
        )
        require(
            ref.width == ref.pitch == 0 or 0 < ref.width <= ref.pitch <= _MOST,
            f"{where} has rows of {ref.width} bytes every {ref.pitch}",
        )
        if write:
            require(
                ref.space in ("arena", "output"),
                f"{where} writes to {ref.space}, expected arena or output",
            )
            if ref.space == "output":
                self.written.add(ref.index)

    def _scalar(self, where: str, arg: ScalarArg) -> None:
        if arg.ctype == "f32":
            value = float(arg.value)
            require(
                not isnan(value) and (abs(value) <= _F32_MAX or abs(value) == float("inf")),
                f"{where} is {arg.value}, expected a float32",
            )
            return
        require(
            arg.ctype in _SCALARS,
            f"{where} has type {arg.ctype!r}, expected one of {', '.join((*_SCALARS, 'f32'))}",
        )
        low, high = _SCALARS[arg.ctype]
        require(
            isinstance(arg.value, int) and low <= arg.value <= high,
            f"{where} is {arg.value}, which is no {arg.ctype}",
        )

    def _map(self, where: str, arg: TensorMapArg) -> None:
        """The limits of cuTensorMapEncode (CUDA driver API); the map stays in its memory."""
        rank = len(arg.dims)
        im2col = bool(arg.lower)
        corners = 2 if im2col else 0
        require(
            2 <= rank <= 5
            and len(arg.strides) == rank - 1
            and len(arg.steps) == rank
            and len(arg.box) == (2 if im2col else rank)
            and len(arg.lower) == len(arg.upper) == corners
            and (rank == 4 or not im2col),
            f"{where} is a tensor map of {rank} dimensions whose fields do not fit together",
        )
        # tf32: float32 that the copy engine rounds.
        itemsize = self._shape(where, arg.dims, "fp32" if arg.dtype == "tf32" else arg.dtype)
        boxes = (256, 1024) if im2col else (256,) * rank
        require(
            arg.swizzle in (0, 32, 64, 128)
            and all(1 <= d < 2**32 for d in arg.dims)
            and all(0 < s < 2**40 and s % 16 == 0 for s in arg.strides)
            and all(1 <= b <= limit for b, limit in zip(arg.box, boxes, strict=True))
            and all(1 <= s <= 8 for s in arg.steps)
            and arg.ref.space != "null"
            and arg.ref.offset % 16 == 0,
            f"{where} is a tensor map outside the limits of the copy engine",
        )
        last = sum((d - 1) * s for d, s in zip(arg.dims[1:], arg.strides, strict=True))
        extent = last + arg.dims[0] * itemsize
        require(
            extent <= arg.ref.nbytes,
            f"{where} is a tensor map over {extent} bytes of a range of {arg.ref.nbytes}",
        )

    def _tensor(self, where: str, tensor: HostTensor, write: bool) -> None:
        self._ref(where, tensor.ref, write)
        itemsize = self._shape(where, tensor.shape, tensor.dtype)
        require(
            len(tensor.strides) == len(tensor.shape)
            and all(0 <= s <= _MOST for s in tensor.strides),
            f"{where} has strides {list(tensor.strides)} for shape {list(tensor.shape)}",
        )
        span = 0
        if 0 not in tensor.shape:
            span = 1 + sum((d - 1) * s for d, s in zip(tensor.shape, tensor.strides, strict=True))
        require(
            span * itemsize <= tensor.ref.nbytes,
            f"{where} spans {span * itemsize} bytes of a range of {tensor.ref.nbytes}",
        )
        require(
            tensor.ref.offset % itemsize == 0,
            f"{where} starts at byte {tensor.ref.offset}, expected a multiple of {itemsize}",
        )

    # Steps

    def _step(self, where: str, step: Step) -> None:
        if isinstance(step, ForkStep | JoinStep):
            return
        self._index(f"{where}: layer", step.layer, len(self.plan.layers))
        if isinstance(step, HostStep):
            self._host(where, step)
            return
        self._index(f"{where}: stream", step.stream, self.plan.streams)
        if isinstance(step, LaunchStep):
            self._launch(where, step)
        elif isinstance(step, CopyStep):
            self._ref(f"{where}: source", step.src)
            self._ref(f"{where}: destination", step.dst, write=True)
            require(
                step.src.nbytes == step.dst.nbytes and step.src.space != "null",
                f"{where} copies {step.src.nbytes} bytes of {step.src.space} "
                f"to {step.dst.nbytes} bytes",
            )
        else:
            self._ref(f"{where}: destination", step.dst, write=True)
            require(0 <= step.value <= 255, f"{where} fills with {step.value}, expected a byte")

    def _host(self, where: str, step: HostStep) -> None:
        require(not self.cuda, f"{where} calls the host in a CUDA plan")
        require(bool(step.variant), f"{where} names no variant")
        for slot, tensor in enumerate(step.inputs):
            self._tensor(f"{where}: input {slot}", tensor, write=False)
        for slot, tensor in enumerate(step.outputs):
            self._tensor(f"{where}: output {slot}", tensor, write=True)
        scratch = step.workspace
        require(
            scratch.space in ("arena", "null"),
            f"{where}: workspace lies in {scratch.space!r}, expected the arena",
        )
        self._ref(f"{where}: workspace", scratch)

    def _launch(self, where: str, step: LaunchStep) -> None:
        require(self.cuda, f"{where} launches a GPU kernel in a CPU plan")
        self._index(f"{where}: kernel", step.kernel, len(self.plan.kernels))
        require(
            all(1 <= g <= most for g, most in zip(step.grid, _GRID, strict=True)),
            f"{where} has grid {step.grid}, expected 1 to {_GRID}",
        )
        require(
            all(1 <= b <= most for b, most in zip(step.block, _BLOCK, strict=True))
            and prod(step.block) <= _THREADS,
            f"{where} has block {step.block}, expected at most {_THREADS} threads",
        )
        require(
            0 <= step.shared <= _SHARED,
            f"{where} asks for {step.shared} bytes of shared memory, expected at most {_SHARED}",
        )
        require(
            all(c >= 1 for c in step.cluster)
            and prod(step.cluster) <= _CLUSTER
            and not any(g % c for g, c in zip(step.grid, step.cluster, strict=True)),
            f"{where} has cluster {step.cluster} for grid {step.grid}, "
            f"expected a divisor of at most {_CLUSTER} blocks",
        )
        require(
            prod(step.cluster) == 1 or self.major >= 9,
            f"{where} has cluster {step.cluster}, which {self.plan.target.arch} does not know",
        )
        require(len(step.args) * 4 <= _ARGUMENT_BYTES, f"{where} passes {len(step.args)} arguments")
        for slot in step.read_only:
            self._index(f"{where}: read-only argument", slot, len(step.args))
        for slot, arg in enumerate(step.args):
            if isinstance(arg, ScalarArg):
                self._scalar(f"{where}: argument {slot}", arg)
                continue
            if isinstance(arg, TensorMapArg):
                self._map(f"{where}: argument {slot}", arg)
            ref = arg.ref if isinstance(arg, TensorMapArg) else arg
            # Through what is not said to be read only a kernel may write.
            free = ref.space in ("arena", "output") and slot not in step.read_only
            self._ref(f"{where}: argument {slot}", ref, write=free)

    def _peak(self) -> None:
        peak = self.plan.peak
        require(
            sum(block.nbytes for block in peak.alive) <= peak.nbytes <= self.plan.arena_bytes,
            f"a peak of {peak.nbytes} bytes in an arena of {self.plan.arena_bytes}, "
            f"with {len(peak.alive)} blocks",
        )
        if peak.alive:
            self._index("peak: layer", peak.layer, len(self.plan.layers))
