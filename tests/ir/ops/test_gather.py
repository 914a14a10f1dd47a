"""Gather and GatherElements, index by index."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP32, INT64
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import Gather, GatherElements


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(rng: np.random.Generator, axis: int) -> None:
    data = rng.standard_normal((4, 5, 3)).astype(np.float16)
    size = data.shape[axis]
    indices = rng.integers(-size, size, (2, 7)).astype(np.int32)
    (y,) = Gather(axis).reference(data, indices)
    front = axis % 3
    assert y.shape == (*data.shape[:front], 2, 7, *data.shape[front + 1 :])
    for i, j in np.ndindex(2, 7):
        got = y[(slice(None),) * front + (i, j)]
        np.testing.assert_array_equal(got, np.take(data, indices[i, j] % size, axis=front))


def test_gather_with_a_scalar_index_is_a_copy() -> None:
    data = np.arange(6.0).reshape(2, 3)
    (y,) = Gather(0).reference(data, np.array(-1))
    assert y.tolist() == [3, 4, 5]
    y[:] = 0
    assert data[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_elements(rng: np.random.Generator, axis: int) -> None:
    data = rng.standard_normal((4, 5, 3))
    shape = [2, 3, 2]
    shape[axis] = 6
    indices = rng.integers(-data.shape[axis], data.shape[axis], shape)
    (y,) = GatherElements(axis).reference(data, indices)
    assert y.shape == tuple(shape)
    for place in np.ndindex(*shape):
        at = list(place)
        at[axis] = indices[place]
        assert y[place] == data[tuple(at)]


def test_indices_out_of_range_are_named() -> None:
    data = np.zeros((4, 3))
    with pytest.raises(ShapeError, match="Gather: index 4 is out of range for dimension 0 of 4"):
        Gather(0).reference(data, np.array([0, 4]))
    with pytest.raises(ShapeError, match="Gather: index -4 is out of range for dimension 1 of 3"):
        Gather(-1).reference(data, np.array([-4]))
    with pytest.raises(ShapeError, match="GatherElements: index 3 is out of range for dimension 1"):
        GatherElements(1).reference(data, np.array([[3]]))


def test_misfits_are_named() -> None:
    data, indices = TensorType((4, 3), FP32), TensorType((2,), INT64)
    with pytest.raises(ShapeError, match="Gather: indices are fp32, expected an integer type"):
        Gather(0).infer(data, data)
    with pytest.raises(ShapeError, match="Gather: axis 2 is out of range for rank 2"):
        Gather(2).infer(data, indices)
    with pytest.raises(
        ShapeError, match=r"GatherElements: indices \[2\] do not lie in data \[4,3\]"
    ):
        GatherElements(0).infer(data, indices)
    with pytest.raises(ShapeError, match=r"indices \[2,5\] do not lie in data \[4,3\] but for"):
        GatherElements(0).infer(data, TensorType((2, 5), INT64))
