"""Convolution as an indirect matrix product on channels-last activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels.launch import (
    STAGED,
    Gather,
    Operand,
    Tiling,
    bind_product,
    epilogue_of,
    panel_columns,
    sums_type,
    tiling,
)
from nrt.cpu_kernels.layout import broadcast_strides
from nrt.cpu_kernels.pointwise import bind_strided, cast_program, refuse_types
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "ConvIndirect",
    "ConvStaged",
    "extra_operands",
    "pack_filters",
    "refuse_conv",
    "result_operands",
]


def refuse_conv(
    problem: Problem, dtypes: Sequence[DType] = (FP32,), *, prologue: bool = False
) -> Refusal | None:
    """What no fast convolution here does.

    ``dtypes`` are those of operands that the caller takes; ``prologue`` says whether it takes one.
    """
    x, w = problem.inputs[:2]
    if _prologue(problem) is not None and not prologue:
        return Refusal("the input has a prologue, only a copy of it can be multiplied")
    if len(x.shape) != 4:
        return Refusal(f"rank {len(x.shape)}: only two spatial dimensions are fast")
    if x.dtype not in dtypes:
        return Refusal(f"operands are {x.dtype}; products are computed on fp32")
    if not problem.constants[1]:
        return Refusal("weights are not constant, they cannot be packed")
    if 0 in problem.y.shape or 0 in w.shape:
        return Refusal("an empty tensor")
    extras = problem.inputs[epilogue_slot(problem.op) :]
    op: Any = problem.op
    sums = sums_type(x.dtype)
    stored = [t.dtype for t in problem.outputs]
    program = epilogue_of(op.epilogue, bool(extras), stored, sums)
    return refuse_types(program, [*stored, sums, *(t.dtype for t in extras)])


def _prologue(problem: Problem) -> Program | None:
    return problem.op.prologue if isinstance(problem.op, Conv) else None


def _refuse_prologue(problem: Problem) -> Refusal | None:
    program = _prologue(problem)
    if program is None:
        return None
    operands = problem.inputs[2 : epilogue_slot(problem.op)]
    return refuse_types(program, [FP32, problem.inputs[0].dtype, *(t.dtype for t in operands)])


def _staged_program(program: Program, dtype: DType) -> Program:
    """``program`` with its result rounded to ``dtype``, though it is staged as fp32."""
    if dtype is not FP16:
        return program
    b = Builder(program.inputs)
    (result,) = b.inline(program, range(len(program.inputs)))
    return b.build(b("fp16", result))


def is_depthwise(problem: Problem) -> bool:
    """Whether every group has one channel in and one out, and channels lie side by side."""
    op: Any = problem.op
    x, w = problem.inputs[:2]
    return op.groups == w.shape[0] > 1 and w.shape[1] == 1 and x.strides[1] == 1


_DEPTHWISE = Refusal("one channel per group: products of depth 1, use cpu_conv_depthwise")


def result_operands(problem: Problem) -> list[Operand]:
    """The outputs as operands over ``[N, K, P, Q]``."""
    operands = []
    for spec in problem.outputs:
        n, k, p, q = spec.strides
        operands.append(Operand(spec.dtype, n, p, q, k))
    return operands


def extra_operands(problem: Problem) -> list[Operand]:
    """The extras (or the plain bias) as operands over ``[N, K, P, Q]``."""
    op: Any = problem.op
    operands = []
    for spec in problem.inputs[epilogue_slot(op) :]:
        if op.epilogue is None:
            strides: tuple[int, ...] = (0, spec.strides[0], 0, 0)
        else:
            strides = broadcast_strides(spec, problem.y.shape)
        n, k, p, q = strides
        operands.append(Operand(spec.dtype, n, p, q, k))
    return operands


def pack_filters(w: Array, groups: int, columns: int) -> Array:
    """``w[K, C/g, R, S]`` as ``[g][panel][R][S][C/g][column]``, padded with zeros to whole
    panels.
    """
    k, c, r, s = w.shape
    each = k // groups
    panels = -(-each // columns)
    packed = np.zeros((groups, panels * columns, r, s, c), np.float32)
    packed[:, :each] = w.reshape(groups, each, c, r, s).transpose(0, 1, 3, 4, 2)
    packed = packed.reshape(groups, panels, columns, r, s, c).transpose(0, 1, 3, 4, 5, 2)
    return np.ascontiguousarray(packed)


class ConvIndirect(HostVariant):
    """Reads the input in place; needs its channels side by side."""

    name = "cpu_conv_indirect"
    ops = (Conv,)
    rank = 20

    def supports(self, problem: Problem) -> Refusal | None:
        refusal = refuse_conv(problem)
        if refusal is not None:
            return refusal
        x, w = problem.inputs[:2]
        if is_depthwise(problem):
            return _DEPTHWISE
        if x.strides[1] != 1 and w.shape[1] != 1:
            return Refusal(f"input channels lie {x.strides[1]} elements apart, not side by side")
        return None

    def configs(self, problem: Problem) -> Sequence[Config]:
        op: Any = problem.op
        n, k, p, q = problem.y.shape
        tiles = tiling(n * p * q, k // op.groups, op.groups)
        return [(t.shape, t.block_rows) for t in tiles]

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        op: Any = problem.op
        if slot != 1:
            return array
        return pack_filters(array, op.groups, panel_columns(config[0]))

    def bind(self, problem: Problem, config: Config) -> HostCall:
        from nrt.cpu_kernels.simd import address_of

        run = _bind(problem, config, problem.inputs[0], staged=False)

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            x, w, *extras = inputs
            run([address_of(a) for a in (x, w, *outputs, *extras)])

        return call


class ConvStaged(HostVariant):
    """Copies the input into a zero-padded channels-last buffer of fp32 first.

    Filter taps of a line then form one run, which pays where channels are few; and any layout of
    the input will do. A prologue is computed by the copy. Bytes sum exactly all the same, see
    `nrt.cpu_kernels.product`.
    """

    name = "cpu_conv_staged"
    ops = (Conv,)
    rank = 21

    def supports(self, problem: Problem) -> Refusal | None:
        refusal = refuse_conv(problem, STAGED, prologue=True) or _refuse_prologue(problem)
        if refusal is not None or _prologue(problem) is not None:
            return refusal
        x, w = problem.inputs[:2]
        if x.dtype is FP32 and is_depthwise(problem):
            return _DEPTHWISE
        if x.dtype is FP32 and x.strides[1] == 1 and w.shape[1] > 64:
            return Refusal(f"{w.shape[1]} channels side by side: a copy would not pay")
        return None

    configs = ConvIndirect.configs
    pack = ConvIndirect.pack

    def workspace(self, problem: Problem, config: Config) -> int:
        del config
        return _staging(problem).size * 4

    def bind(self, problem: Problem, config: Config) -> HostCall:
        from nrt.cpu_kernels.simd import address_of

        op: Any = problem.op
        x = problem.inputs[0]
        staging = _staging(problem)
        run = _bind(problem, config, staging, staged=True)
        n, c, h, w = x.shape
        inner = TensorSpec(x.shape, FP32, staging.strides)
        first = epilogue_slot(op)
        plain = cast_program(x.dtype, FP32)
        program = _staged_program(op.prologue or plain, x.dtype)
        copy = bind_strided(program, (inner, x, *problem.inputs[2:first]))
        top, left = op.pads[:2]
        shift = 4 * (top * staging.strides[2] + left * staging.strides[3])
        height, width = staging.shape[2:]

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            source, weights = inputs[:2]
            image = workspace[: staging.size * 4].view(np.float32).reshape(n, height, width, c)
            image[:, :top] = 0
            image[:, top + h :] = 0
            image[:, top : top + h, :left] = 0
            image[:, top : top + h, left + w :] = 0
            at = address_of(workspace)
            copy([at + shift, address_of(source), *(address_of(a) for a in inputs[2:first])])
            run([at, *(address_of(a) for a in (weights, *outputs, *inputs[first:]))])

        return call


def _staging(problem: Problem) -> TensorSpec:
    """The padded channels-last input."""
    op: Any = problem.op
    n, c, h, w = problem.inputs[0].shape
    top, left, bottom, right = op.pads
    return TensorSpec.dense((n, c, h + top + bottom, w + left + right), FP32, (0, 2, 3, 1))


def _bind(problem: Problem, config: Config, x: TensorSpec, *, staged: bool) -> Any:
    op: Any = problem.op
    k, c, r, s = problem.inputs[1].shape
    n, _, p, q = problem.y.shape
    groups = op.groups
    xn, xc, xh, xw = (4 * v for v in x.strides)
    taps_w, run_length = s, c
    pads = (0, 0) if staged else op.pads[:2]
    width = x.shape[3]
    no_pad_w = staged or not (op.pads[1] or op.pads[3])
    if no_pad_w and op.dilations[1] == 1 and groups == 1 and xw == 4 * c and xc == 4:
        # The taps of a line lie side by side: one run.
        taps_w, run_length = 1, s * c
    gather = Gather(
        n, p, q, r, taps_w, run_length, x.shape[2], width, xn, xh, xw,
        tuple(op.strides), tuple(pads), tuple(op.dilations),
    )  # fmt: skip
    outs, extras = result_operands(problem), extra_operands(problem)
    tile = Tiling(*config)
    each = k // groups
    columns = panel_columns(tile.shape)
    weights = -(-each // columns) * columns * r * s * c * 4
    shifts = [
        [g * c * xc, g * weights, *(g * each * o.col * o.dtype.itemsize for o in (*outs, *extras))]
        for g in range(groups)
    ]
    sums = sums_type(problem.inputs[0].dtype)
    program = epilogue_of(op.epilogue, bool(extras), [o.dtype for o in outs], sums)
    return bind_product(gather, each, tile, program, outs, extras, shifts, sums)
