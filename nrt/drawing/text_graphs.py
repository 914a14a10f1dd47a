"""A picture in the languages of other tools: Graphviz's DOT, and Mermaid."""

from __future__ import annotations

from nrt.drawing.picture import Box, Picture
from nrt.drawing.svg import MARKS

__all__ = ["to_dot", "to_mermaid"]

# Kind -> (fill, stroke), readable in black on both.
_COLORS: dict[str, tuple[str, str]] = {
    "compute": ("#dbe8ff", "#2f66c4"),
    "pointwise": ("#ece2fb", "#7a4cc4"),
    "memory": ("#d8f0ee", "#23827c"),
    "view": ("#eef0f3", "#7a828e"),
    "io": ("#ffffff", "#4a4f57"),
}
# Characters that end a Mermaid label or start markup in it.
_MERMAID = {c: f"#{ord(c)};" for c in '#"&<>`\\[]{}()|*_'}


def to_dot(picture: Picture) -> str:
    """``picture`` as a DOT digraph: ``dot -Tpdf``, or any viewer of Graphviz files."""
    lines = [
        f"digraph {_quoted(picture.name)} {{",
        '  node [shape=box, style="rounded,filled", fontname="monospace", fontsize=10];',
    ]
    place = {}
    for number, box in enumerate(picture.boxes):
        place[box.key] = f"n{number}"
        fill, stroke = _colors(box)
        attributes = {
            "label": "\n".join(_text_lines(box)),
            "tooltip": box.tooltip or box.title,
            "fillcolor": fill,
            "color": stroke,
        }
        if box.mark:
            attributes["penwidth"] = "3"
        shown = ", ".join(f"{name}={_quoted(text)}" for name, text in attributes.items())
        lines.append(f"  n{number} [{shown}];")
    for arrow in picture.arrows:
        tooltip = f" [tooltip={_quoted(arrow.tooltip)}]" if arrow.tooltip else ""
        lines.append(f"  {place[arrow.source]} -> {place[arrow.target]}{tooltip};")
    return "\n".join([*lines, "}"]) + "\n"


def to_mermaid(picture: Picture) -> str:
    """``picture`` as a Mermaid flowchart, for a ```` ```mermaid ```` block of Markdown."""
    lines = ["flowchart TD"]
    place = {}
    classes: dict[str, tuple[str, str, int]] = {}
    for number, box in enumerate(picture.boxes):
        place[box.key] = f"n{number}"
        name = f"{box.kind}-{box.mark}" if box.mark else box.kind
        classes[name] = (*_colors(box), 3 if box.mark else 1)
        label = "<br/>".join(_escaped(line) for line in _text_lines(box))
        lines.append(f'  n{number}["{label}"]:::{name}')
    for arrow in picture.arrows:
        lines.append(f"  {place[arrow.source]} --> {place[arrow.target]}")
    for name, (fill, stroke, width) in sorted(classes.items()):
        lines.append(
            f"  classDef {name} fill:{fill},stroke:{stroke},stroke-width:{width}px,color:#1b1f24"
        )
    return "\n".join(lines) + "\n"


def _text_lines(box: Box) -> list[str]:
    sign = f"{MARKS[box.mark][0]} " if box.mark else ""
    return [f"{sign}{box.title}", *box.lines]


def _colors(box: Box) -> tuple[str, str]:
    fill, stroke = _COLORS[box.kind]
    return fill, MARKS[box.mark][1] if box.mark else stroke


def _quoted(text: str) -> str:
    # In a quoted string only these two are special; \n breaks the line.
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return "".join(_MERMAID.get(c, c) for c in " ".join(text.split()))
