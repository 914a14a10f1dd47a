"""calibrate(): from a model and data to ranges, on kernels and on the ops' references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nrt
from nrt import calibrator
from nrt.builder import optimize
from nrt.errors import CalibrationError, ImportModelError
from nrt.ir.evaluate import evaluate
from nrt.quantization import Histogram, MethodRules, TensorRange

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)
    monkeypatch.setenv("NRT_WORKERS", "1")


def cnn(batch: int | str = "N", seed: int = 3) -> onnx.ModelProto:
    """Conv, ReLU, max pool, residual, global pool, a linear layer."""
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array(
            (rng.standard_normal(shape) * scale).astype(np.float32), name
        )

    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("MaxPool", ["r0"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Add", ["c1", "p"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["r1"], "relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["scores"], "fc", transB=1),
    ]
    stored = [
        weights("w0", 6, 3, 3, 3), weights("b0", 6), weights("w1", 6, 6, 3, 3),
        weights("w2", 10, 6), weights("b2", 10),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 10, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def rows(factor: float = 1.0) -> onnx.ModelProto:
    """Two products of rank 3 and a ReLU between them."""
    rng = np.random.default_rng(5)
    stored = [
        numpy_helper.from_array((factor * rng.standard_normal(shape)).astype(np.float32), name)
        for name, shape in (("w0", (7, 6)), ("w1", (6, 3)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m"], "dense0"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], "dense1"),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 5, width])]
        for name, width in (("x", 7), ("y", 3))
    )
    graph = helper.make_graph(nodes, "rows", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


NAMES = ["image", "r0", "p", "r1", "g", "f", "scores"]


def assert_channels(found: nrt.Calibration, values: dict[str, Array], rel: float = 1e-5) -> None:
    """The layers read the image, what is pooled, and features; nothing else has channels."""
    read = ("image", "r0", "p", "f")
    for entry in found.values():
        known = {n is not None for n in (entry.means, entry.lows, entry.highs)}
        assert known == {entry.name in read}
    for name in read:
        array = values[name].astype(np.float64)
        axes = (0, *range(2, array.ndim))
        assert found[name].means == pytest.approx(array.mean(axis=axes), rel=rel, abs=rel)
        assert found[name].lows == pytest.approx(array.min(axis=axes), rel=rel, abs=rel)
        assert found[name].highs == pytest.approx(array.max(axis=axes), rel=rel, abs=rel)
        assert_bounds(found[name])
    # What is given, not computed, has its extremes exactly.
    assert found["image"].lows == tuple(values["image"].min(axis=(0, 2, 3)).tolist())
    assert found["image"].highs == tuple(values["image"].max(axis=(0, 2, 3)).tolist())


def assert_bounds(entry: TensorRange) -> None:
    """The channels' extremes are those of the tensor, but for the 0 that it is clipped at."""
    assert entry.lows is not None
    assert entry.highs is not None
    assert min(*entry.lows, 0.0) == entry.lowest
    assert max(*entry.highs, 0.0) == entry.highest


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run graphs by the ops' references instead of kernels; the graphs that were built."""
    graphs: list[Any] = []

    def engine(graph: Any) -> Any:
        graphs.append(graph)
        inputs = [SimpleNamespace(name=v.name, dtype=v.dtype.name) for v in graph.inputs]
        return SimpleNamespace(inputs=inputs, run=lambda feeds: evaluate(graph, feeds))

    monkeypatch.setattr(calibrator, "build_graph", lambda graph, **options: graph)
    monkeypatch.setattr(calibrator, "CompiledEngine", engine)
    return graphs


def images(rng: np.random.Generator, count: int) -> Array:
    return rng.standard_normal((count, 3, 10, 8)).astype(np.float32)


def test_on_the_cpu(rng: np.random.Generator) -> None:
    data = images(rng, 24)
    calls: list[tuple[str, int, int]] = []
    found = nrt.calibrate(
        cnn(), [data[:16], data[16:]], target="cpu", tensors={"scores": "minmax"},
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert list(found) == NAMES
    assert found.samples == 24
    assert calls[:2] == [("calibrating", 1, 2), ("calibrating", 2, 2)]
    assert calls[-1] == ("thresholds", 7, 7)

    # The pooling is fused with the layer after it only once all ranges are known.
    graph = optimize(cnn(), shapes={"image": data.shape}, disabled={"fuse-pool-classifier"}).graph
    wanted = evaluate(graph, {"image": data}, until=["r0", "p", "r1", "g", "scores"])
    rules = MethodRules("kl", (("scores", "minmax"),))
    channels = (found["image"].means, found["image"].lows, found["image"].highs)
    assert found["image"] == TensorRange.of("image", Histogram.of(data), rules, *channels)
    assert_channels(found, {"image": data, **wanted, "f": wanted["g"].reshape(24, 6)})
    for name, array in wanted.items():
        entry = found[name]
        assert entry.total == array.size
        assert entry.amax == pytest.approx(float(np.abs(array).max()), rel=1e-5)
        assert entry.signed == bool((array < 0).any())
        assert entry.zeros == pytest.approx((array == 0).sum(), abs=2)
    assert found["scores"].threshold == found["scores"].amax
    assert not found["r0"].signed
    # A Reshape moves what it reads.
    assert found["f"].threshold == found["g"].threshold


def check_rows(rng: np.random.Generator, target: str) -> None:
    data = rng.standard_normal((6, 5, 7)).astype(np.float32) + 3 * np.arange(-3, 4, dtype="f")
    found = nrt.calibrate(rows(), [data[:1], data[1:]], target=target, method="minmax")
    assert nrt.calibrate(rows(), data[::-1], target=target, method="minmax") == found
    graph = optimize(rows(), shapes={"x": data.shape}).graph
    values = {"x": data, **evaluate(graph, {"x": data}, until=["r"])}
    for name, array in values.items():
        entry = found[name]
        assert entry.lows == pytest.approx(array.min(axis=(0, 1)), rel=1e-4, abs=1e-4)
        assert entry.highs == pytest.approx(array.max(axis=(0, 1)), rel=1e-4, abs=1e-4)
        assert_bounds(entry)
    assert found["x"].lows == tuple(data.min(axis=(0, 1)).tolist())
    assert found["x"].highs == tuple(data.max(axis=(0, 1)).tolist())
    # A channel that is positive throughout has a low above 0.
    assert data[..., 6].min() > 1
    assert found["y"].lows is found["y"].highs is None


def test_rows_on_the_cpu(rng: np.random.Generator) -> None:
    check_rows(rng, "cpu")


@pytest.mark.gpu
def test_rows_on_the_gpu(rng: np.random.Generator) -> None:
    check_rows(rng, "cuda")


def test_rows_in_any_order_and_batches(rng: np.random.Generator, by_reference: list[Any]) -> None:
    data = rng.standard_normal((8, 5, 7)).astype(np.float32)
    expected = nrt.calibrate(rows(), data, method="minmax")
    shuffled = data[rng.permutation(8)]
    assert nrt.calibrate(rows(), np.split(shuffled, [3]), method="minmax") == expected
    for batch in (2, 8):
        shapes = {"x": (batch, 5, 7)}
        found = nrt.calibrate(rows(), shuffled, shapes=shapes, method="minmax")["x"]
        assert (found.lows, found.highs) == (expected["x"].lows, expected["x"].highs)
    assert [g.inputs[0].shape[0] for g in by_reference] == [1, 1, 2, 8]


def test_sums_beyond_fp32_leave_the_extremes(
    rng: np.random.Generator, by_reference: list[Any]
) -> None:
    data = np.full((2, 5, 7), 3e38, np.float32)
    data[0, 0] = rng.standard_normal(7)
    with np.errstate(over="ignore"):
        found = nrt.calibrate(rows(1e-6), data, method="minmax")["x"]
    assert found.means is None
    assert found.lows == tuple(data[0, 0].tolist())
    assert found.highs == (float(np.float32(3e38)),) * 7


@pytest.mark.gpu
def test_on_the_gpu(rng: np.random.Generator) -> None:
    data = images(rng, 24)
    found = nrt.calibrate(cnn(), [data], target="cuda")
    wanted = nrt.calibrate(cnn(), [data], target="cpu")
    assert found.without_channels()["image"] == wanted.without_channels()["image"]
    assert list(found) == list(wanted)
    graph = optimize(cnn(), shapes={"image": data.shape}, disabled={"fuse-pool-classifier"}).graph
    values = evaluate(graph, {"image": data}, until=["r0", "p", "f"])
    assert_channels(found, {"image": data, **values}, rel=1e-4)
    for name in NAMES:
        assert found[name].total == wanted[name].total
        assert found[name].amax == pytest.approx(wanted[name].amax, rel=1e-4)
        assert found[name].zeros == pytest.approx(wanted[name].zeros, abs=4)
    shuffled = data[rng.permutation(24)]
    assert nrt.calibrate(cnn(), list(shuffled), target="cuda") == found


@pytest.mark.parametrize("method", ["kl", "percentile", "mse", "minmax"])
def test_order_and_batches_do_not_matter(
    rng: np.random.Generator, by_reference: list[Any], method: str
) -> None:
    data = images(rng, 10)
    expected = nrt.calibrate(cnn(), [data], method=method)
    shuffled = data[rng.permutation(10)]
    assert nrt.calibrate(cnn(), np.split(shuffled, [1, 4]), method=method) == expected
    assert nrt.calibrate(cnn(), iter(shuffled), method=method) == expected
    assert [g.inputs[0].shape[0] for g in by_reference] == [1, 1, 1]


def test_batches_that_the_shapes_fix(rng: np.random.Generator, by_reference: list[Any]) -> None:
    data = images(rng, 8)
    single = nrt.calibrate(cnn(), data, method="minmax")
    for model, shapes in ((cnn(4), None), (cnn(), {"image": (4, 3, 10, 8)})):
        found = nrt.calibrate(model, [data[:3], data[3:]], shapes=shapes, method="minmax")
        assert found.samples == 8
        assert found.data == single.data
        for name in NAMES:
            assert found[name].amax == pytest.approx(single[name].amax, rel=1e-5)
        for name in ("image", "p", "f"):
            # A kernel adds up the features of a batch; those of single samples are added exactly.
            assert found[name].means == pytest.approx(single[name].means, rel=1e-5, abs=1e-6)
            assert found[name].lows == pytest.approx(single[name].lows, rel=1e-5, abs=1e-6)
            assert found[name].highs == pytest.approx(single[name].highs, rel=1e-5, abs=1e-6)
        assert found["image"].lows == single["image"].lows
        assert found["image"].highs == single["image"].highs
    assert [g.inputs[0].shape[0] for g in by_reference] == [1, 4, 4]
    with pytest.raises(CalibrationError, match="6 samples do not fill batches of 4"):
        nrt.calibrate(cnn(4), [data[:6]])


def test_one_engine_per_shape(rng: np.random.Generator, by_reference: list[Any]) -> None:
    net = helper.make_graph(
        [helper.make_node("Sin", ["x"], ["y"], "sin")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S"])],
    )
    model = helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    parts = [rng.standard_normal((2, n)).astype(np.float32) for n in (5, 7, 5)]
    found = nrt.calibrate(model, parts, method="minmax")
    assert len(by_reference) == 2
    assert found["x"].total == 34
    assert found["x"].amax == max(float(np.abs(p).max()) for p in parts)


def test_networks_made_in_python(rng: np.random.Generator, by_reference: list[Any]) -> None:
    net = nrt.Network("small")
    x = net.input("x", (2, 6))
    w = rng.standard_normal((4, 6)).astype(np.float32)
    net.output(net.relu(net.linear(x, w)), "y")
    data = rng.standard_normal((6, 6)).astype(np.float32)
    found = nrt.calibrate(net, data, method="minmax")
    assert found["x"].threshold == float(np.abs(data).max())
    (result,) = (t for n, t in found.items() if n != "x")
    assert result.threshold == pytest.approx(float((data @ w.T).max()), rel=1e-6)
    with pytest.raises(CalibrationError, match="shapes= is for ONNX models with open dimensions"):
        nrt.calibrate(net, data, shapes={"x": (1, 6)})


def test_types_of_data(rng: np.random.Generator, by_reference: list[Any]) -> None:
    data = images(rng, 2)
    wide = nrt.calibrate(cnn(), data.astype(np.float64), method="minmax")
    assert wide["image"].threshold == float(np.abs(data).max())
    with pytest.raises(CalibrationError, match="holds elements of type complex64, expected real"):
        nrt.calibrate(cnn(), data.astype(np.complex64))


def test_integers_become_floats_but_not_the_other_way(by_reference: list[Any]) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"], "rows")],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 3])],
        [numpy_helper.from_array(table, "table")],
    )
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    found = nrt.calibrate(net, [np.array([[1, 3]], np.int32)], method="minmax")
    assert {n: t.threshold for n, t in found.items()} == {"y": 11}
    with pytest.raises(
        CalibrationError, match="input 'ids' is float32 in the data, expected int64: convert it as"
    ):
        nrt.calibrate(net, [np.ones((1, 2), np.float32)])


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "a NaN"), (np.inf, "an infinity")], ids=["nan", "inf"]
)
def test_numbers_that_have_no_range(
    rng: np.random.Generator, by_reference: list[Any], value: float, what: str
) -> None:
    data = images(rng, 3)
    data[1, 0, 4, 4] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(CalibrationError, match=f"tensor 'image' holds {what}"),
    ):
        nrt.calibrate(cnn(), data)


def test_a_tensor_that_overflows_is_named(
    rng: np.random.Generator, by_reference: list[Any]
) -> None:
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match="tensor 'r0' holds"):
        nrt.calibrate(cnn(), np.sign(images(rng, 1)) * np.float32(3e38))


def test_patterns_and_methods_that_are_wrong(
    rng: np.random.Generator, by_reference: list[Any]
) -> None:
    with pytest.raises(CalibrationError, match=r"tensor pattern 'head\*' matches none of the 7"):
        nrt.calibrate(cnn(), images(rng, 1), tensors={"head*": "mse"})
    with pytest.raises(CalibrationError, match="method: 'entropy' is unknown; known: kl"):
        nrt.calibrate(cnn(), images(rng, 1), method="entropy")
    with pytest.raises(ImportModelError, match="shapes= names 'x', which is not an input"):
        nrt.calibrate(cnn(), images(rng, 1), shapes={"x": (1, 2)})


# -- the cache -------------------------------------------------------------------------------------


def test_a_cache_is_used_once_it_is_there(
    rng: np.random.Generator, by_reference: list[Any], tmp_path: Path
) -> None:
    path, data = tmp_path / "c.json", images(rng, 4)
    first = nrt.calibrate(cnn(), data, cache=path)
    assert len(by_reference) == 1
    again = nrt.calibrate(cnn(), [data[2:], data[:2]], cache=str(path))
    assert again == first
    assert len(by_reference) == 1, "the cache was there, and yet the model ran"
    assert nrt.Calibration.load(path) == first


def test_a_stale_cache_is_an_error(
    rng: np.random.Generator, by_reference: list[Any], tmp_path: Path
) -> None:
    path, data = tmp_path / "c.json", images(rng, 4)
    first = nrt.calibrate(cnn(), data, cache=path)
    for model, samples, method, what in (
        (cnn(seed=4), data, "kl", "model is "),
        (cnn(), data[:3], "kl", "data is "),
        (cnn(), data, "mse", "method is kl, now mse"),
    ):
        with pytest.raises(CalibrationError, match=rf"stale: {what}.*overwrite=True"):
            nrt.calibrate(model, samples, method=method, cache=path)
    assert nrt.Calibration.load(path) == first
    found = nrt.calibrate(cnn(), data, method="mse", cache=path, overwrite=True)
    assert nrt.Calibration.load(path) == found != first


def test_an_iterator_cannot_be_compared(
    rng: np.random.Generator, by_reference: list[Any], tmp_path: Path
) -> None:
    path, data = tmp_path / "c.json", images(rng, 2)
    nrt.calibrate(cnn(), iter(data), cache=path)

    def generator() -> Iterator[Array]:
        yield from data

    with pytest.raises(CalibrationError, match=r"cache .*c\.json exists, and data is an iterator"):
        nrt.calibrate(cnn(), generator(), cache=path)
    assert json.loads(path.read_text())["samples"] == 2
