"""A pointwise function of one's own: traced once, fused into the convolution before it.

python examples/extend_pointwise.py
"""

from __future__ import annotations

import math

import numpy as np

import nrt
from nrt.builder import build

__all__ = ["network", "relu6", "soft_gate"]

relu6 = nrt.pointwise("ReLU6", lambda x: min(max(x, 0), 6))


@nrt.pointwise("SoftGate")
def soft_gate(x, gate, alpha=0.2):
    """Two inputs and an attribute; a condition is written with `nrt.where`."""
    open_ = nrt.where(gate > 0, math.tanh(gate), alpha * gate)
    return x * open_


def network() -> nrt.Network:
    """A convolution with both functions behind it."""
    rng = np.random.default_rng(0)
    net = nrt.Network("pointwise")
    x = net.input("x", (1, 8, 16, 16))
    y = net.conv2d(x, rng.standard_normal((8, 8, 3, 3)) / 9, padding=1, name="conv")
    y = net.apply(relu6, y, name="relu6")
    net.output(net.apply("SoftGate", y, x, alpha=0.1, name="gate"), "y")
    return net


if __name__ == "__main__":
    for layer in build(network(), target="cpu", opt_level=0).plan.layers:
        print(layer.op, layer.origins)
