"""Pointwise programs: kinds, evaluation, source text, rewriting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.errors import GraphError
from nrt.ir.pointwise import OPCODES, Builder, Instr, Program, compose, identity

RTOL = 1e-12

# Scalar meanings of the names that source text uses.
NAMESPACE: dict[str, Any] = {
    "F": float,
    "I": int,
    "nan": math.nan,
    "inf": math.inf,
    "idiv": lambda a, b: int(a / b),
    "pow_": lambda a, b: float(np.power(np.float64(a), b)),
    "min_": lambda a, b: a if math.isnan(a) or a < b else b,
    "max_": lambda a, b: a if math.isnan(a) or a > b else b,
    "abs_": abs,
    "sign_": lambda a: (a > 0) - (a < 0) + a * 0,
    "sqrt_": lambda a: float(np.sqrt(np.float64(a))),
    "exp_": lambda a: float(np.exp(np.float64(a))),
    "log_": lambda a: float(np.log(np.float64(a))),
    "tanh_": math.tanh,
    "sigmoid_": lambda a: float(1 / (1 + np.exp(-np.float64(a)))),
    "erf_": math.erf,
    "sin_": math.sin,
    "cos_": math.cos,
    "floor_": math.floor,
    "ceil_": math.ceil,
    "rint_": round,
    "to_f": float,
    "to_i": int,
    "round_fp16": lambda a: float(np.float16(a)),
}

SAFE = ("add", "sub", "mul", "min", "max", "neg", "abs", "tanh", "sigmoid", "erf", "sin", "cos")


@st.composite
def programs(draw: st.DrawFn, inputs: int | None = None) -> Program:
    """Float programs of bounded functions, with comparisons and selections."""
    count = inputs or draw(st.integers(1, 3))
    b = Builder("f" * count)
    floats, bools = list(range(count)), []
    for _ in range(draw(st.integers(0, 10))):
        kind = draw(st.sampled_from(["op", "const", "compare", "where"]))
        if kind == "const":
            floats.append(b.const(draw(st.floats(-2, 2))))
        elif kind == "compare":
            pair = [draw(st.sampled_from(floats)) for _ in range(2)]
            bools.append(b(draw(st.sampled_from(["lt", "le", "eq"])), *pair))
        elif kind == "where" and bools:
            pair = [draw(st.sampled_from(floats)) for _ in range(2)]
            floats.append(b("where", draw(st.sampled_from(bools)), *pair))
        else:
            opcode = draw(st.sampled_from(SAFE))
            args = [draw(st.sampled_from(floats)) for _ in range(OPCODES[opcode].arity)]
            floats.append(b(opcode, *args))
    return Program(b.inputs, tuple(b.instrs), (draw(st.sampled_from(floats)),))


def arrays(program: Program, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-2, 2, 5) for _ in program.inputs]


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(0, 2**32 - 1))
def test_simplified_computes_the_same(program: Program, seed: int) -> None:
    x = arrays(program, seed)
    short = program.simplified()
    assert len(short.instrs) <= len(program.instrs)
    assert short.simplified() == short
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(short.evaluate(*x)[0], program.evaluate(*x)[0])


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(0, 2**32 - 1))
def test_source_computes_the_same(program: Program, seed: int) -> None:
    namespace = dict(NAMESPACE)
    exec(program.source("f"), namespace)
    x = arrays(program, seed)
    got = [namespace["f"](*(float(a[i]) for a in x)) for i in range(5)]
    want = np.broadcast_to(program.evaluate(*x)[0], 5)
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)


@settings(max_examples=100, deadline=None)
@given(programs())
def test_data_round_trip(program: Program) -> None:
    assert Program.from_data(program.to_data()) == program


@settings(max_examples=100, deadline=None)
@given(programs(), programs(inputs=3), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_compose_is_substitution(first: Program, second: Program, slot: int, seed: int) -> None:
    both = compose(first, second, slot)
    x = arrays(both, seed)
    count = len(first.inputs)
    middle = np.broadcast_to(first.evaluate(*x[slot : slot + count])[0], 5)
    want = second.evaluate(*x[:slot], middle, *x[slot + count :])[0]
    np.testing.assert_array_equal(both.evaluate(*x)[0], want)


def test_every_opcode_has_source_that_agrees_with_numpy() -> None:
    values = {"f": [0.75, -1.25, 2.5], "i": [7, -3, 2], "b": [True, False, True]}
    kinds = {
        "idiv": "ii", "and": "bb", "or": "bb", "xor": "bb", "not": "b", "where": "bff",
        "to_f": "i", "to_i": "f", "to_b": "f", "log": "f", "sqrt": "f",
    }  # fmt: skip
    for name, opcode in OPCODES.items():
        if name == "const":
            continue
        inputs = kinds.get(name, "f" * opcode.arity)
        args = [values[k][i] for i, k in enumerate(inputs)]
        b = Builder(inputs)
        program = b.build(b(name, *range(opcode.arity)))
        namespace = dict(NAMESPACE)
        exec(program.source(), namespace)
        want = program.evaluate(*(np.asarray(a) for a in args))[0]
        got = namespace["pointwise"](*args)
        np.testing.assert_allclose(np.asarray(got, np.float64), want.astype(float), err_msg=name)


def test_kinds_follow_from_opcodes() -> None:
    b = Builder("fib")
    total = b("add", 0, b("to_f", 1))
    small = b("lt", total, b.const(1.0))
    b("where", 2, 1, b.const(3))
    program = Program(b.inputs, tuple(b.instrs), (small,))
    assert program.kinds == ("f", "i", "b", "f", "f", "f", "b", "i", "i")


def test_broadcasting_and_precision() -> None:
    b = Builder("ff")
    program = b.build(b("mul", b("add", 0, 1), b.const(0.1)))
    x, y = np.float32([[1], [2]]), np.float32([3, 4, 5])
    (z,) = program.evaluate(x, y)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, (x + y) * np.float32(0.1))
    assert program.evaluate(x.astype(np.float64), y)[0].dtype == np.float64


def test_fp16_rounds_as_a_stored_value_would() -> None:
    b = Builder("f")
    program = b.build(b("fp16", b("mul", 0, b.const(1 / 3))))
    x = np.linspace(-5, 5, 41, dtype=np.float32)
    want = (x * np.float32(1 / 3)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(program.evaluate(x)[0], want)


def test_simplified_shares_and_drops() -> None:
    b = Builder("f")
    one, other = b.const(1.0), b.const(1.0)
    left, right = b("add", 0, one), b("add", 0, other)
    b("exp", left)
    square = b("mul", left, right)
    program = Program(b.inputs, tuple(b.instrs), (square,)).simplified()
    assert program.text() == "add(x0, 1.0); mul(r2, r2)"
    assert program.flops == 2
    # 0 and 0.0, and 0.0 and -0.0, are different constants.
    c = Builder("f")
    mixed = c.build(c("div", c.const(1.0), c.const(-0.0)), c("div", c.const(1.0), c.const(0.0)))
    assert [float(v) for v in mixed.evaluate(np.float64(0))] == [-math.inf, math.inf]


def test_literals_of_special_values() -> None:
    b = Builder("f")
    consts = [b.const(v) for v in (math.inf, -math.inf, math.nan, 3, True)]
    text = Program(b.inputs, tuple(b.instrs), tuple(consts)).source()
    for literal in ("F(inf)", "F(-inf)", "F(nan)", "I(3)", "True"):
        assert literal in text


def test_identity() -> None:
    x = np.arange(3.0)
    assert identity().evaluate(x)[0].tolist() == [0, 1, 2]
    assert identity().text() == "identity"
    assert identity("i").kinds == ("i",)


@pytest.mark.parametrize(
    ("inputs", "instrs", "outputs", "message"),
    [
        ("f", [Instr("gelu", (0,))], (1,), "instruction 0: opcode 'gelu' is unknown"),
        ("f", [Instr("add", (0,))], (1,), "instruction 0: add has 1 arguments, expected 2"),
        ("f", [Instr("add", (0, 1))], (1,), r"reads a register that is not defined yet: \(0, 1\)"),
        ("fi", [Instr("add", (0, 1))], (2,), r"add mixes kinds \['f', 'i'\]; convert with to_f"),
        ("bfi", [Instr("where", (0, 1, 2))], (3,), "where mixes kinds"),
        ("f", [Instr("const")], (1,), "const needs a bool, int or float, got None"),
        ("f", [], (1,), "output register 1 is not defined"),
    ],
)
def test_broken_programs_are_refused(
    inputs: str, instrs: list[Instr], outputs: tuple[int, ...], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        Program(tuple(inputs), tuple(instrs), outputs)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "malformed data"),
        ([["f"], [["exp"]], [0]], "malformed data"),
        ([["f"], [["exp", [0], None]], ["x"]], "malformed data"),
        ([["q"], [], [0]], r"unknown input kinds \('q',\)"),
        ([["f"], [["boom", [0], None]], [1]], "opcode 'boom' is unknown"),
        ([["f"], [["exp", [7], None]], [1]], "reads a register that is not defined yet"),
    ],
)
def test_broken_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Program.from_data(data)


def test_constants_are_equal_when_written_alike() -> None:
    """Kernels are cached by program: constants of different kinds must not be the same key."""
    alike = [Instr("const", (), v) for v in (math.nan, 1, 1.0, True, 0.0, -0.0)]
    assert len(set(alike)) == len(alike)
    assert Instr("const", (), math.nan) == Instr("const", (), float("nan"))
    assert Instr("const", (), 0.5) == Instr("const", (), 0.5)
    assert Instr("add", (0, 1)) != Instr("sub", (0, 1))


def test_numpy_scalars_become_python_numbers() -> None:
    b = Builder("f")
    y = b("mul", 0, b.const(np.float64(0.5)))
    program = b.build(b("add", y, b.const(np.float32(2))))
    assert "F(0.5)" in program.source()
    assert program.evaluate(np.float64(3))[0] == 3.5
    c = Builder("i")
    assert c.build(c("add", 0, c.const(np.int64(4)))).kinds == ("i", "i", "i")
