"""Every ``NRT_*`` environment variable, typed. The only reader of ``os.environ``.

================  =========================================================  =======================
variable          meaning                                                    default
================  =========================================================  =======================
NRT_CACHE_DIR     folder of the cubin and timing caches                      ``~/.cache/nrt``
NRT_VERIFY        1: verify the graph before and after each pass             0
NRT_WORKERS       processes that compile kernels                             CPU count, at most 16
NRT_TARGET        default target: ``auto``, ``cpu``, ``cuda``                ``auto``
================  =========================================================  =======================
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nrt.errors import SettingsError

__all__ = ["Settings", "settings"]


@dataclass(frozen=True)
class Settings:
    """The environment as nrt reads it; see the module's table."""

    cache_dir: Path
    verify: bool
    workers: int
    target: str


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if text == "":
        return default
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise SettingsError(f"{name}={text!r}: expected 0 or 1")


def _positive(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if text == "":
        return default
    if not text.isdigit() or int(text) == 0:
        raise SettingsError(f"{name}={text!r}: expected a whole number of at least 1")
    return int(text)


def settings() -> Settings:
    """Read the environment now.

    Raises:
        SettingsError: a variable holds something else than its type.
    """
    cache = os.environ.get("NRT_CACHE_DIR", "").strip()
    target = os.environ.get("NRT_TARGET", "").strip() or "auto"
    return Settings(
        cache_dir=Path(cache).expanduser() if cache else Path.home() / ".cache" / "nrt",
        verify=_flag("NRT_VERIFY", False),
        workers=_positive("NRT_WORKERS", min(16, os.cpu_count() or 1)),
        target=target,
    )
