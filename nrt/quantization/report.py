"""A calibration for reading: text, HTML, plots."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from nrt.errors import CalibrationError

if TYPE_CHECKING:
    from nrt.quantization.calibration import Calibration

__all__ = ["COLUMNS", "calibration_html", "calibration_plot", "calibration_text", "rows"]

COLUMNS = ("tensor", "method", "threshold", "amax", "stored", "zeros", "clipped", "SQNR dB")
"""Headings of `rows`."""


def rows(calibration: Calibration) -> list[tuple[str, ...]]:
    """One row per tensor, under `COLUMNS`."""
    return [
        (
            t.name,
            t.method,
            f"{t.threshold:.5g}",
            f"{t.amax:.5g}",
            str(t.stored),
            f"{t.zero_share:.1%}",
            f"{t.clipped:.2e}" if t.clipped else "0",
            "-" if t.sqnr is None else f"{t.sqnr:.1f}",
        )
        for t in calibration.values()
    ]


def _title(calibration: Calibration) -> str:
    return (
        f"{len(calibration)} tensors, {calibration.samples} samples, method {calibration.rules}, "
        f"model {calibration.model[:12]}, data {calibration.data[:12]}"
    )


def calibration_text(calibration: Calibration) -> str:
    """A title and a table of aligned columns."""
    table = [COLUMNS, *rows(calibration)]
    widths = [max(len(row[k]) for row in table) for k in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([_title(calibration), *lines])


def calibration_html(calibration: Calibration) -> str:
    """The same as an HTML table, for notebooks."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(calibration)
    )
    title = html.escape(_title(calibration))
    return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def calibration_plot(calibration: Calibration, name: str) -> Any:
    """See `Calibration.plot`."""
    entry = calibration.get(name)
    if entry is None:
        raise CalibrationError(
            f"the calibration has no tensor {name!r}; it has {', '.join(list(calibration)[:8])}"
            f"{' …' if len(calibration) > 8 else ''}"
        )
    if entry.curve is None:
        raise CalibrationError(
            f"tensor {name!r} has no curve: {entry.method} searches none; kl and mse do"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CalibrationError(
            "plots need matplotlib, which is not installed: pip install matplotlib; the data is in "
            f"calibration[{name!r}].curve"
        ) from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(entry.curve.thresholds, entry.curve.scores)
    axes.axvline(entry.threshold, linestyle="--", label=f"threshold {entry.threshold:.5g}")
    axes.set(xlabel="threshold", ylabel=entry.curve.what, yscale="log", title=name)
    axes.legend()
    return figure
