"""Winograd convolution of the CPU target against float64, and its matrices exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest

from nrt.cpu_kernels.winograd_matrices import FILTER, INPUT, OUTPUT
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Builder
from tests.cpu_kernels.harness import channel_slice, check, nhwc, problem, refusal, spec

NAME = "cpu_conv_winograd"


@pytest.mark.parametrize("m", [2, 4])
def test_matrices_are_exact(m, rng) -> None:
    d = [Fraction(int(v), 7) for v in rng.integers(-50, 50, m + 2)]
    g = [Fraction(int(v), 3) for v in rng.integers(-50, 50, 3)]

    def apply(matrix, vector):
        return [
            sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix
        ]

    product = [a * b for a, b in zip(apply(FILTER[m], g), apply(INPUT[m], d), strict=True)]
    want = [sum(d[i + k] * g[k] for k in range(3)) for i in range(m)]
    assert apply(OUTPUT[m], product) == want


@pytest.mark.parametrize(
    ("x", "k", "pads"),
    [
        ((1, 64, 8, 8), 64, (1, 1, 1, 1)),
        ((2, 16, 13, 11), 37, (1, 1, 1, 1)),
        ((3, 48, 7, 7), 130, (0, 2, 1, 0)),
        ((1, 512, 5, 6), 65, (1, 1, 1, 1)),
        ((1, 32, 3, 3), 5, (0, 0, 0, 0)),
        ((2, 16, 2, 30), 20, (3, 3, 3, 3)),
    ],
)
def test_shapes(x, k, pads, rng) -> None:
    inputs = [nhwc(*x), spec((k, x[1], 3, 3)), spec((k,))]
    check(NAME, problem(Conv(pads=pads), inputs, ["nhwc"], (1, 2)), rng, all_configs=True)


def test_epilogue_into_a_slice(rng) -> None:
    b = Builder("fff")
    program = b.build(b("max", b("add", b("add", 0, 1), 2), b.const(0.0)))
    shape = (2, 37, 9, 6)
    inputs = [channel_slice((2, 16, 9, 6), 40), spec((37, 16, 3, 3)), spec((37, 1, 1)), spec(shape)]
    op = Conv(pads=(1, 1, 1, 1), epilogue=program)
    p = problem(op, inputs, [channel_slice(shape, 64)], (1, 2))
    check(NAME, p, rng, all_configs=True)


def test_refusals() -> None:
    x = nhwc(1, 16, 8, 8)
    one = problem(Conv(), [x, spec((4, 16, 1, 1))], ["nhwc"])
    assert "only 3x3" in refusal(NAME, one)
    strided = problem(Conv(strides=(2, 1)), [x, spec((4, 16, 3, 3))], ["nhwc"])
    assert "expected 1" in refusal(NAME, strided)
    grouped = problem(Conv(groups=2), [x, spec((4, 8, 3, 3))], ["nhwc"])
    assert "2 groups" in refusal(NAME, grouped)
    few = problem(Conv(), [nhwc(1, 3, 8, 8), spec((4, 3, 3, 3))], ["nhwc"])
    assert "no multiple" in refusal(NAME, few)
    planes = problem(Conv(), [spec((1, 16, 8, 8)), spec((4, 16, 3, 3))], ["nhwc"])
    assert "not side by side" in refusal(NAME, planes)
