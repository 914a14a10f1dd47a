"""Graphs with Quantize and Dequantize; with scales of powers of two floats hold every sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from nrt.dtypes import FP8E4M3, FP32, INT8, UINT8, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Add, Conv, Dequantize, MatMul, Quantize, Relu
from nrt.ir.value import Value

from .support import Net


class QuantizedNet(Net):
    """A net whose values may be on grids."""

    def grid(self, scale: Any, zero: Any = None, dtype: DType = INT8) -> list[Value]:
        found = [self.const(np.asarray(scale, np.float32), "scale")]
        if zero is not None:
            found.append(self.const(np.asarray(zero, dtype.numpy), "zero"))
        return found

    def q(self, x: Value, scale: Any, zero: Any = None, dtype: DType = INT8) -> Value:
        return self.op(Quantize(dtype), x, *self.grid(scale, zero, dtype), name="q")

    def dq(self, q: Value, scale: Any, zero: Any = None) -> Value:
        return self.op(Dequantize(FP32), q, *self.grid(scale, zero, q.dtype), name="dq")

    def qdq(self, x: Value, scale: Any, zero: Any = None, dtype: DType = INT8) -> Value:
        return self.dq(self.q(x, scale, zero, dtype), scale, zero)

    def integers(self, *shape: int, dtype: DType = INT8, name: str = "w.q") -> Value:
        if dtype is FP8E4M3:
            # Few bits, so that fp32 holds sums of products.
            return self.const(self.rng.integers(-16, 17, shape).astype(dtype.numpy), name)
        info = np.iinfo(dtype.numpy)
        low = -127 if dtype is INT8 else info.min
        return self.const(self.rng.integers(low, info.max + 1, shape, dtype.numpy), name)

    def scales(self, count: int) -> Array:
        """Powers of two around 2^-9."""
        return np.exp2(self.rng.integers(-11, -7, count)).astype(np.float32)

    def weights(self, *shape: int, axis: int = 0, dtype: DType = INT8) -> Value:
        """Dequantized weights with a scale per channel along ``axis``."""
        spread = [1] * len(shape)
        spread[axis] = shape[axis]
        stored = self.integers(*shape, dtype=dtype)
        return self.dq(stored, self.scales(shape[axis]).reshape(spread))

    def qconv(
        self,
        x: Value,
        channels: int,
        kernel: int = 3,
        *,
        groups: int = 1,
        pad: int | None = None,
        dtype: DType = INT8,
    ) -> Value:
        """A convolution of dequantized weights, with a bias of the sums' own grid."""
        pad = kernel // 2 if pad is None else pad
        w = self.weights(channels, x.shape[1] // groups, kernel, kernel, dtype=dtype)
        bias = self.const(self.rng.integers(-64, 65, channels) * np.float32(0.25), "bias")
        op = Conv((1, 1), (pad,) * 4, groups=groups)
        return self.op(op, x, w, self.const(bias.constant.astype(np.float32), "b"))  # type: ignore[union-attr]

    def int8_feed(self, *shape: int) -> dict[str, Array]:
        return self.feed(INT8, *shape)

    def feed(self, dtype: DType, *shape: int) -> dict[str, Array]:
        low, high = (0, 255) if dtype is UINT8 else (-127, 127)
        return {"x": self.rng.integers(low, high + 1, shape).astype(dtype.numpy)}


def residual_block(net: QuantizedNet, x: Value, channels: int, dtype: DType = INT8) -> Value:
    """Two convolutions, their input added, on grids of 1/4; x is dequantized."""
    y = net.qdq(net.op(Relu(), net.qconv(x, channels, dtype=dtype)), 0.25, dtype=dtype)
    y = net.qdq(net.qconv(y, channels, dtype=dtype), 0.5, dtype=dtype)
    return net.qdq(net.op(Relu(), net.op(Add(), y, x)), 0.25, dtype=dtype)


def of_type(graph: Graph, op: type[Any], dtype: DType) -> int:
    """How many nodes of that op read ``dtype`` first."""
    return sum(isinstance(n.op, op) and n.inputs[0].dtype is dtype for n in graph.nodes)


def products(graph: Graph) -> list[tuple[DType, DType]]:
    """(operands, result) of every product, in order."""
    return [
        (n.inputs[0].dtype, n.output.dtype) for n in graph.nodes if isinstance(n.op, Conv | MatMul)
    ]
