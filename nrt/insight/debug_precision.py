"""debug_precision(): how wrong each layer is in a low precision, and which ones break the network.

Three networks are built of one graph and run on the same data: in fp32, in the low precision with
every layer's result as an output, and in the low precision with every layer fed by the fp32 one.
Where the outputs are over the threshold, bisection over the layers, in topological order, finds
what lifts them there. Networks are built by default without measuring kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nrt.builder import BuildRequest
from nrt.errors import BuildError
from nrt.frontend.fed_model import FedModel
from nrt.insight.compare import default_tolerance
from nrt.insight.layer_errors import LayerStudy
from nrt.insight.precision_bisect import Bisection, bisect_layers
from nrt.insight.precision_debug import PrecisionDebug
from nrt.ir.graph import Graph
from nrt.quantization import Calibration
from nrt.quantization.data import Item, as_input, batches, items
from nrt.quantization.digest import model_digest
from nrt.tuner import Progress

__all__ = ["debug_precision"]


def debug_precision(
    model: Any,
    data: Any,
    *,
    precision: str | Iterable[str],
    calibration: Calibration | str | os.PathLike[str] | None = None,
    layers: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "auto",
    opt_level: int = 0,
    threshold: float | None = None,
    most: int = 8,
    progress: Progress | None = None,
) -> PrecisionDebug:
    """Compare every fused layer of ``model`` in ``precision`` with fp32, and find what breaks it.

    ::

        found = nrt.debug_precision("model.onnx", images, precision="fp16")
        print(found)
        nrt.compile("model.onnx", precision={"fp16", "fp32"}, layers=found.in_fp32)

    Args:
        model: as for `nrt.compile`.
        data: samples, in any of the forms that `nrt.calibrate` takes; all of one shape.
        precision: permitted types, as for `nrt.compile`.
        calibration: ranges, where the precision needs them.
        layers: name pattern -> precision, for single layers.
        shapes: input name -> shape that the model runs with; by default that of a single sample
            where the model leaves it open.
        target: ``auto``, ``cpu`` or ``cuda``.
        opt_level: effort of choosing kernels.
        threshold: relative error of an output that passes; by default that of ``nrt compare`` (1e-2
            for fp16, 1e-1 for int8).
        most: how many layers to find at most. Each takes about log2(n) networks.
        progress: called with (stage, done, total); total is 0 where it is not known.

    Raises:
        BuildError: an option does not fit the model, or ``threshold`` or ``most`` is out of range.
        CalibrationError: the data do not fit the model, or the calibration is of another.
        InputError: the samples have several shapes.
        DeviceError: the device is not in this machine.
        ImportModelError: the model cannot be read.
    """
    names = frozenset([precision] if isinstance(precision, str) else precision)
    allowed = default_tolerance(names) if threshold is None else threshold
    if not (math.isfinite(allowed) and allowed > 0):
        raise BuildError(
            f"threshold is {threshold}, expected a relative error above 0, such as 1e-2"
        )
    if most < 1:
        raise BuildError(f"most is {most}, expected the number of layers to find, 1 or more")
    source = FedModel(model, shapes)
    graph, fed = _fed(source, data)
    request = BuildRequest(
        graph=graph,
        precision=names,
        target=target,
        opt_level=opt_level,
        layers=dict(layers or {}),
        calibration=_checked(calibration, graph),
    )
    study = LayerStudy(request, fed, progress)
    found = study.layer_errors()
    bisection = Bisection(error=found.error)
    if found.error > allowed:
        reported = _Reported(study, progress)
        bisection = bisect_layers(study.names, reported.stored, reported.compiled, allowed, most)
    return PrecisionDebug(
        name=graph.name,
        precision=tuple(sorted(names)),
        target=found.target,
        samples=sum(_samples(batch) for batch in fed),
        threshold=allowed,
        found=found,
        bisection=bisection,
    )


class _Reported:
    """Errors of networks, each reported when it is known."""

    def __init__(self, study: LayerStudy, progress: Progress | None) -> None:
        self._study, self._progress, self._done = study, progress, 0

    def stored(self, in_fp32: tuple[str, ...]) -> float:
        return self._counted(self._study.output_error(in_fp32, stored=True))

    def compiled(self, in_fp32: tuple[str, ...]) -> float:
        return self._counted(self._study.output_error(in_fp32))

    def _counted(self, error: float) -> float:
        self._done += 1
        if self._progress is not None:
            self._progress("bisecting", self._done, 0)
        return error


def _fed(source: FedModel, data: Any) -> tuple[Graph, list[Item]]:
    """The graph for the shapes of the data, and the data in its types."""
    found: Iterator[Item] = batches(items(data, list(source.shapes)), source.shapes)
    first = next(found)
    graph = source.graph(first)
    types = {value.name: value.dtype.name for value in graph.inputs}
    return graph, [
        {name: as_input(array, name, types[name]) for name, array in batch.items()}
        for batch in (first, *found)
    ]


def _checked(
    given: Calibration | str | os.PathLike[str] | None, graph: Graph
) -> Calibration | None:
    if given is None:
        return None
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    found.check_model(model_digest(graph))
    return found


def _samples(batch: Item) -> int:
    """The length of the first dimension; 1 where inputs do not agree on one."""
    lengths = {array.shape[0] if array.ndim else 1 for array in batch.values()}
    return lengths.pop() if len(lengths) == 1 else 1
