"""3x3 convolution by Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308).

F(4x4, 3x3) needs a quarter of the multiplications, F(2x2, 3x3) four ninths. A block of tiles is
transformed, multiplied and transformed back while it is in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels.conv import extra_operands, refuse_conv, result_operands
from nrt.cpu_kernels.launch import epilogue_function, epilogue_of, panel_columns
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.cpu_kernels.winograd_matrices import FILTER
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem, Refusal

__all__ = ["ConvWinograd"]

_BLOCK_BYTES = 768 * 1024
"""Transformed inputs and sums of a block of tiles: most of a 1 MiB L2."""


class ConvWinograd(HostVariant):
    """Stride 1, no groups, input channels a multiple of the vector length."""

    name = "cpu_conv_winograd"
    ops = (Conv,)
    rank = 30

    def supports(self, problem: Problem) -> Refusal | None:
        from nrt.cpu_kernels.simd import LANES

        refusal = refuse_conv(problem)
        if refusal is not None:
            return refusal
        op: Any = problem.op
        x, w = problem.inputs[:2]
        if w.shape[2:] != (3, 3):
            return Refusal(f"filter {w.shape[2]}x{w.shape[3]}, only 3x3 is transformed")
        if (*op.strides, *op.dilations) != (1, 1, 1, 1):
            return Refusal(f"strides {op.strides} and dilations {op.dilations}, expected 1")
        if op.groups != 1:
            return Refusal(f"{op.groups} groups, expected 1")
        if x.strides[1] != 1:
            return Refusal(f"input channels lie {x.strides[1]} elements apart, not side by side")
        if x.shape[1] % LANES:
            return Refusal(f"{x.shape[1]} input channels are no multiple of {LANES}")
        return None

    def configs(self, problem: Problem) -> Sequence[Config]:
        """``(m, tiles of a block)``."""
        from nrt.cpu_kernels.pool import threads

        n, k, p, q = problem.y.shape
        c = problem.inputs[0].shape[1]
        columns = panel_columns(0)
        padded = -(-k // columns) * columns
        result = []
        for m in (4, 2):
            tiles = n * -(-p // m) * -(-q // m)
            limit = max(6, _BLOCK_BYTES // ((m + 2) ** 2 * 4 * (c + padded)))
            blocks = -(-tiles // limit)
            blocks = -(-blocks // threads()) * threads()
            result.append((m, -(-tiles // blocks)))
        return result

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Transformed weights as ``[point][panel][C][column]``."""
        del problem
        if slot != 1:
            return array
        matrix = np.array(FILTER[config[0]], np.float64)
        k, c = array.shape[:2]
        columns = panel_columns(0)
        panels = -(-k // columns)
        points = np.einsum("ia,kcab,jb->ijck", matrix, array.astype(np.float64), matrix)
        padded = np.zeros((len(matrix) ** 2, c, panels * columns), np.float32)
        padded[:, :, :k] = points.reshape(-1, c, k)
        packed = padded.reshape(-1, c, panels, columns).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(packed)

    def bind(self, problem: Problem, config: Config) -> HostCall:
        from nrt.cpu_kernels.jit import precompile
        from nrt.cpu_kernels.pool import parallel, threads
        from nrt.cpu_kernels.simd import address_of
        from nrt.cpu_kernels.winograd_kernel import winograd_kernel

        op: Any = problem.op
        m, block = config
        x = problem.inputs[0]
        n, k, p, q = problem.y.shape
        outs, extras = result_operands(problem), extra_operands(problem)
        program = epilogue_of(op.epilogue, bool(extras), [o.dtype for o in outs])
        operands, function = epilogue_function(program, k, outs, extras)
        down, across = -(-p // m), -(-q // m)
        tiles = n * down * across
        fields = [
            tiles, down, across, block, x.shape[1], k, -(-k // panel_columns(0)), *x.shape[2:],
            *op.pads[:2], 4 * x.strides[0], 4 * x.strides[2], 4 * x.strides[3], p, q,
            len(operands), len(outs),
        ]  # fmt: skip
        for o in operands:
            size = o.dtype.itemsize
            fields += [o.n * size, o.p * size, o.q * size, o.col]
        params = np.array(fields, np.int64)
        params_at = params.ctypes.data
        kernel = precompile(winograd_kernel(m))
        blocks = -(-tiles // block)
        chunks = min(blocks, 4 * threads())

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            source, weights, *rest = inputs
            arrays = (source, weights, *outputs, *rest)
            addresses = np.array([address_of(a) for a in arrays], np.int64)
            at = addresses.ctypes.data

            def work(chunk: int) -> None:
                first, last = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
                kernel(function.address, params_at, at, first, last)

            parallel(work, chunks)

        call.__dict__["keep"] = (params, function)
        return call
