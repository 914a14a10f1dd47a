"""One program for several: it computes what each of them does, on its own channels."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.pointwise import Builder, Program, identity
from nrt.ir.value import Value
from nrt.passes.fuse_siblings_epilogue import Ending, unified

SPECIAL = np.array([0.0, -0.0, 1.5, -1.5, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)


def vector(*values: float) -> Array:
    return np.array(values, np.float32)


def run(ending: Ending, accumulator: Array) -> Array:
    """The program on rows of channels."""
    assert not any(isinstance(o, Value) for o in ending.operands)
    (result,) = ending.program.evaluate(accumulator, *ending.operands)  # type: ignore[arg-type]
    return np.broadcast_to(result, accumulator.shape)


def assert_same(endings: list[Ending]) -> Ending:
    """The common epilogue gives on every sibling's channels exactly what its own does."""
    common = unified(endings)
    assert isinstance(common, Ending), common
    assert common.channels == sum(e.channels for e in endings)
    rng = np.random.default_rng(secrets.randbits(32))
    rows = rng.standard_normal((20, common.channels)).astype(np.float32)
    rows[: len(SPECIAL)] = SPECIAL[:, None]
    found, start = run(common, rows), 0
    for ending in endings:
        stop = start + ending.channels
        wanted = run(ending, rows[:, start:stop])
        np.testing.assert_array_equal(found[:, start:stop], wanted)
        finite = np.isfinite(wanted)
        assert np.array_equal(
            np.signbit(found[:, start:stop])[finite], np.signbit(wanted)[finite]
        ), "the sign of a zero changed"
        start = stop
    return common


def chain(*steps: tuple[str, float | Array | None], channels: int = 3) -> Ending:
    """Steps on the accumulator, each with a number, a vector of channels or nothing."""
    vectors = [s for _, s in steps if isinstance(s, np.ndarray)]
    b = Builder("f" * (1 + len(vectors)))
    running, slot = 0, 0
    for opcode, operand in steps:
        args = [running]
        if isinstance(operand, np.ndarray):
            slot += 1
            args.append(slot)
        elif operand is not None:
            args.append(b.const(operand))
        running = b(opcode, *args)
    return Ending(b.build(running), tuple(vectors), channels)


RELU = ("max", 0.0)
BIAS, OTHER = ("add", vector(1, -2, 0.5)), ("add", vector(-0.25, 3, 0))


def test_what_is_equal_stays_as_it_is() -> None:
    common = assert_same([chain(BIAS, RELU), chain(OTHER, RELU)])
    assert common.program.text() == "add(x0, x1); max(r2, 0.0)"
    np.testing.assert_array_equal(common.operands[0], vector(1, -2, 0.5, -0.25, 3, 0))  # type: ignore[arg-type]


def test_a_sibling_without_activation_has_a_bound_of_minus_infinity() -> None:
    """The downsample beside the first convolution of a residual block."""
    common = assert_same([chain(BIAS, RELU), chain(OTHER)])
    assert common.program.text() == "add(x0, x1); max(r3, x2)"
    np.testing.assert_array_equal(common.operands[1], [0.0] * 3 + [-math.inf] * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ([BIAS], [RELU], "add(x0, x1); max(r3, x2)"),
        ([BIAS], [], "add(x0, x1)"),
        ([RELU], [("max", 0.0), ("min", 6.0)], "max(x0, 0.0); min(r3, x1)"),
        ([("max", 0.0), ("min", 6.0)], [("max", -1.0), ("min", 1.0)], "max(x0, x1); min(r3, x2)"),
        ([("mul", 2.0), BIAS], [BIAS], "mul(x0, x1); add(r3, x2)"),
        ([("sub", 2.0)], [("div", 3.0)], "sub(x0, x1); div(r3, x2)"),
        ([BIAS, ("sigmoid", None), OTHER], [BIAS, ("sigmoid", None)], "add(x0, x1); sigmoid(r3)"),
        ([], [], "identity"),
    ],
    ids=str,
)
def test_steps_that_one_lacks_do_nothing_there(
    first: list[tuple[str, float | Array | None]],
    second: list[tuple[str, float | Array | None]],
    text: str,
) -> None:
    common = assert_same([chain(*first), chain(*second, channels=3)])
    assert common.program.text().startswith(text)


@st.composite
def endings(draw: st.DrawFn) -> list[Ending]:
    def one() -> Ending:
        channels = draw(st.integers(1, 3))
        steps: list[tuple[str, float | Array | None]] = []
        for _ in range(draw(st.integers(0, 4))):
            opcode = draw(st.sampled_from(["add", "sub", "mul", "div", "max", "min"]))
            number = draw(st.sampled_from([0.5, -1.0, 3.0, 0.0, 6.0]))
            values = [draw(st.sampled_from([0.25, -2.0, 1.0])) for _ in range(channels)]
            steps.append((opcode, vector(*values) if draw(st.booleans()) else number))
        return chain(*steps, channels=channels)

    return [one() for _ in range(draw(st.integers(1, 4)))]


@settings(max_examples=300, deadline=None)
@given(endings())
def test_any_chains_of_arithmetic_have_a_common_one(cases: list[Ending]) -> None:
    note(" | ".join(e.program.text() for e in cases))
    assert_same(cases)


def silu(factor: float) -> Ending:
    b = Builder("ff")
    x = b("add", 0, 1)
    program = b.build(b("mul", x, b("sigmoid", b("mul", b.const(factor), x))))
    return Ending(program, (vector(1, 2),), 2)


def test_programs_that_are_no_chain_may_differ_in_constants() -> None:
    common = assert_same([silu(1.0), silu(1.5), silu(0.25)])
    np.testing.assert_array_equal(common.operands[1], [1, 1, 1.5, 1.5, 0.25, 0.25])  # type: ignore[arg-type]
    assert len(assert_same([silu(2.0), silu(2.0)]).operands) == 1


def test_running_value_on_the_right() -> None:
    def ending(number: float) -> Ending:
        b = Builder("f")
        return Ending(b.build(b("sub", b.const(number), 0)), (), 2)

    assert assert_same([ending(1.0), ending(2.0)]).program.text() == "sub(x1, x0)"
    bare = unified([ending(1.0), Ending(identity(), (), 2)])
    assert bare == "the epilogues differ: 'sub(1.0, x0)' and 'identity'"


def test_operands_of_two_types_meet_in_the_wider() -> None:
    half = Ending(chain(BIAS).program, (vector(1, 2, 3).astype(np.float16),), 3)
    common = assert_same([half, chain(BIAS)])
    assert common.operands[0].dtype == np.float32  # type: ignore[union-attr]
    assert assert_same([half, half]).operands[0].dtype == np.float16  # type: ignore[union-attr]


def test_integers_beside_floats_are_refused() -> None:
    def ending(kind: str, values: Array) -> Ending:
        b = Builder("f" + kind)
        return Ending(b.build(b("add", 0, 1 if kind == "f" else b("to_f", 1))), (values,), 2)

    whole = ending("i", np.array([1, 2]))
    assert assert_same([whole, whole]).operands[0].dtype == np.int64  # type: ignore[union-attr]
    found = unified([whole, ending("f", vector(1, 2))])
    assert isinstance(found, str)
    assert found.startswith("the epilogues differ: ")


def test_integer_constants_that_differ_are_refused() -> None:
    def ending(number: int) -> Ending:
        b = Builder("f")
        return Ending(b.build(b("mul", 0, b("to_f", b.const(number)))), (), 1)

    assert unified([ending(1), ending(2)]) == "constants [1, 2] of the epilogues are no floats"
    assert isinstance(unified([ending(2), ending(2)]), Ending)


def _program(*opcodes: str) -> Program:
    return chain(*((o, None) for o in opcodes)).program


def test_activations_that_only_one_has_are_refused() -> None:
    found = unified([Ending(_program("tanh"), (), 1), Ending(_program(), (), 2)])
    assert found == "the epilogues differ: 'tanh(x0)' and 'identity'"
    found = unified([Ending(_program("tanh"), (), 1), Ending(_program("exp"), (), 2)])
    assert found == "the epilogues differ: 'tanh(x0)' and 'exp(x0)'"
    found = unified([silu(1.0), Ending(identity(), (), 2)])
    assert isinstance(found, str)
    assert "'identity'" in found


def test_values_are_shared_or_refused() -> None:
    graph = Graph("values")
    gate, other = graph.add_input("gate", (2, 1), FP32), graph.add_input("other", (2, 1), FP32)
    b = Builder("ff")
    program = b.build(b("mul", 0, 1))
    common = unified([Ending(program, (gate,), 2), Ending(program, (gate,), 3)])
    assert isinstance(common, Ending)
    assert common.operands == (gate,)
    for last in (Ending(program, (other,), 3), Ending(program, (vector(1, 2, 3),), 3)):
        found = unified([Ending(program, (gate,), 2), last])
        assert found == "an epilogue reads 'gate', which the others do not"
    relu = chain(RELU)
    found = unified([relu, Ending(program, (gate,), 2)])
    assert found == "an epilogue reads 'gate', which the others do not"
