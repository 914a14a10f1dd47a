"""Chooses a kernel for every problem: prune, compile, check, time, remember.

Layers with equal problems are tuned once. Candidates are ranked by each variant's analytic
estimate; ``opt_level`` says how many are measured (0: none, the best estimate is taken). A
candidate is first checked against the family's reference on fresh random data; a wrong one is
reported by name and can never win. Ties within the clock's noise go to the simpler variant. Times
are kept in a cache, so that a second build with the same cache makes the same choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nrt.errors import BuildError, TuningError
from nrt.problem import Problem, Refusal
from nrt.timing_cache import Timing, TimingCache

__all__ = ["Bench", "Candidate", "Choice", "Progress", "tune"]

Progress = Callable[[str, int, int], None]

_TOP = {0: 1, 1: 2, 2: 4, 3: 8, 4: 16, 5: 1 << 30}
"""Candidates measured per problem, by opt_level."""
_PER_VARIANT = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 1 << 30}
"""Of which of one variant: different algorithms first, then more configurations."""
_NOISE = 0.02
"""Relative difference of medians that repeats of one kernel show on an H200."""


@dataclass(frozen=True)
class Candidate:
    """One way to solve a problem, for the build report.

    Attributes:
        variant: name.
        config: as text.
        seconds: measured median; None if it was not timed.
        note: refusal, 'wrong result: …', or why it was not timed.
    """

    variant: str
    config: str
    seconds: float | None
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """The winner and everything it was chosen from."""

    variant: Any
    config: tuple[Any, ...]
    seconds: float | None
    reason: str
    candidates: tuple[Candidate, ...]


class Bench(Protocol):
    """What the tuner needs of a target; see tuner_cuda and tuner_cpu."""

    can_measure: bool

    def variants(self, problem: Problem) -> Sequence[tuple[Any, Refusal | None]]:
        """All variants of the problem's family with their refusals; the reference included."""

    def configs(self, variant: Any, problem: Problem) -> Sequence[tuple[Any, ...]]:
        """Configurations, best estimate first."""

    def estimate(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> float:
        """Expected seconds."""

    def timing_key(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> str:
        """Content address of the measurement: device, toolchain, sources, problem, config."""

    def prepare(self, jobs: Iterable[tuple[Any, Problem, tuple[Any, ...]]]) -> None:
        """Start compiling in the background."""

    def measure(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> Timing:
        """Check, then time."""


@dataclass
class _Ranked:
    variant: Any
    config: tuple[Any, ...]
    estimate: float


def tune(
    problems: Iterable[Problem],
    bench: Bench,
    *,
    opt_level: int = 3,
    cache: TimingCache | None = None,
    progress: Progress | None = None,
    names: Mapping[Problem, str] | None = None,
) -> dict[Problem, Choice]:
    """A choice per distinct problem.

    Args:
        problems: of all layers; equal ones are tuned once.
        bench: the target.
        opt_level: 0 (heuristic) to 5 (exhaustive).
        cache: of timings; updated in place.
        progress: called with ``("tune", done, total)``.
        names: of a layer per problem, for errors.

    Raises:
        BuildError: a problem that no variant supports, or opt_level out of range.
        TuningError: every candidate of a problem gave a wrong result.
    """
    if type(opt_level) is not int or opt_level not in _TOP:
        raise BuildError(f"opt_level={opt_level!r}: expected a whole number from 0 to 5")
    unique = list(dict.fromkeys(problems))
    labels = {p: f"layer '{names[p]}', {p}" if names and p in names else str(p) for p in unique}
    tables = {p: _rank(p, bench, opt_level, labels[p]) for p in unique}
    timed = bench.can_measure and opt_level > 0
    jobs = []
    for problem, (ranked, _) in tables.items():
        wanted = ranked if timed else ranked[:1]
        for r in wanted:
            known = cache is not None and bench.timing_key(r.variant, problem, r.config) in cache
            if not known or not timed:
                jobs.append((r.variant, problem, r.config))
    bench.prepare(jobs)
    choices = {}
    for done, (problem, (ranked, refused)) in enumerate(tables.items()):
        if progress is not None:
            progress("tune", done, len(tables))
        found = _choose(problem, ranked, refused, bench, timed, cache)
        if isinstance(found, str):
            raise TuningError(f"no kernel gives a right result for {labels[problem]}: {found}")
        choices[problem] = found
    if progress is not None:
        progress("tune", len(tables), len(tables))
    return choices


def _rank(
    problem: Problem, bench: Bench, opt_level: int, label: str
) -> tuple[list[_Ranked], list[Candidate]]:
    """Candidates to consider, best estimate first, and the refusals."""
    refused: list[Candidate] = []
    ranked: list[_Ranked] = []
    reference: list[_Ranked] = []
    for variant, refusal in bench.variants(problem):
        if refusal is not None:
            refused.append(Candidate(variant.name, "", None, refusal.reason))
            continue
        configs = list(bench.configs(variant, problem))[: _PER_VARIANT[opt_level]]
        entries = [_Ranked(variant, c, bench.estimate(variant, problem, c)) for c in configs]
        (reference if variant.reference else ranked).extend(entries)
    ranked.sort(key=lambda r: r.estimate)
    chosen = ranked[: _TOP[opt_level]] or reference
    if not chosen:
        why = "; ".join(f"{c.variant}: {c.note}" for c in refused) or "its op has no kernels"
        raise BuildError(f"no kernel solves {label}: {why}")
    if opt_level == 5 and ranked:
        chosen = [*chosen, *reference]
    return chosen, refused


def _choose(
    problem: Problem,
    ranked: list[_Ranked],
    refused: list[Candidate],
    bench: Bench,
    timed: bool,
    cache: TimingCache | None,
) -> Choice | str:
    """The choice, or what went wrong with every candidate."""
    first = ranked[0]
    if not timed:
        reason = "the only candidate" if len(ranked) == 1 else "best estimate, not timed"
        rows = [Candidate(r.variant.name, _text(r.config), None, "not timed") for r in ranked]
        return Choice(first.variant, first.config, None, reason, (*rows, *refused))
    rows = []
    good: list[tuple[float, _Ranked]] = []
    for r in ranked:
        timing = _timing(r, problem, bench, cache)
        rows.append(Candidate(r.variant.name, _text(r.config), timing.seconds, timing.note))
        if timing.seconds is not None:
            good.append((timing.seconds, r))
    if not good:
        return _all_wrong(problem, rows, refused, bench)
    best = min(seconds for seconds, _ in good)
    tied = [(s, r) for s, r in good if s <= best * (1 + _NOISE)]
    seconds, winner = min(tied, key=lambda item: (item[1].variant.rank, item[0]))
    reason = "the only candidate" if len(ranked) == 1 else f"fastest of {len(good)} measured"
    if seconds > best:
        reason = f"simplest of {len(tied)} within {_NOISE:.0%} of the fastest of {len(good)}"
    return Choice(winner.variant, winner.config, seconds, reason, (*rows, *refused))


def _timing(r: _Ranked, problem: Problem, bench: Bench, cache: TimingCache | None) -> Timing:
    key = bench.timing_key(r.variant, problem, r.config)
    if cache is not None and key in cache:
        return cache[key]
    timing = bench.measure(r.variant, problem, r.config)
    # What a kernel computes will not change; a compiler that was killed may do better next time.
    if cache is not None and (timing.seconds is not None or timing.note.startswith("wrong result")):
        cache[key] = timing
    return timing


def _all_wrong(
    problem: Problem, rows: list[Candidate], refused: list[Candidate], bench: Bench
) -> Choice | str:
    """Fall back on the reference variant, loudly: the report names every wrong candidate."""
    failed = {(c.variant, c.config) for c in rows}
    for variant, refusal in bench.variants(problem):
        if not variant.reference or refusal is not None:
            continue
        for config in bench.configs(variant, problem):
            if (variant.name, _text(config)) in failed:
                continue
            bench.prepare([(variant, problem, config)])
            reason = f"reference: all {len(rows)} candidates failed ({rows[0].note})"
            return Choice(variant, config, None, reason, (*rows, *refused))
    return "; ".join(f"{c.variant}({c.config}): {c.note}" for c in rows)


def _text(config: tuple[Any, ...]) -> str:
    return ", ".join(map(str, config))
