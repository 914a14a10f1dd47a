"""Values of command-line options. Every function raises argparse.ArgumentTypeError on bad text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from nrt.errors import BuildError
from nrt.sizes import parse_bytes

__all__ = [
    "AUTO",
    "Merge",
    "MergeOrShow",
    "accuracy",
    "input_file",
    "io_format",
    "layers",
    "names",
    "memory",
    "positive",
    "precision",
    "seconds",
    "shapes",
    "tensors",
    "streams",
    "tolerance",
]


AUTO = 0
"""What `streams` makes of ``auto``: the builder decides."""

_FLOATS = ("fp32", "fp16", "bf16", "fp64")
_LAYOUTS = ("nchw", "nhwc")
_METRICS = ("sqnr", "relative_error")


class Merge(argparse.Action):
    """Collect the dictionaries of a repeated option; a key given twice is an error."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del option_string
        merged: dict[str, Any] = dict(getattr(namespace, self.dest) or {})
        update: Mapping[str, Any] = values
        for key, value in update.items():
            if key in merged:
                raise argparse.ArgumentError(self, f"{key!r} is given twice")
            merged[key] = value
        setattr(namespace, self.dest, merged)


class MergeOrShow(Merge):
    """As `Merge`; without a value ``show_DEST`` becomes True instead."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is None:
            setattr(namespace, f"show_{self.dest}", True)
        else:
            super().__call__(parser, namespace, values, option_string)


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """``input:8x3x224x224,mask:8x128``; names may hold colons, the last one separates."""
    result: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, colon, dims = part.strip().rpartition(":")
        sizes = dims.lower().split("x")
        if not colon or not name or not all(_is_positive(s) for s in sizes):
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is not a shape; expected NAME:DIMxDIM..., "
                "such as input:8x3x224x224"
            )
        if name in result:
            raise argparse.ArgumentTypeError(f"{name!r} is given twice")
        result[name] = tuple(int(s) for s in sizes)
    return result


def precision(text: str) -> str | frozenset[str]:
    """``fp16``, or several permitted types: ``fp16,fp32``."""
    names = [name.strip().lower() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a precision; expected a name, or names separated by commas"
        )
    return names[0] if len(names) == 1 else frozenset(names)


def accuracy(text: str) -> tuple[str, float]:
    """``sqnr:20``: at least so many dB; ``relative_error:0.01``: at most so much."""
    metric, colon, bound = text.partition(":")
    metric = metric.strip().lower()
    if not colon or metric not in _METRICS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected METRIC:BOUND, such as sqnr:20 or relative_error:0.01"
        )
    return metric, _number(bound, "a number of at least 0 behind the colon")


def names(text: str) -> tuple[str, ...]:
    """``fold-batch-norm,fold-pad``."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names separated by commas")
    return found


def layers(text: str) -> dict[str, str]:
    """``PATTERN=P``; patterns may hold ``=``, the last one separates."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or not name:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected PATTERN=PRECISION, such as 'head*=fp32'"
        )
    return {pattern: name.strip().lower()}


def tensors(text: str) -> dict[str, str]:
    """``PATTERN=METHOD``; patterns may hold ``=``, the last one separates."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or not name:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected PATTERN=METHOD, such as 'head*=minmax'"
        )
    return {pattern: name.strip().lower()}


def io_format(text: str) -> dict[str, tuple[str | None, str | None]]:
    """``NAME:fp16:nhwc``, or without the name, the type or the layout; names may hold colons.

    Returns:
        Name -> (type, layout); the name is empty where none is given.
    """
    *parts, last = text.split(":")
    layout = last.lower() if last.lower() in _LAYOUTS else None
    if layout is not None:
        last = parts.pop() if parts else ""
    dtype = last.lower() if last.lower() in _FLOATS else None
    if dtype is None and last:
        parts.append(last)
    name = ":".join(parts)
    if (dtype is None and layout is None) or text.startswith(":"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME:TYPE:LAYOUT, such as input:fp16:nhwc; a type is one of "
            f"{', '.join(_FLOATS)}, a layout one of {', '.join(_LAYOUTS)}; the name may be left "
            "out where there is one, and so may either of the two"
        )
    return {name: (dtype, layout)}


def input_file(text: str) -> tuple[str, str]:
    """``NAME=FILE``; the first ``=`` separates."""
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FILE, such as input=x.npy")
    return name, path


def seconds(text: str) -> float:
    """A finite time of at least 0."""
    return _number(text, "a number of seconds of at least 0")


def tolerance(text: str) -> float:
    """A finite relative error of at least 0."""
    return _number(text, "a number of at least 0, such as 1e-3")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not _is_positive(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def streams(text: str) -> int:
    """A number of streams, or ``auto``."""
    if text.lower() == "auto":
        return AUTO
    if not _is_positive(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a whole number of at least 1, or auto"
        )
    return int(text)


def memory(text: str) -> int:
    """Bytes: ``512MiB``, ``2 GB`` or a plain number."""
    try:
        return parse_bytes(text)
    except BuildError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _number(text: str, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value
