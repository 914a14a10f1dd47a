"""Depthwise convolution: one filter per channel, vectors of channels, sums in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels.conv import extra_operands, refuse_conv, result_operands
from nrt.cpu_kernels.launch import epilogue_function, epilogue_of
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem, Refusal

__all__ = ["ConvDepthwise"]

_GRAIN = 1 << 16
"""Multiply-adds that are worth a thread."""


class ConvDepthwise(HostVariant):
    """One line of the output at a time, then the epilogue while the line is in cache."""

    name = "cpu_conv_depthwise"
    ops = (Conv,)
    rank = 20

    def supports(self, problem: Problem) -> Refusal | None:
        op: Any = problem.op
        x, w = problem.inputs[:2]
        if w.shape[1] != 1 or op.groups != w.shape[0]:
            return Refusal(f"{op.groups} groups of {w.shape[1]} channels: not depthwise")
        refusal = refuse_conv(problem)
        if refusal is not None:
            return refusal
        if x.strides[1] != 1 and x.shape[1] > 1:
            return Refusal(f"input channels lie {x.strides[1]} elements apart, not side by side")
        return None

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as ``[R, S, C]``."""
        del problem, config
        if slot != 1:
            return array
        return np.ascontiguousarray(array[:, 0].transpose(1, 2, 0), np.float32)

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        from nrt.cpu_kernels.depthwise_kernel import depthwise
        from nrt.cpu_kernels.jit import precompile
        from nrt.cpu_kernels.pool import parallel, ranges
        from nrt.cpu_kernels.simd import address_of

        op: Any = problem.op
        x, w = problem.inputs[:2]
        n, k, p, q = problem.y.shape
        r, s = w.shape[2:]
        outs, extras = result_operands(problem), extra_operands(problem)
        program = epilogue_of(op.epilogue, bool(extras), [o.dtype for o in outs])
        operands, function = epilogue_function(program, k, outs, extras)
        fields = [
            k, p, q, r, s, *op.strides, *op.pads[:2], *op.dilations, *x.shape[2:],
            4 * x.strides[0], 4 * x.strides[2], 4 * x.strides[3], len(operands), len(outs),
        ]  # fmt: skip
        for o in operands:
            size = o.dtype.itemsize
            fields += [o.n * size, o.p * size, o.q * size, o.col]
        params = np.array(fields, np.int64)
        params_at = params.ctypes.data
        kernel = precompile(depthwise)
        lines = n * p
        chunks = max(1, min(lines, ranges(lines * q * k * r * s, _GRAIN)))

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            source, weights, *rest = inputs
            arrays = (source, weights, *outputs, *rest)
            addresses = np.array([address_of(a) for a in arrays], np.int64)
            at = addresses.ctypes.data

            def work(chunk: int) -> None:
                first, last = lines * chunk // chunks, lines * (chunk + 1) // chunks
                kernel(function.address, params_at, at, first, last)

            parallel(work, chunks)

        call.__dict__["keep"] = (params, function)
        return call
