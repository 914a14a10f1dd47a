"""Layered layout: no boxes overlap, edges end at their boxes and pass between all others."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from nrt.drawing.coordinates import Layout, lay_out, row_heights
from nrt.drawing.layers import (
    Edge,
    assign_rows,
    count_crossings,
    make_grid,
    reduce_crossings,
)
from nrt.errors import GraphError

EXACT = 0.11
"""Pixels: coordinates are rounded to tenths."""

Sizes = list[tuple[float, float]]


def random_graph(seed: int, count: int, reach: int) -> tuple[Sizes, list[Edge]]:
    """Boxes of many sizes; each reads up to three of the ``reach`` before it, or one twice."""
    rng = np.random.default_rng(seed)
    sizes = [(float(w), float(h)) for w, h in rng.integers(20, 300, (count, 2))]
    edges = []
    for v in range(1, count):
        low = max(0, v - reach)
        for u in rng.integers(low, v, rng.integers(0, 4)):
            edges.append(Edge(int(u), v, f"t{rng.integers(2)}"))
    return sizes, edges


def check(sizes: Sizes, edges: list[Edge], layout: Layout) -> None:
    for (x, y, w, h), size in zip(layout.boxes, sizes, strict=True):
        assert (w, h) == size
        assert x >= -EXACT
        assert y >= 0
        assert x + w <= layout.width + EXACT
        assert y + h <= layout.height + EXACT
    for a, b in itertools.combinations(layout.boxes, 2):
        apart_x = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
        apart_y = a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        assert apart_x or apart_y, (a, b)
    for edge, route in zip(edges, layout.routes, strict=True):
        _check_route(layout, edge, route)


def _check_route(layout: Layout, edge: Edge, route: tuple[tuple[float, float], ...]) -> None:
    x, y, w, h = layout.boxes[edge.source]
    assert route[0][1] == pytest.approx(y + h, abs=EXACT)
    assert x <= route[0][0] <= x + w
    x, y, w, _ = layout.boxes[edge.target]
    assert route[-1][1] == y
    assert x <= route[-1][0] <= x + w
    for (x0, y0), (x1, y1) in itertools.pairwise(route):
        assert y1 > y0  # always down
        left, right = min(x0, x1), max(x0, x1)
        for bx, by, bw, bh in layout.boxes:
            in_the_way = left < bx + bw and right > bx
            beside = y1 <= by + EXACT or y0 >= by + bh - EXACT
            assert not in_the_way or beside, (edge, (x0, y0), (x1, y1))


@pytest.mark.parametrize(
    ("count", "reach"), [(1, 1), (2, 1), (7, 3), (31, 5), (64, 64), (97, 9), (150, 20)]
)
def test_boxes_and_edges_keep_clear(count: int, reach: int) -> None:
    sizes, edges = random_graph(count * 31 + reach, count, reach)
    check(sizes, edges, lay_out(sizes, edges))


def test_an_empty_picture() -> None:
    assert lay_out([], []) == Layout((), (), 0.0, 0.0, 0)


def test_a_chain_is_straight() -> None:
    sizes = [(float(w), 20.0) for w in (50, 131, 77, 300, 41)]
    layout = lay_out(sizes, [Edge(i, i + 1) for i in range(4)])
    centers = [x + w / 2 for x, _, w, _ in layout.boxes]
    assert max(centers) - min(centers) <= EXACT
    assert all(len(route) == 2 and route[0][0] == route[1][0] for route in layout.routes)


def test_a_chain_of_forks_does_not_drift() -> None:
    """Residual blocks: a long edge beside two boxes, fifty times."""
    edges = []
    for block in range(50):
        first = 3 * block
        edges += [Edge(first, first + 1), Edge(first + 1, first + 2)]
        edges += [Edge(first + 2, first + 3), Edge(first, first + 3)]
    layout = lay_out([(100.0, 30.0)] * 151, edges)
    check([(100.0, 30.0)] * 151, edges, layout)
    assert layout.crossings == 0
    joints = [layout.boxes[v][0] for v in range(0, 151, 3)]
    assert max(joints) - min(joints) <= 1
    assert layout.width < 350


def test_both_edges_of_a_square_arrive() -> None:
    """``Add(x, x)``."""
    layout = lay_out([(100.0, 30.0), (100.0, 30.0)], [Edge(0, 1, "x"), Edge(0, 1, "x")])
    first, second = layout.routes
    assert first[0] == second[0]
    assert first[-1][0] < second[-1][0]


def test_readers_of_a_tensor_share_a_trunk() -> None:
    edges = [Edge(v, v + 1) for v in range(6)] + [Edge(0, t, "") for t in (3, 4, 6)]
    grid = make_grid(7, edges, assign_rows(7, edges))
    dummies = len(grid.row_of) - 7
    assert dummies == 5  # and not 2 + 3 + 5
    assert grid.chains[-1][:-2] == [0, *range(7, 11)]
    apart = [Edge(e.source, e.target, str(i)) for i, e in enumerate(edges)]
    assert len(make_grid(7, apart, assign_rows(7, edges)).row_of) - 7 == 10


def test_rows_are_below_and_near() -> None:
    edges = [Edge(0, 2), Edge(2, 3), Edge(3, 4), Edge(1, 4), Edge(1, 4)]
    assert assign_rows(5, edges) == [0, 2, 1, 2, 3]  # 1 sinks to its only reader
    for seed in range(20):
        sizes, edges = random_graph(seed, 40, 12)
        rows = assign_rows(len(sizes), edges)
        assert min(rows) >= 0
        assert all(rows[e.target] > rows[e.source] for e in edges)


def test_a_cycle_is_refused() -> None:
    message = "arrows of a picture form a cycle; it can only show acyclic graphs"
    with pytest.raises(GraphError, match=message):
        lay_out([(9.0, 9.0)] * 3, [Edge(0, 1), Edge(1, 2), Edge(2, 1)])


def test_crossings_are_counted() -> None:
    for seed in range(10):
        sizes, edges = random_graph(seed, 25, 8)
        grid = make_grid(len(sizes), edges, assign_rows(len(sizes), edges))
        expected = 0
        for upper, lower in itertools.pairwise(grid.rows):
            lines = [(i, lower.index(t)) for i, v in enumerate(upper) for t in grid.below[v]]
            expected += sum(
                (a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(lines, 2)
            )
        assert count_crossings(grid) == expected
        before = sorted(map(sorted, grid.rows))
        assert reduce_crossings(grid) <= expected
        assert sorted(map(sorted, grid.rows)) == before


def test_crossings_that_need_not_be_are_gone() -> None:
    """A tree with its leaves in a wrong order."""
    edges = [Edge(0, t) for t in (1, 2, 3)]
    edges += [Edge(1 + i % 3, 4 + i) for i in range(9)]
    assert lay_out([(50.0, 20.0)] * 13, edges).crossings == 0


def test_given_rows_and_tops_are_kept() -> None:
    sizes = [(40.0, 10.0), (40.0, 20.0), (40.0, 30.0)]
    layout = lay_out(sizes, [Edge(0, 1), Edge(0, 2)], rows=[0, 2, 3], tops=[0, 50, 100, 150, 180])
    assert [box[1] for box in layout.boxes] == [0, 100, 150]
    assert layout.height == 180
    assert row_heights(sizes, [0, 2, 2]) == [10.0, 0.0, 30.0]


def test_six_hundred_nodes_in_time() -> None:
    sizes, edges = random_graph(5, 600, 12)
    start = time.perf_counter()
    layout = lay_out(sizes, edges)
    assert time.perf_counter() - start < 2.0
    assert lay_out(sizes, edges) == layout  # the same again
