"""Streams, decided for a plan as a whole: timed on several and on one.

The schedule predicts from kernels that were measured alone; how two of them share caches and memory
it does not know. So it only says whether several streams are worth a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from nrt.assembly import Bound
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Variant
from nrt.errors import BuildError
from nrt.liveness import dependencies
from nrt.memory_limit import check_limit
from nrt.plan import Plan
from nrt.plan_clock import Clock, milliseconds, timed_pair
from nrt.schedule import LEAST_GAIN, Schedule, Work, list_schedule
from nrt.timing_cache import TimingCache

__all__ = ["MOST", "NOTE", "check_wanted", "decide_streams", "parallel_schedule"]

NOTE = "streams"
"""Key of the decision in `Plan.notes`."""

MOST = 4
"""Streams that are tried: branches of networks are rarely more."""

_LIMIT = 64


def check_wanted(streams: int | None, kind: str) -> None:
    """Refuse an impossible wish.

    Raises:
        BuildError: ``streams`` is no number of streams, or the target has only one.
    """
    if streams is not None and (type(streams) is not int or not 1 <= streams <= _LIMIT):
        raise BuildError(
            f"streams={streams!r}: expected a whole number from 1 to {_LIMIT}, or None for "
            "whichever is faster"
        )
    if kind == "cpu" and streams not in (None, 1):
        raise BuildError(
            f"streams={streams}: the CPU target runs layers one after another; leave it out"
        )


def parallel_schedule(bound: Sequence[Bound], device: DeviceSpec, most: int) -> Schedule:
    """Tasks with their kernels on at most ``most`` streams.

    A task takes the time that was measured, or its estimate, and the part of the GPU's
    multiprocessors that the blocks of its largest launch cover.
    """
    works = []
    for item, before in zip(bound, dependencies([b.task for b in bound]), strict=True):
        assert isinstance(item.variant, Variant)
        problem, config = item.task.problem, item.config
        seconds = item.seconds
        if seconds is None:
            seconds = item.variant.estimate(problem, config, device)
        launches = item.variant.emit(problem, config, device).launches
        blocks = max((prod(launch.grid) for launch in launches), default=1)
        works.append(Work(seconds, min(1.0, blocks / device.multiprocessors), before))
    return list_schedule(works, most)


def decide_streams(
    serial: Plan,
    parallel: Callable[[], Plan],
    schedule: Schedule,
    wanted: int | None,
    *,
    limit: int | None = None,
    clock: Clock | None = None,
    cache: TimingCache | None = None,
    spent: str = "",
) -> Plan:
    """The plan on as many streams as are faster, with a note of both times.

    Args:
        serial: on one stream.
        parallel: makes the plan of ``schedule``.
        schedule: on several, where it finds a use for them.
        wanted: a number: as asked, without measuring; None: whichever is faster.
        limit: bytes that a plan may take, if there is a limit.
        clock: measures; None where the device is not at hand or nothing is to be timed: then the
            plan stays on one stream.
        cache: of timings; updated in place.
        spent: why nothing more may be measured; empty where it may.

    Raises:
        BuildError: the plan that was asked for takes more than ``limit``.
    """
    count, gain = schedule.streams, f"{schedule.gain:.1%}"
    if wanted == 1:
        return _noted(serial, "1, as asked")
    if count == 1:
        return serial if wanted is None else _noted(serial, "1: no two layers gain from more")
    if wanted is not None:
        made = parallel()
        if limit is not None:
            check_limit(made, limit)
        return _noted(made, f"{count}, as asked")
    if schedule.gain < LEAST_GAIN:
        return _noted(serial, f"1: the schedule gains {gain} on {count}, not measured")
    promise = f"1, not measured; the schedule gains {gain} on {count}"
    if clock is None:
        return _noted(serial, promise)
    made = parallel()
    if limit is not None:
        try:
            check_limit(made, limit)
        except BuildError as error:
            return _noted(serial, f"1; on {count}: {error}")
    times = timed_pair(NOTE, (made, serial), clock, cache, measure=not spent)
    if times is None:
        return _noted(serial, f"{promise}; {spent}")
    several, one = times
    if several is None or one is None or several >= one:
        return _noted(serial, f"1: {milliseconds(one)}, {milliseconds(several)} on {count}")
    return _noted(made, f"{count}: {milliseconds(several)}, {milliseconds(one)} on one")


def _noted(plan: Plan, text: str) -> Plan:
    return replace(plan, notes={**plan.notes, NOTE: text})
