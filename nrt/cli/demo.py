"""``nrt demo``: a ResNet-18 defined in Python, compiled, run, compared, measured."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from nrt.cli.bench import measure_engine, show_measurement
from nrt.cli.console import human_bytes, output, progress_bar, working
from nrt.cli.inspect import show_launches
from nrt.insight.compare import compare_outputs, default_tolerance
from nrt.insight.inputs import random_inputs
from nrt.insight.report import launch_entries
from nrt.settings import settings

__all__ = ["run"]

SECONDS = 1.0
"""How long the latency is measured: the demo is to be short."""


def run(args: argparse.Namespace) -> int:
    """Carry the demo out; 1 when the output is over the tolerance."""
    from nrt.compiled import compile as compile_model
    from nrt.frontend.models import resnet
    from nrt.ir.evaluate import evaluate
    from nrt.runtime.cuda import device_count

    console = output()
    network = resnet(depth=18, batch=args.batch)
    target = args.target or "auto"
    if target == "auto":
        target = settings().target
    if target == "auto":
        target = "cuda" if device_count() else "cpu"
    precision = args.precision or ("fp32" if target == "cpu" else "fp16")
    names = precision if isinstance(precision, str) else ",".join(sorted(precision))
    console.print(
        f"ResNet-18, {len(network.graph)} ops, batch {args.batch}, target {target}, {names}"
    )

    options: dict[str, Any] = {} if args.opt_level is None else {"opt_level": args.opt_level}
    with progress_bar() as progress:
        engine = compile_model(
            network, target=target, precision=precision, progress=progress, **options
        )
    plan = engine.plan
    show_launches(launch_entries(plan))
    before, after = sum(plan.ops_before.values()), sum(plan.ops_after.values())
    console.print(
        f"{before} ops -> {after}, weights {human_bytes(len(plan.weights))}, "
        f"arena {human_bytes(plan.arena_bytes)}"
    )

    inputs = random_inputs(engine.inputs)
    outputs = {name: np.asarray(array) for name, array in engine.run(inputs).items()}
    with working("running the fp32 reference in NumPy"):
        reference = evaluate(network.graph, inputs)
    precisions = (precision,) if isinstance(precision, str) else precision
    results = compare_outputs(outputs, reference, default_tolerance(precisions))
    for result in results:
        verdict = "ok" if result.passed else f"FAILED: {result.reason}"
        console.print(
            f"output {result.name}: relative error {result.error:.2e} against NumPy in fp32 "
            f"(tolerance {result.tolerance:g}): {verdict}"
        )
    show_measurement(measure_engine(engine, SECONDS, 0.2))
    return 0 if all(r.passed for r in results) else 1
