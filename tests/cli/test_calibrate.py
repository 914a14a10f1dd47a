"""``nrt calibrate``: a cache from a model and a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrt.cli import calibrate, options
from nrt.errors import CalibrationError
from nrt.quantization import Calibration, Histogram, MethodRules, TensorRange

from .support import Cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    found.mkdir()
    np.save(found / "a.npy", np.random.default_rng(1).standard_normal((3, 3, 9, 7)).astype("f4"))
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `nrt.calibrate` is asked for, when it is made to answer at once."""
    calls: list[dict[str, Any]] = []

    def answer(model: str, data: str, **arguments: Any) -> Calibration:
        calls.append({"model": model, "data": data, **arguments})
        rules = MethodRules(arguments["method"], tuple((arguments["tensors"] or {}).items()))
        x = Histogram.of(np.linspace(-1, 3, 999))
        return Calibration("a" * 64, "b" * 64, rules, 5, {"x": TensorRange.of("x", x, rules)})

    monkeypatch.setattr("nrt.calibrator.calibrate", answer)
    return calls


def test_the_whole_way(cli: Cli, model_file: Path, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    line = ["calibrate", model_file, "--data", folder, "-o", cache, "--target", "cpu"]
    result = cli(*line)
    assert (result.code, result.err) == (0, "")
    assert f"{cache}: 5 tensors, 3 samples, kl" in result.out
    found = Calibration.load(cache)
    assert list(found) == ["image", "r", "g", "f", "scores"]
    again = cli(*line, "--json")
    data = json.loads(again.out)
    assert data["samples"] == 3
    assert data["tensors"][1]["threshold"] == found["r"].threshold
    assert data["tensors"][1]["signed"] is False
    assert data["tensors"][1]["stored"] == "uint8"
    stale = cli(*line, "--method", "mse")
    assert stale.code == 2
    assert "is stale: method is kl, now mse" in stale.err


def test_a_build_reads_the_ranges(cli: Cli, model_file: Path, folder: Path, tmp_path: Path) -> None:
    cache, plan = tmp_path / "c.json", tmp_path / "m.nrt"
    cli("calibrate", model_file, "--data", folder, "-o", cache, "--target", "cpu")
    line = ["build", model_file, "-o", plan, "--target", "cpu", "--precision", "int8,fp32"]
    line += ["--shapes", "image:1x3x9x7"]
    result = cli(*line, "--calibration", cache)
    assert result.code == 0, result.err
    assert plan.exists()
    without = cli(*line)
    assert without.code == 2
    assert "precision: int8 needs ranges" in without.err
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps({**content, "model": "0" * 64}))
    stale = cli(*line, "--calibration", cache)
    assert stale.code == 2
    assert "the calibration is of model 000000000000, this model is" in stale.err


def test_options_arrive(
    cli: Cli, model_file: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    result = cli(
        "calibrate", model_file, "--data", "d", "-o", tmp_path / "c.json", "--method", "mse",
        "--tensors", "head*=minmax", "--tensors", "a=b=kl", "--percentile", "99.5", "--overwrite",
        "--shapes", "image:4x3x9x7", "--target", "cpu", "--opt-level", "2",
    )  # fmt: skip
    assert result.code == 0
    (call,) = asked
    assert call == {
        "model": str(model_file), "data": "d", "method": "mse", "percentile": 99.5,
        "tensors": {"head*": "minmax", "a=b": "kl"}, "shapes": {"image": (4, 3, 9, 7)},
        "target": "cpu", "opt_level": 2, "cache": str(tmp_path / "c.json"), "overwrite": True,
        "progress": None,
    }  # fmt: skip
    assert "1 tensors, 5 samples, mse" in result.out


def test_what_cannot_be(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    missing = cli("calibrate", model_file, "--data", "d", "-o", tmp_path / "no" / "c.json")
    assert missing.code == 2
    assert f"the folder {tmp_path / 'no'} does not exist; make it first" in missing.err
    empty = cli("calibrate", model_file, "--data", tmp_path / "d", "-o", tmp_path / "c.json")
    assert empty.code == 2
    assert "is no folder; expected one of .npy and .npz files" in empty.err
    assert "--data" in cli("calibrate", model_file, "-o", "c.json").err


def test_a_plan_is_no_model(cli: Cli, tmp_path: Path) -> None:
    from nrt.plan_file import MAGIC

    (tmp_path / "p.nrt").write_bytes(MAGIC + b"rest")
    result = cli("calibrate", tmp_path / "p.nrt", "--data", "d", "-o", tmp_path / "c.json")
    assert result.code == 2
    assert "is a plan, compiled already; expected a model" in result.err


@pytest.mark.parametrize("text", ["a", "=kl", "a=", ""])
def test_bad_tensor_methods(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected PATTERN=METHOD"):
        options.tensors(text)


def test_errors_are_one_line(
    cli: Cli, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise CalibrationError("tensor 'x' holds a NaN")

    monkeypatch.setattr("nrt.calibrator.calibrate", fail)
    result = cli("calibrate", model_file, "--data", "d", "-o", tmp_path / "c.json")
    assert (result.code, result.err) == (2, "nrt: error: tensor 'x' holds a NaN\n")
    assert calibrate.__all__ == ["run"]
