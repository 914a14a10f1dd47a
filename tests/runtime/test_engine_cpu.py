from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nrt.errors import ContextBusyError, InputError, PlanError, PlanTargetError
from nrt.plan import BufferRef, CopyStep, HostStep, IoSpec, Plan, SetStep, Target
from nrt.plan_file import write_plan
from nrt.runtime import Engine, load
from nrt.runtime.timing import measure

from .plans import bind, cpu_plan, cuda_plan, layer, tensor

WEIGHTS = np.random.default_rng().standard_normal((5, 3)).astype(np.float32)


def make() -> Engine:
    return Engine(cpu_plan(WEIGHTS), bind)


def random() -> Any:
    return np.random.default_rng().standard_normal((3, 5)).astype(np.float32)


def expected(x: Any) -> Any:
    return (x + WEIGHTS.T) * 2


def test_values() -> None:
    engine = make()
    x = random()
    y, z = engine(x)
    np.testing.assert_array_equal(y, expected(x))
    np.testing.assert_array_equal(z, x)
    named = engine.run({"x": x})
    assert list(named) == ["y", "z"]
    np.testing.assert_array_equal(named["y"], y)


def test_one_output_comes_alone() -> None:
    plan = cpu_plan(WEIGHTS)
    engine = Engine(replace(plan, outputs=plan.outputs[:1], steps=plan.steps[:3]), bind)
    x = random()
    np.testing.assert_array_equal(engine(x), expected(x))
    np.testing.assert_array_equal(engine.create_context()(x), expected(x))


def test_outputs_belong_to_the_caller() -> None:
    engine = make()
    first, second = random(), random()
    y, z = engine(first)
    kept = y.copy()
    z[...] = 0
    engine(second)
    np.testing.assert_array_equal(y, kept)
    assert not z.any()
    assert not np.shares_memory(engine(first)[0], y)


def test_inputs_are_not_changed_nor_kept() -> None:
    engine = make()
    x = random()
    x.flags.writeable = False
    y, z = engine(x)
    assert not np.shares_memory(z, x)
    np.testing.assert_array_equal(y, expected(x))


@pytest.mark.parametrize(
    "view",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.broadcast_to(x[:1], (3, 5)),
        lambda x: np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 5),
    ],
    ids=["fortran", "strided", "reversed", "broadcast", "unaligned"],
)
def test_any_memory_layout(view: Any) -> None:
    x = view(random())
    y, z = make()(x)
    np.testing.assert_array_equal(y, expected(x))
    np.testing.assert_array_equal(z, x)


def test_nan_passes() -> None:
    x = random()
    x[1, 2], x[0, 0] = np.nan, np.inf
    y, _ = make()(x)
    np.testing.assert_array_equal(y, expected(x))


class Foreign:
    """An array of another library, in host memory."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_dlpack_inputs() -> None:
    x = random()
    y, _ = make()(Foreign(x.T.copy().T))
    np.testing.assert_array_equal(y, expected(x))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "int64", "bool", "uint8", "fp8e4m3"])
def test_every_dtype_passes_through(dtype: str) -> None:
    spec = IoSpec("x", (2, 7), dtype)
    plan = Plan(
        "copy",
        Target("cpu", "x86_64"),
        (spec,),
        (replace(spec, name="y"),),
        0,
        b"",
        (),
        (),
        (CopyStep(BufferRef("input", 0, spec.nbytes), BufferRef("output", 0, spec.nbytes)),),
        (layer(),),
    )
    numpy_dtype = {"bf16": ml_dtypes.bfloat16, "fp8e4m3": ml_dtypes.float8_e4m3fn}.get(
        dtype, dtype.replace("fp", "float")
    )
    x = np.random.default_rng().integers(0, 2, (2, 7)).astype(numpy_dtype)
    y = Engine(plan, bind)(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 1, 1)])
def test_awkward_shapes(shape: tuple[int, ...]) -> None:
    spec = IoSpec("x", shape, "fp32")
    size = BufferRef("input", 0, spec.nbytes)
    plan = Plan(
        "copy",
        Target("cpu", "x86_64"),
        (spec,),
        (replace(spec, name="y"),),
        0,
        b"",
        (),
        (),
        (CopyStep(size, BufferRef("output", 0, spec.nbytes)),),
        (layer(),),
    )
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    x = np.asarray(x, np.float32)
    y = Engine(plan, bind)(x)
    assert y.shape == shape
    np.testing.assert_array_equal(y, x)


# Inputs that do not fit


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.zeros((3, 5)),
            r"input 'x': got float64\[3, 5\], expected fp32\[3, 5\]; "
            r"convert with x.astype\(np.float32\)$",
        ),
        (
            np.zeros((5, 3), np.float32),
            r"got float32\[5, 3\], expected fp32\[3, 5\]; reshape or pad",
        ),
        (np.zeros((3, 5), ">f4"), r"got >f4\[3, 5\], expected fp32"),
        (np.zeros((3, 5), np.complex64), r"got complex64\[3, 5\], expected fp32"),
        ([[1.0] * 5] * 3, r"got float64\[3, 5\]"),
        ("text", r"got str\d+\[\], expected fp32"),
        ([[1.0], [2.0, 3.0]], "list is no array"),
    ],
)
def test_wrong_inputs(value: Any, message: str) -> None:
    engine = make()
    with pytest.raises(InputError, match=message):
        engine(value)
    x = random()  # the engine is usable after a failure
    np.testing.assert_array_equal(engine(x)[0], expected(x))


def test_the_hint_names_ml_dtypes() -> None:
    plan = cpu_plan(WEIGHTS)
    spec = IoSpec("x", (3, 10), "bf16")  # as many bytes
    engine = Engine(replace(plan, inputs=(spec,)), bind)
    with pytest.raises(InputError, match=r"x.astype\(ml_dtypes.bfloat16\)"):
        engine(np.zeros((3, 10), np.float32))


def test_names_and_numbers_of_inputs() -> None:
    engine = make()
    with pytest.raises(
        InputError, match=r"missing \['x'\], unknown \['X'\]; expected 'x' fp32\[3, 5\]"
    ):
        engine.run({"X": random()})
    with pytest.raises(InputError, match=r"got 2 input\(s\), expected 1: 'x' fp32\[3, 5\]"):
        engine(random(), random())


def test_device_memory_is_refused() -> None:
    class Gpu:
        __cuda_array_interface__ = None

    class Tensor(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__()

    with pytest.raises(InputError, match="Gpu lies in GPU memory, but the plan is for the CPU"):
        make()(Gpu())
    with pytest.raises(InputError, match="Tensor lies in GPU memory"):
        make()(Tensor(random()))
    with pytest.raises(InputError, match="plan 'tiny' is for the CPU: device=True needs a CUDA"):
        make().run({"x": random()}, device=True)


# Contexts


def test_enqueue_and_outputs() -> None:
    context = make().create_context()
    first, second = random(), random()
    with pytest.raises(InputError, match=r"inputs \['x'\] are not bound; call set_input"):
        context.enqueue()
    with pytest.raises(InputError, match="output 'y': nothing was enqueued yet"):
        context.output("y")
    context.set_input("x", first)
    pending = context.enqueue()
    bound = second.copy()
    context.set_input("x", bound)
    bound[...] = 0  # set_input took a copy
    later = context.enqueue()
    context.synchronize()
    np.testing.assert_array_equal(pending.result()["y"], expected(first))
    np.testing.assert_array_equal(later.result()["y"], expected(second))
    np.testing.assert_array_equal(context.output("z"), second)
    context.output("z")[...] = 0
    np.testing.assert_array_equal(context.output("z"), second)
    with pytest.raises(InputError, match="input 'w' is unknown; expected one of 'x' fp32"):
        context.set_input("w", first)
    with pytest.raises(InputError, match="output 'w' is unknown; expected one of 'y' fp32"):
        context.output("w")
    with pytest.raises(InputError, match="a CPU plan runs on no stream"):
        context.enqueue(stream=1)


def waiting_engine(entered: threading.Event, leave: threading.Event) -> Engine:
    def slow(variant: str, problem: Any, config: Any) -> Any:
        call = bind(variant, problem, config)

        def wait(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
            entered.set()
            assert leave.wait(10)
            call(inputs, outputs, workspace)

        return wait

    return Engine(cpu_plan(WEIGHTS), slow)


def test_a_context_refuses_a_second_thread() -> None:
    entered, leave = threading.Event(), threading.Event()
    context = waiting_engine(entered, leave).create_context()
    x = random()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(context(x)))
    thread.start()
    assert entered.wait(10)
    for call in (
        lambda: context(x),
        lambda: context.run({"x": x}),
        lambda: context.set_input("x", x),
        context.enqueue,
        context.synchronize,
    ):
        with pytest.raises(ContextBusyError, match=r"plan 'tiny' is in use .*create_context\(\)"):
            call()
    leave.set()
    thread.join()
    np.testing.assert_array_equal(results[0][0], expected(x))
    np.testing.assert_array_equal(context(x)[0], expected(x))


def test_an_engine_is_for_all_threads() -> None:
    engine = make()
    inputs = [random() for _ in range(8)]
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        own = engine.create_context()
        for _ in range(20):
            results[i] = engine(inputs[i])[0]
            np.testing.assert_array_equal(own(inputs[i])[0], results[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(inputs):
        np.testing.assert_array_equal(results[i], expected(x))


def test_a_failed_kernel_leaves_the_engine_usable() -> None:
    fail = [True]

    def fragile(variant: str, problem: Any, config: Any) -> Any:
        call = bind(variant, problem, config)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
            if fail[0]:
                raise FloatingPointError("no")
            call(inputs, outputs, workspace)

        return run

    engine = Engine(cpu_plan(WEIGHTS), fragile)
    x = random()
    with pytest.raises(FloatingPointError):
        engine(x)
    fail[0] = False
    np.testing.assert_array_equal(engine(x)[0], expected(x))


# Engines


def test_equal_steps_are_bound_once() -> None:
    bound: list[str] = []

    def counting(variant: str, problem: Any, config: Any) -> Any:
        bound.append(variant)
        return bind(variant, problem, config)

    plan = cpu_plan(WEIGHTS)
    Engine(replace(plan, steps=plan.steps[:3] + plan.steps[1:]), counting)
    assert bound == ["add", "scale"]


def test_save_and_load(tmp_path: Path) -> None:
    engine = make()
    engine.save(tmp_path / "a.plan")
    again = load(tmp_path / "a.plan", bind)
    assert again.plan == engine.plan
    x = random()
    np.testing.assert_array_equal(again(x)[0], expected(x))
    assert repr(again) == (
        "Engine('tiny', cpu x86_64, x: fp32[3, 5] -> y: fp32[3, 5], z: fp32[3, 5])"
    )


def test_a_cpu_plan_needs_host_kernels(tmp_path: Path) -> None:
    write_plan(cpu_plan(WEIGHTS), tmp_path / "a.plan")
    with pytest.raises(PlanTargetError, match=r"'tiny' is for the CPU .*nrt.load\(path\), or pass"):
        load(tmp_path / "a.plan")


def test_an_unsound_plan_makes_no_engine() -> None:
    with pytest.raises(PlanError, match="unsound plan"):
        Engine(replace(cpu_plan(WEIGHTS), arena_bytes=8), bind)


def test_set_steps_fill() -> None:
    spec = IoSpec("y", (5,), "uint8")
    plan = Plan(
        "fill",
        Target("cpu", "x86_64"),
        (),
        (spec,),
        0,
        b"",
        (),
        (),
        (SetStep(BufferRef("output", 0, 5), 3), SetStep(BufferRef("output", 1, 2), 255)),
        (layer(),),
    )
    assert Engine(plan, bind)().tolist() == [3, 255, 255, 3, 3]


# Timing


def test_measure() -> None:
    engine = make()
    latencies = measure(engine, duration=0.02, warm_up=0.0)
    assert latencies.device_seconds is None
    assert latencies.host_seconds.size > 5
    assert (latencies.host_seconds > 0).all()
    assert latencies.host_seconds.sum() < 1
    one = measure(engine.create_context(), duration=0, warm_up=0, inputs={"x": random()})
    assert one.host_seconds.size == 1
    with pytest.raises(InputError, match=r"duration -1 s, warm-up 0.5 s: expected 0 or more"):
        measure(engine, duration=-1)


def test_layer_seconds() -> None:
    plan = cpu_plan(WEIGHTS)
    second = replace(plan.steps[2], layer=1)
    assert isinstance(second, HostStep)
    steps = (*plan.steps[:2], second, plan.steps[3])
    context = Engine(
        replace(plan, steps=steps, layers=(layer("a"), layer("b"))), bind
    ).create_context()
    seconds = context.layer_seconds({"x": random()}, repeats=3)
    assert len(seconds) == 2
    assert all(0 < s < 1 for s in seconds)
    assert context.device_seconds() is None


def test_cuda_plan_without_a_gpu() -> None:
    from nrt.errors import DeviceError
    from nrt.runtime.cuda import device_count

    if device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=r"run `nrt doctor`"):
        Engine(cuda_plan())


def test_views_of_a_slice() -> None:
    """A step may read a strided part of an input and write a strided part of an output."""
    plan = cpu_plan(WEIGHTS)
    half = replace(
        plan.steps[2],
        inputs=(tensor("input", (3, 2), (5, 2), offset=4, nbytes=56),),
        outputs=(tensor("output", (3, 2), (5, 3), nbytes=60),),
    )
    steps = (SetStep(BufferRef("output", 0, 60), 0), half, plan.steps[3])
    x = random()
    y, _ = Engine(replace(plan, steps=steps), bind)(x)
    want = np.zeros((3, 5), np.float32)
    want[:, [0, 3]] = x[:, [1, 3]] * 2
    np.testing.assert_array_equal(y, want)
