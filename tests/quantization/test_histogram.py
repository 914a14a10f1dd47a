"""Histograms: what many batches give is what all their elements give at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.errors import CalibrationError
from nrt.ir.ops.histogram import BINS
from nrt.quantization import METHODS, Histogram, find_threshold

Array = np.ndarray[Any, np.dtype[Any]]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def merged(parts: list[Array]) -> Histogram:
    total = Histogram.empty()
    for part in parts:
        total = total.merge(Histogram.of(part))
    return total


@settings(max_examples=300, deadline=None)
@given(batches=st.lists(st.lists(floats, max_size=20), max_size=8), data=st.data())
def test_order_and_size_of_batches_do_not_matter(
    batches: list[list[float]], data: st.DataObject
) -> None:
    arrays = [np.array(b, np.float32) for b in batches]
    everything = np.concatenate([np.zeros(0, np.float32), *arrays])
    whole = Histogram.of(everything)
    shuffled = everything[data.draw(st.permutations(range(len(everything))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(everything)), max_size=5)))
    assert merged(arrays) == merged(arrays[::-1]) == whole
    assert merged(np.split(shuffled, cuts)) == whole
    assert whole.total == len(everything)


@settings(max_examples=100, deadline=None)
@given(st.lists(floats, min_size=1, max_size=30), st.integers(-20, 20))
def test_a_power_of_two_only_moves_the_exponent(values: list[float], shift: int) -> None:
    x = np.array(values, np.float32)
    x = x[(np.abs(x) > 1e-20) & (np.abs(x) < 1e20)]
    before, after = Histogram.of(x), Histogram.of(x * np.float32(2.0**shift))
    np.testing.assert_array_equal(before.counts, after.counts)
    if x.size:
        assert after.exponent == before.exponent + shift


def test_merging_ranges_that_are_far_apart(rng: np.random.Generator) -> None:
    small = rng.standard_normal(1000).astype(np.float32) * np.float32(1e-30)
    large = rng.standard_normal(10).astype(np.float32) * np.float32(1e30)
    both = Histogram.of(small).merge(Histogram.of(large))
    assert both == Histogram.of(np.concatenate([large, small]))
    assert both.counts[0] >= 1000


def test_what_it_knows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 11)).astype(np.float32)
    x[2] = 0
    x[3, 3] = np.float32(-5.5)
    found = Histogram.of(x)
    assert (found.lowest, found.highest) == (-5.5, float(x.max()))
    assert (found.amax, found.signed) == (5.5, True)
    assert (found.total, found.zeros, found.nonzero) == (77, 11, 66)
    assert found.width == 8 / BINS
    assert found.used == int(5.5 / found.width) + 1
    assert found.edge(100) == 100 * found.width
    assert found.edge(found.used) == 5.5
    for k in np.flatnonzero(found.counts):
        inside = (np.abs(x) >= k * found.width) & (np.abs(x) < (k + 1) * found.width) & (x != 0)
        assert found.counts[k] == inside.sum()


def test_one_sided(rng: np.random.Generator) -> None:
    x = np.abs(rng.standard_normal(50)).astype(np.float32)
    assert not Histogram.of(x).signed
    assert Histogram.of(x).lowest == 0
    assert Histogram.of(-x).highest == 0
    np.testing.assert_array_equal(Histogram.of(-x).counts, Histogram.of(x).counts)


def test_negative_zero_is_zero() -> None:
    found = Histogram.of(np.array([-0.0, 0.0, 1.0], np.float32))
    assert (found.zeros, found.nonzero, found.signed) == (2, 1, False)


def test_nothing_and_zeros() -> None:
    for x in (np.zeros(0), np.zeros(9)):
        found = Histogram.of(x)
        assert (found.total, found.amax, found.used) == (x.size, 0.0, 0)
        assert found.merge(Histogram.of(np.ones(2))).total == x.size + 2


def test_searches_leave_it_alone(rng: np.random.Generator) -> None:
    x = rng.standard_normal(5000).astype(np.float32)
    found = Histogram.of(x)
    for method in METHODS:
        find_threshold(found, method)
        found.merge(Histogram.of(x * 100))
    assert found == Histogram.of(x)
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 1


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "a NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")]
)
def test_numbers_that_have_no_place(value: float, what: str) -> None:
    with pytest.raises(CalibrationError, match=f"tensor 'relu7' holds {what}, which has no place"):
        Histogram.of(np.array([1, value], np.float32), "relu7")


def test_equality_with_other_things() -> None:
    assert Histogram.empty() != 3
    assert Histogram.of(np.ones(1)) != Histogram.of(-np.ones(1))
