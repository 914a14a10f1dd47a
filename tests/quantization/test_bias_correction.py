"""What a change of weights does to the mean of every output channel."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nrt.errors import CalibrationError
from nrt.ir.ops import Conv, MatMul
from nrt.ir.ops.window import window
from nrt.quantization.bias_correction import inside, mean_shift

CONVS: list[tuple[Conv, tuple[int, ...], tuple[int, ...]]] = [
    (Conv((1, 1), (1, 1, 1, 1)), (2, 5, 7, 6), (4, 5, 3, 3)),
    (Conv((2, 3), (2, 0, 1, 3), (1, 2), 3), (2, 6, 9, 11), (9, 2, 4, 3)),
    (Conv((2, 2), (2, 2, 2, 2), groups=8), (1, 8, 7, 8), (8, 1, 5, 5)),
    (Conv((1, 1), (3, 3, 3, 3), (3, 3), 4), (2, 4, 5, 5), (8, 1, 3, 3)),
    (Conv((2,), (1, 2), (2,)), (3, 4, 9), (5, 4, 3)),
]


@pytest.mark.parametrize(("op", "shape", "kernel"), CONVS, ids=range(len(CONVS)))
def test_convolutions(
    rng: np.random.Generator, op: Conv, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> None:
    means = rng.standard_normal(shape[1])
    change = rng.standard_normal(kernel)
    image = np.broadcast_to(means.reshape(-1, *[1] * (len(shape) - 2)), shape)
    (result,) = op.reference(np.ascontiguousarray(image), change)
    wanted = result.mean(axis=(0, *range(2, result.ndim)))
    found = mean_shift(op, change, tuple(means), shape)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trans_b", [False, True])
def test_matrix_products(rng: np.random.Generator, trans_b: bool) -> None:
    rows = rng.standard_normal((3, 5, 7))
    change = rng.standard_normal((4, 7) if trans_b else (7, 4))
    op = MatMul(trans_b=trans_b)
    (result,) = op.reference(rows, change)
    found = mean_shift(op, change, tuple(rows.mean(axis=(0, 1))), rows.shape)
    np.testing.assert_allclose(found, result.mean(axis=(0, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "channels"), [(Conv(), 4), (MatMul(), 3)], ids=["conv", "matmul"])
def test_means_of_another_tensor(op: Conv | MatMul, channels: int) -> None:
    message = f"the calibration has 5 means for an input of {channels} channels; calibrate again"
    with pytest.raises(CalibrationError, match=message):
        mean_shift(op, np.zeros((2, 4, 1, 1)), (0.0,) * 5, (1, 4, 3, 3))


def test_taps_inside() -> None:
    win = window("Conv", (3, 2), (2, 1), (1, 2, 0, 3), (2, 3))
    sizes = (8, 4)
    met = np.zeros((3, 2))
    steps = win.output("Conv", sizes)
    for (r, s), (i, j) in product(np.ndindex(3, 2), np.ndindex(*steps)):
        met[r, s] += 0 <= 2 * i + 2 * r - 1 < 8 and 0 <= j + 3 * s - 2 < 4
    np.testing.assert_array_equal(inside(win, sizes), met / (steps[0] * steps[1]))
