"""The engine: a plan, ready to run."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from nrt.plan import IoSpec, Plan
from nrt.plan_check import check_plan
from nrt.plan_file import read_plan, write_plan
from nrt.runtime.arrays import pair
from nrt.runtime.context import Context
from nrt.runtime.cuda import CudaDevice, open_device
from nrt.runtime.gpu import CudaProgram
from nrt.runtime.host import HostBind, HostProgram

__all__ = ["Engine", "load"]


class Engine:
    """A plan with its weights and kernels where they run; immutable, shared between threads.

    ``engine(x)`` and `run` use one context of the engine's own, one call after the other. For runs
    that overlap, give each thread its own context.

    Attributes:
        plan: what it executes.
        inputs, outputs: the plan's bindings, in order.
    """

    def __init__(
        self,
        plan: Plan,
        host_bind: HostBind | None = None,
        device: int | CudaDevice = 0,
        *,
        load: bool = True,
    ) -> None:
        """Check ``plan``, load its kernels and move its weights.

        Args:
            plan: from `nrt.compile` or `nrt.plan_file.read_plan`.
            host_bind: for a CPU plan, ``bind(variant, problem, config)``: `nrt.cpu_kernels.bind`.
            device: for a CUDA plan, the GPU's ordinal or an open device.
            load: False leaves the device alone until the first run or context, so that a plan for
                another device can be saved; the errors of that device then come there.

        Raises:
            PlanError: the plan is not sound.
            PlanTargetError: it is for another device, or ``host_bind`` is missing.
            DeviceError: there is no such GPU, or its memory is full.
        """
        check_plan(plan)
        self.plan = plan
        self.inputs: tuple[IoSpec, ...] = plan.inputs
        self.outputs: tuple[IoSpec, ...] = plan.outputs
        self._host_bind = host_bind
        self._device = device
        self._program: HostProgram | CudaProgram | None = None
        self._load_lock = threading.Lock()
        self._lock = threading.Lock()
        self._context: Context | None = None
        if load:
            self._loaded()

    def _loaded(self) -> HostProgram | CudaProgram:
        """The program on its device; loaded by the first caller."""
        with self._load_lock:
            if self._program is None:
                self._program = self._load()
            return self._program

    def _load(self) -> HostProgram | CudaProgram:
        if self.plan.target.kind != "cuda":
            return HostProgram(self.plan, self._host_bind)
        device = self._device
        opened = device if isinstance(device, CudaDevice) else open_device(device)
        return CudaProgram(self.plan, opened)

    def create_context(self) -> Context:
        """A new execution context; allocates the plan's arena.

        Raises:
            DeviceError: out of memory, or (if not loaded yet) no GPU.
            PlanTargetError: not loaded yet, and for another device.
        """
        return Context(self.plan, self._loaded())

    def __call__(self, *inputs: Any, device: bool = False) -> Any:
        """Run on inputs in the plan's order; the output, or a tuple of them if there are several.

        Raises:
            InputError: another number of inputs, or a wrong shape or dtype.
            DeviceError: a CUDA call failed.
        """
        named = pair(self.inputs, inputs)
        outputs = self.run(named, device=device)
        values = tuple(outputs[spec.name] for spec in self.outputs)
        return values[0] if len(values) == 1 else values

    def run(self, inputs: Mapping[str, Any], *, device: bool = False) -> dict[str, Any]:
        """Run on inputs by name; see `Context.run`. Any number of threads may call it.

        Raises:
            InputError: a name, shape or dtype is wrong.
            DeviceError: a CUDA call failed.
        """
        with self._lock:
            if self._context is None:
                self._context = self.create_context()
            return self._context.run(inputs, device=device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to ``path``; `nrt.load` reads it.

        Raises:
            PlanError: the file cannot be written.
        """
        write_plan(self.plan, path)

    def __repr__(self) -> str:
        target = self.plan.target
        ins = ", ".join(f"{s.name}: {s}" for s in self.inputs)
        outs = ", ".join(f"{s.name}: {s}" for s in self.outputs)
        return f"Engine({self.plan.name!r}, {target.kind} {target.arch}, {ins} -> {outs})"


def load(
    path: str | os.PathLike[str],
    host_bind: HostBind | None = None,
    device: int | CudaDevice = 0,
) -> Engine:
    """Read a plan file and make it ready to run; arguments as for `Engine`.

    Raises:
        PlanError: the file is truncated, edited, or from another version.
        PlanTargetError: it was built for another device, or needs ``host_bind``.
        DeviceError: it needs a GPU and there is none.
    """
    return Engine(read_plan(path), host_bind, device)
