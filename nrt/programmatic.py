"""Programmatic dependent launch, decided for a plan as a whole: timed with it and without.

A launch that may start early hides its start behind the end of the one before it, and takes that
one's place on the multiprocessors a little earlier than it has to. The first nearly always wins, by
how much depends on neighbours: so the plan is timed, not its layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nrt.assembly import overlapped
from nrt.plan import Plan
from nrt.plan_schema import encode_plan
from nrt.runtime.cuda import CudaDevice
from nrt.runtime.engine import Engine
from nrt.runtime.timing import measure
from nrt.timing_cache import Timing, TimingCache

__all__ = ["NOTE", "Clock", "decide", "plan_clock"]

NOTE = "programmatic launch"
"""Key of the decision in `Plan.notes`."""

Clock = Callable[[Plan, Plan], tuple[float, float]]
"""Device seconds of one run of each of two plans, measured in turns."""

_SECONDS = 0.1
_ROUNDS = 10
_REPLAYS = 200
# What a plan's time depends on: not its names and reports, and not the values of its weights.
_PROGRAM = ("target", "inputs", "outputs", "arena_bytes", "kernels", "steps", "streams")


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
    key = _key(serial)
    keys = [f"{key} {kind}" for kind in ("programmatic", "serial")]
    if cache is not None and all(k in cache for k in keys):
        early, late = (cache[k].seconds for k in keys)
    elif spent:
        return _noted(plan, f"on, not measured: {spent}")
    else:
        early, late = clock(plan, serial)
        if cache is not None:
            for k, seconds in zip(keys, (early, late), strict=True):
                cache[k] = Timing(seconds)
    if early is None or late is None or early <= late:
        return _noted(plan, f"on: {_text(early)}, {_text(late)} without")
    return _noted(serial, f"off: {_text(late)}, {_text(early)} with it")


def _noted(plan: Plan, text: str) -> Plan:
    return replace(plan, notes={**plan.notes, NOTE: text})


def _text(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.4f} ms"


def _key(serial: Plan) -> str:
    """Content address of what ``serial`` executes."""
    data = encode_plan(serial)
    binaries = [hashlib.sha256(code).hexdigest() for code in serial.cubins]
    text = json.dumps([binaries, {name: data[name] for name in _PROGRAM}])
    return f"{NOTE} {hashlib.sha256(text.encode()).hexdigest()}"


def plan_clock(device: CudaDevice) -> Clock:
    """Medians of graph replays on random inputs, about 0.1 s for each plan.

    The plans take turns: what drifts, such as the clock's frequency, meets both.
    """

    def clock(first: Plan, second: Plan) -> tuple[float, float]:
        contexts = [Engine(plan, device=device).create_context() for plan in (first, second)]
        repeats = []
        for context in contexts:
            # One run fills the inputs, and says how long one takes.
            once = measure(context, duration=0.0, warm_up=0.0).device_seconds
            assert once is not None
            wanted = _SECONDS / _ROUNDS / max(float(np.median(once)), 1e-6)
            repeats.append(max(1, min(_REPLAYS, round(wanted))))
        times: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for index, context in enumerate(contexts):
                times[index] += context.device_seconds(repeats[index]) or []
        return float(np.median(times[0])), float(np.median(times[1]))

    return clock
