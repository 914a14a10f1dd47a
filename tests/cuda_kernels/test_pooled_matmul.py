"""Global pooling and the classifier in one launch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.pooled_matmul import VARIANTS, PooledConfig, PooledGemv, PooledStrided
from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, DType
from nrt.ir.ops import PooledMatMul
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec

from .harness import compiled
from .memory_bound import (
    ARCHES,
    assert_emulates,
    assert_on_gpu,
    last,
    refusal,
    rows,
    sliced,
    task,
    variants_of,
)

NHWC = (0, 2, 3, 1)


def _norm() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


def _scaled() -> Program:
    b = Builder("ff")
    return b.build(b("mul", 0, 1))


def _gated() -> Program:
    b = Builder("ffb")
    return b.build(b("where", 2, b("add", 0, 1), b.const(-1.5)))


NORM, SCALED, GATED = _norm(), _scaled(), _gated()


def channel(count: int, dtype: DType = FP32) -> TensorSpec:
    return rows(count, 1, 1, dtype=dtype)


def constant(problem: Problem) -> Problem:
    """The same with weights that are known."""
    return replace(problem, constants=(False, True, *problem.constants[2:]))


TASKS = [
    # A DenseNet's end in small: held weights, operands per channel, a bias.
    constant(
        task(
            PooledMatMul(prologue=NORM, epilogue=GATED, out_dtype=FP32),
            last(3, 48, 5, 3, dtype=FP16),
            rows(48, 13, dtype=FP16),
            channel(48),
            channel(48),
            rows(13, dtype=FP32),
            rows(3, 1, dtype=BOOL),
        )
    ),
    # More vectors than lanes, the last turn of which not all lanes take.
    constant(task(PooledMatMul(), last(1, 272, 2, 3, dtype=BF16), rows(272, 9, dtype=BF16))),
    # Weights [M, C], vectors of four, more columns held than fit, one factor for all channels.
    constant(
        task(
            PooledMatMul("max", True, SCALED),
            last(5, 140, 3, 2, dtype=FP32),
            rows(7, 140, dtype=FP32),
            rows(1, dtype=FP32),
        )
    ),
    # No vectors, one pixel, a slice of the channels.
    constant(
        task(
            PooledMatMul("sum", epilogue=SCALED),
            sliced(2, 7, 1, 1, dtype=FP16, order=NHWC, more=4),
            rows(7, 5, dtype=FP16),
            rows(5, dtype=FP16),
        )
    ),
    # Three spatial dimensions; a slice whose pixels lie further apart.
    constant(
        task(
            PooledMatMul(),
            TensorSpec((2, 12, 2, 3, 2), FP32, (240, 1, 120, 40, 20)),
            rows(12, 6, dtype=FP32),
        )
    ),
    # Only the reference: rows, weights computed at run time, operands that vary with the pixels.
    task(
        PooledMatMul(prologue=SCALED, trans_b=True),
        rows(2, 6, 3, 5, dtype=FP16),
        rows(4, 6, dtype=FP16),
        rows(2, 1, 3, 5, dtype=FP32),
    ),
]
FAST = TASKS[:5]
CONFIGS = [(128, 1, 1), (64, 2, 2), (96, 4, 1), (32, 1, 4)]
"""Threads, columns, images; few, so that small problems have blocks that are not full."""


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    best(problem, monkeypatch, 2)
    assert_emulates(VARIANTS, problem)


def best(problem: Problem, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the fast kernel try only its best configurations: each takes seconds to emulate."""
    if PooledGemv().supports(problem, ARCHS["sm_80"]) is None:
        found = PooledGemv().configs(problem, ARCHS["sm_80"])[:count]
        monkeypatch.setattr(PooledGemv, "configs", lambda *_: found)


def any_config(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> PooledGemv:
    width = PooledGemv._width(problem)
    found = [PooledConfig(*c, width) for c in CONFIGS if c[2] <= problem.y.shape[0]]
    monkeypatch.setattr(PooledGemv, "configs", lambda *_: found)
    return PooledGemv()


@pytest.mark.parametrize("problem", FAST, ids=str)
def test_blocks_of_any_shape(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_emulates([PooledStrided(), any_config(problem, monkeypatch)], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", FAST, ids=str)
def test_blocks_of_any_shape_on_the_gpu(
    cuda_runner: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_on_gpu(cuda_runner, [PooledStrided(), any_config(problem, monkeypatch)], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


def densenet(batch: int) -> Problem:
    return constant(
        task(
            PooledMatMul(prologue=NORM, epilogue=SCALED, out_dtype=FP32),
            last(batch, 1024, 7, 7, dtype=FP16),
            rows(1024, 1000, dtype=FP16),
            channel(1024),
            channel(1024),
            rows(1000, dtype=FP32),
        )
    )


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_a_densenet_on_the_gpu(cuda_runner: Any, batch: int) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, densenet(batch))


@pytest.mark.some(1)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("problem", [densenet(1), TASKS[2], TASKS[5]], ids=str)
def test_compiles_without_spills(arch: str, problem: Problem) -> None:
    for variant in variants_of(VARIANTS, problem):
        for cubin in compiled(variant, problem, arch):
            assert cubin.spills == 0


@pytest.mark.slow
def test_blocks_of_a_densenet_compile_without_spills(rng: np.random.Generator) -> None:
    for config in some(PooledGemv().configs(densenet(4), ARCHS["sm_90a"]), 2, rng):
        for cubin in compiled(PooledGemv(), densenet(4), "sm_90a", config):
            assert cubin.spills == 0, config


@pytest.mark.parametrize(
    ("variant", "problem", "reason"),
    [
        (PooledGemv(), TASKS[5], "the weights are no constant"),
        (
            PooledGemv(),
            constant(task(PooledMatMul(), rows(1, 4, 3, 3, dtype=FP16), rows(4, 5, dtype=FP16))),
            "input has channel stride 9, expected 1",
        ),
        (
            PooledGemv(),
            constant(
                task(
                    PooledMatMul(prologue=SCALED),
                    last(1, 8, 3, 3, dtype=FP16),
                    rows(8, 5, dtype=FP16),
                    last(1, 1, 3, 3, dtype=FP16),
                )
            ),
            "operand 0 of the prologue varies along more than the channels",
        ),
        (
            PooledGemv(),
            constant(
                task(
                    PooledMatMul(),
                    TensorSpec((1, 8, 3, 3), FP16, (240, 1, 80, 16)),
                    rows(8, 5, dtype=FP16),
                )
            ),
            "2 spatial dimensions after collapsing, expected 1",
        ),
        (
            PooledGemv(),
            constant(
                task(PooledMatMul(), last(1, 20000, 1, 2, dtype=FP16), rows(20000, 5, dtype=FP16))
            ),
            "20000 channels of an image do not fit 49152 bytes of shared memory",
        ),
        (
            PooledGemv(),
            constant(
                task(PooledMatMul(), last(70000, 8, 1, 1, dtype=FP16), rows(8, 5, dtype=FP16))
            ),
            "70000 images do not fit the launch grid",
        ),
        (
            PooledStrided(),
            task(PooledMatMul(), rows(1, 4, 3, 3, dtype=FP64), rows(4, 5, dtype=FP64)),
            "fp64 elements, expected fp16, bf16 or fp32",
        ),
        (
            PooledStrided(),
            task(PooledMatMul(), rows(1, 4, 0, 3, dtype=FP16), rows(4, 5, dtype=FP16)),
            "an empty tensor",
        ),
    ],
    ids=lambda v: str(v)[:60],
)
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


def test_refuses_many_operands() -> None:
    b = Builder("f" * 8)
    total = 0
    for k in range(1, 8):
        total = b("add", total, k)
    op = PooledMatMul(epilogue=b.build(total))
    extras = [rows(5, dtype=FP32)] * 7
    problem = task(op, rows(1, 4, 3, 3, dtype=FP32), rows(4, 5, dtype=FP32), *extras)
    assert "0 operands of the prologue and 7 of the epilogue" in refusal(PooledStrided(), problem)


def test_weights_are_packed_by_rows() -> None:
    w = np.arange(12.0).reshape(3, 4)
    for trans_b, packed in ((False, w.T), (True, w)):
        problem = constant(
            task(
                PooledMatMul(trans_b=trans_b),
                last(1, w.shape[trans_b], 2, 2, dtype=FP32),
                rows(*w.shape, dtype=FP32),
            )
        )
        np.testing.assert_array_equal(PooledGemv().pack(problem, (), 1, w), packed)


def test_few_images_are_expected_to_gain() -> None:
    """Against a reduction and a product of 2.5 us each, at least; and 64 images to lose."""
    device = ARCHS["sm_90a"]
    times = {}
    for batch in (1, 64):
        problem = densenet(batch)
        best = PooledGemv().configs(problem, device)[0]
        times[batch] = PooledGemv().estimate(problem, best, device)
    assert times[1] < 6e-6
    assert times[64] > 12e-6
