"""How fast is one kernel? nrt's tuned best beside cuBLAS, cuDNN and PyTorch's kernels.

Both sides run on several copies of their buffers in turn, many runs in one CUDA graph, timed by
device events around its replays.

    python benchmarks/kernels.py --models DIR --group resnet50 --batch 32
    python benchmarks/kernels.py --group gemm memory
    python benchmarks/kernels.py --group gemm --variants gemm_mma
    python benchmarks/kernels.py --models DIR --group resnet50 --batch 128 --precision int8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.kernel_choice import LimitedBench, gains, known_variants
from benchmarks.kernel_problems import BATCHED, FIXED, GROUPS, group_precision, group_problems
from benchmarks.protocol import (
    CASE_ERRORS,
    Case,
    Results,
    Sampler,
    Stats,
    add_common_options,
    default_name,
    describe_error,
    measure_in_turns,
    run_header,
)
from benchmarks.tables import markdown
from benchmarks.zoo_models import Zoo
from nrt.dtypes import BYTES
from nrt.errors import InputError, NrtError
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.problem import Problem
from nrt.runtime.cuda import device_count
from nrt.settings import settings
from nrt.timing_cache import TimingCache
from nrt.trial import random_inputs
from nrt.tuner import Choice, tune
from nrt.work import flops_of

if TYPE_CHECKING:
    import onnx

__all__ = ["ModelLoader", "main", "problem_text", "rate_of", "tune_all"]

KEYS = ("group", "batch", "precision", "key", "variants")
SETS = 3
"""Copies of a problem's buffers, so that its inputs are not simply still in the cache."""
_SPAN = 1e-3
"""Seconds of work per graph: beside it the resolution of events does not show, nor the time that a
busy host takes from a first event to the launch."""
_NRT = "nrt"
Subject = Callable[[Problem, Choice, Sequence[Array]], Sampler]
Peers = Callable[[Problem, Sequence[Array]], Iterator[tuple[str, Sampler | Exception]]]


def runs_for(once: float, sets: int = SETS) -> int:
    """How many runs one graph holds, for a run of ``once`` seconds."""
    return sets * max(1, min(64, int(_SPAN / max(once, 1e-6) / sets)))


def rate_of(problem: Problem, seconds: float) -> tuple[float, str]:
    """TFLOP/s of products and convolutions, TB/s of everything else."""
    if isinstance(problem.op, Conv | MatMul):
        return flops_of(problem) / seconds * 1e-12, "TFLOP/s"
    return problem.nbytes / seconds * 1e-12, "TB/s"


def tune_all(
    problems: Sequence[Problem], bench: Any, opt_level: int, cache: TimingCache | None
) -> dict[Problem, Choice | Exception]:
    """A choice per problem, or what tuning it raised."""
    try:
        # All at once: while one is timed, the kernels of the others compile.
        return dict(tune(problems, bench, opt_level=opt_level, cache=cache))
    except CASE_ERRORS:
        results: dict[Problem, Choice | Exception] = {}
        for problem in problems:
            try:
                results |= tune([problem], bench, opt_level=opt_level, cache=cache)
            except CASE_ERRORS as error:
                results[problem] = error
        return results


def quick_inputs(problem: Problem, seed: int) -> list[Array]:
    """Random inputs; big ones repeat a random block, which is much faster to draw."""
    rng = np.random.default_rng(seed)
    if sum(spec.size for spec in problem.inputs) < 1 << 22:
        return random_inputs(problem, rng)
    arrays = []
    for spec in problem.inputs:
        # An odd period: rows of a matrix do not repeat.
        count = min(spec.size, 1_000_003)
        if spec.dtype in BYTES:
            info = np.iinfo(spec.dtype.numpy)
            whole = rng.integers(max(info.min, -127), info.max + 1, count, spec.dtype.numpy)
            arrays.append(np.resize(whole, spec.shape))
            continue
        block = rng.standard_normal(count, np.float32)
        arrays.append(np.resize(block, spec.shape).astype(spec.dtype.numpy))
    return arrays


# -- nrt's side ----------------------------------------------------------------------------------


def _cuda_subject(runner: Any, bench: Any) -> Subject:
    def sampler(problem: Problem, choice: Choice, inputs: Sequence[Array]) -> Sampler:
        prepared = [
            runner.prepare(choice.variant, problem, choice.config, inputs, bench.binary)
            for _ in range(SETS)
        ]
        cuda, stream = runner.cuda, runner.stream
        once = min(cuda.time(prepared[0].enqueue, stream, repeats=3, warm_up=2))
        runs = runs_for(once)

        def work(target: Any) -> None:
            for index in range(runs):
                # As a plan launches it: programmatically, where the device can.
                prepared[index % SETS].enqueue(target, chained=index > 0)

        graph = cuda.capture(stream, work)

        def sample(repeats: int, keep: Any = prepared) -> list[float]:
            del keep  # the graph knows only the addresses of these buffers
            return [t / runs for t in cuda.time(graph, stream, repeats=repeats)]

        return sample

    return sampler


# -- the peers' side -----------------------------------------------------------------------------


def _torch_peers(
    problem: Problem, inputs: Sequence[Array]
) -> Iterator[tuple[str, Sampler | Exception]]:
    import torch

    from benchmarks.kernel_peers import alternatives, operands
    from benchmarks.torch_clock import event_sampler, graph_of

    given = operands(problem, inputs, "cuda")
    for alternative in alternatives(problem):
        try:
            tensors = alternative.prepare(given)
            sets = [tensors, *([t.clone() for t in tensors] for _ in range(SETS - 1))]
            with torch.no_grad():
                result = alternative.run(*sets[0])
            if tuple(result.shape) != problem.y.shape:
                raise InputError(
                    f"peer {alternative.name}: shape {tuple(result.shape)}, expected "
                    f"{problem.y.shape}"
                )
            once = min(event_sampler(partial(alternative.run, *sets[0]))(3))
            runs = runs_for(once)
            graph, _ = graph_of(partial(_in_turn, alternative.run, sets, runs))
            yield alternative.name, _keeping(sets, event_sampler(graph.replay, runs))
        except CASE_ERRORS as error:
            yield alternative.name, error


def _keeping(tensors: Any, sampler: Sampler) -> Sampler:
    """``sampler``, which keeps ``tensors``: a graph knows only the addresses of its operands."""

    def sample(repeats: int, keep: Any = tensors) -> Sequence[float]:
        del keep
        return sampler(repeats)

    return sample


def _in_turn(run: Callable[..., Any], sets: Sequence[Sequence[Any]], runs: int) -> None:
    for index in range(runs):
        run(*sets[index % len(sets)])


# -- cases ---------------------------------------------------------------------------------------


def kernel_case(
    problem: Problem,
    choice: Choice,
    subject: Subject | None,
    peers: Peers | None,
    protocol: Mapping[str, Any],
) -> Case:
    """nrt's time, the fastest peer's, and their ratio: above 1, nrt is faster."""
    wrong = [
        f"{c.variant}({c.config}): {c.note}"
        for c in choice.candidates
        if c.note.startswith("wrong")
    ]
    case: Case = {
        "op": problem.op.name,
        "variant": choice.variant.name,
        "config": ", ".join(map(str, choice.config)),
        "reason": choice.reason,
        "candidates": len([c for c in choice.candidates if c.seconds is not None]),
        "status": "passed",
        "message": "; ".join(wrong),
    }
    inputs = quick_inputs(problem, 1)
    samplers: dict[str, Sampler] = {}
    refused = []
    for name, sampler in peers(problem, inputs) if peers is not None else ():
        if isinstance(sampler, Exception):
            refused.append(f"{name}: {describe_error(sampler)}")
        else:
            samplers[name] = sampler
    if peers is not None and not samplers:
        raise InputError(f"no peer runs {problem}: {'; '.join(refused)}")
    if subject is not None:
        stats = measure_in_turns({_NRT: subject(problem, choice, inputs), **samplers}, **protocol)
    elif choice.seconds is None:
        raise InputError(f"{problem} was not timed; give --opt-level 1 or more")
    else:
        stats = {_NRT: Stats(choice.seconds, choice.seconds, 1)}
    ours = stats.pop(_NRT)
    case["nrt"] = ours.to_data()
    case["rate"], case["unit"] = rate_of(problem, ours.median)
    if peers is not None:
        case["peers"] = {name: times.to_data() for name, times in stats.items()}
        case["peers_refused"] = refused
        case["peer"] = min(stats, key=lambda name: stats[name].median)
        best = stats[case["peer"]].median
        case["peer_rate"] = rate_of(problem, best)[0]
        case["ratio"] = best / ours.median
    return case


class ModelLoader:
    """Models for the groups that are networks."""

    def __init__(self, folder: Path | None) -> None:
        self._zoo = Zoo(folder) if folder else None

    def __call__(self, name: str, batch: int) -> onnx.ModelProto:
        if self._zoo is None:
            raise InputError(f"group {name} needs --models DIR, a folder with zoo.py")
        self._zoo.names((), [name])
        model = self._zoo.load(name, batch)
        if model is None:
            raise InputError(f"{name}: its batch is fixed, and not at {batch}")
        return model


def _cases(args: argparse.Namespace, bench: Any, subject: Subject | None) -> Iterator[Case]:
    load = ModelLoader(args.models)
    cache = TimingCache(settings().cache_dir / f"timings-{args.target}.json")
    protocol = {"warm_up": args.warm_up, "duration": args.duration}
    peers = _torch_peers if args.target == "cuda" and not args.no_peers else None
    for group in args.group:
        for batch in args.batch if group in BATCHED else [0]:
            problems = group_problems(group, batch, args.precision, load)
            problems = [p for p in problems if args.match in str(p)][: args.limit]
            choices = tune_all(problems, bench, args.opt_level, cache)
            cache.save()
            # Winners known from the cache were not compiled yet.
            bench.prepare(
                [(c.variant, p, c.config) for p, c in choices.items() if isinstance(c, Choice)]
            )
            for problem in problems:
                case = {"group": group, "batch": batch}
                case["precision"] = group_precision(group, args.precision)
                case |= {"problem": problem_text(problem), "key": problem.key[:16]}
                if args.variants:
                    case["variants"] = " ".join(args.variants)
                choice = choices[problem]
                try:
                    if isinstance(choice, Exception):
                        raise choice
                    others = None if _is_alone(problem) else peers
                    case |= kernel_case(problem, choice, subject, others, protocol)
                except CASE_ERRORS as error:
                    unit = rate_of(problem, 1.0)[1]
                    case |= {"status": "error", "message": describe_error(error), "unit": unit}
                yield case


def _is_alone(problem: Problem) -> bool:
    """Whether PyTorch has no kernel on the GPU for it: its convolutions read and store floats."""
    dtypes = {problem.inputs[0].dtype, problem.y.dtype}
    return isinstance(problem.op, Conv) and not dtypes.isdisjoint(BYTES)


def problem_text(problem: Problem) -> str:
    """The problem with what its shapes do not tell."""
    op = problem.op
    text = str(problem)
    if isinstance(op, MatMul) and op.tf32:
        text += " tf32"
    if isinstance(op, Conv):
        text += f" stride {op.strides[0]} pads {op.pads[0]} groups {op.groups}"
        text += f" behind {len(op.prologue.instrs)} steps" if op.prologue else ""
        text += f" + {len(op.epilogue.instrs)} steps" if op.epilogue else ""
    return text


def _precision_context(args: argparse.Namespace) -> AbstractContextManager[None]:
    if args.target == "cpu" or args.no_peers:
        return nullcontext()
    from benchmarks.torch_clock import precision_of_products

    return precision_of_products(args.precision)


def _run(args: argparse.Namespace, results: Results) -> list[Case]:
    done = []

    def keep(cases: Iterator[Case]) -> None:
        for case in cases:
            results.add(case)
            done.append(case)
            print(_line(case), flush=True)
        for case in gains(done):
            results.add(case)
            print(f"{case['problem']}: {case['over_fp16']:.2f} times the rate of fp16")

    if args.target == "cpu":
        from nrt.tuner_cpu import CpuBench

        keep(_cases(args, _limited(CpuBench(), args), None))
        return done
    from nrt.cuda_kernels.compile_pool import CompilePool
    from nrt.cuda_runner import CudaRunner
    from nrt.tuner_cuda import CudaBench

    runner = CudaRunner()
    with CompilePool(runner.device, settings().workers) as pool, _precision_context(args):
        bench = CudaBench(runner.device, runner, pool)
        keep(_cases(args, _limited(bench, args), _cuda_subject(runner, bench)))
    return done


def _limited(bench: Any, args: argparse.Namespace) -> Any:
    return LimitedBench(bench, args.variants) if args.variants else bench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases asked for; 1 if one of them broke."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder with zoo.py, for the networks")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=list(FIXED))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32", "int8"), default="fp16")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--opt-level", type=int, default=3, help="of nrt's tuner, 0 to 5 (3)")
    parser.add_argument("--match", default="", help="only problems whose text holds this")
    parser.add_argument("--limit", type=int, help="only the first N problems of each group")
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help="nrt chooses among these only, e.g. those of older GPUs: gemm_mma conv_mma",
    )
    parser.add_argument("--no-peers", action="store_true", help="nrt alone")
    parser.add_argument("--warm-up", type=float, default=0.05, help="seconds per subject (0.05)")
    parser.add_argument("--duration", type=float, default=0.1, help="seconds per subject (0.1)")
    add_common_options(parser)
    args = parser.parse_args(argv)
    try:
        if args.target == "cuda" and not device_count():
            parser.error("--target cuda: no GPU here; --target cpu times nrt's host kernels alone")
        if args.variants:
            args.variants = known_variants(args.variants, args.target)
        header = run_header(args.commit)
        name = args.name or default_name("kernels", args.target, header)
        path = args.results / f"{name}.json"
        results = Results.open(path, "kernels", KEYS, header)
        done = _run(args, results)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{markdown('kernels', results.runs, done)}\nwritten to {path}")
    return 0 if all(case["status"] == "passed" for case in done) else 1


def _line(case: Case) -> str:
    head = f"{case['group']} {case['batch'] or ''} {case['problem']}:".replace("  ", " ")
    if case["status"] == "error":
        return f"{head} error: {case['message']}"
    text = (
        f"{head} {case['variant']} {case['nrt']['median'] * 1e6:.1f} us, "
        f"{case['rate']:.3g} {case['unit']}"
    )
    if "ratio" in case:
        text += f"; {case['peer']} {case['peer_rate']:.3g}, ratio {case['ratio']:.2f}"
    return text + (f"\n  {case['message']}" if case["message"] else "")


if __name__ == "__main__":
    sys.exit(main())
