"""PooledMatMul against pooling and multiplying, in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, INT32
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import PooledMatMul
from nrt.ir.pointwise import Builder, Program

RTOL = 1e-12


def relu_of_scaled() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("mul", 0, 1), b.const(0.0)))


def minus() -> Program:
    b = Builder("ff")
    return b.build(b("sub", 0, 1))


@pytest.mark.parametrize("kind", ["mean", "sum", "max"])
@pytest.mark.parametrize("space", [(4, 5), (7,), (2, 3, 2)])
def test_pools_and_multiplies(kind: str, space: tuple[int, ...]) -> None:
    rng = np.random.default_rng()
    x, w = rng.standard_normal((3, 6, *space)), rng.standard_normal((6, 4))
    flat = getattr(x.reshape(3, 6, -1), kind)(2)
    for trans_b, factor in ((False, w), (True, w.T)):
        (y,) = PooledMatMul(kind, trans_b).reference(x, factor)
        np.testing.assert_allclose(y, flat @ w, rtol=RTOL, atol=RTOL)


def test_prologue_and_epilogue() -> None:
    rng = np.random.default_rng()
    x, w = rng.standard_normal((3, 6, 4, 5)), rng.standard_normal((6, 4))
    scale, shift = rng.standard_normal((6, 1, 1)), rng.standard_normal(4)
    op = PooledMatMul(prologue=relu_of_scaled(), epilogue=minus())
    assert op.parts(["x", "w", "scale", "shift"]) == ("x", "w", ("scale",), ("shift",))
    (y,) = op.reference(x, w, scale, shift)
    wanted = np.maximum(x * scale, 0).mean((2, 3)) @ w - shift
    np.testing.assert_allclose(y, wanted, rtol=RTOL, atol=RTOL)


def test_pooled_values_are_not_rounded() -> None:
    """The sum of 300 x 300 threes is beyond fp16, its product with 1e-3 is not."""
    x, w = np.full((1, 1, 300, 300), 3, np.float16), np.full((1, 1), 1e-3, np.float16)
    (y,) = PooledMatMul("sum").reference(x, w)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, [[270.0]], rtol=1e-3)
    (y,) = PooledMatMul("sum", out_dtype=FP32).reference(x, w)
    assert y.dtype == np.float32


X, W = TensorType((3, 6, 4, 5), FP32), TensorType((6, 4), FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (PooledMatMul("min"), [X, W], "kind 'min' is unknown, expected mean, sum, max"),
        (PooledMatMul(), [X, TensorType((6, 4), FP16)], "x is fp32, w is fp16; expected one dtype"),
        (
            PooledMatMul(),
            [TensorType((3, 6, 4), INT32), TensorType((6, 4), INT32)],
            "reads int32 and stores int32; expected fp16, bf16, fp32 or fp64",
        ),
        (PooledMatMul(out_dtype=FP8E4M3), [X, W], "reads fp32 and stores fp8e4m3"),
        (
            PooledMatMul(trans_b=True),
            [X, W],
            "got [3,6,4,5] and [6,4], expected [N,C,*S] and [M,C]",
        ),
        (PooledMatMul(), [W, W], "got [6,4] and [6,4], expected [N,C,*S] and [C,M]"),
        (PooledMatMul(), [X, TensorType((6,), FP32)], "got [3,6,4,5] and [6], expected"),
        (PooledMatMul(), [X, W, W], "got 3 inputs, expected 2 without an epilogue"),
        (
            PooledMatMul(prologue=minus()),
            [X, W, W],
            "shapes [6,4], [3,6,4,5] do not broadcast",
        ),
        (PooledMatMul(epilogue=minus()), [X, W], "got 0 epilogue inputs, the epilogue reads 1"),
    ],
)
def test_what_does_not_fit(op: PooledMatMul, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"PooledMatMul: {message}")):
        op.infer(*inputs)
