"""The CPU executor: host kernels over one arena, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import InputError, PlanTargetError
from nrt.plan import BufferRef, CopyStep, HostStep, HostTensor, Plan, SetStep
from nrt.runtime.arrays import Array, aligned_bytes, host_array, logical_view

__all__ = ["HostBind", "HostCall", "HostProgram", "HostRunner"]

HostCall = Callable[[Sequence[Array], Sequence[Array], Array], None]
"""``call(inputs, outputs, workspace)``."""

HostBind = Callable[[str, Any, Any], HostCall]
"""``bind(variant, problem, config)``; `nrt.cpu_kernels.bind` is one."""


class HostProgram:
    """A CPU plan with its kernels bound and its weights in place; shared between threads.

    Raises:
        PlanTargetError: no ``host_bind``.
        PlanError: ``host_bind`` refuses a step's data.
    """

    def __init__(self, plan: Plan, host_bind: HostBind | None) -> None:
        if host_bind is None:
            raise PlanTargetError(
                f"plan {plan.name!r} is for the CPU and needs host kernels: load it with "
                "nrt.load(path), or pass host_bind=nrt.cpu_kernels.bind"
            )
        self.plan = plan
        # Copied once: the blob is neither aligned to a cache line nor writable, and Numba compiles
        # a second version of a kernel for read-only arrays.
        self.weights = aligned_bytes(len(plan.weights))
        self.weights[:] = np.frombuffer(plan.weights, np.uint8)
        bound: dict[str, HostCall] = {}
        self.calls: list[HostCall] = []
        for step in plan.steps:
            if isinstance(step, HostStep):
                key = repr((step.variant, step.problem, step.config))
                if key not in bound:
                    bound[key] = host_bind(step.variant, step.problem, step.config)
                self.calls.append(bound[key])
            elif isinstance(step, SetStep):
                self.calls.append(_filler(step.value))
            else:
                self.calls.append(_copy)

    def runner(self) -> HostRunner:
        """Memory to run in."""
        return HostRunner(self)


def _copy(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
    del workspace
    outputs[0][...] = inputs[0]


def _filler(value: int) -> HostCall:
    def fill(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        del inputs, workspace
        outputs[0].fill(value)

    return fill


def _bytes(ref: BufferRef) -> HostTensor:
    return HostTensor(ref, "uint8", (ref.nbytes,), (1,))


class HostRunner:
    """One execution of a `HostProgram` at a time: an arena and the views of every step.

    Views of the arena and the weights are made once; those of inputs and outputs, whose addresses
    change, at each run.
    """

    def __init__(self, program: HostProgram) -> None:
        plan = program.plan
        self._plan = plan
        self._spaces: dict[str, Array] = {
            "arena": aligned_bytes(plan.arena_bytes),
            "weights": program.weights,
            "null": np.empty(0, np.uint8),
        }
        self._late: list[tuple[list[Array | None], int, HostTensor]] = []
        self._ops: list[tuple[HostCall, list[Any], list[Any], Array]] = []
        for step, call in zip(plan.steps, program.calls, strict=True):
            if isinstance(step, HostStep):
                inputs, outputs, scratch = step.inputs, step.outputs, step.workspace
            elif isinstance(step, CopyStep):
                inputs, outputs, scratch = (_bytes(step.src),), (_bytes(step.dst),), _NO_BYTES
            else:
                assert isinstance(step, SetStep)
                inputs, outputs, scratch = (), (_bytes(step.dst),), _NO_BYTES
            self._ops.append(
                (call, self._views(inputs), self._views(outputs), self._view(_bytes(scratch)))
            )
        self._bound: list[Array | None] = [None] * len(plan.inputs)
        self._results: list[Array] | None = None

    def _views(self, tensors: Sequence[HostTensor]) -> list[Array | None]:
        views: list[Array | None] = []
        for position, tensor in enumerate(tensors):
            if tensor.ref.space in ("input", "output"):
                self._late.append((views, position, tensor))
                views.append(None)
            else:
                views.append(self._view(tensor))
        return views

    def _view(self, tensor: HostTensor, base: Array | None = None) -> Array:
        dtype = dtype_from_name(tensor.dtype).numpy
        block = self._spaces[tensor.ref.space] if base is None else base
        steps = tuple(s * dtype.itemsize for s in tensor.strides)
        return np.ndarray(tensor.shape, dtype, block, tensor.ref.offset, steps)

    def run(self, values: Sequence[Any]) -> list[Array]:
        """Outputs for these inputs, in the plan's order; fresh arrays."""
        arrays = [host_array(s, v) for s, v in zip(self._plan.inputs, values, strict=True)]
        # A kernel compiled for writable, aligned arrays must not meet another kind.
        ready = [a if a.flags.writeable and a.flags.aligned else a.copy() for a in arrays]
        return self._execute(ready)

    def set_input(self, index: int, value: Any) -> None:
        """Bind a copy of ``value``."""
        self._bound[index] = host_array(self._plan.inputs[index], value).copy()

    def enqueue(self, stream: Any = None) -> list[Array]:
        """Run on what is bound; done when this returns.

        Raises:
            InputError: an input was never bound, or a stream was passed.
        """
        if stream is not None:
            raise InputError("a CPU plan runs on no stream; call enqueue() without one")
        missing = [s.name for s, a in zip(self._plan.inputs, self._bound, strict=True) if a is None]
        if missing:
            raise InputError(f"inputs {missing} are not bound; call set_input for each first")
        self._results = self._execute([a for a in self._bound if a is not None])
        return self._results

    @property
    def results(self) -> list[Array] | None:
        """Outputs of the last `enqueue`."""
        return self._results

    def _execute(self, inputs: list[Array], seconds: list[float] | None = None) -> list[Array]:
        bases = {
            "input": [a.reshape(-1).view(np.uint8) for a in inputs],
            "output": [aligned_bytes(spec.nbytes) for spec in self._plan.outputs],
        }
        for views, position, tensor in self._late:
            views[position] = self._view(tensor, bases[tensor.ref.space][tensor.ref.index])
        try:
            if seconds is None:
                for call, sources, targets, scratch in self._ops:
                    call(sources, targets, scratch)
            else:
                for call, sources, targets, scratch in self._ops:
                    start = time.perf_counter()
                    call(sources, targets, scratch)
                    seconds.append(time.perf_counter() - start)
        finally:
            for views, position, _ in self._late:
                views[position] = None  # the caller's arrays are not ours to keep alive
        return [
            logical_view(s, b) for s, b in zip(self._plan.outputs, bases["output"], strict=True)
        ]

    def step_seconds(self, inputs: Sequence[Any], repeats: int) -> list[list[float]]:
        """Host seconds of each step, in each of ``repeats`` runs."""
        arrays = [host_array(s, v).copy() for s, v in zip(self._plan.inputs, inputs, strict=True)]
        rows: list[list[float]] = []
        for _ in range(repeats):
            rows.append([])
            self._execute(arrays, rows[-1])
        return [list(samples) for samples in zip(*rows, strict=True)]


_NO_BYTES = BufferRef("null")
