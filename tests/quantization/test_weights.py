"""Weights and biases as integers: every op's channels, checked through the op's own reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP8E4M3
from nrt.errors import CalibrationError
from nrt.ir.op import Op
from nrt.ir.ops import Conv, ConvTranspose, MatMul, Relu
from nrt.quantization import quantize_bias, quantize_weights, weight_scales
from nrt.quantization.weights import scale_of

Array = np.ndarray[Any, np.dtype[Any]]

# Op, shape of its weights, shape of its input, axis of the output channels in the result.
CASES: list[tuple[Op, tuple[int, ...], tuple[int, ...], int]] = [
    (Conv(), (6, 5, 3, 3), (2, 5, 4, 5), 1),
    (Conv(groups=3), (6, 2, 3, 3), (1, 6, 4, 5), 1),
    (Conv(groups=4), (8, 1, 2, 2), (1, 4, 3, 3), 1),
    (Conv((1,), (0, 0), (1,)), (4, 3, 2), (1, 3, 7), 1),
    (ConvTranspose((2, 2)), (5, 4, 2, 2), (1, 5, 3, 3), 1),
    (ConvTranspose((2, 2), groups=2), (6, 4, 3, 2), (1, 6, 3, 3), 1),
    (ConvTranspose(groups=3), (3, 1, 2, 2), (1, 3, 3, 3), 1),
    (MatMul(), (7, 5), (3, 7), -1),
    (MatMul(trans_b=True), (5, 7), (3, 7), -1),
    (MatMul(), (2, 7, 5), (2, 3, 7), -1),
    (MatMul(trans_b=True), (2, 5, 7), (2, 3, 7), -1),
    (MatMul(), (7,), (3, 7), 99),
]


@pytest.mark.parametrize(("op", "shape", "data", "axis"), CASES, ids=str)
def test_a_scale_belongs_to_one_output_channel(
    rng: np.random.Generator, op: Op, shape: tuple[int, ...], data: tuple[int, ...], axis: int
) -> None:
    w = rng.standard_normal(shape).astype(np.float32)
    x = rng.standard_normal(data).astype(np.float64)
    before = w.copy()
    found = quantize_weights(op, w)
    assert found.values.dtype == np.int8
    assert found.values.shape == shape
    assert np.abs(found.values.astype(int)).max() == 127
    # The op is linear in its weights: scaling the result by channel scales the weights.
    (integers,) = op.reference(x, found.values.astype(np.float64))
    channels = integers.shape[axis] if axis != 99 else 1
    assert found.scales.shape == (channels,)
    assert found.scales.dtype == np.float32
    at = [1] * integers.ndim
    if axis != 99:
        at[axis] = channels
    (exact,) = op.reference(x, w.astype(np.float64))
    error = np.abs(integers * found.scales.reshape(at) - exact)
    # Each weight is off by half a step at most.
    (bound,) = op.reference(np.abs(x), np.ones(shape))
    assert (error <= bound * found.scales.reshape(at) * 0.50001).all()
    np.testing.assert_array_equal(w, before)


def test_scales_are_the_largest_magnitude_over_127(rng: np.random.Generator) -> None:
    w = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)
    w[1, 2, 0, 1] = -9
    scales = weight_scales(Conv(), w)
    np.testing.assert_allclose(scales, np.abs(w).max(axis=(1, 2, 3)) / 127, rtol=1e-7)
    assert quantize_weights(Conv(), w).values[1, 2, 0, 1] == -127


def test_fp8_spreads_to_its_largest_number(rng: np.random.Generator) -> None:
    w = (rng.standard_normal((5, 7, 3, 2)) * 10.0 ** rng.integers(-6, 4, (5, 1, 1, 1))).astype(
        np.float32
    )
    w[3] = 0
    found = quantize_weights(Conv(), w, dtype=FP8E4M3)
    assert found.values.dtype == FP8E4M3.numpy
    largest = np.abs(w).reshape(5, -1).max(axis=1)
    largest[3] = largest.max()
    np.testing.assert_allclose(found.scales, largest / 448, rtol=1e-6)
    back = found.values.astype(np.float64) * found.scales.reshape(-1, 1, 1, 1)
    # Half a step: 2^-4 of a number, and 2^-10 of the scale where steps are all alike.
    limit = np.abs(w) * 2.0**-4 + found.scales.reshape(-1, 1, 1, 1) * 2.0**-10
    assert (np.abs(back - w) <= limit * 1.000001).all()
    assert np.abs(found.values[0].astype(np.float32)).max() == 448


def test_halves_are_rounded_to_even() -> None:
    w = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    found = quantize_weights(Conv((1,), (0, 0), (1,)), w.reshape(1, 6, 1))
    np.testing.assert_array_equal(found.values.reshape(-1), [127, 0, 2, 2, 0, -2])


def test_a_channel_of_zeros_takes_the_largest_scale() -> None:
    w = np.array([[0, 0], [1, -2], [4, 0]], np.float32)
    np.testing.assert_allclose(
        weight_scales(MatMul(trans_b=True), w), np.array([4, 2, 4]) / 127, rtol=1e-7
    )
    np.testing.assert_allclose(weight_scales(MatMul(), np.zeros((2, 3))), np.full(3, 1 / 127))


def test_tiny_weights_keep_a_scale_above_zero() -> None:
    w = np.full((1, 1, 1, 1), 1e-44, np.float32)
    assert weight_scales(Conv(), w)[0] == np.finfo(np.float32).tiny
    assert quantize_weights(Conv(), w).values.item() == 0


def test_given_scales_saturate(rng: np.random.Generator) -> None:
    w = np.array([[3.0, -3.0, 0.5]], np.float32)
    found = quantize_weights(MatMul(trans_b=True), w, np.array([0.01], np.float32))
    np.testing.assert_array_equal(found.values, [[127, -127, 50]])


def test_scale_of_a_range() -> None:
    assert scale_of(12.7) == pytest.approx(0.1, rel=1e-7)
    assert scale_of(0.0) == 1.0
    assert scale_of(1e-44) == np.finfo(np.float32).tiny
    assert np.float32(scale_of(3.3)) == scale_of(3.3)
    assert scale_of(44.8, FP8E4M3) == pytest.approx(0.1, rel=1e-7)


def test_bias_in_units_of_the_accumulator(rng: np.random.Generator) -> None:
    bias = rng.standard_normal(6).astype(np.float32)
    scales = rng.uniform(0.001, 0.01, 6).astype(np.float32)
    values, same = quantize_bias(bias, 0.02, scales, depth=27)
    assert same is scales
    assert values.dtype == np.int32
    np.testing.assert_allclose(values * (0.02 * scales.astype(float)), bias, atol=0.02 * 0.01 / 2)


@pytest.mark.parametrize("depth", [0, 27, 4608, 130_000])
def test_a_bias_that_overflows_raises_its_channels_scale(depth: int) -> None:
    bias = np.array([0.5, -3e4, 2e9], np.float32)
    scales = np.array([1e-3, 1e-6, 1e-5], np.float32)
    values, raised = quantize_bias(bias, 1e-3, scales, depth=depth)
    assert raised[0] == scales[0]
    assert (raised[1:] > scales[1:]).all()
    room = 2**31 - 1 - depth * 127 * 127
    assert (np.abs(values.astype(np.int64)) <= room).all()
    steps = 1e-3 * raised.astype(float)
    assert (np.abs(values * steps - bias) <= steps * 0.51).all()
    # No more than is needed: most of the room is used.
    assert (np.abs(values[1:].astype(np.int64)) >= room * 0.999 - 1).all()
    assert scales[1] == np.float32(1e-6)


def test_an_op_without_weights() -> None:
    with pytest.raises(CalibrationError, match="Relu has no weights; expected Conv, ConvTranspose"):
        weight_scales(Relu(), np.ones(3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    w = np.ones((2, 3), np.float32)
    w[1, 1] = value
    with pytest.raises(CalibrationError, match="MatMul: fc-weight hold a NaN or an infinity"):
        quantize_weights(MatMul(), w, name="fc-weight")


@pytest.mark.parametrize("scales", [np.ones(2), np.array([1.0, 0.0, 1.0])])
def test_scales_that_do_not_fit(scales: Array) -> None:
    with pytest.raises(
        CalibrationError, match=r"MatMul: scales of shape .*, expected \[3\], all above 0"
    ):
        quantize_weights(MatMul(), np.ones((2, 3)), scales)


def test_biases_that_do_not_fit() -> None:
    ones = np.ones(3, np.float32)
    with pytest.raises(CalibrationError, match=r"b has shape \[2\], expected \[3\] as the scales"):
        quantize_bias(ones[:2], 1.0, ones, name="b")
    with pytest.raises(CalibrationError, match="b holds a NaN or an infinity"):
        quantize_bias(ones * np.nan, 1.0, ones, name="b")
    with pytest.raises(CalibrationError, match=r"b: 133145 products .* at most 133144 fit"):
        quantize_bias(ones, 1.0, ones, depth=133145, name="b")
