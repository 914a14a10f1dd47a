"""Which layers break a network in a low precision, found by bisection over its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Bisection", "ErrorOf", "Step", "bisect_layers"]

ErrorOf = Callable[[tuple[str, ...]], float]
"""Layers that stay in fp32 -> error of the outputs."""


@dataclass(frozen=True)
class Step:
    """One network that was built and run.

    Attributes:
        low: how many layers, from the first on, computed in the low precision.
        in_fp32: layers among them that were left in fp32 all the same.
        error: of the outputs.
    """

    low: int
    in_fp32: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        breaking: layers that lift the error over the threshold, in topological order.
        in_fp32: those that have to stay in fp32, so that the network is within the threshold: none
            can be left out. Often fewer: where a result overflows it is enough that its reader
            takes it in fp32, which lets it be stored so.
        error: of the outputs with the layers of ``in_fp32`` in fp32.
        steps: what was built, in order.
    """

    breaking: tuple[str, ...] = ()
    in_fp32: tuple[str, ...] = ()
    error: float = 0.0
    steps: tuple[Step, ...] = ()

    @property
    def first(self) -> str | None:
        """The first layer that lifts the error over the threshold; None if none does."""
        return self.breaking[0] if self.breaking else None


@dataclass
class _Networks:
    """Networks by the layers that stay in fp32, each built once."""

    names: Sequence[str]
    error_of: ErrorOf
    steps: list[Step] = field(default_factory=list)
    known: dict[frozenset[str], float] = field(default_factory=dict)

    def error(self, low: int, in_fp32: Sequence[str]) -> float:
        """Of the outputs where the first ``low`` layers, but those of ``in_fp32``, are low."""
        kept = tuple(dict.fromkeys([*self.names[low:], *in_fp32]))
        key = frozenset(kept)
        if key not in self.known:
            self.known[key] = self.error_of(kept)
            self.steps.append(Step(low, tuple(in_fp32), self.known[key]))
        return self.known[key]


def bisect_layers(
    names: Sequence[str], stored: ErrorOf, compiled: ErrorOf, threshold: float, most: int
) -> Bisection:
    """Find the layers that lift the error of a network over ``threshold``.

    Layers up to k run in the low precision, the others in fp32. The error is within the threshold
    for k = 0 and beyond it for all layers: bisection finds a k where it crosses the threshold, and
    so the layer k, in ⌈log2 n⌉ networks. That layer then stays in fp32; as long as the error is
    still beyond the threshold the search goes on behind it. Where the error never falls as k grows,
    k is the first layer that lifts it there; otherwise it is one that does.

    Of the layers found, those that are not needed go back to the low precision, one at a time, as
    in delta debugging (A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing
    input", 2002): what is left is minimal, though a smaller set of other layers may exist.

    Args:
        names: the layers in topological order.
        stored: error where every low layer stores its result in its own type.
        compiled: error of the network as it is compiled, where a result may be stored in the type
            of its reader.
        threshold: largest error that passes.
        most: layers to find at most.
    """
    search = _Networks(names, stored)
    found: list[str] = []
    passes = 0
    while len(found) < most and passes < len(names):
        if search.error(len(names), found) <= threshold:
            break
        low, high = passes, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            if search.error(middle, found) > threshold:
                high = middle
            else:
                low = middle
        found.append(names[high - 1])
        # Without layer `high` the first `high` are those that passed.
        passes = high
    if not found:
        return Bisection(steps=tuple(search.steps))
    check = _Networks(names, compiled)
    needed = list(found)
    error = check.error(len(names), needed)
    for name in found:
        fewer = [other for other in needed if other != name]
        if error > threshold or not fewer:
            break
        without = check.error(len(names), fewer)
        if without <= threshold:
            needed, error = fewer, without
    return Bisection(tuple(found), tuple(needed), error, (*search.steps, *check.steps))
