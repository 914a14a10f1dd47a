"""How wrong each fused layer is in a low precision: what has added up, and its own share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from nrt.builder import BuildRequest, build_graph
from nrt.errors import InputError
from nrt.insight.error_stats import ErrorStats, ErrorSums
from nrt.insight.figures import open_engine, require_device
from nrt.insight.layer_graphs import (
    Carried,
    apart,
    computing,
    fused_graph,
    low_graph,
    narrowed,
    real,
    tapped,
)
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.value import Value
from nrt.runtime import Engine
from nrt.tuner import Progress

__all__ = ["LayerError", "LayerErrors", "LayerStudy"]

Batch = Mapping[str, Array]


@dataclass(frozen=True)
class LayerError:
    """One fused layer.

    Attributes:
        name: the layer's: a node of the fused graph, which ``layers=`` of `nrt.compile` may name.
        tensor: the value that it computes, as in the fused graph and in a calibration.
        op: its op.
        origins: the model's own nodes.
        precision: what it computes in.
        stored: the type of what it stores.
        accumulated: its result in the low-precision network, against the fp32 network's.
        own: its result where it is given the fp32 network's tensors, rounded to the types that it
            reads: what this layer adds by itself.
    """

    name: str
    tensor: str
    op: str
    origins: tuple[str, ...]
    precision: str
    stored: str
    accumulated: ErrorStats
    own: ErrorStats

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "tensor": self.tensor,
            "op": self.op,
            "origins": list(self.origins),
            "precision": self.precision,
            "stored": self.stored,
            "accumulated": self.accumulated.to_data(),
            "own": self.own.to_data(),
        }


@dataclass(frozen=True)
class LayerErrors:
    """Every layer, in the order in which the network computes them, and the outputs.

    Attributes:
        layers: see `LayerError`.
        outputs: the network's outputs by name, against those of the fp32 network.
        target: ``cuda`` or ``cpu``. device: the product, or the architecture.
    """

    layers: tuple[LayerError, ...]
    outputs: Mapping[str, ErrorStats]
    target: str
    device: str

    @property
    def error(self) -> float:
        """The largest of an output."""
        return max((stats.error for stats in self.outputs.values()), default=0.0)

    @property
    def worst(self) -> LayerError | None:
        """The layer whose own error is largest; the first of several, None without any."""
        return max(self.layers, key=lambda layer: layer.own.error, default=None)


@dataclass(frozen=True)
class _Reference:
    """The network in fp32.

    Attributes:
        names: value of the fused graph -> its name in what ``run`` returns.
        run: inputs by name -> arrays by name.
    """

    names: Mapping[Value, str]
    run: Callable[[Batch], Mapping[str, Array]]


@dataclass
class LayerStudy:
    """One model in fp32 and in a low precision, on the same data.

    Attributes:
        request: what is built; its ``io`` is ignored: inputs are the model's own.
        batches: inputs by name, all of the shapes of ``request.graph``.
        progress: called with (stage, done, total).
        by_numpy: the fp32 network is run by the references of its ops, which are slow and know
            nothing of kernels; by default it is compiled as the other is.
    """

    request: BuildRequest
    batches: Sequence[Batch]
    progress: Progress | None = None
    by_numpy: bool = False
    fused: Graph = field(init=False)

    def __post_init__(self) -> None:
        """Raises DeviceError where the device is not here, InputError where shapes differ."""
        require_device(self.request.target)
        self._options = replace(self.request.pipeline_options, io={})
        self._truths: list[dict[str, Array]] | None = None
        self.fused = fused_graph(self.request.graph, self._options)
        for number, batch in enumerate(self.batches):
            _check_shapes(self.request.graph, number, batch)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers of the fused graph, in topological order."""
        return tuple(node.name for node in computing(self.fused))

    def output_error(self, in_fp32: Collection[str], *, stored: bool = False) -> float:
        """The largest relative error of an output where the layers ``in_fp32`` stay in fp32.

        Args:
            in_fp32: some of `names`.
            stored: see `nrt.insight.layer_graphs.low_graph`.
        """
        low = low_graph(self.fused, self._options, in_fp32, stored=stored)
        engine = self._engine(low.graph)
        return max((stats.error for stats in self._outputs(engine).values()), default=0.0)

    def layer_errors(self) -> LayerErrors:
        """Accumulated and own error of every layer, and of the outputs.

        Raises:
            BuildError, DeviceError: as for `nrt.compile`.
        """
        low = low_graph(self.fused, self._options)
        reference = self._reference()
        layers = [c for c in low.layers() if c.source in reference.names]
        tapped_graph, tapped_names = tapped(low, layers)
        apart_graph, apart_names, fed = apart(low, layers)
        added_up = self._engine(tapped_graph, "layers")
        single = self._engine(apart_graph, "layers apart")
        sums = {layer.value: (ErrorSums(), ErrorSums()) for layer in layers}
        outputs = {name: ErrorSums() for name in self.request.graph.outputs}
        for number, batch in enumerate(self.batches):
            truth = reference.run(batch)
            found = _run(added_up, batch)
            feeds = {n: narrowed(c, truth[reference.names[c.source]]) for n, c in fed.items()}
            alone = _run(single, {**batch, **feeds})
            for layer in layers:
                wanted = truth[reference.names[layer.source]]
                results = (found[tapped_names[layer.value]], alone[apart_names[layer.value]])
                for one, result in zip(sums[layer.value], results, strict=True):
                    one.add(real(layer, result), wanted)
            for name, one in outputs.items():
                one.add(found[name], truth[reference.names[self.fused.outputs[name]]])
            self._report("comparing", number + 1)
        precisions: dict[str, str] = {}
        for bound in added_up.plan.layers:
            # The second task of a node is called ``name#1``.
            precisions.setdefault(bound.name.partition("#")[0], bound.precision)
        return LayerErrors(
            tuple(_layer(c, precisions, *(s.stats() for s in sums[c.value])) for c in layers),
            {name: one.stats() for name, one in outputs.items()},
            added_up.plan.target.kind,
            added_up.plan.target.device or added_up.plan.target.arch,
        )

    def _reference(self) -> _Reference:
        """The network in fp32, which gives every layer."""
        fused = self.fused
        if self.by_numpy:
            values = {v for node in computing(fused) for v in node.outputs}
            values.update(fused.outputs.values())
            names = {value: value.name for value in values}
            return _Reference(names, partial(_evaluated, fused, tuple(names.values())))
        options = replace(self._options, precision=frozenset({"fp32"}), layers={}, calibration=None)
        exact = low_graph(fused, options)
        layers = exact.layers()
        graph, bound = tapped(exact, layers)
        names = {layer.source: bound[layer.value] for layer in layers}
        names.update({value: name for name, value in fused.outputs.items()})
        return _Reference(names, partial(_run, self._engine(graph, "reference")))

    def _outputs(self, engine: Engine) -> dict[str, ErrorStats]:
        sums = {name: ErrorSums() for name in self.request.graph.outputs}
        for batch, truth in zip(self.batches, self._truth(), strict=True):
            found = _run(engine, batch)
            for name, one in sums.items():
                one.add(found[name], truth[name])
        return {name: one.stats() for name, one in sums.items()}

    def _truth(self) -> list[dict[str, Array]]:
        """The fp32 network's outputs, computed once."""
        if self._truths is None:
            reference = self._reference()
            names = {n: reference.names[v] for n, v in self.fused.outputs.items()}
            runs = (reference.run(batch) for batch in self.batches)
            self._truths = [{n: found[own] for n, own in names.items()} for found in runs]
        return self._truths

    def _engine(self, graph: Graph, stage: str = "") -> Engine:
        request = self.request
        made = build_graph(
            graph,
            target=request.target,
            opt_level=request.opt_level,
            timing_cache=request.timing_cache,
            progress=self.progress if stage else None,
        )
        return open_engine(made.plan)

    def _report(self, stage: str, done: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, len(self.batches))


def _evaluated(graph: Graph, names: Collection[str], batch: Batch) -> dict[str, Array]:
    return evaluate(graph, batch, until=names)


def _run(engine: Engine, batch: Batch) -> dict[str, Array]:
    inputs = {spec.name: batch[spec.name] for spec in engine.inputs}
    return {name: np.asarray(array) for name, array in engine.run(inputs).items()}


def _layer(
    carried: Carried, precisions: Mapping[str, str], accumulated: ErrorStats, own: ErrorStats
) -> LayerError:
    node = carried.value.producer
    assert node is not None
    before = carried.source.producer
    own_name = before is not None and type(before.op) is type(node.op)
    precision = precisions.get(node.name, carried.value.dtype.name)
    return LayerError(
        before.name if own_name and before is not None else node.name,
        carried.source.name,
        node.op.name,
        node.origin,
        precision,
        carried.value.dtype.name,
        accumulated,
        own,
    )


def _check_shapes(graph: Graph, number: int, batch: Batch) -> None:
    for value in graph.inputs:
        if batch[value.name].shape != value.shape:
            found, wanted = (
                "x".join(map(str, s)) or "()" for s in (batch[value.name].shape, value.shape)
            )
            raise InputError(
                f"data: batch {number} has {found} for input '{value.name}', the first has "
                f"{wanted}; layers are compared at one shape: fix it with shapes=, or give samples "
                "of one shape"
            )
