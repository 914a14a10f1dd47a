"""An op of one's own: imported from ONNX, folded, run on the CPU by its NumPy reference.

python examples/extend_op.py
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

import nrt

__all__ = ["RunningSum", "model"]


@nrt.op("my.domain", "RunningSum")
class RunningSum(nrt.Op):
    """Sums of the elements up to each one, along ``axis``; ONNX attributes are the fields."""

    axis: int = -1
    exclusive: bool = False

    def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
        if not -x.rank <= self.axis < x.rank:
            raise nrt.ShapeError(f"RunningSum: axis {self.axis} is out of range for {x}")
        return (x,)

    def reference(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        y = np.cumsum(x, self.axis, dtype=x.dtype)
        return (y - x if self.exclusive else y,)


def model() -> onnx.ModelProto:
    """``y = RunningSum(x + 1)`` as an exporter would write it."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"], "add"),
        helper.make_node("RunningSum", ["a"], ["y"], "sum", domain="my.domain", exclusive=1),
    ]
    graph = helper.make_graph(
        nodes,
        "running",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


if __name__ == "__main__":
    engine = nrt.compile(model(), target="cpu", opt_level=0)
    print(np.asarray(engine(np.ones((2, 5), np.float32))))
