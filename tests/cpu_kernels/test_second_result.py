"""Products of the CPU target whose epilogue has two results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.cpu_kernels import variant_by_name
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv, ConvTranspose, MatMul
from nrt.ir.ops.common import cast
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec
from tests.cpu_kernels.harness import (
    channel_slice,
    check,
    compare,
    expected,
    nhwc,
    place,
    problem,
    random_array,
    refusal,
    spec,
)

CONVOLUTIONS: dict[str, tuple[str, Any, TensorSpec, tuple[int, ...]]] = {
    "indirect": (
        "cpu_conv_indirect", Conv(strides=(2, 1), pads=(1, 0, 1, 2)), nhwc(2, 9, 7, 10),
        (70, 9, 3, 3),
    ),
    "indirect groups": (
        "cpu_conv_indirect", Conv(groups=3), channel_slice((2, 9, 7, 5), 14), (21, 3, 2, 1),
    ),
    "staged": (
        "cpu_conv_staged", Conv(pads=(1, 1, 1, 1), dilations=(1, 2)), spec((2, 5, 9, 7)),
        (37, 5, 3, 2),
    ),
    "winograd": (
        "cpu_conv_winograd", Conv(pads=(1, 1, 1, 1)), nhwc(2, 32, 9, 6), (37, 32, 3, 3),
    ),
    "depthwise": (
        "cpu_conv_depthwise", Conv(pads=(1, 1, 1, 1), groups=37), nhwc(2, 37, 5, 11),
        (37, 1, 3, 3),
    ),
    "transpose": (
        "cpu_conv_transpose", ConvTranspose(strides=(2, 3), pads=(1, 0, 0, 1), groups=2),
        spec((2, 6, 4, 5)), (6, 7, 3, 4),
    ),
    "reference": ("cpu_reference", Conv(), nhwc(1, 5, 4, 3), (6, 5, 1, 1)),
}  # fmt: skip
EVERY = pytest.mark.parametrize("case", CONVOLUTIONS)


def nchw(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    return spec(shape, dtype=dtype)


def last(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    return nhwc(*shape, dtype=dtype)


def wide(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    """A channels-last part of a Concat's buffer."""
    return channel_slice(shape, shape[1] + 11, dtype)


def wide_planes(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    """A row-major part of a Concat's buffer."""
    n, c, h, w = shape
    return TensorSpec(shape, dtype, spec((n, c + 3, h, w)).strides)


Layout = Callable[[tuple[int, ...], DType], TensorSpec]
LAYOUTS = pytest.mark.parametrize(
    "layouts",
    [(last, last), (last, wide), (wide, nchw), (nchw, nchw), (nchw, wide_planes)],
    ids=lambda pair: " ".join(f.__name__ for f in pair),
)


def biased_relu() -> Program:
    """``y = sum + bias`` and ``max(y, 0)``."""
    b = Builder("ff")
    y = b("add", 0, 1)
    return b.build(y, b("max", y, b.const(0.0)))


def residual_scaled() -> Program:
    """``y = sum + residual`` and ``max(y * scale + 0.125, 0)``."""
    b = Builder("fff")
    y = b("add", 0, 1)
    return b.build(y, b("max", b("add", b("mul", y, 2), b.const(0.125)), b.const(0.0)))


def mask() -> Program:
    """``y = sum + bias`` and ``0.5 < y``."""
    b = Builder("ff")
    y = b("add", 0, 1)
    return b.build(y, b("lt", b.const(0.5), y))


def wrapped() -> Program:
    """``y = sum + bias`` and ``70 * y`` as an integer, which a byte holds modulo 256."""
    b = Builder("ff")
    y = b("add", 0, 1)
    return b.build(y, b("mul", b("to_i", b("round", y)), b.const(70)))


def convolution(
    case: str,
    program: Program,
    layouts: tuple[Layout, Layout] = (last, wide),
    dtypes: tuple[DType | None, DType] = (None, FP32),
    operands: DType | None = None,
) -> tuple[str, Problem]:
    """The variant, and its problem: of a program of three inputs 1 is a residual, else a bias."""
    name, op, x, w = CONVOLUTIONS[case]
    op = replace(op, epilogue=program, out_dtype=dtypes[0], second_dtype=dtypes[1])
    x = TensorSpec(x.shape, operands or FP32, x.strides)
    factors = [x, spec(w, dtype=operands or FP32)]
    plain = replace(op, epilogue=None, second_dtype=None, out_dtype=None)
    shape = plain.infer(*(t.type for t in factors))[0].shape
    vector = spec((shape[1], 1, 1))
    extras = [wide(shape, FP32), vector] if len(program.inputs) == 3 else [vector]
    inputs = [*factors, *extras]
    types = op.infer(*(t.type for t in inputs))
    outputs = [f(shape, t.dtype) for f, t in zip(layouts, types, strict=True)]
    return name, problem(op, inputs, outputs, (1, len(inputs) - 1))


def integers(p: Problem, rng: np.random.Generator) -> list[Array]:
    """Whole numbers, whose sums are exact. Scales (input 3) are multiples of 2.5: what
    `residual_scaled` adds to their products, 0.125, keeps results away from halves.
    """
    arrays = [rng.integers(-3, 4, t.shape).astype(t.dtype.numpy) for t in p.inputs]
    if len(arrays) > 3:
        arrays[3] = arrays[3] * np.float32(2.5)
    return arrays


@EVERY
@LAYOUTS
def test_a_convolution_stores_both(case, layouts, rng) -> None:
    for program in (biased_relu(), residual_scaled()):
        name, p = convolution(case, program, layouts)
        assert Problem.from_data(p.to_data()) == p
        check(name, p, rng, all_configs=True)


@EVERY
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("other", [FP16, INT8, UINT8], ids=str)
def test_the_results_may_be_of_two_types(case, swapped, other, rng) -> None:
    dtypes = (other, FP32) if swapped else (FP32, other)
    name, p = convolution(case, residual_scaled(), (wide, last), dtypes)
    check(name, p, rng, integers(p, rng))


@EVERY
@pytest.mark.parametrize(
    ("program", "stored"),
    [(mask, BOOL), (mask, INT8), (wrapped, UINT8), (wrapped, INT32)],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_the_second_result_may_be_no_float(case, program, stored, rng) -> None:
    name, p = convolution(case, program(), dtypes=(None, stored))
    arrays = integers(p, rng)
    wanted = p.op.reference(*arrays)[1]
    assert len(np.unique(wanted)) > 1
    check(name, p, rng, arrays)


def test_a_double_second_result(rng) -> None:
    name, p = convolution("indirect", residual_scaled(), dtypes=(FP32, FP64))
    check(name, p, rng, integers(p, rng))


@pytest.mark.parametrize("case", ["staged", "transpose"])
def test_half_operands(case, rng) -> None:
    name, p = convolution(case, residual_scaled(), operands=FP16)
    assert [t.dtype for t in p.outputs] == [FP16, FP32]
    check(name, p, rng, all_configs=True)


@pytest.mark.parametrize("dtypes", [(FP32, INT8), (UINT8, FP32), (INT8, FP16)], ids=str)
def test_products_of_bytes(dtypes, rng) -> None:
    name, p = convolution("staged", residual_scaled(), dtypes=dtypes, operands=INT8)
    arrays = [rng.integers(-128, 128, t.shape).astype(t.dtype.numpy) for t in p.inputs]
    arrays[3] = (2.0 ** rng.integers(-12, -6, p.inputs[3].shape)).astype(np.float32)
    check(name, p, rng, arrays, all_configs=True)


def test_products_of_fp8(rng) -> None:
    name, p = convolution("staged", residual_scaled(), dtypes=(FP32, FP8E4M3), operands=FP8E4M3)
    arrays = [cast(20 * rng.standard_normal(t.shape), t.dtype) for t in p.inputs]
    arrays[3] /= np.float32(2e4)
    check(name, p, rng, arrays, all_configs=True)


@EVERY
def test_both_may_lie_in_one_buffer(case, rng) -> None:
    shape = convolution(case, biased_relu())[1].y.shape
    n, c, h, w = shape
    base = np.full((n, h, w, 2 * c + 5), np.nan, np.float32).transpose(0, 3, 1, 2)
    views = [base[:, c + 4 : 2 * c + 4], base[:, 1 : 1 + c]]

    def part(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
        return channel_slice(shape, 2 * c + 5, dtype)

    name, p = convolution(case, biased_relu(), (part, part))
    arrays = [random_array(t, rng) for t in p.inputs]
    variant = variant_by_name(name)
    config = variant.configs(p)[0]
    inputs = [
        variant.pack(p, config, slot, a) if p.constants[slot] else place(t, a)
        for slot, (t, a) in enumerate(zip(p.inputs, arrays, strict=True))
    ]
    size = variant.workspace(p, config)
    variant.bind(p, config)(inputs, views, np.empty(size, np.uint8))
    for view, want, t in zip(views, expected(p, arrays), p.outputs, strict=True):
        compare(view, want, t)
    rest = np.delete(base, [*range(1, 1 + c), *range(c + 4, 2 * c + 4)], axis=1)
    assert rest.shape[1] == 5
    assert np.isnan(rest).all()


def test_a_prologue_and_two_results(rng) -> None:
    b = Builder("ff")
    prologue = b.build(b("max", b("mul", 0, 1), b.const(0.0)))
    op = Conv(prologue=prologue, epilogue=biased_relu(), second_dtype=FP16)
    shape = (2, 33, 6, 5)
    inputs = [nhwc(2, 40, 6, 5), spec((33, 40, 1, 1)), spec((40, 1, 1)), spec((33, 1, 1))]
    p = problem(op, inputs, [wide(shape, FP32), last(shape, FP16)], (1, 2, 3))
    check("cpu_conv_staged", p, rng, all_configs=True)


def rows(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    return spec(shape, dtype=dtype)


def wide_rows(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    """A part of the columns of a Concat's buffer."""
    return TensorSpec(shape, dtype, spec((*shape[:-1], shape[-1] + 9)).strides)


def reversed_order(shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    """Columns apart, and batch dimensions that do not become one."""
    return spec(shape, range(len(shape))[::-1], dtype)


@pytest.mark.parametrize(
    ("a", "b", "attributes"),
    [
        ((17, 33), (33, 70), {}),
        ((2, 3, 7, 11), (11, 13), {}),
        ((2, 1, 7, 11), (3, 13, 11), {"trans_b": True}),
        ((2, 3, 2, 2, 3, 5), (5, 4), {}),
        ((2, 3, 5, 7), (2, 3, 5, 9), {"trans_a": True}),
        ((7, 11), (11,), {}),
        ((11,), (2, 11, 13), {}),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    "layouts",
    [(rows, wide_rows), (wide_rows, reversed_order), (reversed_order, rows)],
    ids=lambda pair: " ".join(f.__name__ for f in pair),
)
def test_a_matrix_product_stores_both(a, b, attributes, constant, layouts, rng) -> None:
    shape = MatMul(**attributes).infer(spec(a).type, spec(b).type)[0].shape
    for program, extras in (
        (biased_relu(), [spec(shape[-1:])]),
        (residual_scaled(), [wide_rows(shape, FP32), spec(shape[-1:])]),
    ):
        op = MatMul(epilogue=program, second_dtype=FP16, **attributes)
        outputs = [f(shape, dtype) for f, dtype in zip(layouts, (FP32, FP16), strict=True)]
        constants = (1,) if constant else ()
        p = problem(op, [spec(a), spec(b), *extras], outputs, constants)
        check("cpu_matmul_panels", p, rng, all_configs=True)


@pytest.mark.parametrize(
    ("operands", "dtypes"),
    [
        (FP32, (None, INT8)), (FP32, (UINT8, FP32)), (FP16, (None, FP32)), (INT8, (INT8, FP32)),
        (INT8, (FP32, UINT8)),
    ],
    ids=str,
)  # fmt: skip
def test_types_of_matrix_products(operands, dtypes, rng) -> None:
    op = MatMul(epilogue=residual_scaled(), out_dtype=dtypes[0], second_dtype=dtypes[1])
    inputs = [
        spec((3, 5, 37), dtype=operands), spec((37, 21), dtype=operands), spec((3, 5, 21)),
        spec((21,)),
    ]  # fmt: skip
    p = problem(op, inputs)
    check("cpu_matmul_panels", p, rng, integers(p, rng), all_configs=True)


@pytest.mark.parametrize("case", [c for c in CONVOLUTIONS if c != "reference"])
@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (BF16, "no host code loads and stores bf16"),
        (INT32, "a float result stored as int32 would have to saturate"),
    ],
    ids=str,
)
def test_refusals_of_convolutions(case, second, reason) -> None:
    name, p = convolution(case, biased_relu(), dtypes=(None, second))
    assert refusal(name, p) == reason


def test_refusals_of_matrix_products() -> None:
    def reason(program: Program, second: DType) -> str:
        op = MatMul(epilogue=program, second_dtype=second)
        return refusal("cpu_matmul_panels", problem(op, [spec((3, 5)), spec((5, 7)), spec((7,))]))

    assert reason(biased_relu(), BF16) == "no host code loads and stores bf16"
    saturating = "a float result stored as int32 would have to saturate"
    assert reason(biased_relu(), INT32) == saturating
    b = Builder("ff")
    y = b("add", 0, 1)
    twice = b.build(y, b("fp16", y))
    assert reason(twice, FP64) == "rounding fp64 through fp16 would round twice"
