"""debug_precision names the layer that breaks a network, and its remedy works."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nrt
from nrt.errors import BuildError, CalibrationError, ExportError, InputError
from nrt.insight.compare import relative_error
from nrt.insight.precision_debug import COLUMNS, PrecisionDebug

from .broken_networks import coarse, images, overflowing, sound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def _check_overflow(rng: np.random.Generator, **options: Any) -> PrecisionDebug:
    net, data = overflowing(rng), images(rng)
    found = nrt.debug_precision(net, data, precision="fp16", **options)
    assert found.first == "conv2"
    assert not found.passed
    assert found.error == math.inf
    assert found.worst is found.layer("conv2")
    assert found.layer("conv2").accumulated.inf > 0
    assert found.layer("conv2").origins == ("conv2", "relu2")
    for name in ("conv0", "conv1"):
        assert found.layer(name).accumulated.error < 5e-3
    # Read in fp32, the result of conv2 is stored so.
    assert found.in_fp32 == {"conv3": "fp32"}
    assert found.bisection.error < 1e-2
    engine, exact = (
        nrt.compile(net, precision=p, layers=layers, **options)
        for p, layers in (({"fp16", "fp32"}, found.in_fp32), ("fp32", {}))
    )
    for x in data:
        assert relative_error(np.asarray(engine(x)), np.asarray(exact(x))) < 1e-2
    return found


def test_an_overflow_in_fp16(rng: np.random.Generator) -> None:
    found = _check_overflow(rng, target="cpu", opt_level=0)
    lines = str(found).splitlines()
    assert lines[0] == (
        f"overflowing in fp16 against fp32 on {found.found.device} (cpu), 4 samples: error of the "
        "outputs inf, threshold 0.01; largest own error: conv2"
    )
    assert lines[1].startswith("conv2 (of conv2, relu2) is the first layer that lifts the error")
    assert lines[2].startswith("with conv3 in fp32: error ")
    assert lines[3].split() == [w for c in COLUMNS for w in c.split()]
    row = next(line for line in lines if line.startswith("2  conv2"))
    count = found.layer("conv2").accumulated.inf
    assert row.split()[2:9] == ["Conv", "fp16", "fp16", "inf", "-", "inf", "-"]
    assert row.split()[9:] == ["0", str(count), "breaks", "it,", "worst"]


@pytest.mark.gpu
def test_an_overflow_in_fp16_on_a_gpu(rng: np.random.Generator) -> None:
    _check_overflow(rng, target="cuda", opt_level=1)


def _check_coarse(rng: np.random.Generator, **options: Any) -> PrecisionDebug:
    net, data = coarse(rng), images(rng)
    target = options["target"]
    ranges = nrt.calibrate(net, data, method="minmax", target=target)
    found = nrt.debug_precision(net, data, precision="int8", calibration=ranges, **options)
    assert found.first == "conv2"
    assert found.bisection.breaking == ("conv2",)
    assert found.in_fp32 == {"conv2": "fp32"}
    assert found.worst is found.layer("conv2")
    assert found.layer("conv2").own.error > 0.5
    own = {e.name: e.own.error for e in found.layers if e.name != "conv2"}
    assert max(own.values()) < 0.05
    assert found.layer("conv1").stored == "uint8"
    assert found.error > found.threshold == 0.1
    assert found.bisection.error < 0.1
    engine, exact = (
        nrt.compile(net, precision=p, layers=layers, calibration=c, **options)
        for p, layers, c in (
            ({"int8", "fp32"}, found.in_fp32, ranges),
            ("fp32", {}, None),
        )
    )
    for x in data:
        assert relative_error(np.asarray(engine(x)), np.asarray(exact(x))) < 0.1
    return found


def test_weights_that_int8_cannot_hold(rng: np.random.Generator) -> None:
    _check_coarse(rng, target="cpu", opt_level=0)


def test_a_range_that_does_not_fit_is_charged_to_the_reader(rng: np.random.Generator) -> None:
    net, data = sound(rng), images(rng)
    ranges = nrt.calibrate(net, data, method="minmax", target="cpu")
    assert nrt.debug_precision(net, data, precision="int8", calibration=ranges, target="cpu").passed
    small = replace(ranges["relu1"], threshold=ranges["relu1"].threshold / 20)
    wrong = replace(ranges, tensors={**ranges, "relu1": small})
    found = nrt.debug_precision(net, data, precision="int8", calibration=wrong, target="cpu")
    # What stores the tensor and what reads it.
    own = {layer.name: layer.own.error for layer in found.layers}
    assert min(own.pop("conv1"), own.pop("conv2")) > 0.5
    assert max(own.values()) < 0.05
    assert found.in_fp32 == {"conv2": "fp32"}
    assert found.first == "conv2"
    assert found.bisection.error < 0.05


@pytest.mark.gpu
def test_weights_that_int8_cannot_hold_on_a_gpu(rng: np.random.Generator) -> None:
    _check_coarse(rng, target="cuda", opt_level=1)


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory) -> PrecisionDebug:
    rng = np.random.default_rng()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NRT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return nrt.debug_precision(overflowing(rng), images(rng), precision="fp16", target="cpu")


def test_as_data(debugged: PrecisionDebug) -> None:
    data = json.loads(debugged.to_json())
    assert data == debugged.to_dict()
    assert (data["first"], data["worst"], data["passed"]) == ("conv2", "conv2", False)
    assert data["breaking"] == ["conv2", "conv3"]
    assert data["in_fp32"] == ["conv3"]
    assert data["outputs"]["scores"]["error"] is None
    assert data["error_in_fp32"] == debugged.bisection.error
    conv1, conv2 = data["layers"][1:3]
    assert conv2["accumulated"]["inf"] > 0
    assert conv2["origins"] == ["conv2", "relu2"]
    assert conv1["own"]["sqnr"] == pytest.approx(-20 * math.log10(conv1["own"]["error"]))
    assert data["steps"][0] == {"low": len(data["layers"]), "in_fp32": [], "error": None}


def test_as_a_frame(debugged: PrecisionDebug) -> None:
    frame = debugged.to_pandas().set_index("layer")
    assert list(frame.index) == [layer.name for layer in debugged.layers]
    assert frame.loc["conv2", "error"] == math.inf
    assert math.isnan(frame.loc["conv2", "sqnr"])
    assert frame.index[frame["breaks"]].tolist() == ["conv2", "conv3"]
    assert frame.loc["conv0", "own_error"] == debugged.layer("conv0").own.error


def test_a_frame_needs_pandas(debugged: PrecisionDebug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ExportError, match=r"to_pandas\(\) needs pandas, which is not installed"):
        debugged.to_pandas()


def test_in_a_notebook(debugged: PrecisionDebug) -> None:
    html = debugged._repr_html_()
    assert html.count("<tr>") == len(debugged.layers) + 1
    assert "<p>conv2 (of conv2, relu2) is the first layer" in html
    assert "breaks it, worst" in html


def test_a_layer_that_there_is_not(debugged: PrecisionDebug) -> None:
    assert debugged.layer("relu1") is debugged.layer("conv1")  # by its tensor
    with pytest.raises(KeyError, match="conv9"):
        debugged.layer("conv9")


@pytest.fixture
def open_model(rng: np.random.Generator) -> bytes:
    """relu(x W) W' with an open batch."""
    w = (rng.standard_normal((2, 16, 16)) / 4).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], "one"),
        helper.make_node("Relu", ["p"], ["q"], "act"),
        helper.make_node("MatMul", ["q", "b"], ["y"], "two"),
    ]
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(w[0], "a"), numpy_helper.from_array(w[1], "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_a_model_that_passes(rng: np.random.Generator, open_model: bytes) -> None:
    data = rng.standard_normal((7, 16)).astype(np.float32)
    seen: list[tuple[str, int, int]] = []
    found = nrt.debug_precision(
        open_model, [data], precision="fp16", target="cpu", progress=lambda *a: seen.append(a)
    )
    assert found.passed
    assert (found.first, found.in_fp32, found.bisection.steps) == (None, {}, ())
    assert found.samples == 7
    assert 0 < found.error < 1e-2
    assert str(found).splitlines()[1] == "within the threshold: no layer breaks it"
    assert ("comparing", 7, 7) in seen
    fixed = nrt.debug_precision(
        open_model, [data], precision="fp16", shapes={"x": (7, 16)}, target="cpu"
    )
    assert fixed.error == pytest.approx(found.error, rel=0.05)


def test_a_threshold_of_ones_own(rng: np.random.Generator, open_model: bytes) -> None:
    data = rng.standard_normal((7, 16)).astype(np.float32)
    seen: list[tuple[str, int, int]] = []
    found = nrt.debug_precision(
        open_model,
        [data],
        precision="bf16",
        shapes={"x": (7, 16)},
        threshold=1e-6,
        target="cpu",
        progress=lambda *a: seen.append(a),
    )
    assert found.first == "one"
    assert found.in_fp32 == {"one": "fp32", "two": "fp32"}
    assert found.bisection.error == 0
    assert ("bisecting", len(found.bisection.steps), 0) in seen
    least = nrt.debug_precision(
        open_model, [data], precision="bf16", shapes={"x": (7, 16)}, threshold=1e-6, most=1,
        target="cpu",
    )  # fmt: skip
    assert least.bisection.breaking == ("one",)
    assert str(least).splitlines()[2].endswith(", still over the threshold")


def test_rules_of_the_user_count(rng: np.random.Generator) -> None:
    net, data = overflowing(rng), images(rng)
    found = nrt.debug_precision(
        net, data, precision={"fp16", "fp32"}, layers={"conv[23]": "fp32"}, target="cpu"
    )
    assert found.passed
    assert found.layer("conv2").precision == "fp32"
    assert found.layer("conv1").precision == "fp16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0, expected a relative error above 0, such as 1e-2"),
        ({"threshold": math.nan}, "threshold is nan, expected a relative error above 0"),
        ({"most": 0}, "most is 0, expected the number of layers to find, 1 or more"),
        ({"precision": "int8"}, "int8 needs ranges"),
        ({"precision": "fp31"}, "precision 'fp31' is unknown"),
        ({"layers": {"nothing*": "fp16"}}, "layer pattern 'nothing\\*' matches none"),
    ],
)
def test_wrong_options(
    rng: np.random.Generator, open_model: bytes, options: dict[str, Any], message: str
) -> None:
    data = [rng.standard_normal((1, 16)).astype(np.float32)]
    with pytest.raises(BuildError, match=message):
        nrt.debug_precision(open_model, data, target="cpu", **{"precision": "fp16", **options})


def test_wrong_data(rng: np.random.Generator, open_model: bytes) -> None:
    with pytest.raises(CalibrationError, match="data: it holds no samples"):
        nrt.debug_precision(open_model, [], precision="fp16", target="cpu")
    with pytest.raises(CalibrationError, match=r"data item 0: input 'x' has shape \[1, 15\]"):
        nrt.debug_precision(
            open_model, [np.ones((1, 15), np.float32)], precision="fp16", target="cpu"
        )


def test_samples_of_several_shapes(rng: np.random.Generator) -> None:
    dims = ["N", "S"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "act")],
        "words",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = [rng.random((1, 4), np.float32), rng.random((1, 5), np.float32)]
    with pytest.raises(InputError, match="data: batch 1 has 1x5 for input 'x', the first has 1x4"):
        nrt.debug_precision(model, data, precision="fp16", target="cpu")


def test_a_calibration_of_another_model(rng: np.random.Generator, open_model: bytes) -> None:
    net, data = coarse(rng), images(rng)
    ranges = nrt.calibrate(net, data, target="cpu")
    samples = [rng.standard_normal((1, 16)).astype(np.float32)]
    with pytest.raises(CalibrationError, match="model"):
        nrt.debug_precision(open_model, samples, precision="int8", calibration=ranges, target="cpu")
