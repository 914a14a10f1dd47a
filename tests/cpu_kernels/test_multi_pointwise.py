"""Pointwise programs of several results on the CPU."""

from __future__ import annotations

import pytest

from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT64
from nrt.ir.ops import MultiPointwise
from nrt.ir.pointwise import Builder, Program
from nrt.problem import TensorSpec
from tests.cpu_kernels.harness import channel_slice, check, nhwc, problem, refusal, spec

NAME = "cpu_pointwise"


def scaled() -> Program:
    b = Builder("fff")
    both = b("add", 0, 1)
    return b.build(both, b("max", b("mul", both, 2), b.const(0.0)))


SCALED = MultiPointwise(scaled(), (FP32, FP16))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([spec((5, 77)), spec((77,)), spec(())], None),
        ([spec((3, 1, 9)), spec((4, 1), dtype=FP16), spec((9,))], None),
        (
            [nhwc(2, 6, 3, 5), spec((6, 1, 1)), nhwc(2, 6, 3, 5)],
            [nhwc(2, 6, 3, 5), channel_slice((2, 6, 3, 5), 11, FP16)],
        ),
        ([spec((2, 3, 4, 5))] * 3, [spec((2, 3, 4, 5)), nhwc(2, 3, 4, 5, dtype=FP16)]),
        (
            [TensorSpec((300, 40), FP32, (160, 1))] * 3,
            [spec((300, 40)), TensorSpec((300, 40), FP16, (1, 300))],
        ),
        ([spec((0, 3))] * 3, None),
    ],
    ids=["row", "broadcast", "slice", "two orders", "columns", "empty"],
)
def test_results_lie_anywhere(inputs, outputs, rng) -> None:
    check(NAME, problem(SCALED, inputs, outputs, ()), rng)


def test_results_of_several_kinds(rng) -> None:
    b = Builder("fi")
    wide = b("to_f", 1)
    program = b.build(b("lt", 0, wide), b("mul", 1, 1), b("sub", 0, wide))
    op = MultiPointwise(program, (BOOL, INT64, FP64))
    check(NAME, problem(op, [spec((7, 33), dtype=FP64), spec((33,), dtype=INT64)], None, ()), rng)
    narrow = MultiPointwise(scaled(), (FP32, FP8E4M3))
    check(NAME, problem(narrow, [spec((7, 33))] * 3, None, ()), rng)


@pytest.mark.parametrize(
    ("dtypes", "reason"),
    [
        ((FP32, INT8), "a float result stored as int8 would have to saturate"),
        ((BF16, FP32), "no host code loads and stores bf16"),
    ],
)
def test_refusals(dtypes, reason) -> None:
    op = MultiPointwise(scaled(), dtypes)
    p = problem(op, [spec((3,))] * 3, None, ())
    assert refusal(NAME, p) == reason
