"""Where a plan's time goes: every launch, beside what the device can do at most."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from nrt.errors import InputError
from nrt.insight.inputs import random_inputs
from nrt.insight.roofline import Ceilings, ceilings_of
from nrt.plan import ForkStep, JoinStep, LaunchStep, Plan, Target
from nrt.plan_view import layer_kind, op_name
from nrt.runtime.arrays import pair

if TYPE_CHECKING:
    from nrt.runtime import Context, Engine

__all__ = ["LaunchTime", "LayerTime", "Profile", "profile"]


@dataclass(frozen=True)
class LaunchTime:
    """One step of the plan, timed alone.

    Attributes:
        index: its place among the launches.
        layer: index of the layer that it belongs to.
        name: the layer's name, with the part's number where the layer takes several launches.
        kernel: entry point, or the name of the host kernel.
        stream: where it runs.
        samples: seconds, in the order measured.
    """

    index: int
    layer: int
    name: str
    kernel: str
    stream: int
    samples: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.samples)

    @property
    def mean(self) -> float:
        return fmean(self.samples)


@dataclass(frozen=True)
class LayerTime:
    """A layer: the sum of its launches, its work, and how near that comes to the roofline.

    Attributes:
        index: place in the plan.
        name: the node. op: with its epilogue. origins: the model's own nodes.
        precision: what it computes in. variant, config: its kernel.
        seconds: sum of its launches' medians. launches: their number.
        flops, nbytes: its work.
        attainable: operations per second that the roofline allows; None if unknown.
        bandwidth: bytes per second that the device can move; None if unknown.
        bound: ``compute`` or ``memory``, by the roofline; empty if unknown.
    """

    index: int
    name: str
    op: str
    origins: tuple[str, ...]
    precision: str
    variant: str
    config: str
    seconds: float
    launches: int
    flops: int
    nbytes: int
    attainable: float | None = None
    bandwidth: float | None = None
    bound: str = ""

    @property
    def kind(self) -> str:
        """``compute``, ``memory`` or ``pointwise``."""
        return layer_kind(self.op)

    @property
    def op_name(self) -> str:
        return op_name(self.op)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.nbytes if self.nbytes else 0.0

    @property
    def flop_rate(self) -> float:
        """Operations per second that were reached."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes per second that were reached."""
        return self.nbytes / self.seconds if self.seconds else 0.0

    @property
    def fraction(self) -> float | None:
        """Part of the ceiling that was reached; above 1 where a cache serves the data."""
        if self.bound == "compute":
            return self.flop_rate / self.attainable if self.attainable else None
        return self.byte_rate / self.bandwidth if self.bandwidth else None


@dataclass(frozen=True)
class Profile:
    """Times of a plan's launches; ``print`` it, or let a notebook show it.

    Attributes:
        name: the plan's.
        target: what it ran on.
        launches: in the plan's order.
        layers: in the plan's order.
        whole: seconds of runs of the whole plan: on a GPU of its graph, where launches may overlap
            and transfers do not count; on a CPU from inputs to outputs.
        ceilings: of the device; None if unknown.
    """

    name: str
    target: Target
    launches: tuple[LaunchTime, ...]
    layers: tuple[LayerTime, ...]
    whole: tuple[float, ...]
    ceilings: Ceilings | None = None

    @cached_property
    def total(self) -> float:
        """Sum of all launches' medians, in seconds."""
        return sum(launch.seconds for launch in self.launches)

    @property
    def seconds(self) -> float:
        """Median of the whole, in seconds."""
        return median(self.whole)

    def __str__(self) -> str:
        from nrt.insight.profile_view import as_text

        return as_text(self)

    def to_data(self) -> dict[str, Any]:
        """Plain data: the schema of ``nrt profile --json``."""
        return {
            "name": self.name,
            "target": asdict(self.target),
            "seconds": self.seconds,
            "sum_seconds": self.total,
            "ceilings": None if self.ceilings is None else self.ceilings.to_data(),
            "layers": [
                {
                    **asdict(layer),
                    "kind": layer.kind,
                    "intensity": layer.intensity,
                    "flop_rate": layer.flop_rate,
                    "byte_rate": layer.byte_rate,
                    "fraction": layer.fraction,
                }
                for layer in self.layers
            ],
            "launches": [
                {**asdict(launch), "seconds": launch.seconds, "mean": launch.mean}
                for launch in self.launches
            ],
        }

    def to_json(self) -> str:
        """`to_data` as JSON."""
        return json.dumps(self.to_data(), indent=2)

    def to_pandas(self, rows: Literal["layers", "launches"] = "layers") -> Any:
        """A ``pandas.DataFrame`` with one row per layer, or per launch; times in seconds.

        Raises:
            ImportError: pandas is not installed; the extra ``nrt[notebook]`` brings it.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas() needs pandas, which is not installed: pip install 'nrt[notebook]'"
            ) from error
        return pandas.DataFrame(self.to_data()[rows]).set_index("index")

    def to_chrome_trace(self) -> str:
        """JSON for chrome://tracing and Perfetto; see `nrt.insight.trace.chrome_trace`."""
        from nrt.insight.trace import chrome_trace

        return json.dumps(chrome_trace(self))

    def to_trtexec(self) -> str:
        """JSON as of ``trtexec --exportProfile``; see `nrt.insight.trace.trtexec_profile`."""
        from nrt.insight.trace import trtexec_profile

        return json.dumps(trtexec_profile(self), indent=1)

    def to_svg(self) -> str:
        """Time per layer as bars, and the roofline."""
        from nrt.insight.profile_svg import profile_svg

        return profile_svg(self)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        from nrt.insight.profile_view import as_html

        return as_html(self)


def profile(
    engine: Engine,
    *inputs: Any,
    repeats: int = 20,
    ceilings: Ceilings | None = None,
) -> Profile:
    """Time every launch of ``engine``'s plan alone, and the whole.

    Args:
        engine: compiled or loaded.
        inputs: in the plan's order, or one mapping by name; without any: random ones.
        repeats: measurements of each launch, and of the whole.
        ceilings: of the device, where they are known better than `ceilings_of` knows them.

    Raises:
        InputError: the inputs do not fit, or ``repeats`` is below 1.
        DeviceError: a CUDA call failed.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}: expected at least 1")
    plan = engine.plan
    named = _named(engine, inputs)
    context = engine.create_context()
    whole = _whole(context, named, repeats)
    samples = context.step_seconds(named, repeats)
    if ceilings is None:
        ceilings = ceilings_of(plan.target)
    launches = _launches(plan, samples)
    return Profile(
        plan.name, plan.target, launches, _layers(plan, launches, ceilings), whole, ceilings
    )


def _named(engine: Engine, inputs: tuple[Any, ...]) -> Mapping[str, Any]:
    if not inputs:
        return random_inputs(engine.inputs)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        named: Mapping[str, Any] = inputs[0]
        return named
    return pair(engine.inputs, inputs)


def _whole(context: Context, inputs: Mapping[str, Any], repeats: int) -> tuple[float, ...]:
    context.run(inputs)
    device = context.device_seconds(repeats)
    if device is not None:
        return tuple(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        context.run(inputs)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def _launches(plan: Plan, samples: list[list[float]]) -> tuple[LaunchTime, ...]:
    steps = [
        (step, tuple(times))
        for step, times in zip(plan.steps, samples, strict=True)
        if not isinstance(step, ForkStep | JoinStep)
    ]
    parts = Counter(step.layer for step, _ in steps)
    seen: Counter[int] = Counter()
    found = []
    for index, (step, times) in enumerate(steps):
        seen[step.layer] += 1
        name = plan.layers[step.layer].name
        if parts[step.layer] > 1:
            name += f" {seen[step.layer]}/{parts[step.layer]}"
        if isinstance(step, LaunchStep):
            kernel = plan.kernels[step.kernel].entry
        else:
            kernel = getattr(step, "variant", type(step).__name__.removesuffix("Step").lower())
        stream = getattr(step, "stream", 0)
        found.append(LaunchTime(index, step.layer, name, kernel, stream, times))
    return tuple(found)


def _layers(
    plan: Plan, launches: tuple[LaunchTime, ...], ceilings: Ceilings | None
) -> tuple[LayerTime, ...]:
    found = []
    for index, layer in enumerate(plan.layers):
        own = [launch for launch in launches if launch.layer == index]
        intensity = layer.flops / layer.nbytes if layer.nbytes else 0.0
        attainable, bandwidth, bound = None, None, ""
        if ceilings is not None:
            attainable = ceilings.attainable(layer.precision, intensity)
            bandwidth = ceilings.bandwidth
            ridge = ceilings.ridge(layer.precision)
            bound = "compute" if ridge is not None and intensity >= ridge else "memory"
        found.append(
            LayerTime(
                index=index,
                name=layer.name,
                op=layer.op,
                origins=layer.origins,
                precision=layer.precision,
                variant=layer.variant,
                config=layer.config,
                seconds=sum(launch.seconds for launch in own),
                launches=len(own),
                flops=layer.flops,
                nbytes=layer.nbytes,
                attainable=attainable,
                bandwidth=bandwidth,
                bound=bound,
            )
        )
    return tuple(found)
