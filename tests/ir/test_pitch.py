"""Which tensors may be pieces of larger ones, and where Splits and Concats share memory."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import Concat, Identity, Relu, Reshape, Slice, Split, Transpose
from nrt.ir.pitch import home_concat, join_of, margins, reads_pieces
from nrt.ir.value import NHWC, Node, Value


class Net:
    def __init__(self) -> None:
        self.graph = Graph("net")

    def input(self, *shape: int) -> Value:
        return self.graph.add_input(f"x{len(self.graph.inputs)}", shape, FP32)

    def node(self, op: Op, *inputs: Value) -> Node:
        return self.graph.add_node(op, inputs)

    def op(self, op: Op, *inputs: Value) -> Value:
        return self.node(op, *inputs).output

    def out(self, value: Value) -> Value:
        self.graph.set_output(f"y{len(self.graph.outputs)}", value)
        return value

    def used(self, value: Value) -> Value:
        self.out(self.op(Relu(), value))
        return value


# -- readers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ops", "wanted"),
    [
        ([], True),
        ([Reshape((2, 5, 3, 4))], True),
        ([Reshape((10, 12))], True),
        ([Reshape((2, 60))], False),  # merges rows across the gap
        ([Reshape((2, 5, 3, 4)), Transpose((0, 2, 1, 3))], True),
        ([Transpose((1, 0, 2)), Reshape((5, 24))], False),
        ([Identity(), Reshape((120,))], False),
        ([Slice((0, 0, 0), (2, 5, 8), (1, 1, 2)), Reshape((10, 4))], True),
        ([Slice((0, 1, 0), (2, 3, 12), (1, 1, 1)), Reshape((4, 12))], False),
        ([Slice((0, 4, 0), (2, -1, 12), (1, -1, 1)), Reshape((120,))], True),  # copied anyway
    ],
    ids=str,
)
def test_readers_of_a_piece_along_the_last_dimension(ops: list[Op], wanted: bool) -> None:
    net = Net()
    x = y = net.op(Relu(), net.input(2, 5, 12))
    for op in ops:
        y = net.op(op, y)
    net.used(y)
    assert reads_pieces(net.graph, x, 2) == wanted


def test_layout_says_where_the_gaps_are() -> None:
    net = Net()
    x = net.op(Relu(), net.input(2, 4, 3, 5))
    net.used(net.op(Reshape((2, 4, 15)), x))
    assert reads_pieces(net.graph, x, 1)  # row-major: a gap after each image
    net.graph.set_layout(x, NHWC)
    assert reads_pieces(net.graph, x, 1)  # a gap after each pixel
    assert not reads_pieces(net.graph, x, 3)  # a gap after each line


def test_outputs_and_empty_tensors_are_no_pieces() -> None:
    net = Net()
    x = net.used(net.op(Relu(), net.input(2, 12)))
    assert reads_pieces(net.graph, x, 1)
    net.out(net.op(Reshape((24,)), x))
    assert not reads_pieces(net.graph, x, 1)
    y = net.out(net.op(Relu(), net.input(2, 12)))
    assert not reads_pieces(net.graph, y, 1)
    assert not reads_pieces(net.graph, net.used(net.op(Relu(), net.input(0, 12))), 1)


@pytest.mark.parametrize("sizes", [(4, 8), (12,)], ids=str)
def test_pieces_of_a_piece(sizes: tuple[int, ...]) -> None:
    net = Net()
    x = net.op(Relu(), net.input(2, 12))
    *first, last = net.node(Split(1, sizes), x).outputs
    for value in first:
        net.used(value)
    net.used(net.op(Reshape((2 * sizes[-1],)), last))
    assert not reads_pieces(net.graph, x, 1)


# -- concatenations --------------------------------------------------------------------------------


def test_a_concat_is_at_home_in_the_longest_that_holds_its_inputs_in_a_row() -> None:
    net = Net()
    a, b, c, d = (net.input(2, 4) for _ in range(4))
    inner = net.node(Concat(1), b, c)
    middle = net.node(Concat(-1), a, b, c)
    outer = net.node(Concat(1), a, b, c, d)
    others = [net.node(Concat(1), b, a, c), net.node(Concat(0), a, b, c, d, a)]
    for node in (inner, middle, outer, *others):
        net.used(node.output)
    assert home_concat(net.graph, inner) == (outer, 1)
    assert home_concat(net.graph, middle) == (outer, 0)
    assert home_concat(net.graph, outer) == (outer, 0)
    assert home_concat(net.graph, others[0]) == (others[0], 0)
    net.out(outer.output)  # which lies where the caller says
    assert home_concat(net.graph, inner) == (middle, 1)


def join(
    sizes: tuple[int, ...], order: str, width: int = 8
) -> tuple[Net, Node, Node, tuple[Value, ...]]:
    """A Split into pieces 0, 1, … and a Concat of pieces and others (``x``), in ``order``."""
    net = Net()
    source = net.op(Relu(), net.input(2, sum(sizes)))
    split = net.node(Split(1, sizes), source)
    values = [
        net.op(Relu(), net.input(2, width)) if c == "x" else split.outputs[int(c)] for c in order
    ]
    concat = net.node(Concat(-1), *values)
    net.used(concat.output)
    for value in split.outputs:
        net.used(value)
    return net, split, concat, split.outputs


@pytest.mark.parametrize(
    ("sizes", "order", "position", "beside"),
    [
        ((4, 2, 8), "2xx", -6, (6, 0)),
        ((4, 2, 8), "12x", -4, (4, 0)),
        ((4, 2, 8), "xx0", 16, (0, 10)),
        ((4, 2, 8), "x01", 8, (0, 8)),
        ((4, 2, 8), "012x", 0, (0, 0)),
        ((4, 2, 8), "x012x", 8, (0, 0)),
        ((4, 2, 8), "x012", 8, (0, 0)),
        ((4, 2, 8), "21x", -6, (6, 0)),  # piece 1 is copied
    ],
    ids=str,
)
def test_pieces_at_an_end_share_memory_with_a_concat(
    sizes: tuple[int, ...], order: str, position: int, beside: tuple[int, int]
) -> None:
    net, split, concat, _ = join(sizes, order)
    assert join_of(net.graph, split) == (concat, position)
    assert margins(net.graph, concat) == beside


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ((4, 2, 8), "x2x"),  # others on both sides
        ((4, 2, 8), "0xx"),  # what follows piece 0 is not what follows it in the Split
        ((4, 2, 8), "xx2"),
        ((4, 2, 8), "1xx"),
        ((4, 2, 8), "2x2"),  # cannot be in two places
        ((4, 60, 8), "2x"),  # 64 beside 16
    ],
    ids=str,
)
def test_other_orders_do_not(sizes: tuple[int, ...], order: str) -> None:
    net, split, concat, _ = join(sizes, order)
    assert join_of(net.graph, split) is None
    assert margins(net.graph, concat) == (0, 0)


def test_two_splits_may_share_both_ends() -> None:
    net = Net()
    splits = [
        net.node(Split(1, sizes), net.op(Relu(), net.input(2, sum(sizes))))
        for sizes in ((4, 8), (16, 2))
    ]
    concat = net.node(Concat(1), splits[0].outputs[1], splits[1].outputs[0])
    net.used(concat.output)
    assert [join_of(net.graph, s) for s in splits] == [(concat, -4), (concat, 8)]
    assert margins(net.graph, concat) == (4, 2)


def test_memory_that_must_be_dense_is_not_shared() -> None:
    net, split, concat, pieces = join((4, 2, 8), "2xx")
    assert join_of(net.graph, split) is not None
    net.used(net.op(Reshape((48,)), concat.output))
    assert join_of(net.graph, split) is None
    # All pieces in a row lie inside of it, whoever reads it.
    net, split, concat, pieces = join((4, 2, 8), "x012")
    net.out(concat.output)
    assert join_of(net.graph, split) == (concat, 8)
    del pieces


@pytest.mark.parametrize("change", ["other reader", "output", "layout", "axis"])
def test_what_keeps_a_source_out_of_a_concat(change: str) -> None:
    net = Net()
    source = net.op(Relu(), net.input(2, 12, 1, 8))
    split = net.node(Split(1, (4, 8)), source)
    axis = 2 if change == "axis" else 1
    concat = net.node(Concat(axis), split.outputs[1], net.op(Relu(), net.input(2, 8, 1, 8)))
    net.used(concat.output)
    net.used(split.outputs[0])
    if change == "other reader":
        net.used(source)
    elif change == "output":
        net.out(source)
    elif change == "layout":
        net.graph.set_layout(source, NHWC)
    assert join_of(net.graph, split) is None
    assert np.prod(source.shape) == 192
