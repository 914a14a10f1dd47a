"""A part of many like cases, another one on every run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import pytest

__all__ = ["left_out", "some"]

_T = TypeVar("_T")


def some(cases: Iterable[_T], count: int, rng: np.random.Generator) -> list[_T]:
    """``count`` of ``cases`` by chance, in their order; the seed is in the report of a failure.

    Compiling or emulating each tile of a kernel takes minutes; what breaks one breaks many.
    """
    known = list(cases)
    assert count < len(known), f"{len(known)} cases: take them all"
    return [known[i] for i in sorted(rng.choice(len(known), count, replace=False))]


def left_out(items: Sequence[pytest.Item], chance: Callable[[pytest.Item], int]) -> set[str]:
    """The names of cases that this run does without.

    A test marked ``some(count)`` keeps as many cases, those of the smallest ``chance``; the cases
    that are slow and those that need a GPU are counted by themselves. A case that was asked for by
    its name is alone, and runs.
    """
    cases: dict[tuple[str, bool, bool, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("some")
        if mark is not None:
            slow, gpu = (item.get_closest_marker(name) is not None for name in ("slow", "gpu"))
            cases[item.nodeid.partition("[")[0], slow, gpu, mark.args[0]].append(item)
    return {
        item.nodeid
        for (*_, count), found in cases.items()
        for item in sorted(found, key=chance)[count:]
    }
