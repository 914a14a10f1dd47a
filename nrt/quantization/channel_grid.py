"""Integers for a tensor whose channels have ranges of their own.

    x[c] ≈ s[c] · (q[c] - z[c])        s[c] <= s        y[k] = Σ w[k, c] · x[c] + b[k]

What reads q as numbers of one scale s, and without a zero point, reads x' = s · q. A sum over
channels takes the rest into its weights and its bias,

    y[k] = Σ w'[k, c] · x'[c] + b[k] - Σ w'[k, c] · s · z[c]        w'[k, c] = w[k, c] · s[c] / s

so that neither costs anything at run time, as long as what computes x can store s[c] and z[c].

Scales of channels that a sum mixes balance what rounding x costs against what rounding w' costs:
the equalization of M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, with ranges that were measured. A depthwise convolution mixes none, and its
channels have all steps for themselves. Zero points put the middle of a channel at its mean, where
the channels of a tensor of both signs lie apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import INT8, DType
from nrt.ir.op import Array
from nrt.quantization.calibration import TensorRange
from nrt.quantization.weights import LIMITS, scale_of

__all__ = ["ChannelGrid", "ChannelUse", "channel_grid"]

_LEAST_GAIN = 0.1
"""Of the noise: less is not worth constants of its own."""

_LEAST_SHARE = 1 / 32
"""Of the tensor's range that a channel keeps, however small its elements were: other data may have
larger ones."""


_ENOUGH = 16384
"""Elements of a channel whose extremes are its range: of normal numbers they lie at 4.4 standard
deviations, about where clipping and rounding to 8 bits cost least together."""


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """How a tensor is stored as int8 or uint8.

    Attributes:
        dtype: of the integers.
        scales: fp32[C], of each channel, above 0.
        zeros: int64[C], zero points of each channel, within the range of ``dtype``.
    """

    dtype: DType
    scales: Array
    zeros: Array

    @property
    def scale(self) -> float:
        """The one that readers use: the largest."""
        return float(self.scales.max())

    @property
    def ratios(self) -> Array:
        """fp64[C]: what readers multiply the weights of each channel by, at most 1."""
        return np.asarray(self.scales.astype(np.float64) / self.scale)

    @property
    def offsets(self) -> Array:
        """fp64[C]: by how much what readers read is more than it stands for."""
        return np.asarray(self.zeros * self.scale)

    def as_read(self, means: Array) -> Array:
        """fp64[C]: the means of what readers read, from those of the channels."""
        return np.asarray(means / self.ratios + self.offsets)

    def __str__(self) -> str:
        text = f"{self.dtype} of scale {self.scale:.4g}"
        if self.scales.min() < self.scales.max():
            text += f", of channels {self.scales.min():.4g} and up"
        return text + (", around the means of channels" if self.zeros.any() else "")


@dataclass(frozen=True, eq=False)
class ChannelUse:
    """What products do with the channels of a tensor, and what may be done to these.

    Attributes:
        energy: fp64[C], sum of the squares of the weights of a channel.
        loudest: fp64[C], its largest weight as a share of the largest of the same output channel.
        mixed: whether sums go over several channels.
        scalable: what computes the tensor can store a scale per channel.
        movable: it can store zero points, and no reader pads.
    """

    energy: Array
    loudest: Array
    mixed: bool
    scalable: bool
    movable: bool


def channel_grid(entry: TensorRange, use: ChannelUse) -> ChannelGrid | None:
    """The grid of channels with the least noise in sums of products.

    No channel has a smaller range than it has of the tensor's: what clips is what the method that
    found the threshold clips. Around their means, channels have as much less of a range as their
    extremes are nearer to those.

    Args:
        entry: the range of the tensor, with extremes and means of its channels.
        use: of the same channels.

    Returns:
        None where one scale is as good, or little is known of the channels.
    """
    if entry.lows is None or entry.highs is None or entry.threshold == 0:
        return None
    threshold, zero = entry.threshold, np.zeros(len(entry.lows))
    lows, highs = np.asarray(entry.lows), np.asarray(entry.highs)
    margin = _margin(entry.total / len(lows))
    found = [(threshold, zero, np.maximum(highs, -lows) * margin)]
    if use.movable and entry.signed and entry.means is not None:
        centres = np.asarray(entry.means)
        around = np.maximum(highs - centres, centres - lows)
        found.append((threshold * around.max() / entry.amax, centres, around * margin))
    best: tuple[Array, Array] | None = None
    least = (1 - _LEAST_GAIN) * threshold**2 * use.energy.sum()
    for limit, centres, reach in found:
        kept = np.maximum(np.minimum(reach, limit), np.abs(centres))
        for ranges in _ranges(use, limit, kept, max(reach.max() / margin, kept.max())):
            noise = (ranges**2 * use.energy).sum()
            if noise < least:
                best, least = (ranges, centres), noise
    if best is None:
        return None
    ranges, centres = best
    limit = LIMITS[entry.stored]
    scales = np.asarray([scale_of(r, entry.stored) for r in ranges], np.float32)
    zeros = np.clip(np.rint(-centres / scales), -limit, limit).astype(np.int64)
    return ChannelGrid(
        entry.stored, scales, zeros if entry.stored is INT8 else np.zeros_like(zeros)
    )


def _margin(count: float) -> float:
    """How much larger than the extreme of ``count`` numbers that of `_ENOUGH` numbers is.

    Of normal numbers it grows as the root of the logarithm. Calibrated on few images, the last
    layers of a network have few pixels, and other data reach further.
    """
    return math.sqrt(max(1.0, math.log(_ENOUGH) / math.log(max(count, 2.0))))


def _ranges(use: ChannelUse, limit: float, kept: Array, top: float) -> list[Array]:
    """fp64[C] each: ranges of channels that hold ``kept``, and no more than ``top``.

    Nothing larger was seen, and a cap that the tensor reaches is to be where bytes saturate.
    """
    found = [np.full(len(kept), max(limit, kept.max()))]
    if use.scalable:
        own = np.maximum(kept, _LEAST_SHARE * limit)
        wanted = np.sqrt(own / np.maximum(use.loudest, _LEAST_SHARE)) if use.mixed else own
        found.append(np.minimum(wanted * (own / wanted).max(), top))
    return found
