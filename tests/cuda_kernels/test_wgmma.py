"""Convolution and matrix product by the copy engine and warpgroup products (sm_90a)."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.epilogue_box import fragment_order
from nrt.cuda_kernels.gemm_wgmma import GemmWgmma
from nrt.cuda_kernels.variant import TensorMap
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, UINT8
from nrt.ir.ops import Conv, MatMul
from nrt.ir.value import NHWC
from nrt.problem import Problem
from nrt.trial import random_inputs

from .harness import assert_right, compiled, problem
from .int8_cases import assert_exact, requantized_conv, requantized_product
from .test_mma import CONVS, MATMULS, TF32, conv
from .test_mma import LIMIT as FLOAT_LIMIT

LIMIT = {**FLOAT_LIMIT, "int8": 1e-2, "uint8": 1e-2, "fp8e4m3": 1e-2}
"""Stored fp8: tensor cores keep some 14 bits of its sums, so that a few in a hundred round to the
other side of a half, by a step of a tenth."""
PARTS = 6
"""Tests that share the tiles of one task: they compile side by side."""
FP8 = [
    conv(2, 48, 17, 9, 72, 3, 3, pads=(1,) * 4, dtype=FP8E4M3, residual=True, out_dtype=FP8E4M3),
    conv(1, 256, 7, 7, 80, 3, 3, pads=(1,) * 4, dtype=FP8E4M3, out_dtype=FP8E4M3),
    conv(2, 64, 9, 9, 96, 1, 1, dtype=FP8E4M3, out_dtype=INT8),
    conv(2, 24, 9, 9, 72, 3, 3, dtype=FP16, out_dtype=FP8E4M3),
]
MORE = [
    conv(3, 64, 14, 14, 256, 1, 1, residual=True),
    conv(2, 72, 10, 9, 200, 3, 3, pads=(0, 1, 2, 0), strides=(1, 2)),
    conv(9, 8, 3, 2, 24, 3, 2, pads=(1, 1, 1, 0)),
    conv(1, 2048, 1, 1, 64, 1, 1),
    # Many tiles: clusters that multicast, weights that stay.
    conv(6, 64, 56, 56, 256, 1, 1, residual=True),
    # The residual is a piece of a wider tensor.
    conv(3, 64, 14, 14, 256, 1, 1, residual=True, beside=64),
    conv(2, 64, 13, 11, 72, 3, 3, residual=True, beside=8, leading=16),
    conv(7, 64, 57, 55, 64, 3, 3, pads=(1, 1, 1, 1)),
    conv(5, 128, 56, 56, 328, 1, 1, leading=8),
    conv(2, 80, 31, 29, 192, 3, 3),
    conv(3, 32, 40, 40, 64, 3, 3, pads=(1, 1, 1, 1)),
    # Groups smaller and larger than a block of columns.
    conv(2, 128, 15, 14, 128, 3, 3, pads=(1, 1, 1, 1), groups=32),
    conv(1, 256, 9, 9, 512, 3, 3, pads=(1, 1, 1, 1), groups=32),
    conv(2, 192, 9, 7, 256, 1, 1, groups=2),
    # Other types.
    conv(2, 40, 17, 9, 72, 3, 3, pads=(1, 1, 1, 1), dtype=FP32, tf32=True),
    conv(2, 48, 17, 9, 72, 3, 3, pads=(1, 1, 1, 1), dtype=FP8E4M3, out_dtype=FP16),
    conv(2, 48, 17, 9, 80, 3, 3, pads=(1, 1, 1, 1), dtype=INT8, out_dtype=BF16),
    conv(2, 272, 17, 9, 80, 1, 1, dtype=INT8, out_dtype=INT8),
    conv(2, 48, 17, 9, 80, 3, 3, pads=(1, 1, 1, 1), dtype=UINT8, out_dtype=BF16),
    conv(2, 48, 17, 9, 80, 3, 3, pads=(1, 1, 1, 1), dtype=FP8E4M3, out_dtype=FP8E4M3),
    conv(2, 64, 17, 9, 96, 1, 1, dtype=FP16, out_dtype=INT8),
    *FP8,
]
OTHER_MATMULS = [
    problem(MatMul(tf32=True), [(300, 1000), (1000, 200)], FP32, constants=(1,)),
    problem(MatMul(trans_b=True), [(40, 72), (88, 72)], FP16, constants=(1,)),
    problem(MatMul(), [(300, 1040), (1040, 200)], FP8E4M3, constants=(1,)),
    problem(MatMul(out_dtype=FP32), [(70, 2064), (2064, 200)], FP8E4M3, constants=(1,)),
    problem(MatMul(), [(300, 1040), (1040, 200)], INT8, constants=(1,)),
    problem(MatMul(out_dtype=BF16), [(70, 144), (144, 33)], INT8, constants=(1,)),
    problem(MatMul(), [(300, 1040), (1040, 200)], UINT8, dtypes={1: INT8}, constants=(1,)),
]
MATMULS = [*MATMULS, *OTHER_MATMULS]

INT8_CONVS = [
    requantized_conv((3, 64, 14, 13), (256, 64, 1, 1), residual=INT8),
    requantized_conv((2, 80, 15, 11), (96, 80, 3, 3), pads=(1, 1, 1, 1)),
    requantized_conv((2, 64, 13, 11), (80, 64, 3, 3), strides=(2, 1), pads=(0, 1, 2, 0)),
    # Pieces of wider tensors; no whole cell of 16 channels; other types beside int8.
    requantized_conv((3, 64, 14, 14), (160, 64, 1, 1), residual=INT8, beside=32, leading=16),
    requantized_conv((2, 48, 9, 9), (72, 48, 1, 1), residual=INT8),
    requantized_conv((2, 64, 12, 10), (64, 64, 1, 1), residual=FP16),
    requantized_conv((2, 64, 12, 10), (64, 64, 1, 1), residual=INT8, out=FP16),
    requantized_conv((2, 256, 9, 9), (256, 16, 3, 3), pads=(1, 1, 1, 1), groups=16),
    # Many tiles: clusters that multicast, weights that stay.
    requantized_conv((6, 64, 56, 56), (256, 64, 1, 1), residual=INT8),
    requantized_conv((7, 64, 57, 55), (64, 64, 3, 3), pads=(1, 1, 1, 1)),
]
UINT8_TASKS = [
    requantized_conv((3, 64, 14, 13), (256, 64, 1, 1), dtype=UINT8, residual=INT8),
    requantized_conv((2, 64, 13, 11), (80, 64, 3, 3), dtype=UINT8, strides=(2, 1),
                     pads=(0, 1, 2, 0), out=FP16),
    requantized_conv((2, 256, 9, 9), (256, 16, 3, 3), dtype=UINT8, pads=(1, 1, 1, 1), groups=16),
    requantized_conv((6, 64, 56, 56), (256, 64, 1, 1), dtype=UINT8, out=UINT8, residual=UINT8),
    requantized_conv((2, 80, 15, 11), (96, 80, 3, 3), dtype=UINT8, out=UINT8, pads=(1, 1, 1, 1)),
    requantized_product(300, 1040, 208, dtype=UINT8),
    requantized_product(77, 272, 80, dtype=UINT8, out=UINT8, residual=UINT8),
]  # fmt: skip
INT8_MATMULS = [
    requantized_product(300, 1040, 208),
    requantized_product(77, 272, 80, residual=INT8),
    requantized_product(130, 64, 96, residual=INT8, leading=16),
    requantized_product(40, 128, 130),
]


def forms(variant: Any, task: Problem) -> list[Any]:
    """One configuration of every form: split, in clusters, with weights that stay, by rows.

    Which tile it is differs from task to task. Clusters are for operands that leave the
    second-level cache, which those of a test do not: the device is told to have a small one.
    """
    device = replace(ARCHS["sm_90a"], l2_bytes=1 << 16)
    found: dict[Any, list[Any]] = {}
    for config in variant.configs(task, device):
        form = (config.split, config.cluster, config.resident > 0, config.row, config.bn > 128)
        found.setdefault(form, []).append(config)
    turn = zlib.crc32(str(task).encode())
    return [configs[turn % len(configs)] for configs in found.values()]


def limit(task: Problem) -> dict[str, float]:
    """The tolerances of ``task``: operands rounded to tf32 have their own."""
    assert isinstance(task.op, Conv | MatMul)
    return TF32 if task.op.tf32 else LIMIT


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("task", [CONVS[2], CONVS[8], MORE[4]], ids=str)
def test_every_tile_on_the_gpu(cuda_runner: Any, task: Problem, part: int) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    configs = ConvWgmma().configs(task, cuda_runner.device)[part::PARTS]
    assert_right(cuda_runner, ConvWgmma(), task, LIMIT, configs)


def test_forms_are_all_there() -> None:
    found = [c for t in (*CONVS, *MORE) for c in forms(ConvWgmma(), t)]
    assert {c.split for c in found} == {1, 2, 4, 8}
    assert {c.cluster for c in found} == {1, 2}
    assert {c.resident > 0 for c in found} == {False, True}
    assert {c.row for c in found} == {128, 64, 32}
    assert {c.bn for c in found} >= {32, 64, 96, 128, 192, 256}
    assert {c.consumers for c in found} == {1, 2, 3, 4}


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*CONVS, *MORE], ids=str)
def test_convolution_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    assert_right(cuda_runner, ConvWgmma(), task, limit(task), forms(ConvWgmma(), task))


@pytest.mark.gpu
@pytest.mark.parametrize("task", MATMULS, ids=str)
def test_matrix_product_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    assert_right(cuda_runner, GemmWgmma(), task, limit(task), forms(GemmWgmma(), task))


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*INT8_CONVS, *INT8_MATMULS, *UINT8_TASKS], ids=str)
def test_requantization_is_exact_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    variant = ConvWgmma() if isinstance(task.op, Conv) else GemmWgmma()
    found = forms(variant, task)
    # Each takes seconds to compile.
    assert_exact(cuda_runner, variant, task, found[:: 1 + len(found) // 7])


@pytest.mark.gpu
def test_nan_passes_the_relu_of_a_box(cuda_runner: Any) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    variant, task = ConvWgmma(), conv(1, 64, 9, 8, 64, 1, 1)
    inputs = random_inputs(task, np.random.default_rng())
    inputs[0][0, 5, 3, 2] = np.nan
    config = next(c for c in variant.configs(task, cuda_runner.device) if c.split == 1)
    (out,) = cuda_runner.run(variant, task, config, inputs)
    assert np.isnan(out[0, :, 3, 2]).all()
    out[0, :, 3, 2] = 0
    assert np.isfinite(out).all()
    assert (out >= 0).all()
    assert (out > 0).any()


@pytest.mark.gpu
@pytest.mark.parametrize("task", [INT8_CONVS[0], UINT8_TASKS[0]], ids=str)
def test_every_tile_requantizes_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    variant = ConvWgmma()
    configs = variant.configs(task, cuda_runner.device)
    shapes = {(c.consumers, c.bn): c for c in reversed(configs) if c.split == 1}
    assert len(shapes) > 8
    assert_exact(cuda_runner, variant, task, list(shapes.values()))


def test_boxes_of_bytes_are_expected_to_leave_faster() -> None:
    device, variant = ARCHS["sm_90a"], ConvWgmma()
    shapes = (128, 64, 56, 56), (256, 64, 1, 1)
    boxes = requantized_conv(*shapes, residual=INT8)
    rows = requantized_conv(*shapes, residual=FP16)
    halves = conv(128, 64, 56, 56, 256, 1, 1, residual=True)
    times = [
        variant.estimate(t, variant.configs(t, device)[0], device) for t in (boxes, halves, rows)
    ]
    assert times[0] < 0.6 * times[1] < 0.6 * times[2]


def test_weights_of_boxes_of_bytes_are_in_the_order_of_fragments() -> None:
    device, rng = ARCHS["sm_90a"], np.random.default_rng()
    for task, boxed in ((INT8_CONVS[0], True), (INT8_CONVS[4], False), (INT8_CONVS[6], False)):
        config = ConvWgmma().configs(task, device)[0]
        k, c = task.inputs[1].shape[:2]
        weights = rng.integers(-128, 128, (k, c, 1, 1)).astype(np.int8)
        rows = ConvWgmma().pack(task, config, 1, weights)[:, 0, 0, :c]
        order = fragment_order(k) if boxed else np.arange(k)
        assert np.array_equal(rows, weights[order, :, 0, 0])


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "task",
    [
        CONVS[1],
        CONVS[2],
        INT8_CONVS[3],
        UINT8_TASKS[1],
        *(pytest.param(task, marks=pytest.mark.slow) for task in FP8[:2]),
    ],
    ids=str,
)
def test_convolution_compiles_without_spills(task: Problem) -> None:
    for cubin in compiled(ConvWgmma(), task, "sm_90a"):
        assert cubin.spills == 0


def test_a_residual_beside_other_channels_is_fetched_by_the_same_kernel() -> None:
    """Its pitch stands in the map."""
    device = ARCHS["sm_90a"]
    emissions = []
    for task in (
        conv(3, 64, 14, 14, 256, 1, 1, residual=True),
        conv(3, 64, 14, 14, 256, 1, 1, residual=True, beside=64),
    ):
        config = next(c for c in ConvWgmma().configs(task, device) if c.split == 1)
        emissions.append(ConvWgmma().emit(task, config, device).launches[0])
    alone, beside = emissions
    assert alone.kernel == beside.kernel
    maps = [[a for a in e.args if isinstance(a, TensorMap)] for e in emissions]
    assert [m.strides for m in maps[0]] != [m.strides for m in maps[1]]
    assert [m.strides for m in maps[0][:3]] == [m.strides for m in maps[1][:3]]
    assert maps[1][3].strides == (2 * (256 + 64),)


@pytest.mark.slow
def test_tiles_compile_without_spills(rng: np.random.Generator) -> None:
    variant, task = ConvWgmma(), CONVS[4]
    shapes = {(c.consumers, c.bn, c.per_sm): c for c in variant.configs(task, ARCHS["sm_90a"])}
    assert len(shapes) > 10
    for config in some(shapes.values(), 4, rng):
        for cubin in compiled(variant, task, "sm_90a", config):
            assert cubin.spills == 0, config


@pytest.mark.some(3)
@pytest.mark.slow
@pytest.mark.parametrize("task", [*INT8_CONVS[4:7], INT8_MATMULS[1], *UINT8_TASKS[2:4]], ids=str)
def test_requantization_compiles_without_spills(task: Problem) -> None:
    variant = ConvWgmma() if isinstance(task.op, Conv) else GemmWgmma()
    for cubin in compiled(variant, task, "sm_90a"):
        assert cubin.spills == 0


@pytest.mark.some(1)
@pytest.mark.parametrize("task", [MATMULS[0], UINT8_TASKS[5]], ids=str)
def test_matrix_product_compiles(task: Problem) -> None:
    for cubin in compiled(GemmWgmma(), task, "sm_90a"):
        assert cubin.spills == 0


def test_kernels_differ_by_the_sign_of_bytes() -> None:
    """No emulation shows it; all else but the maps' type is the same."""
    device, launches = ARCHS["sm_90a"], []
    for task in (INT8_CONVS[0], UINT8_TASKS[0]):
        configs = ConvWgmma().configs(task, device)
        launches.append(ConvWgmma().emit(task, configs[0], device).launches[0])
    signed, unsigned = launches
    assert (signed.kernel.params[1], unsigned.kernel.params[1]) == (INT8, UINT8)
    params = (signed.kernel.params[0], UINT8, *signed.kernel.params[2:])
    assert replace(signed.kernel, params=params) == unsigned.kernel
    kinds = [[a.dtype for a in e.args if isinstance(a, TensorMap)] for e in launches]
    assert kinds == [["int8", "int8", "int8", "int8"], ["uint8", "int8", "int8", "int8"]]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (conv(1, 12, 8, 8, 8, 3, 3), "input channels (12) and strides"),
        (conv(1, 8, 40, 40, 8, 3, 3, strides=(9, 1)), "steps over at most 8 elements"),
        (conv(1, 8, 300, 8, 8, 150, 1), "do not fit 8 bits"),
        (
            problem(Conv(), [(1, 16, 8, 8), (8, 16, 3, 3)], FP16, order=NHWC),
            "weights are computed at run time",
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_convolution_refuses(task: Problem, reason: str) -> None:
    refusal = ConvWgmma().supports(task, ARCHS["sm_90a"])
    assert refusal is not None
    assert reason in refusal.reason


def test_other_architectures_are_refused() -> None:
    for variant, task in ((ConvWgmma(), CONVS[0]), (GemmWgmma(), MATMULS[0])):
        refusal = variant.supports(task, ARCHS["sm_80"])
        assert refusal is not None
        assert "no warpgroup products" in refusal.reason


def test_fp32_is_refused() -> None:
    task = problem(MatMul(), [(8, 64), (64, 8)], FP32, constants=(1,))
    refusal = GemmWgmma().supports(task, ARCHS["sm_90a"])
    assert refusal is not None
    assert "operands are fp32" in refusal.reason
