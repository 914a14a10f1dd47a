from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.dtypes import FP8E4M3, FP32, FP64, INT8, UINT8, DType
from nrt.ir.op import Array
from nrt.ir.ops.common import apply_epilogue
from nrt.ir.pointwise import Builder, Program
from nrt.passes.requantize_program import (
    final_factor,
    machine_cost,
    scaled,
    without_implied_clamps,
)

LIMITS = (
    *(-math.inf, -300.0, -128.51, -128.5, -128.0, -127.6, -127.5, -127.4, -3.0, -0.1, 0.0, 0.4),
    *(0.5, 0.51, 6.0, 126.5, 126.6, 127.0, 127.5, 200.0, 254.5, 254.51, 255.0, 255.5, math.inf),
    *(-449.0, -433.0, -432.0, 431.0, 432.0, 433.0, 448.0, 464.0, math.nan),
)
SWEEP = np.concatenate(
    [
        np.arange(-140.0, 270.0, 0.25, dtype=np.float32),
        np.arange(-500.0, 500.0, dtype=np.float32),
        np.asarray([*LIMITS, -3e38, 3e38, -2.2e9, 2.2e9, -0.0], np.float32),
    ]
)


def chain(*clamps: tuple[str, float]) -> Program:
    b = Builder("f")
    register = 0
    for opcode, limit in clamps:
        register = b(opcode, register, b.const(limit))
    return b.build(register)


def stored(program: Program, dtype: DType) -> Array:
    return apply_epilogue(program, SWEEP.copy(), (), dtype).astype(np.float32)


CLAMPS = st.tuples(st.sampled_from(("max", "min")), st.sampled_from(LIMITS))


@given(st.lists(CLAMPS, max_size=5), st.sampled_from((INT8, UINT8, FP8E4M3)))
def test_what_is_stored_stays(clamps: list[tuple[str, float]], dtype: DType) -> None:
    program = chain(*clamps)
    found = without_implied_clamps(program, dtype)
    np.testing.assert_array_equal(stored(found, dtype), stored(program, dtype))
    assert without_implied_clamps(found, dtype) == found


@pytest.mark.parametrize(
    ("clamps", "dtype", "text"),
    [
        ([("max", 0.0), ("min", 255.0)], UINT8, "identity"),
        ([("min", 300.0), ("max", -4.0)], UINT8, "identity"),
        ([("max", 0.0), ("min", 255.0)], INT8, "max(x0, 0.0)"),
        ([("max", -128.0), ("min", 127.0)], INT8, "identity"),
        # Limits that are rounded to the end of the range, and the tie that is not.
        ([("max", 0.5), ("min", 254.51)], UINT8, "identity"),
        ([("max", 0.51), ("min", 254.5)], UINT8, "max(x0, 0.51); min(r2, 254.5)"),
        ([("max", -127.5), ("min", 126.5)], INT8, "min(x0, 126.5)"),
        # What is behind may be any clamp, also one beyond the other end.
        ([("max", 0.0), ("min", 6.0)], UINT8, "min(x0, 6.0)"),
        ([("max", -1.0), ("min", -5.0)], UINT8, "min(x0, -5.0)"),
        ([("min", 256.0), ("max", 700.0)], UINT8, "max(x0, 700.0)"),
        ([("max", math.nan), ("min", math.nan)], UINT8, "max(x0, nan); min(r2, nan)"),
        ([("max", -448.0), ("min", 448.0)], FP8E4M3, "identity"),
        # Halfway between 416 and 448, which is even.
        ([("max", -431.0), ("min", 432.0)], FP8E4M3, "max(x0, -431.0)"),
    ],
)
def test_which_clamps_go(clamps: list[tuple[str, float]], dtype: DType, text: str) -> None:
    program = chain(*clamps)
    found = without_implied_clamps(program, dtype)
    assert found.text() == text
    np.testing.assert_array_equal(stored(found, dtype), stored(program, dtype))


def test_clamps_before_other_steps_stay() -> None:
    b = Builder("ff")
    inner = b("add", b("max", 0, b.const(0.0)), 1)
    # A constant may be either operand.
    program = b.build(b("min", b.const(255.0), b("max", inner, b.const(-1.0))))
    found = without_implied_clamps(program, UINT8)
    assert found.text() == "max(x0, 0.0); add(r3, x1)"
    b = Builder("ff")
    program = b.build(b("max", 0, 1))
    assert without_implied_clamps(program, UINT8) is program


def test_a_step_between_clamps_ends_the_chain() -> None:
    b = Builder("f")
    inner = b("fp16", b("max", 0, b.const(0.0)))
    found = without_implied_clamps(b.build(b("min", inner, b.const(300.0))), UINT8)
    assert found.text() == "max(x0, 0.0); fp16(r2)"


def test_the_cost_counts_a_product_and_its_addition_once() -> None:
    b = Builder("fff")
    assert machine_cost(b.build(b("add", b("mul", 0, 1), 2))) == 1
    b = Builder("fff")
    assert machine_cost(b.build(b("mul", b("add", 0, 1), 2))) == 2
    b = Builder("fff")
    product = b("mul", 0, 1)
    assert machine_cost(b.build(b("add", product, b("max", product, 2)))) == 3
    b = Builder("ff")
    assert machine_cost(b.build(b("sub", b("mul", 0, 0), b("mul", 1, b.const(2.0))))) == 2


def test_the_final_factor_on_either_side() -> None:
    b = Builder("f")
    value = b("exp", 0)
    program = b.build(b("mul", b.const(3.0), value))
    assert final_factor(program) == (1, 3.0)
    b = Builder("ff")
    assert final_factor(b.build(b("mul", 0, 1))) is None
    assert final_factor(b.build(b("add", 0, b.const(3.0)))) is None
    assert final_factor(b.build(0)) is None
    two = Program(("f",), program.instrs, (program.outputs[0], 0))
    assert final_factor(two) is None


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Of an accumulator and three operands, by any steps that are defined for all numbers."""
    b = Builder("ffff")
    registers = [0, 1, 2, 3]
    for _ in range(draw(st.integers(1, 9))):
        opcode = draw(
            st.sampled_from(
                ("const", "add", "add", "sub", "mul", "mul", "max", "min", "neg", "tanh", "abs")
            )
        )
        if opcode == "const":
            registers.append(b.const(draw(st.sampled_from((-3.0, 0.0, 0.7, 2.0, 6.0)))))
            continue
        count = 1 if opcode in ("neg", "tanh", "abs") else 2
        # Mostly what is new, so that little is dead.
        recent = st.sampled_from([*registers, *registers[-3:], *registers[-1:] * 3])
        registers.append(b(opcode, *(draw(recent) for _ in range(count))))
    return b.build(registers[-1])


KNOWN = st.frozensets(st.sampled_from((1, 2, 3)))


def pairs(program: Program, factor: float, known: frozenset[int]) -> tuple[Array, Array, float]:
    """The program's result times the factor, that of the scaled one, and the largest register."""
    rng = np.random.default_rng()
    arrays = [rng.standard_normal(64) * 3 for _ in range(4)]
    found = scaled(program, program.outputs[0], factor, known, FP64)
    assert found.inputs <= known
    new = [a * factor if i in found.inputs else a for i, a in enumerate(arrays)]
    (wanted,) = program.evaluate(*arrays)
    (result,) = found.program.evaluate(*new)
    every = Program(program.inputs, program.instrs, tuple(range(len(program.kinds))))
    size = max(float(np.abs(a).max()) for a in every.evaluate(*arrays))
    return wanted * factor, result, size


@given(programs(), st.sampled_from((0.125, 0.5, 4.0, 128.0)), KNOWN)
def test_powers_of_two_are_exact(program: Program, factor: float, known: frozenset[int]) -> None:
    wanted, result, _ = pairs(program, factor, known)
    np.testing.assert_array_equal(np.broadcast_to(result, wanted.shape), wanted)


@given(programs(), st.floats(1e-3, 1e3), KNOWN)
def test_other_factors_round(program: Program, factor: float, known: frozenset[int]) -> None:
    wanted, result, size = pairs(program, factor, known)
    # In float64; terms that cancel leave the roundings of larger ones.
    np.testing.assert_allclose(
        np.broadcast_to(result, wanted.shape), wanted, rtol=1e-9, atol=1e-9 * size * factor
    )


@given(programs(), KNOWN)
def test_one_product_more_at_most(program: Program, known: frozenset[int]) -> None:
    found = scaled(program, program.outputs[0], 3.0, known, FP32).program

    def steps(p: Program) -> int:
        return sum(i.opcode != "const" for i in p.instrs)

    # Equal numbers that were one register need not stay that; nothing else is written twice.
    assert steps(found) <= steps(program) + 1


def test_data_that_are_read_twice_are_left_alone() -> None:
    b = Builder("ff")
    program = b.build(b("add", b("mul", 0, 1), 1))
    found = scaled(program, program.outputs[0], 3.0, {1}, FP32)
    assert found.inputs == frozenset()
    assert found.program.text() == "mul(x0, x1); add(r2, x1); mul(r3, 3.0)"


def test_one_of_two_factors_is_scaled() -> None:
    b = Builder("ff")
    program = b.build(b("mul", b("mul", 0, 1), b.const(0.5)))
    found = scaled(program, program.outputs[0], 3.0, {1}, FP32)
    # The number, rather than the data.
    assert (found.inputs, found.numbers) == (frozenset(), (0.5,))
    assert found.program.text() == "mul(x0, x1); mul(r2, 1.5)"


def test_a_square_of_a_number_takes_the_factor_once() -> None:
    b = Builder("f")
    number = b.const(5.0)
    program = b.build(b("add", b("mul", number, number), 0))
    found = scaled(program, program.outputs[0], 3.0, (), FP32).program
    assert found.text() == "mul(15.0, 5.0); mul(x0, 3.0); add(r3, r5)"


def test_new_numbers_are_rounded_once() -> None:
    b = Builder("f")
    program = b.build(b("mul", 0, b.const(0.1)))
    text = scaled(program, program.outputs[0], 0.3, (), FP32).program.text()
    assert text == f"mul(x0, {float(np.float32(0.1 * 0.3))})"
    assert scaled(program, 2, 0.3, (), FP64).program.text() == f"mul(x0, {0.1 * 0.3})"
