"""What a graph is made of: values and the nodes that define them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nrt.dtypes import DType
from nrt.errors import GraphError
from nrt.ir.op import Array, Op, TensorType

__all__ = ["NHWC", "Layout", "Node", "Value"]

Layout = tuple[int, ...]
"""Dimensions from outermost to innermost in memory; None is row-major order."""

NHWC: Layout = (0, 2, 3, 1)
"""Channels last. Shapes stay logical (N, C, H, W): a layout says only how memory is ordered."""


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in the graph; compared by identity.

    Attributes:
        name: unique in its graph.
        shape: logical shape, all ints.
        dtype: element type.
        constant: the data, in logical order, where it is known at build time.
        layout: order of the dimensions in memory; None is row-major.
        producer: the node that computes it; None for inputs and constants.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    constant: Array | None = None
    layout: Layout | None = None
    producer: Node | None = None

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype)

    @property
    def is_constant(self) -> bool:
        return self.constant is not None

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def strides(self) -> tuple[int, ...]:
        """Strides in elements, per logical dimension, of a dense tensor in this layout."""
        order = self.layout or tuple(range(len(self.shape)))
        strides = [0] * len(self.shape)
        step = 1
        for dim in reversed(order):
            strides[dim] = step
            step *= self.shape[dim]
        return tuple(strides)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(eq=False, slots=True)
class Node:
    """One operation on values; compared by identity.

    Attributes:
        name: unique in its graph.
        op: what it computes, with its attributes.
        inputs: values in slot order.
        outputs: values it defines.
        origin: names of the model's own nodes that it came from.
    """

    name: str
    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origin: tuple[str, ...] = ()

    @property
    def output(self) -> Value:
        """The only output."""
        if len(self.outputs) != 1:
            raise GraphError(f"{self}: has {len(self.outputs)} outputs, expected 1")
        return self.outputs[0]

    def __repr__(self) -> str:
        return f"{self.op.name} '{self.name}'"
