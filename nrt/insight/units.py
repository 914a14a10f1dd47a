"""Numbers with units, for reports."""

from __future__ import annotations

__all__ = ["microseconds", "rate"]

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def microseconds(seconds: float) -> str:
    """``12.3 µs``; milliseconds from ten thousand of them."""
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-2 else f"{seconds * 1e3:,.2f} ms"


def rate(per_second: float, unit: str) -> str:
    """``rate(7.9e14, "FLOP/s")`` is ``790 TFLOP/s``: three digits and the largest prefix below."""
    for scale, prefix in _PREFIXES:
        if per_second >= scale:
            return f"{per_second / scale:.3g} {prefix}{unit}"
    return f"{per_second:.3g} {unit}"
