"""Converters of ops that move data: reshape, slice, split, pad, gather and their relatives."""

from __future__ import annotations

import math

import numpy as np

from nrt.errors import ImportModelError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.value import Value

__all__ = [
    "concat",
    "depth_to_space",
    "expand",
    "flatten",
    "gather",
    "gather_elements",
    "identity",
    "pad",
    "reshape",
    "slice_",
    "space_to_depth",
    "split",
    "squeeze",
    "tile",
    "transpose",
    "trilu",
    "unsqueeze",
]


def identity(n: NodeContext) -> Value:
    """Identity; of a constant it is the constant, so that shared weights stay one array."""
    x = n.input(0)
    return x if x.is_constant else n.emit(ops.Identity(), x)


def reshape(n: NodeContext) -> Value:
    """Reshape: 0 copies a dimension (unless ``allowzero``), -1 takes what is left."""
    x = n.input(0)
    wanted = list(n.numbers(1, "shape"))
    if not n.attr_int("allowzero", 0):
        for index, dim in enumerate(wanted):
            if dim == 0:
                if index >= len(x.shape):
                    raise ImportModelError(
                        f"{n}: shape {wanted} copies dimension {index} of an input of shape "
                        f"{list(x.shape)}"
                    )
                wanted[index] = x.shape[index]
    if wanted.count(-1) > 1 or any(d < -1 for d in wanted):
        raise ImportModelError(f"{n}: shape {wanted} is not a shape with at most one -1")
    if -1 in wanted:
        known = -math.prod(wanted)
        total = math.prod(x.shape)
        if known == 0 or total % known:
            raise ImportModelError(
                f"{n}: input of shape {list(x.shape)} does not fit shape {wanted}"
            )
        wanted[wanted.index(-1)] = total // known
    return n.emit(ops.Reshape(tuple(wanted)), x)


def flatten(n: NodeContext) -> Value:
    """Flatten: a matrix split at ``axis``."""
    x = n.input(0)
    rank = len(x.shape)
    axis = n.attr_int("axis", 1)
    if not -rank <= axis <= rank:
        raise ImportModelError(f"{n}: axis {axis} is outside a tensor of {rank} dimensions")
    axis = axis + rank if axis < 0 else axis
    return n.emit(ops.Reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))), x)


def _axes(n: NodeContext) -> tuple[int, ...] | None:
    """Axes from the attribute (before opset 13) or the input; None when absent."""
    return n.numbers(1, "axes") if n.has(1) else n.attr_ints("axes")


def squeeze(n: NodeContext) -> Value:
    """Squeeze; without axes every dimension of size 1 goes."""
    x = n.input(0)
    axes = _axes(n)
    if axes is None:
        gone = {i for i, d in enumerate(x.shape) if d == 1}
    else:
        gone = {n.axis(a, len(x.shape)) for a in axes}
        for axis in sorted(gone):
            if x.shape[axis] != 1:
                raise ImportModelError(
                    f"{n}: dimension {axis} of {list(x.shape)} is squeezed, expected size 1"
                )
    return n.emit(ops.Reshape(tuple(d for i, d in enumerate(x.shape) if i not in gone)), x)


def unsqueeze(n: NodeContext) -> Value:
    """Unsqueeze; axes count in the output."""
    x = n.input(0)
    axes = _axes(n)
    if axes is None:
        raise ImportModelError(f"{n}: axes are missing")
    rank = len(x.shape) + len(axes)
    new = {n.axis(a, rank) for a in axes}
    if len(new) != len(axes):
        raise ImportModelError(f"{n}: axes {list(axes)} name a dimension twice")
    old = iter(x.shape)
    return n.emit(ops.Reshape(tuple(1 if i in new else next(old) for i in range(rank))), x)


def transpose(n: NodeContext) -> Value:
    """Transpose; without ``perm`` the dimensions are reversed."""
    x = n.input(0)
    perm = n.attr_ints("perm")
    return n.emit(ops.Transpose(tuple(reversed(range(len(x.shape)))) if perm is None else perm), x)


def concat(n: NodeContext) -> Value:
    """Concat."""
    first = n.input(0)
    return n.emit(ops.Concat(n.axis(n.attr_int("axis"), len(first.shape))), *n.inputs())


def slice_(n: NodeContext) -> Value:
    """Slice: attributes up to opset 9, inputs since; bounds are clamped as ONNX says."""
    x = n.input(0)
    rank = len(x.shape)
    if n.opset < 10:
        starts, ends = n.attr_ints("starts") or (), n.attr_ints("ends") or ()
        axes, steps = n.attr_ints("axes"), None
    else:
        starts, ends = n.numbers(1, "starts"), n.numbers(2, "ends")
        axes = n.numbers(3, "axes") if n.has(3) else None
        steps = n.numbers(4, "steps") if n.has(4) else None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ImportModelError(
            f"{n}: starts {list(starts)}, ends {list(ends)}, axes {list(axes)} and steps "
            f"{list(steps)} differ in length"
        )
    full = [(0, d, 1) for d in x.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise ImportModelError(f"{n}: step 0")
        where = n.axis(axis, rank)
        # slice.indices clamps exactly as ONNX does, to -1 for the end of a negative step.
        bounds = slice(start, end, step).indices(x.shape[where])
        # It also starts a negative step at -1 when nothing is left: write that as an empty range.
        full[where] = bounds if bounds[0] >= 0 else (0, 0, 1)
    return n.emit(ops.Slice(*(tuple(s[i] for s in full) for i in range(3))), x)


def split(n: NodeContext) -> tuple[Value, ...]:
    """Split: sizes from the attribute (before opset 13), the input, or equal parts."""
    x = n.input(0)
    axis = n.axis(n.attr_int("axis", 0), len(x.shape))
    sizes = n.numbers(1, "split") if n.has(1) else n.attr_ints("split")
    if sizes is None:
        count = n.attr_int("num_outputs", len(n.outputs))
        if count < 1:
            raise ImportModelError(f"{n}: num_outputs is {count}, expected at least 1")
        part = -(-x.shape[axis] // count)
        sizes = (*[part] * (count - 1), x.shape[axis] - part * (count - 1))
    if len(sizes) != len(n.outputs) or min(sizes) < 0 or sum(sizes) != x.shape[axis]:
        raise ImportModelError(
            f"{n}: sizes {list(sizes)} for {len(n.outputs)} outputs do not divide dimension {axis} "
            f"of {list(x.shape)}"
        )
    return n.emit_all(ops.Split(axis, sizes), x)


def expand(n: NodeContext) -> Value:
    """Expand: the input and the wanted shape broadcast against each other."""
    x = n.input(0)
    wanted = n.numbers(1, "shape")
    try:
        shape = np.broadcast_shapes(x.shape, wanted)
    except ValueError:
        raise ImportModelError(
            f"{n}: input of shape {list(x.shape)} does not broadcast to {list(wanted)}"
        ) from None
    return n.emit(ops.Expand(shape), x)


def tile(n: NodeContext) -> Value:
    """Tile as an Expand of a dimension put before each repeated one."""
    x = n.input(0)
    repeats = n.numbers(1, "repeats")
    if len(repeats) != len(x.shape) or any(r < 1 for r in repeats):
        raise ImportModelError(
            f"{n}: repeats {list(repeats)}, expected {len(x.shape)} numbers of at least 1"
        )
    spread = tuple(s for d in x.shape for s in (1, d))
    wide = tuple(s for r, d in zip(repeats, x.shape, strict=True) for s in (r, d))
    y = n.emit(ops.Reshape(spread), x, part="spread", inner=True)
    y = n.emit(ops.Expand(wide), y, inner=True)
    shape = tuple(r * d for r, d in zip(repeats, x.shape, strict=True))
    return n.emit(ops.Reshape(shape), y, part="join")


def gather(n: NodeContext) -> Value:
    """Gather."""
    x, indices = n.input(0), n.input(1)
    return n.emit(ops.Gather(n.axis(n.attr_int("axis", 0), len(x.shape))), x, indices)


def gather_elements(n: NodeContext) -> Value:
    """GatherElements."""
    x, indices = n.input(0), n.input(1)
    return n.emit(ops.GatherElements(n.axis(n.attr_int("axis", 0), len(x.shape))), x, indices)


def pad(n: NodeContext) -> Value:
    """Pad: attributes up to opset 10, inputs since; ``axes`` since opset 18."""
    x = n.input(0)
    rank = len(x.shape)
    mode = n.attr_str("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise RefusedNodeError(f"mode is {mode!r}, expected constant, reflect or edge")
    value = 0.0
    axes = tuple(range(rank))
    if n.opset < 11:
        pads = n.attr_ints("pads") or ()
        value = n.attr_float("value", 0.0)
    else:
        pads = n.numbers(1, "pads")
        if n.has(2):
            value = float(n.scalar(2, "constant_value"))
        if n.has(3):
            axes = tuple(n.axis(a, rank) for a in n.numbers(3, "axes"))
    if len(pads) != 2 * len(axes):
        raise ImportModelError(f"{n}: pads {list(pads)}, expected {2 * len(axes)} numbers")
    full = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        full[axis], full[rank + axis] = pads[index], pads[len(axes) + index]
    return n.emit(ops.Pad(tuple(full), mode, value), x)


def trilu(n: NodeContext) -> Value:
    """Trilu as a choice between the input and zero by a constant mask."""
    x = n.input(0)
    if len(x.shape) < 2:
        raise ImportModelError(f"{n}: input {list(x.shape)}, expected at least 2 dimensions")
    k = int(n.scalar(1, "k")) if n.has(1) else 0
    every = np.ones(n.limit(x.shape[-2:]), np.bool_)
    mask = np.triu(every, k) if n.attr_int("upper", 1) else np.tril(every, k)
    return n.emit(ops.Where(), n.helper(mask, "mask"), x, n.scalar_like(x, 0, "zero"))


def depth_to_space(n: NodeContext) -> Value:
    """DepthToSpace: blocks of channels become blocks of pixels."""
    x, block = _blocks(n)
    batch, channels, height, width = x.shape
    deep = channels // block**2
    if n.attr_str("mode", "DCR") == "CRD":
        apart, perm = (batch, deep, block, block, height, width), (0, 1, 4, 2, 5, 3)
    else:
        apart, perm = (batch, block, block, deep, height, width), (0, 3, 4, 1, 5, 2)
    y = n.emit(ops.Reshape(apart), x, part="split", inner=True)
    y = n.emit(ops.Transpose(perm), y, inner=True)
    return n.emit(ops.Reshape((batch, deep, height * block, width * block)), y, part="join")


def space_to_depth(n: NodeContext) -> Value:
    """SpaceToDepth: blocks of pixels become blocks of channels."""
    x, block = _blocks(n)
    batch, channels, height, width = x.shape
    high, wide = height // block, width // block
    apart = ops.Reshape((batch, channels, high, block, wide, block))
    perm = (0, 1, 3, 5, 2, 4) if n.attr_str("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    y = n.emit(apart, x, part="split", inner=True)
    y = n.emit(ops.Transpose(perm), y, inner=True)
    return n.emit(ops.Reshape((batch, channels * block**2, high, wide)), y, part="join")


def _blocks(n: NodeContext) -> tuple[Value, int]:
    x, block = n.input(0), n.attr_int("blocksize")
    if len(x.shape) != 4 or block < 1:
        raise ImportModelError(
            f"{n}: input {list(x.shape)} and blocksize {block}, expected [N,C,H,W] and at least 1"
        )
    return x, block
