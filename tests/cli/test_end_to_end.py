"""build, run, bench, inspect, compare on a tiny ONNX model, and the demo, on the CPU target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nrt
from nrt.insight.reference import run_reference

from .support import Array, Cli, weights

TOLERANCE = 1e-5
SHAPE = (2, 3, 9, 7)
SHAPES = "image:2x3x9x7"
CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", SHAPES)


def by_hand(image: Array) -> Array:
    """The model of `model_file` in float64."""
    w, b, m = (a.astype(np.float64) for a in weights())
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwrs,kcrs->nkhw", windows, w) + b[:, None, None]
    return np.maximum(conv, 0).mean(axis=(2, 3)) @ m


@pytest.fixture
def image() -> Array:
    return np.random.default_rng().standard_normal(SHAPE).astype(np.float32)


@pytest.fixture
def plan_file(cli: Cli, model_file: Path, tmp_path: Path) -> Path:
    """Built by the command; named as if it were a model."""
    path = tmp_path / "plan.onnx"
    result = cli("build", model_file, "-o", path, *CPU)
    assert (result.code, result.err) == (0, "")
    assert str(path) in result.out
    assert "5 ops ->" in result.out
    return path


def relative(out: Array, ref: Array) -> float:
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def test_build_then_run(cli: Cli, plan_file: Path, image: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", image)
    arguments = ("--input", f"image={tmp_path / 'image.npy'}", "--output-dir", tmp_path / "out")
    result = cli("run", plan_file, *arguments)
    assert (result.code, result.err) == (0, "")
    scores = np.load(tmp_path / "out" / "scores.npy")
    assert relative(scores, by_hand(image)) < TOLERANCE


def test_load_gives_what_the_command_runs(plan_file: Path, image: Array) -> None:
    engine = nrt.load(plan_file)
    assert [(s.name, s.shape, s.dtype) for s in engine.inputs] == [("image", SHAPE, "fp32")]
    assert [(s.name, s.shape, s.dtype) for s in engine.outputs] == [("scores", (2, 11), "fp32")]
    assert relative(engine.run({"image": image})["scores"], by_hand(image)) < TOLERANCE


def test_the_reference_itself(model_file: Path, image: Array) -> None:
    _, outputs = run_reference(str(model_file), {"image": image}, ["scores"])
    assert relative(outputs["scores"], by_hand(image)) < TOLERANCE


def test_inspect_model_and_plan(cli: Cli, model_file: Path, plan_file: Path) -> None:
    of_plan = json.loads(cli("inspect", plan_file, "--json").out)
    of_model = json.loads(cli("inspect", model_file, "--json", *CPU).out)
    assert of_plan == of_model
    assert of_plan["ops_before"]["Conv"] == 1
    assert sum(of_plan["ops_before"].values()) == 5
    assert sum(of_plan["ops_after"].values()) <= 5
    image = {"name": "image", "shape": list(SHAPE), "dtype": "fp32", "layout": "row-major"}
    assert of_plan["inputs"] == [image]
    origins = {origin for entry in of_plan["layers"] for origin in entry["origins"]}
    assert {"conv", "relu", "pool", "fc"} <= origins
    for entry in of_plan["layers"]:
        assert entry["variant"]
        assert entry["precision"] == "fp32"
        assert entry["outputs"]
    text = cli("inspect", plan_file).out
    assert "conv" in text
    assert "built for cpu" in text


def test_bench_plan_and_model(cli: Cli, model_file: Path, plan_file: Path) -> None:
    for source in ((plan_file,), (model_file, *CPU)):
        line = ("--duration", "0.05", "--warm-up", "0.01", "--json")
        result = cli("bench", *source, *line)
        assert (result.code, result.err) == (0, "")
        data = json.loads(result.out)
        assert data["runs"] >= 1
        host = data["host"]
        assert 0 < host["min"] <= host["median"] <= host["p90"] <= host["p99"] <= host["max"]
        assert data["throughput"] == pytest.approx(1 / host["mean"])


def test_compare_model_and_plan(cli: Cli, model_file: Path, plan_file: Path) -> None:
    for options in (CPU, ("--plan", plan_file)):
        result = cli("compare", model_file, *options, "--json")
        assert result.code == 0, result
        data = json.loads(result.out)
        assert data["tolerance"] == 1e-4
        assert data["outputs"][0]["name"] == "scores"
        assert data["outputs"][0]["error"] < TOLERANCE
    strict = cli("compare", model_file, "--plan", plan_file, "--tolerance", "0", "--json")
    error = json.loads(strict.out)["outputs"][0]["error"]
    assert strict.code == (0 if error == 0 else 1)


def test_compare_finds_other_weights(cli: Cli, model_file: Path, plan_file: Path) -> None:
    """A plan of one model is not taken for another's."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(model_file)
    (tensor,) = (t for t in model.graph.initializer if t.name == "m")
    tensor.CopyFrom(numpy_helper.from_array(weights()[2] * np.float32(1.01), "m"))
    onnx.save(model, model_file)
    result = cli("compare", model_file, "--plan", plan_file, "--json")
    assert result.code == 1
    assert json.loads(result.out)["outputs"][0]["error"] == pytest.approx(0.01 / 1.01, rel=1e-2)


def test_a_symbolic_shape_must_be_given(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    result = cli("build", model_file, "-o", tmp_path / "x.nrt", "--target", "cpu")
    assert result.code == 2
    assert "image" in result.err
    assert not (tmp_path / "x.nrt").exists()


def test_a_file_that_is_no_model(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a model")
    result = cli("inspect", path, "--target", "cpu")
    assert result.code == 2
    assert result.err.startswith("nrt: error: ")
    assert str(path) in result.err


def test_doctor(cli: Cli) -> None:
    result = cli("doctor", "--json")
    data = json.loads(result.out)
    assert result.code == 0
    assert data["cpu_works"] is True
    names = {check["name"]: check for check in data["checks"]}
    assert {"Python", "numpy", "numba", "onnx", "driver", "CPU target"} <= names.keys()
    assert names["CPU target"]["ok"]
    for check in data["checks"]:
        assert check["found"]
        assert check["ok"] or check["mend"]
    text = cli("doctor").out
    assert "CPU target: works" in text
    assert f"CUDA target: {'usable' if data['cuda_usable'] else 'not usable here'}" in text


@pytest.mark.slow
def test_demo(cli: Cli) -> None:
    result = cli("demo", "--target", "cpu", "--opt-level", "0")
    assert (result.code, result.err) == (0, "")
    assert "ResNet-18" in result.out
    assert "against NumPy in fp32" in result.out
    assert "throughput" in result.out
