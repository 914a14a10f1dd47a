from __future__ import annotations

import numpy as np
import pytest

from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Exp,
    MaxPool,
    Neg,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
)
from nrt.ir.value import Value
from nrt.passes.fold_pad import FoldPad, never_negative

from .support import Net, apply, ops, refusals, sole

EDGES = (0, 0, 1, 2, 0, 0, 2, 0)


def windowed(net: Net, op: Op, pad: Pad, x: Value | None = None) -> None:
    x = net.input(2, 3, 7, 6) if x is None else x
    y = net.op(pad, x)
    net.out(net.op(op, y, net.weight(4, 3, 3, 3)) if isinstance(op, Conv) else net.op(op, y))


def pool(pads: tuple[int, ...] = (0, 0, 0, 0), **options: bool) -> AveragePool:
    return AveragePool((3, 3), (2, 1), pads, **options)


def test_into_a_convolution() -> None:
    net = Net()
    windowed(net, Conv((2, 1), (0, 1, 1, 0)), Pad(EDGES))
    result = apply(net, FoldPad())
    assert ops(result.graph) == ["Conv"]
    assert sole(result.graph, Conv).op.pads == (1, 3, 3, 0)
    assert sole(result.graph, Conv).origin == ("/pad", "/conv")


def test_into_a_max_pool_with_minus_infinity() -> None:
    net = Net()
    windowed(net, MaxPool((3, 4), (2, 1), (0, 0, 0, 1)), Pad(EDGES, value=-np.inf))
    result = apply(net, FoldPad())
    assert sole(result.graph, MaxPool).op.pads == (1, 2, 2, 1)


def test_into_a_max_pool_of_what_is_never_negative() -> None:
    net = Net()
    x = net.op(Relu(), net.input(2, 3, 7, 6))
    windowed(net, MaxPool((3, 3), (2, 1), (0, 0, 0, 0)), Pad(EDGES), x)
    assert ops(apply(net, FoldPad()).graph) == ["Relu", "MaxPool"]


@pytest.mark.parametrize("counting", [False, True])
def test_into_an_average_pool_without_padding(counting: bool) -> None:
    net = Net()
    windowed(net, pool(count_include_pad=counting), Pad(EDGES))
    result = apply(net, FoldPad())
    op = sole(result.graph, AveragePool).op
    assert (op.pads, op.count_include_pad) == ((1, 2, 2, 0), True)


def test_into_an_average_pool_that_counts_its_padding() -> None:
    net = Net()
    windowed(net, pool((1, 0, 0, 1), count_include_pad=True), Pad(EDGES))
    assert sole(apply(net, FoldPad()).graph, AveragePool).op.pads == (2, 2, 2, 1)


MAX = MaxPool((3, 3), (2, 1), (0, 0, 0, 0))
REFUSED: tuple[tuple[Op, Pad, str], ...] = (
    (Conv(), Pad(EDGES, mode="reflect"), "has mode reflect; a window pads with a constant"),
    (Conv(), Pad((0, 0, -1, 0, 0, 0, 0, 1)), "crops: it has negative pads"),
    (Conv(), Pad((1, 0, 1, 0, 0, 0, 0, 1)), "pads the batch or the channels"),
    (Conv(), Pad(EDGES, value=1.5), "the padding is 1.5, a convolution pads with 0"),
    (MAX, Pad(EDGES), "the padding is 0 and the input may be negative: 0 could win the maximum"),
    (MAX, Pad(EDGES, value=2.0), "the padding is 2.0, a maximum ignores its own"),
    (
        MAX,
        Pad((0, 0, 3, 0, 0, 0, 0, 0), value=-np.inf),
        "a window would lie in the padding alone",
    ),
    (
        MaxPool((2, 2), (3, 3), (0, 0, 0, 0), ceil_mode=True),
        Pad((0, 0, 0, 0, 0, 0, 0, 1), value=-np.inf),
        "ceil_mode would drop a window: fp32[2,3,3,2] instead of fp32[2,3,3,3]",
    ),
    (pool(), Pad(EDGES, value=1.0), "the padding is 1.0, an average pool pads with 0"),
    (
        pool((1, 0, 0, 0)),
        Pad(EDGES),
        "the pool leaves its own padding out of the divisor, but counts the Pad's",
    ),
    (
        pool(ceil_mode=True),
        Pad(EDGES),
        "with ceil_mode the divisor of the last window would change",
    ),
)


@pytest.mark.parametrize(("op", "pad", "reason"), REFUSED, ids=[r for _, _, r in REFUSED])
def test_refused(op: Op, pad: Pad, reason: str) -> None:
    net = Net()
    windowed(net, op, pad)
    result = apply(net, FoldPad())
    assert not result.changed
    (text,) = refusals(result.notes)
    assert text.removeprefix("Pad 'pad' ") == reason


def test_a_pad_with_other_readers_stays_for_them() -> None:
    net = Net()
    y = net.op(Pad(EDGES), net.input(2, 3, 7, 6))
    net.out(net.op(Conv(), y, net.weight(4, 3, 3, 3)))
    net.out(net.op(Neg(), y), "z")
    result = apply(net, FoldPad())
    assert sorted(ops(result.graph)) == ["Conv", "Neg", "Pad"]


def test_never_negative() -> None:
    net = Net()
    x = net.input(1, 2, 3, 3)
    assert not never_negative(x)
    assert not never_negative(net.op(Neg(), x))
    assert not never_negative(net.op(Clip(-1.0, 6.0), x))
    assert not never_negative(net.op(Clip(None, 6.0), x))
    assert never_negative(net.op(Clip(0.0, None), x))
    assert never_negative(net.op(Exp(), x))
    positive = net.op(Reshape((1, 2, 9)), net.op(Relu(), x))
    assert never_negative(net.op(Concat(1), positive, net.const(np.ones((1, 1, 9), np.float32))))
    assert not never_negative(net.const(np.array([1.0, -1e-9], np.float32)))
    assert not never_negative(net.op(Add(), net.op(Sigmoid(), x), x))
    deep = net.op(Relu(), x)
    for _ in range(20):
        deep = net.op(MAX if min(deep.shape[2:]) >= 3 else Reshape(deep.shape), deep)
    assert not never_negative(deep)
