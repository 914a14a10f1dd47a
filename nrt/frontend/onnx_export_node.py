"""What the converters of the ONNX exporter write with: nodes, constants, casts, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import helper

from nrt.dtypes import BOOL, FP32, FP64, INT64, DType, dtype_from_numpy
from nrt.ir.op import Array, TensorType
from nrt.ir.value import Node, Value

__all__ = ["OPSET", "Inexpressible", "Tensor", "Writer", "takes", "wide"]

OPSET = 21
"""The opset of exported models, the first whose nodes carry metadata."""


class Inexpressible(Exception):  # noqa: N818 - not an error of nrt's: the exporter gathers them
    """A node has no counterpart in ONNX; the text says why."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model that is written.

    Attributes:
        name: in the ONNX graph.
        type: shape and element type.
    """

    name: str
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


@cache
def takes(op_type: str, dtype: DType) -> bool:
    """Whether the first input of an ONNX op may have elements of ``dtype``."""
    schema = onnx.defs.get_schema(op_type, OPSET)
    kind = str(helper.tensor_dtype_to_string(dtype.onnx)).removeprefix("TensorProto.").lower()
    return f"tensor({kind})" in schema.inputs[0].types


def wide(dtype: DType) -> DType:
    """The type that references compute ``dtype`` in: fp32 for floats that are smaller."""
    return FP32 if dtype.is_float and dtype is not FP64 else dtype


@dataclass
class Writer:
    """Gathers the ONNX nodes and initializers of one model."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    tensors: dict[Value, Tensor] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _node_names: set[str] = field(default_factory=set)
    _casts: dict[tuple[str, DType], Tensor] = field(default_factory=dict)
    _constants: dict[tuple[DType, tuple[int, ...], bytes], Tensor] = field(default_factory=dict)
    _node: Node | None = None
    _results: tuple[Tensor, ...] = ()
    _steps: set[str] = field(default_factory=set)

    # -- names -----------------------------------------------------------------------------------

    def tensor_name(self, name: str) -> str:
        """``name``, numbered where a tensor has it already."""
        return _unique(name, self._names)

    def begin(self, node: Node) -> None:
        """What is written from here on belongs to ``node``, whose outputs are known tensors."""
        self._node = node
        self._results = tuple(self.tensors[v] for v in node.outputs)
        self._steps = set()

    # -- writing ---------------------------------------------------------------------------------

    def tensor(self, value: Value) -> Tensor:
        """The tensor of a value; a constant is written on first use."""
        if value not in self.tensors:
            assert value.constant is not None
            name = self.tensor_name(value.name)
            self.tensors[value] = self._initializer(name, value.constant)
        return self.tensors[value]

    def constant(self, array: Array | Sequence[int], dtype: DType = INT64) -> Tensor:
        """A small constant of the exporter's own; equal ones are one initializer."""
        data = np.asarray(array, dtype.numpy)
        key = (dtype, data.shape, data.tobytes())
        if key not in self._constants:
            text = "_".join(map(str, data.ravel().tolist()[:4])) or "none"
            name = self.tensor_name(f"nrt.{dtype}.{text}")
            self._constants[key] = self._initializer(name, data)
        return self._constants[key]

    def emit(
        self,
        op_type: str,
        inputs: Sequence[Tensor | None],
        type_: TensorType,
        *,
        into: Tensor | None = None,
        **attributes: Any,
    ) -> Tensor:
        """Write one node; its output is ``into`` or a new tensor of ``type_``."""
        return self.emit_many(
            op_type, inputs, (into or self._fresh(op_type, type_),), **attributes
        )[0]

    def emit_many(
        self,
        op_type: str,
        inputs: Sequence[Tensor | None],
        outputs: tuple[Tensor, ...],
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """Write one node with these outputs."""
        assert self._node is not None
        # The node that computes the result has the graph node's name, those before it a longer one.
        last = outputs[0] in self._results
        name = self._node.name if last else f"{self._node.name}/{op_type}"
        node = helper.make_node(
            op_type,
            [t.name if t is not None else "" for t in inputs],
            [t.name for t in outputs],
            name=_unique(name, self._node_names),
            **attributes,
        )
        self.nodes.append(node)
        return outputs

    def cast(self, x: Tensor, dtype: DType, *, into: Tensor | None = None) -> Tensor:
        """``x`` as ``dtype``: itself if it is that already and nothing asks for a copy."""
        if into is None:
            if x.dtype is dtype:
                return x
            key = (x.name, dtype)
            if key not in self._casts:
                type_ = TensorType(x.shape, dtype)
                self._casts[key] = self.emit("Cast", [x], type_, to=dtype.onnx)
            return self._casts[key]
        if x.dtype is dtype:
            return self.emit("Identity", [x], into.type, into=into)
        return self.emit("Cast", [x], into.type, into=into, to=dtype.onnx)

    def finish(self, x: Tensor, result: Tensor) -> None:
        """Let ``result``, an output of the node, be ``x`` in its shape and element type."""
        if x.shape != result.shape:
            shape = self.constant(result.shape)
            x = self.emit("Expand", [x, shape], TensorType(result.shape, x.dtype))
        last = self.nodes[-1] if self.nodes else None
        if (
            last is not None
            and list(last.output) == [x.name]
            and x.name in self._steps
            and x.dtype is result.dtype
        ):
            # What was written last computes the result itself: no Identity after it.
            self._casts = {k: v for k, v in self._casts.items() if v.name != x.name}
            last.output[0] = result.name
            assert self._node is not None
            self._node_names.discard(last.name)
            last.name = _unique(self._node.name, self._node_names)
            return
        self.cast(x, result.dtype, into=result)

    # -- inside ----------------------------------------------------------------------------------

    def _fresh(self, op_type: str, type_: TensorType) -> Tensor:
        assert self._node is not None
        name = self.tensor_name(f"{self._node.name}/{op_type}")
        self._steps.add(name)
        return Tensor(name, type_)

    def _initializer(self, name: str, array: Array) -> Tensor:
        dtype = dtype_from_numpy(array.dtype)
        tensor = onnx.TensorProto(name=name, data_type=dtype.onnx, dims=array.shape)
        little = np.ascontiguousarray(array)
        if little.dtype.byteorder == ">":
            little = little.astype(little.dtype.newbyteorder("<"))
        tensor.raw_data = little.astype(np.uint8).tobytes() if dtype is BOOL else little.tobytes()
        self.initializers.append(tensor)
        return Tensor(name, TensorType(array.shape, dtype))


def _unique(name: str, taken: set[str]) -> str:
    label, count = name or "unnamed", 0
    while label in taken:
        count += 1
        label = f"{name}.{count}"
    taken.add(label)
    return label
