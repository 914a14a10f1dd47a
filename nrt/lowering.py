"""Graph to tasks: what to compute, on which memory.

Lowering decides for every value where it lives (`Place`: a buffer, an offset and strides) and turns
every node that is not a view into a `Task`: a `Problem` with its places. Reshape, and any
Transpose, Slice or Split that strides can say, cost nothing: their output is another view of the
same buffer. Producers write straight into their slice of a Concat's buffer where alignment allows;
other inputs of a Concat are copied into it. Which kernel solves a task is the tuner's choice, not
lowering's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from nrt.destinations import Destinations
from nrt.errors import BuildError
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import (
    Concat,
    Dropout,
    Elementwise,
    Expand,
    Identity,
    MatMul,
    Pointwise,
    Reformat,
    Reshape,
    Slice,
    Split,
    Transpose,
    kind_of,
)
from nrt.ir.value import NHWC, Node, Value
from nrt.places import Buffer, Place, dense_spec, settled, slice_place
from nrt.problem import Problem, TensorSpec, dense_strides
from nrt.strides import reshaped_strides, same_strides
from nrt.views import views_of

__all__ = ["Buffer", "Lowered", "Place", "Task", "lower"]


@dataclass(frozen=True)
class Task:
    """One problem to bind to a kernel.

    Attributes:
        name: the node's.
        origins: the model's nodes.
        problem: what to solve.
        inputs, outputs: places, in the problem's order.
    """

    name: str
    origins: tuple[str, ...]
    problem: Problem
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


@dataclass
class Lowered:
    """A graph as tasks in order, with the graph's bindings."""

    tasks: list[Task] = field(default_factory=list)
    inputs: list[tuple[str, TensorSpec]] = field(default_factory=list)
    outputs: list[tuple[str, TensorSpec]] = field(default_factory=list)


def lower(graph: Graph) -> Lowered:
    """Lower an optimized graph.

    Raises:
        BuildError: a node cannot be expressed (none of the built-in ops raises it).
    """
    return _Lowering(graph).run()


def _row_major(value: Value) -> TensorSpec:
    return TensorSpec.dense(value.shape, value.dtype)


def _arena(value: Value) -> Place:
    spec = dense_spec(value)
    return Place(Buffer("arena", spec.nbytes, label=value.name), 0, spec)


def _same_place(a: Place, b: Place) -> bool:
    return a.buffer is b.buffer and a.offset == b.offset and same_strides(a.spec, b.spec)


def _constant_place(value: Value, array: Array) -> Place:
    spec = dense_spec(value)
    return Place(Buffer("constant", spec.nbytes, array=array, label=value.name), 0, spec)


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.out = Lowered()
        self.places: dict[Value, Place] = {}
        self.destinations = Destinations(graph)
        self.named: Counter[str] = Counter()
        self.joined: set[tuple[Value, Buffer, int]] = set()

    def run(self) -> Lowered:
        graph = self.graph
        for index, value in enumerate(graph.inputs):
            spec = dense_spec(value)
            self.out.inputs.append((value.name, spec))
            self.places[value] = Place(
                Buffer("input", spec.nbytes, index, label=value.name), 0, spec
            )
        self._reserve_outputs()
        for node in graph.nodes:
            self._lower_node(node)
        self._finish_outputs()
        return self.out

    # -- graph outputs ---------------------------------------------------------------------------

    def _reserve_outputs(self) -> None:
        """Let the producer of an output write into the caller's binding where it can."""
        self.output_buffers: dict[str, Place] = {}
        for index, (name, value) in enumerate(self.graph.outputs.items()):
            spec = dense_spec(value) if value.layout == NHWC else _row_major(value)
            self.out.outputs.append((name, spec))
            place = Place(Buffer("output", spec.nbytes, index, label=name), 0, spec)
            self.output_buffers[name] = place
            if value.producer is None or value in self.destinations.reserved:
                continue
            if same_strides(dense_spec(value), spec):
                self.destinations.reserved[value] = place

    def _finish_outputs(self) -> None:
        for name, value in self.graph.outputs.items():
            source, target = self._place(value), self.output_buffers[name]
            if source.buffer is not target.buffer:
                self._copy(f"output:{name}", (), source, target)

    # -- nodes -----------------------------------------------------------------------------------

    def _moves_constants(self, node: Node) -> bool:
        """Whether the node only moves elements that are all known now."""
        return isinstance(
            node.op, Reshape | Transpose | Slice | Split | Identity | Dropout | Concat | Expand
        ) and all(self._place(v).buffer.space == "constant" for v in node.inputs)

    def _fold(self, node: Node) -> None:
        """Move constants now: a kernel packs an array of its input's own shape, never a view."""
        arrays = [self._place(v).buffer.array for v in node.inputs]
        results = node.op.reference(*(a for a in arrays if a is not None))
        for value, array in zip(node.outputs, results, strict=True):
            self.places[value] = _constant_place(value, array)

    def _lower_node(self, node: Node) -> None:
        op = node.op
        if self._moves_constants(node):
            self._fold(node)
        elif isinstance(op, Concat):
            self._concat(node, op.axis)
        elif isinstance(op, Identity | Dropout):
            self.places[node.output] = self._place(node.inputs[0])
        elif isinstance(op, Reshape):
            self._reshape(node)
        elif isinstance(op, Transpose | Slice | Split):
            views = views_of(node, self._place(node.inputs[0]))
            if views is None:  # a Slice backwards
                self._task(node, op)
            else:
                for value, view in zip(node.outputs, views, strict=True):
                    self._view_or_copy(node, value, view)
        elif isinstance(op, Expand):
            source = self._place(node.inputs[0])
            pad = len(node.output.shape) - len(source.spec.shape)
            strides = (0,) * pad + tuple(
                0 if d == 1 else s
                for d, s in zip(source.spec.shape, source.spec.strides, strict=True)
            )
            view = Place(
                source.buffer,
                source.offset,
                TensorSpec(node.output.shape, node.output.dtype, strides),
            )
            self._copy(node.name, node.origin, view, self._new_place(node.output))
        elif isinstance(op, Reformat):
            source = self._place(node.inputs[0])
            want = dense_spec(node.output)
            if want.dtype == source.spec.dtype and same_strides(source.spec, want):
                self._alias(node.output, replace(source, spec=want))
            else:
                self._task(node, op)
        else:
            self._task(node, op)

    def _alias(self, value: Value, place: Place) -> None:
        """Bind ``value`` to a view; an output or a Concat's slice that waits for it gets a copy."""
        self.places[value] = place
        target = self.destinations.reserved.get(value)
        if target is not None and not _same_place(place, target):
            self._copy(value.name, (), place, target)
            self.places[value] = target

    def _task(self, node: Node, op: Op) -> None:
        places = [self._place(v) for v in node.inputs]
        outputs = tuple(self._new_place(v) for v in node.outputs)
        if isinstance(op, MatMul):
            op, places = _plain_matmul(op, places)
        elif isinstance(op, Elementwise) and op.registered_as is not None:
            # A plan holds what a user's op computes, not its name.
            program = op.program(tuple(kind_of(v.dtype) for v in node.inputs))
            op = Pointwise(program, node.output.dtype)
        problem = Problem(
            op,
            tuple(p.spec for p in places),
            tuple(p.spec for p in outputs),
            tuple(p.buffer.space == "constant" for p in places),
        )
        self._emit(Task(node.name, node.origin, problem, tuple(places), outputs))

    def _copy(self, name: str, origins: tuple[str, ...], source: Place, target: Place) -> None:
        problem = Problem(
            Reformat(target.spec.dtype),
            (source.spec,),
            (target.spec,),
            (source.buffer.space == "constant",),
        )
        self._emit(Task(name, origins, problem, (source,), (target,)))

    def _emit(self, task: Task) -> None:
        """Add a task; one whose outputs are all empty has nothing to do.

        The second task of a node is ``name#1``, the third ``name#2``: reports go by name.
        """
        if any(t.size for t in task.problem.outputs):
            count = self.named[task.name]
            self.named[task.name] += 1
            name = f"{task.name}#{count}" if count else task.name
            self.out.tasks.append(replace(task, name=name))

    def _reshape(self, node: Node) -> None:
        source = self._place(node.inputs[0])
        shape = node.output.shape
        strides = reshaped_strides(source.spec, shape)
        if strides is None:
            place = self._new_place(node.output)
            back = reshaped_strides(place.spec, source.spec.shape)
            if back is not None:
                spec = TensorSpec(source.spec.shape, source.spec.dtype, back)
                self._copy(node.name, node.origin, source, replace(place, spec=spec))
                return
            dense = TensorSpec.dense(source.spec.shape, source.spec.dtype)
            target = Place(Buffer("arena", dense.nbytes, label=node.output.name), 0, dense)
            self._copy(node.name, node.origin, source, target)
            source, strides = target, dense_strides(shape)
        spec = TensorSpec(shape, source.spec.dtype, strides)
        self._alias(node.output, Place(source.buffer, source.offset, spec))

    def _view_or_copy(self, node: Node, value: Value, view: Place) -> None:
        """A view that kernels can read, or that nobody but other views reads; else a copy."""
        place = settled(value, view)
        if place is not None:
            self._alias(value, place)
        elif self._is_free(value, view):
            self._alias(value, view)
        else:
            self._copy(node.name, node.origin, view, self._new_place(value))

    def _is_free(self, value: Value, view: Place) -> bool:
        """Whether all who read ``value`` at ``view``, through views of it, do so without a copy."""
        if settled(value, view) is not None:
            return True
        readers = self.graph.consumers(value)
        if self.graph.is_output(value) or not readers:
            return False
        for node, _ in readers:
            views = views_of(node, view)
            if views is None or not all(map(self._is_free, node.outputs, views)):
                return False
        return True

    def _concat(self, node: Node, axis: int) -> None:
        place = self.destinations.concat(node)
        self.places[node.output] = place
        start = 0
        for value in node.inputs:
            part = slice_place(place, value.shape, axis, start)
            start += value.shape[axis]
            now = self.places.get(value)
            there = now is not None and _same_place(now, part)
            key = (value, part.buffer, part.offset)
            if not there and key not in self.joined:
                self.joined.add(key)
                self._copy(node.name, node.origin, self._place(value), part)

    # -- places ----------------------------------------------------------------------------------

    def _place(self, value: Value) -> Place:
        if value in self.places:
            return self.places[value]
        if value.constant is None:
            raise BuildError(f"value '{value.name}' is read before it is computed")
        self.places[value] = _constant_place(value, value.constant)
        return self.places[value]

    def _new_place(self, value: Value) -> Place:
        """Memory for a value about to be computed: where it is wanted, or new."""
        place = self.destinations.of(value) or _arena(value)
        self.places[value] = place
        return place


def _plain_matmul(op: MatMul, places: list[Place]) -> tuple[MatMul, list[Place]]:
    """Say transposed operands by strides, so that kernels see one form."""
    flags = (op.trans_a, op.trans_b)
    for slot, flag in enumerate(flags):
        place = places[slot]
        if flag and len(place.spec.shape) >= 2:
            places[slot] = _swap_last(place)
    return replace(op, trans_a=False, trans_b=False), places


def _swap_last(place: Place) -> Place:
    spec = place.spec
    shape = (*spec.shape[:-2], spec.shape[-1], spec.shape[-2])
    if place.buffer.array is not None:
        # A constant has no place yet: its data is transposed when it is packed.
        buffer = replace(place.buffer, array=np.swapaxes(place.buffer.array, -1, -2))
        return Place(buffer, 0, TensorSpec.dense(shape, spec.dtype))
    strides = (*spec.strides[:-2], spec.strides[-1], spec.strides[-2])
    return Place(place.buffer, place.offset, TensorSpec(shape, spec.dtype, strides))
