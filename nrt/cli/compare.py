"""``nrt compare``: the same inputs through ONNX Runtime and through nrt."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrt.cli.console import make_table, output, progress_bar, working, write_json
from nrt.cli.source import build_engine, is_plan, open_engine, read_inputs, require_plan
from nrt.errors import BuildError
from nrt.insight.compare import OutputError, compare_outputs, default_tolerance
from nrt.insight.reference import run_reference

if TYPE_CHECKING:
    from nrt.insight.layer_errors import LayerErrors
    from nrt.runtime import Engine

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Compare ``args.model``; 1 when an output is over the tolerance or not finite."""
    if is_plan(args.model):
        raise BuildError(
            f"{args.model} is a plan; the reference needs the model: "
            f"nrt compare MODEL --plan {args.model}"
        )
    if args.plan and args.show_layers:
        raise BuildError(
            f"--layers: {args.plan} is a plan, which holds no graph to compare layer by layer; "
            "leave --plan out"
        )
    engine, precisions = _open(args)
    tolerance = args.tolerance if args.tolerance is not None else default_tolerance(precisions)
    inputs = read_inputs(engine.inputs, args.inputs, args.seed)
    with working("running the reference"):
        reference_name, reference = run_reference(
            args.model,
            inputs,
            [spec.name for spec in engine.outputs],
            registered=bool(args.plugins),
        )
    outputs = {name: np.asarray(array) for name, array in engine.run(dict(inputs)).items()}
    results = compare_outputs(outputs, reference, tolerance)
    passed = all(r.passed for r in results)
    layers = _layers(engine, inputs, args) if args.show_layers else None
    if args.json:
        data: dict[str, Any] = {
            "model": args.model,
            "reference": reference_name,
            "tolerance": tolerance,
            "passed": passed,
            "outputs": [_to_data(r) for r in results],
        }
        if layers is not None:
            data["worst"] = None if layers.worst is None else layers.worst.name
            data["layers"] = [layer.to_data() for layer in layers.layers]
        write_json(data)
    else:
        _show(results, reference_name)
        if layers is not None:
            _show_layers(layers)
    return 0 if passed else 1


def _layers(
    engine: Engine, inputs: Mapping[str, np.ndarray[Any, Any]], args: argparse.Namespace
) -> LayerErrors:
    """Every layer of the engine's model against the references of its ops, in fp32."""
    from nrt.compiled import CompiledEngine
    from nrt.insight.layer_errors import LayerStudy

    assert isinstance(engine, CompiledEngine)
    request = replace(engine.build.request, opt_level=args.opt_level or 0)
    # Inputs that are bound in another float type are those of the model again.
    own = {v.name: inputs[v.name].astype(v.dtype.numpy, copy=False) for v in request.graph.inputs}
    with progress_bar() as progress:
        return LayerStudy(request, [own], progress, by_numpy=True).layer_errors()


def _open(args: argparse.Namespace) -> tuple[Engine, Collection[str]]:
    """The engine and the types that it may compute in."""
    if args.plan:
        require_plan(args.plan)
        engine = open_engine(args.plan, args)
        return engine, {layer.precision for layer in engine.plan.layers}
    asked = [args.precision or "fp32", *(args.layers or {}).values()]
    names = {name for p in asked for name in ((p,) if isinstance(p, str) else p)}
    return build_engine(args.model, args), names


def _to_data(result: OutputError) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "name": result.name,
        "error": finite(result.error),
        "max_error": finite(result.max_error),
        "tolerance": result.tolerance,
        "passed": result.passed,
        "reason": result.reason,
    }


def _show_layers(found: LayerErrors) -> None:
    from nrt.insight.precision_debug import COLUMNS, layer_rows

    table = make_table(*COLUMNS, right=COLUMNS[5:11])
    for row in layer_rows(found):
        table.add_row(*row)
    console = output()
    console.print("layers against the NumPy references of their ops, in fp32")
    console.print(table)


def _show(results: tuple[OutputError, ...], reference_name: str) -> None:
    table = make_table(
        "output", "relative error", "largest difference", "tolerance", "", right=("relative error",)
    )
    for r in results:
        verdict = "ok" if r.passed else f"FAILED: {r.reason}"
        table.add_row(r.name, f"{r.error:.3g}", f"{r.max_error:.3g}", f"{r.tolerance:g}", verdict)
    console = output()
    console.print(f"against {reference_name}")
    console.print(table)
