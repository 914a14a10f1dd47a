"""choose_precisions: what it prints, and its four checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import choose_precisions
from benchmarks.choose_precisions import checks
from benchmarks.protocol import read_results
from nrt.precision.frontier import Frontier, Point
from nrt.precision.selection import LayerChoice, Selection
from tests.benchmarks.small_zoo import make_zoo


def selection(above: int = 1, *, gain: float = 1e-6, seconds: float = 5e-5) -> Selection:
    layers = [LayerChoice("first", "fp16")] * above
    layers += [LayerChoice(f"layer{k}", "int8", "", {}, {"fp16": gain}) for k in range(20 - above)]
    points = (
        Point("fastest", seconds, True, 24.0, True, {"int8": 19, "fp16": 1}),
        Point("fp16", 6e-5, True, 60.0, True, {"fp16": 20}, (), True),
        Point("int8", 4e-5, True, 15.0, False, {"int8": 20}, (), True),
    )
    return Selection(tuple(layers), Frontier("net", "sqnr at least 20", False, points, 0))


def test_checks() -> None:
    assert checks(selection(), 20.0) == {
        "at least 20 dB": True,
        "at most 5 % above int8: 1 of 20": True,
        "no int8 that fp16 would beat": True,
        "no faster single precision": True,
    }
    assert list(checks(selection(), 25.0).values()) == [False, True, True, True]
    assert list(checks(selection(2), 20.0).values()) == [True, False, True, True]
    slower = checks(selection(19, gain=-1e-6), 20.0)
    assert slower["no int8 that fp16 would beat: layer0"] is False
    assert list(checks(selection(seconds=7e-5), 20.0).values()) == [True, True, True, False]


def test_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    zoo = make_zoo(tmp_path / "zoo")
    line = ["--models", str(zoo), "--target", "cpu", "--opt-level", "1", "--samples", "2"]
    line += ["--results", str(tmp_path), "--name", "p"]
    code = choose_precisions.main([*line, "--only", "vgg19"])
    out = capsys.readouterr().out
    assert "vgg19, batch 1, " in out
    assert "yes at least 20 dB" in out
    assert "yes no faster single precision" in out
    assert code == (1 if "NO " in out else 0)
    (case,) = read_results(tmp_path / "p.json")["cases"]
    assert case["status"] == ("failed" if code else "passed")
    assert case["chosen"] in case["points"]
    assert len(case["above_int8"]) <= case["layers"]
    assert f"| vgg19 | 1 | {1e3 * case['chosen']['seconds']:.3f} |" in out
    assert choose_precisions.main([*line, "--batch", "2", "--only", "unet"]) == 0
    assert "unet: its batch is fixed, and not at 2: left out" in capsys.readouterr().out
