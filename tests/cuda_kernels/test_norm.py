"""Layer, instance and batch normalization kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.norm import VARIANTS, BatchNormStrided, BatchNormVector, RowNormResident
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32
from nrt.ir.ops import BatchNormalization, InstanceNormalization, LayerNormalization
from nrt.problem import Problem, TensorSpec
from nrt.trial import relative_error

from .harness import compiled
from .memory_bound import (
    ARCHES,
    LIMIT,
    assert_emulates,
    assert_on_gpu,
    data,
    last,
    refusal,
    rows,
    task,
    variants_of,
)

TASKS = [
    task(
        LayerNormalization(), rows(3, 5, 48, dtype=FP16), rows(48, dtype=FP16), rows(48, dtype=FP16)
    ),
    task(LayerNormalization(-1, 1e-12), rows(3, 768, dtype=FP32), rows(768, dtype=FP32)),
    task(
        LayerNormalization(1),
        rows(3, 5, 7, dtype=BF16),
        rows(5, 7, dtype=FP32),
        rows(7, dtype=FP32),
    ),
    task(LayerNormalization(), last(2, 5, 4, 6, dtype=FP16), rows(6, dtype=FP16)),
    task(
        InstanceNormalization(),
        rows(2, 5, 4, 6, dtype=FP32),
        rows(5, dtype=FP32),
        rows(5, dtype=FP32),
    ),
    task(
        InstanceNormalization(),
        last(2, 5, 4, 6, dtype=FP16),
        rows(5, dtype=FP16),
        rows(5, dtype=FP16),
        out=last,
    ),
]


def batch_norm(x: Any, dtype: Any) -> Problem:
    channels = [rows(x.shape[1], dtype=dtype) for _ in range(4)]
    return task(BatchNormalization(1e-3), x, *channels, out=x)


BATCH_NORMS = [
    batch_norm(last(2, 8, 3, 5, dtype=FP16), FP16),
    batch_norm(rows(2, 5, 3, 4, dtype=FP32), FP32),
    batch_norm(rows(2, 5, 3, 5, dtype=BF16), FP32),
]
REFUSED = [
    (RowNormResident(), TASKS[3], "the rows are not contiguous in input and output"),
    (
        RowNormResident(),
        task(
            LayerNormalization(),
            rows(3, 8, dtype=FP32),
            TensorSpec((8,), FP32, (2,)),
        ),
        "scale or bias has a stride along the row",
    ),
    (BatchNormVector(), BATCH_NORMS[2], "no vector fits: 15 contiguous elements"),
    (BatchNormStrided(), batch_norm(rows(1, 2, 2, 2, dtype=FP8E4M3), FP32), "input 0 is fp8e4m3"),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


@pytest.mark.parametrize("problem", BATCH_NORMS, ids=str)
def test_batch_normalization_emulated(problem: Problem) -> None:
    inputs = data(problem)
    inputs[4] = np.abs(inputs[4])
    assert_emulates(VARIANTS, problem, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", BATCH_NORMS, ids=str)
def test_batch_normalization_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    inputs = data(problem)
    inputs[4] = np.abs(inputs[4])
    expected = problem.op.reference(*(a.astype(np.float64) for a in inputs))[0]
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, cuda_runner.device):
            (out,) = cuda_runner.run(variant, problem, config, inputs)
            assert relative_error(out, expected) <= LIMIT[problem.y.dtype.name]
