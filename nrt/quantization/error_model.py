"""What rounding and clipping do to a tensor, computed from its histogram.

Within a bin, magnitudes are taken to be spread evenly; everything else is exact. With step s, the
integral of the squared error from 0 to x has a closed form: every full cell around a multiple of s
gives s³/12, the distance d of x from its multiple k·s gives d³/3. Where k ends, at 127 or, of a
tensor without negatives, at 255, d grows beyond half a step, and the same formula tells what
clipping costs.
"""

from __future__ import annotations

import math

import numpy as np

from nrt.ir.op import Array
from nrt.quantization.histogram import Histogram

__all__ = ["clipped_share", "noise_power", "signal_power", "sqnr"]


def _steps(histogram: Histogram) -> int:
    """Steps above zero: of int8, or of uint8, which tensors without negatives take."""
    return 127 if histogram.lowest < 0 else 255


def noise_power(histogram: Histogram, threshold: float) -> float:
    """Sum of squared errors of all elements at ``threshold``, which is above 0."""
    steps = _steps(histogram)
    step = threshold / steps
    edges = _edges(histogram)
    multiples = np.minimum(np.rint(edges / step), steps)
    distances = edges - multiples * step
    return _total(histogram, edges, multiples * (step**3 / 12) + distances**3 / 3, distances**2)


def signal_power(histogram: Histogram) -> float:
    """Sum of squares of all elements."""
    edges = _edges(histogram)
    return _total(histogram, edges, edges**3 / 3, edges**2)


def sqnr(histogram: Histogram, threshold: float) -> float | None:
    """Signal-to-quantization-noise ratio in decibels; None where nothing is lost."""
    if histogram.nonzero == 0:
        return None
    noise = noise_power(histogram, threshold)
    return 10 * math.log10(signal_power(histogram) / noise) if noise else None


def clipped_share(histogram: Histogram, bins: int) -> float:
    """Share of all elements, zeros included, that lie beyond the first ``bins`` bins."""
    beyond = int(histogram.counts[bins:].sum())
    return beyond / histogram.total if beyond else 0.0


def _edges(histogram: Histogram) -> Array:
    """Edges of the used bins; the last one is the largest magnitude."""
    edges = np.arange(histogram.used + 1) * histogram.width
    edges[-1] = histogram.amax
    return edges


def _total(histogram: Histogram, edges: Array, integral: Array, value: Array) -> float:
    """Sum over bins of count times mean, of a function with this integral at the edges.

    The last bin has no width where the largest magnitude is its lower edge: there it is ``value``.
    """
    widths = np.diff(edges)
    spread = widths > 0
    means = np.where(spread, np.diff(integral) / np.where(spread, widths, 1), value[1:])
    return float(histogram.counts[: histogram.used] @ means)
