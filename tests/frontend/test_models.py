"""The built-in ResNets and the random weights they use."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.errors import GraphError
from nrt.frontend.models import resnet
from nrt.frontend.weights import RandomWeights
from nrt.ir.evaluate import evaluate
from nrt.ir.verify import verify

RNG = np.random.default_rng()


def parameters(net) -> int:
    """As papers count them: batch normalization has two per channel, not four."""
    graph = net.graph
    total = sum(c.constant.size for c in graph.constants)
    return total - sum(
        2 * n.inputs[1].shape[0] for n in graph.nodes if n.op.name == "BatchNormalization"
    )


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (50, 25_557_032)])
def test_number_of_parameters(depth, count) -> None:
    assert parameters(resnet(depth)) == count


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_activations_stay_near_unit_variance(depth) -> None:
    net = resnet(depth, 2, width=8, size=64, classes=10)
    graph = net.graph
    verify(graph)
    names = [n.output.name for n in graph.nodes if n.op.name in ("Conv", "Add")]
    x = RNG.standard_normal((2, 3, 64, 64)).astype(np.float32)
    found = evaluate(graph, {"input": x}, until=names)
    spread = [float(found[name].std()) for name in names]
    assert min(spread) > 0.1
    assert max(spread) < 12


def test_shapes_and_names() -> None:
    net = resnet(50, 3, width=8, size=96, classes=7)
    assert net.graph.inputs[0].shape == (3, 3, 96, 96)
    assert net.graph.outputs["output"].shape == (3, 7)
    assert net.graph.node("layer3.5.conv2").op.strides == (1, 1)
    assert net.graph.node("layer3.0.conv2").op.strides == (2, 2)
    assert net.graph.node("layer3.0.downsample").op.strides == (2, 2)


def test_the_same_seed_gives_the_same_network() -> None:
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    results = [
        evaluate(resnet(18, width=4, size=32, seed=seed).graph, {"input": x})["output"]
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_an_unknown_depth() -> None:
    with pytest.raises(GraphError, match="no ResNet has depth 19; expected 18, 34, 50, 101, 152"):
        resnet(19)


def test_variance_of_weights() -> None:
    weights = RandomWeights(1)
    assert weights.conv(64, 32, (3, 5)).shape == (64, 32, 3, 5)
    assert weights.conv(64, 64, 3).std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.05)
    assert weights.conv(64, 64, 3, gain=1, scale=3).std() == pytest.approx(3 / 24, rel=0.05)
    assert weights.linear(100, 400).std() == pytest.approx(0.05, rel=0.05)
    assert weights.bias(10_000).std() == pytest.approx(0.1, rel=0.05)
    scale, bias, mean, var = weights.batch_norm(500, scale=0.5)
    assert scale.mean() == pytest.approx(0.5, rel=0.05)
    assert var.min() > 0.7
    assert {a.dtype for a in (scale, bias, mean, var)} == {np.dtype(np.float32)}
