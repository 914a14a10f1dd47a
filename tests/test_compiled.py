"""What `nrt.compile` returns: an engine with its build, and the instruments as methods."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from insight.small_network import image, network
from runtime.plans import cuda_plan

import nrt
from nrt.errors import DeviceError, InputError, PassError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph_diff import graph_diff
from nrt.plan_file import plan_to_bytes


@pytest.fixture(scope="module")
def engine() -> nrt.CompiledEngine:
    return nrt.compile(network(), target="cpu", opt_level=0, snapshots=True)


def test_it_is_an_engine(engine: nrt.CompiledEngine, tmp_path: Path) -> None:
    assert isinstance(engine, nrt.Engine)
    assert engine.plan is engine.build.plan
    x = image()
    graph = network().graph
    value = graph.outputs["scores"].name
    want = evaluate(graph, {"image": x}, until=[value])[value]
    np.testing.assert_allclose(engine(x), want, rtol=1e-4, atol=1e-4)
    engine.save(tmp_path / "small.nrt")
    loaded = nrt.load(tmp_path / "small.nrt")
    assert not hasattr(loaded, "build")
    np.testing.assert_array_equal(loaded(x), engine(x))
    assert plan_to_bytes(loaded.plan) == plan_to_bytes(engine.plan)


def test_explain(engine: nrt.CompiledEngine) -> None:
    (story,) = engine.explain("stem.relu").stories
    assert story.name == "stem.conv"
    with pytest.raises(InputError, match="near names"):
        engine.explain("stem.rule")


def test_diff(engine: nrt.CompiledEngine) -> None:
    diff = engine.diff(before="imported", after="fuse-conv-epilogue")
    stages = engine.build.passes.stages
    assert diff.changes == graph_diff(stages["imported"], stages["fuse-conv-epilogue"]).changes
    assert ("stem.conv", "stem.bn", "stem.relu") in [c.before for c in diff.of_kind("replaced")]
    plain = nrt.compile(network(), target="cpu", opt_level=0)
    with pytest.raises(PassError, match="build with snapshots=True"):
        plain.diff()


def test_profile(engine: nrt.CompiledEngine) -> None:
    found = engine.profile(image(), repeats=2)
    assert [layer.name for layer in found.layers] == [la.name for la in engine.plan.layers]


def test_what_if_is_asked_with_the_build(
    engine: nrt.CompiledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(what_if=lambda build, changes, **options: (build, changes, options))
    monkeypatch.setitem(sys.modules, "nrt.insight.what_if", module)
    changes = {"stem.conv": {"precision": "fp16"}}
    found: object = engine.what_if(changes, duration=1.5)
    assert found == (engine.build, changes, {"duration": 1.5})


def test_to_onnx(engine: nrt.CompiledEngine, tmp_path: Path) -> None:
    model = engine.to_onnx(tmp_path / "small.onnx")
    kernels = {p.value for node in model.graph.node for p in node.metadata_props}
    assert engine.plan.layers[1].variant in kernels
    assert (tmp_path / "small.onnx").read_bytes() == model.SerializeToString()


def test_only_a_named_architecture_leaves_the_device_alone(
    engine: nrt.CompiledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = replace(engine.build, plan=cuda_plan())
    monkeypatch.setattr("nrt.compiled.build", lambda model, **options: built)
    opened: list[int] = []

    def open_device(index: int) -> None:
        opened.append(index)
        raise DeviceError("none here")

    monkeypatch.setattr("nrt.runtime.engine.open_device", open_device)
    assert nrt.compile(network(), target="cuda:sm_90").plan is built.plan
    assert opened == []
    with pytest.raises(DeviceError, match="none here"):
        nrt.compile(network(), target="cuda")
    assert opened == [0]
