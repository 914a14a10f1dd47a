"""AbsHistogram against a count in exact rationals, number by number."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.dtypes import FP16, FP32, INT64
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import AbsHistogram
from nrt.ir.ops.histogram import BINS, NEGATIVE, POSITIVE, WORDS, ZEROS

Array = np.ndarray[Any, np.dtype[Any]]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def slowly(x: Array) -> dict[int, int]:
    """Words other than zero, by the definition."""
    values = [Fraction(float(v)) for v in x.reshape(-1)]
    largest = max((abs(v) for v in values), default=Fraction(0))
    top = Fraction(2) ** -125  # the first power of two above all, no less than this
    while largest >= top:
        top *= 2
    words: dict[int, int] = {}
    for value in values:
        word = ZEROS if value == 0 else int(abs(value) * BINS / top)
        words[word] = words.get(word, 0) + 1
    for word, sign in ((POSITIVE, 1), (NEGATIVE, -1)):
        most = max((sign * v for v in values), default=Fraction(0))
        if most > 0:
            words[word] = int(np.float32(float(most)).view(np.uint32))
    return words


@settings(max_examples=200, deadline=None)
@given(st.lists(floats, max_size=40))
def test_counts_by_the_definition(values: list[float]) -> None:
    x = np.array(values, np.float32)
    (words,) = AbsHistogram().reference(x)
    assert words.dtype == np.int64
    assert words.shape == (WORDS,)
    assert {int(i): int(words[i]) for i in np.flatnonzero(words)} == slowly(x)


def test_counts_any_memory_order_and_leaves_the_tensor_alone(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 4, 5, 6)).astype(np.float32)
    x[x > 1] = 0
    before = x.copy()
    (words,) = AbsHistogram().reference(x)
    (turned,) = AbsHistogram().reference(x.transpose(0, 2, 3, 1)[:, ::-1])
    np.testing.assert_array_equal(turned, words)
    np.testing.assert_array_equal(x, before)
    assert {int(i): int(words[i]) for i in np.flatnonzero(words)} == slowly(x)
    assert words[: BINS + 1].sum() == x.size


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_none_show(value: float) -> None:
    (words,) = AbsHistogram().reference(np.array([1.0, value, -2.0], np.float32))
    assert max(words[POSITIVE], words[NEGATIVE]) >= 0x7F800000


def test_types() -> None:
    assert AbsHistogram().infer(TensorType((2, 3), FP32)) == (TensorType((WORDS,), INT64),)
    with pytest.raises(ShapeError, match="AbsHistogram: input is fp16, expected fp32"):
        AbsHistogram().infer(TensorType((2, 3), FP16))
