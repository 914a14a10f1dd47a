"""Lifetimes to offsets in one arena: which temporaries may share memory.

Two blocks may share memory if every use of one is over before any use of the other begins. On one
stream that is a matter of step numbers; on several it is a partial order, and a block's lifetime
says for every stream how far it has come (a vector clock).

Finding the smallest arena is NP-hard (dynamic storage allocation). Greedy best fit, which puts each
block into the smallest gap among the blocks alive at the same time, comes within a few percent of
the lower bound on networks when the order is by size (Pisarchyk and Lee, *Efficient Memory
Management for Deep Neural Net Inference*, 2020). Several orders are tried and the best is kept;
where none reaches the bound, blocks on top move forward in the best order, for a fixed number of
tries (iterated local search).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nrt.antichain import heaviest_antichain
from nrt.errors import PlanError

__all__ = ["Arena", "Lifetime", "plan_arena"]

_TRIES = 400
_WORK = 1_000_000
"""Pairs of blocks that the search may look at: about half a second."""

Order = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Lifetime:
    """A block of memory and when it is in use.

    Attributes:
        nbytes: length.
        first: per stream, how many of its steps are sure to have ended before the block is touched.
        last: per stream, how many of its steps must have ended before its memory is free again.
    """

    nbytes: int
    first: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def serial(cls, nbytes: int, first_step: int, last_step: int) -> Lifetime:
        """On one stream: in use from ``first_step`` to ``last_step``, inclusive."""
        return cls(nbytes, (first_step,), (last_step + 1,))


@dataclass(frozen=True)
class Arena:
    """Where every block lies.

    Attributes:
        offsets: per lifetime, in bytes.
        nbytes: length of the arena.
        lower_bound: most bytes that may be alive at once; no plan can need less.
        peak: indices of the lifetimes that are these bytes.
    """

    offsets: tuple[int, ...]
    nbytes: int
    lower_bound: int
    peak: tuple[int, ...] = ()


def plan_arena(lifetimes: Sequence[Lifetime], alignment: int = 256) -> Arena:
    """Place blocks so that those that may be alive at once do not overlap.

    Args:
        lifetimes: the blocks; 0 bytes are allowed and take no space.
        alignment: of every offset, in bytes.

    Raises:
        PlanError: a lifetime ends before it starts, counts other streams than the first one does,
            or has a negative length.
    """
    for index, life in enumerate(lifetimes):
        streams = len(lifetimes[0].first)
        ends_early = all(a <= b for a, b in zip(life.last, life.first, strict=False))
        if not len(life.first) == len(life.last) == streams or ends_early or life.nbytes < 0:
            raise PlanError(
                f"lifetime {index}: {life.nbytes} bytes from {life.first} to {life.last}; expected "
                f"at least 0 bytes, {streams} stream(s), and an end not before its start"
            )
    if alignment < 1:
        raise PlanError(f"alignment of {alignment} bytes: expected at least 1")
    sizes = [-(-life.nbytes // alignment) * alignment for life in lifetimes]
    used = [i for i, size in enumerate(sizes) if size]
    if not used:
        return Arena((0,) * len(sizes), 0, 0)
    packing = _Packing([lifetimes[i] for i in used], [sizes[i] for i in used])
    found = packing.search()
    offsets = [0] * len(sizes)
    for i, offset in zip(used, found, strict=True):
        offsets[i] = offset
    peak = tuple(used[i] for i in packing.peak)
    return Arena(tuple(offsets), packing.height(found), packing.bound, peak)


class _Packing:
    """Blocks of at least one byte, who meets whom, and ways to stack them."""

    def __init__(self, lifetimes: Sequence[Lifetime], sizes: list[int]) -> None:
        self.sizes = sizes
        self.first = np.array([life.first for life in lifetimes])
        self.last = np.array([life.last for life in lifetimes])
        before: Order = np.all(self.last[:, None, :] <= self.first[None, :, :], axis=2)
        together = ~(before | before.T)
        np.fill_diagonal(together, False)
        self.rivals = [np.flatnonzero(row).tolist() for row in together]
        self.peak = (
            self._fullest() if self.first.shape[1] == 1 else heaviest_antichain(sizes, before)
        )
        self.bound = sum(sizes[i] for i in self.peak)

    def _fullest(self) -> tuple[int, ...]:
        """What is alive at the fullest step of a single stream."""
        first, last = self.first[:, 0], self.last[:, 0]
        bytes_ = np.array(self.sizes)
        # The fullest moment is one at which something comes alive.
        step = max(np.unique(first), key=lambda s: int(bytes_[(first <= s) & (s < last)].sum()))
        return tuple(np.flatnonzero((first <= step) & (step < last)).tolist())

    def height(self, offsets: Sequence[int]) -> int:
        """Length of the arena."""
        return max(o + s for o, s in zip(offsets, self.sizes, strict=True))

    def search(self) -> list[int]:
        """The best offsets that were found; at the bound it stops."""
        best: tuple[int, list[int], list[int], int | None] | None = None
        # First within the bound, from both ends; then with the arena open above.
        for capacity in (self.bound, None):
            for order in self._orders():
                offsets = self.place(order, capacity)
                height = self.height(offsets)
                if height == self.bound:
                    return offsets
                if best is None or height < best[0]:
                    best = (height, offsets, order, capacity)
        assert best is not None
        return self._improve(*best)

    def _improve(
        self, height: int, offsets: list[int], order: list[int], capacity: int | None
    ) -> list[int]:
        """Move what lies on top forward, over and over."""
        rng = random.Random(len(order))
        pairs = sum(map(len, self.rivals)) + len(order)
        for _ in range(min(_TRIES, _WORK // pairs)):
            if height == self.bound:
                break
            top = [i for i in order if offsets[i] + self.sizes[i] == height]
            mover = rng.choice(top)
            changed = [i for i in order if i != mover]
            changed.insert(rng.randrange(order.index(mover) + 1), mover)
            if rng.random() < 0.5:
                a, b = rng.randrange(len(order)), rng.randrange(len(order))
                changed[a], changed[b] = changed[b], changed[a]
            tried = self.place(changed, capacity)
            if (reached := self.height(tried)) <= height:
                height, offsets, order = reached, tried, changed
        return offsets

    def _orders(self) -> list[list[int]]:
        """Placement orders to try; ties by index keep the result the same in every process."""
        sizes, indices = self.sizes, range(len(self.sizes))
        begin = self.first.sum(axis=1).tolist()
        end = self.last.sum(axis=1).tolist()
        span = [e - b for b, e in zip(begin, end, strict=True)]
        return [
            sorted(indices, key=lambda i: (-sizes[i], begin[i], i)),
            sorted(indices, key=lambda i: (-sizes[i], -span[i], i)),
            sorted(indices, key=lambda i: (-sizes[i] * span[i], i)),
            sorted(indices, key=lambda i: (begin[i], -sizes[i], i)),
            sorted(indices, key=lambda i: (-end[i], -sizes[i], i)),
            sorted(indices, key=lambda i: (-span[i], -sizes[i], i)),
            sorted(indices, key=lambda i: (-sizes[i] * len(self.rivals[i]), i)),
        ]

    def place(self, order: Sequence[int], capacity: int | None) -> list[int]:
        """Best fit in ``order``.

        With a ``capacity``, the space below it that lies above all rivals is a gap like the others
        and is filled from its top: in a chain, where each block meets only its neighbours, blocks
        then alternate between the two ends, which reaches the bound. What does not fit goes on top.
        """
        sizes = self.sizes
        offsets = [-1] * len(sizes)
        for i in order:
            size = sizes[i]
            best, tightest, end = -1, -1, 0
            for offset, j in sorted((offsets[j], j) for j in self.rivals[i] if offsets[j] >= 0):
                gap = offset - end
                if gap >= size and (best < 0 or gap < tightest):
                    best, tightest = end, gap
                end = max(end, offset + sizes[j])
            if capacity is not None:
                gap = capacity - end
                if gap >= size and (best < 0 or gap < tightest):
                    best = capacity - size if end > 0 else 0
            offsets[i] = best if best >= 0 else end
        return offsets
