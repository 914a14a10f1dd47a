"""Stages of a pipeline: what snapshots keep, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from nrt.dtypes import FP32
from nrt.errors import PassError
from nrt.ir.graph import Graph
from nrt.ir.ops import Identity, Relu
from nrt.passes.base import Pass, PassResult, Phase, PipelineReport, run_pipeline
from nrt.passes.dead_code import DeadCode


@dataclass(frozen=True)
class DropOne(Pass):
    """Removes one Identity per run."""

    name: ClassVar[str] = "drop-one"

    def run(self, graph: Graph) -> PassResult:
        for node in graph.nodes:
            if isinstance(node.op, Identity):
                graph.replace_value(node.output, node.inputs[0])
                graph.remove_node(node)
                return PassResult(graph, True)
        return PassResult(graph, False)


def network(identities: int) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", (3,), FP32)
    k = graph.add_constant("unused", np.zeros(5, np.float32))
    assert k.is_constant
    value = graph.add_node(Relu(), (x,), name="relu").output
    for i in range(identities):
        value = graph.add_node(Identity(), (value,), name=f"i{i}").output
    graph.set_output("y", value)
    return graph


def run(identities: int, *, snapshots: bool = True) -> PipelineReport:
    phases = (Phase("p", (DropOne(),), ""), Phase("q", (DeadCode(),), ""))
    return run_pipeline(network(identities), phases, snapshots=snapshots)


def test_stages_in_order() -> None:
    report = run(3)
    names = ["imported", "drop-one#1", "drop-one#2", "drop-one#3", "drop-one"]
    stages = report.stages
    assert list(stages)[:5] == names
    assert list(stages)[-1] == "final"
    assert [len(stages[n]) for n in names] == [4, 3, 2, 1, 1]
    assert stages["final"] is report.graph
    assert stages["drop-one"] is stages["drop-one#3"]


def test_one_change_needs_no_number() -> None:
    assert [n for n in run(1).stages if n.startswith("drop")] == ["drop-one"]


def test_snapshots_share_constants_and_nothing_else() -> None:
    graph = network(2)
    array = graph.value("unused").constant
    report = run_pipeline(graph, (Phase("p", (DropOne(),), ""),), snapshots=True)
    copies = list({id(g): g for g in report.stages.values()}.values())
    assert all(g.value("unused").constant is array for g in copies)
    graph.add_node(Relu(), graph.inputs, name="later")
    report.graph.add_node(Relu(), report.graph.inputs, name="later")
    assert [g.has_node("later") for g in copies] == [False, False, False, True]


def test_unknown_stages() -> None:
    report = run(2)
    with pytest.raises(PassError, match=r"no stage 'drop-on'; did you mean 'drop-one'\?; st"):
        report.stage("drop-on")
    with pytest.raises(PassError, match=r"there is no stage 'x'; stages: imported, drop-one#1, .*"):
        report.stage("x")
    with pytest.raises(PassError, match="pass 'drop-one' changed nothing, so it is no stage; st"):
        run(0).stage("drop-one")
    assert report.stage("imported") is report.imported


def test_without_snapshots() -> None:
    report = run(1, snapshots=False)
    assert report.imported is None
    with pytest.raises(PassError, match="kept no snapshots of the graph; build with snapshots=T"):
        report.stage("imported")
