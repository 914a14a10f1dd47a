"""The text form, character by character."""

from __future__ import annotations

import numpy as np

from nrt.dtypes import FP16, FP32
from nrt.ir import NHWC, Graph, to_text
from nrt.ir.ops import Cast, Conv, MaxPool, Mul, Pad, Pointwise, Reshape, Split
from nrt.ir.pointwise import Builder
from nrt.ir.text import node_text, op_text, programs_text


def test_a_graph() -> None:
    g = Graph("tiny")
    x = g.add_input("x", (1, 3, 8, 8), FP16)
    w = g.add_constant("w", np.zeros((4, 3, 3, 3), np.float16))
    bias = g.add_constant("b", np.zeros((4, 1, 1), np.float16))
    b = Builder("ff")
    relu = b.build(b("max", b("add", 0, 1), b.const(0.0)))
    conv = g.add_node(
        Conv(strides=(2, 2), pads=(1, 1, 1, 1), epilogue=relu),
        [x, w, bias],
        name="conv",
        origin=["/conv/Conv", "/relu/Relu"],
    ).output
    g.set_layout(conv, NHWC)
    left, right = g.add_node(Split(1, (1, 3)), [conv], output_names=["left", "right"]).outputs
    g.set_layout(left, (3, 0, 1, 2))
    scale = g.add_constant("scale", np.float32(0.5).reshape(()))
    wide = g.add_node(Cast(FP32), [right], name="wide").output
    g.set_output("y", g.add_node(Mul(), [wide, scale], name="mul", origin=["/mul"]).output)
    g.set_output("left", left)
    assert to_text(g) == (
        "graph tiny (%x: fp16[1,3,8,8]) -> (y: %mul, left: %left)\n"
        "  %w: fp16[4,3,3,3] = const\n"
        "  %b: fp16[4,1,1] = const\n"
        "  %scale: fp32[] = const 0.5\n"
        "  %conv: fp16[1,4,4,4]{nhwc} = Conv(%x, %w, %b; strides=(2, 2), pads=(1, 1, 1, 1), "
        "epilogue=[add(x0, x1); max(r2, 0.0)]) # /conv/Conv, /relu/Relu\n"
        "  %left: fp16[1,1,4,4]{3,0,1,2}, %right: fp16[1,3,4,4] = "
        "Split(%conv; axis=1, sizes=(1, 3))\n"
        "  %wide: fp32[1,3,4,4] = Cast(%right; to=fp32)\n"
        "  %mul: fp32[1,3,4,4] = Mul(%wide, %scale) # /mul\n"
    )
    assert to_text(g.copy()) == to_text(g)
    assert node_text(g.node("wide")) == "%wide: fp32[1,3,4,4] = Cast(%right; to=fp32)"


def test_only_attributes_that_are_not_the_default() -> None:
    assert op_text(Conv()) == "Conv()"
    assert op_text(MaxPool((2, 2), (2, 2), (0, 0, 0, 0), ceil_mode=True)) == (
        "MaxPool(kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), ceil_mode=True)"
    )
    assert op_text(Pad((1, 0), "edge")) == "Pad(pads=(1, 0), mode=edge)"
    assert op_text(Reshape(())) == "Reshape(shape=())"


def test_programs_of_an_op_for_reports() -> None:
    b = Builder("f")
    exp, relu = b.build(b("exp", 0)), Builder("f")
    end = relu.build(relu("max", 0, relu.const(0.0)))
    assert programs_text(Conv()) == ""
    assert programs_text(Conv(epilogue=end)) == "[max(x0, 0.0)]"
    assert programs_text(Conv(prologue=exp, epilogue=end)) == ("[prologue: exp(x0) | max(x0, 0.0)]")
    assert programs_text(Pointwise(exp, FP32)) == "[exp(x0)]"
    assert op_text(Conv(prologue=exp)) == "Conv(prologue=[exp(x0)])"
