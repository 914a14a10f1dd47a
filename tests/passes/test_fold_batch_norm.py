from __future__ import annotations

import numpy as np
import pytest

from nrt.ir.ops import (
    Add,
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    Exp,
    MatMul,
    Pointwise,
    Relu,
)
from nrt.ir.pointwise import identity
from nrt.ir.value import Value
from nrt.passes.fold_batch_norm import FoldBatchNorm
from nrt.passes.pattern import matches

from .support import FOLDED_TOLERANCE, Net, apply, ops, refusals, sole


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_into_a_convolution(bias: bool, groups: int) -> None:
    net = Net()
    x = net.conv(net.input(2, 6, 7, 5), 9, groups=groups, bias=bias)
    net.out(net.norm(x))
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    assert ops(result.graph) == ["Conv"]
    conv = sole(result.graph, Conv)
    assert conv.name == "conv"
    assert conv.origin == ("/conv", "/bn")
    assert conv.inputs[2].shape == (9,)
    assert result.notes[-1].text == "folded into the weights of Conv 'conv'"


@pytest.mark.parametrize("groups", [1, 2])
def test_into_a_transposed_convolution(groups: int) -> None:
    net = Net()
    op = ConvTranspose((2, 2), (1, 0, 0, 1), groups=groups)
    x = net.op(op, net.input(1, 4, 5, 3), net.weight(4, 6 // groups, 3, 2))
    net.out(net.norm(x))
    assert ops(apply(net, FoldBatchNorm(), FOLDED_TOLERANCE).graph) == ["ConvTranspose"]


def test_into_a_one_dimensional_convolution() -> None:
    net = Net()
    x = net.op(Conv((1,), (1, 1), (1,)), net.input(2, 3, 11), net.weight(5, 3, 3))
    net.out(net.norm(x))
    assert ops(apply(net, FoldBatchNorm(), FOLDED_TOLERANCE).graph) == ["Conv"]


@pytest.mark.parametrize(
    "pool",
    [
        AveragePool((2, 2), (2, 2), (0, 0, 0, 0)),
        AveragePool((3, 2), (1, 2), (1, 0, 1, 1)),
        AveragePool((2, 2), (2, 2), (0, 0, 0, 0), ceil_mode=True, count_include_pad=True),
    ],
    ids=str,
)
def test_past_an_average_pooling(pool: AveragePool) -> None:
    net = Net()
    x = net.op(pool, net.conv(net.input(2, 6, 7, 5), 9, bias=True), name="pool")
    net.out(net.norm(x))
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    conv, after = result.graph.nodes
    assert (conv.name, conv.origin) == ("conv", ("/bn", "/conv"))
    assert (after.name, after.op, after.origin) == ("pool", pool, ("/pool", "/bn"))
    assert result.notes[-1].text == (
        "folded into the weights of Conv 'conv', before AveragePool 'pool'"
    )


def test_a_pooling_whose_zeros_count_or_that_ends_in_a_program() -> None:
    net = Net()
    pool = AveragePool((2, 2), (2, 2), (1, 1, 0, 0), count_include_pad=True)
    x = net.op(pool, net.conv(net.input(1, 3, 5, 5), 4), name="pool")
    assert refused(net, net.norm(x)) == [
        "AveragePool 'pool' counts zeros of its padding, which a shift would change"
    ]
    net = Net()
    pool = AveragePool((2, 2), (2, 2), (0, 0, 0, 0), epilogue=identity())
    x = net.op(pool, net.conv(net.input(1, 3, 4, 4), 4), name="pool")
    assert refused(net, net.norm(x)) == ["AveragePool 'pool' has an epilogue already"]


@pytest.mark.parametrize("trans_b", [False, True])
def test_into_a_matrix_product(trans_b: bool) -> None:
    net = Net()
    w = net.weight(*((7, 5) if trans_b else (5, 7)))
    net.out(net.norm(net.op(MatMul(trans_b=trans_b), net.input(3, 5), w)))
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    assert ops(result.graph) == ["MatMul", "Add"]


def test_before_a_convolution_it_is_one_pointwise() -> None:
    net = Net()
    x = net.norm(net.op(Exp(), net.input(2, 6, 7, 5)))
    net.out(net.conv(x, 4))
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    assert ops(result.graph) == ["Exp", "Pointwise", "Conv"]
    node = sole(result.graph, Pointwise)
    assert node.op.body.text() == "mul(x0, x1); add(r3, x2)"
    assert [v.shape for v in node.inputs[1:]] == [(6, 1, 1), (6, 1, 1)]


def test_factors_are_computed_in_double() -> None:
    net = Net()
    x = net.input(1, 1, 4, 4)
    numbers = [np.array([v], np.float32) for v in (1.0, 3.0, 1e4, 1e-4)]
    parameters = [net.const(v) for v in numbers]
    net.out(net.op(BatchNormalization(1e-5), x, *parameters))
    node = sole(FoldBatchNorm().run(net.graph.copy()).graph, Pointwise)
    scale, bias, mean, var = (v.astype(np.float64) for v in numbers)
    a = scale / np.sqrt(var + 1e-5)
    for value, wanted in zip(node.inputs[1:], (a, bias - mean * a), strict=True):
        assert value.constant is not None
        np.testing.assert_array_equal(value.constant.reshape(-1), wanted.astype(np.float32))


def test_a_shared_convolution_keeps_its_result() -> None:
    net = Net()
    x = net.conv(net.input(1, 3, 5, 5), 4)
    net.out(net.norm(x))
    net.out(net.op(Relu(), x), "z")
    result = apply(net, FoldBatchNorm(), FOLDED_TOLERANCE)
    assert sorted(ops(result.graph)) == ["Conv", "Pointwise", "Relu"]


def refused(net: Net, y: Value) -> list[str]:
    """Why not into the weights; the norm then becomes a Pointwise, so the pass itself moves on."""
    net.out(y)
    return [
        reason
        for rule in FoldBatchNorm().rules()
        for node in net.graph.nodes
        for match in matches(net.graph, rule.pattern, node)
        if (reason := match.blocked or rule.check(net.graph, match))
        and "are not constants" not in reason
    ]


def test_weights_that_are_no_constants() -> None:
    net = Net()
    w = net.input(4, 3, 3, 3, name="w")
    x = net.op(Conv(), net.input(1, 3, 5, 5), w)
    assert refused(net, net.norm(x)) == ["'w' of Conv 'conv' is not a constant"]


def test_an_epilogue_in_between() -> None:
    net = Net()
    x = net.op(Conv(epilogue=identity()), net.input(1, 3, 5, 5), net.weight(4, 3, 3, 3))
    assert refused(net, net.norm(x)) == ["Conv 'conv' has an epilogue already"]
    net = Net()
    x = net.op(MatMul(epilogue=identity()), net.input(2, 3), net.weight(3, 4))
    assert refused(net, net.norm(x)) == ["MatMul 'matmul' has an epilogue already"]


def test_a_batched_product() -> None:
    net = Net()
    x = net.op(MatMul(), net.input(2, 4, 3), net.weight(3, 5))
    assert refused(net, net.norm(x)) == [
        "MatMul 'matmul' is batched: its last dimension is not the channel"
    ]


def test_weights_that_would_overflow() -> None:
    net = Net()
    x = net.op(Conv(), net.input(1, 1, 3, 3), net.const(np.full((1, 1, 3, 3), 1e38, np.float32)))
    parameters = [net.const(np.array([v], np.float32)) for v in (1.0, 0.0, 0.0, 0.0)]
    y = net.op(BatchNormalization(1e-5), x, *parameters)
    assert refused(net, y) == ["the scaled weights of Conv 'conv' leave the range of fp32"]
    notes = FoldBatchNorm().run(net.graph.copy()).notes
    assert [n.text for n in notes] == ["became a multiplication and an addition"]


def test_parameters_that_are_no_constants() -> None:
    net = Net()
    x = net.input(2, 3, 4, 4)
    parameters = [net.const(net.random(3)) for _ in range(3)]
    scale = net.input(3, name="scale")
    y = net.op(BatchNormalization(), x, scale, *parameters[:2], net.const(np.ones(3, np.float32)))
    net.out(net.op(Add(), y, x))
    result = apply(net, FoldBatchNorm())
    assert not result.changed
    assert refusals(result.notes) == ["parameters scale are not constants"]
