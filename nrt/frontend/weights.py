"""Random weights that behave like trained ones: activations keep unit variance.

Examples, demonstrations and benchmarks need networks without a download. He et al. 2015, "Delving
deep into rectifiers": weights of variance ``2 / fan-in`` keep the variance of activations through a
layer that follows a ReLU, ``1 / fan-in`` through one that does not. Residual branches are scaled
down by the caller, since each adds to the variance.
"""

from __future__ import annotations

import math

import numpy as np

from nrt.ir.op import Array

__all__ = ["RandomWeights"]

_RELU_GAIN = 2.0


class RandomWeights:
    """A seeded source of float32 weights; the same calls give the same numbers on every machine.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def conv(
        self,
        filters: int,
        channels: int,
        kernel: int | tuple[int, int],
        *,
        gain: float = _RELU_GAIN,
        scale: float = 1.0,
    ) -> Array:
        """``[filters, channels, R, S]`` of variance ``gain / fan-in``; channels of one group."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        shape = (filters, channels, height, width)
        return self._normal(shape, scale * math.sqrt(gain / (channels * height * width)))

    def linear(self, outputs: int, inputs: int, *, gain: float = 1.0) -> Array:
        """``[outputs, inputs]`` of variance ``gain / inputs``."""
        return self._normal((outputs, inputs), math.sqrt(gain / inputs))

    def bias(self, count: int, deviation: float = 0.1) -> Array:
        """``[count]`` of the given standard deviation."""
        return self._normal((count,), deviation)

    def batch_norm(self, count: int, *, scale: float = 1.0) -> tuple[Array, Array, Array, Array]:
        """Scale, bias, mean and variance, each ``[count]``: near the identity times ``scale``."""
        gamma = np.float32(scale) * self._between(0.8, 1.2, count)
        beta = self._normal((count,), 0.1 * scale)
        return gamma, beta, self._normal((count,), 0.1), self._between(0.8, 1.2, count)

    def _normal(self, shape: tuple[int, ...], deviation: float) -> Array:
        return self._rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    def _between(self, low: float, high: float, count: int) -> Array:
        return self._rng.uniform(low, high, count).astype(np.float32)
