"""The heaviest set of mutually unordered elements of a partial order.

By the weighted form of Dilworth's theorem the heaviest antichain weighs as much as the fewest
chains, with repeats, that pass every element as often as its weight says. Those chains are a
minimum flow, and so a maximum flow on two copies of every element (Fulkerson 1956; Ford and
Fulkerson, *Flows in Networks*, 1962, section II.9); the flow is Dinic's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["heaviest_antichain"]


def heaviest_antichain(
    weights: Sequence[int], before: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
) -> tuple[int, ...]:
    """Indices, ascending, of an antichain of the largest total weight.

    Args:
        weights: of the elements, at least 0.
        before: ``before[a, b]``: a comes before b; a strict partial order (transitive).
    """
    count = len(weights)
    product = before.astype(np.float32) @ before.astype(np.float32)
    covers = before & (product == 0)
    flow = _Flow(2 * count + 2)
    source, sink = 2 * count, 2 * count + 1
    endless = sum(weights) + 1
    for v, weight in enumerate(weights):
        flow.add(source, v, weight)
        flow.add(count + v, sink, weight)
        flow.add(count + v, v, endless)  # a chain may pass through: covers alone are enough
    for a, b in np.argwhere(covers):
        flow.add(int(a), count + int(b), endless)
    reached = flow.cut(source, sink)
    return tuple(v for v in range(count) if reached[v] and not reached[count + v])


class _Flow:
    """A network of capacities; an edge and its reverse are neighbours in the tables."""

    def __init__(self, nodes: int) -> None:
        self.edges: list[list[int]] = [[] for _ in range(nodes)]
        self.target: list[int] = []
        self.capacity: list[int] = []

    def add(self, a: int, b: int, capacity: int) -> None:
        """An edge from ``a`` to ``b``."""
        for start, end, room in ((a, b, capacity), (b, a, 0)):
            self.edges[start].append(len(self.target))
            self.target.append(end)
            self.capacity.append(room)

    def cut(self, source: int, sink: int) -> list[bool]:
        """Nodes on the source's side of a minimum cut, after a maximum flow."""
        while (level := self._levels(source))[sink] >= 0:
            place = [0] * len(self.edges)
            while self._push(source, sink, level, place):
                pass
        return [depth >= 0 for depth in level]

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self.edges)
        level[source] = 0
        queue = [source]
        for node in queue:
            for edge in self.edges[node]:
                end = self.target[edge]
                if self.capacity[edge] and level[end] < 0:
                    level[end] = level[node] + 1
                    queue.append(end)
        return level

    def _push(self, source: int, sink: int, level: list[int], place: list[int]) -> bool:
        """Send flow along one shortest path; False when there is none left."""
        path: list[int] = []
        node = source
        while node != sink:
            if place[node] == len(self.edges[node]):
                if not path:
                    return False
                node = self.target[path.pop() ^ 1]
                place[node] += 1
                continue
            edge = self.edges[node][place[node]]
            end = self.target[edge]
            if self.capacity[edge] and level[end] == level[node] + 1:
                path.append(edge)
                node = end
            else:
                place[node] += 1
        room = min(self.capacity[edge] for edge in path)
        for edge in path:
            self.capacity[edge] -= room
            self.capacity[edge ^ 1] += room
        return True
