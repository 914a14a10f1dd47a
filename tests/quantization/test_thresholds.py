"""Thresholds: against slow programs written from the definition, and the bars of the project."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nrt.errors import CalibrationError
from nrt.quantization import METHODS, Histogram, find_threshold
from nrt.quantization.error_model import clipped_share, noise_power, signal_power, sqnr
from nrt.quantization.thresholds import MOST_CLIPPED, SMOOTHING, _winner

Array = np.ndarray[Any, np.dtype[Any]]


def slow_divergence(counts: Array, bins: int) -> float:
    """KL(P || Q) of one candidate, bin by bin."""
    kept = [int(c) for c in counts[:bins]]
    p = kept.copy()
    p[-1] += int(counts[bins:].sum())
    q = [0.0] * bins
    for level in range(128):
        members = [b for b in range(bins) if level * bins // 128 <= b < (level + 1) * bins // 128]
        occupied = [b for b in members if kept[b] > 0]
        for b in occupied:
            q[b] = sum(kept[m] for m in members) / len(occupied)
    result = 0.0
    for b in range(bins):
        share = (1 - SMOOTHING) * q[b] / max(sum(q), 1) + SMOOTHING / bins
        probability = p[b] / sum(p)
        if probability > 0:
            result += probability * math.log(probability / share)
    return result


def gaussian(rng: np.random.Generator) -> Array:
    """A million samples of sigma 1, 20 of which are outliers at 40 sigma."""
    x = rng.standard_normal(1_000_000).astype(np.float32)
    x[rng.choice(x.size, 20, replace=False)] = 40 * rng.choice([-1, 1], 20)
    return x


# -- the bars --------------------------------------------------------------------------------------


def test_bar_of_a_gaussian_with_outliers(rng: np.random.Generator) -> None:
    assert 3.5 <= find_threshold(Histogram.of(gaussian(rng)), "kl").value <= 5.5


def test_bar_of_its_relu(rng: np.random.Generator) -> None:
    x = np.maximum(gaussian(rng), 0)
    assert 3.0 <= find_threshold(Histogram.of(x), "kl").value <= 5.5


@pytest.mark.parametrize("method", METHODS)
def test_bar_of_batches(rng: np.random.Generator, method: str) -> None:
    """Order and size of batches do not change a threshold by a single bit."""
    x = rng.standard_normal((96, 500)).astype(np.float32) * 2.0 ** rng.integers(-6, 7, (96, 1))
    expected = find_threshold(Histogram.of(x), method)
    for size in (1, 7, 32):
        rows = rng.permutation(96)
        found = Histogram.empty()
        for start in range(0, 96, size):
            found = found.merge(Histogram.of(x[rows[start : start + size]]))
        assert find_threshold(found, method) == expected


# -- KL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "relu", "few", "narrow"])
def test_divergences_by_the_definition(rng: np.random.Generator, kind: str) -> None:
    x = rng.standard_normal(3000).astype(np.float32)
    x = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "few": np.round(x * 4) / 4,
        "narrow": np.append(x * np.float32(0.1), np.float32(1.9)),
    }[kind]
    histogram = Histogram.of(x)
    found = find_threshold(histogram, "kl")
    assert found.curve is not None
    assert found.curve.what == "KL divergence (nats)"
    total = histogram.nonzero
    scores = dict(zip(found.curve.thresholds, found.curve.scores, strict=True))
    checked = 0
    for threshold, score in list(scores.items())[:: max(1, len(scores) // 12)]:
        bins = min(round(threshold / histogram.width), histogram.used)
        if threshold == histogram.amax:
            bins = histogram.used
        assert histogram.counts[bins:].sum() <= MOST_CLIPPED * total
        slow = slow_divergence(histogram.counts[: histogram.used], bins)
        assert score == pytest.approx(slow, abs=1e-11)
        checked += 1
    assert checked >= 2
    assert scores[found.value] == min(scores.values())


def test_an_outlier_is_clipped_where_little_is_lost(rng: np.random.Generator) -> None:
    x = np.append(rng.standard_normal(200_000), 60).astype(np.float32)
    found = find_threshold(Histogram.of(x), "kl")
    assert found.value < 7
    assert clipped_share(Histogram.of(x), found.bins) > 0


def test_of_two_values_none_is_clipped() -> None:
    """P and Q of the smaller value alone agree perfectly; the guard keeps the larger."""
    x = np.repeat(np.array([1, 2], np.float32), 500)
    assert find_threshold(Histogram.of(x), "kl").value == 2


def test_few_elements_are_not_clipped_away(rng: np.random.Generator) -> None:
    x = (rng.random(60) + 0.1).astype(np.float32)
    assert find_threshold(Histogram.of(x), "kl").value == float(x.max())


def test_of_equal_scores_the_larger_threshold_wins() -> None:
    """What float64 cannot tell apart is equal."""
    assert _winner(np.array([3.0, 1.0, 1.0 + 1e-14, 2.0])) == 2
    assert _winner(np.array([3.0, 1.0, 1.0 + 1e-9, 2.0])) == 1
    assert _winner(np.zeros(4)) == 3


def test_zeros_have_no_say(rng: np.random.Generator) -> None:
    x = rng.standard_normal(50_000).astype(np.float32)
    with_zeros = np.append(x, np.zeros(10**6, np.float32))
    for method in METHODS:
        expected = find_threshold(Histogram.of(x), method)
        assert find_threshold(Histogram.of(with_zeros), method) == expected


# -- the other methods -----------------------------------------------------------------------------


def test_minmax(rng: np.random.Generator) -> None:
    x = rng.standard_normal(999).astype(np.float32)
    assert find_threshold(Histogram.of(x), "minmax").value == float(np.abs(x).max())


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.99, 100.0])
def test_percentile(rng: np.random.Generator, share: float) -> None:
    x = rng.standard_normal(30_000).astype(np.float32)
    x[:1000] = 0
    histogram = Histogram.of(x)
    found = find_threshold(histogram, "percentile", percentile=share).value
    magnitudes = np.sort(np.abs(x[x != 0]))
    exact = magnitudes[math.ceil(share / 100 * magnitudes.size) - 1]
    assert exact <= found <= exact + histogram.width
    if share == 100:
        assert found == magnitudes[-1]


def quantized(x: Array, threshold: float) -> Array:
    scale = threshold / 127
    return np.asarray(np.clip(np.rint(x / scale), -127, 127) * scale)


def test_mse_beats_every_other_threshold(rng: np.random.Generator) -> None:
    x = rng.laplace(size=100_000).astype(np.float32)
    histogram = Histogram.of(x)
    found = find_threshold(histogram, "mse")

    def error(threshold: float) -> float:
        return float(((x - quantized(x.astype(np.float64), threshold)) ** 2).mean())

    least = min(error(t) for t in np.linspace(0.1, 1, 200) * histogram.amax)
    assert error(found.value) <= least * 1.01
    assert found.curve is not None
    assert found.curve.what == "mean squared error"
    assert min(found.curve.scores) == pytest.approx(error(found.value), rel=0.01)
    assert list(found.curve.thresholds) == sorted(found.curve.thresholds)


# -- what quantization loses -----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.7, 0.2])
def test_noise_and_signal_are_those_of_the_elements(
    rng: np.random.Generator, factor: float
) -> None:
    x = rng.standard_normal(400_000).astype(np.float32)
    histogram = Histogram.of(x)
    threshold = factor * histogram.amax
    noise = ((x - quantized(x.astype(np.float64), threshold)) ** 2).sum()
    signal = (x.astype(np.float64) ** 2).sum()
    assert noise_power(histogram, threshold) == pytest.approx(noise, rel=0.02)
    assert signal_power(histogram) == pytest.approx(signal, rel=1e-4)
    decibels = sqnr(histogram, threshold)
    assert decibels == pytest.approx(10 * np.log10(signal / noise), abs=0.1)


def test_clipped_share_counts_elements(rng: np.random.Generator) -> None:
    x = rng.standard_normal(10_000).astype(np.float32)
    histogram = Histogram.of(x)
    bins = histogram.used // 2
    beyond = np.abs(x) >= bins * histogram.width
    assert clipped_share(histogram, bins) == beyond.mean() > 0
    assert clipped_share(histogram, histogram.used) == 0


# -- degenerate tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, 0.3, -7.25, 1e-42, 3e38])
def test_a_constant_is_kept(method: str, value: float) -> None:
    x = np.full(100, value, np.float32)
    found = find_threshold(Histogram.of(x), method)
    assert found.value == abs(float(x[0]))
    assert clipped_share(Histogram.of(x), found.bins) == 0


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_nothing(method: str) -> None:
    for x in (np.zeros(0), np.zeros(5)):
        assert find_threshold(Histogram.of(x), method).value == 0
        assert sqnr(Histogram.of(x), 0.0) is None


def test_nothing_is_lost_of_a_power_of_two() -> None:
    assert sqnr(Histogram.of(np.ones(4)), 1.0) is None


def test_an_unknown_method() -> None:
    with pytest.raises(CalibrationError, match="method: 'median' is unknown; known: kl, percent"):
        find_threshold(Histogram.empty(), "median")


@pytest.mark.parametrize("share", [0.0, -1.0, 100.5, math.nan])
def test_an_impossible_percentile(share: float) -> None:
    with pytest.raises(CalibrationError, match=r"percentile=.*expected above 0 and up to 100"):
        find_threshold(Histogram.empty(), "percentile", percentile=share)
