"""Means of a tensor's channels that do not depend on the order of what is added.

A float is a whole number of 24 bits times a power of two, so sums of floats are whole numbers in
units of the smallest one's lowest bit. They are kept as such, 32 bits a word: nothing is rounded
before the last division.
"""

from __future__ import annotations

import numpy as np

from nrt.ir.op import Array

__all__ = ["ChannelMeans"]

_SIGNIFICAND = 24
_UNIT = 172
"""Sums count in 2^-172: there the lowest bit of 2^-149, the smallest fp32, as `frexp` gives it."""
_BITS = 32
_WORDS = 10
"""2^128 is below 2^(32 · 9 + 12 - 172); a number that is shifted reaches into the next word."""
_ROWS = 64
"""Rows that wait to be added at once."""


class ChannelMeans:
    """Means of ``channels`` channels, from fp32 sums of portions of them.

    A word holds up to 2^31 additions.
    """

    def __init__(self, channels: int) -> None:
        self._words = np.zeros((_WORDS, channels), np.int64)
        self._waiting: list[Array] = []
        self._count = 0
        self._finite = True

    def add(self, sums: Array, count: int) -> None:
        """Add portions of the channels.

        Args:
            sums: fp32[rows, channels], what the elements of each portion add up to; copied.
            count: elements of a channel in all rows together.
        """
        self._count += count
        self._finite = self._finite and bool(np.isfinite(sums).all())
        if self._finite:
            self._waiting.append(np.array(sums, np.float64))
        if len(self._waiting) >= _ROWS:
            self._fold()

    def means(self) -> tuple[float, ...] | None:
        """The mean of each channel, rounded once, to fp64.

        None if nothing was added, or a sum was beyond fp32.
        """
        if not self._finite or not self._count:
            return None
        self._fold()
        divisor = self._count << _UNIT
        # Python divides whole numbers of any length with one rounding.
        return tuple(
            sum(word << (_BITS * k) for k, word in enumerate(words)) / divisor
            for words in self._words.T.tolist()
        )

    def _fold(self) -> None:
        if not self._waiting:
            return
        significands, exponents = np.frexp(np.concatenate(self._waiting))
        self._waiting.clear()
        whole = (significands * 2**_SIGNIFICAND).astype(np.int64)
        words, shifts = np.divmod(exponents.astype(np.int64) + (_UNIT - _SIGNIFICAND), _BITS)
        whole <<= shifts
        for k in range(int(words.min()), int(words.max()) + 1):
            here = np.where(words == k, whole, 0)
            self._words[k] += (here & (2**_BITS - 1)).sum(axis=0)
            self._words[k + 1] += (here >> _BITS).sum(axis=0)
