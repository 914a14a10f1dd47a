"""Tensor-core convolution of images with few channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.build_target import reads_few_channels
from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.conv_stem import ConvStem, _patch
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.stem_tile import Patch, StemTile, packed_weights
from nrt.dtypes import BF16, FP16, FP32, INT8, UINT8
from nrt.ir.ops import Conv
from nrt.passes.image_layer import is_image_layer
from nrt.problem import Problem, TensorSpec
from nrt.trial import random_inputs, relative_error

from .harness import compiled
from .int8_cases import assert_exact, requantized_conv
from .kernel_emulator import KernelEmulator
from .plain_cases import NCHW, conv, refusal

LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}

PAD1, PAD3 = (1, 1, 1, 1), (3, 3, 3, 3)


def spaced(task: Problem, pixel: int, extra: int) -> Problem:
    """``task`` with an image of ``pixel`` elements a pixel, lines ``extra`` elements apart."""
    x = task.inputs[0]
    n, _, h, w = x.shape
    line = w * pixel + extra
    strides = (h * line, 1, line, pixel)
    return replace(task, inputs=(TensorSpec((n, *x.shape[1:]), x.dtype, strides), *task.inputs[1:]))


def planar(task: Problem) -> Problem:
    """``task`` with an image of one plane a channel."""
    x = task.inputs[0]
    return replace(task, inputs=(TensorSpec.dense(x.shape, x.dtype, NCHW), *task.inputs[1:]))


# One tile for each case of the emulator; every shape of a tile and every kind of filter occurs.
CASES = [
    (conv((1, 3, 13, 15), (8, 3, 3, 3), FP16, strides=(2, 2), pads=PAD1),
     StemTile(4, 16, 32, 1, 1, 4)),
    (conv((2, 3, 9, 37), (40, 3, 7, 7), FP16, strides=(2, 2), pads=PAD3, end="residual", pitch=48),
     StemTile(8, 16, 64, 4, 2, 2)),
    (conv((1, 3, 10, 18), (72, 3, 3, 3), BF16, pads=(1, 0, 2, 1), end="relu"),
     StemTile(8, 16, 64, 2, 1, 3)),
    (conv((1, 1, 7, 35), (10, 1, 5, 5), FP16, x_order=NCHW, y_order=NCHW),
     StemTile(8, 32, 32, 2, 1, 1)),
    (conv((1, 2, 9, 50), (12, 2, 3, 1), FP16, strides=(1, 3), out_dtype=FP32),
     StemTile(4, 16, 32, 1, 1, 4)),
    (conv((3, 4, 6, 11), (36, 4, 1, 3), FP16, strides=(2, 1), x_order=NCHW, end="relu"),
     StemTile(4, 32, 64, 2, 1, 3)),
    (conv((1, 3, 21, 30), (24, 3, 11, 11), FP16, strides=(4, 4), pads=(2, 2, 2, 2)),
     StemTile(8, 16, 32, 1, 1, 2)),
    (conv((1, 3, 18, 19), (33, 3, 3, 3), FP16, strides=(1, 1), x_order=NCHW, end="none"),
     StemTile(16, 16, 64, 4, 2, 1)),
    (spaced(conv((1, 3, 19, 10), (16, 3, 2, 4), FP16, strides=(3, 2), pads=(0, 1, 1, 2)), 5, 7),
     StemTile(16, 16, 32, 2, 1, 1)),
    (conv((4, 3, 9, 9), (32, 3, 3, 3), FP16, strides=(2, 2), end="relu"),
     StemTile(4, 16, 32, 1, 1, 4)),
    (conv((1, 3, 1, 1), (8, 3, 1, 1), FP16), StemTile(4, 16, 32, 1, 1, 4)),
    (conv((1, 3, 12, 18), (60, 3, 3, 3), FP16, strides=(1, 2), pads=PAD1),
     StemTile(8, 16, 64, 2, 2, 2)),
]  # fmt: skip
# The same for bytes, whose results are exact: element by element, as the strides or sizes want it.
BYTE_CASES = [
    (requantized_conv((1, 3, 13, 15), (8, 3, 3, 3), strides=(2, 2), pads=PAD1),
     StemTile(4, 16, 32, 1, 1, 4)),
    (requantized_conv((2, 3, 9, 37), (40, 3, 7, 7), strides=(2, 2), pads=PAD3, dtype=UINT8,
                      out=UINT8, residual=UINT8, leading=8),
     StemTile(8, 16, 64, 4, 2, 2)),
    (spaced(requantized_conv((1, 3, 10, 18), (72, 3, 3, 3), pads=(1, 0, 2, 1), out=FP16), 4, 5),
     StemTile(8, 16, 64, 2, 1, 3)),
    (planar(requantized_conv((1, 3, 7, 35), (10, 3, 5, 5), dtype=UINT8, out=INT8)),
     StemTile(8, 32, 32, 2, 1, 1)),
    (requantized_conv((1, 2, 9, 49), (33, 2, 3, 1), strides=(1, 3), out=FP32),
     StemTile(16, 16, 64, 4, 2, 1)),
    (requantized_conv((1, 1, 21, 31), (24, 1, 11, 11), strides=(4, 4), pads=(2, 2, 2, 2)),
     StemTile(8, 16, 32, 1, 1, 2)),
]  # fmt: skip
# And by fours of pixels: every number of channels of pixels and of planes, at any alignment.
WORD_CASES = [
    (requantized_conv((1, 3, 12, 15), (8, 3, 3, 3), strides=(2, 2), pads=PAD1),
     StemTile(4, 16, 32, 1, 1, 4)),
    (requantized_conv((2, 3, 10, 37), (40, 3, 7, 7), strides=(2, 2), pads=PAD3, dtype=UINT8,
                      out=UINT8),
     StemTile(8, 16, 64, 4, 2, 2)),
    (planar(requantized_conv((2, 3, 10, 18), (72, 3, 3, 3), pads=(1, 0, 2, 1), out=FP16)),
     StemTile(8, 16, 64, 2, 1, 3)),
    (planar(requantized_conv((1, 3, 12, 35), (10, 3, 5, 5), dtype=UINT8)),
     StemTile(8, 32, 32, 2, 1, 1)),
    (requantized_conv((1, 2, 9, 50), (33, 2, 3, 1), strides=(1, 3), out=FP32),
     StemTile(16, 16, 64, 4, 2, 1)),
    (planar(requantized_conv((2, 2, 9, 19), (33, 2, 3, 2), strides=(2, 1), pads=PAD1)),
     StemTile(4, 16, 32, 1, 1, 4)),
    (requantized_conv((3, 4, 6, 11), (36, 4, 1, 3), strides=(2, 1), dtype=UINT8),
     StemTile(4, 32, 64, 2, 1, 3)),
    (planar(requantized_conv((2, 4, 7, 13), (36, 4, 3, 3), pads=PAD1, dtype=UINT8)),
     StemTile(4, 16, 32, 1, 1, 4)),
    (requantized_conv((1, 1, 21, 32), (24, 1, 11, 11), strides=(4, 4), pads=(2, 2, 2, 2)),
     StemTile(8, 16, 32, 1, 1, 2)),
    (requantized_conv((4, 1, 11, 19), (12, 1, 3, 3), pads=PAD1), StemTile(8, 32, 32, 2, 1, 2)),
]  # fmt: skip
RESNET = conv((32, 3, 224, 224), (64, 3, 7, 7), FP16, strides=(2, 2), pads=PAD3, end="relu")
VGG = conv((32, 3, 224, 224), (64, 3, 3, 3), FP16, pads=PAD1, end="relu")
MOBILENET = conv((32, 3, 224, 224), (32, 3, 3, 3), FP16, strides=(2, 2), pads=PAD1, end="relu")
INCEPTION = conv((32, 3, 299, 299), (32, 3, 3, 3), FP16, strides=(2, 2), end="relu")
ALEXNET = conv((32, 3, 224, 224), (64, 3, 11, 11), FP16, strides=(4, 4), pads=(2, 2, 2, 2))
KNOWN = (RESNET, VGG, MOBILENET, INCEPTION, ALEXNET)

# With every tile; so large that every block of a GPU takes several turns.
LAYERS = [
    conv((9, 3, 224, 221), (64, 3, 7, 7), FP16, strides=(2, 2), pads=PAD3, end="relu"),
    conv((5, 3, 113, 150), (64, 3, 3, 3), BF16, pads=PAD1, end="residual"),
    conv((19, 3, 149, 299), (32, 3, 3, 3), FP16, strides=(2, 2), end="relu"),
]
BYTE_LAYERS = [
    requantized_conv((9, 3, 224, 221), (64, 3, 7, 7), strides=(2, 2), pads=PAD3, out=UINT8),
    planar(requantized_conv((5, 3, 113, 150), (64, 3, 3, 3), pads=PAD1, dtype=UINT8, out=UINT8)),
    requantized_conv((19, 3, 149, 299), (32, 3, 3, 3), strides=(2, 2), out=FP16),
]


def emulated(task: Problem, tile: StemTile, inputs: list[Any]) -> Any:
    """The output of the kernel run thread by thread on a GPU so small that blocks take turns."""
    device = replace(ARCHS["sm_80"], multiprocessors=1)
    assert refusal(ConvStem(), task, device) == ""
    emulator = KernelEmulator(device, seed=int(np.random.default_rng().integers(1 << 30)))
    return emulator.run(ConvStem(), task, tile, inputs)[0]


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_emulated(task: Problem, tile: StemTile) -> None:
    inputs = random_inputs(task, np.random.default_rng())
    (expected,) = task.op.reference(*(a.astype(np.float64) for a in inputs))
    assert relative_error(emulated(task, tile, inputs), expected) <= LIMIT[task.y.dtype.name]


@pytest.mark.parametrize(("task", "tile"), [*BYTE_CASES, *WORD_CASES], ids=str)
def test_bytes_emulated(task: Problem, tile: StemTile) -> None:
    assert _patch(task).words == ((task, tile) in WORD_CASES)
    device = replace(ARCHS["sm_80"], multiprocessors=1)
    assert refusal(ConvStem(), task, device) == ""
    assert_exact(KernelEmulator(device), ConvStem(), task, [tile])


@pytest.mark.parametrize("stride", [1, 2])
def test_infinity_stays_where_it_belongs(stride: int) -> None:
    """No output sees a pixel outside its window, not even times zero."""
    task = conv((1, 3, 6, 21), (8, 3, 3, 3), FP16, strides=(stride, stride))
    inputs = random_inputs(task, np.random.default_rng())
    inputs[0][0, 1, 2, 7] = np.inf
    with np.errstate(invalid="ignore"):
        out = emulated(task, StemTile(4, 16, 32, 1, 1, 4), inputs)
        (expected,) = task.op.reference(*(a.astype(np.float64) for a in inputs))
    assert np.array_equal(np.isfinite(out), np.isfinite(expected))
    assert 0 < np.isfinite(out).mean() < 1


def assert_right(runner: Any, task: Problem, tiles: Sequence[StemTile]) -> None:
    """Each of ``tiles`` gives the float64 reference's result on fresh data."""
    inputs = random_inputs(task, np.random.default_rng())
    (expected,) = task.op.reference(*(a.astype(np.float64) for a in inputs))
    for tile in tiles:
        (out,) = runner.run(ConvStem(), task, tile, inputs)
        error = relative_error(out, expected)
        assert error <= LIMIT[task.y.dtype.name], f"{tile} on {task}: {error:.2e}"


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_right_on_gpu(task: Problem, tile: StemTile, cuda_runner: Any) -> None:
    assert_right(cuda_runner, task, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize("task", LAYERS, ids=str)
def test_every_tile_is_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, task, ConvStem().configs(task, cuda_runner.device))


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "tile"), [*BYTE_CASES, *WORD_CASES], ids=str)
def test_bytes_exact_on_gpu(task: Problem, tile: StemTile, cuda_runner: Any) -> None:
    assert_exact(cuda_runner, ConvStem(), task, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize("task", BYTE_LAYERS, ids=str)
def test_every_tile_of_bytes_is_exact_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_exact(cuda_runner, ConvStem(), task, ConvStem().configs(task, cuda_runner.device))


@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90a"])
def test_compiles_without_spills(arch: str) -> None:
    for task in (CASES[0][0], CASES[3][0], BYTE_CASES[1][0], WORD_CASES[2][0]):
        assert all(c.spills == 0 for c in compiled(ConvStem(), task, arch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "task"),
    [("sm_80", RESNET), ("sm_90a", LAYERS[2]), ("sm_80", BYTE_LAYERS[0])],
    ids=str,
)
def test_tiles_compile_without_spills(arch: str, task: Problem, rng: np.random.Generator) -> None:
    variant = ConvStem()
    for tile in some(variant.configs(task, ARCHS[arch]), 1, rng):
        assert all(c.spills == 0 for c in compiled(variant, task, arch, tile)), tile


def test_tiles_are_consistent() -> None:
    device = ARCHS["sm_90a"]
    for task in KNOWN:
        assert ConvStem().configs(task, device)
        for tile in ConvStem._tiles(task, device):
            assert tile.th % tile.mi == tile.tw % 16 == tile.bn % (32 * tile.wn) == 0
            assert tile.threads * tile.per_sm <= 512


def test_packed_weights_lie_as_the_instruction_takes_them() -> None:
    patch = Patch(3, 3, 3, 2, 2, False)
    weights = np.arange(40 * 27, dtype=np.float64).reshape(40, 3, 3, 3) + 1
    packed = packed_weights(weights, patch, 64).reshape(1, 3, 4, 8, 4, 2, 2, 2)
    # Lane g = 5, t = 1 of n8 tile 2, second piece of the second step: row 1, halves 10 and 11,
    # of which the row has 9; first piece of it: row 1, halves 2 and 3.
    channel = 5 // 2 * 8 + 2 * 2 + 1
    row = weights[channel].transpose(1, 2, 0)[1].ravel()
    assert packed[0, 1, 1, 5, 1, 0, 0].tolist() == row[2:4].tolist()
    assert packed[0, 1, 1, 5, 0, 0, 1].tolist() == [row[8], 0]
    assert packed[0, 1, 1, 5, 1, 0, 1].tolist() == [0, 0]
    # Channels from 40 on do not exist.
    assert not packed[0, :, 2:, 2:].any()
    assert packed[0, 0, 2, :2].any()


def test_packed_bytes_lie_as_the_instruction_takes_them() -> None:
    patch = Patch(3, 3, 3, 1, 1, False, 1)
    weights = np.arange(32 * 27).reshape(32, 3, 3, 3) % 127 + 1
    # A pixel has a fourth byte of nothing, a row of three pixels is 12 of a piece's 16.
    assert (patch.cell, patch.pieces, patch.steps) == (4, 1, 2)
    packed = packed_weights(weights, patch, 32).reshape(1, 2, 2, 8, 4, 2, 2, 4)
    channel = 5 // 2 * 8 + 2 * 2 + 1
    row = weights[channel].transpose(1, 2, 0)[1]
    # Lane g = 5, t = 1 of n8 tile 2, second piece of the first step: row 1, its second pixel.
    assert packed[0, 0, 1, 5, 1, 0, 1].tolist() == [*row[1], 0]
    assert packed[0, 0, 1, 5, 3, 0, 1].tolist() == [0] * 4
    # The second piece of the last step is no row of the filter.
    assert not packed[0, 1, :, :, :, :, 1].any()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_estimate_is_below_that_of_the_ordinary_cores(arch: str) -> None:
    device = ARCHS[arch]
    for task in KNOWN:
        own = min(ConvStem().estimate(task, c, device) for c in ConvStem().configs(task, device))
        other = min(ConvSimt().estimate(task, c, device) for c in ConvSimt().configs(task, device))
        assert task.nbytes / device.bandwidth < own < other, task


@pytest.mark.parametrize(
    "task",
    [
        requantized_conv((1, 4, 30, 30), (8, 4, 11, 11), strides=(4, 4), dtype=UINT8),
        planar(requantized_conv((1, 1, 30, 30), (8, 1, 11, 1), strides=(1, 4))),
        requantized_conv((1, 3, 30, 30), (300, 3, 3, 3)),
    ],
    ids=str,
)
def test_takes_what_passes_leave_to_it(task: Problem) -> None:
    """An image that the passes do not fill up with channels of zeros has a kernel."""
    assert isinstance(task.op, Conv)
    assert is_image_layer(task.op, task.inputs[1].shape)
    for arch in ARCHS:
        device = ARCHS[arch]
        assert (refusal(ConvStem(), task, device) == "") == reads_few_channels(device)


def test_refusals() -> None:
    variant = ConvStem()
    x, w = (1, 3, 9, 9), (8, 3, 3, 3)
    assert refusal(variant, conv(x, w, FP16), ARCHS["sm_75"]) == (
        "sm_75 has no m16n8k16, expected sm_80 or later"
    )
    assert refusal(variant, conv(x, w)) == (
        "operands are fp32, expected fp16 or bf16 or int8 or uint8"
    )
    assert refusal(variant, conv((1, 5, 9, 9), (8, 5, 3, 3), FP16)) == (
        "the input has 5 channels, expected 4 at most"
    )
    assert refusal(variant, conv(x, w, FP16, dilations=(2, 1))) == (
        "groups=1, dilations=(2, 1): expected 1 and (1, 1)"
    )
    grouped = conv((1, 4, 9, 9), (8, 2, 3, 3), FP16, groups=2)
    assert refusal(variant, grouped) == "groups=2, dilations=(1, 1): expected 1 and (1, 1)"
    assert refusal(variant, conv((1, 3, 20, 9), (8, 3, 12, 3), FP16)) == (
        "filter (12, 3) at strides (1, 1), expected at most 11 and 4"
    )
    assert refusal(variant, conv(x, w, FP16, strides=(1, 5))) == (
        "filter (3, 3) at strides (1, 5), expected at most 11 and 4"
    )
    assert refusal(variant, conv(x, w, FP16, constant=False)).startswith("weights are computed")
    tiny = replace(ARCHS["sm_80"], shared_per_block=4096)
    assert refusal(variant, conv(x, w, FP16), tiny) == (
        "no tile's weights and patch fit sm_80's shared memory"
    )
