"""The examples build the networks that they say, and print them when run."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nrt.ir.evaluate import evaluate
from nrt.ir.verify import verify

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RNG = np.random.default_rng()

# Parameters as the papers' reference implementations count them.
NETWORKS = {
    "resnet": ({"width": 8, "size": 64}, 11_689_512),
    "vgg": ({"width": 8, "hidden": 32, "size": 32}, 143_667_240),
    "googlenet": ({"size": 64}, None),
    "mobilenet_v2": ({"size": 64}, 3_504_872),
}


@pytest.fixture
def example(monkeypatch, request):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("show", request.param):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return request.param, importlib.import_module(request.param)


@pytest.mark.parametrize("example", NETWORKS, indirect=True)
def test_a_small_one_runs(example) -> None:
    name, module = example
    options, _ = NETWORKS[name]
    net = module.build(batch=2, classes=11, **options)
    graph = net.graph
    verify(graph)
    names = [n.output.name for n in graph.nodes if n.op.name in ("Conv", "MatMul", "Add")]
    x = RNG.standard_normal(graph.inputs[0].shape).astype(np.float32)
    found = evaluate(graph, {"input": x}, until=[*names, graph.outputs["output"].name])
    assert graph.outputs["output"].shape == (2, 11)
    spread = [float(found[n].std()) for n in names]
    assert 0.05 < min(spread) < max(spread) < 12


@pytest.mark.parametrize("example", ["resnet", "mobilenet_v2", "vgg"], indirect=True)
def test_number_of_parameters(example) -> None:
    name, module = example
    graph = module.build().graph
    statistics = sum(
        2 * n.inputs[1].shape[0] for n in graph.nodes if n.op.name == "BatchNormalization"
    )
    total = sum(c.constant.size for c in graph.constants) - statistics
    assert total == NETWORKS[name][1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet.py"], "resnet18: %input: fp32[1,3,224,224]"),
        (["resnet.py", "50", "2"], "resnet50: %input: fp32[2,3,224,224]"),
        (["googlenet.py"], "fp32[1,1024,7,7]"),
    ],
)
def test_they_print_their_layers(arguments, expected) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(EXAMPLES.parent)},
    )  # fmt: skip
    assert expected in done.stdout
    assert "million weights" in done.stdout
