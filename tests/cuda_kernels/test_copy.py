"""Copies between layouts and element types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.copy import VARIANTS, CopyBlock, CopyPlanes, CopyStrided, CopyTile, CopyVector
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT32, INT64, UINT8
from nrt.ir.op import Op
from nrt.ir.ops import Gather, Pad, Reformat, Resize, Slice
from nrt.problem import Problem, TensorSpec

from .emulated_memory import Address
from .harness import compiled
from .kernel_emulator import KernelEmulator
from .memory_bound import (
    ARCHES,
    assert_emulates,
    assert_on_gpu,
    data,
    last,
    refusal,
    rows,
    sliced,
    task,
    variants_of,
)


def copy(x: TensorSpec, y: TensorSpec) -> Problem:
    return task(Reformat(y.dtype), x, out=y)


def ordered(*shape: int, dtype: Any, order: tuple[int, ...]) -> TensorSpec:
    return TensorSpec.dense(shape, dtype, order)


TASKS = [
    copy(rows(1, 3, 8, 20, dtype=FP32), last(1, 3, 8, 20, dtype=FP16)),
    copy(rows(2, 3, 4, 8, dtype=FP32), last(2, 3, 4, 8, dtype=FP32)),
    copy(last(2, 37, 3, 5, dtype=FP16), rows(2, 37, 3, 5, dtype=FP32)),
    copy(rows(2, 40, 3, 35, dtype=FP32), last(2, 40, 3, 35, dtype=FP16)),
    copy(rows(2, 34, 7, 5, dtype=INT8), last(2, 34, 7, 5, dtype=INT8)),
    copy(rows(1, 64, 7, 9, dtype=BF16), last(1, 64, 7, 9, dtype=BF16)),
    copy(rows(3, 5, 7, dtype=FP8E4M3), ordered(3, 5, 7, dtype=FP8E4M3, order=(2, 0, 1))),
    copy(rows(3, 5, 8, dtype=FP16), rows(3, 5, 8, dtype=FP16)),
    copy(sliced(3, 5, 8, dtype=FP16, order=(0, 1, 2), more=8), rows(3, 5, 8, dtype=FP16)),
    copy(rows(3, 16, dtype=INT8), sliced(3, 16, dtype=INT8, order=(0, 1), more=16)),
    copy(rows(67, dtype=INT64), rows(67, dtype=FP32)),
    copy(rows(7, 9, dtype=FP64), ordered(7, 9, dtype=INT32, order=(1, 0))),
    copy(TensorSpec((1, 4, 6), FP32, (0, 0, 1)), rows(1, 4, 6, dtype=FP32)),
    copy(
        rows(2, 3, 2, 3, 4, 5, dtype=FP32),
        ordered(2, 3, 2, 3, 4, 5, dtype=FP16, order=(5, 1, 3, 0, 4, 2)),
    ),
    copy(rows(5, 0, 3, dtype=FP32), rows(5, 0, 3, dtype=FP16)),
    copy(rows(dtype=FP32), rows(dtype=FP16)),
    copy(rows(35, dtype=BOOL), rows(35, dtype=FP16)),
    copy(rows(35, dtype=FP16), rows(35, dtype=BOOL)),
    copy(rows(2, 24, 7, 8, dtype=FP16), last(2, 24, 7, 8, dtype=FP16)),
    copy(last(3, 72, 4, 10, dtype=BF16), rows(3, 72, 4, 10, dtype=BF16)),
    copy(
        sliced(2, 16, 5, 8, dtype=FP16, order=(0, 2, 3, 1), more=8),
        sliced(2, 16, 5, 8, dtype=FP32, order=(0, 1, 2, 3), more=24),
    ),
    copy(rows(40, 24, dtype=FP32), ordered(40, 24, dtype=BF16, order=(1, 0))),
    copy(rows(2, 12, 5, 4, dtype=FP32), last(2, 12, 5, 4, dtype=FP32)),
    copy(rows(1, 40, 8, 9, dtype=INT8), last(1, 40, 8, 9, dtype=INT8)),
    copy(rows(3, 8, 5, 16, dtype=BOOL), ordered(3, 8, 5, 16, dtype=BOOL, order=(3, 0, 2, 1))),
    task(Slice((4, 0, 2), (-1, 5, 0), (-2, 1, -1)), rows(5, 5, 7, dtype=FP16)),
    copy(last(2, 36, 5, 4, dtype=UINT8), rows(2, 36, 5, 4, dtype=UINT8)),
]
REFUSED = [
    (CopyVector(), TASKS[2], "input 0 has stride 37 along the output's contiguous dimension"),
    (CopyTile(), TASKS[7], "input and output have no different contiguous dimensions"),
    (CopyPlanes(), TASKS[3], "more than 8 interleaved channels"),
    (
        CopyPlanes(),
        copy(rows(1, 3, 5, 7, dtype=FP32), last(1, 3, 5, 7, dtype=FP16)),
        "no vector of pixels fits 35 pixels",
    ),
    (
        CopyPlanes(),
        copy(rows(6, 4, dtype=FP32), sliced(6, 4, dtype=FP16, order=(0, 1), more=4)),
        "not planes to dense pixels",
    ),
    (CopyBlock(), TASKS[7], "input and output have no different contiguous dimensions"),
    (CopyBlock(), TASKS[5], "63 contiguous elements are not a multiple of 8"),
    (CopyBlock(), TASKS[11], "no square of fp64 becomes one of int32"),
    (
        CopyBlock(),
        copy(
            rows(16, 8, dtype=FP16),
            sliced(16, 8, dtype=FP16, order=(1, 0), more=3),
        ),
        "strides (19, 1) are not multiples of 8",
    ),
    (
        CopyStrided(),
        copy(rows(4, dtype=FP32), rows(4, dtype=FP8E4M3)),
        "output 0 is fp8e4m3: no arithmetic on it here",
    ),
    (
        CopyStrided(),
        copy(rows(2**31, dtype=FP32), rows(2**31, dtype=FP16)),
        "input 0 spans 2147483648 elements",
    ),
    (
        CopyStrided(),
        copy(
            rows(*[2] * 9, dtype=FP16),
            ordered(*[2] * 9, dtype=FP16, order=(8, 6, 4, 2, 0, 7, 5, 3, 1)),
        ),
        "9 dimensions after collapsing, at most 8",
    ),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(3)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [0, 3, 4, 8, 10, 18, 20, 22, 23])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


def test_squares_are_expected_to_be_faster() -> None:
    """Transposes in registers come first, in blocks that fill the dimensions."""
    device = ARCHS["sm_90a"]
    problem = copy(rows(64, 64, 56, 56, dtype=FP16), last(64, 64, 56, 56, dtype=FP16))
    block, tile = CopyBlock(), CopyTile()
    configs = block.configs(problem, device)
    assert configs[:2] == [(8, 1, 8), (4, 2, 4)]
    first = block.estimate(problem, configs[0], device)
    assert first < tile.estimate(problem, tile.configs(problem, device)[0], device)
    back = copy(last(64, 64, 56, 56, dtype=FP16), rows(64, 64, 56, 56, dtype=FP16))
    assert block.configs(back, device)[0] == (8, 4, 2)
    small = copy(rows(1, 64, 8, 8, dtype=FP16), last(1, 64, 8, 8, dtype=FP16))
    assert block.configs(small, device)[0] == (8, 1, 1)


@pytest.mark.parametrize("config", [(8, 1, 8), (8, 4, 2), (4, 4, 2), (4, 8, 1), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("index", [18, 20, 22, 23])
def test_squares_in_any_block(
    index: int, config: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small problems would get two of the configurations only."""
    monkeypatch.setattr(CopyBlock, "configs", lambda *_: [config])
    assert_emulates([CopyStrided(), CopyBlock()], TASKS[index])


@pytest.mark.gpu
@pytest.mark.parametrize("config", [(8, 1, 8), (8, 4, 2), (4, 4, 2), (4, 8, 1), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("index", [18, 19, 20, 21, 22, 23, 24])
def test_squares_in_any_block_on_the_gpu(
    cuda_runner: Any,
    index: int,
    config: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CopyBlock, "configs", lambda *_: [config])
    assert_on_gpu(cuda_runner, [CopyStrided(), CopyBlock()], TASKS[index])


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("index", [18, 22, 23])
def test_compiles_for_turing(index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], "sm_75"):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


@pytest.mark.parametrize("problem", [TASKS[k] for k in (0, 3, 8, 10, 18, 20)], ids=str)
def test_addresses_that_are_not_aligned(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of a copy may lie anywhere: kernels then go without vectors."""
    monkeypatch.setattr(Address, "__and__", lambda *_: 2)
    inputs = data(problem)
    expected = problem.op.reference(*inputs)[0]
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, KernelEmulator().device):
            (out,) = KernelEmulator().run(variant, problem, config, inputs)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("op", "shape", "more"),
    [
        (Slice((1, 0, 0, 0), (3, 16, 6, 5), (1, 1, 2, 1)), (3, 16, 6, 5), ()),
        (Pad((0, 0, 1, 2, 0, 0, 2, 1), "constant", 7.0), (3, 16, 6, 5), ()),
        (Resize((3, 16, 12, 10), (1.0, 1.0, 2.0, 2.0)), (3, 16, 6, 5), ()),
        (Gather(0), (3, 16, 6, 5), (rows(2, dtype=INT64),)),
    ],
    ids=str,
)
def test_uint8_moves_as_int8_does(
    op: Op, shape: tuple[int, ...], more: tuple[TensorSpec, ...]
) -> None:
    """By the same binaries."""
    device = ARCHS["sm_90a"]
    signed, unsigned = (task(op, last(*shape, dtype=d), *more, out=last) for d in (INT8, UINT8))
    variants = [v for v, refused in variants_for(unsigned, device) if refused is None]
    assert variants
    for variant in variants:
        configs = variant.configs(unsigned, device)
        assert configs == variant.configs(signed, device)
        for config in configs:
            found = variant.emit(unsigned, config, device)
            assert found.launches
            assert found == variant.emit(signed, config, device)
