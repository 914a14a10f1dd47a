"""Pinned kernels: the tuner's rules for one variant, and errors that list the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from nrt.dtypes import FP32
from nrt.errors import BuildError, TuningError
from nrt.ir.ops import Relu
from nrt.kernel_pins import KernelPin, pinned
from nrt.lowering import Task
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.timing_cache import Timing

SPEC = TensorSpec.dense((3, 5), FP32)
PROBLEM = Problem(Relu(), (SPEC,), (SPEC,), (False,))
TASKS = [Task("act", ("/act",), PROBLEM, (), ()), Task("twin", ("/twin",), PROBLEM, (), ())]
TUNING = {"opt_level": 3}


@dataclass(frozen=True)
class Kind:
    name: str
    rank: int = 0
    reference: bool = False


class FakeBench:
    """'slow' has three configurations, 'fast' one, 'picky' refuses; times are looked up."""

    can_measure = True

    def __init__(self, times: dict[tuple[str, tuple[Any, ...]], float | None]) -> None:
        self.times = times
        self.measured: list[tuple[str, tuple[Any, ...]]] = []

    def variants(self, problem: Problem) -> Sequence[tuple[Any, Refusal | None]]:
        del problem
        picky = Refusal("only 3x3")
        return [(Kind("fast"), None), (Kind("slow"), None), (Kind("picky"), picky)]

    def configs(self, variant: Any, problem: Problem) -> Sequence[tuple[Any, ...]]:
        del problem
        return [(64, 1), (32, 2), (16, 4)] if variant.name == "slow" else [()]

    def estimate(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> float:
        del problem, config
        return 1.0 if variant.name == "fast" else 2.0

    def timing_key(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> str:
        return f"{variant.name} {config} {problem.key}"

    def prepare(self, jobs: Iterable[Any], *, check: bool = False) -> None:
        del jobs, check

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        del problems, seconds
        return 0

    def abandon(self) -> None:
        pass

    def measure(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> Timing:
        del problem
        self.measured.append((variant.name, config))
        seconds = self.times.get((variant.name, config), 1.0)
        return Timing(seconds, "" if seconds else "wrong result: relative error 1")


def test_the_fastest_configuration_of_the_variant_and_nothing_else() -> None:
    bench = FakeBench({("fast", ()): 0.1, ("slow", (32, 2)): 2.0, ("slow", (64, 1)): 3.0})
    bench.times["slow", (16, 4)] = 4.0
    found = pinned({"act": KernelPin("slow")}, TASKS, bench, TUNING)
    assert set(found) == {"act"}
    choice = found["act"]
    assert (choice.variant.name, choice.config, choice.seconds) == ("slow", (32, 2), 2.0)
    assert {name for name, _ in bench.measured} == {"slow"}
    notes = {c.variant: c.note for c in choice.candidates if c.note}
    assert notes == {"fast": "not looked at: slow was asked for", "picky": "only 3x3"}


@pytest.mark.parametrize("text", ["16, 4", "16,4", " 16 ,4 "])
def test_one_configuration(text: str) -> None:
    bench = FakeBench({("slow", (16, 4)): 9.0})
    choice = pinned({"twin": KernelPin("slow", text)}, TASKS, bench, TUNING)["twin"]
    assert (choice.config, choice.seconds) == ((16, 4), 9.0)
    assert bench.measured == [("slow", (16, 4))]


def test_nothing_is_measured_at_level_0() -> None:
    bench = FakeBench({})
    choice = pinned({"act": KernelPin("slow")}, TASKS, bench, {"opt_level": 0})["act"]
    assert (choice.config, choice.seconds, bench.measured) == ((64, 1), None, [])


def test_no_pins_cost_nothing() -> None:
    assert pinned({}, TASKS, FakeBench({}), TUNING) == {}


def test_a_wrong_kernel_is_refused_by_name() -> None:
    bench = FakeBench({("fast", ()): None})
    with pytest.raises(TuningError, match="no kernel gives a right result for layer 'act'"):
        pinned({"act": KernelPin("fast")}, TASKS, bench, TUNING)


@pytest.mark.parametrize(
    ("layer", "pin", "message"),
    [
        ("acd", KernelPin("fast"), "kernel fast: the plan has no layer 'acd'; near it: act"),
        ("xyz", KernelPin("slow", "1"), r"kernel slow\(1\): the plan has no layer 'xyz'$"),
        (
            "act",
            KernelPin("slw"),
            "layer 'act': no kernel for it is called 'slw'; did you mean 'slow'; candidates: "
            "fast, slow; refused: picky: only 3x3",
        ),
        ("act", KernelPin("picky"), "picky refuses it: only 3x3; candidates: fast, slow; refused"),
        (
            "act",
            KernelPin("slow", "8, 8"),
            r"slow has no configuration \(8, 8\); it has \(64, 1\), \(32, 2\), \(16, 4\)$",
        ),
    ],
)
def test_what_does_not_fit_lists_what_does(layer: str, pin: KernelPin, message: str) -> None:
    with pytest.raises(BuildError, match=message.replace("'slow'; c", r"'slow'\?; c")):
        pinned({layer: pin}, TASKS, FakeBench({}), TUNING)
