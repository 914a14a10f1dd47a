"""Profiles on a GPU: times of single launches beside the whole, measured ceilings."""

from __future__ import annotations

import os

import numpy as np
import pytest

import nrt
from nrt.cuda_runner import CudaRunner
from nrt.frontend.models import resnet
from nrt.insight.roofline import measure_cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU to itself: run without -n"
    ),
]


def test_the_sum_is_near_the_whole() -> None:
    engine = nrt.compile(
        resnet(depth=18, batch=4), target="cuda", precision="fp16", opt_level=0, programmatic=False
    )
    found = engine.profile(repeats=11)
    assert len(found.launches) == len(engine.plan.steps)
    assert min(launch.seconds for launch in found.launches) > 5e-7
    # One by one, data lies in the cache; together, launches follow each other sooner.
    assert 0.5 < found.total / found.seconds < 2
    assert found.ceilings is not None
    assert found.ceilings.source.startswith("measured")
    fractions = [layer.fraction for layer in found.layers]
    assert all(f is not None and 0 < f < 20 for f in fractions)
    # Profiling leaves the engine as it was.
    x = np.random.default_rng().random((4, 3, 224, 224), dtype=np.float32)
    np.testing.assert_array_equal(engine(x), engine.create_context().run({"input": x})["output"])


def test_ceilings_are_measured_once() -> None:
    runner = CudaRunner()
    first, second = measure_cuda(runner), measure_cuda(runner)
    assert first == second
    device = runner.device
    assert 0.3 < first.rates["fp16"] / device.fp16_flops < 1.3
    assert 0.3 < first.bandwidth / device.bandwidth < 1.6
