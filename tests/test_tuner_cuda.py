"""The bench of GPU kernels on a simulated device: operands are shared, slow kernels cut short."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from runtime.simulated import SimulatedDevice, view

import nrt
from nrt.cuda_kernels.compare_kernels import BLOCKS, SUMS, compare_spec
from nrt.cuda_kernels.compiler import Cubin
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_runner import CudaRunner, Operands
from nrt.device_compare import LEAST_BYTES
from nrt.dtypes import FP8E4M3, FP16, FP32, INT8, INT32, DType
from nrt.errors import TuningError
from nrt.extensions.registry import registry
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops import MatMul, Relu
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.timing_cache import Timing
from nrt.trial import random_inputs, relative_error
from nrt.tuner_cuda import CudaBench, tolerance

N = 29
SPEC = TensorSpec.dense((N,), FP32)
ONE = (1, 1, 1)


def problem(constant: bool = False, size: int = N) -> Problem:
    spec = TensorSpec.dense((size,), FP32)
    return Problem(Relu(), (spec,), (spec,), (constant,))


class Plain(Variant):
    """Relu; ``seconds`` is what the simulated clock shows for it."""

    ops = (Relu,)

    def __init__(self, name: str, seconds: float, entry: str = "relu", packs: bool = False) -> None:
        self.name, self.seconds, self.entry, self.packs = name, seconds, entry, packs  # type: ignore[misc]
        self.packed = 0

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        return [()]

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        return self.seconds

    def pack(self, problem: Problem, config: Any, slot: int, array: Array) -> Array:
        self.packed += 1
        return array.copy() if self.packs else array

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        args = (In(0), Out(), Scalar(problem.y.size, "u32"))
        spec = KernelSpec(f"compiler:{self.name}", (self.entry, self.seconds), 32)
        return Emission((Launch(spec, ONE, (32, 1, 1), args),))


class Reference(Plain):
    reference = True


class Device(SimulatedDevice):
    """Counts uploads; its clock shows the seconds of the kernel that ran last."""

    def __init__(self) -> None:
        functions = {"relu": _relu, "wrong": _wrong, "compare": _compare, "hole": _hole}
        super().__init__(functions, 5)
        self.uploads = 0
        self.shown = 1e-4
        self.timed: list[int] = []

    def upload(self, buffer: Any, array: Any, offset: int = 0, stream: Any = None) -> None:
        self.uploads += 1
        super().upload(buffer, array, offset, stream)

    def fill(
        self, buffer: Any, byte: int, offset: int = 0, nbytes: int | None = None, stream: Any = None
    ) -> None:
        buffer.array[:] = byte

    def time(
        self, work: Any, stream: Any, repeats: int = 20, warm_up: int = 3, inner: int = 1
    ) -> list[float]:
        self.timed.append(repeats)
        runs = len(work.work) if hasattr(work, "work") else 1
        (work.launch if hasattr(work, "launch") else work)(stream)
        self.synchronize(stream)
        return [self.shown * runs] * repeats


def _relu(x: int, y: int, count: int) -> None:
    view(y, count)[:] = np.maximum(view(x, count), 0)


def _wrong(x: int, y: int, count: int) -> None:
    view(y, count)[:] = view(x, count) + 1


def _hole(x: int, y: int, count: int) -> None:
    _relu(x, y, count - 1)


def _compare(a: int, b: int, sums: int, count: int) -> None:
    x, y = view(a, count).astype(np.float64), view(b, count).astype(np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    odd = (view(a, count).view(np.int32) != view(b, count).view(np.int32)) & ~good
    found = np.ctypeslib.as_array((ctypes.c_double * (SUMS * BLOCKS)).from_address(sums))
    found[:] = 0
    found[:SUMS] = np.sum((x - y)[good] ** 2), np.sum(y[good] ** 2), np.sum(odd)


class Pool:
    """Cubins that name the entry; those of ``held`` come when they are let go."""

    def __init__(self) -> None:
        self.futures: dict[KernelSpec, Future[Cubin]] = {}
        self.held = False

    def submit(self, spec: KernelSpec) -> Future[Cubin]:
        if spec not in self.futures or self.futures[spec].cancelled():
            self.futures[spec] = Future()
            if not self.held:
                self.finish(spec)
        return self.futures[spec]

    def submit_all(self, specs: Iterator[KernelSpec]) -> list[Future[Cubin]]:
        return [self.submit(spec) for spec in specs]

    def finish(self, spec: KernelSpec) -> None:
        entry = "compare" if spec == compare_spec(FP32) else spec.params[0]
        self.futures[spec].set_result(Cubin(b"", entry, 1, 0, 0))

    def cancel(self) -> None:
        for future in self.futures.values():
            future.cancel()


class Setup:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *variants: Plain) -> None:
        self.cuda, self.pool = Device(), Pool()
        everything = [(v, None) for v in (*variants, Reference("reference", 1.0))]
        monkeypatch.setattr("nrt.tuner_cuda.variants_for", lambda problem, device: everything)
        runner = CudaRunner(self.cuda)
        self.bench = CudaBench(runner.device, runner, self.pool)  # type: ignore[arg-type]

    def measure(self, variant: Plain, of: Problem) -> Any:
        self.cuda.shown = variant.seconds
        return self.bench.measure(variant, of, ())


def test_inputs_are_uploaded_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [Plain(f"v{i}", 1e-4 * (i + 1)) for i in range(4)]
    setup = Setup(monkeypatch, *variants)
    times = [setup.measure(v, problem()) for v in variants]
    assert [t.seconds for t in times] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])
    assert setup.cuda.uploads == 1  # the check and the clock share it; more are copied there
    setup.measure(variants[0], problem(size=N + 1))
    assert setup.cuda.uploads == 2


def test_constants_are_packed_once_per_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Plain("first", 1e-4, packs=True), Plain("second", 1e-4, packs=True)
    setup = Setup(monkeypatch, first, second)
    for variant in (first, second):
        assert setup.measure(variant, problem(constant=True)).seconds is not None
    assert (first.packed, second.packed) == (1, 1)


def test_slow_candidates_are_timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [
        Plain("best", 1e-4), Plain("near", 1.4e-4), Plain("slow", 1.6e-4), Plain("worst", 5e-3),
    ]  # fmt: skip
    setup = Setup(monkeypatch, *variants)
    found, timed = [], []
    for variant in variants:
        setup.cuda.timed = []
        found.append(setup.measure(variant, problem()))
        timed.append(setup.cuda.timed)
    assert timed == [[3, 3, 9], [3, 3, 9], [3, 3], [3]]
    briefly = "timed briefly: over 1.5 times the best"
    assert [t.note for t in found] == ["", "", briefly, briefly]
    assert [t.seconds for t in found] == pytest.approx([v.seconds for v in variants])
    # Another problem has another best.
    setup.cuda.timed = []
    assert setup.measure(variants[3], problem(size=N + 2)).note == ""
    assert setup.cuda.timed == [3, 3, 9]


def test_wrong_kernels_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Plain("wrong", 1e-6, entry="wrong")
    setup = Setup(monkeypatch, wrong)
    assert setup.measure(wrong, problem()).note.startswith("wrong result: relative error")
    assert setup.cuda.timed == []


@pytest.mark.parametrize("large", [False, True])
def test_results_are_compared_where_they_are_large_on_the_device(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    of = problem(size=LEAST_BYTES // 4 - (0 if large else 1))
    right, wrong = Plain("right", 1e-4), Plain("wrong", 1e-6, entry="wrong")
    hole = Plain("hole", 1e-6, entry="hole")
    setup = Setup(monkeypatch, right, wrong, hole)
    assert setup.measure(right, of).seconds == pytest.approx(1e-4)
    note = setup.measure(wrong, of).note
    x = random_inputs(of, np.random.default_rng(int(of.key[:16], 16)))[0]
    error = relative_error(x + 1, np.maximum(x, 0))
    assert note == f"wrong result: relative error {error:.2e}, limit 1e-04"
    # The element that was not written is NaN: the host finds that.
    assert setup.measure(hole, of).note == "wrong result: relative error inf, limit 1e-04"
    compared = [entry for entry, _ in setup.cuda.launches if entry == "compare"]
    assert len(compared) == (3 if large else 0)


def test_shared_operands_give_the_same_results() -> None:
    device = Device()
    runner, operands = CudaRunner(device), Operands()
    x = np.random.default_rng().standard_normal(N).astype(np.float32)
    plain = Plain("plain", 1e-4)

    def binary(spec: KernelSpec) -> Cubin:
        return Cubin(b"", spec.params[0], 1, 0, 0)

    for shared in (None, operands, operands):
        (y,) = runner.run(plain, problem(), (), [x], binary, operands=shared)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert device.uploads == 2


class Twice(Plain):
    """Relu in two launches, the second on the first one's output."""

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        (launch,) = super().emit(problem, config, device).launches
        args = (Out(), Out(), Scalar(problem.y.size, "u32"))
        return Emission((launch, Launch(launch.kernel, ONE, (32, 1, 1), args)))


def test_candidates_are_timed_as_a_plan_launches_them() -> None:
    x = np.random.default_rng().standard_normal(N).astype(np.float32)

    def binary(spec: KernelSpec) -> Cubin:
        return Cubin(b"", spec.params[0], 1, 0, 0)

    for wanted, on in ((None, True), (True, True), (False, False)):
        device = Device()
        device.shown = 1e-5
        runner = CudaRunner(device, programmatic=wanted)
        assert runner.programmatic is on
        (y,) = runner.run(Twice("twice", 1.0), problem(), (), [x], binary)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        assert [p for _, p in device.launches] == [False, on]
        device.launches.clear()
        runner.seconds(Twice("twice", 1.0), problem(), (), [x], binary)
        # Three warm-ups and a first clock in stream order; then a graph whose launches overlap.
        alone, graph = device.launches[:8], device.launches[8:]
        assert [p for _, p in alone] == [False, on] * 4
        assert len(graph) == 2 * 57
        assert [p for _, p in graph] == [False] + [on] * 113


def test_older_devices_are_timed_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.info = replace(device.info, cc=(8, 0), arch="sm_80")
    assert not CudaRunner(device).programmatic
    keys = set()
    monkeypatch.setattr("nrt.tuner_cuda.kernel_key", lambda spec, device: "key")
    for wanted in (True, False):
        runner = CudaRunner(Device(), programmatic=wanted)
        bench = CudaBench(runner.device, runner, Pool())  # type: ignore[arg-type]
        keys.add(bench.timing_key(Plain("v", 1e-4), problem(), ()))
    assert len(keys) == 2


def test_problems_are_ready_in_the_order_of_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = Plain("v", 1e-4)
    setup = Setup(monkeypatch, variant)
    setup.pool.held = True
    small, large = Plain("small", 1e-4), Plain("large", 1e-4)
    first, second = problem(), problem(size=N + 1)
    setup.bench.prepare([(large, first, ())], check=True)
    setup.bench.prepare([(small, second, ())], check=True)
    specs = {spec.factory: spec for spec in setup.pool.futures}
    assert list(specs) == ["compiler:reference", "compiler:large", "compiler:small"]
    assert setup.bench.next_ready([first, second], 0.01) is None
    setup.pool.finish(specs["compiler:reference"])
    timer = threading.Timer(0.05, setup.pool.finish, [specs["compiler:small"]])
    timer.start()
    assert setup.bench.next_ready([first, second], None) == 1
    timer.join()
    assert setup.bench.next_ready([first], 0.0) is None
    setup.pool.finish(specs["compiler:large"])
    assert setup.bench.next_ready([first], 0.0) == 0


def test_what_was_abandoned_may_be_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = Plain("v", 1e-4)
    setup = Setup(monkeypatch, variant)
    setup.pool.held = True
    setup.bench.prepare([(variant, problem(), ())])
    (spec,) = setup.pool.futures
    setup.bench.abandon()
    assert setup.pool.futures[spec].cancelled()
    setup.pool.held = False
    setup.bench.prepare([(variant, problem(), ())])
    assert setup.bench.next_ready([problem()], None) == 0
    assert setup.bench.binary(spec).entry == "relu"


@pytest.mark.parametrize(
    ("op", "factor", "limit"),
    [
        (MatMul(), FP32, 1e-4),
        (MatMul(tf32=True), FP32, 1e-3),
        (MatMul(tf32=True, out_dtype=FP16), FP32, 5e-3),
        (MatMul(), FP16, 5e-3),
        (MatMul(), INT8, 0.0),
        (MatMul(out_dtype=FP16), INT8, 5e-3),
        (MatMul(out_dtype=INT8), INT8, 1e-2),
        (MatMul(), FP8E4M3, 5e-3),
        (MatMul(out_dtype=FP32), FP8E4M3, 2e-3),
        (MatMul(out_dtype=FP8E4M3), FP8E4M3, 2e-2),
        (MatMul(), INT32, 0.0),
    ],
    ids=str,
)
def test_tolerance_is_that_of_the_output(op: MatMul, factor: DType, limit: float) -> None:
    a, b = TensorSpec.dense((3, 5), factor), TensorSpec.dense((5, 7), factor)
    (y,) = op.infer(a.type, b.type)
    task = Problem(op, (a, b), (TensorSpec.dense(y.shape, y.dtype),), (False, False))
    assert tolerance(task, task.y) == limit


def test_kernels_of_a_registered_op_are_checked_with_numpy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no reference variant; the reference of the op says what is right."""

    class Rectify(Op):
        def infer(self, x: TensorType) -> tuple[TensorType, ...]:
            return (x,)

        def reference(self, x: Array) -> tuple[Array, ...]:
            return (np.maximum(x, 0),)

    right, wrong = Plain("right", 3e-5), Plain("wrong", 1e-5, entry="wrong")
    setup = Setup(monkeypatch, right, wrong)
    found = [(right, None), (wrong, None)]
    monkeypatch.setattr("nrt.tuner_cuda.variants_for", lambda problem, device: found)
    spec = TensorSpec.dense((N,), FP32)
    with registry.scope():
        op = nrt.op("my.domain", "Rectify")(Rectify)
        of = Problem(op(), (spec,), (spec,), (False,))
        setup.bench.prepare([(right, of, ()), (wrong, of, ())], check=True)
        assert setup.bench.next_ready([of], None) == 0
        assert setup.measure(right, of) == Timing(3e-5, "")
        note = setup.measure(wrong, of)
        assert note.seconds is None
        assert note.note.startswith("wrong result: relative error")
    with pytest.raises(TuningError, match="no reference variant supports it"):
        setup.bench._reference_kernel(problem())


def test_the_source_of_a_users_variant_is_part_of_what_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(seconds: float) -> Plain:
        class Mine(Plain):
            name = "mine"

            def __init__(self) -> None:
                super().__init__("mine", seconds)

            def emit(
                self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec
            ) -> Emission:
                spec = KernelSpec("nrt.cuda_kernels.pointwise:_none", (), 32)
                return Emission((Launch(spec, ONE, (32, 1, 1), ()),))

        return nrt.variant("Relu")(Mine)()

    with registry.scope():
        keys = []
        for _ in range(2):
            made(1.0)
            mine = registry.cuda_variants.get("mine")
            bench = Setup(monkeypatch).bench
            keys.append([bench.timing_key(mine, problem(), ()) for _ in range(2)])
    assert keys[0][0] == keys[0][1] != keys[1][0]
