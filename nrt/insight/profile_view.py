"""A profile as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrt.drawing.svg import escaped, in_scroll_box
from nrt.drawing.table import html_table
from nrt.insight.units import microseconds, rate

if TYPE_CHECKING:
    from nrt.insight.profile import LayerTime, Profile

__all__ = ["COLUMNS", "as_html", "as_text", "layer_row", "summary"]

COLUMNS = (
    "#", "layer", "op", "precision", "kernel", "time", "share", "compute", "memory", "bound",
    "of ceiling",
)  # fmt: skip
_RIGHT = ("#", "time", "share", "compute", "memory", "of ceiling")


def summary(profile: Profile) -> list[str]:
    """What was measured, and against what."""
    target = profile.target
    lines = [
        f"{profile.name} on {target.device or target.arch} ({target.kind}): "
        f"{len(profile.launches)} launches, {microseconds(profile.total)} one by one, "
        f"{microseconds(profile.seconds)} together"
    ]
    ceilings = profile.ceilings
    if ceilings is None:
        return [*lines, "the ceilings of this device are unknown"]
    peaks = ", ".join(
        f"{precision} {rate(ceilings.rates[precision], 'FLOP/s')}"
        for precision in dict.fromkeys(layer.precision for layer in profile.layers)
        if precision in ceilings.rates
    )
    memory = rate(ceilings.bandwidth, "B/s")
    return [*lines, f"ceilings: {', '.join(filter(None, (peaks, memory)))} ({ceilings.source})"]


def layer_row(profile: Profile, layer: LayerTime) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    share = layer.seconds / profile.total if profile.total else 0.0
    fraction = layer.fraction
    return (
        str(layer.index),
        layer.name,
        layer.op_name,
        layer.precision,
        layer.variant + (f" ({layer.launches} launches)" if layer.launches > 1 else ""),
        microseconds(layer.seconds),
        f"{share:.1%}",
        rate(layer.flop_rate, "FLOP/s") if layer.flops else "-",
        rate(layer.byte_rate, "B/s"),
        layer.bound or "-",
        "-" if fraction is None else f"{fraction:.0%}",
    )


def as_text(profile: Profile) -> str:
    """Summary, then a line per layer."""
    rows = [COLUMNS, *(layer_row(profile, layer) for layer in profile.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = summary(profile)
    for row in rows:
        cells = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(COLUMNS, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_html(profile: Profile) -> str:
    """Summary, table and picture."""
    lines = "".join(f"<p>{escaped(line)}</p>" for line in summary(profile))
    rows = [layer_row(profile, layer) for layer in profile.layers]
    table = html_table(COLUMNS, rows, right=_RIGHT)
    return f"{lines}{table}{in_scroll_box(profile.to_svg())}"
