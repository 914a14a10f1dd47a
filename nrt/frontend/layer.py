"""What the layer methods of a network share: handles, constants, names, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.dtypes import BOOL, DType, dtype_from_name
from nrt.errors import GraphError, ShapeError
from nrt.extensions.pointwise import PointwiseFunction
from nrt.extensions.registry import registry
from nrt.ir import ops
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.value import Value

__all__ = ["Layers", "Operand", "Pair", "Tensor", "as_dtype", "pair"]

Pair = int | Sequence[int]
"""One number for both spatial dimensions, or (height, width)."""


class Tensor:
    """A value of a network while it is being defined; supports ``+ - * / ** @``.

    Attributes:
        network: the network it belongs to.
        value: the value in that network's graph.
    """

    __slots__ = ("network", "value")

    # NumPy must leave ``array + tensor`` to `Tensor.__radd__`.
    __array_ufunc__ = None

    def __init__(self, network: Layers, value: Value) -> None:
        self.network = network
        self.value = value

    @property
    def name(self) -> str:
        return self.value.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    def __repr__(self) -> str:
        return f"Tensor({self.value!r})"

    def __add__(self, other: Operand) -> Tensor:
        return self.network.layer("add", ops.Add(), self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return self.network.layer("add", ops.Add(), other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return self.network.layer("sub", ops.Sub(), self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return self.network.layer("sub", ops.Sub(), other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return self.network.layer("mul", ops.Mul(), self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return self.network.layer("mul", ops.Mul(), other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return self.network.layer("div", ops.Div(), self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return self.network.layer("div", ops.Div(), other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return self.network.layer("pow", ops.Pow(), self, other)

    def __matmul__(self, other: Operand) -> Tensor:
        return self.network.layer("matmul", ops.MatMul(), self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return self.network.layer("matmul", ops.MatMul(), other, self)

    def __neg__(self) -> Tensor:
        return self.network.layer("neg", ops.Neg(), self)


Operand = Tensor | Array | float | Sequence[float]
"""What a layer takes: a handle, or data that becomes a constant."""


def pair(what: str, value: Pair) -> tuple[int, int]:
    """``value`` as (height, width).

    Raises:
        ShapeError: it is neither a number nor two.
    """
    if isinstance(value, int | np.integer):
        return (int(value), int(value))
    numbers = tuple(int(v) for v in value)
    if len(numbers) != 2:
        raise ShapeError(f"{what} is {numbers}, expected a number or (height, width)")
    return numbers


def as_dtype(dtype: str | DType) -> DType:
    """A dtype by name or as it is; ShapeError for an unknown name."""
    return dtype if isinstance(dtype, DType) else dtype_from_name(dtype)


class Layers:
    """Adds layers to a graph; the base of `nrt.frontend.network.Network`."""

    def __init__(self, name: str) -> None:
        self._graph = Graph(name)

    @property
    def name(self) -> str:
        return self._graph.name

    def layer(self, kind: str, op: Op, *operands: Operand, name: str | None = None) -> Tensor:
        """Add ``op`` as a layer with one output; the named methods are the usual way.

        Args:
            kind: default name of the layer.
            op: any op of `nrt.ir.ops`.
            operands: its inputs; data becomes constants of the dtype of the first handle.
            name: the layer's name.

        Raises:
            GraphError: the name is taken, or a handle belongs to another network.
            ShapeError: shapes or dtypes do not fit; the message names the layer.
        """
        return self.layer_all(kind, op, *operands, name=name)[0]

    def layer_all(
        self, kind: str, op: Op, *operands: Operand, name: str | None = None
    ) -> tuple[Tensor, ...]:
        """As `layer`, for ops with several outputs."""
        label = self.layer_name(kind, name)
        node = self._graph.add_node(op, self._values(label, operands), name=label, origin=(label,))
        return tuple(Tensor(self, v) for v in node.outputs)

    def apply(
        self,
        what: str | PointwiseFunction | Op | type[Op],
        *operands: Operand,
        name: str | None = None,
        **attributes: Any,
    ) -> Tensor:
        """Add what a user defined: a pointwise function, or an op with one output.

        Args:
            what: the result of `nrt.pointwise`, an op or its class, or the name that either is
                registered as (``"ReLU6"``, ``"my.domain::Clip6"``).
            operands: its inputs; data becomes constants of the dtype of the first handle.
            name: the layer's name.
            attributes: of a pointwise function, or of an op that is given by its class or name.

        Raises:
            GraphError: nothing is registered under the name, the name of the layer is taken, or an
                attribute is unknown.
            ShapeError: shapes or dtypes do not fit; the message names the layer.
        """
        known = _registered(what) if isinstance(what, str) else what
        if isinstance(known, PointwiseFunction):
            label = self.layer_name(known.name.lower(), name)
            values = self._values(label, operands)
            op: Op = known.op([v.dtype for v in values], **attributes)
        else:
            if isinstance(known, Op) and attributes:
                raise GraphError(
                    f"apply: {known} has its attributes already; leave out {', '.join(attributes)}"
                )
            op = known if isinstance(known, Op) else _made(known, attributes)
            label = self.layer_name(op.name.lower(), name)
            values = self._values(label, operands)
        if op.output_count() != 1:
            raise GraphError(
                f"apply: {op.name} has {op.output_count()} outputs, expected 1; use layer_all"
            )
        return Tensor(self, self._graph.add_node(op, values, name=label, origin=(label,)).output)

    def layer_name(self, kind: str, name: str | None) -> str:
        """A free name: ``name`` itself, or ``kind``, ``kind_1``, ``kind_2`` …

        Raises:
            GraphError: ``name`` is taken.
        """
        if name is not None:
            if self._taken(name):
                raise GraphError(
                    f"network '{self.name}' has a layer or input '{name}' already; "
                    "choose another name"
                )
            return name
        label, count = kind, 0
        while self._taken(label):
            count += 1
            label = f"{kind}_{count}"
        return label

    def _taken(self, name: str) -> bool:
        return self._graph.has_node(name) or self._graph.has_value(name)

    def _values(self, label: str, operands: Sequence[Operand]) -> list[Value]:
        handles = [o for o in operands if isinstance(o, Tensor)]
        if not handles:
            raise GraphError(f"layer '{label}': no input comes from the network; expected a Tensor")
        for handle in handles:
            if handle.network is not self or not self._owns(handle.value):
                raise GraphError(
                    f"layer '{label}': tensor '{handle.name}' belongs to network "
                    f"'{handle.network.name}', not to '{self.name}'"
                )
        # The condition of a `where` says nothing about the data's type.
        dtype = next((h.dtype for h in handles if h.dtype is not BOOL), handles[0].dtype)
        arrays = [o if isinstance(o, Tensor) else _data(o, dtype, label) for o in operands]
        return [
            o.value if isinstance(o, Tensor) else self._graph.add_constant(f"{label}.{slot}", o)
            for slot, o in enumerate(arrays)
        ]

    def _owns(self, value: Value) -> bool:
        return self._graph.has_value(value.name) and self._graph.value(value.name) is value


def _registered(name: str) -> PointwiseFunction | type[Op]:
    found = registry.pointwise.get(name) or registry.ops.get(name)
    if found is None:
        names = (*registry.pointwise.names, *registry.ops.names)
        raise GraphError(
            f"apply: nothing is registered as {name!r}; registered: {', '.join(names) or 'nothing'}"
        )
    return found


def _made(kind: Any, attributes: dict[str, Any]) -> Op:
    if not (isinstance(kind, type) and issubclass(kind, Op)):
        raise GraphError(
            f"apply: got {kind!r}, expected a name, the result of nrt.pointwise, or an op"
        )
    try:
        return kind(**attributes)
    except TypeError as error:
        raise GraphError(f"apply: {kind.__name__}: {error}") from error


def _data(data: Any, dtype: DType, label: str) -> Array:
    """``data`` as an array; NumPy's default types give way to the layer's dtype."""
    array = np.asarray(data)
    if array.dtype.kind not in "biuf" and not isinstance(data, np.ndarray):
        raise GraphError(
            f"layer '{label}': got {type(data).__name__}, expected a Tensor, an array or numbers"
        )
    number = not isinstance(data, np.ndarray)
    default = array.dtype == np.float64 or (number and array.dtype.kind in "iu")
    # float64 is what NumPy makes of everything: a float network does not become fp64 by accident.
    return array.astype(dtype.numpy) if default and dtype.kind != "bool" else array
