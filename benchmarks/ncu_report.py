"""What ``ncu --csv`` prints, as data."""

from __future__ import annotations

import csv
import math
import re

from benchmarks.protocol import Case
from nrt.errors import InputError

__all__ = ["excerpt", "parse"]

_COLUMNS = ("ID", "Kernel Name", "Block Size", "Grid Size", "Metric Name", "Metric Unit",
            "Metric Value")  # fmt: skip


def parse(text: str) -> list[Case]:
    """The launches in what ``ncu --csv`` printed, in their order.

    Args:
        text: CSV, behind and between lines of the program and of ncu itself.

    Returns:
        Per launch ``name``, ``grid``, ``block`` and ``metrics``: name -> value (None where ncu has
        none) and unit.

    Raises:
        InputError: there is no CSV, it lacks a column, or a value is no number.
    """
    # ncu quotes every cell; a line of the program with one quote only would swallow the next.
    rows = csv.reader(line for line in text.splitlines() if re.fullmatch('".*"', line))
    header: list[str] = next((row for row in rows if row[0] == "ID"), [])
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise InputError(
            f"ncu's output has no column {', '.join(missing)}: expected the CSV that "
            f"ncu --csv --metrics prints, found {excerpt(text)}"
        )
    launches: dict[str, Case] = {}
    for cells in rows:
        if len(cells) != len(header):
            continue  # a line of the program that happens to start with a quote
        row = dict(zip(header, cells, strict=True))
        launch = launches.setdefault(
            row["ID"],
            {
                "name": row["Kernel Name"],
                "grid": _triple(row["Grid Size"]),
                "block": _triple(row["Block Size"]),
                "metrics": {},
            },
        )
        name = row["Metric Name"]
        launch["metrics"][name] = {
            "value": _number(name, row["Metric Value"]),
            "unit": row["Metric Unit"],
        }
    return list(launches.values())


def _number(name: str, text: str) -> int | float | None:
    plain = text.replace(",", "").strip()
    if plain.lower() in ("n/a", ""):
        return None
    try:
        value = float(plain)
    except ValueError as error:
        raise InputError(f"ncu: {name} is {text!r}, expected a number or n/a") from error
    if not math.isfinite(value):
        return None  # of nothing: a rate of hits without an access
    return int(plain) if re.fullmatch(r"-?\d+", plain) else value


def _triple(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def excerpt(text: str) -> str:
    """The end of ``text``, for a message."""
    lines = [line for line in text.splitlines() if line.strip()]
    return repr(" / ".join(lines[-4:])[-600:]) if lines else "nothing"
