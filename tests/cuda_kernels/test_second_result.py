"""Products whose epilogue has two results: every kernel that takes them, and who does not."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.registry import VARIANTS, variants_for
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, FP64, INT8, UINT8, DType
from nrt.ir.ops import Conv, ConvTranspose, MatMul
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec

from . import plain_cases
from .harness import assert_right, compiled
from .kernel_emulator import KernelEmulator
from .plain_cases import NCHW, NHWC, assert_emulated, conv, matmul, refusal

LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-12}
"""Operands are fp16, bf16 or tf32; bytes are exact."""


def doubled(task: Problem, dtype: DType | None = None, wide: int = 0) -> Problem:
    """``task``, which ends in a ReLU, with what the ReLU reads as its first result.

    Args:
        task: the problem.
        dtype: of the second result; that of the first by default.
        wide: more channels that the second result's buffer has.
    """
    op: Any = task.op
    own: Program = op.epilogue
    end = len(own.inputs) + len(own.instrs) - 1
    program = Program(own.inputs, own.instrs, (own.instrs[-1].args[0], end))
    y = task.y
    kind = dtype or y.dtype
    strides = y.strides
    if wide:
        inner = [s for s in strides if s > 1]
        pitch = min(inner) if inner else 1
        strides = tuple(s // pitch * (pitch + wide) if s > 1 else s for s in strides)
    second = TensorSpec(y.shape, kind, strides)
    op = replace(op, epilogue=program, second_dtype=kind)
    return Problem(op, task.inputs, (y, second), task.constants)


def requantized(task: Problem, second: DType, first: DType | None = None) -> Problem:
    """A problem of bytes with ``y = acc * 2^-7 + bias`` and ``y * -0.5 + 3``, exact in float32."""
    b = Builder("fi")
    y = b("add", b("mul", 0, b.const(2.0**-7)), b("to_f", 1))
    program = b.build(y, b("add", b("mul", y, b.const(-0.5)), b.const(3.0)))
    op: Any = task.op
    kind = first or INT8
    op = replace(op, epilogue=program, out_dtype=kind, second_dtype=second)
    outputs = tuple(TensorSpec(task.y.shape, d, task.y.strides) for d in (kind, second))
    bias = replace(task.inputs[2], dtype=INT8)
    return Problem(op, (*task.inputs[:2], bias), outputs, task.constants)


def other_order(task: Problem) -> Problem:
    """The second result in the other order of dimensions: found element by element."""
    y, z = task.outputs
    order = NCHW if y.strides == TensorSpec.dense(y.shape, y.dtype, NHWC).strides else NHWC
    return replace(task, outputs=(y, TensorSpec.dense(z.shape, z.dtype, order)))


def half_conv(*sizes: int, end: str = "residual", dtype: DType = FP16, **options: Any) -> Problem:
    """n, c, h, w, k, r, s."""
    n, c, h, w, k, r, s = sizes
    if dtype in BYTES:
        options = {"out_dtype": FP32} | options
    return conv((n, c, h, w), (k, c // options.get("groups", 1), r, s), dtype, end=end, **options)


PADDED = {"pads": (1, 1, 1, 1)}
SMALL = [
    doubled(half_conv(2, 3, 5, 4, 6, 3, 2, dtype=FP32, **PADDED)),
    other_order(doubled(half_conv(1, 8, 5, 4, 12, 1, 1, dtype=FP32, end="relu"))),
    doubled(half_conv(2, 16, 5, 7, 24, 3, 3, **PADDED), wide=8),
    doubled(half_conv(1, 24, 6, 5, 40, 1, 1), BF16),
    doubled(half_conv(1, 16, 5, 6, 16, 3, 3, dtype=BF16), FP32, wide=3),
    doubled(half_conv(1, 3, 9, 11, 16, 3, 3, strides=(2, 2), end="relu", **PADDED)),
    doubled(half_conv(1, 16, 7, 6, 16, 3, 3, groups=16, end="relu", **PADDED), wide=16),
    doubled(half_conv(1, 16, 5, 5, 16, 3, 3, groups=2, **PADDED)),
    requantized(half_conv(1, 16, 5, 6, 24, 3, 3, dtype=INT8, end="relu"), FP16),
    requantized(half_conv(1, 32, 4, 6, 32, 1, 1, dtype=UINT8, end="relu"), UINT8),
    requantized(half_conv(1, 16, 7, 6, 16, 3, 3, dtype=INT8, groups=16, end="relu"), INT8),
    requantized(half_conv(1, 3, 9, 9, 16, 3, 3, dtype=INT8, end="relu", **PADDED), INT8),
    doubled(conv((1, 4, 3, 4), (4, 6, 2, 3), kind=ConvTranspose, end="residual", strides=(2, 1))),
    doubled(conv((1, 8, 4, 4), (8, 8, 2, 2), FP16, kind=ConvTranspose, end="relu"), wide=8),
    doubled(matmul((9, 20), (20, 12), extras=[(12,), (9, 12)], constant=True)),
    doubled(matmul((2, 5, 16), (2, 16, 24), FP16, extras=[(24,), (2, 5, 24)])),
    doubled(matmul((33, 32), (32, 40), FP16, extras=[(40,)], constant=True), BF16),
    doubled(matmul((3, 64), (64, 40), FP16, extras=[(40,), (3, 40)], constant=True), wide=8),
    doubled(matmul((7,), (7, 9), FP64, extras=[(9,)], constant=True)),
    requantized(
        matmul((18, 32), (32, 40), INT8, extras=[(40,)], constant=True, out_dtype=FP32), FP32
    ),
]
"""Small enough to emulate; sizes that no tile divides."""
LARGE = [
    doubled(half_conv(3, 64, 14, 13, 256, 1, 1)),
    doubled(half_conv(3, 64, 14, 13, 256, 1, 1), wide=64),
    doubled(half_conv(6, 64, 56, 56, 256, 1, 1), BF16),
    doubled(half_conv(2, 72, 13, 11, 200, 3, 3, end="relu", **PADDED)),
    doubled(half_conv(2, 64, 12, 10, 136, 3, 3), FP32),
    doubled(half_conv(1, 2048, 3, 3, 64, 1, 1)),
    doubled(half_conv(2, 40, 17, 9, 72, 3, 3, dtype=FP32, tf32=True)),
    requantized(half_conv(3, 64, 14, 13, 256, 1, 1, dtype=INT8, end="relu"), UINT8),
    requantized(half_conv(2, 80, 15, 11, 96, 3, 3, dtype=INT8, end="relu"), FP16),
    requantized(half_conv(2, 64, 15, 11, 96, 3, 3, dtype=UINT8, end="relu"), UINT8, FP16),
    requantized(half_conv(2, 24, 16, 11, 144, 1, 1, dtype=INT8, end="relu"), INT8),
    doubled(matmul((300, 1000), (1000, 208), FP16, extras=[(208,), (300, 208)], constant=True)),
    doubled(matmul((77, 272), (272, 80), BF16, extras=[(80,)], constant=True), FP16),
    requantized(
        matmul((300, 1040), (1040, 208), INT8, extras=[(208,)], constant=True, out_dtype=FP32), INT8
    ),
]
PRODUCTS = [v for v in VARIANTS if {Conv, ConvTranspose, MatMul} & set(v.ops)]


def solvers(task: Problem, arch: str) -> list[Variant]:
    return [v for v, reason in variants_for(task, ARCHS[arch]) if reason is None]


def test_every_kernel_of_products_has_a_case() -> None:
    """On one architecture or another; those of Hopper have the large ones alone."""
    found = {
        v.name
        for task in (*SMALL, *LARGE)
        for arch in ("sm_75", "sm_80", "sm_90a")
        for v in solvers(task, arch)
    }
    assert {v.name for v in PRODUCTS} <= found


@pytest.mark.some(8)
@pytest.mark.parametrize("task", SMALL, ids=str)
def test_emulated(task: Problem) -> None:
    for variant in solvers(task, "sm_80"):
        config = secrets.choice(variant.configs(task, ARCHS["sm_80"])[:6])
        assert_emulated(variant, task, LIMIT, config)


def test_emulator_sees_a_second_result_that_is_not_written() -> None:
    """The test of these tests: without its store the second result stays as it was."""
    task = SMALL[0]
    (variant, *_) = solvers(task, "sm_80")
    once = replace(task, outputs=task.outputs[:1], op=_first_only(task.op))
    config = variant.configs(task, ARCHS["sm_80"])[0]

    class Forgets(KernelEmulator):
        def run(self, v: Variant, p: Problem, c: Any, inputs: Any) -> Any:
            (first,) = super().run(v, once, c, inputs)
            return [first, first]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_cases, "KernelEmulator", Forgets)
        with pytest.raises(AssertionError):
            assert_emulated(variant, task, LIMIT, config)


def _first_only(op: Any) -> Any:
    program = Program(op.epilogue.inputs, op.epilogue.instrs, op.epilogue.outputs[:1])
    return replace(op, epilogue=program.simplified(), second_dtype=None)


@pytest.mark.some(4)
@pytest.mark.parametrize("task", [*SMALL, *LARGE], ids=str)
def test_compiles(task: Problem) -> None:
    for arch in ("sm_75", "sm_80", "sm_90a"):
        for variant in solvers(task, arch):
            cubins = compiled(variant, task, arch)
            assert all(c.spills == 0 for c in cubins), (variant.name, arch)


@pytest.mark.slow
@pytest.mark.parametrize("task", [LARGE[0], LARGE[2], LARGE[7]], ids=str)
def test_boxes_of_two_results_do_not_spill(task: Problem) -> None:
    """The words of a second result wait in registers, which the widest tiles have least of."""
    device = ARCHS["sm_90a"]
    variant = next(v for v in solvers(task, "sm_90a") if v.name == "conv_wgmma")
    configs = [c for c in variant.configs(task, device) if c.split == 1]
    widest = max(configs, key=lambda c: (c.bn, c.consumers))
    for config in {widest, secrets.choice(configs)}:
        for cubin in compiled(variant, task, "sm_90a", config):
            assert cubin.spills == 0, config


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*SMALL, *LARGE], ids=str)
def test_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    """The fastest configuration of each kernel, by estimate, and another one."""
    for variant, reason in variants_for(task, cuda_runner.device):
        if reason is None:
            first, *others = variant.configs(task, cuda_runner.device)
            rest = [secrets.choice(others)] if others else []
            assert_right(cuda_runner, variant, task, LIMIT, [first, *rest])


def test_a_second_result_takes_one_of_six_places() -> None:
    b = Builder("fffffff")
    total = 0
    for register in range(1, 7):
        total = b("add", total, register)
    many = Program(b.inputs, tuple(b.instrs), (total, 0))
    task = doubled(half_conv(1, 16, 5, 5, 16, 1, 1, end="relu"))
    vector = task.inputs[2]
    op: Any = task.op
    full = Problem(
        replace(op, epilogue=many),
        (*task.inputs[:2], *[vector] * 6),
        task.outputs,
        (False, *(True,) * 7),
    )
    wanted = "the epilogue reads 6 operands and there is a second result, kernels have 6"
    for variant, reason in variants_for(full, ARCHS["sm_90a"]):
        assert reason is not None, variant.name
    assert refusal(PRODUCTS[0], full, ARCHS["sm_90a"]) == wanted


def test_a_joined_convolution_joins_both_results() -> None:
    task = LARGE[10]
    assert "conv_joined" in [v.name for v in solvers(task, "sm_90a")]
    y, z = task.outputs
    apart = replace(
        task, outputs=(y, TensorSpec(z.shape, z.dtype, tuple(2 * s for s in z.strides)))
    )
    assert "conv_joined" not in [v.name for v in solvers(apart, "sm_90a")]


def test_fp8_is_a_second_result() -> None:
    task = requantized(
        half_conv(2, 48, 17, 9, 72, 3, 3, dtype=FP8E4M3, end="relu", out_dtype=FP8E4M3),
        FP8E4M3,
        FP8E4M3,
    )
    (variant,) = (v for v in solvers(task, "sm_90a") if v.name == "conv_wgmma")
    assert all(c.spills == 0 for c in compiled(variant, task, "sm_90a"))
