"""How the Hopper kernel's sums leave as boxes: emulated, a warp at a time."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra
from nrt.cuda_kernels.epilogue_box import boxed_operand, fragment_order, refuse_boxes
from nrt.cuda_kernels.wgmma_epilogue import box_drains
from nrt.cuda_kernels.wgmma_layout import DRAIN_COLUMNS, chunk_columns, staged_columns
from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, INT8, UINT8, DType
from nrt.ir.pointwise import Builder, Program

from .emulated_memory import Pointer
from .kernel_emulator import KernelEmulator

STEP = 0.5
"""Of the residual: exact in float32, as all that the programs here compute."""


def program(residual: str = "", twice: bool = False) -> Program:
    """``max(acc * scale + bias + residual * STEP, -100)``; the residual of kind f or i.

    ``twice``: and of that, ``x * -0.25 + 60``.
    """
    b = Builder(["f", "f", "f", *residual])
    value = b("add", b("mul", 0, 1), 2)
    if residual:
        addend = b("to_f", 3) if residual == "i" else 3
        value = b("add", value, b("mul", addend, b.const(STEP)))
    value = b("max", value, b.const(-100.0))
    if not twice:
        return b.build(value)
    return b.build(value, b("add", b("mul", value, b.const(-0.25)), b.const(60.0)))


def swizzled(memory: np.ndarray, address: int, row_bytes: int) -> np.ndarray:
    """What the copy engine reads at ``address``: 16 rows, swizzled over their own length."""
    mask = row_bytes // 16 - 1
    place = np.arange(address, address + 16 * row_bytes, 16)
    place ^= (place >> 7 & mask) << 4
    rows: np.ndarray = np.stack([memory[p : p + 16] for p in place]).reshape(16, row_bytes)
    return rows


def stored(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Floats as elements of ``dtype``: to nearest even, saturated."""
    if dtype in BYTES:
        info = np.iinfo(dtype.numpy)
        return np.clip(np.rint(values), info.min, info.max).astype(dtype.numpy)
    if dtype is FP8E4M3:
        return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return values.astype(dtype.numpy)


@pytest.mark.parametrize(
    ("bn", "dtype", "residual", "columns"),
    [
        (32, INT8, None, 32),
        (64, INT8, INT8, 48),
        (96, INT8, INT8, 96),
        (160, INT8, None, 160),
        (256, INT8, INT8, 208),
        (64, FP8E4M3, FP8E4M3, 64),
        (64, FP8E4M3, INT8, 64),
        (128, INT8, FP8E4M3, 112),
        (96, UINT8, UINT8, 80),
        (64, UINT8, INT8, 64),
        (64, INT8, UINT8, 48),
        (32, UINT8, None, 32),
        (64, FP16, FP16, 56),
        (96, BF16, None, 96),
        (192, FP16, FP16, 192),
    ],
)
def test_boxes_hold_the_results(
    bn: int, dtype: DType, residual: DType | None, columns: int
) -> None:
    assert_boxes(bn, dtype, residual, columns)


@pytest.mark.parametrize(
    ("bn", "dtype", "residual", "columns", "second"),
    [
        (64, FP16, FP16, 56, FP16),
        (96, BF16, None, 96, FP16),
        (192, FP16, FP16, 192, FP16),
        (256, FP16, None, 232, BF16),
        (256, INT8, INT8, 208, UINT8),
        (96, INT8, None, 80, FP8E4M3),
    ],
)
def test_boxes_hold_second_results(
    bn: int, dtype: DType, residual: DType | None, columns: int, second: DType
) -> None:
    assert_boxes(bn, dtype, residual, columns, second)


def assert_boxes(
    bn: int, dtype: DType, residual: DType | None, columns: int, second: DType | None = None
) -> None:
    """A warp's boxes hold the epilogue of fresh sums.

    Args:
        bn: columns of the tile, of which ``columns`` are the output's.
        dtype, residual, second: element types.
    """
    rng = np.random.default_rng()
    n0, m, size = 32, 48, dtype.itemsize
    k_count = n0 + columns
    sums = rng.integers(-500, 500, (16, bn))
    scale = 2.0 ** rng.integers(-3, 2, k_count)
    bias = rng.integers(-20, 20, k_count) / 2
    kind = "" if residual is None else "i" if residual in BYTES else "f"
    extras = [Extra(FP32, "channel", 1), Extra(FP32, "channel", 1)]
    added = np.zeros((16, bn))
    memory = np.zeros(16 * bn * size, np.uint8)
    row_bytes = chunk_columns(bn, size) * size
    if residual is not None:
        extras.append(Extra(residual, "same"))
        added = rng.integers(-16, 17, (16, bn))  # e4m3 holds them
        if residual is UINT8:
            added = rng.integers(0, 256, (16, bn))
        raw = np.ascontiguousarray(added.astype(residual.numpy)).view(np.uint8)
        boxes = raw.reshape(16, -1, row_bytes).transpose(1, 0, 2)
        for index, box in enumerate(boxes):
            place = np.arange(16 * row_bytes).reshape(16, row_bytes) + index * 16 * row_bytes
            place ^= (place >> 7 & (row_bytes // 16 - 1)) << 4
            memory[place] = box

    # The rows of the weights are in the order of the fragments, so the sums come in it.
    fragment = sums[:, fragment_order(bn)] if size == 1 else sums
    lane, element = np.arange(32)[:, None], np.arange(bn // 2)
    accumulators = fragment[
        lane // 4 + element % 4 // 2 * 8, element // 4 * 8 + lane % 4 * 2 + element % 2
    ]
    emulator = KernelEmulator()
    pointers: list[Pointer | None] = [
        Pointer(a.astype(np.float32), "operand") for a in (scale, bias)
    ]
    held = residual is not None
    first_map, second_map = (Pointer(np.zeros(128, np.uint8), "map") for _ in range(2))
    kinds = [dtype]
    if second is not None:
        pointers += [None] * held + [second_map]
        extras.append(Extra(second, "rows", 1, (), (999,), written=True))
        kinds.append(second)
    pointers += [None] * (MAX_EXTRAS - len(pointers))
    drains = box_drains(bn, program(kind, second is not None), tuple(extras), dtype, held)
    assert len(drains) == -(-bn // DRAIN_COLUMNS)
    found: dict[tuple[bool, int], np.ndarray] = {}
    reals = added[:, :columns] * STEP
    exact = sums[:, :columns] * scale[n0:] + bias[n0:] + reals
    rest = (n0, m, k_count, first_map, *pointers)
    for drain in drains:
        memory = emulator.warp(
            drain.py_func, lambda t: (accumulators[t].tolist(), 0, t, *rest), memory
        )
        for box in emulator.stores:
            assert box.y == m
            assert box.memory is not None
            again = box.of.pointer is second_map
            assert again or box.of.pointer is first_map
            found[again, box.x - n0] = swizzled(box.memory, box.address, row_bytes)
    for result, stored_as in enumerate(kinds):
        mine = sorted(x for again, x in found if again == bool(result))
        assert mine == list(range(0, columns, row_bytes // size))
        rows = np.concatenate([found[bool(result), x] for x in mine], axis=1)
        value = np.maximum(exact, -100.0)
        expected = stored(value if result == 0 else value * -0.25 + 60.0, stored_as)
        assert np.array_equal(rows.view(stored_as.numpy)[:, :columns], expected)
        if stored_as is UINT8:
            assert {0, 255} <= set(expected.flat) or result
    assert len(found) == len(kinds) * len(mine)


def test_staging_is_what_leaves_at_a_time() -> None:
    assert [staged_columns(bn, 2, False) for bn in (96, 256)] == [96, 128]
    assert staged_columns(256, 2, True) == staged_columns(256, 1, False) == 256
    assert [chunk_columns(bn, 2) for bn in (256, 96, 16)] == [64, 32, 16]
    assert [chunk_columns(bn, 1) for bn in (256, 64, 96)] == [128, 64, 32]


def test_order_of_fragments_is_a_permutation_within_sixteens() -> None:
    order = fragment_order(48)
    assert sorted(order) == list(range(48))
    assert (order // 16 == np.arange(48) // 16).all()
    # A lane's columns 2 t and 2 t + 1 of both eights are four neighbours.
    for t in range(4):
        mine = [order[c] for c in (2 * t, 2 * t + 1, 8 + 2 * t, 9 + 2 * t)]
        assert mine == [4 * t, 4 * t + 1, 4 * t + 2, 4 * t + 3]


def test_operands_of_boxes_are_as_wide_as_the_output() -> None:
    column, byte, half = Extra(FP32, "channel", 1), Extra(INT8, "same"), Extra(FP16, "rows", 1)
    assert boxed_operand([column, byte], INT8) == 1
    assert boxed_operand([byte], FP16) is None
    assert boxed_operand([half], INT8) is None
    assert not refuse_boxes([column, byte], FP8E4M3)
    assert boxed_operand([column, Extra(UINT8, "rows", 1)], INT8) == 1
    assert not refuse_boxes([column, byte], UINT8)
    assert refuse_boxes([half], INT8)
    assert refuse_boxes([column], FP32)


def test_second_results_of_boxes_are_as_wide_as_the_first() -> None:
    for extra, dtype, boxes in [
        (Extra(FP16, "same", written=True), FP16, True),
        (Extra(BF16, "rows", 1, (), (48,), written=True), FP16, True),
        (Extra(UINT8, "same", written=True), FP8E4M3, True),
        (Extra(INT8, "same", written=True), FP16, False),
        (Extra(FP32, "same", written=True), FP16, False),
        (Extra(FP16, "general", 1, (3,), (70,), written=True), FP16, False),
    ]:
        assert refuse_boxes([Extra(FP32, "channel", 1), extra], dtype) != boxes
        assert boxed_operand([extra], dtype) is None
