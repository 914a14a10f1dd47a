"""`nrt explain`: of a model and of a plan, as text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from .support import Cli

CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", "image:2x3x9x7")


def test_a_model(cli: Cli, model_file: Path) -> None:
    result = cli("explain", model_file, "relu", *CPU)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("conv: Conv[")
    assert lines[1] == "  from conv, relu"
    assert any("fuse-conv-epilogue" in line for line in lines)
    assert "  candidates:" in lines


def test_json(cli: Cli, model_file: Path) -> None:
    result = cli("explain", model_file, "fc", *CPU, "--precision", "fp16", "--json")
    data = json.loads(result.out)
    (story,) = data["layers"]
    assert (data["query"], story["name"]) == ("fc", "fc")
    assert story["precision"] == "fp16: the only permitted precision"


def test_a_plan(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "net.nrt"
    assert cli("build", model_file, "-o", plan, *CPU).code == 0
    result = cli("explain", plan, "relu")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("conv: Conv[")
    assert "rewrites" not in result.out
    refused = cli("explain", plan, "relu", "--opt-level", "1")
    assert refused.code == 2
    assert "is a plan, compiled already" in refused.err


def test_unknown(cli: Cli, model_file: Path) -> None:
    result = cli("explain", model_file, "cnv", *CPU)
    assert (result.code, result.out) == (2, "")
    assert "no layer and no node of the model is called 'cnv'; near names: 'conv'" in result.err
