"""On a GPU: without any one pass a network is right; ablation's clock is that of the benchmark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import build
from nrt.frontend.models import resnet
from nrt.insight.what_if import what_if
from nrt.passes.pipeline import PipelineOptions, pass_names, pipeline, required_passes
from nrt.runtime.timing import measure

pytestmark = pytest.mark.gpu

LIMIT = {"fp32": 1e-4, "fp16": 1e-2}
NOISE = 0.05
"""Relative difference of two medians of one plan on one GPU."""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: without a pass, most kernels are those of the whole pipeline."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(kernels))


@pytest.fixture(scope="module")
def net() -> Any:
    return resnet(depth=18, batch=2, classes=10, size=64)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_any_one_pass_the_outputs_stay(net: Any, precision: str) -> None:
    steps = precision == "fp16"
    found = nrt.ablate(
        net, target="cuda", precision=precision, opt_level=0, duration=0.05, cumulative=steps
    )
    asked = PipelineOptions(frozenset({precision}))
    assert len(found.effects) == len(pass_names()) - len(required_passes(pipeline(asked)))
    effects = [*found.effects, *found.steps, *filter(None, [found.bare])]
    networks = [found.full, *(effect.network for effect in effects)]
    assert all(0 < n.error <= LIMIT[precision] for n in networks)
    if steps:
        assert found.bare is not None
        full = found.full.launches
        assert found.steps[-1].network.launches == full < found.bare.network.launches


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU to itself: run without -n"
)
def test_the_full_row_is_what_the_benchmark_says(net: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "precision": "fp16",
        "opt_level": 1,
        "timing_cache": tmp_path / "times.json",
    }
    engine = nrt.compile(net, target="cuda", **options)
    found = nrt.ablate(net, ["fuse-conv-epilogue"], target="cuda", duration=1.0, **options)
    device = measure(engine, duration=1.0).device_seconds
    assert device is not None
    assert found.full.latency.median == pytest.approx(float(np.median(device)), rel=NOISE)
    (effect,) = found.effects
    assert effect.beside.median == pytest.approx(found.full.latency.median, rel=NOISE)
    assert effect.saves.low > 0


def test_what_if_another_kernel(net: Any) -> None:
    made = build(net, target="cuda", precision="fp16", opt_level=1)
    name, choice = next(
        (n, c) for n, c in made.choices.items() if c.variant.name.startswith("conv_")
    )
    others = [
        c.variant
        for c in choice.candidates
        if c.seconds is not None and c.variant != choice.variant.name
    ]
    found = what_if(made, {name: {"variant": others[0]}}, duration=0.2)
    assert found.layers[0].after is not None
    assert found.layers[0].after.variant == others[0]
    assert found.after.error <= LIMIT["fp16"]
    assert found.layers[0].seconds_after > 0
