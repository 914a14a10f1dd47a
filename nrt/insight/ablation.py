"""The result of an ablation, as data, text, HTML, SVG and a table for pandas."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nrt.drawing.bars import Bar, Chart, charts_to_svg
from nrt.drawing.svg import in_scroll_box
from nrt.errors import ExportError
from nrt.insight.figures import Figures
from nrt.insight.paired import CONFIDENCE, Estimate

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "Ablation", "PassEffect"]

COLUMNS = ("pass", "fired", "with it", "without it", "saves", "launches", "arena", "max error")
"""Of the tables. Launches, arena and error are those of the row's own network."""


@dataclass(frozen=True)
class PassEffect:
    """What one pass does to the network.

    Attributes:
        name: the pass.
        fired: how often it rewrote something.
        network: the network without the pass; where passes are added one at a time, with this pass
            and all before it.
        beside: latency of the network that it was compared with, measured in the same rounds.
        saves: seconds that the pass takes off the latency, by rounds; negative where it costs.
        identical: both networks are one plan, byte for byte: nothing was measured.
    """

    name: str
    fired: int
    network: Figures
    beside: Estimate
    saves: Estimate
    identical: bool = False

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "pass": self.name,
            "fired": self.fired,
            "identical": self.identical,
            "network": self.network.to_data(),
            "beside": self.beside.to_data(),
            "saves": self.saves.to_data(),
        }


@dataclass(frozen=True)
class Ablation:
    """What each pass is worth on one model and device.

    Attributes:
        name: the model's.
        target: ``cuda`` or ``cpu``. device: the product, or the architecture.
        precision: the permitted types.
        full: the network with all passes.
        effects: one per pass, in the order of the pipeline: the network without it.
        bare: what all of them do together: the network without any, beside the full one; None
            unless they were added one at a time.
        steps: the passes added one at a time, to the network of ``bare``.
        required: passes that cannot be left out -> why.
    """

    name: str
    target: str
    device: str
    precision: tuple[str, ...]
    full: Figures
    effects: tuple[PassEffect, ...]
    bare: PassEffect | None = None
    steps: tuple[PassEffect, ...] = ()
    required: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line: what was measured, where."""
        types = ", ".join(self.precision)
        clock = "device time" if self.target == "cuda" else "host time"
        return f"{self.name}, {types}, on {self.device} ({clock})"

    def effect(self, name: str) -> PassEffect:
        """Of the pass ``name``, left out of the full pipeline.

        Raises:
            KeyError: it was not left out.
        """
        return {effect.name: effect for effect in self.effects}[name]

    def tables(self, intervals: bool = True) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """(heading, rows as text) for `COLUMNS`; the first row is what passes are taken from.

        Args:
            intervals: also those of latencies, not only of what a pass saves.
        """
        scale, unit = _scale(self.full.latency.median)

        def time(value: Estimate, always: bool = False) -> str:
            text = f"{value.median / scale:.4g} {unit}"
            return f"{text} {_interval(value, scale)}" if intervals or always else text

        def row(effect: PassEffect, both: tuple[Estimate, Estimate]) -> tuple[str, ...]:
            cells: tuple[str, ...] = ("", "", "same plan")
            if not effect.identical:
                share = effect.saves.median / effect.beside.median
                saves = effect.saves
                cells = (
                    *map(time, both),
                    f"{_number(saves.median / scale, '+')} {unit} {_interval(saves, scale, '+')} "
                    f"{share:+.1%}",
                )
            fired = str(effect.fired) if effect is not self.bare else ""
            return (effect.name, fired, *cells, *_size(effect.network))

        full = ("all passes", "", time(self.full.latency, True), "", "", *_size(self.full))
        left_out = [row(e, (e.beside, e.network.latency)) for e in self.effects]
        yield "each pass left out", [full, *left_out]
        if self.bare is not None:
            none = row(self.bare, (self.bare.beside, self.bare.network.latency))
            added = [row(e, (e.network.latency, e.beside)) for e in self.steps]
            yield "added one at a time", [none, *added]

    def to_data(self) -> dict[str, Any]:
        """Plain data: the schema of ``nrt ablate --json``; times in seconds."""
        return {
            "name": self.name,
            "target": self.target,
            "device": self.device,
            "precision": list(self.precision),
            "confidence": CONFIDENCE,
            "full": self.full.to_data(),
            "effects": [e.to_data() for e in self.effects],
            "bare": None if self.bare is None else self.bare.to_data(),
            "steps": [e.to_data() for e in self.steps],
            "required": dict(self.required),
        }

    def to_json(self) -> str:
        """`to_data` as text."""
        return json.dumps(self.to_data(), indent=2, allow_nan=False)

    def to_svg(self) -> str:
        """Bars: what each pass saves, and how the latency falls as passes are added."""
        scale, unit = _scale(self.full.latency.median)
        percent = f"{CONFIDENCE:.0%}"
        charts = [
            Chart(
                "Time that each pass saves",
                unit,
                tuple(_saving(e, scale) for e in self.effects),
                f"{self.title}; all passes: {self.full.latency.median / scale:.4g} {unit}; "
                f"whiskers: {percent} confidence",
            )
        ]
        if self.bare is not None:
            bars = [_latency(self.bare.name, self.bare.network, scale)]
            bars += [_latency(f"+ {e.name}", e.network, scale) for e in self.steps]
            note = f"{self.title}; whiskers: {percent} confidence"
            charts.append(Chart("Latency, passes added one at a time", unit, tuple(bars), note))
        return charts_to_svg(f"ablation of {self.name}", charts)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per pass left out and, with ``added`` True, per pass added; times in seconds.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError(
                "to_pandas() needs pandas, which is not installed: pip install pandas; "
                "to_data() gives the same without it"
            ) from error
        rows = [
            {
                "pass": effect.name,
                "added": added,
                "fired": effect.fired,
                "identical": effect.identical,
                "latency": effect.network.latency.median,
                "latency_low": effect.network.latency.low,
                "latency_high": effect.network.latency.high,
                "saves": effect.saves.median,
                "saves_low": effect.saves.low,
                "saves_high": effect.saves.high,
                "launches": effect.network.launches,
                "arena_bytes": effect.network.arena_bytes,
                "error": effect.network.error,
            }
            for added, effects in ((False, self.effects), (True, self.steps))
            for effect in effects
        ]
        return pandas.DataFrame(rows)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        tables = [
            f"<p><b>{html.escape(title)}</b></p>{_html_table(rows)}"
            for title, rows in self.tables()
        ]
        return f"<p>{html.escape(self.title)}</p>" + in_scroll_box(self.to_svg()) + "".join(tables)

    def __str__(self) -> str:
        lines = [self.title]
        for title, rows in self.tables():
            lines += ["", title, *_aligned([COLUMNS, *rows])]
        lines += [f"{name} stays: {reason}" for name, reason in self.required.items()]
        return "\n".join(lines)


def _size(figures: Figures) -> tuple[str, str, str]:
    memory = f"{figures.arena_bytes / 2**20:.2f} MiB"
    return str(figures.launches), memory, f"{figures.error:.1e}"


def _number(value: float, sign: str = "") -> str:
    """Three digits, and all of those before the point."""
    return f"{value:{sign}.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def _interval(value: Estimate, scale: float, sign: str = "") -> str:
    return f"[{_number(value.low / scale, sign)}, {_number(value.high / scale, sign)}]"


def _scale(seconds: float) -> tuple[float, str]:
    """A unit of time in which ``seconds`` reads well."""
    return (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")


def _saving(effect: PassEffect, scale: float) -> Bar:
    if effect.identical:
        tooltip = f"fired {effect.fired} times; without it the plan is the same"
        return Bar(effect.name, None, text="same plan", tooltip=tooltip)
    median, low, high = (v / scale for v in _ends(effect.saves))
    kind = "good" if low > 0 else "bad" if high < 0 else "plain"
    text = _number(median, "+")
    without = effect.network
    tooltip = f"fired {effect.fired} times; without it {without.launches} launches"
    return Bar(effect.name, median, low, high, text, kind, tooltip)


def _latency(label: str, figures: Figures, scale: float) -> Bar:
    median, low, high = (v / scale for v in _ends(figures.latency))
    return Bar(label, median, low, high, _number(median), tooltip=f"{figures.launches} launches")


def _ends(value: Estimate) -> tuple[float, float, float]:
    return value.median, value.low, value.high


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *padded]).rstrip()


def _html_table(rows: list[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        return "".join(
            f'<{tag} style="padding: 2px 8px; text-align: {side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', COLUMNS)}</tr></thead><tbody>{body}</tbody></table>"
