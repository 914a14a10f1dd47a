"""A network compiled for the GPU at hand: right, reproducible, and run without the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrt.builder import build
from nrt.compiled import compile
from nrt.frontend.models import resnet
from nrt.ir.evaluate import evaluate
from nrt.plan_file import plan_to_bytes, read_plan
from nrt.runtime import Engine, load
from nrt.trial import relative_error

pytestmark = pytest.mark.gpu

LIMIT = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}

# Runs a plan in a process that cannot import the compiler's packages.
BARE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "onnx", "networkx", "llvmlite"):
            raise ImportError(f"{name} is blocked")
        return None

sys.meta_path.insert(0, Blocked())
import numpy as np
import nrt

engine = nrt.load(sys.argv[1])
np.save(sys.argv[3], engine(np.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def net() -> Any:
    return resnet(depth=18, batch=3, classes=10, size=64)


@pytest.fixture(scope="module")
def image() -> Any:
    return np.random.default_rng(5).random((3, 3, 64, 64), np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_network_is_right(net: Any, image: Any, precision: str) -> None:
    engine = compile(net, target="cuda", precision=precision, opt_level=1)
    (out,) = engine.run({net.graph.inputs[0].name: image}).values()
    (ref,) = evaluate(net.graph, {net.graph.inputs[0].name: image}).values()
    assert relative_error(out, ref) <= LIMIT[precision]


def test_a_pooling_with_a_choice_is_right() -> None:
    """Behind the last convolution: in its kernel or apart, whichever is faster here."""
    net = resnet(depth=18, batch=3, classes=10, size=96)
    image = np.random.default_rng(7).random((3, 3, 96, 96), np.float32)
    apart = frozenset({"fuse-pool-classifier"})
    engine = compile(net, target="cuda", precision="fp16", opt_level=2, disabled=apart)
    assert "fuse-pool-conv: " in engine.plan.notes["fusion"]
    (out,) = engine.run({net.graph.inputs[0].name: image}).values()
    (ref,) = evaluate(net.graph, {net.graph.inputs[0].name: image}).values()
    assert relative_error(out, ref) <= LIMIT["fp16"]


def test_two_builds_are_one_plan(net: Any, image: Any, tmp_path: Path) -> None:
    cache = tmp_path / "timings.json"
    plans = [
        build(net, target="cuda", precision="fp16", opt_level=2, timing_cache=cache).plan
        for _ in range(2)
    ]
    first, second = map(plan_to_bytes, plans)
    assert first == second

    path = tmp_path / "net.nrt"
    Engine(plans[0]).save(path)
    assert read_plan(path) == plans[0]
    outputs = [engine(image) for engine in (Engine(plans[0]), load(path))]
    np.testing.assert_array_equal(outputs[0], outputs[1])

    source, target = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(source, image)
    subprocess.run(
        [sys.executable, "-c", BARE, str(path), str(source), str(target)], check=True, timeout=120
    )
    np.testing.assert_array_equal(np.load(target), outputs[0])


def test_runs_are_bit_identical(net: Any, image: Any) -> None:
    engine = compile(net, target="cuda", precision="fp16", opt_level=0)
    first = engine(image)
    for _ in range(20):
        np.testing.assert_array_equal(engine(image), first)
