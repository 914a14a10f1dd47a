"""The roofline of a profile: a dot per layer, its work per byte against what it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nrt.drawing.shapes import dot, label, line
from nrt.insight.units import microseconds, rate

if TYPE_CHECKING:
    from nrt.insight.profile import LayerTime, Profile
    from nrt.insight.roofline import Ceilings

__all__ = ["roofline"]

_LEFT, _BOTTOM, _TOP = 96.0, 44.0, 34.0
_RADIUS = 3.0, 14.0
"""Of the dots: the least, and what is added for a layer that takes all of the time."""


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from decade ``low`` to decade ``high``."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def roofline(profile: Profile, width: float, height: float) -> list[str]:
    """SVG elements of the chart, in a frame of ``width`` x ``height`` at the origin."""
    layers = [la for la in profile.layers if la.flops and la.nbytes and la.seconds]
    left_out = len(profile.layers) - len(layers)
    title = "operations per second over operations per byte"
    if left_out:
        title += f" ({left_out} of {len(profile.layers)} layers only move data)"
    parts = [label("Roofline", 0, 16, size=14, bold=True), label(title, 80, 16)]
    if not layers:
        return parts
    lines = _rates(profile.ceilings, layers)
    ridges = [peak / profile.ceilings.bandwidth for _, peak in lines] if profile.ceilings else []
    x = _axis([*(la.intensity for la in layers), *ridges], _LEFT, width - 20)
    y = _axis(
        [*(la.flop_rate for la in layers), *(peak for _, peak in lines)], height - _BOTTOM, _TOP
    )
    parts += _frame(x, y)
    if profile.ceilings is not None:
        parts += _ceilings(profile.ceilings.bandwidth, lines, x, y)
    for layer in sorted(layers, key=lambda la: -la.seconds):  # small dots on top
        share = layer.seconds / profile.total
        radius = _RADIUS[0] + _RADIUS[1] * math.sqrt(share)
        place = x.at(layer.intensity), y.at(layer.flop_rate)
        parts.append(dot(layer.kind, *place, radius, _tip(layer, share)))
    return parts


def _rates(ceilings: Ceilings | None, layers: Sequence[LayerTime]) -> list[tuple[str, float]]:
    """Precisions whose ceilings are drawn; those of one height share a line."""
    if ceilings is None:
        return []
    names: dict[float, list[str]] = {}
    for precision in dict.fromkeys(layer.precision for layer in layers):
        if precision in ceilings.rates:
            names.setdefault(ceilings.rates[precision], []).append(precision)
    return [(", ".join(precisions), peak) for peak, precisions in names.items()]


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values) * 1.05))
    return _Axis(low, max(high, low + 1), start, end)


def _frame(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for power in range(x.low, x.high + 1):
        at = x.at(10.0**power)
        parts.append(line(((at, y.start), (at, y.end)), width=1, faint=True))
        parts.append(label(f"{10.0**power:g}", at, y.start + 16, anchor="middle"))
    for power in range(y.low, y.high + 1):
        at = y.at(10.0**power)
        parts.append(line(((x.start, at), (x.end, at)), width=1, faint=True))
        parts.append(label(rate(10.0**power, "FLOP/s"), x.start - 6, at + 4, anchor="end"))
    middle = (x.start + x.end) / 2
    return [*parts, label("operations per byte", middle, y.start + 34, anchor="middle")]


def _ceilings(
    bandwidth: float, lines: Sequence[tuple[str, float]], x: _Axis, y: _Axis
) -> list[str]:
    right, bottom = 10.0**x.high, 10.0**y.low
    parts = []
    for names, peak in lines:
        ridge = min(peak / bandwidth, right)
        parts.append(line(((x.at(ridge), y.at(peak)), (x.end, y.at(peak))), width=1.8))
        text = f"{names} {rate(peak, 'FLOP/s')}"
        parts.append(label(text, x.end, y.at(peak) - 5, anchor="end"))
    top = max((peak for _, peak in lines), default=bandwidth * right)
    start = max(10.0**x.low, bottom / bandwidth)
    end = min(top / bandwidth, right)
    if start < end:
        ends = [(x.at(v), y.at(v * bandwidth)) for v in (start, end)]
        parts.append(line(ends, width=1.8))
        middle = math.sqrt(start * end)
        at = x.at(middle) + 10, y.at(middle * bandwidth) + 14
        parts.append(label(f"memory {rate(bandwidth, 'B/s')}", *at))
    return parts


def _tip(layer: LayerTime, share: float) -> str:
    lines = [
        f"{layer.op_name} {layer.name}",
        f"{microseconds(layer.seconds)}, {share:.1%} of the sum",
        f"{rate(layer.flop_rate, 'FLOP/s')}, {rate(layer.byte_rate, 'B/s')}",
        f"{layer.intensity:.3g} operations per byte",
    ]
    if layer.fraction is not None:
        lines.append(f"{layer.fraction:.0%} of the ceiling ({layer.bound})")
    return "\n".join(lines)
