"""A network with a fold, a fusion, a refusal and a node that vanishes."""

from __future__ import annotations

from typing import Any

import numpy as np

import nrt

Array = np.ndarray[Any, np.dtype[Any]]


def network() -> nrt.Network:
    """Conv, BatchNorm, ReLU; a Conv whose result is read twice; a classifier behind a Dropout."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    net = nrt.Network("small")
    x = net.input("image", (2, 3, 9, 7))
    y = net.conv2d(x, weights(8, 3, 3, 3), padding=1, name="stem.conv")
    y = net.batch_norm(y, *(np.abs(weights(8)) + 0.5 for _ in range(4)), name="stem.bn")
    y = net.relu(y, name="stem.relu")
    z = net.conv2d(y, weights(8, 8, 1, 1), name="block.conv")
    z = net.add(net.relu(z, name="block.relu"), z, name="block.add")
    z = net.flatten(net.global_avg_pool(z, name="pool"), name="flatten")
    z = net.dropout(z, name="drop")
    net.output(net.linear(z, weights(11, 8), name="head.fc"), "scores")
    return net


def image() -> Array:
    """Fresh input for it."""
    return np.random.default_rng().standard_normal((2, 3, 9, 7)).astype(np.float32)
