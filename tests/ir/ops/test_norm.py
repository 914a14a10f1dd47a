"""Normalizations against their formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, INT32
from nrt.errors import ShapeError
from nrt.ir.op import Op, TensorType
from nrt.ir.ops import (
    LRN,
    BatchNormalization,
    InstanceNormalization,
    LayerNormalization,
    LogSoftmax,
    Softmax,
)

RTOL64 = 1e-11
RTOL16 = 2e-3


def test_batch_normalization(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 5, 3, 7))
    scale, bias, mean = rng.standard_normal((3, 5))
    var = rng.random(5) + 0.1
    (y,) = BatchNormalization(1e-3).reference(x, scale, bias, mean, var)
    for c in range(5):
        want = scale[c] * (x[:, c] - mean[c]) / math.sqrt(var[c] + 1e-3) + bias[c]
        np.testing.assert_allclose(y[:, c], want, rtol=RTOL64, atol=RTOL64)
    (flat,) = BatchNormalization(1e-3).reference(x[:, :, 0, 0], scale, bias, mean, var)
    np.testing.assert_allclose(flat, y[:, :, 0, 0], rtol=RTOL64, atol=RTOL64)


def test_batch_normalization_of_fp16_with_fp32_statistics(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((2, 3, 5)) * 100).astype(np.float16)
    parameters = [(rng.random(3) + 0.5).astype(np.float32) for _ in range(4)]
    (y,) = BatchNormalization().reference(x, *parameters)
    scale, bias, mean, var = (p.astype(float)[:, None] for p in parameters)
    assert y.dtype == np.float16
    want = scale * (x.astype(float) - mean) / np.sqrt(var + 1e-5) + bias
    np.testing.assert_allclose(y, want, rtol=RTOL16, atol=RTOL16)


def test_instance_normalization(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 5, 4)) + 7
    scale, bias = rng.standard_normal((2, 3))
    (y,) = InstanceNormalization(1e-4).reference(x, scale, bias)
    for n, c in np.ndindex(2, 3):
        plane = x[n, c]
        want = (plane - plane.mean()) / math.sqrt(plane.var() + 1e-4) * scale[c] + bias[c]
        np.testing.assert_allclose(y[n, c], want, rtol=RTOL64, atol=RTOL64)


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_layer_normalization(rng: np.random.Generator, axis: int) -> None:
    x = rng.standard_normal((3, 5, 7))
    shape = x.shape[axis:]
    scale, bias = rng.standard_normal(shape), rng.standard_normal(shape)
    (y,) = LayerNormalization(axis, 1e-3).reference(x, scale, bias)
    (without,) = LayerNormalization(axis, 1e-3).reference(x, scale)
    for outer in np.ndindex(*x.shape[: axis % 3]):
        part = x[outer]
        want = (part - part.mean()) / math.sqrt(part.var() + 1e-3) * scale
        np.testing.assert_allclose(without[outer], want, rtol=RTOL64, atol=RTOL64)
        np.testing.assert_allclose(y[outer], want + bias, rtol=RTOL64, atol=RTOL64)


def test_layer_normalization_survives_a_large_offset(rng: np.random.Generator) -> None:
    """One-pass variance in float32 would lose every digit here."""
    noise = rng.standard_normal((4, 300))
    x = (noise + 1e4).astype(np.float32)
    (y,) = LayerNormalization().reference(x, np.ones(300, np.float32))
    wide = x.astype(float)
    want = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    np.testing.assert_allclose(y, want, atol=2e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_lrn(rng: np.random.Generator, size: int) -> None:
    x = rng.standard_normal((2, 7, 3))
    (y,) = LRN(size, alpha=0.3, beta=0.6, bias=1.5).reference(x)
    for c in range(7):
        low, high = max(0, c - (size - 1) // 2), min(6, c + math.ceil((size - 1) / 2))
        total = sum(x[:, k] ** 2 for k in range(low, high + 1))
        want = x[:, c] / (1.5 + 0.3 / size * total) ** 0.6
        np.testing.assert_allclose(y[:, c], want, rtol=RTOL64)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(rng: np.random.Generator, axis: int) -> None:
    x = rng.standard_normal((4, 5, 3)) * 5
    (y,) = Softmax(axis).reference(x)
    want = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(y, want, rtol=RTOL64)
    (logarithm,) = LogSoftmax(axis).reference(x)
    np.testing.assert_allclose(logarithm, np.log(want), rtol=RTOL64, atol=RTOL64)


def test_softmax_of_large_values() -> None:
    x = np.array([[60000.0, 60000.0, -60000.0]], np.float16)
    assert Softmax().reference(x)[0].tolist() == [[0.5, 0.5, 0.0]]
    (logarithm,) = LogSoftmax().reference(x.astype(np.float32))
    np.testing.assert_allclose(
        logarithm, [[-math.log(2), -math.log(2), -120000 - math.log(2)]], rtol=1e-6
    )


def test_softmax_of_masked_positions() -> None:
    x = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert Softmax().reference(x)[0].tolist() == [[0.5, 0.0, 0.5]]


X = TensorType((2, 5, 3), FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            BatchNormalization(),
            [X, *[TensorType((5,), FP32)] * 3, TensorType((4,), FP32)],
            r"BatchNormalization: var has shape \[4\], expected \[5\]",
        ),
        (
            InstanceNormalization(),
            [X, TensorType((3,), FP32), TensorType((5,), FP32)],
            r"InstanceNormalization: scale has shape \[3\], expected \[5\]",
        ),
        (
            LayerNormalization(),
            [X, TensorType((3,), FP32), TensorType((7, 2, 5, 3), FP32)],
            r"LayerNormalization: bias has shape \[7,2,5,3\], which does not broadcast",
        ),
        (
            LayerNormalization(3),
            [X, TensorType((3,), FP32)],
            "LayerNormalization: axis 3 is out of range for rank 3",
        ),
        (LRN(0), [X], "LRN: size is 0, expected at least 1"),
        (LRN(3), [TensorType((5,), FP16)], r"LRN: input \[5\] has rank 1, expected at least 2"),
        (Softmax(4), [X], "Softmax: axis 4 is out of range for rank 3"),
        (LogSoftmax(), [TensorType((2, 3), INT32)], "LogSoftmax: input is int32, expected a float"),
    ],
)
def test_misfits_are_named(op: Op, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(*inputs)
