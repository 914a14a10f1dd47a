"""Tables as HTML, escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from nrt.drawing.svg import escaped

__all__ = ["html_list", "html_table"]

_CELL = "padding: 2px 8px; white-space: nowrap; text-align:"


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    caption: str = "",
) -> str:
    """A table that scrolls where it is too large.

    Args:
        columns: headings.
        rows: cells, made text by ``str``.
        right: columns that are aligned to the right.
        caption: a line above.
    """
    sides = ["right" if name in right else "left" for name in columns]
    head = "".join(_cell("th", name, side) for name, side in zip(columns, sides, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(_cell("td", cell, side) for cell, side in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    title = f"<p>{escaped(caption)}</p>" if caption else ""
    return (
        f'{title}<div style="max-height: 640px; max-width: 100%; overflow: auto;">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def html_list(items: Iterable[object]) -> str:
    """A bullet list; empty where there are no items."""
    lines = "".join(f"<li>{escaped(str(item))}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def _cell(tag: str, content: object, side: str) -> str:
    return f'<{tag} style="{_CELL} {side}">{escaped(str(content))}</{tag}>'
