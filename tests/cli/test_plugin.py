"""``--plugin FILE.py``: models and plans that need what a user's file registers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nrt.extensions.registry import registry

from .support import Cli

PLUGIN = """
import numpy as np
import nrt

nrt.pointwise("Halve", lambda x: x / 2)

@nrt.op("my.domain", "Reverse")
class Reverse(nrt.Op):
    def infer(self, x):
        return (x,)
    def reference(self, x):
        return (np.ascontiguousarray(x[..., ::-1]),)
"""


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    before = set(sys.modules)
    with registry.scope():
        registry.clear()
        yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Reverse", ["x"], ["r"], "reverse", domain="my.domain"),
        helper.make_node("Halve", ["r"], ["y"], "halve", domain="my.domain"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "custom",
        [info("x", TensorProto.FLOAT, [3, 5])],
        [info("y", TensorProto.FLOAT, [3, 5])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    path = tmp_path / "custom.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


CPU = ("--target", "cpu", "--opt-level", "0")


def forget() -> None:
    """What a new process knows."""
    registry.clear()
    for name in [n for n in sys.modules if n.startswith("my_plugin")]:
        del sys.modules[name]


def test_build_and_run(cli: Cli, custom: Path, plugin: Path, tmp_path: Path) -> None:
    plan = tmp_path / "custom.nrt"
    result = cli("build", custom, "-o", plan, *CPU)
    assert (result.code, "op Reverse, domain my.domain" in result.err) == (2, True)
    result = cli("build", custom, "-o", plan, *CPU, "--plugin", plugin)
    assert (result.code, result.err) == (0, "")
    x = np.random.default_rng().standard_normal((3, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("run", plan, "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", tmp_path)
    forget()
    result = cli(*arguments)
    assert result.code == 2
    assert "op 'my.domain::Reverse' is not registered" in result.err
    assert "--plugin FILE.py" in result.err
    result = cli(*arguments, "--plugin", plugin)
    assert (result.code, result.err) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x[:, ::-1] / 2)


def test_the_other_commands(cli: Cli, custom: Path, plugin: Path) -> None:
    with_plugin = ("--plugin", plugin, "--json")
    for command in (
        ("inspect", custom, *CPU, *with_plugin),
        ("bench", custom, *CPU, "--duration", "0.05", *with_plugin),
        ("diff", custom, *with_plugin),
    ):
        forget()
        result = cli(*command)
        assert result.code == 0, result.err
        json.loads(result.out)
        forget()
        assert cli(*[a for a in command if a not in ("--plugin", plugin)]).code == 2


def test_compare_with_the_references_where_nothing_else_knows_the_op(
    cli: Cli, custom: Path, plugin: Path
) -> None:
    result = cli("compare", custom, *CPU, "--plugin", plugin, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["reference"] == "the NumPy references of nrt and its plug-ins"
    assert found["passed"]
    assert found["outputs"][0]["error"] < 1e-6


def test_compare_still_asks_onnxruntime(cli: Cli, model_file: Path, plugin: Path) -> None:
    arguments = ("--shapes", "image:2x3x9x7", "--plugin", plugin, "--json")
    result = cli("compare", model_file, *CPU, *arguments)
    assert result.code == 0, result.err
    assert "onnxruntime" in json.loads(result.out)["reference"]


def test_files_that_are_no_plugins(cli: Cli, custom: Path, tmp_path: Path) -> None:
    result = cli("diff", custom, "--plugin", tmp_path / "absent.py")
    assert result.code == 2
    assert "expected the path of a Python file (.py)" in result.err
    broken = tmp_path / "my_broken.py"
    broken.write_text("import nrt\nnrt.pointwise('F', lambda x: 1 if x else 0)\n")
    result = cli("diff", custom, "--plugin", broken)
    assert result.code == 2
    assert "my_broken.py: ExtensionError: pointwise function 'F'" in result.err
    assert "nrt.where" in result.err
