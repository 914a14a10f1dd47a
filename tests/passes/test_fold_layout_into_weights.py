from __future__ import annotations

import pytest

from nrt.ir.ops import Add, MatMul, Relu, Reshape
from nrt.passes.assign_layout import AssignLayout
from nrt.passes.fold_layout_into_weights import FoldLayoutIntoWeights

from .support import FOLDED_TOLERANCE, Net, apply, launches, ops, refusals

FOLD = FoldLayoutIntoWeights()


def laid_out(net: Net) -> Net:
    AssignLayout().run(net.graph)
    return net


@pytest.mark.parametrize("trans_b", [False, True])
def test_the_rows_of_the_weights_move(trans_b: bool) -> None:
    net = Net()
    x = net.op(Reshape((2, 120)), net.conv(net.input(2, 3, 6, 5), 4))
    w = net.weight(*((7, 120) if trans_b else (120, 7)))
    net.out(net.op(Add(), net.op(MatMul(trans_b=trans_b), x, w), net.const(net.random(7))))
    assert launches(laid_out(net).graph) == ["Reformat", "Conv", "Reformat", "MatMul", "Add"]
    result = apply(net, FOLD, FOLDED_TOLERANCE)
    assert ops(result.graph) == ["Reformat", "Conv", "Transpose", "Reshape", "MatMul", "Add"]
    assert launches(result.graph) == ["Reformat", "Conv", "MatMul", "Add"]
    assert result.notes[0].text == "its weights are permuted instead of 'conv'"


def test_another_reader_of_the_flat_image() -> None:
    net = Net()
    x = net.op(Reshape((2, 120)), net.conv(net.input(2, 3, 6, 5), 4))
    net.out(net.op(MatMul(), x, net.weight(120, 7)))
    net.out(net.op(Relu(), x), "z")
    assert refusals(apply(laid_out(net), FOLD).notes) == [
        "output 'reshape' of Reshape 'reshape' is used elsewhere too, by Relu 'relu'"
    ]


def test_another_reshape() -> None:
    net = Net()
    x = net.op(Reshape((4, 60)), net.conv(net.input(2, 3, 6, 5), 4))
    net.out(net.op(MatMul(), x, net.weight(60, 7)))
    assert refusals(apply(laid_out(net), FOLD).notes) == [
        "[2, 4, 6, 5] is reshaped to [4, 60], not flattened to a matrix"
    ]


def test_another_product() -> None:
    net = Net()
    x = net.op(Reshape((2, 120)), net.conv(net.input(2, 3, 6, 5), 4))
    net.out(net.op(MatMul(trans_a=True), x, net.weight(2, 7)))
    assert refusals(apply(laid_out(net), FOLD).notes) == [
        "the flattened image is not the left operand of a plain matrix product"
    ]
