"""Random data for one problem, and how far a result is off: shared by tuner and tests."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from nrt.dtypes import BYTES, FP8E4M3, INT8, UINT8
from nrt.ir.op import Array
from nrt.ir.ops import (
    BatchNormalization,
    Conv,
    ConvTranspose,
    Elementwise,
    Gather,
    GatherElements,
    MatMul,
)
from nrt.ir.ops.common import kind_of
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.ops.quantize import saturates
from nrt.ir.pointwise import Program
from nrt.problem import Problem, TensorSpec

__all__ = ["BYTES_TOLERANCE", "random_inputs", "relative_error", "rounds_to_bytes"]

BYTES_TOLERANCE = 1e-2
"""Floats that differ in the last bit, rounded to integers, are one apart where they are near a
half."""


def rounds_to_bytes(problem: Problem, output: TensorSpec) -> bool:
    """Whether ``output`` holds bytes that floats were rounded to."""
    op = problem.op
    if output.dtype not in BYTES:
        return False
    if isinstance(op, Elementwise):
        program = op.program(tuple(kind_of(t.dtype) for t in problem.inputs))
        return saturates(program, output.dtype)
    return (
        isinstance(op, Conv | ConvTranspose | MatMul) or getattr(op, "epilogue", None) is not None
    )


def random_inputs(problem: Problem, rng: np.random.Generator) -> list[Array]:
    """Fresh inputs of the problem's shapes and dtypes, logical order; indices are in range.

    int8 factors of products take their whole range but -128, uint8 ones theirs, other integers are
    below 8; what scales the sums makes results of the size of bytes of them. Elements that share
    memory (a stride of 0) have one value. Dense arrays lie in memory as their specs say, so that an
    upload copies bytes; floats repeat with a period of `_PERIOD` elements.
    """
    return [
        _repeated(spec, _random(problem, slot, rng)) for slot, spec in enumerate(problem.inputs)
    ]


_PERIOD = 4_194_301
"""A prime: elements that a wrong index confuses do not lie a multiple of it apart."""


def _normal(spec: TensorSpec, rng: np.random.Generator, scale: float = 1.0) -> Array:
    """Gaussian numbers in the order of ``spec``'s memory, if that is dense."""
    block = rng.standard_normal(min(spec.size, _PERIOD), np.float32)
    block *= scale
    flat = np.resize(block.astype(spec.dtype.numpy), spec.size)
    if spec.size != spec.span or 0 in spec.strides:
        return flat.reshape(spec.shape)
    strides = tuple(s * flat.itemsize for s in spec.strides)
    return np.lib.stride_tricks.as_strided(flat, spec.shape, strides)


def _repeated(spec: TensorSpec, values: Array) -> Array:
    if 0 not in spec.strides:
        return values
    first = tuple(slice(0, 1) if s == 0 else slice(None) for s in spec.strides)
    return np.array(np.broadcast_to(values[first], spec.shape))


def _random(problem: Problem, slot: int, rng: np.random.Generator) -> Array:
    spec, op = problem.inputs[slot], problem.op
    is_factor = isinstance(op, Conv | MatMul) and slot < 2
    if spec.dtype.is_float:
        scale = 1.0
        if slot == 1 and len(spec.shape) >= 2 and spec.dtype is not FP8E4M3:
            # Weights: keep sums of many products near 1, so that fp16 outputs stay in range. Those
            # of fp8 would lose their mantissa, and their sums stay in range as they are.
            scale = 1.0 / math.sqrt(max(1, spec.size // max(spec.shape)))
        if slot > 1:
            scale = _scale_of_sums(problem, slot)
        values = _normal(spec, rng, scale)
        if slot == 4 and isinstance(op, BatchNormalization):
            return np.abs(values)  # a variance: of a negative one there is no root to compare
        return values
    if spec.dtype.kind == "bool":
        return rng.integers(0, 2, spec.shape).astype(np.bool_)
    if spec.dtype is INT8 and is_factor:
        return rng.integers(-127, 128, spec.shape, np.int8)
    if spec.dtype is UINT8 and is_factor:
        return rng.integers(0, 256, spec.shape, np.uint8)
    high = 8
    if isinstance(op, Gather | GatherElements) and slot == 1:
        high = problem.inputs[0].shape[op.axis]
    return rng.integers(0, max(high, 1), spec.shape).astype(spec.dtype.numpy)


_BYTES_SPREAD = 60.0
"""Standard deviation of results: bytes use their range, and few saturate."""


def _scale_of_sums(problem: Problem, slot: int) -> float:
    """The size of the operand of an epilogue in input ``slot``.

    1, but for what multiplies sums of bytes: there the results are to be of the size of bytes. If
    they all saturated, only their signs would be compared. Where the epilogue goes on to scale what
    it stores as bytes, that is of their size (of two such results the larger), and what is added
    before is as much smaller.
    """
    op, (x, w) = problem.op, problem.inputs[:2]
    if not isinstance(op, Conv | MatMul) or op.epilogue is None or x.dtype not in BYTES:
        return 1.0
    program, register = op.epilogue, slot - epilogue_slot(op) + 1
    steps = list(enumerate(program.instrs, len(program.inputs)))
    factors = [r for r, i in steps if i.opcode == "mul" and set(i.args) == {0, register}]
    terms = [r for r, i in steps if i.opcode in ("add", "sub") and register in i.args]
    if not factors and not terms:
        return 1.0
    gains = _gains(program, (factors or terms)[0])
    stored = [
        gains[result]
        for result, spec in zip(program.outputs, problem.outputs, strict=True)
        if spec.dtype in BYTES and result in gains
    ]
    gain = max(stored, default=1.0)
    if not factors:
        return 1.0 / gain
    length = w.size // w.shape[0] if isinstance(op, Conv) else x.shape[-1]
    # Products of such bytes have a standard deviation of 5400, or 10800.
    spread = (10800 if x.dtype is UINT8 else 5400) * math.sqrt(max(1, length))
    return _BYTES_SPREAD / (spread * gain)


def _gains(program: Program, source: int) -> dict[int, float]:
    """Register -> by which numbers it multiplies ``source``; without those that do not read it."""
    numbers: dict[int, float] = {}
    found = {source: 1.0}
    for register, instr in enumerate(program.instrs, len(program.inputs)):
        if instr.opcode == "const" and isinstance(instr.imm, float):
            numbers[register] = abs(instr.imm)
        read = [found[a] for a in instr.args if a in found]
        if not read or register == source:
            continue
        factor = next((numbers[a] for a in instr.args if a in numbers), 1.0)
        gain = max(read)
        if instr.opcode == "mul":
            gain *= factor
        elif instr.opcode == "div" and instr.args[1] in numbers:
            gain /= factor or 1.0
        found[register] = gain if 0.0 < gain < math.inf else 1.0
    return found


def relative_error(out: Array, ref: Array) -> float:
    """‖out − ref‖ / ‖ref‖ in float64.

    Infinite when a NaN or infinity stands where ref has none, and when the shapes differ.
    """
    if np.shape(out) != np.shape(ref):
        return float("inf")
    if np.size(out) == 0:
        return 0.0
    difference, norm = _norms(np.asarray(out), np.asarray(ref))
    if math.isfinite(difference) and math.isfinite(norm) and norm > 0:
        return difference / norm
    a, b = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return float("inf")
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    norm = float(np.linalg.norm(b[finite]))
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / norm


_CHUNK = 1 << 16
"""Elements that are compared at a time: in float64 they stay in a core's cache."""


def _norms(out: Array, ref: Array) -> tuple[float, float]:
    """‖out − ref‖ and ‖ref‖, without a copy of either in float64; not finite if an element is."""
    same = out.strides == ref.strides and out.dtype == ref.dtype
    order: Literal["K", "C"] = "K" if same else "C"
    a, b = np.ravel(out, order=order), np.ravel(ref, order=order)
    difference = norm = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, a.size, _CHUNK):
            x = a[start : start + _CHUNK].astype(np.float64)
            y = b[start : start + _CHUNK].astype(np.float64)
            x -= y
            difference += float(np.add.reduce(np.square(x, out=x)))
            norm += float(np.add.reduce(np.square(y, out=y)))
    return math.sqrt(difference), math.sqrt(norm)
