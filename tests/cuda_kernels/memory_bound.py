"""What the tests of the memory-bound families share: specs, emulation, reasons of refusals."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import DType
from nrt.ir.op import Op
from nrt.problem import Problem, TensorSpec
from nrt.trial import random_inputs, relative_error

from .harness import ELSEWHERE, assert_right
from .kernel_emulator import KernelEmulator

__all__ = [
    "ARCHES",
    "LIMIT",
    "assert_emulates",
    "assert_on_gpu",
    "data",
    "last",
    "refusal",
    "rows",
    "sliced",
    "task",
    "variants_of",
]

LIMIT = {"fp32": 1e-5, "fp64": 1e-6, "fp16": 5e-3, "bf16": 3e-2, "fp8e4m3": 1e-2}
"""fp8: one number in a hundred may be a step of 1/16 apart, where fp32 rounds to another half."""

ARCHES = ["sm_80", pytest.param(ELSEWHERE, marks=pytest.mark.slow)]
"""Architectures that a representative of every family is compiled for."""

NHWC = (0, 2, 3, 1)


def rows(*shape: int, dtype: DType) -> TensorSpec:
    """A dense row-major tensor."""
    return TensorSpec.dense(shape, dtype)


def last(*shape: int, dtype: DType) -> TensorSpec:
    """A dense channels-last tensor; the shape is [N, C, H, W]."""
    return TensorSpec.dense(shape, dtype, NHWC)


def sliced(*shape: int, dtype: DType, order: tuple[int, ...], more: int) -> TensorSpec:
    """A slice of a buffer that has ``more`` elements along its innermost dimension."""
    wide = list(shape)
    wide[order[-1]] += more
    return TensorSpec(shape, dtype, TensorSpec.dense(tuple(wide), dtype, order).strides)


def task(op: Op, *inputs: TensorSpec, out: Any = rows) -> Problem:
    """A problem whose outputs ``out`` (`rows`, `last`, or a ready spec) lays out."""
    kinds = op.infer(*(t.type for t in inputs))
    outputs = tuple(
        out if isinstance(out, TensorSpec) else out(*k.shape, dtype=k.dtype) for k in kinds
    )
    return Problem(op, inputs, outputs, (False,) * len(inputs))


def variants_of(variants: Sequence[Variant], problem: Problem) -> list[Variant]:
    """The variants that take ``problem``; the family's reference must be among them."""
    device = ARCHS["sm_80"]
    family = [v for v in variants if type(problem.op) in v.ops]
    found = [v for v in family if v.supports(problem, device) is None]
    assert any(v.reference for v in found), f"no reference kernel takes {problem}"
    return found


def data(problem: Problem) -> list[np.ndarray]:
    """Fresh inputs; the same value wherever a stride is 0."""
    seed = zlib.crc32(str(problem).encode())
    inputs = random_inputs(problem, np.random.default_rng(seed))
    for slot, spec in enumerate(problem.inputs):
        own = tuple(slice(0, 1 if s == 0 else None) for s in spec.strides)
        inputs[slot] = np.broadcast_to(inputs[slot][own], spec.shape).copy()
    return inputs


def assert_emulates(
    variants: Sequence[Variant], problem: Problem, inputs: list[np.ndarray] | None = None
) -> None:
    """Every variant and configuration that takes ``problem`` gives the reference's result."""
    inputs = data(problem) if inputs is None else inputs
    exact = [
        a.astype(np.float64) if s.dtype.is_float else a
        for a, s in zip(inputs, problem.inputs, strict=True)
    ]
    expected = problem.op.reference(*exact)
    for variant in variants_of(variants, problem):
        for config in variant.configs(problem, ARCHS["sm_80"]):
            with np.errstate(all="ignore"):
                outputs = KernelEmulator().run(variant, problem, config, inputs)
            for out, ref, spec in zip(outputs, expected, problem.outputs, strict=True):
                assert out.shape == ref.shape
                error = relative_error(out, ref)
                assert error <= LIMIT.get(spec.dtype.name, 0.0), (variant.name, config, error)


def assert_on_gpu(
    runner: Any, variants: Sequence[Variant], problem: Problem, most: int | None = None
) -> None:
    """As `assert_emulates`, on a GPU; with ``most``, only as many configurations, best first."""
    for variant in variants_of(variants, problem):
        configs = variant.configs(problem, runner.device)[:most]
        assert_right(runner, variant, problem, LIMIT, configs)


def refusal(variant: Variant, problem: Problem) -> str:
    """The reason why ``variant`` does not take ``problem``."""
    found = variant.supports(problem, ARCHS["sm_80"])
    assert found is not None, f"{variant.name} takes {problem}"
    return found.reason
