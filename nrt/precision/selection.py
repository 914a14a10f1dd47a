"""What was chosen, layer by layer, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from nrt.precision.costs import INT8
from nrt.precision.frontier import Frontier

__all__ = ["LayerChoice", "Selection"]


@dataclass(frozen=True)
class LayerChoice:
    """A convolution or matrix product.

    Attributes:
        name: of the node in the fused graph.
        precision: what it computes in.
        reason: why not in a narrower type that is permitted; empty where there is none.
        seconds: precision -> time of the layer alone, without conversions; empty without times.
        instead: another precision that it may have -> seconds that the network would take longer
            with it, conversions included, as far as single layers tell.
    """

    name: str
    precision: str
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    instead: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason or self.precision}"


@dataclass(frozen=True)
class Selection:
    """The precisions of a network; ``print`` it.

    Attributes:
        layers: all convolutions and matrix products, in the graph's order.
        frontier: all networks that were compared.
        notes: what was left out, and why.
    """

    layers: tuple[LayerChoice, ...]
    frontier: Frontier
    notes: tuple[str, ...] = ()

    @property
    def above_int8(self) -> tuple[LayerChoice, ...]:
        """The layers that have more than int8, with the reason of each."""
        return tuple(layer for layer in self.layers if layer.precision != INT8)

    @property
    def summary(self) -> str:
        """One line, for the plan's notes."""
        counts = Counter(layer.precision for layer in self.layers)
        parts = [", ".join(f"{n} {p}" for p, n in sorted(counts.items())) or "no products"]
        point = self.frontier.points[self.frontier.chosen]
        singles = [p for p in self.frontier.points if p.single and p.seconds is not None]
        if point.seconds is not None:
            how = "" if point.measured else ", estimated"
            others = ", ".join(f"{p.name} {p.seconds * 1e6:.1f}" for p in singles if p.seconds)
            parts.append(f"{point.seconds * 1e6:.1f} us ({others}{how})")
        if point.accuracy is not None:
            parts.append(f"{self.frontier.metric}: {point.accuracy:.4g}")
        return "; ".join([*parts, *self.notes])

    def __str__(self) -> str:
        lines = [self.summary]
        if self.above_int8 and any(layer.precision == INT8 for layer in self.layers):
            lines.append(f"above int8: {len(self.above_int8)} of {len(self.layers)}")
            lines += [f"  {layer}" for layer in self.above_int8]
        return "\n".join([*lines, str(self.frontier)])
