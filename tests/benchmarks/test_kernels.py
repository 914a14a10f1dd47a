"""kernels: cases on the CPU target, and its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import kernels
from benchmarks.kernel_problems import memory_problems, product
from benchmarks.kernels import kernel_case, quick_inputs, rate_of, runs_for, tune_all
from nrt.dtypes import FP16, FP32, INT8, INT32, UINT8
from nrt.errors import BuildError, InputError
from nrt.ir.ops import MatMul
from nrt.problem import Problem, TensorSpec
from nrt.tuner_cpu import CpuBench

RELATIVE = 1e-9
PROTOCOL = {"warm_up": 0, "duration": 0}
_BODY = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper


def names():
    return ["resnet50"]


def load(name, batch=None):
    rng = np.random.default_rng(5)
    shapes = {"v": (16, 32, 3, 3), "w": (8, 16, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 32, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, 5, 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def test_a_group_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--target", "cpu", "--group", "gemm-bert", "--batch", "1", "--precision", "fp32"]
    args += ["--opt-level", "1", "--limit", "1", "--results", str(tmp_path)]
    assert kernels.main(args) == 0
    data = json.loads((tmp_path / "kernels_cpu.json").read_text(encoding="utf-8"))
    (case,) = data["cases"]
    assert (case["group"], case["batch"], case["unit"]) == ("gemm-bert", 1, "TFLOP/s")
    flops = 2 * 128 * 768 * 768
    assert case["rate"] == pytest.approx(flops / case["nrt"]["median"] * 1e-12, rel=RELATIVE)
    assert "| gemm-bert | 1 | 0 of 1 |" in capsys.readouterr().out


def test_convolutions_of_int8_run_without_peers(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "zoo.py").write_text(_BODY, encoding="utf-8")
    args = ["--target", "cpu", "--models", str(zoo), "--group", "resnet50", "--batch", "2"]
    args += ["--precision", "int8", "--opt-level", "1", "--results", str(tmp_path)]
    assert kernels.main(args) == 0
    data = json.loads((tmp_path / "kernels_cpu.json").read_text(encoding="utf-8"))
    first, second = data["cases"]
    assert (first["status"], first["precision"], "peer" in first) == ("passed", "int8", False)
    assert first["problem"].startswith("Conv(int8[2,32,5,4]{nhwc}, int8[16,32,3,3], ")
    # What gives the result is not quantized.
    assert second["problem"].startswith("Conv(fp16[2,16,5,4]{nhwc}, fp16[8,16,1,1]")


def test_networks_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--target", "cpu", "--group", "resnet50", "--results", str(tmp_path)]
    assert kernels.main(args) == 1
    assert "group resnet50 needs --models DIR" in capsys.readouterr().err


def test_a_case_takes_the_fastest_peer_and_keeps_refusals() -> None:
    problem = product(8, 5, 16, FP32)
    (choice,) = tune_all([problem], CpuBench(), 1, None).values()
    assert not isinstance(choice, Exception)

    def peers(_: Problem, inputs: Any) -> Iterator[tuple[str, Any]]:
        assert [a.shape for a in inputs] == [(8, 16), (16, 5)]
        yield "slow", lambda n: [4e-6] * n
        yield "broken", RuntimeError("not here")
        yield "fast", lambda n: [2e-6] * n

    case = kernel_case(problem, choice, lambda *_: lambda n: [1e-6] * n, peers, PROTOCOL)
    assert case["peer"] == "fast"
    assert case["ratio"] == pytest.approx(2.0, rel=RELATIVE)
    assert case["rate"] == pytest.approx(2 * case["peer_rate"], rel=RELATIVE)
    assert set(case["peers"]) == {"slow", "fast"}
    assert case["peers_refused"] == ["broken: RuntimeError: not here"]
    with pytest.raises(InputError, match="no peer runs MatMul"):
        kernel_case(problem, choice, None, lambda *_: iter([("a", ValueError("b"))]), PROTOCOL)


def test_an_untimed_choice_is_no_measurement() -> None:
    problem = product(3, 5, 7, FP32)
    (choice,) = tune_all([problem], CpuBench(), 0, None).values()
    assert not isinstance(choice, Exception)
    with pytest.raises(InputError, match="was not timed; give --opt-level 1 or more"):
        kernel_case(problem, choice, None, None, PROTOCOL)


def test_one_problem_without_a_kernel_does_not_stop_the_others() -> None:
    class Bench(CpuBench):
        def variants(self, problem: Problem) -> Any:
            return [] if problem.y.shape == (4, 4) else super().variants(problem)

    good, bad = product(3, 5, 7, FP32), product(4, 4, 4, FP32)
    results = tune_all([good, bad], Bench(), 1, None)
    assert not isinstance(results[good], Exception)
    assert isinstance(results[bad], BuildError)


def test_rates_are_of_work_or_of_bytes() -> None:
    assert rate_of(product(10, 20, 30, FP16), 1e-9) == (pytest.approx(12.0), "TFLOP/s")
    relu = memory_problems(FP16, 1 << 16)[0]
    assert rate_of(relu, 1e-6) == (pytest.approx(2 * 2 * 65536 * 1e-6), "TB/s")


def test_graphs_hold_enough_runs_of_every_copy() -> None:
    assert runs_for(1.0) == 3
    assert runs_for(1e-5) == 99
    assert runs_for(0.0) == 192


def test_big_inputs_are_random_and_of_the_right_type() -> None:
    problem = product(2048, 2048, 2048, FP16)
    a, b = quick_inputs(problem, 3)
    assert (a.shape, a.dtype, b.dtype) == ((2048, 2048), np.float16, np.float16)
    assert 0.9 < float(a.astype(np.float32).std()) < 1.1
    assert not np.array_equal(a[0], a[1])
    small = quick_inputs(product(3, 5, 7, FP16), 3)
    assert [x.shape for x in small] == [(3, 7), (7, 5)]


def test_big_inputs_of_bytes_take_their_range() -> None:
    specs = [TensorSpec.dense((2100, 2000), d) for d in (UINT8, INT8)]
    sums = TensorSpec.dense((2100, 2100), INT32)
    problem = Problem(MatMul(trans_b=True), tuple(specs), (sums,), (False, True))
    a, b = quick_inputs(problem, 3)
    assert (a.dtype, a.min(), a.max()) == (np.uint8, 0, 255)
    assert (b.dtype, b.min(), b.max()) == (np.int8, -127, 127)
