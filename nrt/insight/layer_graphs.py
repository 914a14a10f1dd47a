"""A network in fp32 and in another precision, cut where both hold the same tensor.

    fused    the fp32 graph that precision is chosen for: its values are the reference
    low      the same after precision and layout: a value carries one of the fused graph, as fp16,
             or as integers of a known grid
    tapped   low, with every carried value as an output: what has added up so far
    apart    low, with every layer reading inputs of its own: what each layer adds by itself

Fusions that a build decides by time (`choose`, `siblings`) are left out: they round less, not more,
and would hide layers from each other.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from nrt.dtypes import DTYPES, FP8E4M3, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import MaxPool, Reformat
from nrt.ir.ops.quantize import Quantize
from nrt.ir.value import NHWC, Node, Value
from nrt.passes.base import Pass, run_pipeline
from nrt.passes.grid import Grid, grid_of
from nrt.passes.merge_reformats import MergeReformats
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.select_precision import MOVES
from nrt.quantization.weights import LIMITS

__all__ = [
    "Carried",
    "LowGraph",
    "apart",
    "computing",
    "fused_graph",
    "low_graph",
    "narrowed",
    "real",
    "tapped",
]

_LATER = (
    "quantize", "choose", "bindings", "precision", "layout", "borders", "requantize", "siblings",
)  # fmt: skip
"""Phases that see precision, or come after those that do."""

_LEFT_OUT = ("choose", "siblings")

_ENDINGS = frozenset({*(d.name for d in DTYPES), "nchw", "nhwc", "row_major", "quantize"})
"""Of names of values that a pass stores in another type or order."""


def _is_scaled(dtype: DType) -> bool:
    """Whether numbers of this type mean something only together with a scale."""
    return dtype.kind == "int" or dtype is FP8E4M3


@dataclass(frozen=True)
class Carried:
    """A value of the low graph that holds one of the fused graph.

    Attributes:
        value: of the low graph.
        source: of the fused graph.
        grid: what its numbers stand for; None where they are the source's own, but for rounding.
    """

    value: Value
    source: Value
    grid: Grid | None


@dataclass(frozen=True)
class LowGraph:
    """A network with its precision, and what its values stand for.

    Attributes:
        graph: after the passes.
        fused: what it was made of.
        grids: name of a quantized value -> the value that it was made of, and the grid.
    """

    graph: Graph
    fused: Graph
    grids: Mapping[str, tuple[str, Grid]] = field(default_factory=dict)

    def layers(self) -> tuple[Carried, ...]:
        """What layers that compute something give, in topological order."""
        return tuple(
            carried
            for node in self.graph.nodes
            if not isinstance(node.op, MOVES)
            for value in node.outputs
            if (carried := self._carried(value)) is not None
        )

    def _carried(self, value: Value) -> Carried | None:
        source = self._source(value)
        if source is None or source.is_constant or source.shape != value.shape:
            return None
        if not (source.dtype.is_float or _is_scaled(source.dtype)):
            return None
        if value.dtype is source.dtype or not _is_scaled(value.dtype):
            return Carried(value, source, None)
        grid = self._grid_before(value) or self._grid_behind(value)
        return None if grid is None else Carried(value, source, grid)

    def _source(self, value: Value) -> Value | None:
        """The value of the fused graph: passes keep names, with an ending for another type."""
        fused = self.fused
        name = value.name
        if fused.has_value(name):
            return fused.value(name)
        if name in self.grids and fused.has_value(self.grids[name][0]):
            return fused.value(self.grids[name][0])
        bound = self.graph.output_names(value)
        if bound:
            return fused.outputs[bound[0]]
        base, _, ending = name.rpartition(".")
        # The passes that move integers name what they give after the node, or after its input.
        if ending == "q" and fused.has_node(base):
            return fused.node(base).outputs[0]
        if ending in _ENDINGS and fused.has_value(base) and not self.graph.has_value(base):
            return fused.value(base)
        return None

    def _grid_before(self, value: Value) -> Grid | None:
        """Of ``value``, or of what it was moved from."""
        if value.name in self.grids:
            return self.grids[value.name][1]
        node = value.producer
        if node is None or not isinstance(node.op, (*MOVES, MaxPool)):
            return None
        before = node.inputs[0]
        return self._grid_before(before) if before.dtype is value.dtype else None

    def _grid_behind(self, value: Value) -> Grid | None:
        """Of what ``value`` is moved to: the parts of a Concat have its grid."""
        if value.name in self.grids:
            return self.grids[value.name][1]
        for node, _ in self.graph.consumers(value):
            after = node.outputs[0]
            if isinstance(node.op, (*MOVES, MaxPool)) and after.dtype is value.dtype:
                return self._grid_behind(after)
        return None


def fused_graph(graph: Graph, options: PipelineOptions) -> Graph:
    """``graph`` after every pass that comes before precision."""
    phases = pipeline(options)
    return run_pipeline(graph, [p for p in phases if p.name not in _LATER]).graph


def low_graph(
    fused: Graph, options: PipelineOptions, in_fp32: Iterable[str] = (), *, stored: bool = False
) -> LowGraph:
    """``fused`` in the precision of ``options``, but for the nodes named ``in_fp32``.

    Args:
        fused: left as it is.
        options: of the build.
        in_fp32: names of nodes of ``fused``.
        stored: every layer stores its result in its own type, also where its reader takes another:
            the cast between them is a node.

    Raises:
        BuildError: an option does not fit the model.
    """
    if stored:
        options = replace(options, disabled=options.disabled | {MergeReformats.name})
    exact = {glob.escape(name): "fp32" for name in in_fp32}
    if exact:
        # The first pattern that matches counts.
        others = {k: v for k, v in options.layers.items() if k not in exact}
        options = replace(
            options, precision=options.precision | {"fp32"}, layers={**exact, **others}
        )
    phases = pipeline(options)
    grids: dict[str, tuple[str, Grid]] = {}

    def watch(step: Pass, graph: Graph) -> None:
        # Quantize nodes with constant scales become a part of what computes their input.
        for node in graph.nodes:
            grid = grid_of(node) if isinstance(node.op, Quantize) else None
            if grid is not None:
                grids.setdefault(node.output.name, (node.inputs[0].name, grid))

    later = [p for p in phases if p.name in _LATER and p.name not in _LEFT_OUT]
    return LowGraph(run_pipeline(fused, later, watch=watch).graph, fused, grids)


def tapped(low: LowGraph, layers: Collection[Carried]) -> tuple[Graph, dict[Value, str]]:
    """The low graph that also gives what ``layers`` hold: the graph, and value -> output name."""
    graph = low.graph.copy()
    names = {}
    for layer in layers:
        names[layer.value] = _bind(graph, graph.value(layer.value.name))
    return graph, names


def apart(
    low: LowGraph, layers: Collection[Carried]
) -> tuple[Graph, dict[Value, str], dict[str, Carried]]:
    """The low graph cut at every value of ``layers``: it reads an input, and is an output.

    Returns:
        The graph, value -> output name, and input name -> what is to be fed there. Inputs of the
        network stay.
    """
    cut = {layer.value: layer for layer in layers}
    graph = Graph(low.graph.name)
    copies: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    fed: dict[str, Carried] = {}

    def read(value: Value) -> Value:
        if value not in copies:
            if value.constant is not None:
                copies[value] = graph.add_constant(value.name, value.constant, value.layout)
            else:  # the first reader of a layer's result
                name = f"{value.name}.fed"
                copies[value] = graph.add_input(name, value.shape, value.dtype)
                graph.set_layout(copies[value], _bindable(value))
                fed[name] = cut[value]
        return copies[value]

    for value in low.graph.inputs:
        copies[value] = graph.add_input(value.name, value.shape, value.dtype)
        graph.set_layout(copies[value], value.layout)
    for node in low.graph.nodes:
        made = graph.add_node(
            node.op,
            [read(v) for v in node.inputs],
            name=node.name,
            origin=node.origin,
            output_names=[v.name for v in node.outputs],
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            graph.set_layout(new, old.layout)
            if old in cut:
                names[old] = _bind(graph, new)
            else:
                copies[old] = new
    graph.prune()
    return graph, names, fed


def _bind(graph: Graph, value: Value) -> str:
    """Make ``value`` an output, in a memory order that outputs may have; returns its name."""
    bound = graph.output_names(value)
    if bound:
        return bound[0]
    if value.layout != _bindable(value):
        value = graph.add_node(Reformat(value.dtype), [value], name=f"{value.name}.plain").output
    name = f"{value.name}.tap"
    while name in graph.outputs:
        name += "'"
    graph.set_output(name, value)
    return name


def _bindable(value: Value) -> tuple[int, ...] | None:
    return value.layout if value.layout == NHWC else None


def real(layer: Carried, array: Array) -> Array:
    """What ``array``, of the type of ``layer.value``, stands for, in float64."""
    numbers = array.astype(np.float64)
    grid = layer.grid
    if grid is None:
        return numbers
    return (numbers - grid.zero) * grid.scale.astype(np.float64)


def narrowed(layer: Carried, array: Array) -> Array:
    """``array``, the reference of ``layer.source``, as ``layer.value`` stores it."""
    wanted = layer.value.dtype
    grid = layer.grid
    if grid is None:
        with np.errstate(over="ignore"):  # beyond fp16: an infinity, as a kernel stores it
            return array.astype(wanted.numpy)
    scaled = array.astype(np.float32) / grid.scale
    if wanted.is_float:  # fp8 has no infinity
        return np.clip(scaled, -LIMITS[FP8E4M3], LIMITS[FP8E4M3]).astype(wanted.numpy)
    info = np.iinfo(wanted.numpy)
    whole: Array = np.clip(np.rint(scaled) + grid.zero, info.min, info.max)
    return whole.astype(wanted.numpy)


def computing(graph: Graph) -> tuple[Node, ...]:
    """The nodes of ``graph`` that compute floats, in topological order."""
    return tuple(
        node
        for node in graph.nodes
        if not isinstance(node.op, MOVES) and any(v.dtype.is_float for v in node.outputs)
    )
