"""ResNet, built in Python: the network of ``nrt demo``, of the examples and of the documentation.

He et al. 2016, "Deep residual learning for image recognition", in the common variant whose
bottleneck blocks stride in the 3x3 convolution. Weights are random but keep unit variance, so that
precision and speed behave as in a trained network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nrt.errors import GraphError
from nrt.frontend.network import Network, Tensor
from nrt.frontend.weights import RandomWeights

__all__ = ["resnet"]

# depth -> (blocks per stage, whether blocks are bottlenecks)
_DEPTHS: Mapping[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def resnet(
    depth: int = 18,
    batch: int = 1,
    *,
    classes: int = 1000,
    width: int = 64,
    size: int = 224,
    seed: int = 0,
) -> Network:
    """A ResNet for images ``input[batch, 3, size, size]`` with ``output[batch, classes]``.

    Args:
        depth: 18, 34, 50, 101 or 152 layers.
        batch: images at once.
        classes: outputs.
        width: channels of the first stage; 64 in the paper, less for a quick test.
        size: height and width of the images.
        seed: of the weights.

    Raises:
        GraphError: there is no ResNet of that depth.
    """
    if depth not in _DEPTHS:
        raise GraphError(f"no ResNet has depth {depth}; expected {', '.join(map(str, _DEPTHS))}")
    stages, bottleneck = _DEPTHS[depth]
    net = Network(f"resnet{depth}")
    blocks = _Blocks(net, RandomWeights(seed), branch=1 / math.sqrt(sum(stages)))
    x = net.input("input", (batch, 3, size, size))
    # The image has not been through a ReLU: half the gain keeps its variance.
    x = blocks.conv(x, width, 7, stride=2, gain=1.0, name="conv1")
    x = net.relu(x, name="relu")
    x = net.max_pool2d(x, 3, stride=2, padding=1, name="maxpool")
    for stage, count in enumerate(stages):
        for index in range(count):
            name = f"layer{stage + 1}.{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            build = blocks.bottleneck if bottleneck else blocks.basic
            x = build(x, width * 2**stage, stride, name)
    x = net.flatten(net.global_avg_pool(x, name="avgpool"), name="flatten")
    weights = blocks.weights
    x = net.linear(x, weights.linear(classes, x.shape[1]), weights.bias(classes), name="fc")
    net.output(x, "output")
    return net


class _Blocks:
    """Writes residual blocks into a network.

    Args:
        net: the network.
        weights: source of its weights.
        branch: scale of a residual branch; ``1 / sqrt(blocks)`` keeps their sum's variance at 1.
    """

    def __init__(self, net: Network, weights: RandomWeights, branch: float) -> None:
        self.net = net
        self.weights = weights
        self.branch = branch

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel: int,
        *,
        name: str,
        stride: int = 1,
        gain: float = 2.0,
        scale: float = 1.0,
    ) -> Tensor:
        """Convolution and batch normalization."""
        weight = self.weights.conv(filters, x.shape[1], kernel, gain=gain)
        y = self.net.conv2d(x, weight, stride=stride, padding=kernel // 2, name=name)
        return self.net.batch_norm(
            y, *self.weights.batch_norm(filters, scale=scale), name=f"{name}.bn"
        )

    def basic(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        """Two 3x3 convolutions beside a shortcut."""
        y = self.conv(x, width, 3, stride=stride, name=f"{name}.conv1")
        y = self.net.relu(y, name=f"{name}.relu1")
        y = self.conv(y, width, 3, scale=self.branch, name=f"{name}.conv2")
        return self._join(x, y, stride, name)

    def bottleneck(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        """1x1, 3x3 and 1x1 convolutions beside a shortcut; the last has four times the width."""
        y = self.conv(x, width, 1, name=f"{name}.conv1")
        y = self.net.relu(y, name=f"{name}.relu1")
        y = self.conv(y, width, 3, stride=stride, name=f"{name}.conv2")
        y = self.net.relu(y, name=f"{name}.relu2")
        y = self.conv(y, 4 * width, 1, scale=self.branch, name=f"{name}.conv3")
        return self._join(x, y, stride, name)

    def _join(self, x: Tensor, y: Tensor, stride: int, name: str) -> Tensor:
        if stride != 1 or x.shape[1] != y.shape[1]:
            x = self.conv(x, y.shape[1], 1, stride=stride, name=f"{name}.downsample")
        return self.net.relu(self.net.add(y, x, name=f"{name}.add"), name=f"{name}.relu")
