"""Bisection over layers, on networks that are functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import pytest

from nrt.insight.precision_bisect import Bisection, bisect_layers

NAMES = tuple(f"layer{k}" for k in range(37))
THRESHOLD = 0.1


def _broken_by(bad: Collection[str]) -> Callable[[tuple[str, ...]], float]:
    """A network that is broken as long as one of ``bad`` is low."""
    return lambda in_fp32: 0.01 if set(bad) <= set(in_fp32) else math.inf


def _found(bad: Collection[str], most: int = 8) -> Bisection:
    return bisect_layers(NAMES, _broken_by(bad), _broken_by(bad), THRESHOLD, most)


@pytest.mark.parametrize("index", [0, 1, 17, 18, 19, 35, 36])
def test_one_layer_is_found_in_few_networks(index: int) -> None:
    found = _found([NAMES[index]])
    assert found.first == NAMES[index]
    assert found.breaking == found.in_fp32 == (NAMES[index],)
    assert found.error == 0.01
    # All low, the halvings, all but the layer: stored, and compiled.
    assert len(found.steps) <= 1 + math.ceil(math.log2(len(NAMES))) + 2


def test_several_layers_are_found_in_order(rng: np.random.Generator) -> None:
    for _ in range(20):
        chosen = sorted(rng.choice(len(NAMES), size=int(rng.integers(1, 7)), replace=False))
        bad = tuple(NAMES[k] for k in chosen)
        found = _found(bad)
        assert found.breaking == bad
        assert set(found.in_fp32) == set(bad)
        halvings = len(bad) * math.ceil(math.log2(len(NAMES)))
        # Each layer beside: whether it was the last one, and whether it is needed.
        assert len(found.steps) <= 1 + halvings + 2 * len(bad) + 1


def test_it_stops_at_the_most() -> None:
    found = _found(NAMES[5:15], most=3)
    assert found.breaking == NAMES[5:8]
    assert found.error == math.inf
    assert found.in_fp32 == found.breaking


def test_errors_that_add_up_are_charged_to_the_layer_that_crosses() -> None:
    def adds_up(in_fp32: tuple[str, ...]) -> float:
        return 0.02 * (len(NAMES) - len(in_fp32))

    found = bisect_layers(NAMES, adds_up, adds_up, THRESHOLD, 1)
    # Five layers make 0.1, which passes; the sixth is over it.
    assert found.first == "layer5"
    assert found.error == pytest.approx(0.72)


def test_what_is_not_needed_goes_back() -> None:
    """A result overflows where it is stored; read in fp32 it is not."""
    stored = _broken_by(["layer7", "layer8"])
    found = bisect_layers(NAMES, stored, _broken_by(["layer8"]), THRESHOLD, 8)
    assert found.first == "layer7"
    assert found.breaking == ("layer7", "layer8")
    assert found.in_fp32 == ("layer8",)
    assert [s.in_fp32 for s in found.steps[-2:]] == [("layer7", "layer8"), ("layer8",)]


def test_nothing_is_built_twice() -> None:
    seen: list[frozenset[str]] = []

    def error_of(in_fp32: tuple[str, ...]) -> float:
        assert len(set(in_fp32)) == len(in_fp32)
        seen.append(frozenset(in_fp32))
        return _broken_by(["layer20", "layer36"])(in_fp32)

    bisect_layers(NAMES, error_of, lambda _: 0.0, THRESHOLD, 8)
    assert len(seen) == len(set(seen))


def test_a_network_that_passes_has_none() -> None:
    found = bisect_layers(NAMES, lambda _: 0.1, lambda _: 0.1, THRESHOLD, 8)
    assert (found.first, found.breaking, found.in_fp32) == (None, (), ())
    assert [s.low for s in found.steps] == [len(NAMES)]
