"""Explanations: the story of each layer, as text, data and HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from drawing.test_svg import CLEAN, EVIL
from runtime.plans import cpu_plan, cuda_plan

import nrt
from nrt.builder import Build, build
from nrt.errors import InputError
from nrt.insight.explain import Explanation, LayerStory, explain, explain_plan

from .small_network import network


@pytest.fixture(scope="module")
def built() -> Build:
    return build(
        network(),
        target="cpu",
        opt_level=0,
        precision={"fp16", "fp32"},
        layers={"head*": "fp32"},
    )


def only(explanation: Explanation) -> LayerStory:
    (story,) = explanation.stories
    return story


@pytest.mark.parametrize("query", ["stem.conv", "stem.bn", "relu", "stem.*"])
def test_every_origin_leads_to_the_layer(built: Build, query: str) -> None:
    names = {s.name for s in explain(built, query).stories}
    assert names == ({"stem.conv", "block.conv"} if query == "relu" else {"stem.conv"})


def test_the_chain_of_rewrites(built: Build) -> None:
    story = only(explain(built, "stem.bn"))
    assert story.origins == ("stem.conv", "stem.bn", "stem.relu")
    assert [(r.pass_name, r.phase, r.node) for r in story.rewrites] == [
        ("fold-batch-norm", "fold 1", "stem.bn"),
        ("fuse-conv-epilogue", "fuse 1", "stem.conv"),
        ("fuse-conv-epilogue", "fuse 1", "stem.relu"),
        ("assign-layout", "layout 1", "stem.conv"),
    ]
    assert story.rewrites[0].text == "folded into the weights of Conv 'stem.conv'"
    assert story.refusals == ()
    assert story.reads == ("image.fp16.nhwc",)
    assert story.read_by == ("block.conv",)
    assert story.node.startswith("Conv")


def test_the_reason_for_the_precision(built: Build) -> None:
    assert only(explain(built, "stem.conv")).precision == "fp16: the fastest of fp16, fp32"
    head = only(explain(built, "head.fc"))
    assert head.precision == "fp32: asked for by pattern 'head*'"
    assert head.layer is not None
    assert head.layer.precision == "fp32"


def test_candidates_and_their_refusals(built: Build) -> None:
    story = only(explain(built, "block.conv"))
    assert set(story.candidates) == set(built.choices["block.conv"].candidates)
    found = {c.variant: c.note for c in story.candidates}
    assert found["cpu_conv_depthwise"] == "1 groups of 8 channels: not depthwise"


def test_measured_candidates_come_first_and_fastest() -> None:
    built = build(network(), target="cpu", opt_level=3)
    times = [c.seconds for c in only(explain(built, "head.fc")).candidates]
    measured = [t for t in times if t is not None]
    assert len(measured) > 1
    assert times[: len(measured)] == sorted(measured)


def test_what_was_refused() -> None:
    rng = np.random.default_rng()
    net = nrt.Network("two")
    x = net.input("x", (1, 3, 5, 5))
    y = net.conv2d(x, rng.standard_normal((4, 3, 1, 1)).astype(np.float32), name="conv")
    net.output(y, "y")
    net.output(net.relu(y, name="act"), "z")
    apart = frozenset({"fuse-second-output"})
    built = build(net, target="cpu", opt_level=0, disabled=apart)
    story = only(explain(built, "act"))
    refusal = next(r for r in story.refusals if r.pass_name == "fuse-conv-epilogue")
    assert (refusal.node, "conv" in refusal.text) == ("act", True)
    assert f"  refused:\n    {story.refusals[0]}\n" in str(explain(built, "act"))


def test_a_node_that_became_no_layer(built: Build) -> None:
    story = only(explain(built, "drop"))
    assert story.layer is None
    assert [(r.pass_name, r.text) for r in story.rewrites] == [
        ("remove-identities", "returns its input")
    ]
    assert str(explain(built, "drop")) == (
        "drop: no layer of the plan; see what the passes did to it\n"
        "  rewrites:\n"
        "    remove-identities (simplify 1) at 'drop': returns its input"
    )


def test_all_layers_once_in_order(built: Build) -> None:
    names = [s.name for s in explain(built, "*").stories]
    layers = [layer.name for layer in built.plan.layers]
    assert names[: len(layers)] == layers
    rest = names[len(layers) :]
    assert "drop" in rest
    assert not set(rest) & {name for la in built.plan.layers for name in (la.name, *la.origins)}
    assert len(set(names)) == len(names)


def test_unknown(built: Build) -> None:
    with pytest.raises(InputError, match=r"'stem\.cov'; near names: 'stem\.conv'"):
        explain(built, "stem.cov")
    with pytest.raises(InputError, match=r"near names: 'head\.fc'"):
        explain_plan(built.plan, "hed.fc")


def test_text(built: Build) -> None:
    lines = str(explain(built, "stem.conv")).splitlines()
    layer = built.plan.layers[1]
    assert lines[0] == (
        f"stem.conv: {layer.op} fp16[2,3,9,7]{{nhwc}}, fp16[8,3,3,3], fp32[8,1,1] -> "
        f"fp16[2,8,9,7]{{nhwc}} by {layer.variant}"
    )
    assert lines[1] == "  from stem.conv, stem.bn, stem.relu"
    at = lines.index("  launches:") + 1
    assert re.fullmatch(
        rf"    {layer.variant}; reads arena \d+\+756, weights \d+\+\d+, weights \d+\+32; "
        r"writes arena \d+\+2016(; scratch arena \d+\+\d+)?",
        lines[at],
    )
    # 9 taps of 3 channels, two operations each, then a sum and a maximum, for 2x8x9x7 elements.
    assert lines[lines.index("  work:") + 1].startswith(f"    {(54 + 2) * 1008:,} operations, ")
    assert "    read by block.conv" in lines
    assert "    reads image.fp16.nhwc" in lines
    assert lines[lines.index("  candidates:") + 1].split()[0] == "-"


def test_data(built: Build) -> None:
    explanation = explain(built, "stem*")
    data = json.loads(explanation.to_json())
    assert data["query"] == "stem*"
    (story,) = data["layers"]
    assert story["layer"]["variant"] == built.plan.layers[1].variant
    assert story["rewrites"][0]["pass_name"] == "fold-batch-norm"
    assert len(story["candidates"]) == len(explanation.stories[0].candidates)


def test_html(built: Build) -> None:
    root = ElementTree.fromstring(f"<r>{explain(built, 'stem*')._repr_html_()}</r>")
    heading = root.findtext("h4")
    assert heading is not None
    assert heading.startswith("stem.conv: Conv[")
    items = [e.text or "" for e in root.iter("li")]
    assert any(text.startswith("fold-batch-norm (fold 1)") for text in items)
    assert "cpu_conv_winograd" in [e.text for e in root.iter("td")]


def test_html_is_escaped() -> None:
    plan = cpu_plan(np.zeros((5, 3)))
    layer = replace(plan.layers[0], name=EVIL, op=EVIL, origins=(EVIL,), reason=EVIL, variant=EVIL)
    html = explain_plan(replace(plan, layers=(layer,)), EVIL)._repr_html_()
    root = ElementTree.fromstring(f"<r>{html}</r>")
    assert root.findtext("p") == f"from {CLEAN}"


def test_a_plan_alone() -> None:
    story = only(explain_plan(cuda_plan(), "relu"))
    assert story.rewrites == story.candidates == ()
    assert story.launches == (
        "first, grid 4x1x1, block 64x2x1, cluster 2x1x1, 102400 bytes of shared memory, stream 1; "
        "reads input 0 0+128; writes arena 0+256",
        "second, grid 1x1x1, block 32x1x1, 0 bytes of shared memory, stream 0; "
        "reads arena 0+256, weights 256+256; writes output 0 0+128",
    )
    host = only(explain_plan(cpu_plan(np.zeros((5, 3))), "add"))
    assert host.launches[0] == "set; writes arena 256+64"
    assert host.launches[3] == "copy; reads input 0 0+60; writes output 1 0+60"
    plan = cuda_plan()
    steps = (*plan.steps[:3], replace(plan.steps[3], programmatic=True))
    assert "may start before the launch before it has ended" in str(
        explain_plan(replace(plan, steps=steps), "add")
    )
