"""The pipeline: which passes run, in which order, and why.

Few phases, each repeated until nothing changes. A phase may rely on what the phases before it left,
and on nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from nrt.errors import BuildError
from nrt.passes.assign_layout import AssignLayout
from nrt.passes.base import Pass, Phase
from nrt.passes.bind_io import BindIo, IOFormat
from nrt.passes.common_subexpressions import CommonSubexpressions
from nrt.passes.copy_pointwise import CopyPointwise
from nrt.passes.dead_code import DeadCode
from nrt.passes.fold_batch_norm import FoldBatchNorm
from nrt.passes.fold_constants import FoldConstants
from nrt.passes.fold_layout_into_weights import FoldLayoutIntoWeights
from nrt.passes.fold_pad import FoldPad
from nrt.passes.fold_quantization import FoldQuantization
from nrt.passes.fold_requantize import FoldRequantize
from nrt.passes.fuse_average_pool import FuseAveragePool
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_conv_prologue import FuseConvPrologue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.fuse_pool_classifier import FusePoolClassifier
from nrt.passes.fuse_pool_conv import FusePoolConv
from nrt.passes.fuse_pool_epilogue import FusePoolEpilogue
from nrt.passes.fuse_reduce import FuseReduce
from nrt.passes.fuse_second_output import FuseSecondOutput
from nrt.passes.fuse_siblings import FuseSiblings
from nrt.passes.gather_to_slice import GatherToSlice
from nrt.passes.merge_pointwise import MergePointwise
from nrt.passes.merge_reformats import MergeReformats
from nrt.passes.precision_rules import Assignment
from nrt.passes.quantize import QuantizeLayers
from nrt.passes.remove_identities import RemoveIdentities
from nrt.passes.select_precision import SelectPrecision
from nrt.passes.sink_reshape import SinkReshape
from nrt.passes.sink_scale import SinkScale
from nrt.quantization.calibration import Calibration

__all__ = [
    "PASSES",
    "PipelineOptions",
    "check_names",
    "pass_names",
    "pipeline",
    "required_passes",
]

PASSES: tuple[type[Pass], ...] = (
    FoldConstants,
    RemoveIdentities,
    GatherToSlice,
    CommonSubexpressions,
    DeadCode,
    FoldBatchNorm,
    FoldPad,
    FoldQuantization,
    SinkReshape,
    FusePointwise,
    SinkScale,
    FuseConvEpilogue,
    FuseMatMulEpilogue,
    FuseReduce,
    FusePoolEpilogue,
    QuantizeLayers,
    FuseAveragePool,
    FuseConvPrologue,
    FusePoolClassifier,
    CopyPointwise,
    BindIo,
    SelectPrecision,
    AssignLayout,
    FoldLayoutIntoWeights,
    MergeReformats,
    FoldRequantize,
    FuseSiblings,
    FusePoolConv,
    FuseSecondOutput,
    MergePointwise,
)
"""Every pass, in the order of the pipeline."""


@dataclass(frozen=True)
class PipelineOptions:
    """What a user may say about the passes.

    Attributes:
        precision: permitted precisions; see `SelectPrecision`.
        layers: name pattern -> the one precision of the layers that it matches.
        calibration: ranges for int8 and fp8; see `QuantizeLayers`.
        io: formats of inputs and outputs; see `BindIo`.
        channels_last: keep images channels last in memory, as the convolution kernels of GPUs want.
        disabled: passes to leave out, by name; not one that the other options ask for.
        extra: passes of the user's own, a phase between ``fold`` and ``fuse``.
        no_fp8: why the target multiplies no fp8; empty if it does.
        few_channels: whether the target's int8 kernels read images of few channels as they are.
        assignment: precisions of single layers, chosen by the builder.
    """

    precision: frozenset[str] = frozenset({"fp32"})
    layers: Mapping[str, str] = field(default_factory=dict)
    io: Mapping[str, IOFormat] = field(default_factory=dict)
    channels_last: bool = True
    disabled: frozenset[str] = frozenset()
    calibration: Calibration | None = None
    extra: tuple[Pass, ...] = ()
    no_fp8: str = ""
    few_channels: bool = True
    assignment: Assignment | None = None


def pass_names() -> tuple[str, ...]:
    """The names of all passes, in the order of the pipeline."""
    return tuple(p.name for p in PASSES)


def pipeline(options: PipelineOptions | None = None) -> tuple[Phase, ...]:
    """The phases for ``options``, without the passes that it switches off.

    Raises:
        BuildError: ``disabled`` names a pass that does not exist, the message lists all; or one
            that is required, the message says why; ``extra`` holds what is no pass, or none of a
            name of its own.
    """
    options = options or PipelineOptions()
    check_names(options.disabled)
    _check_extra(options.extra)
    phases = _phases(options)
    for name, reason in required_passes(phases).items():
        if name in options.disabled:
            raise BuildError(f"pass '{name}' cannot be left out: {reason}")
    return tuple(
        replace(phase, passes=kept)
        for phase in phases
        if (kept := tuple(p for p in phase.passes if p.name not in options.disabled))
    )


def required_passes(phases: Iterable[Phase]) -> dict[str, str]:
    """Name of each pass that cannot be left out, with the reason."""
    passes = (step for phase in phases for step in phase.passes)
    return {step.name: reason for step in passes if (reason := step.required())}


def check_names(names: Collection[str]) -> None:
    """Raises BuildError where one is no pass; the message lists all."""
    known = pass_names()
    for name in sorted(set(names) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BuildError(f"pass {name!r} is unknown; {hint}known: {', '.join(known)}")


def _phases(options: PipelineOptions) -> tuple[Phase, ...]:
    """All of them."""
    layout: tuple[Pass, ...] = (AssignLayout(), FoldLayoutIntoWeights())
    return (
        Phase(
            "simplify",
            (
                FoldConstants(),
                RemoveIdentities(),
                GatherToSlice(),
                CommonSubexpressions(),
                DeadCode(),
            ),
            "First, so that every later pattern meets plain graphs: weights that a Transpose or "
            "Cast computes are constants, no Identity stands between a Conv and what follows it.",
        ),
        Phase(
            "fold",
            (FoldBatchNorm(), FoldPad(), FoldConstants(), DeadCode()),
            "Before fusion: a batch normalization in the weights costs nothing, in an epilogue two "
            "instructions and two tensors.",
        ),
        Phase(
            "user",
            options.extra,
            "After folding, where the graph is simplest; before fusion, which hides what a pattern "
            "of plain ops would look for.",
            verify=True,
        ),
        Phase(
            "quantization",
            (FoldQuantization(options.no_fp8, options.few_channels), FoldConstants(), DeadCode()),
            "Before fusion, which takes a Dequantize for any other arithmetic and would let a "
            "product of integers disappear behind it.",
        ),
        Phase(
            "fuse",
            (
                SinkReshape(),
                FusePointwise(),
                SinkScale(),
                FuseConvEpilogue(),
                FuseMatMulEpilogue(),
                FuseReduce(),
                FusePoolEpilogue(),
                RemoveIdentities(),
                DeadCode(),
            ),
            "Pointwise before epilogues: x · sigmoid(x) reads x twice, and only as one node is it "
            "the single user that an epilogue may take in; products before reductions and pools, "
            "which take what is left. All of it before precision, which then casts once per fused "
            "layer and not once per step.",
        ),
        Phase(
            "quantize",
            _quantize(options),
            "After fusion, since ranges are those of the fused graph's values: what stays in a "
            "register is never rounded. The fusing passes then take in what is left of rounding.",
        ),
        Phase(
            "choose",
            (
                FuseAveragePool(),
                FuseConvPrologue(),
                FusePoolClassifier(),
                CopyPointwise(),
                FusePointwise(),
                DeadCode(),
            ),
            "Fusions that do not always pay: the builder compares the network with and without "
            "them. After the others, which cost less and take what they can; and in a phase of "
            "their own, so that only what follows is run again. A convolution takes in the pooling "
            "behind it before what comes before it, of which the new filter has a say.",
        ),
        Phase(
            "bindings",
            (BindIo(options.io),),
            "After all fusion, which is to see no cast that precision will make superfluous, and "
            "before precision, whose casts meet those of the bindings.",
        ),
        Phase(
            "precision",
            (
                SelectPrecision(
                    options.precision, options.layers, options.assignment, options.calibration
                ),
                DeadCode(),
            ),
            "Before layout: a Reformat that casts is there to be merged with one that reorders.",
        ),
        Phase(
            "layout",
            layout if options.channels_last else (),
            "Folding into the weights needs the Reformat that the layout put before a Reshape, "
            "before it is merged with anything else.",
        ),
        Phase(
            "borders",
            (BindIo(options.io), MergeReformats(), RemoveIdentities(), DeadCode()),
            "Cleans up what bindings, precision and layout put in, each without a look at the "
            "others; an output that the layout reordered is first bound again.",
        ),
        Phase(
            "requantize",
            (FoldRequantize(), DeadCode()),
            "Once epilogues are complete and it is settled who stores bytes: precision caps some, "
            "which saturation does too. Before siblings, whose constants become vectors.",
        ),
        Phase(
            "siblings",
            (FuseSiblings(), FusePoolConv(), FuseSecondOutput(), MergePointwise(), DeadCode()),
            "Last: siblings have one type and layout, and what reads their results is settled, on "
            "which it depends whether a piece is read where it lies. Poolings and pointwise nodes "
            "after products, whose pieces they then read, or whose second results they become.",
        ),
    )


def _quantize(options: PipelineOptions) -> tuple[Pass, ...]:
    """What makes int8 or fp8 of layers, where one is permitted."""
    first = QuantizeLayers(
        options.calibration,
        options.precision,
        options.layers,
        options.assignment,
        options.no_fp8,
    )
    if not first.wanted:
        return (first,)
    return (
        first,
        FoldQuantization(options.no_fp8, options.few_channels),
        FoldConstants(),
        FusePointwise(),
        FuseConvEpilogue(),
        FuseMatMulEpilogue(),
        FusePoolEpilogue(),
        DeadCode(),
    )


def _check_extra(extra: tuple[Pass, ...]) -> None:
    names = list(pass_names())
    for index, step in enumerate(extra):
        where = f"extra_passes[{index}]"
        if not isinstance(step, Pass):
            made = f"; make one: {step.__name__}()" if isinstance(step, type) else ""
            raise BuildError(f"{where}: got {step!r}, expected an instance of nrt.Pass{made}")
        name = getattr(step, "name", None)
        if not isinstance(name, str) or not name:
            raise BuildError(
                f"{where}: {type(step).__name__} has no name; set name: ClassVar[str] = 'my-pass'"
            )
        if name in names:
            raise BuildError(
                f"{where}: a pass called {name!r} is there already; choose another name"
            )
        names.append(name)
