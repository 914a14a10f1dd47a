"""A tensor against its reference, over as many batches as there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.ir.op import Array

__all__ = ["ErrorStats", "ErrorSums"]


@dataclass(frozen=True)
class ErrorStats:
    """A tensor against its reference, over all samples.

    Attributes:
        error: ‖x − ref‖ / ‖ref‖; infinite where either side holds a NaN or an infinity.
        max_error: the largest |x − ref|; infinite likewise.
        nan, inf: how many elements of x are NaN or infinite.
        elements: how many there are.
    """

    error: float
    max_error: float
    nan: int
    inf: int
    elements: int

    @property
    def sqnr(self) -> float | None:
        """Signal-to-quantization-noise ratio, 20 log10(‖ref‖ / ‖x − ref‖), in dB.

        None where there is no noise at all, or where it is not finite.
        """
        if self.error == 0 or not math.isfinite(self.error):
            return None
        return -20 * math.log10(self.error)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.error)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity: an error without bound is None."""
        return {
            "error": self.error if self.is_finite else None,
            "max_error": self.max_error if math.isfinite(self.max_error) else None,
            "sqnr": self.sqnr,
            "nan": self.nan,
            "inf": self.inf,
            "elements": self.elements,
        }


@dataclass
class ErrorSums:
    """Sums over the batches, from which the statistics follow."""

    noise: float = 0.0
    signal: float = 0.0
    largest: float = 0.0
    nan: int = 0
    inf: int = 0
    elements: int = 0
    finite: bool = True

    def add(self, found: Array, reference: Array) -> None:
        """One more batch."""
        x, y = found.astype(np.float64), reference.astype(np.float64)
        self.elements += x.size
        self.nan += int(np.count_nonzero(np.isnan(x)))
        self.inf += int(np.count_nonzero(np.isinf(x)))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self.finite = False
            return
        difference = np.abs(x - y)
        self.noise += float(np.sum(difference**2))
        self.signal += float(np.sum(y**2))
        self.largest = max(self.largest, float(difference.max(initial=0.0)))

    def stats(self) -> ErrorStats:
        """Of all batches so far."""
        error, largest = math.inf, math.inf
        if self.finite:
            largest = self.largest
            if self.noise == 0:
                error = 0.0
            elif self.signal > 0:
                error = math.sqrt(self.noise / self.signal)
        return ErrorStats(error, largest, self.nan, self.inf, self.elements)
