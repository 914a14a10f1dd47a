"""Elementwise nodes and pointwise programs as ONNX nodes.

An op that ONNX has in the type it is computed in is written as that op. Everything else, fused
chains and epilogues above all, is written instruction by instruction: floats in fp32 (fp64 where
there is one), integers in int64, as the reference computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.dtypes import BOOL, FP16, FP32, FP64, INT32, INT64, DType
from nrt.frontend.onnx_export_node import Tensor, Writer, takes, wide
from nrt.ir import ops
from nrt.ir.op import TensorType
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Program
from nrt.ir.value import Node

__all__ = ["elementwise", "finish_all", "multi_pointwise", "write_program"]

_INSTRUCTIONS = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "idiv": "Div",
    "pow": "Pow",
    "min": "Min",
    "max": "Max",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "and": "And",
    "or": "Or",
    "xor": "Xor",
    "not": "Not",
    "isnan": "IsNaN",
    "where": "Where",
}
"""Opcode -> ONNX op, where it is one; conversions and constants are written by `write_program`."""

# ONNX ops with the name and the meaning of nrt's, in types that runtimes implement.
_OF_FLOATS: tuple[type[ops.Elementwise], ...] = (
    ops.Abs, ops.Add, ops.Ceil, ops.Celu, ops.Clip, ops.Cos, ops.Div, ops.Elu, ops.Equal, ops.Erf,
    ops.Exp, ops.Floor, ops.Gelu, ops.Greater, ops.GreaterOrEqual, ops.HardSigmoid, ops.HardSwish,
    ops.IsNaN, ops.LeakyRelu, ops.Less, ops.LessOrEqual, ops.Log, ops.Max, ops.Mean, ops.Min,
    ops.Mish, ops.Mul, ops.Neg, ops.PRelu, ops.Pow, ops.Reciprocal, ops.Relu, ops.Round, ops.Selu,
    ops.Sigmoid, ops.Sign, ops.Sin, ops.Softplus, ops.Softsign, ops.Sqrt, ops.Sub, ops.Sum,
    ops.Tanh, ops.ThresholdedRelu, ops.Where,
)  # fmt: skip
_OF_INTEGERS: tuple[type[ops.Elementwise], ...] = (
    ops.Abs, ops.Add, ops.Clip, ops.Div, ops.Equal, ops.Greater, ops.GreaterOrEqual, ops.Less,
    ops.LessOrEqual, ops.Max, ops.Min, ops.Mul, ops.Neg, ops.Sign, ops.Sub, ops.Where,
)  # fmt: skip
_OF_BOOLS: tuple[type[ops.Elementwise], ...] = (ops.And, ops.Equal, ops.Not, ops.Or, ops.Xor)


def elementwise(w: Writer, node: Node) -> None:
    """An elementwise node, as one ONNX op or as its program."""
    op: Any = node.op
    if isinstance(op, ops.Quantize | ops.Dequantize) and _quantization(w, node):
        return
    inputs = [w.tensor(v) for v in node.inputs]
    result = w.tensor(node.output)
    if isinstance(op, ops.Cast):
        w.cast(inputs[0], op.to, into=result)
        return
    if _has_counterpart(op, inputs):
        _counterpart(w, op, inputs, result)
        return
    program: Program = op.program(tuple(kind_of(t.dtype) for t in inputs))
    (value,) = write_program(w, program, inputs)
    w.finish(value, result)


def multi_pointwise(w: Writer, node: Node) -> None:
    """A program of several results."""
    op: Any = node.op
    values = write_program(w, op.body, [w.tensor(v) for v in node.inputs])
    finish_all(w, values, [w.tensor(v) for v in node.outputs])


def finish_all(w: Writer, values: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Let each of ``results``, the outputs of the node, be one of ``values``."""
    for value, result in zip(values, results, strict=True):
        # Only what is one result alone may get that result's name.
        shared = values.count(value) > 1
        w.finish(w.emit("Identity", [value], value.type) if shared else value, result)


def _quantization(w: Writer, node: Node) -> bool:
    """Write QuantizeLinear or DequantizeLinear, if the node has that form: constant scales in fp32,
    one or a vector along one dimension."""
    data, *parameters = node.inputs
    quantizes = isinstance(node.op, ops.Quantize)
    scale = parameters[0]
    real = data if quantizes else node.output
    arrays = [p.constant for p in parameters]
    if not scale.dtype is real.dtype is FP32 or any(a is None for a in arrays):
        return False
    axes = {_axis(p.shape, data.shape) for p in parameters}
    if len(axes) != 1 or None in axes:
        return False
    (axis,) = axes
    shape = () if axis == _SCALAR else (-1,)
    args = [w.tensor(data)]
    for parameter, array in zip(parameters, arrays, strict=True):
        assert array is not None
        args.append(w.constant(array.reshape(shape), parameter.dtype))
    if quantizes and len(args) == 2:  # the zero point says which integers
        args.append(w.constant(np.zeros(args[1].shape), node.output.dtype))
    result = w.tensor(node.output)
    attributes = {} if axis == _SCALAR else {"axis": axis}
    name = "QuantizeLinear" if quantizes else "DequantizeLinear"
    w.emit(name, args, result.type, into=result, **attributes)
    return True


_SCALAR = -1


def _axis(shape: tuple[int, ...], data: tuple[int, ...]) -> int | None:
    """The dimension of ``data`` along which a tensor of ``shape`` varies; `_SCALAR` for none."""
    spread = (1,) * (len(data) - len(shape)) + shape
    long = [d for d, size in enumerate(spread) if size != 1]
    if not long:
        return _SCALAR if all(size == 1 for size in shape) else None
    return long[0] if len(long) == 1 and spread[long[0]] == data[long[0]] else None


def _has_counterpart(op: ops.Elementwise, inputs: Sequence[Tensor]) -> bool:
    data = inputs[1:] if isinstance(op, ops.Where) else inputs
    types = {wide(t.dtype) for t in data}
    if len(types) != 1:
        return False
    (dtype,) = types
    if dtype.is_float:
        return isinstance(op, _OF_FLOATS) and _exists_in(op, dtype)
    if dtype is BOOL:
        return isinstance(op, _OF_BOOLS)
    return isinstance(op, _OF_INTEGERS) and dtype in (INT32, INT64)


def _exists_in(op: ops.Elementwise, dtype: DType) -> bool:
    """Whether ONNX has the op in this type; the first input of Where is its condition."""
    return isinstance(op, ops.Where) or takes(op.name, dtype)


def _counterpart(w: Writer, op: ops.Elementwise, inputs: Sequence[Tensor], result: Tensor) -> None:
    args: list[Tensor | None] = [w.cast(t, wide(t.dtype)) for t in inputs]
    attributes: dict[str, Any] = op.attributes()
    if isinstance(op, ops.Clip):
        attributes = {}
        dtype = wide(inputs[0].dtype)
        for bound in (op.min, op.max):
            args.append(None if bound is None else w.constant(_bound(bound, dtype), dtype))
        while args[-1] is None:
            args.pop()
    elif isinstance(op, ops.Gelu):
        attributes = {"approximate": "tanh" if op.approximate else "none"}
    dtype = result.dtype if result.dtype is BOOL else wide(result.dtype)
    type_ = TensorType(result.shape, dtype)
    w.finish(w.emit(op.name, args, type_, **attributes), result)


def _bound(bound: float, dtype: DType) -> Any:
    return np.asarray(bound if dtype.is_float else int(bound))


def write_program(w: Writer, program: Program, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The instructions of ``program`` on ``inputs``; returns its outputs."""
    floats = {t.dtype for t, kind in zip(inputs, program.inputs, strict=True) if kind == "f"}
    real = FP64 if FP64 in floats else FP32
    of_kind = {"f": real, "i": INT64, "b": BOOL}
    registers = [w.cast(t, of_kind[kind]) for t, kind in zip(inputs, program.inputs, strict=True)]
    for instr in program.instrs:
        dtype = of_kind[program.kinds[len(registers)]]
        args = [registers[a] for a in instr.args]
        registers.append(_instruction(w, instr.opcode, instr.imm, args, dtype))
    return tuple(registers[r] for r in program.outputs)


def _instruction(w: Writer, opcode: str, imm: Any, args: Sequence[Tensor], dtype: DType) -> Tensor:
    if opcode == "const":
        return w.constant(np.asarray(imm), dtype)
    if opcode in ("to_f", "to_i", "to_b"):
        return w.cast(args[0], dtype)
    if opcode == "fp16":
        return w.cast(w.cast(args[0], FP16), dtype)
    shape = np.broadcast_shapes(*(t.shape for t in args))
    return w.emit(_INSTRUCTIONS[opcode], args, TensorType(shape, dtype))
