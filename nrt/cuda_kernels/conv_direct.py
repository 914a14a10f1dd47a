"""Direct convolution: one thread per output element, any strides, groups and dilation.

The family's reference. It reads every operand through the read-only path, reuses nothing but the
caches, and sums channel by channel within a filter tap, then over taps: two short sums round less
than one long one. Sums of bytes are int32 and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import loader, pointer
from nrt.cuda_kernels.conv_common import (
    EVERY_OPERAND,
    INDEX_LIMIT,
    ConvShape,
    acc_type,
    ceil_div,
    conv_epilogue,
    extra_args,
    extra_types,
    operand_strides,
    refuse_conv,
    result_type,
    weights_type,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra, make_store
from nrt.cuda_kernels.prologue import Prologue, conv_prologue, make_prologue
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import divide
from nrt.dtypes import DType
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvDirect"]

u32 = types.uint32

THREADS = 256


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    channels_last: bool,
    prologue: Prologue | None = None,
) -> tuple[Any, Any]:
    """Thread t computes element t of y, counted with channels innermost, or else columns.

    Sizes and strides are run-time scalars: one binary serves every layer with this epilogue. A
    padded position is found by one unsigned comparison, since a negative row wraps to a huge one.
    """
    acc = acc_type(dtype)
    final = result_type(dtype, out_dtype, program)
    load, load_w = loader(dtype), loader(weights_type(dtype))
    split = divide()
    store = make_store(program, extras, out_dtype, 1)
    starts = prologue is not None
    before: Any = None
    if prologue is not None:
        before = make_prologue(prologue, dtype, len(extras))
        extras = (*extras, *prologue.operands)

    def kernel(
        x, w, y, e0, e1, e2, e3, e4, e5,
        total, K, P, Q, kg, cg, H, W, R, S, sh, sw, pt, pl, dh, dw,
        xn, xc, xh, xw, wk, wc, wr, ws, yn, yk, yh, yw,
    ):  # fmt: skip
        t = u32(cuda.blockIdx.x * u32(THREADS) + cuda.threadIdx.x)
        if t >= total:
            return
        if channels_last:
            m, k = split(t, K)
            row, q = split(m, Q)
            n, p = split(row, P)
        else:
            row, q = split(t, Q)
            plane, p = split(row, P)
            n, k = split(plane, K)
            m = u32(u32(n * P + p) * Q + q)
        image = u32(n * xn + u32(u32(k // kg) * cg) * xc)
        filt = u32(k * wk)
        top = u32(p * sh - pt)
        left = u32(q * sw - pl)
        result = acc(0)
        for r in range(R):
            h = u32(top + u32(r) * dh)
            if h < H:
                for s in range(S):
                    v = u32(left + u32(s) * dw)
                    if v < W:
                        xi = u32(image + h * xh + v * xw)
                        wi = u32(filt + u32(r) * wr + u32(s) * ws)
                        part = acc(0)
                        for c in range(cg):
                            image_value = load(x, u32(xi + u32(c) * xc))
                            if starts:
                                channel = u32(u32(u32(k // kg) * cg) + u32(c))
                                image_value = before(image_value, channel, e0, e1, e2, e3, e4, e5)
                            part = acc(part + acc(image_value * load_w(w, u32(wi + u32(c) * wc))))
                        result = acc(result + part)
        o = u32(n * yn + k * yk + p * yh + q * yw)
        store(final(result), m, k, o, y, e0, e1, e2, e3, e4, e5)

    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * 28,
    )  # fmt: skip
    return kernel, signature


class ConvDirect(Variant):
    """One thread per output element."""

    name = "conv_direct"
    ops = (Conv,)
    rank = 0
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_conv(problem, device, Conv, EVERY_OPERAND, prologue=True)
        if refusal is None and problem.y.size >= INDEX_LIMIT - THREADS:
            return Refusal(f"the output has {problem.y.size} elements, threads count to 2^32")
        return refusal

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return [()]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        shape = ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        prologue = conv_prologue(problem)
        channels_last = shape.y_strides[1] <= shape.y_strides[3]
        spec = KernelSpec(
            "nrt.cuda_kernels.conv_direct:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, channels_last,
                *([] if prologue is None else [prologue]),
            ),
            THREADS,
        )  # fmt: skip
        numbers = (
            problem.y.size, shape.k, shape.p, shape.q, shape.kg, shape.cg, shape.h, shape.w,
            shape.r, shape.s, *shape.stride, *shape.pad, *shape.dilation,
            *shape.x_strides, *operand_strides(problem, 1), *shape.y_strides,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(problem.y.size, THREADS), 1, 1),
            (THREADS, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        # Two loads per multiply-add: about a thirtieth of the arithmetic peak.
        shape = ConvShape.of(problem)
        return max(problem.nbytes / device.bandwidth, 30 * shape.flops / device.fp32_flops) + 2e-6


VARIANTS: tuple[Variant, ...] = (ConvDirect(),)
