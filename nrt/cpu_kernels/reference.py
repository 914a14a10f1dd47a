"""The variant that solves everything: an op's own NumPy reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.ir.op import Array
from nrt.ir.ops import OPS
from nrt.problem import Problem, Refusal

__all__ = ["Reference"]


class Reference(HostVariant):
    """NumPy on logical arrays; results are stored through the outputs' strides."""

    name = "cpu_reference"
    ops = OPS
    rank = 100
    reference = True

    def supports(self, problem: Problem) -> Refusal | None:
        del problem
        return None

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        op = problem.op

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            for out, result in zip(outputs, op.reference(*inputs), strict=True):
                np.copyto(out, result, casting="unsafe")

        return call
