"""``nrt bench``: throughput and latency of a plan or a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nrt.cli.console import human_time, make_table, output, working, write_json
from nrt.cli.source import open_engine
from nrt.insight.latency import summarize

if TYPE_CHECKING:
    from nrt.runtime import Engine

__all__ = ["measure_engine", "run", "show_measurement"]

_ROWS = ("min", "mean", "median", "p90", "p95", "p99", "max")


def run(args: argparse.Namespace) -> int:
    """Measure ``args.source``."""
    engine = open_engine(args.source, args)
    data = measure_engine(engine, args.duration, args.warm_up)
    if args.json:
        write_json(data)
    else:
        show_measurement(data)
    return 0


def measure_engine(engine: Engine, duration: float, warm_up: float) -> dict[str, Any]:
    """Run ``engine`` for ``duration`` seconds; the schema of ``nrt bench --json``.

    ``host`` is the time from handing inputs over to having the outputs; ``device`` is the time on
    the GPU alone, None on the CPU target. Times are in seconds, ``throughput`` in runs per second.
    """
    from nrt.runtime.timing import measure

    with working(f"measuring for {duration:g} s"):
        latencies = measure(engine, duration=duration, warm_up=warm_up)
    host = summarize(latencies.host_seconds)
    device = latencies.device_seconds
    target = engine.plan.target
    return {
        "name": engine.plan.name,
        "target": {"kind": target.kind, "arch": target.arch, "device": target.device},
        "inputs": [
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "layout": s.layout}
            for s in engine.inputs
        ],
        "runs": host.count,
        "throughput": 1.0 / host.mean,
        "host": host.to_data(),
        "device": summarize(device).to_data() if device is not None and len(device) else None,
    }


def show_measurement(data: dict[str, Any]) -> None:
    """The table of ``nrt bench``."""
    device = data["device"]
    columns = ("", "host", *(("device",) if device else ()))
    table = make_table(*columns, right=("host", "device"))
    for row in _ROWS:
        cells = [human_time(data["host"][row])]
        if device:
            cells.append(human_time(device[row]))
        table.add_row(row, *cells)
    target = data["target"]
    console = output()
    console.print(
        f"{data['name']} on {target['device'] or target['arch']} ({target['kind']}), "
        f"{data['runs']} runs"
    )
    console.print(table)
    console.print(f"throughput {data['throughput']:.1f} runs/s")
