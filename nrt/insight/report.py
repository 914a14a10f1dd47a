"""A plan as a report: plain data with one entry per launch.

The dictionary is the schema of ``nrt inspect --json``; keys are added, never renamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nrt.plan import CopyStep, HostStep, IoSpec, LaunchStep, Plan, SetStep

if TYPE_CHECKING:
    from nrt.tuner import Choice

__all__ = ["WorkStep", "launch_entries", "plan_report"]

WorkStep = LaunchStep | CopyStep | SetStep | HostStep

_KINDS: dict[type[Any], str] = {
    LaunchStep: "kernel",
    HostStep: "host",
    CopyStep: "copy",
    SetStep: "set",
}


def plan_report(plan: Plan, choices: Mapping[str, Choice] | None = None) -> dict[str, Any]:
    """Everything that ``nrt inspect`` shows.

    Args:
        plan: what was built.
        choices: layer -> what it was chosen from; each layer then has the key ``candidates``.
    """
    layers = launch_entries(plan)
    if choices is not None:
        for entry in layers:
            entry["candidates"] = [asdict(c) for c in choices[entry["name"]].candidates]
    return {
        "name": plan.name,
        "target": {
            "kind": plan.target.kind,
            "arch": plan.target.arch,
            "device": plan.target.device,
        },
        "inputs": [_io(spec) for spec in plan.inputs],
        "outputs": [_io(spec) for spec in plan.outputs],
        "ops_before": dict(plan.ops_before),
        "ops_after": dict(plan.ops_after),
        "layers": layers,
        "arena_bytes": plan.arena_bytes,
        "arena_lower_bound": plan.peak.nbytes,
        "arena_ratio": plan.arena_bytes / plan.peak.nbytes if plan.peak.nbytes else None,
        "peak": _peak(plan),
        "weights_bytes": len(plan.weights),
        "streams": plan.streams,
        "tolerance": plan.tolerance,
        "versions": dict(plan.versions),
        "notes": dict(plan.notes),
    }


def _peak(plan: Plan) -> dict[str, Any] | None:
    """Where the arena is fullest, and with what; None for an arena of nothing."""
    peak = plan.peak
    if not peak.alive:
        return None
    return {
        "layer": plan.layers[peak.layer].name,
        "index": peak.layer,
        "bytes": peak.nbytes,
        "alive": [{"name": block.name, "bytes": block.nbytes} for block in peak.alive],
    }


def launch_entries(plan: Plan) -> list[dict[str, Any]]:
    """One entry per step that does work, in order of execution.

    A layer may take several launches: ``part`` counts them from 1 to ``parts``. Time and work are
    the whole layer's and stand at its first launch (None at the others), so that sums are right.
    """
    steps = [s for s in plan.steps if isinstance(s, WorkStep)]
    parts = Counter(step.layer for step in steps)
    seen: Counter[int] = Counter()
    entries = []
    for step in steps:
        layer = plan.layers[step.layer]
        seen[step.layer] += 1
        first = seen[step.layer] == 1
        entries.append(
            {
                "name": layer.name,
                "op": layer.op,
                "origins": list(layer.origins),
                "kind": _KINDS[type(step)],
                "part": seen[step.layer],
                "parts": parts[step.layer],
                "inputs": list(layer.inputs),
                "outputs": list(layer.outputs),
                "precision": layer.precision,
                "variant": layer.variant,
                "config": layer.config,
                "seconds": layer.seconds if first else None,
                "flops": layer.flops if first else None,
                "nbytes": layer.nbytes if first else None,
                "reason": layer.reason,
                "launch": _launch(plan, step),
            }
        )
    return entries


def _launch(plan: Plan, step: WorkStep) -> dict[str, Any]:
    if isinstance(step, LaunchStep):
        return {
            "kernel": plan.kernels[step.kernel].entry,
            "grid": list(step.grid),
            "block": list(step.block),
            "cluster": list(step.cluster),
            "shared_bytes": step.shared,
            "stream": step.stream,
            "programmatic": step.programmatic,
        }
    if isinstance(step, HostStep):
        return {"kernel": step.variant, "workspace_bytes": step.workspace.nbytes}
    return {"bytes": step.dst.nbytes, "stream": step.stream}


def _io(spec: IoSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "layout": spec.layout,
    }
