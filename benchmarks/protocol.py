"""The one protocol: how times are taken, and how results are kept.

Times are device seconds by events around replays of a CUDA graph (host seconds around runs on the
CPU target). A subject is first warmed up for a span of time, so that clocks and caches settle, and
then sampled; the median counts, the 90th percentile stands beside it. Inputs are random, never
zeros: a GPU multiplies zeros at a higher clock.

Results are JSON files that grow: a case that runs again replaces what the file says of it and
leaves the others alone. Each case points at the run it came from, and a run names its device,
driver, libraries, commit and command line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nrt.errors import InputError, NrtError
from nrt.runtime.cuda import device_count

__all__ = [
    "CASE_ERRORS",
    "RESULTS",
    "ROOT",
    "Results",
    "Stats",
    "add_common_options",
    "default_name",
    "describe_error",
    "geomean",
    "host_sampler",
    "measure",
    "measure_in_turns",
    "read_results",
    "run_header",
]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

CASE_ERRORS = (
    NrtError,
    RuntimeError,  # PyTorch's and ONNX Runtime's, and those of torch.compile
    AssertionError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""What one case may raise without taking the cases behind it along; it is recorded with its text,
and the script then exits with 1."""

Case = dict[str, Any]
Sampler = Callable[[int], Sequence[float]]
"""Takes a number of repeats, returns as many times in seconds."""

_DISTRIBUTIONS = (
    "nrt",
    "numpy",
    "numba",
    "numba-cuda",
    "cuda-core",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "triton",
)
_BATCH = 10
"""Samples between two looks at the host's clock."""


@dataclass(frozen=True)
class Stats:
    """Outcome of a measurement, in seconds.

    Attributes:
        median, p90: of the samples.
        samples: how many there were.
    """

    median: float
    p90: float
    samples: int

    def to_data(self) -> Case:
        return asdict(self)


def measure(
    sample: Sampler,
    *,
    warm_up: float = 0.2,
    duration: float = 0.4,
    least: int = 20,
    most: int = 2000,
) -> Stats:
    """Warm up for ``warm_up`` seconds, then sample for ``duration`` seconds of the host's clock.

    Args:
        sample: called again and again with a number of repeats.
        warm_up: seconds; at least one call.
        duration: seconds.
        least, most: number of samples.

    Raises:
        InputError: a time that is no positive finite number came back.
    """
    seconds = _sampled(sample, warm_up, duration, least, most)
    return _stats(seconds)


def measure_in_turns(
    samplers: Mapping[str, Sampler],
    *,
    warm_up: float = 0.2,
    duration: float = 0.4,
    least: int = 20,
    most: int = 2000,
    rounds: int = 4,
) -> dict[str, Stats]:
    """`measure` for subjects that are to be compared, each sampled a share of the time per round.

    A GPU that multiplies at its power limit clocks down by several percent within a second: who is
    measured first would win. Every second round goes backward. Arguments as for `measure`, in
    total per subject; ``warm_up`` is spent before every turn, a share each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    share = (warm_up / rounds, duration / rounds, -(-least // rounds), -(-most // rounds))
    for index in range(rounds):
        for name in list(samplers)[:: -1 if index % 2 else 1]:
            seconds[name] += _sampled(samplers[name], *share)
    return {name: _stats(times) for name, times in seconds.items()}


def _sampled(
    sample: Sampler, warm_up: float, duration: float, least: int, most: int
) -> list[float]:
    end = time.perf_counter() + warm_up
    while True:
        sample(min(_BATCH, least))
        if time.perf_counter() >= end:
            break
    seconds: list[float] = []
    end = time.perf_counter() + duration
    while len(seconds) < least or (time.perf_counter() < end and len(seconds) < most):
        seconds.extend(sample(min(_BATCH, least)))
    return seconds


def _stats(seconds: Sequence[float]) -> Stats:
    if not all(math.isfinite(s) and s > 0 for s in seconds):
        raise InputError(
            f"a clock returned {min(seconds)} s, expected positive times; the work between the "
            "events is empty"
        )
    return Stats(float(np.median(seconds)), float(np.percentile(seconds, 90)), len(seconds))


def host_sampler(run: Callable[[], Any]) -> Sampler:
    """Times ``run``, which waits for its result, by the host's clock."""

    def sample(repeats: int) -> list[float]:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return seconds

    return sample


def geomean(values: Sequence[float]) -> float | None:
    """Geometric mean; None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


# -- what a run was ------------------------------------------------------------------------------


def run_header(commit: str = "") -> Case:
    """Device, driver, libraries, commit, command line and time of this run.

    Args:
        commit: of the sources, where they are a copy that git does not know; else git is asked.
    """
    found, dirty = (commit, None) if commit else _commit()
    return {
        "device": _device(),
        "host": {"machine": platform.machine(), "processor": _processor()},
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": found or "unknown",
        "dirty": dirty,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def default_name(benchmark: str, target: str, header: Case) -> str:
    """``models_cpu``, or ``models_h200`` by the GPU's name: one file per device."""
    device = header["device"]
    if target == "cpu" or device is None:
        return f"{benchmark}_{target}"
    words = device["name"].removeprefix("NVIDIA ").lower().split()
    return f"{benchmark}_{'-'.join(words)}"


def _device() -> Case | None:
    if not device_count():
        return None
    from nrt.runtime.cuda import open_device

    info = open_device().info
    return {
        "name": info.name,
        "arch": info.arch,
        "multiprocessors": info.multiprocessors,
        "l2_bytes": info.l2_bytes,
        "driver": info.driver,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> tuple[str, bool | None]:
    """Hash of HEAD and whether tracked files differ from it; empty and None outside of git."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "", None
    # The results that a run writes do not change what it measures.
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
    )
    return commit, None if changed is None else bool(changed)


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# -- results on disk -----------------------------------------------------------------------------


@dataclass
class Results:
    """The JSON file of one benchmark; see the module's docstring.

    Attributes:
        path: the file.
        kind: which table prints it: ``compare``, ``models``, ``precisions`` and so on.
        keys: the fields that tell one case from another.
        header: of this run.
        runs, cases: the file's contents.
    """

    path: Path
    kind: str
    keys: tuple[str, ...]
    header: Case
    runs: list[Case] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, kind: str, keys: tuple[str, ...], header: Case) -> Results:
        """Start from ``path`` if it is there.

        Raises:
            InputError: it holds something else than results of this kind.
        """
        results = cls(path, kind, keys, header)
        if path.exists():
            data = read_results(path)
            if data["kind"] != kind:
                raise InputError(
                    f"{path} holds results of kind {data['kind']!r}, expected {kind!r}; "
                    "give another --results folder"
                )
            results.runs, results.cases = list(data["runs"]), list(data["cases"])
        results.runs.append(header)
        return results

    def key(self, case: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(case.get(k) for k in self.keys)

    def add(self, case: Case) -> None:
        """Put ``case`` in the place of an earlier one with the same keys, and write the file."""
        case = {**case, "run": len(self.runs) - 1}
        for index, other in enumerate(self.cases):
            if self.key(other) == self.key(case):
                self.cases[index] = case
                break
        else:
            self.cases.append(case)
        self.write()

    def write(self) -> None:
        """Write all cases, with the runs that they point at."""
        used = sorted({case["run"] for case in self.cases})
        place = {run: index for index, run in enumerate(used)}
        data = {
            "kind": self.kind,
            "runs": [self.runs[run] for run in used],
            "cases": [{**case, "run": place[case["run"]]} for case in self.cases],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def read_results(path: Path) -> dict[str, Any]:
    """The contents of a result file.

    Raises:
        InputError: it is missing or no result file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as benchmark results: {error}") from error
    if not isinstance(data, dict) or not {"kind", "runs", "cases"} <= set(data):
        raise InputError(f"{path} is no benchmark result: expected kind, runs and cases")
    return data


def describe_error(error: BaseException) -> str:
    """Type, text, and the innermost line of code, for a case that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip()
    return f"{type(error).__name__}: {text[:2000] or 'no message'}{where}"


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the JSON (benchmarks/results)"
    )
    parser.add_argument("--name", help="name of the JSON file; default: by script and device")
    parser.add_argument("--commit", default="", help="commit to record outside of a git checkout")
