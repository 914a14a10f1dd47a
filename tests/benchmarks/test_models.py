"""models: nrt's side on the CPU target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from benchmarks.models import nrt_times
from nrt.compiled import compile as compile_model
from nrt.frontend.network import Network
from nrt.runtime.cuda import device_count
from tests.benchmarks.small_zoo import make_zoo

TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def test_cases_run_and_errors_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = make_zoo(tmp_path / "zoo")
    args = ["--models", str(zoo), "--target", "cpu", "--batch", "2", "--opt-level", "0"]
    args += ["--only", "vgg19", "--precision", "fp32", "fp31", "--results", str(tmp_path)]
    args += ["--warm-up", "0", "--duration", "0"]
    assert models.main(args) == 1
    data = json.loads((tmp_path / "models_cpu.json").read_text(encoding="utf-8"))
    good, bad = data["cases"]
    assert good["status"] == "passed"
    times = good["times"]["nrt"]
    assert 0 < times["median"] <= times["p90"]
    assert times["samples"] >= 20
    assert times["io"] == "fp32 dense"
    assert bad["status"] == "error"
    assert bad["message"].startswith("nrt: BuildError: ")
    printed = capsys.readouterr().out
    assert f"nrt {times['median'] * 1e3:.3f} ms [fp32 dense]" in printed
    assert "| vgg19 | 2 | fp31 | – |" in printed


def test_times_come_with_the_outputs() -> None:
    net = Network("relu")
    net.output(net.relu(net.input("x", (3, 5))), "y")
    engine = compile_model(net, target="cpu", opt_level=0)
    x = np.random.default_rng().standard_normal((3, 5), np.float32)
    times, outputs = nrt_times(engine, {"x": x}, warm_up=0, duration=0)
    assert times["samples"] >= 20
    np.testing.assert_allclose(outputs["y"], np.maximum(x, 0), rtol=TOLERANCE)


@pytest.mark.skipif(device_count() > 0, reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.main(["--models", str(make_zoo(tmp_path / "zoo")), "--results", str(tmp_path)])
    assert "no GPU here; --target cpu times nrt alone" in capsys.readouterr().err
