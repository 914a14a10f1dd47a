"""`nrt ablate` and `--disable` on a tiny model, on the CPU target."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nrt.passes.pipeline import pass_names

from .support import Cli

CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", "image:2x3x9x7")
QUICK = ("--duration", "0", "--warm-up", "0")


def test_table_picture_and_data(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bars.svg"
    passes = ("--passes", "fold-pad,fuse-conv-epilogue", "--cumulative")
    result = cli("ablate", model_file, *CPU, *QUICK, *passes, "--svg", path)
    assert result.code == 0
    assert result.err == f"nrt: note: {path}: what each pass saves\n"
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0][:3] == ["tiny,", "fp32,", "on"]
    assert ["each", "pass", "left", "out:"] in lines
    assert ["added", "one", "at", "a", "time:"] in lines
    rows = {line[0]: line for line in lines if line and line[0] in pass_names()}
    assert set(rows) == {"fold-pad", "fuse-conv-epilogue"}
    assert rows["fold-pad"][1:4] == ["0", "same", "plan"]
    assert sum(line[:2] == ["all", "passes"] for line in lines) == 1
    assert sum(line[:3] == ["none", "of", "them"] for line in lines) == 1
    ElementTree.parse(path)


def test_json_has_a_row_per_pass_and_the_launches_of_bench(cli: Cli, model_file: Path) -> None:
    data = json.loads(cli("ablate", model_file, *CPU, *QUICK, "--json").out)
    assert [row["pass"] for row in data["effects"]] == list(pass_names())
    report = json.loads(cli("inspect", model_file, *CPU, "--json").out)
    assert data["full"]["launches"] == len(report["layers"])
    assert data["full"]["arena_bytes"] == report["arena_bytes"]
    for row in data["effects"]:
        assert row["network"]["error"] < 1e-5
        assert row["network"]["launches"] >= data["full"]["launches"] - 1
    fused = next(row for row in data["effects"] if row["pass"] == "fuse-conv-epilogue")
    # The pooling behind the convolution takes the ReLU in, where this pass leaves it.
    assert fused["network"]["launches"] == data["full"]["launches"]
    assert not fused["identical"]
    assert (data["bare"], data["steps"]) == (None, [])


def test_what_the_options_ask_for_stays(cli: Cli, model_file: Path) -> None:
    options = ("--precision", "fp16,fp32", "--passes", "dead-code")
    out = cli("ablate", model_file, *CPU, *QUICK, *options[:2], "--passes", "dead-code").out
    assert "select-precision" not in out
    result = cli("ablate", model_file, *CPU, *QUICK, *options[:2], "--passes", "select-precision")
    assert (result.code, result.out) == (2, "")
    assert "pass 'select-precision' cannot be left out: precision fp16, fp32 is" in result.err


def test_build_without_a_pass(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "net.nrt"
    disable = ("--disable", "fuse-conv-epilogue", "--disable", "fuse-reduce")
    assert cli("build", model_file, "-o", plan, *CPU, *disable).code == 0
    found = json.loads(cli("inspect", plan, "--json").out)
    assert "Relu" in found["ops_after"]
    usual = json.loads(cli("inspect", model_file, *CPU, "--json").out)
    assert "Relu" not in usual["ops_after"]
    text = cli("diff", model_file, "--shapes", "image:2x3x9x7", *disable).out
    assert "Relu" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ("--passes", "fuse-conv-epilog"),
            "'fuse-conv-epilog' is unknown; did you mean 'fuse-conv-epilogue'",
        ),
        (("--passes", "a,,b"), "'a,,b': expected names separated by commas"),
        (("--disable", "dead_code"), "pass 'dead_code' is unknown; did you mean 'dead-code'?"),
        (("--passes", "dead-code", "--disable", "dead-code"), "pass 'dead-code' is left out alr"),
        (("--duration", "-1"), "'-1': expected a number of seconds of at least 0"),
        (("--svg", "nowhere/x.svg"), "nowhere/x.svg: the folder nowhere does not exist"),
    ],
)
def test_errors(cli: Cli, model_file: Path, line: tuple[str, ...], message: str) -> None:
    result = cli("ablate", model_file, *CPU, *line)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_plan_has_no_passes(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "net.nrt"
    assert cli("build", model_file, "-o", plan, *CPU).code == 0
    result = cli("ablate", plan)
    assert (result.code, result.out) == (2, "")
    assert f"{plan} is a plan, which holds no graph; give the model" in result.err
    assert cli("bench", plan, "--disable", "dead-code").err.startswith("nrt: error: --disable: ")
