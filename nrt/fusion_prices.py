"""What tasks cost, measured or estimated: the other half of `nrt.fusion_choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nrt.lowering import Lowered, Task
from nrt.problem import Problem
from nrt.rewriting import Rewritten
from nrt.timing_cache import TimingCache
from nrt.tuner import Bench, Choice, Progress, best_estimate, tune

__all__ = ["Prices", "Room"]

Room = Callable[[Lowered], Mapping[Problem, int]]
"""Bytes that a workspace may take, per problem of an outcome."""


class Prices:
    """Seconds per task, of all outcomes that were looked at.

    A measured time stands for the task's whole share of the network: it is taken in a graph of
    launches that each wait for the one before, so that what one more dependent launch costs (0.8 us
    on an H200) is in it, as are 1.5 to 3 us in every estimate. Nothing is added per launch.
    """

    def __init__(
        self,
        bench: Bench,
        opt_level: int,
        cache: TimingCache | None,
        progress: Progress | None,
        tuning_seconds: float | None,
        room: Room | None,
        clock: Callable[[], float],
    ) -> None:
        self._bench = bench
        self._opt_level = opt_level
        self._cache = cache
        self._progress = progress
        self._limit = tuning_seconds
        self._room = room
        self._clock = clock
        self._begun = clock()
        self._timed = bench.can_measure and opt_level != 0
        self._found: dict[Problem, Choice] = {}
        self._estimates: dict[Problem, float] = {}

    def learn(self, *outcomes: Rewritten | Lowered) -> None:
        """Tune what is not known yet of all outcomes together; nothing where nothing is timed."""
        if self._timed:
            self._tune([o if isinstance(o, Lowered) else o.lowered for o in outcomes])

    def choices(self, lowered: Lowered) -> dict[Problem, Choice]:
        """A choice for each problem of ``lowered``."""
        self._tune([lowered])
        return {task.problem: self._found[task.problem] for task in lowered.tasks}

    @property
    def timed(self) -> bool:
        """Whether anything is measured."""
        return self._timed

    def seconds(self, tasks: Sequence[Task]) -> float | None:
        """Measured time of ``tasks``; None unless all of them were."""
        times = [self._found[t.problem].seconds if self._timed else None for t in tasks]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) if len(known) == len(times) else None

    def estimate(self, tasks: Sequence[Task]) -> float:
        """Estimated time of ``tasks``."""
        return sum(self._estimate(task) for task in tasks)

    def _estimate(self, task: Task) -> float:
        problem = task.problem
        if problem not in self._estimates:
            if problem in self._found:
                choice = self._found[problem]
                seconds = self._bench.estimate(choice.variant, problem, choice.config)
            else:
                seconds = best_estimate(problem, self._bench, f"layer '{task.name}', {problem}")
            self._estimates[problem] = seconds
        return self._estimates[problem]

    def _tune(self, outcomes: Sequence[Lowered]) -> None:
        tasks = [task for lowered in outcomes for task in lowered.tasks]
        new = [task for task in tasks if task.problem not in self._found]
        if not new and self._found:
            return
        room: dict[Problem, int] = {}
        # What has no outputs is no network, only tasks that are to be priced.
        networks = [lowered for lowered in outcomes if lowered.outputs]
        rooms = [self._room(lowered) for lowered in networks] if self._room is not None else []
        for found in rooms:
            for problem, nbytes in found.items():
                room[problem] = min(nbytes, room.get(problem, nbytes))
        before = len(self._found)
        progress = self._progress

        def further(stage: str, done: int, total: int) -> None:
            assert progress is not None
            progress(stage, before + done, before + total)

        self._found |= tune(
            [task.problem for task in new],
            self._bench,
            opt_level=self._opt_level,
            cache=self._cache,
            progress=None if progress is None else further,
            # The first layer of those that share a problem.
            names={task.problem: task.name for task in reversed(new)},
            tuning_seconds=self._limit,
            room=room or None,
            begun=self._begun,
            clock=self._clock,
        )
