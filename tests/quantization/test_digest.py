"""Hashes of models and data: what they see and what they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP32, INT64
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, Gather, Relu, Reshape, Sigmoid
from nrt.quantization import DataDigest, model_digest


def network(batch: int = 1, **changes: Any) -> Graph:
    graph = Graph("n")
    x = graph.add_input(changes.get("input", "x"), (batch, 3, 5, 5), FP32)
    weights = np.arange(81, dtype=np.float32).reshape(3, 3, 3, 3)
    weights[0, 0, 0, 0] += changes.get("more", 0)
    w = graph.add_constant("w", weights)
    conv = graph.add_node(
        Conv(pads=changes.get("pads", (1, 1, 1, 1))), [x, w], name=changes.get("name", "conv")
    )
    y = graph.add_node(changes.get("act", Relu()), [conv.output])
    z = graph.add_node(Reshape((batch, 75)), [y.output])
    rows = graph.add_constant("rows", np.arange(batch))
    assert rows.dtype is INT64
    graph.set_output(changes.get("output", "y"), graph.add_node(Gather(), [z.output, rows]).output)
    return graph


def test_shapes_do_not_count() -> None:
    assert model_digest(network(1)) == model_digest(network(8))
    assert len(model_digest(network())) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1e-3},
        {"name": "conv2"},
        {"act": Sigmoid()},
        {"input": "image"},
        {"output": "scores"},
    ],
    ids=str,
)
def test_all_else_does(change: dict[str, Any]) -> None:
    assert model_digest(network(**change)) != model_digest(network())


def digest(batches: list[dict[str, np.ndarray[Any, Any]]]) -> DataDigest:
    found = DataDigest()
    for batch in batches:
        found.add(batch)
    return found


def test_order_and_batches_do_not_count(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 4)).astype(np.float32)
    y = rng.integers(0, 9, (6, 2))
    whole = digest([{"x": x, "y": y}])
    order = rng.permutation(6)
    parts = [{"y": y[k : k + 1], "x": x[k : k + 1]} for k in order]
    assert digest(parts).hexdigest() == whole.hexdigest()
    assert digest(parts).samples == whole.samples == 6
    assert len(whole.hexdigest()) == 64


def test_elements_types_and_names_count(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 4)).astype(np.float32)
    changed = x.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], np.float32(9))
    others = [
        {"x": changed},
        {"x": x.astype(np.float64)},
        {"z": x},
        {"x": x[:2]},
        {"x": np.concatenate([x, x[:1]])},
        {"x": x.reshape(3, 2, 2)},
    ]
    hashes = {digest([o]).hexdigest() for o in [{"x": x}, *others]}
    assert len(hashes) == 7


def test_arrays_without_common_samples_are_one() -> None:
    x = np.ones((2, 3))
    found = digest([{"x": x, "n": np.array(4)}, {"x": x, "n": np.ones(5)}])
    assert found.samples == 2
