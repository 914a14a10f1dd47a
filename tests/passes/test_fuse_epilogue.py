from __future__ import annotations

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.epilogue import MAX_EXTRAS
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import FP8E4M3, FP16, FP32, FP64, INT8, INT32, DType
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    Cast,
    Conv,
    ConvTranspose,
    Equal,
    Gelu,
    LeakyRelu,
    MatMul,
    MaxPool,
    Mul,
    Neg,
    PRelu,
    Relu,
    Sub,
    Tanh,
    Where,
)
from nrt.lowering import lower
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue

from .support import FP16_TOLERANCE, Net, apply, ops, refusals, sole

CONV = FuseConvEpilogue()


@pytest.mark.parametrize("transposed", [False, True])
def test_bias_residual_and_activation(transposed: bool) -> None:
    net = Net()
    x = net.input(2, 3, 7, 5)
    if transposed:
        y = net.op(ConvTranspose(), x, net.weight(3, 4, 3, 3), net.const(net.random(4)), name="c")
    else:
        y = net.conv(x, 4, bias=True, name="c")
    skip = net.input(*y.shape, name="skip")
    net.out(net.op(Relu(), net.op(Add(), y, skip)))
    result = apply(net, CONV)
    (node,) = result.graph.nodes
    assert node.op.epilogue.text() == "add(x0, x1); add(r3, x2); max(r4, 0.0)"
    assert [v.shape for v in node.inputs[2:]] == [(4, 1, 1), y.shape]
    assert node.name == "c"
    assert node.origin == ("/c", "/add", "/relu")
    assert [n.text for n in result.notes] == [
        "the bias became the first step of its epilogue",
        "took in Add 'add': add(x0, x1)",
        "took in Relu 'relu': max(x0, 0.0)",
    ]


def test_a_bias_that_is_computed() -> None:
    net = Net()
    bias = net.op(Tanh(), net.input(4, name="b"))
    net.out(net.op(Conv(), net.input(1, 3, 5, 5), net.weight(4, 3, 3, 3), bias))
    assert sorted(ops(apply(net, CONV).graph)) == ["Conv", "Reshape", "Tanh"]


CHAIN: tuple[Op, ...] = (LeakyRelu(0.2), Gelu(), Tanh(), Neg())


def test_long_chains_and_constants() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 7)
    y = net.op(Mul(), net.const(np.float32(0.25)), y)
    y = net.op(Sub(), y, net.const(net.random(1, 7, 1, 1)))
    y = net.op(PRelu(), y, net.const(net.random(7, 1, 1)))
    for op in CHAIN:
        y = net.op(op, y)
    net.out(y)
    (node,) = apply(net, CONV).graph.nodes
    # One-element constants are instructions, channel vectors have one shape.
    assert [v.shape for v in node.inputs[2:]] == [(7, 1, 1), (7, 1, 1)]


def test_the_same_residual_twice_is_read_once() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    skip = net.input(1, 3, 6, 5, name="skip")
    net.out(net.op(Mul(), net.op(Add(), y, skip), skip))
    (node,) = apply(net, CONV).graph.nodes
    assert len(node.inputs) == 3


def test_squaring_reads_the_accumulator_twice() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    net.out(net.op(Mul(), y, y))
    (node,) = apply(net, CONV).graph.nodes
    assert node.op.epilogue.text() == "mul(x0, x0)"


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("late_first", [False, True])
def test_the_later_producer_takes_the_join(swap: bool, late_first: bool) -> None:
    net = Net()
    x = net.input(1, 3, 6, 5)

    def late() -> object:
        return net.conv(net.op(Relu(), net.conv(x, 4)), 4, name="late")

    def early() -> object:
        return net.conv(x, 4, 1, name="early")

    made = [f() for f in ((late, early) if late_first else (early, late))]
    net.out(net.op(Add(), *(made[::-1] if swap else made)))  # type: ignore[arg-type]
    result = apply(net, CONV)
    assert len(result.graph.node("late").inputs) == 3
    assert len(result.graph.node("early").inputs) == 2


def test_an_output_that_is_used_elsewhere() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    net.out(net.op(Add(), net.op(MaxPool((3, 3), (1, 1), (1, 1, 1, 1)), y), y))
    result = apply(net, CONV)
    assert not result.changed
    assert refusals(result.notes) == [
        "output 'conv' of Conv 'conv' is used elsewhere too, by MaxPool 'maxpool'"
    ]


def test_an_output_of_the_graph() -> None:
    net = Net()
    y = net.out(net.conv(net.input(1, 3, 6, 5), 3))
    net.out(net.op(Relu(), y), "z")
    result = apply(net, CONV)
    assert refusals(result.notes) == ["output 'conv' of Conv 'conv' is an output of the graph"]


def test_broadcasting_that_enlarges() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    net.out(net.op(Add(), y, net.input(2, 3, 6, 5, name="batch")))
    assert refusals(apply(net, CONV).notes) == [
        "broadcasting enlarges the output of Conv 'conv' from [1, 3, 6, 5] to [2, 3, 6, 5]"
    ]


def test_results_that_are_no_floats() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    net.out(net.op(Equal(), y, net.input(1, 3, 6, 5, name="other")))
    assert refusals(apply(net, CONV).notes) == [
        "the result of Equal 'equal' is bool, an epilogue computes floats"
    ]
    net = Net()
    a, b = (net.input(3, 3, name=n, dtype=INT32) for n in "ab")
    net.out(net.op(Neg(), net.op(MatMul(), a, b)))
    assert refusals(apply(net, FuseMatMulEpilogue()).notes) == [
        "the result of MatMul 'matmul' is int32, an epilogue computes floats"
    ]


def test_double_precision_does_not_mix() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    net.out(net.op(Cast(FP64), y))
    assert refusals(apply(net, CONV).notes) == ["mixes fp64 with fp32"]


def test_limits() -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 6, 5), 3)
    for index in range(3):
        y = net.op(Add(), y, net.input(1, 3, 6, 5, name=f"s{index}"))
    net.out(net.op(Relu(), y))
    result = apply(net, FuseConvEpilogue(max_inputs=2))
    assert refusals(result.notes) == ["the fused program would read 3 tensors, the limit is 2"]
    assert ops(result.graph) == ["Conv", "Add", "Relu"]
    result = apply(net, FuseConvEpilogue(max_instructions=4))
    assert refusals(result.notes) == ["the fused program would have 5 instructions, the limit is 4"]


@pytest.mark.parametrize("product", ["conv", "matmul"])
def test_no_more_operands_than_the_limit(product: str) -> None:
    net = Net()
    if product == "conv":
        y = net.conv(net.input(1, 3, 6, 5), 3)
    else:
        y = net.op(MatMul(), net.input(7, 8), net.weight(8, 5))
    limit = (CONV if product == "conv" else FuseMatMulEpilogue()).max_inputs
    assert limit <= MAX_EXTRAS
    for index in range(limit + 1):
        y = net.op(Add(), y, net.input(*y.shape, name=f"s{index}"))
    net.out(y)
    result = apply(net, CONV if product == "conv" else FuseMatMulEpilogue())
    first = result.graph.nodes[0]
    assert len(first.inputs) == 2 + limit
    assert ops(result.graph)[1] == "Add"
    for arch in ("sm_80", "sm_90a"):
        (task, _) = lower(result.graph).tasks
        able = [v.name for v, refusal in variants_for(task.problem, ARCHS[arch]) if not refusal]
        assert len(able) > 1


def test_the_output_type_of_a_cast_is_kept() -> None:
    net = Net()
    y = net.op(Cast(FP16), net.conv(net.input(1, 3, 6, 5), 3))
    net.out(y)
    (node,) = apply(net, CONV).graph.nodes
    assert node.op.out_dtype is FP16
    net = Net()
    y = net.op(Cast(INT8), net.conv(net.input(1, 3, 6, 5), 3))
    net.out(y)
    assert not apply(net, CONV).changed


@pytest.mark.parametrize(
    ("op", "dtype", "cast", "out"),
    [
        (MatMul(out_dtype=FP32), INT8, None, FP32),
        (MatMul(out_dtype=FP32), INT8, FP16, FP16),
        (MatMul(), FP8E4M3, None, None),
        (MatMul(out_dtype=FP32), FP8E4M3, FP16, None),
        (MatMul(out_dtype=FP32), FP8E4M3, FP8E4M3, FP8E4M3),
        (MatMul(tf32=True), FP32, None, None),
    ],
)
def test_quantized_products_take_in_their_scale(
    op: MatMul, dtype: DType, cast: DType | None, out: DType | None
) -> None:
    net = Net()
    a = net.input(5, 7, dtype=dtype)
    w = net.const(net.rng.integers(-9, 9, (7, 3)).astype(dtype.numpy))
    y = net.op(op, a, w)
    y = net.op(Mul(), y, net.const(np.asarray(0.25, y.dtype.numpy)))
    net.out(y if cast is None else net.op(Cast(cast), y))
    (node,) = apply(net, FuseMatMulEpilogue(), FP16_TOLERANCE).graph.nodes
    assert node.op.out_dtype is out
    assert node.op.tf32 == op.tf32
    assert node.output.dtype is net.graph.outputs["y"].dtype


def test_int32_sums_are_no_floats() -> None:
    net = Net()
    w = net.const(net.rng.integers(-9, 9, (7, 3)).astype(np.int8))
    y = net.op(MatMul(), net.input(5, 7, dtype=INT8), w, name="product")
    net.out(net.op(Cast(FP32), y))
    result = apply(net, FuseMatMulEpilogue())
    assert not result.changed
    assert refusals(result.notes) == [
        "the result of MatMul 'product' is int32, an epilogue computes floats"
    ]


def test_a_mask_of_another_kind_is_an_extra() -> None:
    net = Net()
    y = net.op(MatMul(trans_b=True), net.input(2, 5, 3), net.input(2, 7, 3, name="k"))
    mask = net.op(Equal(), net.input(1, 5, 7, name="i", dtype=INT32), net.const(np.int32(1)))
    net.out(net.op(Where(), mask, y, net.const(np.float32(-1e9))))
    result = apply(net, FuseMatMulEpilogue())
    assert sorted(ops(result.graph)) == ["Equal", "MatMul"]
    assert sole(result.graph, MatMul).op.epilogue.inputs == ("f", "b")


def test_a_batched_product_with_vectors() -> None:
    net = Net()
    y = net.op(MatMul(), net.input(2, 5, 3), net.weight(3, 6))
    y = net.op(Add(), y, net.const(net.random(6)))
    y = net.op(Gelu(True), y)
    net.out(net.op(Add(), y, net.input(2, 5, 6, name="skip")))
    result = apply(net, FuseMatMulEpilogue())
    assert ops(result.graph) == ["MatMul"]
    row = Net()
    row.out(row.op(Tanh(), row.op(MatMul(), row.input(3), row.weight(3, 6))))
    assert ops(apply(row, FuseMatMulEpilogue()).graph) == ["MatMul"]
