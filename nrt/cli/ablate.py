"""``nrt ablate``: what each optimization pass is worth on a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from nrt.cli.console import make_table, note, output, progress_bar, write_json
from nrt.cli.files import save_text
from nrt.cli.source import build_arguments, is_plan
from nrt.errors import BuildError

__all__ = ["run"]

WIDE = 140
"""Columns of a terminal that has room for the intervals of latencies."""


def run(args: argparse.Namespace) -> int:
    """Build ``args.model`` with and without each pass, and show the differences."""
    if is_plan(args.model):
        raise BuildError(f"{args.model} is a plan, which holds no graph; give the model")
    if args.svg is not None and not Path(args.svg).parent.is_dir():
        raise BuildError(f"{args.svg}: the folder {Path(args.svg).parent} does not exist; make it")
    from nrt.insight.ablate import ablate
    from nrt.insight.ablation import COLUMNS

    with progress_bar() as progress:
        found = ablate(
            args.model,
            args.passes or "all",
            cumulative=args.cumulative,
            duration=args.duration,
            warm_up=args.warm_up,
            progress=progress,
            **build_arguments(args),
        )
    if args.svg is not None:
        save_text(Path(args.svg), found.to_svg())
        note(f"{args.svg}: what each pass saves")
    if args.json:
        write_json(found.to_data())
        return 0
    console = output()
    console.print(found.title)
    for title, rows in found.tables(intervals=console.width >= WIDE):
        console.print(f"{title}:")
        table = make_table(*COLUMNS, right=COLUMNS[1:])
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for name, reason in found.required.items():
        console.print(f"{name} stays: {reason}")
    return 0
