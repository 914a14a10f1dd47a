"""Measured times on disk: JSON, content-addressed keys, written atomically."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.errors import BuildError

__all__ = ["Timing", "TimingCache"]

_FORMAT = "nrt timing cache 1"


@dataclass(frozen=True)
class Timing:
    """Outcome of a measurement.

    Attributes:
        seconds: median; None when the candidate must not be used.
        note: why not.
    """

    seconds: float | None
    note: str = ""


class TimingCache:
    """Key -> `Timing`; `save` merges with what another process wrote meanwhile.

    Args:
        path: the file; it need not exist.

    Raises:
        BuildError: the file exists but is no timing cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = self._read()
        self._new: dict[str, Timing] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Timing:
        return self._entries[key]

    def __setitem__(self, key: str, timing: Timing) -> None:
        """Keep a timing.

        Raises:
            BuildError: its time is no positive, finite number of seconds.
        """
        try:
            timing = _entry(timing.seconds, timing.note)
        except ValueError as error:
            raise BuildError(f"timing cache {self.path}: {error} cannot be kept") from error
        self._entries[key] = timing
        self._new[key] = timing

    def __len__(self) -> int:
        return len(self._entries)

    def save(self) -> None:
        """Write what was added; atomic. Another build's entries are kept, if it saved before.

        Raises:
            BuildError: the file was damaged meanwhile, or cannot be written.
        """
        if not self._new:
            return
        self._entries = {**self._read(), **self._new}
        data = {
            "format": _FORMAT,
            "entries": {k: [t.seconds, t.note] for k, t in sorted(self._entries.items())},
        }
        try:
            self._write(json.dumps(data, indent=0))
        except OSError as error:
            raise BuildError(
                f"timing cache {self.path}: cannot be written ({error}); name another with "
                "--timing-cache"
            ) from error
        self._new = {}

    def _write(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    def _read(self) -> dict[str, Timing]:
        try:
            data = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BuildError(f"timing cache {self.path}: {error}; {_WAY_OUT}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise BuildError(f"timing cache {self.path}: expected format {_FORMAT!r}; {_WAY_OUT}")
        try:
            return {str(k): _entry(*v) for k, v in data["entries"].items()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BuildError(
                f"timing cache {self.path}: bad entry ({error}); {_WAY_OUT}"
            ) from error


_WAY_OUT = "delete it or name another with --timing-cache"


def _entry(seconds: Any, note: Any) -> Timing:
    if seconds is not None and not (isinstance(seconds, float) and 0 < seconds < math.inf):
        raise ValueError(f"time {seconds!r}")
    return Timing(seconds, str(note))
