"""What ablation and what-if say of a network: latency, launches, memory, error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.build_target import resolve
from nrt.errors import DeviceError
from nrt.insight.compare import relative_error
from nrt.insight.inputs import random_inputs
from nrt.insight.paired import Estimate
from nrt.insight.report import WorkStep
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.plan import Plan
from nrt.runtime import Engine
from nrt.runtime.context import Context

__all__ = ["Figures", "Reference", "launches_of", "open_engine", "require_device", "same_program"]

Array = np.ndarray[Any, np.dtype[Any]]

# What a plan executes; the rest are names and reports.
_PROGRAM = (
    "target", "inputs", "outputs", "arena_bytes", "weights", "cubins", "kernels", "steps",
    "streams",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One network, measured.

    Attributes:
        latency: seconds of one run: on the device, without transfers; on the CPU target, the
            host's.
        launches: kernels, host calls, copies and fills of one run.
        arena_bytes: memory for values between them.
        error: the largest ‖out − ref‖ / ‖ref‖ of an output; see `Reference`.
    """

    latency: Estimate
    launches: int
    arena_bytes: int
    error: float

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity: an error without bound is None."""
        return {
            "latency": self.latency.to_data(),
            "launches": self.launches,
            "arena_bytes": self.arena_bytes,
            "error": self.error if math.isfinite(self.error) else None,
        }


class Reference:
    """The outputs of an imported graph on fixed random inputs, computed once.

    NumPy evaluates it node by node, small floats in float32; for a model of fp32 that is the fp32
    reference. Inputs that are bound in another float type are widened from what was bound, so that
    their rounding counts for nobody.
    """

    def __init__(self, graph: Graph, plan: Plan, seed: int = 0) -> None:
        """Evaluate ``graph``.

        Args:
            graph: as imported.
            plan: any plan of it; it says how inputs are bound.
            seed: of the inputs, which are those of ``nrt compare``.
        """
        self.inputs = random_inputs(plan.inputs, seed)
        own = {
            v.name: np.ascontiguousarray(self.inputs[v.name], dtype=v.dtype.numpy)
            for v in graph.inputs
        }
        self.outputs = evaluate(graph, own)

    def error(self, context: Context) -> float:
        """The largest relative error of an output of one run; infinite where one is NaN."""
        found = context.run(self.inputs)
        return max((relative_error(found[n], ref) for n, ref in self.outputs.items()), default=0.0)


def require_device(target: str) -> None:
    """Raises DeviceError before anything is built for a device that cannot be measured here."""
    kind, device, runner = resolve(target)
    if kind == "cuda" and runner is None:
        arch = target if device is None else device.arch
        raise DeviceError(
            f"target {target!r}: no GPU of {arch} is in this machine, and what is not here cannot "
            "be measured; take target='auto', or build a plan and measure it there"
        )


def open_engine(plan: Plan) -> Engine:
    """An engine for ``plan`` on this machine.

    Raises:
        PlanTargetError: it was built for another device.
        DeviceError: it needs a GPU and there is none.
    """
    if plan.target.kind == "cpu":
        from nrt.cpu_kernels import bind

        return Engine(plan, bind)
    return Engine(plan)


def launches_of(plan: Plan) -> int:
    """Steps that do work: forks and joins of streams do none."""
    return sum(isinstance(step, WorkStep) for step in plan.steps)


def same_program(one: Plan, other: Plan) -> bool:
    """Whether two plans execute the same, byte for byte."""
    return all(getattr(one, name) == getattr(other, name) for name in _PROGRAM)
