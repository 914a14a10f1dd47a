"""From the times of whole outcomes to what each layer costs in each precision.

The network is built in each single precision, and its tasks are timed. A task stands for the layers
behind it; one that stands for several (siblings, a pool with its classifier) is shared among them
by their work. What the passes put between layers, a Quantize or a cast, belongs to the edge.

A layer's time also depends on what it stores, so there are two of each: where its result is read as
int8, and where not. What a layer without a choice, such as a pool, takes less where integers lie
before it belongs to the value that it reads. Single precisions show half of that; the rest shows
when the assignment that was found is itself built and timed, and the cut is made again, until
nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
        times: layer -> precision -> seconds where it stores floats.
        narrow: the same where it stores int8.
        quantize: value -> seconds of a Quantize of its own.
        others: value -> seconds that layers without a choice take longer where it is int8.
    """

    survey: Survey
    meter: Meter
    conversions: Conversions
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    narrow: dict[str, dict[str, float]] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
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
        self._stores = {
            link.source: link.value.name
            for link in self.survey.shared
            if link.source is not None and self.survey.layers[link.source].is_product
        }

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
        integers = {
            link.value.name for link in self.survey.shared if INT8 in map(labels.get, link.readers)
        }
        others: dict[str, float] = defaultdict(float)
        for name, layer in self.survey.layers.items():
            times, label = self.times.setdefault(name, {}), labels[name]
            beside = self._beside.get(name, "")
            if layer.is_product and self._stores.get(name) in integers:
                self.narrow.setdefault(name, {})[label] = own[name]
            elif layer.is_product or beside not in integers or label not in times:
                times[label] = own[name]
            else:
                others[beside] += own[name] - times[label]
        self.others.update(others)

    def alone(self, layer: str) -> dict[str, float]:
        """Precision -> seconds of ``layer`` without conversions; empty without times."""
        if not self.meter.known:
            return {}
        return {**self.narrow.get(layer, {}), **self.times[layer]}

    def _two(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Picoseconds of a layer by precision, and what storing int8 takes longer.

        Where only one of the two is known, they differ as in another precision, or not at all.
        """
        wide, narrow = self.times[name], self.narrow.get(name, {})
        able = self.survey.layers[name].able
        both = [narrow[p] - wide[p] for p in able if p in wide and p in narrow]
        usual = sum(both) / len(both) if both else 0.0
        times, extra = {}, {}
        for p in able:
            if p not in wide and p not in narrow:
                continue
            longer = narrow[p] - wide[p] if p in wide and p in narrow else usual
            times[p] = _ps(wide[p] if p in wide else narrow[p] - longer)
            extra[p] = _ps(longer)
        return times, extra

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
        two = {name: self._two(name) for name in self.survey.layers}
        roundings = [
            Rounding(
                link.value.name,
                link.readers,
                _ps(
                    self.quantize.get(link.value.name, 0.0) + self.others.get(link.value.name, 0.0)
                ),
                {
                    kind: _ps(self.edges[task.name])
                    for (value, kind), task in self.conversions.dequantize.items()
                    if value == link.value.name
                },
                link.source if link.source in self._stores else None,
                two[link.source][1] if link.source in self._stores else {},
            ).bounded()
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
        times = {name: both[0] for name, both in two.items()}
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


def _beside(survey: Survey) -> dict[str, str]:
    """Layer without products -> the value that it reads, or stores, as int8 if others want that."""
    found: dict[str, str] = {}
    for link in survey.shared:
        for name in (*link.others, *([link.source] if link.source is not None else [])):
            if not survey.layers[name].is_product:
                found.setdefault(name, link.value.name)
    return found
