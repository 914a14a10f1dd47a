"""Networks of which one layer breaks a precision."""

from __future__ import annotations

from typing import Any

import numpy as np

import nrt

Array = np.ndarray[Any, np.dtype[Any]]

SHAPE = (2, 16, 6, 5)


def images(rng: np.random.Generator, count: int = 2) -> list[Array]:
    """Batches for them."""
    return [rng.random(SHAPE, np.float32) for _ in range(count)]


def _weights(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def overflowing(rng: np.random.Generator) -> nrt.Network:
    """``conv2`` gives about 3e5, beyond fp16, of weights and inputs within it."""
    gains = (1, 30, 1e4, 1e-2, 1e-3)
    layers = [_weights(rng, 16, 16, 3, 3) * np.float32(gain) for gain in gains]
    return _chain("overflowing", layers, rng)


def coarse(rng: np.random.Generator) -> nrt.Network:
    """``conv2`` has such large weights for a channel of zeros that int8 loses the others."""
    layers = [_weights(rng, 16, 16, 3, 3) for _ in range(5)]
    layers[1][3] = 0
    layers[2][:, 3] = 1e5
    return _chain("coarse", layers, rng)


def sound(rng: np.random.Generator) -> nrt.Network:
    """Nothing is broken: tensors ``relu0`` to ``relu4`` of layers ``conv0`` to ``conv4``."""
    return _chain("sound", [_weights(rng, 16, 16, 3, 3) for _ in range(5)], rng)


def _chain(name: str, layers: list[Array], rng: np.random.Generator) -> nrt.Network:
    net = nrt.Network(name)
    x = net.input("image", SHAPE)
    for k, weights in enumerate(layers):
        x = net.relu(net.conv2d(x, weights, padding=1, name=f"conv{k}"), name=f"relu{k}")
    x = net.flatten(net.global_avg_pool(x, name="pool"), name="flatten")
    net.output(net.linear(x, _weights(rng, 7, 16), name="head"), "scores")
    return net


def branching(rng: np.random.Generator) -> nrt.Network:
    """A residual, two pools, a Concat, a depthwise convolution; nothing is broken."""
    net = nrt.Network("branching")
    x = net.input("image", (2, 16, 8, 8))
    x = net.relu(net.conv2d(x, _weights(rng, 32, 16, 3, 3), padding=1, name="stem"))
    y = net.relu(net.conv2d(x, _weights(rng, 32, 32, 3, 3), padding=1, name="first"))
    y = net.conv2d(y, _weights(rng, 32, 32, 3, 3), padding=1, name="second")
    x = net.relu(net.add(x, y, name="sum"), name="sum.relu")
    left = net.relu(net.conv2d(x, _weights(rng, 16, 32, 1, 1), name="left"))
    right = net.relu(net.conv2d(x, _weights(rng, 48, 32, 3, 3), padding=1, name="right"))
    x = net.concat([left, right], axis=1, name="both")
    x = net.max_pool2d(x, 2, name="max")
    x = net.relu(net.conv2d(x, _weights(rng, 64, 64, 1, 1), name="wide"))
    x = net.relu(net.conv2d(x, _weights(rng, 64, 1, 3, 3) * 3, padding=1, groups=64, name="depth"))
    x = net.relu(net.conv2d(x, _weights(rng, 32, 64, 1, 1), name="point"))
    x = net.flatten(net.global_avg_pool(x, name="mean"), name="flatten")
    net.output(net.linear(x, _weights(rng, 7, 32), name="head"), "scores")
    return net
