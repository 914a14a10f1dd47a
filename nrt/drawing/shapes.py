"""Elements of a chart: text, lines, bars and dots, in the colors of `nrt.drawing.svg`."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.drawing.svg import EDGE, KINDS, TEXT, escaped, px, tooltip

__all__ = ["bar", "dot", "label", "line", "marker"]


def label(
    text: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    size: float = 11,
    bold: bool = False,
    vertical: bool = False,
) -> str:
    """A line of text; ``anchor`` is ``start``, ``middle`` or ``end``, ``y`` its baseline."""
    weight = ' font-weight="bold"' if bold else ""
    turn = f' transform="rotate(-90 {px(x)} {px(y)})"' if vertical else ""
    return (
        f'<text class="nrt-text" x="{px(x)}" y="{px(y)}" font-size="{px(size)}" '
        f'text-anchor="{anchor}"{weight}{turn} fill="{TEXT[0]}">{escaped(text)}</text>'
    )


def line(
    points: Sequence[tuple[float, float]], *, width: float = 1.2, faint: bool = False, tip: str = ""
) -> str:
    """Straight from point to point."""
    path = "L".join(f"{px(x)} {px(y)}" for x, y in points)
    opacity = ' opacity="0.25"' if faint else ""
    return (
        f'<path class="nrt-edge" fill="none" stroke="{EDGE[0]}" stroke-width="{px(width)}"'
        f'{opacity} d="M{path}">{tooltip(tip)}</path>'
    )


def bar(
    kind: str, x: float, y: float, width: float, height: float, tip: str = "", radius: float = 2
) -> str:
    """A filled rectangle in the color of ``kind``."""
    fill, stroke = KINDS[kind][0]
    return (
        f'<rect class="nrt-{kind}" x="{px(x)}" y="{px(y)}" width="{px(width)}" '
        f'height="{px(height)}" rx="{px(radius)}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1">{tooltip(tip)}</rect>'
    )


def dot(kind: str, x: float, y: float, radius: float, tip: str = "") -> str:
    """A disc in the color of ``kind``, through which others show."""
    fill, stroke = KINDS[kind][0]
    return (
        f'<circle class="nrt-{kind}" cx="{px(x)}" cy="{px(y)}" r="{px(radius)}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.2" fill-opacity="0.75">'
        f"{tooltip(tip)}</circle>"
    )


def marker(x: float, top: float, bottom: float, tip: str = "") -> str:
    """A short upright line, such as a limit on a bar."""
    return line(((x, top), (x, bottom)), width=2.2, tip=tip)
