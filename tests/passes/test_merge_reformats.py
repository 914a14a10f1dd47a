from __future__ import annotations

import pytest

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, DType
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    Conv,
    Exp,
    MatMul,
    Neg,
    Pointwise,
    Reformat,
    Relu,
    Reshape,
    Softmax,
    Transpose,
)
from nrt.ir.pointwise import identity
from nrt.ir.value import NHWC
from nrt.passes.merge_reformats import MergeReformats

from .support import FP16_TOLERANCE, Net, apply, ops, refusals, sole

MERGE = MergeReformats()


def test_a_cast_and_a_layout_are_one() -> None:
    net = Net()
    y = net.op(Reformat(FP16), net.op(Reformat(FP16), net.input(1, 3, 6, 5)))
    net.graph.set_layout(y, NHWC)
    net.out(net.op(Softmax(1), y))
    result = apply(net, MERGE)
    node = sole(result.graph, Reformat)
    assert (node.output.dtype, node.output.layout) == (FP16, NHWC)


def test_there_and_back_is_nothing() -> None:
    net = Net()
    x = net.op(Softmax(), net.input(2, 7))
    net.out(net.op(Softmax(), net.op(Reformat(FP32), net.op(Reformat(FP16), x))))
    assert ops(apply(net, MERGE, FP16_TOLERANCE).graph) == ["Softmax", "Softmax"]


def test_the_middle_lives_on_for_others() -> None:
    net = Net()
    half = net.op(Reformat(FP16), net.input(2, 7))
    net.out(half)
    net.out(net.op(Softmax(), net.op(Reformat(FP32), half)), "z")
    assert sorted(ops(apply(net, MERGE, FP16_TOLERANCE).graph)) == ["Reformat", "Softmax"]


@pytest.mark.parametrize("kind", ["conv", "matmul", "elementwise", "pointwise"])
def test_a_producer_stores_the_type_itself(kind: str) -> None:
    net = Net()
    if kind == "conv":
        y = net.conv(net.input(1, 3, 6, 5), 4)
    elif kind == "matmul":
        y = net.op(MatMul(), net.input(4, 3), net.weight(3, 5))
    else:
        x = net.input(4, 3)
        y = net.op(Exp(), x)
        if kind == "pointwise":
            y = net.op(Pointwise(Neg().program(("f",)), FP32), y)
    net.out(net.op(Reformat(FP16), y))
    result = apply(net, MERGE, FP16_TOLERANCE)
    last = result.graph.nodes[-1]
    assert not isinstance(last.op, Reformat)
    assert last.output.dtype is FP16
    assert result.notes[-1].kind == "fired"
    assert "stores fp16 itself" in result.notes[-1].text


@pytest.mark.parametrize(("dtype", "out"), [(FP16, None), (FP8E4M3, FP8E4M3), (FP32, FP32)])
def test_products_of_fp8_are_stored_as_asked(dtype: DType, out: DType | None) -> None:
    net = Net()
    w = net.const(net.random(7, 3).astype(FP8E4M3.numpy))
    y = net.op(MatMul(out_dtype=BF16), net.input(5, 7, dtype=FP8E4M3), w)
    net.out(net.op(Reformat(dtype), y))
    result = apply(net, MERGE, 6e-2)
    assert sole(result.graph, MatMul).op.out_dtype is out
    assert result.graph.outputs["y"].dtype is dtype


def test_a_rounding_to_fp8_stays() -> None:
    net = Net()
    x = net.op(Pointwise(identity("f"), FP8E4M3), net.input(5, 7))
    net.out(net.op(Reformat(FP32), x))
    result = apply(net, MERGE, 0.0)
    assert ops(result.graph) == ["Pointwise", "Reformat"]


def test_a_type_of_its_own_is_no_option() -> None:
    net = Net()
    y = net.op(Conv(out_dtype=FP16), net.input(1, 3, 6, 5), net.weight(4, 3, 3, 3))
    net.out(net.op(Reformat(FP32), y))
    result = apply(net, MERGE, FP16_TOLERANCE)
    assert sole(result.graph, Conv).op.out_dtype is None


def test_a_producer_with_other_readers() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 4)
    net.out(net.op(Reformat(FP16), y))
    net.out(net.op(Softmax(), y), "z")
    result = apply(net, MERGE)
    assert not result.changed
    assert refusals(result.notes) == [
        "output 'conv' of Conv 'conv' is used elsewhere too, by Softmax 'softmax'"
    ]


def test_a_change_of_layout_needs_its_launch() -> None:
    net = Net()
    y = net.op(Reformat(FP16), net.op(Relu(), net.input(1, 3, 6, 5)))
    net.graph.set_layout(y, NHWC)
    net.out(net.op(Softmax(1), y))
    assert not apply(net, MERGE).changed


@pytest.mark.parametrize("view", [Reshape((5, 4)), Transpose((1, 0))], ids=str)
def test_a_cast_moves_before_a_view(view: Op) -> None:
    net = Net()
    y = net.op(MatMul(), net.input(4, 3), net.weight(3, 5))
    y = net.op(view, y)
    if isinstance(view, Transpose):
        net.graph.set_layout(y, (1, 0))
    z = net.op(Reformat(FP16), y)
    net.graph.set_layout(z, y.layout)
    net.out(z)
    result = apply(net, MERGE, FP16_TOLERANCE)
    assert ops(result.graph) == ["MatMul", view.name]
    assert sole(result.graph, MatMul).op.out_dtype is FP16


def test_equal_ones_are_shared() -> None:
    net = Net()
    x = net.input(4, 3)
    a, b, c = (net.op(Reformat(d), x) for d in (FP16, FP16, FP32))
    net.out(net.op(Add(), net.op(Softmax(), a), net.op(Softmax(), b)))
    net.out(c, "z")
    result = apply(net, MERGE)
    assert ops(result.graph).count("Reformat") == 2
    assert result.notes[0].text == "Reformat 'reformat' is the same"
