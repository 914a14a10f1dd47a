"""What a run leaves out."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sampling import left_out, some


def cases(name: str, count: int, *marks: pytest.MarkDecorator) -> list[Any]:
    """The cases of a test, as pytest would collect them."""
    known = {mark.name: mark.mark for mark in marks}
    return [
        SimpleNamespace(nodeid=f"{name}[{k}]", get_closest_marker=known.get) for k in range(count)
    ]


def test_each_marked_test_keeps_its_count(rng: np.random.Generator) -> None:
    items = [
        *cases("a.py::test_all", 9),
        *cases("a.py::test_two", 5, pytest.mark.some(2)),
        *cases("b.py::test_two", 4, pytest.mark.some(3)),
        *cases("b.py::test_few", 2, pytest.mark.some(3)),
    ]
    numbers = {item.nodeid: int(k) for item, k in zip(items, rng.permutation(20), strict=True)}
    gone = left_out(items, lambda item: numbers[item.nodeid])
    kept = [item.nodeid.partition("[")[0] for item in items if item.nodeid not in gone]
    assert Counter(kept) == {
        "a.py::test_all": 9,
        "a.py::test_two": 2,
        "b.py::test_two": 3,
        "b.py::test_few": 2,
    }


def test_the_smallest_chance_stays() -> None:
    items = cases("a.py::test", 5, pytest.mark.some(2))
    order = dict(zip([item.nodeid for item in items], [3, 0, 4, 1, 2], strict=True))
    gone = left_out(items, lambda item: order[item.nodeid])
    assert gone == {"a.py::test[0]", "a.py::test[2]", "a.py::test[4]"}


def test_slow_cases_and_those_for_a_gpu_are_counted_by_themselves() -> None:
    one = pytest.mark.some(1)
    kinds = [(one,), (one, pytest.mark.slow), (one, pytest.mark.gpu)]
    items: list[Any] = [
        SimpleNamespace(nodeid=f"t.py::test[{k}-{i}]", get_closest_marker=case.get_closest_marker)
        for k, marks in enumerate(kinds)
        for i, case in enumerate(cases("t.py::test", 3, *marks))
    ]
    gone = left_out(items, lambda item: int(item.nodeid[-2]))
    assert {item.nodeid for item in items} - gone == {f"t.py::test[{k}-0]" for k in range(3)}


def test_one_that_is_asked_for_runs() -> None:
    (item,) = cases("t.py::test", 1, pytest.mark.some(1))
    assert left_out([item], lambda _: 7) == set()


def test_some_are_in_order_and_never_all(rng: np.random.Generator) -> None:
    found = some("abcdefg", 3, rng)
    assert len(found) == 3
    assert found == sorted(set(found))
    with pytest.raises(AssertionError, match="3 cases: take them all"):
        some("abc", 3, rng)
