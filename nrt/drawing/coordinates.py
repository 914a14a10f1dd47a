"""Where the boxes of a layered drawing stand and where its edges run.

Every row wants each vertex at the median of its neighbours in the row next to it. The nearest
positions that keep order and distance are an isotonic regression, which pooling adjacent violators
solves exactly (Ayer et al., 1955). Then `nrt.drawing.blocks` makes chains straight. Edges bend in
the gaps between rows only, so that none crosses a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nrt.drawing.blocks import median, straighten
from nrt.drawing.layers import Edge, Grid, assign_rows, make_grid, reduce_crossings

__all__ = ["Layout", "Point", "lay_out", "row_heights"]

Point = tuple[float, float]

BOX_GAP = 26.0
LINE_GAP = 12.0
ROW_GAP = 30.0
MOST_EXTRA_GAP = 60.0
PORT_GAP = 16.0
PLACEMENTS = 12


@dataclass(frozen=True)
class Layout:
    """A finished drawing, in pixels from its top left corner.

    Attributes:
        boxes: (left, top, width, height) per vertex.
        routes: corners per edge, from the source's lower side to the target's upper; between two
            corners of different x lies the gap between two rows.
        width, height: of the whole.
        crossings: pairs of edges that cross.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float
    crossings: int


def row_heights(sizes: Sequence[tuple[float, float]], rows: Sequence[int]) -> list[float]:
    """Height of each row: that of its highest box."""
    heights = [0.0] * (max(rows, default=-1) + 1)
    for (_, height), row in zip(sizes, rows, strict=True):
        heights[row] = max(heights[row], height)
    return heights


def lay_out(
    sizes: Sequence[tuple[float, float]],
    edges: Sequence[Edge],
    *,
    rows: Sequence[int] | None = None,
    tops: Sequence[float] | None = None,
) -> Layout:
    """Lay out boxes of ``sizes`` (width, height) that ``edges`` join.

    Args:
        sizes: one per vertex.
        edges: between vertices, without a cycle.
        rows: row of each vertex; computed by default. Every edge must lead down.
        tops: y of each row, and of the end after the last; computed by default.

    Raises:
        GraphError: the edges form a cycle.
    """
    rows = assign_rows(len(sizes), edges) if rows is None else rows
    grid = make_grid(len(sizes), edges, rows)
    crossings = reduce_crossings(grid)
    widths = [w for w, _ in sizes] + [0.0] * (len(grid.row_of) - len(sizes))
    x = straighten(grid, _place(grid, widths), lambda row: _offsets(grid, row, widths))
    left = min((x[v] - widths[v] / 2 for v in range(len(x))), default=0.0)
    x = [round(value - left, 1) for value in x]
    heights = row_heights(sizes, rows)
    heights += [0.0] * (len(grid.rows) - len(heights))
    if tops is None:
        tops = _tops(grid, x, heights)
    boxes = tuple(
        (round(x[v] - w / 2, 1), tops[grid.row_of[v]], w, h) for v, (w, h) in enumerate(sizes)
    )
    starts, ends = _ports(grid, x, widths, edges)
    routes = tuple(
        _route(grid, chain, x, boxes, tops, heights, starts[i], ends[i])
        for i, chain in enumerate(grid.chains)
    )
    width = max((x[v] + widths[v] / 2 for v in range(len(x))), default=0.0)
    return Layout(boxes, routes, round(width, 1), tops[-1] if tops else 0.0, crossings)


def _tops(grid: Grid, x: Sequence[float], heights: Sequence[float]) -> list[float]:
    tops = [0.0]
    for row, height in zip(grid.rows, heights, strict=True):
        # Flat curves are hard to follow: the wider the step, the higher the gap.
        step = max((abs(x[v] - x[t]) for v in row for t in grid.below[v]), default=0.0)
        gap = ROW_GAP + min(MOST_EXTRA_GAP, 0.08 * step)
        tops.append(round(tops[-1] + height + gap, 1))
    tops[-1] = round(tops[-2] + heights[-1], 1) if heights else 0.0
    return tops


def _place(grid: Grid, widths: Sequence[float]) -> list[float]:
    x = [0.0] * len(widths)
    for row in grid.rows:
        offsets = _offsets(grid, row, widths)
        for v, offset in zip(row, offsets, strict=True):
            x[v] = offset - offsets[-1] / 2
    for sweep in range(PLACEMENTS):
        down = sweep % 2 == 0
        for row in grid.rows if down else grid.rows[::-1]:
            wanted = []
            for v in row:
                near = grid.above[v] if down else grid.below[v]
                if sweep >= PLACEMENTS - 2:
                    near = grid.above[v] + grid.below[v]
                wanted.append(median([x[n] for n in near]) if near else x[v])
            offsets = _offsets(grid, row, widths)
            pulled = [w - o for w, o in zip(wanted, offsets, strict=True)]
            for v, value, offset in zip(row, _isotonic(pulled), offsets, strict=True):
                x[v] = value + offset
    return x


def _offsets(grid: Grid, row: Sequence[int], widths: Sequence[float]) -> list[float]:
    """Least distance of each vertex of a row from the first one."""
    offsets = [0.0]
    for left, right in pairwise(row):
        lines = left >= grid.count and right >= grid.count
        gap = LINE_GAP if lines else BOX_GAP
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + gap)
    return offsets


def _isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to ``values`` in squares.

    All count the same: with weights, a fork leans to one side and a chain of forks drifts away.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            other, members = pools.pop()
            mean = (mean * count + other * members) / (count + members)
            count += members
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _ports(
    grid: Grid, x: Sequence[float], widths: Sequence[float], edges: Sequence[Edge]
) -> tuple[list[float], list[float]]:
    """x of each edge's start and end, spread over the box's side in the order of the far ends."""
    starts, ends = [0.0] * len(edges), [0.0] * len(edges)
    outgoing: dict[int, dict[str, list[int]]] = {}
    incoming: dict[int, list[int]] = {}
    for i, edge in enumerate(edges):
        outgoing.setdefault(edge.source, {}).setdefault(edge.group, []).append(i)
        incoming.setdefault(edge.target, []).append(i)
    for v, groups in outgoing.items():
        tensors = sorted(
            groups.values(), key=lambda g: sum(x[grid.chains[i][1]] for i in g) / len(g)
        )
        for group, port in zip(tensors, _spread(x[v], widths[v], len(tensors)), strict=True):
            for i in group:
                starts[i] = port
    for v, arriving in incoming.items():
        arriving.sort(key=lambda i: x[grid.chains[i][-2]])
        for i, port in zip(arriving, _spread(x[v], widths[v], len(arriving)), strict=True):
            ends[i] = port
    return starts, ends


def _spread(center: float, width: float, count: int) -> list[float]:
    gap = min(PORT_GAP, (width - 2 * LINE_GAP) / max(count, 1))
    return [round(center + (i - (count - 1) / 2) * gap, 1) for i in range(count)]


def _route(
    grid: Grid,
    chain: Sequence[int],
    x: Sequence[float],
    boxes: Sequence[tuple[float, float, float, float]],
    tops: Sequence[float],
    heights: Sequence[float],
    start: float,
    end: float,
) -> tuple[Point, ...]:
    """Corners: straight down past every row that it crosses, bending only between rows."""
    _, top, _, height = boxes[chain[0]]
    row = grid.row_of[chain[0]]
    points = [(start, round(top + height, 1)), (start, round(tops[row] + heights[row], 1))]
    for v in chain[1:-1]:
        row = grid.row_of[v]
        points += [(x[v], tops[row]), (x[v], round(tops[row] + heights[row], 1))]
    points.append((end, boxes[chain[-1]][1]))
    kept: list[Point] = []
    for point in points:
        if kept and kept[-1] == point:
            continue
        if len(kept) > 1 and kept[-1][0] == kept[-2][0] == point[0]:
            kept.pop()
        kept.append(point)
    return tuple(kept)
