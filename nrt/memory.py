"""Lifetimes to offsets in one arena: which temporaries may share memory.

Finding the smallest arena is NP-hard (dynamic storage allocation). Greedy best fit, which puts each
block into the smallest gap among the blocks alive at the same time, comes within a few percent of
the lower bound on networks when the order is by size (Pisarchyk and Lee, *Efficient Memory
Management for Deep Neural Net Inference*, 2020). Several orders are tried and the best is kept.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from nrt.errors import PlanError

__all__ = ["Arena", "Lifetime", "plan_arena"]


@dataclass(frozen=True)
class Lifetime:
    """A block of memory and when it is in use.

    Attributes:
        nbytes: length.
        first_step: the step that writes it first.
        last_step: the step that reads it last, inclusive.
    """

    nbytes: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Arena:
    """Where every block lies.

    Attributes:
        offsets: per lifetime, in bytes.
        nbytes: length of the arena.
        lower_bound: most bytes alive at any one step; no plan can need less.
    """

    offsets: tuple[int, ...]
    nbytes: int
    lower_bound: int


def plan_arena(lifetimes: Sequence[Lifetime], alignment: int = 256) -> Arena:
    """Place blocks so that those alive at the same step do not overlap.

    Args:
        lifetimes: the blocks; 0 bytes are allowed and take no space.
        alignment: of every offset, in bytes.

    Raises:
        PlanError: a lifetime ends before it starts or has a negative length.
    """
    for index, life in enumerate(lifetimes):
        if life.nbytes < 0 or life.last_step < life.first_step:
            raise PlanError(
                f"lifetime {index}: {life.nbytes} bytes from step {life.first_step} to "
                f"{life.last_step}; expected at least 0 bytes and an end not before its start"
            )
    if alignment < 1:
        raise PlanError(f"alignment of {alignment} bytes: expected at least 1")
    sizes = [-(-life.nbytes // alignment) * alignment for life in lifetimes]
    bound = _peak(lifetimes, sizes)
    best: tuple[int, list[int]] | None = None
    # First within the bound, from both ends; then with the arena open above.
    for capacity in (bound, None):
        for order in _orders(lifetimes, sizes):
            offsets = _place(lifetimes, sizes, order, capacity)
            total = max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)
            if best is None or total < best[0]:
                best = (total, offsets)
            if total == bound:
                return Arena(tuple(offsets), total, bound)
    assert best is not None
    return Arena(tuple(best[1]), best[0], bound)


def _peak(lifetimes: Sequence[Lifetime], sizes: list[int]) -> int:
    changes: dict[int, int] = {}
    for life, size in zip(lifetimes, sizes, strict=True):
        changes[life.first_step] = changes.get(life.first_step, 0) + size
        changes[life.last_step + 1] = changes.get(life.last_step + 1, 0) - size
    peak = alive = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak


def _orders(lifetimes: Sequence[Lifetime], sizes: list[int]) -> list[list[int]]:
    """Placement orders to try; ties by index keep the result the same in every process."""

    def span(i: int) -> int:
        return lifetimes[i].last_step - lifetimes[i].first_step + 1

    indices = range(len(lifetimes))
    return [
        sorted(indices, key=lambda i: (-sizes[i], lifetimes[i].first_step, i)),
        sorted(indices, key=lambda i: (-sizes[i], -span(i), i)),
        sorted(indices, key=lambda i: (-sizes[i] * span(i), i)),
        sorted(indices, key=lambda i: (lifetimes[i].first_step, -sizes[i], i)),
        sorted(indices, key=lambda i: (-lifetimes[i].last_step, -sizes[i], i)),
        sorted(indices, key=lambda i: (-span(i), -sizes[i], i)),
    ]


def _place(
    lifetimes: Sequence[Lifetime], sizes: list[int], order: list[int], capacity: int | None
) -> list[int]:
    """Best fit in ``order``.

    With a ``capacity``, the space below it that lies above all live blocks is a gap like the others
    and is filled from its top: in a chain, where each block meets only its neighbours, blocks then
    alternate between the two ends, which reaches the bound. What does not fit goes on top.
    """
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int]] = []  # (offset, index), by offset
    for i in order:
        if sizes[i] == 0:
            continue
        life = lifetimes[i]
        best, tightest, end = -1, -1, 0
        for offset, other in placed:
            rival = lifetimes[other]
            if rival.first_step > life.last_step or rival.last_step < life.first_step:
                continue
            gap = offset - end
            if gap >= sizes[i] and (best < 0 or gap < tightest):
                best, tightest = end, gap
            end = max(end, offset + sizes[other])
        if capacity is not None:
            gap = capacity - end
            if gap >= sizes[i] and (best < 0 or gap < tightest):
                best = capacity - sizes[i] if end > 0 else 0
        offsets[i] = best if best >= 0 else end
        insort(placed, (offsets[i], i))
    return offsets
