"""Tasks on memory and streams: what is touched, who waits, and plans of any graph without races."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from runtime.simulated import SimulatedDevice
from small_graphs import Maker, Recipe, feeds, make, recipes, worst_error
from test_streams import branchy

from nrt.assembly import Bound, assemble
from nrt.builder import optimize
from nrt.cuda_kernels.compiler import Cubin, compile_kernel
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.pointwise import PointwiseVector
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Variant, Work
from nrt.dtypes import FP16, FP32
from nrt.errors import PlanError
from nrt.frontend.models import resnet
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, Cast, Concat, Conv, Mul, MultiPointwise, Relu, Sigmoid, Slice, Split
from nrt.ir.pointwise import Builder, Program
from nrt.ir.text import to_text
from nrt.liveness import Layout, dependencies, place_in, plan_layout
from nrt.lowering import Buffer, Place, Task, lower
from nrt.plan import BufferRef, JoinStep, LaunchStep, LiveBlock, Plan, Target
from nrt.plan_check import check_plan
from nrt.plan_order import overlap
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.runtime import Engine
from nrt.schedule import Schedule, list_schedule
from nrt.schedule import Work as Share
from nrt.strides import row_pitch

DEVICE = ARCHS["sm_90a"]
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


class Anything(Variant):
    """Two launches with a workspace between them, for any op: garbage, then the reference."""

    name = "test_anything"
    ops = ()

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        return [()]

    def emit(self, problem: Problem, config: Any, device: DeviceSpec) -> Emission:
        inputs = tuple(In(slot) for slot in range(len(problem.inputs)))
        outputs = tuple(Out(slot) for slot in range(len(problem.outputs)))
        grid = ((1, 1, 1), (32, 1, 1))
        first = Launch(KernelSpec("nrt.cuda_kernels.test:_fill", (), 32), *grid, (Work(),))
        spec = KernelSpec("nrt.cuda_kernels.test:_any", (problem,), 32)
        return Emission((first, Launch(spec, *grid, (*inputs, Work(), *outputs))), workspace=40)


def cuda_plan(
    graph: Graph,
    streams: int,
    kernels: dict[str, Any] | None = None,
    variant: Variant | None = None,
) -> tuple[Plan, Schedule]:
    """The plan of ``graph``, where tasks take a microsecond and hardly any of the GPU.

    ``kernels`` is filled with Python functions for the simulated device.
    """
    lowered = lower(graph)
    needs = dependencies(lowered.tasks)
    schedule = list_schedule([Share(1e-6, 0.1, n) for n in needs], streams, crossing=0.0)
    known = {} if kernels is None else kernels

    def binary(spec: KernelSpec) -> Cubin:
        entry = f"nrt_{len(known)}"
        known[entry] = reference(spec.params[0]) if spec.params else fill
        return Cubin(b"\x7fELFany", entry, 32, 0, 0)

    plan = assemble(
        lowered,
        [Bound(t, variant or Anything(), (), None, "") for t in lowered.tasks],
        name="net",
        target=Target("cuda", "sm_90a"),
        device=DEVICE,
        binary=binary,
        ops_before={},
        ops_after={},
        versions={},
        programmatic=True,
        schedule=schedule,
    )
    check_plan(plan)
    return plan, schedule


def fill(work: int) -> None:
    ctypes.memset(work, 0xA5, 40)


def strided(address: int, spec: TensorSpec) -> Any:
    block: Any = (ctypes.c_ubyte * max(spec.nbytes, 1)).from_address(address)
    flat = np.frombuffer(block, np.uint8)[: spec.nbytes].view(spec.dtype.numpy)
    strides = tuple(s * spec.dtype.itemsize for s in spec.strides)
    return np.lib.stride_tricks.as_strided(flat, spec.shape, strides)


def reference(problem: Problem) -> Any:
    """What `Anything` launches, on the host; it needs its workspace to be as it was left."""
    count = len(problem.inputs)

    def kernel(*addresses: int) -> None:
        work, outputs = addresses[count], addresses[count + 1 :]
        assert ctypes.string_at(work, 40) == b"\xa5" * 40
        inputs = [strided(a, t) for a, t in zip(addresses, problem.inputs, strict=False)]
        results = problem.op.reference(*(np.array(i) for i in inputs))
        ctypes.memset(work, 0, 40)
        for address, spec, result in zip(outputs, problem.outputs, results, strict=True):
            strided(address, spec)[...] = result

    return kernel


# -- what a place covers ---------------------------------------------------------------------------


def touched(spec: TensorSpec) -> set[int]:
    """Bytes of all elements."""
    item = spec.dtype.itemsize
    return {
        sum(i * s for i, s in zip(index, spec.strides, strict=True)) * item + byte
        for index in np.ndindex(*spec.shape)
        for byte in range(item)
    }


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), max_size=4),
    st.sampled_from([FP16, FP32]),
)
def test_rows_hold_every_element(dims: list[tuple[int, int]], dtype: Any) -> None:
    spec = TensorSpec(tuple(d for d, _ in dims), dtype, tuple(s for _, s in dims))
    width, pitch = row_pitch(spec)
    assert (width == pitch == 0) or 0 < width < pitch
    if pitch:
        assert all(byte % pitch < width for byte in touched(spec))


@pytest.mark.parametrize(
    ("shape", "strides", "rows"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1), (0, 0)),
        ((2, 3, 4, 5), (60, 1, 15, 3), (0, 0)),
        ((2, 3, 4, 5), (200, 1, 50, 10), (6, 20)),  # 3 of 10 channels, channels last
        ((2, 3, 4, 5), (200, 20, 5, 1), (120, 400)),  # 3 of 10 channels
        ((1, 3, 4, 5), (200, 20, 5, 1), (0, 0)),  # of one image they lie in one piece
        ((4, 5), (1, 0), (0, 0)),
        ((4, 5), (3, 2), (0, 0)),  # no rows
        ((3,), (4,), (2, 8)),
    ],
)
def test_rows_of_slices(
    shape: tuple[int, ...], strides: tuple[int, ...], rows: tuple[int, int]
) -> None:
    assert row_pitch(TensorSpec(shape, FP16, strides)) == rows


def test_a_place_from_a_later_byte_on() -> None:
    place = Place(Buffer("arena", 400), 6, TensorSpec((5, 3), FP16, (10, 1)))
    assert place_in(place) == BufferRef("arena", 6, 86, 0, 6, 20)
    assert place_in(place, base=256, index=3) == BufferRef("arena", 262, 86, 3, 6, 20)
    assert place_in(place, extra=20) == BufferRef("arena", 26, 66, 0, 6, 20)
    # Rows no longer begin where the range does.
    assert place_in(place, extra=4) == BufferRef("arena", 10, 82)
    assert place_in(place, extra=100).nbytes == 0


# -- who waits for whom ----------------------------------------------------------------------------


def branches(m: Maker) -> Graph:
    """A module: three branches of one value into one Concat, as channels last."""
    x = m.nhwc(m.input("x", 2, 8, 4, 4))
    root = m.nhwc(m.op(Relu(), x))
    ends = []
    for size in (8, 16, 8):
        w = m.graph.add_constant("w", m.random(size, 8, 1, 1))
        ends.append(m.nhwc(m.op(Conv(), m.nhwc(m.op(Sigmoid(), root)), w)))
    m.out("y", m.nhwc(m.op(Relu(), m.nhwc(m.op(Concat(1), *ends)))))
    return m.graph


def test_branches_into_one_buffer_do_not_wait_for_each_other() -> None:
    tasks: list[Task] = lower(branches(Maker())).tasks
    assert [t.problem.op.name for t in tasks] == ["Relu", *["Sigmoid", "Conv"] * 3, "Relu"]
    assert dependencies(tasks) == [(), (0,), (1,), (0,), (3,), (0,), (5,), (2, 4, 6)]
    # All three write into one buffer, at rows of one pitch.
    targets = [tasks[i].outputs[0] for i in (2, 4, 6)]
    assert len({id(t.buffer) for t in targets}) == 1
    refs = [place_in(t) for t in targets]
    assert [(r.offset, r.width, r.pitch) for r in refs] == [
        (0, 32, 128), (32, 64, 128), (96, 32, 128),
    ]  # fmt: skip
    assert not any(overlap(a, b) for a in refs for b in refs if a is not b)


def test_branches_run_on_streams_of_their_own() -> None:
    plan, schedule = cuda_plan(branches(Maker()), 4)
    assert (plan.streams, schedule.streams) == (3, 3)
    launches = [s for s in plan.steps if isinstance(s, LaunchStep)]
    assert len(launches) == 2 * 8
    # Both launches of a layer, and the layers of a branch, on one stream.
    streams = {layer: {s.stream for s in launches if s.layer == layer} for layer in range(8)}
    assert all(len(s) == 1 for s in streams.values())
    assert streams[1] == streams[2] != streams[3] == streams[4] != streams[5] == streams[6]
    assert sum(isinstance(s, JoinStep) for s in plan.steps) == 1
    # Behind a fork or a join a launch waits for the end of those before it.
    assert [s.programmatic for s in launches if s.layer in (0, 7)] == [False, True] * 2
    serial, _ = cuda_plan(branches(Maker()), 1)
    assert serial.streams == 1
    assert all(isinstance(s, LaunchStep) for s in serial.steps)
    # Three workspaces at once, and what the branches hold.
    assert plan.arena_bytes > serial.arena_bytes
    # Only inputs are only read.
    assert [(len(s.args), s.read_only) for s in launches[:2]] == [(1, ()), (3, (0,))]


def test_the_peak_names_what_is_alive() -> None:
    plan, _ = cuda_plan(branches(Maker()), 1)
    assert plan.peak.nbytes == plan.arena_bytes
    sizes = {b.name.split("_")[0]: b.nbytes for b in plan.peak.alive}
    assert plan.layers[plan.peak.layer].op == "Conv"
    # 32 pixels: the Concat's 32 channels; the branch's 8, and the root's until the last branch.
    assert sorted(sizes.values(), reverse=True)[0] == 32 * 32 * 4
    assert LiveBlock(f"workspace of {plan.layers[plan.peak.layer].name}", 40) in plan.peak.alive
    assert [b.nbytes for b in plan.peak.alive] == sorted(sizes.values(), reverse=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes, streams=st.integers(2, 4))
def test_any_graph_on_streams_computes_what_it_should(recipe: Recipe, streams: int) -> None:
    """Under a random order of execution; `check_plan` has found no race, from the steps alone."""
    seed = secrets.randbits(32)
    note(f"seed {seed}")
    graph = make(recipe, seed)
    note(to_text(graph))
    kernels: dict[str, Any] = {}
    plan, schedule = cuda_plan(graph, streams, kernels)
    assert plan.streams == schedule.streams
    assert plan.peak.nbytes <= plan.arena_bytes
    data = feeds(graph, np.random.default_rng(seed))
    wanted = evaluate(graph, data)
    kind = "fp16" if any(v.dtype is FP16 for v in graph.values) else "fp32"
    engine = Engine(plan, device=SimulatedDevice(kernels, seed))
    for _ in range(3):
        assert worst_error(engine.run(data), wanted) <= TOLERANCE[kind]


def test_a_wrong_order_is_found_by_the_check() -> None:
    m = Maker()
    x = m.input("x", 4, 64)
    a = m.op(Relu(), x)
    m.out("y", m.op(Add(), m.op(Sigmoid(), a), m.op(Relu(), a)))
    plan, _ = cuda_plan(m.graph, 2)
    assert plan.streams == 2
    join = next(i for i, s in enumerate(plan.steps) if isinstance(s, JoinStep))
    late = (*plan.steps[:join], *plan.steps[join + 1 :], JoinStep(0, (1,)))
    with pytest.raises(PlanError, match=r"steps \d+ and \d+ both touch bytes .* of arena 0"):
        check_plan(replace(plan, steps=late))


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("batch", [1, 8])
def test_networks_come_close_to_the_bound(batch: int, streams: int) -> None:
    """With workspaces of random sizes, as kernels ask for."""
    rng = np.random.default_rng(batch)
    for net in (resnet(depth=18, batch=batch, classes=10, size=64), branchy(9, 32, 17)):
        tasks = lower(optimize(net, precision="fp16").graph).tasks
        schedule = list_schedule([Share(3e-6, 0.3, n) for n in dependencies(tasks)], streams)
        sizes = [int(n) * int(rng.integers(2)) for n in rng.integers(1 << 18, size=len(tasks))]
        arena = plan_layout(tasks, sizes, schedule).arena
        assert arena.lower_bound <= arena.nbytes <= 1.1 * arena.lower_bound


# -- in place --------------------------------------------------------------------------------------


class Over(Anything):
    """May write over any of its inputs."""

    name = "test_over"

    def in_place(self, problem: Problem, config: Any) -> tuple[int, ...]:
        return tuple(range(len(problem.inputs)))


def layout(
    graph: Graph, streams: int = 1, slots: Any = lambda task: ()
) -> tuple[Layout, list[Task]]:
    tasks = lower(graph).tasks
    schedule = list_schedule(
        [Share(1e-6, 0.1, n) for n in dependencies(tasks)], streams, crossing=0
    )
    return plan_layout(tasks, [0] * len(tasks), schedule, [slots(t) for t in tasks]), tasks


def every(task: Task) -> tuple[int, ...]:
    return tuple(range(len(task.inputs)))


def test_a_chain_in_place_takes_one_block() -> None:
    m = Maker()
    x = m.input("x", 4, 64)
    for _ in range(5):
        x = m.op(Relu(), x)
    m.out("y", x)
    assert layout(m.graph)[0].arena.nbytes == 2048
    found, _ = layout(m.graph, slots=every)
    # The first reads the caller's input, and the last writes the caller's output.
    assert found.arena.nbytes == 1024
    assert found.overwrites == {1, 2, 3}


def test_what_is_read_later_is_not_overwritten() -> None:
    m = Maker()
    x = m.input("x", 4, 64)
    a = m.op(Relu(), x)
    b = m.op(Sigmoid(), a)
    c = m.op(Add(), b, a)  # over b, or over a
    m.out("y", m.op(Add(), m.op(Relu(), c), c))
    found, tasks = layout(m.graph, slots=every)
    assert found.overwrites == {2}
    places = [found.offsets[t.outputs[0].buffer] for t in tasks[:4]]
    assert places[2] in places[:2]
    assert places[0] != places[1]
    assert places[3] != places[2]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda m, a: m.op(Add(), a, m.const(64)), "another operand is a constant"),
        (lambda m, a: m.op(Add(), a, a), "both operands are the block"),
    ],
)
def test_these_are_overwritten(other: Any, why: str) -> None:
    m = Maker()
    a = m.op(Relu(), m.input("x", 4, 64))
    m.out("y", m.op(Sigmoid(), other(m, a)))
    assert layout(m.graph, slots=every)[0].overwrites == {1}, why


def first_row(m: Maker, a: Any) -> Any:
    """A view."""
    return m.op(Slice((0, 0), (1, 8), (1, 1)), a)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda m, a: m.op(Add(), a, first_row(m, a)), "it is also read elsewhere"),
        (lambda m, a: m.op(Cast(FP16), a), "elements are smaller"),
        (lambda m, a: m.op(Add(), first_row(m, a), m.const(8, 8)), "elements are read repeatedly"),
    ],
)
def test_these_are_not(other: Any, why: str) -> None:
    m = Maker()
    a = m.op(Relu(), m.input("x", 8, 8))
    m.out("y", m.op(Relu(), other(m, a)))
    assert not layout(m.graph, slots=every)[0].overwrites, why


def several(*registers: int) -> MultiPointwise:
    """x + y and x - y, of which ``registers`` are results."""
    b = Builder("ff")
    b("add", 0, 1)
    b("sub", 0, 1)
    program = Program(("f", "f"), tuple(b.instrs), registers)
    return MultiPointwise(program, (FP32,) * len(registers))


def test_every_result_overwrites_another_input() -> None:
    m = Maker()
    x = m.input("x", 4, 64)
    a, b = m.op(Relu(), x), m.op(Sigmoid(), x)
    y = m.add(several(2, 3, 2), a, b)
    m.out("y", m.op(Add(), m.op(Add(), y[0], y[1]), y[2]))
    found, tasks = layout(m.graph, slots=lambda t: every(t) if len(t.outputs) > 1 else ())
    assert found.overwrites == {2}
    task = tasks[2]
    reads, writes = ([found.offsets[p.buffer] for p in ps] for ps in (task.inputs, task.outputs))
    assert set(reads) <= set(writes)
    assert len(set(writes)) == 3
    assert layout(m.graph)[0].arena.nbytes == 5 * 1024
    assert found.arena.nbytes == 4 * 1024


def test_results_in_two_slices_overwrite_no_third_tensor() -> None:
    """Both lie in the Concat's memory; only one may take a block with it."""
    m = Maker()
    x = m.input("x", 8, 64)
    half = m.op(Slice((0, 0), (4, 64), (1, 1)), x)
    whole = m.op(Relu(), x)
    top = m.op(Slice((0, 0), (4, 64), (1, 1)), whole)
    y = m.add(several(2, 3), top, half)
    m.out("y", m.op(Relu(), m.op(Concat(0), *y)))
    found, tasks = layout(m.graph, slots=every)
    # The whole of the Concat lies over the block of which the first slice is read.
    assert 1 in found.overwrites
    first, second = tasks[1].outputs
    assert first.buffer is second.buffer
    assert found.offsets[first.buffer] == found.offsets[tasks[1].inputs[0].buffer]
    assert (first.offset, second.offset) == (0, 1024)
    # Read behind the first slice, the block stays.
    m = Maker()
    x = m.input("x", 8, 64)
    whole = m.op(Relu(), x)
    y = m.add(several(2, 3), *m.add(Split(0, (4, 4)), whole))
    m.out("y", m.op(Relu(), m.op(Concat(0), *y)))
    assert 1 not in layout(m.graph, slots=every)[0].overwrites


def test_only_the_inputs_that_a_kernel_names() -> None:
    m = Maker()
    x = m.input("x", 8, 8)
    a, b = m.op(Relu(), x), m.op(Sigmoid(), x)
    m.out("y", m.op(Relu(), m.op(Add(), a, b)))
    for slot in (0, 1):
        found, tasks = layout(m.graph, slots=lambda t, s=slot: (s,) if len(t.inputs) == 2 else ())
        add = tasks[2]
        assert found.overwrites == {2}
        same = [found.offsets[p.buffer] == found.offsets[add.outputs[0].buffer] for p in add.inputs]
        assert same == [slot == 0, slot == 1]


def test_a_kernel_that_reads_the_block_twice_must_name_both() -> None:
    """As a convolution whose input is also its residual: the one is read by many threads."""
    m = Maker()
    a = m.op(Relu(), m.input("x", 8, 8))
    m.out("y", m.op(Relu(), m.op(Mul(), a, a)))
    assert layout(m.graph, slots=lambda t: every(t)[1:])[0].overwrites == set()
    assert layout(m.graph, slots=lambda t: every(t) if len(t.inputs) == 2 else ())[
        0
    ].overwrites == {1}


def test_on_streams_a_branch_that_still_reads_forbids_it() -> None:
    m = Maker()
    x = m.input("x", 4, 64)
    a = m.op(Relu(), x)
    b, c = m.op(Sigmoid(), a), m.op(Relu(), a)
    m.out("y", m.op(Add(), m.op(Relu(), b), m.op(Sigmoid(), c)))
    serial, _ = layout(m.graph, 1, every)
    parallel, tasks = layout(m.graph, 2, every)
    # One after another the second reader may write over a; side by side neither.
    assert serial.overwrites == {2, 3, 4}
    assert parallel.overwrites == {3, 4}
    assert [tasks[i].problem.op.name for i in (3, 4)] == ["Relu", "Sigmoid"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes, streams=st.integers(1, 4))
def test_any_graph_in_place_computes_what_it_should(recipe: Recipe, streams: int) -> None:
    """The reference reads all of its inputs before it writes: any op may be in place."""
    seed = secrets.randbits(32)
    note(f"seed {seed}")
    graph = make(recipe, seed)
    note(to_text(graph))
    kernels: dict[str, Any] = {}
    plan, _ = cuda_plan(graph, streams, kernels, Over())
    data = feeds(graph, np.random.default_rng(seed))
    wanted = evaluate(graph, data)
    kind = "fp16" if any(v.dtype is FP16 for v in graph.values) else "fp32"
    engine = Engine(plan, device=SimulatedDevice(kernels, seed))
    for _ in range(2):
        assert worst_error(engine.run(data), wanted) <= TOLERANCE[kind]


def pointwise_plan(graph: Graph, device: DeviceSpec, over: bool) -> Plan:
    """The elementwise ops of ``graph`` on the kernels for vectors; ``over``: in place."""
    variant = PointwiseVector() if over else Apart()
    lowered = lower(graph)
    bound = []
    for task in lowered.tasks:
        config = variant.configs(task.problem, device)[0]
        bound.append(Bound(task, variant, config, None, ""))
    plan = assemble(
        lowered, bound, name="net", target=Target("cuda", device.arch), device=device,
        binary=lambda spec: compile_kernel(spec, device), ops_before={}, ops_after={}, versions={},
        programmatic=device.cc >= (9, 0),
    )  # fmt: skip
    check_plan(plan)
    return plan


class Apart(PointwiseVector):
    def in_place(self, problem: Problem, config: Any) -> tuple[int, ...]:
        return ()


def long_chain(size: int, dtype: Any) -> Graph:
    m = Maker()
    x = m.input("x", size, dtype=dtype)
    y = m.op(Sigmoid(), x)
    for _ in range(10):
        y = m.op(Add(), m.op(Sigmoid(), y), x)
    m.out("y", m.op(Relu(), y))
    return m.graph


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("size", [7, 1_003, 4_000_037])
def test_pointwise_kernels_in_place(
    tmp_path: Path, monkeypatch: Any, size: int, dtype: Any
) -> None:
    """The same bits as with blocks of their own, at sizes with a tail and with many blocks."""
    from nrt.cuda_runner import device_spec
    from nrt.runtime.cuda import open_device

    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    gpu = open_device()
    graph, device = long_chain(size, dtype), device_spec(gpu.info)
    here, apart = (pointwise_plan(graph, device, over) for over in (True, False))
    assert here.arena_bytes < apart.arena_bytes
    first, second = Engine(here, device=gpu), Engine(apart, device=gpu)
    rng = np.random.default_rng()
    for _ in range(5):
        x = rng.standard_normal(size).astype(dtype.numpy)
        wanted = second(x)
        assert worst_error({"y": wanted}, evaluate(graph, {"x": x})) <= TOLERANCE[dtype.name]
        for _ in range(5):
            np.testing.assert_array_equal(first(x), wanted)
