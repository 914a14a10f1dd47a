from __future__ import annotations

import numpy as np

from nrt.ir.ops import Add, Exp, Expand, MatMul, Mul, Reformat, Reshape, Split, Transpose
from nrt.ir.value import NHWC
from nrt.passes.fold_constants import FoldConstants

from .support import Net, apply, ops, refusals, sole


def test_a_chain_of_constants_is_one() -> None:
    net = Net()
    x, w = net.input(3, 5), net.const(net.random(7, 5), "w")
    scaled = net.op(Mul(), net.op(Transpose((1, 0)), w), net.const(np.float32(0.5)))
    net.out(net.op(MatMul(), x, scaled))
    result = apply(net, FoldConstants())
    assert ops(result.graph) == ["MatMul"]
    folded = sole(result.graph, MatMul).inputs[1].constant
    assert folded is not None
    np.testing.assert_array_equal(folded, w.constant.T * np.float32(0.5))
    assert len(result.graph.constants) == 1


def test_every_output_of_a_split() -> None:
    net = Net()
    pieces = net.node(Split(0, (2, 3)), net.const(net.random(5, 3))).outputs
    x = net.input(3)
    net.out(net.op(Add(), x, pieces[0]))
    net.out(net.op(Add(), x, pieces[1]), "z")
    assert ops(apply(net, FoldConstants()).graph) == ["Add", "Add"]


def test_a_constant_output_is_kept_under_its_name() -> None:
    net = Net()
    net.input(1)
    net.out(net.op(Exp(), net.const(net.random(3))))
    result = apply(net, FoldConstants())
    assert len(result.graph) == 0
    assert result.graph.outputs["y"].is_constant


def test_the_layout_of_a_reformat_stays() -> None:
    net = Net()
    w = net.op(Reformat(net.input(1).dtype), net.const(net.random(1, 2, 3, 4)))
    net.graph.set_layout(w, NHWC)
    net.out(w)
    folded = FoldConstants().run(net.graph.copy()).graph
    assert folded.outputs["y"].layout == NHWC


def test_growth_beyond_the_limit_is_refused() -> None:
    net = Net()
    big = net.op(Expand((64, 5)), net.const(net.random(5)))
    net.out(net.op(Add(), net.input(64, 5), big))
    result = apply(net, FoldConstants(limit=1000))
    assert ops(result.graph) == ["Expand", "Add"]
    assert refusals(result.notes) == ["the result has 1280 bytes, the inputs 20, the limit is 1000"]
    assert ops(apply(net, FoldConstants(limit=1280)).graph) == ["Add"]


def test_a_result_that_is_no_larger_than_its_input_always_folds() -> None:
    net = Net()
    net.out(net.op(Add(), net.input(64, 5), net.op(Reshape((64, 5)), net.const(net.random(320)))))
    assert ops(apply(net, FoldConstants(limit=0)).graph) == ["Add"]
