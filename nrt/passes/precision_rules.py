"""Which precision a layer may have: the permitted set, narrowed by name patterns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, DType
from nrt.errors import BuildError
from nrt.ir.graph import Graph
from nrt.ir.value import Node

__all__ = ["QUANTIZED", "STORAGE", "LayerRules"]

STORAGE: Mapping[str, DType] = {"fp16": FP16, "bf16": BF16, "tf32": FP32, "fp32": FP32}
"""Precision -> the type that its tensors are stored in; the fastest precision first."""

QUANTIZED: Mapping[str, DType] = {"int8": INT8, "fp8": FP8E4M3}
"""Precision -> the type of few bits that operands have, scales beside them; the first one wins."""


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
    """

    permitted: frozenset[str]
    layers: Mapping[str, str]

    @classmethod
    def checked(
        cls, permitted: frozenset[str], layers: Mapping[str, str], graph: Graph
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
        return cls(permitted, layers)

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
