"""Straight chains: vertices that follow each other without a branch share one x.

The blocks are those of Brandes and Köpf, "Fast and simple horizontal coordinate assignment" (2002),
but formed only where nothing branches and along long edges, so that a fork stays symmetric. No two
joints cross, hence "left of" orders the blocks; each in turn moves as near to the median of what
it is joined to as its neighbours let it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from nrt.drawing.layers import Grid

__all__ = ["median", "straighten"]

ROUNDS = 16

Offsets = Callable[[Sequence[int]], list[float]]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def straighten(grid: Grid, x: Sequence[float], offsets: Offsets) -> list[float]:
    """Positions near ``x`` that keep order and distances, with chains straight.

    Args:
        grid: rows in their final order.
        x: a position per vertex.
        offsets: a row's vertices -> the least distance of each from the first.
    """
    block_of, blocks = _blocks(grid)
    # Per block: those next to it on either side, with the least distance between the two.
    left: list[dict[int, float]] = [{} for _ in blocks]
    right: list[dict[int, float]] = [{} for _ in blocks]
    for row in grid.rows:
        places = offsets(row)
        for i in range(len(row) - 1):
            a, b = block_of[row[i]], block_of[row[i + 1]]
            distance = max(places[i + 1] - places[i], right[a].get(b, 0.0))
            right[a][b] = left[b][a] = distance
    order = _from_left(left, right)
    ends = [
        [block_of[n] for n in (*grid.above[members[0]], *_below(grid, members))]
        for members in blocks
    ]
    at = [median([x[v] for v in members]) for members in blocks]
    for b in order:
        at[b] = max([at[b], *(at[a] + d for a, d in left[b].items())])
    for sweep in range(ROUNDS):
        for b in order if sweep % 2 == 0 else reversed(order):
            if not ends[b]:
                continue
            wanted = median([at[n] for n in ends[b]])
            wanted = max([wanted, *(at[a] + d for a, d in left[b].items())])
            at[b] = min([wanted, *(at[c] - d for c, d in right[b].items())])
    return [at[b] for b in block_of]


def _below(grid: Grid, members: Sequence[int]) -> list[int]:
    """What reads a block: also the branches of a trunk on its way."""
    inside = set(members)
    return [n for v in members for n in grid.below[v] if n not in inside]


def _blocks(grid: Grid) -> tuple[list[int], list[list[int]]]:
    """Block of each vertex, and the vertices of each block from top to bottom."""
    block_of = [-1] * len(grid.row_of)
    blocks: list[list[int]] = []
    joined = _joints(grid)
    for row in grid.rows:
        for v in row:
            if v in joined:
                block_of[v] = block_of[joined[v]]
                blocks[block_of[v]].append(v)
            else:
                block_of[v] = len(blocks)
                blocks.append([v])
    return block_of, blocks


def _joints(grid: Grid) -> dict[int, int]:
    """Vertex -> the one above that it stands straight under."""
    joined: dict[int, int] = {}
    for upper, lower in pairwise(grid.rows):
        place = {v: i for i, v in enumerate(lower)}
        candidates = []
        for i, u in enumerate(upper):
            for v in grid.below[u]:
                trunk = u >= grid.count and v >= grid.count
                if trunk or len(grid.below[u]) == len(grid.above[v]) == 1:
                    candidates.append((not trunk, i, place[v], u, v))
        kept: list[tuple[int, int]] = []
        for _, i, j, u, v in sorted(candidates):  # long edges first
            if all((i - a) * (j - b) > 0 for a, b in kept):
                kept.append((i, j))
                joined[v] = u
    return joined


def _from_left(left: Sequence[dict[int, float]], right: Sequence[dict[int, float]]) -> list[int]:
    """The blocks, each after all to its left."""
    missing = [len(others) for others in left]
    order = [b for b, count in enumerate(missing) if count == 0]
    for b in order:  # grows while it is read
        for c in right[b]:
            missing[c] -= 1
            if missing[c] == 0:
                order.append(c)
    return order
