"""Pools against the definition, window by window."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import BOOL, FP16, FP32, INT8, INT32
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.ops import AveragePool, MaxPool
from nrt.ir.pointwise import Builder, Program

RTOL64 = 1e-12


def windows(
    op: MaxPool | AveragePool, x: Array
) -> tuple[list[int], dict[tuple[int, ...], list[Array]]]:
    """Output sizes, and per output place the input elements of every window position or None."""
    rank = len(op.kernel)
    out = []
    for i in range(rank):
        size = x.shape[2 + i] + op.pads[i] + op.pads[rank + i]
        steps = (size - (op.kernel[i] - 1) * op.dilations[i] - 1) / op.strides[i]
        count = int(np.ceil(steps) if op.ceil_mode else np.floor(steps)) + 1
        if (count - 1) * op.strides[i] >= x.shape[2 + i] + op.pads[i]:
            count -= 1
        out.append(count)
    found = {}
    for place in np.ndindex(*out):
        positions = []
        for tap in np.ndindex(*op.kernel):
            positions.append(
                [
                    place[i] * op.strides[i] + tap[i] * op.dilations[i] - op.pads[i]
                    for i in range(rank)
                ]
            )
        found[place] = positions
    return out, found


def naive(op: MaxPool | AveragePool, x: Array) -> Array:
    rank = len(op.kernel)
    out, places = windows(op, x)
    y = np.zeros((*x.shape[:2], *out))
    for place, positions in places.items():
        inside = [p for p in positions if all(0 <= p[i] < x.shape[2 + i] for i in range(rank))]
        elements = np.stack([x[(slice(None), slice(None), *p)] for p in inside])
        if isinstance(op, MaxPool):
            y[(slice(None), slice(None), *place)] = elements.max(axis=0)
            continue
        count = len(inside)
        if op.count_include_pad:
            count = sum(
                all(-op.pads[i] <= p[i] < x.shape[2 + i] + op.pads[rank + i] for i in range(rank))
                for p in positions
            )
        y[(slice(None), slice(None), *place)] = elements.sum(axis=0) / count
    return y


CASES = [
    ((2, 3, 9, 7), ((3, 3), (2, 2), (1, 1, 1, 1))),
    ((1, 2, 8, 11), ((2, 3), (1, 2), (0, 1, 1, 0))),
    ((1, 2, 11, 10), ((3, 2), (2, 3), (1, 0, 0, 1), (2, 3))),
    ((2, 3, 13), ((4,), (3,), (1, 2), (2,))),
    ((1, 2, 5, 6, 7), ((2, 3, 2), (2, 2, 3), (0, 1, 0, 1, 1, 0), (1, 1, 2))),
    ((1, 1, 4, 5), ((1, 1), (2, 3), (0, 0, 0, 0))),
]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "arguments"), CASES)
def test_max_pool(
    rng: np.random.Generator, shape: tuple[int, ...], arguments: tuple, ceil_mode: bool
) -> None:
    x = rng.standard_normal(shape) - 3.0  # mostly negative: zero padding would win
    dilations = arguments[3] if len(arguments) > 3 else (1,) * (len(shape) - 2)
    op = MaxPool(*arguments[:3], dilations, ceil_mode)
    (y,) = op.reference(x)
    np.testing.assert_array_equal(y, naive(op, x))


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "arguments"), CASES)
def test_average_pool(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    arguments: tuple,
    ceil_mode: bool,
    count_include_pad: bool,
) -> None:
    x = rng.standard_normal(shape)
    dilations = arguments[3] if len(arguments) > 3 else (1,) * (len(shape) - 2)
    op = AveragePool(*arguments[:3], dilations, ceil_mode, count_include_pad)
    (y,) = op.reference(x)
    np.testing.assert_allclose(y, naive(op, x), rtol=RTOL64)


def test_last_window_in_the_padding_is_dropped() -> None:
    """2x2 input, kernel 3, stride 3, pad 1: the second of ceil(1 / 3) + 1 windows starts at 3."""
    op = MaxPool((3, 3), (3, 3), (1, 1, 1, 1), ceil_mode=True)
    assert op.infer(TensorType((1, 1, 2, 2), FP32))[0].shape == (1, 1, 1, 1)


def test_other_dtypes(rng: np.random.Generator) -> None:
    x = rng.integers(-128, -100, (1, 2, 5, 5)).astype(np.int8)
    op = MaxPool((2, 2), (2, 2), (1, 1, 0, 0))
    (y,) = op.reference(x)
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y, naive(op, x))
    # 4096 halves: fp16 would stop at 2048.
    ones = np.ones((1, 1, 64, 64), np.float16)
    (mean,) = AveragePool((64, 64), (1, 1), (0,) * 4).reference(ones)
    assert mean.dtype == np.float16
    assert mean.item() == 1.0


def test_nan_is_kept() -> None:
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = np.nan
    (y,) = MaxPool((2, 2), (1, 1), (0,) * 4).reference(x)
    assert np.isnan(y).all()


def test_misfits_are_named() -> None:
    x = TensorType((1, 2, 5, 5), FP16)
    with pytest.raises(ShapeError, match=r"MaxPool: input .* has rank 4, kernel \(3,\) expects 3"):
        MaxPool((3,), (1,), (0, 0), (1,)).infer(x)
    with pytest.raises(ShapeError, match="AveragePool: input is int8, expected a float type"):
        AveragePool((3, 3), (1, 1), (0,) * 4).infer(TensorType((1, 2, 5, 5), INT8))
    with pytest.raises(ShapeError, match="MaxPool: input is bool, expected float or integer"):
        MaxPool((3, 3), (1, 1), (0,) * 4).infer(TensorType((1, 2, 5, 5), BOOL))
    with pytest.raises(ShapeError, match="MaxPool: kernel spans 7 in spatial dimension 0"):
        MaxPool((7, 3), (1, 1), (0,) * 4).infer(x)
    with pytest.raises(ShapeError, match=r"MaxPool: kernel \(0, 3\) must be at least 1"):
        MaxPool((0, 3), (1, 1), (0,) * 4).infer(x)
    with pytest.raises(ShapeError, match=r"MaxPool: pads \(0, 0\) has 2 entries, expected 4"):
        MaxPool((3, 3), (1, 1), (0, 0)).infer(x)


# -- epilogue --------------------------------------------------------------------------------------


def scaled() -> Program:
    b = Builder("ff")
    return b.build(b("mul", 0, 1))


@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_an_epilogue_ends_every_result(kind: type[MaxPool] | type[AveragePool]) -> None:
    rng = np.random.default_rng()
    x, scale = rng.standard_normal((2, 3, 6, 8)), rng.standard_normal((3, 1, 1))
    window = ((2, 2), (2, 2), (0, 0, 0, 0))
    (y,) = kind(*window, epilogue=scaled()).reference(x, scale)
    (plain,) = kind(*window).reference(x)
    np.testing.assert_allclose(y, plain * scale, rtol=1e-12)
    (half,) = kind(*window, out_dtype=FP16).reference(x)
    np.testing.assert_array_equal(half, plain.astype(np.float16))


def test_means_of_int8_are_floats_that_an_epilogue_may_store_as_int8() -> None:
    rng = np.random.default_rng()
    x = rng.integers(-128, 128, (2, 3, 6, 8)).astype(np.int8)
    b = Builder("f")
    double = b.build(b("mul", 0, b.const(2.0)))
    window = ((2, 2), (2, 2), (0, 0, 0, 0))
    mean = x.reshape(2, 3, 3, 2, 4, 2).astype(np.float64).mean(axis=(3, 5))
    (real,) = AveragePool(*window, epilogue=double, out_dtype=FP32).reference(x)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, 2 * mean)
    for data in (x, x.astype(np.float32)):
        (whole,) = AveragePool(*window, epilogue=double, out_dtype=INT8).reference(data)
        assert whole.dtype == np.int8
        np.testing.assert_array_equal(whole, np.clip(np.rint(2 * mean), -128, 127))
    with pytest.raises(ShapeError, match="AveragePool: input is int8, expected a float type"):
        AveragePool(*window, epilogue=double).infer(TensorType(x.shape, INT8))


@pytest.mark.parametrize(
    ("op", "count", "message"),
    [
        (MaxPool((2, 2), (1, 1), (0,) * 4), 2, "got 2 inputs, expected 1 without an epilogue"),
        (
            MaxPool((2, 2), (1, 1), (0,) * 4, epilogue=scaled()),
            1,
            "got 0 epilogue inputs, the epilogue reads 1",
        ),
        (
            MaxPool((2, 2), (1, 1), (0,) * 4, epilogue=scaled()),
            2,
            r"shapes \[1,2,5,5\], \[1,2,4,4\] do not broadcast",
        ),
        (MaxPool((2, 2), (1, 1), (0,) * 4, out_dtype=INT32), 1, "reads fp32 and stores int32"),
    ],
)
def test_epilogues_that_do_not_fit(op: MaxPool, count: int, message: str) -> None:
    with pytest.raises(ShapeError, match=f"MaxPool: {message}"):
        op.infer(*[TensorType((1, 2, 5, 5), FP32)] * count)
