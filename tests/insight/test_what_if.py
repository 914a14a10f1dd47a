"""What if a layer had another kernel or precision: only that layer changes, both are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import Build, build
from nrt.cpu_kernels import bind, variant_by_name
from nrt.errors import BuildError, DeviceError
from nrt.insight.what_if import WhatIf, what_if
from nrt.ir.evaluate import evaluate
from nrt.lowering import lower
from nrt.runtime import Engine
from nrt.trial import relative_error
from nrt.tuner_cpu import CpuBench

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)


def network() -> nrt.Network:
    """Three convolutions in a row; the last two are one problem."""
    rng = np.random.default_rng()
    net = nrt.Network("row")
    x = net.input("image", (1, 8, 9, 7))
    for name in ("first", "second", "third"):
        shape = (8, 8, 1, 1) if name == "first" else (8, 8, 3, 3)
        weight = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        x = net.relu(net.conv2d(x, weight, padding=shape[2] // 2, name=name), name=f"{name}.act")
    net.output(x, "y")
    return net


def built(net: nrt.Network | None = None, **options: Any) -> Build:
    return build(net or network(), target="cpu", **{"opt_level": 1, **options})


def ask(made: Build, changes: Any) -> WhatIf:
    return what_if(made, changes, duration=0.0, warm_up=0.0)


def variants(made: Build) -> dict[str, str]:
    return {layer.name: layer.variant for layer in made.plan.layers}


def test_another_kernel_for_one_layer() -> None:
    net = network()
    made = built(net)
    assert made.choices["second"].variant is made.choices["third"].variant
    found = ask(made, {"second": {"variant": "cpu_reference"}})
    assert variants(found.build) == {**variants(made), "second": "cpu_reference"}
    (effect,) = found.layers
    assert (effect.name, effect.asked) == ("second", True)
    assert effect.before == next(la for la in made.plan.layers if la.name == "second")
    assert effect.after is not None
    assert effect.after.variant == "cpu_reference"
    assert effect.after.seconds is not None
    assert effect.seconds_before > 0
    assert effect.seconds_after > 0
    for figures in (found.before, found.after):
        assert figures.error <= TOLERANCE["fp32"]
        assert figures.launches == len(made.plan.steps)
        assert 0 < figures.latency.low <= figures.latency.median <= figures.latency.high
    assert found.saves.low <= found.saves.median <= found.saves.high
    # The changed plan computes the network.
    image = np.random.default_rng().standard_normal((1, 8, 9, 7), np.float32)
    wanted = evaluate(net.graph, {"image": image})["y"]
    assert relative_error(Engine(found.build.plan, bind)(image), wanted) <= TOLERANCE["fp32"]


def test_only_the_change_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made = built(opt_level=3)
    known = CpuBench.measure
    seen: list[str] = []

    def measure(self: CpuBench, variant: Any, problem: Any, config: Any) -> Any:
        seen.append(variant.name)
        return known(self, variant, problem, config)

    monkeypatch.setattr(CpuBench, "measure", measure)
    ask(made, {"second": {"variant": "cpu_reference"}})
    assert seen == ["cpu_reference"]


def test_a_configuration_beside_the_name_or_in_it() -> None:
    made = built(opt_level=2)
    problem = next(t.problem for t in lower(made.graph).tasks if t.name == "second")
    variant = variant_by_name("cpu_conv_winograd")
    (_, other) = variant.configs(problem)
    text = ", ".join(map(str, other))
    for change in (
        {"variant": f"cpu_conv_winograd({text})"},
        {"variant": "cpu_conv_winograd", "config": text},
        {"variant": "cpu_conv_winograd", "config": other},
    ):
        found = ask(made, {"second": change})
        layer = next(la for la in found.build.plan.layers if la.name == "second")
        assert (layer.variant, layer.config) == ("cpu_conv_winograd", text)
        assert found.changes["second"] == {"variant": "cpu_conv_winograd", "config": text}


def precisions(made: Build) -> dict[str, str]:
    convolutions = ("first", "second", "third")
    return {la.name: la.precision for la in made.plan.layers if la.name in convolutions}


@pytest.mark.parametrize(("given", "other"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_another_precision_for_one_layer(given: str, other: str) -> None:
    """Whether the other type is the faster or the slower one, the rest keeps its own."""
    made = built(precision=given)
    assert precisions(made) == dict.fromkeys(("first", "second", "third"), given)
    found = ask(made, {"second": {"precision": other}})
    assert precisions(found.build) == {"first": given, "second": other, "third": given}
    assert found.layers[0].name == "second"
    assert found.layers[0].asked
    assert not any(effect.asked for effect in found.layers[1:])
    if given == "fp32":
        assert found.before.error <= TOLERANCE["fp32"] < found.after.error <= TOLERANCE["fp16"]
    else:
        assert found.after.error != found.before.error
        assert max(found.after.error, found.before.error) <= TOLERANCE["fp16"]


def test_a_kernel_and_a_precision_at_once() -> None:
    found = ask(built(), {"second": {"variant": "cpu_reference", "precision": "fp16"}})
    after = found.layers[0].after
    assert after is not None
    assert (after.variant, after.precision) == ("cpu_reference", "fp16")


@pytest.mark.parametrize("name", ["second.act", "sec*", "*second*"])
def test_layers_go_by_origin_and_by_pattern(name: str) -> None:
    found = ask(built(), {name: {"variant": "cpu_reference"}})
    assert [(e.name, e.asked) for e in found.layers] == [("second", True)]


def test_a_pattern_for_several_layers() -> None:
    found = ask(built(), {"*ir*": {"variant": "cpu_reference"}})
    changed = [e.name for e in found.layers if e.asked]
    assert changed == ["first", "third", "third.act.row_major"]
    assert {variants(found.build)[name] for name in changed} == {"cpu_reference"}


def test_a_change_of_a_change() -> None:
    first = ask(built(), {"first": {"variant": "cpu_reference"}})
    second = ask(first.build, {"third": {"variant": "cpu_reference"}})
    assert variants(second.build)["first"] == "cpu_reference"
    assert variants(second.build)["third"] == "cpu_reference"
    assert [e.name for e in second.layers] == ["third"]


def test_as_text_and_as_data() -> None:
    found = ask(built(), {"second": {"variant": "cpu_reference"}})
    text = str(found)
    assert text.startswith("second: fp32 ")
    assert "-> fp32 cpu_reference" in text
    assert "network: " in text
    data = json.loads(json.dumps(found.to_data()))
    assert data["changes"] == {"second": {"variant": "cpu_reference"}}
    assert data["layers"][0]["after"]["variant"] == "cpu_reference"
    assert data["saves"]["median"] == found.saves.median


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secnd": {"variant": "x"}}, "no layer of plan 'row' is called so; near it: second"),
        ({"second": {"varient": "x"}}, "'varient' cannot be changed; expected variant, config, p"),
        ({"second": {}}, "what if 'second': nothing is to be changed; expected variant"),
        ({"second": {"variant": 3}}, "what if 'second': variant is 3, expected a text"),
        ({"second": {"config": "1"}}, "a configuration belongs to a variant; give the variant"),
        ({"second": {"variant": "a(1"}}, r"variant 'a\(1': expected NAME or NAME\(CONFIG\)"),
        ({"second": {"variant": "a(1)", "config": "2"}}, "and the configuration once"),
        ({"second": {"variant": "cpu_poool"}}, "candidates: .*cpu_reference; refused: "),
        ({"second": {"variant": "cpu_conv_depthwise"}}, "cpu_conv_depthwise refuses it: 1 groups"),
        ({"second": {"precision": "fp12"}}, "precision 'fp12' is unknown"),
    ],
)
def test_what_does_not_fit(changes: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        ask(built(opt_level=0), changes)


def test_another_machine_cannot_be_measured() -> None:
    made = built(opt_level=0)
    elsewhere = replace(made, request=replace(made.request, target="cuda:sm_75"))
    with pytest.raises(DeviceError, match="no GPU of sm_75 is in this machine"):
        ask(elsewhere, {"second": {"variant": "cpu_reference"}})
