"""ONNX's own node tests, through the importer and the references.

Inputs that are shape parameters (a Reshape's shape, a Slice's starts) become initializers first: in
the IR they are attributes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.case import node as node_tests

from nrt.errors import NrtError
from nrt.frontend import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.verify import verify

RTOL, ATOL = 1e-4, 1e-6
# Expected values that ONNX wrote down with four digits.
RTOL_DIGITS = 1e-3
FOUR_DIGITS = ("test_averagepool_2d_ceil_last_window_starts_on_pad",)
# One unit in the last place of a 16-bit result, which the stored outputs rounded more than once.
RTOL_HALF, ATOL_HALF = 2e-3, 1e-3

# Operator -> fewest tests that must run, so that a filter cannot quietly empty itself.
OPERATORS: dict[str, int] = {
    "Abs": 1, "Add": 7, "And": 8, "AveragePool": 15, "BatchNormalization": 2, "Cast": 12,
    "Ceil": 2, "Celu": 1, "Clip": 12, "Concat": 12, "ConstantOfShape": 2, "Conv": 4,
    "ConvInteger": 2, "ConvTranspose": 9, "Cos": 2, "DepthToSpace": 2, "DequantizeLinear": 6,
    "Div": 8, "Dropout": 5, "DynamicQuantizeLinear": 3, "Elu": 3,
    "Equal": 8, "Erf": 1, "Exp": 2, "Expand": 2, "EyeLike": 2, "Flatten": 9, "Floor": 2,
    "Gather": 4, "GatherElements": 3, "Gelu": 4, "Gemm": 11, "GlobalAveragePool": 2,
    "GlobalMaxPool": 2, "Greater": 6, "GreaterOrEqual": 6, "HardSigmoid": 3, "HardSwish": 1,
    "Identity": 1, "InstanceNormalization": 2, "IsNaN": 2, "LRN": 2, "LayerNormalization": 19,
    "LeakyRelu": 3, "Less": 6, "LessOrEqual": 6, "Log": 2, "LogSoftmax": 7, "MatMul": 4,
    "MatMulInteger": 1, "Max": 12, "MaxPool": 16, "Mean": 3, "Min": 12, "Mish": 1, "Mul": 7,
    "Neg": 2, "Or": 8, "PRelu": 2, "Pad": 5, "Pow": 9, "QLinearConv": 1, "QLinearMatMul": 4,
    "QuantizeLinear": 6, "Range": 2, "Reciprocal": 2, "ReduceL1": 8, "ReduceL2": 8,
    "ReduceLogSum": 4, "ReduceLogSumExp": 8, "ReduceMax": 6, "ReduceMean": 8, "ReduceMin": 6,
    "ReduceProd": 6, "ReduceSum": 8, "ReduceSumSquare": 8, "Relu": 1, "Reshape": 8,
    "Resize": 25, "Round": 1, "Selu": 3, "Shape": 8, "Sigmoid": 2, "Sign": 1, "Sin": 2,
    "Size": 2, "Slice": 8, "Softmax": 7, "Softplus": 2, "Softsign": 2, "SpaceToDepth": 1,
    "Split": 10, "Sqrt": 2, "Squeeze": 2, "Sub": 7, "Sum": 3, "Tanh": 2, "ThresholdedRelu": 3,
    "Tile": 2, "Transpose": 7, "Trilu": 15, "Unsqueeze": 6, "Where": 2, "Xor": 8,
}  # fmt: skip

# Operator -> slots of inputs that are parameters, not data.
PARAMETERS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{name: (1,) for name in OPERATORS if name.startswith("Reduce")},
}

# Operators whose outputs after the first (indices) are not supported.
ONE_OUTPUT = ("MaxPool",)

# Tests out of scope: a name, or a part of names between asterisks -> why.
SKIPPED: dict[str, str] = {
    "*train*": "training mode",
    "*INT4*": "no 4-bit type",
    "*FLOAT4*": "no 4-bit type",
    "*INT2*": "no 2-bit type",
    "*FNUZ*": "no fp8 type but e4m3fn",
    "*E5M2*": "no fp8 type but e4m3fn",
    "*E8M0*": "no fp8 type but e4m3fn",
    "*_e5m2*": "no fp8 type but e4m3fn",
    "*linear_int4*": "no 4-bit type",
    "*linear_uint4*": "no 4-bit type",
    "*linear_float4*": "no 4-bit type",
    "*linear_int2*": "no 2-bit type",
    "*linear_uint2*": "no 2-bit type",
    "*no_saturate*": "casts to fp8 saturate, as GPUs convert",
    "*_string*": "no strings",
    "test_identity_sequence": "no sequences",
    "test_identity_opt": "no optional types",
    "test_maxpool_with_argmax_2d_precomputed_strides": "storage_order of indices",
    "test_wrap_pad": "padding mode wrap",
    "*exclude_outside*": "exclude_outside of cubic resizes",
    "*tf_crop_and_resize*": "coordinate mode tf_crop_and_resize",
    "*half_pixel_symmetric*": "coordinate mode half_pixel_symmetric",
    "*antialias*": "antialiased resizes",
}


def _patterns(name: str) -> list[str]:
    return [
        pattern
        for pattern in SKIPPED
        if name == pattern or (pattern.startswith("*") and pattern.strip("*") in name)
    ]


def _operators(module: str) -> set[str]:
    """The operators of the nodes that a module of ONNX's tests makes."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return set(re.findall(r'make_node\(\s*"(\w+)"', Path(spec.origin).read_text("utf-8")))


@cache
def _cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        # Computing the expected values divides by zero here and there.
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node_tests.__path__):
            name = f"{node_tests.__name__}.{module.name}"
            # A module computes what its tests expect when it is imported, which takes seconds.
            if not module.ispkg and OPERATORS.keys() & _operators(name):
                importlib.import_module(name)
    return {
        t.name: t
        for t in node_tests._NodeTestCases
        if len(t.model.graph.node) == 1
        and t.model.graph.node[0].op_type in OPERATORS
        and "_expanded" not in t.name  # the same test, written with other operators
    }


def _array(stored: Any) -> Any:
    """Types that NumPy lacks are stored as protos."""
    return onnx.numpy_helper.to_array(stored) if isinstance(stored, onnx.TensorProto) else stored


def _specialized(
    model: onnx.ModelProto, arrays: list[Any]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with parameters as initializers and one output, and the remaining inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    (node,) = graph.node
    slots = PARAMETERS.get(node.op_type, ())
    parameters = {node.input[s] for s in slots if s < len(node.input)}
    feeds = {}
    for value, array in zip(list(graph.input), map(_array, arrays), strict=True):
        if value.name in parameters:
            graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            graph.input.remove(value)
        else:
            feeds[value.name] = array
    if node.op_type in ONE_OUTPUT:
        del graph.output[1:]
    return copy, feeds


def _run(name: str) -> None:
    case = _cases()[name]
    for arrays, expected in case.data_sets:
        model, feeds = _specialized(case.model, arrays)
        graph = import_model(
            model, shapes={n: a.shape for n, a in feeds.items() if 0 not in a.shape}
        )
        verify(graph)
        results = evaluate(graph, feeds)
        assert list(results) == [o.name for o in model.graph.output]
        for output, want in zip(results.values(), map(_array, expected), strict=False):
            assert output.dtype == want.dtype
            assert output.shape == want.shape
            if want.dtype.kind in "biu":
                np.testing.assert_array_equal(output, want)
                continue
            half = want.dtype.itemsize <= 2
            np.testing.assert_allclose(
                output.astype(np.float64),
                want.astype(np.float64),
                rtol=RTOL_HALF if half else RTOL_DIGITS if name in FOUR_DIGITS else RTOL,
                atol=ATOL_HALF if half else ATOL,
            )


@pytest.mark.parametrize("name", [n for n in _cases() if not _patterns(n)])
def test_node(name: str) -> None:
    _run(name)


def test_skips_are_not_stale() -> None:
    """Every entry of the table matches a test, and every test that it matches does fail."""
    skipped = {name: _patterns(name) for name in _cases() if _patterns(name)}
    assert set(SKIPPED) == {p for patterns in skipped.values() for p in patterns}
    passing = []
    for name in skipped:
        # Whatever makes a test fail keeps it in the table.
        with contextlib.suppress(NrtError, AssertionError, AttributeError, TypeError, ValueError):
            _run(name)
            passing.append(name)
    assert passing == []


def test_enough_tests_run_per_operator() -> None:
    counts = Counter(
        case.model.graph.node[0].op_type for name, case in _cases().items() if not _patterns(name)
    )
    short = {op: counts[op] for op, least in OPERATORS.items() if counts[op] < least}
    assert short == {}
