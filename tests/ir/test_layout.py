from __future__ import annotations

import itertools

import numpy as np
import pytest

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.layout import (
    is_row_major,
    is_view,
    normalized,
    reshaped_layout,
    same_memory,
    transposed_layout,
)
from nrt.ir.op import Array
from nrt.ir.ops import Relu, Reshape, Transpose
from nrt.ir.value import NHWC, Layout


def memory(array: Array, layout: Layout | None) -> Array:
    """The elements in the order in which they lie in memory."""
    return array.transpose(layout or range(array.ndim)).reshape(-1)


def numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 1, 5), (0, 3, 2, 2)]
)
def test_same_memory_is_the_same_memory(shape: tuple[int, ...]) -> None:
    orders = [None, *itertools.permutations(range(4))]
    array = numbered(shape)
    for a, b in itertools.product(orders, orders):
        assert same_memory(shape, a, b) == np.array_equal(memory(array, a), memory(array, b))


def test_other_names_of_row_major() -> None:
    assert normalized((2, 3, 1, 1), NHWC) is None
    assert normalized((2, 1, 4, 5), NHWC) is None
    assert normalized((2, 3, 1, 5), NHWC) == NHWC
    graph = Graph()
    for shape, expected in (((2, 3, 1, 1), True), ((2, 3, 4, 1), False)):
        value = graph.add_input(f"x{shape[2]}", shape, FP32)
        graph.set_layout(value, NHWC)
        assert is_row_major(value) is expected


@pytest.mark.parametrize("perm", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("layout", [None, *itertools.permutations(range(3))])
def test_a_transpose_in_its_free_layout_moves_nothing(
    perm: tuple[int, ...], layout: Layout | None
) -> None:
    array = numbered((2, 3, 5))
    free = transposed_layout(layout, perm)
    np.testing.assert_array_equal(memory(array.transpose(perm), free), memory(array, layout))


RESHAPES: tuple[tuple[tuple[int, ...], Layout | None, tuple[int, ...], Layout | None], ...] = (
    ((2, 3, 4, 5), NHWC, (2, 3, 20), (0, 2, 1)),
    ((2, 3, 20), (0, 2, 1), (2, 3, 4, 5), NHWC),
    ((2, 6, 4, 5), NHWC, (2, 2, 3, 20), (0, 3, 1, 2)),
    ((2, 3, 4, 5), NHWC, (2, 60), None),
    ((2, 3, 4, 5), NHWC, (6, 20), None),
    ((2, 3, 1, 1), NHWC, (2, 3), (0, 1)),
    ((2, 3, 4), None, (6, 1, 4), (0, 1, 2)),
    ((2, 3), None, (3, 2), (0, 1)),
    ((2, 3), (1, 0), (3, 2), None),
    ((1, 1), None, (1,), (0,)),
    ((2, 3), None, (5,), None),
    ((0, 3), None, (3, 0), None),
)


@pytest.mark.parametrize(("shape", "layout", "new", "expected"), RESHAPES)
def test_a_reshape_in_its_free_layout_moves_nothing(
    shape: tuple[int, ...], layout: Layout | None, new: tuple[int, ...], expected: Layout | None
) -> None:
    free = reshaped_layout(shape, layout, new)
    assert free == expected
    if free is not None:
        array = numbered(shape)
        np.testing.assert_array_equal(memory(array.reshape(new), free), memory(array, layout))


def test_views() -> None:
    graph = Graph()
    x = graph.add_input("x", (2, 3, 4, 5), FP32)
    graph.set_layout(x, NHWC)
    turned = graph.add_node(Transpose((0, 2, 3, 1)), [x])
    assert is_view(turned)
    assert is_view(graph.add_node(Reshape((2, 60)), [turned.output]))
    assert not is_view(graph.add_node(Reshape((2, 60)), [x]))
    assert not is_view(graph.add_node(Transpose((1, 0, 2, 3)), [x]))
    assert not is_view(graph.add_node(Relu(), [x]))
    row = graph.add_node(Reshape((2, 3, 20)), [x])
    assert not is_view(row)
    graph.set_layout(row.output, (0, 2, 1))
    assert is_view(row)
