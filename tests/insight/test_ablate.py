"""Ablation on the CPU target: what is left out is left out, measured in turns, and still right."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import nrt
from nrt.builder import build
from nrt.errors import BuildError, DeviceError, ExportError
from nrt.insight import ablate as module
from nrt.insight.ablation import COLUMNS, Ablation
from nrt.insight.figures import launches_of
from nrt.insight.paired import Estimate
from nrt.passes.pipeline import pass_names

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)


def network() -> nrt.Network:
    """A stem, a residual block, a pool and a head; conv, norm and activation apart."""
    rng = np.random.default_rng()

    def weights(*shape: int) -> Any:
        fan = int(np.prod(shape[1:]))
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan))

    def norm(x: Any, name: str) -> Any:
        shift = 0.1 * rng.standard_normal((3, 8), np.float32)
        return net.batch_norm(x, 1 + shift[0], shift[1], shift[2], np.full(8, 1.5), name=name)

    net = nrt.Network("tiny")
    x = net.input("image", (2, 3, 13, 11))
    a = net.relu(norm(net.conv2d(x, weights(8, 3, 3, 3), padding=1, name="stem"), "bn1"))
    b = norm(net.conv2d(a, weights(8, 8, 3, 3), padding=1, name="body"), "bn2")
    c = net.relu(net.add(a, b, name="sum"))
    y = net.linear(net.flatten(net.global_avg_pool(c)), weights(5, 8), weights(5), name="head")
    net.output(net.tanh(y), "scores")
    return net


def quickly(net: nrt.Network, passes: Any = "all", **options: Any) -> Ablation:
    options = {"target": "cpu", "opt_level": 0, **options}
    return nrt.ablate(net, passes, duration=0.0, warm_up=0.0, **options)


@pytest.fixture
def by_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every launch of a plan takes a second."""

    class Found:
        def __init__(self, context: Any) -> None:
            self.host_seconds = [float(launches_of(context._plan))] * 3
            self.device_seconds = None

    monkeypatch.setattr(module, "measure", lambda context, *_: Found(context))
    monkeypatch.setattr(
        "nrt.insight.paired.sample",
        lambda context, _, repeats: [float(launches_of(context._plan))] * repeats,
    )


@pytest.mark.usefixtures("by_launches")
def test_each_pass_is_worth_the_launches_that_it_saves() -> None:
    net = network()
    found = quickly(net, cumulative=True)
    made = build(net, target="cpu", opt_level=0)
    assert found.full.launches == launches_of(made.plan)
    assert found.full.latency == Estimate(*[float(found.full.launches)] * 3)
    assert found.full.arena_bytes == made.plan.arena_bytes
    assert [e.name for e in found.effects] == list(pass_names())
    for effect in found.effects:
        without = build(net, target="cpu", opt_level=0, disabled=[effect.name]).plan
        assert effect.network.launches == launches_of(without)
        assert effect.network.arena_bytes == without.arena_bytes
        assert effect.saves.median == launches_of(without) - launches_of(made.plan)
        assert effect.beside.median == found.full.launches
        assert 0 <= effect.network.error <= TOLERANCE["fp32"]
    fused = found.effect("fuse-conv-epilogue")
    # Another ReLU goes into the pooling behind it, where this pass leaves it.
    assert (fused.saves.median, fused.identical) == (1, False)
    assert fused.fired >= 2
    unused = found.effect("gather-to-slice")
    assert (unused.fired, unused.identical, unused.saves) == (0, True, Estimate(0, 0, 0))

    bare = build(net, target="cpu", opt_level=0, disabled=pass_names()).plan
    assert found.bare is not None
    assert found.bare.network.launches == launches_of(bare)
    assert found.bare.network.arena_bytes == bare.arena_bytes
    assert found.bare.beside.median == found.full.launches
    assert found.bare.saves.median == launches_of(bare) - found.full.launches
    assert [s.name for s in found.steps] == list(pass_names())
    assert found.steps[-1].network.launches == found.full.launches
    total = sum(step.saves.median for step in found.steps)
    assert total == found.bare.saves.median
    before = found.bare.network
    for step in found.steps:
        assert step.beside.median == before.launches
        assert step.network.error <= TOLERANCE["fp32"]
        before = step.network


def test_half_precision_keeps_its_pass_and_its_error() -> None:
    kept = {"select-precision", "fuse-conv-epilogue", "assign-layout", "merge-reformats"}
    others = set(pass_names()) - kept
    found = quickly(network(), precision={"fp16", "fp32"}, disabled=others)
    assert set(found.required) == {"select-precision"}
    assert {e.name for e in found.effects} == kept - {"select-precision"}
    for figures in (found.full, *(e.network for e in found.effects)):
        # Rounding to fp16 is there, and nothing worse.
        assert 1e-5 < figures.error <= TOLERANCE["fp16"]
        assert 0 < figures.latency.low <= figures.latency.median <= figures.latency.high
    assert "select-precision stays: precision fp16, fp32 is what" in str(found)


def test_single_passes_in_the_order_of_the_pipeline() -> None:
    found = quickly(network(), ["fuse-conv-epilogue", "fold-batch-norm", "fold-batch-norm"])
    assert [e.name for e in found.effects] == ["fold-batch-norm", "fuse-conv-epilogue"]
    assert (found.bare, found.steps) == (None, ())
    assert [e.name for e in quickly(network(), "dead-code").effects] == ["dead-code"]


def test_what_cannot_be_ablated() -> None:
    with pytest.raises(
        BuildError, match="'fuse-conv-epilog' is unknown; did you mean 'fuse-conv-epilogue'"
    ):
        quickly(network(), ["fuse-conv-epilog"])
    with pytest.raises(BuildError, match="pass 'select-precision' cannot be left out: precision f"):
        quickly(network(), ["select-precision"], precision="fp16")
    with pytest.raises(BuildError, match="pass 'dead-code' is left out already: it is among disa"):
        quickly(network(), ["dead-code"], disabled=["dead-code"])
    with pytest.raises(TypeError, match="tuning_second"):
        quickly(network(), tuning_second=3)


@pytest.fixture
def sample() -> Ablation:
    return quickly(network(), ["fuse-conv-epilogue", "fold-pad"], cumulative=True)


def test_as_text(sample: Ablation) -> None:
    lines = str(sample).splitlines()
    assert lines[0].startswith("tiny, fp32, on ")
    assert lines[0].endswith("(host time)")
    assert lines[3].split() == " ".join(COLUMNS).split()
    fused = next(line for line in lines if line.startswith("fuse-conv-epilogue"))
    assert fused.count("[") == 3
    assert "%" in fused
    assert "same plan" in next(line for line in lines if line.startswith("fold-pad"))
    assert "added one at a time" in lines
    narrow = dict(sample.tables(intervals=False))["each pass left out"]
    assert [cell.count("[") for cell in narrow[-1]] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_as_data(sample: Ablation) -> None:
    data = json.loads(sample.to_json())
    assert data == json.loads(json.dumps(sample.to_data()))
    assert [e["pass"] for e in data["effects"]] == ["fold-pad", "fuse-conv-epilogue"]
    assert data["effects"][0]["identical"]
    assert data["full"]["latency"]["median"] == sample.full.latency.median
    assert data["bare"]["network"]["launches"] == data["steps"][0]["network"]["launches"]
    assert data["confidence"] == 0.95


def test_as_pictures(sample: Ablation) -> None:
    root = ElementTree.fromstring(sample.to_svg())
    words = [t.text for t in root.iter(f"{SVG}text")]
    assert {"Time that each pass saves", "fuse-conv-epilogue", "same plan"} <= set(words)
    assert {"none of them", "+ fuse-conv-epilogue"} <= set(words)
    # One bar for the saving, three for the latencies as passes are added.
    assert sum(r.get("class") is None for r in root.iter(f"{SVG}rect")) == 4
    page = sample._repr_html_()
    assert page.count("<svg") == 1
    assert page.count("<table>") == 2
    assert sample._repr_svg_() == sample.to_svg()


def test_without_pandas(sample: Ablation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ExportError, match="needs pandas, which is not installed: pip install pan"):
        sample.to_pandas()


def test_with_pandas(sample: Ablation) -> None:
    pandas = pytest.importorskip("pandas")
    frame = sample.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["pass"]) == ["fold-pad", "fuse-conv-epilogue"] * 2
    assert list(frame["added"]) == [False, False, True, True]
    assert frame["saves"][1] == sample.effects[1].saves.median


def test_an_infinite_error_is_no_number_in_json(sample: Ablation) -> None:
    broken = replace(sample, full=replace(sample.full, error=float("inf")))
    assert json.loads(broken.to_json())["full"]["error"] is None
    assert "inf" in str(broken)


def test_another_machine_cannot_be_measured() -> None:
    """Said at once, not after a build."""
    with pytest.raises(DeviceError, match="target 'cuda:sm_75': no GPU of sm_75 is in this mach"):
        quickly(network(), "dead-code", target="cuda:sm_75")
