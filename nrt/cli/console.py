"""The terminal: tables on stdout, progress and notes on stderr, JSON without decoration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nrt.sizes import human_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "ProgressCall",
    "cut_cell",
    "human_bytes",
    "human_time",
    "make_table",
    "note",
    "output",
    "progress_bar",
    "working",
    "write_json",
]

ProgressCall = Callable[[str, int, int], None]
"""``progress(stage, done, total)``."""

PIPE_WIDTH = 1000
"""Columns when stdout is no terminal: so many that nothing is cut."""


def output() -> Console:
    """The console on stdout."""
    from rich.console import Console

    # Names of layers may hold [brackets] and :colons:, which are no markup here.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def make_table(*columns: str, right: tuple[str, ...] = (), cut: tuple[str, ...] = ()) -> Table:
    """A plain table.

    Args:
        columns: headings.
        right: columns that are aligned to the right.
        cut: columns that may shrink where a terminal is narrow, for cells made by `cut_cell`; the
            others then keep their width. Without any, long text breaks into lines.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=name in right or (bool(cut) and name not in cut),
        )
    return table


def cut_cell(text: str) -> Text:
    """A cell of one line that ends in an ellipsis where its column is too narrow."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


def write_json(data: Any) -> None:
    """Write ``data`` and nothing else; NaN and infinities are refused, JSON has none."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    """One line on stderr that is no error."""
    sys.stderr.write(f"nrt: note: {text}\n")


@contextmanager
def progress_bar() -> Iterator[ProgressCall | None]:
    """A bar per stage on a terminal; None, and so silence, on a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage)
        bar.update(tasks[stage], completed=done, total=total if total > 0 else None)

    with bar:
        yield update


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner beside ``text`` on a terminal; silence on a pipe."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def human_time(seconds: float | None) -> str:
    """``0.00123`` -> ``1.230 ms``; ``-`` when there is none."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"
