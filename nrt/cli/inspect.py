"""``nrt inspect``: what a model was compiled to, launch by launch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrt.cli.console import cut_cell, human_bytes, human_time, make_table, note, output, write_json
from nrt.cli.files import save_text
from nrt.cli.parser import PICTURE_OPTIONS
from nrt.cli.source import build_report, is_plan, open_plan, optimize_model
from nrt.errors import BuildError
from nrt.insight.report import plan_report

__all__ = ["run", "show_candidates", "show_launches"]

SHOWN = 4
"""Blocks that are named."""

WIDE = 140
"""Columns of a terminal that has room for the configurations."""


def run(args: argparse.Namespace) -> int:
    """Show ``args.source``, or draw its graph."""
    if any(getattr(args, name) is not None for name in PICTURE_OPTIONS):
        return _draw(args)
    report = _report(args)
    if args.json:
        write_json(report)
        return 0
    console = output()
    target = report["target"]
    built_for = " ".join(filter(None, (target["kind"], target["arch"], target["device"])))
    console.print(f"{report['name']}: built for {built_for}")
    for title in ("inputs", "outputs"):
        specs = ", ".join(map(_binding, report[title]))
        console.print(f"{title}: {specs}")
    console.print(
        f"weights {human_bytes(report['weights_bytes'])}, "
        f"arena {human_bytes(report['arena_bytes'])}, {len(report['layers'])} launches"
        + (f" on {report['streams']} streams" if report["streams"] > 1 else "")
    )
    if report["peak"] is not None:
        console.print(_peak(report))
    for what, text in report["notes"].items():
        console.print(f"{what}: {text}")
    _show_ops(report["ops_before"], report["ops_after"])
    show_launches(report["layers"])
    if args.candidates:
        show_candidates(report["layers"])
    return 0


def _draw(args: argparse.Namespace) -> int:
    files = {n: f for n in PICTURE_OPTIONS if (f := getattr(args, n)) is not None}
    for name in ("json", "candidates", "onnx"):
        if getattr(args, name):
            raise BuildError(
                f"--{name} is about kernels, and --{next(iter(files))} compiles none; leave one out"
            )
    graph = optimize_model(args.source, args, snapshots=False).graph
    for name, file in files.items():
        save_text(Path(file), getattr(graph, f"to_{name}")())
        output().print(f"{file}: {len(graph)} nodes")
    return 0


def _report(args: argparse.Namespace) -> dict[str, Any]:
    if not args.candidates and args.onnx is None:
        return plan_report(open_plan(args.source, args))
    if is_plan(args.source):
        option, what = (
            ("onnx", "no graph") if args.onnx is not None else ("candidates", "the winners only")
        )
        raise BuildError(f"--{option}: {args.source} is a plan, which holds {what}; give the model")
    built = build_report(args.source, args)
    if args.onnx is not None:
        from nrt.frontend import to_onnx

        to_onnx(built, args.onnx)
        note(f"wrote the optimized graph, with its kernels as metadata, to {args.onnx}")
    return plan_report(built.plan, built.choices if args.candidates else None)


def show_candidates(entries: list[dict[str, Any]]) -> None:
    """A table per layer of what its kernel was chosen from, the fastest first."""
    console = output()
    for entry in entries:
        if entry["part"] > 1:
            continue
        console.print(f"{entry['name']}: {entry['op']}, {entry['variant']} ({entry['reason']})")
        table = make_table("variant", "config", "time", "", right=("time",), cut=("config", ""))
        rows = sorted(entry["candidates"], key=lambda c: (c["seconds"] is None, c["seconds"] or 0))
        for row in rows:
            time, note = human_time(row["seconds"]), cut_cell(row["note"])
            table.add_row(row["variant"], cut_cell(row["config"]), time, note)
        console.print(table)


def _peak(report: Mapping[str, Any]) -> str:
    """Where the arena is fullest, how near it comes to that, and the largest blocks alive then."""
    peak = report["peak"]
    alive = [f"{b['name']} {human_bytes(b['bytes'])}" for b in peak["alive"][:SHOWN]]
    if len(peak["alive"]) > SHOWN:
        alive.append(f"{len(peak['alive']) - SHOWN} more")
    return (
        f"arena at its fullest: {human_bytes(peak['bytes'])} at {peak['layer']} "
        f"({', '.join(alive)}); the arena is {report['arena_ratio']:.3f} times that"
    )


def _binding(spec: Mapping[str, Any]) -> str:
    tag = "" if spec["layout"] == "row-major" else f"{{{spec['layout']}}}"
    return f"{spec['name']} {spec['dtype']}{spec['shape']}{tag}"


def show_launches(entries: list[dict[str, Any]]) -> None:
    """The table of launches; the origins are the model's own nodes."""
    console = output()
    wide = console.width >= WIDE
    columns = ("#", "op", "output", "precision", "variant", *(("config",) if wide else ()), "time")
    cut = ("op", "variant", "config", "origins")
    table = make_table(*columns, "origins", right=("#", "time"), cut=cut)
    for number, entry in enumerate(entries):
        variant = entry["variant"]
        if entry["parts"] > 1:
            variant += f" {entry['part']}/{entry['parts']}"
        table.add_row(
            str(number),
            cut_cell(entry["op"]),
            ", ".join(entry["outputs"]),
            entry["precision"],
            cut_cell(variant),
            *((cut_cell(entry["config"]),) if wide else ()),
            human_time(entry["seconds"]),
            cut_cell(", ".join(entry["origins"]) or entry["name"]),
        )
    console.print(table)


def _show_ops(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    table = make_table("op", "before", "after", right=("before", "after"))
    for op in sorted(before.keys() | after.keys()):
        table.add_row(op, str(before.get(op, 0)), str(after.get(op, 0)))
    table.add_row("total", str(sum(before.values())), str(sum(after.values())))
    output().print(table)
