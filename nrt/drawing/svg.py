"""A picture as SVG: one document, light or dark as the reader's system is, no script, no fonts.

Colors stand in attributes, which every viewer knows; the style sheet only exchanges them where the
reader prefers dark. All text is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from nrt.drawing.coordinates import Layout, Point, lay_out
from nrt.drawing.layers import Edge
from nrt.drawing.picture import Box, Picture

__all__ = [
    "EDGE",
    "KINDS",
    "MARKS",
    "TEXT",
    "box_sizes",
    "px",
    "document",
    "draw",
    "edges_of",
    "escaped",
    "heading",
    "in_scroll_box",
    "short",
    "to_svg",
    "tooltip",
]

MARGIN = 16.0
PADDING, SIDE = 10.0, 12.0
TITLE_WIDTH, TITLE_HEIGHT = 7.6, 18.0
LINE_WIDTH, LINE_HEIGHT = 6.7, 15.0
MOST_CHARACTERS = 44
HEAD = 5.0

KINDS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "compute": (("#dbe8ff", "#2f66c4"), ("#1f3557", "#79a8ff")),
    "pointwise": (("#ece2fb", "#7a4cc4"), ("#38285a", "#b895f5")),
    "memory": (("#d8f0ee", "#23827c"), ("#163f3c", "#5cc4bc")),
    "view": (("#eef0f3", "#7a828e"), ("#2b3037", "#98a1ad")),
    "io": (("#ffffff", "#4a4f57"), ("#15181c", "#c3c9d1")),
}
"""Kind -> (fill, stroke) in light, (fill, stroke) in dark."""
MARKS: dict[str, tuple[str, str, str]] = {
    "added": ("+", "#14893a", "#3fd46d"),
    "removed": ("−", "#cc2936", "#ff7b84"),
    "changed": ("~", "#c07a00", "#ffbd4a"),
}
"""Mark -> (sign before the title, color in light, color in dark)."""

GROUND = ("#ffffff", "#101216")
TEXT = ("#1b1f24", "#e6e9ee")
EDGE = ("#6b7480", "#8d97a4")
# What XML 1.0 has no place for, not even escaped.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_svg(picture: Picture) -> str:
    """Lay ``picture`` out and draw it.

    Raises:
        GraphError: the arrows form a cycle.
    """
    layout = lay_out(box_sizes(picture), edges_of(picture))
    body = draw(picture, layout, MARGIN, MARGIN)
    return document(picture.name, body, layout.width + 2 * MARGIN, layout.height + 2 * MARGIN)


def box_sizes(picture: Picture) -> list[tuple[float, float]]:
    """Width and height of every box, from its text."""
    sizes = []
    for box in picture.boxes:
        width = TITLE_WIDTH * len(_title(box))
        width = max([width, *(LINE_WIDTH * len(short(line)) for line in box.lines)])
        height = TITLE_HEIGHT + LINE_HEIGHT * len(box.lines) + PADDING
        sizes.append((round(max(width + 2 * SIDE, 70.0), 1), height))
    return sizes


def edges_of(picture: Picture) -> list[Edge]:
    """The arrows, by the boxes' positions."""
    place = {box.key: i for i, box in enumerate(picture.boxes)}
    return [Edge(place[a.source], place[a.target], a.group) for a in picture.arrows]


def draw(picture: Picture, layout: Layout, left: float, top: float) -> str:
    """The picture as an SVG group, moved by (left, top)."""
    parts = [f'<g transform="translate({px(left)} {px(top)})">']
    for arrow, route in zip(picture.arrows, layout.routes, strict=True):
        parts.append(
            f'<path class="nrt-edge" fill="none" stroke="{EDGE[0]}" stroke-width="1.3" '
            f'data-from="{escaped(arrow.source)}" data-to="{escaped(arrow.target)}" '
            f'd="{_path(route)}">{tooltip(arrow.tooltip)}</path>'
        )
    for box, place in zip(picture.boxes, layout.boxes, strict=True):
        parts.append(_box(box, *place))
    parts.append("</g>")
    return "\n".join(parts)


def document(name: str, body: str, width: float, height: float) -> str:
    """An SVG document around ``body``."""
    size = f"{px(width)} {px(height)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nrt-graph" role="img" '
        f'aria-label="{escaped(name)}" width="{px(width)}" height="{px(height)}" '
        f'viewBox="0 0 {size}" font-family="ui-monospace, Menlo, Consolas, monospace">\n'
        f"<style>{_style()}</style>\n"
        f'<rect class="nrt-ground" width="100%" height="100%" fill="{GROUND[0]}"/>\n'
        f"{body}\n</svg>\n"
    )


def in_scroll_box(svg: str) -> str:
    """HTML that shows ``svg`` at its own size in a box that scrolls."""
    return (
        '<div style="max-height: 640px; max-width: 100%; overflow: auto; '
        f'border: 1px solid #8d97a455;">{svg}</div>'
    )


def heading(text: str, x: float, y: float) -> str:
    """A line of text over a picture."""
    return (
        f'<text class="nrt-text" x="{px(x)}" y="{px(y)}" font-size="14" '
        f'font-weight="bold" fill="{TEXT[0]}">{escaped(text)}</text>'
    )


def short(text: str, most: int = MOST_CHARACTERS) -> str:
    """``text`` on one line, its middle left out where it is longer than ``most`` characters."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    # Ends tell layers apart: they carry the numbers.
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _title(box: Box) -> str:
    sign = f"{MARKS[box.mark][0]} " if box.mark else ""
    return short(f"{sign}{box.title}")


def _box(box: Box, x: float, y: float, width: float, height: float) -> str:
    (fill, stroke), _ = KINDS[box.kind]
    classes, line = f"nrt-{box.kind}", 1.2
    if box.mark:
        classes, stroke, line = f"{classes} nrt-{box.mark}", MARKS[box.mark][1], 3.0
    dash = ' stroke-dasharray="4 3"' if box.kind == "view" and not box.mark else ""
    radius = 16 if box.kind == "io" else 5
    parts = [
        f'<g class="nrt-box" data-box="{escaped(box.key)}">{tooltip(box.tooltip)}'
        f'<rect class="{classes}" x="{px(x)}" y="{px(y)}" width="{px(width)}" '
        f'height="{px(height)}" rx="{px(radius)}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{px(line)}"{dash}/>'
    ]
    middle = px(x + width / 2)
    baseline = y + PADDING / 2 + 13
    parts.append(
        f'<text class="nrt-text" x="{middle}" y="{px(baseline)}" font-size="12.5" '
        f'font-weight="bold" text-anchor="middle" fill="{TEXT[0]}">{escaped(_title(box))}</text>'
    )
    for number, text in enumerate(box.lines):
        baseline = y + PADDING / 2 + TITLE_HEIGHT + LINE_HEIGHT * number + 11
        parts.append(
            f'<text class="nrt-text" x="{middle}" y="{px(baseline)}" font-size="11" '
            f'text-anchor="middle" fill="{TEXT[0]}">{escaped(short(text))}</text>'
        )
    parts.append("</g>")
    return "".join(parts)


def _path(route: Sequence[Point]) -> str:
    """Straight down where x stays, an S where it does not, an arrow head at the end."""
    (x, y), *rest = route
    parts = [f"M{px(x)} {px(y)}"]
    for next_x, next_y in rest:
        if next_x == x:
            parts.append(f"V{px(next_y)}")
        else:
            half = px((y + next_y) / 2)
            parts.append(f"C{px(x)} {half} {px(next_x)} {half} {px(next_x)} {px(next_y)}")
        x, y = next_x, next_y
    parts.append(f"m{px(-HEAD * 0.7)} {px(-HEAD)}L{px(x)} {px(y)}")
    parts.append(f"l{px(HEAD * 0.7)} {px(-HEAD)}")
    return "".join(parts)


def _style() -> str:
    rules = [".nrt-box,.nrt-edge{cursor:default}"]
    dark = [
        f".nrt-ground{{fill:{GROUND[1]}}}",
        f".nrt-graph .nrt-text{{fill:{TEXT[1]}}}",
        f".nrt-whisker{{stroke:{TEXT[1]}}}",
        f".nrt-edge{{stroke:{EDGE[1]}}}",
    ]
    dark += [f".nrt-{k}{{fill:{fill};stroke:{line}}}" for k, (_, (fill, line)) in KINDS.items()]
    dark += [f".nrt-box .nrt-{name}{{stroke:{color}}}" for name, (_, _, color) in MARKS.items()]
    rules.append(f"@media (prefers-color-scheme:dark){{{''.join(dark)}}}")
    return "".join(rules)


def tooltip(text: str) -> str:
    """What an element shows under the pointer; empty for no text."""
    return f"<title>{escaped(text)}</title>" if text else ""


def escaped(text: str) -> str:
    """``text`` for an element or an attribute."""
    return html.escape(_NO_XML.sub("\ufffd", text), quote=True)


def px(value: float) -> str:
    """A length, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
