"""Traced functions compute what Python and NumPy do; what cannot be traced says why."""
# ruff: noqa: PLW0108 - only Python functions can be traced

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.errors import ExtensionError
from nrt.extensions.pointwise import PointwiseFunction, pointwise_function
from nrt.extensions.trace import where

RNG = np.random.default_rng()
TOLERANCE = 1e-14  # programs run in float64 here

SCALE = 3.0
smallest = min  # the builtin under another name


def helper(x: Any) -> Any:
    """Called by traced functions; calls what must be rebound in it, too."""
    return max(math.exp(x), SCALE)


def recursive(x: Any, depth: int) -> Any:
    return x if depth == 0 else recursive(x * 0.5 + 1, depth - 1)


def made(function: Callable[..., Any]) -> PointwiseFunction:
    return pointwise_function("F", function, None)


def data(count: int = 1, low: float = -3.0, high: float = 3.0) -> list[Any]:
    return [RNG.uniform(low, high, (5, 7)) for _ in range(count)]


# A function beside what it should compute, and where.
FUNCTIONS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (lambda x: min(max(x, 0), 2), lambda x: np.clip(x, 0, 2)),
    (lambda x: smallest([x, 1.0, x * x]), lambda x: np.minimum(np.minimum(x, 1), x * x)),
    (lambda x: max(min(3, 4), x), lambda x: np.maximum(3, x)),
    (lambda x: abs(x) - (-x) + (+x), lambda x: np.abs(x) + 2 * x),
    (lambda x: 2 - x + 1 / (x * x + 1), lambda x: 2 - x + 1 / (x * x + 1)),
    (lambda x: x // 0.7 + x % 0.7, lambda x: x // 0.7 + x % 0.7),
    (lambda x: 5.0 // (x + 4) + 5.0 % (x + 4), lambda x: 5.0 // (x + 4) + 5.0 % (x + 4)),
    (lambda x: x**2 + x**3 + abs(x) ** 0.5 + abs(x) ** 1.7 + 2.0**x,
     lambda x: x**2 + x**3 + np.sqrt(abs(x)) + abs(x) ** 1.7 + 2.0**x),
    (lambda x: math.exp(x) + math.tanh(x) + math.sin(x) * math.cos(x) + math.tan(x),
     lambda x: np.exp(x) + np.tanh(x) + np.sin(x) * np.cos(x) + np.tan(x)),
    (lambda x: math.log(x * x + 1) + math.sqrt(x * x)
     + math.log2(x * x + 1) + math.log10(x * x + 1),
     lambda x: np.log(x * x + 1) + abs(x) + np.log2(x * x + 1) + np.log10(x * x + 1)),
    (lambda x: math.erf(x) + math.erfc(x), lambda x: np.ones_like(x)),
    (lambda x: math.erf(x), lambda x: np.vectorize(math.erf)(x)),
    (lambda x: np.log1p(abs(x) * 1e-9) * 1e9, lambda x: np.log1p(abs(x) * 1e-9) * 1e9),
    (lambda x: np.log1p(math.exp(x)), lambda x: np.log1p(np.exp(x))),
    (lambda x: np.expm1(x * 1e-9) * 1e9, lambda x: np.expm1(x * 1e-9) * 1e9),
    (lambda x: np.exp2(x) + np.square(x) + np.reciprocal(x * x + 1),
     lambda x: np.exp2(x) + x * x + 1 / (x * x + 1)),
    (lambda x: math.floor(x) + 10 * math.ceil(x) + 100 * math.trunc(x) + 1000 * round(x),
     lambda x: np.floor(x) + 10 * np.ceil(x) + 100 * np.trunc(x) + 1000 * np.rint(x)),
    (lambda x: np.floor(x) + np.ceil(x) * np.rint(x) + np.trunc(x) + np.round(x),
     lambda x: np.floor(x) + np.ceil(x) * np.rint(x) + np.trunc(x) + np.round(x)),
    (lambda x: np.sign(x) + math.fabs(x) + np.negative(x) + np.positive(x) + math.pow(x, 2),
     lambda x: np.sign(x) + np.abs(x) + x * x),
    (lambda x: np.minimum(x, 1) + np.maximum(2, x) + np.clip(x, -1, 1) + np.clip(x, None, 0.5)
     + np.clip(x, a_min=0, a_max=None),
     lambda x: np.minimum(x, 1) + np.maximum(2, x) + np.clip(x, -1, 1) + np.minimum(x, 0.5)
     + np.maximum(x, 0)),
    (lambda x: where(x > 0, x, 0.1 * x), lambda x: np.where(x > 0, x, 0.1 * x)),
    (lambda x: np.where((x >= -1) & (x <= 1), 1, 0.0), lambda x: (abs(x) <= 1).astype(float)),
    (lambda x: (x > 0) * x, lambda x: np.maximum(x, 0)),
    (lambda x: where((x < -1) | (x > 1), 1.0, 2.0), lambda x: np.where(abs(x) > 1, 1.0, 2.0)),
    (lambda x: where(~(x < 0) ^ (x > 1), 1.0, 2.0),
     lambda x: np.where((x >= 0) ^ (x > 1), 1.0, 2.0)),
    (lambda x: where(np.logical_and(x > 0, x < 1), x, 7) + where(np.logical_not(x > 0), 1, 0),
     lambda x: np.where((x > 0) & (x < 1), x, 7) + (x <= 0)),
    (lambda x: where((math.floor(x) == 1) | (math.floor(x) != -1), 1, 0) + where(True, x, 0),
     lambda x: (np.floor(x) != -1) + x),
    (lambda x: where(x, 3, 4), lambda x: np.where(x != 0, 3.0, 4.0)),
    (lambda x: sum([x, x * x, 1]), lambda x: x + x * x + 1),
    (lambda x: np.float32(2) * x + np.array(3.0), lambda x: 2 * x + 3),
    (lambda x: helper(x) + helper(2 * x),
     lambda x: np.maximum(np.exp(x), 3) + np.maximum(np.exp(2 * x), 3)),
    (lambda x: recursive(x, 3), lambda x: ((x * 0.5 + 1) * 0.5 + 1) * 0.5 + 1),
    (lambda x: [max(v, 0) for v in (x, -x)][1], lambda x: np.maximum(-x, 0)),
    (lambda x: x * math.pi if math.isfinite(math.e) else 0, lambda x: x * np.pi),
]  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_floats(case: tuple[Callable[..., Any], Callable[..., Any]]) -> None:
    function, expected = case
    (x,) = data()
    y, ref = made(function)(x), np.asarray(expected(x), np.float64)
    assert y.dtype == np.float64
    error = np.linalg.norm(y - ref) / np.linalg.norm(ref)
    assert error <= TOLERANCE


number = np.float64(1.25)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: number + x,
        lambda x: number - x,
        lambda x: number * x,
        lambda x: number / x,
        lambda x: number // x,
        lambda x: number % x,
        lambda x: number**x,
        lambda x: (number < x) * 1.0,
        lambda x: (number <= x) * 1.0,
        lambda x: (number > x) * 1.0,
        lambda x: (number >= x) * 1.0,
        lambda x: (number == x) * 1.0,
        lambda x: (number != x) * 1.0,
        lambda x: np.minimum(number, x),
        lambda x: np.maximum(number, x),
        lambda x: np.power(number, x),
    ],
)
def test_a_number_of_numpy_on_the_left(function: Callable[..., Any]) -> None:
    x = np.append(RNG.uniform(0.3, 3, 20), number)
    # A remainder is off by the rounding of what it was taken of.
    np.testing.assert_allclose(made(function)(x), function(x), rtol=TOLERANCE, atol=TOLERANCE)


def test_closures_and_local_functions() -> None:
    limit, inner = 1.5, lambda x: min(x, 2.0)

    def outer(x: Any) -> Any:
        def clipped(v: Any) -> Any:
            return max(inner(v), -limit)

        return clipped(x) + clipped(-x)

    (x,) = data()
    ref = np.maximum(np.minimum(x, 2), -1.5) + np.maximum(np.minimum(-x, 2), -1.5)
    np.testing.assert_allclose(made(outer)(x), ref, rtol=1e-15)


def test_other_pointwise_functions_are_inlined() -> None:
    relu = made(lambda x, slope=0.0: where(x > 0, x, slope * x))
    both = made(lambda x, y: relu(x, slope=0.5) + relu(y))
    x, y = data(2)
    ref = np.where(x > 0, x, 0.5 * x) + np.maximum(y, 0)
    np.testing.assert_allclose(both(x, y), ref, rtol=1e-15)


def test_log1p_at_the_ends_of_its_domain() -> None:
    x = np.array([np.inf, -1.0, -2.0, 0.0, np.nan])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(made(np_log1p)(x), np.log1p(x))


def np_log1p(x: Any) -> Any:
    return np.log1p(x)


def test_the_original_stays_as_it_is() -> None:
    function = made(helper)
    assert math.isclose(helper(2.0), math.exp(2.0))
    assert helper.__globals__["math"] is math
    assert helper.__globals__["smallest"] is builtins.min
    assert function.program("f").text() == "exp(x0); max(r1, 3.0)"


def test_integers_stay_integers() -> None:
    x, y = (RNG.integers(-9, 9, (4, 6)) for _ in range(2))
    f = made(lambda x, y: min(max(x, 0), 6) * 2 - abs(y) + (x > y) + round(x))
    ref = np.clip(x, 0, 6) * 2 - abs(y) + (x > y) + x
    result = f(x, y)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, ref)


def test_true_division_and_float_functions_leave_the_integers() -> None:
    x = RNG.integers(1, 9, (4, 6)).astype(np.int32)
    result = made(lambda x: x / 2 + math.sqrt(x) + 0.5)(x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x / 2 + np.sqrt(x) + 0.5, rtol=1e-6)


def test_conditions_are_bool() -> None:
    x, y = data(2)
    result = made(lambda x, y: (x > y) & (x > 0))(x, y)
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result, (x > y) & (x > 0))
    flags = RNG.integers(0, 2, (4, 6)).astype(np.bool_)
    np.testing.assert_array_equal(made(lambda b: -b + abs(b) + np.sign(b))(flags), flags)
    np.testing.assert_array_equal(made(lambda b: ~b | (b == True))(flags), np.ones_like(flags))  # noqa: E712


def test_where_on_arrays_is_numpy() -> None:
    (x,) = data()
    np.testing.assert_array_equal(nrt.where(x > 0, x, 0), np.maximum(x, 0))


BRANCH = "asks whether a value is true.*nrt.where"
VALUE = "needs the value of an input"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1 if x > 0 else 0, BRANCH),
        (lambda x: x > 0 and x, BRANCH),
        (lambda x: not x, BRANCH),
        (lambda x: 0 < x < 6, BRANCH),
        (lambda x: x in (1, 2), BRANCH),
        (lambda x: float(x), VALUE),
        (lambda x: int(x), VALUE),
        (lambda x: [1, 2][x], VALUE),
        (lambda x: list(x), VALUE),
        (lambda x: len(x), VALUE),
        (lambda x: x[0], VALUE),
        (lambda x: np.sinh(x), "np.sinh has no instruction; known are .*tanh"),
        (lambda x: math.sinh(x), "math.sinh has no instruction; known are .*tanh"),
        (lambda x: np.sort(x), "np.sort has no instruction"),
        (lambda x: np.add.reduce(x), "np.add with method reduce has no instruction"),
        (lambda x: np.exp(x, dtype=np.float32), "np.exp with dtype has no instruction"),
        (lambda x: np.clip(x, 0, 1, out=None), "np.clip with out has no instruction"),
        (lambda x: min(x, 1, key=abs), "min with key= has no instruction"),
        (lambda x: round(x, 2), "round to 2 digits has no instruction"),
        (lambda x: x & 1, "join conditions, this is a number"),
        (lambda x: ~(2 * x), "negates conditions, this is a number"),
        (lambda x: x + np.ones(3), r"computes with an array of shape \[3\]"),
        (lambda x: x + "1", "computes with '1', expected numbers"),
        (lambda x: None, "returned NoneType, expected one number"),
        (lambda x: (x, x), "returned tuple, expected one number"),
        (lambda x: unknown(x), "raised NameError while it was traced: name 'unknown'"),  # noqa: F821
    ],
)
def test_what_cannot_be_traced(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(
        ExtensionError, match=rf"pointwise function 'F' \(.*test_trace.py:\d+\): .*{message}"
    ):
        made(function)


def test_integer_remainders_are_refused_when_they_come_up() -> None:
    f = made(lambda x: x // 2)
    with pytest.raises(ExtensionError, match="// and % of integers have no instruction"):
        f(np.arange(3))


def test_a_value_of_another_trace() -> None:
    kept: list[Any] = []

    def keeps(x: Any) -> Any:
        kept.append(x)
        return x + kept[0]

    f = made(keeps)
    with pytest.raises(ExtensionError, match="uses a value that another function was traced with"):
        f(np.arange(3))
