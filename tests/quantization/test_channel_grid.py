"""Scales and zero points of channels: what they hold, and what they gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.dtypes import INT8, UINT8
from nrt.quantization import Histogram, MethodRules, TensorRange
from nrt.quantization.channel_grid import ChannelGrid, ChannelUse, channel_grid

Array = np.ndarray[Any, np.dtype[Any]]

MANY = 16384
"""Elements of a channel whose extremes are taken for its range."""


def entry(data: Array) -> TensorRange:
    """The range of ``data`` [rows, channels], by its largest magnitude."""
    data = data.astype(np.float32)
    return TensorRange.of(
        "x",
        Histogram.of(data),
        MethodRules("minmax"),
        tuple(data.astype(np.float64).mean(axis=0).tolist()),
        tuple(data.min(axis=0).tolist()),
        tuple(data.max(axis=0).tolist()),
    )


def use(weights: Array, *, mixed: bool = True, scalable: bool = True, movable: bool = False) -> Any:
    """How a product with ``weights`` [K, C] reads, or one of each channel where it mixes none."""
    sizes = np.abs(weights)
    shares = sizes / sizes.max(axis=1, keepdims=True) if mixed else np.ones_like(sizes)
    energy = np.square(weights).sum(axis=0)
    return ChannelUse(energy, shares.max(axis=0), mixed, scalable, movable)


def rounded(data: Array, grid: ChannelGrid) -> Array:
    info = np.iinfo(grid.dtype.numpy)
    q = np.clip(np.rint(data / grid.scales) + grid.zeros, info.min, info.max)
    return np.asarray((q - grid.zeros) * grid.scales)


def positive(rng: np.random.Generator, tops: Array) -> Array:
    data = rng.random((MANY, len(tops))) * tops
    data[0], data[1] = tops, 0
    return data


def test_channels_that_no_sum_mixes_have_all_steps(rng: np.random.Generator) -> None:
    tops = np.array([4.0, 2.0, 1.0, 0.5])
    data = positive(rng, tops)
    grid = channel_grid(entry(data), use(np.ones((4, 4)), mixed=False))
    assert grid is not None
    assert grid.dtype is UINT8
    np.testing.assert_allclose(grid.scales, tops / 255, rtol=1e-6)
    assert grid.scale == pytest.approx(4 / 255)
    np.testing.assert_allclose(grid.ratios, tops / 4, rtol=1e-6)
    assert not grid.zeros.any()
    assert not grid.offsets.any()


def test_a_quiet_channel_keeps_a_share_of_the_range(rng: np.random.Generator) -> None:
    data = positive(rng, np.array([4.0, 1e-4, 0.0]))
    grid = channel_grid(entry(data), use(np.ones((2, 3)), mixed=False))
    assert grid is not None
    np.testing.assert_allclose(grid.ratios, [1, 1 / 32, 1 / 32], rtol=1e-6)


def test_mixed_channels_balance_data_and_weights(rng: np.random.Generator) -> None:
    tops = np.array([4.0, 1.0, 1.0, 0.25])
    weights = np.array([[1.0, 1.0, 0.25, 1.0], [0.5, -1.0, 0.25, 1.0]])
    grid = channel_grid(entry(positive(rng, tops)), use(weights))
    assert grid is not None
    wanted = np.sqrt(tops / [1, 1, 0.25, 1])
    np.testing.assert_allclose(grid.ratios, wanted / wanted.max(), rtol=1e-6)
    # Nothing that was seen clips.
    assert (grid.scales * 255 >= tops * (1 - 1e-6)).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_method_clips_stays_clipped(rng: np.random.Generator, mixed: bool) -> None:
    tops = np.array([8.0, 2.0, 0.5])
    found = replace(entry(positive(rng, tops)), threshold=2.0)
    grid = channel_grid(found, use(np.ones((5, 3)), mixed=mixed))
    assert grid is not None
    assert grid.scales[0] * 255 == pytest.approx(2.0)
    assert (grid.scales * 255 >= np.minimum(tops, 2) * (1 - 1e-6)).all()


def test_zero_points_stand_at_the_means(rng: np.random.Generator) -> None:
    centres = np.array([3.0, -2.0, 0.5, 0.0])
    data = centres + rng.uniform(-1, 1, (MANY, 4))
    grid = channel_grid(entry(data), use(np.ones((3, 4)), scalable=False, movable=True))
    assert grid is not None
    assert grid.dtype is INT8
    # One scale for all: that of what is around a mean, but for the largest mean itself.
    assert len(set(grid.scales.tolist())) == 1
    assert grid.scale == pytest.approx(3 / 127, rel=0.02)
    np.testing.assert_allclose(-grid.zeros * grid.scales, data.mean(axis=0), atol=grid.scale)
    means = np.asarray(entry(data).means)
    np.testing.assert_allclose(grid.as_read(means), 0, atol=grid.scale)


def test_zero_points_fit_int8_however_far_the_means_are(rng: np.random.Generator) -> None:
    data = np.array([100.0, -100.0, 0.0]) + rng.uniform(-1, 1, (MANY, 3))
    found = entry(data)
    grid = channel_grid(found, use(np.ones((3, 3)), scalable=True, movable=True))
    assert grid is not None
    assert (np.abs(grid.zeros) <= 127).all()
    np.testing.assert_allclose(rounded(data, grid), data, atol=float(grid.scales.max()) * 0.501)


@pytest.mark.parametrize("count", [20, 1000, MANY, 4 * MANY])
def test_few_elements_may_not_have_shown_the_range(count: int) -> None:
    data = np.zeros((count, 3))
    data[0] = 4.0, 0.5, 3.9
    grid = channel_grid(entry(data), use(np.ones((2, 3)), mixed=False))
    assert grid is not None
    # The extreme of so many normal numbers, to that of many; never more than the tensor's range.
    larger = np.sqrt(np.log(MANY) / np.log(min(count, MANY)))
    wanted = np.minimum(np.array([4.0, 0.5, 3.9]) * larger, 4.0)
    np.testing.assert_allclose(grid.scales * 255, wanted, rtol=1e-6)


@pytest.mark.parametrize("known", ["no extremes", "only zeros", "alike", "uint8"])
def test_one_scale_where_it_is_as_good(rng: np.random.Generator, known: str) -> None:
    alike = positive(rng, np.full(4, 2.0))
    anywhere = use(np.ones((4, 4)), movable=True)
    if known == "no extremes":
        found = replace(entry(positive(rng, np.array([4.0, 1.0]))), lows=None, highs=None)
        anywhere = use(np.ones((4, 2)), movable=True)
    elif known == "only zeros":
        found = entry(np.zeros((4, 4)))
    elif known == "alike":
        found = entry(alike)
    else:  # never negative: zero points gain no range
        found = entry(alike + 1)
    assert channel_grid(found, anywhere) is None


def test_means_may_be_unknown(rng: np.random.Generator) -> None:
    data = np.array([3.0, -3.0]) + rng.uniform(-1, 1, (100, 2))
    found = replace(entry(data), means=None)
    assert channel_grid(found, use(np.ones((2, 2)), scalable=False, movable=True)) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans(), st.booleans(), st.booleans())
def test_noise_is_never_more_than_with_one_scale(
    seed: int, channels: int, mixed: bool, scalable: bool, movable: bool
) -> None:
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.uniform(-3, 1, channels))
    data = rng.standard_normal((300, channels)) * spread + rng.uniform(-2, 2, channels)
    if rng.random() < 0.5:
        data = np.maximum(data, 0)
    weights = rng.standard_normal((channels if not mixed else 7, channels))
    found = entry(data)
    grid = channel_grid(found, use(weights, mixed=mixed, scalable=scalable, movable=movable))
    if grid is None:
        return
    assert scalable or movable
    energy = np.square(weights).sum(axis=0)
    limit = 255 if grid.dtype is UINT8 else 127
    assert (grid.scales**2 * energy).sum() < 0.9 * (found.threshold / limit) ** 2 * energy.sum()
    assert (grid.scales > 0).all()
    # All that was seen is within half a step.
    slack = 0.5 + 1e-3
    assert (np.abs(rounded(data, grid) - data) <= slack * grid.scales + 1e-6 * np.abs(data)).all()
    # A sum of what readers read is the sum of the channels, after its weights and bias changed.
    read = rounded(data, grid) / grid.ratios + grid.offsets
    scaled = weights * grid.ratios
    np.testing.assert_allclose(
        read @ scaled.T - scaled @ grid.offsets,
        rounded(data, grid) @ weights.T,
        rtol=1e-6,
        atol=1e-6 * np.abs(weights).sum() * (1 + np.abs(data).max()),
    )
