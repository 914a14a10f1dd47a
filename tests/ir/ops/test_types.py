"""References give the types that infer promises, for every element type and for random windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.dtypes import BF16, BOOL, DTYPES, FP8E4M3, FP16, DType, dtype_from_numpy
from nrt.errors import ShapeError
from nrt.ir import ops
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import array_type, cast

OPS_OF_FOUR_DIMENSIONS: list[Op] = [
    ops.Identity(),
    ops.Reshape((6, 20)),
    ops.Transpose((3, 2, 1, 0)),
    ops.Slice((0, 0, 3, 4), (2, 3, -1, 0), (1, 2, -1, -2)),
    ops.Split(1, (1, 2)),
    ops.Expand((7, 2, 3, 4, 5)),
    ops.Concat(1),
    ops.Pad((0, 0, 1, 1, 0, 0, 1, 1), value=1.0),
    ops.Pad((0, 0, 1, 1, 0, 0, 1, 1), "reflect"),
    ops.Pad((0, 0, 1, 1, 0, 0, 1, 1), "edge"),
    ops.Resize((2, 3, 8, 5), (1.0, 1.0, 2.0, 1.0)),
    ops.Resize((2, 3, 8, 5), (1.0, 1.0, 2.0, 1.0), "cubic"),
    ops.MaxPool((2, 2), (1, 1), (0,) * 4),
    ops.AveragePool((2, 2), (1, 1), (1,) * 4),
    *(ops.Reduce(kind, (1, 3)) for kind in ("mean", "sum", "max", "min", "prod", "l1", "l2")),
    ops.Softmax(1),
    ops.LogSoftmax(),
    ops.LRN(3),
    ops.Relu(),
    ops.Clip(-1.0, 1.0),
    ops.Neg(),
    ops.Abs(),
    ops.Sign(),
    ops.Gelu(),
    ops.Round(),
    ops.Not(),
    ops.IsNaN(),
    ops.Sum(),
    ops.Reformat(FP16),
    *(ops.Cast(dtype) for dtype in DTYPES),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(rng: np.random.Generator, dtype: DType) -> None:
    x = cast(rng.standard_normal((2, 3, 4, 5)) * 3, dtype)
    accepted = 0
    for op in OPS_OF_FOUR_DIMENSIONS:
        try:
            types = op.infer(array_type(x))
        except ShapeError:
            continue
        accepted += 1
        results = op.reference(x)
        assert tuple(array_type(r) for r in results) == types, op
        for result in results:
            assert result.flags.c_contiguous, op
            assert result.flags.writeable, op
            assert not np.shares_memory(result, x), op
    assert accepted >= (25 if dtype is BOOL else 35)


@st.composite
def windowed(
    draw: st.DrawFn,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Spatial input, kernel, and (strides, pads, dilations)."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    return each(1, 7), each(1, 3), (each(1, 3), each(0, 2, 2 * rank), each(1, 2))


@settings(max_examples=120, deadline=None)
@given(windowed(), st.booleans(), st.sampled_from([1, 2, 4]))
def test_random_windows(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]],
    ceil_mode: bool,
    groups: int,
) -> None:
    spatial, kernel, (strides, pads, dilations) = case
    x = np.ones((2, 4, *spatial), np.float32)
    w = np.ones((8, 4 // groups, *kernel), np.float32)
    candidates: list[tuple[Op, list[Array]]] = [
        (ops.Conv(strides, pads, dilations, groups), [x, w]),
        (ops.MaxPool(kernel, strides, pads, dilations, ceil_mode), [x]),
        (ops.AveragePool(kernel, strides, pads, dilations, ceil_mode, True), [x]),
        (
            ops.ConvTranspose(strides, pads, dilations, groups, (0,) * len(kernel)),
            [x, np.ones((4, 3, *kernel), np.float32)],
        ),
    ]
    for op, inputs in candidates:
        try:
            types = op.infer(*map(array_type, inputs))
        except ShapeError:  # the kernel is larger than the input, or pads cut everything
            continue
        results = op.reference(*inputs)
        assert tuple(map(array_type, results)) == types
        if isinstance(op, ops.Conv):
            # Of ones, a convolution counts the elements under its window.
            assert results[0].max() <= 4 // groups * np.prod(kernel)


def test_cast_saturates_and_wraps() -> None:
    assert cast(np.float32([500, -500, 3.3]), FP8E4M3).astype(float).tolist() == [448, -448, 3.25]
    assert cast(np.float32([1 + 2**-8]), BF16).astype(float).tolist() == [1.0]
    assert cast(np.array([2**32 + 5]), dtype_from_numpy(np.int32)).tolist() == [5]
    edge = np.float64([2.0**63, -(2.0**63), 2.0**62, np.nan])
    assert cast(edge, dtype_from_numpy(np.int64)).tolist() == [2**63 - 1, -(2**63), 2**62, 0]
    assert cast(np.float64([2.0**64, -1]), dtype_from_numpy(np.uint64)).tolist() == [2**64 - 1, 0]


def test_array_type_names_unknown_elements() -> None:
    assert array_type(np.zeros((2, 3), np.float16)) == TensorType((2, 3), FP16)
    with pytest.raises(ShapeError, match="element type complex128 is unknown"):
        array_type(np.zeros(2, complex))
