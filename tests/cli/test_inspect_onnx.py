"""`nrt inspect --onnx`: the optimized graph as a model, with the kernels of its plan."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from .support import Cli

CPU = ("--target", "cpu", "--shapes", "image:2x3x9x7", "--opt-level", "0")


def test_the_optimized_graph_is_written(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    result = cli("inspect", model_file, *CPU, "--json", "--onnx", path)
    assert result.code == 0
    assert f"wrote the optimized graph, with its kernels as metadata, to {path}" in result.err
    (conv,) = [la for la in json.loads(result.out)["layers"] if la["name"] == "conv"]
    assert "candidates" not in conv
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (node,) = [n for n in model.graph.node if n.name == "conv"]
    metadata = {p.key: p.value for p in node.metadata_props}
    assert metadata["nrt.variant"] == conv["variant"]
    assert json.loads(metadata["nrt.origins"]) == conv["origins"]


def test_a_plan_holds_no_graph(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan, path = tmp_path / "net.nrt", tmp_path / "net.onnx"
    assert cli("build", model_file, "-o", plan, *CPU).code == 0
    result = cli("inspect", plan, "--onnx", path)
    assert (result.code, result.out) == (2, "")
    assert f"--onnx: {plan} is a plan, which holds no graph; give the model" in result.err
    assert not path.exists()


def test_it_does_not_go_with_a_picture(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    result = cli("inspect", model_file, "--svg", tmp_path / "n.svg", "--onnx", tmp_path / "n.onnx")
    assert (result.code, result.out) == (2, "")
    assert "--onnx is about kernels, and --svg compiles none; leave one out" in result.err
