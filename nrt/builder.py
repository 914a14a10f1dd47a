"""build(): the whole story, from a model to a plan and the report of how it came about."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt.assembly import Bound, Constants, assemble
from nrt.build_target import missing_fp8, reads_few_channels, resolve
from nrt.cuda_kernels.dependent_launch import MINIMUM_CC
from nrt.errors import BuildError
from nrt.extensions.report import variant_notes
from nrt.frontend.network import Network
from nrt.fusion_choice import NOTE, Settled, settle_fusions
from nrt.fusion_prices import Prices
from nrt.ir.graph import Graph
from nrt.ir.graph_diff import GraphDiff, graph_diff
from nrt.kernel_pins import KernelPin, pinned
from nrt.memory_limit import check_limit, workspace_room
from nrt.passes.base import Pass, PipelineReport, run_pipeline
from nrt.passes.bind_io import IOFormat
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.precision_rules import Assignment
from nrt.plan import Plan, Target
from nrt.plan_clock import plan_clock, timed_pair
from nrt.precision.accuracy import AccuracyBudget, Run
from nrt.precision.choice import Chosen, choose_precisions
from nrt.precision.selection import Selection
from nrt.precision.workshop import Workshop, laid_out, permitted, runs
from nrt.programmatic import decide
from nrt.quantization import Calibration
from nrt.quantization.digest import model_digest
from nrt.rewriting import Rewriter
from nrt.settings import settings
from nrt.sizes import parse_bytes
from nrt.streams import MOST, check_wanted, decide_streams, parallel_schedule
from nrt.timing_cache import TimingCache
from nrt.tuner import Choice, Progress

if TYPE_CHECKING:
    from nrt.cuda_kernels.device import DeviceSpec
    from nrt.cuda_runner import CudaRunner

__all__ = ["Build", "BuildRequest", "build", "build_graph", "build_request", "optimize"]

_VERSIONED = ("nrt", "numpy", "numba", "numba-cuda", "cuda-core", "onnx")


@dataclass(frozen=True)
class BuildRequest:
    """What a build was asked for; `dataclasses.replace` and `build_request` make another like it.

    Attributes:
        graph: as imported; builds work on a copy.
        precision: permitted element types.
        calibration: ranges for int8 and fp8, of this very model.
        kernels: layer of the plan -> the kernel that it must have, whatever is faster.
        target, opt_level, layers, io, disabled, extra_passes, tuning_seconds, timing_cache,
            programmatic, streams, snapshots: as of `build`.
        memory_limit: in bytes.
        choose: whether each layer's precision is chosen by time, among those permitted.
        accuracy: what the choice must keep.
        assignment: precisions of single layers that were chosen before.
        left_out: what ``auto`` does not permit here, and why.
    """

    graph: Graph
    precision: frozenset[str] = frozenset({"fp32"})
    target: str = "auto"
    opt_level: int = 3
    layers: Mapping[str, str] = field(default_factory=dict)
    io: Mapping[str, IOFormat] = field(default_factory=dict)
    disabled: frozenset[str] = frozenset()
    extra_passes: tuple[Pass, ...] = ()
    kernels: Mapping[str, KernelPin] = field(default_factory=dict)
    tuning_seconds: float | None = None
    timing_cache: Path | None = None
    programmatic: bool | None = None
    streams: int | None = None
    memory_limit: int | None = None
    snapshots: bool = False
    calibration: Calibration | None = None
    choose: bool = False
    accuracy: AccuracyBudget | None = None
    assignment: Assignment | None = None
    left_out: str = ""

    @property
    def pipeline_options(self) -> PipelineOptions:
        """What the passes see of it."""
        return PipelineOptions(
            self.precision,
            self.layers,
            self.io,
            disabled=self.disabled,
            calibration=self.calibration,
            extra=self.extra_passes,
            assignment=self.assignment,
        )


@dataclass(frozen=True)
class Build:
    """A plan and how it came about.

    Attributes:
        request: what was asked for; precisions that were chosen are settled in it.
        plan: to run or to save.
        graph: the optimized graph.
        passes: what every pass did and refused.
        choices: per task name, the winner and all its candidates.
        selection: how precisions were chosen; None where they were not.
    """

    request: BuildRequest
    plan: Plan
    graph: Graph
    passes: PipelineReport
    choices: Mapping[str, Choice]
    selection: Selection | None = None

    def diff(self, before: str = "imported", after: str = "final") -> GraphDiff:
        """What the passes between two stages did; see `PipelineReport.stages` for their names.

        Raises:
            PassError: there is no such stage, or the build kept no snapshots.
        """
        names = (before, after)
        return graph_diff(self.passes.stage(before), self.passes.stage(after), names=names)


def build(
    model: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    target: str = "auto",
    opt_level: int = 3,
    layers: Mapping[str, str] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    accuracy: AccuracyBudget | None = None,
    io: Mapping[str, IOFormat] | None = None,
    disabled: Iterable[str] = (),
    extra_passes: Sequence[Pass] = (),
    tuning_seconds: float | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    programmatic: bool | None = None,
    streams: int | None = None,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
    snapshots: bool = False,
) -> Build:
    """Compile ``model`` to a plan; `nrt.compile` makes an engine of it.

    Args:
        model: an ONNX file's path or bytes, an ``onnx.ModelProto``, or a `Network`.
        shapes: input name -> shape, for models with open dimensions.
        precision: permitted element types, ``"fp32"``, ``"fp16"`` or a set of names. With
            ``"auto"``, fp32, fp16 and, where there is a calibration, int8, or with a set that holds
            these three, each layer gets what makes the network fastest, as measured.
        target: ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, or ``cuda:sm_87`` to build
            for a GPU that is not here, with heuristic kernels.
        opt_level: 0 (nothing is timed) to 5 (every candidate is).
        layers: name pattern -> precision, for single layers.
        calibration: ranges for ``int8`` and ``fp8``: what `nrt.calibrate` found, or the file that
            it wrote.
        accuracy: what the network must keep; layers get more precision until it does. With it,
            precisions are chosen by time whatever set is permitted.
        io: name of an input or output -> how it is bound, where that is not as in the model:
            ``{"input": nrt.IOFormat("fp16", "nhwc")}`` takes what a channels-last fp16 PyTorch
            model takes, without a conversion.
        disabled: names of passes to leave out, such as ``{"fold-batch-norm"}``.
        extra_passes: passes of your own; they run after constant folding and before fusion, and
            the graph is verified after each.
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
        snapshots: keep a copy of the graph after every pass (constants are shared), for
            `Build.diff`.

    Raises:
        ImportModelError, UnsupportedOpError: the model cannot be read.
        BuildError: it cannot be built as asked.
        CalibrationError: the calibration is of another model, or cannot be read.
        DeviceError: ``target="cuda"`` without a GPU.
    """
    graph = _graph(model, shapes)
    ranges = _calibration(calibration, graph)
    names, choose, left_out = permitted(precision, calibrated=ranges is not None)
    if accuracy is not None and "fp8" in names:
        raise BuildError(
            "precision: fp8 is taken as asked, not chosen for accuracy; give int8 in its place, or "
            "leave out accuracy= and name the layers that get it with layers={'PATTERN': 'fp8'}"
        )
    if accuracy is not None and not isinstance(accuracy, AccuracyBudget):
        raise BuildError(
            f"accuracy={accuracy!r}: expected an nrt.AccuracyBudget, such as "
            'nrt.AccuracyBudget("sqnr", at_least=20, data=samples)'
        )
    request = BuildRequest(
        graph=graph,
        precision=names,
        calibration=ranges,
        choose=choose or accuracy is not None,
        left_out=left_out,
        accuracy=accuracy,
        target=target,
        opt_level=opt_level,
        layers=dict(layers or {}),
        io=dict(io or {}),
        disabled=_names(disabled),
        extra_passes=tuple(extra_passes),
        tuning_seconds=tuning_seconds,
        timing_cache=Path(timing_cache) if timing_cache else None,
        programmatic=programmatic,
        streams=streams,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
        snapshots=snapshots,
    )
    return build_request(request, progress)


def build_request(request: BuildRequest, progress: Progress | None = None) -> Build:
    """As `build`, from a request.

    Raises:
        BuildError: it cannot be built as asked.
        DeviceError: ``target="cuda"`` without a GPU.
    """
    options = request.pipeline_options
    pipeline(options)  # what it refuses needs no device

    def rewrite(device: DeviceSpec | None) -> Rewriter:
        able = replace(options, no_fp8=missing_fp8(device), few_channels=reads_few_channels(device))
        phases = pipeline(able)
        return Rewriter(request.graph, phases, snapshots=request.snapshots)

    return _build(request, rewrite, progress)


def build_graph(
    graph: Graph,
    *,
    target: str = "auto",
    opt_level: int = 3,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Build:
    """Kernels for a graph that the passes have been through already; arguments as for `build`."""
    cache = Path(timing_cache) if timing_cache else None
    request = BuildRequest(graph, target=target, opt_level=opt_level, timing_cache=cache)
    return _build(request, lambda _: Rewriter(graph, ()), progress)


def optimize(
    model: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    layers: Mapping[str, str] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    io: Mapping[str, IOFormat] | None = None,
    disabled: Iterable[str] = (),
    extra_passes: Sequence[Pass] = (),
    snapshots: bool = False,
) -> PipelineReport:
    """The passes alone: what `build` does before any kernel is looked at. Arguments as there.

    Rewrites that a build decides by time are all made, and every layer has the fastest kind of
    precision that it can have.

    Raises:
        ImportModelError, UnsupportedOpError: the model cannot be read.
        BuildError: an option does not fit the model.
        CalibrationError: the calibration is of another model, or cannot be read.
    """
    graph = _graph(model, shapes)
    ranges = _calibration(calibration, graph)
    request = BuildRequest(
        graph=graph,
        precision=permitted(precision, calibrated=ranges is not None)[0],
        calibration=ranges,
        layers=dict(layers or {}),
        io=dict(io or {}),
        disabled=_names(disabled),
        extra_passes=tuple(extra_passes),
    )
    return run_pipeline(request.graph, pipeline(request.pipeline_options), snapshots=snapshots)


def _names(given: str | Iterable[str]) -> frozenset[str]:
    return frozenset([given] if isinstance(given, str) else given)


def _calibration(
    given: Calibration | str | os.PathLike[str] | None, graph: Graph
) -> Calibration | None:
    """The ranges, once they are known to be of ``graph``."""
    if given is None:
        return None
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    found.check_model(model_digest(graph))
    return found


def _graph(model: Any, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    if isinstance(model, Network):
        if shapes:
            raise BuildError(
                "shapes= is for ONNX models with open dimensions; a Network's inputs have theirs"
            )
        return model.graph
    from nrt.frontend.onnx_model import import_model

    return import_model(model, shapes=shapes)


def _build(
    request: BuildRequest,
    rewrite: Callable[[DeviceSpec | None], Rewriter],
    progress: Progress | None,
) -> Build:
    kind, device, runner = resolve(request.target, request.programmatic)
    check_wanted(request.streams, kind)
    cache = TimingCache(request.timing_cache or settings().cache_dir / f"timings-{kind}.json")
    tuning: dict[str, Any] = {
        "opt_level": request.opt_level,
        "cache": cache,
        "progress": progress,
        "tuning_seconds": request.tuning_seconds,
    }
    try:
        if kind == "cpu":
            plan, made, choices = _for_cpu(request, partial(rewrite, None), tuning)
        else:
            assert device is not None
            start = partial(rewrite, device)
            plan, made, choices = _for_cuda(request, start, device, runner, tuning)
    finally:
        # Also after an error or an interrupt: what was measured need not be measured again.
        cache.save()
    notes = dict(plan.notes)
    settled = made.settled if isinstance(made, Chosen) else made
    selection = None
    if settled.note:
        notes[NOTE] = settled.note
    if isinstance(made, Chosen):
        selection = made.selection
        notes[_PRECISION_NOTE] = selection.summary
        request = replace(request, choose=False, accuracy=None, assignment=made.assignment)
    plan = replace(plan, notes={**notes, **variant_notes(choices)})
    report = settled.rewritten.report
    return Build(request, plan, report.graph, report, choices, selection)


_PRECISION_NOTE = "precision"
"""Key of the choice in `Plan.notes`."""

_Outcome = tuple[Plan, Settled | Chosen, dict[str, Choice]]

_Draft = Callable[[Settled], Plan]
"""Makes a plan of an outcome of the passes, to be run or timed."""


def _settled(
    request: BuildRequest,
    rewrite: Callable[[], Rewriter],
    bench: Any,
    tuning: dict[str, Any],
    draft: _Draft,
    *,
    on_cpu: bool = False,
    runner: CudaRunner | None = None,
) -> Settled | Chosen:
    """The outcome to build; where precisions are to be chosen, with the choice."""
    limit = request.memory_limit
    room = None if limit is None else partial(workspace_room, limit=limit)
    if not request.choose:
        return settle_fusions(rewrite(), bench, room=room, **tuning)
    begun = time.monotonic()

    def compare(*outcomes: Settled) -> tuple[float | None, float | None] | None:
        trial = _trial(runner, tuning, time.monotonic() - begun)
        if trial["clock"] is None:
            return None
        plans = draft(outcomes[0]), draft(outcomes[1])
        measure = not trial["spent"]
        return timed_pair(_PRECISION_NOTE, plans, trial["clock"], trial["cache"], measure=measure)

    here = on_cpu or runner is not None

    def run(settled: Settled, assignment: Assignment) -> Run:
        if here:
            return runs(draft(workshop.with_kernels(settled)), runner)
        return runs(_on_cpu(request, assignment))

    def plain(graph: Graph) -> Run:
        target = request.target if here else "cpu"
        found = build_graph(laid_out(graph), target=target, opt_level=0)
        return runs(found.plan, runner if here else None)

    workshop = Workshop(
        graph=request.graph,
        options=request.pipeline_options,
        bench=bench,
        prices=Prices(bench, room=room, clock=time.monotonic, **tuning),
        estimates=not on_cpu,
        run=run,
        reference=lambda: runs(_in_fp32(request, here=here), runner if here else None),
        plain=plain,
        compare=compare,
        snapshots=request.snapshots,
        notes=(request.left_out,) if request.left_out else (),
    )
    return choose_precisions(workshop, request.accuracy)


def _on_cpu(request: BuildRequest, assignment: Assignment) -> Plan:
    """The network for another machine's GPU, to be run here.

    Products of int8 stay products of the floats that these stand for: the same roundings, and an
    order of magnitude faster on a CPU.
    """
    options = request.pipeline_options
    disabled = options.disabled | {"fold-quantization"}
    phases = pipeline(replace(options, assignment=assignment, disabled=disabled))
    return build_graph(run_pipeline(request.graph, phases).graph, target="cpu", opt_level=0).plan


def _in_fp32(request: BuildRequest, *, here: bool) -> Plan:
    """The same network in fp32, with kernels that nobody tuned."""
    plain = BuildRequest(
        request.graph,
        target=request.target if here else "cpu",
        opt_level=0,
        io=request.io,
        disabled=request.disabled,
        extra_passes=request.extra_passes,
        timing_cache=request.timing_cache,
    )
    return build_request(plain).plan


def _for_cpu(
    request: BuildRequest, rewrite: Callable[[], Rewriter], tuning: dict[str, Any]
) -> _Outcome:
    from nrt.tuner_cpu import CpuBench

    bench = CpuBench()
    target = Target("cpu", platform.machine())

    def draft(settled: Settled) -> Plan:
        return _assembly(request, settled, _bind(request, settled, bench, tuning)[0], target)()

    made = _settled(request, rewrite, bench, tuning, draft, on_cpu=True)
    settled = made.settled if isinstance(made, Chosen) else made
    bound, choices = _bind(request, settled, bench, tuning)
    plan = _assembly(request, settled, bound, target)()
    if request.memory_limit is not None:
        check_limit(plan, request.memory_limit)
    return plan, made, choices


def _for_cuda(
    request: BuildRequest,
    rewrite: Callable[[], Rewriter],
    device: DeviceSpec,
    runner: CudaRunner | None,
    tuning: dict[str, Any],
) -> _Outcome:
    from nrt.cuda_kernels.compile_pool import CompilePool
    from nrt.tuner_cuda import CudaBench

    begun = time.monotonic()
    with CompilePool(device, settings().workers) as pool:
        bench = CudaBench(device, runner, pool)

        def bound_to(
            settled: Settled,
        ) -> tuple[Callable[..., Plan], list[Bound], dict[str, Choice]]:
            bench.prepare((c.variant, problem, c.config) for problem, c in settled.choices.items())
            bound, choices = _bind(request, settled, bench, tuning)
            make = partial(
                _assembly(request, settled, bound, Target("cuda", device.arch, device.name)),
                device=device,
                binary=bench.binary,
                programmatic=request.programmatic is not False,
                constants=Constants(),
            )
            return make, bound, choices

        made = _settled(request, rewrite, bench, tuning, lambda s: bound_to(s)[0](), runner=runner)
        settled = made.settled if isinstance(made, Chosen) else made
        make, bound, choices = bound_to(settled)
        schedule = parallel_schedule(bound, device, request.streams or MOST)
        plan = make()
        if request.memory_limit is not None:
            check_limit(plan, request.memory_limit)
        trial = _trial(runner, tuning, time.monotonic() - begun)
        plan = decide_streams(
            plan,
            partial(make, schedule=schedule),
            schedule,
            request.streams,
            limit=request.memory_limit,
            **trial,
        )
    if device.cc >= MINIMUM_CC:
        trial = _trial(runner, tuning, time.monotonic() - begun)
        plan = decide(plan, request.programmatic, **trial)
    return plan, made, choices


def _assembly(
    request: BuildRequest, settled: Settled, bound: Sequence[Bound], target: Target
) -> Callable[..., Plan]:
    """`assemble` with what is known on every target."""
    return partial(
        assemble,
        settled.rewritten.lowered,
        bound,
        name=request.graph.name,
        target=target,
        ops_before=_op_counts(request.graph),
        ops_after=_op_counts(settled.rewritten.report.graph),
        versions=_versions(),
    )


def _trial(runner: CudaRunner | None, tuning: dict[str, Any], seconds: float) -> dict[str, Any]:
    """How whole plans are timed: under the rules of tuning, ``seconds`` into it."""
    clock = plan_clock(runner.cuda) if runner is not None and tuning["opt_level"] > 0 else None
    budget = tuning["tuning_seconds"]
    spent = budget is not None and seconds >= budget
    why_not = f"tuning_seconds={budget:g} spent" if spent else ""
    return {"clock": clock, "cache": tuning["cache"], "spent": why_not}


def _bind(
    request: BuildRequest, settled: Settled, bench: Any, tuning: dict[str, Any]
) -> tuple[list[Bound], dict[str, Choice]]:
    tasks = settled.rewritten.lowered.tasks
    pins = pinned(request.kernels, tasks, bench, tuning)
    choices = {t.name: pins.get(t.name) or settled.choices[t.problem] for t in tasks}
    bound = []
    for task in tasks:
        choice = choices[task.name]
        bound.append(Bound(task, choice.variant, choice.config, choice.seconds, choice.reason))
    return bound, choices


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
