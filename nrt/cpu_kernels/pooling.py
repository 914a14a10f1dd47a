"""Max and average pooling, vectorized over channels where they lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels.pointwise import bind_strided, cast_program, refuse_types
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import BYTES, FP8E4M3, FP32
from nrt.ir.op import Array
from nrt.ir.ops import AveragePool, MaxPool
from nrt.ir.ops.quantize import byte_rounding
from nrt.ir.pointwise import identity
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["Pool"]

_GRAIN = 1 << 16
"""Loaded elements that are worth a thread."""


_STAGED = (*BYTES, FP8E4M3)
"""Types that are pooled as fp32, which holds them exactly; copies convert."""


class Pool(HostVariant):
    """One output pixel at a time, all its channels."""

    name = "cpu_pool"
    ops = (MaxPool, AveragePool)
    rank = 10

    def supports(self, problem: Problem) -> Refusal | None:
        op: Any = problem.op
        x = problem.inputs[0]
        if len(x.shape) != 4:
            return Refusal(f"rank {len(x.shape)}: only two spatial dimensions are fast")
        if isinstance(op, MaxPool) and x.dtype in _STAGED and problem.y.dtype is x.dtype:
            return None if problem.y.size else Refusal("an empty tensor")
        if x.dtype is not FP32:
            return Refusal(f"the input is {x.dtype}; only fp32 is fast here")
        if problem.y.dtype is not FP32:
            return Refusal(f"the output is {problem.y.dtype}; only fp32 is fast here")
        if problem.y.size == 0:
            return Refusal("an empty tensor")
        if op.epilogue is None:
            return None
        return refuse_types(op.epilogue, [FP32, FP32, *(t.dtype for t in problem.inputs[1:])])

    def workspace(self, problem: Problem, config: Config) -> int:
        del config
        x, y = _wide(problem.inputs[0]), _wide(problem.y)
        return 4 * (x.size + y.size) if problem.y.dtype in _STAGED else 0

    def bind(self, problem: Problem, config: Config) -> HostCall:
        if problem.y.dtype not in _STAGED:
            return self._bind(problem)
        from nrt.cpu_kernels.simd import address_of

        x, y = problem.inputs[0], problem.y
        wide_x, wide_y = _wide(x), _wide(y)
        run = self._bind(Problem(problem.op, (wide_x,), (wide_y,), (False,)))
        widen = bind_strided(cast_program(x.dtype, FP32), (wide_x, x))
        # A maximum is one of the numbers, and nothing rounds; but for that of nothing, -inf.
        whole = y.dtype in BYTES
        program = byte_rounding(identity("f"), y.dtype) if whole else cast_program(FP32, y.dtype)
        narrow = bind_strided(program, (y, wide_y))

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            source = workspace[: 4 * wide_x.size].view(np.float32)
            target = workspace[4 * wide_x.size :].view(np.float32)
            widen([address_of(source), address_of(inputs[0])])
            run([source], [target], workspace)
            narrow([address_of(outputs[0]), address_of(target)])

        return call

    def _bind(self, problem: Problem) -> HostCall:
        from nrt.cpu_kernels.jit import precompile
        from nrt.cpu_kernels.pool import parallel, ranges
        from nrt.cpu_kernels.pool_kernel import pool
        from nrt.cpu_kernels.simd import address_of

        op: Any = problem.op
        x, *extras = problem.inputs
        # In place: what was just stored is still in the cache, as a rule.
        end = bind_strided(op.epilogue, (problem.y, problem.y, *extras)) if op.epilogue else None
        n, c, p, q = problem.y.shape
        height, width = x.shape[2:]
        xn, xc, xh, xw = (4 * s for s in x.strides)
        yn, yc, yh, yw = (4 * s for s in problem.y.strides)
        params = np.array(
            [
                int(isinstance(op, MaxPool)), c, p, q, *op.kernel, *op.strides, *op.pads[:2],
                *op.dilations, height, width, xn, xh, xw, xc, yn, yh, yw, yc,
                int(getattr(op, "count_include_pad", False)),
                height + op.pads[2], width + op.pads[3],
            ],
            np.int64,
        )  # fmt: skip
        kernel = precompile(pool)
        params_at = params.ctypes.data
        lines = n * p
        chunks = max(1, min(lines, ranges(lines * q * c * op.kernel[0] * op.kernel[1], _GRAIN)))

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            source, target = address_of(inputs[0]), address_of(outputs[0])

            def work(chunk: int) -> None:
                first, last = lines * chunk // chunks, lines * (chunk + 1) // chunks
                kernel(params_at, source, target, first, last)

            parallel(work, chunks)
            if end is not None:
                end([target, target, *(address_of(a) for a in inputs[1:])])

        call.__dict__["keep"] = params
        return call


def _wide(t: TensorSpec) -> TensorSpec:
    """``t`` as dense channels-last fp32."""
    return TensorSpec.dense(t.shape, FP32, (0, 2, 3, 1))
