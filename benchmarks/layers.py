"""Every kernel of single layers of a model, in one precision beside another.

What a layer reads changes with its precision, what it stores does not: the layers around it are
int8 wherever they can be. Conversions before it are not counted.

    python benchmarks/layers.py --models DIR --only mobilenet_v2 --batch 32 \\
        --layers "*features.3/conv/conv.0*" --calibration mobilenet_v2.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.zoo_models import Zoo
from nrt.builder import optimize
from nrt.errors import InputError
from nrt.ir.ops import Conv, MatMul
from nrt.lowering import lower
from nrt.problem import Problem
from nrt.settings import settings
from nrt.tuner import Choice, tune

__all__ = ["layer_problems", "main", "table"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    cli = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cli.add_argument("--models", type=Path, required=True, help="folder with zoo.py")
    cli.add_argument("--only", required=True, help="the model's name")
    cli.add_argument("--batch", type=int, default=1)
    cli.add_argument("--layers", nargs="+", required=True, help="name patterns")
    cli.add_argument("--precision", nargs="+", default=["int8", "fp16"])
    cli.add_argument("--calibration", type=Path, required=True, help="what nrt calibrate wrote")
    cli.add_argument("--target", default="cuda", choices=("cuda", "cpu"))
    cli.add_argument("--opt-level", type=int, default=3)
    args = cli.parse_args(argv)
    model = Zoo(args.models).load(args.only, args.batch)
    if model is None:
        raise InputError(f"{args.only}: its batch is fixed, and not at {args.batch}")
    found = layer_problems(model, args.layers, args.precision, args.calibration)
    choices = _tuned(list(found.values()), args.target, args.opt_level)
    for (layer, precision), problem in found.items():
        print(f"{layer}, {precision}: {problem}\n{table(choices[problem])}", flush=True)
    return 0


def layer_problems(
    model: Any, patterns: Sequence[str], precisions: Sequence[str], calibration: Path
) -> dict[tuple[str, str], Problem]:
    """(layer, precision) -> its problem, all layers but that one int8 where they can be.

    Args:
        model: as for `nrt.compile`.
        patterns: of the names of the fused graph's products.
        precisions: of the layer.
        calibration: file of ranges.

    Raises:
        InputError: no product has such a name; the message lists all.
    """

    def products(layers: Mapping[str, str]) -> dict[str, Problem]:
        permitted = {"int8", *layers.values(), "fp16"}
        report = optimize(model, precision=permitted, calibration=calibration, layers=layers)
        tasks = lower(report.graph).tasks
        return {t.name: t.problem for t in tasks if isinstance(t.problem.op, Conv | MatMul)}

    names = list(products({}))
    wanted = [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]
    if not wanted:
        raise InputError(f"no layer {', '.join(patterns)}; products are {', '.join(names)}")
    found = {}
    for name in wanted:
        for precision in precisions:
            found[name, precision] = products({name: precision})[name]
    return found


def _tuned(problems: Sequence[Problem], target: str, opt_level: int) -> dict[Problem, Choice]:
    distinct = list(dict.fromkeys(problems))
    if target == "cpu":
        from nrt.tuner_cpu import CpuBench

        return dict(tune(distinct, CpuBench(), opt_level=opt_level))
    from nrt.cuda_kernels.compile_pool import CompilePool
    from nrt.cuda_runner import CudaRunner
    from nrt.tuner_cuda import CudaBench

    runner = CudaRunner()
    with CompilePool(runner.device, settings().workers) as pool:
        return dict(tune(distinct, CudaBench(runner.device, runner, pool), opt_level=opt_level))


def table(choice: Choice) -> str:
    """All candidates, the fastest first; those without a time say why."""
    rows = sorted(choice.candidates, key=lambda c: (c.seconds is None, c.seconds or 0.0))
    return "\n".join(
        f"  {'–' if c.seconds is None else f'{c.seconds * 1e6:.2f} us':>12}"
        f"  {c.variant} {c.config}  {c.note}".rstrip()
        for c in rows
    )


if __name__ == "__main__":
    raise SystemExit(main())
