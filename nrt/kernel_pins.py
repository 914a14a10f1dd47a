"""Kernels that a build was told to use: the tuner's rules, with one variant to choose from.

A pinned kernel is compiled, checked and timed like any other candidate; only what it competes with
is narrowed. Pins go by task, so that of two layers with one problem each can have its own kernel.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt.errors import BuildError
from nrt.lowering import Task
from nrt.problem import Problem, Refusal
from nrt.timing_cache import Timing
from nrt.tuner import Bench, Choice, config_text, tune

__all__ = ["KernelPin", "pinned"]

_SHOWN = 12
"""Configurations that an error lists."""


@dataclass(frozen=True)
class KernelPin:
    """The kernel that a layer must have.

    Attributes:
        variant: its name.
        config: its configuration as reports write it, ``"128, 64, 3"``; None: the fastest.
    """

    variant: str
    config: str | None = None

    def __str__(self) -> str:
        return self.variant if self.config is None else f"{self.variant}({self.config})"


def pinned(
    pins: Mapping[str, KernelPin],
    tasks: Sequence[Task],
    bench: Bench,
    tuning: Mapping[str, Any],
) -> dict[str, Choice]:
    """A choice per pinned task.

    Args:
        pins: task name -> kernel.
        tasks: of the network.
        bench: the target.
        tuning: keyword arguments of `nrt.tuner.tune`.

    Raises:
        BuildError: there is no such task, variant or configuration, or the variant refuses the
            problem; the message lists what there is, and every refusal.
        TuningError: the kernel gives a wrong result.
    """
    by_name = {task.name: task for task in tasks}
    found = {}
    for name, pin in pins.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise BuildError(f"kernel {pin}: the plan has no layer '{name}'{hint}")
        problem = by_name[name].problem
        only = _Only(bench, pin, f"layer '{name}'", problem)
        found[name] = tune([problem], only, **{**tuning, "names": {problem: name}})[problem]
    return found


class _Only:
    """A bench on which one variant, and perhaps one configuration of it, is all there is."""

    def __init__(self, bench: Bench, pin: KernelPin, layer: str, problem: Problem) -> None:
        self._bench = bench
        self._pin = pin
        self.can_measure = bench.can_measure
        table = bench.variants(problem)
        self._variant = _variant(pin, layer, table)
        self._configs = _configs(pin, layer, bench.configs(self._variant, problem))

    def variants(self, problem: Problem) -> Sequence[tuple[Any, Refusal | None]]:
        other = Refusal(f"not looked at: {self._pin.variant} was asked for")
        return [
            (v, refusal if v.name == self._pin.variant else refusal or other)
            for v, refusal in self._bench.variants(problem)
        ]

    def configs(self, variant: Any, problem: Problem) -> Sequence[tuple[Any, ...]]:
        del variant, problem
        return self._configs

    def estimate(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> float:
        return self._bench.estimate(variant, problem, config)

    def workspace(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> int:
        return self._bench.workspace(variant, problem, config)

    def timing_key(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> str:
        return self._bench.timing_key(variant, problem, config)

    def prepare(
        self, jobs: Iterable[tuple[Any, Problem, tuple[Any, ...]]], *, check: bool = False
    ) -> None:
        self._bench.prepare(jobs, check=check)

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        return self._bench.next_ready(problems, seconds)

    def abandon(self) -> None:
        self._bench.abandon()

    def measure(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> Timing:
        return self._bench.measure(variant, problem, config)


def _variant(pin: KernelPin, layer: str, table: Sequence[tuple[Any, Refusal | None]]) -> Any:
    usable = ", ".join(v.name for v, refusal in table if refusal is None) or "none"
    refused = "; ".join(f"{v.name}: {r.reason}" for v, r in table if r is not None)
    ending = f"; candidates: {usable}" + (f"; refused: {refused}" if refused else "")
    for variant, refusal in table:
        if variant.name == pin.variant:
            if refusal is None:
                return variant
            raise BuildError(f"{layer}: {variant.name} refuses it: {refusal.reason}{ending}")
    near = difflib.get_close_matches(pin.variant, [v.name for v, _ in table], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise BuildError(f"{layer}: no kernel for it is called '{pin.variant}'{hint}{ending}")


def _configs(
    pin: KernelPin, layer: str, known: Sequence[tuple[Any, ...]]
) -> Sequence[tuple[Any, ...]]:
    if pin.config is None:
        return known
    wanted = _plain(pin.config)
    found = [c for c in known if _plain(config_text(c)) == wanted]
    if found:
        return found
    texts = [f"({config_text(c)})" for c in known]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    raise BuildError(
        f"{layer}: {pin.variant} has no configuration ({pin.config}); it has "
        f"{', '.join(texts[:_SHOWN])}{more}"
    )


def _plain(text: str) -> str:
    return "".join(text.split())
