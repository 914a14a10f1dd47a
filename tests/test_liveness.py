"""Tasks on memory and streams: what is touched, who waits, and plans of any graph without races."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from runtime.simulated import SimulatedDevice
from small_graphs import Maker, Recipe, feeds, make, recipes, worst_error

from nrt.assembly import Bound, assemble
from nrt.cuda_kernels.compiler import Cubin
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Variant, Work
from nrt.dtypes import FP16, FP32
from nrt.errors import PlanError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, Concat, Conv, Relu, Sigmoid
from nrt.ir.text import to_text
from nrt.liveness import dependencies, place_in
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
    graph: Graph, streams: int, kernels: dict[str, Any] | None = None
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
        [Bound(t, Anything(), (), None, "") for t in lowered.tasks],
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
