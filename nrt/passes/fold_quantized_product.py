"""Products of dequantized operands as products of int8 or fp8.

    conv(s · (q - z), t · p) + b  =  s · t · conv(q, p) + (b - s · t · z · Σ p)

The scale t of the weights p, like the bias b, may be one per output channel. Sums of int8 are int32
and exact, those of fp8 fp32; scales, bias and the correction for a zero point, which fp8 has not,
are the first steps of the epilogue. Kernels pad with 0, which stands for -s · z: where z is not 0,
a Pad puts z around q before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nrt.dtypes import BYTES, FP8E4M3, INT8, UINT8
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Conv, ConvTranspose, Dequantize, MatMul, Pad
from nrt.ir.ops.common import kind_of
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, Program, identity
from nrt.ir.value import Node, Value
from nrt.passes.grid import Grid, grid_of
from nrt.passes.image_layer import is_image_layer
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule

__all__ = [
    "LEAST_CHANNELS",
    "ConvOfIntegers",
    "IntegersIntoEpilogue",
    "MatMulOfIntegers",
    "dense_channels",
    "is_first",
]

LEAST_CHANNELS = 16
"""Bytes of one load of a tensor core: runs of input channels are multiples of it."""

_HALF = LEAST_CHANNELS // 2


def dense_channels(channels: int, groups: int, precision: str = "int8") -> str | None:
    """Why no kernel of ``precision``, int8 or fp8, reads ``channels`` per group, or None.

    Depthwise layers of int8 have kernels of their own, which read four neighbouring groups and up,
    and without groups int8 is read in halves of a load.
    """
    step = LEAST_CHANNELS
    if precision == "int8":
        if channels == 1 and groups > 1 and groups % 4 == 0:
            return None
        if groups == 1:
            step = _HALF
    if channels % step == 0:
        return None
    here = f"a group has {channels}" if groups > 1 else f"it has {channels}"
    return f"{precision} kernels read input channels in runs of {step}, {here}"


def _operands(op: type[Any] | tuple[type[Any], ...]) -> Pat:
    return Pat(
        op,
        Pat(Dequantize, Rest("x"), name="x"),
        Pat(Dequantize, Rest("w"), name="w"),
        Rest("others"),
    )


def _grids(match: Match, no_fp8: str = "") -> tuple[Grid, Grid] | str:
    """Those of both operands, or why they are not both of int8 or both of fp8.

    ``no_fp8`` says why not the latter.
    """
    found = []
    for name, label in (("x", "input"), ("w", "weights")):
        grid = grid_of(match.nodes[name])
        if grid is None:
            return f"the scale of its {label} is computed at run time"
        able = (INT8, FP8E4M3) if name == "w" else (INT8, UINT8, FP8E4M3)
        if grid.dtype not in able:
            return f"its {label} are {grid.dtype}, kernels multiply int8 or fp8"
        found.append(grid)
    x, w = found
    if x.dtype is not w.dtype and (x.dtype, w.dtype) != (UINT8, INT8):
        return f"its input is {x.dtype}, its weights are {w.dtype}: kernels multiply equal types"
    if x.dtype is FP8E4M3 and no_fp8:
        return f"its operands are fp8: {no_fp8}"
    if not x.is_uniform:
        return "its input has a scale per channel, which the sums mix"
    if not w.is_symmetric:
        return "its weights have a zero point other than 0"
    return x, w


def _precision(grid: Grid) -> str:
    return "fp8" if grid.dtype is FP8E4M3 else str(grid.dtype)


def bias_of(value: Value) -> Array | None:
    """The data of a bias: of a constant, or of the integers of one."""
    if value.constant is not None:
        return value.constant
    node = value.producer
    if node is None or not isinstance(node.op, Dequantize):
        return None
    arrays = [v.constant for v in node.inputs]
    if any(a is None for a in arrays):
        return None
    return node.op.reference(*(a for a in arrays if a is not None))[0]


def _folded(
    graph: Graph,
    node: Node,
    op: Any,
    operands: tuple[Value, Value],
    factor: Array,
    shift: Array | None,
    others: Sequence[Value],
) -> None:
    """Put a product of integers in the place of ``node``.

    Args:
        graph: of the node.
        node: the product of dequantized operands.
        op: what multiplies the integers, with the node's own epilogue.
        operands: the integers.
        factor: fp32, of the sums; one element or one per channel, in a shape that broadcasts.
        shift: what is added then, likewise; None for nothing.
        others: operands of the node's own epilogue.
    """
    own: Program = op.epilogue or identity()
    vectors = [(a, label) for a, label in ((factor, "scale"), (shift, "bias")) if a is not None]
    extras = [(a, label) for a, label in vectors if a.size > 1]
    b = Builder(["f", *"f" * len(extras), *own.inputs[1:]])
    register = {label: 1 + slot for slot, (_, label) in enumerate(extras)}
    for array, label in vectors:
        if label not in register:
            register[label] = b.const(float(array.reshape(-1)[0]))
    value = b("mul", 0, register["scale"])
    if shift is not None:
        value = b("add", value, register["bias"])
    first = 1 + len(extras)
    (result,) = b.inline(own, [value, *range(first, first + len(own.inputs) - 1)])
    inputs = [
        *operands,
        *(graph.add_constant(f"{node.name}.{label}", array) for array, label in extras),
        *others,
    ]
    new = replace(op, epilogue=b.build(result), out_dtype=node.output.dtype, tf32=False)
    graph.replace_node(node, new, inputs)


def is_first(node: Node) -> bool:
    """Whether a convolution reads so few channels as the first of a network does."""
    op: Any = node.op
    channels = node.inputs[1].shape[1]
    return op.groups == 1 and channels < LEAST_CHANNELS and channels != _HALF


def _surrounded(graph: Graph, match: Match, zero: int, *, fills: bool) -> tuple[Value, Value, Conv]:
    """Image, weights and convolution with what kernels cannot put around an image put there.

    That is a zero point other than 0, where the convolution pads, and, where ``fills`` says so,
    channels that are missing up to `LEAST_CHANNELS`, for which the weights are 0.
    """
    node, image, weights = match.root, match.nodes["x"].inputs[0], match.nodes["w"].inputs[0]
    op: Any = node.op
    rank = len(image.shape)
    begins, ends = [0] * rank, [0] * rank
    if zero and any(op.pads):
        half = len(op.pads) // 2
        begins[2:], ends[2:] = op.pads[:half], op.pads[half:]
        op = replace(op, pads=(0,) * len(op.pads))
    if fills and is_first(node):
        assert weights.constant is not None
        ends[1] = LEAST_CHANNELS - weights.shape[1]
        after = [(0, ends[1] if axis == 1 else 0) for axis in range(rank)]
        weights = graph.add_constant(weights.name, np.pad(weights.constant, after))
    if any((*begins, *ends)):
        pad = Pad((*begins, *ends), value=float(zero))
        image = graph.add_node(pad, [image], name=f"{image.name}.pad", origin=node.origin).output
    return image, weights, op


class ConvOfIntegers(Rule):
    """See the module; the bias may be the sum of integers that quantization tools write.

    The first layer of a network, which reads three channels or so, is given channels of zeros where
    no kernel reads them as they are. ``few_channels`` says that the target has one, for bytes.
    """

    pattern = _operands((Conv, ConvTranspose))

    def __init__(self, no_fp8: str = "", few_channels: bool = True) -> None:
        self.no_fp8 = no_fp8
        self.few_channels = few_channels

    def check(self, graph: Graph, match: Match) -> str | None:
        op: Any = match.root.op
        if isinstance(op, ConvTranspose):
            return "no kernel transposes a convolution of int8 or fp8"
        if op.prologue is not None:
            return "its input has a prologue, which computes floats"
        grids = _grids(match, self.no_fp8)
        if isinstance(grids, str):
            return grids
        weights = match.nodes["w"].inputs[0]
        if not weights.is_constant:
            return "its weights are computed at run time"
        refusal = dense_channels(weights.shape[1], op.groups, _precision(grids[1]))
        if refusal is not None and not is_first(match.root):
            return refusal
        if grids[1].scales(weights.shape, 0) is None:
            return "its weights have scales along another dimension than that of output channels"
        if op.epilogue is None and any(bias_of(v) is None for v in match.rest["others"]):
            return "its bias is computed at run time"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        grids = _grids(match)
        assert not isinstance(grids, str)
        x, w = grids
        op: Any = match.root.op
        weights = match.nodes["w"].inputs[0]
        scales = w.scales(weights.shape, 0)
        assert scales is not None
        assert weights.constant is not None
        factor = x.scale.reshape(()).astype(np.float64) * scales.astype(np.float64)
        shift: Array | None = None
        others: tuple[Value, ...] = match.rest["others"]
        if op.epilogue is None and others:
            bias = bias_of(others[0])
            assert bias is not None
            shift, others = bias.astype(np.float64), ()
        if not x.is_symmetric:
            sums = weights.constant.astype(np.float64).reshape(weights.shape[0], -1).sum(axis=1)
            shift = (0 if shift is None else shift) - factor * float(x.zero.reshape(())) * sums
        column = (-1, *[1] * (len(weights.shape) - 2))
        as_is = self.few_channels and x.dtype in BYTES and is_image_layer(op, weights.shape)
        image, weights, plain = _surrounded(graph, match, int(x.zero.reshape(())), fills=not as_is)
        _folded(
            graph,
            match.root,
            plain,
            (image, weights),
            factor.astype(np.float32).reshape(column),
            None if shift is None else shift.astype(np.float32).reshape(column),
            others,
        )
        return f"multiplies {_precision(x)}"


class MatMulOfIntegers(Rule):
    """The same for a product of matrices, whose right operand need not be a constant."""

    pattern = _operands(MatMul)

    def __init__(self, no_fp8: str = "") -> None:
        self.no_fp8 = no_fp8

    def check(self, graph: Graph, match: Match) -> str | None:
        grids = _grids(match, self.no_fp8)
        if isinstance(grids, str):
            return grids
        a, b = (match.nodes[name].inputs[0] for name in ("x", "w"))
        if len(a.shape) < 2 or len(b.shape) < 2:
            return "one of its operands is a vector"
        x, w = grids
        if x.dtype is FP8E4M3 and (reason := self._sparse_fp8(match, a, b)):
            return reason
        if w.scales(b.shape, self._axis(match)) is None:
            return "its right operand has scales along another dimension than that of the columns"
        if not x.is_symmetric and b.constant is None:
            return "its left operand has a zero point, and the right one is computed at run time"
        return None

    @staticmethod
    def _sparse_fp8(match: Match, a: Value, b: Value) -> str | None:
        """Why tensor cores, without which it does not pay, do not multiply these fp8."""
        if b.constant is None or len(b.shape) != 2 or match.root.op.attributes()["trans_a"]:
            return "its operands are fp8, which kernels multiply by a constant matrix"
        if a.shape[-1] % LEAST_CHANNELS:
            return f"fp8 kernels read rows in runs of {LEAST_CHANNELS}, these have {a.shape[-1]}"
        return None

    @staticmethod
    def _axis(match: Match) -> int:
        return -2 if match.root.op.attributes()["trans_b"] else -1

    def rewrite(self, graph: Graph, match: Match) -> str:
        grids = _grids(match)
        assert not isinstance(grids, str)
        x, w = grids
        a, b = (match.nodes[name].inputs[0] for name in ("x", "w"))
        axis = self._axis(match)
        scales = w.scales(b.shape, axis)
        assert scales is not None
        factor = x.scale.reshape(()).astype(np.float64) * scales.astype(np.float64)
        shift: Array | None = None
        if not x.is_symmetric:
            assert b.constant is not None
            sums = b.constant.astype(np.float64).sum(axis=-3 - axis)
            shift = -factor * float(x.zero.reshape(())) * sums
            # A batch of right operands has sums of its own: a row for each.
            shift = shift.astype(np.float32)[..., None, :] if shift.ndim > 1 else shift
        _folded(
            graph,
            match.root,
            match.root.op,
            (a, b),
            factor.astype(np.float32),
            None if shift is None else shift.astype(np.float32),
            match.rest["others"],
        )
        return f"multiplies {_precision(x)}"


def _has_residual(node: Node) -> bool:
    """Whether an epilogue reads something dequantized."""
    op: Any = node.op
    extras = node.inputs[epilogue_slot(op) :] if op.epilogue is not None else ()
    return any(v.producer is not None and isinstance(v.producer.op, Dequantize) for v in extras)


class IntegersIntoEpilogue(Rule):
    """A residual that an epilogue reads as floats it reads as it is stored, and scales it."""

    pattern = Pat(
        (Conv, ConvTranspose, MatMul),
        Anywhere(Pat(Dequantize, Rest("q"), name="inner")),
        where=_has_residual,
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        node, inner = match.root, match.nodes["inner"]
        op: Any = node.op
        if inner.output in node.inputs[: epilogue_slot(op)]:
            return f"{inner} is no operand of its epilogue alone"
        grid = grid_of(inner)
        if grid is None or not grid.is_uniform:
            return f"{inner} has a scale that differs along a dimension, or is computed"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, inner = match.root, match.nodes["inner"]
        op: Any = node.op
        grid = grid_of(inner)
        assert grid is not None
        first = epilogue_slot(op)
        own: Program = op.epilogue
        slots = [i for i, v in enumerate(node.inputs[first:], 1) if v is inner.output]
        stored = kind_of(grid.dtype)
        b = Builder([stored if i in slots else kind for i, kind in enumerate(own.inputs)])
        registers = list(range(len(own.inputs)))
        for slot in slots:
            value = b("to_f", slot) if stored == "i" else slot
            if not grid.is_symmetric:
                value = b("sub", value, b.const(float(grid.zero.reshape(-1)[0])))
            registers[slot] = b("mul", value, b.const(float(grid.scale.reshape(-1)[0])))
        program = b.build(*b.inline(own, registers))
        inputs = [inner.inputs[0] if v is inner.output else v for v in node.inputs]
        graph.replace_node(node, replace(op, epilogue=program), inputs)
        return f"its epilogue reads what {inner} reads"
