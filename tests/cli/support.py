"""What the tests of the command share besides fixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nrt.plan import IoSpec, Plan

Array = np.ndarray[Any, np.dtype[Any]]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def weights(seed: int = 7) -> tuple[Array, Array, Array]:
    """Of `model_file`: a 3x5x3x3 filter bank, its bias, and a 5x11 matrix."""
    rng = np.random.default_rng(seed)
    shapes = ((5, 3, 3, 3), (5,), (5, 11))
    w, b, m = (rng.standard_normal(s).astype(np.float32) * np.float32(0.3) for s in shapes)
    return w, b, m


@dataclass
class FakeEngine:
    """An engine as the commands use one; ``outputs_of`` computes."""

    plan: Plan
    outputs_of: Callable[[dict[str, Array]], dict[str, Array]]

    @property
    def inputs(self) -> tuple[IoSpec, ...]:
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[IoSpec, ...]:
        return self.plan.outputs

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self.outputs_of(inputs)
