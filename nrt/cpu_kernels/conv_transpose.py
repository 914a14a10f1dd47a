"""Transposed convolution as one convolution per output phase.

Outputs whose position has the same remainder by the stride see the same filter taps, at input
positions that go down by whole steps: a stride-1 convolution with part of the filter (Shi et al.,
arXiv:1609.07009). Nothing is scattered, so the epilogue is fused and no column matrix is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.cpu_kernels.conv import extra_operands, pack_filters, result_operands
from nrt.cpu_kernels.launch import (
    Gather,
    Operand,
    Tiling,
    bind_product,
    epilogue_of,
    panel_columns,
    tiling,
)
from nrt.cpu_kernels.pointwise import bind_strided, refuse_types
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import FP16, FP32
from nrt.ir.op import Array
from nrt.ir.ops import ConvTranspose
from nrt.ir.pointwise import identity
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["ConvTransposePhases"]


@dataclass(frozen=True)
class _Phase:
    """Outputs ``first, first + stride, ...`` of one dimension.

    Attributes:
        first: first output position.
        count: number of positions.
        taps: filter positions that reach them.
        start: input position of the first tap at the first output.
        step: input positions from one tap to the next, negative or 0.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    start: int
    step: int


def _phases(size: int, kernel: int, stride: int, pad: int, dilation: int) -> list[_Phase]:
    phases = []
    for first in range(min(stride, size)):
        taps = tuple(r for r in range(kernel) if (first + pad - r * dilation) % stride == 0)
        start = (first + pad - taps[0] * dilation) // stride if taps else 0
        step = -dilation // math.gcd(stride, dilation)
        phases.append(_Phase(first, -(-(size - first) // stride), taps, start, step))
    return phases


class ConvTransposePhases(HostVariant):
    """One indirect product per phase; the input is copied to channels-last first where needed."""

    name = "cpu_conv_transpose"
    ops = (ConvTranspose,)
    rank = 20

    def supports(self, problem: Problem) -> Refusal | None:
        op: Any = problem.op
        x = problem.inputs[0]
        if len(x.shape) != 4:
            return Refusal(f"rank {len(x.shape)}: only two spatial dimensions are fast")
        if x.dtype not in (FP32, FP16):
            return Refusal(f"operands are {x.dtype}; products are computed on fp32")
        if not problem.constants[1]:
            return Refusal("weights are not constant, they cannot be packed")
        if 0 in problem.y.shape or 0 in x.shape:
            return Refusal("an empty tensor")
        extras = problem.inputs[2:]
        stored = [t.dtype for t in problem.outputs]
        program = epilogue_of(op.epilogue, bool(extras), stored)
        return refuse_types(program, [*stored, FP32, *(t.dtype for t in extras)])

    def configs(self, problem: Problem) -> Sequence[Config]:
        op: Any = problem.op
        n, k, p, q = problem.y.shape
        rows = max(1, n * p * q // math.prod(op.strides))
        return [(t.shape, t.block_rows) for t in tiling(rows, k // op.groups, op.groups)]

    def _grid(self, problem: Problem) -> list[tuple[_Phase, _Phase]]:
        op: Any = problem.op
        sizes, kernel = problem.y.shape[2:], problem.inputs[1].shape[2:]
        down, across = (
            _phases(sizes[d], kernel[d], op.strides[d], op.pads[d], op.dilations[d])
            for d in range(2)
        )
        return [(a, b) for a in down for b in across]

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights of all phases, one after the other, as `pack_filters` lays them."""
        if slot != 1:
            return array
        op: Any = problem.op
        g = op.groups
        c, k, r, s = array.shape
        filters = array.reshape(g, c // g, k, r, s).swapaxes(1, 2).reshape(g * k, c // g, r, s)
        parts = [
            pack_filters(
                filters[:, :, list(a.taps)][..., list(b.taps)], g, panel_columns(config[0])
            ).ravel()
            for a, b in self._grid(problem)
        ]
        return np.concatenate(parts)

    def workspace(self, problem: Problem, config: Config) -> int:
        del config
        x = problem.inputs[0]
        in_place = x.dtype is FP32 and x.strides[1] == 1
        return 0 if in_place else x.size * 4

    def bind(self, problem: Problem, config: Config) -> HostCall:
        from nrt.cpu_kernels.simd import address_of

        x = problem.inputs[0]
        stage = None
        if self.workspace(problem, config):
            dense = TensorSpec.dense(x.shape, FP32, (0, 2, 3, 1))
            stage = bind_strided(identity("f"), (dense, x))
            x = dense
        runs = []
        at = 0
        for a, b in self._grid(problem):
            run, size = self._bind_phase(problem, Tiling(*config), x, a, b)
            runs.append((run, at))
            at += size

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            source, weights, *extras = inputs
            x_at, w_at = address_of(source), address_of(weights)
            if stage is not None:
                stage([address_of(workspace), x_at])
                x_at = address_of(workspace)
            rest = [address_of(t) for t in (*outputs, *extras)]
            for run, offset in runs:
                run([x_at, w_at + offset, *rest])

        return call

    def _bind_phase(
        self, problem: Problem, tile: Tiling, x: TensorSpec, a: _Phase, b: _Phase
    ) -> tuple[Any, int]:
        op: Any = problem.op
        g = op.groups
        each, c = problem.inputs[1].shape[1], x.shape[1] // g
        xn, xc, xh, xw = (4 * v for v in x.strides)
        outs, extras = result_operands(problem), extra_operands(problem)
        full = [*outs, *extras]
        phase = [
            Operand(o.dtype, o.n, o.p * op.strides[0], o.q * op.strides[1], o.col) for o in full
        ]
        taps = len(a.taps) * len(b.taps)
        gather = Gather(
            x.shape[0], a.count, b.count, len(a.taps) if taps else 0, len(b.taps), c,
            x.shape[2], x.shape[3], xn, xh, xw, (1, 1), (-a.start, -b.start), (a.step, b.step),
        )  # fmt: skip
        columns = panel_columns(tile.shape)
        weights = -(-each // columns) * columns * taps * c * 4
        shifts = [
            [
                i * c * xc,
                i * weights,
                *(
                    (a.first * o.p + b.first * o.q + i * each * o.col) * o.dtype.itemsize
                    for o in full
                ),
            ]
            for i in range(g)
        ]
        program = epilogue_of(op.epilogue, bool(extras), [o.dtype for o in outs])
        results = len(outs)
        run = bind_product(gather, each, tile, program, phase[:results], phase[results:], shifts)
        return run, g * weights
