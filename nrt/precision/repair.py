"""How many layers must have more precision, in few trials: geometric steps, then bisection."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["least_that_holds"]


def least_that_holds(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least count from 1 to ``most`` that holds, if more is never worse than less.

    Where it sometimes is, the count still holds, and the next lower one that was tried does not.
    Tries 1, 2, 4, ... up to ``most``, and then bisects: about 2 log2 of the result trials.

    Args:
        most: the largest count.
        holds: judges a count; asked once for each.

    Returns:
        None where even ``most`` does not hold.
    """
    low, count = 0, 1
    while True:
        count = min(count, most)
        if most < 1 or (count == low):
            return None
        if holds(count):
            break
        low, count = count, count * 2
    high = count
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
