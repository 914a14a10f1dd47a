"""Run an ONNX file without nrt: ONNX Runtime on the CPU, or ONNX's own reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from nrt.errors import ImportModelError

__all__ = ["run_reference"]

Array = np.ndarray[Any, np.dtype[Any]]


def run_reference(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[str, dict[str, Array]]:
    """Run the model in ``model`` on ``inputs``.

    Args:
        model: path of the ONNX file.
        inputs: input name -> array.
        outputs: names of the outputs wanted.

    Returns:
        The name and version of what ran it, and output name -> array.

    Raises:
        ImportModelError: it cannot run the model.
    """
    if find_spec("onnxruntime") is None:
        return _run_onnx_reference(model, inputs, outputs)
    return _run_onnxruntime(model, inputs, outputs)


def _run_onnxruntime(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[str, dict[str, Array]]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        results = session.run(list(outputs), dict(inputs))
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

    results = ReferenceEvaluator(model).run(list(outputs), dict(inputs))
    name = f"onnx.reference {onnx.__version__}"
    return name, {n: np.asarray(r) for n, r in zip(outputs, results, strict=True)}
