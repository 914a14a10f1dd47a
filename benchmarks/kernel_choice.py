"""Which of nrt's kernels may be chosen, and what a narrower type gains over fp16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kernel_problems import NARROW, SQUARES, product
from benchmarks.protocol import Case
from nrt.dtypes import FP16
from nrt.errors import InputError
from nrt.problem import Problem, Refusal

__all__ = ["LimitedBench", "gains", "known_variants"]


class LimitedBench:
    """A tuner's bench that offers only the variants of some names.

    So the kernels of an older architecture are timed on a newer GPU. Results are still checked
    against the family's reference, whatever the names.
    """

    def __init__(self, bench: Any, names: Sequence[str]) -> None:
        self._bench = bench
        self._names = frozenset(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def variants(self, problem: Problem) -> list[tuple[Any, Refusal | None]]:
        """All variants, those that are not asked for refused."""
        return [
            (v, refusal if v.name in self._names else Refusal("left out by --variants"))
            for v, refusal in self._bench.variants(problem)
        ]


def known_variants(names: Sequence[str], target: str) -> list[str]:
    """``names`` in order, each once.

    Raises:
        InputError: the target has no variant of such a name.
    """
    if target == "cpu":
        from nrt.cpu_kernels import VARIANTS as HOST

        known = [v.name for v in HOST]
    else:
        from nrt.cuda_kernels.registry import VARIANTS

        known = [v.name for v in VARIANTS]
    missing = [n for n in names if n not in known]
    if missing:
        raise InputError(
            f"--variants: {', '.join(missing)} unknown; expected some of {', '.join(known)}"
        )
    return sorted(set(names))


def gains(cases: Sequence[Case]) -> list[Case]:
    """The square products of one run in int8, fp8 and tf32 with their rate over fp16's.

    Returns:
        Those of the same size and the same choice of variants that fp16 was measured at, each with
        ``over_fp16``.
    """
    rates: dict[tuple[str, Any], float] = {}
    for case in cases:
        if case["group"] == "gemm" and "rate" in case:
            rates[case["key"], case.get("variants")] = case["rate"]
    found = []
    for case in cases:
        half = rates.get((_HALF.get(case["key"], ""), case.get("variants")))
        if half is not None and "rate" in case:
            found.append({**case, "over_fp16": case["rate"] / half})
    return found


def _twins() -> Mapping[str, str]:
    """Key of a product in a narrow type -> that of the same product in fp16."""
    twins = {}
    for n in SQUARES:
        half = product(n, n, n, FP16).key[:16]
        for dtype, attributes in NARROW.values():
            twins[product(n, n, n, dtype, **attributes).key[:16]] = half
    return twins


_HALF = _twins()
