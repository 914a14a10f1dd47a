"""Limiting nrt to some of its kernels, and what a narrow type gains over fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kernels
from benchmarks.kernel_choice import LimitedBench, gains, known_variants
from benchmarks.kernel_problems import product
from benchmarks.kernels import quick_inputs, tune_all
from nrt.dtypes import FP8E4M3, FP16, FP32, INT8
from nrt.errors import BuildError, InputError
from nrt.tuner_cpu import CpuBench


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def test_only_named_variants_are_candidates() -> None:
    problem = product(9, 5, 17, FP32)
    bench = LimitedBench(CpuBench(), ["cpu_matmul_panels"])
    (choice,) = tune_all([problem], bench, 1, None).values()
    assert not isinstance(choice, Exception)
    assert choice.variant.name == "cpu_matmul_panels"
    refused = {c.variant: c.note for c in choice.candidates if c.seconds is None}
    assert refused["cpu_reference"] == "left out by --variants"
    # One that cannot: nothing is left, and that is said.
    bench = LimitedBench(CpuBench(), ["cpu_conv_staged"])
    (error,) = tune_all([problem], bench, 1, None).values()
    assert isinstance(error, BuildError)


def test_names_are_checked() -> None:
    assert known_variants(["gemm_mma", "conv_mma", "gemm_mma"], "cuda") == ["conv_mma", "gemm_mma"]
    assert known_variants(["cpu_reference"], "cpu") == ["cpu_reference"]
    with pytest.raises(
        InputError, match=r"--variants: gemm_nma unknown; expected some of .*gemm_mma"
    ):
        known_variants(["gemm_nma"], "cuda")


def _case(group: str, key: str, rate: float | None, **more: Any) -> dict[str, Any]:
    case = {"group": group, "batch": 0, "key": key, **more}
    return case if rate is None else {**case, "rate": rate}


def test_gains_are_over_the_same_product_in_fp16() -> None:
    half, byte, small, tf32 = (
        p.key[:16]
        for p in (
            product(8192, 8192, 8192, FP16),
            product(8192, 8192, 8192, INT8),
            product(8192, 8192, 8192, FP8E4M3),
            product(8192, 8192, 8192, FP32, tf32=True),
        )
    )
    cases = [
        _case("gemm-int8", byte, 1200.0),
        _case("gemm", half, 600.0),
        _case("gemm-fp8", small, None),
        _case("gemm-tf32", tf32, 300.0, variants="gemm_mma"),
        _case("gemm-int8", product(1024, 1024, 1024, INT8).key[:16], 500.0),
    ]
    (gain,) = gains(cases)
    assert gain == {**cases[0], "over_fp16": 2.0}
    limited = [*cases, _case("gemm", half, 400.0, variants="gemm_mma")]
    assert [(c["group"], c["over_fp16"]) for c in gains(limited)] == [
        ("gemm-int8", 2.0),
        ("gemm-tf32", 0.75),
    ]
    assert gains(cases[:1]) == []


def test_big_inputs_of_int8_take_its_whole_range() -> None:
    for factor in quick_inputs(product(2048, 2048, 2048, INT8), 3):
        assert (factor.dtype, factor.min(), factor.max()) == (INT8.numpy, -127, 127)
    a, _ = quick_inputs(product(2048, 2048, 2048, FP8E4M3), 3)
    assert a.dtype == FP8E4M3.numpy


def test_a_limited_run_names_its_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import kernel_problems

    monkeypatch.setattr(kernel_problems, "SQUARES", (40,))
    args = ["--target", "cpu", "--opt-level", "1", "--results", str(tmp_path)]
    assert kernels.main([*args, "--group", "gemm-int8", "gemm-tf32"]) == 0
    limited = ["--group", "gemm-tf32", "--variants", "cpu_matmul_panels"]
    assert kernels.main([*args, *limited]) == 0
    cases = json.loads((tmp_path / "kernels_cpu.json").read_text(encoding="utf-8"))["cases"]
    assert [(c["group"], c["precision"], c.get("variants")) for c in cases] == [
        ("gemm-int8", "int8", None),
        ("gemm-tf32", "tf32", None),
        ("gemm-tf32", "tf32", "cpu_matmul_panels"),
    ]
    assert cases[0]["problem"] == "MatMul(int8[40,40], int8[40,40]) -> int32[40,40]"
    assert cases[1]["problem"].endswith("-> fp32[40,40] tf32")
    assert cases[2]["variant"] == "cpu_matmul_panels"
    capsys.readouterr()
    assert kernels.main([*args, "--variants", "fast"]) == 1
    assert "error: --variants: fast unknown" in capsys.readouterr().err
