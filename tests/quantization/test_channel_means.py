"""Means of channels: rounded once, whatever came in which order."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.quantization.channel_means import ChannelMeans

Array = np.ndarray[Any, np.dtype[Any]]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXTREMES = [3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 1.1754944e-38, 0.0, -0.0, 1.0, -(2.0**24)]


def added(parts: list[Array], count: int = 1) -> ChannelMeans:
    found = ChannelMeans(parts[0].shape[1])
    for part in parts:
        found.add(part, count * len(part))
    return found


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(floats, floats), min_size=1, max_size=30),
    count=st.integers(1, 10**7),
    data=st.data(),
)
def test_exact_in_any_order_and_portions(
    rows: list[tuple[float, float]], count: int, data: st.DataObject
) -> None:
    array = np.array(rows, np.float32)
    wanted = tuple(
        float(sum(map(Fraction, column)) / (count * len(rows))) for column in array.T.tolist()
    )
    shuffled = array[data.draw(st.permutations(range(len(rows))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    assert added([array], count).means() == wanted
    assert added(np.split(shuffled, cuts), count).means() == wanted


def test_more_rows_than_wait_and_every_magnitude(rng: np.random.Generator) -> None:
    exponents = rng.integers(-149, 127, (333, 5))
    array = (rng.uniform(-2, 2, (333, 5)) * np.exp2(exponents)).astype(np.float32)
    array[: len(EXTREMES), 2] = EXTREMES
    wanted = tuple(float(sum(map(Fraction, c)) / 333) for c in array.T.tolist())
    one_by_one = added([row[None] for row in array[rng.permutation(333)]])
    assert one_by_one.means() == wanted
    # Asking changes nothing.
    one_by_one.add(array, 333)
    assert one_by_one.means() == wanted


def test_the_largest_sums_do_not_overflow() -> None:
    largest = np.full((200, 1), np.finfo(np.float32).max)
    assert added([largest]).means() == (float(np.finfo(np.float32).max),)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_sums_beyond_fp32_have_no_mean(value: float) -> None:
    found = added([np.ones((1, 2), np.float32)])
    found.add(np.array([[1, value]], np.float32), 1)
    assert found.means() is None


def test_nothing_has_no_mean() -> None:
    assert ChannelMeans(3).means() is None
