"""A folder with one small model, for the scripts that measure a folder of models."""

from __future__ import annotations

from pathlib import Path

__all__ = ["make_zoo"]

_SOURCE = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper


def names():
    return ["vgg19", "unet"]


def load(name, batch=None):
    rng = np.random.default_rng(5)
    weight = numpy_helper.from_array(rng.standard_normal((7, 3, 3, 3)).astype(np.float32), "w")
    n = 1 if name == "unet" else batch
    scale = FACTOR if name == "vgg19" else 1.0
    with np.errstate(over="ignore"):
        factor = numpy_helper.from_array(np.array([scale]).astype(np.float32), "k")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Mul", ["h", "k"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n, 3, 9, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n, 7, 5, 3])],
        [weight, factor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
"""


def make_zoo(folder: Path, factor: float = 0.5) -> Path:
    """Write ``zoo.py``: 'vgg19' at any batch, scaled by ``factor``, and 'unet' at batch 1 only."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo.py").write_text(f"FACTOR = {factor!r}\n{_SOURCE}", encoding="utf-8")
    return folder
