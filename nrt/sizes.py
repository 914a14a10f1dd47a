"""Sizes of memory as text."""

from __future__ import annotations

import re

from nrt.errors import BuildError

__all__ = ["human_bytes", "parse_bytes"]

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b?)\s*", re.IGNORECASE | re.ASCII)


def human_bytes(count: int) -> str:
    """``1536`` -> ``1.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def parse_bytes(size: int | str) -> int:
    """``"512 MiB"``, ``"2GB"``, ``1 << 30`` -> bytes.

    Raises:
        BuildError: it is no positive size.
    """
    if type(size) is int and size > 0:
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is not None and match.group(2).lower() in _UNITS:
        count = int(float(match.group(1)) * _UNITS[match.group(2).lower()])
        if count > 0:
            return count
    raise BuildError(
        f"{size!r} is no size of memory; expected a positive number of bytes, or text such as "
        "'512 MiB' or '2 GB'"
    )
