"""Products of bytes with an epilogue that requantizes: scale, bias, residual, ReLU, saturation.

Scales are powers of two and biases multiples of a small one, so that float32 holds every step of
the epilogue exactly: kernels have to give the reference's very integers, half-way cases included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import BYTES, FP32, INT8, UINT8, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec

__all__ = [
    "assert_exact",
    "exact_inputs",
    "random_bytes",
    "requantized_conv",
    "requantized_product",
]

STEP = 0.5
"""Of the residual."""


def _program(residual: DType | None) -> Program:
    """``max(acc * scale + bias + residual * STEP, -90)``."""
    integer = residual is not None and not residual.is_float
    b = Builder(["f", "f", "f", *(["i" if integer else "f"] if residual else [])])
    value = b("add", b("mul", 0, 1), 2)
    if residual is not None:
        value = b("add", value, b("mul", b("to_f", 3) if integer else 3, b.const(STEP)))
    return b.build(b("max", value, b.const(-90.0)))


def _widened(spec: TensorSpec, beside: int, channels_last: bool) -> TensorSpec:
    """``spec`` as a piece of a tensor with ``beside`` more channels."""
    axis = 1 if channels_last else len(spec.shape) - 1
    shape = list(spec.shape)
    shape[axis] += beside
    wide = TensorSpec.dense(tuple(shape), spec.dtype, NHWC if channels_last else None)
    return replace(spec, strides=wide.strides)


def requantized_conv(
    x: tuple[int, int, int, int],
    w: tuple[int, int, int, int],
    *,
    dtype: DType = INT8,
    out: DType = INT8,
    residual: DType | None = None,
    beside: int = 0,
    leading: int = 0,
    **attributes: Any,
) -> Problem:
    """A convolution of bytes, channels-last.

    Args:
        x, w: shapes.
        dtype: of x; the weights are int8.
        out: type of the output.
        residual: type of the residual, if there is one.
        beside: channels beside the residual's in its tensor.
        leading: and beside the output's.
        attributes: of the op.
    """
    op = Conv(epilogue=_program(residual), out_dtype=out, **attributes)
    specs = [TensorSpec.dense(x, dtype, NHWC), TensorSpec.dense(w, INT8)]
    (plain,) = Conv(**attributes).infer(*(s.type for s in specs))
    y = TensorSpec.dense(plain.shape, out, NHWC)
    specs += [TensorSpec.dense((w[0], 1, 1), FP32)] * 2
    if residual is not None:
        specs.append(_widened(TensorSpec.dense(y.shape, residual, NHWC), beside, True))
    flags = (False, True, True, True, False)[: len(specs)]
    return Problem(op, tuple(specs), (_widened(y, leading, True),), flags)


def requantized_product(
    m: int,
    k: int,
    n: int,
    *,
    dtype: DType = INT8,
    out: DType = INT8,
    residual: DType | None = None,
    leading: int = 0,
) -> Problem:
    """A matrix product of bytes; arguments as of `requantized_conv`."""
    op = MatMul(epilogue=_program(residual), out_dtype=out)
    specs = [TensorSpec.dense((m, k), dtype), TensorSpec.dense((k, n), INT8)]
    specs += [TensorSpec.dense((n,), FP32)] * 2
    if residual is not None:
        specs.append(TensorSpec.dense((m, n), residual))
    y = _widened(TensorSpec.dense((m, n), out), leading, False)
    flags = (False, True, True, True, False)[: len(specs)]
    return Problem(op, tuple(specs), (y,), flags)


def random_bytes(spec: TensorSpec, rng: np.random.Generator) -> Array:
    """Bytes over the whole range of the type."""
    limits = np.iinfo(spec.dtype.numpy)
    return rng.integers(limits.min, limits.max + 1, spec.shape).astype(spec.dtype.numpy)


def exact_inputs(task: Problem, rng: np.random.Generator) -> list[Array]:
    """Inputs whose results float32 holds, spread over the output's type and a little beyond."""
    x, w = task.inputs[:2]
    length = w.size // w.shape[0] if isinstance(task.op, Conv) else w.shape[0]
    # A sum of so many products is about 5500 (uint8: 11000) times the root of their number.
    each, wanted = 11000 if x.dtype is UINT8 else 5500, 240 if task.y.dtype is UINT8 else 60
    power = -int(np.log2(each * length**0.5 / wanted))
    arrays: list[Array] = [random_bytes(s, rng) for s in (x, w)]
    scale, bias = task.inputs[2:4]
    arrays.append((2.0 ** rng.integers(power - 1, power + 1, scale.shape)).astype(np.float32))
    arrays.append((rng.integers(-40, 41, bias.shape) / 2).astype(np.float32))
    arrays += [
        (rng.integers(-60, 61, s.shape) + (60 if s.dtype is UINT8 else 0)).astype(s.dtype.numpy)
        for s in task.inputs[4:]
    ]
    return arrays


def expected_of(task: Problem, inputs: Sequence[Array]) -> Array:
    """The reference's result in float64, rounded to the output's type once."""
    exact = [
        a.astype(np.float64) if s.dtype.is_float else a
        for a, s in zip(inputs, task.inputs, strict=True)
    ]
    (found,) = replace(task.op, out_dtype=FP32).reference(*exact)  # type: ignore[call-arg]
    if task.y.dtype in BYTES:
        limits = np.iinfo(task.y.dtype.numpy)
        return np.clip(np.rint(found), limits.min, limits.max).astype(task.y.dtype.numpy)
    return found.astype(task.y.dtype.numpy)


def assert_exact(runner: Any, variant: Variant, task: Problem, configs: Sequence[Any]) -> None:
    """``variant`` gives the reference's numbers, on fresh data, in each of ``configs``."""
    inputs = exact_inputs(task, np.random.default_rng())
    expected = expected_of(task, inputs)
    if task.y.dtype in BYTES:
        assert len(np.unique(expected)) > 50, f"the data are to fill {task.y.dtype}"
    if task.y.dtype is UINT8:
        assert (expected.min(), expected.max()) == (0, 255), "the data are to saturate"
    assert configs
    for config in configs:
        (out,) = runner.run(variant, task, config, inputs)
        assert out.dtype == expected.dtype
        wrong = np.argwhere(out != expected)
        assert not len(wrong), (
            f"{variant.name}{config} on {task}: {len(wrong)} of {out.size} differ, "
            f"first at {tuple(wrong[0])}: {out[tuple(wrong[0])]} for {expected[tuple(wrong[0])]}"
        )
