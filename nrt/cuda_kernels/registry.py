"""Every GPU variant by family: the built-in ones, then those that users registered."""

from __future__ import annotations

from nrt.cuda_kernels import (
    conv_depthwise,
    conv_depthwise_int8,
    conv_direct,
    conv_dp4a,
    conv_joined,
    conv_mma,
    conv_simt,
    conv_stem,
    conv_transpose,
    conv_wgmma,
    copy,
    gather,
    gemm_batched,
    gemm_mma,
    gemm_wgmma,
    gemv,
    histogram,
    lrn,
    matmul_simt,
    norm,
    pad,
    pointwise,
    pool,
    pooled_conv,
    pooled_matmul,
    reduce,
    resize,
    softmax,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import BF16
from nrt.extensions.registry import registry
from nrt.ir.ops import Gather, GatherElements, Pad, Reformat, Slice
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "variants_for"]

VARIANTS: tuple[Variant, ...] = (
    *conv_wgmma.VARIANTS,
    *conv_joined.VARIANTS,
    *conv_mma.VARIANTS,
    *conv_stem.VARIANTS,
    *conv_depthwise.VARIANTS,
    *conv_depthwise_int8.VARIANTS,
    *conv_simt.VARIANTS,
    *conv_dp4a.VARIANTS,
    *conv_direct.VARIANTS,
    *conv_transpose.VARIANTS,
    *gemv.VARIANTS,
    *gemm_wgmma.VARIANTS,
    *gemm_mma.VARIANTS,
    *gemm_batched.VARIANTS,
    *matmul_simt.VARIANTS,
    *copy.VARIANTS,
    *pointwise.VARIANTS,
    *pool.VARIANTS,
    *pooled_conv.VARIANTS,
    *pooled_matmul.VARIANTS,
    *reduce.VARIANTS,
    *softmax.VARIANTS,
    *norm.VARIANTS,
    *lrn.VARIANTS,
    *resize.VARIANTS,
    *gather.VARIANTS,
    *pad.VARIANTS,
    *histogram.VARIANTS,
)


def variants_for(problem: Problem, device: DeviceSpec) -> list[tuple[Variant, Refusal | None]]:
    """The variants of the problem's family, each with None or the reason why it does not fit."""
    missing = _missing_conversion(problem, device)
    built_in = [
        (v, missing or v.supports(problem, device)) for v in VARIANTS if type(problem.op) in v.ops
    ]
    users: tuple[Variant, ...] = registry.cuda_variants.values
    return built_in + [(v, v.supports(problem, device)) for v in users if problem.is_of(v.ops)]


def _missing_conversion(problem: Problem, device: DeviceSpec) -> Refusal | None:
    """Whatever computes and stores bf16 rounds with ``cvt.rn.bf16.f32``, which sm_80 brought."""
    if device.cc >= (8, 0) or all(t.dtype is not BF16 for t in problem.outputs):
        return None
    moves = isinstance(problem.op, Reformat | Slice | Gather | GatherElements | Pad)
    if moves and problem.inputs[0].dtype is BF16:
        return None
    return Refusal(f"{device.arch} has no bf16 conversion, expected sm_80 or later")
