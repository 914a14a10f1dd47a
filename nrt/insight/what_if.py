"""what_if(): the same network with another kernel or precision for some layers, measured.

The build is repeated with the change. Problems that it already tuned are in the timing cache, so
that only what changed is compiled and timed.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nrt.builder import Build, BuildRequest, build_request
from nrt.errors import BuildError
from nrt.insight.figures import Figures, Reference, launches_of, open_engine, require_device
from nrt.insight.paired import CONFIDENCE, Estimate, Stopwatch, interleave
from nrt.kernel_pins import KernelPin
from nrt.passes.precision_rules import STORAGE
from nrt.plan import Layer, Plan
from nrt.tuner import Progress

__all__ = ["LayerEffect", "WhatIf", "what_if"]

_KEYS = ("variant", "config", "precision")
_ROUNDS, _REPEATS = 4, 5


@dataclass(frozen=True)
class LayerEffect:
    """One layer before and after.

    Attributes:
        name: the layer's.
        asked: whether it was to change; others did so by themselves, such as a new Reformat.
        before, after: the layer of either plan; None where there is none of that name.
        seconds_before, seconds_after: its steps, each timed alone; 0 where there is none.
    """

    name: str
    asked: bool
    before: Layer | None
    after: Layer | None
    seconds_before: float
    seconds_after: float

    def __str__(self) -> str:
        sides = (self.before, self.seconds_before), (self.after, self.seconds_after)
        return f"{self.name}: " + " -> ".join(_side(layer, s) for layer, s in sides)


@dataclass(frozen=True)
class WhatIf:
    """What a change does to a network.

    Attributes:
        changes: as asked for: layer -> what is other.
        layers: those that changed, those that were asked for first.
        before, after: the network, measured in turns.
        saves: seconds that the change takes off the latency, by rounds; negative where it costs.
        build: the changed network; its plan can be run or saved.
    """

    changes: Mapping[str, Mapping[str, str]]
    layers: tuple[LayerEffect, ...]
    before: Figures
    after: Figures
    saves: Estimate
    build: Build

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds."""
        return {
            "changes": {name: dict(change) for name, change in self.changes.items()},
            "confidence": CONFIDENCE,
            "before": self.before.to_data(),
            "after": self.after.to_data(),
            "saves": self.saves.to_data(),
            "layers": [
                {
                    "name": effect.name,
                    "asked": effect.asked,
                    "before": _choice(effect.before),
                    "after": _choice(effect.after),
                    "seconds_before": effect.seconds_before,
                    "seconds_after": effect.seconds_after,
                }
                for effect in self.layers
            ],
        }

    def __str__(self) -> str:
        saves, before, after = self.saves, self.before, self.after
        lines = [str(effect) for effect in self.layers] or ["no layer changed"]
        lines.append(
            f"network: {_ms(before.latency.median)} -> {_ms(after.latency.median)}, saves "
            f"{_ms(saves.median)} [{_ms(saves.low)}, {_ms(saves.high)}]"
        )
        lines.append(
            f"launches {before.launches} -> {after.launches}, arena {before.arena_bytes} -> "
            f"{after.arena_bytes} bytes, error {before.error:.2e} -> {after.error:.2e}"
        )
        return "\n".join(lines)


def what_if(
    build: Build,
    changes: Mapping[str, Mapping[str, Any]],
    *,
    duration: float = 3.0,
    warm_up: float = 0.2,
    progress: Progress | None = None,
) -> WhatIf:
    """Build again with ``changes``, and measure both networks in turns.

    ::

        what_if(build, {"conv1": {"variant": "conv_simt", "precision": "fp32"}})

    Args:
        build: of `nrt.builder.build`.
        changes: layer -> ``variant``, ``config`` and ``precision``, each if it is to be another.
            The layer is a name in the plan, the name of a node of the model, or a pattern (as of
            `fnmatch`) of such names; a change counts for every layer that it names. A variant may
            be written with its configuration, ``"conv_simt(64, 32)"``, as reports do; without one
            it gets its fastest.
        duration: seconds to measure for. warm_up: seconds to run either network before.
        progress: called with (stage, done, total).

    Raises:
        BuildError: a layer, variant, configuration or precision is unknown or does not fit; the
            message lists the candidates, and why others are refused.
        TuningError: the kernel that was asked for gives a wrong result.
        DeviceError: the device is not in this machine.
    """
    asked = {name: _checked(name, change) for name, change in changes.items()}
    require_device(build.request.target)
    found = {name: _layers_of(build.plan, name) for name in asked}
    again = build_request(_changed(build, asked, found), progress)
    reference = Reference(build.request.graph, build.plan)
    contexts = [open_engine(plan).create_context() for plan in (build.plan, again.plan)]
    errors = [reference.error(context) for context in contexts]
    first, second = (Stopwatch(context, warm_up) for context in contexts)
    pair = interleave(second, first, duration)
    before, after = (
        Figures(latency, launches_of(made.plan), made.plan.arena_bytes, error)
        for latency, made, error in zip(
            (pair.second, pair.first), (build, again), errors, strict=True
        )
    )
    names = list(dict.fromkeys(layer.name for layers in found.values() for layer in layers))
    effects = _effects((build.plan, again.plan), (first, second), names)
    return WhatIf(asked, effects, before, after, pair.difference, again)


def _checked(name: str, change: Mapping[str, Any]) -> dict[str, str]:
    """A change in its plain form: a variant apart from its configuration, all as text."""
    unknown = sorted(set(change) - set(_KEYS))
    if unknown or not change:
        what = f"{', '.join(map(repr, unknown))} cannot" if unknown else "nothing is to"
        raise BuildError(f"what if '{name}': {what} be changed; expected {', '.join(_KEYS)}")
    plain = {}
    for key in _KEYS:
        if key not in change:
            continue
        value = change[key]
        if key == "config" and isinstance(value, tuple | list):
            value = ", ".join(map(str, value))
        if not isinstance(value, str):
            raise BuildError(f"what if '{name}': {key} is {value!r}, expected a text")
        plain[key] = value
    variant, bracket, config = plain.get("variant", "").partition("(")
    if bracket:
        if "config" in plain or not config.endswith(")"):
            raise BuildError(
                f"what if '{name}': variant {plain['variant']!r}: expected NAME or NAME(CONFIG), "
                "and the configuration once"
            )
        plain |= {"variant": variant, "config": config[:-1]}
    if "config" in plain and "variant" not in plain:
        raise BuildError(
            f"what if '{name}': a configuration belongs to a variant; give the variant too"
        )
    return plain


def _layers_of(plan: Plan, name: str) -> list[Layer]:
    """The layers that ``name`` names."""
    for match in (
        lambda layer: layer.name == name,
        lambda layer: name in layer.origins,
        lambda layer: any(fnmatchcase(n, name) for n in (layer.name, *layer.origins)),
    ):
        found = [layer for layer in plan.layers if match(layer)]
        if found:
            return found
    names = list(dict.fromkeys(n for layer in plan.layers for n in (layer.name, *layer.origins)))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise BuildError(f"what if '{name}': no layer of plan '{plan.name}' is called so{hint}")


def _changed(
    build: Build, asked: Mapping[str, Mapping[str, str]], found: Mapping[str, list[Layer]]
) -> BuildRequest:
    request = build.request
    kernels = dict(request.kernels)
    layers: dict[str, str] = {}
    for name, change in asked.items():
        for layer in found[name]:
            if "variant" in change:
                kernels[layer.name] = KernelPin(change["variant"], change.get("config"))
            if "precision" in change:
                layers[glob.escape(_node_of(build, layer))] = change["precision"]
    precision = request.precision | set(layers.values())
    # The first match counts: what is asked for now goes before what was then.
    layers |= {k: v for k, v in request.layers.items() if k not in layers}
    rank = {p: i for i, p in enumerate(STORAGE)}
    default = min(request.precision, key=lambda p: rank.get(p, len(rank)))
    if min(precision, key=lambda p: rank.get(p, len(rank))) != default:
        # Otherwise the new type, being faster, would be every layer's.
        layers.setdefault("*", default)
    return replace(request, precision=precision, layers=layers, kernels=kernels)


def _node_of(build: Build, layer: Layer) -> str:
    """The node behind ``layer``: the second task of a node is called ``name#1``."""
    return layer.name if build.graph.has_node(layer.name) else layer.name.rpartition("#")[0]


def _effects(
    plans: tuple[Plan, Plan], watches: tuple[Stopwatch, Stopwatch], asked: list[str]
) -> tuple[LayerEffect, ...]:
    """Layers that were asked for, and those that changed beside them."""
    rows: tuple[list[list[float]], list[list[float]]] = ([], [])
    for _ in range(_ROUNDS):
        for row, watch in zip(rows, watches, strict=True):
            row.append(watch.context.layer_seconds(watch.inputs, _REPEATS))
    tables = [
        {layer.name: (layer, float(s)) for layer, s in zip(p.layers, seconds, strict=True)}
        for p, seconds in zip(plans, (np.median(row, axis=0) for row in rows), strict=True)
    ]
    before, after = tables
    effects = []
    for name in dict.fromkeys([*asked, *before, *after]):
        (old, old_seconds), (new, new_seconds) = (
            table.get(name, (None, 0.0)) for table in (before, after)
        )
        if name in asked or _choice(old) != _choice(new):
            effects.append(LayerEffect(name, name in asked, old, new, old_seconds, new_seconds))
    return tuple(effects)


def _choice(layer: Layer | None) -> dict[str, Any] | None:
    """What a layer was given: kernel, types."""
    if layer is None:
        return None
    keys = ("op", "inputs", "outputs", "precision", "variant", "config")
    return {key: getattr(layer, key) for key in keys}


def _side(layer: Layer | None, seconds: float) -> str:
    if layer is None:
        return "nothing"
    config = f"({layer.config})" if layer.config else ""
    return f"{layer.precision} {layer.variant}{config} {_ms(seconds)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms" if abs(seconds) >= 1e-3 else f"{seconds * 1e6:.4g} µs"
