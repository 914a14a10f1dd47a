"""How far outputs are from a reference: relative error in the Frobenius norm, per output."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.errors import InputError

__all__ = ["TOLERANCES", "OutputError", "compare_outputs", "default_tolerance", "relative_error"]

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCES: Mapping[str, float] = {
    "fp32": 1e-4,
    "tf32": 5e-3,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8": 1e-1,
    "fp8": 1e-1,
    "fp8e4m3": 1e-1,
}
"""Relative error allowed for a whole network, by the coarsest type it may compute in. Wider than
what a single layer is tested at: errors add up over depth."""


@dataclass(frozen=True)
class OutputError:
    """One output against its reference.

    Attributes:
        name: the output's.
        error: ‖out − ref‖ / ‖ref‖; infinite when either side holds NaN or an infinity.
        max_error: the largest absolute difference.
        tolerance: largest error that passes.
        reason: why it fails; empty when it passes.
    """

    name: str
    error: float
    max_error: float
    tolerance: float
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


def default_tolerance(precisions: Collection[str]) -> float:
    """The tolerance of the coarsest of ``precisions``; at least that of fp32."""
    return max((TOLERANCES.get(p, 0.0) for p in precisions), default=0.0) or TOLERANCES["fp32"]


def relative_error(out: Array, ref: Array) -> float:
    """‖out − ref‖ / ‖ref‖ in float64; infinite when either side holds NaN or an infinity.

    Against a reference of zeros only zeros have error 0, anything else is infinitely wrong.
    """
    x, y = np.asarray(out, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.inf
    difference, norm = float(np.linalg.norm(x - y)), float(np.linalg.norm(y))
    if difference == 0:
        return 0.0
    return difference / norm if norm > 0 else math.inf


def compare_outputs(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], tolerance: float
) -> tuple[OutputError, ...]:
    """Compare each output of ``reference``.

    Raises:
        InputError: an output of the reference is missing.
    """
    results = []
    for name, ref in reference.items():
        if name not in outputs:
            raise InputError(
                f"output {name!r} of the reference is missing; found {', '.join(outputs) or 'none'}"
            )
        results.append(_compare_one(name, np.asarray(outputs[name]), np.asarray(ref), tolerance))
    return tuple(results)


def _compare_one(name: str, out: Array, ref: Array, tolerance: float) -> OutputError:
    if out.shape != ref.shape:
        reason = f"shape {out.shape}, the reference has {ref.shape}"
        return OutputError(name, math.inf, math.inf, tolerance, reason)
    for array, owner in ((ref, "the reference"), (out, "the output")):
        wrong = int(np.count_nonzero(~np.isfinite(np.asarray(array, dtype=np.float64))))
        if wrong:
            reason = f"{owner} holds {wrong} NaN or infinite value(s)"
            return OutputError(name, math.inf, math.inf, tolerance, reason)
    error = relative_error(out, ref)
    difference = np.abs(out.astype(np.float64) - ref.astype(np.float64))
    reason = "" if error <= tolerance else f"error {error:.3g} is over the tolerance {tolerance:g}"
    return OutputError(name, error, float(difference.max(initial=0.0)), tolerance, reason)
