"""How much work a problem is: operations, for rooflines and estimates."""

from __future__ import annotations

import math

from nrt.dtypes import BYTES, FP8E4M3
from nrt.ir.ops import (
    AveragePool,
    Conv,
    ConvTranspose,
    MatMul,
    MaxPool,
    MultiPointwise,
    PooledConv,
    PooledMatMul,
    Reduce,
    Softmax,
)
from nrt.ir.ops.elementwise import Elementwise, kind_of
from nrt.problem import Problem

__all__ = ["flops_of", "precision_of"]


def flops_of(problem: Problem) -> int:
    """Arithmetic operations; a multiply-add counts two."""
    op, y = problem.op, problem.y
    if isinstance(op, Conv | ConvTranspose | MatMul):
        epilogue = op.epilogue.flops * y.size if op.epilogue else 0
        before = op.prologue if isinstance(op, Conv) else None
        prologue = before.flops * problem.inputs[0].size if before else 0
        return _products(problem) * 2 + prologue + epilogue
    if isinstance(op, PooledConv):
        return _pooled_products(op, problem)
    if isinstance(op, PooledMatMul):
        x = problem.inputs[0]
        each = 1 + (op.prologue.flops if op.prologue else 0)
        ends = op.epilogue.flops if op.epilogue else 0
        return x.size * each + y.size * (2 * x.shape[1] + ends)
    if isinstance(op, Elementwise):
        return op.program(tuple(kind_of(t.dtype) for t in problem.inputs)).flops * y.size
    if isinstance(op, MultiPointwise):
        return op.body.flops * y.size
    if isinstance(op, MaxPool | AveragePool):
        return y.size * (math.prod(op.kernel) + (op.epilogue.flops if op.epilogue else 0))
    if isinstance(op, Softmax):
        return 12 * y.size
    if not problem.inputs[0].dtype.is_float:
        return 0
    each = 1 + (op.prologue.flops if isinstance(op, Reduce) and op.prologue else 0)
    ends = op.epilogue.flops * y.size if isinstance(op, Reduce) and op.epilogue else 0
    return problem.inputs[0].size * each + ends


def _pooled_products(op: PooledConv, problem: Problem) -> int:
    """Those of the convolution, and one addition for each of its results."""
    x, weights = problem.inputs[:2]
    (whole,) = op.conv(x.dtype).infer(*(t.type for t in problem.inputs))
    ends = op.epilogue.flops if op.epilogue else 0
    return math.prod(whole.shape) * (2 * math.prod(weights.shape[1:]) + ends + 1)


def _products(problem: Problem) -> int:
    op = problem.op
    if isinstance(op, MatMul):
        shape = problem.inputs[0].shape
        return problem.y.size * shape[-2 if op.trans_a and len(shape) > 1 else -1]
    weights = problem.inputs[1].shape
    taps = math.prod(weights[1:])
    if isinstance(op, ConvTranspose):
        return problem.inputs[0].size * taps
    return problem.y.size * taps


def precision_of(problem: Problem) -> str:
    """What a problem computes in.

    The element type of its first floating-point operand wider than fp8; ``int8``, ``fp8`` and
    ``tf32`` for products on such operands, ``fp8`` for what moves it.
    """
    op = problem.op
    if isinstance(op, Conv | ConvTranspose | MatMul | PooledConv):
        factor = problem.inputs[0].dtype
        if factor in BYTES:
            return "int8"
        if factor is FP8E4M3:
            return "fp8"
        if isinstance(op, Conv | MatMul | PooledConv) and op.tf32:
            return "tf32"
    floats = [s.dtype for s in (*problem.inputs, *problem.outputs) if s.dtype.is_float]
    wide = next((d for d in floats if d is not FP8E4M3), None)
    if wide is not None:
        return wide.name
    return "fp8" if floats else problem.y.dtype.name
