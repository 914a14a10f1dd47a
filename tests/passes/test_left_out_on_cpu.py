"""Networks of the usual kinds without any one pass, compiled by host kernels and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nrt.builder import BuildRequest, build_request
from nrt.cpu_kernels import bind
from nrt.insight.compare import relative_error
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Add, Gelu, LayerNormalization, Reshape
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pass_names, pipeline, required_passes
from nrt.runtime import Engine

from .support import Net, densenet_like, feeds, mobilenet_like, resnet_like, vgg_like
from .test_random_graphs import STEPS

pytestmark = pytest.mark.slow

TOLERANCE = {"fp32": 3e-5, "fp16": 1e-2}


def transformer_like(batch: int = 2) -> Net:
    """Attention with scaled queries, a residual, a norm and a GELU layer on its tokens."""
    net = Net("transformer_like")
    x = net.input(batch, 4, 6, 5)
    y = STEPS["attend"](net, x, STEPS["scale"](net, x, x))
    y = net.op(Add(), y, x)
    ones, zeros = (net.const(np.full(5, v, np.float32)) for v in (1.0, 0.0))
    y = net.op(LayerNormalization(), y, ones, zeros)
    y = net.op(Reshape((batch * 24, 5)), y)
    net.out(net.dense(net.op(Gelu(), net.dense(y, 11)), 5))
    return net


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (resnet_like, "fp16"),
        (densenet_like, "fp32"),
        (vgg_like, "fp16"),
        (mobilenet_like, "fp32"),
        (transformer_like, "fp16"),
    ],
)
def test_without_any_one_pass(
    make: Callable[[], Net], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    net = make()
    data = feeds(net)
    wanted = evaluate(net.graph, data)
    permitted = frozenset({precision, "fp32"})
    phases = pipeline(PipelineOptions(permitted))
    changed = {r.name for r in run_pipeline(net.graph, phases).records if r.changed}
    removable = changed - set(required_passes(phases))
    assert len(removable) >= 3
    everything = set(pass_names()) - set(required_passes(phases))
    for disabled in (*({name} for name in sorted(removable)), everything):
        request = BuildRequest(
            net.graph, permitted, target="cpu", opt_level=0, disabled=frozenset(disabled)
        )
        found = Engine(build_request(request).plan, bind).run(data)
        for name, array in wanted.items():
            error = relative_error(found[name], array)
            assert error <= TOLERANCE[precision], f"without {', '.join(disabled)}: {name}"
