"""A tiny model, a hand-made plan, and a way to call the command."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrt.cli import main
from nrt.plan import (
    BufferRef,
    HostStep,
    HostTensor,
    IoSpec,
    Layer,
    LiveBlock,
    Peak,
    Plan,
    Target,
)

from .support import Cli, Result, weights


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("build", model, "-o", plan)`` -> exit code, stdout, stderr."""

    def call(*args: object) -> Result:
        try:
            code = main([str(a) for a in args])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """Conv, ReLU, GlobalAveragePool, Flatten, MatMul; batch symbolic; named unlike an ONNX file."""
    w, b, m = weights()
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "m"], ["scores"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 9, 7])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 11])],
        [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (b, "b"), (m, "m"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = tmp_path / "tiny.model"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def plan() -> Plan:
    """Two layers, the first in two launches; its steps are never run."""
    ref = BufferRef("arena", 0, 64)
    tensor = HostTensor(ref, "fp32", (2, 8), (8, 1))
    first = HostStep("cpu_conv", None, None, (tensor,), (tensor,), BufferRef("arena", 64, 32), 0)
    second = HostStep("cpu_conv", None, None, (tensor,), (tensor,), BufferRef("null"), 0)
    third = HostStep("cpu_relu", None, None, (tensor,), (tensor,), BufferRef("null"), 1)
    conv = Layer(
        "conv", "Conv+relu", ("conv", "relu[0]"), ("fp32[2,8]",), ("fp32[2,8]",), "fp32",
        "cpu_conv", "tile=8", 1.5e-3, 1000, 128, "fastest of 3",
    )  # fmt: skip
    relu = Layer(
        "act", "Pointwise", ("act",), ("fp32[2,8]",), ("fp32[2,8]",), "fp16", "cpu_relu", "",
        None, 16, 128,
    )  # fmt: skip
    return Plan(
        name="tiny",
        target=Target("cpu", "x86_64"),
        inputs=(IoSpec("x", (2, 8), "fp32"),),
        outputs=(IoSpec("y", (2, 8), "fp32"),),
        arena_bytes=96,
        peak=Peak(80, 0, tuple(LiveBlock(f"v{i}", 20 - i) for i in range(4))),
        weights=b"\0" * 256,
        cubins=(),
        kernels=(),
        steps=(first, second, third),
        layers=(conv, relu),
        ops_before={"Conv": 1, "Relu": 2},
        ops_after={"Conv": 1, "Pointwise": 1},
        notes={"programmatic launch": "on: 1.0000 ms, 1.1000 ms without"},
    )
