"""Small ONNX models for the tests, and their comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.verify import verify

__all__ = ["compare", "ints", "model", "node", "normal", "unary"]

TOLERANCE = 1e-5

# ONNX Runtime refuses an IR version that is newer than itself.
IR_VERSION = 8

node = helper.make_node

_RNG = np.random.default_rng()


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    tensors: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    dtypes: Mapping[str, int] | None = None,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; dtypes are those of inputs and outputs, FLOAT by default."""
    types = dtypes or {}

    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        list(nodes),
        "test",
        [info(n, list(s)) for n, s in inputs.items()],
        [info(n, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (tensors or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, v) for d, v in (domains or {}).items()]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=IR_VERSION, functions=list(functions)
    )


def unary(
    op: str, shape: tuple[int, ...], opset: int, tensors=None, **attributes
) -> onnx.ModelProto:
    """A model of one node on ``x`` and constant inputs."""
    constants = dict(tensors or {})
    one = node(op, ["x", *constants], ["y"], name="the_node", **attributes)
    return model([one], {"x": shape}, ["y"], constants, opset=opset)


def feeds_for(graph: Graph) -> dict[str, Array]:
    feeds = {}
    for value in graph.inputs:
        kind = value.dtype.kind
        if kind == "float":
            array = _RNG.standard_normal(value.shape) * 2
        else:
            array = _RNG.integers(0, 2 if kind == "bool" else 5, value.shape)
        feeds[value.name] = np.asarray(array).astype(value.dtype.numpy)
    return feeds


def compare(
    proto: onnx.ModelProto,
    feeds: Mapping[str, Array] | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """Import, evaluate, and assert that ONNX Runtime gives the same; returns the graph."""
    graph = import_model(proto, shapes=shapes)
    verify(graph)
    data = dict(feeds_for(graph) if feeds is None else feeds)
    found = evaluate(graph, data)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in proto.graph.output]
    expected = session.run(names, data)
    assert list(found) == names
    for name, want in zip(names, expected, strict=True):
        got = found[name]
        assert got.dtype == want.dtype, name
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
    return graph
