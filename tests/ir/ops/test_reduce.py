"""Reduce against the formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import BOOL, FP32
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.ops import Reduce

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
