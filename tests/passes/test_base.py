from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from nrt.errors import BuildError, GraphError, PassError
from nrt.ir.graph import Graph
from nrt.ir.ops import Exp, Identity, Relu
from nrt.passes.base import Pass, PassResult, Phase, run_pipeline
from nrt.passes.dead_code import DeadCode
from nrt.passes.remove_identities import RemoveIdentities

from .support import Net, ops


@dataclass(frozen=True)
class Breaks(Pass):
    """Leaves a value whose stored shape its op does not infer."""

    name: ClassVar[str] = "breaks"

    def run(self, graph: Graph) -> PassResult:
        graph.nodes[0].output.shape = (99,)
        return PassResult(graph, True)


@dataclass(frozen=True)
class Raises(Pass):
    name: ClassVar[str] = "raises"
    error: type[Exception] = KeyError

    def run(self, graph: Graph) -> PassResult:
        raise self.error("lost")


@dataclass(frozen=True)
class Restless(Pass):
    """Claims a change each time."""

    name: ClassVar[str] = "restless"

    def run(self, graph: Graph) -> PassResult:
        return PassResult(graph, True, (self.refused(graph.nodes[0], "tired"),))


def net() -> Net:
    made = Net()
    x = made.input(2, 3)
    made.op(Exp(), x)
    made.out(made.op(Relu(), made.op(Identity(), x)))
    return made


def phase(*passes: Pass, rounds: int = 16) -> Phase:
    return Phase("only", passes, "a test.", rounds)


def test_records_tell_what_each_run_did() -> None:
    graph = net().graph
    report = run_pipeline(graph, [phase(RemoveIdentities(), DeadCode())], verify=True)
    assert [
        (r.name, r.iteration, r.changed, r.nodes_before, r.nodes_after) for r in report.records
    ] == [
        ("remove-identities", 0, True, 3, 2),
        ("dead-code", 0, True, 2, 1),
        ("remove-identities", 1, False, 1, 1),
        ("dead-code", 1, False, 1, 1),
    ]
    assert all(r.phase == "only" and r.seconds >= 0 and r.snapshot is None for r in report.records)
    assert report.seconds == sum(r.seconds for r in report.records)
    assert ops(report.graph) == ["Relu"]
    assert len(graph) == 3


def test_snapshots_show_each_change() -> None:
    report = run_pipeline(
        net().graph, [phase(RemoveIdentities(), DeadCode())], verify=False, snapshots=True
    )
    shown = [(r.name, ops(r.snapshot)) for r in report.records if r.snapshot is not None]
    assert shown == [("remove-identities", ["Exp", "Relu"]), ("dead-code", ["Relu"])]


def test_a_broken_graph_names_the_pass_and_those_before() -> None:
    with pytest.raises(PassError, match="pass 'breaks' left a graph that does not verify") as error:
        run_pipeline(net().graph, [phase(RemoveIdentities(), Breaks())], verify=True)
    assert "before it: remove-identities" in str(error.value)
    assert isinstance(error.value.__cause__, GraphError)


def test_a_raising_pass_is_named() -> None:
    with pytest.raises(PassError, match="pass 'raises' failed: KeyError: 'lost'; no pass had"):
        run_pipeline(net().graph, [phase(Raises())], verify=False)
    with pytest.raises(PassError, match=r"pass 'raises' failed: lost; passes .*: dead-code"):
        run_pipeline(net().graph, [phase(DeadCode(), Raises(GraphError))], verify=False)


def test_wrong_options_are_the_users_error() -> None:
    with pytest.raises(BuildError, match="lost"):
        run_pipeline(net().graph, [phase(Raises(BuildError))], verify=True)


def test_a_graph_that_is_broken_from_the_start() -> None:
    graph = net().graph
    graph.nodes[0].output.shape = (7,)
    with pytest.raises(PassError, match="does not verify before the first pass"):
        run_pipeline(graph, [phase(DeadCode())], verify=True)


def test_verification_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_VERIFY", "0")
    run_pipeline(net().graph, [phase(Breaks(), rounds=1)])
    monkeypatch.setenv("NRT_VERIFY", "1")
    with pytest.raises(PassError, match="breaks"):
        run_pipeline(net().graph, [phase(Breaks(), rounds=1)])


def test_a_phase_is_bounded_and_its_refusals_are_told_once() -> None:
    report = run_pipeline(net().graph, [phase(Restless(), rounds=3)], verify=True)
    assert len(report.records) == 3
    assert [str(n) for n in report.notes] == ["restless refused at 'exp': tired"]
    assert report.notes_about("/exp") == report.notes
    assert report.notes_about("/relu") == ()
