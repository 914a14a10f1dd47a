"""The result of calibration: a range per tensor, in memory and in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from nrt.dtypes import BYTES, INT8, UINT8, DType
from nrt.errors import CalibrationError
from nrt.quantization.error_model import clipped_share, sqnr
from nrt.quantization.histogram import Histogram
from nrt.quantization.report import calibration_html, calibration_plot, calibration_text
from nrt.quantization.thresholds import METHODS, Curve, check_method, find_threshold
from nrt.quantization.weights import scale_of

__all__ = ["VERSION", "Calibration", "MethodRules", "TensorRange"]

VERSION = 3
"""Of the file, and of the algorithms: raised when equal data would give other ranges."""

_FORMAT = "nrt calibration"


@dataclass(frozen=True)
class MethodRules:
    """Which method finds a tensor's threshold.

    Attributes:
        method: of tensors that no pattern matches.
        tensors: (name pattern as of `fnmatch`, method), the first match counts.
        percentile: of the method ``percentile``.
    """

    method: str = "kl"
    tensors: tuple[tuple[str, str], ...] = ()
    percentile: float = 99.99

    def __post_init__(self) -> None:
        check_method(self.method)
        for pattern, method in self.tensors:
            check_method(method, f"tensor pattern {pattern!r}")
        if not 0 < self.percentile <= 100:
            raise CalibrationError(
                f"percentile={self.percentile:g}: expected above 0 and up to 100"
            )

    def of(self, name: str) -> str:
        """The method for the tensor ``name``."""
        for pattern, method in self.tensors:
            if fnmatchcase(name, pattern):
                return method
        return self.method

    def check_names(self, names: Mapping[str, Any]) -> None:
        """Raises CalibrationError when a pattern matches none of ``names``."""
        for pattern, _ in self.tensors:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise CalibrationError(
                    f"tensor pattern {pattern!r} matches none of the {len(names)} tensors; they "
                    f"are {', '.join(list(names)[:8])}{' …' if len(names) > 8 else ''}"
                )

    def __str__(self) -> str:
        text = self.method
        if "percentile" in (self.method, *(m for _, m in self.tensors)):
            text += f", percentile {self.percentile:g}"
        return "; ".join([text, *(f"{p}={m}" for p, m in self.tensors)])


@dataclass(frozen=True)
class TensorRange:
    """What int8 and fp8 need to know of a tensor, and how much int8 loses.

    Attributes:
        name: of the value in the graph.
        method: that found the threshold.
        threshold: magnitudes up to here are kept; 0 if the tensor holds nothing but zeros.
        lowest: the most negative element, 0 if none is negative.
        highest: the largest positive element, 0 if none is positive.
        total: elements that were counted.
        zeros: those that are exactly zero, as a ReLU's are; every scale holds them exactly.
        clipped: share of elements beyond the threshold.
        sqnr: signal-to-quantization-noise ratio in decibels at the threshold; None where nothing is
            lost.
        curve: the scores that a search compared.
        means: fp64, of each channel that the products with constant weights which read the tensor,
            also behind a MaxPool, sum over: axis 1 for a Conv, the last one for a MatMul. None
            where no such product reads it, they disagree on the axis, or a sum was beyond fp32.
        lows: fp32, smallest element of each channel, of the channels that ``means`` counts. None
            where no such product reads it or they disagree on the axis.
        highs: fp32, largest element of each channel, likewise.
    """

    name: str
    method: str
    threshold: float
    lowest: float
    highest: float
    total: int
    zeros: int
    clipped: float
    sqnr: float | None
    curve: Curve | None = field(default=None, repr=False)
    means: tuple[float, ...] | None = field(default=None, repr=False)
    lows: tuple[float, ...] | None = field(default=None, repr=False)
    highs: tuple[float, ...] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        histogram: Histogram,
        rules: MethodRules,
        means: tuple[float, ...] | None = None,
        lows: tuple[float, ...] | None = None,
        highs: tuple[float, ...] | None = None,
    ) -> TensorRange:
        """The range of the tensor ``name`` from its histogram and what is known of its channels."""
        method = rules.of(name)
        found = find_threshold(histogram, method, percentile=rules.percentile)
        return cls(
            name,
            method,
            found.value,
            histogram.lowest,
            histogram.highest,
            histogram.total,
            histogram.zeros,
            clipped_share(histogram, found.bins),
            sqnr(histogram, found.value),
            found.curve,
            means,
            lows,
            highs,
        )

    @property
    def amax(self) -> float:
        """The largest magnitude that was seen."""
        return max(self.highest, -self.lowest)

    @property
    def signed(self) -> bool:
        """Whether an element was negative."""
        return self.lowest < 0

    @property
    def stored(self) -> DType:
        """What precision int8 stores: uint8 where no element was negative, of twice the steps."""
        return INT8 if self.signed else UINT8

    @property
    def zero_share(self) -> float:
        """Share of elements that are exactly zero."""
        return self.zeros / self.total if self.total else 0.0

    @property
    def scale(self) -> float:
        """The step, above 0: ``x ≈ scale · clip(round(x / scale), -127, 127)``; uint8: 0, 255."""
        return scale_of(self.threshold, self.stored)


@dataclass(frozen=True)
class Calibration(Mapping[str, TensorRange]):
    """Ranges of a model's tensors: a mapping from names of values in its fused graph.

    A tensor that only moves another one's elements (a Reshape, a Transpose) has that one's range.

    Attributes:
        model: `model_digest` of the imported graph.
        data: `DataDigest` of the samples.
        rules: the methods.
        samples: how many samples were run.
        tensors: name -> range, in the graph's order.
    """

    model: str
    data: str
    rules: MethodRules
    samples: int
    tensors: Mapping[str, TensorRange] = field(repr=False)

    def __getitem__(self, name: str) -> TensorRange:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def scale(self, name: str, dtype: DType | None = None) -> float:
        """The scale of the tensor ``name`` in a type of few bits, by default `TensorRange.stored`.

        int8 and uint8 spend steps on what is frequent: up to the threshold. fp8 has a step for
        every magnitude, down to some 2^-15 of the largest: it keeps all that was seen (the field's
        amax scaling), unless a pattern of ``tensors=`` gave the tensor a method of its own.
        """
        entry = self.tensors[name]
        asked = any(fnmatchcase(name, pattern) for pattern, _ in self.rules.tensors)
        dtype = dtype or entry.stored
        return scale_of(entry.threshold if dtype in BYTES or asked else entry.amax, dtype)

    def without_extremes(self) -> Calibration:
        """The same ranges and means, without extremes of channels: a tensor has one scale."""
        kept = {n: replace(entry, lows=None, highs=None) for n, entry in self.tensors.items()}
        return replace(self, tensors=kept)

    def without_channels(self) -> Calibration:
        """The same ranges, from which nothing is known of channels: no bias is corrected."""
        found = self.without_extremes()
        kept = {name: replace(entry, means=None) for name, entry in found.tensors.items()}
        return replace(found, tensors=kept)

    def __str__(self) -> str:
        return calibration_text(self)

    def _repr_html_(self) -> str:
        return calibration_html(self)

    def plot(self, name: str) -> Any:
        """The curve of a tensor's search as a matplotlib figure.

        Raises:
            CalibrationError: there is no such tensor, its method searches nothing, or matplotlib is
                not installed.
        """
        return calibration_plot(self, name)

    def check_model(self, digest: str) -> None:
        """Raises CalibrationError when ``digest`` is another model's `model_digest`."""
        if digest != self.model:
            raise CalibrationError(
                f"the calibration is of model {self.model[:12]}, this model is {digest[:12]}: its "
                "nodes or weights differ; calibrate this model"
            )

    # -- file ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "version": VERSION,
            "model": self.model,
            "data": self.data,
            "method": self.rules.method,
            "tensor_methods": [list(pair) for pair in self.rules.tensors],
            "percentile": self.rules.percentile,
            "samples": self.samples,
            "tensors": [_written(entry) for entry in self.tensors.values()],
        }
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote.

        Raises:
            CalibrationError: it is no such file, or of another version.
            OSError: it cannot be read.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise ValueError(f"it lacks the mark '{_FORMAT}'")
            if content["version"] == VERSION:
                return cls._of(content)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise CalibrationError(
                f"{path} is no calibration cache: {error}; calibrate again into another file"
            ) from error
        raise CalibrationError(
            f"calibration cache {path} is stale: version is {content['version']!r}, now {VERSION}. "
            "Calibrate again with overwrite=True (--overwrite), or name another file"
        )

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Calibration:
        rules = MethodRules(
            content["method"],
            tuple((str(p), str(m)) for p, m in content["tensor_methods"]),
            float(content["percentile"]),
        )
        entries = [_entry(data) for data in content["tensors"]]
        tensors = {entry.name: entry for entry in entries}
        model, data = str(content["model"]), str(content["data"])
        return cls(model, data, rules, int(content["samples"]), tensors)

    def check_fresh(
        self, path: str | os.PathLike[str], model: str, data: str, rules: MethodRules
    ) -> None:
        """Raises CalibrationError when this, read from ``path``, is of something else.

        The message says what differs: model, data, method.
        """
        lines = [
            f"{what} is {old}, now {new}"
            for what, old, new in (
                ("model", self.model[:12], model[:12]),
                ("data", self.data[:12], data[:12]),
                ("method", str(self.rules), str(rules)),
            )
            if old != new
        ]
        if lines:
            raise CalibrationError(
                f"calibration cache {path} is stale: {'; '.join(lines)}. Calibrate again with "
                "overwrite=True (--overwrite), or name another file"
            )


_NUMBERS = {"threshold", "lowest", "highest", "clipped"}
_COUNTS = {"total", "zeros"}
_CHANNELS = ("means", "lows", "highs")


def _written(entry: TensorRange) -> dict[str, Any]:
    """The JSON form of a range; fp32 numbers of channels as their shortest decimals."""
    data = asdict(entry)
    for name in ("lows", "highs"):
        if data[name] is not None:
            data[name] = [float(str(np.float32(number))) for number in data[name]]
    return data


def _entry(data: Any) -> TensorRange:
    """A range from its JSON form; ValueError and the like when it is malformed."""
    if set(data) != {f.name for f in fields(TensorRange)}:
        raise ValueError(f"a tensor has the fields {', '.join(sorted(data))}")
    curve = data["curve"]
    entry = TensorRange(**{**data, "curve": None, **_channels(data)})
    for name in (*_NUMBERS, *_COUNTS):
        value = data[name]
        kind = int if name in _COUNTS else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"tensor {entry.name!r}: {name} is {value!r}")
    if not 0 <= entry.threshold <= max(entry.amax, 0) or entry.method not in METHODS:
        raise ValueError(
            f"tensor {entry.name!r}: threshold {entry.threshold} of method {entry.method!r}, with "
            f"magnitudes up to {entry.amax}"
        )
    if curve is not None:
        scores = tuple(map(float, curve["scores"]))
        shown = tuple(map(float, curve["thresholds"]))
        entry = replace(entry, curve=Curve(str(curve["what"]), shown, scores))
    return entry


def _channels(data: Mapping[str, Any]) -> dict[str, tuple[float, ...] | None]:
    """What a range's JSON form tells of channels; ValueError and the like when it is malformed."""
    found: dict[str, tuple[float, ...] | None] = {}
    for name in _CHANNELS:
        found[name] = None
        if data[name] is None:
            continue
        numbers = np.array([float(number) for number in data[name]])
        with np.errstate(over="ignore"):
            numbers = numbers if name == "means" else numbers.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError(f"tensor {data['name']!r}: {name} are not finite")
        found[name] = tuple(numbers.tolist())
    means, lows, highs = found.values()
    if lows is None or highs is None:
        if lows is not highs:
            raise ValueError(f"tensor {data['name']!r}: lows or highs are given alone")
        return found
    lengths = {len(numbers) for numbers in (means, lows, highs) if numbers is not None}
    if len(lengths) > 1:
        raise ValueError(f"tensor {data['name']!r}: means, lows and highs differ in length")
    if any(low > high for low, high in zip(lows, highs, strict=True)):
        raise ValueError(f"tensor {data['name']!r}: a low is above its high")
    return found
