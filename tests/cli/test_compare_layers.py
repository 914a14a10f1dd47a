"""``nrt compare --layers``: every layer against its reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nrt.cli.parser import make_parser

from .support import Cli

CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", "image:2x3x9x7")


def test_a_row_per_layer(cli: Cli, model_file: Path) -> None:
    result = cli("compare", model_file, *CPU, "--precision", "fp16", "--layers")
    assert result.code == 0
    lines = result.out.splitlines()
    assert "layers against the NumPy references of their ops, in fp32" in lines
    assert [line.split()[:5] for line in lines if line[:1].isspace() and line.split()[:1] in
            (["0"], ["1"], ["2"])] == [
        ["0", "conv", "Conv", "fp16", "fp16"],
        ["1", "pool", "Reduce", "fp16", "fp16"],
        ["2", "fc", "MatMul", "fp16", "fp32"],
    ]  # fmt: skip
    assert sum("worst" in line for line in lines) == 1


def test_as_json(cli: Cli, model_file: Path) -> None:
    result = cli("compare", model_file, *CPU, "--layers", "--json")
    data = json.loads(result.out)
    assert data["passed"] is True
    assert [layer["name"] for layer in data["layers"]] == ["conv", "pool", "fc"]
    assert data["layers"][0]["origins"] == ["conv", "relu"]
    assert data["worst"] in ("conv", "pool", "fc")
    for layer in data["layers"]:
        assert 0 <= layer["own"]["error"] < 1e-6
        assert 0 <= layer["accumulated"]["error"] < 1e-6
        assert layer["own"]["nan"] == layer["own"]["inf"] == 0
    plain = json.loads(cli("compare", model_file, *CPU, "--json").out)
    assert not {"layers", "worst"} & plain.keys()


def test_the_layer_that_overflows_is_the_worst(cli: Cli, model_file: Path) -> None:
    """fc sums far beyond 65504 in fp16: its inputs and weights are within."""
    model = onnx.load(model_file)
    (bias,) = (t for t in model.graph.initializer if t.name == "b")
    (matrix,) = (t for t in model.graph.initializer if t.name == "m")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, 4e4, np.float32), "b"))
    matrix.CopyFrom(numpy_helper.from_array(np.full((5, 11), 2.0, np.float32), "m"))
    relu = next(n for n in model.graph.node if n.op_type == "MatMul")
    relu.output[0] = "sums"
    last = onnx.helper.make_node("MatMul", ["sums", "n"], ["scores"], "last")
    model.graph.node.append(last)
    model.graph.initializer.append(
        numpy_helper.from_array(np.full((11, 11), 1e-3, np.float32), "n")
    )
    onnx.save(model, model_file)
    result = cli("compare", model_file, *CPU, "--precision", "fp16", "--layers", "--json")
    assert result.code == 1
    data = json.loads(result.out)
    assert data["worst"] == "fc"
    fc = next(layer for layer in data["layers"] if layer["name"] == "fc")
    assert fc["own"]["error"] is None
    assert fc["own"]["inf"] == fc["own"]["elements"] == 22
    assert data["layers"][0]["own"]["error"] < 1e-3


def test_inputs_that_are_bound_in_fp16(cli: Cli, model_file: Path) -> None:
    formats = ("--input-format", "fp16:nhwc")
    result = cli("compare", model_file, *CPU, "--precision", "fp16", *formats, "--layers", "--json")
    assert result.code == 0
    assert len(json.loads(result.out)["layers"]) == 3


def test_a_plan_has_no_layers_to_compare(cli: Cli, model_file: Path) -> None:
    result = cli("compare", model_file, "--plan", "some.nrt", "--layers")
    assert result.code == 2
    assert result.err == (
        "nrt: error: --layers: some.nrt is a plan, which holds no graph to compare layer by layer; "
        "leave --plan out\n"
    )


def test_alone_or_with_a_pattern() -> None:
    parse = make_parser().parse_args
    args = parse(["compare", "m"])
    assert (args.show_layers, args.layers) == (False, None)
    args = parse(["compare", "m", "--layers"])
    assert (args.show_layers, args.layers) == (True, None)
    args = parse(["compare", "m", "--layers", "a*=fp32", "--layers", "--layers", "b=fp16"])
    assert (args.show_layers, args.layers) == (True, {"a*": "fp32", "b": "fp16"})
    assert not hasattr(parse(["build", "m", "-o", "p"]), "show_layers")


def test_a_pattern_without_a_precision(cli: Cli) -> None:
    result = cli("compare", "m", "--layers", "head")
    assert result.code == 2
    assert "'head': expected PATTERN=PRECISION, such as 'head*=fp32'" in result.err


@pytest.mark.parametrize("command", ["build", "bench"])
def test_other_commands_want_a_value(cli: Cli, command: str) -> None:
    result = cli(command, "m", "--layers")
    assert result.code == 2
    assert "argument --layers: expected one argument" in result.err
