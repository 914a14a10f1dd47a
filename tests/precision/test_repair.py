"""How many layers are given more precision, and in how many trials."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.precision.repair import least_that_holds


@given(st.integers(1, 300), st.data())
def test_the_least(most: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(1, most))
    asked: list[int] = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= least

    assert least_that_holds(most, holds) == least
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * math.log2(least) + 2


@pytest.mark.parametrize("most", [0, 1, 5, 8])
def test_nothing_holds(most: int) -> None:
    asked: list[int] = []

    def never(count: int) -> bool:
        asked.append(count)
        return False

    assert least_that_holds(most, never) is None
    assert asked == [c for c in (1, 2, 4, most) if 1 <= c < most] + [most] * (most > 0)


def test_a_count_that_is_worse_than_fewer() -> None:
    """It need not be the least, but it holds, and one less that was tried does not."""
    good = {5, 7, 8, 9, 10}
    found = least_that_holds(10, lambda count: count in good)
    assert found in good
    assert found - 1 not in good
