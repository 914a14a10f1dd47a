"""A profile in the formats of other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.insight.profile import Profile

__all__ = ["chrome_trace", "trtexec_profile"]


def chrome_trace(profile: Profile) -> dict[str, Any]:
    """The Trace Event Format, which chrome://tracing and Perfetto read.

    One complete event per launch, on a thread per stream. Launches were timed one by one: they are
    laid end to end, in the plan's order, so that lengths are measured and gaps are not. Times are
    in microseconds.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": profile.name}}
    ]
    streams = sorted({launch.stream for launch in profile.launches})
    events += [
        {"ph": "M", "pid": 0, "tid": s, "name": "thread_name", "args": {"name": f"stream {s}"}}
        for s in streams
    ]
    start = 0.0
    for launch in profile.launches:
        layer = profile.layers[launch.layer]
        length = launch.seconds * 1e6
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": launch.stream,
                "name": launch.name,
                "cat": layer.op_name,
                "ts": start,
                "dur": length,
                "args": {
                    "op": layer.op,
                    "kernel": launch.kernel,
                    "configuration": layer.config,
                    "precision": layer.precision,
                    "origins": list(layer.origins),
                    "FLOP/s of the layer": layer.flop_rate,
                    "B/s of the layer": layer.byte_rate,
                },
            }
        )
        start += length
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def trtexec_profile(profile: Profile) -> list[dict[str, Any]]:
    """What ``trtexec --exportProfile`` writes.

    ``count`` runs first; then per launch its name, and over these runs the sum, the mean and the
    median in milliseconds, with the percentage of the sum of all launches.
    """
    count = len(profile.launches[0].samples) if profile.launches else 0
    total = sum(sum(launch.samples) for launch in profile.launches)
    rows: list[dict[str, Any]] = [{"count": count}]
    for launch in profile.launches:
        spent = sum(launch.samples)
        rows.append(
            {
                "name": launch.name,
                "timeMs": spent * 1e3,
                "averageMs": launch.mean * 1e3,
                "medianMs": launch.seconds * 1e3,
                "percentage": 100 * spent / total if total else 0.0,
            }
        )
    return rows
