"""Quantize and Dequantize against their formulas, and the programs that they become part of."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from nrt.dtypes import FP8E4M3, FP16, FP32, INT8, INT16, INT32, INT64, UINT8, UINT16, DType
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import Dequantize, Quantize
from nrt.ir.ops.quantize import (
    byte_rounding,
    saturates,
    without_byte_rounding,
    without_round_trips,
)
from nrt.ir.pointwise import Builder, compose


@pytest.mark.parametrize("dtype", [INT8, UINT8, INT16, UINT16], ids=str)
def test_quantize(dtype: DType, rng: np.random.Generator) -> None:
    info = np.iinfo(dtype.numpy)
    x = (rng.standard_normal((3, 5, 7)) * info.max).astype(np.float32)
    scale = rng.uniform(0.5, 2, (5, 1)).astype(np.float32)
    zero = rng.integers(info.min, info.max + 1, (5, 1), dtype.numpy)
    (found,) = Quantize(dtype).reference(x, scale, zero)
    wanted = np.clip(np.rint(x / scale) + zero.astype(np.float32), info.min, info.max)
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found, wanted)
    (plain,) = Quantize(dtype).reference(x, scale)
    np.testing.assert_array_equal(plain, np.clip(np.rint(x / scale), info.min, info.max))


def test_halves_go_to_the_even_neighbour_and_the_rest_saturates() -> None:
    x = np.array([0.25, 0.75, -0.25, -0.75, 1.25, 63.5, 64, 1e9, -64.5, -1e9], np.float32)
    (found,) = Quantize(INT8).reference(x, np.float32(0.5))
    assert found.tolist() == [0, 2, 0, -2, 2, 127, 127, 127, -128, -128]
    # The zero point is added to what is rounded: 0.5 becomes 0, and then 3.
    (shifted,) = Quantize(INT8).reference(x[:2], np.float32(0.5), np.int8(3))
    assert shifted.tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [INT8, UINT8, INT16, UINT16, INT32], ids=str)
def test_dequantize(dtype: DType, rng: np.random.Generator) -> None:
    info = np.iinfo(dtype.numpy)
    q = rng.integers(max(info.min, -(2**20)), min(info.max, 2**20), (4, 6), dtype.numpy)
    scale = rng.uniform(0.5, 2, (6,)).astype(np.float32)
    zero = rng.integers(0, 100, (6,), dtype.numpy)
    (found,) = Dequantize(FP32).reference(q, scale, zero)
    wanted = (q.astype(np.float32) - zero.astype(np.float32)) * scale
    np.testing.assert_array_equal(found, wanted)
    (half,) = Dequantize(FP16).reference(q // 64, scale)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, ((q // 64).astype(np.float32) * scale).astype(np.float16))


def test_fp8(rng: np.random.Generator) -> None:
    x = np.append(rng.standard_normal(30), [1e6, -1e6]).astype(np.float32)
    scale = np.float32(0.25)
    (q,) = Quantize(FP8E4M3).reference(x, scale)
    wanted = np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(q.astype(np.float32), wanted.astype(np.float32))
    (back,) = Dequantize(FP32).reference(q, scale)
    np.testing.assert_array_equal(back, wanted.astype(np.float32) * scale)


@pytest.mark.parametrize(
    ("op", "types", "message"),
    [
        (Quantize(INT64), (FP32, FP32), "Quantize: the result is int64, expected one of int8"),
        (Quantize(INT8), (INT8, FP32), "Quantize: x is int8 and the scale fp32, expected floats"),
        (Quantize(INT8), (FP32, INT8), "Quantize: x is fp32 and the scale int8, expected floats"),
        (Quantize(INT8), (FP32, FP32, UINT8), "the zero point is uint8, expected int8"),
        (Quantize(FP8E4M3), (FP32, FP32, FP8E4M3), "zero point is fp8e4m3, expected none"),
        (Dequantize(FP32), (FP32, FP32), "Dequantize: q is fp32, the scale fp32"),
        (Dequantize(INT8), (INT8, FP32), "and the result int8; expected q to be one of"),
        (Dequantize(FP32), (INT8, FP32, UINT8), "the zero point is uint8, expected int8"),
    ],
)
def test_wrong_types(op: Quantize | Dequantize, types: tuple[DType, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(*(TensorType((2, 3), t) for t in types))


_b = Builder("ff")
SHIFTED = _b.build(_b("add", 0, 1))


class TestPrograms:
    def test_storing_as_int8_is_a_step_that_can_be_taken_away(
        self, rng: np.random.Generator
    ) -> None:
        stored = byte_rounding(SHIFTED, INT8)
        x, y = (rng.uniform(-200, 200, 500) for _ in range(2))
        (found,) = stored.evaluate(x, y)
        np.testing.assert_array_equal(found, np.clip(np.rint(x + y), -128, 127))
        assert without_byte_rounding(stored, INT8) == SHIFTED
        assert saturates(stored, INT8)
        assert not saturates(stored, UINT8)
        assert not saturates(SHIFTED, INT8)
        assert without_byte_rounding(SHIFTED, INT8) is None

    def test_a_zero_point_stays_behind_the_rounding(self) -> None:
        program = Quantize(INT8).program(("f", "f", "i"))
        stored = without_byte_rounding(program, INT8)
        assert stored is not None
        assert stored.text() == "div(x0, x1); round(r3); to_f(x2); add(r4, r5)"

    def test_what_is_quantized_and_back_needs_no_integers(self, rng: np.random.Generator) -> None:
        for zero in ((), (7,)):
            quantize = Quantize(INT8).program(("f", "f", *("i" for _ in zero)))
            dequantize = Dequantize(FP32).program(("i", "f", *("i" for _ in zero)))
            both = compose(quantize, dequantize, 0)
            short = without_round_trips(both)
            steps = [i.opcode for i in short.instrs]
            assert "to_i" not in steps
            x = rng.uniform(-200, 200, 500).astype(np.float32)
            scale, zeros = np.float32(0.7), [np.int64(z) for z in zero]
            arrays = [x, scale, *zeros, scale, *zeros]
            wanted, found = (p.evaluate(*map(np.asarray, arrays))[0] for p in (both, short))
            np.testing.assert_array_equal(found, wanted)

    def test_integers_that_change_a_number_stay(self) -> None:
        b = Builder("f")
        cut = b.build(b("to_f", b("to_i", 0)))
        assert without_round_trips(cut) == cut
        b = Builder("f")
        clipped = b("min", b("max", 0, b.const(-5.0)), b.const(5.0))
        not_whole = b.build(b("to_f", b("to_i", clipped)))
        assert without_round_trips(not_whole) == not_whole

    def test_constants_are_floats_at_once(self) -> None:
        b = Builder("f")
        program = b.build(b("add", 0, b("to_f", b.const(-128))))
        assert without_round_trips(program).text() == "add(x0, -128.0)"
