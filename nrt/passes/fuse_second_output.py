"""fuse-second-output: a product also stores what an elementwise node makes of its result.

    y = conv(x, w; e),  z = g(y, p)      y, z = conv(x, w, p; e, g ∘ e)

::

    before   %y = Conv(%x, %w, %r; add(x0, x1))     %z = Max(%y, 0.0)     %y read elsewhere too
    after    %y, %z = Conv(%x, %w, %r; add(x0, x1); max(r2, 0.0) -> r2, r4)

Where only g reads y, fuse-conv-epilogue and fuse-matmul-epilogue leave z alone. Here others read y
as well: the sum of a residual network before its activation, a value that is stored in two types.
One launch and one pass over y are saved, and the kernel ends with two stores per result, for which
not all kernels have their fastest way: a choice.

Runs late, on types and layouts that are settled, and before merge-pointwise, which makes one loop
of what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nrt.dtypes import BYTES
from nrt.ir.graph import Graph
from nrt.ir.layout import normalized
from nrt.ir.ops import Conv, ConvTranspose, Elementwise, MatMul, Reformat
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.ops.quantize import byte_rounding, without_byte_rounding
from nrt.ir.pointwise import Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.contraction import Contraction
from nrt.passes.fusion import (
    FusionLimits,
    joined,
    own_program,
    too_large,
    trimmed,
    unsafe_intermediate,
)

__all__ = ["FuseSecondOutput"]

_PRODUCTS = (Conv, ConvTranspose, MatMul)
_LIMITS = FusionLimits()


@dataclass(frozen=True, eq=False)
class _Pair:
    """A product, and a reader of its result.

    Attributes:
        product, reader: the nodes.
        program: the epilogue of both; its first output is the product's result.
        extras: its operands.
    """

    product: Node
    reader: Node
    program: Program
    extras: tuple[Value, ...]

    @property
    def key(self) -> str:
        """See `Site`."""
        op: Any = self.product.op
        plain = replace(op, epilogue=None)
        values = (*self.product.inputs[: epilogue_slot(op)], *self.extras)
        outputs = (self.product.output, self.reader.output)
        types = [f"{v.type}{v.layout or ''}" for v in (*values, *outputs)]
        return f"{plain} {self.program.text()} | {' '.join(types)}"


@dataclass(frozen=True)
class FuseSecondOutput(ChoicePass):
    """See the module.

    Attributes:
        max_extras: most operands of a product's programs and a second result together; kernels have
            as many pointers.
    """

    name: ClassVar[str] = "fuse-second-output"
    max_extras: int = 6

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        pairs = [p for p in self._candidates(graph) if isinstance(p, _Pair)]
        return tuple(Site(p.key, frozenset((*p.product.origin, *p.reader.origin))) for p in pairs)

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        for found in list(self._candidates(graph)):
            if isinstance(found, Note):
                notes.append(found)
            elif found.key in self.skip:
                notes.append(self.refused(found.reader, "it is left apart"))
            else:
                # Its operands may be second results of a product that was rewritten before.
                again = self._pair(graph, Contraction(graph), found.product, found.reader)
                assert isinstance(again, _Pair), again
                notes.append(self._fuse(graph, again))
        return PassResult(graph, any(n.kind == "fired" for n in notes), tuple(notes))

    # -- which -----------------------------------------------------------------------------------

    def _candidates(self, graph: Graph) -> Iterator[_Pair | Note]:
        """Per product the first reader that it can take, or why it can take none."""
        contraction = Contraction(graph)
        taken: set[Node] = set()
        for node in graph.nodes:
            if not isinstance(node.op, _PRODUCTS) or len(node.outputs) > 1:
                continue
            readers = list(dict.fromkeys(reader for reader, _ in graph.consumers(node.output)))
            if len(readers) < 2 and not graph.is_output(node.output):
                continue
            refused: list[Note] = []
            for reader in readers:
                if not isinstance(reader.op, Elementwise | Reformat) or reader in taken:
                    continue
                if not graph.consumers(reader.output) and not graph.is_output(reader.output):
                    continue
                pair = self._pair(graph, contraction, node, reader)
                if isinstance(pair, _Pair):
                    taken.add(reader)
                    contraction.join(node, reader)
                    yield pair
                    break
                refused.append(self.refused(reader, pair))
            else:
                yield from refused

    def _pair(
        self, graph: Graph, contraction: Contraction, product: Node, reader: Node
    ) -> _Pair | str:
        """``product`` with the result of ``reader``, or why not."""
        y, z = product.output, reader.output
        if z.shape != y.shape:
            return f"broadcasting enlarges the result of {product} to {list(z.shape)}"
        if normalized(z.shape, z.layout) != normalized(y.shape, y.layout):
            return f"its result lies in another order than that of {product}"
        if isinstance(reader.op, Reformat) and not (y.dtype.is_float and z.dtype.is_float):
            return f"a cast of {y.dtype} to {z.dtype}"
        for value in (y, z):
            if not (value.dtype.is_float or value.dtype in BYTES):
                return f"'{value.name}' is {value.dtype}, an epilogue computes floats"
        if not contraction.joinable(product, reader):
            return f"it reads what depends on {product}"
        op: Any = product.op
        if op.epilogue is None and len(product.inputs) > epilogue_slot(op):
            return f"the bias of {product} is no part of an epilogue"
        stored = op.epilogue or identity()
        if y.dtype in BYTES:
            stored = byte_rounding(stored, y.dtype)
        involved = [v.dtype for v in (*reader.inputs, *product.inputs, z)]
        unsafe = unsafe_intermediate(y.dtype, involved, stored)
        if unsafe is not None:
            return unsafe
        first = epilogue_slot(op)
        program, extras = joined(
            stored,
            (None, *product.inputs[first:]),
            _both(reader, y),
            reader.inputs,
            hole=y,
        )
        for result, value in enumerate((y, z)):
            whole = program
            if value.dtype in BYTES:
                whole = without_byte_rounding(program, value.dtype, result) or program
            if whole.kinds[whole.outputs[result]] != "f":
                return f"'{value.name}' is no float that is rounded and saturated, as stores do"
            program = whole
        count = first - 2 + len(extras) + 1
        if count > self.max_extras:
            return (
                f"{product} would have {count} tensors beside its factors and its result, the "
                f"limit is {self.max_extras}"
            )
        reason = too_large(_LIMITS, program, len(extras))
        return _Pair(product, reader, program, extras) if reason is None else reason

    # -- how -------------------------------------------------------------------------------------

    def _fuse(self, graph: Graph, pair: _Pair) -> Note:
        product, reader = pair.product, pair.reader
        op: Any = product.op
        old = (product.output, reader.output)
        names = [v.name for v in old]
        factors = product.inputs[: epilogue_slot(op)]
        node = graph.add_node(
            replace(op, epilogue=pair.program, out_dtype=old[0].dtype, second_dtype=old[1].dtype),
            [*factors, *(trimmed(graph, v) for v in pair.extras)],
            name=f"{product.name}~",
            origin=[*product.origin, *reader.origin],
        )
        for before, after in zip(old, node.outputs, strict=True):
            graph.set_layout(after, before.layout)
            graph.replace_value(before, after)
        what = _program(reader).text()
        for done in (reader, product):
            graph.remove_node(done)
        graph.rename(node, product.name)
        for name, value in zip(names, node.outputs, strict=True):
            graph.rename(value, name)
        return self.fired(node, f"also stores {reader}: {what}")


def _program(reader: Node) -> Program:
    return identity() if isinstance(reader.op, Reformat) else own_program(reader)


def _both(reader: Node, value: Value) -> Program:
    """The program of ``reader``, whose first output is the ``value`` that it reads."""
    own = _program(reader)
    return Program(own.inputs, own.instrs, (reader.inputs.index(value), *own.outputs))
