"""Writing arrays and texts to files, each whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["save_array", "save_arrays", "save_text"]

Array = np.ndarray[Any, np.dtype[Any]]


def save_arrays(folder: str, arrays: Mapping[str, Array]) -> dict[str, Path]:
    """Write each array to ``folder``, which is made; returns name -> path.

    File names keep letters, digits, dots, dashes and underscores of the arrays' names; where two
    become equal a number is added.
    """
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, array in arrays.items():
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "output"
        path, count = directory / f"{stem}.npy", 1
        while path in paths.values():
            count += 1
            path = directory / f"{stem}.{count}.npy"
        save_array(path, array)
        paths[name] = path
    return paths


def save_array(path: Path, array: Array) -> None:
    """Write one ``.npy`` file: to a temporary file beside it, synced, then renamed.

    The .npy format has no bfloat16 and no fp8: such arrays are widened to float32, which is exact.
    """
    if array.dtype.kind not in "biuf":
        array = array.astype(np.float32)
    _replace(path, lambda file: np.save(file, array, allow_pickle=False))


def save_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8: to a temporary file beside it, synced, then renamed."""
    _replace(path, lambda file: file.write(text.encode("utf-8")))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
