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

__all__ = ["Latencies", "measure", "noise_inputs", "sample"]

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
        inputs = noise_inputs(context)
    _runs(context, inputs, warm_up)
    host = _runs(context, inputs, duration)
    repeats = max(1, min(_REPLAYS, len(host)))
    device = context.device_seconds(repeats)
    return Latencies(np.array(host), None if device is None else np.array(device))


def sample(context: Context, inputs: Mapping[str, Any], repeats: int) -> np.ndarray[Any, Any]:
    """Seconds of ``repeats`` runs, by the clock that decides: the device's, on the CPU the host's.

    Args:
        context: that ran at least once.
        inputs: by name, as in its last run: the device's clock does not hand them over again.
        repeats: at least 1.
    """
    device = context.device_seconds(repeats)
    if device is not None:
        return np.array(device)
    return np.array([seconds for _ in range(repeats) for seconds in _runs(context, inputs, 0.0)])


def noise_inputs(context: Context) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs that `measure` takes by default."""
    rng = np.random.default_rng(0)
    return {spec.name: _random(spec, rng) for spec in context.inputs}


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
