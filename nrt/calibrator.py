"""calibrate(): run a model on data and find the range of every activation and of its channels.

The graph that runs is the fused one, in fp32, as quantization will see it: an activation that
fusion removed needs no range. Passes up to precision are as in any build; then histograms, sums
and extremes are put beside the activations (`nrt.quantization.taps`), and layout and kernels follow
as always.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nrt.builder import build_graph
from nrt.compiled import CompiledEngine
from nrt.errors import CalibrationError
from nrt.frontend.fed_model import FedModel
from nrt.ir.graph import Graph
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import pipeline
from nrt.quantization.calibration import Calibration, MethodRules, TensorRange
from nrt.quantization.channel_extremes import ChannelExtremes
from nrt.quantization.channel_means import ChannelMeans
from nrt.quantization.data import Item, as_input, batches, item_count, items
from nrt.quantization.digest import DataDigest, model_digest
from nrt.quantization.histogram import Histogram
from nrt.quantization.taps import Taps, insert_taps
from nrt.runtime import Engine

__all__ = ["calibrate"]

Progress = Callable[[str, int, int], None]

_LAYOUT = ("layout", "borders")
"""Phases that run on the tapped graph."""

_LATER = ("choose", "requantize", "siblings")
"""Phases that see what is quantized already: what they fuse has a range of its own."""


def calibrate(
    model: Any,
    data: Any,
    *,
    method: str = "kl",
    tensors: Mapping[str, str] | None = None,
    percentile: float = 99.99,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "auto",
    opt_level: int = 0,
    cache: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Run ``model`` on ``data`` and choose the range of every activation.

    The result does not depend on the order of the samples. Neither does it on the batches that they
    come in: an ONNX model with an open batch runs them one by one; ``shapes``, or a batch that the
    model fixes, says otherwise.

    Args:
        model: as for `nrt.compile`.
        data: an iterable of arrays (for a model of one input), of sequences of arrays or of
            mappings from input name to array, whose first dimension counts samples; one such
            mapping; or a folder of ``.npy`` and ``.npz`` files.
        method: ``kl``, ``percentile``, ``mse`` or ``minmax``.
        tensors: name pattern -> the method for the tensors that it matches; the first match counts.
        percentile: for the method of that name.
        shapes: input name -> shape that the model runs with; by default that of a single sample
            where the model leaves it open.
        target: ``auto``, ``cpu`` or ``cuda``.
        opt_level: effort of choosing kernels, as for `nrt.compile`.
        cache: a JSON file; if it exists and is of this model, data and method, it is the result
            without a run, otherwise the result is written there.
        overwrite: replace a cache that is stale.
        progress: called with (stage, done, total); total is 0 where the number of items is unknown.

    Raises:
        CalibrationError: data does not fit the model, a tensor holds a NaN or an infinity (the
            message names it), the method is unknown, or the cache is stale.
        ImportModelError, BuildError, DeviceError: as for `nrt.compile`.
    """
    rules = MethodRules(method, tuple((tensors or {}).items()), percentile)
    source = FedModel(model, shapes)
    if cache is not None and Path(cache).exists() and not overwrite:
        return _cached(source, data, rules, cache, progress)
    run = _Run(source, target, opt_level)
    digest = DataDigest()
    for batch in _progressed(source, data, progress, "calibrating"):
        digest.add(batch)
        run.add(batch)
    rules.check_names(run.histograms)
    ranges = {}
    for name, histogram in run.histograms.items():
        ranges[name] = TensorRange.of(name, histogram, rules, *run.channels(name))
        if progress is not None:
            progress("thresholds", len(ranges), len(run.histograms))
    result = Calibration(run.model_digest(), digest.hexdigest(), rules, digest.samples, ranges)
    if cache is not None:
        result.save(cache)
    return result


def _cached(
    source: FedModel,
    data: Any,
    rules: MethodRules,
    cache: str | os.PathLike[str],
    progress: Progress | None,
) -> Calibration:
    """What ``cache`` holds, if it is of this model, data and method."""
    if isinstance(data, Iterator):
        raise CalibrationError(
            f"calibration cache {cache} exists, and data is an iterator: to tell whether they "
            "belong together it would be used up; give a list or a folder, or overwrite=True"
        )
    kept = Calibration.load(cache)
    digest = DataDigest()
    model = ""
    for batch in _progressed(source, data, progress, "comparing with the cache"):
        model = model or model_digest(source.graph(batch))
        digest.add(batch)
    kept.check_fresh(cache, model, digest.hexdigest(), rules)
    return kept


def _progressed(
    source: FedModel, data: Any, progress: Progress | None, stage: str
) -> Iterator[Item]:
    total = item_count(data)

    def counted() -> Iterator[Item]:
        for number, item in enumerate(items(data, list(source.shapes)), 1):
            yield item
            if progress is not None:
                progress(stage, number, total)

    return batches(counted(), source.shapes)


@dataclass
class _Tapped:
    """An engine whose outputs are histograms, sums and extremes."""

    engine: Engine
    taps: Taps
    digest: str


@dataclass
class _Run:
    """Runs batches and merges what the taps give."""

    source: FedModel
    target: str
    opt_level: int
    engines: dict[tuple[Any, ...], _Tapped] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, ChannelMeans] = field(default_factory=dict)
    extremes: dict[str, ChannelExtremes] = field(default_factory=dict)

    def add(self, batch: Item) -> None:
        tapped = self._tapped(batch)
        results = tapped.engine.run(
            {s.name: as_input(batch[s.name], s.name, s.dtype) for s in tapped.engine.inputs}
        )
        found: dict[str, Histogram] = {}
        for name, output in tapped.taps.outputs.items():
            if output not in found:
                found[output] = Histogram.from_words(np.asarray(results[output]), name)
            before = self.histograms.get(name)
            self.histograms[name] = found[output] if before is None else before.merge(found[output])
        for name, where in tapped.taps.channels.items():
            sums, lows, highs = (
                np.asarray(results[output]).reshape(-1, where.channels)
                for output in (where.sums, where.lows, where.highs)
            )
            self.means.setdefault(name, ChannelMeans(where.channels)).add(sums, where.count)
            self.extremes.setdefault(name, ChannelExtremes(where.channels)).add(lows, highs)

    def channels(self, name: str) -> tuple[tuple[float, ...] | None, ...]:
        """Means, lows and highs of the channels of ``name``."""
        if name not in self.means:
            return None, None, None
        extremes = self.extremes[name]
        return self.means[name].means(), extremes.lows(), extremes.highs()

    def model_digest(self) -> str:
        return next(iter(self.engines.values())).digest

    def _tapped(self, batch: Item) -> _Tapped:
        key = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if key not in self.engines:
            self.engines[key] = _build(self.source.graph(batch), self.target, self.opt_level)
        return self.engines[key]


def _build(graph: Graph, target: str, opt_level: int) -> _Tapped:
    digest = model_digest(graph)
    phases = pipeline()
    fused = run_pipeline(graph, [p for p in phases if p.name not in (*_LAYOUT, *_LATER)])
    taps = insert_taps(fused.graph)
    report = run_pipeline(taps.graph, [p for p in phases if p.name in _LAYOUT])
    engine = CompiledEngine(build_graph(report.graph, target=target, opt_level=opt_level))
    return _Tapped(engine, taps, digest)
