"""ResNet-18 and ResNet-50, and the layers that they consist of.

The construction is `nrt.frontend.models.resnet`, which `nrt demo` uses too.

    python examples/resnet.py            # the layers of ResNet-18
    python examples/resnet.py 50 8       # of ResNet-50 at batch 8
"""

from __future__ import annotations

import sys

from show import show

import nrt
from nrt.frontend.models import resnet

__all__ = ["build"]


def build(
    batch: int = 1, *, depth: int = 18, classes: int = 1000, width: int = 64, size: int = 224
) -> nrt.Network:
    """ResNet of ``depth`` 18, 34, 50, 101 or 152 for images ``input[batch, 3, size, size]``."""
    return resnet(depth, batch, classes=classes, width=width, size=size)


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    show(build(depth=numbers[0] if numbers else 18, batch=numbers[1] if len(numbers) > 1 else 1))
