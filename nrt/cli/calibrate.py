"""``nrt calibrate``: run a model on data and write the range of every activation."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nrt.cli.console import make_table, output, progress_bar, write_json
from nrt.cli.source import is_plan
from nrt.errors import BuildError

if TYPE_CHECKING:
    from nrt.quantization import TensorRange

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Calibrate ``args.model`` on ``args.data`` into ``args.output``, and show what was found."""
    if is_plan(args.model):
        raise BuildError(f"{args.model} is a plan, compiled already; expected a model")
    folder = Path(args.output).parent
    if not folder.is_dir():
        raise BuildError(f"{args.output}: the folder {folder} does not exist; make it first")
    from nrt.calibrator import calibrate
    from nrt.quantization.report import COLUMNS, rows

    start = time.perf_counter()
    with progress_bar() as progress:
        found = calibrate(
            args.model,
            args.data,
            method=args.method,
            tensors=args.tensors,
            percentile=args.percentile,
            shapes=args.shapes,
            target=args.target,
            opt_level=args.opt_level,
            cache=args.output,
            overwrite=args.overwrite,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    if args.json:
        write_json(
            {
                "cache": args.output,
                "samples": found.samples,
                "method": str(found.rules),
                "tensors": [_data(entry) for entry in found.values()],
            }
        )
        return 0
    table = make_table(*COLUMNS, right=COLUMNS[2:])
    for row in rows(found):
        table.add_row(*row)
    console = output()
    console.print(table)
    console.print(
        f"{args.output}: {len(found)} tensors, {found.samples} samples, {found.rules}, "
        f"{seconds:.1f} s"
    )
    return 0


def _data(entry: TensorRange) -> dict[str, object]:
    return {
        "name": entry.name,
        "method": entry.method,
        "threshold": entry.threshold,
        "scale": entry.scale,
        "amax": entry.amax,
        "signed": entry.signed,
        "stored": str(entry.stored),
        "zero_share": entry.zero_share,
        "clipped": entry.clipped,
        "sqnr": entry.sqnr,
    }
