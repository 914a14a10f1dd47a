"""What a pass is, and the manager that runs a pipeline of them.

A pass is a frozen dataclass: its fields are its options, ``name`` is what the command line and the
ablation call it, and ``run`` rewrites the graph that it is given. The manager owns that graph (a
copy of the caller's), verifies it around each pass when asked, times every run and keeps the notes:
what fired where, and what was refused for which reason.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from nrt.errors import BuildError, NrtError, PassError
from nrt.ir.graph import Graph
from nrt.ir.op import TensorType
from nrt.ir.value import Node
from nrt.ir.verify import verify as verify_graph
from nrt.settings import settings

__all__ = ["Note", "Pass", "PassRecord", "PassResult", "Phase", "PipelineReport", "run_pipeline"]


@dataclass(frozen=True)
class Note:
    """One thing a pass did, or did not do, and why.

    Attributes:
        pass_name: the pass that speaks.
        node: the graph node that it speaks of.
        origin: the model's own nodes behind that node.
        kind: ``fired`` or ``refused``.
        text: one sentence without a full stop.
    """

    pass_name: str
    node: str
    origin: tuple[str, ...]
    kind: Literal["fired", "refused"]
    text: str

    def __str__(self) -> str:
        return f"{self.pass_name} {self.kind} at '{self.node}': {self.text}"


@dataclass(frozen=True)
class PassResult:
    """What `Pass.run` returns.

    Attributes:
        graph: the rewritten graph, which may be the one that was given.
        changed: whether anything differs from before.
        notes: reasons, in the order in which they came up.
    """

    graph: Graph
    changed: bool
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Pass:
    """Base of all passes; subclasses add options as fields.

    Class attributes:
        name: kebab-case, unique among the passes.
    """

    name: ClassVar[str]

    def run(self, graph: Graph) -> PassResult:
        """Rewrite ``graph``, in place or not; outputs keep their names, types and values."""
        raise NotImplementedError(type(self).__name__)

    def required(self) -> str:
        """Why a pipeline with these options cannot leave the pass out; empty where it can.

        A pass is required if the options ask for what only it does, never for speed: without any
        other pass the network computes the same.
        """
        return ""

    def fired(self, node: Node, text: str) -> Note:
        """A note that this pass changed ``node``."""
        return Note(self.name, node.name, node.origin, "fired", text)

    def refused(self, node: Node, text: str) -> Note:
        """A note that this pass left ``node`` alone because of ``text``."""
        return Note(self.name, node.name, node.origin, "refused", text)


@dataclass(frozen=True)
class Phase:
    """Passes that are repeated together until none of them changes the graph.

    Attributes:
        name: for reports.
        passes: run in this order.
        reason: why the phase, and its order, stand where they do.
        rounds: most repetitions; a pass list that needs more is a bug, but never a hang.
        verify: check the graph after each of its passes, whatever the settings say.
    """

    name: str
    passes: tuple[Pass, ...]
    reason: str
    rounds: int = 16
    verify: bool = False


@dataclass(frozen=True)
class PassRecord:
    """One run of one pass.

    Attributes:
        name: the pass. phase: the phase that it ran in. iteration: the phase's repetition, from 0.
        seconds: time of ``run`` alone, without verification. changed: whether it changed the graph.
        nodes_before: node count when it started. nodes_after: node count when it ended. notes: what
        it had to say. snapshot: a copy of the graph after it, if snapshots were asked for and it
        changed something.
    """

    name: str
    phase: str
    iteration: int
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    notes: tuple[Note, ...] = ()
    snapshot: Graph | None = None


@dataclass(frozen=True)
class PipelineReport:
    """The graph at the end of a pipeline, and how it came to be.

    Attributes:
        graph: the graph at the end.
        records: one per run of a pass, in order.
        imported: a copy of the graph at the start, if snapshots were asked for.
    """

    graph: Graph
    records: tuple[PassRecord, ...]
    imported: Graph | None = None

    @property
    def notes(self) -> tuple[Note, ...]:
        """Every fired note, and the refusals that still hold at the end.

        A refusal is stale once its pass has run again; only the last run's refusals are kept.
        """
        last = {record.name: index for index, record in enumerate(self.records)}
        kept = [
            note
            for index, record in enumerate(self.records)
            for note in record.notes
            if note.kind == "fired" or last[record.name] == index
        ]
        return tuple(dict.fromkeys(kept))

    def notes_about(self, name: str) -> tuple[Note, ...]:
        """Notes whose node, or one of the model's nodes behind it, is called ``name``."""
        return tuple(n for n in self.notes if n.node == name or name in n.origin)

    @property
    def stages(self) -> dict[str, Graph]:
        """The graph at each stage, in order: ``imported``, after every pass, ``final``.

        A pass's name is the stage after the last of its runs that changed the graph; where there
        were several, ``name#1``, ``name#2`` … are the stages after each.

        Raises:
            PassError: the pipeline ran without ``snapshots=True``.
        """
        if self.imported is None:
            raise PassError(
                "the pipeline kept no snapshots of the graph; build with snapshots=True"
            )
        runs = [(r.name, r.snapshot) for r in self.records if r.snapshot is not None]
        total, seen = Counter(name for name, _ in runs), Counter[str]()
        found = {"imported": self.imported}
        for name, graph in runs:
            seen[name] += 1
            if total[name] > 1:
                found[f"{name}#{seen[name]}"] = graph
            if seen[name] == total[name]:
                found[name] = graph
        return {**found, "final": self.graph}

    def stage(self, name: str) -> Graph:
        """The graph at one of the `stages`.

        Raises:
            PassError: there is no such stage; the message lists those that exist.
        """
        stages = self.stages
        if name in stages:
            return stages[name]
        if any(record.name == name for record in self.records):
            what = f"pass '{name}' changed nothing, so it is no stage"
        else:
            near = difflib.get_close_matches(name, stages, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            what = f"there is no stage '{name}'{hint}"
        raise PassError(f"{what}; stages: {', '.join(stages)}")

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)


def run_pipeline(
    graph: Graph,
    phases: Iterable[Phase],
    *,
    verify: bool | None = None,
    snapshots: bool = False,
    watch: Callable[[Pass, Graph], None] | None = None,
) -> PipelineReport:
    """Run ``phases`` in order on a copy of ``graph``, each until nothing changes.

    Args:
        graph: left as it is; constant arrays are shared with the copy.
        phases: see `nrt.passes.pipeline.pipeline`.
        verify: check the graph before the first and after each pass; ``NRT_VERIFY`` by default.
        snapshots: keep a copy of the graph before the first pass and after each that changed it.
        watch: called before each run of a pass, with the graph that it is about to rewrite.

    Raises:
        PassError: a pass raised, or left a graph that does not verify; the message names it and the
            passes that ran before it.
        BuildError: an option of a pass does not fit the model, such as a layer pattern that matches
            nothing.
    """
    checking = settings().verify if verify is None else verify
    imported = graph.copy() if snapshots else None
    graph = graph.copy()
    bindings = _bindings(graph)
    records: list[PassRecord] = []
    if checking:
        _verify(graph, "the graph does not verify before the first pass")
    for phase in phases:
        for iteration in range(phase.rounds):
            changed = False
            for step in phase.passes:
                if watch is not None:
                    watch(step, graph)
                record, graph = _run_one(
                    graph, step, (phase.name, iteration), records, snapshots=snapshots
                )
                records.append(record)
                changed |= record.changed
                if checking or phase.verify:
                    _verify(graph, f"pass '{step.name}' left a graph that does not verify", records)
                if phase.verify:
                    _verify_bindings(graph, bindings, step, records)
            if not changed:
                break
    return PipelineReport(graph, tuple(records), imported)


def _run_one(
    graph: Graph,
    step: Pass,
    place: tuple[str, int],
    before: Sequence[PassRecord],
    *,
    snapshots: bool,
) -> tuple[PassRecord, Graph]:
    nodes = len(graph)
    start = time.perf_counter()
    try:
        result = step.run(graph)
    except BuildError:
        raise  # the user's options are wrong, not the pass
    except Exception as error:
        what = str(error) if isinstance(error, NrtError) else f"{type(error).__name__}: {error}"
        raise PassError(f"pass '{step.name}' failed: {what}{_history(before)}") from error
    seconds = time.perf_counter() - start
    snapshot = result.graph.copy() if snapshots and result.changed else None
    record = PassRecord(
        step.name,
        *place,
        seconds,
        result.changed,
        nodes,
        len(result.graph),
        result.notes,
        snapshot,
    )
    return record, result.graph


def _verify(graph: Graph, what: str, records: Sequence[PassRecord] = ()) -> None:
    try:
        verify_graph(graph)
    except NrtError as error:
        raise PassError(f"{what}: {error}{_history(records[:-1])}") from error


def _bindings(graph: Graph) -> dict[str, TensorType]:
    inputs = {f"input '{v.name}'": v.type for v in graph.inputs}
    return inputs | {f"output '{name}'": v.type for name, v in graph.outputs.items()}


def _verify_bindings(
    graph: Graph, expected: dict[str, TensorType], step: Pass, records: Sequence[PassRecord]
) -> None:
    """PassError where a pass of a user's changed what the network's caller binds."""
    found = _bindings(graph)
    for what in {**expected, **found}:
        if found.get(what) != expected.get(what):
            raise PassError(
                f"pass '{step.name}' changed {what} from {expected.get(what, 'nothing')} to "
                f"{found.get(what, 'nothing')}; inputs and outputs keep their names and types"
                f"{_history(records[:-1])}"
            )


def _history(records: Sequence[PassRecord]) -> str:
    changed = list(dict.fromkeys(r.name for r in records if r.changed))
    if not changed:
        return "; no pass had changed the graph before it"
    return f"; passes that changed the graph before it: {', '.join(changed)}"
