"""A plan as a picture and as an HTML table, from what its layers say.

`nrt.plan` loads this when a plan is to be shown; it sees the plan's attributes and no more, so that
the dependency stays one way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nrt.drawing import Arrow, Box, Picture
from nrt.drawing.svg import in_scroll_box
from nrt.drawing.table import html_table

if TYPE_CHECKING:
    from nrt.plan import BufferRef, Layer, Plan

__all__ = ["layer_kind", "op_name", "plan_html", "plan_picture", "step_refs"]

_MEMORY = frozenset(
    {
        "Cast", "Concat", "Dropout", "Expand", "Gather", "GatherElements", "Identity", "Pad",
        "Reformat", "Reshape", "Slice", "Split", "Transpose",
    }
)  # fmt: skip
_POINTWISE = frozenset(
    {
        "Abs", "Add", "And", "Ceil", "Celu", "Clip", "Cos", "Dequantize", "Div", "Elu", "Equal",
        "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
        "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mul",
        "MultiPointwise", "Neg", "Not", "Or", "PRelu", "Pointwise", "Pow", "Quantize", "Reciprocal",
        "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub",
        "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
    }
)  # fmt: skip
_OP = re.compile(r"\w+")


def op_name(op: str) -> str:
    """``Conv`` of ``Conv[relu(x + b)]``."""
    match = _OP.match(op)
    return match.group() if match else op


def layer_kind(op: str) -> str:
    """What a layer does, for its color: ``memory``, ``compute`` or ``pointwise``."""
    name = op_name(op)
    if name in _MEMORY:
        return "memory"
    return "pointwise" if name in _POINTWISE else "compute"


def step_refs(step: Any) -> Iterator[BufferRef]:
    """The byte ranges that a step names, in its own order."""
    for name in ("src", "inputs", "args", "dst", "outputs", "workspace"):
        found = getattr(step, name, ())
        for item in found if isinstance(found, tuple) else (found,):
            ref: Any = getattr(item, "ref", item)
            if getattr(ref, "space", "null") != "null":
                yield ref


def plan_picture(plan: Plan) -> Picture:
    """One box per layer, input and output; an arrow where one reads what the other wrote."""
    boxes = [
        Box(f"input:{i}", "input", (s.name, str(s)), "io", f"input {s.name}\n{s}")
        for i, s in enumerate(plan.inputs)
    ]
    boxes += [_box(index, layer) for index, layer in enumerate(plan.layers)]
    boxes += [
        Box(f"output:{i}", "output", (s.name, str(s)), "io", f"output {s.name}\n{s}")
        for i, s in enumerate(plan.outputs)
    ]
    arrows = []
    readers: dict[tuple[int, int], None] = {}
    writers: dict[int, int] = {}
    for step in plan.steps:
        layer = getattr(step, "layer", None)
        if layer is None:
            continue
        for ref in step_refs(step):
            if ref.space == "input":
                readers[ref.index, layer] = None
            elif ref.space == "output":
                # Whatever is read was written before.
                writers.setdefault(ref.index, layer)
    arrows += [Arrow(f"input:{i}", f"layer:{layer}", f"input:{i}") for i, layer in readers]
    arrows += [
        Arrow(f"layer:{source}", f"layer:{index}", f"layer:{source}", ", ".join(of.outputs))
        for index, layer in enumerate(plan.layers)
        for source in layer.reads
        for of in (plan.layers[source],)
    ]
    arrows += [
        Arrow(f"layer:{layer}", f"output:{i}", f"layer:{layer}") for i, layer in writers.items()
    ]
    return Picture(plan.name, tuple(boxes), tuple(arrows))


def plan_html(plan: Plan) -> str:
    """A table of the layers, and the picture."""
    launches = [0] * len(plan.layers)
    for step in plan.steps:
        layer = getattr(step, "layer", None)
        if layer is not None:
            launches[layer] += 1
    rows = [
        (
            index,
            layer.name,
            layer.op,
            ", ".join(layer.outputs),
            layer.precision,
            layer.variant,
            layer.config,
            launches[index],
            _time(layer),
            ", ".join(layer.origins),
        )
        for index, layer in enumerate(plan.layers)
    ]
    columns = ("#", "layer", "op", "output", "precision", "kernel", "configuration", "launches")
    table = html_table(
        (*columns, "tuned", "origins"),
        rows,
        right=("#", "launches", "tuned"),
        caption=summary(plan),
    )
    return f"{table}{in_scroll_box(plan.to_svg())}"


def summary(plan: Plan) -> str:
    """One line: what it is, for what, how large."""
    built_for = " ".join(filter(None, (plan.target.kind, plan.target.arch, plan.target.device)))
    return (
        f"{plan.name}: built for {built_for}; {len(plan.layers)} layers, "
        f"weights {len(plan.weights) / 2**20:.1f} MiB, arena {plan.arena_bytes / 2**20:.1f} MiB"
    )


def _box(index: int, layer: Layer) -> Box:
    lines = [layer.name, *(f"→ {output}" for output in layer.outputs)]
    lines.append(" ".join(filter(None, (layer.variant, _time(layer)))))
    tooltip = [
        f"{layer.op} {layer.name}",
        *(f"in {slot}: {text}" for slot, text in enumerate(layer.inputs)),
        f"{layer.variant}({layer.config}): {layer.reason}",
        f"from {', '.join(layer.origins)}" if layer.origins else "",
    ]
    return Box(
        f"layer:{index}",
        op_name(layer.op),
        tuple(lines),
        layer_kind(layer.op),
        "\n".join(filter(None, tooltip)),
    )


def _time(layer: Layer) -> str:
    return "" if layer.seconds is None else f"{layer.seconds * 1e6:.1f} µs"
