"""Where tensors lie before there are addresses: buffers, and places in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nrt.ir.op import Array
from nrt.ir.value import Value
from nrt.problem import TensorSpec
from nrt.strides import ALIGN, pitched, same_strides

__all__ = ["Buffer", "Place", "dense_spec", "settled", "slice_place"]


@dataclass(eq=False)
class Buffer:
    """A range of memory.

    Attributes:
        space: ``arena``, ``input``, ``output`` or ``constant``.
        nbytes: its size.
        index: which input or output.
        array: the data of a constant, logical order.
        label: the value it was made for.
    """

    space: str
    nbytes: int
    index: int = 0
    array: Array | None = None
    label: str = ""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        buffer: its memory.
        offset: bytes from the buffer's start to the first element.
        spec: shape, dtype and strides.
    """

    buffer: Buffer
    offset: int
    spec: TensorSpec


def dense_spec(value: Value) -> TensorSpec:
    """``value`` in memory of its own, in its layout."""
    return TensorSpec.dense(value.shape, value.dtype, value.layout)


def slice_place(whole: Place, shape: tuple[int, ...], axis: int, start: int) -> Place:
    """The elements from ``start`` on along ``axis``, as many as ``shape`` says."""
    offset = start * whole.spec.strides[axis] * whole.spec.dtype.itemsize
    spec = TensorSpec(shape, whole.spec.dtype, whole.spec.strides)
    return Place(whole.buffer, whole.offset + offset, spec)


def settled(value: Value, place: Place) -> Place | None:
    """``place`` if kernels may read or write ``value`` there: aligned, in the order of its layout.

    Gaps between rows are allowed; see `nrt.strides.pitched`.
    """
    if place.offset % ALIGN or place.spec.dtype != value.dtype:
        return None
    dense = dense_spec(value)
    if same_strides(place.spec, dense):
        return replace(place, spec=dense)
    spec = pitched(place.spec, value.layout)
    return None if spec is None else replace(place, spec=spec)
