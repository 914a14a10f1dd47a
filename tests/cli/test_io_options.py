"""--input-format and --output-format: what they mean, and that they reach the plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from nrt.cli import options

from .support import Cli

CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", "image:2x3x9x7")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x:fp16:nhwc", ("x", "fp16", "nhwc")),
        ("fp16:nhwc", ("", "fp16", "nhwc")),
        ("fp16", ("", "fp16", None)),
        ("NHWC", ("", None, "nhwc")),
        ("x:BF16", ("x", "bf16", None)),
        ("x:nchw", ("x", None, "nchw")),
        ("a:b/c:fp32:nchw", ("a:b/c", "fp32", "nchw")),
        ("a:0:nhwc", ("a:0", None, "nhwc")),
    ],
)
def test_formats(text: str, wanted: tuple[str, str | None, str | None]) -> None:
    name, dtype, layout = wanted
    assert options.io_format(text) == {name: (dtype, layout)}


@pytest.mark.parametrize("text", ["", "x", "x:half", "x:fp16:nwhc", ":fp16", "x:", ":nhwc"])
def test_bad_formats(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError,
        match=r"expected NAME:TYPE:LAYOUT, such as input:fp16:nhwc; a type is one of fp32, fp16, ",
    ):
        options.io_format(text)


def test_inspect_shows_the_bindings(cli: Cli, model_file: Path) -> None:
    formats = ("--input-format", "image:fp16:nhwc", "--output-format", "fp16")
    result = cli("inspect", model_file, *CPU, "--precision", "fp16", *formats, "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["inputs"] == [
        {"name": "image", "shape": [2, 3, 9, 7], "dtype": "fp16", "layout": "nhwc"}
    ]
    assert data["outputs"] == [
        {"name": "scores", "shape": [2, 11], "dtype": "fp16", "layout": "row-major"}
    ]
    assert "Reformat" not in [layer["op"] for layer in data["layers"]]
    text = cli("inspect", model_file, *CPU, *formats).out
    assert "inputs: image fp16[2, 3, 9, 7]{nhwc}" in text


def test_a_plan_runs_with_its_bindings(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.nrt"
    formats = ("--input-format", "fp16:nhwc", "--output-format", "scores:fp16")
    assert cli("build", model_file, "-o", path, *CPU, *formats).code == 0
    x = np.random.default_rng().random((2, 3, 9, 7)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    result = cli("run", path, "--input", f"image={tmp_path / 'x.npy'}", "--output-dir", tmp_path)
    assert result.code == 0, result.err
    assert np.load(tmp_path / "scores.npy").dtype == np.float16


def test_the_reference_gets_the_models_own_types(cli: Cli, model_file: Path) -> None:
    formats = ("--input-format", "fp16:nhwc", "--output-format", "fp16")
    result = cli("compare", model_file, *CPU, "--precision", "fp16", *formats)
    assert (result.code, "FAILED" in result.out) == (0, False), result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input-format", "imagee:fp16"), "no input or output 'imagee'; did you mean 'image'?"),
        (("--input-format", "x"), "argument --input-format: 'x': expected NAME:TYPE:LAYOUT"),
        (("--output-format", "scores:nhwc"), "output 'scores': nhwc is the memory order of an im"),
        (
            ("--input-format", "a:fp16", "--output-format", "a:fp16"),
            "'a' is given to --input-format and to --output-format",
        ),
        (("--input-format", "fp16", "--input-format", "nhwc"), "'' is given twice"),
    ],
)
def test_errors(cli: Cli, model_file: Path, arguments: tuple[str, ...], message: str) -> None:
    result = cli("build", model_file, "-o", model_file.parent / "n.nrt", *CPU, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_plan_takes_no_formats(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.nrt"
    assert cli("build", model_file, "-o", path, *CPU).code == 0
    result = cli("inspect", path, "--input-format", "fp16")
    assert result.code == 2
    assert f"--input-format: {path} is a plan, compiled already" in result.err
