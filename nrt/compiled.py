"""compile(): a model in, an engine out that can be run and asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nrt.builder import Build, build
from nrt.frontend.network import Network
from nrt.passes.base import Pass
from nrt.passes.bind_io import IOFormat
from nrt.runtime import Engine
from nrt.tuner import Progress

if TYPE_CHECKING:
    import onnx

    from nrt.insight.explain import Explanation
    from nrt.insight.profile import Profile
    from nrt.insight.what_if import WhatIf
    from nrt.ir.graph_diff import GraphDiff
    from nrt.precision import AccuracyBudget, Frontier
    from nrt.precision.selection import Selection
    from nrt.quantization import Calibration
    from nrt.runtime.cuda import CudaDevice

__all__ = ["CompiledEngine", "compile"]


class CompiledEngine(Engine):
    """An engine that knows how it came about: what `nrt.compile` returns.

    `Engine.save` writes the plan alone; an engine that `nrt.load` read has no ``build``.

    Attributes:
        build: the plan, the optimized graph with its constants, what every pass did, and what each
            kernel was chosen from.
    """

    def __init__(self, build: Build, device: int | CudaDevice = 0, *, load: bool = True) -> None:
        """Make the plan of ``build`` ready to run; arguments and errors as for `Engine`."""
        self.build = build
        if build.plan.target.kind == "cpu":
            from nrt.cpu_kernels import bind

            super().__init__(build.plan, bind)
        else:
            super().__init__(build.plan, device=device, load=load)

    @property
    def selection(self) -> Selection | None:
        """The precision of every layer with the reason for it; None where none was chosen."""
        return self.build.selection

    @property
    def frontier(self) -> Frontier | None:
        """Time against accuracy of all networks that a choice of precisions compared, or None."""
        return None if self.build.selection is None else self.build.selection.frontier

    def explain(self, layer: str) -> Explanation:
        """Why ``layer`` is what it is: rewrites, refusals, precision, candidates, memory.

        Args:
            layer: a layer of the plan, a node of the graph, a node of the model, or a pattern of
                such names (as of `fnmatch`); the end of one name, ``layer4.2.conv3``, is enough.

        Raises:
            InputError: nothing is called so; the message lists near names.
        """
        from nrt.insight.explain import explain

        return explain(self.build, layer)

    def diff(self, before: str = "imported", after: str = "final") -> GraphDiff:
        """What the passes between two stages did; see `Build.diff`.

        Raises:
            PassError: there is no such stage, or ``snapshots=True`` was not given to `compile`.
        """
        return self.build.diff(before, after)

    def profile(self, *inputs: Any, repeats: int = 20) -> Profile:
        """Time of every launch, beside what the device can do; see `nrt.insight.profile.profile`.

        Args:
            inputs: in the plan's order, or one mapping by name; without any: random ones.
            repeats: measurements of each launch, and of the whole.

        Raises:
            InputError: the inputs do not fit.
            DeviceError: a CUDA call failed.
        """
        from nrt.insight.profile import profile

        return profile(self, *inputs, repeats=repeats)

    def what_if(self, changes: Mapping[str, Mapping[str, Any]], **options: Any) -> WhatIf:
        """The network with another kernel or precision for some layers, measured beside this one.

        Arguments and errors are those of `nrt.insight.what_if.what_if`, which has ``build`` first.
        """
        from nrt.insight.what_if import what_if

        return what_if(self.build, changes, **options)

    def to_onnx(self, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
        """The optimized graph as an ONNX model, with the kernels as metadata; see `nrt.to_onnx`.

        Raises:
            ExportError: it cannot be written as ONNX.
        """
        from nrt.frontend import to_onnx

        return to_onnx(self.build, path)


def compile(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | Network,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    target: str = "auto",
    opt_level: int = 3,
    layers: Mapping[str, str] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    accuracy: AccuracyBudget | None = None,
    io: Mapping[str, IOFormat] | None = None,
    disabled: Iterable[str] = (),
    extra_passes: Sequence[Pass] = (),
    tuning_seconds: float | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    programmatic: bool | None = None,
    streams: int | None = None,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
    snapshots: bool = False,
) -> CompiledEngine:
    """Compile ``model`` for one device.

    Args:
        model: an ONNX file's path or bytes, an ``onnx.ModelProto``, or a `Network`.
        shapes: input name -> shape, for models with open dimensions.
        precision: permitted element types, ``"fp32"``, ``"fp16"`` or a set of names; ``"auto"``:
            per layer, whichever makes the network fastest.
        target: ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, or ``cuda:sm_87`` to build
            for a GPU that is not here, with heuristic kernels.
        opt_level: 0 (nothing is timed) to 5 (every candidate is).
        layers: name pattern -> precision, for single layers.
        calibration: ranges for ``int8`` and ``fp8``: what `nrt.calibrate` found, or the file that
            it wrote.
        accuracy: what the network must keep, on data of yours; see `nrt.AccuracyBudget`.
        io: name of an input or output -> how it is bound, where that is not as in the model.
        disabled: names of passes to leave out.
        extra_passes: passes of your own; see docs/extending.md.
        tuning_seconds: start no measurement after so many seconds of tuning.
        timing_cache: file of measured times, read and updated.
        programmatic: whether launches may overlap (Hopper and later); None: whichever is faster.
        streams: most streams for branches side by side; None: as many as make it faster.
        memory_limit: bytes, or text such as ``"512 MiB"``, that all of the plan may take.
        progress: called with (stage, done, total).
        snapshots: keep the graph after every pass, for `CompiledEngine.diff`.

    `nrt.builder.build` says more about each.

    Returns:
        An engine, ready to run (for ``cuda:ARCH`` of another device: ready to save).

    Raises:
        ImportModelError, UnsupportedOpError: the model cannot be read.
        BuildError: it cannot be built as asked.
        CalibrationError: the calibration is of another model, or cannot be read.
        DeviceError: ``target="cuda"`` without a GPU.
    """
    built = build(
        model,
        shapes=shapes,
        precision=precision,
        target=target,
        opt_level=opt_level,
        layers=layers,
        calibration=calibration,
        accuracy=accuracy,
        io=io,
        disabled=disabled,
        extra_passes=extra_passes,
        tuning_seconds=tuning_seconds,
        timing_cache=timing_cache,
        programmatic=programmatic,
        streams=streams,
        memory_limit=memory_limit,
        progress=progress,
        snapshots=snapshots,
    )
    # A named architecture may be another machine's: the device is opened by the first run.
    return CompiledEngine(built, load=":" not in target)
