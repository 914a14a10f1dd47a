"""``nrt build``: compile a model and write its plan."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from nrt.cli.console import human_bytes, output
from nrt.cli.source import build_report, is_plan
from nrt.errors import BuildError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Compile ``args.model``, save ``args.output``, and say what was built."""
    if is_plan(args.model):
        raise BuildError(f"{args.model} is a plan, compiled already; expected a model")
    folder = Path(args.output).parent
    if not folder.is_dir():
        raise BuildError(f"{args.output}: the folder {folder} does not exist; make it first")
    from nrt.plan_file import write_plan

    start = time.perf_counter()
    built = build_report(args.model, args)
    plan = built.plan
    write_plan(plan, args.output)
    seconds = time.perf_counter() - start

    before, after = sum(plan.ops_before.values()), sum(plan.ops_after.values())
    console = output()
    console.print(f"{args.output}: {human_bytes(Path(args.output).stat().st_size)}")
    console.print(
        f"  target {plan.target.kind} {plan.target.arch} {plan.target.device}".rstrip()
        + f", {before} ops -> {after}, {len(plan.layers)} layers"
    )
    console.print(
        f"  weights {human_bytes(len(plan.weights))}, arena {human_bytes(plan.arena_bytes)}, "
        f"built in {seconds:.1f} s"
    )
    for what, text in plan.notes.items():
        console.print(f"  {what} {text}")
    if built.selection is not None:
        for line in str(built.selection).splitlines()[1:]:
            console.print(f"  {line}")
    return 0
