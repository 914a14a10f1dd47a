"""What a choice of precisions needs of the build around it, and how networks run to be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nrt.errors import BuildError
from nrt.fusion_choice import Settled, settle_fusions
from nrt.fusion_prices import Prices
from nrt.ir.graph import Graph
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.precision_rules import Assignment
from nrt.plan import Plan
from nrt.precision.accuracy import Run, fed
from nrt.rewriting import Rewriter
from nrt.runtime.engine import Engine

if TYPE_CHECKING:
    from nrt.cuda_runner import CudaRunner

__all__ = ["Workshop", "laid_out", "permitted", "runs"]

_CHOICE = frozenset({"fp32", "fp16", "int8"})
"""Precisions that leave something to choose: what ``auto`` stands for."""


@dataclass(frozen=True)
class Workshop:
    """What a choice needs of the build.

    Attributes:
        graph: as imported.
        options: of the passes, without an assignment.
        bench: the target.
        prices: times of tasks.
        estimates: whether the target's estimates are times.
        run: makes a network that can be run of an outcome and its assignment, for judging.
        reference: makes the network in fp32.
        plain: makes a network in fp32 of a graph that is fused, with kernels that nobody tuned.
        compare: seconds of two whole plans, measured in turns; None where nothing can be.
        snapshots: keep copies of the graph between passes.
        notes: for the report.
    """

    graph: Graph
    options: PipelineOptions
    bench: Any
    prices: Prices
    estimates: bool
    run: Callable[[Settled, Assignment], Run]
    reference: Callable[[], Run]
    plain: Callable[[Graph], Run]
    compare: Callable[[Settled, Settled], tuple[float | None, float | None] | None]
    snapshots: bool = False
    notes: tuple[str, ...] = ()

    def rewriter(self, assignment: Assignment, *, snapshots: bool = False) -> Rewriter:
        """The passes under ``assignment``."""
        options = replace(self.options, assignment=assignment)
        return Rewriter(self.graph, pipeline(options), snapshots=snapshots)

    def settle(self, rewriter: Rewriter) -> Settled:
        """The outcome, with fusions decided; with kernels, if they are timed in any case."""
        return settle_fusions(rewriter, self.bench, prices=self.prices, kernels=self.prices.timed)

    def with_kernels(self, settled: Settled) -> Settled:
        """The outcome, with a kernel for each of its problems."""
        if settled.choices:
            return settled
        return replace(settled, choices=self.prices.choices(settled.rewritten.lowered))

    def fused(self) -> Graph:
        """The graph that is to be quantized."""
        phases = pipeline(self.options)
        first = next((k for k, p in enumerate(phases) if p.name == "quantize"), len(phases))
        return run_pipeline(self.graph, phases[:first]).graph


def laid_out(graph: Graph) -> Graph:
    """A fused graph in fp32 with what lies between passes and kernels: the order of its memory."""
    phases = [p for p in pipeline() if p.name in ("layout", "borders")]
    return run_pipeline(graph, phases).graph


def permitted(given: str | Iterable[str], *, calibrated: bool) -> tuple[frozenset[str], bool, str]:
    """The permitted precisions, whether layers get theirs by time, and what ``auto`` leaves out.

    fp8 is taken as asked: nothing chooses between it and int8.

    Raises:
        BuildError: ``auto`` stands beside another name.
    """
    names = frozenset([given] if isinstance(given, str) else given)
    if "auto" not in names:
        return names, names >= _CHOICE and "fp8" not in names, ""
    if len(names) > 1:
        raise BuildError(
            f"precision: auto beside {', '.join(sorted(names - {'auto'}))}; it stands for a set of "
            "its own: give auto alone, or the set without it"
        )
    if calibrated:
        return _CHOICE, True, ""
    return _CHOICE - {"int8"}, True, "int8 left out: it needs calibration="


def runs(plan: Plan, runner: CudaRunner | None = None) -> Run:
    """The network of ``plan``, ready for data as the model takes it.

    Args:
        plan: for the CPU, or for the GPU of ``runner``.
    """
    if plan.target.kind == "cpu":
        from nrt.cpu_kernels import bind

        engine = Engine(plan, bind)
    else:
        assert runner is not None
        engine = Engine(plan, device=runner.cuda)
    return lambda batch: engine.run(fed(engine.inputs, batch))
