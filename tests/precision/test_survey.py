"""What there is to choose in a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import nrt
from nrt.dtypes import FP32, INT8
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, Dequantize, Quantize
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.precision.survey import Survey, survey

from .networks import calibrated, network

ALL = frozenset({"fp32", "fp16", "int8"})


def looked_at(
    net: nrt.Network,
    precision: frozenset[str] = ALL,
    layers: Mapping[str, str] | None = None,
    ranges: nrt.Calibration | None = None,
) -> Survey:
    options = PipelineOptions(precision, layers or {}, calibration=ranges)
    phases = pipeline(options)
    first = next(k for k, p in enumerate(phases) if p.name == "quantize")
    return survey(run_pipeline(net.graph, phases[:first]).graph, options)


def test_layers() -> None:
    found = looked_at(network(), ranges=calibrated())
    products = [n for n, layer in found.layers.items() if layer.is_product]
    assert products == ["stem", "block.a", "block.down", "block.b", "grouped", "last", "head"]
    three = ("int8", "fp16", "fp32")
    assert {n for n in products if found.layers[n].able == three} == {*products} - {"grouped"}
    assert found.layers["grouped"].able == found.layers["mean"].able == ("fp16", "fp32")
    assert found.layers["grouped"].refusals["int8"].startswith("no int8: int8 kernels read input")
    assert found.layers["block.a"].work == 32 * 9 * 11 * 16 * 9
    assert found.layers["grouped"].work == 32 * 2 * 9 * 11 * 9
    assert found.layers["head"].work == 10 * 32
    assert found.layers["mean"].work == 32
    assert "flat" not in found.layers  # it only moves
    assert set(found.layers["block.b"].origins) == {"block.b", "block.sum", "block.out"}
    assert (found.precisions, found.home) == (three, "fp16")


def test_who_shares_a_value() -> None:
    found = looked_at(network(), ranges=calibrated())
    shared = {link.value.name: link for link in found.shared}
    assert shared["stem.relu"].readers == ("block.a", "block.down")
    assert shared["stem.relu"].source == "stem"
    assert shared["grouped.relu"].readers == ("last",)
    assert "block.out" not in shared  # only the grouped layer reads it, which is never int8
    assert "image" not in shared
    between = {link.value.name: (link.source, link.readers) for link in found.between}
    assert between["block.out"] == ("block.b", ("grouped",))
    assert between["mean"] == ("mean", ("head",))  # through the Reshape


def test_one_kind_of_floats_needs_no_casts() -> None:
    found = looked_at(network(), frozenset({"int8", "fp16"}), ranges=calibrated())
    assert found.between == ()
    assert found.precisions == ("int8", "fp16")
    assert looked_at(network(), frozenset({"tf32", "fp32"})).between == ()


def test_without_ranges_nothing_is_int8() -> None:
    found = looked_at(network(), frozenset({"fp16", "fp32"}))
    assert found.shared == ()
    assert found.precisions == ("fp16", "fp32")


def test_patterns_leave_one() -> None:
    layers = {"block.a": "fp32", "head": "int8", "grouped": "int8"}
    found = looked_at(network(), layers=layers, ranges=calibrated())
    assert found.layers["block.a"].able == ("fp32",)
    assert found.layers["head"].able == ("int8",)
    assert found.layers["grouped"].able == ("fp16", "fp32")  # no kernel, whoever asks


def test_singles() -> None:
    found = looked_at(network(), layers={"block.a": "fp32"}, ranges=calibrated())
    int8 = found.single("int8")
    assert (int8["stem"], int8["grouped"], int8["mean"]) == ("int8", "fp16", "fp16")
    assert int8["block.a"] == "fp32"
    assert set(found.single("fp32").values()) == {"fp32"}


def test_overflow() -> None:
    found = looked_at(network(gain=3e5), ranges=calibrated(gain=3e5))
    for name in ("block.a", "block.b"):
        assert found.layers[name].able == ("int8", "fp32")
        assert "'block.a.relu' reached" in found.layers[name].refusals["fp16"]
    assert "fp16" in found.layers["last"].able


def test_what_the_model_quantizes_is_int8(rng: np.random.Generator) -> None:
    """A model with Q and DQ: what is chosen of its products is the type of their floats."""
    graph = Graph("quantized")
    scale = graph.add_constant("scale", np.asarray(0.25, np.float32))
    weights = graph.add_constant("w", rng.integers(-9, 9, (16, 16, 3, 3)).astype(np.int8))
    x = graph.add_input("x", (1, 16, 5, 5), FP32)
    x = graph.add_node(Quantize(INT8), [x, scale], name="q").output
    x = graph.add_node(Dequantize(FP32), [x, scale], name="dq").output
    w = graph.add_node(Dequantize(FP32), [weights, scale], name="w.dq").output
    graph.set_output("y", graph.add_node(Conv(), [x, w], name="conv").output)
    options = PipelineOptions(frozenset({"fp16", "fp32"}))
    phases = pipeline(options)
    first = next(k for k, p in enumerate(phases) if p.name == "quantize")
    found = survey(run_pipeline(graph, phases[:first]).graph, options)
    (product,) = [layer for layer in found.layers.values() if layer.is_product]
    assert product.is_integer
    assert product.able == ("fp16", "fp32")
