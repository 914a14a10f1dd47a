"""A CUDA plan of two kernels on two streams, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Plan,
    ScalarArg,
    SetStep,
    Target,
)

from .plans import CUBIN, layer

N = 37
BYTES = 4 * N
ONE = (1, 1, 1)
WEIGHTS = np.random.default_rng().standard_normal(N).astype(np.float32)


def plan(
    cubin: bytes = CUBIN, entries: Sequence[str] = ("add", "scale"), arch: str = "sm_90a"
) -> Plan:
    """``u = (a + w) * 2 + b`` and ``v = a``, over one arena."""
    low, high = BufferRef("arena", 0, BYTES), BufferRef("arena", 256, BYTES)
    a, b = BufferRef("input", 0, BYTES, 0), BufferRef("input", 0, BYTES, 1)
    weights = BufferRef("weights", 256, BYTES)
    count = ScalarArg(N, "u32")
    null = BufferRef("null")
    spec = IoSpec("a", (N,), "fp32")
    return Plan(
        name="sum",
        target=Target("cuda", arch),
        inputs=(spec, replace(spec, name="b")),
        outputs=(replace(spec, name="u"), replace(spec, name="v")),
        arena_bytes=512,
        weights=bytes(256) + WEIGHTS.tobytes(),
        cubins=(cubin,),
        kernels=tuple(KernelRef(0, entry) for entry in entries),
        steps=(
            SetStep(BufferRef("arena", 0, 512), 255),
            LaunchStep(0, ONE, (32, 1, 1), (a, weights, low, count)),
            ForkStep(0, (1,)),
            LaunchStep(
                1, ONE, (32, 1, 1), (low, high, ScalarArg(2.0, "f32"), count, null), stream=1
            ),
            CopyStep(a, BufferRef("output", 0, BYTES, 1)),
            JoinStep(0, (1,)),
            LaunchStep(0, ONE, (32, 1, 1), (high, b, BufferRef("output", 0, BYTES, 0), count)),
        ),
        layers=(layer(),),
        streams=2,
    )


def numbers() -> Any:
    return np.random.default_rng().standard_normal(N).astype(np.float32)


def check(found: dict[str, Any], a: Any, b: Any) -> None:
    np.testing.assert_array_equal(found["u"], (a + WEIGHTS) * np.float32(2) + b)
    np.testing.assert_array_equal(found["v"], a)
