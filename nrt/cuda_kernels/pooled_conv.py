"""Convolutions whose images are pooled to one pixel: on tensor cores, or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nrt.cuda_kernels import mma_tile
from nrt.cuda_kernels.conv_common import (
    ConvShape,
    conv_epilogue,
    extra_args,
    refuse_conv,
    store_width,
)
from nrt.cuda_kernels.conv_direct import ConvDirect
from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.mma_layout import Tile
from nrt.cuda_kernels.mma_pack import block_diagonal, packed
from nrt.cuda_kernels.mma_tile import Gemm
from nrt.cuda_kernels.reduce import ReduceStrided
from nrt.cuda_kernels.variant import Arg, Config, Emission, In, Launch, Out, Variant, Work
from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.op import Array
from nrt.ir.ops import PooledConv, Reduce
from nrt.ir.value import NHWC
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["VARIANTS", "PooledConvApart", "PooledConvMma"]

_OUTPUTS = (FP16, BF16, FP32)


def _op(problem: Problem) -> PooledConv:
    assert isinstance(problem.op, PooledConv)
    return problem.op


def _whole(problem: Problem) -> Problem:
    """The convolution alone, its result channels last."""
    conv = _op(problem).conv(problem.inputs[0].dtype)
    (type_,) = conv.infer(*(t.type for t in problem.inputs))
    order = NHWC if len(type_.shape) == 4 else None
    y = TensorSpec.dense(type_.shape, type_.dtype, order)
    return Problem(conv, problem.inputs, (y,), problem.constants)


def _pooling(problem: Problem, whole: Problem) -> Problem:
    """The pooling of what the convolution stored."""
    op = Reduce(_op(problem).kind, (2, 3), False, out_dtype=problem.y.dtype)
    return Problem(op, whole.outputs, problem.outputs, (False,))


class PooledConvApart(Variant):
    """The reference kernels of both, with the whole result between them in the workspace."""

    name = "pooled_conv_apart"
    ops = (PooledConv,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        whole = _whole(problem)
        refusal = ConvDirect().supports(whole, device)
        return refusal or ReduceStrided().supports(_pooling(problem, whole), device)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return [()]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        whole = _whole(problem)
        first = ConvDirect().emit(whole, (), device)
        second = ReduceStrided().emit(_pooling(problem, whole), (), device)
        launches = (
            *(_through(launch, Out, 0) for launch in first.launches),
            *(_through(launch, In, 0) for launch in second.launches),
        )
        return Emission(launches, workspace=whole.y.nbytes)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        whole = _whole(problem)
        pooling = _pooling(problem, whole)
        return ConvDirect().estimate(whole, (), device) + ReduceStrided().estimate(
            pooling, (), device
        )


def _through(launch: Launch, kind: type[In] | type[Out], slot: int) -> Launch:
    """``launch`` with the workspace in the place of one of its tensors."""

    def moved(arg: Arg) -> Arg:
        return Work(arg.offset) if isinstance(arg, kind) and arg.slot == slot else arg

    return replace(launch, args=tuple(map(moved, launch.args)))


class PooledConvMma(Variant):
    """A tile of ``mma.sync`` holds the pixels of one image, which its epilogue adds up.

    The rest of a tile's rows repeat the last pixel: 15 of 64 for the 7x7 of a classifier. Nothing
    is stored but the pooled channels, and sums are added in one order.
    """

    name = "pooled_conv_mma"
    ops = (PooledConv,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        whole = _whole(problem)
        refusal = refuse_conv(whole, device, dtypes=(FP16, BF16, FP32))
        refusal = refusal or mma_tile.refuse_operands(whole, device)
        if refusal is not None:
            return refusal
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if problem.y.dtype not in _OUTPUTS:
            return Refusal(f"the output is {problem.y.dtype}, expected fp16, bf16 or fp32")
        shape = ConvShape.of(whole)
        piece = 16 // shape.dtype.itemsize
        if shape.load_width_of(shape.c, piece) != piece:
            return Refusal(
                f"input channels ({shape.c}) and strides {shape.x_strides} are not multiples of "
                f"{piece} with channels innermost"
            )
        if self._width(whole) == 1:
            return Refusal(
                f"{shape.k} output channels, or operands of the epilogue, are not in pairs"
            )
        if problem.y.strides[1] != 1:
            return Refusal("channels of the output are not innermost")
        if not self._gemm(problem, whole).tiles(device):
            return Refusal(f"no tile holds the {shape.p * shape.q} pixels of an image")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return mma_tile.ranked(self._gemm(problem, _whole(problem)), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        gemm = self._gemm(problem, _whole(problem))
        return mma_tile.estimate(gemm, Tile(*config), problem, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        whole = _whole(problem)
        return mma_tile.emission(
            self._gemm(problem, whole), Tile(*config), conv_epilogue(whole), self._width(whole),
            (In(0), In(1)), Out(), extra_args(whole), device,
        )  # fmt: skip

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        return packed(block_diagonal(array, 1, 1), Tile(*config)) if slot == 1 else array

    @staticmethod
    def _width(whole: Problem) -> int:
        """Channels that one call of the epilogue takes."""
        return store_width(conv_epilogue(whole), whole.y, 1, 8)

    @staticmethod
    def _gemm(problem: Problem, whole: Problem) -> Gemm:
        return replace(
            ConvMma._gemm(whole),
            out_dtype=problem.y.dtype,
            y_row=problem.y.strides[0],
            pooled=_op(problem).kind,
        )


VARIANTS: tuple[Variant, ...] = (PooledConvApart(), PooledConvMma())
