"""PooledConv against convolving and pooling, in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, INT8
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import Conv, PooledConv
from nrt.ir.pointwise import Builder, Program

RTOL = 1e-12


def relu_of_sum() -> Program:
    b = Builder("ff")
    return b.build(b("max", b("add", 0, 1), b.const(0.0)))


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_convolves_and_pools(kind: str) -> None:
    rng = np.random.default_rng()
    x, w, p = (rng.standard_normal(s) for s in ((3, 4, 6, 5), (7, 4, 3, 2), (3, 7, 3, 5)))
    sizes = ((2, 1), (1, 0, 1, 1), (1, 1))
    (whole,) = Conv(*sizes).reference(x, w)
    (y,) = PooledConv(kind, *sizes).reference(x, w)
    np.testing.assert_allclose(y, getattr(whole, kind)((2, 3)), rtol=RTOL, atol=RTOL)
    (y,) = PooledConv(kind, *sizes, epilogue=relu_of_sum()).reference(x, w, p)
    want = getattr(np.maximum(whole + p, 0), kind)((2, 3))
    np.testing.assert_allclose(y, want, rtol=RTOL, atol=RTOL)
    (y,) = PooledConv(kind, *sizes).reference(x, w, p[0, :, 0, 0])
    want = getattr(whole + p[0, :, :1, :1], kind)((2, 3))
    np.testing.assert_allclose(y, want, rtol=RTOL, atol=RTOL)


def test_what_is_pooled_is_not_rounded() -> None:
    """fp16 has no whole numbers between 4096 and 4100."""
    x, w = np.full((1, 1, 1, 2), 4098, np.float16), np.ones((1, 1, 1, 1), np.float16)
    (y,) = PooledConv().reference(x * np.float16(0.5), w * np.float16(2))
    assert y.dtype == np.float16
    (y,) = PooledConv(out_dtype=FP32).reference(x / np.float16(2), w + np.float16(1.001))
    want = np.float32(x[0, 0, 0, 0] / np.float16(2)) * np.float32(w[0, 0, 0, 0] + np.float16(1.001))
    assert y.item() == want


X, W = TensorType((3, 6, 4, 5), FP32), TensorType((9, 6, 3, 3), FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (PooledConv("max"), [X, W], "kind 'max' is unknown, expected mean or sum"),
        (PooledConv(out_dtype=FP8E4M3), [X, W], "reads fp32 and stores fp8e4m3; expected fp16"),
        (PooledConv(out_dtype=INT8), [X, W], "reads fp32 and stores int8; expected fp16"),
        (PooledConv(), [X, TensorType((9, 5, 3, 3), FP32)], "input has 6 channels, weights expect"),
        (PooledConv(), [X, TensorType((9, 6, 3, 3), FP16)], "input is fp32, weights is fp16"),
        (PooledConv(epilogue=relu_of_sum()), [X, W], "got 0 epilogue inputs"),
        (PooledConv(), [X, W, TensorType((8,), FP32)], "bias has shape [8], expected [9]"),
    ],
)
def test_what_does_not_fit(op: PooledConv, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"PooledConv: {message}")):
        op.infer(*inputs)
