"""Functions of pointwise programs on the GPU."""

from __future__ import annotations

import math
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels import mathlib
from nrt.cuda_kernels.pointwise import VARIANTS
from nrt.dtypes import FP16, FP32, FP64
from nrt.ir.ops import Erf, Gelu
from nrt.problem import Problem

from .harness import compiled
from .memory_bound import assert_on_gpu, rows, task, variants_of

ERF_LIMIT = 1e-6
"""Relative error of erf, at every point."""


def single(function: Any) -> Any:
    """A device function in NumPy's float32, a rounding at every step."""
    scope = {
        "__builtins__": __builtins__,
        "_F": np.float32,
        "math": SimpleNamespace(copysign=np.copysign),
        "ptx": SimpleNamespace(rcp=lambda v: np.float32(1) / v),
        "_ERF_END": mathlib._ERF_END,
    }
    return FunctionType(function.py_func.__code__, scope)


def points() -> np.ndarray:
    """Numbers of all sizes, both signs, dense where the fit ends."""
    rng = np.random.default_rng()
    wide = 10.0 ** rng.uniform(-37, 37, 1000)
    near = rng.uniform(0, 4.5, 9000)
    edge = mathlib._ERF_END + rng.uniform(-1e-3, 1e-3, 500)
    values = np.concatenate([wide, near, edge, [0, mathlib._ERF_END]])
    return np.concatenate([values, -values]).astype(np.float32)


def assert_erf(found: np.ndarray, x: np.ndarray) -> None:
    exact = np.array([math.erf(v) for v in x])
    assert np.all(np.abs(found - exact) <= ERF_LIMIT * np.abs(exact) + 1e-38)


def test_erf() -> None:
    erf = single(mathlib.erf)
    x = points()
    with np.errstate(all="ignore"):
        assert_erf(np.array([erf(v) for v in x], np.float64), x)
        assert erf(np.float32(np.inf)) == 1
        assert erf(np.float32(-np.inf)) == -1
        assert math.isnan(erf(np.float32(np.nan)))
        assert math.copysign(1, erf(np.float32(-0.0))) == -1


@pytest.mark.gpu
def test_erf_on_the_gpu(cuda_runner: Any) -> None:
    x = np.concatenate([points(), np.array([np.inf, -np.inf, np.nan], np.float32)])
    problem = task(Erf(), rows(x.size, dtype=FP32))
    for variant in variants_of(VARIANTS, problem):
        config = variant.configs(problem, cuda_runner.device)[0]
        (found,) = cuda_runner.run(variant, problem, config, [x])
        assert_erf(found[:-3].astype(np.float64), x[:-3])
        assert found[-3:-1].tolist() == [1, -1]
        assert math.isnan(found[-1])


GELU = [task(Gelu(), rows(1003, dtype=d)) for d in (FP16, FP32, FP64)]


@pytest.mark.gpu
@pytest.mark.parametrize("problem", GELU, ids=str)
def test_gelu_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(1)
@pytest.mark.parametrize("problem", GELU, ids=str)
def test_gelu_compiles_without_spills(problem: Problem) -> None:
    for variant in variants_of(VARIANTS, problem):
        for cubin in compiled(variant, problem, "sm_80"):
            assert cubin.spills == 0
