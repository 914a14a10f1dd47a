"""Memory layouts: when two of them are the same memory, and which reorderings cost nothing.

A layout is the order of the dimensions in memory, outermost first; None is row-major. Two layouts
of one shape may be the same memory under two names: with H = W = 1, or C = 1, NHWC is row-major.
Always compare with `same_memory`, never with ``==``.
"""

from __future__ import annotations

import math

from nrt.ir.ops.movement import Reshape, Transpose
from nrt.ir.value import Layout, Node, Value

__all__ = [
    "is_row_major",
    "is_view",
    "normalized",
    "reshaped_layout",
    "same_memory",
    "transposed_layout",
]


def _order(shape: tuple[int, ...], layout: Layout | None) -> tuple[int, ...]:
    """The dimensions of size other than 1, outermost first: all that memory knows of a layout."""
    dims = layout or tuple(range(len(shape)))
    return tuple(d for d in dims if shape[d] != 1)


def same_memory(shape: tuple[int, ...], a: Layout | None, b: Layout | None) -> bool:
    """Whether a dense tensor of ``shape`` has its elements at the same places in both layouts.

    Strides of dimensions of size 1 do not count.
    """
    return 0 in shape or _order(shape, a) == _order(shape, b)


def is_row_major(value: Value) -> bool:
    """Whether ``value`` lies in memory as a row-major tensor, whatever its layout is called."""
    return same_memory(value.shape, value.layout, None)


def normalized(shape: tuple[int, ...], layout: Layout | None) -> Layout | None:
    """``layout``, or None where that is the same memory."""
    return None if same_memory(shape, layout, None) else layout


def transposed_layout(layout: Layout | None, perm: tuple[int, ...]) -> Layout:
    """The layout with which ``Transpose(perm)`` of a tensor in ``layout`` moves no element.

    Dimension ``i`` of the result is dimension ``perm[i]`` of the input, so memory order stays when
    each input dimension in the layout is renamed to where it went. The result may spell row-major
    out; `normalized` makes it None.
    """
    dims = layout or tuple(range(len(perm)))
    return tuple(perm.index(d) for d in dims)


def reshaped_layout(
    shape: tuple[int, ...], layout: Layout | None, new_shape: tuple[int, ...]
) -> Layout | None:
    """The layout with which a reshape of a tensor in ``layout`` moves no element.

    Merges such as [N, C, H, W] -> [N, C, H·W] keep channels last, and so do the splits that undo
    them. Dimensions are grouped in logical order so that each group has the same number of elements
    on both sides; each group must lie together and in order in memory.

    Returns:
        A layout of ``new_shape`` (row-major spelled out where it is that), or None if elements
        would have to move.
    """
    if math.prod(shape) == 0 or math.prod(shape) != math.prod(new_shape):
        return None
    order = _order(shape, layout)
    position = {d: i for i, d in enumerate(order)}
    old = [d for d in range(len(shape)) if shape[d] != 1]
    new = [d for d in range(len(new_shape)) if new_shape[d] != 1]
    groups: list[tuple[int, list[int]]] = []
    i = j = 0
    while i < len(old):
        left, right = [old[i]], [new[j]]
        a, b = shape[old[i]], new_shape[new[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(old[i])
                a *= shape[old[i]]
                i += 1
            else:
                right.append(new[j])
                b *= new_shape[new[j]]
                j += 1
        places = [position[d] for d in left]
        if places != list(range(places[0], places[0] + len(places))):
            return None
        groups.append((places[0], right))
    result = [d for _, dims in sorted(groups) for d in dims]
    # Dimensions of size 1 may stand anywhere; before their successor keeps row-major recognizable.
    for dim in reversed([d for d in range(len(new_shape)) if new_shape[d] == 1]):
        later = [result.index(d) for d in range(dim + 1, len(new_shape)) if d in result]
        result.insert(later[0] if later else len(result), dim)
    return tuple(result)


def is_view(node: Node) -> bool:
    """Whether ``node`` only gives its input's memory another shape: nothing is to be launched.

    True of a Reshape that reads the elements in memory order, and of a Transpose whose result lies
    in memory as its input does.
    """
    match node.op:
        case Reshape():
            x, y = node.inputs[0], node.outputs[0]
            free = reshaped_layout(x.shape, x.layout, y.shape)
            return 0 in y.shape or (free is not None and same_memory(y.shape, free, y.layout))
        case Transpose(perm=perm):
            x, y = node.inputs[0], node.outputs[0]
            return same_memory(y.shape, transposed_layout(x.layout, perm), y.layout)
        case _:
            return False
