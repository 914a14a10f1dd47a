"""On how many streams: decided by both times, remembered, told; and that results are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_programmatic import FakeClock
from test_programmatic import chain as chain_plan

from nrt.builder import build
from nrt.compiled import compile
from nrt.errors import BuildError
from nrt.frontend.network import Network
from nrt.ir.evaluate import evaluate
from nrt.plan import ForkStep, JoinStep, LaunchStep, Plan
from nrt.plan_check import check_plan
from nrt.plan_file import plan_to_bytes
from nrt.runtime import Engine
from nrt.schedule import Schedule, Work, list_schedule
from nrt.streams import NOTE, check_wanted, decide_streams
from nrt.timing_cache import TimingCache
from nrt.trial import relative_error

TOLERANCE = 1e-5
FP16_TOLERANCE = 1e-2
US = 1e-6

SERIAL = chain_plan(3, 37)
SEVERAL = replace(SERIAL, streams=3, steps=(ForkStep(0, (1, 2)), *SERIAL.steps))


def halves(share: float) -> Schedule:
    """A fork into three branches of 20 us, each on ``share`` of the GPU."""
    branches = [Work(20 * US, share, (0,)) for _ in range(3)]
    return list_schedule([Work(5 * US), *branches, Work(5 * US, 1.0, (1, 2, 3))], 4)


GOOD = halves(0.3)
SMALL = list_schedule([Work(100 * US), Work(2 * US, 0.5, (0,)), Work(3 * US, 0.5, (0,))], 4)
NONE = halves(1.0)


class Parallel:
    """Makes the plan; counts how often it was asked to."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Plan:
        self.made += 1
        return SEVERAL


def test_the_schedules_of_these_tests() -> None:
    assert (GOOD.streams, f"{GOOD.gain:.1%}") == (3, "53.7%")
    assert (SMALL.streams, f"{SMALL.gain:.1%}") == (2, "1.7%")
    assert NONE.streams == 1


@pytest.mark.parametrize(
    ("several", "one", "streams", "note"),
    [
        (1.5e-3, 1.75e-3, 3, "3: 1.5000 ms, 1.7500 ms on one"),
        (2e-3, 1.75e-3, 1, "1: 1.7500 ms, 2.0000 ms on 3"),
        (1e-5, 1e-5, 1, "1: 0.0100 ms, 0.0100 ms on 3"),
    ],
)
def test_the_faster_plan_is_kept_with_both_times(
    several: float, one: float, streams: int, note: str
) -> None:
    clock = FakeClock(several, one)
    plan = decide_streams(SERIAL, Parallel(), GOOD, None, clock=clock)
    assert clock.asked == [(SEVERAL, SERIAL)]
    assert replace(plan, notes={}) == (SEVERAL if streams == 3 else SERIAL)
    assert plan.notes == {NOTE: note}


@pytest.mark.parametrize(
    ("schedule", "wanted", "options", "made", "note"),
    [
        (GOOD, 1, {"clock": True}, 0, "1, as asked"),
        (GOOD, 4, {"clock": True}, 1, "3, as asked"),
        (GOOD, 4, {}, 1, "3, as asked"),
        (SMALL, 2, {}, 1, "2, as asked"),
        (SMALL, None, {"clock": True}, 0, "1: the schedule gains 1.7% on 2, not measured"),
        (NONE, 4, {}, 0, "1: no two layers gain from more"),
        (NONE, None, {"clock": True}, 0, None),
        (GOOD, None, {}, 0, "1, not measured; the schedule gains 53.7% on 3"),
        (
            GOOD,
            None,
            {"clock": True, "spent": "no time"},
            1,
            "1, not measured; the schedule gains 53.7% on 3; no time",
        ),
    ],
)
def test_what_is_not_measured_says_so(
    schedule: Schedule, wanted: int | None, options: dict[str, Any], made: int, note: str | None
) -> None:
    clock, parallel = FakeClock(1.0, 2.0), Parallel()
    if options.pop("clock", False):
        options = {**options, "clock": clock}
    serial = replace(SERIAL, notes={"other": "kept"})
    plan = decide_streams(serial, parallel, schedule, wanted, **options)
    assert (parallel.made, clock.asked) == (made, [])
    chosen = wanted is not None and wanted > 1 and made
    if note is not None:
        assert plan.notes[NOTE] == note
    assert plan.steps == (SEVERAL if chosen else SERIAL).steps
    assert chosen or plan.notes["other"] == "kept"


def test_a_decision_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    cache = TimingCache(path)
    first = decide_streams(SERIAL, Parallel(), GOOD, None, clock=FakeClock(2e-4, 3e-4), cache=cache)
    assert first.streams == 3
    cache.save()
    other = FakeClock(2e-4, 1e-4)
    for spent in ("", "no time"):
        again = decide_streams(
            SERIAL, Parallel(), GOOD, None, clock=other, cache=TimingCache(path), spent=spent
        )
        assert again == first
    assert not other.asked
    # Another program is measured anew.
    (step, *rest) = SERIAL.steps
    assert isinstance(step, LaunchStep)
    changed = replace(SERIAL, steps=(replace(step, grid=(7, 1, 1)), *rest))
    plan = decide_streams(changed, Parallel(), GOOD, None, clock=other, cache=TimingCache(path))
    assert (len(other.asked), plan.streams) == (1, 1)


@pytest.mark.parametrize("streams", [0, -1, 65, True, 2.0, "4"])
def test_an_impossible_number_of_streams(streams: Any) -> None:
    with pytest.raises(BuildError, match=r"streams=.*: expected a whole number from 1 to 64, or N"):
        check_wanted(streams, "cuda")


def test_the_cpu_has_one_stream() -> None:
    for wanted in (None, 1):
        plan = build(branchy(), target="cpu", opt_level=0, streams=wanted).plan
        assert plan.streams == 1
    assert "streams" not in plan.notes
    with pytest.raises(BuildError, match="streams=2: the CPU target runs layers one after another"):
        compile(branchy(), target="cpu", streams=2)


# -- the build -------------------------------------------------------------------------------------


def branchy(modules: int = 2, channels: int = 32, size: int = 8) -> Network:
    """Modules of three branches each into one Concat."""
    net = Network("branchy")
    rng = np.random.default_rng(7)

    def conv(x: Any, out: int, kernel: int) -> Any:
        fan = x.shape[1] * kernel * kernel
        w = rng.standard_normal((out, x.shape[1], kernel, kernel)) / np.sqrt(fan)
        return net.relu(net.conv2d(x, w.astype(np.float32), padding=kernel // 2))

    x = conv(net.input("x", (1, 8, size, size)), channels, 3)
    for _ in range(modules):
        ends = [
            conv(x, channels // 2, 1),
            conv(conv(x, channels // 4, 1), channels // 4, 3),
            conv(conv(conv(x, channels // 4, 1), channels // 4, 3), channels // 4, 3),
        ]
        x = net.concat(ends, axis=1)
    net.output(net.global_avg_pool(x), "y")
    return net


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NRT_WORKERS", "1")


@pytest.mark.slow
@pytest.mark.usefixtures("caches")
def test_offline_builds_on_streams() -> None:
    net = branchy()
    options: dict[str, Any] = {"target": "cuda:sm_90", "opt_level": 0, "precision": "fp16"}
    auto = build(net, **options).plan
    assert auto.streams == 1
    assert auto.notes[NOTE].startswith("1, not measured; the schedule gains ")
    several = build(net, **options, streams=4).plan
    assert several.notes[NOTE] == f"{several.streams}, as asked"
    assert 2 <= several.streams <= 4
    check_plan(several)
    assert any(isinstance(s, ForkStep) for s in several.steps)
    one = build(net, **options, streams=1).plan
    assert one.notes[NOTE] == "1, as asked"
    assert replace(one, notes={}) == replace(auto, notes={})
    # The same kernels on the same operands, in another order.
    assert sorted(s.layer for s in one.steps if isinstance(s, LaunchStep)) == sorted(
        s.layer for s in several.steps if isinstance(s, LaunchStep)
    )


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu() -> Any:
    from nrt.runtime.cuda import open_device

    return open_device()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("programmatic", [None, False])
def test_a_branchy_network_gives_the_same_bits_on_one_stream_and_on_four(
    gpu: Any, tmp_path: Path, precision: str, programmatic: bool | None
) -> None:
    net = branchy(modules=4, channels=64, size=14)

    def make(streams: int) -> Plan:
        return build(
            net,
            target="cuda",
            precision=precision,
            opt_level=1,
            timing_cache=tmp_path / "times.json",
            programmatic=programmatic,
            streams=streams,
        ).plan

    one, four = make(1), make(4)
    assert one.streams == 1
    assert four.streams >= 2
    assert any(isinstance(s, JoinStep) for s in four.steps)
    first, second = Engine(one, device=gpu), Engine(four, device=gpu)
    name = net.graph.inputs[0].name
    rng = np.random.default_rng()
    for _ in range(5):
        image = rng.standard_normal((1, 8, 14, 14), np.float32)
        wanted = first(image)
        (ref,) = evaluate(net.graph, {name: image}).values()
        assert relative_error(wanted, ref) <= FP16_TOLERANCE
        for _ in range(20):
            np.testing.assert_array_equal(second(image), wanted)
    # Replays without the host between them: one begins when all streams of the last have ended.
    context = second.create_context()
    context.run({name: image})
    context.device_seconds(200)
    np.testing.assert_array_equal(context.run({name: image})[four.outputs[0].name], wanted)


@pytest.mark.gpu
def test_branches_of_two_inputs_begin_on_streams_of_their_own(gpu: Any, tmp_path: Path) -> None:
    """A stream that is forked before anything was launched."""
    net = Network("pair")
    rng = np.random.default_rng(5)
    ends = []
    for name in ("a", "b"):
        x = net.input(name, (1, 8, 9, 7))
        for _ in range(3):
            w = rng.standard_normal((8, 8, 3, 3)) / np.sqrt(72)
            x = net.relu(net.conv2d(x, w.astype(np.float32), padding=1))
        ends.append(x)
    net.output(net.concat(ends, axis=1), "y")
    plan = build(
        net, target="cuda", opt_level=1, timing_cache=tmp_path / "times.json", streams=2
    ).plan
    assert plan.streams == 2
    first = plan.steps[0]
    assert isinstance(first, ForkStep)
    engine = Engine(plan, device=gpu)
    for _ in range(5):
        data = {n: rng.standard_normal((1, 8, 9, 7)).astype(np.float32) for n in ("a", "b")}
        (ref,) = evaluate(net.graph, data).values()
        assert relative_error(engine.run(data)["y"], ref) <= TOLERANCE


@pytest.mark.gpu
def test_a_measured_decision_makes_equal_plans(gpu: Any, tmp_path: Path) -> None:
    del gpu
    net = branchy(modules=4, channels=64, size=14)
    first, second = (
        build(
            net,
            target="cuda",
            precision="fp16",
            opt_level=1,
            timing_cache=tmp_path / "times.json",
        ).plan
        for _ in range(2)
    )
    assert " ms" in first.notes[NOTE] or "not measured" in first.notes[NOTE]
    assert plan_to_bytes(first) == plan_to_bytes(second)
