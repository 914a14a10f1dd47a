"""VGG-19: Simonyan and Zisserman 2015, "Very deep convolutional networks".

python examples/vgg.py
"""

from __future__ import annotations

from show import show

import nrt
from nrt.frontend.weights import RandomWeights

__all__ = ["build"]

# Channels and number of 3x3 convolutions of each stage; a max pool follows each.
STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))


def build(
    batch: int = 1, *, classes: int = 1000, width: int = 64, hidden: int = 4096, size: int = 224
) -> nrt.Network:
    """VGG-19 for images ``input[batch, 3, size, size]``; ``size`` is a multiple of 32."""
    net = nrt.Network("vgg19")
    weights = RandomWeights()
    x = net.input("input", (batch, 3, size, size))
    gain = 1.0  # the image has not been through a ReLU
    for stage, (factor, count) in enumerate(STAGES, 1):
        filters = factor * width
        for index in range(1, count + 1):
            w = weights.conv(filters, x.shape[1], 3, gain=gain)
            x = net.conv2d(x, w, weights.bias(filters), padding=1, name=f"conv{stage}_{index}")
            x = net.relu(x, name=f"relu{stage}_{index}")
            gain = 2.0
        x = net.max_pool2d(x, 2, name=f"pool{stage}")
        # The largest of four has about twice the second moment of one.
        gain = 1.0
    x = net.flatten(x, name="flatten")
    for index in (6, 7):
        w = weights.linear(hidden, x.shape[1], gain=gain)
        x = net.relu(net.linear(x, w, weights.bias(hidden), name=f"fc{index}"), name=f"relu{index}")
        x = net.dropout(x, name=f"drop{index}")
        gain = 2.0
    x = net.linear(x, weights.linear(classes, hidden, gain=gain), weights.bias(classes), name="fc8")
    net.output(x, "output")
    return net


if __name__ == "__main__":
    show(build())
