"""Problems for the kernels without tensor cores, and how their tests run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cuda_kernels.conv_common import weights_type
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import BYTES, FP32, DType
from nrt.ir.ops import Conv, ConvTranspose, MatMul
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec
from nrt.trial import random_inputs, relative_error

from .kernel_emulator import KernelEmulator

__all__ = ["BIAS_RELU", "NCHW", "NHWC", "RESIDUAL", "assert_emulated", "conv", "matmul", "refusal"]

NHWC, NCHW = (0, 2, 3, 1), (0, 1, 2, 3)

_b = Builder("ff")
BIAS_RELU: Program = _b.build(_b("max", _b("add", 0, 1), _b.const(0.0)))
_b = Builder("fff")
RESIDUAL: Program = _b.build(_b("max", _b("add", _b("add", 0, 1), 2), _b.const(0.0)))


def conv(
    x: tuple[int, int, int, int],
    w: tuple[int, int, int, int],
    dtype: DType = FP32,
    *,
    kind: type[Conv] | type[ConvTranspose] = Conv,
    end: str = "bias",
    x_order: tuple[int, ...] = NHWC,
    y_order: tuple[int, ...] = NHWC,
    pitch: int = 0,
    constant: bool = True,
    **attributes: Any,
) -> Problem:
    """A (transposed) convolution.

    Args:
        x: input shape.
        w: weight shape.
        dtype: of the operands; the weights beside uint8 are int8.
        kind: the op.
        end: ``none``, ``bias`` (third input), ``relu`` (epilogue with bias), ``residual`` (and an
            addend like the output).
        x_order, y_order: memory order.
        pitch: channels of the buffer that y is a slice of (channels-last only).
        constant: whether weights are known at build time.
        attributes: of the op.
    """
    epilogue = {"relu": BIAS_RELU, "residual": RESIDUAL}.get(end)
    op = kind(epilogue=epilogue, **attributes)
    specs = [TensorSpec.dense(x, dtype, x_order), TensorSpec.dense(w, weights_type(dtype))]
    (bare,) = kind(**attributes).infer(*(s.type for s in specs))
    k = bare.shape[1]
    y = TensorSpec.dense(bare.shape, bare.dtype, y_order)
    if pitch:
        y = TensorSpec(y.shape, y.dtype, tuple(s // k * pitch or 1 for s in y.strides))
    if end == "bias":
        specs.append(TensorSpec.dense((k,), dtype))
    elif end != "none":
        specs.append(TensorSpec.dense((k, 1, 1), FP32))
    if end == "residual":
        specs.append(TensorSpec(y.shape, _extra_type(dtype), y.strides))
    flags = (False, constant, True, False)[: len(specs)]
    return Problem(op, tuple(specs), (y,), flags)


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    dtype: DType = FP32,
    *,
    extras: Sequence[tuple[int, ...]] = (),
    strides: Sequence[tuple[int, ...] | None] = (None, None, None),
    constant: bool = False,
    **attributes: Any,
) -> Problem:
    """A matrix product with no, a ReLU (one extra) or a residual (two extras) epilogue.

    Args:
        a, b: operand shapes.
        dtype: of all, but fp32 for what an epilogue adds to sums of bytes, and int8 for b beside
            uint8.
        extras: shapes of the epilogue's operands.
        strides: of a, b and y where they are not row-major.
        constant: whether b is known at build time.
        attributes: of the op.
    """
    epilogue = (None, BIAS_RELU, RESIDUAL)[len(extras)]
    op = MatMul(epilogue=epilogue, **attributes)
    dense = [TensorSpec.dense(a, dtype), TensorSpec.dense(b, weights_type(dtype))]
    dense += [TensorSpec.dense(shape, _extra_type(dtype)) for shape in extras]
    (type_,) = op.infer(*(s.type for s in dense))
    specs = [*dense, TensorSpec.dense(type_.shape, type_.dtype)]
    for slot, steps in zip((0, 1, -1), strides, strict=True):
        if steps is not None:
            specs[slot] = TensorSpec(specs[slot].shape, specs[slot].dtype, steps)
    flags = tuple(constant and slot == 1 for slot in range(len(dense)))
    return Problem(op, tuple(specs[:-1]), (specs[-1],), flags)


def _extra_type(dtype: DType) -> DType:
    """Of an epilogue's operands beside operands of ``dtype``: bytes are no kind of float."""
    return FP32 if dtype in BYTES else dtype


def refusal(variant: Variant, problem: Problem, device: DeviceSpec = ARCHS["sm_80"]) -> str:
    """Why ``variant`` refuses ``problem``; empty when it does not."""
    found = variant.supports(problem, device)
    return "" if found is None else found.reason


def assert_emulated(
    variant: Variant, problem: Problem, limit: dict[str, float], config: Any = None
) -> None:
    """The kernels, run thread by thread on fresh data, give the float64 reference's result."""
    device = ARCHS["sm_80"]
    assert refusal(variant, problem, device) == ""
    rng = np.random.default_rng()
    inputs = random_inputs(problem, rng)
    exact = [
        a.astype(np.float64) if s.dtype.is_float else a
        for a, s in zip(inputs, problem.inputs, strict=True)
    ]
    expected = problem.op.reference(*exact)
    emulator = KernelEmulator(device, seed=int(rng.integers(1 << 30)))
    for choice in variant.configs(problem, device) if config is None else [config]:
        outputs = emulator.run(variant, problem, choice, inputs)
        for out, wanted, spec in zip(outputs, expected, problem.outputs, strict=True):
            error = relative_error(out, wanted)
            assert error <= limit.get(spec.dtype.name, 0.0), (
                f"{variant.name}{choice} on {problem}: {error}"
            )
