"""Which precision a layer has: the permitted set, narrowed by name patterns and by a choice."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, INT8, DType
from nrt.errors import BuildError
from nrt.ir.graph import Graph
from nrt.ir.value import Node

__all__ = [
    "FP16_LIMIT",
    "QUANTIZED",
    "REAL",
    "STORAGE",
    "Assignment",
    "LayerRules",
    "quantized_name",
]

STORAGE: Mapping[str, DType] = {"fp16": FP16, "bf16": BF16, "tf32": FP32, "fp32": FP32}
"""Precision -> the type that its tensors are stored in; the fastest precision first."""

QUANTIZED: Mapping[str, DType] = {"int8": INT8, "fp8": FP8E4M3}
"""Precision -> the type of few bits that weights have, scales beside them; the first one wins."""


def quantized_name(dtype: DType) -> str | None:
    """The precision of a product whose left operand is of ``dtype``, if that has few bits."""
    if dtype in BYTES:
        return "int8"
    return "fp8" if dtype is FP8E4M3 else None


FP16_LIMIT = 65504.0 / 2
"""Largest magnitude that calibration may have seen in what is stored as fp16: half of what fp16
holds, since other data than those of the calibration go further."""


REAL = ".real"
"""What the name of a value that is stored in integers has behind it where it is read as floats."""


@dataclass(frozen=True)
class Assignment:
    """The precision of single layers, as `nrt.precision` chose it.

    Rules that stand for a measurement, such as the first layer's floats, do not apply to a graph
    that has one; what no kernel can do is refused as ever.

    Attributes:
        layers: node of the fused graph -> precision.
        reasons: node -> why it has that, for the notes.
    """

    layers: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def of(self, node: Node) -> tuple[str, str] | None:
        """(precision, reason) of ``node``, or of what it was made from; None where it has none."""
        for name in (node.name, *node.origin):
            if name in self.layers:
                precision = self.layers[name]
                return precision, self.reasons.get(name, f"{precision}: chosen")
        return None


def _check_known(precision: str, where: str) -> None:
    known = sorted({*STORAGE, *QUANTIZED})
    if precision not in known:
        raise BuildError(
            f"{where}: precision {precision!r} is unknown; permitted: {', '.join(known)}"
        )


@dataclass(frozen=True)
class LayerRules:
    """The permitted precisions and the patterns that narrow them.

    What int8 or fp8 is permitted for is quantized before (`nrt.passes.quantize`); here such a
    layer, where it could not be, takes the fastest of the other permitted precisions, or fp32.

    Attributes:
        permitted: names of precisions.
        layers: pattern -> precision, the first match counts.
        assignment: precisions of what no pattern matches.
    """

    permitted: frozenset[str]
    layers: Mapping[str, str]
    assignment: Assignment | None = None

    @classmethod
    def checked(
        cls,
        permitted: frozenset[str],
        layers: Mapping[str, str],
        graph: Graph,
        assignment: Assignment | None = None,
    ) -> LayerRules:
        """The rules for ``graph``.

        Raises:
            BuildError: no precision is permitted, one is unknown, a pattern asks for one that is
            not
                permitted, or matches no node.
        """
        if not permitted:
            raise BuildError(
                f"precision: the set is empty; permit some of {', '.join(sorted(STORAGE))}"
            )
        for precision in sorted(permitted):
            _check_known(precision, "precision")
        names = sorted({n for node in graph.nodes for n in (node.name, *node.origin)})
        for pattern, precision in layers.items():
            _check_known(precision, f"layer pattern {pattern!r}")
            if precision not in permitted:
                raise BuildError(
                    f"layer pattern {pattern!r}: {precision} is not permitted; "
                    f"permitted: {', '.join(sorted(permitted))}"
                )
            if not any(fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                hint = f"; near it: {', '.join(near)}" if near else ""
                raise BuildError(
                    f"layer pattern {pattern!r} matches none of the {len(names)} names of graph "
                    f"'{graph.name}'{hint}"
                )
        return cls(permitted, layers, assignment)

    @property
    def fastest(self) -> str:
        """The fastest permitted precision of floats; fp32 where none is permitted."""
        return next((p for p in STORAGE if p in self.permitted), "fp32")

    def pattern(self, node: Node) -> str | None:
        """The first pattern that matches ``node`` or a node of the model behind it."""
        for pattern in self.layers:
            if any(fnmatchcase(name, pattern) for name in (node.name, *node.origin)):
                return pattern
        return None

    def of(self, node: Node) -> tuple[str, str]:
        """(precision of ``node``, the reason for it)."""
        pattern = self.pattern(node)
        if pattern is not None and self.layers[pattern] not in QUANTIZED:
            return self.layers[pattern], f"{self.layers[pattern]}: asked for by pattern {pattern!r}"
        chosen = self.assignment.of(node) if self.assignment is not None else None
        if chosen is not None and chosen[0] != "int8":
            return chosen
        if self.permitted == {self.fastest}:
            return self.fastest, f"{self.fastest}: the only permitted precision"
        others = ", ".join(p for p in STORAGE if p in self.permitted) or "floats"
        return self.fastest, f"{self.fastest}: the fastest of {others}"

    def require_fp32(self, node: Node, value: str, precision: str) -> None:
        """BuildError unless ``node`` may fall back on fp32."""
        if self.fastest not in ("fp32", "tf32") and not self.permitted & {"fp32", "tf32"}:
            raise BuildError(
                f"{node}: '{value}' goes beyond the range of {precision} and fp32 is not "
                "permitted; permit fp32 too"
            )
