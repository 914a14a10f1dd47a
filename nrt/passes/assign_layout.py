"""assign-layout: images lie channels last in memory, where convolutions want them.

    conv(x) = reformat⁻¹(conv_nhwc(reformat(x)))

::

    before   %a = Conv(%x, %w)               %b = Relu(%a)          %y = Reshape(%b)
    after    %p{nhwc} = Reformat(%x)         %a{nhwc} = Conv(%p, %w)
             %b{nhwc} = Relu(%a)             %q = Reformat(%b)      %y = Reshape(%q)

Shapes stay logical (N, C, H, W); only `Value.layout` changes. One walk in topological order:
windowed ops want channels last (a first layer of bytes takes its image in any order), elementwise
and piecewise ops follow their inputs, everything else wants row-major, as do the graph's outputs;
inputs, and outputs that bind-io reordered, stay as they are bound. A Reformat stands where the two
ends of an edge differ, one per value and layout, and none where both are the same memory. A
Transpose or Reshape that can be had as a change of layout alone is: its result gets the layout that
moves no element, where its readers can take that.

Matrix products take operands whose rows or columns are runs in memory, and write rows wherever the
Transpose after them wants them: the Transposes around attention are changes of layout too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nrt.dtypes import BYTES
from nrt.ir.graph import Graph
from nrt.ir.layout import (
    is_row_major,
    normalized,
    reshaped_layout,
    same_memory,
    transposed_layout,
)
from nrt.ir.op import Op
from nrt.ir.ops import (
    LRN,
    AbsHistogram,
    AveragePool,
    BatchNormalization,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Elementwise,
    Identity,
    MatMul,
    MaxPool,
    Pad,
    PooledMatMul,
    Reduce,
    Reformat,
    Reshape,
    Resize,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.value import NHWC, Layout, Node, Value
from nrt.passes.base import Note, Pass, PassResult
from nrt.passes.image_layer import is_image_layer

__all__ = ["AssignLayout"]

_CHANNELS_LAST: tuple[type[Op], ...] = (
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    LRN,
    Resize,
    BatchNormalization,
)
_FOLLOWS: tuple[type[Op], ...] = (Elementwise, Concat, Split, Slice, Pad, Identity, Dropout)


def _is_image(value: Value) -> bool:
    return len(value.shape) == 4 and not value.is_constant


def _reduces_space(node: Node) -> bool:
    op: Any = node.op
    if not isinstance(op, Reduce) or len(node.inputs[0].shape) != 4:
        return False
    axes = {a % 4 for a in op.axes}
    return axes == {2, 3} or (axes <= {2, 3} and op.keepdims)


def _is_matrix_layout(shape: tuple[int, ...], layout: Layout | None) -> bool:
    """Whether rows or columns are runs in memory; kernels take any other strides."""
    if same_memory(shape, layout, None) or layout is None:
        return True
    innermost = next((d for d in reversed(layout) if shape[d] != 1), len(shape) - 1)
    return innermost >= len(shape) - 2


def _reads_planes(node: Node) -> bool:
    """Whether kernels read the image in any order."""
    bytes_ = node.inputs[0].dtype in BYTES
    return bytes_ and isinstance(node.op, Conv) and is_image_layer(node.op, node.inputs[1].shape)


def _orders_output(graph: Graph, node: Node) -> bool:
    """Whether the node gives a graph output the memory order in which bind-io binds it."""
    x, y = node.inputs[0], node.outputs[0]
    return isinstance(node.op, Reformat) and x.dtype is y.dtype and graph.is_output(y)


def _follows(node: Node) -> bool:
    """Whether the node works in any layout that its images share."""
    if _reduces_space(node):
        return True
    return isinstance(node.op, _FOLLOWS) and all(len(v.shape) == 4 for v in node.outputs)


@dataclass(frozen=True)
class AssignLayout(Pass):
    """See the module."""

    name: ClassVar[str] = "assign-layout"

    def run(self, graph: Graph) -> PassResult:
        walk = _Walk(self, graph)
        for node in graph.nodes:
            walk.visit(node)
        for name, value in graph.outputs.items():
            walk.finish_output(name, value)
        return PassResult(graph, walk.changed, tuple(walk.notes))


class _Walk:
    """One run of the pass."""

    def __init__(self, owner: AssignLayout, graph: Graph) -> None:
        self.owner = owner
        self.graph = graph
        self.reformats: dict[tuple[Value, Layout | None], Value] = {}
        self.notes: list[Note] = []
        self.changed = False

    def visit(self, node: Node) -> None:
        if isinstance(node.op, _CHANNELS_LAST) and _is_image(node.inputs[0]):
            self.channels_last(node)
        elif isinstance(node.op, AbsHistogram):
            pass  # it counts elements wherever they lie
        elif isinstance(node.op, Reformat):
            x, y = node.inputs[0], node.output
            if x.dtype is not y.dtype:  # a cast; one of equal types stands for a change of layout
                self.set_layout(y, x.layout)
        elif isinstance(node.op, Transpose):
            self.transpose(node, node.op.perm)
        elif isinstance(node.op, Reshape):
            self.reshape(node)
        elif isinstance(node.op, MatMul):
            self.product(node)
        elif isinstance(node.op, PooledMatMul):
            self.pooled_product(node)
        elif _follows(node):
            self.follow(node)
        else:
            self.row_major(node)

    def channels_last(self, node: Node) -> None:
        if not _reads_planes(node):
            self.feed(node, 0, NHWC)
        for slot in range(1, len(node.inputs)):
            # Weights stay as they are: kernels pack them. Extras have the output's layout.
            self.feed(node, slot, NHWC if _is_image(node.inputs[slot]) else None)
        for value in node.outputs:
            self.set_layout(value, NHWC)

    def follow(self, node: Node) -> None:
        images = [v for v in node.inputs if _is_image(v)]
        last = any(v.layout == NHWC and not is_row_major(v) for v in images)
        layout = NHWC if last else None
        for slot, value in enumerate(node.inputs):
            self.feed(node, slot, layout if _is_image(value) else None)
        for value in node.outputs:
            self.set_layout(value, layout if len(value.shape) == 4 else None)

    def row_major(self, node: Node) -> None:
        for slot in range(len(node.inputs)):
            self.feed(node, slot, None)
        for value in node.outputs:
            self.set_layout(value, None)

    def product(self, node: Node) -> None:
        for slot, value in enumerate(node.inputs):
            if slot > 1 or not _is_matrix_layout(value.shape, value.layout):
                self.feed(node, slot, None)
        # Two results of one product lie in memory alike.
        wanted = {self.transposed_by_all(value) for value in node.outputs}
        layout = wanted.pop() if len(wanted) == 1 else None
        for value in node.outputs:
            self.set_layout(value, layout)

    def pooled_product(self, node: Node) -> None:
        for slot, value in enumerate(node.inputs):
            if slot > 0 or value.layout != NHWC:
                self.feed(node, slot, None)
        self.set_layout(node.output, None)

    def transposed_by_all(self, value: Value) -> Layout | None:
        """The layout that makes row-major what every reader transposes ``value`` to, if one does.

        The last dimension must stay innermost: kernels store rows.
        """
        perms = {
            n.op.perm if isinstance(n.op, Transpose) else None
            for n, _ in self.graph.consumers(value)
            if not isinstance(n.op, AbsHistogram)
        }
        perm = perms.pop() if len(perms) == 1 else None
        if perm is None or self.graph.is_output(value) or perm[-1] != len(perm) - 1:
            return None
        return perm

    def transpose(self, node: Node, perm: tuple[int, ...]) -> None:
        x, y = node.inputs[0], node.output
        free = normalized(y.shape, transposed_layout(x.layout, perm))
        if free is None or self.all_take(y, free):
            self.view(node, free)
        elif free == NHWC and any(self.takes(n, y, s, free) for n, s in self.graph.consumers(y)):
            # Others read through one Reformat, which costs what the Transpose would have.
            self.view(node, free)
        else:
            self.row_major(node)

    def reshape(self, node: Node) -> None:
        x, y = node.inputs[0], node.output
        spelled = reshaped_layout(x.shape, x.layout, y.shape)
        free = normalized(y.shape, spelled)
        if spelled is not None and (free is None or self.all_take(y, free)):
            self.view(node, free)
        else:
            self.row_major(node)

    def view(self, node: Node, layout: Layout | None) -> None:
        if self.set_layout(node.output, layout) and layout is not None:
            self.notes.append(self.owner.fired(node, "moves no element: only the layout changes"))

    def takes(self, node: Node, value: Value, slot: int, layout: Layout) -> bool:
        """Whether ``node`` can read ``value`` in ``layout`` as it is."""
        if isinstance(node.op, AbsHistogram):
            return True
        if isinstance(node.op, _CHANNELS_LAST):
            return slot == 0 and layout == NHWC
        if isinstance(node.op, MatMul):
            return slot < 2 and _is_matrix_layout(value.shape, layout)
        if isinstance(node.op, PooledMatMul):
            return slot == 0 and layout == NHWC
        if _orders_output(self.graph, node):
            return True
        if isinstance(node.op, Transpose):
            after = transposed_layout(layout, node.op.perm)
        elif isinstance(node.op, Reshape):
            spelled = reshaped_layout(value.shape, layout, node.output.shape)
            if spelled is None:
                return False
            after = spelled
        else:
            return layout == NHWC and _follows(node)
        free = normalized(node.output.shape, after)
        return free is None or self.all_take(node.output, free)

    def all_take(self, value: Value, layout: Layout) -> bool:
        """Whether every reader of ``value`` can read it in ``layout``; a graph output cannot."""
        if self.graph.is_output(value):
            return False
        return all(self.takes(n, value, slot, layout) for n, slot in self.graph.consumers(value))

    def feed(self, node: Node, slot: int, layout: Layout | None) -> None:
        """Let input ``slot`` read its value in ``layout``."""
        value = node.inputs[slot]
        if value.is_constant or same_memory(value.shape, value.layout, layout):
            return
        self.graph.replace_input(node, slot, self.reformat(value, layout))
        words = "channels last" if layout == NHWC else "row-major"
        self.notes.append(self.owner.fired(node, f"reads '{value.name}' {words}"))

    def reformat(self, value: Value, layout: Layout | None) -> Value:
        key = (value, layout)
        if key not in self.reformats:
            origin = value.producer.origin if value.producer is not None else ()
            label = "nhwc" if layout == NHWC else "row_major"
            node = self.graph.add_node(
                Reformat(value.dtype), [value], name=f"{value.name}.{label}", origin=origin
            )
            self.graph.set_layout(node.output, layout)
            self.reformats[key] = node.output
            self.changed = True
        return self.reformats[key]

    def set_layout(self, value: Value, layout: Layout | None) -> bool:
        if value.layout == layout:
            return False
        # Another name for the same memory is no change.
        self.changed |= not same_memory(value.shape, value.layout, layout)
        self.graph.set_layout(value, layout)
        return True

    def finish_output(self, name: str, value: Value) -> None:
        if value.producer is not None and _orders_output(self.graph, value.producer):
            return
        if is_row_major(value):
            # Another name for the same memory; users see plain arrays.
            if value.layout is not None and value.producer is not None:
                self.graph.set_layout(value, None)
            return
        self.graph.set_output(name, self.reformat(value, None))
