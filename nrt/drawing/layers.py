"""Rows of a layered drawing, and the order within each that crosses few edges.

The first two steps of Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical
system structures" (1981): every vertex gets a row below those that it reads; an edge that spans
several rows is cut by dummy vertices; sweeps up and down sort each row by the barycenters of its
neighbours, and neighbours are exchanged while that helps (Gansner et al., "A technique for drawing
directed graphs", 1993). The dummies of one source and group are shared, so that a tensor with many
readers is one trunk. Everything is deterministic.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from nrt.errors import GraphError

__all__ = ["Edge", "Grid", "assign_rows", "count_crossings", "make_grid", "reduce_crossings"]

SWEEPS = 12
EXCHANGES = 4
TIGHTENINGS = 8


class Edge(NamedTuple):
    """From vertex to vertex; edges of one source and group share a trunk."""

    source: int
    target: int
    group: str = ""


@dataclass
class Grid:
    """A graph whose edges join neighbouring rows only.

    Attributes:
        rows: vertices from left to right, per row; those from ``count`` on are dummies.
        count: number of real vertices.
        row_of: row of each vertex.
        above, below: neighbours of each vertex in the rows next to its own.
        chains: per edge, its vertices from source to target.
    """

    rows: list[list[int]]
    count: int
    row_of: list[int]
    above: list[list[int]]
    below: list[list[int]]
    chains: list[list[int]]


def assign_rows(count: int, edges: Sequence[Edge]) -> list[int]:
    """A row for each vertex, below those of its predecessors; edges are short.

    Longest paths first; then vertices with more edges down than up sink, the others rise, within
    what their neighbours leave.

    Raises:
        GraphError: the edges form a cycle.
    """
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target, _ in edges:
        after[source].append(target)
        before[target].append(source)
    missing = [len(sources) for sources in before]
    order = [v for v in range(count) if missing[v] == 0]
    row = [0] * count
    for v in order:  # grows while it is read
        for target in after[v]:
            row[target] = max(row[target], row[v] + 1)
            missing[target] -= 1
            if missing[target] == 0:
                order.append(target)
    if len(order) != count:
        raise GraphError("the arrows of a picture form a cycle; it can only show acyclic graphs")
    for _ in range(TIGHTENINGS):
        moved = False
        for v in reversed(order):
            if len(after[v]) > len(before[v]):
                lowest = min(row[t] for t in after[v]) - 1
                moved |= lowest != row[v]
                row[v] = lowest
        for v in order:
            if len(before[v]) > len(after[v]):
                highest = max(row[s] for s in before[v]) + 1
                moved |= highest != row[v]
                row[v] = highest
        if not moved:
            break
    return row


def make_grid(count: int, edges: Sequence[Edge], row: Sequence[int]) -> Grid:
    """Cut the edges at the rows that they pass; rows in the order of a walk from the sources."""
    row_of = list(row)
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    trunks: dict[tuple[int, str], list[int]] = {}
    chains = []
    for source, target, group in edges:
        trunk = trunks.setdefault((source, group), [source])
        length = row_of[target] - row_of[source]
        while len(trunk) < length:
            dummy = len(row_of)
            row_of.append(row_of[trunk[-1]] + 1)
            above.append([trunk[-1]])
            below.append([])
            below[trunk[-1]].append(dummy)
            trunk.append(dummy)
        last = trunk[length - 1]
        below[last].append(target)
        above[target].append(last)
        chains.append([*trunk[:length], target])
    rows: list[list[int]] = [[] for _ in range(max(row_of, default=-1) + 1)]
    seen = [False] * len(row_of)
    for start in sorted(range(count), key=lambda v: (row_of[v], v)):
        stack = [start]
        while stack:
            v = stack.pop()
            if not seen[v]:
                seen[v] = True
                rows[row_of[v]].append(v)
                stack.extend(reversed(below[v]))
    return Grid(rows, count, row_of, above, below, chains)


def count_crossings(grid: Grid) -> int:
    """Pairs of edges between neighbouring rows that cross."""
    total = 0
    for upper, lower in pairwise(grid.rows):
        place = {v: i for i, v in enumerate(lower)}
        ends: list[int] = []
        for v in upper:
            mine = [place[t] for t in grid.below[v]]
            total += sum(len(ends) - bisect_right(ends, end) for end in mine)
            for end in mine:
                insort(ends, end)
    return total


def reduce_crossings(grid: Grid) -> int:
    """Reorder the rows so that few edges cross; returns how many still do."""
    fewest = count_crossings(grid)
    best = [list(r) for r in grid.rows]
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        _sweep(grid, down=sweep % 2 == 0)
        _exchange(grid)
        found = count_crossings(grid)
        if found < fewest:
            fewest, best = found, [list(r) for r in grid.rows]
    grid.rows = best
    return fewest


def _sweep(grid: Grid, *, down: bool) -> None:
    rows = grid.rows if down else grid.rows[::-1]
    near = grid.above if down else grid.below
    for fixed, row in pairwise(rows):
        place = {v: i for i, v in enumerate(fixed)}
        # A vertex without neighbours there stays about where it is.
        scale = len(fixed) / len(row)
        key = {
            v: sum(place[n] for n in near[v]) / len(near[v]) if near[v] else i * scale
            for i, v in enumerate(row)
        }
        row.sort(key=key.__getitem__)


def _exchange(grid: Grid) -> None:
    """Exchange neighbours in a row where that leaves fewer crossings."""
    place = [0] * len(grid.row_of)
    for row in grid.rows:
        for i, v in enumerate(row):
            place[v] = i
    for _ in range(EXCHANGES):
        better = False
        for row in grid.rows:
            for i in range(len(row) - 1):
                left, right = row[i], row[i + 1]
                now = then = 0
                for near in (grid.above, grid.below):
                    ends = [(place[a], place[b]) for a in near[left] for b in near[right]]
                    now += sum(a > b for a, b in ends)
                    then += sum(a < b for a, b in ends)
                if then < now:
                    row[i], row[i + 1] = right, left
                    place[left], place[right] = i + 1, i
                    better = True
        if not better:
            break
