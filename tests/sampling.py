"""A part of many like cases, another one on every run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

__all__ = ["some"]

_T = TypeVar("_T")


def some(cases: Iterable[_T], count: int, rng: np.random.Generator) -> list[_T]:
    """``count`` of ``cases`` by chance, in their order; the seed is in the report of a failure.

    Compiling or emulating each tile of a kernel takes minutes; what breaks one breaks many.
    """
    known = list(cases)
    assert count < len(known), f"{len(known)} cases: take them all"
    return [known[i] for i in sorted(rng.choice(len(known), count, replace=False))]
