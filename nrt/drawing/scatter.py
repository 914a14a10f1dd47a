"""Points in a plane as SVG: two linear axes, a text beside each point, a line through some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nrt.drawing.shapes import dot, label, line
from nrt.drawing.svg import MARGIN, document, heading, short

__all__ = ["Dot", "scatter_to_svg"]

_WIDTH, _HEIGHT = 520.0, 300.0
_LEFT, _TOP, _BOTTOM = 72.0, 40.0, 44.0
_CHARACTER, _RADIUS = 6.7, 5.0


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        x, y: where it is.
        text: beside it.
        kind: what colors it, of `nrt.drawing.svg.KINDS`.
        joined: whether the line goes through it.
        tooltip: shown under the pointer.
    """

    x: float
    y: float
    text: str
    kind: str = "compute"
    joined: bool = False
    tooltip: str = ""


@dataclass(frozen=True)
class _Axis:
    ticks: tuple[float, ...]
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def scatter_to_svg(name: str, dots: Sequence[Dot], x_label: str, y_label: str) -> str:
    """``dots``, with the line from left to right through those that are joined."""
    left, top = MARGIN + _LEFT, MARGIN + _TOP
    texts = _CHARACTER * max((len(short(d.text)) for d in dots), default=0)
    across = _Axis(_ticks([d.x for d in dots]), left, left + _WIDTH)
    upwards = _Axis(_ticks([d.y for d in dots]), top + _HEIGHT, top)
    parts = [heading(name, MARGIN, MARGIN + 14)]
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(line(((x, top), (x, top + _HEIGHT + 4)), faint=True))
        parts.append(label(f"{tick:g}", x, top + _HEIGHT + 18, anchor="middle"))
    for tick in upwards.ticks:
        y = upwards.at(tick)
        parts.append(line(((left - 4, y), (left + _WIDTH, y)), faint=True))
        parts.append(label(f"{tick:g}", left - 8, y + 4, anchor="end"))
    middle = top + _HEIGHT / 2
    parts.append(label(x_label, left + _WIDTH / 2, top + _HEIGHT + 36, anchor="middle"))
    parts.append(label(y_label, MARGIN + 10, middle, anchor="middle", vertical=True))
    ordered = sorted(dots, key=lambda d: (d.x, d.y))
    places = [(across.at(d.x), upwards.at(d.y)) for d in ordered if d.joined]
    if len(places) > 1:
        parts.append(line(places))
    for d in ordered:
        x, y = across.at(d.x), upwards.at(d.y)
        parts.append(dot(d.kind, x, y, _RADIUS, d.tooltip))
        parts.append(label(short(d.text), x + _RADIUS + 4, y - _RADIUS))
    width = left + _WIDTH + _RADIUS + 4 + texts + MARGIN
    return document(name, "\n".join(parts), width, top + _HEIGHT + _BOTTOM + MARGIN)


def _ticks(values: Sequence[float]) -> tuple[float, ...]:
    """At most 7 multiples of 1, 2 or 5 times a power of ten, the ends around all ``values``."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    exponent = math.floor(math.log10((high - low) / 5)) - 1
    for power in range(exponent, exponent + 4):
        for factor in (1, 2, 5):
            step = factor * 10.0**power
            first, last = math.floor(low / step), math.ceil(high / step)
            if last - first <= 6:
                return tuple(round(i * step, 12) for i in range(first, last + 1))
    raise AssertionError(f"no ticks from {low} to {high}")
