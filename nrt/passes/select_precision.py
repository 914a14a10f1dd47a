"""select-precision: each layer computes in the fastest type that is permitted to it.

    y = f(x)   becomes   y = cast(f16(cast(x)))

::

    before   %a: fp32 = Conv(%x, %w)            %y: fp32 = Softmax(%a)
    after    %p: fp16 = Reformat(%x; fp16)      %a: fp16 = Conv(%p, %w')
             %q: fp16 = Softmax(%a)             %y: fp32 = Reformat(%q; fp32)

The graph's own inputs and outputs keep their type. Weights become constants of the layer's type; a
layer whose weights that type cannot hold stays in fp32. Accumulators, epilogues and pointwise
programs compute in fp32 whatever is stored, so epilogue extras and small constants need no cast at
all. With tf32, convolutions and matrix products that stay in fp32 may round their operands to it:
their flag ``tf32`` says so. What is quantized stays so: products of fp8 and int8 keep their
operands, whoever else reads or stores fp8 does, and floats that they store have the type of others.

A mask is often added as a number near the lowest fp32, which fp16 would store as -∞, and a row of
-∞ is a row of NaN after Softmax. A program that holds such a number, or reads it, saturates its
result instead.

A layer that would store or read as fp16 what went beyond `FP16_LIMIT` in calibration stays in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, FP64, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import (
    AveragePool,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Elementwise,
    Expand,
    Gather,
    GatherElements,
    Identity,
    MatMul,
    Pad,
    Pointwise,
    PooledConv,
    PooledMatMul,
    Reformat,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, Pass, PassResult
from nrt.passes.fusion import own_program
from nrt.passes.precision_rules import FP16_LIMIT, REAL, STORAGE, Assignment, LayerRules
from nrt.quantization.calibration import Calibration

__all__ = ["MOVES", "SelectPrecision"]

MOVES: tuple[type[Op], ...] = (
    Concat,
    Dropout,
    Expand,
    Gather,
    GatherElements,
    Identity,
    Pad,
    Reformat,
    Reshape,
    Slice,
    Split,
    Transpose,
)
"""Ops that keep the type of their data."""

_ANCHORS = (Conv, ConvTranspose, MatMul, PooledConv, PooledMatMul)
_LIMITS = {FP16: 65504.0, BF16: 3.3895e38}
"""Largest finite value of the narrow types."""


def _beyond(array: Array | None, dtype: DType) -> bool:
    """Whether a finite element of ``array`` would be infinite as ``dtype``."""
    if array is None or dtype not in _LIMITS or array.size == 0 or array.dtype == dtype.numpy:
        return False
    largest = max(abs(float(array.min())), abs(float(array.max())))
    if not np.isfinite(largest):  # infinities and NaN stay what they are
        finite = array[np.isfinite(array.astype(np.float64))]
        largest = max(abs(float(finite.min())), abs(float(finite.max()))) if finite.size else 0.0
    return largest > _LIMITS[dtype]


def _is_small(value: Value) -> bool:
    """A scalar or a vector along one dimension."""
    return sum(d != 1 for d in value.shape) <= 1


def _saturated(program: Program, dtype: DType) -> Program:
    b = Builder(program.inputs)
    results = b.inline(program, range(len(program.inputs)))
    low, high = b.const(-_LIMITS[dtype]), b.const(_LIMITS[dtype])
    return b.build(*(b("min", b("max", result, low), high) for result in results))


def _is_capped(program: Program, dtype: DType) -> bool:
    """Whether `_saturated` was applied already."""
    index = program.outputs[0] - len(program.inputs)
    if index < 0 or program.instrs[index].opcode != "min":
        return False
    limit = program.instrs[index].args[1] - len(program.inputs)
    return limit >= 0 and program.instrs[limit].imm == _LIMITS[dtype]


def _holds_beyond(program: Program, dtype: DType) -> bool:
    numbers = [i.imm for i in program.instrs if isinstance(i.imm, float)]
    return _beyond(np.asarray(numbers, np.float64), dtype)


@dataclass(frozen=True)
class SelectPrecision(Pass):
    """See the module.

    Attributes:
        permitted: names of the types that layers may compute in: ``fp32``, ``tf32``, ``fp16``,
            ``bf16``.
        layers: name pattern (as of `fnmatch`) -> the one type for the layers that it matches, by
            their own name or that of a node of the model behind them; the first match counts.
        assignment: precisions of what no pattern matches; None: the fastest for all.
        calibration: what is known of the activations; None: nothing.

    Raises:
        BuildError: a type is unknown or not permitted, a pattern matches nothing, or a layer has
            weights or activations beyond the range of every permitted type.
    """

    name: ClassVar[str] = "select-precision"
    permitted: frozenset[str] = frozenset({"fp32"})
    layers: Mapping[str, str] = field(default_factory=dict)
    assignment: Assignment | None = None
    calibration: Calibration | None = None

    def run(self, graph: Graph) -> PassResult:
        rules = LayerRules.checked(self.permitted, self.layers, graph, self.assignment)
        rewriter = _Rewriter(self, graph, rules)
        return rewriter.run()

    def required(self) -> str:
        if self.permitted == {"fp32"} and not self.layers:
            return ""
        return f"precision {', '.join(sorted(self.permitted))} is what it makes of the model's own"

    def overflow(self, node: Node) -> str | None:
        """Why ``node`` cannot have its activations as fp16, as calibration saw them, or None."""
        if self.calibration is None:
            return None
        slots = 0 if isinstance(node.op, Elementwise) else 2 if isinstance(node.op, _ANCHORS) else 1
        for value in (*node.inputs[:slots], *node.outputs):
            if value.dtype.is_float and self.amax(value) > FP16_LIMIT:
                return (
                    f"fp32: '{value.name.removesuffix(REAL)}' reached {self.amax(value):.4g} in "
                    f"calibration, fp16 is trusted up to {FP16_LIMIT:g}"
                )
        return None

    def amax(self, value: Value) -> float:
        """The largest magnitude that calibration saw in ``value``; 0 where nothing is known."""
        known = self.calibration
        found = None if known is None else known.get(value.name.removesuffix(REAL))
        return 0.0 if found is None else found.amax


class _Rewriter:
    """One run of the pass: what was cast so far, and what may be out of range."""

    def __init__(self, owner: SelectPrecision, graph: Graph, rules: LayerRules) -> None:
        self.owner = owner
        self.graph = graph
        self.rules = rules
        self.casts: dict[tuple[Value, DType], Value] = {}
        self.wide: set[Value] = set()
        self.notes: list[Note] = []
        self.changed = False

    def run(self) -> PassResult:
        outputs = {name: value.dtype for name, value in self.graph.outputs.items()}
        for value in self.graph.constants:
            if value.dtype.is_float and _beyond(value.constant, FP16):
                self.wide.add(value)
        for node in self.graph.nodes:
            self.visit(node)
        for name, dtype in outputs.items():
            value = self.graph.outputs[name]
            if value.dtype is not dtype:
                self.graph.set_output(name, self.cast(value, dtype))
        return PassResult(self.graph, self.changed, tuple(self.notes))

    def visit(self, node: Node) -> None:
        values = (*node.inputs, *node.outputs)
        if not any(v.dtype.is_float for v in values):
            return
        if any(v.dtype is FP64 for v in values):
            self.notes.append(self.owner.refused(node, "fp64: the model asks for it"))
            self.graph.reinfer(node)
            return
        precision, reason = self.rules.of(node)
        forced = self.rules.pattern(node) is not None
        dtype = STORAGE[precision]
        if dtype is FP16 and not forced and not isinstance(node.op, MOVES):
            loud = self.owner.overflow(node)
            if loud is not None:
                self.rules.require_fp32(node, node.outputs[0].name, precision)
                precision, dtype, reason = "fp32", FP32, loud
        if isinstance(node.op, MOVES):
            self.visit_move(node, dtype if forced else None)
        elif isinstance(node.op, Elementwise):
            self.visit_elementwise(node, precision, dtype, reason)
        else:
            self.visit_compute(node, precision, dtype, reason)

    def visit_move(self, node: Node, forced: DType | None) -> None:
        """Moves keep their data's type: casting is for those that compute."""
        count = len(node.inputs) if isinstance(node.op, Concat) else 1
        data = [v for v in node.inputs[:count] if v.dtype.is_float]
        if isinstance(node.op, Reformat) or not data:
            return
        if any(v.dtype is FP8E4M3 for v in data):
            self.graph.reinfer(node)
            return
        dtype = forced
        if dtype is None:
            found = [v.dtype for v in data if not v.is_constant] or [
                STORAGE[self.rules.of(node)[0]]
            ]
            dtype = min(found, key=lambda d: d.itemsize)
            loud = dtype is FP16 and any(self.owner.amax(v) > FP16_LIMIT for v in data)
            if loud or any(_beyond(v.constant, dtype) for v in data):
                dtype = FP32
        for slot in range(count):
            self.feed(node, slot, dtype)
        self.graph.reinfer(node)
        if any(v in self.wide for v in node.inputs):
            self.wide.update(node.outputs)

    def visit_compute(self, node: Node, precision: str, dtype: DType, reason: str) -> None:
        slots = (0, 1) if isinstance(node.op, _ANCHORS) else (0,)
        if node.op.precisions is not None:
            self.visit_registered(node, precision, reason)
            return
        quantized = node.inputs[0].dtype
        sums = slots == (0, 1) or isinstance(node.op, AveragePool)
        if quantized is FP8E4M3 or (sums and quantized in BYTES):
            self.visit_quantized(node, dtype)
            return
        if not node.inputs[0].dtype.is_float:
            return
        tf32 = precision == "tf32"
        for slot in slots:
            if _beyond(node.inputs[slot].constant, dtype):
                self.rules.require_fp32(node, node.inputs[slot].name, precision)
                reason = (
                    f"fp32: weights '{node.inputs[slot].name}' go beyond the range of {precision}"
                )
                dtype, tf32 = FP32, "tf32" in self.rules.permitted
                break
        for slot in slots:
            self.feed(node, slot, dtype)
        op: Any = node.op
        second = getattr(op, "second_dtype", None)
        if second is not None and self.narrows(node.outputs[1], dtype):
            op = replace(op, second_dtype=dtype)
            node = self.replace(node, op)
        if isinstance(op, Conv | MatMul | PooledConv) and op.tf32 != tf32:
            op = replace(op, tf32=tf32)
            node = self.replace(node, op)
        if isinstance(op, Conv) and op.prologue is not None:
            operands = node.inputs[2 : epilogue_slot(op)]
            if self.beyond([op.prologue], operands, dtype):
                op = replace(op, prologue=_saturated(op.prologue, dtype))
                node = self.replace(node, op)
                reason += "; its prologue saturates: it holds a number beyond the range"
        first = epilogue_slot(op) if isinstance(op, _ANCHORS) else len(slots)
        saturated = self.saturated(node, first, dtype)
        if saturated is not None:
            node = self.replace(node, replace(op, epilogue=saturated))
            reason += "; its epilogue saturates: it holds a number beyond the range"
        self.graph.reinfer(node)
        self.say(node, reason, dtype)

    def visit_quantized(self, node: Node, dtype: DType) -> None:
        """What reads bytes or fp8 goes on to; a result in floats has the type of the others."""
        op: Any = node.op
        stored = {
            name: dtype
            for name, value in zip(("out_dtype", "second_dtype"), node.outputs, strict=False)
            if self.narrows(value, dtype)
        }
        if stored:
            node = self.replace(node, replace(op, **stored))
        self.graph.reinfer(node)
        name = "fp8" if node.inputs[0].dtype is FP8E4M3 else "int8"
        results = " and ".join(str(value.dtype) for value in node.outputs)
        self.notes.append(self.owner.fired(node, f"{name}: stores {results}"))

    def narrows(self, value: Value, dtype: DType) -> bool:
        """Whether ``value``, whose type its op names, is to be stored as ``dtype`` instead."""
        floats = value.dtype.is_float and value.dtype is not FP8E4M3
        return floats and value.dtype is not dtype and not self.graph.is_output(value)

    def saturated(self, node: Node, first: int, dtype: DType) -> Program | None:
        """The epilogue that the result needs to stay within ``dtype``, if it needs another one.

        Inputs from ``first`` on are operands of the node's programs.
        """
        op: Any = node.op
        # What a convolution's prologue makes is stored too, and saturates by itself.
        names = ("epilogue",) if isinstance(op, _ANCHORS) else ("prologue", "epilogue")
        programs = [p for name in names if (p := getattr(op, name, None)) is not None]
        if not programs or not self.beyond(programs, node.inputs[first:], dtype):
            return None
        program = getattr(op, "epilogue", None) or identity()
        return None if _is_capped(program, dtype) else _saturated(program, dtype)

    def beyond(self, programs: Sequence[Program], operands: Sequence[Value], dtype: DType) -> bool:
        """Whether uncapped ``programs`` hold or read a number that ``dtype`` has not."""
        if dtype not in _LIMITS or all(_is_capped(p, dtype) for p in programs):
            return False
        return any(v in self.wide for v in operands) or any(
            _holds_beyond(p, dtype) for p in programs
        )

    def visit_registered(self, node: Node, precision: str, reason: str) -> None:
        """An op of a user's own takes all its floats in one type, of those that it says."""
        able = node.op.precisions or ()
        if precision not in able:
            reason = f"fp32: {node.op.name} computes in {', '.join(able)}"
        dtype = STORAGE[precision] if precision in able else FP32
        for value in node.inputs:
            if value.dtype.is_float and _beyond(value.constant, dtype):
                self.rules.require_fp32(node, value.name, precision)
                reason = f"fp32: '{value.name}' goes beyond the range of {precision}"
                dtype = FP32
        for slot in range(len(node.inputs)):
            self.feed(node, slot, dtype)
        self.graph.reinfer(node)
        self.say(node, reason, dtype)

    def visit_elementwise(self, node: Node, precision: str, dtype: DType, reason: str) -> None:
        op: Any = node.op
        data = [v for v in node.inputs if not v.is_constant]
        if not any(v.dtype.is_float for v in node.inputs) and any(
            v.dtype not in BYTES for v in data
        ):
            # Counts and positions are exact in fp32 up to 2^24, in fp16 only to 2048.
            if node.output.dtype.is_float and _holds_beyond(own_program(node), FP16):
                self.wide.add(node.output)
            self.notes.append(self.owner.refused(node, f"{node.output.dtype}: made of integers"))
            return
        program = own_program(node)
        for slot, value in enumerate(node.inputs):
            big = value.is_constant and value.dtype.is_float and not _is_small(value)
            if big and not _beyond(value.constant, dtype):
                self.feed(node, slot, dtype)
        result = node.output.dtype
        if result.is_float and result is not FP8E4M3:
            result = dtype
        if result in _LIMITS and not _is_capped(program, result):
            wide = any(v in self.wide for v in node.inputs)
            if wide or _holds_beyond(program, result):
                program = _saturated(program, result)
                reason += "; saturates: it holds a number beyond the range"
        dtypes = [v.dtype for v in node.inputs]
        mixed = len({d for d in dtypes if d.is_float}) > 1 and not isinstance(op, Pointwise)
        if program == own_program(node) and not mixed and op.result_dtype(*dtypes) is result:
            self.graph.reinfer(node)
        else:
            node = self.replace(node, Pointwise(program, result))
        self.say(node, reason, dtype)

    def replace(self, node: Node, op: Op) -> Node:
        self.changed = True
        return self.graph.replace_node(node, op, node.inputs)

    def feed(self, node: Node, slot: int, dtype: DType) -> None:
        """Let input ``slot`` read its value as ``dtype``."""
        value = node.inputs[slot]
        if value.dtype.is_float and value.dtype is not dtype:
            self.graph.replace_input(node, slot, self.cast(value, dtype))
            self.changed = True

    def cast(self, value: Value, dtype: DType) -> Value:
        """``value`` as ``dtype``: a constant, or one Reformat for all who need it."""
        key = (value, dtype)
        if key not in self.casts:
            name = f"{value.name}.{dtype}"
            if value.constant is not None:
                array = value.constant.astype(dtype.numpy)
                self.casts[key] = self.graph.add_constant(name, array, value.layout)
            else:
                origin = value.producer.origin if value.producer is not None else ()
                node = self.graph.add_node(Reformat(dtype), [value], name=name, origin=origin)
                self.graph.set_layout(node.output, value.layout)
                self.casts[key] = node.output
            self.changed = True
        return self.casts[key]

    def say(self, node: Node, reason: str, dtype: DType) -> None:
        slow = dtype is FP32 and self.rules.fastest not in ("fp32", "tf32")
        note = self.owner.refused if slow else self.owner.fired
        self.notes.append(note(node, reason))
