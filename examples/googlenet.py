"""GoogLeNet: Szegedy et al. 2015, "Going deeper with convolutions".

Nine inception modules: four branches of different kernel sizes, joined along the channels.

    python examples/googlenet.py
"""

from __future__ import annotations

from show import show

import nrt
from nrt.frontend.layer import Tensor
from nrt.frontend.weights import RandomWeights

__all__ = ["build"]

# Channels of 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection (table 1 of the paper).
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("4a", "5a")


class Inception:
    """Writes inception modules into a network."""

    def __init__(self, net: nrt.Network) -> None:
        self.net = net
        self.weights = RandomWeights()

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        gain: float = 2.0,
    ) -> Tensor:
        """Convolution, bias and ReLU."""
        w = self.weights.conv(filters, x.shape[1], kernel, gain=gain)
        b = self.weights.bias(filters)
        y = self.net.conv2d(x, w, b, stride=stride, padding=kernel // 2, name=name)
        return self.net.relu(y, name=f"{name}.relu")

    def module(self, x: Tensor, name: str, widths: tuple[int, ...]) -> Tensor:
        """Four branches and their concatenation."""
        one, reduce3, three, reduce5, five, projection = widths
        pooled = self.net.max_pool2d(x, 3, stride=1, padding=1, name=f"{name}.pool")
        branches = [
            self.conv(x, one, 1, f"{name}.1x1"),
            self.conv(self.conv(x, reduce3, 1, f"{name}.3x3_reduce"), three, 3, f"{name}.3x3"),
            self.conv(self.conv(x, reduce5, 1, f"{name}.5x5_reduce"), five, 5, f"{name}.5x5"),
            # The largest of nine has about three times the second moment of one.
            self.conv(pooled, projection, 1, f"{name}.pool_proj", gain=0.7),
        ]
        return self.net.concat(branches, axis=1, name=name)


def build(batch: int = 1, *, classes: int = 1000, size: int = 224) -> nrt.Network:
    """GoogLeNet for images ``input[batch, 3, size, size]``, without the auxiliary classifiers."""
    net = nrt.Network("googlenet")
    inception = Inception(net)
    x = net.input("input", (batch, 3, size, size))
    x = inception.conv(x, 64, 7, "conv1", stride=2, gain=1.0)
    x = net.max_pool2d(x, 3, stride=2, ceil_mode=True, name="pool1")
    x = net.lrn(x, 5, name="norm1")
    x = inception.conv(x, 64, 1, "conv2_reduce", gain=0.7)
    x = inception.conv(x, 192, 3, "conv2")
    x = net.lrn(x, 5, name="norm2")
    x = net.max_pool2d(x, 3, stride=2, ceil_mode=True, name="pool2")
    for name, widths in MODULES.items():
        if name in POOL_BEFORE:
            x = net.max_pool2d(x, 3, stride=2, ceil_mode=True, name=f"pool{name[0]}")
        x = inception.module(x, name, widths)
    x = net.flatten(net.global_avg_pool(x, name="avgpool"), name="flatten")
    x = net.dropout(x, name="drop")
    weights = inception.weights
    x = net.linear(x, weights.linear(classes, x.shape[1]), weights.bias(classes), name="fc")
    net.output(x, "output")
    return net


if __name__ == "__main__":
    show(build())
