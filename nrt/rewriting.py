"""The model after its passes, under one set of decisions; made again cheaply under another.

A `ChoicePass` has rewrites that do not always pay. `Rewriter` runs the phases before the first such
pass once, and the others once for every set of keys that are to be left alone. While they run it
gathers the sites that each pass was offered, so that `nrt.fusion_choice` can compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nrt.ir.graph import Graph
from nrt.lowering import Lowered, lower
from nrt.passes.base import Pass, Phase, PipelineReport, run_pipeline
from nrt.passes.choice import ChoicePass, Site

__all__ = ["Offer", "Rewriter", "Rewritten", "Skips"]

Skips = Mapping[str, frozenset[str]]
"""Name of a choice pass -> keys of the sites that it leaves alone."""


@dataclass(frozen=True)
class Offer:
    """A site and the pass that would rewrite it.

    Attributes:
        step: the pass.
        site: where.
    """

    step: ChoicePass
    site: Site

    @property
    def choice(self) -> tuple[str, str]:
        """What is decided: the pass's name and the site's key."""
        return self.step.name, self.site.key


@dataclass(frozen=True)
class Rewritten:
    """One outcome of the passes.

    Attributes:
        report: of the passes.
        lowered: the graph as tasks.
        skips: what the choice passes were told to leave alone.
        offers: every site that a choice pass was offered, those it left alone included.
    """

    report: PipelineReport
    lowered: Lowered
    skips: Skips
    offers: tuple[Offer, ...]


class Rewriter:
    """Runs the passes on one model, as often as there is something to decide.

    Args:
        graph: left as it is.
        phases: the pipeline.
        snapshots: keep copies of the graph between passes.

    Raises:
        PassError, BuildError: as of `run_pipeline`.
    """

    def __init__(self, graph: Graph, phases: Iterable[Phase], *, snapshots: bool = False) -> None:
        self._snapshots = snapshots
        phases = tuple(phases)
        first = next((k for k, p in enumerate(phases) if _has_choice(p)), len(phases))
        self._head = run_pipeline(graph, phases[:first], snapshots=snapshots)
        self._tail = phases[first:]
        self.first = self.run({})
        """The outcome with every rewrite wherever it is possible."""

    def run(self, skips: Skips) -> Rewritten:
        """The outcome where the choice passes leave the keys of ``skips`` alone."""
        offers: dict[tuple[str, Site], Offer] = {}

        def watch(step: Pass, graph: Graph) -> None:
            if isinstance(step, ChoicePass):
                for site in step.sites(graph):
                    offers.setdefault((step.name, site), Offer(step, site))

        report = self._head
        if self._tail:
            tail = run_pipeline(
                self._head.graph,
                [_skipping(phase, skips) for phase in self._tail],
                snapshots=self._snapshots,
                watch=watch,
            )
            records = (*self._head.records, *tail.records)
            report = PipelineReport(tail.graph, records, self._head.imported)
        return Rewritten(report, lower(report.graph), dict(skips), tuple(offers.values()))


def _has_choice(phase: Phase) -> bool:
    return any(isinstance(step, ChoicePass) for step in phase.passes)


def _skipping(phase: Phase, skips: Skips) -> Phase:
    passes = tuple(
        replace(step, skip=step.skip | skips[step.name])
        if isinstance(step, ChoicePass) and step.name in skips
        else step
        for step in phase.passes
    )
    return replace(phase, passes=passes)
