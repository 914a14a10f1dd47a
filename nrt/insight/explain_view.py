"""An explanation as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nrt.drawing.svg import escaped
from nrt.drawing.table import html_list, html_table
from nrt.insight.units import microseconds

if TYPE_CHECKING:
    from nrt.insight.explain import Explanation, LayerStory

__all__ = ["as_html", "as_text"]


def as_text(explanation: Explanation) -> str:
    """Paragraphs of lines, one story after the other."""
    return "\n\n".join("\n".join(_story(story)) for story in explanation.stories)


def as_html(explanation: Explanation) -> str:
    """Headings, lists and a table of candidates per story."""
    return "\n".join(_html_story(story) for story in explanation.stories)


def _story(story: LayerStory) -> Iterator[str]:
    yield _headline(story)
    if story.origins:
        yield f"  from {', '.join(story.origins)}"
    for title, items in _lists(story):
        if items:
            yield f"  {title}:"
            yield from (f"    {item}" for item in items)
    if story.candidates:
        yield "  candidates:"
        rows = [(_time(c.seconds), c.variant, c.config, c.note) for c in story.candidates]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for time, variant, config, note in rows:
            line = f"{time:>{widths[0]}}  {variant:<{widths[1]}}  {config:<{widths[2]}}  {note}"
            yield f"    {line.rstrip()}"


def _headline(story: LayerStory) -> str:
    layer = story.layer
    if layer is None:
        return f"{story.name}: no layer of the plan; see what the passes did to it"
    took = f" in {_time(layer.seconds)}" if layer.seconds is not None else ""
    shapes = f"{', '.join(layer.inputs)} -> {', '.join(layer.outputs)}"
    return f"{story.name}: {layer.op} {shapes} by {layer.variant}{took}"


def _lists(story: LayerStory) -> list[tuple[str, Sequence[object]]]:
    layer = story.layer
    kernel, work, neighbours = [], [], []
    if layer is not None:
        configuration = f"({layer.config})" if layer.config else ""
        kernel = [f"{layer.variant}{configuration}: {layer.reason}"]
        work = [f"{layer.flops:,} operations, {layer.nbytes:,} bytes"]
        neighbours = [
            f"reads {', '.join(story.reads) or 'inputs of the network'}",
            f"read by {', '.join(story.read_by) or 'outputs of the network'}",
        ]
    precision = [story.precision] if story.precision else []
    if layer is not None and not precision:
        precision = [layer.precision]
    return [
        ("rewrites", story.rewrites),
        ("refused", story.refusals),
        ("precision", precision),
        ("kernel", kernel),
        ("launches", story.launches),
        ("work", work),
        ("neighbours", neighbours),
    ]


def _html_story(story: LayerStory) -> str:
    parts = [f"<h4>{escaped(_headline(story))}</h4>"]
    if story.origins:
        parts.append(f"<p>from {escaped(', '.join(story.origins))}</p>")
    for title, items in _lists(story):
        if items:
            parts.append(f"<b>{title}</b>{html_list(items)}")
    if story.candidates:
        rows = [(_time(c.seconds), c.variant, c.config, c.note) for c in story.candidates]
        columns = ("time", "variant", "configuration", "note")
        parts.append(f"<b>candidates</b>{html_table(columns, rows, right=('time',))}")
    return "".join(parts)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else microseconds(seconds)
