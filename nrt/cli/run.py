"""``nrt run``: run a plan once, on given or random inputs."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from nrt.cli.console import make_table, output
from nrt.cli.files import save_arrays
from nrt.cli.source import read_inputs, require_plan

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run ``args.plan`` and show each output's shape and range."""
    require_plan(args.plan)
    from nrt import load

    engine = load(args.plan)
    inputs = read_inputs(engine.inputs, args.inputs, args.seed)
    outputs = {name: np.asarray(array) for name, array in engine.run(dict(inputs)).items()}

    paths = save_arrays(args.output_dir, outputs) if args.output_dir else {}
    columns = ("output", "dtype", "shape", "min", "mean", "max", *(("file",) if paths else ()))
    table = make_table(*columns, right=("min", "mean", "max"))
    for spec in engine.outputs:
        array = outputs[spec.name]
        row = [spec.name, spec.dtype, "x".join(map(str, array.shape)) or "()", *_range(array)]
        table.add_row(*row, *([str(paths[spec.name])] if paths else []))
    output().print(table)
    return 0


def _range(array: np.ndarray[Any, np.dtype[Any]]) -> tuple[str, str, str]:
    if array.size == 0:
        return "-", "-", "-"
    values = array.astype(np.float64)
    return f"{values.min():.4g}", f"{values.mean():.4g}", f"{values.max():.4g}"
