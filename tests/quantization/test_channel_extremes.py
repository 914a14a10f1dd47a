"""Extremes of channels: exact, whatever came in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.quantization.channel_extremes import ChannelExtremes

Array = np.ndarray[Any, np.dtype[Any]]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def seen(parts: list[Array]) -> ChannelExtremes:
    found = ChannelExtremes(parts[0].shape[1])
    for part in parts:
        found.add(part, part)
    return found


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=30),
    data=st.data(),
)
def test_exact_in_any_order_and_portions(
    rows: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    array = np.array(rows, np.float32)
    shuffled = array[data.draw(st.permutations(range(len(rows))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    whole, parts = seen([array]), seen(np.split(shuffled, cuts))
    assert whole.lows() == tuple(map(min, zip(*rows, strict=True)))
    assert whole.highs() == tuple(map(max, zip(*rows, strict=True)))
    # As text, since 0 and -0 are equal.
    assert str(parts.lows()) == str(whole.lows())
    assert str(parts.highs()) == str(whole.highs())


def test_lows_and_highs_are_apart() -> None:
    found = ChannelExtremes(2)
    found.add(np.array([[1, -5]], np.float32), np.array([[3, -4]], np.float32))
    found.add(np.array([[2, -9]], np.float32), np.array([[7, -8]], np.float32))
    assert found.lows() == (1.0, -9.0)
    assert found.highs() == (7.0, -4.0)


def test_what_was_added_is_copied() -> None:
    array = np.ones((1, 2), np.float32)
    found = seen([array])
    array[:] = 9
    assert found.lows() == found.highs() == (1.0, 1.0)


def test_zeros_have_no_sign() -> None:
    zeros = np.array([[0.0, -0.0]], np.float32)
    for parts in ([zeros, zeros[:, ::-1]], [zeros[:, ::-1], zeros]):
        assert str(seen(parts).lows()) == str(seen(parts).highs()) == "(0.0, 0.0)"


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_refused_elsewhere_do_no_harm(value: float) -> None:
    found = seen([np.array([[1, value]], np.float32), np.array([[2, 5]], np.float32)])
    lows, highs = found.lows(), found.highs()
    assert lows is not None
    assert highs is not None
    assert (lows[0], highs[0]) == (1.0, 2.0)


def test_nothing_has_no_extremes() -> None:
    found = ChannelExtremes(3)
    assert found.lows() is found.highs() is None
    found.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert found.lows() is found.highs() is None
