"""Errors of layers, against networks that were compiled as always and against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nrt
from nrt.builder import BuildRequest
from nrt.dtypes import FP8E4M3, FP16, FP32, INT8, UINT8, DType
from nrt.errors import InputError
from nrt.insight.compare import relative_error
from nrt.insight.layer_errors import LayerErrors, LayerStudy
from nrt.insight.layer_graphs import (
    Carried,
    apart,
    computing,
    fused_graph,
    low_graph,
    narrowed,
    real,
    tapped,
)
from nrt.ir.evaluate import evaluate
from nrt.ir.value import Value
from nrt.ir.verify import verify
from nrt.passes.choice import ChoicePass
from nrt.passes.grid import Grid
from nrt.passes.pipeline import PASSES, PipelineOptions
from nrt.quantization import Calibration

from .broken_networks import Array, branching

WIDEST_INT8 = 0.1
"""Largest own error of a layer of random weights in int8."""

BY_TIME = tuple(step.name for step in PASSES if issubclass(step, ChoicePass))
"""Fusions that are left out, since a build decides them by time."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def _images(rng: np.random.Generator, count: int = 2) -> list[Array]:
    return [rng.random((2, 16, 8, 8), np.float32) for _ in range(count)]


def _study(
    net: nrt.Network,
    precision: str,
    batches: list[Array],
    calibration: Calibration | None = None,
    **options: bool,
) -> LayerErrors:
    request = BuildRequest(
        net.graph,
        precision=frozenset(precision.split(",")),
        calibration=calibration,
        target="cpu",
        opt_level=0,
    )
    return LayerStudy(request, [{"image": b} for b in batches], **options).layer_errors()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8,fp16"])
def test_every_layer_is_there_and_sound(rng: np.random.Generator, precision: str) -> None:
    net, images = branching(rng), _images(rng)
    calibration = None
    if "int8" in precision:
        calibration = nrt.calibrate(net, images, method="minmax", target="cpu")
    found = _study(net, precision, images, calibration)
    fused = fused_graph(net.graph, PipelineOptions())
    assert [e.name for e in found.layers] == [node.name for node in computing(fused)]
    assert [e.tensor for e in found.layers] == [node.output.name for node in computing(fused)]
    for layer in found.layers:
        # A value that is read with the wrong scale, or fed so, is off by a factor.
        assert 0 <= layer.own.error < WIDEST_INT8
        assert layer.own.error <= layer.accumulated.error * 1.5 + 1e-6
        assert layer.own.elements == layer.accumulated.elements > 0
    if "int8" in precision:
        stored = {e.name: e.stored for e in found.layers}
        assert [n for n, s in stored.items() if s == "uint8"] == [
            "stem", "first", "second", "left", "right", "max", "wide", "depth",
        ]  # fmt: skip
        assert {e.name: e.precision for e in found.layers}["point"] == "int8"
    first = found.layers[0]
    # Nothing comes before it.
    assert first.own.error == pytest.approx(first.accumulated.error, rel=1e-2)
    permitted = set(precision.split(","))
    engines = (
        nrt.compile(net, precision=p, calibration=c, target="cpu", opt_level=0, disabled=BY_TIME)
        for p, c in ((permitted, calibration), ("fp32", None))
    )
    low, high = (np.concatenate([engine(x) for x in images]) for engine in engines)
    assert found.outputs["scores"].error == pytest.approx(relative_error(low, high), rel=1e-3)
    assert found.error == found.outputs["scores"].error


def test_what_a_layer_adds_by_itself(rng: np.random.Generator) -> None:
    """Of a product in fp16: inputs and weights are rounded, the result too."""
    w = rng.standard_normal((2, 24, 24)).astype(np.float32)
    net = nrt.Network("two")
    x = net.relu(net.linear(net.input("image", (5, 24)), w[0], name="one"), name="relu")
    net.output(net.relu(net.linear(x, w[1], name="two")), "y")
    data = [rng.standard_normal((5, 24)).astype(np.float32)]
    found = _study(net, "fp16", data)

    def half(array: Array) -> Array:
        return array.astype(np.float16).astype(np.float64)

    exact = [np.maximum(data[0].astype(np.float64) @ w[0].T, 0)]
    exact.append(np.maximum(exact[0] @ w[1].T, 0))
    low = [half(np.maximum(half(data[0]) @ half(w[0]).T, 0))]
    low.append(np.maximum(low[0] @ half(w[1]).T, 0))
    alone = np.maximum(half(exact[0]) @ half(w[1]).T, 0)
    one, two = found.layers
    assert one.accumulated.error == pytest.approx(relative_error(low[0], exact[0]), rel=0.05)
    assert two.accumulated.error == pytest.approx(relative_error(low[1], exact[1]), rel=0.1)
    assert two.own.error == pytest.approx(relative_error(alone, exact[1]), rel=0.1)
    assert one.origins == ("one", "relu")


def test_the_references_of_numpy_agree(rng: np.random.Generator) -> None:
    net, images = branching(rng), _images(rng, 1)
    found = _study(net, "fp32", images, by_numpy=True)
    assert len(found.layers) == len(computing(fused_graph(net.graph, PipelineOptions())))
    for layer in found.layers:
        assert layer.accumulated.error < 1e-5
        assert layer.own.error < 2e-6
    itself = _study(net, "fp32", images)
    assert max(layer.accumulated.error for layer in itself.layers) == 0
    assert itself.worst is itself.layers[0]


def test_layers_in_fp32_are_exact(rng: np.random.Generator) -> None:
    net, images = branching(rng), _images(rng, 1)
    request = BuildRequest(net.graph, precision=frozenset({"fp16"}), target="cpu", opt_level=0)
    study = LayerStudy(request, [{"image": images[0]}])
    assert study.output_error(study.names) == 0
    whole, half = study.output_error(()), study.output_error(study.names[5:])
    assert half > 0
    assert 0 < whole < 1e-2
    assert study.output_error(study.names[5:], stored=True) > 0


def test_cut_graphs_verify_and_say_the_same(rng: np.random.Generator) -> None:
    net, images = branching(rng), _images(rng, 1)
    ranges = nrt.calibrate(net, images, method="minmax", target="cpu")
    options = PipelineOptions(precision=frozenset({"int8"}), calibration=ranges)
    low = low_graph(fused_graph(net.graph, options), options)
    layers = low.layers()
    whole, names = tapped(low, layers)
    cut, cut_names, fed = apart(low, layers)
    for graph in (whole, cut):
        verify(graph)
    assert names.keys() == cut_names.keys() == {c.value for c in layers}
    found = evaluate(whole, {"image": images[0]})
    feeds = {name: found[names[c.value]] for name, c in fed.items()}
    again = evaluate(cut, {"image": images[0], **feeds})
    for value, name in names.items():
        np.testing.assert_array_equal(again[cut_names[value]], found[name])


@pytest.mark.parametrize(("dtype", "zero"), [(INT8, 0), (UINT8, 3), (UINT8, 0)])
def test_integers_are_numbers_of_a_grid(rng: np.random.Generator, dtype: DType, zero: int) -> None:
    grid = Grid(dtype, np.asarray(0.25, np.float32), np.asarray(zero, np.int64))
    layer = Carried(Value("q", (40,), dtype), Value("x", (40,), FP32), grid)
    x = rng.standard_normal(40).astype(np.float32) * 9
    stored = narrowed(layer, x)
    assert stored.dtype == dtype.numpy
    info = np.iinfo(dtype.numpy)
    low, high = (np.array([info.min, info.max]) - zero) * 0.25
    np.testing.assert_array_equal(real(layer, stored), np.clip(np.rint(x * 4) / 4, low, high))


def test_floats_saturate_only_where_the_type_has_no_infinity() -> None:
    x = np.array([1.0, 1e6, -1e6], np.float32)
    half = Carried(Value("h", (3,), FP16), Value("x", (3,), FP32), None)
    np.testing.assert_array_equal(real(half, narrowed(half, x)), [1, np.inf, -np.inf])
    grid = Grid(FP8E4M3, np.asarray(2.0, np.float32), np.asarray(0, np.int64))
    eight = Carried(Value("e", (3,), FP8E4M3), Value("x", (3,), FP32), grid)
    np.testing.assert_array_equal(real(eight, narrowed(eight, x)), [1, 896, -896])


def test_batches_of_another_shape_are_refused(rng: np.random.Generator) -> None:
    images = [*_images(rng, 1), rng.random((3, 16, 8, 8), np.float32)]
    with pytest.raises(InputError) as caught:
        _study(branching(rng), "fp16", images)
    assert str(caught.value) == (
        "data: batch 1 has 3x16x8x8 for input 'image', the first has 2x16x8x8; layers are compared "
        "at one shape: fix it with shapes=, or give samples of one shape"
    )
