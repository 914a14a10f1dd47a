"""How good are a variant's estimates? Every configuration timed, beside what was expected of it.

The tuner measures the few configurations of a variant that its estimate puts first. What that costs
is the regret: how much slower the best of the first few is than the best of all.

    python benchmarks/estimates.py --models DIR --group resnet50 inception_v3 --batch 1 8 32
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.kernel_choice import known_variants
from benchmarks.kernel_problems import BATCHED, GROUPS, group_problems
from benchmarks.kernels import ModelLoader, problem_text, quick_inputs
from benchmarks.protocol import CASE_ERRORS, Case, add_common_options, describe_error, run_header
from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_runner import CudaRunner, Operands
from nrt.errors import InputError, NrtError
from nrt.problem import Problem
from nrt.settings import settings
from nrt.tuner_cuda import CudaBench

__all__ = ["main", "regret"]

_SLOW = 2.0
"""A configuration that takes so many times the best one's time is timed briefly."""


def regret(cases: Sequence[Case], first: int) -> float:
    """Mean over problems of the best time among the ``first`` by estimate over the best of all.

    Args:
        cases: each with ``problem``, ``estimate`` and ``seconds``; None where it failed.
        first: configurations per problem.

    Raises:
        InputError: there is no time among them.
    """
    timed: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if case["seconds"] is not None:
            timed.setdefault(case["problem"], []).append((case["estimate"], case["seconds"]))
    if not timed:
        raise InputError("no configuration was timed")
    ratios = [
        min(seconds for _, seconds in sorted(rows)[:first]) / min(s for _, s in rows)
        for rows in timed.values()
    ]
    return float(np.mean(ratios))


def _problems(args: argparse.Namespace) -> list[Problem]:
    load = ModelLoader(args.models)
    found: dict[Problem, None] = {}
    for group in args.group:
        for batch in args.batch if group in BATCHED else [0]:
            problems = group_problems(group, batch, args.precision, load)
            found |= dict.fromkeys(p for p in problems if args.match in str(p))
    return list(found)


def _cases(args: argparse.Namespace, runner: CudaRunner, bench: CudaBench) -> Iterator[Case]:
    jobs = []
    for problem in _problems(args):
        for variant, refusal in variants_for(problem, runner.device):
            if variant.name == args.variant and refusal is None:
                jobs.append((variant, problem, list(variant.configs(problem, runner.device))))
    bench.prepare((variant, problem, c) for variant, problem, configs in jobs for c in configs)
    for variant, problem, configs in jobs:
        inputs, operands, best = quick_inputs(problem, 1), Operands(), float("inf")
        for config in configs:
            case: Case = {
                "problem": problem_text(problem),
                "variant": variant.name,
                "config": ", ".join(map(str, config)),
                "estimate": variant.estimate(problem, config, runner.device),
                "seconds": None,
                "message": "",
            }
            try:
                case["seconds"] = runner.seconds(
                    variant, problem, config, inputs, bench.binary,
                    operands=operands, limit=best * _SLOW,
                )  # fmt: skip
                best = min(best, case["seconds"])
            except CASE_ERRORS as error:
                case["message"] = describe_error(error)
            yield case


def main(argv: Sequence[str] | None = None) -> int:
    """Time the configurations asked for; 1 if there is nothing to time."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder with zoo.py, for the networks")
    parser.add_argument("--group", nargs="+", choices=GROUPS, required=True)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--match", default="", help="only problems whose text holds this")
    parser.add_argument("--variant", default="conv_wgmma", metavar="NAME", help="(conv_wgmma)")
    add_common_options(parser)
    args = parser.parse_args(argv)
    try:
        known_variants([args.variant], "cuda")
        runner = CudaRunner()
        with CompilePool(runner.device, settings().workers) as pool:
            cases = list(_cases(args, runner, CudaBench(runner.device, runner, pool)))
        found = {first: regret(cases, first) for first in (1, 4, 8)}
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = args.results / f"{args.name or 'estimates'}.json"
    path.write_text(json.dumps({"run": run_header(args.commit), "cases": cases}), "utf-8")
    for first, ratio in found.items():
        print(f"best of the first {first}: {(ratio - 1) * 100:.1f}% slower than the best of all")
    print(f"{len(cases)} configurations of {args.variant}, written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
