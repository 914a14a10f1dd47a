"""Tiles of the mma.sync kernels: packing, swizzle, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_mma import GemmMma
from nrt.cuda_kernels.mma_kernel import Tile, shared_bytes
from nrt.cuda_kernels.mma_layout import place
from nrt.cuda_kernels.mma_pack import block_diagonal, packed
from nrt.cuda_kernels.mma_tile import groups_of_tile, tiles_for
from nrt.dtypes import FP16, FP32, INT8, UINT8

from .kernel_emulator import KernelEmulator
from .test_mma import product


def test_groups_that_share_a_tile_are_a_block_diagonal() -> None:
    weights = np.random.default_rng().standard_normal((8, 3, 2, 1))
    rows = block_diagonal(weights, 4, 2).reshape(8, 2, 1, 2, 3)
    for k in range(8):
        own = k // 2 % 2
        assert np.array_equal(rows[k, :, :, own], weights[k].transpose(1, 2, 0))
        assert not rows[k, :, :, 1 - own].any()
    assert np.array_equal(
        block_diagonal(weights, 2, 1), weights.transpose(0, 2, 3, 1).reshape(8, 6)
    )


@pytest.mark.parametrize(
    ("groups", "k", "bn", "expected"),
    [(32, 4, 32, 8), (32, 64, 32, 1), (3, 6, 32, None), (4, 4, 64, None), (2, 48, 32, None)],
)
def test_groups_of_a_tile(groups: int, k: int, bn: int, expected: int | None) -> None:
    assert groups_of_tile(groups, k, bn) == expected


@pytest.mark.parametrize("row_bytes", [64, 128])
def test_no_bank_conflicts(row_bytes: int) -> None:
    where = KernelEmulator()._value(place(row_bytes))
    pieces = row_bytes // 16
    offsets = {where(row, p): (row, p) for row in range(64) for p in range(pieces)}
    assert set(offsets) == set(range(0, 64 * row_bytes, 16))
    for row in range(0, 64, 8):
        for p in range(pieces):  # ldmatrix: eight rows below each other
            assert len({where(r, p) // 16 % 8 for r in range(row, row + 8)}) == 8
            # What the kernel computes instead: a step of 32 bytes deeper, eight rows further.
            assert where(row + 3, p ^ 2) == where(row + 3, p) ^ 32
            assert where(row + 3 + 8, p) == where(row + 3, p) + 8 * row_bytes
    for thread in range(0, 256, 8):  # copies: eight consecutive threads
        spots = [(t // pieces, t % pieces) for t in range(thread, thread + 8)]
        assert len({where(*spot) // 16 % 8 for spot in spots}) == 8


def test_weights_are_rounded_to_tf32() -> None:
    values = np.array([1.0, 1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 2**-10, np.inf, np.nan])
    tile = Tile(32, 32, 32, 1, 2, 3)
    row = np.zeros((1, 32), np.float32)
    row[0, :6] = values
    found = packed(row, tile).reshape(-1)[:6]
    expected = np.array([1.0, 1 + 2**-10, 1.0, -1 - 2**-10, np.inf, np.nan], np.float32)
    # Lane 0's first piece is the first four, lane 1's the next.
    assert np.array_equal(found, expected, equal_nan=True)


def test_tiles_fit_every_device() -> None:
    for arch, device in ARCHS.items():
        for dtype in (FP16, FP32, INT8, UINT8):
            tiles = tiles_for(dtype, device)
            assert len(tiles) >= 5
            for tile in tiles:
                assert shared_bytes(tile, dtype) <= device.shared_per_block, arch


def test_large_tiles_are_for_large_products() -> None:
    device = ARCHS["sm_90a"]
    few, many = (GemmMma().configs(product(n, 4096, 4096), device)[0] for n in (32, 4096))
    assert Tile(*many)[:3] == (128, 256, 64)
    assert Tile(*few).bm <= 32
