"""Histograms of magnitudes, for calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.ir.op import Array
from nrt.ir.ops import AbsHistogram
from nrt.problem import Problem, Refusal

__all__ = ["Histogram"]


class Histogram(HostVariant):
    """Two passes over the bits: the largest magnitude, then the counts.

    Elements are read in the order of memory, which for a dense tensor of any layout is no copy.
    """

    name = "cpu_histogram"
    ops = (AbsHistogram,)
    rank = 10

    def supports(self, problem: Problem) -> Refusal | None:
        del problem
        return None

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del problem, config
        from nrt.cpu_kernels.histogram_kernel import histogram

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            bits = inputs[0].ravel(order="K").view(np.int32)
            words = np.zeros(outputs[0].shape, np.int64)
            histogram(bits, words)
            outputs[0][...] = words

        return call
