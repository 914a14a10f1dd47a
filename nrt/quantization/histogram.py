"""Histograms of a tensor's magnitudes that merge without loss.

Bins are those of `nrt.ir.ops.histogram`: their width is a power of two and the largest magnitude
lies in their upper half. When a larger one comes along, the width doubles and pairs of bins join.
The histogram of many batches is therefore that of all their elements at once, in whatever order and
portions they come. Counts are 64 bits wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nrt.errors import CalibrationError
from nrt.ir.op import Array
from nrt.ir.ops.histogram import BINS, NEGATIVE, POSITIVE, WORDS, ZEROS, AbsHistogram

__all__ = ["Histogram"]

_INFINITY = 0x7F800000
# Exponent field of the largest magnitude -> log2 of the width: 2^(field - 127) is bin BINS / 2.
_BIAS = 127 + BINS.bit_length() - 2


@dataclass(frozen=True, eq=False)
class Histogram:
    """What calibration remembers of a tensor.

    Attributes:
        exponent: bin i holds magnitudes in [i, i + 1) · 2^exponent.
        counts: int64[`BINS`], elements per bin without those that are exactly zero; read-only.
        zeros: elements that are exactly zero, of either sign.
        lowest: the most negative element, 0 if none is negative.
        highest: the largest positive element, 0 if none is positive.
    """

    exponent: int
    counts: Array
    zeros: int
    lowest: float
    highest: float

    @classmethod
    def empty(cls) -> Histogram:
        """Of no elements."""
        return cls.from_words(np.zeros(WORDS, np.int64))

    @classmethod
    def of(cls, array: Array, name: str = "the tensor") -> Histogram:
        """Of the elements of ``array``, taken as fp32.

        Raises:
            CalibrationError: it holds a NaN or an infinity.
        """
        (words,) = AbsHistogram().reference(np.asarray(array, np.float32))
        return cls.from_words(words, name)

    @classmethod
    def from_words(cls, words: Array, name: str = "the tensor") -> Histogram:
        """From the output of `AbsHistogram`, which is copied.

        Args:
            words: int64[`WORDS`].
            name: of the tensor, for the error.

        Raises:
            CalibrationError: the tensor held a NaN or an infinity.
        """
        bits = [int(words[NEGATIVE]), int(words[POSITIVE])]
        if max(bits) >= _INFINITY:
            what = "a NaN" if max(bits) > _INFINITY else "an infinity"
            raise CalibrationError(
                f"tensor '{name}' holds {what}, which has no place in a range; look for a division "
                "or an overflow before it, or for such numbers in the data"
            )
        counts = np.array(words[:BINS], np.int64)
        counts.flags.writeable = False
        low, high = (float(np.array(b, np.uint32).view(np.float32)) for b in bits)
        exponent = max(max(bits) >> 23, 1) - _BIAS
        return cls(exponent, counts, int(words[ZEROS]), -low if low else 0.0, high)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of the elements of both; the same in either order."""
        exponent = max(self.exponent, other.exponent)
        counts = _coarser(self, exponent) + _coarser(other, exponent)
        counts.flags.writeable = False
        return Histogram(
            exponent,
            counts,
            self.zeros + other.zeros,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
        )

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(self.highest, -self.lowest)

    @property
    def signed(self) -> bool:
        """Whether an element is negative."""
        return self.lowest < 0

    @cached_property
    def nonzero(self) -> int:
        """Number of elements that are not zero."""
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """Number of elements."""
        return self.nonzero + self.zeros

    @cached_property
    def used(self) -> int:
        """Bins up to the last one that holds an element; 0 if all are empty."""
        found = np.flatnonzero(self.counts)
        return int(found[-1]) + 1 if found.size else 0

    def edge(self, bins: int) -> float:
        """Upper edge of the first ``bins`` bins; the largest magnitude behind the last used one."""
        return self.amax if bins >= self.used else bins * self.width

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        own = (self.exponent, self.zeros, self.lowest, self.highest)
        others = (other.exponent, other.zeros, other.lowest, other.highest)
        return own == others and bool(np.array_equal(self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]


def _coarser(histogram: Histogram, exponent: int) -> Array:
    """Counts of ``histogram`` in bins of width 2^exponent, which is no finer than its own."""
    shift = exponent - histogram.exponent
    if shift == 0:
        return histogram.counts
    counts = np.zeros(BINS, np.int64)
    group = min(2**shift, BINS) if shift < BINS.bit_length() else BINS
    counts[: BINS // group] = histogram.counts.reshape(-1, group).sum(axis=1)
    return counts
