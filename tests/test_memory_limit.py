"""A limit on a plan's memory: what is refused, when, and what the refusal says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_graphs import Maker

from nrt import fusion_prices
from nrt.builder import build
from nrt.compiled import compile
from nrt.errors import BuildError
from nrt.frontend.network import Network
from nrt.ir.ops import Add, Relu, Softmax
from nrt.lowering import lower
from nrt.memory_limit import check_limit, workspace_room
from nrt.plan import IoSpec, LiveBlock, Peak, Plan, Target

KIB = 1024


def small(batch: int = 4) -> Network:
    """Two convolutions of 16 channels on 16 x 16 pixels: values of 16 KiB an image."""
    net = Network("small")
    rng = np.random.default_rng(3)
    x = net.input("x", (batch, 3, 16, 16))
    for _ in range(2):
        w = rng.standard_normal((16, x.shape[1], 3, 3)).astype(np.float32)
        x = net.relu(net.conv2d(x, w, padding=1))
    net.output(net.softmax(net.flatten(net.max_pool2d(x, 2))), "y")
    return net


def total(plan: Plan) -> int:
    bindings = sum(spec.nbytes for spec in (*plan.inputs, *plan.outputs))
    return plan.arena_bytes + len(plan.weights) + bindings


def test_a_plan_that_fits_exactly_and_one_byte_less() -> None:
    plan = build(small(), target="cpu", opt_level=0).plan
    needed = total(plan)
    again = build(small(), target="cpu", opt_level=0, memory_limit=needed).plan
    assert replace(again, versions={}) == replace(plan, versions={})
    with pytest.raises(BuildError, match=f"or a limit of {needed} bytes$"):
        build(small(), target="cpu", opt_level=0, memory_limit=needed - 1)


def test_before_anything_is_tuned_it_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tuned(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("tuned")

    monkeypatch.setattr(fusion_prices, "tune", tuned)
    with pytest.raises(BuildError) as caught:
        compile(small(), target="cpu", memory_limit="100 KiB")
    text = str(caught.value)
    assert text.startswith("memory_limit of 100.0 KiB: the plan takes at least ")
    # Both values of 4 x 16 x 256 floats; weights 16 x 3 x 9 and 16 x 16 x 9, and what pads them.
    assert "arena 128.0 KiB, fullest at layer '" in text
    assert re.search(r"weights 1\d\.\d KiB, inputs and outputs 28\.0 KiB", text)
    assert re.search(r"with '.*' 64\.0 KiB, '.*' 64\.0 KiB; a smaller batch helps, as does", text)
    assert "precision='fp16', or a limit of " in text
    with pytest.raises(BuildError, match="'lots' is no size of memory"):
        compile(small(), target="cpu", memory_limit="lots")


def test_the_finished_plan_is_refused_with_its_peak() -> None:
    from runtime.plans import layer

    plan = Plan(
        name="big",
        target=Target("cuda", "sm_90a"),
        inputs=(IoSpec("x", (256,), "fp32"),),
        outputs=(IoSpec("y", (256,), "fp32"),),
        arena_bytes=10 * KIB,
        weights=bytes(3 * KIB),
        cubins=(),
        kernels=(),
        steps=(),
        layers=(layer("first"), layer("second")),
        streams=2,
        peak=Peak(9 * KIB, 1, tuple(LiveBlock(f"v{i}", KIB * (3 - i // 2)) for i in range(6))),
    )
    check_limit(plan, 15 * KIB)
    with pytest.raises(BuildError) as caught:
        check_limit(plan, 14 * KIB)
    assert str(caught.value) == (
        "memory_limit of 14.0 KiB: the plan takes 15.0 KiB: weights 3.0 KiB, inputs and outputs "
        "2.0 KiB, arena 10.0 KiB, fullest at layer 'second' (cpu_add) with 'v0' 3.0 KiB, 'v1' 3.0 "
        "KiB, 'v2' 2.0 KiB, 'v3' 2.0 KiB, 2 more; a smaller batch helps, as does precision='fp16', "
        "as does streams=1, or a limit of 15360 bytes"
    )
    bare = replace(plan, arena_bytes=0, layers=(), peak=Peak(), streams=1)
    with pytest.raises(BuildError, match=r"arena 0 B; a smaller batch helps, or a limit of 5120 b"):
        check_limit(bare, KIB)


def test_room_is_what_the_values_leave() -> None:
    m = Maker()
    x = m.input("x", 4, 64)  # 1 KiB
    a = m.op(Softmax(), x)
    b = m.op(Softmax(), a)
    c = m.op(Add(), b, a)
    m.out("y", m.op(Relu(), m.op(Softmax(), c)))
    lowered = lower(m.graph)
    softmax, add = lowered.tasks[0].problem, lowered.tasks[2].problem
    room = workspace_room(lowered, 10 * KIB)
    # x and y; beside a; beside a and b; beside a, b and c.
    assert room[softmax] == (10 - 2 - 2) * KIB
    assert room[add] == (10 - 2 - 3) * KIB
    # c may be written over b.
    assert workspace_room(lowered, 4 * KIB)[add] == 0
    with pytest.raises(BuildError, match=r"takes at least 4\.0 KiB: .*arena 2\.0 KiB, fullest at"):
        workspace_room(lowered, 4 * KIB - 1)


@pytest.mark.slow
def test_large_workspaces_are_refused_among_the_candidates(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NRT_WORKERS", "1")
    plan = build(small(), target="cuda:sm_80", opt_level=0).plan
    largest = plan.peak.alive[0]
    assert (largest.name.split()[0], largest.nbytes) == ("workspace", 128 * KIB)
    tight = build(
        small(), target="cuda:sm_80", opt_level=0, memory_limit=total(plan) - largest.nbytes // 2
    )
    notes = [c.note for choice in tight.choices.values() for c in choice.candidates]
    assert any("needs a workspace of" in n and "memory_limit leaves" in n for n in notes)
    assert total(tight.plan) < total(plan)
