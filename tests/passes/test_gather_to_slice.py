from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import INT64
from nrt.ir.ops import Gather, Relu, Slice
from nrt.passes.gather_to_slice import GatherToSlice

from .support import Net, apply, ops, refusals, sole


@pytest.mark.parametrize(
    ("indices", "axis", "start", "end"),
    [
        (2, 0, 2, 3),
        (-1, 1, 4, 5),
        ([1], 2, 1, 2),
        ([[1, 2, 3]], 1, 1, 4),
        ([-2, -1], -1, 5, 7),
        ([0, 1, 2], 0, 0, 3),
    ],
)
def test_consecutive_indices_are_a_slice(indices: Any, axis: int, start: int, end: int) -> None:
    net = Net()
    x = net.op(Relu(), net.input(3, 5, 7))
    net.out(net.op(Gather(axis), x, net.const(np.array(indices, np.int64))))
    result = apply(net, GatherToSlice())
    assert ops(result.graph) == ["Relu", "Slice", "Reshape"]
    op = sole(result.graph, Slice).op
    assert (op.starts[axis % 3], op.ends[axis % 3]) == (start, end)
    assert result.notes[0].text == f"takes {start}:{end} of dimension {axis % 3}"


@pytest.mark.parametrize("indices", [[0, 2], [1, 0], [1, 1]])
def test_others_stay(indices: list[int]) -> None:
    net = Net()
    net.out(net.op(Gather(0), net.input(3, 5), net.const(np.array(indices))))
    result = apply(net, GatherToSlice())
    assert refusals(result.notes) == ["the indices do not follow each other"]


@pytest.mark.parametrize("indices", [[], [2, 3], [-4]])
def test_indices_out_of_range_stay_an_error(indices: list[int]) -> None:
    net = Net()
    net.out(net.op(Gather(0), net.input(3, 5), net.const(np.array(indices, np.int64))))
    result = GatherToSlice().run(net.graph.copy())
    assert refusals(result.notes) == ["the indices are empty or out of range for dimension 0 of 3"]
    assert not result.changed


def test_indices_that_are_computed_stay() -> None:
    net = Net()
    net.out(net.op(Gather(0), net.input(5, 2), net.input(2, name="i", dtype=INT64)))
    assert not apply(net, GatherToSlice()).changed
