"""Chooses a kernel for every problem: prune, compile, check, time, remember.

Layers with equal problems are tuned once, those first that take most of the network's time by their
estimates, and among them whichever is compiled. Candidates are ranked by each variant's analytic
estimate; ``opt_level`` says how many are measured (0: none, the best estimate is taken). A
candidate is first checked against the family's reference on fresh random data; a wrong one is
reported by name and can never win. Ties within the clock's noise go to the simpler variant. A
variant that a user registered is always among those measured; where nothing is, so that nobody
checks it, it comes behind the built-in ones. Times
are kept in a cache, so that a second build with the same cache makes the same choices. A budget of
seconds ends measuring early: what is not known by then takes its best estimate.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nrt.errors import BuildError, TuningError
from nrt.extensions.registry import registry
from nrt.problem import Problem, Refusal
from nrt.sizes import human_bytes
from nrt.timing_cache import Timing, TimingCache

__all__ = ["Bench", "Candidate", "Choice", "Progress", "best_estimate", "config_text", "tune"]

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
        config: as text; of those that opt_level leaves out, how many there are.
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

    def workspace(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> int:
        """Bytes of scratch memory."""

    def timing_key(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> str:
        """Content address of the measurement: device, toolchain, sources, problem, config."""

    def prepare(
        self, jobs: Iterable[tuple[Any, Problem, tuple[Any, ...]]], *, check: bool = False
    ) -> None:
        """Start compiling in the background; with ``check``, also what `measure` compares with."""

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        """Index of the first problem of which everything that was prepared is compiled.

        Waits until there is one; None after ``seconds`` without.
        """

    def abandon(self) -> None:
        """Drop what was prepared and has not begun; it may be prepared again."""

    def measure(self, variant: Any, problem: Problem, config: tuple[Any, ...]) -> Timing:
        """Check, then time."""


@dataclass
class _Ranked:
    variant: Any
    config: tuple[Any, ...]
    estimate: float
    key: str = ""

    def timing_key(self, problem: Problem, bench: Bench) -> str:
        """Made once: it emits the kernels."""
        self.key = self.key or bench.timing_key(self.variant, problem, self.config)
        return self.key


def tune(
    problems: Iterable[Problem],
    bench: Bench,
    *,
    opt_level: int = 3,
    cache: TimingCache | None = None,
    progress: Progress | None = None,
    names: Mapping[Problem, str] | None = None,
    tuning_seconds: float | None = None,
    begun: float | None = None,
    room: Mapping[Problem, int] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Problem, Choice]:
    """A choice per distinct problem.

    Args:
        problems: of all layers; equal ones are tuned once.
        bench: the target.
        opt_level: 0 (heuristic) to 5 (exhaustive).
        cache: of timings; updated in place.
        progress: called with ``("tune", done, total)``.
        names: of a layer per problem, for errors.
        tuning_seconds: start no measurement after so many seconds; None: no limit. Known times cost
            none and always count.
        begun: reading of ``clock`` from which those seconds count; None: now.
        room: per problem, bytes that a workspace may take; what takes more is refused.
        clock: seconds, for that limit.

    Raises:
        BuildError: a problem that no variant supports, or an option out of range.
        TuningError: every candidate of a problem gave a wrong result.
    """
    if type(opt_level) is not int or opt_level not in _TOP:
        raise BuildError(f"opt_level={opt_level!r}: expected a whole number from 0 to 5")
    _check_seconds(tuning_seconds)
    counts = Counter(problems)
    labels = {p: f"layer '{names[p]}', {p}" if names and p in names else str(p) for p in counts}
    room = room or {}
    tables = {p: _rank(p, bench, opt_level, labels[p], room.get(p)) for p in counts}
    # Where the network spends its time comes first, in case that the budget ends.
    waiting = sorted(counts, key=lambda p: -tables[p][0][0].estimate * counts[p])
    budget = _Budget(tuning_seconds, clock, begun)
    timed = bench.can_measure and opt_level > 0
    for problem in waiting:
        ranked = tables[problem][0]
        if not timed:
            bench.prepare([(r.variant, problem, r.config) for r in ranked[:1]])
        elif not budget.spent():
            unknown = [r for r in ranked if _known(r, problem, bench, cache) is None]
            if unknown:
                bench.prepare([(r.variant, problem, r.config) for r in unknown], check=True)
    choices: dict[Problem, Choice] = {}
    abandoned = False
    while waiting:
        if progress is not None:
            progress("tune", len(choices), len(tables))
        ready = bench.next_ready(waiting, budget.left()) if timed and not budget.spent() else None
        if timed and ready is None and not abandoned:
            bench.abandon()
            abandoned = True
        problem = waiting.pop(ready or 0)
        found = _choose(problem, tables[problem], bench, timed, cache, budget)
        if isinstance(found, str):
            raise TuningError(f"no kernel gives a right result for {labels[problem]}: {found}")
        choices[problem] = found
    if progress is not None:
        progress("tune", len(tables), len(tables))
    return {problem: choices[problem] for problem in counts}


def best_estimate(problem: Problem, bench: Bench, label: str = "") -> float:
    """Seconds that the candidate which `tune` would take without measuring is expected to need.

    Raises:
        BuildError: no variant supports the problem.
    """
    ranked, _ = _rank(problem, bench, 0, label or str(problem), None)
    return ranked[0].estimate


class _Budget:
    """Seconds that measuring may take; once spent it stays so."""

    def __init__(
        self, seconds: float | None, clock: Callable[[], float], begun: float | None = None
    ) -> None:
        self.seconds = seconds
        self.clock = clock
        start = clock() if begun is None else begun
        self.end = None if seconds is None else start + seconds
        self.over = False

    def left(self) -> float | None:
        """None without a limit."""
        return None if self.end is None else max(0.0, self.end - self.clock())

    def spent(self) -> bool:
        self.over = self.over or self.left() == 0.0
        return self.over


def _check_seconds(seconds: float | None) -> None:
    valid = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (valid and math.isfinite(seconds) and seconds >= 0):
        raise BuildError(
            f"tuning_seconds={seconds!r}: expected a number of at least 0, or None for no limit"
        )


def _rank(
    problem: Problem, bench: Bench, opt_level: int, label: str, room: int | None
) -> tuple[list[_Ranked], list[Candidate]]:
    """Candidates to consider, best estimate first, and the refusals.

    With ``room``, those whose workspace is larger are refused.
    """
    refused: list[Candidate] = []
    ranked: list[_Ranked] = []
    reference: list[_Ranked] = []
    users: list[_Ranked] = []
    left_out: Counter[str] = Counter()
    for variant, refusal in bench.variants(problem):
        if refusal is not None:
            refused.append(Candidate(variant.name, "", None, refusal.reason))
            continue
        known = list(bench.configs(variant, problem))
        if room is not None:
            sizes = [bench.workspace(variant, problem, c) for c in known]
            large = [s for s in sizes if s > room]
            if large:
                note = f"needs a workspace of {_range(large)}, memory_limit leaves "
                text = f"{len(large)} configuration(s)"
                refused.append(Candidate(variant.name, text, None, note + human_bytes(room)))
            known = [c for c, s in zip(known, sizes, strict=True) if s <= room]
        configs = known[: _PER_VARIANT[opt_level]]
        if not variant.reference:
            left_out[variant.name] = len(known) - len(configs)
        entries = [_Ranked(variant, c, bench.estimate(variant, problem, c)) for c in configs]
        own = registry.is_users(variant)
        (users if own else reference if variant.reference else ranked).extend(entries)
    ranked.sort(key=lambda r: r.estimate)
    users.sort(key=lambda r: r.estimate)
    # Built in first: the order counts only where nothing is measured, and so nothing checked.
    chosen = (ranked[: _TOP[opt_level]] or reference) + users
    if not chosen:
        why = "; ".join(f"{c.variant}: {c.note}" for c in refused) or _no_kernels(problem)
        raise BuildError(f"no kernel solves {label}: {why}")
    if opt_level == 5 and ranked:
        chosen = [*chosen, *reference]
    left_out.update(r.variant.name for r in ranked if r not in chosen)
    cut = [
        Candidate(name, f"{count} configuration(s)", None, f"left out at opt_level={opt_level}")
        for name, count in left_out.items()
        if count > 0
    ]
    return chosen, [*cut, *refused]


def _no_kernels(problem: Problem) -> str:
    if registry.ops.get(problem.family) is not None:
        return (
            f"the op {problem.family} brings a reference for the CPU and no kernel for this "
            "target; register one (nrt.variant), give the op a pointwise program instead (derive "
            "it from nrt.ir.ops.Elementwise, or use nrt.pointwise), or build with target='cpu'"
        )
    return "its op has no kernels; if it is your own, register it (nrt.op)"


def _range(sizes: Sequence[int]) -> str:
    low, high = human_bytes(min(sizes)), human_bytes(max(sizes))
    return low if low == high else f"{low} to {high}"


def _choose(
    problem: Problem,
    table: tuple[list[_Ranked], list[Candidate]],
    bench: Bench,
    timed: bool,
    cache: TimingCache | None,
    budget: _Budget,
) -> Choice | str:
    """The choice, or what went wrong with every candidate."""
    ranked, refused = table
    if not timed:
        reason = "the only candidate" if len(ranked) == 1 else "best estimate, not timed"
        rows = [Candidate(r.variant.name, config_text(r.config), None, "not timed") for r in ranked]
        first = ranked[0]
        return Choice(first.variant, first.config, None, reason, (*rows, *refused))
    spent = f"tuning_seconds={budget.seconds:g} spent" if budget.seconds is not None else ""
    rows = []
    good: list[tuple[float, _Ranked]] = []
    unknown: list[_Ranked] = []
    for r in ranked:
        timing = _timing(r, problem, bench, cache, budget)
        if timing is None:
            unknown.append(r)
            timing = Timing(None, f"not timed: {spent}")
        rows.append(Candidate(r.variant.name, config_text(r.config), timing.seconds, timing.note))
        if timing.seconds is not None:
            good.append((timing.seconds, r))
    if not good and unknown:
        first = unknown[0]
        bench.prepare([(first.variant, problem, first.config)])
        reason = f"best estimate, {spent}"
        return Choice(first.variant, first.config, None, reason, (*rows, *refused))
    if not good:
        return _all_wrong(problem, rows, refused, bench)
    best = min(seconds for seconds, _ in good)
    tied = [(s, r) for s, r in good if s <= best * (1 + _NOISE)]
    seconds, winner = min(tied, key=lambda item: (item[1].variant.rank, item[0]))
    reason = "the only candidate" if len(ranked) == 1 else f"fastest of {len(good)} measured"
    if seconds > best:
        reason = f"simplest of {len(tied)} within {_NOISE:.0%} of the fastest of {len(good)}"
    if unknown:
        reason += f", {spent}"
    return Choice(winner.variant, winner.config, seconds, reason, (*rows, *refused))


def _known(r: _Ranked, problem: Problem, bench: Bench, cache: TimingCache | None) -> Timing | None:
    if cache is not None:
        key = r.timing_key(problem, bench)
        if key in cache:
            return cache[key]
    return None


def _timing(
    r: _Ranked, problem: Problem, bench: Bench, cache: TimingCache | None, budget: _Budget
) -> Timing | None:
    """What is known or measured now; None where the budget leaves no time to."""
    known = _known(r, problem, bench, cache)
    if known is not None or budget.spent():
        return known
    timing = bench.measure(r.variant, problem, r.config)
    # What a kernel computes will not change; a compiler that was killed may do better next time.
    if cache is not None and (timing.seconds is not None or timing.note.startswith("wrong result")):
        cache[r.timing_key(problem, bench)] = timing
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
            if (variant.name, config_text(config)) in failed:
                continue
            bench.prepare([(variant, problem, config)])
            reason = f"reference: all {len(rows)} candidates failed ({rows[0].note})"
            return Choice(variant, config, None, reason, (*rows, *refused))
    return "; ".join(f"{c.variant}({c.config}): {c.note}" for c in rows)


def config_text(config: tuple[Any, ...]) -> str:
    """A configuration as reports write it."""
    return ", ".join(map(str, config))
