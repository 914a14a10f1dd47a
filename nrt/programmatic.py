"""Programmatic dependent launch, decided for a plan as a whole: timed with it and without.

A launch that may start early hides its start behind the end of the one before it, and takes that
one's place on the multiprocessors a little earlier than it has to. The first nearly always wins, by
how much depends on neighbours: so the plan is timed, not its layers.
"""

from __future__ import annotations

from dataclasses import replace

from nrt.assembly import overlapped
from nrt.plan import Plan
from nrt.plan_clock import Clock, milliseconds, timed_pair
from nrt.timing_cache import TimingCache

__all__ = ["NOTE", "decide"]

NOTE = "programmatic launch"
"""Key of the decision in `Plan.notes`."""


def decide(
    plan: Plan,
    wanted: bool | None,
    *,
    clock: Clock | None = None,
    cache: TimingCache | None = None,
    spent: str = "",
) -> Plan:
    """``plan`` with the faster kind of launches, and a note of both times.

    Args:
        plan: with programmatic launches wherever they can be.
        wanted: True or False: as asked, without measuring; None: whichever is faster.
        clock: measures; None where the device is not at hand or nothing is to be timed: then they
            are programmatic.
        cache: of timings; updated in place. Known times are not measured again, so that a second
            build makes the same plan.
        spent: why nothing more may be measured; empty where it may.
    """
    serial = replace(plan, steps=overlapped(plan.steps, False))
    if wanted is False:
        return _noted(serial, "off, as asked")
    if plan.steps == serial.steps:
        return _noted(plan, "off: no launch follows another")
    if wanted:
        return _noted(plan, "on, as asked")
    if clock is None:
        return _noted(plan, "on, not measured")
    times = timed_pair(NOTE, (plan, serial), clock, cache, measure=not spent)
    if times is None:
        return _noted(plan, f"on, not measured: {spent}")
    early, late = times
    if early is None or late is None or early <= late:
        return _noted(plan, f"on: {milliseconds(early)}, {milliseconds(late)} without")
    return _noted(serial, f"off: {milliseconds(late)}, {milliseconds(early)} with it")


def _noted(plan: Plan, text: str) -> Plan:
    return replace(plan, notes={**plan.notes, NOTE: text})
