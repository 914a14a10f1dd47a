"""Two plans of one network, timed against each other; decisions about whole plans rest on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np

from nrt.plan import Plan
from nrt.plan_schema import encode_plan
from nrt.runtime.cuda import CudaDevice
from nrt.runtime.engine import Engine
from nrt.runtime.timing import measure as measure_runs
from nrt.timing_cache import Timing, TimingCache

__all__ = ["Clock", "milliseconds", "plan_clock", "timed_pair"]

Clock = Callable[[Plan, Plan], tuple[float, float]]
"""Device seconds of one run of each of two plans, measured in turns."""

_SECONDS = 0.1
_ROUNDS = 10
_REPLAYS = 200
# What a plan's time depends on: not its names and reports, and not the values of its weights.
_PROGRAM = ("target", "inputs", "outputs", "arena_bytes", "kernels", "steps", "streams")


def timed_pair(
    note: str,
    plans: tuple[Plan, Plan],
    clock: Clock,
    cache: TimingCache | None,
    *,
    measure: bool = True,
) -> tuple[float | None, float | None] | None:
    """Seconds of both plans: known ones, or measured now.

    Args:
        note: what is decided; part of the key.
        plans: the two.
        clock: measures.
        cache: of timings; updated in place. Known times are not measured again, so that a second
            build makes the same plan.
        measure: whether measuring is allowed; if not, None for what is unknown.
    """
    address = hashlib.sha256("".join(map(_address, plans)).encode()).hexdigest()
    keys = [f"{note} {address} {index}" for index in range(2)]
    if cache is not None and all(k in cache for k in keys):
        return cache[keys[0]].seconds, cache[keys[1]].seconds
    if not measure:
        return None
    times = clock(*plans)
    if cache is not None:
        for key, seconds in zip(keys, times, strict=True):
            cache[key] = Timing(seconds)
    return times


def milliseconds(seconds: float | None) -> str:
    """As notes show it."""
    return "unknown" if seconds is None else f"{seconds * 1e3:.4f} ms"


def _address(plan: Plan) -> str:
    """Content address of what ``plan`` executes."""
    data = encode_plan(plan)
    binaries = [hashlib.sha256(code).hexdigest() for code in plan.cubins]
    text = json.dumps([binaries, {name: data[name] for name in _PROGRAM}])
    return hashlib.sha256(text.encode()).hexdigest()


def plan_clock(device: CudaDevice) -> Clock:
    """Medians of graph replays on random inputs, about 0.1 s for each plan.

    The plans take turns: what drifts, such as the clock's frequency, meets both.
    """

    def clock(first: Plan, second: Plan) -> tuple[float, float]:
        contexts = [Engine(plan, device=device).create_context() for plan in (first, second)]
        repeats = []
        for context in contexts:
            # One run fills the inputs, and says how long one takes.
            once = measure_runs(context, duration=0.0, warm_up=0.0).device_seconds
            assert once is not None
            wanted = _SECONDS / _ROUNDS / max(float(np.median(once)), 1e-6)
            repeats.append(max(1, min(_REPLAYS, round(wanted))))
        times: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for index, context in enumerate(contexts):
                times[index] += context.device_seconds(repeats[index]) or []
        return float(np.median(times[0])), float(np.median(times[1]))

    return clock
