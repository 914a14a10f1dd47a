"""Bar charts as SVG: one row per bar, an interval as a whisker, a text behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nrt.drawing.svg import MARGIN, document, escaped, heading, px, short

__all__ = ["Bar", "Chart", "charts_to_svg"]

ROW, BAR = 22.0, 12.0
PLOT = 380.0
CHARACTER = 6.9
TITLE, NOTE, AXIS = 26.0, 18.0, 30.0
GAP, BETWEEN = 14.0, 26.0

# Between light and dark, so that they stand out on both grounds.
_FILLS = {"plain": "#5b8fd9", "good": "#3f9d63", "bad": "#cf5a60"}
_SOFT, _WHISKER = "#7a828e", "#39424e"
_TEXT = "#1b1f24"


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        label: on the left.
        value: where the bar ends; None: there is none to draw.
        low, high: ends of its interval.
        text: on the right.
        kind: what colors it: ``plain``, ``good`` or ``bad``.
        tooltip: shown under the pointer.
    """

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    text: str = ""
    kind: str = "plain"
    tooltip: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars on one axis that holds zero.

    Attributes:
        title: above.
        unit: of values, at the axis.
        bars: from top to bottom.
        note: a line under the title.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]
    note: str = ""

    @property
    def height(self) -> float:
        return TITLE + (NOTE if self.note else 0.0) + ROW * len(self.bars) + AXIS


def charts_to_svg(name: str, charts: Sequence[Chart]) -> str:
    """``charts``, one below the other, as one SVG document; labels and texts in common columns."""
    bars = [bar for chart in charts for bar in chart.bars]
    labels = CHARACTER * max((len(short(bar.label)) for bar in bars), default=0)
    texts = CHARACTER * max((len(bar.text) for bar in bars), default=0)
    heads = [max(8.6 * len(c.title), CHARACTER * len(c.note)) for c in charts]
    width = max(labels + GAP + PLOT + GAP + texts, *heads)
    left = MARGIN + labels + GAP
    parts, top = [], MARGIN
    for chart in charts:
        parts.append(_chart(chart, left, top))
        top += chart.height + BETWEEN
    return document(name, "\n".join(parts), width + 2 * MARGIN, top - BETWEEN + MARGIN)


@dataclass(frozen=True)
class _Axis:
    """Values to horizontal places; both ends are ticks."""

    left: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.left + PLOT * (value - low) / (high - low)


def _axis(bars: Sequence[Bar], left: float) -> _Axis:
    """At most 7 ticks at multiples of 1, 2 or 5 times a power of ten, around zero and all bars."""
    drawn = [bar for bar in bars if bar.value is not None]
    ends = [0.0, *(v for b in drawn if b.value is not None for v in (b.value, b.low, b.high))]
    low, high = min(ends), max(ends)
    if low == high:
        high = low + 1.0
    exponent = math.floor(math.log10((high - low) / 5)) - 1
    for power in range(exponent, exponent + 4):
        for factor in (1, 2, 5):
            step = factor * 10.0**power
            first, last = math.floor(low / step), math.ceil(high / step)
            if last - first <= 6:
                return _Axis(left, tuple(round(i * step, 12) for i in range(first, last + 1)))
    raise AssertionError(f"no ticks from {low} to {high}")


def _chart(chart: Chart, left: float, top: float) -> str:
    axis = _axis(chart.bars, left)
    parts = [heading(chart.title, MARGIN, top + 14)]
    rows = top + TITLE
    if chart.note:
        parts.append(_text(chart.note, MARGIN, rows + 6, color=_SOFT))
        rows += NOTE
    bottom = rows + ROW * len(chart.bars)
    for tick in axis.ticks:
        x = axis.x(tick)
        parts.append(_line(x, rows, x, bottom + 3, _SOFT, 1.2 if tick == 0 else 0.4))
        parts.append(_text(f"{tick:g}", x, bottom + 16, anchor="middle", color=_SOFT))
    end = left + PLOT + GAP
    behind = axis.x(axis.ticks[-1]) + CHARACTER * (len(f"{axis.ticks[-1]:g}") / 2 + 1)
    parts.append(_text(chart.unit, behind, bottom + 16, color=_SOFT))
    for index, bar in enumerate(chart.bars):
        middle = rows + ROW * (index + 0.5)
        parts.append(f"<g>{_tooltip(bar)}")
        parts.append(_text(short(bar.label), left - GAP, middle + 4, anchor="end"))
        parts.append(_drawn(bar, axis, middle))
        parts.append(_text(bar.text, end, middle + 4))
        parts.append("</g>")
    return "\n".join(parts)


def _drawn(bar: Bar, axis: _Axis, middle: float) -> str:
    if bar.value is None:
        return ""
    zero, end = axis.x(0.0), axis.x(bar.value)
    low, high = axis.x(bar.low), axis.x(bar.high)
    places = [(low, middle, high, middle)]
    places += [(x, middle - 3.5, x, middle + 3.5) for x in (low, high)]
    whisker = [_line(*place, _WHISKER, 1.4, "nrt-whisker") for place in places]
    return (
        f'<rect x="{px(min(zero, end))}" y="{px(middle - BAR / 2)}" '
        f'width="{px(abs(end - zero))}" height="{px(BAR)}" '
        f'fill="{_FILLS[bar.kind]}"/>' + "".join(whisker)
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, color: str, width: float, css: str = ""
) -> str:
    a, b, c, d = (px(v) for v in (x1, y1, x2, y2))
    style = f'class="{css}" ' if css else ""
    return (
        f'<line {style}x1="{a}" y1="{b}" x2="{c}" y2="{d}" '
        f'stroke="{color}" stroke-width="{width:g}"/>'
    )


def _text(text: str, x: float, y: float, *, anchor: str = "start", color: str = "") -> str:
    # Without a color of its own it is exchanged in the dark.
    style = f'fill="{color}"' if color else f'class="nrt-text" fill="{_TEXT}"'
    return (
        f'<text {style} x="{px(x)}" y="{px(y)}" font-size="11.5" '
        f'text-anchor="{anchor}">{escaped(text)}</text>'
    )


def _tooltip(bar: Bar) -> str:
    return f"<title>{escaped(bar.tooltip)}</title>" if bar.tooltip else ""
