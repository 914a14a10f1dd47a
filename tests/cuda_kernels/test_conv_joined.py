"""Convolutions whose pixels are joined to rows of 16 bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.conv_common import ConvShape
from nrt.cuda_kernels.conv_joined import ConvJoined, joined, joined_constant
from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import ARCHS
from nrt.dtypes import BF16, FP16, INT8, UINT8
from nrt.problem import Problem, Refusal
from nrt.trial import random_inputs

from .harness import assert_right, compiled
from .int8_cases import assert_exact, exact_inputs, requantized_conv
from .plain_cases import NCHW, conv, refusal
from .test_wgmma import LIMIT, forms

HOPPER = ARCHS["sm_90a"]

BYTES_TASKS = [
    requantized_conv((3, 24, 14, 13), (144, 24, 1, 1), dtype=INT8, out=UINT8),
    requantized_conv((2, 24, 5, 7), (40, 24, 1, 1), residual=INT8),
    requantized_conv((1, 40, 9, 4), (16, 40, 1, 1), dtype=UINT8, out=FP16),
    requantized_conv((4, 12, 7, 5), (20, 12, 1, 1), dtype=UINT8, out=UINT8, residual=UINT8),
    requantized_conv((6, 72, 56, 56), (24, 72, 1, 1)),
]
FLOAT_TASKS = [
    conv((2, 12, 9, 8), (36, 12, 1, 1), FP16, end="relu"),
    conv((3, 4, 9, 12), (24, 4, 1, 1), FP16, end="residual"),
    conv((2, 20, 7, 6), (33, 20, 1, 1), BF16, end="bias"),
    conv((1, 12, 6, 6), (8, 12, 1, 1), FP16, end="none"),
]


@pytest.mark.parametrize("task", [*BYTES_TASKS[:4], *FLOAT_TASKS], ids=str)
def test_the_joined_problem_has_the_same_result(task: Problem) -> None:
    whole = joined(task)
    assert isinstance(whole, Problem)
    rng = np.random.default_rng()
    inputs = exact_inputs(task, rng) if task in BYTES_TASKS else random_inputs(task, rng)
    inputs = [a.astype(np.float64) if a.dtype.kind not in "iu" else a for a in inputs]
    (expected,) = task.op.reference(*inputs)
    pixels = whole.inputs[0].shape[1] // task.inputs[0].shape[1]
    arrays = []
    for slot, (array, spec) in enumerate(zip(inputs, whole.inputs, strict=True)):
        if task.constants[slot]:
            arrays.append(joined_constant(array, slot, pixels))
        else:
            # The same memory, channels last, seen with fewer pixels.
            rows = array.transpose(0, 2, 3, 1).reshape(1, 1, spec.shape[3], spec.shape[1])
            arrays.append(rows.transpose(0, 3, 1, 2))
        assert arrays[-1].shape == spec.shape
    (found,) = whole.op.reference(*arrays)
    n, k, h, w = task.y.shape
    found = found.transpose(0, 2, 3, 1).reshape(n, h, w, k).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_pixels_fill_sixteen_bytes() -> None:
    for task, pixels in zip((*BYTES_TASKS, *FLOAT_TASKS), (2, 2, 2, 4, 2, 2, 2, 2, 2), strict=True):
        whole = joined(task)
        assert isinstance(whole, Problem)
        assert ConvShape.of(whole).m * pixels == ConvShape.of(task).m
        assert refusal(ConvWgmma(), task, HOPPER) != ""
        assert refusal(ConvJoined(), task, HOPPER) == ""
        # As much memory, the same last byte.
        assert whole.y.nbytes == task.y.nbytes


def test_compiles_without_spills() -> None:
    for cubin in compiled(ConvJoined(), BYTES_TASKS[0], "sm_90a"):
        assert cubin.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", BYTES_TASKS, ids=str)
def test_exact_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    found = forms(ConvJoined(), task)
    assert_exact(cuda_runner, ConvJoined(), task, found[:: 1 + len(found) // 5])


@pytest.mark.gpu
@pytest.mark.parametrize("task", FLOAT_TASKS, ids=str)
def test_right_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    found = forms(ConvJoined(), task)
    assert_right(cuda_runner, ConvJoined(), task, LIMIT, found[:: 1 + len(found) // 5])


def test_refusals() -> None:
    def why(task: Problem) -> str:
        return refusal(ConvJoined(), task, HOPPER)

    assert refusal(ConvJoined(), BYTES_TASKS[0], ARCHS["sm_80"]).startswith("sm_80")
    plain = "it is no plain product of pixels and weights"
    assert why(requantized_conv((1, 24, 6, 6), (8, 24, 3, 3))) == plain
    assert why(requantized_conv((1, 24, 6, 6), (8, 24, 1, 1), strides=(2, 2))) == plain
    assert why(requantized_conv((1, 48, 6, 6), (8, 24, 1, 1), groups=2)) == plain
    assert why(requantized_conv((1, 32, 6, 6), (8, 32, 1, 1))) == (
        "pixels of 32 int8: it takes 1 to fill 16 bytes"
    )
    assert why(conv((1, 3, 6, 6), (8, 3, 1, 1), FP16)) == (
        "pixels of 3 fp16: it takes 8 to fill 16 bytes"
    )
    assert why(requantized_conv((1, 24, 3, 3), (8, 24, 1, 1))) == "9 pixels are no multiple of 2"
    wider = "the image or the result is a piece of a wider one, or not channels last"
    assert why(requantized_conv((1, 24, 6, 6), (8, 24, 1, 1), leading=8)) == wider
    assert why(conv((1, 12, 6, 6), (8, 12, 1, 1), FP16, x_order=NCHW)) == wider
    wide = requantized_conv((1, 24, 6, 6), (8, 24, 1, 1), residual=INT8, beside=8)
    assert why(wide).startswith("operand 4 of the epilogue is no vector of constants: ")
    variable = replace(BYTES_TASKS[0], constants=(False, True, False, True))
    assert why(variable).startswith("operand 2 of the epilogue is no vector of constants: ")
    moving = replace(BYTES_TASKS[0], constants=(False, False, True, True))
    assert why(moving) == "weights are computed at run time, expected a constant to pack"
    assert isinstance(joined(wide), Refusal)
