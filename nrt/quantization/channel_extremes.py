"""Extremes of a tensor's channels, exact in whatever order and portions the elements come."""

from __future__ import annotations

import numpy as np

from nrt.ir.op import Array

__all__ = ["ChannelExtremes"]


class ChannelExtremes:
    """Smallest and largest elements of ``channels`` channels, from those of portions of them.

    A zero has no sign here: which one of two a minimum gives depends on their order.
    """

    def __init__(self, channels: int) -> None:
        self._lows = np.full(channels, np.inf, np.float32)
        self._highs = np.full(channels, -np.inf, np.float32)
        self._any = False

    def add(self, lows: Array, highs: Array) -> None:
        """Add portions of the channels.

        Args:
            lows: fp32[rows, channels], the smallest element of each portion; copied.
            highs: fp32[rows, channels], the largest element of each portion; copied.
        """
        self._lows = np.minimum(self._lows, lows.min(axis=0, initial=np.inf))
        self._highs = np.maximum(self._highs, highs.max(axis=0, initial=-np.inf))
        self._any = self._any or len(lows) > 0

    def lows(self) -> tuple[float, ...] | None:
        """The smallest element of each channel; None if nothing was added."""
        return _numbers(self._lows) if self._any else None

    def highs(self) -> tuple[float, ...] | None:
        """The largest element of each channel; None if nothing was added."""
        return _numbers(self._highs) if self._any else None


def _numbers(array: Array) -> tuple[float, ...]:
    # Adding 0 makes -0 a 0.
    return tuple((array + np.float32(0)).tolist())
