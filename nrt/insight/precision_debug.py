"""What `nrt.debug_precision` found, as data, text, HTML and a table for pandas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrt.drawing.svg import escaped
from nrt.drawing.table import html_table
from nrt.errors import ExportError
from nrt.insight.error_stats import ErrorStats
from nrt.insight.layer_errors import LayerError, LayerErrors
from nrt.insight.precision_bisect import Bisection

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "PrecisionDebug", "layer_rows"]

COLUMNS = (
    "#", "layer", "op", "precision", "stores", "error", "SQNR dB", "own error", "own SQNR dB",
    "NaN", "Inf", "",
)  # fmt: skip
"""Of the table of layers; the last one marks."""

_RIGHT = ("#", "error", "SQNR dB", "own error", "own SQNR dB", "NaN", "Inf")


@dataclass(frozen=True)
class PrecisionDebug:
    """The error of every fused layer, and which of them break the network.

    Attributes:
        name: the model's.
        precision: the permitted types.
        target: ``cuda`` or ``cpu``.
        samples: how many were run.
        threshold: largest relative error of an output that passes.
        found: layers and outputs.
        bisection: the search for what breaks it; without a layer where the error passes.
    """

    name: str
    precision: tuple[str, ...]
    target: str
    samples: int
    threshold: float
    found: LayerErrors
    bisection: Bisection

    @property
    def layers(self) -> tuple[LayerError, ...]:
        """In the order in which the network computes them."""
        return self.found.layers

    @property
    def outputs(self) -> Mapping[str, ErrorStats]:
        """The network's outputs, with all layers in the low precision."""
        return self.found.outputs

    @property
    def error(self) -> float:
        """The largest relative error of an output."""
        return self.found.error

    @property
    def passed(self) -> bool:
        """Whether it is within the threshold."""
        return self.error <= self.threshold

    @property
    def first(self) -> str | None:
        """The layer that breaks the network: the first that lifts its error over the threshold."""
        return self.bisection.first

    @property
    def worst(self) -> LayerError | None:
        """The layer whose own error is largest."""
        return self.found.worst

    @property
    def in_fp32(self) -> dict[str, str]:
        """The remedy, as ``layers=`` of `nrt.compile`, whose precision must then permit fp32."""
        return dict.fromkeys(self.bisection.in_fp32, "fp32")

    def layer(self, name: str) -> LayerError:
        """The layer called ``name``, or that computes the tensor of that name.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if name in (layer.name, layer.tensor):
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: an error without bound is None."""
        found = self.bisection
        return {
            "name": self.name,
            "precision": list(self.precision),
            "target": self.target,
            "device": self.found.device,
            "samples": self.samples,
            "threshold": self.threshold,
            "passed": self.passed,
            "outputs": {name: stats.to_data() for name, stats in self.outputs.items()},
            "first": self.first,
            "worst": None if self.worst is None else self.worst.name,
            "breaking": list(found.breaking),
            "in_fp32": list(found.in_fp32),
            "error_in_fp32": _finite(found.error),
            "steps": [
                {"low": s.low, "in_fp32": list(s.in_fp32), "error": _finite(s.error)}
                for s in found.steps
            ],
            "layers": [layer.to_data() for layer in self.layers],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per layer; errors may be infinite, SQNR is NaN where there is none.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError(
                "to_pandas() needs pandas, which is not installed: pip install pandas; to_dict() "
                "gives the same without it"
            ) from error
        rows = [
            {
                "layer": layer.name,
                "tensor": layer.tensor,
                "op": layer.op,
                "origins": ", ".join(layer.origins),
                "precision": layer.precision,
                "stored": layer.stored,
                "error": layer.accumulated.error,
                "max_error": layer.accumulated.max_error,
                "sqnr": layer.accumulated.sqnr,
                "own_error": layer.own.error,
                "own_max_error": layer.own.max_error,
                "own_sqnr": layer.own.sqnr,
                "nan": layer.accumulated.nan,
                "inf": layer.accumulated.inf,
                "breaks": layer.name in self.bisection.breaking,
            }
            for layer in self.layers
        ]
        return pandas.DataFrame(rows)

    def summary(self) -> list[str]:
        """What was run, how wrong it is, and what breaks it."""
        types = ", ".join(self.precision)
        worst = "" if self.worst is None else f"; largest own error: {self.worst.name}"
        lines = [
            f"{self.name} in {types} against fp32 on {self.found.device} ({self.target}), "
            f"{self.samples} samples: error of the outputs {_number(self.error)}, threshold "
            f"{self.threshold:g}{worst}"
        ]
        found, first = self.bisection, self.first
        if first is None:
            near = "the error is near the threshold: bisection found no layer that lifts it over"
            return [*lines, "within the threshold: no layer breaks it" if self.passed else near]
        lines.append(
            f"{first} ({_origins(self.layers, first)}) is the first layer that lifts the error "
            f"over the threshold, found by bisection in {len(found.steps)} networks"
        )
        verdict = "" if found.error <= self.threshold else ", still over the threshold"
        lines.append(
            f"with {', '.join(found.in_fp32)} in fp32: error {_number(found.error)}{verdict}"
        )
        return lines

    def __str__(self) -> str:
        rows = [COLUMNS, *layer_rows(self.found, self.bisection.breaking)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
        table = [
            "  ".join(
                cell.rjust(width) if name in _RIGHT else cell.ljust(width)
                for name, cell, width in zip(COLUMNS, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*self.summary(), *table])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escaped(line)}</p>" for line in self.summary())
        rows = layer_rows(self.found, self.bisection.breaking)
        return lines + html_table(COLUMNS, rows, right=_RIGHT)


def layer_rows(found: LayerErrors, breaking: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS`, a row per layer.

    Args:
        found: the layers; the one of the largest own error is marked.
        breaking: names of layers that bisection found.
    """
    rows: list[tuple[str, ...]] = []
    for index, layer in enumerate(found.layers):
        marks = []
        if layer.name in breaking:
            marks.append("breaks it" if layer.name == breaking[0] else "breaks it too")
        if layer is found.worst and layer.own.error > 0:
            marks.append("worst")
        total, own = layer.accumulated, layer.own
        rows.append(
            (
                str(index), layer.name, layer.op, layer.precision, layer.stored,
                _number(total.error), _decibel(total), _number(own.error), _decibel(own),
                str(total.nan), str(total.inf), ", ".join(marks),
            )
        )  # fmt: skip
    return rows


def _origins(layers: tuple[LayerError, ...], name: str) -> str:
    origins = next((layer.origins for layer in layers if layer.name == name), ())
    return "of " + ", ".join(origins) if origins else "of no node of the model"


def _number(error: float) -> str:
    return f"{error:.2e}" if error and math.isfinite(error) else f"{error:g}"


def _decibel(stats: ErrorStats) -> str:
    if stats.error == 0:
        return "exact"
    return "-" if stats.sqnr is None else f"{stats.sqnr:.1f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
