"""accuracy: the bar of int8 on real images, and what the script writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import BAR, FOLDER, NETWORKS, SETTINGS, Setting, Subject
from benchmarks.tables import markdown
from examples.digits.data import Digits, load
from nrt.runtime.cuda import device_count

KL = next(s for s in SETTINGS if s.method == "kl")
LEAST_INT8 = {"plain": 4, "residual": 6, "separable": 4}
"""Products that have to be int8: all but the first layer, the last, and depthwise ones."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parts() -> dict[str, Digits]:
    return load()


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "plain")]
)
def test_int8_is_within_the_bar(name: str, parts: dict[str, Digits]) -> None:
    _within_the_bar(name, parts, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_is_within_the_bar_on_a_gpu(name: str, parts: dict[str, Digits]) -> None:
    _within_the_bar(name, parts, "cuda")


def _within_the_bar(name: str, parts: dict[str, Digits], target: str) -> None:
    assert BAR == 0.46
    subject = Subject(FOLDER / f"{name}.onnx", parts, target, opt_level=0)
    assert parts["test"].accuracy(subject.reference) >= 0.98
    case = subject.case(KL)
    assert case["status"] == "passed"
    assert case["drop"] <= BAR
    assert case["images"] == 539
    assert case["layers"]["int8"] >= LEAST_INT8[name]
    assert 0 < case["error"] < 0.1


def test_every_precision_and_method_is_measured() -> None:
    assert [(s.precision, s.method) for s in SETTINGS] == [
        ("fp32", ""),
        ("fp16", ""),
        ("int8", "kl"),
        ("int8", "percentile"),
        ("int8", "mse"),
        ("int8", "minmax"),
        ("fp8", "minmax"),
    ]
    assert KL.bar == BAR
    assert KL.permitted == {"int8", "fp16"}


def _run(folder: Path, *args: str) -> tuple[int, list[dict[str, Any]]]:
    code = accuracy.main(["--only", "residual", "--results", str(folder), *args])
    data = json.loads((folder / "accuracy_cpu.json").read_text(encoding="utf-8"))
    assert data["kind"] == "accuracy"
    return code, data["cases"]


def test_what_a_target_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "SETTINGS", (Setting("fp32"), Setting("fp31", optional=True)))
    code, (good, missing) = _run(tmp_path)
    assert code == 0
    assert good["status"] == "passed"
    assert (good["drop"], good["changed"], good["error"]) == (0, 0, 0)
    assert missing["status"] == "missing"
    assert missing["message"].startswith("precision: precision 'fp31' is unknown")
    printed = capsys.readouterr().out
    assert f"| residual | fp32 | – | {good['top1']:.2f} | 0 | 0 of 539 |" in printed
    assert "| residual | fp31 | – | – | – | – | missing |" in printed
    assert "\nfp31: precision: precision 'fp31' is unknown" in printed


def test_a_lost_bar_and_an_error_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SETTINGS", (Setting("fp32", bar=-1.0), Setting("fp31")))
    code, (over, broken) = _run(tmp_path)
    assert code == 1
    assert over["status"] == "failed"
    assert over["message"] == "0.00 points are over the bar of -1.0"
    assert broken["status"] == "error"
    assert broken["message"].startswith("BuildError: ")


def test_a_gain_has_a_minus() -> None:
    case = {
        "network": "plain", "precision": "int8", "calibration": "kl", "top1": 99.4444,
        "drop": -0.18553, "changed": 1, "images": 539, "layers": {"int8": 6, "fp32": 2}, "run": 0,
    }  # fmt: skip
    run = {"host": {"processor": "x", "machine": "y"}, "versions": {}, "commit": "c0ffee"}
    table = markdown("accuracy", [run], [case])
    assert "| plain | int8 | kl | 99.44 | -0.19 | 1 of 539 | 2 fp32, 6 int8 |" in table


@pytest.mark.skipif(device_count() > 0, reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accuracy.main(["--target", "cuda", "--results", str(tmp_path)])
    assert "no GPU here; --target cpu measures the same networks" in capsys.readouterr().err
