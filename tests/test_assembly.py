"""Assembly: memory, weights and arguments of a plan; and that the plan computes the graph."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from small_graphs import Maker, Recipe, feeds, make, operands, recipes, worst_error

from nrt.assembly import Bound, assemble, memory_image, overlapped
from nrt.cpu_kernels import bind
from nrt.cpu_kernels.reference import Reference
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.cuda_kernels.compiler import Cubin
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.variant import (
    Emission,
    In,
    KernelSpec,
    Launch,
    Null,
    Out,
    Scalar,
    Variant,
    Work,
)
from nrt.dtypes import BF16, FP16, FP32, INT8, DType
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import Add, Concat, Conv, MatMul, Pointwise, Relu, Reshape, Sigmoid, Transpose
from nrt.ir.pointwise import Builder
from nrt.ir.text import to_text
from nrt.lowering import lower
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    JoinStep,
    LaunchStep,
    Plan,
    ScalarArg,
    SetStep,
    Target,
)
from nrt.plan_check import check_plan
from nrt.plan_file import plan_from_bytes, plan_to_bytes
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.runtime import Engine
from nrt.timing_cache import TimingCache
from nrt.tuner import tune
from nrt.tuner_cpu import CpuBench

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}
HOST = Target("cpu", "any")
Choose = Callable[[Problem], tuple[HostVariant, Config]]


def host_plan(graph: Graph, choose: Choose | None = None) -> Plan:
    """The plan with the reference for every task, or what ``choose`` gives."""
    lowered = lower(graph)
    pick: Choose = choose or (lambda problem: (Reference(), ()))
    bound = [Bound(t, *pick(t.problem), None, "chosen by the test") for t in lowered.tasks]
    plan = assemble(
        lowered, bound, name=graph.name, target=HOST, ops_before={}, ops_after={}, versions={}
    )
    check_plan(plan)
    return plan


# -- plans compute ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes)
def test_plans_compute_the_graph(recipe: Recipe) -> None:
    seed = secrets.randbits(32)
    note(f"seed {seed}")
    graph = make(recipe, seed)
    note(to_text(graph))
    plan = host_plan(graph)
    assert plan_to_bytes(plan) == plan_to_bytes(host_plan(graph))
    data = feeds(graph, np.random.default_rng(seed))
    wanted = evaluate(graph, data)
    engine = Engine(plan, bind)
    kind = "fp16" if any(v.dtype is FP16 for v in graph.values) else "fp32"
    found = engine.run(data)
    assert worst_error(found, wanted) <= TOLERANCE[kind]
    # A second run meets what the first left in the arena.
    again = Engine(plan_from_bytes(plan_to_bytes(plan)), bind).run(data)
    for name, array in engine.run(data).items():
        assert array.tobytes() == found[name].tobytes() == again[name].tobytes()


def residual_net(m: Maker, dtype: DType = FP32) -> Graph:
    """Convolutions with a skip, a concat, a flattened product: every kind of place."""
    x = m.input("x", 2, 3, 9, 7, dtype=dtype)

    def conv(value: Any, channels: int, size: int) -> Any:
        fan = value.shape[1] * size * size
        w = m.random(channels, value.shape[1], size, size) / np.float32(np.sqrt(fan))
        weights = m.graph.add_constant("w", w.astype(dtype.numpy))
        return m.nhwc(m.op(Conv(pads=(size // 2,) * 4), value, weights))

    a = m.nhwc(m.op(Relu(), conv(x, 8, 3)))
    b = m.nhwc(m.op(Add(), conv(a, 8, 3), a))
    c = m.nhwc(m.op(Concat(1), m.nhwc(m.op(Relu(), b)), m.nhwc(m.op(Sigmoid(), conv(b, 16, 1)))))
    flat = m.op(Reshape((2, 24 * 63)), c)
    w = m.random(13, 24 * 63) / np.float32(40)
    m.out(
        "scores", m.op(MatMul(trans_b=True), flat, m.graph.add_constant("w", w.astype(dtype.numpy)))
    )
    m.out("features", c)
    return m.graph


def test_a_network_on_its_tuned_kernels(tmp_path: Path) -> None:
    m = Maker(secrets.randbits(32))
    graph = residual_net(m)
    cache = TimingCache(tmp_path / "timings.json")

    def tuned() -> Plan:
        problems = [t.problem for t in lower(graph).tasks]
        choices = tune(problems, CpuBench(), opt_level=1, cache=cache)
        return host_plan(graph, lambda p: (choices[p].variant, choices[p].config))

    plan = tuned()
    # Nothing is left to chance once times are known.
    assert plan_to_bytes(plan) == plan_to_bytes(tuned())
    assert {s.variant for s in plan.steps if isinstance(s, HostStep)} - {"cpu_reference"}
    data = operands(m, secrets.randbits(32))
    found = Engine(plan, bind).run(data)
    assert worst_error(found, evaluate(graph, data)) <= TOLERANCE["fp32"]
    again = Engine(plan_from_bytes(plan_to_bytes(plan)), bind).run(data)
    for name, array in found.items():
        assert array.tobytes() == again[name].tobytes()


# -- the arena -------------------------------------------------------------------------------------


def arena_ranges(plan: Plan) -> list[dict[tuple[int, int], str]]:
    """Per step, the arena ranges it touches and whether it writes them."""
    result = []
    for step in plan.steps:
        assert isinstance(step, HostStep)
        ranges = {}
        for refs, kind in (
            ([t.ref for t in step.inputs], "read"),
            ([t.ref for t in step.outputs] + [step.workspace], "write"),
        ):
            for ref in refs:
                if ref.space == "arena" and ref.nbytes:
                    ranges[(ref.offset, ref.offset + ref.nbytes)] = kind
        result.append(ranges)
    return result


def test_a_chain_alternates_between_two_blocks() -> None:
    m = Maker()
    x = m.input("x", 10, 100)
    for _ in range(6):
        x = m.op(Relu(), x)
    m.out("y", x)
    plan = host_plan(m.graph)
    assert plan.arena_bytes == 2 * 4096
    for ranges in arena_ranges(plan):
        (read, write) = ([r for r, kind in ranges.items() if kind == k] for k in ("read", "write"))
        for a in read:
            for b in write:
                assert a[1] <= b[0] or b[1] <= a[0]


def test_what_is_read_late_keeps_its_memory() -> None:
    m = Maker()
    x = m.input("x", 10, 100)
    early = m.op(Sigmoid(), x)
    y = m.op(Relu(), early)
    for _ in range(4):
        y = m.op(Relu(), y)
    m.out("y", m.op(Add(), y, m.op(Transpose((0, 1)), early)))
    plan = host_plan(m.graph)
    assert plan.arena_bytes == 3 * 4096
    data = operands(m)
    assert worst_error(Engine(plan, bind).run(data), evaluate(m.graph, data)) == 0.0


class Scratch(HostVariant):
    """Relu that fills its workspace with garbage first."""

    name = "test_scratch"
    ops = (Relu,)

    def supports(self, problem: Problem) -> Refusal | None:
        return None

    def workspace(self, problem: Problem, config: Config) -> int:
        return int(config[0])

    def bind(self, problem: Problem, config: Config) -> HostCall:
        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            assert workspace.nbytes == config[0]
            workspace[:] = 0xAB
            outputs[0][...] = np.maximum(inputs[0], 0)

        return call


def test_workspaces_lie_apart_from_the_tensors_alive() -> None:
    m = Maker()
    x = m.input("x", 3, 50)
    kept = m.op(Relu(), x)
    y = m.op(Relu(), m.op(Relu(), kept))
    m.out("y", m.op(Add(), kept, y))
    sizes = iter((1000, 0, 70))

    def choose(problem: Problem) -> tuple[HostVariant, Config]:
        if isinstance(problem.op, Relu):
            return Scratch(), (next(sizes),)
        return Reference(), ()

    plan = host_plan(m.graph, choose)
    refs = [s.workspace for s in plan.steps if isinstance(s, HostStep)]
    assert [r.nbytes for r in refs] == [1000, 0, 70, 0]
    assert [r.space for r in refs] == ["arena", "null", "arena", "null"]
    calls = {"test_scratch": Scratch().bind}

    def bind_fake(name: str, problem: Any, config: Any) -> HostCall:
        if name in calls:
            return calls[name](Problem.from_data(problem), config)
        return bind(name, problem, config)

    data = operands(m)
    assert worst_error(Engine(plan, bind_fake).run(data), evaluate(m.graph, data)) == 0.0


# -- weights ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([FP32, FP16, BF16, INT8]),
    data=st.data(),
)
def test_memory_images(shape: list[int], dtype: DType, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1) + data.draw(st.integers(0, 1))
    spec = TensorSpec(tuple(shape), dtype, tuple(strides))
    array = (np.arange(spec.size) % 100 + 1).reshape(shape).astype(dtype.numpy)
    image = memory_image(array, spec)
    assert image.dtype == np.uint8
    assert image.shape == (spec.nbytes,)
    flat = image.view(dtype.numpy)
    for index in np.ndindex(*shape):
        assert flat[sum(i * s for i, s in zip(index, strides, strict=True))] == array[index]
    assert np.count_nonzero(flat) == spec.size


def test_equal_constants_are_stored_once_at_aligned_offsets() -> None:
    m = Maker()
    x = m.input("x", 3, 5)
    table = m.random(5)
    first = m.graph.add_constant("a", table)
    second = m.graph.add_constant("b", table.copy())
    other = m.graph.add_constant("c", m.random(5))
    y = m.op(Add(), x, first)
    y = m.op(Add(), m.op(Add(), y, other), second)
    m.out("y", m.op(Add(), y, first))
    plan = host_plan(m.graph)
    offsets = [s.inputs[1].ref.offset for s in plan.steps if isinstance(s, HostStep)]
    assert offsets == [0, 256, 0, 0]
    assert len(plan.weights) == 256 + 20
    assert plan.weights[:20] == table.tobytes()


class Packed(HostVariant):
    """MatMul with a transposed, padded weight matrix of float64."""

    name = "test_packed"
    ops = (MatMul,)
    packs: ClassVar[list[tuple[int, tuple[int, ...]]]] = []

    def supports(self, problem: Problem) -> Refusal | None:
        return None

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        assert array.flags.c_contiguous
        self.packs.append((slot, array.shape))
        padded = np.zeros((array.shape[1] + config[0], array.shape[0]))
        padded[: array.shape[1]] = array.T
        return padded

    def bind(self, problem: Problem, config: Config) -> HostCall:
        n = problem.y.shape[-1]

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            assert inputs[1].dtype == np.float64
            assert inputs[1].shape == (n + config[0], inputs[0].shape[-1])
            outputs[0][...] = inputs[0] @ inputs[1][:n].T

        return call


@pytest.mark.parametrize("trans_b", [False, True])
def test_packed_constants(trans_b: bool) -> None:
    m = Maker()
    x = m.input("x", 4, 6)
    w = m.const(*((9, 6) if trans_b else (6, 9)))
    y = m.op(MatMul(trans_b=trans_b), x, w)
    z = m.op(MatMul(trans_b=trans_b), m.op(Relu(), x), w)
    m.out("y", y)
    m.out("z", z)
    Packed.packs.clear()

    def choose(problem: Problem) -> tuple[HostVariant, Config]:
        return (Packed(), (2,)) if isinstance(problem.op, MatMul) else (Reference(), ())

    plan = host_plan(m.graph, choose)
    assert len(plan.weights) == 11 * 6 * 8  # both products read one packed matrix
    assert set(Packed.packs) == {(1, (6, 9))}

    def bind_fake(name: str, problem: Any, config: Any) -> HostCall:
        if name == "test_packed":
            return Packed().bind(Problem.from_data(problem), config)
        return bind(name, problem, config)

    data = operands(m)
    found = Engine(plan, bind_fake).run(data)
    assert worst_error(found, evaluate(m.graph, data)) <= TOLERANCE["fp32"]


# -- layers ----------------------------------------------------------------------------------------


def test_layers_tell_what_was_chosen() -> None:
    b = Builder("ff")
    program = b.build(b("max", b("add", 0, 1), b.const(0.0)))
    m = Maker()
    x = m.input("x", 1, 3, 4, 4)
    node = m.graph.add_node(
        Conv(epilogue=program), [x, m.const(5, 3, 1, 1), m.const(5, 1, 1)],
        name="conv", origin=["/conv", "/relu"],
    )  # fmt: skip
    m.graph.set_output("y", m.op(Relu(), m.op(Pointwise(program, FP16), node.output, x_bias(m))))
    plan = host_plan(m.graph)
    conv, fused, relu = plan.layers
    assert (conv.name, conv.op) == ("conv", "Conv[add(x0, x1); max(r2, 0.0)]")
    assert conv.origins == ("/conv", "/relu")
    assert conv.inputs == ("fp32[1,3,4,4]", "fp32[5,3,1,1]", "fp32[5,1,1]")
    assert conv.outputs == ("fp32[1,5,4,4]",)
    assert (conv.precision, conv.variant, conv.config) == ("fp32", "cpu_reference", "")
    assert (conv.seconds, conv.reason) == (None, "chosen by the test")
    assert conv.flops == 80 * (3 * 2 + 2)
    assert conv.nbytes == 4 * (48 + 15 + 5 + 80)
    assert fused.op == "Pointwise[add(x0, x1); max(r2, 0.0)]"
    assert relu.op == "Relu"
    assert [s.layer for s in plan.steps if isinstance(s, HostStep)] == [0, 1, 2]


def x_bias(m: Maker) -> Any:
    return m.const(5, 1, 1)


def test_bindings_and_counts_are_the_graphs() -> None:
    m = Maker()
    x = m.input("x", 2, 3, dtype=FP16)
    m.out("out", m.op(Relu(), x))
    lowered = lower(m.graph)
    bound = [Bound(t, Reference(), (), 1e-6, "fast") for t in lowered.tasks]
    plan = assemble(
        lowered, bound, name="net", target=HOST, ops_before={"Relu": 2}, ops_after={"Relu": 1},
        versions={"numpy": "2"},
    )  # fmt: skip
    assert (plan.name, plan.target) == ("net", HOST)
    assert [(s.name, s.shape, s.dtype) for s in plan.inputs] == [("x", (2, 3), "fp16")]
    assert [(s.name, s.shape, s.dtype) for s in plan.outputs] == [("out", (2, 3), "fp16")]
    assert (plan.ops_before, plan.ops_after) == ({"Relu": 2}, {"Relu": 1})
    assert plan.versions == {"numpy": "2"}
    assert plan.layers[0].seconds == 1e-6


# -- CUDA plans ------------------------------------------------------------------------------------

DEVICE = ARCHS["sm_90a"]


class TwoLaunches(Variant):
    """Adds in two launches through a workspace; its arguments are what is tested."""

    name = "test_two"
    ops: ClassVar[tuple[type[Op], ...]] = (Add,)

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        return [()]

    def pack(self, problem: Problem, config: Any, slot: int, array: Array) -> Array:
        return np.ascontiguousarray(array[:, ::-1], np.float64) if config else array

    def emit(self, problem: Problem, config: Any, device: DeviceSpec) -> Emission:
        assert device is DEVICE
        first = KernelSpec("nrt.cuda_kernels.test:_first", (1,), 64)
        second = KernelSpec("nrt.cuda_kernels.test:_second", (problem.y.shape[-1],), 64)
        return Emission(
            (
                Launch(first, (3, 1, 1), (64, 1, 1), (In(0), In(1, 8), Work(), Null())),
                Launch(
                    second, (1, 2, 1), (8, 8, 1),
                    (Work(16), Out(0), Out(0, 4), Scalar(7), Scalar(0.5, "f32")),
                    shared=2048, cluster=(1, 2, 1),
                ),
            ),
            workspace=100,
        )  # fmt: skip


def cubin(spec: KernelSpec) -> Cubin:
    return Cubin(b"\x7fELF" + spec.factory.encode(), f"nrt_{spec.factory[-5:]}", 32, 0, 0)


def cuda_plan(m: Maker, config: tuple[Any, ...] = (), **options: Any) -> Plan:
    lowered = lower(m.graph)
    bound = [Bound(t, TwoLaunches(), config, None, "") for t in lowered.tasks]
    plan = assemble(
        lowered, bound, name="net", target=Target("cuda", "sm_90a"), device=DEVICE,
        ops_before={}, ops_after={}, versions={}, **{"binary": cubin, **options},
    )  # fmt: skip
    check_plan(plan)
    return plan


def launch_steps(plan: Plan) -> list[LaunchStep]:
    assert all(isinstance(s, LaunchStep) for s in plan.steps)
    return [s for s in plan.steps if isinstance(s, LaunchStep)]


def test_launch_arguments() -> None:
    m = Maker()
    x = m.input("x", 6, 10)
    table = m.const(6, 10)
    y = m.op(Add(), x, table)
    m.out("y", m.op(Add(), y, x))
    plan = cuda_plan(m)
    steps = launch_steps(plan)
    assert [s.layer for s in steps] == [0, 0, 1, 1]
    assert [s.kernel for s in steps] == [0, 1, 0, 1]
    assert [k.entry for k in plan.kernels] == ["nrt_first", "nrt_econd"]
    assert len(plan.cubins) == 2
    first, second, third, fourth = steps
    work = first.args[2]
    assert isinstance(work, BufferRef)
    assert work.space == "arena"
    assert first.args == (
        BufferRef("input", 0, 240),
        BufferRef("weights", 8, 232),
        work,
        BufferRef("null"),
    )
    out = second.args[1]
    assert isinstance(out, BufferRef)
    assert second.args[0].offset == work.offset + 16  # type: ignore[union-attr]
    assert second.args[1:] == (
        BufferRef("arena", out.offset, 240),
        BufferRef("arena", out.offset + 4, 236),
        ScalarArg(7, "u32"),
        ScalarArg(0.5, "f32"),
    )
    assert (second.grid, second.block) == ((1, 2, 1), (8, 8, 1))
    assert (second.shared, second.cluster) == (2048, (1, 2, 1))
    assert third.args[:2] == (BufferRef("arena", out.offset, 240), BufferRef("input", 8, 232))
    assert fourth.args[1] == BufferRef("output", 0, 240)
    # The workspace lives as long as its layer, and apart from the output written beside it.
    assert work.offset + 100 <= out.offset or out.offset + 240 <= work.offset


def test_launches_behind_launches_are_programmatic_when_asked() -> None:
    m = Maker()
    x = m.input("x", 6, 10)
    m.out("y", m.op(Add(), m.op(Add(), x, x), x))
    plain = cuda_plan(m)
    assert [s.programmatic for s in launch_steps(plain)] == [False] * 4
    plan = cuda_plan(m, programmatic=True)
    # Both launches of a layer, and the first of the next.
    assert [s.programmatic for s in launch_steps(plan)] == [False, True, True, True]
    assert replace(plan, steps=overlapped(plan.steps, False)) == plain
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


def test_only_a_launch_on_the_same_stream_is_overlapped() -> None:
    step = LaunchStep(0, (1, 1, 1), (32, 1, 1), ())
    other = replace(step, stream=1)
    block = BufferRef("arena", 0, 8)
    for between in (CopyStep(block, block), SetStep(block), ForkStep(0, (1,)), JoinStep(0, (1,))):
        steps = (step, step, between, step, step)
        marks = [getattr(s, "programmatic", None) for s in overlapped(steps, True)]
        assert marks == [False, True, None, False, True]
    steps = (step, other, step, step, other, other)
    marks = [getattr(s, "programmatic", None) for s in overlapped(steps, True)]
    assert marks == [False, False, True, True, True, True]
    # A fork or join ties both ends of it.
    for between in (ForkStep(0, (1,)), JoinStep(0, (1,)), ForkStep(1, (0,))):
        steps = (step, other, between, step, other, step)
        marks = [getattr(s, "programmatic", None) for s in overlapped(steps, True)]
        assert marks == [False, False, None, False, False, True]
    assert overlapped(overlapped(steps, True), False) == steps
    assert overlapped((), True) == ()


def test_packed_constants_of_a_launch() -> None:
    m = Maker()
    table = m.const(6, 10)
    m.out("y", m.op(Add(), m.input("x", 6, 10), table))
    plan = cuda_plan(m, ("flip",))
    assert launch_steps(plan)[0].args[1] == BufferRef("weights", 8, 472)
    assert table.constant is not None
    wanted = np.ascontiguousarray(table.constant[:, ::-1], np.float64)
    assert plan.weights == wanted.tobytes()


def test_kernels_with_equal_code_are_one_binary() -> None:
    m = Maker()
    x = m.input("x", 6, 10)
    m.out("y", m.op(Add(), x, x))
    same = Cubin(b"\x7fELF", "nrt_same", 32, 0, 0)
    plan = cuda_plan(m, binary=lambda spec: same)
    assert len(plan.cubins) == len(plan.kernels) == 1
    assert [s.kernel for s in launch_steps(plan)] == [0, 0]


def test_a_kernel_without_a_compiler_is_an_error() -> None:
    m = Maker()
    x = m.input("x", 6, 10)
    m.out("y", m.op(Add(), x, x))
    with pytest.raises(BuildError, match=r"no compiler for kernel nrt\.cuda_kernels\.test:_first"):
        cuda_plan(m, binary=None)
