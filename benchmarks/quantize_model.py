"""A Q/DQ model to compile: ONNX Runtime quantizes a float one, and nrt is compared with it.

Activations and weights become symmetric int8, weights per channel; a layer and its ReLU are rounded
once. With ``--activations uint8`` activations are uint8, without a zero point where none is
negative. Ranges come from random inputs: such a model shows speed and agreement, no accuracy on a
task.

    python benchmarks/quantize_model.py --models DIR --model resnet50 -o resnet50.int8.onnx --check

``--check`` optimizes the model, counts its layers, and compares the outputs of the optimized graph
with ONNX Runtime's in quanta of the output's scale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.zoo_models import Zoo
from nrt.builder import optimize
from nrt.dtypes import BYTES, UINT8
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Conv, MatMul

_QUANTIZED = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool"]
"""Not ReLU: what follows a layer is part of it, and rounded once."""
_ACTIVATIONS = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    cli = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cli.add_argument("--models", type=Path, required=True, help="folder with zoo.py")
    cli.add_argument("--model", default="resnet50")
    cli.add_argument("--batch", type=int, default=1)
    cli.add_argument("--samples", type=int, default=8, help="random inputs to calibrate on")
    cli.add_argument("--percentile", type=float, default=99.9, help="of magnitudes that are kept")
    cli.add_argument("--activations", choices=list(_ACTIVATIONS), default="int8")
    cli.add_argument("-o", "--output", type=Path, required=True)
    cli.add_argument("--check", action="store_true", help="compare with ONNX Runtime")
    cli.add_argument("--inputs", type=int, default=4, help="random inputs to compare on")
    cli.add_argument("--precision", default="fp32", help="of what stays float, for --check")
    args = cli.parse_args(argv)
    model = Zoo(args.models).load(args.model, args.batch)
    if model is None:
        cli.error(f"{args.model} has no batch of {args.batch}")
    quantize(model, args.output, args.samples, args.percentile, args.activations)
    if args.check:
        check(args.output, args.precision, args.inputs)
    return 0


def quantize(
    model: onnx.ModelProto, output: Path, samples: int, percentile: float, activations: str = "int8"
) -> None:
    """Write ``model`` with Q/DQ nodes around every op that ONNX Runtime quantizes."""
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            _Reader(model, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=_ACTIVATIONS[activations],
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_QUANTIZED,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": percentile,
                "ActivationSymmetric": activations == "int8",
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
            },
        )


def check(path: Path, precision: str, inputs: int) -> None:
    """Print what the model becomes and how far it is from ONNX Runtime's result."""
    graph = optimize(path, precision=precision).graph
    products = [n for n in graph.nodes if isinstance(n.op, Conv | MatMul)]
    quantized = [n for n in products if n.inputs[0].dtype in BYTES]
    print("ops:", dict(Counter(n.op.name for n in graph.nodes)))
    unsigned = sum(n.inputs[0].dtype is UINT8 for n in quantized)
    print(
        f"products of int8: {len(quantized)} of {len(products)}, {unsigned} of them by uint8; in "
        "floats:"
    )
    for node in products:
        if node not in quantized:
            print(f"  {node} {node.inputs[0].type}, weights {node.inputs[1].type}")
    stored = Counter(str(n.output.dtype) for n in products)
    print("stored:", dict(stored))
    model = onnx.load(path)
    scale = output_scale(model)
    runtimes = {"optimized": _session(path), "as it is written": _session(path, optimized=False)}
    apart: dict[str, list[np.ndarray[Any, Any]]] = {}
    for feeds in _batches(model, inputs, seed=1):
        found = next(iter(evaluate(graph, feeds).values()))
        wanted = {name: runtime.run(None, feeds)[0] for name, runtime in runtimes.items()}
        for name, reference in wanted.items():
            apart.setdefault(f"nrt and ONNX Runtime {name}", []).append(found - reference)
        # How far apart two valid ways to compute one model are: a sum rounded otherwise turns a
        # quantum here and there, and every layer passes that on.
        own = np.subtract(*wanted.values())
        apart.setdefault("ONNX Runtime optimized and as it is written", []).append(own)
    # Floats at the end have no quantum: the step that would hold the last of them.
    quantum = scale or np.abs(reference).max() / 127
    for name, differences in apart.items():
        quanta = np.abs(np.concatenate(differences).astype(np.float64)) / quantum
        print(
            f"{name}: at most {quanta.max():.0f} quanta apart, 1 or less in "
            f"{100 * (quanta < 1.01).mean():.2f} % of {quanta.size} outputs"
        )


def output_scale(model: onnx.ModelProto) -> float | None:
    """The scale of the DequantizeLinear that gives the first output; None if another op does."""
    output = model.graph.output[0].name
    (last,) = (n for n in model.graph.node if output in n.output)
    if last.op_type != "DequantizeLinear":
        return None
    (scale,) = (t for t in model.graph.initializer if t.name == last.input[1])
    return float(onnx.numpy_helper.to_array(scale))


def _session(path: Path, *, optimized: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    if not optimized:  # every layer in floats, between Q and DQ
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    # Without it, products of 8 bits saturate 16-bit sums on a CPU without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _batches(
    model: onnx.ModelProto, count: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            v.name: rng.random([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32)
            for v in model.graph.input
        }


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Random images for ONNX Runtime's calibration."""

    def __init__(self, model: onnx.ModelProto, count: int) -> None:
        self._left = _batches(model, count)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._left, None)


if __name__ == "__main__":
    sys.exit(main())
