"""A limit on what a plan may take: weights, arena, inputs and outputs.

It is looked at three times: before tuning, since values and weights alone may not fit; by the
tuner, which then leaves out what has too large a workspace; and in the finished plan. All of it
comes before the plan's memory is allocated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nrt.errors import BuildError
from nrt.ir.ops.elementwise import Elementwise
from nrt.liveness import live_bytes, plan_layout
from nrt.lowering import Lowered, Task
from nrt.plan import Peak, Plan
from nrt.problem import Problem
from nrt.schedule import Work, serial_schedule
from nrt.sizes import human_bytes

__all__ = ["check_limit", "workspace_room"]

_SHOWN = 4
"""Blocks that a message names."""


@dataclass(frozen=True)
class _Need:
    """Bytes, and where the arena is fullest."""

    weights: int
    bindings: int
    arena: int
    peak: Peak
    layer: str

    @property
    def total(self) -> int:
        return self.weights + self.bindings + self.arena

    def refusal(self, limit: int, amount: str, ways: str) -> BuildError:
        """The error for a ``limit`` that is too low."""
        alive = [f"'{b.name}' {human_bytes(b.nbytes)}" for b in self.peak.alive[:_SHOWN]]
        if len(self.peak.alive) > _SHOWN:
            alive.append(f"{len(self.peak.alive) - _SHOWN} more")
        where = f", fullest at layer {self.layer} with {', '.join(alive)}" if alive else ""
        return BuildError(
            f"memory_limit of {human_bytes(limit)}: the plan takes {amount}"
            f"{human_bytes(self.total)}: weights {human_bytes(self.weights)}, inputs and outputs "
            f"{human_bytes(self.bindings)}, arena {human_bytes(self.arena)}{where}; a smaller "
            f"batch helps{ways}, or a limit of {self.total} bytes"
        )


def workspace_room(lowered: Lowered, limit: int) -> Mapping[Problem, int]:
    """Per problem, the bytes that ``limit`` leaves for a workspace wherever it is solved.

    Raises:
        BuildError: what is certain to be needed, whichever kernels are chosen, does not fit.
    """
    tasks = lowered.tasks
    bindings = sum(spec.nbytes for _, spec in (*lowered.inputs, *lowered.outputs))
    weights = _constant_bytes(tasks)
    schedule = serial_schedule([Work(0.0)] * len(tasks))
    least = plan_layout(tasks, [0] * len(tasks), schedule, [_reusable(t) for t in tasks])
    if weights + bindings + least.peak.nbytes > limit:
        layer = f"'{tasks[least.peak.layer].name}'" if tasks else ""
        need = _Need(weights, bindings, least.peak.nbytes, least.peak, layer)
        raise need.refusal(limit, "at least ", _narrower(tasks))
    room: dict[Problem, int] = {}
    for task, alive in zip(tasks, live_bytes(tasks), strict=True):
        left = max(limit - weights - bindings - alive, 0)
        room[task.problem] = min(left, room.get(task.problem, left))
    return room


def check_limit(plan: Plan, limit: int) -> None:
    """Refuse a plan that takes more than ``limit`` bytes.

    Raises:
        BuildError: it says how much, and what is alive where the arena is fullest.
    """
    bindings = sum(spec.nbytes for spec in (*plan.inputs, *plan.outputs))
    layer = ""
    if plan.layers:
        found = plan.layers[plan.peak.layer]
        layer = f"'{found.name}' ({found.variant})"
    need = _Need(len(plan.weights), bindings, plan.arena_bytes, plan.peak, layer)
    if need.total > limit:
        fp32 = any(entry.precision in ("fp32", "tf32") for entry in plan.layers)
        ways = ", as does precision='fp16'" if fp32 else ""
        raise need.refusal(limit, "", ways + (", as does streams=1" if plan.streams > 1 else ""))


def _reusable(task: Task) -> tuple[int, ...]:
    """Inputs over which some kernel could write."""
    op = task.problem.op
    epilogue = getattr(op, "epilogue", None)
    if isinstance(op, Elementwise):
        return tuple(range(len(task.inputs)))
    return tuple(range(2, len(task.inputs))) if epilogue is not None else ()


def _constant_bytes(tasks: list[Task]) -> int:
    """Of the weights as they are; equal ones are stored once."""
    found: dict[bytes, int] = {}
    for task in tasks:
        for place in task.inputs:
            array = place.buffer.array
            if array is not None:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()
                key = hashlib.sha256(data).digest() + repr(place.spec).encode()
                found[key] = place.spec.nbytes
    return sum(found.values())


def _narrower(tasks: list[Task]) -> str:
    wide = any(t.dtype.name == "fp32" for task in tasks for t in task.problem.outputs)
    return ", as does precision='fp16'" if wide else ""
