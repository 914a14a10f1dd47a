"""Is it right? Every convolutional network of a folder, against ONNX Runtime on the CPU in fp32.

The inputs, the error and the tolerance are those of ``nrt compare``.

    python benchmarks/compare_zoo.py --models DIR --target cuda --precision fp32 fp16 --batch 1 8
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

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
from nrt.compiled import compile as compile_model
from nrt.errors import NrtError
from nrt.insight.compare import compare_outputs, default_tolerance
from nrt.insight.inputs import random_inputs
from nrt.insight.reference import run_reference

if TYPE_CHECKING:
    import onnx

    from nrt.plan import IoSpec

__all__ = ["compare_case", "main"]

KEYS = ("model", "batch", "precision")
Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Reference:
    """Runs one model in ONNX Runtime, once for all precisions.

    Args:
        model: with its weights.
        seed: of the random inputs.
    """

    def __init__(self, model: onnx.ModelProto, seed: int) -> None:
        self._model, self._seed = model, seed
        self._done: tuple[str, Arrays, Arrays] | None = None

    def run(self, specs: Sequence[IoSpec], outputs: Sequence[str]) -> tuple[str, Arrays, Arrays]:
        """What ran it, the inputs and the outputs."""
        if self._done is None:
            import onnx

            inputs = random_inputs(specs, self._seed)
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "model.onnx")
                onnx.save(self._model, path)
                name, results = run_reference(path, inputs, outputs)
            self._done = (name, inputs, results)
        return self._done


def compare_case(
    model: onnx.ModelProto, reference: Reference, target: str, precision: str, opt_level: int
) -> Case:
    """Build, run and compare one model; raises what building and running raise."""
    start = time.perf_counter()
    engine = compile_model(model, precision=precision, target=target, opt_level=opt_level)
    build_seconds = time.perf_counter() - start
    names = [spec.name for spec in engine.outputs]
    ran_by, inputs, expected = reference.run(engine.inputs, names)
    outputs = engine.run(dict(inputs))
    results = compare_outputs(
        {n: np.asarray(a) for n, a in outputs.items()}, expected, default_tolerance({precision})
    )
    worst = max(results, key=lambda r: r.error)
    finite = math.isfinite(worst.error)
    return {
        "status": "passed" if all(r.passed for r in results) else "failed",
        "error": worst.error if finite else None,
        "max_error": worst.max_error if finite else None,
        "tolerance": worst.tolerance,
        "message": "; ".join(f"{r.name}: {r.reason}" for r in results if r.reason),
        "launches": len(engine.plan.layers),
        "steps": len(engine.plan.steps),
        "ops_before": sum(engine.plan.ops_before.values()),
        "ops_after": sum(engine.plan.ops_after.values()),
        "build_seconds": round(build_seconds, 2),
        "opt_level": opt_level,
        "target": f"{engine.plan.target.kind} {engine.plan.target.arch}",
        "reference": ran_by,
    }


def _cases(args: argparse.Namespace, zoo: Zoo) -> Iterator[Case]:
    for name in zoo.names(CNNS, args.only):
        for batch in args.batch:
            model = zoo.load(name, batch)
            if model is None:
                print(f"{name}: its batch is fixed, and not at {batch}: left out", flush=True)
                continue
            reference = Reference(model, args.seed)
            for precision in args.precision:
                case: Case = {"model": name, "batch": batch, "precision": precision}
                try:
                    case |= compare_case(model, reference, args.target, precision, args.opt_level)
                except CASE_ERRORS as error:
                    case |= {"status": "error", "message": describe_error(error)}
                yield case


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases asked for; 1 if one of them is wrong or broke."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with zoo.py")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--only", nargs="+", help="model names; default: every CNN in the folder")
    parser.add_argument("--opt-level", type=int, default=0, help="0 (default) to 5")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (0)")
    add_common_options(parser)
    args = parser.parse_args(argv)
    try:
        zoo = Zoo(args.models)
        header = run_header(args.commit)
        name = args.name or default_name("compare", args.target, header)
        path = args.results / f"{name}.json"
        results = Results.open(path, "compare", KEYS, header)
        done = []
        for case in _cases(args, zoo):
            results.add(case)
            done.append(case)
            print(_line(case), flush=True)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{markdown('compare', results.runs, done)}\nwritten to {path}")
    return 0 if all(case["status"] == "passed" for case in done) else 1


def _line(case: Case) -> str:
    head = f"{case['model']} batch {case['batch']} {case['precision']}: {case['status']}"
    if case["status"] == "error":
        return f"{head}: {case['message']}"
    error = "not finite" if case["error"] is None else f"{case['error']:.2e}"
    return (
        f"{head}, error {error} (tolerance {case['tolerance']:g}), {case['launches']} launches, "
        f"built in {case['build_seconds']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
