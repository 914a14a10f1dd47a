"""Run an ONNX file without nrt: ONNX Runtime on the CPU, or ONNX's own reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from nrt.errors import ImportModelError

__all__ = ["run_reference"]

Array = np.ndarray[Any, np.dtype[Any]]

_ORT_FLOATS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


def run_reference(
    model: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    registered: bool = False,
) -> tuple[str, dict[str, Array]]:
    """Run the model in ``model`` on ``inputs``.

    Args:
        model: path of the ONNX file.
        inputs: input name -> array; floats of another type than the model's are cast.
        outputs: names of the outputs wanted.
        registered: the model may hold ops that a user registered, of which only nrt knows the
            references: where nothing else can run it, nrt's own import and references do.

    Returns:
        The name and version of what ran it, and output name -> array.

    Raises:
        ImportModelError: it cannot run the model.
    """
    run = _run_onnx_reference if find_spec("onnxruntime") is None else _run_onnxruntime
    try:
        return run(model, inputs, outputs)
    except (ImportModelError, NotImplementedError):
        if not registered:
            raise
    return _run_graph(model, inputs, outputs)


def _run_graph(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[str, dict[str, Array]]:
    from nrt.frontend import import_model
    from nrt.ir.evaluate import evaluate

    graph = import_model(model, shapes={name: array.shape for name, array in inputs.items()})
    types = {value.name: value.dtype.numpy for value in graph.inputs}
    results = evaluate(graph, _as_the_model(inputs, types))
    return "the NumPy references of nrt and its plug-ins", {n: results[n] for n in outputs}


def _as_the_model(inputs: Mapping[str, Array], types: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs that are bound in another float type than the model's, in the model's."""
    cast = {}
    for name, array in inputs.items():
        dtype = types.get(name)
        floats = dtype is not None and np.dtype(dtype).kind not in "biu"
        cast[name] = array.astype(dtype) if floats and array.dtype.kind not in "biu" else array
    return cast


def _run_onnxruntime(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[str, dict[str, Array]]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        types = {v.name: _ORT_FLOATS.get(v.type) for v in session.get_inputs()}
        results = session.run(list(outputs), _as_the_model(inputs, types))
    except (
        ValueError,  # inputs that are missing
        ort_errors.Fail,
        ort_errors.InvalidArgument,
        ort_errors.InvalidGraph,
        ort_errors.InvalidProtobuf,
        ort_errors.NotImplemented,
        ort_errors.RuntimeException,
    ) as error:
        raise ImportModelError(f"ONNX Runtime cannot run {model}: {error}") from error
    name = f"onnxruntime {onnxruntime.__version__} (CPU)"
    return name, dict(zip(outputs, results, strict=True))


def _run_onnx_reference(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[str, dict[str, Array]]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    types = {
        name: onnx.helper.tensor_dtype_to_np_dtype(type_.tensor_type.elem_type)
        for name, type_ in zip(evaluator.input_names, evaluator.input_types, strict=True)
    }
    results = evaluator.run(list(outputs), _as_the_model(inputs, types))
    name = f"onnx.reference {onnx.__version__}"
    return name, {n: np.asarray(r) for n, r in zip(outputs, results, strict=True)}
