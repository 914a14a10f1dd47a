"""MatMul of the CPU target against float64."""

from __future__ import annotations

import pytest

from nrt.dtypes import FP16, FP64
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Builder
from nrt.problem import TensorSpec
from tests.cpu_kernels.harness import check, half, problem, refusal, spec

NAME = "cpu_matmul_panels"

CASES = [
    ((17, 33), (33, 70), {}),
    ((1, 600), (600, 130), {}),
    ((33, 17), (33, 9), {"trans_a": True}),
    ((5, 33), (70, 33), {"trans_b": True}),
    ((3, 4, 33, 5), (3, 4, 9, 33), {"trans_a": True, "trans_b": True}),
    ((2, 3, 7, 11), (11, 13), {}),
    ((2, 1, 7, 11), (3, 11, 13), {}),
    ((7, 11), (2, 3, 11, 13), {}),
    ((11,), (11, 13), {}),
    ((7, 11), (11,), {}),
    ((11,), (11,), {}),
    ((11,), (2, 3, 11, 13), {}),
    ((2, 3, 7, 11), (11,), {}),
    ((2, 7, 1), (2, 1, 5), {}),
    ((2, 2, 2, 2, 3, 5), (5, 4), {}),
]


@pytest.mark.parametrize(("a", "b", "attributes"), CASES)
@pytest.mark.parametrize("constant", [True, False])
def test_shapes(a, b, attributes, constant, rng) -> None:
    p = problem(MatMul(**attributes), [spec(a), spec(b)], constants=(1,) if constant else ())
    check(NAME, p, rng, all_configs=True)


def test_attention_strides(rng) -> None:
    # Heads as slices of [batch, sequence, heads * size]: no copies before the product.
    heads = TensorSpec((2, 3, 10, 8), spec(()).dtype, (10 * 24, 8, 24, 1))
    scores = problem(MatMul(trans_b=True), [heads, heads], constants=())
    check(NAME, scores, rng)
    values = problem(MatMul(), [spec((2, 3, 10, 10)), heads], [heads], constants=())
    check(NAME, values, rng)


def test_epilogue(rng) -> None:
    b = Builder("fff")
    program = b.build(b("add", b("tanh", b("add", 0, 1)), 2))
    op = MatMul(epilogue=program)
    for residual in ((2, 9, 21), (9, 1), (2, 1, 21)):
        inputs = [spec((2, 9, 30)), spec((30, 21)), spec((21,)), spec(residual)]
        check(NAME, problem(op, inputs), rng)
        batched = [inputs[0], spec((2, 30, 21)), *inputs[2:]]
        check(NAME, problem(op, batched, constants=()), rng)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("attributes", [{}, {"trans_b": True}, {"trans_a": True}])
def test_half(constant, attributes, rng) -> None:
    a = spec((2, 10, 10), dtype=FP16)
    p = problem(MatMul(**attributes), [a, half(spec((2, 10, 10)))], constants=(1,) * constant)
    check(NAME, p, rng)


def test_refusals() -> None:
    double = problem(MatMul(), [spec((2, 3), dtype=FP64), spec((3, 2), dtype=FP64)])
    assert "products are computed on fp32" in refusal(NAME, double)
    assert "empty" in refusal(NAME, problem(MatMul(), [spec((0, 3)), spec((3, 2))]))
