"""What ops that move elements make of a place: one in the same buffer, if strides can say it."""

from __future__ import annotations

from nrt.ir.ops import Dropout, Identity, Reshape, Slice, Split, Transpose
from nrt.ir.value import Node, Value
from nrt.places import Place
from nrt.problem import TensorSpec
from nrt.strides import reshaped_strides

__all__ = ["views_of"]


def views_of(node: Node, source: Place) -> tuple[Place, ...] | None:
    """Places of the outputs of ``node`` if its input lies at ``source``; None if it is no view."""
    spec = source.spec
    match node.op:
        case Identity() | Dropout():
            return (source,)
        case Reshape(shape=shape):
            strides = reshaped_strides(spec, shape)
            return None if strides is None else (_view(source, node.output, strides, 0),)
        case Transpose(perm=perm):
            return (_view(source, node.output, tuple(spec.strides[p] for p in perm), 0),)
        case Slice(starts=starts, steps=steps):
            if min(steps, default=1) < 0:
                return None
            offset = sum(a * b for a, b in zip(starts, spec.strides, strict=True))
            strides = tuple(a * b for a, b in zip(spec.strides, steps, strict=True))
            return (_view(source, node.output, strides, offset),)
        case Split(axis=axis):
            places, offset = [], 0
            for value in node.outputs:
                places.append(_view(source, value, spec.strides, offset))
                offset += value.shape[axis] * spec.strides[axis]
            return tuple(places)
        case _:
            return None


def _view(source: Place, value: Value, strides: tuple[int, ...], offset: int) -> Place:
    """``offset`` elements into ``source``."""
    spec = TensorSpec(value.shape, source.spec.dtype, strides)
    # An empty view may start behind the buffer's end: it has no first element.
    start = source.offset + offset * spec.dtype.itemsize if spec.size else 0
    return Place(source.buffer, start, spec)
