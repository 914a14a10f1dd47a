"""Convolution and transposed convolution, with an optional pointwise prologue and epilogue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import BYTES, DType, dtype_from_numpy
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    MANY,
    apply_epilogues,
    array_type,
    check_epilogue,
    check_factors,
    check_prologue,
    check_tf32,
    compute,
    dims,
    finish,
    operand,
    per_axis,
    product_types,
)
from nrt.ir.ops.window import Window, window
from nrt.ir.pointwise import Program

__all__ = ["Conv", "ConvTranspose", "epilogue_slot"]


def epilogue_slot(op: Op) -> int:
    """Input slot of the first operand of an epilogue: behind those of a `Conv`'s prologue.

    Args:
        op: a convolution or a matrix product.
    """
    prologue = op.prologue if isinstance(op, Conv) else None
    return 2 + (len(prologue.inputs) - 1 if prologue is not None else 0)


def _check_operands(op: str, x: TensorType, w: TensorType, groups: int) -> None:
    if x.rank < 3:
        raise ShapeError(
            f"{op}: input {dims(x.shape)} has rank {x.rank}, expected at least 3 (N,C,*S)"
        )
    if w.rank != x.rank:
        raise ShapeError(
            f"{op}: weights {dims(w.shape)} have rank {w.rank}, expected {x.rank} as the input"
        )
    check_factors(op, input=x, weights=w)
    if groups < 1:
        raise ShapeError(f"{op}: groups is {groups}, expected at least 1")


def _check_extras(
    op: str,
    epilogue: Program | None,
    operands: DType,
    shape: tuple[int, ...],
    extras: tuple[TensorType, ...],
    first: int = 2,
    results: int = 1,
) -> None:
    """Without an epilogue there is at most a bias ``[K]``; with one, the epilogue says.

    ``first`` is the slot of the first of ``extras``; ``results`` counts the op's outputs.
    """
    if epilogue is not None:
        check_epilogue(op, epilogue, shape, extras, results=results)
        return
    if len(extras) > 1:
        raise ShapeError(
            f"{op}: got {len(extras) + first} inputs, expected {first} or {first + 1} without an "
            "epilogue"
        )
    for bias in extras:
        if operands in BYTES:
            raise ShapeError(
                f"{op}: a bias beside {operands} operands; add it in an epilogue, whose floats may "
                "scale it"
            )
        if bias.shape != (shape[1],):
            raise ShapeError(
                f"{op}: bias has shape {dims(bias.shape)}, expected {dims(shape[1:2])}"
            )


def _finish(
    op: Conv | ConvTranspose,
    sums: Array,
    x: Array,
    extras: tuple[Array, ...],
    types: tuple[TensorType, ...],
) -> tuple[Array, ...]:
    """Bias or epilogue on the ``sums``, a result for each of ``types``."""
    dtypes = [t.dtype for t in types]
    if op.epilogue is None:
        if extras:
            sums = sums + compute(extras[0]).reshape(-1, *[1] * (sums.ndim - 2))
        return apply_epilogues(None, sums, (), dtypes)
    if dtype_from_numpy(x.dtype) in BYTES:
        sums = sums.astype(np.float32)
    return apply_epilogues(op.epilogue, sums, extras, dtypes)


@dataclass(frozen=True)
class Conv(Op):
    """Cross-correlation of ``x[N, C, *S]`` with ``w[K, C/groups, *R]``, any number of dimensions.

    Inputs are ``x, w`` and an optional ``bias[K]``; with an epilogue ``x, w, *extras``: register 0
    of the program is the accumulator, registers 1 and up are the extras, each of which broadcasts
    against the output ``[N, K, *S']``. x and w share a type, or are uint8 and int8. Sums are
    float32 or better; those of bytes are int32 and exact, and an epilogue, without which they take
    no bias, reads them as float32.

    A prologue computes what is convolved: register 0 of the program is an element of ``x``,
    registers 1 and up are floats per input channel ``[C, 1, ...]`` (or one for all), which stand
    between ``w`` and the extras: ``x, w, *prologue operands, *extras``. It computes in float32 (or
    better) and its result is rounded to the type of ``x``, as if it had been stored. Padding comes
    after it: its zeros stay zeros.

    Attributes:
        strides: one per spatial dimension.
        pads: zeros before each spatial dimension, then after each.
        dilations: one per spatial dimension.
        groups: channels fall into this many independent convolutions.
        epilogue: pointwise program on the accumulator.
        out_dtype: element type of the output; that of ``x`` when None, but int32 for bytes and fp16
            for fp8. Bytes give int32 (without an epilogue), fp16, bf16, fp32, int8 or uint8, and
            fp8 operands fp16, bf16, fp32 or fp8; behind an epilogue, whose scale is the result's,
            either also the other's. int8 and uint8 results are rounded to the nearest
            integer, half to even, and saturate to [-128, 127].
        tf32: fp32 operands may be rounded to tf32 (a mantissa of 10 bits) before products; the
            reference, and kernels that have no use for it, stay exact.
        prologue: pointwise program on the elements of ``x``.
        second_dtype: element type of a second result, of the same shape: the epilogue's second
            output. None, as a rule: the epilogue has one output.
    """

    arity: ClassVar[tuple[int, int]] = (2, MANY)
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    epilogue: Program | None = None
    out_dtype: DType | None = None
    tf32: bool = False
    prologue: Program | None = None
    second_dtype: DType | None = None

    def output_count(self) -> int:
        return 1 if self.second_dtype is None else 2

    def window(self, kernel: tuple[int, ...]) -> Window:
        """The sliding window for weights whose spatial shape is ``kernel``."""
        return window(self.name, kernel, self.strides, self.pads, self.dilations)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        check_tf32(self.name, self.tf32, inputs[0].dtype)
        return self._results(*inputs)

    def _results(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        """`infer` for the reference, which computes tf32 problems in any type."""
        x, w = inputs[:2]
        first = epilogue_slot(self)
        _check_operands(self.name, x, w, self.groups)
        if x.shape[1] != w.shape[1] * self.groups:
            raise ShapeError(
                f"{self.name}: input has {x.shape[1]} channels, weights expect "
                f"{w.shape[1] * self.groups}"
            )
        if w.shape[0] % self.groups:
            raise ShapeError(
                f"{self.name}: {w.shape[0]} output channels do not divide into {self.groups} groups"
            )
        spatial = self.window(w.shape[2:]).output(self.name, x.shape[2:])
        shape = (x.shape[0], w.shape[0], *spatial)
        if self.prologue is not None:
            check_prologue(self.name, self.prologue, x, inputs[2:first])
        _check_extras(
            self.name, self.epilogue, x.dtype, shape, inputs[first:], first, self.output_count()
        )
        dtypes = product_types(self.name, x.dtype, self.out_dtype, self.second_dtype, self.epilogue)
        return tuple(TensorType(shape, dtype) for dtype in dtypes)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        types = self._results(*(array_type(i) for i in inputs))
        shape = types[0].shape
        first = epilogue_slot(self)
        x, w = inputs[:2]
        if self.prologue is not None:
            (result,) = self.prologue.evaluate(compute(x), *(compute(i) for i in inputs[2:first]))
            x = finish(np.broadcast_to(result, x.shape), dtype_from_numpy(x.dtype))
        left, right = operand(x), operand(w)
        win = self.window(w.shape[2:])
        padded = win.padded(left, shape[2:], 0)
        if w.shape[1] == 1 and self.groups > 1:
            result = _depthwise(padded, right, win, shape)
        else:
            result = _im2col(padded, right, win, shape, self.groups)
        return _finish(self, result, x, inputs[first:], types)


@dataclass(frozen=True)
class ConvTranspose(Op):
    """Transposed convolution of ``x[N, C, *S]`` with ``w[C, K/groups, *R]``.

    Inputs and epilogue as for `Conv`. Output size: ``stride * (size - 1) + output_padding +
    dilation * (kernel - 1) + 1 - pads``.

    Attributes:
        strides: one per spatial dimension.
        pads: elements cut from the start of each spatial dimension of the output, then the end.
        dilations: one per spatial dimension.
        groups: channels fall into this many independent convolutions.
        output_padding: zeros of the sum added after each dimension before cutting.
        epilogue: pointwise program on the accumulator.
        out_dtype: element type of the output; as for `Conv`.
        second_dtype: element type of a second result; as for `Conv`.
    """

    arity: ClassVar[tuple[int, int]] = (2, MANY)
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, ...] = (0, 0)
    epilogue: Program | None = None
    out_dtype: DType | None = None
    second_dtype: DType | None = None

    def output_count(self) -> int:
        return 1 if self.second_dtype is None else 2

    def window(self, kernel: tuple[int, ...]) -> Window:
        """The sliding window for weights whose spatial shape is ``kernel``."""
        return window(self.name, kernel, self.strides, self.pads, self.dilations)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, w, *extras = inputs
        _check_operands(self.name, x, w, self.groups)
        if x.shape[1] != w.shape[0]:
            raise ShapeError(
                f"{self.name}: input has {x.shape[1]} channels, weights expect {w.shape[0]}"
            )
        if x.shape[1] % self.groups:
            raise ShapeError(
                f"{self.name}: {x.shape[1]} channels do not divide into {self.groups} groups"
            )
        win = self.window(w.shape[2:])
        output_padding = per_axis(self.name, "output_padding", self.output_padding, win.rank)
        spatial = []
        for axis, size in enumerate(x.shape[2:]):
            full = win.strides[axis] * (size - 1) + win.extents[axis] + output_padding[axis]
            length = full - win.begins[axis] - win.ends[axis]
            if length < 1:
                raise ShapeError(
                    f"{self.name}: pads cut {win.begins[axis] + win.ends[axis]} of {full} elements "
                    f"in spatial dimension {axis}, expected fewer"
                )
            spatial.append(length)
        shape = (x.shape[0], w.shape[1] * self.groups, *spatial)
        _check_extras(
            self.name, self.epilogue, x.dtype, shape, tuple(extras), results=self.output_count()
        )
        dtypes = product_types(self.name, x.dtype, self.out_dtype, self.second_dtype, self.epilogue)
        return tuple(TensorType(shape, dtype) for dtype in dtypes)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        types = self.infer(*(array_type(i) for i in inputs))
        shape = types[0].shape
        x, w, *extras = inputs
        left, right = operand(x), operand(w)
        win = self.window(w.shape[2:])
        # Every input element adds a scaled kernel to the full output, of which pads cut the edges.
        batch, channels, *spatial = x.shape
        pixels = math.prod(spatial)
        taps = right.reshape(self.groups, channels // self.groups, -1).swapaxes(1, 2)
        columns = taps @ left.reshape(batch, self.groups, channels // self.groups, pixels)
        columns = columns.reshape(batch, shape[1], *win.kernel, *spatial)
        low = win.begins
        full = [n + a + b for n, a, b in zip(shape[2:], low, win.ends, strict=True)]
        total = np.zeros((*shape[:2], *full), columns.dtype)
        for position, cut in win.slices(tuple(spatial)):
            source: tuple[Any, ...] = (slice(None), slice(None), *position)
            total[cut] += columns[source]
        kept = [slice(a, a + n) for n, a in zip(shape[2:], low, strict=True)]
        trimmed = total[(slice(None), slice(None), *kept)]
        return _finish(self, trimmed, x, tuple(extras), types)


def _im2col(padded: Array, w: Array, win: Window, shape: tuple[int, ...], groups: int) -> Array:
    """One matrix product per image and group over unrolled windows (Chellapilla et al. 2006)."""
    result: Array = np.empty(shape, padded.dtype)
    taps = w.reshape(groups, w.shape[0] // groups, -1)
    views = win.view(padded, shape[2:])
    for image, view in enumerate(views):
        # Image by image: the unrolled input is as large as the kernel times the input.
        columns = view.reshape(groups, taps.shape[2], math.prod(shape[2:]))
        result[image] = (taps @ columns).reshape(shape[1:])
    return result


def _depthwise(padded: Array, w: Array, win: Window, shape: tuple[int, ...]) -> Array:
    """One input channel per output: a sum over kernel positions, for all channels at once."""
    result: Array = np.zeros(shape, padded.dtype)
    repeats = w.shape[0] // padded.shape[1]
    if repeats > 1:
        padded = np.repeat(padded, repeats, axis=1)
    for position, cut in win.slices(shape[2:]):
        source: tuple[Any, ...] = (slice(None), 0, *position)
        taps = w[source].reshape(-1, *[1] * win.rank)
        result += padded[cut] * taps
    return result
