"""Which rewrites with a choice stay: the passes and times are invented, the decision is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from nrt.dtypes import FP32
from nrt.fusion_choice import Settled, settle_fusions
from nrt.ir.graph import Graph
from nrt.ir.ops import Abs, Concat, Exp, Pointwise, Relu, Sigmoid, Tanh
from nrt.ir.pointwise import compose
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult, Phase
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.fusion import own_program
from nrt.passes.merge_pointwise import MergePointwise
from nrt.problem import Problem, Refusal
from nrt.rewriting import Rewriter, Rewritten, Skips
from nrt.timing_cache import Timing

# -- passes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Join(ChoicePass):
    """Joins ``second(first(x))``; the key is the pair of ops and the size."""

    first: ClassVar[type]
    second: ClassVar[type]

    def _found(self, graph: Graph) -> list[tuple[Site, Node, Node]]:
        found = []
        for node in graph.nodes:
            inner = node.inputs[0].producer
            if isinstance(node.op, self.second) and inner and isinstance(inner.op, self.first):
                key = f"{inner.op.name} {node.op.name} {node.output.shape[0]}"
                found.append((Site(key, frozenset({*node.origin, *inner.origin})), node, inner))
        return found

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(site for site, _, _ in self._found(graph))

    def run(self, graph: Graph) -> PassResult:
        notes = []
        for site, node, inner in self._found(graph):
            if site.key in self.skip:
                notes.append(self.refused(node, "left alone"))
                continue
            body = compose(own_program(inner), own_program(node), 0)
            new = graph.replace_node(node, Pointwise(body, FP32), inner.inputs, also=[inner])
            notes.append(self.fired(new, "joined"))
        return PassResult(graph, any(n.kind == "fired" for n in notes), tuple(notes))


@dataclass(frozen=True)
class JoinReluTanh(_Join):
    name: ClassVar[str] = "join-relu-tanh"
    first, second = Relu, Tanh


@dataclass(frozen=True)
class JoinTanhExp(_Join):
    name: ClassVar[str] = "join-tanh-exp"
    first, second = Tanh, Exp


@dataclass(frozen=True)
class Insist(ChoicePass):
    """Makes a Relu a Pointwise in one of two ways; the second is offered once the first is lost."""

    name: ClassVar[str] = "insist"

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        found = [n for n in graph.nodes if isinstance(n.op, Relu)]
        keys = ["one", "two"] if "one" in self.skip else ["one"]
        return tuple(Site(k, frozenset(n.origin)) for n in found for k in keys)

    def run(self, graph: Graph) -> PassResult:
        way = next((k for k in ("one", "two") if k not in self.skip), None)
        nodes = [n for n in graph.nodes if isinstance(n.op, Relu)] if way else []
        for node in nodes:
            op = Abs() if way == "one" else Sigmoid()
            graph.replace_node(node, op, node.inputs)
        return PassResult(graph, bool(nodes))


# -- a bench ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Kernel:
    name: str = "kernel"
    rank: int = 1
    reference: bool = False


@dataclass
class Bench:
    """One kernel per problem, whose time the op and the number of elements give."""

    seconds: Callable[[Problem], float]
    can_measure: bool = True
    kernel: Kernel = field(default_factory=Kernel)
    measured: list[Problem] = field(default_factory=list)
    prepared: list[Problem] = field(default_factory=list)

    def variants(self, problem: Problem) -> Sequence[tuple[Kernel, Refusal | None]]:
        return [(self.kernel, None)]

    def configs(self, variant: Kernel, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return [()]

    def estimate(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> float:
        # The opposite of what measuring shows.
        return 1 / self.seconds(problem)

    def timing_key(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> str:
        return problem.key

    def prepare(self, jobs: Iterable[tuple[Kernel, Problem, Any]], *, check: bool = False) -> None:
        self.prepared += [problem for _, problem, _ in jobs]

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        return 0

    def abandon(self) -> None:
        """Nothing was begun."""

    def measure(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> Timing:
        self.measured.append(problem)
        return Timing(self.seconds(problem))


def times(**of: float) -> Callable[[Problem], float]:
    """Microseconds by op; a fused node is ``Pointwise``."""
    return lambda problem: of[problem.op.name] * 1e-6


class CountedRewriter(Rewriter):
    """Keeps what it was asked to skip."""

    def run(self, skips: Skips) -> Rewritten:
        self.__dict__.setdefault("asked", []).append(dict(skips))
        return super().run(skips)

    @property
    def asked(self) -> list[Skips]:
        found: list[Skips] = self.__dict__["asked"]
        return found


def chains(*lengths: int, ops: Sequence[type] = (Relu, Tanh)) -> Graph:
    """A chain of ``ops`` per length; every node is its own origin."""
    graph = Graph("chains")
    for index, size in enumerate(lengths):
        value: Value = graph.add_input(f"x{index}", (size,), FP32)
        for op in ops:
            node = graph.add_node(op(), [value], name=f"{op.__name__}{index}")
            node.origin = (node.name,)
            value = node.output
        graph.set_output(f"y{index}", value)
    return graph


def settle(
    graph: Graph, passes: Sequence[ChoicePass], bench: Bench, **options: Any
) -> tuple[Settled, list[Skips]]:
    rewriter = CountedRewriter(graph, [Phase("choose", tuple(passes), "For the test.")])
    return settle_fusions(rewriter, bench, **options), rewriter.asked


def tasks(settled: Settled) -> list[str]:
    return [task.problem.op.name for task in settled.rewritten.lowered.tasks]


def notes(settled: Settled, name: str) -> list[Note]:
    return [n for n in settled.rewritten.report.notes_about(name) if "against" in n.text]


# -- decisions -------------------------------------------------------------------------------------


def test_without_a_site_the_passes_run_once() -> None:
    bench = Bench(times(Sigmoid=1))
    settled, asked = settle(chains(5, ops=[Sigmoid]), [JoinReluTanh()], bench)
    assert asked == [{}]
    assert (settled.note, tasks(settled)) == ("", ["Sigmoid"])
    assert len(bench.measured) == 1
    assert settled.choices[bench.measured[0]].seconds == 1e-6


def test_a_faster_fusion_stays() -> None:
    bench = Bench(times(Relu=2, Tanh=3, Pointwise=4))
    settled, asked = settle(chains(5), [JoinReluTanh()], bench)
    assert tasks(settled) == ["Pointwise"]
    assert len(asked) == 2  # with and without; the outcome with it is the last word
    assert settled.note == "join-relu-tanh: 1 of 1 fused; 1.0 us less than separate"
    (note,) = notes(settled, "Tanh0")
    assert (note.pass_name, note.node, note.kind) == ("join-relu-tanh", "Tanh0", "fired")
    assert note.text == "fused: 4.0 us against 5.0 us separate"
    assert set(settled.choices) == {t.problem for t in settled.rewritten.lowered.tasks}


def test_a_slower_fusion_is_left_apart() -> None:
    bench = Bench(times(Relu=2, Tanh=3, Pointwise=6))
    settled, asked = settle(chains(5), [JoinReluTanh()], bench)
    assert tasks(settled) == ["Relu", "Tanh"]
    assert asked == [{}, {"join-relu-tanh": {"Relu Tanh 5"}}]
    (note,) = notes(settled, "Relu0")
    assert (note.kind, note.text) == ("refused", "left apart: 5.0 us against 6.0 us fused")
    assert settled.note == "join-relu-tanh: 0 of 1 fused; by measurement"


def test_a_tie_is_fused() -> None:
    settled, _ = settle(chains(5), [JoinReluTanh()], Bench(times(Relu=2, Tanh=3, Pointwise=5.09)))
    assert tasks(settled) == ["Pointwise"]


def by_size(problem: Problem) -> float:
    """Fused, short chains gain and long ones lose."""
    size = problem.y.shape[0]
    return (size * 2.5 if problem.op.name == "Pointwise" and size > 6 else size) * 1e-6


def test_sites_are_decided_by_key() -> None:
    settled, asked = settle(chains(5, 8, 5, 8), [JoinReluTanh()], Bench(by_size))
    assert Counter(tasks(settled)) == {"Pointwise": 2, "Relu": 2, "Tanh": 2}
    assert asked[-1] == {"join-relu-tanh": {"Relu Tanh 8"}}
    (note,) = notes(settled, "Tanh1")
    assert note.text == "left apart: 32.0 us against 40.0 us fused, with 1 decided alike"
    assert settled.note.startswith("join-relu-tanh: 2 of 4 fused; 10.0 us less")


THREE = (Relu, Tanh, Exp)


@pytest.mark.parametrize(
    ("fused", "found"),
    [(4.0, ["Pointwise", "Exp"]), (8.0, ["Relu", "Pointwise"])],
)
def test_passes_that_overlap_take_turns(fused: float, found: list[str]) -> None:
    """Either Tanh joins the Relu before it, or, if that loses, the Exp behind it may take it."""

    def seconds(problem: Problem) -> float:
        if problem.op.name != "Pointwise":
            return {"Relu": 2e-6, "Tanh": 3e-6, "Exp": 4e-6}[problem.op.name]
        op: Any = problem.op
        text = op.body.text()
        return (fused if text.startswith("max") else 6.5) * 1e-6

    # Where Relu and Tanh are apart, Tanh and Exp are joined: 2 + 6.5 against 4 + 4 or 8 + 4.
    settled, _ = settle(chains(5, ops=THREE), [JoinReluTanh(), JoinTanhExp()], Bench(seconds))
    assert tasks(settled) == found


def test_passes_apart_share_a_turn() -> None:
    graph = chains(5)
    value: Value = graph.add_input("z", (7,), FP32)
    for op in (Tanh, Exp):
        node = graph.add_node(op(), [value], name=f"other{op.__name__}")
        node.origin = (node.name,)
        value = node.output
    graph.set_output("w", value)
    bench = Bench(times(Relu=2, Tanh=3, Exp=3, Pointwise=4))
    settled, asked = settle(graph, [JoinReluTanh(), JoinTanhExp()], bench)
    assert tasks(settled) == ["Pointwise", "Pointwise"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("together", "found", "note"),
    [
        (4.0, ["MultiPointwise"], "fused: 4.0 us against 5.0 us separate"),
        (6.0, ["Relu", "Tanh"], "left apart: 5.0 us against 6.0 us fused"),
    ],
)
def test_readers_of_one_tensor_are_one_where_that_is_faster(
    together: float, found: list[str], note: str
) -> None:
    graph = Graph("readers")
    x = graph.add_input("x", (5,), FP32)
    for op in (Relu, Tanh):
        node = graph.add_node(op(), [x], name=op.__name__)
        node.origin = (node.name,)
        graph.set_output(node.name, node.output)
    bench = Bench(times(Relu=2, Tanh=3, MultiPointwise=together))
    settled, _ = settle(graph, [MergePointwise()], bench)
    assert tasks(settled) == found
    assert {n.text for n in notes(settled, "Tanh")} == {note}


@pytest.mark.parametrize(
    ("of", "found"),
    [
        ({"Abs": 1, "Sigmoid": 1, "Relu": 2}, "Abs"),
        ({"Abs": 3, "Sigmoid": 1, "Relu": 2}, "Sigmoid"),
        ({"Abs": 3, "Sigmoid": 3, "Relu": 2}, "Relu"),
    ],
)
def test_what_a_loss_makes_possible_is_decided_too(of: dict[str, float], found: str) -> None:
    """The first way is compared with none at all, not with the second."""
    settled, _ = settle(chains(5, ops=[Relu]), [Insist()], Bench(times(**of)))
    assert tasks(settled) == [found]


@dataclass(frozen=True)
class Detour(ChoicePass):
    """Makes a Relu a Sigmoid that is written elsewhere, so that the Concat has to copy it."""

    name: ClassVar[str] = "detour"

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(
            Site("all", frozenset(n.origin)) for n in graph.nodes if isinstance(n.op, Relu)
        )

    def run(self, graph: Graph) -> PassResult:
        nodes = [] if "all" in self.skip else [n for n in graph.nodes if isinstance(n.op, Relu)]
        for node in nodes:
            new = graph.replace_node(node, Sigmoid(), node.inputs)
            graph.set_output("kept", new.output)
        return PassResult(graph, bool(nodes))


def test_a_copy_that_a_fusion_causes_is_part_of_its_price() -> None:
    """The copy has another origin than the site; unchanged tasks are no part of it."""
    graph = Graph("joined")
    x = graph.add_input("x", (4, 8), FP32)
    parts = []
    for op in (Relu, Tanh):
        node = graph.add_node(op(), [x], name=op.__name__)
        node.origin = (node.name,)
        parts.append(node.output)
    concat = graph.add_node(Concat(0), parts, name="concat")
    concat.origin = ("concat",)
    graph.set_output("y", concat.output)
    bench = Bench(times(Relu=4, Sigmoid=3, Tanh=50, Reformat=2))
    settled, _ = settle(graph, [Detour()], bench)
    assert tasks(settled) == ["Relu", "Tanh"]
    (note,) = notes(settled, "Relu")
    assert note.text == "left apart: 4.0 us against 5.0 us fused"


# -- how times are had -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"opt_level": 0}, {"can_measure": False}], ids=str)
def test_where_nothing_is_measured_estimates_decide(options: dict[str, Any]) -> None:
    """And only what is built is compiled. The bench's estimates contradict its times."""
    level = options.pop("opt_level", 3)
    bench = Bench(times(Relu=2, Tanh=3, Pointwise=4), **options)
    settled, _ = settle(chains(5), [JoinReluTanh()], bench, opt_level=level)
    # 1 / 4 against 1 / 2 + 1 / 3
    assert tasks(settled) == ["Pointwise"]
    assert bench.measured == []
    assert [p.op.name for p in bench.prepared] == ["Pointwise"]
    (note,) = [n for n in settled.rewritten.report.notes if "estimated" in n.text]
    assert note.text == "fused: estimated at 0.30 of the separate kernels' time"
    assert settled.note == "join-relu-tanh: 1 of 1 fused; by estimates"


def test_a_spent_budget_leaves_estimates() -> None:
    bench = Bench(times(Relu=2, Tanh=3, Pointwise=1))
    settled, _ = settle(chains(5), [JoinReluTanh()], bench, tuning_seconds=0)
    assert bench.measured == []
    # 1 / 1 against 1 / 2 + 1 / 3
    assert tasks(settled) == ["Relu", "Tanh"]
    (note,) = [n for n in settled.rewritten.report.notes if "estimated" in n.text]
    assert note.text == "left apart: estimated at 1.20 of the separate kernels' time if fused"
    assert {c.seconds for c in settled.choices.values()} == {None}


@dataclass
class SlowBench(Bench):
    """Each measurement takes a second; all estimates are alike."""

    now: float = 0.0

    def estimate(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> float:
        return 1.0

    def measure(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> Timing:
        self.now += 1.0
        return super().measure(variant, problem, config)


@pytest.mark.parametrize(("limit", "count"), [(4.0, 4), (5.0, 5), (None, 5)])
def test_the_budget_is_that_of_all_turns(limit: float | None, count: int) -> None:
    """The first turn knows four problems, a second one brings another."""
    bench = SlowBench(times(Relu=2, Tanh=3, Exp=4, Pointwise=9))
    settle(
        chains(5, ops=THREE),
        [JoinReluTanh(), JoinTanhExp()],
        bench,
        tuning_seconds=limit,
        clock=lambda: bench.now,
    )
    assert len(bench.measured) == count


def test_progress_never_goes_back() -> None:
    seen: list[tuple[str, int, int]] = []
    bench = Bench(times(Relu=2, Tanh=3, Exp=4, Pointwise=9))
    settle(
        chains(5, ops=THREE),
        [JoinReluTanh(), JoinTanhExp()],
        bench,
        progress=lambda *step: seen.append(step),
    )
    done = [d for _, d, _ in seen]
    assert done == sorted(done)
    assert seen[-1][1] == seen[-1][2] == len(set(bench.measured))
    assert all(d <= total for _, d, total in seen)
