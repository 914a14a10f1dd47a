"""Precisions by time under a budget: what is chosen for a model, and whether that is as promised.

The model is calibrated on random inputs and compiled with ``precision="auto"`` and a least
signal-to-noise ratio on others. Printed are the layers above int8 with their reasons, all networks
that were compared, and four checks:

- the ratio is at least what was asked for;
- at most 5 % of the layers have more than int8;
- no layer is int8 that would be faster in fp16, its conversions included;
- no single precision that meets the budget is faster.

All that goes to a JSON file too, one case per model and batch.

    python benchmarks/choose_precisions.py --models DIR --only resnet50 --target cuda --batch 32
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

import nrt
from benchmarks.protocol import (
    CASE_ERRORS,
    Case,
    Results,
    add_common_options,
    default_name,
    describe_error,
    run_header,
)
from benchmarks.tables import markdown
from benchmarks.zoo_models import CNNS, Zoo
from nrt.precision.selection import Selection

__all__ = ["checks", "main"]

KEYS = ("model", "batch", "at_least")
_MOST_ABOVE = 0.05

Item = dict[str, np.ndarray[Any, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; 1 if a check fails."""
    cli = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cli.add_argument("--models", type=Path, required=True, help="folder with zoo.py")
    cli.add_argument("--only", nargs="+", help="model names; default: every CNN in the folder")
    cli.add_argument("--batch", type=int, default=1)
    cli.add_argument("--target", default="auto")
    cli.add_argument("--opt-level", type=int, default=3)
    cli.add_argument("--method", default="mse", help="of calibration")
    cli.add_argument("--samples", type=int, default=8, help="batches to calibrate on, and to judge")
    cli.add_argument("--at-least", type=float, default=20.0, help="signal-to-noise ratio in dB")
    add_common_options(cli)
    args = cli.parse_args(argv)
    zoo = Zoo(args.models)
    header = run_header(args.commit)
    name = args.name or default_name(
        "precisions", "cuda" if "cuda" in args.target else "cpu", header
    )
    results = Results.open(args.results / f"{name}.json", "precisions", KEYS, header)
    done = []
    for name in zoo.names(CNNS, args.only):
        model = zoo.load(name, args.batch)
        if model is None:
            print(f"{name}: its batch is fixed, and not at {args.batch}: left out")
            continue
        case: Case = {"model": name, "batch": args.batch, "at_least": args.at_least}
        case |= {"method": args.method, "target": args.target}
        try:
            case |= _chosen(name, model, args)
        except CASE_ERRORS as error:
            case |= {"status": "error", "message": describe_error(error)}
            print(f"{name}: {case['message']}", flush=True)
        results.add(case)
        done.append(case)
    if done:
        print(f"\n{markdown('precisions', results.runs, done)}\nwritten to {results.path}")
    return 0 if all(case["status"] == "passed" for case in done) else 1


def _chosen(name: str, model: Any, args: argparse.Namespace) -> Case:
    """Compile ``model``, print what was chosen, and return it."""
    data = list(_batches(model, args.samples, seed=0))
    ranges = nrt.calibrate(model, data, method=args.method, target=_runnable(args.target))
    others = list(_batches(model, args.samples, seed=1))
    start = time.perf_counter()
    engine = nrt.compile(
        model,
        target=args.target,
        opt_level=args.opt_level,
        precision="auto",
        calibration=ranges,
        accuracy=nrt.AccuracyBudget("sqnr", at_least=args.at_least, data=others),
    )
    seconds = time.perf_counter() - start
    found = engine.selection
    assert found is not None
    print(f"{name}, batch {args.batch}, {seconds:.0f} s to build: {found}")
    verdicts = checks(found, args.at_least)
    for what, holds in verdicts.items():
        print(f"  {'yes' if holds else 'NO '} {what}", flush=True)
    points = [asdict(p) for p in found.frontier.points]
    for point in points:
        if point["accuracy"] is not None and not math.isfinite(point["accuracy"]):
            point["accuracy"] = None  # nothing differs; JSON has no infinity
    return {
        "status": "passed" if all(verdicts.values()) else "failed",
        "message": "; ".join(what for what, holds in verdicts.items() if not holds),
        "layers": len(found.layers),
        "above_int8": [str(layer) for layer in found.above_int8],
        "chosen": points[found.frontier.chosen],
        "points": points,
        "notes": list(found.notes),
        "build_seconds": seconds,
    }


def checks(selection: Selection, at_least: float) -> dict[str, bool]:
    """What is promised of a choice -> whether it holds."""
    points = selection.frontier.points
    chosen = points[selection.frontier.chosen]
    above, layers = len(selection.above_int8), len(selection.layers)
    slower = [
        layer.name
        for layer in selection.layers
        if layer.precision == "int8" and layer.instead.get("fp16", 0.0) < 0
    ]
    singles = [p for p in points if p.single and p.holds and p.seconds is not None]
    return {
        f"at least {at_least:g} dB": chosen.accuracy is not None and chosen.accuracy >= at_least,
        f"at most 5 % above int8: {above} of {layers}": above <= _MOST_ABOVE * layers,
        f"no int8 that fp16 would beat{': ' if slower else ''}{', '.join(slower)}": not slower,
        "no faster single precision": all(
            chosen.seconds is not None and chosen.seconds <= (p.seconds or 0.0) for p in singles
        ),
    }


def _runnable(target: str) -> str:
    """Where to calibrate: a GPU that is elsewhere cannot."""
    return "cpu" if ":" in target else target


def _batches(model: Any, count: int, seed: int) -> list[Item]:
    rng = np.random.default_rng(seed)
    return [
        {
            v.name: rng.random([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32)
            for v in model.graph.input
        }
        for _ in range(count)
    ]


if __name__ == "__main__":
    sys.exit(main())
