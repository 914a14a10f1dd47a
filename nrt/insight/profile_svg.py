"""A profile as a picture: the roofline, and a bar per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrt.drawing.shapes import bar, label, marker
from nrt.drawing.svg import MARGIN, document, short
from nrt.insight.roofline_svg import roofline
from nrt.insight.units import microseconds

if TYPE_CHECKING:
    from nrt.insight.profile import LayerTime, Profile

__all__ = ["profile_svg"]

WIDTH = 920.0
ROOFLINE_HEIGHT = 360.0
ROW = 17.0
NAME_CHARACTERS = 40
NAME_WIDTH = 6.7 * NAME_CHARACTERS + 12
TIME_WIDTH = 130.0
LEGEND = (("compute", "products, windows, sums"), ("pointwise", "pointwise"), ("memory", "moves"))


def profile_svg(profile: Profile) -> str:
    """One SVG document; bars stand in the plan's order."""
    parts = [f'<g transform="translate({MARGIN:g} {MARGIN:g})">']
    parts += roofline(profile, WIDTH - 2 * MARGIN, ROOFLINE_HEIGHT)
    top = ROOFLINE_HEIGHT + 24
    heading = "Time per layer"
    if profile.ceilings is not None:
        heading += "; the upright line is what the roofline allows"
    parts.append(label(heading, 0, top, size=14, bold=True))
    parts += _legend(top + 20)
    top += 34
    longest = max((max(la.seconds, _least(la) or 0.0) for la in profile.layers), default=0.0) or 1.0
    scale = (WIDTH - 2 * MARGIN - NAME_WIDTH - TIME_WIDTH) / longest
    for number, layer in enumerate(profile.layers):
        parts += _row(profile, layer, top + ROW * number, scale)
    parts.append("</g>")
    height = top + ROW * len(profile.layers) + 2 * MARGIN
    return document(f"profile of {profile.name}", "\n".join(parts), WIDTH, height)


def _legend(y: float) -> list[str]:
    parts, x = [], 0.0
    for kind, text in LEGEND:
        parts.append(bar(kind, x, y - 9, 12, 10))
        parts.append(label(text, x + 18, y))
        x += 18 + 6.7 * len(text) + 20
    return parts


def _row(profile: Profile, layer: LayerTime, y: float, scale: float) -> list[str]:
    share = layer.seconds / profile.total if profile.total else 0.0
    width = layer.seconds * scale
    name = short(f"{layer.op_name} {layer.name}", NAME_CHARACTERS)
    tip = f"{layer.name}: {layer.op}\n{layer.variant}({layer.config})"
    parts = [
        label(name, NAME_WIDTH - 8, y + 12, anchor="end"),
        bar(layer.kind, NAME_WIDTH, y + 2, max(width, 1.0), ROW - 4, tip),
    ]
    least = _least(layer)
    end = width
    if least is not None:
        # Past the bar's end where a cache served the data, or the kernel saved operations.
        place = least * scale
        tip = f"the roofline allows {microseconds(least)}"
        parts.append(marker(NAME_WIDTH + place, y + 1, y + ROW - 1, tip))
        end = max(end, place)
    text = f"{microseconds(layer.seconds)} {share:.1%}"
    parts.append(label(text, NAME_WIDTH + end + 6, y + 12))
    return parts


def _least(layer: LayerTime) -> float | None:
    """Seconds that the roofline allows."""
    if layer.bound == "compute" and layer.attainable:
        return layer.flops / layer.attainable
    return layer.nbytes / layer.bandwidth if layer.bandwidth else None
