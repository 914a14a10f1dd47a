"""One op as a graph, written as ONNX, run by ONNX Runtime and imported again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, INT32, DType
from nrt.frontend.onnx_export import to_onnx
from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op

RNG = np.random.default_rng()
TOLERANCE = 1e-5
# One unit in the last place: fp32 sums in another order may round to the neighbour.
ROUNDED = {FP16.numpy: 2e-3, BF16.numpy: 2e-2, FP8E4M3.numpy: 0.13}


def normal(*shape: int, dtype=FP32) -> Array:
    return (RNG.standard_normal(shape) * 2).astype(dtype.numpy)


def positive(*shape: int, dtype=FP32) -> Array:
    return (np.abs(RNG.standard_normal(shape)) + 0.1).astype(dtype.numpy)


def integers(*shape: int, dtype=INT32, low: int = -9, high: int = 9) -> Array:
    return np.asarray(RNG.integers(low, high, shape), dtype.numpy)


def bools(*shape: int) -> Array:
    return RNG.integers(0, 2, shape).astype(bool)


def graph_of(op: Op, *arrays: Array, constants: Sequence[int] = ()) -> tuple[Graph, dict]:
    """A graph of one node; the inputs in ``constants`` are constants."""
    graph = Graph("one")
    feeds, values = {}, []
    for slot, array in enumerate(arrays):
        if slot in constants:
            values.append(graph.add_constant(f"c{slot}", array))
            continue
        name = f"x{slot}"
        probe = Graph().add_constant("probe", array)
        values.append(graph.add_input(name, array.shape, probe.dtype))
        feeds[name] = array
    node = graph.add_node(op, values, name="the/node", origin=["a", "b"])
    for index, value in enumerate(node.outputs):
        graph.set_output(f"y{index}", value)
    return graph, feeds


def run_ort(model: onnx.ModelProto, feeds: dict) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert list(got) == list(want)
    for name, expected in want.items():
        assert got[name].dtype == expected.dtype
        assert got[name].shape == expected.shape
        tolerance = ROUNDED.get(expected.dtype, TOLERANCE)
        if expected.dtype.kind in "biu":
            np.testing.assert_array_equal(got[name], expected)
            continue
        np.testing.assert_allclose(
            got[name].astype(np.float64),
            expected.astype(np.float64),
            rtol=tolerance,
            atol=tolerance,
        )


def check(op: Op, *arrays: Array, constants: Sequence[int] = (), run: bool = True) -> Graph:
    graph, feeds = graph_of(op, *arrays, constants=constants)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    want = evaluate(graph, feeds)
    if run:
        close(run_ort(model, feeds), want)
    back = import_model(model)
    close(evaluate(back, feeds), want)
    # Of a node of several results, the first that is written has its name.
    written = model.graph.node[-1:] if len(want) == 1 else model.graph.node
    assert "the/node" in {n.name for n in written}
    return graph


def whole(*shape: int, dtype: DType = INT8) -> Array:
    """Integers over the whole range of ``dtype``, both ends among them."""
    info = np.iinfo(dtype.numpy)
    x = integers(*shape, dtype=dtype, low=info.min, high=info.max + 1)
    x.flat[:2] = info.min, info.max
    return x
