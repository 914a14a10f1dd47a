"""The pipeline: which passes run, in which order, and why.

Few phases, each repeated until nothing changes. A phase may rely on what the phases before it left,
and on nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

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
from nrt.passes.fuse_conv_epilogue import FuseConvEpilogue
from nrt.passes.fuse_matmul_epilogue import FuseMatMulEpilogue
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.fuse_pool_classifier import FusePoolClassifier
from nrt.passes.fuse_pool_epilogue import FusePoolEpilogue
from nrt.passes.fuse_reduce import FuseReduce
from nrt.passes.gather_to_slice import GatherToSlice
from nrt.passes.merge_reformats import MergeReformats
from nrt.passes.remove_identities import RemoveIdentities
from nrt.passes.select_precision import SelectPrecision
from nrt.passes.sink_reshape import SinkReshape
from nrt.passes.sink_scale import SinkScale

__all__ = ["PASSES", "PipelineOptions", "pass_names", "pipeline"]

PASSES: tuple[type[Pass], ...] = (
    FoldConstants,
    RemoveIdentities,
    GatherToSlice,
    CommonSubexpressions,
    DeadCode,
    FoldBatchNorm,
    FoldPad,
    SinkReshape,
    FusePointwise,
    SinkScale,
    FuseConvEpilogue,
    FuseMatMulEpilogue,
    FuseReduce,
    FusePoolEpilogue,
    FusePoolClassifier,
    CopyPointwise,
    BindIo,
    SelectPrecision,
    AssignLayout,
    FoldLayoutIntoWeights,
    MergeReformats,
)
"""Every pass, in the order of the pipeline."""


@dataclass(frozen=True)
class PipelineOptions:
    """What a user may say about the passes.

    Attributes:
        precision: permitted precisions; see `SelectPrecision`.
        layers: name pattern -> the one precision of the layers that it matches.
        io: formats of inputs and outputs; see `BindIo`.
        channels_last: keep images channels last in memory, as the convolution kernels of GPUs want.
        disabled: passes to leave out, by name.
    """

    precision: frozenset[str] = frozenset({"fp32"})
    layers: Mapping[str, str] = field(default_factory=dict)
    io: Mapping[str, IOFormat] = field(default_factory=dict)
    channels_last: bool = True
    disabled: frozenset[str] = frozenset()


def pass_names() -> tuple[str, ...]:
    """The names of all passes, in the order of the pipeline."""
    return tuple(p.name for p in PASSES)


def pipeline(options: PipelineOptions | None = None) -> tuple[Phase, ...]:
    """The phases for ``options``, without the passes that it switches off.

    Raises:
        BuildError: ``disabled`` names a pass that does not exist; the message lists all.
    """
    options = options or PipelineOptions()
    _check_names(options.disabled)
    layout: tuple[Pass, ...] = (AssignLayout(), FoldLayoutIntoWeights())
    phases = (
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
            "choose",
            (FusePoolClassifier(), CopyPointwise(), FusePointwise(), DeadCode()),
            "Fusions that do not always pay: the builder compares the network with and without "
            "them. After the others, so that what is compared is what would be built, and in a "
            "phase of their own, so that only what follows is run again.",
        ),
        Phase(
            "bindings",
            (BindIo(options.io),),
            "After fusion, which is to see no cast that precision will make superfluous, and "
            "before precision, whose casts meet those of the bindings.",
        ),
        Phase(
            "precision",
            (SelectPrecision(options.precision, options.layers), DeadCode()),
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
            "Last: cleans up what bindings, precision and layout put in, each without a look at "
            "the others; an output that the layout reordered is first bound again.",
        ),
    )
    return tuple(
        Phase(p.name, kept, p.reason, p.rounds)
        for p in phases
        if (kept := tuple(s for s in p.passes if s.name not in options.disabled))
    )


def _check_names(names: frozenset[str]) -> None:
    known = pass_names()
    for name in sorted(names - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BuildError(f"pass {name!r} is unknown; {hint}known: {', '.join(known)}")
