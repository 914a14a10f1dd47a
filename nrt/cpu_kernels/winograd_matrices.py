"""The matrices of F(2, 3) and F(4, 3), exactly.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308: a tile of
``m`` outputs of a 3-tap filter is ``A (G g * B d)``. They follow from interpolation at the points
0, 1, -1, (2, -2) and infinity.
"""

from __future__ import annotations

from fractions import Fraction

__all__ = ["FILTER", "INPUT", "OUTPUT"]

_Matrix = tuple[tuple[Fraction, ...], ...]
_POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2)}


def _times(left: list[Fraction], right: list[Fraction]) -> list[Fraction]:
    product = [Fraction(0)] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return product


def _matrices(m: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Filter, input and output matrices of F(m, 3), by Toom-Cook interpolation."""
    points = [Fraction(p) for p in _POINTS[m]]
    n = len(points) + 1
    inputs: list[list[Fraction]] = []
    filters: list[list[Fraction]] = []
    for p in points:
        others = [Fraction(1)]
        scale = Fraction(1)
        for other in points:
            if other != p:
                others = _times(others, [-other, Fraction(1)])
                scale *= p - other
        # The sign of a point's scale goes with its input, so that inputs begin like the field's.
        sign = -1 if scale < 0 else 1
        inputs.append([sign * c for c in others] + [Fraction(0)] * (n - len(others)))
        filters.append([sign * p**k / scale for k in range(3)])
    whole = [Fraction(1)]
    for p in points:
        whole = _times(whole, [-p, Fraction(1)])
    inputs.append(whole)
    filters.append([Fraction(0), Fraction(0), Fraction(1)])
    outputs = [[p**k for p in points] + [Fraction(1 if k == m - 1 else 0)] for k in range(m)]

    def freeze(matrix: list[list[Fraction]]) -> _Matrix:
        return tuple(tuple(row) for row in matrix)

    return freeze(filters), freeze(inputs), freeze(outputs)


FILTER: dict[int, _Matrix] = {m: _matrices(m)[0] for m in _POINTS}
INPUT: dict[int, _Matrix] = {m: _matrices(m)[1] for m in _POINTS}
OUTPUT: dict[int, _Matrix] = {m: _matrices(m)[2] for m in _POINTS}
