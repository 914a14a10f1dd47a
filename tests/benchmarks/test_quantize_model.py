"""quantize_model: a Q/DQ model, and how it compares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from benchmarks import quantize_model
from tests.benchmarks.small_zoo import make_zoo


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_a_model_is_quantized_and_compared(
    activations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, output = make_zoo(tmp_path / "zoo"), tmp_path / "model.onnx"
    arguments = ["--models", str(zoo), "--model", "vgg19", "-o", str(output), "--batch", "2"]
    arguments += ["--activations", activations, "--samples", "2", "--inputs", "2", "--check"]
    assert quantize_model.main(arguments) == 0
    counts = Counter(n.op_type for n in onnx.load(output).graph.node)
    assert counts["QuantizeLinear"] >= 1
    assert counts["DequantizeLinear"] >= 2
    zeros = {n.input[2] for n in onnx.load(output).graph.node if n.op_type == "QuantizeLinear"}
    kinds = {t.data_type for t in onnx.load(output).graph.initializer if t.name in zeros}
    assert kinds == {getattr(onnx.TensorProto, activations.upper())}
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("products of int8: 1 of 1, ") for line in lines)
    shares = [line for line in lines if "quanta apart" in line]
    assert len(shares) == 3
    for line in shares:
        assert float(line.split("1 or less in ")[1].split(" %")[0]) >= 99
    assert "of 420 outputs" in shares[0]


def test_a_batch_that_the_model_has_not(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo")
    arguments = ["--models", str(zoo), "--model", "unet", "-o", str(tmp_path / "m.onnx")]
    with pytest.raises(SystemExit):
        quantize_model.main([*arguments, "--batch", "2"])
