"""Tiled convolution on the ordinary cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.simt_tile import TILES, Tile
from nrt.dtypes import BF16, FP16, FP64
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import NCHW, assert_emulated, conv, refusal

LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}

SMALL = Tile(32, 32, 16, 4, 4)
CASES = [
    (conv((1, 8, 5, 6), (12, 8, 3, 3), pads=(1, 1, 1, 1), end="residual"), SMALL),
    (conv((2, 3, 7, 6), (9, 3, 3, 3), pads=(1, 0, 0, 2), strides=(2, 1), dilations=(1, 2)),
     Tile(32, 64, 16, 4, 4)),
    (conv((1, 16, 6, 6), (24, 8, 3, 3), groups=2, pads=(1, 1, 1, 1), x_order=NCHW, y_order=NCHW),
     SMALL.with_splits(2)),
    (conv((1, 12, 5, 6), (70, 12, 3, 3), FP16, pads=(1, 1, 1, 1), pitch=80),
     Tile(64, 64, 8, 8, 8, 3)),
    (conv((1, 4, 12, 12), (20, 4, 2, 2), end="none"), Tile(128, 64, 8, 8, 8)),
    (conv((1, 20, 3, 3), (130, 20, 1, 1), end="relu"), Tile(64, 128, 8, 8, 8, 2)),
    (conv((3, 36, 7, 7), (140, 36, 1, 1), BF16), Tile(128, 128, 8, 8, 8)),
    (conv((1, 4, 3, 3), (4, 4, 1, 1)), Tile(64, 64, 16, 4, 4, 8)),
]  # fmt: skip
PROBLEMS = [
    *(task for task, _ in CASES),
    conv((2, 64, 14, 14), (72, 64, 3, 3), pads=(1, 1, 1, 1), end="residual"),
    conv((1, 256, 7, 7), (128, 256, 3, 3), pads=(1, 1, 1, 1)),
    conv((2, 3, 37, 41), (64, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3), x_order=NCHW),
]


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_emulated(task: Problem, tile: Tile) -> None:
    assert_emulated(ConvSimt(), task, LIMIT, tile)


@pytest.mark.some(1)
@pytest.mark.parametrize("tile", [TILES[0], TILES[4]._replace(splits=2)], ids=str)
def test_compiles_without_spills(tile: Tile) -> None:
    assert all(c.spills == 0 for c in compiled(ConvSimt(), CASES[0][0], "sm_80", tile))


@pytest.mark.slow
def test_compiles_elsewhere(rng: np.random.Generator) -> None:
    first, second = some(TILES, 2, rng)
    assert all(c.spills == 0 for c in compiled(ConvSimt(), CASES[0][0], "sm_75", first))
    assert all(c.spills == 0 for c in compiled(ConvSimt(), PROBLEMS[-1], ELSEWHERE, second))


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, ConvSimt(), task, LIMIT)


def test_tiles_are_consistent() -> None:
    for tile in TILES:
        assert tile.threads % 32 == 0
        assert tile.units_a * tile.threads * 4 == tile.bm * tile.bk
        assert tile.units_b * tile.threads * 4 == tile.bn * tile.bk
        assert tile.bn // tile.tn % 8 == 0
        assert tile.bm // tile.tm % 4 == 0


def test_configs_split_small_problems_only() -> None:
    device = ARCHS["sm_90a"]
    small = conv((1, 512, 7, 7), (512, 512, 3, 3), pads=(1, 1, 1, 1))
    large = conv((32, 64, 56, 56), (64, 64, 3, 3), pads=(1, 1, 1, 1))
    assert ConvSimt().configs(small, device)[0].splits > 1
    assert {t.splits for t in ConvSimt().configs(large, device)} == {1}


def test_refusals() -> None:
    variant = ConvSimt()
    x = (1, 8, 5, 5)
    assert refusal(variant, conv(x, (4, 8, 3, 3), constant=False)).startswith(
        "weights are computed"
    )
    assert refusal(variant, conv(x, (8, 1, 3, 3), groups=8)) == (
        "groups have 1 output channels, expected 4 or more"
    )
    assert "operands are fp64" in refusal(variant, conv(x, (4, 8, 3, 3), FP64))
    many = conv((1, 4096, 1, 1), (4 * 4096, 1, 1, 1), groups=4096)
    assert refusal(variant, many) == "4096 groups do not fit the launch grid"
