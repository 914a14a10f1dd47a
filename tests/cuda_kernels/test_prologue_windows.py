"""Prologues of convolutions with a filter, whose windows lie side by side most of all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels import wgmma_prologue
from nrt.cuda_kernels.conv_direct import ConvDirect
from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.mma_kernel import Tile
from nrt.cuda_kernels.mma_tile import SYNCHRONOUS
from nrt.cuda_kernels.prologue import FragmentPrologue, conv_prologue
from nrt.cuda_kernels.simt_tile import Tile as SimtTile
from nrt.cuda_kernels.wgmma_layout import HopperTile
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.pointwise import Program
from nrt.problem import Problem

from .harness import assert_right, compiled
from .plain_cases import assert_emulated
from .test_mma import synchronous
from .test_prologue import GATE, LIMIT, LOG, NORM, RESIDUAL, SMALL, conv
from .test_wgmma import forms


def window(
    shape: tuple[int, int, int, int], k: int, prologue: Program = NORM, dtype: DType = FP16,
    size: tuple[int, int] = (2, 2), **more: Any,
) -> Problem:  # fmt: skip
    """A convolution whose windows of ``size`` lie side by side."""
    return conv(shape, k, prologue, dtype, filter_size=size, strides=size, **more)


WINDOWS = [
    # Blocks of 64 channels meet two filter positions, or nothing but zeros in the end.
    window((1, 40, 6, 5), 24),
    window((2, 128, 4, 7), 40, epilogue=RESIDUAL, front=24),
    window((1, 64, 6, 4), 16, GATE, BF16, size=(3, 2)),
    conv((1, 8, 5, 5), 16, LOG, filter_size=(2, 3)),
]
TRANSITIONS = [
    window((n, c, size, size), c // 2, epilogue=None)
    for c, size in ((256, 56), (512, 28), (1024, 14))
    for n in (1, 3)
]
"""DenseNet-121's convolutions before an average pooling, in one with it."""

EMULATED: list[tuple[Any, Problem, Any]] = [
    (ConvSimt(), window((1, 20, 5, 7), 24, LOG, FP32), SimtTile(32, 32, 16, 4, 4)),
    (ConvSimt(), window((1, 24, 7, 4), 24, size=(2, 1)), SimtTile(32, 32, 16, 4, 4, 3)),
    (ConvMma(), WINDOWS[0], SMALL),
    (ConvMma(), WINDOWS[1], SMALL._replace(split=2)),
    (ConvMma(), WINDOWS[2], Tile(32, 32, 32, 2, 1, 4, 4)),
    (ConvMma(), WINDOWS[3], SMALL),
    (ConvDirect(), WINDOWS[3], ()),
    (synchronous(ConvMma), WINDOWS[0], SYNCHRONOUS[-1]),
    (synchronous(ConvMma), WINDOWS[1], SYNCHRONOUS[-1]),
]


@pytest.mark.parametrize(("variant", "task", "config"), EMULATED, ids=str)
def test_emulated(variant: Any, task: Problem, config: Any) -> None:
    assert_emulated(variant, task, LIMIT, config)


def test_tables_of_a_filter() -> None:
    """Once where blocks are whole positions; else for all of them, and padding behind the last."""
    for (c, taps), bk, wanted in [
        ((128, 4), 64, [*range(128)]),
        ((40, 4), 64, [*range(40)] * 4 + [0] * 32),
        ((8, 6), 64, [*range(8)] * 6 + [0] * 16),
    ]:
        task = conv((1, c, 6, 6), 16, filter_size=(2, taps // 2))
        numbers = np.arange(c, dtype=np.float32).reshape(c, 1, 1)
        tile = SMALL._replace(bk=bk)
        assert ConvMma().pack(task, tile, 2, numbers).tolist() == wanted
        own = [*range(c)] + [0] * (-c % 64)
        assert ConvWgmma().pack(task, HopperTile(1, 64, 3, 1), 2, numbers).tolist() == own


@pytest.mark.parametrize(("first", "count", "blocks_c"), [(0, 8, 2), (3, 5, 4), (7, 6, 3)])
def test_hopper_numbers_start_again_with_each_filter_position(
    first: int, count: int, blocks_c: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the loop without copies and products: where it takes its numbers from."""
    taken: list[int] = []

    def take(s: Any, at: Any, pitch: Any) -> None:
        taken.append(int(at))

    def nothing(*args: Any) -> None:
        pass

    arrays = SimpleNamespace(array=lambda size, kind: None)
    own = FragmentPrologue(take, nothing, 8, 2)
    hopper = SimpleNamespace(
        wgmma_registers=lambda dtype, bn: nothing, mbarrier_wait=nothing, mbarrier_arrive_if=nothing
    )
    following = lambda slot, parity: (slot, parity)  # noqa: E731
    for name, value in {
        "cuda": SimpleNamespace(local=arrays, jit=lambda **options: lambda function: function),
        "fragment_prologue": lambda *args: own,
        "fragments": lambda *args: nothing,
        "ptx_hopper": hopper,
        "next_slot": lambda stages: following,
    }.items():
        monkeypatch.setattr(wgmma_prologue, name, value)
    tile = HopperTile(1, 64, 3, 1)
    prologue = conv_prologue(WINDOWS[0])
    assert prologue is not None
    loop = wgmma_prologue.prologue_products(tile, FP16, prologue, 16384, 8192, taps=True)
    block, origin = 64 * 4, 1000
    start = origin + first % blocks_c * block
    loop(None, 0, 0, 0, 0, 1, start, origin, blocks_c * block, 0, 0, count)
    # Four steps of 16 channels a block.
    blocks = [(first + kb) % blocks_c for kb in range(count)]
    assert taken == [origin + b * block + step * 64 for b in blocks for step in range(4)]


@pytest.mark.slow
def test_hopper_tiles_compile_without_spills(rng: np.random.Generator) -> None:
    task, variant = window((32, 256, 56, 56), 512), ConvWgmma()
    shapes = {(c.consumers, c.bn, c.per_sm): c for c in variant.configs(task, ARCHS["sm_90a"])}
    for config in some(shapes.values(), 2, rng):
        for cubin in compiled(variant, task, "sm_90a", config):
            assert cubin.spills == 0, config


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "arch"), [(ConvMma(), "sm_80"), (ConvWgmma(), "sm_90a")])
def test_transitions_compile_without_spills(
    variant: Any, arch: str, rng: np.random.Generator
) -> None:
    (task,) = some(TRANSITIONS[1::2], 1, rng)
    best = {c.split == 1: c for c in reversed(variant.configs(task, ARCHS[arch]))}
    for config in best.values():
        for cubin in compiled(variant, task, arch, config):
            assert cubin.spills == 0, config


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*TRANSITIONS, *WINDOWS], ids=str)
def test_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    device = cuda_runner.device
    assert_right(cuda_runner, ConvDirect(), task, LIMIT)
    assert_right(cuda_runner, ConvSimt(), task, LIMIT, ConvSimt().configs(task, device)[:2])
    tiles = ConvMma().configs(task, device)
    best = {tile.split > 1: tile for tile in reversed(tiles)}
    assert_right(cuda_runner, ConvMma(), task, LIMIT, list(best.values()))


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*TRANSITIONS, *WINDOWS], ids=str)
def test_hopper_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    assert_right(cuda_runner, ConvWgmma(), task, LIMIT, forms(ConvWgmma(), task))
