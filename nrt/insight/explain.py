"""Why a layer is what it is: the rewrites that led to it, what was refused, how it was chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nrt.insight.names import matching_names
from nrt.plan import BufferRef, CopyStep, HostStep, LaunchStep, Layer, Plan, SetStep, TensorMapArg
from nrt.tuner import Candidate

if TYPE_CHECKING:
    from nrt.builder import Build
    from nrt.passes.base import PipelineReport

__all__ = ["Explanation", "LayerStory", "Rewrite", "explain", "explain_plan"]

_PRECISION = "select-precision"
_CONSTANT = ("input", "weights")


@dataclass(frozen=True)
class Rewrite:
    """What a pass did to, or refused to do to, one node.

    Attributes:
        pass_name: the pass. phase: where in the pipeline, with the repetition from 1.
        node: the node of the graph at that time.
        text: what was done, or why it was not.
    """

    pass_name: str
    phase: str
    node: str
    text: str

    def __str__(self) -> str:
        return f"{self.pass_name} ({self.phase}) at '{self.node}': {self.text}"


@dataclass(frozen=True)
class LayerStory:
    """All that is known of one layer, or of a node of the model that became no layer.

    Attributes:
        name: the layer's, or the node's.
        origins: the model's nodes in it.
        layer: what the plan holds; None where no layer was left.
        node: the node of the optimized graph, as text; empty without a graph.
        rewrites: in the order of the pipeline.
        refusals: that still held at the end.
        precision: why it computes in what it does; empty if nothing is known.
        candidates: all that its kernel was chosen from, measured ones first, fastest first.
        launches: each step, with its grid and memory.
        reads, read_by: names of the layers before and behind it.
    """

    name: str
    origins: tuple[str, ...]
    layer: Layer | None = None
    node: str = ""
    rewrites: tuple[Rewrite, ...] = ()
    refusals: tuple[Rewrite, ...] = ()
    precision: str = ""
    candidates: tuple[Candidate, ...] = ()
    launches: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain data, with the names of the attributes."""
        return asdict(self)


@dataclass(frozen=True)
class Explanation:
    """The answer to one question; ``print`` it, or let a notebook show it.

    Attributes:
        query: what was asked for.
        stories: one per layer that it means, in the plan's order; then nodes without a layer.
    """

    query: str
    stories: tuple[LayerStory, ...]

    def __str__(self) -> str:
        from nrt.insight.explain_view import as_text

        return as_text(self)

    def to_data(self) -> dict[str, Any]:
        """Plain data: ``query``, and ``layers`` with the attributes of `LayerStory`."""
        return {"query": self.query, "layers": [story.to_data() for story in self.stories]}

    def to_json(self) -> str:
        """`to_data` as JSON."""
        return json.dumps(self.to_data(), indent=2)

    def _repr_html_(self) -> str:
        from nrt.insight.explain_view import as_html

        return as_html(self)


def explain(build: Build, query: str) -> Explanation:
    """Explain the layers that ``query`` means.

    Args:
        build: what `nrt.builder.build` returned.
        query: a layer, a node of the graph or of the model, a pattern, or the end of a name; see
            `nrt.insight.names.matching_names`.

    Raises:
        InputError: nothing is called so; the message lists near names.
    """
    plan, report = build.plan, build.passes
    names = dict.fromkeys(_plan_names(plan))
    for note in report.notes:
        names.update(dict.fromkeys((note.node, *note.origin)))
    wanted = matching_names(query, list(names))
    stories = []
    indices = _layers_called(plan, wanted)
    nodes = {node.name: node for node in build.graph.nodes}
    for index in indices:
        layer = plan.layers[index]
        # The second task of a node is called name#1.
        own = layer.name.rpartition("#")[0] if layer.name not in nodes else layer.name
        rewrites, refusals, precision = _notes(report, {layer.name, own, *layer.origins}, own)
        choice = build.choices.get(layer.name)
        candidates = choice.candidates if choice is not None else ()
        stories.append(
            LayerStory(
                name=layer.name,
                origins=layer.origins,
                layer=layer,
                node=f"{nodes[own].op}" if own in nodes else "",
                rewrites=rewrites,
                refusals=refusals,
                precision=precision,
                candidates=_sorted(candidates),
                launches=_launches(plan, index),
                reads=_reads(plan, index),
                read_by=_read_by(plan, index),
            )
        )
    told = {name for s in stories for name in (s.name, *s.origins)}
    for name in wanted:
        if name not in told:
            rewrites, refusals, _ = _notes(report, {name}, name)
            stories.append(LayerStory(name=name, origins=(), rewrites=rewrites, refusals=refusals))
    return Explanation(query, tuple(stories))


def explain_plan(plan: Plan, query: str) -> Explanation:
    """As `explain`, with what a plan holds: the kernel, its time, its memory and neighbours.

    Raises:
        InputError: nothing is called so; the message lists near names.
    """
    wanted = matching_names(query, list(dict.fromkeys(_plan_names(plan))))
    return Explanation(
        query,
        tuple(
            LayerStory(
                name=plan.layers[index].name,
                origins=plan.layers[index].origins,
                layer=plan.layers[index],
                launches=_launches(plan, index),
                reads=_reads(plan, index),
                read_by=_read_by(plan, index),
            )
            for index in _layers_called(plan, wanted)
        ),
    )


def _plan_names(plan: Plan) -> Iterable[str]:
    for layer in plan.layers:
        yield layer.name
        yield from layer.origins


def _layers_called(plan: Plan, names: Sequence[str]) -> list[int]:
    """Indices of the layers with one of these names or origins; a layer's own name wins."""
    wanted = set(names)
    own = [i for i, layer in enumerate(plan.layers) if layer.name in wanted]
    covered = {plan.layers[i].name for i in own}
    rest = wanted - covered
    others = [i for i, layer in enumerate(plan.layers) if rest & set(layer.origins)]
    return sorted({*own, *others})


def _notes(
    report: PipelineReport, names: set[str], node: str
) -> tuple[tuple[Rewrite, ...], tuple[Rewrite, ...], str]:
    """Rewrites, refusals, and the reason for the precision of ``node``."""
    holding = set(report.notes)
    fired: dict[Rewrite, None] = {}
    refused: dict[Rewrite, None] = {}
    precision = ""
    for record in report.records:
        phase = f"{record.phase} {record.iteration + 1}"
        for note in record.notes:
            if note not in holding or not (note.node in names or names & set(note.origin)):
                continue
            if note.pass_name == _PRECISION:
                if note.node == node or not precision:
                    precision = note.text
                continue
            rewrite = Rewrite(note.pass_name, phase, note.node, note.text)
            (fired if note.kind == "fired" else refused)[rewrite] = None
    return tuple(fired), tuple(refused), precision


def _sorted(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda c: (c.seconds is None, c.seconds or 0.0)))


def _launches(plan: Plan, index: int) -> tuple[str, ...]:
    return tuple(_launch(plan, s) for s in plan.steps if getattr(s, "layer", None) == index)


def _reads(plan: Plan, index: int) -> tuple[str, ...]:
    return tuple(plan.layers[i].name for i in plan.layers[index].reads)


def _read_by(plan: Plan, index: int) -> tuple[str, ...]:
    return tuple(layer.name for layer in plan.layers if index in layer.reads)


def _launch(plan: Plan, step: Any) -> str:
    """One line: what runs, how, on which memory."""
    if isinstance(step, LaunchStep):
        parts = [
            plan.kernels[step.kernel].entry,
            f"grid {_dims(step.grid)}, block {_dims(step.block)}",
        ]
        if step.cluster != (1, 1, 1):
            parts.append(f"cluster {_dims(step.cluster)}")
        parts += [f"{step.shared} bytes of shared memory", f"stream {step.stream}"]
        if step.programmatic:
            parts.append("may start before the launch before it has ended")
    else:
        parts = [getattr(step, "variant", type(step).__name__.removesuffix("Step").lower())]
    return f"{', '.join(parts)}; {_memory(step) or 'no memory'}"


def _memory(step: Any) -> str:
    """Ranges as ``space offset+length``, in bytes."""
    groups: dict[str, list[BufferRef]] = {}
    if isinstance(step, HostStep):
        groups["reads"] = [t.ref for t in step.inputs]
        groups["writes"] = [t.ref for t in step.outputs]
        groups["scratch"] = [step.workspace]
    elif isinstance(step, LaunchStep):
        # Through what is not read only, a kernel writes its result or what it keeps for itself.
        for slot, arg in enumerate(step.args):
            ref = arg.ref if isinstance(arg, TensorMapArg) else arg
            if isinstance(ref, BufferRef):
                only = slot in step.read_only or ref.space in _CONSTANT
                groups.setdefault("reads" if only else "writes", []).append(ref)
    elif isinstance(step, CopyStep):
        groups = {"reads": [step.src], "writes": [step.dst]}
    elif isinstance(step, SetStep):
        groups["writes"] = [step.dst]
    texts = [
        (what, ", ".join(f"{_space(r)} {r.offset}+{r.nbytes}" for r in refs if r.space != "null"))
        for what, refs in groups.items()
    ]
    return "; ".join(f"{what} {text}" for what, text in texts if text)


def _space(ref: Any) -> str:
    return f"{ref.space} {ref.index}" if ref.space in ("input", "output") else str(ref.space)


def _dims(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))
