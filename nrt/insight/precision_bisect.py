"""Which layers break a network in a low precision, found by bisection over its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

__all__ = ["Bisection", "Step", "bisect_layers"]


@dataclass(frozen=True)
class Step:
    """One network that was built and run.

    Attributes:
        low: how many layers, from the first on, computed in the low precision.
        kept: layers among them that were left in fp32 all the same.
        error: of the outputs.
    """

    low: int
    kept: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        kept: layers that, in fp32, bring the error to the threshold, in the order found; the first
            is the first layer that breaks the network.
        error: of the outputs with all layers in the low precision.
        error_kept: with those of ``kept`` in fp32.
        steps: what was built, in order.
    """

    kept: tuple[str, ...]
    error: float
    error_kept: float
    steps: tuple[Step, ...]

    @property
    def first(self) -> str | None:
        """The first layer that lifts the error over the threshold; None if none does."""
        return self.kept[0] if self.kept else None


@dataclass
class _Search:
    """Networks by the number of their first layers that are low, each built once."""

    names: Sequence[str]
    error_of: Callable[[Collection[str]], float]
    steps: list[Step] = field(default_factory=list)
    known: dict[frozenset[str], float] = field(default_factory=dict)

    def error(self, low: int, kept: Sequence[str]) -> float:
        """Of the outputs where the first ``low`` layers, but those of ``kept``, are low."""
        in_fp32 = frozenset({*self.names[low:], *kept})
        if in_fp32 not in self.known:
            self.known[in_fp32] = self.error_of(in_fp32)
            self.steps.append(Step(low, tuple(kept), self.known[in_fp32]))
        return self.known[in_fp32]


def bisect_layers(
    names: Sequence[str],
    error_of: Callable[[Collection[str]], float],
    threshold: float,
    most: int,
) -> Bisection:
    """Find the layers that lift the error of a network over ``threshold``.

    Layers up to k run in the low precision, the others in fp32. The error is within the threshold
    for k = 0 and beyond it for all layers: bisection finds a k where it crosses the threshold, and
    so the layer k, in ⌈log2 n⌉ networks. That layer then stays in fp32; as long as the error is
    still beyond the threshold the search goes on behind it. Where the error never falls as k grows,
    k is the first layer that lifts it there; otherwise it is one that does.

    Args:
        names: the layers in topological order.
        error_of: layers in fp32 -> error of the outputs.
        threshold: largest error that passes.
        most: layers to find at most.
    """
    search = _Search(names, error_of)
    kept: list[str] = []
    passes = 0
    whole = error = search.error(len(names), kept)
    while error > threshold and len(kept) < most and passes < len(names):
        low, high = passes, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            if search.error(middle, kept) > threshold:
                high = middle
            else:
                low = middle
        kept.append(names[high - 1])
        # Without layer `high` the first `high` are those that passed.
        passes = high
        error = search.error(len(names), kept)
    return Bisection(tuple(kept), whole, error, tuple(search.steps))
