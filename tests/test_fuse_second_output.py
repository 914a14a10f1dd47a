"""Networks of pre-activations through the whole builder, on either target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nrt
from nrt.builder import build
from nrt.compiled import compile
from nrt.ir.evaluate import evaluate
from nrt.trial import relative_error

NAME = "fuse-second-output"
LIMIT = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}
RNG = np.random.default_rng()


def weights(*shape: int) -> np.ndarray:
    fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
    return (RNG.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def network(channels: int, size: int, batch: int = 2, kernel: int = 3) -> nrt.Network:
    """Three blocks: a scale, a ReLU, a convolution, and the sum goes on as it is.

    Two of the ReLUs are second results, the last is part of the pooling.
    """
    net = nrt.Network("preactivated")
    y = net.input("image", (batch, channels, size, size))
    for block in range(3):
        scale = 1 + 0.1 * weights(1, channels, 1, 1)
        z = net.relu(net.mul(y, scale, name=f"norm{block}"), name=f"relu{block}")
        w = weights(channels, channels, kernel, kernel)
        y = net.add(
            net.conv2d(z, w, padding=kernel // 2, name=f"conv{block}"), y, name=f"sum{block}"
        )
    net.output(net.global_avg_pool(net.relu(y, name="last"), name="pool"), "features")
    net.output(y, "sum")
    return net


def feed(net: nrt.Network) -> dict[str, np.ndarray]:
    (image,) = net.graph.inputs
    return {"image": RNG.standard_normal(image.shape).astype(np.float32)}


def test_what_is_fused_is_decided_and_right_on_the_cpu(tmp_path: Path) -> None:
    net = network(12, 7)
    built = build(net, target="cpu", opt_level=1, timing_cache=tmp_path / "times.json")
    decided = [n for n in built.passes.notes if n.pass_name == NAME and " against " in n.text]
    assert decided
    data = feed(net)
    wanted = evaluate(net.graph, data)
    for off in (frozenset(), frozenset({NAME})):
        engine = compile(net, target="cpu", opt_level=0, disabled=off)
        two = [layer for layer in engine.plan.layers if len(layer.outputs) == 2]
        assert len(two) == (0 if off else 2)
        found = engine.run(data)
        for name, array in wanted.items():
            assert relative_error(found[name], array) <= LIMIT["fp32"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_on_the_gpu(precision: str, kernel: int) -> None:
    """At level 0 every site is fused by estimate."""
    net = network(64, 13, kernel=kernel)
    data = feed(net)
    wanted = evaluate(net.graph, data)
    options = {}
    if precision == "int8":
        options["calibration"] = nrt.calibrate(net, [data], target="cuda", method="minmax")
    apart = frozenset({"fuse-conv-prologue"})
    engine = compile(
        net, target="cuda", precision=precision, opt_level=0, disabled=apart, **options
    )
    assert any(len(layer.outputs) == 2 for layer in engine.plan.layers)
    for _ in range(2):
        found = engine.run(data)
        for name, array in wanted.items():
            assert relative_error(found[name], array) <= LIMIT[precision]
