"""Statistics of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nrt.errors import InputError

__all__ = ["LatencySummary", "summarize"]


@dataclass(frozen=True)
class LatencySummary:
    """Times in seconds; percentiles interpolate linearly between samples."""

    count: int
    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float

    def to_data(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)


def summarize(seconds: Sequence[float] | np.ndarray[Any, np.dtype[Any]]) -> LatencySummary:
    """Summarize samples.

    Raises:
        InputError: there are none.
    """
    if len(seconds) == 0:
        raise InputError("no run was measured; give a longer --duration")
    times = np.asarray(seconds, dtype=np.float64)
    median, p90, p95, p99 = (float(v) for v in np.percentile(times, [50, 90, 95, 99]))
    return LatencySummary(
        count=len(times),
        min=float(times.min()),
        mean=float(times.mean()),
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(times.max()),
    )
