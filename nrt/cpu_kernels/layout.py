"""Strides: broadcasting, bytes, and collapsing of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.problem import TensorSpec

__all__ = ["broadcast_strides", "byte_strides", "collapse"]


def broadcast_strides(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of ``spec`` seen with ``shape``, NumPy's way: repeated dims get 0."""
    lead = len(shape) - len(spec.shape)
    own = (
        0 if size == 1 else stride for size, stride in zip(spec.shape, spec.strides, strict=True)
    )
    return (*(0,) * lead, *own)


def byte_strides(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`broadcast_strides` in bytes."""
    return tuple(s * spec.dtype.itemsize for s in broadcast_strides(spec, shape))


def collapse(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Fewest dimensions that visit the same elements.

    Dimensions are ordered by the stride of the first operand (the output), outermost first, those
    of size 1 dropped, and neighbours merged where all operands allow it.

    Returns:
        the new shape (at least one dimension) and each operand's strides.
    """
    order = [d for d in range(len(shape)) if shape[d] != 1]
    order.sort(key=lambda d: -strides[0][d])
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for dim in order:
        if sizes and all(
            own[-1] == operand[dim] * shape[dim]
            for own, operand in zip(steps, strides, strict=True)
        ):
            sizes[-1] *= shape[dim]
            for own, operand in zip(steps, strides, strict=True):
                own[-1] = operand[dim]
            continue
        sizes.append(shape[dim])
        for own, operand in zip(steps, strides, strict=True):
            own.append(operand[dim])
    if not sizes:
        return (1,), [(0,) for _ in strides]
    return tuple(sizes), [tuple(s) for s in steps]
