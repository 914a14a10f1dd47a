"""Pictures and tables of plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from drawing.test_svg import CLEAN, EVIL
from runtime.plans import cpu_plan, cuda_plan

from nrt.ir.ops import OPS
from nrt.ir.picture import kind
from nrt.plan import BufferRef, HostStep, Layer, Plan
from nrt.plan_view import layer_kind, op_name, step_refs

PLAN = cpu_plan(np.zeros((5, 3)))


def chain(count: int, **names: str) -> Plan:
    """``count`` layers, each reading the one before it and the first."""
    step = next(s for s in PLAN.steps if isinstance(s, HostStep))
    layers = tuple(
        replace(PLAN.layers[0], name=f"layer{i}", reads=tuple(sorted({0, max(i - 1, 0)} - {i})))
        for i in range(count)
    )
    layers = tuple(replace(layer, **names) for layer in layers) if names else layers
    return replace(PLAN, steps=tuple(replace(step, layer=i) for i in range(count)), layers=layers)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_kinds_agree_with_those_of_graphs(op: type) -> None:
    # A plan's views are copies: what was free is no layer.
    found = layer_kind(f"{op.__name__}[add(x0, x1)]")
    wanted = kind(object.__new__(op))
    assert found == {"view": "memory"}.get(wanted, wanted)


def test_op_names() -> None:
    assert op_name("Conv[add(x0, x1); max(r2, 0.0)]") == "Conv"
    assert op_name("MatMul") == "MatMul"
    assert op_name("[x]") == "[x]"


def test_step_refs() -> None:
    arena = BufferRef("arena", 0, 256)
    fork, first, _, second = cuda_plan().steps
    assert list(step_refs(fork)) == []
    assert list(step_refs(first)) == [BufferRef("input", 0, 128), arena]
    assert list(step_refs(second)) == [
        arena, BufferRef("weights", 256, 256), BufferRef("output", 0, 128),
    ]  # fmt: skip
    copy = PLAN.steps[-1]
    assert list(step_refs(copy)) == [BufferRef("input", 0, 60), BufferRef("output", 0, 60, 1)]
    add = PLAN.steps[1]
    assert [r.space for r in step_refs(add)] == ["input", "weights", "arena", "arena"]


def test_arrows_are_what_layers_read() -> None:
    picture = chain(4).picture()
    found = {(a.source, a.target) for a in picture.arrows}
    layers = {("layer:0", f"layer:{i}") for i in (1, 2, 3)}
    layers |= {(f"layer:{a}", f"layer:{b}") for a, b in pairwise(range(4))}
    assert found == layers | {("input:0", f"layer:{i}") for i in range(4)}
    io = PLAN.picture()
    assert {(a.source, a.target) for a in io.arrows} == {
        ("input:0", "layer:0"), ("layer:0", "output:0"), ("layer:0", "output:1"),
    }  # fmt: skip
    assert [b.title for b in cuda_plan().picture().boxes] == ["input", "Pointwise", "output"]


def test_a_table_of_layers() -> None:
    html = cuda_plan()._repr_html_()
    root = ElementTree.fromstring(f"<r>{html}</r>")
    assert root.findtext("p") == (
        "tiny-cuda: built for cuda sm_90a NVIDIA H200; 1 layers, weights 0.0 MiB, arena 0.0 MiB"
    )
    assert [e.text for e in root.iter("td")] == [
        "0", "add", "Pointwise", "fp32[3,5]", "fp32", "cpu_add", "()", "2", "1.5 µs",
        "model/add, model/relu",
    ]  # fmt: skip
    assert "<svg" in html


def test_names_are_escaped() -> None:
    odd: Layer = replace(
        PLAN.layers[0],
        **dict.fromkeys(("name", "op", "config", "reason"), EVIL),
        origins=(EVIL,),
        outputs=(EVIL,),
    )
    plan = replace(PLAN, layers=(odd,), name=EVIL)
    root = ElementTree.fromstring(f"<r>{plan._repr_html_()}</r>")
    cells = [e.text for e in root.iter("td")]
    assert [cells[i] for i in (1, 2, 3, 6, 9)] == [CLEAN] * 5
    for text in (plan.to_dot(), plan.to_mermaid()):
        assert "layer" not in text.split("\n")[0]
    assert "<script>" not in plan.to_mermaid()


def test_six_hundred_layers() -> None:
    plan = chain(600)
    root = ElementTree.fromstring(plan.to_svg())
    assert sum("data-box" in e.attrib for e in root.iter()) == 603
    assert plan.to_dot().count(" -> ") == plan.to_mermaid().count(" --> ") == 600 + 599 + 598
