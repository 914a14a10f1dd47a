"""From the times of whole outcomes to what each layer costs in each precision.

The network is built in each single precision, and its tasks are timed. A task stands for the layers
behind it; one that stands for several (siblings, a pool with its classifier) is shared among them
by their work. What the passes put between layers, a Quantize or a cast, belongs to the edge.

A layer's time also depends on what its neighbours store. What a layer without a choice, such as a
pool, takes less where integers lie before it counts for the layers that read integers there. The
rest shows when the assignment that was found is itself built and timed: its times replace what was
known, and the cut is made again, until nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nrt.fusion_prices import Prices
from nrt.lowering import Lowered, Task
from nrt.precision.conversions import Conversions
from nrt.precision.costs import INT8, Cast, CostModel, Labels, Rounding
from nrt.precision.survey import Survey

__all__ = ["Meter", "Pricing"]

_PICOSECONDS = 1e12
_WIDTHS = {INT8: 1, "fp16": 2, "bf16": 2, "tf32": 3, "fp32": 4}


class Meter:
    """Seconds of tasks: all measured, or all estimated.

    Args:
        prices: of all outcomes.
        estimates: whether the target's estimates are times.

    Attributes:
        measured: whether `seconds` measures; settled by `settle`.
        known: whether there are times at all.
    """

    def __init__(self, prices: Prices, *, estimates: bool) -> None:
        self._prices = prices
        self._estimates = estimates
        self.measured = False
        self.known = estimates

    def settle(self, outcomes: Sequence[Lowered]) -> None:
        """Decide by the first outcomes whether times are measured."""
        self.measured = all(self._prices.seconds(o.tasks) is not None for o in outcomes)
        self.known = self.measured or self._estimates

    def seconds(self, tasks: Sequence[Task]) -> float | None:
        """Of ``tasks``; None where there are no times, or one was not measured and others are."""
        if self.measured:
            return self._prices.seconds(tasks)
        return self._prices.estimate(tasks) if self.known else None

    def conversions(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Seconds of each of ``tasks`` by name."""
        if self.known:
            self._prices.learn(Lowered(tasks=list(tasks)))
        return {task.name: self.seconds([task]) or 0.0 for task in tasks}


@dataclass
class Pricing:
    """What is known of the layers' times.

    Attributes:
        survey: the layers.
        meter: the clock.
        conversions: tasks of the edges.
        times: layer -> precision -> seconds.
        quantize: value -> seconds of a Quantize of its own.
    """

    survey: Survey
    meter: Meter
    conversions: Conversions
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    quantize: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.edges = self.meter.conversions(self.conversions.tasks)
        self._by_name = {
            **{o: layer.name for layer in self.survey.layers.values() for o in layer.origins},
            **{name: name for name in self.survey.layers},
        }
        links = (*self.survey.shared, *self.survey.between)
        self._values = {link.value.name for link in links}
        self._beside = _beside(self.survey)
        self._inputs = _input_readers(self.survey)

    def learn(self, lowered: Lowered, labels: Labels) -> None:
        """Take the times of an outcome whose layers have ``labels``."""
        if not self.meter.known:
            for name, layer in self.survey.layers.items():
                work = layer.work if layer.is_product else 0
                self.times[name] = {p: work * _WIDTHS[p] * 1e-12 for p in layer.able}
            return
        own: dict[str, float] = defaultdict(float)
        for task in lowered.tasks:
            seconds = self.meter.seconds([task])
            if seconds is None:
                return
            value, kind = self._edge(task)
            if value:
                if kind == INT8:
                    self.quantize[value] = seconds
                continue
            for owner, share in self._shares(task).items():
                own[owner] += seconds * share
        extra = self._extra(own, labels)
        for name, layer in self.survey.layers.items():
            if layer.is_product:
                found = own[name] + extra[name]
                self.times.setdefault(name, {})[labels[name]] = found

    def _extra(self, own: Mapping[str, float], labels: Labels) -> dict[str, float]:
        """What layers of int8 save others, or cost them, beyond what those take in floats."""
        extra: dict[str, float] = defaultdict(float)
        for name, layer in self.survey.layers.items():
            if layer.is_product:
                continue
            times = self.times.setdefault(name, {})
            users = [n for n in self._beside.get(name, ()) if labels[n] == INT8]
            if not users or labels[name] not in times:
                times[labels[name]] = own[name]
                continue
            for user in users:
                extra[user] += (own[name] - times[labels[name]]) / len(users)
        return extra

    def _shares(self, task: Task) -> dict[str, float]:
        found = dict.fromkeys(
            self._by_name[n] for n in (task.name, *task.origins) if n in self._by_name
        )
        if not found and not task.origins:  # what is done to an input is done for its readers
            near = (self._inputs[n] for n in _prefixes(task.name) if n in self._inputs)
            found = dict.fromkeys(next(near, ()))
        work = {name: self.survey.layers[name].work for name in found}
        total = sum(work.values())
        return {name: w / total if total else 1 / len(work) for name, w in work.items()}

    def _edge(self, task: Task) -> tuple[str, str]:
        """(value, type) of a conversion that belongs to a link; nothing for any other task."""
        if task.name in self._by_name or len(task.problem.outputs) != 1:
            return "", ""
        have, want = task.problem.inputs[0].dtype, task.problem.outputs[0].dtype
        if have == want:
            return "", ""
        for value in _prefixes(task.name):
            if value in self._values:
                return value, str(want)
        return "", ""

    def model(self) -> CostModel:
        """All of it in picoseconds."""
        home = self.survey.home
        roundings = [
            Rounding(
                link.value.name,
                link.readers,
                _ps(self.quantize.get(link.value.name, 0.0)),
                {
                    kind: _ps(self.edges[task.name])
                    for (value, kind), task in self.conversions.dequantize.items()
                    if value == link.value.name
                },
            )
            for link in self.survey.shared
        ]
        casts = [
            Cast(
                link.value.name,
                link.source,
                link.readers,
                {
                    (have, want): _ps(self.edges[task.name])
                    for (value, have, want), task in self.conversions.casts.items()
                    if value == link.value.name
                },
            )
            for link in self.survey.between
            if link.source is not None
        ]
        times = {
            name: {p: _ps(self.times[name][p]) for p in layer.able if p in self.times[name]}
            for name, layer in self.survey.layers.items()
        }
        return CostModel(times, tuple(roundings), tuple(casts), home)


def _ps(seconds: float) -> int:
    return round(seconds * _PICOSECONDS)


def _prefixes(name: str) -> list[str]:
    """``a.b.fp16.nhwc`` -> ``a.b.fp16``, ``a.b``, ``a``."""
    parts = name.partition("#")[0].split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]


def _input_readers(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Input of the network -> the layers that read it, through whatever only moves it."""
    found: dict[str, tuple[str, ...]] = {}
    for value in survey.graph.inputs:
        readers: dict[str, None] = {}
        stack = [value]
        while stack:
            for node, _ in survey.graph.consumers(stack.pop()):
                if node.name in survey.layers:
                    readers[node.name] = None
                else:
                    stack += node.outputs
        found[value.name] = tuple(readers)
    return found


def _beside(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Layer without products -> the products whose integers it would read, or that read its."""
    found: dict[str, dict[str, None]] = {}
    for link in survey.shared:
        able = [r for r in link.readers if INT8 in survey.layers[r].able]
        names = [*link.others, *([link.source] if link.source is not None else [])]
        for name in names:
            if not survey.layers[name].is_product:
                found.setdefault(name, {}).update(dict.fromkeys(able))
    return {name: tuple(users) for name, users in found.items()}
