from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Cast,
    Clip,
    Concat,
    Div,
    Dropout,
    Exp,
    Expand,
    Identity,
    Max,
    MaxPool,
    Mul,
    Pad,
    Pointwise,
    Pow,
    Reduce,
    Reformat,
    Relu,
    Reshape,
    Resize,
    Slice,
    Split,
    Sub,
    Transpose,
)
from nrt.ir.pointwise import identity
from nrt.ir.value import NHWC, Value
from nrt.passes.remove_identities import RemoveIdentities

from .support import Net, apply, ops, sole

SHAPE = (2, 3, 1, 1)
NOTHING: tuple[Op, ...] = (
    Identity(),
    Dropout(),
    Reshape(SHAPE),
    Transpose((0, 1, 2, 3)),
    Slice((0, 0, 0, 0), SHAPE, (1, 1, 1, 1)),
    Pad((0,) * 8),
    Expand(SHAPE),
    Concat(1),
    Split(1, (3,)),
    Cast(FP32),
    Clip(None, None),
    Reformat(FP32),
    MaxPool((1, 1), (1, 1), (0, 0, 0, 0)),
    AveragePool((1, 1), (1, 1), (0, 0, 0, 0)),
    Resize(SHAPE, (1.0, 1.0, 1.0, 1.0), "linear"),
    Reduce("mean", (2, 3)),
    Reduce("max", (3,)),
    Pointwise(identity(), FP32),
    Max(),
)


@pytest.mark.parametrize("op", NOTHING, ids=lambda op: op.name)
def test_what_changes_nothing_goes(op: Op) -> None:
    net = Net()
    x = net.op(Exp(), net.input(*SHAPE))
    net.out(net.op(Relu(), net.op(op, x)))
    result = apply(net, RemoveIdentities())
    assert ops(result.graph) == ["Exp", "Relu"]
    assert result.notes[0].text == "returns its input"


SOMETHING: tuple[Op, ...] = (
    Transpose((1, 0, 2, 3)),
    Slice((1, 0, 0, 0), (-1, 4, 1, 1), (-1, 1, 1, 1)),
    Expand((5, 2, 4, 1, 1)),
    Split(1, (2, 2)),
    Cast(FP16),
    Clip(0.0, None),
    Reformat(FP16),
    MaxPool((1, 1), (1, 1), (0, 0, 1, 1)),
    AveragePool((1, 1), (2, 2), (0, 0, 0, 0)),
    Reduce("l1", (2, 3)),
    Reduce("sum_square", (2, 3)),
    Resize((2, 4, 1, 1), (1.0, 1.0, 1.5, 1.0)),
)


@pytest.mark.parametrize("op", SOMETHING, ids=lambda op: op.name)
def test_what_changes_something_stays(op: Op) -> None:
    net = Net()
    net.out(net.node(op, net.input(2, 4, 1, 1)).outputs[0])
    assert not apply(net, RemoveIdentities()).changed


def test_a_change_of_layout_stays() -> None:
    net = Net()
    y = net.op(Reformat(FP32), net.input(1, 2, 3, 4))
    net.graph.set_layout(y, NHWC)
    net.out(net.op(Relu(), y))
    assert not RemoveIdentities().run(net.graph.copy()).changed


NEUTRAL: tuple[tuple[Op, float, bool], ...] = (
    (Add(), 0.0, True),
    (Mul(), 1.0, True),
    (Sub(), 0.0, False),
    (Div(), 1.0, False),
    (Pow(), 1.0, False),
)


@pytest.mark.parametrize(("op", "number", "commutes"), NEUTRAL, ids=str)
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_neutral_operands(op: Op, number: float, commutes: bool, shape: tuple[int, ...]) -> None:
    for swap in (False, True):
        net = Net()
        x = net.op(Exp(), net.input(2, 3, 5))
        c = net.const(np.full(shape, number, np.float32))
        net.out(net.op(op, *((c, x) if swap else (x, c))))
        result = apply(net, RemoveIdentities())
        assert result.changed == (commutes or not swap)


def test_a_neutral_operand_that_broadcasts_stays() -> None:
    net = Net()
    net.out(net.op(Add(), net.input(3), net.const(np.zeros((2, 3), np.float32))))
    assert not apply(net, RemoveIdentities()).changed


def chain(*steps: Op) -> Callable[[Net, Value], Value]:
    def build(net: Net, x: Value) -> Value:
        for op in steps:
            x = net.op(op, x)
        return x

    return build


def test_reshapes_merge() -> None:
    net = Net()
    y = chain(Reshape((6, 5)), Reshape((3, 10)), Reshape((5, 6)))(net, net.input(2, 3, 5))
    net.out(net.op(Relu(), y))
    result = apply(net, RemoveIdentities())
    assert ops(result.graph) == ["Reshape", "Relu"]
    assert sole(result.graph, Reshape).origin == ("/reshape", "/reshape.1", "/reshape.2")


def test_transposes_merge_and_cancel() -> None:
    net = Net()
    y = chain(Transpose((2, 0, 1)), Transpose((1, 0, 2)))(net, net.input(2, 3, 5))
    net.out(net.op(Relu(), y))
    result = apply(net, RemoveIdentities())
    assert sole(result.graph, Transpose).op == Transpose((0, 2, 1))
    back = Net()
    y = chain(Transpose((2, 0, 1)), Transpose((1, 2, 0)))(back, back.input(2, 3, 5))
    back.out(back.op(Relu(), y))
    assert ops(apply(back, RemoveIdentities()).graph) == ["Relu"]


def test_an_inner_transpose_with_other_readers_lives_on() -> None:
    net = Net()
    inner = net.op(Transpose((2, 0, 1)), net.input(2, 3, 5))
    net.out(inner)
    net.out(net.op(Transpose((1, 0, 2)), inner), "z")
    result = apply(net, RemoveIdentities())
    assert [n.op for n in result.graph.nodes] == [Transpose((2, 0, 1)), Transpose((0, 2, 1))]


def test_moving_unit_dimensions_is_reshaping() -> None:
    net = Net()
    y = chain(Reshape((7, 1, 5)), Transpose((1, 0, 2)), Reshape((5, 7)))(net, net.input(7, 5))
    net.out(net.op(Relu(), y))
    result = apply(net, RemoveIdentities())
    assert [n.op for n in result.graph.nodes] == [Reshape((5, 7)), Relu()]


def test_an_output_may_become_an_input() -> None:
    net = Net()
    x = net.input(2, 3)
    net.out(net.op(Identity(), x))
    result = apply(net, RemoveIdentities())
    assert result.graph.outputs["y"] is result.graph.inputs[0]


# -- concatenations of concatenations --------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_concats_of_concats_are_one(slot: int) -> None:
    net = Net()
    x, y, z = (net.input(2, k, 5, name=f"x{k}") for k in (3, 4, 5))
    parts = [y, z]
    parts.insert(slot, net.op(Concat(-2), x, y, name="inner"))
    net.out(net.op(Concat(1), *parts, name="outer"))
    result = apply(net, RemoveIdentities())
    assert ops(result.graph) == ["Concat"]
    assert len(sole(result.graph, Concat).inputs) == 4
    assert set(sole(result.graph, Concat).origin) == {"/inner", "/outer"}


def test_the_inner_concat_lives_on_for_others() -> None:
    net = Net()
    x, y = net.input(2, 3, name="x"), net.input(2, 4, name="y")
    inner = net.op(Concat(1), x, y)
    net.out(net.op(Relu(), inner), "z")
    net.out(net.op(Concat(1), inner, x))
    result = apply(net, RemoveIdentities())
    assert sorted(len(n.inputs) for n in result.graph.nodes if n.op == Concat(1)) == [2, 3]


@pytest.mark.parametrize("why", ["axis", "output", "twice", "layout"])
def test_concats_that_stay_two(why: str) -> None:
    net = Net()
    x = net.input(2, 3, 4, 4)
    inner = net.op(Concat(1), x, net.op(Relu(), x), name="inner")
    other = net.op(Relu(), inner)
    if why == "output":
        net.out(inner, "inner")
    elif why == "layout":
        net.graph.set_layout(inner, NHWC)
    inputs = [inner, inner] if why == "twice" else [inner, other]
    net.out(net.op(Concat(2 if why == "axis" else 1), *inputs))
    result = apply(net, RemoveIdentities())
    assert not result.changed
    texts = {
        "axis": "Concat 'inner' before it joins along dimension 1, it along 2",
        "output": "the result of Concat 'inner' is an output of the graph, with memory of its own",
        "twice": "it joins the result of Concat 'inner' with itself",
        "layout": "Concat 'inner' before it has another layout",
    }
    assert [n.text for n in result.notes] == [texts[why]]
