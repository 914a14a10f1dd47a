"""Decides by time which rewrites with a choice stay: the network is tuned with and without them.

The passes run with every such rewrite and without; both outcomes become tasks, and both are tuned,
which costs little beyond the problems that only one of them has. A site's price is the time of all
tasks that stand for the model's nodes behind it, in either outcome. Whole outcomes are compared,
not a rewritten node with its parts: precision, layout and the place in memory are settled after
fusion, and a fusion may cost or save a Reformat or a copy elsewhere.

Sites of one pass with one key are decided alike, and so are sites whose tasks overlap. Passes whose
sites overlap take turns: the first is decided with the rewrites of the others in place.

Where nothing is measured the same sums are taken over the estimates that rank candidates.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nrt.fusion_prices import Prices, Room
from nrt.lowering import Task
from nrt.passes.base import Note, PipelineReport
from nrt.problem import Problem
from nrt.rewriting import Offer, Rewriter, Rewritten, Skips
from nrt.timing_cache import TimingCache
from nrt.tuner import Bench, Choice, Progress

__all__ = ["NOTE", "Settled", "settle_fusions"]

NOTE = "fusion"
"""Key of the decisions in `Plan.notes`."""

_TIE = 1.02
"""A fusion that is slower by less stays: medians repeat to 2%, and what is not in them, the
activations' way through the cache and one more kernel to fetch, speaks for fewer launches."""

_TURNS = 8
"""Turns after which what is still undecided is left apart; a pass rarely needs a second one."""


@dataclass(frozen=True)
class Settled:
    """What is to be built.

    Attributes:
        rewritten: the outcome of the passes with the decisions applied; its report has a note for
            every site.
        choices: a kernel for each of its problems; empty where none was asked for.
        note: the decisions in one line; empty where there was nothing to decide.
    """

    rewritten: Rewritten
    choices: Mapping[Problem, Choice]
    note: str = ""


@dataclass(frozen=True)
class _Verdict:
    """What was decided for sites that had to be decided together.

    Attributes:
        fused: whether they are rewritten.
        on, off: seconds of their tasks, fused and separate.
        measured: whether those are measured, all of them.
        places: number of sites.
    """

    fused: bool
    on: float
    off: float
    measured: bool
    places: int

    def text(self) -> str:
        if self.measured:
            first, second = (self.on, self.off) if self.fused else (self.off, self.on)
            times = f"{first * 1e6:.1f} us against {second * 1e6:.1f} us"
            places = f", with {self.places - 1} decided alike" if self.places > 1 else ""
            return (
                f"fused: {times} separate{places}"
                if self.fused
                else (f"left apart: {times} fused{places}")
            )
        ratio = self.on / self.off if self.off else 1.0
        text = f"estimated at {ratio:.2f} of the separate kernels' time"
        return f"fused: {text}" if self.fused else f"left apart: {text} if fused"


def settle_fusions(
    rewriter: Rewriter,
    bench: Bench,
    *,
    opt_level: int = 3,
    cache: TimingCache | None = None,
    progress: Progress | None = None,
    tuning_seconds: float | None = None,
    room: Room | None = None,
    clock: Callable[[], float] = time.monotonic,
    prices: Prices | None = None,
    kernels: bool = True,
) -> Settled:
    """Tune the model and decide every rewrite with a choice.

    Args:
        rewriter: the model and its passes.
        bench: the target.
        opt_level, cache, progress: as of `nrt.tuner.tune`.
        tuning_seconds: bounds all tuning together; comparisons of what is not measured by then are
            made by estimates.
        room: bytes that a workspace may take, per problem of an outcome.
        clock: seconds, for that limit.
        prices: what is known already, of other outcomes of the model; with it, the arguments after
            ``bench`` are its own.
        kernels: whether to choose a kernel for each problem, which compiles it; what is only to be
            estimated needs none.

    Raises:
        BuildError, TuningError: as of `nrt.tuner.tune`.
    """
    prices = prices or Prices(bench, opt_level, cache, progress, tuning_seconds, room, clock)
    state = rewriter.first
    verdicts: dict[Offer, _Verdict] = {}
    decided: set[tuple[str, str]] = set()
    for _ in range(_TURNS):
        turn = _turn(o for o in state.offers if o.choice not in decided)
        if not turn:
            break
        choices = {o.choice for o in turn}
        off = _without(rewriter, state, choices)
        prices.learn(state, off)
        found = dict(_verdicts(state, off, turn, prices))
        verdicts |= found
        decided |= choices
        lost = {o.choice for o, verdict in found.items() if not verdict.fused}
        skips = _joined(state.skips, lost)
        if skips == off.skips:
            state = off
        elif lost:
            state = rewriter.run(skips)
    else:
        rest = {o.choice for o in state.offers if o.choice not in decided}
        state = _without(rewriter, state, rest) if rest else state
    report = _with_notes(state.report, verdicts)
    found_kernels = prices.choices(state.lowered) if kernels else {}
    return Settled(replace(state, report=report), found_kernels, _summary(verdicts))


def _turn(undecided: Iterable[Offer]) -> list[Offer]:
    """Those to decide next: all sites of the first pass, and of others that touch none of them."""
    by_pass: dict[str, list[Offer]] = defaultdict(list)
    for offer in undecided:
        by_pass[offer.step.name].append(offer)
    turn: list[Offer] = []
    busy: set[str] = set()
    for offers in by_pass.values():
        origins = {origin for offer in offers for origin in offer.site.origins}
        if not origins & busy:
            busy |= origins
            turn += offers
    return turn


def _joined(skips: Skips, choices: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    keys: dict[str, set[str]] = defaultdict(set)
    for name, key in choices:
        keys[name].add(key)
    return {
        name: skips.get(name, frozenset()) | keys.get(name, set())
        for name in sorted({*skips, *keys})
    }


def _without(rewriter: Rewriter, state: Rewritten, choices: Iterable[tuple[str, str]]) -> Rewritten:
    """The outcome without ``choices``, nor what their passes make of the nodes instead.

    Left alone, three of a kind may be a site for two of them.
    """
    names = {name for name, _ in choices}
    known = {o.choice for o in state.offers}
    off = rewriter.run(_joined(state.skips, choices))
    for _ in range(_TURNS):
        more = {o.choice for o in off.offers if o.step.name in names} - known
        if not more:
            break
        known |= more
        off = rewriter.run(_joined(off.skips, more))
    return off


# -- comparison ------------------------------------------------------------------------------------


class _Sets:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def find(self, item: object) -> object:
        root = item
        while self._parent.setdefault(root, root) is not root:
            root = self._parent[root]
        while self._parent[item] is not root:
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, a: object, b: object) -> None:
        self._parent[self.find(a)] = self.find(b)


def _verdicts(
    on: Rewritten, off: Rewritten, turn: Sequence[Offer], prices: Prices
) -> Iterator[tuple[Offer, _Verdict]]:
    """A verdict per site; those that are decided together share one."""
    sides = (on.lowered.tasks, off.lowered.tasks)
    sets = _Sets()
    touched: tuple[set[int], set[int]] = (set(), set())
    for side, tasks in enumerate(sides):
        behind: dict[str, list[int]] = defaultdict(list)
        for index, task in enumerate(tasks):
            for origin in task.origins:
                behind[origin].append(index)
        for offer in turn:
            sets.join(offer, offer.choice)
            for origin in offer.site.origins:
                for index in behind.get(origin, ()):
                    sets.join(offer, (side, index))
                    touched[side].add(index)
    for side in (0, 1):
        _attach(sides[side], sides[1 - side], touched[side], side, sets)
    members: dict[object, tuple[list[Task], list[Task]]] = defaultdict(lambda: ([], []))
    for side, tasks in enumerate(sides):
        for index in sorted(touched[side]):
            members[sets.find((side, index))][side].append(tasks[index])
    places = Counter(sets.find(offer) for offer in turn)
    found = {root: _verdict(*members[root], prices, count) for root, count in places.items()}
    for offer in turn:
        yield offer, found[sets.find(offer)]


def _verdict(on: list[Task], off: list[Task], prices: Prices, places: int) -> _Verdict:
    first, second = prices.seconds(on), prices.seconds(off)
    measured = first is not None and second is not None
    if first is None or second is None:
        first, second = prices.estimate(on), prices.estimate(off)
    return _Verdict(first <= second * _TIE, first, second, measured, places)


def _attach(
    tasks: Sequence[Task], others: Sequence[Task], touched: set[int], side: int, sets: _Sets
) -> None:
    """Count tasks that only this outcome has towards the sites that they read from or write to.

    A copy into a Concat, or a Reformat, has the origins of what it belongs to, which need not be
    those of the nodes that were rewritten.
    """
    common = Counter((t.problem, t.origins) for t in others)
    only = []
    for index, task in enumerate(tasks):
        if common[task.problem, task.origins] > 0:
            common[task.problem, task.origins] -= 1
        elif index not in touched:
            only.append(index)
    writers: dict[object, set[int]] = defaultdict(set)
    for index, task in enumerate(tasks):
        for place in task.outputs:
            writers[place.buffer].add(index)
            writers[place.buffer, place.offset].add(index)

    def sources(index: int) -> set[int]:
        """Tasks that write what this one reads: of a buffer with several writers, its own part."""
        found: set[int] = set()
        for place in tasks[index].inputs:
            whole = writers.get(place.buffer, set())
            found |= whole if len(whole) == 1 else writers.get((place.buffer, place.offset), set())
        return found

    readers: dict[int, set[int]] = defaultdict(set)
    for index in range(len(tasks)):
        for source in sources(index):
            readers[source].add(index)
    waiting = set(only)
    while waiting:
        near = [(i, (sources(i) | readers[i]) & touched) for i in sorted(waiting)]
        joined = [(i, next(iter(sorted(found)))) for i, found in near if found]
        if not joined:
            return
        for index, neighbour in joined:
            sets.join((side, index), (side, neighbour))
            touched.add(index)
            waiting.discard(index)


# -- reports ---------------------------------------------------------------------------------------


def _with_notes(report: PipelineReport, verdicts: Mapping[Offer, _Verdict]) -> PipelineReport:
    """``report`` with a note per decided site, in the last record of its pass."""
    nodes: dict[str, str] = {}
    for node in report.graph.nodes:
        for origin in node.origin:
            nodes.setdefault(origin, node.name)
    notes: dict[str, list[Note]] = defaultdict(list)
    for offer, verdict in verdicts.items():
        origins = tuple(sorted(offer.site.origins))
        place = next((nodes[o] for o in origins if o in nodes), origins[0] if origins else "")
        notes[offer.step.name].append(
            Note(
                offer.step.name,
                place,
                origins,
                "fired" if verdict.fused else "refused",
                verdict.text(),
            )
        )
    records = list(report.records)
    for name, added in notes.items():
        last = max(k for k, record in enumerate(records) if record.name == name)
        records[last] = replace(records[last], notes=(*records[last].notes, *added))
    return replace(report, records=tuple(records))


def _summary(verdicts: Mapping[Offer, _Verdict]) -> str:
    """``fuse-x: 3 of 4 fused; fuse-y: 1 of 1 fused; 12.3 us less than without``."""
    if not verdicts:
        return ""
    total = Counter(offer.step.name for offer in verdicts)
    fused = Counter(offer.step.name for offer, v in verdicts.items() if v.fused)
    parts = [f"{name}: {fused[name]} of {count} fused" for name, count in total.items()]
    distinct = {id(v): v for v in verdicts.values()}.values()
    if all(v.measured for v in distinct):
        saved = sum(v.off - v.on for v in distinct if v.fused)
        parts.append(f"{saved * 1e6:.1f} us less than separate" if saved > 0 else "by measurement")
    else:
        parts.append("by estimates")
    return "; ".join(parts)
