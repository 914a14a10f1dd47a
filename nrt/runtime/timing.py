"""Latency of an engine, measured: what ``nrt bench`` prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import InputError
from nrt.plan import IoSpec
from nrt.runtime.arrays import laid_out
from nrt.runtime.context import Context
from nrt.runtime.engine import Engine

__all__ = ["Latencies", "measure"]

_REPLAYS = 200


@dataclass(frozen=True)
class Latencies:
    """Times of single runs, in seconds.

    Attributes:
        host_seconds: from handing the inputs over to having the outputs, transfers included.
        device_seconds: of graph replays by device events, without transfers; None on the CPU.
    """

    host_seconds: np.ndarray[Any, Any]
    device_seconds: np.ndarray[Any, Any] | None


def measure(
    engine: Engine | Context,
    duration: float = 3.0,
    warm_up: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> Latencies:
    """Run again and again on the same inputs.

    Args:
        engine: what to run; an engine is given a context of its own.
        duration: seconds to measure for; at least one run is measured.
        warm_up: seconds to run before, at least one run.
        inputs: by name; default: random ones (floats from a standard normal distribution, whole
            numbers 0 and 1, which are valid as token ids and masks).

    Raises:
        InputError: ``duration`` or ``warm_up`` is negative, or ``inputs`` do not fit.
    """
    if duration < 0 or warm_up < 0:
        raise InputError(f"duration {duration} s, warm-up {warm_up} s: expected 0 or more")
    context = engine.create_context() if isinstance(engine, Engine) else engine
    if inputs is None:
        rng = np.random.default_rng(0)
        inputs = {spec.name: _random(spec, rng) for spec in context.inputs}
    _runs(context, inputs, warm_up)
    host = _runs(context, inputs, duration)
    repeats = max(1, min(_REPLAYS, len(host)))
    device = context.device_seconds(repeats)
    return Latencies(np.array(host), None if device is None else np.array(device))


def _runs(context: Context, inputs: Mapping[str, Any], duration: float) -> list[float]:
    seconds: list[float] = []
    end = time.perf_counter() + duration
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        context.run(inputs)
        seconds.append(time.perf_counter() - start)
    return seconds


def _random(spec: IoSpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = dtype_from_name(spec.dtype)
    if dtype.is_float:
        return laid_out(spec, rng.standard_normal(spec.shape).astype(dtype.numpy))
    return laid_out(spec, rng.integers(0, 2, spec.shape).astype(dtype.numpy))
