"""Errors over batches are those of all samples together."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from nrt.insight.error_stats import ErrorStats, ErrorSums


def test_batches_add_up(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 31, 5))
    sums = ErrorSums()
    for part in (slice(0, 3), slice(3, 20), slice(20, 31)):
        sums.add(x[part], y[part])
    stats = sums.stats()
    assert stats.error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-12)
    assert stats.max_error == np.abs(x - y).max()
    assert stats.sqnr == pytest.approx(10 * np.log10(np.sum(y**2) / np.sum((x - y) ** 2)))
    assert (stats.nan, stats.inf, stats.elements) == (0, 0, 155)
    assert stats.to_data()["error"] == stats.error


def test_what_is_not_finite_is_counted() -> None:
    sums = ErrorSums()
    sums.add(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    sums.add(np.array([np.nan, np.inf, -np.inf], np.float16), np.ones(3, np.float32))
    stats = sums.stats()
    assert (stats.error, stats.max_error, stats.sqnr) == (math.inf, math.inf, None)
    assert (stats.nan, stats.inf, stats.elements) == (1, 2, 5)
    assert not stats.is_finite
    assert stats.to_data() == {
        "error": None, "max_error": None, "sqnr": None, "nan": 1, "inf": 2, "elements": 5,
    }  # fmt: skip


def test_a_reference_that_is_not_finite_is_no_success() -> None:
    sums = ErrorSums()
    sums.add(np.ones(2), np.array([1.0, np.inf]))
    assert sums.stats() == ErrorStats(math.inf, math.inf, 0, 0, 2)


def test_zeros() -> None:
    same, other = ErrorSums(), ErrorSums()
    same.add(np.zeros(4, ml_dtypes.bfloat16), np.zeros(4))
    other.add(np.array([0.0, 0.5]), np.zeros(2))
    assert (same.stats().error, same.stats().sqnr) == (0.0, None)
    assert (other.stats().error, other.stats().max_error) == (math.inf, 0.5)
