"""Ceilings: the model, the measurements, the data sheets."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nrt.cuda_kernels.device import ARCHS, device_for_arch
from nrt.insight import roofline
from nrt.insight.data_sheets import DATA_SHEETS
from nrt.insight.roofline import Ceilings, ceilings_of, measure_cpu, measure_cuda
from nrt.plan import Target

CEILINGS = Ceilings("a device", 2e12, {"fp16": 800e12, "fp32": 50e12}, "by hand")


def test_the_roof() -> None:
    assert CEILINGS.ridge("fp16") == 400
    assert CEILINGS.ridge("fp32") == 25
    assert CEILINGS.attainable("fp16", 100) == 200e12
    assert CEILINGS.attainable("fp16", 400) == CEILINGS.attainable("fp16", 1e6) == 800e12
    assert CEILINGS.ridge("int8") is CEILINGS.attainable("int8", 1) is None
    assert CEILINGS.to_data()["rates"] == {"fp16": 800e12, "fp32": 50e12}


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100 40GB"),
        ("Tesla T4", "NVIDIA T4"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("Orin", "NVIDIA Jetson AGX Orin"),
    ],
)
def test_data_sheets_by_name(device: str, name: str) -> None:
    found = ceilings_of(Target("cuda", "sm_90a", device), measure=False)
    assert found is not None
    assert (found.device, found.source) == (name, f"data sheet of {name}")
    sheet = next(s for s in DATA_SHEETS if s.name == name)
    assert (found.bandwidth, found.rates) == (sheet.bandwidth, sheet.rates)


def test_data_sheets_by_architecture_or_none() -> None:
    for arch in ARCHS:
        found = ceilings_of(Target("cuda", arch), measure=False)
        assert found is not None
        assert next(s for s in DATA_SHEETS if s.name == found.device).arch == arch
    assert ceilings_of(Target("cuda", "sm_89", "NVIDIA L40S"), measure=False) is None
    assert ceilings_of(Target("cpu", "x86_64"), measure=False) is None


def test_a_sheet_is_near_what_estimates_assume() -> None:
    for arch in ARCHS:
        device, sheet = device_for_arch(arch), next(s for s in DATA_SHEETS if s.arch == arch)
        assert 0.6 < device.bandwidth / sheet.bandwidth < 1.05
        assert 0.7 < device.fp16_flops / sheet.rates["fp16"] < 1.05


def test_the_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.01, 0.05))
    done: list[str] = []

    def best(work: Any) -> float:
        work()
        done.append("run")
        return next(times)

    monkeypatch.setattr(roofline, "_best", best)
    found = measure_cpu()
    assert done == ["run", "run"]
    assert found.bandwidth == 2 * 64 * 2**20 / 0.01
    assert set(found.rates.values()) == {2 * 1024**3 / 0.05}
    assert {"fp32", "fp16"} <= found.rates.keys()


def test_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 3.0, 10.0, 11.5, 20.0, 22.0))
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert roofline._best(lambda: calls.append(1), repeats=3) == 1.5
    assert len(calls) == 4  # the first warms up


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A GPU that is not there: times of the product and of the copy."""
    seen: dict[str, Any] = {"seconds": (1.6e-3, 8e-5)}

    def tune(problems: Any, bench: Any, **options: Any) -> Any:
        seen["problems"], seen["options"] = list(problems), options
        return {
            p: SimpleNamespace(seconds=s)
            for p, s in zip(seen["problems"], seen["seconds"], strict=True)
        }

    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("nrt.tuner.tune", tune)
    monkeypatch.setattr("nrt.tuner_cuda.CudaBench", lambda *args: None)
    monkeypatch.setattr(
        "nrt.cuda_kernels.compile_pool.CompilePool", lambda *args: nullcontext(None)
    )
    return seen


def runner(arch: str = "sm_90a") -> Any:
    return SimpleNamespace(device=device_for_arch(arch))


def test_a_gpu_is_measured_with_the_tuner(measured: dict[str, Any], tmp_path: Path) -> None:
    sheet = next(s for s in DATA_SHEETS if s.name == "NVIDIA H200")
    found = measure_cuda(runner(), sheet)
    gemm, copy = measured["problems"]
    assert (gemm.family, gemm.y.shape, gemm.y.dtype.name) == ("MatMul", (8192, 8192), "fp16")
    assert (copy.family, copy.nbytes) == ("Relu", 256 * 2**20)
    assert measured["options"]["cache"].path == tmp_path / "timings-cuda.json"
    fp16 = 2 * 8192**3 / 1.6e-3
    assert found.bandwidth == 256 * 2**20 / 8e-5
    assert found.rates["fp16"] == found.rates["bf16"] == fp16
    assert found.rates["int8"] == pytest.approx(1979e12 * fp16 / 989e12)
    assert found.source.startswith("measured: nrt's copy of 128 MiB and fp16 product of 8192; ")
    assert found.source.endswith("data sheet of NVIDIA H200, times 0.69")


def test_what_cannot_be_measured_is_as_estimates_assume(measured: dict[str, Any]) -> None:
    measured["seconds"] = (None, None)
    found = measure_cuda(runner("sm_87"))
    assert measured["problems"][0].y.shape == (4096, 4096)
    device = device_for_arch("sm_87")
    assert (found.bandwidth, found.rates) == (
        device.bandwidth, {"fp16": device.fp16_flops, "bf16": device.fp16_flops},
    )  # fmt: skip


def test_only_the_device_of_the_plan_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(device=SimpleNamespace(name="NVIDIA H200"))
    monkeypatch.setattr("nrt.runtime.cuda.device_count", lambda: 1)
    monkeypatch.setattr("nrt.cuda_runner.CudaRunner", lambda: here)
    monkeypatch.setattr(roofline, "measure_cuda", lambda runner, sheet: (runner, sheet.name))
    assert ceilings_of(Target("cuda", "sm_90a", "NVIDIA H200")) == (here, "NVIDIA H200")
    other = ceilings_of(Target("cuda", "sm_87", "Orin"))
    assert other is not None
    assert other.source == "data sheet of NVIDIA Jetson AGX Orin"
