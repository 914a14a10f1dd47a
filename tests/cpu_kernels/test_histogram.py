"""The host's histogram counts exactly what the reference counts, in any memory order."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name
from nrt.dtypes import FP32
from nrt.ir.ops import AbsHistogram
from nrt.problem import TensorSpec

from .harness import channel_slice, nhwc, problem, spec


@pytest.mark.parametrize(
    "x", [spec((3, 5, 7)), nhwc(2, 6, 3, 5), channel_slice((2, 6, 3, 5), 9), spec((0, 4)), spec(())]
)
@pytest.mark.parametrize("kind", ["mixed", "tiny", "zeros", "special"])
def test_counts(rng: np.random.Generator, x: TensorSpec, kind: str) -> None:
    values = rng.standard_normal(x.shape) * 2.0 ** rng.integers(-20, 5, x.shape)
    values = np.where(rng.random(x.shape) < 0.3, np.copysign(0, values), values).astype(np.float32)
    if kind == "tiny":
        values = np.where(values == 0, 0, 3e-42).astype(np.float32)
    elif kind == "zeros":
        values = values * np.float32(0)
    elif kind == "special" and values.ndim and values.size:
        values.reshape(-1)[:2] = [-np.inf, np.nan]
    memory = np.full(x.span, np.nan, np.float32)
    view = np.lib.stride_tricks.as_strided(memory, x.shape, [4 * s for s in x.strides])
    view[...] = values
    task = problem(AbsHistogram(), [x], constants=())
    assert task.inputs[0].dtype is FP32
    found = np.full(task.y.shape, -1, np.int64)
    call = variant_by_name("cpu_histogram").bind(task, ())
    call([view], [found], np.empty(0, np.uint8))
    np.testing.assert_array_equal(found, task.op.reference(values)[0])


def test_dense_tensors_are_not_copied() -> None:
    x = np.zeros((2, 3, 5, 4), np.float32).transpose(0, 3, 1, 2)
    assert np.shares_memory(x, x.ravel(order="K"))
