"""Movement ops: values by hand, and that no result aliases its input."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops import (
    Concat,
    Dropout,
    Expand,
    Identity,
    Pad,
    Reshape,
    Slice,
    Split,
    Transpose,
)


def index(*shape: int) -> Array:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("op", "want"),
    [
        (Identity(), index(2, 3)),
        (Dropout(), index(2, 3)),
        (Reshape((3, 2)), [[0, 1], [2, 3], [4, 5]]),
        (Reshape((6, 1)), [[0], [1], [2], [3], [4], [5]]),
        (Transpose((1, 0)), [[0, 3], [1, 4], [2, 5]]),
        (Slice((0, 1), (2, 3), (1, 1)), [[1, 2], [4, 5]]),
        (Slice((1, 2), (-1, -1), (-1, -2)), [[5, 3], [2, 0]]),
        (Slice((0, 0), (1, 3), (1, 2)), [[0, 2]]),
        (Slice((1, 2), (0, 0), (-1, -1)), [[5, 4]]),
        (Expand((2, 2, 3)), [[[0, 1, 2], [3, 4, 5]]] * 2),
        (Pad((0, 1, 1, 0), value=9.0), [[9, 0, 1, 2], [9, 3, 4, 5], [9, 9, 9, 9]]),
        (Pad((-1, 1, 0, -2), value=7.0), [[7, 3]]),
        (
            Pad((0, 2, 1, 1), "reflect"),
            [[2, 1, 0, 1, 2, 1], [5, 4, 3, 4, 5, 4], [2, 1, 0, 1, 2, 1]],
        ),
        (Pad((1, 0, 0, 2), "edge"), [[0, 1, 2, 2, 2], [0, 1, 2, 2, 2], [3, 4, 5, 5, 5]]),
    ],
)
def test_values(op: Op, want: list) -> None:
    x = index(2, 3)
    (y,) = op.reference(x)
    np.testing.assert_array_equal(y, np.array(want, np.float32))
    assert op.infer(TensorType(x.shape, FP32)) == (TensorType(y.shape, FP32),)
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert not np.shares_memory(x, y)


def test_transpose_of_four_dimensions() -> None:
    x = index(2, 3, 5, 7)
    (y,) = Transpose((2, 0, 3, 1)).reference(x)
    assert y.shape == (5, 2, 7, 3)
    assert y[4, 1, 6, 2] == x[1, 2, 4, 6]
    assert y[3, 0, 2, 1] == x[0, 1, 3, 2]


def test_concat_and_split_are_inverse(rng: np.random.Generator) -> None:
    pieces = [rng.standard_normal((3, n, 2)).astype(np.float16) for n in (4, 1, 0, 7)]
    (joined,) = Concat(-2).reference(*pieces)
    assert joined.shape == (3, 12, 2)
    np.testing.assert_array_equal(joined[:, 4:5], pieces[1])
    op = Split(1, (4, 1, 0, 7))
    assert op.output_count() == 4
    types = op.infer(TensorType((3, 12, 2), FP16))
    for piece, back, type_ in zip(pieces, op.reference(joined), types, strict=True):
        np.testing.assert_array_equal(piece, back)
        assert type_ == TensorType(piece.shape, FP16)
        assert not np.shares_memory(back, joined)


def test_concat_of_one_input_is_a_copy() -> None:
    x = index(2, 3)
    (y,) = Concat(0).reference(x)
    y[:] = -1
    np.testing.assert_array_equal(x, index(2, 3))


def test_slices_of_empty_dimensions() -> None:
    op = Slice((0, 0), (0, -1), (1, -1))
    assert op.infer(TensorType((4, 0), FP32)) == (TensorType((0, 0), FP32),)
    assert op.reference(index(4, 0))[0].shape == (0, 0)
    backwards = Slice((3,), (3,), (-2,))
    assert backwards.infer(TensorType((5,), FP32))[0].shape == (0,)


@pytest.mark.parametrize("step", [-3, -2, -1, 1, 2, 3])
def test_slice_sizes_are_those_of_python(step: int) -> None:
    x = index(5)
    for start in range(6 if step > 0 else 5):
        for end in range(6) if step > 0 else range(-1, 6):
            op = Slice((start,), (end,), (step,))
            want = x[start : None if end < 0 else end : step]
            assert op.infer(TensorType((5,), FP32))[0].shape == want.shape
            np.testing.assert_array_equal(op.reference(x)[0], want)


def _type(*shape: int) -> TensorType:
    return TensorType(shape, FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            Reshape((4, 2)),
            [_type(2, 3)],
            r"Reshape: \[2,3\] with 6 elements does not fit shape \[4,2\]",
        ),
        (Reshape((-1, 6)), [_type(2, 3)], r"Reshape: .* does not fit shape \[-1,6\]"),
        (Transpose((0, 0)), [_type(2, 3)], r"Transpose: perm \(0, 0\) is no permutation of the 2"),
        (Slice((0,), (1,), (1,)), [_type(2, 3)], r"Slice: starts \(0,\) has 1 entries, expected 2"),
        (Slice((0,), (1,), (0,)), [_type(2)], "Slice: step of dimension 0 is 0"),
        (Slice((0,), (3,), (1,)), [_type(2)], "Slice: 0:3:1 lies outside dimension 0 of 2"),
        (Slice((-1,), (2,), (1,)), [_type(2)], "Slice: -1:2:1 lies outside dimension 0 of 2"),
        (Slice((2,), (-1,), (-1,)), [_type(2)], "Slice: 2:-1:-1 lies outside dimension 0 of 2"),
        (
            Concat(1),
            [_type(2, 3), _type(3, 3)],
            r"Concat: input 1 has shape \[3,3\], expected \[2,3\] but for dimension 1",
        ),
        (Concat(0), [_type(2), TensorType((2,), FP16)], "Concat: input 1 is fp16, expected fp32"),
        (Concat(2), [_type(2, 3)], "Concat: axis 2 is out of range for rank 2"),
        (Concat(0), [_type(2), _type(2, 1)], r"Concat: input 1 has shape \[2,1\], expected \[2\]"),
        (
            Split(0, (1, 2)),
            [_type(2)],
            r"Split: sizes \(1, 2\) do not add up to dimension 0 of \[2\]",
        ),
        (Split(0, ()), [_type(0)], r"Split: sizes \(\) do not add up"),
        (Expand((2, 4)), [_type(2, 3)], r"Expand: shapes \[2,3\], \[2,4\] do not broadcast"),
        (Expand((3,)), [_type(2, 3)], r"Expand: \[2,3\] does not broadcast to \[3\]"),
        (Pad((1, 1)), [_type(2, 3)], r"Pad: pads \(1, 1\) has 2 entries, expected 4"),
        (
            Pad((1, 1), "wrap"),
            [_type(2)],
            "Pad: mode 'wrap' is unknown, expected constant, reflect, edge",
        ),
        (Pad((-1, 1), "edge"), [_type(2)], r"Pad: mode edge has negative pads \(-1, 1\)"),
        (
            Pad((0, 2), "reflect"),
            [_type(2)],
            "Pad: reflects 2 elements of dimension 0, which has 2",
        ),
        (Pad((0, 2), "edge"), [_type(0)], "Pad: dimension 0 is empty and has no edge"),
        (Pad((-2, -1)), [_type(2)], "Pad: pads -2 and -1 cut more than dimension 0 of 2"),
    ],
)
def test_misfits_are_named(op: Op, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(*inputs)
