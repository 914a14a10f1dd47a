"""Tensors with a scale and a zero point per channel: which, and that readers undo both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import optimize
from nrt.dtypes import FP32, INT8, UINT8
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, Conv, Div, MatMul
from nrt.ir.value import Value
from nrt.passes.base import run_pipeline
from nrt.passes.channel_grids import adapt_readers, grid_of_channels
from nrt.passes.correct_bias import add_to_sums
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.quantization.channel_grid import ChannelGrid

Array = np.ndarray[Any, np.dtype[Any]]
Made = Callable[[nrt.Network, np.random.Generator], Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


class Block:
    """A network in which ``x`` has channels of very different sizes and means, all of use.

    Attributes:
        sizes: of these channels, from 1/16 to 4; other layers multiply a channel by less the larger
            it is.
        means: of these channels, in units of their sizes.
    """

    def __init__(self, rng: np.random.Generator, channels: int = 16) -> None:
        self.rng, self.channels = rng, channels
        self.net = nrt.Network("block")
        self.sizes = np.exp2(rng.uniform(-4, 2, channels))
        self.sizes[:2] = 4, 1 / 16
        self.means = rng.choice([-3.0, 3.0], channels)

    def weights(self, *shape: int) -> Array:
        scale = np.sqrt(1 / np.prod(shape[1:]))
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def image(self) -> Any:
        return self.net.input("image", (2, 16, 9, 7))

    def uneven(self, x: Any, *, bias: bool = True, size: int = 1) -> Any:
        """A convolution whose channels differ."""
        kernel = self.weights(self.channels, 16, size, size) * self.sizes[:, None, None, None]
        means = (self.means * self.sizes).astype(np.float32)
        return self.net.conv2d(
            x, kernel.astype(np.float32), means if bias else None, padding=size // 2, name="x"
        )

    def conv(self, x: Any, out: int, name: str, size: int = 1, **options: Any) -> Any:
        kernel = self.weights(out, x.shape[1] // options.get("groups", 1), size, size)
        sizes = self.sizes[:, None, None]
        kernel = kernel / (sizes if kernel.shape[1] == self.channels else sizes[..., None])
        bias = self.weights(out, 1)[:, 0]
        kernel = kernel.astype(np.float32)
        return self.net.conv2d(x, kernel, bias, padding=size // 2, name=name, **options)

    def images(self, count: int = 4) -> list[Array]:
        return [self.rng.standard_normal((2, 16, 9, 7)).astype(np.float32) for _ in range(count)]


def fused(net: nrt.Network) -> Graph:
    phases = pipeline(PipelineOptions())
    first = [p.name for p in phases].index("quantize")
    return run_pipeline(net.graph.copy(), phases[:first]).graph


def found(net: nrt.Network, data: list[Array]) -> tuple[Graph, dict[str, ChannelGrid], Any]:
    """The fused graph, the grids of its values by name, and the calibration."""
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    graph = fused(net)
    values = [node.output for node in graph.nodes]
    grids = {v.name: grid_of_channels(graph, v, ranges) for v in values}
    return graph, {name: grid for name, grid in grids.items() if grid is not None}, ranges


def relu6(block: Block, x: Any) -> Any:
    return block.net.clip(x, 0.0, 6.0, name="x.clip")


def depthwise(block: Block) -> None:
    x = relu6(block, block.uneven(block.image()))
    block.net.output(block.conv(x, 16, "y", 3, groups=16), "out")


def dense(block: Block) -> None:
    x = block.net.relu(block.uneven(block.image()), name="x.relu")
    block.net.output(block.conv(x, 24, "y", 3), "out")


def several(block: Block) -> None:
    x = block.net.relu(block.uneven(block.image()), name="x.relu")
    a, b = block.conv(x, 16, "a", 3, groups=4), block.conv(x, 16, "b")
    block.net.output(block.net.add(a, b, name="sum"), "out")


def pooled(block: Block) -> None:
    x = block.net.relu(block.uneven(block.image()), name="x.relu")
    block.net.output(block.conv(block.net.max_pool2d(x, 2, name="pool"), 24, "y"), "out")


def signed(block: Block) -> None:
    block.net.output(block.conv(block.uneven(block.image()), 24, "y"), "out")


def signed_padded(block: Block) -> None:
    block.net.output(block.conv(block.uneven(block.image()), 24, "y", 3), "out")


def residual(block: Block) -> None:
    x = block.uneven(block.image())
    y = block.net.relu(block.conv(x, 16, "a"), name="a.relu")
    y = block.net.add(block.conv(y, 16, "b"), x, name="sum")
    block.net.output(block.conv(y, 24, "y"), "out")


def rows(block: Block) -> None:
    x = block.net.input("image", (2, 5, 16))
    weights = (block.weights(16, 16) * block.sizes[:, None]).astype(np.float32)
    x = block.net.linear(x, weights, (block.means * block.sizes).astype(np.float32), name="x")
    weights = (block.weights(12, 16) / block.sizes).astype(np.float32)
    block.net.output(block.net.linear(x, weights, name="y"), "out")


USES: dict[str, tuple[Callable[[Block], None], str, bool, bool]] = {
    # network, the tensor, scales of channels, zero points
    "depthwise": (depthwise, "x.clip", True, False),
    "dense": (dense, "x.relu", True, False),
    "several": (several, "x.relu", True, False),
    "pooled": (pooled, "x.relu", True, False),
    "signed": (signed, "x", True, True),
    "signed_padded": (signed_padded, "x", True, False),
    "residual": (residual, "x", False, True),
    "rows": (rows, "x", True, True),
}


def studied(rng: np.random.Generator, name: str) -> tuple[nrt.Network, list[Array]]:
    """A network of `USES`, and data for it."""
    block = Block(rng)
    USES[name][0](block)
    if name == "rows":
        return block.net, [rng.standard_normal((2, 5, 16)).astype(np.float32) for _ in range(4)]
    return block.net, block.images()


def tensor(graph: Graph, name: str) -> Value:
    """The value that the node ``name``, or the product that took it in, gives."""
    return next(n.output for n in graph.nodes if name in (n.name, n.output.name, *n.origin))


@pytest.mark.parametrize("name", USES)
def test_readers_undo_what_a_grid_does(rng: np.random.Generator, name: str) -> None:
    _, tensor_name, scales, zeros = USES[name]
    net, data = studied(rng, name)
    graph, grids, _ = found(net, data)
    value = tensor(graph, tensor_name)
    grid = grids[value.name]
    assert (len(set(grid.scales.tolist())) > 1) == scales
    assert bool(grid.zeros.any()) == zeros
    wanted = evaluate(graph, {"image": data[0]})["out"].astype(np.float64)

    # The network in floats, in which x' stands where x was.
    moved = graph.copy()
    value = moved.value(value.name)
    readers = [n for n, _ in moved.consumers(value)]
    shifts = adapt_readers(moved, value, grid)
    assert bool(shifts) == zeros
    column = (-1, *[1] * (len(value.shape) - 2 if isinstance(readers[0].op, Conv) else 0))
    if name == "pooled":
        column = (-1, 1, 1)
    ratios = moved.add_constant("ratios", grid.ratios.astype(np.float32).reshape(column))
    offsets = moved.add_constant("offsets", grid.offsets.astype(np.float32).reshape(column))
    divided = moved.add_node(Div(), [value, ratios])
    read = moved.add_node(Add(), [divided.output, offsets])
    moved.replace_value(value, read.output, except_node=divided)
    for node, shift in shifts.items():
        assert add_to_sums(moved, node, shift)
    result = evaluate(moved, {"image": data[0]})["out"]
    np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


BYTES = ([INT8], [UINT8])


def sqnr(result: Array, wanted: Array) -> float:
    signal = np.square(wanted.astype(np.float64)).sum()
    return float(10 * np.log10(signal / np.square(result.astype(np.float64) - wanted).sum()))


@pytest.mark.parametrize("name", USES)
def test_bytes_of_channels_round_less(rng: np.random.Generator, name: str) -> None:
    zeros = USES[name][-1]
    net, data = studied(rng, name)
    graph, _, ranges = found(net, data)
    wanted = [evaluate(graph, {"image": d})["out"] for d in data]
    ratios = []
    for known in (ranges, ranges.without_extremes()):
        report = optimize(net, precision={"int8", "fp32"}, layers={"*": "int8"}, calibration=known)
        results = [evaluate(report.graph, {"image": d})["out"] for d in data]
        ratios.append(sqnr(np.stack(results), np.stack(wanted)))
        types = [n.inputs[0].dtype for n in report.graph.nodes if isinstance(n.op, Conv | MatMul)]
        # Groups of four channels are multiplied as floats; they read the bytes all the same.
        assert types.count(FP32) == (name == "several")
        # Nothing is left of scales and zero points but constants of the products' epilogues.
        for node in report.graph.nodes:
            if isinstance(node.op, Conv | MatMul) and [v.dtype for v in node.outputs] in BYTES:
                op: Any = node.op
                steps = [i.opcode for i in op.epilogue.instrs]
                assert "round" not in steps
                assert len(node.inputs) <= (5 if "to_f" in steps else 4)
        texts = [n.text for n in report.notes if n.pass_name == "quantize" and n.kind == "fired"]
        around = sum("around the means of channels" in text for text in texts)
        assert bool(around) == (zeros and known is ranges)
    assert ratios[0] > ratios[1] + 1, ratios


@pytest.mark.parametrize("name", USES)
def test_on_the_cpu(rng: np.random.Generator, name: str) -> None:
    net, data = studied(rng, name)
    _, _, ranges = found(net, data)
    options: dict[str, Any] = {
        "precision": {"int8", "fp32"},
        "layers": {"*": "int8"},
        "calibration": ranges,
    }
    wanted = evaluate(optimize(net, **options).graph, {"image": data[0]})["out"]
    engine = nrt.compile(net, target="cpu", opt_level=0, **options)
    result = np.asarray(engine.run({"image": data[0]})["out"])
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=0.02 * np.abs(wanted).max())
