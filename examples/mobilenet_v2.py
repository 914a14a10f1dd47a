"""MobileNetV2: Sandler et al. 2018, "Inverted residuals and linear bottlenecks".

python examples/mobilenet_v2.py
"""

from __future__ import annotations

from show import show

import nrt
from nrt.frontend.layer import Tensor
from nrt.frontend.weights import RandomWeights

__all__ = ["build"]

# Expansion, channels, blocks, stride of the first block (table 2 of the paper).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# A stage sums at most four branches into one sum: half of each keeps its variance near 1.
BRANCH = 0.5


class InvertedResiduals:
    """Writes inverted residual blocks into a network."""

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
        groups: int = 1,
        gain: float = 2.0,
        scale: float = 1.0,
        activate: bool = True,
    ) -> Tensor:
        """Convolution, batch normalization and, mostly, ReLU6."""
        w = self.weights.conv(filters, x.shape[1] // groups, kernel, gain=gain)
        y = self.net.conv2d(x, w, stride=stride, padding=kernel // 2, groups=groups, name=name)
        parameters = self.weights.batch_norm(filters, scale=scale)
        y = self.net.batch_norm(y, *parameters, name=f"{name}.bn")
        return self.net.relu6(y, name=f"{name}.relu6") if activate else y

    def block(self, x: Tensor, filters: int, expansion: int, stride: int, name: str) -> Tensor:
        """Expand, filter each channel, project; the shortcut joins the narrow ends."""
        wide = expansion * x.shape[1]
        y = x
        if expansion != 1:
            # Projections are linear: their output has zero mean and its full variance.
            y = self.conv(y, wide, 1, f"{name}.expand", gain=1.0)
        y = self.conv(y, wide, 3, f"{name}.depthwise", stride=stride, groups=wide)
        joins = stride == 1 and filters == x.shape[1]
        scale = BRANCH if joins else 1.0
        y = self.conv(y, filters, 1, f"{name}.project", scale=scale, activate=False)
        return self.net.add(x, y, name=f"{name}.add") if joins else y


def build(batch: int = 1, *, classes: int = 1000, size: int = 224) -> nrt.Network:
    """MobileNetV2 of width 1 for images ``input[batch, 3, size, size]``."""
    net = nrt.Network("mobilenet_v2")
    blocks = InvertedResiduals(net)
    x = net.input("input", (batch, 3, size, size))
    x = blocks.conv(x, 32, 3, "stem", stride=2, gain=1.0)
    for stage, (expansion, filters, count, stride) in enumerate(STAGES, 1):
        for index in range(count):
            step = stride if index == 0 else 1
            x = blocks.block(x, filters, expansion, step, f"stage{stage}.{index}")
    x = blocks.conv(x, 1280, 1, "head", gain=1.0)
    x = net.flatten(net.global_avg_pool(x, name="avgpool"), name="flatten")
    x = net.dropout(x, name="drop")
    weights = blocks.weights
    x = net.linear(x, weights.linear(classes, 1280), weights.bias(classes), name="fc")
    net.output(x, "output")
    return net


if __name__ == "__main__":
    show(build())
