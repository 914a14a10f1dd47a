"""Products that end in uint8, and those that add a residual of it: exact, saturated, NaN as 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.conv_direct import ConvDirect
from nrt.cuda_kernels.conv_dp4a import ConvDp4a
from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_mma import GemmMma
from nrt.cuda_kernels.gemm_wgmma import GemmWgmma
from nrt.cuda_kernels.simt_tile import Tile
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import FP8E4M3, FP16, INT8, UINT8, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem

from .harness import compiled
from .int8_cases import assert_exact, requantized_conv, requantized_product
from .kernel_emulator import KernelEmulator
from .test_wgmma import forms

INTEGERS = [
    requantized_conv((3, 64, 14, 13), (256, 64, 1, 1), out=UINT8, residual=UINT8),
    requantized_conv(
        (3, 64, 14, 14), (160, 64, 1, 1), out=UINT8, residual=INT8, beside=32, leading=16
    ),
    # No whole cell of 16 channels; other types beside uint8.
    requantized_conv((2, 48, 9, 9), (72, 48, 1, 1), residual=UINT8),
    requantized_conv((2, 64, 12, 10), (64, 64, 1, 1), out=FP16, residual=UINT8),
    requantized_conv((2, 64, 12, 10), (64, 64, 1, 1), out=UINT8, residual=FP16),
    # Many tiles: clusters that multicast, weights that stay.
    requantized_conv((6, 64, 56, 56), (256, 64, 1, 1), residual=UINT8),
    requantized_product(77, 272, 80, out=UINT8, residual=UINT8),
    requantized_product(130, 64, 90, out=UINT8),
]
SMALL = [
    requantized_conv((1, 16, 4, 5), (36, 16, 1, 1), out=UINT8, residual=UINT8),
    requantized_conv((1, 16, 4, 5), (36, 16, 1, 1), residual=UINT8),
    requantized_conv((1, 16, 4, 5), (33, 16, 1, 1), out=UINT8, residual=INT8),
    requantized_conv((1, 16, 4, 5), (36, 16, 1, 1), out=FP16, residual=UINT8),
]


def of_floats(
    dtype: DType, x: tuple[int, int, int, int], channels: int, residual: DType | None = None
) -> Problem:
    """A convolution of ``dtype`` by 1 x 1 that ends in uint8."""
    task = requantized_conv(x, (channels, x[1], 1, 1), out=UINT8, residual=residual)
    operands = tuple(replace(s, dtype=dtype) for s in task.inputs[:2])
    return replace(task, inputs=(*operands, *task.inputs[2:]))


FLOATS = [
    of_floats(FP16, (3, 64, 14, 13), 96, UINT8),
    of_floats(FP16, (2, 32, 9, 7), 72),
    of_floats(FP8E4M3, (3, 64, 14, 13), 96, UINT8),
    of_floats(FP8E4M3, (2, 32, 9, 7), 80),
]


def inputs_of(task: Problem) -> list[Array]:
    """Whole numbers whose sums are exact in every kind of product; NaN in one pixel of fp16."""
    rng = np.random.default_rng()
    x, w, scale, bias, *residual = task.inputs
    arrays = [rng.integers(-3, 4, s.shape).astype(s.dtype.numpy) for s in (x, w)]
    if x.dtype is FP16:
        arrays[0][0, 1, 2, 3] = np.nan
    arrays.append((2.0 ** rng.integers(1, 4, scale.shape)).astype(np.float32))
    arrays.append((100 + rng.integers(-40, 41, bias.shape) / 2).astype(np.float32))
    # Two channels saturate whatever the others are.
    arrays[3][0], arrays[3][1] = -4000, 4000
    arrays += [rng.integers(0, 256, s.shape).astype(np.uint8) for s in residual]
    return arrays


def assert_stored(runner: Any, variant: Variant, task: Problem, configs: Sequence[Any]) -> None:
    """``variant`` stores the reference's bytes, of floats too, in each of ``configs``."""
    inputs = inputs_of(task)
    exact = [a if a.dtype == np.uint8 else a.astype(np.float64) for a in inputs]
    (expected,) = task.op.reference(*exact)
    assert expected.dtype == np.uint8
    assert (expected.min(), expected.max()) == (0, 255)
    if task.inputs[0].dtype is FP16:
        assert (expected[0, :, 2, 3] == 0).all()
    assert configs
    for config in configs:
        (out,) = runner.run(variant, task, config, inputs)
        assert np.array_equal(out, expected), (variant.name, config)


@pytest.mark.parametrize("task", SMALL, ids=str)
def test_integers_emulated(task: Problem) -> None:
    variant = ConvDp4a()
    assert_exact(KernelEmulator(), variant, task, variant.configs(task, ARCHS["sm_75"])[:1])


def test_floats_emulated() -> None:
    task = of_floats(FP16, (1, 8, 4, 5), 36, UINT8)
    assert_stored(KernelEmulator(), ConvSimt(), task, [Tile(32, 32, 16, 4, 4)])
    task = of_floats(FP8E4M3, (1, 8, 4, 5), 9, UINT8)
    assert_stored(KernelEmulator(), ConvDirect(), task, ConvDirect().configs(task, ARCHS["sm_89"]))


@pytest.mark.gpu
@pytest.mark.parametrize("task", INTEGERS, ids=str)
def test_integers_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    device = cuda_runner.device
    convolves = isinstance(task.op, Conv)
    older: Variant = ConvMma() if convolves else GemmMma()
    assert_exact(cuda_runner, older, task, older.configs(task, device)[:2])
    if device.arch == "sm_90a":
        variant: Variant = ConvWgmma() if convolves else GemmWgmma()
        found = forms(variant, task)
        assert_exact(cuda_runner, variant, task, found[:: 1 + len(found) // 5])


@pytest.mark.gpu
@pytest.mark.parametrize("task", FLOATS, ids=str)
def test_floats_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    device = cuda_runner.device
    for variant in (ConvDirect(), ConvSimt(), ConvMma(), ConvWgmma()):
        if variant.supports(task, device) is not None:
            continue
        found = (
            forms(variant, task) if variant.name == "conv_wgmma" else variant.configs(task, device)
        )
        assert_stored(cuda_runner, variant, task, found[:3])


@pytest.mark.slow
def test_ends_in_uint8_take_no_more_than_in_int8() -> None:
    registers = []
    for dtype in (INT8, UINT8):
        task = requantized_conv((3, 64, 14, 14), (256, 64, 1, 1), out=dtype, residual=dtype)
        (cubin,) = compiled(ConvWgmma(), task, "sm_90a")
        assert cubin.spills == 0
        registers.append((cubin.registers, len(cubin.code)))
    signed, unsigned = registers
    assert unsigned[0] <= signed[0]
    assert unsigned[1] <= signed[1]
