"""The peers of a whole network: PyTorch eager, torch.compile, ONNX Runtime on the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.protocol import Case, measure
from benchmarks.torch_clock import event_sampler, graph_of, precision_of_products
from benchmarks.torch_model import convert
from nrt.errors import BuildError, DeviceError

if TYPE_CHECKING:
    import onnx

__all__ = ["PEERS", "TORCH_TYPES", "OrtPeer", "TorchPeer", "ort_has_cuda"]

PEERS = ("eager", "compile", "max-autotune", "onnxruntime")
TORCH_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
Array = np.ndarray[Any, np.dtype[Any]]


class TorchPeer:
    """One model in PyTorch on the GPU: weights and inputs in ``precision``, channels last.

    Args:
        model: with static shapes.
        precision: a key of `TORCH_TYPES`.
        inputs: by name.
        native_io: bind inputs and outputs in ``precision``, channels last; else as the model has
            them, and convert inside.

    Raises:
        ImportModelError: the model cannot be converted.
        BuildError: PyTorch is not to compute in this precision.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: str,
        inputs: Mapping[str, Array],
        native_io: bool = True,
    ) -> None:
        if precision not in TORCH_TYPES:
            raise BuildError(
                f"no PyTorch peer in {precision!r}: expected one of {', '.join(TORCH_TYPES)}"
            )
        dtype = TORCH_TYPES[precision]
        self.precision = precision
        self.module: torch.nn.Module = convert(model, dtype).to("cuda")
        names = [value.name for value in model.graph.input if value.name in inputs]
        self.inputs = [torch.from_numpy(inputs[name]).to("cuda") for name in names]
        if native_io:
            self.inputs = [_bind(tensor, dtype) for tensor in self.inputs]
        else:
            self.module = _ModelIo(self.module, dtype)
        self.outputs = [value.name for value in model.graph.output]
        self.io = ", ".join(_io(tensor) for tensor in self.inputs)

    def run(self) -> dict[str, Array]:
        """The outputs of an eager run, as fp32."""
        with precision_of_products(self.precision), torch.no_grad():
            results = self.module(*self.inputs)
        return {
            name: tensor.float().cpu().numpy()
            for name, tensor in zip(self.outputs, results, strict=True)
        }

    def time(self, how: str, **protocol: float) -> Case:
        """Times of ``eager``, ``compile`` or ``max-autotune``, each under one CUDA graph."""
        with precision_of_products(self.precision):
            start = time.perf_counter()
            work = self.module if how == "eager" else _compiled(self.module, how)
            graph, _ = graph_of(lambda: work(*self.inputs))
            build_seconds = time.perf_counter() - start
            stats = measure(event_sampler(graph.replay), **protocol)  # type: ignore[arg-type]
        del graph
        return {**stats.to_data(), "build_seconds": round(build_seconds, 1), "io": self.io}


class _ModelIo(torch.nn.Module):
    """Takes and returns fp32 in the model's own layout, as an ONNX runtime does by default."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.module(*(_bind(tensor, self.dtype) for tensor in inputs))
        return tuple(r.float() if r.is_floating_point() else r for r in results)


def _compiled(module: torch.nn.Module, how: str) -> Any:
    torch._dynamo.reset()
    # The graph is captured here, for every peer alike: not once more by the compiler.
    mode = "max-autotune-no-cudagraphs" if how == "max-autotune" else "default"
    return torch.compile(module, fullgraph=True, dynamic=False, mode=mode)


def _bind(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    if tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _io(tensor: torch.Tensor) -> str:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return str(tensor.dtype).removeprefix("torch.") + (" channels last" if last else "")


# -- ONNX Runtime --------------------------------------------------------------------------------


def ort_has_cuda() -> bool:
    """Whether ONNX Runtime is here with its CUDA provider."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class OrtPeer:
    """One model in ONNX Runtime's CUDA provider: NHWC preferred, its own CUDA graph.

    Args:
        model: with static shapes.
        precision: ``fp32``, ``tf32`` or ``fp16`` (inputs and outputs stay fp32 then).
        inputs: by name.

    Raises:
        DeviceError: nodes fell back to the CPU: the time would be that of transfers.
        BuildError: it does not compute in this precision.
    """

    io = "as the model's"

    def __init__(self, model: onnx.ModelProto, precision: str, inputs: Mapping[str, Array]) -> None:
        import onnxruntime

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        cuda = {
            "user_compute_stream": str(self._stream.cuda_stream),
            "enable_cuda_graph": "1",
            "prefer_nhwc": "1",
            "use_tf32": "1" if precision == "tf32" else "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            _in_precision(model, precision).SerializeToString(),
            options,
            providers=[("CUDAExecutionProvider", cuda), "CPUExecutionProvider"],
        )
        if self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError("ONNX Runtime's CUDA provider did not start; see its log")
        self._binding = self._session.io_binding()
        self._keep = [
            onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for array in inputs.values()
        ]
        for name, value in zip(inputs, self._keep, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cuda")

    def time(self, **protocol: float) -> Case:
        """Times of replays of its graph."""
        start = time.perf_counter()
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # the second run captures
                self._session.run_with_iobinding(self._binding)
            build_seconds = time.perf_counter() - start
            sampler = event_sampler(lambda: self._session.run_with_iobinding(self._binding))
            stats = measure(sampler, **protocol)  # type: ignore[arg-type]
        return {**stats.to_data(), "build_seconds": round(build_seconds, 1), "io": self.io}


def _in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision in ("fp32", "tf32"):
        return model
    if precision != "fp16":
        raise BuildError(f"no ONNX Runtime peer in {precision!r}: expected fp32, tf32 or fp16")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = type(model)()
    copy.CopyFrom(model)
    return convert_float_to_float16(copy, keep_io_types=True)
