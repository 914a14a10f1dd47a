"""Histograms of magnitudes: the kernels count exactly what NumPy counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.histogram import VARIANTS, HistogramShared
from nrt.dtypes import FP32, INT64
from nrt.ir.ops import AbsHistogram
from nrt.problem import Problem, TensorSpec

from .harness import compiled
from .kernel_emulator import KernelEmulator
from .memory_bound import ARCHES, NHWC, last, refusal, rows, sliced, task

Array = np.ndarray[Any, np.dtype[Any]]

VECTORS = task(AbsHistogram(), last(2, 24, 5, 7, dtype=FP32))
SINGLES = task(AbsHistogram(), rows(3, 5, 7, dtype=FP32))
PITCHED = task(AbsHistogram(), sliced(2, 8, 3, 5, dtype=FP32, order=NHWC, more=4))
UNALIGNED = task(AbsHistogram(), sliced(2, 6, 3, 5, dtype=FP32, order=NHWC, more=3))
TASKS = [VECTORS, SINGLES, PITCHED, UNALIGNED, task(AbsHistogram(), rows(0, 3, dtype=FP32))]


def awkward(problem: Problem, seed: int) -> Array:
    """Magnitudes over many octaves, with zeros of both signs and numbers below the normal ones."""
    rng = np.random.default_rng(seed)
    shape = problem.inputs[0].shape
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 4, shape)
    kind = rng.integers(0, 8, shape)
    return np.select([kind == 0, kind == 1, kind == 2], [0.0, -0.0, 1e-41], x).astype(np.float32)


def inputs_of(problem: Problem) -> list[Array]:
    x = awkward(problem, 5)
    tiny = np.where(x == 0, np.float32(0), np.float32(-3e-42))
    positive = np.abs(x)
    special = x.copy()
    special.reshape(-1)[:2] = [np.inf, np.nan][: min(2, x.size)]
    return [x, tiny, positive, np.zeros_like(x), special]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    variant = HistogramShared()
    assert variant.supports(problem, ARCHS["sm_80"]) is None
    (config,) = variant.configs(problem, ARCHS["sm_80"])
    for x in inputs_of(problem)[:3]:
        (expected,) = problem.op.reference(x)
        (found,) = KernelEmulator().run(variant, problem, config, [x])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "problem",
    [
        *TASKS,
        task(AbsHistogram(), last(3, 64, 57, 61, dtype=FP32)),
        task(AbsHistogram(), rows(1 << 24, dtype=FP32)),
    ],
    ids=str,
)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    variant = HistogramShared()
    (config,) = variant.configs(problem, cuda_runner.device)
    for x in inputs_of(problem):
        (expected,) = problem.op.reference(x)
        (found,) = cuda_runner.run(variant, problem, config, [x])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("problem", "width"), [(VECTORS, 4), (SINGLES, 1), (PITCHED, 4)])
def test_vectors_where_they_stay_aligned(problem: Problem, width: int) -> None:
    assert HistogramShared().configs(problem, ARCHS["sm_80"]) == [(width,)]
    assert HistogramShared().configs(UNALIGNED, ARCHS["sm_80"]) == [(1,)]


@pytest.mark.parametrize("arch", ARCHES)
def test_compiles_without_spills(arch: str) -> None:
    for problem in (VECTORS, UNALIGNED):
        for cubin in compiled(VARIANTS[0], problem, arch):
            assert cubin.spills == 0


def test_refuses_a_result_with_gaps() -> None:
    whole = VECTORS.y
    gaps = Problem(
        AbsHistogram(), VECTORS.inputs, (TensorSpec(whole.shape, INT64, (2,)),), (False,)
    )
    assert "output has strides (2,), expected a dense vector" in refusal(HistogramShared(), gaps)
