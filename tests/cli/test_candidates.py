"""`nrt inspect --candidates`: per layer, what its kernel was chosen from; and --tuning-seconds."""

from __future__ import annotations

import json
from pathlib import Path

from .support import Cli

CPU = ("--target", "cpu", "--shapes", "image:2x3x9x7")


def test_json_has_candidates_per_layer(cli: Cli, model_file: Path) -> None:
    arguments = (model_file, *CPU, "--opt-level", "1", "--json")
    data = json.loads(cli("inspect", *arguments, "--candidates").out)
    assert data["layers"]
    for layer in data["layers"]:
        rows = layer["candidates"]
        assert all(row.keys() == {"variant", "config", "seconds", "note"} for row in rows)
        assert all(row["seconds"] or row["note"] for row in rows)
        mine = [
            r for r in rows if (r["variant"], r["config"]) == (layer["variant"], layer["config"])
        ]
        assert [r["seconds"] for r in mine] == [layer["seconds"]]
    assert "candidates" not in json.loads(cli("inspect", *arguments).out)["layers"][0]


def test_tables_per_layer(cli: Cli, model_file: Path) -> None:
    result = cli("inspect", model_file, *CPU, "--opt-level", "0", "--candidates")
    assert (result.code, result.err) == (0, "")
    assert "conv: Conv[" in result.out
    assert "not timed" in result.out


def test_a_plan_holds_no_candidates(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.nrt"
    assert cli("build", model_file, "-o", path, *CPU, "--opt-level", "0").code == 0
    result = cli("inspect", path, "--candidates")
    assert (result.code, result.out) == (2, "")
    assert f"--candidates: {path} is a plan, which holds the winners only; give" in result.err


def test_a_budget_reaches_the_tuner(cli: Cli, model_file: Path) -> None:
    arguments = ("--opt-level", "1", "--tuning-seconds", "0", "--json")
    data = json.loads(cli("inspect", model_file, *CPU, *arguments).out)
    assert {layer["reason"] for layer in data["layers"]} == {
        "best estimate, tuning_seconds=0 spent"
    }
    result = cli("inspect", model_file, *CPU, "--tuning-seconds", "-3")
    assert result.code == 2
    assert "argument --tuning-seconds: '-3': expected a number of seconds" in result.err
