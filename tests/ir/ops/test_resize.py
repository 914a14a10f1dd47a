"""Resize in one dimension by hand, and its separability; ONNX's own tests cover the rest."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP32, INT32, UINT8
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import Resize

RTOL64 = 1e-12


@pytest.mark.parametrize(
    ("nearest", "want"),
    [
        # positions (i + 0.5) * 2 - 0.5 = 0.5, 2.5, 4.5
        ("round_prefer_floor", [0, 2, 4]),
        ("round_prefer_ceil", [1, 3, 5]),
        ("floor", [0, 2, 4]),
        ("ceil", [1, 3, 5]),
    ],
)
def test_nearest_rounding(nearest: str, want: list[int]) -> None:
    x = np.arange(6, dtype=np.uint8)
    (y,) = Resize((3,), (0.5,), nearest=nearest).reference(x)
    assert y.dtype == np.uint8
    assert y.tolist() == want


@pytest.mark.parametrize(
    ("coordinate", "want"),
    [
        ("half_pixel", [0, 0.25, 0.75, 1.25, 1.75, 2]),
        ("asymmetric", [0, 0.5, 1, 1.5, 2, 2]),
        ("align_corners", [0, 0.4, 0.8, 1.2, 1.6, 2]),
        ("pytorch_half_pixel", [0, 0.25, 0.75, 1.25, 1.75, 2]),
    ],
)
def test_linear_coordinates(coordinate: str, want: list[float]) -> None:
    """A ramp: linear interpolation returns the clamped position itself."""
    (y,) = Resize((6,), (2.0,), "linear", coordinate).reference(np.arange(3.0))
    np.testing.assert_allclose(y, want, rtol=RTOL64, atol=RTOL64)


@pytest.mark.parametrize("coordinate", ["align_corners", "pytorch_half_pixel"])
def test_single_outputs_are_the_first_element(coordinate: str) -> None:
    (y,) = Resize((1,), (0.2,), "linear", coordinate).reference(np.arange(3.0, 8.0))
    assert y.tolist() == [3.0]


def test_cubic_is_exact_for_parabolas(rng: np.random.Generator) -> None:
    """With a = -0.5, away from the clamped edges (Keys 1981, section III)."""
    parabola = np.polynomial.Polynomial(rng.standard_normal(3))
    (y,) = Resize((18,), (1.5,), "cubic", cubic_a=-0.5).reference(parabola(np.arange(12.0)))
    positions = (np.arange(18) + 0.5) / 1.5 - 0.5
    inside = (positions >= 1) & (positions <= 10)
    np.testing.assert_allclose(y[inside], parabola(positions[inside]), rtol=1e-9, atol=1e-9)


def test_cubic_weights_add_up_to_one() -> None:
    (y,) = Resize((7,), (1.4,), "cubic").reference(np.full(5, 3.0))
    np.testing.assert_allclose(y, 3.0, rtol=RTOL64)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_dimensions_are_separable(rng: np.random.Generator, mode: str) -> None:
    x = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    scales = (1.0, 1.0, 9 / 5, 4 / 7)
    (both,) = Resize((2, 3, 9, 4), scales, mode).reference(x)
    (rows,) = Resize((2, 3, 9, 7), (1.0, 1.0, 9 / 5, 1.0), mode).reference(x)
    (then,) = Resize((2, 3, 9, 4), (1.0, 1.0, 1.0, 4 / 7), mode).reference(rows)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both, then)


def test_same_size_is_a_copy() -> None:
    x = np.arange(4.0, dtype=np.float32)
    (y,) = Resize((4,), (1.0,)).reference(x)
    y[:] = 0
    assert x.tolist() == [0, 1, 2, 3]


def test_misfits_are_named() -> None:
    x = TensorType((3, 4), FP32)
    with pytest.raises(
        ShapeError, match="Resize: mode 'area' is unknown, expected nearest, linear"
    ):
        Resize((3, 8), (1.0, 2.0), "area").infer(x)
    with pytest.raises(
        ShapeError, match="Resize: coordinate 'corner' is unknown, expected half_pixel"
    ):
        Resize((3, 8), (1.0, 2.0), coordinate="corner").infer(x)
    with pytest.raises(ShapeError, match="Resize: nearest 'up' is unknown, expected round_prefer"):
        Resize((3, 8), (1.0, 2.0), nearest="up").infer(x)
    with pytest.raises(ShapeError, match=r"Resize: sizes \(8,\) has 1 entries, expected 2"):
        Resize((8,), (1.0, 2.0)).infer(x)
    with pytest.raises(ShapeError, match=r"Resize: sizes \(3, 0\) and scales .* must be positive"):
        Resize((3, 0), (1.0, 2.0)).infer(x)
    with pytest.raises(ShapeError, match="Resize: input is int32, expected a float type"):
        Resize((3, 8), (1.0, 2.0), "linear").infer(TensorType((3, 4), INT32))
    assert Resize((3, 8), (1.0, 2.0)).infer(TensorType((3, 4), UINT8))[0].dtype is UINT8
