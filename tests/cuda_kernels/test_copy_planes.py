"""Copies between planes and interleaved pixels of few channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.copy import CopyInterleave, CopyStrided
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, UINT8, DType
from nrt.ir.ops import Reformat
from nrt.problem import Problem, TensorSpec

from .emulated_memory import Address
from .harness import assert_right, compiled
from .kernel_emulator import KernelEmulator
from .memory_bound import (
    ARCHES,
    LIMIT,
    assert_emulates,
    data,
    last,
    refusal,
    rows,
    sliced,
    task,
)


def joined(*shape: int, source: DType, target: DType) -> Problem:
    """Planes become pixels."""
    return task(Reformat(target), rows(*shape, dtype=source), out=last(*shape, dtype=target))


def parted(*shape: int, source: DType, target: DType) -> Problem:
    """Pixels become planes."""
    return task(Reformat(target), last(*shape, dtype=source), out=rows(*shape, dtype=target))


TASKS = [
    joined(3, 3, 7, 9, source=FP32, target=FP16),
    joined(2, 3, 23, 23, source=FP32, target=FP16),
    joined(1, 3, 1, 5, source=FP32, target=FP32),
    joined(5, 3, 4, 6, source=FP16, target=FP32),
    joined(2, 2, 5, 7, source=FP32, target=BF16),
    joined(3, 4, 3, 5, source=FP16, target=FP16),
    joined(3, 4, 4, 6, source=FP32, target=FP16),
    joined(2, 3, 5, 5, source=UINT8, target=FP16),
    joined(2, 2, 3, 4, source=INT8, target=INT8),
    parted(3, 3, 7, 9, source=FP16, target=FP32),
    parted(2, 3, 23, 23, source=FP16, target=FP32),
    parted(2, 3, 8, 6, source=FP32, target=FP32),
    parted(3, 3, 4, 8, source=BF16, target=BF16),
    parted(1, 2, 9, 7, source=FP32, target=FP16),
    parted(3, 4, 5, 3, source=FP16, target=FP32),
    parted(3, 4, 4, 7, source=FP16, target=FP32),
    parted(2, 3, 5, 7, source=UINT8, target=FP32),
    parted(3, 3, 3, 3, source=FP32, target=INT8),
    parted(2, 4, 3, 3, source=BOOL, target=FP16),
    task(Reformat(FP16), rows(11, 3, dtype=FP32),
         out=TensorSpec.dense((11, 3), FP16, (1, 0))),
    task(Reformat(FP32), rows(2, 3, 2, 3, 5, dtype=FP16),
         out=TensorSpec.dense((2, 3, 2, 3, 5), FP32, (0, 2, 3, 4, 1))),
    joined(0, 3, 5, 5, source=FP32, target=FP16),
]  # fmt: skip
SMALL_RUNS = [(32, 1, 1), (32, 1, 3)]
"""So small that a task has several blocks, of which the last one is not full."""

LARGE = joined(32, 3, 299, 299, source=FP32, target=FP16)

REFUSED = [
    (joined(2, 3, 5, 7, source=FP64, target=FP32), "elements of 8 bytes, at most 4"),
    (joined(2, 5, 5, 7, source=FP32, target=FP16), "5 interleaved channels, at most 4"),
    (parted(2, 3, 5, 7, source=FP8E4M3, target=FP32), "input 0 is fp8e4m3"),
    (
        task(Reformat(FP16), rows(2, 3, 5, 7, dtype=FP32), out=rows(2, 3, 5, 7, dtype=FP16)),
        "not dense planes to dense pixels, nor back",
    ),
    (joined(5, 3, 1, 1, source=FP32, target=FP16), "not dense planes to dense pixels, nor back"),
    (
        task(
            Reformat(FP16),
            rows(2, 3, 5, 7, dtype=FP32),
            out=sliced(2, 3, 5, 7, dtype=FP16, order=(0, 2, 3, 1), more=1),
        ),
        "not dense planes to dense pixels, nor back",
    ),
    (
        task(
            Reformat(FP16),
            sliced(2, 3, 5, 7, dtype=FP32, order=(0, 1, 2, 3), more=1),
            out=last(2, 3, 5, 7, dtype=FP16),
        ),
        "not dense planes to dense pixels, nor back",
    ),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates([CopyStrided(), CopyInterleave()], problem)


@pytest.mark.parametrize("config", SMALL_RUNS, ids=str)
@pytest.mark.parametrize("problem", TASKS[:-1], ids=str)
def test_short_runs(
    problem: Problem, config: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopyInterleave, "configs", lambda *_: [config])
    assert_emulates([CopyStrided(), CopyInterleave()], problem)


@pytest.mark.parametrize("index", [3, 6, 8, 11, 12, 15])
def test_short_runs_of_vectors(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of several pixels, in several blocks."""
    (width, *_) = {w for _, w, _ in CopyInterleave().configs(TASKS[index], ARCHS["sm_80"])} - {1}
    monkeypatch.setattr(CopyInterleave, "configs", lambda *_: [(32, width, 1)])
    assert_emulates([CopyStrided(), CopyInterleave()], TASKS[index])


@pytest.mark.parametrize("index", [0, 3, 5, 6, 9, 11, 12, 14, 15])
def test_addresses_that_are_not_aligned(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Address, "__and__", lambda *_: 2)
    problem, variant = TASKS[index], CopyInterleave()
    inputs = data(problem)
    for config in variant.configs(problem, KernelEmulator().device):
        (out,) = KernelEmulator().run(variant, problem, config, inputs)
        np.testing.assert_array_equal(out, problem.op.reference(*inputs)[0])


@pytest.mark.parametrize(("problem", "reason"), REFUSED, ids=str)
def test_refuses(problem: Problem, reason: str) -> None:
    assert reason in refusal(CopyInterleave(), problem)


def test_comes_first() -> None:
    """An image of odd size is not left to transposed tiles; nor is one that vectors fit."""
    device = ARCHS["sm_90a"]
    for problem in (
        LARGE,
        joined(32, 3, 224, 224, source=FP32, target=FP16),
        parted(4, 3, 299, 299, source=FP16, target=FP32),
    ):
        taken = [v for v, refused in variants_for(problem, device) if refused is None]
        first = min(taken, key=lambda v: v.estimate(problem, v.configs(problem, device)[0], device))
        assert first.name == "copy_interleave"


def test_configurations() -> None:
    variant, device = CopyInterleave(), ARCHS["sm_90a"]
    assert variant.configs(LARGE, device) == [(256, 1, 4), (128, 1, 8)]
    even = parted(32, 3, 224, 224, source=FP16, target=FP32)
    assert variant.configs(even, device) == [(256, 4, 1), (256, 1, 4), (128, 4, 2)]
    few = joined(1, 3, 299, 299, source=FP32, target=FP16)
    assert variant.configs(few, device) == [(128, 1, 2), (256, 1, 4)]
    pairs = joined(32, 2, 224, 224, source=FP32, target=FP16)
    assert variant.configs(pairs, device)[0] == (256, 4, 1)


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [1, 6, 10, 11])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for cubin in compiled(CopyInterleave(), TASKS[index], arch):
        assert cubin.spills == 0


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("index", [1, 5, 10])
def test_compiles_for_turing(index: int) -> None:
    for cubin in compiled(CopyInterleave(), TASKS[index], "sm_75"):
        assert cubin.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("index", [4, 11, 15])
def test_on_the_gpu(cuda_runner: Any, index: int) -> None:
    assert_right(cuda_runner, CopyInterleave(), TASKS[index], LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "problem",
    [
        joined(3, 3, 299, 299, source=FP32, target=FP16),
        parted(3, 3, 299, 299, source=FP16, target=FP32),
    ],
    ids=str,
)
def test_images_on_the_gpu(
    cuda_runner: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that lie inside an image or in two."""
    monkeypatch.setattr(CopyInterleave, "configs", lambda *_: [(256, 1, 4)])
    assert_right(cuda_runner, CopyInterleave(), problem, LIMIT)
