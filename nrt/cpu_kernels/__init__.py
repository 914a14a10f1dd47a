"""Kernels of the CPU target: the variants, and how a plan's host step becomes a call.

Importing this package is cheap; Numba is loaded when a variant that needs it is bound.
"""

from __future__ import annotations

from typing import Any

from nrt.cpu_kernels.conv import ConvIndirect, ConvStaged
from nrt.cpu_kernels.conv_transpose import ConvTransposePhases
from nrt.cpu_kernels.copies import Copies
from nrt.cpu_kernels.depthwise import ConvDepthwise
from nrt.cpu_kernels.histogram import Histogram
from nrt.cpu_kernels.matmul import MatMulPanels
from nrt.cpu_kernels.pointwise import Pointwise
from nrt.cpu_kernels.pooling import Pool
from nrt.cpu_kernels.reference import Reference
from nrt.cpu_kernels.rowops import BatchNorm, RowOps
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.cpu_kernels.winograd import ConvWinograd
from nrt.errors import PlanError
from nrt.extensions.registry import registry
from nrt.problem import Problem, Refusal

__all__ = [
    "VARIANTS",
    "Config",
    "HostCall",
    "HostVariant",
    "bind",
    "variant_by_name",
    "variants_for",
]

VARIANTS: tuple[HostVariant, ...] = (
    ConvIndirect(),
    ConvStaged(),
    ConvWinograd(),
    ConvDepthwise(),
    ConvTransposePhases(),
    MatMulPanels(),
    Pool(),
    RowOps(),
    BatchNorm(),
    Pointwise(),
    Copies(),
    Histogram(),
    Reference(),
)

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def variants_for(problem: Problem) -> list[tuple[HostVariant, Refusal | None]]:
    """The variants of the problem's family, each with None or the reason why it does not fit."""
    users: tuple[HostVariant, ...] = registry.host_variants.values
    return [(v, v.supports(problem)) for v in (*VARIANTS, *users) if _solves(v, problem)]


def _solves(variant: HostVariant, problem: Problem) -> bool:
    # A registered op brings its own reference.
    return problem.is_of(variant.ops) or (
        variant.reference and registry.ops.get(problem.family) is not None
    )


def variant_by_name(name: str) -> HostVariant:
    """The variant called ``name``, built in or registered.

    Raises:
        PlanError: there is none; the message lists all.
    """
    variant: HostVariant | None = _BY_NAME.get(name) or registry.host_variants.get(name)
    if variant is None:
        raise PlanError(
            f"host kernel {name!r} is unknown; this version has "
            f"{', '.join(sorted((*_BY_NAME, *registry.host_variants.names)))}. If it is a variant "
            "that you registered, import what defines it (nrt.variant) before the plan is loaded, "
            "or name its file: nrt run PLAN --plugin FILE.py. Build the plan again if it is from "
            "another version"
        )
    return variant


def _plain(config: Any) -> Config:
    return tuple(_plain(c) if isinstance(c, list | tuple) else c for c in config)


def bind(name: str, problem_data: Any, config: Any) -> HostCall:
    """The call of a plan's host step.

    Args:
        name: a variant's name.
        problem_data: `Problem.to_data`.
        config: the variant's configuration, as plain lists.

    Raises:
        PlanError: no such variant, malformed data, or the variant refuses the problem.
    """
    variant = variant_by_name(name)
    problem = Problem.from_data(problem_data)
    if not _solves(variant, problem):
        raise PlanError(f"host kernel {name!r} does not solve {problem.family}")
    refusal = variant.supports(problem)
    if refusal is not None:
        raise PlanError(f"host kernel {name!r} refuses {problem}: {refusal.reason}")
    return variant.bind(problem, _plain(config))
