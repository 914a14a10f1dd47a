"""Whether launches overlap: decided by both times, remembered, told; and that results are equal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runtime.plans import CUBIN, layer
from runtime.simulated import SimulatedDevice, view

from nrt import builder
from nrt.assembly import overlapped
from nrt.builder import build
from nrt.cuda_kernels.compiler import compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.errors import BuildError
from nrt.frontend.models import resnet
from nrt.frontend.network import Network
from nrt.ir.evaluate import evaluate
from nrt.plan import BufferRef, IoSpec, KernelRef, LaunchStep, Plan, ScalarArg, SetStep, Target
from nrt.plan_check import check_plan
from nrt.plan_clock import plan_clock
from nrt.plan_file import plan_to_bytes
from nrt.programmatic import NOTE, decide
from nrt.runtime import Engine
from nrt.timing_cache import TimingCache
from nrt.trial import relative_error

# Of float32 sums, one fused multiply-add more or less.
TOLERANCE = 1e-5
FP16_TOLERANCE = 1e-2


def chain(
    length: int, size: int, cubin: bytes = CUBIN, entry: str = "mix", arch: str = "sm_90a"
) -> Plan:
    """``x[i] = (x[i] + x[size - 1 - i]) / 2 + step``, ``length`` times between two blocks.

    Every launch reads what other blocks of the launch before it have written, and writes what they
    have read.
    """
    nbytes = 4 * size
    step = -(-nbytes // 256) * 256
    blocks = [BufferRef("arena", 0, nbytes), BufferRef("arena", step, nbytes)]
    steps = []
    for index in range(length):
        source = BufferRef("input", 0, nbytes) if index == 0 else blocks[index % 2]
        target = BufferRef("output", 0, nbytes) if index == length - 1 else blocks[1 - index % 2]
        scalars = (ScalarArg(size, "u32"), ScalarArg(float(index), "f32"))
        grid = (-(-size // 64), 1, 1)
        steps.append(LaunchStep(0, grid, (64, 1, 1), (source, target, *scalars)))
    spec = IoSpec("x", (size,), "fp32")
    return Plan(
        name="chain",
        target=Target("cuda", arch, "Simulated"),
        inputs=(spec,),
        outputs=(replace(spec, name="y"),),
        arena_bytes=2 * step,
        weights=b"",
        cubins=(cubin,),
        kernels=(KernelRef(0, entry),),
        steps=overlapped(steps, True),
        layers=(layer(),),
    )


def chained(x: Any, length: int) -> Any:
    """What `chain` computes."""
    for index in range(length):
        x = (x + x[::-1]) * np.float32(0.5) + np.float32(index)
    return x


def marks(plan: Plan) -> list[bool]:
    return [step.programmatic for step in plan.steps if isinstance(step, LaunchStep)]


PLAN = chain(5, 37)
ON, OFF = [False, True, True, True, True], [False] * 5
Clock = Callable[[Plan, Plan], tuple[float, float]]


class FakeClock:
    """Shows two times, and which plans it was asked for."""

    def __init__(self, early: float, late: float) -> None:
        self.times = (early, late)
        self.asked: list[tuple[Plan, Plan]] = []

    def __call__(self, first: Plan, second: Plan) -> tuple[float, float]:
        self.asked.append((first, second))
        return self.times


# -- the decision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("early", "late", "wanted", "note"),
    [
        (1.5e-3, 1.75e-3, ON, "on: 1.5000 ms, 1.7500 ms without"),
        (2e-3, 1.75e-3, OFF, "off: 1.7500 ms, 2.0000 ms with it"),
        (1e-5, 1e-5, ON, "on: 0.0100 ms, 0.0100 ms without"),
    ],
)
def test_the_faster_plan_is_kept_with_both_times(
    early: float, late: float, wanted: list[bool], note: str
) -> None:
    clock = FakeClock(early, late)
    plan = decide(PLAN, None, clock=clock)
    ((first, second),) = clock.asked
    assert (marks(first), marks(second)) == (ON, OFF)
    assert marks(plan) == wanted
    assert plan.notes == {NOTE: note}
    assert replace(plan, notes={}, steps=PLAN.steps) == PLAN
    check_plan(plan)


def test_what_is_not_measured_says_so() -> None:
    clock = FakeClock(1.0, 2.0)
    single = chain(1, 7)
    for plan, wanted, options, result, note in [
        (PLAN, None, {}, ON, "on, not measured"),
        (PLAN, None, {"clock": clock, "spent": "no time"}, ON, "on, not measured: no time"),
        (PLAN, True, {"clock": clock}, ON, "on, as asked"),
        (PLAN, False, {"clock": clock}, OFF, "off, as asked"),
        (single, None, {"clock": clock}, [False], "off: no launch follows another"),
        (single, True, {"clock": clock}, [False], "off: no launch follows another"),
    ]:
        found = decide(plan, wanted, **options)  # type: ignore[arg-type]
        assert (marks(found), found.notes[NOTE]) == (result, note)
    assert not clock.asked
    other = replace(PLAN, notes={"other": "kept"})
    assert decide(other, True).notes == {"other": "kept", NOTE: "on, as asked"}


def test_a_decision_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    cache = TimingCache(path)
    first = decide(PLAN, None, clock=FakeClock(3e-4, 2.5e-4), cache=cache)
    cache.save()
    other = FakeClock(1e-4, 2e-4)
    for spent in ("", "no time"):
        again = decide(PLAN, None, clock=other, cache=TimingCache(path), spent=spent)
        assert plan_to_bytes(again) == plan_to_bytes(first)
    assert not other.asked
    # Without the device nothing is taken from the cache.
    assert decide(PLAN, None, cache=TimingCache(path)).notes[NOTE] == "on, not measured"


def test_plans_that_execute_something_else_are_measured_anew(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "times.json")
    decide(PLAN, None, clock=FakeClock(3e-4, 2.5e-4), cache=cache)
    (step, *rest) = PLAN.steps
    assert isinstance(step, LaunchStep)
    changes: list[tuple[dict[str, Any], bool]] = [
        ({"name": "other", "layers": (), "versions": {"a": "b"}, "weights": b"7"}, False),
        ({"steps": (replace(step, grid=(2, 1, 1)), *rest)}, True),
        ({"cubins": (CUBIN + b"more",)}, True),
        ({"target": Target("cuda", "sm_90a", "Other")}, True),
        ({"arena_bytes": 4096}, True),
    ]
    for change, differs in changes:
        clock = FakeClock(1e-4, 2e-4)
        plan = decide(replace(PLAN, **change), None, clock=clock, cache=cache)
        assert bool(clock.asked) == differs
        assert marks(plan) == (ON if differs else OFF)


# -- the clock -------------------------------------------------------------------------------------


def mix(source: int, target: int, count: int, add: float) -> None:
    x = view(source, count)
    view(target, count)[:] = (x + x[::-1]) * np.float32(0.5) + np.float32(add)


def test_the_clock_times_both_plans_in_turns() -> None:
    timed: list[tuple[int, int]] = []

    class Device(SimulatedDevice):
        graphs: list[Any] = []  # noqa: RUF012

        def time(self, work: Any, stream: Any, repeats: int = 20, *rest: Any) -> list[float]:
            if work not in self.graphs:
                self.graphs.append(work)
            which = self.graphs.index(work)
            timed.append((which, repeats))
            return [(2e-3, 1e-3)[which]] * repeats

    device = Device({"mix": mix}, 3)
    serial = replace(PLAN, steps=overlapped(PLAN.steps, False))
    assert plan_clock(device)(PLAN, serial) == (2e-3, 1e-3)
    assert timed[:2] == [(0, 1), (1, 1)]
    assert timed[2:] == [(0, 5), (1, 10)] * 10
    assert [p for _, p in device.launches] == [*ON, *OFF]


# -- the build -------------------------------------------------------------------------------------


def small() -> Network:
    net = Network("small")
    x = net.input("x", (2, 3, 9, 7))
    rng = np.random.default_rng()
    w = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    y = net.relu(net.conv2d(x, w, padding=1))
    net.output(net.softmax(net.flatten(net.max_pool2d(y, 2))), "y")
    return net


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_87"])
def test_a_target_without_programmatic_launches_is_refused(target: str) -> None:
    where = target.partition(":")[2] or target
    with pytest.raises(
        BuildError, match=f"programmatic=True: {where} has no programmatic dependent launch, .*9.0"
    ):
        build(small(), target=target, programmatic=True)


def test_a_plan_for_the_cpu_says_nothing() -> None:
    for wanted in (None, False):
        assert build(small(), target="cpu", opt_level=0, programmatic=wanted).plan.notes == {}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NRT_WORKERS", "1")


@pytest.mark.slow
@pytest.mark.usefixtures("caches")
def test_offline_it_is_on_where_the_architecture_has_it() -> None:
    net = small()
    for wanted, note in ((None, "on, not measured"), (True, "on, as asked")):
        plan = build(net, target="cuda:sm_90", opt_level=0, programmatic=wanted).plan
        assert plan.notes == {NOTE: note}
        assert marks(plan) == [False] + [True] * (len(plan.steps) - 1)
    plan = build(net, target="cuda:sm_90", opt_level=0, programmatic=False).plan
    assert plan.notes == {NOTE: "off, as asked"}
    assert not any(marks(plan))
    plan = build(net, target="cuda:sm_80", opt_level=0).plan
    assert plan.notes == {}
    assert not any(marks(plan))


def test_the_builder_measures_under_the_rules_of_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(2e-4, 1e-4)
    monkeypatch.setattr("nrt.builder.plan_clock", lambda cuda: clock)
    runner: Any = SimpleNamespace(cuda=None)

    def decided(here: bool, level: int, budget: float | None, seconds: float) -> str:
        tuning = {"opt_level": level, "tuning_seconds": budget, "cache": None}
        trial = builder._trial(runner if here else None, tuning, seconds)
        return decide(PLAN, None, **trial).notes[NOTE]

    assert decided(True, 1, None, 5.0) == "off: 0.1000 ms, 0.2000 ms with it"
    assert decided(True, 1, 10.0, 5.0) == "off: 0.1000 ms, 0.2000 ms with it"
    assert len(clock.asked) == 2
    assert decided(True, 1, 2.0, 5.0) == "on, not measured: tuning_seconds=2 spent"
    assert decided(True, 0, None, 5.0) == "on, not measured"
    assert decided(False, 3, None, 5.0) == "on, not measured"
    assert len(clock.asked) == 2


# -- on a GPU --------------------------------------------------------------------------------------


def _mix(read_only: bool) -> tuple[Any, Any]:
    """The kernel of `chain`; its loads may be ``ld.global.nc``."""
    from numba import cuda
    from numba.cuda import types

    from nrt.cuda_kernels import ptx
    from nrt.cuda_kernels.codegen import loader, pointer, storer
    from nrt.dtypes import FP32

    u32, f32 = types.uint32, types.float32
    load, store = loader(FP32), storer(FP32)
    if read_only:

        @cuda.jit(device=True, inline="always")
        def load(p: Any, i: Any) -> Any:
            return ptx.bits_float(ptx.ld_global_nc_u32(ptx.at(p, i)))

    def kernel(x: Any, y: Any, n: Any, add: Any) -> None:
        i = u32(u32(cuda.blockIdx.x * cuda.blockDim.x) + cuda.threadIdx.x)
        if i < n:
            a = load(x, i)
            b = load(x, u32(u32(n - u32(1)) - i))
            store(y, i, f32(f32(a + b) * f32(0.5)) + add)

    return kernel, types.void(pointer(FP32), pointer(FP32), u32, f32)


def mix_cubin(read_only: bool = False) -> tuple[bytes, str]:
    from nrt.cuda_kernels.variant import KernelSpec

    spec = KernelSpec(f"{__name__}:_mix", (read_only,), 64)
    cubin = compile_kernel(spec, ARCHS["sm_90a"], cache=False)
    return cubin.code, cubin.entry


@pytest.mark.parametrize("read_only", [False, True])
def test_the_kernel_of_the_chain_compiles(read_only: bool) -> None:
    code, entry = mix_cubin(read_only)
    check_plan(chain(3, 100, code, entry))


@pytest.fixture(scope="module")
def hopper() -> Any:
    from nrt.runtime.cuda import open_device

    device = open_device()
    if device.info.cc != (9, 0):
        pytest.skip(f"{device.info.arch} is not sm_90")
    return device


@pytest.mark.gpu
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("size", [37, 5_003, 300_007])
def test_a_chain_in_one_arena_is_the_same_with_and_without(
    hopper: Any, size: int, read_only: bool
) -> None:
    early = chain(200, size, *mix_cubin(read_only))
    late = replace(early, steps=overlapped(early.steps, False))
    first, second = (Engine(plan, device=hopper) for plan in (early, late))
    rng = np.random.default_rng()
    for _ in range(10):
        x = rng.standard_normal(size).astype(np.float32)
        wanted = second(x)
        assert relative_error(wanted, chained(x, 200)) <= TOLERANCE
        for _ in range(5):
            np.testing.assert_array_equal(first(x), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU to itself: run without -n"
)
def test_a_chain_is_faster_with(hopper: Any) -> None:
    early = chain(200, 5_003, *mix_cubin())
    late = replace(early, steps=overlapped(early.steps, False))
    fast, slow = plan_clock(hopper)(early, late)
    assert fast < slow


@pytest.mark.gpu
def test_a_chain_with_fills_between(hopper: Any) -> None:
    plan = chain(20, 5_003, *mix_cubin())
    half = BufferRef("arena", 0, 4 * 5_003)
    # The tenth launch writes the first block anew: a fill before it changes nothing.
    steps = (*plan.steps[:9], SetStep(half, 255), *plan.steps[9:])
    filled = replace(plan, steps=overlapped(steps, True))
    assert marks(filled) == [False] + [True] * 8 + [False] + [True] * 10
    x = np.random.default_rng().standard_normal(5_003).astype(np.float32)
    np.testing.assert_array_equal(Engine(filled, device=hopper)(x), Engine(plan, device=hopper)(x))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_gives_the_same_bits_with_and_without(
    hopper: Any, tmp_path: Path, precision: str
) -> None:
    net = resnet(depth=18, batch=2, classes=10, size=64)
    cache = tmp_path / "times.json"
    options = {"opt_level": 1, "timing_cache": cache, "programmatic": True, "streams": 1}
    plan = build(net, target="cuda", precision=precision, **options).plan
    assert marks(plan) == [False] + [True] * (len(plan.steps) - 1)
    late = replace(plan, steps=overlapped(plan.steps, False))
    first, second = (Engine(p, device=hopper) for p in (plan, late))
    image = np.random.default_rng().random((2, 3, 64, 64), np.float32)
    wanted = second(image)
    (ref,) = evaluate(net.graph, {net.graph.inputs[0].name: image}).values()
    assert relative_error(wanted, ref) <= FP16_TOLERANCE
    for _ in range(50):
        np.testing.assert_array_equal(first(image), wanted)
    # Replays without the host between them.
    context = first.create_context()
    context.run({plan.inputs[0].name: image})
    context.device_seconds(200)
    np.testing.assert_array_equal(
        context.run({plan.inputs[0].name: image})[plan.outputs[0].name], wanted
    )


@pytest.mark.gpu
def test_a_measured_decision_makes_equal_plans(hopper: Any, tmp_path: Path) -> None:
    del hopper
    net = small()
    first, second = (
        build(net, target="cuda", opt_level=1, timing_cache=tmp_path / "times.json").plan
        for _ in range(2)
    )
    assert first.notes[NOTE].startswith(("on: ", "off: "))
    assert " ms" in first.notes[NOTE]
    assert plan_to_bytes(first) == plan_to_bytes(second)
