"""An ONNX model as a PyTorch module: the peer's side of a comparison runs the same network.

The module's ``forward`` is straight-line Python, written out here and compiled once: PyTorch runs
one call per ONNX node, and ``torch.compile`` sees one graph without breaks. Shapes are static.
Whatever is known at conversion (shape arithmetic, above all) is computed now.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name, also in the text written here)
from onnx import numpy_helper

from benchmarks.torch_fuse import fused_nodes
from benchmarks.torch_ops import WRITERS
from nrt.errors import ImportModelError

__all__ = ["TorchModel", "convert"]


class TorchModel(torch.nn.Module):
    """A converted model; ``forward`` takes the ONNX inputs in order and returns a tuple.

    Attributes:
        source: the text of ``forward``.
    """

    source: str
    _forward: Any

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._forward(self, *inputs)  # type: ignore[no-any-return]


@dataclass
class _Value:
    """A tensor of the model: known now (``constant``), or computed by the line ``name``."""

    name: str
    shape: tuple[int, ...]
    constant: torch.Tensor | None = None
    example: torch.Tensor | None = None


@dataclass
class _Weights:
    """What expressions call ``self`` while the model is being converted."""

    tensors: dict[str, torch.Tensor]

    def __getattr__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class _Call:
    """See `benchmarks.torch_ops.OnnxCall`."""

    def __init__(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[_Value | None],
        refer: Any,
        float_type: str,
    ) -> None:
        self.name = node.name or node.op_type
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.outputs = list(node.output)
        self.float_type = float_type
        self._inputs, self._refer = inputs, refer

    def __len__(self) -> int:
        return len(self._inputs)

    def _input(self, slot: int) -> _Value | None:
        return self._inputs[slot] if slot < len(self._inputs) else None

    def x(self, slot: int) -> str:
        value = self._input(slot)
        return "None" if value is None else str(self._refer(value, self._rank(slot)))

    def _rank(self, slot: int) -> int:
        """The largest rank among the other inputs: what a scalar must broadcast with."""
        others = [v for i, v in enumerate(self._inputs) if v is not None and i != slot]
        return max((len(v.shape) for v in others), default=-1)

    def shape(self, slot: int) -> tuple[int, ...]:
        value = self._input(slot)
        assert value is not None
        return value.shape

    def ints(self, slot: int) -> list[int] | None:
        value = self._input(slot)
        if value is None:
            return None
        if value.constant is None:
            raise ImportModelError(
                f"node {self.name!r}: input {slot} is computed at run time, expected a constant; "
                "fix the model's open dimensions first"
            )
        return [int(n) for n in value.constant.reshape(-1).tolist()]

    def constant(self, slot: int) -> torch.Tensor | None:
        value = self._input(slot)
        return None if value is None else value.constant


# Operators that take a number for a tensor without another type of result; a Where of two numbers
# would be fp32 whatever the model is.
_SCALARS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Equal", "GreaterOrEqual"})


class _Converter:
    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.float_type = str(dtype).removeprefix("torch.")
        self.values: dict[str, _Value] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.shadows: dict[str, torch.Tensor] = {}  # the weights' shapes, without data
        self.images: set[str] = set()  # weights of convolutions over two dimensions
        self.lines: list[str] = []
        self.arguments: list[str] = []

    def run(self) -> TorchModel:
        self._refuse_unknown()
        graph = self.model.graph
        for tensor in graph.initializer:
            self._constant(tensor.name, _tensor(numpy_helper.to_array(tensor)))
        for value in graph.input:
            if value.name not in self.values:
                self._argument(value)
        nodes = fused_nodes(self.model)
        last = {name: i for i, node in enumerate(nodes) for name in node.input}
        keep = {value.name for value in graph.output}
        for index, node in enumerate(nodes):
            self._node(node)
            dead = {n for n in node.input if n and last[n] == index and n not in keep}
            self._forget(dead)
        results = ", ".join(self._refer(self.values[v.name], -1) for v in graph.output)
        return self._module(f"    return ({results},)")

    def _refuse_unknown(self) -> None:
        known = {*WRITERS, "Constant", "ConstantOfShape", "Shape"}
        unknown = sorted({n.op_type for n in self.model.graph.node} - known)
        if unknown:
            raise ImportModelError(
                f"the PyTorch peer cannot be written: ops {', '.join(unknown)} are unknown; add "
                "them to benchmarks/torch_ops.py"
            )

    def _argument(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        if not all(shape):
            raise ImportModelError(
                f"input {value.name!r} has open dimensions, expected a shape of numbers"
            )
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        dtype = torch.from_numpy(numpy_type.type([0])).dtype
        name = f"x{len(self.arguments)}"
        self.arguments.append(name)
        example = torch.empty(
            shape, dtype=self.dtype if dtype.is_floating_point else dtype, device="meta"
        )
        self.values[value.name] = _Value(name, shape, example=example)

    def _constant(self, name: str, tensor: torch.Tensor) -> None:
        self.values[name] = _Value("", tuple(tensor.shape), constant=tensor)

    def _forget(self, names: set[str]) -> None:
        """End the lives of lines that nobody reads again: eager mode frees memory early."""
        dead = [self.values[n].name for n in sorted(names) if self.values[n].constant is None]
        dead = [n for n in dead if n.startswith("v")]
        if dead:
            self.lines.append(f"    del {', '.join(dead)}")

    # -- nodes -----------------------------------------------------------------------------------

    def _node(self, node: onnx.NodeProto) -> None:
        inputs = [self.values[n] if n else None for n in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            self._constant(node.output[0], _constant_of(attributes))
            return
        if node.op_type == "Shape":
            (value,) = inputs
            assert value is not None
            ends = slice(attributes.get("start"), attributes.get("end"))
            self._constant(node.output[0], torch.tensor(value.shape[ends], dtype=torch.int64))
            return
        if node.op_type == "ConstantOfShape":
            (value,) = inputs
            assert value is not None
            assert value.constant is not None
            fill = numpy_helper.to_array(attributes["value"]) if attributes else None
            item = torch.zeros(1) if fill is None else _tensor(fill)
            self._constant(node.output[0], item.reshape(()).expand(value.constant.tolist()).clone())
            return
        if all(v is None or v.constant is not None for v in inputs):
            self._fold(node, inputs)
        else:
            self._line(node, inputs)

    def _fold(self, node: onnx.NodeProto, inputs: Sequence[_Value | None]) -> None:
        names = {id(v): f"k{i}" for i, v in enumerate(inputs) if v is not None}
        call = _Call(node, inputs, lambda v, _rank: names[id(v)], "float32")
        known = {names[id(v)]: v.constant for v in inputs if v is not None}
        self._bind(node, _evaluate(WRITERS[node.op_type](call), known), None)

    def _line(self, node: onnx.NodeProto, inputs: Sequence[_Value | None]) -> None:
        scalars = node.op_type in _SCALARS
        call = _Call(
            node, inputs, lambda v, rank: self._refer(v, rank if scalars else -1), self.float_type
        )
        expression = WRITERS[node.op_type](call)
        known: dict[str, Any] = {v.name: v.example for v in inputs if v is not None and v.name}
        known["self"] = _Weights(self.shadows)
        result = _evaluate(expression, known)
        if node.op_type in ("Conv", "ConvTranspose") and inputs[1] is not None:
            self.images.add(inputs[1].name.removeprefix("self."))
        names = [f"v{len(self.lines)}_{i}" for i in range(len(node.output))]
        self.lines.append(f"    {', '.join(names)} = {expression}")
        self._bind(node, result, names)

    def _bind(self, node: onnx.NodeProto, result: Any, names: list[str] | None) -> None:
        results = result if isinstance(result, tuple | list) else (result,)
        for index, (output, tensor) in enumerate(zip(node.output, results, strict=True)):
            if names is None:
                self._constant(output, tensor)
            else:
                self.values[output] = _Value(names[index], tuple(tensor.shape), example=tensor)

    def _refer(self, value: _Value, rank: int) -> str:
        """The name of a value in ``forward``; constants become weights, or literals."""
        tensor = value.constant
        if tensor is None:
            return value.name
        if tensor.numel() == 1 and tensor.dim() <= rank:
            return self._literal(tensor)
        if not value.name:
            name = f"w{len(self.weights)}"
            self.weights[name] = self._cast(tensor)
            self.shadows[name] = self.weights[name].to("meta")
            value.name = f"self.{name}"
        return value.name

    def _literal(self, tensor: torch.Tensor) -> str:
        """Numbers keep fp32's precision: PyTorch computes with them in fp32 before it rounds."""
        item = self._clamp(tensor).reshape(()).item()
        return repr(item)

    def _clamp(self, tensor: torch.Tensor) -> torch.Tensor:
        """The -3e38 of a mask becomes the lowest finite number of the model's type."""
        if not tensor.is_floating_point():
            return tensor
        limits = torch.finfo(self.dtype)
        return tensor.clamp(limits.min, limits.max)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floats in the model's type."""
        return self._clamp(tensor).to(self.dtype) if tensor.is_floating_point() else tensor

    def _module(self, last: str) -> TorchModel:
        module = TorchModel()
        head = f"def forward(self, {', '.join(self.arguments)}):"
        module.source = "\n".join([head, *self.lines, last, ""])
        for name, tensor in self.weights.items():
            if tensor.is_floating_point():
                image = name in self.images and tensor.dim() == 4
                order = torch.channels_last if image else torch.contiguous_format
                weight = tensor.contiguous(memory_format=order)
                module.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
            else:
                module.register_buffer(name, tensor.contiguous())
        file = f"<onnx {self.model.graph.name} {id(module)}>"
        scope: dict[str, Any] = {"torch": torch, "F": F, "math": math}
        exec(compile(module.source, file, "exec"), scope)
        # Tracebacks and the compiler's own messages then show the line.
        linecache.cache[file] = (len(module.source), None, module.source.splitlines(True), file)
        object.__setattr__(module, "_forward", scope["forward"])
        return module


def convert(model: onnx.ModelProto, dtype: torch.dtype = torch.float32) -> TorchModel:
    """``model`` as a PyTorch module on the CPU, weights of convolutions channels last.

    Args:
        model: with static input shapes and its weights.
        dtype: of its floats.

    Raises:
        ImportModelError: an op or attribute has no expression here, or a shape is open.
    """
    with torch.no_grad():
        return _Converter(model, dtype).run().eval()


def _evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    return eval(expression, {"torch": torch, "F": F, "math": math, **names})


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def _constant_of(attributes: Mapping[str, Any]) -> torch.Tensor:
    ((name, value),) = attributes.items()
    if name == "value":
        return _tensor(numpy_helper.to_array(value))
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)
