"""MultiPointwise against NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nrt.dtypes import BOOL, FP16, FP32, INT8, INT32
from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops import MultiPointwise
from nrt.ir.pointwise import Builder, Program


def sum_and_product() -> Program:
    b = Builder("ff")
    return b.build(b("add", 0, 1), b("mul", 0, 1))


def test_every_result_has_the_shape_of_all_inputs() -> None:
    rng = np.random.default_rng()
    x, p = rng.standard_normal((3, 1, 7)), rng.standard_normal((5, 1))
    op = MultiPointwise(sum_and_product(), (FP32, FP16))
    assert op.output_count() == 2
    y, z = op.reference(x, p)
    assert (y.dtype, z.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(y, (x + p).astype(np.float32))
    np.testing.assert_array_equal(z, (x * p).astype(np.float16))


def test_an_input_may_be_a_result_twice() -> None:
    x, p = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 1, 1), np.float32)
    op = MultiPointwise(Program(("f", "f"), (), (0, 0, 1)), (FP32, INT32, FP32))
    y, z, q = op.reference(x, p)
    np.testing.assert_array_equal(y, np.broadcast_to(x, (4, 2, 3)))
    np.testing.assert_array_equal(z, y.astype(np.int32))
    np.testing.assert_array_equal(q, np.ones((4, 2, 3)))
    assert not any(np.shares_memory(a, x) for a in (y, z))


def test_results_of_several_kinds() -> None:
    b = Builder("fi")
    wide = b("to_f", 1)
    op = MultiPointwise(b.build(b("lt", 0, wide), b("mul", 0, wide)), (BOOL, INT8))
    x = np.array([0.5, 300.0, -300.0, np.nan], np.float32)
    less, product = op.reference(x, np.array([2, 1, 1, 1], np.int64))
    np.testing.assert_array_equal(less, [True, False, True, False])
    np.testing.assert_array_equal(product, np.array([1, 127, -128, 0], np.int8))


X = TensorType((3, 5), FP32)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            MultiPointwise(sum_and_product(), (FP32, FP32)),
            [X, TensorType((5,), INT32)],
            "inputs have kinds ('f', 'i'), the program expects ('f', 'f')",
        ),
        (
            MultiPointwise(sum_and_product(), (FP32,)),
            [X, X],
            "program has 2 outputs, 1 are stored; expected the same number, at least 1",
        ),
        (
            MultiPointwise(Program(("f",), (), ()), ()),
            [X],
            "program has 0 outputs, 0 are stored; expected the same number, at least 1",
        ),
        (
            MultiPointwise(sum_and_product(), (FP32, FP32)),
            [X, TensorType((4,), FP32)],
            "shapes [3,5], [4] do not broadcast to one shape",
        ),
    ],
)
def test_what_does_not_fit(op: MultiPointwise, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"MultiPointwise: {message}")):
        op.infer(*inputs)
