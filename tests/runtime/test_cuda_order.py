"""The CUDA executor on a simulated device: who waits for whom, and whose memory it is."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.errors import InputError, PlanTargetError
from nrt.plan import BufferRef, CopyStep, Target
from nrt.runtime import DeviceTensor, Engine

from .simulated import SimulatedDevice, view
from .sum_plan import BYTES, WEIGHTS, N, check, numbers, plan


def add(a: int, b: int, out: int, count: int) -> None:
    view(out, count)[:] = view(a, count) + view(b, count)


def scale(a: int, out: int, factor: float, count: int, nothing: int) -> None:
    assert nothing == 0
    view(out, count)[:] = view(a, count) * factor


def make(seed: int) -> tuple[Engine, SimulatedDevice]:
    device = SimulatedDevice({"add": add, "scale": scale}, seed)
    return Engine(plan(), device=device), device


@pytest.mark.parametrize("seed", range(5))
def test_run(seed: int) -> None:
    engine, _ = make(seed)
    for _ in range(4):
        a, b = numbers(), numbers()
        check(engine.run({"b": b, "a": a}), a, b)
    u, v = engine(a, b)
    check({"u": u, "v": v}, a, b)


@pytest.mark.parametrize("seed", range(60))
def test_any_sequence_of_calls(seed: int) -> None:
    """Random calls under random schedules: every result is that of its own inputs."""
    rng = random.Random(seed)
    engine, device = make(seed)
    context = engine.create_context()
    other = device.stream()
    bound: dict[str, Any] = {}
    waiting: list[tuple[Any, Any, Any]] = []
    for _ in range(40):
        action = rng.choice(["set", "set", "enqueue", "enqueue", "result", "run", "output", "drop"])
        if action == "set" or len(bound) < 2:
            name, value = rng.choice("ab"), numbers()
            context.set_input(name, value)
            bound[name] = value.copy()
            value[:] = np.nan  # the caller's to change
        elif action == "enqueue":
            pending = context.enqueue(rng.choice([None, None, other]))
            waiting.append((pending, bound["a"], bound["b"]))
        elif action == "result" and waiting:
            pending, a, b = rng.choice(waiting)
            check(pending.result(), a, b)
            tensors = pending.result(device=True)
            check({k: t.numpy() for k, t in tensors.items()}, a, b)
        elif action == "output" and waiting:
            pending, a, b = waiting[-1]
            check({"u": context.output("u"), "v": context.output("v")}, a, b)
            waiting = waiting[-1:]
        elif action == "run":
            bound = {"a": numbers(), "b": numbers()}
            check(context.run(bound), bound["a"], bound["b"])
        elif action == "drop":
            waiting = waiting[1:]
    for pending, a, b in waiting:
        check(pending.result(), a, b)
    context.synchronize()


@pytest.mark.parametrize("seed", range(60))
def test_device_outputs_outlive_later_runs(seed: int) -> None:
    engine, _ = make(seed)
    kept = []
    for _ in range(4):
        a, b = numbers(), numbers()
        kept.append((engine.run({"a": a, "b": b}, device=True), a, b))
    for tensors, a, b in kept:
        assert all(isinstance(t, DeviceTensor) for t in tensors.values())
        check({name: t.numpy() for name, t in tensors.items()}, a, b)


def test_device_tensors_describe_themselves() -> None:
    engine, device = make(0)
    u, _ = engine(numbers(), numbers(), device=True)
    assert (u.name, u.shape, u.dtype, u.nbytes) == ("u", (N,), "fp32", BYTES)
    assert u.__dlpack_device__() == (2, 0)
    interface = u.__cuda_array_interface__
    assert interface["shape"] == (N,)
    assert interface["typestr"] == "<f4"
    assert interface["data"] == (u.ptr, False)
    assert interface["version"] == 3
    assert interface["stream"] in {s.handle for s in device.streams}
    u.dtype = "bf16"
    assert not hasattr(u, "__cuda_array_interface__")
    assert "DeviceTensor('u', bf16[37]" in repr(u)


class OnDevice:
    """Another library's array in simulated device memory."""

    def __init__(self, array: Any, strides: Any = None, stream: int | None = None) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": strides,
            "version": 3,
            "stream": stream,
        }
        self.array = array


class OnDeviceDLPack:
    def __init__(self, array: Any, device: int = 0) -> None:
        self.array, self.device, self.stream = array, device, None

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.stream = stream
        return self.array.__dlpack__()


@pytest.mark.parametrize("kind", [OnDevice, OnDeviceDLPack])
@pytest.mark.parametrize("seed", range(5))
def test_inputs_in_device_memory(seed: int, kind: Any) -> None:
    engine, device = make(seed)
    a, b = numbers(), numbers()
    value = kind(a)
    check(engine.run({"a": value, "b": b}), a, b)
    if kind is OnDeviceDLPack:
        assert value.stream in {s.handle for s in device.streams}


@pytest.mark.parametrize("seed", range(20))
def test_an_input_that_is_still_being_written(seed: int) -> None:
    engine, device = make(seed)
    producer = device.stream()
    a, b, late = numbers(), numbers(), np.full(N, np.nan, np.float32)
    device.push(producer, lambda: np.copyto(late, a))
    check(engine.run({"a": OnDevice(late, stream=producer.handle), "b": b}), a, b)


def test_device_inputs_that_do_not_fit() -> None:
    engine, _ = make(0)
    b = numbers()
    with pytest.raises(
        InputError, match=r"input 'a': got fp64\[37\], expected fp32\[37\]; convert"
    ):
        engine(OnDevice(np.zeros(N)), b)
    with pytest.raises(
        InputError, match=r"'a': got fp32\[3\], expected fp32\[37\]; reshape or pad"
    ):
        engine(OnDeviceDLPack(np.zeros(3, np.float32)), b)
    with pytest.raises(InputError, match=r"has strides \(2,\), expected dense .*x.contiguous\(\)"):
        engine(OnDevice(np.zeros(2 * N, np.float32)[::2], strides=(8,)), b)
    with pytest.raises(InputError, match="lies on CUDA device 3, the engine is on 0; move it"):
        engine(OnDeviceDLPack(b, device=3), b)
    a = numbers()
    check(engine.run({"a": a, "b": b}), a, b)


def test_unbound_inputs() -> None:
    engine, _ = make(0)
    context = engine.create_context()
    context.set_input("b", numbers())
    with pytest.raises(InputError, match=r"inputs \['a'\] are not bound"):
        context.enqueue()


def test_a_run_without_waiting_uses_two_slots_and_one_arena() -> None:
    engine, _ = make(1)
    context = engine.create_context()
    results = []
    for _ in range(6):
        a, b = numbers(), numbers()
        context.set_input("a", a)
        context.set_input("b", b)
        results.append((context.enqueue(), a, b))
    for pending, a, b in results:
        check(pending.result(), a, b)
    assert len(context._runner._slots) == 2  # type: ignore[union-attr]


def test_a_plan_without_inputs() -> None:
    base = plan()
    weights = BufferRef("weights", 256, BYTES)
    steps = (CopyStep(weights, BufferRef("output", 0, BYTES)),)
    spec = base.outputs[:1]
    bare = replace(base, inputs=(), outputs=spec, steps=steps, streams=1)
    device = SimulatedDevice({"add": add, "scale": scale}, 0)
    context = Engine(bare, device=device).create_context()
    pending = context.enqueue()
    np.testing.assert_array_equal(context(), WEIGHTS)
    np.testing.assert_array_equal(pending.result()["u"], WEIGHTS)


def test_another_architecture() -> None:
    device = SimulatedDevice({"add": add, "scale": scale}, 0)
    with pytest.raises(PlanTargetError, match="was built for sm_80, this device is sm_90a"):
        Engine(replace(plan(), target=Target("cuda", "sm_80")), device=device)


def test_times() -> None:
    engine, _ = make(0)
    context = engine.create_context()
    a, b = numbers(), numbers()
    context.run({"a": a, "b": b})
    assert context.device_seconds(7) == [1e-3] * 7
    # Five steps of work, each timed at a millisecond; fork and join take none.
    assert context.layer_seconds({"a": a, "b": b}, 3) == [pytest.approx(5e-3)]
    check(context.run({"a": a, "b": b}), a, b)
