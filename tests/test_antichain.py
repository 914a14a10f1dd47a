"""The heaviest antichain, against all subsets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.antichain import heaviest_antichain


def closed(
    edges: list[tuple[int, int]], count: int
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    before = np.zeros((count, count), np.bool_)
    for a, b in edges:
        before[min(a, b), max(a, b)] = a != b
    for middle in range(count):
        before |= np.outer(before[:, middle], before[middle])
    return before


def is_antichain(
    members: tuple[int, ...], before: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
) -> bool:
    return not any(before[a, b] or before[b, a] for a, b in combinations(members, 2))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20),
)
def test_no_subset_is_heavier(weights: list[int], edges: list[tuple[int, int]]) -> None:
    count = len(weights)
    before = closed([(a % count, b % count) for a, b in edges], count)
    found = heaviest_antichain(weights, before)
    assert is_antichain(found, before)
    best = max(
        sum(weights[i] for i in members)
        for size in range(count + 1)
        for members in combinations(range(count), size)
        if is_antichain(members, before)
    )
    assert sum(weights[i] for i in found) == best


def test_a_chain_and_no_order_at_all() -> None:
    chain = closed([(i, i + 1) for i in range(4)], 5)
    assert heaviest_antichain([3, 1, 4, 1, 2], chain) == (2,)
    assert heaviest_antichain([3, 1, 4, 1, 2], np.zeros((5, 5), np.bool_)) == (0, 1, 2, 3, 4)
    assert heaviest_antichain([], np.zeros((0, 0), np.bool_)) == ()
