"""choose_precisions(): the fastest assignment of precisions that meets an accuracy budget.

1. The network is built in every single precision, and all their tasks are tuned together.
2. A minimum cut over layers' times and conversions gives the fastest assignment; it is built and
   timed in turn, and cut again with what that shows, until it stays.
3. If it misses the budget, layers get more precision, those first that add most noise to the
   results, as measured, per microsecond that they save (where nothing is timed, those that add
   most); a few networks are built and judged to find how many.
4. Of all networks that meet the budget, single precisions included, the fastest is taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from nrt.errors import BuildError
from nrt.fusion_choice import Settled
from nrt.passes.precision_rules import Assignment
from nrt.precision.accuracy import AccuracyBudget, Judge, Run
from nrt.precision.conversions import Conversions
from nrt.precision.costs import INT8, CostModel, Labels
from nrt.precision.cut import cheapest
from nrt.precision.frontier import Frontier, Point
from nrt.precision.pricing import Meter, Pricing
from nrt.precision.probes import insert_probes, noise_at_results
from nrt.precision.reasons import reasons
from nrt.precision.repair import least_that_holds
from nrt.precision.selection import LayerChoice, Selection
from nrt.precision.sensitivity import harms, probed_tensors
from nrt.precision.survey import Survey, survey
from nrt.precision.workshop import Workshop

__all__ = ["Chosen", "choose_precisions"]

_CUTS = 6
"""Assignments built and timed before the best of them must do."""

_SAMPLES = 8
"""Of the budget's data, on which the noise of single tensors is measured."""

_LOUDEST = 3
"""Tensors that the report names."""


@dataclass(frozen=True)
class Chosen:
    """The result.

    Attributes:
        settled: what is to be built.
        assignment: precision of every layer, with reasons.
        selection: the report.
    """

    settled: Settled
    assignment: Assignment
    selection: Selection


@dataclass
class _Trial:
    """One network that was built; ``order`` compares networks, in seconds where there are times.

    Its outcome is dropped once it has been looked at, and made again if need be: the weights of a
    dozen networks are much memory, and passes take less than a second.
    """

    name: str
    labels: Labels
    settled: Settled | None
    seconds: float | None = None
    order: float = float("inf")
    accuracy: float | None = None
    holds: bool = True
    raised: tuple[str, ...] = ()
    single: bool = False


def choose_precisions(workshop: Workshop, budget: AccuracyBudget | None = None) -> Chosen:
    """See the module.

    Args:
        workshop: the build.
        budget: the accuracy to keep; None: the fastest network is taken.

    Raises:
        BuildError: a precision or pattern does not fit, or no network meets the budget; the message
            says how near the best one came.
        CalibrationError: the budget's data does not fit the network.
        TuningError: as of `nrt.tuner.tune`.
    """
    return _Choice(workshop, budget).run()


class _Choice:
    def __init__(self, workshop: Workshop, budget: AccuracyBudget | None) -> None:
        self.shop = workshop
        self.budget = budget
        self.survey: Survey = survey(workshop.fused(), workshop.options)
        self.meter = Meter(workshop.prices, estimates=workshop.estimates)
        self.trials: dict[tuple[str, ...], _Trial] = {}
        self.judge: Judge | None = None
        self.notes = list(workshop.notes)

    def run(self) -> Chosen:
        self._singles()
        pricing = self._pricing()
        fastest = self._fastest(pricing)
        if self.budget is not None:
            self._judge_all(self.budget)
            best = self._best()
            if not fastest.holds and (best is None or fastest.order < best.order):
                self._repair(fastest, pricing.model())
        best = self._best()
        if best is None:
            raise BuildError(self._missed())
        return self._finish(self._checked(best), pricing)

    # -- networks --------------------------------------------------------------------------------

    def _key(self, labels: Labels) -> tuple[str, ...]:
        return tuple(labels[name] for name in self.survey.layers)

    def _singles(self) -> None:
        """One network per precision; floats first, against which integers are compared."""
        named = {p: self.survey.single(p) for p in reversed(self.survey.precisions)}
        distinct: dict[tuple[str, ...], str] = {}
        for name, labels in named.items():
            distinct.setdefault(self._key(labels), name)
        made = {name: self.shop.rewriter(Assignment(named[name])) for name in distinct.values()}
        self.shop.prices.learn(*(rewriter.first for rewriter in made.values()))
        settled = {name: self.shop.settle(rewriter) for name, rewriter in made.items()}
        self.meter.settle([s.rewritten.lowered for s in settled.values()])
        for name, found in settled.items():
            self._keep(_Trial(name, named[name], found, single=True))

    def _keep(self, trial: _Trial) -> _Trial:
        trial.seconds = self.meter.seconds(self._settled(trial).rewritten.lowered.tasks)
        if trial.seconds is not None:
            trial.order = trial.seconds
        self.trials[self._key(trial.labels)] = trial
        return trial

    def _settled(self, trial: _Trial) -> Settled:
        if trial.settled is None:
            trial.settled = self.shop.settle(self.shop.rewriter(Assignment(trial.labels)))
        return trial.settled

    def _build(self, name: str, labels: Labels, raised: tuple[str, ...] = ()) -> _Trial:
        known = self.trials.get(self._key(labels))
        if known is not None:
            return known
        settled = self.shop.settle(self.shop.rewriter(Assignment(labels)))
        return self._keep(_Trial(name, labels, settled, raised=raised))

    # -- time ------------------------------------------------------------------------------------

    def _pricing(self) -> Pricing:
        trials = list(self.trials.values())
        values = [link.value for link in (*self.survey.shared, *self.survey.between)]
        graph = self._settled(trials[0]).rewritten.report.graph
        layouts = Conversions.layouts_of(graph, values)
        pricing = Pricing(self.survey, self.meter, Conversions(self.survey, layouts))
        for trial in trials:
            pricing.learn(self._settled(trial).rewritten.lowered, trial.labels)
            trial.settled = None
        if not self.meter.known:
            model = pricing.model()
            for trial in trials:
                trial.order = float(model.cost(trial.labels))
        return pricing

    def _fastest(self, pricing: Pricing) -> _Trial:
        """The fastest network: cut, build, time, and cut again with what that showed."""
        for _ in range(_CUTS):
            starts = [trial.labels for trial in self.trials.values()]
            labels = cheapest(pricing.model(), starts)
            if self._key(labels) in self.trials:
                break
            trial = self._build("fastest", labels)
            if not self.meter.known:
                trial.order = float(pricing.model().cost(labels))
            pricing.learn(self._settled(trial).rewritten.lowered, labels)
            trial.settled = None
        mixed = [t for t in self.trials.values() if not t.single]
        best = min(self.trials.values(), key=lambda t: t.order)
        for trial in mixed:
            if trial is not best:
                trial.name = "mixed"
        return best

    # -- accuracy --------------------------------------------------------------------------------

    def _judge_all(self, budget: AccuracyBudget) -> None:
        shapes = {v.name: v.shape for v in self.shop.graph.inputs}
        whole = [t for t in self.trials.values() if set(t.labels.values()) == {"fp32"}]
        integers = any(layer.is_integer for layer in self.survey.layers.values())
        reference = self._run(whole[0]) if whole and not integers else self.shop.reference()
        self.judge = Judge(budget, shapes, reference)
        for trial in self.trials.values():
            self._score(trial)

    def _run(self, trial: _Trial) -> Run:
        return self.shop.run(self._settled(trial), Assignment(trial.labels))

    def _score(self, trial: _Trial) -> bool:
        assert self.judge is not None
        if trial.accuracy is None:
            score = self.judge.score(self._run(trial))
            trial.accuracy, trial.holds, trial.settled = score.value, score.holds, None
        return trial.holds

    def _repair(self, start: _Trial, model: CostModel) -> None:
        """Give layers of ``start`` more precision until the budget holds."""
        priced = model if self.meter.known else None
        steps = list(_steps(self.survey, start.labels, priced, self._harms()))

        def labels_of(count: int) -> dict[str, str]:
            raised = {**start.labels, **dict(steps[:count])}
            order = self.survey.precisions
            allowed = {name: order[order.index(p) :] for name, p in raised.items()}
            return cheapest(model.narrowed(allowed), [raised])

        def holds(count: int) -> bool:
            labels = labels_of(count)
            changed = tuple(n for n, p in labels.items() if p != start.labels[n])
            products = tuple(n for n in changed if self.survey.layers[n].is_product)
            trial = self._build(f"raised {len(products)}", labels, products)
            if not self.meter.known:
                trial.order = float(model.cost(labels))
            return self._score(trial)

        least_that_holds(len(steps), holds)

    def _harms(self) -> Mapping[str, Mapping[str, float]]:
        """What layers add in noise, at the network's results where that can be measured."""
        assert self.judge is not None
        calibration, tensors = self.shop.options.calibration, probed_tensors(self.survey)
        if calibration is None or not tensors:
            return harms(self.survey, calibration)
        probes = insert_probes(self.survey.graph, tensors, calibration)
        sample = self.judge.sample(_SAMPLES)
        reach = noise_at_results(probes, self.shop.plain(probes.graph), sample)
        loudest = sorted(reach, key=lambda name: -reach[name])[:_LOUDEST]
        text = ", ".join(f"'{n}' {-10 * math.log10(reach[n]):.1f} dB" for n in loudest if reach[n])
        if text:
            self.notes.append(f"most of the noise at the results, each alone in int8: {text}")
        return harms(self.survey, calibration, reach, probes.finer)

    # -- the end ---------------------------------------------------------------------------------

    def _best(self) -> _Trial | None:
        """The fastest that holds; of equally fast ones the one built first, a single precision."""
        holding = [t for t in self.trials.values() if t.holds]
        return min(holding, key=lambda t: t.order, default=None)

    def _checked(self, best: _Trial) -> _Trial:
        """``best``, unless the best single precision is faster as a whole plan."""
        singles = [t for t in self.trials.values() if t.holds and t.single]
        if best.single or not singles:
            return best
        other = min(singles, key=lambda t: t.order)
        times = self.shop.compare(self._settled(best), self._settled(other))
        if times is None or times[0] is None or times[1] is None:
            return best
        self.notes.append(
            f"whole plans: {times[0] * 1e6:.1f} us against {times[1] * 1e6:.1f} us of {other.name}"
        )
        return other if times[1] < times[0] else best

    def _missed(self) -> str:
        assert self.judge is not None
        tried = [t for t in self.trials.values() if t.accuracy is not None]
        text = ", ".join(f"{t.name} {t.accuracy:.4g}" for t in tried)
        return (
            f"accuracy: no network of precision {', '.join(self.survey.precisions)} has "
            f"{self.judge.budget}: {text}; permit a wider precision (fp32), or ask for less"
        )

    def _finish(self, best: _Trial, pricing: Pricing) -> Chosen:
        model = pricing.model()
        why = reasons(self.survey, best.labels, model, best.raised, self.budget, self.meter)
        assignment = Assignment(best.labels, why)
        # Once more, for the notes; all times are known.
        rewriter = self.shop.rewriter(assignment, snapshots=self.shop.snapshots)
        settled = self.shop.with_kernels(self.shop.settle(rewriter))
        trials = sorted(self.trials.values(), key=lambda t: (t.order, t.name))
        frontier = Frontier(
            self.shop.graph.name,
            "" if self.budget is None else str(self.budget),
            self.budget is not None and self.budget.smaller_is_better,
            tuple(self._point(t) for t in trials),
            trials.index(best),
        )
        products = [layer for layer in self.survey.layers.values() if layer.is_product]
        layers = tuple(
            LayerChoice(
                layer.name,
                INT8 if layer.is_integer else best.labels[layer.name],
                "" if layer.is_integer else why.get(layer.name, ""),
                pricing.alone(layer.name),
                self._instead(model, best.labels, layer.name),
            )
            for layer in products
        )
        return Chosen(settled, assignment, Selection(layers, frontier, tuple(self.notes)))

    def _instead(self, model: CostModel, labels: Labels, layer: str) -> dict[str, float]:
        if not self.meter.known:
            return {}
        cost = model.cost(labels)
        others = [p for p in model.times[layer] if p != labels[layer]]
        return {p: (model.cost({**labels, layer: p}) - cost) * 1e-12 for p in others}

    def _point(self, trial: _Trial) -> Point:
        products = [layer for layer in self.survey.layers.values() if layer.is_product]
        counts = Counter(INT8 if p.is_integer else trial.labels[p.name] for p in products)
        return Point(
            trial.name,
            trial.seconds,
            self.meter.measured,
            trial.accuracy,
            trial.holds,
            {p: counts[p] for p in dict.fromkeys((INT8, *self.survey.precisions)) if counts[p]},
            trial.raised,
            trial.single,
        )


def _steps(
    survey: Survey,
    labels: Labels,
    model: CostModel | None,
    harm: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, str]]:
    """(layer, wider precision), the most noise per picosecond first; by ``model`` None, the most.

    Where nothing is timed all layers cost the same: few of them are to be raised.

    Layers of int8 come before all that is floats already, whose noise is a thousandth of theirs. A
    layer with two steps ahead takes them one after the other.
    """
    cost = model.cost(labels) if model is not None else 0
    rated: list[tuple[bool, float, int, tuple[str, str]]] = []
    for name, layer in survey.layers.items():
        order = [p for p in survey.precisions if p in layer.able]
        rate = float("inf")
        for before, after in pairwise(order):
            if order.index(before) < order.index(labels[name]):
                continue
            saved = harm[name][before] - harm[name][after]
            price = max(model.cost({**labels, name: after}) - cost, 1) if model is not None else 1
            rate = min(rate, saved / price)
            rated.append((before != INT8, -rate, len(rated), (name, after)))
    for *_, step in sorted(rated):
        yield step
