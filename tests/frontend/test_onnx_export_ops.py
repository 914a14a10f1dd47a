"""Every op as ONNX: ONNX Runtime gives what the op's reference gives, and so does a re-import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from nrt.dtypes import (
    BF16,
    BOOL,
    BYTES,
    FP8E4M3,
    FP16,
    FP32,
    FP64,
    INT8,
    INT32,
    INT64,
    UINT8,
    DType,
)
from nrt.errors import ExportError
from nrt.frontend.onnx_export import to_onnx
from nrt.ir import ops
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.pointwise import OPCODES, Builder, Program
from tests.frontend.exported import (
    bools,
    check,
    close,
    graph_of,
    integers,
    normal,
    positive,
    run_ort,
    whole,
)

ACTIVATIONS: tuple[Op, ...] = (
    ops.Celu(1.7), ops.Clip(-0.5, 1.25), ops.Clip(None, 0.5), ops.Clip(0.25), ops.Clip(),
    ops.Elu(0.7), ops.Gelu(), ops.Gelu(True), ops.HardSigmoid(0.3, 0.4), ops.HardSwish(),
    ops.LeakyRelu(0.2), ops.Mish(), ops.Relu(), ops.Selu(), ops.Softplus(), ops.Softsign(),
    ops.ThresholdedRelu(0.3),
)  # fmt: skip
UNARY: tuple[Op, ...] = (
    ops.Abs(), ops.Ceil(), ops.Cos(), ops.Erf(), ops.Exp(), ops.Floor(), ops.IsNaN(), ops.Neg(),
    ops.Round(), ops.Sigmoid(), ops.Sign(), ops.Sin(), ops.Tanh(), ops.Identity(), ops.Dropout(),
    ops.Cast(FP64), ops.Cast(INT32), ops.Cast(BOOL), ops.Reformat(FP16),
    ops.Reshape((7, 3, 1, 5)), ops.Transpose((2, 0, 1)), ops.Expand((2, 3, 5, 7)),
    ops.Slice((1, 4, 0), (3, -1, 7), (1, -2, 3)), ops.Split(-1, (1, 4, 2)),
    ops.Pad((1, 0, 2, 0, 3, 1), value=0.5), ops.Pad((-1, 0, 2, 0, -2, 1)),
    ops.Pad((1, 0, 2, 0, 3, 1), "reflect"), ops.Pad((1, 0, 2, 0, 3, 1), "edge"),
    ops.Softmax(1), ops.LogSoftmax(-1),
    *(ops.Reduce(kind, (0, 2), keepdims) for kind in ("mean", "sum", "max", "min", "prod", "l1",
      "l2", "sum_square") for keepdims in (True, False)),
    *(ops.Reduce(kind, ()) for kind in ("mean", "l1", "l2", "sum_square")),
)  # fmt: skip


@pytest.mark.parametrize("op", [*ACTIVATIONS, *UNARY], ids=str)
def test_ops_of_one_float_input(op: Op) -> None:
    check(op, normal(3, 5, 7))


@pytest.mark.parametrize("op", [ops.Log(), ops.Sqrt(), ops.Reciprocal()], ids=str)
def test_ops_of_positive_floats(op: Op) -> None:
    check(op, positive(3, 5, 7))


BINARY = (
    ops.Add(), ops.Sub(), ops.Mul(), ops.Div(), ops.Min(), ops.Max(), ops.Sum(), ops.Mean(),
    ops.Equal(), ops.Less(), ops.LessOrEqual(), ops.Greater(), ops.GreaterOrEqual(),
)  # fmt: skip


@pytest.mark.parametrize("op", BINARY, ids=str)
def test_ops_of_two_floats_broadcast(op: Op) -> None:
    check(op, normal(3, 1, 7), normal(5, 1), constants=[1])


def test_variadic_ops_take_one_to_many() -> None:
    for op in (ops.Min(), ops.Max(), ops.Sum(), ops.Mean()):
        check(op, normal(3, 1), normal(5), normal(3, 5))
        check(op, normal(3, 5))


@pytest.mark.parametrize("dtype", [INT32, INT64, INT8, UINT8], ids=str)
def test_ops_of_integers(dtype) -> None:
    low = 1 if dtype is UINT8 else -9
    x = integers(3, 1, 7, dtype=dtype, low=low)
    y = integers(5, 1, dtype=dtype, low=1)
    for op in BINARY:
        if not isinstance(op, ops.Mean):
            check(op, x, y)
    for op in (ops.Relu(), ops.Abs(), ops.Sign(), ops.Clip(-2, 5), ops.Cast(FP32), ops.Cast(BOOL)):
        check(op, x)
    check(ops.PRelu(), x, y[0])
    check(ops.Where(), bools(5, 1), x, y)


def test_small_integers_wrap_around() -> None:
    x = np.asarray([127, -128, 100, 7], np.int8)
    graph = check(ops.Add(), x, x)
    assert list(evaluate(graph, {"x0": x, "x1": x})["y0"]) == [-2, 0, -56, 14]


def test_ops_of_bools() -> None:
    x, y = bools(3, 1, 7), bools(5, 1)
    for op in (ops.And(), ops.Or(), ops.Xor(), ops.Equal()):
        check(op, x, y)
    check(ops.Not(), x)
    check(ops.Reduce("max", (1,)), bools(3, 5))
    check(ops.Reduce("min", (0, 1), False), bools(3, 5))


def test_powers_of_every_kind() -> None:
    check(ops.Pow(), positive(3, 5), normal(5))
    check(ops.Pow(), positive(3, 5), integers(5, low=0))
    check(ops.Pow(), integers(3, 5), integers(5, low=0, high=4))
    check(ops.Pow(), integers(3, 5, low=1), np.asarray([2.0, 1.0, 3.0, 0.0, 2.0], np.float32))


def test_prelu_and_where() -> None:
    check(ops.PRelu(), normal(2, 3, 5), normal(3, 1), constants=[1])
    check(ops.Where(), bools(3, 1), normal(3, 5), normal(5))
    check(ops.Where(), bools(3, 1), normal(3, 5, dtype=FP16), normal(5, dtype=FP16))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(groups: int) -> None:
    op = ops.Conv((2, 1), (1, 0, 2, 1), (1, 2), groups)
    x, w = normal(2, 4, 9, 11), normal(8, 4 // groups, 3, 2)
    check(op, x, w, constants=[1])
    check(op, x, w, normal(8), constants=[1, 2])


def test_convolutions_of_one_and_three_dimensions() -> None:
    check(ops.Conv((2,), (1, 1), (1,)), normal(2, 3, 11), normal(4, 3, 3))
    one = (1, 1, 1)
    check(ops.Conv(one, (1, 0, 1) * 2, one), normal(1, 2, 4, 5, 6), normal(3, 2, 3, 1, 3))


def test_transposed_convolutions() -> None:
    op = ops.ConvTranspose((2, 3), (1, 0, 1, 1), (1, 1), 2, (1, 0))
    check(op, normal(2, 4, 5, 6), normal(4, 3, 3, 3), normal(6), constants=[1, 2])


def epilogue(kinds: str = "fff") -> Program:
    """``relu(acc + bias) * 0.5 + residual``."""
    b = Builder(kinds)
    y = b("max", b("add", 0, 1), b.const(0.0))
    return b.build(b("add", b("mul", y, b.const(0.5)), 2))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_epilogues(dtype) -> None:
    op = ops.Conv(pads=(1, 1, 1, 1), epilogue=epilogue())
    x, w = normal(2, 3, 5, 7, dtype=dtype), normal(4, 3, 3, 3, dtype=dtype)
    # ONNX Runtime's Python binding has no bf16 arrays.
    check(op, x, w, normal(4, 1, 1), normal(2, 4, 5, 7), constants=[1, 2], run=dtype is not BF16)
    product = ops.MatMul(trans_b=True, epilogue=epilogue(), out_dtype=FP32)
    a, b = normal(2, 3, 5, dtype=dtype), normal(7, 5, dtype=dtype)
    check(product, a, b, normal(7), normal(3, 7), constants=[1], run=dtype is not BF16)
    op = ops.ConvTranspose(epilogue=epilogue())
    w = normal(3, 4, 3, 3, dtype=dtype)
    check(op, x, w, normal(4, 1, 1), normal(2, 4, 7, 9), run=dtype is not BF16)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_prologues(dtype) -> None:
    b = Builder("fff")
    prologue = b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))
    op = ops.Conv(pads=(1, 1, 1, 1), prologue=prologue, epilogue=epilogue())
    x, w = normal(2, 3, 5, 7, dtype=dtype), normal(4, 3, 3, 3, dtype=dtype)
    scale, shift, bias, skip = normal(3, 1, 1), normal(3, 1, 1), normal(4, 1, 1), normal(2, 4, 5, 7)
    check(op, x, w, scale, shift, bias, skip, constants=[1, 2], run=dtype is not BF16)


def test_an_epilogue_that_forgets_the_accumulator_keeps_the_shape() -> None:
    b = Builder("ff")
    op = ops.MatMul(epilogue=b.build(b("exp", 1)))
    check(op, normal(3, 5), normal(5, 7), normal(7))


def test_products() -> None:
    check(ops.MatMul(), normal(2, 1, 3, 5), normal(4, 5, 7))
    check(ops.MatMul(trans_a=True, trans_b=True), normal(2, 5, 3), normal(7, 5), constants=[1])
    check(ops.MatMul(trans_b=True), normal(5), normal(7, 5))
    check(ops.MatMul(trans_b=True), normal(3, 5), normal(5))
    check(ops.MatMul(tf32=True), normal(3, 5), normal(5, 7))
    check(ops.MatMul(), integers(3, 5), integers(5, 7))


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_products_of_bytes_are_exact(dtype: DType) -> None:
    # As deep as fp32 is exact: ONNX Runtime has no convolution of fp64.
    depth = 96 if dtype is INT8 else 56
    x, w = whole(2, depth, 5, 5, dtype=dtype), whole(3, depth, 3, 3)
    check(ops.Conv(), x, w, constants=[1])
    check(ops.Conv(groups=2), x[:, :, :3, :3], w[:2, : depth // 2], constants=[1])
    check(ops.ConvTranspose(), x, w[0][:, None], constants=[1])
    a, b = whole(3, 3001, dtype=dtype), whole(3001, 5)
    check(ops.MatMul(), a, b)
    check(ops.MatMul(), a[0, :1001], b[:1001])
    # 601 products of 255 · 127 are beyond 2^24, those of 128 · 128 are not.
    check(ops.MatMul(), np.full_like(a[:, :601], a.max()), np.full_like(b[:601], 127))


@pytest.mark.parametrize("stored", BYTES, ids=str)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_results_of_bytes_round_to_even_and_saturate(dtype: DType, stored: DType) -> None:
    b = Builder("f")
    program = b.build(b("mul", 0, b.const(0.5)))
    op = ops.MatMul(epilogue=program, out_dtype=stored)
    a = np.asarray([[1], [3], [5], [-1], [-3], [127], [-128]], np.int8).view(dtype.numpy)
    for w in ([[1]], [[5]], [[-1]]):
        check(op, a, np.asarray(w, np.int8))


def test_a_convolution_of_uint8_with_a_residual_of_int8() -> None:
    b = Builder("fi")
    program = b.build(b("add", b("mul", 0, b.const(2.0**-11)), b("to_f", 1)))
    op = ops.Conv(pads=(1, 1, 1, 1), epilogue=program, out_dtype=UINT8)
    x, w = whole(2, 16, 5, 4, dtype=UINT8), whole(6, 16, 3, 3)
    graph = check(op, x, w, whole(2, 6, 5, 4), constants=[1])
    (node,) = (n for n in to_onnx(graph).graph.node if n.op_type == "Conv")
    assert {p.value for p in node.metadata_props if p.key == "nrt.precision"} == {"int8"}


def test_fp8_products() -> None:
    a, b = normal(3, 16, dtype=FP8E4M3), normal(16, 5, dtype=FP8E4M3)
    graph, feeds = graph_of(ops.MatMul(), a, b, constants=[0, 1])
    graph.set_output("y", graph.add_node(ops.Neg(), [graph.node("the/node").output]).output)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    got, want = run_ort(model, feeds), evaluate(graph, feeds)
    close({"y": got["y"]}, {"y": want["y"]})


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_reductions_with_prologue_and_epilogue(dtype) -> None:
    b = Builder("ff")
    first = b.build(b("max", b("mul", 0, 1), b.const(0.0)))
    b = Builder("ff")
    last = b.build(b("add", b("mul", 0, 0), 1))
    x, scale, shift = normal(2, 3, 4, 5, dtype=dtype), normal(3, 1, 1), normal(2, 3)
    check(ops.Reduce("mean", (2, 3), prologue=first), x, scale)
    check(ops.Reduce("max", (2, 3), False, epilogue=last), x, shift)
    check(ops.Reduce("sum", (2, 3), False, first, last, FP32), x, scale, shift)
    b = Builder("f")
    check(ops.Reduce("sum", (0, 2), prologue=b.build(b.const(2.0))), normal(2, 3, 4))


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_pooled_convolutions(dtype) -> None:
    b = Builder("fff")
    program = b.build(b("max", b("add", b("add", 0, 1), 2), b.const(0.0)))
    x, w = normal(2, 3, 6, 5, dtype=dtype), normal(7, 3, 3, 2, dtype=dtype)
    bias, residual = normal(7, dtype=dtype), normal(2, 7, 4, 4, dtype=dtype)
    check(ops.PooledConv("sum"), x, w)
    check(ops.PooledConv(strides=(2, 1), pads=(1, 0, 1, 1), out_dtype=FP32), x, w, bias)
    check(ops.PooledConv(epilogue=program), x, w, bias.reshape(7, 1, 1), residual)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_pooled_products(dtype) -> None:
    b = Builder("ff")
    first = b.build(b("max", b("mul", 0, 1), b.const(0.0)))
    b = Builder("ff")
    last = b.build(b("add", b("mul", 0, 0), 1))
    # Sums of 20 pixels are squared: small weights keep what cancels near 1.
    x, w = normal(2, 3, 4, 5, dtype=dtype), normal(3, 7, dtype=dtype)
    w = np.asarray(w / 8, dtype.numpy)
    scale, bias = normal(3, 1, 1), normal(7)
    check(ops.PooledMatMul(), x, w)
    check(ops.PooledMatMul("max", True), x, np.ascontiguousarray(w.T))
    check(ops.PooledMatMul("sum", False, first, last, FP32), x, w, scale, bias)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_pointwise_of_several_results(dtype) -> None:
    b = Builder("ff")
    both, less = b("add", 0, 1), b("lt", 0, 1)
    end = b("tanh", both)
    program = b.build(end, 0, less, both, end)
    x, p = normal(3, 5, 7, dtype=dtype), normal(5, 1, dtype=dtype)
    check(ops.MultiPointwise(program, (FP32, FP16, BOOL, FP32, FP16)), x, p)
    check(ops.MultiPointwise(b.build(both, end), (dtype, dtype)), x, p)


def test_pools() -> None:
    x = normal(2, 3, 9, 10)
    for ceil in (False, True):
        check(ops.MaxPool((3, 2), (2, 2), (1, 0, 1, 1), (1, 2), ceil), x)
        for include in (False, True):
            op = ops.AveragePool((3, 2), (2, 2), (1, 0, 1, 1), (1, 1), ceil, include)
            check(op, x)
    check(ops.MaxPool((1, 1), (2, 2), (0, 0, 1, 1), (1, 1), True), x[:, :, :8, :8])
    check(ops.MaxPool((3,), (2,), (1, 1), (1,)), normal(2, 3, 9, dtype=FP16))
    check(ops.MaxPool((2, 2), (1, 1), (0,) * 4), integers(1, 2, 5, 5, dtype=INT8))
    check(ops.MaxPool((2, 2), (1, 1), (0,) * 4), whole(1, 2, 5, 5, dtype=UINT8))


@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [(INT8, INT8), (INT8, FP16), (UINT8, UINT8)], ids=str
)
def test_means_of_bytes(dtype: DType, out_dtype: DType) -> None:
    b = Builder("f")
    op = ops.AveragePool(
        (2, 2), (1, 1), (1, 0, 0, 1), epilogue=b.build(b("mul", 0, b.const(2.0))),
        out_dtype=out_dtype,
    )  # fmt: skip
    check(op, whole(1, 2, 5, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_pools_with_an_epilogue(dtype) -> None:
    b = Builder("ff")
    program = b.build(b("max", b("mul", 0, 1), b.const(0.0)))
    x, scale = normal(2, 3, 7, 9, dtype=dtype), normal(3, 1, 1)
    window = ((3, 2), (2, 2), (1, 0, 1, 1))
    check(ops.MaxPool(*window, epilogue=program), x, scale)
    check(ops.AveragePool(*window, epilogue=program, out_dtype=FP32), x, scale)


def test_normalizations() -> None:
    x, c = normal(2, 5, 4, 3), [1, 2, 3, 4]
    check(ops.BatchNormalization(1e-3), x, *(normal(5) for _ in "sbm"), positive(5), constants=c)
    check(ops.InstanceNormalization(1e-3), x, normal(5), normal(5), constants=[1])
    check(ops.LRN(3, 0.5, 0.7, 1.5), x)
    # Three numbers may lie so close together that their variance is rounding; these do not.
    rows = x + np.float32([-4, 0, 4])
    check(ops.LayerNormalization(-1, 1e-3), rows, normal(3), normal(3), constants=[1, 2])
    check(ops.LayerNormalization(2), x, normal(4, 3))
    check(ops.LayerNormalization(-1), rows, normal(1), normal(5, 1, 3))
    check(ops.LayerNormalization(1), x, normal(5, 1, 1), constants=[1])


@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize(
    "op",
    [ops.Softmax(1), ops.Reduce("mean", (1,)), ops.Gelu(), ops.Sigmoid(), ops.Round()],
    ids=str,
)
def test_small_floats_are_computed_in_fp32(dtype, op: Op) -> None:
    check(op, normal(3, 5, 7, dtype=dtype), run=dtype is FP16)


@pytest.mark.parametrize("dtype", [BF16, FP8E4M3, FP16, BOOL, UINT8], ids=str)
def test_moving_any_type(dtype) -> None:
    x = integers(3, 4, dtype=INT8, low=0, high=2).astype(dtype.numpy)
    more = integers(5, dtype=INT32, low=-3, high=3)
    run = dtype not in (BF16, FP8E4M3)
    for op in (
        ops.Reshape((2, 6)),
        ops.Transpose((1, 0)),
        ops.Expand((2, 3, 4)),
        ops.Slice((0, 1), (3, 4), (2, 1)),
        ops.Pad((1, 0, 0, 2)),
        ops.Identity(),
    ):
        check(op, x, run=run)
    check(ops.Concat(0), x, x, run=run)
    check(ops.Gather(0), x, more, run=run)


def test_gathers() -> None:
    check(ops.Gather(-1), normal(3, 5), integers(2, 2, low=-5, high=5, dtype=INT8))
    check(ops.GatherElements(1), normal(3, 5), integers(2, 4, low=-5, high=5), constants=[1])
    check(ops.Concat(-1), normal(3, 5), normal(3, 1), normal(3, 0))


def test_reductions_of_integers() -> None:
    x = integers(3, 5, 7, dtype=INT8)
    for kind in ("mean", "sum", "max", "min", "l1", "l2", "sum_square"):
        check(ops.Reduce(kind, (-1, 0), False), x.astype(np.int32))
        check(ops.Reduce(kind, ()), x.astype(np.int64))
    check(ops.Reduce("prod", (1,)), integers(3, 5, low=-3, high=4))


@pytest.mark.parametrize("coordinate", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizes(mode: str, coordinate: str) -> None:
    x = normal(1, 2, 6, 5)
    sizes = (1, 2, 9, 10)
    scales = tuple(n / d for n, d in zip(sizes, x.shape, strict=True))
    check(ops.Resize(sizes, scales, mode, coordinate, "floor"), x)
    op = ops.Resize((1, 2, 10, 8), (1.0, 1.0, 1.75, 1.75), mode, coordinate, "ceil")
    # Where a size is rounded down, ONNX Runtime aligns the corners of what is left.
    check(op, x, run=coordinate != "align_corners")


def test_empty_tensors() -> None:
    check(ops.Reshape((0, 6)), normal(3, 0, 2))
    check(ops.Relu(), normal(3, 0))


def test_every_instruction_of_a_program_is_written() -> None:
    b = Builder("ffib")
    total = b.const(0.0)
    x = b("add", b("abs", 0), b.const(0.5))
    y = b("add", b("abs", 1), b.const(0.5))
    for opcode in OPCODES.values():
        name = opcode.name
        if name in ("const", "where", "idiv", "and", "or", "xor", "not", "to_b", "to_i", "to_f"):
            continue
        args = (x, y)[: opcode.arity]
        term = b(name, *args)
        total = b("add", total, b("to_f", term) if opcode.result == "b" else term)
    i = b("idiv", 2, b.const(4))
    i = b("add", i, b("to_i", b("mul", x, b.const(3.0))))
    flag = b("xor", b("or", b("and", 3, b("to_b", 2)), b("not", 3)), b("to_b", 0))
    program = b.build(b("where", flag, total, b("to_f", i)))
    assert {instr.opcode for instr in program.instrs} == set(OPCODES)
    check(ops.Pointwise(program, FP32), normal(3, 1), normal(5), integers(3, 5), bools(5))


def test_programs_that_only_pass_on_or_widen() -> None:
    check(ops.Pointwise(Program(("f",), (), (0,)), FP16), normal(3, 5))
    check(ops.Pointwise(Program(("f", "f"), (), (1,)), FP32), normal(3, 1), normal(5))
    b = Builder("ff")
    check(
        ops.Pointwise(b.build(b("mul", 0, 1)), FP64), normal(3, dtype=FP64), normal(3, dtype=FP64)
    )


@pytest.mark.parametrize("shape", [(), (5, 1), (3, 1, 7)], ids=str)
@pytest.mark.parametrize("constants", [(1, 2), ()], ids=["known", "computed"])
def test_quantization(shape: tuple[int, ...], constants: Sequence[int]) -> None:
    """As its ONNX op where scales are constants along one dimension, else step by step."""
    # Quotients by powers of two are exact, so that no runtime rounds a half otherwise.
    scale = np.asarray(np.exp2(integers(*shape, low=-5, high=-2)), np.float32)
    zero = np.asarray(integers(*shape, low=100, high=150), np.uint8)
    whole = integers(3, 5, 7, dtype=UINT8, low=0, high=256)
    native = bool(constants) and sum(size != 1 for size in shape) <= 1
    for op, kind, arrays in (
        (ops.Quantize(UINT8), "QuantizeLinear", (normal(3, 5, 7), scale, zero)),
        (ops.Dequantize(FP32), "DequantizeLinear", (whole, scale, zero)),
    ):
        for count in (2, 3):
            used = arrays[:count]
            graph = check(op, *used, constants=[c for c in constants if c < count])
            written = [n.op_type for n in to_onnx(graph).graph.node]
            assert (written == [kind]) == native


def test_quantization_to_halves() -> None:
    check(ops.Dequantize(FP16), integers(3, 5, dtype=INT8), np.float32(0.25), constants=[1])


def test_counts_of_magnitudes_have_no_onnx_op() -> None:
    graph, _ = graph_of(ops.AbsHistogram(), normal(3, 5))
    with pytest.raises(ExportError, match=r"AbsHistogram '.*': ONNX has no counterpart"):
        to_onnx(graph)


def test_every_op_class_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [op.__name__ for op in ops.OPS if f"ops.{op.__name__}(" not in text]


def test_what_onnx_has_not_is_listed() -> None:
    class Odd(ops.Identity):
        pass

    graph = Graph("g")
    x = graph.add_input("x", (1, 2, 5, 5), INT32)
    w = graph.add_constant("w", integers(2, 2, 3, 3))
    odd = graph.add_node(Odd(), [x], name="strange").output
    graph.set_output("a", graph.add_node(ops.Conv(), [odd, w], name="conv").output)
    pool = graph.add_node(ops.MaxPool((2, 2), (1, 1), (0,) * 4), [x], name="pool").output
    graph.set_output("x", pool)
    with pytest.raises(ExportError) as caught:
        to_onnx(graph)
    text = str(caught.value)
    assert "graph 'g' cannot be written as ONNX, for 4 reason(s)" in text
    assert "Odd 'strange': ONNX has no counterpart" in text
    assert "Conv 'conv': ONNX has no Conv of int32" in text
    assert "MaxPool 'pool': ONNX has no MaxPool of int32" in text
    assert "output 'x': is the name of an input, too" in text
    assert "nrt.replace" in text


def test_splits_and_sizes_that_onnx_has_not() -> None:
    graph, _ = graph_of(ops.Split(0, (1, 2)), np.zeros(3, ml_dtypes.float8_e4m3fn))
    with pytest.raises(ExportError, match="ONNX has no Split of fp8e4m3"):
        to_onnx(graph)
    graph, _ = graph_of(ops.Resize((1, 1, 7, 7), (1.0, 1.0, 1.3, 1.3)), normal(1, 1, 4, 4))
    with pytest.raises(ExportError, match=r"sizes or scales; sizes .* are not what the scales"):
        to_onnx(graph)
