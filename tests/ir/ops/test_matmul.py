"""MatMul against sums written as einsum."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, INT8, INT32
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Builder

RTOL64 = 1e-12
RTOL16 = 2e-3


@pytest.mark.parametrize(
    ("a", "b", "op", "equation"),
    [
        ((5, 7), (7, 3), MatMul(), "mk,kn->mn"),
        ((7, 5), (7, 3), MatMul(trans_a=True), "km,kn->mn"),
        ((5, 7), (3, 7), MatMul(trans_b=True), "mk,nk->mn"),
        ((7, 5), (3, 7), MatMul(True, True), "km,nk->mn"),
        ((2, 4, 5, 7), (2, 4, 7, 3), MatMul(), "abmk,abkn->abmn"),
        ((4, 5, 7), (7, 3), MatMul(), "amk,kn->amn"),
        ((5, 7), (2, 3, 7), MatMul(trans_b=True), "mk,ank->amn"),
        ((7,), (7, 3), MatMul(), "k,kn->n"),
        ((2, 5, 7), (7,), MatMul(), "amk,k->am"),
        ((7,), (7,), MatMul(True, True), "k,k->"),
        ((7,), (4, 7, 3), MatMul(trans_a=True), "k,akn->an"),
        ((3, 0), (0, 2), MatMul(), "mk,kn->mn"),
    ],
)
def test_matches_einsum(
    rng: np.random.Generator,
    a: tuple[int, ...],
    b: tuple[int, ...],
    op: MatMul,
    equation: str,
) -> None:
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    (z,) = op.reference(x, y)
    want = np.einsum(equation, x, y)
    assert z.shape == want.shape
    np.testing.assert_allclose(z, want, rtol=RTOL64, atol=RTOL64)


def test_batches_broadcast(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((3, 1, 2, 5)), rng.standard_normal((4, 5, 6))
    (z,) = MatMul().reference(x, y)
    np.testing.assert_allclose(z, np.einsum("ajmk,bkn->abmn", x, y), rtol=RTOL64, atol=RTOL64)


def test_epilogue(rng: np.random.Generator) -> None:
    """tanh(acc * scale + bias) in fp16."""
    b = Builder("fff")
    program = b.build(b("tanh", b("add", b("mul", 0, 1), 2)))
    x = rng.standard_normal((2, 5, 33)).astype(np.float16)
    w = rng.standard_normal((33, 7)).astype(np.float16)
    scale, bias = np.float32(0.125).reshape(()), rng.standard_normal(7).astype(np.float16)
    (y,) = MatMul(epilogue=program).reference(x, w, scale, bias)
    want = np.tanh(x.astype(float) @ w.astype(float) * 0.125 + bias)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, want, rtol=RTOL16, atol=RTOL16)


def test_integers_are_exact(rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (5, 300)).astype(np.int8)
    w = rng.integers(-128, 128, (300, 4)).astype(np.int8)
    (y,) = MatMul(out_dtype=INT32).reference(x, w)
    np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64))
    big = np.array([[2**53 + 1]])
    (z,) = MatMul().reference(big, np.array([[1]]))
    assert z.item() == 2**53 + 1


@pytest.mark.parametrize(
    ("a", "b", "op", "message"),
    [
        ((2, 3), (4, 5), MatMul(), r"inner dimensions differ: \[2,3\] times \[4,5\] has 3 and 4"),
        (
            (2, 3),
            (3, 5),
            MatMul(trans_b=True),
            r"inner dimensions differ: \[2,3\] times \[5,3\] has 3 and 5",
        ),
        ((), (3, 5), MatMul(), "an operand is a scalar, expected rank 1 or more; use Mul"),
        ((2, 4, 3), (3, 3, 5), MatMul(), r"shapes \[2\], \[3\] do not broadcast to one shape"),
    ],
)
def test_misfits_are_named(
    a: tuple[int, ...], b: tuple[int, ...], op: MatMul, message: str
) -> None:
    with pytest.raises(ShapeError, match=f"MatMul: {message}"):
        op.infer(TensorType(a, FP32), TensorType(b, FP32))


def test_dtypes_and_extras_are_checked() -> None:
    a, b = TensorType((2, 3), FP32), TensorType((3, 4), FP32)
    with pytest.raises(ShapeError, match="a is fp32, b is fp16; expected one dtype"):
        MatMul().infer(a, TensorType((3, 4), FP16))
    with pytest.raises(ShapeError, match="got 3 inputs, expected 2 without an epilogue"):
        MatMul().infer(a, b, a)
    assert MatMul(out_dtype=INT8).infer(a, b) == (TensorType((2, 4), INT8),)
