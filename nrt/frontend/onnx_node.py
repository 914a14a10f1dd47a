"""One ONNX node while it is being converted: its inputs, its attributes, the graph it writes to.

A converter gets a `NodeContext`, reads what it needs and returns the values of the node's outputs.
It never sees protobuf: attributes are plain Python by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrt.errors import ImportModelError
from nrt.ir import ops
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.value import Value

__all__ = ["ELEMENT_LIMIT", "WINDOW_LIMIT", "Converted", "NodeContext", "RefusedNodeError"]

Converted = Value | Sequence[Value | None]
"""What a converter returns: one value, or one per output of the node (None: nothing reads it)."""

ELEMENT_LIMIT = 2**40
"""Elements of one tensor beyond which a file is taken for hostile."""

WINDOW_LIMIT = 1 << 16
"""Kernel size, stride, pad or dilation beyond which a file is taken for hostile."""

# Shape arithmetic is done now; what is larger waits for the fold-constants pass, which reports it.
_FOLD_FLOATS = 4096
_FOLD_INTEGERS = 1 << 22
# What must exist as data (ConstantOfShape, Range): beyond this the file is hostile.
_CONSTANT_LIMIT = 1 << 28
# Shape arithmetic has no windows, whose cost a hostile kernel size could set at will. Quantized
# weights are to stay integers.
_NEVER_FOLDED = (
    ops.Conv, ops.ConvTranspose, ops.MaxPool, ops.AveragePool, ops.LRN, ops.Dequantize
)  # fmt: skip


class RefusedNodeError(ImportModelError):
    """This form of the node is not supported; the importer collects all such nodes."""


@dataclass
class NodeContext:
    """What a converter sees of a node.

    Attributes:
        graph: the graph being written.
        name: unique among the model's nodes.
        op_type: operator.
        domain: canonical domain (``""`` is ai.onnx).
        opset: version of that domain.
        args: values by input slot; None for an omitted optional input.
        outputs: the model's names of the outputs; ``""`` for an omitted one.
        attributes: plain values (int, float, str, list, array).
        used: names that something reads; an output not among them need not exist.
    """

    graph: Graph
    name: str
    op_type: str
    domain: str
    opset: int
    args: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    used: frozenset[str] = field(default_factory=frozenset)

    # -- inputs ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.args)

    def has(self, slot: int) -> bool:
        return slot < len(self.args) and self.args[slot] is not None

    def optional(self, slot: int) -> Value | None:
        return self.args[slot] if slot < len(self.args) else None

    def input(self, slot: int) -> Value:
        """The value in ``slot``; ImportModelError when the model leaves it out."""
        value = self.optional(slot)
        if value is None:
            raise ImportModelError(f"{self}: input {slot} is missing")
        return value

    def inputs(self) -> list[Value]:
        """All inputs, none omitted."""
        return [self.input(slot) for slot in range(len(self.args))]

    def array(self, slot: int, what: str) -> Array:
        """The data of a constant input; refuses the node when it is computed at run time."""
        value = self.input(slot)
        if value.constant is None:
            raise RefusedNodeError(f"input '{what}' is computed at run time, expected a constant")
        return value.constant

    def numbers(self, slot: int, what: str) -> tuple[int, ...]:
        """A constant input as a tuple of ints (a scalar gives one)."""
        array = self.array(slot, what)
        if array.dtype.kind not in "iu":
            raise ImportModelError(f"{self}: input '{what}' has type {array.dtype}, expected int64")
        return tuple(int(x) for x in array.ravel())

    def scalar(self, slot: int, what: str) -> Any:
        """A constant input of one element, as a Python number."""
        array = self.array(slot, what)
        if array.size != 1:
            raise ImportModelError(
                f"{self}: input '{what}' has shape {list(array.shape)}, expected a scalar"
            )
        return array.reshape(()).item()

    # -- attributes ------------------------------------------------------------------------------

    def attr_int(self, name: str, default: int | None = None) -> int:
        return int(self._attribute(name, int, default))

    def attr_float(self, name: str, default: float | None = None) -> float:
        return float(self._attribute(name, (int, float), default))

    def attr_str(self, name: str, default: str | None = None) -> str:
        return str(self._attribute(name, str, default))

    def attr_ints(self, name: str) -> tuple[int, ...] | None:
        """A list of ints, or None when the attribute is absent."""
        if name not in self.attributes:
            return None
        values = self._attribute(name, list, None)
        if not all(isinstance(v, int) for v in values):
            raise ImportModelError(
                f"{self}: attribute {name} is {values!r}, expected whole numbers"
            )
        return tuple(values)

    def attr_floats(self, name: str) -> tuple[float, ...] | None:
        """A list of floats, or None when the attribute is absent."""
        if name not in self.attributes:
            return None
        values = self._attribute(name, list, None)
        if not all(isinstance(v, int | float) for v in values):
            raise ImportModelError(f"{self}: attribute {name} is {values!r}, expected numbers")
        return tuple(float(v) for v in values)

    def _attribute(self, name: str, types: type | tuple[type, ...], default: Any) -> Any:
        value = self.attributes.get(name, default)
        if value is None:
            raise ImportModelError(f"{self}: attribute {name} is missing")
        if not isinstance(value, types):
            expected = types.__name__ if isinstance(types, type) else "a number"
            raise ImportModelError(f"{self}: attribute {name} is {value!r}, expected {expected}")
        return value

    # -- outputs ---------------------------------------------------------------------------------

    def reads(self, output: int) -> bool:
        """Whether anything reads output ``output``."""
        return output < len(self.outputs) and self.outputs[output] in self.used

    def only_first_output(self) -> None:
        """Refuse the node when an output after the first is read."""
        for index in range(1, len(self.outputs)):
            if self.reads(index):
                raise RefusedNodeError(f"its output {index} ('{self.outputs[index]}') is used")

    def axis(self, axis: int, rank: int) -> int:
        """``axis`` counted from the front; ImportModelError when it is outside ``rank``."""
        if not -rank <= axis < rank:
            raise ImportModelError(f"{self}: axis {axis} is outside a tensor of {rank} dimensions")
        return axis % rank

    def constant(self, array: Array) -> Value:
        """The node's only output as data."""
        return self.graph.add_constant(self.outputs[0] or self.name, array)

    def helper(self, array: Array, label: str) -> Value:
        """A constant that the conversion needs beside the model's own."""
        return self.graph.add_constant(f"{self.name}/{label}", array)

    def scalar_like(self, value: Value, number: float, label: str) -> Value:
        """``number`` as a scalar constant of the dtype of ``value``."""
        return self.helper(np.asarray(number).astype(value.dtype.numpy), label)

    def check_window(self, what: str, numbers: Sequence[int]) -> None:
        """Refuse sizes that no sliding window has; padded inputs and loops grow with them."""
        if any(abs(number) > WINDOW_LIMIT for number in numbers):
            raise ImportModelError(f"{self}: {what} is {tuple(numbers)}, which is absurdly large")

    def limit(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape``, after refusing one that no constant can sensibly have."""
        if any(d < 0 for d in shape) or math.prod(shape) > _CONSTANT_LIMIT:
            raise ImportModelError(f"{self}: asks for a constant of shape {list(shape)}")
        return tuple(shape)

    def emit(self, op: Op, *inputs: Value, part: str = "", inner: bool = False) -> Value:
        """Add a node and return its only output; all-constant shape arithmetic is folded instead.

        Args:
            op: the operation.
            inputs: its inputs.
            part: distinguishes a helper node from the node that keeps the model's name.
            inner: the output is not the output of the model's node.
        """
        first = self.outputs[0] if self.outputs else ""
        label = first or self.name
        names = [f"{label}/{part or op.name.lower()}" if inner else label]
        return self._emit(op, inputs, part, names)[0]

    def emit_all(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        """Add a node whose outputs are the outputs of the model's node."""
        given = (*self.outputs, *[""] * (op.output_count() - len(self.outputs)))
        names = [name or f"{self.name}#{index}" for index, name in enumerate(given)]
        return self._emit(op, inputs, "", names)

    def _emit(
        self, op: Op, inputs: tuple[Value, ...], part: str, names: list[str]
    ) -> tuple[Value, ...]:
        folded = _fold(op, inputs)
        if folded is not None:
            return tuple(self.graph.add_constant(n, a) for n, a in zip(names, folded, strict=True))
        node = self.graph.add_node(
            op,
            inputs,
            name=f"{self.name}/{part}" if part else self.name,
            origin=(self.name,),
            output_names=names,
        )
        for value in node.outputs:
            if math.prod(value.shape) > ELEMENT_LIMIT:
                raise ImportModelError(f"{self}: its result {list(value.shape)} is absurdly large")
        return node.outputs

    def __str__(self) -> str:
        return f"{self.op_type} '{self.name}'"


def _fold(op: Op, inputs: tuple[Value, ...]) -> tuple[Array, ...] | None:
    """The outputs, when all inputs are constant and small enough to compute here."""
    arrays = [v.constant for v in inputs if v.constant is not None]
    if not inputs or len(arrays) != len(inputs) or isinstance(op, _NEVER_FOLDED):
        return None
    op.check_arity(len(inputs))
    types = [v.type for v in inputs]
    # The result is measured before it is computed: Expand makes gigabytes of four bytes.
    for type_ in (*types, *op.infer(*types)):
        limit = _FOLD_FLOATS if type_.dtype.is_float else _FOLD_INTEGERS
        if math.prod(type_.shape) > limit:
            return None
    with np.errstate(all="ignore"):
        return op.reference(*arrays)
