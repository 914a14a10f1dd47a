"""What a kernel waits for: hardware counters of one variant, read by NVIDIA's ``ncu``.

    python benchmarks/counters.py --models DIR --group resnet50 --batch 32 \\
        --match "[32,2048,7,7]" --variant conv_wgmma --config 2,128,5,1,2,1,0,128

Each case is a process of its own, started by ``ncu``, that launches the variant twice; the second
launch counts. ``ncu`` runs a kernel several times to read all counters, and flushes the caches
before each: times are those of cold caches, and so above those of `benchmarks.kernels`, and every
operand comes from DRAM. Clocks are left alone, as in the other benchmarks.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.kernel_choice import known_variants
from benchmarks.kernel_problems import BATCHED, GROUPS, group_precision, group_problems
from benchmarks.kernels import ModelLoader, problem_text
from benchmarks.ncu_report import excerpt, parse
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
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Variant
from nrt.errors import DeviceError, InputError, NrtError
from nrt.problem import Problem
from nrt.runtime.cuda import open_device
from nrt.trial import random_inputs

__all__ = [
    "METRICS",
    "CountersDeniedError",
    "config_from_text",
    "counted",
    "find_ncu",
    "main",
    "profile",
]

KEYS = ("group", "batch", "precision", "key", "variant", "config")

METRICS = (
    # Time on the device, and the clock with it: cycles over time.
    "gpu__time_duration.sum",
    "sm__cycles_elapsed.max",
    # Share of an SM's busy cycles in which its tensor cores work: what a product is after.
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    # Second-level cache: how near to its peak, and how many of its accesses found their sector.
    "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    # From that cache into the SMs: the bytes (operands, as often as tiles load them), and how near
    # to the peak of an SM's port.
    "l1tex__m_xbar2l1tex_read_bytes.sum",
    "l1tex__m_xbar2l1tex_read_sectors.avg.pct_of_peak_sustained_elapsed",
    # Device memory: bytes both ways, and how near to its peak.
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    # Warps on an SM at a time: what its schedulers can choose from.
    "sm__warps_active.avg.per_cycle_active",
    # Share of cycles in which a scheduler issues an instruction.
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    # How many warps, on average at each issue, wait ...
    # ... for global or local memory,
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    # ... for the other warps at a barrier of the block,
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    # ... for a memory fence,
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio",
    # ... for products of a warpgroup (sm_90),
    "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio",
    # ... for the fixed latency of an instruction,
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
    # ... for shared memory or special functions.
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
)

_LAUNCHES = 2
"""Of each kernel; the first one also pays for what the driver loads lazily."""
_TIMEOUT = 600
"""Seconds that one case may take: to import, to compile, and a few replays per kernel."""


class CountersDeniedError(DeviceError):
    """The driver does not let this user read counters: no case can succeed."""


# -- running ncu ---------------------------------------------------------------------------------


def profile(ncu: str, problem: Problem, variant: str, config: Sequence[Any]) -> list[Case]:
    """All launches of a process that runs ``variant`` `_LAUNCHES` times, see `ncu_report.parse`.

    Raises:
        CountersDeniedError: the driver refuses to show counters.
        DeviceError: ncu or the process under it failed, or took too long.
        InputError: ncu printed no counters.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "case.json"
        data = {"problem": problem.to_data(), "variant": variant, "config": list(config)}
        request.write_text(json.dumps(data), encoding="utf-8")
        script = str(Path(__file__).resolve())
        command = [ncu, "--clock-control", "none", "--csv", "--print-units", "base",
                   "--metrics", ",".join(METRICS), sys.executable, script, "--child",
                   str(request)]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"ncu took over {_TIMEOUT} s for {variant} on {problem}") from error
        except OSError as error:
            raise DeviceError(f"ncu ({ncu}) cannot be started: {error}") from error
    # ncu says what went wrong among the program's output, the program in its own.
    said = [line for line in done.stdout.splitlines() if line.startswith("==ERROR==")]
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise CountersDeniedError(
            "the driver shows no counters to this user (ERR_NVGPUCTRPERM): run as root, in a "
            "container with the capability SYS_ADMIN, or load the module nvidia with "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    if done.returncode or said:
        text = "\n".join([*said, done.stderr.strip()]).strip()
        raise DeviceError(
            f"ncu failed with exit code {done.returncode}: {text[-1500:] or excerpt(done.stdout)}"
        )
    return parse(done.stdout)


def _child(request: Path) -> int:
    """Runs under ncu: prepares what ``request`` asks for, and launches it."""
    from nrt.cuda_kernels.registry import VARIANTS
    from nrt.cuda_runner import CudaRunner

    try:
        data = json.loads(request.read_text(encoding="utf-8"))
        problem = Problem.from_data(data["problem"])
        variant = next(v for v in VARIANTS if v.name == data["variant"])
        # Each launch is measured alone: one that starts before its predecessor ends cannot be.
        runner = CudaRunner(programmatic=False)
        inputs = random_inputs(problem, np.random.default_rng(1))
        prepared = runner.prepare(variant, problem, tuple(data["config"]), inputs)
        for _ in range(_LAUNCHES):
            prepared.enqueue(runner.stream)
        runner.cuda.synchronize(runner.stream)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def counted(launches: Sequence[Case], expected: int) -> list[Case]:
    """Of launches of one case, those that count: the last ``expected`` ones.

    Raises:
        InputError: it is not `_LAUNCHES` times that many.
    """
    if len(launches) != _LAUNCHES * expected:
        names = ", ".join(launch["name"] for launch in launches) or "none"
        raise InputError(
            f"ncu saw {len(launches)} launches ({names}), expected {_LAUNCHES} times {expected}"
        )
    return list(launches[-expected:])


def find_ncu(name: str) -> tuple[str, str]:
    """Path and version of ncu.

    Raises:
        InputError: there is no such program, or it does not say its version.
    """
    path = shutil.which(name)
    if path is None:
        raise InputError(
            f"--ncu: {name!r} was not found; it comes with the CUDA toolkit (its bin folder, often "
            "/usr/local/cuda/bin/ncu) and with Nsight Compute: give its path"
        )
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"--ncu: {path} cannot be started: {error}") from error
    version = re.search(r"Version (\S+)", said)
    if version is None:
        raise InputError(
            f"--ncu: {path} --version printed {excerpt(said)}, expected Nsight Compute's version"
        )
    return path, version[1]


# -- cases ---------------------------------------------------------------------------------------


def config_from_text(text: str) -> tuple[Any, ...]:
    """``2,128,5`` -> ``(2, 128, 5)``; what is no number stays text."""
    return tuple(_item(part.strip()) for part in text.split(",")) if text.strip() else ()


def _item(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _gpu() -> DeviceSpec:
    from nrt.cuda_runner import device_spec

    return device_spec(open_device().info)


def _solver(problem: Problem, name: str, device: DeviceSpec) -> Variant:
    """The variant ``name``.

    Raises:
        InputError: it does not solve ``problem`` on ``device``.
    """
    from nrt.cuda_kernels.registry import variants_for

    for variant, refusal in variants_for(problem, device):
        if variant.name == name:
            if refusal is not None:
                raise InputError(f"{name} refuses {problem}: {refusal.reason}")
            return variant
    raise InputError(f"{name} solves no {problem.family}: {problem}")


def _problems(args: argparse.Namespace) -> list[tuple[Case, Problem]]:
    load = ModelLoader(args.models)
    found: list[tuple[Case, Problem]] = []
    for group in args.group:
        for batch in args.batch if group in BATCHED else [0]:
            head = {"group": group, "batch": batch}
            head["precision"] = group_precision(group, args.precision)
            problems = group_problems(group, batch, args.precision, load)
            found += [(head, p) for p in problems if args.match in str(p)]
    if not found:
        raise InputError(
            f"--match: no problem of {', '.join(args.group)} at batch "
            f"{', '.join(map(str, args.batch))} holds {args.match!r}; expected a part of a text "
            "like 'Conv(fp16[32,64,56,56]{nhwc}, fp16[64,64,3,3], ...'"
        )
    return found


def _cases(
    args: argparse.Namespace, problems: Sequence[tuple[Case, Problem]], device: DeviceSpec
) -> Iterator[Case]:
    given = [config_from_text(text) for text in args.config]
    configs: list[tuple[Any, ...] | None] = [*given] or [None]
    for head, problem in problems:
        for wanted in configs:
            case = {**head, "problem": problem_text(problem), "key": problem.key[:16]}
            case |= {"op": problem.op.name, "variant": args.variant, "config": _joined(wanted)}
            try:
                variant = _solver(problem, args.variant, device)
                best = variant.configs(problem, device)[0]
                config = tuple(best) if wanted is None else wanted
                case["config"] = _joined(config)
                emission = variant.emit(problem, config, device)
                launches = profile(args.ncu, problem, args.variant, config)
                kernels = counted(launches, len(emission.launches))
                case |= {"status": "passed", "message": "", "kernels": kernels}
            except CountersDeniedError:
                raise
            except CASE_ERRORS as error:
                case |= {"status": "error", "message": describe_error(error), "kernels": []}
            yield case


def _joined(config: Sequence[Any] | None) -> str:
    return ", ".join(map(str, config or ()))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the counters of the cases asked for; 1 if one of them broke."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--child"]:
        return _child(Path(arguments[1]))
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder with zoo.py, for the networks")
    parser.add_argument("--group", nargs="+", choices=GROUPS, required=True)
    parser.add_argument("--batch", nargs="+", type=int, default=[32], help="(32)")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--match", default="", help="only problems whose text holds this")
    parser.add_argument("--variant", required=True, metavar="NAME", help="e.g. conv_wgmma")
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="A,B,...",
        help="the variant's configurations; default: the one with the best estimate",
    )
    parser.add_argument("--ncu", default="ncu", help="NVIDIA's profiler, if not on the path")
    add_common_options(parser)
    args = parser.parse_args(arguments)
    done: list[Case] = []
    try:
        known_variants([args.variant], "cuda")
        args.ncu, version = find_ncu(args.ncu)
        problems = _problems(args)
        device = _gpu()
        header = run_header(args.commit)
        header["versions"]["ncu"] = version
        name = args.name or default_name("counters", "cuda", header)
        path = args.results / f"{name}.json"
        results = Results.open(path, "counters", KEYS, header)
        for case in _cases(args, problems, device):
            results.add(case)
            done.append(case)
            if case["status"] == "error":
                print(f"{case['problem']}: error: {case['message']}", flush=True)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{markdown('counters', results.runs, done)}\nwritten to {path}")
    return 0 if all(case["status"] == "passed" for case in done) else 1


if __name__ == "__main__":
    sys.exit(main())
