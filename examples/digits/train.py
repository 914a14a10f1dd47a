"""Train three small networks on handwritten digits and write them as ONNX files.

    pip install -e '.[train]'
    python examples/digits/train.py            # plain.onnx, residual.onnx, separable.onnx
    python examples/digits/train.py separable --output /tmp

A minute or two on one core; PyTorch may train other weights in another version or on another CPU.
The files are in the repository: `benchmarks/accuracy.py` measures on them what fp16, int8 and fp8
cost in accuracy on images that neither training nor calibration saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from data import Digits, load
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS", "export", "fit", "scores"]

EPOCHS = 60
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
OPSET = 18

Layers = list[nn.Module]


def _conv(channels: int, filters: int, size: int = 3, stride: int = 1, groups: int = 1) -> Layers:
    """Convolution and batch normalization."""
    layer = nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(filters)]


def _head(channels: int) -> Layers:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


class Block(nn.Module):
    """Two convolutions and a shortcut: He et al. 2016, "Deep residual learning"."""

    def __init__(self, channels: int, filters: int, stride: int = 1) -> None:
        super().__init__()
        first = _conv(channels, filters, stride=stride)
        self.body = nn.Sequential(*first, nn.ReLU(), *_conv(filters, filters))
        same = channels == filters and stride == 1
        self.shortcut = nn.Sequential(*([] if same else _conv(channels, filters, 1, stride)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _separable(channels: int, filters: int, stride: int = 1) -> Layers:
    """Depthwise, then pointwise: Howard et al. 2017, "MobileNets"."""
    depthwise = _conv(channels, channels, stride=stride, groups=channels)
    return [*depthwise, nn.ReLU(), *_conv(channels, filters, 1), nn.ReLU()]


def plain() -> nn.Module:
    """Four convolutions and two layers of products."""
    return nn.Sequential(
        *[*_conv(1, 32), nn.ReLU(), *_conv(32, 32), nn.ReLU(), nn.MaxPool2d(2)],
        *[*_conv(32, 32), nn.ReLU(), *_conv(32, 32), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)],
    )


def residual() -> nn.Module:
    """A stem and three blocks."""
    return nn.Sequential(
        *[*_conv(1, 16), nn.ReLU()],
        *[Block(16, 16), Block(16, 32, 2), Block(32, 32)],
        *_head(32),
    )


def separable() -> nn.Module:
    """A stem and five depthwise-separable layers."""
    return nn.Sequential(
        *[*_conv(1, 32), nn.ReLU(), *_separable(32, 64), *_separable(64, 64, 2)],
        *[*_separable(64, 96), *_separable(96, 96, 2), *_separable(96, 128), *_head(128)],
    )


NETWORKS = {"plain": plain, "residual": residual, "separable": separable}


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions."""
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)]
    )


def fit(model: nn.Module, digits: Digits, seed: int) -> None:
    """Train ``model`` by AdamW with one cycle of learning rates; leaves it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    steps = -(-len(digits) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(digits), generator=generator)
        for chosen in order.split(BATCH):
            result = model(_shifted(images[chosen], generator))
            loss = functional.cross_entropy(result, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def scores(model: nn.Module, digits: Digits) -> np.ndarray[Any, np.dtype[Any]]:
    """What ``model`` gives for the images, ``[N, 10]``."""
    with torch.inference_mode():
        return model(torch.from_numpy(digits.images)).numpy()


def export(model: nn.Module, path: Path) -> None:
    """Write ``model`` with an open batch, weights inside, and no traces of where it was made."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    proto.graph.name = path.stem
    for owner in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        owner.ClearField("metadata_props")
    for owner in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        owner.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def main() -> None:
    """Train, report and write the networks asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)  # sums in the same order on every machine
    torch.use_deterministic_algorithms(True)
    parts = load()
    for name in args.networks or NETWORKS:
        torch.manual_seed(args.seed)
        model = NETWORKS[name]()
        fit(model, parts["train"], args.seed)
        path = args.output / f"{name}.onnx"
        export(model, path)
        found = {part: digits.accuracy(scores(model, digits)) for part, digits in parts.items()}
        shown = ", ".join(f"{part} {100 * share:.2f} %" for part, share in found.items())
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB; top-1: {shown}", flush=True)


if __name__ == "__main__":
    main()
