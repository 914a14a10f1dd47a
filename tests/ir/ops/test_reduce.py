"""Reduce against the formulas, in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nrt.dtypes import BOOL, FP32, INT32
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.ops import Reduce
from nrt.ir.pointwise import Builder, Instr, Program

RTOL64 = 1e-12
RTOL32 = 1e-5


def formula(kind: str, flat: Array) -> float:
    """The reduction of a vector."""
    return {
        "mean": lambda: sum(flat) / len(flat),
        "sum": lambda: sum(flat),
        "max": lambda: sorted(flat)[-1],
        "min": lambda: sorted(flat)[0],
        "prod": lambda: np.exp(np.log(np.abs(flat)).sum()) * (-1) ** (np.sum(flat < 0)),
        "l1": lambda: sum(abs(v) for v in flat),
        "l2": lambda: sum(v * v for v in flat) ** 0.5,
        "sum_square": lambda: sum(v * v for v in flat),
    }[kind]()


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(1,), (0, 2), (-1, 0, 1), ()])
@pytest.mark.parametrize("kind", ["mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square"])
def test_matches_the_formula(
    rng: np.random.Generator, kind: str, axes: tuple[int, ...], keepdims: bool
) -> None:
    x = rng.standard_normal((3, 5, 7))
    (y,) = Reduce(kind, axes, keepdims).reference(x)
    reduced = sorted(a % 3 for a in axes)
    kept = [a for a in range(3) if a not in reduced]
    rows = x.transpose(*kept, *reduced).reshape(*[x.shape[a] for a in kept], -1)
    want = np.apply_along_axis(lambda flat: formula(kind, flat), -1, rows)
    shape = (
        tuple(1 if a in reduced else d for a, d in enumerate(x.shape)) if keepdims else want.shape
    )
    assert y.shape == shape
    np.testing.assert_allclose(y, want.reshape(shape), rtol=RTOL64)
    (y32,) = Reduce(kind, axes, keepdims).reference(x.astype(np.float32))
    assert y32.dtype == np.float32
    np.testing.assert_allclose(y32, want.reshape(shape), rtol=RTOL32, atol=RTOL32)


def test_small_floats_accumulate_in_float32() -> None:
    x = np.full((1, 1, 70, 70), 2.0, np.float16)
    (total,) = Reduce("sum", (2, 3), False).reference(x)
    (mean,) = Reduce("mean", (2, 3)).reference(x)
    assert total.dtype == mean.dtype == np.float16
    assert total.item() == 9800.0
    assert mean.item() == 2.0


def test_integers() -> None:
    x = np.array([[100, 100, 27], [-5, 2, 1]], np.int32)
    assert Reduce("sum", (1,), False).reference(x)[0].tolist() == [227, -2]
    # Truncated toward zero, as an integer division is.
    assert Reduce("mean", (1,), False).reference(x)[0].tolist() == [75, 0]
    assert Reduce("max", (0,), False).reference(x)[0].dtype == np.int32


def test_bools() -> None:
    x = np.array([[True, False], [True, True]])
    assert Reduce("min", (1,), False).reference(x)[0].tolist() == [False, True]
    assert Reduce("max", (0, 1), False).reference(x)[0].item() is True


def test_empty_dimensions_give_neutral_elements() -> None:
    x = np.zeros((2, 0, 3), np.float32)
    for kind, want in (("sum", 0), ("prod", 1), ("max", -np.inf), ("min", np.inf), ("l2", 0)):
        (y,) = Reduce(kind, (1,)).reference(x)
        assert y.shape == (2, 1, 3)
        assert (y == want).all()


def test_misfits_are_named() -> None:
    x = TensorType((3, 5), FP32)
    with pytest.raises(ShapeError, match="Reduce: kind 'median' is unknown, expected mean, sum"):
        Reduce("median", (1,)).infer(x)
    with pytest.raises(ShapeError, match="Reduce: axis 2 is out of range for rank 2"):
        Reduce("sum", (2,)).infer(x)
    with pytest.raises(ShapeError, match=r"Reduce: axes \(1, -1\) name a dimension twice"):
        Reduce("sum", (1, -1)).infer(x)
    with pytest.raises(ShapeError, match="Reduce: sum of bool; insert a Cast"):
        Reduce("sum", (1,)).infer(TensorType((3, 5), BOOL))


# -- programs around it ----------------------------------------------------------------------------


def relu_of_scaled() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("mul", 0, 1), b.const(0.0)))


def minus() -> Program:
    b = Builder("ff")
    return b.build(b("sub", 0, 1))


def test_prologue_and_epilogue() -> None:
    rng = np.random.default_rng()
    x, scale, shift = (rng.standard_normal(s) for s in ((3, 4, 5), (4, 1), (3, 4)))
    op = Reduce("sum", (2,), False, relu_of_scaled(), minus())
    assert op.parts(["x", "scale", "shift"]) == ("x", ("scale",), ("shift",))
    (y,) = op.reference(x, scale, shift)
    np.testing.assert_allclose(y, np.maximum(x * scale, 0).sum(2) - shift, rtol=1e-12, atol=1e-12)


def test_programs_do_not_round_in_between() -> None:
    """60000 squared is beyond fp16, its root is not."""
    b = Builder("f")
    square = b.build(b("mul", 0, 0))
    b = Builder("f")
    root = b.build(b("sqrt", 0))
    x = np.full((2, 1), 60000, np.float16)
    (y,) = Reduce("mean", (0,), prologue=square, epilogue=root).reference(x)
    assert y.dtype == np.float16
    assert y.tolist() == [[60000.0]]


def test_the_output_may_be_stored_wider() -> None:
    x = np.full((300, 300), 3, np.float16)
    (y,) = Reduce("sum", (0, 1), False, out_dtype=FP32).reference(x)
    assert y.dtype == np.float32
    assert y.item() == 270000.0


def test_a_prologue_of_constants_alone_still_counts_every_element() -> None:
    b = Builder("f")
    (y,) = Reduce("sum", (0,), False, b.build(b.const(2.0))).reference(np.zeros((7, 2)))
    assert y.tolist() == [14.0, 14.0]


X = TensorType((3, 4), FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (Reduce("sum", (1,)), [X, X], "got 2 inputs, expected 1 without an epilogue"),
        (
            Reduce("sum", (1,), prologue=minus()),
            [X],
            "got 0 prologue inputs, the prologue reads 1",
        ),
        (
            Reduce("sum", (1,), prologue=minus()),
            [X, TensorType((5,), FP32)],
            "shapes [5], [3,4] do not broadcast",
        ),
        (
            Reduce("sum", (1,), prologue=minus()),
            [X, TensorType((2, 3, 4), FP32)],
            "prologue input 0 has shape [2,3,4], which does not broadcast to the input [3,4]",
        ),
        (
            Reduce("sum", (1,), epilogue=minus()),
            [X, X],
            "epilogue input 0 has shape [3,4], which does not broadcast to the output [3,1]",
        ),
        (
            Reduce("sum", (1,), prologue=minus()),
            [TensorType((3, 4), INT32)] * 2,
            "reads int32 and stores int32; with a prologue, an epilogue or out_dtype both are",
        ),
        (Reduce("max", (1,), out_dtype=INT32), [X], "reads fp32 and stores int32"),
        (
            Reduce("sum", (1,), prologue=Program(("f",), (Instr("isnan", (0,)),), (1,))),
            [X],
            "the prologue gives kind 'b', expected a float",
        ),
        (
            Reduce("sum", (1,), prologue=Program(("b",), (), (0,))),
            [X],
            "prologue register 0 must be the input's float element",
        ),
        (
            Reduce("sum", (1,), prologue=Program(("f",), (), (0, 0))),
            [X],
            "prologue has 2 outputs, expected 1",
        ),
    ],
)
def test_programs_that_do_not_fit(op: Reduce, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"Reduce: {message}")):
        op.infer(*inputs)
