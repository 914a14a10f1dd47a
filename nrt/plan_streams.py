"""What makes a plan's streams sound: forks, joins, no races; and where launches may overlap."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.errors import PlanError
from nrt.plan import ForkStep, HostStep, JoinStep, LaunchStep, Step
from nrt.plan_order import find_race

__all__ = ["WAY_OUT", "check_programmatic", "check_streams", "require"]

WAY_OUT = "rebuild it with `nrt build`"


def require(condition: bool, what: str) -> None:
    """Raises PlanError: the plan is unsound, because ``what``."""
    if not condition:
        raise PlanError(f"unsound plan: {what}; {WAY_OUT}")


def check_streams(steps: Sequence[Step], streams: int) -> None:
    """Every stream is forked before its first step, joined after its last, and races with none."""
    known, open_ = {0}, set[int]()
    for index, step in enumerate(steps):
        where = f"step {index}"
        if isinstance(step, HostStep):
            continue
        if not isinstance(step, ForkStep | JoinStep):
            _known(where, {step.stream}, known)
            open_ |= {step.stream} - {0}
            continue
        others = step.targets if isinstance(step, ForkStep) else step.sources
        for stream in (step.stream, *others):
            require(
                0 <= stream < streams, f"{where}: stream {stream}, expected less than {streams}"
            )
        require(
            step.stream not in others and len(set(others)) == len(others) > 0,
            f"{where} ties stream {step.stream} to {list(others)}",
        )
        waiting, awaited = {step.stream}, set(others)
        if isinstance(step, ForkStep):
            waiting, awaited = awaited, waiting
            _known(where, awaited, known)
            known |= waiting
        else:
            _known(where, waiting | awaited, known)
        # Who waits stands for those that it waits for.
        open_ = (open_ | waiting) - awaited - {0}
    require(not open_, f"streams {sorted(open_)} are not joined at the end")
    race = find_race(steps, streams) if streams > 1 else None
    if race is not None:
        first, second, where = race
        raise PlanError(
            f"unsound plan: steps {first} and {second} both touch {where}, one of them writes, and "
            f"neither waits for the other; {WAY_OUT}"
        )


def _known(where: str, uses: set[int], known: set[int]) -> None:
    require(uses <= known, f"{where} uses stream {sorted(uses - known)} before a fork")


def check_programmatic(steps: Sequence[Step], arch: str, major: int) -> None:
    """Only behind a launch does a kernel's own wait replace the stream's order."""
    behind: dict[int, bool] = {}  # per stream, whether a launch came last
    for index, step in enumerate(steps):
        if isinstance(step, ForkStep | JoinStep):
            others = step.targets if isinstance(step, ForkStep) else step.sources
            behind.update(dict.fromkeys((step.stream, *others), False))
            continue
        if isinstance(step, HostStep):
            continue
        if isinstance(step, LaunchStep) and step.programmatic:
            where = f"step {index} is a programmatic launch"
            require(major >= 9, f"{where}, which {arch} does not know")
            require(
                behind.get(step.stream, False),
                f"{where} on stream {step.stream}, expected a launch on that stream right before "
                "it",
            )
        behind[step.stream] = isinstance(step, LaunchStep)
