"""What the convolution kernels share: sizes and strides, the epilogue, common refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, epilogue_extras
from nrt.cuda_kernels.variant import Arg, In, Null, Out
from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8, DType
from nrt.ir.ops import Conv, ConvTranspose
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, Refusal, TensorSpec, dense_strides

__all__ = [
    "EVERY_OPERAND",
    "FLOATS",
    "ConvShape",
    "Epilogue",
    "acc_type",
    "ceil_div",
    "check_floats",
    "conv_epilogue",
    "dot4",
    "extra_args",
    "extra_types",
    "operand_strides",
    "prologue_args",
    "refuse_conv",
    "refuse_epilogue",
    "result_type",
    "rounded",
    "store_width",
    "waves",
    "weights_type",
]

FLOATS: tuple[DType, ...] = (FP32, FP16, BF16, FP64)
"""Operands whose products are summed in their own precision or float32."""

EVERY_OPERAND: tuple[DType, ...] = (*FLOATS, *BYTES, FP8E4M3)
"""Operands that the reference kernels multiply; weights are of `weights_type`."""

INDEX_LIMIT = 2**32
"""Elements that a kernel's unsigned 32-bit offsets reach."""

_BIAS = Builder("ff")
BIAS_PROGRAM = _BIAS.build(_BIAS("add", 0, 1))
"""Accumulator plus the one operand: what a bias input means without an epilogue."""


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def rounded(a: int, b: int) -> int:
    """``a`` rounded up to a multiple of ``b``."""
    return ceil_div(a, b) * b


def waves(blocks: int, per_sm: int, device: DeviceSpec) -> float:
    """How often the GPU must be filled to run ``blocks``, ``per_sm`` of them at a time on an SM.

    At least 1: a launch that leaves SMs idle takes as long as one that fills them.
    """
    return max(1.0, math.ceil(blocks / (device.multiprocessors * per_sm)))


def acc_type(dtype: DType) -> Any:
    """Numba type of the accumulator for operands of ``dtype``."""
    if dtype in BYTES:
        return types.int32
    return types.float64 if dtype == FP64 else types.float32


def weights_type(dtype: DType) -> DType:
    """Element type of what x of ``dtype`` is multiplied by: int8 beside uint8."""
    return INT8 if dtype == UINT8 else dtype


def dot4(dtype: DType) -> Any:
    """The ``dp4a`` of words of x, four bytes of ``dtype``, and of int8 weights."""
    return ptx.dp4a_u8 if dtype == UINT8 else ptx.dp4a


def result_type(dtype: DType, out_dtype: DType, program: Program | None) -> Any:
    """Numba type that accumulators have when they reach `epilogue.make_store`.

    Sums of bytes stay int32 on their way to an int32 output and are float32 for all else.
    """
    if dtype in BYTES and (program is not None or out_dtype != INT32):
        return types.float32
    return acc_type(dtype)


@dataclass(frozen=True)
class Epilogue:
    """The end of a kernel, as `epilogue.make_store` takes it.

    Attributes:
        program: what is computed.
        extras: its operands, and the place of a second result.
    """

    program: Program | None
    extras: tuple[Extra, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations per output element."""
        return 0 if self.program is None else self.program.flops


def conv_epilogue(problem: Problem) -> Epilogue:
    """The epilogue of a `Conv` or `ConvTranspose`; a plain bias ``[K]`` becomes a program."""
    op = problem.op
    assert isinstance(op, Conv | ConvTranspose)
    specs = list(problem.inputs[epilogue_slot(op) :])
    if op.epilogue is not None:
        extras = epilogue_extras(specs, problem.y, 1, problem.outputs[1:])
        return Epilogue(op.epilogue, extras)
    if not specs:
        return Epilogue(None, ())
    (bias,) = specs
    rank = len(problem.y.shape) - 2
    column = TensorSpec((*bias.shape, *[1] * rank), bias.dtype, (*bias.strides, *[0] * rank))
    return Epilogue(BIAS_PROGRAM, epilogue_extras([column], problem.y, 1))


def extra_args(problem: Problem) -> tuple[Arg, ...]:
    """The launch arguments of the operands of programs; unused ones are null.

    Those of the epilogue come first, as they do in the parameters of `epilogue.make_store`, the
    place of its second result behind them.
    """
    first = epilogue_slot(problem.op)
    used: list[Arg] = [
        *(In(slot) for slot in range(first, len(problem.inputs))),
        *(Out(slot) for slot in range(1, len(problem.outputs))),
        *(In(slot) for slot in range(2, first)),
    ]
    return (*used, *[Null()] * (MAX_EXTRAS - len(used)))


def prologue_args(problem: Problem) -> tuple[Arg, ...]:
    """`extra_args` of a launch that leaves the epilogue to another one."""
    used: list[Arg] = [In(slot) for slot in range(2, epilogue_slot(problem.op))]
    return (*used, *[Null()] * (MAX_EXTRAS - len(used)))


def extra_types(extras: Sequence[Extra]) -> tuple[Any, ...]:
    """The Numba types of all operands."""
    used = [pointer(e.dtype) for e in extras]
    return (*used, *[pointer(FP32)] * (MAX_EXTRAS - len(used)))


def store_width(epilogue: Epilogue, y: TensorSpec, channel: int, want: int, step: int = 0) -> int:
    """The most neighbouring channels, at most ``want``, that one call of the epilogue may store.

    Widths above 1 need channels that are adjacent in ``y`` and rows that start at multiples of the
    width. Base addresses are aligned to 16 bytes, as everywhere in nrt.

    Args:
        epilogue: what runs before the store.
        y: the output.
        channel: its channel dimension.
        want: a power of two.
        step: also a multiple of the width: where groups of channels start.
    """
    if y.strides[channel] != 1 or y.dtype.itemsize > 4:
        return 1
    # Operands laid out as y share its strides; one whose channels lie apart needs scalar loads.
    if any(e.mode == "channel" and e.stride > 1 for e in epilogue.extras):
        return 1
    others = [s for d, s in enumerate(y.strides) if d != channel and y.shape[d] > 1]
    width = want
    while width > 1 and any(v % width for v in (y.shape[channel], step, *others)):
        width //= 2
    return width


def check_floats(problem: Problem, device: DeviceSpec, dtypes: Sequence[DType]) -> Refusal | None:
    """None, or why the operands' or the output's element types cannot be handled on ``device``.

    `epilogue.make_store` stores every output type and reads every operand's.
    """
    x = problem.inputs[0]
    if x.dtype not in dtypes:
        return Refusal(f"operands are {x.dtype}, expected {' or '.join(d.name for d in dtypes)}")
    if device.cc < (8, 0) and any(t.dtype == BF16 for t in (*problem.inputs, *problem.outputs)):
        return Refusal(f"{device.arch} has no bf16 conversion, expected sm_80 or later")
    return None


def refuse_epilogue(problem: Problem) -> Refusal | None:
    """None, or why no kernel can run the problem's programs or index its tensors."""
    seconds = len(problem.outputs) - 1
    count = len(problem.inputs) - 2
    if count + seconds > MAX_EXTRAS:
        programs = "epilogue reads" if epilogue_slot(problem.op) == 2 else "programs read"
        beside = " and there is a second result" if seconds else ""
        return Refusal(f"the {programs} {count} operands{beside}, kernels have {MAX_EXTRAS}")
    if problem.y.size == 0:
        return Refusal("the output is empty")
    for spec in (*problem.inputs, *problem.outputs):
        if spec.span >= INDEX_LIMIT:
            return Refusal(f"{spec} spans {spec.span} elements, offsets have 32 bits")
    return None


def refuse_conv(
    problem: Problem,
    device: DeviceSpec,
    op: type[Conv] | type[ConvTranspose] = Conv,
    dtypes: Sequence[DType] = FLOATS,
    prologue: bool = False,
) -> Refusal | None:
    """None, or why no convolution kernel solves ``problem``; every variant asks this first.

    ``prologue`` says that the variant can compute one.
    """
    if type(problem.op) is not op:
        return Refusal(f"op is {problem.family}, expected {op.__name__}")
    if isinstance(problem.op, Conv) and problem.op.prologue is not None and not prologue:
        return Refusal("the input has a prologue, this kernel multiplies it as it is")
    rank = len(problem.inputs[0].shape) - 2
    if rank != 2:
        return Refusal(f"the input has {rank} spatial dimensions, expected 2")
    return check_floats(problem, device, dtypes) or refuse_epilogue(problem)


def operand_strides(problem: Problem, slot: int) -> tuple[int, ...]:
    """Strides of an input that is read as it comes; constants are kept row-major."""
    spec = problem.inputs[slot]
    return dense_strides(spec.shape) if problem.constants[slot] else spec.strides


@dataclass(frozen=True)
class ConvShape:
    """The sizes of a two-dimensional convolution, in the field's letters.

    For `ConvTranspose`, ``c`` counts the channels of x and ``k`` those of y all the same.

    Attributes:
        n: batch. c: input channels. h, w: input height and width.
        k: output channels. r, s: filter height and width. p, q: output height and width.
        stride, pad, dilation: (vertical, horizontal); ``pad`` is that of the top and left.
        pad_end: zeros below and right.
        groups: independent convolutions.
        dtype: of x; the weights are of `weights_type`.
        out_dtype: of y.
        x_strides, y_strides: elements per step in n, channel, row, column.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride: tuple[int, int]
    pad: tuple[int, int]
    pad_end: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    dtype: DType
    out_dtype: DType
    x_strides: tuple[int, int, int, int]
    y_strides: tuple[int, int, int, int]

    @classmethod
    def of(cls, problem: Problem) -> ConvShape:
        """Read the sizes off a problem that `refuse_conv` accepts."""
        op = problem.op
        assert isinstance(op, Conv | ConvTranspose)
        x, weights, y = problem.inputs[0], problem.inputs[1], problem.y
        n, c, h, w = x.shape
        _, k, p, q = y.shape
        r, s = weights.shape[2:]
        top, left, bottom, right = op.pads
        return cls(
            n, c, h, w, k, r, s, p, q,
            _pair(op.strides), (top, left), (bottom, right), _pair(op.dilations), op.groups,
            x.dtype, y.dtype, _four(x.strides), _four(y.strides),
        )  # fmt: skip

    @cached_property
    def m(self) -> int:
        """Rows of the implicit matrix product: output pixels of the batch."""
        return self.n * self.p * self.q

    @cached_property
    def cg(self) -> int:
        """Input channels of a group."""
        return self.c // self.groups

    @cached_property
    def kg(self) -> int:
        """Output channels of a group."""
        return self.k // self.groups

    @cached_property
    def crs(self) -> int:
        """Length of a dot product of a `Conv`."""
        return self.cg * self.r * self.s

    @property
    def flops(self) -> float:
        """Floating-point operations of a `Conv`, two per multiply-add."""
        return 2.0 * self.m * self.k * self.crs

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 filter at stride 1 without padding: a plain matrix product."""
        return (self.r, self.s) == (1, 1) == self.stride and (*self.pad, *self.pad_end) == (
            0,
            0,
            0,
            0,
        )

    @property
    def x_channels_last(self) -> bool:
        """Channels of x are adjacent (its other strides may be anything)."""
        return self.x_strides[1] == 1 or self.c == 1

    @property
    def y_channels_last(self) -> bool:
        """Channels of y are adjacent."""
        return self.y_strides[1] == 1 or self.k == 1

    def load_width(self, want: int) -> int:
        """How many adjacent input channels of a group, at most ``want``, one load may take.

        Every pixel must start at a multiple of the width, and so must every group.
        """
        return self.load_width_of(self.cg, want)

    def load_width_of(self, channels: int, want: int) -> int:
        """The same for runs of ``channels`` input channels."""
        if self.x_strides[1] != 1:
            return 1
        sizes = (self.n, self.h, self.w)
        steps = [s for d, s in zip(sizes, _without_channel(self.x_strides), strict=True) if d > 1]
        width = want
        while width > 1 and any(v % width for v in (channels, *steps)):
            width //= 2
        return width


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _four(values: tuple[int, ...]) -> tuple[int, int, int, int]:
    n, c, h, w = values
    return n, c, h, w


def _without_channel(strides: tuple[int, int, int, int]) -> tuple[int, int, int]:
    n, _, h, w = strides
    return n, h, w
