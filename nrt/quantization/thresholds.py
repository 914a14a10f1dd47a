"""Where to clip a tensor: thresholds from a histogram of its magnitudes.

A threshold t gives the scale t / 127: magnitudes up to t are rounded to multiples of it, larger
ones become t. Zeros are exact at every scale and have no say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nrt.errors import CalibrationError
from nrt.ir.op import Array
from nrt.quantization.error_model import noise_power
from nrt.quantization.histogram import Histogram

__all__ = ["METHODS", "Curve", "Threshold", "check_method", "find_threshold"]

LEVELS = 128
"""Magnitudes that 8 bits tell apart: 0 to 127."""

SMOOTHING = 1e-6
"""Share of the quantized distribution that is spread evenly over its bins."""

MOST_CLIPPED = 0.01
"""Share of the elements other than zero that a threshold of least divergence may clip."""

_DIGITS = 12
"""Scores that agree in so many decimals are equal: beyond is the noise of float64."""

_STEPS_PER_OCTAVE = 16
_REFINED = 64


@dataclass(frozen=True)
class Curve:
    """What a search looked at.

    Attributes:
        what: the score: ``KL divergence (nats)`` or ``mean squared error``.
        thresholds: in rising order.
        scores: of each of them; the smallest wins.
    """

    what: str
    thresholds: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Threshold:
    """The largest magnitude that is kept.

    Attributes:
        value: 0 for a tensor of zeros.
        bins: elements in so many bins lie below it.
        curve: the scores that a search compared, of at most 129 thresholds.
    """

    value: float
    bins: int
    curve: Curve | None = None


def minmax(histogram: Histogram, percentile: float) -> Threshold:
    """The largest magnitude: nothing is clipped."""
    del percentile
    return Threshold(histogram.amax, histogram.used)


def percentile(histogram: Histogram, percentile: float) -> Threshold:
    """The edge of the first bin that ``percentile`` percent of the magnitudes lie below.

    Of the elements that are not zero: a ReLU's zeros would otherwise hide its tail.
    """
    below = np.cumsum(histogram.counts)
    needed = np.ceil(percentile / 100 * float(below[-1]))
    bins = int(np.searchsorted(below, needed)) + 1
    return Threshold(histogram.edge(bins), min(bins, histogram.used))


def kl(histogram: Histogram, percentile: float) -> Threshold:
    """The threshold whose quantized distribution tells most of the original one.

    As NVIDIA published it (S. Migacz, "8-bit Inference with TensorRT", GTC 2017): for every number
    of bins i from 128 on, P is the histogram clipped to i bins, what lies beyond added to the last;
    Q is the histogram of these bins without what lies beyond, merged to 128 levels and spread
    evenly again over the bins of a level that are not empty; i with the least KL(P || Q) wins.

    It takes 2048 bins up to the largest magnitude; here their width is a power of two, and there
    are 2049 to 4096 of them. Where it is silent: level j takes the bins from floor(j·i/128) to
    floor((j+1)·i/128), so none is left over; a share of `SMOOTHING` of Q, as probabilities, goes
    evenly to all i bins, so that Q is nowhere zero; zeros are not counted; of equal divergences the
    larger threshold wins. And where the last of the i bins holds most of what is kept, P and Q are
    alike whatever lies beyond, so that of {1, 2} the 2 would go: no candidate clips more than
    `MOST_CLIPPED`.

    All candidates are computed at once: a level's share of the divergence needs no more than its
    count and the number of its bins that are not empty, both differences of running sums.
    """
    del percentile
    used = histogram.used
    if used <= LEVELS:
        return minmax(histogram, 0)
    counts = histogram.counts[:used].astype(np.float64)
    below, filled, weighted = map(_running, (counts, counts > 0, _xlogx(counts)))
    total = below[-1]
    bins = np.arange(LEVELS, used + 1)
    bins = bins[total - below[bins] <= MOST_CLIPPED * total]
    beyond = total - below[bins]
    last = counts[bins - 1]

    edges = np.arange(LEVELS + 1) * bins[:, None] // LEVELS
    mass, occupied = np.diff(below[edges], axis=1), np.diff(filled[edges], axis=1)
    kept = np.maximum(below[bins], 1)
    share = mass / np.maximum(occupied, 1) / kept[:, None]
    floor = SMOOTHING / bins
    log_q = np.log((1 - SMOOTHING) * share + floor[:, None])
    log_last = np.where(last > 0, log_q[:, -1], np.log(floor))

    entropy = weighted[bins - 1] + _xlogx(last + beyond) - total * np.log(total)
    cross = (mass * log_q).sum(axis=1) + beyond * log_last
    scores = (entropy - cross) / total
    return _best("KL divergence (nats)", histogram, bins, scores)


def mse(histogram: Histogram, percentile: float) -> Threshold:
    """The threshold of the least mean squared error; see `nrt.quantization.error_model`.

    Candidates are 16 per octave below the largest magnitude, then 64 around the best of these.
    """
    del percentile
    used = histogram.used
    octaves = np.arange(int(np.log2(used)) * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE
    bins = np.unique(np.rint(used * 2.0**-octaves).astype(np.int64))
    scores = _errors(histogram, bins)
    best = _winner(scores)
    low, high = bins[max(best - 1, 0)], bins[min(best + 1, len(bins) - 1)]
    bins = np.union1d(bins, np.rint(np.linspace(low, high, _REFINED)).astype(np.int64))
    return _best("mean squared error", histogram, bins, _errors(histogram, bins))


_SEARCHES: dict[str, Callable[[Histogram, float], Threshold]] = {
    "kl": kl,
    "percentile": percentile,
    "mse": mse,
    "minmax": minmax,
}

METHODS = tuple(_SEARCHES)
"""Names of the methods."""


def check_method(method: str, where: str = "method") -> None:
    """Raises CalibrationError when there is no such method."""
    if method not in _SEARCHES:
        raise CalibrationError(f"{where}: {method!r} is unknown; known: {', '.join(METHODS)}")


def find_threshold(histogram: Histogram, method: str, *, percentile: float = 99.99) -> Threshold:
    """The threshold for a tensor; 0 when it holds nothing but zeros.

    Args:
        histogram: of the tensor; it is not changed.
        method: one of `METHODS`.
        percentile: for that method, of the magnitudes other than zero.

    Raises:
        CalibrationError: the method is unknown, or the percentile not above 0 and up to 100.
    """
    check_method(method)
    if not 0 < percentile <= 100:
        raise CalibrationError(f"percentile={percentile:g}: expected above 0 and up to 100")
    if histogram.nonzero == 0:
        return Threshold(0.0, 0)
    return _SEARCHES[method](histogram, percentile)


def _running(values: Array) -> Array:
    """Sums of the first 0, 1, 2 … values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: Array) -> Array:
    return np.asarray(values * np.log(np.maximum(values, 1)))


def _errors(histogram: Histogram, bins: Array) -> Array:
    values = (noise_power(histogram, histogram.edge(int(b))) for b in bins)
    return np.fromiter(values, np.float64, len(bins)) / histogram.nonzero


def _winner(scores: Array) -> int:
    """Index of the smallest score, the last one of equals: the larger threshold clips less."""
    rounded = np.round(scores / max(float(np.abs(scores).max()), 1e-300), _DIGITS)
    return len(scores) - 1 - int(np.argmin(rounded[::-1]))


def _best(what: str, histogram: Histogram, bins: Array, scores: Array) -> Threshold:
    best = _winner(scores)
    shown = np.union1d(np.linspace(0, len(bins) - 1, LEVELS).astype(np.int64), [best])
    curve = Curve(
        what,
        tuple(histogram.edge(int(bins[k])) for k in shown),
        tuple(float(scores[k]) for k in shown),
    )
    return Threshold(histogram.edge(int(bins[best])), int(bins[best]), curve)
