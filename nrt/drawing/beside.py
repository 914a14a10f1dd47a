"""Two pictures side by side, with what belongs together at one height."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from nrt.drawing.coordinates import lay_out, row_heights
from nrt.drawing.layers import Edge, assign_rows
from nrt.drawing.picture import Picture
from nrt.drawing.svg import MARGIN, box_sizes, document, draw, edges_of, heading

__all__ = ["aligned_rows", "side_by_side"]

ROW_GAP = 44.0
COLUMN_GAP = 64.0
HEADING_HEIGHT = 30.0


def side_by_side(
    left: Picture, right: Picture, pairs: Mapping[str, str], titles: tuple[str, str]
) -> str:
    """Both pictures as one SVG document.

    Args:
        left, right: the pictures.
        pairs: key of a box on the left -> key of the box on the right that stands at its height.
        titles: headings.

    Raises:
        GraphError: the arrows of a picture form a cycle.
    """
    rows = aligned_rows(left, right, pairs)
    sizes = [box_sizes(picture) for picture in (left, right)]
    heights = row_heights([*sizes[0], *sizes[1]], [*rows[0], *rows[1]])
    tops = [0.0]
    for height in heights:
        tops.append(tops[-1] + height + ROW_GAP)
    layouts = [
        lay_out(boxes, edges_of(picture), rows=mine, tops=tops)
        for picture, boxes, mine in zip((left, right), sizes, rows, strict=True)
    ]
    top = MARGIN + HEADING_HEIGHT
    x = MARGIN
    parts = []
    for picture, layout, title in zip((left, right), layouts, titles, strict=True):
        parts.append(heading(title, x, MARGIN + 14))
        parts.append(draw(picture, layout, x, top))
        # A heading may be wider than a picture without branches.
        x += max(layout.width, 9.0 * len(title)) + COLUMN_GAP
    name = f"{titles[0]}, {titles[1]}"
    return document(name, "\n".join(parts), x - COLUMN_GAP + MARGIN, top + tops[-1] + MARGIN)


def aligned_rows(
    left: Picture, right: Picture, pairs: Mapping[str, str]
) -> tuple[list[int], list[int]]:
    """Rows for both pictures; the two of a pair share one unless the pictures contradict."""
    count = len(left.boxes)
    place = {box.key: i for i, box in enumerate(left.boxes)}
    other = {box.key: count + i for i, box in enumerate(right.boxes)}
    total = count + len(other)
    edges = [*edges_of(left), *(Edge(s + count, t + count) for s, t, _ in edges_of(right))]
    joined = {other[b]: place[a] for a, b in pairs.items() if a in place and b in other}
    merged = _merged(edges, joined)
    # What is left when sources and sinks are taken away lies on or between cycles: of two nodes
    # that changed places, each stands in its own picture's row.
    tangled = _tangled(total, merged)
    joined = {b: a for b, a in joined.items() if a not in tangled}
    rows = assign_rows(total, _merged(edges, joined))
    mine = [rows[joined.get(v, v)] for v in range(total)]
    used = {row: i for i, row in enumerate(sorted(set(mine)))}
    mine = [used[row] for row in mine]
    return mine[:count], mine[count:]


def _merged(edges: Iterable[Edge], joined: Mapping[int, int]) -> list[Edge]:
    return [Edge(joined.get(s, s), joined.get(t, t)) for s, t, _ in edges]


def _tangled(count: int, edges: Sequence[Edge]) -> set[int]:
    forth: list[list[int]] = [[] for _ in range(count)]
    back: list[list[int]] = [[] for _ in range(count)]
    for source, target, _ in edges:
        forth[source].append(target)
        back[target].append(source)
    return _core(forth, back, _core(back, forth, range(count)))


def _core(
    after: Sequence[list[int]], before: Sequence[list[int]], within: Collection[int]
) -> set[int]:
    """What remains of ``within`` when vertices without anything before them are removed."""
    left = set(within)
    missing = {v: sum(u in left for u in before[v]) for v in left}
    free = [v for v in left if missing[v] == 0]
    while free:
        v = free.pop()
        left.remove(v)
        for target in after[v]:
            if target in left:
                missing[target] -= 1
                if missing[target] == 0:
                    free.append(target)
    return left
