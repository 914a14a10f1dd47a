"""compile(): the whole story, from a model to an engine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt.assembly import Bound, Constants, assemble
from nrt.cuda_kernels.dependent_launch import MINIMUM_CC
from nrt.errors import BuildError, DeviceError
from nrt.frontend.network import Network
from nrt.ir.graph import Graph
from nrt.ir.graph_diff import GraphDiff, graph_diff
from nrt.lowering import Lowered, lower
from nrt.memory_limit import check_limit, workspace_room
from nrt.passes.base import Phase, PipelineReport, run_pipeline
from nrt.passes.bind_io import IOFormat
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.plan import Plan, Target
from nrt.plan_clock import plan_clock
from nrt.programmatic import decide
from nrt.runtime import Engine
from nrt.settings import settings
from nrt.sizes import parse_bytes
from nrt.streams import MOST, check_wanted, decide_streams, parallel_schedule
from nrt.timing_cache import TimingCache
from nrt.tuner import Choice, Progress, tune

if TYPE_CHECKING:
    import onnx

    from nrt.cuda_kernels.device import DeviceSpec
    from nrt.cuda_runner import CudaRunner

__all__ = ["Build", "build", "compile", "optimize"]

_VERSIONED = ("nrt", "numpy", "numba", "numba-cuda", "cuda-core", "onnx")


@dataclass(frozen=True)
class Build:
    """A plan and how it came about.

    Attributes:
        plan: to run or to save.
        graph: the optimized graph.
        passes: what every pass did and refused.
        choices: per task name, the winner and all its candidates.
    """

    plan: Plan
    graph: Graph
    passes: PipelineReport
    choices: Mapping[str, Choice]

    def diff(self, before: str = "imported", after: str = "final") -> GraphDiff:
        """What the passes between two stages did; see `PipelineReport.stages` for their names.

        Raises:
            PassError: there is no such stage, or the build kept no snapshots.
        """
        names = (before, after)
        return graph_diff(self.passes.stage(before), self.passes.stage(after), names=names)


def compile(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | Network,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    target: str = "auto",
    opt_level: int = 3,
    layers: Mapping[str, str] | None = None,
    io: Mapping[str, IOFormat] | None = None,
    tuning_seconds: float | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    programmatic: bool | None = None,
    streams: int | None = None,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Compile ``model`` for one device.

    Args:
        model: an ONNX file's path or bytes, an ``onnx.ModelProto``, or a `Network`.
        shapes: input name -> shape, for models with open dimensions.
        precision: permitted element types, ``"fp32"``, ``"fp16"`` or a set of names.
        target: ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, or ``cuda:sm_87`` to build
            for a GPU that is not here, with heuristic kernels.
        opt_level: 0 (nothing is timed) to 5 (every candidate is).
        layers: name pattern -> precision, for single layers.
        io: name of an input or output -> how it is bound, where that is not as in the model:
            ``{"input": nrt.IOFormat("fp16", "nhwc")}`` takes what a channels-last fp16 PyTorch
            model takes, without a conversion.
        tuning_seconds: start no measurement after so many seconds of tuning; layers that are not
            measured by then take their best estimate, the least expensive ones first.
        timing_cache: file of measured times, read and updated; two builds with one cache give the
            same plan. Default: one under ``NRT_CACHE_DIR``.
        programmatic: whether a launch may start before the one before it has ended (programmatic
            dependent launch; Hopper and later). None: whichever makes the plan faster, by measuring
            it both ways; ``plan.notes`` says what was found.
        streams: on how many streams, at most, branches of the network run side by side. None:
            several (up to 4) where the plan, measured both ways, is faster for it.
        memory_limit: bytes, or text such as ``"512 MiB"``, that weights, arena and one set of
            inputs and outputs may take. Kernels whose workspace does not fit are refused, and so is
            a plan that takes more, before its memory is allocated.
        progress: called with (stage, done, total).

    Returns:
        An engine, ready to run (for ``cuda:ARCH`` of another device: ready to save).

    Raises:
        ImportModelError, UnsupportedOpError: the model cannot be read.
        BuildError: it cannot be built as asked.
        DeviceError: ``target="cuda"`` without a GPU.
    """
    built = build(
        model,
        shapes=shapes,
        precision=precision,
        target=target,
        opt_level=opt_level,
        layers=layers,
        io=io,
        tuning_seconds=tuning_seconds,
        timing_cache=timing_cache,
        programmatic=programmatic,
        streams=streams,
        memory_limit=memory_limit,
        progress=progress,
    )
    if built.plan.target.kind == "cpu":
        from nrt.cpu_kernels import bind

        return Engine(built.plan, bind)
    # A named architecture may be another machine's: the device is opened by the first run.
    return Engine(built.plan, load=":" not in target)


def build(
    model: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    target: str = "auto",
    opt_level: int = 3,
    layers: Mapping[str, str] | None = None,
    io: Mapping[str, IOFormat] | None = None,
    tuning_seconds: float | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    programmatic: bool | None = None,
    streams: int | None = None,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
    snapshots: bool = False,
) -> Build:
    """As `compile`, but returns the plan with the report of how it came about.

    With ``snapshots`` the build keeps a copy of the graph after every pass (constants are shared)
    for `Build.diff`.
    """
    kind, device, runner = _resolve(target, programmatic)
    check_wanted(streams, kind)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    graph = _graph(model, shapes)
    before = _op_counts(graph)
    report = run_pipeline(graph, _phases(precision, layers, io), snapshots=snapshots)
    lowered = lower(report.graph)
    cache = TimingCache(
        Path(timing_cache) if timing_cache else settings().cache_dir / f"timings-{kind}.json"
    )
    arguments: dict[str, Any] = {
        "name": graph.name,
        "ops_before": before,
        "ops_after": _op_counts(report.graph),
        "versions": _versions(),
    }
    tuning: dict[str, Any] = {
        "opt_level": opt_level,
        "cache": cache,
        "progress": progress,
        "tuning_seconds": tuning_seconds,
        "room": None if limit is None else workspace_room(lowered, limit),
        # The first layer of those that share a problem.
        "names": {task.problem: task.name for task in reversed(lowered.tasks)},
    }
    try:
        if kind == "cpu":
            plan, bound, choices = _for_cpu(lowered, tuning, arguments, limit)
        else:
            assert device is not None
            plan, bound, choices = _for_cuda(
                lowered, device, runner, tuning, arguments, programmatic, streams, limit
            )
    finally:
        # Also after an error or an interrupt: what was measured need not be measured again.
        cache.save()
    return Build(
        plan, report.graph, report, dict(zip((b.task.name for b in bound), choices, strict=True))
    )


def optimize(
    model: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    layers: Mapping[str, str] | None = None,
    io: Mapping[str, IOFormat] | None = None,
    snapshots: bool = False,
) -> PipelineReport:
    """The passes alone: what `build` does before any kernel is looked at. Arguments as there.

    Raises:
        ImportModelError, UnsupportedOpError: the model cannot be read.
        BuildError: an option does not fit the model.
    """
    return run_pipeline(_graph(model, shapes), _phases(precision, layers, io), snapshots=snapshots)


def _phases(
    precision: str | Iterable[str],
    layers: Mapping[str, str] | None,
    io: Mapping[str, IOFormat] | None,
) -> tuple[Phase, ...]:
    permitted = frozenset([precision] if isinstance(precision, str) else precision)
    return pipeline(
        PipelineOptions(precision=permitted, layers=dict(layers or {}), io=dict(io or {}))
    )


def _graph(model: Any, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    if isinstance(model, Network):
        if shapes:
            raise BuildError(
                "shapes= is for ONNX models with open dimensions; a Network's inputs have theirs"
            )
        return model.graph
    from nrt.frontend.onnx_model import import_model

    return import_model(model, shapes=shapes)


def _resolve(
    target: str, programmatic: bool | None
) -> tuple[str, DeviceSpec | None, CudaRunner | None]:
    """Kind, device and, where the device is in this machine, the runner."""
    kind, device, runner = _target(target, programmatic)
    if programmatic and (device is None or device.cc < MINIMUM_CC):
        where = kind if device is None else device.arch
        raise BuildError(
            f"programmatic=True: {where} has no programmatic dependent launch, expected compute "
            "capability 9.0 or more; leave it out"
        )
    return kind, device, runner


def _target(
    target: str, programmatic: bool | None
) -> tuple[str, DeviceSpec | None, CudaRunner | None]:
    wanted = settings().target if target == "auto" else target
    if wanted == "auto":
        from nrt.runtime.cuda import device_count

        wanted = "cuda" if device_count() else "cpu"
    if wanted == "cpu":
        return "cpu", None, None
    kind, _, arch = wanted.partition(":")
    if kind != "cuda":
        source = f"target {wanted!r}" if target == wanted else f"NRT_TARGET={wanted!r}"
        raise BuildError(f"{source}: expected auto, cpu, cuda or cuda:ARCH")
    from nrt.cuda_kernels.device import device_for_arch

    if not arch:
        from nrt.cuda_runner import CudaRunner

        runner = CudaRunner(programmatic=programmatic)
        return "cuda", runner.device, runner
    device = device_for_arch(arch)
    try:
        from nrt.cuda_runner import CudaRunner

        runner = CudaRunner(programmatic=programmatic)
    except (DeviceError, BuildError):
        # No GPU here, or one that nrt has no kernels for: the plan is for another machine.
        return "cuda", device, None
    if runner.device.arch == device.arch:
        return "cuda", runner.device, runner
    return "cuda", device, None


def _for_cpu(
    lowered: Lowered, tuning: dict[str, Any], arguments: dict[str, Any], limit: int | None
) -> tuple[Plan, list[Bound], list[Choice]]:
    from nrt.tuner_cpu import CpuBench

    bound, choices = _bind(lowered, tune([t.problem for t in lowered.tasks], CpuBench(), **tuning))
    target = Target("cpu", platform.machine())
    plan = assemble(lowered, bound, target=target, **arguments)
    if limit is not None:
        check_limit(plan, limit)
    return plan, bound, choices


def _for_cuda(
    lowered: Lowered,
    device: DeviceSpec,
    runner: CudaRunner | None,
    tuning: dict[str, Any],
    arguments: dict[str, Any],
    programmatic: bool | None,
    streams: int | None,
    limit: int | None,
) -> tuple[Plan, list[Bound], list[Choice]]:
    from nrt.cuda_kernels.compile_pool import CompilePool
    from nrt.tuner_cuda import CudaBench

    begun = time.monotonic()
    with CompilePool(device, settings().workers) as pool:
        bench = CudaBench(device, runner, pool)
        found = tune([t.problem for t in lowered.tasks], bench, **tuning)
        bench.prepare((c.variant, problem, c.config) for problem, c in found.items())
        bound, choices = _bind(lowered, found)
        make = partial(
            assemble,
            lowered,
            bound,
            target=Target("cuda", device.arch, device.name),
            device=device,
            binary=bench.binary,
            programmatic=programmatic is not False,
            constants=Constants(),
            **arguments,
        )
        schedule = parallel_schedule(bound, device, streams or MOST)
        plan = make()
        if limit is not None:
            check_limit(plan, limit)
        trial = _trial(runner, tuning, time.monotonic() - begun)
        plan = decide_streams(
            plan, partial(make, schedule=schedule), schedule, streams, limit=limit, **trial
        )
    if device.cc >= MINIMUM_CC:
        trial = _trial(runner, tuning, time.monotonic() - begun)
        plan = decide(plan, programmatic, **trial)
    return plan, bound, choices


def _trial(runner: CudaRunner | None, tuning: dict[str, Any], seconds: float) -> dict[str, Any]:
    """How whole plans are timed: under the rules of tuning, ``seconds`` into it."""
    clock = plan_clock(runner.cuda) if runner is not None and tuning["opt_level"] > 0 else None
    budget = tuning["tuning_seconds"]
    spent = budget is not None and seconds >= budget
    why_not = f"tuning_seconds={budget:g} spent" if spent else ""
    return {"clock": clock, "cache": tuning["cache"], "spent": why_not}


def _bind(lowered: Lowered, choices: Mapping[Any, Choice]) -> tuple[list[Bound], list[Choice]]:
    picked = [choices[task.problem] for task in lowered.tasks]
    bound = [
        Bound(task, choice.variant, choice.config, choice.seconds, choice.reason)
        for task, choice in zip(lowered.tasks, picked, strict=True)
    ]
    return bound, picked


def _op_counts(graph: Graph) -> dict[str, int]:
    return dict(sorted(Counter(node.op.name for node in graph.nodes).items()))


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
