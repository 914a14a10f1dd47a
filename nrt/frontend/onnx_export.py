"""Write a graph as an ONNX model: what the optimizer made, for any tool that reads ONNX.

The way of `import_model`, backward: inputs and outputs keep their names, constants become
initializers, and each node becomes one ONNX node or a few (`onnx_export_ops`). Fused code is
written out as standard ops, so that any runtime gives the graph's results. What was fused stays
visible in the metadata of the nodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import onnx
from onnx import helper

from nrt.dtypes import BYTES, FP8E4M3
from nrt.errors import ExportError
from nrt.frontend.network import Network
from nrt.frontend.onnx_export_node import OPSET, Inexpressible, Tensor, Writer
from nrt.frontend.onnx_export_ops import converter
from nrt.frontend.onnx_export_registered import domains
from nrt.ir.graph import Graph
from nrt.ir.op import TensorType
from nrt.ir.text import programs_text
from nrt.ir.value import Node, Value

if TYPE_CHECKING:
    from nrt.plan import Layer, Plan

__all__ = ["Built", "to_onnx"]

IR_VERSION = 10
"""The first whose nodes carry metadata; with `OPSET`, read by onnx 1.17 and newer."""

LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights above which they go into a file of their own: protobuf ends at 2 GiB."""


class Built(Protocol):
    """What `nrt.builder.build` returns: an optimized graph and its plan."""

    @property
    def graph(self) -> Graph: ...

    @property
    def plan(self) -> Plan: ...


def to_onnx(
    source: Graph | Network | Built,
    path: str | os.PathLike[str] | None = None,
    *,
    plan: Plan | None = None,
) -> onnx.ModelProto:
    """Write a graph as an ONNX model of opset 21 that computes what the graph computes.

    Every op becomes standard ONNX ops, but for ops that a user registered, which keep their domain.
    Small floats are computed in fp32 and rounded where the
    graph rounds them. Shapes are logical, so memory layouts change nothing. NaN, or a number beyond
    an integer type, becomes what the runtime's Cast makes of it.

    The metadata of each ONNX node says what it belongs to: ``nrt.node``, ``nrt.op`` (with the fused
    program), ``nrt.origins`` (a JSON list of the model's nodes), ``nrt.precision``, and
    ``nrt.layout`` where the result is not row-major in memory. With a plan, the node that computes
    the result also has ``nrt.variant``, ``nrt.config`` and, if it was measured, ``nrt.seconds``;
    several launches of one node are joined by ``; ``, their times added.

    Args:
        source: a graph, imported or optimized; a `Network`; or what `nrt.builder.build` returns,
            whose optimized graph is written with the kernels of its plan.
        path: also save the model there; weights beyond 2 GiB go to ``PATH.data`` beside it.
        plan: the plan made of the graph, where ``source`` is a graph.

    Raises:
        ExportError: some nodes have no counterpart in ONNX, or an output has the name of an input;
            the message lists all of them.
    """
    if isinstance(source, Graph):
        graph = source
    else:
        graph = source.graph
        plan = plan or getattr(source, "plan", None)
    model = _Exporter(graph, plan).run()
    if path is not None:
        _save(model, os.fspath(path))
    return model


def _save(model: onnx.ModelProto, path: str) -> None:
    if sum(len(t.raw_data) for t in model.graph.initializer) <= LARGEST_FILE:
        onnx.save_model(model, path)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of the model that it is given
    location = os.path.basename(path) + ".data"
    onnx.save_model(copy, path, save_as_external_data=True, location=location)


class _Exporter:
    """Writes one graph; `run` is called once."""

    def __init__(self, graph: Graph, plan: Plan | None) -> None:
        self.graph = graph
        self.layers = _by_node(plan, graph) if plan is not None else {}
        self.plan = plan
        self.writer = Writer()
        self.problems: list[str] = []

    def run(self) -> onnx.ModelProto:
        copies = self._name_tensors()
        for node in self.graph.nodes:
            self._node(node)
        if self.problems:
            raise ExportError(
                f"graph '{self.graph.name}' cannot be written as ONNX, for "
                f"{len(self.problems)} reason(s):\n"
                + "\n".join(f"  {line}" for line in self.problems)
                + "\nReplace these nodes (nrt.replace), or cut them off (Graph.extract)."
            )
        w = self.writer
        for output, value in copies:
            source = w.tensor(value)
            w.nodes.append(
                helper.make_node("Identity", [source.name], [output], name=f"{output}/Identity")
            )
        return self._model()

    def _name_tensors(self) -> list[tuple[str, Value]]:
        """Name every value; returns the outputs that need a copy of their own."""
        w = self.writer
        for value in self.graph.inputs:
            w.tensors[value] = Tensor(w.tensor_name(value.name), value.type)
        copies = []
        for name, value in self.graph.outputs.items():
            if value in w.tensors and w.tensors[value].name == name:
                continue
            if any(value.name == name for value in self.graph.inputs):
                self.problems.append(f"output '{name}': is the name of an input, too")
                continue
            w.tensor_name(name)
            if value.producer is None or value in w.tensors:
                copies.append((name, value))
            else:
                w.tensors[value] = Tensor(name, value.type)
        for node in self.graph.nodes:
            for value in node.outputs:
                if value not in w.tensors:
                    w.tensors[value] = Tensor(w.tensor_name(value.name), value.type)
        return copies

    def _node(self, node: Node) -> None:
        w = self.writer
        convert = converter(node.op)
        if convert is None:
            self.problems.append(f"{node}: ONNX has no counterpart")
            return
        start = len(w.nodes)
        w.begin(node)
        try:
            convert(w, node)
        except Inexpressible as error:
            self.problems.append(f"{node}: {error}")
            return
        common = _metadata(node)
        for proto in w.nodes[start:]:
            helper.set_metadata_props(proto, common)
        helper.set_metadata_props(w.nodes[-1], common | _chosen(self.layers.get(node.name, [])))

    def _model(self) -> onnx.ModelProto:
        w = self.writer
        outputs = [_info(Tensor(name, value.type)) for name, value in self.graph.outputs.items()]
        ends = {*self.graph.outputs, *(v.name for v in self.graph.inputs)}
        inner = [
            _info(w.tensors[v])
            for node in self.graph.nodes
            for v in node.outputs
            if w.tensors[v].name not in ends
        ]
        graph = helper.make_graph(
            w.nodes,
            self.graph.name or "graph",
            [_info(w.tensors[v]) for v in self.graph.inputs],
            outputs,
            w.initializers,
            value_info=inner,
        )
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", OPSET),
                *(helper.make_opsetid(domain, 1) for domain in domains(w.nodes)),
            ],
            ir_version=IR_VERSION,
            producer_name="nrt",
        )
        if self.plan is not None:
            target = self.plan.target
            text = " ".join(filter(None, (target.kind, target.arch, target.device)))
            helper.set_model_props(model, {"nrt.target": text})
        return model


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    type_: TensorType = tensor.type
    return helper.make_tensor_value_info(tensor.name, type_.dtype.onnx, type_.shape)


def _metadata(node: Node) -> dict[str, str]:
    found = {
        "nrt.node": node.name,
        "nrt.op": f"{node.op.name}{programs_text(node.op)}",
        "nrt.origins": json.dumps(node.origin),
        "nrt.precision": _precision(node),
    }
    layouts = [v.layout for v in node.outputs if v.layout is not None]
    if layouts:
        found["nrt.layout"] = " ".join(map(str, layouts[0]))
    return found


def _precision(node: Node) -> str:
    """What the node computes in, as `nrt.plan.Layer.precision` says it."""
    op: Any = node.op
    if hasattr(op, "epilogue"):
        first = node.inputs[0].dtype
        if getattr(op, "tf32", False):
            return "tf32"
        if first in BYTES:
            return "int8"
        if first is FP8E4M3:
            return "fp8"
    floats = [v.dtype.name for v in (*node.inputs, *node.outputs) if v.dtype.is_float]
    return floats[0] if floats else node.outputs[0].dtype.name


def _by_node(plan: Plan, graph: Graph) -> Mapping[str, list[Layer]]:
    """The layers of each node; the second task of a node is called ``name#1``."""
    found: dict[str, list[Layer]] = {}
    for layer in plan.layers:
        head, mark, tail = layer.name.rpartition("#")
        further = mark and tail.isdecimal() and not graph.has_node(layer.name)
        name = head if further else layer.name
        found.setdefault(name, []).append(layer)
    return found


def _chosen(layers: list[Layer]) -> dict[str, str]:
    if not layers:
        return {}
    found = {
        "nrt.variant": "; ".join(layer.variant for layer in layers),
        "nrt.config": "; ".join(layer.config for layer in layers),
    }
    seconds = [layer.seconds for layer in layers if layer.seconds is not None]
    if len(seconds) == len(layers):
        found["nrt.seconds"] = f"{sum(seconds):.6g}"
    return found
