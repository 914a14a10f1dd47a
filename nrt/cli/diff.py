"""``nrt diff``: what the passes did to a model's graph between two stages."""

from __future__ import annotations

import argparse
from pathlib import Path

from nrt.cli.console import note, output, write_json
from nrt.cli.files import save_text
from nrt.cli.source import optimize_model

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Compare the stages ``args.before`` and ``args.after``; compiles no kernel."""
    report = optimize_model(args.model, args, snapshots=True)
    from nrt.ir.graph_diff import graph_diff

    names = (args.before, args.after)
    diff = graph_diff(report.stage(args.before), report.stage(args.after), names=names)
    if args.svg is not None:
        save_text(Path(args.svg), diff.to_svg())
        note(f"{args.svg}: both graphs side by side")
    if args.json:
        write_json(diff.to_data())
    else:
        output().print(str(diff), soft_wrap=True)
    return 0
