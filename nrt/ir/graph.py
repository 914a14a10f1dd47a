"""The graph: nodes and values over a networkx MultiDiGraph.

An edge runs from a value's producer to its consumer; its key is the consumer's input slot, so that
``Add(x, x)`` keeps both edges. Graph inputs and constants are values without a producer. Only the
methods of `Graph` change it; `Graph.nx` is a read-only view for any networkx algorithm.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from nrt.drawing import Drawable, Picture
from nrt.dtypes import DType, dtype_from_numpy
from nrt.errors import GraphError, NrtError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.value import Layout, Node, Value

__all__ = ["Graph"]


@dataclass(eq=False)
class Graph(Drawable):
    """A network. See the module's docstring for the rules."""

    name: str = "graph"
    _nx: nx.MultiDiGraph = field(default_factory=nx.MultiDiGraph, repr=False)
    _values: dict[str, Value] = field(default_factory=dict, repr=False)
    _inputs: list[Value] = field(default_factory=list, repr=False)
    _outputs: dict[str, Value] = field(default_factory=dict, repr=False)
    _rank: dict[str, int] = field(default_factory=dict, repr=False)
    _next_rank: int = field(default=0, repr=False)
    _order: list[Node] | None = field(default=None, repr=False)
    _uses: dict[Value, dict[tuple[Node, int], None]] = field(default_factory=dict, repr=False)

    # -- reading ---------------------------------------------------------------------------------

    @property
    def nx(self) -> nx.MultiDiGraph:
        """Read-only view: node name -> attribute ``node``; edge attribute ``value``."""
        return nx.graphviews.generic_graph_view(self._nx)

    @property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(self._inputs)

    @property
    def outputs(self) -> Mapping[str, Value]:
        """The model's output names -> values, in order."""
        return dict(self._outputs)

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(self._values.values())

    @property
    def constants(self) -> tuple[Value, ...]:
        return tuple(v for v in self._values.values() if v.is_constant)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes in topological order; ties go to the older node, so the order is deterministic."""
        if self._order is None:
            self._order = self._sort()
        return tuple(self._order)

    def __len__(self) -> int:
        return len(self._nx)

    def node(self, name: str) -> Node:
        """The node called ``name``; GraphError if there is none."""
        try:
            node: Node = self._nx.nodes[name]["node"]
        except KeyError:
            raise GraphError(f"graph '{self.name}' has no node '{name}'") from None
        return node

    def has_node(self, name: str) -> bool:
        return name in self._nx

    def value(self, name: str) -> Value:
        """The value called ``name``; GraphError if there is none."""
        try:
            return self._values[name]
        except KeyError:
            raise GraphError(f"graph '{self.name}' has no value '{name}'") from None

    def has_value(self, name: str) -> bool:
        return name in self._values

    def consumers(self, value: Value) -> tuple[tuple[Node, int], ...]:
        """(node, input slot) of every use of ``value`` by a node."""
        return tuple(self._uses.get(value, {}))

    def output_names(self, value: Value) -> tuple[str, ...]:
        """The graph outputs that ``value`` is bound to."""
        return tuple(n for n, v in self._outputs.items() if v is value)

    def is_output(self, value: Value) -> bool:
        return any(v is value for v in self._outputs.values())

    def single_use(self, value: Value) -> bool:
        """Whether exactly one node slot, and no graph output, reads ``value``."""
        return len(self._uses.get(value, {})) == 1 and not self.is_output(value)

    def picture(self) -> Picture:
        """Boxes and arrows for `to_svg`, `to_dot` and `to_mermaid`; a notebook shows them."""
        from nrt.ir.picture import graph_picture

        return graph_picture(self)

    # -- building --------------------------------------------------------------------------------

    def unique_name(self, name: str) -> str:
        """``name``, or ``name.1``, ``name.2`` … when a node or value has it already."""
        if name not in self._values and name not in self._nx:
            return name
        count = 1
        while f"{name}.{count}" in self._values or f"{name}.{count}" in self._nx:
            count += 1
        return f"{name}.{count}"

    def add_input(self, name: str, shape: Sequence[int], dtype: DType) -> Value:
        """A new graph input; GraphError if a value has that name."""
        value = self._new_value(name, tuple(int(d) for d in shape), dtype)
        self._inputs.append(value)
        return value

    def add_constant(self, name: str, array: Array, layout: Layout | None = None) -> Value:
        """A new constant holding ``array`` (logical order, not copied); the name is made unique."""
        array = np.asarray(array)
        value = self._new_value(self.unique_name(name), array.shape, dtype_from_numpy(array.dtype))
        value.constant = array
        value.layout = layout
        return value

    def add_node(
        self,
        op: Op,
        inputs: Iterable[Value],
        *,
        name: str | None = None,
        origin: Iterable[str] = (),
        output_names: Sequence[str] | None = None,
    ) -> Node:
        """A new node; its outputs' types come from ``op.infer``.

        Args:
            op: the operation.
            inputs: values of this graph.
            name: made unique; the op's name in lower case by default.
            origin: names of the model's nodes it stands for.
            output_names: one per output, made unique; the node's name by default.

        Raises:
            GraphError: an input is not of this graph, or the op and its inputs do not fit
                (ShapeError, with the node's name).
        """
        args = tuple(inputs)
        base = name or op.name.lower()
        for value in args:
            if self._values.get(value.name) is not value:
                raise GraphError(
                    f"{op.name} '{base}': input '{value.name}' is not a value of graph "
                    f"'{self.name}'"
                )
        types = self._infer(op, args, base)
        node_name = base
        count = 0
        while node_name in self._nx:
            count += 1
            node_name = f"{base}.{count}"
        suffixes = (
            [node_name] if len(types) == 1 else [f"{node_name}#{i}" for i in range(len(types))]
        )
        wanted = output_names or suffixes
        if len(wanted) != len(types):
            raise GraphError(
                f"{op.name} '{base}': {len(wanted)} output names for {len(types)} outputs"
            )
        node = Node(node_name, op, args, (), tuple(dict.fromkeys(origin)))
        self._nx.add_node(node_name, node=node)
        self._rank[node_name] = self._take_rank()
        outputs = []
        for label, type_ in zip(wanted, types, strict=True):
            value = self._new_value(self._value_name(label), type_.shape, type_.dtype)
            value.producer = node
            outputs.append(value)
        node.outputs = tuple(outputs)
        for slot, value in enumerate(args):
            self._connect(node, slot, value)
        self._order = None
        return node

    def set_output(self, name: str, value: Value) -> None:
        """Bind the graph output ``name`` to ``value`` (a new output, or another value for it)."""
        if self._values.get(value.name) is not value:
            raise GraphError(
                f"output '{name}': '{value.name}' is not a value of graph '{self.name}'"
            )
        self._outputs[name] = value

    # -- changing --------------------------------------------------------------------------------

    def replace_input(self, node: Node, slot: int, value: Value) -> None:
        """Let input ``slot`` of ``node`` read ``value``; types must stay those the op accepts."""
        if self._values.get(value.name) is not value:
            raise GraphError(f"{node}: '{value.name}' is not a value of graph '{self.name}'")
        old = node.inputs[slot]
        self._disconnect(node, slot, old)
        node.inputs = (*node.inputs[:slot], value, *node.inputs[slot + 1 :])
        self._connect(node, slot, value)
        self._order = None

    def replace_value(self, old: Value, new: Value, *, except_node: Node | None = None) -> None:
        """Let every user of ``old``, graph outputs included, read ``new``.

        ``except_node`` keeps reading ``old`` (it usually computes ``new`` from it).
        """
        if old is new:
            return
        for node, slot in self.consumers(old):
            if node is not except_node:
                self.replace_input(node, slot, new)
        for name in self.output_names(old):
            self._outputs[name] = new

    def replace_node(
        self,
        node: Node,
        op: Op,
        inputs: Iterable[Value],
        *,
        also: Iterable[Node] = (),
        name: str | None = None,
    ) -> Node:
        """Put a new node in the place of ``node``, whose outputs' users move to it.

        Args:
            node: the node whose outputs are replaced; removed, as are dead nodes before it.
            op: the new operation, of as many outputs.
            inputs: its inputs.
            also: further nodes whose origins the new one takes over.
            name: the new node's name; the old one's by default.

        Raises:
            GraphError: ``op`` has more or fewer outputs.
        """
        if op.output_count() != len(node.outputs):
            raise GraphError(
                f"{node}: has {len(node.outputs)} outputs, {op.name} in its place "
                f"{op.output_count()}; expected as many"
            )
        origin = [o for n in (*also, node) for o in n.origin]
        label = name or node.name
        names = [f"{value.name}~" for value in node.outputs]
        new = self.add_node(op, inputs, name=f"{label}~", origin=origin, output_names=names)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.layout = old.layout
            self.replace_value(old, value)
        self.remove_dead(node)
        self._rename(new, label)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            if not self.has_value(old.name):
                self._rename_value(value, old.name)
        return new

    def remove_node(self, node: Node) -> None:
        """Remove ``node``; GraphError if an output is still read."""
        for value in node.outputs:
            if self._uses.get(value) or self.is_output(value):
                raise GraphError(f"{node}: output '{value.name}' is still used")
        for slot, value in enumerate(node.inputs):
            self._disconnect(node, slot, value)
        for value in node.outputs:
            del self._values[value.name]
            self._uses.pop(value, None)
        self._nx.remove_node(node.name)
        del self._rank[node.name]
        self._order = None

    def remove_dead(self, node: Node) -> int:
        """Remove ``node`` if nothing reads it, then its producers likewise; returns how many."""
        removed = 0
        stack = [node]
        while stack:
            current = stack.pop()
            if not self.has_node(current.name) or self.node(current.name) is not current:
                continue
            if any(self._uses.get(v) or self.is_output(v) for v in current.outputs):
                continue
            producers = [v.producer for v in current.inputs if v.producer is not None]
            self.remove_node(current)
            removed += 1
            stack.extend(producers)
        return removed

    def prune(self) -> int:
        """Remove every node that no output needs and every unused constant; returns node count."""
        removed = 0
        for node in reversed(self.nodes):
            if not any(self._uses.get(v) or self.is_output(v) for v in node.outputs):
                self.remove_node(node)
                removed += 1
        for value in self.constants:
            if not self._uses.get(value) and not self.is_output(value):
                del self._values[value.name]
        return removed

    def remove_constant(self, value: Value) -> None:
        """Remove the constant ``value``; GraphError if it is none, or still read."""
        if not value.is_constant or self._values.get(value.name) is not value:
            raise GraphError(f"graph '{self.name}' has no constant '{value.name}' to remove")
        if self._uses.get(value) or self.is_output(value):
            raise GraphError(f"constant '{value.name}' is still used")
        del self._values[value.name]
        self._uses.pop(value, None)

    def rename(self, what: Node | Value, name: str) -> None:
        """Call a node or value ``name``; GraphError if another of its kind has that name."""
        if isinstance(what, Node):
            if self.has_node(name) and self.node(name) is not what:
                raise GraphError(f"graph '{self.name}' has a node '{name}' already")
            self._rename(what, name)
        else:
            if self.has_value(name) and self._values[name] is not what:
                raise GraphError(f"graph '{self.name}' has a value '{name}' already")
            self._rename_value(what, name)

    def set_layout(self, value: Value, layout: Layout | None) -> None:
        """Order ``value`` in memory by ``layout``; its logical shape stays."""
        if layout is not None and sorted(layout) != list(range(len(value.shape))):
            raise GraphError(
                f"value '{value.name}': layout {layout} does not fit rank {len(value.shape)}"
            )
        row_major = tuple(range(len(value.shape)))
        value.layout = None if layout == row_major else layout

    def reinfer(self, node: Node) -> None:
        """Take over the output types that ``node``'s op infers from its inputs as they are now."""
        types = self._infer(node.op, node.inputs, node.name)
        for value, type_ in zip(node.outputs, types, strict=True):
            value.shape, value.dtype = type_.shape, type_.dtype

    def copy(self) -> Graph:
        """An independent graph with the same names; constant arrays are shared."""
        other = Graph(self.name)
        mapping: dict[Value, Value] = {}

        def clone(value: Value) -> Value:
            if value not in mapping:
                new = other._new_value(value.name, value.shape, value.dtype)
                new.constant, new.layout = value.constant, value.layout
                mapping[value] = new
            return mapping[value]

        other._inputs = [clone(v) for v in self._inputs]
        for value in self._values.values():
            clone(value)
        for node in self.nodes:
            new = Node(
                node.name,
                node.op,
                tuple(mapping[v] for v in node.inputs),
                tuple(mapping[v] for v in node.outputs),
                node.origin,
            )
            other._nx.add_node(new.name, node=new)
            other._rank[new.name] = other._take_rank()
            for v in new.outputs:
                v.producer = new
            for slot, v in enumerate(new.inputs):
                other._connect(new, slot, v)
        other._outputs = {n: mapping[v] for n, v in self._outputs.items()}
        return other

    def extract(self, inputs: str | Iterable[str], outputs: str | Iterable[str]) -> Graph:
        """A new graph that computes the values ``outputs`` from the values ``inputs``.

        Names, origins, layouts and constants are kept (arrays are shared); what the outputs do not
        need is left out.

        Args:
            inputs: names of values, anywhere in the graph, that become the new graph's inputs.
            outputs: names of values, or of outputs of this graph.

        Raises:
            GraphError: a name is no value of the graph or given twice, an input is a constant, or
                an output also needs an input of the graph that ``inputs`` does not name.
        """
        from nrt.ir.surgery import extract

        return extract(self, inputs, outputs)

    # -- inside ----------------------------------------------------------------------------------

    def _infer(self, op: Op, args: tuple[Value, ...], label: str) -> tuple[TensorType, ...]:
        try:
            op.check_arity(len(args))
            return op.infer(*(v.type for v in args))
        except NrtError as error:
            text = str(error)
            prefix = f"{op.name}: "
            detail = text.removeprefix(prefix)
            raise type(error)(f"{op.name} '{label}': {detail}") from error

    def _new_value(self, name: str, shape: tuple[int, ...], dtype: DType) -> Value:
        if name in self._values:
            raise GraphError(f"graph '{self.name}' has a value '{name}' already")
        value = Value(name, shape, dtype)
        self._values[name] = value
        return value

    def _value_name(self, name: str) -> str:
        label, count = name, 0
        while label in self._values:
            count += 1
            label = f"{name}.{count}"
        return label

    def _take_rank(self) -> int:
        # Not the number of ranks: a name that is used again would repeat another node's.
        self._next_rank += 1
        return self._next_rank

    def _rename(self, node: Node, name: str) -> None:
        if name in self._nx:
            return
        rank = self._rank.pop(node.name)
        nx.relabel_nodes(self._nx, {node.name: name}, copy=False)
        node.name = name
        self._rank[name] = rank
        self._order = None

    def _rename_value(self, value: Value, name: str) -> None:
        del self._values[value.name]
        value.name = name
        self._values[name] = value

    def _connect(self, node: Node, slot: int, value: Value) -> None:
        self._uses.setdefault(value, {})[(node, slot)] = None
        if value.producer is not None:
            self._nx.add_edge(value.producer.name, node.name, key=slot, value=value)

    def _disconnect(self, node: Node, slot: int, value: Value) -> None:
        self._uses[value].pop((node, slot))
        if value.producer is not None:
            self._nx.remove_edge(value.producer.name, node.name, key=slot)

    def _sort(self) -> list[Node]:
        """Kahn's algorithm over a heap of ranks."""
        missing = {name: self._nx.in_degree(name) for name in self._nx}
        ready = [(self._rank[n], n) for n, d in missing.items() if d == 0]
        heapq.heapify(ready)
        order: list[Node] = []
        while ready:
            _, name = heapq.heappop(ready)
            order.append(self._nx.nodes[name]["node"])
            for _, target in self._nx.out_edges(name):
                missing[target] -= 1
                if missing[target] == 0:
                    heapq.heappush(ready, (self._rank[target], target))
        if len(order) != len(self._nx):
            raise GraphError(f"graph '{self.name}' has a cycle: {nx.find_cycle(self._nx)}")
        return order
