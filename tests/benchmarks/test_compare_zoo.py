"""compare_zoo: cases, its JSON, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from benchmarks import compare_zoo
from benchmarks.protocol import ROOT
from tests.benchmarks.small_zoo import make_zoo


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def _run(tmp_path: Path, *args: str, factor: float = 0.5) -> tuple[int, dict[str, Any]]:
    zoo = make_zoo(tmp_path / "zoo", factor)
    results = tmp_path / "results"
    code = compare_zoo.main(["--models", str(zoo), "--results", str(results), *args])
    return code, json.loads((results / "compare_cpu.json").read_text(encoding="utf-8"))


def test_every_case_is_compared_and_a_fixed_batch_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = _run(tmp_path, "--batch", "1", "3")
    assert code == 0
    assert data["kind"] == "compare"
    got = [(c["model"], c["batch"], c["status"]) for c in data["cases"]]
    assert got == [("vgg19", 1, "passed"), ("vgg19", 3, "passed"), ("unet", 1, "passed")]
    for case in data["cases"]:
        assert 0 <= case["error"] < case["tolerance"] == 1e-4
        assert 1 <= case["launches"] <= 3  # at most a change of layout before and after
        assert case["run"] == 0
    assert "unet: its batch is fixed, and not at 3: left out" in capsys.readouterr().out


def test_a_broken_case_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    code, data = _run(tmp_path, "--batch", "2", "--precision", "fp31", "fp32", "--only", "vgg19")
    assert code == 1
    broken, good = data["cases"]
    assert (broken["status"], good["status"]) == ("error", "passed")
    assert broken["message"].startswith("BuildError: ")
    assert "fp31" in broken["message"]


def test_a_result_that_is_not_finite_fails(tmp_path: Path) -> None:
    code, data = _run(tmp_path, "--batch", "1", "--only", "vgg19", factor=3e38 * 10)
    assert code == 1
    (case,) = data["cases"]
    assert case["status"] == "failed"
    assert case["error"] is None
    assert "NaN or infinite" in case["message"]


def test_a_later_run_replaces_its_own_cases_only(tmp_path: Path) -> None:
    _run(tmp_path, "--batch", "1", "2", "--only", "vgg19")
    _, data = _run(tmp_path, "--batch", "2", "5", "--only", "vgg19")
    assert [(c["batch"], c["run"]) for c in data["cases"]] == [(1, 0), (2, 1), (5, 1)]
    assert len(data["runs"]) == 2


def test_wrong_folders_and_names_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--results", str(tmp_path / "results")]
    assert compare_zoo.main(["--models", str(tmp_path), *common]) == 1
    assert "zoo.py is missing: --models wants a folder" in capsys.readouterr().err
    zoo = make_zoo(tmp_path / "zoo")
    assert compare_zoo.main(["--models", str(zoo), "--only", "alexnet", *common]) == 1
    assert "has no model alexnet; it has unet, vgg19" in capsys.readouterr().err
    (zoo / "zoo.py").write_text("def names():\n    return []\n", encoding="utf-8")
    assert compare_zoo.main(["--models", str(zoo), *common]) == 1
    assert "has no function load()" in capsys.readouterr().err


def test_it_starts_as_a_file() -> None:
    script = ROOT / "benchmarks" / "compare_zoo.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    )
    assert "--opt-level" in done.stdout
