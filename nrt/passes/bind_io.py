"""bind-io: inputs and outputs have the element type and memory order that the caller binds.

    y = f(x)   becomes   y' = cast(f(cast(x')))

::

    before   %x: fp32                                   %y: fp32 = Relu(Conv(%x, %w))
    after    %x: fp16{nhwc}   %a: fp32 = Reformat(%x)   %b: fp32 = Relu(Conv(%a, %w))
             %y: fp16 = Reformat(%b)

The rest of the graph sees the model's own types, so that a format changes no other pass: where
precision and layout ask for what is bound anyway, merge-reformats leaves nothing to launch. The
pass runs before both, and once more after them for what layouts undid.

A pointwise node computes in fp32 whatever it reads, so it takes a narrower input as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nrt.dtypes import BF16, FP16, FP32, FP64, DType
from nrt.errors import BuildError
from nrt.ir.graph import Graph
from nrt.ir.layout import same_memory
from nrt.ir.ops import Elementwise, Pointwise, Reformat
from nrt.ir.value import NHWC, Node, Value
from nrt.passes.base import Note, Pass, PassResult
from nrt.passes.fusion import own_program

__all__ = ["ONLY_INPUT", "ONLY_OUTPUT", "BindIo", "IOFormat"]

ONLY_INPUT, ONLY_OUTPUT = "<input>", "<output>"
"""Stand for the name of the only input or output of a model that has one."""

_FLOATS: Mapping[str, DType] = {d.name: d for d in (FP32, FP16, BF16, FP64)}
_LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class IOFormat:
    """How an input or output is bound; None keeps what the model has.

    Attributes:
        dtype: ``fp32``, ``fp16``, ``bf16`` or ``fp64``, where the model's own type is a float.
        layout: memory order of an image [N, C, H, W]: ``nchw`` (row-major, the default) or ``nhwc``
            (channels last). The shape stays [N, C, H, W].
    """

    dtype: str | None = None
    layout: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, (self.dtype, self.layout))) or "as in the model"


@dataclass(frozen=True)
class BindIo(Pass):
    """See the module.

    Attributes:
        io: name of an input or output -> its format; `ONLY_INPUT` and `ONLY_OUTPUT` are names too.

    Raises:
        BuildError: a name is unknown, a type is no float where the model's is one or the other way
            round, or ``nhwc`` is asked for what is no image.
    """

    name: ClassVar[str] = "bind-io"
    io: Mapping[str, IOFormat] = field(default_factory=dict)

    def run(self, graph: Graph) -> PassResult:
        inputs = {value.name: value for value in graph.inputs}
        notes: list[Note] = []
        for name, wanted in _resolved(graph, self.io).items():
            if name in inputs:
                notes += self._bind_input(graph, inputs[name], wanted)
            if name in graph.outputs:
                notes += self._bind_output(graph, name, wanted)
        return PassResult(graph, bool(notes), tuple(notes))

    def required(self) -> str:
        names = ", ".join(f"'{name}' ({wanted})" for name, wanted in self.io.items())
        return f"io= asks for formats that it makes: {names}" if names else ""

    def _bind_input(self, graph: Graph, value: Value, wanted: IOFormat) -> list[Note]:
        dtype = _checked(f"input '{value.name}'", value, wanted)
        layout = NHWC if wanted.layout == "nhwc" else None
        notes = []
        if not same_memory(value.shape, value.layout, layout):
            graph.set_layout(value, layout)
            notes += [
                self.fired(n, f"reads '{value.name}' {wanted}") for n in _readers(graph, value)
            ]
        if dtype is not value.dtype:
            own = value.dtype
            cast = graph.add_node(Reformat(own), [value], name=f"{value.name}.{own}")
            graph.replace_value(value, cast.output, except_node=cast)
            graph.set_layout(cast.output, layout)
            value.dtype = dtype
            notes.append(self.fired(cast, f"input '{value.name}' is bound as {dtype}"))
        for reader in _readers(graph, value):
            if isinstance(reader.op, Reformat) and _widens(reader):
                notes += self._read_narrow(graph, reader)
        return notes

    def _read_narrow(self, graph: Graph, cast: Node) -> list[Note]:
        """Let pointwise nodes read what ``cast`` widens."""
        notes = []
        for node in _readers(graph, cast.output):
            if isinstance(node.op, Elementwise):
                narrow = [cast.inputs[0] if v is cast.output else v for v in node.inputs]
                op = Pointwise(own_program(node), node.output.dtype)
                notes.append(self.fired(node, f"reads '{cast.inputs[0].name}' as it is bound"))
                graph.replace_node(node, op, narrow)
        graph.remove_dead(cast)
        return notes

    def _bind_output(self, graph: Graph, name: str, wanted: IOFormat) -> list[Note]:
        value = graph.outputs[name]
        dtype = _checked(f"output '{name}'", value, wanted)
        layout = NHWC if wanted.layout == "nhwc" else None
        notes = []
        if dtype is not value.dtype:
            value = _reformatted(graph, value, dtype, f"{name}.{dtype}")
            graph.set_layout(value, graph.outputs[name].layout)
            graph.set_output(name, value)
            notes.append(self.fired(_producer(value), f"output '{name}' is bound as {dtype}"))
        if not same_memory(value.shape, value.layout, layout):
            value = _reformatted(graph, value, dtype, f"{name}.{wanted.layout or 'nchw'}")
            graph.set_layout(value, layout)
            graph.set_output(name, value)
            notes.append(self.fired(_producer(value), f"output '{name}' is bound {wanted}"))
        return notes


def _readers(graph: Graph, value: Value) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(node for node, _ in graph.consumers(value)))


def _producer(value: Value) -> Node:
    assert value.producer is not None
    return value.producer


def _reformatted(graph: Graph, value: Value, dtype: DType, name: str) -> Value:
    origin = value.producer.origin if value.producer is not None else ()
    return graph.add_node(Reformat(dtype), [value], name=name, origin=origin).output


def _widens(cast: Node) -> bool:
    """Whether a pointwise node computes the same without ``cast``."""
    x, y = cast.inputs[0], cast.output
    return x.dtype in (FP16, BF16) and y.dtype is FP32 and same_memory(x.shape, x.layout, y.layout)


def _resolved(graph: Graph, io: Mapping[str, IOFormat]) -> dict[str, IOFormat]:
    """Formats by the graph's own names."""
    inputs, outputs = [v.name for v in graph.inputs], list(graph.outputs)
    formats: dict[str, IOFormat] = {}
    for given, wanted in io.items():
        name = given
        for stand_in, what, names in (
            (ONLY_INPUT, "input", inputs),
            (ONLY_OUTPUT, "output", outputs),
        ):
            if given == stand_in:
                if len(names) != 1:
                    raise BuildError(
                        f"format {wanted} names no {what}, and the model has {len(names)}; "
                        f"name one of {', '.join(map(repr, names))}"
                    )
                name = names[0]
        if name not in inputs and name not in outputs:
            near = difflib.get_close_matches(name, [*inputs, *outputs], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BuildError(
                f"io: the model has no input or output {name!r}; {hint}"
                f"inputs: {', '.join(map(repr, inputs))}; outputs: {', '.join(map(repr, outputs))}"
            )
        if name in formats:
            raise BuildError(f"io: {name!r} is given twice; leave one of the two out")
        formats[name] = wanted
    return formats


def _checked(what: str, value: Value, wanted: IOFormat) -> DType:
    """The type to bind."""
    if wanted.layout not in (None, *_LAYOUTS):
        raise BuildError(
            f"{what}: layout {wanted.layout!r} is unknown; expected one of {', '.join(_LAYOUTS)}"
        )
    if wanted.layout is not None and len(value.shape) != 4:
        raise BuildError(
            f"{what}: {wanted.layout} is the memory order of an image [N, C, H, W], and its shape "
            f"is {list(value.shape)}; leave the layout out"
        )
    if wanted.dtype is None or wanted.dtype == value.dtype.name:
        return value.dtype
    if not value.dtype.is_float:
        raise BuildError(
            f"{what}: cannot be bound as {wanted.dtype!r}, the model's type is {value.dtype}; "
            "leave the type out"
        )
    if wanted.dtype not in _FLOATS:
        raise BuildError(
            f"{what}: cannot be bound as {wanted.dtype!r}, the model's type is {value.dtype}; "
            f"expected one of {', '.join(_FLOATS)}"
        )
    return _FLOATS[wanted.dtype]
