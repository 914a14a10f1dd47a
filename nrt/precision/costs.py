"""What an assignment of precisions costs: the layers' own time, and the conversions between them.

All times are whole picoseconds, so that a minimum cut is exact.

A layer's operands have the type of its precision; what it stores depends on who reads it. There are
two kinds of conversions:

- a value that a layer of int8 reads is stored as int8 by whoever computes it, mostly at no cost (an
  epilogue's last step). Layers in floats that read the same value each pay a Dequantize
  (`Rounding`);
- between layers in floats, a value is cast once for each other type that is wanted (`Cast`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

__all__ = ["INT8", "Cast", "CostModel", "Labels", "Rounding", "floats_of"]

INT8 = "int8"

Labels = Mapping[str, str]
"""Layer -> precision."""


def floats_of(precision: str, home: str) -> str:
    """The element type of the floats that a layer of ``precision`` stores.

    Args:
        precision: of the layer.
        home: type of the floats around layers of int8.
    """
    return {INT8: home, "tf32": "fp32"}.get(precision, precision)


@dataclass(frozen=True)
class Rounding:
    """A value that layers of int8 may read.

    Attributes:
        value: its name.
        readers: layers that multiply it.
        quantize: picoseconds, once, where one of them reads int8, which makes it int8: of a
            Quantize of its own, if it needs one, and what layers without a choice lose by it, or
            save if it is negative.
        dequantize: type of floats -> picoseconds that a reader of that type pays if it is int8.
        source: the layer that stores it, if what that has to do with the time is known.
        stored: precision of the source -> picoseconds that storing int8 takes longer than storing
            floats does; mostly negative.
    """

    value: str
    readers: tuple[str, ...]
    quantize: int
    dequantize: Mapping[str, int]
    source: str | None = None
    stored: Mapping[str, int] = field(default_factory=dict)

    def cost(self, labels: Labels, home: str) -> int:
        """Picoseconds under ``labels``."""
        found = [labels[r] for r in self.readers]
        if INT8 not in found:
            return 0
        others = (floats_of(p, home) for p in found if p != INT8)
        own = self.stored[labels[self.source]] if self.source is not None else 0
        return self.quantize + own + sum(self.dequantize[t] for t in others)

    def bounded(self) -> Rounding:
        """The nearest for which a minimum cut is exact.

        A layer of int8 gains no less by storing int8 than one in floats, and all gain less than it
        costs that every reader dequantizes: nothing is stored as int8 for nobody.
        """
        most = len(self.readers) * min(self.dequantize.values(), default=0)
        quantize = max(self.quantize, -most)
        stored = {p: max(t, -most - quantize) for p, t in self.stored.items()}
        if INT8 in stored:
            stored[INT8] = min(stored.values())
        return replace(self, quantize=quantize, stored=stored)


@dataclass(frozen=True)
class Cast:
    """A value between layers in floats.

    Attributes:
        value: its name.
        source: the layer that stores it.
        readers: layers that want it in their own type.
        casts: (type that it has, another type) -> picoseconds, once per other type.
    """

    value: str
    source: str
    readers: tuple[str, ...]
    casts: Mapping[tuple[str, str], int]

    def cost(self, labels: Labels, home: str) -> int:
        """Picoseconds under ``labels``."""
        have = floats_of(labels[self.source], home)
        wanted = {floats_of(p, home) for r in self.readers if (p := labels[r]) != INT8}
        return sum(self.casts[have, want] for want in wanted - {have})


@dataclass(frozen=True)
class CostModel:
    """The time of a network as a function of its layers' precisions.

    Attributes:
        times: layer -> precision that it may have -> picoseconds.
        roundings, casts: conversions.
        home: type of the floats around layers of int8.
    """

    times: Mapping[str, Mapping[str, int]]
    roundings: tuple[Rounding, ...] = ()
    casts: tuple[Cast, ...] = ()
    home: str = "fp32"

    def cost(self, labels: Labels) -> int:
        """Picoseconds of the network under ``labels``."""
        own = sum(times[labels[layer]] for layer, times in self.times.items())
        rounding = sum(r.cost(labels, self.home) for r in self.roundings)
        return own + rounding + sum(c.cost(labels, self.home) for c in self.casts)

    def narrowed(self, allowed: Mapping[str, Collection[str]]) -> CostModel:
        """The same where the layers in ``allowed`` may have no other precisions than those."""
        times = {
            layer: {p: t for p, t in own.items() if layer not in allowed or p in allowed[layer]}
            for layer, own in self.times.items()
        }
        return replace(self, times=times)

    @property
    def precisions(self) -> tuple[str, ...]:
        """All that a layer may have, int8 first."""
        found = dict.fromkeys(p for own in self.times.values() for p in own)
        return tuple(sorted(found, key=lambda p: (p != INT8, p)))
